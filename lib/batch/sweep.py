"""`make sweep SWEEP=grid.yaml`: one notebook over a grid of parameters and seeds, on Snakemake (sweep.smk).

Snakemake schedules; what counts is the record, which a run writes last and in one piece: where it lies, the run is
done. So after a kill -9 the same command redoes only what is missing.
"""

import argparse
import ast
import fcntl
import hashlib
import importlib.util
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import yaml

from .. import paths
from ..checks import InputError, check_choice
from ..records import origin, read_record, recorded
from .run import check_parameters, find_notebook, parameters_of

KEYS = ("notebook", "parameters", "grid", "seeds", "results")
# Where a run writes is no part of what it computes.
PLACES = ("results_path", "figures_dir")
# The wings of lib that show what is recorded, and the command: they cannot change a record.
SHOWS = ("paper", "explore", "command")


@dataclass(frozen=True)
class Job:
    """One cell of a grid: a notebook with its parameters, checked, and the record that says it is done."""

    name: str
    notebook: Path
    parameters: dict[str, Any]
    record: Path
    logs: Path

    @property
    def log(self) -> Path:
        """What the job printed."""
        return self.logs / f"{self.name}.log"

    @property
    def report(self) -> Path:
        """How the job stands; see `run.execute`."""
        return self.logs / f"{self.name}.report.json"

    def differences(self) -> list[str]:
        """In what the parameters of its record, if there is one, are not those of the grid."""
        if not self.record.is_file():
            return []
        try:
            used = json.loads(self.record.read_text(encoding="utf-8"))["provenance"]["parameters"]
        except (ValueError, KeyError, TypeError):
            return ["not a record that says its parameters"]
        wanted = recorded(_defaults(self.notebook) | self.parameters)
        return [
            f"{name} {json.dumps(value)}, now {json.dumps(wanted[name])}"
            for name, value in used.items()
            if name in wanted and name not in PLACES and value != wanted[name]
        ]


@dataclass(frozen=True)
class Sweep:
    """A grid file, expanded; its jobs in the order in which they start."""

    name: str
    jobs: dict[str, Job]
    folder: Path  # logs, executed notebooks and Snakemake's own files: not tracked


def load(path: Path) -> Sweep:
    """The jobs of a grid file: `parameters` are fixed values, `grid` maps names to lists whose product is taken,
    `seeds` lists seed_a of each pair (seed_b is the next one unless it is given). A text may hold {name} of another
    parameter. A list under `runs` holds several such blocks; the keys beside `runs` are their defaults,
    and what a block sets, under `grid` or `parameters`, replaces theirs.

    Raises:
        InputError: in one line, whatever of it a notebook would not take, or two runs of one name.
    """
    try:
        typed = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    common = dict(_mapping(typed, path.name, (*KEYS, "runs")))
    blocks = common.pop("runs", [{}])
    if not isinstance(blocks, list) or not blocks:
        raise InputError(f"runs in {path.name} is not a list of blocks; each has {', '.join(KEYS)}")
    name, jobs = path.stem, {}
    for block in blocks:
        block = _mapping(block, f"a block of {path.name}", KEYS)
        merged = common | block
        own = {key: _mapping(block.get(key), key) for key in ("parameters", "grid")}
        for key in own:
            defaults = _mapping(common.get(key), key)
            merged[key] = {n: v for n, v in defaults.items() if not any(n in each for each in own.values())} | own[key]
        for job in _expand(merged, name):
            if job.name in jobs:
                raise InputError(f"{path.name} has two runs {job.name}; put what tells them apart under grid")
            jobs[job.name] = job
    return Sweep(name, jobs, paths.LOCAL / name)


def _mapping(value: object, what: str, accepted: tuple[str, ...] = ()) -> dict:
    if not isinstance(value or {}, dict) or not all(isinstance(key, str) for key in value or {}):
        raise InputError(f"{what}: wants a mapping of names, not {repr(value)[:60]}")
    for key in (value or {}) if accepted else ():
        check_choice(f"key of {what}", key, accepted)
    return value or {}


