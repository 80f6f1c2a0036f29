"""Networks of kinds that people have: half precision, extra states, versions, layers that a function works out."""

import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from lib import fusion, matching, models, symmetry
from lib.checks import InputError
from lib.fusion import CORRECTIONS, selection, sites
from lib.symmetry import Groups, Layer
from tests.aligned import averaged, correct, moments
from tests.fusion.test_correction import QUIET, draw, outputs, randomise

# --- precision --------------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Its first layers of one type, its last of another."""

    def __init__(self, first, last):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))
        self.first.to(first)
        self.last.to(last)
        self.dtype = last

    def forward(self, x):
        x = self.first(x)
        return self.last(x.to(self.dtype))


TYPES = [(torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.float64,) * 2, (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_corrections_take_any_precision_and_keep_it(kind, types):
    full = [randomise(Mixed(torch.float32, torch.float32), seed) for seed in (1, 2)]
    with torch.no_grad():  # weights and images that every type holds exactly
        for tensor in (tensor for model in full for tensor in model.state_dict().values()):
            tensor.copy_(tensor.bfloat16())
    x = draw(200, 3, 6, 6).bfloat16()
    options = QUIET | ({"select": False} if kind == "least_squares" else {})
    parents = [models.load_state(Mixed(*types), model.state_dict()).eval() for model in full]
    found, expected = (
        correct(
            a, a.state_dict(), b.state_dict(), 0.5, kind, groups=symmetry.trace(a, given), batches=[given], **options
        )
        for (a, b), given in ((parents, x.to(types[0])), (full, x.float()))
    )
    assert {key: tensor.dtype for key, tensor in found.items()} == {
        key: tensor.dtype for key, tensor in parents[0].state_dict().items()
    }
    exact = outputs(full[0], expected, x.float())
    error = (outputs(parents[0], found, x.to(types[0])).float() - exact).norm() / exact.norm()
    assert error < (0.03 if torch.bfloat16 in types else 0.004 if torch.float16 in types else 1e-5)


def test_statistics_of_half_precision_neither_overflow_nor_round_away(monkeypatch):
    """Values of 300 have squares, and sums, that float16 does not hold."""
    chosen, choose = [], selection.choose
    monkeypatch.setattr(selection, "choose", lambda *given: chosen.append(given[0]) or choose(*given))
    # what lies between two layers has weights, of the network's type
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.PReLU(8), nn.Linear(8, 3))
    a, b = (randomise(copy.deepcopy(model), seed).half() for seed in (1, 2))
    for model in (a, b):
        model[0].bias.data += 300
    x = draw(4000, 6).half()
    stats = moments(a, a.state_dict(), b.state_dict(), symmetry.trace(a, x[:2]), [x], progress=False)
    z = a[0](x).double()
    torch.testing.assert_close(stats.nodes["_0"][0][:, 0], z.mean(0))
    torch.testing.assert_close(stats.nodes["_0"][1][:, 0, 0], z.var(0, correction=0))
    states, groups = [m.state_dict() for m in (a, b)], symmetry.trace(a, x[:2])
    for kind in ("repair", "rescale", "closed_form", "least_squares"):
        found = correct(a, *states, 0.5, kind, groups=groups, batches=[x], **QUIET)
        assert all(tensor.isfinite().all() for tensor in found.values()), kind
    assert len(chosen) == 1 and chosen[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_statistics_are_float32_or_that_of_wider_networks(dtype):
    goals = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    wide = fusion.Tracked(nn.Linear(6, 8).to(dtype), *goals, -1, True)
    assert {buffer.dtype for buffer in wide.buffers()} == {torch.promote_types(dtype, torch.float32)}
    assert wide(draw(4, 6).to(dtype)).dtype == dtype


# --- state dicts ------------------------------------------------------------------------------------------------------


class Extra(nn.Module):
    """Its state dict holds what is no tensor, or a tensor that is no weight."""

    def __init__(self, extra=None):
        super().__init__()
        self.a, self.b, self.extra = nn.Linear(6, 5), nn.Linear(5, 2), extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("extra", [{"version": 3}, torch.tensor([1.0, 2.0])], ids=["dict", "tensor"])
@pytest.mark.parametrize("kind", ["none", "repair", "rescale", "closed_form", "least_squares"])
def test_an_extra_state_is_kept_as_the_first_networks(kind, extra, tmp_path):
    a, b = randomise(Extra(extra), 1), randomise(Extra({"version": 4}), 2)
    x = draw(200, 6)
    groups = symmetry.trace(a, x[:2])
    perms = {name: torch.roll(perm, 1) for name, perm in groups.identity().items()}
    aligned = fusion.align([a, b], groups, [groups.identity(), perms])
    fused = fusion.correct(aligned, 0.5, kind, images=x, **QUIET)
    assert fused.state["_extra_state"] is not a.extra and same_extra(fused.state["_extra_state"], extra)
    assert same_extra(fused.model().extra, extra) and a.extra is extra
    mixed = fusion.interpolate(aligned.states, (0.25, 0.75))
    copied = models.state_of(a)["_extra_state"]
    assert copied is not a.extra and same_extra(copied, extra)
    a.load_state_dict(mixed)
    assert same_extra(mixed["_extra_state"], extra)
    saved = models.read_checkpoint(fused.save(tmp_path / "fused.safetensors")).state
    assert saved.keys() == fused.state.keys() - {"_extra_state"}
    loaded = models.load_state(Extra(5), saved)  # what the file does not hold stays the network's
    assert loaded.extra == 5 and torch.equal(loaded.a.weight, fused.state["a.weight"])
    same_weights = models.load_state(Extra("other"), saved).state_dict()
    assert models.state_sha256(same_weights) == models.state_sha256(fused.state)


def same_extra(one, other):
    return torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other


@pytest.mark.parametrize("kind", ["none", "bn_reset", "repair"])
def test_a_fused_state_and_a_mean_load_where_modules_have_versions(kind):
    """MNASNet refuses to load a state that does not say which version of it made it."""
    a, b = (torchvision.models.mnasnet0_5(num_classes=10).eval() for _ in range(2))
    x = draw(4, 3, 32, 32)
    groups = symmetry.trace(a, x)
    aligned = fusion.align([a, b], groups, [groups.identity()] * 2)
    fused = fusion.correct(aligned, 0.5, kind, images=x, **QUIET)
    for state in (fused.state, fusion.interpolate(aligned.states, (0.5, 0.5)), models.state_of(a), aligned.states[1]):
        a.load_state_dict(state)
        assert state._metadata[""] == {"version": 2}


# --- layers and norms that do not stand where they are expected -------------------------------------------------------


class Tokens(nn.Module):
    """A BatchNorm over places, behind a layer over channels."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.o = nn.Linear(6, 9), nn.BatchNorm1d(7), nn.Linear(9, 4)

    def forward(self, x):
        return self.o(torch.relu(self.n(self.a(x))).mean(1))


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_a_norm_on_another_axis_than_its_layer_stands_alone(kind):
    a, b = (randomise(Tokens(), seed) for seed in (1, 2))
    x = draw(256, 7, 6)
    for model in (a, b):
        fusion.reset(model, [x])
    groups = symmetry.trace(a, x)
    groups = dataclasses.replace(groups, layers=tuple(dataclasses.replace(each, norm=None) for each in groups.layers))
    for alpha, parent in ((0, a), (1, b)):
        found = correct(a, a.state_dict(), b.state_dict(), alpha, kind, groups=groups, batches=[x], **QUIET)
        torch.testing.assert_close(outputs(a, found, x), parent(x).detach(), rtol=1e-3, atol=1e-3)
    if kind == "least_squares":
        assert list(found.info["layers"]) == ["a", "n", "o"]


class Conv(nn.Conv2d):
    """As timm's layers: a subclass with a forward of its own, which torch.fx looks into."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1)


class NormAct(nn.BatchNorm2d):
    """A norm that does more than normalise."""

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum)
        return F.relu(x)


class Functional(nn.Module):
    """Modules and functions in turn: a convolution by function, one with a norm by function, a bare parameter."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Conv(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.norm, self.three = NormAct(6), nn.Conv2d(6, 6, 3)
        self.bare, self.fc = nn.Parameter(torch.zeros(8, 24)), nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.two(F.relu(self.one(x))))
        x = F.relu(self.three(x)).flatten(1)
        return self.fc(F.relu(F.linear(x, self.bare)))


def functional_groups(model, x):
    """As a tracer that knows functions would describe the network."""
    graph = fx.symbolic_trace(copy.deepcopy(model))
    ShapeProp(graph).propagate(x)
    node = {(n.op, n.target): n.name for n in graph.graph.nodes}
    layers = (
        Layer("one", "conv", node["call_function", torch.conv2d], "one.weight", "one.bias"),
        Layer("two", "conv", node["call_module", "two"], "two.weight", "two.bias", "norm"),
        Layer("three", "conv", node["call_module", "three"], "three.weight", "three.bias"),
        Layer("bare", "linear", node["call_function", F.linear], "bare"),
        Layer("fc", "linear", node["call_module", "fc"], "fc.weight", "fc.bias"),
    )
    return Groups({}, layers, graph.graph, x)


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_a_layer_worked_out_by_a_function_keeps_its_interpolated_weights_and_is_told(kind):
    a, b = (randomise(Functional(), seed) for seed in (1, 2))
    for seed, model in enumerate((a, b)):
        model.bare.data = draw(8, 24, seed=seed) / 5
    x = draw(200, 3, 6, 6)
    groups, states = functional_groups(a, x[:2]), [model.state_dict() for model in (a, b)]
    found = correct(a, *states, 0.5, kind, groups=groups, batches=[x], **QUIET)
    mean = averaged(*states, 0.5)
    changed = {name.split(".")[0] for name in mean if not torch.equal(found[name], mean[name])}
    statistics = {"three"}
    expected = {"repair": statistics | {"norm"}, "rescale": statistics | {"norm"}, "closed_form": statistics}
    expected |= {"none": set(), "bn_reset": {"norm"}, "least_squares": {"two", "three", "fc"}}
    expected |= {"temperature": {"fc"}}
    assert changed == expected[kind]
    assert torch.equal(found["norm.weight"], mean["norm.weight"])
    left = dict.fromkeys(("one", "two", "bare"), sites.FUNCTION)
    if kind == "least_squares":
        left = dict.fromkeys(("one", "norm", "bare"), sites.FUNCTION)
    assert found.info.get("left", left) == left
    if kind == "least_squares":
        goal = (a(x) + b(x)).detach() / 2
        assert (outputs(a, found, x) - goal).norm() < (outputs(a, mean, x) - goal).norm()


class Twice(nn.Module):
    """A module whose weights a function reads as well."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.two(F.relu(self.one(x))))
        return self.fc(F.relu(F.linear(x, self.one.weight)))


def test_a_layer_whose_weights_a_function_reads_too_is_used_more_than_once():
    model, x = randomise(Twice(), 1), draw(4, 6)
    graph = fx.symbolic_trace(copy.deepcopy(model))
    ShapeProp(graph).propagate(x)
    layers = [Layer(name, "linear", name, f"{name}.weight", f"{name}.bias") for name in ("one", "two", "fc")]
    groups = Groups({}, (*layers[:2], Layer("linear", "linear", "linear", "one.weight"), layers[2]), graph.graph, x)
    found, left = sites.activated(model, groups)
    assert [layer.name for layer in found] == ["two"] and left["one"] == "used more than once"
    solved, left = sites.solvable(model, groups)
    assert [site.name for site in solved] == ["two", "fc"]
    assert left == {"one": "used more than once", "linear": sites.FUNCTION}


class Sum(nn.Module):
    def __init__(self, relu, add):
        super().__init__()
        self.one, self.two, self.fc, self.relu, self.add = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), relu, add

    def forward(self, x):
        x = self.relu(self.one(x))
        return self.fc(self.relu(self.add(self.two(x), x)))


