"""Figures and tables of federated rounds: paired over seeds, adjusted for all of a round."""

import pytest

from lib.paper import evidence, figures_rounds

SETTING = {
    "clients": 8, "split": "iid", "recipe": {"epochs": 2}, "start": "own", "fraction": 1.0, "seed": 0, "rounds": 2,
}  # fmt: skip
# accuracy by server or control, round and seed
FOUND = {
    ("fedavg", 1): (0.10, 0.20, 0.30), ("fedavg", 2): (0.5, 0.6, 0.7),
    ("matched", 1): (0.50, 0.61, 0.69), ("matched", 2): (0.5, 0.6, 0.7),
    ("best client", 1): (0.40, 0.45, 0.60), ("best client", 2): (0.6, 0.6, 0.6),
}  # fmt: skip


def rows(found=FOUND):
    answer = []
    for (name, number), values in found.items():
        for seed, value in enumerate(values):
            sent = {"megabytes_up": 4.0 * number, "megabytes_down": 4.0 * (number - 1)}
            who = {"control": name} if name == "best client" else {"server": name} | sent
            answer.append({"study": "rounds", "round": number, "seed": seed, "test_accuracy": value} | who)
    return answer


def record(seed=0, **setting):
    return {
        "experiment": "federated", "dataset": "mnist", "model": {"name": "mlp", "width": 0.25, "norm": None},
        "setting": SETTING | {"seed": seed} | setting, "rows": [row for row in rows() if row["seed"] == seed],
    }  # fmt: skip


def test_differences_are_paired_over_seeds_and_adjusted_within_a_round():
    found = {(row["name"], row["round"]): row for row in figures_rounds.summary(rows()[::-1])}
    matched = found["matched", 1]
    assert (matched["mean"], matched["n"]) == (pytest.approx(0.6), 3) and matched["low"] < 0.6 < matched["high"]
    wanted = evidence.mean_interval([0.40, 0.41, 0.39])
    assert vars(matched["difference"]) == pytest.approx(vars(wanted))
    assert matched["ahead"].mean == pytest.approx((0.1 + 0.16 + 0.09) / 3)
    p = [found[name, 1]["difference"].p for name in ("matched", "best client")]
    assert [found[name, 1]["p_holm"] for name in ("matched", "best client")] == pytest.approx(evidence.holm(p))
    assert found["fedavg", 1]["difference"] is None and found["best client", 1]["ahead"] is None
    assert matched["megabytes"] == 4 and found["matched", 2]["megabytes"] == 12
    assert found["best client", 1]["megabytes"] is None


def test_the_table_has_each_server_before_the_controls_round_by_round():
    lines = str(figures_rounds.table(rows())).splitlines()[2:-1]
    assert [line.split("  ")[0] for line in lines] == ["fedavg", "matched", "best client"] * 2
    assert "60.0 [36.3, 83.7]" in lines[1] and "40.0 [37.5, 42.5]" in lines[1]


def test_records_alike_but_for_their_seeds_are_pooled_and_named_by_what_tells_them_apart():
    alike = figures_rounds.pooled({f"s{seed}": record(seed) for seed in range(3)})
    ((name, (pooled, first)),) = alike.items()
    assert name == "" and len(pooled) == len(rows()) and first["setting"]["seed"] == 0
    several = [record(seed, start=start) for seed in (0, 1) for start in ("own", "common")]
    kinds = figures_rounds.pooled({str(place): each for place, each in enumerate(several)})
    assert {name: {row["seed"] for row in found} for name, (found, _) in kinds.items()} == {
        "own": {0, 1}, "common": {0, 1},
    }  # fmt: skip


def test_the_page_shows_the_last_round_of_each_sweep_with_its_record():
    sweeps = {"federated_mine": {f"s{seed}": record(seed) for seed in range(3)}, "other": {"x": {"experiment": "y"}}}
    lines = figures_rounds.page_table(sweeps).splitlines()[2:]
    assert len(lines) == 3 and all(line.endswith("| `federated_mine` |") for line in lines)
    assert all("MLP ×1/4 on mnist, 8 clients, iid, 2 local epochs, different starts" in line for line in lines)
    assert [line.split(" | ")[2] for line in lines] == ["2"] * 3
    assert figures_rounds.page_table({}).startswith("No record yet")


@pytest.mark.parametrize("columns", [1, 2])
def test_figures_say_data_set_and_n_and_have_a_line_a_server(columns):
    figure = figures_rounds.rounds(rows(), record(), columns=columns)
    by_round, by_sent = figure.axes
    assert "n = 3 seeds" in figure._suptitle.get_text().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")
    assert list(figure.handles) == ["FedAvg", "matched, averaged", "control: best client"]
    assert [list(line.get_xdata()) for line in by_sent.lines] == [[4, 12]] * 2  # a control sends nothing
    assert len(by_round.lines) == 3
    once = figures_rounds.rounds([row for row in rows() if row["round"] == 1], record(), columns=columns)
    (axes,) = once.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "FedAvg", "matched, averaged", "control: best client",
    ]  # fmt: skip
