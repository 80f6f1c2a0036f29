import copy

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from lib import matching, models, symmetry
from lib.symmetry import Member, SymmetryError, UnsupportedError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_simplenet_is_traced_with_its_block_of_49():
    groups = symmetry.trace(models.build("simplenet"), models.example("simplenet"))
    assert {name: g.size for name, g in groups.items()} == {"conv1": 32, "conv2": 64, "fc1": 32}
    assert groups["conv2"].members == (Member("conv2.weight", 0), Member("fc1.weight", 1, block=49, dual=True))


def test_the_convention_unit_perm_i_takes_place_i():
    groups = {"g": symmetry.Group(3, (Member("w", 0), Member("v", 1, block=2)))}
    state = {"w": torch.tensor([10.0, 11.0, 12.0]), "v": torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0, 2.5]])}
    moved = symmetry.act(state, groups, {"g": torch.tensor([2, 0, 1])})
    assert moved["w"].tolist() == [12.0, 10.0, 11.0]
    assert moved["v"].tolist() == [[2.0, 2.5, 0.0, 0.5, 1.0, 1.5]]
    assert state["w"].tolist() == [10.0, 11.0, 12.0]


def test_inverse_undoes_and_compose_chains():
    net = models.build("vgg11", width=0.125, norm="batch", seed=0)
    groups = symmetry.trace(net, models.example("vgg11"))
    first, second = groups.random(generator(1)), groups.random(generator(2))
    state = net.state_dict()
    there = symmetry.act(state, groups, first)
    back = symmetry.act(there, groups, symmetry.inverse(first))
    assert all(torch.equal(back[name], state[name]) for name in state)
    twice = symmetry.act(there, groups, second)
    once = symmetry.act(state, groups, symmetry.compose(first, second))
    assert all(torch.equal(twice[name], once[name]) for name in state)


@pytest.mark.parametrize(
    ("name", "options", "groups"),
    [
        ("simplenet", {}, 3),
        ("vgg11", {"width": 0.125, "norm": "batch"}, 8),
        ("vgg16", {"width": 0.125}, 13),
        ("mlp", {"width": 0.1, "norm": "batch"}, 3),
        ("resnet20", {"width": 0.5, "norm": "batch"}, 12),
    ],
)
def test_own_architectures_trace_and_prove(name, options, groups):
    net = models.build(name, seed=0, **options)
    found = symmetry.trace(net, models.example(name))
    assert len(found) == groups
    symmetry.prove(net, found, models.example(name))


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: torchvision.models.vgg11_bn(num_classes=10), 10),
        (lambda: torchvision.models.resnet18(), 12),
        (lambda: torchvision.models.mobilenet_v2(), 25),
        (lambda: torchvision.models.squeezenet1_1(), 25),
    ],
    ids=["vgg11_bn", "resnet18", "mobilenet_v2", "squeezenet1_1"],
)
def test_torchvision_models_trace_and_prove(make, count):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
    example = torch.randn(2, 3, 64, 64, generator=generator())
    groups = symmetry.trace(net, example)
    assert len(groups) == count
    symmetry.prove(net, groups, example, tolerance=1e-7)


def test_a_function_of_a_package_that_is_not_imported_has_its_rule_by_name():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), torchvision.ops.StochasticDepth(0.2, "row"), nn.ReLU(), nn.Conv2d(6, 2, 3))
    example = torch.randn(2, 3, 8, 8, generator=generator())
    groups = symmetry.trace(net, example)
    assert [group.size for group in groups.values()] == [6]
    symmetry.prove(net, groups, example)


def test_residual_stages_are_tied_and_named_after_the_stage():
    groups = symmetry.trace(models.build("resnet20", width=0.5, norm="batch"), models.example("resnet20"))
    tied = {m.tensor for m in groups["layer1"].members}
    assert {
        "conv1.weight",
        "layer1.0.conv2.weight",
        "layer1.2.conv2.weight",
        "layer2.0.shortcut.0.weight",
    } <= tied
    assert "layer2" in groups
    assert "layer3" in groups
    assert "layer1.0.conv1" in str(groups)


def test_each_group_really_moves_something():
    net = models.build("resnet20", width=0.5, norm="batch", seed=0)
    groups = symmetry.trace(net, models.example("resnet20"))
    for name, group in groups.items():
        perm = torch.arange(group.size).roll(1)
        moved = symmetry.act(net.state_dict(), groups, {name: perm})
        assert not torch.equal(moved[group.members[0].tensor], net.state_dict()[group.members[0].tensor])


