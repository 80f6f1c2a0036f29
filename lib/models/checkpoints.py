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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from .. import loaders, paths
from ..checks import InputError, first_line, nearest, unwrapped


def is_extra(name: str, value: object) -> bool:
    """Whether an entry of a state dict is no weight or statistic but what a module's `get_extra_state` gave, which may
    be anything."""
    return name.rpartition(".")[2] == "_extra_state" or not isinstance(value, Tensor)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A contiguous CPU copy of a model's state dict, detached from the model; of what it wraps, if it is a wrapper.
    Extra states are copied as they are."""
    state = unwrapped(model).state_dict()  # keeps the versions of the modules, which loading asks for
    for name, value in state.items():
        if is_extra(name, value):
            state[name] = copy.deepcopy(value)
        else:
            state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


def find_checkpoint(name: str) -> Path:
    """The file behind a path or the name of a shipped checkpoint; of a folder the index of the shards that lie in it.

    Raises:
        InputError: there is none; the line lists the shipped ones.
    """
    for candidate in (name, f"{name}.safetensors"):
        path = paths.resolve(candidate, paths.CHECKPOINTS)
        if os.path.isfile(path):
            return path
        if len(indices := sorted(path.glob("*.index.json")) if os.path.isdir(path) else []) == 1:
            return indices[0]
    folder = os.path.isdir(paths.resolve(name, paths.CHECKPOINTS))
    what = "is a folder without one *.index.json" if folder else "does not exist"
    shipped = sorted(path.stem for path in paths.CHECKPOINTS.glob("*.safetensors"))
    kinds = dict.fromkeys(stem.rpartition("-s")[0] or stem for stem in shipped)  # all seeds of all would fill a screen
    listed = ", ".join(f"{kind}-s…" for kind in kinds) or "none"
    raise InputError(
        f"checkpoint {name!r} {what}; accepted: a path, or a shipped one, {listed}{nearest(name, shipped)}"
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read, once: its tensors on the CPU, the SHA-256 of the file, and its sidecar ({} where a
    file from elsewhere has none)."""

    path: Path
    state: dict[str, Tensor]
    sha256: str
    sidecar: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        """How the network was trained, as far as the sidecar says."""
        return self.sidecar.get("spec", {})

    def has_seen(self, dataset: str) -> bool:
        """Whether it was trained on another data set whose training images hold all images of this one."""
        inside = loaders.SOURCES[dataset].part_of
        return bool(inside) and self.sidecar.get("dataset") == inside


ACCEPTED = "accepted: safetensors, a torch file of tensors, or the *.index.json of such files"

# What profilers (thop) and averages of weights leave among the weights.
_COUNTERS = ("total_ops", "total_params", "n_averaged")


def read_checkpoint(path: Path, sidecar: dict[str, Any] | None = None) -> Checkpoint:
    """A checkpoint, known by content and not by suffix: safetensors, a torch file of tensors, or the `*.index.json` of
    a checkpoint in several such files, which lie beside it. Code in a pickle is never executed.

    Of a torch file that holds a state dict among other things, as "state_dict", "model", "net" or otherwise, that entry
    is taken. Numbers and words beside tensors are left out.

    What can be checked is: the SHA-256 where a sidecar tells it, the CRC-32 that torch files carry, and that every
    value is a finite number. Damage to a safetensors file without a sidecar can be seen only where it breaks one of
    these or the format.

    Args:
        sidecar: what `read_sidecar` gave, where it has been read already.

    Raises:
        InputError: the file is none of these, holds code, no state dict or several, or is damaged.
    """
    content = _content(path)
    sidecar = read_sidecar(path) if sidecar is None else sidecar
    sha256 = hashlib.sha256(content).hexdigest()
    if sidecar.get("sha256") not in (None, sha256):
        raise InputError(
            f"checkpoint {path} is refused: its SHA-256 is not the one in {path.with_suffix('.json').name}, so it was "
            "damaged or replaced; accepted: the file as it was saved, or one without a sidecar"
        )
    if path.name.endswith(".index.json"):
        shards = [(shard, _content(shard)) for shard in _shards(path, content)]
        sha256 = hashlib.sha256(content + b"".join(hashlib.sha256(part).digest() for _, part in shards)).hexdigest()
        state = {name: tensor for shard, part in shards for name, tensor in _state(shard, part).items()}
        if absent := [name for name in json.loads(content)["weight_map"] if name not in state]:
            raise InputError(f"checkpoint {path} is refused: none of its files holds {_few(absent, ', ')}; {ACCEPTED}")
    else:
        state = _state(path, content)
    return Checkpoint(path, state, sha256, sidecar)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error.strerror}; {ACCEPTED}") from None


