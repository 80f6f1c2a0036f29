"""Hostile and broken input: each is refused in one line, or read for what it is; no code in it runs, no number in it
is wrong. The suite prints how many inputs were tried."""

import json
import math
import os
import pickle
import random
import shutil
import struct
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save
from test_faults import parquet
from torch import nn

from lib import loaders, models, paths
from lib.batch import run as batch
from lib.batch import sweep
from lib.checks import InputError
from lib.loaders import sources as data_sources
from lib.records import read_record, validate
from tests.loaders.test_loaders import empty, idx, put, tiny_cifar10, tiny_mnist  # noqa: F401  fixtures

TRIED: Counter[str] = Counter()  # inputs by kind
READ: Counter[str] = Counter()  # those of them that were read, and are right


@pytest.fixture(scope="module", autouse=True)
def told(announce):
    """Says at the end how many inputs were tried."""
    yield
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(TRIED.items()))
    announce(f"{sum(TRIED.values())} inputs tried: {kinds}; {sum(READ.values())} of them read, the rest refused")


def network(width: float = 0.02) -> nn.Module:
    return models.build("mlp", width=width, norm="batch", seed=0)


def attempt(kind: str, what: object, function, *arguments):
    """What `function` returns, or None if it refuses its input; anything but one line of refusal fails."""
    TRIED[kind] += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = function(*arguments)
    except InputError as error:
        assert str(error) and "\n" not in str(error), what
        return None
    except Exception as error:
        raise AssertionError(f"{kind}, {what}: {type(error).__name__}: {error}") from error
    READ[kind] += 1
    return found


def read(path: Path) -> nn.Module:
    """What a notebook does with a checkpoint."""
    return models.load_state(network(), models.read_state(path), path.name)


