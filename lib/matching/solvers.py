"""Solvers of the quadratic assignment problem in `problem`, all matrix-free.

`solve` picks one by name. "graph", the default, anneals a soft assignment on the inner-product objective and
polishes it by coordinate descent on the exact one.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..checks import InputError, check_choice
from ..progress import tqdm
from .assignment import assign, check_finite
from .problem import KERNELS, Cache, Problem

# A soft exact gradient takes n^4 kernel values: at 4e9 of them, a minute an iteration.
MOST_SOFT_WORK = 4e9


@dataclass
class Solution:
    """perms: LongTensor (n,) a group, moving B: unit perm[a] of B takes place a of A. objective: F(perms)
    with the exact kernel, whatever kernel was climbed. history: the climbed objective (softassign: the
    temperature's inverse and the mean largest entry) an iteration. soft: the last soft assignment float (n,
    n) a group, where there is one.
    """

    perms: dict[str, Tensor]
    solver: str
    kernel: str
    objective: float
    iterations: int
    converged: bool
    history: list = field(default_factory=list)
    soft: dict[str, Tensor] | None = None


def sinkhorn(logits: Tensor, iterations: int = 20) -> Tensor:
    """exp(logits) scaled to a doubly stochastic matrix (Sinkhorn, 1964). logits (n, n), any float dtype;
    float64 (n, n).

    Columns are scaled last. Rows and columns are first shifted to a largest entry of 0 each, so that no sum
    vanishes.
    """
    M = logits.double()
    M = M - M.amax(1, keepdim=True)
    M = (M - M.amax(0, keepdim=True)).exp_()
    column = torch.ones(M.shape[1], dtype=M.dtype, device=M.device)
    for _ in range(max(1, iterations)):
        row = 1 / (M @ column)
        column = 1 / (row @ M)
    return M.mul_(row[:, None]).mul_(column[None, :])


def softassign(
    problem: Problem,
    *,
    iterations: int = 40,
    start: float = 1.0,
    stop: float = 5.0,
    sinkhorn_iterations: int = 20,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Solution:
    """Softassign (Gold & Rangarajan, PAMI 1996): the inner-product objective climbed by annealed Sinkhorn.

    Starts flat; each iteration passes once over the groups, forwards and backwards in turn, and sets each
    group's soft assignment to the Sinkhorn scaling of exp(beta G / std(G)), with G the gradient at the
    others' newest soft assignments, its rows and columns centred. beta rises geometrically from `start` to
    `stop`. Ends early once every group's assignment is sharp and has not changed for three iterations;
    converged says whether it did, or whether at least the assignments had stopped changing when beta reached
    `stop`.

    noise: entries of the flat start are multiplied by 1 + noise * U(0, 1), drawn from `generator` (CPU); the
    annealing forgets it unless `start` is well above 1. The permutations are the assignments of the soft ones
    in Solution.soft.
    """
    names, X, history = list(problem.sizes), problem.flat(), []
    if noise:
        for name in names:
            draw = torch.rand(X[name].shape, generator=generator).to(problem.device)
            X[name] = X[name] * (1 + noise * draw)
    steady, largest = 0, {name: None for name in names}
    with problem.workers.session():
        bar = tqdm(range(iterations), desc="softassign", disable=not progress, leave=False)
        for step in bar:
            beta = start * (stop / start) ** (step / max(1, iterations - 1))
            sharp, same = [], True
            for name in names if step % 2 else names[::-1]:
                G = problem.soft_gradient(name, X, "inner")
                check_finite(G, name)  # here, since one group's overflow spreads to all
                G = G - G.mean(0, keepdim=True) - G.mean(1, keepdim=True) + G.mean()
                X[name] = sinkhorn(G * (beta / G.std().clamp_min(1e-30)), sinkhorn_iterations).float()
                top, where = X[name].max(1)
                sharp.append(top.mean().item())
                same &= largest[name] is not None and torch.equal(where, largest[name])
                largest[name] = where
            history.append((beta, sum(sharp) / len(sharp)))
            steady = steady + 1 if same else 0
            if steady >= 3 and min(sharp) > 0.9:
                break
        perms = {name: assign(X[name], name) for name in names}
        final = problem.objective(perms)
    return Solution(perms, "softassign", "inner", final, len(history), steady > 0, history, X)


def coordinate_descent(
    problem: Problem,
    *,
    kernel: str = "inner",
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    max_sweeps: int = 100,
    progress: bool = False,
) -> Solution:
    """One group at a time, the best permutation given the others, until none can be bettered.

    With kernel="inner" and the default start this is Git Re-Basin's weight matching (Ainsworth et al., ICLR
    2023). With kernel="exp" it climbs the exact objective of graph matching. start: LongTensor (n,) a group,
    default the identity. Groups are visited in a fresh random order each sweep, drawn from `generator` (CPU);
    without one, in their own. The objective never falls: where an edge joins a group to itself, a step is
    taken only if the objective itself rises. Solution.history: the climbed objective after each sweep.
    """
    check_choice("kernel", kernel, KERNELS)
    perms = {name: perm.clone() for name, perm in (start or problem.identity()).items()}
    names, history = list(problem.sizes), []
    stale = dict.fromkeys(names, True)  # whose neighbours moved since its last look
    with problem.workers.session():
        cache = Cache(problem, kernel)
        for _ in tqdm(range(max_sweeps), desc="coordinate descent", disable=not progress, leave=False):
            order = range(len(names))
            if generator is not None:
                order = torch.randperm(len(names), generator=generator).tolist()
            for name in (names[i] for i in order):
                if not stale[name]:
                    continue
                stale[name] = False
                if _improve(problem, name, perms, kernel, cache):
                    stale |= dict.fromkeys(problem.neighbours(name), True)
            history.append(problem.objective(perms, kernel))
            if not any(stale.values()):
                break
        final = history[-1] if kernel == "exp" and history else problem.objective(perms)
    return Solution(perms, "coordinate_descent", kernel, final, len(history), not any(stale.values()), history)


def forward(problem: Problem, kernel: str = "inner") -> dict[str, Tensor]:
    """A start for `coordinate_descent`: each group, in the network's order, by what it shares with those before it.

    Where B is A with its units reordered this finds the order, which the descent from the identity may not: there
    almost nothing that a group is compared by is in place yet.
    """
    perms: dict[str, Tensor] = {}
    with problem.workers.session():
        for name in problem.sizes:
            perms[name] = assign(problem.gradient(name, perms, kernel), name)
    return perms


def _improve(problem: Problem, name: str, perms: dict[str, Tensor], kernel: str, cache: Cache) -> bool:
    G = problem.gradient(name, perms, kernel, cache)
    old, new = perms[name], assign(G, name)
    if torch.equal(old, new):
        return False
    if name in problem.neighbours(name):  # F is not linear in this group: ask F itself
        value = [problem.objective(perms | {name: perm}, kernel) for perm in (old, new)]
    else:
        value = [G.gather(1, perm.to(G.device)[:, None]).sum().item() for perm in (old, new)]
    if value[1] - value[0] <= 1e-9 * abs(value[0]):  # a tie, up to rounding
        return False
    perms[name] = new
    return True


def graph(
    problem: Problem,
    *,
    generator: torch.Generator | None = None,
    max_sweeps: int = 100,
    progress: bool = False,
    **annealing,
) -> Solution:
    """The default: `softassign` on the inner-product objective, then `coordinate_descent` on the exact one.

    annealing: options of `softassign`. Solution.soft is softassign's; iterations counts its iterations and
    the sweeps; history is the sweeps'; converged is the coordinate descent's. generator: see both.
    """
    with problem.workers.session():
        soft = softassign(problem, generator=generator, progress=progress, **annealing)
        hard = coordinate_descent(
            problem, kernel="exp", start=soft.perms, generator=generator, max_sweeps=max_sweeps, progress=progress
        )
    return replace(hard, solver="graph", iterations=soft.iterations + hard.iterations, soft=soft.soft)


def frank_wolfe(
    problem: Problem,
    *,
    kernel: str = "exp",
    start: Mapping[str, Tensor] | None = None,
    unary: str = "linear",
    max_iterations: int = 50,
    tolerance: float = 1e-6,
    progress: bool = False,
) -> Solution:
    """Frank-Wolfe over doubly stochastic matrices from their barycentre (FAQ: Vogelstein et al., PLOS ONE 2015).

    Every step goes towards a permutation, the gradient is linear in the assignment, and so exact gradients
    are needed at permutations only. The flat start of an exact kernel costs O(n^4 d); above 4e9 kernel values
    the barycentre of eight cyclic shifts takes its place. start: permutations, LongTensor (n,) a group, to
    begin half-way towards. unary="diagonal" puts what depends on one unit on K's diagonal, as
    `Problem.affinity` does: that is `ipfp`.

    Stops when the duality gap falls below `tolerance` times the objective. Returns the best permutations met
    on the way; history: the relaxed objective.
    """
    check_choice("kernel", kernel, KERNELS)
    check_choice("unary", unary, ("linear", "diagonal"))
    names, history, converged = list(problem.sizes), [], False
    best, best_value = problem.identity(), -float("inf")
    with problem.workers.session():
        L = problem.linear(kernel)
        X, H = _barycentre(problem, kernel)
        if start is not None:
            P, HP = _vertex(problem, start, kernel, Cache(problem, kernel))
            X, H = ({n: (old[n] + to[n]) / 2 for n in names} for old, to in ((X, P), (H, HP)))
        cache = Cache(problem, kernel)

        def slope(x: dict[str, Tensor], h: dict[str, Tensor], constant: bool) -> dict[str, Tensor]:
            if unary == "diagonal":
                return {n: h[n] + 2 * L[n] * x[n] for n in names}
            return {n: h[n] + L[n] if constant else h[n] for n in names}

        for _ in tqdm(range(max_iterations), desc="Frank-Wolfe", disable=not progress, leave=False):
            G = slope(X, H, True)
            perms = {n: assign(G[n], n) for n in names}
            P, HP = _vertex(problem, perms, kernel, cache)
            value = _dot(P, HP) / 2 + _dot(P, L)
            if value > best_value:
                best, best_value = perms, value
            D, HD = ({n: to[n] - old[n] for n in names} for old, to in ((X, P), (H, HP)))
            gap, curvature = _dot(G, D), _dot(D, slope(D, HD, False))
            history.append(_dot(X, G) / 2 + (_dot(X, L) / 2 if unary == "linear" else 0))
            if gap <= tolerance * abs(value):
                converged = True
                break
            t = 1.0 if curvature >= 0 else min(1.0, -gap / curvature)
            X, H = ({n: old[n] + t * step[n] for n in names} for old, step in ((X, D), (H, HD)))
        final = problem.objective(best)
    return Solution(best, "frank_wolfe", kernel, final, len(history), converged, history, X)


def ipfp(problem: Problem, **options) -> Solution:
    """Integer projected fixed point (Leordeanu, Hebert & Sukthankar, NIPS 2009): `frank_wolfe` with the terms
    of single units on K's diagonal, as in `pygmtools.ipfp`. Options as there.
    """
    return replace(frank_wolfe(problem, unary="diagonal", **options), solver="ipfp")


def _vertex(problem: Problem, perms: Mapping[str, Tensor], kernel: str, cache: Cache):
    """Permutations as matrices and the gradient's quadratic part there, float64 (n, n) a group each."""
    X = {name: one_hot(perms[name].to(problem.device), n).double() for name, n in problem.sizes.items()}
    return X, {name: problem.quadratic(name, perms, kernel, cache) for name in problem.sizes}


