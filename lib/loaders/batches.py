"""Batches of a data set: from memory (`MemoryLoader`) or through FFCV (`ffcv`, imported only when asked for)."""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..checks import InputError
from .data import TRANSLATE, UNIT, Dataset, Normalisation, Split

# Images at a time where nothing is trained. Twice as fast as 500 on two CPU cores (SimpleNet: 0.24 against 0.47 ms an
# image and core), whose activations no longer fit the caches.
BATCH = 250


# What a network takes at once: a tensor (N, …), or a tuple of them where it has several inputs.
Images = torch.Tensor | tuple[torch.Tensor, ...]

# Under which a batch that is a mapping holds images and labels.
IMAGES = ("image", "images", "x", "input", "inputs", "pixel_values", "data")
LABELS = ("label", "labels", "target", "targets", "y")

BATCHES = "a tensor (N, …), or a list or loader of batches: images (B, …), (images, labels), {'image': …, 'label': …}"


def batched(images: torch.Tensor | np.ndarray | Iterable, size: int = BATCH) -> Iterable:
    """Batches that can be gone over more than once: a tensor (N, …) or a pair of all images and their labels (N,) in
    pieces of `size`, an iterator as a list, any other iterable as it is.

    Raises:
        InputError: `images` is none of them, or a Dataset of single images.
    """
    if isinstance(images, torch.Tensor | np.ndarray):
        return list(_tensor(images).split(size))
    if _is_pair(images):
        return list(zip(*(_tensor(part).split(size) for part in images), strict=True))
    single = isinstance(images, torch.utils.data.Dataset) and not isinstance(images, torch.utils.data.IterableDataset)
    if single or isinstance(images, str | Mapping) or not isinstance(images, Iterable):
        hint = "; DataLoader(dataset, batch_size) makes batches of it" if single else ""
        raise InputError(f"images are given as {type(images).__name__}; accepted: {BATCHES}{hint}")
    return list(images) if isinstance(images, Iterator) else images


def _is_pair(images: Any) -> bool:
    """Whether it is (images, labels), not two batches of images, of which one would be whole numbers (N,)."""
    if not isinstance(images, tuple | list) or [isinstance(x, torch.Tensor | np.ndarray) for x in images] != [True] * 2:
        return False
    first, second = map(_tensor, images)
    whole = not second.is_floating_point() and not second.is_complex()
    return whole and second.dim() == 1 < first.dim() and len(first) == len(second)


def read_batch(batch: Any) -> tuple[Images, Any]:
    """(images, labels) of a batch: a tensor or array (N, …) of images alone (labels None), a tuple or list (images,
    labels, …) of which no more is read, or a mapping that holds them under one of the names `IMAGES` and `LABELS`.

    Images are a tensor, or a tuple of tensors where a tuple or list stands in their place (a network of several
    inputs). Labels are left as they are: `classes` reads them.

    Raises:
        InputError: it is none of these, or a single image.
    """
    images, labels = batch, None
    if isinstance(batch, Mapping):
        images, labels = (next((batch[n] for n in names if n in batch), None) for names in (IMAGES, LABELS))
        if images is None:
            raise InputError(
                f"a batch has no images but {', '.join(map(str, batch)) or 'nothing'}; accepted: under one of "
                f"{', '.join(IMAGES)}"
            )
    elif isinstance(batch, tuple | list) and batch:
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    several = isinstance(images, tuple | list)
    parts = tuple(images) if several else (images,)
    if not parts or not all(isinstance(part, torch.Tensor | np.ndarray) for part in parts):
        raise InputError(f"a batch is given as {type(batch).__name__} without a tensor of images; accepted: {BATCHES}")
    tensors = tuple(map(_tensor, parts))
    single = any(t.dim() < 1 + t.is_floating_point() for t in tensors)  # words may be whole numbers (N,)
    if single or isinstance(labels, int | float) or getattr(labels, "shape", None) == ():
        raise InputError(f"images {tuple(tensors[0].shape)} are no batch but a single one; accepted: {BATCHES}")
    return tensors if several else tensors[0], labels


