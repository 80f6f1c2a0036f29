"""Several networks at once: shares on the simplex, one order, one report, and two of them as they always were."""

import copy
import json

import pytest
import torch
from torch import nn

import lib
from lib import fusion, matching, models, symmetry
from lib.checks import InputError
from lib.fusion import CORRECTIONS, selection
from tests.aligned import same

QUIET = {"progress": False}


def network(seed: int, width: int = 12) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16 * width, 4))
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def images(count: int = 120) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def three():
    networks = [network(seed) for seed in range(3)]
    groups = lib.trace(networks[0], images(2))
    return networks, groups, matching.match(networks, groups, "activation", images=images(), **QUIET)


@torch.no_grad()
def outputs(model, state):
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    return twin.eval()(images())


def test_every_network_keeps_its_outputs_and_stands_in_the_first_ones_order(three):
    networks, groups, maps = three
    before = [models.state_of(each) for each in networks]
    aligned = fusion.align(networks, groups, maps, names=["a", "b", "c"])
    assert len(aligned) == 3 and aligned.matcher == "activation"
    assert same(aligned.states[0], before[0])
    for each, state, old in zip(networks, aligned.states, before, strict=True):
        torch.testing.assert_close(outputs(each, state), outputs(each, old), rtol=1e-4, atol=1e-5)
        assert same(models.state_of(each), old)
    assert not same(aligned.states[1], before[1])
    assert [parent["sha256"] for parent in aligned.parents] == [models.state_sha256(state) for state in before]


def test_a_map_that_changes_a_network_does_not_get_past_align(three):
    networks, groups, maps = three
    first = next(iter(groups))
    partial = symmetry.Groups({first: symmetry.Group(groups[first].size, groups[first].members[:1])}, groups.layers,
                              groups.graph, groups.example)  # fmt: skip
    perms = {first: torch.roll(torch.arange(groups[first].size), 1)}
    with pytest.raises(symmetry.SymmetryError, match=first):
        fusion.align(networks[:2], partial, [partial.identity(), perms])
    bare = symmetry.Groups(dict(groups), groups.layers, groups.graph)
    with pytest.raises(InputError, match="hold no example to prove them with; accepted: groups from trace"):
        fusion.align(networks, bare, maps)


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([0.5, 0.5], "accepted: 3 numbers ≥ 0 that sum to 1"),
        ([0.5, 0.4, 0.2], "sum to 1"),
        ([1.2, -0.1, -0.1], "numbers ≥ 0"),
        (0.5, "the share of the second of two networks; accepted: 3 shares"),
        (1.5, "alpha 1.5 is not within"),
        ([float("nan"), 0.5, 0.5], "numbers ≥ 0"),
    ],
)
def test_shares_that_are_none_are_refused(three, shares, told):
    networks, groups, maps = three
    with pytest.raises(InputError, match=told):
        fusion.correct(fusion.align(networks, groups, maps), shares, "none")


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_two_shares_are_alpha_to_the_bit_and_a_parent_of_no_share_is_not_there(three, correction):
    networks, groups, maps = three
    two, three_ = fusion.align(networks[:2], groups, maps[:2]), fusion.align(networks, groups, maps)
    given = {"images": [images()[:70], images()[70:]], **QUIET}
    by_alpha = fusion.correct(two, 0.3, correction, **given).state
    assert same(by_alpha, fusion.correct(two, [0.7, 0.3], correction, **given).state)
    if correction != "least_squares":  # which would choose among three
        assert same(by_alpha, fusion.correct(three_, [0.7, 0.3, 0], correction, **given).state)
    alone = fusion.correct(three_, [0, 0, 1], "none").state
    assert same(alone, three_.states[2])


