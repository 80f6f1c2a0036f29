"""What is left when a process is killed, a disk is full, two runs race or Ctrl-C is pressed: each made to happen to a
real process. Afterwards the same run again gives the undisturbed result, and nobody has to tidy up."""

import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from lib import loaders, models, paths
from lib.batch import run as batch
from lib.checks import InputError
from lib.models import Recipe, Spec
from lib.records import read_arrays, read_record, run_record, write_record
from lib.study import zoo

if not hasattr(signal, "SIGKILL") or "forkserver" not in multiprocessing.get_all_start_methods():
    pytest.skip("this system has neither kill -9 nor forked processes", allow_module_level=True)

FFCV = importlib.util.find_spec("ffcv") is not None
needs_ffcv = pytest.mark.skipif(not FFCV, reason="FFCV is not installed")

# Importing torch takes seconds: one server does it, and each process here is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ["pytest", "lib.batch.run", "lib.records", "lib.study.zoo", *["lib.loaders.ffcv"] * FFCV]
PROCESSES.set_forkserver_preload(PRELOADED)


FAULTS: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def told(announce):
    """Says at the end how many faults were made to happen."""
    yield
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(FAULTS.items()))
    announce(f"{sum(FAULTS.values())} faults made to happen: {kinds}")


# --- processes that can be killed, starved of disk, or counted ---


def _job(function, arguments, said: Path, options: dict) -> None:
    """What runs in the process: `function`, its output in the file `said`, its errors told as `make` tells them."""
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite itself runs in the background
    if "size" in options:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if options["die"] else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["size"], options["size"]))
    steps = _count_steps(options["folder"], options.get("step"))
    try:
        status = function(*arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        status = 2
    if options.get("count"):
        print(f"steps: {len(steps)}")
    sys.exit(status if isinstance(status, int) else 0)


def _count_steps(folder: Path, fatal: int | None) -> list[str]:
    """Notes every change this process asks of a file in `folder`, and kills the process at number `fatal`."""
    steps: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "tempfile.mkstemp"):
            return
        if str(arguments[0]).startswith(str(folder)) and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            steps.append(event)
            if len(steps) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return steps


