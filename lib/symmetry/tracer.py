"""The groups of a network, traced from its graph with one rule an operation."""

import contextlib
import copy
import dataclasses
import io
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from ..checks import first_line
from .groups import Group, Groups, Layer, Member, Tap


class UnsupportedError(Exception):
    """An operation or a layout has no rule; the line names the node and its module."""


class _Cell:
    """A set of units under one permutation while tracing: a node of a union-find that can also be split in parts,
    because an addition or a grouped convolution may find that two halves of an axis move apart."""

    def __init__(self, size: int, fixed: bool = False) -> None:
        self.size, self.fixed = size, fixed
        self.parent: _Cell | None = None
        self.parts: list[_Cell] | None = None

    def root(self) -> "_Cell":
        cell = self
        while cell.parent is not None:
            cell = cell.parent
        return cell


# An axis is a sequence of (cell, block): cell.size units of `block` consecutive entries each. A layout maps the axes
# that a permutation may reach to such sequences; an axis that is absent keeps its order.
Axis = list[tuple[_Cell, int]]
Layout = dict[int, Axis]


def _resolve(axis: Axis) -> Axis:
    resolved: Axis = []
    for cell, block in axis:
        root = cell.root()
        resolved += _resolve([(part, block) for part in root.parts]) if root.parts else [(root, block)]
    return resolved


def _length(axis: Axis) -> int:
    return sum(cell.size * block for cell, block in axis)


def _fix(axis: Axis) -> None:
    for cell, _ in _resolve(axis):
        cell.fixed = True


def _split(cell: _Cell, size: int) -> None:
    cell.parts = [_Cell(size, cell.fixed), _Cell(cell.size - size, cell.fixed)]


