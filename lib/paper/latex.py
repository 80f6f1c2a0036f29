"""Tables as LaTeX: whole floats that fit the column, or the page, of the usual styles.

A table as wide as a column of ICML, the narrowest, is a `table`; a wider one a `table*`, as wide as the text of a plain
`article`, which is narrower than that of NeurIPS and two columns of ICML or IEEE. What is wider still is set in blocks
of columns under each other, what is longer than a page in several floats. Documents need booktabs.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence

COLUMN, PAGE = 234.0, 344.5  # points, of 72.27 to the inch: 3.25 inches, and the 345 points of article, less a hair
# Letters against those of 10 points; points of a line's height, and between columns.
SIZES = {"footnotesize": (0.86, 9.5, 6.0), "scriptsize": (0.8, 8.0, 3.8)}
TALLEST = 500.0  # points of a float without its caption
WRAPPED = {COLUMN: (90.0,), PAGE: (170.0, 130.0, 100.0)}  # points of all columns of words, at most: the first that fits
NUMBER = re.compile(r"[-+−α=\d., ±\[\]]+")
PREAMBLE = r"% needs \usepackage{booktabs}"

# Points of Computer Modern Roman at 10 points, rounded up, 5 of any other; styles with Times are narrower.
_GROUPS = {"il.,:;|'![]": 2.8, " fjI": 3.7, "rst": 4.0, "cez": 4.5, "kqvxy": 5.3, "bdhnpu": 5.6, "mwMW%—×±=+−": 8.4}
_WIDTHS = {letter: points for letters, points in _GROUPS.items() for letter in letters}
_TEX = {"\\": r"\textbackslash{}", "×": r"$\times$", "α": r"$\alpha$", "σ": r"$\sigma$", "±": r"$\pm$", "−": "$-$"}
_TEX |= {"–": "--", "→": r"$\to$", "≥": r"$\geq$", "<": "$<$", ">": "$>$", "’": "'", "`": "", "~": r"\textasciitilde{}"}
_TEX |= {character: f"\\{character}" for character in "&%$#{}"}
_TEX |= {"_": r"\_\allowbreak{}", "=": r"=\allowbreak{}"}  # names may be broken there
_MATHS = {"±": r"\pm", "α": r"\alpha", "−": "-", " [": r"\; ["}


def cell(text: str) -> str:
    """A table's cell, words escaped, numbers as mathematics."""
    if text == "—":
        return "---"
    if NUMBER.fullmatch(text):
        for plain, tex in _MATHS.items():
            text = text.replace(plain, tex)
        return f"${text}$"
    return "".join(_TEX.get(character, character) for character in text).replace(r"=\allowbreak{} ", "= ")


def width(text: str) -> float:
    """Points that a cell takes at 10 points, rather too many than too few."""
    if NUMBER.fullmatch(text):
        text = text.replace("-", "−")  # its hyphens are set as minus signs, which are wider
    return sum(_WIDTHS.get(letter, 7.6 if letter.isupper() else 5.0) for letter in text)


def floats(parts: Iterable[list[list[str]]], caption: str, texts: int = 1, label: str = "") -> str:
    """The parts of a `tables.Table` as one float, or as several where one would be longer than a page.

    Args:
        caption: whatever is needed to read the table; goes over each float, shortened to its first sentence from the
            second one on.
        texts: how many columns of words stand before those of numbers.
        label: of the first float, as tab:<label>.
    """
    parts = list(parts)
    whole, size = next(
        ((wide, size) for wide, size in ((COLUMN, "footnotesize"), (PAGE, "footnotesize"))
         if all(_fit(part, texts, size, wide) for part in parts)),
        (PAGE, "scriptsize"),
    )  # fmt: skip
    blocks = [block for part in parts for block in _blocks(part, texts, size, whole)]
    kind = "table" if whole == COLUMN else "table*"
    lines = [PREAMBLE]
    for number, page in enumerate(_pages(blocks, SIZES[size][1])):
        first = caption.partition(". ")[0].rstrip(".")
        lines += [rf"\begin{{{kind}}}", r"\centering"]
        lines += [rf"\caption{{{cell(caption if not number else f'{first}, continued.')}}}"] if caption else []
        lines += [rf"\label{{tab:{re.sub(r'[^A-Za-z0-9.]+', '-', label)}}}"] if label and not number else []
        lines += [rf"\{size}", rf"\setlength{{\tabcolsep}}{{{SIZES[size][2] / 2:g}pt}}"]
        lines += ["\n\\par\\medskip\n".join(page), rf"\end{{{kind}}}"]
    return "\n".join([*lines, ""])


Rows = list[list[str]]


