"""Which units of a fused layer stand for one parent's unit, and which for the mean: by what the next layer needs.

Matched units that hardly correlate are poorly served by their mean. A layer that keeps some of each parent's units as
they are, as many of each as their shares ask for, lets the next layer predict the parents better.
"""

import itertools
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

MEAN = 0  # a unit stands for the mean of the parents; i ≥ 1: for the i-th parent alone


def _gains(covariance: Tensor, targets: Tensor, chosen: Tensor, others: Tensor, ridge: float) -> Tensor:
    """How much more of the targets is explained, for each unit i, by others[i] in place of chosen[i]: (n,).

    Taking s_i out of the set S leaves of it what the rest does not explain, which has variance 1 / P_ii, P = C_SS⁻¹,
    and carries β_i² / P_ii of the targets, β = P·C_ST. The newcomer is measured against that same rest.
    """
    inner = covariance[chosen][:, chosen]
    precision = torch.linalg.inv(inner + ridge * torch.eye(len(chosen)).to(inner))
    beta, own = precision @ targets[chosen], precision.diagonal()
    cross = covariance[others][:, chosen]
    weights = cross @ precision
    part = weights.diagonal() / own
    left = targets[others] - weights @ targets[chosen] + part[:, None] * beta
    variance = covariance.diagonal()[others] + ridge - (weights * cross).sum(dim=1) + part * weights.diagonal()
    return left.square().sum(dim=1) / variance - beta.square().sum(dim=1) / own


def _explained(covariance: Tensor, targets: Tensor, chosen: Tensor, ridge: float) -> float:
    inner = covariance[chosen][:, chosen] + ridge * torch.eye(len(chosen)).to(covariance)
    return float((targets[chosen] * torch.linalg.solve(inner, targets[chosen])).sum())


def shared_out(count: int, shares: Sequence[float]) -> list[int]:
    """How many of `count` each of the shares gets: whole numbers that add up to it."""
    ends = [count, *(round(sum(shares[which:]) * count) for which in range(1, len(shares))), 0]
    return [end - after for end, after in itertools.pairwise(ends)]


def _quotas(count: int, shares: Sequence[float], most: int) -> list[int]:
    """`shared_out`, but none gets more than `most`: what is left goes to those with most room."""
    quota = [min(each, most) for each in shared_out(count, shares)]
    for _ in range(count - sum(quota)):
        quota[min(range(len(quota)), key=quota.__getitem__)] += 1
    return quota


def span(readers: Tensor) -> Tensor:
    """Few columns (n, at most n) that read as much of n units as the rows of `readers` (m, n) do."""
    values, vectors = torch.linalg.eigh(readers.mT @ readers)
    return vectors * values.clamp(min=0).sqrt()


def faint(variances: Tensor) -> float:
    """The ridge of regressions on units with these variances. Units that never vary explain nothing, whatever it is."""
    return 1e-4 * float(variances.mean()) if variances.mean() > 0 else 1.0


def _greedy(targets: Tensor, rest: Tensor, free: Tensor) -> Iterator[tuple[int, float]]:
    """Units, one after the other, each the one of those still `free` that explains most of what those before it leave
    of the targets, and how much that is.

    Args:
        targets, rest: covariances of the units with the targets (n, m) and with each other (n, n).
        free: bool (n,) on the CPU; a unit that was taken no longer is, and who iterates may withdraw others.
    """
    while free.any():
        gains = targets.square().sum(dim=1) / rest.diagonal()
        unit = int(torch.where(free.to(gains.device), gains, -1.0).argmax())
        free[unit] = False
        yield unit, float(gains[unit])
        # What the chosen unit does not explain is left to the others.
        part = rest[unit] / rest[unit, unit]
        targets, rest = targets - torch.outer(part, targets[unit]), rest - torch.outer(part, rest[unit])


def _side_by_side(covariance: Tensor, readers: Sequence[Tensor]) -> tuple[Tensor, Tensor, float]:
    """Targets and covariances of `_greedy` for units of several parents, and the sum of squares of the targets."""
    basis = torch.block_diag(*map(span, readers))
    targets, rest = covariance @ basis, covariance.clone()
    rest.diagonal().add_(faint(covariance.diagonal()))
    return targets, rest, float((basis * targets).sum())


