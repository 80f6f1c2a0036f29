"""`python -m lib.batch notebooks/X.ipynb -p epochs 3`: papermill with checked parameters, what `make` calls.

papermill only warns about an unknown parameter and guesses types. Here names and types are checked against
the notebook's parameters cell before a kernel starts; the run is shown live; the executed copy appears only
when the notebook ended well.
"""

import argparse
import ast
import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TextIO

import papermill
import yaml
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

from ..checks import InputError, check_known, first_line, split_outside
from ..paths import LOCAL, NOTEBOOKS, atomic, resolve
from ..records.origin import NOTEBOOK

# It prints what a NotebookError says in one line.
logging.getLogger("papermill").addHandler(logging.NullHandler())


class NotebookError(RuntimeError):
    """A notebook failed: with what, and where the copy lies that shows how far it came."""


class OwnKernel(AsyncKernelManager):
    """The kernel of the interpreter that runs this module, whatever `python3` is registered elsewhere."""

    folder: Path  # of its sockets, and of the file `stderr`
    notebook: Path | None = None  # which its record will name

    def __init__(self, **options: object) -> None:
        # Not TCP, whose free ports another kernel that starts meanwhile may take; but it is what Windows has, and a
        # folder whose path is too long for sockets.
        with suppress(AttributeError, OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(self.folder / "kernel-ipc-0"))
            options |= {"transport": "ipc", "connection_file": str(self.folder / "kernel.json")}
        super().__init__(**options)

    async def start_kernel(self, **options: object) -> None:
        with (self.folder / "stderr").open("wb") as stderr:
            if self.notebook:
                options["env"] = {**(options.get("env") or os.environ), NOTEBOOK: str(self.notebook)}
            await super().start_kernel(**options, stderr=stderr)

    @property
    def kernel_spec(self) -> KernelSpec:
        # Not: debugpy on frozen modules, ipykernel on plain TCP or, at Ctrl-C, on its closed socket.
        return KernelSpec(**get_kernel_dict(["--log-level=CRITICAL"], ["-Xfrozen_modules=off"]))


@contextmanager
def own_kernel(notebook: Path | None = None) -> Iterator[type[OwnKernel]]:
    """A kernel manager of one kernel that runs a notebook; its folder is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as folder:
        Path(folder, "stderr").touch()
        yield type("Kernel", (OwnKernel,), {"folder": Path(folder), "notebook": notebook and Path(notebook).absolute()})


class Live:
    """One of a notebook's two streams on the terminal. They arrive in bursts, a bar's closing newline often
    after what was printed later: a line that one stream left open is ended before the other one writes."""

    open: "Live | None" = None

    def __init__(self, stream: TextIO):
        self.stream, self.broken = stream, False

    def write(self, text: str) -> None:
        if Live.open not in (None, self):
            Live.open.broken = True
            print(file=Live.open.stream, flush=True)
        self.stream.write(text[1:] if self.broken and text.startswith("\n") else text)
        self.broken, Live.open = False, None if text.endswith("\n") else self

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        """Ends the line that either stream left open."""
        if Live.open:
            Live.open.write("\n")
        self.flush()


def convert(value: object, kind: str, item: str = "") -> object:
    """`value`, as typed on the command line or as YAML read it, in the type `kind` (of `item`s, for a list).

    Raises ValueError or TypeError where it does not fit: 1e3 is an int, 0.5 and true are not.
    """
    if kind in ("list", "tuple"):
        if isinstance(value, str):
            value = _listed(value)
        if isinstance(value, list):
            return [convert(entry, item) for entry in value]
    elif kind == "str":
        if isinstance(value, str):
            return value
    elif kind in ("int", "float"):
        if isinstance(value, bool):
            raise TypeError
        if kind == "float":
            return float(value)
        if abs(float(value)) < 2**64 and Fraction(value).denominator == 1:  # Fraction("1e99999999") would take for ever
            return int(Fraction(value))
    else:
        value = yaml.safe_load(value) if isinstance(value, str) else value
        if kind in ("", "NoneType", type(value).__name__):
            return value
    raise TypeError


def _listed(text: str) -> object:
    """The items of a list that was typed, with its brackets or without, as text: YAML takes 1e-3 for text, no for a
    boolean. A comma in an option's brackets, graph(solver=ipfp, restarts=3), parts no items."""
    text = text if text.lstrip().startswith("[") else f"[{text}]"
    if re.fullmatch(r"\s*\[[^\[\]\"'{}]*\]\s*", text) and "(" in text:
        return [item.strip() for item in split_outside(text.strip()[1:-1])]
    return yaml.load(text, yaml.BaseLoader)


