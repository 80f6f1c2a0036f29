"""A layer, with the BatchNorm behind it, as one affine map to be solved for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import InputError

COLUMNS = 2**27  # bytes of im2col that exist at a time


@dataclass(frozen=True)
class Site:
    """One affine map to fit: a layer with the BatchNorm behind it, or a BatchNorm that stands alone.

    `end` is the node whose value is fitted: the norm or, where the layer completes a residual sum, that sum, of which
    `other` is the part already there. `relu` says that a ReLU alone follows, `pool` the window of a max-pooling that
    alone follows that.
    """

    name: str
    node: fx.Node
    layer: nn.Module
    norm: _BatchNorm | None
    end: fx.Node
    other: fx.Node | None
    relu: bool
    pool: tuple[int, int] | None


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """What to compute with where weights or values are of this floating type: half precision is too coarse for sums."""
    return torch.promote_types(dtype, torch.float32)


class Affine:
    """A layer as a convolution without padding: `weight` (G, p, o) float64 of G groups with p inputs and o outputs
    each, the bias as the last of the p rows where there is one. `lift` and `inputs` bring activations into its form, in
    float32 where they are of half precision."""

    def __init__(self, site: Site) -> None:
        layer, self.layer = site.layer, site.layer
        self.bias = site.norm is not None or layer.bias is not None
        self.stride = self.dilation = (1, 1)
        self.groups, self.padding, self.mode = 1, (0, 0, 0, 0), "constant"
        shape = tuple(layer.weight.shape)
        if isinstance(layer, _BatchNorm):
            self.shape, self.groups = (shape[0], 1, 1, 1), shape[0]
        elif isinstance(layer, nn.Linear):
            self.shape = (*shape, 1, 1)
        else:
            lead = (1,) * (2 - len(layer.kernel_size))
            self.shape = (*shape[:2], *lead, *shape[2:])
            self.stride, self.dilation, self.groups = (
                (*lead, *layer.stride),
                (*lead, *layer.dilation),
                layer.groups,
            )
            self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            if layer.padding == "same":
                around = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
                sides = [(total // 2, total - total // 2) for total in around]
            else:
                sides = [(p, p) for p in ([0] * len(layer.stride) if layer.padding == "valid" else layer.padding)]
            sides = [(0, 0)] * len(lead) + sides
            self.padding = (*sides[1], *sides[0])  # F.pad begins with the last axis

    def lift(self, x: Tensor) -> Tensor:
        """Any value at this layer as (N, C, H, W)."""
        x = x.to(at_least_float32(x.dtype))
        if isinstance(self.layer, nn.Linear):
            return x.reshape(-1, x.shape[-1], 1, 1)
        return x[:, :, None, None] if x.dim() == 2 else x.unsqueeze(2) if x.dim() == 3 else x

    def lower(self, y: Tensor, x: Tensor) -> Tensor:
        """Lifted outputs (N, C, H, W) in the form that the layer gives them for unlifted inputs `x`."""
        y = y.to(x.dtype)
        if isinstance(self.layer, nn.Linear):
            return y.reshape(*x.shape[:-1], -1)
        return y.squeeze(2) if x.dim() == 3 else y

    def inputs(self, x: Tensor) -> Tensor:
        """Lifted and padded."""
        x = self.lift(x)
        return F.pad(x, self.padding, self.mode) if any(self.padding) else x

    def rows(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(G, p, o) float64 from a weight of the layer's own shape and a bias (out,)."""
        rows = weight.double().reshape(self.groups, self.shape[0] // self.groups, -1).mT
        return torch.cat([rows, bias.double().reshape(self.groups, 1, -1)], dim=1) if self.bias else rows

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(weight (out, in / G, kh, kw), bias (out,) or None) float64 from (G, p, o)."""
        weight, bias = (rows[:, :-1], rows[:, -1].reshape(-1)) if self.bias else (rows, None)
        return weight.mT.reshape(self.shape), bias

    def of(self, layer: nn.Module, norm: _BatchNorm | None) -> Tensor:
        """The rows (G, p, o) of one parent's layer, its BatchNorm folded in."""
        if isinstance(layer, _BatchNorm):
            scale, shift = _scale_shift(layer)
            return self.rows(scale, shift)
        weight, bias = layer.weight.double(), layer.bias
        if norm is not None:
            scale, shift = _scale_shift(norm)
            weight = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
            bias = shift if bias is None else shift + scale * bias.double()
        return self.rows(weight, bias)

    def predict(self, rows: Tensor, x: Tensor) -> Tensor:
        """The layer's output (N, out, H, W) on padded inputs."""
        weight, bias = self.split(rows)
        bias = None if bias is None else bias.to(x)
        return F.conv2d(x, weight.to(x), bias, self.stride, 0, self.dilation, self.groups)

    def columns(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """im2col of padded inputs in parts of bounded size: (which images, h (G, p, observations))."""
        kernel = self.shape[2:]
        size = self.shape[1] * kernel[0] * kernel[1]
        extents = zip(x.shape[2:], self.dilation, kernel, self.stride, strict=True)
        positions = math.prod((n - d * (k - 1) - 1) // s + 1 for n, d, k, s in extents)
        step = max(1, COLUMNS // (self.groups * size * positions * x.element_size()))
        for first in range(0, len(x), step):
            part = slice(first, first + step)
            columns = F.unfold(x[part], kernel, self.dilation, 0, self.stride)
            columns = columns.unflatten(1, (self.groups, size)).permute(1, 2, 0, 3)
            yield part, columns.flatten(2)

    def cross(self, x: Tensor, residual: Tensor) -> Tensor:
        """Σ h·rᵀ (G, p, o) float64, r (N, out, H, W)."""
        if self.stride == (1, 1):  # a convolution's weight gradient: no im2col
            weight = nn.grad.conv2d_weight(x, self.shape, residual, 1, 0, self.dilation, self.groups)
        else:  # there oneDNN crashes on some channels_last shapes (torch 2.14)
            weight = 0
            for part, columns in self.columns(x):
                r = residual[part].flatten(2).unflatten(1, (self.groups, -1)).permute(1, 2, 0, 3).flatten(2)
                weight = weight + (r @ columns.mT).double()
        return self.rows(weight, residual.sum(dim=(0, 2, 3)))

    def gram(self, x: Tensor) -> Tensor:
        """Σ h·hᵀ (G, p, p) float64 of padded inputs."""
        size = math.prod(self.shape[1:])
        total = x.new_zeros(self.groups, size + self.bias, size + self.bias, dtype=torch.float64)
        for _, columns in self.columns(x):
            total[:, :size, :size] += columns @ columns.mT
            if self.bias:
                total[:, :size, size] += columns.sum(dim=-1)
                total[:, size, size] += columns.shape[-1]
        if self.bias:
            total[:, size, :size] = total[:, :size, size]
        return total


def _scale_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def write(site: Site, affine: Affine, rows: Tensor, gram: Tensor) -> None:
    """Puts solved rows into the modules. A BatchNorm gets the statistics of what it will see, and the weights with
    which it then adds nothing to the solution, so that resetting it later changes nothing."""
    weight, bias = affine.split(rows)
    if site.norm is None and not isinstance(site.layer, _BatchNorm):
        site.layer.weight.copy_(weight.reshape(site.layer.weight.shape))
        if bias is not None:
            site.layer.bias.copy_(bias)
        return
    norm = site.layer if site.norm is None else site.norm
    count = gram[:, -1:, -1:]
    # A BatchNorm that stands alone sees h itself, any other what its layer makes of h.
    seen = rows[:, :-1] if site.norm is not None else torch.ones_like(rows[:, :-1])
    mean = (gram[:, -1:, :-1] @ seen / count).reshape(-1)
    square = ((seen * (gram[:, :-1, :-1] @ seen)).sum(dim=1) / count[:, 0]).reshape(-1)
    variance = (square - mean**2).clamp_(min=0)
    std = torch.sqrt(variance + norm.eps)
    norm.running_var.copy_(variance)
    if site.norm is None:
        norm.running_mean.copy_(mean)
        norm.weight.copy_(weight.reshape(-1) * std)
        norm.bias.copy_(bias + weight.reshape(-1) * mean)
        return
    site.layer.weight.copy_(weight.reshape(site.layer.weight.shape))
    norm.weight.copy_(std)
    norm.bias.copy_(mean + bias)
    if site.layer.bias is not None:
        site.layer.bias.copy_(bias)
        mean = mean + bias
    norm.running_mean.copy_(mean)


def solve(gram: Tensor, cross: Tensor, pull: Tensor, ridge: float, bias: bool) -> Tensor:
    """(G + R)⁻¹ (cross − R·pull) by Cholesky; R grows tenfold until it exists.

    R = ridge · mean diag(G) · I over the weights; the last row, where that is a `bias`, is not pulled. So inputs times
    k make weights divided by k, and leave the bias.

    Raises:
        InputError: G or the right side is not finite, or R no longer is.
    """
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise InputError("correction 'least_squares' meets activations that are not finite; accepted: networks without")
    unit = gram.diagonal(dim1=-2, dim2=-1).clone()
    weights = unit[:, :-1] if bias else unit
    weights[:] = weights.mean(dim=-1, keepdim=True)
    unit[unit <= 0] = 1  # inputs that are always zero: any pull leaves their weights as they are
    if bias:
        unit[:, -1] = 0
    while torch.isfinite(ridge * unit).all():
        factor, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge * unit))
        if not failed.any():
            return torch.cholesky_solve(cross - ridge * unit[:, :, None] * pull, factor)
        ridge = max(10 * ridge, 1e-12)
    raise InputError("correction 'least_squares' has no solution with a finite ridge; accepted: ridge ≤ 1")
