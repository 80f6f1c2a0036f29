"""The correction `least_squares`: each layer of the fused network is solved for, on the inputs it really gets.

From the first layer to the last: h are the fused network's own activations, zᵢ what parent i computes in that place.
The layer is fitted to the share-weighted mean Σ sᵢ·zᵢ, or through the ReLU that follows to Σ sᵢ·relu(zᵢ). All parents
enter alike, by their shares.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..symmetry import Groups, Values
from ..symmetry.walker import Lockstep
from . import selection
from .affine import Affine, Site, at_least_float32, solve, write
from .sites import reader_of, solvable

GIB = 2**30
CHUNK = 100  # images that go through the networks at a time


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
class Fit:
    """One site, ready to be solved for several targets: its Gram matrix is made once."""

    lockstep: Lockstep
    site: Site
    affine: Affine
    own: list[Tensor]
    ridge: float
    rounds: int
    gram: Tensor | None = None
    complete: bool = False

    def __post_init__(self) -> None:
        self.index, self.end = self.lockstep.index[self.site.node], self.lockstep.index[self.site.end]

    def _goal(self, bags: list[Values], shares: Sequence[float], bent: bool) -> Tensor:
        """The share-weighted mean of the parents' pre-activations or, `bent`, of what the ReLU (and the pooling) makes
        of them."""
        goal = 0
        for which, share in enumerate(shares):
            if share:
                z = self.affine.lift(self.lockstep.target(bags, self.index, self.end, which)[self.site.end])
                if bent:
                    z = F.relu(F.max_pool2d(z, self.site.pool) if self.site.pool else z)
                goal = goal + share * z
        return goal

    def solve(self, shares: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """(rows (G, p, o), squared error (out,), squared target (out,)) of the fit to the parents' mean with shares."""
        affine, site = self.affine, self.site
        rows = start = sum(share * own for share, own in zip(shares, self.own, strict=True))
        kept: list[Tensor] = []
        room = self.lockstep.room()
        for turn in range(1 + self.rounds):
            cross, error, power = torch.zeros_like(start), 0, 0
            fresh = turn == 0 and not self.complete
            for i, bags in enumerate(self.lockstep.at(self.index)):
                x = affine.inputs(bags[-1][site.node.args[0]])
                if fresh:
                    gram = affine.gram(x)
                    self.gram = gram if self.gram is None else self.gram + gram
                goal = kept[i] if i < len(kept) else self._goal(bags, shares, bent=turn > 0)
                if turn > 0 and i == len(kept) and (room := room - goal.nbytes) >= 0:
                    kept.append(goal)
                predicted = affine.predict(rows, x)
                if site.other is not None:
                    predicted = predicted + affine.lift(bags[-1][site.other])
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
            step = solve(self.gram, cross, rows - start, self.ridge, affine.bias)
            rows = rows + step
            error = error + (step * (self.gram @ step - 2 * cross)).sum(dim=1).reshape(-1)
        return rows, error, power

    def choose(self, reader: Site, block: int, readers: Tensor, fits: Sequence[Tensor], shares: Sequence[float]):
        """`selection.choose` among `fits` (rows fitted to each parent, to their mean), by moments at the reader's
        input."""
        size, stop = fits[0].shape[-1], self.lockstep.index[reader.node]
        after = self.lockstep.nodes[self.end + 1 : stop]

        def units(value: Tensor) -> Tensor:
            if isinstance(reader.layer, nn.Linear):
                value = value.unflatten(-1, (size, block)).movedim(-2, -1)
            else:
                value = value.movedim(1, -1)
            return value.reshape(-1, size).to(at_least_float32(value.dtype))

        width = (len(shares) + len(fits)) * size + 1
        moments = torch.zeros(width, width).to(fits[0])
        for bags in self.lockstep.at(self.index):
            source = reader.node.args[0]
            parents = range(len(shares))
            values = [units(self.lockstep.target(bags, self.index, stop - 1, which)[source]) for which in parents]
            given = bags[-1][self.site.node.args[0]]
            x = self.affine.inputs(given)
            for rows in fits:
                bag = {self.site.end: self.affine.lower(self.affine.predict(rows, x), given)}
                self.lockstep.steppers[-1].go(bag, after, source)
                values.append(units(bag[source]))
            columns = torch.cat([*values, torch.ones_like(values[0][:, :1])], dim=1)
            moments += columns.mT @ columns
        mean = moments[-1, :-1] / moments[-1, -1]
        covariance = moments[:-1, :-1] / moments[-1, -1] - torch.outer(mean, mean)
        return selection.choose(covariance, readers, shares)


