"""A text as a data set: windows of tokens, each with what follows it."""

import pytest
import torch

from lib import loaders, models
from lib.checks import InputError


def read(tokens):
    return "".join(loaders.CHARACTERS[token] for token in tokens.flatten().tolist())


def test_paradise_lost_is_the_poem_from_its_first_line_to_its_last():
    data = loaders.load("paradise-lost")
    assert read(data.train.images[:2]).startswith(
        "PARADISE LOST\nBOOK I.\n\n  Of Mans First Disobedience, and the Fruit\n"
    )
    assert "Through EDEN took thir solitarie way." in read(data.test.images)
    assert "".join(sorted(set(loaders.CHARACTERS))) == loaders.CHARACTERS and len(loaders.CHARACTERS) == 65
    assert data.train.labels.max() < 65 and data.test.labels.max() < 65


def test_windows_lie_one_behind_another_and_none_crosses_into_the_test():
    data = loaders.load("paradise-lost")
    for split in (data.train, data.test):
        assert split.is_text and split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.images.shape == split.labels.shape == (len(split), loaders.WINDOW)
        assert torch.equal(split.images.flatten()[1:].long(), split.labels.flatten()[:-1])
    train, test = (read(split.images) + read(split.labels[-1, -1:]) for split in (data.train, data.test))
    assert (len(data.train), len(data.test)) == (6390, 710)
    assert len(test) == pytest.approx((len(train) + len(test)) / 10, abs=loaders.WINDOW)
    assert test[:200] not in train


def test_the_text_is_the_same_everywhere():
    expected = "1a0dee0e1330e10625f115007441f147308b853ab35facc94c69f0ddc64c782f"
    assert loaders.load("paradise-lost").sha256 == expected


def test_batches_of_a_text_are_its_tokens():
    split = loaders.load("paradise-lost").test
    batches = list(loaders.MemoryLoader(split, 300, normalise=None))
    assert [len(tokens) for tokens, _ in batches] == [300, 300, 110]
    assert all(x.dtype == torch.int64 for batch in batches for x in batch)
    assert torch.equal(torch.cat([tokens for tokens, _ in batches]), split.images.long())
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
    shuffled = loaders.MemoryLoader(
        split, 710, normalise=None, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    (tokens, labels), *_ = shuffled
    assert not torch.equal(tokens, split.images.long())
    assert sorted(map(tuple, tokens.tolist())) == sorted(map(tuple, split.images.tolist()))
    assert torch.equal(tokens[:, 1:], labels[:, :-1])


def test_windows_are_taken_like_images():
    split = loaders.load("paradise-lost").train
    assert torch.equal(split.head(3).images, split.images[:3]) and split.head(3).is_text
    assert torch.equal(split.subset([5, 2]).labels, split.labels[[5, 2]])


@pytest.mark.parametrize(
    ("tokens", "labels"),
    [
        (torch.zeros(4, 8, dtype=torch.int64), torch.zeros(4, 8, dtype=torch.int64)),
        (torch.zeros(4, 8, dtype=torch.uint8), torch.zeros(4, 7, dtype=torch.int64)),
        (torch.zeros(4, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_tokens_are_bytes_with_a_label_each(tokens, labels):
    with pytest.raises(InputError, match=r"or tokens uint8 \(N, L\) and int64 \(N, L\)$"):
        loaders.Split(tokens, labels)


def test_a_text_is_neither_augmented_nor_read_by_ffcv():
    data = loaders.load("paradise-lost")
    with pytest.raises(InputError, match="a text is not augmented; accepted: augment=False"):
        loaders.MemoryLoader(data.test, 10, normalise=None, augment=True, generator=torch.Generator())
    with pytest.raises(InputError, match="'ffcv' takes images, paradise-lost is a text; accepted: memory"):
        loaders.make_loader(data, "test", 10, loader="ffcv", normalise=None)
    assert isinstance(loaders.make_loader(data, "test", 10, loader="auto", normalise=None), loaders.MemoryLoader)


def test_auto_takes_the_text_for_a_gpt(capsys):
    data = models.open_dataset("auto", "gpt")
    assert data.name == "paradise-lost" and models.normalisation("gpt") is None
    assert capsys.readouterr().out == "using paradise-lost, 7,100 windows of 64 characters of Milton's poem\n"
    tokens = models.example("gpt", 3)
    assert tokens.shape == (3, 64) and tokens.dtype == torch.int64 and tokens.min() >= 0 and tokens.max() < 65