def find_notebook(typed: str) -> Path:
    """The notebook behind a path or a name in notebooks/. Raises InputError, which lists those, where there is none."""
    for name in (typed, f"{typed}.ipynb"):
        if (path := resolve(name, NOTEBOOKS)).is_file():
            return path
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    raise InputError(f"no notebook {typed}; accepted: a path{', or one of ' * bool(names)}{', '.join(names)}")


def parameters_of(notebook: Path) -> dict[str, dict]:
    """The parameters of a notebook, as papermill infers them. Raises InputError for a file that is no notebook."""
    try:
        return papermill.inspect_notebook(notebook)
    except Exception as error:  # a damaged file can make nbformat raise anything
        raise InputError(f"{notebook.name} is no notebook: {first_line(error)[:100]}") from None


def check_parameters(notebook: Path, given: dict[str, object]) -> dict[str, object]:
    """`given` in the types that the notebook's parameters cell declares (by annotation, else by default).

    Raises InputError for a name that the cell does not have and for a value of another type.
    """
    known = parameters_of(notebook)
    checked = {}
    for name, value in given.items():
        check_known(name, known, notebook.name)
        try:
            default = ast.literal_eval(known[name]["default"])
        except (ValueError, SyntaxError):  # an expression: only the annotation tells
            default = None
        declared = re.findall(r"\w+", known[name]["inferred_type_name"])
        types = [word for word in declared if word not in ("None", "Optional")] or [type(default).__name__]
        if types in (["list"], ["tuple"]) and default:
            types.append(type(default[0]).__name__)
        try:
            empty = default is None and value in (None, "None", "null", "")
            checked[name] = None if empty else convert(value, *types[:2])
        except (ValueError, TypeError, OverflowError, ZeroDivisionError, yaml.YAMLError):
            wanted, default = "[".join(types[:2]) + "]" * (len(types) > 1), known[name]["default"]
            lists = f"; accepted: -p {name}=[a,b], or -y '{{{name}: [a, b]}}'" if types[0] in ("list", "tuple") else ""
            raise InputError(f"{name}: {value!r} is no {wanted}; the default is {default}{lists}") from None
    return checked


def execute(
    notebook: Path, parameters: dict[str, object], output: Path | None = None, report: Path | None = None
) -> Path:
    """Runs the notebook, its output shown live; returns where the executed copy lies: `output`, by default
    <stem>.executed.ipynb in the folder of local results.

    Args:
        report: JSON file that always says how the run stands: {"state": "running", "done", "refused" or "failed",
            "seconds", "count" (of the code cells begun: the last one's execution count), "cell" (its first line),
            "error" (None, or the traceback's last line)}.

    Raises InputError when the notebook refused its input, nothing being written then, and NotebookError after
    any other failure, the notebook as far as it came being kept beside `output` as <stem>.failed.ipynb.
    """
    output = Path(output or LOCAL / f"{notebook.stem}.executed.ipynb").absolute()
    failed = output.with_name(output.name.removesuffix(".ipynb").removesuffix(".executed") + ".failed.ipynb")
    stdout, stderr, started = Live(sys.stdout), Live(sys.stderr), time.monotonic()
    at = {"count": 0, "cell": ""}

    def write_report(state: str, error: str | None = None) -> None:
        if report:
            with atomic(report) as unfinished:
                seconds = time.monotonic() - started
                unfinished.write_text(json.dumps({"state": state, "seconds": seconds, **at, "error": error}))

    def announce(cell: dict, cell_index: int) -> None:
        heading = re.match(r"#+ +(.+)", cell["source"]) if cell["cell_type"] == "markdown" else None
        if heading:
            minutes, seconds = divmod(int(time.monotonic() - started), 60)
            stdout.write(f"[{minutes:2d}:{seconds:02d}] {heading[1]}\n")
            stdout.flush()
        if cell["cell_type"] == "code" and cell["source"].strip():  # Jupyter does not count an empty one
            at.update(count=at["count"] + 1, cell=cell["source"].strip().splitlines()[0])
            write_report("running")

    write_report("running")
    with atomic(output) as unfinished, own_kernel(notebook) as kernel:
        try:
            with closing(stderr):
                papermill.execute_notebook(
                    notebook,
                    unfinished,
                    parameters,
                    kernel_name="python3",
                    kernel_manager_class=kernel,
                    progress_bar=False,  # its redraws and the notebook's own bars would overwrite each other
                    on_cell_start=announce,
                    coalesce_streams=True,  # the copy keeps the last state of a bar, not each of its refreshes
                    stdout_file=stdout,
                    stderr_file=stderr,
                )
        except KeyboardInterrupt:
            write_report("failed", "interrupted")
            raise
        except Exception as error:
            name, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
            refused = name == InputError.__name__
            write_report("refused" if refused else "failed", f"{name}: {message}".strip().splitlines()[0])
            if refused:
                raise InputError(message) from None
            # Outputs come as messages. What else the process prints is noise of its threads while they end, unless
            # it died: then nothing else says why.
            printed = (kernel.folder / "stderr").read_text(errors="replace").strip()
            if printed and not isinstance(error, papermill.PapermillExecutionError):
                stderr.write(f"{printed}\n")
            with atomic(failed) as temporary:
                shutil.copy(unfinished, temporary)
            raise NotebookError(f"{notebook.name}: {name}: {message}\nas far as it came: {failed}") from error
    failed.unlink(missing_ok=True)
    write_report("done")
    return output


