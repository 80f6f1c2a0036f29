"""Tables: what a table says was measured, on what, and how often."""

import re

import pytest

from lib.checks import InputError
from lib.paper import evidence, names, pool, tables
from lib.paper import published as reference
from tests.records.test_results import curve, pair, pairs, provenance


def test_table_shows_data_set_n_and_every_value():
    text = str(tables.table(pair()))
    assert "SimpleNet on mnist-5k" in text and "n = 1" in text and "1,000 images" in text
    rows = {line.split()[0]: line.split() for line in reversed(text.splitlines()) if line}
    none, graph = rows["none"], rows["graph"]
    assert none == ["none", "84.00", "47.00", "82.00", "36.00"]
    assert graph[1:4] == ["84.00", "91.00", "82.00"]
    assert "cross-entropy" in text and "±" not in text


def test_tables_of_curves_with_other_alphas_leave_gaps():
    sparse = curve("graph", (0.84, 0.82), alphas=(0.0, 1.0))
    text = str(tables.table(pair(curve("none", (0.84, 0.47, 0.82)), sparse)))
    row = next(line.split() for line in text.splitlines() if line.startswith("graph"))
    assert row[1:4] == ["84.00", "—", "82.00"]


def test_what_was_not_measured_is_a_dash_in_text_and_in_latex():
    table = tables.table(pair(curve("none", (0.84, 0.47, 0.82)), curve("graph", (0.84, 0.82), alphas=(0.0, 1.0))))
    assert str(table).count("—") == table.latex().count("---") == 4 and "—" not in table.latex()


def test_parents_stand_under_the_curves_in_text_and_in_latex():
    table = tables.table(pair())
    assert "\nparents A, B: 84.00, 82.00\n" in str(table)
    assert r"\multicolumn{5}{l}{parents A, B: 84.00, 82.00} \\" in table.latex()


CONTROLLED = {"parent": {"test_accuracy": 0.84, "test_loss": 0.5}, "side_by_side": {"test_accuracy": 0.9512}}


def test_controls_stand_under_the_parents_by_what_they_are():
    table = tables.table(pair(controls=CONTROLLED))
    accuracy, loss = str(table).split("cross-entropy")
    assert "parents A, B: 84.00, 82.00\ncontrol: parent: 84.00\ncontrol: side_by_side: 95.12\n" in accuracy
    assert "control: parent: 0.500" in loss and "side_by_side" not in loss  # of it no loss was measured
    assert str(table).endswith(tables.CONTROLS)
    text = tables.table(pair(controls=CONTROLLED), name=names.curve_label).latex()
    assert "control: side by side, pruned: no matching: 95.12" in text and "fuse nothing" in text
    assert "control" not in str(tables.table(pair(controls=CONTROLLED), split="train"))


def test_controls_of_several_pairs_are_means_and_say_their_n():
    one, two, three = pairs(0.4, 0.5, 0.6)
    records = [one | {"controls": CONTROLLED}, two | {"controls": {"parent": {"test_accuracy": 0.86}}}, three]
    text = str(tables.table(records))
    assert "control: parent (n = 2): 85.00 ± 1.41" in text and "control: side_by_side (n = 1): 95.12\n" in text


def test_every_head_is_defined_but_the_one_that_names_the_rows():
    rows = pool.leaderboard_rows(pair(controls=CONTROLLED))
    made = [tables.table(pair()), *(tables.leaderboard_table(rows, metrics=shown) for shown in (None, tables.PAPER))]
    for table in made:
        for heads, *_ in table.parts:
            by_alpha = heads[1].startswith("α=")
            asked = ["α", heads[0], heads[-1]] if by_alpha else heads[1:]
            assert all(
                tables.DEFINITIONS[head] in table.latex().replace("$-$", "−").replace(r"$\alpha$", "α")
                for head in asked
            ), heads


def test_the_label_names_the_run_and_tracked_tables_keep_theirs(tmp_path):
    one, other = (tables.label_of("simplenet_mnist", tmp_path / f"simplenet_mnist_s{seed}") for seed in (0, 2))
    assert (one, other) == ("simplenet_mnist_s0", "simplenet_mnist_s2")
    assert tables.label_of("simplenet_mnist", tables.FIGURES) == "simplenet_mnist"
    assert tables.label_of("mlp_s0", tmp_path / "a_sweep" / "figures") == tables.label_of(
        "mlp_s0", tmp_path / "a_sweep"
    )
    assert tables.label_of("mlp_s0", tmp_path / "a_sweep") == "a_sweep_mlp_s0"
    path = tables.save_table(tables.table(pair()), "simplenet_mnist", tmp_path / "simplenet_mnist_s4")
    assert r"\label{tab:simplenet-mnist-s4}" in path.read_text()


