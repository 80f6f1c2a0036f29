"""The hypotheses of the study: each as it was stated before the results, with the rule that falsifies it, and what the
records say of it."""

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..paths import RESULTS
from ..records import read_records
from . import evidence, pool
from .evidence import Interval, grouped
from .names import base, width_label
from .style import GREEN, GREY, TALLEST, VERMILLION, Drawn, PaperFigure, styled
from .tables import Table

ASKED = 5  # pairs that each comparison was planned with
FOLDERS = ("study", "study_epochs", "study_images", "study_skew", "study_skew_images")
FUSED = "activation + least_squares"
AVERAGED = "activation + least_squares(select=false)"
RESET = "activation + bn_reset"
IMAGES = 2000  # that matching and correcting look at, where nothing else is said
COMPETENT = "activation + least_squares(target=competence)"
SIDE_BY_SIDE = "activation + least_squares(units=side_by_side, target=competence)"

Study = Mapping[str, list[pool.Row]]
KEYS = {True: (GREEN, "as asked"), False: (VERMILLION, "not as asked"), None: (GREY, "not asked, or too few pairs")}


@dataclass(frozen=True)
class Comparison:
    """One number that a hypothesis speaks of, at one place: a mean over pairs with its interval, in points or, as a
    share, in per cent. `rule` says what is asked of it, "" of a number that is shown for orientation; `holds` whether
    it is met, None where too few pairs are there to say."""

    place: str
    what: str
    interval: Interval
    rule: str = ""
    holds: bool | None = None
    unit: str = "points"

    def cells(self) -> list[str]:
        """Where, what, mean and interval, n, rule, whether it is met."""
        met = "" if not self.rule else {True: "met", False: "not met", None: "open"}[self.holds]
        return [self.place, f"{self.what}, {self.unit}", spread(self.interval), str(self.interval.n), self.rule, met]


@dataclass(frozen=True)
class Hypothesis:
    """A statement, what falsifies it, and the comparisons that decide."""

    name: str
    statement: str
    falsified: str
    compare: Callable[[Study], Iterator[Comparison]]
    folders: tuple[str, ...] = FOLDERS[:1]  # whose records it looks at

    def comparisons(self, study: Study) -> list[Comparison]:
        """Those that the records allow."""
        return list(self.compare(study))

    def sources(self, study: Study) -> str:
        """The names of the folders of records that there are."""
        return ", ".join(f"`{name}`" for name in self.folders if study.get(name))


def spread(interval: Interval, scale: float = 100) -> str:
    """A mean of fractions and its interval in per cent (or times another `scale`): "1.32 [-0.95, 3.60]", "—" where
    nothing was measured."""
    if interval.mean is None:
        return "—"
    ends = "" if interval.low is None else f" [{scale * interval.low:.2f}, {scale * interval.high:.2f}]"
    return f"{scale * interval.mean:.2f}{ends}"


def read_study(folder: str | Path = RESULTS) -> dict[str, list[pool.Row]]:
    """`rows_of` the study's records under `folder`."""
    return rows_of({name: read_records(Path(folder) / name) for name in FOLDERS})


def rows_of(records: Mapping[str, pool.Records]) -> dict[str, list[pool.Row]]:
    """The rows (`pool.rows`) of the study's records, by the name of their own folder."""
    return {name: pool.rows(records.get(name, {})) for name in FOLDERS}


def verdict(comparisons: Iterable[Comparison]) -> str:
    """What the comparisons come to: "falsified" where one of them is not met, "holds" where all are met, "open" where
    there are too few pairs; with the number of pairs where it is below that asked for."""
    asked = [c for c in comparisons if c.rule]
    decided = [c for c in asked if c.holds is not None]
    if not decided:
        return "open: too few pairs for an interval"
    n = min(c.interval.n for c in decided)
    pairs = f"n = {n}" + (f" of {ASKED}" if n < ASKED else "")
    broken, met, missing = (
        list(dict.fromkeys(c.place for c in asked if c.holds is holds)) for holds in (False, True, None)
    )
    met = [place for place in met if place not in broken]
    parts = (
        [f"falsified at {'; '.join(broken)}"] if broken else ["holds" + (f" at {'; '.join(met)}" if missing else "")]
    )
    parts += [f"holds at {'; '.join(met)}"] if broken and met else []
    parts += [f"open at {'; '.join(missing)}"] if missing else []
    return f"{' – '.join(parts)} ({pairs})"


def _widths(rows: Iterable[pool.Row]) -> Iterator[tuple[float, str, list[pool.Row]]]:
    for width, alike in sorted(grouped(rows, "width").items()):
        yield width, f"×{width_label(width)}", alike


def _has(rows: Iterable[pool.Row], *curves: str) -> bool:
    return set(curves) <= {row["curve"] for row in rows}


