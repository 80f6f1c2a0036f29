"""How a budget is shared out among the groups of units: by what each number of units is expected to do to the outputs.

Measured on the parents alone, once for all budgets: which units of all parents explain best what the next layers make
of theirs, one after the other (`selection.ordered`); and what it does to the mean of the parents' outputs if the first
so many, and what they tell of the others, stand in the place of all, while each later layer gets the units that are
linearly nearest to its own. Without that, what is lost early counts for too much: a fit makes up for most of it.
What groups do is taken to add up.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..checks import InputError
from ..symmetry.walker import Lockstep, Values
from . import selection
from .affine import at_least_float32
from .rows import drawn
from .structure import Cost, Plan, Structure

PARTS = 8  # the steps of a group's size are eighths of what a parent has
TRIED = (0.25, 0.5, 1.0, 1.5)  # of a group's size, at which its harm is measured
POSITIONS = 20_000  # that moments are taken over


@dataclass(frozen=True)
class Need:
    """What the sizes of a group are expected to cost the outputs: `harm` {units: mean square change}, of which that of
    all parents' is 0."""

    harm: Mapping[int, float]


@dataclass(frozen=True)
class _Reading:
    """A layer that reads a group: its node, what it reads, entries per unit, its weight, and units of the group."""

    node: fx.Node
    source: fx.Node
    block: int
    name: str
    linear: bool
    size: int

    def units(self, value: Tensor) -> Tensor:
        """(rows, size) of what it reads."""
        axis = -1 if self.linear else 1
        return (
            value.unflatten(axis, (self.size, self.block)).movedim(-2 if self.linear else 1, -1).reshape(-1, self.size)
        )

    def replaced(self, value: Tensor, units: Tensor) -> Tensor:
        """The same with other units (rows, size)."""
        axis, place = (-1, -2) if self.linear else (1, 1)
        parted = value.unflatten(axis, (units.shape[1], self.block)).movedim(place, -1)
        return units.view(parted.shape).movedim(-1, place).flatten(place, place + 1)


def _readings(plan: Plan) -> dict[str, list[_Reading]]:
    """{group: its readers}, of the free groups that modules alone read."""
    modules, found = dict(plan.model.named_modules()), {}
    nodes = {node.name: node for node in plan.groups.graph.nodes}
    for layer in plan.groups.layers:
        node = nodes[layer.node]
        group, block = plan.places.get(layer.weight, {}).get(1, (None, 1))
        if group is not None and node.op == "call_module":
            linear = isinstance(modules[node.target], nn.Linear)
            found.setdefault(group, []).append(
                _Reading(node, node.args[0], block, layer.weight, linear, plan.sizes[group])
            )
    return found


def needs(
    parents: Sequence[nn.Module],
    plan: Plan,
    images: Tensor,
    shares: Sequence[float],
    chosen: Callable[[str], bool],
    memory: float = 2**30,
    chunk: int = 100,
) -> dict[str, Need]:
    """What each size of each free group is expected to cost.

    Args:
        parents: in one order of units, in evaluation mode, on one device.
        images: (N, …) on that device.
        chosen: whether the units of a group can be chosen; of others there are as many as one parent has, means of
            those in one place, or all.
        memory: bytes of activations to keep.
    """
    lockstep = Lockstep(parents, plan.groups.graph, images.split(chunk), memory)
    states = [dict(parent.named_parameters()) for parent in parents]
    found = {}
    every = _readings(plan)
    for group, readings in every.items():
        size, count = plan.sizes[group], len(parents)
        lockstep.move(lockstep.index[readings[0].node])
        moments = _moments(lockstep, readings)
        later = [other for each in every.values() for other in each if other not in readings]
        later = [other for other in later if lockstep.index[other.node] > lockstep.index[readings[0].node]]

        def harm(basis: Tensor) -> float:
            projections = [_projection(each, basis) for each in moments]  # noqa: B023 (called in its own turn)
            return _harm(lockstep, readings, later, projections, shares)  # noqa: B023

        if not chosen(group):
            mean = torch.cat([share * torch.eye(size, dtype=torch.float64) for share in shares])
            found[group] = Need({size: harm(mean), count * size: 0.0})
            continue
        (reading,), (total,) = readings, moments
        readers = [
            share * _reader(state[reading.name].double(), size, reading.block)
            for share, state in zip(shares, states, strict=True)
        ]
        order, left = selection.ordered(total[:-1, :-1], readers)
        full = torch.eye(count * size, dtype=torch.float64)
        steps = sorted({max(1, round(size * part / PARTS)) for part in range(1, count * PARTS)})
        tried = sorted({max(1, round(size * part)) for part in TRIED if part < count})
        known = [(float(left[units]), harm(full[:, order[:units]])) for units in tried]
        found[group] = Need({u: _between(known, float(left[u])) for u in steps} | {count * size: 0.0})
    return found