@torch.inference_mode()
def fit(
    parents: Sequence[nn.Module],
    fused: nn.Module,
    groups: Groups,
    images: Tensor,
    shares: Sequence[float],
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
    and interpolated weights W₀ (BatchNorm folded in): (G + R)·W = Σ h·tᵀ + R·W₀, R = ridge · mean diag(G) · I (0 for
    the ones, which have another scale), in float64, t = Σ sᵢ·zᵢ with the shares s. Through the ReLU, and the
    max-pooling behind it, the target is t⁺ = Σ sᵢ·relu(zᵢ); where it is zero any output ≤ 0 is right, so there
    min(prediction, 0) takes its place (behind a pool: only the largest of each window has to reach t⁺) and the layer is
    solved again, `rounds` times. A layer that completes a residual sum is fitted to the parents' sums less what the
    fused network already carries.

    With `select` each layer is fitted to each parent and to their mean, and each of its units stands for one of one
    parent or for the mean, whichever serves the next layer (`selection`), in the parents' shares. This is done where
    one layer alone reads the units.

    Layer-wise regression of merged networks is known from RegMean (Jin et al. 2023) and PLeaS (Nasery et al. 2024);
    that a unit need not mix the parents, from ZipIt (Stoica et al. 2024).

    Args:
        parents, fused: the n parents and the interpolated network, in evaluation mode, on one device.
        images: (N, …) on that device, of the networks' type.
        shares: n numbers that sum to 1.
        ridge: pull towards the interpolated weights.
        memory: bytes of activations to keep; less means more recomputation and the same result.

    Returns:
        {"images": N, "layers": {layer: share of the target's mean square that is not reached},
         "units": {layer: {"mean": how many of its units stand for all parents, "single": [for each alone]}} where they
         are chosen, "left": {module: why it keeps its interpolated weights}}
    """
    lockstep = Lockstep((*parents, fused), groups.graph, images.split(CHUNK), memory)
    sites, left = solvable(fused, groups)
    modules = [dict(model.named_modules()) for model in parents]
    names = {module: name for name, module in fused.named_modules()}

    def own(site: Site, affine: Affine) -> list[Tensor]:
        return [affine.of(each[site.name], each.get(names.get(site.norm))) for each in modules]

    one_hot = [tuple(float(i == which) for i in range(len(parents))) for which in range(len(parents))]
    layers, units = {}, {}
    for site in tqdm(sites, desc="least squares", unit="layer", disable=not progress, leave=False, mininterval=1):
        affine = Affine(site)
        lockstep.move(lockstep.index[site.node])
        problem = Fit(lockstep, site, affine, own(site, affine), ridge, rounds if through_relu and site.relu else 0)
        reader = reader_of(site, sites, groups, lockstep) if select and max(shares) < 1 else None
        rows, error, power = problem.solve(shares)
        if reader is not None:
            fits = [problem.solve(single) for single in one_hot]
            reading, (_, size) = Affine(reader[0]), rows.shape[1:]
            readers = []
            for share, weight in zip(shares, own(reader[0], reading), strict=True):
                weight = reading.split(weight)[0].unflatten(1, (size, -1))
                readers.append(share * weight.movedim(1, -1).reshape(-1, size))
            rows_of = [*(f[0] for f in fits), rows]
            choice, _, _ = problem.choose(*reader, torch.cat(readers, dim=1), rows_of, shares)
            counts = torch.bincount(choice, minlength=len(parents) + 1).tolist()
            units[site.name] = {"mean": counts[selection.MEAN], "single": counts[1:]}
            for which, (other, its_error, its_power) in enumerate(fits, 1):
                mask = (choice == which).to(rows.device)
                rows = torch.where(mask, other, rows)
                error, power = torch.where(mask, its_error, error), torch.where(mask, its_power, power)
        total = float(power.sum())
        layers[site.name] = max(0.0, float(error.sum())) / total if total else 0.0
        write(site, affine, rows, problem.gram)
    return {"images": len(images), "layers": layers, "units": units, "left": left}
