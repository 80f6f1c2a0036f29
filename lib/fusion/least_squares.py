"""The correction `least_squares`: each layer of the fused network is solved for, on the inputs it really gets.

From the first layer to the last: h are the fused network's own activations, z_A and z_B what the parents compute in
that place. The layer is fitted to (1 − alpha)·z_A + alpha·z_B, or through the ReLU that follows to
(1 − alpha)·relu(z_A) + alpha·relu(z_B). Both parents enter alike, by their shares.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from ..symmetry import Groups, Values
from ..symmetry.walker import _Lockstep
from .affine import _Affine, _Site, _solve, _write
from .selection import BOTH, A, B, choose
from .sites import ADD, _foldable, _is_relu, _only_user, _origin, _pool, _reader

GIB = 2**30
CHUNK = 100  # images that go through the networks at a time


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
        return choose(covariance, readers, alpha)


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
                name: int((choice == kind).sum()) for name, kind in (("both", BOTH), ("a", A), ("b", B))
            }
            for kind, (other, its_error, its_power) in ((A, fits[0]), (B, fits[1])):
                mask = (choice == kind).to(rows.device)
                rows = torch.where(mask, other, rows)
                error, power = torch.where(mask, its_error, error), torch.where(mask, its_power, power)
        total = float(power.sum())
        layers[site.name] = max(0.0, float(error.sum())) / total if total else 0.0
        _write(site, affine, rows, problem.gram)
    return {"images": len(images), "layers": layers, "units": units, "left": left}
