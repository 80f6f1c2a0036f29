"""Similarity between units + assignment = permutations: every matcher by name, one signature.

`match` moves B: permuted with its result, unit i of B stands where unit i of A does. See `MATCHERS` for what each
needs. The quadratic objective and its solvers live in `problem` and `solvers`.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import checks
from ..checks import InputError
from ..symmetry import Groups
from . import solvers
from .activation import _exact, activation_similarity
from .assignment import assign
from .peak import Peak
from .problem import GIB, Problem
from .spectral import chain, spectral


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
        perms, info = spectral(*pair.states, pair.groups, solver=solver, orientation=orientation, memory=memory)
        similarity = info.pop("similarity")
        objective = sum(float(m[torch.arange(len(m)), perms[name]].sum()) for name, m in similarity.items())
        return perms, objective, similarity, info

    return run


def _eps(model: nn.Module) -> dict[str, float]:
    """The epsilon of each BatchNorm, by module name."""
    return {name: module.eps for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def _quadratic(fixed: str | None, kernel: str | None = None) -> Callable[..., _Found]:
    """A matcher on the quadratic objective of `Problem`; `fixed` is its solver, None leaves it an option."""

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
        found = solvers.solve(
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
        chain(model.state_dict(), model.state_dict(), groups)


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
