"""The pairs that checkpoints/ ships, and how each was trained: `python -m lib.study.zoo` trains those that are missing.

Names read model, width, seed: vgg11bn-w0.25-s0. A pair is two consecutive seeds, (0, 1), (2, 3) …
"""

import argparse
import sys

from .. import loaders, models, paths
from ..checks import InputError
from ..models import Recipe, Spec
from .skew import FIRST_HALF, SECOND_HALF, SKEWS, skewed

# How the notebooks train such networks, in so many epochs where they are not told otherwise.
RECIPES = {
    "simplenet": Recipe(epochs=1, batch_size=100, lr=0.02, weight_decay=0.0, augment=False),
    "vgg11": Recipe(epochs=10),
    "resnet20": Recipe(epochs=8, batch_size=250, lr=0.1),
}


def _specs() -> dict[str, tuple[str, Spec]]:
    """{name: (data set, spec)} of every shipped checkpoint, the quickest first."""
    specs: dict[str, tuple[str, Spec]] = {}
    for seed in range(6):
        classes = FIRST_HALF if seed % 2 == 0 else SECOND_HALF
        spec = Spec("simplenet", seed, RECIPES["simplenet"], classes=classes, share=0.05)
        specs[f"simplenet-s{seed}"] = ("mnist", spec)
    for seed in range(2):
        recipe = Recipe(epochs=5, batch_size=100, lr=0.05, augment=False)
        specs[f"mlp-w0.5-s{seed}"] = ("mnist", Spec("mlp", seed, recipe, width=0.5))
        specs[f"mlpln-w0.5-s{seed}"] = ("mnist", Spec("mlp", seed, recipe, width=0.5, norm="layer"))
    adamw = {"optimiser": "adamw", "weight_decay": 0.05, "warmup": 0.1}
    digits = Recipe(epochs=3, batch_size=100, lr=2e-3, augment=False, **adamw)
    letters = Recipe(epochs=6, batch_size=16, lr=3e-3, augment=False, **adamw)
    for seed in range(6):
        specs[f"vit_mnist-s{seed}"] = ("mnist", Spec("vit_mnist", seed, digits))
    for seed in range(4):
        specs[f"gpt-s{seed}"] = ("paradise-lost", Spec("gpt", seed, letters))
    cifar = "cifar10-jpeg"
    vgg, residual = RECIPES["vgg11"], RECIPES["resnet20"]
    for seed in range(6):
        for width in (0.125, 0.25):
            specs[f"vgg11bn-w{width:g}-s{seed}"] = (cifar, Spec("vgg11", seed, vgg, width=width, norm="batch"))
    for seed in range(2):
        # without the statistics of a batch more and smaller steps: with BatchNorm's recipe GroupNorm reaches 58 %
        plain = Recipe(epochs=10, batch_size=125, lr=0.02)
        specs[f"vgg11gn-w0.125-s{seed}"] = (cifar, Spec("vgg11", seed, plain, width=0.125, norm="group"))
        specs[f"vgg11-w0.25-s{seed}"] = (cifar, Spec("vgg11", seed, plain, width=0.25))
        specs[f"resnet20-w0.5-s{seed}"] = (cifar, Spec("resnet20", seed, residual, width=0.5, norm="batch"))
    patches = Recipe(epochs=5, batch_size=100, lr=2e-3, **adamw)
    for seed in range(4):
        specs[f"vit_cifar-s{seed}"] = (cifar, Spec("vit_cifar", seed, patches, held_out=5000))
    # the study's, which hold images out of training: one pair of width 1/2, five of width 1/8 and of each label skew
    for width, seeds in ((0.125, range(10, 20)), (0.5, (10, 11))):
        for seed in seeds:
            spec = Spec("vgg11", seed, vgg, width=width, norm="batch", held_out=5000)
            specs[f"vgg11bn-w{width:g}-s{seed}"] = (cifar, spec)
    for skew in SKEWS:
        for seed in range(10, 20):
            which = seed % 2
            sees = skewed(skew, which, seed - which)
            spec = Spec("vgg11", seed, vgg, width=0.125, norm="batch", held_out=5000, **sees)
            specs[f"vgg11bn-w0.125-{skew}-s{seed}"] = (cifar, spec)
    return specs


SPECS = _specs()


def write_checkpoint(name: str, device: str = "auto", loader: str = "memory") -> None:
    """Trains the shipped checkpoint `name` unless it is there, in half precision, resumable."""
    dataset, spec = SPECS[name]
    models.trained(
        spec,
        models.open_dataset(dataset, spec.model),
        path=paths.CHECKPOINTS / f"{name}.safetensors",
        half=True,
        device=loaders.pick_device(device),
        loader=loader,
        label=name,
    )


def main() -> int:
    """Exit status: 0 done, 2 the input was refused, 130 interrupted."""
    parser = argparse.ArgumentParser(description="Trains the shipped checkpoints that are missing.")
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(SPECS)}; default: all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--loader", default="memory", choices=["memory", "ffcv", "auto"])
    arguments = parser.parse_args()
    try:
        if unknown := set(arguments.names) - set(SPECS):
            raise InputError(f"no shipped checkpoint {', '.join(sorted(unknown))}; accepted: {', '.join(SPECS)}")
        for name in arguments.names or SPECS:
            write_checkpoint(name, arguments.device, arguments.loader)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last whole epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
