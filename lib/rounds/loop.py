"""The loop: rounds of clients' training and a server, in one process; resumable, and the same to the bit when resumed.

The state after each round is written whole or not at all. A killed run, started again, goes on with the round that is
missing.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import models, paths
from ..checks import InputError, first_line
from ..fusion.heads import mean_log_probabilities
from ..models.checkpoints import _load_torch
from ..progress import tqdm
from .federation import Federation, State, Update, size
from .servers import check_server, combine, proximal, spell_server

MEGABYTE = 1_000_000


@dataclass
class Progress:
    """A server between two rounds: how many are done, its network, updates that came too late for the last one, a row
    of measures a round, and bytes sent up and down so far."""

    number: int = 0
    state: State | None = None
    held: list[Update] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    up: int = 0
    down: int = 0


class Coordinator:
    """A server's side of the rounds: `begin`, then for each round `send`, `receive`. The loop in one process and the
    Flower strategy both drive it.

    Args:
        server: of `servers.SERVERS`, options in brackets.
        resume: a file that holds the state after each round; read where it is there (a damaged one is said, and not
            used). Whoever has written the record removes it.

    Raises:
        InputError: the server is none, or needs images that the setting does not give; the file is of another run.
    """

    def __init__(self, federation: Federation, server: str, resume: Path | None = None) -> None:
        self.federation, self.server, self.resume = federation, spell_server(server), resume
        check_server(server, federation.setting.server_images)
        self.proximal = proximal(server)
        self.progress = self._read() or Progress(state=federation.common)

    @property
    def number(self) -> int:
        """The round that is next, from 1 on."""
        return self.progress.number + 1

    @property
    def is_done(self) -> bool:
        """Whether no round is left."""
        return self.progress.number >= self.federation.setting.rounds

    def receive(self, updates: Sequence[Update]) -> dict[str, Any]:
        """A round's updates, of all participants: the server's new network, measured; the row of it. Written before it
        returns."""
        federation, progress, number = self.federation, self.progress, self.number
        taking, fast = federation.participants(number), set(federation.in_time(number))
        updates = sorted(updates, key=lambda update: update.client)
        if [update.client for update in updates] != taking:
            raise InputError(f"round {number} wants updates of clients {taking}, not {[u.client for u in updates]}")
        arrived = progress.held + [update for update in updates if update.client in fast]
        slow = [update for update in updates if update.client not in fast]
        made = combine(
            self.server, arrived, model=federation.template, groups=federation.groups, current=progress.state,
            images=federation.images, number=number, device=federation.device, seed=federation.setting.seed,
        )  # fmt: skip
        up = sum(size(update.state) for update in arrived)
        down = sum(size(update.state) for update in updates if not update.fresh)
        row = {
            "study": "rounds", "server": self.server, "round": number,
            **federation.measure(made.state),
            "train_loss": sum(update.loss for update in arrived) / len(arrived),
            "megabytes_up": (progress.up + up) / MEGABYTE, "megabytes_down": (progress.down + down) / MEGABYTE,
            "participants": taking, "newcomers": [update.client for update in updates if update.fresh],
            "late": [update.client for update in slow], **made.info,
        }  # fmt: skip
        self.progress = Progress(
            number, made.state, slow if federation.setting.late else [], [*progress.rows, row], progress.up + up,
            progress.down + down,
        )  # fmt: skip
        self._write()
        return row

    @property
    def _key(self) -> str:
        return f"{self.federation.key} {self.server}"

    def _write(self) -> None:
        if self.resume is not None:
            save_state(self.resume, {"key": self._key, **asdict(self.progress)})

    def _read(self) -> Progress | None:
        saved = load_state(self.resume, self._key)
        if saved is None:
            return None
        held = [Update(**each | {"class_counts": tuple(each["class_counts"])}) for each in saved["held"]]
        return Progress(**saved | {"held": held})


def save_state(path: Path, held: Mapping[str, Any]) -> None:
    """Writes a state between rounds, "key" (of what run) among it, whole or not at all."""
    content = io.BytesIO()
    torch.save(dict(held), content)
    with paths.atomic(path) as temporary:
        temporary.write_bytes(content.getvalue())


def load_state(path: Path | None, key: str) -> dict[str, Any] | None:
    """What the file holds of this run; None where there is none, or none that can be read."""
    if path is None or not path.is_file():
        return None
    try:
        saved = dict(_load_torch(path.read_bytes()))
        own = saved.pop("key")
    except Exception as error:  # a damaged file can make torch raise anything
        print(f"{path.name} cannot be read ({first_line(error)}), starting afresh", flush=True)
        return None
    if own != key:
        raise InputError(f"{path} belongs to another run; delete it to start afresh")
    return saved


def resume_path(federation: Federation, server: str) -> Path:
    """Where a run's state goes between its rounds."""
    named = hashlib.sha256(server.encode()).hexdigest()[:6]
    return paths.CHECKPOINTS / "local" / f"rounds-{federation.key}-{named}.resume"


