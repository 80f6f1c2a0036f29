"""Figures and tables of many networks fused into one: against their number, over their shares, of planted orders.

Rows are those of `study.many`; of several records, which are sets of disjoint networks, means and intervals over sets.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from . import pool
from .evidence import Interval, grouped, mean_interval
from .names import CORRECTIONS, MATCHERS, Look, base, curve_label, fills, look, model_label, options, ranked
from .style import METRIC_LABELS, Drawn, PaperFigure, panels, percent, styled
from .tables import Table, interval_text

Rows = Iterable[Mapping[str, Any]]
CONTROLS = {"best parent": (0, (3, 2)), "mean parent": (0, (1, 1.5)), "ensemble": (0, (7, 2))}
CORNERS = np.array([(0, 0), (1, 0), (0.5, 3**0.5 / 2)])  # of the simplex of three networks
STRATEGIES = {"reference": "each to the first", "merge_many": "MergeMany", "cycle_consistent": "Frank–Wolfe"}


def label(matcher: str) -> str:
    """A matcher of many networks in words."""
    given = options(matcher)
    words = STRATEGIES.get(given.removeprefix("strategy="), given) if given else ""
    if not given and base(matcher) in ("activation", "weight", "graph"):
        words = "together"
    return look(MATCHERS, base(matcher)).label + (f", {words}" if words else "")


def _interval(rows: Rows, metric: str = "test_accuracy") -> Interval:
    """Over sets of networks; of several rows of one set their mean."""
    return mean_interval([np.mean([r[metric] for r in alike]) for alike in grouped(rows, "set").values()])


def _sets(rows: Rows) -> list[dict[str, Any]]:
    return [{"set": 0} | row for row in rows]


def table(rows: Rows, name: str | None = None) -> Table:
    """Test accuracy (%) of every method and control, a line each, against the number of networks; with `name` the last
    column says so where the records are."""
    rows = [row for row in _sets(rows) if row["study"] == "many"]
    counts = sorted({row["n"] for row in rows})
    lines = [["networks", *map(str, counts)]]
    for method, alike in grouped(rows, "method").items():
        by_count = grouped(alike, "n")
        lines.append([method, *(interval_text(_interval(by_count[n])) if n in by_count else "—" for n in counts)])
    sets = len({row["set"] for row in rows})
    note = "Test accuracy (%) against the number of networks, equal shares: mean [95 % interval] over sets of networks"
    return _named([*lines, ["sets", *([str(sets)] * len(counts))]], name, note)


def _named(lines: list[list[str]], name: str | None, note: str) -> Table:
    if name is None:
        return Table([lines], note=note)
    first, *others = lines
    return Table([[[*first, "record"], *([*line, f"`{name}`"] for line in others)]], note=note)


def order_table(rows: Rows, name: str | None = None) -> Table:
    """What other orders of the list change: the range of accuracies, points, and of objectives, per cent, over orders
    of one set, the mean over sets; and the share (%) of units that come back to their place on the way round three
    networks matched in pairs."""
    rows = _sets(rows)
    trips = grouped([row for row in rows if row["study"] == "round_trips"], "matcher")
    lines = [["matching", "accuracy, points", "objective, %", "back round three pairs, %"]]
    for matcher, alike in grouped([row for row in rows if row["study"] == "orders"], "matcher").items():
        sets = grouped(alike, "set").values()
        accuracy = np.mean([100 * np.ptp([row["test_accuracy"] for row in each]) for each in sets])
        values = [[row["objective"] for row in each] for each in sets]
        spread = (
            f"{np.mean([100 * np.ptp(v) / max(map(abs, v)) for v in values]):.3f}" if None not in values[0] else "—"
        )
        back = f"{100 * np.mean([row['share'] for row in trips[matcher]]):.1f}" if matcher in trips else "—"
        lines.append([matcher, f"{accuracy:.2f}", spread, back])
    note = (
        "What other orders of the list change: the range of accuracies and of objectives, mean over sets. Back: units "
        "that come back to their place on the way round three networks matched in pairs"
    )
    return _named(lines, name, note)


def planted_table(rows: Rows, name: str | None = None) -> Table:
    """The share (%) of planted units that come back, by matcher and noise: mean over seeds (least to most)."""
    rows = [row for row in rows if row["study"] == "planted"]
    noises = sorted({row["noise"] for row in rows})
    lines = [["noise σ", *(f"{noise:g}" for noise in noises)]]
    for matcher, alike in grouped(rows, "matcher").items():
        found = {x: [100 * row["recovered"] for row in each] for x, each in grouped(alike, "noise").items()}
        lines.append(
            [matcher, *(f"{np.mean(found[x]):.0f} ({min(found[x]):.0f} to {max(found[x]):.0f})" for x in noises)]
        )
    return _named(lines, name, "Planted units that come back (%), against the noise: mean over seeds (least to most)")


def _heading(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> str:
    sets = len({row.get("set", 0) for row in rows})
    many = f"{sets} sets of networks (n = {sets})" if sets > 1 else "one set of networks (n = 1)"
    return f"{model_label(record['model'])} on {record['dataset']}, {many}"


@styled
def against_count(rows: Rows, record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """Test accuracy against the number of networks, a panel a correction; controls dashed. Bands are 95 % intervals
    over sets, from three on."""
    rows = _sets(rows)
    controls = [row for row in rows if row["kind"] == "control"]
    by_correction = grouped([row for row in rows if row["kind"] == "fused"], "correction")
    figure = PaperFigure(columns, 3.4)
    fill = fills((matcher,) for matcher in ranked((r["matcher"] for r in rows if "matcher" in r), MATCHERS))
    wide = min(len(by_correction), columns)
    for (axes, first, _), (correction, alike) in zip(
        panels(figure, len(by_correction), wide, sharex=True, sharey=False), by_correction.items(), strict=True
    ):
        drawn = grouped(alike, "matcher")
        for matcher in ranked(drawn, MATCHERS):
            method = look(MATCHERS, base(matcher))
            _line(figure, axes, drawn[matcher], label(matcher), method, **method.mark(fill=fill[matcher,]))
        for name, dashes in CONTROLS.items():
            of_name = [row for row in controls if row["method"] == name]
            style = {"color": "#444444", "linestyle": dashes, "linewidth": 1.0}
            _line(figure, axes, of_name, f"control: {name}", None, **style)
        axes.set_title(look(CORRECTIONS, correction).label)
        axes.set_xlabel("networks")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if first:
            axes.set_ylabel(METRIC_LABELS["test_accuracy"])
    return figure, _heading(rows, record) + ", equal shares"


def _line(figure: PaperFigure, axes, rows: Rows, key: str, method: Look | None, **style: Any) -> None:
    by_count = {n: _interval(alike) for n, alike in sorted(grouped(rows, "n").items())}
    if not by_count:
        return
    counts, found = list(by_count), list(by_count.values())
    figure.key(key, *axes.plot(counts, [100 * each.mean for each in found], **style))
    if method is not None and all(each.low is not None for each in found):
        ends = ([100 * getattr(each, end) for each in found] for end in ("low", "high"))
        axes.fill_between(counts, *ends, color=method.colour, alpha=0.15, linewidth=0)


@styled
def cost(rows: Rows, record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """Seconds of matching against the number of networks, a line a matcher, and the most that any made the process grow
    for so many networks or fewer: what one leaves to the next is not seen."""
    rows = [row for row in _sets(rows) if row["kind"] == "fused" and base(row["matcher"]) not in ("none", "random")]
    figure = PaperFigure(columns, 2.9)
    seconds, memory = figure.subplots(1, 2)
    drawn = grouped(rows, "matcher")
    fill = fills((matcher,) for matcher in ranked(drawn, MATCHERS))
    for matcher in ranked(drawn, MATCHERS):
        by_count = sorted(grouped(drawn[matcher], "n").items())
        points = [(n, np.mean([row["match_seconds"] for row in alike])) for n, alike in by_count]
        mark = look(MATCHERS, base(matcher)).mark(fill=fill[matcher,])
        figure.key(label(matcher), *seconds.plot(*zip(*points, strict=True), **mark))
    counts = sorted({row["n"] for row in rows})
    most = [max(row["match_peak_bytes"] or 0 for row in rows if row["n"] <= n) / 1e6 for n in counts]
    figure.key("most of any matcher", *memory.plot(counts, most, color="#000000", marker="o"))
    for axes, what in ((seconds, "seconds to match"), (memory, "peak extra memory (MB)")):
        axes.set(xlabel="networks", ylabel=what)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
    return figure, f"{_heading(rows, record)}, {record['provenance']['device']}"


@styled
def simplex(rows: Rows, record: Mapping[str, Any], columns: int = 2, corners: Sequence[str] = ()) -> Drawn:
    """Test accuracy of three networks over all their shares, a triangle a correction; a corner is one network alone,
    named by `corners`, or by number."""
    rows, corners = list(rows), corners or [f"network {number}" for number in (1, 2, 3)]
    by_correction = grouped(rows, "correction")
    figure = PaperFigure(columns, 2.9 if columns == 2 else 0.5 + 2.4 * len(by_correction))
    for (axes, _, _), (correction, alike) in zip(
        panels(figure, len(by_correction), min(len(by_correction), columns)), by_correction.items(), strict=True
    ):
        shares = np.array([row["shares"] for row in alike])
        values = np.array([100 * row["test_accuracy"] for row in alike])
        drawn = axes.tripcolor(*(shares @ CORNERS).T, values, shading="gouraud", cmap="viridis")
        if np.ptp(values) > 0:
            lines = axes.tricontour(*(shares @ CORNERS).T, values, levels=5, colors="white", linewidths=0.6)
            axes.clabel(lines, fmt="%.0f", fontsize=6)
        for name, (x, y) in zip(corners, CORNERS, strict=True):
            axes.annotate(name, (x, y), (0, -9 if y == 0 else 4), textcoords="offset points", ha="center")
        axes.set_title(look(CORRECTIONS, correction).label, pad=14)
        axes.set_aspect("equal")
        axes.set_axis_off()
        figure.colorbar(drawn, ax=axes, shrink=0.8, label=METRIC_LABELS["test_accuracy"])
    return figure, f"{_heading(rows, record)}, {label(rows[0]['matcher'])}"


@styled
def planted(rows: Rows, record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """Units of planted copies that come back to their places (%), against the noise; means and ranges over seeds."""
    rows = list(rows)
    figure = PaperFigure(columns, 3.0)
    axes = figure.subplots()
    drawn = grouped(rows, "matcher")
    fill = fills((matcher,) for matcher in ranked(drawn, MATCHERS))
    for matcher in ranked(drawn, MATCHERS):
        method = look(MATCHERS, base(matcher))
        by_noise = {x: [100 * r["recovered"] for r in a] for x, a in sorted(grouped(drawn[matcher], "noise").items())}
        means = [np.mean(each) for each in by_noise.values()]
        figure.key(label(matcher), *axes.plot(list(by_noise), means, **method.mark(fill=fill[matcher,])))
        ends = ([end(each) for each in by_noise.values()] for end in (min, max))
        axes.fill_between(list(by_noise), *ends, color=method.colour, alpha=0.1, linewidth=0)
    axes.set(xlabel="noise σ (standard deviations of the weights)", ylabel="units that come back (%)", ylim=(-3, 104))
    seeds, n = len({row["seed"] for row in rows}), rows[0]["n"]
    return (
        figure,
        f"{model_label(record['model'])}, random weights, {n} noisy copies, n = {seeds} (mean, least and most)",
    )


@styled
def curves(rows: Rows, record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """Test accuracy and loss of several networks along lines through their shares, a line a curve of `study.own`, the
    parents alone dashed."""
    by_curve = grouped(rows, "curve")
    figure = PaperFigure(columns, 3.2)
    names = {number: (f"{base(alike[0]['matcher'])}({number})",) for number, alike in by_curve.items()}
    fill = fills(names.values())
    grid = panels(figure, 2, columns)
    for (axes, _, _), metric in zip(grid, ("test_accuracy", "test_loss"), strict=True):
        scale = percent(metric)
        for number, alike in by_curve.items():
            first, last = alike[0], alike[-1]
            points = [(row["alpha"], scale * row[metric]) for row in alike]
            style = look(MATCHERS, first["matcher"]).mark(fill=fill[names[number]])
            style |= {"linestyle": look(CORRECTIONS, first["correction"]).line}
            ends = f"{_spelled(first['shares'])} to {_spelled(last['shares'])}"
            figure.key(f"{curve_label(first)}: {ends}", *axes.plot(*zip(*points, strict=True), **style))
        for parent in record["parents"].values():
            line = axes.axhline(scale * parent[metric], color="#8C8C8C", linestyle=(0, (3, 2)), linewidth=0.9, zorder=1)
            figure.key("parents, each alone", line)
        axes.set(xlabel="place on the line, α", ylabel=METRIC_LABELS[metric])
    return figure, pool.headline(record)


def _spelled(shares: Iterable[float]) -> str:
    return " / ".join(f"{share:.2g}" for share in shares)


KINDS = {"many": against_count, "simplex": simplex, "planted": planted, "curves": curves}


Records = Mapping[str, Mapping[str, Any]]


def is_there(records: Records) -> bool:
    """Whether these are records of many networks."""
    return all(record["experiment"] == "many_networks" for record in records.values())


def pooled(records: Records) -> dict[str, list[dict[str, Any]]]:
    """The rows of several records by study, each with its record's name as "set"."""
    return grouped([row | {"set": name} for name, record in records.items() for row in record["rows"]], "study")


