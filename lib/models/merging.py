"""Consecutive linear layers with nothing between them, written as one: the units between them are no units.

Two parents merged this way before matching have one permutation less to find, and a fused network that computes the
product of their layers' averages no longer stands between them.
"""

import copy

import torch
from torch import fx, nn


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """(first, second) of each two linear modules of which the second takes the first's output and nothing else does."""
    graph = fx.symbolic_trace(model).graph
    modules = dict(model.named_modules())
    targets = [node.target for node in graph.nodes if node.op == "call_module"]

    def linear(node: fx.Node) -> bool:
        once = node.op == "call_module" and targets.count(node.target) == 1
        return once and type(modules[node.target]) is nn.Linear

    pairs = []
    for node in graph.nodes:
        user = node
        while len(user.users) == 1 and linear(node):
            (user,) = user.users
            if linear(user):
                pairs.append((node.target, user.target))
                break
            if user.op != "call_module" or not isinstance(modules[user.target], nn.Identity):
                break
    return pairs


@torch.no_grad()
def merge_linear(model: nn.Module) -> nn.Module:
    """A copy of `model` in which linear layers that follow one another directly are one: the last holds the product,
    the others are nn.Identity. Computes the same function.

    SimpleNet's fc1 (32, 3136) and fc2 (10, 32) become fc2 (10, 3136). Products are taken in float64. A network
    without such layers comes back as a plain copy. Merge both parents before `symmetry.trace` and matching.
    """
    merged = copy.deepcopy(model)
    for first, second in _pairs(merged):
        modules = dict(merged.named_modules())
        a, b = modules[first], modules[second]
        weight = b.weight.double() @ a.weight.double()
        bias = None if b.bias is None else b.bias.double()
        if a.bias is not None:
            bias = b.weight.double() @ a.bias.double() + (0 if bias is None else bias)
        layer = nn.Linear(a.in_features, b.out_features, bias is not None, device=a.weight.device, dtype=a.weight.dtype)
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
        layer.train(b.training)
        merged.set_submodule(first, nn.Identity())
        merged.set_submodule(second, layer)
    return merged
