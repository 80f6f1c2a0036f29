"""Every figure, in one style sheet (fusebook.mplstyle), each from a run record or plain rows.

Functions return a Figure that is one or two columns of a paper wide and names the data set and n;
`save_figure` writes PNG and PDF. lib.paper rebuilds all of them from the tracked records.
"""

import functools
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, ConnectionPatch, Rectangle, Wedge
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lib import results
from lib.checks import check_choice
from lib.paths import FIGURES, atomic
from lib.results import CORRECTION_LABELS, MATCHER_LABELS, Records

STYLE = Path(__file__).with_name("fusebook.mplstyle")
COLUMN, PAGE = 3.4, 7.0  # inches: one and two columns of a paper
SIZES = {1: COLUMN, 2: PAGE}

# Okabe-Ito, so that colour-blind readers tell them apart; markers and dashes say the same without colour.
BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#767676"
MATCHER_STYLE = {
    "none": (GREY, "o"),
    "activation": (BLUE, "s"),
    "weight": (ORANGE, "^"),
    "sinkhorn": (SKY, "v"),
    "graph_reference": (PINK, "X"),
    "graph_sm": (VERMILLION, "D"),
    "graph": (GREEN, "P"),
}
CORRECTION_LINE: dict[str, Any] = {
    "none": "-",
    "bn_reset": (0, (5, 1.5)),
    "repair": (0, (5, 1.5, 1, 1.5)),
    "rescale": (0, (9, 1.5)),
    "closed_form": (0, (5, 1.5, 1, 1.5, 1, 1.5)),
    "least_squares": (0, (1, 1.2)),
}
SOLVER_LABELS = MATCHER_LABELS | {
    "spectral": "spectral",
    "spectral_symmetric": "spectral, symmetric",
    "rrwm": "RRWM",
    "ipfp": "IPFP",
    "frank_wolfe": "Frank–Wolfe",
    "coordinate_descent": "coordinate descent",
    "softassign": "softassign",
    "graph": "graph (softassign → descent)",
    "weight": "weights (Git Re-Basin)",
}
SOLVER_STYLE = MATCHER_STYLE | {
    "spectral": (VERMILLION, "D"),
    "spectral_symmetric": ("#000000", "d"),
    "rrwm": (PINK, "X"),
    "ipfp": (GREY, "<"),
    "frank_wolfe": (SKY, "v"),
    "coordinate_descent": ("#A0522D", ">"),
    "softassign": (BLUE, "s"),
}
METRIC_LABELS = {
    "test_accuracy": "test accuracy (%)",
    "train_accuracy": "train accuracy (%)",
    "test_loss": "test cross-entropy (nats)",
    "train_loss": "train cross-entropy (nats)",
}


