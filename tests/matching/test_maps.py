"""Heads, what runs inside them and streams turned by matrices: planted maps come back."""

import copy

import pytest
import torch

from lib import fusion, matching, models, symmetry
from lib.checks import InputError
from lib.matching.maps import balance
from tests import attention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def planted(name, maps, seed=1):
    """A network, its groups, the same network under random maps, and images."""
    network, example = attention.build(name)
    groups = symmetry.trace(network, example)
    network = network.double()
    state = network.state_dict()
    drawn = {
        each: symmetry.draw(group, g) if maps == "orthogonal" else torch.randperm(group.size, generator=g)
        for g in [generator(seed)]
        for each, group in groups.every.items()
    }
    if maps == "orthogonal":
        state = symmetry.fold(state, groups)
    moved = models.load_state(copy.deepcopy(network), symmetry.act(state, groups, drawn))
    if example.is_floating_point():
        images = torch.randn(64, *example.shape[1:], generator=generator(2)).double()
    else:
        images = torch.randint(attention.WORDS, (64, example.shape[1]), generator=generator(2))
    return network, moved, groups, images


NAMES = ["apart, fused", "split, written out", "GPT", "GPT, RMSNorm", "Llama, expand"]


@pytest.mark.parametrize("matcher", ["weight", "activation"])
@pytest.mark.parametrize("name", NAMES)
def test_planted_matrices_come_back(name, matcher):
    a, b, groups, images = planted(name, "orthogonal")
    maps = matching.match([a, b], groups, matcher=f"{matcher}(maps=orthogonal)", images=[images], progress=False)
    assert any(each.is_floating_point() for each in maps[1].values())
    first, second = fusion.align([a, b], groups, maps).states
    for tensor in first:
        if not tensor.endswith("k.bias"):  # no pattern depends on it
            apart = float((first[tensor] - second[tensor]).abs().max()) / max(1.0, float(first[tensor].abs().max()))
            assert apart < 1e-6, (tensor, apart)


@pytest.mark.parametrize("matcher", ["weight", "activation"])
@pytest.mark.parametrize("name", [*NAMES, "GPT, tied", "TransformerEncoder, norms behind"])
def test_planted_permutations_come_back(name, matcher):
    a, b, groups, images = planted(name, "permutation")
    _, found = matching.match([a, b], groups, matcher=matcher, images=[images], progress=False)
    back = symmetry.act(b.state_dict(), groups, found)
    assert any(not torch.equal(perm, torch.arange(len(perm))) for perm in found.values())
    for tensor, own in a.state_dict().items():
        assert torch.equal(back[tensor], own), tensor


def test_balanced_heads_have_one_gram_matrix_on_both_sides():
    network, _, groups, _ = planted("apart, fused", "orthogonal")
    state = network.state_dict()
    own = balance(state, groups)
    assert own.keys() == groups.inside.keys()
    moved = symmetry.act(state, groups, own)
    for i, (q, k) in enumerate(zip(*(moved[f"block.attention.{n}.weight"].split(4) for n in "qk"), strict=True)):
        bias = moved["block.attention.q.bias"].split(4)[i][:, None]
        assert torch.allclose(q @ q.T + bias @ bias.T, k @ k.T, rtol=1e-3, atol=1e-4)
    before = state["block.attention.q.weight"][:4]
    assert not torch.allclose(
        before @ before.T, moved["block.attention.q.weight"][:4] @ moved["block.attention.q.weight"][:4].T
    )


def test_a_matching_reaches_as_far_as_it_is_told():
    a, b, groups, images = planted("GPT", "permutation")
    kept = {}
    for reach in ("hidden", "heads", "inside", "all"):
        kept[reach] = matching.match(
            [a, b], groups, matcher=f"activation(reach={reach})", images=[images], progress=False
        )[1].keys()
    heads = {group.within[0] for group in groups.inside.values()}
    assert kept["hidden"] == {"blocks.0.up", "blocks.1.up"}
    assert kept["heads"] - kept["hidden"] == heads
    assert kept["inside"] - kept["heads"] == {*groups.inside}
    assert kept["all"] == {*groups.every} and len(kept["all"] - kept["inside"]) == 1


@pytest.mark.parametrize("reach", ["hidden", "heads", "inside"])
def test_both_networks_are_in_one_gauge_however_far_a_matching_reaches(reach):
    a, b, groups, images = planted("apart, fused", "permutation")
    maps = matching.match([a, b], groups, matcher=f"weight(maps=orthogonal, reach={reach})", progress=False)
    turned = [{name for name, each in m.items() if each.is_floating_point()} for m in maps]
    assert turned[0] == turned[1] == ({*groups.inside} if reach == "inside" else set())
    fusion.align([a, b], groups, maps)  # proves both


def test_a_network_without_heads_has_no_reach():
    network = models.build("mlp", width=0.1)
    with pytest.raises(InputError, match=r"^reach 'heads' is not accepted, this network has no heads of attention"):
        pair = [network, copy.deepcopy(network)]
        groups = symmetry.trace(network, models.example("mlp"))
        matching.match(
            pair, groups, matcher="activation(reach=heads)", images=[models.example("mlp", 20)], progress=False
        )


@pytest.mark.parametrize("option", ["memory=7", "activations=1", "restarts=2", "best=true"])
def test_options_of_weight_that_would_do_nothing_are_refused(option):
    gpt, _, groups, _ = planted("GPT", "permutation")
    name = option.partition("=")[0]
    said = rf"^matcher 'weight' takes no option {name} where .*; accepted there: maps, reach, strategy$"
    with pytest.raises(InputError, match=said):
        matching.match([gpt, gpt], groups, f"weight({option})", progress=False)
    with pytest.raises(InputError, match=said):  # before anything is measured
        matching.check_network(f"weight(maps=orthogonal, {option})", gpt, groups)


def test_options_of_weight_are_taken_where_they_do_something():
    gpt, _, heads, _ = planted("GPT", "permutation")
    matching.check_network("weight(memory=1073741824, restarts=0, reach=heads)", gpt, heads)  # as they are by default
    network = models.build("mlp", width=0.1)
    groups = symmetry.trace(network, models.example("mlp"))
    matching.check_network("weight(best=true, restarts=2)", network, groups)
    with pytest.raises(InputError, match="takes no option best where"):
        matching.check_network("weight(best=true, maps=orthogonal)", network, groups)


@pytest.mark.parametrize("matcher", ["sinkhorn", "graph"])
@pytest.mark.parametrize("name", ["GPT", "class token", "torchvision's ViT"])
def test_graph_matching_finds_planted_permutations_of_streams_heads_and_hidden_units(name, matcher):
    network, example = attention.build(name)
    groups = symmetry.trace(network, example)
    drawn = groups.random(generator())
    moved = models.load_state(copy.deepcopy(network), symmetry.act(network.state_dict(), groups, drawn))
    _, found = matching.match([network, moved], groups, matcher=matcher, progress=False)
    assert {name: perm.tolist() for name, perm in found.items()} == {
        name: perm.tolist() for name, perm in symmetry.inverse(drawn).items()
    }
