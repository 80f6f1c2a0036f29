"""Batches of a data set: from memory (`MemoryLoader`) or through FFCV (`ffcv`, imported only when asked for)."""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from ..checks import InputError
from .data import TRANSLATE, Dataset, Normalisation, Split

# Images at a time where nothing is trained. Twice as fast as 500 on two CPU cores (SimpleNet: 0.24 against 0.47 ms an
# image and core), whose activations no longer fit the caches.
BATCH = 250


def batched(images: torch.Tensor | Iterable, size: int = BATCH) -> Iterable:
    """Batches that can be gone over more than once: a tensor (N, …) in pieces of `size`, an iterator as a list."""
    if isinstance(images, torch.Tensor):
        return list(images.split(size))
    return list(images) if isinstance(images, Iterator) else images


class MemoryLoader:
    """Batches of a split that lies on the device as uint8; shuffling and augmentation happen there.

    Yields (images float32 (B, C, H, W) channels_last and normalised, labels int64 (B,)), both on `device`.
    `augment` flips each image left to right with probability ½, then moves it by −4 … 4 pixels in each
    direction, every offset equally likely, with pixel value 0 where nothing is left: FFCV's
    RandomHorizontalFlip and RandomTranslate(padding=4).

    All random numbers of an epoch are drawn from `generator` (on any device; needed for `shuffle` and
    `augment`) when `iter` is called: the generator's state before it determines the epoch, and its state
    after it does not depend on how many batches were taken.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        normalise: Normalisation,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        augment: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ):
        if batch_size < 1:
            raise InputError(f"batch size {batch_size} is not accepted; it must be at least 1")
        if (shuffle or augment) and generator is None:
            raise ValueError("shuffle and augment need a torch.Generator")
        self.device = torch.device(device)
        self.batch_size, self.shuffle, self.augment, self.drop_last = batch_size, shuffle, augment, drop_last
        self.generator = generator
        # (N, H, W, C): a batch gathered from it has the layout that convolutions want
        self._images = split.images.to(self.device).permute(0, 2, 3, 1).contiguous()
        self._labels = split.labels.to(self.device)
        # laid out as one row of pixels, which is twice as fast as broadcasting over three channels
        width, channels = self._images.shape[2:]
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32).expand(channels).repeat(width).to(self.device)
            for values in (normalise.mean, normalise.std)
        )

    def __len__(self) -> int:
        whole, rest = divmod(len(self._labels), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n, g = len(self._labels), self.generator
        order = flips = offsets = None
        if self.shuffle:
            order = torch.randperm(n, generator=g, device=g.device).to(self.device)
        if self.augment:
            flips = torch.randint(2, (n,), generator=g, device=g.device).bool().to(self.device)
            offsets = torch.randint(2 * TRANSLATE + 1, (2, n), generator=g, device=g.device).to(self.device)
        return self._batches(order, flips, offsets)

    def _batches(self, order, flips, offsets) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            here = slice(start, start + self.batch_size)
            if order is None:
                images, labels = self._images[here], self._labels[here].clone()
            else:
                images, labels = (x.index_select(0, order[here]) for x in (self._images, self._labels))
            if flips is not None:
                images = _flip_and_translate(images, flips[here], offsets[:, here])
            rows = images.flatten(2).to(torch.float32).sub_(self._mean).div_(self._std)
            yield rows.view(images.shape).permute(0, 3, 1, 2), labels


def _flip_and_translate(images: torch.Tensor, flips: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Images (B, H, W, C), flips bool (B,), offsets (2, B) in 0 … 8, where 4 leaves an image in place; one
    gather of whole pixels does both."""
    b, h, w, c = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, TRANSLATE, TRANSLATE, TRANSLATE, TRANSLATE))
    height, width = padded.shape[1:3]
    rows = offsets[0, :, None] + torch.arange(h, device=images.device)
    columns = offsets[1, :, None] + torch.arange(w, device=images.device)
    # a flipped image in its symmetric padding is the padded image read from right to left
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    first = torch.arange(0, b * height * width, height * width, device=images.device)
    pixels = (first[:, None] + rows * width)[:, :, None] + columns[:, None, :]
    return padded.view(-1, c).index_select(0, pixels.view(-1)).view(b, h, w, c)


def make_loader(
    dataset: Dataset,
    which: str,
    batch_size: int,
    *,
    loader: str = "memory",
    indices: Sequence[int] | torch.Tensor | None = None,
    **options: Any,
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of a data set's "train" or "test" split, or of its images at `indices`; the options are
    MemoryLoader's.

    `loader`: "memory"; "ffcv", which writes a .beton file into `paths.CACHE` once and yields float16 images
    on CUDA, float32 elsewhere; "auto", which is FFCV on CUDA when it is installed, else memory. Raises
    InputError for another name, and for "ffcv" when FFCV is not installed.
    """
    if loader not in ("memory", "ffcv", "auto"):
        raise InputError(f"unknown loader {loader!r}; accepted: memory, ffcv, auto")
    if which not in ("train", "test"):
        raise ValueError(f"unknown split {which!r}; accepted: train, test")
    split = getattr(dataset, which)
    if loader == "auto":
        on_cuda = torch.device(options.get("device", "cpu")).type == "cuda"
        loader = "ffcv" if on_cuda and importlib.util.find_spec("ffcv") else "memory"
    if loader == "memory":
        return MemoryLoader(split if indices is None else split.subset(indices), batch_size, **options)
    from .ffcv import FFCVLoader

    return FFCVLoader(split, batch_size, name=f"{dataset.name}-{which}", indices=indices, **options)
