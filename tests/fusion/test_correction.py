"""Corrections and what they stand on (least squares, selection, merging): statistics by hand, exact
folds, planted solutions."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import fusion, models, symmetry
from lib.checks import InputError
from lib.fusion import CORRECTIONS, affine, least_squares, rows, selection, sites
from lib.symmetry import walker
from tests.aligned import averaged, correct, moments, same

IMAGES = (3, 8, 8)
QUIET = {"progress": False}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


class Residual(nn.Module):
    """Identity and projection shortcuts, a sum in place, and a BatchNorm that stands alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.bn4 = nn.Conv2d(6, 8, 1, stride=2), nn.BatchNorm2d(8)
        self.last, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        x = self.relu(out)
        x = self.bn3(self.conv3(x)) + self.bn4(self.down(x))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


def chain(*, norm=False, bias=True, mode="zeros"):
    layers = []
    for inputs, outputs, stride in ((3, 6, 1), (6, 8, 2)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias, padding_mode=mode))
        layers += [nn.BatchNorm2d(outputs)] * norm + [nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10, bias=bias)]
    layers += [nn.BatchNorm1d(10)] * norm + [nn.ReLU(), nn.Linear(10, 4, bias=bias)]
    return nn.Sequential(*layers)


NETWORKS = {
    "plain": chain,
    "no-bias": lambda: chain(bias=False, mode="replicate"),
    "norm": lambda: chain(norm=True),
    "norm-no-bias": lambda: chain(norm=True, bias=False),
    "residual": Residual,
    "resnet20": lambda: models.build("resnet20", width=0.25, norm="batch"),
}


def randomise(model, seed):
    """Every weight and statistic drawn anew, as a trained network would have them."""
    g = generator(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=g)
            module.bias.data.normal_(0, 0.3, generator=g)
            module.running_mean.normal_(0, 0.3, generator=g)
            module.running_var.uniform_(0.5, 1.5, generator=g)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            fan = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan) ** 0.5, generator=g)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=g)
    return model.eval()


