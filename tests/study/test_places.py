"""lib.study.places: a run has a folder of its own, named by what was run."""

import json

import pytest

from lib import paths
from lib.checks import InputError
from lib.records import origin
from lib.study import places


@pytest.fixture(autouse=True)
def local(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LOCAL", tmp_path / "local")
    return tmp_path / "local"


def given(**changes):
    return origin.notebook_defaults("vgg11_cifar10") | changes


def name(dataset="cifar10", **changes):
    record, figures = places("vgg11_cifar10", given(**changes), dataset)
    assert record == figures / "vgg11_cifar10.json"
    return figures.name


def test_the_name_holds_the_data_set_and_what_is_not_as_in_the_notebook(local):
    assert name() == "vgg11_cifar10" and name("mnist-5k") == "vgg11_cifar10_mnist-5k"
    assert name(preset="paper", width=0.5, seed_a=4) == "vgg11_cifar10_w0.5-paper-s4"
    assert name(matchers=["graph(solver=ipfp)", "none"]) == "vgg11_cifar10_matchersgraph_solver_ipfp_+none"
    assert name(dataset="cifar10") == name(), "what `auto` opened is the same run"


def test_runs_of_other_parameters_never_share_a_folder():
    long = [f"graph(seed={seed})" for seed in range(40)]
    names = [name(), name(epochs=3), name(epochs=4), name(matchers=long), name(matchers=long[::-1])]
    names += [name(matchers=[*long, "none"]), name(checkpoint_a="net"), name(checkpoint_b="net"), name(preset="auto")]
    assert len(set(names)) == len(names) and max(map(len, names)) <= origin.LONGEST
    assert name(matchers=long) == name(matchers=list(long))


def test_what_was_typed_moves_that_alone(local, tmp_path):
    record, figures = places("vgg11_cifar10", given(results_path=str(tmp_path / "mine.json")), "cifar10")
    assert record == tmp_path / "mine.json" and figures == local / "vgg11_cifar10"
    record, figures = places("vgg11_cifar10", given(figures_dir=str(tmp_path / "drawn")), "cifar10")
    assert record.parent == local / "vgg11_cifar10" and figures == tmp_path / "drawn"
    with pytest.raises(InputError, match="ends in .json"):
        places("vgg11_cifar10", given(results_path="record.txt"))


def test_the_first_run_of_a_process_says_where_it_writes(local, tmp_path, monkeypatch):
    monkeypatch.setenv(origin.ANNOUNCED, str(tmp_path / "places"))
    places("vgg11_cifar10", given(), "cifar10", check=False)
    assert not (tmp_path / "places").exists()
    for epochs in (None, 3):
        places("vgg11_cifar10", given(epochs=epochs), "cifar10")
    told = json.loads((tmp_path / "places").read_text())
    assert told["folder"] == str(local / "vgg11_cifar10") and told["record"].endswith("vgg11_cifar10.json")


def test_every_notebook_has_defaults_and_one_that_is_not_there_has_none():
    for path in paths.NOTEBOOKS.glob("*.ipynb"):
        assert origin.notebook_defaults(path.stem), path.name
    assert origin.notebook_defaults("none such") == {}
