"""What a run refuses before anything is trained, and what a preset fills in."""

import hashlib
import io
import os
import sys
from pathlib import Path

import pytest
import torch

from lib import checks, loaders, models, paths, progress, symmetry
from lib.checks import InputError
from lib.explore import Explorer
from lib.loaders import sources as data_sources
from lib.study import board, parameters
from lib.study import run as experiment

DEFAULTS = {
    "preset": "quick", "dataset": "mnist-5k", "checkpoint_a": "", "checkpoint_b": "", "matchers": ["none"],
    "corrections": ["none"], "alphas": [0.0, 0.5, 1.0], "seed_a": 0, "seed_b": 1, "epochs": None, "width": None,
    "loader": "memory", "device": "cpu", "limit_train": 0, "limit_test": 0, "match_images": 100,
    "correct_images": 100, "evaluate_train": False, "results_path": "", "figures_dir": "", "match_seed": 0,
    "held_out": 0, "controls": ["parent", "ensemble"],
}  # fmt: skip
PATHS = ("results_path", "figures_dir", "save_aligned")
PRESETS = {"quick": {"epochs": {"mnist-5k": 7}, "width": 1.0}, "paper": {"epochs": 100, "width": 1.0}}


def begin(model="simplenet", norm=None, **given):
    extra = [name for name in given if name not in DEFAULTS]
    return experiment.begin("test", model, DEFAULTS | given, presets=PRESETS, norm=norm, extra=extra)


@pytest.mark.parametrize(("model", "norm"), [("mlp", "layer"), ("mlp", None), ("vgg11", "group")])
def test_without_batchnorm_there_is_no_study_of_the_reset(model, norm):
    assert begin(model, norm).bn_study({"none": None}, [20]) == []


def test_a_preset_fills_only_what_was_not_given():
    run = begin()
    assert (run.preset, run.settings.epochs, run.settings.width) == ("quick", 7, 1.0)
    assert begin(epochs=2).settings.epochs == 2
    assert begin(preset="paper").settings.epochs == 100
    assert begin(preset="auto").preset == "quick"


def test_a_given_b_beside_a_trained_a_stays_b(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    other = tmp_path / "other.safetensors"
    models.save_checkpoint(other, models.state_of(models.build("simplenet", seed=5)), {})
    run = begin(checkpoint_b=str(other), limit_train=200, limit_test=50)
    networks = run.open_pair(models.Recipe(epochs=1, batch_size=50, augment=False))
    assert torch.equal(networks[1].state_dict()["conv1.weight"], models.build("simplenet", seed=5).conv1.weight)
    parents = run.parents(networks)
    for side, network in zip("ab", networks, strict=True):
        assert parents[side]["test_accuracy"] == models.evaluate(network, run.test)[0]
    assert parents["a"] != parents["b"] and list(parents) == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "measured", "told"),
    [
        ({"limit_train": 500}, (0.34, 0.13), "A 34.0 % and B 13.0 %; with limit_train 500 "),
        ({"limit_train": 500}, (0.34, 0.9), "trained too little: A 34.0 %; "),
        ({"limit_train": 500}, (0.8, 0.9), None),
        ({}, (0.34, 0.13), None),
        ({"limit_train": 500, "checkpoint_a": "a", "checkpoint_b": "b"}, (0.34, 0.13), None),
    ],
)
def test_parents_that_a_limit_left_weak_are_told_of_in_one_line(given, measured, told):
    run = begin(limit_train=given.get("limit_train", 0))
    run.given |= given
    said = run._too_weak({side: {"test_accuracy": value} for side, value in zip("ab", measured, strict=True)})
    assert said is None if told is None else told in said and "\n" not in said


def test_weak_parents_are_told_of_where_they_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    run = begin(limit_train=100, limit_test=50)
    run.parents(run.open_pair(models.Recipe(epochs=1, batch_size=50, augment=False)))
    assert [line for line in capsys.readouterr().out.splitlines() if "trained too little" in line]


def test_bars_go_to_standard_error_but_in_a_notebook(capsys, monkeypatch):
    list(progress.tqdm(range(3), desc="here"))
    printed, said = capsys.readouterr()
    assert "here" in said and not printed
    notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", notebook)
    list(progress.tqdm(range(3), desc="here"))
    assert "here" in notebook.getvalue() and not capsys.readouterr().err


