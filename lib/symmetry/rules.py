"""The rules of `trace`, one an operation; `rule` registers more of them."""

import math
import re
from collections.abc import Sequence

import numpy as np
from torch import fx, nn

from .groups import Layer
from .registry import MAKERS, RULES, function_rule, rule, spelled
from .tracer import PART, PARTS, UNIT, Labels, Layout, _is_tensor, _shape, _Tracer


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


@rule("conv1d", "conv2d", "conv3d", nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(t: _Tracer, node: fx.Node, module) -> Layout:
    return _convolve(t, node, module, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
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
        t.unify(node, weight.get(reads), channels)
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


@rule("linear", nn.Linear)
def _linear(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    arguments = [node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")] if module is None else []
    arguments += [node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")] if module is None else []
    if module is not None:
        weight, bias = t.tensor(node, f"{node.target}.weight"), t.tensor(node, f"{node.target}.bias")
    else:
        weight, bias = (_operand(t, argument) for argument in arguments)
    last = len(_shape(node.args[0])) - 1
    t.unify(node, weight.get(1), layout.pop(last, None))
    units = weight.get(0)
    t.tie(node, [bias], 0, units)
    name = node.target if module is not None else _owner(node, arguments[0])
    _layer(t, node, "linear", name, units, _tensors(t, node, arguments))
    return layout if units is None else layout | {last: units}


@rule("embedding", nn.Embedding)
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


@rule("layer_norm", "rms_norm", nn.LayerNorm, nn.RMSNorm)
def _layer_norm(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    if module is not None:
        shape, parts = module.normalized_shape, [t.tensor(node, f"{node.target}.{name}") for name in ("weight", "bias")]
    else:
        known = {"normalized_shape": (), "weight": None, "bias": None, "eps": 0, "cudnn_enable": True}
        shape, weight, bias = _arguments(t, node, **known)[:3]
        parts = [_operand(t, weight), _operand(t, bias)]
    shape = (shape,) if isinstance(shape, int) else shape
    first = len(_shape(node.args[0])) - len(shape)
    for axis in range(len(shape)):
        t.tie(node, parts, axis, layout.get(first + axis))
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


@rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout")
@rule(
    "abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "sin", "cos", "erf", "sign", "neg"
)
@rule(
    "floor",
    "ceil",
    "round",
    "clamp",
    "clip",
    "clamp_min",
    "clamp_max",
    "logit",
    "nan_to_num",
    "logical_not",
    "positive",
)
@rule("contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "to", "type_as", "type", "cpu", "alias")
@rule("torchvision.ops.stochastic_depth.stochastic_depth")
def _pass(t: _Tracer, node: fx.Node, module) -> Layout:
    """Element by element: the layout passes through."""
    others = [n for n in node.all_input_nodes if n is not node.args[0] and _is_tensor(n) and math.prod(_shape(n)) > 1]
    if others and spelled(node.target) not in ("to", "type_as"):  # x.to(y) reads no entry of y
        raise t.fail(node, f"its rule takes one tensor, and '{others[0].name}' goes in too")
    return t.layout(node.args[0], split=True)


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
    return layout


def _joined(t: _Tracer, layout: Layout, dims: Sequence[int]) -> None:
    """Leaves permuted, of axes that a reshape has split, only those outside `dims`: what works along these does not
    treat all units alike any more, but whole slices."""
    for key in [key for key in layout if isinstance(key, tuple) and set(key) & set(dims)]:
        labels = layout.pop(key)
        kept = [axis for axis in key if axis not in dims]
        if len(kept) != 1:
            t.fix(labels) if kept else None
            continue
        place = key.index(kept[0])
        units = t.units.new(labels.shape[place])
        t.units.unify(np.moveaxis(labels, place, 0), _parted(units, labels.size // 3 // len(units)))
        layout[kept[0]] = units


SPATIAL = ("MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
PADS = ("ReplicationPad", "ReflectionPad", "ZeroPad", "CircularPad", "ConstantPad")
POOLS = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")


@rule(*(getattr(nn, f"{name}{d}d") for d in (1, 2, 3) for name in (*SPATIAL, *PADS) if hasattr(nn, f"{name}{d}d")))
@rule(*(f"{name}{d}d" for name in POOLS for d in (1, 2, 3)))
def _spatial(t: _Tracer, node: fx.Node, module) -> Layout:
    """Pooling and padding of the last 1, 2 or 3 axes, channel by channel."""
    layout = t.layout(node.args[0])
    name = type(module).__name__ if module is not None else spelled(node.target)
    first = len(_shape(node.args[0])) - int(re.search(r"([123])d", name)[1])
    return _kept(t, layout, [axis for axis in layout if axis >= first])


def _kept(t: _Tracer, layout: Layout, axes: Sequence[int]) -> Layout:
    """The layout without some axes, along which neighbours count: these keep their order."""
    for axis in axes:
        t.fix(layout.pop(axis))
    return layout


@rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, "interpolate", "upsample")
@rule(*(f"upsample_{how}" for how in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d")))
@rule("roll", "flip")
def _resize(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = t.layout(node.args[0])
    dims = _arguments(t, node, shifts=(), dims=())[1] if spelled(node.target) == "roll" else ()
    dims = _arguments(t, node, dims=())[0] if spelled(node.target) == "flip" else dims
    dims = [d % len(_shape(node)) for d in (dims if isinstance(dims, Sequence) else [dims])]
    moved = spelled(node.target) in ("roll", "flip")
    return _kept(t, layout, [axis for axis in layout if (axis in dims if moved else axis > 1)])


@rule("pad", "constant_pad_nd")
def _pad(t: _Tracer, node: fx.Node, module) -> Layout:
    """Padding with a constant: the new entries are alike, units that nothing tells apart."""
    layout, rank = t.layout(node.args[0]), len(_shape(node))
    widths, mode, _ = _arguments(t, node, pad=(), mode="constant", value=None)
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


def _whole(t: _Tracer, node: fx.Node, layout: Layout, axes: range, shape: Sequence[int]) -> Labels | None:
    """Labels of every entry of a run of axes (… sizes …, 3); None if none of them is permuted."""
    keys = [key for key in layout if set(key if isinstance(key, tuple) else [key]) & set(axes)]
    if not keys:
        return None
    if len(keys) > 1:  # one can still be permuted, such as the inputs of a weight with its kernel's axes
        if any(isinstance(key, tuple) for key in keys):
            raise t.fail(node, f"{tuple(shape)} merges permuted axes of which one was split")
        for key in sorted(keys)[1:]:
            t.fix(layout[key])
        keys = [min(keys)]
    own = keys[0] if isinstance(keys[0], tuple) else (keys[0],)
    sizes = [shape[axis] for axis in axes]
    inner = [shape[axis] if axis not in own else 1 for axis in axes]
    parts = math.prod(inner)
    view = [shape[axis] if axis in own else 1 for axis in axes]
    labels = np.broadcast_to(layout[keys[0]].reshape(*view, 3), (*sizes, 3)).copy()
    labels[..., PART] = labels[..., PART] * parts + np.arange(parts).reshape(inner)
    labels[..., PARTS] *= parts
    return labels


def _factored(labels: Labels) -> tuple[int, Labels] | None:
    """(axis, its labels) if units vary along one axis alone, and the others count their parts in order."""
    for axis in range(labels.ndim - 1):
        rest = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1, 3)
        parts = rest.shape[1]
        first = rest[:, :1]
        if (
            (rest[..., UNIT] == first[..., UNIT]).all()
            and (rest[..., PARTS] % parts == 0).all()
            and (rest[..., PART] % parts == np.arange(parts)).all()
            and (rest[..., PART] // parts == first[..., PART] // parts).all()
        ):
            return axis, np.stack([first[:, 0, UNIT], first[:, 0, PART] // parts, first[:, 0, PARTS] // parts], axis=-1)
    return None


@rule(nn.Flatten, nn.Unflatten, "flatten", "unflatten", "reshape", "view", "view_as", "reshape_as", "_unsafe_view")
@rule("squeeze", "unsqueeze")
def _reshape(t: _Tracer, node: fx.Node, module) -> Layout:
    """Axes that merge: those after a permuted axis count the parts of its units, those before it repeat them."""
    source, before, after = t.layout(node.args[0], split=True), _shape(node.args[0]), _shape(node)
    layout: Layout = {}
    runs = _runs(before, after)
    moved = {old[0]: new[0] for old, new in runs if len(old) == len(new) == 1}
    own = {axis: position for position, (old, _) in enumerate(runs) for axis in old}
    for key in [key for key in source if isinstance(key, tuple)]:
        if all(axis in moved for axis in key):
            layout[tuple(moved[axis] for axis in key)] = source.pop(key)
        elif len({own[axis] for axis in key}) > 1:  # some of it merges with what is no part of it, as in depth to space
            _joined(t, source, [axis for axis in key if axis not in moved])
    for old, new in runs:
        labels = _whole(t, node, source, old, before)
        if labels is None:
            continue
        wide = [axis for axis in new if after[axis] > 1]
        labels = labels.reshape(*(after[axis] for axis in wide), 3)
        if len(wide) == 1:
            layout[wide[0]] = labels
        elif factored := _factored(t.units.resolve(labels)):
            layout[wide[factored[0]]] = factored[1]
        else:
            layout[tuple(wide)] = labels
    return layout


@rule("permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint")
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


@rule("getattr")
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


@rule("chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "hsplit")
def _chunk(t: _Tracer, node: fx.Node, module) -> list[Layout]:
    layout, shape = t.layout(node.args[0]), _shape(node.args[0])
    name = "split_size" if "split" in spelled(node.target) else "chunks"
    given = {k: v for k, v in node.kwargs.items() if k in ("dim", "axis")}
    dim = t.value(given.get("dim", given.get("axis", node.args[2] if len(node.args) > 2 else 0))) % len(shape)
    pieces, first = [], 0
    for meta in node.meta["tensor_meta"]:
        piece = dict(layout)
        labels = piece.pop(dim, None)
        size = meta.shape[dim]
        if labels is not None and (part := _sliced(t, labels, slice(first, first + size))) is not None:
            piece[dim] = part
        first += size
        pieces.append(piece)
    if first != shape[dim]:
        raise t.fail(node, f"its rule cannot read its {name}")
    return pieces


@rule("unbind")
def _unbind(t: _Tracer, node: fx.Node, module) -> list[Layout]:
    layout, rank = t.layout(node.args[0], split=True), len(_shape(node.args[0]))
    dim = _arguments(t, node, dim=0)[0] % rank
    return [_selected(t, node, layout, dim, i) for i in range(_shape(node.args[0])[dim])]


def _selected(t: _Tracer, node: fx.Node, layout: Layout, dim: int, index: int) -> Layout:
    """The layout of one entry along an axis, which goes."""
    left: Layout = {}
    for key, labels in layout.items():
        if key == dim:
            _sliced(t, labels, index)
        elif isinstance(key, tuple) and dim in key:
            rest = tuple(axis - (axis > dim) for axis in key if axis != dim)
            left[rest if len(rest) > 1 else rest[0]] = np.take(labels, index, axis=key.index(dim))
        elif isinstance(key, tuple):
            left[tuple(axis - (axis > dim) for axis in key)] = labels
        else:
            left[key - (key > dim)] = labels
    return left


@rule("select")
def _select(t: _Tracer, node: fx.Node, module) -> Layout:
    dim, index = _arguments(t, node, dim=0, index=0)
    layout = t.layout(node.args[0], split=True)
    return _selected(t, node, layout, dim % len(_shape(node.args[0])), index)


@rule("narrow", "slice")
def _narrow(t: _Tracer, node: fx.Node, module) -> Layout:
    layout, shape = t.layout(node.args[0]), _shape(node.args[0])
    if spelled(node.target) == "narrow":
        dim, start, length = _arguments(t, node, dim=0, start=0, length=0)
        part = slice(start, start + length)
    else:
        dim, start, end, step = _arguments(t, node, dim=0, start=None, end=None, step=1)
        part = slice(start, end, step)
    dim %= len(shape)
    if dim in layout and (labels := _sliced(t, layout.pop(dim), part)) is not None:
        layout[dim] = labels
    return layout


@rule("getitem")
def _getitem(t: _Tracer, node: fx.Node, module) -> Layout:
    source, index = node.args[0], t.value(node.args[1])
    if not _is_tensor(node):
        return {}
    if isinstance(source.meta["tensor_meta"], list):
        return t.items(source)[index]
    layout, axis, after = t.layout(source), 0, 0
    index = index if isinstance(index, tuple | list) else (index,)
    named = sum(each is not None and each is not Ellipsis for each in index)
    result: Layout = {}
    steps: list = []
    for each in index:
        steps += [slice(None)] * (len(_shape(source)) - named) if each is Ellipsis else [each]
    steps += [slice(None)] * (len(_shape(source)) - sum(step is not None for step in steps))
    for step in steps:
        if step is None:
            after += 1
            continue
        labels = layout.get(axis)
        axis += 1
        if not isinstance(step, int | slice) or isinstance(step, bool):
            raise t.fail(node, "its rule knows slices and single entries, not a tensor as an index")
        if labels is not None and (part := _sliced(t, labels, step)) is not None:
            result[after] = part
        after += isinstance(step, slice)
    return result


def _parts(t: _Tracer, node: fx.Node) -> tuple[list[Layout], list[tuple[int, ...]]]:
    """The layouts and shapes of a list of tensors given as first argument."""
    parts = node.args[0]
    if isinstance(parts, fx.Node):
        return t.items(parts), [tuple(meta.shape) for meta in parts.meta["tensor_meta"]]
    return [t.layout(part) for part in parts], [_shape(part) for part in parts]


@rule("cat")
def _cat(t: _Tracer, node: fx.Node, module) -> Layout:
    (dim,) = _arguments(t, node, dim=0)
    parts, shapes = _parts(t, node)
    along = dim % len(_shape(node))
    layout: Layout = {}
    for axis in range(len(_shape(node))):
        axes = [part.get(axis) for part in parts]
        if all(labels is None for labels in axes):
            continue
        if axis == along:
            sizes = [shape[axis] for shape in shapes]
            pieces = [
                t.units.new(size, fixed=True) if labels is None else labels
                for labels, size in zip(axes, sizes, strict=True)
            ]
            layout[axis] = np.concatenate(pieces)
            continue
        for other in axes[1:]:
            t.unify(node, axes[0], other)
        if all(labels is not None for labels in axes):
            layout[axis] = axes[0]
    return layout


@rule("stack")
def _stack(t: _Tracer, node: fx.Node, module) -> Layout:
    (dim,) = _arguments(t, node, dim=0)
    parts, shapes = _parts(t, node)
    along = dim % len(_shape(node))
    layout: Layout = {}
    for axis in range(len(shapes[0])):
        axes = [part.get(axis) for part in parts]
        for other in axes[1:]:
            t.unify(node, axes[0], other)
        if all(labels is not None for labels in axes):
            layout[axis + (axis >= along)] = axes[0]
    return layout


@rule("expand", "expand_as", "broadcast_to")
def _expand(t: _Tracer, node: fx.Node, module) -> Layout:
    layout, shape = t.layout(node.args[0]), _shape(node)
    lead = len(shape) - len(_shape(node.args[0]))
    return {axis + lead: labels for axis, labels in layout.items()}


@rule("repeat", "tile")
def _repeat(t: _Tracer, node: fx.Node, module) -> Layout:
    layout, before, after = t.layout(node.args[0]), _shape(node.args[0]), _shape(node)
    lead = len(after) - len(before)
    return {axis + lead: np.tile(x, (after[axis + lead] // before[axis], 1)) for axis, x in layout.items()}


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
        layout[1] = layout[1].reshape(groups, -1, 3).swapaxes(0, 1).reshape(-1, 3)
    return layout


# Several tensors ------------------------------------------------------------------------------------------------------


@rule("add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "fmod", "remainder", "atan2", "lerp")
@rule("addcmul", "addcdiv", "where", "masked_fill", "true_divide", "multiply", "subtract", "divide", "floor_divide")
@rule("gt", "lt", "ge", "le", "eq", "ne", "logical_and", "logical_or", "floordiv", "hypot", "copysign", "mod")
def _elementwise(t: _Tracer, node: fx.Node, module) -> Layout:
    """Arithmetic with broadcasting: axes that meet are tied, an axis of one entry meets nothing."""
    known = {"other": None, "exponent": None, "alpha": 1, "rounding_mode": None, "value": 1, "weight": None}
    _arguments(t, node, **known, tensor1=None, tensor2=None, mask=None, input=None)  # operands may come by keyword
    operands = [n for n in node.all_input_nodes if _is_tensor(n)]
    layouts = [t.layout(operand, split=True) for operand in operands]
    rank = len(_shape(node))
    layout: Layout = {}
    split = {
        key: rank - len(_shape(o))
        for o, own in zip(operands, layouts, strict=True)
        for key in own
        if isinstance(key, tuple)
    }
    for key in {tuple(axis + lead for axis in key) for key, lead in split.items()}:
        _meet(t, node, operands, layouts, key, rank, layout)
    taken = {axis + lead for key, lead in split.items() for axis in key}
    for axis in range(rank):
        if axis in taken:
            continue
        meeting = []
        for operand, own_layout in zip(operands, layouts, strict=True):
            own = axis - rank + len(_shape(operand))
            if own >= 0 and _shape(operand)[own] > 1:
                meeting.append(own_layout.get(own))
        for other in meeting[1:]:
            t.unify(node, meeting[0], other)
        if meeting and all(labels is not None for labels in meeting):
            layout[axis] = meeting[0]
    if len(operands) > 1:
        t.kinds[node] = "post_norm"
    return layout


def _meet(t: _Tracer, node: fx.Node, operands, layouts, key: tuple[int, ...], rank: int, layout: Layout) -> None:
    """Operands that meet on axes which a reshape has split in at least one of them."""
    meeting: list[Labels | None] = []
    for operand, own_layout in zip(operands, layouts, strict=True):
        shape = (1,) * (rank - len(_shape(operand))) + _shape(operand)
        own = {
            tuple(a + rank - len(_shape(operand)) for a in k)
            if isinstance(k, tuple)
            else k + rank - len(_shape(operand)): x
            for k, x in own_layout.items()
        }
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
    meeting = [None if labels is None else labels.reshape(*shape, 3) for labels in meeting]
    for other in meeting[1:]:
        t.unify(node, meeting[0], other)
    if any(labels is None for labels in meeting):
        return
    factored = _factored(t.units.resolve(meeting[0]))
    layout |= {key[factored[0]]: factored[1]} if factored else {key: meeting[0]}


@rule(*sorted(MAKERS))
def _constant(t: _Tracer, node: fx.Node, module) -> Layout:
    """Equal entries: units that nothing tells apart; the batch axis is left alone."""
    shape = _shape(node)
    return {axis: t.units.new(size) for axis, size in enumerate(shape) if size > 1 and (axis or len(shape) == 1)}


@rule("mean", "sum", "amax", "amin", "var", "std", "norm", "logsumexp", "prod", "linalg_vector_norm", "vector_norm")
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
    _joined(t, layout, gone)
    place = {axis: axis if keep else axis - sum(d < axis for d in gone) for axis in range(rank) if axis not in gone}
    return {
        tuple(place[axis] for axis in key) if isinstance(key, tuple) else place[key]: labels
        for key, labels in layout.items()
        if key not in gone
    }


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


@rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(t: _Tracer, node: fx.Node, module) -> Layout:
    return _product(t, node, node.args[0], node.args[1])


@rule("addmm", "baddbmm", "addmv")
def _added_matmul(t: _Tracer, node: fx.Node, module) -> Layout:
    layout = _product(t, node, node.args[1], node.args[2])
    added, rank = t.layout(node.args[0]), len(_shape(node))
    for axis in range(rank):
        own = axis - rank + len(_shape(node.args[0]))
        if own >= 0 and _shape(node.args[0])[own] > 1:
            t.unify(node, added.get(own), layout.get(axis))
    return layout


def _product(t: _Tracer, node: fx.Node, first: fx.Node, second: fx.Node) -> Layout:
    """A product of matrices: what is summed over meets, the batch axes meet, the others pass."""
    a, b = t.layout(first), t.layout(second)
    rank_a, rank_b = len(_shape(first)), len(_shape(second))
    letters = "abcdefghijklmnop"
    batch = letters[: max(rank_a, rank_b, 2) - 2]
    left = [*batch[len(batch) - max(rank_a - 2, 0) :], *("xy" if rank_a > 1 else "y")]
    right = [*batch[len(batch) - max(rank_b - 2, 0) :], *("yz" if rank_b > 1 else "y")]
    out = [*batch, *("x" if rank_a > 1 else ""), *("z" if rank_b > 1 else "")]
    layout = _contract(t, node, [(left, a, _shape(first)), (right, b, _shape(second))], out)
    weights = [n for n in (second, first) if n.op == "get_attr"]
    if weights and layout:
        made = layout.get(len(out) - 1 if weights[0] is second else len(out) - 2)
        if made is not None:
            t.producers.append((_owner(node, weights[0]), made))
    t.kinds[node] = "pre_norm"
    return layout


@rule("einsum")
def _einsum(t: _Tracer, node: fx.Node, module) -> Layout:
    equation, operands = node.args[0], node.args[1:]
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or "." in equation:
        raise t.fail(node, "its rule reads equations of letters without an ellipsis")
    ins, _, out = equation.replace(" ", "").partition("->")
    if "->" not in equation:
        out = "".join(sorted(c for c in set(ins) - {","} if ins.count(c) == 1))
    terms = [(list(term), t.layout(o), _shape(o)) for term, o in zip(ins.split(","), operands, strict=True)]
    layout = _contract(t, node, terms, list(out))
    t.kinds[node] = "pre_norm"
    return layout


def _contract(t: _Tracer, node: fx.Node, terms, out: list[str]) -> Layout:
    """Axes of one letter meet; an axis of one entry that is broadcast meets nothing."""
    met: dict[str, list] = {}
    for letters, layout, shape in terms:
        if len(set(letters)) < len(letters):
            raise t.fail(node, "its rule knows no diagonals")
        for axis, letter in enumerate(letters):
            if shape[axis] > 1:
                met.setdefault(letter, []).append(layout.get(axis))
    for labels in met.values():
        for other in labels[1:]:
            t.unify(node, labels[0], other)
    # An axis that one tensor alone has and that is summed over is seen as a whole.
    return {
        axis: met[letter][0]
        for axis, letter in enumerate(out)
        if letter in met and all(labels is not None for labels in met[letter])
    }