def _tensor(array: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A tensor of it; NumPy's float64 becomes what networks are made of (float32)."""
    if isinstance(array, torch.Tensor):
        return array
    tensor = torch.as_tensor(np.array(array))  # a copy: it may be read-only
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def count(images: Images) -> int:
    """How many there are."""
    return len(images[0] if isinstance(images, tuple) else images)


def placed(images: Images, device: torch.device | str, **options: Any) -> Images:
    """The images on `device`; the options are those of Tensor.to."""
    if isinstance(images, tuple):
        return tuple(part.to(device, **options) for part in images)
    return images.to(device, **options)


def classes(labels: Any, images: int, outputs: int, positions: tuple[int, ...] = ()) -> torch.Tensor:
    """Labels as int64 (N,): from whole numbers of any type, (N,) or (N, 1), or one-hot (N, outputs). Of a network that
    answers at every one of (L,) `positions`, likewise from (N, L), (N, L, 1) or (N, L, outputs) as int64 (N·L,).

    Args:
        images: N.
        outputs: of the network, classes 0 … outputs − 1.

    Raises:
        InputError: there are none, not one an image, or one that is no class of the network.
    """
    if labels is None:
        raise InputError("these batches hold no labels to measure by; accepted: batches of (images, labels)")
    try:
        labels = torch.as_tensor(np.array(labels) if isinstance(labels, np.ndarray) else labels)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"labels are given as {type(labels).__name__}; accepted: whole numbers (N,), or one-hot"
        ) from None
    shape, whole = tuple(labels.shape), not labels.is_floating_point() and not labels.is_complex()
    if shape[:1] != (images,):
        raise InputError(f"a batch has {images} images and labels {shape}; accepted: one label an image")
    labels = labels.to(torch.int64) if whole else labels  # torch knows little of uint16 and the like
    if whole and shape[1:] in (positions, (*positions, 1)):
        labels = labels.reshape(-1)
    elif shape[1:] == (*positions, outputs) and outputs > 1:
        labels = labels.argmax(dim=-1).reshape(-1)
    else:
        kind, at = str(labels.dtype).removeprefix("torch."), "".join(f", {size}" for size in positions)
        plain = f"(N{at})" if positions else "(N,)"
        accepted = f"whole numbers {plain} or (N{at}, 1), or one-hot (N{at}, {outputs}), the network's outputs"
        raise InputError(f"labels are {kind} {shape}; accepted: {accepted}")
    if len(bad := labels[(labels < 0) | (labels >= outputs)]):
        raise InputError(f"a label is {int(bad[0])}; accepted: 0 … {outputs - 1}, the network's classes")
    return labels


class MemoryLoader:
    """Batches of a split that lies on the device as uint8; shuffling and augmentation happen there.

    Yields (images float32 (B, C, H, W) channels_last and normalised, labels int64 (B,)), both on `device`; of a text
    (tokens int64 (B, L), labels int64 (B, L)), which `normalise` and `augment` have no part in.
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
        normalise: Normalisation | None = UNIT,
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
        if split.is_text and augment:
            raise InputError("a text is not augmented; accepted: augment=False")
        self.device = torch.device(device)
        self.batch_size, self.shuffle, self.augment, self.drop_last = batch_size, shuffle, augment, drop_last
        self.generator = generator
        self._images, self._labels = split.images.to(self.device), split.labels.to(self.device)
        self._mean = self._std = None
        if split.is_text:
            return
        # (N, H, W, C): a batch gathered from it has the layout that convolutions want
        self._images = self._images.permute(0, 2, 3, 1).contiguous()
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
            if self._mean is None:
                yield images.to(torch.int64), labels
                continue
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
    on CUDA, float32 elsewhere; "auto", which is FFCV for images on CUDA when it is installed, else memory. Raises
    InputError for another name, and for "ffcv" when FFCV is not installed or the data set is a text.
    """
    if loader not in ("memory", "ffcv", "auto"):
        raise InputError(f"unknown loader {loader!r}; accepted: memory, ffcv, auto")
    if which not in ("train", "test"):
        raise ValueError(f"unknown split {which!r}; accepted: train, test")
    split = getattr(dataset, which)
    if loader == "auto":
        on_cuda = torch.device(options.get("device", "cpu")).type == "cuda"
        loader = "ffcv" if on_cuda and not split.is_text and importlib.util.find_spec("ffcv") else "memory"
    if loader == "memory":
        return MemoryLoader(split if indices is None else split.subset(indices), batch_size, **options)
    if split.is_text:
        raise InputError(f"loader 'ffcv' takes images, {dataset.name} is a text; accepted: memory")
    from .ffcv import FFCVLoader

    return FFCVLoader(split, batch_size, name=f"{dataset.name}-{which}", indices=indices, **options)
