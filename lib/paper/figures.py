"""Every figure, in one style sheet (fusebook.mplstyle), each from a run record or plain rows.

Functions return a Figure that is one or two columns of a paper wide and names the data set and n;
`save_figure` writes PNG and PDF. `make figures` rebuilds all of them from the tracked records.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from ..checks import check_choice
from ..records import curve_key
from . import pool
from .evidence import grouped
from .figures_scaling import objective_accuracy, recovery, scaling
from .names import CORRECTIONS, MATCHERS, curve_label, file_word, fills, look, ranked
from .pool import Records
from .style import (
    BLUE,
    COLUMN,
    GREY,
    METRIC_LABELS,
    PaperFigure,
    end_points,
    headed,
    legend_below,
    mark,
    mean_by,
    percent,
    styled,
    width_of,
)


@styled
def curve(
    records: Records,
    metric: str = "test_accuracy",
    reference: Mapping[str, Any] | None = None,
    columns: int = 1,
) -> Figure:
    """One metric against alpha, a line per curve, the end points as dashed horizontal lines.

    Several records of one kind: the mean over independent pairs, and from three pairs on a band that is its 95 %
    interval. `reference` (an entry of published.REFERENCE) adds the published points as hollow markers. More than
    eight curves are spread over a panel per correction. `columns`: 1 or 2, those of a paper that the figure is wide.
    """
    return _curve_panels(records, [metric], reference, columns)


@styled
def curves(
    records: Records, split: str = "test", reference: Mapping[str, Any] | None = None, columns: int = 2
) -> Figure:
    """`curve` for accuracy and loss of one split: side by side over two columns, stacked in one."""
    return _curve_panels(records, [f"{split}_accuracy", f"{split}_loss"], reference, columns)


def _curve_panels(records: Records, metrics: list[str], reference: Mapping[str, Any] | None, columns: int) -> Figure:
    """A panel per metric; with too many curves for that, a panel per metric and correction."""
    summary = pool.aggregate(records)
    by_correction = grouped(summary["curves"], "correction")
    crowded = len(summary["curves"]) > 8 and len(by_correction) > 1
    panels = list(by_correction.items()) if crowded else [("", summary["curves"])]

    # Metric after metric, each a block of panels; a block never shares a row with another, but for lone panels.
    wide = min(len(panels), 3 * columns) if crowded else min(len(metrics), columns)
    block = wide * math.ceil(len(panels) / wide) if crowded else 1
    rows = len(metrics) * block // wide
    figure = PaperFigure(figsize=(width_of(columns), 1.0))
    grid = figure.subplots(rows, wide, squeeze=False, sharex=True, sharey="row" if crowded else False)
    handles: dict[str, Any] = {}
    for index, axes in enumerate(grid.flat):
        metric, place = metrics[index // block], index % block
        if place >= len(panels):
            axes.set_visible(False)
            continue
        correction, entries = panels[place]
        end_points(axes, summary["parents"], metric, handles)
        names = [curve_key(entry | {"correction": "none"} if crowded else entry) for entry in entries]
        for entry, name in zip(entries, names, strict=True):
            label = curve_label(dict(zip(("matcher", "correction"), name, strict=True)))
            _draw_curve(axes, entry, metric, reference, handles, label, fills(names)[name])
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xlim(-0.04, 1.04)
        if index + wide >= len(grid.flat):
            axes.set_xlabel("α" if crowded else "share of network B, α")
        if not crowded or not index % wide:
            axes.set_ylabel(METRIC_LABELS[metric])
        if crowded:
            axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            if index < block:
                axes.set_title(look(CORRECTIONS, correction).label)
        if percent(metric) == 1:
            axes.set_ylim(bottom=0)
    lines = legend_below(figure, handles)
    figure.set_figheight(0.3 + (2.2 if columns == 2 or not crowded else 1.7) * rows + 0.17 * lines)
    band = any(point[f"{metrics[0]}_low"] is not None for entry in summary["curves"] for point in entry["points"])
    headed(figure, pool.headline(records) + (", mean and 95 % interval" if band else ""))
    return figure


def _draw_curve(
    axes: Axes,
    entry: Mapping[str, Any],
    metric: str,
    reference: Mapping[str, Any] | None,
    handles: dict[str, Any],
    label: str,
    fill: str,
) -> None:
    method, scale = look(MATCHERS, entry["matcher"]), percent(metric)
    colour, marker = method.colour, method.marker
    points = [point for point in entry["points"] if point[metric] is not None]
    if not points:
        return
    alphas = np.array([point["alpha"] for point in points])
    values = scale * np.array([point[metric] for point in points])
    line = look(CORRECTIONS, entry["correction"]).line
    (handle,) = axes.plot(alphas, values, color=colour, linestyle=line, zorder=3, **mark(marker, fill=fill))
    handles.setdefault(label, handle)
    if points[0][f"{metric}_low"] is not None:
        low, high = (scale * np.array([point[f"{metric}_{end}"] for point in points]) for end in ("low", "high"))
        axes.fill_between(alphas, low, high, color=colour, alpha=0.18, linewidth=0)
    published = (reference or {}).get("curves", {}).get(curve_key(entry), {}).get(metric)
    if published:
        hollow = {"marker": marker, "markerfacecolor": "none", "markersize": 7.5, "linestyle": "none"}
        axes.plot(reference["alphas"], scale * np.array(published), color=colour, zorder=2, **hollow)
        key = Line2D([], [], color="#444444", **hollow | {"marker": "o"})
        handles.setdefault("published values (hollow)", key)


@styled
def matching_matrix(
    perms: Mapping[str, Any],
    record: Mapping[str, Any],
    matcher: str,
    similarity: Mapping[str, Any] | None = None,
) -> Figure:
    """The matching of all layers as one block matrix, with lines between layers.

    `perms` {group: (n,)}: a dot in row i, column perm[i] says that unit perm[i] of B takes place i of A.
    `similarity` {group: (n, n)}, rows A and columns B, adds a panel with the soft matching before assignment.
    Layers are drawn to scale, or all to one size where the smallest would be too small to see.
    """
    sizes = {group: len(perm) for group, perm in perms.items()}
    to_scale = min(sizes.values()) >= 0.06 * sum(sizes.values())
    spans = [size if to_scale else 1 for size in sizes.values()]
    edges = np.concatenate([[0.0], np.cumsum(spans)])
    panels = 2 if similarity else 1
    figure = PaperFigure(figsize=(width_of(panels), 3.9 if similarity else 3.5), layout="compressed")
    for index, axes in enumerate(np.atleast_1d(figure.subplots(1, panels))):
        for (group, perm), start, span in zip(perms.items(), edges[:-1], spans, strict=True):
            perm = np.asarray(perm)
            if similarity and not index:
                values = np.asarray(similarity[group], dtype=float)
                box = (start, start + span, start + span, start)
                axes.imshow(values, extent=box, interpolation="nearest", aspect="auto", cmap="cividis")
                continue
            places = start + (np.arange(len(perm)) + 0.5) * span / len(perm)
            columns = start + (perm + 0.5) * span / len(perm)
            size = max(0.9, min(5.0, 150 * span / (edges[-1] * len(perm))))
            axes.plot(columns, places, "s", color=BLUE, markersize=size, markeredgewidth=0)
        axes.hlines(edges, 0, edges[-1], color="#333333", linewidth=0.6)
        axes.vlines(edges, 0, edges[-1], color="#333333", linewidth=0.6)
        for start, span in zip(edges[:-1], spans, strict=True):
            if not (similarity and not index):
                axes.add_patch(Rectangle((start, start), span, span, facecolor="#EAF2F8", zorder=0))
        axes.set(xlim=(0, edges[-1]), ylim=(edges[-1], 0), xlabel="units of network B", aspect="equal")
        centres = (edges[:-1] + edges[1:]) / 2
        axes.set_yticks(centres, [f"{group} ({size})" for group, size in sizes.items()] if not index else [])
        axes.set_xticks(centres, list(sizes), rotation=0 if len(sizes) < 5 else 90)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if not index:
            axes.set_ylabel("units of network A")
        if similarity:
            axes.set_title("permutation" if index else "before assignment (bright = alike, scaled per layer)")
    headed(figure, f"{pool.headline(record)}; matching: {look(MATCHERS, matcher).label}")
    return figure


@styled
def correlations(arrays: Mapping[str, Any], record: Mapping[str, Any], columns: int = 2) -> Figure:
    """How alike matched units are: the distribution of their correlation in each layer, a violin per matcher.

    `arrays` holds "corr/<matcher>/<group>" (n,); others are ignored.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, values in arrays.items():
        if name.startswith("corr/"):
            _, matcher, group = name.split("/", 2)
            values = np.asarray(values, dtype=float)
            found.setdefault(matcher, {})[group] = values[np.isfinite(values)]
    groups = list(dict.fromkeys(group for by_group in found.values() for group in by_group))
    upright = len(groups) > 4 * columns
    figure = PaperFigure(figsize=(width_of(columns), 3.5 if upright else 2.9))
    axes = figure.subplots()
    width = 0.8 / len(found)
    handles: dict[str, Any] = {}
    filled = fills((matcher,) for matcher in found)
    for index, matcher in enumerate(ranked(found, MATCHERS)):
        method, by_group = look(MATCHERS, matcher), found[matcher]
        colour, spot = method.colour, mark(method.marker, 5, filled[matcher,])
        offset = (index - (len(found) - 1) / 2) * width
        for place, group in enumerate(groups):
            values = by_group.get(group, np.empty(0))
            if len(values) > 1 and np.ptp(values) > 0:
                parts = axes.violinplot(values, [place + offset], widths=0.92 * width, showextrema=False)
                for body in parts["bodies"]:
                    body.set(facecolor=colour, edgecolor=colour, alpha=0.35, linewidth=0.6)
            if len(values):
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
                axes.plot([place + offset] * 2, [low, high], color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot(place + offset, middle, color=colour, **spot)
        handles[method.label] = Line2D([], [], color=colour, linewidth=2, **spot)
    axes.axhline(0, color="#333333", linewidth=0.7)
    axes.set_xticks(range(len(groups)), groups, rotation=90 if upright else 0)
    axes.set(ylabel="correlation of matched units", xlim=(-0.6, len(groups) - 0.4))
    axes.grid(False, axis="x")
    headed(figure, pool.headline(record))
    handles["(marker: median, bar: middle half)"] = Line2D([], [], color="none")
    legend_below(figure, handles)
    return figure


@styled
def bn_images_study(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> Figure:
    """Accuracy of the fused network against the number of images that re-estimate BatchNorm's statistics.

    Row: {"matcher", "images", "test_accuracy", optionally "alpha" and "seed"}; rows that differ in seed alone
    are averaged, with a bar of one standard deviation. images = 0 (no reset) is a dotted line.
    """
    rows = list(rows)
    figure = PaperFigure(figsize=(COLUMN, 3.1))
    axes = figure.subplots()
    handles: dict[str, Any] = {}
    end_points(axes, record["parents"], "test_accuracy", handles)
    filled = fills((row["matcher"],) for row in rows)
    for (matcher,), fill in filled.items():
        method = look(MATCHERS, matcher)
        label, colour = method.label, method.colour
        counts, means, spreads = mean_by(
            (row for row in rows if row["matcher"] == matcher), "images", "test_accuracy", 100
        )
        for count, mean in zip(counts, means, strict=True):
            if count == 0:
                handles[f"{label}, no reset"] = axes.axhline(mean, color=colour, linestyle=":", linewidth=1.2)
        some = counts > 0
        bars = {"capsize": 2, "elinewidth": 0.8, "linestyle": CORRECTIONS["bn_reset"].line}
        bars |= mark(method.marker, fill=fill)
        handles[f"{label} + BN reset"] = axes.errorbar(counts[some], means[some], spreads[some], color=colour, **bars)
    axes.set(xscale="log", xlabel="training images for the reset", ylabel=METRIC_LABELS["test_accuracy"])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.set_ylim(bottom=0)
    alphas = sorted({row["alpha"] for row in rows if "alpha" in row})
    where = (", α = " + ", ".join(f"{alpha:g}" for alpha in alphas)) if alphas else ""
    headed(figure, pool.headline(record) + where)
    legend_below(figure, handles)
    return figure


def record_figures(record: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> dict[str, Figure]:
    """Every figure that a record and its arrays can give, by the word that ends its file's stem.

    By what they hold. Curves: curves, matching_<matcher>, correlations, bn_images. Rows of graph matching at scale:
    scaling, recovery, objective.
    """
    return {kind: make() for kind, make in _drawings(record, arrays or {}).items()}


def draw(record: Mapping[str, Any], kind: str = "curves", arrays: Mapping[str, Any] | None = None) -> Figure:
    """One of `record_figures`, by its word. Raises InputError, which lists those this record has, for another."""
    drawings = _drawings(record, arrays or {})
    check_choice("kind", kind, drawings)
    return drawings[kind]()


def _drawings(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Callable[[], Figure]]:
    found: dict[str, Callable[[], Figure]] = {}
    for kind, make in (("scaling", scaling), ("recovery", recovery), ("objective", objective_accuracy)):
        if rows := [row for row in record.get("rows", ()) if row.get("study") == kind]:
            found[kind] = partial(make, rows, record)
    if "curves" not in record:
        return found
    found["curves"] = partial(curves, record, reference=pool.reference_for(record))
    by_kind: dict[str, dict[str, dict[str, Any]]] = {}
    for name, values in arrays.items():
        kind, matcher, group = (*name.split("/", 2), "", "")[:3]
        by_kind.setdefault(kind, {}).setdefault(matcher, {})[group] = values
    for matcher, perms in by_kind.get("perm", {}).items():
        if matcher != "none":
            soft = by_kind.get("soft", {}).get(matcher)
            found[f"matching_{file_word(matcher)}"] = partial(matching_matrix, perms, record, matcher, soft)
    if "corr" in by_kind:
        found["correlations"] = partial(correlations, arrays, record)
    if study := record.get("studies", {}).get("bn_images"):
        found["bn_images"] = partial(bn_images_study, study, record)
    return found