def test_leaderboard_latex_is_a_tabular_a_kind_with_its_references_apart():
    wide = pair(model={"name": "mlp", "width": 0.5, "norm": None}, controls={"ensemble": {"test_accuracy": 0.95}})
    text = tables.leaderboard_latex(pool.leaderboard_rows([pair(), wide]), "board")
    first, second = text.split(r"\end{tabular}")[:2]
    assert "SimpleNet" in first and "ensemble" not in first and r"MLP $\times$1/2 on mnist-5k" in second
    assert second.index(r"\addlinespace") < second.index("ensemble") < second.index("bottomrule")


def test_compare_puts_published_values_beside_measured_ones_by_alpha():
    published = reference.REFERENCE["simplenet_mnist"]
    ours = curve("graph_reference", (0.8418, 0.5374, 0.8381))
    record = pair(ours, curve("graph", (0.84, 0.91, 0.82)), curve("none", (0.84, 0.4, 0.82)), dataset="mnist")
    text = str(tables.compare(record))
    assert "pygmtools" in text
    rows = [line.split() for line in text.split("test loss")[0].splitlines()]
    start = next(i for i, row in enumerate(rows) if row[:1] == ["graph_reference"])
    assert rows[start][1:5] == ["published", "84.18", "53.74", "83.81"]
    assert rows[start + 1][3:6] == ["+0.00", "+0.00", "+0.00"]
    assert not any(row[:1] == ["graph"] for row in rows), "of it nothing was published"
    assert rows[start + 3][3:6] == ["-0.18", "-7.16", "-1.81"]
    assert published["alphas"][5] == 0.5


def test_compare_says_when_the_published_values_are_for_other_data():
    text = str(tables.compare(pair()))
    assert "none shown" in text and "SimpleNet on mnist" in text
    assert "53.74" not in text


def test_published_barrier_of_the_vgg_experiment():
    model = {"name": "vgg11", "width": 2.0, "norm": "batch"}
    ours = curve("activation", (0.9, 0.5, 0.9), correction="bn_reset")
    record = pair(ours, experiment="vgg11_cifar10", dataset="cifar10", model=model)
    lines = str(tables.compare(record)).splitlines()
    barriers = [line.split()[-1] for line in lines if line.startswith("activation + bn_reset")]
    assert barriers[:2] == ["1.22", "0.033"]


def test_published_numbers_are_whole():
    for published in reference.REFERENCE.values():
        for values in published["curves"].values():
            for metric, numbers in values.items():
                assert len(numbers) == len(published["alphas"])
                assert not metric.endswith("accuracy") or max(numbers) <= 1


def test_several_pairs_show_their_deviation_and_say_so():
    text = str(tables.table(pairs(0.4, 0.5, 0.6)))
    assert "n = 3" in text and "50.00 ± 10.00" in text and "standard deviation" in text
    assert r"$50.00 \pm 10.00$" in tables.table(pairs(0.4, 0.5, 0.6)).latex()


def test_a_curve_that_not_every_pair_has_shows_its_n():
    one, other = pairs(0.5, 0.6)
    one["curves"].append(curve("graph", (0.84, 0.91, 0.82)))
    assert "graph (n = 1)" in str(tables.table([one, other]))


def pooled(*middles):
    return [row | {"records": "a_sweep"} for row in pool.leaderboard_rows(pairs(*middles))]


def test_latex_rows_all_have_the_columns_they_announce():
    records = pairs(0.4, 0.5, 0.6)
    board = tables.leaderboard_latex(pool.leaderboard_rows(records), "board")
    made = (
        tables.table(records),
        tables.widths_table(records),
        tables.pooled_table(pooled(0.4, 0.6), names.curve_label),
    )
    for text in (board, *(table.latex() for table in made)):
        columns = len(text.split("{tabular}{")[1].split("}")[0])
        rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert rows and all(row.count("&") == columns - 1 for row in rows)
        assert "mnist-5k" in text
        assert "_" not in text
        assert text.count("{") == text.count("}")


def test_pooled_tables_show_an_interval_from_three_pairs_on():
    rows = pooled(0.4, 0.5, 0.6)
    half = 100 * 4.302653 * 0.1 / 3**0.5
    cell = f"50.00 [{50 - half:.2f}, {50 + half:.2f}]"
    markdown = tables.results_table(rows).markdown().splitlines()[2]
    assert f"| `none` | `none` | 0 | {cell} |" in markdown and "| 83.00 | 3 | `a_sweep` |" in markdown
    table = tables.pooled_table(rows)
    assert cell in str(table) and "Student" in str(table) and "parent A" not in str(table)
    assert f"${cell.replace(' [', chr(92) + '; [')}$" in table.latex()
    assert "| 45.00 |" in tables.results_table(pooled(0.4, 0.5)).markdown()


