import pytest
import torch

from lib import fusion, loaders, models, symmetry
from tests import aligned as pairs


def parents_of(a=(0.9, 0.3), b=(0.8, 0.5)):
    return {
        side: {"test_accuracy": accuracy, "test_loss": loss, "train_accuracy": None, "train_loss": None}
        for side, (accuracy, loss) in (("a", a), ("b", b))
    }


def test_barrier_is_measured_from_the_line_between_the_parents():
    points = [
        {
            "alpha": alpha,
            "test_accuracy": accuracy,
            "test_loss": loss,
            "train_accuracy": None,
            "train_loss": None,
        }
        for alpha, accuracy, loss in ((0.0, 0.9, 0.3), (0.25, 0.6, 1.0), (0.5, 0.5, 0.9), (1.0, 0.8, 0.5))
    ]
    found = fusion.barrier(points, parents_of())
    assert found["test_accuracy"] == pytest.approx(0.85 - 0.5)
    assert found["test_loss"] == pytest.approx(1.0 - (0.75 * 0.3 + 0.25 * 0.5))
    assert found["train_accuracy"] is None


def test_the_published_width_2_barrier_is_1_22_points():
    curve = (
        (0.0, 0.9173, 0.295),
        (0.25, 0.9164, 0.296),
        (0.5, 0.9074, 0.331),
        (0.75, 0.9174, 0.301),
        (1.0, 0.9221, 0.301),
    )
    points = [{"alpha": a, "test_accuracy": acc, "test_loss": loss} for a, acc, loss in curve]
    found = fusion.barrier(points, parents_of((0.9172, 0.295), (0.9220, 0.301)))
    assert found["test_accuracy"] == pytest.approx(0.0122)
    assert found["test_loss"] == pytest.approx(0.033)


def test_a_barrier_is_of_a_path_and_never_below_0_and_the_drop_is_that_of_the_midpoint():
    above = [{"alpha": alpha, "test_accuracy": 0.9 + alpha / 100, "test_loss": 0.2} for alpha in (0.25, 0.5, 0.75)]
    ends = {"a": {"test_accuracy": 0.9, "test_loss": 0.3}, "b": {"test_accuracy": 0.8, "test_loss": 0.5}}
    found = fusion.barrier(above, ends)
    assert (found["test_accuracy"], found["test_loss"], found["train_loss"]) == (0, 0, None)
    assert set(fusion.barrier(above[:2], ends).values()) == {None}  # two points are no path
    found = fusion.drop(above, ends)
    assert found["test_accuracy"] == pytest.approx(0.85 - 0.905)  # below 0: better than the parents' mean
    assert found["test_loss"] == pytest.approx(0.2 - 0.4)
    assert set(fusion.drop(above[::2], ends).values()) == {None}
    three = ends | {"c": {"test_accuracy": 0.4, "test_loss": 0.4}}
    shares = [{"alpha": 1.0, "shares": [1 / 3] * 3, "test_accuracy": 0.5, "test_loss": 1.0}]
    shares += [{"alpha": 0.5, "shares": [2 / 3, 1 / 6, 1 / 6], "test_accuracy": 0.1, "test_loss": 2.0}]
    assert fusion.drop(shares, three)["test_accuracy"] == pytest.approx(0.7 - 0.5)


def test_interpolation_mixes_floats_statistics_included_and_keeps_integers_of_a():
    a = {"w": torch.zeros(2), "running_var": torch.ones(2), "num_batches_tracked": torch.tensor(3)}
    b = {"w": torch.ones(2), "running_var": 3 * torch.ones(2), "num_batches_tracked": torch.tensor(9)}
    fused = fusion.interpolate([a, b], (0.75, 0.25))
    assert fused["w"].tolist() == [0.25, 0.25]
    assert fused["running_var"].tolist() == [1.5, 1.5]
    assert fused["num_batches_tracked"] == 3