def pair(name, images=64):
    """Two random networks of a kind, their groups and batches of unequal size."""
    a, b = (randomise(NETWORKS[name](), seed) for seed in (1, 2))
    shape = (3, 16, 16) if name == "resnet20" else IMAGES
    groups = symmetry.trace(a, torch.zeros(2, *shape))
    x = draw(images, *shape)
    return a, b, groups, [(x[: images // 4 * 3], None), (x[images // 4 * 3 :], None)], x


def load(model, state):
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    return twin.eval()


@torch.no_grad()
def outputs(model, state, x):
    return load(model, state)(x)


# --- interpolation and input ------------------------------------------------------------------------------------------


def test_interpolate_mixes_floats_and_statistics_and_keeps_integers_of_a():
    a = {
        "w": torch.tensor([1.0, 2.0]),
        "bn.running_var": torch.tensor([4.0]),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    b = {
        "w": torch.tensor([3.0, 0.1]),
        "bn.running_var": torch.tensor([8.0]),
        "bn.num_batches_tracked": torch.tensor(9),
    }
    mixed = averaged(a, b, 0.25)
    assert mixed["w"].tolist() == pytest.approx([1.5, 1.525])
    assert mixed["bn.running_var"].item() == 5 and mixed["bn.num_batches_tracked"].item() == 7
    assert torch.equal(averaged(a, b, 0)["w"], a["w"])
    assert torch.equal(averaged(a, b, 1)["w"], b["w"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bn_rest", {}, "unknown correction 'bn_rest'; accepted: none, bn_reset"),
        ("least_squares", {"ridges": 1}, "takes no option ridges; accepted: ridge, rounds"),
        ("none", {"ridge": 1}, "takes no option ridge; accepted: none"),
    ],
)
def test_check_options_refuses_in_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        fusion.read_correction(name, options)
    assert "\n" not in str(error.value)


def test_correct_refuses_alpha_missing_images_and_a_network_without_norm():
    a, b, groups, batches, _ = pair("plain")
    states = (a.state_dict(), b.state_dict())
    with pytest.raises(InputError, match="alpha 1.5"):
        correct(a, *states, 1.5, "none", groups=groups)
    with pytest.raises(InputError, match="looks at images"):
        correct(a, *states, 0.5, "repair", groups=groups)
    with pytest.raises(InputError, match="needs BatchNorm, Sequential has none; accepted: none, repair"):
        correct(a, *states, 0.5, "bn_reset", groups=groups, batches=batches, **QUIET)
    for name in set(CORRECTIONS) - {"none", "bn_reset"}:
        with pytest.raises(InputError, match="without images|correct_images"):
            correct(a, *states, 0.5, name, groups=groups, batches=[], **QUIET)
    for option in ({"ridge": -1.0}, {"rounds": -1}, {"rounds": 1.5}, {"memory": torch.inf}):
        with pytest.raises(InputError, match="accepted"):
            correct(a, *states, 0.5, "least_squares", groups=groups, batches=batches, **option, **QUIET)


def test_networks_that_differ_are_not_aligned_and_the_line_names_which_and_what():
    a, _, groups, _, _ = pair("norm")
    wider = nn.Sequential(nn.Conv2d(3, 7, 3), *list(a)[1:])
    shallow = nn.Sequential(*list(a)[:-1])
    for other, told in (
        (wider, r"has padding \(0, 0\), network 1 \(1, 1\)"),
        (shallow, "is missing"),
    ):
        with pytest.raises(InputError, match=f"network 2 differs: module '[0-9]+' {told}"):
            fusion.align([a, other], groups, [groups.identity()] * 2)
    with pytest.raises(InputError, match="2 networks and 1 maps"):
        fusion.align([a, a], groups, [groups.identity()])
    with pytest.raises(InputError, match="takes a list of networks"):
        fusion.align(a, groups, [groups.identity()])


def test_only_aligned_networks_are_corrected_measured_and_told_apart_from_states():
    a, b, _, batches, _ = pair("norm")
    for call in (
        lambda given: fusion.correct(given, 0.5, "none"),
        lambda given: fusion.curve(given, [0.5], test=batches),
        lambda given: fusion.moments(given, batches),
    ):
        for given in ([a, b], a.state_dict(), (a.state_dict(), b.state_dict())):
            with pytest.raises(InputError, match=r"takes networks in one order, not \w+; accepted: align"):
                call(given)


def test_interpolate_refuses_what_would_broadcast():
    for b in ({"w": torch.ones(1)}, {}):
        with pytest.raises(InputError, match=r"w \(3,\) has no counterpart in a network"):
            averaged({"w": torch.ones(3)}, b, 0.5)


@pytest.mark.parametrize("name", ["no-bias", "norm", "residual"])
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_every_correction_keeps_architecture_and_parents(name, kind):
    if kind == "bn_reset" and name == "no-bias":
        pytest.skip("no BatchNorm")
    a, b, groups, batches, x = pair(name)
    states = [copy.deepcopy(m.state_dict()) for m in (a, b)]
    template = NETWORKS[name]()
    before = copy.deepcopy(template.state_dict())
    found = correct(template, *states, 0.4, kind, groups=groups, batches=iter_twice(batches), **QUIET)
    assert outputs(template, found, x).isfinite().all()
    assert all(torch.equal(template.state_dict()[key], before[key]) for key in before)
    for model, state in zip((a, b), states, strict=True):
        assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)
    if CORRECTIONS[kind].images:
        assert found.info["images"] == len(x)


class iter_twice(list):
    """Batches that, like a loader, are no sequence."""

    __getitem__ = None


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bn_reset", "repair", "least_squares"])
def test_networks_aligned_in_inference_mode_are_corrected(kind):
    """And the aligned states, which the corrections work on without copies, stay as they are."""
    a, b, groups, batches, x = pair("norm")
    with torch.inference_mode():
        networks = fusion.align([a, b], groups, [groups.identity()] * 2)
    before = copy.deepcopy(networks.states)
    found = fusion.correct(networks, 0.5, kind, images=batches, **QUIET)
    expected = correct(a, a.state_dict(), b.state_dict(), 0.5, kind, groups=groups, batches=batches, **QUIET)
    torch.testing.assert_close(outputs(a, found.state, x), outputs(a, expected, x), rtol=1e-3, atol=1e-3)
    assert all(map(same, networks.states, before))


def test_bn_reset_is_the_image_weighted_mean_of_batch_statistics():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    a, b = (randomise(copy.deepcopy(model), seed) for seed in (1, 2))
    batches = [draw(6, 3, seed=3), draw(2, 3, seed=4), draw(1, 3, seed=5)]  # the last has no variance
    groups = symmetry.trace(model, batches[0])
    found = correct(model, a.state_dict(), b.state_dict(), 0.5, "bn_reset", groups=groups, batches=batches, **QUIET)
    weight, bias = ((getattr(a[0], n) + getattr(b[0], n)) / 2 for n in ("weight", "bias"))
    values = [F.linear(batch, weight, bias) for batch in batches[:2]]
    mean = (6 * values[0].mean(0) + 2 * values[1].mean(0)) / 8
    variance = (6 * values[0].var(0) + 2 * values[1].var(0)) / 8
    torch.testing.assert_close(found["1.running_mean"], mean)
    torch.testing.assert_close(found["1.running_var"], variance)
    torch.testing.assert_close(found["1.weight"], (a[1].weight + b[1].weight).detach() / 2)
    assert found.info == {"images": 8}


def test_sites_are_layers_before_a_nonlinearity():
    names = {}
    for name in ("simplenet", "vgg11", "resnet20"):
        model = models.build(name, norm="batch" if name == "resnet20" else None)
        names[name] = [site.name for site in sites.activated(model, symmetry.trace(model, models.example(name)))[0]]
    assert names["simplenet"] == ["conv1", "conv2"]  # fc1 feeds fc2 directly
    assert len(names["vgg11"]) == 8 and "classifier" not in names["vgg11"]
    assert "layer1.0.conv2" in names["resnet20"] and "fc" not in names["resnet20"]


class Shared(nn.Module):
    """A layer that is used twice, or a BatchNorm that serves two layers."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.fc, self.norm = nn.Linear(20, 16), nn.Linear(16, 5), nn.BatchNorm1d(16) if norm else None
        self.one = nn.Linear(16, 16)
        self.other = nn.Linear(16, 16) if norm else None

    def forward(self, x):
        x = F.relu(self.first(x))
        if self.norm is None:
            return self.fc(F.relu(self.one(F.relu(self.one(x)))))
        return self.fc(F.relu(self.norm(self.other(F.relu(self.norm(self.one(x)))))))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", ["repair", "rescale", "closed_form"])
def test_a_layer_used_more_than_once_keeps_its_interpolated_weights(kind, norm):
    a, b = (randomise(Shared(norm), seed) for seed in (1, 2))
    x = draw(500, 20)
    groups = symmetry.trace(a, x[:2])
    states = a.state_dict(), b.state_dict()
    found = correct(a, *states, 0.5, kind, groups=groups, batches=[x], **QUIET)
    mean = averaged(*states, 0.5)
    changed = {name.split(".")[0] for name in mean if not torch.equal(found[name], mean[name])}
    assert "first" in changed and not changed & {"one", "other"}
    assert found.info["left"] == dict.fromkeys(("one", "other") if norm else ("one",), "used more than once")
    assert [site.name for site in sites.activated(a, groups)[0]] == ["first"]
    if not norm:
        alone = correct(a, states[0], states[0], 0.5, kind, groups=groups, batches=[x], **QUIET)
        torch.testing.assert_close(outputs(a, alone, x), a(x).detach(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", ["repair", "rescale", "closed_form", "least_squares"])
@pytest.mark.parametrize("norm", [True, False])
def test_a_unit_that_never_varies_keeps_its_value(kind, norm):
    """Weights of 0, as weight decay or pruning leave them."""
    a = nn.Sequential(nn.Linear(20, 32), *[nn.BatchNorm1d(32)] * norm, nn.ReLU(), nn.Linear(32, 5))
    x = draw(1000, 20)
    fusion.reset(randomise(a, 1), [x])
    with torch.no_grad():
        a[int(norm)].weight[:8], a[int(norm)].bias[:8] = 0, 1
        expected = a(x)
    state, groups = a.state_dict(), symmetry.trace(a, x[:2])
    found = correct(a, state, state, 0.5, kind, groups=groups, batches=[x], **QUIET)
    torch.testing.assert_close(outputs(a, found, x), expected, rtol=0.01, atol=0.01)


class InPlace(nn.Module):
    """Normalises its input where it lies."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(20, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.two(F.relu(self.norm(self.one(x.sub_(0.3).div_(0.5)))))


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_a_network_that_changes_its_input_in_place_is_corrected_like_one_that_does_not(kind):
    a, b = (randomise(InPlace(), seed) for seed in (1, 2))
    x = torch.rand(500, 20, generator=generator())
    groups, states, batches = symmetry.trace(a, x[:2].clone()), [m.state_dict() for m in (a, b)], [x.clone()]
    found = correct(a, *states, 0.5, kind, groups=groups, batches=batches, **QUIET)
    assert torch.equal(batches[0], x)
    model = nn.Sequential(*(getattr(a, name) for name in ("one", "norm")), nn.ReLU(), a.two)
    places = {"one": "0", "norm": "1", "two": "3"}
    renamed = [{f"{places[n.split('.')[0]]}.{n.split('.')[1]}": t for n, t in state.items()} for state in states]
    x = (x - 0.3) / 0.5
    plain = correct(model, *renamed, 0.5, kind, groups=symmetry.trace(model, x[:2]), batches=[x], **QUIET)
    for name, tensor in zip(found, found.values(), strict=True):
        where, _, rest = name.partition(".")
        torch.testing.assert_close(tensor, plain[f"{places[where]}.{rest}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_folding_a_tracked_network_leaves_its_outputs(name, shift):
    a, b, groups, batches, x = pair(name)
    goals = moments(a, a.state_dict(), b.state_dict(), groups, batches, progress=False)
    fused = load(a, averaged(a.state_dict(), b.state_dict(), 0.5))
    model = fusion.tracked(fused, groups, goals, (0.5, 0.5), shift=shift)
    fusion.reset(model, [images for images, _ in batches])
    folded = fusion.fold(model)
    assert not any(isinstance(m, fusion.Tracked) for m in folded.modules())
    found = correct(
        a,
        a.state_dict(),
        b.state_dict(),
        0.5,
        "repair" if shift else "rescale",
        groups=groups,
        batches=batches,
        **QUIET,
    )
    with torch.no_grad():
        expected = model(x)
        assert (expected - fused(x)).abs().max() > 0.1  # it does something
        torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs(a, found, x), expected, rtol=1e-4, atol=1e-4)


def preactivations(model, x):
    """Values (units, observations) before each ReLU of a chain."""
    found = []
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.ReLU):
                found.append(x.transpose(0, 1).flatten(1).clone())
            x = module(x)
    return found


@pytest.mark.parametrize("name", ["plain", "norm", "no-bias"])
@pytest.mark.parametrize("kind", ["repair", "rescale"])
def test_repair_and_rescale_reach_their_goals(name, kind):
    a, b, groups, _, x = pair(name)
    states = a.state_dict(), b.state_dict()
    found = correct(a, *states, 0.3, kind, groups=groups, batches=[x], **QUIET)
    rows = zip(*(preactivations(m, x) for m in (a, b, load(a, found))), strict=True)
    for z_a, z_b, z in rows:
        torch.testing.assert_close(z.std(1), 0.7 * z_a.std(1) + 0.3 * z_b.std(1), rtol=0.02, atol=1e-3)
        if kind == "repair" and name != "no-bias":
            torch.testing.assert_close(z.mean(1), 0.7 * z_a.mean(1) + 0.3 * z_b.mean(1), rtol=0.01, atol=0.01)
    fused = load(a, averaged(*states, 0.3))
    first = [preactivations(m, x)[0] for m in (fused, load(a, found))]
    if kind == "rescale" and name != "norm":  # a multiple of what was there
        ratio = (first[0] * first[1]).sum(1) / first[0].square().sum(1)
        torch.testing.assert_close(first[1], first[0] * ratio[:, None], rtol=1e-4, atol=1e-4)


def test_moments_and_closed_form_are_exact_on_the_first_layer():
    a, b, groups, batches, x = pair("plain")
    states = a.state_dict(), b.state_dict()
    stats = moments(a, *states, groups, batches, progress=False)
    z_a, z_b = (preactivations(m, x)[0].double() for m in (a, b))
    for alpha in (0.0, 0.35, 1.0):
        mixed = (1 - alpha) * z_a + alpha * z_b
        torch.testing.assert_close(
            stats.variance("_0", (1 - alpha, alpha)), mixed.var(1, correction=0), rtol=1e-5, atol=1e-6
        )
        found = correct(a, *states, alpha, "closed_form", groups=groups, batches=iter(()), moments=stats, **QUIET)
        z = preactivations(load(a, found), x)[0].double()
        mean, std = stats.goals("_0", (1 - alpha, alpha))
        torch.testing.assert_close(z.mean(1), mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(z.std(1, correction=0), std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "no-bias", "norm", "residual", "resnet20"])
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_end_points_keep_the_parents(name, kind):
    if kind == "bn_reset" and "norm" not in name and "res" not in name:
        pytest.skip("no BatchNorm")
    a, b, groups, _, x = pair(name, images=128)
    if name not in ("plain", "no-bias"):  # statistics of these very images, as a trained network has them
        for model in (a, b):
            fusion.reset(model, [x])
    for alpha, parent in ((0, a), (1, b)):
        found = correct(a, a.state_dict(), b.state_dict(), alpha, kind, groups=groups, batches=[x], **QUIET)
        with torch.no_grad():
            expected = parent(x)
        loose = {"repair", "rescale", "closed_form"}
        tolerance = 2e-2 if kind in loose else 2e-4
        error = (outputs(a, found, x) - expected).norm() / expected.norm()
        assert error < tolerance, (alpha, float(error))


# --- least squares ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def rescaled(model):
    """The same function from other weights: each hidden unit multiplied, its readers divided (ReLU allows it)."""
    twin = copy.deepcopy(model)
    first, middle, norm, last = twin[0], twin[2], twin[3], twin[-1]
    one, two = (0.2 + 4 * torch.rand(6, generator=generator(seed)) for seed in (5, 6))
    first.weight *= one.view(-1, 1, 1, 1)
    first.bias *= one
    inputs = torch.arange(6).view(middle.groups, 1, -1).expand(-1, 6 // middle.groups, -1).reshape(6, -1)
    middle.weight /= one[inputs][:, :, None, None]
    scaling = norm if isinstance(norm, nn.BatchNorm2d) else middle
    scaling.weight *= two.view(-1, *(1,) * (scaling.weight.dim() - 1))
    if scaling.bias is not None:
        scaling.bias *= two
    last.weight /= two.repeat_interleave(4)
    return twin


CONVOLUTIONS = {
    "plain": {},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
    "same": {"padding": "same", "kernel_size": (3, 1)},
    "valid": {"padding": "valid"},
    "strided": {"stride": (2, 3), "padding": (2, 1), "padding_mode": "circular"},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 3, "padding": 1},
    "depthwise": {"groups": 6, "padding": 1},
    "no-bias": {"bias": False},
}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_least_squares_recovers_a_planted_network(kind, norm):
    """Parents of one function but other scales: their average computes something else, the solution does not."""
    norms = [nn.BatchNorm2d(6)] if norm else []
    middle = nn.Conv2d(6, 6, **({"kernel_size": 3} | CONVOLUTIONS[kind]))
    end = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), middle, *norms, *end)
    a = randomise(model, 1)
    b = rescaled(a)
    x = draw(60, *IMAGES)
    groups = symmetry.trace(a, x)
    states = a.state_dict(), b.state_dict()
    with torch.no_grad():
        expected = a(x)
    torch.testing.assert_close(outputs(a, b.state_dict(), x), expected, rtol=1e-4, atol=1e-4)
    mean = outputs(a, averaged(*states, 0.5), x)
    assert (mean - expected).norm() > 0.05 * expected.norm()
    found = correct(a, *states, 0.5, "least_squares", groups=groups, batches=[x], ridge=1e-9, **QUIET)
    torch.testing.assert_close(outputs(a, found, x), expected, rtol=1e-3, atol=1e-3)
    assert found.info["left"] == {} and set(found.info["layers"]) == {layer.name for layer in groups.layers}
    # On images it has not seen
    with torch.no_grad():
        torch.testing.assert_close(
            outputs(a, found, draw(9, *IMAGES, seed=7)), a(draw(9, *IMAGES, seed=7)), rtol=0.05, atol=0.05
        )


def test_least_squares_takes_one_dimensional_and_token_layers_and_leaves_what_it_cannot_solve():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6)
            self.tokens, self.twice, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = F.relu(self.norm(self.conv(x))).transpose(1, 2)
            x = F.relu(self.tokens(x))
            x = F.relu(self.twice(F.relu(self.twice(x))))
            return self.out(x.mean(1))

    a, b = (randomise(Sequence(), seed) for seed in (1, 2))
    x = draw(200, 3, 7)
    groups = symmetry.trace(a, x)
    found = correct(a, a.state_dict(), b.state_dict(), 0.5, "least_squares", groups=groups, batches=[x], **QUIET)
    assert list(found.info["layers"]) == ["conv", "tokens", "out"]
    assert found.info["left"] == {"twice": "used more than once"}
    torch.testing.assert_close(found["twice.weight"], ((a.twice.weight + b.twice.weight) / 2).detach())
    goal = (a(x) + b(x)).detach() / 2
    mean = outputs(a, averaged(a.state_dict(), b.state_dict(), 0.5), x)
    assert (outputs(a, found, x) - goal).norm() < 0.7 * (mean - goal).norm()


