"""Images of the command line: of a registered data set, or tensors in a file."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .. import loaders, models
from ..checks import InputError, check_whole, first_line
from .networks import Architecture

ACCEPTED = f"accepted: a data set ({', '.join(loaders.SOURCES)}), or a .npy, .npz, .pt or .safetensors file"
LABELLED = "two tensors, images (N, …) and labels (N,), of one .npz, .pt or .safetensors file"


@dataclass(frozen=True)
class Images:
    """Batches of (images, labels), or of images alone, and what they are in words."""

    batches: list[Any]
    what: str
    dataset: str | None = None


def is_file(text: str) -> bool:
    """Whether --images or --test names a file, not a data set."""
    return text not in (*loaders.SOURCES, "auto") or Path(text).is_file()


def read(
    text: str,
    architecture: Architecture,
    count: int,
    *,
    test: bool = False,
    shape: tuple[int, ...] | None = None,
    classes: Sequence[int] | None = None,
) -> Images:
    """The first `count` (0: all) images of a data set's training or test half, normalised as the architecture's were in
    training, or of a file, as they are.

    Args:
        shape: of one image, for networks of the user's own.
        classes: the test images of these alone, whose labels become their places in it.

    Raises:
        InputError: there is no such file or data set, or it holds something else.
    """
    option = "--test" if test else "--images"
    check_whole("--test-count" if test else "--count", count, 0)
    if is_file(text):
        images, labels = _tensors(Path(text), option)
        what = f"the images in {Path(text).name}"
        if test:
            if labels is None:
                raise InputError(f"--test {text} holds no labels; accepted: {LABELLED}")
            if classes is not None:
                labels = models.places(labels.long(), classes)
                images, labels = images[labels >= 0], labels[labels >= 0]
    else:
        dataset = _dataset(text, architecture, shape)
        if test and classes is not None:
            dataset = models.of_classes(dataset, classes)
        split = dataset.test if test else dataset.train
        split = split.head(count)
        normalise = models.normalisation(architecture.name) if architecture.registered else _normalisation(split)
        what = f"the {'test' if test else 'training'} images of {dataset.name}"
        return Images(list(loaders.MemoryLoader(split, loaders.BATCH, normalise=normalise)), what, dataset.name)
    images = images[:count] if count else images
    if labels is None:
        return Images(loaders.batched(images), what)
    labels = labels[: len(images)]
    return Images(list(zip(images.split(loaders.BATCH), labels.split(loaders.BATCH), strict=True)), what)


def _dataset(name: str, architecture: Architecture, shape: tuple[int, ...] | None) -> loaders.Dataset:
    if architecture.registered:
        return models.open_dataset(name, architecture.name)
    return loaders.load(name, shape=shape)


def _normalisation(split: loaders.Split) -> loaders.Normalisation | None:
    """As of the registered architectures, by the number of channels."""
    if split.is_text:
        return None
    return loaders.UNIT if split.images.shape[1] == 1 else loaders.CIFAR


def _tensors(path: Path, option: str) -> tuple[Tensor, Tensor | None]:
    """Images (N, …) and labels (N,), or None, of a file."""
    try:
        held = _held(path)
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror or error}; {ACCEPTED}") from None
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise InputError(f"{option} {path} cannot be read ({first_line(error)[:100]}); {ACCEPTED}") from None
    if isinstance(held, dict) and len(held) == 1:
        (held,) = held.values()
    try:
        images, labels = loaders.read_batch(held)
    except InputError as error:
        raise InputError(f"{option} {path}: {error}") from None
    if isinstance(images, tuple):
        raise InputError(f"{option} {path} holds {len(images)} inputs an image; accepted: one tensor (N, …)")
    if images.dtype in (torch.uint8, torch.bool):
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError(f"{option} {path} holds {kind}; accepted: numbers as the network takes them, normalised")
    if images.is_floating_point():
        images = images.float()
        if not torch.isfinite(images).all():
            raise InputError(f"{option} {path} holds NaN or Inf; accepted: finite numbers")
    if not len(images):
        raise InputError(f"{option} {path} holds no images; accepted: one or more")
    if labels is not None:
        labels = torch.as_tensor(labels)
        if len(labels) != len(images):
            raise InputError(f"{option} {path} holds {len(images)} images and {len(labels)} labels; accepted: one each")
    return images, labels


def _held(path: Path) -> Any:
    content = path.read_bytes()
    if path.suffix in (".npy", ".npz"):
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    if path.suffix == ".safetensors":
        return safetensors.torch.load(content)
    if path.suffix in (".pt", ".pth"):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    raise ValueError(f"its name ends in {path.suffix or 'nothing'}")