def _shards(index: Path, content: bytes) -> list[Path]:
    """The files that an index names, which have to lie beside it."""
    try:
        names = list(dict.fromkeys(json.loads(content)["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"checkpoint {index} is refused: it is no index; accepted: JSON whose weight_map says which file beside it "
            "holds each tensor"
        ) from None
    return [index.with_name(name) for name in names]


def _state(path: Path, content: bytes) -> dict[str, Tensor]:
    """The state dict in the content of a file; raises as `read_checkpoint`."""
    try:
        held = safetensors.torch.load(content) if content[8:9] == b"{" else _load_torch(content)
    except Exception as error:  # a damaged file can make the libraries raise anything
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds code ({culprit[1]}), which is never executed" if culprit else "it cannot be read"
        # torch begins with how to run the code all the same
        told = re.search(r"WeightsUnpickler error: (.+)", str(error))
        why = "" if culprit else f" ({told[1].strip() if told else first_line(error)})"
        raise InputError(f"checkpoint {path} is refused: {reason}{why}; {ACCEPTED}") from None
    entries = {"": held} if _is_state(held) else held if isinstance(held, Mapping) else {}
    found = {name: entry for name, entry in entries.items() if _is_state(entry)}
    if len(found) > 1:  # numbers that were measured are no weights
        found = {name: entry for name, entry in found.items() if any(getattr(x, "ndim", 0) for x in entry.values())}
    if len(found) > 1:
        names = ", ".join(map(repr, found))
        raise InputError(
            f"checkpoint {path} is refused: it holds several state dicts ({names}); accepted: a file of one, as "
            f"torch.save(torch.load(path)[{next(iter(found))!r}], other_path) writes it"
        )
    if not found:
        raise InputError(
            f"checkpoint {path} is refused: it is no state dict; accepted: a mapping from names to tensors, or one "
            "that holds one, as 'state_dict', say"
        )
    (entry,) = found.values()
    state = {name: tensor.detach() for name, tensor in entry.items() if isinstance(tensor, Tensor)}
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InputError(f"checkpoint {path} is refused: {name} is sparse or quantised; accepted: dense tensors")
    _refuse_not_finite(state, f"checkpoint {path}")
    return state


def _is_state(held: Any) -> bool:
    """Whether it maps names to tensors, and to fewer numbers and words beside them."""
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        return False
    plain = (Tensor, int, float, str, bytes, type(None), np.generic)
    tensors = sum(isinstance(x, Tensor) for x in held.values())
    return 2 * tensors > len(held) and all(isinstance(x, plain) for x in held.values())


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint (`read_checkpoint`)."""
    return read_checkpoint(path).state


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of a state dict, extra states left out, in hexadecimal: the same
    for the same weights, whatever file they came from."""
    return hashlib.sha256(_as_safetensors(state)).hexdigest()


def _as_safetensors(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors, which hold tensors only: extra states are left out, and one tensor of two names is
    two."""
    tensors = {name: t.contiguous() for name, t in state.items() if not is_extra(name, t)}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return safetensors.torch.save(tensors)


# What a number of NumPy's, an accuracy beside the weights, say, is made of in a pickle: data, no code.
_NUMBERS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in np.typecodes["All"] if issubclass(np.dtype(kind).type, np.number | np.bool_)},
]


def _load_torch(content: bytes) -> Any:
    """What a torch file holds, its checksums verified (torch does not) and no code in it executed."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it does not have its checksum")
    with torch.serialization.safe_globals(_NUMBERS):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _refuse_not_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Raises InputError, naming the tensors of `state` that hold NaN or Inf (as float32)."""
    floats = {name: t for name, t in state.items() if not is_extra(name, t) and t.is_floating_point()}
    bad = [name for name, t in floats.items() if not torch.isfinite(t.float()).all()]
    if bad:
        raise InputError(f"{what} is refused: NaN or Inf in {_few(bad, ', ')}; accepted: finite numbers")


def _few(items: list[str], separator: str) -> str:
    """The first three of a list, and how many more there are."""
    more = [f"and {len(items) - 3:,} more"] if len(items) > 3 else []
    return separator.join(items[:3] + more)


def fitting(model: nn.Module, state: Mapping[str, Tensor], origin: str = "state dict") -> dict[str, Tensor]:
    """`state`, complete and in the order of the model's own, after checking that every name, shape and kind of number
    fits. A missing num_batches_tracked or extra state is no misfit: it is the model's.

    A prefix that all names have, such as DataParallel's "module.", torch.compile's "_orig_mod." or Lightning's
    "model.", is dropped where more names are the model's without it, and profilers' counters are left out; a printed
    line says so.

    Args:
        model: the network, or what wraps it (`checks.unwrapped`).
        origin: what the error calls the state.

    Raises:
        InputError: naming what is missing, unexpected or different.
    """
    model = unwrapped(model)
    own = model.state_dict()
    left = [name for name in state if name not in own and name.rpartition(".")[2] in _COUNTERS]
    kept = {name: tensor for name, tensor in state.items() if name not in left}
    prefix = _prefix(kept, own)
    kept = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    needed = [name for name in own if not name.endswith("num_batches_tracked") and not is_extra(name, own[name])]
    missing = [f"{name} is missing" for name in needed if name not in kept]
    unexpected = [f"{name} is unexpected" for name in kept if name not in own]
    different = []
    for name, like in own.items():
        tensor = kept.get(name, like)
        if is_extra(name, like):
            continue
        if tensor.shape != like.shape:
            different.append(f"{name} is {tuple(tensor.shape)}, not {tuple(like.shape)}")
        elif tensor.is_floating_point() != like.is_floating_point() or tensor.is_complex():
            different.append(f"{name} is {tensor.dtype}, not {like.dtype}".replace("torch.", ""))
    problems = [_few(some, "; ") for some in (missing, unexpected, different) if some]
    if problems:
        raise InputError(f"{origin} does not fit {type(model).__name__}: {'; '.join(problems)}")
    if prefix:
        print(f"{origin}: '{prefix}' before all names is dropped", flush=True)
    if left:
        print(f"{origin}: {_few(left, ', ')} left out, which are no weights", flush=True)
    own.update(kept)  # keeps the versions of the modules, which loading asks for
    return own


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands before all names of `state` and leaves the most names of `own` without it: "" or "a.b."."""
    parts = next(iter(state), "").split(".")
    prefixes = [".".join(parts[:i]) + "." for i in range(1, len(parts))]
    common = ["", *(prefix for prefix in prefixes if all(name.startswith(prefix) for name in state))]
    return max(common, key=lambda prefix: sum(name.removeprefix(prefix) in own for name in state))


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], origin: str = "state dict", *, assign: bool = False
) -> nn.Module:
    """Loads `state` into `model` (floating types are converted to the model's) if it fits.

    Args, Raises: as in `fitting`.
        assign: whether the model takes the state's own tensors, where they have its types, in place of copies; weights
            that it ties are tied no more then.
    """
    state = fitting(model, state, origin)
    if assign:
        own = unwrapped(model).state_dict()
        state |= {name: state[name].to(like.dtype) for name, like in own.items() if not is_extra(name, like)}
    unwrapped(model).load_state_dict(state, assign=assign)
    return model


