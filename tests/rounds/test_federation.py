"""Clients and the loop: who takes part, what is sent, how a run goes on after kill -9."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from lib import loaders, models, paths, rounds
from lib.checks import InputError
from lib.rounds import loop

RECIPE = models.Recipe(epochs=1, batch_size=20, lr=0.1, augment=False, weight_decay=0.0, schedule="constant")
BASE = rounds.Setting(
    "mlp", RECIPE, width=0.03, clients=4, split="iid", rounds=3, server_images=50, limit_train=400, seed=1
)


@pytest.fixture(scope="module")
def dataset():
    whole = models.open_dataset("mnist-5k", "mlp")
    return dataclasses.replace(whole, test=whole.test.head(200))


def federation(dataset, **changes) -> rounds.Federation:
    return rounds.Federation(dataclasses.replace(BASE, **changes), dataset)


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# Clients ------------------------------------------------------------------------------------------------------------


def test_a_clients_training_depends_on_seed_round_and_client_alone(dataset):
    one, other = federation(dataset), federation(dataset)
    first = one.local(2, 1, None)
    other.local(0, 1, None), other.local(3, 2, first.state)  # whatever came before
    assert same(first.state, other.local(2, 1, None).state)
    assert not same(first.state, one.local(2, 2, None).state)
    assert not same(first.state, federation(dataset, seed=2).local(2, 1, None).state)
    assert first.samples == 100 and sum(first.class_counts) == 100 and first.fresh


def test_no_client_has_the_servers_images_and_it_has_no_labels(dataset):
    whole = federation(dataset, limit_train=0)
    seen = torch.cat(whole.parts)
    assert int(seen.max()) == len(dataset.train) - 50 - 1 and len(seen) == len(dataset.train) - 50
    assert sum(len(batch) for batch in whole.images) == 50
    assert all(isinstance(batch, torch.Tensor) for batch in whole.images)
    last = dataset.train.images[-50:].float() / 255
    torch.testing.assert_close(torch.cat(whole.images), last)
    with pytest.raises(InputError, match="leave too few"):
        federation(dataset, server_images=len(dataset.train) - 3)


def test_small_clients_train_on_smaller_batches(dataset):
    few = federation(dataset, limit_train=24)
    assert few.local(0, 1, None).samples == 6  # batches of 3, not of 20


def test_clients_begin_with_their_own_network_once_and_with_what_is_sent_later(dataset):
    own, common = federation(dataset), federation(dataset, start="common")
    assert own.common is None and common.common is not None
    assert own.begins(1, 1) and not own.begins(1, 2) and not common.begins(1, 1)
    assert not same(models.state_of(own.fresh(0, 1)), models.state_of(own.fresh(0, 2)))
    late = federation(dataset, start="common", newcomers=1, join=3)
    assert [late.joined(number) for number in (1, 2, 3)] == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]
    assert late.begins(3, 3) and not late.begins(3, 4) and not late.begins(2, 3)


def test_a_fraction_takes_part_drawn_anew_each_round(dataset):
    part = federation(dataset, fraction=0.5)
    drawn = [part.participants(number) for number in range(1, 9)]
    assert {len(each) for each in drawn} == {2} and len(set(map(tuple, drawn))) > 2
    assert drawn == [federation(dataset, fraction=0.5).participants(number) for number in range(1, 9)]
    assert len(federation(dataset, fraction=0.01).participants(1)) == 1


def test_stragglers_are_not_in_time_but_somebody_is(dataset):
    slow = federation(dataset, stragglers=0.9)
    fast = [slow.in_time(number) for number in range(1, 20)]
    assert min(map(len, fast)) == 1 and max(map(len, fast)) < 4
    assert federation(dataset).in_time(1) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fraction": 0.0}, "fraction 0.0"),
        ({"stragglers": 1.0}, "stragglers 1.0"),
        ({"newcomers": 4}, "newcomers 4 of 4"),
        ({"start": "same"}, "unknown start"),
        ({"rounds": 0}, "rounds 0"),
        ({"split": "even"}, "unknown split"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(changes, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(BASE, **changes)


def test_the_proximal_term_holds_clients_to_what_they_were_sent(dataset):
    fed = federation(dataset, start="common")

    def away(mu):
        state = fed.local(0, 1, fed.common, mu).state
        return float(sum((state[name] - t).square().sum() for name, t in fed.common.items())) ** 0.5

    assert away(5.0) < 0.7 * away(0.0) and away(1e-6) == pytest.approx(away(0.0), rel=1e-3)


# Training options ---------------------------------------------------------------------------------------------------


def trained(recipe):
    net = models.build("mlp", width=0.03, seed=0)
    before = models.state_of(net)
    batches = [(torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10)]
    models.train(net, batches, recipe, generator=torch.Generator(), progress=False)
    return sum((net.state_dict()[name] - t).square().sum() for name, t in before.items()) ** 0.5


def test_a_step_is_no_longer_than_clip_allows_and_a_constant_rate_needs_no_second():
    plain = dataclasses.replace(RECIPE, momentum=0.0)
    free, clipped = trained(plain), trained(dataclasses.replace(plain, clip=0.01))
    assert float(clipped) == pytest.approx(0.1 * 0.01, rel=1e-3) and free > 2 * clipped
    with pytest.raises(InputError, match="one step of 20 images is no training"):
        trained(dataclasses.replace(plain, schedule="triangle"))
    with pytest.raises(InputError, match="clip -1 is not accepted"):
        dataclasses.replace(plain, clip=-1)
    assert "clip" not in plain.as_dict() and dataclasses.replace(plain, clip=1.0).as_dict()["clip"] == 1.0


# Rounds -------------------------------------------------------------------------------------------------------------


def test_rounds_of_one_client_are_its_own_training(dataset):
    fed = federation(dataset, clients=1)
    rows = rounds.serve(fed, "fedavg", progress=False)
    state = None
    for number in (1, 2, 3):
        state = fed.local(0, number, state).state
    assert rows[-1]["test_accuracy"] == fed.measure(state)["test_accuracy"]
    alone = rounds.alone(fed, progress=False)
    assert {row["test_accuracy"] for row in alone if row["round"] == 3} == {rows[-1]["test_accuracy"]}


def test_a_round_says_what_was_sent_and_who_took_part(dataset):
    fed = federation(dataset)
    rows = rounds.serve(fed, "matched_least_squares", progress=False)
    one = rounds.size(models.state_of(fed.template)) / 1e6
    assert [row["megabytes_up"] for row in rows] == pytest.approx([4 * one, 8 * one, 12 * one])
    assert [row["megabytes_down"] for row in rows] == pytest.approx([0, 4 * one, 8 * one])  # nothing to begin with
    assert [row["newcomers"] for row in rows] == [[0, 1, 2, 3], [], []]
    assert [row["corrected"] for row in rows] == ["least_squares", "none", "none"]
    assert [row["guard"] for row in rows] == [[False] * 4, [True] * 4, [True] * 4]
    common = rounds.serve(federation(dataset, start="common", rounds=1), "fedavg", progress=False)
    assert common[0]["megabytes_down"] == pytest.approx(4 * one)


def test_what_comes_late_counts_in_the_next_round_or_is_lost(dataset):
    lost, late = (federation(dataset, stragglers=0.5, late=late, rounds=4) for late in (False, True))
    rows = {fed: rounds.serve(fed, "fedavg", progress=False) for fed in (lost, late)}
    one = rounds.size(models.state_of(lost.template)) / 1e6
    slow = [len(row["late"]) for row in rows[late]]
    assert sum(slow[:-1]) > 0 and [row["late"] for row in rows[lost]] == [row["late"] for row in rows[late]]
    fast = 4 * 4 - sum(slow)
    assert rows[lost][-1]["megabytes_up"] == pytest.approx(fast * one)
    assert rows[late][-1]["megabytes_up"] == pytest.approx((fast + sum(slow[:-1])) * one)
    assert rows[lost][-1]["test_loss"] != rows[late][-1]["test_loss"]


def test_servers_share_their_first_round_and_the_controls_are_of_the_same_clients(dataset, monkeypatch):
    fed, trainings = federation(dataset, rounds=2), []
    local = fed.local
    monkeypatch.setattr(fed, "local", lambda client, number, *rest, **more: (
        trainings.append(number), local(client, number, *rest, **more))[1])  # fmt: skip
    rows = rounds.simulate(fed, ["fedavg", "matched"], progress=False, resume=False)
    assert trainings.count(1) == 4 and trainings.count(2) == 3 * 4
    states = [local(client, 1, None).state for client in range(4)]
    accuracy = [fed.measure(state)["test_accuracy"] for state in states]
    first = {row.get("control"): row["test_accuracy"] for row in rows if row["round"] == 1}
    assert first["best client"] == max(accuracy)
    assert first["mean client"] == pytest.approx(sum(accuracy) / 4)
    logits = fed.logits(states)[0]
    right = (sum(each.softmax(1) for each in logits).argmax(1) == dataset.test.labels).float().mean()
    assert first["ensemble of clients"] == pytest.approx(float(right))


def test_a_coordinator_wants_the_updates_of_all_participants(dataset):
    fed = federation(dataset)
    coordinator = rounds.Coordinator(fed, "fedavg")
    with pytest.raises(InputError, match=r"round 1 wants updates of clients \[0, 1, 2, 3\], not \[0\]"):
        coordinator.receive([fed.local(0, 1, None)])


# Kills --------------------------------------------------------------------------------------------------------------

KILLED = """
    import dataclasses, os, pathlib, sys
    from lib import models, paths, rounds
    from lib.rounds import loop

    place, die = pathlib.Path(sys.argv[1]), sys.argv[2]
    recipe = models.Recipe(epochs=1, batch_size=20, lr=0.1, augment=False, weight_decay=0.0, schedule="constant")
    setting = rounds.Setting(
        "mlp", recipe, width=0.03, clients=4, split="iid", rounds=3, server_images=50, limit_train=400, seed=1,
        stragglers=0.4, late=True,
    )
    whole = models.open_dataset("mnist-5k", "mlp")
    fed = rounds.Federation(setting, dataclasses.replace(whole, test=whole.test.head(200)))
    local, replace = fed.local, os.replace
    def dying(client, number, *rest, **more):
        if die == f"train {number} {client}":
            os.kill(os.getpid(), 9)
        return local(client, number, *rest, **more)
    count = [0]
    def replaced(*names):
        count[0] += 1
        if die == f"before {count[0]}":
            os.kill(os.getpid(), 9)
        replace(*names)
        if die == f"after {count[0]}":
            os.kill(os.getpid(), 9)
    fed.local, os.replace = dying, replaced
    rows = rounds.simulate(fed, ["matched_least_squares"], progress=False)
    (place / "rows.txt").write_text(repr(rows))
