import pytest
import torch

from lib import models, symmetry
from lib.checks import InputError


def test_simplenet_has_the_published_keys_and_shapes():
    shapes = {name: tuple(t.shape) for name, t in models.build("simplenet").state_dict().items()}
    assert shapes == {
        "conv1.weight": (32, 1, 5, 5),
        "conv2.weight": (64, 32, 5, 5),
        "fc1.weight": (32, 3136),
        "fc2.weight": (10, 32),
    }


def test_simplenet_has_no_relu_between_its_linear_layers():
    """Doubling an image scales every hidden value; only a linear head keeps the ratio for both signs of fc1."""
    net = models.build("simplenet", seed=0)
    x = models.example("simplenet").abs()
    hidden = net.fc1(net.flatten(net.max_pool(net.relu(net.conv2(net.max_pool(net.relu(net.conv1(x))))))))
    assert (hidden < 0).any()
    assert torch.allclose(net(x), hidden @ net.fc2.weight.T, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "first", "last"),
    [
        ("batch", "features.4", "features.25"),
        ("group", "features.4", "features.25"),
        (None, "features.3", "features.18"),
    ],
)
def test_vgg11_is_numbered_like_the_published_code(norm, first, last):
    state = models.build("vgg11", width=0.125, norm=norm).state_dict()
    assert state["features.0.weight"].shape == (8, 3, 3, 3)
    assert state[f"{first}.weight"].shape == (16, 8, 3, 3)
    assert state[f"{last}.weight"].shape == (64, 64, 3, 3)
    assert state["classifier.weight"].shape == (10, 64)


@pytest.mark.parametrize(("name", "convolutions"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13), ("vgg19", 16)])
def test_vgg_depths_and_widths(name, convolutions):
    net = models.build(name, width=0.1, norm="batch")
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == convolutions
    assert net(models.example(name)).shape == (2, 10)


@pytest.mark.parametrize(("name", "norm"), [("mlp", "batch"), ("mlp", "layer"), ("resnet20", "batch")])
def test_other_architectures_return_logits(name, norm):
    net = models.build(name, width=0.25, norm=norm)
    assert net(models.example(name)).shape == (2, 10)


def test_a_layer_norm_stands_behind_each_hidden_linear_layer():
    features = list(models.build("mlp", width=0.25, norm="layer").features)
    for linear, norm, relu in zip(features[1::3], features[2::3], features[3::3], strict=True):
        assert isinstance(relu, torch.nn.ReLU) and isinstance(norm, torch.nn.LayerNorm)
        assert norm.normalized_shape == (linear.out_features,) == (128,)


@pytest.mark.parametrize(("width", "first"), [(2, 4), (0.125, 4), (0.1, 2), (0.05, 1)])
def test_the_groups_of_a_group_norm_divide_every_width(width, first):
    """0.1 makes a first layer of 6 channels, 0.05 one of 3."""
    net = models.build("vgg11", width=width, norm="group")
    norms = [m for m in net.features if isinstance(m, torch.nn.GroupNorm)]
    assert len(norms) == 8 and norms[0].num_groups == first
    assert net(models.example("vgg11")).shape == (2, 10)


def test_channels_change_places_within_a_group_of_a_group_norm_alone():
    net = models.build("vgg11", width=0.125, norm="group", seed=0)
    groups = symmetry.trace(net, models.example("vgg11"))
    symmetry.prove(net, groups, groups.example)
    assert [group.size for group in groups.values()] == [2] * 4 + [4] * 4 + [8] * 8 + [16] * 16


def test_resnet20_has_twenty_weighted_layers_besides_projections():
    net = models.build("resnet20", width=0.25, norm="batch")
    weighted = [n for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len([n for n in weighted if "shortcut" not in n]) == 20


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (models.build("vgg11", width=0.125, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "vgg12"}, "unknown model 'vgg12'"),
        ({"name": "vgg11", "width": 0}, "width 0"),
        ({"name": "simplenet", "norm": "batch"}, "no norm 'batch'"),
        ({"name": "mlp", "norm": "group"}, "no norm 'group'; accepted: None, batch, layer"),
        ({"name": "vgg11", "norm": "layer"}, "no norm 'layer'; accepted: None, batch, group"),
        ({"name": "mlp", "deep": 3}, "no option deep"),
    ],
)
def test_bad_input_is_one_line(arguments, said):
    with pytest.raises(InputError, match=said) as error:
        models.build(**arguments)
    assert "\n" not in str(error.value)
