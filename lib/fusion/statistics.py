"""Corrections that set the statistics of units: BatchNorm reset, REPAIR, rescaling, their closed form."""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import loaders, symmetry
from ..checks import InputError
from ..symmetry import Groups
from .affine import at_least_float32
from .aligned import Aligned, checked, interpolate
from .sites import activated
from .task import Result, Task


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def none(task: Task) -> Result:
    return interpolate(task.aligned.states, task.shares), {}


@torch.inference_mode()
def reset(model: nn.Module, batches: Iterable[loaders.Images]) -> int:
    """Re-estimates the statistics of every BatchNorm and `Tracked` in place, weighting each batch by its images.

    Each layer's statistics are measured behind layers already normalised by those of the batch. Returns how many
    images were used: a batch of one is passed over, it has no variance.
    """
    tracking = norms(model.eval())
    for norm in tracking:
        norm.reset_running_stats()
        norm.training = True
    for module in model.modules():
        if isinstance(module, Tracked):
            module.training, module.seen = True, 0
    seen = 0
    for images in batches:
        count = loaders.count(images)
        if count < 2:
            continue
        seen += count
        for norm in tracking:
            norm.momentum = count / seen
        # a network may change its input in place
        model(*(part.clone() for part in (images if isinstance(images, tuple) else (images,))))
    if not seen:
        raise InputError("statistics cannot be estimated without images; accepted: correct_images ≥ 2")
    model.eval()
    return seen


def bn_reset(task: Task) -> Result:
    """Running statistics reset and re-estimated: the mean over batches, weighted by their images, of what BatchNorm
    measures in training mode."""
    model = task.fused()
    images = reset(model, task.images("bn_reset"))
    return model.state_dict(), {"images": images}


