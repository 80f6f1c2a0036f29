"""lib.paper: records alone rebuild every figure and table, the same bytes each time, and sweeps are pooled."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lib import paths
from lib.batch import run as batch
from lib.checks import InputError
from lib.paper import evidence, figures, redraw, style, tables, write
from lib.paper.names import curve_label
from lib.paths import ROOT
from lib.records import run_record, write_record
from tests.paper.test_plots import arrays, study, vgg, words
from tests.records.test_results import curve, pair, provenance

FITTED = curve("activation", (0.75, 0.7, 0.74), correction="least_squares")


@pytest.fixture
def folder(tmp_path):
    """A results folder: pairs of two kinds, one with arrays and a study, a leaderboard, a sweep, and a local run."""
    place = tmp_path / "results"
    bn_images = [{"matcher": "activation", "images": n, "test_accuracy": 0.5} for n in (0, 10, 100)]
    write_record(place / "vgg_s0.json", vgg(studies={"bn_images": bn_images}), arrays())
    write_record(place / "vgg_s2.json", vgg(middle=0.5, index=1), arrays())
    write_record(place / "wide_s0.json", vgg(0.25))
    write_record(place / "simple.json", pair())
    references = {"ensemble": {"test_accuracy": 0.9}}
    write_record(place / "board_s0.json", pair(experiment="leaderboard", controls=references))
    write_record(place / "study.json", study())
    for width in (0.125, 0.25):
        for i, middle in enumerate((0.5, 0.6, 0.65)):
            write_record(place / "widths" / f"w{width}_s{2 * i}.json", vgg(width, middle, index=i))
    write_record(place / "local" / "mine.json", pair())
    return place


def run(folder, figures):
    return write.main([str(folder), "--figures", str(figures)])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are drawn and not rendered, which is what takes the time: their files hold their words."""

    def save(figure, stem, folder, kinds):
        return tuple(tables.write_text(words(figure), folder / f"{stem}.{kind}") for kind in kinds)

    monkeypatch.setattr(style, "save_figure", save)


def test_command_rebuilds_every_figure(folder, tmp_path, capsys, unrendered):
    figures = tmp_path / "figures"
    assert run(folder, figures) == 0
    both = ["simple_curves", "vgg_s0_curves", "vgg_s0_correlations", "vgg_curves", "wide_s0_curves", "study_recovery"]
    both += ["widths_w0.125_curves", "widths_w0.25_curves", "widths_widths"]
    drawn = [*both, "network_graph", "vgg_s0_matching_activation", "vgg_s0_bn_images", "study_scaling"]
    drawn += ["study_objective", "leaderboard", "widths_differences"]
    narrow = [*both, "leaderboard_SimpleNet-mnist-5k", "widths_0.125_differences", "widths_0.25_differences"]
    texts = ["simple", "vgg", "wide", "leaderboard", "widths", "widths_widths"]
    files = {f"{stem}.{kind}" for stem in drawn for kind in ("png", "pdf")} | {f"{stem}.tex" for stem in texts}
    files |= {f"{stem}_column.pdf" for stem in narrow}
    files |= {"results.md", "index.txt", ".drawn.json"}
    assert set(os.listdir(figures)) == files
    assert capsys.readouterr().out.count("wrote ") == len(files) - 1
    assert "n = 3" in (figures / "widths_w0.125_curves.png").read_text()
    assert "n = 1" in (figures / "vgg_s0_curves.png").read_text()


def test_figures_of_a_run_go_into_its_own_folder(tmp_path, unrendered):
    run_folder = tmp_path / "local" / "simplenet_mnist_s4"
    write_record(run_folder / "simplenet_mnist.json", pair())
    assert write.main([str(run_folder)]) == 0
    assert {"simplenet_mnist.tex", "simplenet_mnist_curves.pdf", "results.md"} <= set(os.listdir(run_folder))


