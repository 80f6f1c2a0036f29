"""The dial between one network and all of them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lib
from lib import fusion, models, symmetry
from lib.checks import InputError
from lib.fusion import allotment, rows, selection
from lib.fusion.allotment import Harm, _Search, allot
from lib.fusion.budgets import Dial
from lib.fusion.structure import Plan, Structure

ZOO = {
    "vgg11": ({"width": 1 / 16, "norm": "batch"}, (3, 32, 32)),
    "resnet20": ({"width": 0.25, "norm": "batch"}, (3, 32, 32)),
    "simplenet": ({"width": 0.25}, (1, 28, 28)),
    "mlp": ({"width": 1 / 16, "norm": "layer"}, (1, 28, 28)),
}


class Depthwise(nn.Module):
    """A convolution, a depthwise one and PReLU, GELU in a function, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.each, self.bend = nn.Conv2d(6, 6, 3, groups=6), nn.PReLU(6)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = self.bend(self.each(F.gelu(self.bn(self.first(x)))))
        return self.last(x.mean(dim=(2, 3)))


def networks(name: str, count: int = 2) -> tuple[list[nn.Module], torch.Tensor]:
    """Random networks with statistics of their own, and images."""
    torch.manual_seed(0)
    if name == "depthwise":
        nets, shape = [Depthwise() for _ in range(count)], (3, 8, 8)
    elif name == "vit_mnist":
        nets, shape = [models.build("vit_mnist", width=0.5, seed=seed) for seed in range(count)], (1, 28, 28)
    else:
        options, shape = ZOO[name]
        nets = [models.build(name, seed=seed, **options) for seed in range(count)]
    images = torch.randn(60, *shape)
    for net in nets:
        net.train()
        with torch.no_grad():
            for _ in range(3):
                net(images)
        net.eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return nets, images


def mean(nets: list[nn.Module], shares, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return sum(share * net(images) for share, net in zip(shares, nets, strict=True))


@pytest.fixture(scope="module", params=[*ZOO, "depthwise", "vit_mnist"])
def case(request):
    nets, images = networks(request.param)
    groups = symmetry.trace(nets[0], images[:2])
    maps = [groups.identity(), groups.random(torch.Generator().manual_seed(1))]
    return request.param, nets, images, fusion.align(nets, groups, maps)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.8)])
def test_a_budget_of_all_parents_is_the_mean_of_their_outputs(case, shares):
    _, nets, images, aligned = case
    fused = lib.fuse(aligned, images=images, shares=shares, budget=2, progress=False)
    with torch.inference_mode():
        outputs = fused.model()(images)
    goal = mean(nets, shares, images)
    assert (outputs - goal).abs().max() < 1e-5 * goal.abs().max()
    count = sum(p.numel() for p in fused.model().parameters())
    assert count == fused.structure.cost()


def test_a_budget_of_one_is_the_network_without_a_budget(case):
    _, _, images, aligned = case
    plain = lib.fuse(aligned, images=images, progress=False)
    one = lib.fuse(aligned, images=images, budget=1, progress=False)
    assert all(torch.equal(tensor, one.state[name]) for name, tensor in plain.state.items())


def test_three_networks_apart_are_their_mean():
    nets, images = networks("vgg11", 3)
    groups = symmetry.trace(nets[0], images[:2])
    aligned = fusion.align(nets, groups, [groups.identity()] * 3)
    fused = lib.fuse(aligned, images=images, shares=(0.5, 0.2, 0.3), budget=3, progress=False)
    with torch.inference_mode():
        assert torch.allclose(fused.model()(images), mean(nets, (0.5, 0.2, 0.3), images), atol=1e-5)
    smaller = lib.fuse(aligned, images=images, budget=1.5, progress=False)
    assert smaller.structure.cost() <= 1.5 * sum(p.numel() for p in nets[0].parameters())
    assert torch.isfinite(smaller.model()(images)).all()


@pytest.mark.parametrize("separate", [1, 2, -1, -2])
def test_whole_groups_apart_compute_the_parents_units(separate):
    nets, images = networks("vgg11")
    groups = symmetry.trace(nets[0], images[:2])
    aligned = fusion.align(nets, groups, [groups.identity()] * 2)
    fused = lib.fuse(aligned, images=images, separate=separate, progress=False)
    network, names = fused.model(), list(groups)
    assert fused.structure.separate == set(names[:separate] if separate > 0 else names[separate:])
    assert sum(p.numel() for p in network.parameters()) == fused.structure.cost()
    if separate > 0:  # nothing is lost up to there
        place = network.features.get_submodule(str(int(names[separate - 1].split(".")[1]) + 1))
        found = []
        place.register_forward_hook(lambda _, __, value: found.append(value.clone()))
        with torch.inference_mode():
            network(images)
            theirs = [net.features[: int(names[separate - 1].split(".")[1]) + 2](images) for net in nets]
        assert torch.allclose(found[0], torch.cat(theirs, dim=1), atol=1e-5)


