"""The rows of a layer's least-squares problem: at which positions it is fitted, and what is known there."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..symmetry import Groups, Values
from ..symmetry.graph import Interpreter
from ..symmetry.walker import Lockstep
from .affine import Affine, Normal, Site, at_least_float32

BLOCK = 2**25  # bytes of inputs in one block
PROBE = 8  # images that tell which positions reach the outputs


def spread(total: int, wanted: float, seed: int) -> Tensor:
    """`wanted` distinct numbers below `total`, in order: one drawn from each of so many equal stretches. All numbers
    where `wanted` is not fewer."""
    count = max(1, round(min(wanted, total)))
    edges = torch.arange(count + 1) * total // count
    draws = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return edges[:-1] + (draws * edges.diff()).long()


def drawn(total: int, wanted: float, seed: int, reach: Tensor | None) -> Tensor:
    """`spread` over those of `total` positions that reach the outputs: `reach`, of one image, is repeated for each."""
    if reach is None:
        return spread(total, wanted, seed)
    kept = reach.nonzero().flatten()
    chosen = spread(total // len(reach) * len(kept), wanted, seed)
    return chosen // len(kept) * len(reach) + kept[chosen % len(kept)]


def units_of(value: Tensor, layer: nn.Module, size: int, block: int) -> Tensor:
    """(rows, size): the units of a value that a layer reads, of `block` entries each, of which all are rows."""
    axis, place = _unit_axes(layer)
    return value.unflatten(axis, (size, block)).movedim(place, -1).reshape(-1, size)


def with_units(value: Tensor, layer: nn.Module, block: int, units: Tensor) -> Tensor:
    """A value like this one whose `units_of` are these."""
    axis, place = _unit_axes(layer)
    parted = value.unflatten(axis, (units.shape[1], block)).movedim(place, -1)
    return units.view(parted.shape).movedim(-1, place).flatten(place, place + 1)


def _unit_axes(layer: nn.Module) -> tuple[int, int]:
    """The axis that holds the units' entries, and where the units stand once it is parted."""
    return (-1, -2) if isinstance(layer, nn.Linear) else (1, 1)


def makes_of(weight: Tensor, size: int) -> Tensor:
    """What a layer's weight (out, in, …) makes of its `size` units: (m, size)."""
    return weight.unflatten(1, (size, -1)).movedim(1, -1).reshape(-1, size)


class _Probe(Interpreter):
    """Adds a zero that takes a gradient to the values of some nodes."""

    def __init__(self, model: nn.Module, graph: fx.Graph, nodes: set[fx.Node]) -> None:
        super().__init__(model, graph)
        self.zeros = dict.fromkeys(nodes)

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node in self.zeros:
            self.zeros[node] = torch.zeros_like(value, requires_grad=True)
            value = value + self.zeros[node]
        return value


def reaching(models: Sequence[nn.Module], groups: Groups, sites: Sequence[Site], images: Tensor) -> dict[str, Tensor]:
    """{site: bool (positions of one image,)}: where its values have any effect on the outputs, of linear layers that
    some positions do not matter of.

    Where a classifier reads one token alone, say, most of the last block's work is on others. A position matters if
    any output of any of the models on the first few images has a gradient there that is not 0.
    """
    shapes = {
        site.end: tuple(site.end.meta["tensor_meta"].shape) for site in sites if isinstance(site.layer, nn.Linear)
    }
    shapes = {end: shape for end, shape in shapes.items() if len(shape) > 2}
    example = groups.example if isinstance(groups.example, Tensor) else groups.example[0]
    # Another number than the example has: so it shows which axis the images are on.
    count = min(PROBE - (len(example) == PROBE), len(images))
    if not shapes or count == len(example):
        return {}
    found = dict.fromkeys(shapes, False)
    with torch.inference_mode(False), torch.enable_grad():
        x = images[:count].clone()
        x = x.to(at_least_float32(x.dtype)) if x.is_floating_point() else x
        for model in models:
            kind = at_least_float32(next(model.parameters()).dtype)
            probe = _Probe(copy.deepcopy(model).to(kind), groups.graph, set(shapes))
            outputs = probe.run(x.clone())
            outputs = [outputs] if isinstance(outputs, Tensor) else [y for y in outputs if isinstance(y, Tensor)]
            # Not their sum: that of probabilities never changes.
            generator = torch.Generator().manual_seed(0)
            total = sum((y * torch.randn(y.shape, generator=generator).to(y)).sum() for y in outputs)
            gradients = torch.autograd.grad(total, list(probe.zeros.values()), allow_unused=True)
            for end, gradient in zip(probe.zeros, gradients, strict=True):
                if gradient is not None and gradient.shape == (count, *shapes[end][1:]):
                    found[end] = found[end] | (gradient != 0).any(dim=-1).any(dim=0).flatten()
    masks = {site.name: found[site.end] for site in sites if site.end in found}
    return {name: mask.cpu() for name, mask in masks.items() if mask is not False and mask.any() and not mask.all()}


