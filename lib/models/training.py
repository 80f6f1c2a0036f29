"""The training loop.

A killed training continues from its last epoch and ends in the same bytes as an undisturbed one (same machine,
same thread count): model, optimiser, schedule, gradient scaler and the loader's generator are all in the resume file.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import loaders, paths
from ..checks import InputError, check_choice, first_line
from ..progress import tqdm
from .architectures import ARCHITECTURES, build
from .checkpoints import (
    Checkpoint,
    _check_suffix,
    _load_torch,
    load_state,
    read_checkpoint,
    read_sidecar,
    save_checkpoint,
    state_of,
)

# Steps between two looks at the training loss. Each look makes the host wait for a CUDA device.
LOOK_EVERY = 50


@dataclasses.dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov-free momentum, or AdamW (Loshchilov & Hutter 2019), whose first beta the momentum is; the
    learning rate rises linearly over the first `warmup` share of the steps and falls linearly to 0 (the schedule of the
    REPAIR notebooks), or with `schedule="constant"` stays as it is.

    `clip` > 0 scales each step's gradient down to this norm; `proximal` > 0 adds proximal/2 · ‖w − start‖², which holds
    the weights to those the training began with (FedProx, Li et al. 2020)."""

    epochs: int
    batch_size: int = 500
    lr: float = 0.08
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    augment: bool = True
    optimiser: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["triangle", "constant"] = "triangle"
    clip: float = 0.0
    proximal: float = 0.0

    def __post_init__(self) -> None:
        check_choice("optimiser", self.optimiser, ("sgd", "adamw"))
        check_choice("schedule", self.schedule, ("triangle", "constant"))
        for name in ("clip", "proximal"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} {getattr(self, name)} is not accepted; accepted: a finite number ≥ 0")
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} {getattr(self, name)} is not positive; accepted: any value > 0")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"warmup {self.warmup} is not within [0, 1]; it is a share of the steps")

    def as_dict(self) -> dict[str, Any]:
        """What sidecars and resume files say of it; the defaults of what those written before had no choice of are left
        out."""
        left_out = {"optimiser": "sgd", "schedule": "triangle", "clip": 0.0, "proximal": 0.0}
        return {name: value for name, value in dataclasses.asdict(self).items() if left_out.get(name) != value}

    def optimise(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser of these parameters."""
        options = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimiser == "adamw":
            return torch.optim.AdamW(parameters, betas=(self.momentum, 0.999), **options)
        return torch.optim.SGD(parameters, momentum=self.momentum, **options)


@dataclasses.dataclass(frozen=True)
class Part:
    """Part `which`, 0 or 1, of a division of the training images between two networks, drawn by `seed`
    (`dirichlet_parts`)."""

    beta: float
    seed: int
    which: int


LATER = ("held_out", "part", "own_classes", "options")  # fields of `Spec` that there were not from the first


@dataclasses.dataclass(frozen=True)
class Spec:
    """One network to train: an architecture, a seed (of initialisation, order and augmentation) and a recipe.

    `classes`, if given, skews what it sees: all images of these classes and a `share` of each other class. `part`, if
    given, leaves it one part of them. It never sees the last `held_out` training images: they are for choices that must
    see neither them nor the test set. With `own_classes` it has an output for each of `classes` alone, in their order,
    and is trained and tested on images of these alone. `options` are further arguments of the architecture's
    constructor, such as a transformer's `depth`.
    """

    model: str
    seed: int
    recipe: Recipe
    width: float = 1.0
    norm: str | None = None
    classes: tuple[int, ...] | None = None
    share: float = 1.0
    held_out: int = 0
    part: Part | None = None
    own_classes: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.classes is not None and self.part is not None:
            raise InputError("classes and part both say what a network sees; accepted: one of them")
        if self.own_classes and not self.classes:
            raise InputError("own_classes asks for classes, which are the network's outputs; accepted: both or neither")

    def as_dict(self) -> dict[str, Any]:
        """What a sidecar says of it; a `held_out`, `part`, `own_classes` or `options` of none is left out, as by those
        written before there was one."""
        entries = dataclasses.asdict(self)
        if self.recipe is not None:
            entries["recipe"] = self.recipe.as_dict()
        return {name: value for name, value in entries.items() if value or name not in LATER}

    def build(self) -> nn.Module:
        """The freshly initialised network."""
        classes = {"classes": len(self.classes)} if self.own_classes else {}
        return build(self.model, width=self.width, norm=self.norm, seed=self.seed, **classes, **self.options)


def _shape(model: str) -> tuple[int, ...]:
    """(channels, height, width) of one input of a registered model, (length,) of a text. Raises InputError for any
    other."""
    if model not in ARCHITECTURES:
        raise InputError(
            f"unknown model {model!r}; accepted: {', '.join(ARCHITECTURES)}; a model of your own has to be "
            f"registered in ARCHITECTURES in {build.__module__}"
        )
    return ARCHITECTURES[model][2]


def open_dataset(name: str, model: str) -> loaders.Dataset:
    """The data set `name` in the shape that `model` takes; "auto" takes the first within reach that suits it.

    Raises:
        InputError: the model is not registered, or as `loaders.load`.
    """
    shape = _shape(model)
    auto = ("mnist", "mnist-5k") if shape[0] == 1 else ("cifar10", "cifar10-jpeg", "mnist-5k")
    return loaders.load(name, auto=auto if len(shape) == 3 else ("paradise-lost",), shape=shape)


def normalisation(model: str) -> loaders.Normalisation | None:
    """What a network's inputs are normalised by: grey images by 255 alone (a mean and deviation cost the published
    SimpleNet pair 2.5 points), colour ones by the reference's mean and deviation, a text by nothing. InputError for a
    model that is not registered."""
    shape = _shape(model)
    if len(shape) == 1:
        return None
    return loaders.UNIT if shape[0] == 1 else loaders.CIFAR


def trained(
    spec: Spec,
    dataset: loaders.Dataset,
    *,
    path: Path | None = None,
    half: bool = False,
    loader: str = "memory",
    device: torch.device | str = "cpu",
    label: str = "training",
    progress: bool = True,
) -> Checkpoint:
    """The checkpoint of `spec` on `dataset`: trained, measured on the test set and saved, unless it is there already.

    Of several processes that want the same one, one trains and the others wait. A process that was killed is continued
    from its last whole epoch.

    Args:
        path: where it goes; by default checkpoints/local/, under a name made from spec and data set.
        half: store it in float16; the accuracy in the sidecar is that of what is stored.
        loader: "memory", "ffcv" or "auto".

    Returns:
        The checkpoint; its JSON sidecar says how it was made.
    """
    origin = {"spec": spec.as_dict(), "dataset": dataset.name, "dataset_sha256": dataset.sha256}
    origin["images"] = len(dataset.train)
    if not 0 <= spec.held_out < len(dataset.train):
        raise InputError(
            f"held_out {spec.held_out} of {len(dataset.train)} training images leaves none to train on; accepted: fewer"
        )
    origin = json.loads(json.dumps(origin))  # as the sidecar will give it back
    key = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:10]
    norm = f"-{spec.norm[0]}n" if spec.norm else ""  # bn, ln, gn
    stem = f"{spec.model}{norm}-w{spec.width:g}-{dataset.name}-s{spec.seed}-{key}"
    path = path or paths.CHECKPOINTS / "local" / f"{stem}.safetensors"
    _check_suffix(path)
    resume = paths.CHECKPOINTS / "local" / f"{stem}.resume"
    if not resume.exists() and (checkpoint := _already(path, origin, label)):
        return checkpoint
    waiting = f"{label}: another process trains {path.name}, waiting for it"
    with paths.locked(resume, path, path.with_suffix(".json"), waiting=waiting):
        if checkpoint := _already(path, origin, label):  # by now, or by a run that was killed as it tidied up
            resume.unlink(missing_ok=True)
            return checkpoint
        if dataset.train.is_text and (spec.classes is not None or spec.part is not None):
            raise InputError(f"classes and part divide images by class, {dataset.name} is a text; accepted: neither")
        generator = torch.Generator().manual_seed(spec.seed)
        labels = dataset.train.labels[: len(dataset.train) - spec.held_out]
        indices = torch.arange(len(labels))
        if spec.own_classes:
            dataset = of_classes(dataset, spec.classes, spec.held_out)
            indices = torch.arange(len(dataset.train))
        elif spec.classes is not None:
            indices = skewed_indices(labels, spec.classes, spec.share, spec.seed)
        if spec.part is not None:
            indices = dirichlet_parts(labels, spec.part.beta, spec.part.seed)[spec.part.which]
        options = {"normalise": normalisation(spec.model), "device": device, "loader": loader}
        batches = loaders.make_loader(
            dataset, "train", spec.recipe.batch_size, indices=indices, shuffle=True, augment=spec.recipe.augment,
            drop_last=True, generator=generator, **options,
        )  # fmt: skip
        model = spec.build()
        losses = train(
            model,
            batches,
            spec.recipe,
            generator=generator,
            device=device,
            resume=resume,
            label=label,
            progress=progress,
        )
        state = state_of(model)
        if half:
            state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
            load_state(model, state)
        test = loaders.make_loader(dataset, "test", 1000, **options)
        accuracy, loss = evaluate(model, test, device=device)
        measured = {"test_accuracy": accuracy, "test_loss": loss, "final_train_loss": losses[-1]}
        checkpoint = save_checkpoint(path, state, origin | measured | {"torch": torch.__version__})
        resume.unlink(missing_ok=True)
    return checkpoint


def _already(path: Path, spec: Mapping[str, Any], label: str) -> Checkpoint | None:
    """The checkpoint at `path` if it is whole and its sidecar says what `spec` does."""
    if not path.is_file():
        return None
    sidecar = read_sidecar(path)
    if not spec.items() <= sidecar.items():
        return None
    with suppress(InputError):
        if "sha256" in sidecar:
            checkpoint = read_checkpoint(path, sidecar)
            print(f"{label}: already trained, {path.name}", flush=True)
            return checkpoint
    print(f"{label}: {path.name} is not the file its sidecar tells of, training it again", flush=True)
    return None


def train(
    model: nn.Module,
    loader: Iterable,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    resume: Path | None = None,
    label: str = "training",
    progress: bool = True,
) -> list[float]:
    """Trains `model` in place and leaves it in evaluation mode.

    Args:
        loader: yields (images (B, C, H, W), labels (B,)), or (tokens (B, L), labels (B, L)), on `device`, a new epoch
            at each iteration, drawing all its randomness from `generator`.
        resume: file that holds the state after each epoch; read when it is there (a damaged one is said and not
            used); the caller removes it.

    Returns:
        Mean training loss of each epoch, in nats.

    Raises:
        InputError: the resume file belongs to another training; there are fewer than two steps in all (the learning
            rate of a single one is 0); the loss is no longer finite (the line names the step).
    """
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last).train()
    steps, size = len(loader), recipe.batch_size
    if steps == 0:
        raise InputError(
            f"no full batch of {size} images to train on; accepted: at least {size} training images (limit_train)"
        )
    if recipe.epochs * steps < 2 and recipe.schedule == "triangle":
        raise InputError(
            f"one step of {size} images is no training, its learning rate is 0; accepted: more epochs, or at least "
            f"{2 * size} training images (limit_train)"
        )
    optimiser = recipe.optimise(model.parameters())
    knots = [0, recipe.warmup * recipe.epochs * steps, recipe.epochs * steps]
    factors = np.interp(np.arange(1 + knots[-1]), knots, [0, 1, 0]).tolist()
    if recipe.schedule == "constant":
        factors = [1.0] * len(factors)
    began = [weight.detach().clone() for weight in model.parameters()] if recipe.proximal else []
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: factors[step])
    # Mixed precision pays on CUDA only: bfloat16 on a CPU without AMX was far slower than float32.
    mixed = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule, "scaler": scaler}
    losses: list[float] = []
    saved = _read_resume(resume, label)
    if saved is not None:
        try:
            if not isinstance(saved, dict) or saved["recipe"] != recipe.as_dict() or saved["steps"] != steps:
                raise ValueError
            for name, part in parts.items():
                if saved[name]:  # a scaler that is off, as on a CPU, saves nothing
                    part.load_state_dict(saved[name])
            generator.set_state(saved["generator"])
            losses = saved["losses"]
        except Exception:  # a file of something else can hold anything
            raise InputError(f"{resume} belongs to another training; delete it to start afresh") from None
    with tqdm(
        total=recipe.epochs, initial=len(losses), desc=label, unit="epoch", disable=not progress, mininterval=1
    ) as bar:
        while len(losses) < recipe.epochs:
            history = torch.zeros(steps, device=device)  # each step's loss, on the device
            for step, (images, labels) in enumerate(loader, start=1):
                optimiser.zero_grad(set_to_none=True)
                with torch.autocast(device.type, enabled=mixed):
                    loss = F.cross_entropy(model(images).flatten(0, -2), labels.flatten())
                if began:
                    away = sum((w - start).square().sum() for w, start in zip(model.parameters(), began, strict=True))
                    scaler.scale(loss + recipe.proximal / 2 * away).backward()
                else:
                    scaler.scale(loss).backward()
                if recipe.clip:
                    scaler.unscale_(optimiser)
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                scaler.step(optimiser)
                scaler.update()
                schedule.step()
                history[step - 1] = loss.detach()
                if step % LOOK_EVERY == 0 or step == steps:
                    _check_finite(history[:step], len(losses) * steps, len(losses) + 1, recipe)
            losses.append(history.cpu().double().mean().item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            bar.update()
            if resume is not None:
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"generator": generator.get_state(), "losses": losses, "steps": steps}
                content = io.BytesIO()
                torch.save(state | {"recipe": recipe.as_dict()}, content)
                with paths.atomic(resume) as temporary:
                    temporary.write_bytes(content.getvalue())  # not getbuffer: an error would keep it exported
    model.eval()
    return losses


def _read_resume(resume: Path | None, label: str) -> Any:
    """What the resume file holds; None where there is none, or none that can be read."""
    if resume is None or not resume.is_file():
        return None
    try:
        return _load_torch(resume.read_bytes())
    except Exception as error:  # a damaged file can make torch raise anything
        print(f"{label}: {resume.name} cannot be read ({first_line(error)}), starting afresh", flush=True)
        return None


def _check_finite(losses: torch.Tensor, before: int, epoch: int, recipe: Recipe) -> None:
    """Raises InputError, naming the step, unless the `losses` (S,) of the steps after `before` are all finite."""
    bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
    if bad:
        step = before + bad[0] + 1
        raise InputError(
            f"the training loss is {float(losses[bad[0]])} at step {step} (epoch {epoch}); a smaller lr than "
            f"{recipe.lr} may help"
        )


class Score(NamedTuple):
    """What a network reaches on labelled images: accuracy (a fraction), mean cross-entropy (nats), expected calibration
    error (a fraction); against other log-probabilities the mean KL(others || network) in nats and the share of images
    on which both name the same class, else None."""

    accuracy: float
    loss: float
    calibration: float
    kl: float | None = None
    agreement: float | None = None

    @property
    def perplexity(self) -> float:
        """That of the loss."""
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """exp(loss) of a mean cross-entropy in nats: of so many classes of equal probability, a guess would lose as much;
    infinite where it is too large."""
    return torch.tensor(loss, dtype=torch.float64).exp().item()


CALIBRATION_BINS = 15  # of equal width, as Guo et al. (On Calibration of Modern Neural Networks, 2017)


def score(logits: torch.Tensor, labels: torch.Tensor, against: torch.Tensor | None = None) -> Score:
    """How good logits (N, classes) are for labels (N,), and how near to the log-probabilities `against` (N, classes).

    An image with an output that is not a number counts as wrong, and as named like no other network's.

    Raises:
        InputError: `against` is of other images or classes.
    """
    if against is not None and against.shape != logits.shape:
        raise InputError(
            f"log-probabilities {tuple(against.shape)} and outputs {tuple(logits.shape)} cannot be compared; accepted: "
            "those of the same images"
        )
    logs, named = logits.double().log_softmax(dim=1), logits.argmax(dim=1)
    # argmax takes NaN for the largest: a network that has diverged would be right on one class
    sound = ~logits.isnan().any(dim=1)
    right = (named == labels) & sound
    sure = logs.exp().amax(dim=1)
    bins = (sure.nan_to_num() * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64).index_add_(0, bins, right.double() - sure)
    measured = Score(
        int(right.sum()) / len(labels),
        F.nll_loss(logs, labels).item(),
        gaps.abs().sum().item() / len(labels),
    )
    if against is None:
        return measured
    return measured._replace(
        kl=F.kl_div(logs, against.double(), reduction="batchmean", log_target=True).item(),
        agreement=int(((named == against.argmax(dim=1)) & sound).sum()) / len(labels),
    )


@torch.inference_mode()
def outputs(
    model: nn.Module, batches: Iterable, *, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, classes) float32 and labels (N,), on the CPU, over batches of images (B, …) and labels (B,), as
    `loaders.read_batch` and `loaders.classes` read them: one pass, from which everything is measured (`score`). Of a
    network that answers at each of L positions, (B, L, classes), each position counts as an image: N is B·L.

    `model` is put and left in evaluation mode. Pass a list of batches to have images read and normalised once for many
    networks.

    Raises:
        InputError: there are no images; a batch is none, or its labels are missing, not one an image or none of the
            network's classes; the network puts out no logits (B, classes) or (B, L, classes).
    """
    model.to(device).eval()
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for batch in loaders.batched(batches):
        images, labels = loaders.read_batch(batch)
        logits = model(*_inputs(images, device, dtype))
        if not isinstance(logits, torch.Tensor) or logits.dim() not in (2, 3) or logits.shape[2:] == (1,):
            what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise InputError(
                f"the network puts out {what}, which cannot be measured; accepted: logits (N, classes), or (N, L, "
                "classes) at L positions"
            )
        _, *positions, named = logits.shape
        labels = loaders.classes(labels, loaders.count(images), named, tuple(positions))
        found.append((logits.float().cpu().flatten(0, -2), labels.cpu()))
    if not found:
        raise InputError("there are no images to evaluate on")
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits, labels


