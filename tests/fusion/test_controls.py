"""What a fused network is compared with, and what all of them are measured by."""

import copy

import pytest
import torch
from torch import nn

from lib import fusion, matching, models, symmetry
from lib.checks import InputError
from lib.fusion import controls, heads


def network(seed: int, norm: bool = True, classes: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, classes)]
    made = nn.Sequential(*(layer for layer in layers if norm or not isinstance(layer, nn.BatchNorm1d)))
    with torch.no_grad():
        made[-1].weight.mul_(3)  # sure of something
        made.train()(torch.randn(50, 6))
    return made.eval()


def inputs(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def parents(networks, **given) -> fusion.Parents:
    x = inputs(200)
    options = {"images": x, "held_out": [(inputs(60, 1), torch.arange(60) % 4)], "progress": False} | given
    return fusion.Parents(networks, symmetry.trace(networks[0], x[:2]), **options)


# Measures


def test_calibration_is_the_share_weighted_gap_between_confidence_and_accuracy_over_15_bins():
    # (0.6, 0.66…] holds the first three, of which two are right; (0.93, 1] the last
    sure, right = torch.tensor([0.61, 0.62, 0.66, 0.95]), torch.tensor([True, True, False, False])
    logits = torch.stack([sure.log(), (1 - sure).log()], dim=1)
    found = models.score(logits, (~right).long())
    expected = (abs(2 - (0.61 + 0.62 + 0.66)) + 0.95) / 4
    assert found.calibration == pytest.approx(expected, abs=1e-6)
    assert found.accuracy == 0.5
    # bins are closed above: 2/3 belongs to (0.6, 0.66…], where it makes up for 0.61
    logits = torch.tensor([[2.0, 1.0], [0.61, 0.39]], dtype=torch.float64).log()
    assert models.score(logits, torch.tensor([0, 1])).calibration == pytest.approx(abs(1 - 2 / 3 - 0.61) / 2)


def test_divergence_and_agreement_are_those_from_the_given_log_probabilities():
    p, q = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]])
    found = models.score(q.log() + 3, torch.tensor([0, 1]), p.log())
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum() / 2), abs=1e-6)
    assert (found.agreement, found.accuracy) == (0.5, 0.5)
    broken = q.log()
    broken[1, 1] = float("nan")  # which argmax takes for the largest
    assert models.score(broken, torch.tensor([0, 1]), p.log())[:1] == (0.0,)
    assert models.score(broken, torch.tensor([0, 1]), p.log()).agreement == 0
    with pytest.raises(InputError, match=r"log-probabilities \(2, 3\) and outputs \(1, 3\) cannot be compared"):
        models.score(q[:1], torch.tensor([0]), p.log())


def test_the_ensemble_agrees_with_itself_and_its_parents_with_it_in_part():
    pair, test = [network(0), network(1)], [(inputs(80), torch.arange(80) % 4)]
    ends, ensemble, logs = fusion.measure_parents(pair, test)
    assert ensemble["test_kl"] == pytest.approx(0, abs=1e-12) and ensemble["test_agreement"] == 1
    assert fusion.ensemble(pair, test) == {name: ensemble[name] for name in fusion.ensemble(pair, test)}
    for end in ends.values():
        assert end["test_kl"] > 0.01 and 0 < end["test_agreement"] < 1
    made = fusion.control("ensemble", parents(pair))
    measured = models.score(*models.outputs(made.network, test), logs)
    assert measured.kl == pytest.approx(0, abs=1e-12)
    alone = fusion.control("ensemble", parents(pair, shares=(0.0, 1.0)))
    torch.testing.assert_close(alone.network(inputs(5)), pair[1](inputs(5)).double().log_softmax(1))


def test_a_curve_says_how_near_to_the_ensemble_each_point_is_in_one_pass_a_network(monkeypatch):
    pair, test = [network(0), network(1)], [(inputs(80), torch.arange(80) % 4)]
    groups = symmetry.trace(pair[0], inputs(2))
    aligned = fusion.align(pair, groups, [groups.identity()] * 2)
    passes, real = [], models.outputs
    monkeypatch.setattr(models, "outputs", lambda *given, **options: passes.append(1) or real(*given, **options))
    path = fusion.curve(aligned, [0, 0.5, 1], test=test, progress=False)
    assert len(passes) == 3  # two parents, the midpoint
    assert [point["test_kl"] > 0.01 for point in path.points] == [True] * 3
    assert path.points[0] == {"alpha": 0.0} | path.parents["a"]
    given = fusion.curve(aligned, [0.5], test=test, parents=path.parents, progress=False)
    assert given.points[0]["test_kl"] is None
    assert given.drop == path.drop and given.barrier["test_accuracy"] is None


