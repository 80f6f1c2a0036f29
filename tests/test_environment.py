"""The pip route, the conda route and the pins name the same packages, so that none of them drifts alone."""

import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.paths import ROOT

# Where conda-forge calls a package by another name than PyPI does.
PYPI_NAME = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def ranges(lines: list[str]) -> dict[str, str]:
    """{canonical PyPI name: version range} of requirement lines, pip's or conda's."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        name = PYPI_NAME.get(requirement.name, requirement.name)
        found[canonicalize_name(name)] = str(requirement.specifier)
    return found


def test_conda_names_the_same_set_with_the_same_ranges(project, conda):
    extras = project["optional-dependencies"]
    wanted = ranges(project["dependencies"] + extras["sweep"] + extras["dev"])

    (from_pip,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    assert "-e ." in from_pip, "the repo itself"
    named = ranges([entry for entry in conda["dependencies"] if isinstance(entry, str) and entry != "pip"])
    assert project["requires-python"] in named.pop("python").split(",")
    assert named.keys().isdisjoint(ranges([entry for entry in from_pip if entry != "-e ."]))
    assert named | ranges([entry for entry in from_pip if entry != "-e ."]) == wanted


def test_constraints_pin_every_direct_dependency_within_its_range(project):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = ranges([line for line in lines if line and not line.startswith("#")])
    assert all(pin.startswith("==") for pin in pins.values())

    direct = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    for requirement in map(Requirement, direct):
        pin = pins[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(pin), f"{requirement} but pinned to {pin}"