def test_the_more_it_may_cost_the_nearer_it_is_to_the_mean():
    nets, images = networks("resnet20")
    groups = symmetry.trace(nets[0], images[:2])
    aligned = fusion.align(nets, groups, [groups.identity()] * 2)
    goal, one = mean(nets, (0.5, 0.5), images), sum(p.numel() for p in nets[0].parameters())
    far = []
    for fused in lib.fuse(aligned, images=images, budget=[0.9, 1.4, 1.8], progress=False):
        with torch.inference_mode():
            far.append(float((fused.model()(images) - goal).square().mean()))
    assert far[0] > far[1] > far[2] > 0
    assert fused.structure.cost() <= 1.8 * one


def test_one_network_is_pruned():
    nets, images = networks("simplenet")
    fused = lib.fuse(nets[:1], images=images, budget=0.6, progress=False)
    assert sum(p.numel() for p in fused.model().parameters()) <= 0.6 * sum(p.numel() for p in nets[0].parameters())
    with torch.inference_mode():
        goal, found = nets[0](images), fused.model()(images)
    assert (found - goal).square().mean() < 0.5 * goal.square().mean()


@pytest.mark.parametrize(("name", "group"), [("vgg11", 3), ("simplenet", 1), ("vit_mnist", 2), ("vit_mnist", 6)])
def test_units_chosen_behind_layers_that_are_apart_are_the_parents_own(name, group):
    nets, images = networks(name)
    groups = symmetry.trace(nets[0], images[:2])
    aligned = fusion.align(nets, groups, [groups.identity()] * 2)
    plan = Plan(aligned.model, groups)
    merged = plan.free[group]
    structure = Structure(plan, 2, {merged: plan.sizes[merged]}, frozenset(plan.free) - {merged})
    fused = fusion.correct(aligned, None, "least_squares", images=images, structure=structure, progress=False)
    made = next(layer.name for layer in groups.layers if structure.made(layer.name) == merged)
    assert fused.info["layers"][made] < 1e-8
    assert sum(fused.info["units"][made]["single"]) == plan.sizes[merged]


def test_a_parent_gives_no_more_units_than_it_has():
    values = torch.randn(100, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 0] *= 3  # the first of its parent to be chosen
    readers = [torch.eye(4, dtype=torch.float64)] * 2
    chosen = selection.forward(values.T @ values, readers, (0.1, 0.9), 6).tolist()
    assert len(set(chosen)) == 6 and sum(unit >= 4 for unit in chosen) == 4
    assert selection.forward(values.T @ values, readers, (0.25, 0.75), 4).ge(4).sum() == 3


def test_units_that_are_chosen_owe_nothing_to_matching():
    nets, images = networks("simplenet")
    groups = symmetry.trace(nets[0], images[:2])
    outputs = []
    for maps in (groups.identity(), groups.random(torch.Generator().manual_seed(4))):
        aligned = fusion.align(nets, groups, [groups.identity(), maps])
        fused = lib.fuse(aligned, images=images, budget=1.4, progress=False)
        with torch.inference_mode():
            outputs.append(fused.model()(images))
    assert torch.allclose(*outputs, atol=1e-3 * float(outputs[0].abs().max()))


def test_later_layers_make_up_for_some_of_what_a_size_costs(monkeypatch):
    nets, images = networks("simplenet")
    groups = symmetry.trace(nets[0], images[:2])
    aligned = fusion.align(nets, groups, [groups.identity()] * 2)

    def first() -> dict[int, float]:
        return Dial(aligned, (0.5, 0.5), images, "cpu")._measured()["conv1"]

    found = first()
    assert list(found.values()) == sorted(found.values(), reverse=True) and list(found.values())[-1] == 0
    nothing = lambda now, seen: (torch.eye(now[0].shape[1]), torch.zeros(now[0].shape[1]))  # noqa: E731
    monkeypatch.setattr(allotment, "_nearest", nothing)
    without = first()
    assert all(found[units] < without[units] for units in found if found[units])


def test_a_list_of_budgets_gives_what_each_gives_alone(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 2**15)  # of few rows, so that there are several in a chunk
    nets, images = networks("vgg11")
    groups = symmetry.trace(nets[0], images[:2])
    aligned = fusion.align(nets, groups, [groups.identity()] * 2)
    every = lib.fuse(aligned, images=images, budget=[1.3, 1.5, 1.7], progress=False)
    for budget, fused in zip([1.3, 1.5, 1.7], every, strict=True):
        alone = lib.fuse(aligned, images=images, budget=budget, progress=False)
        assert alone.structure.counts == fused.structure.counts and alone.structure.separate == fused.structure.separate
        assert all(torch.allclose(tensor, fused.state[name], atol=1e-5) for name, tensor in alone.state.items())