@pytest.mark.parametrize("correction", [name for name in CORRECTIONS if name != "closed_form"])
def test_the_order_in_which_aligned_networks_are_given_does_not_matter(three, correction):
    networks, groups, maps = three
    given = {"images": images(), **QUIET}
    shares, turned = (0.5, 0.3, 0.2), [2, 0, 1]
    one = fusion.correct(fusion.align(networks, groups, maps), shares, correction, **given).state
    aligned = fusion.align([networks[i] for i in turned], groups, [maps[i] for i in turned])
    other = fusion.correct(aligned, [shares[i] for i in turned], correction, **given).state
    difference = (outputs(networks[0], one) - outputs(networks[0], other)).norm() / outputs(networks[0], one).norm()
    assert difference < (0.05 if correction == "least_squares" else 1e-4)  # ties between units fall either way


def test_moments_are_those_of_the_activations(three):
    networks, groups, maps = three
    aligned = fusion.align(networks, groups, maps)
    moments = fusion.moments(aligned, images(), progress=False)
    layer = groups.layers[0].node
    values = []
    for state in aligned.states:
        twin = copy.deepcopy(networks[0])
        twin.load_state_dict(state)
        values.append(twin[0](images()).detach().movedim(1, 0).flatten(1).double())
    mean, covariance = moments.nodes[layer]
    assert mean.shape == (12, 3) and covariance.shape == (12, 3, 3)
    torch.testing.assert_close(mean, torch.stack([v.mean(1) for v in values], 1), rtol=1e-4, atol=1e-5)
    expected = torch.stack([torch.cov(torch.stack([v[unit] for v in values]), correction=0) for unit in range(12)])
    torch.testing.assert_close(covariance, expected, rtol=1e-3, atol=1e-5)
    shares = (0.2, 0.5, 0.3)
    mixed = sum(share * v for share, v in zip(shares, values, strict=True))
    torch.testing.assert_close(moments.variance(layer, shares), mixed.var(1, correction=0), rtol=1e-3, atol=1e-5)


def test_units_are_chosen_for_each_of_three_parents_in_their_shares(three):
    networks, groups, maps = three
    fused = fusion.correct(fusion.align(networks, groups, maps), None, "least_squares", images=images(), **QUIET)
    for counts in fused.info["units"].values():
        assert len(counts["single"]) == 3 and counts["mean"] + sum(counts["single"]) == 12
        assert max(counts["single"]) - min(counts["single"]) <= 1
    assert any(sum(counts["single"]) for counts in fused.info["units"].values())


