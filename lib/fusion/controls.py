"""What a fused network is compared with: every control by name, one signature.

Each makes a network (the ensemble: one that puts out log-probabilities) from the same parents and the same images
without labels, so that it is measured as a fused one is. What has to be chosen is chosen on labelled images held out
for that, never on the test set. See `CONTROLS` for what each is.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import loaders, matching, models, symmetry
from ..checks import InputError, read_method, spell_method
from ..symmetry import Groups
from . import least_squares
from .aligned import align, read_shares
from .corrections import correct
from .heads import Target, fit_head, forward, joint_logits, linear_head, mean_log_probabilities
from .statistics import norms, reset

RIDGE = 1e-3  # of a fitted head: the default of least squares
RATES = (3e-4, 1e-3, 3e-3)  # that distillation tries
CHECKS = 3  # how often on the way it looks at the held-out images

# What a control gives: a network in evaluation mode, and what it reports.
Result = tuple[nn.Module, dict[str, Any]]


@dataclass
class Parents:
    """What all controls work from.

    Args:
        networks: two or more of one architecture, as they are; put on `device` and in evaluation mode.
        groups: their permutation groups (`symmetry.trace`).
        images: a tensor (N, …), or batches of images with or without labels, for controls that look at some
            (`CONTROLS[name].images`). Labels are never read.
        held_out: batches of images and labels, for controls that choose (`CONTROLS[name].chooses`).
        shares: one a network, as in `Aligned.shares`.
        fresh: makes an untrained network of the architecture from a seed; by default each module of a copy draws its
            weights anew (`reset_parameters`).
        seed: of everything random.
    """

    networks: Sequence[nn.Module]
    groups: Groups
    images: Tensor | Iterable | None = None
    held_out: Iterable | None = None
    shares: float | Iterable[float] | None = None
    fresh: Callable[[int], nn.Module] | None = None
    seed: int = 0
    device: torch.device | str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        self.networks = [network.to(self.device).eval() for network in models.alike(self.networks)]
        self.shares = read_shares(len(self.networks), self.shares)

    @cached_property
    def batches(self) -> list[loaders.Images]:
        """The images on the device, without labels."""
        if self.images is None:
            raise InputError("these controls look at images; give them images")
        return [loaders.placed(loaders.read_batch(batch)[0], self.device) for batch in loaders.batched(self.images)]

    @cached_property
    def count(self) -> int:
        """How many images there are."""
        return sum(map(loaders.count, self.batches))

    @cached_property
    def logits(self) -> list[Tensor]:
        """Of each network on the images (N, classes)."""
        return [forward(network, self.batches)[0] for network in self.networks]

    def accuracy(self, network: nn.Module) -> float:
        """On the held-out images."""
        return models.evaluate(network, self.held_out, device=self.device)[0]

    @cached_property
    def accuracies(self) -> list[float]:
        """Of each network on the held-out images."""
        return [self.accuracy(network) for network in self.networks]

    def untrained(self) -> nn.Module:
        """A freshly initialised network of the architecture."""
        seed = self.seed + 1_000_003  # not the seed itself: a parent may have begun from it
        if self.fresh is not None:
            return self.fresh(seed).to(self.device).eval()
        network = copy.deepcopy(self.networks[0])
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            for module in network.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        return network


def _parent(parents: Parents) -> Result:
    best = _best(parents.accuracies)
    return parents.networks[best], {"network": best + 1, "held_out_accuracy": parents.accuracies[best]}


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


class Ensemble(nn.Module):
    """Log-probabilities (N, …, classes): of the mean of the networks' probabilities, weighted by shares."""

    def __init__(self, networks: Sequence[nn.Module], shares: Sequence[float]) -> None:
        super().__init__()
        self.parts, self.shares = nn.ModuleList(networks), shares

    def forward(self, *images: Tensor) -> Tensor:
        # a copy each, for a network may change its input in place
        return mean_log_probabilities([part(*(x.clone() for x in images)) for part in self.parts], self.shares)


def _ensemble(parents: Parents) -> Result:
    return Ensemble(parents.networks, parents.shares), {}


