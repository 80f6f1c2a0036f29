"""A figure of the architectures that were traced and proved."""

from collections.abc import Iterable, Mapping
from typing import Any

from .evidence import grouped
from .style import Drawn, PaperFigure, styled

# The Okabe–Ito colours of each way to a graph.
WAYS = {"torch.fx": ("#0072B2", "o"), "torch.export": ("#E69F00", "s"), "refused": ("#444444", "x")}


@styled
def architectures(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """Seconds to trace and prove against the parameters of each architecture, by where its graph comes from.

    Row: {"library", "model", "parameters", "trace_seconds", "refused"} and, unless that gives a reason,
    {"prove_seconds", "way"}. The slowest proved of each way is named.
    """
    rows = list(rows)
    libraries = grouped(rows, "library")
    wide = len(libraries) if columns == 2 else 1
    figure = PaperFigure(columns, 0.6 + 2.6 * len(libraries) / wide)
    grid = figure.subplots(len(libraries) // wide, wide, squeeze=False, sharex=True, sharey=True)
    for axes, (library, of_library) in zip(grid.ravel(), libraries.items(), strict=True):
        ways = grouped([row | {"shown": "refused" if row["refused"] else row["way"]} for row in of_library], "shown")
        for way, alike in ways.items():
            colour, marker = WAYS[way]
            points = [(row["parameters"], row["trace_seconds"] + row.get("prove_seconds", 0)) for row in alike]
            style = {"color": colour, "marker": marker, "markersize": 4, "linestyle": "none", "alpha": 0.8}
            label = way if way == "refused" else f"proved, graph from {way}"
            figure.key(label, *axes.plot(*zip(*points, strict=True), **style))
            if way == "refused":
                continue
            (x, y), row = max(zip(points, alike, strict=True), key=lambda pair: pair[0][1])
            axes.annotate(row["model"], (x, y), (-4, 3), textcoords="offset points", ha="right", fontsize=6)
        proved = sum(not row["refused"] for row in of_library)
        axes.set(xscale="log", yscale="log", title=f"{library}: {proved} of {len(of_library)} proved")
    for axes in grid[-1]:
        axes.set_xlabel("parameters")
    for axes in grid[:, 0]:
        axes.set_ylabel("seconds to trace and prove")
    return figure, f"random weights, n = 1 each, {record['provenance']['device']}"