def flips(content: bytes, count: int, seed: int = 0):
    """(position, content with the byte there changed), spread over the whole of it."""
    rng = random.Random(seed)
    for k in range(count):
        at = rng.randrange(len(content) * k // count, max(1, len(content) * (k + 1) // count))
        yield at, content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """The same state dict in every format that is read."""
    state, folder = models.state_of(network()), tmp_path_factory.mktemp("formats")
    torch.save(state, folder / "zip")
    torch.save(state, folder / "legacy", _use_new_zipfile_serialization=False)
    return {"safetensors": save(state)} | {name: (folder / name).read_bytes() for name in ("zip", "legacy")}


def same(model: nn.Module) -> bool:
    expected = network().state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def finite(model: nn.Module) -> bool:
    return all(torch.isfinite(tensor).all() for tensor in model.state_dict().values() if tensor.is_floating_point())


# --- checkpoints ---


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_truncated_checkpoint_is_refused_at_every_kilobyte(form, files, tmp_path):
    content, path = files[form], tmp_path / "net.pt"
    for length in [*range(0, len(content), 1024), *range(1, 20), len(content) - 1]:
        path.write_bytes(content[:length])
        assert attempt("truncated checkpoints", (form, length), read, path) is None, length


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_changed_byte_is_refused_where_a_sidecar_tells_the_sum(form, files, tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(files[form])
    (tmp_path / "net.json").write_text(json.dumps({"sha256": paths.file_sha256(path)}))
    assert same(read(path))
    for at, content in flips(files[form], 40):
        path.write_bytes(content)
        assert attempt("flipped bytes, with sidecar", (form, at), read, path) is None, at


def test_a_changed_byte_in_a_torch_file_is_found_by_its_own_sums(files, tmp_path):
    path = tmp_path / "net.pt"
    for at, content in flips(files["zip"], 150):
        path.write_bytes(content)
        model = attempt("flipped bytes, torch file", at, read, path)
        assert model is None or same(model), at


@pytest.mark.parametrize("form", ["safetensors", "legacy"])
def test_a_changed_byte_that_nothing_can_tell_still_leaves_finite_numbers(form, files, tmp_path):
    """Neither format has sums of its own: without a sidecar a changed weight cannot be told from a trained one."""
    path = tmp_path / "net.pt"
    for at, content in flips(files[form], 100):
        path.write_bytes(content)
        model = attempt("flipped bytes, nothing to tell by", (form, at), read, path)
        assert model is None or finite(model), at


class Code:
    """A pickle of it calls `function(*arguments)` when it is read the usual way."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(trace: str) -> list[object]:
    calls = [
        (os.system, f"touch {trace}"),
        (os.mkdir, trace),
        (Path.touch, Path(trace)),
        (eval, f"open({trace!r}, 'w')"),
        (exec, f"open({trace!r}, 'w')"),
        (open, trace, "w"),
        (shutil.copy, __file__, trace),
        (torch.save, 1, trace),
        (torch.load, trace),
        (getattr, "", "join"),
        (map, os.mkdir, [trace]),
        (pickle.loads, pickle.dumps(Code(os.mkdir, trace))),
        (nn.Linear, 2, 2),
        (Path, trace),
    ]
    return [Code(*call) for call in calls]


def test_no_pickle_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace, path = str(tmp_path / "executed"), tmp_path / "net.pt"
    for bad in attacks(trace):
        for held in (bad, {"weight": bad}, {"weight": torch.zeros(2), "more": [bad]}):
            for form in ("zip", "legacy", "pickle"):
                if form == "pickle":
                    path.write_bytes(pickle.dumps(held))
                else:
                    torch.save(held, path, _use_new_zipfile_serialization=form == "zip")
                assert attempt("pickles with code", (bad.call, form), read, path) is None
                assert sorted(os.listdir(tmp_path)) == ["net.pt"], bad.call


def test_what_is_no_checkpoint_is_refused(files, tmp_path):
    rng = random.Random(0)
    contents = [
        b"", b"\0", b"{}", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02.", b"\x80\x04N.", b"hello\n" * 100,
        struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10**9) + b"{" + bytes(50),
        struct.pack("<Q", 40) + b'{"w":{"dtype":"F99","shape":[1],"data":1}}', bytes(5000), files["safetensors"][8:],
        b"\x89PNG\r\n\x1a\n" + bytes(100), files["zip"] + files["safetensors"], files["safetensors"] + b"\0",
        *(rng.randbytes(rng.randrange(1, 4000)) for _ in range(40)),
        *(struct.pack("<Q", rng.randrange(1, 60)) + b"{" + rng.randbytes(100) for _ in range(20)),
    ]  # fmt: skip
    for k, content in enumerate(contents):
        (tmp_path / "net.pt").write_bytes(content)
        model = attempt("no checkpoint at all", k, read, tmp_path / "net.pt")
        assert model is None or same(model), content[:20]
    plain = (1, "text", None, set(), {}, b"bytes", (1, 2))
    nested = ([torch.zeros(2)], torch.zeros(2), {"w": 1}, {1: torch.zeros(2)}, {"w": [torch.zeros(2)]})
    for held in (*plain, *nested, {"a": network().state_dict(), "b": network().state_dict()}):
        torch.save(held, tmp_path / "net.pt")
        assert attempt("no checkpoint at all", held, read, tmp_path / "net.pt") is None
    for path in (tmp_path, tmp_path / "gone", Path("/dev/null"), tmp_path / "net.pt" / "below"):
        assert attempt("no checkpoint at all", path, read, path) is None


def test_names_that_are_no_file_are_refused(tmp_path):
    odd = (
        "",
        " ",
        "..",
        "/",
        "~nobody/net",
        "a\0b",
        "x" * 5000,
        "a\nb",
        "*",
        "/dev/null",
        "net.safetensors/",
        "💥",
        "-",
    )
    for name in (*odd, "no-such-net", str(tmp_path)):
        assert attempt("names of checkpoints", name, models.find_checkpoint, name) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_by_name(value, tmp_path):
    state = models.state_of(network())
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            bad = tensor.to(dtype).clone()
            bad.view(-1)[-1] = value
            for form in ("safetensors", "torch"):
                changed = state | {name: bad}
                (tmp_path / "net.pt").write_bytes(save(changed)) if form == "safetensors" else torch.save(
                    changed, tmp_path / "net.pt"
                )
                TRIED["NaN and Inf"] += 1
                with pytest.raises(InputError, match=f"NaN or Inf in {name.replace('.', '[.]')}; accepted") as error:
                    read(tmp_path / "net.pt")
                assert "\n" not in str(error.value)


def test_a_double_beyond_single_precision_is_refused(tmp_path):
    state = models.state_of(network())
    name = next(iter(state))
    torch.save(state | {name: torch.full_like(state[name], 1e300, dtype=torch.float64)}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=f"NaN or Inf in {name}"):
        read(tmp_path / "net.pt")


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_other_kinds_of_numbers_are_refused_and_other_precisions_converted(tmp_path):
    state, path = models.state_of(network()), tmp_path / "net.pt"
    floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
    refused = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64)
    for dtype in (*refused, torch.complex128):
        for name in floats:
            torch.save(state | {name: state[name].to(dtype)}, path)
            assert attempt("other types of numbers", (name, dtype), read, path) is None
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        torch.save({name: t.to(dtype) if name in floats else t for name, t in state.items()}, path)
        model = attempt("other types of numbers", dtype, read, path)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name].to(dtype).to(tensor.dtype) if name in floats else state[name])
    counters = [name for name in state if name not in floats]
    for dtype in (torch.float32, torch.complex64):
        torch.save({name: t.to(dtype) if name in counters else t for name, t in state.items()}, path)
        assert attempt("other types of numbers", dtype, read, path) is None
    for odd in (torch.zeros(3, 4).to_sparse(), torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
                torch.empty(2, device="meta")):  # fmt: skip
        torch.save(state | {floats[0]: odd}, path)
        assert attempt("other types of numbers", odd.layout, read, path) is None


def test_other_architectures_widths_and_tensors_are_refused(tmp_path):
    path, state = tmp_path / "net.pt", models.state_of(network())
    others = [models.build("simplenet"), models.build("mlp", width=0.02), network(0.03), network(0.5)]
    others += [models.build("vgg11", width=0.0625, norm=norm) for norm in (None, "batch")]
    others += [models.build("resnet20", width=0.25, norm="batch"), nn.Linear(2, 2), nn.Identity()]
    variants = [models.state_of(other) for other in others]
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            variants.append({key: value for key, value in state.items() if key != name})  # missing
            variants.append(state | {name: tensor.sum()})  # a scalar
        variants += [
            state | {f"module.{name}": tensor},
            state | {name: tensor[None]},
            state | {name: tensor.new_zeros(0)},
        ]
    for k, variant in enumerate(variants):
        torch.save(variant, path)
        assert attempt("misfits", k, read, path) is None, k
        if variant:
            path.write_bytes(save({name: tensor.clone() for name, tensor in variant.items()}))
            assert attempt("misfits", k, read, path) is None, k


def test_a_broken_sidecar_is_refused(files, tmp_path):
    path, sidecar = tmp_path / "net.safetensors", tmp_path / "net.json"
    path.write_bytes(files["safetensors"])
    whole = json.dumps({"spec": {"seed": 0, "width": 0.02}, "sha256": paths.file_sha256(path)})
    sidecar.write_text(whole)
    assert same(read(path))
    broken = [whole[:length] for length in range(len(whole))]
    broken += [
        "[]",
        "null",
        "1",
        '"text"',
        '{"sha256": 1}',
        '{"sha256": []}',
        '{"sha256": ""}',
        '{"spec": []}',
        '{"spec": 3}',
    ]
    broken += ['{"spec": null}', '{"spec": {"width": "wide"}}', '{"spec": {"width": -1}}', '{"spec": {"width": NaN}}']
    broken += ['{"spec": {"width": Infinity}}', '{"spec": {"width": true}}', '{"spec": {"seed": 1.5}}', "[" * 100_000]
    for text in broken:
        sidecar.write_text(text)
        assert attempt("sidecars", text[:50], read, path) is None, text[:50]
    sidecar.write_bytes(b"\xff\xfe{")
    assert attempt("sidecars", "bytes", read, path) is None
    sidecar.unlink()
    sidecar.mkdir()
    assert attempt("sidecars", "folder", read, path) is None


# --- data sets ---


def test_broken_parquet_is_refused(empty, monkeypatch):  # noqa: F811
    folder, cache = empty
    parquet(folder, 20)
    path = folder / "cifar10-jpeg/test-0.parquet"
    whole, expected = path.read_bytes(), loaders.load("cifar10-jpeg")
    rows = pyarrow.parquet.read_table(path).to_pydict()

    def load():
        data_sources._parse.cache_clear()
        shutil.rmtree(cache, ignore_errors=True)
        return loaders.load("cifar10-jpeg")

    for length in range(0, len(whole), 1024):
        path.write_bytes(whole[:length])
        assert attempt("Parquet files", length, load) is None, length
    for at, content in flips(whole, 60):
        path.write_bytes(content)
        found = attempt("Parquet files", at, load)
        # what is read in spite of it is told apart by the sum that every record carries, or is the same
        if found is not None and found.sha256 == expected.sha256:
            assert torch.equal(found.test.images, expected.test.images)
            assert torch.equal(found.test.labels, expected.test.labels)
    count = len(rows["label"])
    tables = [{"img": rows["img"]}, {"label": rows["label"]}, {"image": rows["img"], "label": rows["label"]}, {}]
    for label in (-1, 10, 255, 2**40, None, 1.5, math.nan, "cat", [1]):
        tables.append(rows | {"label": [label] * count})
    for image in (None, b"", b"GIF89a", {"bytes": None, "path": ""}, {"bytes": b"", "path": ""}, {"path": ""}, 7):
        tables.append(rows | {"img": [image] * count})
    jpeg = rows["img"][0]["bytes"]
    for cut in range(0, len(jpeg), 100):
        tables.append(rows | {"img": [{"bytes": jpeg[:cut], "path": ""}] * count})
    for table in tables:
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        assert attempt("Parquet files", str(table)[:80], load) is None, str(table)[:80]
    path.unlink()
    path.mkdir()
    assert attempt("Parquet files", "folder", load) is None


def test_a_damaged_cache_of_decoded_images_is_decoded_again(empty, capsys):  # noqa: F811
    folder, cache = empty
    parquet(folder, 20)
    expected = loaders.load("cifar10-jpeg")
    (path,) = cache.glob("*.safetensors")
    whole = path.read_bytes()
    for at, content in [*flips(whole, 30), *((length, whole[:length]) for length in range(0, len(whole), 8192))]:
        path.write_bytes(content)
        data_sources._parse.cache_clear()
        found = attempt("caches of decoded images", at, loaders.load, "cifar10-jpeg")
        assert found.sha256 == expected.sha256, at
        assert path.read_bytes() == whole


def test_broken_idx_files_are_refused(empty, tiny_mnist):  # noqa: F811
    folder = empty[0] / "MNIST/raw"
    for name, content in tiny_mnist.items():
        lengths = range(0, len(content), 1024)
        broken = [content[:length] for length in lengths] + [changed for _, changed in flips(content, 8)]
        for bad in [*broken, content + b"\0", idx(np.zeros((3, 5, 5))), idx(np.full(7, 77))]:
            put(folder, tiny_mnist | {name: bad})
            assert attempt("idx files", name, loaders.load, "mnist") is None
    put(folder, tiny_mnist)
    assert len(loaders.load("mnist").train) == 7


def test_broken_cifar_pickles_are_refused_and_never_unpickled(empty, tiny_cifar10):  # noqa: F811
    folder, (whole, _) = empty[0] / "cifar-10-batches-py", tiny_cifar10
    trace = empty[0] / "executed"
    for bad in [pickle.dumps(code) for code in attacks(str(trace))]:
        put(folder, whole | {"data_batch_4": bad})
        assert attempt("CIFAR pickles", bad[:40], loaders.load, "cifar10") is None
        assert not trace.exists()
    for name, content in whole.items():
        for bad in [content[:1024], b"", *(changed for _, changed in flips(content, 4))]:
            put(folder, whole | {name: bad})
            assert attempt("CIFAR pickles", name, loaders.load, "cifar10") is None
    put(folder, whole)
    assert len(loaders.load("cifar10").train) == 20


# --- records ---


def parts(value: object, here: tuple = ()):
    """The place of everything in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*here, key)
        yield from parts(child, (*here, key))


def changed(value: dict, place: tuple, new: object) -> dict:
    """A copy with `new` at `place`; ... deletes it."""
    twin = json.loads(json.dumps(value))
    *way, last = place
    inner = twin
    for key in way:
        inner = inner[key]
    if new is ...:
        del inner[last]
    else:
        inner[last] = new
    return twin


def a_record() -> dict:
    metrics = {"test_accuracy": 0.9, "test_loss": 0.1, "train_accuracy": None, "train_loss": None}
    points = [{"alpha": alpha, **metrics} for alpha in (0.0, 0.5, 1.0)]
    curve = {
        "matcher": "graph",
        "correction": "none",
        "options": {},
        "moved": "b",
        "match_seconds": 0.1,
        "objective": 1.0,
    }
    provenance = {
        "git": None,
        "dirty": None,
        "versions": {},
        "device": "cpu",
        "threads": 1,
        "started": "",
        "seconds": 1.0,
    }
    file = {"file": "net.safetensors", "sha256": "0" * 64}
    return {
        "schema": 1, "experiment": "fuzz", "preset": "quick", "dataset": "mnist",
        "model": {"name": "mlp", "width": 1.0, "norm": None}, "seeds": {"a": 0, "b": 1},
        "checkpoints": {"a": file, "b": file}, "parents": {"a": metrics, "b": metrics},
        "images": {"train": 10, "test": 10}, "curves": [curve | {"points": points, "barrier": metrics}],
        "provenance": provenance | {"dataset_sha256": "0" * 64, "parameters": {}},
    }  # fmt: skip


def test_other_records_are_refused_or_valid(tmp_path):
    path, whole = tmp_path / "run.json", a_record()
    path.write_text(json.dumps(whole))
    assert read_record(path) == whole
    for schema in (0, 2, 99, -1, None, "1", 1.5, [1]):
        path.write_text(json.dumps(whole | {"schema": schema}))
        assert attempt("records", schema, read_record, path) is None, schema
    text = json.dumps(whole)
    for length in range(0, len(text), 40):
        path.write_text(text[:length])
        assert attempt("records", length, read_record, path) is None, length
    for place in parts(whole):
        for new in (..., None, "text", [], {}, -1, 1e9, True, math.nan):
            path.write_text(json.dumps(changed(whole, place, new)))
            found = attempt("records", (place, new), read_record, path)
            if found is not None:
                validate(found)
                for curve in found["curves"]:
                    assert all(0 <= p["test_accuracy"] <= 1 and 0 <= p["alpha"] <= 1 for p in curve["points"]), place
    for content in (b"\xff\xfe\0", b"[]", b"null", b"1e999"):
        path.write_bytes(content)
        assert attempt("records", content[:9], read_record, path) is None


# --- sweeps ---


def test_grid_files_that_make_no_sense_are_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    whole = {"notebook": "simplenet_mnist", "parameters": {"epochs": 1}, "grid": {"width": [0.5, 1]}, "seeds": [0, 2]}
    path.write_text(json.dumps(whole))  # which is YAML, too
    assert len(sweep.load(path).jobs) == 4
    texts = ["", "[]", "1", "text", "{", "a: b: c", "- 1", "\0", "!!python/object/apply:os.system [touch executed]"]
    texts += [json.dumps(whole | {"more": 1}), json.dumps({"runs": []}), json.dumps(whole | {"runs": [1]})]
    for place in parts(whole):
        for new in (..., None, "text", [], {}, -1, 1.5, [[]], ["x"], {"x": 1}, {"epochs": []}):
            texts.append(json.dumps(changed(whole, place, new)))
    for text in texts:
        path.write_text(text)
        found = attempt("grid files", text, sweep.load, path)
        for run in found.jobs.values() if found else ():
            assert batch.check_parameters(run.notebook, run.parameters) == run.parameters, text
    path.write_bytes(b"\xff\xfe\0")
    assert attempt("grid files", "bytes", sweep.load, path) is None
    assert attempt("grid files", "folder", sweep.load, tmp_path) is None


def test_at_least_five_hundred_inputs_were_tried():
    if len(TRIED) < 14:
        pytest.skip("counted when the whole file runs")
    assert sum(TRIED.values()) >= 500
