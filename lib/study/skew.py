"""Pairs of networks that saw different classes."""

import re
from typing import Any

from ..checks import InputError
from ..models import Part

FIRST_HALF, SECOND_HALF = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
SKEWS = ("halves", "dirichlet0.1", "dirichlet0.5")  # those of the study


def skewed(skew: str, which: int, seed: int) -> dict[str, Any]:
    """Fields of `models.Spec` for the first (`which` 0) or second network of a pair.

    Args:
        skew: "": nothing; "halves": all of five classes, a tenth of each other; "dirichlet0.1": the training images
            divided between the two by `models.dirichlet_parts` with beta 0.1, or another number.
        seed: of the division; the first network's.

    Raises:
        InputError: any other skew.
    """
    if not skew:
        return {}
    if skew == "halves":
        return {"classes": (FIRST_HALF, SECOND_HALF)[which], "share": 0.1}
    beta = re.fullmatch(r"dirichlet(\d*\.?\d+)", skew)
    if beta is None or not float(beta[1]):
        raise InputError(
            f"unknown skew {skew!r}; accepted: '' (none), halves, dirichlet and a number > 0 such as dirichlet0.1"
        )
    return {"part": Part(float(beta[1]), seed, which)}