def serve(
    federation: Federation,
    server: str,
    *,
    resume: Path | None = None,
    progress: bool = True,
    first: dict[Any, Update] | None = None,
) -> list[dict[str, Any]]:
    """All rounds of one server: a row of measures a round.

    Row: server, round, test_accuracy (a fraction), test_loss and train_loss (nats), megabytes_up and megabytes_down
    (10⁶ bytes of weights, all rounds so far), participants, newcomers (those who began from their own initialisation),
    late (those not in time), guard (whether each update kept its order; None where nothing was to be matched),
    correlation, corrected.

    Args:
        resume: as in `Coordinator`.
        first: keeps what clients send in round 1, which is the same for all servers that train alike.

    Raises:
        InputError: as `Coordinator`, or a client's training diverges.
    """
    first = {} if first is None else first
    coordinator = Coordinator(federation, server, resume)
    bar = tqdm(
        total=federation.setting.rounds, initial=coordinator.progress.number, desc=coordinator.server, unit="round",
        disable=not progress, mininterval=1,
    )  # fmt: skip
    with bar:
        while not coordinator.is_done:
            number, state, mu = coordinator.number, coordinator.progress.state, coordinator.proximal
            updates = []
            for client in federation.participants(number):
                kept = first.get((client, mu)) if number == 1 else None
                updates.append(kept or federation.local(client, number, state, mu))
                if number == 1:
                    first[client, mu] = updates[-1]
            row = coordinator.receive(updates)
            bar.set_postfix(accuracy=f"{100 * row['test_accuracy']:.1f} %")
            bar.update()
    return coordinator.progress.rows


def alone(
    federation: Federation,
    *,
    resume: Path | None = None,
    progress: bool = True,
    first: dict[Any, Update] | None = None,
) -> list[dict[str, Any]]:
    """The control without a server: clients train as often and as long, each going on from its own network.

    Three rows a round, of those who have trained: "best client" (by the test set itself, which favours it), "mean
    client", and "ensemble of clients" (the mean of their probabilities, weighted by samples; as many times the cost of
    one).
    """
    first, key = {} if first is None else first, f"{federation.key} alone"
    saved = load_state(resume, key) or {"number": 0, "states": {}, "rows": []}
    number, states, rows = saved["number"], saved["states"], saved["rows"]
    rounds = federation.setting.rounds
    with tqdm(total=rounds, initial=number, desc="clients alone", unit="round", disable=not progress) as bar:
        while number < rounds:
            number += 1
            for client in federation.participants(number):
                kept = first.get((client, 0.0)) if number == 1 else None
                start = states.get(client)
                if kept is None:
                    kept = federation.local(
                        client, number, federation.common if start is None else start,
                        fresh=None if start is None else False,
                    )  # fmt: skip
                if number == 1:
                    first[client, 0.0] = kept
                states = states | {client: kept.state}
            rows = rows + _of_clients(federation, states, number)
            if resume is not None:
                save_state(resume, {"key": key, "number": number, "states": states, "rows": rows})
            bar.update()
    return rows


def _of_clients(federation: Federation, states: Mapping[int, State], number: int) -> list[dict[str, Any]]:
    clients = sorted(states)
    logits, labels = federation.logits([states[client] for client in clients])
    scores = [models.score(each, labels) for each in logits]
    sizes = [len(federation.parts[client]) for client in clients]
    together = mean_log_probabilities(logits, [each / sum(sizes) for each in sizes])
    joint = models.score(together, labels)

    def row(control: str, accuracy: float, loss: float, **more: Any) -> dict[str, Any]:
        measures = {"test_accuracy": accuracy, "test_loss": loss}
        return {"study": "rounds", "control": control, "round": number, **measures, **more}

    best = max(range(len(scores)), key=lambda i: scores[i].accuracy)
    return [
        row("best client", scores[best].accuracy, scores[best].loss, client=clients[best]),
        row("mean client", sum(s.accuracy for s in scores) / len(scores), sum(s.loss for s in scores) / len(scores)),
        row("ensemble of clients", joint.accuracy, joint.loss),
    ]


def simulate(
    federation: Federation, servers: Sequence[str], *, controls: bool = True, progress: bool = True, resume: bool = True
) -> list[dict[str, Any]]:
    """All servers on the same clients, and beside them the control without one: rows as of `serve` and `alone`.

    With `resume` a killed run goes on where it was; `forget` removes what it left, once the record is written.
    """
    first: dict[Any, Update] = {}
    options = {"progress": progress, "first": first}
    rows = []
    for server in servers:
        rows += serve(federation, server, resume=_place(federation, spell_server(server), resume), **options)
    if controls:
        rows += alone(federation, resume=_place(federation, "alone", resume), **options)
    return rows


def _place(federation: Federation, name: str, resume: bool) -> Path | None:
    return resume_path(federation, name) if resume else None


def forget(federation: Federation, servers: Sequence[str]) -> None:
    """Removes the states between rounds: the record is written."""
    for name in (*map(spell_server, servers), "alone"):
        resume_path(federation, name).unlink(missing_ok=True)
