"""lib.results: records are checked, written whole or not at all, and averaged only where they are of one kind."""

import copy
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import fusion, matching, paths
from lib.checks import InputError
from lib.paper import names, pool, tables
from lib.records import (
    curve_entry,
    matching_arrays,
    origin,
    read_arrays,
    read_record,
    read_records,
    run_record,
    validate,
    write_record,
)

STARTED = datetime(2026, 1, 1, tzinfo=UTC)
SEEDS = {"a": 0, "b": 1, "match": 0}


def provenance(**changes):
    fields = {"git": None, "dirty": None, "versions": {}, "device": "a CPU", "threads": 2, "parameters": {}}
    return fields | {"started": STARTED.isoformat(), "seconds": 1.0, "dataset_sha256": None} | changes


def metrics(accuracy, loss=0.5, train=None):
    return {"test_accuracy": accuracy, "test_loss": loss, "train_accuracy": train, "train_loss": train}


def curve(matcher, accuracies, alphas=(0.0, 0.5, 1.0), correction="none", **extra):
    points = [{"alpha": a} | metrics(value, 1 - value) for a, value in zip(alphas, accuracies, strict=True)]
    barrier = metrics((accuracies[0] + accuracies[-1]) / 2 - min(accuracies), 0.4)
    seconds = {"match_seconds": 0.5, "correct_seconds": 1.5}
    return {"matcher": matcher, "correction": correction, "points": points, "barrier": barrier} | seconds | extra


def pair(*curves, **changes):
    fields = {
        "experiment": "simplenet_mnist",
        "preset": "quick",
        "dataset": "mnist-5k",
        "model": {"name": "simplenet", "width": 1.0, "norm": None},
        "seeds": SEEDS,
        "checkpoints": {side: {"file": f"{side}.dat", "sha256": None} for side in ("a", "b")},
        "parents": {"a": metrics(0.84), "b": metrics(0.82)},
        "images": {"train": 4000, "test": 1000, "match": 0, "correct": 0},
        "curves": curves or (curve("none", (0.84, 0.47, 0.82)), curve("graph", (0.84, 0.91, 0.82))),
        "provenance": provenance(),
    }
    return run_record.record(**(fields | changes))


def pairs(*middles, **changes):
    """Independent pairs, each with one curve that has this accuracy at the midpoint."""
    return [
        pair(curve("none", (0.84, m, 0.82)), seeds={"a": 2 * i, "b": 2 * i + 1, "match": 0}, **changes)
        for i, m in enumerate(middles)
    ]


# Provenance


def test_provenance_names_code_hardware_time_and_data(monkeypatch):
    dataset = SimpleNamespace(name="mnist", sha256="abc")
    found = origin.provenance({"epochs": 3}, dataset, torch.device("cpu"), STARTED)
    assert found["versions"].keys() >= {"python", "torch", "numpy", "scipy"}
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["dataset_sha256"] == "abc"
    assert found["threads"] == torch.get_num_threads()
    assert found["device"]
    assert found["started"] == "2026-01-01T00:00:00+00:00"
    assert found["seconds"] > 0
    json.dumps(found, allow_nan=False)
    pair(provenance=found)