@pytest.mark.parametrize("forgotten", ["bn1.running_var", "conv2.weight", "bn1.weight"])
def test_a_wrong_group_is_refuted_by_name(forgotten):
    net = models.build("resnet20", width=0.5, norm="batch", seed=0)
    groups = symmetry.trace(net, models.example("resnet20"))
    name = "layer2.1.conv1"
    group = groups[name]
    kept = tuple(m for m in group.members if not m.tensor.endswith(forgotten))
    assert len(kept) == len(group.members) - 1
    wrong = symmetry.Groups({**groups.groups, name: symmetry.Group(group.size, kept)}, groups.layers, groups.graph)
    with pytest.raises(SymmetryError, match=r"layer2\.1\.conv1"):
        symmetry.prove(net, wrong, models.example("resnet20"))


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([0, 0, 1]), torch.tensor([0, 1, 3]), torch.tensor([-1, 0, 1]), torch.tensor([0, 1]),
        torch.tensor([0, 1, 2, 3]), torch.tensor([[0, 1, 2]]), torch.tensor([]), torch.tensor(0),
        torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1, 2], dtype=torch.int32), torch.eye(3),
        torch.tensor([True, False, True]), [0, 1, 2], None,
    ],
)  # fmt: skip
def test_permute_refuses_what_is_no_permutation(bad):
    groups = {"g": symmetry.Group(3, (Member("w", 0),))}
    with pytest.raises(SymmetryError, match=r"maps\['g'\] is no permutation of 3 units: .*; accepted: ") as error:
        symmetry.act({"w": torch.zeros(3)}, groups, {"g": bad})
    assert "\n" not in str(error.value)


def test_permute_refuses_a_group_that_is_not_there():
    groups = {"g": symmetry.Group(2, (Member("w", 0),))}
    with pytest.raises(SymmetryError, match="no group 'h'"):
        symmetry.act({"w": torch.zeros(2)}, groups, {"h": torch.tensor([0, 1])})