def _between(known: Sequence[tuple[float, float]], left: float) -> float:
    """The harm at a share of what readers make of the units that is `left` unexplained: linear between those measured,
    (left, harm) from the largest, and from the least of them to 0."""
    points = [*sorted(known, reverse=True), (0.0, 0.0)]
    for (one, harm_one), (two, harm_two) in itertools.pairwise(points):
        if left >= two or (two, harm_two) == points[-1]:
            return harm_two + (left - two) / max(one - two, 1e-12) * (harm_one - harm_two)
    return 0.0


def _reader(weight: Tensor, size: int, block: int) -> Tensor:
    """What a layer makes of its units: (m, size)."""
    return weight.unflatten(1, (size, block)).movedim(1, -1).reshape(-1, size)


def _moments(lockstep: Lockstep, readings: Sequence[_Reading]) -> list[Tensor]:
    """At each reader, means and second moments of all parents' units: float64 (n·size + 1, n·size + 1), the last row
    the means; the rest is the covariance."""
    totals = [0.0] * len(readings)
    for chunk in range(len(lockstep.kept)):
        for place, reading in enumerate(readings):
            bags = lockstep.values(chunk, lockstep.index[reading.node])
            units = [reading.units(bag[reading.source]) for bag in bags]
            kept = drawn(len(units[0]), POSITIONS * lockstep.part(chunk), chunk, None).to(units[0].device)
            columns = [each[kept].to(at_least_float32(each.dtype)) for each in units]
            columns = torch.cat([*columns, torch.ones_like(columns[0][:, :1])], dim=1)
            totals[place] = totals[place] + (columns.mT @ columns).double().cpu()
    found = []
    for total in totals:
        total = total / total[-1, -1]
        mean = total[-1, :-1]
        total[:-1, :-1] -= torch.outer(mean, mean)
        found.append(total)
    return found


