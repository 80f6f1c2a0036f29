"""Servers: what makes one network of those that clients send. Every server by name, options in brackets, one line to
swap. See `SERVERS`.

Units of networks that began apart stand in different orders: their plain average is worth little. Matching is for
those, one shot, in the first round or where a newcomer comes in. Among clients that began with one network it does
harm: half the units move for a gain of a hundredth in correlation. So the guard keeps the identity where the mean
correlation of units under it is at least a quarter (`keep`) of that under the matching. Networks that began apart have
ratios of −.1 to .1, those that began together from .4, after long local training at a high rate, to 1: a threshold of a
half would part some of these.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import fusion, loaders, matching, models
from ..checks import InputError, Method, read_method, spell_method
from ..fusion import heads
from ..symmetry import Groups
from .federation import Federation, State, Update

KEEP = 0.25  # of the matched correlation: from here on the identity is kept

Weights = Literal["samples", "uniform"]
Head = Literal["shares", "class_counts"]
MATCHER = Method("matcher", matching.MATCHERS)


@dataclass(frozen=True)
class Combined:
    """The server's new network; `info`: "guard", whether each client kept its order (None where nothing was matched),
    "correlation", the mean correlation of its units under the identity over that under the matching, "corrected", the
    correction that was applied, or "none"."""

    state: State
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Task:
    updates: Sequence[Update]
    model: nn.Module
    groups: Groups
    current: State | None
    images: Sequence[Tensor]
    number: int
    device: torch.device
    seed: int

    def shares(self, weights: Weights) -> tuple[float, ...]:
        sizes = [update.samples if weights == "samples" else 1 for update in self.updates]
        return tuple(each / sum(sizes) for each in sizes)

    def network(self, state: State) -> nn.Module:
        return models.load_state(copy.deepcopy(self.model), state).eval()

    def class_shares(self, shares: Sequence[float]) -> Tensor:
        """(clients, classes) float64: of each class, the share of its images that a client has; `shares` where
        nobody has any."""
        if missing := [update.client for update in self.updates if not update.class_counts]:
            raise InputError(
                f"head=class_counts needs how many images of each class a client has, client {missing[0]} says none; "
                "accepted: class counts from all, or head=shares"
            )
        counts = torch.tensor([update.class_counts for update in self.updates], dtype=torch.float64)
        total = counts.sum(dim=0)
        return torch.where(total > 0, counts / total.clamp(min=1), torch.tensor(shares, dtype=torch.float64)[:, None])


# The servers --------------------------------------------------------------------------------------------------------


def _fedavg(task: _Task, weights: Weights = "samples") -> Combined:
    return Combined(fusion.interpolate([update.state for update in task.updates], task.shares(weights)))


def _fedprox(task: _Task, mu: float = 0.01, weights: Weights = "samples") -> Combined:
    return _fedavg(task, weights)  # mu is the clients': see `proximal`


def _matched(
    task: _Task,
    matcher: MATCHER = "activation",
    guard: bool = True,
    keep: float = KEEP,
    weights: Weights = "samples",
    correction: Literal["none", "bn_reset", "repair"] = "none",
    head: Head = "shares",
) -> Combined:
    return _matched_and(task, matcher, keep if guard else None, weights, correction, head)


def _matched_least_squares(
    task: _Task,
    matcher: MATCHER = "activation",
    guard: bool = True,
    keep: float = KEEP,
    weights: Weights = "samples",
    rounds: Literal["first", "every"] = "first",
    head: Head = "shares",
    ridge: float = 1e-3,
) -> Combined:
    due = rounds == "every" or task.number == 1 or any(update.fresh for update in task.updates)
    if not due:  # the head, too, is for networks that do not share a start
        return _matched_and(task, matcher, keep if guard else None, weights, "none", "shares")
    return _matched_and(task, matcher, keep if guard else None, weights, f"least_squares(ridge={ridge})", head)


@dataclass(frozen=True)
class Server:
    """A server: how it runs, and what it does in a line."""

    run: Callable[..., Combined]
    what: str
    images: bool = False  # whether it looks at images (the guard does, too)


SERVERS = {
    "fedavg": Server(_fedavg, "the plain average (McMahan et al. 2017)"),
    "fedprox": Server(_fedprox, "the same of clients held to what they began with (Li et al. 2020)"),
    "matched": Server(_matched, "units matched, then the average", images=True),
    "matched_least_squares": Server(
        _matched_least_squares, "units matched, then layers fitted to unlabelled images", images=True
    ),
}


def read_server(text: str, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """(name, options) of a server such as "matched(matcher=weight(strategy=cycle_consistent))"; see
    `checks.read_method`."""
    return read_method("server", text, SERVERS, options)


def spell_server(text: str) -> str:
    """How a server is recorded: the options that differ from their defaults."""
    return spell_method(*read_server(text), SERVERS)


def proximal(server: str) -> float:
    """FedProx's mu, for the clients' training; 0 for other servers."""
    name, options = read_server(server)
    return options.get("mu", 0.01) if name == "fedprox" else 0.0


def looks_at_images(server: str) -> bool:
    """Whether a server, with its options, needs images."""
    name, options = read_server(server)
    blind = name == "matched" and options.get("guard") is False and options.get("correction", "none") == "none"
    return SERVERS[name].images and not (blind and not matching.looks_at_images(options.get("matcher", "activation")))


def check_server(server: str, images: object) -> None:
    """Raises InputError, in one line, for a server that is none, or that looks at images where there are none."""
    if looks_at_images(server) and not images:
        raise InputError(f"server '{server}' looks at images; give it server_images, or fedavg, or guard=false with a "
                         "matcher that looks at none")  # fmt: skip


def check_matcher(server: str, federation: Federation) -> None:
    """Raises InputError, in one line, where the architecture cannot take the server's matcher."""
    name, options = read_server(server)
    if name.startswith("matched"):
        matching.check_network(options.get("matcher", "activation"), federation.template, federation.groups)


