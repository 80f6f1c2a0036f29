"""Records of several pairs, flat and averaged.

`drop` is the parents' mean test accuracy − the network's at the midpoint, `drop_loss` its loss − theirs;
`against_better` is the test accuracy of the control `parent` (the better one on held-out images) − the network's;
`test_perplexity` the exponential of the test loss, of models of text. A
`barrier` is that of a path (`records.barrier`), computed again from the points of every record, whatever it says.
"""

import json
import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from ..checks import InputError
from ..records import CLOSENESS, METRICS, barrier, drop
from ..records.origin import PLACES
from . import evidence
from .evidence import grouped
from .names import TEXTS, circumstances, curve_name, images_of, model_label, skew_label
from .published import REFERENCE

Row = Mapping[str, Any]
OWN = (*METRICS, *CLOSENESS, "test_perplexity")  # what is known of any network alone
MEASURES = (*OWN, "drop", "drop_loss", "against_better")  # what a row says of its network
# One record, several, or what read_records answers.
Records = Mapping[str, Any] | Iterable[Mapping[str, Any]]


# Parameters at defaults that other records leave out: options of matchers since 0.1.0, and a skew of none.
WRITTEN_OUT = {"similarity": "correlation", "tap": "post_relu", "solver": "sweep", "skew": ""}


def headline(records: Records, *more: str) -> str:
    """What stands over every table and figure: "SimpleNet on mnist, one pair (n = 1)". Records of one pair, matched
    with several seeds, count once. Of more networks than two it says "set of networks"."""
    named = _named(records)
    subject = " + ".join(dict.fromkeys(model_label(r["model"]) for r in named.values() if "model" in r))
    datasets = " + ".join(dict.fromkeys(r["dataset"] for r in named.values() if r.get("dataset")))
    where = " on ".join(part for part in (subject, datasets) if part)
    n = len({_pair(name, r) for name, r in named.items()})
    one, several = "pair", "pairs"
    if any(len(r.get("parents", ())) > 2 for r in named.values()):
        one, several = "set of networks", "sets of networks"
    return ", ".join([where, f"one {one} (n = 1)" if n == 1 else f"{n} {several} (n = {n})", *more])


