"""Records of several pairs, flat and averaged."""

import json
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from ..checks import InputError
from ..records import METRICS, curve_key, curve_of, point_at
from . import evidence
from .names import curve_name, model_label
from .published import REFERENCE

# One record, several, or what read_records answers.
Records = Mapping[str, Any] | Iterable[Mapping[str, Any]]


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


def reference_for(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of REFERENCE that speaks about this record's experiment, data set and model, or None."""
    known = REFERENCE.get(record["experiment"])
    return known if known and headline(known) == headline(record) else None


def rows(records: Records) -> list[dict[str, Any]]:
    """The records flat: one row per pair × curve × alpha, every row with the same columns, None where not known.

    Columns: record (file stem, else its place in the list), experiment, preset, dataset, dataset_sha256, model, width,
    norm, the run's `lib.evidence.SETTINGS`, training (of both networks, as text), seed_a, seed_b, seed_match, sha256_a,
    sha256_b (of the checkpoints), test_images, device, threads, run_seconds; matcher, correction, curve (its
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
            columns = dict(zip(("matcher", "correction"), curve_key(curve), strict=True))
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


def frame(records: Records) -> "pandas.DataFrame":  # noqa: F821
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
    matcher, correction, n, alpha, test_accuracy, test_loss, barrier_accuracy, barrier_loss, alphas (the number
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
        row = {name: curve[name] for name in ("matcher", "correction", "n")}
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


def _entries(records: list[Mapping[str, Any]], key: tuple[str, str]) -> list[Mapping[str, Any]]:
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
