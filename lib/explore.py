"""Look around by hand: a pair, a matcher, a correction, alpha (notebooks/explore.ipynb shows the panel).

An Explorer keeps what was opened, matched and measured, so that a second look costs nothing, and draws it; a Panel
puts widgets before it. Neither writes a file.
"""

import contextlib
import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from lib import (
    board,
    checks,
    correction,
    experiment,
    fusion,
    matching,
    models,
    plots,
    results,
    symmetry,
    training,
)
from lib.checks import InputError, check_choice
from lib.experiment import Run
from lib.matching import Matching

State = Mapping[str, Tensor]
SLOW = ("least_squares",)  # corrections that take seconds to a minute: fitted when a button says so
FILTERS = 16  # units shown
PALE = "#8C8C8C"


# The loss plane


def corners(a: State, b: State, c: State) -> np.ndarray:
    """Where three networks lie in the plane through them (Garipov et al. 2018): float64 (3, 2), the coordinates of a,
    b, c in the orthonormal basis that Gram–Schmidt makes of b − a and c − a, with a at the origin.

    Raises:
        InputError: they lie on a line, so that there is no plane.
    """
    uu = uv = vv = 0.0
    for name, value in a.items():
        if value.is_floating_point():
            u, v = (other[name].double() - value.double() for other in (b, c))
            uu, uv, vv = uu + float((u * u).sum()), uv + float((u * v).sum()), vv + float((v * v).sum())
    height = vv - uv * uv / uu if uu else 0.0
    if height <= 1e-9 * max(uu, vv):
        raise InputError("A, B and aligned B lie on a line; accepted: a matcher that moves B, such as activation")
    return np.array([[0.0, 0.0], [uu**0.5, 0.0], [uv / uu**0.5, height**0.5]])


def mix(a: State, b: State, c: State, place: np.ndarray, points: np.ndarray) -> dict[str, Tensor]:
    """The network at `place` (2,) of the plane in which a, b, c lie at `points` (3, 2): an affine mixture of every
    floating parameter and buffer. Variances that would be negative are 0; integer buffers come from a."""
    (s, t) = np.linalg.solve((points[1:] - points[0]).T, place - points[0])
    mixed = {}
    for name, value in a.items():
        if value.is_floating_point():
            total = (1 - s - t) * value.double() + s * b[name].double() + t * c[name].double()
            value = (total.clamp(min=0) if name.endswith("running_var") else total).to(value)
        mixed[name] = value
    return mixed


def nodes(marks: np.ndarray, size: int, margin: float = 0.25) -> np.ndarray:
    """About `size` sorted coordinates from below the least to above the largest of `marks`, every mark one of them."""
    marks = np.unique(marks)
    spread = margin * (marks[-1] - marks[0])
    even = np.linspace(marks[0] - spread, marks[-1] + spread, size)
    step = (even[-1] - even[0]) / max(1, size - 1)
    apart = np.abs(even[:, None] - marks).min(axis=1) > step / 2
    apart[[0, -1]] = True
    return np.sort(np.concatenate([even[apart], marks]))


@dataclass(frozen=True)
class Plane:
    """Accuracy and loss (rows, columns) at the nodes y (rows,), x (columns,) of the plane through A, B and aligned B,
    which lie at `points` (3, 2); `note` says on what and how it was measured."""

    points: np.ndarray
    x: np.ndarray
    y: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    note: str

    def at(self, corner: int) -> tuple[float, float]:
        """Accuracy and loss of A (0), B (1) or aligned B (2)."""
        column, row = (
            np.searchsorted(axis, place) for axis, place in zip((self.x, self.y), self.points[corner], strict=True)
        )
        return float(self.accuracy[row, column]), float(self.loss[row, column])


# Figures