def test_provenance_without_git_is_null_not_an_error(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    found = origin.provenance({}, None, "cpu", STARTED)
    assert found["git"] is None and found["dirty"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_provenance_does_not_report_the_commit_of_a_repo_around_ours(tmp_path, monkeypatch):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    commit = ["git", "-C", tmp_path, *identity, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, check=True)
    inner = tmp_path / "copy"
    inner.mkdir()
    monkeypatch.setattr(origin, "ROOT", inner)
    assert origin.provenance({}, None, "cpu", STARTED)["git"] is None
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    clean = origin.provenance({}, None, "cpu", STARTED)
    assert len(clean["git"]) == 40 and clean["dirty"] is False
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "new.json").write_text("{}")
    assert origin.provenance({}, None, "cpu", STARTED)["dirty"] is False
    (tmp_path / "code.py").write_text("x = 1")
    assert origin.provenance({}, None, "cpu", STARTED)["dirty"] is True
    monkeypatch.setattr(origin, "IS_CLONE", False)  # installed from a wheel: this is the user's own repo
    outside = origin.provenance({}, None, "cpu", STARTED)
    assert outside["git"] is None and outside["dirty"] is None


def test_provenance_refuses_a_naive_start():
    with pytest.raises(ValueError, match="naive"):
        origin.provenance({}, None, "cpu", datetime(2026, 1, 1))


@pytest.mark.parametrize("outside", ["/home/someone/a.dat", "../elsewhere/a.dat", "~/a.dat"])
def test_no_folder_outside_the_repo_enters_a_record(outside):
    found = origin.provenance({"checkpoint_a": outside, "alphas": [0.5]}, None, "cpu", STARTED)
    assert found["parameters"] == {"checkpoint_a": "a.dat", "alphas": [0.5]}
    checkpoints = {
        "a": {"file": outside, "sha256": "0"},
        "b": {"file": str(paths.ROOT / "checkpoints" / "b.st"), "sha256": "1"},
    }
    record = pair(checkpoints=checkpoints)
    assert record["checkpoints"]["a"]["file"] == "a.dat"
    assert record["checkpoints"]["b"]["file"] == "checkpoints/b.st"


# Records


def test_record_sorts_points_and_turns_tensors_into_numbers():
    shuffled = curve("graph", (0.82, 0.84, 0.47), alphas=(1.0, 0.0, 0.5))
    shuffled["points"][0]["test_accuracy"] = torch.tensor(0.75)
    shuffled["points"][1]["test_loss"] = np.float32(0.25)
    record = pair(shuffled)
    assert [point["alpha"] for point in record["curves"][0]["points"]] == [0.0, 0.5, 1.0]
    assert record["curves"][0]["points"][2]["test_accuracy"] == 0.75
    assert record["curves"][0]["points"][0]["test_loss"] == 0.25


def test_a_diverged_loss_is_null_in_the_file_and_a_dash_in_the_table(tmp_path):
    diverged = curve("none", (0.84, 0.1, 0.82))
    diverged["points"][1]["test_loss"] = float("inf")
    path = write_record(tmp_path / "r.json", pair(diverged))
    record = read_record(path)
    assert record["curves"][0]["points"][1]["test_loss"] is None
    assert "—" in str(tables.table(record))


def change(record, path, value):
    record = copy.deepcopy(record)
    *parents, last = path
    target = record
    for key in parents:
        target = target[key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("schema",), 2, "schema"),
        (("experiment",), "", "experiment"),
        (("dataset",), None, "dataset"),
        (("model", "width"), 0, "model.width"),
        (("model", "width"), True, "model.width"),
        (("seeds", "a"), 1.5, "seeds.a"),
        (("seeds", "a"), -1, "seeds.a"),
        (("images", "test"), -1, "images.test"),
        (("checkpoints", "b"), "b.dat", "checkpoints.b"),
        (("parents", "a", "test_accuracy"), 84.18, "parents.a.test_accuracy"),
        (("parents", "b"), KeyError, "parents"),
        (("curves",), [], "curves"),
        (("curves", 0, "matcher"), KeyError, r"curves\[0\].matcher"),
        (("curves", 1, "points", 1, "alpha"), 1.5, r"curves\[1\].points\[1\].alpha"),
        (("curves", 1, "points", 1, "alpha"), 0.0, r"curves\[1\].points must be sorted"),
        (("curves", 0, "points", 2, "test_accuracy"), 53.74, r"curves\[0\].points\[2\].test_accuracy"),
        (("curves", 0, "points", 2, "test_accuracy"), None, r"curves\[0\].points\[2\].test_accuracy"),
        (("curves", 0, "points", 2, "train_loss"), KeyError, r"curves\[0\].points\[2\].train_loss"),
        (("curves", 0, "points", 0, "test_loss"), "low", r"curves\[0\].points\[0\].test_loss"),
        (("curves", 0, "barrier", "test_accuracy"), 30.2, r"curves\[0\].barrier.test_accuracy"),
        (("curves", 1, "matcher"), "none", "curves must be one of each"),
        (("provenance", "device"), KeyError, "provenance.device"),
        (("rows",), [{"width": 1}], "curves"),
        (("studies",), {"bn_images": []}, "studies.bn_images"),
        (("curves", 0, "points", 0, "test_agreement"), 99.5, r"curves\[0\].points\[0\].test_agreement"),
        (("parents", "a", "test_calibration"), -0.1, "parents.a.test_calibration"),
        (("controls",), {"head": {"test_loss": 0.3}}, "controls.head.test_accuracy"),
        (("controls",), {"head": {"test_accuracy": 0.5, "test_kl": "small"}}, "controls.head.test_kl"),
        (("controls",), {"head": {"test_accuracy": 0.5, "images": 0.5}}, "controls.head.images"),
        (("controls",), {"head": {"test_accuracy": 0.5, "seconds": -1}}, "controls.head.seconds"),
    ],
)
def test_validate_names_the_bad_field(path, value, named):
    good = pair()
    validate(good)
    with pytest.raises(ValueError, match=f"^{named}"):
        validate(change(good, path, value))