def test_relative_paths_start_at_the_root_of_the_repo(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert begin(results_path="data/results/x.json").results_path == paths.ROOT / "data/results/x.json"
    assert begin().results_path.is_relative_to(paths.LOCAL) and begin().results_path.name == "test.json"


def test_limits_take_the_first_images_in_file_order():
    run, whole = begin(limit_train=30, limit_test=20), loaders.load("mnist-5k")
    assert len(run.dataset.train) == 30
    assert torch.equal(run.dataset.test.images, whole.test.images[:20])
    assert sum(len(labels) for _, labels in run.match_batches) == 30


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = models.build("simplenet", seed=0).state_dict()
    torch.save(state | {"fc2.weight": torch.zeros(10, 3)}, "other.pt")
    torch.save({"w": Evil()}, "evil.pt")
    (tmp_path / "folder.json").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"matchers": ["grahp"]}, "unknown matcher 'grahp'; accepted: none"),
        ({"matchers": []}, "matchers"),
        ({"matchers": ["none", "none"]}, "without repeats"),
        ({"corrections": ["reset"]}, "unknown correction 'reset'"),
        ({"controls": ["heads"]}, "unknown control 'heads'; accepted: parent, ensemble"),
        ({"controls": None}, "controls None is not accepted; accepted: a list without repeats of parent"),
        ({"controls": ["parent", "parent"]}, "without repeats"),
        ({"controls": ["distillation(steps=half)"]}, "steps 'half' is not accepted; accepted: a whole number"),
        ({"corrections": ["bn_reset"]}, "needs BatchNorm"),
        ({"matchers": ["graph(restart=3)"]}, "'graph' takes no option restart; accepted: solver, memory, activations"),
        ({"matchers": ["graph(restarts=0.5)"]}, "restarts 0.5 is not accepted; accepted: a whole number"),
        ({"matchers": ["activation(tap=relu)"]}, "tap 'relu' is not accepted; accepted: post_relu"),
        ({"matchers": ["activation(tap"]}, r"unknown matcher 'activation\(tap'"),
        ({"matchers": ["activation(tap)"]}, r"cannot be read; accepted: activation\(option=value"),
        ({"matchers": ["activation", "activation(tap=post_relu)"]}, "without repeats"),
        ({"corrections": ["least_squares(select=maybe)"]}, "select 'maybe' is not accepted; accepted: true, false"),
        ({"corrections": ["least_squares(ridge=-1)"]}, "ridge -1 is not accepted; accepted: a finite number"),
        ({"match_seed": -1}, "match_seed -1 is not accepted"),
        (
            {"held_out": 3990},
            "held_out 3990 is not accepted; accepted: at most what match_images and correct_images leave",
        ),
        ({"alphas": [0, 1.5]}, "alpha 1.5 is not accepted"),
        ({"alphas": [0.5, 0.5]}, "no repeats"),
        ({"alphas": []}, "alphas"),
        ({"alphas": "[0.5]"}, r"a list of numbers .*by -y '\{alphas: \[0.5\]\}'"),
        ({"matchers": "[graph]"}, r"by -y '\{matchers: \[graph\]\}'"),
        ({"corrections": "none"}, r"by -y '\{corrections: \[none\]\}'"),
        ({"alphas": [0, 1]}, "at least one strictly between the parents"),
        ({"epochs": 0}, "epochs 0 is not accepted; accepted: a whole number of at least 1"),
        ({"width": 0}, "width 0 is not accepted"),
        ({"width": True}, "width True is not accepted"),
        ({"seed_a": 2**70}, "seed_a 1180591620717411303424 is not accepted"),
        ({"width": 2, "checkpoint_a": "other.pt"}, "conv1.weight is"),
        ({"limit_test": -1}, "limit_test -1"),
        ({"match_images": 1}, "match_images 1 is not accepted; accepted: a whole number of at least 2"),
        ({"correct_images": 1}, "correct_images 1 "),
        ({"results_path": "evil.pt/x.json"}, "evil.pt is a file"),
        ({"figures_dir": "evil.pt"}, "figures_dir .*evil.pt is a file"),
        ({"results_path": "folder.json"}, "folder.json is a folder"),
        ({"save_aligned": "b.pt"}, "ends in .safetensors"),
        ({"save_aligned": "x.safetensors", "results_path": "x.json"}, "another name than that of the record"),
        ({"checkpoint_a": "simplenet-s0", "checkpoint_b": "simplenet-s0"}, "A and B are the same network"),
        ({"checkpoint_a": "simplenet-s0", "width": 2}, "simplenet-s0.* was trained with width 1.0, this run has 2"),
        ({"preset": "fast"}, "unknown preset 'fast'"),
        ({"device": "tpu"}, "unknown device"),
        ({"loader": "disk"}, "unknown loader"),
        ({"dataset": "svhn"}, "unknown dataset 'svhn'"),
        ({"results_path": "record.txt"}, "ends in .json"),
        ({"evaluate_train": "yes"}, "evaluate_train"),
        ({"checkpoint_a": "nothing.dat"}, "checkpoint 'nothing.dat' does not exist"),
        ({"checkpoint_a": "other.pt"}, r"fc2.weight is \(10, 3\), not \(10, 32\)"),
        ({"checkpoint_b": "evil.pt"}, "it holds code"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(files, given, said):
    before = set(files.rglob("*"))
    given = {name: str(files / value) if name in PATHS else value for name, value in given.items()}
    with pytest.raises(InputError, match=said) as error:
        begin(**given)
    assert "\n" not in str(error.value)
    assert set(files.rglob("*")) == before


def test_what_cannot_be_written_is_said_before_anything_is_trained(tmp_path, monkeypatch):

    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write anywhere
    for name in ("results_path", "figures_dir"):
        with pytest.raises(InputError, match=f"{name} .* cannot be written: no permission for "):
            begin(**{name: str(tmp_path / "deep" / "x.json")})


def test_two_networks_of_one_seed_are_no_pair():
    with pytest.raises(InputError, match="both of seed 3; accepted: two seeds"):
        begin(seed_a=3, seed_b=3).open_pair(models.Recipe(epochs=1))


@pytest.mark.parametrize(
    ("learnt", "said"),
    [
        ("mnist", "was trained on mnist, whose training images hold all of mnist-5k\n"),
        ("svhn", "was trained on svhn\n"),
        ("mnist-5k", ""),
    ],
)
def test_a_network_on_other_data_than_its_own_is_said(tmp_path, capsys, learnt, said):
    path = tmp_path / "net.safetensors"
    models.save_checkpoint(path, models.build("simplenet", seed=0).state_dict(), {"dataset": learnt})
    begin(checkpoint_a=str(path))
    assert capsys.readouterr().out == (f"network A (net.safetensors) {said}" if said else "")


def test_a_name_that_the_notebook_does_not_declare_is_refused():
    """Papermill's cell of assignments stands behind the parameters cell; everything else is the notebook's business."""
    cell = "\n".join(f"{name} = {value!r}" for name, value in DEFAULTS.items())
    before = ["", cell, "width: float = None  # annotated\n%time x = 3", "import torch\nx = 3\ny, z = 1, 2"]

    def under(*injected):
        namespace = DEFAULTS | {"In": [*before, *injected, "run = study.begin(globals())"]}
        return experiment.begin("test", "simplenet", namespace, presets=PRESETS)

    assert under().settings.width == under("# Parameters\nwidth = 1.0\nepochs = 3\n", "seen = 0").settings.width == 1.0
    told = r"the parameters cell has no parameter matcher \(did you mean matchers\?\); it has: preset, .*$"
    with pytest.raises(InputError, match=told):
        under('# Parameters\nmatcher = ["weight"]\nalphas = [0.5]\n')
    for use in (board.open_pairs, Explorer):
        with pytest.raises(InputError, match="has no parameter alpa"):
            use({"In": ["", "alpha = 0.5", "# Parameters\nalpa = 0.1\n"]})
    # A notebook of one's own, whose parameters cell is headed so.
    checks.check_injected({"In": ["", "import torch", "# Parameters\nrate = 0.1", "# Parameters\nrate = 0.2\n"]})


def test_matchers_corrections_and_controls_are_read_once(monkeypatch):
    read, original = [], parameters.read_method
    monkeypatch.setattr(parameters, "read_method", lambda kind, text, *a: read.append(text) or original(kind, text, *a))
    begin(matchers=["weight(restarts=1)"])
    assert read == ["weight(restarts=1)", "none", "parent", "ensemble"]


# The leaderboard's pairs


BOARD = {
    "pairs": ["simplenet"], "seeds": [0], "dataset": "mnist-5k", "matchers": ["none"], "corrections": ["none"],
    "controls": [],
    "alphas": [0.5], "device": "cpu", "limit_test": 10, "match_images": 50, "correct_images": 50,
    "held_out_images": 50, "results_dir": "", "figures_dir": "", "match_seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alphas": [0.25, 0.75]}, "accepted: a list with 0.5"),
        ({"held_out_images": 0}, "held_out_images 0 is not accepted; accepted: a whole number of at least 1"),
        ({"held_out_images": 3990}, "held_out_images 3990 is not accepted; accepted: at most what match_images and"),
        ({"seeds": [1]}, r"seeds \[1\]: simplenet has no such pair; accepted: 0, 2, 4"),
        ({"pairs": ["simple"]}, "no shipped pair 'simple'; accepted: .*simplenet"),
        ({"figures_dir": __file__}, "is a file"),
    ],
)
def test_a_leaderboard_refuses_in_one_line(given, said):
    with pytest.raises(InputError, match=said) as error:
        board.open_pairs(BOARD | given)
    assert "\n" not in str(error.value)


