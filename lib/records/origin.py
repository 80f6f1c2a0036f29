"""Where a run's numbers come from."""

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..paths import IS_CLONE, NOTEBOOKS, ROOT

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pygmtools", "matplotlib", "papermill", "ffcv", "mlxtend")

NOTEBOOK = "FUSEBOOK_NOTEBOOK"  # in the environment of a kernel: the notebook that it runs
ANNOUNCED = "FUSEBOOK_PLACES"  # likewise: a file in which a run says, as JSON, where its "record" and its "folder" lie
PLACES = ("results_path", "figures_dir", "save_aligned")  # parameters that say where a run writes, and nothing else
BARE = ("preset",)  # in the name of a run's folder: other texts could be of several parameters, as checkpoint_a and _b
LONGEST = 120  # characters in the name of a run


def portable(path: str | os.PathLike) -> str:
    """`path` relative to the repo's root, or its bare name outside: no home folder enters a record."""
    path = Path(path).expanduser()
    absolute = Path(os.path.abspath(path if path.is_absolute() else Path.cwd() / path))
    return absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else absolute.name


def provenance(parameters: Mapping[str, Any], dataset: Any, device: Any, started: datetime) -> dict[str, Any]:
    """Where a run's numbers come from: code, versions, hardware, time, data and parameters.

    `dataset` is a loaders.Dataset (or None for a study without one), `device` a torch.device or its name,
    `started` an aware datetime such as datetime.now(UTC); "seconds" runs from it until this call. "git" and
    "dirty" are null outside a git checkout; "dirty" looks at the code and ignores what runs write (data/,
    figures/, checkpoints/). Parameters that are paths leave the repo only as bare file names. "notebook" is there where
    the run came from one (`notebook_of_run`), and a line is printed if that was edited.
    """
    import torch  # here alone: rebuilding figures and tables from records must not need torch

    if started.tzinfo is None:
        raise ValueError("started: a naive datetime; datetime.now(UTC) is what is meant")
    device = torch.device(device)
    commit, notebook = _git("rev-parse", "HEAD"), notebook_of_run()
    if notebook and notebook["edited"]:
        print(f"{notebook['file']} was edited: the record says so and holds the hash of its cells")
    changes = _git("status", "--porcelain", "--", ".", ":!data", ":!figures", ":!checkpoints")
    return {
        "git": commit,
        "dirty": None if commit is None or changes is None else bool(changes),
        "versions": _versions(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        "dataset_sha256": getattr(dataset, "sha256", None),
        "parameters": recorded(parameters),
    } | ({"notebook": notebook} if notebook else {})


def notebook_of_run() -> dict[str, Any] | None:
    """The notebook that this kernel runs, as saved: "file", "sha256" (`cells_hash`) and whether it was "edited", which
    is to differ in its cells from the committed notebook of that name, without git from that in notebooks/; null where
    there is none. None outside a notebook, or where Jupyter does not say which it is."""
    typed = os.environ.get(NOTEBOOK) or os.environ.get("JPY_SESSION_NAME")  # set by lib.batch; by Jupyter
    if not typed or not Path(typed).is_file():
        return None
    path, edited = Path(typed), None
    own = cells_hash(path.read_text(encoding="utf-8", errors="replace"))
    original = NOTEBOOKS / path.name
    committed = _git("show", f"HEAD:notebooks/{path.name}")
    if committed is not None:
        edited = own != cells_hash(committed)
    elif original.is_file() and not original.samefile(path):
        edited = own != cells_hash(original.read_text(encoding="utf-8", errors="replace"))
    return {"file": portable(path), "sha256": own, "edited": edited}


def notebook_defaults(stem: str) -> dict[str, Any]:
    """The parameters of a notebook in notebooks/, as its cell has them; {} where there is none of that name."""
    try:
        cells = json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):
        return {}
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    return {
        line.target.id: ast.literal_eval(line.value)
        for line in ast.parse("\n".join(tagged)).body
        if isinstance(line, ast.AnnAssign)
    }


def run_name(stem: str, parameters: Mapping[str, Any], bare: Container[str] | None = None) -> str:
    """A file name for a run: vgg11_cifar10_w0.125-s0, that is the notebook, the width, other parameters, the seed of A.
    What is too long for a name ends in a hash of it all.

    Args:
        bare: parameters whose texts stand without their names; by default all, as in a grid, whose axes are known.
    """
    others = [name for name in parameters if name not in ("width", "seed_a")]
    bare = others if bare is None else bare
    parts = [f"w{text(parameters['width'])}"] if parameters.get("width") is not None else []
    parts += [
        f"{'' if isinstance(parameters[name], str) and name in bare else name}{text(parameters[name])}"
        for name in others
    ]
    parts += [f"s{text(parameters['seed_a'])}"] if "seed_a" in parameters else []
    name = re.sub(r"[^\w.+-]+", "_", "_".join([stem] + ["-".join(parts)] * bool(parts)))
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def text(value: object) -> str:
    """A parameter's value as it stands in a name."""
    if isinstance(value, list):
        return "+".join(map(text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cells_hash(notebook: str) -> str:
    """SHA-256 of what the cells of a notebook (its JSON) hold, not of what they put out; of other text that of all."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        cells = json.loads(notebook)["cells"]
        notebook = json.dumps([[cell["cell_type"], "".join(cell["source"])] for cell in cells])
    return hashlib.sha256(notebook.encode()).hexdigest()


def _git(*arguments: str) -> str | None:
    """What git prints; None where there is no checkout, or where ROOT is a user's folder, whose commit is not ours."""
    if not IS_CLONE:
        return None

    def run(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        # A copy unpacked inside somebody else's repo must not report that repo's commit.
        return run(*arguments) if Path(run("rev-parse", "--show-toplevel")).samefile(ROOT) else None
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _device_name(device: Any) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {device.type}"
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, subprocess.SubprocessError, StopIteration):
        return platform.processor() or platform.machine()


def recorded(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A run's parameters as its record holds them: as JSON does, and paths outside the repo as bare file names."""

    def outside(value: Any) -> bool:
        return isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", "..")))

    return {name: portable(value) if outside(value) else _plain(value) for name, value in parameters.items()}


def _plain(value: Any) -> Any:
    """`value` as JSON holds it. Not-finite numbers become null: a fused network may well diverge."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return portable(value)
    if not isinstance(value, str | bool | int | float | None) and hasattr(value, "tolist"):
        return _plain(value.tolist())  # numpy and torch scalars and tensors
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
