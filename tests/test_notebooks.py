"""The notebooks, executed for real with tiny parameters, and what they leave behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import papermill
import pytest
import torch
from papermill.parameterize import parameterize_notebook

from lib import models, paths, symmetry
from lib.batch import run as batch
from lib.records import portable, read_arrays, read_record

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
TINY = {
    "simplenet_mnist": {
        "epochs": 1,
        "limit_train": 400,
        "limit_test": 200,
        "match_images": 100,
        "alphas": [1.0, 0.0, 0.5],
    },
    "vgg11_cifar10": {
        "epochs": 2,
        "skew": "halves",
        "width": 0.0625,
        "limit_train": 1000,
        "limit_test": 200,
        "match_images": 100,
        "correct_images": 100,
        "bn_study_images": [20, 50],
        "alphas": [1.0, 0.5, 0.0],
        "evaluate_train": True,
    },
    "transformer_fusion": {
        "epochs": 1,
        "width": 0.125,
        "limit_train": 400,
        "limit_test": 100,
        "match_images": 50,
        "correct_images": 50,
        "controls": ["parent", "ensemble", "head"],
        "matchers": ["none", "activation(reach=heads)", "activation", "activation(maps=orthogonal)"],
    },
    "leaderboard": {
        "pairs": ["simplenet"],
        "seeds": [0],
        "matchers": ["none", "weight"],
        "corrections": ["none", "closed_form"],
        "controls": ["parent", "ensemble", "head", "distillation(steps=3)"],
        "limit_test": 100,
        "match_images": 50,
        "correct_images": 50,
        "held_out_images": 100,
    },
    "many_networks": {
        "counts": [2, 3],
        "epochs": 1,
        "limit_train": 400,
        "limit_test": 200,
        "match_images": 100,
        "correct_images": 100,
        "orders": 2,
        "divisions": 2,
        "planted_seeds": [0],
        "planted_noises": [0.5],
    },
    "size_and_tasks": {
        "model": "simplenet",
        "width": 0.25,
        "width_b": 0.125,
        "data": "halves",
        "epochs": 1,
        "held_out": 100,
        "budgets": [0.8, 1.5],
        "separate": [1],
        "dense": [0.75],
        "distilled": [],
        "limit_train": 1000,
        "limit_test": 200,
        "images": 100,
    },
    "federated": {
        "clients": 3,
        "rounds": 2,
        "epochs": 1,
        "width": 0.0625,
        "servers": ["fedavg", "matched_least_squares", "matched(matcher=weight(strategy=cycle_consistent))"],
        "server_images": 50,
        "seeds": [0, 1, 2],
        "limit_train": 300,
        "limit_test": 100,
    },
    "graph_matching_scaling": {
        "widths": [0.0625],
        "recovery_width": 0.0625,
        "noises": [0.0],
        "seeds": [0],
        "restarts": 1,
        "limit_test": 100,
    },
}


def own_folders(folder, monkeypatch) -> None:
    """Nothing that a test run leaves behind reaches the repo, and nothing trained before is found."""
    for name in ("CHECKPOINTS", "RESULTS", "FIGURES"):
        monkeypatch.setenv(f"FUSEBOOK_{name}", str(folder / name.lower()))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    own_folders(tmp_path, monkeypatch)


def chosen(name, parameters) -> dict:
    return {"dataset": "mnist-5k"} | TINY[name] | parameters


def left(folder, name) -> Path:
    """The file of that name that the last run left in a folder of its own."""
    return max((folder / "results" / "local").glob(f"*/{name}"), key=lambda path: path.stat().st_mtime_ns)


def run(name, tmp_path, record=None, **parameters):
    batch.execute(paths.NOTEBOOKS / f"{name}.ipynb", chosen(name, parameters), tmp_path / "executed.ipynb")
    return read_record(left(tmp_path, f"{record or name}.json"))


@pytest.fixture(scope="module")
def simplenet(tmp_path_factory) -> tuple[Path, dict]:
    """The folder and the record of one run, for every test that only reads them."""
    folder = tmp_path_factory.mktemp("simplenet")
    with pytest.MonkeyPatch.context() as patch:
        own_folders(folder, patch)
        return folder, run("simplenet_mnist", folder)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("vgg")
    with pytest.MonkeyPatch.context() as patch:
        own_folders(folder, patch)
        return folder, run("vgg11_cifar10", folder, save_aligned=str(folder / "aligned.safetensors"))


def printed(folder) -> list:
    """The outputs of an executed notebook."""
    cells = nbformat.read(folder / "executed.ipynb", as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", ())]


def test_simplenet_leaves_a_record_figures_and_an_executed_copy(simplenet):
    folder, record = simplenet
    assert record == json.loads(left(folder, "simplenet_mnist.json").read_text())
    assert record["dataset"] == "mnist-5k"
    assert [curve["matcher"] for curve in record["curves"]] == [
        "graph_reference",
        "graph_sm",
        "graph",
        "activation",
        "none",
    ]
    for curve in record["curves"]:
        assert [point["alpha"] for point in curve["points"]] == [0.0, 0.5, 1.0]
        assert curve["points"][0]["test_accuracy"] == record["parents"]["a"]["test_accuracy"]
        assert curve["points"][2]["test_accuracy"] == record["parents"]["b"]["test_accuracy"]
        assert curve["points"][1]["train_accuracy"] is None
    assert record["images"] == {"train": 400, "test": 200, "match": 100, "correct": 0}
    assert record["seeds"] == {"a": 0, "b": 1, "match": 0}
    assert record["provenance"]["parameters"]["limit_train"] == 400
    arrays = read_arrays(left(folder, "simplenet_mnist.json"))
    assert sorted(arrays["perm/graph_sm/conv2"]) == list(range(64))
    drawn = {path.name for path in left(folder, "simplenet_mnist.json").parent.iterdir()}
    assert {
        "simplenet_mnist_curves.png",
        "simplenet_mnist_curves.pdf",
        "simplenet_mnist_matching_graph_sm.png",
    } <= drawn
    outputs = printed(folder)
    text = "".join(output.get("text", "") for output in outputs)
    assert "SimpleNet on mnist-5k, one pair (n = 1)" in text
    assert "alpha/s" in text and not [output for output in outputs if output.get("name") == "stderr"]  # a pink box


def test_vgg_trains_matches_resets_and_saves_the_aligned_network(vgg):
    folder, record = vgg
    assert record["dataset"] == "mnist-5k"
    assert record["model"] == {"name": "vgg11", "width": 0.0625, "norm": "batch"}
    classes = [record["checkpoints"][side]["spec"]["classes"] for side in "ab"]
    assert classes == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    curves = {(curve["matcher"], curve["correction"]): curve for curve in record["curves"]}
    assert set(curves) == {(m, c) for m in ("none", "activation") for c in ("none", "bn_reset", "least_squares")}
    assert list(record["controls"]) == ["parent", "ensemble", "side_by_side"]
    assert all(point["train_loss"] > 0 for curve in curves.values() for point in curve["points"])
    assert record["parents"]["a"]["train_accuracy"] is not None
    assert [row["images"] for row in record["studies"]["bn_images"]] == [0, 20, 50] * 2
    text = "".join(output.get("text", "") for output in printed(folder))
    assert "the claim's numbers are of cifar10; all that is measured below is of mnist-5k" in text
    assert "trained too little: A " in text
    first = nbformat.read(folder / "executed.ipynb", as_version=4).cells[0].source
    assert "CIFAR" not in first.splitlines()[0]
    # The saved network computes what B computes, and its units stand elsewhere.
    b = next((folder / "checkpoints" / "local").glob("*-s1-*.safetensors"))
    original, moved = models.read_state(b), models.read_state(folder / "aligned.safetensors")
    nets = [models.load_state(models.build("vgg11", width=0.0625, norm="batch"), s) for s in (original, moved)]
    x = models.example("vgg11")
    assert torch.allclose(nets[0](x), nets[1](x), atol=1e-4)
    assert not torch.equal(original["features.25.weight"], moved["features.25.weight"])


def numbers(record, like) -> list:
    """What a run computed, on the curves that the record `like` has."""
    wanted = [(curve["matcher"], curve["correction"]) for curve in like["curves"]]
    curves = {(curve["matcher"], curve["correction"]): curve for curve in record["curves"]}
    found = [[curves[pair][key] for key in ("objective", "points", "barrier")] for pair in wanted]
    return [found, record["parents"], [side["sha256"] for side in record["checkpoints"].values()]]


def test_a_second_run_finds_the_networks_trained_and_the_numbers_equal(vgg, tmp_path, monkeypatch):
    folder, first = vgg
    monkeypatch.setenv("FUSEBOOK_CHECKPOINTS", str(folder / "checkpoints"))
    second = run("vgg11_cifar10", tmp_path, corrections=["none"], matchers=["activation"], bn_study_images=[])
    assert first["checkpoints"] == second["checkpoints"]
    assert numbers(first, second)[0] == numbers(second, second)[0]


@pytest.mark.parametrize(
    ("name", "first", "options"),
    [
        ("simplenet_mnist", "simplenet", {"matchers": ["graph_sm", "activation"]}),
        ("vgg11_cifar10", "vgg", {"matchers": ["activation"], "corrections": ["none"], "bn_study_images": []}),
    ],
)
def test_the_same_seeds_trained_anew_give_the_same_numbers_cell_by_cell(name, first, options, tmp_path, request):
    """As JupyterLab runs it: kernel python3 of this environment, working directory notebooks/."""
    _, first = request.getfixturevalue(first)
    parameters = chosen(name, options)
    copy = parameterize_notebook(papermill.iorw.load_notebook_node(str(paths.NOTEBOOKS / f"{name}.ipynb")), parameters)
    with batch.own_kernel() as kernel:
        nbclient.NotebookClient(
            copy, kernel_name="python3", kernel_manager_class=kernel, timeout=600,
            resources={"metadata": {"path": str(paths.NOTEBOOKS)}},
        ).execute()  # fmt: skip
    again = read_record(left(tmp_path, f"{name}.json"))
    assert [curve["matcher"] for curve in again["curves"]] == options["matchers"]
    assert all(side["sha256"] for side in again["checkpoints"].values())
    assert numbers(again, again) == numbers(first, again)


@pytest.mark.parametrize(("model", "dataset"), [("vit_mnist", "mnist-5k"), ("gpt", "paradise-lost")])
def test_transformers_climb_the_ladder_and_leave_pictures_of_attention(model, dataset, tmp_path):
    record = run("transformer_fusion", tmp_path, model=model, dataset=dataset, layer=1)
    assert record["dataset"] == dataset and record["model"]["name"] == model
    curves = {(curve["matcher"], curve["correction"]) for curve in record["curves"]}
    matchers = TINY["transformer_fusion"]["matchers"]
    assert curves == {(matcher, correction) for matcher in matchers for correction in ("none", "least_squares")}
    assert list(record["controls"]) == ["parent", "ensemble", "head"]
    arrays = read_arrays(left(tmp_path, "transformer_fusion.json"))
    (name,) = (name for name in arrays if name.startswith("pattern/a/"))
    assert ".1." in name and arrays[name].dtype == "float16"
    assert arrays[name].astype(float).sum(-1) == pytest.approx(1, abs=0.01)
    streams = {name.split("/")[1]: arrays[name] for name in arrays if name.startswith("stream/")}
    assert set(streams) == {"none", "activation", "activation(maps=orthogonal)"}
    assert streams["activation"].diagonal().mean() > streams["none"].diagonal().mean()
    drawn = {path.name for path in left(tmp_path, "transformer_fusion.json").parent.iterdir()}
    assert {f"transformer_fusion_{kind}.png" for kind in ("ladder", "heads", "streams", "correlations")} <= drawn
    cells = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells
    told = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))
    assert "activations: + heads" in told and "loss barrier left, %" in told
    assert ("perplexity" in told) is (model == "gpt")


def test_leaderboard_meets_every_matcher_with_every_correction_and_states_its_controls(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEBOOK_CHECKPOINTS", str(paths.ROOT / "checkpoints"))
    record = run("leaderboard", tmp_path, "leaderboard_simplenet-s0")
    curves = {(curve["matcher"], curve["correction"]): curve for curve in record["curves"]}
    assert set(curves) == {(m, c) for m in ("none", "weight") for c in ("none", "closed_form")}
    for (_, correction), curve in curves.items():
        assert curve["best"]["alpha"] in (0.25, 0.5, 0.75)
        assert curve["images"] == {"match": 0, "correct": 50 if correction == "closed_form" else 0}
        assert curve["share"] == {"a": 0.5, "b": 0.5, "both": 1.0}
    parents = [record["parents"][side]["test_accuracy"] for side in "ab"]
    controls = record["controls"]
    assert list(controls) == ["parent", "ensemble", "head", "distillation(steps=3)"]
    assert controls["parent"]["test_accuracy"] in parents
    assert controls["ensemble"]["test_kl"] == pytest.approx(0, abs=1e-9) and controls["ensemble"]["test_agreement"] == 1
    assert [control["images"] for control in controls.values()] == [0, 0, 50, 50]
    assert controls["distillation(steps=3)"]["info"]["steps"] in (1, 2, 3)
    assert controls["head"]["info"]["held_out"] == 100
    assert all(point["test_kl"] > 0 for curve in curves.values() for point in curve["points"])
    assert left(tmp_path, "leaderboard.tex").exists()
    written = left(tmp_path, "leaderboard_simplenet-s0.json").stat().st_mtime_ns
    run("leaderboard", tmp_path, "leaderboard_simplenet-s0")  # a second time it is read, not measured
    assert left(tmp_path, "leaderboard_simplenet-s0.json").stat().st_mtime_ns == written


def test_many_networks_are_fused_and_their_orders_found_again(tmp_path):
    record = run("many_networks", tmp_path)
    rows = {study: [r for r in record["rows"] if r["study"] == study] for study in
            ("many", "orders", "round_trips", "simplex", "planted")}  # fmt: skip
    assert list(record["parents"]) == list(record["checkpoints"]) == ["s0", "s1", "s2"]
    measured = [each["test_accuracy"] for each in record["parents"].values()]
    best = {r["n"]: r["test_accuracy"] for r in rows["many"] if r["method"] == "best parent"}
    assert best == {2: max(measured[:2]), 3: max(measured)}
    fused = {(r["n"], r["matcher"], r["correction"]) for r in rows["many"] if r["kind"] == "fused"}
    matchers = ("none", "weight", "graph", "activation")
    assert fused == {(n, m, c) for n in (2, 3) for m in matchers for c in ("none", "least_squares")}
    assert {r["matcher"] for r in rows["orders"]} == set(matchers[1:]) and len(rows["orders"]) == 6
    assert all(0 <= r["share"] < 1 for r in rows["round_trips"]) and len(rows["round_trips"]) == 3
    alone = {tuple(r["shares"]): r["test_accuracy"] for r in rows["simplex"] if r["correction"] == "none"}
    assert len(alone) == 6
    corners = [alone[1, 0, 0], alone[0, 1, 0], alone[0, 0, 1]]
    assert corners == pytest.approx(measured, abs=1 / 200)  # merged layers compute the same, to rounding
    assert {r["matcher"]: r["recovered"] for r in rows["planted"]} == {"weight": 1.0, "graph": 1.0}
    drawn = {path.name for path in left(tmp_path, "many_networks.json").parent.glob("many_networks_*.png")}
    assert drawn == {f"many_networks_{kind}.png" for kind in ("many", "cost", "simplex", "planted")}


def test_sizes_stand_beside_what_costs_as_much(tmp_path):
    record = run("size_and_tasks", tmp_path)
    rows = {(row["method"], row.get("counts"), row.get("asked")): row for row in record["rows"]}
    ways = [("allotted", kind, asked) for kind in ("parameters", "multiply-adds") for asked in (0.8, 1.5)]
    ways += [("first apart", None, 1), ("last apart", None, 1), ("dense", None, 0.75), ("one parent pruned", None, 0.8)]
    ways += [(name, None, None) for name in ("parent", "ensemble", "head", "mean of logits", "one network")]
    assert set(ways) <= rows.keys()
    for kind in ("parameters", "multiply-adds"):
        for asked in (0.8, 1.5):
            assert rows["allotted", kind, asked][kind.replace("-", "_")] <= asked
    assert rows["mean of logits", None, None]["parameters"] == 2 == rows["ensemble", None, None]["multiply_adds"]
    assert all(row["milliseconds"] > 0 for row in record["rows"])
    assert rows["first apart", None, 1]["separate"] == ["conv1"]
    assert rows["last apart", None, 1]["separate"] == ["fc1"]
    assert left(tmp_path, "size_and_tasks_size.pdf").is_file()
    tasks = run("size_and_tasks", tmp_path, data="tasks", width_b=None, controls=["parent", "head"], budgets=[1.5])
    by_name = {row["method"]: row["test_accuracy"] for row in tasks["rows"]}
    assert by_name["mean of logits"] > max(by_name["parent a"], by_name["parent b"])
    assert "with data=tasks" in refused_by("size_and_tasks", tmp_path, data="tasks")  # an ensemble of probabilities
    assert "numbers > 0, at most 2" in refused_by("size_and_tasks", tmp_path, budgets=[2.5])


def test_graph_matching_finds_a_noiseless_plant_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEBOOK_CHECKPOINTS", str(paths.ROOT / "checkpoints"))
    record = run("graph_matching_scaling", tmp_path)
    assert record["dataset"] is None
    recovered = [r["recovered"] for r in record["rows"] if r["study"] == "recovery" and r["solver"] == "graph"]
    assert recovered == [1.0, 1.0]
    dense = {r["model"]: r["dense_bytes"] for r in record["rows"] if r["study"] == "scaling"}
    assert dense["simplenet"] == 4 * (1 + 2 + 4 + 2 + 10) ** 4
    objective = read_record(left(tmp_path, "graph_matching_scaling_objective.json"))
    assert objective["dataset"] == "mnist-5k"
    assert len(objective["rows"]) == 3


def test_federated_rounds_leave_every_round_of_every_seed_and_nothing_half_done(tmp_path):
    record = run("federated", tmp_path)
    assert record["dataset"] == "mnist-5k" and record["model"] == {"name": "mlp", "width": 0.0625, "norm": None}
    found = {(row.get("server") or row["control"], row["round"], row["seed"]) for row in record["rows"]}
    names = (*record["provenance"]["parameters"]["servers"], "best client", "mean client", "ensemble of clients")
    assert found == {(name, number, seed) for name in names for number in (1, 2) for seed in (0, 1, 2)}
    assert record["setting"]["split"] == "dirichlet(beta=0.5)" and record["images"] == {"test": 100, "server": 50}
    assert sum(map(sum, record["clients"][0]["class_counts"])) == 300
    assert not list((tmp_path / "checkpoints").rglob("*.resume"))
    assert left(tmp_path, "federated_rounds.pdf").is_file()
    cells = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells
    told = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))
    assert "over FedAvg, points" in told and re.search(r"matched_least_squares, round 1: 1\.00 ", told)
    assert "no option mu" in refused_by("federated", tmp_path, servers=["fedavg(mu=1)"])


def refused_by(notebook, tmp_path, **parameters) -> str:
    with pytest.raises(papermill.PapermillExecutionError) as refused:
        papermill.execute_notebook(
            str(paths.NOTEBOOKS / f"{notebook}.ipynb"), str(tmp_path / "refused.ipynb"),
            chosen(notebook, parameters), progress_bar=False,
        )  # fmt: skip
    return str(refused.value)


def test_the_published_experiment_on_foreign_checkpoints_without_sidecars(tmp_path):
    """Two torch files from elsewhere: nothing is trained, no seed is invented."""
    for seed, side in enumerate("ab"):
        torch.save(models.build("simplenet", seed=seed).state_dict(), tmp_path / f"{side}.dat")
    parameters = {f"checkpoint_{side}": str(tmp_path / f"{side}.dat") for side in "ab"}
    record = run("simplenet_mnist", tmp_path, **parameters, matchers=["graph_sm"], alphas=[0.0, 0.5, 1.0])
    assert record["seeds"] == {"a": None, "b": None, "match": 0}
    assert record["checkpoints"]["a"]["file"] == portable(tmp_path / "a.dat")
    assert not (tmp_path / "checkpoints").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def refused(capsys, tmp_path, notebook, *arguments):
    """What a run that refuses its input says: one line, exit status 2, nothing written."""
    before = set(tmp_path.rglob("*"))
    status = batch.main([f"{notebook}.ipynb", *arguments, "--output", str(tmp_path / "executed.ipynb")])
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert status == 2
    assert len(said) == 1
    assert set(tmp_path.rglob("*")) == before
    return said[0]


def test_bad_input_is_one_line_and_nothing_is_written(capsys, tmp_path):
    """Three of the many, through a real kernel; tests/study/test_experiment.py has them all."""
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    cases = {
        "-p alphas [0,1.5]": "alpha 1.5 is not accepted; accepted: a number within [0, 1]",
        f"-p checkpoint_a {tmp_path}/evil.pt -p dataset mnist-5k": "it holds code",
        "-p epoch 3": "has no parameter epoch (did you mean epochs?)",
    }
    for arguments, said in cases.items():
        assert said in refused(capsys, tmp_path, "simplenet_mnist", *arguments.split()), arguments
    assert not (tmp_path / "executed").exists()


def test_papermill_alone_refuses_a_misspelt_parameter_and_ends_in_that_line(tmp_path):
    """It would only warn, and run the defaults."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(paths.NOTEBOOKS / "simplenet_mnist.ipynb")]
    command += [str(tmp_path / "out.ipynb"), "-p", "dataset", "mnist-5k", "-y", "{matcher: [weight]}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    told = "InputError: the parameters cell has no parameter matcher (did you mean matchers?); it has: preset, dataset"
    assert run.stderr.strip().splitlines()[-1].startswith(told)
    assert [path.name for path in tmp_path.rglob("*")] == ["out.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_refuses_a_name_that_it_does_not_declare(notebook):
    source = "".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code")
    checking = (
        "study.begin(",
        "federated.begin(globals())",
        "board.open_pairs(globals())",
        "Explorer(globals())",
        "checks.check_injected(globals())",
        "many.begin(globals()",
        "sizes.begin(globals()",
    )
    assert any(call in source for call in checking)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_tracked_notebooks_are_clean_and_their_parameters_documented(notebook):
    node = nbformat.read(notebook, as_version=4)
    assert "papermill" not in node.metadata
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    known = papermill.inspect_notebook(str(notebook))
    assert len(known) == len(tagged[0].source.splitlines())
    assert all(parameter["help"] and parameter["inferred_type_name"] != "None" for parameter in known.values())


def test_help_notebook_is_the_manual():
    notebook = str(paths.NOTEBOOKS / "simplenet_mnist.ipynb")
    manual = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", notebook],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "matchers" in manual
    assert "epochs" in manual


def test_the_moved_network_is_proved_before_anything_is_averaged():
    """A wrong permutation cannot reach fusion: prove stands between."""
    net = models.build("simplenet", seed=0)
    groups = symmetry.trace(net, models.example("simplenet"))
    group = groups["conv2"]
    broken = symmetry.Groups(
        {**groups.groups, "conv2": symmetry.Group(group.size, group.members[:1])}, groups.layers, groups.graph
    )
    perms = {"conv2": torch.arange(64).roll(1)}
    with pytest.raises(symmetry.SymmetryError, match="conv2"):
        symmetry.prove(net, broken, models.example("simplenet"), perms)
    symmetry.prove(net, groups, models.example("simplenet"), perms)


def test_the_study_tells_a_verdict_for_each_hypothesis(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    batch.execute(
        paths.NOTEBOOKS / "study.ipynb", {"figures_dir": str(tmp_path / "drawn")}, tmp_path / "executed.ipynb"
    )
    cells = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells
    told = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))
    for name in ("H1", "H2", "H3", "H4", "H5"):
        assert re.search(rf"^{name}: (holds|falsified|open)", told, re.MULTILINE), name
    assert {path.suffix for path in (tmp_path / "drawn").iterdir()} == {".png", ".pdf"}
