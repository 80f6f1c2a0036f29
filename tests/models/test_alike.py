"""Networks of one architecture: what differs is refused in one line, and what has no effect is not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import lib
from lib import fusion, matching, models, symmetry
from lib.checks import InputError, unwrapped
from tests.aligned import same

QUIET = {"progress": False}
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """Reads `scale` and `act`, not `seed`, `name` or `channels`."""

    def __init__(self, scale=1.0, act=F.relu, seed=0, drop=0.1):
        super().__init__()
        self.scale, self.act, self.seed, self.name, self.channels = scale, act, seed, f"net {seed}", [seed]
        self.attn_drop = drop

    @torch.no_grad()
    def forward(self, x):
        return self._scaled(F.dropout(self.act(x), self.attn_drop, self.training))

    def _scaled(self, x):
        return (lambda y: y * self.scale)(x)


def network(
    seed=0, width=4, classes=3, conv=None, pool=None, act=None, norm=None, drop=0.1, scaled=None, extra=False
) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3, **(conv or {"padding": 1})), nn.BatchNorm2d(width, **(norm or {}))]
    layers += [nn.ReLU() if act is None else act, pool or nn.MaxPool2d(2, 1), nn.Dropout(drop), scaled or Scaled()]
    layers += [nn.Conv2d(width, width, 1), nn.ReLU()] * extra
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return nn.Sequential(*layers).eval()


def refused(a, b, told):
    """By everything that takes networks, in one line."""
    groups = symmetry.trace(network(), X)
    for use in (
        lambda: matching.match([a, b], groups, "activation", images=X, **QUIET),
        lambda: matching.match([a, b], groups, "weight", **QUIET),
        lambda: fusion.align([a, b], groups, [groups.identity()] * 2),
        lambda: fusion.fuse([a, b], images=X, **QUIET),
    ):
        with pytest.raises(InputError, match=told) as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            {"classes": 4},
            r"has 8.weight \(\d, 4\), that of the groups \(\d, 4\); accepted: networks that differ in how",
        ),
        ({"extra": True}, "network 2 differs: module '6' is Conv2d, in network 1 AdaptiveAvgPool2d"),
        ({"conv": {"stride": 2, "padding": 1}}, r"differs: module '0' has stride \(2, 2\), network 1 \(1, 1\)$"),
        ({"conv": {"padding": 2}}, r"differs: module '0' has padding \(2, 2\), network 1 \(1, 1\)$"),
        ({"conv": {"padding": "same"}}, r"differs: module '0' has padding same, network 1 \(1, 1\)$"),
        ({"conv": {"padding": 1, "dilation": 2}}, r"differs: module '0' has dilation \(2, 2\)"),
        ({"conv": {"padding": 1, "padding_mode": "reflect"}}, "differs: module '0' has padding_mode reflect"),
        ({"norm": {"eps": 1e-3}}, r"network 2 differs: module '1' has eps 0.001, network 1 1e-05$"),
        ({"pool": nn.MaxPool2d(3, 1)}, "network 2 differs: module '3' has kernel_size 3, network 1 2$"),
        ({"pool": nn.AvgPool2d(2, 1)}, "network 2 differs: module '3' is AvgPool2d, in network 1 MaxPool2d$"),
        ({"act": nn.GELU()}, "network 2 differs: module '2' is GELU, in network 1 ReLU$"),
        ({"scaled": Scaled(2.0)}, "network 2 differs: module '5' has scale 2.0, network 1 1.0$"),
        ({"scaled": Scaled(act=F.gelu)}, "network 2 differs: module '5' has act gelu, network 1 relu$"),
    ],
)
def test_networks_that_differ_are_refused(other, told):
    refused(network(), network(1, **other), told)


def test_a_wider_network_is_refused_by_the_groups_of_a_narrower_one_and_fused_by_its_own():
    narrow, wide = network(), network(1, width=5)
    groups = symmetry.trace(narrow, X[:2])
    told = r"network 2 has 0.weight \(5, 3, 3, 3\), that of the groups \(4, 3, 3, 3\)"
    for use in (
        lambda: matching.match([narrow, wide], groups, "weight", **QUIET),
        lambda: fusion.align([narrow, wide], groups, [groups.identity()] * 2),
    ):
        with pytest.raises(InputError, match=told):
            use()
    fused = fusion.fuse([narrow, wide], images=X, **QUIET)
    assert fused.state["0.weight"].shape == (5, 3, 3, 3)


@pytest.mark.parametrize(
    ("act", "other", "told"),
    [
        (nn.LeakyReLU(), nn.LeakyReLU(0.2), "has negative_slope 0.2, network 1 0.01$"),
        (nn.GELU(), nn.GELU("tanh"), "has approximate tanh, network 1 none$"),
        (nn.GroupNorm(2, 4), nn.GroupNorm(4, 4), "has num_groups 4, network 1 2$"),
        (nn.Identity(), nn.Sequential(nn.ReLU()), "module '2' is Sequential, in network 1 Identity$"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(), r"module '2.0' is missing, in network 1 ReLU$"),
        (nn.Sequential(), nn.Sequential(nn.ReLU()), r"module '2.0' is ReLU, in network 1 missing$"),
    ],
)
def test_activations_and_norms_that_differ_are_refused(act, other, told):
    with pytest.raises(InputError, match=f"^network 2 differs: .*{told}"):
        models.alike([network(act=act), network(1, act=other)])


@pytest.mark.parametrize(
    "other",
    [
        {"drop": 0.5},
        {"norm": {"momentum": 0.01}},
        {"norm": {"momentum": None}},
        {"act": nn.ReLU(inplace=True)},
        {"pool": nn.MaxPool2d((2, 2), (1, 1))},
        {"scaled": Scaled(seed=3, drop=0.7)},
    ],
)
def test_what_has_no_effect_on_a_trained_network_is_no_difference(other):
    a, b = network(), network(1, **other).train()
    assert models.alike([a, b]) == [a, b]


def test_a_class_that_was_defined_again_is_the_same_class():
    def define():
        class Net(nn.Linear):
            pass

        return Net(2, 2)

    a, b = define(), define()
    assert type(a) is not type(b) and models.alike([a, b]) == [a, b]


def test_the_network_itself_may_differ_and_names_are_those_given():
    with pytest.raises(InputError, match="^b differs: it has scale 2.0, a 1.0$"):
        models.alike([Scaled(), Scaled(2.0)], ["a", "b"])
    with pytest.raises(InputError, match="2 networks and 1 names"):
        models.alike([Scaled(), Scaled()], ["a"])


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": compiled,
    "both": lambda model: compiled(nn.DataParallel(compiled(model))),
    "an average": AveragedModel,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_networks_go_in_everywhere_and_keep_the_inner_names(wrap, capsys):
    plain = [network(0), network(1)]
    wrapped = [wrap(copy.deepcopy(each)) for each in plain]
    groups = lib.trace(plain[0], X)
    maps = [matching.match(each, groups, "activation", images=X, **QUIET) for each in (plain, wrapped)]
    assert torch.equal(maps[0][1]["0"], maps[1][1]["0"])
    first, second = (fusion.align(each, groups, maps[0]) for each in (plain, wrapped))
    assert type(second.model) is nn.Sequential
    for one, two in zip(first.states, second.states, strict=True):
        assert same(one, two)
    assert same(fusion.fuse(wrapped, images=X, **QUIET).state, fusion.fuse(plain, images=X, **QUIET).state)
    test = [(X, torch.arange(6) % 3)]
    measured = fusion.measure(wrapped[0], plain[1].state_dict(), test)
    assert measured == fusion.measure(plain[0], plain[1].state_dict(), test)
    assert models.state_of(wrapped[0]).keys() == plain[0].state_dict().keys()
    assert (
        fusion.curve(second, [0.5], test=test, **QUIET).points == fusion.curve(first, [0.5], test=test, **QUIET).points
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda: torch.jit.script(nn.Linear(2, 2)), "TorchScript modules cannot be traced .*; accepted: the nn.Module"),
        (lambda: torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), "TorchScript modules cannot be traced"),
        (lambda: nn.Linear(2, 2).state_dict(), "a network is given as OrderedDict; accepted: a torch.nn.Module"),
        (lambda: "net.pt", "a network is given as str; accepted: a torch.nn.Module"),
    ],
)
def test_what_is_no_network_is_refused(other, told):
    refused(network(), other(), told)


def test_a_module_that_calls_another_model_is_no_wrapper():
    class Lightning(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 2)

    own = Lightning()
    assert unwrapped(own) is own