def test_operators_of_exported_graphs_are_known_by_name():
    x = draw(4, 6)
    for relu, add in ((F.relu, torch.add), (torch.ops.aten.relu.default, torch.ops.aten.add.Tensor)):
        model = randomise(Sum(relu, add), 1)
        graph = fx.symbolic_trace(model)
        ShapeProp(graph).propagate(x)
        layers = tuple(Layer(name, "linear", name, f"{name}.weight", f"{name}.bias") for name in ("one", "two", "fc"))
        groups = Groups({}, layers, graph.graph, x)
        assert [layer.name for layer in sites.activated(model, groups)[0]] == ["one", "two"]
        solved, left = sites.solvable(model, groups)
        assert [(s.name, s.relu, s.other is not None) for s in solved] == [
            ("one", True, False), ("two", True, True), ("fc", False, False)]  # fmt: skip
        assert left == {}


# --- before it takes minutes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"matcher": "weight", "correction": "repair"}, "correction 'repair' looks at images"),
        ({"images": draw(8, 6), "correction": "bn_reset"}, "needs BatchNorm, Extra has none"),
        ({"images": draw(8, 6), "shares": [0.5, 0.2]}, "sum to 1"),
        ({"images": draw(8, 6), "names": ["a"]}, "2 networks and 1 names; accepted: one name a network"),
    ],
)
def test_fuse_says_what_is_missing_before_it_matches(given, told, monkeypatch):
    monkeypatch.setattr(symmetry, "trace", lambda *_: pytest.fail("it traces"))
    with pytest.raises(InputError, match=told) as error:
        fusion.fuse([Extra().eval(), Extra().eval()], example=draw(2, 6), **given, **QUIET)
    assert "\n" not in str(error.value)


