"""Which layers a correction touches."""

import operator
from collections import Counter
from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .. import symmetry
from ..symmetry import Groups, Layer
from ..symmetry.walker import _Lockstep
from .affine import _Site


def sites(model: nn.Module, groups: Groups) -> list[Layer]:
    """The layers whose pre-activations are corrected: those with a non-linearity between them and the output or the
    next layer, on any path. A final classifier, or a linear layer that only feeds another, is none; nor is a layer
    that is used more than once, or whose BatchNorm is: one set of weights cannot serve several goals."""
    return _sites(model, groups)[0]


def _sites(model: nn.Module, groups: Groups) -> tuple[list[Layer], dict[str, str]]:
    """`sites`, and {layer: why it keeps its interpolated weights}."""
    modules = dict(model.named_modules())
    nodes = {node.name: node for node in groups.graph.nodes}
    layers = {nodes[layer.node] for layer in groups.layers}

    def activates(node: fx.Node) -> bool:
        kinds = type(modules[node.target]).__mro__ if node.op == "call_module" else (node.target,)
        return any(map(symmetry.is_activation, kinds))

    found = []
    for layer in groups.layers:
        todo, seen = list(nodes[layer.node].users), set()
        while todo:
            node = todo.pop()
            if activates(node):
                found.append(layer)
                break
            if node not in seen and node not in layers:
                seen.add(node)
                todo += node.users
    uses = Counter(node.target for node in groups.graph.nodes if node.op == "call_module")
    left = {layer.name: "used more than once" for layer in found if max(uses[layer.name], uses[layer.norm]) > 1}
    return [layer for layer in found if layer.name not in left], left


RELU = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
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
    return isinstance(modules[node.target], nn.ReLU) if node.op == "call_module" else node.target in RELU


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


def _reader(site: _Site, sites: Sequence[_Site], groups: Groups, lockstep: _Lockstep) -> tuple[_Site, int] | None:
    """(the one layer that reads a site's units, entries per unit there), if only activations, pools and the like
    stand between the two; else None: there units are not chosen."""
    weights = {layer.name: layer.weight for layer in groups.layers}
    if site.other is not None or not site.relu or getattr(site.layer, "groups", 1) != 1 or site.name not in weights:
        return None
    owned = {weight: name for name, weight in weights.items()}
    for group in groups.values():
        made = [m for m in group.members if m.axis == 0 and m.tensor in owned]
        read = [m for m in group.members if m.axis == 1 and m.tensor in owned]
        if [m.tensor for m in made] != [weights[site.name]] or len(read) != 1 or read[0].rows or read[0].offset:
            continue
        reader = next((other for other in sites if weights.get(other.name) == read[0].tensor), None)
        if reader is None or group.size * read[0].block != reader.layer.weight.shape[1] or group.size < 4:
            return None
        between = lockstep.nodes[lockstep.index[site.end] + 1 : lockstep.index[reader.node]]
        before = [site.end, *between]
        straight = all(
            node.all_input_nodes == [last] for last, node in zip(before, [*between, reader.node], strict=True)
        )
        return (reader, read[0].block) if straight else None
    return None