def _decided(interval: Interval, holds: bool) -> bool | None:
    return None if interval.low is None else holds


def _matching(study: Study) -> Iterator[Comparison]:
    for _, place, rows in _widths(study["study"]):
        none = AVERAGED.replace("activation", "none")
        if _has(rows, AVERAGED, none):
            gain = evidence.interval(rows, curve=AVERAGED, against=none)
            holds = _decided(gain, (gain.mean or 0) >= 0.03)
            yield Comparison(place, "every unit averaged: activation − none", gain, "≥ 3", holds)
        if _has(rows, FUSED, "side_by_side"):
            gain = evidence.interval(rows, curve=FUSED, against="side_by_side")
            holds = _decided(gain, not ((gain.mean or 0) > 0.005 and (gain.low or 0) > 0))
            yield Comparison(place, "units selected: activation − side by side", gain, "≤ .5, or 0 within", holds)
        for other in ("none", "random"):
            against = FUSED.replace("activation", other)
            if _has(rows, FUSED, against):
                gain = evidence.interval(rows, curve=FUSED, against=against)
                yield Comparison(place, f"units selected: activation − {other}", gain)


def _halves(study: Study) -> Iterator[Comparison]:
    for width, place, rows in _widths(study["study"]):
        if _has(rows, FUSED):
            drop = evidence.interval(rows, "drop", curve=FUSED)
            asked = width == 0.5
            holds = _decided(drop, 0.006 <= (drop.mean or 0) <= 0.015) if asked else None
            yield Comparison(place, "drop of least squares", drop, ".6 to 1.5" if asked else "", holds)


def _share(study: Study) -> Iterator[Comparison]:
    places = [("study", "10 epochs"), ("study_epochs", "30 epochs")]
    for folder, epochs in places:
        for width, place, rows in _widths(study[folder]):
            if _has(rows, FUSED, RESET):
                share = evidence.ratio(rows, "drop", curve=FUSED, over=RESET)
                asked = width == 0.5 or folder == "study_epochs"
                holds = _decided(share, (share.mean or 0) <= 0.15) if asked else None
                what = "least squares' part of the reset's drop"
                yield Comparison(f"{place}, {epochs}", what, share, "≤ 15" if asked else "", holds, "%")


def _skew(study: Study) -> Iterator[Comparison]:
    """Of the heads, fitted to several targets, the one that is best on the held-out images is what has to be beaten."""
    every = [*study["study_skew"], *study["study_skew_images"]]
    for (skew, width, images), rows in grouped(every, "skew", "width", "correct_images").items():
        more = images != IMAGES
        place = f"{skew}, ×{width_label(width)}" + (f", {images:,} images" if more else "")
        curves, strongest = {row["curve"] for row in rows}, _strongest(rows, "head")
        fused = COMPETENT if COMPETENT in curves else FUSED
        if not strongest or fused not in curves:
            continue
        gain = evidence.interval(rows, curve=fused, against=strongest)
        holds = None if more else _decided(gain, (gain.low or 0) > 0)
        what = f"{_short(fused)} − {_short(strongest)}"
        yield Comparison(place, what, gain, "" if more else "> 0, interval", holds)
        for one, other in ((fused, "parent"), (fused, "ensemble"), (fused, SIDE_BY_SIDE), (FUSED, "head")):
            if {one, other} <= curves and (one, other) != (fused, strongest):
                gain = evidence.interval(rows, curve=one, against=other)
                yield Comparison(place, f"{_short(one)} − {_short(other)}", gain)


def _strongest(rows: list[pool.Row], control: str) -> str | None:
    """Of a control with several options the one that is best on the held-out images: what has to be beaten."""
    names = sorted({row["curve"] for row in rows if base(row["curve"]) == control})
    held_out = {name: evidence.interval(rows, "held_out_accuracy", curve=name).mean or 0.0 for name in names}
    return max(names, key=held_out.__getitem__, default=None)


def _short(curve: str) -> str:
    """A curve or control in few words: "fused (competence)" for activation matching and least squares."""
    method = curve.removeprefix("activation + ").replace("units=side_by_side, ", "side_by_side ")
    target = re.search(r"target=(\w+)", method)
    name = "side by side" if "side_by_side" in method else base(method).replace("least_squares", "fused")
    return name + (f" ({target[1]})" if target else "")


def _few_images(study: Study) -> Iterator[Comparison]:
    every = [*study["study_images"], *(row for row in study["study"] if row["width"] == 0.125)]
    for images, rows in sorted(grouped(every, "correct_images").items()):
        strongest = _strongest(rows, "distillation")
        if strongest and _has(rows, FUSED):
            gain = evidence.interval(rows, curve=FUSED, against=strongest)
            asked = images <= 500
            holds = _decided(gain, (gain.low or 0) > 0) if asked else None
            what = f"least squares − {strongest}"
            yield Comparison(f"×1/8, {images:,} images", what, gain, "> 0, interval" if asked else "", holds)


