"""Solvers of the quadratic assignment problem in `graph_problem`, all matrix-free.

`solve` picks one by name. "graph", the default, anneals a soft assignment on the inner-product objective and polishes
it by coordinate descent on the exact one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from lib.graph_problem import KERNELS, Cache, Problem, assign, choose

# A soft exact gradient takes n^4 kernel values: at 4e9 of them, a minute an iteration.
MOST_SOFT_WORK = 4e9


@dataclass
class Solution:
    """perms: LongTensor (n,) a group, moving B: unit perm[a] of B takes place a of A. objective: F(perms) with the
    exact kernel, whatever kernel was climbed. history: the climbed objective (softassign: the temperature's inverse
    and the mean largest entry) an iteration. soft: the last soft assignment float (n, n) a group, where there is one.
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
    """exp(logits) scaled to a doubly stochastic matrix (Sinkhorn, 1964). logits (n, n), any float dtype; float64 (n, n).

    Columns are scaled last. Rows and columns are first shifted to a largest entry of 0 each, so that no sum vanishes.
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

    Starts flat; each iteration passes once over the groups, forwards and backwards in turn, and sets each group's soft
    assignment to the Sinkhorn scaling of exp(beta G / std(G)), with G the gradient at the others' newest soft
    assignments, its rows and columns centred. beta rises geometrically from `start` to `stop`. Ends early once every
    group's assignment is sharp and has not changed for three iterations; converged says whether it did, or whether at
    least the assignments had stopped changing when beta reached `stop`.

    noise: entries of the flat start are multiplied by 1 + noise * U(0, 1), drawn from `generator` (CPU); the annealing
    forgets it unless `start` is well above 1. The permutations are the assignments of the soft ones in Solution.soft.
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
        perms = {name: assign(X[name]) for name in names}
    return Solution(perms, "softassign", "inner", problem.objective(perms), len(history), steady > 0, history, X)


def coordinate_descent(
    problem: Problem,
    *,
    kernel: str = "inner",
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    max_sweeps: int = 100,
    progress: bool = False,
) -> Solution:
    choose("kernel", kernel, KERNELS)
    perms = {name: perm.clone() for name, perm in (start or problem.identity()).items()}
    names = list(problem.sizes)
    stale = dict.fromkeys(names, True)
    history: list[float] = []
    with problem.workers.session():
        cache = Cache(problem, kernel)
        bar = tqdm(range(max_sweeps), desc=f"coordinate descent ({kernel})", disable=not progress)
        for sweep in bar:
            order = torch.randperm(len(names), generator=generator).tolist() if generator else range(len(names))
            for name in (names[i] for i in order):
                if not stale[name]:
                    continue
                stale[name] = False
                G = problem.gradient(name, perms, kernel, cache)
                better = assign(G)
                if torch.equal(better, perms[name]):
                    continue
                value = [G.gather(1, p.to(G.device)[:, None]).sum().item() for p in (better, perms[name])]
                if name in problem.neighbours(name):
                    value = [problem.objective(perms | {name: p}, kernel) for p in (better, perms[name])]
                if value[0] - value[1] <= 1e-9 * abs(value[1]):
                    continue
                perms[name] = better
                for other in problem.neighbours(name):
                    stale[other] = True
            history.append(problem.objective(perms, kernel))
            if not any(stale.values()):
                break
    F = history[-1] if kernel == "exp" else problem.objective(perms)
    return Solution(perms, "coordinate_descent", kernel, F, sweep + 1, not any(stale.values()), history)