# --- LayerNorm and GroupNorm ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[("mlp", "layer"), ("vgg11", "group")], ids=lambda kind: kind[1])
def normed(request):
    """A random network, the same one with its units in other places, how they were moved, and images."""
    name, norm = request.param
    a = randomise(models.build(name, width=0.125, norm=norm), 1)
    for module in a.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
            module.bias.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    x = draw(64, *models.ARCHITECTURES[name].shape)
    groups = symmetry.trace(a, x[:2])
    truth = groups.random(torch.Generator().manual_seed(4))
    b = models.load_state(copy.deepcopy(a), symmetry.act(a.state_dict(), groups, truth))
    return a, b, groups, truth, x


# Not behind the ReLU, where units that are dead on all images cannot be told apart.
TAPS = ["activation(tap=pre_norm)", "activation(tap=post_norm)"]


@pytest.mark.parametrize("matcher", [*TAPS, "weight", "sinkhorn", "graph"])
def test_matchers_find_units_behind_layer_norm_and_group_norm(normed, matcher):
    a, b, groups, truth, x = normed
    found = matching.match([a, b], groups, matcher, images=x, progress=False)[1]
    assert all(torch.equal(found[name], perm) for name, perm in symmetry.inverse(truth).items())


@pytest.mark.parametrize("kind", sorted(set(CORRECTIONS) - {"bn_reset"}))
def test_corrections_leave_a_network_with_layer_norm_or_group_norm_that_is_fused_with_itself(normed, kind):
    """Statistics that are set are, as in BatchNorm, variances over n − 1: with 64 images wrong by a hundredth."""
    a, b, groups, truth, x = normed
    aligned = fusion.align([a, b], groups, [groups.identity(), symmetry.inverse(truth)])
    fused = fusion.correct(aligned, 0.5, kind, images=x, **QUIET)
    least = 0.03 if kind in ("repair", "rescale") else 1e-3
    torch.testing.assert_close(outputs(a, fused.state, x), outputs(a, a.state_dict(), x), atol=least, rtol=1e-3)


