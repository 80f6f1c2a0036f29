"""Pages in Markdown whose numbers come from records: README.md, lib/README.md, figures/README.md and figures/CLAIMS.md.

No measured number is typed into them. `make figures` fills in two kinds of places, and leaves all else as it is:

A table stands between two lines that name it, `<!-- speed: make figures writes this -->` and `<!-- end of speed -->`;
`write.page_tables` has the names of each page. Every row ends with the names of its records.

A number in a sentence stands behind a comment that says what it is, and ends with an empty one:

    Graph matching gains <!--= difference simplenet_pairs; graph; none -->8.8 [3.9, 13.8]<!--/--> points over none.

Write the comments, anything or nothing between them, and run `make figures`. The comment says what, of which records (a
name in the last column of figures/results.md, or the stem of one file of rows), and what it needs more, apart by
semicolons; it may run over a line's end:

    value RECORDS; CURVE [; METRIC]                 the mean over pairs: 77.6
    mean RECORDS; CURVE [; METRIC]                  the mean with its 95 % interval: 77.6 [77.3, 78.0]
    difference RECORDS; CURVE; AGAINST [; METRIC]   paired, with its interval: 8.8 [3.9, 13.8]
    ratio RECORDS; CURVE; OVER [; METRIC]           the mean of the pairs' ratios in per cent, with its interval
    n RECORDS; CURVE                                the number of pairs
    row RECORD; KEY=VALUE, …; FIELD                 a field of the one row of a study's record that has these values
    count RECORD; KEY=VALUE, …                      the number of rows that have these values
    measured RECORDS; KEY=VALUE, …; FIELD           the mean of a field over records, of which each has one such row
    gain RECORDS; KEY=VALUE, …; KEY=VALUE, …; FIELD the mean of the differences of two such rows of each record

A curve is called as in the tables, "activation + least_squares"; a control by its name, "head". METRIC is one of
`pool.MEASURES` or another column of `pool.rows`, test_accuracy where none is given (of a ratio drop). Accuracies and
other fractions come in per cent or points with one digit, all else with three; a last part such as `.2f` gives another
format, `.0f MB` (GB, TB, or %) divides a row's field first. Intervals and p values are those of `evidence`, at the
midpoint; where n allows none, the n is added.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checks import InputError, check_choice
from . import evidence, pool
from .style import percent
from .tables import write_text

NUMBER = re.compile(r"<!--= (?P<what>.*?) -->(?P<shown>.*?)<!--/-->", re.DOTALL)
TABLE = re.compile(
    r"<!-- (?P<name>[\w.]+): make figures writes this -->\n(?P<shown>.*?)\n?<!-- end of (?P=name) -->", re.DOTALL
)
UNITS = {"": 1, "%": 0.01, "MB": 1e6, "GB": 1e9, "TB": 1e12}

Pooled = Mapping[str, Mapping[str, Mapping[str, Any]]]  # what may be pooled, by name: {name: {stem: record}}


def filled(text: str, tables: Mapping[str, str], pooled: Pooled) -> str:
    """`text` with its tables (by name) and numbers as the records have them.

    Raises:
        InputError: in one line, for a number that the records do not hold, or a table that `tables` lacks.
    """

    def table(found: re.Match) -> str:
        check_choice("table", found["name"], tables)
        name = found["name"]
        return f"<!-- {name}: make figures writes this -->\n{tables[name]}\n<!-- end of {name} -->"

    def shown(found: re.Match) -> str:
        return f"<!--= {found['what']} -->{number(found['what'], pooled)}<!--/-->"

    return NUMBER.sub(shown, TABLE.sub(table, text))


def write_page(path: Path, tables: Mapping[str, str], pooled: Pooled) -> None:
    """Fills in the page at `path`. Raises InputError, naming the page, as in `filled`; the page is then as it was."""
    text = path.read_text(encoding="utf-8")
    try:
        new = filled(text, tables, pooled)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    if new != text:
        write_text(new, path)


def number(what: str, pooled: Pooled) -> str:
    """What a number's comment asks for, as text."""
    verb, _, rest = " ".join(what.split()).partition(" ")
    records, *parts = (part.strip() for part in rest.split(";"))
    form = parts.pop() if parts and re.match(r"[.,]\d*[a-z]( |$)", parts[-1]) else ""
    check_choice("number", verb, VERBS)
    check_choice("records", records, pooled)
    least, most = VERBS[verb][1]
    if not least <= len(parts) <= most:
        raise InputError(f"'{what}' is not accepted; accepted: {least} to {most} parts behind the records' name")
    return VERBS[verb][0](pooled[records], form, *parts)