def test_choose_gives_each_parent_the_units_that_are_read():
    """The next layer reads units 0 and 1 of the first parent, 2 and 3 of the second, 4 and 5 of the third."""
    n, p = 6, 3
    g = torch.Generator().manual_seed(0)
    samples = torch.randn(2000, p * n, generator=g).double()
    parents = samples.split(n, dim=1)
    columns = torch.cat([samples, *parents, sum(parents) / p], dim=1)
    covariance = columns.mT @ columns / len(columns)
    readers = torch.zeros(n, p * n, dtype=torch.float64)
    for unit in range(n):
        readers[unit, unit // 2 * n + unit] = 1
    choice, before, after = selection.choose(covariance, readers, (1 / 3,) * 3)
    assert choice.tolist() == [1, 1, 2, 2, 3, 3]
    assert before > 0.5 and after < 0.01


def test_a_line_in_the_simplex_is_measured_from_the_mean_of_the_parents(three):
    networks, groups, maps = three
    test = [(images(), networks[0](images()).argmax(1))]
    path = fusion.curve(fusion.align(networks, groups, maps), [0, 0.5, 1], test=test, **QUIET)
    assert list(path.parents) == ["a", "b", "c"]
    assert path.points[0]["test_accuracy"] == path.parents["a"]["test_accuracy"] == 1
    assert path.points[1]["shares"] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    drops = [
        sum(s * m["test_accuracy"] for s, m in zip(point["shares"], path.parents.values(), strict=True))
        - point["test_accuracy"]
        for point in path.points
    ]
    assert path.barrier["test_accuracy"] == pytest.approx(max(drops))


def test_fuse_does_all_of_it_and_what_it_saves_is_the_network(three, tmp_path):
    networks, groups, maps = three
    fused = lib.fuse(networks, images=images(), names=["a", "b", "c"], **QUIET)
    step_by_step = lib.fuse(lib.align(networks, groups, maps), images=images(), **QUIET)
    assert same(fused.state, step_by_step.state)
    model = fused.model()
    assert not model.training and same(model.state_dict(), fused.state)
    model[0].weight.data.zero_()
    assert fused.model()[0].weight.abs().max() > 0  # a new one at each call
    text = str(fused.report)
    assert "0.333 · a + 0.333 · b + 0.333 · c" in text and "least_squares" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == list(groups)
    path = fused.save(tmp_path / "fused.safetensors")
    assert same(models.read_state(path), fused.state)
    sidecar = json.loads((tmp_path / "fused.json").read_text())["fused"]
    assert [parent["name"] for parent in sidecar["parents"]] == ["a", "b", "c"]
    assert (sidecar["matcher"], sidecar["correction"], sidecar["images"]) == ("activation", "least_squares", 120)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "needs inputs to trace with"),
        ({"example": images(2)}, "matcher 'activation' looks at images"),
        ({"example": images(2), "matcher": "weight"}, "correction 'least_squares' looks at images"),
        ({"images": images(4), "matcher": "wight"}, "unknown matcher 'wight'"),
        ({"images": images(4), "correction": "least_squares(rigde=1)"}, "takes no option rigde"),
    ],
)
def test_fuse_says_what_it_lacks_in_one_line(three, given, told):
    with pytest.raises(InputError, match=told) as error:
        lib.fuse(three[0], **given, **QUIET)
    assert "\n" not in str(error.value)


def test_fuse_needs_no_images_where_nothing_looks_at_any(three):
    fused = lib.fuse(three[0], example=images(2), matcher="weight", correction="none", **QUIET)
    assert fused.info == {} and fused.aligned.matcher == "weight"


def test_the_old_form_of_match_is_refused_in_one_line(three):
    networks, groups, _ = three
    with pytest.raises(InputError, match=r"takes a list of at least two networks: match\(\[a, b\], groups, matcher\)"):
        matching.match(networks[0], networks[1], groups, matcher="weight")
    with pytest.raises(InputError, match="fuse takes a list"):
        lib.fuse(networks[0], images=images())


def test_options_in_brackets_are_those_given_by_name(three):
    networks, groups, _ = three
    by_text = matching.match(networks, groups, "activation(tap=pre_norm, epsilon=0.01)", images=images(), **QUIET)
    by_name = matching.match(networks, groups, "activation", images=images(), tap="pre_norm", epsilon=0.01, **QUIET)
    assert by_text[1].matcher == by_name[1].matcher == "activation(tap=pre_norm, epsilon=0.01)"
    assert by_text[1].options == {"tap": "pre_norm", "epsilon": 0.01}
    assert all(torch.equal(by_text[1][name], by_name[1][name]) for name in groups)
    plain = matching.match(networks, groups, "activation(tap=post_relu)", images=images(), **QUIET)
    assert plain[1].matcher == "activation"
    aligned = fusion.align(networks, groups, plain)
    fused = fusion.correct(aligned, None, "least_squares(select=false)", images=images(), **QUIET)
    assert fused.correction == "least_squares(select=false)" and fused.info["units"] == {}


def test_a_seed_makes_another_matching_of_what_is_alike():
    networks = [network(seed, width=24) for seed in range(2)]
    groups = symmetry.trace(networks[0], images(2))
    found = [matching.match(networks, groups, "weight", seed=seed, **QUIET)[1] for seed in (0, 0, 1, 2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in groups)
    assert any(not torch.equal(found[0][name], other[name]) for other in found[2:] for name in groups)
