"""Tables of run records: text for notebooks, LaTeX for papers, Markdown for the README.

All from lib.results' records and means; "—" (LaTeX: ---) stands where nothing was measured.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..paths import atomic
from ..records import curve_key, point_at
from .names import REFERENCES, curve_label, curve_name, model_label, width_label
from .pool import Records, aggregate, headline, one_dataset, reference_for
from .published import REFERENCE


def table(records: Records, split: str = "test") -> str:
    """Accuracy (%) and loss (nats) of every curve at every alpha, and its barrier, as text.

    Mean ± standard deviation where there are several pairs, "—" where nothing was measured. `split` is "test"
    or "train".
    """
    summary = aggregate(records)
    alphas = _alphas(summary)
    images = summary["images"].get(split)
    told = f"{split} split" + (f" ({images:,} images)" if images else "")
    lines = [headline(records, told, *_spread(summary)), ""]
    body = []
    for metric, title in ((f"{split}_accuracy", "accuracy, %"), (f"{split}_loss", "cross-entropy, nats")):
        body.append([title, *(f"{alpha:g}" for alpha in alphas), "barrier"])
        for curve in summary["curves"]:
            cells = [_cell(point_at(curve, alpha), metric) for alpha in alphas]
            name = curve_name(curve) + ("" if curve["n"] == summary["n"] else f" (n = {curve['n']})")
            body.append([name, *cells, _cell(curve["barrier"], metric)])
        ends = [_cell(summary["parents"][side], metric) for side in ("a", "b")]
        body.append([f"parents A, B: {ends[0]}, {ends[1]}"])
    return "\n".join(lines + _columns(body, heads={0, len(summary["curves"]) + 2}))


def compare(record: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> str:
    """The record's curves beside published numbers, matched by alpha; "—" where there is none.

    `reference` has the shape of an entry of REFERENCE. Without one, the entry of the record's experiment is
    used where data set and width match, and a line says what differs where they do not.
    """
    reference = reference or reference_for(record)
    summary = aggregate(record)
    alphas = _alphas(summary)
    source = reference["source"] if reference else _no_reference(record)
    lines = [headline(record, "measured against reference"), f"reference: {source}", ""]
    body, heads = [], set()
    for metric in ("test_accuracy", "test_loss", "train_accuracy", "train_loss"):
        known = (reference or {}).get("curves", {})
        published = {key: curve[metric] for key, curve in known.items() if metric in curve}
        measured = any(p[metric] is not None for curve in summary["curves"] for p in curve["points"])
        if not (published or measured):
            continue
        split, quantity = metric.split("_")
        heads.add(len(body))
        unit = "%" if quantity == "accuracy" else "nats"
        body.append([f"{split} {quantity}, {unit}", "", *(f"{alpha:g}" for alpha in alphas), "barrier"])
        for curve in summary["curves"]:
            ours = {round(p["alpha"], 6): p[metric] for p in curve["points"]}
            values = published.get(curve_key(curve))
            theirs = dict(zip(reference["alphas"], values, strict=True)) if values else {}
            line = published.get(("none", "none"), ())
            barriers = curve["barrier"][metric], _barrier(theirs, line, metric) if theirs and line else None
            pairs = [(ours.get(alpha), theirs.get(alpha)) for alpha in alphas] + [barriers]
            differences = [None if None in pair else pair[0] - pair[1] for pair in pairs]
            body.append([curve_name(curve), "measured", *(_number_text(m, metric) for m, _ in pairs)])
            if published:
                body.append(["", "reference", *(_number_text(r, metric) for _, r in pairs)])
            if theirs:
                body.append(["", "difference", *(_number_text(d, metric, "+") for d in differences)])
    return "\n".join(lines + _columns(body, heads, texts=2))


def _no_reference(record: Mapping[str, Any]) -> str:
    known = REFERENCE.get(record["experiment"])
    if known is None:
        return "none known"
    return f"none shown; the published values are for {model_label(known['model'])} on {known['dataset']}"


def latex(records: Records, split: str = "test") -> str:
    """`table` as a booktabs tabular, to input inside any table environment; first row: data set and n."""
    summary = aggregate(records)
    alphas = _alphas(summary)
    width = len(alphas) + 2
    lines = [
        r"\begin{tabular}{l" + "r" * (width - 1) + "}",
        r"\toprule",
        rf"\multicolumn{{{width}}}{{l}}{{{_escape(headline(records, f'{split} split', *_spread(summary)))}}} \\",
    ]
    for metric, title in ((f"{split}_accuracy", r"Accuracy, \%"), (f"{split}_loss", "Cross-entropy, nats")):
        heads = [rf"$\alpha={alpha:g}$" if not i else f"${alpha:g}$" for i, alpha in enumerate(alphas)]
        lines += [r"\midrule", _latex_row([title, *heads, "barrier"]), r"\midrule"]
        for curve in summary["curves"]:
            cells = [_latex_cell(point_at(curve, alpha), metric) for alpha in alphas]
            lines.append(_latex_row([_escape(curve_label(curve)), *cells, _latex_cell(curve["barrier"], metric)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def leaderboard_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """`leaderboard_rows` (of one or several kinds of pair, one after another) as text, mean ± standard deviation."""
    heads = [
        "accuracy, %", "loss, nats", "barrier, points", "best alpha", "there, %", "share B", "images", "seconds", "n",
    ]  # fmt: skip
    body, titles = [], set()
    kind = None
    for row in rows:
        if kind != (kind := (row["architecture"], row["dataset"])):
            titles.add(len(body))
            body.append([f"{kind[0]} on {kind[1]}", *heads])
        body.append([_row_name(row, curve_name), *_leaderboard_cells(row, _cell), str(row["n"])])
    return "\n".join(_columns(body, heads=titles))


def leaderboard_latex(rows: Iterable[Mapping[str, Any]]) -> str:
    """`leaderboard_table` as booktabs tabulars, one a kind of pair."""
    heads = [r"Acc., \%", "Loss, nats", "Barrier", r"Best $\alpha$", r"Acc. there, \%"]
    heads += ["Share B", "Images", "Seconds", "$n$"]
    begin = [r"\begin{tabular}{l" + "r" * len(heads) + "}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}", ""]
    lines: list[str] = []
    kind, previous = None, None
    for row in rows:
        if kind != (kind := (row["architecture"], row["dataset"])):
            title = _escape(f"{kind[0]} on {kind[1]}, mean ± standard deviation over pairs")
            lines += [*(end if lines else ()), *begin, rf"\multicolumn{{{len(heads) + 1}}}{{l}}{{{title}}} \\"]
            lines += [r"\midrule", _latex_row(["", *heads]), r"\midrule"]
        elif "reference" in row and "reference" not in previous:
            lines.append(r"\addlinespace")
        cells = _leaderboard_cells(row, _latex_cell, missing="---")
        lines.append(_latex_row([_escape(_row_name(row, curve_label)), *cells, str(row["n"])]))
        previous = row
    return "\n".join([*lines, *end])


INTERVALS = "mean [95 % interval] over n independent pairs: bootstrap over pairs, Student's t for n < 5, none for n < 3"


READ = (
    "Images: what matching and correction could look at. Barrier: over the alphas that were measured; with * from the "
    "midpoint alone. Parents: mean of both, of the same pairs."
)


def pooled_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as `leaderboard_rows` makes them, each with the name of its "records", as a Markdown table: what a README
    shows. References are left out."""
    lines = [
        "| networks | data set | matching | correction | images | midpoint, % | barrier, points | parents, % | n "
        "| records |",
        "|---|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        if "reference" not in row:
            names = [row["architecture"], row["dataset"], *(f"`{name}`" for name in curve_key(row))]
            numbers = [f"{row['images']:,}", *(pooled_cell(row, f"{what}_accuracy") for what in ("test", "barrier"))]
            numbers[-1] += "*" if row["alphas"] == 1 else ""
            numbers += [_number_text(row["parents_accuracy"], "accuracy"), str(row["n"]), f"`{row['records']}`"]
            lines.append(f"| {' | '.join(names + numbers)} |")
    return "\n".join(lines)


def pooled_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """`pooled_markdown` as text, for notebooks, with the losses."""
    body = [["", "accuracy, %", "loss, nats", "barrier, points", "barrier, nats", "n"]]
    for title, found in _by_kind(rows).items():
        body.append([title])
        for row in found:
            body.append([f"  {curve_name(row)}", *_pooled_cells(row), str(row["n"])])
    return "\n".join([*_columns(body, heads={0}), INTERVALS])


def pooled_latex(rows: Iterable[Mapping[str, Any]]) -> str:
    """`pooled_table` as a booktabs tabular."""
    heads = ["", r"Acc., \%", "Loss, nats", "Barrier, points", "Barrier, nats", "$n$"]
    lines = [f"% {INTERVALS}", r"\begin{tabular}{lrrrrr}", r"\toprule", _latex_row(heads)]
    for title, found in _by_kind(rows).items():
        lines += [r"\midrule", rf"\multicolumn{{6}}{{l}}{{{_escape(title)}}} \\"]
        for row in found:
            cells = [_math(cell) for cell in _pooled_cells(row)]
            lines.append(_latex_row([_escape(curve_label(row)), *cells, str(row["n"])]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _by_kind(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "reference" not in row:
            found.setdefault(f"{row['architecture']} on {row['dataset']}", []).append(row)
    return found


def _pooled_cells(row: Mapping[str, Any]) -> list[str]:
    return [pooled_cell(row, metric) for metric in ("test_accuracy", "test_loss", "barrier_accuracy", "barrier_loss")]


def summary_table(summary: Iterable[Mapping[str, Any]]) -> str:
    """`lib.evidence.summary` as text, one metric, curves down: mean, interval, n of the pairs there are."""
    body = [["", "mean", "95 % interval", "method", "n"]]
    kind = None
    for row in summary:
        model = {"name": row["model"], "width": row["width"], "norm": row["norm"]}
        if kind != (kind := f"{model_label(model)} on {row['dataset']}"):
            body.append([kind])
        mean = _number_text(row["mean"], row["metric"])
        low, high = (_number_text(row[end], row["metric"]) for end in ("low", "high"))
        ends = "—" if row["low"] is None else f"[{low}, {high}]"
        count = str(row["n"]) if row["n"] == row["pairs"] else f"{row['n']} of {row['pairs']}"
        body.append([f"  {row['curve']}", mean, ends, row["method"] or "—", count])
    return "\n".join(_columns(body, heads={0}))


def widths_table(records: Records) -> str:
    """Test accuracy barrier (points) of every curve at every width, mean [95 % interval], n a row, as text."""
    title, rows = _widths(one_dataset(records))
    return "\n".join([title, "", *_columns(rows, heads={0}), INTERVALS])


def widths_latex(records: Records) -> str:
    """`widths_table` as a booktabs tabular: a row a curve, a column a width."""
    title, rows = _widths(one_dataset(records))
    heads, *rows = map(list, zip(*rows, strict=True))
    width = len(heads)
    lines = [f"% {INTERVALS}", rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule"]
    lines += [rf"\multicolumn{{{width}}}{{l}}{{{_escape(title)}}} \\", r"\midrule"]
    lines += [_latex_row([_escape(cell) for cell in heads]), r"\midrule"]
    lines += [_latex_row([_escape(name), *(_math(cell) for cell in cells)]) for name, *cells in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _widths(records: list[Mapping[str, Any]]) -> tuple[str, list[list[str]]]:
    keys = dict.fromkeys(curve_key(curve) for r in records for curve in r["curves"])
    labels = [curve_label(dict(zip(("matcher", "correction"), key, strict=True))) for key in keys]
    rows = [["width", "n", *labels]]
    for width in sorted({r["model"]["width"] for r in records}):
        summary = aggregate([r for r in records if r["model"]["width"] == width])
        found = {curve_key(curve): curve["barrier"] for curve in summary["curves"]}
        cells = [pooled_cell(found.get(key, {}), "test_accuracy") for key in keys]
        rows.append([f"×{width_label(width)}", str(summary["n"]), *cells])
    names = dict.fromkeys(model_label(r["model"] | {"width": 1.0}) for r in records)
    title = f"{' + '.join(names)} on {records[0]['dataset']}, test accuracy barrier (points), mean [95 % interval]"
    return title, rows


def _row_name(row: Mapping[str, Any], name) -> str:
    return REFERENCES.get(row["reference"], row["reference"]) if "reference" in row else name(row)


def _leaderboard_cells(row: Mapping[str, Any], cell, missing: str = "—") -> list[str]:
    images = [row.get("match_images"), row.get("correct_images")]
    known = [count for count in images if count is not None]
    return [
        cell(row, "test_accuracy"),
        cell(row, "test_loss"),
        cell(row, "barrier_accuracy"),
        missing if row.get("best_alpha") is None else f"{row['best_alpha']:.2g}",
        cell(row, "best_accuracy"),
        missing if row.get("share_b") is None else f"{row['share_b']:.2f}",
        f"{max(known)}" if known else missing,
        missing if row.get("seconds") is None else f"{row['seconds']:.1f}",
    ]


def _spread(summary: Mapping[str, Any]) -> list[str]:
    return ["mean ± standard deviation"] if summary["n"] > 1 else []


def _alphas(summary: Mapping[str, Any]) -> list[float]:
    return sorted({round(point["alpha"], 6) for curve in summary["curves"] for point in curve["points"]})


def _barrier(curve: Mapping[float, float], ends: tuple[float, ...], metric: str) -> float:
    sign = 1 if metric.endswith("accuracy") else -1
    return max(sign * ((1 - alpha) * ends[0] + alpha * ends[-1] - value) for alpha, value in curve.items())


def _number_text(value: float | None, metric: str, sign: str = "") -> str:
    if value is None:
        return "—"
    return f"{100 * value:{sign}z.2f}" if "accuracy" in metric else f"{value:{sign}z.3f}"


def _cell(row: Mapping[str, Any], metric: str) -> str:
    text, spread = _number_text(row.get(metric), metric), row.get(f"{metric}_std")
    return text if spread is None else f"{text} ± {_number_text(spread, metric)}"


def pooled_cell(row: Mapping[str, Any], metric: str) -> str:
    """Mean and 95 % interval: "57.53 [52.83, 62.23]", the mean alone where there is no interval."""
    text = _number_text(row.get(metric), metric)
    if row.get(f"{metric}_low") is None:
        return text
    return f"{text} [{', '.join(_number_text(row[f'{metric}_{end}'], metric) for end in ('low', 'high'))}]"


def _latex_cell(row: Mapping[str, Any], metric: str) -> str:
    return _math(_cell(row, metric))


def _math(cell: str) -> str:
    if cell == "—":
        return "---"
    return f"${cell.replace('±', chr(92) + 'pm').replace(' [', chr(92) + '; [')}$"


def _latex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "×": r"$\times$", "α": r"$\alpha$", "±": r"$\pm$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)


def _columns(body: list[list[str]], heads: set[int], texts: int = 1) -> list[str]:
    """Rows as aligned lines: the first `texts` columns left, others right, a rule under the rows in `heads`.

    A row of one cell runs across the table.
    """
    full = [row for row in body if len(row) > 1]
    widths = [max(len(row[i]) for row in full) for i in range(len(full[0]))]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    lines = []
    for index, row in enumerate(body):
        cells = [c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))]
        line = "  ".join(cells).rstrip() if len(row) > 1 else row[0]
        lines += ["", line, rule] if index in heads and index else [line, rule] if index in heads else [line]
    return lines


def write_text(text: str, path: Path) -> Path:
    """Writes a table, whole or not at all; returns `path`."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
