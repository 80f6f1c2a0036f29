"""Corrections do not see how a layer is scaled: a layer times k and the next divided by k are the same function."""

import pytest
import torch
from torch import nn

from lib import symmetry
from lib.fusion import CORRECTIONS, selection
from tests.aligned import correct
from tests.fusion.test_correction import IMAGES, NETWORKS, QUIET, draw, fitted, outputs, randomise

# What to multiply by k and what to divide by it; of a layer with a BatchNorm the norm, whose eps else counts.
SCALED = {
    "linear": (("0.weight", "0.bias", "2.bias"), ("4.weight",)),
    "plain": (("0.weight", "0.bias", "2.bias"), ("6.weight",)),
    "no-bias": (("0.weight",), ("2.weight",)),
    "norm": (("1.weight", "1.bias", "4.weight", "4.bias"), ("3.weight", "8.weight")),
    "norm-no-bias": (("1.weight", "1.bias", "4.weight", "4.bias"), ("3.weight", "8.weight")),
}


def build(name):
    if name == "linear":
        return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    return NETWORKS[name]()


def scaled(state, name, k):
    """The same function from other weights."""
    state = dict(state)
    for keys, factor in zip(SCALED[name], (k, 1 / k), strict=True):
        state |= {key: state[key] * factor for key in keys}
    return state


def compare(name, kind, factors, **options):
    """How far the fused network's outputs move, as a share of them, by factor."""
    a, b = (randomise(build(name), seed) for seed in (1, 2))
    x = draw(256, 6) if name == "linear" else draw(128, *IMAGES)
    groups = symmetry.trace(a, x[:2])
    found = {}
    for k in (1, *factors):
        states = [scaled(model.state_dict(), name, k) for model in (a, b)]
        torch.testing.assert_close(outputs(a, states[0], x), a(x).detach(), rtol=1e-4, atol=1e-4)
        found[k] = outputs(a, correct(a, *states, 0.4, kind, groups=groups, batches=[x], **options, **QUIET), x)
    return {k: float((found[k] - found[1]).norm() / found[1].norm()) for k in factors}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("kind", [kind for kind in CORRECTIONS if kind != "none"])
def test_the_scale_of_a_layer_does_not_count(name, kind):
    if kind == "bn_reset" and "norm" not in name:
        pytest.skip("no BatchNorm")
    # Which units stand for one parent alone may turn on a rounding; powers of two do not round.
    options = {"select": False} if kind == "least_squares" else {}
    assert max(compare(name, kind, (1e-3, 0.03, 30, 1e3), **options).values()) < 2e-5
    assert max(compare(name, kind, (2.0**-10, 2.0**10)).values()) < 2e-5


def test_units_are_chosen_alike_whatever_their_scale():
    _, covariance, readers = fitted(12, 3)
    expected, *explained = selection.choose(covariance, readers, (0.5, 0.5))
    for k in (1e-8, 1e8):
        choice, *again = selection.choose(covariance * k**2, readers / k, (0.5, 0.5))
        assert torch.equal(choice, expected) and again == pytest.approx(explained)


@pytest.mark.parametrize("kind", ["repair", "rescale"])
def test_units_of_very_different_scale_in_one_layer_reach_their_goals(kind):
    """What a unit's variance is measured against is its own mean square, not the layer's."""
    a, b = (randomise(build("linear"), seed) for seed in (1, 2))
    for model in (a, b):
        model[0].weight.data *= torch.logspace(-4, 4, 32)[:, None]
        model[0].bias.data *= torch.logspace(-4, 4, 32)
        model[2].weight.data /= torch.logspace(-4, 4, 32)
    x = draw(512, 6)
    groups = symmetry.trace(a, x[:2])
    found = correct(a, a.state_dict(), b.state_dict(), 0.5, kind, groups=groups, batches=[x], **QUIET)
    with torch.no_grad():
        goal = (a[0](x).std(0) + b[0](x).std(0)) / 2
        made = nn.functional.linear(x, found["0.weight"], found["0.bias"]).std(0)
    torch.testing.assert_close(made / goal, torch.ones(32), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["repair", "rescale", "closed_form"])
@pytest.mark.parametrize("value", [1e-3, 1.0, 300.0])
def test_a_layer_of_units_that_never_vary_keeps_its_values(kind, value):
    a = randomise(build("linear"), 1)
    a[0].weight.data[:] = 0
    a[0].bias.data[:] = value / 3
    x = draw(200, 6)
    found = correct(a, a.state_dict(), a.state_dict(), 0.5, kind, groups=symmetry.trace(a, x), batches=[x], **QUIET)
    torch.testing.assert_close(outputs(a, found, x), a(x).detach(), rtol=1e-4, atol=1e-4)


def test_least_squares_leaves_the_weights_of_inputs_that_are_always_zero():
    """A depthwise convolution one of whose channels is dead."""
    a, b = (
        randomise(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Flatten(),
                                nn.Linear(96, 3)), seed)
        for seed in (1, 2)
    )  # fmt: skip
    for model in (a, b):
        model[0].weight.data[:2], model[0].bias.data[:2] = 0, -1
    x = draw(64, *IMAGES)
    groups = symmetry.trace(a, x[:2])
    states = a.state_dict(), b.state_dict()
    found = correct(a, *states, 0.5, "least_squares", groups=groups, batches=[x], select=False, **QUIET)
    mean = (states[0]["2.weight"] + states[1]["2.weight"]) / 2
    torch.testing.assert_close(found["2.weight"][:2], mean[:2])
    assert not torch.allclose(found["2.weight"][2:], mean[2:], atol=1e-3)