def test_layer_norm_and_group_norm_are_told_that_a_reset_needs_batch_norm(normed):
    a, _, groups, _, _ = normed
    with pytest.raises(InputError, match="needs BatchNorm"):
        fusion.check_network("bn_reset", a)
    for matcher in ("graph_sm", "graph_reference"):
        with pytest.raises(InputError, match="plain chain"):
            matching.check_network(matcher, a, groups)


@pytest.mark.parametrize("kind", ["repair", "rescale"])
def test_repair_sets_the_statistics_in_front_of_layer_norm_and_group_norm(normed, kind):
    """Measured on what the layers in front of the norms put out, in a network of two that differ."""
    a, _, groups, _, x = normed
    b = randomise(copy.deepcopy(a), 5)
    fused = correct(a, a.state_dict(), b.state_dict(), 0.5, kind, groups=groups, batches=[x], **QUIET)
    # the network that comes out is measured as a parent is
    after = moments(a, fused, fused, groups, [x], **QUIET)
    goals = moments(a, a.state_dict(), b.state_dict(), groups, [x], **QUIET)
    assert len(after.nodes) == len(groups.layers)
    for layer in sites.activated(a, groups)[0]:
        mean, std = goals.goals(layer.node, (0.5, 0.5))
        found_mean, found_std = after.goals(layer.node, (0.5, 0.5))
        torch.testing.assert_close(found_std, std, rtol=0.02, atol=1e-4)
        if kind == "repair":
            torch.testing.assert_close(found_mean, mean, rtol=0.02, atol=1e-3)