def _expand(block: Mapping[str, Any], sweep: str) -> Iterator[Job]:
    notebook = find_notebook(str(block.get("notebook") or "given"))
    if "results_path" not in parameters_of(notebook):
        raise InputError(f"{notebook.name} has no parameter results_path: it does not leave one record a run")
    axes = dict(block["grid"])
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid: {name} is {json.dumps(values)}; wants a list of values")
    fixed = block["parameters"]
    if "seeds" in block:
        seeds = block["seeds"]
        if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise InputError(f"seeds: {json.dumps(seeds)}; wants a list of whole numbers of at least 0")
        axes["seed_a"] = seeds
    for name in set(axes) & {*fixed, *PLACES} | {*fixed} & {*PLACES}:
        raise InputError(f"{name} is set twice: once is accepted, and {' and '.join(PLACES)} are the sweep's own")
    folder = paths.target(str(block.get("results") or ""), paths.LOCAL / sweep)
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        given = fixed | point
        if "seeds" in block:
            given.setdefault("seed_b", point["seed_a"] + 1)
        name = origin.run_name(notebook.stem, {"width": given.get("width")} | point)
        record, drawn = folder / f"{name}.json", paths.LOCAL / sweep / "figures"
        given = _filled(given) | {"results_path": paths.inside(record), "figures_dir": paths.inside(drawn)}
        yield Job(name, notebook, check_parameters(notebook, given), record, paths.LOCAL / sweep / paths.LOGS)


def _filled(given: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: origin.text(value) for name, value in given.items()}

    def fill(value: object) -> object:
        if isinstance(value, list):
            return [fill(entry) for entry in value]
        if not isinstance(value, str):
            return value
        try:
            return re.sub(r"{(\w+)}", lambda match: texts[match[1]], value)
        except KeyError as error:
            raise InputError(f"{value}: no parameter {error} to fill in; there are: {', '.join(texts)}") from None

    return {name: fill(value) for name, value in given.items()}


@cache
def code_hash(notebook: Path) -> str:
    """Hash of what decides a run's record: the notebook's code cells and every file of lib that importing what they
    import runs, directly or not, but for the wings that only show. Comments, docstrings, layout, markdown, outputs and
    execution counts do not count."""
    cells = nbformat.read(notebook, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    modules: dict[str, str] = {}
    waiting = [("", source) for source in sources]
    while waiting:
        for name in _imported(*waiting.pop()):
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):  # importing a module runs the packages around it, too
                place = paths.ROOT.joinpath(*parts[:depth])
                path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                module = path.relative_to(paths.ROOT).as_posix()
                if module not in modules and parts[1:2] not in ([wing] for wing in SHOWS) and path.is_file():
                    modules[module] = path.read_text(encoding="utf-8")
                    waiting.append((".".join(path.relative_to(paths.ROOT).parent.parts), modules[module]))
    for module in sorted(modules):
        sources += [module, modules[module]]
    return hashlib.sha256("\0".join(map(_essence, sources)).encode()).hexdigest()[:16]


