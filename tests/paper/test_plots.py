"""lib.plots: figures name data set and n, fit a paper's columns with every label whole, and come in pairs of files."""

import inspect
import itertools
import os
import re
import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lib.checks import InputError
from lib.paper import drawing, evidence, figures, figures_many, figures_scaling, ladder, names, pool, style, tables
from lib.records import run_record
from lib.study import attention
from tests.records.test_results import curve, pair, provenance

VGG = {"name": "vgg11", "width": 0.125, "norm": "batch"}
THREE = (
    curve("none", (0.75, 0.1, 0.74)),
    curve("activation", (0.75, 0.3, 0.74)),
    curve("activation", (0.75, 0.6, 0.74), correction="bn_reset"),
)


def vgg(width=0.125, middle=0.6, dataset="cifar10-jpeg", index=0, **extra):
    curves = (*THREE[:2], curve("activation", (0.75, middle, 0.74), correction="bn_reset"))
    kind = {"experiment": "vgg11_cifar10", "model": VGG | {"width": width}, "dataset": dataset}
    return pair(*curves, seeds={"a": 2 * index, "b": 2 * index + 1, "match": 0}, **kind, **extra)


def sweep():
    """Three pairs at each of two widths."""
    return [vgg(w, m, index=i) for w in (0.125, 0.25) for i, m in enumerate((0.5, 0.6, 0.65))]


def board_rows():
    """Every matcher with every correction, on eight kinds of pairs, as the leaderboard has them."""
    matchers, corrections = list(names.MATCHERS), list(names.CORRECTIONS)
    best = {"alpha": 0.25, "held_out_accuracy": 0.7, "test_accuracy": 0.71, "test_loss": 0.9}
    curves = [
        curve(m, (0.75, 0.1 + 0.015 * i, 0.74), correction=c, best=best)
        for i, (m, c) in enumerate(itertools.product(matchers, corrections))
    ]
    models = [VGG | {"width": w, "norm": n} for w in (0.125, 0.25) for n in ("batch", None)]
    models += [{"name": name, "width": 0.5, "norm": None} for name in ("mlp", "simplenet")]
    models += [VGG | {"width": 0.125, "norm": "group"}, {"name": "mlp", "width": 0.5, "norm": "layer"}]
    metrics = {"test_accuracy": 0.767, "test_loss": 0.7}
    references = {"ensemble": metrics, "parent": metrics}
    kind = {"dataset": "cifar10-jpeg", "controls": references, "experiment": "leaderboard"}
    return pool.leaderboard_rows([pair(*curves, model=model, **kind) for model in models])


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
    return run_record.record(**kind, rows=study_rows(), provenance=provenance())


RUNGS = [f"{m}{rung}" for m in ("activation", "weight") for rung in attention.REACHES]


def climb(model="vit_mnist", index=0, dataset="cifar10-jpeg", shift=0.0, refitted=("least_squares",)):
    """A pair with all rungs at the midpoint."""
    curves = [
        curve(m, (0.2 + 0.04 * i + shift + 0.3 * (c != "none"),), (0.5,), correction=c)
        for i, m in enumerate(["none", *RUNGS])
        for c in ("none", *refitted)
    ]
    kind = {
        "experiment": "transformer_fusion",
        "dataset": dataset,
        "model": {"name": model, "width": 1.0, "norm": None},
    }
    return pair(*curves, seeds={"a": 2 * index, "b": 2 * index + 1, "match": 0}, **kind)


def climbs():
    """Three pairs of one kind, one of each of two others."""
    free = ("least_squares", "least_squares(heads=free)")
    pairs = [climb(index=i, shift=0.01 * i * i, refitted=free) for i in range(3)]
    return [*pairs, climb("vit_cifar"), climb("gpt", dataset="paradise-lost")]


def attention_arrays():
    generator = np.random.default_rng(0)
    found = {f"pattern/{side}/blocks.0.att.q": generator.random((4, 17, 17)) for side in "ab"}
    found["perm/activation/blocks.0.att.q"] = np.array([2, 0, 3, 1])
    found["perm/activation/blocks.0.att.q.qk[0]"] = np.arange(4)
    matchers = [m for m in ("none", *RUNGS) if "reach" not in m]
    return found | {f"stream/{m}/patch": generator.random((16, 16)) for m in matchers}


def words(figure):
    found = " ".join(text.get_text() for text in figure.findobj(Text))
    return found.replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")


def rows_of(name):
    return [row for row in study_rows() if row["study"] == name]


JPEG = {"dataset": "cifar10-jpeg"}
SEVEN = [f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)]
PERMS = {f"perm/activation/{group}": np.arange(8) for group in SEVEN}
CORRS = {f"corr/{m}/{group}": np.linspace(-0.2, 0.9, 8) for m in ("none", "activation") for group in SEVEN}
SOFT = {f"soft/activation/{group}": np.eye(8) for group in SEVEN}
MANY = [curve(m, (0.8, 0.5, 0.8), correction=c) for m in names.MATCHERS for c in names.CORRECTIONS]


