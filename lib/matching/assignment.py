"""Linear assignment."""

import torch
from torch import Tensor

from ..checks import InputError


def check_finite(values: Tensor, group: str) -> None:
    """Raises InputError, naming the group, when its similarities, or what they are made of (values, any shape and
    float dtype), hold an infinity or a NaN."""
    if not values.isfinite().all():
        raise InputError(
            f"the similarities of group '{group}' are infinite or NaN: weights or activations of A or B overflow; "
            "accepted: finite ones"
        )


def assign(similarity: Tensor, group: str = "") -> Tensor:
    """The permutation with the largest total similarity (linear assignment; scipy's Jonker-Volgenant
    variant).

    similarity: (n, n), any float dtype and device, [a, a'] with a a unit of network A and a' one of B.
    Returns a LongTensor (n,) on the CPU: unit perm[a] of B takes place a of A. Raises InputError, naming
    `group`, for entries that are not finite.
    """
    from scipy.optimize import linear_sum_assignment  # takes up to a second to import

    check_finite(similarity, group)
    rows, columns = linear_sum_assignment(similarity.detach().cpu().numpy(), maximize=True)
    perm = torch.empty(len(rows), dtype=torch.long)
    perm[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return perm
