"""What checkpoints/ ships loads, is what its sidecar says, and is small."""

import pytest

from lib import models, paths
from lib.study import zoo

SHIPPED = sorted(paths.ROOT.joinpath("checkpoints").glob("*.safetensors"))


def test_names_are_unique_and_pairs_complete():
    kinds = {}
    for name, (_, spec) in zoo.SPECS.items():
        kind, _, seed = name.rpartition("-s")
        assert int(seed) == spec.seed
        kinds.setdefault(kind, set()).add(spec.seed)
    for seeds in kinds.values():
        assert all(seed ^ 1 in seeds for seed in seeds)


def test_a_shipped_pair_of_each_experiment_is_there():
    names = {path.stem for path in SHIPPED}
    assert {"simplenet-s0", "simplenet-s1", "vgg11bn-w0.25-s0", "vgg11bn-w0.25-s1"} <= names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_checkpoint_is_the_one_its_sidecar_tells_of(path):
    _, spec = zoo.SPECS[path.stem]
    sidecar = models.read_sidecar(path)
    assert sidecar["sha256"] == paths.file_sha256(path)
    assert sidecar["spec"]["seed"] == spec.seed
    assert sidecar["spec"]["width"] == spec.width
    assert path.stat().st_size <= 10_000_000
    models.load_state(spec.build(), models.read_state(path), path.name)


def test_an_unknown_name_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["zoo", "vgg99"])
    assert zoo.main() == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: no shipped checkpoint vgg99")
    assert "\n" not in said
