"""The correction `least_squares`: each layer of the fused network is solved for, on the inputs it really gets.

From the first layer to the last: h are the fused network's own activations, z_A and z_B what the parents compute in
that place. The layer is fitted to (1 − alpha)·z_A + alpha·z_B, or through the ReLU that follows to
(1 − alpha)·relu(z_A) + alpha·relu(z_B). Both parents enter alike, by their shares.
"""

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from lib import selection
from lib.checks import InputError
from lib.symmetry import Groups

GIB = 2**30
CHUNK = 100  # images that go through the networks at a time
COLUMNS = 2**27  # bytes of im2col that exist at a time
RELU = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, F.relu_, torch.relu_)

Values = dict[fx.Node, object]


class _Stepper(fx.Interpreter):
    """Runs stretches of a network's graph on a bag of values, dropping each after its last use."""

    def go(self, values: Values, nodes: Sequence[fx.Node], keep: fx.Node | None = None) -> None:
        self.env = values
        for node in nodes:
            values[node] = self.run_node(node)
            for spent in self.user_to_last_uses.get(node, []):
                if spent is not keep:
                    values.pop(spent, None)


def _bytes(bags: Sequence[Values]) -> int:
    storages = {t.data_ptr(): t.nbytes for bag in bags for t in bag.values() if isinstance(t, Tensor)}
    return sum(storages.values())