def _barycentre(problem: Problem, kernel: str):
    if kernel == "inner" or problem.soft_work() <= MOST_SOFT_WORK:
        X = {name: flat.double() for name, flat in problem.flat().items()}
        return X, {name: problem.soft_quadratic(name, X, kernel) for name in X}
    X, H, shifts, cache = {}, {}, 8, Cache(problem, "inner")  # nothing to gain from holding gradients here
    cache.kernel = kernel
    for shift in range(shifts):
        perms = {name: torch.arange(n).roll(shift * n // shifts) for name, n in problem.sizes.items()}
        for total, part in zip((X, H), _vertex(problem, perms, kernel, cache), strict=True):
            for name in part:
                total[name] = total.get(name, 0) + part[name] / shifts
    return X, H


def _dot(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> float:
    return sum((x[name] * y[name]).sum().item() for name in x)


def spectral_symmetric(
    problem: Problem,
    *,
    kernel: str = "exp",
    max_iterations: int = 50,
    tolerance: float = 1e-5,
    progress: bool = False,
) -> Solution:
    """Spectral matching (Leordeanu & Hebert, ICCV 2005): power iteration on `Problem.affinity`, symmetric.

    What `pygmtools.sm` computes on that K, without it: from a constant vector, until an iteration moves the
    vector of unit norm by less than `tolerance`. The exact kernel takes O(n^4 d) an iteration. Solution.soft:
    the eigenvector, float64 (n, n) a group.
    """
    _check_soft_work(problem, kernel)
    ones = {n: torch.ones(s, s, dtype=torch.float64, device=problem.device) for n, s in problem.sizes.items()}
    X, history = _scaled(ones, 2), []
    with problem.workers.session():
        for _ in tqdm(range(max_iterations), desc="spectral", disable=not progress, leave=False):
            before, X = X, _scaled(_product(problem, X, kernel), 2)
            history.append(sum((X[n] - before[n]).square().sum().item() for n in X) ** 0.5)
            if history[-1] < tolerance:
                break
        return _rounded(problem, X, "spectral_symmetric", kernel, history, history[-1] < tolerance)


def spectral_one_way(
    problem: Problem,
    *,
    kernel: str = "exp",
    max_iterations: int = 50,
    tolerance: float = 1e-7,
    progress: bool = False,
) -> Solution:
    """Spectral matching (Leordeanu & Hebert, ICCV 2005) of the published one-way K (Liu et al., ICML 2022), for any
    problem: `spectral.sweep` beyond plain chains.

    Power iteration as `pygmtools.sm` runs it on that K: scores flow from a layer's outputs to its inputs;
    fixed outputs hold ones; nodes (biases, folded BatchNorms) stand on the diagonal. Edges from fixed inputs
    never enter. The exact kernel takes O(n^4 d) an iteration. Solution.soft: float64 (n, n) a group, to one
    common scale.
    """
    _check_soft_work(problem, kernel)
    source, diagonal = problem.one_way_terms(kernel)
    ones = 1.0
    X, history = {name: torch.ones_like(L) for name, L in source.items()}, []
    with problem.workers.session():
        for _ in tqdm(range(max_iterations), desc="spectral", disable=not progress, leave=False):
            before = X
            X = {name: ones * source[name] + diagonal[name] * x for name, x in before.items()}
            for index, edge in enumerate(problem.edges):
                if edge.row is not None and edge.col is not None:
                    X[edge.col] = X[edge.col] + problem.product(index, "col", before[edge.row], kernel)
            largest = max(x.abs().max().item() for x in X.values())
            X, ones = {name: x / largest for name, x in X.items()}, ones / largest
            change = [(x / x.norm() - before[n] / before[n].norm()).norm().item() for n, x in X.items()]
            history.append(max(change))
            if history[-1] < tolerance:
                break
        return _rounded(problem, X, "spectral", kernel, history, history[-1] < tolerance)


def rrwm(
    problem: Problem,
    *,
    kernel: str = "exp",
    max_iterations: int = 50,
    sinkhorn_iterations: int = 10,
    alpha: float = 0.2,
    beta: float = 30.0,
    tolerance: float = 1e-5,
    progress: bool = False,
) -> Solution:
    """Reweighted random walks (Cho, Lee & Lee, ECCV 2010) on `Problem.affinity`, which is never built.

    alpha: weight of the reweighted jump; beta: its inflation. As `pygmtools.rrwm` (whose sinkhorn counts half
    iterations) on one group; with several, each group is inflated and scaled on its own, where pygmtools
    would let units of different layers compete. The exact kernel takes O(n^4 d) an iteration.
    """
    _check_soft_work(problem, kernel)
    ones = {n: torch.ones(s, s, dtype=torch.float64, device=problem.device) for n, s in problem.sizes.items()}
    X, history = _scaled(ones, 1), []
    with problem.workers.session():
        for _ in tqdm(range(max_iterations), desc="RRWM", disable=not progress, leave=False):
            before, walk = X, _scaled(_product(problem, X, kernel), 1)
            jump = {n: sinkhorn((beta / x.max()) * x.T, sinkhorn_iterations).T for n, x in walk.items()}
            X = _scaled({n: alpha * jump[n] + (1 - alpha) * walk[n] for n in walk}, 1)
            history.append(sum((X[n] - before[n]).square().sum().item() for n in X) ** 0.5)
            if history[-1] < tolerance:
                break
        return _rounded(problem, X, "rrwm", kernel, history, history[-1] < tolerance)


def _check_soft_work(problem: Problem, kernel: str) -> None:
    check_choice("kernel", kernel, KERNELS)
    if kernel == "exp" and problem.soft_work() > MOST_SOFT_WORK:
        raise InputError(
            f"this solver would take {problem.soft_work():.1e} exact kernel values an iteration; "
            "accepted: kernel='inner', or solver 'graph', which needs none"
        )


def _product(problem: Problem, X: Mapping[str, Tensor], kernel: str) -> dict[str, Tensor]:
    """K X for the symmetric K of `Problem.affinity`."""
    L = problem.linear(kernel)
    return {name: problem.soft_quadratic(name, X, kernel) / 2 + L[name] * X[name] for name in X}


def _scaled(X: Mapping[str, Tensor], p: int) -> dict[str, Tensor]:
    norm = sum(x.abs().pow(p).sum().item() for x in X.values()) ** (1 / p)
    return {name: x / max(norm, 1e-300) for name, x in X.items()}


def _rounded(problem, X, solver: str, kernel: str, history: list, converged: bool) -> Solution:
    perms = {name: assign(x, name) for name, x in X.items()}
    return Solution(perms, solver, kernel, problem.objective(perms), len(history), converged, history, X)


SOLVERS = {
    "graph": graph,
    "softassign": softassign,
    "coordinate_descent": coordinate_descent,
    "frank_wolfe": frank_wolfe,
    "ipfp": ipfp,
    "rrwm": rrwm,
    "spectral": spectral_one_way,
    "spectral_symmetric": spectral_symmetric,
}
RESTARTABLE = ("graph", "softassign", "coordinate_descent", "frank_wolfe", "ipfp")


def solve(
    problem: Problem,
    *,
    solver: str = "graph",
    restarts: int = 0,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **options,
) -> Solution:
    """Permutations that line network B up with network A, by the solver of that name (`SOLVERS`).

    restarts: further runs from random starts drawn from `generator` (CPU, required then); the run of the
    highest exact objective is returned. The same generator state gives the same permutations on any number of
    threads.
    options: those of the solver's own function. Raises InputError for an unknown solver or option, and for
    restarts of a solver that has only one start (spectral, spectral_symmetric, rrwm).
    """
    check_choice("solver", solver, tuple(SOLVERS))
    known = [*inspect.signature(SOLVERS[solver]).parameters]
    if solver == "graph":
        known += inspect.signature(softassign).parameters
    if solver == "ipfp":
        known += [name for name in inspect.signature(frank_wolfe).parameters if name != "unary"]
    accepted = sorted(set(known) - {"problem", "progress", "options", "annealing", "generator"})
    for option in options:
        check_choice(f"option of solver {solver!r}:", option, accepted)
    if restarts and solver not in RESTARTABLE:
        raise InputError(f"solver {solver!r} has one start only; restarts: {', '.join(RESTARTABLE)}")
    if restarts and generator is None:
        raise InputError("restarts are random: pass a torch.Generator")
    if solver in ("graph", "softassign", "coordinate_descent"):
        options["generator"] = generator
    if not problem.sizes:  # no groups: nothing to permute
        return Solution({}, solver, options.get("kernel", "exp"), 0.0, 0, True)

    with problem.workers.session():
        best = SOLVERS[solver](problem, progress=progress, **options)
        for _ in tqdm(range(restarts), desc="restarts", disable=not (progress and restarts)):
            if solver in ("graph", "softassign"):
                # Hot enough, annealing forgets where it started: so these start cold.
                again = {"noise": 1.0, "start": 3.0, "stop": max(5.0, options.get("stop", 5.0))}
            else:
                again = {"start": {n: torch.randperm(s, generator=generator) for n, s in problem.sizes.items()}}
            run = SOLVERS[solver](problem, progress=False, **(options | again))
            if run.objective > best.objective:
                best = run
    return best