@dataclass(frozen=True)
class Moments:
    """First and second moments of the parents' matched units at the nodes of the graph, and of how many images.

    {node: (mean (units, n), covariance (units, n, n))}, float64 on the CPU, of n parents.
    """

    images: int
    nodes: Mapping[str, tuple[Tensor, Tensor]]

    def goals(self, node: str, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (units,) that a fused network should have: the share-weighted means of those of
        the parents."""
        mean, covariance = self.nodes[node]
        stds = covariance.diagonal(dim1=1, dim2=2).sqrt()
        return sum(s * m for s, m in zip(shares, mean.T, strict=True)), sum(
            s * std for s, std in zip(shares, stds.T, strict=True)
        )

    def variance(self, node: str, shares: Sequence[float]) -> Tensor:
        """Variance (units,) of the share-weighted mean of the parents' units."""
        _, covariance = self.nodes[node]
        total = sum(share**2 * covariance[:, i, i] for i, share in enumerate(shares))
        for i, j in itertools.combinations(range(len(shares)), 2):
            total = total + 2 * shares[i] * shares[j] * covariance[:, i, j]
        return total.clamp(min=0)


@torch.inference_mode()
def moments(
    aligned: Aligned, images: Tensor | Iterable, *, device: torch.device | str = "cpu", progress: bool = True
) -> Moments:
    """Gathers, in one pass over the parents, what `repair`, `rescale` and `closed_form` need for any shares.

    Args, Raises: as in `correct`.
    """
    task = Task(checked(aligned, "moments"), aligned.shares(), loaders.batched(images), torch.device(device), progress)
    return _moments(task)


@torch.inference_mode()
def _moments(task: Task) -> Moments:
    if task.moments is not None:
        return task.moments
    parents = task.parents()
    named = {node.target: node.name for node in task.groups.graph.nodes if node.op == "call_module"}
    axes = {}
    for layer in task.groups.layers:
        axis = -1 if layer.kind == "linear" else 1
        axes |= {name: axis for name in (layer.node, named.get(layer.norm)) if name}
    exact = torch.float32 if task.device.type == "mps" else torch.float64
    pairs = list(itertools.combinations_with_replacement(range(len(parents)), 2))
    sums: dict[str, list] = {name: [0.0] * (len(parents) + len(pairs)) for name in axes}
    counts, images = dict.fromkeys(axes, 0), 0
    for batch in task.images("statistics"):
        images += loaders.count(batch)
        walks = (symmetry.walk(parent, task.groups, batch) for parent in parents)
        for steps in zip(*walks, strict=True):
            node, values = steps[0][0], [value for _, value in steps]
            if node.name in axes:
                size = values[0].shape[axes[node.name]]
                dims = [d for d in range(values[0].dim()) if d != axes[node.name] % values[0].dim()]
                counts[node.name] += values[0].numel() // size
                # Products, too: rounded to float32 they would make a unit that never varies vary.
                values = [value.to(exact) for value in values]
                new = [x.sum(dims) for x in (*values, *(values[i] * values[j] for i, j in pairs))]
                sums[node.name] = [old + x.cpu().double() for old, x in zip(sums[node.name], new, strict=True)]
    if not images:
        raise InputError("statistics cannot be measured without images; accepted: correct_images ≥ 2")
    nodes = {}
    for name, total in sums.items():
        means = [x / counts[name] for x in total[: len(parents)]]
        covariance = torch.zeros(len(means[0]), len(parents), len(parents), dtype=torch.float64)
        for (i, j), product in zip(pairs, total[len(parents) :], strict=True):
            value = product / counts[name] - means[i] * means[j]
            covariance[:, i, j] = covariance[:, j, i] = value.clamp_(min=0) if i == j else value
        nodes[name] = torch.stack(means, dim=1), covariance
    return Moments(images, nodes)


EPSILON = 1e-6  # as a share of a unit's mean square, so that the scale of a layer does not count


def _scale(mean: Tensor, std: Tensor, variance: Tensor) -> Tensor:
    """What multiplies units (units,) of this variance so that they get the deviation `std` around `mean`. A unit that
    neither varies nor should keeps its scale."""
    least = EPSILON * (mean.square() + std.square())
    # else a constant unit would lose the value that it always has
    still = (std.square() <= least) & (variance <= least)
    return torch.where(still, 1.0, std / torch.sqrt(variance + least))


class Tracked(nn.Module):
    """A layer (and its BatchNorm) that gives its units new statistics, as BatchNorm does: in training mode by those of
    the batch, which it averages, in evaluation mode by the average.

    With `shift` outputs have mean `goal_mean` and deviation `goal_std` (units,); without, they are only multiplied by
    goal_std / deviation. A unit that neither varies nor should keeps its scale. Values have their units on axis `axis`;
    they keep their dtype. Statistics are float64 where the module's weight is, else float32: half precision is too
    coarse for them.
    """

    def __init__(self, module: nn.Module, goal_mean: Tensor, goal_std: Tensor, axis: int, shift: bool) -> None:
        super().__init__()
        self.module, self.axis, self.shift = module, axis, shift
        for name, value in (("goal_mean", goal_mean), ("goal_std", goal_std)):
            self.register_buffer(name, value.to(at_least_float32(module.weight.dtype)))
        self.register_buffer("mean", torch.zeros_like(self.goal_mean))
        self.register_buffer("variance", torch.ones_like(self.goal_std))
        self.seen = 0

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (units,) of the evaluation mode."""
        return self._affine(self.mean, self.variance)

    def _affine(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        scale = _scale(self.goal_mean, self.goal_std, variance)
        return scale, self.goal_mean - scale * mean if self.shift else torch.zeros_like(scale)

    def forward(self, x: Tensor) -> Tensor:
        value = self.module(x)
        mean, variance = self.mean, self.variance
        if self.training:
            units = value.movedim(self.axis, 0).flatten(1).to(self.mean.dtype)
            variance, mean = torch.var_mean(units, dim=1)
            self.seen += len(x)
            self.mean.lerp_(mean, len(x) / self.seen)
            self.variance.lerp_(variance, len(x) / self.seen)
        shape = [1] * value.dim()
        shape[self.axis] = -1
        scale, shift = self._affine(mean, variance)
        return (value * scale.view(shape) + shift.view(shape)).to(value.dtype)


def tracked(model: nn.Module, groups: Groups, goals: Moments, shares: Sequence[float], *, shift: bool) -> nn.Module:
    """A copy of `model` in which the `activated` layers are wrapped (`Tracked`), with the parents' mean statistics as
    goals; `reset` it before use.

    Behind a layer that has neither bias nor BatchNorm only the deviation is set (as with shift=False): the
    architecture has no place for a shift.
    """
    twin = copy.deepcopy(model)
    modules = dict(twin.named_modules())
    named = {node.target: node.name for node in groups.graph.nodes if node.op == "call_module"}
    for layer in activated(model, groups)[0]:
        place = layer.norm or layer.name
        if _parameter(modules[place], "weight") is None:
            continue  # a BatchNorm without weights
        mean, std = goals.goals(named[place], shares)
        able = _parameter(modules[place], "bias") is not None
        wrapped = Tracked(modules[place], mean, std, -1 if layer.kind == "linear" else 1, shift and able)
        twin.set_submodule(place, wrapped.to(next(twin.parameters()).device))
    return twin


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    return getattr(module, name, None)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy of a tracked network in which each `Tracked` is folded into the layer or BatchNorm that it wraps: the
    original architecture, and the same outputs in evaluation mode."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, Tracked):
            scale, shift = module.affine()
            inner = module.module
            inner.weight.mul_(scale.view(-1, *(1,) * (inner.weight.dim() - 1)))
            if inner.bias is not None:
                inner.bias.mul_(scale).add_(shift)
            twin.set_submodule(name, inner)
    return twin


def retracked(shift: bool) -> Callable[[Task], Result]:
    def run(task: Task) -> Result:
        goals = _moments(task)
        model = tracked(task.fused(), task.groups, goals, task.shares, shift=shift)
        images = reset(model, task.images("reset"))
        return fold(model).state_dict(), {"images": images, "left": activated(task.aligned.model, task.groups)[1]}

    return run


@torch.no_grad()
def closed_form(task: Task) -> Result:
    """Jordan et al.'s approximation of REPAIR without a pass over the fused network.

    It takes the fused pre-activation for Σ sᵢ·zᵢ with the shares s, whose variance follows from the parents' moments:
    σ² = sᵀ·C·s; for two at α = ½, equal deviations and correlation r that is σ_A²·(1 + r) / 2. Units are scaled by
    Σ sᵢ·σᵢ / σ around the mean Σ sᵢ·μᵢ, or around zero where a layer has no bias; a BatchNorm gets that mean and σ² as
    its running statistics. So a network with
    BatchNorm wants images as it saw them in training, augmented: on others even A fused with A is not A.
    """
    stats, model = _moments(task), task.fused()
    modules = dict(model.named_modules())
    layers, left = activated(model, task.groups)
    for layer in layers:
        mean, std = stats.goals(layer.node, task.shares)
        variance = stats.variance(layer.node, task.shares)
        if layer.norm:
            norm = modules[layer.norm]
            if norm.running_mean is not None:
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
            continue
        inner = modules[layer.name]
        exact = {"device": inner.weight.device, "dtype": at_least_float32(inner.weight.dtype)}
        scale, mean = _scale(mean, std, variance).to(**exact), mean.to(**exact)
        inner.weight.mul_(scale.view(-1, *(1,) * (inner.weight.dim() - 1)))
        if inner.bias is not None:
            inner.bias.mul_(scale).add_((1 - scale) * mean)
    return model.state_dict(), {"images": stats.images, "left": left}