def test_all_kinds_are_those_that_have_the_seeds(capsys):
    runs = board.open_pairs(BOARD | {"pairs": ["all"], "seeds": [10], "dataset": "mnist-5k"})
    kinds = ("0.125", "0.125-halves", "0.5")
    assert list(runs) == [f"leaderboard_vgg11bn-w{kind}-s10" for kind in kinds]
    assert "left out: simplenet, no pair of seeds [10] is shipped\n" in capsys.readouterr().out


def test_pairs_of_a_model_that_is_not_registered_here_are_nobodys(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    for model in ("simplenet", "own"):
        for seed in (0, 1):
            sidecar = {"spec": {"model": model, "seed": seed}}
            models.save_checkpoint(tmp_path / f"{model}-s{seed}.safetensors", {"w": torch.ones(1)}, sidecar)
    assert list(board.pairs()) == ["simplenet-s0"]


def test_a_matcher_that_cannot_take_the_network_says_so_before_training():
    with pytest.raises(InputError, match="plain chain"):
        begin("vgg11", norm="batch", matchers=["graph_sm"])


def test_a_data_set_out_of_reach_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(data_sources, "download", lambda *_: (_ for _ in ()).throw(OSError("no connection")))
    with pytest.raises(InputError, match="MNIST cannot be reached") as error:
        begin(dataset="mnist")
    assert type(error.value) is InputError
    assert not list(tmp_path.iterdir())


def test_shares_are_checked():
    parameters.check_share("share", 0.5)
    for bad in (-0.1, 2, "half", True):
        with pytest.raises(InputError, match="within"):
            parameters.check_share("share", bad)


def test_merged_linear_layers_compute_the_same_and_leave_a_group_less(tmp_path):
    files = {}
    for seed, side in enumerate("ab"):
        files[f"checkpoint_{side}"] = str(tmp_path / f"{side}.pt")
        torch.save(models.build("simplenet", seed=seed).state_dict(), files[f"checkpoint_{side}"])
    given = DEFAULTS | files | {"merge_linear": True}
    run = experiment.begin("test", "simplenet", given, presets=PRESETS, extra=("merge_linear",))
    merged, _ = run.open_pair()
    assert list(run.groups) == ["conv1", "conv2"]
    x = models.example("simplenet")
    assert torch.allclose(merged(x), models.build("simplenet", seed=0)(x), atol=1e-5)


def test_a_preset_that_says_nothing_of_the_data_set_is_one_line():
    presets = {"quick": {"epochs": {"cifar10": 7}, "width": 1.0}}
    with pytest.raises(InputError, match="epochs has no preset on mnist-5k; accepted: give epochs, or one of cifar10"):
        experiment.begin("test", "simplenet", DEFAULTS, presets=presets)
    assert experiment.begin("test", "simplenet", DEFAULTS | {"epochs": 1}, presets=presets).settings.epochs == 1


def test_a_run_opens_and_hashes_each_checkpoint_once(monkeypatch):
    """From its parameters to its record: the file, its sidecar, and the SHA-256 of its content."""
    opened, hashed, real_open, real_hash = [], [], io.open, hashlib.sha256

    def spy_open(file, *arguments, **options):
        opened.append(Path(str(file)).name)
        return real_open(file, *arguments, **options)

    def spy_hash(content=b"", **options):
        hashed.append(len(content))
        return real_hash(content, **options)

    built, build = [], models.build
    monkeypatch.setattr(models, "build", lambda *given, **options: built.append(given) or build(*given, **options))
    monkeypatch.setattr(io, "open", spy_open)
    monkeypatch.setattr(hashlib, "sha256", spy_hash)
    run = begin(checkpoint_a="simplenet-s0", checkpoint_b="simplenet-s1", limit_test=20)
    networks = run.open_pair()
    parents = run.parents(networks)
    record = run.record(parents, run.curves(run.align(networks, run.match(networks)), parents))
    assert record["checkpoints"]["b"]["file"].endswith("simplenet-s1.safetensors")
    for side in ("simplenet-s0", "simplenet-s1"):
        size = (paths.CHECKPOINTS / f"{side}.safetensors").stat().st_size
        assert opened.count(f"{side}.safetensors") == 1
        assert opened.count(f"{side}.json") == 1
    assert hashed.count(size) == 2
    assert len(built) == 3  # A, B and a template


def test_a_run_records_options_seed_and_held_out_images(tmp_path):
    options = {"matchers": ["weight", "weight(restarts=1)"], "corrections": ["none", "repair"], "match_seed": 3}
    run = begin(checkpoint_a="simplenet-s0", checkpoint_b="simplenet-s1", limit_test=20, held_out=100, **options)
    networks = run.open_pair()
    parents = run.parents(networks)
    record = run.record(parents, run.curves(run.align(networks, run.match(networks)), parents))
    assert record["seeds"]["match"] == 3 and record["provenance"]["parameters"]["held_out"] == 100
    names = [(curve["matcher"], curve["correction"]) for curve in record["curves"]]
    assert names == [(m, c) for m in options["matchers"] for c in options["corrections"]]
    assert record["curves"][2]["options"] == {"restarts": 1}


def test_batches_that_draw_their_augmentation_anew_are_not_handed_on(monkeypatch):
    """Kept ones are the same to every correction; a loader's generator goes on, so a second user would see others."""
    run = begin()
    for make, same in ((lambda *_, **__: [1], True), (lambda *_, **__: iter([1]), False)):
        monkeypatch.setattr(run, "_batches", make)
        run._images.clear()
        first, again = (run.correct_batches("repair") for _ in range(2))
        assert (first is again) == same


def test_a_record_says_what_was_looked_at_of_a_small_set():
    """A curve and the record: no more than the training images there are, and 0 of a method that looks at none."""
    run = begin(limit_train=60, limit_test=20, match_images=5000, correct_images=5000, epochs=1,
                matchers=["none", "activation"], corrections=["none", "closed_form"], alphas=[0.5])  # fmt: skip
    networks = run.open_pair(models.Recipe(epochs=1, batch_size=30, augment=False))
    parents = run.parents(networks)
    curves = run.curves(run.align(networks, run.match(networks)), parents)
    looked = [(images["match"], images["correct"]) for images in (each["images"] for each in curves)]
    assert looked == [(0, 0), (0, 60), (60, 0), (60, 60)]
    assert run.record(parents, curves)["images"] == {"train": 60, "test": 20, "match": 60, "correct": 60}


# Controls, and the images by which is chosen


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, 3900), ({"correct_images": 3990}, 400), ({"held_out": 50}, 50), ({"limit_train": 1000}, 900)],
)
def test_choices_are_made_on_the_last_training_images(given, count):
    run = begin(checkpoint_a="simplenet-s0", checkpoint_b="simplenet-s1", **given)
    chosen = run.held_out()
    labels = torch.cat([labels for _, labels in chosen])
    assert torch.equal(labels, run.dataset.train.labels[-count:])
    assert len(torch.cat([labels for _, labels in run.held_out(most=7)])) == (7 if not given.get("held_out") else 50)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ""),
        ({"correct_images": 3990}, "last 400 training images, and matching or correcting looks at 390 of them, too"),
        ({"match_images": 4000}, "looks at 400 of them, too"),
    ],
)
def test_it_is_said_where_choices_are_made_on_images_that_were_looked_at(capsys, given, said):
    run = begin(checkpoint_a="simplenet-s0", checkpoint_b="simplenet-s1", **given)
    capsys.readouterr()
    run.held_out()
    told = capsys.readouterr().out
    assert said in told and bool(said) == ("looks at" in told)


