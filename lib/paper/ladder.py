"""The ladder of alignments of transformers: how much each part of a matching adds, uncorrected and refitted.

A rung is a matcher that applies more of its maps than the one before it (`names.RUNGS`). Of a loss it is shown how much
of the barrier of the plain average is left at the midpoint, pair by pair (`evidence.ratio`).
"""

import itertools
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from ..records import curve_of, point_at
from . import evidence, pool
from .evidence import Interval, grouped
from .hypotheses import spread
from .names import (
    CORRECTIONS,
    MATCHERS,
    RUNGS,
    Look,
    curve_look,
    curve_name,
    fills,
    look,
    model_label,
    options,
    ranked,
    rung_label,
)
from .pool import Records
from .style import GREY, METRIC_LABELS, Drawn, PaperFigure, mark, styled
from .tables import Table

UNALIGNED = "none"  # the curve whose barrier is the whole
LEFT = "loss barrier left (%)"


def is_there(record: Mapping[str, Any]) -> bool:
    """Whether a record holds rungs, at the midpoint, and what they are compared with."""
    partial = any("reach=" in curve["matcher"] for curve in record.get("curves", ()))
    plain = curve_of(record, UNALIGNED) if partial else None
    return plain is not None and bool(point_at(plain, 0.5))


def order(matchers: Iterable[str]) -> list[str]:
    """Matchers as they stand on the ladder: method by method, then by how far each reaches; others behind."""
    steps = list(RUNGS)
    return ranked(sorted(matchers, key=lambda m: steps.index(options(m)) if options(m) in steps else 9), MATCHERS)


def rungs(rows: list[pool.Row]) -> dict[tuple[str, str], dict[str, Interval]]:
    """{(matcher, correction): "accuracy" (a fraction), "left" (of the plain average's loss barrier, a fraction),
    "perplexity"} at the midpoint, of the rows (`pool.rows`) of one kind of pair, the lowest rung first."""
    curves = grouped((row for row in rows if row["kind"] == "curve"), "matcher", "correction")
    place = order(dict.fromkeys(matcher for matcher, _ in curves)).index
    answer = {}
    for matcher, correction in sorted(curves, key=lambda key: place(key[0])):
        name = curve_name({"matcher": matcher, "correction": correction})
        answer[matcher, correction] = {
            "accuracy": evidence.interval(rows, curve=name),
            "left": evidence.ratio(rows, "drop_loss", curve=name, over=UNALIGNED),
            "perplexity": evidence.interval(rows, "test_perplexity", curve=name),
        }
    return answer


def _kinds(records: Records) -> dict[str, list[pool.Row]]:
    """{"ViT-MNIST on mnist, n = 3": rows} of every kind of pair."""
    answer = {}
    for rows in evidence.kinds(pool.rows(records)):
        label = model_label(rows[0] | {"name": rows[0]["model"]})
        answer[f"{label} on {rows[0]['dataset']}, n = {len(grouped(rows, 'pair'))}"] = rows
    return answer


def table(records: Records) -> Table:
    """A row a rung and correction: accuracy, what is left of the loss barrier and, of texts, perplexity, each with its
    interval; a part a kind of pair."""
    kinds = {kind: rungs(rows) for kind, rows in _kinds(records).items()}
    heads = {"accuracy": ("accuracy, %", 100), "left": ("loss barrier left, %", 100), "perplexity": ("perplexity", 1)}
    if all(values["perplexity"].mean is None for of in kinds.values() for values in of.values()):
        del heads["perplexity"]
    parts = []
    for kind, found in kinds.items():
        part = [[kind, "correction", *(head for head, _ in heads.values())]]
        for matcher, correction in found:
            cells = (spread(found[matcher, correction][name], scale) for name, (_, scale) in heads.items())
            part.append([rung_label(matcher), look(CORRECTIONS, correction).label, *cells])
        parts.append(part)
    return Table(parts, note="At α = 0.5, mean [95 % interval] over pairs; left: of the plain average's", texts=2)


@styled
def figure(records: Records, columns: int = 2) -> Drawn:
    """The ladder: for each kind of pair a panel of accuracy and one of what is left of the loss barrier (not in one
    column of several kinds), a line a rung. Uncorrected hollow, corrected filled, with 95 % intervals from three pairs
    on; dashed the parents' mean."""
    kinds = _kinds(records)
    found = {kind: rungs(rows) for kind, rows in kinds.items()}
    corrections = ranked((c for of in found.values() for _, c in of if c != "none"), CORRECTIONS)
    every = ["none", *corrections]
    fill_of = {correction: fill for (correction,), fill in fills((each,) for each in corrections).items()} | {
        "none": "none"
    }
    lines = order(dict.fromkeys(matcher for of in found.values() for matcher, _ in of))
    both = columns == 2 or len(kinds) == 1  # one column of a page has no room for more
    measures = {"accuracy": METRIC_LABELS["test_accuracy"]} | ({"left": LEFT} if both else {})
    rows = len(kinds) * len(measures) // columns
    drawn = PaperFigure(columns, 0.75 + rows * (0.55 + 0.15 * len(lines)))
    grid = iter(drawn.subplots(rows, columns, squeeze=False, sharey=True).ravel())
    for (kind, of), (measure, label) in itertools.product(found.items(), measures.items()):
        axes = next(grid)
        for (matcher, correction), values in of.items():
            method = curve_look(matcher, correction, every)
            _draw_rung(axes, lines.index(matcher), method, fill_of[correction], values[measure])
            grey = Line2D([], [], color=GREY, linestyle="none", **mark(method.marker, fill=fill_of[correction]))
            drawn.key(look(CORRECTIONS, correction).label, grey)
        axes.set_title(kind, fontsize=7)
        axes.set_yticks(range(len(lines)), list(map(rung_label, lines)))
        axes.set(ylim=(len(lines) - 0.5, -0.5), xlabel=label)
        least = min(values[measure].mean or 0 for values in of.values())
        if measure == "left" and least > 0:  # what is refitted and what is not lie two orders apart
            axes.set_xscale("log")
            axes.set_xlim(left=50 * least)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        else:
            axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        if measure == "accuracy":
            middle = [(row["parent_a_test_accuracy"] + row["parent_b_test_accuracy"]) / 2 for row in kinds[kind]]
            line = {"color": "#444444", "linestyle": (0, (3, 2)), "linewidth": 0.9, "zorder": 1}
            drawn.key("the parents' mean", axes.axvline(100 * fmean(middle), **line))
    spans = any(values["accuracy"].low is not None for of in found.values() for values in of.values())
    return drawn, "at the midpoint, rung by rung" + (": mean, 95 % interval where n ≥ 3" if spans else "")


def _draw_rung(axes: Axes, place: int, method: Look, fill: str, value: Interval) -> None:
    if value.mean is None:
        return
    if value.low is not None:
        axes.plot([100 * value.low, 100 * value.high], [place] * 2, color=method.colour, linewidth=1.3)
    axes.plot(100 * value.mean, place, **method.mark(fill=fill))
