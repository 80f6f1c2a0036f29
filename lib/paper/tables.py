"""Tables of run records: text for notebooks, LaTeX for papers, Markdown for a README.

Every table is made once, as a `Table`, whatever it is shown as. `name` is what a curve is called: `curve_name`, as a
user types it, or `curve_label`, as a paper says it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..paths import atomic
from ..records import curve_key, point_at
from .evidence import grouped
from .names import REFERENCES, curve_label, curve_name, model_label, width_label
from .pool import Records, aggregate, by_width, headline, reference_for
from .published import REFERENCE

INTERVALS = "mean [95 % interval] over n independent pairs: bootstrap over pairs, Student's t for n < 5, none for n < 3"
READ = (
    "Images: what matching and correction could look at. Barrier: over the alphas that were measured; with * from the "
    "midpoint alone. Parents: mean of both, of the same pairs."
)
DEVIATION = "mean ± standard deviation"
MIDPOINT = (("test_accuracy", "accuracy, %"), ("test_loss", "loss, nats"), ("barrier_accuracy", "barrier, points"))
Name = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Table:
    """Parts under one title, each a row of heads and rows of cells, all of them text; print it, or `latex`, `markdown`.

    The first `texts` columns are words, the others numbers; "—" stands where nothing was measured. A row of one cell
    runs across the table, an empty one is a space.
    """

    parts: list[list[list[str]]]
    title: str = ""
    note: str = ""
    texts: int = 1

    def __str__(self) -> str:
        full = [row for part in self.parts for row in part if len(row) > 1]
        widths = [max(map(len, column)) for column in zip(*full, strict=True)]
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        blocks = [self.title] if self.title else []
        for part in self.parts:
            lines = []
            for row in part:
                cells = zip(row, widths, strict=len(row) > 1)
                aligned = [c.ljust(w) if i < self.texts else c.rjust(w) for i, (c, w) in enumerate(cells)]
                lines.append("  ".join(aligned).rstrip() if len(row) > 1 else row[0])
            blocks.append("\n".join([lines[0], rule, *lines[1:]]))
        return "\n\n".join(blocks) + (f"\n{self.note}" if self.note else "")

    def latex(self) -> str:
        """A booktabs tabular, to input inside any table environment."""
        columns = len(self.parts[0][0])
        across = rf"\multicolumn{{{columns}}}{{l}}"

        def line(row: list[str]) -> str:
            if row == [""]:
                return r"\addlinespace"
            return (" & ".join(map(_tex, row)) if len(row) > 1 else f"{across}{{{_tex(row[0])}}}") + r" \\"

        blocks = [[[self.title]]] if self.title else []
        for heads, *rows in self.parts:
            blocks += [[heads], rows]
        lines = [f"% {self.note}"] if self.note else []
        lines += [rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}", r"\toprule"]
        lines.append("\n\\midrule\n".join("\n".join(map(line, block)) for block in blocks))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def markdown(self) -> str:
        """The rows of all parts in one table under the first part's heads; columns of numbers to the right."""
        rows = [row for _, *rows in self.parts for row in rows]
        numbers = [any(_NUMBER.fullmatch(cell) for cell in column) for column in zip(*self.parts[0], strict=True)]
        heads, *lines = (f"| {' | '.join(row)} |" for row in (self.parts[0][0], *rows))
        return "\n".join([heads, f"|{'|'.join('--:' if right else '---' for right in numbers)}|", *lines])


_NUMBER = re.compile(r"[-+α=\d., ±\[\]]+")


