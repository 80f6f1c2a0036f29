"""Data sets as tensors, and how they are normalised."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..checks import InputError

TRANSLATE = 4  # pixels, the reference's RandomTranslate(padding=4)


def _form(x: object) -> str:
    """Type and shape in a word, such as uint8 (60000, 1, 28, 28)."""
    return f"{getattr(x, 'dtype', type(x).__name__)} {tuple(getattr(x, 'shape', ()))}".replace("torch.", "")


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One half of a data set, in file order: `images` uint8 (N, C, H, W), `labels` int64 (N,) ≥ 0; of a text, pieces of
    it as tokens in the place of images, uint8 (N, L), and what follows each token, int64 (N, L).

    Raises:
        InputError: they are anything else.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __repr__(self) -> str:
        return f"Split(images={_form(self.images)}, labels={_form(self.labels)})"

    def __post_init__(self) -> None:
        pair = (self.images, self.labels)
        form = [(isinstance(x, torch.Tensor) and x.dtype, getattr(x, "ndim", None)) for x in pair]
        fits = form == [(torch.uint8, 4), (torch.int64, 1)] and len(self.images) == len(self.labels)
        text = form == [(torch.uint8, 2), (torch.int64, 2)] and self.images.shape == self.labels.shape
        if not (fits or text):
            kinds = " and ".join(map(_form, pair))
            raise InputError(
                f"images and labels {kinds} are refused; accepted: uint8 (N, C, H, W) and int64 (N,), or tokens uint8 "
                "(N, L) and int64 (N, L)"
            )
        if (self.labels < 0).any():
            raise InputError(f"label {int(self.labels.min())} is refused; accepted: 0, 1, 2 …")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_text(self) -> bool:
        """Whether it holds tokens in the place of images."""
        return self.images.dim() == 2

    def head(self, n: int) -> "Split":
        """The first `n` images in file order; 0, or more than there are, means all."""
        if n < 0:
            raise InputError(f"cannot take {n} images; 0 means all, any positive number the first so many")
        return Split(self.images[:n], self.labels[:n]) if 0 < n < len(self) else self

    def subset(self, indices: Sequence[int] | torch.Tensor) -> "Split":
        """The images at `indices` (integers, in the order given; InputError for any other type)."""
        chosen = _integers(indices)
        return Split(self.images[chosen], self.labels[chosen])


def _integers(indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """`indices` as int64 (K,)."""
    chosen = torch.as_tensor(indices)
    if len(chosen) and (chosen.dtype == torch.bool or chosen.is_floating_point()):
        kind = str(chosen.dtype).removeprefix("torch.")
        raise InputError(f"indices of type {kind} are not accepted; accepted: integers, as mask.nonzero()[:, 0] gives")
    return chosen.to(torch.int64)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set under the name that records, tables and figures carry. `sha256` is that of its original
    content, whatever shape the images were given afterwards."""

    name: str
    train: Split
    test: Split
    sha256: str


@dataclass(frozen=True)
class Normalisation:
    """(pixel − mean) / std for each channel, in pixel units 0..255. A single value serves every channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


UNIT = Normalisation((0.0,), (255.0,))
CIFAR = Normalisation((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))


def pick_device(name: str = "auto") -> torch.device:
    """The torch device for "auto" (CUDA, else MPS, else CPU), "cpu", "cuda" (also "cuda:1" …) or "mps".

    Raises InputError for another name and for a device this machine does not have.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in have.items() if there))
    kind, _, number = str(name).partition(":")
    if kind not in have or (number and not number.isdecimal()):
        raise InputError(f"unknown device {name!r}; accepted: auto, cpu, cuda, mps")
    if not have[kind] or (kind == "cuda" and number and int(number) >= torch.cuda.device_count()):
        present = ", ".join(k for k, there in have.items() if there)
        raise InputError(f"device {name!r} is not available on this machine; available: {present}")
    return torch.device(name)


def checksum(*splits: Split) -> str:
    """The sha256 of the images, labels and shapes of these splits, as a hexadecimal string."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.images, split.labels):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
