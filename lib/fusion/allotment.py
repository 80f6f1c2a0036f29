"""How a budget is shared out among the groups of units: by what each number of units is expected to do to the outputs.

Measured on the parents alone, once for all budgets: which units of all parents explain best what the next layers make
of theirs, one after the other (`selection.ordered`); and what it does to the mean of the parents' outputs if the first
so many, and what they tell of the others, stand in the place of all, while each later layer gets the units that are
linearly nearest to its own. Without that, what is lost early counts for too much: a fit makes up for most of it.
What groups do is taken to add up.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from ..checks import InputError
from ..symmetry.walker import Lockstep, Values
from . import selection
from .affine import at_least_float32
from .rows import drawn, makes_of, units_of, with_units
from .structure import Cost, Plan, Structure

PARTS = 8  # the steps of a group's size are eighths of what a parent has
TRIED = (0.25, 0.5, 1.0, 1.5)  # of a group's size, at which its harm is measured
POSITIONS = 20_000  # that moments are taken over


# {units: expected mean square change of the outputs}, of the sizes that a group may have; of all parents' units 0.
Harm = Mapping[int, float]


@dataclass(frozen=True)
class _Reading:
    """A layer that reads a group: its node, what it reads, the layer, its weight's name, the group's units in one
    network and entries per unit; and once the parents have run, all their units there, side by side, chunk by chunk at
    the positions that moments are taken over."""

    node: fx.Node
    layer: nn.Module
    weight: str
    size: int
    block: int
    seen: list[Tensor] = field(default_factory=list)

    @property
    def source(self) -> fx.Node:
        """What it reads."""
        return self.node.args[0]

    def units(self, bags: Sequence[Values]) -> Tensor:
        """(rows, n·size): all networks' units, side by side."""
        return torch.cat([units_of(bag[self.source], self.layer, self.size, self.block) for bag in bags], dim=1)

    def sampled(self, lockstep: Lockstep, bags: Sequence[Values], chunk: int) -> Tensor:
        """Those at the positions that moments are taken over."""
        units = self.units(bags)
        kept = drawn(len(units), POSITIONS * lockstep.part(chunk), chunk, None).to(units.device)
        return units[kept].to(at_least_float32(units.dtype))


def _readings(plan: Plan) -> dict[str, list[_Reading]]:
    """{group: its readers}, of the free groups that modules alone read."""
    modules, found = dict(plan.model.named_modules()), {}
    nodes = {node.name: node for node in plan.groups.graph.nodes}
    for layer in plan.groups.layers:
        node = nodes[layer.node]
        group, block = plan.places.get(layer.weight, {}).get(1, (None, 1))
        if group is not None and node.op == "call_module":
            reading = _Reading(node, modules[node.target], layer.weight, plan.sizes[group], block)
            found.setdefault(group, []).append(reading)
    return found


def needs(
    parents: Sequence[nn.Module],
    plan: Plan,
    images: Tensor,
    shares: Sequence[float],
    chosen: Collection[str],
    memory: float = 2**30,
    chunk: int = 100,
) -> dict[str, Harm]:
    """What each size of each free group is expected to cost.

    Args:
        parents: in one order of units, in evaluation mode, on one device.
        images: (N, …) on that device.
        chosen: the groups whose units can be chosen; of others there are as many as one parent has, means of those in
            one place, or all.
        memory: bytes of activations to keep.
    """
    lockstep = Lockstep(parents, plan.groups.graph, images.split(chunk), memory)
    states = [dict(parent.named_parameters()) for parent in parents]
    every, found = _readings(plan), {}
    in_order = sorted(itertools.chain(*every.values()), key=lambda reading: lockstep.index[reading.node])
    outputs = [_outputs(lockstep, in_order, number, shares) for number in range(len(lockstep.kept))]
    for group, readings in every.items():
        size, count = plan.sizes[group], len(parents)
        first = lockstep.index[readings[0].node]
        lockstep.move(first)
        moments = [_moments(reading.seen).cpu() for reading in readings]
        later = [each for each in in_order if lockstep.index[each.node] >= first]

        def harm(basis: Tensor) -> float:
            given = [_projection(each, basis) for each in moments]  # noqa: B023 (called in its own turn)
            given = dict(zip((each.node for each in readings), given, strict=True))  # noqa: B023
            return _harm(lockstep, later, given, outputs, shares)  # noqa: B023

        if group not in chosen:
            mean = torch.cat([share * torch.eye(size, dtype=torch.float64) for share in shares])
            found[group] = {size: harm(mean), count * size: 0.0}
            continue
        (reading,), (total,) = readings, moments
        readers = [
            share * makes_of(state[reading.weight].double(), size) for share, state in zip(shares, states, strict=True)
        ]
        order, left = selection.ordered(total[:-1, :-1], readers)
        full = torch.eye(count * size, dtype=torch.float64)
        steps = sorted({max(1, round(size * part / PARTS)) for part in range(1, count * PARTS)})
        tried = sorted({max(1, round(size * part)) for part in TRIED if part < count})
        known = [(float(left[units]), harm(full[:, order[:units]])) for units in tried]
        found[group] = {u: _between(known, float(left[u])) for u in steps} | {count * size: 0.0}
    return found