# The last layers


def test_the_head_is_what_linear_layers_alone_make_of_the_features():
    simple = models.build("simplenet", seed=0)
    assert fusion.heads.linear_head(simple, symmetry.trace(simple, models.example("simplenet"))) == ["fc1", "fc2"]
    for width, names in ((4, ["1", "2"]), (3, ["2"])):  # through three units no four outputs can be had
        narrow = nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.Linear(width, 4))
        assert heads.linear_head(narrow, symmetry.trace(narrow, inputs(2))) == names
    for last in (nn.ReLU(), nn.LogSoftmax(dim=1)):
        other = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), last)
        groups = symmetry.trace(other, inputs(2))
        with pytest.raises(InputError, match="the outputs of Sequential are not made by a linear layer"):
            heads.linear_head(other, groups)
        for name in ("head", "untrained_head"):
            with pytest.raises(InputError, match=f"^control '{name}': the outputs of"):
                fusion.check_control(name, other, groups)
        with pytest.raises(InputError, match="^correction 'temperature': the outputs of"):
            fusion.check_network("temperature", other, groups)


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_regression_finds_a_linear_map_whether_rows_or_unknowns_are_more(bias):
    x, true = inputs(40).double(), torch.randn(3, 6, dtype=torch.float64)
    weight, level = heads.ridge_regression(x, x @ true.mT + 2 * bias, 1e-12, bias)
    torch.testing.assert_close(weight, true, rtol=1e-6, atol=1e-6)
    assert level is None if not bias else torch.allclose(level, torch.full((3,), 2.0, dtype=torch.float64), atol=1e-6)
    # wide: the dual gives what the primal does
    wide, goal = torch.randn(10, 30, dtype=torch.float64), torch.randn(10, 3, dtype=torch.float64)
    found, _ = heads.ridge_regression(wide, goal, 0.1, bias)
    x, y = (wide - wide.mean(0), goal - goal.mean(0)) if bias else (wide, goal)
    gram = x.mT @ x
    expected = torch.linalg.solve(gram + 0.1 * gram.diagonal().mean() * torch.eye(30, dtype=torch.float64), x.mT @ y)
    torch.testing.assert_close(found, expected.mT)
    torch.testing.assert_close(heads.ridge_regression(1000 * wide, goal, 0.1, bias)[0] * 1000, found)
    assert not heads.ridge_regression(torch.zeros(10, 3), goal, 0.1, bias)[0].any()  # dead features


@pytest.mark.parametrize("last", [["3"], ["3", "4"]])
def test_a_head_is_exact_where_the_body_suffices(last):
    """Two heads on one body: their mean is a head on it."""
    one = network(0)
    if len(last) > 1:
        one.append(nn.Linear(4, 4, bias=False))
    two = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in two[3:].parameters():
            parameter.copy_(torch.randn_like(parameter))
    given = parents([one, two], shares=(0.25, 0.75))
    assert heads.linear_head(one, given.groups) == last
    made, x = fusion.control("head", given), inputs(30, 5)
    goal = 0.25 * one(x) + 0.75 * two(x)
    assert torch.allclose(made.network(x), goal, atol=0.02 * float(goal.detach().abs().max()))
    assert made.images == 200 and made.info["body"] == 1
    assert torch.equal(made.network[0].weight, one[0].weight) and not torch.equal(one[3].weight, made.network[3].weight)


def test_a_head_stands_on_the_body_that_is_better_held_out():
    good, blind = network(0), network(1)
    with torch.no_grad():
        blind[0].weight.zero_()
    x = inputs(60, 1)
    given = parents([blind, good], held_out=[(x, good(x).argmax(1))], shares=(0.1, 0.9))
    made = fusion.control("head", given)
    assert made.info["body"] == 2 and torch.equal(made.network[0].weight, good[0].weight)
    assert fusion.control("parent", given).network is given.networks[1]
    given = parents([blind, good], held_out=[(x, blind(x).argmax(1))])
    assert fusion.control("parent", given).info == {"network": 1, "held_out_accuracy": 1.0}


