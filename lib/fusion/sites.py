"""Which layers a correction touches."""

import dataclasses
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .. import symmetry
from ..symmetry import Groups, Layer
from ..symmetry.registry import spelled
from ..symmetry.walker import Lockstep
from .affine import Site

# Weights are set through modules; what only reads a module's tensors may do more with them than the layer does.
FUNCTION = "worked out by a function, not by a module of its own"
TIED = "its weight is another module's, too"


def _operation(node: fx.Node) -> object:
    """What a node does, told by its name for an operator such as torch.ops.aten.relu.default."""
    overload = isinstance(node.target, torch._ops.OpOverload)
    return node.target.overloadpacket.__name__ if overload else node.target


def activated(model: nn.Module, groups: Groups) -> tuple[list[Layer], dict[str, str]]:
    """The layers whose statistics can be set, and {layer: why it keeps its interpolated weights}.

    Those with a non-linearity between them and the output or the next layer, on any path. A final classifier, or a
    linear layer that only feeds another, is none; nor is a layer that is used more than once, or whose BatchNorm is:
    one set of weights cannot serve several goals. Nor is one that is worked out by a function, or whose BatchNorm is.
    """
    modules = dict(model.named_modules())
    nodes = {node.name: node for node in groups.graph.nodes}
    layers = {nodes[layer.node] for layer in groups.layers}

    def activates(node: fx.Node) -> bool:
        kinds = type(modules[node.target]).__mro__ if node.op == "call_module" else (_operation(node),)
        return any(map(symmetry.is_activation, kinds))

    reached = []
    for layer in groups.layers:
        todo, seen = list(nodes[layer.node].users), set()
        while todo:
            node = todo.pop()
            if activates(node):
                reached.append(layer)
                break
            if node not in seen and node not in layers:
                seen.add(node)
                todo += node.users
    uses = Counter(node.target for node in groups.graph.nodes if node.op == "call_module")
    weights = Counter(layer.weight for layer in groups.layers)
    left = {}
    for layer in reached:
        if nodes[layer.node].op != "call_module" or layer.norm and not uses[layer.norm]:
            left[layer.name] = FUNCTION
        elif max(weights[layer.weight], uses[layer.norm]) > 1:
            left[layer.name] = "used more than once"
    return [layer for layer in reached if layer.name not in left], left


RELU = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
# Of slope at most about 1, in absolute value, which is what the rounds through them ask for.
SMOOTH = (nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.CELU)
SMOOTH_NAMES = ("gelu", "silu", "mish", "tanh", "sigmoid", "softplus", "elu", "celu")
ADD = (operator.add, operator.iadd, torch.add, "add", "add_")