def _imported(package: str, source: str) -> Iterator[str]:
    """What of lib a `source` in `package` ("" for a cell) names in an import or, for importlib, in a text: dotted names
    from lib on, of modules and of what may be in one."""
    with suppress(SyntaxError):  # a cell with magics
        for node in ast.walk(ast.parse(source)):
            named = []
            if isinstance(node, ast.ImportFrom):
                around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*around, *filter(None, [node.module])])
                named = [base, *(f"{base}.{name.name}" for name in node.names)]
            elif isinstance(node, ast.Import):
                named = [name.name for name in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = [node.value]
            yield from (name for name in named if re.fullmatch(r"lib(\.\w+)*", name))


def _essence(source: str) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell with magics
        return source
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _defaults(notebook: Path) -> dict[str, Any]:
    defaults = {}
    for name, parameter in parameters_of(notebook).items():
        with suppress(ValueError, SyntaxError):  # an expression: nothing to compare with
            defaults[name] = ast.literal_eval(parameter["default"])
    return defaults


@contextmanager
def _alone(sweep: Sweep) -> Iterator[int]:
    """Makes this process the only one that runs the sweep; yields the lock's file descriptor, for Snakemake to keep,
    too. The operating system releases it when both have ended, however they end: unlike Snakemake's own it is never
    stale."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with (sweep.folder / "sweep.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{sweep.name} is being run already, by another make sweep") from None
        yield lock.fileno()


def _snakemake(sweep: Sweep, *arguments: str) -> list[str]:
    # A record is written in one piece, so that a run killed behind it is as good as finished (--ignore-incomplete); and
    # _alone keeps the lock (--nolock).
    return [
        sys.executable, "-m", "snakemake", "--snakefile", str(Path(__file__).with_name("sweep.smk")),
        "--directory", str(sweep.folder),
        "--config", f"root={paths.ROOT}", f"logs={sweep.folder / paths.LOGS}",
        "--rerun-triggers", "params", "--scheduler", "greedy", "--keep-going", "--nolock", "--ignore-incomplete",
        *arguments,
    ]  # fmt: skip


def _write_runs(sweep: Sweep) -> None:
    """Writes what the Snakefile, which starts anew for each job on a cluster, need not import this for."""
    jobs = {
        name: {
            "folder": str(job.record.parent),
            "notebook": paths.inside(job.notebook),
            "parameters": job.parameters,
            "code": code_hash(job.notebook),
        }
        for name, job in sweep.jobs.items()
    }
    with paths.atomic(sweep.folder / paths.LOGS / "runs.json") as unfinished:
        unfinished.write_text(json.dumps(jobs, indent=1))


def _planned(sweep: Sweep) -> set[str]:
    """The names of the jobs that Snakemake would start: those without a record or with one made by other code."""
    asked = _snakemake(sweep, "--summary", "--quiet", "all")
    asked = subprocess.run(asked, capture_output=True, text=True)
    return {Path(line.split("\t")[0]).stem for line in asked.stdout.splitlines() if line.endswith("update pending")}


def _read(report: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        return json.loads(report.read_text())
    return {}


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _failure(job: Job) -> str:
    """The cell that failed, by execution count and first line, and the last line of its traceback."""
    report = _read(job.report)
    if not report:  # it came to nothing before the notebook
        return next(iter(job.log.read_text(errors="replace").splitlines()[::-1]), "it printed nothing")
    ended = report["error"] or "ended without a word: killed, cancelled, or out of memory or time"
    return f"cell [{report['count']}] {report['cell'] or '(none begun)'} | {ended}"


def run(grid: Path, *, arguments: list[str] = (), keep: bool = False) -> bool:
    """Runs a grid, told in lines as it goes on, and prints a table of what came of it, also written to summary.txt.

    Args:
        arguments: further ones for Snakemake, such as --cores 2, --profile FOLDER, --dry-run.
        keep: take records as they are that were made by other code.

    Returns:
        Whether every run has its record (of a dry run: whether Snakemake takes it).

    Raises:
        InputError: the grid is refused, or it is being run already.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("sweeps need Snakemake: pip install -e '.[sweep]', or conda env update -f environment.yml")
    sweep = load(grid)
    dry = bool({"-n", "--dry-run", "--dryrun"} & set(arguments))
    with _alone(sweep) as lock:
        log = sweep.folder / paths.LOGS / "snakemake.log"
        log.parent.mkdir(exist_ok=True)
        _write_runs(sweep)
        finished = {name for name, job in sweep.jobs.items() if job.record.is_file()}
        changed = {name: differences for name, job in sorted(sweep.jobs.items()) if (differences := job.differences())}
        stale = sorted(_planned(sweep) & finished - set(changed)) if finished else []
        print(
            f"{sweep.name}: {len(sweep.jobs)} runs, {len(finished)} with a record; logs in {paths.inside(log.parent)}"
        )
        for name, differences in changed.items():
            print(f"redone, its record was made with other parameters: {name} ({'; '.join(differences)})")
        if stale and keep:
            print(f"kept, though the code has changed since: {', '.join(stale)}")
        elif stale:
            print(f"redone, the code has changed since (KEEP=1 keeps): {', '.join(stale)}")
        if stale and keep and not dry:
            records = [str(sweep.jobs[name].record) for name in stale]
            subprocess.run(_snakemake(sweep, "--touch", "--quiet", "all", "--cores", "1", *records), check=True)
        if changed:
            arguments = ["--forcerun", *(str(sweep.jobs[name].record) for name in changed), *arguments]
        with log.open("w") as output:
            command = _snakemake(sweep, *arguments)
            if dry:
                again = {*changed, *(() if keep else stale)}
                due = [name for name in sweep.jobs if name not in finished or name in again]
                print(f"would run {len(due)}: {', '.join(due)}" if due else "nothing to run", flush=True)
                status = subprocess.run(command, stdout=output, stderr=output).returncode
            else:
                for job in sweep.jobs.values():
                    job.report.unlink(missing_ok=True)
                    if job.name not in finished:
                        job.log.unlink(missing_ok=True)
                sys.stdout.flush()
                status = _follow(sweep, subprocess.Popen(command, stdout=output, stderr=output, pass_fds=[lock]))
        failed = []
        if not dry:
            summary, failed = _summary(sweep)
            with paths.atomic(sweep.folder / "summary.txt") as unfinished:
                unfinished.write_text(summary)
            print(summary, end="", flush=True)
            print(*_outcome(sweep), sep="\n", flush=True)
        if status and not failed:
            print("Snakemake failed:", *log.read_text().splitlines()[-5:], f"more in {log}", sep="\n", file=sys.stderr)
        return status == 0


def _follow(sweep: Sweep, process: subprocess.Popen) -> int:
    """Prints a line when a job starts or ends, until Snakemake has ended; returns its exit status."""
    seen: dict[str, str] = {}
    while True:
        ended = process.poll() is not None
        for name, job in sweep.jobs.items():
            report = _read(job.report)
            state = report.get("state")
            if state == seen.get(name):
                continue
            if name not in seen and state:
                print(f"{time.strftime('%H:%M:%S')} started {name}", flush=True)
            seen[name] = state
            if state != "running":
                over = sum(state != "running" for state in seen.values())
                after = f" after {_minutes(report['seconds'])}, {over} of {len(sweep.jobs)} over"
                why = f": {_failure(job)}" if state != "done" else ""
                print(f"{time.strftime('%H:%M:%S')} {state} {name}{after}{why}", flush=True)
        if ended:
            return process.returncode
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:  # Snakemake got it, too, and stops its runs
            process.wait()


def _summary(sweep: Sweep) -> tuple[str, list[str]]:
    """The table of what came of every job, as text; and the names of those that failed."""
    rows = {}
    for name, job in sweep.jobs.items():
        report = _read(job.report)
        if report:
            state = "done" if report["state"] == "done" else "failed"
        elif job.record.is_file():
            state = "reused"
        else:
            state = "failed" if job.log.is_file() else "not run"
        seconds = _minutes(report["seconds"]) if report else ""
        rows[name] = (state, seconds, _failure(job) if state == "failed" else "")
    states = [state for state, _, _ in rows.values()]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    width = max(map(len, rows))
    table = [f"{name:<{width}}  {state:<8}{seconds:>8}  {why}".rstrip() for name, (state, seconds, why) in rows.items()]
    if failed := [name for name, (state, _, _) in rows.items() if state == "failed"]:
        table.append(f"what they printed, and notebooks as far as they came: {paths.inside(sweep.folder / paths.LOGS)}")
    return "\n".join([f"{sweep.name}: {counted}", *table, ""]), failed


def _outcome(sweep: Sweep) -> list[str]:
    """What the records of a sweep say, in lines: means over pairs, where they lie, and the next command."""
    from ..paper import pool, tables, write  # matplotlib takes seconds

    records: dict[str, dict] = {}
    for job in sweep.jobs.values():
        with suppress(InputError):  # none, or none of ours
            records[job.record.stem] = read_record(job.record)
    curves, left_out = write.independent({stem: each for stem, each in records.items() if "curves" in each})
    lines = []
    for name, alike in write.pools(sweep.name, curves).items():
        lines.append(f"{name}, means over {len(alike)} records at alpha 0.5, 95 % intervals from three pairs on:")
        lines += str(tables.pooled_table(pool.leaderboard_rows(alike), metrics=["test_accuracy"])).splitlines()
    lines += [f"not in the means: {line.removesuffix(', not pooled')}" for line in left_out]
    folders = sorted({paths.inside(job.record.parent) for job in sweep.jobs.values()})
    lines.append(f"records: {', '.join(folders)}")
    python = paths.inside(Path(sys.executable))
    lines += [f"next: {python} -m lib.batch sweep_summary -p results_dir={folder}" for folder in folders if curves]
    return lines


def _file_of(kind: str, typed: str, pattern: str) -> Path:
    shipped = sorted((paths.NOTEBOOKS / "sweeps").glob(pattern))
    named = {(path.parent.name if kind == "profile" else path.stem): path for path in shipped}
    path = named.get(typed) or paths.resolve(typed)
    path = path / "config.yaml" if kind == "profile" and path.is_dir() else path
    if not path.is_file():
        raise InputError(f"no {kind} {typed or '(none given)'}; accepted: a path, or one of {', '.join(named)}")
    return path.parent if kind == "profile" else path


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 every run has its record, 1 one has not, 2 the input was refused, 130 interrupted."""
    parser = argparse.ArgumentParser(
        f"python -m {__package__}.sweep",
        description="Runs a notebook over a grid, on Snakemake.",
        epilog="Any other option goes to Snakemake, such as -n.",
    )
    parser.add_argument("grid", help="a YAML file, or the name of one in notebooks/sweeps")
    parser.add_argument("--profile", help="a folder, or the name of one in notebooks/sweeps/profiles")
    parser.add_argument("--keep", action="store_true", help="take records that were made by other code as they are")
    arguments, further = parser.parse_known_args(argv)
    try:
        if not paths.IS_CLONE:  # code_hash and sweep.smk know the code as lib
            raise InputError("sweeps run in a clone of fusebook only, where its code can be told to have changed")
        grid = _file_of("grid", arguments.grid, "*.yaml")
        if arguments.profile:
            further += ["--profile", str(_file_of("profile", arguments.profile, "profiles/*/config.yaml"))]
        return 0 if run(grid, arguments=further, keep=arguments.keep) else 1
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
