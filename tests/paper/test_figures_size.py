"""Figures and tables of networks of many sizes."""

import pytest

from lib.paper import figures_size as sizes
from lib.paper import write


def record(seed: int) -> dict:
    """A pair's record: the parent 70 + seed %, a quarter more cost adds 2, the mean of logits 4."""
    rows = []
    for kind, method, cost, gain, more in (
        ("control", "parent", 1.0, 0.0, {}),
        ("control", "mean of logits", 2.0, 0.04, {}),
        ("fused", "one network", 1.0, -0.03, {}),
        ("fused", "allotted", 1.25, 0.02, {"asked": 1.25, "counts": "parameters"}),
        ("fused", "allotted", 1.5, 0.03, {"asked": 1.5, "counts": "parameters"}),
        ("fused", "allotted", 1.25, 0.01 * (seed % 2), {"asked": 1.25, "counts": "multiply-adds"}),
        ("fused", "first apart", 1.1, 0.01, {"asked": 3}),
        ("fused", "last apart", 1.7, -0.01, {"asked": 3}),
    ):
        row = {"study": "size", "kind": kind, "method": method, "parameters": cost, "multiply_adds": cost + 0.1}
        rows.append(
            row | {"milliseconds": 0.1 * cost, "test_accuracy": 0.7 + seed / 100 + gain, "test_loss": 1.0} | more
        )
    return {
        "experiment": "size_and_tasks", "dataset": "mnist", "model": {"name": "vgg11", "width": 0.125, "norm": "batch"},
        "provenance": {"device": "a CPU", "parameters": {"data": "alike"}}, "rows": rows,
    }  # fmt: skip


RECORDS = {f"s{seed}": record(seed) for seed in range(3)}


def lines(**options):
    part = sizes.table(sizes.pooled(RECORDS), **options).parts[0]
    return {(row[0], row[1]): dict(zip(part[0], row, strict=True)) for row in part[1:]}


def test_the_table_compares_pairs_with_their_own_parent():
    rows = lines(name="mine")
    row = rows["allotted, by parameters", "1.25"]
    assert row["accuracy, %"].startswith("73.0") and row["− better parent"] == "2.0 [2.0, 2.0]"
    assert row["of the mean logits', %"] == f"{100 * sum((72 + s) / (74 + s) for s in range(3)) / 3:.1f}"
    assert row["n"] == "3" and row["record"] == "`mine`" and row["parameters ÷ one network"] == "1.25"
    assert rows["parent", "—"]["− better parent"] == "0.0 [0.0, 0.0]"
    assert rows["allotted, by multiply-adds", "1.25"]["− better parent"].startswith("0.3 [")


def test_the_front_draws_each_way_over_the_cost_it_counts():
    figure = sizes.front(sizes.pooled(RECORDS), RECORDS["s0"])
    by_cost = [{line.get_label(): line for line in axes.containers} for axes in figure.axes]
    keys = set(figure.handles)
    assert {"allotted, by parameters", "allotted, by multiply-adds", "first apart", "last apart", "parent"} <= keys
    x = [sorted({float(v) for c in axes.containers for v in c[0].get_xdata()}) for axes in figure.axes]
    assert 1.5 in x[0] and 1.6 not in x[1] and len(by_cost) == 2
    one = sizes.front(sizes.pooled(RECORDS), RECORDS["s0"], columns=1)
    assert one.get_figwidth() < figure.get_figwidth()


def test_a_sweep_of_sizes_gives_a_figure_and_a_table():
    assert sizes.is_there(RECORDS) and not sizes.is_there({"x": {"experiment": "many_networks"}})
    assert [name for name, _ in sizes.contents(RECORDS)] == [".tex", ""]
    assert "`size_mine`" in sizes.page({"size_mine": RECORDS, "other": {"x": {"experiment": "y"}}})["size_mine"]
    found = [name for name, _ in write._contents_of_sweep("size_mine", RECORDS, {}, None)]
    assert found == ["size_mine.tex", "size_mine"]


@pytest.mark.parametrize("data", ["tasks", "halves"])
def test_the_heading_says_what_the_parents_saw(data):
    other = {name: r | {"provenance": {"device": "", "parameters": {"data": data}}} for name, r in RECORDS.items()}
    text = sizes.front(sizes.pooled(other), other["s0"])._suptitle.get_text().replace("\xa0", " ")
    assert "five classes each" in text and "n = 3" in text
