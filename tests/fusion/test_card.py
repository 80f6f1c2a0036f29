"""The card of a fused network, what it measures, and a fused network in a torch file."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import lib
from lib import fusion, models
from lib.checks import InputError


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
    ).eval()


@pytest.fixture(scope="module")
def case():
    a, b, x = mlp(0), mlp(1), torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    fused = lib.fuse([a, b], images=x[:40], shares=[0.25, 0.75], names=["one", "two"], progress=False)
    return a, b, fused, (x[40:], torch.arange(40) % 3)


def accuracy(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.inference_mode():
        return float((network(x).argmax(dim=1) == y).double().mean())


def test_it_measures_the_fused_network_beside_its_parents_and_their_ensemble(case):
    a, b, fused, (x, y) = case
    found = fused.measure((x, y))
    assert found["images"] == 40
    assert [each["accuracy"] for each in found["parents"]] == [accuracy(a, x, y), accuracy(b, x, y)]
    assert found["fused"]["accuracy"] == accuracy(fused.model(), x, y)
    with torch.inference_mode():
        logits = [a(x), b(x)]
    for mean, share in (("probabilities", lambda z: z.softmax(dim=1)), ("outputs", lambda z: z)):
        named = (0.25 * share(logits[0]) + 0.75 * share(logits[1])).argmax(dim=1)
        wanted = float((named == y).double().mean())
        assert fused.measure((x, y), mean=mean)["ensemble"]["accuracy"] == wanted
    with pytest.raises(InputError, match="accepted: probabilities, outputs"):
        fused.measure((x, y), mean="median")


def test_the_card_says_parents_methods_accuracy_proof_and_limits(case):
    _, _, fused, test = case
    measures = fused.measure(test)
    card = fused.card(
        measures, title="mine", data="40 points", images="40 others", parents=[{"file": "a"}, {"file": "b|c"}]
    )
    assert card.startswith("# mine\n") and all(parent["sha256"] in card for parent in fused.aligned.parents)
    assert "| one | 0.25 | a |" in card and "| two | 0.75 | b\\|c |" in card
    assert "`activation`" in card and "`least_squares`" in card and "40 others" in card and "On 40 points" in card
    for each in (measures["fused"], measures["ensemble"], *measures["parents"]):
        assert f"| {100 * each['accuracy']:.2f} |" in card
    assert str(fused.aligned.groups.proof) in card and "has no interval" in card
    bare = fused.card()
    assert (
        "Nothing was measured" in bare
        and "How good it is is not known" in bare
        and "| 0." not in bare.split("## What it")[1]
    )
    with pytest.raises(InputError, match="2 networks and 1 rows"):
        fused.card(parents=[{}])


FROM_THE_BETTER = {
    0.5: "10.00 points below its better",
    0.7: "10.00 points above its better",
    0.6: "level with its better",
}


@pytest.mark.parametrize("own", FROM_THE_BETTER)
def test_the_card_says_how_far_it_is_from_the_better_parent(case, own):
    reached = [{"accuracy": value, "loss": 1.0} for value in (own, 0.9, 0.4, 0.6)]
    measures = {"images": 9, "mean": "outputs", "fused": reached[0], "ensemble": reached[1], "parents": reached[2:]}
    assert FROM_THE_BETTER[own] in case[2].card(measures)


def test_the_card_says_the_structure_and_cost_of_another_than_one_network(case):
    a, b, _, (x, _) = case
    fused = lib.fuse([a, b], images=x, budget=1.5, progress=False)
    told = fused.structure.as_dict()
    assert f"against one network {told['parameters']:.3g} times its parameters and" in fused.card()


def test_torch_save_writes_tensors_alone_which_torch_and_we_read(case, tmp_path):
    _, _, fused, (x, _) = case
    torch.save(fused, tmp_path / "fused.pt")
    state = torch.load(tmp_path / "fused.pt", weights_only=True)
    assert isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
    assert state.keys() == fused.state.keys()
    plain = mlp(2)
    plain.load_state_dict(state)
    wanted = fused.model()(x)
    assert torch.equal(plain.eval()(x), wanted)
    assert torch.equal(fusion.load(tmp_path / "fused.pt", mlp(3))(x), wanted)
    assert models.state_sha256(models.read_state(tmp_path / "fused.pt")) == models.state_sha256(fused.state)


def test_a_pickle_of_it_holds_neither_code_nor_parents_and_a_copy_is_a_fused_network(case):
    _, _, fused, _ = case
    content = io.BytesIO()
    torch.save(fused, content)
    assert b"Aligned" not in content.getvalue() and b"lib" not in pickle.dumps(fused)
    for copied in (copy.copy(fused), copy.deepcopy(fused)):
        assert isinstance(copied, fusion.Fused) and str(copied.report) == str(fused.report)
    deep = copy.deepcopy(fused)
    assert deep.state["0.weight"].data_ptr() != fused.state["0.weight"].data_ptr()
