"""Fusing two aligned networks and measuring the path between them: curve and barrier.

alpha is the share of network B everywhere: fused = (1 − alpha)·A + alpha·B.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import models
from ..symmetry import Groups
from .corrections import CORRECTIONS, check_options, correct
from .statistics import moments


@dataclass
class Curve:
    """One matcher with one correction: its points by alpha, its barrier, the seconds its corrections took in all,
    the fused state of each alpha asked for in `keep`, and by alpha what the correction reports (`Corrected.info`)."""

    points: list[dict[str, float | None]]
    barrier: dict[str, float | None]
    correct_seconds: float
    states: dict[float, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    info: dict[float, dict] = field(default_factory=dict)

    def share(self) -> dict[str, float]:
        """Each parent's part in the fused network at the alpha nearest the midpoint, {"a", "b"}, and how much of it
        mixes "both": counted in units where the correction chooses what each stands for, else in weights."""
        alpha = min((point["alpha"] for point in self.points), key=lambda alpha: abs(alpha - 0.5))
        units = self.info.get(alpha, {}).get("units", {}).values()
        total = sum(sum(layer.values()) for layer in units)
        both = sum(layer["both"] for layer in units) / total if total else float(0 < alpha < 1)
        b = sum(layer["b"] for layer in units) / total + alpha * both if total else alpha
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
        test, train: batches of (images (B, C, H, W), labels (B,)), normalised.
    """
    models.load_state(model, state)
    found: dict[str, float | None] = {"train_accuracy": None, "train_loss": None}
    for split, batches in (("train", train), ("test", test)):
        if batches is not None:
            accuracy, loss = models.evaluate(model, batches, device=device)
            found |= {f"{split}_accuracy": accuracy, f"{split}_loss": loss}
    return found


def barrier(points: Sequence[Mapping], parents: Mapping[str, Mapping]) -> dict[str, float | None]:
    """How far the path falls below the line between the parents, for each metric; None where it was not measured or
    is no number.

    For an accuracy the maximum over alpha of (1 − alpha)·A + alpha·B − curve, for a loss of curve − that line: larger
    is worse. The parents are the uncorrected end points whatever the correction.
    """
    found: dict[str, float | None] = {}
    for metric in ("test_accuracy", "test_loss", "train_accuracy", "train_loss"):
        ends = [parents[name].get(metric) for name in ("a", "b")]
        values = [*ends, *(point.get(metric) for point in points)]
        if any(value is None or math.isnan(value) for value in values):
            found[metric] = None
            continue
        drops = [(1 - p["alpha"]) * ends[0] + p["alpha"] * ends[1] - p[metric] for p in points]
        found[metric] = max(drops) if metric.endswith("accuracy") else max(-drop for drop in drops)
    return found


def ensemble(
    model_a: nn.Module, model_b: nn.Module, test: Iterable, *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Accuracy and loss of the mean of two networks' probabilities: what a fused network hopes to reach, at twice its
    cost."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([model_a, model_b])

        def forward(self, x: Tensor) -> Tensor:
            # in logarithms, which do not underflow; a copy each, for a network may change its input in place
            logs = torch.stack([part(x.clone()).log_softmax(dim=1) for part in self.parts])
            return logs.logsumexp(dim=0) - math.log(len(logs))

    accuracy, loss = models.evaluate(Mean(), test, device=device)
    return {"test_accuracy": accuracy, "test_loss": loss}


def curve(
    model: nn.Module,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    alphas: Iterable[float],
    *,
    parents: Mapping[str, Mapping],
    groups: Groups,
    test: Iterable,
    train: Iterable | None = None,
    correction: str = "none",
    batches: Iterable | None = None,
    device: torch.device | str = "cpu",
    label: str = "curve",
    progress: bool = True,
    keep: Iterable[float] = (),
    **options,
) -> Curve:
    """Fuses, corrects and measures at each alpha.

    Args:
        model: the architecture; its weights are replaced.
        state_a, state_b: state dicts, B already aligned (and proved equal in output to the unaligned one, so that an
            uncorrected end point is the parent measured already and is not measured again).
        parents: {"a": measures, "b": measures} of the uncorrected end points, from `measure`.
        batches: images for the correction, where it looks at data.
        keep: alphas whose fused states the result holds.
        options: the correction's own.
    """
    check_options(correction, options)
    points, states, seconds, keep, info = [], {}, 0.0, set(keep), {}
    if CORRECTIONS[correction].moments and batches is not None:
        start = time.perf_counter()
        options["moments"] = moments(
            model, state_a, state_b, groups, batches, device=device, progress=False
        )  # the same for every alpha
        seconds = time.perf_counter() - start
    for alpha in tqdm(sorted(alphas), desc=label, unit="alpha", disable=not progress, mininterval=1):
        fused = correct(
            model, state_a, state_b, alpha, correction,
            groups=groups, batches=batches, device=device, progress=False, **options,
        )  # fmt: skip
        seconds += fused.seconds
        info[float(alpha)] = fused.info
        if correction == "none" and alpha in (0, 1):
            measured = {key: parents["b" if alpha else "a"].get(key) for key in parents["a"]}
        else:
            measured = measure(model, fused, test, train, device=device)
        points.append({"alpha": float(alpha), **measured})
        if alpha in keep:
            states[alpha] = dict(fused)
    return Curve(points, barrier(points, parents), seconds, states, info)