class Forward(nn.Module):
    """A module around a forward function, for small cases."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        pytest.param(
            Forward(
                lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1)),
                a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 6, 1), out=nn.Conv2d(10, 2, 1),
            ), (3, 5, 5), {"a": 4, "b": 6}, id="concatenation",
        ),
        pytest.param(
            Forward(
                lambda m, x: torch.cat([m.a(x), m.out(m.b(x))], 1),
                a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 6, 1), out=nn.Conv2d(6, 2, 1),
            ), (3, 5, 5), {"b": 6}, id="concatenation of outputs keeps their order",
        ),
        pytest.param(
            Forward(
                lambda m, x: m.out(m.a(x) + torch.cat([m.b(x), m.c(x)], 1)),
                a=nn.Conv2d(3, 10, 1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(3, 6, 1), out=nn.Conv2d(10, 2, 1),
            ), (3, 5, 5), {"b": 4, "c": 6}, id="a sum splits a layer that meets two",
        ),
        pytest.param(
            Forward(
                lambda m, x: m.out(m.depthwise(m.a(x))),
                a=nn.Conv2d(3, 6, 1), depthwise=nn.Conv2d(6, 12, 3, groups=6), out=nn.Conv2d(12, 2, 1),
            ), (3, 5, 5), {"a": 6}, id="depthwise with multiplier",
        ),
        pytest.param(
            Forward(
                lambda m, x: m.out(m.grouped(m.a(x))),
                a=nn.Conv2d(3, 8, 1), grouped=nn.Conv2d(8, 6, 3, groups=2), out=nn.Conv2d(6, 2, 1),
            ), (3, 5, 5), {"a[0]": 4, "a[1]": 4, "grouped[0]": 3, "grouped[1]": 3}, id="grouped",
        ),
        pytest.param(
            Forward(
                lambda m, x: m.out(m.norm(m.a(x))),
                a=nn.Conv2d(3, 8, 1), norm=nn.GroupNorm(2, 8), out=nn.Conv2d(8, 2, 1),
            ), (3, 5, 5), {"a[0]": 4, "a[1]": 4}, id="group norm",
        ),
        pytest.param(
            Forward(
                lambda m, x: m.out(m.norm(m.a(x))), a=nn.Linear(3, 8), norm=nn.LayerNorm(8), out=nn.Linear(8, 2),
            ), (3,), {"a": 8}, id="layer norm",
        ),
        pytest.param(
            Forward(
                lambda m, x: m.out(torch.sigmoid(m.gate(x.mean((2, 3), keepdim=True))) * m.a(x)),
                a=nn.Conv2d(3, 8, 1), gate=nn.Conv2d(3, 8, 1), out=nn.Conv2d(8, 2, 1),
            ), (3, 5, 5), {"gate": 8}, id="a gate is tied to what it scales",
        ),
        pytest.param(
            Forward(
                lambda m, x: m.out((m.a(x) * m.scale).permute(0, 2, 3, 1).reshape(x.shape[0], -1)),
                a=nn.Conv2d(3, 4, 1), scale=nn.Parameter(torch.randn(4, 1, 1)), out=nn.Linear(4 * 25, 2),
            ), (3, 5, 5), {"a": 4}, id="a raw parameter, and channels last when flattened",
        ),
        pytest.param(
            Forward(
                lambda m, x: m.out(m.twice(m.twice(m.a(x)))),
                a=nn.Linear(3, 8), twice=nn.Linear(8, 8), out=nn.Linear(8, 2),
            ), (3,), {"twice": 8}, id="a layer used twice ties its inputs to its outputs",
        ),
    ],
)  # fmt: skip
def test_small_cases_trace_prove_and_have_no_more_symmetry_than_they_have(model, shape, expected):
    example = torch.randn(2, *shape, generator=generator())
    groups = symmetry.trace(model.eval(), example)
    symmetry.prove(model, groups, example)
    assert {name: group.size for name, group in groups.items()} == expected


@pytest.mark.parametrize(
    ("model", "shape", "named"),
    [
        (
            Forward(lambda m, x: m.b(torch.cumsum(m.a(x), 1)), a=nn.Linear(3, 4), b=nn.Linear(4, 2)),
            (3,),
            "cumsum",
        ),
        (
            Forward(lambda m, x: m.b(torch.cumprod(m.a(x), 1)), a=nn.Linear(3, 4), b=nn.Linear(4, 2)),
            (3,),
            "cumprod",
        ),
        (
            Forward(
                lambda m, x: m.b(m.rnn(m.a(x))),
                a=nn.Linear(3, 4),
                rnn=nn.Bilinear(4, 4, 4),
                b=nn.Linear(4, 2),
            ),
            (3,),
            "rnn",
        ),
    ],
)
def test_an_operation_without_a_rule_is_named(model, shape, named, monkeypatch):
    if named == "rnn":
        monkeypatch.setattr(nn.Bilinear, "forward", lambda self, x: x)
    with pytest.raises(UnsupportedError, match=named):
        symmetry.trace(model, torch.randn(2, *shape))


def test_data_dependent_control_flow_is_one_line():
    model = Forward(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.Linear(3, 3))
    with pytest.raises(UnsupportedError, match="cannot trace Forward: torch.fx: .*; torch.export: ") as error:
        symmetry.trace(model, torch.randn(2, 3))
    assert "\n" not in str(error.value)


def test_walk_yields_what_the_network_computes():
    net = models.build("vgg11", width=0.125, norm="batch", seed=0)
    groups = symmetry.trace(net, models.example("vgg11"))
    *_, (node, value) = symmetry.walk(net, groups, models.example("vgg11"))
    assert node.op == "output"
    assert torch.equal(value, net(models.example("vgg11")))


@st.composite
def networks(draw):
    """A random small network from the supported operations: a residual trunk with a side branch and a linear head."""
    width = draw(st.integers(3, 6))
    layers: list[nn.Module] = [nn.Conv2d(2, width, 3, padding=1)]
    for _ in range(draw(st.integers(0, 3))):
        norm = draw(st.sampled_from([nn.BatchNorm2d(width), nn.GroupNorm(width, width), nn.Identity()]))
        layers.append(norm)
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.SiLU()])))
        kind = draw(st.sampled_from(["conv", "depthwise", "pool", "residual"]))
        if kind == "conv":
            new = draw(st.integers(3, 6))
            layers.append(nn.Conv2d(width, new, 3, padding=1, bias=draw(st.booleans())))
            width = new
        elif kind == "depthwise":
            layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width))
        elif kind == "pool":
            layers.append(nn.AvgPool2d(3, stride=1, padding=1))
        else:
            inner = nn.Sequential(nn.Conv2d(width, width + 1, 1), nn.ReLU(), nn.Conv2d(width + 1, width, 1))
            layers.append(Forward(lambda m, x: x + m.inner(x), inner=inner))
    layers.append(nn.Tanh())
    head = [nn.Flatten(), nn.Linear(width * 16, 5), nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(*layers, *head)


@settings(max_examples=15, deadline=None)
@given(networks(), st.integers(0, 2**31))
def test_random_networks_trace_prove_and_give_a_planted_permutation_back(model, seed):
    g = generator(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            # Of a size that saturates no tanh: two units that always say 1 could not be told apart.
            tensor.copy_(torch.randn(tensor.shape, generator=g) / tensor[0].numel() ** 0.5)
    example = torch.randn(64, 2, 4, 4, generator=g)
    groups = symmetry.trace(model.eval(), example)
    symmetry.prove(model, groups, example)
    planted = groups.random(g)
    # A is B's units reordered, so the permutation that moves B onto A is the planted one.
    moved = symmetry.act(model.state_dict(), groups, planted)
    twin = copy.deepcopy(model)
    twin.load_state_dict(moved)
    found = matching.match(
        [twin, model], groups, "activation", images=[example], tap="pre_norm", epsilon=1e-12, progress=False
    )[1]
    assume(not found.info["constant"])  # a unit that never varies is like every other
    for name, perm in planted.items():
        assert torch.equal(found[name], perm), name


class Keywords(nn.Module):
    """Two layers whose units meet in a sum that names its second operand, or its input."""

    def __init__(self, by_name: bool) -> None:
        super().__init__()
        self.a, self.b, self.out, self.by_name = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3), by_name

    def forward(self, x):
        total = torch.add(torch.relu(self.a(x)), other=torch.relu(self.b(x)))
        return self.out(input=total) if self.by_name else self.out(total)


def test_operands_given_by_keyword_are_tied_or_refused():
    model, x = Keywords(False).eval(), torch.rand(2, 4)
    groups = symmetry.trace(model, x)
    assert [group.size for group in groups.values()] == [6]
    symmetry.prove(model, groups, x)
    with pytest.raises(UnsupportedError, match="out.*given by keyword"):
        symmetry.trace(Keywords(True).eval(), x)


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.3)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, pruned])
def test_a_weight_made_from_other_tensors_is_refused_by_name(wrap):
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), wrap(nn.Linear(8, 2, bias=False)))
    with pytest.raises(UnsupportedError, match="module '2'.*its weight is made from other tensors"):
        symmetry.trace(model, torch.rand(2, 3))


@pytest.mark.parametrize("tied", [False, True], ids=["a module under two names", "a weight of two layers"])
def test_a_tensor_under_two_names_moves_under_both(tied):
    model = Forward(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    if tied:
        model.b.weight = model.a.weight
    else:
        model.c = model.a
    groups = symmetry.trace(model, torch.rand(2, 4))
    symmetry.prove(model, groups, torch.rand(2, 4))
    # a weight that reads the inputs and the hidden units alike leaves neither free
    assert {name: group.size for name, group in groups.items()} == ({} if tied else {"a": 4})
    assert tied or {m.tensor for m in groups["a"].members} == {"a.weight", "a.bias", "c.weight", "c.bias", "b.weight"}


@pytest.mark.parametrize(
    "pooled",
    [
        lambda h: h.mean(axis=(2, 3)),
        lambda h: h.sum(axis=3, keepdims=True).mean((2, 3)),
        lambda h: h.mean(dim=()) + torch.cat([h, h], axis=2).mean((2, 3)),
        lambda h: h.flatten(2).transpose(dim0=1, dim1=2).mean(1),
        lambda h: h.permute(dims=(0, 2, 3, 1)).mean((1, 2)),
    ],
    ids=["axis", "keepdims", "cat along axis", "dim0 and dim1", "dims"],
)
def test_arguments_by_keyword_mean_what_torch_takes_them_for(pooled):
    model = Forward(lambda m, x: m.out(pooled(m.a(x))), a=nn.Conv2d(3, 8, 1), out=nn.Linear(8, 2)).eval()
    x = torch.rand(2, 3, 5, 5)
    groups = symmetry.trace(model, x)
    assert {name: group.size for name, group in groups.items()} == {"a": 8}
    symmetry.prove(model, groups, x)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda m, h: torch.clamp(h, min=m.p), "node 'clamp'.*takes one tensor, and 'p' goes in too"),
        (lambda m, h: torch.mean(h, 1, keepdim=True, out=m.p) + h, "node 'mean'.*not know the keyword out; accepted"),
    ],
)
def test_an_argument_that_a_rule_does_not_know_is_refused(forward, said):
    p = nn.Parameter(torch.rand(2, 1), requires_grad=False)
    model = Forward(lambda m, x: m.out(forward(m, m.a(x)).expand(2, 8)), a=nn.Linear(3, 8), out=nn.Linear(8, 2), p=p)
    with pytest.raises(UnsupportedError, match=said) as error:
        symmetry.trace(model, torch.rand(2, 3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "example", "said"),
    [
        (Forward(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.Linear(3, 4)), (2, 3), "torch.fx: .*; torch.export: "),
        (nn.Linear(3, 4), (2, 5), r"example \(2, 5\) float32 does not go through Sequential: mat1"),
        (nn.Linear(3, 4).double(), (2, 3), r"example \(2, 3\) float32 does not go through Sequential: mat1"),
    ],
)
def test_what_cannot_be_traced_is_one_line(model, example, said, capsys):
    with pytest.raises(UnsupportedError, match=said) as error:
        symmetry.trace(nn.Sequential(model), torch.rand(example))
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""


class Constant(nn.Module):
    """Eight units scaled by a tensor that is in no state dict."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.out, self.kind = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2), kind
        self.plain = torch.arange(1.0, 9)
        self.register_buffer("hidden", torch.arange(1.0, 9), persistent=False)

    def forward(self, x):
        scale = torch.arange(1.0, 9) if self.kind == "inline" else getattr(self, self.kind)
        return self.out(torch.relu(self.b(torch.relu(self.a(x)) * scale)))


