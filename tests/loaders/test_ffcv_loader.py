"""lib.loaders.ffcv: FFCV for real, held to what the in-memory loader delivers."""

import importlib.util
import os

import pytest
import torch

from lib import loaders, paths
from lib.checks import InputError
from tests.marked_images import marked, moves, unevenness

if importlib.util.find_spec("ffcv") is None:
    pytest.skip("FFCV is not installed (lib/loaders/ffcv.py says how)", allow_module_level=True)

EXACT = loaders.Normalisation((0.0,), (1.0,))  # leaves pixel values as they are


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("cache"), paths.CACHE
    paths.CACHE = folder
    yield folder
    paths.CACHE = before


@pytest.fixture(scope="module")
def digits():
    data = loaders.load("mnist-5k", shape=(3, 32, 32))
    return loaders.Dataset("mnist-5k", data.train.head(1203), data.test.head(1003), data.sha256)


def both(data, which, batch_size, **options):
    return [loaders.make_loader(data, which, batch_size, loader=x, **options) for x in ("ffcv", "memory")]


def assert_same(ffcv, memory):
    assert len(ffcv) == len(memory)
    batches = list(ffcv)  # all kept at once: none may lie in a buffer that a later one is written to
    for (x, y), (x2, y2) in zip(batches, memory, strict=True):
        assert x.dtype == x2.dtype == torch.float32 and y.dtype == y2.dtype == torch.int64
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_sequential_images_and_labels_are_those_of_memory(digits):
    threads = torch.get_num_threads()
    ffcv, memory = both(digits, "test", 100, normalise=loaders.CIFAR)
    assert_same(ffcv, memory)
    assert_same(ffcv, memory)  # the second epoch too
    assert torch.get_num_threads() == threads


def test_a_subset_in_whole_batches(digits):
    indices = torch.arange(0, 1203, 5)
    ffcv, memory = both(digits, "train", 101, normalise=loaders.UNIT, indices=indices, drop_last=True)
    assert len(ffcv) == 2
    assert_same(ffcv, memory)


def test_a_last_batch_of_one_keeps_its_shape(digits):
    ffcv, memory = both(digits, "test", 1002, normalise=EXACT)
    assert_same(ffcv, memory)


def test_the_generator_determines_the_order(digits):
    generator = torch.Generator().manual_seed(5)
    loader = loaders.make_loader(
        digits, "train", 200, loader="ffcv", normalise=EXACT, shuffle=True, generator=generator
    )
    state = generator.get_state()
    first, second = [list(loader) for _ in range(2)]
    generator.set_state(state)
    next(iter(loader))  # a broken-off epoch counts as one
    again = list(loader)
    for (x, y), (x2, y2) in zip(second, again, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert not torch.equal(first[0][1], second[0][1])
    seen = torch.cat([x for x, _ in second]).flatten(1)
    want = digits.train.images.flatten(1).float()
    assert sorted(seen.sum(1).tolist()) == sorted(want.sum(1).tolist())


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# FFCV compiles a parallel program for several threads and, much faster, a serial one for one
@pytest.mark.parametrize("channels, normalise, threads", [(3, loaders.CIFAR, 2), (1, loaders.UNIT, 1)])
def test_augmentation_has_the_distribution_of_memory(channels, normalise, threads, torch_threads):
    torch_threads(threads)
    data = loaders.Dataset(f"marked-{channels}", marked(5003, channels), marked(3), "")
    options = {"normalise": normalise, "augment": True, "shuffle": True}
    mean, std = (torch.tensor(x)[:, None, None] for x in (normalise.mean, normalise.std))
    counts = []
    for loader in both(data, "train", 500, generator=torch.Generator().manual_seed(0), **options):
        counts.append(torch.zeros(2, 9, 9))
        for _ in range(2):
            labels = []
            for images, batch_labels in loader:
                assert images.shape[1] == channels
                # exact flips and translations, and black, before it was normalised, where nothing is left
                counts[-1] += moves((images * std + mean).round())
                labels.append(batch_labels)
            assert torch.equal(torch.cat(labels).sort().values, torch.arange(5003))
    ffcv, memory = counts
    assert ffcv.sum() == memory.sum() == 2 * 5003
    for each in counts:  # each of the 162 outcomes is equally likely, and so is each flip
        assert unevenness(each) < 6 and unevenness(each.sum((1, 2))) < 20
    # two samples of one distribution: chi-square over the 162 cells, in standard deviations above its mean
    chi_square = ((ffcv - memory) ** 2 / (ffcv + memory)).sum()
    assert (chi_square - 161) / (2 * 161) ** 0.5 < 6


def test_a_beton_is_written_once_per_content(digits, cache):
    from lib.loaders.ffcv import write_beton

    path = write_beton(digits.test, "mnist-5k-test")
    written = os.stat(path)
    assert write_beton(digits.test, "mnist-5k-test") == path
    assert os.stat(path).st_mtime_ns == written.st_mtime_ns and path.parent == cache
    other = write_beton(digits.test.head(500), "mnist-5k-test")
    assert other != path and other.stat().st_size < written.st_size
    assert not list(cache.glob(".*"))


def test_no_room_on_the_disk_is_refused_before_anything_is_written(digits, cache, monkeypatch):
    from lib.loaders import ffcv as ffcv_loader

    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(ffcv_loader.shutil, "disk_usage", lambda _: usage)
    before = sorted(cache.iterdir())
    with pytest.raises(InputError, match="1 MiB free"):
        ffcv_loader.write_beton(digits.train, "elsewhere")
    assert sorted(cache.iterdir()) == before