@pytest.mark.parametrize("alpha", [0.25, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_least_squares_comes_closer_to_the_parents_than_any_other_correction(name, alpha):
    a, b, groups, batches, x = pair(name)
    states = a.state_dict(), b.state_dict()
    with torch.no_grad():
        goal = (1 - alpha) * a(x) + alpha * b(x)
    error = {}
    for kind in set(CORRECTIONS) - ({"bn_reset"} if name in ("plain", "no-bias") else set()):
        found = correct(a, *states, alpha, kind, groups=groups, batches=batches, **QUIET)
        error[kind] = float((outputs(a, found, x) - goal).norm())
    assert error["least_squares"] < 0.9 * min(error[kind] for kind in error if kind != "least_squares"), error


def first_layer_losses(pool, options):
    """Mean squared error of the first hidden layer, behind ReLU and pool, against the mean of two parents."""
    window = [nn.MaxPool2d((3, 2))] * pool
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *window, nn.Conv2d(6, 4, 1), nn.Flatten(), nn.LazyLinear(3))
    x = draw(100, *IMAGES)
    model(x)
    a, b = (randomise(copy.deepcopy(model), seed) for seed in (1, 2))
    groups = symmetry.trace(a, x)
    states = a.state_dict(), b.state_dict()
    stop = 2 + pool
    with torch.no_grad():
        goal = (a[:stop](x) + b[:stop](x)) / 2
        runs = [averaged(*states, 0.5)]
        for option in options:
            option = {"select": False, "ridge": 1e-6} | option
            runs.append(correct(a, *states, 0.5, "least_squares", groups=groups, batches=[x], **option, **QUIET))
        return [float((load(a, run)[:stop](x) - goal).square().mean()) for run in runs]


def test_each_round_through_the_relu_lowers_the_loss():
    averaged, *losses = first_layer_losses(False, [{"through_relu": False}, *({"rounds": n} for n in (0, 1, 2, 6))])
    # All networks share the inputs of the first layer: there the linear solution is the average.
    assert losses[0] == pytest.approx(averaged, rel=1e-3) and losses[1] == pytest.approx(averaged, rel=1e-3)
    assert losses[1] > losses[2] > losses[3] > losses[4]


def test_rounds_behind_a_pool_lower_the_loss_behind_it():
    averaged, *losses = first_layer_losses(True, [{"rounds": n} for n in (0, 2, 8)])
    assert losses[0] == pytest.approx(averaged, rel=1e-3)
    assert losses[1] < 0.8 * losses[0] and losses[2] < losses[1]


@pytest.mark.parametrize(("alpha", "name"), [(0.5, "norm"), (0.25, "norm"), (0.5, "resnet20")])
def test_units_are_chosen_in_the_parents_shares(alpha, name):
    a, b, groups, batches, _ = pair(name)
    states = a.state_dict(), b.state_dict()
    units = correct(a, *states, alpha, "least_squares", groups=groups, batches=batches, **QUIET).info["units"]
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert list(units) == (inner if name == "resnet20" else ["0", "3", "8"])  # not where a residual sum ties units
    assert any(counts["single"][0] for counts in units.values())
    for counts in units.values():
        assert abs(counts["single"][1] - alpha * sum(counts["single"])) <= 0.5
    off = correct(a, *states, alpha, "least_squares", groups=groups, batches=batches, select=False, **QUIET)
    assert off.info["units"] == {}


def fitted(n, seed, noise=0.1):
    """Covariance (5n, 5n) of units of A and of B and of what a network fitted to them has, and readers (m, 2n)."""
    samples = draw(400, 2 * n, seed=seed).double() @ draw(2 * n, 2 * n, seed=seed + 1).double()
    a, b = samples.split(n, dim=1)
    made = torch.cat([a, b, (a + b) / 2], dim=1)
    columns = torch.cat([samples, made + noise * draw(*made.shape, seed=seed + 2)], dim=1)
    columns = columns - columns.mean(0)
    return columns, columns.mT @ columns / len(columns), draw(3 * n, 2 * n, seed=seed + 3).double()


def test_gains_are_those_of_a_regression_with_the_unit_exchanged():
    n = 5
    columns, covariance, readers = fitted(n, 0)
    targets = covariance[:, : 2 * n] @ readers.mT
    chosen, others = torch.arange(4 * n, 5 * n), torch.arange(2 * n, 3 * n)

    def explained(places):
        made, wanted = columns[:, places], columns[:, : 2 * n] @ readers.mT
        predicted = made @ torch.linalg.lstsq(made, wanted).solution
        return predicted.square().sum() / len(columns)

    gains = selection._gains(covariance, targets, chosen, others, 0.0)
    for i in range(n):
        exchanged = chosen.clone()
        exchanged[i] = others[i]
        assert float(gains[i]) == pytest.approx(float(explained(exchanged) - explained(chosen)), rel=1e-6, abs=1e-9)


def test_choose_finds_the_units_that_are_read():
    """The next layer reads units 0 … 3 of A and 4 … 7 of B, and units 8 … 11 of both alike."""
    _, covariance, _ = fitted(12, 3, noise=0.01)
    readers = torch.zeros(12, 24, dtype=torch.float64)
    for i in range(12):
        readers[i, i], readers[i, 12 + i] = float(i < 4 or i > 7), float(i > 3)
    choice, before, after = selection.choose(covariance, readers, (0.5, 0.5))
    assert choice.tolist() == [1] * 4 + [2] * 4 + [selection.MEAN] * 4
    assert before > 0.1 and after < 0.01


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5, 0.8])
def test_choose_never_explains_less_and_keeps_the_shares(alpha):
    for seed in range(0, 40, 4):
        _, covariance, readers = fitted(9, seed)
        choice, before, after = selection.choose(covariance, readers, (1 - alpha, alpha))
        single = int((choice != selection.MEAN).sum())
        assert -1e-6 <= after <= before <= 1
        assert int((choice == 2).sum()) == round(alpha * single)