def test_a_notebook_and_make_figures_write_the_same_table(tmp_path, unrendered):
    """What the last cell of a notebook calls, and the command on the run's folder."""
    record = pair(curve("graph_reference", (0.84, 0.5, 0.82)), controls={"ensemble": {"test_accuracy": 0.9}})
    folder = tmp_path / "local" / "simplenet_mnist_s4"
    path = folder / "simplenet_mnist.json"
    calls = set()
    for name in ("simplenet_mnist", "vgg11_cifar10", "transformer_fusion"):
        source = (paths.NOTEBOOKS / f"{name}.ipynb").read_text()
        assert "from lib.paper.names import curve_label" in source
        calls |= set(re.findall(r"print\((tables\.save_table\(.*)\)\\n", source))
    (call,) = calls
    run = SimpleNamespace(results_path=path, figures_dir=folder)
    written = eval(call, {"tables": tables, "record": record, "curve_label": curve_label, "run": run})
    by_notebook = written.read_bytes()
    assert b"graph, as published" in by_notebook and b"{tab:simplenet-mnist-s4}" in by_notebook
    write_record(path, record)
    written.unlink()
    assert write.main([str(folder)]) == 0
    assert written.read_bytes() == by_notebook


def sweep_folder(place):
    """Records of a sweep with what make sweep leaves beside them."""
    for seed in (0, 2):
        write_record(place / f"mlp_s{seed}.json", pair(seeds={"a": seed, "b": seed + 1, "match": 0}))
    (place / "logs").mkdir()
    (place / ".snakemake").mkdir()
    for name in ("logs/runs.json", "logs/mlp_s0.report.json", ".snakemake/state.json"):
        (place / name).write_text("{}")
    return place


def test_a_folder_is_drawn_twice_and_the_second_time_nothing_anew(tmp_path, capsys):
    place = sweep_folder(tmp_path / "local" / "a_sweep")
    assert write.main([str(place)]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in place.glob("*.p*")}
    assert write.main([str(place)]) == 0
    assert capsys.readouterr().err == ""
    assert before and before == {path.name: path.stat().st_mtime_ns for path in place.glob("*.p*")}


def test_of_local_runs_each_is_drawn_into_its_own_folder(tmp_path, capsys, unrendered):
    local = tmp_path / "local"
    sweep_folder(local / "a_sweep")
    for seed in (0, 2):
        write_record(local / f"simplenet_mnist_s{seed}" / "simplenet_mnist.json", pair())
    (local / "explore").mkdir()
    for _ in range(2):
        assert write.main([str(local)]) == 0
        assert capsys.readouterr().err == ""
    texts = {path.relative_to(local).as_posix(): path.read_text() for path in local.rglob("*.tex")}
    assert set(texts) == {"a_sweep/mlp.tex", *(f"simplenet_mnist_s{seed}/simplenet_mnist.tex" for seed in (0, 2))}
    assert len({re.search(r"\\label\{(.*)\}", text)[1] for text in texts.values()}) == 3
    assert not [path for path in local.iterdir() if path.is_file()]
    assert write.main([str(local), "--figures", str(tmp_path / "elsewhere")]) == 0
    assert set(os.listdir(tmp_path / "elsewhere")) == {"a_sweep", "simplenet_mnist_s0", "simplenet_mnist_s2"}


def test_studies_without_curves_in_a_sweep_stop_nothing(folder, tmp_path, unrendered):
    for place in ("studies", "widths"):
        write_record(folder / place / "study.json", study())
    assert run(folder, tmp_path / "figures") == 0
    assert "6 pairs" in (tmp_path / "figures" / "widths_widths.pdf").read_text()
    assert "no data set" not in (tmp_path / "figures" / "widths.tex").read_text()
    write_record(tmp_path / "alone" / "study.json", study())
    assert run(tmp_path / "alone", tmp_path / "other") == 0
    assert (tmp_path / "other" / "results.md").read_text().splitlines()[1].count("---") == 15


def test_the_same_records_give_the_same_bytes(tmp_path):
    place = tmp_path / "results"
    for i, middle in enumerate((0.5, 0.6, 0.65, 0.62, 0.58)):
        write_record(place / "sweep" / f"s{2 * i}.json", vgg(middle=middle, index=i))
    once, twice = (tmp_path / folder / "drawn" for folder in ("once", "twice"))  # labels name the folder
    assert run(place, once) == 0
    evidence._mean_interval.cache_clear()
    assert run(place, twice) == 0
    assert contents(once) == contents(twice) and "sweep_curves_column.pdf" in contents(once)