def _tex(cell: str) -> str:
    if cell == "—":
        return "---"
    if _NUMBER.fullmatch(cell):
        return f"${cell.replace('±', chr(92) + 'pm').replace('α', chr(92) + 'alpha').replace(' [', chr(92) + '; [')}$"
    special = {"\\": r"\textbackslash{}", "×": r"$\times$", "α": r"$\alpha$", "±": r"$\pm$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in cell)


def table(records: Records, split: str = "test", name: Name = curve_name) -> Table:
    """Accuracy (%) and loss (nats) of every curve at every alpha, and its barrier.

    Mean ± standard deviation where there are several pairs. `split` is "test" or "train".
    """
    summary = aggregate(records)
    alphas = _alphas(summary)
    parts = []
    for metric, title in ((f"{split}_accuracy", "accuracy, %"), (f"{split}_loss", "cross-entropy, nats")):
        part = [[title, *_alpha_heads(alphas), "barrier"]]
        for curve in summary["curves"]:
            cells = [_cell(point_at(curve, alpha), metric) for alpha in alphas]
            label = name(curve) + ("" if curve["n"] == summary["n"] else f" (n = {curve['n']})")
            part.append([label, *cells, _cell(curve["barrier"], metric)])
        ends = [_cell(summary["parents"][side], metric) for side in ("a", "b")]
        parts.append([*part, [f"parents A, B: {ends[0]}, {ends[1]}"]])
    images = summary["images"].get(split)
    words = [f"{split} split" + (f" ({images:,} images)" if images else "")]
    return Table(parts, headline(records, *words, *([DEVIATION] if summary["n"] > 1 else [])))


def compare(record: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> Table:
    """The record's curves beside published numbers, matched by alpha.

    `reference` has the shape of an entry of REFERENCE. Without one, the entry of the record's experiment is
    used where data set and width match, and a line says what differs where they do not.
    """
    reference = reference or reference_for(record)
    summary = aggregate(record)
    alphas = _alphas(summary)
    parts = []
    for metric in ("test_accuracy", "test_loss", "train_accuracy", "train_loss"):
        curves = (reference or {}).get("curves", {})
        published = {key: curve[metric] for key, curve in curves.items() if metric in curve}
        if not published and all(p[metric] is None for curve in summary["curves"] for p in curve["points"]):
            continue
        split, quantity = metric.split("_")
        unit = "%" if quantity == "accuracy" else "nats"
        part = [[f"{split} {quantity}, {unit}", "", *_alpha_heads(alphas), "barrier"]]
        for curve in summary["curves"]:
            ours = {round(p["alpha"], 6): p[metric] for p in curve["points"]}
            values = published.get(curve_key(curve))
            theirs = dict(zip(reference["alphas"], values, strict=True)) if values else {}
            line = published.get(("none", "none"), ())
            barriers = curve["barrier"][metric], _barrier(theirs, line, metric) if theirs and line else None
            pairs = [(ours.get(alpha), theirs.get(alpha)) for alpha in alphas] + [barriers]
            differences = [None if None in pair else pair[0] - pair[1] for pair in pairs]
            part.append([curve_name(curve), "measured", *(_number(m, metric) for m, _ in pairs)])
            if published:
                part.append(["", "reference", *(_number(r, metric) for _, r in pairs)])
            if theirs:
                part.append(["", "difference", *(_number(d, metric, "+") for d in differences)])
        parts.append(part)
    source = reference["source"] if reference else _no_reference(record)
    return Table(parts, f"{headline(record, 'measured against reference')}\nreference: {source}", texts=2)


def _no_reference(record: Mapping[str, Any]) -> str:
    known = REFERENCE.get(record["experiment"])
    if known is None:
        return "none known"
    return f"none shown; the published values are for {model_label(known['model'])} on {known['dataset']}"


def leaderboard_table(rows: Iterable[Mapping[str, Any]], name: Name = curve_name) -> Table:
    """`leaderboard_rows` (of one or several kinds of pair), a part a kind, mean ± standard deviation over pairs."""
    more = ["best alpha", "there, %", "share B", "images", "seconds", "n"]
    parts = []
    for kind, alike in grouped(rows, "architecture", "dataset").items():
        references = [row for row in alike if "reference" in row]
        part = [[" on ".join(kind), *(head for _, head in MIDPOINT), *more]]
        part += [[name(row), *_board_cells(row)] for row in _fused(alike)]
        part += [[""]] if references else []
        part += [[REFERENCES.get(row["reference"], row["reference"]), *_board_cells(row)] for row in references]
        parts.append(part)
    return Table(parts, f"{DEVIATION} over pairs")


def _board_cells(row: Mapping[str, Any]) -> list[str]:
    looked = [row[of] for of in ("match_images", "correct_images") if row.get(of) is not None]
    numbers = [(row.get("share_b"), ".2f"), (max(looked, default=None), "d"), (row.get("seconds"), ".1f")]
    return [
        *(_cell(row, metric) for metric, _ in MIDPOINT),
        "—" if row.get("best_alpha") is None else f"{row['best_alpha']:.2g}",
        _cell(row, "best_accuracy"),
        *("—" if value is None else f"{value:{form}}" for value, form in numbers),
        str(row["n"]),
    ]


def leaderboard_latex(rows: Iterable[Mapping[str, Any]]) -> str:
    """`leaderboard_table` as tabulars, one a kind of pair: all together are longer than a page."""
    kinds = grouped(rows, "architecture", "dataset").values()
    return "\n".join(leaderboard_table(alike, curve_label).latex() for alike in kinds)


def pooled_table(rows: Iterable[Mapping[str, Any]], name: Name = curve_name) -> Table:
    """`leaderboard_rows` without what belongs to the leaderboard: every curve at the midpoint, with its intervals."""
    metrics = (*MIDPOINT, ("barrier_loss", "barrier, nats"))
    parts = []
    for kind, alike in grouped(rows, "architecture", "dataset").items():
        body = [[name(row), *(interval_cell(row, m) for m, _ in metrics), str(row["n"])] for row in _fused(alike)]
        parts.append([[" on ".join(kind), *(head for _, head in metrics), "n"], *body])
    return Table(parts, note=INTERVALS)


def results_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """`leaderboard_rows` of many kinds of pair, each row with the name of its "records", a curve a row."""
    part = [
        [
            "networks",
            "data set",
            "matching",
            "correction",
            "images",
            "midpoint, %",
            "barrier, points",
            "parents, %",
            "n",
        ]
        + ["records"]
    ]
    for row in _fused(rows):
        names = [row["architecture"], row["dataset"], *(f"`{name}`" for name in curve_key(row))]
        barrier = interval_cell(row, "barrier_accuracy") + ("*" if row["alphas"] == 1 else "")
        numbers = [f"{row['images']:,}", interval_cell(row, "test_accuracy"), barrier]
        numbers += [_number(row["parents_accuracy"], "accuracy"), str(row["n"])]
        part.append([*names, *numbers, f"`{row['records']}`"])
    return Table([part])


def summary_table(summary: Iterable[Mapping[str, Any]]) -> Table:
    """`evidence.summary`, one metric, curves down: mean, interval, n of the pairs there are."""
    parts = []
    for (model, width, norm, dataset), alike in grouped(summary, "model", "width", "norm", "dataset").items():
        kind = model_label({"name": model, "width": width, "norm": norm})
        part = [[f"{kind} on {dataset}", "mean", "95 % interval", "method", "n"]]
        for row in alike:
            mean, low, high = (_number(row[of], row["metric"]) for of in ("mean", "low", "high"))
            ends = "—" if row["low"] is None else f"[{low}, {high}]"
            count = str(row["n"]) if row["n"] == row["pairs"] else f"{row['n']} of {row['pairs']}"
            part.append([row["curve"], mean, ends, row["method"] or "—", count])
        parts.append(part)
    return Table(parts)


def widths_table(records: Records, name: Name = curve_label) -> Table:
    """Test accuracy barrier (points), mean [95 % interval]: a row a curve, a column a width, n under each."""
    what, means = by_width(records)
    columns, labels = [], {curve_key(curve): name(curve) for summary in means.values() for curve in summary["curves"]}
    for width, summary in means.items():
        barriers = {curve_key(curve): curve["barrier"] for curve in summary["curves"]}
        cells = [interval_cell(barriers.get(key, {}), "test_accuracy") for key in labels]
        columns.append([f"×{width_label(width)}", str(summary["n"]), *cells])
    title = f"{what}, test accuracy barrier (points), mean [95 % interval]"
    rows = zip(["width", "n", *labels.values()], *columns, strict=True)
    return Table([list(map(list, rows))], title, INTERVALS)


def _fused(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if "reference" not in row]


def _alphas(summary: Mapping[str, Any]) -> list[float]:
    return sorted({round(point["alpha"], 6) for curve in summary["curves"] for point in curve["points"]})


def _alpha_heads(alphas: list[float]) -> list[str]:
    return [f"{alpha:g}" if i else f"α={alpha:g}" for i, alpha in enumerate(alphas)]


def _barrier(curve: Mapping[float, float], ends: tuple[float, ...], metric: str) -> float:
    sign = 1 if metric.endswith("accuracy") else -1
    return max(sign * ((1 - alpha) * ends[0] + alpha * ends[-1] - value) for alpha, value in curve.items())


def _number(value: float | None, metric: str, sign: str = "") -> str:
    if value is None:
        return "—"
    return f"{100 * value:{sign}z.2f}" if "accuracy" in metric else f"{value:{sign}z.3f}"


def _cell(row: Mapping[str, Any], metric: str) -> str:
    text, spread = _number(row.get(metric), metric), row.get(f"{metric}_std")
    return text if spread is None else f"{text} ± {_number(spread, metric)}"


def interval_cell(row: Mapping[str, Any], metric: str) -> str:
    """Mean and 95 % interval: "57.53 [52.83, 62.23]", the mean alone where there is no interval."""
    text = _number(row.get(metric), metric)
    if row.get(f"{metric}_low") is None:
        return text
    return f"{text} [{', '.join(_number(row[f'{metric}_{end}'], metric) for end in ('low', 'high'))}]"


def write_text(text: str, path: Path) -> Path:
    """Writes a table, whole or not at all; returns `path`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