@pytest.mark.parametrize(
    ("images", "held_out", "said"),
    [
        ((4000, 4000), (0, 500), "on the last 300 training images, which A saw"),
        ((4000, 4000), (299, 0), "which A and B saw in training"),
        ((4000, 4000), (300, 300), ""),
        ((3700, None), (0, 300), "which B saw in training"),
    ],
)
def test_it_is_said_which_networks_were_trained_on_the_images_of_choices(tmp_path, capsys, images, held_out, said):
    files = {}
    for seed, side in enumerate("ab"):
        files[f"checkpoint_{side}"] = str(tmp_path / f"{side}.safetensors")
        state = models.build("simplenet", seed=seed).state_dict()
        sidecar = {"dataset": "mnist-5k", "images": images[seed], "spec": {"seed": seed, "held_out": held_out[seed]}}
        models.save_checkpoint(
            Path(files[f"checkpoint_{side}"]), state, sidecar | ({} if images[seed] else {"images": 9**9})
        )
    run = begin(**files, held_out=300)
    capsys.readouterr()
    run.held_out()
    told = capsys.readouterr().out
    assert said in told and bool(said) == bool(told)


def test_each_pair_has_its_own_untrained_network(monkeypatch):
    """Else an interval over pairs would be that of one network."""
    bodies = []

    def measured(run, network, networks, parents):
        bodies.append(network.conv1.weight)
        return {}

    monkeypatch.setattr(experiment.Run, "_measured", measured)
    for a, b in ((0, 1), (2, 3), (0, 1)):
        run = begin(checkpoint_a=f"simplenet-s{a}", checkpoint_b=f"simplenet-s{b}", controls=["untrained_head"])
        run.controls(run.open_pair(), {}, progress=False)
    one, other, again = bodies
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_controls_that_are_measured_already_are_not_measured_again(monkeypatch):
    names = ["parent", "ensemble", "untrained_head"]
    run = begin(checkpoint_a="simplenet-s0", checkpoint_b="simplenet-s1", limit_test=20, held_out=100, controls=names)
    networks = run.open_pair()
    parents, passes, real = run.parents(networks), [], models.outputs

    def outputs(network, batches, **options):
        passes.append(batches is run.test)
        return real(network, batches, **options)

    monkeypatch.setattr(models, "outputs", outputs)
    controls = run.controls(networks, parents, progress=False)
    assert sum(passes) == 1  # the head
    scores = [models.evaluate(network, run.held_out())[0] for network in networks]
    better = parents["ab"[scores.index(max(scores))]]
    assert {key: controls["parent"][key] for key in ("test_accuracy", "test_loss", "test_kl")} == {
        key: better[key] for key in ("test_accuracy", "test_loss", "test_kl")
    }
    assert controls["parent"]["info"]["held_out"] == 100 and "train_accuracy" not in controls["parent"]
    assert controls["ensemble"]["test_agreement"] == 1 and controls["untrained_head"]["images"] == 100
    curves = run.curves(run.align(networks, run.match(networks)), parents)
    record = run.record(parents, curves, controls=controls)
    assert list(record["controls"]) == names and record["images"]["correct"] == 100
    assert record["curves"][0]["points"][1]["test_kl"] > 0


def test_controls_that_a_network_cannot_take_are_left_out_and_said(capsys, monkeypatch):
    run = begin(controls=["head", "ensemble"])
    monkeypatch.setattr(run, "template", torch.nn.Sequential(run.template, torch.nn.ReLU()))
    monkeypatch.setattr(run, "groups", symmetry.trace(run.template, models.example("simplenet")))
    run.leave_out_inapplicable("controls")
    assert run.settings.controls == ["ensemble"]
    assert capsys.readouterr().out.startswith("left out: control 'head': the outputs of Sequential are not made by a")
