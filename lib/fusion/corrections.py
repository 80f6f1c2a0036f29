"""What averaging breaks, and what repairs it: every correction by name, one signature.

`correct` takes aligned networks and their shares and returns the fused, corrected network of the same architecture.
See `CORRECTIONS` for what each does and whether it looks at images.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import loaders, models
from ..checks import InputError, read_method, spell_method
from ..symmetry import Groups
from . import least_squares
from .aligned import Aligned, checked
from .fused import Fused
from .heads import Target, fit_head, forward, joint_logits, linear_head, mean_log_probabilities
from .rows import Shared
from .statistics import Moments, bn_reset, closed_form, none, norms, retracked
from .structure import Structure
from .task import Result, Task


def _least_squares(
    task: Task,
    ridge: float = 1e-3,
    rounds: int = least_squares.ROUNDS,
    through_relu: bool = True,
    select: bool = True,
    heads: least_squares.Heads = "shares",
    units: least_squares.Units = "matched",
    target: Target = "mean",
    rows: int = least_squares.ROWS,
    memory: float = least_squares.GIB,
) -> Result:
    """`least_squares.fit` on the interpolated network; it says what the options mean.

    With a `target` other than the mean of the parents' logits the last linear layer is then fitted anew, to
    `heads.joint_logits`.
    """
    if target != "mean":
        if units == "half":
            raise InputError(f"correction 'least_squares': units=half is one parent, target={target} weighs them all")
        _check_head("least_squares", task.aligned.model, task.groups)
    # float64 does not exist on MPS
    task = dataclasses.replace(task, device=torch.device("cpu")) if task.device.type == "mps" else task
    fused = task.fused()
    batches = list(task.images("images"))
    if not batches:
        raise InputError("correction 'least_squares' cannot work without images; accepted: correct_images ≥ 1")
    if isinstance(batches[0], tuple):
        raise InputError(f"correction 'least_squares' takes networks with one input; this one has {len(batches[0])}")
    info = least_squares.fit(
        task.parents(), fused, task.groups, torch.cat(batches), task.shares,
        ridge=ridge, rounds=rounds, through_relu=through_relu, select=select, heads=heads,
        units=units, rows=rows, memory=memory, structure=task.structure,
        shared=task.shared, progress=task.progress,
    )  # fmt: skip
    if target != "mean":
        goal = joint_logits([forward(parent, batches)[0] for parent in task.parents()], task.shares, target)
        head, unexplained = fit_head(fused, task.groups, batches, goal, ridge)
        info["layers"] |= dict.fromkeys(head, unexplained)
    return fused.state_dict(), info


def _check_head(correction: str, model: nn.Module, groups: Groups) -> None:
    try:
        linear_head(model, groups)
    except InputError as error:
        raise InputError(f"correction '{correction}': {error}") from None


def _temperature(task: Task) -> Result:
    """The plain average with its logits divided by the temperature at which its KL from the parents' ensemble is least
    on the images: its loss changes, what it names does not (arXiv 2510.08023 has wide networks need no more).

    Labels play no part. Divided are the weights and bias of the last linear layer.
    """
    from scipy.optimize import minimize_scalar  # takes up to a second to import

    (*_, name), fused = linear_head(task.aligned.model, task.groups), task.fused()
    batches = list(task.images("temperature"))
    if not batches:
        raise InputError("correction 'temperature' cannot work without images; accepted: correct_images ≥ 1")
    goal = mean_log_probabilities([forward(parent, batches)[0] for parent in task.parents()], task.shares).exp()
    logits = forward(fused, batches)[0].double()

    def missing(log_factor: float) -> float:
        """The KL but for what the factor does not change; convex in the factor."""
        scaled = np.exp(log_factor) * logits
        return float((scaled.logsumexp(dim=1) - (goal * scaled).sum(dim=1)).mean())

    factor = np.exp(minimize_scalar(missing, bounds=(-10.0, 10.0), method="bounded", options={"xatol": 1e-6}).x)
    layer = fused.get_submodule(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)
    return fused.state_dict(), {"images": sum(map(loaders.count, batches)), "temperature": float(1 / factor)}


@dataclass(frozen=True)
class Correction:
    """A correction: how it runs, whether it looks at images, and what it does in a line."""

    run: Callable[..., Result]
    images: bool
    what: str
    # Whether its images are augmented as in training, as published; a fit wants them as they are.
    augmented: bool = True
    moments: bool = False  # whether it works from the parents' `moments`, which are the same for all shares
    norm: bool = False  # whether the network must have BatchNorm
    head: bool = False  # whether the network must end in a linear layer
    slow: bool = False  # whether it takes so long that a panel should wait for a button


CORRECTIONS = {
    "none": Correction(none, False, "plain interpolation"),
    "bn_reset": Correction(
        bn_reset, True, "BatchNorm statistics re-estimated by simple averaging (Jordan et al. 2023)", norm=True
    ),
    "repair": Correction(
        retracked(shift=True),
        True,
        "means and deviations set to the parents' interpolated ones (Jordan et al. 2023)",
        moments=True,
    ),
    "rescale": Correction(
        retracked(shift=False), True, "deviations alone set to them (Qu & Horváth 2024)", moments=True
    ),
    "closed_form": Correction(
        closed_form, True, "deviations predicted from the parents' moments (Jordan et al. 2023)", moments=True
    ),
    "least_squares": Correction(
        _least_squares,
        True,
        "layers solved for on the fused network's own inputs, through the ReLU",
        augmented=False,
        slow=True,
    ),
    "temperature": Correction(
        _temperature,
        True,
        "the temperature of the softmax, nearest to the parents' ensemble (Guo et al. 2017)",
        augmented=False,
        head=True,
    ),
}


def read_correction(text: str, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """(name, options) of a correction such as "least_squares(select=false)"; see `checks.read_method`."""
    return read_method("correction", text, CORRECTIONS, options)


def check_network(correction: str, model: nn.Module, groups: Groups | None = None) -> None:
    """Raises InputError, in one line, when the correction cannot take this architecture; `groups`, its own, tell more
    than the model alone."""
    name, _ = read_correction(correction)
    if CORRECTIONS[name].norm and not norms(model):
        accepted = ", ".join(name for name, other in CORRECTIONS.items() if not other.norm)
        raise InputError(f"correction '{name}' needs BatchNorm, {type(model).__name__} has none; accepted: {accepted}")
    if CORRECTIONS[name].head and groups is not None:
        _check_head(name, model, groups)


def check_images(correction: str, images: object) -> None:
    """Raises InputError, in one line, when the correction looks at images and there are none."""
    name, _ = read_correction(correction)
    if CORRECTIONS[name].images and images is None:
        raise InputError(f"correction '{name}' looks at images; give it images")


def correct(
    aligned: Aligned,
    shares: float | Iterable[float] | None,
    correction: str,
    *,
    images: Tensor | Iterable | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    moments: Moments | None = None,
    structure: Structure | None = None,
    shared: Shared | None = None,
    **options,
) -> Fused:
    """The share-weighted mean of aligned networks, corrected.

    Args:
        aligned: from `align`.
        shares: one a network, in [0, 1], that sum to 1; or, of two networks, the second's share alpha; None: all alike.
        correction: of `CORRECTIONS`, options in brackets if any: "least_squares(select=false)".
        images: a tensor (N, …), or batches of images with or without labels (`loaders.read_batch`), for corrections
            that look at data (`CORRECTIONS[name].images`). Labels are never read. The statistics corrections go over
            them twice.
        moments: the parents' (`moments(...)`), gathered once for all shares; gathered here if absent.
        structure: of the fused network, by default that of one; any other asks for least_squares.
        shared: `Shared()`, given again at other structures of the same networks on the same images, for what they have
            in common.
        options: the correction's own, such as ridge=1e-3.

    Raises:
        InputError: unknown correction or option, shares that are none, images needed and not given, or a network that
            the correction cannot take.
    """
    name, options = read_correction(correction, options)
    shares = checked(aligned, "correct").shares(shares)
    check_images(name, images)
    check_network(name, aligned.model, aligned.groups)
    start = time.perf_counter()
    batches = None if images is None else loaders.batched(images)
    if structure is not None and structure.plain:
        structure = None
    if structure is not None and name != "least_squares":
        raise InputError(f"correction '{name}' makes a network of the parents' size; accepted otherwise: least_squares")
    task = Task(aligned, shares, batches, torch.device(device), progress, moments, structure, shared)
    state, info = CORRECTIONS[name].run(task, **options)
    # extra states and the modules' versions stay the first network's
    order = models.state_of(aligned.model if structure is None else structure.module())
    for key, value in order.items():
        if not models.is_extra(key, value):
            order[key] = state[key].detach().cpu().clone()
    seconds = time.perf_counter() - start
    return Fused(aligned, shares, spell_method(name, options, CORRECTIONS), order, info, seconds, structure)
