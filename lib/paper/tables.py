"""Tables of run records: text for notebooks, LaTeX for papers, Markdown for a README.

Every table is made once, as a `Table`, whatever it is shown as. `name` is what a curve is called: `curve_name`, as a
user types it, or `curve_label`, as a paper says it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..paths import FIGURES, atomic
from ..records import curve_key, curve_of, point_at
from . import latex
from .evidence import CIRCUMSTANCES, Interval, grouped, survives
from .names import circumstances, curve_label, curve_name, model_label, width_label
from .pool import PARENTS, Records, Row, aggregate, by_width, headline, leaderboard_rows, reference_for
from .published import REFERENCE
from .style import percent

INTERVALS = "mean [95 % interval, Student's t] over n independent pairs, none for n < 3; n = 1 speaks of one pair alone"
BARRIER = (
    "Barrier: how much worse than the straight line between the parents a path of three or more α is at its worst, "
    "never below 0."
)
# What stands under each head; "α" are all heads of shares.
DEFINITIONS = {
    "accuracy, %": "Accuracy: right answers among all.",
    "cross-entropy, nats": "Cross-entropy: mean over the answers.",
    "loss, nats": "Loss: the mean cross-entropy.",
    "perplexity": "Perplexity: the exponential of the cross-entropy.",
    "α": "α: the share of network B in the fused one, 0 is A.",
    "drop, points": "Drop: the parents' mean − the fused network.",
    "against better, points": "Against better: the better parent (by images held out of training, by training images "
    "where parents saw them all) − the fused network.",
    "barrier": BARRIER,
    "barrier, points": BARRIER,
    "KL to ensemble, nats": "KL: from the ensemble's probabilities to the network's.",
    "agreement, %": "Agreement: answers that are the ensemble's.",
    "calibration error, %": "Calibration error: expected, over 15 bins of confidence.",
    "best alpha": "Best alpha: by held-out training images.",
    "there, %": "There: accuracy at the best alpha.",
    "share B": "Share B: the part of B's units in the fused network.",
    "images": "Images: the training images that the method looked at, 0 for none.",
    "seconds": "Seconds: of matching and correcting, wall time.",
    "n": "n: independent pairs.",
}
_READ = ("drop, points", "against better, points", "barrier, points", "KL to ensemble, nats", "images")
READ = f"{' '.join(map(DEFINITIONS.get, _READ))} Parents: mean of both, of the same pairs."
CONTROLS = "Controls fuse nothing, or not by matching"
HOLM = "* differs with a family-wise error of 5 % over all comparisons here (Holm)"
DEVIATION = "mean ± standard deviation"
MIDPOINT = (
    ("test_accuracy", "accuracy, %"), ("test_loss", "loss, nats"), ("test_perplexity", "perplexity"),
    ("drop", "drop, points"),
    ("against_better", "against better, points"), ("barrier_accuracy", "barrier, points"),
    ("test_kl", "KL to ensemble, nats"), ("test_agreement", "agreement, %"),
    ("test_calibration", "calibration error, %"),
)  # fmt: skip
# Of it and what else a row says, what the LaTeX tables of papers show.
PAPER = ("test_accuracy", "test_perplexity", "drop", "against_better", "barrier_accuracy", "images", "seconds")
Name = Callable[[Row], str]


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

        def line(row: list[str]) -> str:
            if len(row) == 1:
                return row[0]
            cells = enumerate(zip(row, widths, strict=True))
            return "  ".join(c.ljust(w) if i < self.texts else c.rjust(w) for i, (c, w) in cells).rstrip()

        parts = ("\n".join([line(heads), rule, *map(line, rows)]) for heads, *rows in self.parts)
        return "\n\n".join([*filter(None, [self.title]), *parts]) + (f"\n{self.note}" if self.note else "")

    def latex(self, label: str = "") -> str:
        """Floats with captions for a document with booktabs, as wide as a column or a page: see `latex.floats`."""
        heads = {"α" if head.startswith("α=") else head for part in self.parts for head in part[0]}
        defined = dict.fromkeys(text for head, text in DEFINITIONS.items() if head in heads)
        told = [self.title, self.note, *defined]
        caption = " ".join(f"{text.rstrip('.')}." for text in " ".join(told[:1]).splitlines() + told[1:] if text)
        return latex.floats(self.parts, f"{caption[:1].upper()}{caption[1:]}", self.texts, label)

    def markdown(self) -> str:
        """The rows of all parts in one table under the first part's heads; columns of numbers to the right."""
        rows = [row for _, *rows in self.parts for row in rows]
        numbers = [any(latex.NUMBER.fullmatch(cell) for cell in column) for column in zip(*self.parts[0], strict=True)]
        heads, *lines = (f"| {' | '.join(row)} |" for row in (self.parts[0][0], *rows))
        return "\n".join([heads, f"|{'|'.join('--:' if right else '---' for right in numbers)}|", *lines])


