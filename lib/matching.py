"""Similarity between units + assignment = permutations: every matcher by name, one signature.

`match` moves B: permuted with its result, unit i of B stands where unit i of A does. See `MATCHERS` for what each
needs. The quadratic objective and its solvers live in lib.graph_matching.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from lib import checks, graph_matching, graph_solvers, symmetry
from lib.checks import InputError, check_choice
from lib.graph_problem import GIB, Problem, assign, check_finite
from lib.symmetry import Group, Groups, Tap


class Matching(dict[str, Tensor]):
    """{group: LongTensor (size,)}, moving B, and how it was found.

    `objective` is what the matcher maximised, summed over groups; `similarity` the (size, size) matrix [unit of A,
    unit of B] that was assigned, where there is one; `info` what else the matcher reports.
    """

    matcher: str
    objective: float | None
    seconds: float
    peak_bytes: int | None
    options: dict
    similarity: dict[str, Tensor] | None
    info: dict
    moved: str = "b"

    def matched(self) -> dict[str, Tensor]:
        """Similarity (size,) of each unit of A to the unit of B that was matched to it."""
        return {name: m[torch.arange(len(m)), self[name]] for name, m in (self.similarity or {}).items()}


# What a matcher works on: two networks in evaluation mode, their groups, batches of images (or None), a device.
@dataclass(frozen=True)
class _Pair:
    model_a: nn.Module
    model_b: nn.Module
    groups: Groups
    batches: Iterable | None
    device: torch.device | str
    generator: torch.Generator
    progress: bool

    @property
    def states(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        device = _exact(self.device)
        a, b = (
            {name: tensor.to(device) for name, tensor in model.state_dict().items()}
            for model in (self.model_a, self.model_b)
        )
        return a, b


# A matcher returns (perms, objective, similarity or None, info).
_Found = tuple[Mapping[str, Tensor], float | None, Mapping[str, Tensor] | None, dict]


def _none(pair: _Pair) -> _Found:
    return pair.groups.identity(), None, None, {}


TAPS = {
    "post_relu": ("post_relu", "post_norm", "pre_norm"),
    "post_norm": ("post_norm", "pre_norm"),
    "pre_norm": ("pre_norm",),
}


def _taps(group: Group, wanted: str) -> list[Tap]:
    """The group's taps of the wanted kind, else of the nearest kind that it has."""
    for kind in TAPS[wanted]:
        if taps := [tap for tap in group.taps if tap.kind == kind]:
            return taps
    return []


def features(value: Tensor, tap: Tap, size: int) -> Tensor:
    """The activations of a group's units in a node's value: float (observations, size), N·H·W observations for a
    feature map (N, C, H, W). A view where the memory layout allows."""
    part = value.movedim(tap.axis, -1)[..., tap.offset : tap.offset + size * tap.block]
    if tap.block > 1:
        part = part.unflatten(-1, (size, tap.block)).movedim(-2, -1)
    return part.reshape(-1, size)


def _exact(device: torch.device | str) -> torch.device:
    """Where float64 sums are kept: on the device, but MPS has no float64."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def _far_mean(x: Tensor) -> Tensor:
    """The mean (size,) of each unit of x (K, size) where it is above ten deviations, else 0."""
    var, mean = torch.var_mean(x, dim=0, correction=0)
    return torch.where(mean**2 > 100 * var, mean, 0)


class Moments:
    """Pooled first and second moments of the units of two networks, accumulated in float64 (the products of one
    batch in float32, about its means where these lie far from 0, so that the error is far below the sampling error)."""

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.count = 0
        options = {"dtype": torch.float64, "device": _exact(device)}
        self.sums, self.squares = torch.zeros(2, size, **options), torch.zeros(2, size, **options)
        self.products = torch.zeros(size, size, **options)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Takes in observations (K, size) of both networks."""
        self.count += len(a)
        centre = torch.stack([_far_mean(a), _far_mean(b)])
        a, b = a - centre[0], b - centre[1]
        rest = torch.stack([a.sum(dim=0), b.sum(dim=0)])
        squares = torch.stack([(a * a).sum(dim=0), (b * b).sum(dim=0)])
        found = (centre, rest, squares, a.T @ b)
        centre, rest, squares, products = (x.to(self.sums.device).double() for x in found)
        sums = rest + len(a) * centre
        self.sums += sums
        # From moments about the centre to moments about 0.
        self.squares += squares + centre * (rest + sums)
        self.products += products.addr_(centre[0], rest[1]).addr_(sums[0], centre[1])

    def similarity(self, kind: str, epsilon: float) -> Tensor:
        """(size, size) float64: "correlation", "covariance" or "uncentred" (the mean product)."""
        mean_a, mean_b = self.sums / self.count
        if kind == "uncentred":
            return self.products / self.count
        covariance = self.products / self.count - torch.outer(mean_a, mean_b)
        # What float32 activations cannot tell from a constant (a deviation of a millionth) varies with nothing.
        square = self.squares / self.count
        constant = square - (self.sums / self.count) ** 2 <= 1e-12 * square
        covariance[constant[0]] = 0
        covariance[:, constant[1]] = 0
        if kind == "covariance":
            return covariance
        std_a, std_b = (self.squares / self.count - (self.sums / self.count) ** 2).clamp_(min=0).sqrt()
        # A unit that never fires correlates with nothing: the constant keeps 0 / 0 out.
        return covariance / (torch.outer(std_a, std_b) + epsilon)


