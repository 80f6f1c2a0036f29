"""Figures of many pairs."""

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from ..records import curve_key, curve_of, point_at
from . import pool
from .evidence import CIRCUMSTANCES, at, grouped, survives
from .names import (
    CONTROLS,
    CORRECTIONS,
    MATCHERS,
    base,
    circumstances,
    curve_label,
    curve_look,
    fills,
    look,
    model_label,
    ranked,
    width_label,
)
from .pool import Records
from .style import TALLEST, VERMILLION, Drawn, PaperFigure, panels, percent, styled

# What tells kinds of pairs apart in `evidence.summary`.
KIND = ("model", "norm", "width", *CIRCUMSTANCES, "dataset")


@styled
def leaderboard(rows: Iterable[Mapping[str, Any]], metric: str = "test_accuracy", columns: int = 2) -> Drawn:
    """A heat map of matcher × correction for each kind of pair, all on one grid; over it what it is compared with.

    `rows` as `pool.leaderboard_rows` makes them; a matcher with options is a line of its own, a correction with options
    a column. Kinds with such lines come last: a line is left out where no panel beside it has it. The best fused
    network of a panel, among those measured on all of its pairs, is framed; the others say their n. An empty cell is a
    method that the network can not take or that was not measured. `metric`: test_accuracy, drop, against_better,
    barrier_accuracy, or best_accuracy, which also prints each cell's best alpha.
    """
    kinds = grouped(rows, "architecture", "dataset")
    kinds = {kind: alike for kind, alike in kinds.items() if any(row.get(metric) is not None for row in alike)}
    fused = [row for alike in kinds.values() for row in alike if "control" not in row]
    lines_of = {k: ranked((row["matcher"] for row in a if "control" not in row), MATCHERS) for k, a in kinds.items()}
    order = sorted(kinds, key=lambda kind: (any("(" in line for line in lines_of[kind]), -len(lines_of[kind])))
    across = ranked((row["correction"] for row in fused), CORRECTIONS)
    wide = min(len(kinds), 3 if columns == 2 else 1)
    beside = [order[start : start + wide] for start in range(0, len(order), wide)]  # the kinds of each row of panels
    drawn = [ranked((line for kind in part for line in lines_of[kind]), MATCHERS) for part in beside]
    names = [look(CORRECTIONS, name).label for name in across]
    foot = 1.05 + 0.06 * max(0, max(map(len, names), default=0) - 13)  # they stand upright: longer ones need more
    heads, lines_high = 0.62 * len(drawn), sum(map(len, drawn)) * (0.26 if metric.startswith("best_") else 0.19)
    if foot + heads + lines_high > TALLEST:  # closer, but no closer than can be read
        lines_high = max(TALLEST - foot - heads, 0.8 * lines_high)
    figure = PaperFigure(columns, foot + heads + lines_high)
    grid = panels(figure, len(kinds), wide, height_ratios=[len(lines) for lines in drawn])
    bottom = (len(kinds) - 1) // wide * wide  # the first panel of the last row
    for index, ((axes, first, last), kind) in enumerate(zip(grid, order, strict=True)):
        alike, lines = kinds[kind], drawn[index // wide]
        _heat_map(axes, alike, metric, lines, across)
        n = _range_of_n(row for row in alike if "control" not in row)
        axes.set_title(f"{' on '.join(kind)}\n{_controls(alike)}; n = {n}", fontsize=6.5)
        labels = [look(MATCHERS, name).label if first else "" for name in lines]
        axes.set_yticks(np.arange(len(lines)) + 0.5, labels)
        axes.set_xticks(np.arange(len(names)) + 0.5, names if index >= bottom else [""] * len(names), rotation=90)
        if last and index < bottom:  # over an empty place, which has room for them: the rows need not move apart
            for x, name in enumerate(names):
                axes.annotate(
                    name, (x + 0.5, 0), (0, -3.5), ("data", "axes fraction"), "offset points", rotation=90,
                    ha="center", va="top", fontsize=6.5, in_layout=False, annotation_clip=False,
                )  # fmt: skip
    alphas = sorted({row["alpha"] for row in fused})
    what = {
        "test_accuracy": "test accuracy (%)" + (f" at α = {alphas[0]:g}" if len(alphas) == 1 else ""),
        "drop": "drop below the parents' mean (points)",
        "against_better": "drop below the better parent (points)",
        "barrier_accuracy": "accuracy barrier (points)",
        "best_accuracy": "test accuracy (%) at the best α on held-out training images (below it)",
    }.get(metric, metric)
    return figure, f"{what}: matching × correction, the best framed; grey: not measured or not for this network"


def _range_of_n(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many pairs stand behind rows: "3", or "1–3"."""
    counts = [row["n"] for row in rows]
    return "–".join(f"{count}" for count in dict.fromkeys((min(counts), max(counts))))


def _controls(rows: list[Mapping[str, Any]]) -> str:
    """What a panel is compared with, on two lines: test accuracies in per cent, whatever the panel shows."""
    value = {row["control"]: f"{100 * row['test_accuracy']:.1f}" for row in rows if "control" in row}
    lines = [f"parents {value.get('parent_a', '—')}, {value.get('parent_b', '—')}", ""]
    lines[1] = f"ensemble {value['ensemble']}" if "ensemble" in value else ""
    lines[0] += f"; better held out {value['parent']}" if "parent" in value else ""
    return "\n".join(line for line in lines if line)


def _heat_map(axes: Axes, rows: list[Mapping[str, Any]], metric: str, lines: list[str], across: list[str]) -> None:
    scale = percent(metric)
    fused = [row for row in rows if "control" not in row and row.get(metric) is not None]
    lower_is_better = metric not in ("test_accuracy", "best_accuracy", "test_agreement")
    values = [row[metric] for row in fused]
    values += [] if lower_is_better else [row["test_accuracy"] for row in rows if "control" in row]
    low, high = min(values, default=0), max(values, default=1)
    colours = matplotlib.colormaps["cividis_r" if lower_is_better else "cividis"]
    digits = 1 if scale == 100 else 2
    most = max((row["n"] for row in fused), default=1)
    for row in fused:
        x, y = across.index(row["correction"]), lines.index(row["matcher"])
        colour = colours((row[metric] - low) / (high - low or 1))
        dark = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) < 0.5
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
        below = f"\nα {row['best_alpha']:.2g}" if metric.startswith("best_") else ""
        below += f"\nn = {row['n']}" if row["n"] < most else ""
        words = {"ha": "center", "va": "center", "color": "w" if dark else "k", "linespacing": 1.1}
        axes.text(x + 0.5, y + 0.5, f"{scale * row[metric]:.{digits}f}{below}", fontsize=6, **words)
    if fused:
        alike = [row for row in fused if row["n"] == most]
        best = (min if lower_is_better else max)(alike, key=lambda row: row[metric])
        corner = across.index(best["correction"]), lines.index(best["matcher"])
        axes.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor=VERMILLION, linewidth=1.6, zorder=3))
    axes.set(xlim=(0, len(across)), ylim=(len(lines), 0), facecolor="#F2F2F2")
    axes.tick_params(length=0, labelsize=6.5)
    axes.grid(False)
    axes.spines[:].set_visible(False)


@styled
def width_drop(records: Records, columns: int = 2) -> Drawn:
    """The midpoint's drop below the parents' mean (accuracy and loss, test) against width: the mean over independent
    pairs with its 95 % interval, a pale point per pair.

    Records of one data set, any widths; the number of pairs stands under each width. Raises InputError for records
    of several data sets, or of several kinds at one width. `columns`: 2 puts the panels side by side, 1 on each other.
    """
    of, means = pool.by_width(records)
    widths = list(means)
    labels = {curve_key(entry): curve_label(entry) for mean in means.values() for entry in mean["curves"]}
    measured = grouped(pool.rows(records), "matcher", "correction")
    figure = PaperFigure(columns, 3.1 if columns == 2 else 4.9)
    grid = figure.subplots(3 - columns, columns, sharex=True)
    for axes, metric in zip(grid, ("drop", "drop_loss"), strict=True):
        scale = percent(metric)
        for index, (key, fill) in enumerate(fills(labels).items()):
            method = curve_look(*key, (correction for _, correction in labels))
            there = [row for row in measured[key] if at(row, 0.5)]
            spots = [(row["width"], scale * row[metric]) for row in there if row[metric] is not None]
            over = {w: point_at(entry, 0.5) for w in widths if (entry := curve_of(means[w], *key))}
            over = {w: point for w, point in over.items() if point.get(metric) is not None}
            if not over:
                continue
            # Curves at one width side by side, so that none hides another.
            shift = 2 ** (0.06 * (index - (len(labels) - 1) / 2))
            places = np.array(list(over)) * shift
            middles = [scale * point[metric] for point in over.values()]
            figure.key(labels[key], *axes.plot(places, middles, linestyle=method.line, **method.mark(fill=fill)))
            bar = {"linewidth": 1.1, "marker": "_", "markersize": 4}
            for x, point in zip(places, over.values(), strict=True):
                if point[f"{metric}_low"] is not None:
                    ends = [scale * point[f"{metric}_{end}"] for end in ("low", "high")]
                    axes.plot([x, x], ends, color=method.colour, **bar)
            pale = {"linestyle": "none", "alpha": 0.35, "markersize": 2.5, "marker": "o", "mew": 0}
            axes.plot(*(np.array(spots) * (1.03 * shift, 1)).T, color=method.colour, **pale)
        axes.axhline(0, color="#333333", linewidth=0.7)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(widths, [f"×{width_label(w)}\nn = {means[w]['n']}" for w in widths])
        axes.set_xlim(widths[0] / 1.5, widths[-1] * 1.5)
        axes.set_ylabel("drop of accuracy (points)" if scale == 100 else "rise of cross-entropy (nats)")
        if columns == 2 or scale == 1:
            axes.set_xlabel("width")
    pairs = sum(mean["n"] for mean in means.values())
    some = any(mean["n"] >= 3 for mean in means.values())
    what = "means, 95 % intervals where n ≥ 3" if some else "means"
    return figure, f"{of}, midpoint below the parents' mean, {pairs} pairs: {what}, each pair a point"


@styled
def differences(summary: Iterable[Mapping[str, Any]], against: str, columns: int = 2) -> Drawn:
    """Method against method on the same pairs: the mean difference to one curve, with its 95 % interval.

    `summary` as `evidence.summary` answers with `against`; a panel per kind of pair, a line per curve, each with
    the n of pairs that have both. Filled: told from 0 over all comparisons of the figure (`evidence.holm`, 5 %).
    """
    summary = list(summary)
    kinds = grouped(summary, *KIND)
    room = 30 if columns == 1 else 68  # letters of a line
    labels = {row["curve"]: textwrap.fill(curve_label(row), room) for alike in kinds.values() for row in alike}
    curves = list(labels)
    corrections = [row["correction"] for alike in kinds.values() for row in alike if row["matcher"]]
    wide = min(len(kinds), 2 * columns - 1)
    letters = 7 if columns == 2 else 6  # points
    tall = 0.06 + 0.017 * letters * max(
        label.count("\n") + 1 for label in labels.values()
    )  # inches a line of the figure
    words = [", ".join(circumstances(alike[0], summary)) for alike in kinds.values()]
    head = 0.72 if any(words) else 0.6
    figure = PaperFigure(columns, 0.9 + math.ceil(len(kinds) / wide) * (head + tall * len(curves)))
    metric = ""
    grid = panels(figure, len(kinds), wide, sharex=True)
    for (axes, first, last), ((*_, dataset), alike), said in zip(grid, kinds.items(), words, strict=True):
        for row in alike:
            metric, y = row["metric"], curves.index(row["curve"])
            method = (
                curve_look(row["matcher"], row["correction"], corrections)
                if row["matcher"]
                else look({}, row["control"])
            )
            scale = percent(metric)
            if row["mean"] is None:
                continue
            if row["low"] is not None:
                axes.plot([scale * row["low"], scale * row["high"]], [y, y], color=method.colour, linewidth=1.3)
            face = {"markeredgecolor": method.colour} | ({} if survives(row) else {"markerfacecolor": "white"})
            axes.plot(scale * row["mean"], y, **(method.mark() | face))
        axes.axvline(0, color="#333333", linewidth=0.7)
        kind = alike[0] | {"name": alike[0]["model"]}
        title = [model_label(kind), *filter(None, [said]), f"{dataset}, n = {_range_of_n(alike)}"]
        axes.set_title("\n".join(title), fontsize=7)
        axes.set_yticks(range(len(curves)), list(labels.values()) if first else [], fontsize=letters)
        axes.set_ylim(len(curves) - 0.5, -0.5)
        axes.grid(False, axis="y")
        if last:
            axes.set_xlabel("points" if percent(metric) == 100 else "nats")
    what = metric.replace("_", " ").replace("barrier test", "test barrier,").replace("drop loss", "drop of loss")
    matcher, _, correction = against.partition(" + ")
    control = {"control": against} if base(against) in CONTROLS else {}
    other = curve_label({"matcher": matcher, "correction": correction or "none"} | control)
    means = "mean, 95 % interval (filled: differs, Holm 5 %)"
    rows = [row for alike in kinds.values() for row in alike]
    if all(row["low"] is None for row in rows):
        n = _range_of_n(rows)
        means = "one pair (n = 1), no interval" if n == "1" else f"mean, no interval (n = {n})"
    return figure, f"{what} minus that of {other}, same pairs: {means}"
