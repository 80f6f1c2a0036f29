"""What a correction works on, and plain interpolation."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import models
from ..checks import InputError
from ..symmetry import Groups

State = Mapping[str, Tensor]


class Corrected(dict[str, Tensor]):
    """A fused state dict on the CPU and how it was made: `correction`, `alpha` (share of B), `options`, `seconds`,
    and in `info` what the correction reports."""

    correction: str
    alpha: float
    options: dict
    seconds: float
    info: dict


def interpolate(state_a: State, state_b: State, alpha: float) -> dict[str, Tensor]:
    """(1 − alpha)·A + alpha·B of every floating parameter and buffer, running statistics included; integer buffers
    come from A.

    Args:
        alpha: share of B in [0, 1]; at 0 and 1 the result is exactly A and B.

    Raises:
        InputError: B does not have a parameter of A's, or has it in another shape.
    """
    fused = {}
    for name, a in state_a.items():
        if a.is_floating_point():
            if name not in state_b or state_b[name].shape != a.shape:
                raise InputError(f"A's {name} {tuple(a.shape)} has no counterpart in B; accepted: one architecture")
            b = state_b[name].to(a)
            # Not lerp: A + alpha·(B − A) is not B at alpha = 1.
            fused[name] = a.clone() if alpha == 0 else b.clone() if alpha == 1 else (1 - alpha) * a + alpha * b
        else:
            fused[name] = a.clone()
    return fused


# What a correction works on: the template network, both parents, the share of B, and where images come from.
@dataclass(frozen=True)
class _Task:
    model: nn.Module
    state_a: State
    state_b: State
    alpha: float
    groups: Groups
    batches: Iterable | None
    device: torch.device
    progress: bool
    moments: Any

    def network(self, state: State) -> nn.Module:
        """A copy of the template with this state, on the device, in evaluation mode."""
        return models.load_state(copy.deepcopy(self.model), state).to(self.device).eval()

    def fused(self) -> nn.Module:
        return self.network(interpolate(self.state_a, self.state_b, self.alpha))

    def images(self, what: str) -> Iterator[Tensor]:
        """Batches of images (N, …) on the device."""
        for batch in tqdm(self.batches, desc=what, unit="batch", disable=not self.progress, leave=False, mininterval=2):
            yield (batch if isinstance(batch, Tensor) else batch[0]).to(self.device)


# A correction returns (state, info).
_Found = tuple[State, dict]


def _fitting(model: nn.Module, state_a: State, state_b: State) -> tuple[State, State]:
    """Both parents' states, complete."""
    return models.fitting(model, state_a, "state_a"), models.fitting(model, state_b, "state_b")
