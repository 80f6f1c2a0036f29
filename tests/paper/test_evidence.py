"""lib.evidence: intervals cover what they say, pairs are the unit, and nothing unlike is pooled."""

import numpy as np
import pytest
from scipy import stats

from lib.checks import InputError
from lib.paper import evidence, pool
from tests.records.test_results import curve, pair, provenance

SIMPLE = {"name": "simplenet", "width": 1.0, "norm": None}
TRAINED = {"file": "x", "sha256": None, "dataset": "mnist", "spec": {"seed": 0, "recipe": {"epochs": 1}}}


def record(index, middles, match=0, **changes):
    """Pair number `index` with curves of these accuracies at the midpoint, by matcher."""
    curves = [curve(name, (0.84, middle, 0.82)) for name, middle in middles.items()]
    return pair(*curves, seeds={"a": 2 * index, "b": 2 * index + 1, "match": match}, **changes)


def rows(*records):
    return pool.rows(list(records))


# Intervals


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_the_mean_as_often_as_they_say(n):
    samples = np.random.default_rng(1).normal(3, 2, size=(2000, n))
    found = [evidence.mean_interval(sample) for sample in samples]
    assert all(one.n == n for one in found)
    assert 0.935 <= np.mean([one.low <= 3 <= one.high for one in found]) <= 0.965


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("values", [[], [20.0, 30.0]])
def test_what_is_no_number_was_not_measured(missing, values):
    assert evidence.mean_interval([*values, missing]).mean is None
    alone = [{"pair": i, "perplexity": value} for i, value in enumerate([*values, missing])]
    assert evidence.over_pairs(alone, "perplexity") == evidence.mean_interval([*values, missing])


def test_an_interval_and_its_p_are_those_of_scipy_and_follow_the_level():
    values = [0.1, 0.4, 0.2, 0.5, 0.3, 0.9]
    one, wanted = evidence.mean_interval(values), stats.ttest_1samp(values, 0)
    assert [one.low, one.high] == pytest.approx(list(wanted.confidence_interval(0.95)))
    assert one.p == pytest.approx(wanted.pvalue)
    narrow = evidence.mean_interval(values, level=0.5)
    assert one.low < narrow.low < narrow.mean < narrow.high < one.high


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.6]])
def test_fewer_than_three_values_have_no_interval_and_say_n(values):
    found = evidence.mean_interval(values)
    assert found.low is None and found.high is None and found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.p is None and f"n = {len(values)}" in str(found) and "no interval" in str(found)
    assert ("one pair" in str(found)) == (len(values) == 1)


def test_equal_values_have_an_interval_of_no_width_and_unmeasured_ones_none():
    equal = evidence.mean_interval([0.1] * 6)
    assert equal.low == equal.high == pytest.approx(0.1) and equal.p == 0
    assert evidence.mean_interval([0.0] * 3).p == 1
    for unmeasured in (None, float("nan")):
        assert evidence.mean_interval([0.1, unmeasured, 0.2, 0.3]).mean is None


def test_a_bad_level_is_one_line():
    with pytest.raises(InputError, match="level 95 is not accepted; accepted: a number between 0 and 1"):
        evidence.mean_interval([0.1, 0.2, 0.3], level=95)


def test_pairing_narrows_the_interval_of_a_difference():
    generator = np.random.default_rng(0)
    own = generator.normal(0.5, 0.1, size=8)  # what differs from pair to pair, alike for both methods
    data = rows(*(record(i, {"none": x, "graph": x + 0.03 + generator.normal(0, 0.005)}) for i, x in enumerate(own)))
    paired = evidence.interval(data, curve="graph", against="none")
    alone = [evidence.interval(data, curve=name) for name in ("none", "graph")]
    assert paired.n == 8 and paired.mean == pytest.approx(alone[1].mean - alone[0].mean)
    assert paired.low > 0.02 and paired.high < 0.04
    assert all(paired.high - paired.low < (one.high - one.low) / 5 for one in alone)


def test_an_interval_is_over_pairs_and_repeats_of_one_pair_add_none():
    once = rows(*(record(i, {"none": m}) for i, m in enumerate((0.2, 0.4, 0.6))))
    more = rows(*(record(i, {"none": m + 0.01 * s}, s) for i, m in enumerate((0.19, 0.39, 0.59)) for s in (0, 1, 2)))
    found, wanted = (evidence.interval(data, curve="none") for data in (more, once))
    assert found.n == 3
    assert [found.mean, found.low, found.high] == pytest.approx([wanted.mean, wanted.low, wanted.high])