def _projection(moments: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """(matrix (n, n), offset (n,)) that predict all n units linearly from those of a basis (n, k)."""
    covariance, mean = moments[:-1, :-1], moments[-1, :-1]
    inner = basis.mT @ covariance @ basis
    inner.diagonal().add_(selection.faint(inner.diagonal()))
    matrix = basis @ torch.linalg.solve(inner, basis.mT @ covariance)
    return matrix, mean - mean @ matrix


def _harm(
    lockstep: Lockstep,
    readings: Sequence[_Reading],
    later: Sequence[_Reading],
    projections: Sequence[tuple[Tensor, Tensor]],
    shares: Sequence[float],
) -> float:
    """Mean square change of the mean output where each reader gets what its projection leaves of the units, and each
    later layer of another group the units that are linearly nearest to its own, as a fit would see to."""
    output, chunks = lockstep.nodes[-1], range(len(lockstep.kept))
    place = lockstep.index[readings[0].node]
    clean = [lockstep.values(chunk, place) for chunk in chunks]
    clean = [[{n: v.clone() if isinstance(v, Tensor) else v for n, v in bag.items()} for bag in bags] for bags in clean]
    moved = [[{n: v.clone() if isinstance(v, Tensor) else v for n, v in bag.items()} for bag in bags] for bags in clean]
    given = dict(zip((reading.node for reading in readings), projections, strict=True))
    for reading in sorted((*readings, *later), key=lambda reading: lockstep.index[reading.node]):
        stop = lockstep.index[reading.node]
        for bags in (*clean, *moved):
            _go(lockstep, bags, place, stop)
        projection = given.get(reading.node) or _nearest(lockstep, reading, clean, moved)
        for bags in clean:
            _go(lockstep, bags, stop, stop + 1)
        for bags in moved:
            _read_others(lockstep, bags, reading, projection)
        place = stop + 1
    total = count = 0
    for pair in zip(clean, moved, strict=True):
        ends = []
        for bags in pair:
            _go(lockstep, bags, place, len(lockstep.nodes))
            ends.append(sum(share * bag[output].double() for share, bag in zip(shares, bags, strict=True)))
        total += float((ends[0] - ends[1]).square().sum())
        count += ends[0].numel()
    return total / count


def _nearest(
    lockstep: Lockstep, reading: _Reading, clean: Sequence[Sequence[Values]], moved: Sequence[Sequence[Values]]
) -> tuple[Tensor, Tensor]:
    """(matrix (n, n), offset (n,)) float64 that bring all networks' units at a reader, as they are now, nearest to what
    they were."""
    total = 0
    for chunk, pair in enumerate(zip(moved, clean, strict=True)):
        columns = []
        for bags in pair:
            units = torch.cat([reading.units(bag[reading.source]) for bag in bags], dim=1)
            kept = drawn(len(units), POSITIONS * lockstep.part(chunk), chunk, None).to(units.device)
            columns.append(units[kept])
        columns = torch.cat([*columns, torch.ones_like(columns[0][:, :1])], dim=1)
        total = total + (columns.mT @ columns).double()
    total = total / total[-1, -1]
    n, mean = (len(total) - 1) // 2, total[-1, :-1]
    covariance = total[:-1, :-1] - torch.outer(mean, mean)
    inner = covariance[:n, :n].clone()
    inner.diagonal().add_(selection.faint(inner.diagonal()))
    matrix = torch.linalg.solve(inner, covariance[:n, n:])
    return matrix, mean[n:] - mean[:n] @ matrix


def _go(lockstep: Lockstep, bags: Sequence[Values], begin: int, end: int) -> None:
    for stepper, bag in zip(lockstep.steppers, bags, strict=False):
        stepper.go(bag, lockstep.nodes[begin:end])


def _read_others(
    lockstep: Lockstep, bags: Sequence[Values], reading: _Reading, projection: tuple[Tensor, Tensor]
) -> None:
    """Runs a reader of each network on what the projection makes of all their units."""
    source = reading.source
    own = [bag[source] for bag in bags]
    units = torch.cat([reading.units(value) for value in own], dim=1)
    matrix, offset = (each.to(units) for each in projection)
    for stepper, bag, value, part in zip(
        lockstep.steppers, bags, own, (units @ matrix + offset).split(reading.size, dim=1), strict=False
    ):
        bag[source] = reading.replaced(value, part)
        stepper.go(bag, [reading.node])
        if source in bag:  # others read it, too
            bag[source] = value


class _Search:
    """Sizes of the groups with the least expected harm within a cost, by coordinate descent on harm + price · cost.

    The cost of a network is a sum over its tensors, each of which one or two groups size.
    """

    def __init__(self, plan: Plan, parents: int, found: Mapping[str, Need], kind: Cost) -> None:
        self.plan, self.parents, self.kind, self.names = plan, parents, kind, list(found)
        self.levels = {name: torch.tensor(sorted(need.harm)) for name, need in found.items()}
        self.harm = {name: torch.tensor([found[name].harm[int(u)] for u in self.levels[name]]) for name in found}
        self.alone = {name: torch.zeros(len(levels)) for name, levels in self.levels.items()}
        self.pairs: dict[tuple[str, str], Tensor] = {}
        self.rest = 0.0
        for tensor, times in plan.counted(kind).items():
            self._add(tensor, times)

    def _extent(self, name: str) -> Tensor:
        return self.levels[name].double() / self.plan.sizes[name]

    def _add(self, tensor: str, times: int) -> None:
        axes = self.plan.places.get(tensor, {})
        sized = [axes[axis][0] for axis in sorted(axes) if axes[axis][0] in self.levels]
        whole = float(times)
        if not sized:
            self.rest += whole
        elif len(sized) == 1:
            self.alone[sized[0]] += whole * self._extent(sized[0])
        elif sized[0] == sized[1]:
            extent = self._extent(sized[0])
            cost = extent.square()
            cost[-1] = self.parents if tensor in self.plan.layers else cost[-1]
            self.alone[sized[0]] += whole * cost
        else:
            cost = torch.outer(self._extent(sized[0]), self._extent(sized[1]))
            if tensor in self.plan.layers:
                cost[-1, -1] = self.parents  # in blocks
            one, two = sized
            if (two, one) in self.pairs:
                one, two, cost = two, one, cost.T
            self.pairs[one, two] = self.pairs.get((one, two), 0) + whole * cost

    def cost(self, state: Mapping[str, int]) -> float:
        """Of levels, by number."""
        total = self.rest + sum(float(self.alone[name][level]) for name, level in state.items())
        return total + sum(float(cost[state[one], state[two]]) for (one, two), cost in self.pairs.items())

    def expected(self, state: Mapping[str, int]) -> float:
        """The harm of levels."""
        return sum(float(self.harm[name][level]) for name, level in state.items())

    def _field(self, state: Mapping[str, int], name: str, price: float, but: str = "") -> Tensor:
        """harm + price · cost of each level of a group, beside the others but one."""
        field = self.harm[name] + price * self.alone[name]
        for (one, two), cost in self.pairs.items():
            if one == name and two != but:
                field = field + price * cost[:, state[two]]
            elif two == name and one != but:
                field = field + price * cost[state[one]]
        return field

    def descend(self, state: dict[str, int], price: float) -> dict[str, int]:
        """Changes one or two neighbouring groups at a time as long as harm + price · cost gets less."""
        state = dict(state)
        for _ in range(20):
            before = dict(state)
            for name in self.names:
                state[name] = int(self._field(state, name, price).argmin())
            for one, two in self.pairs:
                both = self._field(state, one, price, two)[:, None] + self._field(state, two, price, one)
                both = both + price * self.pairs[one, two]
                state[one], state[two] = divmod(int(both.argmin()), both.shape[1])
            if state == before:
                break
        return state

    def fill(self, state: dict[str, int], budget: float) -> dict[str, int]:
        """Spends what is left of a budget where a step helps most for its cost."""
        state = dict(state)
        while True:
            best, cost, harm = None, self.cost(state), self.expected(state)
            for name in self.names:
                for level in range(state[name] + 1, len(self.levels[name])):
                    trial = state | {name: level}
                    more = self.cost(trial) - cost
                    if more <= budget - cost:
                        gain = (harm - self.expected(trial)) / max(more, 1e-9)
                        if gain > 0 and (best is None or gain > best[0]):
                            best = gain, trial
            if best is None:
                return state
            state = best[1]

    def within(self, budget: float) -> dict[str, int] | None:
        """The best levels that cost at most so much; None where there are none."""
        base = {name: self._base(name) for name in self.names}
        starts = [base]
        for k in range(1, len(self.names) + 1):
            for some in (self.names[:k], self.names[-k:]):
                starts.append(base | {name: len(self.levels[name]) - 1 for name in some})
        found, least = {}, dict.fromkeys(self.names, 0)
        scale = max(self.expected(least), 1e-12) / self.cost(base)
        for start in starts:
            low, high = 0.0, 1.0
            for _ in range(24):
                price = (low + high) / 2
                state = self.descend(start, scale * price / max(1e-9, 1 - price))
                if self.cost(state) <= budget:
                    found[tuple(state.values())] = state
                    high = price
                else:
                    low = price
            if self.cost(start) <= budget:
                found[tuple(start.values())] = start
        if not found:
            return None
        best = sorted(found.values(), key=self.expected)[:8]
        return min((self.fill(state, budget) for state in best), key=self.expected)

    def _base(self, name: str) -> int:
        return int((self.levels[name] == self.plan.sizes[name]).nonzero())


def allot(plan: Plan, parents: int, found: Mapping[str, Need], budget: float, kind: Cost) -> Structure:
    """The structure with the least expected harm that costs at most `budget` times one parent.

    Raises:
        InputError: there is none.
    """
    search = _Search(plan, parents, found, kind)
    one = Structure(plan, parents, {}).cost(kind)
    state = search.within(budget * one)
    if state is None:
        least = search.cost({name: 0 for name in search.names}) / one
        raise InputError(f"budget {budget:g} is not accepted; accepted: {least:.2g} to {parents} times one network")
    last = {name: level == len(search.levels[name]) - 1 for name, level in state.items()}
    counts = {name: int(search.levels[name][level]) for name, level in state.items() if not last[name]}
    return Structure(plan, parents, counts, frozenset(name for name in last if last[name]))