def _cut(axis: Axis, length: int) -> list[Axis]:
    """The axis in pieces of `length` entries, splitting cells at the cuts; a cell whose blocks a cut would tear
    is fixed, which is always a symmetry."""
    pieces: list[Axis] = [[]]
    room = length
    todo = _resolve(axis)
    while todo:
        cell, block = todo.pop(0)
        if cell.root() is not cell or cell.parts:  # an earlier split in this loop reached it
            todo = _resolve([(cell, block)]) + todo
            continue
        if cell.size * block > room:
            if room % block:
                cell.fixed = True
                todo = [(_Cell(cell.size * block, fixed=True), 1), *todo]
            else:
                _split(cell, room // block)
                todo = _resolve([(cell, block)]) + todo
            continue
        pieces[-1].append((cell, block))
        room -= cell.size * block
        if room == 0 and todo:
            pieces.append([])
            room = length
    return pieces


class _Tracer:
    def __init__(self, model: nn.Module, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.state = model.state_dict()
        self.layouts: dict[fx.Node, Layout] = {}
        self.marks: dict[tuple[str, int, tuple[int, int] | None], Axis] = {}
        self.producers: list[tuple[str, Axis]] = []
        self.kinds: dict[fx.Node, str] = {}
        self.layers: list[Layer] = []

    # What rules use -------------------------------------------------------------------------------------------------

    def fail(self, node: fx.Node, reason: str) -> UnsupportedError:
        where = (
            f" (module '{node.target}', {type(self.modules[node.target]).__name__})" if node.op == "call_module" else ""
        )
        what = getattr(node.target, "__name__", node.target)
        return UnsupportedError(f"node '{node.name}'{where}, {node.op} {what}: {reason}")

    def layout(self, node: fx.Node) -> Layout:
        return {axis: list(segments) for axis, segments in self.layouts[node].items()}

    def mark(self, node: fx.Node, tensor: str, axis: int, segments: Axis | None, rows=None) -> None:
        """Says that `segments` lie along an axis of a parameter or buffer; a tensor used twice ties what it meets."""
        key = (tensor, axis, rows)
        if tensor not in self.state:
            owner, _, name = tensor.rpartition(".")
            if getattr(self.modules.get(owner), name, None) is not None:
                raise self.fail(
                    node,
                    f"its {name} is made from other tensors (weight_norm, spectral_norm, pruning); "
                    "accepted: a plain one, as remove_parametrizations and prune.remove leave it",
                )
            return
        if segments is None:
            segments = [(_Cell(self.state[tensor].shape[axis], fixed=True), 1)]
        if key in self.marks:
            self.unify(node, self.marks[key], segments)
        else:
            self.marks[key] = segments

    def unify(self, node: fx.Node, first: Axis | None, second: Axis | None) -> None:
        """Ties two axes of one length entry by entry; None is an axis that keeps its order."""
        if first is None or second is None:
            _fix(first or second or [])
            return
        if _length(first) != _length(second):
            raise self.fail(node, f"axes of {_length(first)} and {_length(second)} entries meet")
        while True:
            a, b = _resolve(first), _resolve(second)
            for (x, block_x), (y, block_y) in zip(a, b, strict=False):
                if x is y and block_x == block_y:
                    continue
                if block_x != block_y:
                    # The identity is a symmetry in any layout, so a fixed side can only fix the other.
                    if not (x.fixed or y.fixed):
                        raise self.fail(node, f"units in blocks of {block_x} meet units in blocks of {block_y}")
                    _fix(first)
                    _fix(second)
                    return
                if x.size == y.size:
                    y.parent = x
                    x.fixed |= y.fixed
                else:
                    large, small = (x, y) if x.size > y.size else (y, x)
                    _split(large, small.size)
                break
            else:
                return

    # The walk -------------------------------------------------------------------------------------------------------

    def run(self) -> Groups:
        for node in self.graph.graph.nodes:
            self.layouts[node] = self.visit(node)
        return self.collect()

    def visit(self, node: fx.Node) -> Layout:
        if node.op == "placeholder":
            return {}
        if node.op == "output":
            for source in node.all_input_nodes:
                for segments in self.layouts[source].values():
                    _fix(segments)
            return {}
        if node.op == "get_attr":
            layout = {}
            if node.target in self.state:
                for axis, size in enumerate(self.state[node.target].shape):
                    if size > 1:
                        layout[axis] = [(_Cell(size), 1)]
                        self.mark(node, node.target, axis, layout[axis])
            return layout
        if node.op == "call_module":
            module = self.modules[node.target]
            handler = next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), None)
        else:
            module = None
            handler = RULES.get(node.target) or RULES.get(_qualified(node.target))
            if not any(self.layouts[source] for source in node.all_input_nodes):
                return {}  # nothing that can be permuted goes in
            if "tensor_meta" not in node.meta and handler is None:
                if any(map(_is_tensor, node.all_input_nodes)) and node.target not in NUMBERS:
                    raise self.fail(node, "it has no rule")
                return {}
        if handler is None:
            raise self.fail(node, "it has no rule; symmetry.rule registers one")
        if not node.args and node.all_input_nodes:
            raise self.fail(node, "its input is given by keyword")
        if any(isinstance(source.meta.get("tensor_meta"), list) for source in node.all_input_nodes):
            raise self.fail(node, "it takes several tensors at once from one node")
        try:
            return handler(self, node, module)
        except UnsupportedError:
            raise
        except Exception as error:
            raise self.fail(node, f"its rule cannot read it: {first_line(error)}") from error

    def collect(self) -> Groups:
        producers: dict[_Cell, list[str]] = {}
        # A layer whose outputs are all one group names it better than one whose outputs are split over several.
        for name, segments in sorted(self.producers, key=lambda producer: len(_resolve(producer[1])) > 1):
            for cell, _ in _resolve(segments):
                producers.setdefault(cell, []).append(name)
        members: dict[_Cell, list[Member]] = {}
        for (tensor, axis, rows), segments in self.marks.items():
            offset = 0
            for cell, block in _resolve(segments):
                members.setdefault(cell, []).append(Member(tensor, axis, block, offset, rows))
                offset += cell.size * block
        taps: dict[_Cell, list[Tap]] = {}
        for node, kind in self.kinds.items():
            for axis, segments in self.layouts[node].items():
                offset = 0
                for cell, block in _resolve(segments):
                    taps.setdefault(cell, []).append(Tap(node.name, kind, axis, block, offset))
                    offset += cell.size * block
        free = [cell for cell in members if not cell.fixed and cell.size > 1]
        order = {name: position for position, (name, _) in enumerate(self.producers)}
        free.sort(key=lambda cell: min((order[name] for name in producers.get(cell, [])), default=len(order)))
        names = _names([producers.get(cell) or [members[cell][0].tensor] for cell in free])
        groups = {
            name: Group(cell.size, tuple(members[cell]), tuple(taps.get(cell, ())))
            for name, cell in zip(names, free, strict=True)
        }
        return Groups(groups, tuple(self.layers), self.graph.graph)


