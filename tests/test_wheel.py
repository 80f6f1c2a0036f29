"""The wheel: package `fusebook`, used from a folder where no clone can be seen."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lib.paths import ROOT

pytest.importorskip("hatchling")

USE = """
import importlib.util, json, os, pkgutil, sys

import fusebook as fb
import torch
from fusebook import symmetry
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()

torch.manual_seed(0)
a, b, x = mlp(), mlp(), torch.randn(64, 6)
groups = symmetry.trace(a, x[:4])
symmetry.prove(a, groups, x[:4])
perms = {name: torch.randperm(group.size) for name, group in groups.items()}
b.load_state_dict(symmetry.act(a.state_dict(), groups, perms))
y = fb.fuse([a, b], images=x, progress=False).model()(x)
torch.testing.assert_close(y, a(x), atol=1e-4, rtol=1e-4)  # two copies of one network, in other orders

modules = [module.name for module in pkgutil.walk_packages(fb.__path__, "fusebook.")]
for name in modules:
    if not name.endswith((".__main__", ".ffcv", ".flower")):
        importlib.import_module(name)
names = ("ROOT", "DATA", "CACHE", "CHECKPOINTS", "RESULTS", "FIGURES")
folders = {name: str(getattr(fb.paths, name)) for name in names}
print(json.dumps({
    "clone": fb.paths.IS_CLONE,
    "groups": len(groups),
    "modules": len(modules),
    "lib": importlib.util.find_spec("lib") is not None,
    "path": sys.path,
    "files": [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)],
    "folders": folders | {name: os.environ[name] for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "IPYTHONDIR")}
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_lib_as_fusebook_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {"fusebook/paper/fusebook.mplstyle", "fusebook/batch/sweep.smk"} <= names
    files = {file.relative_to(ROOT / "lib") for file in (ROOT / "lib").rglob("*.*") if "__pycache__" not in file.parts}
    assert names == {f"fusebook/{file.as_posix()}" for file in files}


def listed(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment in which the wheel is installed beside the packages of this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], check=True)
    # without what the packages' own .pth files name: one of them is the clone
    packages = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site(python) / "packages.pth").write_text("\n".join(packages))
    return programs


def site(python: Path) -> Path:
    purelib = [python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(purelib, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def elsewhere(tmp_path: Path) -> dict[str, object]:
    """How a program is run in an empty folder, by a user without a home and without settings of ours."""
    working = tmp_path / "working"
    working.mkdir()
    ours = ("FUSEBOOK_", "XDG_", "IPYTHONDIR", "MPL", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"HOME": str(tmp_path / "nowhere"), "PYTHONDONTWRITEBYTECODE": "1"}
    return {"cwd": working, "env": environment, "capture_output": True, "text": True}


def test_it_fuses_two_networks_where_no_clone_can_be_seen(installed, tmp_path):
    python, place = installed / "python", elsewhere(tmp_path)
    working, before = place["cwd"], listed(site(installed / "python"))
    done = subprocess.run([python, "-I", "-B", "-c", USE], **place)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])

    assert not told["clone"] and told["groups"] == 2 and told["modules"] > 30
    assert not told["lib"] and str(ROOT) not in told["path"]
    assert not [file for file in told["files"] if Path(file).is_relative_to(ROOT / "lib")]
    assert told["folders"].pop("ROOT") == str(working)
    assert all(Path(folder).is_relative_to(working) for folder in told["folders"].values()), told["folders"]
    assert listed(site(python)) == before


OWN = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
"""

SAVE = """
import numpy, torch
from own import make
for name in "ab":
    torch.save(make().state_dict(), f"{name}.pt")
numpy.savez("data.npz", images=torch.randn(64, 6).numpy(), labels=torch.arange(64).numpy() % 3)
"""


def test_the_command_fuses_checkpoints_of_ones_own_in_any_folder(installed, tmp_path):
    place = elsewhere(tmp_path)
    (place["cwd"] / "own.py").write_text(OWN)
    subprocess.run([installed / "python", "-B", "-c", SAVE], **place, check=True)
    data = ["--model", "own:make", "--images", "data.npz", "--test", "data.npz"]
    done = subprocess.run([installed / "fusebook", "fuse", "a.pt", "b.pt", *data], **place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "wrote fused.safetensors, fused.json, fused.md"
    card = (place["cwd"] / "fused.md").read_text()
    assert "| **fused** |" in card and str(tmp_path) not in card
    again = subprocess.run([installed / "python", "-B", "-m", "fusebook", "fuse", "a.pt", "b.pt", *data], **place)
    assert again.returncode == 2 and again.stderr.startswith("fused.safetensors is there already")
    usage = subprocess.run([installed / "fusebook", "--help"], **place)
    assert usage.returncode == 0 and usage.stdout.startswith("usage: fusebook ")
