"""What averaging breaks, and what repairs it: every correction by name, one signature.

`correct` takes two aligned state dicts and an alpha and returns the fused, corrected state of the same architecture.
See `CORRECTIONS` for what each does and whether it looks at images.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .. import checks
from ..checks import InputError
from ..symmetry import Groups
from .least_squares import GIB, fit
from .statistics import Moments, _bn_reset, _closed_form, _none, _norms, _tracked
from .task import Corrected, State, _fitting, _Found, _Task


def _least_squares(
    task: _Task,
    ridge: float = 1e-3,
    rounds: int = 4,
    through_relu: bool = True,
    select: bool = True,
    memory: float = 2 * GIB,
) -> _Found:
    """`least_squares.fit` on the interpolated network; it says what the options mean."""
    for name, value in (("ridge", ridge), ("rounds", rounds), ("memory", memory)):
        if not 0 <= value < math.inf:
            raise InputError(f"{name} {value} is not accepted; accepted: a finite {name} ≥ 0")
    if rounds != int(rounds):
        raise InputError(f"rounds {rounds} is no whole number; accepted: 0, 1, 2 …")
    # float64 does not exist on MPS
    task = dataclasses.replace(task, device=torch.device("cpu")) if task.device.type == "mps" else task
    parents = [task.network(state) for state in (task.state_a, task.state_b)]
    fused = task.fused()
    batches = list(task.images("images"))
    if not batches:
        raise InputError("correction 'least_squares' cannot work without images; accepted: correct_images ≥ 1")
    images = torch.cat(batches)
    info = fit(
        *parents, fused, task.groups, images, task.alpha,
        ridge=ridge, rounds=int(rounds), through_relu=through_relu, select=select, memory=memory,
        progress=task.progress,
    )  # fmt: skip
    return fused.state_dict(), info


@dataclass(frozen=True)
class Correction:
    """A correction: how it runs, whether it looks at images, and what it does in a line."""

    run: Callable[..., _Found]
    images: bool
    what: str
    # Whether its images are augmented as in training, as published; a fit wants them as they are.
    augmented: bool = True
    moments: bool = False  # whether it works from the parents' `moments`, which are the same for every alpha
    norm: bool = False  # whether the network must have BatchNorm


CORRECTIONS = {
    "none": Correction(_none, False, "plain interpolation"),
    "bn_reset": Correction(
        _bn_reset, True, "BatchNorm statistics re-estimated by simple averaging (Jordan et al. 2023)", norm=True
    ),
    "repair": Correction(
        _tracked(shift=True),
        True,
        "means and deviations set to the parents' interpolated ones (Jordan et al. 2023)",
        moments=True,
    ),
    "rescale": Correction(
        _tracked(shift=False), True, "deviations alone set to them (Qu & Horváth 2024)", moments=True
    ),
    "closed_form": Correction(
        _closed_form,
        True,
        "deviations predicted from the parents' moments (Jordan et al. 2023)",
        moments=True,
    ),
    "least_squares": Correction(
        _least_squares, True, "layers solved for on the fused network's own inputs, through the ReLU", False
    ),
}


def check_network(correction: str, model: nn.Module) -> None:
    """Raises InputError, in one line, when the correction cannot take this architecture."""
    if CORRECTIONS[correction].norm and not _norms(model):
        accepted = ", ".join(name for name, other in CORRECTIONS.items() if not other.norm)
        raise InputError(
            f"correction '{correction}' needs BatchNorm, {type(model).__name__} has none; accepted: {accepted}"
        )


def check_options(correction: str, options: Mapping) -> None:
    """Raises InputError, in one line, for an unknown correction or an option that it does not take."""
    checks.check_options("correction", correction, CORRECTIONS, options)


def correct(
    model: nn.Module,
    state_a: State,
    state_b: State,
    alpha: float,
    correction: str,
    *,
    groups: Groups,
    batches: Iterable | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    moments: Moments | None = None,
    **options,
) -> Corrected:
    """The fused network at `alpha`, corrected: a state dict of the same architecture.

    Args:
        model: a network of the architecture; only its structure counts, and it is not changed.
        state_a, state_b: the parents' state dicts, B already aligned with A.
        alpha: share of B in [0, 1].
        groups: from `symmetry.trace(model, example)`.
        batches: of (images (N, …), labels) or of images, for corrections that look at data
            (`CORRECTIONS[name].images`). Labels are never read. The statistics corrections go over them twice.
        moments: the parents' (`moments(...)`), gathered once for all alphas; gathered here if absent.
        options: the correction's own, such as ridge=1e-3.

    Raises:
        InputError: unknown correction or option, alpha outside [0, 1], images needed and not given, a network that
            the correction cannot take, or states that do not fit it (`training.fitting`).
    """
    check_options(correction, options)
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha {alpha} is not within [0, 1]")
    if CORRECTIONS[correction].images and batches is None:
        raise InputError(f"correction '{correction}' looks at images; give it batches")
    check_network(correction, model)
    states = _fitting(model, state_a, state_b)
    start = time.perf_counter()
    task = _Task(model, *states, float(alpha), groups, batches, torch.device(device), progress, moments)
    state, info = CORRECTIONS[correction].run(task, **options)
    found = Corrected({name: state[name].detach().cpu().clone() for name in model.state_dict()})
    found.correction, found.alpha, found.options, found.info = correction, float(alpha), dict(options), info
    found.seconds = time.perf_counter() - start
    return found
