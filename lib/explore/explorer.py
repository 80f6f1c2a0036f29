"""Look around by hand: a pair or three networks, a matcher, a correction, shares (notebooks/explore.ipynb shows the
panel).

An Explorer keeps what was opened, matched and measured, so that a second look costs nothing, and draws it; a Panel
puts widgets before it. They write what a user has exported or saved, and nothing else.
"""

import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import fusion, loaders, matching, models, paths, symmetry
from ..checks import InputError, check_choice, check_injected, check_whole
from ..fusion.budgets import Dial
from ..fusion.structure import COSTS, Structure
from ..matching import Matching
from ..paper import figures, figures_attention, figures_networks, pool
from ..paper.names import CORRECTIONS, MATCHERS, file_word, look, model_label
from ..paper.style import VERMILLION, save_figure
from ..progress import is_told
from ..records import curve_entry, matching_arrays
from ..study import attention, board, many
from ..study.parameters import check_share, refusal
from ..study.run import Run, begin, trained_elsewhere
from .plane import FILTERS, PALE, Plane, State, corners, filters_figure, mix, nodes, plane_figure


def is_slow(correction: str) -> bool:
    """Whether a correction takes seconds or longer: it is fitted when a button says so."""
    return fusion.CORRECTIONS[fusion.read_correction(correction)[0]].slow


def sizes(correction: str) -> bool:
    """Whether a correction makes networks of another size than the parents'."""
    return fusion.read_correction(correction)[0] == "least_squares"


STAGES = ("loading", "matching", "sharing out", "correcting", "measuring")
PASSES = 6  # over the images and each network that a fit by least squares takes, about
KEPT = 4  # fused networks, the last ones; of all others what they reach
RING = {"marker": "o", "markersize": 9, "markeredgewidth": 1.6, "markerfacecolor": "none"}  # what it is round is seen


# Of a pair alpha, the share of B; of three networks the shares of all.
Place = float | tuple[float, float, float]


@dataclass
class Pair:
    """A pair, or three networks, as opened, what the parents reach, and a line about the data set where that is not the
    one they were trained on."""

    run: Run
    networks: list[nn.Module]
    parents: dict[str, dict[str, float | None]]
    note: str
    states: list[State] = field(repr=False)


@dataclass(frozen=True)
class Matched:
    """Networks aligned by one matcher, and of each the arrays that figures need (of A none)."""

    aligned: fusion.Aligned
    arrays: Sequence[Mapping[str, np.ndarray]] = field(repr=False)

    @property
    def maps(self) -> Sequence[Matching]:
        """One a network."""
        return self.aligned.maps

    @property
    def states(self) -> Sequence[State]:
        """The networks in A's order."""
        return self.aligned.states


@dataclass(frozen=True)
class Point:
    """One fused network, measured; `first` is its first layer's weight."""

    values: dict[str, float | None]
    first: Tensor = field(repr=False)


@dataclass(frozen=True)
class Sized:
    """A fused network of another size, measured; `cost` is {"parameters", "multiply-adds"} over one network's."""

    values: dict[str, float | None]
    cost: dict[str, float]


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
        key = (method.__name__, *map(_rounded, given))
        with explorer.lock:
            if key not in explorer._kept:
                explorer._kept[key] = method(explorer, *key[1:], **options)
            return explorer._kept[key]

    return kept


def _candidates(sidecar: Mapping[str, Any]) -> tuple[str, ...]:
    """The data sets on which a shipped pair can be looked at, what it was trained on first."""
    grey = models.ARCHITECTURES[sidecar["spec"]["model"]].shape[0] == 1
    return sidecar["dataset"], "mnist-5k" if grey else "cifar10"


def named(pair: str, third: str = "") -> str:
    """The name of a pair, with a third network or without."""
    return f"{pair}+{third}" if third else pair


def is_three(name: str) -> bool:
    """Whether a name is that of three networks."""
    return "+" in name


def placed(third: str, alpha: float, third_share: float) -> Place:
    """Where networks are fused: alpha; with a third network the shares of all three, A's what is left."""
    return (max(0.0, round(1 - alpha - third_share, 9)), alpha, third_share) if third else alpha


def spelled(place: Place) -> str:
    """A place in words."""
    if isinstance(place, tuple):
        return "shares " + " / ".join(f"{share:.2f}" for share in place)
    return f"α = {place:.2f}"