@pytest.mark.parametrize("name", ["norm", "residual"])
def test_least_squares_result_does_not_depend_on_memory_or_batches(name):
    a, b, groups, _, x = pair(name, images=250)
    states = a.state_dict(), b.state_dict()
    runs = [
        correct(a, *states, 0.5, "least_squares", groups=groups, batches=batches, memory=memory, **QUIET)
        for batches, memory in (([x], 2**31), (x.split(33), 0), (x.split(100), 2**20))
    ]
    for run in runs[1:]:
        assert all(torch.equal(run[key], runs[0][key]) for key in runs[0])


def test_least_squares_keeps_no_more_activations_than_memory_allows(monkeypatch):

    a, b, groups, _, x = pair("norm", images=250)
    kept = []
    move = walker.Lockstep.move

    def spy(self, index):
        move(self, index)
        kept.append((self.place, sum(map(walker._bytes, self.kept))))

    monkeypatch.setattr(walker.Lockstep, "move", spy)
    for memory in (1_000_000, 2**31):
        kept.clear()
        correct(
            a,
            a.state_dict(),
            b.state_dict(),
            0.5,
            "least_squares",
            groups=groups,
            batches=[x],
            memory=memory,
            **QUIET,
        )
        assert all(size <= memory for place, size in kept if place > 1)
        assert len({place for place, _ in kept}) > 1  # it moved on where it could