@plots.styled
def plane_figure(plane: Plane, title: str, alpha: float) -> Figure:
    """Accuracy and loss over the plane (dots: measured); A, B, aligned B, the two straight paths, and the fused network
    at `alpha`."""
    figure = plots.PaperFigure(figsize=(plots.PAGE, 3.3))
    # A loss of twice a guess among ten classes is as bad as any: above it one colour.
    loss = np.nan_to_num(plane.loss, nan=np.inf, posinf=np.inf).clip(max=2 * np.log(10))
    shown = (
        ("accuracy (%)", 100 * plane.accuracy, np.linspace, "cividis", "{:.0f} %"),
        ("cross-entropy (nats; levels by ratio)", loss, np.geomspace, "cividis_r", "{:.2g}"),
    )
    a, b, moved = plane.points
    for index, (name, values, spaced, colours, form) in enumerate(shown):
        axes = figure.add_subplot(1, 2, index + 1)
        low, high = float(values.min()), float(values.max())
        levels = spaced(low, max(high, 1.01 * low, low + 1e-3), 13)
        drawn = axes.contourf(plane.x, plane.y, values.clip(max=levels[-1]), levels=levels, cmap=colours)
        bar = figure.colorbar(drawn, ax=axes, pad=0.02, ticks=levels[::3], shrink=0.85)
        bar.ax.set_yticklabels([form.format(level) for level in levels[::3]])
        bar.ax.tick_params(length=0)
        axes.plot(*np.meshgrid(plane.x, plane.y), ".", color="black", markersize=1.4, markeredgewidth=0, alpha=0.5)
        for end, line in ((b, (0, (3, 2))), (moved, "-")):
            axes.plot(*np.stack([a, end]).T, color="white", linestyle=line, linewidth=1.3)
        axes.plot(*((1 - alpha) * a + alpha * moved), **plots.mark("o", 7), color=plots.VERMILLION, zorder=5)
        for corner, label in enumerate(("A", "B", "aligned B")):
            text = f"{label}: {form.format((100, 1)[index] * plane.at(corner)[index])}"
            box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.2}
            style = {"ha": "center", "fontsize": 6.5, "bbox": box, "zorder": 6, "textcoords": "offset points"}
            axes.plot(*plane.points[corner], "o", color="white", markersize=5, markeredgecolor="black", zorder=4)
            axes.annotate(text, plane.points[corner], (0, -12 if corner < 2 else 7), **style)
        axes.set(title=name, xlabel="distance along B − A", aspect="equal")
        axes.grid(False)
    figure.axes[0].set_ylabel("distance across it")
    handles = {"A to B": (0, (3, 2)), "A to aligned B": "-"}
    keys = {label: Line2D([], [], color=PALE, linestyle=line) for label, line in handles.items()}
    keys[f"fused, α = {alpha:g}"] = Line2D([], [], color=plots.VERMILLION, linestyle="none", **plots.mark("o", 7))
    plots.legend_below(figure, keys)
    plots.headed(figure, title)
    return figure


