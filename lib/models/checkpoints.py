"""Checkpoints in and out: safe, checked, told by content."""

import copy
import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from .. import paths
from ..checks import InputError, first_line


def is_extra(name: str, value: object) -> bool:
    """Whether an entry of a state dict is no weight or statistic but what a module's `get_extra_state` gave, which may
    be anything."""
    return name.rpartition(".")[2] == "_extra_state" or not isinstance(value, torch.Tensor)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A contiguous CPU copy of a model's state dict, detached from the model; extra states are copied as they are."""
    state = model.state_dict()  # keeps the versions of the modules, which loading asks for
    for name, value in state.items():
        if is_extra(name, value):
            state[name] = copy.deepcopy(value)
        else:
            state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


def find_checkpoint(name: str) -> Path:
    """The file behind a path or the name of a shipped checkpoint.

    Raises:
        InputError: there is none; the line lists the shipped ones.
    """
    for candidate in (name, f"{name}.safetensors"):
        path = paths.resolve(candidate, paths.CHECKPOINTS)
        if os.path.isfile(path):
            return path
    what = "is a folder" if os.path.isdir(paths.resolve(name, paths.CHECKPOINTS)) else "does not exist"
    shipped = ", ".join(sorted(p.stem for p in paths.CHECKPOINTS.glob("*.safetensors"))) or "none"
    raise InputError(f"checkpoint {name!r} {what}; accepted: a path, or a shipped one ({shipped})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read, once: its tensors on the CPU, the SHA-256 of the file, and its sidecar ({} where a
    file from elsewhere has none)."""

    path: Path
    state: dict[str, torch.Tensor]
    sha256: str
    sidecar: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        """How the network was trained, as far as the sidecar says."""
        return self.sidecar.get("spec", {})


def read_checkpoint(path: Path, sidecar: dict[str, Any] | None = None) -> Checkpoint:
    """A checkpoint, known by content and not by suffix: safetensors, or a torch file of tensors only. Code in a pickle
    is never executed.

    Of a torch file with an entry "state_dict" that entry is taken. Where all names begin with "module.", as
    `nn.DataParallel` saves them, the prefix is dropped.

    What can be checked is: the SHA-256 where a sidecar tells it, the CRC-32 that torch files carry, and that every
    value is a finite number. Damage to a safetensors file without a sidecar can be seen only where it breaks one of
    these or the format.

    Args:
        sidecar: what `read_sidecar` gave, where it has been read already.

    Raises:
        InputError: the file is neither, holds more than tensors, or is damaged.
    """
    accepted = "accepted: safetensors or a torch file of tensors only"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error.strerror}; {accepted}") from None
    sidecar = read_sidecar(path) if sidecar is None else sidecar
    sha256 = hashlib.sha256(content).hexdigest()
    if sidecar.get("sha256") not in (None, sha256):
        raise InputError(
            f"checkpoint {path} is refused: its SHA-256 is not the one in {path.with_suffix('.json').name}, so it was "
            "damaged or replaced; accepted: the file as it was saved, or one without a sidecar"
        )
    try:
        state = safetensors.torch.load(content) if content[8:9] == b"{" else _load_torch(content)
    except Exception as error:  # a damaged file can make the libraries raise anything
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds code ({culprit[1]}), which is never executed" if culprit else "it cannot be read"
        why = "" if culprit else f" ({first_line(error)})"
        raise InputError(f"checkpoint {path} is refused: {reason}{why}; {accepted}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise InputError(
            f"checkpoint {path} is refused: it is no state dict; accepted: a mapping from names to tensors, or one "
            "that holds it as 'state_dict'"
        )
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    state = {name.removeprefix(prefix): tensor.detach() for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InputError(f"checkpoint {path} is refused: {name} is sparse or quantised; accepted: dense tensors")
    _refuse_not_finite(state, f"checkpoint {path}")
    return Checkpoint(path, state, sha256, sidecar)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint (`read_checkpoint`)."""
    return read_checkpoint(path).state


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of a state dict, extra states left out, in hexadecimal: the same
    for the same weights, whatever file they came from."""
    return hashlib.sha256(_content(state)).hexdigest()


def _content(state: Mapping[str, torch.Tensor]) -> bytes:
    """A state dict as safetensors, which hold tensors only: extra states are left out."""
    return safetensors.torch.save({name: t.contiguous() for name, t in state.items() if not is_extra(name, t)})


def _load_torch(content: bytes) -> Any:
    """What a torch file holds, its checksums verified (torch does not) and no code in it executed."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it does not have its checksum")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _refuse_not_finite(state: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises InputError, naming the tensors of `state` that hold NaN or Inf (as float32)."""
    floats = {name: t for name, t in state.items() if not is_extra(name, t) and t.is_floating_point()}
    bad = [name for name, t in floats.items() if not torch.isfinite(t.float()).all()]
    if bad:
        raise InputError(f"{what} is refused: NaN or Inf in {_few(bad, ', ')}; accepted: finite numbers")


def _few(items: list[str], separator: str) -> str:
    """The first three of a list, and how many more there are."""
    more = [f"and {len(items) - 3:,} more"] if len(items) > 3 else []
    return separator.join(items[:3] + more)


def fitting(model: nn.Module, state: Mapping[str, torch.Tensor], origin: str = "state dict") -> dict[str, torch.Tensor]:
    """`state`, complete and in the order of the model's own, after checking that every name, shape and kind of number
    fits. A missing num_batches_tracked or extra state is no misfit: it is the model's.

    Args:
        origin: what the error calls the state.

    Raises:
        InputError: naming what is missing, unexpected or different.
    """
    own = model.state_dict()
    needed = (name for name in own if not name.endswith("num_batches_tracked") and not is_extra(name, own[name]))
    problems = [f"{name} is missing" for name in needed if name not in state]
    for name, tensor in state.items():
        if name not in own:
            problems.append(f"{name} is unexpected")
        elif is_extra(name, own[name]):
            continue
        elif tensor.shape != own[name].shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
        elif tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex():
            problems.append(f"{name} is {tensor.dtype}, not {own[name].dtype}".replace("torch.", ""))
    if problems:
        raise InputError(f"{origin} does not fit {type(model).__name__}: {_few(problems, '; ')}")
    own.update(state)  # keeps the versions of the modules, which loading asks for
    return own


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], origin: str = "state dict") -> nn.Module:
    """Loads `state` into `model` (floating types are converted to the model's) if it fits.

    Args, Raises: as in `fitting`.
    """
    model.load_state_dict(fitting(model, state, origin))
    return model


def save_checkpoint(path: Path, state: Mapping[str, torch.Tensor], sidecar: Mapping[str, Any]) -> Checkpoint:
    """Writes `state` (without extra states) as safetensors and `sidecar` (plus the file's SHA-256) as JSON beside it,
    each atomically; returns both.

    Raises:
        InputError: the name does not end in .safetensors, a tensor holds NaN or Inf, or the disk refuses; nothing is
            written then.
    """
    _check_suffix(path)
    _refuse_not_finite(state, f"saving {path}")
    content = _content(state)
    sidecar = {**sidecar, "sha256": hashlib.sha256(content).hexdigest()}
    with paths.atomic(path) as temporary:
        temporary.write_bytes(content)
    with paths.atomic(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n")
    return Checkpoint(path, dict(state), sidecar["sha256"], sidecar)


def _check_suffix(path: Path) -> None:
    # net.v1 and net.v2 would share the sidecar net.json
    if path.suffix != ".safetensors":
        raise InputError(f"saving {path} is refused: its name does not end in .safetensors")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON sidecar of a checkpoint, {} where a file from elsewhere has none.

    Raises:
        InputError: there is one, and it is not what `save_checkpoint` writes.
    """
    sidecar = path.with_suffix(".json")
    if sidecar == path or not sidecar.exists():
        return {}
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        spec = content.get("spec", {}) if isinstance(content, dict) else None
        if not isinstance(spec, dict):
            raise ValueError("it is no object, or its spec is none")
        for name, value, right in (
            ("sha256", content.get("sha256"), lambda value: isinstance(value, str)),
            ("spec.seed", spec.get("seed"), lambda value: type(value) is int),
            ("spec.width", spec.get("width"), lambda value: type(value) in (int, float) and 0 < value < math.inf),
        ):
            if value is not None and not right(value):
                raise ValueError(f"{name} is {value!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"sidecar {sidecar} is broken ({first_line(error)}); accepted: the JSON that was saved with the "
            "checkpoint, or no such file"
        ) from None
    return content
