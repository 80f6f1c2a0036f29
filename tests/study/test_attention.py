"""lib.study.attention: the ladder's parameters, and what a notebook on transformers refuses."""

from types import SimpleNamespace

import pytest

from lib import models, paths, symmetry
from lib.checks import InputError
from lib.matching import read_matcher
from lib.study import attention

GIVEN = {
    "model": "gpt",
    "seed_a": 2,
    "seed_b": 3,
    "checkpoint_a": "auto",
    "checkpoint_b": "b.pt",
    "matchers": ["ladder"],
}


def test_the_shipped_pair_is_taken_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    assert attention.resolved(GIVEN)["checkpoint_a"] == ""
    (tmp_path / "gpt-s2.safetensors").touch()
    found = attention.resolved(GIVEN)
    assert (found["checkpoint_a"], found["checkpoint_b"]) == ("gpt-s2", "b.pt")
    assert GIVEN["checkpoint_a"] == "auto"


def test_the_ladder_is_every_rung_by_activations_and_by_weights():
    found = attention.resolved(GIVEN)["matchers"]
    assert len(found) == len(set(found)) == 11 and found[0] == "none"
    assert all(read_matcher(name) for name in found)
    assert attention.whole(found) == [
        "none", "activation", "activation(maps=orthogonal)", "weight", "weight(maps=orthogonal)",
    ]  # fmt: skip
    assert attention.resolved(GIVEN | {"matchers": ["none"]})["matchers"] == ["none"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("alphas", [0.25], "alphas [0.25] is not accepted; accepted: a list with 0.5"),
        ("matchers", ["weight"], "accepted: a list with none"),
        ("corrections", ["least_squares"], "accepted: a list with none"),
    ],
)
def test_what_every_rung_is_compared_with_must_be_there(name, value, said):
    settings = {"alphas": [0.5], "matchers": ["none", "weight"], "corrections": ["none"]}
    attention.check_ladder(SimpleNamespace(settings=SimpleNamespace(**settings)))
    with pytest.raises(InputError) as error:
        attention.check_ladder(SimpleNamespace(settings=SimpleNamespace(**settings | {name: value})))
    assert said in str(error.value)


def test_a_layer_is_one_of_those_there_are():
    network = models.build("vit_mnist", width=0.0625, seed=0)
    run = SimpleNamespace(groups=symmetry.trace(network, models.example("vit_mnist")))
    assert attention.heads(run) == [f"blocks.{i}.att.q" for i in range(3)] and attention.streams(run) == ["patch"]
    attention.check_layer(run, 2)
    with pytest.raises(InputError, match="layer 3 is not accepted; accepted: 0 to 2, the layers of attention"):
        attention.check_layer(run, 3)