def save_checkpoint(
    path: Path, state: Mapping[str, Tensor], sidecar: Mapping[str, Any], card: str | None = None
) -> Checkpoint:
    """Writes `state` (without extra states) as safetensors, `sidecar` (plus the file's SHA-256) as JSON and `card`, if
    given, as Markdown beside it, none of them before all are whole; returns the first two.

    Raises:
        InputError: the name does not end in .safetensors, a tensor holds NaN or Inf, or the disk refuses; nothing is
            written then.
    """
    _check_suffix(path)
    _refuse_not_finite(state, f"saving {path}")
    content = _as_safetensors(state)
    sidecar = {**sidecar, "sha256": hashlib.sha256(content).hexdigest()}
    texts = {} if card is None else {".md": card}
    texts[".json"] = json.dumps(sidecar, indent=1) + "\n"
    with ExitStack() as stack:  # the last to be entered is the first to take its place
        for suffix, text in texts.items():
            stack.enter_context(paths.atomic(path.with_suffix(suffix))).write_text(text, encoding="utf-8")
        stack.enter_context(paths.atomic(path)).write_bytes(content)
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
            ("spec.options", spec.get("options"), lambda value: isinstance(value, dict)),
        ):
            if value is not None and not right(value):
                raise ValueError(f"{name} is {value!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"sidecar {sidecar} is broken ({first_line(error)}); accepted: the JSON that was saved with the "
            "checkpoint, or no such file"
        ) from None
    return content
