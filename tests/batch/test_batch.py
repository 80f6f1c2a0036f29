"""lib.batch on small real notebooks: what it refuses before a kernel starts, what a run leaves on disk."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client.kernelspec import KernelSpec

from lib.batch import run as batch
from lib.checks import InputError
from lib.paths import NOTEBOOKS, ROOT, inside
from lib.records import write_record
from tests.records.test_results import pair

PARAMETERS = """\
# Parameters
seed_a: int = 0  # of network A
epochs: int = None  # None: what the preset says
width: float = 1.0
alphas: list[float] = [0.0, 0.5, 1.0]
matchers = ["graph_sm", "none"]
options: dict = {}
evaluate_train: bool = False
preset: str = "quick"
"""


@pytest.fixture
def notebook(tmp_path):
    """write(source) -> the path of a notebook with the parameters above and `source` as its last cell."""

    def write(source: str) -> Path:
        parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        cells = [nbformat.v4.new_markdown_cell("# A toy"), parameters, nbformat.v4.new_code_cell(source)]
        kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = tmp_path / "toy.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), path)
        return path

    return write


@pytest.fixture
def run(tmp_path, capfd):
    """run(*arguments) -> exit status, standard output, lines of standard error; copies go to tmp_path/out."""

    def call(*arguments) -> tuple[int, str, list[str]]:
        output = tmp_path / "out" / "toy.executed.ipynb"
        status = batch.main([*map(str, arguments), "--output", str(output)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err.splitlines()

    return call


def left(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"seed_a": "1e3"}, {"seed_a": 1000}),
        ({"seed_a": str(2**63 - 1)}, {"seed_a": 2**63 - 1}),
        ({"epochs": "3"}, {"epochs": 3}),
        ({"epochs": "None"}, {"epochs": None}),
        ({"width": "2"}, {"width": 2.0}),
        ({"alphas": "[0, 1e-3]"}, {"alphas": [0.0, 0.001]}),
        ({"alphas": "0,0.25"}, {"alphas": [0.0, 0.25]}),
        ({"alphas": [0, 1]}, {"alphas": [0.0, 1.0]}),
        ({"matchers": "[none, graph]"}, {"matchers": ["none", "graph"]}),
        ({"matchers": "none"}, {"matchers": ["none"]}),
        (
            {"matchers": "[graph(solver=ipfp, restarts=3), none]"},
            {"matchers": ["graph(solver=ipfp, restarts=3)", "none"]},
        ),
        ({"matchers": "graph(restarts=3)"}, {"matchers": ["graph(restarts=3)"]}),
        ({"matchers": "['graph(restarts=3, best=true)']"}, {"matchers": ["graph(restarts=3, best=true)"]}),
        ({"matchers": "[]"}, {"matchers": []}),
        ({"options": "{solver: pygmtools}"}, {"options": {"solver": "pygmtools"}}),
        ({"evaluate_train": "true"}, {"evaluate_train": True}),
        ({"preset": "1"}, {"preset": "1"}),
    ],
)
def test_values_take_the_declared_type(notebook, given, expected):
    checked = batch.check_parameters(notebook(""), given)
    assert checked == expected
    assert [type(value) for value in checked.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"seed_a": "0.5"}, "int"),
        ({"seed_a": "nan"}, "int"),
        ({"seed_a": True}, "int"),
        ({"seed_a": "1/0"}, "int"),
        ({"seed_a": "1e99999999"}, "int"),
        ({"epochs": "many"}, "int"),
        ({"width": "wide"}, "float"),
        ({"alphas": "[0, x]"}, "list[float]"),
        ({"alphas": "[0"}, "list[float]"),
        ({"matchers": 3}, "list[str]"),
        ({"options": "[1]"}, "dict"),
        ({"evaluate_train": "2"}, "bool"),
        ({"preset": 1}, "str"),
    ],
)
def test_a_value_of_another_type_is_refused(notebook, given, wanted):
    (name,) = given
    with pytest.raises(InputError, match=f"^{name}: .* is no {re.escape(wanted)}; the default is ") as error:
        batch.check_parameters(notebook(""), given)
    assert (f"-y '{{{name}: [a, b]}}'" in str(error.value)) is wanted.startswith("list")


def test_unknown_parameter_is_one_line_and_nothing_runs(notebook, run, tmp_path):
    path = notebook(f"open({str(tmp_path / 'ran')!r}, 'w')")
    status, out, err = run(path, "-p", "seed", "1", "-p", "width=2")
    assert (status, out, len(err)) == (2, "", 1)
    assert "seed (did you mean seed_a?)" in err[0]
    assert "seed_a, epochs, width, alphas, matchers, options, evaluate_train, preset" in err[0]
    assert left(tmp_path) == [] and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "arguments",
    [["-p", "seed_a"], ["-y", "{a: ["], ["-y", "[1]"], ["-f", "no/such/file.yml"], ["-p", "seed_a", "x"]],
)
def test_what_cannot_be_read_is_one_line(notebook, run, tmp_path, arguments):
    status, out, err = run(notebook(""), *arguments)
    assert (status, out, len(err)) == (2, "", 1)
    assert left(tmp_path) == []


def test_missing_notebook_is_one_line(run):
    status, out, err = run("no_such.ipynb")
    assert (status, out, len(err)) == (2, "", 1)
    assert "no_such.ipynb" in err[0] and "simplenet_mnist" in err[0]


def test_where_there_are_no_notebooks_a_path_is_what_is_accepted(run, monkeypatch, tmp_path):
    monkeypatch.setattr(batch, "NOTEBOOKS", tmp_path)
    assert run("no_such.ipynb") == (2, "", ["no notebook no_such.ipynb; accepted: a path"])


def test_success_shows_the_run_and_keeps_the_executed_copy(notebook, run, tmp_path, monkeypatch):
    decoy = tmp_path / "jupyter" / "kernels" / "python3"
    decoy.mkdir(parents=True)
    (decoy / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))

    (tmp_path / "more.yml").write_text("{width: 3, seed_a: 1}")
    source = "import sys\nprint(sys.executable, seed_a, width, matchers, sep='|')"
    status, out, err = run(
        notebook(source), "-p", "matchers", "[none,", "graph]", "-y", "seed_a: 2", "-f", tmp_path / "more.yml"
    )
    assert (status, err) == (0, [])
    assert "A toy" in out
    assert f"{sys.executable}|2|3.0|['none', 'graph']" in out.splitlines()
    assert left(tmp_path) == ["toy.executed.ipynb"]
    executed = nbformat.read(tmp_path / "out" / "toy.executed.ipynb", as_version=4)
    assert executed.metadata.papermill.parameters.seed_a == 2
    assert executed.cells[-1].outputs[0].text.strip().endswith("['none', 'graph']")


def test_a_run_leaves_its_executed_copy_and_log_in_the_folder_that_it_names(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "LOCAL", tmp_path)
    source = (
        "import sys\nfrom lib.study import places\nfrom lib import paths\nfrom pathlib import Path\n"
        f"paths.LOCAL = Path({str(tmp_path)!r})\n"
        "places('toy', {'seed_a': seed_a, 'results_path': '', 'figures_dir': ''}, 'mnist')\n"
        "print('\\rbar 50 %\\rbar 100 %', end='', file=sys.stderr)\nprint('printed')"
    )
    path = notebook(source)
    for arguments in ((), ("-p", "seed_a", "5")):
        assert batch.main([str(path), *arguments]) == 0
    folders = {folder.name for folder in tmp_path.glob("toy_mnist*")}
    assert len(folders) == 2 and "toy_mnist_s5" in folders
    assert {file.name for file in (tmp_path / "toy_mnist_s5").iterdir()} == {"toy.executed.ipynb", "toy.log"}
    lines = (tmp_path / "toy_mnist_s5" / "toy.log").read_text().splitlines()
    assert "printed" in lines and "bar 100 %" in lines and not any("50 %" in line for line in lines)


def test_runs_that_leave_no_record_end_with_their_places_all_the_same(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batch, "LOCAL", tmp_path)
    source = (
        "import json, os\nfrom pathlib import Path\n"
        f"told = {{'folder': {str(tmp_path / 'own')!r}, 'record': {str(tmp_path / 'own' / 'toy.json')!r}}}\n"
        "Path(os.environ['FUSEBOOK_PLACES']).write_text(json.dumps(told))"
    )
    path = str(notebook(source))
    assert batch.main([path, path]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "records, figures, tables as LaTeX, executed notebooks and logs:",
        f"  {inside(tmp_path / 'own')}",
    ]


def test_a_run_that_names_no_folder_has_one_by_its_parameters(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "LOCAL", tmp_path)
    path = notebook("")
    for arguments in ((), ("-p", "seed_a", "5")):
        assert batch.main([str(path), *arguments]) == 0
    found = {place.relative_to(tmp_path).as_posix() for place in tmp_path.glob("*/*.executed.ipynb")}
    assert found == {"toy/toy.executed.ipynb", "toy_s5/toy.executed.ipynb"}


def test_several_runs_end_with_a_table_and_the_places_of_what_they_left(tmp_path, monkeypatch):
    record = tmp_path / "one.json"
    write_record(record, pair(dataset="mnist"))
    left = [batch.Executed(tmp_path / "a" / "a.ipynb", record), batch.Executed(tmp_path / "b" / "b.ipynb")]
    text = batch.summary(left)
    assert "SimpleNet on mnist" in text and text.splitlines()[-2:] == [f"  {inside(tmp_path / name)}" for name in "ab"]


def test_a_run_of_which_nothing_was_published_stands_beside_one_of_which_there_was(tmp_path):
    left = []
    for name, dataset in (("a", "mnist"), ("b", "mnist-tiny"), ("c", "mnist-tiny")):
        write_record(tmp_path / name / "pair.json", pair(dataset=dataset))
        left.append(batch.Executed(tmp_path / name / "pair.ipynb", tmp_path / name / "pair.json"))
    lines = batch.summary(left).splitlines()
    heads = [line for line in lines if "accuracy, %" in line]
    assert [head.startswith(("SimpleNet on mnist ", "SimpleNet on mnist-tiny ")) for head in heads] == [True] * 3
    assert all("published, %" in head for head in heads)
    assert "published" not in batch.summary(left[1:])


def test_a_user_without_a_home_to_write_in_gets_no_warnings(notebook, tmp_path):
    source = "import matplotlib.pyplot as plt\nfig, _ = plt.subplots()\nfig.canvas.draw()"
    environment = os.environ | {"HOME": "/no/such/home"}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "IPYTHONDIR", "MPLCONFIGDIR"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "lib.batch", str(notebook(source)), "--output", str(tmp_path / "out.ipynb")],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_refused_input_is_one_line_and_leaves_nothing(notebook, run, tmp_path):
    source = "from lib.checks import InputError\nraise InputError('alphas: 1.5 is not in [0, 1]')"
    status, _, err = run(notebook(source))
    assert (status, err) == (2, ["alphas: 1.5 is not in [0, 1]"])
    assert left(tmp_path) == []


def test_a_failure_keeps_the_notebook_as_far_as_it_came(notebook, run, tmp_path):
    failed = tmp_path / "out" / "toy.failed.ipynb"
    status, _, err = run(notebook("print('so far')\n1 / 0"))
    assert status == 1
    assert err == ["toy.ipynb: ZeroDivisionError: division by zero", f"as far as it came: {failed}"]
    assert left(tmp_path) == [failed.name]
    assert any("so far" in str(cell.get("outputs")) for cell in nbformat.read(failed, as_version=4).cells)

    assert run(notebook("1"))[0] == 0
    assert left(tmp_path) == ["toy.executed.ipynb"], "a failed copy is stale once the notebook ran"


def kernel(monkeypatch, source: str) -> None:
    """Kernels of `source`, which has the standard error that a notebook's process starts with as `stderr`."""
    launch = "from ipykernel import kernelapp\nkernelapp.launch_new_instance()"
    source = f"import os, sys\nstderr = os.dup(2)\n{source}\n{launch}"
    spec = KernelSpec(argv=[sys.executable, "-c", source, "-f", "{connection_file}"], language="python")
    monkeypatch.setattr(batch.OwnKernel, "kernel_spec", spec)


