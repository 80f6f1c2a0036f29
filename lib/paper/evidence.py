"""Claims from many records: means over independent pairs with 95 % intervals, method against method, variance apart.

Works on rows, one per pair × curve × alpha, as `pool.rows` (a list) or `pool.frame` (pandas) makes them. A pair is two
trained networks; what was repeated on the same pair (matcher seeds) is averaged before anything else.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ..checks import InputError, check_choice
from ..records import CLOSENESS

# What must be alike before numbers are averaged: the last ones are parameters of the run, None where it had none.
SETTINGS = (
    "epochs", "share", "solver", "similarity", "tap", "merge_linear", "limit_train", "limit_test", "match_images",
    "correct_images", "skew",
)  # fmt: skip
# Of these, what tells kinds of pairs apart in words, besides model, width, norm and data set.
CIRCUMSTANCES = ("skew", "epochs", "correct_images")
KIND = ("experiment", "preset", "dataset", "dataset_sha256", "model", "width", "norm", "training", *SETTINGS)
LEVEL = 0.95  # of intervals; differences are told from 0 at the family-wise error that is left

Rows = Any  # a pandas frame or an iterable of rows


@dataclass(frozen=True)
class Interval:
    """A mean over `n` independent pairs and its 95 % interval [low, high], in the metric's own unit.

    `std` is the sample standard deviation (None for n = 1). `p` is the two-sided p value of Student's t test that the
    mean is 0: it says something of differences alone. There is no interval and no p for fewer than 3 pairs, and no
    mean either where a value was not measured.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    std: float | None
    p: float | None = None

    def __str__(self) -> str:
        if self.mean is None:
            return f"not measured (n = {self.n})"
        spread = "" if self.low is None else f"[{self.low:.4f}, {self.high:.4f}] "
        return f"{self.mean:.4f} {spread}({told(self.n)})"


def told(n: int) -> str:
    """How many pairs stand behind a number, and what that leaves open: "n = 5", "n = 1, one pair: no interval"."""
    few = {1: ", one pair: no interval", 2: ", no interval"}
    return f"n = {n}{few.get(n, '')}"


def mean_interval(values: Iterable[float | None], *, level: float = LEVEL) -> Interval:
    """The mean of independent values with its interval by Student's t; none for fewer than 3 values.

    Args:
        level: what share of such intervals is meant to hold the true mean.

    Coverage at level 0.95, per cent, as `python -m lib.paper.coverage` measured it (data/results/coverage.json;
    standard error .5 to 1.2). It is why there is no bootstrap over pairs: that covers less at each n that experiments
    here have, but for one tie within the error. BCa is Efron's, percentile that at the expanded level of Hesterberg,
    What Teachers Should Know About the Bootstrap, 2015: of n values at most 1 - 2 ** (1 - n) of the resampled means'
    ranges hold the true mean, 75 % at n = 3.

        n                3      4      5      6     10
        normal values
            t            94.5   94.9   95.6   95.1   95.5
            percentile   74.5   86.1   92.1   93.1   94.4
            BCa          71.7   79.1   84.3   87.1   89.8
        exponential values (skewed)
            t            89.9   89.1   88.2   87.8   90.1
            percentile   71.3   82.4   86.6   87.5   90.5
            BCa          68.9   75.0   79.6   80.5   87.9
    """
    if not 0 < level < 1:
        raise InputError(f"level {level!r} is not accepted; accepted: a number between 0 and 1, such as 0.95")
    return _mean_interval(tuple(map(_known, values)), level)


def _known(value: float | None) -> float | None:
    """None for what was not measured: NaN is not, nor is a perplexity without end."""
    return None if value is None or not math.isfinite(value) else value


@functools.lru_cache(4096)
def _mean_interval(values: tuple[float | None, ...], level: float) -> Interval:
    n = len(values)
    if not n or any(value is None for value in values):
        return Interval(None, None, None, n, None)
    mean, std = fmean(values), stdev(values) if n > 1 else None
    if n < 3:
        return Interval(mean, None, None, n, std)
    from scipy import special  # takes a while to import

    error = std / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return Interval(mean, mean - half, mean + half, n, std, p)


