"""lib.paper.coverage: what is said of the intervals was measured, and can be measured again."""

import re

import pytest

from lib.paper import coverage, evidence
from lib.paths import ROOT
from lib.records import read_record


def test_the_command_writes_a_record_of_every_method_at_every_n(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "RESAMPLES", 99)
    monkeypatch.setattr(coverage, "SIZES", (3, 5))
    assert coverage.main(["--samples", "40", "--record", str(tmp_path / "c.json")]) == 0
    rows = read_record(tmp_path / "c.json")["rows"]
    assert {(row["distribution"], row["method"], row["n"]) for row in rows} == {
        (name, method, n) for name in coverage.DISTRIBUTIONS for method in coverage.METHODS for n in (3, 5)
    }
    found = {(row["distribution"], row["method"], row["n"]): row["covered"] for row in rows}
    assert found["normal", "t", 3] > 0.85
    # of three values the bootstrap's ranges hold the mean in 75 % of the samples at most, but for chance
    assert found["normal", "bootstrap (BCa)", 3] < 0.85


def test_a_number_of_samples_that_is_none_is_one_line(capsys, tmp_path):
    assert coverage.main(["--samples", "0", "--record", str(tmp_path / "c.json")]) == 2
    assert capsys.readouterr().err == "samples 0 is not accepted; accepted: a whole number of at least 1\n"


def test_the_docstring_of_the_intervals_says_what_the_record_holds():
    rows = read_record(ROOT / "data" / "results" / "coverage.json")["rows"]
    words = {"t": "t", "percentile": "bootstrap (percentile, expanded)", "BCa": "bootstrap (BCa)"}
    lines = re.findall(r"^ +(t|percentile|BCa) +([\d. ]+)$", evidence.mean_interval.__doc__, re.MULTILINE)
    assert len(lines) == 6
    for (method, shown), distribution in zip(lines, ["normal"] * 3 + ["exponential"] * 3, strict=True):
        alike = [r for r in rows if (r["method"], r["distribution"]) == (words[method], distribution)]
        measured = [100 * row["covered"] for row in sorted(alike, key=lambda row: row["n"])]
        assert [float(value) for value in shown.split()] == pytest.approx(measured, abs=0.051)
