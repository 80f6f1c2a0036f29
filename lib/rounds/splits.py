"""How training images are divided between clients: every split by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import models
from ..checks import InputError, check_whole, read_method


@dataclass(frozen=True)
class _Task:
    labels: Tensor
    clients: int
    seed: int


def _iid(task: _Task) -> list[Tensor]:
    order = torch.from_numpy(np.random.default_rng(task.seed).permutation(len(task.labels)))
    return [part.sort().values for part in order.tensor_split(task.clients)]


def _dirichlet(task: _Task, beta: float = 0.5) -> list[Tensor]:
    if task.clients == 1:
        return [torch.arange(len(task.labels))]
    least = min(10, len(task.labels) // task.clients)  # as the NIID-Bench does
    return list(models.dirichlet_parts(task.labels, beta, task.seed, task.clients, least))


def _classes(task: _Task, k: int = 2) -> list[Tensor]:
    """Each client has k classes that follow one another in a random order, cyclically, so that classes are shared as
    evenly as can be; each class is divided evenly between those who have it."""
    classes = torch.unique(task.labels)
    if not 1 <= k <= len(classes):
        raise InputError(f"split 'classes': k {k} is not accepted; accepted: 1 … {len(classes)}, the classes")
    generator = np.random.default_rng(task.seed)
    order = classes[torch.from_numpy(generator.permutation(len(classes)))]
    starts = [round(client * len(order) / task.clients) for client in range(task.clients)]
    owned = [[int(order[(start + step) % len(order)]) for step in range(k)] for start in starts]
    parts: list[list[Tensor]] = [[] for _ in owned]
    for value in classes.tolist():
        members = torch.nonzero(task.labels == value).flatten()
        members = members[torch.from_numpy(generator.permutation(len(members)))]
        owners = [client for client, own in enumerate(owned) if value in own]
        for client, chosen in zip(owners, members.tensor_split(max(1, len(owners))), strict=False):
            parts[client].append(chosen)
    return [torch.cat(part).sort().values for part in parts]


@dataclass(frozen=True)
class Split:
    """A split: how it runs, and what it does in a line."""

    run: Callable[..., list[Tensor]]
    what: str


SPLITS = {
    "iid": Split(_iid, "at random, in equal numbers"),
    "dirichlet": Split(_dirichlet, "class by class, in proportions from Dir(beta) (Yurochkin et al. 2019)"),
    "classes": Split(_classes, "each client has k classes (McMahan et al. 2017's pathological split)"),
}


def read_split(text: str) -> str:
    """A split as it is recorded, its defaults spelled out: "dirichlet" -> "dirichlet(beta=0.5)"."""
    name, options = read_method("split", text, SPLITS)
    defaults = dict(list(inspect.signature(SPLITS[name].run).parameters.items())[1:])
    words = [f"{option}={options.get(option, row.default)}" for option, row in defaults.items()]
    return f"{name}({', '.join(words)})" if words else name


def split(labels: Tensor, how: str, clients: int, seed: int) -> list[Tensor]:
    """The images of each client, as sorted indices (K,) int64 into `labels` (N,), which share none.

    Args:
        how: of `SPLITS`, options in brackets.

    Raises:
        InputError: an unknown split or option, more clients than images, or a client left with fewer than two images.
    """
    name, options = read_method("split", how, SPLITS)
    check_whole("clients", clients, 1)
    parts = SPLITS[name].run(_Task(labels, clients, seed), **options)
    if min(map(len, parts)) < 2:
        raise InputError(
            f"split '{how}' of {len(labels)} images leaves one of {clients} clients with fewer than two; accepted: "
            "fewer clients, or more images"
        )
    return parts
