"""A network with other numbers of units, some layers in blocks that do not meet: a module of the same class."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..checks import InputError

# How many heads a module of attention has, under the names that it goes by.
HEADS = ("heads", "num_heads", "n_heads", "n_head", "num_attention_heads")


class BlockLinear(nn.Linear):
    """A linear layer in `blocks` that do not meet, as a grouped convolution is: (…, in) → (…, out), `weight`
    (out, in / blocks)."""

    def __init__(
        self,
        blocks: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features // blocks, out_features, bias, device, dtype)
        self.in_features, self.blocks = in_features, blocks

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.unflatten(0, (self.blocks, -1))
        y = torch.einsum("...bi,boi->...bo", x.unflatten(-1, (self.blocks, -1)), weight).flatten(-2)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blocks={self.blocks}"


class BlockLayerNorm(nn.LayerNorm):
    """A LayerNorm of each of `blocks` parts of the last axis."""

    def __init__(self, blocks: int, features: int, eps: float, affine: bool, bias: bool) -> None:
        super().__init__(features, eps, affine, bias)
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.blocks, -1))
        y = F.layer_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blocks={self.blocks}"


def resized(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    blocks: Mapping[str, int] | None = None,
    heads: Mapping[str, int] | None = None,
) -> nn.Module:
    """A copy of `model`, on its device and of its type, whose tensors have other shapes; those that change are zeros.

    Args:
        shapes: {name in the state dict: shape} of what changes, at least.
        blocks: {module: n}: its units stand in n blocks that do not meet. Convolutions become grouped, linear layers
            `BlockLinear`, LayerNorms `BlockLayerNorm`, GroupNorms have n times the groups.
        heads: {module of attention: number of its heads}.

    Raises:
        InputError: a module of a kind that is not known here has such tensors.
    """
    blocks, heads = blocks or {}, heads or {}
    new = copy.deepcopy(model)
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    changed = {name: tuple(shape) for name, shape in shapes.items() if own[name] != tuple(shape)}
    for name, module in list(new.named_modules()):
        tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        prefix = f"{name}." if name else ""
        here = {key: changed[prefix + key] for key in tensors if prefix + key in changed}
        if here or name in blocks:
            sized = _sized(module, name, here, blocks.get(name, 1))
            if sized is not module:
                sized.train(module.training)
                new.set_submodule(name, sized)
        if name in heads:
            (attribute,) = [attribute for attribute in HEADS if isinstance(getattr(module, attribute, None), int)]
            setattr(module, attribute, heads[name])
    return new


def can_resize(module: nn.Module) -> bool:
    """Whether `resized` knows this kind of module; of others it changes the tensors that are their own."""
    if isinstance(module, _ConvTransposeNd):
        return False
    known = (_ConvNd, _BatchNorm, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.PReLU)
    # a module of one's own may hold tensors; whether it counts on their sizes shows where it runs
    return isinstance(module, known) or not type(module).__module__.startswith("torch.")


def _sized(module: nn.Module, name: str, shapes: Mapping[str, tuple[int, ...]], blocks: int) -> nn.Module:
    if not can_resize(module):
        raise InputError(f"{name or 'the network'} is a {type(module).__name__}, which cannot have another size")
    sized, weight = module, getattr(module, "weight", None)
    shape = shapes.get("weight", () if weight is None else tuple(weight.shape))
    if isinstance(module, _ConvNd):
        depthwise = module.groups > 1 and module.groups == module.out_channels and weight.shape[1] == 1
        module.groups = shape[0] if depthwise else module.groups * blocks
        module.in_channels, module.out_channels = shape[1] * module.groups, shape[0]
    elif isinstance(module, nn.Linear):
        options = {"bias": module.bias is not None, "device": weight.device, "dtype": weight.dtype}
        if blocks > 1:
            sized = BlockLinear(blocks, shape[1] * blocks, shape[0], **options)
        else:
            module.in_features, module.out_features = shape[1], shape[0]
    elif isinstance(module, nn.LayerNorm):
        affine, bias = weight is not None, getattr(module, "bias", None) is not None
        features = shape or tuple(size * blocks for size in module.normalized_shape)
        if blocks > 1:
            sized = BlockLayerNorm(blocks, features[-1], module.eps, affine, bias)
        module.normalized_shape = tuple(features)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups *= blocks
        module.num_channels = shape[0] if shape else module.num_channels * blocks
    elif isinstance(module, _BatchNorm):
        module.num_features = shape[0] if shape else next(iter(shapes.values()))[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    for key, size in shapes.items():
        old = getattr(module, key)
        value = old.new_zeros(size)
        if isinstance(old, nn.Parameter):
            value = nn.Parameter(value, requires_grad=old.requires_grad)
        setattr(sized, key, value)
    return sized
