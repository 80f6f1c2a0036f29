"""Which units of a fused layer stand for one of A, for one of B, or for both: chosen by what the next layer needs.

Two matched units that hardly correlate are poorly served by their mean. A layer of n units that keeps some of A's and
some of B's as they are, as many of each as their shares ask for, lets the next layer predict the parents better.
"""

import torch
from torch import Tensor

BOTH, A, B = 0, 1, 2


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


def choose(covariance: Tensor, readers: Tensor, alpha: float) -> tuple[Tensor, float, float]:
    """Chooses for each unit what it stands for, greedily, a few units of A and of B at a time.

    Args:
        covariance: float64 (5n, 5n), of n units of A, n of B, and n of the fused network fitted to A, to B, to both.
        readers: float64 (m, 2n), what the next layer makes of A's and B's units; its m outputs are to be predicted
            linearly from the n chosen fitted units.
        alpha: share of B. Of k units that stand for one parent, round(alpha · k) stand for one of B.

    Returns:
        (choice LongTensor (n,) of BOTH, A, B on the CPU; share of the outputs' variance that n units which all stand
        for both leave unexplained; the same with the choice, never more).
    """
    n = len(covariance) // 5
    # Only the span of the readers counts: m outputs become at most 2n.
    values, vectors = torch.linalg.eigh(readers.mT @ readers)
    basis = vectors * values.clamp(min=0).sqrt()
    targets = covariance[:, : 2 * n] @ basis
    total = float((basis * targets[: 2 * n]).sum()) or 1.0
    ridge = max(1e-4 * float(covariance.diagonal()[2 * n :].mean()), 1e-12)
    units = torch.arange(n)
    first = {BOTH: 4 * n, A: 2 * n, B: 3 * n}

    def columns(choice: Tensor) -> Tensor:
        return torch.tensor([first[c] for c in choice.tolist()]) + units

    choice = torch.zeros(n, dtype=torch.long)
    start = best = _explained(covariance, targets, columns(choice), ridge)
    batch = max(2, n // 8 * 2)
    while batch >= 1:
        gains = [_gains(covariance, targets, columns(choice), first[c] + units, ridge).cpu() for c in (A, B)]
        order = torch.stack(gains, dim=1).flatten().argsort(descending=True).tolist()
        while batch >= 1:
            trial = choice.clone()
            single = int((choice != BOTH).sum()) + batch
            quota = {B: round(alpha * single) - int((choice == B).sum())}
            quota[A] = batch - quota[B]
            for place in order:
                unit, which = place // 2, (A, B)[place % 2]
                if trial[unit] == BOTH and quota[which] > 0:
                    trial[unit], quota[which] = which, quota[which] - 1
            complete = max(quota.values()) <= 0 <= min(quota.values())
            explained = _explained(covariance, targets, columns(trial), ridge) if complete else best
            if explained > best:
                choice, best = trial, explained
                break
            batch = 0 if batch <= 2 else max(2, batch // 4 * 2)
    return choice, 1 - start / total, 1 - best / total