@pytest.mark.parametrize(
    ("source", "status", "last"),
    [
        ("1", 0, []),
        ("from lib.checks import InputError\nraise InputError('alphas: no')", 2, ["alphas: no"]),
        ("1 / 0", 1, ["toy.ipynb: ZeroDivisionError: division by zero", "as far as it came: {failed}"]),
    ],
    ids=["done", "refused", "failed"],
)
def test_noise_of_a_kernel_that_ends_is_not_shown(source, status, last, notebook, run, tmp_path, monkeypatch):
    # made before the notebook runs: what a kernel still says while it is shut down depends on who stops it, and when
    kernel(monkeypatch, "os.write(stderr, b'Uncaught exception in ZMQStream callback')")
    failed = tmp_path / "out" / "toy.failed.ipynb"
    ended, _, err = run(notebook(source))
    assert (ended, err) == (status, [line.format(failed=failed) for line in last])


def test_what_a_kernel_says_that_dies_stands_before_the_error(notebook, run, tmp_path, monkeypatch):
    failed = f"as far as it came: {tmp_path / 'out' / 'toy.failed.ipynb'}"
    kernel(monkeypatch, "sys.exit('no module named torch')")
    status, _, err = run(notebook("1"))
    died = "toy.ipynb: RuntimeError: Kernel died before replying to kernel_info"
    assert (status, err) == (1, ["no module named torch", died, failed])

    kernel(monkeypatch, "import faulthandler\nfaulthandler.enable(stderr)")
    bar = "import sys, time\nprint('50 %', end='', file=sys.stderr, flush=True)\n"
    status, _, err = run(notebook(f"{bar}time.sleep(0.5)\nimport faulthandler\nfaulthandler._sigsegv()"))
    first, second, *_, died, last = err
    assert (status, first, second) == (1, "50 %", "Fatal Python error: Segmentation fault")
    assert (died, last) == ("toy.ipynb: DeadKernelError: Kernel died", failed)