def _only_user(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """What alone uses a value, past modules that do nothing in evaluation mode."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.op == "call_module" and isinstance(modules[user.target], nn.Identity | nn.Dropout | nn.Dropout2d):
            node = user
            continue
        return user
    return None


def _is_relu(node: fx.Node | None, modules: dict[str, nn.Module]) -> bool:
    if node is None:
        return False
    return isinstance(modules[node.target], nn.ReLU) if node.op == "call_module" else _operation(node) in RELU


def _smooth(node: fx.Node | None, modules: dict[str, nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """The activation that a node applies, if it is one of `SMOOTH`, on a copy: it may work in place."""
    if node is None:
        return None
    if node.op == "call_module":
        module = modules[node.target]
        return (lambda x: module(x.clone())) if isinstance(module, SMOOTH) else None
    if any(isinstance(each, fx.Node) for each in (*node.args[1:], *node.kwargs.values())):
        return None
    if spelled(node.target) not in SMOOTH_NAMES:
        return None
    if node.op == "call_method":
        return lambda x: getattr(x, node.target)(*node.args[1:], **node.kwargs)
    return lambda x: node.target(x.clone(), *node.args[1:], **node.kwargs)


def _pool(relu: fx.Node, modules: dict[str, nn.Module]) -> tuple[int, int] | None:
    """The window of a plain max-pooling that alone uses a ReLU's output."""
    user = _only_user(relu, modules)
    module = modules.get(user.target) if user is not None and user.op == "call_module" else None
    if not isinstance(module, nn.MaxPool2d):
        return None
    kernel, stride, padding, dilation = (
        v if isinstance(v, tuple) else (v, v)
        for v in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    plain = stride == kernel and padding == (0, 0) and dilation == (1, 1) and not module.ceil_mode
    return kernel if plain else None


def _foldable(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and norm.affine and norm.running_mean is not None


def _origin(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The value behind modules that do nothing in evaluation mode."""
    while node.op == "call_module" and isinstance(modules[node.target], nn.Identity | nn.Dropout | nn.Dropout2d):
        node = node.args[0]
    return node


def solvable(model: nn.Module, groups: Groups) -> tuple[list[Site], dict[str, str]]:
    """What can be solved for, in execution order, and {module: why it keeps its interpolated weights}."""
    modules = dict(model.named_modules())
    nodes = {node.name: node for node in groups.graph.nodes}
    index = {node: i for i, node in enumerate(groups.graph.nodes)}
    targets = [node.target for node in groups.graph.nodes if node.op == "call_module"]
    layers = {nodes[layer.node]: layer for layer in groups.layers}
    weights = Counter(layer.weight for layer in groups.layers)
    tied = symmetry.shared(model)
    sites, left = [], {}
    folded: set[str] = set()
    for node in groups.graph.nodes:
        layer = layers.get(node)
        if layer and layer.norm and layer.norm not in targets:
            left[layer.norm] = FUNCTION
        if node.op != "call_module":
            if layer:
                left[layer.name] = FUNCTION
            continue
        module, norm, end = modules[node.target], None, node
        if layer:
            if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                left[node.target] = f"{type(module).__name__} is not solved for"
            elif weights[layer.weight] > 1:
                left[node.target] = "used more than once"
            elif layer.weight in tied:
                left[node.target] = TIED
            if node.target in left:
                continue
            name = layer.norm
            if name and targets.count(name) == 1 and _foldable(modules[name]):
                norm, (end,) = modules[name], node.users
                folded.add(name)
        elif isinstance(module, _BatchNorm) and node.target not in folded:
            if not _foldable(module) or targets.count(node.target) > 1:
                left[node.target] = "has no statistics or no weights of its own, or is used more than once"
                continue
        else:
            continue
        other, user = None, _only_user(end, modules)
        if user is not None and user.op != "call_module" and _operation(user) in ADD:
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
        pool, smooth = _pool(user, modules) if relu else None, _smooth(user, modules)
        sites.append(Site(node.target, node, module, norm, end, other, relu, pool, smooth))
    return sites, left


def reader_of(
    site: Site, sites: Sequence[Site], groups: Groups, lockstep: Lockstep, bare: bool = False
) -> tuple[Site, int] | None:
    """(the one layer that reads a site's units, entries per unit there), if only activations, pools and the like
    stand between the two, a ReLU or a smooth one first; else None: there units are not chosen. `bare`: anything without
    weights may stand there, or nothing."""
    weights = {layer.name: layer.weight for layer in groups.layers}
    if site.other is not None or getattr(site.layer, "groups", 1) != 1 or site.name not in weights:
        return None
    for name, member in symmetry.by_tensor(groups).get(weights[site.name], ()):
        of_layers = [m for m in groups[name].members if m.tensor in weights.values()]
        written, read = ([m for m in of_layers if m.axis == axis] for axis in (0, 1))
        if written != [member] or len(read) != 1 or read[0].rows or read[0].offset or read[0].starts:
            continue
        reader = next((other for other in sites if weights.get(other.name) == read[0].tensor), None)
        size = groups[name].size
        if reader is None or size * read[0].block != reader.layer.weight.shape[1]:
            return None
        path = lockstep.nodes[lockstep.index[site.end] : lockstep.index[reader.node] + 1]
        straight = all(node.all_input_nodes == [last] for last, node in itertools.pairwise(path))
        modules = [lockstep.modules[node.target] for node in path[1:-1] if node.op == "call_module"]
        fits = (
            not any(list(module.parameters()) for module in modules)
            if bare
            else (site.relu or site.smooth) and size >= 4
        )
        return (reader, read[0].block) if straight and fits else None
    return None


@dataclass(frozen=True)
class Joint:
    """Units that several layers make together and one reads: heads of attention, from q, k and v; gated units.

    `columns` LongTensor (size, columns of a unit), one for each of `makers`: which of its outputs a unit has; `read`,
    likewise, which inputs of `reader`.
    """

    name: str
    size: int
    makers: tuple[Site, ...]
    columns: tuple[Tensor, ...]
    reader: Site
    read: Tensor

    def of(self, sites: Mapping[str, Site]) -> "Joint":
        """The same units where the layers are others, of the same names."""
        return dataclasses.replace(
            self, makers=tuple(sites[site.name] for site in self.makers), reader=sites[self.reader.name]
        )


def joints(sites: Sequence[Site], groups: Groups, lockstep: Lockstep) -> list[Joint]:
    """The units that can be chosen jointly: all that makes and reads them is solved for, and no maker reads another."""
    weights = {layer.name: layer.weight for layer in groups.layers}
    solved = {weights[site.name]: site for site in sites if site.name in weights}
    found = []
    for name, group in groups.items():
        of_layers = [m for m in group.members if m.tensor in weights.values()]
        written, read = ([m for m in of_layers if m.axis == axis] for axis in (0, 1))
        if len(written) < 2 or len(read) != 1 or not {m.tensor for m in of_layers} <= solved.keys():
            continue
        places = {m: symmetry.entries(m, torch.arange(group.size)).view(group.size, -1) for m in of_layers}
        columns: dict[str, list[Tensor]] = {}
        for member in written:
            columns.setdefault(member.tensor, []).append(places[member])
        makers = sorted((solved[tensor] for tensor in columns), key=lambda site: lockstep.index[site.node])
        joined = [torch.cat(columns[weights[site.name]], dim=1) for site in makers]
        reader, first = solved[read[0].tensor], lockstep.index[makers[0].node]
        sized = zip((*makers, reader), (*joined, places[read[0]]), (0,) * len(makers) + (1,), strict=True)
        plain = all(
            isinstance(site.layer, nn.Linear) and place.numel() == site.layer.weight.shape[axis]
            for site, place, axis in sized
        )
        early = all(
            site.norm is None and site.other is None and lockstep.index[site.node.args[0]] < first for site in makers
        )
        if plain and early and lockstep.index[reader.node] > lockstep.index[makers[-1].node]:
            found.append(Joint(name, group.size, tuple(makers), tuple(joined), reader, places[read[0]]))
    return found