def ordered(covariance: Tensor, readers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The p·n units of p parents in the order in which `forward` chooses them where no parent has a quota.

    Returns:
        (LongTensor (p·n,) of their numbers; float64 (p·n + 1,): the share of what the parents' next layers make of
        their units that the first k of them leave unexplained, k = 0 … p·n), on the CPU.
    """
    targets, rest, total = _side_by_side(covariance, readers)
    total = max(total, torch.finfo(torch.float64).tiny)
    order, left = [], [1.0]
    for unit, gain in _greedy(targets, rest, torch.ones(len(rest), dtype=torch.bool)):
        order.append(unit)
        left.append(max(0.0, left[-1] - gain / total))
    return torch.tensor(order), torch.tensor(left, dtype=torch.float64)


def forward(covariance: Tensor, readers: Sequence[Tensor], shares: Sequence[float], count: int) -> Tensor:
    """Chooses `count` of the p·n units of p parents as they are, one after the other, so that what each parent's next
    layer makes of its own units is predicted linearly from the chosen ones (greedy forward selection).

    Args:
        covariance: float64 (p·n, p·n), of the n units of each parent.
        readers: of each parent, float64 (m, n): what its next layer makes of its units, weighted by its share.
        shares: p numbers that sum to 1; each parent gives its share · count of the units, rounded, at most all n.

    Returns:
        LongTensor (count,) of their numbers, in order, on the CPU.
    """
    n = len(covariance) // len(shares)
    quota = _quotas(count, shares, n)
    targets, rest, _ = _side_by_side(covariance, readers)
    free = torch.tensor([quota[which] > 0 for which in range(len(shares))]).repeat_interleave(n)
    chosen = []
    for unit, _ in itertools.islice(_greedy(targets, rest, free), count):
        chosen.append(unit)
        quota[unit // n] -= 1
        if not quota[unit // n]:
            free[unit // n * n : (unit // n + 1) * n] = False
    return torch.tensor(sorted(chosen))


def _within(counts: Sequence[int], left: int, shares: Sequence[float]) -> bool:
    """Whether, with `left` more to choose, the units that stand for one parent alone can come out in the shares."""
    singles = range(sum(counts), sum(counts) + left + 1)
    return any(all(map(operator.le, counts, shared_out(single, shares))) for single in singles)


def choose_blocks(
    covariance: Tensor, targets: Tensor, size: int, shares: Sequence[float], free: bool = False
) -> tuple[Tensor, Tensor]:
    """Chooses `size` units of several columns each, such as heads, among those of p parents and their means: greedily,
    the one that explains most of what those chosen before it leave of the targets.

    Args:
        covariance: float64 ((p + 1)·n, (p + 1)·n), of the n columns of `size` units fitted to each of p parents, then
            fitted to the mean.
        targets: float64 ((p + 1)·n, m), covariance of the columns with what they are to predict.
        shares: p numbers that sum to 1. Of k units that stand for one parent alone, each gets its share · k, rounded,
            unless the choice is `free`.

    Returns:
        (choice LongTensor (size,) of `MEAN` or 1 … p; LongTensor (size,): which of its units), by that unit's number,
        on the CPU.
    """
    p = len(shares)
    rest = covariance.clone()
    rest.diagonal().add_(faint(covariance.diagonal()))
    blocks = torch.arange(len(covariance)).view((p + 1) * size, -1).to(rest.device)
    to_choose, chosen, counts = torch.ones(p + 1, size, dtype=torch.bool), [], [0] * (p + 1)
    for left in reversed(range(size)):
        ways = [[count + (which == i) for i, count in enumerate(counts)] for which in range(p + 1)]
        allowed = torch.tensor([free or _within(way[:p], left, shares) for way in ways])
        numbers = (allowed[:, None] & to_choose).flatten().nonzero().flatten()
        own = blocks[numbers.to(blocks.device)]
        inner, wanted = rest[own[:, :, None], own[:, None]], targets[own]
        gains = (wanted * torch.linalg.solve(inner, wanted)).sum(dim=(1, 2))
        which, unit = divmod(int(numbers[gains.argmax().cpu()]), size)
        chosen.append((unit, (which + 1) % (p + 1)))
        counts[which] += 1
        to_choose[which, unit] = False
        # What the chosen unit does not explain is left to the others.
        own = blocks[which * size + unit]
        part = torch.linalg.solve(rest[own][:, own], rest[own])
        targets, rest = targets - part.mT @ targets[own], rest - part.mT @ rest[own]
    units, choice = torch.tensor(sorted(chosen)).T
    return choice, units


def choose(covariance: Tensor, readers: Tensor, shares: Sequence[float]) -> tuple[Tensor, float, float]:
    """Chooses for each unit what it stands for, greedily, a few units of each of p parents at a time.

    Args:
        covariance: float64 ((2p + 1)·n, (2p + 1)·n), of n units of each parent, then n of the fused network fitted to
            each parent, then n fitted to the mean.
        readers: float64 (m, p·n), what the next layer makes of the parents' units; its m outputs are to be predicted
            linearly from the n chosen fitted units.
        shares: p numbers that sum to 1. Of k units that stand for one parent alone, each gets its share · k, rounded.

    Returns:
        (choice LongTensor (n,) of `MEAN` or 1 … p on the CPU; share of the outputs' variance that n units which all
        stand for the mean leave unexplained; the same with the choice, never more).
    """
    p = len(shares)
    n = len(covariance) // (2 * p + 1)
    basis = span(readers)
    targets = covariance[:, : p * n] @ basis
    total = float((basis * targets[: p * n]).sum()) or 1.0
    ridge = faint(covariance.diagonal()[p * n :])
    units = torch.arange(n)
    parents = range(1, p + 1)
    first = {MEAN: 2 * p * n} | {parent: (p + parent - 1) * n for parent in parents}

    def columns(choice: Tensor) -> Tensor:
        return torch.tensor([first[c] for c in choice.tolist()]) + units

    def quotas(single: int, choice: Tensor) -> dict[int, int]:
        """How many units each parent is still to get so that `single` of them are shared out."""
        quota = shared_out(single, shares)
        return {parent: quota[parent - 1] - int((choice == parent).sum()) for parent in parents}

    choice = torch.zeros(n, dtype=torch.long)
    start = best = _explained(covariance, targets, columns(choice), ridge)
    batch = max(p, n // (4 * p) * p)
    while batch >= 1:
        gains = [_gains(covariance, targets, columns(choice), first[c] + units, ridge).cpu() for c in parents]
        order = torch.stack(gains, dim=1).flatten().argsort(descending=True).tolist()
        while batch >= 1:
            trial = choice.clone()
            quota = quotas(int((choice != MEAN).sum()) + batch, choice)
            for place in order:
                unit, which = place // p, 1 + place % p
                if trial[unit] == MEAN and quota[which] > 0:
                    trial[unit], quota[which] = which, quota[which] - 1
            complete = max(quota.values()) <= 0 <= min(quota.values())
            explained = _explained(covariance, targets, columns(trial), ridge) if complete else best
            if explained > best:
                choice, best = trial, explained
                break
            batch = 0 if batch <= p else max(p, batch // (2 * p) * p)
    return choice, 1 - start / total, 1 - best / total