@torch.no_grad()  # not inference_mode: a network that is moved to the device here stays trainable
def activation_similarity(
    model_a: nn.Module,
    model_b: nn.Module,
    groups: Groups,
    batches: Iterable,
    *,
    similarity: str = "correlation",
    tap: str = "post_relu",
    epsilon: float = 1e-4,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Tensor]:
    """How alike the units of two networks fire, for every group from one pass over both (Li et al. 2015).

    One pass is enough: reordering earlier layers reorders a later layer's activations and changes none. A group with
    several taps of the kind (a residual stage) averages over them.

    Args:
        batches: of (images (N, …), labels), or of images alone.
        similarity: "correlation", "covariance" or "uncentred".
        epsilon: added to the product of standard deviations; 1e-4 as published, where it also discounts faint units.
        tap: "post_relu", "post_norm" or "pre_norm"; a group without such a tap uses the nearest it has.

    Returns:
        {group: float64 (size, size) on the CPU}, [unit of A, unit of B].

    Raises:
        InputError: no images, a group without activations, or activations that overflow.
    """
    check_choice("similarity", similarity, ("correlation", "covariance", "uncentred"))
    check_choice("tap", tap, tuple(TAPS))
    places: dict[str, list[tuple[str, Tap]]] = {}
    moments: dict[tuple[str, str], Moments] = {}
    for name, group in groups.items():
        if not group.taps:
            raise InputError(
                f"group '{name}' ({group.members[0].tensor}) shows in no activation; accepted: matchers that read "
                "weights, such as 'weight' or 'graph'"
            )
        for place in _taps(group, tap):
            places.setdefault(place.node, []).append((name, place))
            moments[name, place.node] = Moments(group.size, device)
    for model in (model_a, model_b):
        model.to(device).eval()
    seen = 0
    for batch in tqdm(batches, desc="activations", unit="batch", disable=not progress, leave=False, mininterval=2):
        images = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
        seen += len(images)
        steps = zip(symmetry.walk(model_a, groups, images), symmetry.walk(model_b, groups, images), strict=True)
        for (node, a), (_, b) in steps:
            for name, place in places.get(node.name, []):
                size = groups[name].size
                moments[name, node.name].add(features(a, place, size), features(b, place, size))
    if not seen:
        raise InputError("matcher 'activation' needs images; accepted: match_images ≥ 1")
    found = {}
    for name in groups:
        every = [m for (group, _), m in moments.items() if group == name]
        for m in every:
            check_finite(m.squares, name)  # dividing by an infinite deviation would give plain zeros
        found[name] = torch.stack([m.similarity(similarity, epsilon).cpu() for m in every]).mean(dim=0)
    return found


def _activation(pair: _Pair, similarity: str = "correlation", tap: str = "post_relu", epsilon: float = 1e-4) -> _Found:
    found = activation_similarity(
        pair.model_a, pair.model_b, pair.groups, pair.batches,
        similarity=similarity, tap=tap, epsilon=epsilon, device=pair.device, progress=pair.progress,
    )  # fmt: skip
    perms = {name: assign(matrix, name) for name, matrix in found.items()}
    objective = sum(float(m[torch.arange(len(m)), perms[name]].sum()) for name, m in found.items())
    return perms, objective, found, {}


def _spectral(orientation: str) -> Callable[..., _Found]:
    def run(pair: _Pair, solver: str = "sweep", memory: float = 4 * GIB) -> _Found:
        perms, info = graph_matching.spectral(
            *pair.states, pair.groups, solver=solver, orientation=orientation, memory=memory
        )
        similarity = info.pop("similarity")
        objective = sum(float(m[torch.arange(len(m)), perms[name]].sum()) for name, m in similarity.items())
        return perms, objective, similarity, info

    return run


