"""lib.batch.sweep: what a grid file becomes, what makes a run anew, and sweeps run for real by Snakemake."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from lib import paths
from lib.batch import sweep
from lib.checks import InputError

needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="needs the extra sweep (pip install -e '.[sweep]')"
)

# Leaves a record as every experiment notebook does, in two seconds, and counts how often it ran. It imports nothing of
# lib, so that nobody's edit of it meanwhile makes the runs anew.
PARAMETERS = """\
seed_a: int = 0
seed_b: int = 1
width: float = 1.0
checkpoint_a: str = ""
matchers: list[str] = ["none"]
results_path: str = ""
figures_dir: str = ""
"""
WORK = """\
# %% the work
ratio = 1 / (seed_a - 2)
"""
RECORD = """\
import json, os, pathlib
names = ("seed_a", "seed_b", "width", "checkpoint_a", "matchers", "results_path", "figures_dir")
made = {name: globals()[name] for name in names}
target = pathlib.Path(results_path)
with open(target.parent / "ran.txt", "a") as ran:
    print(target.stem, os.environ["OMP_NUM_THREADS"], file=ran)
target.with_suffix(".part").write_text(json.dumps({"ratio": ratio, "provenance": {"parameters": made}}))
target.with_suffix(".part").rename(target)
"""


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("#"),
    ]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), path)
    return path


@pytest.fixture
def toy(tmp_path):
    return write_notebook(tmp_path / "toy.ipynb", WORK, RECORD)


@pytest.fixture
def grid(tmp_path, toy):
    """grid(text) -> the sweep that the grid file of this text, on the toy notebook, describes."""

    def load(text: str) -> sweep.Sweep:
        path = tmp_path / "grid.yaml"
        path.write_text(f"notebook: {toy}\n{text}")
        return sweep.load(path)

    return load


def test_a_grid_is_a_product_with_the_seeds_innermost(grid):
    jobs = grid("""
parameters: {matchers: [none, graph], checkpoint_a: "net-w{width}-s{seed_b}"}
grid: {width: [0.25, 1]}
seeds: [0, 4]
results: data/results/some
""").jobs
    assert list(jobs) == ["toy_w0.25-s0", "toy_w0.25-s4", "toy_w1-s0", "toy_w1-s4"]
    job = jobs["toy_w0.25-s4"]
    assert job.parameters == {
        "matchers": ["none", "graph"],
        "checkpoint_a": "net-w0.25-s5",
        "width": 0.25,
        "seed_a": 4,
        "seed_b": 5,
        "results_path": "data/results/some/toy_w0.25-s4.json",
        "figures_dir": paths.inside(paths.LOCAL / "grid" / "figures"),
    }
    assert job.record == paths.ROOT / "data/results/some/toy_w0.25-s4.json"
    assert job.log == paths.LOCAL / "grid" / "logs" / "toy_w0.25-s4.log"


def test_blocks_take_what_stands_beside_them_and_add_to_it(grid):
    jobs = grid("""
parameters: {matchers: [graph], seed_b: 9}
seeds: [0]
runs:
  - grid: {width: [0.25]}
    parameters: {checkpoint_a: net}
  - {grid: {width: [0.125]}, seeds: [2, 3]}
  - grid: {checkpoint_a: [x/y, z]}
""").jobs
    assert list(jobs) == ["toy_w0.25-s0", "toy_w0.125-s2", "toy_w0.125-s3", "toy_x_y-s0", "toy_z-s0"]
    chosen = [(job.parameters.get("checkpoint_a"), job.parameters["seed_b"]) for job in jobs.values()]
    assert chosen == [("net", 9), (None, 9), (None, 9), ("x/y", 9), ("z", 9)]
    assert all(job.parameters["matchers"] == ["graph"] for job in jobs.values())


def test_what_a_block_sets_replaces_what_stands_beside_it(grid):
    jobs = grid("""
parameters: {matchers: [graph], width: 0.5}
grid: {seed_b: [7]}
seeds: [0]
runs:
  - {}
  - grid: {width: [0.25]}
  - parameters: {seed_b: 9}