def test_multiply_adds_are_counted_as_torch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode

    nets, images = networks("vgg11")
    plan = Plan(nets[0], symmetry.trace(nets[0], images[:2]))
    for counts, separate in (({}, ()), ({plan.free[3]: 7}, plan.free[:2]), ({}, plan.free)):
        structure = Structure(plan, 2, counts, frozenset(separate))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            structure.module().eval()(images[:1])
        assert counter.get_total_flops() == 2 * structure.cost("multiply-adds")


def test_what_is_allotted_costs_what_the_search_says():
    nets, images = networks("resnet20")
    groups = symmetry.trace(nets[0], images[:2])
    aligned = fusion.align(nets, groups, [groups.identity()] * 2)
    dial = Dial(aligned, (0.5, 0.5), images, "cpu")
    for kind in ("parameters", "multiply-adds"):
        structure = dial.at(1.4, kind)
        search = _Search(dial.plan, 2, dial._needs, kind)
        state = {g: search.levels[g].tolist().index(structure.count(g)) for g in search.names}
        assert abs(search.cost(state) - structure.cost(kind)) <= 1
        assert structure.cost(kind) <= 1.4 * Structure(dial.plan, 2, {}).cost(kind)


def test_the_budget_goes_where_it_is_needed():
    nets, images = networks("vgg11")
    plan = Plan(nets[0], symmetry.trace(nets[0], images[:2]))

    def need(name: str, weight: float) -> Harm:
        size = plan.sizes[name]
        return {size // 2: 2 * weight, size: weight, 2 * size: 0.0}

    for heavy in (0, 3):
        needs = {name: need(name, 1.0 if i == heavy else 1e-4) for i, name in enumerate(plan.free)}
        assert plan.free[heavy] in allot(plan, 2, needs, 1.05, "parameters").separate


def test_a_saved_network_of_another_structure_is_loaded(tmp_path):
    for name in ("resnet20", "vit_mnist"):
        nets, images = networks(name)
        groups = symmetry.trace(nets[0], images[:2])
        aligned = fusion.align(nets, groups, [groups.identity()] * 2)
        fused = lib.fuse(aligned, images=images, budget=1.5, progress=False)
        path = fused.save(tmp_path / f"{name}.safetensors")
        with torch.inference_mode():
            assert torch.equal(fusion.load(path, nets[0])(images), fused.model()(images))
        assert "apart" in str(fused.report)


def test_a_network_of_another_structure_is_traced_proved_and_exported():
    nets, images = networks("vgg11")
    groups = symmetry.trace(nets[0], images[:2])
    aligned = fusion.align(nets, groups, [groups.identity()] * 2)
    network = lib.fuse(aligned, images=images, separate=3, progress=False).model()
    again = lib.trace(network, images[:2])
    assert sum(group.size for group in again.values()) == sum(g.size for g in groups.values()) + sum(
        groups[name].size for name in list(groups)[:3]
    )
    torch.export.export(network, (images[:2],))


class Viewing(nn.Module):
    """Counts on its own sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 6 * 6, 5)

    def forward(self, x):
        return self.last(torch.relu(self.conv(x)).view(-1, 144))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"budget": 2.5}, "budget 2.5 is not accepted; accepted: a number > 0, at most 2"),
        ({"budget": "1"}, "budget '1' is not accepted"),
        ({"budget": []}, r"budget \[\] is not accepted"),
        ({"budget": 1.2, "separate": 2}, "both say how large"),
        ({"budget": 1.2, "cost": "flops"}, "unknown cost 'flops'; accepted: parameters, multiply-adds"),
        ({"separate": 9}, "separate 9 is not accepted; accepted: a number of groups, −3 to 3"),
        ({"budget": 0.0001}, "budget 0.0001 is not accepted; accepted: 0.0"),
        ({"budget": 1.2, "correction": "none"}, "correction 'none' makes a network of the parents' size"),
    ],
)
def test_what_is_not_accepted_is_said_in_a_line(options, line):
    nets, images = networks("simplenet")
    with pytest.raises(InputError, match=line):
        lib.fuse(nets, images=images, progress=False, **options)


def test_a_network_that_counts_on_its_sizes_is_refused():
    torch.manual_seed(0)
    with pytest.raises(InputError, match="Viewing's forward (counts on its own sizes|mixes)"):
        lib.fuse([Viewing(), Viewing()], images=torch.randn(20, 1, 8, 8), budget=1.5, progress=False)


def test_one_network_without_a_budget_is_refused():
    nets, images = networks("simplenet")
    with pytest.raises(InputError, match="at least two networks, or one and a budget < 1"):
        lib.fuse(nets[:1], images=images, progress=False)
    with pytest.raises(InputError, match="budget 1 of one network is that network"):
        lib.fuse(nets[:1], images=images, budget=1, progress=False)


def test_parents_stay_as_they_are():
    nets, images = networks("simplenet")
    before = copy.deepcopy([net.state_dict() for net in nets])
    lib.fuse(nets, images=images, budget=1.3, progress=False)
    assert all(torch.equal(b[k], n.state_dict()[k]) for b, n in zip(before, nets, strict=True) for k in b)