def test_rows_in_parts_give_the_same_solution(monkeypatch):
    a, b, groups, _, x = pair("plain")
    states = a.state_dict(), b.state_dict()
    whole = correct(a, *states, 0.5, "least_squares", groups=groups, batches=[x], **QUIET)
    monkeypatch.setattr(rows, "BLOCK", 10_000)
    monkeypatch.setattr(least_squares, "CHUNK", 7)
    parts = correct(a, *states, 0.5, "least_squares", groups=groups, batches=[x], **QUIET)
    torch.testing.assert_close(outputs(a, parts, x), outputs(a, whole, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["norm", "norm-no-bias", "residual"])
def test_resetting_batchnorm_after_least_squares_changes_nothing(name):
    a, b, groups, _, x = pair(name, images=256)
    found = correct(a, a.state_dict(), b.state_dict(), 0.5, "least_squares", groups=groups, batches=[x], **QUIET)
    model = load(a, found)
    with torch.no_grad():
        before = model(x)
        fusion.reset(model, [x])
        assert (model(x) - before).norm() < 5e-3 * before.norm()


def test_least_squares_survives_dead_units_and_no_ridge():
    a, b, groups, _, x = pair("norm")
    for model in (a, b):
        model[1].weight.data[:3] = 0  # these units are constant
        model[1].bias.data[:3] = -1
    found = correct(
        a,
        a.state_dict(),
        b.state_dict(),
        0.5,
        "least_squares",
        groups=groups,
        batches=[x[:3]],
        ridge=0.0,
        **QUIET,
    )
    assert all(tensor.isfinite().all() for tensor in found.values())


# --- merging linear layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_merge_linear_keeps_the_function(biases):
    first, second = biases
    model = nn.Sequential(
        nn.Linear(5, 7, bias=first),
        nn.Identity(),
        nn.Linear(7, 6, bias=second),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 2),
    )
    merged = models.merge_linear(model)
    x = draw(9, 5)
    torch.testing.assert_close(merged(x), model(x))
    assert [type(m).__name__ for m in merged] == [
        "Identity",
        "Identity",
        "Identity",
        "Linear",
        "ReLU",
        "Linear",
    ]
    assert merged[3].weight.shape == (6, 5) and len(model[0].weight) == 7


