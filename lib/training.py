"""The training loop, and checkpoints in and out.

A killed training continues from its last epoch and ends in the same bytes as an undisturbed one (same machine,
same thread count): model, optimiser, schedule, gradient scaler and the loader's generator are all in the resume file.
"""

import dataclasses
import hashlib
import json
import math
import pickle
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from lib import loaders, models, paths
from lib.checks import InputError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov-free momentum; the learning rate rises linearly over the first `warmup` share of the steps
    and falls linearly to 0 (the schedule of the REPAIR notebooks)."""

    epochs: int
    batch_size: int = 500
    lr: float = 0.08
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    augment: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} {getattr(self, name)} is not positive; accepted: any value > 0")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One network to train: an architecture, a seed (of initialisation, order and augmentation) and a recipe.

    `classes`, if given, skews what it sees: all images of these classes and a `share` of each other class.
    """

    model: str
    seed: int
    recipe: Recipe
    width: float = 1.0
    norm: str | None = None
    classes: tuple[int, ...] | None = None
    share: float = 1.0

    def build(self) -> nn.Module:
        """The freshly initialised network."""
        return models.build(self.model, width=self.width, norm=self.norm, seed=self.seed)


def open_dataset(name: str, model: str) -> loaders.Dataset:
    """The data set `name` in the shape that `model` takes; "auto" takes the first within reach that suits it."""
    shape = models.ARCHITECTURES[model][2]
    auto = ("mnist", "mnist-5k") if shape[0] == 1 else ("cifar10", "cifar10-jpeg", "mnist-5k")
    return loaders.load(name, auto=auto, shape=shape)


