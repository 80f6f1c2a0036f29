"""Importing what the notebooks import loads no package that only some calls need: they take seconds, and are imported
where they are used."""

import ast
import json
import os
import subprocess
import sys

import nbformat

from lib import paths

LATER = {
    "torchvision", "torch._dynamo", "torch._inductor", "sympy", "pyarrow", "mlxtend", "pygmtools", "pandas", "scipy",
    "sklearn", "papermill", "nbformat", "snakemake", "ffcv", "numba", "cv2", "flwr",
}  # fmt: skip
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


def imports(path) -> list[str]:
    """The statements of a notebook that import from lib."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = (node for cell in cells for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.ImportFrom))
    return [ast.unparse(node) for node in nodes if node.module.partition(".")[0] == "lib"]


def loaded(statements: list[str]) -> set[str]:
    """The modules that a new process holds after these statements."""
    code = "\n".join([*statements, "import json, sys", "print(json.dumps(list(sys.modules)))"])
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}  # lib set it here
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=paths.ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_notebooks_imports_load_nothing_that_only_some_calls_need():
    statements = [statement for path in NOTEBOOKS for statement in imports(path)]
    assert all(map(imports, NOTEBOOKS)), "a notebook that imports nothing from lib"
    modules = loaded(statements)
    assert "torch" in modules and not modules & LATER


def test_lib_itself_sets_the_environment_before_torch_and_loads_nothing():
    modules = loaded(["import lib, os", "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"])
    assert not modules & (LATER | {"torch", "numpy", "matplotlib", "tqdm"})
