"""Clients: what each of them has, who takes part in a round, and how one trains. Nothing here knows a server.

Everything random comes from the seed, the round and the client alone: any part of a run can be done again, on another
machine, in another order, and gives the same bits (same thread count).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import loaders, models, symmetry
from ..checks import InputError, check_choice, check_whole
from .splits import read_split, split

State = dict[str, Tensor]
_INIT, _ORDER, _CHOSEN, _SLOW, _SPLIT = range(5)  # what a seed is for


@dataclass(frozen=True)
class Setting:
    """What a federation is: everything that decides its numbers, but for the data set and the server.

    Args:
        split: how the training images are divided between `clients`, of `splits.SPLITS`.
        recipe: of one client's training in one round; its batch is at most half of the client's images. SGD starts
            afresh in each round: no momentum is carried over.
        fraction: of the clients that have joined, so many take part in a round, drawn anew each time; at least one.
        start: where a client begins that takes part for the first time: all from one `common` network, or each from its
            `own` random initialisation. After that it begins with the server's network.
        newcomers: the last so many clients, who join in round `join` and begin from their own initialisation.
        stragglers: the share of participants, drawn anew in each round, whose training is not done in time; the fastest
            always is. It is lost, or where they are `late` it comes in with the next round's.
        server_images: the last so many training images, which no client has: unlabelled, for the server.
    """

    model: str
    recipe: models.Recipe
    width: float = 1.0
    norm: str | None = None
    clients: int = 8
    split: str = "dirichlet"
    rounds: int = 1
    fraction: float = 1.0
    start: Literal["own", "common"] = "own"
    newcomers: int = 0
    join: int = 2
    stragglers: float = 0.0
    late: bool = False
    server_images: int = 500
    limit_train: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "split", read_split(self.split))
        for name, least in {"clients": 1, "rounds": 1, "join": 1, "newcomers": 0, "server_images": 0, "limit_train": 0,
                            "seed": 0}.items():  # fmt: skip
            check_whole(name, getattr(self, name), least)
        check_choice("start", self.start, ("own", "common"))
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction {self.fraction} is not accepted; accepted: a number above 0, up to 1")
        if not 0 <= self.stragglers < 1:
            raise InputError(f"stragglers {self.stragglers} is not accepted; accepted: a number from 0, below 1")
        if self.newcomers >= self.clients:
            raise InputError(
                f"newcomers {self.newcomers} of {self.clients} clients leave none to begin; accepted: fewer"
            )

    def as_dict(self) -> dict[str, Any]:
        """What a record says of it."""
        return dataclasses.asdict(self) | {"recipe": self.recipe.as_dict()}


@dataclass(frozen=True)
class Update:
    """What a client sends: its weights after a round of training, how many images it has (`samples`), how many of each
    class, its mean training loss in the last epoch (nats), the round it trained in, and whether it began from its own
    initialisation (`fresh`) and not from what the server sent."""

    client: int
    state: State
    samples: int
    class_counts: tuple[int, ...]
    loss: float
    round: int
    fresh: bool


def derived(seed: int, *what: int) -> int:
    """A seed for one purpose: independent of those for others."""
    return int(np.random.SeedSequence([seed, *what]).generate_state(1)[0])


def size(state: Mapping[str, Tensor]) -> int:
    """Bytes of a network's tensors: what is sent of it."""
    return sum(tensor.nbytes for name, tensor in state.items() if not models.is_extra(name, tensor))