def test_merge_linear_on_simplenet_leaves_two_groups_and_the_function():
    model = models.build("simplenet", seed=0)
    merged = models.merge_linear(model)
    x = models.example("simplenet")
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)
    assert list(symmetry.trace(model, x)) == ["conv1", "conv2", "fc1"]
    assert list(symmetry.trace(merged, x)) == ["conv1", "conv2"]
    assert merged.fc2.weight.shape == (10, 3136)


def test_merge_linear_leaves_networks_without_such_layers_alone():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x)
            return self.b(x) + self.c(x)

    for model, x in ((models.build("mlp", width=0.1), models.example("mlp")), (Branches(), draw(3, 4))):
        merged = models.merge_linear(model)
        assert merged.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(merged.state_dict()[key], value) for key, value in model.state_dict().items())
        torch.testing.assert_close(merged(x), model(x))


def test_least_squares_refuses_activations_that_overflow():
    model = models.build("mlp", width=0.02, seed=0)
    state = {name: tensor * (1e30 if tensor.dim() > 1 else 1) for name, tensor in model.state_dict().items()}
    groups = symmetry.trace(model, models.example("mlp"))
    with pytest.raises(InputError, match="not finite"):
        correct(model, state, state, 0.5, "least_squares", groups=groups, batches=[models.example("mlp")], **QUIET)


