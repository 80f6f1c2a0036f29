"""A layer, with the BatchNorm behind it, as one affine map to be solved for."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import InputError

COLUMNS = 512  # of a matrix or of right-hand sides that are worked on at a time


@dataclass(frozen=True)
class Site:
    """One affine map to fit: a layer with the BatchNorm behind it, or a BatchNorm that stands alone.

    `end` is the node whose value is fitted: the norm or, where the layer completes a residual sum, that sum, of which
    `other` is the part already there. `relu` says that a ReLU alone follows, `pool` the window of a max-pooling that
    alone follows that. `smooth` is another activation that alone follows, such as GELU.
    """

    name: str
    node: fx.Node
    layer: nn.Module
    norm: _BatchNorm | None
    end: fx.Node
    other: fx.Node | None
    relu: bool
    pool: tuple[int, int] | None
    smooth: Callable[[Tensor], Tensor] | None = None


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
            self.shape, self.groups = (*shape, 1, 1), getattr(layer, "blocks", 1)
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
        self.size = self.groups * (math.prod(self.shape[1:]) + self.bias)  # numbers in a row, of all groups

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
        return weight.mT.reshape(-1, *self.shape[1:]), bias

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

    def extent(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output on padded inputs."""
        sizes = zip(x.shape[2:], self.dilation, self.shape[2:], self.stride, strict=True)
        return tuple((n - d * (k - 1) - 1) // s + 1 for n, d, k, s in sizes)

    def gather(self, x: Tensor, image: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """im2col of padded inputs at output positions (r,) each: (G, r, p)."""
        images, channels, down, along = x.stride()
        (vertical, horizontal), (below, beside) = self.stride, self.dilation
        view = x.as_strided(
            (len(x), *self.extent(x), self.groups, *self.shape[1:]),
            (images, down * vertical, along * horizontal, self.shape[1] * channels, channels, down * below,
             along * beside),
        )  # fmt: skip
        rows = view[image, i, j].reshape(len(image), self.groups, -1).transpose(0, 1)
        return F.pad(rows, (0, 1), value=1) if self.bias else rows

    def at(self, value: Tensor, image: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Lifted outputs (N, out, H, W) at positions (r,) each: (G, r, o)."""
        return value.permute(0, 2, 3, 1)[image, i, j].unflatten(1, (self.groups, -1)).transpose(0, 1)


def _scale_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def write(site: Site, affine: Affine, rows: Tensor, seen: tuple[Tensor, Tensor] | None) -> None:
    """Puts solved rows into the modules. A BatchNorm gets the mean and variance (out,) of what it will see, and the
    weights with which it then adds nothing to the solution, so that resetting it later changes nothing."""
    weight, bias = affine.split(rows)
    if seen is None:
        site.layer.weight.copy_(weight.reshape(site.layer.weight.shape))
        if bias is not None:
            site.layer.bias.copy_(bias)
        return
    norm = site.layer if site.norm is None else site.norm
    mean, variance = seen
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


class Normal:
    """(HᵀH + R)·step = Hᵀ·missing − R·pull, for inputs H (G, R, p) that come in blocks of rows, factored once.

    R = ridge · mean diag(HᵀH) · I over the weights, tenfold until the factor exists; the last column, where that is a
    `bias`, is not pulled. So inputs times k make weights divided by k, and leave the bias. Where there are fewer rows
    than unknowns it is the dual that is factored: with columns and `missing` less their means if there is a bias,
    step = Hᵀ(HHᵀ + R)⁻¹(missing + H·pull) − pull.

    Products of blocks have the precision of the blocks; their sums, the factor and what is solved with it are float64:
    with a ridge of a thousandth a Gram matrix has a condition that float32 would not survive.
    """

    def __init__(self, ridge: float, bias: bool) -> None:
        self.ridge, self.bias = ridge, bias
        self.gram: Tensor | None = None
        self.factor: Tensor | None = None
        self.held: list[Tensor] = []  # blocks of H, as long as there are fewer rows than unknowns
        self.missing: list[Tensor] = []  # where it is the dual that is solved
        self.cross: Tensor | float = 0.0
        self.left: Tensor | float = 0.0

    def add(self, h: Tensor, missing: Tensor) -> None:
        """A block of rows: before the first step all of H, later the same blocks with what is missing now."""
        self.left = self.left + missing.square().sum(dim=1).double()
        blocks = [(h, missing)]
        if self.dual:
            self.missing.append(missing)
            if self.factor is not None:
                return
            self.held.append(h)
            if sum(block.shape[1] for block in self.held) < h.shape[2]:
                return
            blocks, self.held, self.missing = list(zip(self.held, self.missing, strict=True)), [], []
            self.gram = torch.zeros(len(h), h.shape[2], h.shape[2], dtype=torch.float64, device=h.device)
        for h, missing in blocks:
            if self.factor is None:
                self.gram += h.mT @ h
            self.cross = self.cross + (h.mT @ missing).double()

    @property
    def dual(self) -> bool:
        """Whether there are fewer rows than unknowns, so far."""
        return self.gram is None

    def step(self, pull: Tensor) -> tuple[Tensor, Tensor]:
        """(step (G, p, c), |missing − H·step|² (G, c)), from a pull (G, p, c), whose type the step has, and what was
        added since the last step.

        Raises:
            InputError: H or missing is not finite, or R no longer is.
        """
        if self.factor is None:
            self._begin()
        right, self.missing, self.cross = torch.cat(self.missing, dim=1) if self.dual else self.cross, [], 0.0
        left, self.left = self.left, 0.0
        _check_finite(right)
        solve = self._dual_step if self.dual else self._primal_step
        # A few columns at a time: what is needed on the way is float64, and several times as large.
        step, error = torch.empty_like(pull), torch.empty_like(left)
        parts = zip(*(each.split(COLUMNS, dim=-1) for each in (right, pull, left, step, error)), strict=True)
        for *given, part, missed in parts:
            part[:], missed[:] = solve(*given)
        return step, error

    def _primal_step(self, cross: Tensor, pull: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        exact = pull.double()
        step = self._solved(cross - self.pull * exact)
        # (HᵀH + R)·step is known, and gives what is left without HᵀH
        return step, left - (step * (cross + self.pull * (exact + step))).sum(dim=1)

    def _dual_step(self, missing: Tensor, pull: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        given = pull.clone()
        if self.bias:
            given[:, -1] = 0
        right = missing + torch.cat([h @ given for h in self.held], dim=1)
        inner = self._solved(self._centred(right.double()))
        parts = self._centred(inner).to(missing).split([h.shape[1] for h in self.held], dim=1)
        step = sum(h.mT @ part for h, part in zip(self.held, parts, strict=True)) - given
        if self.bias:
            step[:, -1] = 0
            means = sum(h.sum(dim=1, keepdim=True) for h in self.held) / missing.shape[1]
            step[:, -1:] = missing.mean(dim=1, keepdim=True) - means @ step
        return step, (self.pull * inner).square().sum(dim=1)

    def _centred(self, values: Tensor) -> Tensor:
        return values - values.mean(dim=1, keepdim=True) if self.bias else values

    def _solved(self, right: Tensor) -> Tensor:
        """The factored matrix's inverse times `right`."""
        # not torch.cholesky_solve, which copies the factor
        half = torch.linalg.solve_triangular(self.factor, right, upper=False)
        return torch.linalg.solve_triangular(self.factor.mT, half, upper=True)

    def _products(self) -> Tensor:
        """HHᵀ float64, of centred columns if there is a bias: by pairs of blocks, so that there need be no second copy
        of H, nor of the products."""
        sizes = [h.shape[1] for h in self.held]
        matrix = self.held[0].new_empty(len(self.held[0]), sum(sizes), sum(sizes), dtype=torch.float64)
        places = [part.split(sizes, dim=2) for part in matrix.split(sizes, dim=1)]
        for i, j in itertools.combinations_with_replacement(range(len(sizes)), 2):
            product = self.held[i] @ self.held[j].mT
            places[i][j].copy_(product)
            places[j][i].copy_(product.mT)
        if self.bias:
            matrix -= matrix.mean(dim=1, keepdim=True)
            matrix -= matrix.mean(dim=2, keepdim=True)
        return matrix

    def _begin(self) -> None:
        """Factors what is there by now."""
        matrix = self._products() if self.dual else self.gram
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        sizes = sum(h.square().sum(dim=1).double() for h in self.held) if self.dual else diagonal
        unit = (sizes[:, :-1] if self.bias else sizes).mean(dim=-1)
        _check_finite(matrix)
        # Inputs that are always zero: any pull leaves their weights as they are.
        pull = torch.where(unit > 0, unit, 1.0)[:, None, None].repeat(1, matrix.shape[-1], 1)
        if not self.dual and self.bias:
            pull[:, -1] = 0
        ridge, own = self.ridge, diagonal.clone()
        while torch.isfinite(ridge * pull).all():
            self.pull = ridge * pull
            diagonal.copy_(own + self.pull[:, :, 0])
            if factored(matrix):
                self.factor = matrix
                self.gram = None if self.dual else matrix.new_empty(0)  # it is the factor now
                return
            matrix.copy_(matrix.triu() + matrix.triu(1).mT)
            ridge = max(10 * ridge, 1e-12)
        raise InputError("correction 'least_squares' has no solution with a finite ridge; accepted: ridge ≤ 1")


def factored(matrix: Tensor) -> bool:
    """Whether symmetric matrices (G, n, n) have Cholesky factors, which then stand in their lower triangles. In place:
    what stands above the diagonal stays, and is all that is left of a matrix without a factor."""
    for first in range(0, matrix.shape[-1], COLUMNS):
        here = slice(first, first + COLUMNS)
        panel = matrix[:, first:, here]
        panel -= (matrix[:, first:, :first] @ matrix[:, here, :first].mT).tril_()
        corner, below = panel[:, : panel.shape[-1]], panel[:, panel.shape[-1] :]
        factor, failed = torch.linalg.cholesky_ex(corner)
        if failed.any():
            return False
        corner.copy_(factor + corner.triu(1))
        below.copy_(torch.linalg.solve_triangular(factor.mT, below, upper=True, left=False))
    return True


def _check_finite(values: Tensor) -> None:
    # torch.isfinite would make copies
    if not all(map(math.isfinite, values.aminmax())):
        raise InputError("correction 'least_squares' meets activations that are not finite; accepted: networks without")
