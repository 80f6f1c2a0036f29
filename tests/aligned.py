"""Aligned networks from states, and corrected states: what tests of corrections are written in."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lib import fusion, models
from lib.symmetry import Groups


class Corrected(dict[str, Tensor]):
    """A corrected state dict, and what the correction reports of it."""

    info: dict


def aligned(model: nn.Module, states: Iterable[Mapping[str, Tensor]], groups: Groups) -> fusion.Aligned:
    """Networks of the architecture with these states, taken to be in one order already."""
    networks = [models.load_state(copy.deepcopy(model), state).eval() for state in states]
    return fusion.align(networks, groups, [groups.identity()] * len(networks))


def correct(model, a, b, alpha, kind, *, groups, batches=None, **options) -> Corrected:
    """`fusion.correct` of two states that are in one order already."""
    fused = fusion.correct(aligned(model, [a, b], groups), alpha, kind, images=batches, **options)
    corrected = Corrected(fused.state)
    corrected.info = fused.info
    return corrected


def averaged(a, b, alpha) -> dict[str, Tensor]:
    """(1 − alpha)·A + alpha·B."""
    return fusion.interpolate([a, b], (1 - alpha, alpha))


def moments(model, a, b, groups, batches, **options) -> fusion.Moments:
    """`fusion.moments` of two states that are in one order already."""
    return fusion.moments(aligned(model, [a, b], groups), batches, **options)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
