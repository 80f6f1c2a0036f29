"""Look around by hand: a pair, a matcher, a correction, alpha (notebooks/explore.ipynb shows the panel).

An Explorer keeps what was opened, matched and measured, so that a second look costs nothing, and draws it; a Panel
puts widgets before it. Neither writes a file.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import fusion, matching, models, symmetry
from ..checks import InputError, check_choice, check_injected, check_whole
from ..matching import Matching
from ..paper import figures, pool
from ..paper.names import CORRECTIONS, MATCHERS, look, model_label
from ..paper.style import VERMILLION, mark
from ..records import curve_entry, matching_arrays
from ..study import board
from ..study.parameters import check_share
from ..study.run import Run, begin
from .plane import FILTERS, PALE, Plane, State, corners, filters_figure, mix, nodes, plane_figure


def is_slow(correction: str) -> bool:
    """Whether a correction takes seconds to a minute: it is fitted when a button says so."""
    return fusion.CORRECTIONS[fusion.read_correction(correction)[0]].slow


@dataclass
class Pair:
    """A pair as it was opened, what its parents reach, and a line about its data set where that is not the one it was
    trained on."""

    run: Run
    networks: list[nn.Module]
    parents: dict[str, dict[str, float | None]]
    note: str
    states: list[State] = field(repr=False)


@dataclass(frozen=True)
class Matched:
    """A pair aligned by one matcher, and the arrays that figures need."""

    aligned: fusion.Aligned
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def matching(self) -> Matching:
        """The map that moved B."""
        return self.aligned.maps[1]

    @property
    def moved(self) -> State:
        """B in A's order."""
        return self.aligned.states[1]


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


