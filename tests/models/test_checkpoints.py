"""Checkpoints as people have them: wrapped names, entries of a file, numbers beside weights, files in several parts."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import models
from lib.checks import InputError


def small(seed=0):
    return models.build("mlp", width=0.01, norm="batch", seed=seed)


@pytest.fixture
def state():
    return models.state_of(small(1))


def loaded(path) -> dict:
    return models.state_of(models.load_state(small(), models.read_state(path), path.name))


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def before(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "network.", "backbone.", "a.b.c."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_dropped_and_said(prefix, state, tmp_path, capsys):
    path = tmp_path / "net.pt"
    torch.save({"state_dict": before(prefix, state), "epoch": 3}, path)
    assert equal(loaded(path), state)
    assert capsys.readouterr().out == f"net.pt: '{prefix}' before all names is dropped\n"
    torch.save(state, path)
    assert equal(loaded(path), state) and capsys.readouterr().out == ""


def test_a_network_whose_own_names_have_the_prefix_keeps_it(capsys):
    wrapper = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 2)})
    found = models.fitting(wrapper, before("model.", torch.nn.Linear(2, 2).state_dict()))
    assert list(found) == ["model.weight", "model.bias"] and capsys.readouterr().out == ""


def test_a_prefix_is_looked_through_where_something_else_does_not_fit(state):
    wrong = before("module.", {name: tensor for name, tensor in state.items() if name != "classifier.bias"})
    with pytest.raises(InputError, match="does not fit MLP: classifier.bias is missing$"):
        models.fitting(small(), wrong)


def test_a_misfit_shows_missing_and_unexpected_names(state):
    """So that it tells of a prefix that is not before all."""
    kept = len([name for name in state if not name.endswith("num_batches_tracked")]) - 3
    with pytest.raises(InputError) as error:
        models.fitting(small(), before("net.", state) | {"loss.weight": torch.ones(2)}, "net.pt")
    first = "features.1.weight is missing; features.1.bias is missing; features.2.weight is missing"
    first += f"; and {kept} more; net.features.1.weight is unexpected; "
    assert str(error.value).startswith(f"net.pt does not fit MLP: {first}")
    assert str(error.value).endswith(f"; and {len(state) - 2} more")
    misfit = state | {"classifier.weight": torch.ones(2, 2), "extra": torch.ones(1)}
    told = r"MLP: extra is unexpected; classifier.weight is \(2, 2\), not \(10, 5\)$"
    with pytest.raises(InputError, match=told):
        models.fitting(small(), misfit)


@pytest.mark.parametrize("entry", ["net", "model", "model_state_dict", "state_dict", "module", "ema", "params"])
def test_the_entry_that_is_a_state_dict_is_taken(entry, state, tmp_path):
    beside = {"epoch": 3, "acc": 91.0, "args": {"lr": 0.1}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, "s": {}}
    beside |= {"best": np.float64(0.9), "seen": np.int64(3), "flag": np.bool_(True), "half": np.float32(1)}
    beside |= {"metrics": {"loss": torch.tensor(0.3)}, "rng": torch.get_rng_state()}
    torch.save({entry: state} | beside, tmp_path / "net.pt")
    assert equal(loaded(tmp_path / "net.pt"), state)
    torch.save(state | {"epoch": 3, "best": np.float64(0.9), "arch": "mlp"}, tmp_path / "net.pt")
    assert equal(loaded(tmp_path / "net.pt"), state)


def test_a_file_of_several_state_dicts_names_them(state, tmp_path):
    torch.save({"model": state, "epoch": 3, "ema": state}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"it holds several state dicts \('model', 'ema'\); accepted: a file of one"):
        models.read_state(tmp_path / "net.pt")


def test_a_numpy_number_lets_no_code_in(state, tmp_path):
    """Only what numbers are made of; an array of objects could hold anything."""
    torch.save({"model": state, "log": np.array([{}], dtype=object)}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="it holds code"):
        models.read_state(tmp_path / "net.pt")


def test_counters_are_left_out_and_said(state, tmp_path, capsys):
    counters = {f"module.{name}": torch.zeros(1) for name in ("total_ops", "features.1.total_params")}
    torch.save(before("module.", state) | counters | {"n_averaged": torch.tensor(3)}, tmp_path / "net.pt")
    assert equal(loaded(tmp_path / "net.pt"), state)
    said = "module.total_ops, module.features.1.total_params, n_averaged left out, which are no weights"
    assert said in capsys.readouterr().out


def test_a_network_that_has_such_a_counter_keeps_it(capsys):
    net = torch.nn.Linear(2, 2)
    net.register_buffer("total_ops", torch.ones(1))
    assert models.fitting(net, net.state_dict() | {"total_ops": torch.zeros(1)})["total_ops"] == 0
    assert capsys.readouterr().out == ""


@pytest.fixture
def shards(state, tmp_path):
    names, folder = list(state), tmp_path / "net"
    folder.mkdir()
    weight_map = {}
    for number, part in ((1, names[:5]), (2, names[5:])):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards_are_read_by_their_index_or_their_folder(shards, state):
    for name in (shards, shards.parent):
        path = models.find_checkpoint(str(name))
        assert path == shards and equal(models.read_state(path), state)
    first = models.read_checkpoint(shards)
    assert first.sidecar == {} and first.sha256 == models.read_checkpoint(shards).sha256
    file = shards.with_name("model-00002-of-00002.safetensors")
    save_file({name: state[name] for name in list(state)[5:]} | {"more": torch.ones(1)}, file)
    assert models.read_checkpoint(shards).sha256 != first.sha256  # it is that of all the files


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("{", "it is no index; accepted: JSON whose weight_map"),
        ("[]", "it is no index"),
        ('{"weight_map": {}}', "it is no index"),
        ('{"weight_map": {"w": "../net.pt"}}', "it is no index"),
        ('{"weight_map": {"w": 3}}', "it is no index"),
        ('{"weight_map": {"w": "no.safetensors"}}', "no.safetensors cannot be read: No such file"),
        ('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}', "none of its files holds w; accepted"),
    ],
)
def test_a_broken_index_is_one_line(index, told, shards):
    shards.write_text(index)
    with pytest.raises(InputError, match=told) as error:
        models.read_checkpoint(shards)
    assert "\n" not in str(error.value)


def test_a_folder_without_an_index_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"is a folder without one \*.index.json; accepted: a path"):
        models.find_checkpoint(str(tmp_path))