def evaluate(model: nn.Module, batches: Iterable, *, device: torch.device | str = "cpu") -> tuple[float, float]:
    """Accuracy (a fraction) and mean cross-entropy (nats) on labelled batches: the `score` of a network's `outputs`.

    Args, Raises: as in `outputs`.
    """
    return score(*outputs(model, batches, device=device))[:2]


def _inputs(images: loaders.Images, device: torch.device | str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What the network is called with: copies, for it may change its input in place; real numbers and bytes in `dtype`
    (FFCV delivers float16 on CUDA), other whole numbers as they are: they stand for words."""
    parts = images if isinstance(images, tuple) else (images,)
    kinds = (dtype if x.is_floating_point() or x.dtype == torch.uint8 else x.dtype for x in parts)
    return tuple(x.to(device, kind, copy=True) for x, kind in zip(parts, kinds, strict=True))


def places(labels: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """The place of each label (N,) in `classes`, −1 where it is none of them: int64 (N,)."""
    same = labels[:, None] == torch.tensor(list(classes), device=labels.device)
    return torch.where(same.any(dim=1), same.int().argmax(dim=1), -1)


def of_classes(dataset: loaders.Dataset, classes: Sequence[int], held_out: int = 0) -> loaders.Dataset:
    """The images of some classes alone, but for the last `held_out` training images; a class's label is its place in
    `classes`."""

    def part(split: loaders.Split) -> loaders.Split:
        labels = places(split.labels, classes)
        return loaders.Split(split.images[labels >= 0], labels[labels >= 0])

    train = dataset.train.head(len(dataset.train) - held_out)
    return dataclasses.replace(dataset, train=part(train), test=part(dataset.test))


def skewed_indices(labels: torch.Tensor, classes: Iterable[int], share: float, seed: int) -> torch.Tensor:
    """Which training images one network of a differently distributed pair sees: all of `classes` and a random
    `share` of each other class, as sorted indices (K,) int64 into `labels` (N,)."""
    if not 0 <= share <= 1:
        raise InputError(f"share {share} is not within [0, 1]")
    generator = torch.Generator().manual_seed(seed)
    kept = torch.isin(labels, torch.tensor(list(classes)))
    for other in torch.unique(labels[~kept]).tolist():
        members = torch.nonzero(labels == other).flatten()
        chosen = torch.randperm(len(members), generator=generator)[: round(share * len(members))]
        kept[members[chosen]] = True
    return torch.nonzero(kept).flatten()


def dirichlet_parts(
    labels: torch.Tensor, beta: float, seed: int, parts: int = 2, least: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Training images divided between networks, class by class, in proportions from Dir(beta, …, beta): the smaller
    beta, the fewer classes a network sees (Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural
    Networks, 2019). Drawn again until each part holds at least `least` images, by default a fifth of those of two
    parts, of more parts 10 images.

    Returns parts, sorted indices (K,) int64 into `labels` (N,), which share none.

    Raises:
        InputError: beta is not above 0, or no draw of 10,000 gave each part `least` images.
    """
    if not beta > 0:
        raise InputError(f"beta {beta} is not accepted; accepted: a number > 0, such as 0.1")
    if least is None:
        least = len(labels) // 5 if parts == 2 else 10
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(labels.numpy() == value) for value in np.unique(labels.numpy())]
    for _ in range(10_000):
        found: list[list[np.ndarray]] = [[] for _ in range(parts)]
        for each in members:
            ends = np.cumsum(generator.dirichlet((beta,) * parts))[:-1]
            cuts = [round(end * len(each)) for end in ends]
            for part, chosen in zip(found, np.split(generator.permutation(each), cuts), strict=True):
                part.append(chosen)
        if min(sum(map(len, part)) for part in found) >= least:
            return tuple(torch.from_numpy(np.sort(np.concatenate(part))) for part in found)
    raise InputError(
        f"beta {beta} leaves one of {parts} parts of {len(labels)} images with fewer than {least}, however it is "
        "drawn; accepted: a larger beta, fewer parts or more images"
    )
