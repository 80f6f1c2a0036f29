"""Networks of other widths: embedded, matched, fused."""

import pytest
import torch
from torch import nn

import lib
from lib import fusion, matching, models, symmetry
from lib.checks import InputError
from tests.fusion.test_dial import Depthwise, mean, networks

WIDTHS = {
    "vgg11": (1 / 16, 1 / 32, (3, 32, 32), "batch"),
    "resnet20": (0.5, 0.25, (3, 32, 32), "batch"),
    "simplenet": (0.5, 0.25, (1, 28, 28), None),
    "mlp": (1 / 8, 1 / 16, (1, 28, 28), "batch"),
}


@pytest.fixture(scope="module", params=WIDTHS)
def pair(request):
    wide, narrow, shape, norm = WIDTHS[request.param]
    torch.manual_seed(0)
    nets = [models.build(request.param, width=w, norm=norm, seed=i) for i, w in enumerate((wide, narrow))]
    images = torch.randn(60, *shape)
    for net in nets:
        net.train()
        with torch.no_grad():
            net(images)
        net.eval()
    return *nets, images


def test_a_narrower_network_keeps_its_outputs_in_the_wider_one(pair):
    wide, narrow, images = pair
    embedded = symmetry.embed(narrow, wide, symmetry.trace(wide, images[:2]))
    with torch.inference_mode():
        assert torch.allclose(embedded(images), narrow(images), atol=1e-5)
    assert all((value > 0).all() for key, value in embedded.state_dict().items() if key.endswith("running_var"))
    shapes = [value.shape for value in wide.state_dict().values()]
    assert [value.shape for value in embedded.state_dict().values()] == shapes


@pytest.mark.parametrize("matcher", ["activation", "weight", "sinkhorn", "graph"])
def test_every_matcher_assigns_units_to_units(pair, matcher):
    wide, narrow, images = pair
    groups = symmetry.trace(wide, images[:2])
    for nets in ((wide, narrow), (narrow, wide)):
        maps = matching.match(nets, groups, matcher, images=images, progress=False)
        which = [net is narrow for net in nets].index(True)
        own = symmetry.in_one_width(nets, groups)[1][which]
        for name, perm in maps[which].items():
            assert sorted(perm[perm >= 0].tolist()) == list(range(own[name]))
            assert not (maps[1 - which][name] < 0).any()
        aligned = fusion.align(nets, groups, maps)
        for net, state in zip(nets, aligned.states, strict=True):
            whole = aligned.model
            whole.load_state_dict(state)
            with torch.inference_mode():
                assert torch.allclose(whole(images), net(images), atol=1e-4)


def test_a_wider_copy_of_the_narrow_one_is_found_again():
    nets, images = networks("vgg11", 1)
    narrow = nets[0]
    wide = models.build("vgg11", width=1 / 8, norm="batch", seed=5).eval()
    groups = symmetry.trace(wide, images[:2])
    embedded = symmetry.embed(narrow, wide, groups)
    order = groups.random(torch.Generator().manual_seed(3))
    wide.load_state_dict(symmetry.act(embedded.state_dict(), groups, order))
    maps = matching.match([wide, narrow], groups, "weight", progress=False)
    own = symmetry.in_one_width([wide, narrow], groups)[1][1]
    found = [perm[order[name] < own[name]] for name, perm in maps[1].items()]
    wanted = [order[name][order[name] < own[name]] for name in maps[1]]
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_networks_of_two_widths_are_fused(pair):
    wide, narrow, images = pair
    for budget in (None, 1.5, 2):
        fused = lib.fuse([narrow, wide], images=images, budget=budget, progress=False)
        with torch.inference_mode():
            outputs = fused.model()(images)
        assert torch.isfinite(outputs).all()
    goal = mean([narrow, wide], (0.5, 0.5), images)
    assert (outputs - goal).abs().max() < 1e-5 * goal.abs().max()


class Deeper(Depthwise):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(4, 4)

    def forward(self, x):
        return self.more(super().forward(x))


def test_what_is_not_of_one_depth_or_has_other_outputs_is_refused():
    images = torch.randn(10, 3, 8, 8)
    with pytest.raises(InputError, match="differs: it is"):
        lib.fuse([Depthwise(), Deeper()], images=images, progress=False)
    with pytest.raises(InputError, match="network 2 differs: module 'features.3' is Conv2d, in network 1 MaxPool2d"):
        wide, deep = (models.build(name, width=1 / 16, norm="batch") for name in ("vgg11", "vgg13"))
        lib.fuse([wide, deep], images=torch.randn(10, 3, 32, 32), progress=False)
    one, other = Depthwise(), Depthwise()
    other.last = nn.Linear(6, 7)
    with pytest.raises(InputError, match=r"has last.weight"):
        lib.fuse([one, other], images=images, progress=False)
    layered = [models.build("mlp", width=w, norm="layer") for w in (1 / 8, 1 / 16)]
    with pytest.raises(InputError, match="computes something else beside units of zeros"):
        lib.fuse(layered, images=torch.randn(10, 1, 28, 28), progress=False)


def test_groups_of_the_narrower_network_are_refused(pair):
    wide, narrow, images = pair
    with pytest.raises(InputError, match="these groups|more units|that of the groups|network of the groups"):
        matching.match([wide, narrow], symmetry.trace(narrow, images[:2]), "weight")
