"""Several networks into one order: one map a network, so that going round any of them comes back to where it began.

What is maximised is the sum over all pairs of networks of what a matcher maximises for one pair. The common order is
that of the first network.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .. import symmetry
from ..progress import tqdm
from .assignment import assign
from .problem import Problem
from .solvers import coordinate_descent

Perms = Mapping[str, Tensor]
MOST_ROUNDS = 50


class Joint:
    """The weights of several networks as one quadratic assignment problem.

    Args:
        problems: `Problem`s with one and the same network as A and each of the networks as B, that one included.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)

    def __len__(self) -> int:
        return len(self.problems)

    def placed(self, network: int, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """The network's weights, of edges and then of nodes, moved by permutations (size,) or by doubly stochastic
        matrices (size, size)."""
        problem = self.problems[network]
        edges = [_moved(_moved(edge.b, edge.row, 1, maps), edge.col, 2, maps) for edge in problem.edges]
        return edges + [_moved(node.b, node.group, 0, maps) for node in problem.nodes]

    def towards(self, network: int, placed: Sequence[Sequence[Tensor]], *, summed: bool = False) -> Problem:
        """The problem of moving one network to others that stand as they are `placed`. `summed`: to the sum of their
        weights, which is the same for the inner product, and takes the time of one."""
        if summed:
            placed = [[torch.stack(part).sum(dim=0) for part in zip(*placed, strict=True)]]
        return self.problems[network].towards(placed)

    def objective(self, perms: Sequence[Perms], kernel: str) -> float:
        """The sum over all pairs of networks."""
        placed = [self.placed(i, each) for i, each in enumerate(perms)]
        return sum(self.towards(i, placed[:i]).objective(perms[i], kernel) for i in range(1, len(perms)))


def _moved(tensor: Tensor, group: str | None, axis: int, maps: Mapping[str, Tensor]) -> Tensor:
    if group is None:
        return tensor
    each = maps[group].to(tensor.device)
    if each.dim() == 1:
        return tensor.index_select(axis, each)
    return torch.tensordot(each.to(tensor.dtype), tensor, dims=([1], [axis])).movedim(0, axis)


def to_the_first(perms: Sequence[Perms]) -> list[dict[str, Tensor]]:
    """The same common order, named after the units of the first network: its permutations become the identity."""
    back = symmetry.inverse(perms[0])
    return [symmetry.compose(each, back) for each in perms]


def block_descent(
    joint: Joint,
    perms: Sequence[Perms],
    *,
    kernel: str,
    generator: torch.Generator,
    shuffled: bool = False,
    progress: bool = False,
) -> tuple[list[dict[str, Tensor]], list[float]]:
    """One network at a time, coordinate descent against all others as they stand, until none moves.

    From the identity, with kernel "inner" and `shuffled`, a new random order of the networks each round, this is Git
    Re-Basin's MergeMany (Ainsworth et al., ICLR 2023, algorithm 3).

    Returns:
        (permutations a network, those of the first the identity; the objective at first and after each round, which
        never falls).
    """
    perms = [dict(each) for each in perms]
    placed = [joint.placed(i, each) for i, each in enumerate(perms)]
    history = [joint.objective(perms, kernel)]
    for _ in tqdm(range(MOST_ROUNDS), desc="rounds over networks", disable=not progress, leave=False):
        moved = False
        order = torch.randperm(len(joint), generator=generator).tolist() if shuffled else range(len(joint))
        for i in order:
            problem = joint.towards(i, placed[:i] + placed[i + 1 :], summed=kernel == "inner")
            new = coordinate_descent(problem, kernel=kernel, start=perms[i], generator=generator).perms
            if any(not torch.equal(new[name], perms[i][name]) for name in new):
                perms[i], placed[i], moved = new, joint.placed(i, new), True
        history.append(joint.objective(perms, kernel))
        if not moved:
            break
    return to_the_first(perms), history


def synchronised_frank_wolfe(
    joint: Joint, *, max_iterations: int = 100, tolerance: float = 1e-6, progress: bool = False
) -> tuple[list[dict[str, Tensor]], list[float]]:
    """All permutations of all networks at once, on the sum over pairs of inner products (C2M3: Crisostomi et al.,
    NeurIPS 2024, Frank-Wolfe), from the identity.

    Each step goes towards the permutations that maximise the gradient, by the share that maximises the objective, a
    polynomial of degree four in it, exactly; the doubly stochastic matrices at the end are rounded by assignment. The
    result does not depend on the order of the networks, but for ties.

    Returns:
        (permutations a network, those of the first the identity; the relaxed objective at first and after each step,
        which never falls).
    """
    sizes, count = joint.problems[0].sizes, range(len(joint))
    unit = {name: torch.eye(size, device=joint.problems[0].device) for name, size in sizes.items()}
    maps = [dict(unit) for _ in count]
    places = np.linspace(0, 1, 5)  # determine a polynomial of degree four

    def value(maps: Sequence[Mapping[str, Tensor]]) -> float:
        parts = zip(*(joint.placed(i, maps[i]) for i in count), strict=True)  # one tensor of all networks at a time
        return sum(_products(torch.stack(part)) for part in parts)

    history = [value(maps)]
    for _ in tqdm(range(max_iterations), desc="Frank-Wolfe", disable=not progress, leave=False):
        placed = [joint.placed(i, maps[i]) for i in count]
        towards = []
        for i in count:
            problem = joint.towards(i, placed[:i] + placed[i + 1 :], summed=True)
            best = {name: assign(problem.soft_gradient(name, maps[i], "inner"), name) for name in sizes}
            towards.append({name: unit[name][perm] for name, perm in best.items()})

        line = np.polynomial.Polynomial.fit(places, [value(_between(maps, towards, share)) for share in places], 4)
        slopes = line.deriv().roots()
        shares = [1.0, *(root.real for root in slopes if abs(root.imag) < 1e-9 and 0 < root.real < 1)]
        share = max(shares, key=line)
        stepped = _between(maps, towards, share)
        reached = value(stepped)
        if reached - history[-1] <= tolerance * abs(history[-1]):
            break
        maps = stepped
        history.append(reached)
    return to_the_first([{name: assign(each, name) for name, each in one.items()} for one in maps]), history


def _between(
    old: Sequence[Mapping[str, Tensor]], new: Sequence[Mapping[str, Tensor]], share: float
) -> list[dict[str, Tensor]]:
    pairs = zip(old, new, strict=True)
    return [{name: torch.lerp(one[name], two[name], share) for name in one} for one, two in pairs]


def _products(stacked: Tensor) -> float:
    """Σ over i < j of ⟨x_i, x_j⟩ of tensors (networks, …)."""
    every = stacked.double().flatten(1)
    return (every.sum(dim=0).square().sum() - every.square().sum()).item() / 2


def joint_assignment(
    similarities: Mapping[tuple[int, int], Mapping[str, Tensor]], count: int, sizes: Mapping[str, int]
) -> tuple[list[dict[str, Tensor]], float]:
    """The permutations of `count` networks that, group by group and one network at a time, maximise the sum over pairs
    of the similarities of matched units, until none moves. At first each network is matched to those before it.

    Args:
        similarities: {(i, j): {group: float64 (size, size)}}, i < j, [unit of i, unit of j].
        sizes: of the groups.

    Returns:
        (permutations a network, those of the first the identity; that sum).
    """
    perms: list[dict[str, Tensor]] = [{} for _ in range(count)]

    def summed(i: int, name: str, others: Sequence[int]) -> Tensor:
        """[place, unit of i]"""
        pairs = [similarities[j, i][name] if j < i else similarities[i, j][name].T for j in others]
        return torch.stack([pair[perms[j][name]] for j, pair in zip(others, pairs, strict=True)]).sum(dim=0)

    for name, size in sizes.items():
        places = torch.arange(size)
        perms[0][name] = places
        for i in range(1, count):
            perms[i][name] = assign(summed(i, name, range(i)), name)
        for _ in range(MOST_ROUNDS if count > 2 else 0):
            moved = False
            for i in range(count):
                total = summed(i, name, [j for j in range(count) if j != i])
                new = assign(total, name)
                if total[places, new].sum() > total[places, perms[i][name]].sum() + 1e-9:
                    perms[i][name], moved = new, True
            if not moved:
                break
    value = sum(
        float(similarities[i, j][name][perms[i][name], perms[j][name]].sum())
        for i, j in itertools.combinations(range(count), 2)
        for name in sizes
    )
    return to_the_first(perms), value


def round_trips(maps: Mapping[tuple[int, int], Perms]) -> float:
    """The share of units that come back to their own place on the way round three networks, over all threes: 1 where
    all maps come from one common order.

    Args:
        maps: of pairwise matchings, {(i, j): permutations that move j to i} with i < j, of at least three networks.
    """
    count = 1 + max(j for _, j in maps)
    came, units = 0, 0
    for i, j, k in itertools.combinations(range(count), 3):
        there = symmetry.compose(maps[j, k], maps[i, j])  # k to j, then to i
        for name, perm in maps[i, k].items():
            came += int((there[name] == perm).sum())
            units += len(perm)
    return came / units
