import pytest
import torch

from lib import models, symmetry
from lib.checks import InputError
from lib.study import scaling


def test_a_plant_is_lined_up_again_by_its_truth():
    network = models.build("simplenet", width=0.25, seed=0)
    groups = symmetry.trace(network, models.example("simplenet"))
    state, truth = scaling.planted(network, groups, 0.0, torch.Generator().manual_seed(5))
    assert not torch.equal(state["conv2.weight"], network.state_dict()["conv2.weight"])
    back = symmetry.act(state, groups, truth)
    assert all(torch.equal(back[name], tensor) for name, tensor in network.state_dict().items())


def test_noise_is_measured_in_standard_deviations_and_independent_of_the_weights():
    network = models.build("simplenet", seed=0)
    groups = symmetry.trace(network, models.example("simplenet"))
    network, groups, state, truth = scaling.plant("simplenet", 1.0, 2.0, seed=0)
    weight = network.state_dict()["fc1.weight"].flatten()
    noise = symmetry.act(state, groups, truth)["fc1.weight"].flatten() - weight
    assert noise.std() / weight.std() == pytest.approx(2, rel=0.02)
    # Drawn from the seed of the weights it was not: that once cost half the recovery.
    assert abs(torch.corrcoef(torch.stack([noise, weight]))[0, 1]) < 0.02


def test_dense_bytes_of_simplenet_and_vgg11():
    for name, norm, size in (("simplenet", None, 1.49e9), ("vgg11", None, 2.34e14)):
        network = models.build(name, norm=norm)
        groups = symmetry.trace(network, models.example(name))
        assert scaling.dense_bytes(network, groups) == pytest.approx(size, rel=0.01)


def test_bad_input_is_one_line():
    good = {"solvers": ["graph"], "widths": [1.0], "noises": [0.0], "seeds": [0]}
    good |= {"scaling_solvers": ["graph"], "recovery_width": 0.5}
    scaling.check(**good)
    bad_values = {"solvers": ["sm"], "widths": [0], "noises": [-1], "seeds": [], "scaling_solvers": []}
    for name, bad in (*bad_values.items(), ("widths", [])):
        with pytest.raises(InputError, match=name.rstrip("s")) as error:
            scaling.check(**good | {name: bad})
        assert "\n" not in str(error.value)
