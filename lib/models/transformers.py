"""Small transformers: a ViT on images, a GPT on characters. Both are pre-norm, of any depth, width and count of heads.

They hold no dropout, and torch.fx can follow them: no value decides what is computed.
"""

import torch
from torch import nn
from torch.nn import functional as F

SCALE = 0.02  # standard deviation of fresh embeddings, and of every fresh weight of the GPT (Radford et al. 2019)


def stream(d: int, heads: int, width: float) -> int:
    """Units of the residual stream: `d` times a width multiplier > 0, as the nearest multiple of `heads`, one a head at
    least."""
    return heads * max(1, round(d * width / heads))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, causal: bool = False) -> torch.Tensor:
    """Attention in `heads` blocks of the units of q, k and v (N, L, d); `causal`: to no position behind one's own."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention (N, L, d) → (N, L, d), its four linear layers apart: q, k, v and o."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(attend(self.q(x), self.k(x), self.v(x), self.heads))


class ViTBlock(nn.Module):
    """Attention, then two linear layers with GELU between them; each reads a LayerNorm of the stream and adds to it."""

    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.att = Attention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.att(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class ViT(nn.Module):
    """The vision transformer (Dosovitskiy et al. 2021), pre-norm, with a class token and learned positions.

    Images (N, *shape) → logits (N, classes).

    Args:
        width: multiplier of `d` (`stream`).
        shape: (channels, height, width) of an image; `patch` divides height and width.
        patch: pixels along a side of a patch.
        d: units of the residual stream at width 1; each block's hidden layer has 2·d.
        depth: blocks.
        heads: of each block's attention.
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        shape: tuple[int, int, int],
        patch: int,
        d: int,
        depth: int,
        heads: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        d = stream(d, heads, width)
        self.patch = nn.Conv2d(shape[0], d, patch, patch)
        self.cls = nn.Parameter(SCALE * torch.randn(1, 1, d))
        self.pos = nn.Parameter(SCALE * torch.randn(1, 1 + (shape[1] // patch) * (shape[2] // patch), d))
        self.blocks = nn.Sequential(*(ViTBlock(d, heads, 2 * d) for _ in range(depth)))
        self.ln = nn.LayerNorm(d)
        self.head = nn.Linear(d, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.pos
        return self.head(self.ln(self.blocks(x)[:, 0]))


class CausalAttention(nn.Module):
    """Self-attention (N, L, d) → (N, L, d) to no position behind one's own; q, k and v are one linear layer."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(d, 3 * d)
        self.c_proj = nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.c_attn(x).chunk(3, dim=2)
        return self.c_proj(attend(q, k, v, self.heads, causal=True))


class GPTHidden(nn.Module):
    """Two linear layers with GELU between them, the first of 4·d units."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(d, 4 * d)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class GPTBlock(nn.Module):
    """Attention, then the hidden layer; each reads a LayerNorm of the stream and adds to it."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = CausalAttention(d, heads)
        self.mlp = GPTHidden(d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) in small, its weights named as in nanoGPT; linear layers keep their biases but for
    the head.

    Tokens (N, L) int64, L ≤ `length` → logits (N, L, vocabulary) of what follows each.

    Args:
        width: multiplier of `d` (`stream`).
        vocabulary: how many tokens there are.
        length: positions that are learned.
        d: units of the residual stream at width 1.
        depth: blocks.
        heads: of each block's attention.
        tied: the head's weight is the table of the tokens (Press & Wolf 2017).
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        vocabulary: int,
        length: int,
        d: int,
        depth: int,
        heads: int = 4,
        tied: bool = False,
    ) -> None:
        super().__init__()
        d = stream(d, heads, width)
        parts = {"wte": nn.Embedding(vocabulary, d), "wpe": nn.Embedding(length, d)}
        parts |= {"h": nn.Sequential(*(GPTBlock(d, heads) for _ in range(depth))), "ln_f": nn.LayerNorm(d)}
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(d, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # what 2·depth layers add to the stream, it holds at the end: at equal shares, as large as one's own
                nn.init.normal_(parameter, std=SCALE / (2 * depth) ** 0.5 if "c_proj" in name else SCALE)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if tied:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.transformer.wte(tokens) + self.transformer.wpe.weight[: tokens.shape[1]]
        return self.lm_head(self.transformer.ln_f(self.transformer.h(x)))