def test_closeness_may_be_there_unknown_or_left_out():
    close = {"test_kl": 0.1, "test_agreement": None, "test_calibration": 0.02}
    control = {"test_accuracy": 0.5, "seconds": 3.5, "images": 2000, "info": {"steps": 100}}
    record = pair(controls={"distillation": control | close, "parent": {"test_accuracy": 0.84}})
    record["curves"][0]["points"][1] |= close
    validate(record)
    row = next(row for row in pool.rows(record) if row["control"] == "distillation")
    assert (row["test_kl"], row["test_agreement"], row["seconds"], row["images"]) == (0.1, None, 3.5, 2000)
    assert row["drop"] == pytest.approx(0.83 - 0.5) and row["against_better"] == pytest.approx(0.84 - 0.5)


@pytest.mark.parametrize(
    ("alphas", "values", "wanted"),
    [
        ((0.5,), (0.47,), None),
        ((0.0, 1.0), (0.84, 0.82), None),
        ((0.25, 0.5, 0.75), (0.9, 0.91, 0.9), 0.0),
        ((0.25, 0.5, 0.75), (0.9, 0.73, 0.9), 0.1),
    ],
)
def test_a_barrier_is_of_a_path_whatever_an_old_record_says(alphas, values, wanted):
    row = pool.rows(pair(curve("none", values, alphas=alphas)))[0]
    assert row["barrier_test_accuracy"] == (wanted if wanted is None else pytest.approx(wanted))


def test_an_old_record_looked_at_images_where_its_methods_do():
    images = {"train": 9, "test": 9, "match": 200, "correct": 500}
    methods = [("weight", "none"), ("weight", "repair(images=5)"), ("activation(tap=pre_norm)", "none")]
    methods += [("graph(activations=0.5)", "none")]
    told = {"match": 0, "correct": 7}
    curves = [curve(m, (0.8, 0.5, 0.8), correction=c) for m, c in methods]
    curves.append(curve("activation", (0.8, 0.5, 0.8), correction="bn_reset", images=told))
    rows = {row["curve"]: row for row in pool.rows(pair(*curves, images=images))}
    assert [row["images"] for row in rows.values()] == [0, 500, 200, 200, 7]


def test_the_methods_that_look_at_images_are_those_of_the_code():
    for table, looks in (
        (matching.MATCHERS, matching.looks_at_images),
        (fusion.CORRECTIONS, lambda name: fusion.CORRECTIONS[name].images),
    ):
        assert {n for n in table if looks(n)} == {n for n in table if n in names.LOOK_AT_IMAGES}


def test_a_study_holds_rows_in_place_of_curves():
    study = {"experiment": "graph_matching_scaling", "preset": "quick", "provenance": provenance()}
    record = run_record.record(**study, dataset=None, rows=[{"width": 0.5}])
    assert "curves" not in record
    with pytest.raises(ValueError, match="^rows"):
        run_record.record(**study, dataset=None, rows=[])
    with pytest.raises(ValueError, match="^dataset"):
        pair(dataset=None)


