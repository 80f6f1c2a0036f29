"""Measuring the path between aligned networks: curve and barrier.

Of two networks alpha is the share of the second everywhere: fused = (1 − alpha)·A + alpha·B.
"""

import copy
import math
import string
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import loaders, models
from ..checks import spell_method
from ..records import barrier
from .aligned import Aligned, checked
from .corrections import CORRECTIONS, correct, read_correction
from .statistics import moments


@dataclass
class Curve:
    """One matcher with one correction: its points by alpha, its barrier, the seconds its corrections took in all,
    the fused state of each alpha asked for in `keep`, and by alpha what the correction reports (`Fused.info`)."""

    aligned: Aligned = field(repr=False)
    correction: str
    parents: Mapping[str, Mapping]
    points: list[dict[str, float | None]]
    barrier: dict[str, float | None]
    correct_seconds: float
    states: dict[float, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    info: dict[float, dict] = field(default_factory=dict)

    def parts(self) -> dict[str, float]:
        """Each of two parents' part in the fused network at the alpha nearest the midpoint, {"a", "b"}, and how much of
        it mixes "both": counted in units where the correction chooses what each stands for, else in weights."""
        alpha = min((point["alpha"] for point in self.points), key=lambda alpha: abs(alpha - 0.5))
        units = self.info.get(alpha, {}).get("units", {}).values()
        total = sum(layer["mean"] + sum(layer["single"]) for layer in units)
        both = sum(layer["mean"] for layer in units) / total if total else float(0 < alpha < 1)
        b = sum(layer["single"][1] for layer in units) / total + alpha * both if total else alpha
        return {"a": 1 - b, "b": b, "both": both}


def measure(
    model: nn.Module,
    state: Mapping[str, Tensor],
    test: Iterable,
    train: Iterable | None = None,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, float | None]:
    """Accuracy (a fraction) and loss (mean cross-entropy, nats) of `state` on test, and on train unless it is None.

    Args:
        model: the architecture; its weights are replaced.
        test, train: batches of (images (B, …), labels (B,)), normalised, in any form that `models.evaluate` reads.

    Raises:
        InputError: as in `models.load_state` and `models.evaluate`.
    """
    models.load_state(model, state)
    measures: dict[str, float | None] = {"train_accuracy": None, "train_loss": None}
    for split, batches in (("train", train), ("test", test)):
        if batches is not None:
            accuracy, loss = models.evaluate(model, batches, device=device)
            measures |= {f"{split}_accuracy": accuracy, f"{split}_loss": loss}
    return measures


def ensemble(networks: Sequence[nn.Module], test: Iterable, *, device: torch.device | str = "cpu") -> dict[str, float]:
    """Accuracy and loss of the mean of the networks' probabilities: what a fused network hopes to reach, at as many
    times its cost as there are networks."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(networks)

        def forward(self, x: Tensor) -> Tensor:
            # in logarithms, which do not underflow; a copy each, for a network may change its input in place
            logs = torch.stack([part(x.clone()).log_softmax(dim=1) for part in self.parts])
            return logs.logsumexp(dim=0) - math.log(len(logs))

    accuracy, loss = models.evaluate(Mean(), test, device=device)
    return {"test_accuracy": accuracy, "test_loss": loss}


def curve(
    aligned: Aligned,
    alphas: Iterable[float],
    *,
    test: Iterable,
    train: Iterable | None = None,
    correction: str = "none",
    images: Tensor | Iterable | None = None,
    line: tuple[Sequence[float], Sequence[float]] | None = None,
    parents: Mapping[str, Mapping] | None = None,
    device: torch.device | str = "cpu",
    label: str = "curve",
    progress: bool = True,
    keep: Iterable[float] = (),
    **options,
) -> Curve:
    """Fuses, corrects and measures along the path between two networks, or along a line in the simplex of many.

    Args:
        aligned: from `align`.
        alphas: places in [0, 1] on the line.
        test, train: as in `measure`; train may be left out.
        correction, images, options: as in `correct`.
        line: the shares at alpha 0 and 1. By default the first of two networks and the second; of more, the first alone
            and all alike.
        parents: measures of the networks as they are, by name and in their order (`measure`); measured here if absent.
            An uncorrected end point that is a parent is not measured again.
        keep: alphas whose fused states the result holds.

    Raises:
        InputError: as in `correct`.
    """
    name, options = read_correction(correction, options)
    count = len(checked(aligned, "curve"))
    test, train, images = (x if x is None else loaders.batched(x) for x in (test, train, images))
    network = copy.deepcopy(aligned.model)
    if line is None:
        line = ((1.0, *(0.0,) * (count - 1)), (0.0, 1.0) if count == 2 else aligned.shares())
    start_shares, end_shares = (aligned.shares(shares) for shares in line)
    if parents is None:
        letters = string.ascii_lowercase
        parents = {
            letters[i]: measure(network, state, test, train, device=device) for i, state in enumerate(aligned.states)
        }
    points, states, seconds, keep, info, chosen = [], {}, 0.0, set(keep), {}, dict(options)
    if CORRECTIONS[name].moments and images is not None:  # the same for all shares
        start = time.perf_counter()
        options["moments"] = moments(aligned, images, device=device, progress=False)
        seconds = time.perf_counter() - start
    for alpha in tqdm(sorted(alphas), desc=label, unit="alpha", disable=not progress, mininterval=1):
        pairs = zip(start_shares, end_shares, strict=True)
        shares = aligned.shares([(1 - alpha) * first + alpha * last for first, last in pairs])
        fused = correct(aligned, shares, name, images=images, device=device, progress=False, **options)
        seconds += fused.seconds
        info[float(alpha)] = fused.info
        alone = next((i for i, share in enumerate(shares) if share == 1), None)
        if name == "none" and alone is not None:
            measured = dict(list(parents.values())[alone])
        else:
            measured = measure(network, fused.state, test, train, device=device)
        place = {"alpha": float(alpha)} | ({"shares": list(shares)} if count > 2 else {})
        points.append(place | measured)
        if alpha in keep:
            states[alpha] = fused.state
    correction = spell_method(name, chosen, CORRECTIONS)
    return Curve(aligned, correction, parents, points, barrier(points, parents), seconds, states, info)
