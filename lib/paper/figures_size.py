"""Figures and tables of fused networks of many sizes: accuracy against cost, beside what costs as much.

Rows are those of `study.sizes`; of several records, which are independent pairs, means and intervals over pairs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .evidence import Interval, grouped, mean_interval
from .names import model_label
from .style import BLUE, GREEN, GREY, METRIC_LABELS, ORANGE, PINK, SKY, VERMILLION, Drawn, PaperFigure, styled
from .tables import Table, interval_text

Rows = Sequence[Mapping[str, Any]]
Records = Mapping[str, Mapping[str, Any]]
COSTS = {"parameters": "parameters ÷ one network", "multiply_adds": "multiply–adds ÷ one network"}
# (colour, marker, dashes) of each way to choose a size
LINES = {
    "allotted, by parameters": (BLUE, "o", "-"),
    "allotted, by multiply-adds": (SKY, "s", "-"),
    "first apart": (GREEN, "^", "--"),
    "last apart": (VERMILLION, "v", "--"),
    "dense": (ORANGE, "D", ":"),
    "one parent pruned": (GREY, "x", "-"),
    "distillation": (PINK, "P", ""),
}
POINTS = {"parent": ("k", "*"), "mean of logits": ("k", "h"), "one network": (BLUE, "X"), "head": (GREY, "d")}


def _way(row: Mapping[str, Any]) -> str:
    return f"allotted, by {row['counts']}" if row["method"] == "allotted" else row["method"]


def _asked(row: Mapping[str, Any]) -> str:
    return f"{row['asked']:g}" if "asked" in row else ""


def _interval(rows: Rows, metric: str = "test_accuracy") -> Interval:
    return mean_interval([row[metric] for row in rows])


def _pairs(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"set": 0, "way": _way(row), "asked_text": _asked(row)} | row for row in rows]


def _difference(rows: Rows, others: Rows) -> Interval:
    """Of accuracies, by pairs of networks."""
    theirs = {row["set"]: row["test_accuracy"] for row in others}
    return mean_interval([row["test_accuracy"] - theirs[row["set"]] for row in rows if row["set"] in theirs])


def table(rows: Rows, name: str | None = None) -> Table:
    """A line each way and size: its cost, test accuracy (%), the paired difference, points, from the better parent (by
    images held out), and the share of what the mean of the parents' logits reaches; with `name` the last column says
    so where the records are."""
    rows = _pairs(rows)
    parent, mean = ([row for row in rows if row["method"] == which] for which in ("parent", "mean of logits"))
    heads = ["network", "asked", *COSTS.values(), "ms an image", "accuracy, %", "− better parent"]
    lines = [[*heads, "of the mean logits', %", "n", *(["record"] if name else [])]]
    for (way, asked), alike in grouped_by(rows).items():
        costs = [f"{np.mean([row[cost] for row in alike]):.2f}" for cost in COSTS]
        cells = [way, asked or "—", *costs, f"{np.mean([row['milliseconds'] for row in alike]):.2f}"]
        cells.append(interval_text(_interval(alike)))
        cells.append(interval_text(_difference(alike, parent)) if parent else "—")
        cells.append(f"{100 * _ratio(alike, mean):.1f}" if mean else "—")
        lines.append([*cells, str(len({row["set"] for row in alike})), *([f"`{name}`"] if name else [])])
    note = (
        "Costs and times over one network's; differences are paired, brackets 95 % t intervals over pairs of networks"
    )
    return Table([lines], note=note, texts=2)


def _ratio(rows: Rows, others: Rows) -> float:
    theirs = {row["set"]: row["test_accuracy"] for row in others}
    return float(np.mean([row["test_accuracy"] / theirs[row["set"]] for row in rows]))


def grouped_by(rows: Rows) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """{(way, what was asked for): rows}, in the order of the rows."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["way"], row["asked_text"]), []).append(row)
    return found


@styled
def front(rows: Rows, record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """Test accuracy against what a network costs, parameters and multiply–adds: the ways to choose a size as lines,
    means over pairs with 95 % intervals from three on; one parent and the ensemble as points, and what either costs as
    thin lines."""
    rows = _pairs(rows)
    figure = PaperFigure(columns, 3.2 if columns == 2 else 5.4)
    grid = figure.subplots(*((1, 2) if columns == 2 else (2, 1)), sharey=True)
    for number, (axes, (cost, label)) in enumerate(zip(grid, COSTS.items(), strict=True)):
        by_way = grouped(rows, "way")
        for way, (colour, marker, line) in LINES.items():
            if way in by_way and not (way.startswith("allotted") and cost not in way.replace("-", "_")):
                _line(figure, axes, by_way[way], way, cost, color=colour, marker=marker, linestyle=line or "none")
        for method, (colour, marker) in POINTS.items():
            if method in by_way:
                _line(figure, axes, by_way[method], method, cost, color=colour, marker=marker, linestyle="none")
        for x in (1, 2):
            axes.axvline(x, color="#bbbbbb", linewidth=0.6, zorder=0)
        axes.set_xlabel(label)
        if columns == 1 or not number:
            axes.set_ylabel(METRIC_LABELS["test_accuracy"])
    sets = len({row["set"] for row in rows})
    pairs = f"{sets} pairs of networks (n = {sets})" if sets > 1 else "one pair of networks (n = 1)"
    return figure, f"{model_label(record['model'])} on {record['dataset']}, {_data(record)}, {pairs}"


def _line(figure: PaperFigure, axes, rows: Rows, key: str, cost: str, **style: Any) -> None:
    points = []
    for alike in grouped(rows, "asked_text").values():
        points.append((np.mean([row[cost] for row in alike]), _interval(alike)))
    points.sort(key=lambda point: point[0])
    x, found = zip(*points, strict=True)
    means = [100 * each.mean for each in found]
    spread = None
    if all(each.low is not None for each in found):
        spread = [[100 * (each.mean - each.low) for each in found], [100 * (each.high - each.mean) for each in found]]
    drawn = axes.errorbar(x, means, spread, capsize=2, elinewidth=0.7, markersize=4, linewidth=1.0, **style)
    figure.key(key, drawn)


def _data(record: Mapping[str, Any]) -> str:
    data = record["provenance"]["parameters"].get("data", "alike")
    words = {"alike": "same data", "halves": "five classes each and a few of the others", "tasks": "five classes each"}
    return words.get(data, data)


KINDS = {"size": front}


def is_there(records: Records) -> bool:
    """Whether these are records of sizes."""
    return all(record["experiment"] == "size_and_tasks" for record in records.values())


def pooled(records: Records) -> list[dict[str, Any]]:
    """The rows of several records, each with its record's name as "set"."""
    return [row | {"set": name} for name, record in records.items() for row in record["rows"]]


def contents(records: Records) -> Iterator[tuple[str, Callable[..., PaperFigure] | Table]]:
    """(end of the file's name, what draws a figure or a table) of the records of one sweep."""
    rows, record = pooled(records), next(iter(records.values()))
    yield ".tex", table(rows)
    yield "", partial(front, rows, record)


def page(sweeps: Mapping[str, Records]) -> dict[str, str]:
    """The table of every sweep of sizes, by its name on the page, as Markdown."""
    return {name: table(pooled(records), name).markdown() for name, records in sweeps.items() if is_there(records)}