def test_a_frame_and_rows_give_the_same():
    records = [record(i, {"none": m, "graph": m**0.5}) for i, m in enumerate((0.2, 0.4, 0.6, 0.5, 0.7))]
    wanted = evidence.interval(pool.rows(records), curve="graph", against="none")
    assert evidence.interval(pool.frame(records), curve="graph", against="none") == wanted


def test_a_difference_counts_the_pairs_that_have_both():
    data = rows(
        record(0, {"none": 0.2, "graph": 0.5}), record(1, {"none": 0.3}), record(2, {"none": 0.4, "graph": 0.7})
    )
    assert evidence.interval(data, curve="graph", against="none").n == 2
    found = {row["curve"]: row for row in evidence.summary(data)}
    assert (found["none"]["n"], found["graph"]["n"], found["graph"]["pairs"]) == (3, 2, 3)


# Ratios, and many comparisons


def test_a_ratio_is_the_mean_of_the_pairs_own_ratios():
    data = rows(*(record(i, {"none": 0.83 - d, "graph": 0.83 - r * d}) for i, (d, r) in enumerate(RATIOS)))
    found = evidence.ratio(data, curve="graph", over="none")
    wanted = evidence.mean_interval([r for _, r in RATIOS])
    assert [found.mean, found.low, found.high, found.n] == pytest.approx([wanted.mean, wanted.low, wanted.high, 3])
    pooled = sum(d * r for d, r in RATIOS) / sum(d for d, _ in RATIOS)
    assert abs(found.mean - pooled) > 0.02  # the pair with the large drop does not decide alone
    mixed = evidence.ratio(data, "drop", curve="none", over="none", over_metric="test_accuracy")
    assert mixed.mean == pytest.approx(np.mean([d / (0.83 - d) for d, _ in RATIOS]))


RATIOS = ((0.4, 0.1), (0.1, 0.3), (0.2, 0.2))


def test_nothing_is_divided_by_zero():
    data = rows(*(record(i, {"none": 0.83, "graph": 0.5}) for i in range(3)))
    with pytest.raises(InputError, match="pair 0 1: drop of none is 0"):
        evidence.ratio(data, curve="graph", over="none")


def test_holm_steps_down():
    assert evidence.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert evidence.holm([0.02, None, 0.6, 0.7]) == [pytest.approx(0.06), None, 1.0, 1.0]
    assert evidence.holm([]) == []


def test_a_summary_of_differences_counts_all_its_comparisons_over_all_kinds():
    spread = (0.003, -0.003, 0.0)
    curves = [{"none": 0.3, "graph": 0.3 + 0.011 + e, "weight": 0.3 + e} for e in spread]
    narrow = [record(i, of) for i, of in enumerate(curves)]
    wide = [record(i, of, model=SIMPLE | {"width": 0.5}) for i, of in enumerate(curves)]
    alone, both = (evidence.summary(rows(*r), against="none") for r in (narrow, [*narrow, *wide]))
    assert [row["p_holm"] for row in alone] == pytest.approx([2 * alone[0]["p"], 1.0])
    assert both[0]["p_holm"] == pytest.approx(4 * both[0]["p"])
    assert evidence.survives(alone[0]) and not evidence.survives(both[0]) and both[0]["p"] < 0.05
    assert all("p_holm" not in row for row in evidence.summary(rows(*narrow)))


def test_curves_are_compared_with_controls_on_the_same_pairs():
    found = {"head": 0.5, "parent": 0.6}
    records = [
        record(i, {"none": found["head"] + d}, controls={name: {"test_accuracy": v} for name, v in found.items()})
        for i, d in enumerate((0.01, 0.02, 0.03))
    ]
    gain = evidence.interval(rows(*records), curve="none", against="head")
    assert gain.mean == pytest.approx(0.02) and gain.n == 3
    assert evidence.interval(rows(*records), "against_better", curve="none").mean == pytest.approx(0.08)
    summary = evidence.summary(rows(*records), against="head")
    assert [(row["kind"], row["curve"]) for row in summary] == [("curve", "none"), ("control", "parent")]


# Refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dataset": "mnist"}, "dataset can not be pooled: mnist-5k and mnist"),
        ({"provenance": provenance(dataset_sha256="b" * 8)}, "dataset_sha256 can not be pooled: None and bbbbbbbb"),
        ({"model": SIMPLE | {"width": 0.5}}, "width can not be pooled: 1.0 and 0.5"),
        ({"model": SIMPLE | {"norm": "batch"}}, "norm can not be pooled: None and batch"),
        ({"model": SIMPLE | {"name": "mlp"}}, "model can not be pooled: simplenet and mlp"),
        ({"provenance": provenance(parameters={"correct_images": 9})}, "correct_images can not be pooled: None and 9"),
        (
            {"checkpoints": {side: TRAINED | {"spec": {"seed": 3, "recipe": {"epochs": 100}}} for side in "ab"}},
            "training can not be pooled: a.spec.recipe.epochs=1 b.spec.recipe.epochs=1 and a.spec.recipe.epochs=100 b",
        ),
        (
            {"checkpoints": {side: TRAINED | {"dataset": "mnist-5k"} for side in "ab"}},
            'training can not be pooled: a.dataset="mnist" b.dataset="mnist" and a.dataset="mnist-5k"',
        ),
    ],
)
def test_unlike_records_are_not_pooled(change, named):
    alike = {"checkpoints": dict.fromkeys("ab", TRAINED)} if "checkpoints" in change else {}
    data = rows(record(0, {"none": 0.2}, **alike), record(1, {"none": 0.3}, **change))
    for measure in (evidence.interval, evidence.variance_components):
        with pytest.raises(InputError, match=named) as caught:
            measure(data, curve="none")
        assert "\n" not in str(caught.value)
    assert len(evidence.kinds(data)) == 2


def test_pairs_that_share_a_network_are_refused_and_named():
    def of(a, b, shas=(None, None)):
        files = {side: {"file": side, "sha256": sha} for side, sha in zip("ab", shas, strict=True)}
        return pair(curve("none", (0.8, 0.5, 0.8)), seeds={"a": a, "b": b, "match": 0}, checkpoints=files)

    named = {"first": of(0, 1), "second": of(1, 2), "third": of(2, 3)}
    data = pool.rows(named)
    with pytest.raises(InputError, match="first and second share a network"):
        evidence.interval(data, curve="none")
    assert evidence.overlapping(data) == {"second": "first"}
    by_sha = {"x": of(None, None, ("1", "2")), "y": of(None, None, ("3", "2"))}
    assert evidence.overlapping(pool.rows(by_sha)) == {"y": "x"}
    swapped = {"x": of(0, 1), "y": of(1, 0)}
    assert evidence.overlapping(pool.rows(swapped)) == {"y": "x"}


def test_the_same_measurement_twice_is_refused():
    with pytest.raises(InputError, match="0 and 1 measure none twice"):
        evidence.interval(rows(record(0, {"none": 0.2}), record(0, {"none": 0.3})), curve="none")


def test_barriers_over_other_alphas_are_not_pooled():
    short = pair(curve("none", (0.47,), alphas=(0.5,)), seeds={"a": 2, "b": 3, "match": 0})
    data = rows(record(0, {"none": 0.2}), short)
    assert evidence.interval(data, curve="none").n == 2
    with pytest.raises(InputError, match="alphas can not be pooled: 0 0.5 1 and 0.5"):
        evidence.interval(data, "barrier_test_accuracy", curve="none")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"curve": "nothing"}, "unknown curve 'nothing'; accepted: none"),
        ({"curve": "none", "against": "graph"}, "unknown curve 'graph'"),
        ({"curve": "none", "metric": "accuracy"}, "unknown metric 'accuracy'; accepted: .*test_accuracy"),
        ({"curve": "none", "alpha": 0.3}, "not measured at alpha 0.3; accepted: 0, 0.5, 1"),
    ],
)
def test_what_was_not_measured_is_named(options, named):
    with pytest.raises(InputError, match=named):
        evidence.interval(rows(record(0, {"none": 0.2})), **options)


# Training seeds apart from matcher seeds


def test_variance_components_tell_training_from_matching():
    generator = np.random.default_rng(0)
    values = generator.normal(0.5, 0.06, size=(300, 1)) + generator.normal(0, 0.02, size=(300, 3))
    records = [record(i, {"none": value}, s) for i, own in enumerate(values) for s, value in enumerate(own)]
    found = evidence.variance_components(rows(*records), curve="none")
    assert found["pairs"] == 300 and found["repeats"] == 900
    assert found["training_std"] == pytest.approx(0.06, rel=0.15)
    assert found["matching_std"] == pytest.approx(0.02, rel=0.15)


def test_components_that_cannot_be_told_apart_are_none():
    found = evidence.variance_components(rows(*(record(i, {"none": 0.1 * i}) for i in range(4))), curve="none")
    assert found == {"pairs": 4, "repeats": 4, "training_std": None, "matching_std": None}
    one = evidence.variance_components(rows(*(record(0, {"none": 0.1 * s}, s) for s in range(3))), curve="none")
    assert one["training_std"] is None and one["matching_std"] == pytest.approx(0.1)
