"""The notebook on many networks: what its parameters accept, and planted sets."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from lib import models, paths
from lib.checks import InputError
from lib.matching import match
from lib.study import many, scaling

GIVEN = {
    "preset": "quick", "dataset": "mnist-5k", "model": "simplenet", "width": None, "first_seed": 0, "counts": [2, 3],
    "classes": 5, "share": 0.05, "epochs": 1, "held_out": 0, "matchers": ["none", "graph"], "corrections": ["none"],
    "merge_linear": True, "match_images": 50, "correct_images": 50, "match_seed": 0, "orders": 0, "divisions": 0,
    "planted_noises": [1.0], "planted_seeds": [], "limit_train": 400, "limit_test": 100, "device": "cpu",
}  # fmt: skip
PRESETS = {"quick": {"width": {"simplenet": 0.5, "vgg11": 0.125}, "epochs": {"simplenet": {"mnist-5k": 7}}}}


def begin(tmp_path, **other):
    places = {"results_path": str(tmp_path / "r.json"), "figures_dir": str(tmp_path / "figures")}
    return many.begin(GIVEN | places | other, PRESETS)


def test_presets_fill_what_is_null_by_model_and_data_set(tmp_path):
    run = begin(tmp_path, epochs=None)
    assert (run.settings.width, run.settings.epochs) == (0.5, 7)
    assert begin(tmp_path, width=2).settings.width == 2


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"counts": [1]}, "counts [1] is not accepted; accepted: a list of whole numbers of at least 2"),
        ({"counts": [3, 2]}, "counts [3, 2] is not accepted; accepted: a rising list without repeats"),
        ({"counts": []}, "counts [] is not accepted; accepted: a list of whole numbers of at least 2"),
        ({"model": "lenet9"}, "lenet9"),
        ({"classes": 10}, "classes 10 is not accepted; accepted: 0 for all alike, or at most 9"),
        ({"counts": [2], "divisions": 3}, "divisions 3 is not accepted; accepted: 0 where counts ends below 3"),
        ({"planted_noises": [0]}, "planted_noises [0] is not accepted; accepted: numbers > 0"),
        (
            {"held_out": 351},
            "held_out 351 is not accepted; accepted: at most what match_images and correct_images leave",
        ),
        ({"matchers": ["graph(strategy=best)"]}, "strategy 'best' is not accepted; accepted: auto, reference, joint"),
        ({"corrections": ["bn_reset"]}, "bn_reset"),
        ({"matchers": ["weight(maps=orthogonal, restarts=1)"]}, "matcher 'weight' takes no option restarts"),
        ({"results_path": "r.txt"}, "results_path 'r.txt' is not accepted; accepted: a path that ends in .json"),
    ],
)
def test_what_is_not_accepted_is_one_line(other, told, tmp_path):
    with pytest.raises(InputError) as error:
        begin(tmp_path, **other)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "r.json").exists()


def test_a_planted_set_without_noise_comes_back(tmp_path):
    networks, groups, truths = many.planted_set("simplenet", 0.5, 3, 1e-3, 0)
    assert all(torch.equal(truths[0][name], perm) for name, perm in groups.identity().items())
    assert any(not torch.equal(truths[1][name], perm) for name, perm in groups.identity().items())
    maps = match(networks, groups, "graph", progress=False)
    assert [scaling.recovered_share(*each) for each in zip(truths, maps, strict=True)] == [1.0, 1.0, 1.0]


def test_neighbours_see_other_classes(tmp_path, monkeypatch):
    seen = []
    trained = many.models.trained
    monkeypatch.setattr(
        many.models, "trained", lambda spec, *rest, **more: seen.append(spec) or trained(spec, *rest, **more)
    )
    run = begin(tmp_path, classes=3, width=0.25, counts=[2, 4], limit_train=2000)
    monkeypatch.setenv("FUSEBOOK_CHECKPOINTS", str(tmp_path))
    networks = run.networks()
    assert len(networks) == 4 and [spec.seed for spec in seen] == [0, 1, 2, 3]
    assert [spec.classes for spec in seen] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 1, 9)]


def test_networks_keep_the_order_of_their_seeds(tmp_path, monkeypatch):
    checkpoint = models.read_checkpoint(paths.CHECKPOINTS / "simplenet-s1.safetensors")
    monkeypatch.setattr(many, "shipped", lambda spec, dataset: checkpoint)
    run = begin(tmp_path, counts=[2, 3], first_seed=9, width=1.0)
    networks = run.networks()
    record = run.record(run.parents(networks), rows=[{"study": "many"}])
    assert list(record["checkpoints"]) == list(record["parents"]) == ["s9", "s10", "s11"]


def test_a_shipped_network_is_taken_where_it_was_trained_just_so():
    path = paths.CHECKPOINTS / "simplenet-s1.safetensors"
    dataset = SimpleNamespace(sha256=models.read_sidecar(path)["dataset_sha256"])
    spec = models.Spec("simplenet", 1, many.RECIPES["simplenet"], classes=(5, 6, 7, 8, 9), share=0.05)
    assert many.shipped(spec, dataset).path == path
    longer = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, epochs=2))
    assert many.shipped(longer, dataset) is None
    assert many.shipped(spec, SimpleNamespace(sha256="other")) is None