HYPOTHESES = (
    Hypothesis(
        "H1",
        "Matching matters only where units are averaged.",
        "averaging every unit, activation matching is less than 3 points better than none; or with units selected it "
        "is more than .5 points better than side by side, which matches nothing, and the interval is clear of 0",
        _matching,
    ),
    Hypothesis(
        "H2",
        "The drop that least squares leaves halves with each doubling of the width.",
        "the mean drop at width ½ lies outside .6 to 1.5 points",
        _halves,
    ),
    Hypothesis(
        "H3",
        "Its part of the drop that the BatchNorm reset leaves keeps falling.",
        "at width ½, or after 30 epochs of training, it is above 15 %",
        _share,
        ("study", "study_epochs"),
    ),
    Hypothesis(
        "H4",
        "Where the parents saw different classes, fusing beats one parent's features with a new head.",
        "the paired interval of fused − head, the head fitted to the target with which it does best on held-out "
        "images, includes 0 or lies below it",
        _skew,
        ("study_skew", "study_skew_images"),
    ),
    Hypothesis(
        "H5",
        "With 500 images or fewer, least squares beats distillation whose learning rate and steps were tuned.",
        "the paired interval of the difference includes 0 or lies below it",
        _few_images,
        ("study_images", "study"),
    ),
)


def table(study: Study) -> Table:
    """Every comparison of every hypothesis."""
    heads = ["", "where", "what", "mean [95 % interval]", "n", "asked", "", "records"]
    rows = [[h.name, *c.cells(), h.sources(study)] for h in HYPOTHESES for c in h.comparisons(study)]
    return Table([[heads, *rows]], texts=3)


def verdicts(study: Study) -> Table:
    """A row a hypothesis: what it says, what would falsify it, and what became of it."""
    heads = ["", "hypothesis", "falsified if", "verdict", "records"]
    rows = [[h.name, h.statement, h.falsified, verdict(h.comparisons(study)), h.sources(study)] for h in HYPOTHESES]
    return Table([[heads, *rows]], texts=len(heads))


def _labels(comparisons: Iterable[Comparison], columns: int) -> list[str]:
    """What stands beside each line: what it compares, with the place at the first of each."""
    labels, place = [], None
    for one in comparisons:
        few = f" (n = {one.interval.n})" if one.interval.n < ASKED else ""
        label = ("" if one.place == place else f"{one.place}:  ") + one.what + few
        labels.append(label if columns == 2 else textwrap.fill(label, 32))
        place = one.place
    return labels


@styled
def figure(hypothesis: Hypothesis, comparisons: Iterable[Comparison], columns: int = 2) -> Drawn:
    """A line a comparison: the mean over pairs and its 95 % interval, none below three pairs (hollow); colours say
    whether what the hypothesis asks is met. Where all would be longer than a page, those alone of which something is
    asked."""
    comparisons = [c for c in comparisons if c.interval.mean is not None]
    labels, letters = _labels(comparisons, columns), 7 if columns == 2 else 6  # points

    def height() -> float:
        """Inches; the longest label says how far lines are apart."""
        lines = max((label.count("\n") + 1 for label in labels), default=1)
        return (1.1 if columns == 2 else 1.6) + (0.07 + 0.017 * letters * lines) * max(1, len(comparisons))

    if height() > TALLEST:
        comparisons = [c for c in comparisons if c.rule]
        labels = _labels(comparisons, columns)
    drawn = PaperFigure(columns, height())
    axes = drawn.subplots()
    place = None
    for y, one in enumerate(comparisons):
        colour, told = KEYS[one.holds]
        if one.interval.low is not None:
            axes.plot([100 * one.interval.low, 100 * one.interval.high], [y, y], color=colour, linewidth=1.4)
        face = {} if one.interval.low is not None else {"markerfacecolor": "white"}
        mark = axes.plot(100 * one.interval.mean, y, marker="o", markersize=4.5, color=colour, linestyle="none", **face)
        drawn.key(told, *mark)
        if place not in (None, one.place):
            axes.axhline(y - 0.5, color="#CCCCCC", linewidth=0.6)
        place = one.place
    axes.set_yticks(range(len(comparisons)), labels, fontsize=letters)
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.axvline(0, color="#333333", linewidth=0.7)
    axes.grid(False, axis="y")
    axes.set_xlabel(" / ".join(dict.fromkeys("points" if c.unit == "points" else "per cent" for c in comparisons)))
    return drawn, f"{hypothesis.name}: {hypothesis.statement.rstrip('.')}: {verdict(comparisons)}"