def test_record_and_arrays_survive_the_disk(tmp_path):
    record = pair()
    arrays = {"perm/graph/conv1": torch.tensor([2, 0, 1]), "corr/graph/conv1": np.array([0.5, 0.25, 1.0])}
    path = write_record(tmp_path / "sub" / "pair.json", record, arrays)
    assert read_record(path) == record | {"arrays_sha256": paths.file_sha256(path.with_suffix(".npz"))}
    back = read_arrays(path)
    assert back["perm/graph/conv1"].tolist() == [2, 0, 1]
    assert back["corr/graph/conv1"].tolist() == [0.5, 0.25, 1.0]
    assert sorted(os.listdir(path.parent)) == ["pair.json", "pair.npz"]


def test_the_same_record_and_arrays_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_record(tmp_path / f"{name}.json", pair(), {"perm/graph/conv1": np.arange(4)})
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_arrays_of_another_run_are_refused(tmp_path):
    path = write_record(tmp_path / "pair.json", pair(), {"perm/graph/conv1": np.arange(4)})
    other = write_record(tmp_path / "other.json", pair(), {"perm/graph/conv1": np.arange(5)})
    os.replace(other.with_suffix(".npz"), path.with_suffix(".npz"))  # a kill between the two files of a rewrite
    with pytest.raises(InputError, match="pair.npz: not the arrays of the record beside it"):
        read_arrays(path)
    path.write_text(json.dumps(pair()))  # from before sums were kept
    path.with_suffix(".npz").write_bytes(path.with_suffix(".npz").read_bytes()[:100])
    with pytest.raises(InputError, match="pair.npz: cannot be read"):
        read_arrays(path)


def test_arrays_that_are_lost_are_said_to_be(tmp_path):
    path = write_record(tmp_path / "pair.json", pair(), {"perm/graph/conv1": np.arange(4)})
    path.with_suffix(".npz").unlink()
    with pytest.raises(InputError, match="pair.npz: the arrays of the record beside it are lost"):
        read_arrays(path)


def test_rewriting_without_arrays_leaves_none_of_an_older_run(tmp_path):
    path = write_record(tmp_path / "pair.json", pair(), {"perm/graph/conv1": np.arange(4)})
    write_record(path, pair())
    assert read_arrays(path) == {}