def test_only_what_changed_is_drawn_again(tmp_path, monkeypatch):
    place, made = tmp_path / "results", tmp_path / "figures"
    write_record(place / "simple.json", pair())
    write_record(place / "sweep" / "s0.json", vgg(index=0))
    assert run(place, made) == 0

    def touched():
        before = {path.name: path.stat().st_mtime_ns for path in made.glob("*.p*")}
        assert run(place, made) == 0
        return {path.name for path in made.glob("*.p*") if before.get(path.name) != path.stat().st_mtime_ns}

    assert touched() == set()
    write_record(place / "sweep" / "s2.json", vgg(middle=0.7, index=1))
    assert touched() == {"sweep_curves.png", "sweep_curves.pdf", "sweep_curves_column.pdf"} | {
        f"sweep_differences{end}" for end in (".png", ".pdf", "_column.pdf")
    }
    (made / "simple_curves.pdf").write_bytes(b"spoiled")
    (made / "network_graph.png").unlink()
    assert touched() == {"simple_curves.png", "simple_curves.pdf", "network_graph.png", "network_graph.pdf"}
    monkeypatch.setattr(redraw, "_code", lambda: "other code")
    assert touched() >= {"simple_curves.png", "sweep_curves.png", "network_graph.png"}


def test_what_no_record_makes_any_more_goes_and_what_is_not_ours_stays(folder, tmp_path, unrendered):
    figures = tmp_path / "figures"
    run(folder, figures)
    (figures / "my_own.png").write_text("x")
    for path in (folder / "simple.json", folder / "board_s0.json"):
        path.unlink()
    (folder / "broken.json").write_text("{")
    assert run(folder, figures) == 1
    assert (figures / "simple_curves.pdf").is_file()  # it may be the unreadable record's
    (folder / "broken.json").unlink()
    assert run(folder, figures) == 0
    left = set(os.listdir(figures))
    assert not left & {"simple_curves.pdf", "simple_curves.png", "simple.tex", "leaderboard.png", "leaderboard.tex"}
    assert {"my_own.png", "vgg_s0_curves.pdf"} <= left


def test_index_names_that_are_no_bare_file_names_are_left_alone(tmp_path, unrendered):
    (tmp_path / "kept.txt").write_text("x")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "index.txt").write_text("../kept.txt\n")
    run(tmp_path / "nothing", tmp_path / "figures")
    assert (tmp_path / "kept.txt").is_file()


def test_command_skips_a_broken_record_with_a_line_and_says_so_in_its_exit_code(tmp_path, capsys, unrendered):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "broken.json").write_text("{")
    write_record(tmp_path / "simple.json", pair())
    kind = {"experiment": "something_new", "preset": "quick", "dataset": None, "provenance": provenance()}
    write_record(tmp_path / "new.json", run_record.record(**kind, rows=[{"width": 1.0}]))
    assert run(tmp_path, tmp_path / "figures") == 1
    told = capsys.readouterr().err
    assert "broken.json: not a run record" in told and "new.json: nothing in it that a figure shows" in told
    assert (tmp_path / "figures" / "simple_curves.pdf").is_file()


def test_a_pair_that_shares_a_network_is_not_pooled_and_named():
    records = {"one": vgg(index=0), "other": vgg(index=1)}
    records["third"] = records["other"] | {"seeds": {"a": 3, "b": 9, "match": 0}}
    kept, told = write.independent(records)
    assert list(kept) == ["one", "other"]
    assert told == ["third: shares a network with other, not pooled"]


def test_pools_are_named_by_what_tells_them_apart():
    records = {"a": vgg(0.125), "b": vgg(0.25), "c": vgg(0.25, index=1)}
    assert {name: list(found) for name, found in write.pools("s", records).items()} == {
        "s_w0.125": ["a"],
        "s_w0.25": ["b", "c"],
    }
    assert list(write.pools("s", {"b": records["b"], "c": records["c"]})) == ["s"]


