"""What a run refuses before anything is trained, and what a preset fills in."""

import os

import pytest
import torch

from lib import experiment, loaders, models, paths
from lib.checks import InputError

DEFAULTS = {
    "preset": "quick", "dataset": "mnist-5k", "checkpoint_a": "", "checkpoint_b": "", "matchers": ["none"],
    "corrections": ["none"], "alphas": [0.0, 0.5, 1.0], "seed_a": 0, "seed_b": 1, "epochs": None, "width": None,
    "loader": "memory", "device": "cpu", "limit_train": 0, "limit_test": 0, "match_images": 100,
    "correct_images": 100, "evaluate_train": False, "results_path": "", "figures_dir": "",
}  # fmt: skip
PRESETS = {"quick": {"epochs": {"mnist-5k": 7}, "width": 1.0}, "paper": {"epochs": 100, "width": 1.0}}


def begin(model="simplenet", norm=None, **given):
    return experiment.begin("test", model, DEFAULTS | given, presets=PRESETS, norm=norm)


def test_a_preset_fills_only_what_was_not_given():
    run = begin()
    assert (run.preset, run.epochs, run.width) == ("quick", 7, 1.0)
    assert begin(epochs=2).epochs == 2
    assert begin(preset="paper").epochs == 100
    assert begin(preset="auto").preset == "quick"


def test_relative_paths_start_at_the_root_of_the_repo(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert begin(results_path="data/results/x.json").results_path == paths.ROOT / "data/results/x.json"
    assert begin().results_path == paths.LOCAL / "test.json"


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
    return tmp_path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"matchers": ["grahp"]}, "unknown matcher 'grahp'; accepted: none"),
        ({"matchers": []}, "matchers"),
        ({"matchers": ["none", "none"]}, "without repeats"),
        ({"corrections": ["reset"]}, "unknown correction 'reset'"),
        ({"corrections": ["bn_reset"]}, "needs BatchNorm"),
        ({"alphas": [0, 1.5]}, "alpha 1.5 is not accepted"),
        ({"alphas": [0.5, 0.5]}, "no repeats"),
        ({"alphas": []}, "alphas"),
        ({"epochs": 0}, "epochs 0 is not accepted; accepted: a whole number of at least 1"),
        ({"width": 0}, "width 0 is not accepted"),
        ({"width": 2, "checkpoint_a": "other.pt"}, "conv1.weight is"),
        ({"limit_test": -1}, "limit_test -1"),
        ({"match_images": 0}, "match_images 0"),
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
    with pytest.raises(InputError, match=said) as error:
        begin(**given)
    assert "\n" not in str(error.value)
    assert set(files.rglob("*")) == before


def test_a_matcher_that_cannot_take_the_network_says_so_before_training():
    with pytest.raises(InputError, match="plain chain"):
        begin("vgg11", norm="batch", matchers=["graph_sm"])


def test_a_data_set_out_of_reach_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(loaders, "_download", lambda *_: (_ for _ in ()).throw(OSError("no connection")))
    with pytest.raises(InputError, match="MNIST cannot be reached") as error:
        begin(dataset="mnist")
    assert type(error.value) is InputError
    assert not list(tmp_path.iterdir())


def test_shares_are_checked():
    experiment.check_share("share", 0.5)
    for bad in (-0.1, 2, "half", True):
        with pytest.raises(InputError, match="within"):
            experiment.check_share("share", bad)


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
    assert experiment.begin("test", "simplenet", DEFAULTS | {"epochs": 1}, presets=presets).epochs == 1