def test_a_bad_record_writes_nothing(tmp_path):
    bad = change(pair(), ("curves", 0, "points", 0, "test_accuracy"), 84.18)
    with pytest.raises(ValueError, match="test_accuracy"):
        write_record(tmp_path / "pair.json", bad, {"perm/graph/conv1": np.arange(4)})
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_old_record_and_no_rest(tmp_path, monkeypatch):
    path = write_record(tmp_path / "pair.json", pair())
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(InputError, match="No space"):
        write_record(path, pair(preset="paper"), {"perm/graph/conv1": np.arange(4)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["pair.json"]


def test_a_hidden_file_of_the_users_own_stays(tmp_path):
    mine = [tmp_path / ".pair.original.json", tmp_path / ".pair.json"]
    for path in mine:
        path.write_text("mine")
    write_record(tmp_path / "pair.json", pair())
    assert all(path.read_text() == "mine" for path in mine)


def test_arrays_are_in_place_before_the_record_that_says_done(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(os.path.basename(b)), replace(a, b)))
    write_record(tmp_path / "pair.json", pair(), {"perm/graph/conv1": np.arange(4)})
    assert order == ["pair.npz", "pair.json"]


def test_reading_something_else_names_file_and_reason(tmp_path):
    (tmp_path / "half.json").write_text('{"schema": 1, "expe')
    (tmp_path / "other.json").write_text('{"schema": 7}')
    with pytest.raises(InputError, match="half.json: not a run record"):
        read_record(tmp_path / "half.json")
    with pytest.raises(InputError, match="other.json: not a run record: schema must be 1"):
        read_record(tmp_path / "other.json")
    (tmp_path / "nan.json").write_text(json.dumps(change(pair(), ("parents", "a", "test_loss"), float("nan"))))
    with pytest.raises(InputError, match="nan.json: not a run record: NaN is no number"):
        read_record(tmp_path / "nan.json")
    with pytest.raises(InputError, match="gone.json: no such record"):
        read_record(tmp_path / "gone.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="folder.json: cannot be read"):
        read_record(tmp_path / "folder.json")


def test_read_records_of_one_experiment(tmp_path):
    write_record(tmp_path / "b.json", pair())
    write_record(tmp_path / "a.json", pair(experiment="leaderboard"), {"x": np.ones(1)})
    assert list(read_records(tmp_path)) == ["a", "b"]
    assert list(read_records(tmp_path, "simplenet_mnist")) == ["b"]


class Matching(dict):
    def __init__(self, matcher, perms, similarity=None):
        super().__init__(perms)
        self.matcher, self.moved, self.objective = matcher, "b", 1.5
        self.seconds, self.peak_bytes, self.options = 0.25, 1024, {"solver": "sweep"}
        self.similarity = similarity


def test_curve_entry_takes_what_a_matching_says():
    matching = Matching("graph", {})
    points = [{"alpha": 0.5} | metrics(0.9)]
    entry = curve_entry(matching, "repair(images=5)", points, metrics(0.1), options={"images": 5})
    (stored,) = pair(entry)["curves"]
    assert stored["options"] == {"solver": "sweep"} and stored["correction_options"] == {"images": 5}
    assert stored["match_seconds"] == 0.25
    assert names.curve_name(stored) == "graph + repair(images=5)"


def test_every_tracked_record_is_still_read():
    files = sorted(p for p in (paths.ROOT / "data" / "results").rglob("*.json") if paths.LOCAL not in p.parents)
    assert len(files) > 40
    for path in files:
        found = read_record(path)
        for curve in found.get("curves", []):
            assert run_record.curve_of(found, *run_record.curve_key(curve)) is curve


def test_curves_that_differ_in_options_alone_are_two_curves():
    one, other = curve("graph", (0.8, 0.5, 0.8)), curve("graph(restarts=3)", (0.8, 0.6, 0.8))
    found = run_record.curve_of(pair(one, other), "graph(restarts=3)")
    assert found["points"][1]["test_accuracy"] == 0.6
    with pytest.raises(ValueError, match="one of each matcher and correction"):
        pair(other, other)


def test_matching_arrays_measure_every_matching_by_one_correlation():
    similarity = torch.tensor([[0.1, 0.9], [0.8, 0.2]], dtype=torch.float64)
    activation = Matching("activation", {"conv1": torch.tensor([1, 0])}, {"conv1": similarity})
    none = Matching("none", {"conv1": torch.tensor([0, 1])})
    arrays = matching_arrays(activation, none, correlation=activation, soft=True)
    assert arrays["perm/activation/conv1"].tolist() == [1, 0]
    np.testing.assert_allclose(arrays["corr/activation/conv1"], [0.9, 0.8], atol=1e-6)
    np.testing.assert_allclose(arrays["corr/none/conv1"], [0.1, 0.2], atol=1e-6)
    assert arrays["soft/activation/conv1"].shape == (2, 2)
    assert "soft/none/conv1" not in arrays


# Many pairs


def test_several_pairs_give_mean_deviation_and_interval():
    records = pairs(0.4, 0.5, 0.6)
    summary = pool.aggregate(records)
    middle = summary["curves"][0]["points"][1]
    assert middle["test_accuracy"] == pytest.approx(0.5)
    assert middle["test_accuracy_std"] == pytest.approx(0.1)
    half = 4.302653 * 0.1 / 3**0.5  # Student's t, 2 degrees of freedom
    assert middle["test_accuracy_low"] == pytest.approx(0.5 - half)
    assert middle["test_accuracy_high"] == pytest.approx(0.5 + half)
    assert summary["n"] == 3


def test_two_pairs_have_a_mean_and_no_interval():
    middle = pool.aggregate(pairs(0.4, 0.6))["curves"][0]["points"][1]
    assert middle["test_accuracy"] == pytest.approx(0.5) and middle["test_accuracy_low"] is None


def test_matcher_seeds_of_one_pair_are_averaged_and_are_one_pair():
    records = [pair(curve("none", (0.84, m, 0.82)), seeds=SEEDS | {"match": s}) for s, m in enumerate((0.4, 0.6))]
    summary = pool.aggregate(records)
    assert summary["n"] == summary["curves"][0]["n"] == 1
    assert summary["curves"][0]["points"][1]["test_accuracy"] == pytest.approx(0.5)


def test_a_pair_is_known_by_its_checkpoints_else_its_seeds_else_its_record():
    def of(seeds, shas):
        files = {side: {"file": side, "sha256": sha} for side, sha in zip("ab", shas, strict=True)}
        return pair(seeds=dict(zip("ab", seeds, strict=True)) | {"match": 0}, checkpoints=files)

    records = {
        "x": of((0, 1), "pq"),
        "y": of((2, 3), "pq"),
        "z": of((0, 1), (None, None)),
        "w": of((0, 1), (None, "q")),
    }
    records |= {"u": of((None, None), (None, None)), "v": of((None, 1), (None, None))}
    pairs = {row["record"]: row["pair"] for row in pool.rows(records)}
    assert pairs["x"] == pairs["y"] != pairs["z"] == pairs["w"]
    assert (pairs["u"], pairs["v"]) == ("u", "v")


def test_a_curve_that_not_every_pair_has_keeps_its_own_n():
    one, other = pairs(0.5, 0.6)
    one["curves"].append(curve("graph", (0.84, 0.91, 0.82)))
    summary = pool.aggregate([one, other])
    assert [entry["n"] for entry in summary["curves"]] == [2, 1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dataset": "mnist"}, "dataset can not be pooled: mnist-5k and mnist"),
        ({"model": {"name": "mlp", "width": 1.0, "norm": None}}, "model"),
        ({"model": {"name": "simplenet", "width": 0.5, "norm": None}}, "width can not be pooled: 1.0 and 0.5"),
    ],
)
def test_pairs_of_different_kinds_are_not_averaged(change, named):
    with pytest.raises(InputError, match=named):
        pool.aggregate([pair(), pair(seeds={"a": 2, "b": 3, "match": 0}, **change)])


def test_a_barrier_over_other_alphas_is_another_quantity():
    one, other = pairs(0.5, 0.6)
    del other["curves"][0]["points"][0]
    summary = pool.aggregate([one, other])
    assert [point["alpha"] for point in summary["curves"][0]["points"]] == [0.5, 1.0]
    assert summary["curves"][0]["barrier"]["test_accuracy"] is None


def test_a_frame_has_a_row_per_pair_curve_and_alpha():
    best = {"alpha": 0.5, "held_out_accuracy": 0.9, "test_accuracy": 0.91, "test_loss": 0.2}
    record = pair(
        curve("none", (0.84, 0.47, 0.82)),
        curve("graph", (0.91,), alphas=(0.5,), correction="repair", best=best, share={"a": 0.3, "b": 0.7}),
        provenance=provenance(dataset_sha256="abc", parameters={"epochs": 3, "match_images": 100}),
    )
    frame = pool.frame({"some_pair": record})
    assert isinstance(frame, pd.DataFrame) and len(frame) == 3 + 1
    row = frame[frame.curve == "graph + repair"].iloc[0]
    wanted = {
        "record": "some_pair", "experiment": "simplenet_mnist", "dataset": "mnist-5k", "dataset_sha256": "abc",
        "model": "simplenet", "width": 1.0, "seed_a": 0, "seed_b": 1, "seed_match": 0, "matcher": "graph",
        "correction": "repair", "alpha": 0.5, "test_accuracy": 0.91, "parent_a_test_accuracy": 0.84,
        "parent_b_test_accuracy": 0.82, "seconds": 2.0, "best_alpha": 0.5, "share_b": 0.7, "epochs": 3, "alphas": "0.5",
        "match_images": 100, "barrier_test_loss": None, "test_images": 1000, "drop": 0.83 - 0.91, "images": 0,
    }  # fmt: skip
    assert {name: None if row[name] != row[name] else row[name] for name in wanted} == wanted
    assert pool.frame([record]).record.unique().tolist() == ["0"]


def test_leaderboard_rows_hold_midpoint_best_alpha_and_controls():
    best = {"alpha": 0.4, "held_out_accuracy": 0.9, "test_accuracy": 0.93, "test_loss": 0.2}
    images = {"match": 0, "correct": 2000}
    record = pair(
        curve("none", (0.84, 0.47, 0.82)),
        curve("graph", (0.84, 0.91, 0.82), correction="least_squares", best=best, images=images),
        controls={"ensemble": {"test_accuracy": 0.95, "test_loss": 0.1}},
    )
    none, graph, *controls = pool.leaderboard_rows(record)
    assert none["test_accuracy"] == 0.47 and none["best_alpha"] is None
    assert graph["best_alpha"] == 0.4 and graph["best_accuracy"] == 0.93
    assert graph["seconds"] == 2.0 and graph["correct_images"] == 2000
    assert graph["barrier_accuracy"] == 0
    assert graph["drop"] == pytest.approx(0.83 - 0.91) and none["drop"] == pytest.approx(0.83 - 0.47)
    assert [row["control"] for row in controls] == ["parent_a", "parent_b", "ensemble"]


def test_leaderboard_averages_pairs_of_a_kind_and_keeps_kinds_apart():
    model = {"name": "mlp", "width": 1.0, "norm": None}
    rows = pool.leaderboard_rows([*pairs(0.4, 0.5), pair(model=model)])
    counts = {(row["architecture"], row["n"]) for row in rows}
    assert counts == {("SimpleNet", 2), ("MLP", 1)}
    assert rows[0]["parents_accuracy"] == pytest.approx(0.83)


def test_leaderboard_counts_pairs_not_records_and_gives_a_curve_the_parents_of_its_own_pairs():
    best = {"alpha": 0.5, "held_out_accuracy": 0.9, "test_accuracy": 0.5, "test_loss": 0.2}
    seeds = [{"a": 0, "b": 1, "match": match} for match in range(3)]
    ensemble = {"ensemble": {"test_accuracy": 0.95, "test_loss": 0.1}}
    repeats = [pair(curve("none", (0.84, 0.5, 0.82), best=best), seeds=s, controls=ensemble) for s in seeds]
    row, *controls = pool.leaderboard_rows(repeats)
    assert row["n"] == 1 and row["best_accuracy"] == 0.5
    assert all(row[f"{what}_accuracy_low"] is None for what in ("test", "best", "parents"))
    assert [control["n"] for control in controls] == [1, 1, 1]
    assert "one pair (n = 1)" in pool.headline(repeats)

    better = {"a": metrics(0.9), "b": metrics(0.9)}
    other = pair(curve("graph", (0.9, 0.6, 0.9)), seeds={"a": 2, "b": 3, "match": 0}, parents=better)
    rows = {row["matcher"]: row for row in pool.leaderboard_rows([repeats[0], other]) if "control" not in row}
    assert rows["none"]["parents_accuracy"] == pytest.approx(0.83)
    assert rows["graph"]["parents_accuracy"] == pytest.approx(0.9)


def test_one_alpha_leaves_no_choice_of_the_best():
    best = {"alpha": 0.5, "held_out_accuracy": 0.9, "test_accuracy": 0.5, "test_loss": 0.2}
    row, *_ = pool.leaderboard_rows(pair(curve("none", (0.5,), alphas=(0.5,), best=best)))
    assert row["alphas"] == 1 and row["best_alpha"] is None and row["best_accuracy"] is None


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ({"name": "vgg11", "width": 0.125, "norm": "batch"}, "VGG11-BN ×1/8"),
        ({"name": "simplenet", "width": 1.0, "norm": None}, "SimpleNet"),
        ({"name": "mlp", "width": 0.5, "norm": "layer"}, "MLP-LayerNorm ×1/2"),
        ({"name": "vgg11", "width": 0.125, "norm": "group"}, "VGG11-GroupNorm ×1/8"),
        ({"name": "vgg11", "width": 0.3, "norm": None}, "VGG11 ×0.3"),
        ({"name": "lenet", "width": 1.0, "norm": None}, "LeNet"),
        ({"name": "Sequential", "width": 1.0, "norm": None}, "Sequential"),
        ({"name": "myNet", "width": 1.0, "norm": None}, "myNet"),
    ],
)
def test_model_label(model, label):
    assert names.model_label(model) == label
