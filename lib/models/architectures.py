"""The architectures of the experiments, each a plain nn.Module whose state-dict keys are those of the published code.

Every network takes images (N, C, H, W) float32 and returns logits (N, classes), or tokens (N, L) int64 and returns
logits (N, L, classes). `build` makes one by name.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from .. import loaders
from ..checks import InputError
from .transformers import GPT, ViT

VGG_CHANNELS = {
    "vgg11": (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    "vgg13": (64, 64, "pool", 128, 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    "vgg16": (64, 64, "pool", 128, 128, "pool", *[256] * 3, "pool", *[512] * 3, "pool", *[512] * 3, "pool"),
    "vgg19": (64, 64, "pool", 128, 128, "pool", *[256] * 4, "pool", *[512] * 4, "pool", *[512] * 4, "pool"),
}


# Groups of a GroupNorm. Channels may change places within a group alone, so there are few; 4 divide every layer of the
# widths 1/16, 1/8, 1/4 …, and at 1/8 they are as large as the usual 32 groups at width 1. Elsewhere a divisor of 4.
GROUPS = 4


def scaled(channels: int, width: float) -> int:
    """`channels` times a width multiplier > 0, rounded, at least 1."""
    return max(1, round(channels * width))


class SimpleNet(nn.Module):
    """The bias-free MNIST network of pygmtools' model-fusion example (Liu et al., ICML 2022).

    Images (N, 1, 28, 28) → logits (N, classes). No ReLU stands between the two linear layers, as published; the
    published width is 1.
    """

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        first, second, third = (scaled(units, width) for units in (32, 64, 32))
        self.conv1 = nn.Conv2d(1, first, 5, padding=1, padding_mode="replicate", bias=False)
        self.conv2 = nn.Conv2d(first, second, 5, padding=1, padding_mode="replicate", bias=False)
        self.relu = nn.ReLU()
        self.max_pool = nn.MaxPool2d(2, padding=1)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(second * 7 * 7, third, bias=False)
        self.fc2 = nn.Linear(third, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.max_pool(self.relu(self.conv1(x)))
        x = self.max_pool(self.relu(self.conv2(x)))
        return self.fc2(self.fc1(self.flatten(x)))


class VGG(nn.Module):
    """VGG for 32×32 images (Simonyan & Zisserman 2015; the CIFAR variant with one linear layer).

    Images (N, 3, 32, 32) → logits (N, classes). `norm` is None, "batch" or "group". Convolution, norm, ReLU and pool
    share one Sequential, so keys read features.N.* and classifier.* as in the REPAIR notebooks. Without norm
    convolutions start from He et al. 2015 (fan in, normal): from PyTorch's default, whose variance is a sixth of that,
    the signal dies on its way through eight layers and training does not start.
    """

    def __init__(self, name: str = "vgg11", width: float = 1.0, norm: str | None = "batch", classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in VGG_CHANNELS[name]:
            if entry == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            out = scaled(entry, width)
            layers.append(nn.Conv2d(channels, out, 3, padding=1))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(out))
            elif norm == "group":
                layers.append(nn.GroupNorm(math.gcd(GROUPS, out), out))
            else:
                nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
            layers.append(nn.ReLU(inplace=True))
            channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class MLP(nn.Module):
    """`depth` hidden layers of 512·width ReLU units; `norm`, None, "batch" or "layer", stands behind each linear one.

    Images (N, 1, 28, 28) → logits (N, classes).
    """

    def __init__(self, width: float = 1.0, norm: str | None = None, depth: int = 3, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        features, hidden = 28 * 28, scaled(512, width)
        for _ in range(depth):
            layers.append(nn.Linear(features, hidden))
            if norm == "batch":
                layers.append(nn.BatchNorm1d(hidden))
            elif norm == "layer":
                layers.append(nn.LayerNorm(hidden))
            layers.append(nn.ReLU())
            features = hidden
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class LeNet(nn.Module):
    """The small CNN of federated learning on CIFAR-10 (LeNet-5, LeCun et al. 1998, for three colours; the one of
    Flower's tutorials): 6 and 16 filters of 5 × 5, then 120 and 84 units, all times `width`.

    Images (N, 3, 32, 32) → logits (N, 10).
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second, third, fourth = (scaled(units, width) for units in (6, 16, 120, 84))
        self.conv1 = nn.Conv2d(3, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(second * 5 * 5, third)
        self.fc2 = nn.Linear(third, fourth)
        self.fc3 = nn.Linear(fourth, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(self.relu(self.fc2(x)))


class Block(nn.Module):
    """The basic residual block, with a projection where the shape changes (option B of He et al. 2016)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.shortcut(x))


class ResNet20(nn.Module):
    """The CIFAR ResNet of He et al. 2016: three stages of three blocks, 16·width channels in the first.

    Images (N, 3, 32, 32) → logits (N, classes). BatchNorm throughout.
    """

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        stem, *stages = (scaled(c, width) for c in (16, 16, 32, 64))
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        channels = stem
        for number, out in enumerate(stages, start=1):
            blocks = [Block(channels if i == 0 else out, out, 2 if i == 0 and number > 1 else 1) for i in range(3)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            channels = out
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class Architecture(NamedTuple):
    """A constructor, the norms it accepts, the shape of one input, (channels, height, width) of an image or (length,)
    of a text, whether it is trained on augmented images, and how many tokens there are (0: it takes images)."""

    constructor: Callable[..., nn.Module]
    norms: tuple[str | None, ...]
    shape: tuple[int, ...]
    augment: bool = False
    vocabulary: int = 0


def _gpt(vocabulary: int, length: int, **options) -> Architecture:
    made = partial(GPT, vocabulary=vocabulary, length=length, **options)
    return Architecture(made, (None,), (length,), vocabulary=vocabulary)


def _vit(shape: tuple[int, int, int], augment: bool, **options) -> Architecture:
    return Architecture(partial(ViT, shape=shape, **options), (None,), shape, augment)


ARCHITECTURES = {
    "simplenet": Architecture(SimpleNet, (None,), (1, 28, 28)),
    "mlp": Architecture(MLP, (None, "batch", "layer"), (1, 28, 28)),
    "lenet": Architecture(LeNet, (None,), (3, 32, 32)),
    "resnet20": Architecture(ResNet20, ("batch",), (3, 32, 32), augment=True),
    **{name: Architecture(VGG, (None, "batch", "group"), (3, 32, 32), augment=True) for name in VGG_CHANNELS},
    "vit_mnist": _vit((1, 28, 28), augment=False, patch=7, d=64, depth=3),
    "vit_cifar": _vit((3, 32, 32), augment=True, patch=8, d=96, depth=4),
    "gpt": _gpt(len(loaders.CHARACTERS), loaders.WINDOW, d=64, depth=4),
}


def build(name: str, *, width: float = 1.0, norm: str | None = None, seed: int | None = None, **options) -> nn.Module:
    """A freshly initialised network by name, in evaluation mode, channels_last.

    Args:
        name: one of `ARCHITECTURES`.
        width: multiplier > 0 of every hidden layer's units.
        norm: None, "batch", "layer" or "group", as far as the architecture has it.
        seed: of the initialisation (PyTorch's default one); the global generator is left as it was.
        options: further arguments of the constructor, such as the MLP's `depth`.

    Raises:
        InputError: unknown name, width ≤ 0, or a norm or option the architecture does not have.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"unknown model '{name}'; accepted: {', '.join(ARCHITECTURES)}")
    constructor, norms = ARCHITECTURES[name][:2]
    if width <= 0:
        raise InputError(f"width {width} is not positive; accepted: any multiplier > 0, such as 0.25, 1, 2")
    if norm not in norms:
        raise InputError(f"{name} has no norm '{norm}'; accepted: {', '.join(str(n) for n in norms)}")
    available = inspect.signature(constructor).parameters
    given = {"name": name, "width": width, "norm": norm}
    options |= {key: value for key, value in given.items() if key in available}
    if unknown := options.keys() - available.keys():
        raise InputError(f"{name} has no option {', '.join(sorted(unknown))}; accepted: {', '.join(available)}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)
        model = constructor(**options)
    return model.eval().to(memory_format=torch.channels_last)


def example(name: str, batch: int = 2) -> torch.Tensor:
    """A batch of fixed random images, float32 (batch, C, H, W), or tokens, int64 (batch, L), of the shape the network
    takes."""
    generator = torch.Generator().manual_seed(0)
    _, _, shape, _, vocabulary = ARCHITECTURES[name]
    if vocabulary:
        return torch.randint(vocabulary, (batch, *shape), generator=generator)
    return torch.randn(batch, *shape, generator=generator)
