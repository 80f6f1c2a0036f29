"""Networks that know other classes, fused into one that knows all."""

import pytest
import torch
from torch import nn

import lib
from lib import models
from lib.checks import InputError
from lib.fusion.labels import SPREAD, calibration, read_labels, union, united

LABELS = ([0, 1, 2], [2, 5])


def centres(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))


def images(per_class: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around a centre for each of the classes that either network knows."""
    classes = torch.tensor(union(LABELS)).repeat_interleave(per_class)
    noise = torch.randn(len(classes), 8, generator=torch.Generator().manual_seed(1))
    return centres()[classes] + noise, torch.tensor([union(LABELS).index(int(c)) for c in classes])


class Net(nn.Module):
    def __init__(self, outputs: int, hidden: int = 16) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, hidden), nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def nets():
    """Two networks, each trained on its own classes; the second one's logits are far larger."""
    found = []
    for seed, known in enumerate(LABELS):
        torch.manual_seed(seed)
        net, where = Net(len(known)), centres()
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(300):
            which = torch.randint(len(known), (64,))
            x = where[torch.tensor(known)[which]] + torch.randn(64, 8)
            nn.functional.cross_entropy(net(x), which).backward()
            optimiser.step()
            optimiser.zero_grad()
        found.append(net.eval())
    with torch.no_grad():
        for parameter in found[1].head.parameters():
            parameter.mul_(20)
        found[1].head.bias.add_(30)
    return found


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())


def test_the_union_is_answered_by_calibrated_logits(nets):
    x, y = images()
    both = united(nets, LABELS, (0.5, 0.5), [x], x[:2])
    with torch.no_grad():
        mean = sum(0.5 * net(x) for net in both)
        factors, offsets, weights = calibration([net(x) for net in nets], LABELS, (0.5, 0.5))
        raw = torch.full((len(x), 4), -torch.inf)
        raw[:, :3] = nets[0](x)
        raw[:, [2, 3]] = torch.maximum(raw[:, [2, 3]], nets[1](x))
    assert accuracy(mean, y) > 0.85 > accuracy(raw, y)
    # class 2 is known to both and answered by their mean, 0 by the first alone
    wanted = [factors[i] * net(x).double() + offsets[i] for i, net in enumerate(nets)]
    assert torch.allclose(mean[:, 0].double(), wanted[0][:, 0], atol=1e-3)
    assert torch.allclose(mean[:, 2].double(), 0.5 * (wanted[0][:, 2] + wanted[1][:, 0]), atol=1e-3)
    assert torch.allclose(weights, torch.tensor([[1, 1, 0.5, 0], [0, 0, 0.5, 1]]).double())
    # each network's classes are named as often as there are classes
    spread = torch.stack([(factors[i] * net(x).double()).std() for i, net in enumerate(nets)])
    assert torch.allclose(spread[0], spread[1])
    named = weights @ (mean.double() * SPREAD / spread[0]).softmax(1).mean(0)
    assert torch.allclose(named, weights.sum(1) / 4, atol=1e-3)


def test_logits_of_another_scale_and_level_change_nothing(nets):
    x, _ = images()
    logits = [net(x).detach() for net in nets]
    for i, changed in enumerate(([7 * logits[0] + 5, logits[1]], [logits[0], 0.1 * logits[1] - 40])):
        answers = []
        for each in (logits, changed):
            factors, offsets, weights = calibration(each, LABELS, (0.5, 0.5))
            a = factors[0] * each[0].double() + offsets[0]
            b = factors[1] * each[1].double() + offsets[1]
            answers.append(torch.cat([a[:, :2], 0.5 * (a[:, 2:] + b[:, :1]), b[:, 1:]], dim=1))
        # but for one scale of all, which no class's place depends on
        one, two = (each - each.mean(1, keepdim=True) for each in answers)
        scale = float((one * two).sum() / two.square().sum())
        assert torch.allclose(one, scale * two, atol=1e-3), i


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.3, 0.7)])
def test_two_networks_apart_are_the_mean_for_all_classes(nets, shares):
    x, y = images()
    both = united(nets, LABELS, shares, [x], x[:2])
    fused = lib.fuse(nets, images=x, labels=LABELS, shares=shares, budget=2, progress=False)
    with torch.inference_mode():
        goal = sum(share * net(x) for share, net in zip(shares, both, strict=True))
        assert torch.allclose(fused.model()(x), goal, atol=1e-3)
    one = lib.fuse(nets, images=x, labels=LABELS, shares=shares, progress=False)
    with torch.inference_mode():
        assert accuracy(one.model()(x), y) > 0.9 * accuracy(goal, y)


def test_a_spec_may_have_outputs_for_its_own_classes_alone():
    spec = models.Spec("mlp", 0, models.Recipe(epochs=1), width=0.1, classes=(3, 7), own_classes=True)
    assert spec.build()(torch.zeros(1, 1, 28, 28)).shape == (1, 2)
    assert "own_classes" not in models.Spec("mlp", 0, models.Recipe(epochs=1)).as_dict()
    with pytest.raises(InputError, match="own_classes asks for classes"):
        models.Spec("mlp", 0, models.Recipe(epochs=1), own_classes=True)


def test_images_of_some_classes_are_renumbered():
    from lib import loaders

    labels = torch.tensor([0, 3, 7, 3, 1, 7])
    split = loaders.Split(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1), labels)
    found = models.of_classes(loaders.Dataset("x", split, split, ""), (7, 3), held_out=2)
    assert found.train.labels.tolist() == [1, 0, 1] and found.train.images.flatten().tolist() == [1, 2, 3]
    assert found.test.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ([[0, 1, 2]], "accepted: 2 lists of classes"),
        ([[0, 1, 1], [2, 5]], "accepted: the class of each output, once"),
        ([[0, 1], [2, 5]], "network 1 has 3 outputs, and labels for 2"),
        ("all", "accepted: 2 lists of classes"),
    ],
)
def test_labels_that_fit_no_outputs_are_refused(nets, labels, line):
    x, _ = images()
    with pytest.raises(InputError, match=line):
        lib.fuse(nets, images=x, labels=labels, progress=False)


def test_labels_need_images_and_networks_as_they_were_trained(nets):
    x, _ = images()
    with pytest.raises(InputError, match="calibrated on images"):
        lib.fuse(nets, example=x[:2], labels=LABELS, matcher="weight", correction="none", progress=False)
    aligned = lib.fuse(nets, images=x, labels=LABELS, progress=False).aligned
    with pytest.raises(InputError, match="as they were trained"):
        lib.fuse(aligned, images=x, labels=LABELS, progress=False)
    assert read_labels(LABELS, 2) == [[0, 1, 2], [2, 5]]