def combine(
    server: str,
    updates: Iterable[Update],
    *,
    model: nn.Module,
    groups: Groups,
    current: State | None = None,
    images: Sequence[Tensor] = (),
    number: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Combined:
    """One network from those of a round's clients. The updates' order does not matter: they are taken by client.

    Args:
        server: of `SERVERS`, options in brackets.
        updates: of one round, at least one.
        model: a network of the architecture; only its structure counts.
        groups: its permutation groups, proved.
        current: the network that clients began with this round, unless they all began with their own.
        images: the server's, in batches (B, …), unlabelled.
        number: the round, from 1 on.

    Raises:
        InputError: an unknown server, no updates, images needed and not given, networks of another architecture.
    """
    name, options = read_server(server)
    check_server(server, images)
    updates = sorted(updates, key=lambda update: (update.client, update.round))
    if not updates:
        raise InputError("a server needs what at least one client sends")
    task = _Task(updates, model, groups, current, list(images), number, torch.device(device), seed)
    if len(updates) == 1:
        return Combined(updates[0].state, {"guard": None, "corrected": "none"})
    made = SERVERS[name].run(task, **options)
    return Combined(made.state, {"guard": None, "corrected": "none"} | made.info)


# What they are made of ----------------------------------------------------------------------------------------------


def _matched_and(
    task: _Task, matcher: str, keep: float | None, weights: Weights, correction: str, head: Head
) -> Combined:
    shares, networks = task.shares(weights), [task.network(update.state) for update in task.updates]
    kept, info = ([False] * len(networks), {}) if keep is None else _guarded(task, networks, keep)
    maps = _maps(task, networks, shares, kept, matcher)
    aligned = fusion.align(networks, task.groups, maps, names=[f"client {update.client}" for update in task.updates])
    images = task.images if fusion.CORRECTIONS[fusion.read_correction(correction)[0]].images else None
    fused = fusion.correct(aligned, shares, correction, images=images, device=task.device, progress=False)
    state, fitted = fused.state, correction.startswith("least_squares")
    if head == "class_counts":
        made = _fitted_head(task, aligned, fused, shares) if fitted else None
        state = made or _head_rows(task, aligned.states, state, shares)
    return Combined(state, info | {"corrected": correction.partition("(")[0]})


def _guarded(task: _Task, networks: Sequence[nn.Module], keep: float) -> tuple[list[bool], dict[str, Any]]:
    """Which networks keep their order, and what the guard saw: of each the ratio of mean correlations. They are
    compared with the network that they were sent; where all began with their own, with the first of them."""
    anchored = task.current is not None and not all(update.fresh for update in task.updates)
    reference = task.network(task.current) if anchored else networks[0]
    ratios = []
    for network in networks:
        if network is reference:
            ratios.append(1.0)
            continue
        pair = matching.match(
            [reference, network], task.groups, "activation", images=task.images, device=task.device, progress=False
        )[1]
        own = sum(float(pair.similarity[name].diagonal().sum()) for name in pair.matched())
        matched = sum(float(each.sum()) for each in pair.matched().values())
        ratios.append(own / matched if matched > 0 else 1.0)
    kept = [ratio >= keep for ratio in ratios]
    if not anchored and sum(kept) == 1:  # the first is like itself alone
        kept = [False] * len(kept)
    return kept, {"guard": kept, "correlation": ratios}


def _maps(
    task: _Task, networks: Sequence[nn.Module], shares: Sequence[float], kept: Sequence[bool], matcher: str
) -> list[Mapping[str, Tensor]]:
    """A map a network. Those that keep their order count as one network, their average, with which the others are
    matched."""
    still = task.groups.identity()
    if all(kept):
        return [still] * len(networks)
    block = [i for i, keeps in enumerate(kept) if keeps]
    others = [i for i, keeps in enumerate(kept) if not keeps]
    together = [networks[i] for i in others]
    if block:
        total = sum(shares[i] for i in block)
        mean = fusion.interpolate([task.updates[i].state for i in block], [shares[i] / total for i in block])
        together.insert(0, task.network(mean))
    if len(together) == 1:
        return [still] * len(networks)
    images = task.images if matching.looks_at_images(matcher) else None
    found = matching.match(
        together, task.groups, matcher, images=images, device=task.device, seed=task.seed, progress=False
    )
    maps: list[Mapping[str, Tensor]] = [still] * len(networks)
    for i, each in zip(others, found[bool(block) :], strict=True):
        maps[i] = each
    return maps


def _head_rows(task: _Task, states: Sequence[State], state: State, shares: Sequence[float]) -> State:
    """The last layer's row of each class averaged by how many of its images each client has."""
    layer, class_shares = heads.linear_head(task.model, task.groups)[-1], task.class_shares(shares)
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name in state:
            rows = torch.stack([own[name].double() for own in states])
            weights = class_shares.view(*class_shares.shape, *(1,) * (rows.dim() - 2))
            state[name] = (weights * rows).sum(dim=0).to(state[name])
    return state


def _fitted_head(task: _Task, aligned: fusion.Aligned, fused: fusion.Fused, shares: Sequence[float]) -> State:
    """The last layer fitted, by ridge regression on the fused network's own features, to the clients' logits averaged
    class by class by how many of its images each client has."""
    batches = [loaders.placed(each, "cpu") for each in task.images]
    logits = torch.stack([heads.forward(task.network(own), batches)[0].double() for own in aligned.states])
    goal = (task.class_shares(shares)[:, None] * logits).sum(dim=0)
    network = fused.model()
    heads.fit_head(network, task.groups, batches, goal, 1e-3)
    return models.state_of(network)