def sources(text: str) -> set[str]:
    """The names of the records that a page's tables (their last column) and numbers are of."""
    names = set()
    for found in TABLE.finditer(text):
        for line in found["shown"].splitlines():
            if line.startswith("|"):
                names |= set(re.findall(r"`([^`]+)`", line.rstrip("| ").rpartition("|")[2]))
    return names | {" ".join(f["what"].split()).split(" ")[1].rstrip(";") for f in NUMBER.finditer(text)}


def prose(text: str) -> str:
    """A page without what is filled in, code, comments and the targets of links: what somebody typed."""
    for pattern in (r"```.*?```", TABLE, NUMBER, r"<!--.*?-->", r"`[^`\n]*`", r"\]\([^)]*\)"):
        text = re.sub(pattern, " ", text, flags=0 if isinstance(pattern, re.Pattern) else re.DOTALL)
    return text


def _value(records: Any, form: str, curve: str, metric: str = "test_accuracy") -> str:
    return _text(evidence.interval(pool.rows(records), metric, curve=curve).mean, metric, form)


def _mean(records: Any, form: str, curve: str, metric: str = "test_accuracy") -> str:
    return _interval(evidence.interval(pool.rows(records), metric, curve=curve), metric, form)


def _difference(records: Any, form: str, curve: str, against: str, metric: str = "test_accuracy") -> str:
    return _interval(evidence.interval(pool.rows(records), metric, curve=curve, against=against), metric, form)


def _ratio(records: Any, form: str, curve: str, over: str, metric: str = "drop") -> str:
    return _interval(evidence.ratio(pool.rows(records), metric, curve=curve, over=over), "ratio", form)


def _n(records: Any, form: str, curve: str) -> str:
    return str(evidence.interval(pool.rows(records), curve=curve).n)


def _rows(records: Any, where: str) -> list[Mapping[str, Any]]:
    wanted = dict(part.strip().split("=", 1) for part in where.split(","))
    rows = [row for record in records.values() for row in record.get("rows", ())]
    return [row for row in rows if all(str(row.get(key)) == value for key, value in wanted.items())]


def _count(records: Any, form: str, where: str) -> str:
    return str(len(_rows(records, where)))


def _fields(records: Any, where: str, field: str) -> list[float]:
    found = [_rows({name: record}, where) for name, record in records.items()]
    if any(len(rows) != 1 or rows[0].get(field) is None for rows in found):
        raise InputError(f"not every record has one row of {where} and {field}; accepted: what each has once")
    return [rows[0][field] for rows in found]


def _measured(records: Any, form: str, where: str, field: str) -> str:
    return _interval(evidence.mean_interval(_fields(records, where, field)), field, form)


def _gain(records: Any, form: str, where: str, against: str, field: str) -> str:
    pairs = zip(_fields(records, where, field), _fields(records, against, field), strict=True)
    return _interval(evidence.mean_interval([one - two for one, two in pairs]), field, form)


def _row(records: Any, form: str, where: str, field: str) -> str:
    found = _rows(records, where)
    if len(found) != 1 or found[0].get(field) is None:
        raise InputError(f"{len(found)} rows have {where} and {field}; accepted: what one row has")
    form, _, unit = form.partition(" ")
    check_choice("unit", unit, UNITS)
    shown = f"{found[0][field] / UNITS[unit]:{form}}" if form else str(found[0][field])
    return f"{shown} {unit}".strip()


def _interval(found: evidence.Interval, metric: str, form: str) -> str:
    mean = _text(found.mean, metric, form)
    if found.low is None:
        return f"{mean} ({evidence.told(found.n)})"
    return f"{mean} [{_text(found.low, metric, form)}, {_text(found.high, metric, form)}]"


def _text(value: float | None, metric: str, form: str) -> str:
    if value is None:
        raise InputError(f"{metric} was not measured on all pairs; accepted: what was")
    scale = percent(metric)
    return f"{scale * value:{form or ('z.1f' if scale == 100 else 'z.3f')}}".replace("-", "−")


# Each with the least and the most parts that it takes behind the records' name.
VERBS: dict[str, tuple[Callable[..., str], tuple[int, int]]] = {
    "value": (_value, (1, 2)),
    "mean": (_mean, (1, 2)),
    "difference": (_difference, (2, 3)),
    "ratio": (_ratio, (2, 3)),
    "n": (_n, (1, 1)),
    "row": (_row, (2, 2)),
    "count": (_count, (1, 1)),
    "measured": (_measured, (2, 2)),
    "gain": (_gain, (3, 3)),
}
