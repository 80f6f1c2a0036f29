"""lib.paper.pages: no number stands in a page without a record, each from a clean tree, and each page is up to date."""

import re

import pytest

from lib.checks import InputError
from lib.paper import evidence, pages, pool, tables_speed, write
from lib.paths import ROOT
from lib.records import run_record
from tests.records.test_results import curve, pair, pairs, provenance

PAGES = ("README.md", "lib/README.md", "figures/README.md", "figures/CLAIMS.md")
PAGES = [name for name in PAGES if (ROOT / name).is_file()]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}

# What is measured has a decimal point or one of these units; levels of statistics, versions and citations are not.
UNITS = r"%|points?|times|×|seconds?|s|ms|minutes?|hours?|nats|[kMGT]B|GFLOP\S*"
MEASURED = re.compile(rf"\d*\.\d+|\d+(?:\s|-)?(?:{UNITS})(?![\w/])")
ALLOWED = re.compile(r"Python 3\.\d+|to 3\.\d+|arXiv \d{4}\.\d{5}|95 %|(?:family-wise|at|Holm,) 5 %|α = 0\.5")


def typed(text):
    """The measured numbers that somebody typed into a page."""
    return MEASURED.findall(ALLOWED.sub(" ", pages.prose(text)))


@pytest.fixture(scope="module")
def tracked():
    kinds, sweeps, _ = write.read(ROOT / "data" / "results")
    tables = write.page_tables(kinds, sweeps, write.pooled_rows(kinds, sweeps))
    return tables, sweeps | write.all_pools(kinds, sweeps)  # a row may speak of a whole sweep


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_the_tracked_records_hold(page, tracked):
    tables, pooled = tracked
    assert pages.filled(TEXTS[page], tables[page], pooled) == TEXTS[page]


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_is_typed(page):
    assert typed(TEXTS[page]) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_a_table_names_its_record(page, tracked):
    tables = [*pages.TABLE.finditer(TEXTS[page])]
    assert len(tables) == TEXTS[page].count("make figures writes this -->")
    for found in tables:
        assert "|" in found["shown"], found["name"]
        rows = [line for line in found["shown"].splitlines() if line.startswith("|")][2:]
        for row in rows:
            names = row.rstrip("| ").rpartition("| ")[2].split(", ")
            assert all(name == f"`{name.strip('`')}`" and name.strip("`") in tracked[1] for name in names), row


def test_records_behind_the_pages_are_from_a_clean_tree(tracked):
    names = set().union(*map(pages.sources, TEXTS.values()))
    assert names <= set(tracked[1]) and len(names) > 10
    states = {f"{name}/{stem}": r["provenance"]["dirty"] for name in names for stem, r in tracked[1][name].items()}
    assert {stem for stem, dirty in states.items() if dirty is not False} == set(), "measure these from a clean tree"


def test_what_is_pooled_was_measured_alike(tracked):
    """Else a mean is of some pairs, and what it is compared with of others."""
    for name, records in tracked[1].items():
        for rows in evidence.kinds(pool.rows(records)):
            curves = {frozenset(row["curve"] for row in of_one) for of_one in evidence.grouped(rows, "record").values()}
            assert len(curves) == 1, name


# What the checks find


@pytest.mark.parametrize(
    "text",
    [
        "it has 91.6 of them",
        "gains .65",
        "28 % are left",
        "8.2 points",
        "33 minutes",
        "takes 2 GB",
        "9 × faster",
        "7 s",
    ],
)
def test_a_typed_number_is_found(text):
    assert typed(f"Before, {text} after.")


@pytest.mark.parametrize(
    "text",
    [
        "Python 3.11 to 3.13", "arXiv 2211.08403", "95 % intervals", "(Holm, 5 %)", "×1/8 and ×½",
        "2,000 images", "width 2, 100 epochs", "`0.5` and ```\n1.5 s\n```", "[a](b1.5.png)",
        "<!--= value x; y -->91.6<!--/-->", "<!-- x: make figures writes this -->\n| 1.5 |\n<!-- end of x -->",
    ],
)  # fmt: skip
def test_what_was_not_measured_or_is_filled_in_may_stand(text):
    assert typed(f"Before {text} after") == []


def pooled():
    records = pairs(0.40, 0.50, 0.66)
    for r, middle in zip(records, (0.8, 0.81, 0.79), strict=True):
        r["curves"].append(curve("graph", (0.84, middle, 0.82), correction="least_squares"))
        r["controls"] = {"parent": {"test_accuracy": 0.84, "test_loss": 0.5}}
    row = {"study": "speed", "work": "a b", "width": 0.5, "seconds": 1.25, "peak_bytes": 2_500_000}
    rows = [row, row | {"width": 1.0}]
    study = run_record.record(experiment="bench", preset="quick", dataset=None, rows=rows, provenance=provenance())
    return {"many": {str(i): r for i, r in enumerate(records)}, "one": {"x": pair()}, "bench": {"bench": study}}


def shown(what):
    return pages.number(what, pooled())


def test_each_verb_gives_what_evidence_says():
    data = pool.rows(pooled()["many"])
    graph = "graph + least_squares"
    found = evidence.interval(data, curve=graph, against="none")
    ends = ", ".join(f"{100 * end:.1f}".replace("-", "−") for end in (found.low, found.high))
    assert shown(f"difference many; {graph}; none") == f"{100 * found.mean:.1f} [{ends}]"
    ratio = evidence.ratio(data, curve=graph, over="none")
    assert shown(f"ratio many;\n  {graph}; none").startswith(f"{100 * ratio.mean:.1f} [")
    assert shown(f"value many; {graph}") == "80.0" and shown(f"value many; {graph}; .2f") == "80.00"
    assert shown(f"mean many; {graph}; test_loss").startswith("0.200 [")
    assert shown(f"value many; {graph}; against_better") == "4.0"
    assert shown(f"difference many; {graph}; parent").startswith("−4.0 [−6.5, −1.5]")
    assert shown("n many; none") == "3"