class _Lockstep:
    """Several networks of one graph, chunk by chunk at the same place of it.

    The values alive at a place are kept for all images if they fit into `memory` bytes, so that each stretch of the
    graph runs once; where they do not fit, they are computed anew from the last place that did, at each pass.
    """

    def __init__(self, models: Sequence[nn.Module], graph: fx.Graph, chunks: Sequence[Tensor], memory: float) -> None:
        self.steppers = [_Stepper(model, graph=graph) for model in models]
        self.nodes = list(graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.memory = memory
        self.modules = dict(models[0].named_modules())
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise InputError(f"correction 'least_squares' takes networks with one input; this one has {len(inputs)}")
        self.place = self.index[inputs[0]] + 1
        self.kept: list[list[Values]] = [[{inputs[0]: chunk} for _ in models] for chunk in chunks]

    def _overwrites(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return getattr(self.modules[node.target], "inplace", False)
        by_name = isinstance(node.target, str) and node.op == "call_method" and node.target.endswith("_")
        return by_name or node.target in IN_PLACE or node.kwargs.get("inplace", False)

    def _run(self, bags: list[Values], index: int) -> list[Values]:
        stretch = self.nodes[self.place : index]
        bags = [dict(bag) for bag in bags]
        if any(map(self._overwrites, stretch)):
            bags = [{n: v.clone() if isinstance(v, Tensor) else v for n, v in bag.items()} for bag in bags]
        for stepper, bag in zip(self.steppers, bags, strict=True):
            stepper.go(bag, stretch)
        return bags

    def at(self, index: int) -> Iterator[list[Values]]:
        """For each chunk the values of each network that are alive just before node `index`."""
        for bags in self.kept:
            yield self._run(bags, index)

    def move(self, index: int) -> None:
        """Keeps the values just before node `index` from now on, if they fit."""
        if index == self.place or _bytes(self._run(self.kept[0], index)) * len(self.kept) > self.memory:
            return
        for i, bags in enumerate(self.kept):
            self.kept[i] = self._run(bags, index)
        self.place = index

    def target(self, bags: list[Values], index: int, end: int, which: int) -> Values:
        """The values of network `which` just after node `end`, from `bags` at `index`."""
        stretch = self.nodes[index : end + 1]
        copied = any(map(self._overwrites, stretch))
        bag = {n: v.clone() if copied and isinstance(v, Tensor) else v for n, v in bags[which].items()}
        self.steppers[which].go(bag, stretch, self.nodes[end])
        return bag

    def room(self) -> int:
        """Bytes of `memory` that are not taken."""
        return int(self.memory - _bytes([bag for bags in self.kept for bag in bags]))


@dataclass(frozen=True)
class _Site:
    """One affine map to fit: a layer with the BatchNorm behind it, or a BatchNorm that stands alone.

    `end` is the node whose value is fitted: the norm or, where the layer completes a residual sum, that sum, of which
    `other` is the part already there. `relu` says that a ReLU alone follows, `pool` the window of a max-pooling that
    alone follows that.
    """

    name: str
    node: fx.Node
    layer: nn.Module
    norm: _BatchNorm | None
    end: fx.Node
    other: fx.Node | None
    relu: bool
    pool: tuple[int, int] | None


def _only_user(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """What alone uses a value, past modules that do nothing in evaluation mode."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op == "call_module" and isinstance(modules[user.target], nn.Identity | nn.Dropout | nn.Dropout2d):
            node = user
            continue
        return user
    return None


def _is_relu(node: fx.Node | None, modules: dict[str, nn.Module]) -> bool:
    if node is None:
        return False
    return isinstance(modules[node.target], nn.ReLU) if node.op == "call_module" else node.target in RELU


def _pool(relu: fx.Node, modules: dict[str, nn.Module]) -> tuple[int, int] | None:
    """The window of a plain max-pooling that alone uses a ReLU's output."""
    user = _only_user(relu, modules)
    module = modules.get(user.target) if user is not None and user.op == "call_module" else None
    if not isinstance(module, nn.MaxPool2d):
        return None
    kernel, stride, padding, dilation = (
        v if isinstance(v, tuple) else (v, v)
        for v in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    plain = stride == kernel and padding == (0, 0) and dilation == (1, 1) and not module.ceil_mode
    return kernel if plain else None


def _foldable(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and norm.affine and norm.running_mean is not None


def _sites(model: nn.Module, groups: Groups) -> tuple[list[_Site], dict[str, str]]:
    """What is fitted, in execution order, and {module: why it keeps its interpolated weights}."""
    modules = dict(model.named_modules())
    nodes = {node.name: node for node in groups.graph.nodes}
    index = {node: i for i, node in enumerate(groups.graph.nodes)}
    targets = [node.target for node in groups.graph.nodes if node.op == "call_module"]
    layers = {nodes[layer.node]: layer for layer in groups.layers}
    sites, left = [], {}
    folded: set[str] = set()
    for node in groups.graph.nodes:
        if node.op != "call_module":
            continue
        module, norm, end = modules[node.target], None, node
        if node in layers:
            if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                left[node.target] = f"{type(module).__name__} is not solved for"
            elif targets.count(node.target) > 1:
                left[node.target] = "used more than once"
            if node.target in left:
                continue
            name = layers[node].norm
            if name and _foldable(modules[name]) and targets.count(name) == 1:
                norm, (end,) = modules[name], node.users
                folded.add(name)
        elif isinstance(module, _BatchNorm) and node.target not in folded:
            if not _foldable(module) or targets.count(node.target) > 1:
                left[node.target] = "has no statistics or no weights of its own, or is used more than once"
                continue
        else:
            continue
        other, user = None, _only_user(end, modules)
        if user is not None and user.target in ADD and user.op != "call_module":
            parts = [a for a in user.args if isinstance(a, fx.Node)]
            others = [a for a in parts if _origin(a, modules) is not _origin(end, modules)]
            shapes = {tuple(n.meta["tensor_meta"].shape) for n in (*parts, user)}
            if (
                len(parts) == 2
                and len(others) == 1
                and index[others[0]] < index[node]
                and not user.kwargs
                and len(shapes) == 1
            ):
                other, end = others[0], user
                user = _only_user(end, modules)
        relu = _is_relu(user, modules)
        sites.append(_Site(node.target, node, module, norm, end, other, relu, _pool(user, modules) if relu else None))
    return sites, left


def _origin(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The value behind modules that do nothing in evaluation mode."""
    while node.op == "call_module" and isinstance(modules[node.target], nn.Identity | nn.Dropout | nn.Dropout2d):
        node = node.args[0]
    return node


class _Affine:
    """A layer as a convolution without padding: `weight` (G, p, o) float64 of G groups with p inputs and o outputs
    each, the bias as the last of the p rows where there is one. `lift` and `pad` bring activations into its form."""

    def __init__(self, site: _Site) -> None:
        layer, self.layer = site.layer, site.layer
        self.bias = site.norm is not None or layer.bias is not None
        self.stride = self.dilation = (1, 1)
        self.groups, self.padding, self.mode = 1, (0, 0, 0, 0), "constant"
        shape = tuple(layer.weight.shape)
        if isinstance(layer, _BatchNorm):
            self.shape, self.groups = (shape[0], 1, 1, 1), shape[0]
        elif isinstance(layer, nn.Linear):
            self.shape = (*shape, 1, 1)
        else:
            lead = (1,) * (2 - len(layer.kernel_size))
            self.shape = (*shape[:2], *lead, *shape[2:])
            self.stride, self.dilation, self.groups = (
                (*lead, *layer.stride),
                (*lead, *layer.dilation),
                layer.groups,
            )
            self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            if layer.padding == "same":
                around = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
                sides = [(total // 2, total - total // 2) for total in around]
            else:
                sides = [(p, p) for p in ([0] * len(layer.stride) if layer.padding == "valid" else layer.padding)]
            sides = [(0, 0)] * len(lead) + sides
            self.padding = (*sides[1], *sides[0])  # F.pad begins with the last axis

    def lift(self, x: Tensor) -> Tensor:
        """Any value at this layer as (N, C, H, W)."""
        if isinstance(self.layer, nn.Linear):
            return x.reshape(-1, x.shape[-1], 1, 1)
        return x[:, :, None, None] if x.dim() == 2 else x.unsqueeze(2) if x.dim() == 3 else x

    def lower(self, y: Tensor, x: Tensor) -> Tensor:
        """Lifted outputs (N, C, H, W) in the form that the layer gives them for unlifted inputs `x`."""
        if isinstance(self.layer, nn.Linear):
            return y.reshape(*x.shape[:-1], -1)
        return y.squeeze(2) if x.dim() == 3 else y

    def inputs(self, x: Tensor) -> Tensor:
        """Lifted and padded."""
        x = self.lift(x)
        return F.pad(x, self.padding, self.mode) if any(self.padding) else x

    def rows(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(G, p, o) float64 from a weight of the layer's own shape and a bias (out,)."""
        rows = weight.double().reshape(self.groups, self.shape[0] // self.groups, -1).mT
        return torch.cat([rows, bias.double().reshape(self.groups, 1, -1)], dim=1) if self.bias else rows

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(weight (out, in / G, kh, kw), bias (out,) or None) float64 from (G, p, o)."""
        weight, bias = (rows[:, :-1], rows[:, -1].reshape(-1)) if self.bias else (rows, None)
        return weight.mT.reshape(self.shape), bias

    def of(self, layer: nn.Module, norm: _BatchNorm | None) -> Tensor:
        """The rows (G, p, o) of one parent's layer, its BatchNorm folded in."""
        if isinstance(layer, _BatchNorm):
            scale, shift = _scale_shift(layer)
            return self.rows(scale, shift)
        weight, bias = layer.weight.double(), layer.bias
        if norm is not None:
            scale, shift = _scale_shift(norm)
            weight = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
            bias = shift if bias is None else shift + scale * bias.double()
        return self.rows(weight, bias)

    def predict(self, rows: Tensor, x: Tensor) -> Tensor:
        """The layer's output (N, out, H, W) float32 on padded inputs."""
        weight, bias = self.split(rows)
        bias = None if bias is None else bias.to(x)
        return F.conv2d(x, weight.to(x), bias, self.stride, 0, self.dilation, self.groups)

    def columns(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """im2col of padded inputs in parts of bounded size: (which images, h (G, p, observations))."""
        kernel = self.shape[2:]
        size = self.shape[1] * kernel[0] * kernel[1]
        extents = zip(x.shape[2:], self.dilation, kernel, self.stride, strict=True)
        positions = math.prod((n - d * (k - 1) - 1) // s + 1 for n, d, k, s in extents)
        step = max(1, COLUMNS // (self.groups * size * positions * x.element_size()))
        for first in range(0, len(x), step):
            part = slice(first, first + step)
            columns = F.unfold(x[part], kernel, self.dilation, 0, self.stride)
            columns = columns.unflatten(1, (self.groups, size)).permute(1, 2, 0, 3)
            yield part, columns.flatten(2)

    def cross(self, x: Tensor, residual: Tensor) -> Tensor:
        """Σ h·rᵀ (G, p, o) float64, r (N, out, H, W)."""
        if self.stride == (1, 1):  # a convolution's weight gradient: no im2col
            weight = nn.grad.conv2d_weight(x, self.shape, residual, 1, 0, self.dilation, self.groups)
        else:  # there oneDNN crashes on some channels_last shapes (torch 2.14)
            weight = 0
            for part, columns in self.columns(x):
                r = residual[part].flatten(2).unflatten(1, (self.groups, -1)).permute(1, 2, 0, 3).flatten(2)
                weight = weight + (r @ columns.mT).double()
        return self.rows(weight, residual.sum(dim=(0, 2, 3)))

    def gram(self, x: Tensor) -> Tensor:
        """Σ h·hᵀ (G, p, p) float64 of padded inputs."""
        size = math.prod(self.shape[1:])
        total = x.new_zeros(self.groups, size + self.bias, size + self.bias, dtype=torch.float64)
        for _, columns in self.columns(x):
            total[:, :size, :size] += columns @ columns.mT
            if self.bias:
                total[:, :size, size] += columns.sum(dim=-1)
                total[:, size, size] += columns.shape[-1]
        if self.bias:
            total[:, size, :size] = total[:, :size, size]
        return total


def _scale_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def _write(site: _Site, affine: _Affine, rows: Tensor, gram: Tensor) -> None:
    """Puts solved rows into the modules. A BatchNorm gets the statistics of what it will see, and the weights with
    which it then adds nothing to the solution, so that resetting it later changes nothing."""
    weight, bias = affine.split(rows)
    if site.norm is None and not isinstance(site.layer, _BatchNorm):
        site.layer.weight.copy_(weight.reshape(site.layer.weight.shape))
        if bias is not None:
            site.layer.bias.copy_(bias)
        return
    norm = site.layer if site.norm is None else site.norm
    count = gram[:, -1:, -1:]
    # A BatchNorm that stands alone sees h itself, any other what its layer makes of h.
    seen = rows[:, :-1] if site.norm is not None else torch.ones_like(rows[:, :-1])
    mean = (gram[:, -1:, :-1] @ seen / count).reshape(-1)
    square = ((seen * (gram[:, :-1, :-1] @ seen)).sum(dim=1) / count[:, 0]).reshape(-1)
    variance = (square - mean**2).clamp_(min=0)
    std = torch.sqrt(variance + norm.eps)
    norm.running_var.copy_(variance)
    if site.norm is None:
        norm.running_mean.copy_(mean)
        norm.weight.copy_(weight.reshape(-1) * std)
        norm.bias.copy_(bias + weight.reshape(-1) * mean)
        return
    site.layer.weight.copy_(weight.reshape(site.layer.weight.shape))
    norm.weight.copy_(std)
    norm.bias.copy_(mean + bias)
    if site.layer.bias is not None:
        site.layer.bias.copy_(bias)
        mean = mean + bias
    norm.running_mean.copy_(mean)


def _solve(gram: Tensor, cross: Tensor, pull: Tensor, ridge: float) -> Tensor:
    """(G + R)⁻¹ (cross − R·pull) with R = ridge · mean diag(G) · I, by Cholesky; R grows tenfold until it exists.

    Raises:
        InputError: G or the right side is not finite, or R no longer is.
    """
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise InputError("correction 'least_squares' meets activations that are not finite; accepted: networks without")
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None].clamp(min=torch.finfo(gram.dtype).tiny)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    while torch.isfinite(ridge * mean).all():
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * mean * identity)
        if not failed.any():
            return torch.cholesky_solve(cross - ridge * mean * pull, factor)
        ridge = max(10 * ridge, 1e-12)
    raise InputError("correction 'least_squares' has no solution with a finite ridge; accepted: ridge ≤ 1")


def _below(goal: Tensor, predicted: Tensor) -> Tensor:
    """What is missing to a goal ≥ 0 behind a ReLU: where the goal is 0, any prediction ≤ 0 is right."""
    return torch.where(goal > 0, goal - predicted, -F.relu(predicted))


def _below_pooled(goal: Tensor, predicted: Tensor, kernel: tuple[int, int]) -> Tensor:
    """The same behind ReLU and max-pooling: the largest prediction of each window is held against its goal, the others
    need only not exceed it."""
    top, where = F.max_pool2d(predicted, kernel, return_indices=True)
    wide = goal.repeat_interleave(kernel[0], 2).repeat_interleave(kernel[1], 3)
    height, width = wide.shape[2:]
    missing = torch.zeros(predicted.shape, dtype=predicted.dtype, device=predicted.device)
    missing[:, :, :height, :width] = -F.relu(predicted[:, :, :height, :width] - wide)
    flat = missing.flatten(2).scatter_(2, where.flatten(2), _below(goal, top).flatten(2))
    return flat.view(predicted.shape)


@dataclass
class _Problem:
    """One site, ready to be solved for several targets: its Gram matrix is made once."""

    lockstep: _Lockstep
    site: _Site
    affine: _Affine
    own: list[Tensor]
    ridge: float
    rounds: int
    gram: Tensor | None = None
    complete: bool = False

    def __post_init__(self) -> None:
        self.index, self.end = self.lockstep.index[self.site.node], self.lockstep.index[self.site.end]

    def _goal(self, bags: list[Values], share: float, bent: bool) -> Tensor:
        """(1 − share)·A + share·B: of pre-activations or, `bent`, of what the ReLU (and the pooling) makes of them."""
        goal = 0
        for which, weight in ((0, 1 - share), (1, share)):
            if weight:
                z = self.affine.lift(self.lockstep.target(bags, self.index, self.end, which)[self.site.end])
                if bent:
                    z = F.relu(F.max_pool2d(z, self.site.pool) if self.site.pool else z)
                goal = goal + weight * z
        return goal

    def solve(self, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """(rows (G, p, o), squared error (out,), squared target (out,)) of the fit to that share of B."""
        affine, site = self.affine, self.site
        rows = start = (1 - share) * self.own[0] + share * self.own[1]
        kept: list[Tensor] = []
        room = self.lockstep.room()
        for turn in range(1 + self.rounds):
            cross, error, power = torch.zeros_like(start), 0, 0
            fresh = turn == 0 and not self.complete
            for i, bags in enumerate(self.lockstep.at(self.index)):
                x = affine.inputs(bags[2][site.node.args[0]])
                if fresh:
                    gram = affine.gram(x)
                    self.gram = gram if self.gram is None else self.gram + gram
                goal = kept[i] if i < len(kept) else self._goal(bags, share, bent=turn > 0)
                if turn > 0 and i == len(kept) and (room := room - goal.nbytes) >= 0:
                    kept.append(goal)
                predicted = affine.predict(rows, x)
                if site.other is not None:
                    predicted = predicted + affine.lift(bags[2][site.other])
                if turn == 0:
                    missing = goal - predicted
                elif site.pool:
                    missing = _below_pooled(goal, predicted, site.pool)
                else:
                    missing = _below(goal, predicted)
                cross += affine.cross(x, missing)
                error = error + missing.square().sum(dim=(0, 2, 3), dtype=torch.float64)
                power = power + goal.square().sum(dim=(0, 2, 3), dtype=torch.float64)
            self.complete = True
            step = _solve(self.gram, cross, rows - start, self.ridge)
            rows = rows + step
            error = error + (step * (self.gram @ step - 2 * cross)).sum(dim=1).reshape(-1)
        return rows, error, power

    def choose(self, reader: "_Site", block: int, readers: Tensor, fits: Sequence[Tensor], alpha: float):
        """`selection.choose` among `fits` (rows fitted to A, to B, to both), by moments at the reader's input."""
        size, stop = fits[0].shape[-1], self.lockstep.index[reader.node]
        after = self.lockstep.nodes[self.end + 1 : stop]

        def units(value: Tensor) -> Tensor:
            if isinstance(reader.layer, nn.Linear):
                value = value.unflatten(-1, (size, block)).movedim(-2, -1)
            else:
                value = value.movedim(1, -1)
            return value.reshape(-1, size)

        moments = torch.zeros(5 * size + 1, 5 * size + 1).to(fits[0])
        for bags in self.lockstep.at(self.index):
            source = reader.node.args[0]
            values = [units(self.lockstep.target(bags, self.index, stop - 1, which)[source]) for which in (0, 1)]
            given = bags[2][self.site.node.args[0]]
            x = self.affine.inputs(given)
            for rows in fits:
                bag = {self.site.end: self.affine.lower(self.affine.predict(rows, x), given)}
                self.lockstep.steppers[2].go(bag, after, source)
                values.append(units(bag[source]))
            columns = torch.cat([*values, torch.ones_like(values[0][:, :1])], dim=1)
            moments += columns.mT @ columns
        mean = moments[-1, :-1] / moments[-1, -1]
        covariance = moments[:-1, :-1] / moments[-1, -1] - torch.outer(mean, mean)
        return selection.choose(covariance, readers, alpha)


def _reader(site: _Site, sites: Sequence[_Site], groups: Groups, lockstep: _Lockstep) -> tuple[_Site, int] | None:
    """(the one layer that reads a site's units, entries per unit there), if only activations, pools and the like
    stand between the two; else None: there units are not chosen."""
    weights = {layer.name: layer.weight for layer in groups.layers}
    if site.other is not None or not site.relu or getattr(site.layer, "groups", 1) != 1 or site.name not in weights:
        return None
    owned = {weight: name for name, weight in weights.items()}
    for group in groups.values():
        made = [m for m in group.members if m.axis == 0 and m.tensor in owned]
        read = [m for m in group.members if m.axis == 1 and m.tensor in owned]
        if [m.tensor for m in made] != [weights[site.name]] or len(read) != 1 or read[0].rows or read[0].offset:
            continue
        reader = next((other for other in sites if weights.get(other.name) == read[0].tensor), None)
        if reader is None or group.size * read[0].block != reader.layer.weight.shape[1] or group.size < 4:
            return None
        between = lockstep.nodes[lockstep.index[site.end] + 1 : lockstep.index[reader.node]]
        before = [site.end, *between]
        straight = all(
            node.all_input_nodes == [last] for last, node in zip(before, [*between, reader.node], strict=True)
        )
        return (reader, read[0].block) if straight else None
    return None


@torch.inference_mode()
def fit(
    model_a: nn.Module,
    model_b: nn.Module,
    fused: nn.Module,
    groups: Groups,
    images: Tensor,
    alpha: float,
    *,
    ridge: float = 1e-3,
    rounds: int = 4,
    through_relu: bool = True,
    select: bool = True,
    memory: float = 2 * GIB,
    progress: bool = True,
) -> dict:
    """Solves for the weights of `fused`, in place, layer by layer on its own inputs.

    For each layer with inputs h (im2col with a column of ones, if it has a bias or a BatchNorm), Gram matrix G = Σ h·hᵀ
    and interpolated weights W₀ (BatchNorm folded in): (G + R)·W = Σ h·tᵀ + R·W₀, R = ridge · mean diag(G) · I, in
    float64, t = (1 − alpha)·z_A + alpha·z_B. Through the ReLU, and the max-pooling behind it, the target is
    t⁺ = (1 − alpha)·relu(z_A) + alpha·relu(z_B); where it is zero any output ≤ 0 is right, so there min(prediction, 0)
    takes its place (behind a pool: only the largest of each window has to reach t⁺) and the layer is solved again,
    `rounds` times. A layer that completes a residual sum is fitted to the parents' sums less what the fused network
    already carries.

    With `select` each layer is fitted to A, to B and to both, and each of its units stands for one of A, one of B or
    the mean of the two, whichever serves the next layer (`lib.selection`), in the parents' shares. This is done where
    one layer alone reads the units.

    Layer-wise regression of merged networks is known from RegMean (Jin et al. 2023) and PLeaS (Nasery et al. 2024);
    that a unit need not mix both parents, from ZipIt (Stoica et al. 2024).

    Args:
        model_a, model_b, fused: the parents and the interpolated network, in evaluation mode, on one device.
        images: float32 (N, …) on that device.
        ridge: pull towards the interpolated weights.
        memory: bytes of activations to keep; less means more recomputation and the same result.

    Returns:
        {"images": N, "layers": {layer: share of the target's mean square that is not reached},
         "units": {layer: {"both", "a", "b": how many of its units stand for what}} where they are chosen,
         "left": {module: why it keeps its interpolated weights}}
    """
    lockstep = _Lockstep((model_a, model_b, fused), groups.graph, images.split(CHUNK), memory)
    sites, left = _sites(fused, groups)
    parents = [dict(model.named_modules()) for model in (model_a, model_b)]
    names = {module: name for name, module in fused.named_modules()}

    def own(site: _Site, affine: _Affine) -> list[Tensor]:
        return [affine.of(modules[site.name], modules.get(names.get(site.norm))) for modules in parents]

    layers, units = {}, {}
    for site in tqdm(sites, desc="least squares", unit="layer", disable=not progress, leave=False, mininterval=1):
        affine = _Affine(site)
        lockstep.move(lockstep.index[site.node])
        problem = _Problem(
            lockstep, site, affine, own(site, affine), ridge, rounds if through_relu and site.relu else 0
        )
        reader = _reader(site, sites, groups, lockstep) if select and 0 < alpha < 1 else None
        rows, error, power = problem.solve(alpha)
        if reader is not None:
            fits = [problem.solve(0), problem.solve(1), (rows, error, power)]
            reading, (_, size) = _Affine(reader[0]), rows.shape[1:]
            readers = []
            for share, weight in zip((1 - alpha, alpha), own(reader[0], reading), strict=True):
                weight = reading.split(weight)[0].unflatten(1, (size, -1))
                readers.append(share * weight.movedim(1, -1).reshape(-1, size))
            choice, _, _ = problem.choose(*reader, torch.cat(readers, dim=1), [f[0] for f in fits], alpha)
            units[site.name] = {
                name: int((choice == kind).sum())
                for name, kind in (("both", selection.BOTH), ("a", selection.A), ("b", selection.B))
            }
            for kind, (other, its_error, its_power) in ((selection.A, fits[0]), (selection.B, fits[1])):
                mask = (choice == kind).to(rows.device)
                rows = torch.where(mask, other, rows)
                error, power = torch.where(mask, its_error, error), torch.where(mask, its_power, power)
        total = float(power.sum())
        layers[site.name] = max(0.0, float(error.sum())) / total if total else 0.0
        _write(site, affine, rows, problem.gram)
    return {"images": len(images), "layers": layers, "units": units, "left": left}
