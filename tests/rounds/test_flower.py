"""The rounds on a real Flower: a SuperLink and SuperNodes on the loopback, killed and restarted once; and with a part
of the clients in each round."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib import models, rounds
from lib.checks import InputError
from lib.paths import ROOT

SCRIPTS = Path(sys.executable).parent
WAIT = 100  # seconds until something is taken for stuck

SHARED = """
    from lib import models, rounds

    def federation():
        recipe = models.Recipe(epochs=1, batch_size=50, lr=0.1, augment=False, schedule="constant")
        setting = rounds.Setting(
            "mlp", recipe, width=0.0625, split="dirichlet(beta=1.0)", rounds=3, server_images=100, limit_train=600,
            **{more!r},
        )
        return rounds.Federation(setting, models.open_dataset("mnist-5k", "mlp"))
"""
CLIENT = """
    from .shared import federation
    from lib.rounds.flower import client_app

    app = client_app(federation())
"""
# After the first round of the first run the server is killed, as kill -9 does, once its state is written; unless it has
# been.
SERVER = """
    import json, os, pathlib
    from .shared import federation
    from lib.rounds import flower

    place = pathlib.Path({place!r})

    def finished(result):
        rounds = {{}}
        for number in result.evaluate_metrics_serverapp:
            trained = dict(result.train_metrics_clientapp[number])
            rounds[number] = dict(result.evaluate_metrics_serverapp[number]) | trained
        (place / "metrics.unfinished").write_text(json.dumps(rounds))
        os.rename(place / "metrics.unfinished", place / "metrics.json")

    class Strategy(flower.FusionStrategy):
        def configure_train(self, number, *args):
            with (place / "asked.txt").open("a") as asked:
                asked.write(f"{{number}} {{self.done['number']}}\\n")
            if number == 2 and not (place / "killed").exists():
                (place / "killed").touch()
                os.kill(os.getpid(), 9)
            return super().configure_train(number, *args)

    flower.FusionStrategy = Strategy
    app = flower.server_app(federation(), "matched_least_squares", resume=place / "rounds.resume", finished=finished)
"""
PROJECT = """
    [project]
    name = "fusing"
    version = "1.0.0"
    license = "MIT"

    [tool.flwr.app]
    publisher = "fusebook"

    [tool.flwr.app.components]
    serverapp = "fusing.server:app"
    clientapp = "fusing.client:app"

    [tool.flwr.app.config]
"""


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(log: Path, *command: str, env: dict):
    """A process of its own session, which is ended with all that it started."""
    with log.open("a") as out:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / command[0]), *command[1:]],
            stdout=out, stderr=out, env=env, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def wait_for(what, *logs: Path, of: subprocess.Popen | None = None) -> None:
    left = 5 * WAIT
    while left > 0:
        if what():
            return
        if of is not None and of.poll() is not None:  # has it come to an end without?
            left = min(left, 25)
        left -= 1
        time.sleep(0.2)
    pytest.fail("\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in logs))


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def app(folder: Path, place: Path, shared: str) -> Path:
    package = folder / "fusing"
    package.mkdir(parents=True)
    files = {
        "pyproject.toml": PROJECT,
        "fusing/__init__.py": "",
        "fusing/shared.py": shared,
        "fusing/client.py": CLIENT,
        "fusing/server.py": SERVER.format(place=str(place)),
    }
    for name, text in files.items():
        (folder / name).write_text(textwrap.dedent(text))
    return folder


@contextmanager
def fleet(folder: Path, env: dict, clients: int):
    """A SuperLink and a SuperNode a client; yields the process that runs the app on them."""
    link, nodes, port = folder / "link.log", folder / "nodes.log", free_port()
    home = Path(env["FLWR_HOME"])
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    with ExitStack() as stack:
        start = ("flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation")
        stack.enter_context(running(link, *start, env=env))
        wait_for(lambda: listens(port), link)
        for number in range(clients):
            stack.enter_context(
                running(
                    nodes,
                    "flower-supernode",
                    "--insecure",
                    "--superlink",
                    f"127.0.0.1:{port}",
                    "--port",
                    str(free_port()),
                    "--node-config",
                    f"partition-id={number} num-partitions={clients}",
                    env=env,
                )  # fmt: skip
            )
        command = ("flwr", "run", str(folder / "app"), "loopback", "--stream")
        yield stack.enter_context(running(folder / "run.log", *command, env=env))


@pytest.fixture
def flower(tmp_path):
    """Makes an app of a federation with these settings; gives the environment to run it in and the folder of what it
    finds."""
    pytest.importorskip("flwr")
    if not (SCRIPTS / "flower-superlink").is_file():
        pytest.skip("no flower-superlink beside this Python")
    place = tmp_path / "place"
    place.mkdir()
    env = os.environ | {
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }

    def made(**more):
        shared = SHARED.format(more=more)
        app(tmp_path / "app", place, shared)
        scope: dict = {}
        exec(textwrap.dedent(shared), scope)
        return env, place, scope["federation"]()

    return made


def assert_same_to_the_digit(place: Path, federation: rounds.Federation) -> list[dict]:
    """What Flower found is what the loop in one process finds; answers the loop's rows."""
    found = json.loads((place / "metrics.json").read_text())
    rows = rounds.serve(federation, "matched_least_squares", progress=False)
    assert [int(number) for number in found] == [1, 2, 3]
    for row in rows:
        same = found[str(row["round"])]
        for metric in ("test_accuracy", "test_loss", "train_loss", "megabytes_up", "megabytes_down"):
            assert same[metric] == row[metric], metric
        assert same["clients"] == row["participants"]
        assert same.get("correlation") == row.get("correlation")
        assert [bool(kept) for kept in same.get("kept", ())] == (row["guard"] or [])
    return rows