@pytest.mark.parametrize("kind", ["inline", "plain", "hidden"])
def test_what_meets_a_tensor_outside_the_state_dict_keeps_its_order(kind):
    model, twin, x = Constant(kind).eval(), Constant(kind).eval(), torch.rand(2, 3)
    before = set(vars(model))
    groups = symmetry.trace(model, x)
    assert set(vars(model)) == before
    assert {name: group.size for name, group in groups.items()} == {"b": 8}
    symmetry.prove(model, groups, x)
    *_, (_, value) = symmetry.walk(twin, groups, x)  # not the network that was traced
    assert torch.equal(value, twin(x))


def test_outputs_that_are_no_tensors_are_passed_over():
    model = Forward(lambda m, x: (m.b(torch.relu(m.a(x))), None, 3), a=nn.Linear(3, 8), b=nn.Linear(8, 2)).eval()
    groups = symmetry.trace(model, torch.rand(2, 3))
    assert symmetry.prove(model, groups, torch.rand(2, 3)) < 1e-9
    model.function = lambda m, x: None
    with pytest.raises(SymmetryError, match="no tensor"):
        symmetry.prove(model, groups, torch.rand(2, 3))


def test_permute_keeps_the_versions_that_a_state_dict_carries():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    groups, state = symmetry.trace(model, torch.rand(2, 3)), model.state_dict()
    moved = symmetry.act(state, groups, groups.random(generator()))
    assert moved._metadata == state._metadata
    assert not torch.equal(moved["0.weight"], state["0.weight"])
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


