"""The same rounds on Flower (https://flower.ai; the extra `federated`): a Strategy for any Flower app, and the two apps
of a `Federation`.

    strategy = FusionStrategy("matched_least_squares", network, images=unlabelled, resume="rounds.resume")
    strategy.start(grid, ArrayRecord(network.state_dict()), num_rounds=5)

Clients answer as to Flower's own FedAvg: an ArrayRecord "arrays" and a MetricRecord "metrics" that holds
"num-examples"; and, where they like, "class-counts" (for `head=class_counts`), "train-loss", "client" (a number that
stays a client's own, so that sums have an order), and "fresh", 1 where they began from their own initialisation. Where
the strategy is told which clients are to take part, they answer a query with that number, too.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import loaders, models, symmetry
from ..checks import InputError, check_choice, check_whole
from .federation import Federation, State, Update, size
from .loop import MEGABYTE, load_state, save_state
from .servers import check_server, combine, proximal, spell_server

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Result, Strategy
    from flwr.serverapp.strategy.strategy_utils import sample_nodes
except ImportError:
    raise InputError("rounds on Flower need Flower: pip install -e '.[federated]' in a clone") from None


class FusionStrategy(Strategy):
    """A server of `servers.SERVERS` as a Flower strategy.

    After each round its state is written to `resume`, whole or not at all. A ServerApp that was killed and is started
    again replays the rounds that are done without asking a client, with their metrics, and goes on with the next.

    Args:
        server: by name, options in brackets.
        model: a network of the architecture; only its structure counts.
        images: unlabelled, a tensor (N, …) or batches of images; may be left out for a server that looks at none.
        example: inputs (N, …), N ≥ 2, to trace with; by default the first of `images`. A server that averages alone
            needs none.
        start: `common`: clients begin with the initial arrays; `own`: they are sent none in the first round.
        nodes: wait for so many before each round.
        fraction: of the nodes that take part in a round, drawn anew by Flower.
        participants: gives of a round's number the clients that take part, in place of a fraction: {client: whether it
            is sent the server's network}. Nodes are asked once which client they are.
        run: whatever else tells this run from others, such as the clients' settings, so that none goes on with the
            state of another.

    Raises:
        InputError: as `servers.combine`; the file is of another run.
    """

    def __init__(
        self,
        server: str,
        model: nn.Module,
        *,
        images: Tensor | Iterable = (),
        example: Tensor | None = None,
        groups: symmetry.Groups | None = None,
        start: Literal["common", "own"] = "common",
        nodes: int = 2,
        fraction: float = 1.0,
        participants: Callable[[int], Mapping[int, bool]] | None = None,
        resume: str | Path | None = None,
        run: str = "",
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        check_choice("start", start, ("common", "own"))
        check_whole("nodes", nodes, 1)
        if not 0 < fraction <= 1:
            raise InputError(f"fraction {fraction} is not accepted; accepted: a number above 0, up to 1")
        self.server, self.begins, self.nodes, self.fraction = spell_server(server), start, nodes, fraction
        self.model, self.device, self.seed, self.participants = model, torch.device(device), seed, participants
        self.images = [loaders.placed(loaders.read_batch(batch)[0], device) for batch in loaders.batched(images)]
        check_server(self.server, self.images)
        if groups is None and self.server.startswith("matched"):
            if example is None and not self.images:
                raise InputError(f"server '{self.server}' needs inputs to trace with; accepted: example, or images")
            groups = symmetry.proved(model, self.images[0][:2].cpu() if example is None else example)
        self.groups = groups
        self.resume = None if resume is None else Path(resume)
        shapes = {name: tuple(tensor.shape) for name, tensor in models.state_of(model).items()}
        said = repr((self.server, start, fraction, seed, shapes, run))
        self._key = f"flower {hashlib.sha256(said.encode()).hexdigest()[:10]}"
        self.done: dict[str, Any] = load_state(self.resume, self._key) or {
            "number": 0, "state": None, "up": 0, "down": 0, "trained": {}, "measured": {},
        }  # fmt: skip
        self._sent: State | None = None
        self._receivers = 0  # nodes that the network was sent to
        self._clients: dict[int, int] = {}  # by node
        self._timeout = 3600.0

    def summary(self) -> None:
        """Says how it is set up."""
        print(
            f"fusebook: server {self.server}, {self.begins} start, {self.done['number']} rounds done before", flush=True
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """All rounds, as of Flower's own strategies; what `evaluate_fn` answered is kept with the state."""
        measured, self._timeout = self.done["measured"], timeout

        def remembered(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number not in measured:
                answer = evaluate_fn(number, arrays)
                measured[number] = None if answer is None else dict(answer)
                self._write()
            return None if measured[number] is None else MetricRecord(measured[number])

        return super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn and remembered
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What is sent to each node: the server's network, unless clients have yet to begin with their own; nothing in
        a round that is done."""
        if server_round <= self.done["number"]:
            return []
        sends = self.begins == "common" or self.done["state"] is not None
        self._sent = arrays.to_torch_state_dict() if sends else None
        if self.participants is None:
            count = max(1, round(self.fraction * max(self.nodes, len(list(grid.get_node_ids())))))
            chosen = dict.fromkeys(sample_nodes(grid, self.nodes, count)[0], True)
        else:
            nodes, wanted = self._ask(grid), self.participants(server_round)
            if missing := sorted(wanted.keys() - nodes.keys()):
                named = ", ".join(map(str, missing))
                raise InputError(f"round {server_round}: no node is client {named}; accepted: a node for each")
            chosen = {nodes[client]: sent for client, sent in wanted.items()}
        self._receivers = sum(chosen.values()) if sends else 0
        config = ConfigRecord({**config, "server-round": server_round, "proximal-mu": proximal(self.server)})
        return [
            Message(
                content=RecordDict({"arrays": arrays if sends and chosen[node] else ArrayRecord(), "config": config}),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for node in sorted(chosen)
        ]

    def _ask(self, grid: Grid) -> dict[int, int]:
        """The node of each client, of two the one that said so last; those that have said so are not asked again."""
        _, connected = sample_nodes(grid, self.nodes, self.nodes)
        queries = [
            Message(content=RecordDict(), message_type=MessageType.QUERY, dst_node_id=node)
            for node in sorted(set(connected) - self._clients.keys())
        ]
        for reply in grid.send_and_receive(queries, timeout=self._timeout) if queries else ():
            if not reply.has_error():
                self._clients[reply.metadata.src_node_id] = int(reply.content["metrics"]["client"])
        return {client: node for node, client in self._clients.items() if node in connected}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The server's new network of what came back, written before it is handed on. Nodes that failed count for
        none."""
        done = self.done
        if server_round > done["number"]:
            whole = sorted((r for r in replies if not r.has_error()), key=lambda reply: reply.metadata.src_node_id)
            updates = [self._update(place, server_round, reply.content) for place, reply in enumerate(whole)]
            if not updates:
                return None, None
            if len({update.client for update in updates}) < len(updates):
                raise InputError(f"round {server_round}: two nodes answer as one client; accepted: a number each")
            made = combine(
                self.server, updates, model=self.model, groups=self.groups, current=self._sent, images=self.images,
                number=server_round, device=self.device, seed=self.seed,
            )  # fmt: skip
            updates = sorted(updates, key=lambda update: update.client)
            done["up"] += sum(size(update.state) for update in updates)
            done["down"] += self._receivers * size(self._sent) if self._sent is not None else 0
            metrics: dict[str, Any] = {
                "train_loss": sum(update.loss for update in updates) / len(updates),
                "megabytes_up": done["up"] / MEGABYTE,
                "megabytes_down": done["down"] / MEGABYTE,
                "clients": [update.client for update in updates],
            }
            if made.info.get("guard"):
                metrics |= {"kept": [int(kept) for kept in made.info["guard"]], "correlation": made.info["correlation"]}
            done |= {"number": server_round, "state": made.state}
            done["trained"][server_round] = metrics
            self._write()
        metrics = done["trained"].get(server_round)  # of a round that nobody answered there are none
        return ArrayRecord(done["state"]), None if metrics is None else MetricRecord(metrics)

    def _update(self, place: int, number: int, content: RecordDict) -> Update:
        metrics, state = content["metrics"], content["arrays"].to_torch_state_dict()
        return Update(
            client=int(metrics.get("client", place)),
            state=models.fitting(self.model, state, f"node {place}"),
            samples=int(metrics["num-examples"]),
            class_counts=tuple(metrics.get("class-counts", ())),
            loss=float(metrics.get("train-loss", float("nan"))),
            round=number,
            fresh=bool(metrics.get("fresh", self._sent is None)),
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: the network is measured where `evaluate_fn` is."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing."""
        return None

    def _write(self) -> None:
        if self.resume is not None:
            save_state(self.resume, {"key": self._key} | self.done)


def client_app(federation: Federation) -> ClientApp:
    """The Flower app of a federation's clients; which one a node is says its `partition-id` (--node-config)."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        answer = MetricRecord({"client": int(context.node_config["partition-id"])})
        return Message(content=RecordDict({"metrics": answer}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config, arrays = message.content["config"], message.content["arrays"]
        client, number = int(context.node_config["partition-id"]), int(config["server-round"])
        sent = arrays.to_torch_state_dict() if len(arrays) else None
        update = federation.local(client, number, sent, float(config["proximal-mu"]))
        metrics = {
            "num-examples": update.samples, "class-counts": list(update.class_counts), "train-loss": update.loss,
            "client": update.client, "fresh": int(update.fresh),
        }  # fmt: skip
        content = RecordDict({"arrays": ArrayRecord(update.state), "metrics": MetricRecord(metrics)})
        return Message(content=content, reply_to=message)

    return app


def server_app(
    federation: Federation,
    server: str,
    *,
    resume: str | Path | None = None,
    finished: Callable[[Result], None] | None = None,
) -> ServerApp:
    """The Flower app of a federation's server: rounds, who takes part in each, server images, start and test set are
    the setting's. It waits until each client has a node.

    Args:
        finished: is given Flower's result.

    Raises:
        InputError: the setting lets clients be late: on Flower that is up to the nodes.
    """
    setting = federation.setting
    if setting.stragglers:
        raise InputError("on Flower nodes are as slow as they are; accepted: stragglers 0")

    def participants(number: int) -> dict[int, bool]:
        return {client: not federation.begins(client, number) for client in federation.participants(number)}

    strategy = FusionStrategy(
        server, federation.template, images=federation.images, groups=federation.groups, start=setting.start,
        nodes=setting.clients, participants=participants, resume=resume, run=federation.key,
        device=federation.device, seed=setting.seed,
    )  # fmt: skip
    app = ServerApp()

    def measure(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        return MetricRecord(federation.measure(arrays.to_torch_state_dict())) if number else None

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        first = ArrayRecord(models.state_of(federation.template))
        result = strategy.start(grid, first, setting.rounds, evaluate_fn=measure)
        if finished is not None:
            finished(result)

    return app
