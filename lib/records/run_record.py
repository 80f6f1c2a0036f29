"""Run records: what a run leaves behind.

A record is one JSON file per trained pair, arrays beside it as .npz. Written last and atomically, it is the
sign that a run is done. Statistics, tables and figures of records are made in the package paper.
"""

import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import InputError
from ..paths import ROOT, atomic, file_sha256, locked
from .origin import _plain, portable

SCHEMA = 1
METRICS = ("train_accuracy", "train_loss", "test_accuracy", "test_loss")


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
    """One entry of a record's "curves" from a Matching, a correction's name and its points.

    Both names spell the options that are not the default, "least_squares(select=false)"; "options" are those given to
    the matcher, "correction_options" (`options` here) those given to the correction. `extra` may hold "images"
    ({"match", "correct"}: how many this curve used), "best" ({"alpha", "held_out_accuracy", "test_accuracy",
    "test_loss"}) and "share" ({"a", "b"}: each parent's part in the fused network).
    """
    return {
        "matcher": matching.matcher,
        "correction": correction,
        "options": dict(matching.options),
        "correction_options": dict(options or {}),
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
    _expect(twice is None, "curves", "one of each matcher and correction", twice)


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


def curve_key(curve: Mapping[str, Any]) -> tuple[str, str]:
    """(matcher, correction), each with the options given, "graph(restarts=3)": what tells a record's curves apart."""
    return curve["matcher"], curve["correction"]


def curve_of(record: Mapping[str, Any], matcher: str, correction: str = "none") -> dict | None:
    """The curve of that name in `record` (or in `aggregate`'s answer), or None."""
    return next((curve for curve in record["curves"] if curve_key(curve) == (matcher, correction)), None)


def point_at(curve: Mapping[str, Any], alpha: float) -> Mapping[str, Any]:
    """The point of `curve` at `alpha` (to 1e-6), or {} where it was not measured."""
    return next((p for p in curve["points"] if abs(p["alpha"] - alpha) < 1e-6), {})