class Jobs:
    """Starts processes that work in `folder` and tells what they said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started, self.said = folder / "work", [], folder / "said"
        self.folder.mkdir()
        self.said.mkdir()

    def start(self, function, *arguments, **options):
        said = self.said / str(len(self.started))
        process = PROCESSES.Process(
            target=_job, args=(function, (self.folder, *arguments), said, {"folder": self.folder} | options)
        )
        process.start()
        self.started.append(process)
        FAULTS["kills"] += "step" in options or options.get("die", False)
        FAULTS["full disks"] += not options.get("die", True)
        return process, said

    def undisturbed(self, function, *arguments) -> dict[str, bytes]:
        """The files that a run leaves which nothing disturbs; the folder is as it was before it."""
        assert self.run(function, *arguments)[0] == 0
        files = self.files()
        self.reset()
        return files

    def stop(self, process, how: int = signal.SIGKILL) -> None:
        FAULTS["kills" if how == signal.SIGKILL else "Ctrl-C"] += 1
        os.kill(process.pid, how)

    def join(self, racing: list) -> None:
        """Waits for processes that make the same file at the same time, and for their success."""
        FAULTS["races"] += 1
        for process in racing:
            process.join()
            assert process.exitcode == 0

    def run(self, function, *arguments, **options) -> tuple[int, str]:
        process, said = self.start(function, *arguments, **options)
        process.join()
        return process.exitcode, said.read_text()

    def steps(self, function, *arguments) -> int:
        """How many changes of files an undisturbed run asks for."""
        status, said = self.run(function, *arguments, count=True)
        assert status == 0, said
        return int(said.rpartition("steps: ")[2])

    def files(self) -> dict[str, bytes]:
        """Everything in the folder, {path: content}, but lock files: one that nobody holds says nothing."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}

    def reset(self, files: dict[str, bytes] | None = None) -> None:
        """Leaves `files` in the folder and nothing else."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for name, content in (files or {}).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)


@pytest.fixture
def jobs(tmp_path):
    made = Jobs(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.join()


def wait_for(condition, process) -> None:
    while not condition():
        assert process.is_alive(), "it ended too soon"
        time.sleep(0.005)


def one_line(said: str) -> bool:
    return said.count("\n") == 1 and "Traceback" not in said


# --- what they do ---


def dataset(channels: int = 1, count: int = 200) -> loaders.Dataset:
    side = 28 if channels == 1 else 32
    labels = torch.arange(count) % 10
    images = torch.randint(0, 60, (count, channels, side, side), generator=torch.Generator().manual_seed(0)).byte()
    images[torch.arange(count), :, labels] += 150  # a bright row tells the class
    split = loaders.Split(images, labels)
    return loaders.Dataset("tiny", split, split, loaders.checksum(split))


def train(folder: Path, epochs: int = 3, seed: int = 0, name: str = "net") -> None:
    paths.CHECKPOINTS = folder
    spec = Spec("mlp", seed, Recipe(epochs=epochs, batch_size=20, lr=0.05, augment=False), width=0.05)
    models.trained(spec, dataset(), path=folder / f"{name}.safetensors", progress=False)


def checkpoint(folder: Path, value: float) -> None:
    state = {"weight": torch.full((64, 64), value), "bias": torch.full((64,), value)}
    models.save_checkpoint(folder / "net.safetensors", state, {"spec": {"seed": int(value)}})


def record(folder: Path, value: int, times: int = 1) -> None:
    provenance = dict.fromkeys(("git", "dirty", "versions", "device", "threads", "started", "seconds"))
    told = run_record.record(
        experiment="faults", preset="quick", dataset=None, rows=[{"value": value}] * 100,
        provenance=provenance | {"dataset_sha256": None, "parameters": {}},
    )  # fmt: skip
    noise = np.random.default_rng(0).normal(size=500)  # does not compress
    for _ in range(times):
        write_record(folder / "run.json", told, {"value": noise + value})


def decode(folder: Path) -> None:
    paths.DATA = paths.CACHE = folder
    found = loaders.load("cifar10-jpeg")
    print("decoded", found.sha256, len(found.train))


def beton(folder: Path) -> None:
    from lib.loaders import ffcv as ffcv_loader

    paths.CACHE = folder
    ffcv_loader.write_beton(dataset(3, 400).train, "tiny")


def parquet(folder: Path, count: int = 40) -> None:
    import pyarrow.parquet
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "cifar10-jpeg").mkdir()
    for which in ("train", "test"):
        rows = []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG")
            rows.append({"bytes": buffer.getvalue(), "path": ""})
        table = pyarrow.table({"img": rows, "label": [k % 10 for k in range(count)]})
        pyarrow.parquet.write_table(table, folder / f"cifar10-jpeg/{which}-0.parquet")


# --- kill -9 ---


def test_training_killed_at_any_change_of_a_file_ends_in_the_same_bytes(jobs):
    count = jobs.steps(train)
    undisturbed = jobs.files()
    assert sorted(undisturbed) == ["net.json", "net.safetensors"]
    for step in sorted(random.Random(0).sample(range(1, count + 1), 8)):
        jobs.reset()
        assert jobs.run(train, step=step)[0] == -signal.SIGKILL
        if "net.safetensors" in jobs.files() and "net.json" in jobs.files():
            models.read_state(jobs.folder / "net.safetensors")
        assert jobs.run(train)[0] == 0
        assert jobs.files() == undisturbed, f"killed at change {step} of {count}"


def test_training_killed_again_and_again_at_random_times_ends_in_the_same_bytes(jobs, tmp_path):
    rng, epochs = random.Random(0), 60
    undisturbed = jobs.undisturbed(train, epochs)
    for _ in range(5):
        process, _ = jobs.start(train, epochs)
        begun = time.time_ns()
        resumes = partial(jobs.folder.glob, "local/[!.]*.resume")
        wait_for(lambda at=begun, find=resumes: any(p.stat().st_mtime_ns > at for p in find()), process)
        time.sleep(rng.uniform(0, 0.1))
        jobs.stop(process)
        process.join()
    assert jobs.run(train, epochs)[0] == 0
    assert jobs.files() == undisturbed


@pytest.mark.parametrize(
    ("write", "old", "new", "read"),
    [
        (checkpoint, (1.0,), (2.0,), lambda folder: float(models.read_state(folder / "net.safetensors")["bias"][0])),
        (record, (1,), (2,), lambda folder: read_record(folder / "run.json")["rows"][0]["value"]),
    ],
    ids=["checkpoint", "record"],
)
def test_a_write_killed_at_any_change_or_byte_leaves_the_old_or_the_new(write, old, new, read, jobs):
    jobs.run(write, *old)
    before = jobs.files()
    count = jobs.steps(write, *new)
    undisturbed = jobs.files()
    largest = max(map(len, undisturbed.values()))
    rng = random.Random(0)
    deaths = [{"step": step} for step in range(1, count + 1)]
    deaths += [{"size": rng.randrange(largest), "die": True} for _ in range(4)]
    seen = set()
    for death in deaths:
        jobs.reset(before)
        assert jobs.run(write, *new, **death)[0] in (-signal.SIGKILL, -signal.SIGXFSZ)
        try:
            seen.add(read(jobs.folder))
        except InputError as error:  # a checkpoint whose sidecar is still the old one's
            assert "SHA-256" in str(error)
    assert seen <= {old[0], new[0]}
    assert old[0] in seen
    jobs.run(write, *new)
    assert {name: content for name, content in jobs.files().items() if not name.startswith(".")} == undisturbed


def test_decoding_killed_at_any_change_or_byte_gives_the_same_images_again(jobs):
    parquet(jobs.folder)
    count = jobs.steps(decode)
    undisturbed = jobs.files()
    (name,) = [name for name in undisturbed if name.endswith(".safetensors")]
    for death in [*({"step": step} for step in range(1, count + 1, 2)), {"size": 100_000, "die": True}]:
        (jobs.folder / name).unlink()
        assert jobs.run(decode, **death)[0] in (-signal.SIGKILL, -signal.SIGXFSZ)
        assert jobs.run(decode)[0] == 0
        assert jobs.files() == undisturbed


@needs_ffcv
def test_a_beton_file_killed_at_any_change_or_byte_is_written_again(jobs):
    count = jobs.steps(beton)
    undisturbed = jobs.files()
    for death in [*({"step": step} for step in range(1, count + 1, 4)), {"size": 1_000_000, "die": True}]:
        jobs.reset()
        assert jobs.run(beton, **death)[0] in (-signal.SIGKILL, -signal.SIGXFSZ)
        assert jobs.run(beton)[0] == 0
        assert jobs.files() == undisturbed


def test_a_damaged_resume_file_is_said_and_training_starts_afresh(jobs):
    count = jobs.steps(train)
    undisturbed = jobs.files()
    jobs.reset()
    jobs.run(train, step=count // 2)
    (resume,) = jobs.folder.glob("local/[!.]*.resume")
    whole = resume.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        resume.write_bytes(damaged)
        status, said = jobs.run(train)
        FAULTS["damaged files"] += 1
        assert status == 0
        assert "cannot be read" in said and "starting afresh" in said and one_line(said)
        assert jobs.files() == undisturbed
        jobs.reset()
        resume.parent.mkdir(exist_ok=True)


# --- a full disk ---


@pytest.mark.parametrize(
    ("write", "arguments"),
    [(train, ()), (checkpoint, (2.0,)), (record, (2,)), pytest.param(beton, (), marks=needs_ffcv)],
    ids=["training", "checkpoint", "record", "beton"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(write, arguments, jobs):
    jobs.run(write, *arguments)
    undisturbed = jobs.files()
    largest, rng = max(map(len, undisturbed.values())), random.Random(0)
    for size in [600, *(rng.randrange(600, largest) for _ in range(2))]:  # what is said goes into a file, too
        jobs.reset()
        status, said = jobs.run(write, *arguments, size=size, die=False)
        assert status == 2
        assert "cannot be written: File too large" in said.splitlines()[-1] and "Traceback" not in said
        assert all(undisturbed[name] == content for name, content in jobs.files().items() if "local/" not in name)
        assert not [name for name in jobs.files() if "/." in f"/{name}"]
        assert jobs.run(write, *arguments)[0] == 0
        assert jobs.files() == undisturbed


def test_images_are_decoded_although_the_disk_is_too_full_to_keep_them(jobs):
    parquet(jobs.folder)
    before = jobs.files()
    status, said = jobs.run(decode, size=5000, die=False)
    assert status == 0 and "decoded" in said
    assert jobs.files() == before


def test_a_full_disk_stops_a_notebook_in_one_line(jobs, tmp_path):
    notebook = toy(tmp_path, "print(1)")
    status, said = jobs.run(run_notebook, notebook, size=600, die=False)
    assert status in (1, 2)
    assert "File too large" in said and "Traceback" not in said
    assert "toy.executed.ipynb" not in jobs.files()


# --- two runs for one file ---


def test_two_runs_for_one_checkpoint_train_it_once(jobs):
    undisturbed = jobs.undisturbed(train, 30)
    first, said_first = jobs.start(train, 30)
    wait_for(lambda: list(jobs.folder.glob("local/*.lock")), first)
    second, said = jobs.start(train, 30)
    jobs.join([first, second])
    assert jobs.files() == undisturbed
    told = said.read_text().splitlines()
    assert told == [
        "training: another process trains net.safetensors, waiting for it",
        "training: already trained, net.safetensors",
    ]
    assert said_first.read_text() == ""


def test_whoever_waits_goes_on_where_a_killed_run_stopped(jobs):
    undisturbed = jobs.undisturbed(train, 60)
    first, _ = jobs.start(train, 60)
    wait_for(lambda: list(jobs.folder.glob("local/[!.]*.resume")), first)
    others = [jobs.start(train, 60) for _ in range(2)]
    wait_for(lambda: all(said.exists() and "waiting" in said.read_text() for _, said in others), first)
    jobs.stop(first)
    jobs.join([process for process, _ in others])
    assert jobs.files() == undisturbed


@pytest.mark.parametrize("write", [decode, pytest.param(beton, marks=needs_ffcv)])
def test_runs_that_race_for_a_cache_end_in_one_whole_file(write, jobs):
    if write is decode:
        parquet(jobs.folder)
    before = jobs.files()
    jobs.run(write)
    undisturbed = jobs.files()
    for name in undisturbed.keys() - before.keys():
        (jobs.folder / name).unlink()
    jobs.join([jobs.start(write)[0] for _ in range(4)])
    assert jobs.files() == undisturbed


def test_a_record_that_several_write_is_always_a_whole_one(jobs):
    record(jobs.folder, 0)
    racing = [jobs.start(record, value, 40)[0] for value in (1, 2, 3)]
    while any(process.is_alive() for process in racing):
        rows = read_record(jobs.folder / "run.json")["rows"]
        assert len(rows) == 100 and len({row["value"] for row in rows}) == 1
    jobs.join(racing)
    assert sorted(jobs.files()) == ["run.json", "run.npz"]
    value = read_record(jobs.folder / "run.json")["rows"][0]["value"]
    undisturbed = np.random.default_rng(0).normal(size=500) + value
    assert np.array_equal(read_arrays(jobs.folder / "run.json")["value"], undisturbed), "arrays of another run"


# --- Ctrl-C, and a kernel that dies ---


def run_zoo(folder: Path) -> int:
    paths.CHECKPOINTS = folder
    spec = Spec("mlp", 0, Recipe(epochs=80, batch_size=20, lr=0.05, augment=False), width=0.05)
    zoo.SPECS = {"tiny": ("tiny", spec)}
    models.open_dataset = lambda *_: dataset()
    sys.argv = ["zoo", "tiny", "--device", "cpu"]
    return zoo.main()


def test_ctrl_c_stops_the_zoo_in_one_line_and_the_same_command_goes_on(jobs):
    undisturbed = jobs.undisturbed(run_zoo)
    process, said = jobs.start(run_zoo)
    wait_for(lambda: list(jobs.folder.glob("local/[!.]*.resume")), process)
    jobs.stop(process, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    *_, last = said.read_text().splitlines()
    assert last.startswith("interrupted") and "Traceback" not in said.read_text()
    assert not [name for name in jobs.files() if not name.endswith(".resume")]
    assert jobs.run(run_zoo)[0] == 0
    assert jobs.files() == undisturbed


def test_a_full_disk_stops_the_zoo_in_one_line(jobs):
    status, said = jobs.run(run_zoo, size=1000, die=False)
    assert status == 2
    assert said.splitlines()[-1].startswith("error: ") and "Traceback" not in said


def toy(folder: Path, source: str) -> Path:
    """A notebook of one cell."""
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), folder / "toy.ipynb")
    return folder / "toy.ipynb"


def run_notebook(folder: Path, notebook: Path) -> int:
    return batch.main([str(notebook), "--output", str(folder / "toy.executed.ipynb")])


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    except FileNotFoundError:
        return Path("/proc").is_dir() is False


DIES = """
import os, signal
from pathlib import Path
os.kill(os.getpid(), signal.SIGKILL)
Path({folder!r}, "record.json").write_text("done")
"""


def test_a_kernel_that_dies_in_a_cell_is_one_line_and_leaves_no_record(jobs, tmp_path):
    notebook = toy(tmp_path, DIES.format(folder=str(jobs.folder)))
    status, said = jobs.run(run_notebook, notebook)
    FAULTS["kills"] += 1
    assert status == 1
    failed = jobs.folder / "toy.failed.ipynb"
    died = ["toy.ipynb: DeadKernelError: Kernel died", f"as far as it came: {failed}"]
    assert said.splitlines() == ["== toy.ipynb", *died]
    assert list(jobs.files()) == ["toy.failed.ipynb"]


SLEEPS = """
import os, time
from pathlib import Path
Path({folder!r}, "kernel.part").write_text(str(os.getpid()))
os.rename({folder!r} + "/kernel.part", {folder!r} + "/kernel")
time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux tells here whether a process lives")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_notebook_that_is_stopped_takes_its_kernel_with_it(how, jobs, tmp_path):
    notebook, kernel = toy(tmp_path, SLEEPS.format(folder=str(jobs.folder))), jobs.folder / "kernel"
    process, said = jobs.start(run_notebook, notebook)
    wait_for(kernel.exists, process)
    pid = int(kernel.read_text())
    jobs.stop(process, how)
    process.join()
    while alive(pid):
        time.sleep(0.05)
    if how == signal.SIGINT:
        assert process.exitcode == 130
        assert said.read_text().splitlines()[-1] == "interrupted: no executed notebook"
        assert "Traceback" not in said.read_text()
        assert list(jobs.files()) == ["kernel"]
    assert not (jobs.folder / "toy.executed.ipynb").exists()


