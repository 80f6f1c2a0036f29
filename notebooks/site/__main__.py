"""`make site`: the repo as a static site in build/site/html, built without network.

Experiments come from executed copies. Where there is none, a notebook is executed with the small parameters of
parameters.yaml, two at a time, and the copy is kept until its cells, lib, the records or the parameters change.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from sphinx.cmd.build import main as sphinx

from lib.batch.run import parameters_of
from lib.paths import ROOT

from . import links, sources

RUNS = 2  # notebooks at a time, each on one thread


def execute(notebook: Path) -> tuple[Path, float, str]:
    """Runs a notebook with the site's parameters; returns it, its seconds, and what it printed if it failed."""
    started, copy = time.monotonic(), sources.kept(notebook)
    given = dict(sources.parameters()[notebook.stem])
    scratch = sources.BUILD / "runs" / notebook.stem  # records and figures of the run, which nobody needs afterwards
    for name, parameter in parameters_of(notebook).items():
        if name.endswith("_dir") and parameter["default"] == '""':  # else it is where records are read
            given[name] = str(scratch)
        elif name == "results_path":
            given[name] = str(scratch / f"{notebook.stem}.json")
    command = [sys.executable, "-m", "lib.batch", str(notebook), "-y", yaml.safe_dump(given), "--output", str(copy)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    shutil.rmtree(scratch, ignore_errors=True)
    error = (done.stderr.strip() or done.stdout.strip()) if done.returncode else ""
    return notebook, time.monotonic() - started, error


def execute_missing(notebooks: list[Path]) -> list[str]:
    """Runs the notebooks of which there is no copy, progress shown; returns a line for each that failed."""
    due = [notebook for notebook in notebooks if sources.executed(notebook) is None]
    print(f"{len(notebooks) - len(due)} of {len(notebooks)} notebooks are executed already", flush=True)
    failed = []
    with ThreadPoolExecutor(RUNS) as pool:
        for place, (notebook, seconds, error) in enumerate(pool.map(execute, due), 1):
            print(f"[{place}/{len(due)}] {notebook.stem}: {seconds:.0f} s{', failed' * bool(error)}", flush=True)
            failed += [f"{notebook.name}: {error}"] if error else []
    current = {sources.kept(notebook) for notebook in sources.listed()}
    for stale in set((sources.BUILD / "executed").glob("*.ipynb")) - current:
        stale.unlink()
    return failed


def build(source: Path, html: Path) -> int:
    """Runs Sphinx; every warning, a reference that leads nowhere among them, is an error. Returns its exit status."""
    # the cells' kernel: this environment's own, which finds lib
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": found, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    shutil.rmtree(html, ignore_errors=True)
    cells = source.parent / "cells" / sources.code_hash()  # what they put out depends on lib and the records
    for stale in set(cells.parent.glob("*")) - {cells}:
        shutil.rmtree(stale)
    options = ["-q", "-b", "html", "-n", "-W", "--keep-going", "-E", "-d", str(source.parent / "doctrees")]
    options += ["-D", f"nb_execution_cache_path={cells}"]
    return sphinx([*options, "-c", str(sources.HERE), str(source), str(html)])


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 built, 1 a notebook failed, Sphinx warned, or a link is broken."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__.splitlines()[0])
    parser.add_argument("--without-notebooks", action="store_true", help="leave the experiments out")
    parser.add_argument("--output", type=Path, default=sources.BUILD, help="folder of the site (html) and its sources")
    options = parser.parse_args(arguments)
    started, notebooks = time.monotonic(), [] if options.without_notebooks else sources.listed()
    if failed := execute_missing(notebooks):
        print(*failed, sep="\n", file=sys.stderr)
        return 1
    source, html = options.output / "source", options.output / "html"
    sources.assemble(source, {notebook.stem: sources.executed(notebook) for notebook in notebooks})
    if status := build(source, html):
        return status
    if broken := links.broken(html):
        print(*broken, sep="\n", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in html.rglob("*") if path.is_file())
    pages = len(list(html.rglob("*.html")))
    print(f"the site: {html}/index.html, {pages} pages, {size / 1e6:.0f} MB, in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
