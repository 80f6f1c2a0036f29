"""The correction `least_squares`: each layer of the fused network is solved for, on the inputs it really gets.

From the first layer to the last: h are the fused network's own activations, zᵢ what parent i computes in that place.
The layer is fitted to the share-weighted mean Σ sᵢ·zᵢ, or through the activation f that follows to Σ sᵢ·f(zᵢ). All
parents enter alike, by their shares. Embeddings, norms without BatchNorm's statistics and whatever else is no layer
keep their interpolated weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .. import symmetry
from ..checks import InputError
from ..progress import tqdm
from ..symmetry import Groups
from ..symmetry.walker import Lockstep
from . import selection
from .affine import Affine, Normal, Site, at_least_float32, write
from .rows import Rows, Shared, drawn, makes_of, reaching, units_of
from .sites import Joint, joints, reader_of, solvable
from .structure import Structure

GIB = 2**30
CHUNK = 100  # images that go through the networks at a time
ROWS = 20_000
ROUNDS = 2

Units = Literal["matched", "side_by_side", "half"]
Heads = Literal["shares", "free", "mean"]
Goal = Callable[[list[Tensor]], Tensor]


def _missing(goal: Tensor, predicted: Tensor, window: int) -> Tensor:
    """What is missing of predictions (G, w · window, c) to goals ≥ 0 (G, w, c) behind a ReLU and max-pooling of
    windows: where a goal is 0, any prediction ≤ 0 is right; of a window the largest has to reach the goal, the others
    need only not exceed it."""
    predicted = predicted.unflatten(1, (-1, window))
    goal = goal[:, :, None]
    reach = goal > 0
    if window > 1:
        reach = reach & (predicted == predicted.amax(dim=2, keepdim=True))
    missing = goal - predicted
    return torch.where(reach, missing, missing.clamp(max=0)).flatten(1, 2)


def _slope(bend: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """(f(z), f'(z)) of an activation that acts on each number alone."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        value = bend(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def _unreached(error: Tensor, power: Tensor) -> float:
    """The share of a target's sum of squares that is left."""
    total = float(power.sum())
    return max(0.0, float(error.sum())) / total if total else 0.0


def _means(*shares: Sequence[float]) -> Goal:
    """The parents' means with each of these shares, side by side."""

    def goal(values: list[Tensor]) -> Tensor:
        return torch.cat([sum(s * v for s, v in zip(each, values, strict=True) if s) for each in shares], dim=2)

    return goal


def _beside(values: list[Tensor]) -> Tensor:
    """All parents' units, side by side."""
    return torch.cat(values, dim=2)


def _in_blocks(values: list[Tensor]) -> Tensor:
    """The same, of each parent in a block of its own."""
    return torch.cat(values)


def _picked(units: Tensor) -> Goal:
    """These of all parents' units, as they are."""
    return lambda values: torch.cat(values, dim=2)[:, :, units]


@dataclass(frozen=True)
class Fit:
    """How sites are solved for: see `fit`."""

    lockstep: Lockstep
    sources: dict[str, Affine]  # of each site the parents' layer
    ridge: float
    rounds: int
    rows: float
    reach: dict[str, Tensor]
    exact: set[str]  # the nodes whose values are the parents', side by side
    shared: Shared | None

    def problem(self, site: Site, affine: Affine, goal: Goal, again: bool) -> Rows:
        """The rows of a site's problem."""
        source, reach = self.sources[site.name], self.reach.get(site.name)
        return Rows(self.lockstep, site, affine, source, goal, self.rows, again, reach, self.shared)

    def solve(self, site: Site, affine: Affine, goal: Goal, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weights (G, p, c), squared error (G, c), squared goal (G, c)) of the fit to c goals of each group, from
        weights to start with, which are replaced."""
        rounds = self.rounds if site.relu or site.smooth else 0
        rows = self.problem(site, affine, goal, rounds > 0)
        normal = Normal(self.ridge, affine.bias)
        if self.shared is not None and site.node.args[0].name in self.exact:  # what it reads is the same at any budget
            normal = self.shared.normals.setdefault((site.name, affine.size), normal)
        if rounds and site.smooth:
            return self._solve_smooth(rows, normal, weights)
        moved = torch.zeros_like(weights)
        for turn in range(1 + rounds):
            power = 0
            for block in rows:
                predicted = block.inputs @ weights
                if block.other is not None:
                    predicted = predicted + block.other
                wanted = block.bent if turn else block.target
                missing = _missing(wanted, predicted, rows.window) if turn else wanted - predicted
                normal.add(block.inputs, missing)
                if turn == rounds:
                    power = power + wanted.square().sum(dim=1).double()
            step, error = normal.step(moved)
            weights += step
            moved += step
            del step  # as large as the weights, and not needed during the next pass
        return weights, error, power

    def _solve_smooth(self, rows: Rows, normal: Normal, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`solve` through a smooth activation f: after the first step, which is as if there were none, steps by f'(z)
        times what f(z) is missing. The slopes being about 1 at most, plain squares lie above what is to be lowered, as
        far as f is not bent; each column keeps the weights of its best round."""
        weights, best, least = start, start, torch.inf
        for turn in range(2 + self.rounds):
            error = power = 0
            for block in rows:
                predicted = block.inputs @ weights
                if block.other is not None:
                    predicted = predicted + block.other
                if turn:
                    value, slope = _slope(rows.site.smooth, predicted)
                    missing = block.bent - value
                    error = error + missing.square().sum(dim=1).double()
                    power = power + block.bent.square().sum(dim=1).double()
                    missing = slope * missing
                else:
                    missing = block.target - predicted
                if turn <= self.rounds:
                    normal.add(block.inputs, missing)
            if turn:
                best = torch.where((error < least)[:, None], weights, best)
                least = torch.minimum(error, torch.as_tensor(least).to(error))
            if turn <= self.rounds:
                weights = weights + normal.step(weights - start)[0].to(weights)
        return best, least, power

    def covariance(self, site: Site, affine: Affine, reader: Site, block: int, fits: Sequence[Tensor] = ()) -> Tensor:
        """Covariance float64 of the site's n units at the reader's input: of the n of each parent, then of those that
        each of `fits` (1, p, n) makes. At about as many positions as a layer is fitted at."""
        size, begin, stop = affine.shape[0], self.lockstep.index[site.node], self.lockstep.index[reader.node]
        after = self.lockstep.nodes[self.lockstep.index[site.end] + 1 : stop]
        source = reader.node.args[0]
        moments, chunks, every, chunk = 0, len(self.lockstep.kept), 1, 0
        while chunk < chunks:
            bags = self.lockstep.values(chunk, begin)
            found = [self.lockstep.target(bags, begin, stop - 1, i)[source] for i in range(len(bags) - 1)]
            given = bags[-1][site.node.args[0]]
            x = affine.inputs(given)
            for rows in fits:
                bag = {site.end: affine.lower(affine.predict(rows, x), given)}
                self.lockstep.steppers[-1].go(bag, after, source)
                found.append(bag[source])
            found = [units_of(value, reader.layer, size, block) for value in found]
            total = len(found[0])
            if chunk == 0 and math.isfinite(self.rows):  # where a chunk has many positions, some chunks are enough
                every = max(1, int(total * chunks / (2 * self.rows)))
            wanted, seen = self.rows * self.lockstep.part(chunk) * every, self.reach.get(reader.name)
            kept = drawn(total, wanted, chunk, None if seen is None else seen.repeat_interleave(block)).to(x.device)
            columns = [value[kept].to(at_least_float32(value.dtype)) for value in found]
            columns = torch.cat([*columns, torch.ones_like(columns[0][:, :1])], dim=1)
            moments = moments + (columns.mT @ columns).double()
            chunk += every
        mean = moments[-1, :-1] / moments[-1, -1]
        return (moments[:-1, :-1] / moments[-1, -1]).addr_(mean, mean, alpha=-1)

    def together(self, joint: Joint, goal: Goal, fits: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """What a joint's reader gets and is to make of it: covariance float64 (c·n, c·n) of its n inputs, unit by unit,
        for each of c candidates, and of these with what the goal is missing (c·n, m).

        Args:
            fits: of each candidate, the weights (1, p, outputs) of each maker; they are left in the makers.
        """
        lockstep, reader, affine = self.lockstep, joint.reader, Affine(joint.reader)
        begin, stop = lockstep.index[joint.makers[0].node], lockstep.index[reader.node]
        source = self.sources[reader.name]
        rows = self.problem(reader, affine, goal, False)
        moments = 0
        for chunk in range(len(lockstep.kept)):
            bags = lockstep.values(chunk, begin)
            columns = []
            for candidate in fits:
                for site, weights in zip(joint.makers, candidate, strict=True):
                    write(site, Affine(site), weights, None)
                bag = lockstep.target(bags, begin, stop - 1, len(bags) - 1)
                x = affine.inputs(bag[reader.node.args[0]])
                places = rows.places(x, chunk)
                columns.append(affine.gather(x, *places)[0][:, joint.read.flatten().to(x.device)])
            ends = [lockstep.target(bags, begin, lockstep.index[reader.end], i) for i in range(len(bags) - 1)]
            missing = goal([source.at(source.lift(end[reader.end]), *places) for end in ends])[0]
            if reader.other is not None:
                missing = missing - affine.at(affine.lift(bag[reader.other]), *places)[0]
            every = torch.cat([*columns, missing, torch.ones_like(missing[:, :1])], dim=1)
            moments = moments + (every.mT @ every).double()
        moments = moments / moments[-1, -1]
        if affine.bias:
            moments = moments - torch.outer(moments[-1], moments[-1])
        n = sum(each.shape[1] for each in columns)
        return moments[:n, :n], moments[:n, n:-1]

    def seen(self, site: Site, affine: Affine, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (out,) float64, over every position, of what the site's BatchNorm will see: what its layer
        makes of the inputs or, where it stands alone, these themselves."""
        rows = rows.clone()
        rows[:, -1] = 0
        count = total = square = 0
        for bags in self.lockstep.at(self.lockstep.index[site.node]):
            x = affine.inputs(bags[-1][site.node.args[0]])
            values = x if site.norm is None else affine.predict(rows, x)
            count += values.numel() // values.shape[1]
            total = total + values.sum(dim=(0, 2, 3), dtype=torch.float64)
            square = square + values.square().sum(dim=(0, 2, 3), dtype=torch.float64)
        mean = total / count
        return mean, (square / count - mean**2).clamp(min=0)


def _check_readers(units: str, groups: Groups, readers: dict[str, tuple | None], left: dict[str, str]) -> None:
    """Raises InputError where a layer has units and they cannot be chosen; the last layer has none."""
    members = symmetry.by_tensor(groups)
    weights = {layer.name: layer.weight for layer in groups.layers}
    fixed = {name for name, weight in weights.items() if all(m.axis != 0 for _, m in members.get(weight, ()))}
    tied = [name for name, reader in readers.items() if reader is None and name not in fixed]
    if tied := [*left, *tied]:
        raise InputError(
            f"correction 'least_squares': units='{units}' is not accepted, {tied[0]} has units that more than one "
            "layer writes or reads, or that a norm stands behind; accepted: units=matched, or a plain chain of layers"
        )


def check_units(units: str, model: nn.Module, groups: Groups) -> None:
    """Raises InputError, in one line, where `fit` cannot choose such units in this architecture."""
    lockstep, (sites, left) = Lockstep((model,), groups.graph, (groups.example,), 0), solvable(model, groups)
    _check_readers(units, groups, {site.name: reader_of(site, sites, groups, lockstep, True) for site in sites}, left)


@torch.inference_mode()
def fit(
    parents: Sequence[nn.Module],
    fused: nn.Module,
    groups: Groups,
    images: Tensor,
    shares: Sequence[float],
    *,
    ridge: float = 1e-3,
    rounds: int = ROUNDS,
    through_relu: bool = True,
    select: bool = True,
    heads: Heads = "shares",
    units: Units = "matched",
    rows: int = ROWS,
    memory: float = GIB,
    structure: Structure | None = None,
    shared: Shared | None = None,
    progress: bool = True,
) -> dict:
    """Solves for the weights of `fused`, in place, layer by layer on its own inputs.

    For each layer with inputs h (im2col with a column of ones, if it has a bias or a BatchNorm), Gram matrix G = Σ h·hᵀ
    and interpolated weights W₀ (BatchNorm folded in): (G + R)·W = Σ h·tᵀ + R·W₀, R = ridge · mean diag(G) · I (0 for
    the ones, which have another scale), t = Σ sᵢ·zᵢ with the shares s. Through the ReLU, and the max-pooling behind it,
    the target is t⁺ = Σ sᵢ·relu(zᵢ); where it is zero any output ≤ 0 is right, so there min(prediction, 0) takes its
    place (behind a pool: only the largest of each window has to reach t⁺) and the layer is solved again, `rounds`
    times, with one factorisation (`affine.Normal`). Through GELU and its like (`sites.SMOOTH`) the rounds are steps by
    f'(z) · (Σ sᵢ·f(zᵢ) − f(z)), and each unit keeps its best. A layer that completes a residual sum is fitted to the
    parents' sums less what the fused network already carries.

    With `select` each layer is fitted to each parent and to their mean, and each of its units stands for one of one
    parent or for the mean, whichever serves the next layer (`selection`), in the parents' shares. This is done where
    one layer alone reads the units.

    Where several layers make units together that one layer reads (heads of attention, by q, k and v; gated units),
    each of the fused network's stands for any one of one parent's or for a mean: those that, one after the other,
    explain most of what the layer that reads them is to make (`selection.choose_blocks`).

    Layer-wise regression of merged networks is known from RegMean (Jin et al. 2023) and PLeaS (Nasery et al. 2024);
    that a unit need not mix the parents, from ZipIt (Stoica et al. 2024).

    Args:
        parents, fused: the n parents and the interpolated network, in evaluation mode, on one device.
        images: (N, …) on that device, of the networks' type.
        shares: n numbers that sum to 1.
        ridge: pull towards the interpolated weights.
        heads: how units that are made together are chosen: "shares": those that stand for one parent in the parents'
            shares; "free": in whatever shares serve best, which the report says; "mean": none is.
        units: what the fused network's units are. "matched": the parents' units in one place, averaged or, with
            `select`, chosen. "side_by_side": those of the parents' units, as they are and wherever they stand, that
            explain best what the parents' next layers make of them (`selection.forward`), of each parent as many as its
            share asks for; each layer is fitted to their activations from a start of zero, the last one to the mean
            logits. Nothing is matched or averaged: what pruning two networks side by side to the size of one gives.
            "half": the same of the parent with the largest share alone (the first, of equals), and half of its units,
            the last layer fitted to its logits; the layers keep their width, the weights of their other units are zero.
        rows: how many positions of all images a layer is fitted at, about; 0: all (see `rows.Rows`); of those alone
            that reach the outputs (`rows.reaching`: in a classifier's last block, of its class token). The
            statistics of BatchNorms are those of every position.
        structure: of `fused`, filled by `Structure.place`; None: that of one network. Groups of units of another number
            than a parent's are chosen as "side_by_side" says, and with them all that one layer alone writes and
            another reads; separate ones are fitted to each parent's units, unless they are the parents' own already,
            which are left as they are.
        shared: what fits of other structures to the same parents, with the same options, can use again; filled here.
        memory: bytes of activations to keep; less means more recomputation and the same result.

    Returns:
        {"images": N, "layers": {layer: share of the target's mean square that is not reached},
         "units": {layer or group: {"mean": how many of its units stand for all parents, "single": [for each alone]}}
         where they are chosen, "left": {module: why it keeps its interpolated weights}}

    Raises:
        InputError: activations are not finite, or `units` cannot be chosen in this architecture.
    """
    structure = structure or Structure.of_one(fused, groups, len(parents))
    graph, chunks = None if structure.plain else structure.graph(fused), images.split(CHUNK)
    sites, left = solvable(fused, groups)
    theirs = {site.name: site for site in solvable(parents[0], groups)[0]}
    sources = {name: Affine(site) for name, site in theirs.items()}
    exact = set() if structure.plain else structure.exact()
    reach = reaching(parents, groups, sites, images) if shared is None or shared.reach is None else shared.reach
    shared = None if structure.plain else shared
    # where all that a fit asks of the parents is known from another one, they need not run again
    asked = {(site.name, structure.makes_apart(site.name)) for site in sites if site.end.name not in exact}
    again = shared is not None and asked <= shared.solved
    lockstep = Lockstep((fused,) if again else (*parents, fused), groups.graph, chunks, memory, graph)
    problem = Fit(lockstep, sources, ridge, rounds if through_relu else 0, rows or math.inf, reach, exact, shared)
    modules = [dict(model.named_modules()) for model in parents]
    names = {module: name for name, module in parents[0].named_modules()}
    alone = [tuple(float(i == which) for i in range(len(parents))) for which in range(len(parents))]
    if units == "half":
        shares = alone[max(range(len(parents)), key=lambda i: shares[i])]
    bare = units != "matched"
    beside = bare or not structure.plain  # whether units that can be are chosen side by side
    readers = {name: reader_of(site, list(theirs.values()), groups, lockstep, beside) for name, site in theirs.items()}
    if bare:
        _check_readers(units, groups, readers, left)
    elif not beside and (not select or max(shares) == 1):
        readers = dict.fromkeys(readers)

    def own(name: str) -> list[Tensor]:
        """What a layer of each parent does, in the parents' sizes."""
        site, affine = theirs[name], sources[name]
        return [affine.of(each[name], each.get(names.get(site.norm))) for each in modules]

    def starts(site: Site, affine: Affine) -> list[Tensor]:
        """The same on the inputs of the fused network: (G, p, c) of each parent, which reads its own units where they
        stand, and those that were chosen."""
        rows, source, group = own(site.name), sources[site.name], structure.read(site.name)
        if affine.groups > source.groups or affine.size == source.size and group not in standing:
            return rows
        size, stand = structure.plan.sizes[group], standing.get(group, torch.arange(structure.count(group)))
        placed = []
        for which, each in enumerate(rows):
            weights = each[:, : each.shape[1] - affine.bias].unflatten(1, (size, -1))
            blank = weights.new_zeros(1, len(stand), *weights.shape[2:])
            mine = (stand // size == which).nonzero().flatten()
            blank[:, mine] = weights[:, stand[mine] % size]
            placed.append(torch.cat([blank.flatten(1, 2), each[:, weights.shape[1] * weights.shape[2] :]], dim=1))
        return placed

    def reading(reader: Site, size: int) -> list[Tensor]:
        """What the reader of each parent makes of its `size` units (m, size), weighted by the parent's share."""
        weights = [makes_of(sources[reader.name].split(rows)[0], size) for rows in own(reader.name)]
        return [share * weight for share, weight in zip(shares, weights, strict=True)]

    here = {site.name: site for site in sites}
    together = []
    if units == "matched" and heads != "mean" and max(shares) < 1:
        together = [joint.of(here) for joint in joints(list(theirs.values()), groups, lockstep)]
        together = [joint for joint in together if joint.name not in structure.separate]
    together = {site.name: joint for joint in together for site in joint.makers}

    def solve_together(joint: Joint) -> None:
        """Solves for all makers of a joint, each of its units fitted to one parent or to the mean."""
        candidates = [*alone, shares]
        fits, sums = [], []
        for site in joint.makers:
            affine, kind = Affine(site), at_least_float32(site.layer.weight.dtype)
            each = [rows.to(kind) for rows in starts(site, affine)]
            begin = torch.cat([sum(s * rows for s, rows in zip(c, each, strict=True)) for c in candidates], dim=2)
            weights, *both = problem.solve(site, affine, _means(*candidates), begin)
            fits.append(weights.split(sources[site.name].shape[0], dim=2))
            sums.append([every.split(sources[site.name].shape[0], dim=1) for every in both])
        goal = _beside if structure.makes_apart(joint.reader.name) else _means(shares)
        moments = problem.together(joint, goal, list(zip(*fits, strict=True)))
        choice, units_of = selection.choose_blocks(*moments, joint.size, shares, heads == "free")
        for site, columns, weights, (error, power) in zip(joint.makers, joint.columns, fits, sums, strict=True):
            # where the columns of each place of the fused network stand among those of all candidates
            source, candidate = torch.empty_like(columns.flatten()), torch.empty_like(columns.flatten())
            source[columns], candidate[columns] = columns[units_of], ((choice - 1) % len(candidates))[:, None]
            picked = [torch.stack(each, dim=-2)[..., candidate, source] for each in (weights, error, power)]
            write(site, Affine(site), picked[0], None)
            layers[site.name] = _unreached(*picked[1:])
        mean, *single = torch.bincount(choice, minlength=len(parents) + 1).tolist()
        counts[joint.name] = {"mean": mean, "single": single}

    layers, counts = {}, {}
    standing: dict[str, Tensor] = {}  # of each group whose units are chosen, which of all parents' they are

    def solved(site: Site, affine: Affine) -> tuple[Tensor, Tensor, Tensor]:
        """`problem.solve` of a site, with its units chosen where one layer reads them."""
        reader, kind, size = readers[site.name], at_least_float32(site.layer.weight.dtype), sources[site.name].shape[0]
        begin = starts(site, affine)
        if structure.makes_apart(site.name):
            in_blocks = affine.groups > sources[site.name].groups
            begin = torch.cat([rows.to(kind) for rows in begin], dim=0 if in_blocks else 2)
            return problem.solve(site, affine, _in_blocks if in_blocks else _beside, begin)
        begin.append(sum(share * weights for share, weights in zip(shares, begin, strict=True)))
        if bare:
            begin = [torch.zeros_like(begin[-1])]
        elif reader is None:
            if structure.resizes(site.name):
                raise InputError(f"the units of {site.name} cannot be chosen, so there are as many as one parent has")
            begin = begin[-1:]
        elif beside:
            begin = begin[:-1]
        start = torch.cat([weights.to(kind) for weights in begin], dim=2)
        del begin  # float64, and not needed while the largest matrices are there
        if reader is None:
            return problem.solve(site, affine, _means(shares), start)
        if not beside:
            weights, *sums = problem.solve(site, affine, _means(*alone, shares), start)
            covariance = problem.covariance(site, affine, *reader, weights.split(size, dim=2))
            choice, _, _ = selection.choose(covariance, torch.cat(reading(reader[0], size), dim=1), shares)
            # fitted to each parent, then to the mean, which is number 0
            places = (choice - 1) % (len(parents) + 1) * size + torch.arange(size)
            mean, *single = torch.bincount(choice, minlength=len(parents) + 1).tolist()
            counts[site.name] = {"mean": mean, "single": single}
            return tuple(every[..., places.to(weights.device)] for every in (weights, *sums))
        count = max(1, size // 2) if units == "half" else affine.shape[0]
        covariance = None if shared is None else shared.covariances.get(site.name)
        if covariance is None:
            covariance = problem.covariance(theirs[site.name], sources[site.name], *reader)
            if shared is not None:
                shared.covariances[site.name] = covariance
        picked = selection.forward(covariance, reading(reader[0], size), shares, count).to(start.device)
        single = torch.bincount(picked // size, minlength=len(parents)).tolist()
        counts[site.name] = {"mean": 0, "single": single}
        if not bare:
            standing[structure.made(site.name)] = picked.cpu()
        begin = start.new_zeros(*start.shape[:2], count) if bare else start[..., picked]
        weights, error, power = problem.solve(site, affine, _picked(picked), begin)
        return F.pad(weights, (0, affine.shape[0] - count)), error, power

    for site in tqdm(sites, desc="least squares", unit="layer", disable=not progress, leave=False, mininterval=1):
        if site.name in layers:
            continue
        if site.end.name in exact:
            layers[site.name] = 0.0
            continue
        affine = Affine(site)
        lockstep.move(lockstep.index[site.node])
        if site.name in together:
            solve_together(together[site.name])
            continue
        weights, error, power = solved(site, affine)
        layers[site.name] = _unreached(error, power)
        normed = site.norm is not None or isinstance(site.layer, _BatchNorm)
        write(site, affine, weights, problem.seen(site, affine, weights) if normed else None)
    if shared is not None:
        shared.reach = reach
        shared.solved |= asked if not together else set()
    return {"images": len(images), "layers": layers, "units": counts, "left": left}