@plots.styled
def filters_figure(rows: Mapping[str, Tensor], correlation: np.ndarray | None, title: str) -> Figure:
    """First-layer filters, a row per network and a column per unit of A: of more than 16 the 16 whose filters in the
    first row are largest.

    Args:
        rows: {name: (units, channels, height, width)}; the first is A. A column has one scale for all rows, so that a
            filter that averaging has blurred looks faint.
        correlation: (units,), of each unit of A with the unit matched to it, written over its column.
    """
    first = next(iter(rows.values()))
    size = first.flatten(1).norm(dim=1)
    units = size.topk(min(FILTERS, len(size))).indices.sort().values.tolist()
    cell = min(0.5, (plots.PAGE - 1.15) / len(units))  # inches
    figure = plots.PaperFigure(figsize=(plots.PAGE, 0.75 + cell * len(rows)))
    axes = figure.subplots()
    for column, unit in enumerate(units):
        limit = max(float(weight[unit].abs().max()) for weight in rows.values()) or 1.0
        for row, weight in enumerate(rows.values()):
            image = weight[unit].movedim(0, -1).float().cpu().numpy() / limit
            image = (1 + image) / 2 if image.shape[-1] == 3 else image.mean(axis=-1)
            extent = (column + 0.06, column + 0.94, row + 0.94, row + 0.06)
            axes.imshow(image, extent=extent, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    heads = [f"{u}" if correlation is None else f"{u}\n{correlation[u]:.2f}".replace("-", "−") for u in units]
    axes.set(xlim=(0, len(units)), ylim=(len(rows), 0), aspect="equal")
    axes.set_xticks(np.arange(len(units)) + 0.5, heads, fontsize=6.5, color="#444444")
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    plots.headed(figure, title)
    return figure


# What was opened, matched and measured


@dataclass
class Pair:
    """A pair as it was opened, what its parents reach, and a line about its data set where that is not the one it was
    trained on."""

    run: Run
    model_a: nn.Module
    model_b: nn.Module
    parents: dict[str, dict[str, float | None]]
    note: str
    a: State = field(repr=False)
    b: State = field(repr=False)


@dataclass(frozen=True)
class Aligned:
    """B moved by one matcher, and the arrays that figures need."""

    found: Matching
    state: State = field(repr=False)
    arrays: Mapping[str, np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class Point:
    """One fused network, measured; `first` is its first layer's weight."""

    values: dict[str, float | None]
    first: Tensor = field(repr=False)


def _first(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, Tensor]]:
    """The first `count` images and labels of batches."""
    taken = []
    for images, labels in batches:
        if count > 0:
            taken.append((images[:count], labels[:count]))
            count -= len(labels)
    return taken


class Explorer:
    """Opens, matches, fuses, corrects and measures what is asked for, once; every figure is made from that.

    Args:
        parameters: those of the notebook's parameters cell, by name.

    Raises:
        InputError: in one line, when a parameter is not accepted or the pair's data set cannot be had.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        names = ("pair", "matcher", "correction", "alpha", "alphas", "dataset", "device", "images")
        names += ("match_images", "correct_images", "plane_images", "plane_size")
        self.given = {name: parameters[name] for name in names}
        self._kept: dict[tuple, Any] = {}
        self._unreachable: dict[str, str] = {}
        experiment.check_share("alpha", self.given["alpha"])
        for name, least in (("images", 1), ("plane_images", 1), ("plane_size", 2)):
            checks.check_whole(name, self.given[name], least)
        run = self.pair(self.given["pair"]).run
        run.check_matcher(self.given["matcher"])
        run.check_correction(self.given["correction"])

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def pair(self, name: str) -> Pair:
        """The pair of that name, opened and measured."""
        return self._once(("pair", name), lambda: self._open(name))

    def _open(self, name: str) -> Pair:
        shipped = board.pairs()
        check_choice("pair", name, shipped)
        spec = shipped[name]["spec"]
        dataset, note = self._dataset(name, shipped)
        given = (
            self.given | board.FIXED | {"dataset": dataset, "checkpoint_a": name, "checkpoint_b": board.partner(name)}
        )
        given |= {"matchers": [given["matcher"]], "corrections": [given["correction"]], "limit_test": given["images"]}
        presets = {"quick": {"width": spec["width"]}}
        run = experiment.begin(
            "explore", spec["model"], given, presets=presets, norm=spec["norm"], lenient=True, writes=False
        )
        model_a, model_b = run.open_pair()
        states = (training.state_of(model) for model in (model_a, model_b))
        return Pair(run, model_a, model_b, run.parents(model_a, model_b), note, *states)

    def _dataset(self, name: str, shipped: Mapping[str, Mapping]) -> tuple[str, str]:
        """The data set to look at a pair on, and why it is not the one that the pair was trained on."""
        if self.given["dataset"] != "auto":
            return self.given["dataset"], ""
        model, trained_on = shipped[name]["spec"]["model"], shipped[name]["dataset"]
        grey = models.ARCHITECTURES[model][2][0] == 1
        for dataset in (trained_on, "mnist-5k" if grey else "cifar10"):
            if dataset in self._unreachable:
                continue
            try:
                training.open_dataset(dataset, model)
            except InputError as error:
                self._unreachable[dataset] = str(error)
            else:
                return dataset, "" if dataset == trained_on else f"{self._unreachable[trained_on]}: using {dataset}"
        others = [other for other, said in shipped.items() if said["dataset"] != trained_on]
        raise InputError(
            f"{name}: {self._unreachable[trained_on]}; pairs that work here: {', '.join(others) or 'none'}"
        )

    def aligned(self, name: str, matcher: str) -> Aligned:
        """B of that pair moved by that matcher, proved to leave its outputs unchanged."""
        return self._once(("aligned", name, matcher), lambda: self._align(name, matcher))

    def _align(self, name: str, matcher: str) -> Aligned:
        pair = self.pair(name)
        run = pair.run
        found = run.match_by(matcher, pair.model_a, pair.model_b, progress=False)
        if matcher == "none":  # its correlations are drawn from those of "activation", beside which it stands
            arrays = results.matching_arrays(found)
        else:
            plain = found if matcher == "activation" else self.aligned(name, "activation").found
            arrays = results.matching_arrays(self.aligned(name, "none").found, found, correlation=plain)
        return Aligned(found, symmetry.permute(pair.b, run.groups, found), arrays)

    def is_measured(self, name: str, matcher: str, corrected: str, alpha: float) -> bool:
        return ("point", name, matcher, corrected, round(alpha, 6)) in self._kept

    def point(self, name: str, matcher: str, corrected: str, alpha: float) -> Point:
        """The fused network at `alpha`, measured on the test images."""
        key = ("point", name, matcher, corrected, round(alpha, 6))
        return self._once(key, lambda: self._measure(name, matcher, corrected, alpha))

    def _measure(self, name: str, matcher: str, corrected: str, alpha: float) -> Point:
        pair = self.pair(name)
        run, how, options = pair.run, correction.CORRECTIONS[corrected], {}
        run.check_correction(corrected)
        aligned = self.aligned(name, matcher)
        template = run.build().to(run.device)
        batches = (
            self._once(("batches", name, how.augmented), lambda: run.correct_batches(corrected)) if how.images else None
        )
        if how.moments:
            options["moments"] = self._once(
                ("moments", name, matcher, how.augmented),
                lambda: correction.moments(
                    template, pair.a, aligned.state, run.groups, batches, device=run.device, progress=False
                ),
            )
        fused = correction.correct(
            template, pair.a, aligned.state, alpha, corrected,
            groups=run.groups, batches=batches, device=run.device, progress=False, **options,
        )  # fmt: skip
        values = fusion.measure(template, fused, run.test, device=run.device)
        return Point(values, fused[run.groups.layers[0].weight].clone())

    def record(self, name: str, images: str) -> dict[str, Any]:
        """What figures read of a pair: a run record of every point measured so far, and of plain averaging without
        matching at the notebook's alphas; `images` says on what. Never written."""
        pair, curves = self.pair(name), {}
        for alpha in self.given["alphas"]:
            self.point(name, "none", "none", alpha)
        for key, kept in self._kept.items():
            if key[:2] == ("point", name):
                curves.setdefault(key[2:4], []).append({"alpha": key[4], **kept.values})
        entries = [
            results.curve_entry(
                self.aligned(name, matcher).found, corrected, points, fusion.barrier(points, pair.parents)
            )
            for (matcher, corrected), points in curves.items()
        ]
        for entry in entries:
            entry["points"].sort(key=lambda point: point["alpha"])
        made = self._once(("record", name), lambda: pair.run.record(pair.parents, entries))
        return made | {"dataset": f"{pair.run.dataset.name} ({images})", "curves": entries}

    def describe(self, name: str) -> str:
        """A pair in a few lines: what, on what, and what its parents reach."""
        pair = self.pair(name)
        ends = ", ".join(f"{side.upper()} {100 * pair.parents[side]['test_accuracy']:.2f} %" for side in ("a", "b"))
        lines = [pair.note, f"{name} and {board.partner(name)}: {results.model_label(pair.run.architecture)}"]
        return "\n".join([*filter(None, lines), f"{pair.run.dataset.name}, {self._on_test(name)}: {ends}"])

    def _on_test(self, name: str) -> str:
        return f"first {len(self.pair(name).run.dataset.test):,} test images"

    def _on_train(self, name: str) -> str:
        run = self.pair(name).run
        return f"first {min(run.match_images, len(run.dataset.train)):,} training images"

    def plane(
        self, name: str, matcher: str, corrected: str, tick: Callable[[int, int], None] = lambda done, total: None
    ) -> Plane:
        """The plane through A, B and aligned B, measured on the first plane_images test images. BatchNorm's statistics
        are mixed like the weights, or reset at every node under bn_reset; other corrections are not applied.

        Args:
            tick: called with how many nodes of how many are measured.
        """
        key = ("plane", name, matcher, self._resets(name, corrected))
        return self._once(key, lambda: self._plane(name, matcher, corrected, tick))

    def is_plane_measured(self, name: str, matcher: str, corrected: str) -> bool:
        return ("plane", name, matcher, self._resets(name, corrected)) in self._kept

    def _resets(self, name: str, corrected: str) -> bool:
        return corrected == "bn_reset" and self.pair(name).run.norm is not None

    def _plane(self, name: str, matcher: str, corrected: str, tick: Callable[[int, int], None]) -> Plane:
        pair, moved = self.pair(name), self.aligned(name, matcher).state
        run, resets = pair.run, self._resets(name, corrected)
        points = corners(pair.a, pair.b, moved)
        x, y = (nodes(points[:, axis], self.given["plane_size"]) for axis in (0, 1))
        test, train = (_first(batches, self.given["plane_images"]) for batches in (run.test, run.match_batches))
        network = run.build().to(run.device)
        values = np.empty((2, len(y), len(x)))
        for row, column in np.ndindex(values.shape[1:]):
            tick(row * len(x) + column, values[0].size)
            training.load_state(network, mix(pair.a, pair.b, moved, np.array([x[column], y[row]]), points))
            if resets:
                correction.reset(network, [images for images, _ in train])
            values[:, row, column] = training.evaluate(network, test, device=run.device)
        tick(values[0].size, values[0].size)
        test_images, train_images = (sum(len(labels) for _, labels in batches) for batches in (test, train))
        note = f"first {test_images:,} test images"
        if run.norm:
            how = f"reset on the first {train_images:,} training images" if resets else "mixed like the weights"
            note += f"; BatchNorm statistics {how}"
        return Plane(points, x, y, *values, note)

    # Figures of one choice

    def path(self, name: str, matcher: str, corrected: str, alpha: float) -> Figure:
        """Accuracy and loss along alpha: the points measured of this choice, of plain averaging without matching, and
        of the last few other choices; a dot is the fused network at `alpha`."""
        record = self.record(name, self._on_test(name))
        kept = (("none", "none"), (matcher, corrected))
        others = [curve for curve in record["curves"] if (curve["matcher"], curve["correction"]) not in kept]
        record["curves"] = [curve for curve in record["curves"] if curve not in others[:-6]]
        figure = plots.curves(record)
        for axes, metric, scale in zip(figure.axes, ("test_accuracy", "test_loss"), (100, 1), strict=True):
            axes.axvline(alpha, color=PALE, linewidth=0.8, zorder=0)
            if self.is_measured(name, matcher, corrected, alpha):
                value = scale * self.point(name, matcher, corrected, alpha).values[metric]
                axes.plot(alpha, value, color=plots.VERMILLION, zorder=6, **plots.mark("o", 7))
        return figure

    def filters(self, name: str, matcher: str, corrected: str, alpha: float) -> Figure:
        """First-layer filters of A, B, aligned B and, where it is measured, the fused network."""
        pair, aligned = self.pair(name), self.aligned(name, matcher)
        weight = pair.run.groups.layers[0].weight
        rows = {"A": pair.a[weight], "B": pair.b[weight], "aligned B": aligned.state[weight]}
        if self.is_measured(name, matcher, corrected, alpha):
            rows[f"fused, α = {alpha:g}"] = self.point(name, matcher, corrected, alpha).first
        channels, height, width = models.ARCHITECTURES[pair.run.model][2]
        # a linear layer's rows are images
        rows = {
            key: value.view(-1, channels, height, width) if value.dim() == 2 else value for key, value in rows.items()
        }
        group = next((g for g in pair.run.groups if self._starts(pair.run, g, weight)), None)
        similarity = aligned.arrays.get(f"corr/{matcher}/{group}")
        units = len(rows["A"])
        which = f"the {FILTERS} largest of {units}" if units > FILTERS else f"{units} units"
        title = f"{results.model_label(pair.run.architecture)}: first-layer filters ({which})"
        title += ", with the correlation of matched units" if similarity is not None else ""
        return filters_figure(rows, similarity, title)

    @staticmethod
    def _starts(run: Run, group: str, weight: str) -> bool:
        return any(member.tensor == weight and member.axis == 0 for member in run.groups[group].members)

    def correlations(self, name: str, matcher: str) -> Figure:
        """The correlation of matched units in each layer, beside that without matching."""
        arrays = self.aligned(name, "activation" if matcher == "none" else matcher).arrays
        if matcher == "none":
            arrays = {key: value for key, value in arrays.items() if key.split("/")[1] == "none"}
        return plots.correlations(arrays, self.record(name, self._on_train(name)))

    def permutations(self, name: str, matcher: str) -> Figure:
        """The permutation matrices, beside what was assigned where the matcher has it."""
        found = self.aligned(name, matcher).found
        soft = {group: values.cpu() for group, values in (found.similarity or {}).items()}
        looks = self._on_train(name) if matching.MATCHERS[matcher].images else "weights alone"
        return plots.matching_matrix(dict(found), self.record(name, looks), matcher, soft or None)

    def plane_figure(self, name: str, matcher: str, corrected: str, alpha: float, **options) -> Figure:
        """The loss plane (measured where it is not yet)."""
        plane = self.plane(name, matcher, corrected, **options)
        more = [f"matching: {results.MATCHER_LABELS[matcher]}"]
        if corrected not in ("none", "bn_reset"):
            more.append(f"without {results.CORRECTION_LABELS[corrected]}")
        title = results.headline(self.record(name, plane.note), *more)
        return plane_figure(plane, title, alpha)

    def figures(self, plane: bool = False) -> Iterator[Figure]:
        """What the panel shows of the notebook's own choice, one after the other."""
        chosen = [self.given[key] for key in ("pair", "matcher", "correction", "alpha")]
        name, matcher, corrected, alpha = chosen
        for each in sorted({alpha} if corrected in SLOW else {*self.given["alphas"], alpha}):
            self.point(name, matcher, corrected, each)
        yield self.path(*chosen)
        yield self.filters(*chosen)
        yield self.correlations(name, matcher)
        yield self.permutations(name, matcher)
        if plane:
            yield self.plane_figure(*chosen)

    def summary(self, name: str, matcher: str, corrected: str, alpha: float) -> dict[str, float]:
        """Accuracy and loss at `alpha`, of the parents, and how far above the line between the parents it is."""
        values, parents = self.point(name, matcher, corrected, alpha).values, self.pair(name).parents
        line = (1 - alpha) * parents["a"]["test_accuracy"] + alpha * parents["b"]["test_accuracy"]
        return {
            "accuracy": values["test_accuracy"],
            "loss": values["test_loss"],
            "above": values["test_accuracy"] - line,
        }


# The panel


TABS = ("Fusing", "Matching", "Loss plane")


def css(name: str) -> str:
    """The CSS class of a part of the panel."""
    return f"fusebook-{name.lower().replace(' ', '-')}"


def _put(image: widgets.Image, figure: Figure | None) -> None:
    image.value = figure._repr_png_() if figure else b""
    image.layout.display = "" if figure else "none"


class Panel(widgets.VBox):
    """The widgets: choices, alpha, what it reaches, the figures of the tab in front. A mistake is told in one line."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        given, shipped = explorer.given, board.pairs()
        wide = {"description_width": "initial"}

        def choice(description: str, options: list, value: str, width: str) -> widgets.Dropdown:
            layout = widgets.Layout(width=width)
            return widgets.Dropdown(options=options, value=value, description=description, style=wide, layout=layout)

        names = [
            (f"{results.model_label(said['spec'] | {'name': said['spec']['model']})}: {name}", name)
            for name, said in shipped.items()
        ]
        self.pair = choice("pair", names, given["pair"], "340px")
        self.matcher = choice("matcher", list(matching.MATCHERS), given["matcher"], "220px")
        self.correction = choice("correction", list(correction.CORRECTIONS), given["correction"], "220px")
        self.alpha = widgets.FloatSlider(
            value=given["alpha"], min=0, max=1, step=0.05, description="α, share of B", readout_format=".2f",
            continuous_update=False, style=wide, layout=widgets.Layout(width="440px"),
        )  # fmt: skip
        self.fit = widgets.Button(description="fit and measure", button_style="primary")
        self.whole = widgets.Button(description="measure the path", tooltip=f"at {given['alphas']}")
        self.bar = widgets.IntProgress(layout=widgets.Layout(width="220px", display="none"))
        self.status, self.readout = widgets.HTML(), widgets.HTML()
        self.images = {tab: [widgets.Image(format="png") for _ in range(2 - (tab == TABS[2]))] for tab in TABS}
        for image in self._every_image():
            image.layout = widgets.Layout(max_width="900px", width="100%", object_fit="contain")
        self.plane = widgets.Button(description="measure the plane", button_style="primary")
        self.hint = widgets.HTML()
        boxes = [widgets.VBox(self.images[tab]) for tab in TABS]
        boxes[2].children = (widgets.HBox([self.plane, self.hint]), *boxes[2].children)
        self.tabs = widgets.Tab(boxes, titles=TABS)
        super().__init__([
            widgets.HBox([self.pair, self.matcher, self.correction], layout=widgets.Layout(flex_flow="row wrap")),
            widgets.HBox([self.alpha, self.whole, self.fit], layout=widgets.Layout(flex_flow="row wrap")),
            self.readout, widgets.HBox([self.bar, self.status]), self.tabs,
        ])  # fmt: skip
        for part, name in ((self, "panel"), (self.status, "status"), (self.readout, "readout")):
            part.add_class(css(name))
        for box, tab in zip(boxes, TABS, strict=True):
            box.add_class(css(tab))
        for control in (self.pair, self.matcher, self.correction, self.alpha):
            control.observe(lambda _: self.refresh(), "value")
        self.tabs.observe(lambda _: self.refresh(), "selected_index")
        self.fit.on_click(lambda _: self.refresh(fit=True))
        self.whole.on_click(lambda _: self.measure_path())
        self.plane.on_click(lambda _: self.measure_plane())
        self.refresh()

    @property
    def chosen(self) -> tuple[str, str, str, float]:
        return self.pair.value, self.matcher.value, self.correction.value, self.alpha.value

    def _say(self, text: str, colour: str = "#555") -> None:
        self.status.value = f'<div style="color:{colour}; min-height:1.5em">{html.escape(text)}</div>'

    @contextlib.contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """Says that something is being worked on; a mistake of the user is told in its place."""
        self._say(f"working: {what} …", plots.BLUE)
        try:
            yield
        except InputError as error:
            self._clear()
            self._say(str(error), plots.VERMILLION)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}", plots.VERMILLION)
            raise
        else:
            self._say(self.explorer.pair(self.pair.value).note)
        finally:
            self.bar.layout.display = "none"

    def _clear(self) -> None:
        self.readout.value = '<div style="font-size:1.5em; min-height:2.4em">—</div>'
        for image in self._every_image():
            _put(image, None)

    def _every_image(self) -> list[widgets.Image]:
        return [image for listed in self.images.values() for image in listed]

    def _tick(self, done: int, total: int) -> None:
        self.bar.layout.display = ""
        self.bar.value, self.bar.max = done, total

    def refresh(self, fit: bool = False) -> None:
        """Measures what is chosen, unless it is measured or slow and nobody asked to `fit` it, and shows it."""
        name, matcher, corrected, alpha = self.chosen
        slow = corrected in SLOW
        self.fit.layout.display = "" if slow else "none"
        with self._working(f"{matcher} + {corrected} at α = {alpha:.2f}"):
            self.explorer.pair(name).run.check_correction(corrected)
            if fit or not slow or self.explorer.is_measured(*self.chosen):
                self.explorer.point(*self.chosen)
            self._show()

    def measure_path(self) -> None:
        """Measures the path at the notebook's alphas, and shows it."""
        name, matcher, corrected, _ = self.chosen
        alphas = self.explorer.given["alphas"]
        with self._working(f"the path under {matcher} + {corrected}"):
            for done, alpha in enumerate(alphas):
                self._tick(done, len(alphas))
                self.explorer.point(name, matcher, corrected, alpha)
            self._show()

    def measure_plane(self) -> None:
        """Measures the loss plane, and shows it."""
        with self._working("the plane through A, B and aligned B"):
            self.explorer.plane(*self.chosen[:3], tick=self._tick)
            self._show()

    def _show(self) -> None:
        name, matcher, corrected, alpha = self.chosen
        explorer = self.explorer
        self._tell()
        tab = TABS[self.tabs.selected_index or 0]
        if tab == "Fusing":
            figures = [explorer.path(*self.chosen), explorer.filters(*self.chosen)]
        elif tab == "Matching":
            figures = [explorer.correlations(name, matcher), explorer.permutations(name, matcher)]
        else:
            ready = explorer.is_plane_measured(name, matcher, corrected)
            figures = [explorer.plane_figure(*self.chosen)] if ready else []
            self.plane.disabled = ready
            count, images = explorer.given["plane_size"] ** 2, explorer.given["plane_images"]
            self.hint.value = "" if ready else f"about {count} networks, each on {images} test images"
        for image, figure in zip(self.images[tab], figures or [None] * 2, strict=False):
            _put(image, figure)

    def _tell(self) -> None:
        """The numbers over the figures."""
        name, _, corrected, alpha = self.chosen
        pair = self.explorer.pair(name)
        run = pair.run
        where = f"{run.dataset.name}, first {len(run.dataset.test):,} test images, one pair (n = 1)"
        ends = " · ".join(
            f"{side.upper()} {100 * values['test_accuracy']:.1f} % ({values['test_loss']:.3f})"
            for side, values in pair.parents.items()
        )
        if self.explorer.is_measured(*self.chosen):
            values = self.explorer.summary(*self.chosen)
            above = 100 * values["above"]
            big = f"{100 * values['accuracy']:.1f} %"
            loss = f"cross-entropy {values['loss']:.3f} nats"
            line = f"{abs(above):.1f} points {'above' if above >= 0 else 'below'} the line between the parents"
        else:
            big, loss, line = "—", "not fitted yet", f"{corrected} takes seconds to a minute: press fit and measure"
        self.readout.value = (
            '<div style="display:flex; gap:1.6em; align-items:baseline; flex-wrap:wrap; line-height:1.4">'
            f'<span class="fusebook-accuracy" style="font-size:1.9em; font-weight:600">{big}</span>'
            f"<span><b>{loss}</b> at α = {alpha:.2f}<br>{line}</span>"
            f'<span style="color:#555">parents: {ends}<br>{where}</span></div>'
        )