def test_pools_of_different_training_have_names_that_files_can_have():
    records = {"unknown": vgg(index=0)}
    for index, epochs in enumerate((10, 30), start=1):
        record = records[f"{epochs}"] = vgg(index=index)
        for checkpoint in record["checkpoints"].values():
            checkpoint["spec"] = {"recipe": {"epochs": epochs, "note": "long " * 30}}
    names = list(write.pools("s", records))
    assert len(set(names)) == 3 and names[0] == "s_trainingNone"
    assert all(re.fullmatch(r"s_training[0-9a-f]{8}", name) for name in names[1:])


def fitted(index, **changes):
    record = vgg(index=index) | changes
    return record | {"curves": [*record["curves"], FITTED]}


def test_the_full_table_shows_the_pool_with_most_pairs_and_the_published_weights():
    published = pair(curve("graph_reference", (0.84, 0.54, 0.84)), seeds={"a": None, "b": None, "match": 0})
    references = {"ensemble": {"test_accuracy": 0.8}}
    kinds = {
        "board": {f"board_s{i}": fitted(i, controls=references) for i in range(2)},
        "published": {"published": published},
        "own": {"own_s0": pair()},
    }
    sweeps = {"sweep": {f"s{i}": fitted(i, experiment="my_own") for i in range(5)}}
    rows = write.shown_rows(kinds, write.pooled_rows(kinds, sweeps))
    shown = [(row["records"], row["matcher"], row["correction"], row["n"]) for row in rows]
    assert shown == [
        ("published", "graph_reference", "none", 1),
        ("sweep", "activation", "bn_reset", 5),
        ("sweep", "activation", "least_squares", 5),
    ]


def of_rows(shas, seed=0, **parameters):
    """A record of rows, of these networks."""
    given = {"first_seed": seed, "results_path": f"{seed}.json"} | parameters
    record = run_record.record(
        experiment="many_networks", preset="quick", dataset="mnist", rows=[{"study": "many", "value": 1.0}],
        provenance=provenance(parameters=given),
    )  # fmt: skip
    return record | {"checkpoints": {f"s{i}": {"sha256": sha} for i, sha in enumerate(shas)}}


def test_records_of_rows_that_share_a_network_are_not_pooled():
    records = {"one": of_rows("ab"), "two": of_rows("bc", seed=1), "three": of_rows("cd", seed=2)}
    kept, lines = write.independent(records | {"other": of_rows("ab", matcher="graph")})
    assert list(kept) == ["one", "three", "other"]
    assert lines == ["two: shares a network with one, not pooled"]


def test_pairs_of_divided_classes_stand_under_their_own_name_beside_what_they_are_compared_with():
    fused, beside = (dict(zip(("matcher", "correction"), key, strict=True)) for key in write.SHOWN_SKEWED)
    curves = [curve(way["matcher"], (0.5,), (0.5,), correction=way["correction"]) for way in (fused, beside)]
    seen = {name: {"test_accuracy": 0.4} for name in (*write.CONTROLS_SKEWED, "distillation")}
    sweeps = {"alike": {f"s{i}": fitted(i, controls=seen) for i in range(5)}, "skewed": {}}
    for i in range(5):
        record = fitted(i, controls=seen)
        record["curves"] += curves
        record["provenance"]["parameters"]["skew"] = "halves"
        sweeps["skewed"][f"s{i}"] = record
    rows = write.shown_rows({}, write.pooled_rows({}, sweeps))
    skewed = [row for row in rows if row["architecture"].endswith(", halves")]
    assert [row["correction"] for row in skewed if "control" not in row] == [fused["correction"], beside["correction"]]
    assert {row["control"] for row in skewed if "control" in row} == set(write.CONTROLS_SKEWED)
    assert {row["records"] for row in rows if row not in skewed} == {"alike"}


def test_rebuilding_figures_does_not_need_torch_or_pandas():
    code = "import sys; from lib.paper import tables, write; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.fixture(scope="module")
def tracked():
    kinds, sweeps, _ = write.read(ROOT / "data" / "results")
    return kinds, sweeps, write.pooled_rows(kinds, sweeps)


def test_the_readme_has_its_rows_in_words(tracked):
    lines = write.readme_table(tracked[2]).splitlines()
    assert len(lines) == 2 + len(write.README_ROWS)
    cells = [line.strip("| ").split(" | ") for line in lines[2:]]
    assert [row[2].split()[0] for row in cells] == [
        "83.2", "91.8", "92.4", "87.3", "94.5", "53.0", "69.7", "69.0", "73.3", "61.1", "61.1", "59.7", "51.1",
        "77.7", "96.6", "95.9", "97.9",
    ]  # fmt: skip
    assert not any(sign in "".join(row[0] + row[1]) for row in cells for sign in "_`")


