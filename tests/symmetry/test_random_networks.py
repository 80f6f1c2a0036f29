"""Networks put together at random from what real ones are made of: each traced, proved, and run from its graph."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import symmetry


class Random(nn.Module):
    """A stem, two to seven random pieces on `width` channels, the mean over positions, a linear head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.kinds, self.parts = [], nn.ModuleList()
        width = draw.choice([8, 12, 16])
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        for _ in range(draw.randint(2, 7)):
            kind, part, width = self.piece(draw, width)
            self.kinds.append(kind)
            self.parts.append(part)
        self.head = nn.Linear(width, 3)

    @staticmethod
    def piece(draw: random.Random, width: int) -> tuple[str, nn.Module, int]:
        def conv(inputs, outputs, **options):
            return nn.Conv2d(inputs, outputs, 3, padding=1, **options)

        new, factor = draw.choice([8, 12, 16]), draw.choice([1, 2])
        wide = 3 * width > 96
        made = {
            "layer": lambda: (conv(width, new, bias=draw.random() < 0.5), new),
            "grouped": lambda: (conv(width, 2 * new, groups=2), 2 * new),
            "depthwise": lambda: (conv(width, width * factor, groups=width), width * factor),
            "batch norm": lambda: (nn.BatchNorm2d(width), width),
            "group norm": lambda: (nn.GroupNorm(2, width), width),
            "layer norm": lambda: (nn.LayerNorm(width), width),
            "slopes": lambda: (nn.PReLU(width), width),
            "gated": lambda: (nn.GLU(1), width // 2),
            "squeeze": lambda: (nn.Sequential(nn.Conv2d(width, 3, 1), nn.ReLU(), nn.Conv2d(3, width, 1)), width),
            "residual": lambda: (conv(width, width), width),
            "half": lambda: (conv(width // 2, width // 2), width),
            "concatenated": lambda: (nn.Conv2d(width, 4, 1), width + 4),
            "padded": lambda: (nn.Identity(), width + 4),
            "sliced": lambda: (nn.Identity(), width - 2),
            "to space": lambda: (nn.PixelShuffle(2), width // 4),
        } | {kind: lambda: (nn.Identity(), width) for kind in ("shuffled", "swapped", "stacked", "bent")}
        fits = {"to space": width % 8 == 0, "sliced": width > 6, "gated": width % 4 == 0 and width > 4}
        fits |= dict.fromkeys(("depthwise", "concatenated", "padded"), not wide)
        kind = draw.choice([kind for kind in made if fits.get(kind, True)])
        part, after = made[kind]()
        return kind, part, after

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for kind, part in zip(self.kinds, self.parts, strict=True):
            width = x.shape[1]
            if kind == "bent":
                x = F.silu(x)
            elif kind == "layer norm":
                x = part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif kind == "squeeze":
                x = x * torch.sigmoid(part(x.mean((2, 3), keepdim=True)))
            elif kind == "residual":
                x = x + torch.tanh(part(x))
            elif kind == "half":
                kept, other = x.chunk(2, 1)
                x = torch.cat([kept, torch.tanh(part(other)) + other], 1)
            elif kind == "concatenated":
                x = torch.cat([x, torch.tanh(part(x))], 1)
            elif kind == "padded":
                x = F.pad(x, (0, 0, 0, 0, 1, 3))
            elif kind == "sliced":
                x = x[:, 1:-1]
            elif kind == "shuffled":
                x = x.unflatten(1, (2, width // 2)).transpose(1, 2).flatten(1, 2)
            elif kind == "swapped":
                first, second = x.split(width // 2, 1)
                x = torch.cat([second, first], 1)
            elif kind == "stacked":
                x = torch.stack([x, x.relu()], 2).mean(2)
            else:
                x = part(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*not seen by the outputs")  # norms of what was padded, say
@pytest.mark.parametrize("seeds", [range(first, first + 10) for first in (0, 10, 20, 30)], ids=str)
def test_random_networks_trace_and_prove(seeds):
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Random(seed).eval()
        example = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        groups = symmetry.proved(model, example)
        *_, (_, value) = symmetry.walk(model, groups, example)
        assert torch.allclose(value, model(example), atol=1e-6), model.kinds


def test_their_mutants_are_noticed():
    """Of each network one member, drawn at random, forgotten."""
    tried = 0
    for seed in range(40, 60):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Random(seed).eval()
        example = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        groups = symmetry.trace(model, example)
        unseen = symmetry.prove(model, groups, example).unseen
        members = [
            (name, i) for name, group in groups.items() for i in range(len(group.members)) if len(group.members) > 1
        ]
        if not members:
            continue
        name, i = random.Random(seed).choice(members)
        group = groups[name]
        if any(f"'{name}'" in each for each in unseen):
            continue
        left = tuple(member for j, member in enumerate(group.members) if j != i)
        wrong = symmetry.Groups({**groups.groups, name: symmetry.Group(group.size, left)}, groups.layers, groups.graph)
        tried += 1
        with pytest.raises(symmetry.SymmetryError):
            symmetry.prove(model, wrong, example)
    assert tried > 12
