"""Run records: what a run leaves behind, and what many of them say together.

A record is one JSON file per trained pair, arrays beside it as .npz. Written last and atomically, it is the
sign that a run is done. Statistics over pairs are lib.evidence, tables lib.tables, figures lib.plots.
"""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from lib import evidence
from lib.checks import InputError
from lib.evidence import interval, variance_components  # noqa: F401 (the same, for those who look here)
from lib.paths import ROOT, atomic, file_sha256, locked

if TYPE_CHECKING:
    import pandas

# One record, several, or what read_records answers.
Records = Mapping[str, Any] | Iterable[Mapping[str, Any]]

SCHEMA = 1
METRICS = ("train_accuracy", "train_loss", "test_accuracy", "test_loss")
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pygmtools",
    "matplotlib",
    "papermill",
    "ffcv",
    "mlxtend",
)

MATCHER_LABELS = {
    "none": "no matching",
    "activation": "activations",
    "weight": "weights",
    "sinkhorn": "Sinkhorn",
    "graph_reference": "graph, as published",
    "graph_sm": "graph, spectral",
    "graph": "graph, two-sided",
}
CORRECTION_LABELS = {
    "none": "no correction",
    "bn_reset": "BN reset",
    "repair": "REPAIR",
    "rescale": "rescale",
    "closed_form": "closed form",
    "least_squares": "least squares",
}
REFERENCE_LABELS = {
    "ensemble": "ensemble (two networks)",
    "one_parent": "one parent only",
    "parent_a": "parent A",
    "parent_b": "parent B",
}

# What was published for the two experiments, as fractions and nats, keyed by (matcher, correction).
REFERENCE: dict[str, dict[str, Any]] = {
    "simplenet_mnist": {
        "source": "pygmtools, model-fusion example (SimpleNet pair of its examples/data)",
        "dataset": "mnist",
        "model": {"name": "simplenet", "width": 1.0, "norm": None},
        "alphas": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "curves": {
            ("graph_reference", "none"): {
                "test_accuracy": (0.8418, 0.8512, 0.8521, 0.8252, 0.7111, 0.5374)
                + (0.6326, 0.7851, 0.8281, 0.8397, 0.8381)
            },
            ("none", "none"): {
                "test_accuracy": (0.8418, 0.8401, 0.8191, 0.7467, 0.6039, 0.4716)
                + (0.5534, 0.7286, 0.7964, 0.8256, 0.8381)
            },
        },
    },
    "vgg11_cifar10": {
        "source": "REPAIR (arXiv 2211.08403), notebook Train-and-Permute-CIFAR10-VGG11-BatchNorm, 100 epochs",
        "dataset": "cifar10",
        "model": {"name": "vgg11", "width": 2.0, "norm": "batch"},
        "alphas": (0.0, 0.25, 0.5, 0.75, 1.0),
        "curves": {
            ("none", "none"): {
                "train_accuracy": (0.9977, 0.3267, 0.1000, 0.3081, 0.9980),
                "train_loss": (0.009, 1.894, 2.448, 1.820, 0.008),
                "test_accuracy": (0.9172, 0.3153, 0.1000, 0.2976, 0.9220),
                "test_loss": (0.295, 1.922, 2.448, 1.860, 0.301),
            },
            ("activation", "none"): {
                "train_accuracy": (0.9977, 0.8900, 0.5993, 0.8887, 0.9980),
                "train_loss": (0.009, 0.319, 1.187, 0.323, 0.008),
                "test_accuracy": (0.9172, 0.8258, 0.5838, 0.8278, 0.9220),
                "test_loss": (0.295, 0.521, 1.280, 0.531, 0.301),
            },
            ("activation", "bn_reset"): {
                "train_accuracy": (0.9979, 0.9940, 0.9792, 0.9935, 0.9981),
                "train_loss": (0.009, 0.021, 0.060, 0.021, 0.008),
                "test_accuracy": (0.9173, 0.9164, 0.9074, 0.9174, 0.9221),
                "test_loss": (0.295, 0.296, 0.331, 0.301, 0.301),
            },
        },
    },
}


# What a run was: provenance and records


