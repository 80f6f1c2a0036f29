"""The verbs in a notebook of one's own: from two networks to a record and its figure."""

import pytest
import torch
from torch import nn

import lib
from lib import records
from lib.checks import InputError


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def curves():
    networks = [network(0), network(1)]
    x = torch.randn(80, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    test = [(x, networks[0](x).argmax(1))]
    groups = lib.trace(networks[0], x[:2])
    paths = []
    for matcher in ("none", "activation(tap=pre_norm)"):
        maps = lib.match(networks, groups, matcher, images=x, progress=False)
        aligned = lib.align(networks, groups, maps, names=["first", "second"])
        paths.append(lib.curve(aligned, [0, 0.5, 1], test=test, progress=False))
    paths.append(lib.curve(aligned, [0, 0.5, 1], test=test, correction="repair", images=x, progress=False))
    return paths


def test_a_record_of_ones_own_is_read_back_and_drawn(curves, tmp_path):
    lib.record(curves, dataset="noise", experiment="mine", path=tmp_path / "mine.json", note="a try")
    again = records.read_record(tmp_path / "mine.json")
    assert [(c["matcher"], c["correction"]) for c in again["curves"]] == [
        ("none", "none"),
        ("activation(tap=pre_norm)", "none"),
        ("activation(tap=pre_norm)", "repair"),
    ]
    assert again["checkpoints"]["a"]["file"] == "first" and len(again["checkpoints"]["b"]["sha256"]) == 64
    assert again["parents"]["a"]["test_accuracy"] == 1 == again["curves"][0]["points"][0]["test_accuracy"]
    assert again["provenance"]["parameters"] == {"note": "a try"}
    arrays = records.read_arrays(tmp_path / "mine.json")
    assert arrays["perm/activation(tap=pre_norm)/1"].shape == (16,)
    figure = lib.draw(again)
    assert "noise" in figure.get_suptitle()
    assert len(figure.axes[0].lines) >= 3
    with pytest.raises(InputError, match="curves"):
        lib.draw(again, kind="recovery")


def test_what_is_no_record_of_a_pair_is_refused_in_one_line(curves):
    for given in ([], [curves[0].points]):
        with pytest.raises(InputError, match="a list of one or more curves"):
            lib.record(given, dataset="noise")
    networks = [network(0), network(2)]
    x = torch.randn(8, 1, 6, 6)
    groups = lib.trace(networks[0], x)
    aligned = lib.align(networks, groups, [groups.identity()] * 2)
    other = lib.curve(aligned, [0.5], test=[(x, torch.zeros(8, dtype=torch.long))], progress=False)
    with pytest.raises(InputError, match="of different networks"):
        lib.record([curves[0], other], dataset="noise")


def test_a_record_of_three_networks_holds_a_row_a_point_with_its_shares_and_is_drawn(tmp_path):
    networks = [network(seed) for seed in range(3)]
    x = torch.randn(80, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    test = [(x, networks[0](x).argmax(1))]
    groups = lib.trace(networks[0], x[:2])
    paths = []
    for matcher in ("none", "activation"):
        maps = lib.match(networks, groups, matcher, images=x, progress=False)
        aligned = lib.align(networks, groups, maps, names=["first", "second", "third"])
        paths.append(lib.curve(aligned, [0, 0.5, 1], test=test, progress=False))
    paths.append(lib.curve(aligned, [0, 1], test=test, line=([0, 1, 0], [0, 0, 1]), progress=False))
    lib.record(paths, dataset="noise", path=tmp_path / "three.json")
    again = records.read_record(tmp_path / "three.json")
    assert [row["file"] for row in again["checkpoints"].values()] == ["first", "second", "third"]
    assert list(again["parents"]) == list(again["checkpoints"]) == ["a", "b", "c"]
    assert [(row["curve"], row["matcher"], row["alpha"]) for row in again["rows"]] == [
        *((0, "none", alpha) for alpha in (0, 0.5, 1)),
        *((1, "activation", alpha) for alpha in (0, 0.5, 1)),
        *((2, "activation", alpha) for alpha in (0, 1)),
    ]
    for row, point in zip(again["rows"], (p for path in paths for p in path.points), strict=True):
        assert row["n"] == 3 and row["shares"] == pytest.approx(point["shares"])
        assert row["test_accuracy"] == point["test_accuracy"]
    assert again["rows"][0]["test_accuracy"] == 1 == again["parents"]["a"]["test_accuracy"]
    figure = lib.draw(again)
    assert "noise, one set of networks (n = 1)" in figure.get_suptitle().replace("\xa0", " ")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "no matching: 1 / 0 / 0 to 0.33 / 0.33 / 0.33" in labels and "activations: 0 / 1 / 0 to 0 / 0 / 1" in labels
    accuracy = [100 * point["test_accuracy"] for point in paths[1].points]
    assert any(
        line.get_ydata() == pytest.approx(accuracy) for line in figure.axes[0].lines if len(line.get_xdata()) == 3
    )
