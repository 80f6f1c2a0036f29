"""Run records: what a run leaves behind.

A record is one JSON file per trained pair, arrays beside it as .npz. Written last and atomically, it is the
sign that a run is done. Statistics, tables and figures of records are made in the package paper.
"""

import functools
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import InputError
from ..paths import ROOT, atomic, file_sha256, locked
from .barriers import METRICS
from .origin import _plain, portable

SCHEMA = 1
# How close a network is to the ensemble of its parents, and how well calibrated; records need not hold them.
CLOSENESS = ("test_kl", "test_agreement", "test_calibration")


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

    "perm/<matcher>/<group>" (n,) int32, or "matrix/<matcher>/<group>" (n, n) float32. With `correlation` (a Matching
    whose similarity (n, n) correlates units of A, rows, with units of B), "corr/<matcher>/<group>" (n,) float32: the
    correlation of each unit of A with the unit of B matched to it, however that matching was found. With `soft`,
    "soft/<matcher>/<group>" (n, n) float32: a matching's own similarity, for networks small enough.
    """
    arrays: dict[str, np.ndarray] = {}
    for matching in matchings:
        for group, perm in matching.items():
            perm = _array(perm)
            if perm.ndim == 2:
                arrays[f"matrix/{matching.matcher}/{group}"] = perm.astype(np.float32)
                continue
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


def record(*, provenance: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A checked schema-1 record, its points sorted by alpha; ready for `write_record`.

    `fields`: experiment, preset and dataset (its name), then of one pair model, seeds, checkpoints, parents, images,
    curves; a study of another shape gives `rows` in their place. Beside the curves there may be "studies" {name: rows}
    (such as "bn_images") and "controls" {name: measures}: what could have produced the same numbers without fusing,
    such as "parent" (the better one on held-out images), "ensemble" or "head"; beside the measures each may say
    "seconds", "images" (how many it looked at) and "info". A point, a parent and a control may hold "test_kl" (mean
    KL(ensemble || network), nats), "test_agreement" (share of test images on which network and ensemble name the same
    class) and "test_calibration" (expected calibration error, a fraction). Raises ValueError naming a bad field.
    """
    fields = {name: value for name, value in fields.items() if value is not None or name == "dataset"}
    built = _plain({"schema": SCHEMA} | fields | {"provenance": provenance})
    for curve in built.get("curves", []):
        curve["points"] = sorted(curve["points"], key=lambda point: point["alpha"])
    for checkpoint in built.get("checkpoints", {}).values():
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get("file"), str):
            checkpoint["file"] = portable(ROOT / Path(checkpoint["file"]).expanduser())
    validate(built)
    return built


def validate(record: Any) -> None:
    """Raises ValueError, naming the field and what it must be, unless `record` is a schema-1 run record."""
    from fastjsonschema import JsonSchemaValueException

    study = isinstance(record, dict) and "rows" in record
    try:
        _validator(study)(record, name_prefix="record")
    except JsonSchemaValueException as error:
        field, rule, seen = error.name, error.definition["description"], f", not {error.value!r:.80}"
        if error.rule == "required":
            field, rule, seen = f"{field}.{next(n for n in error.rule_definition if n not in error.value)}", "there", ""
        raise ValueError(f"{field.removeprefix('record.')} must be {rule}{seen}") from None
    names = set()
    for index, curve in enumerate([] if study else record["curves"]):
        alphas = [point["alpha"] for point in curve["points"]]
        if alphas != sorted(set(alphas)):
            raise ValueError(f"curves[{index}].points must be sorted by alpha, without repeats, not {alphas}")
        if curve_key(curve) in names:
            raise ValueError(f"curves must be one of each matcher and correction, not {curve_key(curve)} twice")
        names.add(curve_key(curve))