def test_a_network_that_writes_into_its_input_leaves_the_callers_alone():
    model = Forward(lambda m, x: m.b(torch.relu(m.a(x.sub_(1.0)))), a=nn.Linear(3, 8), b=nn.Linear(8, 2)).eval()
    x = torch.rand(2, 3).double()  # what prove needs no copy of, were it not for this
    model.double()
    before = x.clone()
    groups = symmetry.trace(model, x)
    symmetry.prove(model, groups, x)
    *_, (_, value) = symmetry.walk(model, groups, x)
    assert torch.equal(x, before)
    assert torch.equal(value, model(x))


class OwnConv(nn.Conv2d):
    """A known layer under another name."""


class NormAct(nn.BatchNorm2d):
    """A norm with a forward of its own, as many libraries have."""

    def forward(self, x):
        norm = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return F.relu(norm)


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight is normalised on each call."""

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def shortcut(how):
    """A residual block whose shortcut has no weights: a stride by slicing, channels by zeros (He et al., option A)."""

    def forward(m, x):
        h = torch.relu(m.a(x))
        half = h[:, :, ::2, ::2] if how == "slice" else F.avg_pool2d(h, 2)
        short = torch.cat([half, half.mul(0)], 1) if how == "cat" else F.pad(half, (0, 0, 0, 0, 2, 2))
        return m.o(torch.relu(m.b(h) + short).mean((2, 3)))

    return Forward(forward, a=conv(3, 4), b=conv(4, 8, stride=2), o=nn.Linear(8, 10))


def halves(how):
    """Half of the channels passes, as in C2f blocks."""

    def forward(m, x):
        y = m.i(x)
        if how == "slices":
            p, q = y[:, :4], y[:, 4:]
        elif how == "split":
            s = y.split(4, 1)
            p, q = s[0], s[1]
        elif how == "unbind":
            p, q = y.unflatten(1, (2, 4)).unbind(1)
        else:
            p, q = list(y.chunk(2, 1)) if how == "a list" else y.chunk(2, 1)
        return m.o(torch.cat((p, q, F.silu(m.m(q))), 1))

    return Forward(forward, i=conv(3, 8), m=conv(4, 4), o=conv(12, 2))


def parameter(*shape):
    return nn.Parameter(torch.randn(shape, generator=generator()))


def shuffled(m, x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


HALVES = {"i[0]": 4, "i[1]": 4, "m": 4}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(OwnConv(3, 6, 3), nn.ReLU(), conv(6, 2)), {"0": 6}),
        (nn.Sequential(conv(3, 6), NormAct(6), conv(6, 2)), {"0": 6}),
        (nn.Sequential(conv(3, 6), ChannelsLast(6), conv(6, 2)), {"0": 6}),
        (nn.Sequential(Standardised(3, 6, 3), nn.ReLU(), Standardised(6, 5, 3), conv(5, 2)), {"0": 6, "2": 5}),
        (Forward(lambda m, x: F.linear(torch.relu(m.e(x.flatten(1))), m.e.weight.t()), e=nn.Linear(192, 9)), {"e": 9}),
        # the four channels that meet zeros are alike, too
        (shortcut("slice"), {"a": 4, "b": 4}),
        (shortcut("pool"), {"a": 4, "b": 4}),
        (shortcut("cat"), {"a": 4}),
        *((halves(how), HALVES) for how in ("slices", "split", "chunk", "a list", "unbind")),
        (nn.Sequential(conv(3, 6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(), conv(4, 3)), {"0": 6, "2": 4}),
        (
            nn.Sequential(conv(3, 6), nn.ConvTranspose2d(6, 8, 2, groups=2), conv(8, 3)),
            {"0[0]": 3, "0[1]": 3, "1[0]": 4, "1[1]": 4},
        ),
        (nn.Sequential(conv(3, 8), nn.PixelShuffle(2), nn.ReLU(), conv(2, 3)), {"0": 2}),
        (nn.Sequential(conv(3, 4), nn.PixelUnshuffle(2), nn.ReLU(), conv(16, 3)), {"0": 4}),
        (nn.Sequential(conv(3, 6), nn.ChannelShuffle(2), conv(6, 2)), {"0": 6}),
        (Forward(lambda m, x: m.b(shuffled(m, m.a(x))), a=conv(3, 6), b=conv(6, 2)), {"a": 6}),
        # grouped, shuffled, grouped: every other unit of a group goes to the same group
        (
            Forward(lambda m, x: m.c(m.b(shuffled(m, m.a(x)))), a=conv(3, 8), b=conv(8, 4, groups=2), c=conv(4, 2)),
            {"a[0]": 4, "a[1]": 4, "b[0]": 2, "b[1]": 2},
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.RMSNorm(6), nn.Linear(6, 2)), {"1": 6}),
        (nn.Sequential(conv(3, 8), nn.GLU(1), conv(4, 2)), {"0": 4}),
        (nn.Sequential(conv(3, 8), nn.PReLU(8), conv(8, 2)), {"0": 8}),
        (
            Forward(
                lambda m, x: torch.addcmul(m.b(m.a(x)), m.c(torch.einsum("oc,nchw->nohw", m.p, m.a(x))), torch.ones(1)),
                a=conv(3, 5), b=conv(5, 2), c=conv(7, 2), p=parameter(7, 5),
            ), {"a": 5, "p": 7},
        ),
        (Forward(lambda m, x: x.flatten(1) @ m.p @ m.q, p=parameter(192, 6), q=parameter(6, 3)), {"p": 6}),
        (
            Forward(
                lambda m, x: m.b(torch.stack([m.a(x), m.a(x).tanh()], 2).sum(2) * m.s.expand(2, 6, 1, 1)),
                a=conv(3, 6), b=conv(6, 2), s=parameter(1, 6, 1, 1),
            ), {"a": 6},
        ),
        # a convolution along the channels counts neighbours
        (
            Forward(lambda m, x: m.b(m.a(x).mean((2, 3))[:, None]), a=conv(3, 6), b=nn.Conv1d(1, 4, 3)), {},
        ),
        # one channel on its own, the others together
        (Forward(lambda m, x: m.b(m.a(x)[:, 1:]) + m.a(x)[:, 0:1], a=conv(3, 6), b=conv(5, 1)), {"a": 5}),
    ],
)  # fmt: skip
def test_what_people_have_traces_and_proves(model, expected):
    model = model.eval()
    example = torch.randn(2, 3, 8, 8, generator=generator())
    groups = symmetry.trace(model, example)
    assert {name: group.size for name, group in groups.items()} == expected
    symmetry.prove(model, groups, example)
    *_, (_, value) = symmetry.walk(model, groups, example)
    assert torch.allclose(value, model(example), atol=1e-6)


def test_a_graph_of_torch_export_runs_on_other_batches_and_networks():
    model, twin = halves("a list").eval(), halves("a list").eval()
    groups = symmetry.trace(model, torch.randn(2, 3, 8, 8))
    assert groups.way == "torch.export"
    assert symmetry.trace(halves("chunk").eval(), torch.randn(2, 3, 8, 8)).way == "torch.fx"
    images = torch.randn(5, 3, 8, 8)
    *_, (_, value) = symmetry.walk(twin, groups, images)
    assert torch.allclose(value, twin(images), atol=1e-6)
    # its layers are modules, as corrections want them
    assert [layer.name for layer in groups.layers] == ["i", "m", "o"]
    assert {node.op for node in groups.graph.nodes if node.name in {layer.node for layer in groups.layers}} == {
        "call_module"
    }


class Flag(nn.Module):
    def __init__(self, second=False):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x, y=None, return_features=False):
        h = torch.relu(self.a(x) if y is None else self.a(x) + self.a(y))
        return h if return_features else self.b(h)


@pytest.mark.parametrize("example", [torch.randn(4, 6), (torch.randn(4, 6),), (torch.randn(4, 6), torch.randn(4, 6))])
def test_arguments_with_defaults_keep_them_and_inputs_may_be_several(example):
    model = Flag().eval()
    groups = symmetry.trace(model, example)
    assert {name: group.size for name, group in groups.items()} == {"a": 5}
    *_, (_, value) = symmetry.walk(model, groups, example)
    assert torch.equal(value, model(*example) if isinstance(example, tuple) else model(example))


@pytest.mark.parametrize("read", [lambda w: w.dtype, lambda w: w.device, lambda w: w.shape[2:].numel() and w.dtype])
def test_a_weight_read_for_its_dtype_device_or_shape_is_no_operand(read):
    forward = lambda m, x: m.o(torch.relu(m.a(x.to(read(m.a.weight)))).mean((2, 3)))  # noqa: E731
    model = Forward(forward, a=nn.Conv2d(3, 6, 5), o=nn.Linear(6, 2)).eval()
    groups = symmetry.trace(model, torch.randn(2, 3, 8, 8))
    assert {name: group.size for name, group in groups.items()} == {"a": 6}


def test_what_no_output_depends_on_is_named():
    model = torchvision.models.googlenet(init_weights=False, num_classes=5).eval()
    groups = symmetry.trace(model, torch.randn(2, 3, 64, 64))
    assert {name.split(".")[0] for name in groups.unreached} == {"aux1", "aux2"}
    assert "aux1.conv.conv.weight" in str(groups)


def test_a_norm_of_another_axis_is_not_folded_into_the_layer():
    model = Forward(
        lambda m, x: m.o(torch.relu(m.n(m.a(x))).mean(1)), a=nn.Linear(6, 9), n=nn.BatchNorm1d(7), o=nn.Linear(9, 4)
    )
    groups = symmetry.trace(model.eval(), torch.randn(2, 7, 6))
    assert groups.norms == {}
    assert {name: group.size for name, group in groups.items()} == {"a": 9}


def test_a_leaf_with_a_rule_that_forgets_a_weight_is_refused():
    @symmetry.rule(Odd)
    def odd(t, node, module):
        return t.layout(node.args[0])

    with pytest.raises(UnsupportedError, match="its rule says nothing of its scale"):
        symmetry.trace(nn.Sequential(nn.Linear(3, 8), Odd(), nn.Linear(8, 2)), torch.randn(2, 3))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return x * self.scale


class Shuffled(nn.Module):
    """A ShuffleNet block: half of the channels passes, both halves are interleaved, twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.o = conv(3, 16), nn.Linear(16, 5)
        self.branches = nn.ModuleList(
            nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, groups=2), nn.Tanh()) for _ in range(3)
        )

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for branch in self.branches:
            p, q = x.chunk(2, 1)
            x = torch.cat([p, branch(q)], 1)
            x = x.view(-1, 2, 8, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.o(x.mean((2, 3)))


@pytest.mark.parametrize("matcher", ["activation", "weight", "graph"])
def test_units_that_a_shuffle_scatters_are_matched(matcher):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Shuffled().eval()
    example = torch.randn(64, 3, 8, 8, generator=generator())
    groups = symmetry.trace(model, example[:2])
    assert any(member.starts for group in groups.values() for member in group.members)
    symmetry.prove(model, groups, example[:2])
    planted = groups.random(generator(3))
    twin = copy.deepcopy(model)
    twin.load_state_dict(symmetry.act(model.state_dict(), groups, planted))
    assert torch.allclose(twin(example), model(example), atol=1e-6)
    options = {"epsilon": 1e-12} if matcher == "activation" else {}
    images = [example] if matcher == "activation" else None
    perms = matching.match([twin, model], groups, matcher, images=images, progress=False, **options)[1]
    for name, perm in planted.items():
        assert torch.equal(perms[name], perm), name


def test_squeezenet_against_itself_permuted_is_matched_but_for_units_that_never_fire():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.squeezenet1_1(num_classes=10).eval()
    images = torch.randn(16, 3, 64, 64, generator=generator())
    groups = symmetry.trace(model, images[:2])
    planted = groups.random(generator(1))
    twin = copy.deepcopy(model)
    twin.load_state_dict(symmetry.act(model.state_dict(), groups, planted))

    def wrong(matcher, **options):
        """(how many units of each group are not matched to themselves, the matching)"""
        maps = matching.match([twin, model], groups, matcher, progress=False, **options)[1]
        return {name: int((maps[name] != perm).sum()) for name, perm in planted.items()}, maps

    missed, maps = wrong("weight")
    assert sum(missed.values()) == 0
    assert maps.info["start"] == "forward"  # the descent from the identity sticks near where it begins
    assert sum(wrong("activation", images=[images], tap="pre_norm")[0].values()) == 0
    # Units that never fire are all alike, and so are those that fire at one place alone.
    missed, maps = wrong("activation", images=[images], epsilon=1e-12)
    constant = sum(first for first, _ in maps.info["constant"].values())
    assert 0 < sum(missed.values()) < constant
    for name, perm in planted.items():
        matrix, units = maps.similarity[name], torch.arange(len(perm))
        assert float(matrix[units, maps[name]].sum()) >= float(matrix[units, perm].sum()) - 1e-6


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = nn.ModuleList([conv(3, 6), conv(6, 8)]), conv(8, 10)
        self.up = nn.ModuleList([nn.ConvTranspose2d(10, 8, 2, 2), nn.ConvTranspose2d(7, 6, 2, 2)])
        self.join, self.out = nn.ModuleList([conv(16, 7), conv(12, 5)]), conv(5, 2)

    def forward(self, x):
        kept = []
        for down in self.down:
            x = F.relu(down(x))
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = F.relu(self.middle(x))
        for up, join in zip(self.up, self.join, strict=True):
            x, skip = up(x), kept.pop()
            dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.relu(join(torch.cat([skip, F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])], 1)))
        return self.out(x)


