"""The proof, tried on wrong groupings: one that passes whatever it is given proves nothing."""

import copy
import importlib
import math
import random

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lib import models, symmetry
from lib.symmetry import Group, Groups, Member, Proof, SymmetryError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def forget(groups, name, i):
    """The same groups, member i of group `name` forgotten."""
    group = groups[name]
    members = tuple(member for j, member in enumerate(group.members) if j != i)
    kept = {**groups, name: Group(group.size, members, group.taps)}
    return Groups(kept, groups.layers, groups.graph) if isinstance(groups, Groups) else kept


def mlp(activation):
    return nn.Sequential(
        nn.Linear(64, 128), activation(), nn.Linear(128, 128), activation(), nn.Linear(128, 128), activation(),
        nn.Linear(128, 10),
    )  # fmt: skip


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


NETWORKS = {
    "relu": (lambda: mlp(nn.ReLU), (4, 64)),
    "tanh": (lambda: mlp(nn.Tanh), (4, 64)),
    "sigmoid": (lambda: mlp(nn.Sigmoid), (4, 64)),
    "relu6": (lambda: mlp(nn.ReLU6), (4, 64)),
    "gelu": (lambda: mlp(nn.GELU), (4, 64)),
    "lenet": (lenet, (2, 1, 28, 28)),
    "resnet20": (lambda: models.build("resnet20", width=0.25, norm="batch", seed=0), (2, 3, 16, 16)),
    "vgg11": (lambda: models.build("vgg11", width=0.0625, norm="batch", seed=0), (2, 3, 32, 32)),
    "resnet18": (torchvision.models.resnet18, (2, 3, 32, 32)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (2, 3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_forgetting_any_member_is_refuted_by_its_groups_name(name):
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = make().eval(), torch.rand(shape)
    groups = symmetry.trace(net, x)
    proof = symmetry.prove(net, groups, x)
    assert proof <= 1e-9
    assert proof.unseen == ()
    assert 1e-4 < proof.sensitivity < 10
    members = [(group, i) for group in groups for i in range(len(groups[group].members))]
    for group, i in members if name not in ("resnet18", "mobilenet_v2") else random.Random(0).sample(members, 5):
        with pytest.raises(SymmetryError) as error:
            symmetry.prove(net, forget(groups, group, i), x)
        assert str(error.value).startswith(f"permuting {group} changes the outputs by "), groups[group].members[i]
        assert float(str(error.value).split()[6]) > 0.01


class Attention(nn.Module):
    """One head over tokens; a key's bias adds the same to all of a query's logits, so that no output sees it."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5
        return self.out(scores.softmax(-1) @ self.v(x))


HEAD = {
    "a": Group(8, (Member("q.weight", 0), Member("q.bias", 0), Member("k.weight", 0), Member("k.bias", 0))),
    "b": Group(8, (Member("v.weight", 0), Member("v.bias", 0), Member("out.weight", 1))),
}


@pytest.mark.parametrize("backward", [True, False])
def test_what_the_outputs_cannot_see_is_named(backward):
    net = Attention()
    if not backward:
        net.register_forward_hook(lambda module, args, out: torch.from_numpy(out.detach().numpy()))
    proof = symmetry.prove(net, HEAD, torch.randn(2, 5, 6))
    assert proof.unseen == ("group 'a': k.bias:0",)
    assert proof.sensitivity > 1e-3
    assert symmetry.prove(net, forget(HEAD, "a", 3), torch.randn(2, 5, 6)) < 1e-9  # it is not seen
    for group, i in [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]:
        with pytest.raises(SymmetryError, match=f"permuting {group} changes"):
            symmetry.prove(net, forget(HEAD, group, i), torch.randn(2, 5, 6))


def test_a_proof_is_a_number_that_says_what_it_found():
    net, x = Attention(), torch.randn(2, 5, 6)
    proof = symmetry.prove(net, HEAD, x)
    assert isinstance(proof, Proof)
    assert proof < 1e-9
    assert f"{proof:.0e}" == f"{float(proof):.0e}"
    assert str(proof) == (
        f"permuting changes the outputs by {float(proof):.0e} of their size; any member forgotten, by "
        f"{proof.sensitivity:.0e} or more; not seen by the outputs: group 'a': k.bias:0"
    )
    assert copy.deepcopy(proof).unseen == proof.unseen
    given = symmetry.prove(net, HEAD, x, {"a": torch.arange(8).roll(1)})
    assert given.unseen == ()
    assert math.isnan(given.sensitivity)
    assert str(given) == f"permuting changes the outputs by {float(given):.0e} of their size"


def test_the_sensitivity_is_what_forgetting_really_changes_to_first_order():
    net, x = models.build("resnet20", width=0.25, norm="batch", seed=0), models.example("resnet20")
    groups = symmetry.trace(net, x)
    for name in ("layer1", "layer2.1.conv1", "layer3.0.conv1", "layer3"):
        alone, real = {name: groups[name]}, []
        for i in range(len(groups[name].members)):
            with pytest.raises(SymmetryError) as error:
                symmetry.prove(net, forget(alone, name, i), x)
            real.append(float(str(error.value).split()[6]))
        claimed = symmetry.prove(net, alone, x).sensitivity
        assert min(real) / 100 < claimed < 3 * min(real), name


class Lines(nn.Module):
    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


PAIR = {"a": Group(5, (Member("a.weight", 0), Member("a.bias", 0), Member("b.weight", 1)))}


def pair(forward):
    return Lines(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 2))


@pytest.mark.parametrize("perms", [None, {"a": torch.tensor([1, 2, 3, 4, 0])}])
def test_a_network_that_is_random_in_evaluation_mode_is_not_blamed_on_groups(perms):
    net = pair(lambda m, x: m.b(F.dropout(torch.relu(m.a(x))))).eval()
    with pytest.raises(SymmetryError, match=r"^Lines is random in evaluation mode: .*F\.dropout without") as error:
        symmetry.prove(net, PAIR, torch.randn(4, 6), perms)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("perms", [None, {"a": torch.tensor([1, 2, 3, 4, 0])}])
def test_a_network_that_overflows_is_not_blamed_on_groups(perms):
    net = pair(lambda m, x: m.b(torch.exp(1e4 + torch.relu(m.a(x))))).eval()
    with pytest.raises(SymmetryError, match=r"^Lines overflows: "):
        symmetry.prove(net, PAIR, torch.randn(4, 6), perms)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_three_hundred_layers_are_proved(activation):
    layers = [part for _ in range(300) for part in (nn.Linear(64, 64), activation())]
    net, x = nn.Sequential(*layers, nn.Linear(64, 3)).eval(), torch.rand(2, 64)
    groups = symmetry.trace(net, x)
    proof = symmetry.prove(net, groups, x)
    assert proof.unseen == ()
    assert proof.sensitivity > 1e-4
    with pytest.raises(SymmetryError, match=r"^permuting 298 changes"):
        symmetry.prove(net, forget(groups, "298", 1), x)


def test_rounding_that_grows_to_the_outputs_size_is_not_blamed_on_groups():
    def chaotic(m, x):
        x = torch.relu(m.a(x)).sum(1, keepdim=True)
        for _ in range(80):
            x = 3.9 * (x - x.floor()) * (1 - x + x.floor())
        return x

    net, groups = Lines(chaotic, a=nn.Linear(6, 64)), {"a": Group(64, PAIR["a"].members[:2])}
    with pytest.raises(SymmetryError, match=r"^Lines amplifies rounding to .* of its outputs"):
        symmetry.prove(net, groups, torch.randn(4, 6))


def test_wrong_groups_are_found_among_many():
    net = nn.Sequential(*[part for _ in range(40) for part in (nn.Linear(8, 8), nn.Tanh())], nn.Linear(8, 3)).eval()
    groups = symmetry.trace(net, torch.rand(2, 8))
    wrong = forget(forget(groups, "4", 0), "60", 2)
    with pytest.raises(SymmetryError, match=r"^permuting 4, 60 changes the outputs by "):
        symmetry.prove(net, wrong, torch.rand(2, 8))
    for name in groups:
        wrong = forget(wrong, name, 1)
    with pytest.raises(SymmetryError, match=r"^permuting 0, 2, 4, 6, 8, 10, 12, 14, … changes"):
        symmetry.prove(net, wrong, torch.rand(2, 8))
    # With its own weights, which the first layers matter little to.
    perms = groups.identity() | {"78": torch.arange(8).roll(1), "76": torch.arange(8).roll(1)}
    with pytest.raises(SymmetryError, match=r"^permuting 76 changes"):
        symmetry.prove(net, forget(groups, "76", 0), torch.rand(2, 8), perms)


class Versioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.version = nn.Linear(6, 5), nn.Linear(5, 2), 3

    def get_extra_state(self):
        return {"version": self.version}

    def set_extra_state(self, state):
        self.version = state["version"]

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("perms", [None, {"a": torch.tensor([1, 2, 3, 4, 0])}])
def test_entries_that_are_no_tensors_are_kept(perms):
    net = Versioned()
    assert symmetry.prove(net, PAIR, torch.randn(4, 6), perms) < 1e-9
    moved = symmetry.act(net.state_dict(), PAIR, {"a": torch.tensor([1, 2, 3, 4, 0])})
    assert moved["_extra_state"] == {"version": 3}
    with pytest.raises(SymmetryError, match="permuting a changes"):
        symmetry.prove(net, forget(PAIR, "a", 1), torch.randn(4, 6), perms)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6)])
def test_a_single_input_without_a_batch_proves_as_well(shape):
    net = Lines(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(6, 5), b=nn.Linear(5, 2))
    proof = symmetry.prove(net, PAIR, torch.zeros(shape))
    assert proof.unseen == ()
    assert proof.sensitivity > 1e-3


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_example_proves_as_well(value):
    net, x = lenet(), torch.full((2, 1, 28, 28), value)
    groups = symmetry.trace(net, torch.rand(2, 1, 28, 28))
    assert symmetry.prove(net, groups, x).unseen == ()
    assert x.unique().tolist() == [value]
    for i in range(3):
        with pytest.raises(SymmetryError, match="permuting 3 changes"):
            symmetry.prove(net, forget(groups, "3", i), x)


def test_a_networks_own_state_does_not_matter_and_is_left_alone():
    net = models.build("resnet20", width=0.25, norm="batch", seed=0)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.zero_()
    before = copy.deepcopy(net.state_dict())
    groups = symmetry.trace(net, models.example("resnet20"))
    assert symmetry.prove(net, groups, models.example("resnet20")).sensitivity > 1e-4
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_group_of_two_moves_though_half_the_permutations_do_not():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    wrong = {"0": Group(2, (Member("0.weight", 0), Member("2.weight", 1)))}
    for seed in range(8):
        with pytest.raises(SymmetryError, match="permuting 0 changes"):
            symmetry.prove(net, wrong, torch.rand(2, 3), generator=generator(seed))


def test_several_inputs_and_tokens():
    tokens = torch.randint(7, (3, 4), generator=generator())
    net = Lines(
        lambda m, x, t: m.out(torch.relu(m.a(x)) + m.table(t).mean(1)),
        a=nn.Linear(6, 5), table=nn.Embedding(7, 5), out=nn.Linear(5, 2),
    )  # fmt: skip
    members = (Member("a.weight", 0), Member("a.bias", 0), Member("table.weight", 1), Member("out.weight", 1))
    groups = {"a": Group(5, members)}
    assert symmetry.prove(net, groups, (torch.rand(3, 6), tokens)).unseen == ()
    for i in range(4):
        with pytest.raises(SymmetryError, match="permuting a changes"):
            symmetry.prove(net, forget(groups, "a", i), (torch.rand(3, 6), tokens))


def test_numbers_that_a_network_does_not_take_are_not_forced_on_it():
    """As integers in floating point; random inputs would be no entries of the table."""
    net = Lines(lambda m, x: m.out(m.table(x.long())), table=nn.Embedding(7, 5), out=nn.Linear(5, 2))
    groups = {"table": Group(5, (Member("table.weight", 1), Member("out.weight", 1)))}
    assert symmetry.prove(net, groups, torch.tensor([[0.0, 3.0], [6.0, 2.0]])).unseen == ()
    with pytest.raises(SymmetryError, match="permuting table changes"):
        symmetry.prove(net, forget(groups, "table", 0), torch.tensor([[0.0, 3.0], [6.0, 2.0]]))


def tied():
    net = pair(lambda m, x: m.b(torch.relu(m.a(torch.relu(m.first(x))))))
    net.first, net.a, net.b = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)
    net.again = net.a
    names = ("a.weight", "again.weight")
    bias = tuple(Member(name, 0) for name in ("first.bias", "a.bias", "again.bias"))
    group = (Member("first.weight", 0), *bias, *(Member(n, axis) for n in names for axis in (0, 1)))
    return net, {"a": Group(5, (*group, Member("b.weight", 1)))}


def test_one_tensor_under_two_names_is_permuted_under_both_or_refused():
    net, both = tied()
    net.function = lambda m, x: m.b(torch.relu(m.again(torch.relu(m.a(torch.relu(m.first(x)))))))
    assert symmetry.prove(net, both, torch.rand(4, 6)).unseen == ()
    names = [member.tensor for member in both["a"].members]
    for i, name in enumerate(names):
        with pytest.raises(SymmetryError, match="are one tensor" if name.startswith("a") else "permuting a changes"):
            symmetry.prove(net, forget(both, "a", i), torch.rand(4, 6))


class Frozen(nn.Module):
    """Statistics that are buffers of a module with its own arithmetic, as in torchvision's FrozenBatchNorm2d."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)
        self.norm = torchvision.ops.FrozenBatchNorm2d(6)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


def test_buffers_that_a_module_reads_itself_count():
    names = ("a.weight", "a.bias", "norm.weight", "norm.running_mean", "norm.running_var", "norm.bias")
    groups = {"a": Group(6, (*(Member(name, 0) for name in names), Member("b.weight", 1)))}
    x = torch.rand(2, 3, 9, 9)
    assert symmetry.prove(Frozen(), groups, x).unseen == ()
    for i in range(7):
        with pytest.raises(SymmetryError, match="permuting a changes"):
            symmetry.prove(Frozen(), forget(groups, "a", i), x)


def test_statistics_fit_what_goes_in():
    # With statistics of about one, every unit would say exactly 1 or -1.
    net = Lines(lambda m, x: m.b(torch.tanh(m.norm(1e5 * m.a(x)))), a=nn.Linear(6, 5), b=nn.Linear(5, 2))
    net.norm = nn.BatchNorm1d(5)
    names = ("a.weight", "a.bias", *(f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")))
    groups = {"a": Group(5, (*(Member(name, 0) for name in names), Member("b.weight", 1)))}
    proof = symmetry.prove(net, groups, torch.rand(4, 6))
    assert proof.unseen == ()
    assert proof.sensitivity > 1e-3
    for i in range(7):
        with pytest.raises(SymmetryError, match="permuting a changes"):
            symmetry.prove(net, forget(groups, "a", i), torch.rand(4, 6))


@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_statistics_are_those_of_the_arithmetic(affine):
    prove = importlib.import_module("lib.symmetry.prove")
    x = torch.randn(7, 5, dtype=torch.float64, generator=generator())
    norm = nn.BatchNorm1d(5, affine=affine, eps=0.1).double().eval()
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5, generator())
    with prove._Differentiable(norm) as norms:
        total = torch.tanh(norm(norm(x))).sum()  # used twice
    found = norms.gradients(torch.autograd.grad(total, [t for call in norms.calls for t in call[2:]]))
    mean, variance = (t.clone().requires_grad_() for t in (norm.running_mean, norm.running_var))
    gain, bias = (norm.weight, norm.bias) if affine else (1.0, 0.0)
    once = (x - mean) / (variance + 0.1).sqrt() * gain + bias
    twice = (once - mean) / (variance + 0.1).sqrt() * gain + bias
    expected = torch.autograd.grad(torch.tanh(twice).sum(), [mean, variance])
    torch.testing.assert_close([found[id(norm.running_mean)], found[id(norm.running_var)]], list(expected))


def test_permute_moves_parts_of_axes_and_rows_one_by_one():
    g = generator()
    state = {"w": torch.randn(8, 10, 3, generator=g)}
    groups = {
        "a": Group(3, (Member("w", 1, block=2, offset=4),)),
        "b": Group(2, (Member("w", 1, block=2),)),
        "c": Group(4, (Member("w", 0, rows=(4, 8)),)),
        "d": Group(10, (Member("w", 1, rows=(0, 4)),)),
    }
    perms = {name: torch.randperm(group.size, generator=g) for name, group in groups.items()}
    expected = state["w"].clone()
    for name, group in groups.items():
        (member,) = group.members
        source = expected.clone()
        rows = range(*(member.rows or (0, 8)))
        for i, old in enumerate(perms[name].tolist()):
            for j in range(member.block):
                to, of = (member.offset + k * member.block + j for k in (i, old))
                if member.axis == 0:
                    expected[rows[to]] = source[rows[of]]
                else:
                    expected[rows[0] : rows[-1] + 1, to] = source[rows[0] : rows[-1] + 1, of]
    before = state["w"].clone()
    assert torch.equal(symmetry.act(state, groups, perms)["w"], expected)
    assert torch.equal(state["w"], before)


class Switched(nn.Module):
    """Reads a layer, or not, by a flag that is set after tracing."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.on = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(4, 2), False

    def forward(self, x):
        out = self.b(torch.relu(self.a(x)))
        return out + self.c(x) if self.on else out


def test_a_tensor_that_the_graph_does_not_reach_matters_to_no_output():
    model, x = Switched().eval(), torch.randn(3, 4)
    groups = symmetry.proved(model, x)
    assert groups.unreached == ("c.weight", "c.bias")
    assert "moved by no group, no output depends on it: c.weight, c.bias" in str(groups)
    assert str(groups.proof) in str(groups)
    model.on = True
    with pytest.raises(
        SymmetryError, match=r"no group moves c\.weight, c\.bias, which .* but the outputs depend on them"
    ):
        symmetry.prove(model, groups, x)


class Cancelled(nn.Module):
    """What all outputs have in common does not show behind a softmax: nor does the bias of a gate of theirs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.k = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 1, bias=False)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return torch.softmax(self.b(h) + self.k(h), 1)


def test_members_that_no_output_sees_are_warned_of():
    with pytest.warns(UserWarning, match=r"Cancelled: .*; not seen by the outputs: group 'a': k\.weight:1"):
        groups = symmetry.proved(Cancelled().eval(), torch.randn(3, 4))
    assert groups.proof.unseen == ("group 'a': k.weight:1",)
