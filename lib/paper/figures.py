"""Every figure, in one style sheet (fusebook.mplstyle), each from a run record or plain rows.

Functions return a Figure that is one or two columns of a paper wide and names the data set and n;
`save_figure` writes PNG and PDF. `make figures` rebuilds all of them from the tracked records.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import StrMethodFormatter

from ..checks import check_choice
from ..records import curve_key
from . import figures_attention, figures_networks, figures_size, ladder, pool
from .evidence import grouped
from .figures_architectures import architectures
from .figures_scaling import objective_accuracy, recovery, scaling
from .names import CORRECTIONS, MATCHERS, curve_label, curve_look, file_word, fills, look, ranked
from .pool import Records
from .style import BLUE, GREY, METRIC_LABELS, Drawn, PaperFigure, end_points, mean_by, percent, styled


@styled
def curves(
    records: Records,
    metrics: Sequence[str] = ("test_accuracy", "test_loss"),
    reference: Mapping[str, Any] | None = None,
    columns: int = 2,
) -> Drawn:
    """Metrics against alpha, a panel each, a line per curve, the end points as dashed horizontal lines. Colours are
    matchers, markers and dashes corrections; a thin line leads to a parent that no point of the curve stands at.

    Several records of one kind: the mean over independent pairs, and from three pairs on a band that is its 95 %
    interval. `reference` (an entry of published.REFERENCE) adds the published points as hollow markers. More than
    eight curves are spread over a panel per correction. `columns`: 1 or 2, those of a paper that the figure is wide;
    in one the panels are stacked.
    """
    summary = pool.aggregate(records)
    by_correction = grouped(summary["curves"], "correction")
    crowded = len(summary["curves"]) > 8 and len(by_correction) > 1
    panels = list(by_correction.items()) if crowded else [("", summary["curves"])]

    # Metric after metric, each a block of panels; a block never shares a row with another, but for lone panels.
    wide = min(len(panels), 4 * columns) if crowded else min(len(metrics), columns)
    block = wide * math.ceil(len(panels) / wide) if crowded else 1
    rows = len(metrics) * block // wide
    figure = PaperFigure(columns, 1.0)
    grid = figure.subplots(rows, wide, squeeze=False, sharex=True, sharey="row" if crowded else False)
    for index, axes in enumerate(grid.flat):
        metric, place = metrics[index // block], index % block
        if place >= len(panels):
            axes.set_visible(False)
            continue
        correction, entries = panels[place]
        end_points(figure, axes, summary["parents"], metric)
        named = [entry | {"correction": "none"} if crowded else entry for entry in entries]
        filled = fills(map(curve_key, named))
        for entry, name in zip(entries, named, strict=True):
            marks = curve_look(*curve_key(name), (each["correction"] for each in named)).mark(
                fill=filled[curve_key(name)]
            )
            _draw_curve(figure, axes, entry, metric, summary["parents"], reference, curve_label(name), marks)
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
    lines = math.ceil(len(figure.handles) / figure.legend_columns())
    figure.set_figheight(0.3 + (2.2 if columns == 2 or not crowded else 1.7) * rows + 0.17 * lines)
    band = any(point[f"{metrics[0]}_low"] is not None for entry in summary["curves"] for point in entry["points"])
    return figure, pool.headline(records) + (", mean and 95 % interval" if band else "")


def _draw_curve(
    figure: PaperFigure,
    axes: Axes,
    entry: Mapping,
    metric: str,
    parents: Mapping[str, Mapping],
    reference: Mapping | None,
    label: str,
    marks: Mapping[str, Any],
) -> None:
    method, scale = look(MATCHERS, entry["matcher"]), percent(metric)
    points = [point for point in entry["points"] if point[metric] is not None]
    if not points:
        return
    alphas = [point["alpha"] for point in points]
    values, low, high = (
        [np.nan if point[name] is None else scale * point[name] for point in points]
        for name in (metric, f"{metric}_low", f"{metric}_high")
    )
    line = look(CORRECTIONS, entry["correction"]).line
    figure.key(label, *axes.plot(alphas, values, linestyle=line, zorder=3, **marks))
    for end, side, near in ((0, "a", np.argmin(alphas)), (1, "b", np.argmax(alphas))):
        known = parents[side][metric]
        if known is not None and abs(alphas[near] - end) > 1e-6:
            # dashed like the curve: of one known at few points it is most of what is seen
            thin = {"color": method.colour, "linestyle": line, "linewidth": 0.9, "zorder": 2}
            axes.plot([end, alphas[near]], [scale * known, values[near]], **thin)
    if not np.isnan(low[0]):
        axes.fill_between(alphas, low, high, color=method.colour, alpha=0.18, linewidth=0)
    published = (reference or {}).get("curves", {}).get(curve_key(entry), {}).get(metric)
    if published:
        hollow = {"markerfacecolor": "none", "markersize": 7.5, "linestyle": "none"}
        values = scale * np.array(published)
        axes.plot(reference["alphas"], values, color=method.colour, marker=method.marker, zorder=2, **hollow)
        figure.key("published values (hollow)", Line2D([], [], color="#444444", marker="o", **hollow))


@styled
def matching_matrix(
    perms: Mapping[str, Any],
    record: Mapping[str, Any],
    matcher: str,
    similarity: Mapping[str, Any] | None = None,
    moved: str = "B",
    columns: int | None = None,
) -> Drawn:
    """The matching of all layers as one block matrix, with lines between layers.

    `perms` {group: (n,)}: a dot in row i, column perm[i] says that unit perm[i] of B takes place i of A.
    `similarity` {group: (n, n)}, rows A and columns B, adds a panel with the soft matching before assignment. `moved`:
    what B is called. `columns`: as many as panels by default; in one the panels are stacked.
    Layers are drawn to scale, or all to one size where the smallest would be too small to see.
    """
    sizes = {group: len(perm) for group, perm in perms.items()}
    to_scale = min(sizes.values()) >= 0.06 * sum(sizes.values())
    spans = [size if to_scale else 1 for size in sizes.values()]
    edges = np.concatenate([[0.0], np.cumsum(spans)])
    panels = 2 if similarity else 1
    columns = columns or panels
    wide = min(columns, panels)
    figure = PaperFigure(columns, (3.9 if similarity else 3.5) * (panels // wide), layout="compressed")
    for index, axes in enumerate(figure.subplots(panels // wide, wide, squeeze=False).ravel()):
        soft = similarity and not index
        for (group, perm), start, span in zip(perms.items(), edges[:-1], spans, strict=True):
            if soft:
                box = {"extent": (start, start + span, start + span, start), "aspect": "auto"}
                values = np.asarray(similarity[group], dtype=float)
                axes.imshow(values, interpolation="nearest", cmap="cividis", **box)
                continue
            places = start + (np.arange(len(perm)) + 0.5) * span / len(perm)
            across = start + (np.asarray(perm) + 0.5) * span / len(perm)
            size = max(0.9, min(5.0, 150 * span / (edges[-1] * len(perm))))
            axes.plot(across, places, "s", color=BLUE, markersize=size, markeredgewidth=0)
            axes.add_patch(Rectangle((start, start), span, span, facecolor="#EAF2F8", zorder=0))
        axes.hlines(edges, 0, edges[-1], color="#333333", linewidth=0.6)
        axes.vlines(edges, 0, edges[-1], color="#333333", linewidth=0.6)
        axes.set(xlim=(0, edges[-1]), ylim=(edges[-1], 0), xlabel=f"units of network {moved}", aspect="equal")
        centres = (edges[:-1] + edges[1:]) / 2
        axes.set_yticks(centres, [f"{group} ({size})" for group, size in sizes.items()] if not index % wide else [])
        axes.set_xticks(centres, list(sizes), rotation=0 if len(sizes) < 5 else 90)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        if not index % wide:
            axes.set_ylabel("units of network A")
        if similarity:
            axes.set_title("permutation" if index else "before assignment\n(bright = alike, scaled per layer)")
    return figure, f"{pool.headline(record)}; matching: {look(MATCHERS, matcher).label}"


@styled
def correlations(arrays: Mapping[str, Any], record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """How alike matched units are: the distribution of their correlation in each layer, a violin per matcher.

    `arrays` holds "corr/<matcher>/<group>" (n,); others are ignored.
    """
    by_matcher = _by_kind(arrays)["corr"]
    groups = list(dict.fromkeys(group for by_group in by_matcher.values() for group in by_group))
    upright = len(groups) > 4 * columns
    figure = PaperFigure(columns, 3.5 if upright else 2.9)
    axes = figure.subplots()
    width = 0.8 / len(by_matcher)
    filled = fills((matcher,) for matcher in by_matcher)
    for index, matcher in enumerate(ranked(by_matcher, MATCHERS)):
        method = look(MATCHERS, matcher)
        spot = method.mark(5, filled[matcher,])
        for number, group in enumerate(groups):
            place = number + (index - (len(by_matcher) - 1) / 2) * width
            values = np.asarray(by_matcher[matcher].get(group, ()), dtype=float)
            values = values[np.isfinite(values)]
            if len(values) > 1 and np.ptp(values) > 0:
                parts = axes.violinplot(values, [place], widths=0.92 * width, showextrema=False)
                for body in parts["bodies"]:
                    body.set(facecolor=method.colour, edgecolor=method.colour, alpha=0.35, linewidth=0.6)
            if len(values):
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
                axes.plot([place] * 2, [low, high], color=method.colour, linewidth=2, solid_capstyle="butt")
                axes.plot(place, middle, **spot)
        figure.key(method.label, Line2D([], [], linewidth=2, **spot))
    axes.axhline(0, color="#333333", linewidth=0.7)
    axes.set_xticks(range(len(groups)), groups, rotation=90 if upright else 0)
    axes.set(ylabel="correlation of matched units", xlim=(-0.6, len(groups) - 0.4))
    axes.grid(False, axis="x")
    figure.key("(marker: median, bar: middle half)", Line2D([], [], color="none"))
    return figure, pool.headline(record)


@styled
def bn_images_study(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any], columns: int = 1) -> Drawn:
    """Accuracy of the fused network against the number of images that re-estimate BatchNorm's statistics.

    Row: {"matcher", "images", "test_accuracy", optionally "alpha" and "seed"}; rows that differ in seed alone
    are averaged, with a bar of one standard deviation. images = 0 (no reset) is a dotted line.
    """
    by_matcher = grouped(rows, "matcher")
    figure = PaperFigure(columns, 3.1)
    axes = figure.subplots()
    end_points(figure, axes, record["parents"], "test_accuracy")
    for (matcher,), fill in fills((matcher,) for matcher in by_matcher).items():
        method = look(MATCHERS, matcher)
        counts, means, spreads = mean_by(by_matcher[matcher], "images", "test_accuracy", 100)
        for mean in means[counts == 0]:
            line = axes.axhline(mean, color=method.colour, linestyle=":", linewidth=1.2)
            figure.key(f"{method.label}, no reset", line)
        some = counts > 0
        bars = {"capsize": 2, "elinewidth": 0.8, "linestyle": CORRECTIONS["bn_reset"].line} | method.mark(fill=fill)
        figure.key(f"{method.label} + BN reset", axes.errorbar(counts[some], means[some], spreads[some], **bars))
    axes.set(xscale="log", xlabel="training images for the reset", ylabel=METRIC_LABELS["test_accuracy"])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(bottom=0)
    alphas = sorted({row["alpha"] for alike in by_matcher.values() for row in alike if "alpha" in row})
    where = (", α = " + ", ".join(f"{alpha:g}" for alpha in alphas)) if alphas else ""
    return figure, pool.headline(record) + where


def record_figures(record: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> dict[str, Figure]:
    """Every figure that a record and its arrays can give, by the word that ends its file's stem.

    By what they hold. Curves: curves, matching_<matcher>, correlations, bn_images, ladder, heads, streams. Rows of
    graph matching at scale: scaling, recovery, objective. Rows of architectures: architectures. Rows of many networks:
    many, cost, simplex, planted, curves. Rows of many sizes: size.
    """
    return {kind: make() for kind, make in drawings(record, arrays or {}).items()}


def draw(
    record: Mapping[str, Any], kind: str = "curves", arrays: Mapping[str, Any] | None = None, **options: Any
) -> Figure:
    """One of `record_figures`, by its word, with `style.ASKED`, such as width="neurips", as options. Raises InputError,
    which lists those this record has, for another word."""
    found = drawings(record, arrays or {})
    check_choice("kind", kind, found)
    return found[kind](**options)


def drawings(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Callable[..., Figure]]:
    """What draws each of `record_figures`, by its word."""
    studies = grouped(record.get("rows", ()), "study")
    of_rows = {"scaling": scaling, "recovery": recovery, "objective": objective_accuracy}
    of_rows |= {"architectures": architectures} | figures_networks.KINDS | figures_size.KINDS
    found = {kind: partial(make, studies[kind], record) for kind, make in of_rows.items() if kind in studies}
    if "many" in studies:
        found["cost"] = partial(figures_networks.cost, studies["many"], record)
    if "curves" not in record:
        return found
    climbs = ladder.is_there(record)
    if not climbs or any(len(curve["points"]) > 1 for curve in record["curves"]):
        found["curves"] = partial(curves, record, reference=pool.reference_for(record))
    by_kind = _by_kind(arrays)
    for matcher, perms in by_kind.get("perm", {}).items():
        perms = {group: perm for group, perm in perms.items() if not group.endswith("]")}  # none inside heads
        if matcher != "none" and perms:
            soft = by_kind.get("soft", {}).get(matcher)
            found[f"matching_{file_word(matcher)}"] = partial(matching_matrix, perms, record, matcher, soft)
    if "corr" in by_kind:
        found["correlations"] = partial(correlations, arrays, record)
    if study := record.get("studies", {}).get("bn_images"):
        found["bn_images"] = partial(bn_images_study, study, record)
    if climbs:
        found["ladder"] = partial(ladder.figure, record)
    return found | of_attention(record, arrays)


def of_attention(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Callable[[], Figure]]:
    """The pictures of attention that a record's arrays can give: heads, streams."""
    by_kind = _by_kind(arrays)
    found = {}
    if "pattern" in by_kind:
        found["heads"] = partial(figures_attention.heads, by_kind["pattern"], by_kind.get("perm", {}), record)
    if "stream" in by_kind:
        found["streams"] = partial(figures_attention.streams, by_kind["stream"], record)
    return found


def _by_kind(arrays: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """{kind: {matcher: {group: values}}} of arrays named "<kind>/<matcher>/<group>"."""
    by_kind: dict[str, dict[str, dict[str, Any]]] = {}
    for name, values in arrays.items():
        kind, matcher, group = (*name.split("/", 2), "", "")[:3]
        by_kind.setdefault(kind, {}).setdefault(matcher, {})[group] = values
    return by_kind