def logs(folder: Path) -> tuple[Path, ...]:
    return folder / "link.log", folder / "nodes.log", folder / "run.log"


def test_a_real_superlink_killed_once_gives_the_metrics_of_the_loop_to_the_digit(flower, tmp_path):
    env, place, federation = flower(clients=2, seed=3)
    with fleet(tmp_path, env, 2) as running_app:
        wait_for((place / "killed").exists, *logs(tmp_path), of=running_app)
    # the SuperLink, its nodes and the server are gone; a new fleet
    assert (place / "rounds.resume").is_file() and not (place / "metrics.json").exists()
    with fleet(tmp_path, env, 2) as running_app:
        wait_for((place / "metrics.json").exists, *logs(tmp_path), of=running_app)
    asked = [tuple(map(int, line.split())) for line in (place / "asked.txt").read_text().splitlines()]
    assert asked == [(1, 0), (2, 1), (1, 1), (2, 1), (3, 2)]  # (round, rounds done): the first is not trained again
    assert_same_to_the_digit(place, federation)


def test_a_part_of_the_clients_and_a_newcomer_are_those_of_the_loop_to_the_digit(flower, tmp_path):
    env, place, federation = flower(clients=4, fraction=0.67, newcomers=1, join=3, seed=5)
    (place / "killed").touch()
    with fleet(tmp_path, env, 4) as running_app:
        wait_for((place / "metrics.json").exists, *logs(tmp_path), of=running_app)
    rows = assert_same_to_the_digit(place, federation)
    assert [row["participants"] for row in rows] == [[1, 2], [0, 1], [0, 2, 3]]
    assert [row["newcomers"] for row in rows] == [[1, 2], [0], [3]]  # who begin on their own are sent nothing


def test_without_flower_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "lib.rounds.flower", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "flwr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(InputError, match="need Flower: pip install"):
        import lib.rounds.flower  # noqa: F401


def test_stragglers_are_refused():
    pytest.importorskip("flwr")
    from lib.rounds import flower

    recipe = models.Recipe(epochs=1, batch_size=50, augment=False)
    setting = rounds.Setting("mlp", recipe, width=0.0625, clients=2, stragglers=0.5, limit_train=100)
    federation = rounds.Federation(setting, models.open_dataset("mnist-5k", "mlp"))
    with pytest.raises(InputError, match="accepted: stragglers 0"):
        flower.server_app(federation, "fedavg")


