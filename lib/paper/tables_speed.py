"""Tables of what things cost: speed and memory, growth, graph matching at scale; and of the coverage of intervals.

Of the records of `make bench`, notebooks/graph_matching_scaling.ipynb and `python -m lib.paper.coverage`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .evidence import grouped
from .names import width_label
from .tables import Table

Study = Mapping[str, Any]  # a record of rows


def speed(record: Study) -> Table:
    """Each piece of work: CPU seconds and extra peak memory, and both against the peer."""
    part = [["work", "how", "CPU seconds", "MB", "against", "times as fast", "memory, times less", "record"]]
    for row in _of(record, "bench"):
        peak, other = row["peak_bytes"], row.get("against_peak_bytes")
        # Below a megabyte the allocator decides: said as that, and compared with it.
        less = "—" if None in (peak, other) or other < MEGABYTE else _short(other / max(peak, MEGABYTE))
        faster = _short(row["against_seconds"] / row["seconds"])
        cells = [row["work"], row["method"], _short(row["seconds"]), _megabytes(peak), row["against"], faster, less]
        part.append([*cells, "`bench`"])
    return Table([part])


def growth(record: Study) -> Table:
    """How seconds grow with images, alphas and width."""
    part = [["work on VGG11-BN, random weights", "sizes", "CPU seconds", "exponent", "record"]]
    for row in _of(record, "growth"):
        sizes, seconds = (", ".join(form(value) for value in row[name]) for name, form in SHOWN.items())
        part.append([row["work"], sizes, seconds, f"{row['exponent']:.2f}", "`bench`"])
    return Table([part])


def matching(record: Study) -> Table:
    """Graph matching of VGG11 at each width: seconds, memory, and what the dense matrix would take."""
    heads = ["VGG11, width", "`graph`, seconds", "`weight`, seconds", "extra memory of `graph`, MB"]
    part = [[*heads, "dense matrix (not built), TB", "`graph` recovers", "`weight`", "record"]]
    rows = [row for row in _of(record, "scaling") if row["model"] == "vgg11"]
    for width, alike in grouped(rows, "width").items():
        by_solver = {row["solver"]: row for row in alike}
        graph, weight = by_solver.get("graph"), by_solver.get("coordinate_descent")
        if graph and weight:
            seconds = (_short(row["seconds"]) for row in (graph, weight))
            cells = [f"×{width_label(width)}", *seconds, _megabytes(graph["peak_bytes"])]
            found = (f"{100 * row['recovered']:.0f} %" for row in (graph, weight))
            part.append([*cells, _short(graph["dense_bytes"] / 1e12), *found, "`graph_matching_scaling`"])
    return Table([part])


def coverage(record: Study) -> Table:
    """How often a 95 % interval holds the true mean, per cent, against n."""
    rows = _of(record, "coverage")
    sizes = sorted({row["n"] for row in rows})
    part = [["values", "interval", *(f"n = {n}" for n in sizes), "record"]]
    for (distribution, method), alike in grouped(rows, "distribution", "method").items():
        covered = {row["n"]: f"{100 * row['covered']:.1f}" for row in alike}
        part.append([distribution, method, *(covered.get(n, "—") for n in sizes), "`coverage`"])
    return Table([part], texts=2)


MEGABYTE = 1e6
SHOWN = {"sizes": "{:,g}".format, "seconds": lambda seconds: _short(seconds)}
# Each table with the study whose record it is of, and how that is made.
TABLES: dict[str, tuple[Callable[[Study], Table], str, str]] = {
    "speed": (speed, "bench", "make bench"),
    "growth": (growth, "bench", "make bench"),
    "matching": (matching, "graph_matching_scaling", "notebooks/graph_matching_scaling.ipynb"),
    "coverage": (coverage, "coverage", "python -m lib.paper.coverage"),
}
EXPERIMENTS = ("bench", "coverage")  # of these there are tables and no figures


def markdown(name: str, studies: Mapping[str, Study]) -> str:
    """One of `TABLES` by its name, and under it on what it was measured; a line where there is no record."""
    make, study, command = TABLES[name]
    if study not in studies:
        return f"No record yet: `{command}`."
    origin = studies[study]["provenance"]
    given = origin["parameters"]
    loads = [given[when] for when in ("load_before", "load_after") if given.get(when) is not None]
    load = f", load {' to '.join(f'{load:.1f}' for load in loads)} (an idle machine: 0 to 1)" if loads else ""
    where = f"`{command}` on {origin['device']}, {origin['threads']} thread(s){load}; n = 1."
    if name == "coverage":
        where = f"`{command}`: {given['samples']:,} simulated samples for each number."
    return f"{make(studies[study]).markdown()}\n\n{where}"


def _of(record: Study, study: str) -> list[Study]:
    return [row for row in record["rows"] if row.get("study") == study]


def _megabytes(peak: int | None) -> str:
    return "—" if peak is None else "< 1" if peak < MEGABYTE else _short(peak / MEGABYTE)


def _short(value: float) -> str:
    """Two digits or as many as a whole number has: "0.066", "0.87", "7.2", "52", "1,494"."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{float(f'{value:.2g}'):g}"
