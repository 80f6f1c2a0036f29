"""What stands between one network and all of them: of each group of units, how many the fused network has, and whether
they are those of each parent apart.

Where all units of all parents stand side by side in a group, it is *separate*; the layer between two separate groups is
in blocks that do not meet, so n networks side by side cost n times as much, not n². Any other layer is dense: it costs
the product of what it reads and what it makes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from .. import models, symmetry
from ..checks import InputError
from ..models.resized import HEADS, BlockLayerNorm, BlockLinear, can_resize, resized
from ..symmetry import Groups, Member
from .aligned import interpolate
from .heads import linear_head

Cost = Literal["parameters", "multiply-adds"]
COSTS = ("parameters", "multiply-adds")


class Plan:
    """What of an architecture can have another size.

    `sizes`: {group: its units}; `free`: the groups whose size can be chosen, in execution order; `fixed`: {group: why
    it cannot}; `places`: {tensor: {axis: (group, entries a unit)}} of the free ones.
    """

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self.model, self.groups = model, groups
        self.shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if not models.is_extra(k, v)}
        self.parameters = [name for name, _ in model.named_parameters()]
        self.sizes = {name: group.size for name, group in groups.items()}
        self.fixed: dict[str, str] = {}
        modules, tied = dict(model.named_modules()), symmetry.shared(model)
        self.layers = {layer.weight: layer for layer in groups.layers}
        for name, group in groups.items():
            for member in group.members:
                module = modules[member.tensor.rpartition(".")[0]]
                if reason := self._reason(member, group.size, module, tied):
                    self.fixed[name] = f"{member.tensor} {reason}"
                    break
        self.free = [name for name in groups if name not in self.fixed]
        self.places: dict[str, dict[int, tuple[str, int]]] = {}
        for name in self.free:
            for member in groups[name].members:
                self.places.setdefault(member.tensor, {})[member.axis] = (name, member.block)
        self.heads = {}  # {module of attention: the group of its heads}
        for name in {group.within[0] for group in groups.inside.values()} & set(self.free):
            parents = {m.tensor.rpartition(".")[0].rpartition(".")[0] for m in groups[name].members}
            counts = [
                parent
                for parent in parents
                if parent in modules and any(getattr(modules[parent], key, None) == self.sizes[name] for key in HEADS)
            ]
            if len(parents) == 1 and len(counts) == 1:
                self.heads[counts[0]] = name
            else:
                self.fixed[name] = "no module says how many heads there are"
                self.free.remove(name)
                self.places = {t: {a: p for a, p in axes.items() if p[0] != name} for t, axes in self.places.items()}

    def _reason(self, member: Member, size: int, module: nn.Module, tied: Iterable[str]) -> str:
        """Why a group with this member keeps its size."""
        if member.rows or member.offset or member.starts:
            return "holds other units beside these"
        if self.shapes[member.tensor][member.axis] != size * member.block:
            return "holds other entries beside these units"
        if member.tensor in tied:
            return "is used in two places"
        if getattr(module, "groups", 1) > 1 and module.groups != module.out_channels:
            return "belongs to a grouped convolution"
        if isinstance(module, nn.GroupNorm):
            return "normalises groups of these units"
        return "" if can_resize(module) else f"belongs to a {type(module).__name__}"

    def reads(self, tensor: str, axis: int) -> bool:
        """Whether this axis of a tensor is what a layer reads."""
        return axis == 1 and tensor in self.layers

    def counted(self, kind: Cost) -> dict[str, int]:
        """{tensor: what it adds to a cost in the parents' sizes}: its parameters, or multiply–adds of one input (of
        layers alone: what norms and activations take is left out)."""
        if kind == "parameters":
            return {name: math.prod(self.shapes[name]) for name in self.parameters}
        return {name: math.prod(self.shapes[name]) * times for name, times in self.positions.items()}

    @cached_property
    def positions(self) -> dict[str, int]:
        """{weight: at how many positions of one input its layer is computed}."""
        nodes = {node.name: node for node in self.groups.graph.nodes}
        found = {}
        for layer in self.groups.layers:
            shape = nodes[layer.node].meta["tensor_meta"].shape
            inner = shape[2:] if layer.kind == "conv" else shape[1:-1]
            found[layer.weight] = found.get(layer.weight, 0) + math.prod(inner)
        return found


@dataclass(frozen=True)
class Structure:
    """How many units each free group of a fused network has.

    `counts`: {group: units}; `separate`: the groups that hold all units of each of `parents` parents, apart.
    """

    plan: Plan = field(repr=False)
    parents: int
    counts: Mapping[str, int]
    separate: frozenset[str] = frozenset()

    @classmethod
    def of_one(cls, model: nn.Module, groups: Groups, parents: int) -> "Structure":
        """That of one network, which asks nothing of the architecture."""
        return cls(Plan(model, groups), parents, {})

    @property
    def plain(self) -> bool:
        """Whether it is that of one network."""
        return not self.separate and all(count == self.plan.sizes[name] for name, count in self.counts.items())

    def count(self, group: str) -> int:
        """Units of a group."""
        if group in self.separate:
            return self.parents * self.plan.sizes[group]
        return self.counts.get(group, self.plan.sizes[group])

    def blocks(self, tensor: str) -> int:
        """In how many blocks that do not meet a layer's weight stands."""
        axes = self.plan.places.get(tensor, {})
        both = tensor in self.plan.layers and {0, 1} <= axes.keys()
        return self.parents if both and all(axes[axis][0] in self.separate for axis in (0, 1)) else 1

    def made(self, layer: str) -> str | None:
        """The group of what a layer, or a BatchNorm that stands alone, makes."""
        return self.plan.places.get(f"{layer}.weight", {}).get(0, (None,))[0]

    def makes_apart(self, layer: str) -> bool:
        """Whether what a layer makes is separate."""
        return self.made(layer) in self.separate

    def resizes(self, layer: str) -> bool:
        """Whether a layer makes another number of units than a parent's does, which are chosen among theirs."""
        group = self.made(layer)
        return group is not None and group not in self.separate and self.count(group) != self.plan.sizes[group]

    def read(self, layer: str) -> str | None:
        """The group that a layer reads."""
        return self.plan.places.get(f"{layer}.weight", {}).get(1, (None,))[0]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        shape, blocks = list(self.plan.shapes[tensor]), self.blocks(tensor)
        for axis, (group, block) in self.plan.places.get(tensor, {}).items():
            shape[axis] = self.count(group) * block
            if blocks > 1 and axis == 1:
                shape[axis] //= blocks
        return tuple(shape)

    def cost(self, kind: Cost = "parameters") -> int:
        """`Plan.counted` of all tensors."""
        ratio = {name: math.prod(self.shape(name)) / math.prod(self.plan.shapes[name]) for name in self.plan.places}
        return round(sum(ratio.get(name, 1) * count for name, count in self.plan.counted(kind).items()))

    @property
    def modules(self) -> dict[str, Any]:
        """What the saved file says beside its tensors, so that `models.resized` can make the module."""
        blocks = {}
        for tensor in self.plan.layers:
            if self.blocks(tensor) > 1:
                blocks[tensor.rpartition(".")[0]] = self.parents
        for name, module in self.plan.model.named_modules():
            held = self.plan.places.get(f"{name}.weight", {})
            if isinstance(module, nn.LayerNorm) and any(group in self.separate for group, _ in held.values()):
                blocks[name] = self.parents
        return {"blocks": blocks, "heads": {module: self.count(group) for module, group in self.plan.heads.items()}}

    def as_dict(self) -> dict[str, Any]:
        """What a record or a saved file says of it."""
        one = Structure(self.plan, self.parents, {})
        return {
            "units": {name: self.count(name) for name in self.plan.sizes},
            "separate": [name for name in self.plan.free if name in self.separate],
            **{kind: self.cost(kind) / one.cost(kind) for kind in COSTS},
        } | self.modules

    def module(self) -> nn.Module:
        """A network of this structure, its weights zeros where their shape is another."""
        return resized(self.plan.model, {name: self.shape(name) for name in self.plan.places}, **self.modules)

    def graph(self, module: nn.Module) -> fx.Graph:
        """The graph of a network of this structure; node for node the parents', with its own sizes in it.

        Raises:
            InputError: it has other nodes.
        """
        theirs, blocks = self.plan.groups.graph, (BlockLinear, BlockLayerNorm)
        kind = type(self.plan.model).__name__
        try:
            graph = symmetry.capture(module, self.plan.groups.example, blocks)
        except symmetry.UnsupportedError as error:
            raise InputError(f"{kind}'s forward counts on its own sizes ({error}); accepted: no budget") from None
        if [(n.op, n.name) for n in graph.nodes] != [(n.op, n.name) for n in theirs.nodes]:
            raise InputError(f"{kind}'s forward does something else at other sizes; accepted: no budget")
        return graph

    def place(self, states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
        """A state of this structure from aligned states of the parents: what is separate as it is in each, what is not
        averaged; what reads units that are of another number than a parent's is 0, and is to be solved for."""
        averaged = interpolate(states, shares)
        for name, value in averaged.items():
            axes = {} if models.is_extra(name, value) else self.plan.places.get(name, {})
            apart = sorted(axis for axis, (group, _) in axes.items() if group in self.separate)
            if any(self.count(axes[axis][0]) != self.plan.sizes[axes[axis][0]] for axis in axes.keys() - set(apart)):
                value = value.new_zeros(self.shape(name))
            elif apart:
                each = [state[name] for state in states]
                if self.plan.reads(name, apart[-1]) and len(apart) == 1:  # of each parent's units its share of the mean
                    each = [share * tensor for share, tensor in zip(shares, each, strict=True)]
                if len(apart) > 1 and self.blocks(name) < self.parents:
                    raise InputError(f"{name} has units on two axes and is no layer's weight; accepted: no budget")
                value = torch.cat(each, dim=apart[0])
            averaged[name] = value
        return averaged

    def exact(self) -> set[str]:
        """The nodes whose values are the parents', side by side, in a network that `place` fills."""
        plan, exact = self.plan, set()
        modules = dict(plan.model.named_modules())
        head = _head(plan)
        for node in plan.groups.graph.nodes:
            owner = node.target if node.op in ("call_module", "get_attr") else None
            held = []
            if node.op == "get_attr":
                held = [owner]
            elif owner is not None:
                prefix = f"{owner}."
                state = modules[owner].state_dict()
                held = [prefix + key for key, value in state.items() if value.is_floating_point()]
            if owner != head and not all(self._apart(name) for name in held):
                continue
            if node.op == "placeholder" or all(each.name in exact for each in node.all_input_nodes):
                exact.add(node.name)
        return exact

    def _apart(self, tensor: str) -> bool:
        """Whether what a tensor makes is separate."""
        axes = self.plan.places.get(tensor, {})
        made = [group for axis, (group, _) in axes.items() if not self.plan.reads(tensor, axis)]
        return bool(made) and all(group in self.separate for group in made)


def _head(plan: Plan) -> str | None:
    """The layer that makes the outputs, if it is one alone."""
    try:
        return linear_head(plan.model, plan.groups)[-1]
    except InputError:
        return None