def reference_for(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of REFERENCE that speaks about this record's experiment, data set and model, or None."""
    known = REFERENCE.get(record["experiment"])
    return known if known and headline(known) == headline(record) else None


def rows(records: Records) -> list[dict[str, Any]]:
    """The records flat: one row per pair × curve × alpha, and one per pair × control, every row with the same columns,
    None where not known.

    Columns: record (file stem, else its place in the list), pair (what tells pairs apart), experiment, preset, dataset,
    dataset_sha256, model, width, norm, the run's `evidence.SETTINGS`, training (of both networks, as text), seed_a,
    seed_b, seed_match, sha256_a, sha256_b (of the checkpoints), test_images, device, threads, run_seconds; kind
    ("curve" or "control"), matcher, correction, control (its name), curve (the curve's name, or the control's), alphas
    (all of the curve's, as text), curve_match_images, curve_correct_images, images (the larger of the two),
    match_seconds, correct_seconds, seconds (both), barrier_<metric>, best_alpha, best_test_accuracy, best_test_loss,
    share_b, held_out_accuracy (of a control that chooses by it); alpha (of a control 0.5, where it is compared) and
    `MEASURES`; parent_a_<metric>, parent_b_<metric>.
    Accuracies, drops, agreement and calibration error are fractions, losses and KL nats. Records of studies without
    curves give no rows.
    """
    answer = []
    for name, r in _named(records).items():
        if "curves" not in r:
            continue
        common = {"record": name, "pair": _pair(name, r)} | _pair_columns(r)
        for curve in r["curves"]:
            columns = common | _curve_columns(curve, r)
            answer += [columns | {"alpha": point["alpha"]} | _measures(point, r) for point in curve["points"]]
        for control, found in r.get("controls", {}).items():
            nothing = dict.fromkeys(_curve_columns(r["curves"][0], r))
            columns = {"kind": "control", "control": control, "curve": control, "alphas": "", "alpha": 0.5}
            columns |= {"seconds": found.get("seconds"), "images": found.get("images")}
            columns["held_out_accuracy"] = found.get("info", {}).get("held_out_accuracy")
            answer.append(common | nothing | columns | _measures(found, r))
    return answer


def _curve_columns(curve: Row, r: Row) -> dict[str, Any]:
    best, share, images = curve.get("best") or {}, curve.get("share") or {}, images_of(curve, r["images"])
    seconds = {field: curve.get(field) or 0.0 for field in ("match_seconds", "correct_seconds")}
    columns = {"kind": "curve", "matcher": curve["matcher"], "correction": curve["correction"], "control": None}
    columns |= {"curve": curve_name(curve), "alphas": " ".join(f"{point['alpha']:g}" for point in curve["points"])}
    columns |= {f"curve_{what}_images": images.get(what) for what in ("match", "correct")}
    columns |= {"images": max(images.values()), **seconds, "seconds": sum(seconds.values())}
    columns |= {f"barrier_{metric}": value for metric, value in barrier(curve["points"], r["parents"]).items()}
    columns |= {f"best_{field}": best.get(field) for field in ("alpha", "test_accuracy", "test_loss")}
    return columns | {"share_b": share.get("b"), "held_out_accuracy": None}


def _measures(found: Row, r: Row) -> dict[str, float | None]:
    """`MEASURES` of a point or a control of the record `r`."""
    values = {metric: found.get(metric) for metric in (*METRICS, *CLOSENESS)} | {
        "test_perplexity": perplexity(found, r)
    }
    drops = drop([{"alpha": 0.5} | found], r["parents"])  # a control is compared where the midpoint is
    better, accuracy = r.get("controls", {}).get("parent", {}).get("test_accuracy"), values["test_accuracy"]
    values |= {"drop": drops["test_accuracy"], "drop_loss": drops["test_loss"]}
    return values | {"against_better": None if None in (better, accuracy) else better - accuracy}


def perplexity(found: Row, r: Row) -> float | None:
    """The exponential of a test loss of the record `r`, of a model of text; infinite where it is too large."""
    loss = found.get("test_loss")
    if loss is None or r["model"]["name"] not in TEXTS:
        return None
    return math.exp(loss) if loss < 700 else math.inf


def _pair(name: str, r: Row) -> str:
    """What tells pairs apart: their checkpoints, else their seeds, else their records."""
    shas = {side: checkpoint["sha256"] for side, checkpoint in r.get("checkpoints", {}).items()}
    both = ((of.get("a"), of.get("b")) for of in (shas, r.get("seeds", {})))
    return next((f"{a} {b}" for a, b in both if None not in (a, b)), name)


def _pair_columns(r: Row) -> dict[str, Any]:
    origin, model, checkpoints, images = r["provenance"], r["model"], r["checkpoints"], r["images"]
    columns = {field: r[field] for field in ("experiment", "preset", "dataset")}
    columns |= {"dataset_sha256": origin["dataset_sha256"], "model": model["name"]}
    columns |= {"width": model["width"], "norm": model["norm"]}
    columns |= {field: origin["parameters"].get(field) for field in evidence.SETTINGS}
    columns |= {field: None for field, default in WRITTEN_OUT.items() if columns[field] == default}
    # The seed tells pairs apart; what no sidecar said is left out.
    sidecars = [
        f"{side}.{word}"
        for side in ("a", "b")
        for name in ("spec", "dataset", "images")
        for word in _words(name, checkpoints[side].get(name, {}))
    ]
    columns["training"] = " ".join(sidecars) or None
    columns |= {f"seed_{field}": r["seeds"].get(field) for field in ("a", "b", "match")}
    columns |= {f"sha256_{side}": checkpoints[side]["sha256"] for side in ("a", "b")}
    columns["test_images"] = images.get("test")
    columns |= {"device": origin["device"], "threads": origin["threads"], "run_seconds": origin["seconds"]}
    parents = {side: of | {"test_perplexity": perplexity(of, r)} for side, of in r["parents"].items()}
    return columns | {f"parent_{side}_{m}": parents[side].get(m) for side in ("a", "b") for m in OWN}


def _words(name: str, value: Any) -> list[str]:
    """How a network was trained, "dataset=mnist images=60000 spec.recipe.epochs=1 …"."""
    if isinstance(value, Mapping):
        return [word for key in sorted(value) for word in _words(f"{name}.{key}", value[key])]
    return [] if name in ("spec.seed", "spec.part.seed") else [f"{name}={json.dumps(value, separators=(',', ':'))}"]


def frame(records: Records) -> "pandas.DataFrame":  # noqa: F821
    """`rows` as a pandas frame."""
    import pandas  # imported late: figures and tables need none, and it takes as long to import as they do

    return pandas.DataFrame(rows(records))


def aggregate(records: Records) -> dict[str, Any]:
    """Means, sample standard deviations and 95 % intervals over independent pairs of one kind, of curves and controls.

    The shape of a record: "n" (pairs), "parents" and "curves" whose points (`MEASURES`) and barriers hold each metric's
    mean under its name, the deviation under "<metric>_std" and the interval of `evidence.mean_interval` under
    "<metric>_low" and "_high" (each None where n is too small). Records of one pair with several matcher seeds are
    averaged first. A curve has its own "n", since not every record must hold it; its points are the alphas that all of
    those measured; its barrier is None where they did not measure the same alphas, or no path. Raises InputError when
    the records are not of one kind or share networks, or none is given.
    """
    records = list(_named(records).values())
    if not records:
        raise InputError("no records to aggregate; accepted: one or more")
    flat = rows(records)
    evidence.check_poolable(flat)
    curves = []
    for (matcher, correction), alike in grouped(_curves(flat), "matcher", "correction").items():
        whole = [of_record[0] for of_record in grouped(alike, "record").values()]
        by_alpha = grouped((row | {"alpha": round(row["alpha"], 6)} for row in alike), "alpha")
        points = [{"alpha": a} | _means(at, MEASURES) for a, at in by_alpha.items() if len(at) == len(whole)]
        curve = {"matcher": matcher, "correction": correction, "n": len(grouped(alike, "pair")), "points": points}
        curves.append(curve | {"barrier": _means(_comparable(whole), METRICS, "barrier_")})
    parents = {side: _means(flat, (*METRICS, "test_perplexity"), f"parent_{side}_") for side in ("a", "b")}
    controls = [
        {"control": control, "n": len(grouped(alike, "pair"))} | _means(alike, MEASURES)
        for control, alike in grouped((row for row in flat if row["kind"] == "control"), "control").items()
    ]
    kind = {field: records[0][field] for field in ("experiment", "preset", "dataset", "model", "images")}
    return kind | {"n": len(grouped(flat, "pair")), "parents": parents, "curves": curves, "controls": controls}


def _curves(rows: Iterable[Row]) -> list[Row]:
    """The rows that are no controls."""
    return [row for row in rows if row["kind"] == "curve"]


def _comparable(rows: list[Row]) -> list[Row]:
    """The rows of one curve, none where they come from other alphas: over those a barrier is another quantity."""
    return rows if len(grouped(rows, "alphas")) == 1 else [{}]


def _means(rows: Iterable[Row], metrics: Iterable[str], start: str = "", under: str = "") -> dict[str, float | None]:
    """The mean over pairs of the column <start><metric> as <under><metric>, beside it _std, _low and _high."""
    rows, answer = list(rows), {}
    for metric in metrics:
        over, name = evidence.over_pairs(rows, f"{start}{metric}"), f"{under}{metric}"
        answer |= {name: over.mean, f"{name}_std": over.std, f"{name}_low": over.low, f"{name}_high": over.high}
    return answer


def leaderboard_rows(records: Records, alpha: float = 0.5) -> list[dict[str, Any]]:
    """One row per curve at `alpha`, then one per control (the row has its name as "control"), means over pairs.

    Pairs of one kind (model, how its classes were divided, data set) are averaged; kinds follow one another. Row:
    architecture, dataset, experiment, skew, matcher, correction, n, alpha, each of `MEASURES` but those on training
    images, barrier_accuracy, barrier_loss, alphas (the number measured), best_alpha and best_accuracy (alpha chosen on
    held-out training images; None where a curve does not say or had no choice), parents_accuracy (the mean of both
    parents of the same pairs), each metric also with _std, _low and _high as in `aggregate`; seconds (match and correct
    together), match_images, correct_images, images (the larger of the two), share_b (the part of parent B's units in
    the fused network). The parents alone are the controls parent_a and parent_b.
    """
    answer, named = [], _named(records)
    flat = [row | {"architecture": _architecture(row)} for row in rows(named)]
    for (architecture, dataset), kind in grouped(flat, "architecture", "dataset").items():
        evidence.check_poolable(kind)
        common = {"architecture": architecture, "dataset": dataset} | {n: kind[0][n] for n in ("experiment", "skew")}
        for (matcher, correction), alike in grouped(_curves(kind), "matcher", "correction").items():
            there = [row for row in alike if evidence.at(row, alpha)]
            if len(there) == len(grouped(alike, "record")):
                answer.append(common | {"matcher": matcher, "correction": correction} | _board_row(there))
        controls = [row for row in kind if row["kind"] == "control"]
        for row, *_ in grouped(kind, "pair").values():
            r, same = named[row["record"]], {name: row[name] for name in row if name not in MEASURES}
            nothing = {"kind": "control", "seconds": None, "images": 0, "alphas": ""}
            for side in ("a", "b"):
                controls.append(same | nothing | {"control": f"parent_{side}"} | _measures(r["parents"][side], r))
        for name, alike in sorted(grouped(controls, "control").items(), key=lambda of: of[0] not in PARENTS):
            answer.append(common | {"control": name} | _control_row(alike))
    return answer


def _architecture(row: Row) -> str:
    """ "VGG11-BN ×1/8", and how the classes were divided between the parents, if they were."""
    return ", ".join([model_label(row | {"name": row["model"]}), *filter(None, [skew_label(row["skew"] or "")])])


PARENTS = ("parent_a", "parent_b")
_SHOWN = ("test_accuracy", "test_loss", "test_perplexity", *CLOSENESS, "drop", "drop_loss", "against_better")


def _board_row(rows: list[Row]) -> dict[str, Any]:
    """The leaderboard's row of one curve from its rows at one alpha."""
    one, best = rows[0], [row if " " in row["alphas"] else {"pair": row["pair"]} for row in rows]
    return {
        **_of_network(rows),
        "alpha": one["alpha"],
        "alphas": len(one["alphas"].split()),
        **_means(_comparable(rows), ("accuracy", "loss"), "barrier_test_", "barrier_"),
        **_means(best, ("accuracy",), "best_test_", "best_"),
        "best_alpha": evidence.over_pairs(best, "best_alpha").mean,
        "seconds": fmean(row["seconds"] for row in rows),
        "match_images": one["curve_match_images"],
        "correct_images": one["curve_correct_images"],
        "share_b": fmean(one["alpha"] if row["share_b"] is None else row["share_b"] for row in rows),
    }


def _control_row(rows: list[Row]) -> dict[str, Any]:
    seconds = [row["seconds"] for row in rows]
    return _of_network(rows) | {"seconds": None if None in seconds else fmean(seconds)}


def _of_network(rows: list[Row]) -> dict[str, Any]:
    """What a row says of a network, fused or a control."""
    parents = [fmean(row[f"parent_{side}_test_accuracy"] for side in ("a", "b")) for row in rows]
    rows = [row | {"parents_accuracy": mean} for row, mean in zip(rows, parents, strict=True)]
    return {"n": len(grouped(rows, "pair")), "images": rows[0]["images"], **_means(rows, (*_SHOWN, "parents_accuracy"))}


def but_for_width(records: Records) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Records by what tells their kinds apart besides the width, in words: data set, `names.circumstances`; "" where
    nothing does."""
    named, answer = _named(records), {}
    firsts = {name: row for name, (row, *_) in grouped(rows(records), "record").items()}
    datasets = {row["dataset"] for row in firsts.values()}
    for name, row in firsts.items():
        words = [row["dataset"]] * (len(datasets) > 1) + circumstances(row, firsts.values())
        answer.setdefault(", ".join(words), {})[name] = named[name]
    return answer


def by_width(records: Records) -> tuple[str, dict[float, dict[str, Any]]]:
    """What the records are of ("VGG11-BN on cifar10-jpeg"), and their `aggregate` at each width, narrow to wide. Raises
    InputError unless all were measured on one data set."""
    records = list(_named(records).values())
    datasets = sorted({str(r["dataset"]) for r in records})
    if len(datasets) != 1:
        raise InputError(f"records must be of one data set, not {' and '.join(datasets) or 'none'}")
    models = dict.fromkeys(model_label(r["model"] | {"width": 1.0}) for r in records)
    widths = sorted({r["model"]["width"] for r in records})
    means = {width: aggregate([r for r in records if r["model"]["width"] == width]) for width in widths}
    return f"{' + '.join(models)} on {datasets[0]}", means


def sharing(records: Records) -> dict[str, str]:
    """{record: earlier record that is alike but for seeds, and has a network in common}, of records of rows: what
    `evidence.overlapping` says of those of curves."""
    owners: dict[Any, str] = {}
    shared: dict[str, str] = {}
    for name, r in _named(records).items():
        if "rows" not in r:
            continue
        given = {n: v for n, v in r["provenance"]["parameters"].items() if n not in PLACES and "seed" not in n}
        alike = json.dumps([r["experiment"], r["dataset"], given], sort_keys=True)
        networks = [(alike, checkpoint["sha256"]) for checkpoint in r.get("checkpoints", {}).values()]
        if clash := next((owners[one] for one in networks if one in owners), None):
            shared[name] = clash
        else:
            owners |= dict.fromkeys(networks, name)
    return shared


def _named(records: Records) -> dict[str, Mapping[str, Any]]:
    """The records by name: their file stems where they come with them, else their places."""
    if isinstance(records, Mapping) and "dataset" not in records:
        return {str(name): r for name, r in records.items()}
    return {str(name): r for name, r in enumerate([records] if isinstance(records, Mapping) else records)}