class Federation:
    """Clients with their images, the server's images and the test set.

    `parts`: each client's images as indices (K,) into the training images; `counts` (clients, classes): how many of
    each class.

    Args:
        dataset: as `models.open_dataset` gives it.
        device: where is trained and measured.

    Raises:
        InputError: server_images and limit_train leave the clients no images, or as `Setting` and `split`.
    """

    def __init__(self, setting: Setting, dataset: loaders.Dataset, device: torch.device | str = "cpu") -> None:
        self.setting, self.dataset, self.device = setting, dataset, torch.device(device)
        left = len(dataset.train) - setting.server_images
        if left < 2 * setting.clients:
            raise InputError(
                f"server_images {setting.server_images} of {len(dataset.train)} training images leave too few for "
                f"{setting.clients} clients; accepted: fewer, or more training images"
            )
        if dataset.train.is_text:
            raise InputError(f"clients divide images by class, {dataset.name} is a text; accepted: a set of images")
        labels = dataset.train.labels[: min(left, setting.limit_train or left)]
        self.parts = split(labels, setting.split, setting.clients, derived(setting.seed, _SPLIT))
        with torch.no_grad():
            self.classes = self.template(models.example(setting.model)).shape[-1]
        self.counts = torch.stack([torch.bincount(labels[part], minlength=self.classes) for part in self.parts])

    @property
    def key(self) -> str:
        """Names what decides its numbers."""
        said = json.dumps({"setting": self.setting.as_dict(), "sha256": self.dataset.sha256}, sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:10]

    def fresh(self, *what: int) -> nn.Module:
        """A new network, in evaluation mode, from a seed of its own."""
        setting = self.setting
        return models.build(setting.model, width=setting.width, norm=setting.norm, seed=derived(setting.seed, *what))

    @cached_property
    def template(self) -> nn.Module:
        """A network of the architecture; only its structure counts."""
        return self.fresh(_INIT)

    @cached_property
    def groups(self) -> symmetry.Groups:
        """What may be permuted, proved."""
        return symmetry.proved(self.template, models.example(self.setting.model))

    def _batches(self, part: loaders.Split) -> list[tuple[Tensor, Tensor]]:
        normalise = models.normalisation(self.setting.model)
        return list(loaders.MemoryLoader(part, loaders.BATCH, normalise=normalise, device=self.device))

    @cached_property
    def test(self) -> list[tuple[Tensor, Tensor]]:
        """The test set."""
        return self._batches(self.dataset.test)

    @cached_property
    def images(self) -> list[Tensor]:
        """The server's images in batches, without labels; empty where it has none."""
        count, train = self.setting.server_images, self.dataset.train
        return [x for x, _ in self._batches(train.subset(range(len(train) - count, len(train))))] if count else []

    def measure(self, state: State) -> dict[str, float]:
        """Accuracy (a fraction) and loss (nats) on the test set."""
        network = models.load_state(self.fresh(_INIT), state)
        accuracy, loss = models.evaluate(network, self.test, device=self.device)
        return {"test_accuracy": accuracy, "test_loss": loss}

    # Rounds, from 1 on ------------------------------------------------------------------------------------------------

    def joined(self, number: int) -> list[int]:
        """The clients that may take part in round `number`."""
        here = self.setting.clients - (self.setting.newcomers if number < self.setting.join else 0)
        return list(range(here))

    def participants(self, number: int) -> list[int]:
        """Those who do, in order."""
        here, setting = self.joined(number), self.setting
        count = max(1, round(setting.fraction * len(here)))
        generator = np.random.default_rng([setting.seed, _CHOSEN, number])
        return sorted(generator.permutation(here)[:count].tolist())

    def in_time(self, number: int) -> list[int]:
        """Those of the participants whose training is done in time."""
        taking, setting = self.participants(number), self.setting
        draws = np.random.default_rng([setting.seed, _SLOW, number]).random(setting.clients)
        fastest = max(taking, key=lambda client: draws[client])
        return [client for client in taking if draws[client] >= setting.stragglers or client == fastest]

    def begins(self, client: int, number: int) -> bool:
        """Whether it is the client's first round and it begins from its own initialisation."""
        setting = self.setting
        own = setting.start == "own" or client >= setting.clients - setting.newcomers
        return own and not any(client in self.participants(earlier) for earlier in range(1, number))

    @property
    def common(self) -> State | None:
        """What the server sends in round 1; None where clients begin from their own initialisations."""
        return models.state_of(self.template) if self.setting.start == "common" else None

    def local(
        self, client: int, number: int, state: State | None, proximal: float = 0.0, fresh: bool | None = None
    ) -> Update:
        """A client's training in one round, from what the server sent, or from its own initialisation (`fresh`; by
        default as `begins` says, and where nothing was sent).

        Args:
            proximal: FedProx's mu (`models.Recipe`).

        Raises:
            InputError: the training diverges (the line names the client).
        """
        fresh = self.begins(client, number) if fresh is None else fresh
        fresh = fresh or state is None
        setting, part = self.setting, self.parts[client]
        network = self.fresh(_INIT, 1 + client) if fresh else models.load_state(self.fresh(_INIT), state)
        recipe = dataclasses.replace(
            setting.recipe, proximal=proximal, batch_size=max(1, min(setting.recipe.batch_size, len(part) // 2))
        )
        generator = torch.Generator().manual_seed(derived(setting.seed, _ORDER, number, client))
        batches = loaders.make_loader(
            self.dataset, "train", recipe.batch_size, indices=part, shuffle=True, augment=recipe.augment,
            drop_last=True, generator=generator, normalise=models.normalisation(setting.model), device=self.device,
        )  # fmt: skip
        try:
            losses = models.train(network, batches, recipe, generator=generator, device=self.device, progress=False)
        except InputError as error:
            raise InputError(f"client {client} in round {number}: {error}") from None
        counts = tuple(self.counts[client].tolist())
        return Update(client, models.state_of(network), len(part), counts, losses[-1], number, fresh)

    def logits(self, states: Sequence[State]) -> tuple[list[Tensor], Tensor]:
        """What networks put out on the test set, (N, classes) each, and the labels (N,)."""
        network, found, labels = self.fresh(_INIT), [], None
        for state in states:
            logits, labels = models.outputs(models.load_state(network, state), self.test, device=self.device)
            found.append(logits)
        return found, labels
