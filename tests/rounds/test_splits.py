"""How images are divided between clients."""

import pytest
import torch

from lib import rounds
from lib.checks import InputError

LABELS = torch.arange(10).repeat_interleave(100)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("how", ["iid", "dirichlet", "dirichlet(beta=0.1)", "classes(k=2)", "classes(k=3)"])
@pytest.mark.parametrize("clients", [2, 7, 10])
def test_every_image_has_at_most_one_client_and_the_seed_decides_which(how, clients):
    if how.startswith("classes") and clients == 2:
        pytest.skip("two clients of a few classes leave images that nobody has")
    parts = rounds.split(LABELS, how, clients, seed=3)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000)) or how.startswith("classes")
    assert len(torch.cat(parts).unique()) == sum(map(len, parts))
    assert all(torch.equal(part, part.sort().values) for part in parts)
    again, other = (rounds.split(LABELS, how, clients, seed) for seed in (3, 4))
    assert all(map(torch.equal, parts, again))
    assert not all(len(a) == len(b) and torch.equal(a, b) for a, b in zip(parts, other, strict=True))


def test_iid_parts_are_equal_and_alike():
    parts = rounds.split(LABELS, "iid", 8, seed=0)
    assert {len(part) for part in parts} == {125}
    assert all(torch.bincount(LABELS[part], minlength=10).min() > 0 for part in parts)


def test_dirichlet_leaves_each_client_ten_images_and_skews_more_the_smaller_beta_is():
    def most(beta):
        parts = [part for seed in range(5) for part in rounds.split(LABELS, f"dirichlet(beta={beta})", 8, seed)]
        assert min(map(len, parts)) >= 10
        shares = [torch.bincount(LABELS[part], minlength=10) / len(part) for part in parts]
        return sum(share.max() for share in shares) / len(shares)

    assert most(0.1) > most(0.5) + 0.1 > most(50.0) + 0.2


@pytest.mark.parametrize(("clients", "k"), [(5, 2), (10, 2), (4, 3), (3, 10)])
def test_by_classes_each_client_has_k_of_them(clients, k):
    parts = rounds.split(LABELS, f"classes(k={k})", clients, seed=1)
    counts = torch.stack([torch.bincount(LABELS[part], minlength=10) for part in parts])
    assert (counts > 0).sum(1).tolist() == [k] * clients
    if clients * k >= 10:
        assert counts.sum(0).tolist() == [100] * 10


def test_a_split_is_recorded_with_its_defaults_and_another_is_refused():
    assert rounds.read_split("dirichlet") == rounds.read_split("dirichlet( beta = 0.5 )") == "dirichlet(beta=0.5)"
    assert rounds.read_split("iid") == "iid"
    with pytest.raises(InputError, match="unknown split 'even'; accepted: iid, dirichlet, classes"):
        rounds.read_split("even")
    with pytest.raises(InputError, match="k 11 is not accepted"):
        rounds.split(LABELS, "classes(k=11)", 5, seed=0)
    with pytest.raises(InputError, match="fewer than two"):
        rounds.split(LABELS[:6], "iid", 5, seed=0)
    with pytest.raises(InputError, match="beta 0.001 leaves one of 20 parts"):
        rounds.split(torch.zeros(200, dtype=torch.int64), "dirichlet(beta=0.001)", 20, seed=0)
