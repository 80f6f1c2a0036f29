"""Measuring the path between aligned networks: curve, drop and barrier.

Of two networks alpha is the share of the second everywhere: fused = (1 − alpha)·A + alpha·B.
"""

import copy
import string
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import loaders, models
from ..checks import spell_method
from ..progress import tqdm
from ..records import barrier, drop
from .aligned import Aligned, checked
from .corrections import CORRECTIONS, correct, read_correction
from .heads import mean_log_probabilities
from .statistics import moments


@dataclass
class Curve:
    """One matcher with one correction: its points by alpha, its `barrier`, the seconds its corrections took in all,
    the fused state of each alpha asked for in `keep`, and by alpha what the correction reports (`Fused.info`)."""

    aligned: Aligned = field(repr=False)
    correction: str
    parents: Mapping[str, Mapping]
    points: list[dict[str, float | None]]
    barrier: dict[str, float | None]
    correct_seconds: float
    states: dict[float, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    info: dict[float, dict] = field(default_factory=dict)

    @property
    def drop(self) -> dict[str, float | None]:
        """How far the midpoint falls below the parents' mean (`drop`)."""
        return drop(self.points, self.parents)

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
    ensemble: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float | None]:
    """What `state` reaches on test, and on train unless it is None, in one pass over each.

    Accuracy (a fraction) and loss (mean cross-entropy, nats) of both; of test also calibration (expected calibration
    error, a fraction) and, against the ensemble, kl (mean KL(ensemble || network), nats) and agreement (the share of
    images on which both name the same class): "test_kl" and "test_agreement" are None without `ensemble`.

    Args:
        model: the architecture; its weights are replaced.
        test, train: batches of (images (B, …), labels (B,)), normalised, in any form that `models.outputs` reads.
        ensemble: the ensemble's log-probabilities (N, classes) on test, as `measure_parents` gives.

    Raises:
        InputError: as in `models.load_state`, `models.outputs` and `models.score`.
    """
    models.load_state(model, state)
    return _measures(*models.outputs(model, test, device=device), ensemble) | _of_train(model, train, device)


def _measures(logits: Tensor, labels: Tensor, ensemble: Tensor | None) -> dict[str, float | None]:
    return {f"test_{name}": value for name, value in models.score(logits, labels, ensemble)._asdict().items()}


def _of_train(model: nn.Module, train: Iterable | None, device: torch.device | str) -> dict[str, float | None]:
    accuracy, loss = (None, None) if train is None else models.evaluate(model, train, device=device)
    return {"train_accuracy": accuracy, "train_loss": loss}


def measure_parents(
    networks: Iterable[nn.Module],
    test: Iterable,
    train: Iterable | None = None,
    *,
    names: Sequence[str] = string.ascii_lowercase,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, dict[str, float | None]], dict[str, float | None], Tensor]:
    """Measures of networks as they are, by name, those of their ensemble (the mean of their probabilities), and the
    ensemble's log-probabilities (N, classes): each network goes over each split once.

    Args, Raises: as in `measure`.
    """
    parents, logits, labels = {}, {}, None
    for name, network in zip(names, networks, strict=False):
        logits[name], labels = models.outputs(network, test, device=device)
        parents[name] = _of_train(network, train, device)
    ensemble = mean_log_probabilities(list(logits.values()))
    for name, each in logits.items():
        parents[name] = _measures(each, labels, ensemble) | parents[name]
    return parents, _measures(ensemble, labels, ensemble), ensemble


def ensemble(
    networks: Sequence[nn.Module], test: Iterable, *, device: torch.device | str = "cpu"
) -> dict[str, float | None]:
    """What the mean of the networks' probabilities reaches (`measure`): what a fused network hopes for, at as many
    times its cost as there are networks."""
    return measure_parents(networks, test, names=range(len(networks)), device=device)[1]


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
    ensemble: Tensor | None = None,
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
        ensemble: as in `measure`; from the parents where those are measured here.
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
        as_they_are = (models.load_state(network, state) for state in aligned.states)
        parents, _, ensemble = measure_parents(as_they_are, test, train, device=device)
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
            measured = measure(network, fused.state, test, train, ensemble=ensemble, device=device)
        place = {"alpha": float(alpha)} | ({"shares": list(shares)} if count > 2 else {})
        points.append(place | measured)
        if alpha in keep:
            states[alpha] = fused.state
    correction = spell_method(name, chosen, CORRECTIONS)
    return Curve(aligned, correction, parents, points, barrier(points, parents), seconds, states, info)