def table(records: Records, split: str = "test", name: Name = curve_name) -> Table:
    """Accuracy (%), loss (nats) and, of models of text, perplexity of every curve at every alpha, and its barrier.

    Under them stand the parents and the controls, those a line each. Mean ± standard deviation where there are several
    pairs. `split` is "test" or "train".
    """
    summary = aggregate(records)
    alphas = _alphas(summary)
    parts = []
    shown = [(f"{split}_accuracy", "accuracy, %"), (f"{split}_loss", "cross-entropy, nats")]
    if summary["parents"]["a"].get(f"{split}_perplexity") is not None:
        shown.append((f"{split}_perplexity", "perplexity"))
    for metric, title in shown:
        part = [[title, *_alpha_heads(alphas), "barrier"]]
        for curve in summary["curves"]:
            places = (*(point_at(curve, alpha) for alpha in alphas), curve["barrier"])
            part.append([name(curve) + _own_n(curve, summary), *(_cell(place, metric) for place in places)])
        ends = (_cell(summary["parents"][side], metric) for side in ("a", "b"))
        measured = [row for row in summary["controls"] if row.get(metric) is not None]
        controls = [[f"{_control(row, name)}{_own_n(row, summary)}: {_cell(row, metric)}"] for row in measured]
        parts.append([*part, [f"parents A, B: {', '.join(ends)}"], *controls])
    images = summary["images"].get(split)
    words = [f"{split} split" + (f" ({images:,} images)" if images else "")]
    title = headline(records, *words, *([DEVIATION] if summary["n"] > 1 else []))
    return Table(parts, title, CONTROLS if any(len(row) == 1 for part in parts for row in part[:-1]) else "")


def _own_n(row: Row, summary: Row) -> str:
    """The n of a row that not every pair has."""
    return "" if row["n"] == summary["n"] else f" (n = {row['n']})"


def _control(row: Row, name: Name) -> str:
    return f"control: {name(row).removeprefix('control: ')}"


