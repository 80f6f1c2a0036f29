"""The notebook on federated learning: what its parameters accept."""

import pytest

from lib.checks import InputError
from lib.study import federated

GIVEN = {
    "dataset": "mnist-5k", "model": "mlp", "width": 0.0625, "norm": "auto", "clients": 2, "split": "iid", "rounds": 1,
    "epochs": 1, "batch_size": 10, "lr": 0.05, "clip": 0.0, "start": "own", "fraction": 1.0, "newcomers": 0, "join": 2,
    "stragglers": 0.0, "late": False, "servers": ["fedavg"], "controls": False, "server_images": 50, "seeds": [0],
    "limit_train": 100, "limit_test": 100, "device": "cpu",
}  # fmt: skip


def begin(tmp_path, **other):
    places = {"results_path": str(tmp_path / "r.json"), "figures_dir": str(tmp_path / "figures")}
    return federated.begin(GIVEN | places | other)


def test_the_peers_matchers_are_servers_and_are_recorded_as_they_are_spelled(tmp_path):
    servers = ["matched( matcher = weight( strategy=cycle_consistent ), guard=false)", "matched(matcher=activation)"]
    run = begin(tmp_path, servers=servers)
    assert run.servers == ["matched(matcher=weight(strategy=cycle_consistent), guard=false)", "matched"]
    record = run.record(run.rows())
    assert {row["server"] for row in record["rows"]} == {*run.servers}


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ("matched(matcher=graph_sm)", "plain chain"),
        ("matched(matcher=weight(strategy=best))", "strategy 'best' is not accepted; accepted: auto, reference, joint"),
        ("matched(matcher=graph(guard=false))", "matcher 'graph' takes no option guard"),
    ],
)
def test_a_server_that_cannot_be_is_one_line_before_anything_is_trained(server, told, tmp_path):
    with pytest.raises(InputError) as error:
        begin(tmp_path, servers=["fedavg", server])
    assert told in str(error.value) and "\n" not in str(error.value)
