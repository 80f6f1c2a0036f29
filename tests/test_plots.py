"""lib.plots: figures name data set and n, files come in whole pairs, records alone rebuild them all."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_results import curve, pair, provenance

from lib import plots, results
from lib.paths import ROOT

VGG = {"name": "vgg11", "width": 0.125, "norm": "batch"}
THREE = (
    curve("none", (0.75, 0.1, 0.74)),
    curve("activation", (0.75, 0.3, 0.74)),
    curve("activation", (0.75, 0.6, 0.74), correction="bn_reset"),
)


def vgg(width=0.125, middle=0.6, dataset="cifar10-jpeg", **extra):
    curves = (*THREE[:2], curve("activation", (0.75, middle, 0.74), correction="bn_reset"))
    kind = {"experiment": "vgg11_cifar10", "model": VGG | {"width": width}, "dataset": dataset}
    return pair(*curves, **kind, **extra)


def arrays():
    generator = np.random.default_rng(0)
    found = {}
    for group, size in (("features.0", 8), ("features.4", 16)):
        found[f"perm/activation/{group}"] = generator.permutation(size)
        for matcher, level in (("activation", 0.5), ("none", 0.0)):
            found[f"corr/{matcher}/{group}"] = level + 0.1 * generator.normal(size=size)
    return found


def study_rows():
    scaling = [
        {"study": "scaling", "model": "vgg11", "width": w, "solver": s, "seconds": w, "peak_bytes": 1e6 * w}
        | {"dense_bytes": 1e12 * w**4}
        for w in (0.125, 0.25)
        for s in ("graph", "spectral")
    ]
    recovery = [
        {"study": "recovery", "model": "simplenet", "width": 1.0, "solver": s, "noise": noise, "seed": seed}
        | {"recovered": 1 / (1 + noise)}
        for noise in (0, 2, 4)
        for s in ("graph", "a new solver")
        for seed in (0, 1)
    ]
    objective = [
        {"study": "objective", "model": "simplenet", "width": 1.0, "solver": "graph", "objective": o}
        | {"test_accuracy": o / 2}
        for o in (1.0, 1.5)
    ]
    return scaling + recovery + objective


def study(dataset="mnist-5k"):
    kind = {"experiment": "graph_matching_scaling", "preset": "quick", "dataset": dataset}
    return results.record(**kind, rows=study_rows(), provenance=provenance())


def words(figure):
    found = " ".join(text.get_text() for text in figure.findobj(Text))
    return found.replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")


def rows_of(name):
    return [row for row in study_rows() if row["study"] == name]


FIGURES = {
    "curve": lambda: plots.curve(vgg()),
    "curves": lambda: plots.curves(vgg()),
    "matching": lambda: plots.record_figures(vgg(), arrays())["matching_activation"],
    "correlations": lambda: plots.correlations(arrays(), vgg()),
    "bn_images": lambda: plots.bn_images_study(
        [{"matcher": "activation", "images": n, "test_accuracy": 0.5} for n in (0, 10, 100)], vgg()
    ),
    "leaderboard": lambda: plots.leaderboard(results.leaderboard_rows(vgg())),
    "scaling": lambda: plots.scaling(rows_of("scaling"), study("cifar10-jpeg")),
    "recovery": lambda: plots.recovery(rows_of("recovery"), study("cifar10-jpeg")),
    "objective": lambda: plots.objective_accuracy(rows_of("objective"), study("cifar10-jpeg")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_names_its_data_set_and_n(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert "cifar10-jpeg" in words(figure)
    assert "n = " in words(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_of_a_figure_is_cut_off(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    page = figure.bbox
    # Tick labels beyond an axis' limits exist, unplaced, and are never drawn.
    axis = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = {tick.label1 for a in axis for tick in (*a.get_major_ticks(), *a.get_minor_ticks())}
    for text in figure.findobj(Text):
        if text not in ticks and text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text.get_text()
            assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text.get_text()


def solid(axes):
    """Data lines of a curve panel: those with one point per alpha, horizontal end points left out."""
    return [line for line in axes.lines if len(line.get_xdata()) == 3]


def test_one_line_a_curve_and_two_dashed_end_points():
    figure = plots.curve(vgg())
    (axes,) = figure.axes
    lines = solid(axes)
    assert len(lines) == 3
    np.testing.assert_allclose(lines[2].get_ydata(), [75, 60, 74])
    ends = [line for line in axes.lines if line not in lines]
    assert sorted(float(line.get_ydata()[0]) for line in ends) == [82, 84]
    assert all(line.get_linestyle() == "--" for line in ends)
    assert "share of network B" in axes.get_xlabel() and axes.get_ylabel() == "test accuracy (%)"


def test_matchers_differ_in_colour_and_marker_and_corrections_in_dashes():
    none, matched, reset = solid(plots.curve(vgg()).axes[0])
    assert none.get_color() != matched.get_color() == reset.get_color()
    assert none.get_marker() != matched.get_marker() == reset.get_marker()
    assert matched.get_linestyle() == "-" and reset.get_linestyle() == "--"
    looks = list(plots.MATCHER_STYLE.values())
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(looks) == 7
    assert len({str(line) for line in plots.CORRECTION_LINE.values()}) == 6


def test_loss_stands_beside_accuracy():
    accuracy, loss = plots.curves(vgg()).axes
    assert accuracy.get_ylabel() == "test accuracy (%)"
    assert loss.get_ylabel() == "test cross-entropy (nats)"
    assert len(solid(accuracy)) == len(solid(loss)) == 3


def test_many_curves_get_a_panel_per_correction():
    corrections = ("none", "bn_reset", "repair")
    matchers = ("none", "activation", "weight")
    record = pair(*(curve(m, (0.8, 0.5, 0.8), correction=c) for m in matchers for c in corrections))
    figure = plots.curve(record)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["no correction", "BN reset", "REPAIR"]
    assert all(len(solid(axes)) == 3 for axes in figure.axes)


def test_an_unmeasured_metric_is_called_so():
    figure = plots.curve(vgg(), metric="train_loss")
    assert solid(figure.axes[0]) == []
    assert "not measured" in words(figure)


def test_several_pairs_draw_the_mean_and_a_band():
    figure = plots.curve([vgg(middle=0.5), vgg(middle=0.7)])
    line = solid(figure.axes[0])[2]
    np.testing.assert_allclose(line.get_ydata(), [75, 60, 74])
    assert len(figure.axes[0].collections) == 3
    assert "n = 2" in words(figure)


def test_published_values_are_hollow_markers_where_they_apply():
    record = pair(curve("graph_reference", (0.84, 0.54, 0.84)), dataset="mnist")
    figure = plots.record_figures(record)["curves"]
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 1
    np.testing.assert_allclose(hollow[0].get_ydata()[5], 53.74)
    assert "published" in words(figure)
    other = plots.record_figures(pair(curve("graph_reference", (0.84, 0.54, 0.84))))["curves"]
    assert "published values" not in words(other)


def test_matching_matrix_marks_each_unit_in_its_block():
    perms = {"conv1": np.array([1, 0, 2]), "fc1": np.array([0, 2, 1])}
    figure = plots.matching_matrix(perms, pair(), "graph")
    (axes,) = figure.axes
    dots = [np.column_stack(line.get_data()).tolist() for line in axes.lines]
    assert dots == [[[1.5, 0.5], [0.5, 1.5], [2.5, 2.5]], [[3.5, 3.5], [5.5, 4.5], [4.5, 5.5]]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["conv1 (3)", "fc1 (3)"]
    soft = {name: np.eye(3) for name in perms}
    assert len(plots.matching_matrix(perms, pair(), "graph", soft).axes) == 2


def test_leaderboard_prints_each_value_in_its_cell_and_the_references():
    references = {"ensemble": {"test_accuracy": 0.767, "test_loss": 0.7}}
    figure = plots.leaderboard(results.leaderboard_rows(vgg(references=references)))
    shown = words(figure)
    assert all(number in shown for number in ("10.0", "30.0", "60.0", "76.7", "84.0", "82.0"))
    assert "ensemble" in shown and "BN reset" in shown


def test_width_barrier_has_a_point_per_pair_and_the_mean_line():
    records = [vgg(0.125, 0.5), vgg(0.125, 0.6), vgg(0.25, 0.7)]
    figure = plots.width_barrier(records)
    shown = words(figure)
    assert "×1/8 n = 2" in shown and "×1/4 n = 1" in shown and "cifar10-jpeg" in shown
    lines = figure.axes[0].lines
    means = next(line for line in lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 2)
    np.testing.assert_allclose(means.get_ydata(), [100 * (0.745 - 0.55), 100 * (0.745 - 0.7)])
    assert max(len(line.get_xdata()) for line in lines) == 3
    with pytest.raises(ValueError, match="one data set"):
        plots.width_barrier([vgg(), vgg(dataset="cifar10")])


def test_an_unknown_solver_always_looks_the_same():
    assert plots._look(plots.SOLVER_STYLE, "a new solver") == plots._look(plots.SOLVER_STYLE, "a new solver")


def test_network_graph_averages_to_a_network_that_keeps_its_weights_only_when_matched():
    figure = plots.network_graph()
    widths = {axes.get_title(): sum(line.get_linewidth() for line in axes.lines) for axes in figure.axes if axes.lines}
    a, unmatched, matched = (
        next(width for title, width in widths.items() if part in title)
        for part in ("network A", "as they are", "after matching")
    )
    assert unmatched < 0.85 * a
    assert matched > 0.97 * a


# Files


def test_a_figure_is_saved_as_png_and_pdf_with_truetype_fonts(tmp_path):
    png, pdf = plots.save_figure(plots.curve(vgg()), "figure", tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == ["figure.pdf", "figure.png"]
    assert png.read_bytes().startswith(b"\x89PNG")
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    assert b"/FontFile2" in data and b"/Type3" not in data
    assert b"CreationDate" not in data


def test_the_same_figure_is_the_same_bytes_later(tmp_path):
    one = plots.save_figure(plots.curve(vgg()), "one", tmp_path)
    time.sleep(1.1)  # dates in files count in seconds
    two = plots.save_figure(plots.curve(vgg()), "two", tmp_path)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_no_half_pair_is_left_when_saving_fails(tmp_path, monkeypatch):
    figure = plots.curve(vgg())
    save = figure.savefig

    def failing(path, *, format, **options):
        if format == "pdf":
            raise OSError("No space left on device")
        save(path, format=format, **options)

    monkeypatch.setattr(figure, "savefig", failing)
    with pytest.raises(OSError, match="No space"):
        plots.save_figure(figure, "figure", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_figure_shows_itself_in_a_notebook_and_changes_no_global_style():
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert plots.curve(vgg())._repr_png_().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_command_rebuilds_every_figure_from_a_folder_of_records(tmp_path, capsys):
    folder, figures = tmp_path / "results", tmp_path / "figures"
    bn_images = [{"matcher": "activation", "images": n, "test_accuracy": 0.5} for n in (0, 10, 100)]
    results.write_record(folder / "vgg_a.json", vgg(studies={"bn_images": bn_images}), arrays())
    results.write_record(folder / "vgg_b.json", vgg(0.25))
    results.write_record(folder / "simple.json", pair())
    results.write_record(folder / "board.json", pair(experiment="leaderboard"))
    results.write_record(folder / "study.json", study())
    results.write_record(folder / "new.json", pair(experiment="something_new"))
    assert plots.main(["--results", str(folder), "--figures", str(figures)]) == 0
    expected = ["network_graph", "simple_curves", "vgg_a_curves", "vgg_a_matching_activation", "vgg_b_curves"]
    expected += [
        "vgg_a_correlations",
        "vgg_a_bn_images",
        "study_scaling",
        "study_recovery",
        "study_objective",
    ]
    expected += ["leaderboard", "vgg11_cifar10_cifar10_jpeg_widths"]
    tables = ["simple", "vgg_a", "vgg_b", "leaderboard", "vgg11_cifar10_cifar10_jpeg_widths"]
    files = {f"{stem}.{kind}" for stem in expected for kind in ("png", "pdf")} | {f"{t}.tex" for t in tables}
    assert set(os.listdir(figures)) == files
    tex = (figures / "simple.tex").read_text()
    assert "mnist-5k" in tex and r"\toprule" in tex
    out, err = capsys.readouterr()
    assert out.count("wrote ") == len(files)
    assert "something_new" in err


def test_command_skips_a_broken_record_with_a_line_and_says_so_in_its_exit_code(tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{")
    results.write_record(tmp_path / "simple.json", pair())
    assert plots.main(["--results", str(tmp_path), "--figures", str(tmp_path / "figures")]) == 1
    assert "broken.json: not a run record" in capsys.readouterr().err
    assert (tmp_path / "figures" / "simple_curves.pdf").is_file()


def test_rebuilding_figures_does_not_need_torch():
    code = "import sys; import lib.plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_readme_shows_what_the_tracked_records_hold():
    text = (ROOT / "README.md").read_text()
    start, end = plots.README_MARKERS
    shown = text.split(start)[1].split(end)[0].strip()
    assert shown == results.readme_table(results.read_records(ROOT / "data" / "results"))
