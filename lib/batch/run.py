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
from typing import NamedTuple, TextIO

import papermill
import yaml
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

from ..checks import InputError, check_known, first_line, split_outside
from ..paths import LOCAL, NOTEBOOKS, atomic, check_writable, inside, resolve
from ..records import read_record
from ..records.origin import ANNOUNCED, BARE, NOTEBOOK, PLACES, run_name

# It prints what a NotebookError says in one line.
logging.getLogger("papermill").addHandler(logging.NullHandler())


class NotebookError(RuntimeError):
    """A notebook failed: with what, and where the copy lies that shows how far it came."""


class Executed(NamedTuple):
    """What a notebook left: its executed copy, and its record; a summary of records leaves none of its own."""

    notebook: Path
    record: Path | None = None


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
            options["env"] = {**(options.get("env") or os.environ), ANNOUNCED: str(self.folder / "places")}
            if self.notebook:
                options["env"][NOTEBOOK] = str(self.notebook)
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

    def __init__(self, stream: TextIO, log: list[str] | None = None):
        self.stream, self.broken, self.log = stream, False, [] if log is None else log

    def write(self, text: str) -> None:
        self.log.append(text)
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
            default = "null" if default == "None" else default  # as parameters are written: YAML
            lists = f"; accepted: -p {name}=[a,b], or -y '{{{name}: [a, b]}}'" if types[0] in ("list", "tuple") else ""
            raise InputError(f"{name}: {value!r} is no {wanted}; the default is {default}{lists}") from None
    return checked


def execute(
    notebook: Path, parameters: dict[str, object], output: Path | None = None, report: Path | None = None
) -> Executed:
    """Runs the notebook, its output shown live; returns where its executed copy lies.

    Args:
        output: where it goes. By default into the folder that the run names (`study.places`), with what was printed,
            <stem>.log, beside it: <stem>.executed.ipynb.
        report: JSON file that always says how the run stands: {"state": "running", "done", "refused" or "failed",
            "seconds", "count" (of the code cells begun: the last one's execution count), "cell" (its first line),
            "error" (None, or the traceback's last line)}.

    Raises InputError when the notebook refused its input, nothing being written then, and NotebookError after
    any other failure, the notebook as far as it came being kept beside `output` as <stem>.failed.ipynb.
    """
    printed: list[str] = []
    stdout, stderr, started = Live(sys.stdout, printed), Live(sys.stderr, printed), time.monotonic()
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

    own = {name: value for name, value in parameters.items() if name not in PLACES}
    unnamed = LOCAL / run_name(notebook.stem, own, BARE)  # of a run that says nothing of where it writes

    def ended(failed: bool) -> Executed:
        """Keeps the copy; one that failed is stale once the notebook ran."""
        told = {}
        with suppress(OSError, ValueError):
            told = json.loads((kernel.folder / "places").read_text())
        path = Path(output or Path(told.get("folder", unnamed), f"{notebook.stem}.executed.ipynb"))
        stem = path.name.removesuffix(".ipynb").removesuffix(".executed")
        wrong = path.with_name(f"{stem}.failed.ipynb")
        with atomic(wrong if failed else path) as temporary:
            shutil.copy(unfinished, temporary)
        if output is None:
            with atomic(path.with_name(f"{stem}.log")) as temporary:  # of a bar what it showed last
                temporary.write_text(re.sub(r"[^\n]*\r", "", "".join(printed)), encoding="utf-8")
        if not failed:
            wrong.unlink(missing_ok=True)
        record = Path(told.get("record", ""))
        return Executed(wrong if failed else path, record if record.is_file() else None)

    output = output and Path(output).absolute()
    check_writable("the executed notebook", output or LOCAL, folder=output is None)
    write_report("running")
    with own_kernel(notebook) as kernel:
        unfinished = kernel.folder / "executed.ipynb"
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
            noise = (kernel.folder / "stderr").read_text(errors="replace").strip()
            if noise and not isinstance(error, papermill.PapermillExecutionError):
                stderr.write(f"{noise}\n")
            failed = ended(failed=True).notebook
            raise NotebookError(f"{notebook.name}: {name}: {message}\nas far as it came: {failed}") from error
        executed = ended(failed=False)
    write_report("done")
    return executed


def summary(left: list[Executed]) -> str:
    """What several runs left: all methods at the midpoint beside what was published, and where everything lies."""
    from ..paper import tables  # matplotlib takes a second

    records = [read_record(executed.record) for executed in left if executed.record]
    paths = [record for record in records if "curves" in record]
    lines = [str(tables.midpoints(paths))] if paths else []
    lines.append("records, figures, tables as LaTeX, executed notebooks and logs:")
    return "\n".join([*lines, *dict.fromkeys(f"  {inside(executed.notebook.parent)}" for executed in left)])


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
        left = []
        for notebook, parameters in runs:
            print(f"== {notebook.name}", flush=True)
            left.append(execute(notebook, parameters, arguments.output, arguments.report))
            print(f"executed notebook: {left[-1].notebook}", flush=True)
        if len(left) > 1:
            print(summary(left))
    except (InputError, NotebookError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted: no executed notebook", file=sys.stderr)
        return 130
    return 0