def test_a_class_is_answered_by_the_parents_that_name_it():
    z = [torch.tensor([[4.0, 0.0, -1.0], [0.0, 5.0, -2.0]]), torch.tensor([[0.0, 1.0, 6.0], [2.0, -1.0, 3.0]]) + 7]
    found = heads.joint_logits(z, (0.25, 0.75), "competence")
    named = [each.softmax(dim=1).mean(dim=0) ** (1 / 3) for each in z]
    level = [(each * n / n.sum()).sum(dim=1, keepdim=True) for each, n in zip(z, named, strict=True)]
    first, second = 0.25 * named[0], 0.75 * named[1]
    expected = (first * (z[0] - level[0]) + second * (z[1] - level[1])) / (first + second)
    torch.testing.assert_close(found.float(), expected + 0.25 * level[0] + 0.75 * level[1])
    # parents that name all classes alike often: their mean, which is what is taken without it
    even = [torch.eye(3) * 5, torch.eye(3)[[1, 2, 0]] * 2]
    mean = heads.joint_logits(even, (0.25, 0.75))
    torch.testing.assert_close(mean, 0.25 * even[0] + 0.75 * even[1])
    torch.testing.assert_close(heads.joint_logits(even, (0.25, 0.75), "competence").float(), mean)
    torch.testing.assert_close(heads.joint_logits(z, (0.0, 1.0), "competence").float(), z[1])  # alone: its own logits
    # of a class that one never names, the other's word stands; in the mean it would go under
    z = [torch.tensor([[0.0, 1.0, -50.0]] * 2), torch.tensor([[0.0, -1.0, 3.0], [3.0, 0.0, -1.0]])]
    assert heads.joint_logits(z, (0.5, 0.5), "competence").argmax(dim=1).tolist() == [2, 0]
    assert heads.joint_logits(z, (0.5, 0.5)).argmax(dim=1).tolist() == [0, 0]
    never = [torch.tensor([[0.0, -2000.0]])] * 2  # a class that nobody ever names
    assert torch.isfinite(heads.joint_logits(never, (0.5, 0.5), "competence")).all()


def test_a_fused_network_and_a_head_reach_the_same_target_where_the_body_suffices():
    one = network(0)
    two = copy.deepcopy(one)
    with torch.no_grad():
        two[3].weight.copy_(torch.randn_like(two[3].weight))
        two[3].bias[1] -= 6  # hardly names class 1
    given, x = parents([one, two], shares=(0.25, 0.75)), inputs(200)
    logits = [each(x).detach() for each in (one, two)]
    mean, goal = (heads.joint_logits(logits, given.shares, target) for target in ("mean", "competence"))
    assert (goal - mean).abs().max() > 1  # else this would show nothing
    aligned = fusion.align([one, two], given.groups, [given.groups.identity()] * 2)
    unlabelled, near = [(x, torch.full((200,), 99))], {"atol": 0.02 * float(goal.abs().max()), "rtol": 0}
    fused = fusion.correct(
        aligned, given.shares, "least_squares(target=competence)", images=unlabelled, progress=False
    )  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(fused.model()(x).double(), goal, **near)
        torch.testing.assert_close(fusion.control("head(target=competence)", given).network(x).double(), goal, **near)
    assert fused.info["layers"]["3"] < 1e-3
    with pytest.raises(InputError, match="units=half is one parent"):
        fusion.correct(aligned, 0.5, "least_squares(target=competence, units=half)", images=x, progress=False)
    other = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.LogSoftmax(dim=1)).eval()
    groups = symmetry.trace(other, x[:2])
    aligned = fusion.align([other, copy.deepcopy(other)], groups, [groups.identity()] * 2)
    with pytest.raises(InputError, match="'least_squares': the outputs of Sequential are not made by a linear"):
        fusion.correct(aligned, 0.5, "least_squares(target=competence)", images=x, progress=False)


def test_the_target_ensemble_is_outvoted_by_no_parent_that_knows_nothing():
    """A parent that names no class of an image, and gives large negative logits to the right one, ruins the mean."""
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[-30.0, 1.0, 1.0]])
    mean, ensemble = (heads.joint_logits([sure, unsure], (0.5, 0.5), target) for target in ("mean", "ensemble"))
    assert int(mean.argmax()) != 0 and int(ensemble.argmax()) == 0
    wanted = (sure.double().softmax(1) + unsure.double().softmax(1)) / 2
    torch.testing.assert_close(ensemble.exp(), wanted)


