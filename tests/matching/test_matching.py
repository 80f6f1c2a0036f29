import copy

import pytest
import torch
from torch import nn

from lib import loaders, matching, models, symmetry
from lib.checks import InputError
from tests.oracles import layer_by_layer


def pair(name="vgg11", **options):
    options = {"width": 0.125, "norm": "batch"} | options
    a, b = (models.build(name, seed=seed, **options) for seed in (0, 1))
    return a, b, symmetry.trace(a, models.example(name))


def images(count=40, batch=20, shape=(3, 32, 32)):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *shape, generator=g) for _ in range(count // batch)]


def test_one_pass_finds_the_permutations_of_the_published_layer_by_layer_procedure():
    a, b, groups = pair()
    found = matching.match([a, b], groups, "activation", images=images(), progress=False)[1]
    expected = layer_by_layer(a, b, images())
    assert found.keys() == expected.keys()
    for name, perm in expected.items():
        assert torch.equal(found[name], perm), name


def test_the_same_on_a_trained_pair_and_real_images():
    pair_ = [
        models.load_state(models.build("vgg11", width=0.125, norm="batch"), models.read_state(path))
        for path in (models.find_checkpoint(f"vgg11bn-w0.125-s{seed}") for seed in (0, 1))
    ]
    groups = symmetry.trace(pair_[0], models.example("vgg11"))
    split = models.open_dataset("auto", "vgg11").train.head(1000)
    batches = [x for x, _ in loaders.MemoryLoader(split, 250, normalise=loaders.CIFAR)]
    found = matching.match([*pair_], groups, "activation", images=batches, progress=False)[1]
    for name, perm in layer_by_layer(*pair_, batches).items():
        assert torch.equal(found[name], perm), name


@pytest.mark.parametrize("tap", ["post_relu", "post_norm", "pre_norm"])
@pytest.mark.parametrize("similarity", ["correlation", "covariance", "uncentred"])
def test_a_planted_permutation_comes_back_through_every_tap_and_similarity(tap, similarity):
    a, _, groups = pair("resnet20", width=0.5)
    planted = groups.random(torch.Generator().manual_seed(3))
    b = copy.deepcopy(a)
    b.load_state_dict(symmetry.act(a.state_dict(), groups, symmetry.inverse(planted)))
    found = matching.match(
        [a, b], groups, "activation", images=images(), similarity=similarity, tap=tap, progress=False
    )[1]
    right = sum(int((found[name] == perm).sum()) for name, perm in planted.items())
    total = sum(len(perm) for perm in planted.values())
    # Only the correlation singles each unit out: a louder one may be worth more than a unit's own product.
    assert right == total if similarity == "correlation" else right > 0.5 * total


def test_correlation_is_that_of_numpy():
    a, b, groups = pair()
    x = images(20)[0]
    found = matching.activation_similarity(a, b, groups, [x], tap="pre_norm", progress=False)["features.0"]
    p, q = (m.features[0](x).detach().permute(0, 2, 3, 1).reshape(-1, 8).double() for m in (a, b))
    expected = torch.corrcoef(torch.cat([p, q], 1).T)[:8, 8:]
    assert torch.allclose(found, expected, atol=2e-3)


def test_matched_similarity_beats_that_of_no_matching():
    a, b, groups = pair()
    found = matching.match([a, b], groups, "activation", images=images(), progress=False)[1]
    matched = torch.cat(list(found.matched().values())).mean()
    unmatched = torch.cat([m.diagonal() for m in found.similarity.values()]).mean()
    assert matched > unmatched
    assert found.objective == pytest.approx(float(torch.cat(list(found.matched().values())).sum()))


def test_every_matcher_leaves_the_outputs_of_b_unchanged():
    a, b, groups = pair("simplenet", width=1.0, norm=None)
    batches = images(20, shape=(1, 28, 28))
    for name in matching.MATCHERS:
        found = matching.match([a, b], groups, name, images=batches, progress=False)[1]
        assert found.keys() == groups.keys()
        symmetry.prove(b, groups, models.example("simplenet"), found)


def test_neither_network_is_changed():
    a, b, groups = pair()
    before = copy.deepcopy((a.state_dict(), b.state_dict()))
    matching.match([a, b], groups, "activation", images=images(), progress=False)[1]
    for state, model in zip(before, (a, b), strict=True):
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("matcher", "options", "said"),
    [
        ("grahp", {}, "unknown matcher 'grahp'"),
        ("activation", {"tap": "relu"}, "tap 'relu' is not accepted; accepted: post_relu"),
        ("activation", {"taps": "relu"}, "no option taps"),
        ("graph_sm", {}, "plain chain"),
    ],
)
def test_bad_input_is_one_line(matcher, options, said):
    a, b, groups = pair()
    with pytest.raises(InputError, match=said) as error:
        matching.match([a, b], groups, matcher, images=images(), progress=False, **options)[1]
    assert "\n" not in str(error.value)