def _once(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a method's answers, by its name and its arguments; those given by keyword play no part."""

    @functools.wraps(method)
    def kept(explorer: "Explorer", *given: Any, **options: Any) -> Any:
        key = (method.__name__, *(round(part, 6) if isinstance(part, float) else part for part in given))
        if key not in explorer._kept:
            explorer._kept[key] = method(explorer, *key[1:], **options)
        return explorer._kept[key]

    return kept


class Explorer:
    """Opens, matches, fuses, corrects and measures what is asked for, once; every figure is made from that.

    Args:
        parameters: those of the notebook's parameters cell, by name.

    Raises:
        InputError: in one line, when a parameter is not accepted or the pair's data set cannot be had.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        names = ("pair", "matcher", "correction", "alpha", "alphas", "dataset", "device", "images")
        names += ("match_images", "correct_images", "plane_images", "plane_size", "match_seed")
        check_injected(parameters)
        self.given = {name: parameters[name] for name in names}
        self._kept: dict[tuple, Any] = {}
        self._unreachable: dict[str, str] = {}
        check_share("alpha", self.given["alpha"])
        for name, least in (("images", 1), ("plane_images", 1), ("plane_size", 2)):
            check_whole(name, self.given[name], least)
        run = self.pair(self.given["pair"]).run
        for name, check in (("matcher", run.check_matcher), ("correction", run.check_correction)):
            check(self.given[name])
            self.given[name] = getattr(run.settings, f"{name}s")[0]  # as it is recorded

    @_once
    def pair(self, name: str) -> Pair:
        """The pair of that name, opened and measured."""
        shipped = board.pairs()
        check_choice("pair", name, shipped)
        spec = shipped[name]["spec"]
        dataset, note = self._dataset(name, shipped)
        given = self.given | board.FIXED
        given |= {"dataset": dataset, "checkpoint_a": name, "checkpoint_b": board.partner(name)}
        given |= {"matchers": [given["matcher"]], "corrections": [given["correction"]], "limit_test": given["images"]}
        given["controls"] = [control for control, row in fusion.CONTROLS.items() if row.quick]
        presets = {"quick": {"width": spec["width"]}}
        run = begin("explore", spec["model"], given, presets=presets, norm=spec["norm"], lenient=True, writes=False)
        run.leave_out_inapplicable("controls", say=False)
        networks = run.open_pair()
        return Pair(run, networks, run.parents(networks), note, [models.state_of(network) for network in networks])

    def _dataset(self, name: str, shipped: Mapping[str, Mapping]) -> tuple[str, str]:
        """The data set to look at a pair on, and why it is not the one that the pair was trained on."""
        if self.given["dataset"] != "auto":
            return self.given["dataset"], ""
        model, trained_on = shipped[name]["spec"]["model"], shipped[name]["dataset"]
        grey = models.ARCHITECTURES[model].shape[0] == 1
        for dataset in (trained_on, "mnist-5k" if grey else "cifar10"):
            if dataset in self._unreachable:
                continue
            try:
                models.open_dataset(dataset, model)
            except InputError as error:
                self._unreachable[dataset] = str(error)
            else:
                return dataset, "" if dataset == trained_on else f"{self._unreachable[trained_on]}: using {dataset}"
        others = ", ".join(other for other, sidecar in shipped.items() if sidecar["dataset"] != trained_on)
        raise InputError(f"{name}: {self._unreachable[trained_on]}; pairs that work here: {others or 'none'}")

    @_once
    def matched(self, name: str, matcher: str) -> Matched:
        """That pair aligned by that matcher, proved to leave B's outputs unchanged."""
        pair = self.pair(name)
        maps = pair.run.match_by(matcher, pair.networks, progress=False)
        if matcher == "none":  # its correlations are drawn from those of "activation", beside which it stands
            arrays = matching_arrays(maps[1])
        else:
            plain = maps[1] if matcher == "activation" else self.matched(name, "activation").matching
            arrays = matching_arrays(self.matched(name, "none").matching, maps[1], correlation=plain)
        return Matched(fusion.align(pair.networks, pair.run.groups, maps), arrays)

    def is_measured(self, name: str, matcher: str, corrected: str, alpha: float) -> bool:
        return ("point", name, matcher, corrected, round(alpha, 6)) in self._kept

    @_once
    def point(self, name: str, matcher: str, corrected: str, alpha: float) -> Point:
        """The fused network at `alpha`, measured on the test images."""
        run, aligned = self.pair(name).run, self.matched(name, matcher).aligned
        run.check_correction(corrected)
        row, images = fusion.CORRECTIONS[fusion.read_correction(corrected)[0]], run.correct_batches(corrected)
        options = {"images": images, "device": run.device, "progress": False}
        if row.moments:
            options["moments"] = self._moments(name, matcher, row.augmented, images=images)
        fused = fusion.correct(aligned, alpha, corrected, **options)
        values = fusion.measure(run.template, fused.state, run.test, ensemble=run.against, device=run.device)
        return Point(values, fused.state[run.groups.layers[0].weight].clone())

    @_once
    def _moments(self, name: str, matcher: str, augmented: bool, *, images: Any) -> Any:
        run, aligned = self.pair(name).run, self.matched(name, matcher).aligned
        return fusion.moments(aligned, images, device=run.device, progress=False)

    @_once
    def controls(self, name: str) -> dict[str, dict[str, Any]]:
        """What a pair's quick controls reach, as far as it can take them; what they choose they choose by as many
        training images as there are test images."""
        pair = self.pair(name)
        held_out = pair.run.held_out(most=self.given["images"])
        return pair.run.controls(pair.networks, pair.parents, held_out, progress=False)

    def record(self, name: str, images: str) -> dict[str, Any]:
        """What figures read of a pair: a run record of every point measured so far, and of plain averaging without
        matching at the notebook's alphas; `images` says on what. Never written."""
        pair, curves = self.pair(name), {}
        for alpha in self.given["alphas"]:
            self.point(name, "none", "none", alpha)
        for (kind, *key), kept in self._kept.items():
            if (kind, key[0]) == ("point", name):
                curves.setdefault(tuple(key[1:3]), []).append({"alpha": key[3], **kept.values})
        entries = []
        for (matcher, corrected), points in curves.items():
            points.sort(key=lambda point: point["alpha"])
            barrier = fusion.barrier(points, pair.parents)
            entries.append(curve_entry(self.matched(name, matcher).matching, corrected, points, barrier))
        return self._record(name, curves=entries) | {
            "dataset": f"{pair.run.dataset.name} ({images})",
            "curves": entries,
        }

    @_once
    def _record(self, name: str, *, curves: list[dict[str, Any]]) -> dict[str, Any]:
        pair = self.pair(name)
        return pair.run.record(pair.parents, curves)

    def describe(self, name: str) -> str:
        """A pair in a few lines: what, on what, and what its parents reach."""
        pair = self.pair(name)
        ends = ", ".join(f"{side.upper()} {100 * pair.parents[side]['test_accuracy']:.2f} %" for side in ("a", "b"))
        if pair.run.dataset.test.is_text:
            each = " and ".join(f"{models.perplexity(pair.parents[side]['test_loss']):.2f}" for side in ("a", "b"))
            ends += f", perplexity {each}"
        lines = [pair.note, f"{name} and {board.partner(name)}: {model_label(pair.run.architecture)}"]
        return "\n".join([*filter(None, lines), f"{pair.run.dataset.name}, {self._on_test(name)}: {ends}"])

    def _on_test(self, name: str) -> str:
        return f"first {len(self.pair(name).run.dataset.test):,} test images"

    def _on_train(self, name: str) -> str:
        run = self.pair(name).run
        return f"first {min(run.settings.match_images, len(run.dataset.train)):,} training images"

    def plane(
        self, name: str, matcher: str, corrected: str, tick: Callable[[int, int], None] = lambda done, total: None
    ) -> Plane:
        """The plane through A, B and aligned B, measured on the first plane_images test images. BatchNorm's statistics
        are mixed like the weights, or reset at every node under bn_reset; other corrections are not applied.

        Args:
            tick: called with how many nodes of how many are measured.
        """
        return self._plane(name, matcher, self._resets(name, corrected), tick=tick)

    def is_plane_measured(self, name: str, matcher: str, corrected: str) -> bool:
        return ("_plane", name, matcher, self._resets(name, corrected)) in self._kept

    def _resets(self, name: str, corrected: str) -> bool:
        return corrected == "bn_reset" and self.pair(name).run.norm == "batch"

    @_once
    def _plane(self, name: str, matcher: str, resets: bool, *, tick: Callable[[int, int], None]) -> Plane:
        pair, moved, run = self.pair(name), self.matched(name, matcher).moved, self.pair(name).run
        points = corners(*pair.states, moved)
        x, y = (nodes(points[:, axis], self.given["plane_size"]) for axis in (0, 1))
        test, train = (_first(batches, self.given["plane_images"]) for batches in (run.test, run.match_batches))
        network = run.template
        values = np.empty((2, len(y), len(x)))
        for row, column in np.ndindex(values.shape[1:]):
            tick(row * len(x) + column, values[0].size)
            models.load_state(network, mix(*pair.states, moved, np.array([x[column], y[row]]), points))
            if resets:
                fusion.reset(network, [images for images, _ in train])
            values[:, row, column] = models.evaluate(network, test, device=run.device)
        tick(values[0].size, values[0].size)
        test_images, train_images = (sum(len(labels) for _, labels in batches) for batches in (test, train))
        note = f"first {test_images:,} test images"
        if run.norm == "batch":
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
        figure = figures.curves(record)
        for axes, metric, scale in zip(figure.axes, ("test_accuracy", "test_loss"), (100, 1), strict=True):
            axes.axvline(alpha, color=PALE, linewidth=0.8, zorder=0)
            if self.is_measured(name, matcher, corrected, alpha):
                value = scale * self.point(name, matcher, corrected, alpha).values[metric]
                axes.plot(alpha, value, color=VERMILLION, zorder=6, **mark("o", 7))
        return figure

    def filters(self, name: str, matcher: str, corrected: str, alpha: float) -> Figure:
        """First-layer filters of A, B, aligned B and, where it is measured, the fused network."""
        pair, matched = self.pair(name), self.matched(name, matcher)
        weight = pair.run.groups.layers[0].weight
        rows = {"A": pair.states[0][weight], "B": pair.states[1][weight], "aligned B": matched.moved[weight]}
        if self.is_measured(name, matcher, corrected, alpha):
            rows[f"fused, α = {alpha:g}"] = self.point(name, matcher, corrected, alpha).first
        shape, inputs = models.ARCHITECTURES[pair.run.model].shape, rows["A"][0].numel()
        # a linear layer's rows are images, or what is no image a line
        shape = shape if len(shape) == 3 and math.prod(shape) == inputs else (1, 1, inputs)
        rows = {key: value.view(-1, *shape) if value.dim() == 2 else value for key, value in rows.items()}
        groups = pair.run.groups
        starts = (name for name, member in symmetry.by_tensor(groups).get(weight, ()) if member.axis == 0)
        similarity = matched.arrays.get(f"corr/{matcher}/{next(starts, None)}")
        units = len(rows["A"])
        if similarity is not None and len(similarity) != units:  # of heads, of which each is many units
            similarity = None
        which = f"the {FILTERS} largest of {units}" if units > FILTERS else f"{units} units"
        title = f"{model_label(pair.run.architecture)}: first-layer filters ({which})"
        title += ", with the correlation of matched units" if similarity is not None else ""
        return filters_figure(rows, similarity, title)

    def correlations(self, name: str, matcher: str) -> Figure:
        """The correlation of matched units in each layer, beside that without matching."""
        arrays = self.matched(name, "activation" if matcher == "none" else matcher).arrays
        if matcher == "none":
            arrays = {key: value for key, value in arrays.items() if key.split("/")[1] == "none"}
        return figures.correlations(arrays, self.record(name, self._on_train(name)))

    def permutations(self, name: str, matcher: str) -> Figure:
        """The permutation matrices, beside what was assigned where the matcher has it."""
        matched = self.matched(name, matcher).matching
        groups = self.pair(name).run.groups
        drawn = {group: perm for group, perm in matched.items() if group in groups}  # not what is inside heads
        soft = {group: values.cpu() for group, values in (matched.similarity or {}).items()}
        looks = self._on_train(name) if matching.looks_at_images(matcher) else "weights alone"
        return figures.matching_matrix(drawn, self.record(name, looks), matcher, soft or None)

    def plane_figure(self, name: str, matcher: str, corrected: str, alpha: float, **options) -> Figure:
        """The loss plane (measured where it is not yet)."""
        plane = self.plane(name, matcher, corrected, **options)
        more = [f"matching: {look(MATCHERS, matcher).label}"]
        if corrected not in ("none", "bn_reset"):
            more.append(f"without {look(CORRECTIONS, corrected).label}")
        title = pool.headline(self.record(name, plane.note), *more)
        return plane_figure(plane, title, alpha)

    def figures(self, plane: bool = False) -> Iterator[Figure]:
        """What the panel shows of the notebook's own choice, one after the other."""
        chosen = [self.given[key] for key in ("pair", "matcher", "correction", "alpha")]
        name, matcher, corrected, alpha = chosen
        for each in sorted({alpha} if is_slow(corrected) else {*self.given["alphas"], alpha}):
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
        accuracy, loss = values["test_accuracy"], values["test_loss"]
        return {"accuracy": accuracy, "loss": loss, "above": accuracy - line}
