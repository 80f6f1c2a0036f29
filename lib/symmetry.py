"""Which axes of which tensors share a permutation: traced from the network's graph, applied, and proved.

One convention, everywhere: a `perm` is a LongTensor (size,), and unit perm[i] of the moved network takes place i of
the fixed one, so a permuted tensor is tensor.index_select(axis, perm). With perm = [2, 0, 1], old unit 2 comes first.

`trace` walks a torch.fx graph with one rule per operation (`RULES`); `rule` registers more of them.
"""

import contextlib
import copy
import io
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torchvision
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from lib.checks import first_line


class SymmetryError(Exception):
    """Permuting a group changed what the network computes."""


class UnsupportedError(Exception):
    """An operation or a layout has no rule; the line names the node and its module."""


@dataclass(frozen=True)
class Member:
    """One axis of one state-dict tensor that a group permutes: entries offset + i·block + j, j < block, belong to
    unit i. `rows`, if given, limits it to those entries of axis 0 (grouped convolutions)."""

    tensor: str
    axis: int
    block: int = 1
    offset: int = 0
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Tap:
    """Where a group's activations can be read: axis `axis` of graph node `node`, laid out as in `Member`.
    `kind` is "pre_norm" (straight from the layer), "post_norm" or "post_relu"."""

    node: str
    kind: str
    axis: int
    block: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Group:
    """One unknown permutation of `size` units and every place it acts on."""

    size: int
    members: tuple[Member, ...]
    taps: tuple[Tap, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer met on the way: its module, its graph node, its state-dict keys, and the
    BatchNorm that alone and directly follows it."""

    name: str
    kind: str
    node: str
    weight: str
    bias: str | None = None
    norm: str | None = None


@dataclass(frozen=True)
class Groups(Mapping[str, Group]):
    """The permutation groups of a network, by name, in execution order. Prints as a table."""

    groups: Mapping[str, Group]
    layers: tuple[Layer, ...] = ()
    graph: fx.Graph | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Group:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def norms(self) -> dict[str, str]:
        """{layer: the BatchNorm that directly follows it}, by module name."""
        return {layer.name: layer.norm for layer in self.layers if layer.norm}

    def random(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """A uniformly random permutation (size,) of each group, drawn from a CPU generator."""
        return {name: torch.randperm(group.size, generator=generator) for name, group in self.items()}

    def identity(self) -> dict[str, torch.Tensor]:
        """The permutation (size,) that moves nothing, for each group."""
        return {name: torch.arange(group.size) for name, group in self.items()}

    def __str__(self) -> str:
        rows = [("group", "units", "acts on (tensor:axis)")]
        for name, group in self.items():
            places = []
            for m in group.members:
                extent = f"×{m.block}" if m.block > 1 else ""
                start = f"+{m.offset}" if m.offset else ""
                places.append(f"{m.tensor}:{m.axis}{extent}{start}")
            rows.append((name, str(group.size), ", ".join(places)))
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"{name:<{first}}  {size:>{second}}  {places}" for name, size, places in rows)


def inverse(perms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The permutations (size,) that undo `perms`."""
    return {name: torch.argsort(perm) for name, perm in perms.items()}


def is_activation(operation: object) -> bool:
    """Whether a module's type or a function is a non-linearity that acts on each unit alone."""
    return RULES.get(operation) in (_activation, _prelu)


def compose(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The permutations (size,) that do `first`, then `second`."""
    return {name: perm[second[name]] for name, perm in first.items()}


def entries(member: Member, perm: torch.Tensor) -> torch.Tensor:
    """Which entries of the member's axis stand in its places after `perm` (size,): LongTensor (size·block,)."""
    inner = torch.arange(member.block, device=perm.device)
    return (member.offset + perm[:, None] * member.block + inner).flatten()


def permute(
    state: Mapping[str, torch.Tensor], groups: Mapping[str, Group], perms: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A state dict whose units are reordered: unit perm[i] takes place i. Computes the same function.

    Args:
        state: name → tensor; it is not changed. What `load_state_dict` reads beside it (`_metadata`) is kept.
        perms: {group: LongTensor (size,)}; a group that is absent stays as it is.

    Raises:
        SymmetryError: an entry of `perms` names no group or is no permutation of its units.
    """
    moved = copy.copy(state) if hasattr(state, "_metadata") else dict(state)
    for name, perm in perms.items():
        if name not in groups:
            raise SymmetryError(f"there is no group '{name}'; groups: {', '.join(groups)}")
        group = groups[name]
        _check_permutation(name, perm, group.size)
        for member in group.members:
            tensor = moved[member.tensor]
            rows = slice(*member.rows) if member.rows else slice(None)
            part = tensor[rows]
            index = torch.arange(part.shape[member.axis], device=tensor.device)
            places = entries(member, torch.arange(group.size))
            index[places.to(tensor.device)] = entries(member, perm.cpu()).to(tensor.device)
            part = part.index_select(member.axis, index)
            if member.rows:
                part = torch.cat([tensor[: member.rows[0]], part, tensor[member.rows[1] :]])
            moved[member.tensor] = part
    return moved


def _check_permutation(name: str, perm: torch.Tensor, size: int) -> None:
    what = f"perms['{name}'] is no permutation of {size} units"
    if not isinstance(perm, torch.Tensor) or perm.dtype != torch.int64 or perm.shape != (size,):
        got = f"{tuple(perm.shape)} {perm.dtype}" if isinstance(perm, torch.Tensor) else type(perm).__name__
        raise SymmetryError(f"{what}: it is {got.replace('torch.', '')}; accepted: int64 of shape ({size},)")
    if not torch.equal(torch.sort(perm).values.cpu(), torch.arange(size)):
        raise SymmetryError(f"{what}: units repeat or do not exist; accepted: each of 0 … {size - 1} once")


@torch.no_grad()
def prove(
    model: nn.Module,
    groups: Groups,
    example: torch.Tensor,
    perms: Mapping[str, torch.Tensor] | None = None,
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-9,
) -> float:
    """Shows that permuting leaves the outputs unchanged, in float64 on the CPU.

    Args:
        example: a batch of inputs (N, …); it is not changed.
        perms: the permutations to prove on the model's own weights; None draws random ones and also randomises
            every weight and statistic of a copy, since a fresh BatchNorm (all ones) would hide a forgotten axis.
        tolerance: largest accepted change of an output, as a share of the largest output.

    Returns:
        The largest change found, as that share.

    Raises:
        SymmetryError: naming the groups that change the outputs; or the network puts out no tensor.
    """
    generator = generator or torch.Generator().manual_seed(0)
    twin = copy.deepcopy(model).cpu().double().eval()
    if perms is None:
        perms = groups.random(generator)
        for tensor in twin.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)  # positive, so that variances stay so
                tensor.mul_(0.5 + noise).add_(0.1 * noise)
    example = example.cpu().double()
    state = copy.deepcopy(twin.state_dict())
    expected = _tensors(twin(example.clone()))  # a network may write into its input
    if not expected:
        raise SymmetryError(f"{type(model).__name__} puts out no tensor, so nothing can be proved")
    scale = max(float(out.abs().max()) for out in expected) or 1.0

    def change(some: Mapping[str, torch.Tensor]) -> float:
        twin.load_state_dict(permute(state, groups, some))
        found = _tensors(twin(example.clone()))
        changes = [float((a - b).abs().max()) / scale for a, b in zip(found, expected, strict=True)]
        return math.inf if any(math.isnan(c) for c in changes) else max(changes)

    largest = change(perms)
    if largest > tolerance:
        culprits = [name for name, perm in perms.items() if change({name: perm}) > tolerance]
        named = ", ".join(culprits) or "the groups together"
        raise SymmetryError(f"permuting {named} changes the outputs by {largest:.1e} of their size")
    return largest


class _Walker(fx.Interpreter):
    def steps(self, images: torch.Tensor) -> Iterator[tuple[fx.Node, object]]:
        self.env, self.args_iter = {}, iter([images])
        for node in self.graph.nodes:
            value = self.env[node] = node.meta["constant"] if "constant" in node.meta else self.run_node(node)
            yield node, value
            for spent in self.user_to_last_uses.get(node, []):
                del self.env[spent]


def walk(model: nn.Module, groups: Groups, images: torch.Tensor) -> Iterator[tuple[fx.Node, object]]:
    """Runs `model` node by node on a copy of images (N, …) and yields each graph node with its value.

    Read a value before asking for the next: an in-place ReLU overwrites it. Several networks of one architecture can
    be walked in step with zip.
    """
    return _Walker(model, graph=groups.graph).steps(images.clone())


def _tensors(output) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = list(output.values()) if isinstance(output, Mapping) else output
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (list, tuple)) else []


# --- tracing ----------------------------------------------------------------------------------------------------------


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
            found = next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), None)
        else:
            module = None
            found = RULES.get(node.target)
            if not any(self.layouts[source] for source in node.all_input_nodes):
                return {}  # nothing that can be permuted goes in
            if "tensor_meta" not in node.meta and found is None:
                if any(map(_is_tensor, node.all_input_nodes)) and node.target not in NUMBERS:
                    raise self.fail(node, "it has no rule")
                return {}
        if found is None:
            raise self.fail(node, "it has no rule; lib.symmetry.rule registers one")
        if not node.args and node.all_input_nodes:
            raise self.fail(node, "its input is given by keyword")
        if any(isinstance(source.meta.get("tensor_meta"), list) for source in node.all_input_nodes):
            raise self.fail(node, "it takes several tensors at once from one node")
        try:
            return found(self, node, module)
        except UnsupportedError:
            raise
        except Exception as error:
            raise self.fail(node, f"its rule cannot read it: {first_line(error)}") from error

    def collect(self) -> Groups:
        producers: dict[_Cell, list[str]] = {}
        # A layer whose outputs are all one group names it better than one whose outputs are split over several.
        for name, segments in sorted(self.producers, key=lambda made: len(_resolve(made[1])) > 1):
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
    return _Tracer(model, graph).run()


def _described(example: object) -> str:
    if not isinstance(example, torch.Tensor):
        return type(example).__name__
    return f"{tuple(example.shape)} {example.dtype}".replace("torch.", "")


# --- rules ------------------------------------------------------------------------------------------------------------

# Operation (module class, function or method name) -> rule(tracer, node, module or None) -> layout of the result.
RULES: dict[object, Callable[[_Tracer, fx.Node, nn.Module | None], Layout]] = {}
# What turns a tensor into plain numbers (shapes, devices): no permutation passes through.
NUMBERS = {getattr, "size", "dim", "numel", "type"}


def rule(*operations) -> Callable:
    """Registers a rule for module classes, functions or method names (see `RULES`)."""

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


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(t: _Tracer, node: fx.Node, module) -> Layout:
    source = node.args[0]
    layout = t.layout(source)
    weight, bias = f"{node.target}.weight", f"{node.target}.bias"
    if len(_shape(source)) != module.weight.dim() or any(axis != 1 for axis in layout):
        raise t.fail(node, "a permuted axis other than the channels goes in, or the batch axis is missing")
    channels, groups, out = layout.get(1), module.groups, module.out_channels
    if groups == 1:
        t.mark(node, weight, 1, channels)
        made: Axis = [(_Cell(out), 1)]
    elif groups == module.in_channels:  # depthwise: output unit i sees input unit i // (out / groups) alone
        made = [(cell, block * (out // groups)) for cell, block in channels or [(_Cell(groups, fixed=True), 1)]]
    else:
        pieces = _cut(channels, module.in_channels // groups) if channels else [None] * groups
        step = out // groups
        for g, piece in enumerate(pieces):
            t.mark(node, weight, 1, piece, rows=(g * step, (g + 1) * step))
        made = [(_Cell(step), 1) for _ in range(groups)]
    t.mark(node, weight, 0, made)
    t.mark(node, bias, 0, made)
    return _made(t, node, "conv", made, 1)


@rule(nn.Linear)
def _linear(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    last = len(_shape(node.args[0])) - 1
    t.mark(node, f"{node.target}.weight", 1, layout.get(last))
    made: Axis = [(_Cell(module.out_features), 1)]
    t.mark(node, f"{node.target}.weight", 0, made)
    t.mark(node, f"{node.target}.bias", 0, made)
    return layout | _made(t, node, "linear", made, last)


def _made(t: _Tracer, node: fx.Node, kind: str, made: Axis, axis: int) -> Layout:
    name = node.target
    t.producers.append((name, made))
    t.kinds[node] = "pre_norm"
    bias = f"{name}.bias" if f"{name}.bias" in t.state else None
    t.layers.append(Layer(name, kind, node.name, f"{name}.weight", bias))
    return {axis: made}


@rule(nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
def _channel_norm(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    for name in ("weight", "bias", "running_mean", "running_var"):
        t.mark(node, f"{node.target}.{name}", 0, layout.get(1))
    source = node.args[0]
    # A scale and shift that alone follows a layer can be folded into it.
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and len(source.users) == 1:
        for position, layer in enumerate(t.layers):
            if layer.node == source.name:
                t.layers[position] = Layer(layer.name, layer.kind, layer.node, layer.weight, layer.bias, node.target)
    t.kinds[node] = "post_norm"
    return layout


@rule(nn.GroupNorm)
def _group_norm(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    if 1 in layout and module.num_groups > 1:
        layout[1] = [s for piece in _cut(layout[1], module.num_channels // module.num_groups) for s in piece]
    for name in ("weight", "bias"):
        t.mark(node, f"{node.target}.{name}", 0, layout.get(1))
    t.kinds[node] = "post_norm"
    return layout


@rule(nn.LayerNorm)
def _layer_norm(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    first = len(_shape(node.args[0])) - len(module.normalized_shape)
    for axis in range(len(module.normalized_shape)):
        for name in ("weight", "bias"):
            t.mark(node, f"{node.target}.{name}", axis, layout.get(first + axis))
    t.kinds[node] = "post_norm"
    return layout


ACTIVATIONS = (
    "relu",
    "relu_",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "sigmoid",
    "tanh",
)
ACTIVATIONS += ("hardswish", "hardsigmoid", "hardtanh", "softplus", "logsigmoid", "softsign")


@rule(*(kind for kind in vars(nn.modules.activation).values() if isinstance(kind, type) and kind.__name__ in (
    "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Hardswish",
    "Hardsigmoid", "Hardtanh", "Softplus", "LogSigmoid", "Softsign",
)))  # fmt: skip
@rule(
    *(getattr(space, name) for space in (F, torch) for name in ACTIVATIONS if hasattr(space, name)),
    *ACTIVATIONS,
)
def _activation(t: _Tracer, node: fx.Node, module) -> Layout:
    t.kinds[node] = "post_relu"
    return _pass(t, node, module)


@rule(nn.PReLU)
def _prelu(t: _Tracer, node: fx.Node, module) -> Layout:
    if module.num_parameters > 1:
        t.mark(node, f"{node.target}.weight", 0, t.layout(node.args[0]).get(1))
    return _activation(t, node, module)


# Element by element, or over a whole axis in a way that follows its order (softmax): the layout passes through.
@rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Softmax, nn.LogSoftmax)
@rule(
    F.dropout,
    F.dropout2d,
    F.softmax,
    F.log_softmax,
    torch.softmax,
    torch.log_softmax,
    "softmax",
    "log_softmax",
)
@rule(
    torch.abs,
    torch.exp,
    torch.sqrt,
    torch.square,
    torch.clamp,
    torch.neg,
    operator.neg,
    torchvision.ops.stochastic_depth,
)
@rule(
    "abs",
    "exp",
    "sqrt",
    "square",
    "clamp",
    "clamp_",
    "contiguous",
    "clone",
    "detach",
    "float",
    "double",
    "to",
    "neg",
)
def _pass(t: _Tracer, node: fx.Node, module) -> Layout:
    others = [n for n in node.all_input_nodes if n is not node.args[0] and _is_tensor(n) and math.prod(_shape(n)) > 1]
    if others and node.target != "to":  # x.to(y) reads no entry of y
        raise t.fail(node, f"its rule takes one tensor, and '{others[0].name}' goes in too")
    return t.layout(node.args[0])


SPATIAL = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "ReplicationPad", "ReflectionPad", "ZeroPad")


@rule(*(getattr(nn, f"{name}{d}d") for d in (1, 2, 3) for name in (*SPATIAL, "ConstantPad")))
@rule(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
@rule(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.max_pool2d, torch.avg_pool1d)
def _spatial(t: _Tracer, node: fx.Node, module) -> Layout:
    """Pooling and padding of the last 1, 2 or 3 axes, channel by channel."""
    layout = t.layout(node.args[0])
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    dimensions = int(re.search(r"([123])d", name)[1])
    if any(axis >= len(_shape(node.args[0])) - dimensions for axis in layout):
        raise t.fail(node, "it works along an axis that is permuted")
    return layout


@rule(nn.Upsample, F.interpolate, F.pad)
def _resize(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    if any(axis != 1 or _shape(node)[axis] != _shape(node.args[0])[axis] for axis in layout):
        raise t.fail(node, "it works along an axis that is permuted")
    return layout


@rule(nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze)
@rule("flatten", "view", "reshape", "squeeze", "unsqueeze", "view_as", "reshape_as", "unflatten")
def _reshape(t: _Tracer, node: fx.Node, module) -> Layout:
    """Axes that merge: those after a permuted axis become its block, those before it repeat it."""
    source, before, after = t.layout(node.args[0]), _shape(node.args[0]), _shape(node)
    layout: Layout = {}
    i = j = 0
    while i < len(before) or j < len(after):
        # The smallest runs of axes, from here on, that hold equally many entries.
        a, b = i, j
        size_a = size_b = 1
        while True:
            if size_a <= size_b and a < len(before) and (size_a < size_b or (a == i)):
                size_a *= before[a]
                a += 1
            elif (
                size_b < size_a
                and b < len(after)
                or b == j
                and b < len(after)
                and size_a == size_b == 1
                and a == len(before)
            ):
                size_b *= after[b]
                b += 1
            else:
                break
        carried = [axis for axis in range(i, a) if axis in source and before[axis] > 1]
        if carried:
            axis = carried[0]
            wide = [k for k in range(j, b) if after[k] > 1]
            if len(carried) > 1 or len(wide) != 1:
                raise t.fail(node, f"{before} → {after} splits a permuted axis or merges two of them")
            repeats, block = math.prod(before[i:axis]), math.prod(before[axis + 1 : a])
            layout[wide[0]] = [(cell, size * block) for cell, size in source[axis]] * repeats
        i, j = a, b
    return layout


@rule(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul, operator.isub)
@rule(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, operator.pow, torch.pow)
@rule("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "pow")
def _elementwise(t: _Tracer, node: fx.Node, module) -> Layout:
    """Arithmetic with broadcasting: axes that meet are tied, an axis of one entry meets nothing."""
    _arguments(t, node, other=None, exponent=None, alpha=1, rounding_mode=None)  # operands may come by keyword
    operands = [n for n in node.all_input_nodes if _is_tensor(n)]
    rank = len(_shape(node))
    layout: Layout = {}
    for axis in range(rank):
        meeting = []
        for operand in operands:
            own = axis - rank + len(_shape(operand))
            if own >= 0 and _shape(operand)[own] > 1:
                meeting.append(t.layout(operand).get(own))
        for other in meeting[1:]:
            t.unify(node, meeting[0], other)
        if meeting and all(segments is not None for segments in meeting):
            layout[axis] = meeting[0]
    if len(operands) > 1:
        t.kinds[node] = "post_norm"
    return layout


@rule(torch.cat, torch.concat)
def _cat(t: _Tracer, node: fx.Node, module) -> Layout:
    parts, (dim,) = node.args[0], _arguments(t, node, dim=0)
    rank = len(_shape(node))
    along = dim % rank
    layout: Layout = {}
    for axis in range(rank):
        axes = [t.layout(part).get(axis) for part in parts]
        if all(segments is None for segments in axes):
            continue
        if axis == along:
            sizes = [_shape(part)[axis] for part in parts]
            layout[axis] = [
                segment
                for segments, size in zip(axes, sizes, strict=True)
                for segment in segments or [(_Cell(size, fixed=True), 1)]
            ]
            continue
        for other in axes[1:]:
            t.unify(node, axes[0], other)
        if all(segments is not None for segments in axes):
            layout[axis] = axes[0]
    return layout


@rule(torch.mean, torch.sum, torch.amax, "mean", "sum", "amax")
def _reduce(t: _Tracer, node: fx.Node, module) -> Layout:
    """A sum, mean or maximum over whole axes does not see their order."""
    layout, rank = t.layout(node.args[0]), len(_shape(node.args[0]))
    gone, keep, _ = _arguments(t, node, dim=None, keepdim=False, dtype=None)
    gone = [d % rank for d in (gone if isinstance(gone, Sequence) else [gone]) if d is not None] or range(rank)
    return {
        axis if keep else axis - sum(d < axis for d in gone): segments
        for axis, segments in layout.items()
        if axis not in gone
    }


@rule(torch.permute, torch.transpose, "permute", "transpose", "t")
def _transpose(t: _Tracer, node: fx.Node, module) -> Layout:
    layout, rank = t.layout(node.args[0]), len(_shape(node.args[0]))
    name = getattr(node.target, "__name__", node.target)
    if name == "permute":
        (dims,) = _arguments(t, node, dims=())
        order = [d % rank for d in (dims if isinstance(dims, Sequence) else node.args[1:])]
    else:
        i, j = (d % rank for d in _arguments(t, node, dim0=0, dim1=1))
        order = list(range(rank))
        order[i], order[j] = order[j], order[i]
    return {new: layout[old] for new, old in enumerate(order) if old in layout}
