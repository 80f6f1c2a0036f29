"""What a correction works on, and what it gives back."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import loaders, models
from ..progress import tqdm
from ..symmetry import Groups
from .aligned import Aligned, State, interpolate
from .rows import Shared
from .structure import Structure

# What a correction returns: (state, what it reports).
Result = tuple[State, dict]


@dataclass(frozen=True)
class Task:
    """Aligned networks, their shares, and where images come from; `moments` of the parents, if they are known;
    `structure` of the fused network, None where it is that of one."""

    aligned: Aligned
    shares: tuple[float, ...]
    batches: Iterable | None
    device: torch.device
    progress: bool
    moments: Any = None
    structure: Structure | None = None
    shared: Shared | None = None  # what corrections of the same networks on the same images can use again

    @property
    def groups(self) -> Groups:
        return self.aligned.groups

    def network(self, state: State) -> nn.Module:
        """A network of the architecture with this state, on the device, in evaluation mode."""
        return models.load_state(copy.deepcopy(self.aligned.model), state).to(self.device).eval()

    def parents(self) -> list[nn.Module]:
        """The aligned networks, not to be changed: they hold the tensors of the aligned states, not copies."""
        networks = []
        for state in self.aligned.states:
            # tensors made in inference mode cannot ask for gradients
            blank = copy.deepcopy(self.aligned.model).requires_grad_(False)
            networks.append(models.load_state(blank, state, assign=True).to(self.device).eval())
        return networks

    def fused(self) -> nn.Module:
        """Their share-weighted mean; of another structure than one network's, what `Structure.place` makes of them."""
        if self.structure is not None:
            state = self.structure.place(self.aligned.states, self.shares)
            return models.load_state(self.structure.module(), state).to(self.device).eval()
        return self.network(interpolate(self.aligned.states, self.shares))

    def images(self, what: str) -> Iterator[loaders.Images]:
        """Batches of images (N, …) on the device."""
        for batch in tqdm(self.batches, desc=what, unit="batch", disable=not self.progress, leave=False, mininterval=2):
            yield loaders.placed(loaders.read_batch(batch)[0], self.device)