""").jobs
    chosen = [(job.parameters["width"], job.parameters["seed_b"]) for job in jobs.values()]
    assert chosen == [(0.5, 7), (0.25, 7), (0.5, 9)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("parameters: {widht: 1}", r"no parameter widht \(did you mean width\?\)"),
        ("grid: {width: [wide]}", "width: 'wide' is no float"),
        ("grid: {width: 2}", "grid: width is 2; wants a list"),
        ("grid: {width: []}", "wants a list"),
        ("seeds: 3", "seeds: 3; wants a list of whole numbers"),
        ("seeds: [0.5]", "wants a list of whole numbers"),
        ("sedes: [0]", "sedes.*accepted: notebook, parameters, grid, seeds, results"),
        ("parameters: [1]", "parameters: wants a mapping"),
        ("runs: {}", "runs in grid.yaml is not a list"),
        ("seeds: [0, 0]", "two runs toy_s0"),
        ("runs: [{seeds: [0]}, {seeds: [0], parameters: {width: 2}}, {seeds: [0], parameters: {width: 2}}]", "w2-s0"),
        ("parameters: {checkpoint_a: 'net-{depth}'}", "net-{depth}: no parameter 'depth' to fill in"),
        ("parameters: {results_path: x.json}", "results_path .* the sweep's own"),
        ("{parameters: {width: 1}, grid: {width: [2]}}", "not YAML"),
        ("parameters: {width: 1}\ngrid: {width: [2]}", "width is set twice"),
    ],
)
def test_what_a_grid_may_not_be_is_one_line(grid, text, told):
    with pytest.raises(InputError, match=told) as refused:
        grid(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("notebook", "told"),
    [
        ("no_such", "no notebook no_such; accepted: .*simplenet_mnist"),
        ("leaderboard", "has no parameter results_path"),
    ],
)
def test_a_notebook_that_leaves_no_record_is_refused(tmp_path, notebook, told):
    (tmp_path / "grid.yaml").write_text(f"notebook: {notebook}")
    with pytest.raises(InputError, match=told):
        sweep.load(tmp_path / "grid.yaml")


@pytest.mark.parametrize("path", sorted((paths.NOTEBOOKS / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_grids_are_taken(path):
    found = sweep.load(path)
    assert found.jobs
    for job in found.jobs.values():
        names = [job.parameters[name] for name in ("checkpoint_a", "checkpoint_b") if job.parameters.get(name)]
        assert all((paths.CHECKPOINTS / f"{name}.safetensors").is_file() for name in names)
        if "seed_a" not in job.parameters:  # a notebook of other networks than a pair
            continue
        seeds = {job.parameters["seed_a"], job.parameters["seed_b"]}
        others = [other.parameters for other in found.jobs.values() if other is not job]
        same = [other for other in others if other.get("width") == job.parameters.get("width")]
        pairs = [{other["seed_a"], other["seed_b"]} for other in same]
        assert all(seeds == pair or seeds.isdisjoint(pair) for pair in pairs), "two pairs share a network"


# What makes a run anew


def hash_of(notebook: Path) -> str:
    sweep.code_hash.cache_clear()
    return sweep.code_hash(notebook)


def test_outputs_counts_comments_and_markdown_are_not_code(toy):
    before = hash_of(toy)
    found = nbformat.read(toy, as_version=4)
    found.cells[1].source = "# Another heading"
    found.cells[2].source = WORK.replace("the work", "what is done").replace("1 / (", "1/(")
    found.cells[2].execution_count = 7
    found.cells[2].outputs = [nbformat.v4.new_output("stream", text="seen")]
    found.metadata["papermill"] = {"status": "completed"}
    nbformat.write(found, toy)
    assert hash_of(toy) == before
    found.cells[2].source = WORK.replace("1 /", "2 /")
    nbformat.write(found, toy)
    assert hash_of(toy) != before


def test_a_default_of_the_parameters_cell_is_code(toy):
    before = hash_of(toy)
    found = nbformat.read(toy, as_version=4)
    found.cells[0].source = PARAMETERS.replace("1.0", "2.0")
    nbformat.write(found, toy)
    assert hash_of(toy) != before


def test_lib_is_code_as_far_as_the_notebook_imports_it(tmp_path, monkeypatch):
    """toy imports wing a, whose face imports part one, which imports part two from a function and names wing b in a
    text; nothing imports wing c; paper only shows, and what it alone imports does not count."""
    files = {
        "__init__": "",
        "a/__init__": "from .one import x",
        "a/one": "def x():\n    from . import two\n    return importlib.import_module('lib.b.lazy')",
        "a/two": "from ..deep import y",
        "deep": "def y():\n    '''Says y.'''\n    return 1  # one",
        "b/__init__": "",
        "b/lazy": "z = 2",
        "c/__init__": "w = 4",
        "paper/__init__": "",
        "paper/names": "from .. import c",
    }
    for name, text in files.items():
        path = tmp_path / "lib" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    toy = write_notebook(tmp_path / "toy.ipynb", "%matplotlib inline", "from lib import a\nfrom lib.paper import names")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    before = hash_of(toy)
    for name in ("c/__init__", "paper/names", "paper/__init__"):
        (tmp_path / "lib" / f"{name}.py").write_text("more = 1")
        assert hash_of(toy) == before, name
    (tmp_path / "lib" / "deep.py").write_text("def y():\n    '''Y.'''\n    return 1")
    assert hash_of(toy) == before
    for name in ("__init__", "a/__init__", "a/one", "a/two", "deep", "b/__init__", "b/lazy"):
        path = tmp_path / "lib" / f"{name}.py"
        old = path.read_text()
        path.write_text(f"{old}\nmore = 1")
        assert hash_of(toy) != before, name
        path.write_text(old)


@pytest.mark.parametrize("notebook", ["simplenet_mnist", "vgg11_cifar10"])
def test_a_changed_rule_makes_an_experiment_anew_and_a_changed_label_does_not(notebook, tmp_path, monkeypatch):
    shutil.copytree(paths.ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    before = hash_of(path)

    def changed(file: str, old: str, new: str) -> bool:
        source = tmp_path / "lib" / file
        text = source.read_text()
        assert text.count(old) >= 1, f"{file} no longer holds {old!r}"
        source.write_text(text.replace(old, new, 1))
        try:
            return hash_of(path) != before
        finally:
            source.write_text(text)

    assert changed("symmetry/rules.py", "groups == 1", "groups == 2")
    for wing in ("symmetry", "loaders", "models", "matching", "fusion", "records", "study"):
        assert changed(f"{wing}/__init__.py", "\nfrom ", "\nimport os\nfrom "), wing
    assert not changed("paper/names.py", "activations", "activation correlation")
    assert not changed("paper/style.py", "#0072B2", "#0072B3")


def test_a_record_made_with_other_parameters_is_told(grid, tmp_path):
    (job,) = grid(f"seeds: [4]\nresults: {tmp_path}\nparameters: {{checkpoint_a: /some/where/net}}").jobs.values()
    assert job.differences() == []
    made = {"seed_a": 4, "seed_b": 5, "width": 1.0, "checkpoint_a": "net", "matchers": ["none"], "results_path": "x"}
    job.record.write_text(json.dumps({"provenance": {"parameters": made}}))
    assert job.differences() == []
    job.record.write_text(json.dumps({"provenance": {"parameters": made | {"width": 2.0, "matchers": ["graph"]}}}))
    assert job.differences() == ["width 2.0, now 1.0", 'matchers ["graph"], now ["none"]']
    job.record.write_text("{}")
    assert job.differences() == ["not a record that says its parameters"]


# Sweeps run for real


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Nothing that a test run leaves behind reaches the repo, and nothing trained before is found."""
    for name in ("CHECKPOINTS", "RESULTS", "FIGURES"):
        monkeypatch.setenv(f"FUSEBOOK_{name}", str(tmp_path / name.lower()))
    return tmp_path / "results" / "local"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lib.batch.sweep", *map(str, arguments)]