class Recurrent(nn.Module):
    """A recurrent layer written as a loop; `gates` 4 makes it an LSTM."""

    def __init__(self, gates, start):
        super().__init__()
        self.i, self.h, self.o = nn.Linear(5, 6 * gates), nn.Linear(6, 6 * gates), nn.Linear(6, 2)
        self.gates, self.start = gates, start

    def forward(self, x):
        h = torch.zeros(x.shape[0], 6) if self.start == "zeros" else None
        c = None
        for t in range(x.shape[1]) if self.start == "zeros" else range(4):
            z = self.i(x[:, t]) if h is None else self.i(x[:, t]) + self.h(h)
            if self.gates == 1:
                h = torch.tanh(z)
                continue
            i, f, o, u = z.chunk(4, 1)
            c = torch.sigmoid(i) * torch.tanh(u) + (0 if c is None else torch.sigmoid(f) * c)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.o(h)


def linears(forward, **more):
    return Forward(forward, a=nn.Linear(4, 6), o=nn.Linear(6, 2), **more)


def convs(forward, hidden, back):
    return Forward(forward, a=conv(3, hidden), b=conv(back, 3))


TO_SPACE, TO_DEPTH = (0, 3, 4, 1, 5, 2), (0, 3, 5, 1, 2, 4)
FLAT, IMAGE, SEQUENCE = (3, 4), (2, 3, 16, 16), (3, 4, 5)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (
            UNet(), (2, 3, 18, 14),
            {"down.0": 6, "down.1": 8, "middle": 10, "up.0": 8, "join.0": 7, "up.1": 6, "join.1": 5},
        ),
        (Recurrent(1, "none"), SEQUENCE, {"i": 6}),
        (Recurrent(1, "zeros"), SEQUENCE, {"i": 6}),
        (Recurrent(4, "none"), SEQUENCE, {"i": 6}),
        # depth to space and back, written as reshapes
        (
            convs(lambda m, x: m.b(m.a(x).view(2, 2, 2, 2, 16, 16).permute(TO_SPACE).reshape(2, 2, 32, 32)), 8, 2),
            IMAGE, {"a": 2},
        ),
        (
            convs(lambda m, x: m.b(m.a(x).view(2, 4, 8, 2, 8, 2).permute(TO_DEPTH).reshape(2, 16, 8, 8)), 4, 16),
            IMAGE, {"a": 4},
        ),
        (convs(lambda m, x: m.b(m.a(x).unflatten(1, (5, 3)).amax(2)), 15, 5), IMAGE, {"a": 5}),
        (convs(lambda m, x: m.b(m.a(x).unflatten(1, (3, 5)).softmax(1).amax(1)), 15, 5), IMAGE, {"a": 5}),
        (
            Forward(lambda m, x: m.o(torch.max(F.relu(m.a(x)), 2)[0]), a=nn.Conv1d(3, 8, 1), o=nn.Linear(8, 2)),
            (2, 3, 20), {"a": 8},
        ),
        (nn.Sequential(conv(3, 6), torchvision.ops.FrozenBatchNorm2d(6), nn.ReLU(), conv(6, 2)), IMAGE, {"0": 6}),
        (nn.Sequential(conv(3, 6), nn.SyncBatchNorm(6), nn.ReLU(), conv(6, 2)), IMAGE, {"0": 6}),
        (nn.Sequential(conv(3, 6), nn.LocalResponseNorm(2), conv(6, 2)), IMAGE, {}),
        (nn.Sequential(nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(162, 4)),
         (2, 1, 8, 8, 8), {"0": 6}),
        (linears(lambda m, x: m.o(torch.where(m.a(x) > 0, m.a(x), m.a(x) * 0.1))), FLAT, {"a": 6}),
        (linears(lambda m, x: m.o(m.a(x).mul_(m.s).add_(m.b).relu_()), s=parameter(6), b=parameter(6)), FLAT, {"a": 6}),
        (linears(lambda m, x: m.o(m.a(x)[:, 0:3].repeat(1, 2) + m.a(x)[:, 3:].repeat(1, 2))), FLAT, {"a": 3}),
        # precisions of its own
        (
            linears(lambda m, x: m.o(m.a(x).softmax(1, dtype=torch.float32).to(x.dtype) + torch.zeros(6))),
            FLAT, {"a": 6},
        ),
        (linears(lambda m, x: {"logits": m.o(torch.relu(m.a(x))), "more": [m.o(m.a(x))]}), FLAT, {"a": 6}),
    ],
)  # fmt: skip
def test_networks_of_many_kinds_trace_and_prove(model, shape, expected):
    model = model.eval()
    groups = symmetry.proved(model, torch.randn(shape, generator=generator()))
    assert {name: group.size for name, group in groups.items()} == expected
    assert groups.proof.unseen == ()