def test_summary_table_shows_how_many_pairs_lack_a_curve():
    records = pairs(0.4, 0.5, 0.6, 0.7)
    for r, middle in zip(records[:3], (0.8, 0.8, 0.8), strict=True):
        r["curves"].append(curve("graph", (0.84, middle, 0.82)))
    found = evidence.summary(pool.rows(records), against="none")
    *_, line, note = str(tables.summary_table(found)).splitlines()
    row = line.split()
    assert row[0] == "graph" and row[1] == "30.00" and row[-3:] == ["3", "of", "4"]
    assert row[-4] == "0.035*" and "Holm" in note
    doubtful = [row | {"p_holm": 0.07} for row in found]
    assert " 0.070 " in str(tables.summary_table(doubtful))
    assert "Holm" not in str(tables.summary_table(evidence.summary(pool.rows(records))))


def test_controls_are_called_by_what_they_are_and_their_options():
    assert names.curve_label({"control": "parent"}) == "control: better parent alone"
    found = names.curve_label({"control": "distillation(steps=100)"})
    assert found == "control: distillation (gradient training) (steps 100)"


def test_leaderboard_table_names_kind_references_and_what_was_used():
    best = {"alpha": 0.4, "held_out_accuracy": 0.9, "test_accuracy": 0.93, "test_loss": 0.2}
    extra = {"best": best, "images": {"match": 0, "correct": 2000}, "share": {"a": 0.4, "b": 0.6}}
    record = pair(curve("graph", (0.84, 0.91, 0.82), **extra), controls={"ensemble": {"test_accuracy": 0.95}})
    text = str(tables.leaderboard_table(pool.leaderboard_rows(record)))
    assert "SimpleNet on mnist-5k" in text and "ensemble" in text
    row = next(line for line in text.splitlines() if line.startswith("graph"))
    assert row.split() == ["graph", "91.00", "0.090", "-8.00", "0.00", "0.4", "93.00", "0.60", "2000", "2.0", "1"]


def test_width_table_counts_pairs_per_width():
    wide = {"name": "simplenet", "width": 2.0, "norm": None}
    text = str(tables.widths_table([*pairs(0.4, 0.5, 0.6), pair(model=wide)]))
    widths, counts, none, graph = (line.split() for line in text.splitlines() if re.match("width|n |no|graph", line))
    assert (widths, counts) == (["width", "×1", "×2"], ["n", "3", "1"])
    assert none[3].startswith("[") and none[-1] == "36.00"  # intervals where there are pairs for them
    assert graph[-2:] == ["—", "-8.00"]
    assert "mnist-5k" in text
    with pytest.raises(InputError, match="one data set"):
        tables.widths_table([pair(), pair(dataset="mnist")])


def test_what_tells_kinds_apart_is_said_where_they_differ():
    alike = [{"skew": None, "epochs": 10, "correct_images": 2000}] * 2
    assert names.circumstances(alike[0], alike) == []
    others = [*alike, alike[0] | {"epochs": 30}, alike[0] | {"correct_images": 250}]
    assert names.circumstances(others[2], others) == ["30 epochs", "2,000 images"]
    skewed = alike[0] | {"skew": "halves"}
    assert names.circumstances(skewed, [skewed]) == ["halves"]


def skewed_pairs(**parameters):
    """Three pairs whose classes were divided, under one sweep."""
    records = pairs(0.40, 0.50, 0.66)
    for index, r in enumerate(records):
        r["seeds"] = {"a": 2 * index, "b": 2 * index + 1, "match": 0}
        r["provenance"] = provenance(parameters=parameters)
    return records


def test_a_sweep_of_several_kinds_has_a_table_of_widths_for_each_and_a_part_of_its_summary():
    records = [*skewed_pairs(skew="halves"), *skewed_pairs(skew="dirichlet0.1")]
    apart = pool.but_for_width(records)
    assert {words: len(alike) for words, alike in apart.items()} == {"halves": 3, "Dir(0.1)": 3}
    for alike in apart.values():
        tables.widths_table(alike)
    found = tables.summary_table(evidence.summary(pool.rows(records)))
    assert [part[0][0].rpartition(", ")[2] for part in found.parts] == ["halves", "Dir(0.1)"]
    assert list(pool.but_for_width(pairs(0.4, 0.5))) == [""]