def one_curve(records, metric="test_accuracy", columns=1, **options):
    return figures.curves(records, [metric], columns=columns, **options)


LONG = curve("activation", (0.75, 0.65, 0.74), correction="least_squares(units=side_by_side, target=competence)")


def skewed():
    """Three pairs at each of two widths for each division of the classes but one, and a method with a long name."""
    kinds = [(0.125, skew) for skew in ("dirichlet0.1", "dirichlet0.5", "halves")]
    kinds += [(0.25, skew) for skew in ("dirichlet0.1", "halves")]
    records = [
        vgg(width, 0.5 + 0.05 * i, index=i, provenance=provenance(parameters={"skew": skew}))
        for width, skew in kinds
        for i in range(3)
    ]
    return [record | {"curves": [*record["curves"], LONG]} for record in records]


def differences(columns, records=None):
    found = evidence.summary(pool.rows(records or sweep()), against="activation + bn_reset")
    return figures_many.differences(found, "activation + bn_reset", columns)


# Each by the number of columns it is drawn for.
FIGURES = {
    ("curve", 1): lambda: one_curve(vgg()),
    ("curve", 2): lambda: one_curve(vgg(), columns=2),
    ("pooled", 1): lambda: figures.curves(sweep()[:3], columns=1),
    ("pooled", 2): lambda: figures.curves(sweep()[:3]),
    ("crowded", 1): lambda: figures.curves(pair(*MANY, dataset="cifar10-jpeg"), columns=1),
    ("crowded", 2): lambda: figures.curves(pair(*MANY, dataset="cifar10-jpeg")),
    ("matching", 1): lambda: figures.record_figures(vgg(), PERMS)["matching_activation"],
    ("soft", 2): lambda: figures.record_figures(vgg(), PERMS | SOFT)["matching_activation"],
    ("correlations", 1): lambda: figures.correlations(CORRS, vgg(), columns=1),
    ("correlations", 2): lambda: figures.correlations(CORRS, vgg()),
    ("soft", 1): lambda: figures.matching_matrix(
        {group: np.arange(8) for group in SEVEN}, vgg(), "activation", {group: np.eye(8) for group in SEVEN}, columns=1
    ),
    ("soft_under_two_lines", 2): lambda: figures.matching_matrix(
        {group: np.arange(64) for group in SEVEN},
        vgg(dataset="cifar10-jpeg (first 1,000 training images)"),
        "activation",
        {group: np.eye(64) for group in SEVEN},
    ),
    ("bn_images", 1): lambda: figures.bn_images_study(
        [{"matcher": "activation", "images": n, "test_accuracy": 0.5} for n in (0, 10, 100, 1000)], vgg()
    ),
    ("leaderboard", 1): lambda: figures_many.leaderboard(board_rows()[:50], columns=1),
    ("leaderboard", 2): lambda: figures_many.leaderboard(board_rows()),
    ("leaderboard_best", 2): lambda: figures_many.leaderboard(board_rows(), "best_accuracy"),
    ("leaderboard_options", 1): lambda: figures_many.leaderboard(
        pool.leaderboard_rows(with_options(**JPEG)), columns=1
    ),
    ("curves_options", 2): lambda: figures.curves(with_options(**JPEG)),
    ("widths", 1): lambda: figures_many.width_drop(sweep(), columns=1),
    ("widths", 2): lambda: figures_many.width_drop(sweep()),
    ("differences", 1): lambda: differences(1),
    ("differences", 2): lambda: differences(2),
    ("differences_of_skewed", 2): lambda: differences(2, skewed()),
    ("ladder", 1): lambda: ladder.figure(climbs(), columns=1),
    ("ladder", 2): lambda: ladder.figure(climbs()),
    ("ladder_one_pair", 1): lambda: ladder.figure(climb(), columns=1),
    ("heads", 2): lambda: figures.record_figures(climb(), attention_arrays())["heads"],
    ("streams", 2): lambda: figures.record_figures(climb(), attention_arrays())["streams"],
    ("heads", 1): lambda: figures.draw(climb(), "heads", attention_arrays(), columns=1),
    ("streams", 1): lambda: figures.draw(climb(), "streams", attention_arrays(), columns=1),
    ("scaling", 1): lambda: figures_scaling.scaling(rows_of("scaling"), study("cifar10-jpeg")),
    ("recovery", 1): lambda: figures_scaling.recovery(rows_of("recovery"), study("cifar10-jpeg"), columns=1),
    ("recovery", 2): lambda: figures_scaling.recovery(rows_of("recovery"), study("cifar10-jpeg")),
    ("objective", 1): lambda: figures_scaling.objective_accuracy(rows_of("objective"), study("cifar10-jpeg")),
}