def _given(arguments: argparse.Namespace) -> dict[str, object]:
    """The parameters of the command line: files first, then -y, then -p; the last one wins."""
    given: dict[str, object] = {}
    try:
        for text in [Path(file).read_text() for file in arguments.file] + arguments.yaml:
            given |= yaml.safe_load(text) or {}
    except OSError as error:
        raise InputError(f"-f {error.filename}: {error.strerror}") from None
    except (yaml.YAMLError, TypeError, ValueError):
        raise InputError("-y and -f take YAML that maps names to values, such as -y '{epochs: 3}'") from None
    for text in map(" ".join, arguments.parameter):
        pair = re.fullmatch(r"(\w+)(?:\s*=\s*|\s+)(.*)", text, re.DOTALL)
        if pair is None:
            raise InputError(f"-p {text}: wants a name and a value, as in -p epochs 3 or -p epochs=3")
        given[pair[1]] = pair[2]
    return given


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a notebook failed, 2 the input was refused, 130 interrupted."""
    parser = argparse.ArgumentParser(f"python -m {__package__}", description="Runs notebooks, parameters checked.")
    parser.add_argument("notebooks", nargs="+", metavar="NOTEBOOK")
    parser.add_argument("-p", dest="parameter", action="append", nargs="+", default=[], metavar="NAME VALUE")
    parser.add_argument("-y", dest="yaml", action="append", default=[], help="parameters as YAML")
    parser.add_argument("-f", dest="file", action="append", default=[], help="parameters in a YAML file")
    parser.add_argument("--output", type=Path, help="the executed copy (of one notebook)")
    parser.add_argument("--report", type=Path, help="a JSON file that says how the run stands (of one notebook)")
    arguments = parser.parse_args(argv)
    if (arguments.output or arguments.report) and len(arguments.notebooks) > 1:
        parser.error("--output and --report are for one notebook")
    try:
        given, runs = _given(arguments), []
        for typed in arguments.notebooks:  # all of them before the first one runs
            notebook = find_notebook(typed)
            runs.append((notebook, check_parameters(notebook, given)))
        for notebook, parameters in runs:
            print(f"== {notebook.name}", flush=True)
            output = arguments.output
            if output is None and parameters.get("results_path"):  # runs of one notebook leave a copy each
                output = LOCAL / f"{Path(parameters['results_path']).stem}.executed.ipynb"
            print(f"executed notebook: {execute(notebook, parameters, output, arguments.report)}", flush=True)
    except (InputError, NotebookError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted: no executed notebook", file=sys.stderr)
        return 130
    return 0
