"""Similarity between units + assignment = permutations: every matcher by name, one signature.

`match` brings networks into one order: permuted with its maps, units that do the same stand in the same place. For two
networks matchers move the second, B, to the first, A; for more their `strategy` says how. See `MATCHERS` for what each
needs. The quadratic objective and its solvers live in `problem` and `solvers`, those of several networks in `joint`.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import loaders, models, symmetry
from ..checks import InputError, read_method, spell_method
from ..symmetry import Groups
from . import solvers
from .activation import TAPS, _exact, activation_similarities, activation_similarity
from .assignment import assign
from .joint import Joint, block_descent, joint_assignment, synchronised_frank_wolfe
from .maps import REACH, canonical, descend, from_activations, reached, similarity_of
from .peak import Peak
from .problem import GIB, Problem
from .spectral import chain, spectral


class Matching(dict[str, Tensor]):
    """{group: LongTensor (size,) or matrix (size, size)}, moving one network to another, and how it came about.

    `matcher` is its name, with the options that differ from their defaults; `objective` what it maximised, summed over
    groups, and of several networks that are matched together over their pairs; `similarity` the (size, size) matrix
    [unit of A, unit of B] that was assigned, where there is one; `info` what else the matcher reports.
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
        assigned = {n: m for n, m in (self.similarity or {}).items() if not self[n].is_floating_point()}
        return {name: m[torch.arange(len(m)), symmetry.completed(self[name])] for name, m in assigned.items()}


# What a matcher works on: networks in evaluation mode, their groups, batches of images (or None), a device.
@dataclass(frozen=True)
class _Networks:
    networks: Sequence[nn.Module]
    groups: Groups
    batches: Iterable | None
    device: torch.device | str
    seed: int
    progress: bool

    def pairs(self) -> Iterator["_Pair"]:
        """The first network with each of the others."""
        for network in self.networks[1:]:
            generator = torch.Generator().manual_seed(self.seed)
            yield _Pair(self.networks[0], network, self.groups, self.batches, self.device, generator, self.progress)


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
            {name: t.to(device) for name, t in model.state_dict().items() if not models.is_extra(name, t)}
            for model in (self.model_a, self.model_b)
        )
        return a, b


# A matcher returns (perms, objective, similarity or None, info) of a pair, or a list of them: of every network but the
# first.
_Result = tuple[Mapping[str, Tensor], float | None, Mapping[str, Tensor] | None, dict]


def _chosen(networks: _Networks, strategy: str, joint: str | None) -> str:
    """The strategy to take; `joint` says why "joint" and its like cannot be, None where they can.

    Raises:
        InputError: one that cannot be.
    """
    if strategy == "reference" or (strategy == "auto" and (joint or len(networks.networks) == 2)):
        return "reference"
    if joint:
        raise InputError(f"strategy '{strategy}' does not take {joint}; accepted: reference")
    return "joint" if strategy == "auto" else strategy


STRATEGY = Literal["auto", "reference", "joint"]


def _none(pair: _Pair) -> _Result:
    return pair.groups.identity(), None, None, {}


def _random(pair: _Pair) -> _Result:
    return pair.groups.random(pair.generator), None, None, {}


def _activation(
    networks: _Networks,
    similarity: Literal["correlation", "covariance", "uncentred"] = "correlation",
    tap: Literal[tuple(TAPS)] = "post_relu",
    epsilon: float = 1e-4,
    maps: Literal["permutation", "orthogonal"] = "permutation",
    reach: Literal[REACH] = "all",
    strategy: STRATEGY = "auto",
) -> list[_Result]:
    """`maps`: with "orthogonal", groups that allow it are turned by a matrix; `reach`: see `maps.reached`."""
    if _chosen(networks, strategy, _inside(networks, maps)) == "reference":
        return [_activation_pair(pair, similarity, tap, epsilon, maps, reach) for pair in networks.pairs()]
    reached({}, networks.groups, reach)  # without heads it may be "all" alone
    similarities = activation_similarities(
        networks.networks, networks.groups, networks.batches,
        similarity=similarity, tap=tap, epsilon=epsilon, device=networks.device, progress=networks.progress,
    )  # fmt: skip
    sizes = {name: group.size for name, group in networks.groups.items()}
    perms, objective = joint_assignment(similarities, len(networks.networks), sizes)
    return [
        (each, objective, similarities[0, i], {"constant": _constant(similarities[0, i]), "strategy": "joint"})
        for i, each in enumerate(perms[1:], 1)
    ]


def _inside(networks: _Networks, maps: str) -> str | None:
    """What of a network is matched in pairs alone."""
    if maps != "permutation":
        return "matrices"
    return "networks with heads of attention" if networks.groups.inside else None