def each_figure():
    """The parameters name, columns, draw."""
    return pytest.mark.parametrize(("name", "columns"), FIGURES, ids=lambda value: str(value))


def labels(figure):
    """{text: its box on the page, in pixels} of everything that is drawn of a figure's words."""
    figure.draw_without_rendering()
    # Tick labels beyond an axis' limits exist, unplaced, and are never drawn.
    axis = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = {tick.label1 for a in axis for tick in (*a.get_major_ticks(), *a.get_minor_ticks())}
    drawn = {label for a in axis for label in a.get_ticklabels() if label in ticks and inside(label, a)}
    hidden = {text for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [
        (text.get_text(), text.get_window_extent())
        for text in found
        if text not in hidden and (text not in ticks or text in drawn)
    ]


def inside(label, axis):
    low, high = sorted(axis.get_view_interval())
    return low <= label.get_position()[axis.axis_name == "y"] <= high


def overlaps(one, other):
    """Whether two boxes share more than a hair (a box has some air above and below its letters)."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return wide > 1 and high > 1.5


@each_figure()
def test_every_figure_names_its_data_set_and_n(name, columns):
    figure = FIGURES[name, columns]()
    assert isinstance(figure, Figure)
    assert "cifar10-jpeg" in words(figure)
    assert "n = " in words(figure)


@each_figure()
def test_no_label_is_cut_off_or_overlaps_another(name, columns):
    figure = FIGURES[name, columns]()
    page, found = figure.bbox, labels(figure)
    assert len(found) > 4
    for text, box in found:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, f"{text!r} is cut off"
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, f"{text!r} is cut off"
    for (text, box), (other_text, other) in itertools.combinations(found, 2):
        assert not overlaps(box, other), f"{text!r} overlaps {other_text!r}"


@pytest.mark.parametrize("kept", [True, False])
def test_labels_that_overlap_or_are_cut_off_are_found(kept):
    figure = style.PaperFigure(1, 2.6)
    axes = figure.subplots()
    axes.text(0.5, 0.5, "one label", transform=axes.transAxes)
    axes.text(0.5, 0.8 if kept else 0.52, "another", transform=axes.transAxes)
    figure.text(0.4 if kept else 0.95, 0.95, "a long line of words")
    found = labels(figure)
    crossing = [1 for (_, a), (_, b) in itertools.combinations(found, 2) if overlaps(a, b)]
    assert bool(crossing) is not kept
    assert all(box.x1 <= figure.bbox.x1 for _, box in found) is kept


@each_figure()
def test_a_figure_is_as_wide_as_its_columns_and_its_fonts_are_truetype(name, columns, tmp_path):
    _, pdf = style.save_figure(FIGURES[name, columns](), "figure", tmp_path)
    data = pdf.read_bytes()
    (box,) = re.findall(rb"/MediaBox \[([^\]]+)\]", data)
    left, bottom, right, top = map(float, box.split())
    assert (left, bottom) == (0, 0)
    assert right / 72 == pytest.approx({1: 3.4, 2: 7.0}[columns], abs=0.01)
    assert top / 72 <= 9.2  # a page's text is about so high
    fonts = re.findall(rb"/Subtype /(Type0|Type1|Type3|TrueType|CIDFontType0|CIDFontType2|MMType1)\b", data)
    assert set(fonts) <= {b"Type0", b"CIDFontType2", b"TrueType"} and b"CIDFontType2" in fonts
    assert data.count(b"/FontFile2") == fonts.count(b"CIDFontType2") + fonts.count(b"TrueType")


def test_columns_other_than_one_or_two_are_refused():
    with pytest.raises(InputError, match="unknown columns '3'; accepted: 1, 2"):
        one_curve(vgg(), columns=3)


def solid(axes):
    """Data lines of a curve panel: those with one point per alpha, horizontal end points left out."""
    return [line for line in axes.lines if len(line.get_xdata()) == 3]


def test_one_line_a_curve_and_two_dashed_end_points():
    figure = one_curve(vgg())
    (axes,) = figure.axes
    lines = solid(axes)
    assert len(lines) == 3
    np.testing.assert_allclose(lines[2].get_ydata(), [75, 60, 74])
    ends = [line for line in axes.lines if line not in lines]
    assert sorted(float(line.get_ydata()[0]) for line in ends) == [82, 84]
    assert all(line.get_linestyle() == "--" for line in ends)
    assert "share of network B" in axes.get_xlabel() and axes.get_ylabel() == "test accuracy (%)"


def test_matchers_differ_in_colour_and_corrections_in_marker_and_dashes():
    none, matched, reset = solid(one_curve(vgg()).axes[0])
    assert none.get_color() != matched.get_color() == reset.get_color()
    assert none.get_marker() == matched.get_marker() != reset.get_marker()
    assert matched.get_linestyle() == "-" and reset.get_linestyle() == "--"
    none, matched = solid(one_curve(vgg(), corrections=["none"]).axes[0])  # one correction: markers are free
    assert none.get_marker() != matched.get_marker()
    looks = list(names.MATCHERS.values())
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(looks) == 8
    corrected = names.CORRECTIONS.values()
    assert len({str(look.line) for look in corrected}) == len({look.marker for look in corrected}) == 7


def test_loss_stands_beside_accuracy():
    accuracy, loss = figures.curves(vgg()).axes
    assert accuracy.get_ylabel() == "test accuracy (%)"
    assert loss.get_ylabel() == "test cross-entropy (nats)"
    assert len(solid(accuracy)) == len(solid(loss)) == 3


def test_many_curves_get_a_panel_per_correction():
    corrections = ("none", "bn_reset", "repair")
    matchers = ("none", "activation", "weight")
    record = pair(*(curve(m, (0.8, 0.5, 0.8), correction=c) for m in matchers for c in corrections))
    figure = one_curve(record)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["no correction", "BN reset", "REPAIR"]
    assert all(len(solid(axes)) == 3 for axes in figure.axes)


def test_an_unmeasured_metric_is_called_so():
    figure = one_curve(vgg(), metric="train_loss")
    assert solid(figure.axes[0]) == []
    assert "not measured" in words(figure)


def test_several_pairs_draw_the_mean_and_a_band():
    figure = one_curve([vgg(middle=m, index=i) for i, m in enumerate((0.5, 0.6, 0.7))])
    line = solid(figure.axes[0])[2]
    np.testing.assert_allclose(line.get_ydata(), [75, 60, 74])
    bands = figure.axes[0].collections
    assert len(bands) == 3 and "n = 3" in words(figure) and "95\N{NO-BREAK SPACE}% interval" in figure.get_suptitle()
    middle = bands[2].get_paths()[0].vertices[:, 1]
    half = 100 * 4.302653 * 0.1 / 3**0.5
    assert [middle.min(), middle.max()] == pytest.approx([60 - half, 60 + half])
    two = one_curve([vgg(middle=0.5), vgg(middle=0.7, index=1)])
    assert len(two.axes[0].collections) == 0 and "interval" not in words(two)


def test_published_values_are_hollow_markers_where_they_apply():
    record = pair(curve("graph_reference", (0.84, 0.54, 0.84)), dataset="mnist")
    figure = figures.record_figures(record)["curves"]
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 1
    np.testing.assert_allclose(hollow[0].get_ydata()[5], 53.74)
    assert "published" in words(figure)
    other = figures.record_figures(pair(curve("graph_reference", (0.84, 0.54, 0.84))))["curves"]
    assert "published values" not in words(other)


def test_matching_matrix_marks_each_unit_in_its_block():
    perms = {"conv1": np.array([1, 0, 2]), "fc1": np.array([0, 2, 1])}
    figure = figures.matching_matrix(perms, pair(), "graph")
    (axes,) = figure.axes
    dots = [np.column_stack(line.get_data()).tolist() for line in axes.lines]
    assert dots == [[[1.5, 0.5], [0.5, 1.5], [2.5, 2.5]], [[3.5, 3.5], [5.5, 4.5], [4.5, 5.5]]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["conv1 (3)", "fc1 (3)"]
    soft = {name: np.eye(3) for name in perms}
    assert len(figures.matching_matrix(perms, pair(), "graph", soft).axes) == 2


def test_leaderboard_prints_each_value_in_its_cell_and_the_references():
    references = {"ensemble": {"test_accuracy": 0.767, "test_loss": 0.7}}
    figure = figures_many.leaderboard(pool.leaderboard_rows(vgg(controls=references)))
    shown = words(figure)
    assert all(number in shown for number in ("10.0", "30.0", "60.0", "76.7", "84.0", "82.0"))
    assert "ensemble" in shown and "BN reset" in shown


@pytest.mark.parametrize("metric", ["test_accuracy", "best_accuracy"])
def test_a_last_row_that_is_not_full_leaves_no_gap_and_each_column_its_labels(metric):
    figure = figures_many.leaderboard(board_rows(), metric)
    found = sorted((box for text, box in labels(figure) if text == "least squares"), key=lambda box: -box.y1)
    shown = [axes.get_window_extent() for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 8 and len(found) == 3
    top, middle, bottom = shown[0], shown[3], shown[6]
    assert top.y0 - middle.y1 == pytest.approx(middle.y0 - bottom.y1, abs=1)
    below = [axes.y0 - box.y1 for axes, box in zip(shown[5:], found, strict=True)]
    assert below == pytest.approx([below[-1]] * 3, abs=1) and 0 < below[-1] < 15


def test_leaderboard_of_best_alphas_prints_each_with_its_accuracy():
    shown = words(figures_many.leaderboard(board_rows(), "best_accuracy"))
    assert "71.0 α 0.25" in shown and "held-out" in shown


def test_width_drop_has_a_point_per_pair_and_the_mean_line():
    records = [*(vgg(0.125, m, index=i) for i, m in enumerate((0.5, 0.6, 0.55))), vgg(0.25, 0.7)]
    figure = figures_many.width_drop(records)
    shown = words(figure)
    assert "×1/8 n = 3" in shown and "×1/4 n = 1" in shown and "cifar10-jpeg" in shown
    lines = figure.axes[0].lines
    means = next(line for line in lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 2)
    np.testing.assert_allclose(means.get_ydata(), [100 * (0.83 - 0.55), 100 * (0.83 - 0.7)])
    assert max(len(line.get_xdata()) for line in lines) == 4
    half = 100 * 4.302653 * 0.05 / 3**0.5
    bars = [line.get_ydata() for line in lines if line.get_marker() == "_"]
    assert any(np.allclose(bar, [28 - half, 28 + half], atol=1e-3) for bar in bars)
    with pytest.raises(InputError, match="one data set"):
        figures_many.width_drop([vgg(), vgg(dataset="cifar10")])


def test_differences_fill_the_markers_of_those_that_hold_over_all_comparisons():
    curves = [[curve("none", (0.8, m, 0.8)), curve("graph", (0.8, m + 0.1 + 0.001 * i, 0.8))]
              for i, m in enumerate((0.3, 0.5, 0.4))]  # fmt: skip
    wild = [0.9, 0.1, 0.2]
    records = [
        pair(*both, curve("weight", (0.8, wild[i], 0.8)), seeds={"a": 2 * i, "b": 2 * i + 1, "match": 0})
        for i, both in enumerate(curves)
    ]
    figure = figures_many.differences(evidence.summary(pool.rows(records), against="none"), "none")
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if line.get_marker() != "None"]
    marks = {round(float(line.get_xdata()[0])): line.get_markerfacecolor() for line in drawn}
    assert marks[10] != "white" and marks[10] == names.MATCHERS["graph"].colour
    assert marks[0] == "white"
    assert "n = 3" in words(figure) and "minus that of no matching" in words(figure)


def test_a_leaderboard_keeps_to_the_page_as_long_as_its_lines_can_be_read():
    assert figures_many.leaderboard(board_rows(), "best_accuracy").get_figheight() <= style.TALLEST
    one_a_row = figures_many.leaderboard(board_rows(), columns=1)
    one_a_row.canvas.draw()
    pitch = min(axes.get_window_extent().height / len(axes.get_yticks()) / one_a_row.dpi for axes in one_a_row.axes)
    assert pitch > 0.12, "inches between lines of 6.5 points"


def test_every_column_of_panels_has_its_numbers_below():
    figure = differences(2, skewed())
    figure.canvas.draw()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [any(t.get_visible() and t.get_text() for t in axes.get_xticklabels()) for axes in shown] == [
        False, False, True, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "said"), [(1, "one pair (n = 1), no interval"), (2, "mean, no interval (n = 2)")])
def test_differences_of_few_pairs_promise_no_interval(count, said):
    records = [pair(seeds={"a": 2 * i, "b": 2 * i + 1, "match": 0}) for i in range(count)]
    told = words(figures_many.differences(evidence.summary(pool.rows(records), against="none"), "none"))
    assert f"same pairs: {said}" in told and "95 %" not in told and "Holm" not in told


def test_an_unknown_method_keeps_its_look_and_its_options_change_the_label_alone():
    plain, other = (names.look(names.SOLVERS, name) for name in ("a new solver", "a new solver(restarts=3)"))
    assert (plain.label, other.label) == ("a new solver", "a new solver (restarts 3)")
    assert (plain.colour, plain.marker) == (other.colour, other.marker)
    assert plain.marker != names.look(names.SOLVERS, "a second").marker


# Options in names


def with_options(**changes):
    """Two curves of each base name that differ in their options alone."""
    tap, kept = "activation(tap=pre_norm)", "least_squares(select=false)"
    methods = (("activation", "none"), (tap, "none"), ("none", "least_squares"), ("none", kept))
    values = enumerate(methods)
    return pair(*(curve(m, (0.8, 0.5 + 0.1 * i, 0.8), correction=c) for i, (m, c) in values), **changes)


def test_curves_that_differ_in_options_alone_share_colour_and_line_and_differ_in_fill_and_label():
    figure = one_curve(with_options())
    plain, tap, fitted, kept = solid(figure.axes[0])
    for one, other in ((plain, tap), (fitted, kept)):
        assert (one.get_color(), one.get_linestyle(), one.get_marker()) == (
            other.get_color(), other.get_linestyle(), other.get_marker(),
        )  # fmt: skip
        assert one.get_markerfacecolor() != other.get_markerfacecolor() == "white"
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "activations (tap pre_norm)" in shown and "no matching + least squares (select false)" in shown


def test_every_fill_of_one_method_is_another():
    options = [("graph", "none"), *((f"graph(restarts={n})", "none") for n in range(2, 7))]
    found = names.fills([*options, ("weight", "none")])
    assert len({found[key] for key in options}) == 6 and found["graph", "none"] == found["weight", "none"] == "full"


def test_a_crowded_figure_and_the_violins_tell_options_apart():
    matchers = ("activation", "activation(tap=pre_norm)", "none")
    record = pair(*(curve(m, (0.8, 0.5, 0.8), correction=c) for m in matchers for c in ("none", "repair", "rescale")))
    for axes in one_curve(record).axes:
        assert [line.get_markerfacecolor() == "white" for line in solid(axes)] == [False, True, False]
    corrs = {f"corr/{m}/conv": np.linspace(0, 1, 8) for m in matchers}
    assert "activations (tap pre_norm)" in words(figures.correlations(corrs, vgg()))


def test_width_drop_tells_options_apart():
    figure = figures_many.width_drop([with_options(), with_options(model=VGG)])
    blue = names.MATCHERS["activation"].colour
    lines = [
        x for x in figure.axes[0].lines if x.get_color() == blue and x.get_marker() == "o" and x.get_markersize() > 3
    ]
    lines = [line for line in lines if line.get_linestyle() == "-"]
    assert [line.get_markerfacecolor() == "white" for line in lines] == [False, True]


def test_leaderboard_gives_options_lines_and_columns_of_their_own_beside_their_method():
    record = with_options()
    record["curves"] += [curve("graph", (0.8, 0.5, 0.8))]
    (axes,) = figures_many.leaderboard(pool.leaderboard_rows(record)).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "no matching", "activations", "activations (tap pre_norm)", "graph, two-sided",
    ]  # fmt: skip
    columns = [t.get_text() for t in axes.get_xticklabels()]
    assert columns == ["no correction", "least squares", "least squares (select false)"]
    assert len([text for text in axes.texts if text.get_text()]) == 5


def test_leaderboard_leaves_lines_out_where_no_panel_beside_them_has_them():
    made = {
        name: pair(*(curve(m, (0.8, 0.5, 0.8)) for m in matchers), model={"name": name, "width": 1.0, "norm": None})
        for name, matchers in {"gpt": ("none", "random", "weight(maps=orthogonal)"), "mlp": ("none", "graph")}.items()
    }
    rows = pool.leaderboard_rows([*made.values()])
    above, below = figures_many.leaderboard(rows, columns=1).axes
    assert above.get_title("left").startswith("MLP") and below.get_title("left").startswith("GPT")
    lines = [[label.get_text() for label in axes.get_yticklabels()] for axes in (above, below)]
    assert lines == [["no matching", "graph, two-sided"], ["no matching", "random order", "weights (maps orthogonal)"]]
    above.get_figure().draw_without_rendering()
    heights = [axes.get_position().height for axes in (above, below)]
    assert heights[0] / heights[1] == pytest.approx(2 / 3, rel=0.01)


def test_a_name_with_options_is_part_of_a_file_name_without_brackets():
    perms = {"perm/activation(tap=pre_norm)/conv": np.arange(4)}
    assert list(figures.record_figures(pair(), perms)) == ["curves", "matching_activation-tap-pre_norm"]


# One figure by its word


def test_draw_gives_one_figure_by_its_word_and_lists_the_words_where_it_has_none():
    assert len(figures.draw(vgg()).axes) == 2
    assert "correlation of matched units" in figures.draw(vgg(), "correlations", arrays()).axes[0].get_ylabel()
    assert "noise" in words(figures.draw(study(), "recovery"))
    with pytest.raises(InputError, match="^unknown kind 'curves'; accepted: scaling, recovery, objective$"):
        figures.draw(study())
    with pytest.raises(InputError, match="^unknown kind 'correlations'; accepted: curves$"):
        figures.draw(vgg(), "correlations")


def test_figures_follow_what_a_record_holds_and_not_its_experiment():
    mine = vgg(studies={"bn_images": [{"matcher": "none", "images": 10, "test_accuracy": 0.5}]})
    found = figures.record_figures(mine | {"experiment": "my_own"}, arrays())
    assert list(found) == ["curves", "matching_activation", "correlations", "bn_images"]
    assert list(figures.record_figures(study() | {"experiment": "my_own"})) == ["scaling", "recovery", "objective"]
    other = study() | {"rows": [{"width": 1.0, "seconds": 2.0}]}
    assert figures.record_figures(other) == {}


def test_network_graph_averages_to_a_network_that_keeps_its_weights_only_when_matched():
    figure = drawing.network_graph()
    widths = {axes.get_title(): sum(line.get_linewidth() for line in axes.lines) for axes in figure.axes if axes.lines}
    a, unmatched, matched = (
        next(width for title, width in widths.items() if part in title)
        for part in ("network A", "as they are", "after matching")
    )
    assert unmatched < 0.85 * a
    assert matched > 0.97 * a


# Files


def test_a_figure_is_saved_as_png_and_pdf_without_a_date(tmp_path):
    png, pdf = style.save_figure(one_curve(vgg()), "figure", tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == ["figure.pdf", "figure.png"]
    assert png.read_bytes().startswith(b"\x89PNG")
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    assert b"CreationDate" not in data


def test_the_same_figure_is_the_same_bytes_later(tmp_path):
    one = style.save_figure(one_curve(vgg()), "one", tmp_path)
    time.sleep(1.1)  # dates in files count in seconds
    two = style.save_figure(one_curve(vgg()), "two", tmp_path)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_no_half_pair_is_left_when_saving_fails(tmp_path, monkeypatch):
    figure = one_curve(vgg())
    save = figure.savefig

    def failing(path, *, format, **options):
        if format == "pdf":
            raise OSError("No space left on device")
        save(path, format=format, **options)

    monkeypatch.setattr(figure, "savefig", failing)
    with pytest.raises(InputError, match="No space"):
        style.save_figure(figure, "figure", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_figure_shows_itself_in_a_notebook_and_changes_no_global_style():
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert one_curve(vgg())._repr_png_().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_the_ladder_stands_in_order_with_its_intervals_and_what_is_left_of_the_barrier():
    records = climbs()[:3]
    (rows,) = evidence.kinds(pool.rows(records))
    found = ladder.rungs(rows[::-1])
    assert [matcher for matcher, correction in found if correction == "none"] == ["none", *RUNGS]
    plain, least = found["none", "none"], found["none", "least_squares"]
    assert plain["left"].mean == pytest.approx(1) and plain["accuracy"].n == 3
    drops = [(0.8 - 0.01 * i * i) - 0.5 for i in range(3)]  # of the loss: 1 - accuracy, the parents' .5
    assert least["left"].mean == pytest.approx(np.mean([(drop - 0.3) / drop for drop in drops]))
    figure = ladder.figure(records)
    assert [axes.get_xlabel() for axes in figure.axes] == ["test accuracy (%)", "loss barrier left (%)"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()][:3] == [
        "no matching", "activations: hidden units", "activations: + heads",
    ]  # fmt: skip
    assert sum(len(line.get_xdata()) == 2 for line in figure.axes[1].lines) == 33  # an interval each


def test_a_record_without_rungs_or_without_the_plain_midpoint_has_no_ladder():
    assert ladder.is_there(climb()) and not ladder.is_there(vgg())
    record = climb()
    record["curves"] = [c for c in record["curves"] if c["matcher"] != "none"]
    assert not ladder.is_there(record) and "ladder" not in figures.record_figures(record)
    assert set(figures.record_figures(climb(), attention_arrays())) == {
        "matching_activation", "ladder", "heads", "streams",
    }  # fmt: skip


def test_heads_stand_over_their_partners_and_a_mask_is_no_likeness():
    arrays = attention_arrays()
    figure = figures.record_figures(climb(), arrays)["heads"]
    above, below = figure.axes[:4], figure.axes[4:]
    for place, (a, b) in enumerate(zip(above, below, strict=True)):
        np.testing.assert_allclose(a.images[0].get_array(), arrays["pattern/a/blocks.0.att.q"][place])
        partner = arrays["perm/activation/blocks.0.att.q"][place]
        np.testing.assert_allclose(b.images[0].get_array(), arrays["pattern/b/blocks.0.att.q"][partner])
        assert b.get_title(loc="left").startswith(f"B, head {partner + 1}, r = ")
    causal = np.tril(np.ones((17, 17)))
    masked = {name: each * causal if name.startswith("pattern") else each for name, each in arrays.items()}
    titles = [axes.get_title(loc="left") for axes in figures.record_figures(climb(), masked)["heads"].axes[4:]]
    assert all(abs(float(title.split()[-1])) < 0.3 for title in titles), titles


def test_perplexity_is_told_of_a_text_alone():
    text = str(tables.table(climb("gpt", dataset="paradise-lost")))
    assert "perplexity" in text and f"{np.exp(0.8):.3f}" in text
    assert "perplexity" not in str(tables.table(climb()))
    assert "perplexity" in str(ladder.table(climbs())) and "perplexity" not in str(ladder.table(climbs()[:3]))
    (row, *_) = pool.rows(climb("gpt"))
    assert row["test_perplexity"] == pytest.approx(np.exp(row["test_loss"]))
    assert row["parent_a_test_perplexity"] == pytest.approx(np.exp(0.5))
    assert pool.perplexity({"test_loss": 1e4}, {"model": {"name": "gpt"}}) == np.inf


# What every figure takes


def test_a_curve_reaches_the_end_points_that_are_known():
    record = pair(curve("activation", (0.5,), (0.5,), correction="repair"), curve("none", (0.8, 0.2), (0.0, 0.5)))
    lines = [
        (list(x.get_xdata()), list(x.get_ydata())) for x in one_curve(record).axes[0].lines if x.get_marker() == "None"
    ]
    parents = [100 * record["parents"][side]["test_accuracy"] for side in "ab"]
    assert ([0, 0.5], [parents[0], 50]) in lines and ([1, 0.5], [parents[1], 50]) in lines
    assert ([1, 0.5], [parents[1], 20]) in lines and ([0, 0.0], [parents[0], 80]) not in lines


def test_points_at_one_share_alone_are_told_apart():
    corrections = list(names.CORRECTIONS)
    record = pair(*(curve("activation", (0.5,), (0.5,), correction=c) for c in corrections))
    marks = [line.get_marker() for line in one_curve(record).axes[0].lines if list(line.get_xdata()) == [0.5]]
    assert len(set(marks)) == len(corrections)


def test_methods_are_picked_by_name_with_or_without_their_options():
    record = with_options()
    every = {label for label in one_curve(record).handles}
    some = {label for label in one_curve(record, matchers=["activation"], corrections="none").handles}
    assert some < every and all("no matching" not in label for label in some)
    assert [x.get_text() for x in one_curve(vgg(), matchers=["none"]).legends[0].texts][1:] == ["no matching"]
    assert "no matching" not in words(figures.correlations(CORRS, vgg(), matchers=["activation"]))
    assert "spectral" not in words(figures_scaling.scaling(rows_of("scaling"), study(), matchers=["graph"]))
    board = figures_many.leaderboard(board_rows(), corrections=["none", "repair"])
    named = {label.get_text() for axes in board.axes for label in axes.get_xticklabels()} & {
        each.label for each in names.CORRECTIONS.values()
    }
    assert named == {"no correction", "REPAIR"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"matchers": ["grpah"]}, "no matchers 'grpah' in what is drawn; accepted: none, activation"),
        ({"corrections": ["repair"]}, "no corrections 'repair' in what is drawn; accepted: none, bn_reset"),
        ({"width": "nature"}, r"unknown width 'nature'; accepted: 1 to 20 inches, or column \(3.4\)"),
        ({"width": 0}, "unknown width 0"),
        ({"ax": "left"}, "ax is str; accepted: an Axes"),
    ],
)
def test_what_a_figure_can_not_take_is_one_line(options, told):
    with pytest.raises(InputError, match=told) as refused:
        one_curve(vgg(), **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("width", "inches"), [*style.WIDTHS.items(), (4.0, 4.0)])
def test_a_width_has_a_name_or_is_in_inches(width, inches):
    figure = figures.curves(vgg(), width=width)
    assert figure.get_figwidth() == inches
    assert (figure.axes[0].get_gridspec().ncols == 2) is (inches > 4.5)


def test_a_title_is_replaced_or_left_out():
    assert one_curve(vgg(), title="Ours").get_suptitle() == "Ours"
    assert one_curve(vgg(), title="").get_suptitle() == ""
    assert "n = 1" in one_curve(vgg()).get_suptitle().replace("\N{NO-BREAK SPACE}", " ")


def test_a_figure_can_be_drawn_in_an_axes_of_ones_own():
    own = Figure(figsize=(7, 3))
    left, right = own.subplots(1, 2)
    right.plot([0, 1], [0, 1])
    assert one_curve(vgg(), ax=left) is own
    assert len(solid(left)) == 3 and len(right.lines) == 1 and left.get_legend() is not None
    assert figures.curves(vgg(), ax=right, title="Both") is own  # two panels share the place of one
    assert len(own.axes) == 4 and right.get_title() == "Both" and "accuracy" in own.axes[2].get_ylabel()
    nowhere = Figure().add_axes((0, 0, 1, 1))
    with pytest.raises(InputError, match="ax has no place in a grid"):
        figures.curves(vgg(), ax=nowhere)


def test_every_figure_says_what_it_takes():
    drawn = [figures.curves, figures.matching_matrix, figures_many.leaderboard, figures_scaling.scaling, ladder.figure]
    for function in drawn:
        assert {"matchers", "corrections", "title", "ax", "width", "columns"} <= set(
            inspect.signature(function).parameters
        )
        assert "neurips" in function.__doc__