def _with_head(parents: Parents, body: nn.Module, target: Target = "mean") -> nn.Module:
    """A copy of `body` with the last linear layers fitted, by ridge regression, to the parents' `joint_logits` on the
    images."""
    network = copy.deepcopy(body)
    goal = joint_logits(parents.logits, parents.shares, target)
    fit_head(network, parents.groups, parents.batches, goal, RIDGE)
    return network


def _head(parents: Parents, target: Target = "mean") -> Result:
    """One parent's features under a new head; `joint_logits` says what `target` is."""
    networks = [_with_head(parents, body, target) for body in parents.networks]
    scores = [parents.accuracy(network) for network in networks]
    best = _best(scores)
    return networks[best], {"body": best + 1, "held_out_accuracy": scores[best]}


def _untrained_head(parents: Parents) -> Result:
    network = parents.untrained()
    if norms(network):
        reset(network, parents.batches)
    return _with_head(parents, network), {}


def _pruned(units: str) -> Callable[[Parents], Result]:
    """`least_squares.fit` on the parents' own units, without matching: it says what `units` means."""

    def run(parents: Parents) -> Result:
        aligned = align(parents.networks, parents.groups, [parents.groups.identity()] * len(parents.networks))
        fused = _corrected(parents, aligned, f"least_squares(units={units})", parents.shares)
        return fused.model(), {"units": fused.info["units"]}

    return run


def _self(parents: Parents) -> Result:
    first, generator = parents.networks[0], torch.Generator().manual_seed(parents.seed)
    order = parents.groups.random(generator)
    moved = models.load_state(copy.deepcopy(first), symmetry.act(models.state_of(first), parents.groups, order))
    aligned = align([first, moved], parents.groups, [parents.groups.identity()] * 2)
    return _corrected(parents, aligned, "least_squares").model(), {}


def _corrected(parents: Parents, aligned, correction: str, shares: Sequence[float] | None = None):
    return correct(
        aligned, shares, correction, images=parents.batches, device=parents.device, progress=parents.progress
    )  # fmt: skip


def _distillation(parents: Parents, steps: int = 300, batch: int = 100) -> Result:
    """Gradient training on the images from the average under activation matching, after a BatchNorm reset where there
    is BatchNorm: Adam, KL from the ensemble's probabilities, `batch` images a step; learning rate and number of steps
    are the best of `RATES` and `CHECKS` on the held-out images, where BatchNorm's statistics are those of all images.
    """
    maps = matching.match(
        parents.networks, parents.groups, "activation", images=parents.batches, device=parents.device,
        seed=parents.seed, progress=parents.progress,
    )  # fmt: skip
    aligned = align(parents.networks, parents.groups, maps)
    start = _corrected(parents, aligned, "bn_reset" if norms(aligned.model) else "none", parents.shares).model()
    return distil(parents, start, steps, batch)