def _constant(similarities: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """How many units of A and of B are constant on the images, by group: they are like every other and like none, so
    that nothing says which their partner is."""
    constant = {name: [int((m == 0).all(dim).sum()) for dim in (1, 0)] for name, m in similarities.items()}
    return {name: counts for name, counts in constant.items() if any(counts)}


def _activation_pair(pair: _Pair, similarity: str, tap: str, epsilon: float, maps: str, reach: str) -> _Result:
    options = {"tap": tap, "epsilon": epsilon, "device": pair.device, "progress": pair.progress}
    similar = similarity_of(pair.batches, similarity=similarity, **options)
    similarities = similar(pair.model_a, pair.model_b, pair.groups)
    perms = {name: assign(matrix, name) for name, matrix in similarities.items()}
    objective = sum(float(m[torch.arange(len(m)), perms[name]].sum()) for name, m in similarities.items())
    found = from_activations(pair.model_a, pair.model_b, pair.groups, perms, similar, maps=maps)
    found = reached(found, pair.groups, reach)
    return found, objective, similarities, {"constant": _constant(similarities)}


def _spectral(orientation: str) -> Callable[..., _Result]:
    def run(pair: _Pair, solver: Literal["sweep", "pygmtools"] = "sweep", memory: float = 4 * GIB) -> _Result:
        perms, info = spectral(*pair.states, pair.groups, solver=solver, orientation=orientation, memory=memory)
        similarity = info.pop("similarity")
        objective = sum(float(m[torch.arange(len(m)), perms[name]].sum()) for name, m in similarity.items())
        return perms, objective, similarity, info

    return run


def _eps(model: nn.Module) -> dict[str, float]:
    """The epsilon of each BatchNorm, by module name."""
    return {name: module.eps for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def _problem(pair: _Pair, memory: float, activations: float) -> Problem:
    similarity = None
    if activations:
        if pair.batches is None:
            raise InputError("option activations looks at images; give the matcher batches")
        similarity = activation_similarity(
            pair.model_a, pair.model_b, pair.groups, pair.batches, device=pair.device, progress=pair.progress
        )
    return Problem(
        *pair.states, pair.groups, similarity=similarity, similarity_weight=activations,
        device=_exact(pair.device), memory=memory, eps=_eps(pair.model_a),
    )  # fmt: skip


def _joint(networks: _Networks, memory: float) -> Joint:
    """All of them against the first."""
    first = networks.networks[0]
    pairs = (
        _Pair(first, each, networks.groups, None, networks.device, torch.Generator(), False)
        for each in networks.networks
    )
    return Joint([_problem(pair, memory, 0.0) for pair in pairs])


def _from_pairs(networks: _Networks, results: Sequence[_Result], joint: Joint, kernel: str) -> list[_Result]:
    """Permutations of each network to the first, bettered together."""
    start = [networks.groups.identity(), *(dict(perms) for perms, *_ in results)]
    generator = torch.Generator().manual_seed(networks.seed)
    perms, history = block_descent(joint, start, kernel=kernel, generator=generator, progress=networks.progress)
    return _of_all(perms, history, joint, "joint", results)


def _of_all(
    perms: Sequence[Mapping[str, Tensor]],
    history: Sequence[float],
    joint: Joint,
    strategy: str,
    results: Sequence[_Result] | None = None,
) -> list[_Result]:
    info = {"strategy": strategy, "rounds": len(history) - 1, "history": list(history)}
    objective = joint.objective(perms, "exp")
    before = [each for *_, each in results] if results else [{}] * (len(perms) - 1)
    return [(each, objective, None, more | info) for each, more in zip(perms[1:], before, strict=True)]


def _descends(groups: Groups, maps: str) -> bool:
    """Whether `weight` goes by `maps.descend`."""
    return bool(groups.inside) or maps != "permutation"


def _weight(
    networks: _Networks,
    memory: float = GIB,
    activations: float = 0.0,
    restarts: int = 0,
    best: bool = False,
    maps: Literal["permutation", "orthogonal"] = "permutation",
    reach: Literal[REACH] = "all",
    strategy: Literal["auto", "reference", "joint", "merge_many", "cycle_consistent"] = "auto",
) -> list[_Result]:
    """Git Re-Basin's descent, from the identity as published and from `solvers.forward`: with `best` whichever gets
    further; without it the first, unless it gets less than half as far: it has then stuck where it began. Where there
    are heads of attention, or matrices are asked for, `maps.descend` instead, which takes `maps` and `reach` alone
    (`_check_options`)."""
    strategy = _chosen(networks, strategy, _inside(networks, maps) or ("activations" if activations else None))
    if strategy in ("merge_many", "cycle_consistent"):
        joint = _joint(networks, memory)
        if strategy == "merge_many":
            generator = torch.Generator().manual_seed(networks.seed)
            start = [networks.groups.identity() for _ in networks.networks]
            found = block_descent(
                joint, start, kernel="inner", generator=generator, shuffled=True, progress=networks.progress
            )
        else:
            found = synchronised_frank_wolfe(joint, progress=networks.progress)
        return _of_all(*found, joint, strategy)
    results = [_weight_pair(pair, memory, activations, restarts, best, maps, reach) for pair in networks.pairs()]
    return results if strategy == "reference" else _from_pairs(networks, results, _joint(networks, memory), "inner")


def _weight_pair(
    pair: _Pair, memory: float, activations: float, restarts: int, best: bool, maps: str, reach: str
) -> _Result:
    if _descends(pair.groups, maps):
        found, objective, info = descend(pair.model_a, pair.model_b, pair.groups, maps=maps, progress=pair.progress)
        return reached(found, pair.groups, reach), objective, None, info
    problem = _problem(pair, memory, activations)
    options = {"solver": "coordinate_descent", "kernel": "inner", "generator": pair.generator}
    descents = {"identity": solvers.solve(problem, restarts=restarts, progress=pair.progress, **options)}
    if problem.sizes:
        descents["forward"] = solvers.solve(problem, start=solvers.forward(problem), progress=pair.progress, **options)
    values = {start: problem.objective(solution.perms, "inner") for start, solution in descents.items()}
    further = max(values, key=values.__getitem__)
    start = further if best or 2 * values["identity"] < values[further] else "identity"
    solution = descents[start]
    info = {"solver": solution.solver, "iterations": solution.iterations, "converged": solution.converged}
    return solution.perms, solution.objective, solution.soft, info | {"start": start}


def _quadratic(fixed: str | None) -> Callable:
    """A matcher on the quadratic objective of `Problem`; `fixed` is its solver, None leaves it an option."""

    def solve(pair: _Pair, solver: str, memory: float, activations: float, restarts: int) -> _Result:
        problem = _problem(pair, memory, activations)
        solution = solvers.solve(
            problem, solver=solver, restarts=restarts, generator=pair.generator, progress=pair.progress
        )
        info = {"solver": solution.solver, "iterations": solution.iterations, "converged": solution.converged}
        return solution.perms, solution.objective, solution.soft, info

    if fixed is None:

        def run(
            networks: _Networks,
            solver: Literal[tuple(solvers.SOLVERS)] = "graph",
            memory: float = GIB,
            activations: float = 0.0,
            restarts: int = 0,
            strategy: STRATEGY = "auto",
        ) -> list[_Result]:
            strategy = _chosen(networks, strategy, "activations" if activations else None)
            results = [solve(pair, solver, memory, activations, restarts) for pair in networks.pairs()]
            return (
                results if strategy == "reference" else _from_pairs(networks, results, _joint(networks, memory), "exp")
            )
    else:

        def run(pair: _Pair, memory: float = GIB, activations: float = 0.0, restarts: int = 0) -> _Result:
            return solve(pair, fixed, memory, activations, restarts)

    return run


@dataclass(frozen=True)
class Matcher:
    """A matcher: how it runs, on a pair of networks or `together` on all of them, whether it looks at images, and what
    it does in a line."""

    run: Callable[..., _Result | list[_Result]]
    images: bool
    what: str
    chain: bool = False  # takes only a plain chain of layers without biases or norms
    together: bool = False


MATCHERS = {
    "none": Matcher(_none, False, "leaves B as it is"),
    "random": Matcher(_random, False, "a random order: what any matching has to beat"),
    "activation": Matcher(
        _activation, True, "assignment on the correlation of activations (Li et al. 2015)", together=True
    ),
    "weight": Matcher(
        _weight,
        False,
        "coordinate descent on weights (Git Re-Basin, Ainsworth et al. 2023)",
        together=True,
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
        together=True,
    ),
}


def read_matcher(text: str, options: Mapping | None = None) -> tuple[str, dict]:
    """(name, options) of a matcher such as "activation(tap=pre_norm)"; see `checks.read_method`."""
    return read_method("matcher", text, MATCHERS, options)


def looks_at_images(matcher: str) -> bool:
    """Whether a matcher, with its options, needs images."""
    name, options = read_matcher(matcher)
    return MATCHERS[name].images or bool(options.get("activations"))


def check_network(matcher: str, model: nn.Module, groups: Groups) -> None:
    """Raises InputError, in one line, when the matcher cannot take this architecture."""
    name, options = read_matcher(matcher)
    _check_options(name, options, groups)
    if MATCHERS[name].chain:
        chain(model.state_dict(), model.state_dict(), groups)


def _check_options(name: str, options: Mapping, groups: Groups) -> None:
    """Raises InputError where an option would do nothing: those of `weight` that `maps.descend` does not take."""
    if name != "weight" or not _descends(groups, options.get("maps", "permutation")):
        return
    defaults = {option: p.default for option, p in inspect.signature(_weight).parameters.items()}
    unused = [o for o, value in options.items() if o not in ("maps", "reach", "strategy") and value != defaults[o]]
    if unused:
        what = "where it matches heads of attention or looks for matrices"
        raise InputError(
            f"matcher 'weight' takes no option {', '.join(unused)} {what}; accepted there: maps, reach, strategy"
        )


def match(
    networks: Sequence[nn.Module],
    groups: Groups,
    *name: str,
    matcher: str = "activation",
    images: Tensor | Iterable | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
    **options,
) -> list[Matching]:
    """One map a network that brings its units into the order of the first network's.

    More than two are matched together where the matcher can (`strategy`, an option of "activation", "weight" and
    "graph"): what it maximises for a pair is maximised in sum over all pairs. "joint" betters, one network at a time,
    the matchings of each to the first; "reference" leaves it at these. Peers, of "weight": "merge_many" (Git Re-Basin)
    and "cycle_consistent" (C2M3). "auto" is "joint", but "reference" of what is matched in pairs alone: heads of
    attention, matrices, the option activations.

    Args:
        networks: of one architecture, wrapped (DataParallel, torch.compile) or not; put on `device` and in evaluation
            mode, weights unchanged. They may differ in width, if one of them has as many units as any everywhere: then
            −1 stands in a narrower one's map where another has a unit and it has none.
        groups: their permutation groups (`symmetry.trace`), those of the widest.
        name, matcher: of `MATCHERS`, by place or by name, options in brackets if any: "activation(tap=pre_norm)".
        images: a tensor (N, …), or batches of images with or without labels (`loaders.read_batch`), for matchers that
            look at data (`looks_at_images`). Labels are never read.
        seed: of random restarts and orders, where a matcher has them.
        options: the matcher's own, such as similarity="covariance" or solver="pygmtools".

    Returns:
        A `Matching` each, in the order of the networks; the first moves nothing but, where matrices are asked for,
        balances what runs inside heads. Prove them before relying on them (`fusion.align` does).

    Raises:
        InputError: unknown matcher or option, or one that does nothing for these groups, images needed and not given,
            networks that differ in more than their weights, or that the matcher cannot take.
    """
    if len(name) > 1 or not isinstance(networks, list | tuple) or len(networks) < 2:  # or match(a, b, groups), as once
        raise InputError("match takes a list of at least two networks: match([a, b], groups, matcher)")
    name, options = read_matcher(*(name or (matcher,)), options)
    _check_options(name, options, groups)
    if MATCHERS[name].images and images is None:
        raise InputError(f"matcher '{name}' looks at images; give it images")
    batches = None if images is None else loaders.batched(images)
    networks = models.alike(networks, widths=True)
    networks, sizes = symmetry.in_one_width(networks, groups)
    for network in networks:
        network.eval()
    first = {}
    if options.get("maps") == "orthogonal":  # the first is brought into coordinates of its own, too: A's in `descend`
        first = reached(canonical(networks[0], groups, options["maps"])[0], groups, options.get("reach", "all"))
    maps = [_matching(groups.identity() | first, name, options)]
    with Peak(device) as peak:
        start = time.perf_counter()
        every = _Networks(networks, groups, batches, device, seed, progress)
        run = MATCHERS[name].run
        together = MATCHERS[name].together
        results = run(every, **options) if together else [run(pair, **options) for pair in every.pairs()]
        seconds = (time.perf_counter() - start) / len(results)
    for perms, objective, similarity, info in results:
        maps.append(_matching(perms, name, options, objective, seconds, peak.bytes, similarity, info))
    for own, perms in zip(sizes, maps, strict=True):
        perms.update({group: symmetry.blanked(perms[group], size) for group, size in own.items() if group in perms})
    return maps


def _matching(
    perms: Mapping[str, Tensor],
    name: str,
    options: Mapping,
    objective: float | None = None,
    seconds: float = 0.0,
    peak: int | None = None,
    similarity: Mapping[str, Tensor] | None = None,
    info: Mapping | None = None,
) -> Matching:
    matching = Matching(perms)
    matching.matcher, matching.options = spell_method(name, options, MATCHERS), dict(options)
    matching.objective, matching.seconds, matching.peak_bytes = objective, seconds, peak
    matching.similarity, matching.info = dict(similarity) if similarity else None, dict(info or {})
    return matching