def _rows(found: Mapping[tuple[str, str], list]) -> list[dict[str, Any]]:
    """A row a point of three networks, as `study.many` makes them."""
    return [
        {"study": "simplex", "matcher": matcher, "correction": corrected, "shares": list(shares), **values}
        for (matcher, corrected), points in found.items()
        for shares, values in points
    ]


def _rounded(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_rounded, part))
    return round(part, 9) if isinstance(part, float) else part


class Explorer:
    """Opens, matches, fuses, corrects and measures what is asked for, once; every figure is made from that.

    What is looked at has a `name`: that of a shipped pair, or behind a plus sign that of a third network with it.

    Args:
        parameters: those of the notebook's parameters cell, by name.

    Raises:
        InputError: in one line, when a parameter is not accepted or the pair's data set cannot be had.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        names = ("pair", "third", "matcher", "correction", "alpha", "third_share", "alphas", "divisions", "dataset")
        names += (
            "budget",
            "device",
            "images",
            "match_images",
            "correct_images",
            "plane_images",
            "plane_size",
            "match_seed",
        )
        check_injected(parameters)
        self.given = {name: parameters[name] for name in names}
        self._kept: dict[tuple, Any] = {}
        self._fused: dict[tuple, fusion.Fused] = {}
        self._fit_seconds: dict[str, float] = {}
        self.tell: Callable[[str], None] = lambda stage: None  # called with each of STAGES as it begins
        # A panel works in a thread of its own, cells in another; networks and Matplotlib's style are for one at a time.
        self.lock = threading.RLock()
        self._unreachable: dict[str, str] = {}
        for name in ("alpha", "third_share"):
            check_share(name, self.given[name])
        for name, least in (("images", 1), ("plane_images", 1), ("plane_size", 2), ("divisions", 1)):
            check_whole(name, self.given[name], least)
        if self.given["third"] and self.given["alpha"] + self.given["third_share"] > 1 + 1e-9:
            left = f"at most what alpha {self.given['alpha']:g} leaves"
            raise refusal("third_share", self.given["third_share"], left)
        budget, most = self.given["budget"], 3 if self.given["third"] else 2
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= most:
            raise refusal("budget", budget, f"a number > 0, at most {most}")
        run = self.pair(self.name).run
        for name, check in (("matcher", run.check_matcher), ("correction", run.check_correction)):
            check(self.given[name])
            self.given[name] = getattr(run.settings, f"{name}s")[0]  # as it is recorded

    @property
    def name(self) -> str:
        """Of the notebook's own choice."""
        return named(self.given["pair"], self.given["third"])

    @property
    def place(self) -> Place:
        """Of the notebook's own choice."""
        return placed(self.given["third"], self.given["alpha"], self.given["third_share"])

    def places(self, name: str) -> list[Place]:
        """Where all of it is measured: the notebook's alphas, or of three networks shares in steps of 1 / divisions."""
        return many.simplex(self.given["divisions"]) if is_three(name) else list(self.given["alphas"])

    @_once
    def pair(self, name: str) -> Pair:
        """The networks of that name, opened and measured."""
        self.tell("loading")
        name, _, third = name.partition("+")
        shipped = board.pairs()
        check_choice("pair", name, shipped)
        if third:
            check_choice("third", third, board.thirds(name))
        spec = shipped[name]["spec"]
        dataset, note = self._dataset(name, shipped)
        given = self.given | board.FIXED
        given |= {"dataset": dataset, "checkpoint_a": name, "checkpoint_b": board.partner(name)}
        given |= {"matchers": [given["matcher"]], "corrections": [given["correction"]], "limit_test": given["images"]}
        given["controls"] = [control for control, row in fusion.CONTROLS.items() if row.quick]
        presets = {"quick": {"width": spec["width"]}}
        run = begin("explore", spec["model"], given, presets=presets, norm=spec["norm"], lenient=True, writes=False)
        run.leave_out_inapplicable("controls", say=False)
        networks = run.open_pair() + ([run.open_third(third)] if third else [])
        return Pair(run, networks, run.parents(networks), note, [models.state_of(network) for network in networks])

    def _dataset(self, name: str, shipped: Mapping[str, Mapping]) -> tuple[str, str]:
        """The data set to look at a pair on, and why it is not the one that the pair was trained on."""
        if self.given["dataset"] != "auto":
            return self.given["dataset"], ""
        model, trained_on = shipped[name]["spec"]["model"], shipped[name]["dataset"]
        for dataset in _candidates(shipped[name]):
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

    def lacks(self, sidecar: Mapping[str, Any]) -> str:
        """The data set that is wanting here for the pair of that sidecar, as far as file names say; "" for none."""
        candidates = _candidates(sidecar)
        wants = self.given["dataset"] == "auto" and not any(map(loaders.is_there, candidates))
        return candidates[-1] if wants else ""

    def caution(self, name: str) -> str:
        """On what these networks were trained, where that is not what they are measured on, and whether that makes it
        no test; "" where it is."""
        run = self.pair(name).run
        said = (trained_elsewhere(checkpoint, run.dataset.name) for checkpoint in run.checkpoints.values())
        told = "; ".join(dict.fromkeys(filter(None, said)))
        return f"{told}: this is no test" if self._is_seen(name) else told

    def _is_seen(self, name: str) -> bool:
        """Whether any of these networks saw in training what it is measured on."""
        run = self.pair(name).run
        return any(checkpoint.has_seen(run.dataset.name) for checkpoint in run.checkpoints.values())

    @_once
    def matched(self, name: str, matcher: str) -> Matched:
        """Those networks aligned by that matcher, proved to leave their outputs unchanged."""
        pair = self.pair(name)
        self.tell("matching")
        maps = pair.run.match_by(matcher, pair.networks, progress=is_told())
        if matcher == "none":  # its correlations are drawn from those of "activation", beside which it stands
            arrays = [matching_arrays(each) for each in maps]
        else:
            plain = maps if matcher == "activation" else self.matched(name, "activation").maps
            every = zip(self.matched(name, "none").maps, maps, plain, strict=True)
            arrays = [matching_arrays(none, each, correlation=alike) for none, each, alike in every]
        names = [checkpoint.path.stem for checkpoint in pair.run.checkpoints.values()]
        return Matched(fusion.align(pair.networks, pair.run.groups, maps, names=names), arrays)

    def is_measured(self, name: str, matcher: str, corrected: str, place: Place) -> bool:
        return ("point", name, matcher, corrected, _rounded(place)) in self._kept

    @_once
    def point(self, name: str, matcher: str, corrected: str, place: Place) -> Point:
        """The network fused at `place`, measured on the test images."""
        run, state = self.pair(name).run, self.fused(name, matcher, corrected, place).state
        self.tell("measuring")
        values = fusion.measure(run.template, state, run.test, ensemble=run.against, device=run.device)
        return Point(values, state[run.groups.layers[0].weight].clone())

    def is_sized(self, name: str, matcher: str, corrected: str, place: Place, budget: float) -> bool:
        return ("sized", name, matcher, corrected, _rounded(place), _rounded(budget)) in self._kept

    @_once
    def sized(self, name: str, matcher: str, corrected: str, place: Place, budget: float) -> Sized:
        """The network fused at `place` with `budget` times one network's parameters (`fusion.budgets`), measured."""
        run, fused = self.pair(name).run, self.fused(name, matcher, corrected, place, budget)
        self.tell("measuring")
        values = fusion.measure(fused.model(), fused.state, run.test, device=run.device)
        structure = self._structure(name, matcher, place, budget)
        return Sized(values, {kind: structure.as_dict()[kind] for kind in COSTS})

    def fused(self, name: str, matcher: str, corrected: str, place: Place, budget: float = 1.0) -> fusion.Fused:
        """The network fused at `place`, with `budget` times one network's parameters. The last few are kept."""
        key = _rounded((name, matcher, corrected, place, budget))
        with self.lock:
            if key not in self._fused:
                fused = self._fuse(*key)
                self._fused = dict([*self._fused.items(), (key, fused)][-KEPT:])
            return self._fused[key]

    def _fuse(self, name: str, matcher: str, corrected: str, place: Place, budget: float) -> fusion.Fused:
        run, aligned = self.pair(name).run, self.matched(name, matcher).aligned
        run.check_correction(corrected)
        row, images = fusion.CORRECTIONS[fusion.read_correction(corrected)[0]], run.correct_batches(corrected)
        options = {"images": images, "device": run.device, "progress": is_told()}
        if budget != 1:
            self.tell("sharing out")
            options["structure"] = self._structure(name, matcher, place, budget)
        self.tell("correcting")
        if row.moments:
            options["moments"] = self._moments(name, matcher, row.augmented, images=images)
        fused = fusion.correct(aligned, place, corrected, **options)
        if row.slow and budget == 1:
            self._fit_seconds[name] = fused.seconds
        return fused

    def fit_seconds(self, name: str) -> float:
        """About how long a slow correction of these networks takes: as long as the last one, else so many passes over
        its images as a fit takes about."""
        if name not in self._fit_seconds:
            run, networks = self.pair(name).run, self.pair(name).networks
            images = run.test[0][0][:100]
            begin = time.perf_counter()
            models.outputs(networks[0], [(images, run.test[0][1][:100])], device=run.device)
            one = (time.perf_counter() - begin) / len(images)
            self._fit_seconds[name] = PASSES * one * run.settings.correct_images * (len(networks) + 1)
        return self._fit_seconds[name]

    @_once
    def _dial(self, name: str, matcher: str, place: Place) -> Dial:
        run, aligned = self.pair(name).run, self.matched(name, matcher).aligned
        return Dial(aligned, aligned.shares(place), run.match_batches, run.device)

    @_once
    def _structure(self, name: str, matcher: str, place: Place, budget: float) -> Structure:
        return self._dial(name, matcher, place).at(budget)

    @_once
    def _moments(self, name: str, matcher: str, augmented: bool, *, images: Any) -> Any:
        run, aligned = self.pair(name).run, self.matched(name, matcher).aligned
        return fusion.moments(aligned, images, device=run.device, progress=is_told())

    @_once
    def controls(self, name: str) -> dict[str, dict[str, Any]]:
        """What a pair's quick controls reach, as far as it can take them; what they choose they choose by as many
        training images as there are test images."""
        pair = self.pair(name)
        held_out = pair.run.held_out(most=self.given["images"])
        return pair.run.controls(pair.networks, pair.parents, held_out, progress=is_told())

    def record(self, name: str, images: str) -> dict[str, Any]:
        """What figures read of these networks: a run record of every point measured so far, and of plain averaging
        without matching at the notebook's alphas, of three networks in equal shares; `images` says on what. Never
        written."""
        pair, found = self.pair(name), {}
        for place in [(1 / 3, 1 / 3, 1 / 3)] if is_three(name) else self.given["alphas"]:
            self.point(name, "none", "none", place)
        for (kind, *key), kept in self._kept.items():
            if (kind, key[0]) == ("point", name):
                found.setdefault(tuple(key[1:3]), []).append((key[3], kept.values))
        what = {"rows": _rows(found)} if is_three(name) else {"curves": self._curves(name, found)}
        return self._record(name, **what) | {"dataset": f"{pair.run.dataset.name} ({images})"} | what

    def _curves(self, name: str, found: Mapping[tuple[str, str], list]) -> list[dict[str, Any]]:
        entries = []
        for (matcher, corrected), points in found.items():
            points = [{"alpha": alpha, **values} for alpha, values in sorted(points, key=lambda point: point[0])]
            barrier = fusion.barrier(points, self.pair(name).parents)
            entries.append(curve_entry(self.matched(name, matcher).maps[1], corrected, points, barrier))
        return entries

    @_once
    def _record(self, name: str, **what: list[dict[str, Any]]) -> dict[str, Any]:
        pair = self.pair(name)
        return pair.run.record(pair.parents, **what)

    def describe(self, name: str) -> str:
        """The networks in a few lines: what, on what, and what they reach."""
        pair = self.pair(name)
        ends = ", ".join(f"{side.upper()} {100 * of['test_accuracy']:.2f} %" for side, of in pair.parents.items())
        if pair.run.dataset.test.is_text:
            each = " and ".join(f"{models.perplexity(of['test_loss']):.2f}" for of in pair.parents.values())
            ends += f", perplexity {each}"
        names = " and ".join(checkpoint.path.stem for _, checkpoint in sorted(pair.run.checkpoints.items()))
        lines = [pair.note, f"{names}: {model_label(pair.run.architecture)}"]
        return "\n".join([*filter(None, lines), f"{pair.run.dataset.name}, {self.on_test(name)}: {ends}"])

    def on_test(self, name: str, count: int | None = None) -> str:
        """The test images, all or the first `count`, in words that numbers and titles of figures carry."""
        count = len(self.pair(name).run.dataset.test) if count is None else count
        return f"first {count:,} test images" + (", seen in training" if self._is_seen(name) else "")

    def _on_train(self, name: str) -> str:
        run = self.pair(name).run
        return f"first {min(run.settings.match_images, len(run.dataset.train)):,} training images"

    def plane(
        self, name: str, matcher: str, corrected: str, tick: Callable[[int, int], None] = lambda done, total: None
    ) -> Plane:
        """The plane through A, B and aligned B, or of three networks through all of them aligned, measured on the first
        plane_images test images. BatchNorm's statistics are mixed like the weights, or reset at every node under
        bn_reset; other corrections are not applied.

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
        pair, aligned, run = self.pair(name), self.matched(name, matcher).states, self.pair(name).run
        states = aligned if is_three(name) else (*pair.states, aligned[1])
        names = ("A", "aligned B", "aligned C") if is_three(name) else ("A", "B", "aligned B")
        points = corners(*states)
        x, y = (nodes(points[:, axis], self.given["plane_size"]) for axis in (0, 1))
        test, train = (_first(batches, self.given["plane_images"]) for batches in (run.test, run.match_batches))
        network = run.template
        values = np.empty((2, len(y), len(x)))
        for row, column in np.ndindex(values.shape[1:]):
            tick(row * len(x) + column, values[0].size)
            models.load_state(network, mix(*states, np.array([x[column], y[row]]), points))
            if resets:
                fusion.reset(network, [images for images, _ in train])
            values[:, row, column] = models.evaluate(network, test, device=run.device)
        tick(values[0].size, values[0].size)
        test_images, train_images = (sum(len(labels) for _, labels in batches) for batches in (test, train))
        note = self.on_test(name, test_images)
        if run.norm == "batch":
            how = f"reset on the first {train_images:,} training images" if resets else "mixed like the weights"
            note += f"; BatchNorm statistics {how}"
        return Plane(names, points, x, y, *values, note)

    # Figures of one choice

    def path(self, name: str, matcher: str, corrected: str, place: Place, *, here: bool = True) -> Figure | None:
        """Accuracy and loss along alpha: the points measured of this choice, of plain averaging without matching, and
        of the last few other choices; a ring is the fused network at `place`, unless `here` is False. Of three networks
        the accuracy over the simplex of their shares, as far as this choice is measured (its corners are, unless that
        is slow); None while its points span no area."""
        if is_three(name):
            return self._simplex(name, matcher, corrected, place, here)
        record = self.record(name, self.on_test(name))
        kept = (("none", "none"), (matcher, corrected))
        others = [curve for curve in record["curves"] if (curve["matcher"], curve["correction"]) not in kept]
        record["curves"] = [curve for curve in record["curves"] if curve not in others[:-6]]
        figure = figures.curves(record)
        if not here:
            return figure
        for axes, metric, scale in zip(figure.axes, ("test_accuracy", "test_loss"), (100, 1), strict=True):
            axes.axvline(place, color=PALE, linewidth=0.8, zorder=0)
            if self.is_measured(name, matcher, corrected, place):
                value = scale * self.point(name, matcher, corrected, place).values[metric]
                axes.plot(place, value, color=VERMILLION, zorder=6, **RING)
                axes.annotate(
                    "here", (place, value), (7, 5), textcoords="offset points", color=VERMILLION, fontsize="small"
                )
        return figure

    def _simplex(self, name: str, matcher: str, corrected: str, place: Place, here: bool) -> Figure | None:
        for corner in () if is_slow(corrected) else many.simplex(1):
            self.point(name, matcher, corrected, corner)
        record = self.record(name, self.on_test(name))
        rows = [row for row in record["rows"] if (row["matcher"], row["correction"]) == (matcher, corrected)]
        shares = np.array([row["shares"] for row in rows]).reshape(-1, 3)
        if np.linalg.matrix_rank(shares, tol=1e-6) < 3:
            return None
        figure = figures_networks.simplex(rows, record, corners=("A", "B", "C"))
        if here:
            spot = np.array(place) @ figures_networks.CORNERS
            figure.axes[0].plot(*spot, color=VERMILLION, zorder=6, **RING)
        return figure

    def filters(self, name: str, matcher: str, corrected: str, place: Place) -> Figure:
        """First-layer filters of A, B, aligned B (and C, aligned C) and, where it is measured, the fused network."""
        pair, matched = self.pair(name), self.matched(name, matcher)
        weight = pair.run.groups.layers[0].weight
        rows = {"A": pair.states[0][weight]}
        for side, own, aligned in zip("BC", pair.states[1:], matched.states[1:], strict=False):
            rows |= {side: own[weight], f"aligned {side}": aligned[weight]}
        if self.is_measured(name, matcher, corrected, place):
            rows[f"fused, {spelled(place)}"] = self.point(name, matcher, corrected, place).first
        shape, inputs = models.ARCHITECTURES[pair.run.model].shape, rows["A"][0].numel()
        # a linear layer's rows are images, or what is no image a line
        shape = shape if len(shape) == 3 and math.prod(shape) == inputs else (1, 1, inputs)
        rows = {key: value.view(-1, *shape) if value.dim() == 2 else value for key, value in rows.items()}
        groups = pair.run.groups
        starts = (name for name, member in symmetry.by_tensor(groups).get(weight, ()) if member.axis == 0)
        similarity = matched.arrays[1].get(f"corr/{matcher}/{next(starts, None)}")
        units = len(rows["A"])
        # one number a column: there are two of three networks, and none of heads, of which each is many units
        if similarity is not None and (is_three(name) or len(similarity) != units):
            similarity = None
        which = f"the {FILTERS} largest of {units}" if units > FILTERS else f"{units} units"
        title = f"{model_label(pair.run.architecture)}: first-layer filters ({which})"
        title += ", with the correlation of matched units" if similarity is not None else ""
        return filters_figure(rows, similarity, title)

    def matchings(self, name: str, matcher: str) -> Iterator[tuple[str, Figure]]:
        """`correlations` and `permutations` of each network but A, and `heads` of each layer of attention."""
        for number in range(1, len(self.pair(name).networks)):
            side = "abc"[number]
            yield f"correlations_{side}", self.correlations(name, matcher, number)
            yield f"permutations_{side}", self.permutations(name, matcher, number)
            for layer, group in enumerate(attention.heads(self.pair(name).run)):
                yield f"heads_{side}_layer{layer}", self.heads(name, matcher, group, number)

    def correlations(self, name: str, matcher: str, number: int = 1) -> Figure:
        """The correlation of A's units with those of network `number` matched to them, in each layer, beside that
        without matching."""
        arrays = self.matched(name, "activation" if matcher == "none" else matcher).arrays[number]
        if matcher == "none":
            arrays = {key: value for key, value in arrays.items() if key.split("/")[1] == "none"}
        which = f"A and {'ABC'[number]}, " if is_three(name) else ""
        return figures.correlations(arrays, self.record(name, which + self._on_train(name)))

    def permutations(self, name: str, matcher: str, number: int = 1) -> Figure:
        """The permutation matrices of network `number`, beside what was assigned where the matcher has it."""
        matched = self.matched(name, matcher).maps[number]
        groups = self.pair(name).run.groups
        drawn = {group: perm for group, perm in matched.items() if group in groups}  # not what is inside heads
        soft = {group: values.cpu() for group, values in (matched.similarity or {}).items()}
        looks = self._on_train(name) if matching.looks_at_images(matcher) else "weights alone"
        return figures.matching_matrix(drawn, self.record(name, looks), matcher, soft or None, moved="ABC"[number])

    def heads(self, name: str, matcher: str, group: str, number: int = 1) -> Figure:
        """What the heads of one layer of attention look at in A, and below each the head of network `number` that takes
        its place."""
        patterns = {side: {group: self._patterns(name, i)[group]} for side, i in (("a", 0), ("b", number))}
        perms, record = {matcher: self.matched(name, matcher).maps[number]}, self.record(name, self._on_train(name))
        return figures_attention.heads(patterns, perms, record, moved="ABC"[number])

    @_once
    def _patterns(self, name: str, number: int) -> dict[str, np.ndarray]:
        run, network = self.pair(name).run, self.pair(name).networks[number]
        found = attention.mean_patterns(run, network, attention.heads(run))
        return {group: pattern.numpy() for group, pattern in found.items()}

    def plane_figure(self, name: str, matcher: str, corrected: str, place: Place, **options) -> Figure:
        """The loss plane (measured where it is not yet)."""
        plane = self.plane(name, matcher, corrected, **options)
        more = [f"matching: {look(MATCHERS, matcher).label}"]
        if corrected not in ("none", "bn_reset"):
            more.append(f"without {look(CORRECTIONS, corrected).label}")
        title = pool.headline(self.record(name, plane.note), *more)
        shares = place if is_three(name) else (1 - place, 0.0, place)
        return plane_figure(plane, title, shares, f"fused, {spelled(place)}")

    def figures(self, plane: bool = False) -> Iterator[Figure]:
        """What the panel shows of the notebook's own choice, one after the other."""
        name, place = self.name, self.place
        chosen = (name, matcher := self.given["matcher"], corrected := self.given["correction"], place)
        with self.lock:
            for each in sorted({place} if is_slow(corrected) else {*self.places(name), place}):
                self.point(name, matcher, corrected, each)
            if path := self.path(*chosen):
                yield path
            yield self.filters(*chosen)
            for _, figure in self.matchings(name, matcher):
                yield figure
            if plane:
                yield self.plane_figure(*chosen)

    def summary(self, name: str, matcher: str, corrected: str, place: Place) -> dict[str, float]:
        """Accuracy and loss at `place`, and how far the accuracy is above the parents' in these shares."""
        values, parents = self.point(name, matcher, corrected, place).values, self.pair(name).parents.values()
        shares = self.matched(name, matcher).aligned.shares(place)
        line = sum(share * parent["test_accuracy"] for share, parent in zip(shares, parents, strict=True))
        accuracy, loss = values["test_accuracy"], values["test_loss"]
        return {"accuracy": accuracy, "loss": loss, "above": accuracy - line}

    # Files

    def export(self, drawn: Mapping[str, Figure], *chosen: Any) -> list[Path]:
        """Writes figures, by what they show, as PNG and PDF into data/results/local/explore, where none is replaced."""
        folder, stem = paths.LOCAL / "explore", _stem(*chosen)
        files = []
        for kind, figure in drawn.items():
            files += save_figure(figure, _free(folder, f"{stem}_{kind}", (".png", ".pdf")), folder)
        return files

    def save(self, name: str, matcher: str, corrected: str, place: Place, budget: float = 1.0) -> Path:
        """Writes the fused network with its sidecar and card into checkpoints/local, as `fusebook fuse` does; none that
        is there is replaced. Returns the path of the weights."""
        run, fused = self.pair(name).run, self.fused(name, matcher, corrected, place, budget)
        self.tell("measuring")
        folder = paths.CHECKPOINTS / "local"
        stem = _free(folder, _stem(name, matcher, corrected, place, budget), (".safetensors", ".json", ".md"))
        used = [run.settings.match_images] if matching.looks_at_images(matcher) or budget != 1 else []
        if fusion.CORRECTIONS[fusion.read_correction(corrected)[0]].images:
            used.append(run.settings.correct_images)
        count = min(max(used, default=0), len(run.dataset.train))
        caution = self.caution(name)
        return fused.publish(
            folder / f"{stem}.safetensors",
            fused.measure(run.test, device=run.device),
            data=f"{run.dataset.name}, first test images" + (f" (its parents were {caution})" if caution else ""),
            images=f"the first {count:,} training images of {run.dataset.name}" if count else "none were looked at",
            checkpoints=list(run.checkpoints.values()),
            spec={"model": run.model, "width": run.settings.width, "norm": run.norm, "options": run.options},
            dataset=run.dataset.name,
        )


def _stem(name: str, matcher: str, corrected: str, place: Place, budget: float = 1.0) -> str:
    """Of the files of a choice."""
    shares = place if isinstance(place, tuple) else (place,)
    parts = [name.replace("+", "_"), file_word(matcher), file_word(corrected), "-".join(f"{s:.2f}" for s in shares)]
    return "_".join([*parts, *([] if budget == 1 else [f"x{budget:.2f}"])])


def _free(folder: Path, stem: str, ends: Iterable[str]) -> str:
    """The stem, or with the first number behind it, of which `folder` has no file yet."""
    numbered = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    return next(each for each in numbered if not any((folder / f"{each}{end}").exists() for end in ends))