def _eps(model: nn.Module) -> dict[str, float]:
    """The epsilon of each BatchNorm, by module name."""
    return {name: module.eps for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def _quadratic(fixed: str | None, kernel: str | None = None) -> Callable[..., _Found]:
    """A matcher on the quadratic objective of lib.graph_problem; `fixed` is its solver, None leaves it an option."""

    def solve(pair: _Pair, solver: str, memory: float, activations: float, restarts: int, **options) -> _Found:
        similarity = None
        if activations:
            if pair.batches is None:
                raise InputError("option activations looks at images; give the matcher batches")
            similarity = activation_similarity(
                pair.model_a, pair.model_b, pair.groups, pair.batches, device=pair.device, progress=pair.progress
            )
        problem = Problem(
            *pair.states, pair.groups, similarity=similarity, similarity_weight=activations,
            device=_exact(pair.device), memory=memory, eps=_eps(pair.model_a),
        )  # fmt: skip
        found = graph_solvers.solve(
            problem, solver=solver, restarts=restarts, generator=pair.generator, progress=pair.progress, **options
        )
        info = {"solver": found.solver, "iterations": found.iterations, "converged": found.converged}
        return found.perms, found.objective, found.soft, info

    if fixed is None:

        def run(
            pair: _Pair, solver: str = "graph", memory: float = GIB, activations: float = 0.0, restarts: int = 0
        ) -> _Found:
            return solve(pair, solver, memory, activations, restarts)
    else:

        def run(pair: _Pair, memory: float = GIB, activations: float = 0.0, restarts: int = 0) -> _Found:
            return solve(pair, fixed, memory, activations, restarts, **({"kernel": kernel} if kernel else {}))

    return run


@dataclass(frozen=True)
class Matcher:
    """A matcher: how it runs, whether it looks at images, and what it does in a line."""

    run: Callable[..., _Found]
    images: bool
    what: str
    chain: bool = False  # takes only a plain chain of layers without biases or norms


MATCHERS = {
    "none": Matcher(_none, False, "leaves B as it is"),
    "activation": Matcher(_activation, True, "assignment on the correlation of activations (Li et al. 2015)"),
    "weight": Matcher(
        _quadratic("coordinate_descent", "inner"),
        False,
        "coordinate descent on weights (Git Re-Basin, Ainsworth et al. 2023)",
    ),
    "sinkhorn": Matcher(_quadratic("softassign"), False, "annealed soft assignment (Gold & Rangarajan 1996)"),
    "graph_reference": Matcher(
        _spectral("reference"),
        False,
        "spectral matching as published, inverse permutation included (Liu et al. 2022)",
        True,
    ),
    "graph_sm": Matcher(
        _spectral("correct"), False, "the same spectral matching, the permutation the right way round", True
    ),
    "graph": Matcher(
        _quadratic(None),
        False,
        "two-sided graph matching: soft assignment, then coordinate descent on the exact kernel",
    ),
}


def check_network(matcher: str, model: nn.Module, groups: Groups) -> None:
    """Raises InputError, in one line, when the matcher cannot take this architecture."""
    if MATCHERS[matcher].chain:
        graph_matching.chain(model.state_dict(), model.state_dict(), groups)


class Peak:
    """Extra memory that a block of code took at its peak, in bytes: on CUDA torch's allocations, on Linux the
    process's resident set; None elsewhere, where no system counter can be reset."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.bytes: int | None = None

    def __enter__(self) -> "Peak":
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start: int | None = torch.cuda.memory_allocated(self.device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
                self.start = self._resident("VmRSS")
            except (OSError, TypeError):
                self.start = None
        return self

    def __exit__(self, *exception) -> None:
        if self.start is not None:
            top = torch.cuda.max_memory_allocated(self.device) if self.cuda else self._resident("VmHWM")
            self.bytes = max(0, top - self.start)

    @staticmethod
    def _resident(field: str) -> int:
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def check_options(matcher: str, options: Mapping) -> None:
    """Raises InputError, in one line, for an unknown matcher or an option that it does not take."""
    checks.check_options("matcher", matcher, MATCHERS, options)


def match(
    model_a: nn.Module,
    model_b: nn.Module,
    groups: Groups,
    matcher: str = "activation",
    *,
    batches: Iterable | None = None,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    progress: bool = True,
    **options,
) -> Matching:
    """The permutations of B's units that line it up with A, found by the matcher of that name.

    Args:
        model_a, model_b: two networks of one architecture; put on `device` and in evaluation mode, weights unchanged.
        groups: their permutation groups (`symmetry.trace`).
        batches: of (images (N, …), labels) or of images, for matchers that look at data (`MATCHERS[name].images`).
        generator: of random restarts and orders, where a matcher has them; seed 0 when absent.
        options: the matcher's own, such as similarity="covariance" or solver="pygmtools".

    Raises:
        InputError: unknown matcher or option, images needed and not given, or a network it cannot take.
    """
    check_options(matcher, options)
    if MATCHERS[matcher].images and batches is None:
        raise InputError(f"matcher '{matcher}' looks at images; give it batches")
    generator = generator or torch.Generator().manual_seed(0)
    pair = _Pair(model_a.eval(), model_b.eval(), groups, batches, device, generator, progress)
    with Peak(device) as peak:
        start = time.perf_counter()
        perms, objective, similarity, info = MATCHERS[matcher].run(pair, **options)
        seconds = time.perf_counter() - start
    found = Matching(perms)
    found.seconds, found.peak_bytes = seconds, peak.bytes
    found.matcher, found.objective, found.options = matcher, objective, dict(options)
    found.similarity, found.info = dict(similarity) if similarity else None, info
    return found
