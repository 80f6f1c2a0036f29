"""Tables and figures in a paper: every one there is compiles at one and at two columns, and none sticks out."""

import itertools
import re
import shutil
import subprocess

import pytest

from lib.paper import latex, tables, write
from lib.paper.names import CONTROLS, curve_label
from lib.paths import FIGURES, ROOT
from tests.records.test_results import curve, pair

ONE = r"\documentclass{article}\usepackage[textwidth=5.5in,textheight=9in]{geometry}"  # NeurIPS
TWO = r"\documentclass[twocolumn]{article}\usepackage[textwidth=%s,columnsep=%s,textheight=9in]{geometry}"
ARTICLE = r"\documentclass{article}"
STYLES = {"article": ARTICLE, "neurips": ONE, "icml": TWO % ("6.75in", "0.25in"), "ieee": TWO % ("7.16in", "0.16in")}

needs_pdflatex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (texlive-latex-extra)")


def compiled(folder, style, body):
    """What pdflatex complains of: overfull boxes, floats longer than a page, errors."""
    text = (
        rf"{STYLES[style]}\usepackage{{booktabs,graphicx}}\extrafloats{{500}}\begin{{document}}{body}\end{{document}}"
    )
    (folder / "paper.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "paper.tex"]
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)
    log = (folder / "paper.log").read_text(errors="replace")
    assert "Output written" in log, log[-2000:]
    return re.findall(r"^(?:Overfull.*|!.*|.*Float too large.*)$", log, re.MULTILINE)


@pytest.fixture(scope="module")
def every_table():
    """{file: text} of all tables that `make figures` writes from the tracked records."""
    kinds, sweeps, skipped = write.read(ROOT / "data" / "results")
    rows = write.pooled_rows(kinds, sweeps)
    folder = ROOT / "data" / "results"
    contents = [write._contents_of_kinds(kinds, rows, folder, FIGURES, skipped)]
    contents += [write._contents_of_sweep(name, records, rows, folder / name) for name, records in sweeps.items()]
    made = {name: content for name, content in itertools.chain(*contents) if name.endswith(".tex")}
    return {name: c if isinstance(c, str) else c.latex(name.removesuffix(".tex")) for name, c in made.items()}


@needs_pdflatex
@pytest.mark.parametrize("style", STYLES)
def test_every_table_fits_its_column_and_its_page(every_table, style, tmp_path):
    assert len(every_table) > 20
    for name, text in every_table.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    body = "".join(rf"\input{{{name}}}\clearpage " for name in every_table)
    assert compiled(tmp_path, style, body) == []


@needs_pdflatex
@pytest.mark.parametrize("style", ["neurips", "icml", "ieee"])
def test_every_figure_fits_its_column_and_its_page(style, tmp_path):
    """At its own size, or at the style's where that is narrower: they are made for IEEE's."""
    column, page = {"neurips": (5.5, 5.5), "icml": (3.25, 6.75), "ieee": (3.5, 7.16)}[style]
    body = ""
    for path in sorted((ROOT / "figures").glob("*.pdf")):
        kind, there = ("figure*", page) if box(path) > 3.5 else ("figure", column)
        width = r"\includegraphics[width=\linewidth]{" if box(path) > there else r"\includegraphics{"
        body += rf"\begin{{{kind}}}\centering {width}{path.with_suffix('')}.pdf}}\end{{{kind}}}\clearpage "
    assert body and compiled(tmp_path, style, body) == []


def box(path):
    """The width of a PDF's page, in inches."""
    left, _, right, _ = re.search(rb"/MediaBox \[([^\]]+)\]", path.read_bytes())[1].split()
    return (float(right) - float(left)) / 72


@needs_pdflatex
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("alphas", [1, 3, 5, 11])
def test_the_table_of_any_run_fits(style, count, alphas, tmp_path):
    """Of one pair and of several, with few alphas and many, and all controls there are."""
    shares = [i / (alphas - 1) for i in range(alphas)] if alphas > 1 else [0.5]
    methods = [("graph_reference", "none"), ("activation(tap=pre_norm)", "bn_reset"), ("none", "least_squares")]
    controls = {name: {"test_accuracy": 0.9, "test_loss": 0.3} for name in (*CONTROLS, "distillation(steps=100)")}
    records = {}
    for seed in range(count):
        curves = [curve(m, (0.83 - seed / 9,) * alphas, shares, correction=c) for m, c in methods]
        records[f"s{seed}"] = pair(*curves, controls=controls, seeds={"a": 2 * seed, "b": 2 * seed + 1, "match": 0})
    (tmp_path / "run.tex").write_text(tables.table(records, name=curve_label).latex("run"), encoding="utf-8")
    assert compiled(tmp_path, style, r"\input{run.tex}") == []