def contents(records: Records) -> Iterator[tuple[str, Callable[..., PaperFigure] | Table]]:
    """(end of the file's name, what draws a figure or a table) of the records of one sweep."""
    rows, record = pooled(records), next(iter(records.values()))
    if "planted" in rows:  # its networks are random, those that were trained stand beside them for form's sake
        yield "_planted", partial(planted, rows["planted"], record)
        yield "_planted.tex", planted_table(rows["planted"])
        return
    yield ".tex", table(rows["many"])
    if len({row["n"] for row in rows["many"]}) > 1:
        yield "", partial(against_count, rows["many"], record)
        yield "_cost", partial(cost, rows["many"], record)
    if "simplex" in rows:
        (first, *_) = grouped(rows["simplex"], "set").values()
        yield "_simplex", partial(simplex, first, record)
    if "orders" in rows:
        yield "_orders.tex", order_table(rows["orders"] + rows.get("round_trips", []))


def page(sweeps: Mapping[str, Records]) -> dict[str, str]:
    """The tables of every sweep of many networks, by their names on the page, as Markdown."""
    tables = {}
    for name, records in sweeps.items():
        if not is_there(records):
            continue
        rows = pooled(records)
        if "planted" in rows:
            tables[name] = planted_table(rows["planted"], name).markdown()
            continue
        tables[name] = table(rows["many"], name).markdown()
        if "orders" in rows:
            tables[f"{name}_orders"] = order_table(rows["orders"] + rows["round_trips"], name).markdown()
    return tables
