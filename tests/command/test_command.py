"""The command line: what it writes, and what it refuses in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from lib import command, fusion, loaders, matching, models, paths
from lib.checks import InputError
from lib.command import networks

OWN = """
import torch
from torch import nn

def make(hidden=8):
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))

network = make()
words = lambda: "no network"

def broken():
    raise RuntimeError("out of order")
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to work in, where a module `mine` lies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("mine", None)


def saved(name: str, network: torch.nn.Module, **sidecar) -> str:
    path = paths.Path(f"{name}.safetensors").absolute()
    models.save_checkpoint(path, models.state_of(network), sidecar)
    if not sidecar:
        path.with_suffix(".json").unlink()
    return f"{name}.safetensors"


def mlp(seed: int) -> torch.nn.Module:
    return models.build("mlp", width=1 / 32, norm="batch", seed=seed)


SPEC = {"model": "mlp", "width": 1 / 32, "norm": "batch"}


@pytest.fixture
def pair():
    """Two checkpoints with sidecars, inputs and labelled inputs in files."""
    x = torch.randn(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    np.save("images.npy", x.numpy())
    np.savez("test.npz", images=x[:30].numpy(), labels=np.arange(30) % 10)
    return [saved(name, mlp(seed), spec=SPEC, dataset="elsewhere") for seed, name in enumerate("ab")]


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    try:
        status = command.main([str(each) for each in arguments])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def refused(capsys, *arguments: object) -> str:
    """What it says, in one line, and that nothing came of it."""
    before = {path: path.stat().st_mtime_ns for path in paths.Path().rglob("*") if "__pycache__" not in path.parts}
    status, printed, said = run(capsys, *arguments)
    assert status == 2 and len(said.splitlines()) == 1, said
    after = {path: path.stat().st_mtime_ns for path in paths.Path().rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    return said


def test_it_fuses_what_python_fuses_and_writes_weights_sidecar_and_card(capsys, pair):
    status, printed, said = run(
        capsys, "fuse", *pair, "--images", "images.npy", "--test", "test.npz", "--shares", "0.3,0.7"
    )
    assert (status, said) == (0, "")
    x = torch.from_numpy(np.load("images.npy"))
    wanted = fusion.fuse([mlp(0), mlp(1)], images=x, shares=[0.3, 0.7], progress=False)
    network = fusion.load("fused.safetensors", mlp(2))
    assert torch.equal(network(x), wanted.model()(x))
    sidecar, card = json.loads(paths.Path("fused.json").read_text()), paths.Path("fused.md").read_text()
    assert sidecar["spec"]["model"] == "mlp" and sidecar["fused"]["shares"] == [0.3, 0.7]
    labelled = (x[:30], torch.arange(30) % 10)
    assert sidecar["measured"] == wanted.measure(labelled) | {"on": "the images in test.npz"}
    for name in pair:
        # of the file and of its weights, alike where that is float32 and safetensors
        assert card.count(paths.file_sha256(paths.Path(name))) == 2
    assert f"| **fused** | {100 * sidecar['measured']['fused']['accuracy']:.2f} |" in card and "elsewhere" in card
    assert "60 of the images in images.npy" in card and "accuracy on the images in test.npz (30): fused" in printed
    assert printed.splitlines()[-1] == "wrote fused.safetensors, fused.json, fused.md"


def test_it_says_whose_training_images_it_measures_on(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ["simplenet-s0", "simplenet-s1"]
    options = ["--images", "mnist-5k", "--matcher", "none", "--correction", "none", "--test-count", 50]
    status, printed, said = run(capsys, "fuse", *shipped, *options)
    assert (status, said) == (0, "")
    told = "the test images of mnist-5k, on which simplenet-s0 and simplenet-s1 were trained"
    assert f"accuracy on {told} (50)" in printed and told in paths.Path("fused.md").read_text()


def test_a_network_is_not_fused_with_itself(capsys, pair):
    assert "are the same network" in refused(capsys, "fuse", pair[0], pair[0], "--images", "images.npy")


def test_what_it_wrote_is_a_parent_again(capsys, pair):
    assert run(capsys, "fuse", *pair, "--images", "images.npy", "--budget", 1.5)[0] == 0
    told = json.loads(paths.Path("fused.json").read_text())["fused"]["structure"]
    card = paths.Path("fused.md").read_text()
    assert f"{told['parameters']:.3g} times its parameters" in card and "Nothing was measured" in card
    said = refused(capsys, "fuse", "fused", pair[0], "--images", "images.npy", "-o", "again.safetensors")
    assert "BlockLinear" in said  # of another structure
    run(capsys, "fuse", *pair, "--images", "images.npy", "--matcher", "none", "--correction", "none", "--overwrite")
    assert run(capsys, "fuse", "fused.safetensors", *pair, "--images", "images.npy", "-o", "again.safetensors")[0] == 0


def test_without_sidecars_the_options_say_the_architecture(capsys, pair):
    bare = [saved(f"{name}{name}", mlp(seed)) for seed, name in enumerate("ab")]
    given = ["--images", "images.npy", "--correction", "bn_reset"]
    assert "accepted: simplenet" in refused(capsys, "fuse", *bare, *given)
    said = refused(capsys, "fuse", *bare, *given, "--model", "mlp")
    assert "does not fit MLP" in said and "--width" in said
    assert run(capsys, "fuse", *bare, *given, "--model", "mlp", "--width", 1 / 32, "--norm", "batch")[0] == 0
    ours = fusion.load("fused.safetensors", mlp(0)).state_dict()
    assert run(capsys, "fuse", *pair, *given, "-o", "told.safetensors")[0] == 0
    assert all(
        torch.equal(value, ours[name])
        for name, value in models.read_state(paths.Path("told.safetensors").absolute()).items()
    )


def test_a_network_of_ones_own_is_fused_pruned_and_traced(capsys, here):
    from_own = networks._own("mine:make", {"hidden": 12})
    files = [saved(name, networks._own("mine:make", {"hidden": 12})) for name in ("one", "two")]
    torch.save({"x": torch.randn(50, 6), "y": torch.arange(50) % 3}, "data.pt")
    own = ["--model", "mine:make", "--option", "hidden=12"]
    status, printed, _ = run(capsys, "fuse", *files, *own, "--images", "data.pt", "--test", "data.pt")
    assert status == 0 and "accuracy on the images in data.pt (50)" in printed
    assert fusion.load("fused.safetensors", from_own)(torch.randn(2, 6)).shape == (2, 3)
    # a file cannot name code that is to be imported
    assert "model" not in json.loads(paths.Path("fused.json").read_text()).get("spec", {})
    status, printed, _ = run(capsys, "trace", *own, "--shape", 6)
    assert status == 0 and "0         12  0.weight:0" in printed and "permuting changes the outputs" in printed
    shape = ["--shape", "6", "--matcher", "weight", "--correction", "none", "-o", "blind.safetensors"]
    assert run(capsys, "fuse", *files, *own, *shape)[0] == 0
    assert "none were looked at" in paths.Path("blind.md").read_text()
    assert run(capsys, "fuse", files[0], *own, "--images", "data.pt", "--budget", 0.5, "-o", "half.safetensors")[0] == 0


def test_networks_that_know_other_classes_say_so_in_their_sidecars(capsys):
    split = loaders.load("mnist-5k").train
    known = {"a": [0, 1, 2], "b": [2, 3]}
    for seed, (name, classes) in enumerate(known.items()):
        network = models.build("simplenet", width=1 / 8, classes=len(classes), seed=seed)
        spec = {"model": "simplenet", "width": 1 / 8, "classes": classes, "own_classes": True}
        saved(name, network, spec=spec, dataset="mnist-5k")
    images_, labels = split.images[:200].float() / 255, split.labels[:200]
    safetensors.torch.save_file({"images": images_, "labels": labels}, "test.safetensors")
    fuse = ["fuse", "a.safetensors", "b.safetensors", "--images", "test.safetensors", "--test", "test.safetensors"]
    assert run(capsys, *fuse, "--correction", "none")[0] == 0
    measured = json.loads(paths.Path("fused.json").read_text())["measured"]
    assert measured["images"] == int((labels < 4).sum()) and measured["mean"] == "outputs"
    kept = labels < 4
    for seed, classes in enumerate(known.values()):
        logits = models.build("simplenet", width=1 / 8, classes=len(classes), seed=seed)(images_[kept])
        right = torch.tensor(classes)[logits.argmax(dim=1)] == labels[kept]
        assert measured["parents"][seed]["accuracy"] == pytest.approx(float(right.double().mean()))
    assert models.read_state(paths.Path("fused.safetensors").absolute())["fc2.weight"].shape[0] == 4
    assert run(capsys, *fuse, "--correction", "none", "--labels", "0-2;2,3", "-o", "told.safetensors")[0] == 0
    assert paths.Path("told.safetensors").read_bytes() == paths.Path("fused.safetensors").read_bytes()


def test_the_data_set_that_sidecars_name_is_taken(capsys):
    for seed, name in enumerate("ab"):
        saved(name, mlp(seed), spec=SPEC, dataset="mnist-5k")
    files = ["a.safetensors", "b.safetensors"]
    status, printed, _ = run(capsys, "fuse", *files, "--count", 300, "--test-count", 100, "--correction", "bn_reset")
    assert status == 0 and "accuracy on the test images of mnist-5k (100)" in printed
    assert "300 of the training images of mnist-5k" in paths.Path("fused.md").read_text()
    status, printed, _ = run(
        capsys, "fuse", *files, "--count", 300, "--test", "none", "--correction", "none", "--overwrite"
    )
    assert status == 0 and "accuracy" not in printed


def test_nothing_is_overwritten_unless_it_is_asked_for_and_no_parent_ever(capsys, pair):
    for name in ("fused.safetensors", "fused.json", "fused.md"):
        paths.Path(name).write_text("mine")
        fuse = ["fuse", *pair, "--images", "images.npy", "--correction", "none", "--matcher", "none"]
        assert f"{name} is there already" in refused(capsys, *fuse)
        paths.Path(name).unlink()
    paths.Path("fused.md").write_text("mine")
    assert run(capsys, *fuse, "--overwrite")[0] == 0 and paths.Path("fused.md").read_text() != "mine"
    assert "is one of the parents" in refused(capsys, *fuse, "--overwrite", "-o", "a.safetensors")


def test_a_disk_that_refuses_one_of_the_three_files_gets_none(capsys, pair, monkeypatch):
    write = paths.Path.write_bytes

    def full(path, content):
        if path.suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(paths.Path, "write_bytes", full)
    assert "No space left" in refused(capsys, "fuse", *pair, "--images", "images.npy", "--correction", "none")


REFUSED = {
    "verb": (["melt"], "invalid choice"),
    "nothing": ([], "required"),
    "no such file": (["fuse", "a.safetensors", "c.safetensors"], "does not exist"),
    "matcher": (["fuse", "AB", "--matcher", "psychic"], "unknown matcher"),
    "correction": (["fuse", "AB", "--correction", "rest"], "unknown correction"),
    "shares": (["fuse", "AB", "--shares", "a,b"], "--shares a,b cannot be read"),
    "sum": (["fuse", "AB", "--images", "images.npy", "--shares", "1,1"], "sum to 1"),
    "device": (["fuse", "AB", "--device", "abacus"], "unknown device"),
    "output": (["fuse", "AB", "-o", "fused.pt"], "does not end in .safetensors"),
    "folder": (["fuse", "AB", "-o", "mine.py/fused.safetensors"], "cannot be written"),
    "one": (["fuse", "a.safetensors", "--images", "images.npy"], "a budget < 1"),
    "budget": (["fuse", "AB", "--images", "images.npy", "--budget", "9"], "at most 2"),
    "cost": (["fuse", "AB", "--images", "images.npy", "--cost", "euros", "--budget", "1.5"], "unknown cost"),
    "separate": (["fuse", "AB", "--images", "images.npy", "--separate", "x"], "names of"),
    "labels": (["fuse", "AB", "--labels", "a;b"], "--labels a;b cannot be read"),
    "no images": (["fuse", "AB"], "looks at images"),
    "data set": (["fuse", "AB", "--images", "cifar12"], "accepted: a data set (mnist, cifar10"),
    "pickle": (["fuse", "AB", "--images", "mine.py"], "its name ends in .py"),
    "damaged": (["fuse", "AB", "--images", "damaged.npy"], "cannot be read"),
    "uint8": (["fuse", "AB", "--images", "bytes.npy"], "holds uint8"),
    "nan": (["fuse", "AB", "--images", "nan.npy"], "NaN or Inf"),
    "unlabelled": (["fuse", "AB", "--images", "images.npy", "--test", "images.npy"], "holds no labels"),
    "count": (["fuse", "AB", "--images", "images.npy", "--count", "-1"], "--count"),
    "model": (["fuse", "AB", "--model", "vgg11"], "sidecar says mlp"),
    "width": (["fuse", "AB", "--width", "2"], "sidecar says 0.03125"),
    "norm": (["fuse", "AB", "--norm", "none"], "sidecar says batch"),
    "unknown model": (["trace", "--model", "vgg12"], "package.module:function"),
    "module": (["trace", "--model", "nowhere:make", "--shape", "6"], "No module named"),
    "attribute": (["trace", "--model", "mine:fake", "--shape", "6"], "AttributeError"),
    "raises": (["trace", "--model", "mine:broken", "--shape", "6"], "RuntimeError: out of order"),
    "no network": (["trace", "--model", "mine:words", "--shape", "6"], "gives str"),
    "option": (["trace", "--model", "mine:make", "--option", "hidden", "--shape", "6"], "NAME=VALUE"),
    "other option": (["trace", "--model", "mine:make", "--option", "depth=2", "--shape", "6"], "depth"),
    "own width": (["trace", "--model", "mine:make", "--width", "2", "--shape", "6"], "--option NAME=VALUE"),
    "no shape": (["trace", "--model", "mine:make"], "--shape such as"),
    "shape": (["trace", "--model", "mine:make", "--shape", "big"], "--shape big cannot be read"),
    "wrong shape": (["trace", "--model", "mine:make", "--shape", "7"], ""),
    "record": (["draw", "none.json"], "no such record"),
    "no record": (["draw", "a.json"], "not a run record"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(capsys, pair, case):
    paths.Path("damaged.npy").write_bytes(b"\x93NUMPY")
    np.save("bytes.npy", np.zeros((4, 1, 28, 28), np.uint8))
    np.save("nan.npy", np.full((4, 1, 28, 28), np.nan, np.float32))
    arguments, told = REFUSED[case]
    typed = [each for word in arguments for each in (pair if word == "AB" else [word])]
    assert told in refused(capsys, *typed)


def test_a_file_of_code_is_refused_and_not_run(capsys, pair):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save(Evil(), "evil.pt")
    np.save("evil.npy", np.array([Evil()], dtype=object))
    for name in ("evil.pt", "evil.npy"):
        status, printed, said = run(capsys, "fuse", *pair, "--images", name)
        assert status == 2 and "ran" not in printed and len(said.splitlines()) == 1


def test_the_help_is_short_and_names_what_there_is(capsys):
    status, page, _ = run(capsys, "--help")
    assert status == 0 and len(page.splitlines()) <= 30 and all(verb in page for verb in ("fuse", "trace", "draw"))
    _, page, _ = run(capsys, "fuse", "--help")
    listed = " ".join(page.split())
    assert all(name in matching.MATCHERS for name in ("none", "activation", "weight", "graph"))
    assert all(name in fusion.CORRECTIONS for name in ("none", "bn_reset", "repair", "least_squares"))
    assert f"a data set ({', '.join(loaders.SOURCES)})" in listed
    assert all(name in models.ARCHITECTURES for name in ("vgg11", "resnet20", "simplenet", "mlp", "vit_mnist"))


def test_a_page_of_help_loads_no_torch():
    code = "import sys\nfrom lib.command import main\ntry:\n    main(['fuse', '--help'])\nexcept SystemExit:\n"
    code += "    assert 'torch' not in sys.modules\n"
    assert subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_trace_takes_an_architecture_from_a_sidecar_or_inputs_from_a_file(capsys, pair):
    status, by_sidecar, _ = run(capsys, "trace", pair[0])
    assert status == 0 and "16" in by_sidecar
    assert run(capsys, "trace", "--model", "mlp", "--width", 1 / 32, "--norm", "batch")[1] == by_sidecar
    assert run(capsys, "trace", pair[0], "--images", "images.npy")[0] == 0


def test_draw_writes_the_figures_of_a_record_and_overwrites_none(capsys, here):
    record = next(path for path in sorted(paths.RESULTS.glob("*.json")) if '"curves"' in path.read_text())
    assert run(capsys, "draw", record, "--kind", "curves")[0] == 0
    stem = f"{record.stem}_curves"
    assert {path.name for path in here.glob("*_curves.*")} == {f"{stem}.png", f"{stem}.pdf"}
    assert "is there already" in refused(capsys, "draw", record, "--kind", "curves")
    assert "unknown kind" in refused(capsys, "draw", record, "--kind", "pie")
    assert (
        run(capsys, "draw", record, "--kind", "curves", "-o", "drawn")[0] == 0
        and len(list((here / "drawn").iterdir())) == 2
    )


def test_the_module_runs_from_a_clone():
    done = subprocess.run(
        [sys.executable, "-m", "lib", "draw", "none.json"], cwd=paths.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == "none.json: no such record\n"


def test_the_program_of_a_clone_is_the_same():
    """What an editable install makes a program of: [project.scripts] of pyproject.toml."""
    code = "from fusebook import main; raise SystemExit(main(['draw', 'none.json']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "none.json: no such record\n")


def test_values_of_options_are_numbers_where_they_look_like_them():
    assert networks.read_options(["a=3", "b=0.5", "c=True", "d=batch", "e=[1, 2]"]) == {
        "a": 3,
        "b": 0.5,
        "c": True,
        "d": "batch",
        "e": [1, 2],
    }
    with pytest.raises(InputError):
        networks.read_options(["a b=3"])