"""


def run_and_die(place, die) -> int:
    script = place / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    env = os.environ | {"FUSEBOOK_CHECKPOINTS": str(place / "checkpoints"), "PYTHONPATH": str(paths.ROOT)}
    env["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    command = [sys.executable, str(script), str(place), die]
    return subprocess.run(command, env=env, cwd=paths.ROOT, capture_output=True, timeout=300).returncode


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no kill -9")
def test_a_run_killed_anywhere_goes_on_and_gives_the_same_bits(tmp_path, dataset):
    """In the middle of a round, half-way through the writing of a state, right behind it, and in the control."""
    setting = dataclasses.replace(BASE, stragglers=0.4, late=True)
    undisturbed = rounds.simulate(rounds.Federation(setting, dataset), ["matched_least_squares"], progress=False,
                                  resume=False)  # fmt: skip
    for die in ("train 2 1", "before 2", "after 3"):
        assert run_and_die(tmp_path, die) == -9, die
        assert not (tmp_path / "rows.txt").exists()
    assert run_and_die(tmp_path, "never") == 0
    assert (tmp_path / "rows.txt").read_text() == repr(undisturbed)
    left = {path.name.partition("-")[0] for path in (tmp_path / "checkpoints" / "local").iterdir()}
    assert left == {"rounds"}  # states of whole rounds, nothing half-written


def test_only_missing_rounds_are_trained_and_a_finished_run_leaves_no_file(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    fed = federation(dataset, rounds=2)
    resume = rounds.resume_path(fed, "fedavg")
    first = rounds.serve(fed, "fedavg", resume=resume, progress=False)
    monkeypatch.setattr(fed, "local", None)  # nothing is left to train
    assert rounds.serve(fed, "fedavg", resume=resume, progress=False) == first
    rounds.forget(fed, ["fedavg"])
    assert not list((tmp_path / "local").iterdir())


def test_a_damaged_state_is_said_and_a_foreign_one_refused(tmp_path, dataset, capsys):
    fed, resume = federation(dataset, rounds=1), tmp_path / "rounds.resume"
    resume.write_bytes(b"PK\x03\x04 half of a file")
    rows = rounds.serve(fed, "fedavg", resume=resume, progress=False)
    assert "rounds.resume cannot be read" in capsys.readouterr().out and len(rows) == 1
    with pytest.raises(InputError, match="belongs to another run"):
        rounds.serve(federation(dataset, seed=5), "fedavg", resume=resume)
    with pytest.raises(InputError, match="belongs to another run"):
        rounds.serve(fed, "matched", resume=resume)
    assert loop.load_state(tmp_path / "none", "key") is None


def test_a_text_has_no_clients():
    with pytest.raises(InputError, match="is a text"):
        rounds.Federation(
            dataclasses.replace(BASE, model="gpt", width=0.25), loaders.load("paradise-lost", shape=(64,))
        )
