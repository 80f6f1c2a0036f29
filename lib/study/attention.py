"""What a notebook on transformers needs beside `Run`: its pair, and the arrays behind pictures of attention."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import models, paths, symmetry
from ..checks import check_whole
from ..fusion import Aligned
from ..matching import activation_similarity
from ..matching.maps import REACH
from .parameters import refusal
from .run import SIDES, Run

SHIPPED = "auto"  # instead of a checkpoint: the shipped one of the model and the seed, trained where there is none
REACHES = (*(f"(reach={reach})" for reach in REACH if reach != "all"), "", "(maps=orthogonal)")
# Of all matchings of transformers, by activations and by weights, ever more: what "ladder" stands for.
LADDER = ("none", *(f"{matcher}{rung}" for matcher in ("activation", "weight") for rung in REACHES))


def resolved(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with each checkpoint `SHIPPED` as the name of the shipped one of "model" and its seed, else "",
    and with matchers ["ladder"] as `LADDER`."""
    answer = dict(parameters)
    if parameters["matchers"] == ["ladder"]:
        answer["matchers"] = list(LADDER)
    for side in SIDES:
        name = f"{parameters['model']}-s{parameters[f'seed_{side}']}"
        if parameters[f"checkpoint_{side}"] == SHIPPED:
            there = (paths.CHECKPOINTS / f"{name}.safetensors").is_file()
            answer[f"checkpoint_{side}"] = name if there else ""
    return answer


def recipe(run: Run) -> models.Recipe:
    """How the shipped transformers were trained, for the run's number of epochs."""
    text = run.dataset.test.is_text
    return models.Recipe(
        epochs=run.settings.epochs, batch_size=16 if text else 100, lr=3e-3 if text else 2e-3, optimiser="adamw",
        weight_decay=0.05, warmup=0.1, augment=models.ARCHITECTURES[run.model].augment,
    )  # fmt: skip


def check_ladder(run: Run) -> None:
    """Raises InputError unless the midpoint is measured and the pair is also fused as it is: what every rung of the
    ladder is compared with."""
    settings = run.settings
    for name, value, needed in (("alphas", settings.alphas, 0.5), ("matchers", settings.matchers, "none")):
        if needed not in value:
            raise refusal(name, value, f"a list with {needed}")
    if "none" not in settings.corrections:
        raise refusal("corrections", settings.corrections, "a list with none")


def check_layer(run: Run, layer: int) -> None:
    """Raises InputError unless the network has an attention number `layer`."""
    check_whole("layer", layer, 0)
    if layer >= len(heads(run)):
        raise refusal("layer", layer, f"0 to {len(heads(run)) - 1}, the layers of attention")


def heads(run: Run) -> list[str]:
    """The groups of the heads of attention, layer by layer."""
    return [name for name, group in run.groups.items() if any(tap.kind == "pattern" for tap in group.taps)]


def streams(run: Run) -> list[str]:
    """The groups that may be turned: residual streams."""
    return [name for name, group in run.groups.items() if group.kind != "permutation"]


def arrays(
    run: Run, networks: Sequence[nn.Module], aligned: Mapping[str, Aligned], layer: int
) -> dict[str, np.ndarray]:
    """The arrays behind the pictures, by name: "pattern/<a or b>/<heads>" (heads, L, L) float16, the mean pattern of
    attention of each head of one layer on the images of matching, each network in its own order; and of every matcher
    that reaches all, "stream/<matcher>/<group>" (d, d) float16, the absolute correlation of A's units of the residual
    stream, rows, with B's in their new order."""
    name = heads(run)[layer]
    answer = {
        f"pattern/{side}/{name}": mean_patterns(run, network, [name])[name].numpy().astype(np.float16)
        for side, network in zip(SIDES, networks, strict=True)
    }
    turned = dataclasses.replace(run.groups, groups={name: run.groups[name] for name in streams(run)}, inside={})
    for matcher in whole(aligned):
        pair = aligned[matcher]
        moved = [models.load_state(copy.deepcopy(pair.model), state) for state in pair.states]
        alike = activation_similarity(*moved, turned, run.match_batches, device=run.device, progress=False)
        answer |= {f"stream/{matcher}/{group}": m.abs().numpy().astype(np.float16) for group, m in alike.items()}
    return answer


def whole(matchers: Iterable[str]) -> list[str]:
    """The matchers whose maps reach every group: those that reach less apply a part of the same maps."""
    return [matcher for matcher in matchers if "reach=" not in matcher]


@torch.no_grad()
def mean_patterns(run: Run, network: nn.Module, heads: Iterable[str]) -> dict[str, Tensor]:
    """The mean pattern of attention (heads, L, L) of each of these layers on the images of matching."""
    taps = {tap.node: (name, tap.axis) for name in heads for tap in run.groups[name].taps if tap.kind == "pattern"}
    totals, seen = {}, 0
    for images, _ in run.match_batches:
        for node, value in symmetry.walk(network, run.groups, images):
            if node.name in taps:
                name, axis = taps[node.name]
                totals[name] = totals.get(name, 0) + value.movedim(axis, 1).sum(dim=0).cpu()
        seen += len(images)
    return {name: total / seen for name, total in totals.items()}