def portable(path: str | os.PathLike) -> str:
    """`path` relative to the repo's root, or its bare name outside: no home folder enters a record."""
    path = Path(path).expanduser()
    absolute = Path(os.path.abspath(path if path.is_absolute() else Path.cwd() / path))
    return absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else absolute.name


def provenance(parameters: Mapping[str, Any], dataset: Any, device: Any, started: datetime) -> dict[str, Any]:
    """Where a run's numbers come from: code, versions, hardware, time, data and parameters.

    `dataset` is a lib.loaders.Dataset (or None for a study without one), `device` a torch.device or its name,
    `started` an aware datetime such as datetime.now(UTC); "seconds" runs from it until this call. "git" and
    "dirty" are null outside a git checkout; "dirty" looks at the code and ignores what runs write (data/,
    figures/, checkpoints/). Parameters that are paths leave the repo only as bare file names.
    """
    import torch  # here alone: rebuilding figures and tables from records must not need torch

    if started.tzinfo is None:
        raise ValueError("started: a naive datetime; datetime.now(UTC) is what is meant")
    device = torch.device(device)
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":!data", ":!figures", ":!checkpoints")
    return {
        "git": commit,
        "dirty": None if commit is None or changes is None else bool(changes),
        "versions": {"python": platform.python_version()} | _versions(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        "dataset_sha256": getattr(dataset, "sha256", None),
        "parameters": recorded(parameters),
    }


def _git(*arguments: str) -> str | None:
    def run(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        # A copy unpacked inside somebody else's repo must not report that repo's commit.
        return run(*arguments) if Path(run("rev-parse", "--show-toplevel")).samefile(ROOT) else None
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device_name(device: Any) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {device.type}"
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, subprocess.SubprocessError, StopIteration):
        return platform.processor() or platform.machine()


def recorded(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A run's parameters as its record holds them: as JSON does, and paths outside the repo as bare file names."""
    return {name: _parameter(value) for name, value in parameters.items()}


def _parameter(value: Any) -> Any:
    outside = isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", "..")))
    return portable(value) if outside else _plain(value)


def _plain(value: Any) -> Any:
    """`value` as JSON holds it. Not-finite numbers become null: a fused network may well diverge."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return portable(value)
    if not isinstance(value, str | bool | int | float | None) and hasattr(value, "tolist"):
        return _plain(value.tolist())  # numpy and torch scalars and tensors
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def curve_entry(
    matching: Any,
    correction: str,
    points: Iterable[Mapping[str, Any]],
    barrier: Mapping[str, float | None],
    *,
    correct_seconds: float = 0.0,
    options: Mapping[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """One entry of a record's "curves" from a lib.matching.Matching, a correction's name and its points.

    `options` are the correction's, stored beside the matcher's under their own names. `extra` may hold
    "variant" (a word that tells two curves of the same names apart), "images" ({"match", "correct"}: how many
    this curve used), "best" ({"alpha", "held_out_accuracy", "test_accuracy", "test_loss"}) and "share"
    ({"a", "b"}: each parent's part in the fused network).
    """
    return {
        "matcher": matching.matcher,
        "correction": correction,
        "options": {**matching.options, **(options or {})},
        "moved": matching.moved,
        "match_seconds": matching.seconds,
        "match_peak_bytes": matching.peak_bytes,
        "correct_seconds": correct_seconds,
        "objective": matching.objective,
        "points": list(points),
        "barrier": dict(barrier),
        **extra,
    }


def matching_arrays(*matchings: Any, correlation: Any = None, soft: bool = False) -> dict[str, np.ndarray]:
    """The arrays that figures need, by name.

    "perm/<matcher>/<group>" (n,) int32. With `correlation` (a Matching whose similarity (n, n) correlates
    units of A, rows, with units of B), "corr/<matcher>/<group>" (n,) float32: the correlation of each unit of
    A with the unit of B matched to it, however that matching was found. With `soft`,
    "soft/<matcher>/<group>" (n, n) float32: a matching's own similarity, for networks small enough.
    """
    arrays: dict[str, np.ndarray] = {}
    for matching in matchings:
        for group, perm in matching.items():
            perm = _array(perm)
            arrays[f"perm/{matching.matcher}/{group}"] = perm.astype(np.int32)
            if correlation is not None and group in (correlation.similarity or {}):
                matched = _array(correlation.similarity[group])[np.arange(len(perm)), perm]
                arrays[f"corr/{matching.matcher}/{group}"] = matched.astype(np.float32)
            if soft and group in (matching.similarity or {}):
                values = _array(matching.similarity[group]).astype(np.float32)
                arrays[f"soft/{matching.matcher}/{group}"] = values
    return arrays


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def record(
    *,
    experiment: str,
    preset: str,
    dataset: str | None,
    provenance: Mapping[str, Any],
    model: Mapping[str, Any] | None = None,
    seeds: Mapping[str, int | None] | None = None,
    checkpoints: Mapping[str, Any] | None = None,
    parents: Mapping[str, Mapping[str, float | None]] | None = None,
    images: Mapping[str, int] | None = None,
    curves: Iterable[Mapping[str, Any]] | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A checked schema-1 record, its points sorted by alpha; ready for `write_record`.

    A record of one pair gives everything but `rows`; a study of another shape gives `rows` in place of the
    fields from `model` to `curves`. `extra`: "studies" {name: rows} beside the curves (such as "bn_images"),
    "references" {name: metrics} (such as "ensemble", "one_parent"). Raises ValueError naming a bad field.
    """
    fields = {
        "schema": SCHEMA,
        "experiment": experiment,
        "preset": preset,
        "dataset": dataset,
        "model": model,
        "seeds": seeds,
        "checkpoints": checkpoints,
        "parents": parents,
        "images": images,
        "curves": None if curves is None else list(curves),
        "rows": None if rows is None else list(rows),
        **extra,
        "provenance": provenance,
    }
    built = _plain({name: value for name, value in fields.items() if value is not None or name == "dataset"})
    for curve in built.get("curves", []):
        curve["points"] = sorted(curve["points"], key=lambda point: point["alpha"])
    for checkpoint in built.get("checkpoints", {}).values():
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get("file"), str):
            checkpoint["file"] = portable(ROOT / Path(checkpoint["file"]).expanduser())
    validate(built)
    return built


def validate(record: Any) -> None:
    """Raises ValueError, naming the field and what it must be, unless `record` is a schema-1 run record."""
    _expect(isinstance(record, dict), "record", "an object")
    _expect(_whole(record.get("schema")) and record["schema"] == SCHEMA, "schema", f"{SCHEMA}", record.get("schema"))
    for field in ("experiment", "preset"):
        _expect(_text(record.get(field)), field, "a name", record.get(field))
    study = "rows" in record
    _expect(study != ("curves" in record), "curves", "there, or rows in its place, and not both")
    dataset = record.get("dataset")
    _expect(_text(dataset) or (study and dataset is None), "dataset", "the name of the data set used", dataset)
    _validate_provenance(record.get("provenance"))
    if study:
        _expect(_rows(record["rows"]), "rows", "a non-empty list of objects")
    if not study or "model" in record:
        _validate_model(record.get("model"))
    if not study:
        _validate_pair(record)
    for field in ("studies", "references"):
        _expect(isinstance(record.get(field, {}), dict), field, "an object", record.get(field))
    for name, rows in record.get("studies", {}).items():
        _expect(_rows(rows), f"studies.{name}", "a non-empty list of objects")
    for name, metrics in record.get("references", {}).items():
        _validate_metrics(metrics, f"references.{name}", required=("test_accuracy",))


def _validate_model(model: Any) -> None:
    _expect(isinstance(model, dict), "model", "an object with name, width and norm", model)
    _expect(_text(model.get("name")), "model.name", "a name", model.get("name"))
    width = model.get("width")
    _expect(_number(width) and width > 0, "model.width", "a number above 0", width)
    _expect("norm" in model and (model["norm"] is None or _text(model["norm"])), "model.norm", "a name or null")


def _validate_provenance(provenance: Any) -> None:
    _expect(isinstance(provenance, dict), "provenance", "an object", provenance)
    for field in ("git", "dirty", "versions", "device", "threads", "started", "seconds", "dataset_sha256"):
        _expect(field in provenance, f"provenance.{field}", "there")
    _expect(isinstance(provenance.get("parameters"), dict), "provenance.parameters", "an object")


def _validate_pair(record: dict[str, Any]) -> None:
    for field in ("seeds", "images"):
        values = record.get(field)
        _expect(isinstance(values, dict), field, "an object", values)
        for name, value in values.items():
            valid = _whole(value) and value >= 0 or (value is None and field == "seeds")
            _expect(valid, f"{field}.{name}", "a whole number, 0 or more", value)
    for field in ("checkpoints", "parents"):
        both = record.get(field)
        _expect(isinstance(both, dict) and {"a", "b"} <= both.keys(), field, "an object with a and b", both)
    for side in ("a", "b"):
        checkpoint = record["checkpoints"][side]
        valid = isinstance(checkpoint, dict) and _text(checkpoint.get("file")) and "sha256" in checkpoint
        _expect(valid, f"checkpoints.{side}", "an object with file and sha256", checkpoint)
        _validate_metrics(record["parents"][side], f"parents.{side}")
    curves = record["curves"]
    _expect(_rows(curves), "curves", "a non-empty list of objects")
    for index, curve in enumerate(curves):
        _validate_curve(curve, f"curves[{index}]")
    keys = [curve_key(curve) for curve in curves]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    _expect(twice is None, "curves", 'one of each matcher, correction and "variant"', twice)


def _validate_curve(curve: dict[str, Any], field: str) -> None:
    for name in ("matcher", "correction"):
        _expect(_text(curve.get(name)), f"{field}.{name}", "a name", curve.get(name))
    points = curve.get("points")
    _expect(_rows(points), f"{field}.points", "a non-empty list of objects")
    alphas = [point.get("alpha") for point in points]
    for index, (alpha, point) in enumerate(zip(alphas, points, strict=True)):
        valid = _number(alpha) and 0 <= alpha <= 1
        _expect(valid, f"{field}.points[{index}].alpha", "a number in [0, 1]", alpha)
        _validate_metrics(point, f"{field}.points[{index}]")
    rising = all(low < high for low, high in zip(alphas, alphas[1:], strict=False))
    _expect(rising, f"{field}.points", "sorted by alpha, without repeats", alphas)
    barrier = curve.get("barrier")
    _expect(isinstance(barrier, dict), f"{field}.barrier", "an object", barrier)
    for metric in METRICS:
        value = barrier.get(metric)
        _expect(value is None or _number(value), f"{field}.barrier.{metric}", "a number or null", value)
        # A barrier of 30 is percentage points slipped in; a fraction can not be beyond 1.
        valid = not metric.endswith("accuracy") or value is None or abs(value) <= 1
        _expect(valid, f"{field}.barrier.{metric}", "a fraction", value)


def _validate_metrics(metrics: Any, field: str, required: tuple[str, ...] = METRICS) -> None:
    _expect(isinstance(metrics, dict), field, "an object", metrics)
    for metric in METRICS:
        _expect(metric in metrics or metric not in required, f"{field}.{metric}", "there (null: not measured)")
        value = metrics.get(metric)
        _expect(value is None or _number(value), f"{field}.{metric}", "a number or null", value)
        if metric.endswith("accuracy") and value is not None:
            _expect(0 <= value <= 1, f"{field}.{metric}", "a fraction in [0, 1]", value)
    _expect(metrics.get("test_accuracy") is not None, f"{field}.test_accuracy", "a fraction in [0, 1]", None)


def _expect(condition: bool, field: str, what: str, *found: Any) -> None:
    if not condition:
        seen = f", not {found[0]!r}" if found else ""
        raise ValueError(f"{field} must be {what}{seen}")


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


# On disk


def write_record(path: str | os.PathLike, record: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> Path:
    """Writes `record` as JSON to `path` and `arrays` (name -> array or CPU tensor) as .npz beside it.

    Both atomically, the record last, since it says that the run is done; it holds the .npz file's SHA-256. Without
    `arrays` an older .npz goes: it would belong to another run. Raises ValueError, and writes nothing, when the record
    is not valid.
    """
    path = Path(path)
    plain = _plain(record)
    plain.pop("arrays_sha256", None)
    validate(plain)
    beside = path.with_suffix(".npz")
    with locked(path, beside):
        if arrays:
            with atomic(beside) as temporary:
                np.savez_compressed(temporary, **{name: _array(values) for name, values in arrays.items()})
            plain["arrays_sha256"] = file_sha256(beside)
        else:
            beside.unlink(missing_ok=True)
        with atomic(path) as temporary:
            text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            temporary.write_text(text, encoding="utf-8")
    return path


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """The record at `path`, checked. Raises InputError, naming file and field, for anything else."""
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        validate(found)
    except FileNotFoundError:
        raise InputError(f"{portable(path)}: no such record") from None
    except OSError as error:
        raise InputError(f"{portable(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{portable(path)}: not a run record: {error}") from None
    return found


def read_records(folder: str | os.PathLike, experiment: str | None = None) -> dict[str, dict[str, Any]]:
    """Every record (*.json) of `folder`, by file stem in sorted order; of one `experiment`, or of all."""
    records = {path.stem: read_record(path) for path in sorted(Path(folder).glob("*.json"))}
    return {stem: found for stem, found in records.items() if experiment in (None, found["experiment"])}


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays beside the record at `path`; empty when it has none. Raises InputError where they belong to another
    run, are lost or cannot be read."""
    path = Path(path)
    beside = path.with_suffix(".npz")
    # Records from before the sum was kept have none.
    wanted = read_record(path).get("arrays_sha256") if path.is_file() else None
    if not beside.is_file():
        if wanted:
            raise InputError(f"{portable(beside)}: the arrays of the record beside it are lost; run it again")
        return {}
    if wanted not in (None, file_sha256(beside)):
        raise InputError(f"{portable(beside)}: not the arrays of the record beside it; run it again")
    try:
        with np.load(beside, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{portable(beside)}: cannot be read: {error}; run it again") from None


# Names for people


def model_label(model: Mapping[str, Any]) -> str:
    """{"name": "vgg11", "width": 0.125, "norm": "batch"} -> "VGG11-BN ×1/8"."""
    names = {"simplenet": "SimpleNet", "mlp": "MLP", "resnet20": "ResNet20"}
    name = names.get(model["name"], model["name"].upper())
    norm = {None: "", "none": "", "batch": "-BN"}.get(model.get("norm"), f"-{model.get('norm')}")
    width = width_label(model.get("width", 1.0))
    return f"{name}{norm}" + ("" if width == "1" else f" ×{width}")


def width_label(width: float) -> str:
    """0.125 -> "1/8", 2.0 -> "2", 0.3 -> "0.3"."""
    exact = Fraction(width).limit_denominator(16)
    return str(exact) if exact == Fraction(width) else f"{width:g}"


def headline(records: Records, *more: str) -> str:
    """What stands over every table and figure: "SimpleNet on mnist, one pair (n = 1)". Records of one pair, matched
    with several seeds, count once."""
    records = _as_list(records)
    subject = " + ".join(dict.fromkeys(model_label(r["model"]) for r in records if "model" in r))
    datasets = " + ".join(dict.fromkeys(r["dataset"] for r in records if r.get("dataset")))
    where = " on ".join(part for part in (subject, datasets) if part)
    pairs = evidence.pairs(rows(records)) if len(records) > 1 else ()
    n = len(pairs) or len(records)  # studies hold no pairs
    told = "one pair (n = 1)" if n == 1 else f"{n} pairs (n = {n})"
    return ", ".join([where, told, *more])


def curve_key(curve: Mapping[str, Any]) -> tuple[str, str, str]:
    """(matcher, correction, variant): what tells the curves of a record apart."""
    return curve["matcher"], curve["correction"], curve.get("variant") or ""


def curve_name(curve: Mapping[str, Any]) -> str:
    """The curve in the words a user types: "activation + bn_reset"."""
    matcher, correction, variant = curve_key(curve)
    name = matcher if correction == "none" else f"{matcher} + {correction}"
    return f"{name} ({variant})" if variant else name


def curve_label(curve: Mapping[str, Any]) -> str:
    """The curve in the words of a paper: "activations + BN reset"."""
    matcher, correction, variant = curve_key(curve)
    label = MATCHER_LABELS.get(matcher, matcher)
    if correction != "none":
        label += f" + {CORRECTION_LABELS.get(correction, correction)}"
    return f"{label} ({variant})" if variant else label


def curve_of(record: Mapping[str, Any], matcher: str, correction: str = "none", variant: str = "") -> dict | None:
    """The curve of that name in `record` (or in `aggregate`'s answer), or None."""
    wanted = (matcher, correction, variant)
    return next((curve for curve in record["curves"] if curve_key(curve) == wanted), None)


def reference_for(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of REFERENCE that speaks about this record's experiment, data set and model, or None."""
    known = REFERENCE.get(record["experiment"])
    return known if known and headline(known) == headline(record) else None


def point_at(curve: Mapping[str, Any], alpha: float) -> Mapping[str, Any]:
    """The point of `curve` at `alpha` (to 1e-6), or {} where it was not measured."""
    return next((p for p in curve["points"] if abs(p["alpha"] - alpha) < 1e-6), {})


# Several pairs


def rows(records: Records) -> list[dict[str, Any]]:
    """The records flat: one row per pair × curve × alpha, every row with the same columns, None where not known.

    Columns: record (file stem, else its place in the list), experiment, preset, dataset, dataset_sha256, model, width,
    norm, the run's `lib.evidence.SETTINGS`, training (of both networks, as text), seed_a, seed_b, seed_match, sha256_a,
    sha256_b (of the checkpoints), test_images, device, threads, run_seconds; matcher, correction, variant, curve (its
    name), alphas (all of the curve's, as text), match_seconds, correct_seconds, seconds (both), barrier_<metric>,
    best_alpha, best_test_accuracy, best_test_loss, share_b; alpha and the four `METRICS`; parent_a_<metric>,
    parent_b_<metric>. Accuracies are fractions, losses nats. Records of studies without curves give no rows.
    """
    several = isinstance(records, Mapping) and "dataset" not in records
    named = records.items() if several else enumerate(_as_list(records))
    answer = []
    for name, r in named:
        common = {"record": str(name)} | _pair_columns(r) if "curves" in r else {}
        for curve in r.get("curves", []):
            best, share = curve.get("best") or {}, curve.get("share") or {}
            seconds = {field: curve.get(field) or 0.0 for field in ("match_seconds", "correct_seconds")}
            columns = dict(zip(("matcher", "correction", "variant"), curve_key(curve), strict=True))
            columns |= {"curve": curve_name(curve), "alphas": " ".join(f"{p['alpha']:g}" for p in curve["points"])}
            columns |= seconds | {"seconds": sum(seconds.values())}
            columns |= {f"barrier_{metric}": curve["barrier"].get(metric) for metric in METRICS}
            columns |= {f"best_{field}": best.get(field) for field in ("alpha", "test_accuracy", "test_loss")}
            columns["share_b"] = share.get("b")
            for point in curve["points"]:
                answer.append(common | columns | {field: point.get(field) for field in ("alpha", *METRICS)})
    return answer


def _pair_columns(r: Mapping[str, Any]) -> dict[str, Any]:
    made = r["provenance"]
    columns = {field: r[field] for field in ("experiment", "preset", "dataset")}
    columns |= {"dataset_sha256": made["dataset_sha256"], "model": r["model"]["name"]}
    columns |= {field: r["model"][field] for field in ("width", "norm")}
    columns |= {field: made["parameters"].get(field) for field in evidence.SETTINGS}
    columns["training"] = _training(r["checkpoints"])
    columns |= {f"seed_{field}": r["seeds"].get(field) for field in ("a", "b", "match")}
    columns |= {f"sha256_{side}": r["checkpoints"][side]["sha256"] for side in ("a", "b")}
    columns |= {"test_images": r["images"].get("test"), "device": made["device"], "threads": made["threads"]}
    columns["run_seconds"] = made["seconds"]
    return columns | {f"parent_{side}_{m}": r["parents"][side].get(m) for side in ("a", "b") for m in METRICS}


def _training(checkpoints: Mapping[str, Any]) -> str | None:
    """How the two networks of a pair were trained, "a.dataset=mnist a.images=60000 a.spec.recipe.epochs=1 …"; the seed,
    which tells pairs apart, is left out, and what no sidecar said."""
    words = []

    def flatten(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value):
                flatten(f"{name}.{key}", value[key])
        elif not name.endswith(".spec.seed"):
            words.append(f"{name}={json.dumps(value, separators=(',', ':'))}")

    for side in ("a", "b"):
        told = {name: checkpoints[side][name] for name in ("spec", "dataset", "images") if name in checkpoints[side]}
        flatten(side, told)
    return " ".join(words) or None


def frame(records: Records) -> "pandas.DataFrame":
    """`rows` as a pandas frame; what `interval` and lib.evidence take. Raises InputError where pandas is missing."""
    try:
        import pandas
    except ImportError:
        raise InputError("a frame needs pandas; accepted: pip install 'fusebook[sweep]', or lib.results.rows") from None
    return pandas.DataFrame(rows(records))


def aggregate(records: Records) -> dict[str, Any]:
    """Means, sample standard deviations and 95 % intervals over independent pairs of one kind.

    The shape of a record: "n" (pairs), "parents" and "curves" whose points and barriers hold each metric's mean under
    its name, the deviation under "<metric>_std" and the interval of `lib.evidence.mean_interval` under "<metric>_low"
    and "_high" (each None where n is too small). Records of one pair with several matcher seeds are averaged first. A
    curve has its own "n", since not every record must hold it; its points are the alphas that all of those measured;
    its barrier is None where they did not measure the same alphas. Raises InputError when the records are not of one
    kind or share networks, or none is given.
    """
    records = _as_list(records)
    if not records:
        raise InputError("no records to aggregate; accepted: one or more")
    flat = rows(records)
    evidence.check_poolable(flat)
    pairs = _by_pair(records, flat)
    keys = dict.fromkeys(curve_key(curve) for r in records for curve in r["curves"])
    curves = []
    for key in keys:
        found = [here for alike in pairs if (here := _entries(alike, key))]
        grids = [[round(point["alpha"], 6) for point in curve["points"]] for here in found for curve in here]
        shared = [alpha for alpha in grids[0] if all(alpha in grid for grid in grids)]
        barriers = [_within([curve["barrier"] for curve in here]) for here in found]
        curves.append(
            {
                "matcher": key[0],
                "correction": key[1],
                "variant": key[2],
                "n": len(found),
                "points": [
                    {"alpha": a} | _mean_metrics([_within([point_at(c, a) for c in here]) for here in found])
                    for a in shared
                ],
                "barrier": _mean_metrics(barriers if all(grid == grids[0] for grid in grids) else [{}]),
            }
        )
    kind = {field: records[0][field] for field in ("experiment", "preset", "dataset", "model")}
    parents = {side: _mean_metrics([alike[0]["parents"][side] for alike in pairs]) for side in ("a", "b")}
    return kind | {"n": len(pairs), "images": records[0]["images"], "parents": parents, "curves": curves}


def _within(repeats: list[Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean of each metric over repeats on one pair."""
    return {metric: _mean([row.get(metric) for row in repeats]) for metric in METRICS}


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else fmean(values)


def _mean_metrics(values: list[Mapping[str, Any]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for metric in METRICS:
        over = evidence.mean_interval(row.get(metric) for row in values)
        found |= {metric: over.mean, f"{metric}_std": over.std, f"{metric}_low": over.low, f"{metric}_high": over.high}
    return found


def leaderboard_rows(records: Records, alpha: float = 0.5) -> list[dict[str, Any]]:
    """One row per curve at `alpha`, then one per reference (the row has "reference"), means over pairs.

    Pairs of one kind (model and data set) are averaged; kinds follow one another. Row: architecture, dataset,
    matcher, correction, variant, n, alpha, test_accuracy, test_loss, barrier_accuracy, barrier_loss, alphas (the number
    measured), best_alpha and best_accuracy (alpha chosen on held-out training images; None where a curve does not say
    or had no choice), parents_accuracy (the mean of both parents of the same pairs), each metric also with _std, _low
    and _high as in `aggregate`; seconds (match and correct together), match_images, correct_images (None where a
    curve does not say), images (the most that its record's curves looked at), share_b (the part of parent B's units in
    the fused network).
    """
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for r in _as_list(records):
        kinds.setdefault((model_label(r["model"]), r["dataset"]), []).append(r)
    return [row for alike in kinds.values() for row in _leaderboard_rows(alike, alpha)]


def _leaderboard_rows(records: list[Mapping[str, Any]], alpha: float) -> list[dict[str, Any]]:
    summary = aggregate(records)
    common = {"architecture": model_label(summary["model"]), "dataset": summary["dataset"]}
    pairs = _by_pair(records, rows(records))
    answer = []
    for curve in summary["curves"]:
        at = point_at(curve, alpha)
        if not at:
            continue
        found = [(alike, here) for alike in pairs if (here := _entries(alike, curve_key(curve)))]
        entries = [entry for _, here in found for entry in here]
        best = [_best(here) for _, here in found]
        both = [fmean(alike[0]["parents"][side]["test_accuracy"] for side in ("a", "b")) for alike, _ in found]
        images = entries[0].get("images") or {}
        row = {name: curve[name] for name in ("matcher", "correction", "variant", "n")}
        row |= {name: value for name, value in at.items() if name == "alpha" or name.startswith("test_")}
        row |= _renamed(curve["barrier"], "test_", "barrier_")
        row["alphas"] = len(entries[0]["points"])
        row |= _renamed(_mean_metrics(best), "test_accuracy", "best_accuracy")
        row["best_alpha"] = _mean([b.get("alpha") for b in best])
        row |= _renamed(_mean_metrics([{"test_accuracy": v} for v in both]), "test_accuracy", "parents_accuracy")
        row["seconds"] = fmean((e.get("match_seconds") or 0) + (e.get("correct_seconds") or 0) for e in entries)
        row |= {"match_images": images.get("match"), "correct_images": images.get("correct")}
        row["images"] = max(summary["images"].get(name, 0) for name in ("match", "correct"))
        row["share_b"] = fmean((entry.get("share") or {}).get("b", alpha) for entry in entries)
        answer.append(common | row)
    references = {f"parent_{side}": [alike[0]["parents"][side] for alike in pairs] for side in ("a", "b")}
    for alike in pairs:
        for name, metrics in alike[0].get("references", {}).items():
            references.setdefault(name, []).append(metrics)
    for name, metrics in references.items():
        means = _renamed(_mean_metrics(metrics), "test_", "test_")
        answer.append(common | {"reference": name, "n": len(metrics)} | means)
    return answer


def _by_pair(records: list[Mapping[str, Any]], flat: list[dict[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The records of each pair, by their `rows`: what was repeated on one pair counts once."""
    return [[records[int(name)] for name in names] for names in evidence.pairs(flat).values()]


def _entries(records: list[Mapping[str, Any]], key: tuple[str, str, str]) -> list[Mapping[str, Any]]:
    return [entry for r in records if (entry := curve_of(r, *key))]


def _best(curves: list[Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean of the best alpha and of its accuracy over repeats on one pair; {} where there was nothing to choose."""
    best = [curve.get("best") or {} for curve in curves if len(curve["points"]) > 1]
    return {name: _mean([b.get(name) for b in best]) for name in ("alpha", "test_accuracy")} if best else {}


def _renamed(metrics: Mapping[str, Any], start: str, new: str) -> dict[str, Any]:
    return {new + name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}


def one_dataset(records: Records) -> list[Mapping[str, Any]]:
    """The records as a list. Raises InputError unless all were measured on one data set."""
    records = _as_list(records)
    names = sorted({str(r["dataset"]) for r in records})
    if len(names) != 1:
        raise InputError(f"records must be of one data set, not {' and '.join(names) or 'none'}")
    return records


def _as_list(records: Records) -> list[Mapping[str, Any]]:
    if isinstance(records, Mapping):
        return [records] if "dataset" in records else list(records.values())
    return list(records)