def holm(values: Iterable[float | None]) -> list[float | None]:
    """p values adjusted for all comparisons of one table or figure, in their order; None stays None and counts for
    none.

    Step-down (Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979): the k-th smallest of m becomes the
    largest of (m - j + 1) times the j-th smallest, j ≤ k, at most 1. Those below 0.05 differ with a family-wise error
    of 5 %, whatever the comparisons have to do with each other.
    """
    values = list(values)
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted, largest = list(values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def over_pairs(rows: Iterable[Mapping[str, Any]], metric: str) -> Interval:
    """`mean_interval` of rows of one curve at one alpha; rows of one "pair" are averaged first, and a single pair is
    its own mean."""
    means = list(_pair_means(rows, metric).values())
    return Interval(_known(means[0]), None, None, 1, None) if len(means) == 1 else mean_interval(means)


def _pair_means(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[Any, float | None]:
    values = {pair: [row.get(metric) for row in alike] for pair, alike in grouped(rows, "pair").items()}
    return {pair: None if None in repeats else fmean(repeats) for pair, repeats in values.items()}


def grouped(rows: Iterable[Mapping[str, Any]], *fields: str) -> dict[Any, list[Mapping[str, Any]]]:
    """{what `fields` hold (a tuple where there are several): rows}, in the order in which they come."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(row.get(field) for field in fields)
        groups.setdefault(key if len(key) > 1 else key[0], []).append(row)
    return groups


def interval(
    data: Rows, metric: str = "test_accuracy", *, curve: str, against: str | None = None, alpha: float = 0.5, **options
) -> Interval:
    """Mean and interval of `metric` over the independent pairs in `data`.

    Args:
        curve: which curve, by name, such as "activation + bn_reset", or which control, such as "head".
        against: a second one: the mean of the differences curve - against on the pairs that have both.
        alpha: the share of network B; plays no part for a metric of the whole curve, such as barrier_test_accuracy.
        options: level of `mean_interval`, which also states the coverage.

    Raises:
        InputError: an unknown curve, metric or alpha; pairs of different kinds (`KIND`: data set, model, width …);
            pairs that share a network (`overlapping` names them).
    """
    rows = _measured(data, metric, alpha, *filter(None, (curve, against)))
    means = _pair_means(rows[curve], metric)
    if against is not None:
        both = _both(means, _pair_means(rows[against], metric))
        return mean_interval([None if None in pair else pair[0] - pair[1] for pair in both], **options)
    return mean_interval(means.values(), **options)


def ratio(
    data: Rows, metric: str = "drop", *, curve: str, over: str, over_metric: str | None = None, alpha: float = 0.5,
    **options,
) -> Interval:  # fmt: skip
    """The mean over pairs of each pair's own ratio, `metric` of `curve` / `over_metric` (by default the same) of
    `over`, such as the drop that least squares leaves of the reset's; a fraction, with its interval.

    Arguments and errors are those of `interval`; InputError as well where a pair has 0 to be divided by.
    """
    over_metric = over_metric or metric
    value = _pair_means(_measured(data, metric, alpha, curve)[curve], metric)
    base = _pair_means(_measured(data, over_metric, alpha, over)[over], over_metric)
    check_poolable([row for row in _rows(data) if row["curve"] in (curve, over)], metric)
    if zero := [pair for pair, number in base.items() if number == 0 and pair in value]:
        raise InputError(f"pair {zero[0]}: {over_metric} of {over} is 0; accepted: what can be divided by")
    both = _both(value, base)
    return mean_interval([None if None in pair else pair[0] / pair[1] for pair in both], **options)


def _both(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """What two mappings hold of the pairs that both have."""
    return [(value, other[pair]) for pair, value in one.items() if pair in other]


def variance_components(
    data: Rows, metric: str = "test_accuracy", *, curve: str, alpha: float = 0.5
) -> dict[str, float | int | None]:
    """The variance of `metric` from training seeds apart from that from matcher seeds.

    One-way random effects, method of moments (Searle, Casella and McCulloch, Variance Components, 1992, chapter 3):
    pairs are the groups, records of one pair with several matcher seeds the repeats.

    Returns:
        "pairs" and "repeats" (counts of pairs and of values), "training_std" and "matching_std" (square roots of the
        two components, in the metric's unit, an estimate below zero cut to 0; None where they can not be told apart:
        a single pair, or no pair with two matcher seeds).
    """
    rows = _measured(data, metric, alpha, curve)[curve]
    groups = [[row[metric] for row in alike] for alike in grouped(rows, "pair").values()]
    values = [value for group in groups for value in group]
    total, pairs = len(values), len(groups)
    answer = {"pairs": pairs, "repeats": total, "training_std": None, "matching_std": None}
    if total == pairs or None in values:
        return answer
    within = sum((value - fmean(group)) ** 2 for group in groups for value in group) / (total - pairs)
    answer["matching_std"] = math.sqrt(within)
    if pairs > 1:
        between = sum(len(group) * (fmean(group) - fmean(values)) ** 2 for group in groups) / (pairs - 1)
        size = (total - sum(len(group) ** 2 for group in groups) / total) / (pairs - 1)
        answer["training_std"] = math.sqrt(max(0.0, (between - within) / size))
    return answer


def check_poolable(data: Rows, metric: str = "test_accuracy") -> None:
    """Raises InputError unless all rows are of one kind (`KIND`; for a metric of the whole curve, measured at the same
    alphas as well), their pairs share no network, and nothing is measured twice."""
    rows = _rows(data)
    for field in (*KIND, "alphas") if metric.startswith(("barrier_", "best_")) else KIND:
        values = list(grouped(rows, field))
        if len(values) > 1 and field == "training" and None not in values:  # many words: those that differ
            one, other = (value.split(" ") for value in values[:2])
            values = [" ".join(w for w in own if w not in rest) for own, rest in ((one, other), (other, one))]
        if len(values) > 1:
            raise InputError(
                f"records of different {field} can not be pooled: {values[0]} and {values[1]}; accepted: one {field}"
            )
    if shared := overlapping(rows):
        one, other = next(iter(shared.items()))
        raise InputError(
            f"records {other} and {one} share a network; accepted: independent pairs, see evidence.overlapping"
        )
    for alike in grouped(rows, "pair", "seed_match", "curve", "alpha").values():
        if len(names := list(grouped(alike, "record"))) > 1:
            raise InputError(
                f"records {names[0]} and {names[1]} measure {alike[0]['curve']} twice on one pair; accepted: one"
            )


def kinds(data: Rows) -> list[list[dict[str, Any]]]:
    """The rows, split into what may be pooled: each list is of one experiment, data set, model, width … (`KIND`)."""
    return list(grouped(_rows(data), *KIND).values())


def overlapping(data: Rows) -> dict[str, str]:
    """{record: earlier record of its kind with which it shares a network, though they are not the same pair}.

    A network is known by its checkpoint's SHA-256 and by its training seed. The earlier record stays, so that leaving
    out the keys leaves independent pairs: frame[~frame.record.isin(overlapping(frame))].
    """
    shared: dict[str, str] = {}
    for rows in kinds(data):
        owners: dict[Any, dict[str, Any]] = {}
        for record, (row, *_) in grouped(rows, "record").items():
            names = ("sha256_a", "sha256_b", "seed_a", "seed_b")
            networks = [(name[:-2], row[name]) for name in names if row.get(name) is not None]
            clash = [owners[one]["record"] for one in networks if owners.get(one, row)["pair"] != row["pair"]]
            if clash:
                shared[record] = clash[0]
            else:
                owners |= dict.fromkeys(networks, row)
    return shared


def summary(
    data: Rows, metric: str = "test_accuracy", *, alpha: float = 0.5, against: str | None = None, **options
) -> list[dict[str, Any]]:
    """`interval` of every curve and control of every kind: a row each, kinds in order of width, curves as the records
    have them.

    Row: the fields of `KIND`, kind ("curve" or "control"), curve, matcher, correction, control, metric, alpha, pairs
    (of that kind; n is how many of them have this curve at this alpha), mean, low, high, std, n, p. With `against` the
    differences to that curve or control, and p_holm: p adjusted (`holm`) for all comparisons in the answer; a kind that
    has no such curve is left out.
    """
    answer = []
    for rows in sorted(kinds(data), key=lambda rows: (rows[0]["dataset"], rows[0]["model"], rows[0]["width"])):
        curves = grouped(rows, "curve")
        for curve, alike in curves.items() if against is None or against in curves else ():
            if curve == against or not (whole_curve(metric) or any(at(row, alpha) for row in alike)):
                continue
            if alike[0].get("kind") == "control" and all(row.get(metric) is None for row in alike):
                continue  # a control has no path, and not every measure
            common = {name: alike[0].get(name) for name in ("kind", "curve", "matcher", "correction", "control", *KIND)}
            common |= {"metric": metric, "alpha": alpha, "pairs": len(grouped(rows, "pair"))}
            answer.append(common | vars(interval(rows, metric, curve=curve, against=against, alpha=alpha, **options)))
    if against is not None:
        adjusted = holm(row["p"] for row in answer)
        answer = [row | {"p_holm": p} for row, p in zip(answer, adjusted, strict=True)]
    return answer


def survives(row: Mapping[str, Any]) -> bool:
    """Whether a difference of `summary` is told from 0 once all comparisons in it are counted."""
    return row["p_holm"] is not None and row["p_holm"] < 1 - LEVEL


def metrics(data: Rows) -> list[str]:
    """The columns that can be averaged."""
    more = ("best_alpha", "share_b", "drop", "against_better", *CLOSENESS)
    ends = ("accuracy", "loss", "perplexity", "seconds")
    return [name for name in _rows(data)[0] if name.endswith(ends) or name in more]


def at(row: Mapping[str, Any], alpha: float) -> bool:
    """Whether the row was measured at `alpha`, to 1e-6."""
    return abs(row["alpha"] - alpha) < 1e-6


def check_alpha(data: Rows, alpha: float, curve: str | None = None) -> None:
    """Raises InputError unless something was measured at `alpha`; `curve`: of which all rows are."""
    rows = _rows(data)
    if not any(at(row, alpha) for row in rows):
        listed = ", ".join(f"{alpha:g}" for alpha in sorted({row["alpha"] for row in rows}))
        what = f"{curve} was not" if curve else "nothing was"
        raise InputError(f"{what} measured at alpha {alpha:g}; accepted: {listed}")


def whole_curve(metric: str) -> bool:
    """Whether `metric` belongs to a curve as a whole and not to one of its points."""
    return not metric.startswith(("test_", "train_", "drop", "against_"))


def _rows(data: Rows) -> list[dict[str, Any]]:
    if not hasattr(data, "to_dict"):
        return list(data)
    # A frame says NaN where a record says null.
    rows = data.to_dict("records")
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def _measured(data: Rows, metric: str, alpha: float, *curves: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each of these curves that hold `metric` at `alpha`: one a record."""
    rows = _rows(data)
    if not rows:
        raise InputError("no records to pool; accepted: one or more")
    check_choice("metric", metric, metrics(rows))
    by_curve = grouped(rows, "curve")
    for curve in curves:
        check_choice("curve", curve, by_curve)
    check_poolable([row for curve in curves for row in by_curve[curve]], metric)
    if whole_curve(metric):
        return {curve: [alike[0] for alike in grouped(by_curve[curve], "record").values()] for curve in curves}
    for curve in curves:
        check_alpha(by_curve[curve], alpha, curve)
    return {curve: [row for row in by_curve[curve] if at(row, alpha)] for curve in curves}
