"""`python -m lib.paper`: every figure and table of the README and the paper again, from the tracked records alone.

Records right in the results folder are drawn one by one, those of a sweep (a folder of its own) pooled over pairs.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..checks import InputError
from ..paths import FIGURES, LOCAL, RESULTS, ROOT
from ..records import curve_key, portable, read_arrays, read_record
from . import drawing, evidence, figures, figures_many, pool, tables
from .style import save_figure
from .tables import write_text

README_MARKERS = ("<!-- results: make figures writes this table -->", "<!-- end of results -->")
INDEX = "index.txt"  # beside the figures: what the last run wrote, so that the next one removes what is no longer made


# What the README shows of each experiment (matcher, correction); figures/results.md has every curve.
README_CURVES = {
    "simplenet_mnist": (("none", "none"), ("graph_reference", "none"), ("graph", "none"), ("graph", "least_squares")),
    "vgg11_cifar10": (("activation", "bn_reset"), ("activation", "least_squares")),
    "leaderboard": (("activation", "bn_reset"), ("activation", "least_squares")),
}
# Methods are compared with the first of these that a sweep has: the published one, else none.
BASELINES = ("activation + bn_reset", "graph_reference", "none")


Records = Mapping[str, Mapping[str, Any]]


def read(folder: Path) -> tuple[dict[str, Records], dict[str, Records], list[str]]:
    """The records right in `folder` by kind of pair (stems alike but for the seed), the sweeps in its subfolders by
    name (data/results/local is nobody's evidence), and a line for each file that is no record."""
    kinds: dict[str, dict[str, Any]] = {}
    sweeps: dict[str, dict[str, Any]] = {}
    broken = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        if path.parent != folder and path.parent.name == LOCAL.name:
            continue
        try:
            record = read_record(path)
        except InputError as error:
            broken.append(str(error))
            continue
        if path.parent != folder:
            sweeps.setdefault(path.parent.name, {})[path.stem] = record
        else:
            kinds.setdefault(re.sub(r"[-_]s\d+$", "", path.stem), {})[path.stem] = record
    return kinds, sweeps, broken


def independent(records: Records) -> tuple[dict[str, Any], list[str]]:
    """The records with curves whose pairs share no network with an earlier one, and a line for each left out."""
    shared = evidence.overlapping(pool.rows(records))
    kept = {stem: record for stem, record in records.items() if "curves" in record and stem not in shared}
    return kept, [f"{stem}: shares a network with {other}, not pooled" for stem, other in shared.items()]


def pools(sweep: str, records: Records) -> dict[str, dict[str, Any]]:
    """The records of a sweep, split into what may be pooled, by name: the sweep's, with what tells the kinds apart."""
    kinds = evidence.kinds(pool.rows(records))
    varying = [name for name in evidence.KIND if len({rows[0][name] for rows in kinds}) > 1]
    if "width" in varying:  # says it alone, unless there are several kinds of one width
        widths = [rows[0]["width"] for rows in kinds]
        varying = varying if len(set(widths)) < len(widths) else ["width"]
    short = {"width": "w", "model": "", "dataset": "", "norm": ""}
    found = {}
    for rows in kinds:
        parts = [f"{short.get(name, name)}{rows[0][name]}" for name in varying]
        stems = dict.fromkeys(row["record"] for row in rows)
        found["_".join([sweep, *parts])] = {stem: records[stem] for stem in stems}
    return found


def readme_rows(kinds: Mapping[str, Records], sweeps: Mapping[str, Records]) -> list[dict[str, Any]]:
    """The README's rows: the published weights, the sweeps, the leaderboard; of rows alike the one with most pairs.

    Row: as `lib.results.leaderboard_rows` makes them, and "records", the name of the records behind it.
    """
    published = {name: found for name, found in kinds.items() if _foreign(found)}
    board = {name: found for name, found in kinds.items() if _on_board(found)}
    answer: dict[Any, dict[str, Any]] = {}
    for name, records in [*published.items(), *_pooled(sweeps), *board.items()]:
        rows = _rows(name, records)
        wanted = README_CURVES.get(_experiment(records), ())
        if not any(row["correction"] == "bn_reset" for row in rows):  # a network without BatchNorm
            wanted = [(m, "none" if c == "bn_reset" else c) for m, c in wanted]
        found = {curve_key(row): row for row in rows}
        for matcher, correction in wanted:
            row = found.get((matcher, correction))
            if row is None:
                continue
            key = name in published and name, row["architecture"], row["dataset"], matcher, correction
            if key not in answer or row["n"] > answer[key]["n"]:
                answer[key] = row
    return list(answer.values())


def _rows(name: str, records: Records) -> list[dict[str, Any]]:
    kept = {stem: record for stem, record in records.items() if "curves" in record}
    return [row | {"records": name} for row in pool.leaderboard_rows(kept) if "reference" not in row]


def _pooled(sweeps: Mapping[str, Records]) -> Iterator[tuple[str, Records]]:
    for sweep, records in sweeps.items():
        yield from pools(sweep, independent(records)[0]).items()


def _experiment(records: Records) -> str:
    return next(iter(records.values()))["experiment"]


def _on_board(records: Records) -> bool:
    """Whether the records belong to the leaderboard: they hold what it compares fused networks with."""
    return all("references" in record for record in records.values())


def _foreign(records: Records) -> bool:
    """Whether the networks were trained elsewhere: no seed is known of them."""
    return all("curves" in r and r["seeds"]["a"] is None for r in records.values())


class Writer:
    """Writes figures and tables into one folder and keeps the list."""

    def __init__(self, folder: Path):
        self.folder, self.written = folder, []

    def figure(self, stem: str, figure: Figure) -> None:
        self.written += save_figure(figure, stem, self.folder)

    def both(self, stem: str, draw: Any, *args: Any, **options: Any) -> None:
        """A figure at two columns and, as <stem>_column, at one."""
        for columns, end in ((2, ""), (1, "_column")):
            self.figure(f"{stem}{end}", draw(*args, columns=columns, **options))

    def text(self, name: str, text: str) -> None:
        self.written.append(write_text(text, self.folder / name))


def write_all(folder: str | Path = RESULTS, figures: str | Path = FIGURES) -> tuple[list[Path], list[str]]:
    """Rebuilds every figure and table from the records in `folder`; returns the files, and lines on what was skipped.

    For each kind of pair right in the folder: the figures of its first record (permutations only for the first kind of
    an experiment), <kind>.tex, and over several pairs <kind>_curves. Leaderboards: leaderboard, leaderboard_best (two
    columns wide). For
    each sweep: <pool>_curves a kind, <sweep>_widths, <sweep>_differences, <sweep>.tex. results.md lists every curve at
    the midpoint. What an earlier run wrote into `figures` and this one did not is removed, unless a record could not
    be read.
    """
    folder, writer = Path(folder), Writer(Path(figures))
    kinds, sweeps, skipped = read(folder)
    if not kinds and not sweeps:
        raise InputError(f"no run records in {folder}; accepted: a folder that holds some")
    whole = not skipped
    writer.figure("network_graph", drawing.network_graph())
    single = {kind: records for kind, records in kinds.items() if not _on_board(records)}
    seen = set()
    for kind, records in single.items():
        experiment = _experiment(records)
        skipped += _write_kind(writer, folder, kind, records, again=experiment in seen)
        seen.add(experiment)
    board = [record for kind, records in kinds.items() if kind not in single for record in records.values()]
    if board:
        rows = pool.leaderboard_rows(board)
        writer.figure("leaderboard", figures_many.leaderboard(rows))
        writer.text("leaderboard.tex", tables.leaderboard_latex(rows))
        if any(row.get("best_accuracy") is not None for row in rows):
            writer.figure("leaderboard_best", figures_many.leaderboard(rows, "best_accuracy"))
    for sweep, records in sweeps.items():
        kept, dropped = independent(records)
        skipped += dropped
        if kept:
            _write_sweep(writer, sweep, kept)
    every = [row for name, records in [*kinds.items(), *_pooled(sweeps)] for row in _rows(name, records)]
    writer.text("results.md", f"{tables.pooled_markdown(every)}\n\nAt α = 0.5; {tables.INTERVALS}. {tables.READ}\n")
    _remove_stale(writer, whole)
    return writer.written, skipped


def _write_kind(writer: Writer, folder: Path, kind: str, records: Records, again: bool) -> list[str]:
    (stem, record), *others = records.items()
    skipped, arrays = [], {}
    try:
        arrays = read_arrays(folder / f"{stem}.json")
    except InputError as error:  # what needs none is drawn all the same
        skipped.append(str(error))
    drawn = figures.record_figures(record, arrays)
    if not drawn:
        return [*skipped, f"{stem}.json: nothing in it that a figure shows"]
    for name, figure in drawn.items():
        if not (again and name.startswith("matching_")):
            writer.figure(f"{stem}_{name}", figure)
    if "curves" in record:
        kept, dropped = independent(records)
        writer.text(f"{kind}.tex", tables.latex(kept))
        if others:
            writer.figure(f"{kind}_curves", figures.curves(kept))
        skipped += dropped
    return skipped


def _write_sweep(writer: Writer, sweep: str, records: Records) -> None:
    rows = []
    for name, alike in pools(sweep, records).items():
        writer.both(f"{name}_curves", figures.curves, alike)
        rows += _rows(name, alike)
    writer.text(f"{sweep}.tex", tables.pooled_latex(rows))
    _write_widths(writer, f"{sweep}_widths", list(records.values()))
    flat = pool.rows(records)
    curves = {row["curve"] for row in flat}
    against = next((name for name in BASELINES if name in curves), None)
    found = evidence.summary(flat, against=against) if against else []
    if found:
        writer.both(f"{sweep}_differences", figures_many.differences, found, against)


def _write_widths(writer: Writer, stem: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Width against barrier, where there is more than one width and one data set."""
    records = list(records)
    widths, kinds = {r["model"]["width"] for r in records}, evidence.kinds(pool.rows(records))
    if len(kinds) == len(widths) > 1 and len({r["dataset"] for r in records}) == 1:
        writer.both(stem, figures_many.width_barrier, records)
        writer.text(f"{stem}.tex", tables.widths_latex(records))


def _remove_stale(writer: Writer, whole: bool) -> None:
    """Only files that an earlier run's index names are ever removed."""
    index, names = writer.folder / INDEX, {path.name for path in writer.written}
    before = set(index.read_text().split()) if index.is_file() else set()
    stale = {name for name in before - names if name == Path(name).name}
    if whole:
        for name in stale:
            (writer.folder / name).unlink(missing_ok=True)
    writer.text(INDEX, "\n".join(sorted(names if whole else names | stale)) + "\n")


def readme_table(folder: str | Path = RESULTS) -> str:
    """The README's results table, as Markdown, from the records in `folder`."""
    kinds, sweeps, _ = read(Path(folder))
    every = [record for found in (kinds, sweeps) for records in found.values() for record in records.values()]
    devices = sorted({f"{r['provenance']['device']}, {r['provenance']['threads']} thread(s)" for r in every})
    note = f"At α = 0.5; {tables.INTERVALS}. {tables.READ} Every curve: [results.md](figures/results.md)."
    origin = f"Measured on {'; '.join(devices)}; rebuilt from `data/results/` by `make figures`."
    return f"{tables.pooled_markdown(readme_rows(kinds, sweeps))}\n\n{note}\n{origin}"


def write_readme(readme: Path = ROOT / "README.md", folder: str | Path = RESULTS) -> None:
    """Puts the results table, made from the records in `folder`, between the README's two markers."""
    text, (start, end) = readme.read_text(), README_MARKERS
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    if not after:
        raise ValueError(f"{readme} lacks the markers {start} and {end}")
    write_text(f"{before}{start}\n{readme_table(folder)}\n{end}{after}", readme)


def main(arguments: list[str] | None = None) -> int:
    """The command `python -m lib.paper`; 1 when a file in the results folder could not be read, 2 when
    nothing could be made."""
    parser = argparse.ArgumentParser(prog="python -m lib.paper", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of run records (*.json)")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder to write into")
    options = parser.parse_args(arguments)
    try:
        written, skipped = write_all(options.results, options.figures)
        if (options.results, options.figures) == (RESULTS, FIGURES):
            write_readme()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {portable(path)}")
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    return int(any("not a run record" in line for line in skipped))
