"""The rules of `trace`, one an operation; `rule` registers more of them."""

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import fx, nn

from .graph import attention_output, attention_pattern
from .groups import Layer
from .registry import MAKERS, RULES, function_rule, rule, spelled
from .tracer import COLUMNS, PART, PARTS, UNIT, Labels, Layout, _is_tensor, _shape, _Tracer


def is_activation(operation: object) -> bool:
    """Whether a module's type, a function or a method's name is a non-linearity that acts on each unit alone."""
    handler = RULES.get(operation) if isinstance(operation, type) else function_rule(operation)
    return handler in (_activation, _prelu)


def _arguments(t: _Tracer, node: fx.Node, **known) -> list:
    """The arguments after the first, in the order of `known` (names and defaults), with NumPy's names or torch's."""
    given = {{"axis": "dim", "keepdims": "keepdim"}.get(name, name): value for name, value in node.kwargs.items()}
    if unknown := given.keys() - known.keys():
        listed = ", ".join(known)
        raise t.fail(node, f"its rule does not know the keyword {', '.join(sorted(unknown))}; accepted: {listed}")
    return [
        t.value(node.args[position] if len(node.args) > position else given.get(name, default))
        for position, (name, default) in enumerate(known.items(), 1)
    ]


def _operand(t: _Tracer, argument: object) -> Layout | None:
    """The layout of a weight given as an argument; None if there is none."""
    return t.layout(argument) if isinstance(argument, fx.Node) else None


def _owner(node: fx.Node, weight: object) -> str:
    """What to call a layer that is computed by a function: the module that owns its weight, or computes it."""
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0] if stack else "") or node.name
    owner, _, name = weight.target.rpartition(".")
    return owner if name == "weight" and owner else weight.target


# Layers ---------------------------------------------------------------------------------------------------------------


def _layer(
    t: _Tracer, node: fx.Node, kind: str, name: str, units: Labels | None, tensors: Sequence[str | None]
) -> None:
    """Notes a layer that makes units; `tensors`: its weight and bias in the state dict."""
    if units is not None:
        t.producers.append((name, units))
    t.kinds[node] = "pre_norm"
    if tensors[0] is not None:
        t.layers.append(Layer(name, kind, node.name, *tensors))


def _tensors(t: _Tracer, node: fx.Node, arguments: Sequence[object]) -> list[str | None]:
    """The names in the state dict of a layer's weight and bias, given as arguments or by its module."""
    if node.op == "call_module":
        names = [f"{node.target}.weight", f"{node.target}.bias"]
    else:
        names = [a.target if isinstance(a, fx.Node) and a.op == "get_attr" else None for a in arguments]
    return [name if name in t.state else None for name in names]


@rule("conv1d", "conv2d", "conv3d", nn.Conv1d, nn.Conv2d, nn.Conv3d, linear=True)
def _convolution(t: _Tracer, node: fx.Node, module) -> Layout:
    return _convolve(t, node, module, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", linear=True)
@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, linear=True)
def _transposed_convolution(t: _Tracer, node: fx.Node, module) -> Layout:
    return _convolve(t, node, module, transposed=True)