def distil(parents: Parents, start: nn.Module, steps: int = 300, batch: int = 100) -> Result:
    """`start`, of any structure, after gradient training on the ensemble's probabilities: see `_distillation`."""
    images, goal = torch.cat(parents.batches), mean_log_probabilities(parents.logits, parents.shares)
    goal = goal.float().to(parents.device).view(len(images), -1, goal.shape[1])  # one position an image, a text's many
    marks = {max(1, steps * (i + 1) // CHECKS) for i in range(CHECKS)}
    best: tuple[float, dict, nn.Module] | None = None
    for rate in RATES:
        student, seconds = copy.deepcopy(start).to(parents.device), 0.0
        optimiser = torch.optim.Adam(student.parameters(), lr=rate)
        for step, chosen in enumerate(_orders(len(images), batch, parents.seed, max(marks)), start=1):
            began = time.perf_counter()
            student.train()
            optimiser.zero_grad(set_to_none=True)
            logs = student(images[chosen].clone()).log_softmax(dim=-1).flatten(0, -2)
            aim = goal[chosen].flatten(0, 1).to(logs.dtype)
            F.kl_div(logs, aim, reduction="batchmean", log_target=True).backward()
            optimiser.step()
            seconds += time.perf_counter() - began
            if step in marks:
                if norms(student.eval()):
                    reset(student, parents.batches)
                accuracy = parents.accuracy(student)
                if best is None or accuracy > best[0]:
                    info = {"lr": rate, "steps": step, "batch": min(batch, len(images)), "seconds": seconds}
                    best = accuracy, info, copy.deepcopy(student)
    accuracy, info, network = best
    return network, {"training": "gradient"} | info | {"held_out_accuracy": accuracy}


def _orders(count: int, batch: int, seed: int, steps: int) -> Iterator[Tensor]:
    """The images of each step: whole batches of random orders, each image once an order."""
    generator, size = torch.Generator().manual_seed(seed), min(batch, count)
    epochs = (torch.randperm(count, generator=generator)[: count - count % size].split(size) for _ in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(epochs), steps)


@dataclass(frozen=True)
class Control:
    """A control: how it runs, and what it is in a line."""

    run: Callable[..., Result]
    what: str
    images: bool = False  # whether it looks at images
    chooses: bool = False  # whether it chooses by held-out images
    quick: bool = False  # whether it takes little more than running the parents
    check: Callable[[nn.Module, Groups], Any] | None = None  # raises InputError for a network that it cannot take


def _one_input(model: nn.Module, groups: Groups) -> None:
    if isinstance(groups.example, tuple) and len(groups.example) > 1:
        raise InputError(f"takes networks with one input; {type(model).__name__} has {len(groups.example)}")


def _prunable(model: nn.Module, groups: Groups) -> None:
    _one_input(model, groups)
    least_squares.check_units("side_by_side", model, groups)


CONTROLS = {
    "parent": Control(_parent, "nothing fused: the parent that is better held out", chooses=True, quick=True),
    "ensemble": Control(_ensemble, "the mean of the parents' probabilities: as many networks as parents", quick=True),
    "side_by_side": Control(
        _pruned("side_by_side"),
        "the parents' units side by side, pruned to the size of one and fitted: nothing matched",
        images=True,
        check=_prunable,
    ),
    "half_parent": Control(
        _pruned("half"), "the first parent pruned to half its units and fitted", images=True, check=_prunable
    ),
    "head": Control(
        _head,
        "one parent's features, the last layer fitted to the parents' mean logits",
        images=True,
        chooses=True,
        quick=True,
        check=linear_head,
    ),
    "untrained_head": Control(
        _untrained_head, "the same on the features of an untrained network", images=True, check=linear_head
    ),
    "self": Control(
        _self,
        "the first parent fused with itself in a random order: what least squares alone costs",
        images=True,
        check=_one_input,
    ),
    "distillation": Control(
        _distillation,
        "gradient training of the matched average on the ensemble's probabilities (Hinton et al. 2015)",
        images=True,
        chooses=True,
        check=_one_input,
    ),
}


def read_control(text: str, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """(name, options) of a control such as "distillation(steps=600)"; see `checks.read_method`."""
    return read_method("control", text, CONTROLS, options)


def check_control(control: str, model: nn.Module, groups: Groups) -> None:
    """Raises InputError, in one line, when the control cannot take this architecture."""
    name, _ = read_control(control)
    try:
        if CONTROLS[name].check is not None:
            CONTROLS[name].check(model, groups)
    except InputError as error:
        raise InputError(f"control '{name}': {error}") from None


@dataclass(frozen=True)
class Controlled:
    """A control made: `control` is its name with its options, `network` in evaluation mode, `seconds` what making it
    took, choosing included, `images` how many without labels it looked at, `info` what it reports."""

    control: str
    network: nn.Module
    seconds: float
    images: int
    info: dict[str, Any]


def control(name: str, parents: Parents, **options) -> Controlled:
    """Makes a control.

    Args:
        name: of `CONTROLS`, options in brackets if any: "distillation(steps=600)".
        options: the control's own.

    Raises:
        InputError: unknown control or option, images or held-out images needed and not given, or a network that the
            control cannot take.
    """
    name, options = read_control(name, options)
    row = CONTROLS[name]
    check_control(name, parents.networks[0], parents.groups)
    if row.images and parents.images is None:
        raise InputError(f"control '{name}' looks at images; give it images")
    if row.chooses and parents.held_out is None:
        raise InputError(f"control '{name}' chooses by images held out; give it held_out, batches of images and labels")
    start = time.perf_counter()
    network, info = row.run(parents, **options)
    seconds = time.perf_counter() - start
    return Controlled(
        spell_method(name, options, CONTROLS), network.eval(), seconds, parents.count if row.images else 0, info
    )