class Block(NamedTuple):
    """Some rows of a problem with G groups.

    `inputs` (G, r, p); `target` (G, r, c), before the activation; `bent` (G, r / window, c), the target behind that
    and pooling, None where no activation follows; `other` (G, r, o), what the network already carries where the layer
    completes a residual sum, else None.
    """

    inputs: Tensor
    target: Tensor | None
    bent: Tensor | None
    other: Tensor | None

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self if each is not None)


@dataclass
class Shared:
    """What fits of several structures to the same parents on the same images, with the same options, can use again.

    `values`: the parents' values at the rows, {(site, chunk): [(G, r, o) of each]}; `covariances` of their units, by
    site; `normals`: what was factored at sites that read the parents' units as they are; `reach` (`reaching`);
    `solved`: the sites, each with whether its units were apart, for which all that is asked of the parents is here.
    """

    values: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    covariances: dict[str, Tensor] = field(default_factory=dict)
    normals: dict[tuple, Normal] = field(default_factory=dict)
    reach: dict[str, Tensor] | None = None
    solved: set[tuple[str, bool]] = field(default_factory=set)


class Rows:
    """The rows at which a site is fitted, block by block, the same at each pass over them.

    Of about `count` rows (infinity: of every position) each chunk of images gives its part, spread over its positions
    (`spread`, seeded by the chunk's number). Where max-pooling follows the ReLU, whole windows of it are taken, so that
    what it makes of the rows is known. Blocks are kept for later passes in what the lockstep leaves of its memory;
    those that do not fit are made anew.

    Args:
        source: the parents' layer, which has another size than `affine` where the fused network does.
        goal: the columns (G, r, c) to fit to, from a list of each parent's values (its G, r, o); linear.
        again: whether there will be later passes.
        reach: of `reaching`; None: every position counts.
        shared: where the parents' values at the rows are kept for fits of other structures; None: they are not kept.
    """

    def __init__(
        self,
        lockstep: Lockstep,
        site: Site,
        affine: Affine,
        source: Affine,
        goal: Callable[[list[Tensor]], Tensor],
        count: float,
        again: bool,
        reach: Tensor | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.known = None if shared is None else shared.values
        self.lockstep, self.site, self.affine, self.goal, self.count = lockstep, site, affine, goal, count
        self.source = source
        self.window, self.reach = math.prod(site.pool or (1, 1)), reach
        self.kept: dict[int, list[Block]] = {}
        self.room = lockstep.room() if again else -1

    def places(self, x: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """(image, i, j) of each row, window by window, at padded inputs `x`."""
        kernel = self.site.pool or (1, 1)
        height, width = (extent // k for extent, k in zip(self.affine.extent(x), kernel, strict=True))
        wanted = self.count * self.lockstep.part(chunk) / self.window
        windows = drawn(len(x) * height * width, wanted, chunk, self.reach)
        image, place, inner = windows // (height * width), windows % (height * width), torch.arange(self.window)
        i = (place // width)[:, None] * kernel[0] + inner // kernel[1]
        j = (place % width)[:, None] * kernel[1] + inner % kernel[1]
        places = image.repeat_interleave(self.window), i.flatten(), j.flatten()
        return tuple(each.to(x.device) for each in places)

    def _make(self, bags: list[Values], chunk: int) -> Iterator[Block]:
        affine, site, index = self.affine, self.site, self.lockstep.index
        x = affine.inputs(bags[-1][site.node.args[0]])
        other = None if site.other is None else affine.lift(bags[-1][site.other])
        places, key = self.places(x, chunk), (site.name, chunk)
        if self.known is None or key not in self.known:
            ends = [self.lockstep.target(bags, index[site.node], index[site.end], i) for i in range(len(bags) - 1)]
            values = [self.source.lift(bag[site.end]) for bag in ends]
            if self.known is not None:
                self.known[key] = [self.source.at(value, *places) for value in values]
        step = max(1, BLOCK // (x.element_size() * affine.size) // self.window) * self.window
        for first in range(0, len(places[0]), step):
            part = [each[first : first + step] for each in places]
            if self.known is None:
                z = [self.source.at(value, *part) for value in values]
            else:
                z = [each[:, first : first + step] for each in self.known[key]]
            bent = None
            if bend := F.relu if site.relu else site.smooth:
                pooled = [v.unflatten(1, (-1, self.window)).amax(2) for v in z] if self.window > 1 else z
                bent = self.goal([bend(v) for v in pooled])
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
