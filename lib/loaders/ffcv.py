"""Batches through FFCV: a .beton file written once into `paths.CACHE`, read by FFCV's compiled pipelines.

Importing this module imports FFCV and numba, and a loader's first epoch compiles for many seconds, so that
`make_loader` imports it only when FFCV is asked for. It delivers what MemoryLoader delivers.
"""

import contextlib
import queue
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torchvision.transforms import Normalize

from .. import paths
from ..checks import InputError
from .data import TRANSLATE, Normalisation, Split, _integers, checksum

INSTALL = (
    "with apt: apt-get install -y --no-install-recommends build-essential python3-dev libopencv-dev "
    "libturbojpeg0-dev pkg-config && pip install ffcv pillow; "
    "with conda: conda install -c conda-forge compilers libopencv libjpeg-turbo pkg-config && "
    "pip install ffcv pillow"
)

_threads = torch.get_num_threads()
try:
    import numba
    from ffcv import transforms
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter
except (ImportError, OSError) as error:
    raise InputError(f"loader 'ffcv' needs FFCV ({error}); install it {INSTALL}") from None
torch.set_num_threads(_threads)  # importing FFCV sets PyTorch to one thread


class _Here:
    """Stands in for the process of FFCV's writer: works in this one, so that its errors arrive and a kill ends it.

    The writer waits for ever for a process that has died, as on a full disk, and its processes wait for ever for a
    writer that was killed. Pixels that are copied as they are need no second process.
    """

    def __init__(self, target: Callable, args: tuple):
        self.start = partial(target, *args)


def write_beton(split: Split, name: str) -> Path:
    """The .beton file of a split, written unless there is one of the same name and content.

    Pixels are stored as they are, not as JPEG: three channels as an RGBImageField, any other number as an
    NDArrayField. Raises InputError when there is no room for it.
    """
    path = paths.CACHE / f"{name}-{checksum(split)[:16]}.beton"
    if path.is_file():
        return path
    with paths.locked(path, waiting=f"another process writes {path.name}, waiting for it"):
        if not path.is_file():  # by now
            _write_beton(split, path)
    return path


def _write_beton(split: Split, path: Path) -> None:
    _, c, h, w = split.images.shape
    field = RGBImageField(write_mode="raw") if c == 3 else NDArrayField(np.dtype("uint8"), (h, w, c))
    path.parent.mkdir(parents=True, exist_ok=True)
    need, free = int(1.1 * split.images.numel()) + (1 << 26), shutil.disk_usage(path.parent).free
    if free < need:
        raise InputError(f"{path.parent} has {free >> 20} MiB free; FFCV's copy, {path.name}, needs {need >> 20}")
    with (
        paths.atomic(path) as temporary,
        mock.patch("ffcv.writer.Process", _Here),
        mock.patch("ffcv.writer.Queue", queue.SimpleQueue),
    ):
        writer = DatasetWriter(str(temporary), {"image": field, "label": IntField()}, num_workers=1)
        try:
            images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
            writer.from_indexed_dataset(list(zip(images, split.labels.tolist(), strict=True)))
        except BaseException:
            with contextlib.suppress(AttributeError, FileNotFoundError):
                writer.metadata_sm.unlink()  # shared memory, which the writer frees only when all went well
            raise


class FFCVLoader:
    """MemoryLoader's batches, read by FFCV from a .beton file (`name` begins its file name).

    Yields (images (B, C, H, W) channels_last and normalised, float16 on CUDA and float32 elsewhere, labels
    int64 (B,)), both on `device`. `generator` determines the order of an epoch. Flips and translations are
    drawn by FFCV's compiled threads, which take no seed: an augmented epoch cannot be repeated.

    Make one and keep it: each compiles its pipelines anew in its first epoch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        name: str,
        normalise: Normalisation,
        indices: Sequence[int] | torch.Tensor | None = None,
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
        device = torch.device(device)
        self.random, self.generator = shuffle or augment, generator
        channels = split.images.shape[1]
        images = [SimpleRGBImageDecoder() if channels == 3 else NDArrayDecoder()]
        if augment:
            moved = transforms.RandomTranslate(padding=TRANSLATE, fill=(0,) * channels)
            images += [transforms.RandomHorizontalFlip(), moved]
        images += [
            transforms.ToTensor(),
            transforms.ToDevice(device, non_blocking=True),
            transforms.ToTorchImage(),
            transforms.Convert(torch.float16 if device.type == "cuda" else torch.float32),
            Normalize(normalise.mean, normalise.std),
        ]
        labels = [IntDecoder(), transforms.ToTensor(), transforms.ToDevice(device), transforms.Squeeze(1)]
        self._loader = Loader(
            str(write_beton(split, name)),
            batch_size=batch_size,
            # FFCV gives PyTorch as many threads as it takes itself
            num_workers=min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS),
            order=OrderOption.RANDOM if shuffle else OrderOption.SEQUENTIAL,
            indices=None if indices is None else np.asarray(_integers(indices), dtype=np.uint64),
            drop_last=drop_last,
            pipelines={"image": images, "label": labels},
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        g = self.generator
        return self._batches(int(torch.randint(2**31, (), generator=g, device=g.device)) if self.random else None)

    def _batches(self, seed: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # FFCV's order follows from the sum of these two; its own count of epochs would not survive a restart
        self._loader.traversal_order.seed, self._loader.next_epoch = seed, 0
        epoch = iter(self._loader)
        try:
            for images, labels in epoch:
                # images are new tensors since their conversion, labels lie in a buffer that FFCV fills again
                yield images, labels.clone()
        finally:
            # broken off or not: the reading thread must be gone before the next epoch starts one
            epoch.terminate_event.set()
            while epoch.is_alive():
                with contextlib.suppress(queue.Empty):
                    epoch.output_queue.get_nowait()
                epoch.join(0.05)