def test_an_untrained_head_knows_the_parents_by_their_outputs_alone():
    pair = [network(0), network(1)]
    made = fusion.control("untrained_head", parents(pair))
    again = fusion.control("untrained_head", parents(pair))
    other = fusion.control("untrained_head", parents(pair, seed=1))
    assert not any(torch.equal(made.network[0].weight, each[0].weight) for each in (*pair, other.network))
    assert torch.equal(made.network[3].weight, again.network[3].weight)
    x = inputs(200)
    # its statistics are those of the images, on which it is nearer to the mean logits than chance
    torch.testing.assert_close(made.network[1].running_mean, made.network[0](x).mean(0), atol=1e-4, rtol=1e-4)
    goal = (pair[0](x) + pair[1](x)) / 2
    assert (made.network(x) - goal).square().mean() < 0.8 * (goal - goal.mean(0)).square().mean()
    fresh = parents(pair, fresh=lambda seed: network(10 + seed))
    assert torch.equal(fusion.control("untrained_head", fresh).network[0].weight, network(1_000_013)[0].weight)


# Fused with itself


def test_self_is_the_first_parent_alone_in_a_random_order(monkeypatch):
    a, b, c = (network(seed) for seed in range(3))
    made, other = (fusion.control("self", parents([a, second])).network for second in (b, c))
    assert torch.equal(made[0].weight, other[0].weight)
    x = inputs(50, 3)
    assert (made(x) - a(x)).abs().max() > 0.05  # what the algorithm costs
    monkeypatch.setattr(symmetry.Groups, "random", lambda groups, generator: groups.identity())
    with pytest.raises(AssertionError):  # so the order was random
        torch.testing.assert_close(fusion.control("self", parents([a, b])).network(x), made(x))
    torch.testing.assert_close(fusion.control("self", parents([a, b])).network(x), a(x), atol=1e-3, rtol=1e-3)


# Distillation


def test_distillation_comes_nearer_to_the_ensemble_and_says_what_it_took():
    given = parents([network(0), network(1)])
    made = fusion.control("distillation(steps=60, batch=40)", given)
    assert made.control == "distillation(steps=60, batch=40)"
    assert made.info["training"] == "gradient" and made.info["lr"] in controls.RATES
    assert made.info["steps"] in (20, 40, 60) and made.info["batch"] == 40 and 0 < made.info["seconds"] < made.seconds
    x, logs = inputs(200), fusion.control("ensemble", given).network(inputs(200))
    maps = matching.match(given.networks, given.groups, "activation", images=x, progress=False)
    start = fusion.correct(fusion.align(given.networks, given.groups, maps), 0.5, "bn_reset", images=x, progress=False)
    labels = torch.zeros(200, dtype=torch.long)
    before, after = (models.score(n(x).detach(), labels, logs).kl for n in (start.model(), made.network))
    assert after < before