def normalisation(model: str) -> loaders.Normalisation:
    """What a network's inputs are normalised by: grey ones by 255 alone (a mean and deviation cost the published
    SimpleNet pair 2.5 points), colour ones by the reference's mean and deviation."""
    return loaders.UNIT if models.ARCHITECTURES[model][2][0] == 1 else loaders.CIFAR


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
) -> Path:
    """The checkpoint of `spec` on `dataset`: trained, measured on the test set and saved, unless it is there already.

    Args:
        path: where it goes; by default checkpoints/local/, under a name made from spec and data set.
        half: store it in float16; the accuracy in the sidecar is that of what is stored.
        loader: "memory", "ffcv" or "auto".

    Returns:
        Path of the .safetensors file; its JSON sidecar says how it was made.
    """
    made = {"spec": dataclasses.asdict(spec), "dataset": dataset.name, "dataset_sha256": dataset.sha256}
    made["images"] = len(dataset.train)
    key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:10]
    stem = f"{spec.model}{'-bn' if spec.norm else ''}-w{spec.width:g}-{dataset.name}-s{spec.seed}-{key}"
    path = path or paths.CHECKPOINTS / "local" / f"{stem}.safetensors"
    if path.is_file() and json.loads(json.dumps(made)).items() <= read_sidecar(path).items():
        print(f"{label}: already trained, {path.name}", flush=True)
        return path
    generator = torch.Generator().manual_seed(spec.seed)
    indices = None
    if spec.classes is not None:
        indices = skewed_indices(dataset.train.labels, spec.classes, spec.share, spec.seed)
    options = {"normalise": normalisation(spec.model), "device": device, "loader": loader}
    batches = loaders.make_loader(
        dataset, "train", spec.recipe.batch_size, indices=indices, shuffle=True, augment=spec.recipe.augment,
        drop_last=True, generator=generator, **options,
    )  # fmt: skip
    model = spec.build()
    resume = paths.CHECKPOINTS / "local" / f"{stem}.resume"
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
    save_checkpoint(
        path,
        state,
        made
        | {
            "test_accuracy": accuracy,
            "test_loss": loss,
            "final_train_loss": losses[-1],
            "torch": torch.__version__,
        },
    )
    for spent in (resume, *resume.parent.glob(f".{resume.stem}.*")):  # with what a kill left half-written
        spent.unlink(missing_ok=True)
    return path


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
        loader: yields (images (B, C, H, W), labels (B,)) on `device`, a new epoch at each iteration, drawing all its
            randomness from `generator`.
        resume: file that holds the state after each epoch; read when it is there; the caller removes it.

    Returns:
        Mean training loss of each epoch, in nats.

    Raises:
        InputError: the resume file belongs to another recipe; the loader is empty; the loss is no longer finite.
    """
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last).train()
    steps = len(loader)
    if steps == 0:
        raise InputError(
            f"no full batch of {recipe.batch_size} images to train on; accepted: a smaller batch_size or more images"
        )
    optimiser = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    knots = [0, recipe.warmup * recipe.epochs * steps, recipe.epochs * steps]
    factors = np.interp(np.arange(1 + knots[-1]), knots, [0, 1, 0]).tolist()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: factors[step])
    # Mixed precision pays on CUDA only: bfloat16 on a CPU without AMX was far slower than float32.
    mixed = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule, "scaler": scaler}
    losses: list[float] = []
    if resume is not None and resume.exists():
        saved = torch.load(resume, map_location="cpu", weights_only=True)
        if saved["recipe"] != dataclasses.asdict(recipe) or saved["steps"] != steps:
            raise InputError(f"{resume} belongs to another training; delete it to start afresh")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        losses = saved["losses"]
    bar = tqdm(
        total=recipe.epochs,
        initial=len(losses),
        desc=label,
        unit="epoch",
        disable=not progress,
        mininterval=1,
    )
    for _ in range(len(losses), recipe.epochs):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for images, labels in loader:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(device.type, enabled=mixed):
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            schedule.step()
            total += loss.detach()
        losses.append(total.item() / steps)
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"the training loss is {losses[-1]} after epoch {len(losses)}; a smaller lr than {recipe.lr} may help"
            )
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        bar.update()
        if resume is not None:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"generator": generator.get_state(), "losses": losses, "steps": steps}
            with paths.atomic(resume) as temporary:
                torch.save(state | {"recipe": dataclasses.asdict(recipe)}, temporary)
    bar.close()
    model.eval()
    return losses


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable, *, device: torch.device | str = "cpu") -> tuple[float, float]:
    """Accuracy (a fraction) and mean cross-entropy (nats) over batches of (images (B, C, H, W), labels (B,)).

    Pass a list of batches to have images read and normalised once for many networks.
    """
    model.to(device).eval()
    correct = seen = 0
    loss = torch.zeros((), dtype=torch.float64, device="cpu")
    for images, labels in batches:
        logits = model(images.to(device)).float()
        labels = labels.to(device)
        loss += F.cross_entropy(logits, labels, reduction="sum").cpu()
        correct += int((logits.argmax(dim=1) == labels).sum())
        seen += len(labels)
    if not seen:
        raise InputError("there are no images to evaluate on")
    return correct / seen, float(loss) / seen


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A contiguous CPU copy of a model's state dict, detached from the model."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def find_checkpoint(name: str) -> Path:
    """The file behind a path or the name of a shipped checkpoint.

    Raises:
        InputError: there is none; the line lists the shipped ones.
    """
    for candidate in (name, f"{name}.safetensors"):
        path = paths.resolve(candidate, paths.CHECKPOINTS)
        if path.is_file():
            return path
    shipped = ", ".join(sorted(p.stem for p in paths.CHECKPOINTS.glob("*.safetensors"))) or "none"
    raise InputError(f"checkpoint '{name}' does not exist; accepted: a path, or a shipped one ({shipped})")


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint on the CPU, told by content and not by suffix: safetensors, or a torch file of
    tensors only. Code in a pickle is never executed.

    Raises:
        InputError: the file is neither, or holds more than tensors.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:] == b"{":
        return load_file(path)
    try:
        with path.open("rb") as file:  # given a path, torch would look at its suffix
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds code ({culprit[1]}), which is never executed" if culprit else "it cannot be read"
        raise InputError(
            f"checkpoint {path} is refused: {reason}; accepted: safetensors or a torch file of tensors only"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(
            f"checkpoint {path} is refused: it is no state dict; accepted: a mapping from names to tensors"
        )
    return dict(state)


def load_state(model: nn.Module, state: dict[str, torch.Tensor], origin: str = "state dict") -> nn.Module:
    """Loads `state` into `model` (half precision is widened), after checking that every name and shape fits.

    Raises:
        InputError: naming what is missing, unexpected or of another shape. A missing num_batches_tracked is no misfit.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state and not name.endswith("num_batches_tracked")]
    for name, tensor in state.items():
        if name not in own:
            problems.append(f"{name} is unexpected")
        elif tensor.shape != own[name].shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
    if problems:
        raise InputError(f"{origin} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)
    return model


def save_checkpoint(path: Path, state: dict[str, torch.Tensor], sidecar: dict) -> None:
    """Writes `state` as safetensors and `sidecar` (plus the file's SHA-256) as JSON beside it, atomically."""
    with paths.atomic(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    with paths.atomic(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(sidecar | {"sha256": file_sha256(path)}, indent=1) + "\n")


def read_sidecar(path: Path) -> dict:
    """The JSON sidecar of a checkpoint, {} where a file from elsewhere has none."""
    sidecar = path.with_suffix(".json")
    return json.loads(sidecar.read_text()) if sidecar.is_file() else {}
