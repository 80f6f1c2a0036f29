"""The dial between one network and all of them: from budgets, or whole layers, to structures."""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .. import loaders, models
from ..checks import InputError, check_choice, first_line
from ..symmetry.walker import Lockstep
from .aligned import Aligned
from .allotment import Harm, allot, needs
from .sites import reader_of, solvable
from .structure import COSTS, Cost, Plan, Structure
from .task import Task

PROBE = 500  # images that the parents' needs are measured on
FAR = 1e-6  # of the outputs' size, in float64: what networks apart must compute to


def check_budgets(budget: float | Sequence[float] | None, cost: str, separate: object, parents: int) -> None:
    """Raises InputError, in one line, for what `Dial` cannot take."""
    check_choice("cost", cost, COSTS)
    if budget is not None and separate is not None:
        raise InputError("budget and separate both say how large the network is; accepted: one of them")
    for each in budget if isinstance(budget, list | tuple) else [] if budget is None else [budget]:
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0 < each <= parents:
            raise InputError(f"budget {each!r} is not accepted; accepted: a number > 0, at most {parents}")
        if parents == 1 and each == 1:
            raise InputError("budget 1 of one network is that network; accepted: a number > 0 and < 1")
    if isinstance(budget, list | tuple) and not budget:
        raise InputError("budget [] is not accepted; accepted: one number, or some")
    if parents == 1 and budget is None:
        raise InputError("fuse takes a list of at least two networks, or one and a budget < 1")


class Dial:
    """Structures of a fused network, of which all share what was measured on the parents.

    Args:
        aligned: the parents.
        shares: theirs, that sum to 1.
        images: as `correct` takes them, for structures by budget.

    Raises:
        InputError: no group of units can have another size, or the network counts on its own sizes.
    """

    def __init__(self, aligned: Aligned, shares: Sequence[float], images: object, device: torch.device | str) -> None:
        self.aligned, self.shares, self.images, self.device = aligned, tuple(shares), images, torch.device(device)
        self.plan = Plan(aligned.model, aligned.groups)
        if not self.plan.free:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.plan.fixed.items())
            raise InputError(f"no group of units can have another size ({reasons}); accepted: no budget")
        self._needs: dict[str, Harm] | None = None
        self._check()

    def _check(self) -> None:
        """That networks apart compute the mean of the outputs, or at least something of its shape."""
        every = Structure(self.plan, len(self.aligned), {}, frozenset(self.plan.free))
        example = self.aligned.groups.example
        inputs = example if isinstance(example, tuple) else (example,)
        inputs = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in inputs]
        goal, kind = 0, type(self.aligned.model).__name__
        with torch.inference_mode():
            for share, state in zip(self.shares, self.aligned.states, strict=True):
                parent = models.load_state(copy.deepcopy(self.aligned.model).double(), state)
                goal = goal + share * parent(*inputs)
            apart = models.load_state(every.module().double(), every.place(self.aligned.states, self.shares))
            try:
                found = apart(*inputs)
            except Exception as error:  # a forward of anyone's may raise anything
                reason = first_line(error)
                raise InputError(f"{kind}'s forward counts on its own sizes ({reason}); accepted: no budget") from None
        *_, output = self.plan.groups.graph.nodes
        far = output.name in every.exact() and (found - goal).abs().max() > FAR * goal.abs().max()
        if found.shape != goal.shape or far:
            raise InputError(f"{kind}'s forward mixes units of networks that are apart; accepted: no budget")

    def whole(self, separate: int | Sequence[str]) -> Structure:
        """Whole groups separate: the first so many, the last where the number is negative, or those named; of all
        others as many units as one parent has."""
        free = self.plan.free
        if isinstance(separate, int) and not isinstance(separate, bool) and abs(separate) <= len(free):
            names = free[:separate] if separate >= 0 else free[separate:]
        elif isinstance(separate, list | tuple) and set(separate) <= set(free):
            names = separate
        else:
            raise InputError(
                f"separate {separate!r} is not accepted; accepted: a number of groups, −{len(free)} to {len(free)}, or "
                f"names of {', '.join(free)}"
            )
        return Structure(self.plan, len(self.aligned), {}, frozenset(names))

    def dense(self, size: float) -> Structure:
        """`size` times as many units as one parent has in every group whose units can be chosen, all layers dense."""
        sizes, most = self.plan.sizes, len(self.aligned)
        counts = {name: min(max(1, round(size * sizes[name])), most * sizes[name]) for name in self._chosen}
        return Structure(self.plan, most, counts)

    def at(self, budget: float, cost: Cost = "parameters") -> Structure:
        """The structure that is expected to keep most of the parents' mean output within `budget` times the cost of one
        network: 1 is one network's own, as many as there are parents all of them apart."""
        parents = len(self.aligned)
        if budget == 1:
            return Structure(self.plan, parents, {})
        if budget == parents and not self.plan.fixed:
            return Structure(self.plan, parents, {}, frozenset(self.plan.free))
        if self._needs is None:
            self._needs = self._measured()
        return allot(self.plan, parents, self._needs, budget, cost)

    @torch.inference_mode()
    def _measured(self) -> dict[str, Harm]:
        parents = Task(self.aligned, self.shares, None, self.device, False).parents()
        return needs(parents, self.plan, self._some_images(), self.shares, self._chosen)

    def within(self, budget: float | Sequence[float], cost: Cost = "parameters") -> list[Structure]:
        """`at` one budget, or at several."""
        return [self.at(each, cost) for each in (budget if isinstance(budget, list | tuple) else [budget])]

    def _some_images(self) -> Tensor:
        if self.images is None:
            raise InputError("a budget is shared out by what the networks make of images; give it images")
        found: list[Tensor] = []
        for batch in loaders.batched(self.images):
            found.append(loaders.placed(loaders.read_batch(batch)[0], self.device))
            if isinstance(found[0], tuple):
                raise InputError(f"a budget takes networks with one input; this one has {len(found[0])}")
            if sum(map(len, found)) >= PROBE:
                break
        if not found:
            raise InputError("a budget is shared out by what the networks make of images; images holds no batch")
        return torch.cat(found)[:PROBE]

    @cached_property
    def _chosen(self) -> set[str | None]:
        """The groups whose units can be chosen among all parents'."""
        model, groups, one = self.aligned.model, self.plan.groups, Structure(self.plan, 1, {})
        sites, lockstep = solvable(model, groups)[0], Lockstep((model,), groups.graph, (groups.example,), 0)
        return {one.made(site.name) for site in sites if reader_of(site, sites, groups, lockstep, True)}
