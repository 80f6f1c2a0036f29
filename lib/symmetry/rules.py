"""The rules of `trace`, one an operation; `rule` registers more of them."""

import math
import operator
import re
from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.nn import functional as F

from .groups import Layer
from .tracer import RULES, Axis, Layout, _arguments, _Cell, _cut, _is_tensor, _shape, _Tracer, rule


def is_activation(operation: object) -> bool:
    """Whether a module's type or a function is a non-linearity that acts on each unit alone."""
    return RULES.get(operation) in (_activation, _prelu)


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
        units: Axis = [(_Cell(out), 1)]
    elif groups == module.in_channels:  # depthwise: output unit i sees input unit i // (out / groups) alone
        units = [(cell, block * (out // groups)) for cell, block in channels or [(_Cell(groups, fixed=True), 1)]]
    else:
        pieces = _cut(channels, module.in_channels // groups) if channels else [None] * groups
        step = out // groups
        for g, piece in enumerate(pieces):
            t.mark(node, weight, 1, piece, rows=(g * step, (g + 1) * step))
        units = [(_Cell(step), 1) for _ in range(groups)]
    t.mark(node, weight, 0, units)
    t.mark(node, bias, 0, units)
    return _produce(t, node, "conv", units, 1)


@rule(nn.Linear)
def _linear(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    last = len(_shape(node.args[0])) - 1
    t.mark(node, f"{node.target}.weight", 1, layout.get(last))
    units: Axis = [(_Cell(module.out_features), 1)]
    t.mark(node, f"{node.target}.weight", 0, units)
    t.mark(node, f"{node.target}.bias", 0, units)
    return layout | _produce(t, node, "linear", units, last)


def _produce(t: _Tracer, node: fx.Node, kind: str, units: Axis, axis: int) -> Layout:
    name = node.target
    t.producers.append((name, units))
    t.kinds[node] = "pre_norm"
    bias = f"{name}.bias" if f"{name}.bias" in t.state else None
    t.layers.append(Layer(name, kind, node.name, f"{name}.weight", bias))
    return {axis: units}


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
    "torchvision.ops.stochastic_depth.stochastic_depth",
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