def test_distillation_chooses_by_the_held_out_images_alone(monkeypatch):
    """The held-out images are marked; labels of the others are no classes, so reading one would raise."""
    held = inputs(60, 1)
    held[:, 0] = 77
    unlabelled = [(batch, torch.full((len(batch),), 99)) for batch in inputs(200).split(50)]
    given = parents([network(0), network(1)], images=unlabelled, held_out=[(held, torch.zeros(60, dtype=torch.long))])
    wanted, calls = 4, []  # neither the first nor the last of its learning rate

    def evaluate(model, batches, **options):
        assert all((images[:, 0] == 77).all() for images, _ in batches)
        calls.append(copy.deepcopy(model))
        return (1.0 if len(calls) == wanted + 1 else 0.5), 0.0

    monkeypatch.setattr(models, "evaluate", evaluate)
    made = fusion.control("distillation(steps=9)", given)
    assert len(calls) == len(controls.RATES) * controls.CHECKS
    assert (made.info["lr"], made.info["steps"]) == (controls.RATES[wanted // 3], (3, 6, 9)[wanted % 3])
    assert torch.equal(made.network[0].weight, calls[wanted][0].weight)
    assert not torch.equal(made.network[0].weight, calls[wanted - 1][0].weight)


def test_every_control_takes_networks_without_batchnorm_and_leaves_the_parents_as_they_were():
    pair = [network(0, norm=False), network(1, norm=False)]
    before = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in pair]
    given = parents(pair)
    for name in fusion.CONTROLS:
        made = fusion.control(f"{name}(steps=3)" if name == "distillation" else name, given)
        assert made.network(inputs(5)).shape == (5, 4) and not made.network.training
        assert made.images == (200 if fusion.CONTROLS[name].images else 0)
    for each, state in zip(pair, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in each.state_dict().items())


def test_side_by_side_takes_units_of_both_and_half_a_parent_of_the_first_alone():
    a, b = network(0), network(1)
    made, half = (fusion.control(name, parents([a, b])) for name in ("side_by_side", "half_parent"))
    one, two = made.info["units"]["0"]["single"]
    assert one > 0 < two and one + two == 12
    assert half.info["units"]["0"]["single"] == [6, 0]
    assert int(half.network[3].weight.any(dim=0).sum()) == 6 and half.images == 200
    other = fusion.control("half_parent", parents([a, network(2)]))
    assert torch.equal(other.network[0].weight, half.network[0].weight)
    # in whatever order B stands: nothing is matched
    groups = symmetry.trace(b, inputs(2))
    turned = copy.deepcopy(b)
    turned.load_state_dict(symmetry.act(b.state_dict(), groups, groups.random(torch.Generator().manual_seed(1))))
    again = fusion.control("side_by_side", parents([a, turned]))
    torch.testing.assert_close(again.network(inputs(9)), made.network(inputs(9)), atol=1e-3, rtol=1e-3)


def test_what_a_residual_network_cannot_be_is_said_before_anything_is_made():
    residual = models.build("resnet20", width=0.25, norm="batch", seed=0)
    groups = symmetry.trace(residual, models.example("resnet20"))
    refused = []
    for name in fusion.CONTROLS:
        try:
            fusion.check_control(name, residual, groups)
        except InputError as error:
            refused.append(name)
            assert str(error).startswith(f"control '{name}': ") and "\n" not in str(error)
    assert refused == ["side_by_side", "half_parent"]


def test_what_a_control_needs_is_said_in_one_line():
    pair = [network(0), network(1)]
    cases = {
        "heads": (parents(pair), "unknown control 'heads'; accepted: parent, ensemble, "),
        "distillation(lr=1)": (parents(pair), "control 'distillation' takes no option lr; accepted: steps, batch"),
        "parent": (parents(pair, held_out=None), "control 'parent' chooses by images held out; give it held_out"),
        "head": (parents(pair, images=None), "control 'head' looks at images; give it images"),
    }
    for name, (given, said) in cases.items():
        with pytest.raises(InputError, match=said.replace("(", r"\(")) as error:
            fusion.control(name, given)
        assert "\n" not in str(error.value)


# Methods that are controls


def test_a_random_order_is_none_of_the_networks_own_and_its_seeds():
    pair = [network(0), network(1)]
    groups = symmetry.trace(pair[0], inputs(2))
    orders = [matching.match(pair, groups, "random", seed=seed)[1]["0"].tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(12)) not in orders
    assert not matching.looks_at_images("random")


def test_temperature_changes_the_loss_alone_and_is_the_best_one_without_labels():
    pair, x = [network(0), network(1)], inputs(300)
    groups = symmetry.trace(pair[0], x[:2])
    aligned = fusion.align(pair, groups, [groups.identity()] * 2)
    plain = fusion.correct(aligned, (0.4, 0.6), "none").model()
    with torch.no_grad():
        unlabelled = [(x, torch.full((300,), 99))]
        fused = fusion.correct(aligned, (0.4, 0.6), "temperature", images=unlabelled, progress=False)
        logits, scaled = plain(x), fused.model()(x)
    factor = 1 / fused.info["temperature"]
    torch.testing.assert_close(scaled, factor * logits, rtol=1e-4, atol=1e-4)
    goal = heads.mean_log_probabilities([each(x).detach() for each in pair], (0.4, 0.6))
    labels = torch.zeros(300, dtype=torch.long)
    kl = {f: models.score(f * factor * logits, labels, goal).kl for f in (0.97, 1.0, 1.03, 1 / factor)}
    assert min(kl, key=kl.__getitem__) == 1.0 and abs(factor - 1) > 0.03
    assert torch.equal(scaled.argmax(1), logits.argmax(1))
    end = fusion.correct(aligned, 1.0, "temperature", images=x, progress=False)
    assert end.info["temperature"] == pytest.approx(1, abs=1e-3)  # a parent alone is its own ensemble
    with pytest.raises(InputError, match="'temperature' looks at images"):
        fusion.correct(aligned, 0.5, "temperature")