def compare(record: Row, reference: Row | None = None) -> Table:
    """Published numbers and what the record's curves differ from them, matched by alpha; the measured ones themselves
    are `table`'s.

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
        unit = "%" if metric.endswith("accuracy") else "nats"
        part = [[f"{metric.replace('_', ' ')}, {unit}", "", *_alpha_heads(alphas), "barrier"]]
        for curve in summary["curves"]:
            values, line = published.get(curve_key(curve)), published.get(("none", "none"))
            if not values:
                continue
            theirs = dict(zip(reference["alphas"], values, strict=True))
            ours = [*(point_at(curve, alpha).get(metric) for alpha in alphas), curve["barrier"][metric]]
            others = [*map(theirs.get, alphas), _barrier(theirs, line, metric) if line else None]
            differences = [None if None in pair else pair[0] - pair[1] for pair in zip(ours, others, strict=True)]
            part.append([curve_name(curve), "published", *(_number(value, metric) for value in others)])
            part.append(["", "measured − published", *(_number(value, metric, "+") for value in differences)])
        parts += [part] if len(part) > 1 else []
    known, source = REFERENCE.get(record["experiment"]), "none known"
    if reference:
        source = reference["source"] if parts else f"none of these curves in {reference['source']}"
    elif known:
        source = f"none shown; the published values are for {model_label(known['model'])} on {known['dataset']}"
    return Table(parts, f"{headline(record, 'measured against published values')}\npublished: {source}", texts=2)


def midpoints(records: Iterable[Row]) -> Table:
    """Every curve and control of several records at alpha 0.5, a part a record, beside what was published of it."""
    rows = []
    for nth, record in enumerate(records):
        published = {}
        if reference := reference_for(record):
            middle = reference["alphas"].index(0.5)
            published = {key: curve["test_accuracy"][middle] for key, curve in reference["curves"].items()}
        for row in leaderboard_rows([record]):
            rows.append(row | {"record": nth, "published": None if "control" in row else published.get(curve_key(row))})
    cells = {
        "accuracy, %": partial(_cell, metric="test_accuracy"),
        "published, %": lambda row: _number(row["published"], "test_accuracy"),
    }
    return Table(_by_kind(rows, curve_name, cells), "at α = 0.5")


def leaderboard_table(rows: Iterable[Row], name: Name = curve_name, metrics: Iterable[str] | None = None) -> Table:
    """`leaderboard_rows` (of one or several kinds of pair), a part a kind, mean ± standard deviation over pairs;
    columns in which nothing was measured are left out. `metrics`: which columns of the rows are shown; all by default.
    """
    cells = {metric: (head, partial(_cell, metric=metric)) for metric, head in MIDPOINT}
    cells["best_alpha"] = "best alpha", lambda row: _formatted(row.get("best_alpha"), ".2g")
    cells["best_accuracy"] = "there, %", partial(_cell, metric="best_accuracy")
    cells["share_b"] = "share B", lambda row: _formatted(row.get("share_b"), ".2f")
    cells["images"] = "images", lambda row: _formatted(row.get("images"))
    cells["seconds"] = "seconds", lambda row: _formatted(row.get("seconds"), ".1f")
    shown = dict(cells[metric] for metric in (cells if metrics is None else metrics) if metric in cells)
    return Table(_by_kind(rows, name, shown | {"n": lambda row: f"{row['n']}"}), f"{DEVIATION} over pairs")


def _by_kind(rows: Iterable[Row], name: Name, cells: Mapping[str, Callable[[Row], str]]) -> list[list[list[str]]]:
    """A part for each kind of pair in `leaderboard_rows` (and each `record`, where rows name one), its controls under
    the curves; `cells` by their heads."""
    rows = list(rows)
    cells = _measured(rows, cells)
    parts = []
    for (*kind, _), alike in grouped(rows, "architecture", "dataset", "record").items():
        part, controls = [[" on ".join(kind), *cells]], [row for row in alike if "control" in row]
        for row in (*_fused(alike), *controls):
            if controls and row is controls[0]:
                part.append([""])
            label = curve_label(row) if "control" in row else name(row)
            part.append([label, *(cell(row) for cell in cells.values())])
        parts.append(part)
    return parts


def _measured(rows: list[Row], cells: Mapping[str, Callable[[Row], str]]) -> dict[str, Callable[[Row], str]]:
    """Those columns in which something stands."""
    return {head: cell for head, cell in cells.items() if not rows or any(cell(row) != "—" for row in rows)}


def leaderboard_latex(rows: Iterable[Row], label: str) -> str:
    """`leaderboard_table` as floats of their own, one or more a kind of pair, which ends the label."""
    kinds = grouped(rows, "architecture", "dataset")
    return "\n".join(
        leaderboard_table(alike, curve_label, PAPER).latex(f"{label}-{'-'.join(kind)}") for kind, alike in kinds.items()
    )


def pooled_table(rows: Iterable[Row], name: Name = curve_name, metrics: Iterable[str] | None = None) -> Table:
    """`leaderboard_rows` without what belongs to the leaderboard: every curve at the midpoint, and every control but
    each parent alone, with their intervals. `metrics`: which columns of the rows are shown; all by default."""
    heads = dict((*MIDPOINT, ("drop_loss", "drop, nats")))
    shown = [metric for metric in (heads if metrics is None else metrics) if metric in heads]
    cells = {heads[metric]: partial(interval_cell, metric=metric) for metric in shown}
    return Table(_by_kind(_no_parents(rows), name, cells | {"n": lambda row: f"{row['n']}"}), note=INTERVALS)


def results_table(rows: Iterable[Row]) -> Table:
    """`leaderboard_rows` of many kinds of pair, each row with the name of its "records": a curve or a control (but each
    parent alone) a row; columns in which nothing was measured are left out."""
    cells: dict[str, Callable[[Row], str]] = {
        "networks": lambda row: row["architecture"],
        "data set": lambda row: row["dataset"],
        "matching": lambda row: f"control: {row['control']}" if "control" in row else f"`{row['matcher']}`",
        "correction": lambda row: "" if "control" in row else f"`{row['correction']}`",
        "images": lambda row: _formatted(row["images"], ",d"),
        "midpoint, %": lambda row: interval_cell(row, "test_accuracy"),
        "perplexity": lambda row: interval_cell(row, "test_perplexity"),
        "drop, points": lambda row: interval_cell(row, "drop"),
        "against better, points": lambda row: interval_cell(row, "against_better"),
        "barrier, points": lambda row: interval_cell(row, "barrier_accuracy"),
        "KL, nats": lambda row: interval_cell(row, "test_kl"),
        "calibration error, %": lambda row: interval_cell(row, "test_calibration"),
        "parents, %": lambda row: _number(row["parents_accuracy"], "accuracy"),
        "n": lambda row: f"{row['n']}",
        "records": lambda row: f"`{row['records']}`",
    }
    rows = _no_parents(rows)
    cells = _measured(rows, cells)
    return Table([[list(cells), *([cell(row) for cell in cells.values()] for row in rows)]])


def summary_table(summary: Iterable[Row]) -> Table:
    """`evidence.summary`, one metric, curves down: mean, interval, n of the pairs there are; of differences the p value
    and that adjusted for all comparisons in the table, starred where it is below 5 %."""
    summary = list(summary)
    compared = any("p_holm" in row for row in summary)
    parts = []
    for alike in grouped(summary, "model", "width", "norm", "dataset", *CIRCUMSTANCES).values():
        kind = model_label(alike[0] | {"name": alike[0]["model"]})
        words = ", ".join([f"{kind} on {alike[0]['dataset']}", *circumstances(alike[0], summary)])
        heads = ["p", "p, Holm"] if compared else []
        part = [[words, "mean", "95 % interval", *heads, "n"]]
        for row in alike:
            mean, low, high = (_number(row[of], row["metric"]) for of in ("mean", "low", "high"))
            ends = "—" if row["low"] is None else f"[{low}, {high}]"
            count = str(row["n"]) if row["n"] == row["pairs"] else f"{row['n']} of {row['pairs']}"
            tests = [_formatted(row["p"], ".3f"), _formatted(row["p_holm"], ".3f")] if compared else []
            if compared and survives(row):
                tests[1] += "*"
            name = f"control: {row['curve']}" if row.get("control") else row["curve"]
            part.append([name, mean, ends, *tests, count])
        parts.append(part)
    return Table(parts, note=f"Student's t, paired. {HOLM}" if compared else "")


def widths_table(records: Records, name: Name = curve_label) -> Table:
    """Drop at the midpoint (points), mean [95 % interval]: a row a curve, a column a width, n under each."""
    what, means = by_width(records)
    labels = {curve_key(curve): name(curve) for summary in means.values() for curve in summary["curves"]}
    part = [["width", *(f"×{width_label(width)}" for width in means)], ["n", *(f"{m['n']}" for m in means.values())]]
    for key, label in labels.items():
        curves = [curve_of(summary, *key) for summary in means.values()]
        part.append([label, *(interval_cell(point_at(curve, 0.5) if curve else {}, "drop") for curve in curves)])
    title = f"{what}, drop at the midpoint below the parents' mean (points), mean [95 % interval]"
    return Table([part], title, INTERVALS)


def _no_parents(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.get("control") not in PARENTS]


def _fused(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if "control" not in row]


def _alphas(summary: Row) -> list[float]:
    return sorted({round(point["alpha"], 6) for curve in summary["curves"] for point in curve["points"]})


def _alpha_heads(alphas: list[float]) -> list[str]:
    return [f"{alpha:g}" if i else f"α={alpha:g}" for i, alpha in enumerate(alphas)]


def _barrier(curve: Mapping[float, float], ends: tuple[float, ...], metric: str) -> float:
    sign = 1 if metric.endswith("accuracy") else -1
    return max(sign * ((1 - alpha) * ends[0] + alpha * ends[-1] - value) for alpha, value in curve.items())


def _formatted(value: float | None, form: str = "d") -> str:
    return "—" if value is None else f"{value:{form}}"


def _number(value: float | None, metric: str, sign: str = "", digits: int = 2) -> str:
    scaled = value is not None and percent(metric) == 100
    return _formatted(100 * value if scaled else value, f"{sign}z.{digits if scaled else digits + 1}f")


def _cell(row: Row, metric: str) -> str:
    text, spread = _number(row.get(metric), metric), row.get(f"{metric}_std")
    return text if spread is None else f"{text} ± {_number(spread, metric)}"


def interval_cell(row: Row, metric: str, digits: int = 2) -> str:
    """Mean and 95 % interval: "57.53 [52.83, 62.23]", the mean alone where there is no interval. `digits`: of numbers
    in per cent; others have one more."""
    text = _number(row.get(metric), metric, digits=digits)
    if row.get(f"{metric}_low") is None:
        return text
    ends = (_number(row[f"{metric}_{end}"], metric, digits=digits) for end in ("low", "high"))
    return f"{text} [{', '.join(ends)}]"


def interval_text(found: Interval) -> str:
    """A mean of fractions and its interval in per cent: "57.5 [52.8, 62.2]", the mean alone where there is none."""
    ends = "" if found.low is None else f" [{100 * found.low:z.1f}, {100 * found.high:z.1f}]"
    return f"{100 * found.mean:z.1f}{ends}".replace("-", "−")


def save_table(table: Table, stem: str, folder: Path) -> Path:
    """Writes a table as LaTeX, <folder>/<stem>.tex, with `label_of` both as its label; returns the path."""
    return write_text(table.latex(label_of(stem, folder)), folder / f"{stem}.tex")


def label_of(stem: str, folder: Path) -> str:
    """The label of a table: its stem in the repo's own figures/, elsewhere with the name of the folder, which says what
    was run, so that the tables of two runs go into one paper. Of a sweep's figures/ the folder is the sweep's."""
    folder = folder.resolve()
    if folder == FIGURES:
        return stem
    run = (folder.parent if folder.name == FIGURES.name else folder).name
    return run if run.startswith(stem) else f"{run}_{stem}"


def write_text(text: str, path: Path) -> Path:
    """Writes a table, whole or not at all; returns `path`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