def _names(producers: Sequence[list[str]]) -> list[str]:
    """A readable name for each group: the layer that makes it, or for tied layers the stage most of them share."""
    names = []
    for makers in producers:
        tops = [maker.split(".")[0] for maker in makers]
        top = max(tops, key=tops.count)
        names.append(makers[0] if len(makers) == 1 or tops.count(top) == 1 else top)
    # A stage that names several groups, or a group's own layer, says nothing: use the first layer.
    names = [name if names.count(name) == 1 else makers[0] for name, makers in zip(names, producers, strict=True)]
    return [
        f"{name}[{names[:position].count(name)}]" if names.count(name) > 1 else name
        for position, name in enumerate(names)
    ]


def _qualified(function: object) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _is_tensor(node: fx.Node) -> bool:
    return "tensor_meta" in node.meta


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def trace(model: nn.Module, example: torch.Tensor) -> Groups:
    """Finds every permutation group of a network from its torch.fx graph.

    Args:
        model: any network that torch.fx can trace; it is not changed.
        example: a batch of inputs (N, …), N ≥ 2, that it takes; it is not changed.

    Returns:
        The groups: units of hidden layers that can be reordered without changing an output. Inputs and outputs keep
        their order, and so does what meets a tensor that is not in the state dict. Prove them (`prove`) before
        relying on them.

    Raises:
        UnsupportedError: an operation or a layout has no rule (the line names the node and its module), torch.fx
            cannot trace the network, it does not take the example, or a tensor stands in its state dict twice.
    """
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # Loading a permuted state dict, the second name would undo what the first one did.
        if isinstance(tensor, torch.Tensor) and (first := names.setdefault(id(tensor), name)) != name:
            raise UnsupportedError(f"'{first}' and '{name}' are one tensor; accepted: networks that name a tensor once")
    training = {module: module.training for module in model.modules()}
    model.eval()
    doing = "torch.fx cannot trace"
    try:
        graph = fx.symbolic_trace(copy.copy(model))  # it leaves constants on the module that it is given
        doing = f"the example {_described(example)} does not go through"
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # ShapeProp prints a stack
            ShapeProp(graph).propagate(example.to(device, copy=True))
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise UnsupportedError(f"{doing} {type(model).__name__}: {reason}") from None
    finally:
        for module, mode in training.items():
            module.training = mode
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target.startswith("_tensor_constant") and not hasattr(model, node.target):
            node.meta["constant"] = getattr(graph, node.target)
    return dataclasses.replace(_Tracer(model, graph).run(), example=example)


def _described(example: object) -> str:
    if not isinstance(example, torch.Tensor):
        return type(example).__name__
    return f"{tuple(example.shape)} {example.dtype}".replace("torch.", "")


# Operation -> rule(tracer, node, module or None) -> layout of the result. An operation is a module class, a function,
# a method's name, or "module.qualified_name" of a function whose package takes too long to import for its rule alone.
RULES: dict[object, Callable[[_Tracer, fx.Node, nn.Module | None], Layout]] = {}
# What turns a tensor into plain numbers (shapes, devices): no permutation passes through.
NUMBERS = {getattr, "size", "dim", "numel", "type"}


def rule(*operations) -> Callable:
    """Registers a rule for module classes, functions or names (see `RULES`)."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


def _arguments(t: _Tracer, node: fx.Node, **known) -> list:
    """The arguments after the first, in the order of `known` (names and defaults), with NumPy's names or torch's."""
    given = {{"axis": "dim", "keepdims": "keepdim"}.get(name, name): value for name, value in node.kwargs.items()}
    if unknown := given.keys() - known.keys():
        listed = ", ".join(known)
        raise t.fail(node, f"its rule does not know the keyword {', '.join(sorted(unknown))}; accepted: {listed}")
    return [
        node.args[position] if len(node.args) > position else given.get(name, default)
        for position, (name, default) in enumerate(known.items(), 1)
    ]