def test_a_single_pair_says_so():
    assert shown("mean one; none") == "47.0 (n = 1, one pair: no interval)"


def test_a_row_of_a_study_gives_its_field():
    assert shown("row bench; width=0.5; seconds; .2f") == "1.25"
    assert shown("row bench; study=speed, width=0.5; peak_bytes; .1f MB") == "2.5 MB"


def test_the_rows_of_a_study_are_counted():
    assert shown("count bench; study=speed") == "2"
    assert shown("count bench; width=0.5, refused=None") == "1"
    assert shown("count bench; study=none") == "0"


def test_rows_of_several_records_are_averaged_and_compared_by_record():
    rows = [[{"way": "a", "test_accuracy": 0.5 + s / 10}, {"way": "b", "test_accuracy": 0.4}] for s in range(3)]
    pooled = {"sizes": {f"s{s}": {"rows": each} for s, each in enumerate(rows)}}
    assert pages.number("measured sizes; way=a; test_accuracy", pooled).startswith("60.0 [")
    assert pages.number("gain sizes; way=a; way=b; test_accuracy", pooled).startswith("20.0 [")
    assert pages.number("gain sizes; way=b; way=b; test_accuracy", pooled) == "0.0 [0.0, 0.0]"
    with pytest.raises(InputError, match="not every record has one row of way=c"):
        pages.number("measured sizes; way=c; test_accuracy", pooled)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("median many; none", "unknown number 'median'; accepted: value, mean"),
        ("value few; none", "unknown records 'few'; accepted: many, one, bench"),
        ("value many; nothing", "unknown curve 'nothing'; accepted: none"),
        ("value many; none; accuracy", "unknown metric 'accuracy'"),
        ("value many", "accepted: 1 to 2 parts"),
        ("value many; none; test_accuracy; none", "accepted: 1 to 2 parts"),
        ("mean many; none; test_kl", "test_kl was not measured on all pairs"),
        ("row bench; study=speed; seconds", "2 rows have study=speed and seconds"),
        ("row bench; width=2.0; seconds", "0 rows have width=2.0"),
        ("row bench; width=0.5; peak_bytes; .1f PB", "unknown unit 'PB'"),
    ],
)
def test_what_records_do_not_hold_is_one_line(what, named):
    with pytest.raises(InputError, match=named) as caught:
        shown(what)
    assert "\n" not in str(caught.value)


PAGE = """before <!--= value many; graph + least_squares -->old<!--/--> between
<!-- speed: make figures writes this -->
old
<!-- end of speed -->
after <!-- a comment --> 7
"""


def test_a_page_is_filled_in_at_its_places_alone_and_stays(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    pages.write_page(path, {"speed": "| new | `bench` |"}, pooled())
    assert path.read_text() == PAGE.replace("\nold", "\n| new | `bench` |").replace("-->old<", "-->80.0<")
    assert pages.sources(path.read_text()) == {"many", "bench"}
    with pytest.raises(InputError, match="page.md: unknown table 'speed'; accepted: results"):
        pages.write_page(path, {"results": ""}, pooled())
    assert "80.0" in path.read_text()


# What things cost


def test_speed_is_told_as_ratios_and_small_memory_as_small():
    row = {"study": "bench", "work": "w", "method": "own", "seconds": 0.5, "peak_bytes": 1000, "against": "peer"}
    rows = [row | {"against_seconds": 2.0, "against_peak_bytes": 120_000_000}]
    rows.append(row | {"against_seconds": 0.25, "against_peak_bytes": None, "peak_bytes": None})
    rows.append({"study": "growth", "work": "g", "sizes": [1, 2], "seconds": [1.0, 4.0], "exponent": 2.0})
    lines = str(tables_speed.speed({"rows": rows})).splitlines()
    assert re.split(r" {2,}", lines[2]) == ["w", "own", "0.5", "< 1", "peer", "4", "120", "`bench`"]
    assert re.split(r" {2,}", lines[3]) == ["w", "own", "0.5", "—", "peer", "0.5", "—", "`bench`"]
    assert "1, 4" in str(tables_speed.growth({"rows": rows}))


def test_what_each_solver_recovers_stands_beside_its_seconds():
    row = {"study": "scaling", "model": "vgg11", "width": 1.0, "peak_bytes": 5_000_000, "dense_bytes": 2e12}
    rows = [row | {"solver": "graph", "seconds": 4.0, "recovered": 1.0}]
    rows.append(row | {"solver": "coordinate_descent", "seconds": 1.0, "recovered": 0.5})
    (_, shown), *_ = tables_speed.matching({"rows": rows}).parts
    assert shown == ["×1", "4", "1", "5", "2", "100 %", "50 %", "`graph_matching_scaling`"]


def test_a_table_without_a_record_says_how_to_make_it_and_one_with_says_under_what_load():
    assert tables_speed.markdown("speed", {}) == "No record yet: `make bench`."
    rows = [{"study": "growth", "work": "g", "sizes": [1, 2], "seconds": [1.0, 4.0], "exponent": 2.0}]
    given = {"load_before": 3.24, "load_after": 5.0}
    study = {"rows": rows, "provenance": provenance(parameters=given)}
    assert "on a CPU, 2 thread(s), load 3.2 to 5.0" in tables_speed.markdown("growth", {"bench": study})