def test_kernels_that_start_at_the_same_time_take_no_port_of_each_other(tmp_path):
    with batch.own_kernel() as kernel:
        assert kernel().transport == ("ipc" if hasattr(socket, "AF_UNIX") else "tcp")
    too_long = tmp_path / ("x" * 120)
    too_long.mkdir()
    assert type("Kernel", (batch.OwnKernel,), {"folder": too_long})().transport == "tcp"


def test_the_report_says_how_the_run_stands(notebook, run, tmp_path):
    report = tmp_path / "report.json"

    def told(source: str) -> dict:
        run(notebook(source), "--report", report)
        return json.loads(report.read_text()) | {"seconds": 0}

    source = f"import json\nseen = json.load(open({str(report)!r}))\nraise ValueError(seen['state'], seen['cell'])"
    failed = {"state": "failed", "seconds": 0, "count": 2, "cell": "import json"}
    assert told(source) == failed | {"error": "ValueError: ('running', 'import json')"}
    refused = told("from lib.checks import InputError\nraise InputError('alphas: no')")
    assert (refused["state"], refused["error"]) == ("refused", "InputError: alphas: no")
    assert told("1") == {"state": "done", "seconds": 0, "count": 2, "cell": "1", "error": None}


def test_a_line_left_open_by_one_stream_is_ended_before_the_other_writes(capsys):
    out, err = batch.Live(sys.stdout), batch.Live(sys.stdout)
    err.write("\rbar 50 %")
    err.write("\rbar 100 %")
    out.write("printed\n")
    err.write("\n")
    out.write("next\n")
    assert capsys.readouterr().out == "\rbar 50 %\rbar 100 %\nprinted\nnext\n"
    err.write("\rbar 50 %")
    out.close()
    out.write("an error\n")
    assert capsys.readouterr().out == "\rbar 50 %\nan error\n"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_name_in_a_parameters_cell_can_be_given(path):
    """papermill's reader skips what it cannot parse: two `=` on a line, comments included; `|` in a type."""
    cells = nbformat.read(path, as_version=4).cells
    (source,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    scope: dict[str, object] = {}
    exec(source, {}, scope)
    scope.pop("__annotations__", None)
    assert list(papermill.inspect_notebook(path)) == list(scope)
    assert batch.check_parameters(path, scope) == scope, "a default of another type than its annotation"