def test_a_checkpoint_written_for_another_sidecar_is_refused_and_trained_again(tmp_path, capsys, monkeypatch):
    """What a kill between the two files leaves, and what two runs for one name could."""
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    train(tmp_path, 1, seed=0, name="net")
    train(tmp_path, 1, seed=1, name="other")
    whole = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(InputError, match="its SHA-256 is not the one in net.json"):
        models.read_state(tmp_path / "net.safetensors")
    train(tmp_path, 1, seed=0, name="net")
    assert "not the file its sidecar tells of" in capsys.readouterr().out
    assert (tmp_path / "net.safetensors").read_bytes() == whole
    assert json.loads((tmp_path / "net.json").read_text())["sha256"] == paths.file_sha256(tmp_path / "net.safetensors")


# --- the whole of `make reproduce` ---

TINY = "-p dataset mnist-5k -p epochs 2 -p limit_train 1000 -p limit_test 100 -p match_images 100 -p alphas [0.0,0.5]"

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(target: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the environment with which `target` runs tiny and writes in `folder` alone."""
    folders = {f"FUSEBOOK_{name}": str(folder / name.lower()) for name in ("CHECKPOINTS", "RESULTS", "FIGURES")}
    return ["make", "-C", str(paths.ROOT), target, f"PYTHON={sys.executable}", f"ARGS={TINY}"], os.environ | folders


def run_make(target: str, folder: Path) -> None:
    command, environment = make(target, folder)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def outcome(folder: Path) -> dict[str, object]:
    """What runs left, {name: what tells of no time and no place}. Every file that is there has to be a whole one."""
    told = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"):
        name = path.relative_to(folder).as_posix()
        told[name] = None
        if path.name.startswith(".") or path.suffix == ".resume":  # unfinished by its name
            continue
        if path.suffix == ".ipynb":
            nbformat.read(path, as_version=4)
        elif path.suffix == ".safetensors":
            models.read_state(path)
            told[name] = paths.file_sha256(path)
        elif path.suffix == ".json" and name.startswith("results/"):
            record = read_record(path)
            told[name] = [record["parents"], [[curve["points"], curve["barrier"]] for curve in record["curves"]]]
            told[name] += [{key: array.tolist() for key, array in read_arrays(path).items()}]
    return told


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict[str, object], float, Path]:
    """What `make reproduce` leaves that nothing disturbs, the seconds it took, and where it lies."""
    folder, begun = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    run_make("reproduce", folder)
    return outcome(folder), time.monotonic() - begun, folder


@needs_make
def test_make_reproduce_killed_at_random_moments_ends_in_the_undisturbed_result(undisturbed, tmp_path):
    wanted, took, _ = undisturbed
    assert {"simplenet_mnist.json", "vgg11_cifar10.json"} <= {name.rpartition("/")[2] for name in wanted}
    command, environment = make("reproduce", tmp_path)
    rng, quiet = random.Random(0), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.1, 0.9) * took)
        with contextlib.suppress(ProcessLookupError):  # on a machine that was busy before, a run may be over by then
            os.killpg(process.pid, signal.SIGKILL)
            FAULTS["kills"] += 1
        process.wait()
        outcome(tmp_path)
    run_make("reproduce", tmp_path)  # at once, though a kernel may take a second to notice that it is alone
    assert outcome(tmp_path) == wanted


def small_disk(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a shell script that may mount file systems, for itself alone."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", script, "sh", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@needs_make
@pytest.mark.skipif(
    shutil.which("unshare") is None or small_disk("mount -t tmpfs none /tmp").returncode != 0,
    reason="no user may mount a small disk here (Linux user namespaces)",
)
def test_a_disk_that_fills_up_is_one_line_and_with_more_room_all_is_as_ever(undisturbed, tmp_path):
    wanted, _, made = undisturbed
    size = sum((made / name).stat().st_size for name in wanted if "simplenet" in name)
    disk, after = tmp_path / "disk", tmp_path / "after"
    disk.mkdir()
    after.mkdir()
    command, environment = make("simplenet", disk)
    script = """
        disk=$1 after=$2 small=$3 half=$4; shift 4
        mount -t tmpfs -o size="$small" none "$disk"
        if env "$@" >"$after/small.txt" 2>&1; then exit 1; fi
        cp -r "$disk" "$after/small"
        mount -o remount,size="$half" "$disk"
        if env "$@" >"$after/half.txt" 2>&1; then exit 1; fi
        cp -r "$disk" "$after/half"
        mount -o remount,size=1g "$disk"
        env "$@" >/dev/null 2>&1
        cp -r "$disk" "$after/roomy"
    """
    settings = [f"{name}={value}" for name, value in environment.items() if name.startswith("FUSEBOOK_")]
    sizes = [str(int(share * size)) for share in (0.02, 0.5)]
    done = small_disk(script, str(disk), str(after), *sizes, *settings, *command)
    FAULTS["full disks"] += 2
    printed = {path.stem: path.read_text() for path in after.glob("*.txt")}
    assert done.returncode == 0, (done.stdout, printed)
    assert sorted(printed) == ["half", "small"]
    for full, text in printed.items():
        assert "No space left on device" in text and "Traceback" not in text, full
        assert not [name for name in outcome(after / full) if "/." in name], full
    assert outcome(after / "roomy") == {name: told for name, told in wanted.items() if "simplenet" in name}
