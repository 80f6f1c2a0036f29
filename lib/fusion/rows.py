"""The rows of a layer's least-squares problem: at which positions it is fitted, and what is known there."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..symmetry import Values
from ..symmetry.walker import Lockstep
from .affine import Affine, Site

BLOCK = 2**25  # bytes of inputs in one block


def spread(total: int, wanted: float, seed: int) -> Tensor:
    """`wanted` distinct numbers below `total`, in order: one drawn from each of so many equal stretches. All numbers
    where `wanted` is not fewer."""
    count = max(1, round(min(wanted, total)))
    edges = torch.arange(count + 1) * total // count
    draws = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return edges[:-1] + (draws * edges.diff()).long()


class Block(NamedTuple):
    """Some rows of a problem with G groups.

    `inputs` (G, r, p); `target` (G, r, c), before the ReLU; `bent` (G, r / window, c), the target behind ReLU and
    pooling, None where no ReLU follows; `other` (G, r, o), what the network already carries where the layer completes
    a residual sum, else None.
    """

    inputs: Tensor
    target: Tensor | None
    bent: Tensor | None
    other: Tensor | None

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self if each is not None)


class Rows:
    """The rows at which a site is fitted, block by block, the same at each pass over them.

    Of about `count` rows (infinity: of every position) each chunk of images gives its part, spread over its positions
    (`spread`, seeded by the chunk's number). Where max-pooling follows the ReLU, whole windows of it are taken, so that
    what it makes of the rows is known. Blocks are kept for later passes in what the lockstep leaves of its memory;
    those that do not fit are made anew.

    Args:
        goal: the columns (G, r, c) to fit to, from a list of each parent's values (G, r, o); linear.
        again: whether there will be later passes.
    """

    def __init__(
        self,
        lockstep: Lockstep,
        site: Site,
        affine: Affine,
        goal: Callable[[list[Tensor]], Tensor],
        count: float,
        again: bool,
    ) -> None:
        self.lockstep, self.site, self.affine, self.goal, self.count = lockstep, site, affine, goal, count
        self.window = math.prod(site.pool or (1, 1))
        self.kept: dict[int, list[Block]] = {}
        self.room = lockstep.room() if again else -1

    def _places(self, x: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """(image, i, j) of each row, window by window, at padded inputs `x`."""
        kernel = self.site.pool or (1, 1)
        height, width = (extent // k for extent, k in zip(self.affine.extent(x), kernel, strict=True))
        windows = spread(len(x) * height * width, self.count * self.lockstep.part(chunk) / self.window, chunk)
        image, place, inner = windows // (height * width), windows % (height * width), torch.arange(self.window)
        i = (place // width)[:, None] * kernel[0] + inner // kernel[1]
        j = (place % width)[:, None] * kernel[1] + inner % kernel[1]
        places = image.repeat_interleave(self.window), i.flatten(), j.flatten()
        return tuple(each.to(x.device) for each in places)

    def _make(self, bags: list[Values], chunk: int) -> Iterator[Block]:
        affine, site, index = self.affine, self.site, self.lockstep.index
        x = affine.inputs(bags[-1][site.node.args[0]])
        ends = [self.lockstep.target(bags, index[site.node], index[site.end], i) for i in range(len(bags) - 1)]
        values = [affine.lift(bag[site.end]) for bag in ends]
        other = None if site.other is None else affine.lift(bags[-1][site.other])
        places = self._places(x, chunk)
        step = max(1, BLOCK // (x.element_size() * affine.size) // self.window) * self.window
        for first in range(0, len(places[0]), step):
            part = [each[first : first + step] for each in places]
            z = [affine.at(value, *part) for value in values]
            bent = None
            if site.relu:
                pooled = [v.unflatten(1, (-1, self.window)).amax(2) for v in z] if self.window > 1 else z
                bent = self.goal([F.relu(v) for v in pooled])
            carried = None if other is None else affine.at(other, *part)
            yield Block(affine.gather(x, *part), self.goal(z), bent, carried)

    def __iter__(self) -> Iterator[Block]:
        index = self.lockstep.index[self.site.node]
        for chunk in range(len(self.lockstep.kept)):
            if chunk in self.kept:
                yield from self.kept[chunk]
                continue
            blocks = []
            for block in self._make(self.lockstep.values(chunk, index), chunk):
                yield block
                if self.room >= 0:
                    blocks.append(block._replace(target=None))  # the first pass alone reads it
                    self.room -= blocks[-1].nbytes
            if self.room >= 0:
                self.kept[chunk] = blocks
