"""lib.paper.hypotheses and lib.paper.claims: verdicts follow the numbers, and fall with them."""

import pytest

from lib.paper import claims, hypotheses
from lib.paper.claims import Claim
from lib.paper.evidence import Interval, mean_interval
from lib.paper.hypotheses import Comparison, verdict
from lib.paper.style import TALLEST
from tests.records.test_results import curve, metrics, pair, provenance

NOISE = (-0.004, 0.001, 0.003, -0.002, 0.002)
AVERAGED = "least_squares(select=false)"


def study(width, fused, averaged=(0.69, 0.62), side=0.69, n=5, reset=0.5, parameters=None, **controls):
    """n pairs whose accuracies at the midpoint are these, each with noise of its own."""
    records = {}
    for i, noise in enumerate(NOISE[:n]):
        matched, unmatched = (value - noise for value in averaged)
        curves = [
            curve("activation", (fused + noise,), (0.5,), correction="least_squares"),
            curve("activation", (matched,), (0.5,), correction=AVERAGED),
            curve("none", (unmatched - noise,), (0.5,), correction=AVERAGED),
            curve("activation", (reset,), (0.5,), correction="bn_reset"),
        ]
        given = {"side_by_side": side} | controls
        held = {name: {"info": {"held_out_accuracy": 0.5 + 0.1 * ("ensemble" in name)}} for name in given}
        records[f"{width}-{i}"] = pair(
            *curves,
            model={"name": "vgg11", "width": width, "norm": "batch"},
            seeds={"a": 2 * i, "b": 2 * i + 1, "match": 0},
            parents={"a": metrics(0.73), "b": metrics(0.71)},
            provenance=provenance(parameters={"correct_images": 2000} | (parameters or {})),
            controls={name: metrics(value - noise / 2) | held[name] for name, value in given.items()},
        )
    return records


def told(name, **records):
    hypothesis = next(h for h in hypotheses.HYPOTHESES if h.name == name)
    return verdict(hypothesis.comparisons(hypotheses.rows_of(records)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "holds (n = 5)"),
        ({"averaged": (0.64, 0.62)}, "falsified at ×1/8 (n = 5)"),  # averaged, matching hardly matters
        ({"side": 0.66}, "falsified at ×1/8 (n = 5)"),  # selected, it does
        ({"side": 0.66, "n": 2}, "open: too few pairs for an interval"),
        ({"n": 3}, "holds (n = 3 of 5)"),
    ],
)
def test_matching_matters_only_where_units_are_averaged(changes, said):
    assert told("H1", study=study(0.125, 0.692, **changes)) == said


@pytest.mark.parametrize(("fused", "said"), [(0.71, "holds (n = 5)"), (0.70, "falsified at ×1/2 (n = 5)")])
def test_the_drop_at_half_width(fused, said):
    assert told("H2", study=study(0.5, fused) | study(0.125, 0.5)) == said


@pytest.mark.parametrize(("reset", "said"), [(0.5, "holds (n = 5)"), (0.68, "falsified at ×1/2, 10 epochs (n = 5)")])
def test_the_part_of_the_resets_drop(reset, said):
    assert told("H3", study=study(0.5, 0.71, reset=reset)) == said


@pytest.mark.parametrize(("head", "said"), [(0.65, "holds (n = 5)"), (0.692, "falsified at halves, ×1/8 (n = 5)")])
def test_fused_against_the_head(head, said):
    skewed = study(0.125, 0.692, parameters={"skew": "halves"}, head=head, parent=0.6)
    assert told("H4", study_skew=skewed) == said


def test_what_has_to_be_beaten_is_the_head_that_is_best_held_out():
    given = {"parameters": {"skew": "halves"}, "head": 0.65}
    weaker, stronger = ({"head(target=competence)": 0.71}, {"head(target=ensemble)": 0.71})  # 0.6 and 0.5 held out
    assert told("H4", study_skew=study(0.125, 0.692, **given, **stronger)).startswith("falsified")
    assert told("H4", study_skew=study(0.125, 0.692, **given, **weaker)) == "holds (n = 5)"


def test_a_fused_network_that_meets_the_mean_badly_is_judged_by_its_better_target():
    records = study(0.125, 0.692, parameters={"skew": "halves"}, head=0.70)
    for record in records.values():
        more = record["curves"][0]["points"][0]["test_accuracy"] + 0.03
        record["curves"].append(curve("activation", (more,), (0.5,), correction="least_squares(target=competence)"))
    assert told("H4", study_skew=records) == "holds (n = 5)"


def test_a_verdict_says_where():
    both = study(0.125, 0.692, parameters={"skew": "halves"}, head=0.65)
    other = study(0.125, 0.692, parameters={"skew": "dirichlet0.1"}, head=0.70)
    both |= {f"{name}-other": record for name, record in other.items()}
    said = "falsified at dirichlet0.1, ×1/8 – holds at halves, ×1/8 (n = 5)"
    assert told("H4", study_skew=both) == said


@pytest.mark.parametrize(("other", "said"), [(0.66, "holds"), (0.70, "falsified at ×1/8, 500 images")])
def test_least_squares_against_distillation(other, said):
    few = study(0.125, 0.692, parameters={"correct_images": 500}, distillation=other)
    assert told("H5", study_images=few) == f"{said} (n = 5)"