def test_a_matcher_that_looks_at_images_says_so():
    a, b, groups = pair()
    with pytest.raises(InputError, match="looks at images"):
        matching.match([a, b], groups, "activation")[1]


@pytest.mark.parametrize("ratio", [0, 30, 300, 3000])
@pytest.mark.parametrize("similarity", ["correlation", "covariance", "uncentred"])
def test_similarity_does_not_suffer_from_means_far_from_zero(similarity, ratio):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(10, 20000, 4, generator=g) + ratio
    b = a * 0.5 + torch.randn(10, 20000, 4, generator=g) * 0.8 - ratio
    a[..., 3] = ratio  # a unit that never varies
    moments = matching.Moments(4, "cpu")
    for x, y in zip(a, b, strict=True):
        moments.add(x, y)
    x, y = a.flatten(0, 1).double(), b.flatten(0, 1).double()
    expected = x.T @ y / len(x)
    if similarity != "uncentred":
        expected = torch.cov(torch.cat([x, y], 1).T, correction=0)[:4, 4:]
    if similarity == "correlation":
        expected /= torch.outer(x.std(0, correction=0), y.std(0, correction=0)) + 1e-4
    torch.testing.assert_close(moments.similarity(similarity, 1e-4), expected, atol=1e-3, rtol=1e-6)
    assert similarity == "uncentred" or not moments.similarity(similarity, 1e-4)[3].any()


class Odd(nn.Module):
    """Two layers and whatever else `forward` does with x, or with the output."""

    def __init__(self, before=lambda m, x: x, after=lambda m, y: y):
        super().__init__()
        self.a, self.b, self.p = nn.Linear(6, 16), nn.Linear(16, 3), nn.Parameter(torch.ones(5))
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self, self.b(torch.relu(self.a(self.before(self, x)))))


def test_a_network_that_writes_into_its_input_shows_both_networks_the_same_images():
    model, x = Odd(before=lambda m, x: x.sub_(1.0)).eval(), torch.randn(100, 6)
    groups, images_ = symmetry.trace(model, x), x.clone()
    found = matching.match([model, model], groups, "activation", images=[x], tap="pre_norm", progress=False)[1]
    assert torch.equal(found["a"], torch.arange(16))
    assert found.matched()["a"].min() > 0.99
    assert torch.equal(x, images_)


def test_a_group_in_no_activation_is_left_to_the_matchers_that_read_weights():
    model, x = Odd(after=lambda m, y: y * m.p.mean()).eval(), torch.randn(20, 6)
    groups = symmetry.trace(model, x)
    assert groups.keys() == {"a", "p"}
    with pytest.raises(InputError, match=r"group 'p' \(p\) shows in no activation; accepted: .*'weight' or 'graph'"):
        matching.match([model, model], groups, "activation", images=[x], progress=False)[1]
    assert matching.match([model, model], groups, "graph", progress=False)[1].keys() == groups.keys()


@pytest.mark.parametrize("matcher", ["activation", "weight", "sinkhorn", "graph"])
def test_weights_or_activations_that_overflow_are_refused_naming_the_group(matcher):
    model, x = Odd(), torch.randn(20, 6)
    groups = symmetry.trace(model, x)
    with torch.no_grad():
        model.a.weight.mul_(1e30)
    with pytest.raises(InputError, match="group 'a' are infinite or NaN") as error:
        matching.match([model, model], groups, matcher, images=[x], progress=False)[1]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("matcher", ["none", "activation", "weight", "sinkhorn", "graph"])
def test_a_network_without_groups_has_nothing_to_permute(matcher):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(20, 3, 4)
    groups = symmetry.trace(model, x)
    assert matching.match([model, model], groups, matcher, images=[x], progress=False)[1] == {}
