"""Small transformers of every make: how queries, keys and values are laid out, normed, positioned and shared."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

WORDS, LENGTH = 11, 8
TOKENS = torch.arange(2 * LENGTH).view(2, LENGTH) % WORDS
SEQUENCE = torch.randn(2, LENGTH, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """`layout`: how q, k and v are made and cut into heads; `written`: as matrix products, masked where causal."""

    def __init__(self, d: int, heads: int, layout: str, written: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.layout, self.written, self.causal = heads, layout, written, causal
        if layout == "apart":
            self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))
        else:
            self.qkv = nn.Linear(d, 3 * d)
        self.o = nn.Linear(d, d)
        self.register_buffer("mask", torch.ones(4 * LENGTH, 4 * LENGTH).tril().view(1, 1, 4 * LENGTH, 4 * LENGTH))

    def forward(self, x):
        n, length, d = x.shape
        h = self.heads
        if self.layout == "apart":
            q, k, v = (make(x).view(n, length, h, d // h).transpose(1, 2) for make in (self.q, self.k, self.v))
        elif self.layout == "timm":
            q, k, v = self.qkv(x).reshape(n, length, 3, h, d // h).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout == "split":
            q, k, v = self.qkv(x).split(d, dim=2)
            q, k, v = (t.view(n, length, h, d // h).transpose(1, 2) for t in (q, k, v))
        elif self.layout == "interleaved":
            q, k, v = self.qkv(x).view(n, length, h, 3 * d // h).transpose(1, 2).chunk(3, dim=-1)
        if self.written:
            pattern = q @ k.transpose(-2, -1) / math.sqrt(d // h)
            if self.causal:
                pattern = pattern.masked_fill(self.mask[:, :, :length, :length] == 0, -math.inf)
            y = pattern.softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.o(y.transpose(1, 2).reshape(n, length, d))


class Block(nn.Module):
    def __init__(self, d: int, norm=nn.LayerNorm, layout="apart", written=False, causal=False) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(d), norm(d)
        self.attention = Attention(d, 4, layout, written, causal)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Sequences (N, L, 6), read at a class token or in the mean."""

    def __init__(self, token: bool = False, **options) -> None:
        super().__init__()
        self.embed, self.block, self.norm, self.head = (
            nn.Linear(6, 16),
            Block(16, **options),
            nn.LayerNorm(16),
            nn.Linear(16, 5),
        )
        self.token = nn.Parameter(torch.randn(1, 1, 16)) if token else None

    def forward(self, x):
        x = self.embed(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.block(x))
        return self.head(x[:, 0] if self.token is not None else x.mean(1))


class GPT(nn.Module):
    def __init__(self, tied: bool, norm=nn.LayerNorm) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 16), nn.Embedding(LENGTH, 16)
        self.blocks = nn.ModuleList(Block(16, norm, "split", causal=True) for _ in range(2))
        self.norm, self.head = norm(16), nn.Linear(16, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _rotated(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Llama(nn.Module):
    """RMSNorm, rotary positions, two heads of keys and values for four of queries, SwiGLU."""

    def __init__(self, sharing: str) -> None:
        super().__init__()
        self.sharing = sharing
        self.words, self.norm1, self.norm2, self.norm3 = nn.Embedding(WORDS, 16), *(nn.RMSNorm(16) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(16, size, bias=False) for size in (16, 8, 8))
        self.o, self.gate, self.up = (
            nn.Linear(16, 16, bias=False),
            nn.Linear(16, 24, bias=False),
            nn.Linear(16, 24, bias=False),
        )
        self.down, self.head = nn.Linear(24, 16, bias=False), nn.Linear(16, WORDS, bias=False)
        angles = torch.outer(torch.arange(LENGTH), 100.0 ** -torch.arange(0, 1, 0.5)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens):
        x = self.words(tokens)
        n, length, d = x.shape
        z = self.norm1(x)
        q, k, v = (make(z).view(n, length, -1, 4).transpose(1, 2) for make in (self.q, self.k, self.v))
        q, k = (_rotated(t, self.cos[:length], self.sin[:length]) for t in (q, k))
        if self.sharing == "repeat_interleave":
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        elif self.sharing == "expand":
            k, v = (t[:, :, None].expand(n, 2, 2, length, 4).reshape(n, 4, length, 4) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.sharing == "enable_gqa")
        x = x + self.o(y.transpose(1, 2).reshape(n, length, d))
        x = x + self.down(F.silu(self.gate(self.norm2(x))) * self.up(self.norm2(x)))
        return self.head(self.norm3(x))


class Torch(nn.Module):
    """torch's own attention or encoder, on sequences (N, L, 6)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(6, 16), layer, nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x)
        return self.head(
            x + self.layer(x, x, x, need_weights=False)[0]
            if isinstance(self.layer, nn.MultiheadAttention)
            else self.layer(x)
        )


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first, activation="gelu")
    return Torch(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def _swin(**options) -> nn.Module:
    return SwinTransformer([4, 4], 8, [2, 2], [2, 2], [2, 2], num_classes=5, **options)


T, S, INNER = TOKENS, SEQUENCE, "invertible"
# {name: (constructor, example, kind of the stream, kind inside heads)}
NETWORKS = {
    **{
        f"{layout}, {'written out' if written else 'fused'}": (
            lambda layout=layout, written=written: Encoder(layout=layout, written=written, causal=written),
            S, "centred", INNER,
        )
        for layout in ("apart", "timm", "split", "interleaved") for written in (False, True)
    },
    "class token": (lambda: Encoder(token=True, layout="timm"), S, "centred", INNER),
    "MultiheadAttention": (lambda: Torch(nn.MultiheadAttention(16, 4, batch_first=True)), S, "invertible", INNER),
    "MultiheadAttention, length first": (lambda: Torch(nn.MultiheadAttention(16, 4)), S, "invertible", INNER),
    "TransformerEncoder": (lambda: _encoder(True), S, "permutation", INNER),
    "TransformerEncoder, norms behind": (lambda: _encoder(False), S, "permutation", INNER),
    "GPT": (lambda: GPT(False), T, "centred", INNER),
    "GPT, tied": (lambda: GPT(True), T, "permutation", INNER),
    "GPT, RMSNorm": (lambda: GPT(False, nn.RMSNorm), T, "orthogonal", INNER),
    "GPT, tied, RMSNorm": (lambda: GPT(True, nn.RMSNorm), T, "permutation", INNER),
    **{
        f"Llama, {how}": (lambda how=how: Llama(how), T, "orthogonal", INNER)
        for how in ("repeat_interleave", "expand", "enable_gqa")
    },
    "torchvision's ViT": (lambda: VisionTransformer(32, 8, 2, 4, 16, 24, num_classes=5), IMAGES, "centred", INNER),
    "torchvision's Swin": (_swin, IMAGES, "centred", INNER),
    "torchvision's Swin V2": (
        lambda: _swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2), IMAGES, "permutation", INNER,
    ),
}  # fmt: skip


def build(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """A network in evaluation mode with every gain and bias away from 1 and 0, and its example."""
    torch.manual_seed(seed)
    make, example = NETWORKS[name][:2]
    network = make().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return network, example
