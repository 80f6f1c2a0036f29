"""Attention traced and proved: heads, what runs inside them, streams that may be turned."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lib import symmetry
from lib.symmetry import SymmetryError
from tests import attention


def traced(name):
    network, example = attention.build(name)
    return network, symmetry.trace(network, example), example


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def outputs(network, state, example):
    return functional_call(network.double(), state, (example if not example.is_floating_point() else example.double(),))


@pytest.mark.parametrize("name", attention.NETWORKS)
def test_transformers_of_every_make_are_traced_and_proved(name):
    network, groups, example = traced(name)
    _, _, stream, inside = attention.NETWORKS[name]
    proof = symmetry.prove(network, groups, example)
    assert proof < 1e-9 and proof.sensitivity > 1e-5
    # what no output sees is the bias of keys alone
    assert all(any(part in each for part in ("k.bias", "qkv.bias", "in_proj_bias")) for each in proof.unseen)
    heads = {group.within[0] for group in groups.inside.values()}
    assert heads, "no heads"
    assert {groups[each].kind for each in heads} == {"permutation"}
    assert {group.kind for group in groups.inside.values()} == {inside}
    assert stream in {group.kind for each, group in groups.items() if each not in heads}
    assert proof.matrices == sum(group.kind != "permutation" for group in groups.every.values())


def test_heads_and_what_runs_inside_them_are_whole():
    _, groups, _ = traced("split, fused")
    (heads,) = {group.within[0] for group in groups.inside.values()}
    blocks = [(m.tensor, m.axis, m.block, m.offset) for m in groups[heads].members]
    assert blocks == [
        *(("block.attention.qkv.weight", 0, 4, offset) for offset in (0, 16, 32)),
        *(("block.attention.qkv.bias", 0, 4, offset) for offset in (0, 16, 32)),
        ("block.attention.o.weight", 1, 4, 0),
    ]
    third = groups.inside[f"{heads}.qk[2]"]
    assert [(m.tensor.rpartition(".")[2], m.offset, m.dual) for m in third.members] == [
        ("weight", 8, False), ("weight", 24, True), ("bias", 8, False), ("bias", 24, True),
    ]  # fmt: skip
    values = groups.inside[f"{heads}.vo[1]"]
    assert [(m.tensor.split(".")[2], m.offset, m.dual) for m in values.members] == [
        ("qkv", 36, False), ("qkv", 36, False), ("o", 4, True),
    ]  # fmt: skip


def test_queries_move_with_the_keys_that_they_share():
    _, groups, _ = traced("Llama, expand")
    (heads,) = {group.within[0] for group in groups.inside.values()}
    assert {m.tensor: m.block for m in groups[heads].members} == {
        "q.weight": 8,
        "k.weight": 4,
        "v.weight": 4,
        "o.weight": 8,
    }
    # rotary positions tell the coordinates of queries and keys apart; those of values stay free
    assert {group.role for group in groups.inside.values()} == {"vo"}


@pytest.mark.parametrize("name", ["apart, fused", "GPT, RMSNorm"])
def test_a_place_that_a_matrix_forgets_is_noticed(name):
    network, groups, example = traced(name)
    for each, group in groups.every.items():
        if group.kind == "permutation":
            continue
        for member in group.members:
            if "norm" in member.tensor or (member.dual and member.tensor.endswith("bias")):
                continue  # folded away; the bias of keys
            left = dataclasses.replace(group, members=tuple(m for m in group.members if m != member))
            wrong = dataclasses.replace(groups, groups={}, inside={each: left})
            maps = {each: symmetry.draw(group, generator())}
            with pytest.raises(SymmetryError):
                symmetry.prove(
                    network,
                    dataclasses.replace(wrong, groups={n: g for n, g in groups.items() if n != each}),
                    example,
                    maps,
                )


def test_a_dual_taken_for_a_maker_is_noticed_by_a_matrix_alone():
    network, groups, example = traced("apart, fused")
    name, group = next((n, g) for n, g in groups.inside.items() if g.role == "qk")
    members = tuple(dataclasses.replace(m, dual=False) for m in group.members)
    wrong = dataclasses.replace(groups, inside=groups.inside | {name: dataclasses.replace(group, members=members)})
    with pytest.raises(SymmetryError, match=r"^mapping block\.attention\.q\.qk\[0\] by matrices changes"):
        symmetry.prove(network, wrong, example)
    as_permutations = {n: dataclasses.replace(g, kind="permutation", gains=()) for n, g in wrong.every.items()}
    assert symmetry.prove(network, as_permutations, example) < 1e-9


def test_a_rotation_is_refused_before_gains_are_folded_and_proved_after():
    network, groups, example = traced("class token")
    state = {name: tensor.double() for name, tensor in network.state_dict().items()}
    name, group = next((n, g) for n, g in groups.items() if g.kind == "centred")
    turn = symmetry.draw(group, generator())
    with pytest.raises(SymmetryError, match=r"the gain block\.norm1\.weight is not 1; accepted: states from `fold`"):
        symmetry.act(state, groups, {name: turn})
    before = outputs(network, state, example)
    folded = symmetry.fold(state, groups)
    assert all(bool((folded[gain.weight] == 1).all()) and not folded[gain.bias].any() for gain in group.gains)
    assert folded.keys() == state.keys()
    turned = symmetry.act(folded, groups, {name: turn})
    for each in (folded, turned):
        assert torch.allclose(outputs(network, each, example), before, atol=1e-10)
    assert not torch.allclose(turned["embed.weight"], folded["embed.weight"])
    mean_lost = symmetry.nearest(torch.randn(16, 16, generator=generator()), "orthogonal")
    with pytest.raises(SymmetryError, match="do not sum to 1"):
        symmetry.act(folded, groups, {name: mean_lost})
    with pytest.raises(SymmetryError, match="is not orthogonal"):
        symmetry.act(folded, groups, {name: 2 * turn})
    with pytest.raises(SymmetryError, match=r"\(3, 3\); accepted: finite numbers \(16, 16\)"):
        symmetry.act(folded, groups, {name: torch.eye(3)})


def test_a_gain_that_something_else_reads_leaves_permutations():
    _, groups, _ = traced("TransformerEncoder, norms behind")
    assert all(not group.gains for group in groups.every.values())


def test_maps_of_heads_and_inside_them_compose_and_invert():
    network, groups, example = traced("split, fused")
    state = {name: tensor.double() for name, tensor in symmetry.fold(network.state_dict(), groups).items()}
    first, second = (
        {name: symmetry.draw(group, g) for name, group in groups.every.items()} for g in (generator(1), generator(2))
    )
    one_by_one = symmetry.act(symmetry.act(state, groups, first), groups, second)
    at_once = symmetry.act(state, groups, symmetry.compose(first, second, groups))
    back = symmetry.act(one_by_one, groups, symmetry.inverse(symmetry.compose(first, second, groups), groups))
    for name in state:
        assert torch.allclose(one_by_one[name], at_once[name], atol=1e-10), name
        assert torch.allclose(back[name], state[name], atol=1e-9), name
    assert not torch.allclose(one_by_one["block.attention.qkv.weight"], state["block.attention.qkv.weight"])
    assert torch.allclose(outputs(network, one_by_one, example), outputs(network, state, example), atol=1e-9)


@pytest.mark.parametrize("kind", ["orthogonal", "centred"])
def test_the_nearest_rotation_is_the_planted_one(kind):
    turn = symmetry.draw(symmetry.Group(9, (), kind=kind), generator(3))
    units = torch.randn(40, 9, generator=generator(4)).double()
    assert torch.allclose(symmetry.nearest(turn @ units.T @ units, kind), turn, atol=1e-8)
    if kind == "centred":
        assert torch.allclose(turn.sum(dim=1), torch.ones(9).double())


class Squared(nn.Module):
    """Hidden units that are multiplied with themselves: no matrix passes that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x):
        x = self.first(x)
        return self.last(x * x)


def test_a_product_of_units_with_themselves_leaves_permutations():
    network, example = Squared().eval(), torch.randn(5, 6, generator=generator())
    groups = symmetry.trace(network, example)
    assert {name: group.kind for name, group in groups.items()} == {"first": "permutation"}
    assert symmetry.prove(network, groups, example).matrices == 0


class OneGain(nn.Module):
    """Two norms of a stream that share their gain."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(6, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.norm2.weight = self.norm1.weight
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(torch.relu(self.up(self.norm1(x))))
        return self.head(self.norm2(x))


def test_a_gain_of_two_norms_is_not_folded():
    network, example = OneGain().eval(), torch.randn(5, 6, generator=generator())
    groups = symmetry.trace(network, example)
    assert {group.kind for group in groups.values()} == {"permutation"}
    assert symmetry.prove(network, groups, example) < 1e-9