def _convolve(t: _Tracer, node: fx.Node, module, *, transposed: bool) -> Layout:
    """A weight (out, in / groups, …), transposed (in, out / groups, …)."""
    source = node.args[0]
    arguments: list = []
    if module is not None:
        groups = module.groups
        weight, bias = t.tensor(node, f"{node.target}.weight"), t.tensor(node, f"{node.target}.bias")
        shape = module.weight.shape
        name = node.target
    else:
        options = {"weight": None, "bias": None, "stride": 1, "padding": 0}
        options |= {"output_padding": 0, "groups": 1, "dilation": 1} if transposed else {"dilation": 1, "groups": 1}
        arguments = [node.kwargs.get(k, a) for k, a in zip(options, [*node.args[1:3], None, None], strict=False)]
        *_, first, second = _arguments(t, node, **options)
        groups = first if transposed else second
        weight, bias = _operand(t, arguments[0]), _operand(t, arguments[1])
        shape, name = _shape(arguments[0]), _owner(node, arguments[0])
    layout = t.layout(source)
    if len(_shape(source)) != len(shape):
        raise t.fail(node, "its input has no batch axis")
    layout = _kept(t, layout, [axis for axis in layout if axis > 1])
    tensors = _tensors(t, node, arguments[:2])
    for axis in range(2, len(shape)):
        t.fix(weight.get(axis))
    channels, inputs, outputs = layout.get(1), _shape(source)[1], _shape(node)[1]
    makes, reads = (1, 0) if transposed else (0, 1)  # the weight's axes
    if groups == 1:
        t.unify(node, weight.get(reads), channels, dual=True)
        units = weight.get(makes)
    elif groups == inputs and shape[1 if transposed else 0] == (outputs // groups if transposed else outputs):
        # depthwise: each channel makes its own outputs, those of a multiplier one after the other
        channels = t.new(groups, fixed=True) if channels is None else channels
        units = _parted(channels, outputs // groups)
        if transposed:
            t.unify(node, weight.get(0), channels)
            t.fix(weight.get(1))
        else:
            t.unify(node, weight.get(0), units)
    else:
        units = _grouped(t, node, weight, tensors[0], channels, groups, (inputs, outputs), transposed)
    if groups > 1:  # a channel meets its own weights alone
        t.limit(channels)
        t.limit(units)
    t.tie(node, [bias], 0, units)
    _layer(t, node, "conv", name, units, tensors)
    layout.pop(1, None)
    return layout if units is None else layout | {1: units}


def _parted(labels: Labels, parts: int) -> Labels:
    """Labels of `parts` consecutive entries in the place of each."""
    inner = np.repeat(labels, parts, axis=0)
    inner[:, PART] = inner[:, PART] * parts + np.tile(np.arange(parts), len(labels))
    inner[:, PARTS] *= parts
    return inner


def _grouped(t: _Tracer, node: fx.Node, weight: Layout, tensor, channels, groups: int, sizes, transposed: bool):
    """The output units of a grouped convolution: each group of them reads a piece of the channels."""
    inputs, outputs = (size // groups for size in sizes)
    pieces = [None] * groups if channels is None else np.split(channels, groups)
    t.apart += [piece for piece in pieces if piece is not None]
    if tensor is None:  # made from other tensors: there is no naming some rows of it
        t.fix(channels)
        t.fix(weight.get(1))
        units = weight.get(0)
        if transposed or units is None:
            return None if outputs * groups == 1 else t.new(outputs * groups, fixed=True)
        t.apart += np.split(units, groups)
        return units
    if transposed:
        t.unify(node, weight.get(0), channels)
        made = [t.piece(node, tensor, 1, (g * inputs, (g + 1) * inputs), None) for g in range(groups)]
        return None if made[0] is None else np.concatenate(made)
    units = weight.get(0)
    t.apart += np.split(units, groups) if outputs > 1 else []
    for g, piece in enumerate(pieces):
        rows = (g * outputs, (g + 1) * outputs)
        known = t.piece(node, tensor, 1, rows, piece)
        if piece is None:
            t.fix(known)
    if outputs == 1:
        t.apart += [units[i : i + 1] for i in range(len(units))]
    return units


@rule("linear", nn.Linear, linear=True)
def _linear(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    arguments = [node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")] if module is None else []
    arguments += [node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")] if module is None else []
    if module is not None:
        weight, bias = t.tensor(node, f"{node.target}.weight"), t.tensor(node, f"{node.target}.bias")
    else:
        weight, bias = (_operand(t, argument) for argument in arguments)
    last = len(_shape(node.args[0])) - 1
    t.unify(node, weight.get(1), layout.pop(last, None), dual=True)
    units = weight.get(0)
    t.tie(node, [bias], 0, units)
    name = node.target if module is not None else _owner(node, arguments[0])
    _layer(t, node, "linear", name, units, _tensors(t, node, arguments))
    return layout if units is None else layout | {last: units}


@rule("embedding", nn.Embedding, linear=True)
def _embedding(t: _Tracer, node: fx.Node, module) -> Layout:
    if module is not None:
        weight, rank, name = t.tensor(node, f"{node.target}.weight"), len(_shape(node.args[0])), node.target
    else:
        # F.embedding(input, weight), ATen's embedding(weight, input)
        places, table = (
            node.args[:2] if spelled(node.target) == "embedding" and _first_is_places(node) else node.args[1::-1]
        )
        weight, rank, name = t.layout(table), len(_shape(places)), _owner(node, table)
    t.fix(weight.get(0))
    units = weight.get(1)
    if units is not None:
        t.producers.append((name, units))
    t.kinds[node] = "pre_norm"
    return {} if units is None else {rank: units}


def _first_is_places(node: fx.Node) -> bool:
    return not node.args[0].meta["tensor_meta"].dtype.is_floating_point


# Norms ----------------------------------------------------------------------------------------------------------------


@rule(nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, nn.modules.instancenorm._InstanceNorm)
def _channel_norm(t: _Tracer, node: fx.Node, module) -> Layout:
    source = node.args[0]
    layout = t.layout(source)
    for name in ("weight", "bias", "running_mean", "running_var"):
        t.tie(node, [t.tensor(node, f"{node.target}.{name}")], 0, layout.get(1))
    # A scale and shift of the same axis that alone follows a layer can be folded into it.
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if batch_norm and source.op == "call_module" and len(source.users) == 1:
        for position, layer in enumerate(t.layers):
            if layer.node == source.name and (layer.kind == "conv" or len(_shape(source)) == 2):
                t.layers[position] = Layer(layer.name, layer.kind, layer.node, layer.weight, layer.bias, node.target)
    t.kinds[node] = "post_norm"
    return layout


@rule("local_response_norm", nn.LocalResponseNorm)
def _neighbour_norm(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    return _kept(t, layout, [axis for axis in layout if axis == 1])


@rule("batch_norm", "instance_norm")
def _channel_norm_of(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    for argument in (*node.args[1:5], *node.kwargs.values()):
        if isinstance(argument, fx.Node) and _is_tensor(argument) and _shape(argument) == _shape(node)[1:2]:
            t.tie(node, [t.layout(argument)], 0, layout.get(1))
    t.kinds[node] = "post_norm"
    return layout


@rule("group_norm", nn.GroupNorm)
def _group_norm(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    if module is not None:
        count, parts = module.num_groups, [t.tensor(node, f"{node.target}.{name}") for name in ("weight", "bias")]
    else:
        count, weight, bias = _arguments(t, node, num_groups=1, weight=None, bias=None, eps=0, cudnn_enabled=True)[:3]
        parts = [_operand(t, weight), _operand(t, bias)]
    if 1 in layout and count > 1:
        t.apart += np.split(layout[1], count)
    t.tie(node, parts, 0, layout.get(1))
    t.kinds[node] = "post_norm"
    return layout


@rule("layer_norm", "rms_norm", nn.LayerNorm, nn.RMSNorm, linear=True)
def _layer_norm(t: _Tracer, node: fx.Node, module) -> Layout:
    """Once its gain is folded into what reads it, any rotation passes, through LayerNorm those that keep the mean."""
    layout = t.layout(node.args[0], split=True)
    if module is not None:
        shape, names = module.normalized_shape, [f"{node.target}.{name}" for name in ("weight", "bias")]
        parts, names = [t.tensor(node, name) for name in names], [name if name in t.state else None for name in names]
        root = isinstance(module, nn.RMSNorm)
    else:
        root = spelled(node.target) == "rms_norm"
        known = {"normalized_shape": (), "weight": None} | ({} if root else {"bias": None}) | {"eps": 0}
        shape, weight, *others = _arguments(t, node, **known, cudnn_enable=True)
        bias = None if root else others[0]
        parts, names = [_operand(t, weight), _operand(t, bias)], _tensors(t, node, [weight, bias])
        if weight is not None and names[0] is None:  # made from other tensors: nothing to fold
            t.limit(layout)
    shape = (shape,) if isinstance(shape, int) else shape
    rank = len(_shape(node.args[0]))
    first = rank - len(shape)
    _joined(t, layout, range(first, rank))
    for axis in range(len(shape)):
        t.tie(node, parts, axis, layout.get(first + axis))
        kind = "permutation" if len(shape) > 1 else "orthogonal" if root else "centred"
        t.limit(layout.get(first + axis), kind)
    if names[0] is not None:  # by the name that its labels have
        t.gains.setdefault(t.aliases.get(names[0], names[0]), (names[1], []))[1].append(node)
    t.kinds[node] = "post_norm"
    return layout


# Activations, and what acts on each entry alone -----------------------------------------------------------------------

_MODULES = (
    "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Hardswish",
    "Hardsigmoid", "Hardtanh", "Softplus", "LogSigmoid", "Softsign", "Hardshrink", "Softshrink", "Tanhshrink",
    "Threshold",
)  # fmt: skip
_FUNCTIONS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "logsigmoid", "log_sigmoid", "softsign", "hardshrink", "softshrink",
    "tanhshrink", "threshold",
)  # fmt: skip


@rule(*(getattr(nn, name) for name in _MODULES), *_FUNCTIONS)
def _activation(t: _Tracer, node: fx.Node, module) -> Layout:
    t.kinds[node] = "post_relu"
    return _pass(t, node, module)


@rule("prelu", nn.PReLU)
def _prelu(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    if module is not None:
        size, weight = module.num_parameters, t.tensor(node, f"{node.target}.weight")
    else:
        (argument,) = _arguments(t, node, weight=None)
        size, weight = math.prod(_shape(argument)), t.layout(argument)
    if size > 1:
        t.tie(node, [weight], 0, layout.get(1))
    t.kinds[node] = "post_relu"
    return layout


@rule("glu", nn.GLU)
def _gated(t: _Tracer, node: fx.Node, module) -> Layout:
    """One half of an axis times the sigmoid of the other."""
    layout = t.layout(node.args[0])
    dim = (module.dim if module is not None else _arguments(t, node, dim=-1)[0]) % len(_shape(node))
    if dim in layout:
        first, second = np.split(layout[dim], 2)
        t.unify(node, first, second)
        layout[dim] = first
    t.kinds[node] = "post_relu"
    return layout


_AS_THEY_ARE = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "neg", "positive",
    "contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "to", "type_as", "type", "cpu", "alias",
    "stochastic_depth", "zero",
)  # fmt: skip
_ONE_BY_ONE = (
    "abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "sin", "cos", "erf", "sign",
    "floor", "ceil", "round", "clamp", "clip", "clamp_min", "clamp_max", "logit", "nan_to_num", "logical_not", "fill",
)  # fmt: skip


@rule(*_ONE_BY_ONE)
def _pass(t: _Tracer, node: fx.Node, module) -> Layout:
    """Element by element: the layout passes through."""
    others = [n for n in node.all_input_nodes if n is not node.args[0] and _is_tensor(n) and math.prod(_shape(n)) > 1]
    if others and spelled(node.target) not in ("to", "type_as"):  # x.to(y) reads no entry of y
        raise t.fail(node, f"its rule takes one tensor, and '{others[0].name}' goes in too")
    return t.layout(node.args[0], split=True)


@rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
@rule(*_AS_THEY_ARE, "torchvision.ops.stochastic_depth.stochastic_depth", linear=True)
def _as_it_is(t: _Tracer, node: fx.Node, module) -> Layout:
    """The same numbers, all negative, or in another precision."""
    return _pass(t, node, module)


@rule(nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, "softmax", "log_softmax", "softmin", "normalize")
def _along(t: _Tracer, node: fx.Node, module) -> Layout:
    """Over a whole axis in a way that follows its order."""
    layout, rank = t.layout(node.args[0], split=True), len(_shape(node))
    if module is not None:
        dim = -3 if isinstance(module, nn.Softmax2d) else module.dim
    elif spelled(node.target) == "normalize":
        _, dim, *_ = _arguments(t, node, p=2, dim=1, eps=0, out=None)
    else:
        dim, *_ = _arguments(t, node, dim=None, _stacklevel=3, dtype=None)
    if dim is None:
        dim = 0 if rank in (0, 1, 3) else 1  # as torch takes it
    _joined(t, layout, [dim % rank])
    if layout and rank > 3 and "softmax" in (spelled(node.target) if module is None else type(module).__name__.lower()):
        t.kinds[node] = "pattern"  # of attention, where its units turn out to be heads
    return layout


def _axes(key: int | tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a layout's key."""
    return key if isinstance(key, tuple) else (key,)


def _joined(t: _Tracer, layout: Layout, dims: Sequence[int]) -> None:
    """Leaves permuted, of axes that a reshape has split, only those outside `dims`: what works along these does not
    treat all units alike any more, but whole slices."""
    for key in [key for key in layout if isinstance(key, tuple) and set(key) & set(dims)]:
        t.nested = True
        labels = layout.pop(key)
        kept = [axis for axis in key if axis not in dims]
        if len(kept) != 1:
            t.fix(labels) if kept else None
            continue
        place = key.index(kept[0])
        units = t.units.new(labels.shape[place])
        t.units.unify(np.moveaxis(labels, place, 0), _parted(units, labels.size // COLUMNS // len(units)))
        layout[kept[0]] = units


SPATIAL = ("MaxPool", "LPPool", "AdaptiveMaxPool")
MEANS = ("AvgPool", "AdaptiveAvgPool")
PADS = ("ReplicationPad", "ReflectionPad", "ZeroPad", "CircularPad", "ConstantPad")
POOLS = ("max_pool", "lp_pool", "adaptive_max_pool")


@rule(*(getattr(nn, f"{name}{d}d") for d in (1, 2, 3) for name in (*SPATIAL, *PADS) if hasattr(nn, f"{name}{d}d")))
@rule(*(f"{name}{d}d" for name in POOLS for d in (1, 2, 3)))
def _spatial(t: _Tracer, node: fx.Node, module) -> Layout:
    """Pooling and padding of the last 1, 2 or 3 axes, channel by channel."""
    layout = t.layout(node.args[0])
    name = type(module).__name__ if module is not None else spelled(node.target)
    first = len(_shape(node.args[0])) - int(re.search(r"([123])d", name)[1])
    return _kept(t, layout, [axis for axis in layout if axis >= first])


@rule(*(getattr(nn, f"{name}{d}d") for d in (1, 2, 3) for name in MEANS))
@rule(*(f"{name}{d}d" for name in ("avg_pool", "adaptive_avg_pool") for d in (1, 2, 3)), linear=True)
def _mean_pool(t: _Tracer, node: fx.Node, module) -> Layout:
    return _spatial(t, node, module)


def _kept(t: _Tracer, layout: Layout, axes: Sequence[int]) -> Layout:
    """The layout without some axes, along which neighbours count: these keep their order."""
    for axis in axes:
        t.fix(layout.pop(axis))
    return layout


@rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, "interpolate", "upsample")
@rule(*(f"upsample_{how}" for how in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d")))
@rule("roll", "flip", linear=True)
def _resize(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    dims = _arguments(t, node, shifts=(), dims=())[1] if spelled(node.target) == "roll" else ()
    dims = _arguments(t, node, dims=())[0] if spelled(node.target) == "flip" else dims
    dims = [d % len(_shape(node)) for d in (dims if isinstance(dims, Sequence) else [dims])]
    moved = spelled(node.target) in ("roll", "flip")
    return _kept(t, layout, [axis for axis in layout if (axis in dims if moved else axis > 1)])


@rule("pad", "constant_pad_nd", linear=True)
def _pad(t: _Tracer, node: fx.Node, module) -> Layout:
    """Padding with a constant: the new entries are alike, units that nothing tells apart."""
    layout, rank = t.layout(node.args[0]), len(_shape(node))
    widths, mode, value = _arguments(t, node, pad=(), mode="constant", value=None)
    if value or (spelled(node.target) != "pad" and mode):  # ATen's constant_pad_nd has its value in this place
        t.limit(layout)
    for i in range(len(widths) // 2):
        axis, before, after = rank - 1 - i, widths[2 * i], widths[2 * i + 1]
        if axis not in layout or not (before or after):
            continue
        if isinstance(mode, str) and mode != "constant":
            _kept(t, layout, [axis])
            continue
        kept = layout[axis][max(0, -before) : len(layout[axis]) - max(0, -after)]
        fresh = [t.units.new(max(0, n)) for n in (before, after)]
        layout[axis] = np.concatenate([fresh[0], kept, fresh[1]])
    return layout


# Axes that merge, split, move -----------------------------------------------------------------------------------------


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest runs of axes of two shapes that hold equally many entries."""
    runs, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        a, b, size_a, size_b = i, j, 1, 1
        if a < len(before):
            size_a, a = before[a], a + 1
        if b < len(after):
            size_b, b = after[b], b + 1
        while size_a != size_b:
            if size_a < size_b:
                size_a, a = size_a * before[a], a + 1
            else:
                size_b, b = size_b * after[b], b + 1
        runs.append((range(i, a), range(j, b)))
        i, j = a, b
    return runs


def _whole(
    t: _Tracer, node: fx.Node, layout: Layout, axes: range, shape: Sequence[int], repeated: Sequence[int] = ()
) -> Labels | None:
    """Labels of every entry of a run of axes (… sizes …, 4), which are alike along those `repeated`; None if none of
    them is permuted."""
    keys = [key for key in layout if set(_axes(key)) & set(axes)]
    if not keys:
        return None
    if len(keys) > 1:  # one can still be permuted, such as the inputs of a weight with its kernel's axes
        if any(isinstance(key, tuple) for key in keys):
            raise t.fail(node, f"{tuple(shape)} merges permuted axes of which one was split")
        for key in sorted(keys)[1:]:
            t.fix(layout[key])
        keys = [min(keys)]
    own = _axes(keys[0])
    sizes = [shape[axis] for axis in axes]
    inner = [shape[axis] if axis not in own and axis not in repeated else 1 for axis in axes]
    parts = math.prod(inner)
    view = [shape[axis] if axis in own else 1 for axis in axes]
    labels = np.broadcast_to(layout[keys[0]].reshape(*view, COLUMNS), (*sizes, COLUMNS)).copy()
    labels[..., PART] = labels[..., PART] * parts + np.arange(parts).reshape(inner)
    labels[..., PARTS] *= parts
    return labels


def _simplified(key: tuple[int, ...], labels: Labels) -> Layout:
    """The layout of labels over several axes (…, 4), without the axes along which units do not vary: where labels do
    not either, or count parts in order."""
    for place in reversed(range(len(key))):
        if len(key) == 1:
            break
        rest = np.moveaxis(labels, place, -2)
        count, first = rest.shape[-2], rest[..., :1, :]
        if (rest == first).all():
            labels = first[..., 0, :]
        elif (
            (rest[..., UNIT] == first[..., UNIT]).all()
            and (rest[..., PARTS] % count == 0).all()
            and (rest[..., PART] % count == np.arange(count)).all()
            and (rest[..., PART] // count == first[..., PART] // count).all()
        ):
            labels = first[..., 0, :].copy()
            labels[..., PART] //= count
            labels[..., PARTS] //= count
        else:
            continue
        key = key[:place] + key[place + 1 :]
    return {key if len(key) > 1 else key[0]: labels}


@rule(nn.Flatten, nn.Unflatten, "flatten", "unflatten", "reshape", "view", "view_as", "reshape_as", "_unsafe_view")
@rule("squeeze", "unsqueeze", linear=True)
def _reshape(t: _Tracer, node: fx.Node, module) -> Layout:
    """Axes that merge: those after a permuted axis count the parts of its units, those before it repeat them."""
    source, before, after = t.layout(node.args[0], split=True), _shape(node.args[0]), _shape(node)
    layout: Layout = {}
    runs = _runs(before, after)
    moved = {old[0]: new[0] for old, new in runs if len(old) == len(new) == 1}
    own = {axis: position for position, (old, _) in enumerate(runs) for axis in old}
    for key in [key for key in source if isinstance(key, tuple)]:
        touched = sorted({own[axis] for axis in key})
        if all(axis in moved for axis in key):
            layout[tuple(moved[axis] for axis in key)] = source.pop(key)
        elif len(touched) > 1:
            if all(axis in key or before[axis] == 1 for each in touched for axis in runs[each][0]):
                wide = tuple(axis for each in touched for axis in runs[each][1] if after[axis] > 1)
                labels = source.pop(key).reshape(*(after[axis] for axis in wide), COLUMNS)
                layout |= _simplified(wide, t.units.resolve(labels))
            else:  # some of it merges with what is no part of it, as in depth to space
                _joined(t, source, [axis for axis in key if axis not in moved])
    repeated = []
    if node.args[0].op != "call_module" and function_rule(node.args[0].target) is _expand:
        narrow = _shape(node.args[0].args[0])
        narrow = (1,) * (len(before) - len(narrow)) + narrow
        repeated = [axis for axis, size in enumerate(narrow) if size < before[axis]]
    for old, new in runs:
        labels = _whole(t, node, source, old, before, repeated)
        if labels is None:
            continue
        wide = tuple(axis for axis in new if after[axis] > 1)
        layout |= _simplified(wide, t.units.resolve(labels.reshape(*(after[axis] for axis in wide), COLUMNS)))
    return layout


@rule("permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint", linear=True)
def _transpose(t: _Tracer, node: fx.Node, module) -> Layout:
    rank, name = len(_shape(node.args[0])), spelled(node.target)
    order = list(range(rank))
    if name == "permute":
        (dims,) = _arguments(t, node, dims=())
        order = [d % rank for d in (dims if isinstance(dims, Sequence) else t.value(node.args[1:]))]
    elif name in ("movedim", "moveaxis"):
        sides = [[d] if isinstance(d, int) else list(d) for d in _arguments(t, node, source=0, destination=0)]
        source, destination = ([d % rank for d in side] for side in sides)
        rest = iter([d for d in range(rank) if d not in source])
        order = [source[destination.index(d)] if d in destination else next(rest) for d in range(rank)]
    else:
        i, j = (d % rank for d in (_arguments(t, node, dim0=0, dim1=1) if name != "adjoint" else (-2, -1)))
        order[i], order[j] = order[j], order[i]
    return _reordered(t.layout(node.args[0], split=True), order)


def _reordered(layout: Layout, order: Sequence[int]) -> Layout:
    """The layout when axis order[i] takes place i."""
    place = {old: new for new, old in enumerate(order)}
    moved: Layout = {}
    for key, labels in layout.items():
        if isinstance(key, tuple):
            axes = [place[axis] for axis in key]
            sort = sorted(range(len(axes)), key=axes.__getitem__)
            moved[tuple(axes[i] for i in sort)] = labels.transpose(*sort, len(axes))
        else:
            moved[place[key]] = labels
    return moved


@rule("getattr", linear=True)
def _attribute(t: _Tracer, node: fx.Node, module) -> Layout:
    if not _is_tensor(node):
        return {}
    name, rank = node.args[1], len(_shape(node))
    if name in ("T", "mT", "H", "mH"):
        order = list(range(rank))[::-1] if name in ("T", "H") else [*range(rank - 2), rank - 1, rank - 2]
        return _reordered(t.layout(node.args[0], split=True), order)
    if name != "data":
        raise t.fail(node, f"its rule does not know .{name}")
    return t.layout(node.args[0], split=True)


# Pieces of axes -------------------------------------------------------------------------------------------------------


def _sliced(t: _Tracer, labels: Labels, index: slice | int) -> Labels | None:
    """A part of an axis; a single entry is taken out of every permutation."""
    part = labels[index] if isinstance(index, slice) else labels[index : index + 1 or None]
    if len(part) > 1:
        return part
    t.apart.append(part)
    return None


def _cut(t: _Tracer, layout: Layout, axis: int, index: slice | int) -> None:
    """Leaves of an axis the entries of a slice, or one alone; the axis stays in place."""
    for key in [key for key in layout if axis in _axes(key)]:
        labels = layout.pop(key)
        if key == axis:
            if (part := _sliced(t, labels, index)) is not None:
                layout[axis] = part
        elif not t.inside and key[1:] == (axis,):  # what is cut is each head
            layout[key] = labels
            _joined(t, layout, [axis])
        else:
            steps = [slice(None)] * len(key)
            steps[key.index(axis)] = index if isinstance(index, slice) else [index]
            layout |= _simplified(key, labels[tuple(steps)])


def _placed(layout: Layout, place: dict[int, int]) -> Layout:
    """The layout with each axis in another place."""
    return {
        tuple(place[axis] for axis in key) if isinstance(key, tuple) else place[key]: labels
        for key, labels in layout.items()
    }


def _cut_out(t: _Tracer, node: fx.Node, dim: int, index: slice | int) -> Layout:
    """The layout of a slice of a node's first argument, or of one entry along an axis, which goes."""
    layout, rank = t.layout(node.args[0], split=True), len(_shape(node.args[0]))
    dim %= rank
    _cut(t, layout, dim, index)
    gone = not isinstance(index, slice)
    return _placed(layout, {axis: axis - (gone and axis > dim) for axis in range(rank)})


@rule("chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "hsplit", linear=True)
def _chunk(t: _Tracer, node: fx.Node, module) -> list[Layout]:
    shape = _shape(node.args[0])
    name = "split_size" if "split" in spelled(node.target) else "chunks"
    given = {k: v for k, v in node.kwargs.items() if k in ("dim", "axis")}
    dim = t.value(given.get("dim", given.get("axis", node.args[2] if len(node.args) > 2 else 0))) % len(shape)
    pieces, first = [], 0
    for meta in node.meta["tensor_meta"]:
        pieces.append(_cut_out(t, node, dim, slice(first, first + meta.shape[dim])))
        first += meta.shape[dim]
    if first != shape[dim]:
        raise t.fail(node, f"its rule cannot read its {name}")
    return pieces


@rule("unbind", linear=True)
def _unbind(t: _Tracer, node: fx.Node, module) -> list[Layout]:
    dim = _arguments(t, node, dim=0)[0]
    return [_cut_out(t, node, dim, i) for i in range(_shape(node.args[0])[dim])]


@rule("select", linear=True)
def _select(t: _Tracer, node: fx.Node, module) -> Layout:
    return _cut_out(t, node, *_arguments(t, node, dim=0, index=0))


@rule("narrow", "slice", linear=True)
def _narrow(t: _Tracer, node: fx.Node, module) -> Layout:
    if spelled(node.target) == "narrow":
        dim, start, length = _arguments(t, node, dim=0, start=0, length=0)
        return _cut_out(t, node, dim, slice(start, start + length))
    dim, *part = _arguments(t, node, dim=0, start=None, end=None, step=1)
    return _cut_out(t, node, dim, slice(*part))


@rule("getitem", linear=True)
def _getitem(t: _Tracer, node: fx.Node, module) -> Layout:
    source, index = node.args[0], t.value(node.args[1])
    if not _is_tensor(node):
        return {}
    if isinstance(source.meta["tensor_meta"], list):
        return t.items(source)[index]
    return _indexed(t, node, index if isinstance(index, tuple | list) else (index,))


@rule("index", linear=True)
def _index(t: _Tracer, node: fx.Node, module) -> Layout:
    """ATen's: a list of tensors or None, one an axis."""
    return _indexed(t, node, [slice(None) if each is None else each for each in node.args[1]])


@rule("index_select", linear=True)
def _index_select(t: _Tracer, node: fx.Node, module) -> Layout:
    layout, dim = t.layout(node.args[0]), _arguments(t, node, dim=0, index=None)[0]
    return _kept(t, layout, [axis for axis in layout if axis == dim % len(_shape(node))])


def _indexed(t: _Tracer, node: fx.Node, index: Sequence) -> Layout:
    """A step an axis: a slice, a number, or once whole numbers in a tensor; None for a new axis."""
    layout, rank = t.layout(node.args[0], split=True), len(_shape(node.args[0]))
    named = sum(each is not None and each is not Ellipsis for each in index)
    steps: list = []
    for each in index:
        steps += [slice(None)] * (rank - named) if each is Ellipsis else [each]
    steps += [slice(None)] * (rank - sum(step is not None for step in steps))
    axis = after = 0
    place: dict[int, int] = {}
    for step in steps:
        if step is None:
            after += 1
            continue
        picked = isinstance(step, fx.Node) and _is_tensor(step)
        if picked and (sum(isinstance(s, fx.Node) for s in steps) > 1 or step.meta["tensor_meta"].dtype == torch.bool):
            raise t.fail(node, "its rule knows one tensor of whole numbers as an index, not several or a mask")
        if not picked and (not isinstance(step, int | slice) or isinstance(step, bool)):
            raise t.fail(node, "its rule knows slices, single entries and a tensor of whole numbers as an index")
        place[axis] = after
        if picked:  # entries in an order of their own, some of them perhaps more than once
            _kept(t, layout, [key for key in layout if axis in _axes(key)])
            after += len(_shape(step))
        else:
            if step != slice(None):
                _cut(t, layout, axis, step)
            after += isinstance(step, slice)
        axis += 1
    return _placed(layout, place)


def _parts(t: _Tracer, node: fx.Node) -> tuple[list[Layout], list[tuple[int, ...]]]:
    """The layouts and shapes of a list of tensors given as first argument."""
    parts = node.args[0]
    if isinstance(parts, fx.Node):
        return t.items(parts), [tuple(meta.shape) for meta in parts.meta["tensor_meta"]]
    return [t.layout(part, split=True) for part in parts], [_shape(part) for part in parts]


def _together(t: _Tracer, node: fx.Node, labels: Sequence[Labels | None]) -> Labels | None:
    """Ties labels that lie in one place of several tensors."""
    for other in labels[1:]:
        t.unify(node, labels[0], other)
    return None if any(each is None for each in labels) else labels[0]


@rule("cat", linear=True)
def _cat(t: _Tracer, node: fx.Node, module) -> Layout:
    (dim,) = _arguments(t, node, dim=0)
    parts, shapes = _parts(t, node)
    along = dim % len(_shape(node))
    layout: Layout = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        each = [part.get(key) for part in parts]
        if key == along:
            sizes = [shape[key] for shape in shapes]
            pieces = [
                t.units.new(size, fixed=True) if labels is None else labels
                for labels, size in zip(each, sizes, strict=True)
            ]
            layout[key] = np.concatenate(pieces)
        elif isinstance(key, tuple) and along in key and all(labels is not None for labels in each):
            layout[key] = np.concatenate(each, axis=key.index(along))
        elif (labels := _together(t, node, each)) is not None:
            layout[key] = labels
    return layout


@rule("stack", linear=True)
def _stack(t: _Tracer, node: fx.Node, module) -> Layout:
    (dim,) = _arguments(t, node, dim=0)
    parts, shapes = _parts(t, node)
    along = dim % len(_shape(node))
    layout: Layout = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        if (labels := _together(t, node, [part.get(key) for part in parts])) is not None:
            layout[key] = labels
    return _placed(layout, {axis: axis + (axis >= along) for axis in range(len(shapes[0]))})


@rule("expand", "expand_as", "broadcast_to", linear=True)
def _expand(t: _Tracer, node: fx.Node, module) -> Layout:
    layout, before, after = t.layout(node.args[0], split=True), _shape(node.args[0]), _shape(node)
    lead = len(after) - len(before)
    layout = _placed(layout, {axis: axis + lead for axis in range(len(before))})
    for key in [key for key in layout if isinstance(key, tuple)]:
        # axes between those of a split one repeat it, and may merge with them, as where heads share their keys
        wide = tuple(axis for axis in range(key[0], key[-1]) if axis in key or (after[axis] > 1 == before[axis - lead]))
        wide += key[-1:]
        labels = layout.pop(key).reshape(*(after[axis] if axis in key else 1 for axis in wide), COLUMNS)
        layout[wide] = np.broadcast_to(labels, (*(after[axis] for axis in wide), COLUMNS)).copy()
    return layout


@rule("repeat", "tile", linear=True)
def _repeat(t: _Tracer, node: fx.Node, module) -> Layout:
    layout, before, after = t.layout(node.args[0]), _shape(node.args[0]), _shape(node)
    lead = len(after) - len(before)
    return {axis + lead: np.tile(x, (after[axis + lead] // before[axis], 1)) for axis, x in layout.items()}


@rule("repeat_interleave", linear=True)
def _repeat_interleave(t: _Tracer, node: fx.Node, module) -> Layout:
    """Each entry of an axis several times, one behind the other."""
    layout, rank = t.layout(node.args[0], split=True), len(_shape(node))
    repeats, dim, _ = _arguments(t, node, repeats=1, dim=None, output_size=None)
    if dim is None or not isinstance(repeats, int):
        raise t.fail(node, "its rule knows one number of repeats, along an axis")
    return _each_repeated(layout, dim % rank, repeats)


def _each_repeated(layout: Layout, axis: int, repeats: int) -> Layout:
    """The layout with each entry of an axis several times, one behind the other."""
    place = {key: key.index(axis) if isinstance(key, tuple) else 0 for key in layout if axis in _axes(key)}
    return layout | {key: np.repeat(layout[key], repeats, axis=at) for key, at in place.items()}


@rule("pixel_shuffle", nn.PixelShuffle)
def _pixel_shuffle(t: _Tracer, node: fx.Node, module) -> Layout:
    """r² consecutive channels become one, r times as high and wide: they are its parts."""
    layout = t.layout(node.args[0])
    layout = _kept(t, layout, [axis for axis in layout if axis > 1])
    channels = _shape(node)[1]
    if 1 not in layout or channels == 1:
        return _kept(t, layout, [axis for axis in layout if axis == 1])
    units = t.units.new(channels)
    t.unify(node, layout[1], _parted(units, len(layout[1]) // channels))
    return layout | {1: units}


@rule("pixel_unshuffle", nn.PixelUnshuffle)
def _pixel_unshuffle(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    layout = _kept(t, layout, [axis for axis in layout if axis > 1])
    if 1 in layout:
        layout[1] = _parted(layout[1], _shape(node)[1] // len(layout[1]))
    return layout


@rule("channel_shuffle", "native_channel_shuffle", nn.ChannelShuffle)
def _channel_shuffle(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    groups = module.groups if module is not None else _arguments(t, node, groups=1)[0]
    if 1 in layout:
        layout[1] = layout[1].reshape(groups, -1, COLUMNS).swapaxes(0, 1).reshape(-1, COLUMNS)
    return layout


# Several tensors ------------------------------------------------------------------------------------------------------


@rule("add", "sub", "rsub", "mul", "div", "true_divide", "multiply", "subtract", "divide", linear=True)
def _arithmetic(t: _Tracer, node: fx.Node, module) -> Layout:
    """Sums of tensors alone, and products with a number or with a tensor that is the same along an axis, are linear."""
    layout, rank = _elementwise(t, node, module), len(_shape(node))
    given = (*node.args, *node.kwargs.values())
    operands = [n for n in given if isinstance(n, fx.Node) and _is_tensor(n)]  # one of them perhaps twice, as in x · x
    name = spelled(node.target)
    sums = any(name.lstrip("_i").startswith(each) for each in ("add", "sub", "rsub"))
    numbers = len(operands) < 2
    for key in layout:
        axes = _axes(key)
        wide = [
            any(len(_shape(o)) - rank + axis >= 0 and _shape(o)[len(_shape(o)) - rank + axis] > 1 for axis in axes)
            for o in operands
        ]
        divided = "div" in name and (numbers and node.args[0] is not operands[0] or any(wide[1:]))
        if divided or (numbers or not all(wide) if sums else sum(wide) > 1):
            t.limit(layout[key])
    return layout


@rule("pow", "maximum", "minimum", "fmod", "remainder", "atan2", "lerp", "addcmul", "addcdiv", "where", "masked_fill")
@rule("gt", "lt", "ge", "le", "eq", "ne", "logical_and", "logical_or", "floordiv", "hypot", "copysign", "mod")
@rule("floor_divide")
def _elementwise(t: _Tracer, node: fx.Node, module) -> Layout:
    """Arithmetic with broadcasting: axes that meet are tied, an axis of one entry meets nothing."""
    known = {"other": None, "exponent": None, "alpha": 1, "rounding_mode": None, "value": 1, "weight": None}
    _arguments(t, node, **known, tensor1=None, tensor2=None, mask=None, input=None)  # operands may come by keyword
    operands = [n for n in node.all_input_nodes if _is_tensor(n)]
    rank = len(_shape(node))
    shapes = [(1,) * (rank - len(_shape(operand))) + _shape(operand) for operand in operands]
    layouts = []
    for operand in operands:
        lead = rank - len(_shape(operand))
        own = t.layout(operand, split=True)
        layouts.append(_placed(own, {axis: axis + lead for axis in range(len(_shape(operand)))}))
    layout: Layout = {}
    split = {key for own in layouts for key in own if isinstance(key, tuple)}
    for key in split:  # what is the same for all slices along the first axis leaves whole slices to be permuted: heads
        for shape in shapes:
            inner = [axis for axis in key[1:] if shape[axis] > 1]
            if inner and shape[key[0]] == 1:
                for each in layouts:
                    _joined(t, each, inner)
    split = {key for own in layouts for key in own if isinstance(key, tuple)}
    for key in split:
        _meet(t, node, layouts, shapes, key, layout)
    taken = {axis for key in split for axis in key}
    for axis in range(rank):
        if axis in taken:
            continue
        meeting = [own.get(axis) for own, shape in zip(layouts, shapes, strict=True) if shape[axis] > 1]
        if meeting and (labels := _together(t, node, meeting)) is not None:
            layout[axis] = labels
    if len(operands) > 1:
        t.kinds[node] = "post_norm"
    return layout


def _meet(t: _Tracer, node: fx.Node, layouts, shapes, key: tuple[int, ...], layout: Layout) -> None:
    """Operands that meet on axes which a reshape has split in at least one of them."""
    meeting: list[Labels | None] = []
    for own, shape in zip(layouts, shapes, strict=True):
        if all(shape[axis] == 1 for axis in key):
            continue
        if any(isinstance(k, tuple) and k != key and set(k) & set(key) for k in own):
            raise t.fail(node, "axes that were split in different ways meet")
        if key in own:
            meeting.append(own[key])
            continue
        whole = tuple(size if axis in key else 1 for axis, size in enumerate(_shape(node)))
        inner = {axis: own[axis] for axis in key if axis in own}
        # Along the axis that is not permuted, the entries are parts of the units on the one that is.
        meeting.append(_whole(t, node, inner, range(min(key), max(key) + 1), whole) if inner else None)
    shape = tuple(_shape(node)[axis] for axis in key)
    meeting = [None if labels is None else labels.reshape(*shape, COLUMNS) for labels in meeting]
    if (labels := _together(t, node, meeting)) is not None:
        layout |= _simplified(key, t.units.resolve(labels))


@rule(*sorted(MAKERS), linear=True)
def _constant(t: _Tracer, node: fx.Node, module) -> Layout:
    """Equal entries: units that nothing tells apart; the batch axis is left alone."""
    shape = _shape(node)
    layout = {axis: t.units.new(size) for axis, size in enumerate(shape) if size > 1 and (axis or len(shape) == 1)}
    t.limit(layout)
    return layout


@rule("amax", "amin", "var", "std", "norm", "logsumexp", "prod", "linalg_vector_norm", "vector_norm")
def _reduce(t: _Tracer, node: fx.Node, module) -> Layout:
    """A sum, mean, maximum or norm over whole axes does not see their order."""
    layout, rank = t.layout(node.args[0], split=True), len(_shape(node.args[0]))
    name = spelled(node.target)
    known: dict = {"dim": None, "keepdim": False, "dtype": None}
    if name in ("var", "std"):
        known = {"dim": None, "unbiased": True, "keepdim": False, "correction": None}
        gone, unbiased, keep, _ = _arguments(t, node, **known)
        keep = node.kwargs.get("keepdim", keep if len(node.args) > 3 else False)
    elif name in ("norm", "linalg_vector_norm", "vector_norm"):
        _, gone, keep, _ = _arguments(t, node, p=2, **known) if name == "norm" else _arguments(t, node, ord=2, **known)
    else:
        gone, keep, _ = _arguments(t, node, **known)
    gone = [d % rank for d in (gone if isinstance(gone, Sequence) else [gone]) if d is not None] or range(rank)
    for key, labels in layout.items():
        if set(_axes(key)) & set(gone):
            t.limit(labels)
    _joined(t, layout, gone)
    place = {axis: axis if keep else axis - sum(d < axis for d in gone) for axis in range(rank) if axis not in gone}
    return _placed({key: labels for key, labels in layout.items() if key not in gone}, place)


@rule("mean", "sum", linear=True)
def _average(t: _Tracer, node: fx.Node, module) -> Layout:
    """Over other axes than those that are mapped, it is linear."""
    return _reduce(t, node, module)


@rule("max", "min")
def _largest(t: _Tracer, node: fx.Node, module) -> Layout | list[Layout]:
    """Of a whole tensor, of two, or along an axis: (values, where), of which the second counts its entries."""
    if any(isinstance(argument, fx.Node) for argument in (*node.args[1:], *node.kwargs.values())):
        return _elementwise(t, node, module)
    dim, keep = _arguments(t, node, dim=None, keepdim=False)
    if dim is None:
        return {}
    layout = t.layout(node.args[0])
    dim %= len(_shape(node.args[0]))
    layout = _kept(t, layout, [axis for axis in layout if axis == dim])
    return [{axis - (axis > dim and not keep): labels for axis, labels in layout.items()}] * 2


@rule("matmul", "mm", "bmm", "mv", "dot", linear=True)
def _matmul(t: _Tracer, node: fx.Node, module) -> Layout:
    return _product(t, node, node.args[0], node.args[1])


@rule("addmm", "baddbmm", "addmv", linear=True)
def _added_matmul(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = _product(t, node, node.args[1], node.args[2])
    _add(t, node, node.args[0], layout)
    return layout


def _add(t: _Tracer, node: fx.Node, added: fx.Node, layout: Layout) -> None:
    """Ties a tensor to what it is added to, of as many axes as the node's value or more than its own."""
    own, lead = t.layout(added), len(_shape(node)) - len(_shape(added))
    for axis in range(len(_shape(node))):
        if axis >= lead and _shape(added)[axis - lead] > 1:
            t.unify(node, own.get(axis - lead), layout.get(axis))
        else:
            t.limit(layout.get(axis))


def _letters(rank: int, batch: int, last: str) -> list[str]:
    """Names of the axes of a matrix or a stack of matrices; the last ones are named."""
    names = [chr(ord("A") + i) for i in range(batch)]
    return [*names[batch - max(rank - len(last), 0) :], *last[-rank:]]


def _product(t: _Tracer, node: fx.Node, first: fx.Node, second: fx.Node) -> Layout:
    """A product of matrices: what is summed over meets, the batch axes meet, the others pass."""
    (a, shape_a), (b, shape_b) = ((t.layout(each, split=True), _shape(each)) for each in (first, second))
    batch = max(len(shape_a), len(shape_b), 2) - 2
    left = _letters(len(shape_a), batch, "xy" if len(shape_a) > 1 else "y")
    right = _letters(len(shape_b), batch, "yz" if len(shape_b) > 1 else "y")
    out = [*_letters(batch, batch, ""), *("x" if len(shape_a) > 1 else ""), *("z" if len(shape_b) > 1 else "")]
    layout = _contract(t, node, [(left, a, shape_a), (right, b, shape_b)], out)
    weights = [n for n in (second, first) if n.op == "get_attr"]
    if weights and layout:
        made = layout.get(len(out) - 1 if weights[0] is second else len(out) - 2)
        if made is not None:
            t.producers.append((_owner(node, weights[0]), made))
    t.kinds[node] = "pre_norm"
    return layout


@rule("einsum", linear=True)
def _einsum(t: _Tracer, node: fx.Node, module) -> Layout:
    equation, operands = node.args[0], node.args[1:]
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or "." in equation:
        raise t.fail(node, "its rule reads equations of letters without an ellipsis")
    ins, _, out = equation.replace(" ", "").partition("->")
    if "->" not in equation:
        out = "".join(sorted(c for c in set(ins) - {","} if ins.count(c) == 1))
    pairs = zip(ins.split(","), operands, strict=True)
    terms = [(list(term), t.layout(operand, split=True), _shape(operand)) for term, operand in pairs]
    layout = _contract(t, node, terms, list(out))
    t.kinds[node] = "pre_norm"
    return layout


@rule(attention_pattern, linear=True)
def _attention_pattern(t: _Tracer, node: fx.Node, module) -> Layout:
    """Heads are a batch axis of queries (…, L, E) and keys (…, S, E), and of the pattern (…, L, S)."""
    query, key, mask = node.args[:3]
    (q, shape_q), (k, shape_k) = ((t.layout(each, split=True), _shape(each)) for each in (query, key))
    k, shape_k = _shared(k, shape_k, shape_q)
    rank = len(shape_q)
    left, right, out = (_letters(rank, rank - 2, last) for last in ("le", "se", "ls"))
    layout = _contract(t, node, [(left, q, shape_q), (right, k, shape_k)], out)
    if isinstance(mask, fx.Node):
        _add(t, node, mask, layout)
    layout = _kept(t, layout, [axis for axis in layout if axis == rank - 1])
    t.limit(layout)
    t.kinds[node] = "pattern"
    return layout


@rule(attention_output, linear=True)
def _attention_output(t: _Tracer, node: fx.Node, module) -> Layout:
    pattern, value = node.args
    shape, (v, shape_v) = _shape(pattern), (t.layout(value, split=True), _shape(value))
    v, shape_v = _shared(v, shape_v, shape)
    rank = len(shape)
    left, right, out = (_letters(rank, rank - 2, last) for last in ("ls", "sv", "lv"))
    layout = _contract(t, node, [(left, t.layout(pattern, split=True), shape), (right, v, shape_v)], out)
    t.kinds[node] = "pre_norm"
    return layout


def _shared(layout: Layout, shape: tuple[int, ...], query: tuple[int, ...]) -> tuple[Layout, tuple[int, ...]]:
    """Layout and shape of keys or values that several heads of the queries share, repeated for each of these."""
    if len(shape) < 4 or (repeats := query[-3] // shape[-3]) < 2:
        return layout, shape
    return _each_repeated(layout, len(shape) - 3, repeats), (*shape[:-3], query[-3], *shape[-2:])


def _contract(t: _Tracer, node: fx.Node, terms, out: list[str]) -> Layout:
    """Axes of one letter meet; an axis of one entry that is broadcast meets nothing.

    Where an axis was split into heads and what is inside them, the letter of the heads is in all terms and in the
    result: a head is taken with its own head. Then heads are units and the inside keeps its order; or, where the inside
    is traced, it is mapped head by head, and heads keep their order.
    """
    counts = {letter: sum(letter in letters for letters, *_ in terms) for letter in {*sum((x[0] for x in terms), [])}}
    batch = {letter for letter, count in counts.items() if count > 1 and letter in out}
    met: dict[str | tuple[str, ...], list] = {}
    for letters, layout, shape in terms:
        if len(set(letters)) < len(letters):
            raise t.fail(node, "its rule knows no diagonals")
        split = [key for key in layout if isinstance(key, tuple)]
        for key in split:
            inner = [axis for axis in key if letters[axis] not in batch]
            free = all(counts[letters[axis]] == 1 and letters[axis] in out for axis in key)
            if not t.inside and not free:
                _joined(t, layout, inner if len(inner) < len(key) else inner[1:])
            elif t.inside and len(inner) < len(key):  # of each head on its own
                labels = layout[key]
                heads = [place for place, axis in enumerate(key) if letters[axis] in batch]
                rows = np.moveaxis(labels, heads, range(len(heads)))
                t.apart += list(rows.reshape(math.prod(rows.shape[: len(heads)]), -1, COLUMNS))
                t.roles.append(("vo" if all(letters[axis] in out for axis in inner) else "qk", labels))
        for key, labels in layout.items():
            if isinstance(key, tuple):
                met.setdefault(tuple(letters[axis] for axis in key), []).append(labels)
        for axis, letter in enumerate(letters):
            if shape[axis] > 1 and not any(isinstance(key, tuple) and axis in key for key in layout):
                met.setdefault(letter, []).append(layout.get(axis))
    ordered = {name for key in met if isinstance(key, tuple) for name in key} & met.keys()
    for name in ordered:  # heads that one term has in order
        for labels in met.pop(name):
            t.fix(labels)
    for key, labels in list(met.items()):
        names = key if isinstance(key, tuple) else (key,)
        summed = [name for name in names if name not in out]
        sharing = sum(all(name in letters for name in names) for letters, *_ in terms)
        if isinstance(key, tuple) and len(labels) < sharing and summed:  # another term has these axes in their order
            met[key] = labels = [*labels, None]
        if len(labels) == 2 and summed and len(terms) == 2:
            t.unify(node, *labels, dual=True)
        else:
            for other in labels[1:]:
                t.unify(node, labels[0], other)
            if len(labels) > 1 or summed:
                for each in labels:
                    t.limit(each)
    # An axis that one tensor alone has and that is summed over is seen as a whole.
    layout: Layout = {}
    for key, labels in met.items():
        names = key if isinstance(key, tuple) else (key,)
        if all(name in out for name in names) and all(each is not None for each in labels):
            axes = tuple(out.index(name) for name in names)
            if list(axes) != sorted(axes):
                raise t.fail(node, "its rule knows no axes that were split and change places")
            layout[axes if len(axes) > 1 else axes[0]] = labels[0]
    return layout