def test_only_the_repos_own_records_and_figures_reach_the_readmes(folder, tmp_path, monkeypatch, unrendered):
    written = []
    monkeypatch.setattr(write, "write_page", lambda path, *_: written.append(path.relative_to(ROOT).as_posix()))
    run(folder, tmp_path / "figures")
    assert written == []
    for name, page in (("README.md", "results"), ("figures/README.md", "results")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<!-- {page}: make figures writes this -->\n<!-- end of {page} -->\n")
    monkeypatch.undo()
    monkeypatch.setattr(style, "save_figure", lambda *_: ())
    for name, value in (("RESULTS", folder), ("FIGURES", tmp_path / "figures"), ("ROOT", tmp_path)):
        monkeypatch.setattr(write, name, value)
    run(folder, tmp_path / "figures")
    row = "| VGG11-BN ×1/8 | cifar10-jpeg | `activation` | `bn_reset` | 0 | 58.33 [39.36, 77.31] |"
    assert row in (tmp_path / "figures" / "README.md").read_text()


def test_a_figure_of_one_record_pools_no_interval(monkeypatch):
    def pooled(*_, **__):
        raise AssertionError("an interval of one pair")

    monkeypatch.setattr(evidence, "mean_interval", pooled)
    figures.record_figures(vgg(), arrays())
    str(tables.table(vgg()))
    with pytest.raises(AssertionError, match="of one pair"):
        figures.curves([vgg(), vgg(index=1)])


# The notebook that reads a sweep


def summarise(folder, tmp_path, monkeypatch, **parameters):
    monkeypatch.setenv("FUSEBOOK_RESULTS", str(tmp_path / "left"))
    given = {"results_dir": str(folder)} | parameters
    executed = batch.execute(paths.NOTEBOOKS / "sweep_summary.ipynb", given, tmp_path / "executed.ipynb")
    return executed.notebook.read_text()


def test_sweep_summary_counts_every_record_and_compares_methods(folder, tmp_path, monkeypatch, capsys):
    sweep = folder / "widths"
    fitted = vgg(0.25, 0.6, index=3)
    fitted["curves"].append(FITTED)
    write_record(sweep / "w0.25_s6.json", fitted)
    write_record(sweep / "w0.25_s7.json", vgg(0.25) | {"seeds": {"a": 7, "b": 8, "match": 0}})
    summarise(sweep, tmp_path, monkeypatch)
    told = capsys.readouterr().out
    assert "8 records" in told and "7 used" in told and "w0.25_s7 shares a network with w0.25_s6" in told
    assert "58.33  [39.36, 77.31]" in told and "1 of 4" in told and "minus that of activation + bn_reset" in told
    (place,) = (tmp_path / "left" / "local").iterdir()
    drawn = set(os.listdir(place))
    assert {"widths_widths.pdf", "widths_differences.png"} <= drawn


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"results_dir": "nowhere"}, "no run records in results_dir 'nowhere'"),
        ({"metric": "accuracy"}, "unknown metric 'accuracy'; accepted: .*test_accuracy"),
        ({"baseline": "graph"}, "unknown baseline 'graph'; accepted: none, activation"),
        ({"alpha": 0.4}, "nothing was measured at alpha 0.4; accepted: 0, .*0.5"),
    ],
)
def test_sweep_summary_refuses_bad_parameters_in_one_line(folder, tmp_path, monkeypatch, parameters, named):
    with pytest.raises(InputError, match=named):
        summarise(folder / "widths", tmp_path, monkeypatch, **parameters)


def test_a_folder_without_records_is_one_line_and_removes_nothing(folder, tmp_path, capsys, unrendered):
    figures = tmp_path / "figures"
    write.main([str(folder), "--figures", str(figures)])
    before = sorted(os.listdir(figures))
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    assert write.main([str(tmp_path / "empty"), "--figures", str(figures)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(os.listdir(figures)) == before
