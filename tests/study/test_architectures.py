"""The list of architectures: small ones are traced and proved, what is refused says why."""

import json
import sys

import pytest
from torch import nn

from lib import paths
from lib.paper import figures
from lib.study import architectures

SMALL = ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["architectures", *map(str, arguments)])
    return architectures.main()


class Ranked(nn.Module):
    """Its units in the order of their values."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Linear(3, 8)

    def forward(self, x):
        return self.units(x.mean(dim=(2, 3))).sort(dim=1).values


def test_small_architectures_are_proved_and_what_has_no_rule_is_refused_by_name(tmp_path, monkeypatch, capsys):
    build = architectures.LIBRARIES["torchvision"]
    monkeypatch.setitem(
        architectures.LIBRARIES, "torchvision", lambda name: (Ranked(), 64) if name == "swin_t" else build(name)
    )
    assert run(monkeypatch, *SMALL, "swin_t", "--record", tmp_path / "list.json") == 0
    record = json.loads((tmp_path / "list.json").read_text())
    rows = {row["model"]: row for row in record["rows"]}
    assert list(rows) == [*SMALL, "swin_t"]
    for name in SMALL:
        row = rows[name]
        assert row["refused"] is None
        assert row["change"] < 1e-9 < 1e-6 < row["sensitivity"]
        assert (row["way"], row["unseen"]) == ("torch.fx", [])
    assert {name: rows[name]["units"] for name in SMALL[:2]} == {"squeezenet1_1": 2944, "shufflenet_v2_x0_5": 2938}
    assert "sort" in rows["swin_t"]["refused"]
    printed = capsys.readouterr().out
    assert "4 of 5 proved" in printed
    assert all(name in printed for name in rows)
    (word, figure), *others = figures.record_figures(record).items()
    assert (word, others) == ("architectures", [])
    assert [axes.get_title("left") for axes in figure.axes] == ["torchvision: 4 of 5 proved"]


def test_the_list_holds_every_classification_model_of_torchvision():
    listed = architectures.known()["torchvision"]
    assert len(listed) >= 80
    assert {"resnet18", "convnext_tiny", "vit_b_16", "maxvit_t"} <= set(listed)


def test_an_unknown_model_is_one_line(monkeypatch, capsys):
    assert run(monkeypatch, "resnet19") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: unknown model torchvision/resnet19; accepted: ")


@pytest.mark.parametrize("limit", ["SECONDS", "MEMORY"])
def test_what_takes_too_long_to_build_or_too_much_memory_is_left_out(limit, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(architectures, limit, 0.0)
    assert run(monkeypatch, "squeezenet1_1", "--record", tmp_path / "list.json") == 2
    assert not (tmp_path / "list.json").exists()


def test_the_record_says_what_is_left_out(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(architectures, "MEMORY", 2e6 * architectures.BYTES)  # squeezenet has 1.2 million parameters
    assert run(monkeypatch, "squeezenet1_1", "shufflenet_v2_x1_0", "--record", tmp_path / "list.json") == 0
    record = json.loads((tmp_path / "list.json").read_text())
    assert [row["model"] for row in record["rows"]] == ["squeezenet1_1"]
    assert record["provenance"]["parameters"]["left_out"] == ["torchvision/shufflenet_v2_x1_0"]
    assert "to prove: torchvision/shufflenet_v2_x1_0\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["convnextv2_atto", "ghostnet_050", "tf_efficientnetv2_b0", "nfnet_f0"])
def test_timm(name):
    pytest.importorskip("timm")
    row = architectures.examined("timm", name)
    assert row["refused"] is None
    assert row["unseen"] == []


def test_the_tracked_record_proves_all_but_one_whose_attention_is_cached():
    record = json.loads((paths.ROOT / "data/results/architectures.json").read_text())
    refused = {row["model"] for row in record["rows"] if row["refused"]}
    assert refused <= {"levit_128s"}
    assert sum(row["library"] == "timm" for row in record["rows"]) >= 16
    assert {"vit_b_16", "swin_t", "swin_v2_t", "maxvit_t"} <= {row["model"] for row in record["rows"]}