def test_eleven_alphas_of_one_pair_stay_in_one_block():
    text = tables.table(pair(curve("graph_reference", (0.8,) * 11, [i / 10 for i in range(11)])), name=curve_label)
    assert text.latex().count(r"\begin{tabular}") == 2, "one of the accuracy, one of the loss"


@needs_pdflatex
def test_what_sticks_out_is_found(tmp_path):
    wide = tables.Table([[["a", *["head, %"] * 12], ["b", *["83.16 [77.47, 88.85]"] * 12]]])
    body = (
        r"\begin{table}\begin{tabular}{lrrrrrrrrrrrr}"
        + " & ".join(["$83.16 [77.47]$"] * 13)
        + r"\end{tabular}\end{table}"
    )
    assert compiled(tmp_path, "icml", body)
    assert compiled(tmp_path, "icml", wide.latex()) == []


@pytest.mark.skipif(shutil.which("pdffonts") is None, reason="needs pdffonts (poppler-utils)")
def test_figures_hold_truetype_fonts_alone():
    for path in (ROOT / "figures").glob("*.pdf"):
        listed = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
        assert listed and all("TrueType" in line for line in listed), path.name


def test_a_narrow_table_takes_a_column_and_a_wide_one_the_page_in_blocks():
    narrow = tables.Table([[["a", "mean, %"], ["b", "1.00"]]], note="what it says").latex("some_name")
    assert r"\begin{table}" in narrow and r"\caption{What it says.}" in narrow and r"\label{tab:some-name}" in narrow
    assert narrow.startswith(r"% needs \usepackage{booktabs}")
    heads = [f"metric {i}, %" for i in range(12)]
    wide = tables.Table([[["a", *heads], ["b", *[f"{i}.00 [0.00, 99.00]" for i in range(12)]]]]).latex()
    assert r"\begin{table*}" in wide and wide.count(r"\begin{tabular}") == 3
    assert all(f"${i}.00" in wide for i in range(12))


def test_lines_that_close_a_table_are_said_once():
    heads = [f"metric {i}, %" for i in range(12)]
    rows = [["a", *heads], ["b", *[f"{i}.00 [0.00, 99.00]" for i in range(12)]], ["parents"], ["control"]]
    text = tables.Table([rows]).latex()
    assert text.count(r"\begin{tabular}") == 3 and text.count("{parents}") == text.count("{control}") == 1
    assert text.index("$11.00") < text.index("{parents}")


def test_a_long_table_is_cut_into_floats_that_each_have_a_caption():
    rows = [[f"row {i}", f"{i}"] for i in range(150)]
    text = tables.Table([[["a", "n"], *rows]], "Rows. Many of them").latex("rows")
    assert text.count(r"\begin{table}") == text.count(r"\caption{Rows") == text.count(r"\toprule") == 4
    assert text.count(r"\label") == 1 and text.count("continued") == 3
    assert all(f"row {i} &" in text for i in range(150))


def test_captions_define_what_stands_in_the_heads():
    table = tables.Table([[["x", "drop, points"], ["none", "1.0"]]], "SimpleNet on mnist, one pair (n = 1)")
    caption = r"\caption{SimpleNet on mnist, one pair (n = 1). Drop: the parents' mean $-$ the fused network.}"
    assert caption in table.latex()


@pytest.mark.parametrize(
    ("cell", "tex"),
    [
        ("—", "---"),
        ("−1.2 [−10.4, 7.9]", r"$-1.2\; [-10.4, 7.9]$"),
        ("50 ± 1", r"$50 \pm 1$"),
        ("α=0.5", r"$\alpha=0.5$"),
        ("Frank–Wolfe, 5 %", r"Frank--Wolfe, 5 \%"),
        ("a_b", r"a\_\allowbreak{}b"),
    ],
)
def test_cells_are_words_or_mathematics(cell, tex):
    assert latex.cell(cell) == tex


def test_a_minus_is_as_wide_in_a_number_as_it_is_set():
    assert latex.width("-1.5 [-2.5, -0.5]") == latex.width("\N{MINUS SIGN}1.5 [\N{MINUS SIGN}2.5, \N{MINUS SIGN}0.5]")
    assert latex.width("cifar10-jpeg") < latex.width("cifar10\N{MINUS SIGN}jpeg")