@pytest.mark.parametrize("ridge", [torch.nan, torch.inf, 1e308])
def test_a_ridge_that_is_no_number_or_too_large_is_refused_and_does_not_hang(ridge):
    a, b, groups, batches, _ = pair("plain")
    states = a.state_dict(), b.state_dict()
    with pytest.raises(InputError, match="a finite number|finite ridge"):
        correct(a, *states, 0.5, "least_squares", groups=groups, batches=batches, ridge=ridge, **QUIET)


def test_choose_takes_units_that_never_fire():
    choice, before, after = selection.choose(
        torch.zeros(20, 20, dtype=torch.float64), torch.ones(3, 8).double(), (0.5, 0.5)
    )
    assert len(choice) == 4 and before == after


# --- rows, factors and units of least squares -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["norm", "residual"])
def test_rows_of_every_position_are_the_limit_of_a_sample(name):
    a, b, groups, _, x = pair(name, images=250)
    states = a.state_dict(), b.state_dict()
    given = {"groups": groups, "batches": [x], "select": False} | QUIET
    every, more, some, few = (
        outputs(a, correct(a, *states, 0.5, "least_squares", rows=rows, **given), x) for rows in (0, 10**6, 8000, 800)
    )
    assert torch.equal(every, more)
    assert 0 < (some - every).norm() < 0.1 * every.norm()
    assert (few - every).norm() > 1.5 * (some - every).norm()


@pytest.mark.parametrize(("total", "wanted"), [(10, 3), (1000, 999), (7, 7), (7, 100), (5, 0.2)])
def test_spread_draws_distinct_numbers_one_from_each_stretch(total, wanted):
    drawn = rows.spread(total, wanted, 0)
    count = max(1, min(total, round(wanted)))
    assert len(drawn) == count and bool((drawn.diff() > 0).all())
    edges = torch.arange(count + 1) * total // count
    assert bool(((edges[:-1] <= drawn) & (drawn < edges[1:])).all())
    assert torch.equal(drawn, rows.spread(total, wanted, 0))


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "pooled"])
def test_rows_are_what_the_layer_sees_and_gives_there(kind):
    layer = nn.Conv2d(6, 6, **({"kernel_size": 3} | CONVOLUTIONS.get(kind, {})))
    pool = (2, 3) if kind == "pooled" else None
    site = affine.Site("layer", None, randomise(layer, 1), None, None, None, True, pool)
    form, x = affine.Affine(site), draw(4, 6, 9, 8)
    places = [each.flatten() for each in torch.meshgrid(*map(torch.arange, layer(x)[:, 0].shape), indexing="ij")]
    padded = form.inputs(x)
    made = form.gather(padded, *places).double() @ form.of(layer, None)
    torch.testing.assert_close(made.float(), form.at(layer(x).detach(), *places), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [300, 20])