def test_the_distillation_to_beat_is_the_one_that_is_best_held_out():
    given = {"parameters": {"correct_images": 500}, "distillation": 0.66}
    longer = study(0.125, 0.692, **given, **{"distillation(steps=1000)": 0.71})
    assert told("H5", study_images=longer) == "holds (n = 5)"  # alike held out, and the first of them is weaker
    for record in longer.values():
        record["controls"]["distillation(steps=1000)"]["info"]["held_out_accuracy"] = 0.6
    assert told("H5", study_images=longer) == "falsified at ×1/8, 500 images (n = 5)"


def test_what_was_not_measured_is_open():
    assert {told(h.name) for h in hypotheses.HYPOTHESES} == {"open: too few pairs for an interval"}


def test_a_figure_has_a_line_a_comparison():
    hypothesis = hypotheses.HYPOTHESES[0]
    comparisons = hypothesis.comparisons(hypotheses.rows_of({"study": study(0.125, 0.692)}))
    figure = hypotheses.figure(hypothesis, comparisons)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == len(comparisons) == 2
    assert labels[0].startswith("×1/8:") and not labels[1].startswith("×1/8:")  # the place is said once
    fewer = hypothesis.comparisons(hypotheses.rows_of({"study": study(0.125, 0.692, n=3)}))
    assert all("n = 3" in label.get_text() for label in hypotheses.figure(hypothesis, fewer).axes[0].get_yticklabels())
    colours = {line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert colours == {hypotheses.GREEN}


# Claims

BEATS = Claim("fused beats side by side", "study", "activation + least_squares", "side_by_side", 1, "make")


def cells(claim, records):
    (heads, row), *_ = claims.table({"study": records}, [claim]).parts
    return dict(zip(heads, row, strict=True))


@pytest.mark.parametrize(
    ("fused", "sign", "said"),
    [
        (0.70, 1, "stands"),
        (0.68, 1, "falls"),
        (0.68, -1, "stands"),
        (0.6901, 0, "stands"),
        (0.70, 0, "falls"),
        (0.68, 0, "stands"),
    ],
)
def test_a_claim_stands_or_falls_with_its_difference(fused, sign, said):
    claim = Claim(BEATS.text, BEATS.records, BEATS.curve, BEATS.control, sign, BEATS.command)
    row = cells(claim, study(0.125, fused, side=0.69))
    assert row[""] == said and row["n"] == "5" and row["records"] == "`study`"


def test_two_pairs_make_no_claim():
    row = cells(BEATS, study(0.125, 0.75, n=2))
    assert (row[""], row["p (Holm)"]) == ("no interval", "—")


def test_more_claims_ask_more_of_each():
    records = study(0.125, 0.698, side=0.69)
    alone = cells(BEATS, records)
    (_, first, *_), *_ = claims.table({"study": records}, [BEATS] * 40).parts
    assert alone[""] == "stands"
    assert first[7] == "falls"


def test_both_sides_of_a_claim_are_means_of_the_pairs_that_have_both():
    records = study(0.125, 0.70, side=0.69)
    for name in list(records)[:2]:
        del records[name]["controls"]["side_by_side"]
    row = cells(BEATS, records)
    gap = float(row["fused, %"]) - float(row["control, %"])
    assert row["n"] == "3" and row["difference, points"].startswith(f"{gap:.2f} [")


def test_claims_of_no_gain_count_among_all():
    """What a claim says was settled by the records that it is judged by."""
    records = study(0.125, 0.698, side=0.69)
    no_gain = Claim("not shown", "study", BEATS.curve, BEATS.control, 0, "make")
    (_, first, *_, last), *_ = claims.table({"study": records}, [BEATS, *[no_gain] * 39]).parts
    assert (first[7], last[7]) == ("falls", "falls") and first[6] == last[6]


def test_a_claim_speaks_of_its_own_rows_alone():
    there = Claim(BEATS.text, "study", BEATS.curve, BEATS.control, 1, "make", {"width": 0.5})
    records = study(0.125, 0.60) | study(0.5, 0.72)
    assert cells(there, records)[""] == "stands"
    assert claims.table({"study": study(0.125, 0.60)}, [there]).parts == [[claims.table({}).parts[0][0]]]


def test_a_comparison_shows_points_and_what_was_asked():
    one = Comparison("×1/8", "a − b", mean_interval([0.01, 0.02, 0.03]), "> 0, interval", True)
    assert one.cells() == ["×1/8", "a − b, points", "2.00 [-0.48, 4.48]", "3", "> 0, interval", "met"]
    assert Comparison("x", "y", Interval(None, None, None, 1, None)).cells()[2] == "—"


@pytest.mark.parametrize(("places", "lines"), [(2, 8), (9, 9)])
def test_a_figure_longer_than_a_page_shows_what_is_asked_alone(places, lines):
    one, comparisons = mean_interval([0.01, 0.02, 0.03]), []
    for place in range(places):
        comparisons.append(Comparison(f"place {place}", "fused (competence) − head (competence)", one, "> 0", True))
        comparisons += [Comparison(f"place {place}", f"fused (competence) − control {i}", one) for i in range(3)]
    drawn = hypotheses.figure(hypotheses.HYPOTHESES[0], comparisons, columns=1)
    assert len(drawn.axes[0].get_yticks()) == lines and drawn.get_figheight() <= TALLEST