def _outputs(lockstep: Lockstep, readings: Sequence[_Reading], chunk: int, shares: Sequence[float]) -> Tensor:
    """The mean output of the parents on a chunk; notes on the way what each reading sees."""
    place = lockstep.place
    bags = _copied(lockstep.values(chunk, place))
    for reading in readings:
        stop = lockstep.index[reading.node]
        _go(lockstep, bags, place, stop)
        reading.seen.append(reading.sampled(lockstep, bags, chunk))
        place = stop
    _go(lockstep, bags, place, len(lockstep.nodes))
    return _mean(lockstep, bags, shares)


def _copied(bags: Sequence[Values]) -> list[Values]:
    """Values that a network may write into."""
    return [{node: v.clone() if isinstance(v, Tensor) else v for node, v in bag.items()} for bag in bags]


def _mean(lockstep: Lockstep, bags: Sequence[Values], shares: Sequence[float]) -> Tensor:
    return sum(share * bag[lockstep.nodes[-1]].double() for share, bag in zip(shares, bags, strict=True))


def _between(known: Sequence[tuple[float, float]], left: float) -> float:
    """The harm at a share of what readers make of the units that is `left` unexplained: linear between those measured,
    (left, harm) from the largest, and from the least of them to 0."""
    points = [*sorted(known, reverse=True), (0.0, 0.0)]
    for (one, harm_one), (two, harm_two) in itertools.pairwise(points):
        if left >= two or (two, harm_two) == points[-1]:
            return harm_two + (left - two) / max(one - two, 1e-12) * (harm_one - harm_two)
    return 0.0


def _moments(columns: Sequence[Tensor]) -> Tensor:
    """Means and covariance of columns (rows, n), block by block: float64 (n + 1, n + 1), the last row the means; the
    rest is the covariance."""
    total = 0
    for block in columns:
        block = torch.cat([block, torch.ones_like(block[:, :1])], dim=1)
        total = total + (block.mT @ block).double()
    total = total / total[-1, -1]
    mean = total[-1, :-1]
    total[:-1, :-1] -= torch.outer(mean, mean)
    return total


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
    given: Mapping[fx.Node, tuple[Tensor, Tensor]],
    outputs: Sequence[Tensor],
    shares: Sequence[float],
) -> float:
    """Mean square change of the mean output where a reader gets what the projection `given` for it leaves of the units,
    and each later one the units that are linearly nearest to what it saw, as a fit would see to."""
    place = lockstep.index[readings[0].node]
    moved = [_copied(lockstep.values(chunk, place)) for chunk in range(len(lockstep.kept))]
    for reading in readings:
        stop = lockstep.index[reading.node]
        for bags in moved:
            _go(lockstep, bags, place, stop)
        projection = given.get(reading.node)
        if projection is None:
            now = [reading.sampled(lockstep, bags, chunk) for chunk, bags in enumerate(moved)]
            projection = _nearest(now, reading.seen)
        for bags in moved:
            _read_others(lockstep, bags, reading, projection)
        place = stop + 1
    total = count = 0
    for bags, goal in zip(moved, outputs, strict=True):
        _go(lockstep, bags, place, len(lockstep.nodes))
        total += float((goal - _mean(lockstep, bags, shares)).square().sum())
        count += goal.numel()
    return total / count


def _nearest(now: Sequence[Tensor], seen: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(matrix (n, n), offset (n,)) float64 that bring units (rows, n), as they are now, nearest to what they were."""
    moments = _moments([torch.cat(pair, dim=1) for pair in zip(now, seen, strict=True)])
    n, mean, covariance = now[0].shape[1], moments[-1, :-1], moments[:-1, :-1]
    inner = covariance[:n, :n].clone()
    inner.diagonal().add_(selection.faint(inner.diagonal()))
    matrix = torch.linalg.solve(inner, covariance[:n, n:])
    return matrix, mean[n:] - mean[:n] @ matrix


def _go(lockstep: Lockstep, bags: Sequence[Values], begin: int, end: int) -> None:
    for stepper, bag in zip(lockstep.steppers, bags, strict=True):
        stepper.go(bag, lockstep.nodes[begin:end])


def _read_others(
    lockstep: Lockstep, bags: Sequence[Values], reading: _Reading, projection: tuple[Tensor, Tensor]
) -> None:
    """Runs a reader of each network on what the projection makes of all their units."""
    source, units = reading.source, reading.units(bags)
    matrix, offset = (each.to(units) for each in projection)
    parts = (units @ matrix + offset).split(reading.size, dim=1)
    for stepper, bag, part in zip(lockstep.steppers, bags, parts, strict=True):
        own = bag[source]
        bag[source] = with_units(own, reading.layer, reading.block, part)
        stepper.go(bag, [reading.node])
        if source in bag:  # others read it, too
            bag[source] = own


class _Search:
    """Sizes of the groups with the least expected harm within a cost, by coordinate descent on harm + price · cost.

    The cost of a network is a sum over its tensors, each of which one or two groups size.
    """

    def __init__(self, plan: Plan, parents: int, found: Mapping[str, Harm], kind: Cost) -> None:
        self.plan, self.parents, self.names = plan, parents, list(found)
        self.levels = {name: torch.tensor(sorted(harm)) for name, harm in found.items()}
        self.harm = {name: torch.tensor([found[name][int(u)] for u in self.levels[name]]) for name in found}
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


def allot(plan: Plan, parents: int, found: Mapping[str, Harm], budget: float, kind: Cost) -> Structure:
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
