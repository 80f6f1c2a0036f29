"""Looking around by hand: the plane and the filters are where they should be, and the notebook works in a browser."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import nbformat
import numpy as np
import pytest
import torch

from lib import fusion, matching, models, paths
from lib.batch import run as batch
from lib.checks import InputError
from lib.explore import explorer as explore
from lib.explore import panel as panels
from lib.explore import plane
from lib.loaders import sources
from lib.paper import style
from lib.progress import tqdm
from lib.study import attention, board

PATIENCE = 60  # s; a busy machine is no failure
GIVEN = {
    "pair": "simplenet-s0", "third": "", "matcher": "activation", "correction": "none", "alpha": 0.5,
    "third_share": 0.25, "budget": 1.0, "alphas": [0.0, 0.5, 1.0], "divisions": 2, "dataset": "mnist-5k",
    "device": "cpu", "images": 60, "match_images": 60, "correct_images": 60, "plane_images": 40, "plane_size": 3,
    "match_seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def simplenet():
    return explore.Explorer(GIVEN)


class Panel(panels.Panel):
    """A panel whose work is done when what asked for it returns."""

    def __init__(self, explorer):
        super().__init__(explorer)
        ask = self.worker.ask

        def ask_and_wait(work):
            ask(work)
            self.worker.wait()

        self.worker.ask = ask_and_wait


@pytest.fixture
def panel(simplenet):
    return Panel(simplenet)


def chosen(explorer, *more):
    return [explorer.given[name] for name in ("pair", "matcher", "correction", *more)]


# The plane


def test_corners_are_orthonormal_coordinates_and_mix_finds_the_networks_again():
    a, b, c = (
        {"w": torch.randn(5, 3, generator=torch.Generator().manual_seed(i)), "n": torch.tensor(i)} for i in range(3)
    )
    points = plane.corners(a, b, c)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        apart = float((a, b, c)[first]["w"].sub((a, b, c)[second]["w"]).norm())
        assert np.linalg.norm(points[first] - points[second]) == pytest.approx(apart, rel=1e-5)
    assert points[0].tolist() == [0, 0]
    assert points[1, 1] == 0 < points[2, 1]
    for place, state in zip(points, (a, b, c), strict=True):
        torch.testing.assert_close(plane.mix(a, b, c, place, points)["w"], state["w"])
    middle = plane.mix(a, b, c, points.mean(axis=0), points)
    torch.testing.assert_close(middle["w"], (a["w"] + b["w"] + c["w"]) / 3)
    assert middle["n"] == 0


def test_a_variance_outside_the_triangle_is_not_negative():
    a, b, c = ({"bn.running_var": torch.tensor(v)} for v in ([1.0, 1.0], [2.0, 1.0], [1.0, 2.0]))
    points = plane.corners(a, b, c)
    outside = plane.mix(a, b, c, np.array([-5.0, 0.0]), points)["bn.running_var"]
    assert outside.tolist() == [0.0, 1.0]


def test_networks_on_a_line_make_no_plane():
    a, b = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    for c in (b, a, {"w": 2 * torch.ones(3)}):
        with pytest.raises(InputError, match="lie on a line; accepted: a matcher that moves B"):
            plane.corners(a, b, c)
    with pytest.raises(InputError, match="lie on a line"):
        plane.corners(a, a, a)


def test_every_mark_is_a_node_and_no_two_nodes_crowd():
    for marks, size in (([0, 3, 10], 9), ([0, 0.01, 10], 5), ([0, 4], 2), ([0, 4], 11)):
        found = plane.nodes(np.array(marks, dtype=float), size)
        assert set(marks) <= set(found)
        assert (np.diff(found) > 0).all()
        assert len(found) <= size + len(marks)
        assert found[0] < 0 < max(marks) < found[-1]


def test_the_plane_gives_the_parents_at_their_corners(simplenet):
    plane, pair = simplenet.plane(*chosen(simplenet)), simplenet.pair("simplenet-s0")
    test = explore._first(pair.run.test, 40)
    assert sum(len(labels) for _, labels in test) == 40
    for corner, state in enumerate((*pair.states, simplenet.matched("simplenet-s0", "activation").states[1])):
        accuracy, loss = models.evaluate(models.load_state(pair.run.template, state), test)
        assert plane.at(corner) == (accuracy, pytest.approx(loss, abs=1e-5))
    assert plane.at(1) == (plane.at(2)[0], pytest.approx(plane.at(2)[1], abs=1e-5))
    assert plane.loss.shape == plane.accuracy.shape == (len(plane.y), len(plane.x))
    assert np.ptp(plane.loss) > 0.01


def test_batchnorm_statistics_of_the_plane_are_mixed_or_reset_and_it_says_which(monkeypatch):
    """Any images will do to see what is done to the statistics."""
    given = GIVEN | {"pair": "vgg11bn-w0.125-s0", "plane_size": 2, "plane_images": 20, "images": 20}
    explorer = explore.Explorer(given)
    mixed, reset = (explorer.plane(given["pair"], "activation", corrected) for corrected in ("none", "bn_reset"))
    assert mixed.note == "first 20 test images; BatchNorm statistics mixed like the weights"
    assert reset.note == "first 20 test images; BatchNorm statistics reset on the first 20 training images"
    assert not np.allclose(mixed.loss, reset.loss)
    parents = explorer.pair(given["pair"]).parents
    assert mixed.at(0)[1] == pytest.approx(parents["a"]["test_loss"], rel=1e-4)
    assert reset.at(1)[1] == pytest.approx(reset.at(2)[1], rel=1e-3)
    # other corrections leave the plane as it is: measured once
    assert explorer.plane(given["pair"], "activation", "repair") is mixed


def test_the_plane_of_a_network_with_another_norm_says_nothing_of_batchnorm():
    explorer = explore.Explorer(GIVEN | {"pair": "mlpln-w0.5-s0", "plane_size": 2, "plane_images": 20, "images": 20})
    plain, reset = (explorer.plane("mlpln-w0.5-s0", "activation", corrected) for corrected in ("none", "bn_reset"))
    assert plain.note == "first 20 test images, seen in training" and reset is plain


def test_a_clone_that_cannot_be_written_can_be_explored(monkeypatch):
    monkeypatch.setattr(paths, "check_writable", lambda *_, **__: pytest.fail("nothing is to be written"))
    assert explore.Explorer(GIVEN).pair(GIVEN["pair"]).run.experiment == "explore"


# What is kept and what is shown


def test_pairs_are_two_consecutive_seeds_that_are_both_there(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    for name in ("mlp-w0.5-s0", "mlp-w0.5-s1", "mlp-w0.5-s2", "simplenet-s1", "simplenet-s10", "simplenet-s11", "mine"):
        (tmp_path / f"{name}.safetensors").touch()
        (tmp_path / f"{name}.json").write_text(json.dumps({"spec": {"model": name.partition("-")[0]}}))
    assert list(board.pairs()) == ["mlp-w0.5-s0", "simplenet-s10"]


def test_a_point_is_the_fused_network_measured_and_measured_once(simplenet, monkeypatch):
    pair, matched = simplenet.pair("simplenet-s0"), simplenet.matched("simplenet-s0", "activation")
    fused = fusion.interpolate([pair.states[0], matched.states[1]], (0.7, 0.3))
    expected = fusion.measure(pair.run.template, fused, pair.run.test, ensemble=pair.run.against)
    assert simplenet.point(*chosen(simplenet), 0.3).values == expected
    monkeypatch.setattr(fusion, "correct", lambda *a, **k: pytest.fail("measured twice"))
    monkeypatch.setattr(matching, "match", lambda *a, **k: pytest.fail("matched twice"))
    assert simplenet.point(*chosen(simplenet), 0.1 + 0.2).values == expected


def test_ends_of_the_path_are_the_parents(simplenet):
    parents = simplenet.pair("simplenet-s0").parents
    assert simplenet.point(*chosen(simplenet), 0.0).values == parents["a"]
    aligned_b = simplenet.point(*chosen(simplenet), 1.0).values
    assert aligned_b["test_loss"] == pytest.approx(parents["b"]["test_loss"], abs=1e-5)
    assert simplenet.summary(*chosen(simplenet), 0.0)["above"] == 0


def test_quick_controls_stand_beside_the_fused_network(simplenet, panel):
    controls, parents = simplenet.controls("simplenet-s0"), simplenet.pair("simplenet-s0").parents
    assert list(controls) == ["parent", "ensemble", "head"]
    assert controls["parent"]["test_loss"] in [values["test_loss"] for values in parents.values()]
    assert controls["parent"]["info"]["held_out"] == 60
    for name, values in controls.items():
        assert f"{name} {100 * values['test_accuracy']:.1f} %" in panel.readout.value


def test_aligned_filters_are_those_of_b_in_the_order_of_a(simplenet):
    pair, matched = simplenet.pair("simplenet-s0"), simplenet.matched("simplenet-s0", "activation")
    b = pair.states[1]["conv1.weight"]
    assert torch.equal(matched.states[1]["conv1.weight"], b[matched.maps[1]["conv1"]])
    assert not torch.equal(matched.states[1]["conv1.weight"], b)
    simplenet.point(*chosen(simplenet, "alpha"))
    axes = simplenet.filters(*chosen(simplenet, "alpha")).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B", "aligned B", "fused, α = 0.50"]
    assert len(axes.images) == 4 * plane.FILTERS
    heads = [label.get_text().split("\n") for label in axes.get_xticklabels()]
    largest = pair.states[0]["conv1.weight"].flatten(1).norm(dim=1).topk(plane.FILTERS).indices
    assert {int(unit) for unit, _ in heads} == set(largest.tolist())
    r = matched.arrays[1]["corr/activation/conv1"]
    assert all(float(told.replace("−", "-")) == pytest.approx(r[int(unit)], abs=0.006) for unit, told in heads)


def test_what_is_drawn_of_the_fused_network_is_its_own_first_layer(simplenet):
    pair, matched = simplenet.pair("simplenet-s0"), simplenet.matched("simplenet-s0", "activation")
    first = simplenet.point(*chosen(simplenet), 0.25).first
    torch.testing.assert_close(first, 0.75 * pair.states[0]["conv1.weight"] + 0.25 * matched.states[1]["conv1.weight"])


def test_the_path_shows_the_choice_the_baseline_and_the_last_others_and_a_dot_at_alpha():
    explorer = explore.Explorer(GIVEN)
    for matcher in ("activation", "weight"):
        for corrected in fusion.CORRECTIONS:
            values = explorer.pair("simplenet-s0").parents["a"]
            explorer._kept["point", "simplenet-s0", matcher, corrected, 0.5] = explore.Point(values, torch.zeros(1))
    figure = explorer.path("simplenet-s0", "activation", "none", 0.5)
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"no matching", "activations", "weights + least squares"} <= shown
    assert "activations + REPAIR" not in shown
    assert len(figure.axes) == 2
    dot = [line for line in figure.axes[0].lines if line.get_color() == style.VERMILLION]
    assert [line.get_xydata().tolist() for line in dot] == [[[0.5, 100 * values["test_accuracy"]]]]
    assert dot[0].get_markerfacecolor() == "none"  # the curve's own marker is seen in it


def test_a_curve_known_at_one_point_has_its_marker_and_is_dashed_as_in_the_legend():
    explorer = explore.Explorer(GIVEN)
    values = explorer.pair("simplenet-s0").parents["b"]
    for corrected in ("none", "least_squares"):
        explorer._kept["point", "simplenet-s0", "weight", corrected, 0.5] = explore.Point(values, torch.zeros(1))
    figure = explorer.path("simplenet-s0", "weight", "least_squares", 0.5, here=False)
    legend = figure.legends[0]
    keys = dict(zip([text.get_text() for text in legend.get_texts()], legend.get_lines(), strict=True))
    looks = {label: (key.get_linestyle(), key.get_marker()) for label, key in keys.items()}
    assert looks["weights"] == ("-", "o") and looks["weights + least squares"] == ("--", "P")
    for axes in figure.axes:
        orange = [line for line in axes.lines if line.get_color() == keys["weights"].get_color()]
        points = [line.get_marker() for line in orange if line.get_xdata().tolist() == [0.5]]
        assert sorted(points) == ["P", "o"]
        # two thin lines each, to the parents
        thin = [line._unscaled_dash_pattern for line in orange if len(line.get_xdata()) == 2]
        of_keys = [keys[label]._unscaled_dash_pattern for label in ("weights", "weights + least squares")]
        assert sorted(thin, key=str) == sorted([*of_keys, *of_keys], key=str)


def test_a_linear_first_layer_is_drawn_as_images():
    explorer = explore.Explorer(GIVEN | {"pair": "mlp-w0.5-s0"})
    axes = explorer.filters("mlp-w0.5-s0", "activation", "none", 0.5).axes[0]
    assert axes.images[0].get_array().shape == (28, 28)


def test_every_figure_of_the_first_view_is_drawn_and_nothing_is_written(simplenet, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "atomic", lambda path: pytest.fail(f"writes {path}"))
    figures = list(simplenet.figures(plane=True))
    assert len(figures) == 5
    for figure in figures:
        assert figure._repr_png_().startswith(b"\x89PNG")
        assert figure.get_figwidth() <= 7.2
    assert "first 60 test images" in figures[0].get_suptitle()
    assert "n = 1" in figures[0].get_suptitle().replace("\xa0", " ")
    lines = {line.get_label() for line in figures[0].legends[0].get_lines()} | {
        text.get_text() for text in figures[0].legends[0].get_texts()
    }
    assert {"activations", "no matching"} <= lines


# Three networks

THREE, SHARES = "simplenet-s0+simplenet-s2", (0.5, 0.3, 0.2)


@pytest.fixture(scope="module")
def three():
    return explore.Explorer(GIVEN | {"third": "simplenet-s2", "alpha": 0.3, "third_share": 0.2})


def test_a_third_network_is_another_shipped_one_of_the_same_kind(tmp_path, monkeypatch):
    assert board.thirds("simplenet-s0") == ["simplenet-s2", "simplenet-s3", "simplenet-s4", "simplenet-s5"]
    wide = board.thirds("vgg11bn-w0.25-s0")
    assert "vgg11bn-w0.25-s2" in wide and not any("w0.125" in name for name in wide)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    for name, seen in (("a-s0", "mnist"), ("a-s1", "mnist"), ("a-s2", "mnist-5k"), ("a-s3", "mnist")):
        (tmp_path / f"{name}.safetensors").touch()
        (tmp_path / f"{name}.json").write_text(json.dumps({"dataset": seen, "spec": {"model": "mlp"}}))
    assert board.thirds("a-s0") == ["a-s3"]


def test_three_networks_are_matched_together_and_fused_in_their_shares(three):
    assert (three.name, three.place) == (THREE, SHARES)
    pair, matched = three.pair(THREE), three.matched(THREE, "activation")
    assert list(pair.parents) == ["a", "b", "c"] and len(pair.networks) == 3
    maps = matching.match(pair.networks, pair.run.groups, "activation", images=pair.run.match_batches, progress=False)
    assert maps[2].info["strategy"] == "joint"
    assert all(torch.equal(matched.maps[2][name], perm) for name, perm in maps[2].items())
    fused = fusion.interpolate(matched.states, SHARES)
    expected = fusion.measure(pair.run.template, fused, pair.run.test, ensemble=pair.run.against)
    assert three.point(THREE, "activation", "none", SHARES).values == expected
    for corner, parent in zip(np.eye(3), pair.parents.values(), strict=True):
        found = three.point(THREE, "activation", "none", tuple(corner)).values
        assert found["test_loss"] == pytest.approx(parent["test_loss"], abs=1e-5)
    assert three.summary(THREE, "activation", "none", (1.0, 0.0, 0.0))["above"] == 0
    line = sum(s * p["test_accuracy"] for s, p in zip(SHARES, pair.parents.values(), strict=True))
    assert three.summary(THREE, "activation", "none", SHARES)["above"] == pytest.approx(
        expected["test_accuracy"] - line
    )
    assert list(three.controls(THREE)) == ["parent", "ensemble", "head"]
    assert "simplenet-s0 and simplenet-s1 and simplenet-s2: SimpleNet" in three.describe(THREE)


def test_the_picture_of_three_networks_is_the_simplex_with_a_dot_at_the_shares(three):
    figures = list(three.figures(plane=True))
    assert len(figures) == 7
    simplex, filters = figures[:2]
    assert "one set of networks (n = 1)" in simplex.get_suptitle().replace("\xa0", " ")
    assert {text.get_text() for text in simplex.axes[0].texts} >= {"A", "B", "C"}
    dot = [line for line in simplex.axes[0].lines if line.get_color() == style.VERMILLION]
    assert [line.get_xydata().tolist() for line in dot] == [[pytest.approx([0.3 + 0.2 / 2, 0.2 * 3**0.5 / 2])]]
    rows = [row for row in three.record(THREE, "x")["rows"] if row["matcher"] == "activation"]
    assert {(0.5, 0.5, 0.0), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0), SHARES} <= {tuple(row["shares"]) for row in rows}
    labels = [label.get_text() for label in filters.axes[0].get_yticklabels()]
    assert labels == ["A", "B", "aligned B", "C", "aligned C", "fused, shares 0.50 / 0.30 / 0.20"]
    assert [figure.axes[-1].get_xlabel() for figure in (figures[3], figures[5])] == [
        "units of network B", "units of network C",
    ]  # fmt: skip
    assert not np.array_equal(*(three.matched(THREE, "activation").arrays[i]["corr/activation/conv1"] for i in (1, 2)))


def test_the_plane_of_three_networks_is_that_of_the_simplex(three):
    plane_, states = three.plane(THREE, "activation", "none"), three.matched(THREE, "activation").states
    assert plane_.names == ("A", "aligned B", "aligned C")
    test = explore._first(three.pair(THREE).run.test, 40)
    for corner, state in enumerate(states):
        accuracy, loss = models.evaluate(models.load_state(three.pair(THREE).run.template, state), test)
        assert plane_.at(corner) == (accuracy, pytest.approx(loss, abs=1e-5))
    figure = three.plane_figure(THREE, "activation", "none", SHARES)
    dot = next(line for line in figure.axes[0].lines if line.get_color() == style.VERMILLION)
    assert dot.get_xydata()[0] == pytest.approx(np.array(SHARES) @ plane_.points)


def test_a_slow_correction_of_three_networks_has_no_picture_before_it_is_measured(three, monkeypatch):
    three.point(THREE, "none", "none", (1 / 3,) * 3)
    monkeypatch.setattr(fusion, "correct", lambda *a, **k: pytest.fail("fitted without being asked"))
    assert three.path(THREE, "activation", "least_squares", SHARES) is None


def test_in_the_panel_a_third_network_brings_a_second_slider_and_shares_stay_within_1(simplenet):
    panel = Panel(simplenet)
    assert panel.third_share.layout.display == "none" and panel.whole.description == "measure the path"
    panel.alpha.value = 0.9
    panel.third.value = "simplenet-s2"
    assert panel.third_share.layout.display == "" and panel.whole.description == "measure the simplex"
    assert panel.chosen[3] == (0.0, 0.9, pytest.approx(0.1))
    assert "shares 0.00 / 0.90 / 0.10" in panel.readout.value and "C " in panel.readout.value
    panel.third_share.value = 0.6
    assert panel.chosen[3] == pytest.approx((0.0, 0.4, 0.6))
    panel.alpha.value = 0.2
    assert panel.chosen[3] == pytest.approx((0.2, 0.2, 0.6)) and "one set of three (n = 1)" in panel.readout.value
    assert is_png(panel.images["Fusing"][0])
    panel.whole.click()
    assert len(simplenet.record(THREE, "x")["rows"]) >= 6
    panel.tabs.selected_index = 1
    assert len(panel.images["Matching"]) == 4 and all(map(is_png, panel.images["Matching"]))
    panel.pair.value = "mlp-w0.5-s0"  # has no third
    assert panel.third.value == "" and panel.third_share.layout.display == "none"
    assert "%" in panel.readout.value and len(panel.images["Matching"]) == 2
    assert not panel.images["Fusing"]  # those of the other networks are gone


def test_the_panel_greys_old_numbers_and_names_the_stage(monkeypatch):
    explorer = explore.Explorer(GIVEN)
    panel, seen = Panel(explorer), []
    tell = panel._say

    def say(text, *colour):
        seen.append((text, panels.STALE in panel.readout._dom_classes, panel.bar.layout.visibility))
        tell(text, *colour)

    monkeypatch.setattr(panel, "_say", say)
    panel.matcher.value = "weight"
    stages = [text.rpartition(", ")[2] for text, _, _ in seen if ", " in text]
    assert stages == ["matching …", "correcting …", "measuring …"]
    assert all(grey for _, grey, _ in seen[1:-1]) and all(bar == "visible" for text, _, bar in seen if ", " in text)
    assert panels.STALE not in panel.readout._dom_classes and panel.bar.layout.visibility == "hidden"


def test_a_fit_says_how_long_it_takes_and_then_how_long_it_took(simplenet):
    panel = Panel(explore.Explorer(GIVEN))
    panel.correction.value = "least_squares"
    assert re.search(r"takes about \d+ s: press fit", panel.readout.value)
    panel.fit.click()
    name = panel.chosen[0]
    assert panel.explorer.fit_seconds(name) == panel.explorer._fit_seconds[name] > 0


def test_in_the_panel_the_size_is_a_dial_of_what_is_fitted(simplenet):
    panel = Panel(simplenet)
    assert panel.budget.layout.display == "none"  # plain averages have one network's size
    panel.correction.value = "least_squares"
    assert panel.budget.layout.display == "" and "fusebook-size" not in panel.readout.value
    panel.budget.value = 1.5
    assert "with 1.50 × the parameters: press fit" in panel.readout.value
    panel.fit.click()
    found = simplenet.sized(*panel.chosen, 1.5)
    assert 1 < found.cost["parameters"] <= 1.5
    assert f"{100 * found.values['test_accuracy']:.1f} %" in panel.readout.value.partition("fusebook-size")[2]
    apart = simplenet.sized(*panel.chosen, 2.0)
    assert apart.cost == {"parameters": pytest.approx(2), "multiply-adds": 2}
    panel.budget.value = 1.0
    assert "fusebook-size" not in panel.readout.value


# Data that cannot be had, and mistakes


@pytest.fixture
def no_data(monkeypatch):
    def unreachable(name, model):
        if name == "mnist-5k":
            return models
        raise InputError(f"{name} cannot be reached (no files)")

    monkeypatch.setattr(models, "open_dataset", unreachable)
    explorer = object.__new__(explore.Explorer)
    explorer.given, explorer._kept, explorer._unreachable = GIVEN | {"dataset": "auto"}, {}, {}
    return explorer


def test_without_mnist_its_networks_are_shown_on_mnist_5k_and_it_says_so(no_data):
    for pair in ("simplenet-s0", "mlp-w0.5-s0"):  # the second knows already
        dataset, note = no_data._dataset(pair, board.pairs())
        assert dataset == "mnist-5k"
        assert note == "mnist cannot be reached (no files): using mnist-5k"


def test_whatever_pair_is_chosen_the_numbers_and_titles_say_that_its_images_were_seen_in_training(panel):
    for pair in ("simplenet-s0", "mlp-w0.5-s0"):
        panel.pair.value = pair
        assert "mnist-5k, first 60 test images, seen in training" in panel.readout.value
        said = panel.readout.value.partition(panels.css("caution"))[2]
        assert "trained on mnist, whose training images hold all of mnist-5k: this is no test" in said
        assert "seen in training" in panel.explorer.path(*panel.chosen).get_suptitle()
    panel.pair.value = "gpt-s0"
    assert panel.explorer.given["dataset"] == "mnist-5k" and panels.css("caution") not in panel.readout.value


def test_networks_on_images_of_another_kind_are_said_to_be_and_on_their_own_nothing_is(monkeypatch):
    explorer = explore.Explorer(GIVEN | {"pair": "vgg11bn-w0.125-s0", "images": 20})
    assert explorer.caution("vgg11bn-w0.125-s0") == "trained on cifar10-jpeg"
    assert explorer.on_test("vgg11bn-w0.125-s0") == "first 20 test images"
    own = explore.Explorer(GIVEN | {"pair": "gpt-s0", "dataset": "auto", "images": 20})
    assert own.caution("gpt-s0") == "" and "caution" not in Panel(own).readout.value


def test_pairs_whose_data_are_not_here_are_marked_in_the_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(sources, "download", lambda *_: pytest.fail("looks for data by downloading"))
    explorer = explore.Explorer(GIVEN)

    def marked():
        return {name for label, name in panels.Panel(explorer).pair.options if label.endswith(" (needs cifar10)")}

    explorer.given["dataset"] = "auto"
    of_images = {name for name, sidecar in board.pairs().items() if sidecar["dataset"].startswith("cifar10")}
    assert marked() == of_images and of_images
    for file in ("cifar10-jpeg/test-0.parquet", "cifar-10-python.tar.gz"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
        assert not marked()
        (tmp_path / file).unlink()
    explorer.given["dataset"] = "mnist-5k"
    assert not marked()


def test_without_cifar_the_pairs_that_work_are_offered_in_one_line(no_data):
    with pytest.raises(InputError, match=r"vgg11bn-w0.25-s0: cifar10-jpeg cannot be reached") as told:
        no_data._dataset("vgg11bn-w0.25-s0", board.pairs())
    line = str(told.value)
    offered = line.partition("pairs that work here: ")[2].split(", ")
    assert {"mlp-w0.5-s0", "mlpln-w0.5-s0", "simplenet-s0", "simplenet-s2"} <= set(offered)
    assert "\n" not in line
    assert "vgg" not in line.partition("pairs that work")[2]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pair", "simplenet-s1", "unknown pair 'simplenet-s1'; accepted: "),
        ("matcher", "magic", "'magic'"),
        ("correction", "bn_reset", "needs BatchNorm, SimpleNet has none"),
        ("alpha", 1.5, "alpha 1.5 is not accepted"),
        ("images", 0, "images 0 is not accepted"),
        ("plane_size", 1, "plane_size 1 is not accepted"),
        ("third", "simplenet-s1", "unknown third 'simplenet-s1'; accepted: simplenet-s2, "),
        ("divisions", 0, "divisions 0 is not accepted"),
        ("budget", 2.5, "budget 2.5 is not accepted; accepted: a number > 0, at most 2"),
        ("third_share", 0.6, "third_share 0.6 is not accepted; accepted: at most what alpha 0.5 leaves"),
        ("dataset", "imagenet", "unknown dataset 'imagenet'"),
    ],
)
def test_a_parameter_that_is_not_accepted_is_told_in_one_line(name, value, said):
    with pytest.raises(InputError, match=re.escape(said)) as told:
        explore.Explorer(GIVEN | {"third": "simplenet-s2" if name == "third_share" else "", name: value})
    assert "\n" not in str(told.value)


# The panel, without a browser


def is_png(image):
    return bytes(image.value).startswith(b"\x89PNG")


def test_dragging_alpha_changes_what_is_told_and_drawn(panel):
    before, image = panel.readout.value, panel.images["Fusing"][0].value
    panel.alpha.value = 0.1
    assert "α = 0.10" in panel.readout.value != before
    assert panel.images["Fusing"][0].value != image
    assert is_png(panel.images["Fusing"][1])
    assert "first 60 test images" in panel.readout.value
    panel.alpha.value = 0.5
    assert panel.readout.value == before


def test_tabs_draw_when_they_come_to_the_front(panel):
    assert not panel.images["Matching"]
    panel.tabs.selected_index = 1
    assert [is_png(image) for image in panel.images["Matching"]] == [True, True]
    panel.tabs.selected_index = 2
    panel.plane.click()
    assert is_png(panel.images["Loss plane"][0])
    assert panel.bar.layout.visibility == "hidden"


def test_a_mistake_is_one_line_in_the_panel_and_the_next_choice_works(panel):
    panel.correction.value = "bn_reset"
    assert "needs BatchNorm, SimpleNet has none" in panel.status.value
    assert not panel.images["Fusing"]
    assert "%" not in panel.readout.value.partition("parents")[0].partition("font")[0]
    panel.correction.value = "rescale"
    assert "needs BatchNorm" not in panel.status.value
    assert panel.images["Fusing"][0].value
    panel.tabs.selected_index = 2
    panel.matcher.value = "none"
    panel.plane.click()
    assert "lie on a line" in panel.status.value


def test_a_slow_correction_waits_for_its_button(panel, monkeypatch):
    asked, real = [], fusion.correct

    def quick(*arguments, **options):
        asked.append(arguments[2])
        return real(*arguments[:2], "none", **options)

    monkeypatch.setattr(fusion, "correct", quick)
    panel.alpha.value = 0.45
    panel.correction.value = "least_squares"
    assert "least_squares" not in asked
    assert "press fit and measure" in panel.readout.value
    assert panel.fit.layout.display == ""
    panel.fit.click()
    assert asked.count("least_squares") == 1
    assert "press fit and measure" not in panel.readout.value


# Cancel


@pytest.fixture
def endless(monkeypatch):
    """Under rescale, fusing does not end until it is cancelled; set when it has begun."""
    begun, real = threading.Event(), fusion.correct

    def correct(aligned, place, correction, **options):
        if correction == "rescale":
            begun.set()
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                time.sleep(0.005)
        return real(aligned, place, correction, **options)

    monkeypatch.setattr(fusion, "correct", correct)
    return begun


def test_what_is_cancelled_leaves_what_was_shown_and_can_be_chosen_again(simplenet, endless, monkeypatch):
    panel = panels.Panel(simplenet)
    panel.alpha.value = 0.15
    panel.worker.wait()
    before, image, cancel = panel.readout.value, panel.images["Fusing"][0].value, panel.cancel.layout
    assert cancel.visibility == "hidden"
    panel.correction.value = "rescale"
    assert endless.wait(PATIENCE)  # while it is computed, the kernel answers
    assert cancel.visibility == panel.bar.layout.visibility == "visible" and panel.bar.value > 0
    assert panels.STALE in panel.readout._dom_classes and panels.STALE in panel.boxes["Fusing"]._dom_classes
    panel.tabs.selected_index = 1  # waits
    panel.cancel.click()
    panel.worker.wait()
    assert (panel.correction.value, panel.alpha.value, panel.tabs.selected_index) == ("none", 0.15, 0)
    assert (panel.readout.value, panel.images["Fusing"][0].value) == (before, image)
    assert panels.STALE not in panel.readout._dom_classes and panels.STALE not in panel.boxes["Fusing"]._dom_classes
    assert "cancelled" in panel.status.value and cancel.visibility == panel.bar.layout.visibility == "hidden"
    assert not simplenet.is_measured("simplenet-s0", "activation", "rescale", 0.15)
    monkeypatch.undo()
    panel.correction.value = "rescale"
    panel.worker.wait()
    assert simplenet.is_measured("simplenet-s0", "activation", "rescale", 0.15)
    assert "cancelled" not in panel.status.value and panel.readout.value != before


def test_no_button_computes_before_the_kernel_can_answer(simplenet, monkeypatch):
    panel, asked = panels.Panel(simplenet), []
    monkeypatch.setattr(panel.worker, "ask", asked.append)
    for button in (panel.fit, panel.whole, panel.plane, panel.export, panel.save):
        button.click()
    assert asked == [
        panel.fit_and_measure, panel.measure_path, panel.measure_plane, panel.export_figures, panel.save_network,
    ]  # fmt: skip


def test_three_networks_come_back_with_their_shares_and_size(three, endless):
    panel = panels.Panel(three)
    panel.correction.value = "least_squares"
    panel.budget.value = 2.8
    panel.worker.wait()
    view = panel.view
    assert view.budget == 2.8
    with panel.correction.hold_trait_notifications():  # both at once: else the pair may be shown before the correction
        panel.correction.value = "rescale"
        panel.pair.value = "mlp-w0.5-s0"  # has no third, and sizes up to 2
    assert endless.wait(PATIENCE)
    panel.cancel.click()
    panel.worker.wait()
    assert panel.view == view and panel.chosen[0] == THREE and panel.budget.max == 3
    assert panel.budget.layout.display == panel.third_share.layout.display == ""


def test_a_cell_waits_for_the_panel_and_the_panel_for_a_cell(simplenet, endless):
    panel, drawn = panels.Panel(simplenet), []
    panel.alpha.value = 0.85
    panel.correction.value = "rescale"
    assert endless.wait(PATIENCE)
    cell = threading.Thread(target=lambda: drawn.extend(simplenet.figures()))
    cell.start()
    cell.join(0.3)
    assert cell.is_alive() and not drawn
    panel.cancel.click()
    cell.join(PATIENCE)
    panel.worker.wait()
    assert len(drawn) == 4


def test_while_a_cell_draws_its_figures_the_panel_waits(simplenet):
    def is_free():
        free = []

        def look():
            free.append(simplenet.lock.acquire(blocking=False))
            if free[0]:
                simplenet.lock.release()

        other = threading.Thread(target=look)
        other.start()
        other.join()
        return free[0]

    drawing = simplenet.figures()
    next(drawing)
    assert not is_free()
    drawing.close()
    assert is_free()


def test_the_bar_moves_within_a_fit_and_along_a_path():
    panel, values = Panel(explore.Explorer(GIVEN)), []
    panel.bar.observe(lambda change: values.append(change.new), "value")
    panel.correction.value = "least_squares"
    del values[:]
    panel.fit.click()
    correcting = explore.STAGES.index("correcting") / len(explore.STAGES)
    layers = {round(correcting + layer / 4 / len(explore.STAGES), 6) for layer in range(4)}
    assert layers < {round(value, 6) for value in values}
    panel.correction.value = "none"
    del values[:]
    panel.whole.click()
    assert values == sorted(values) and {1 / 3, 2 / 3} <= set(values)


def test_each_step_of_a_stage_has_the_bar_and_a_stage_that_comes_again_does_not_take_it_back(panel):
    values = []
    panel._stage, panel._part, panel.bar.value = 0, (0.5, 0.5), 0
    panel.bar.observe(lambda change: values.append(round(change.new, 6)), "value")
    with panel._told("something"):
        panel.explorer.tell("correcting")
        for _ in range(2):
            list(tqdm("ab"))
        list(tqdm(range(10_000)))  # no message to the browser each
        panel.explorer.tell("matching")
    assert values[:4] == [0.8, 0.85, 0.8, 0.85]
    assert len(values) < 40 and min(values) == 0.8 and max(values) <= 0.9


# Files


@pytest.fixture
def local(panel, tmp_path, monkeypatch):
    """Where a panel that is there writes."""
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "results")
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    return tmp_path / "local"


def test_figures_are_exported_and_none_that_is_there_is_replaced(panel, local, tmp_path):
    explored = tmp_path / "results" / "explore"
    panel.export.click()
    first = {path.name: path.read_bytes() for path in explored.iterdir()}
    stem = "simplenet-s0_activation_none_0.50"
    assert set(first) == {f"{stem}_{kind}.{end}" for kind in ("path", "filters") for end in ("png", "pdf")}
    assert all(first[name].startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG") for name in first)
    assert all(name in panel.status.value for name in first) and "explore" in panel.status.value
    panel.alpha.value = 0.35
    panel.alpha.value = 0.5
    panel.export.click()
    assert {name: (explored / name).read_bytes() for name in first} == first
    assert {path.name for path in explored.iterdir()} - set(first) == {
        f"{stem}_{kind}_2.{end}" for kind in ("path", "filters") for end in ("png", "pdf")
    }
    panel.tabs.selected_index = 1
    panel.export.click()
    assert (explored / f"{stem}_permutations_b.pdf").exists()
    panel.matcher.value = "weight"
    panel.tabs.selected_index = 2
    panel.export.click()
    assert "this tab shows no figure yet" in panel.status.value and "%" in panel.readout.value


@pytest.mark.parametrize("which", ["simplenet", "three"])
def test_exported_figures_carry_no_mark_of_where_the_sliders_stand(which, request, monkeypatch):
    explorer, drawn = request.getfixturevalue(which), {}
    panel = Panel(explorer)
    monkeypatch.setattr(explorer, "export", lambda figures, *_: drawn.update(figures) or [])
    panel.export.click()
    path = next(iter(drawn.values()))
    shown = next(iter(panel._figures(panel.view).values()))

    def marks(figure):
        lines = [line for axes in figure.axes for line in axes.lines if line.get_color() == style.VERMILLION]
        return lines + [text for axes in figure.axes for text in axes.texts if text.get_text() == "here"]

    assert marks(shown) and not marks(path)
    assert len(path.axes[0].lines) < len(shown.axes[0].lines)


def test_the_fused_network_is_saved_with_sidecar_and_card_and_can_be_read(panel, local, simplenet):
    panel.alpha.value = 0.3
    panel.save.click()
    stem = "simplenet-s0_activation_none_0.30"
    assert f"{stem}.safetensors" in panel.status.value
    assert {path.name for path in local.iterdir()} == {f"{stem}.{end}" for end in ("safetensors", "json", "md")}
    checkpoint = models.read_checkpoint(local / f"{stem}.safetensors")
    states = simplenet.matched("simplenet-s0", "activation").states
    for name, tensor in fusion.interpolate(states, (0.7, 0.3)).items():
        torch.testing.assert_close(checkpoint.state[name], tensor)
    sidecar = checkpoint.sidecar
    assert [parent["name"] for parent in sidecar["fused"]["parents"]] == ["simplenet-s0", "simplenet-s1"]
    assert sidecar["fused"]["shares"] == [0.7, 0.3] and sidecar["dataset"] == "mnist-5k"
    point = simplenet.point(*chosen(simplenet), 0.3).values
    assert sidecar["measured"]["fused"]["accuracy"] == point["test_accuracy"]
    models.load_state(models.build("simplenet", width=sidecar["spec"]["width"], seed=0), checkpoint.state)
    card = (local / f"{stem}.md").read_text()
    assert card.startswith(f"# {stem}.safetensors\n") and "simplenet-s1.safetensors" in card
    seen = "mnist-5k, first test images (its parents were trained on mnist, whose training images hold all of mnist-5k"
    assert f"On {seen}: this is no test), 60 of them" in card and "the first 60 training images of mnist-5k" in card
    assert sidecar["measured"]["on"].startswith(seen)
    panel.save.click()
    assert (local / f"{stem}_2.safetensors").exists()


def test_what_is_saved_is_of_the_size_that_is_shown_and_nothing_before_it_is_fitted(panel, local, simplenet):
    panel.alpha.value = 0.65
    panel.correction.value = "least_squares"
    panel.budget.value = 1.5
    panel.save.click()
    assert "not fitted yet" in panel.status.value and not local.exists()
    panel.fit.click()
    panel.save.click()
    (path,) = local.glob("*_x1.50.safetensors")
    network = fusion.load(path, simplenet.pair("simplenet-s0").run.template)
    found = models.evaluate(network, simplenet.pair("simplenet-s0").run.test)
    assert found[0] == simplenet.sized(*panel.chosen, 1.5).values["test_accuracy"]
    assert network.conv1.weight.shape[0] >= 32
    sizes = simplenet.sized(*panel.chosen, 1.5).cost
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(
        sizes["parameters"] * sum(p.numel() for p in simplenet.pair("simplenet-s0").networks[0].parameters())
    )


# Transformers


def test_the_heads_of_transformers_stand_over_those_that_they_are_matched_to():
    explorer = explore.Explorer(GIVEN | {"pair": "vit_mnist-s0", "third": "vit_mnist-s2"})
    panel = Panel(explorer)
    panel.tabs.selected_index = 1
    assert len(panel.images["Matching"]) == 2 * (2 + 3) and all(map(is_png, panel.images["Matching"]))
    drawn, moves = dict(explorer.matchings(explorer.name, "activation")), 0
    for number, side in ((1, "B"), (2, "C")):
        maps = explorer.matched(explorer.name, "activation").maps[number]
        for layer in range(3):
            figure, perm = drawn[f"heads_{side.lower()}_layer{layer}"], maps[f"blocks.{layer}.att.q"].tolist()
            titles = [axes.get_title(loc="left").partition(", r")[0] for axes in figure.axes]
            assert titles[:4] == [f"A, head {head + 1}" for head in range(4)]
            assert titles[4:] == [f"{side}, head {head + 1}" for head in perm]
            moves += perm != [0, 1, 2, 3]
            group, pair = f"blocks.{layer}.att.q", explorer.pair(explorer.name)
            pattern = attention.mean_patterns(pair.run, pair.networks[number], [group])[group]
            np.testing.assert_allclose(figure.axes[4].images[0].get_array(), pattern[perm[0]], rtol=1e-5)
    assert moves


# The notebook


@contextlib.contextmanager
def lab(folder):
    """JupyterLab on a copy of the notebook, as `make lab` starts it: its address with token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = "explore-test"
    environment = os.environ | {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PATH": f"{sys.prefix}/share/jupyter",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": str(paths.ROOT),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"]
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5)
                break
            if server.poll() is not None:
                pytest.fail((folder / "lab.log").read_text())
            time.sleep(0.5)
        yield address, token
    finally:
        server.terminate()  # shuts its kernels down
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


