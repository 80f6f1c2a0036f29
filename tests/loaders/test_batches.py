"""What a batch is, in every form that people have it, and what is none."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lib import fusion, loaders, matching, models, symmetry
from lib.checks import InputError

X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
SET = TensorDataset(X, Y)
QUIET = {"progress": False}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


@pytest.fixture(scope="module")
def pair():
    networks = [network(0), network(1)]
    groups = symmetry.trace(networks[0], X)
    maps = [groups.identity()] * 2
    return networks, groups, fusion.align(networks, groups, maps)


IMAGES = {
    "one tensor": lambda: X,
    "an array": lambda: X.double().numpy(),
    "a generator": lambda: (part for part in [X]),
    "a generator of pairs": lambda: ((X, Y) for _ in range(1)),
    "a loader": lambda: DataLoader(SET, 16),
    "a loader of images": lambda: DataLoader(TensorDataset(X), 16),
    "lists": lambda: [[X, Y]],
    "more behind the labels": lambda: [(X, Y, {"index": 3}, "a")],
    "all images and their labels": lambda: (X, Y),
    "labels of any kind, unread": lambda: [(X, {"boxes": []})],
    **{name: lambda name=name: [{"id": 3, name: X, "label": Y}] for name in loaders.batches.IMAGES},
}


@pytest.mark.parametrize("given", IMAGES.values(), ids=IMAGES)
def test_images_of_every_form_give_one_matching_and_one_correction(given, pair):
    networks, groups, aligned = pair
    plain = matching.match(networks, groups, "activation", images=[X], **QUIET)[1]
    found = matching.match(networks, groups, "activation", images=given(), **QUIET)[1]
    assert torch.allclose(found.similarity["0"], plain.similarity["0"], atol=1e-5)
    for correction in ("repair", "least_squares"):  # the first goes over them twice
        plain = fusion.correct(aligned, 0.5, correction, images=[X], **QUIET)
        found = fusion.correct(aligned, 0.5, correction, images=given(), **QUIET)
        assert all(torch.allclose(found.state[name], plain.state[name], atol=1e-4) for name in plain.state)
    fusion.fuse(networks, images=given(), **QUIET)


LABELS = {
    **{str(kind): lambda kind=kind: Y.to(kind) for kind in (torch.uint8, torch.int16, torch.int32, torch.uint16)},
    **{kind: lambda kind=kind: Y.numpy().astype(kind) for kind in ("uint8", "int32", "uint32", "int64")},
    "(N, 1)": lambda: Y[:, None],
    "a list": Y.tolist,
    "one-hot": lambda: nn.functional.one_hot(Y),
    "one-hot, float": lambda: nn.functional.one_hot(Y).double().numpy(),
}


@pytest.mark.parametrize("given", LABELS.values(), ids=LABELS)
def test_labels_of_every_kind_are_measured_alike(given):
    model = network(0)
    assert models.evaluate(model, [(X, given())]) == models.evaluate(model, [(X, Y)])
    assert models.evaluate(model, [{"x": X, "targets": given()}]) == models.evaluate(model, [(X, Y)])


def test_a_path_is_measured_on_what_can_be_gone_over_once(pair):
    *_, aligned = pair
    plain = fusion.curve(aligned, [0.0, 0.5], test=[(X, Y)], train=(X, Y), **QUIET)
    once = {"test": ((X, Y) for _ in range(1)), "train": zip([X], [Y], strict=True)}
    found = fusion.curve(aligned, [0.0, 0.5], **once, **QUIET)
    assert found.points == plain.points and found.parents == plain.parents
    images = (part for part in X.split(4))
    fusion.curve(aligned, [0.25, 0.5], test=[(X, Y)], correction="rescale", images=images, **QUIET)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (SET, r"images are given as TensorDataset; accepted: .*DataLoader\(dataset, batch_size\) makes batches"),
        ("images.pt", "images are given as str"),
        ({"image": X}, "images are given as dict"),
        (3, "images are given as int"),
        (list(SET), r"images \(6,\) are no batch but a single one"),
        ([(torch.rand(3, 8, 8), 3)], r"images \(3, 8, 8\) are no batch but a single one"),
        (list(X), r"images \(6,\) are no batch but a single one"),
        ([{"input_ids": X, "mask": X}], "a batch has no images but input_ids, mask; accepted: under one of image,"),
        ([{}], "a batch has no images but nothing"),
        ([("a", "b")], "a batch is given as tuple without a tensor of images"),
        ([[]], "a batch is given as list without a tensor of images"),
        ([None], "a batch is given as NoneType without"),
    ],
)
def test_what_is_no_batch_is_refused_in_one_line(images, told, pair):
    networks, groups, aligned = pair
    for use in (
        lambda: matching.match(networks, groups, "activation", images=images, **QUIET),
        lambda: fusion.correct(aligned, 0.5, "repair", images=images, **QUIET),
        lambda: fusion.fuse(networks, images=images, **QUIET),
        lambda: models.evaluate(networks[0], images),
    ):
        with pytest.raises(InputError, match=told) as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ([X], "these batches hold no labels to measure by"),
        (X, "these batches hold no labels"),
        ([{"image": X, "class": Y}], "these batches hold no labels"),
        ([(X, None)], "these batches hold no labels"),
        ([(X, Y[:8])], r"a batch has 16 images and labels \(8,\); accepted: one label an image"),
        ([(X, Y + 1)], "a label is 2; accepted: 0 … 1, the network's classes"),
        ([(X, Y.float())], r"labels are float32 \(16,\); accepted: whole numbers"),
        ([(X, torch.zeros(16, 3))], r"labels are float32 \(16, 3\); accepted: .* one-hot \(N, 2\)"),
        ([(X, ["a"] * 16)], "labels are given as list; accepted"),
        ([(X, {"boxes": Y})], "labels are given as dict; accepted"),
        ([], "no images to evaluate on"),
    ],
)
def test_what_cannot_be_measured_by_is_refused_in_one_line(test, told, pair):
    networks, _, aligned = pair
    for use in (
        lambda: fusion.measure(network(0), networks[0].state_dict(), test),
        lambda: fusion.curve(aligned, [0.5], test=test, **QUIET),
    ):
        with pytest.raises(InputError, match=told) as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("output", [lambda x: {"logits": x}, lambda x: x[:, 0], lambda x: x[:, :, None]])
def test_a_network_without_logits_is_not_measured(output):
    class Net(nn.Linear):
        def forward(self, x):
            return output(super().forward(x))

    with pytest.raises(InputError, match=r"the network puts out .*; accepted: logits \(N, classes\)"):
        models.evaluate(Net(6, 2), [(X, Y)])


class Two(nn.Module):
    """Of images and whole numbers that stand for words; writes into the images."""

    def __init__(self):
        super().__init__()
        self.words, self.images = nn.Embedding(9, 4), nn.Linear(6, 4)

    def forward(self, x, words):
        return self.images(x.mul_(2.0)) + self.words(words).mean(dim=1)


def test_several_inputs_go_in_as_a_tuple():
    words = torch.randint(9, (16, 3), generator=torch.Generator().manual_seed(1))
    images, labels = loaders.read_batch([[X.numpy(), words], Y])  # as a DataLoader collates them
    assert isinstance(images, tuple) and loaders.count(images) == 16 and labels is Y
    assert torch.equal(images[0], X) and images[1] is words
    assert [x.dtype for x in loaders.placed(images, "cpu")] == [torch.float32, torch.int64]
    before = X.clone()
    accuracy, _ = models.evaluate(Two(), [((X, words), Y)])
    assert 0 <= accuracy <= 1 and torch.equal(X, before)


def test_a_network_is_measured_in_its_own_precision():
    model = network(0).double()
    assert models.evaluate(model, [(X, Y)]) == pytest.approx(models.evaluate(network(0), [(X, Y)]))


def test_arrays_come_as_what_networks_are_made_of():
    for kind, wanted in (("float64", torch.float32), ("float16", torch.float16), ("int64", torch.int64)):
        array = np.ones((4, 3), kind)
        array.flags.writeable = False
        tensor, _ = loaders.read_batch(array)
        assert tensor.dtype == wanted
        tensor.zero_()
        assert (array == 1).all()
