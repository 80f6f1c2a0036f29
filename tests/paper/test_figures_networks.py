"""Figures and tables of many networks, from made rows."""

import pytest

from lib.paper import figures_networks as networks

MATCHERS = ("none", "graph", "graph(strategy=reference)", "weight(strategy=merge_many)")


def rows(shift: float = 0.0):
    answer = []
    for n in (2, 3):
        for name in ("best parent", "mean parent", "ensemble"):
            answer.append({"study": "many", "n": n, "kind": "control", "method": name, "test_accuracy": 0.8 + shift})
        for place, matcher in enumerate(MATCHERS):
            for correction in ("none", "least_squares"):
                answer.append(
                    {"study": "many", "n": n, "kind": "fused", "method": f"{matcher} + {correction}",
                     "matcher": matcher, "correction": correction, "match_seconds": 1.0, "match_peak_bytes": 10**6,
                     "test_accuracy": 0.5 + 0.1 * place + shift, "test_loss": 1.0}
                )  # fmt: skip
    for place, accuracy in enumerate((0.5, 0.53)):
        answer.append({"study": "orders", "n": 3, "matcher": "graph", "order": [place, 1 - place, 2],
                       "objective": 100.0 + place, "test_accuracy": accuracy + shift})  # fmt: skip
    answer.append({"study": "round_trips", "n": 3, "matcher": "graph", "share": 0.25})
    for shares in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)):
        answer.append({"study": "simplex", "matcher": "graph", "correction": "none", "shares": list(shares),
                       "test_accuracy": 0.4 + 0.5 * max(shares)})  # fmt: skip
    return answer


def record(some):
    return {
        "experiment": "many_networks", "dataset": "mnist", "model": {"name": "simplenet", "width": 1.0, "norm": None},
        "provenance": {"device": "a CPU", "parameters": {"classes": 5}}, "rows": some,
    }  # fmt: skip


def records(*shifts):
    return {f"set{i}": record(rows(shift)) for i, shift in enumerate(shifts)}


def test_the_table_has_means_over_sets_and_intervals_from_three_on():
    one = networks.table(networks.pooled(records(0.0))["many"]).markdown()
    assert "| graph + none | 60.0 | 60.0 |" in one and "| sets | 1 | 1 |" in one
    three = networks.table(networks.pooled(records(-0.01, 0.0, 0.01))["many"]).markdown()
    assert "| graph + none | 60.0 [57.5, 62.5] | 60.0 [57.5, 62.5] |" in three and "| sets | 3 | 3 |" in three


def test_the_order_of_the_list_is_told_within_a_set():
    text = networks.order_table(rows()).markdown()
    assert "| graph | 3.00 | 0.990 | 25.0 |" in text
    pooled = networks.pooled(records(0.0, 0.2))  # sets apart are no spread of an order
    assert (
        "| graph | 3.00 | 0.990 | 25.0 |" in networks.order_table(pooled["orders"] + pooled["round_trips"]).markdown()
    )


@pytest.mark.parametrize(
    ("matcher", "told"),
    [
        ("none", "no matching"),
        ("graph", "graph, two-sided, together"),
        ("graph(strategy=reference)", "graph, two-sided, each to the first"),
        ("weight(strategy=cycle_consistent)", "weights, Frank–Wolfe"),
        ("graph(restarts=3)", "graph, two-sided, restarts=3"),
    ],
)
def test_matchers_are_told_in_words(matcher, told):
    assert networks.label(matcher) == told


def test_a_sweep_gives_tables_and_figures_and_a_page():
    drawn = dict(networks.contents(records(0.0, 0.1, 0.2)))
    assert set(drawn) == {".tex", "", "_cost", "_simplex", "_orders.tex"}
    assert "3 sets of networks (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}3)" in drawn[""]().get_suptitle()
    lines = {line.get_label() for axes in drawn[""]().axes for line in axes.lines}
    assert lines
    page = networks.page({"many": records(0.0), "other": {"x": {"experiment": "leaderboard"}}})
    assert set(page) == {"many", "many_orders"} and "| graph | 3.00 | 0.990 | 25.0 | `many` |" in page["many_orders"]
    assert "| sets | 1 | 1 | `many` |" in page["many"]


def test_planted_rows_are_drawn_against_the_noise():
    some = [
        {"study": "planted", "n": 4, "matcher": m, "noise": x, "seed": s, "recovered": 1 - x / 4}
        for m in ("graph", "weight")
        for x in (1.0, 2.0)
        for s in (0, 1)
    ]
    assert "| graph | 75 (75 to 75) | 50 (50 to 50) |" in networks.planted_table(some).markdown()
    drawn = dict(networks.contents({"a": record(some)}))
    assert (
        set(drawn) == {"_planted", "_planted.tex"}
        and "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}2" in drawn["_planted"]().get_suptitle()
    )