def run(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run(command(*arguments), cwd=paths.ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@needs_snakemake
def test_a_failing_run_stops_no_other_and_only_what_must_is_redone(tmp_path, toy, monkeypatch, capsys):
    folders = tmp_path / "results" / "local"
    monkeypatch.setattr(paths, "LOCAL", folders)

    def run(*arguments: object) -> tuple[int, str, str]:  # in this process: its imports take longer than all the rest
        sweep.code_hash.cache_clear()
        return sweep.main([*map(str, arguments)]), *capsys.readouterr()

    def ran() -> list[str]:
        found = sorted((folders / "toys" / "ran.txt").read_text().splitlines())
        (folders / "toys" / "ran.txt").write_text("")
        return found

    grid = tmp_path / "toys.yaml"
    grid.write_text(f"notebook: {toy}\nseeds: [2, 4]")
    status, out, err = run(grid, "--cores", "1")
    assert status == 1, out + err
    assert ran() == ["toy_s4 1"], "one thread a run"
    summary = (folders / "toys" / "summary.txt").read_text()
    assert summary in out
    first, failed, done, *_ = summary.splitlines()
    assert first == "toys: 1 failed, 1 done"
    assert failed.startswith("toy_s2  failed ")
    assert failed.endswith("cell [3] # %% the work | ZeroDivisionError: division by zero")
    assert done.startswith("toy_s4  done ")
    kept = sorted(path.name for path in (folders / "toys" / "logs").glob("*.ipynb"))
    assert kept == ["toy_s2.failed.ipynb", "toy_s4.executed.ipynb"]

    # Again, the notebook executed in between: only what failed is tried.
    found = nbformat.read(toy, as_version=4)
    found.cells[2].execution_count = 7
    nbformat.write(found, toy)
    status, out, err = run(grid, "-n")
    assert (status, out.splitlines()[1:]) == (0, ["would run 1: toy_s2"]), out + err

    # The code is changed, and what failed with it.
    write_notebook(toy, WORK.replace("- 2", "+ 2"), RECORD)
    status, out, err = run(grid, "--cores", "1")
    assert (status, ran()) == (0, ["toy_s2 1", "toy_s4 1"]), out + err
    assert "redone, the code has changed since (KEEP=1 keeps): toy_s4" in out

    # Changed once more, but the records are to be kept; then that is settled.
    write_notebook(toy, WORK.replace("- 2", "+ 3"), RECORD)
    status, out, err = run(grid, "--cores", "1", "--keep")
    assert (status, ran()) == (0, []), out + err
    assert "kept, though the code has changed since: toy_s2, toy_s4" in out and "2 reused" in out
    status, out, _ = run(grid, "-n")
    assert (status, out.splitlines()[1:]) == (0, ["nothing to run"])

    # A fresh clone knows records, and nothing of how they came about: parameters are compared.
    record = json.loads((folders / "toys" / "toy_s4.json").read_text())
    record["provenance"]["parameters"]["width"] = 2.0
    (folders / "toys" / "toy_s4.json").write_text(json.dumps(record))
    shutil.rmtree(folders / "toys" / ".snakemake")
    status, out, err = run(grid, "--cores", "1")
    assert (status, ran()) == (0, ["toy_s4 1"]), out + err
    assert "redone, its record was made with other parameters: toy_s4 (width 2.0, now 1.0)" in out


def test_the_summary_tells_how_each_run_ended(grid, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "local")
    found = grid(f"seeds: [0, 1, 2, 3, 4]\nresults: {tmp_path}")
    done, killed, early, reused, _ = found.jobs.values()
    done.logs.mkdir(parents=True)
    done.report.write_text(json.dumps({"state": "done", "seconds": 61.4, "count": 9, "cell": "x", "error": None}))
    killed.report.write_text(json.dumps({"state": "running", "seconds": 3, "count": 4, "cell": "fit()", "error": None}))
    early.log.write_text("Traceback\nno module named torch\n")
    reused.record.write_text("{}")
    summary, failed = sweep._summary(found)
    assert failed == ["toy_s1", "toy_s2"]
    assert summary.splitlines() == [
        "grid: 1 done, 2 failed, 1 reused, 1 not run",
        "toy_s0  done        1:01",
        "toy_s1  failed      0:03  cell [4] fit() | ended without a word: killed, cancelled, or out of memory or time",
        "toy_s2  failed            no module named torch",
        "toy_s3  reused",
        "toy_s4  not run",
        f"what they printed, and notebooks as far as they came: {paths.inside(tmp_path)}/local/grid/logs",
    ]
    assert sweep._outcome(found) == [f"records: {paths.inside(tmp_path)}"]  # of none is there a mean


REAL = """
notebook: simplenet_mnist
parameters:
  dataset: mnist-5k
  epochs: 1
  matchers: [none, activation]
  alphas: [0, 0.5, 1]
  limit_test: 200
  match_images: 100
runs:
  - {parameters: {limit_train: 1000}, seeds: [0, 2]}
"""


@needs_snakemake
def test_a_killed_sweep_redoes_what_is_missing_and_ends_in_the_same_numbers(folders, tmp_path, monkeypatch):
    grid = tmp_path / "killed.yaml"
    grid.write_text(REAL)
    process = subprocess.Popen(command(grid, "--cores", "1"), cwd=paths.ROOT, start_new_session=True)
    records = folders / "killed"
    report = records / "logs" / "simplenet_mnist_s2.report.json"
    while not (report.exists() and json.loads(report.read_text())["count"] >= 3):  # in its third cell: it trains
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [path.name for path in records.glob("*.json")] == ["simplenet_mnist_s0.json"]
    first = (records / "simplenet_mnist_s0.json").stat().st_mtime_ns

    status, out, err = run(grid, "--cores", "1")
    assert status == 0, out + err
    assert "started simplenet_mnist_s0" not in out and "done simplenet_mnist_s2" in out
    assert (records / "simplenet_mnist_s0.json").stat().st_mtime_ns == first
    means = out[out.index("killed, means over 2 records at alpha 0.5") :].splitlines()
    midpoints = []
    for curve in json.loads((records / "simplenet_mnist_s0.json").read_text())["curves"]:
        other = json.loads((records / "simplenet_mnist_s2.json").read_text())["curves"]
        (like,) = (each for each in other if each["matcher"] == curve["matcher"])
        midpoints.append(50 * (curve["points"][1]["test_accuracy"] + like["points"][1]["test_accuracy"]))
    assert [float(line.split()[1]) for line in means if line.startswith(("none ", "activation "))] == pytest.approx(
        midpoints, abs=0.006
    )
    assert means[-2] == f"records: {paths.inside(records)}"
    assert means[-1].endswith(f"-m lib.batch sweep_summary -p results_dir={paths.inside(records)}")

    undisturbed = tmp_path / "undisturbed.yaml"
    undisturbed.write_text(REAL.replace("seeds: [0, 2]", "seeds: [2]"))
    monkeypatch.setenv("FUSEBOOK_CHECKPOINTS", str(tmp_path / "other"))  # trained anew, too
    assert run(undisturbed, "--cores", "1")[0] == 0
    again, other = (
        json.loads((folders / name / "simplenet_mnist_s2.json").read_text()) for name in ("killed", "undisturbed")
    )
    assert again["parents"] == other["parents"]
    assert [(curve["points"], curve["barrier"]) for curve in again["curves"]] == [
        (curve["points"], curve["barrier"]) for curve in other["curves"]
    ]


@needs_snakemake
def test_only_one_sweep_runs_a_grid_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LOCAL", tmp_path)
    (found,) = [sweep.load(path) for path in (paths.NOTEBOOKS / "sweeps").glob("tiny.yaml")]
    with sweep._alone(found), pytest.raises(InputError, match="tiny is being run already"), sweep._alone(found):
        pass


@needs_snakemake
@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_shipped_profiles_are_taken_by_snakemake(tmp_path, monkeypatch, capsys, profile):
    if profile == "kubernetes" and importlib.util.find_spec("snakemake_storage_plugin_fs") is None:
        pytest.skip("needs snakemake-storage-plugin-fs, by which Snakemake hands its own files to the pods")
    monkeypatch.setattr(paths, "LOCAL", tmp_path)
    assert sweep.main(["tiny", "--profile", profile, "-n"]) == 0, capsys.readouterr()
    assert "would run 3: simplenet_mnist_s0, simplenet_mnist_s2, simplenet_mnist_s4" in capsys.readouterr().out
    assert "Using profile" in (tmp_path / "tiny" / "logs" / "snakemake.log").read_text()
    assert f"executor: {profile}" in (paths.NOTEBOOKS / "sweeps" / "profiles" / profile / "config.yaml").read_text()


def test_without_snakemake_one_line_says_what_to_install(tmp_path, toy, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "grid.yaml").write_text(f"notebook: {toy}")
    assert sweep.main([str(tmp_path / "grid.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install -e '.[sweep]'" in line


def test_outside_a_clone_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(paths, "IS_CLONE", False)
    assert sweep.main(["tiny"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sweeps run in a clone of fusebook only")


def test_an_unknown_grid_or_profile_is_one_line(capsys):
    for arguments, told in ((["no_such"], "tiny"), ([""], "none given"), (["tiny", "--profile", "x"], "slurm")):
        assert sweep.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