# A cell after which fusing under rescale does not end.
ENDLESS = """
import time

from lib import fusion

real = fusion.correct


def correct(aligned, place, correction, **options):
    while correction == "rescale":
        time.sleep(0.005)
    return real(aligned, place, correction, **options)


fusion.correct = correct
"""


def tiny(folder, first="", **parameters):
    """A copy of the notebook with other defaults in its parameters cell, and with a `first` cell."""
    notebook = nbformat.read(paths.NOTEBOOKS / "explore.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in parameters.items():
        cell.source, changed = re.subn(rf"(?m)^({name}: [^=]+= )[^#]*?(  #|$)", rf"\g<1>{value!r}\2", cell.source)
        assert changed == 1, name
    if first:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    nbformat.write(notebook, folder / "explore.ipynb")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on PATH")
def test_in_a_browser_dragging_alpha_changes_the_accuracy(tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    tiny(tmp_path, ENDLESS, dataset="mnist-5k", images=100, match_images=60, plane_images=40, plane_size=3)
    patience = 1000 * 2 * PATIENCE  # ms
    with lab(tmp_path) as (address, token), api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--headless=new"])
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(patience)
        page.goto(f"{address}/lab/tree/explore.ipynb?token={token}")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before that, Run asks for a kernel
        page.locator('.lm-MenuBar-itemLabel:text-is("Run")').click()
        page.locator('.lm-Menu-itemLabel:text-is("Run All Cells")').click()
        accuracy = page.locator(".fusebook-accuracy")
        accuracy.wait_for()
        api.expect(page.locator(".fusebook-readout")).to_contain_text("α = 0.50")
        before = accuracy.inner_text()
        assert re.fullmatch(r"\d+\.\d %", before)

        handle = page.locator(".widget-slider .noUi-handle").first
        handle.scroll_into_view_if_needed()
        start, track = handle.bounding_box(), page.locator(".widget-slider .noUi-base").first.bounding_box()
        page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
        page.mouse.down()
        page.mouse.move(track["x"] + 2, start["y"] + start["height"] / 2, steps=5)
        page.mouse.up()
        api.expect(page.locator(".fusebook-readout")).to_contain_text("α = 0.00", timeout=patience)
        assert accuracy.inner_text() != before
        for tab in panels.TABS:
            page.get_by_role("tab", name=tab, exact=True).click()
            if tab == "Loss plane":
                page.get_by_role("button", name="measure the plane").click()
            page.wait_for_function(
                "() => [...document.querySelectorAll('.fusebook-panel img')].some("
                f"image => image.offsetParent && image.closest('.{panels.css(tab)}') && image.naturalWidth > 400)"
            )
            page.locator(f".{panels.css('panel')}").evaluate("panel => panel.scrollIntoView()")
            page.screenshot(path=tmp_path / f"{panels.css(tab)}.png")  # to look at
        page.get_by_role("tab", name="Fusing", exact=True).click()
        controls, figures_ = page.locator(f".{panels.css('controls')}"), page.locator(f".{panels.css('figures')}")
        cancel, numbers = page.get_by_role("button", name="cancel"), page.locator(".fusebook-readout")
        api.expect(cancel).to_be_hidden(timeout=patience)  # nothing is drawn any more
        for width, beside in ((1500, True), (800, False)):
            page.set_viewport_size({"width": width, "height": 1500})
            page.wait_for_function(  # laid out anew
                "([one, other, beside]) => beside == (document.querySelector(other).getBoundingClientRect().left > "
                "document.querySelector(one).getBoundingClientRect().right)",
                arg=[f".{panels.css('controls')}", f".{panels.css('figures')}", beside],
            )
            whole, left, right = (
                part.bounding_box() for part in (page.locator(f".{panels.css('panel')}"), controls, figures_)
            )
            assert right["x"] + right["width"] == pytest.approx(whole["x"] + whole["width"], abs=8)
            for image in figures_.locator("img:visible").all():  # none is cut, none is larger than it is
                box, pixels = image.bounding_box(), image.evaluate("image => image.naturalWidth")
                assert 340 <= box["width"] <= pixels and box["x"] + box["width"] <= right["x"] + right["width"]
                ratio = image.evaluate("image => image.naturalHeight / image.naturalWidth")
                assert box["height"] / box["width"] == pytest.approx(ratio, abs=0.01)
            cut = page.locator(f".{panels.css('panel')} button:visible").evaluate_all(
                "buttons => buttons.filter(button => button.scrollWidth > button.clientWidth).map(b => b.innerText)"
            )
            assert cut == []
            image = figures_.locator("img").first.bounding_box()
            if beside:
                assert image["width"] > 0.9 * right["width"] > 0.6 * whole["width"]
            else:
                assert left["width"] > 0.95 * whole["width"] and right["y"] >= left["y"] + left["height"]
                assert image["width"] > 0.9 * right["width"]

        before = numbers.inner_text()
        page.get_by_label("correction").select_option("rescale")
        api.expect(numbers).to_have_class(re.compile(panels.STALE), timeout=patience)
        api.expect(page.locator(".fusebook-status")).to_contain_text("correcting", timeout=patience)
        cancel.click()
        api.expect(page.locator(".fusebook-status")).to_contain_text("cancelled", timeout=patience)
        api.expect(page.get_by_label("correction")).to_have_value("none")
        assert numbers.inner_text() == before
        api.expect(cancel).to_be_hidden()
        api.expect(numbers).not_to_have_class(re.compile(panels.STALE))
        page.get_by_label("correction").select_option("repair")
        api.expect(page.locator(".fusebook-status")).to_have_text("", timeout=patience)  # measured

        page.get_by_label("correction").select_option("bn_reset")
        api.expect(page.locator(".fusebook-status")).to_contain_text(
            "needs BatchNorm, SimpleNet has none", timeout=patience
        )
        assert page.get_by_text("Traceback").count() == 0
        assert (
            page.locator(
                '.jp-OutputArea-output[data-mime-type*="stderr"], .jp-OutputArea-output[data-mime-type*="error"]'
            ).count()
            == 0
        )
        browser.close()


def test_papermill_executes_the_notebook_and_its_copy_shows_figures(tmp_path):
    given = {
        "dataset": "mnist-5k",
        "images": 60,
        "match_images": 60,
        "plane": True,
        "plane_images": 20,
        "plane_size": 2,
    }
    output = batch.execute(paths.NOTEBOOKS / "explore.ipynb", given, tmp_path / "executed.ipynb")
    outputs = [out for cell in nbformat.read(output.notebook, as_version=4).cells for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 5
    assert sum("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in outputs) == 1
    assert "mnist-5k, first 60 test images" in "".join(out.get("text", "") for out in outputs)
    assert [path.name for path in tmp_path.iterdir()] == ["executed.ipynb"]


def test_a_method_with_options_is_a_choice_of_the_panel_and_is_what_is_measured():
    given = GIVEN | {"matcher": "activation(similarity=covariance)", "correction": "repair", "match_seed": 2}
    explorer = explore.Explorer(given)
    panel = Panel(explorer)
    assert panel.matcher.value == "activation(similarity=covariance)" and "activation" in panel.matcher.options
    matching_ = explorer.matched("simplenet-s0", panel.matcher.value).maps[1]
    assert matching_.options == {"similarity": "covariance"}
    assert explorer.is_measured(*panel.chosen)
    labels = [text.get_text() for text in explorer.path(*panel.chosen).legends[0].get_texts()]
    assert any("covariance" in label for label in labels)
    with pytest.raises(InputError, match="takes no option tapp"):
        explore.Explorer(GIVEN | {"matcher": "activation(tapp=pre_norm)"})