def _columns(part: Rows, texts: int, size: str, most: float = math.inf) -> list[float]:
    """The width of each column, in points; those of words are `most` wide at most. Heads of numbers stand on two lines,
    what and in which unit."""
    heads, *rows = (row for row in part if len(row) == len(part[0]))
    cells = [[head, *column] for head, *column in zip(heads, *rows, strict=True)]
    cells = [column if i < texts else [*column[0].split(", "), *column[1:]] for i, column in enumerate(cells)]
    widest = [SIZES[size][0] * max(map(width, column)) for column in cells]
    return [min(each, most) if i < texts else each for i, each in enumerate(widest)]


def _fit(part: Rows, texts: int, size: str, whole: float) -> float | None:
    """How wide a column of words may be for all columns to fit beside each other; None where they do not, or a row of
    one cell does not."""
    letters, _, gap = SIZES[size]
    if any(letters * width(row[0]) + gap > whole for row in part if len(row) == 1):
        return None
    for most in WRAPPED[whole]:
        columns = _columns(part, texts, size, most / texts)
        if sum(columns) + gap * len(columns) <= whole:
            return most / texts
    return None


def _groups(widths: Sequence[float], room: float) -> list[list[int]]:
    """The places of columns, in as few groups as fit `room`, and these about equally wide."""
    groups, left = [[]], room
    for place, each in enumerate(widths):
        if groups[-1] and each > left:
            groups.append([])
            left = room
        groups[-1].append(place)
        left -= each
    tighter = _groups(widths, 0.95 * room) if max(widths, default=0) <= 0.95 * room else []
    return tighter if len(tighter) == len(groups) else groups


def _blocks(part: Rows, texts: int, size: str, whole: float) -> Iterator[tuple[Rows, list[str], list[int]]]:
    """Blocks of columns that fit under each other: rows, LaTeX's name of each column, lines that each row takes."""
    most = _fit(part, texts, size, whole) or WRAPPED[whole][0] / texts
    widths, natural = (_columns(part, texts, size, limit) for limit in (most, math.inf))
    words = [f"p{{{most:.0f}pt}}" if natural[i] > most else "l" for i in range(texts)]
    lines = [
        max(math.ceil(1.15 * SIZES[size][0] * width(row[i]) / most) if words[i] != "l" else 1 for i in range(texts))
        if len(row) > 1 else 1
        for row in part
    ]  # fmt: skip
    gap = SIZES[size][2]
    room = whole - sum(widths[:texts]) - gap * texts
    ends = next((i for i, row in enumerate(reversed(part)) if len(row) > 1), 0)  # lines that close the part: said once
    groups = _groups([each + gap for each in widths[texts:]], room)
    for number, group in enumerate(groups, start=1):
        rows = [row if len(row) < len(widths) else [*row[:texts], *(row[texts + i] for i in group)] for row in part]
        shown = len(rows) - (ends if number < len(groups) else 0)
        yield rows[:shown], [*words, *("r" * len(group))], lines[:shown]


def _pages(blocks: Iterable[tuple[Rows, list[str], list[int]]], line: float) -> Iterator[list[str]]:
    """Tabulars, as many together as fit a float; a block that is longer is cut between rows."""
    page, left = [], TALLEST
    for (heads, *rows), columns, (_, *lines) in blocks:
        while rows:
            room, count = (left if sum(lines) + 4 <= left / line else TALLEST) - 4 * line, 0  # heads and rules take 4
            while count < len(rows) and sum(lines[: count + 1]) * line <= room:
                count += 1
            if page and (sum(lines[:count]) + 4) * line > left:
                yield page
                page, left = [], TALLEST
            page.append(_tabular(heads, rows[:count], columns))
            left -= (sum(lines[:count]) + 5) * line
            rows, lines = rows[count:], lines[count:]
    if page:
        yield page


def _tabular(heads: list[str], rows: Rows, columns: list[str]) -> str:
    def line(row: list[str]) -> str:
        if row == [""]:
            return r"\addlinespace"
        if len(row) == 1 < len(columns):
            return rf"\multicolumn{{{len(columns)}}}{{l}}{{{cell(row[0])}}} \\"
        # words that are wrapped: ragged, the lines behind the first one moved in
        wrap = [r"\raggedright\hangindent=1em " if of.startswith("p") else "" for of in columns]
        return " & ".join(before + cell(text) for before, text in zip(wrap, row, strict=True)) + r" \\"

    split = [head.split(", ", 1) if of == "r" else [head] for head, of in zip(heads, columns, strict=True)]
    inside = [line([head[0] for head in split])]
    if any(len(head) > 1 for head in split):
        inside.append(line([head[1] if len(head) > 1 else "" for head in split]))
    inside += [r"\midrule", *map(line, rows)]
    spec = "".join(columns)
    return "\n".join([rf"\begin{{tabular}}{{{spec}}}", r"\toprule", *inside, r"\bottomrule", r"\end{tabular}"])