def test_curve_of_a_network_with_its_own_permutation_is_flat():
    model = models.build("vgg11", width=0.0625, norm="batch", seed=0)
    groups = symmetry.trace(model, models.example("vgg11"))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    perms = groups.random(torch.Generator().manual_seed(0))
    moved = symmetry.act(state, groups, perms)
    aligned = symmetry.act(moved, groups, symmetry.inverse(perms))
    g = torch.Generator().manual_seed(0)
    split = loaders.Split(
        torch.randint(0, 256, (64, 3, 32, 32), generator=g, dtype=torch.uint8),
        torch.randint(10, (64,), generator=g),
    )
    test = list(loaders.MemoryLoader(split, 32, normalise=loaders.CIFAR))
    end = fusion.measure(model, state, test)
    options = {"parents": {"a": end, "b": end}, "test": test, "progress": False}
    flat = fusion.curve(pairs.aligned(model, [state, aligned], groups), [1.0, 0.5, 0.0], **options, keep=[0.5])
    assert [point["alpha"] for point in flat.points] == [0.0, 0.5, 1.0]
    assert all(point["test_loss"] == pytest.approx(end["test_loss"], rel=1e-4) for point in flat.points)
    assert flat.barrier["test_loss"] == pytest.approx(0, abs=1e-4)
    assert torch.allclose(flat.states[0.5]["features.0.weight"], state["features.0.weight"], atol=1e-6)
    bent = fusion.curve(pairs.aligned(model, [state, moved], groups), [0.0, 0.5, 1.0], **options)
    assert abs(bent.points[1]["test_loss"] - end["test_loss"]) > 1e-3


def test_train_metrics_are_null_unless_asked_for():
    model = models.build("simplenet", seed=0)
    x, y = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    assert fusion.measure(model, model.state_dict(), [(x, y)])["train_loss"] is None
    found = fusion.measure(model, model.state_dict(), [(x, y)], [(x, y)])
    assert found["train_loss"] == found["test_loss"]


def test_parts_count_units_where_a_correction_chooses_them_and_weights_elsewhere():
    points = [{"alpha": alpha} for alpha in (0.25, 0.5, 0.75)]
    plain = fusion.Curve(None, "none", {}, points, {}, 0.0)
    assert plain.parts() == {"a": 0.5, "b": 0.5, "both": 1.0}
    units = {"conv1": {"mean": 2, "single": [4, 2]}, "conv2": {"mean": 0, "single": [2, 0]}}
    chosen = fusion.Curve(None, "none", {}, points, {}, 0.0, info={0.5: {"units": units}})
    assert chosen.parts() == pytest.approx({"a": 0.7, "b": 0.3, "both": 0.2})
    assert fusion.Curve(None, "none", {}, points[:1], {}, 0.0).parts()["b"] == 0.25


def test_a_barrier_of_what_is_no_number_is_none_wherever_it_stands():
    ends = {side: {"test_loss": 0.3, "test_accuracy": 0.9} for side in "ab"}
    losses = [0.3, float("nan"), 0.3]
    for turned in (losses, losses[1:] + losses[:1], losses[2:] + losses[:2]):
        points = [{"alpha": i / 2, "test_loss": loss, "test_accuracy": 0.8} for i, loss in enumerate(turned)]
        found = fusion.barrier(points, ends)
        assert found["test_loss"] is None
        assert found["test_accuracy"] == pytest.approx(0.1)


def test_an_ensemble_that_is_sure_and_wrong_has_a_finite_loss():
    class Sure(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[150.0, 0.0, 0.0]]).expand(len(x), 3)

    found = fusion.ensemble([Sure(), Sure()], [(torch.rand(4, 2), torch.tensor([0, 0, 0, 1]))])
    assert (found["test_accuracy"], found["test_loss"]) == (0.75, pytest.approx(150 / 4))


def test_an_ensembles_loss_is_that_of_the_mean_probability():
    a, b = (torch.nn.Linear(4, 3) for _ in range(2))
    x, y = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    mean = (a(x).softmax(1) + b(x).softmax(1)) / 2
    found = fusion.ensemble([a, b], [(x, y)])
    assert found["test_loss"] == pytest.approx(torch.nn.functional.nll_loss(mean.log(), y).item())
    assert found["test_accuracy"] == pytest.approx((mean.argmax(1) == y).double().mean().item())


def test_a_network_that_changes_its_input_in_place_is_measured_alike_each_time():
    class InPlace(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.sub_(0.3).div_(0.5))

    a, b = InPlace(20, 5), InPlace(20, 5)
    x = torch.rand(200, 20, generator=torch.Generator().manual_seed(0))
    batches = [(x, a(x.clone()).argmax(1))]
    first, again = (fusion.measure(InPlace(20, 5), a.state_dict(), batches) for _ in range(2))
    assert first == again and first["test_accuracy"] == 1
    plain = [torch.nn.Linear(20, 5) for _ in range(2)]
    for model, other in zip(plain, (a, b), strict=True):
        model.load_state_dict(other.state_dict())
    expected = fusion.ensemble(plain, [((x - 0.3) / 0.5, batches[0][1])])
    assert fusion.ensemble([a, b], batches)["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)