@functools.cache
def _validator(study: bool) -> Callable[[Any], Any]:
    import fastjsonschema

    def value(types: str, what: str, **rules: Any) -> dict[str, Any]:
        return {"type": types.split(), "description": what} | rules

    def fields(*optional: str, **properties: Any) -> dict[str, Any]:
        required = [name for name in properties if name not in optional]
        return value("object", "an object", properties=properties, required=required)

    def each(values: dict[str, Any]) -> dict[str, Any]:
        return value("object", "an object", additionalProperties=values)

    def listed(row: dict[str, Any]) -> dict[str, Any]:
        return value("array", "a non-empty list of objects", items=row, minItems=1)

    def measured(least: int, *unknown: str) -> dict[str, Any]:
        """Each metric, null where it may be `unknown`; accuracies are fractions, never percentage points."""
        metrics = {}
        for metric in METRICS:
            types = "number null" if metric in unknown else "number"
            fraction = value(types, f"a fraction in [{least}, 1]", minimum=least, maximum=1)
            metrics[metric] = (
                fraction if metric.endswith("accuracy") else value(types, "a number", minimum=-most, maximum=most)
            )
        return metrics

    def closeness() -> dict[str, Any]:
        """Each of `CLOSENESS`; all may be left out."""
        fraction = value("number null", "a fraction in [0, 1]", minimum=0, maximum=1)
        number = value("number null", "a number", minimum=-most, maximum=most)
        return {name: number if name == "test_kl" else fraction for name in CLOSENESS}

    most, anything, rows = sys.float_info.max, {}, listed(value("object", "an object"))
    name, name_or_null = (value(types, "a name", minLength=1) for types in ("string", "string null"))
    others = [metric for metric in METRICS if metric != "test_accuracy"]
    point, barrier = measured(0, *others) | closeness(), fields(*METRICS, **measured(-1, *METRICS))
    alpha = value("number", "a number in [0, 1]", minimum=0, maximum=1)
    points, parent = listed(fields(*CLOSENESS, alpha=alpha, **point)), fields(*CLOSENESS, **point)
    spent = {
        "seconds": value("number null", "0 or more", minimum=0, maximum=most),
        "images": value("integer null", "a whole number, 0 or more", minimum=0),
        "info": value("object", "an object"),
    }
    file, width = fields(file=name, sha256=anything), value("number", "above 0", exclusiveMinimum=0, maximum=most)
    origin = ("git", "dirty", "versions", "device", "threads", "started", "seconds", "dataset_sha256")
    properties = {
        "experiment": name,
        "preset": name,
        "dataset": name_or_null if study else name,
        "model": fields(name=name, width=width, norm=name_or_null),
        "provenance": fields(**dict.fromkeys(origin, anything), parameters=value("object", "an object")),
        "studies": each(rows),
        "controls": each(fields(*others, *CLOSENESS, *spent, **point, **spent)),
    }
    if study:
        properties |= {"rows": rows, "curves": {"not": {}, "description": "left out where there are rows"}}
    else:
        properties |= {
            "seeds": each(value("integer null", "a whole number, 0 or more", minimum=0)),
            "images": each(value("integer", "a whole number, 0 or more", minimum=0)),
            "checkpoints": fields(a=file, b=file),
            "parents": fields(a=parent, b=parent),
            "curves": listed(fields(matcher=name, correction=name, points=points, barrier=barrier)),
        }
    optional = ("studies", "controls", *(("dataset", "model", "curves") if study else ()))
    version = fields(schema=value("integer", f"{SCHEMA}", enum=[SCHEMA]))  # before all else
    return fastjsonschema.compile(fields(*optional, **properties) | {"allOf": [version]})


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
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        validate(record)
    except FileNotFoundError:
        raise InputError(f"{portable(path)}: no such record") from None
    except OSError as error:
        raise InputError(f"{portable(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{portable(path)}: not a run record: {error}") from None
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


def read_records(folder: str | os.PathLike, experiment: str | None = None) -> dict[str, dict[str, Any]]:
    """Every record (*.json) of `folder`, by file stem in sorted order; of one `experiment`, or of all."""
    records = {path.stem: read_record(path) for path in sorted(Path(folder).glob("*.json"))}
    return {stem: record for stem, record in records.items() if experiment in (None, record["experiment"])}


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
