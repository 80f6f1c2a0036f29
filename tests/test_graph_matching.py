"""lib.graph_matching: the published spectral matching against pygmtools on dense K."""

from dataclasses import dataclass
from itertools import pairwise

import pygmtools
import pytest
import torch

from lib import graph_matching as gm
from lib.checks import InputError


@dataclass(frozen=True)
class Member:
    tensor: str
    axis: int
    block: int = 1
    offset: int = 0
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Group:
    size: int
    members: tuple[Member, ...]


CHAIN = {
    "conv1": Group(6, (Member("conv1.weight", 0), Member("conv2.weight", 1))),
    "conv2": Group(5, (Member("conv2.weight", 0), Member("fc1.weight", 1, block=4))),
    "fc1": Group(7, (Member("fc1.weight", 0), Member("fc2.weight", 1))),
}
SHAPES = {"conv1": (6, 2, 3, 3), "conv2": (5, 6, 3, 3), "fc1": (7, 20), "fc2": (3, 7)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(shapes, seed):
    g = generator(seed)
    return {f"{name}.weight": torch.randn(shape, generator=g) * 0.3 for name, shape in shapes.items()}


def permute(state, groups, perms):
    """The brief definition of a permutation's action, written apart from lib.symmetry."""
    state = {key: value.clone() for key, value in state.items()}
    for name, group in groups.items():
        for m in group.members:
            moved = (m.offset + perms[name][:, None] * m.block + torch.arange(m.block)).flatten()
            index = torch.arange(state[m.tensor].shape[m.axis])
            index[m.offset : m.offset + len(moved)] = moved
            state[m.tensor] = state[m.tensor].index_select(m.axis, index)
    return state


def shuffle(groups, seed):
    g = generator(seed)
    return {name: torch.randperm(group.size, generator=g) for name, group in groups.items()}


def test_chain_shapes_follow_the_groups():
    a, b = draw(SHAPES, 0), draw(SHAPES, 1)
    c1, c2, names = gm.chain(a, b, CHAIN)
    assert names == ["conv1", "conv2", "fc1"]
    assert [tuple(c.shape) for c in c1] == [(6, 2, 9), (5, 6, 9), (7, 5, 4), (3, 7, 1)]
    assert torch.equal(c2[2][3, 1], b["fc1.weight"][3, 4:8])
    assert torch.equal(c1[1][4, 2], a["conv2.weight"][4, 2].flatten())


def test_chain_is_found_whatever_the_order_of_the_groups():
    a, b = draw(SHAPES, 0), draw(SHAPES, 1)
    assert gm.chain(a, b, dict(reversed(CHAIN.items())))[2] == ["conv1", "conv2", "fc1"]


@pytest.mark.parametrize(
    ("groups", "extra", "names"),
    [
        ({"fc1": Group(7, (Member("fc1.weight", 0), Member("fc1.bias", 0), Member("fc2.weight", 1)))},
         {"fc1.bias": (7,)}, "fc1.bias"),
        ({"fc1": Group(7, (Member("fc1.weight", 0), Member("fc2.weight", 1), Member("fc3.weight", 1)))},
         {"fc3.weight": (2, 7)}, "fc3.weight"),
        ({}, {"side.weight": (4, 4)}, "side.weight"),
    ],
)  # fmt: skip
def test_what_is_no_plain_chain_is_refused_by_name(groups, extra, names):
    state = draw(SHAPES, 0) | {key: torch.zeros(shape) for key, shape in extra.items()}
    with pytest.raises(InputError, match=f"{names}.*matcher 'graph'") as refusal:
        gm.chain(state, state, CHAIN | groups)
    assert "\n" not in str(refusal.value)


def test_affinity_entries():
    c1, c2, _ = gm.chain(draw(SHAPES, 0), draw(SHAPES, 1), CHAIN)
    n, start = 23, {0: 0, 1: 2, 2: 8}
    K = gm.affinity(c1, c2).view(n, n, n, n)
    for layer, b, a, b2, a2 in [(0, 1, 1, 5, 0), (1, 4, 2, 0, 5), (2, 6, 3, 2, 0)]:
        pre, post = start[layer], start[layer] + c1[layer].shape[1]
        want = torch.exp(-(c1[layer][b, a] - c2[layer][b2, a2]).norm())
        assert K[pre + a, pre + a2, post + b, post + b2] == pytest.approx(want.item(), rel=1e-4)
        assert K[post + b, post + b2, pre + a, pre + a2] == 0  # one way only
    ones = [i for i in range(n) if K[i, i, i, i] == 1]
    assert ones == [0, 1, 20, 21, 22]  # input and output nodes


def test_affinity_puts_hidden_biases_on_the_diagonal():
    c1, c2, _ = gm.chain(draw(SHAPES, 0), draw(SHAPES, 1), CHAIN)
    b1, b2 = ([torch.randn(len(c), generator=generator(s)) for c in c1] for s in (3, 4))
    n = 23
    plain, K = gm.affinity(c1, c2), gm.affinity(c1, c2, biases=(b1, b2))
    extra = (K - plain).diagonal().view(n, n)
    assert extra[2 + 1, 2 + 4] == pytest.approx((-(b1[0][1] - b2[0][4]).abs()).exp().item())
    assert extra[13 + 6, 13 + 2] == pytest.approx((-(b1[2][6] - b2[2][2]).abs()).exp().item())
    assert (extra[2:20, 2:20] > 0).sum() == 6 * 6 + 5 * 5 + 7 * 7
    assert extra[20:].abs().max() == 0  # the output nodes are matched by their ones, not by a bias
    assert torch.equal(K - torch.diag(K.diagonal()), plain - torch.diag(plain.diagonal()))


def test_dense_affinity_refuses_above_the_limit_naming_size_and_way_out():
    c = [torch.zeros(1000, 3, 9), torch.zeros(10, 1000, 1)]
    with pytest.raises(InputError, match=r"1013 units would take 4.212 TB.*4.295 GB.*sweep.*'graph'"):
        gm.affinity(c, c)
    small, _, _ = gm.chain(draw(SHAPES, 0), draw(SHAPES, 0), CHAIN)
    with pytest.raises(InputError, match="1.119 MB"):
        gm.affinity(small, small, memory=1e6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shapes", [SHAPES, {"fc1": (9, 4), "fc2": (8, 9), "fc3": (7, 8), "fc4": (2, 7)}])
def test_sweep_is_pygmtools_sm_on_dense_k(shapes, seed):
    a, b = draw(shapes, seed), draw(shapes, seed + 100)
    layers = list(shapes)
    groups = {
        x: Group(shapes[x][0], (Member(f"{x}.weight", 0),
                                Member(f"{y}.weight", 1, block=shapes[y][1] // shapes[x][0])))
        for x, y in pairwise(layers)
    }  # fmt: skip
    c1, c2, names = gm.chain(a, b, groups)
    n = c1[0].shape[1] + sum(len(c) for c in c1)
    dense = pygmtools.sm(gm.affinity(c1, c2), n, n, backend="pytorch").T
    start, scales = c1[0].shape[1], []
    for X, name in zip(gm.sweep(c1, c2), names, strict=True):
        size = groups[name].size
        block = dense[start : start + size, start : start + size]
        scales.append((X * block).sum() / (X * X).sum())
        assert torch.allclose(X * scales[-1], block, rtol=2e-5, atol=0)
        start += size
    assert all(s > 0 for s in scales)
    for orientation in ("correct", "reference"):
        swept, _ = gm.spectral(a, b, groups, orientation=orientation)
        solved, _ = gm.spectral(a, b, groups, orientation=orientation, solver="pygmtools")
        assert all(torch.equal(swept[name], solved[name]) for name in names)


def test_sweep_does_not_depend_on_how_it_is_streamed():
    c1, c2, _ = gm.chain(draw(SHAPES, 0), draw(SHAPES, 1), CHAIN)
    for X, Y in zip(gm.sweep(c1, c2, rows=1), gm.sweep(c1, c2, rows=100), strict=True):
        assert torch.allclose(X, Y, rtol=1e-5)


def test_spectral_finds_a_planted_permutation_and_the_reference_orientation_its_inverse():
    a = draw(SHAPES, 5)
    planted = shuffle(CHAIN, 6)
    b = permute(a, CHAIN, planted)
    correct, info = gm.spectral(a, b, CHAIN)
    slipped, _ = gm.spectral(a, b, CHAIN, orientation="reference")
    for name, perm in planted.items():
        assert torch.equal(correct[name], perm.argsort())
        assert torch.equal(slipped[name], perm)
        assert info["similarity"][name].shape == (len(perm), len(perm))
    moved = permute(b, CHAIN, correct)
    assert all(torch.equal(moved[key], a[key]) for key in a)


@pytest.mark.parametrize("option", [{"solver": "magic"}, {"orientation": "left"}])
def test_unknown_options_name_what_is_accepted(option):
    a = draw(SHAPES, 0)
    with pytest.raises(InputError, match="unknown .* accepted: "):
        gm.spectral(a, a, CHAIN, **option)


def test_pygmtools_backend_is_left_alone():
    before = pygmtools.BACKEND
    a = draw(SHAPES, 0)
    gm.spectral(a, a, CHAIN, solver="pygmtools")
    assert before == pygmtools.BACKEND