@pytest.mark.parametrize("columns", [2, 512])
def test_one_factor_solves_what_a_direct_solution_does(columns, count, bias, monkeypatch):
    """More rows than unknowns, and fewer: then it is the dual that is solved. A few columns at a time, and all."""
    monkeypatch.setattr(affine, "COLUMNS", columns)
    h, p, ridge = draw(1, count, 40).double(), 40, 1e-2
    if bias:
        h[:, :, -1] = 1
    weights = torch.ones(p, dtype=torch.float64)
    weights[p - bias :] = 0
    unit = h[0].square().sum(dim=0)[: p - bias].mean()
    system = h[0].mT @ h[0] + ridge * unit * torch.diag(weights)
    normal = affine.Normal(ridge, bias)
    for seed in (1, 2):  # two rounds with one factor
        missing, pull = draw(1, count, 3, seed=seed).double(), draw(1, p, 3, seed=seed + 2).double()
        for part in (slice(0, count // 3), slice(count // 3, count)):
            normal.add(h[:, part], missing[:, part])
        factor = normal.factor
        step, error = normal.step(pull)
        right = h[0].mT @ missing[0] - ridge * unit * weights[:, None] * pull[0]
        torch.testing.assert_close(step[0], torch.linalg.solve(system, right))
        torch.testing.assert_close(error, (missing - h @ step).square().sum(dim=1))
        assert normal.dual == (count < p) and (factor is None or factor is normal.factor)


def test_a_matrix_without_a_factor_gets_a_larger_ridge(monkeypatch):
    """And nothing else of it is changed by the trials that fail."""
    monkeypatch.setattr(affine, "COLUMNS", 4)
    basis = torch.linalg.qr(draw(1, 20, 20).double()).Q
    matrix = basis @ torch.linspace(-0.05, 2, 20).double().diag() @ basis.mT
    unit = matrix[0].diagonal().mean()
    normal = affine.Normal(1e-3, False)
    normal.gram, normal.left = matrix.clone(), torch.zeros(1, 3).double()
    normal.cross = cross = draw(1, 20, 3, seed=1).double()
    step, _ = normal.step(torch.zeros(1, 20, 3).double())
    torch.testing.assert_close(step, torch.linalg.solve(matrix + 0.1 * unit * torch.eye(20).double(), cross))


def test_cholesky_factors_in_place(monkeypatch):
    monkeypatch.setattr(affine, "COLUMNS", 4)
    h = draw(2, 10, 10).double()
    matrix = h @ h.mT + torch.eye(10)
    wanted, upper = torch.linalg.cholesky(matrix), matrix.triu(1)
    assert affine.factored(matrix)
    torch.testing.assert_close(matrix.tril(), wanted)
    assert torch.equal(matrix.triu(1), upper)
    for place in (1, 5, 9):
        matrix = h @ h.mT + torch.eye(10)
        matrix[1, place, place] = -1.0  # of one matrix alone
        upper = matrix.triu(1)
        assert not affine.factored(matrix) and torch.equal(matrix.triu(1), upper)


def halves_dead(model, first):
    """Half of the units of each hidden layer never fire, and nothing reads them."""
    with torch.no_grad():
        for place, following in ((0, 2), (2, 4)):
            n = len(model[place].weight)
            dead = slice(0, n // 2) if first else slice(n // 2, n)
            model[place].weight[dead], model[place].bias[dead] = 0, -1
            model[following].weight[:, dead] = 0
    return model


@pytest.mark.parametrize("units", ["side_by_side", "half"])
def test_units_of_parents_half_of_which_are_dead_are_recovered(units):
    """Side by side there is room for all that live, and the mean of the logits is linear in them; of half a parent
    there is room for its own."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    a, b = (halves_dead(randomise(copy.deepcopy(model), seed), seed == 1) for seed in (1, 2))
    x = draw(400, 6)
    groups = symmetry.trace(a, x[:2])
    states = a.state_dict(), b.state_dict()
    given = {"groups": groups, "batches": [x], "units": units, "ridge": 1e-9} | QUIET
    found = correct(a, *states, 0.5, "least_squares", **given)
    with torch.no_grad():
        goal = (a(x) + b(x)) / 2 if units == "side_by_side" else a(x)
    torch.testing.assert_close(outputs(a, found, x), goal, rtol=1e-3, atol=1e-3)
    single = [[8, 8], [6, 6]] if units == "side_by_side" else [[8, 0], [6, 0]]
    assert [counts["single"] for counts in found.info["units"].values()] == single
    if units == "half":
        assert not found["0.weight"][8:].any() and not found["4.weight"][:, 6:].any() and found["0.weight"][:8].any()
        other = correct(a, *states, 0.7, "least_squares", **given)  # the parent with the larger share
        torch.testing.assert_close(outputs(a, other, x), b(x).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "norm"])
def test_units_side_by_side_do_not_depend_on_how_the_parents_are_ordered(name):
    a, b, groups, batches, x = pair(name)
    given = {"groups": groups, "batches": batches, "units": "side_by_side"} | QUIET
    moved = symmetry.act(b.state_dict(), groups, groups.random(generator(3)))
    one, other = (
        outputs(a, correct(a, a.state_dict(), state, 0.5, "least_squares", **given), x)
        for state in (b.state_dict(), moved)
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    alone = correct(a, a.state_dict(), b.state_dict(), 1.0, "least_squares", ridge=1e-9, **given)
    with torch.no_grad():
        assert (outputs(a, alone, x) - b(x)).norm() < 0.05 * b(x).norm()


@pytest.mark.parametrize("units", ["side_by_side", "half"])
@pytest.mark.parametrize("name", ["residual", "resnet20"])
def test_units_tied_by_a_residual_sum_cannot_stand_side_by_side(name, units):
    a, b, groups, batches, _ = pair(name)
    with pytest.raises(InputError, match=f"units='{units}' is not accepted, .* accepted: units=matched") as error:
        correct(a, a.state_dict(), b.state_dict(), 0.5, "least_squares", groups=groups, batches=batches, units=units)
    assert "\n" not in str(error.value)


def test_forward_selection_takes_what_is_read_and_keeps_the_shares():
    """The first parent's next layer reads its units 0 to 2, the second's its unit 5, of which the first has a copy."""
    samples = draw(2000, 12).double()
    samples[:, 4] = samples[:, 6 + 5]
    covariance = samples.mT @ samples / len(samples)
    readers = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
    readers[0][range(3), range(3)], readers[1][0, 5] = 1, 1
    assert selection.forward(covariance, readers, (0.75, 0.25), 4).tolist() == [0, 1, 2, 11]
    assert selection.forward(covariance, readers, (1.0, 0.0), 4).tolist() == [0, 1, 2, 4]


def test_forward_selection_takes_at_each_step_the_unit_that_explains_most():
    mixed = draw(500, 8).double() @ draw(8, 8, seed=1).double()
    covariance, readers = mixed.mT @ mixed / len(mixed), [draw(5, 4, seed=seed).double() for seed in (2, 3)]
    targets = mixed @ torch.block_diag(*readers).mT
    chosen, quota = [], [2, 2]
    for _ in range(4):
        error = {}
        for unit in set(range(8)) - set(chosen):
            if quota[unit // 4]:
                made = mixed[:, [*chosen, unit]]
                error[unit] = float((targets - made @ torch.linalg.lstsq(made, targets).solution).square().sum())
        chosen.append(min(error, key=error.get))
        quota[chosen[-1] // 4] -= 1
    assert selection.forward(covariance, readers, (0.5, 0.5), 4).tolist() == sorted(chosen)