def test_nodes_are_asked_once_which_client_they_are_and_those_that_are_to_take_part_are_sent_the_network(monkeypatch):
    pytest.importorskip("flwr")
    from flwr.app import ArrayRecord, ConfigRecord, MessageType, MetricRecord, RecordDict

    from lib.rounds import flower

    class Grid:
        clients, asked = {70: 0, 50: 1, 60: 2}, []

        def get_node_ids(self):
            return list(self.clients)

        def send_and_receive(self, messages, timeout):
            assert all(message.message_type == MessageType.QUERY for message in messages)
            self.asked += [message.dst_node_id for message in messages]
            return [
                SimpleNamespace(
                    content=RecordDict({"metrics": MetricRecord({"client": self.clients[node]})}),
                    metadata=SimpleNamespace(src_node_id=node),
                    has_error=lambda: False,
                )
                for node in (message.dst_node_id for message in messages)
            ]

    # a Message can be made in a run alone
    monkeypatch.setattr(flower, "Message", lambda **fields: SimpleNamespace(**fields))
    net, grid = models.build("mlp", width=0.03, seed=0), Grid()
    wanted = {1: {0: True, 2: True}, 2: {1: False, 2: True}, 3: {1: True}, 4: {0: True, 3: True}}
    strategy = flower.FusionStrategy("fedavg", net, nodes=3, participants=wanted.__getitem__)

    def sent(number):
        messages = strategy.configure_train(number, ArrayRecord(models.state_of(net)), ConfigRecord(), grid)
        return {message.dst_node_id: bool(message.content["arrays"]) for message in messages}

    assert sent(1) == {60: True, 70: True} and grid.asked == [50, 60, 70]
    assert sent(2) == {50: False, 60: True} and strategy._receivers == 1
    grid.clients[80] = 1  # its node has been started again, the old one is not yet known to be gone
    assert sent(3) == {80: True} and grid.asked == [50, 60, 70, 80]
    with pytest.raises(InputError, match="round 4: no node is client 3; accepted: a node for each"):
        sent(4)


def test_the_strategy_takes_what_flowers_own_clients_answer(tmp_path):
    """Arrays and "num-examples" alone; a node that fails counts for none; done rounds are answered from the file."""
    pytest.importorskip("flwr")
    from flwr.app import ArrayRecord, MetricRecord, RecordDict

    from lib.rounds import flower

    net = models.build("mlp", width=0.03, seed=0)
    images = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    states = [models.state_of(models.build("mlp", width=0.03, seed=seed)) for seed in (1, 2)]

    def reply(node, state=None, count=0):
        """What the strategy reads of a Message, which can be made in a run alone."""
        content = None
        if state is not None:
            metrics = MetricRecord({"num-examples": count})
            content = RecordDict({"arrays": ArrayRecord(state), "metrics": metrics})
        metadata = SimpleNamespace(src_node_id=node)
        return SimpleNamespace(content=content, metadata=metadata, has_error=lambda: state is None)

    replies = [reply(9, states[1], 30), reply(4), reply(2, states[0], 10)]
    strategy = flower.FusionStrategy("matched", net, images=images, start="own", resume=tmp_path / "rounds.resume")
    assert strategy.aggregate_train(1, [reply(4)]) == (None, None)
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert metrics["clients"] == [0, 1] and metrics["kept"] == [0, 0]
    updates = [rounds.Update(i, states[i], (10, 30)[i], (), 0.0, 1, True) for i in (0, 1)]
    made = rounds.combine("matched", updates, model=net, groups=strategy.groups, images=[images])
    found = arrays.to_torch_state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in made.state.items())
    again = flower.FusionStrategy("matched", net, images=images, start="own", resume=tmp_path / "rounds.resume")
    assert again.configure_train(1, arrays, {}, None) == []  # nobody is asked
    repeated, same = again.aggregate_train(1, [])
    assert {**same} | {"train_loss": 0} == {**metrics} | {"train_loss": 0}
    assert all(torch.equal(t, found[name]) for name, t in repeated.to_torch_state_dict().items())
    given = {"images": images, "start": "own", "resume": tmp_path / "rounds.resume"}
    for other in ({"fraction": 0.5}, {"run": "other"}, {"start": "common"}):
        with pytest.raises(InputError, match="belongs to another run"):
            flower.FusionStrategy("matched", net, **given | other)
    with pytest.raises(InputError, match="belongs to another run"):
        flower.FusionStrategy("fedavg", net, resume=tmp_path / "rounds.resume")
    with pytest.raises(InputError, match="looks at images"):
        flower.FusionStrategy("matched", net)