class PaperFigure(Figure):
    """A Figure that belongs to no pyplot state, and still shows itself as a notebook cell's value."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


def _style():
    return matplotlib.style.context(["default", STYLE])


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with _style():
            return function(*args, **kwargs)

    return wrapper


def save_figure(figure: Figure, stem: str, folder: str | Path = FIGURES) -> tuple[Path, Path]:
    """Writes <folder>/<stem>.png (200 dpi) and .pdf (TrueType fonts), both or none; returns the two paths.

    Neither holds a date or a version: the same figure is the same bytes, and git sees only real changes.
    """
    png, pdf = Path(folder) / f"{stem}.png", Path(folder) / f"{stem}.pdf"
    bare = {"CreationDate": None, "Creator": None, "Producer": None}
    with _style(), atomic(png) as png_new, atomic(pdf) as pdf_new:
        if figure.get_layout_engine() is not None:  # laid out once for both files: the same picture, in half the time
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(png_new, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(pdf_new, format="pdf", metadata=bare)
    return png, pdf


# Fusing a pair


@styled
def curve(
    records: Records,
    metric: str = "test_accuracy",
    reference: Mapping[str, Any] | None = None,
    columns: int = 1,
) -> Figure:
    """One metric against alpha, a line per curve, the end points as dashed horizontal lines.

    Several records of one kind: the mean over independent pairs, and from three pairs on a band that is its 95 %
    interval. `reference` (an entry of lib.results.REFERENCE) adds the published points as hollow markers. More than
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
    summary = results.aggregate(records)
    by_correction: dict[str, list[Mapping[str, Any]]] = {}
    for entry in summary["curves"]:
        by_correction.setdefault(entry["correction"], []).append(entry)
    crowded = len(summary["curves"]) > 8 and len(by_correction) > 1
    panels = list(by_correction.items()) if crowded else [("", summary["curves"])]

    # Metric after metric, each a block of panels; a block never shares a row with another, but for lone panels.
    wide = min(len(panels), 3 * columns) if crowded else min(len(metrics), columns)
    block = wide * math.ceil(len(panels) / wide) if crowded else 1
    rows = len(metrics) * block // wide
    figure = PaperFigure(figsize=(_width(columns), 1.0))
    grid = figure.subplots(rows, wide, squeeze=False, sharex=True, sharey="row" if crowded else False)
    handles: dict[str, Any] = {}
    for index, axes in enumerate(grid.flat):
        metric, place = metrics[index // block], index % block
        if place >= len(panels):
            axes.set_visible(False)
            continue
        correction, entries = panels[place]
        scale = 100 if metric.endswith("accuracy") else 1
        ends = [summary["parents"][side][metric] for side in ("a", "b")]
        for end, shade in zip(ends, ("#444444", "#8C8C8C"), strict=True):
            if end is not None:
                handle = axes.axhline(scale * end, color=shade, linestyle=(0, (3, 2)), linewidth=0.9, zorder=1)
                handles.setdefault("end points A and B, each alone", handle)
        for entry in entries:
            label = results.curve_label(entry | {"correction": "none"} if crowded else entry)
            _draw_curve(axes, entry, metric, scale, reference, handles, label)
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
                axes.set_title(CORRECTION_LABELS.get(correction, correction))
        if scale == 1:
            axes.set_ylim(bottom=0)
    lines = legend_below(figure, handles)
    figure.set_figheight(0.3 + (2.2 if columns == 2 or not crowded else 1.7) * rows + 0.17 * lines)
    band = any(point[f"{metrics[0]}_low"] is not None for entry in summary["curves"] for point in entry["points"])
    headed(figure, results.headline(records) + (", mean and 95 % interval" if band else ""))
    return figure


def _draw_curve(
    axes: Axes,
    entry: Mapping[str, Any],
    metric: str,
    scale: float,
    reference: Mapping[str, Any] | None,
    handles: dict[str, Any],
    label: str,
) -> None:
    colour, marker = _look(MATCHER_STYLE, entry["matcher"])
    points = [point for point in entry["points"] if point[metric] is not None]
    if not points:
        return
    alphas = np.array([point["alpha"] for point in points])
    values = scale * np.array([point[metric] for point in points])
    line = CORRECTION_LINE.get(entry["correction"], "-")
    fade = 0.55 if entry["variant"] else 1.0
    look = {"color": colour, "linestyle": line, "alpha": fade, "zorder": 3} | mark(marker)
    (handle,) = axes.plot(alphas, values, **look)
    handles.setdefault(label, handle)
    if points[0][f"{metric}_low"] is not None:
        low, high = (scale * np.array([point[f"{metric}_{end}"] for point in points]) for end in ("low", "high"))
        axes.fill_between(alphas, low, high, color=colour, alpha=0.18, linewidth=0)
    published = (reference or {}).get("curves", {}).get((entry["matcher"], entry["correction"]), {}).get(metric)
    if published and not entry["variant"]:
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
    figure = PaperFigure(figsize=(_width(panels), 3.9 if similarity else 3.5), layout="compressed")
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
    label = MATCHER_LABELS.get(matcher, matcher)
    headed(figure, f"{results.headline(record)}; matching: {label}")
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
    figure = PaperFigure(figsize=(_width(columns), 3.5 if upright else 2.9))
    axes = figure.subplots()
    width = 0.8 / len(found)
    handles: dict[str, Any] = {}
    order = list(MATCHER_STYLE)
    ranked = sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    for index, (matcher, by_group) in enumerate(ranked):
        colour, marker = _look(MATCHER_STYLE, matcher)
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
                axes.plot(place + offset, middle, color=colour, **mark(marker, 5))
        handle = Line2D([], [], color=colour, linewidth=2, **mark(marker, 5))
        handles[MATCHER_LABELS.get(matcher, matcher)] = handle
    axes.axhline(0, color="#333333", linewidth=0.7)
    axes.set_xticks(range(len(groups)), groups, rotation=90 if upright else 0)
    axes.set(ylabel="correlation of matched units", xlim=(-0.6, len(groups) - 0.4))
    axes.grid(False, axis="x")
    headed(figure, results.headline(record))
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
    for side, shade in (("a", "#444444"), ("b", "#8C8C8C")):
        end = 100 * record["parents"][side]["test_accuracy"]
        handle = axes.axhline(end, color=shade, linestyle=(0, (3, 2)), linewidth=0.9)
        handles.setdefault("end points A and B, each alone", handle)
    for matcher in dict.fromkeys(row["matcher"] for row in rows):
        colour, marker = _look(MATCHER_STYLE, matcher)
        label = MATCHER_LABELS.get(matcher, matcher)
        counts, means, spreads = _mean_by(
            (row for row in rows if row["matcher"] == matcher), "images", "test_accuracy", 100
        )
        for count, mean in zip(counts, means, strict=True):
            if count == 0:
                handles[f"{label}, no reset"] = axes.axhline(mean, color=colour, linestyle=":", linewidth=1.2)
        some = counts > 0
        bars = {"capsize": 2, "elinewidth": 0.8, "linestyle": CORRECTION_LINE["bn_reset"]} | mark(marker)
        handles[f"{label} + BN reset"] = axes.errorbar(counts[some], means[some], spreads[some], color=colour, **bars)
    axes.set(xscale="log", xlabel="training images for the reset", ylabel=METRIC_LABELS["test_accuracy"])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.set_ylim(bottom=0)
    alphas = sorted({row["alpha"] for row in rows if "alpha" in row})
    where = (", α = " + ", ".join(f"{alpha:g}" for alpha in alphas)) if alphas else ""
    headed(figure, results.headline(record) + where)
    legend_below(figure, handles)
    return figure


# Many pairs


@styled
def leaderboard(rows: Iterable[Mapping[str, Any]], metric: str = "test_accuracy", columns: int = 2) -> Figure:
    """A heat map of matcher × correction for each kind of pair, all on one grid; over it what it is compared with.

    `rows` as `lib.results.leaderboard_rows` makes them; curves with a "variant" are lines of their own. The best fused
    network of a panel, among those measured on all of its pairs, is framed; the others say their n. An empty cell is a
    method that the network can not take or that was not measured. `metric`: test_accuracy, barrier_accuracy, or
    best_accuracy, which also prints each cell's best alpha.
    """
    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["architecture"], row["dataset"]), []).append(row)
    panels = {kind: found for kind, found in panels.items() if any(row.get(metric) is not None for row in found)}
    fused = [row for found in panels.values() for row in found if "reference" not in row]
    lines = _ranked(((row["matcher"], row["variant"]) for row in fused), MATCHER_LABELS, lambda line: line[0])
    across = _ranked((row["correction"] for row in fused), CORRECTION_LABELS, lambda name: name)
    wide = min(len(panels), 3 if columns == 2 else 1)
    deep = math.ceil(len(panels) / wide)
    tall = 0.27 if metric.startswith("best_") else 0.19
    figure = PaperFigure(figsize=(_width(columns), 1.05 + deep * (0.62 + tall * len(lines))))
    grid = figure.subplots(deep, wide, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_visible(False)
            continue
        (architecture, dataset), found = list(panels.items())[index]
        _heat_map(axes, found, metric, lines, across)
        n = _range_of_n(row for row in found if "reference" not in row)
        axes.set_title(f"{architecture} on {dataset}, n = {n}\n{_references(found)}", fontsize=6.5)
        names = [MATCHER_LABELS.get(name, name) + (f" ({variant})" if variant else "") for name, variant in lines]
        places = np.arange(len(lines)) + 0.5
        axes.set_yticks(places, names if not index % wide else [""] * len(names))
        labels = [CORRECTION_LABELS.get(name, name) for name in across]
        last = index + wide >= len(panels)
        axes.set_xticks(np.arange(len(across)) + 0.5, labels if last else [""] * len(labels), rotation=90)
    at = sorted({row["alpha"] for row in fused})
    what = {
        "test_accuracy": "test accuracy (%)" + (f" at α = {at[0]:g}" if len(at) == 1 else ""),
        "barrier_accuracy": "accuracy barrier (points)",
        "best_accuracy": "test accuracy (%) at the best α on held-out training images (below it)",
    }.get(metric, metric)
    headed(figure, f"{what}: matching × correction, the best framed; grey: not measured or not for this network")
    return figure


def _ranked(names: Iterable[Any], order: Iterable[str], key: Callable[[Any], str]) -> list[Any]:
    """The distinct names, in `order` where it knows them, else as they come, behind."""
    known, found = list(order), list(dict.fromkeys(names))
    return sorted(found, key=lambda name: known.index(key(name)) if key(name) in known else len(known))


def _range_of_n(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many pairs stand behind rows: "3", or "1–3"."""
    counts = [row["n"] for row in rows]
    return "–".join(f"{count}" for count in dict.fromkeys((min(counts), max(counts))))


def _references(rows: list[Mapping[str, Any]]) -> str:
    """What a panel is compared with, on two lines: test accuracies in per cent, whatever the panel shows."""
    value = {row["reference"]: f"{100 * row['test_accuracy']:.1f}" for row in rows if "reference" in row}
    lines = [f"parents {value.get('parent_a', '—')}, {value.get('parent_b', '—')}", ""]
    lines[1] = f"ensemble {value['ensemble']}" if "ensemble" in value else ""
    lines[0] += f"; better held out {value['one_parent']}" if "one_parent" in value else ""
    return "\n".join(line for line in lines if line)


def _heat_map(
    axes: Axes, rows: list[Mapping[str, Any]], metric: str, lines: list[tuple[str, str]], across: list[str]
) -> None:
    scale = 100 if "accuracy" in metric else 1
    fused = [row for row in rows if "reference" not in row and row.get(metric) is not None]
    lower_is_better = "barrier" in metric or "loss" in metric
    values = [row[metric] for row in fused]
    values += [] if lower_is_better else [row["test_accuracy"] for row in rows if "reference" in row]
    low, high = min(values, default=0), max(values, default=1)
    colours = matplotlib.colormaps["cividis_r" if lower_is_better else "cividis"]
    digits = 1 if scale == 100 else 2
    most = max((row["n"] for row in fused), default=1)
    for row in fused:
        x, y = across.index(row["correction"]), lines.index((row["matcher"], row["variant"]))
        colour = colours((row[metric] - low) / (high - low or 1))
        dark = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) < 0.5
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
        below = f"\nα {row['best_alpha']:.2g}" if metric.startswith("best_") else ""
        below += f"\nn = {row['n']}" if row["n"] < most else ""
        look = {"ha": "center", "va": "center", "color": "w" if dark else "k", "linespacing": 1.1}
        axes.text(x + 0.5, y + 0.5, f"{scale * row[metric]:.{digits}f}{below}", fontsize=6, **look)
    if fused:
        alike = [row for row in fused if row["n"] == most]
        best = (min if lower_is_better else max)(alike, key=lambda row: row[metric])
        corner = across.index(best["correction"]), lines.index((best["matcher"], best["variant"]))
        axes.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor=VERMILLION, linewidth=1.6, zorder=3))
    axes.set(xlim=(0, len(across)), ylim=(len(lines), 0), facecolor="#F2F2F2")
    axes.tick_params(length=0, labelsize=6.5)
    axes.grid(False)
    axes.spines[:].set_visible(False)


@styled
def width_barrier(records: Records, columns: int = 2) -> Figure:
    """Barrier (accuracy and loss, test) against width: the mean over independent pairs with its 95 % interval, a pale
    point per pair.

    Records of one data set, any widths; the number of pairs stands under each width. Raises InputError for records
    of several data sets, or of several kinds at one width. `columns`: 2 puts the panels side by side, 1 on each other.
    """
    records = results.one_dataset(records)
    widths = sorted({record["model"]["width"] for record in records})
    means = {w: results.aggregate([r for r in records if r["model"]["width"] == w]) for w in widths}
    keys = dict.fromkeys(results.curve_key(entry) for record in records for entry in record["curves"])
    figure = PaperFigure(figsize=(_width(columns), 3.1 if columns == 2 else 4.9))
    handles: dict[str, Any] = {}
    grid = figure.subplots(3 - columns, columns, sharex=True)
    for axes, metric in zip(grid, ("test_accuracy", "test_loss"), strict=True):
        scale = 100 if metric == "test_accuracy" else 1
        for index, key in enumerate(keys):
            colour, marker = _look(MATCHER_STYLE, key[0])
            found = [
                (record["model"]["width"], scale * entry["barrier"][metric])
                for record in records
                if (entry := results.curve_of(record, *key)) and entry["barrier"][metric] is not None
            ]
            over = [(w, entry["barrier"]) for w in widths if (entry := results.curve_of(means[w], *key))]
            over = [(w, barrier) for w, barrier in over if barrier[metric] is not None]
            if not over:
                continue
            # Curves at one width side by side, so that none hides another.
            shift = 2 ** (0.06 * (index - (len(keys) - 1) / 2))
            look = {"color": colour, "linestyle": CORRECTION_LINE.get(key[1], "-")} | mark(marker)
            here = np.array([w for w, _ in over]) * shift
            (handle,) = axes.plot(here, [scale * barrier[metric] for _, barrier in over], **look)
            for x, (_, barrier) in zip(here, over, strict=True):
                if barrier[f"{metric}_low"] is not None:
                    ends = [scale * barrier[f"{metric}_{end}"] for end in ("low", "high")]
                    axes.plot([x, x], ends, color=colour, linewidth=1.1, marker="_", markersize=4)
            spots = np.array(found) * (1.03 * shift, 1)  # beside the bar
            axes.plot(*spots.T, color=colour, linestyle="none", alpha=0.35, markersize=2.5, marker="o", mew=0)
            handles[results.curve_label(dict(zip(("matcher", "correction", "variant"), key, strict=True)))] = handle
        axes.axhline(0, color="#333333", linewidth=0.7)
        axes.set_xscale("log", base=2)
        ticks = [f"×{results.width_label(w)}\nn = {means[w]['n']}" for w in widths]
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(widths, ticks)
        axes.set_xlim(widths[0] / 1.5, widths[-1] * 1.5)
        what = "accuracy barrier (points)" if scale == 100 else "loss barrier (nats)"
        axes.set_ylabel(f"test {what}")
        if columns == 2 or scale == 1:
            axes.set_xlabel("width")
    names = dict.fromkeys(results.model_label(record["model"] | {"width": 1.0}) for record in records)
    pairs = sum(mean["n"] for mean in means.values())
    some = any(c["barrier"]["test_accuracy_low"] is not None for mean in means.values() for c in mean["curves"])
    told = "means, 95 % intervals where n ≥ 3" if some else "means"
    title = f"{' + '.join(names)} on {records[0]['dataset']}, {pairs} pairs: {told}, each pair a point"
    headed(figure, title)
    legend_below(figure, handles)
    return figure


@styled
def differences(summary: Iterable[Mapping[str, Any]], against: str, columns: int = 2) -> Figure:
    """Method against method on the same pairs: the mean difference to one curve, with its 95 % interval.

    `summary` as `lib.evidence.summary` answers with `against`; a panel per kind of pair, a line per curve, each with
    the n of pairs that have both. An interval that leaves out 0 is drawn solid, others and means without one hollow.
    """
    panels: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in summary:
        panels.setdefault((row["model"], row["norm"], row["width"], row["dataset"]), []).append(row)
    curves = list(dict.fromkeys(row["curve"] for found in panels.values() for row in found))
    labels = {row["curve"]: results.curve_label(row) for found in panels.values() for row in found}
    wide = min(len(panels), 2 * columns - 1)
    deep = math.ceil(len(panels) / wide)
    figure = PaperFigure(figsize=(_width(columns), 0.9 + deep * (0.6 + 0.19 * len(curves))))
    grid = figure.subplots(deep, wide, squeeze=False, sharex=True)
    metric = ""
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_visible(False)
            continue
        (model, norm, width, dataset), found = list(panels.items())[index]
        for row in found:
            metric, y = row["metric"], curves.index(row["curve"])
            scale = 100 if metric.endswith("accuracy") else 1
            if row["mean"] is None:
                continue
            colour, marker = _look(MATCHER_STYLE, row["matcher"])
            clear = row["low"] is not None and row["low"] * row["high"] > 0
            if row["low"] is not None:
                axes.plot([scale * row["low"], scale * row["high"]], [y, y], color=colour, linewidth=1.3)
            face = {"color": colour} if clear else {"color": colour, "markerfacecolor": "white"}
            axes.plot(scale * row["mean"], y, **(mark(marker) | face | {"markeredgecolor": colour}))
        axes.axvline(0, color="#333333", linewidth=0.7)
        n = _range_of_n(found)
        kind = {"name": model, "norm": norm, "width": width}
        axes.set_title(f"{results.model_label(kind)}\n{dataset}, n = {n}", fontsize=7)
        axes.set_yticks(range(len(curves)), [labels[curve] for curve in curves] if not index % wide else [])
        axes.set_ylim(len(curves) - 0.5, -0.5)
        axes.grid(False, axis="y")
        if index + wide >= len(panels):
            axes.set_xlabel("points" if metric.endswith("accuracy") else "nats")
    told = metric.replace("_", " ").replace("barrier test", "test barrier,")
    matcher, _, correction = against.partition(" + ")
    named = results.curve_label({"matcher": matcher, "correction": correction or "none"})
    headed(figure, f"{told} minus that of {named}, same pairs: mean, 95 % interval (filled: leaves out 0)")
    return figure


# Graph matching at scale


@styled
def scaling(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> Figure:
    """Seconds and peak memory against width (log axes), a column per model; dense K's size beside them.

    Row: {"model", "width", "solver", "seconds", "peak_bytes", "dense_bytes"}. Memory is the most that
    any solver made the process grow: what one leaves to the next is not seen. Below 1 MB it is drawn at 1 MB.
    """
    rows = list(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = PaperFigure(figsize=(_width(2 if len(models) > 1 else 1), 4.4))
    grid = figure.subplots(2, len(models), squeeze=False, sharey="row")
    handles: dict[str, Any] = {}
    for column, model in enumerate(models):
        here = [row for row in rows if row["model"] == model]
        for solver in dict.fromkeys(row["solver"] for row in here):
            colour, marker = _look(SOLVER_STYLE, solver)
            measured = [row for row in here if row["solver"] == solver and row.get("seconds")]
            widths, means, _ = _mean_by(measured, "width", "seconds")
            (handle,) = grid[0, column].plot(widths, means, color=colour, **mark(marker))
            handles.setdefault(SOLVER_LABELS.get(solver, solver), handle)
        peaks: dict[float, float] = {}
        for row in here:
            if row.get("peak_bytes") is not None:
                peaks[row["width"]] = max(row["peak_bytes"], peaks.get(row["width"], 1e6))
        if peaks:
            (handle,) = grid[1, column].plot(*zip(*sorted(peaks.items()), strict=True), color="#000000", **mark("o"))
            handles.setdefault("most of any solver, 1 MB or less at the foot", handle)
        for axes in grid[:, column]:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        dense = sorted({(row["width"], row["dense_bytes"]) for row in here if row.get("dense_bytes")})
        if dense:
            look = {"color": "#444444", "linestyle": (0, (3, 2)), "linewidth": 1.1}
            (handle,) = grid[1, column].plot(*zip(*dense, strict=True), **look)
            handles.setdefault("dense affinity matrix K (not built)", handle)
        widths = sorted({row["width"] for row in here})
        for axes in grid[:, column]:
            axes.set_xticks(widths, [f"×{results.width_label(width)}" for width in widths])
        grid[0, column].set_title(results.model_label({"name": model}))
        grid[1, column].set_xlabel("width")
    grid[0, 0].set_ylabel("seconds")
    grid[1, 0].set_ylabel("peak extra memory")
    grid[1, 0].yaxis.set_major_formatter(FuncFormatter(lambda size, _: _bytes(size)))
    exponents = range(0, 24, 3)
    grid[1, 0].yaxis.set_major_locator(FixedLocator([10.0**e for e in exponents]))
    grid[1, 0].yaxis.set_minor_locator(NullLocator())
    headed(figure, _study_title(record, rows))
    legend_below(figure, handles)
    return figure


@styled
def recovery(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any], columns: int = 2) -> Figure:
    """Fraction of a planted permutation that each solver finds again, against the noise; a panel per network.

    Row: {"model", "width", "solver", "noise" (in standard deviations of the weights), "recovered" (fraction),
    "seed"}. Means over seeds, bands from the least to the most.
    """
    rows = list(rows)
    kinds = list(dict.fromkeys((row["model"], row["width"]) for row in rows))
    wide = min(len(kinds), columns)
    deep = math.ceil(len(kinds) / wide)
    figure = PaperFigure(figsize=(_width(columns), 0.9 + 2.2 * deep))
    handles: dict[str, Any] = {}
    grid = figure.subplots(deep, wide, squeeze=False, sharex=True, sharey=True)
    for index, (axes, kind) in enumerate(zip(grid.flat, kinds, strict=False)):
        here = [row for row in rows if (row["model"], row["width"]) == kind]
        for solver in dict.fromkeys(row["solver"] for row in here):
            colour, marker = _look(SOLVER_STYLE, solver)
            mine = [r for r in here if r["solver"] == solver]
            noise, means, _ = _mean_by(mine, "noise", "recovered")
            (handle,) = axes.plot(noise, means, color=colour, **mark(marker))
            ends = [[end(r["recovered"] for r in mine if r["noise"] == x) for x in noise] for end in (min, max)]
            axes.fill_between(noise, *ends, color=colour, alpha=0.15, linewidth=0)
            handles.setdefault(SOLVER_LABELS.get(solver, solver), handle)
        axes.set_ylim(-0.03, 1.05)
        axes.set_title(results.model_label({"name": kind[0], "width": kind[1]}))
        if index + wide >= len(kinds):
            axes.set_xlabel("noise σ (standard deviations of the weights)")
        if not index % wide:
            axes.set_ylabel("recovered units (fraction)")
    headed(figure, "planted permutation (mean, least and most), " + _study_title(record, rows))
    legend_below(figure, handles)
    return figure


@styled
def objective_accuracy(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> Figure:
    """Accuracy of the fused network against the matching's objective, a point per matching.

    Row: {"solver", "objective", "test_accuracy"}, and "model" and "width" alike in all.
    """
    rows = list(rows)
    figure = PaperFigure(figsize=(COLUMN, 3.0))
    axes = figure.subplots()
    handles: dict[str, Any] = {}
    for solver in dict.fromkeys(row["solver"] for row in rows):
        colour, marker = _look(SOLVER_STYLE, solver)
        here = np.array([(r["objective"], 100 * r["test_accuracy"]) for r in rows if r["solver"] == solver])
        (handle,) = axes.plot(*here.T, color=colour, linestyle="none", **mark(marker))
        handles[SOLVER_LABELS.get(solver, solver)] = handle
    axes.set(xlabel="objective of the matching", ylabel=f"{METRIC_LABELS['test_accuracy']}, α = 0.5")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    headed(figure, _study_title(record, rows))
    legend_below(figure, handles)
    return figure


def _study_title(record: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    seeds = len({row.get("seed") for row in rows})
    where = f"networks trained on {record['dataset']}" if record.get("dataset") else "random networks, no data set"
    return f"{where}, n = {seeds}, {record['provenance']['device']}"


# What matching is


# A little network: 3 inputs, two hidden layers of 4 units, 2 outputs.
_SIZES = (3, 4, 4, 2)
_LETTERS = ("", "abcd", "efgh", "")
_UNIT_COLOURS = (ORANGE, SKY, GREEN, PINK)
_RADIUS = 0.23


@styled
def network_graph() -> Figure:
    """Two small networks as graphs, their matching, and what averaging gives without it and with it.

    Drawn from numbers: B is A with its hidden units in another order and a little noise; the averages are
    averages of those weights. A unit's letter and colour stand for what it responds to, which is what
    matching has to find out.
    """
    generator = np.random.default_rng(11)
    shapes = zip(_SIZES[1:], _SIZES[:-1], strict=True)
    weights = [generator.normal(size=shape) for shape in shapes]
    weights = [np.sign(w) * np.abs(w / np.abs(w).max()) ** 1.6 for w in weights]
    noisy = [w + generator.normal(scale=0.05, size=w.shape) for w in weights]
    straight = [np.arange(size) for size in _SIZES]
    orders = [np.arange(3), np.array([2, 0, 3, 1]), np.array([1, 3, 0, 2]), np.arange(2)]
    other = [w[np.ix_(orders[layer + 1], orders[layer])] for layer, w in enumerate(noisy)]
    unmatched = [(a + b) / 2 for a, b in zip(weights, other, strict=True)]
    matched = [(a + b) / 2 for a, b in zip(weights, noisy, strict=True)]

    figure = PaperFigure(figsize=(PAGE, 5.0))
    figure.get_layout_engine().set(wspace=0.04, hspace=0.16, h_pad=0.07, rect=(0, 0, 1, 0.985))
    grid = figure.subplots(2, 3)
    panels = (
        (grid[0, 0], weights, straight, straight, "(a) network A"),
        (grid[0, 2], other, orders, orders, "(c) network B, units in another order"),
        (grid[1, 0], unmatched, straight, orders, "(d) A and B averaged as they are"),
        (grid[1, 1], noisy, straight, straight, "(e) B in A's order: same function"),
        (grid[1, 2], matched, straight, straight, "(f) A and B averaged after matching"),
    )
    for axes, edges, first, second, title in panels:
        _draw_network(axes, edges, first, second)
        axes.set_title(title, loc="center")
    _draw_matching(grid[0, 1], orders)
    grid[0, 1].set_title("(b) matching: which units do the same?", loc="center")
    caption = {"ha": "center", "va": "center", "color": "#444444"}
    for layer, name in enumerate(("inputs", "hidden 1", "hidden 2", "outputs")):
        for axes in (grid[0, 0], grid[0, 2]):
            axes.text(1.3 * layer, -0.1, name, fontsize=6.5, **caption)
    grid[1, 0].text(1.95, -0.1, "unlike units mix, their weights blur", **caption)
    grid[1, 1].text(1.95, -0.1, "units and their edges moved by perm", **caption)
    grid[1, 2].text(1.95, -0.1, "like meets like: the fused network", **caption)
    _arrow(figure, grid[0, 1], (1.95, -0.42), grid[1, 1], (1.95, 4.72))
    _arrow(figure, grid[1, 1], (4.25, 2), grid[1, 2], (-0.35, 2))
    names = ("positive weight", "negative weight (thicker = larger)")
    colours = (BLUE, VERMILLION)
    legend_below(figure, {n: Line2D([], [], color=c, linewidth=2.2) for n, c in zip(names, colours, strict=True)})
    return figure


def _places(layer: int) -> list[tuple[float, float]]:
    return [(1.3 * layer, 2 + (_SIZES[layer] - 1) / 2 - unit) for unit in range(_SIZES[layer])]


def _bare(axes: Axes) -> None:
    axes.set(xlim=(-0.4, 4.3), ylim=(-0.4, 4.1), aspect="equal")
    axes.axis("off")


def _draw_network(axes: Axes, weights: list[np.ndarray], first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """A network left to right; in each place a unit that is half `first`'s and half `second`'s unit there."""
    _bare(axes)
    for layer, matrix in enumerate(weights):
        for unit, end in enumerate(_places(layer + 1)):
            for source, start in enumerate(_places(layer)):
                weight = matrix[unit, source]
                strength = min(1.0, abs(weight))
                look = {"linewidth": 0.25 + 2.9 * strength, "alpha": 0.25 + 0.75 * strength}
                axes.plot(*zip(start, end, strict=True), color=BLUE if weight > 0 else VERMILLION, **look)
    for layer in range(len(_SIZES)):
        for place, centre in enumerate(_places(layer)):
            _draw_unit(axes, centre, layer, int(first[layer][place]), int(second[layer][place]))


def _draw_unit(axes: Axes, centre: tuple[float, float], layer: int, first: int, second: int) -> None:
    hidden = bool(_LETTERS[layer])
    colours = [_UNIT_COLOURS[unit] if hidden else "white" for unit in (first, second)]
    ring = {"facecolor": colours[0], "edgecolor": "#222222", "linewidth": 0.8, "zorder": 3}
    axes.add_patch(Circle(centre, _RADIUS, **ring))
    if first != second:
        axes.add_patch(Wedge(centre, _RADIUS, 270, 90, facecolor=colours[1], linewidth=0, zorder=3.5))
        axes.add_patch(Circle(centre, _RADIUS, **ring | {"facecolor": "none", "zorder": 4}))
    if not hidden:
        return
    style = {"ha": "center", "va": "center_baseline", "zorder": 5, "fontweight": "bold"}
    if first == second:
        axes.text(*centre, _LETTERS[layer][first], fontsize=7.5, **style)
        return
    for unit, shift in ((first, -0.095), (second, 0.095)):
        axes.text(centre[0] + shift, centre[1], _LETTERS[layer][unit], fontsize=5.5, **style)


def _draw_matching(axes: Axes, orders: list[np.ndarray]) -> None:
    """Each hidden layer's units of A and of B facing each other, like joined to like, and the permutation."""
    _bare(axes)
    for layer, left in ((1, 0.1), (2, 2.5)):
        right = left + 1.3
        heights = [y for _, y in _places(layer)]
        perm = np.argsort(orders[layer])
        for place, partner in enumerate(perm):
            colour = _UNIT_COLOURS[place]
            ends = ((left, right), (heights[place], heights[partner]))
            axes.plot(*ends, color=colour, linewidth=2.2, solid_capstyle="round")
            _draw_unit(axes, (left, heights[place]), layer, place, place)
            _draw_unit(axes, (right, heights[partner]), layer, place, place)
        axes.text(left, 4.0, "A", ha="center", va="center", fontweight="bold")
        axes.text(right, 4.0, "B", ha="center", va="center", fontweight="bold")
        text = f"hidden {layer}\nperm = {perm.tolist()}"
        axes.text((left + right) / 2, -0.1, text, ha="center", va="center", fontsize=6.5, color="#444444")


def _arrow(figure: Figure, start: Axes, tail: tuple[float, float], end: Axes, head: tuple[float, float]) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.2, "color": "#444444"}
    arrow = ConnectionPatch(tail, head, start.transData, end.transData, **look)
    arrow.set_in_layout(False)
    figure.add_artist(arrow)


# Shared pieces


def _width(columns: int) -> float:
    check_choice("columns", str(columns), map(str, SIZES))
    return SIZES[columns]


def headed(figure: Figure, text: str) -> None:
    """The line over a figure: model, data set, n. Wrapped to the figure's width."""
    width = int(13.5 * figure.get_figwidth())
    unbroken = text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")
    figure.suptitle(textwrap.fill(unbroken, width), x=0.01, ha="left")


def legend_below(figure: Figure, handles: Mapping[str, Any]) -> int:
    """A legend under the panels, in as many columns as the figure's width holds; returns its rows."""
    if not handles:
        return 0
    widest = 0.5 + 0.062 * max(len(label) for label in handles)  # inches: handle, then letters of 7 points
    columns = max(1, min(3, len(handles), int(figure.get_figwidth() / widest)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    return math.ceil(len(handles) / columns)


def mark(marker: str, size: float = 4.5) -> dict[str, Any]:
    """Marker options that give every shape about the same weight on paper."""
    bigger = {"P": 1.45, "X": 1.4, "*": 1.5, "^": 1.15, "v": 1.15, "d": 1.2}.get(marker, 1.0)
    return {"marker": marker, "markersize": size * bigger, "markeredgecolor": "white", "markeredgewidth": 0.4}


def _look(styles: Mapping[str, tuple[str, str]], name: str) -> tuple[str, str]:
    """Colour and marker of a name; a name without its own gets one that stays the same from run to run."""
    if name in styles:
        return styles[name]
    spare = ((GREY, "h"), (PINK, "*"), (BLUE, ">"), (VERMILLION, "p"), ("#000000", "d"))
    return spare[sum(name.encode()) % len(spare)]


def _mean_by(
    rows: Iterable[Mapping[str, Any]], key: str, value: str, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted values of `key`, and mean and sample deviation (0 for a single row) of `value` at each."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            found.setdefault(row[key], []).append(scale * row[value])
    keys = sorted(found)
    spreads = [stdev(found[k]) if len(found[k]) > 1 else 0.0 for k in keys]
    return np.array(keys), np.array([fmean(found[k]) for k in keys]), np.array(spreads)


def _bytes(size: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    step = 0 if size < 1 else min(len(units) - 1, int(math.log10(size) // 3))
    return f"{size / 1000**step:g} {units[step]}"


# From records to files


def record_figures(record: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> dict[str, Figure]:
    """Every figure that one record and its arrays can give, by the word that ends its file's stem.

    A pair: curves, matching_<matcher>, correlations, bn_images. A graph matching study: scaling, recovery,
    objective. An experiment without figures of its own gives an empty dict.
    """
    arrays = arrays or {}
    if record["experiment"] == "graph_matching_scaling":
        drawn = {"scaling": scaling, "recovery": recovery, "objective": objective_accuracy}
        rows = {name: [row for row in record["rows"] if row.get("study") == name] for name in drawn}
        return {name: draw(rows[name], record) for name, draw in drawn.items() if rows[name]}
    if record["experiment"] not in ("simplenet_mnist", "vgg11_cifar10"):
        return {}
    figures = {"curves": curves(record, reference=results.reference_for(record))}
    matchers = dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("perm/"))
    for matcher in matchers:
        if matcher != "none":
            soft = _by_group(arrays, "soft", matcher)
            perms = _by_group(arrays, "perm", matcher)
            figures[f"matching_{matcher}"] = matching_matrix(perms, record, matcher, soft or None)
    if any(name.startswith("corr/") for name in arrays):
        figures["correlations"] = correlations(arrays, record)
    if study := record.get("studies", {}).get("bn_images"):
        figures["bn_images"] = bn_images_study(study, record)
    return figures


def _by_group(arrays: Mapping[str, Any], kind: str, matcher: str) -> dict[str, Any]:
    start = f"{kind}/{matcher}/"
    return {name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)}
