"""Several networks in one order: the objective never falls, every strategy is proved, two networks are as they were."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lib import fusion, matching, models, symmetry
from lib.checks import InputError
from lib.matching import joint, problem, solvers

STRATEGIES = (
    "activation", "activation(strategy=reference)", "weight", "weight(strategy=reference)",
    "weight(strategy=merge_many)", "weight(strategy=cycle_consistent)", "graph", "graph(strategy=reference)",
)  # fmt: skip
QUIET = {"progress": False}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(7 * 16, 9), nn.ReLU(), nn.Linear(9, 4)).eval()


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=generator())


GROUPS = symmetry.trace(network(0), images(2))


def planted(count: int, noise: float, seed: int = 0) -> tuple[list[nn.Module], list[dict[str, torch.Tensor]]]:
    """(copies of one network with noise, their units in orders of their own; the maps to the order of the first)."""
    base, rand = network(seed), generator(seed + 100)
    networks, truths = [], []
    for _ in range(count):
        state = {
            name: t + noise * t.std() * torch.randn(t.shape, generator=rand) if "weight" in name and t.dim() > 1 else t
            for name, t in base.state_dict().items()
        }
        truth = GROUPS.random(rand)
        networks.append(models.load_state(copy.deepcopy(base), symmetry.act(state, GROUPS, symmetry.inverse(truth))))
        truths.append(truth)
    return networks, joint.to_the_first(truths)


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("matcher", STRATEGIES)
def test_every_strategy_finds_the_order_of_slightly_noisy_copies_and_is_proved(matcher):
    networks, truths = planted(4, 0.05)
    maps = matching.match(networks, GROUPS, matcher, images=images(), **QUIET)
    assert len(fusion.align(networks, GROUPS, maps)) == 4  # proves them
    assert same(maps[0], GROUPS.identity())
    shares = [float((each[name] == truth[name]).double().mean()) for each, truth in zip(maps, truths, strict=True)
              for name in truth]  # fmt: skip
    # Frank-Wolfe and MergeMany begin where networks lie, and get stuck
    assert min(shares) == 1 or "merge_many" in matcher or "cycle_consistent" in matcher


@pytest.mark.parametrize("matcher", ["activation", "weight", "graph"])
def test_two_networks_together_are_a_pair(matcher):
    networks = [network(1), network(2)]
    reference, together = (
        matching.match(networks, GROUPS, f"{matcher}(strategy={name})", images=images(), **QUIET)
        for name in ("reference", "joint")
    )
    auto = matching.match(networks, GROUPS, matcher, images=images(), **QUIET)
    assert same(auto[1], reference[1]) and auto[1].objective == reference[1].objective
    assert auto[1].matcher == matcher
    assert together[1].objective >= reference[1].objective - 1e-6


@pytest.mark.parametrize("kernel", problem.KERNELS)
def test_the_joint_objective_is_the_sum_over_pairs_and_never_falls(kernel):
    networks = [network(seed) for seed in range(4)]
    states = [each.state_dict() for each in networks]
    whole = matching.Joint([matching.Problem(states[0], state, GROUPS) for state in states])
    start = [GROUPS.random(generator(seed)) for seed in range(4)]
    pairs = 0.0
    for i, j in itertools.combinations(range(4), 2):  # both moved: the first by acting on its weights
        moved = symmetry.act(states[i], GROUPS, start[i])
        pairs += matching.Problem(moved, states[j], GROUPS).objective(start[j], kernel)
    assert whole.objective(start, kernel) == pytest.approx(pairs, rel=1e-6)
    perms, history = joint.block_descent(whole, start, kernel=kernel, generator=generator())
    assert all(after >= before * (1 - 1e-7) for before, after in itertools.pairwise(history))
    assert history[-1] > history[0]
    assert whole.objective(perms, kernel) == pytest.approx(history[-1], rel=1e-6)  # renamed, nothing else
    assert same(perms[0], GROUPS.identity())
    for i in range(4):  # where it ends, no network can be bettered against the others as they stand
        others = [whole.placed(j, perms[j]) for j in range(4) if j != i]
        again = solvers.coordinate_descent(whole.towards(i, others), kernel=kernel, start=perms[i])
        assert same(again.perms, perms[i])


def test_weights_are_moved_alike_by_permutations_and_by_their_matrices():
    state = network(0).state_dict()
    whole = matching.Joint([matching.Problem(state, state, GROUPS)])
    perms = GROUPS.random(generator())
    matrices = {name: symmetry.matrix(perm) for name, perm in perms.items()}
    for one, two in zip(whole.placed(0, perms), whole.placed(0, matrices), strict=True):
        assert torch.allclose(one, two)


def test_merge_many_takes_the_networks_in_random_orders_drawn_from_the_seed(monkeypatch):
    networks, _ = planted(5, 1.0)
    taken, towards = [], joint.Joint.towards

    def spied(self, network, placed, *, summed=False):
        taken.extend([network] * summed)  # it sums what it descends on alone
        return towards(self, network, placed, summed=summed)

    monkeypatch.setattr(joint.Joint, "towards", spied)

    def orders(matcher, seed):
        taken.clear()
        matching.match(networks, GROUPS, matcher, seed=seed, **QUIET)
        return [tuple(taken[start : start + 5]) for start in range(0, len(taken), 5)]

    first = orders("weight(strategy=merge_many)", 0)
    assert len(first) > 1 and all(sorted(order) == [0, 1, 2, 3, 4] for order in first)
    assert len(set(first)) > 1 and (0, 1, 2, 3, 4) not in first[:2]  # anew in each round
    torch.manual_seed(1)  # nothing is drawn from what others draw from
    assert orders("weight(strategy=merge_many)", 0) == first != orders("weight(strategy=merge_many)", 1)
    assert set(orders("weight(strategy=joint)", 0)) == {(0, 1, 2, 3, 4)}


def test_frank_wolfe_never_falls_and_takes_networks_in_any_order():
    networks = [network(seed) for seed in range(3)]
    states = [each.state_dict() for each in networks]

    def found(order):
        problems = [matching.Problem(states[order[0]], states[i], GROUPS) for i in order]
        return joint.synchronised_frank_wolfe(matching.Joint(problems))

    perms, history = found((0, 1, 2))
    other, again = found((2, 0, 1))
    assert len(history) > 2 and all(after > before for before, after in itertools.pairwise(history))
    assert again[-1] == pytest.approx(history[-1], rel=1e-5)
    for name in GROUPS:  # network 1 moved to network 0, through either order
        through = other[2][name][torch.argsort(other[1][name])]
        assert torch.equal(perms[1][name], through)


def test_similarities_of_three_are_those_of_pairs():
    networks = [network(seed) for seed in range(3)]
    together = matching.activation_similarities(networks, GROUPS, [images()], **QUIET)
    assert set(together) == {(0, 1), (0, 2), (1, 2)}
    for (i, j), found in together.items():
        pair = matching.activation_similarity(networks[i], networks[j], GROUPS, [images()], **QUIET)
        assert all(torch.equal(found[name], pair[name]) for name in pair)


def test_joint_assignment_is_at_least_as_good_as_each_to_the_first():
    networks = [network(seed) for seed in range(4)]
    similarities = matching.activation_similarities(networks, GROUPS, [images()], **QUIET)

    def value(maps):
        return sum(
            float(found[name][maps[i][name], maps[j][name]].sum())
            for (i, j), found in similarities.items()
            for name in found
        )

    reference, together = (
        matching.match(networks, GROUPS, f"activation(strategy={name})", images=[images()], **QUIET)
        for name in ("reference", "joint")
    )
    assert together[1].objective == pytest.approx(value(together))
    assert value(together) > value(reference)
    for i, name in itertools.product(range(4), GROUPS):  # where it ends, no network can be bettered
        total = sum(
            (similarities[j, i][name] if j < i else similarities[i, j][name].T)[together[j][name]]
            for j in range(4)
            if j != i
        )
        places = torch.arange(len(total))
        best = total[places, matching.assign(total)].sum()
        assert total[places, together[i][name]].sum() == pytest.approx(float(best))


def test_round_trips_of_one_order_come_back_and_those_of_pairs_may_not():
    networks = [network(seed) for seed in range(3)]
    orders = [GROUPS.random(generator(seed)) for seed in range(3)]
    consistent = {
        (i, j): symmetry.compose(orders[j], symmetry.inverse(orders[i])) for i, j in itertools.combinations(range(3), 2)
    }
    assert matching.round_trips(consistent) == 1
    pairs = {
        (i, j): matching.match([networks[i], networks[j]], GROUPS, "activation", images=images(), **QUIET)[1]
        for i, j in itertools.combinations(range(3), 2)
    }
    assert 0 < matching.round_trips(pairs) < 1
    shifted = {
        pair: {name: perm.roll(int(pair == (0, 2))) for name, perm in m.items()} for pair, m in consistent.items()
    }
    assert matching.round_trips(shifted) == 0


def test_more_sources_than_one_are_one_problem_of_their_sum():
    one, two, three = (network(seed).state_dict() for seed in range(3))
    pair = matching.Problem(one, three, GROUPS)
    both = pair.towards([[*(e.a for e in pair.edges), *(v.a for v in pair.nodes)]] * 2)
    perms = GROUPS.random(generator())
    assert both.objective(perms) == pytest.approx(2 * pair.objective(perms))
    assert same(solvers.coordinate_descent(both).perms, solvers.coordinate_descent(pair).perms)


@pytest.mark.parametrize(
    ("matcher", "told"),
    [
        ("graph(strategy=joint, activations=1.0)", "strategy 'joint' does not take activations; accepted: reference"),
        (
            "weight(strategy=merge_many, maps=orthogonal)",
            "strategy 'merge_many' does not take matrices; accepted: reference",
        ),
        ("activation(strategy=merge_many)", "strategy 'merge_many' is not accepted; accepted: auto, reference, joint"),
        ("sinkhorn(strategy=joint)", "matcher 'sinkhorn' takes no option strategy"),
    ],
)
def test_a_strategy_that_cannot_be_is_one_line(matcher, told):
    networks = [network(seed) for seed in range(3)]
    with pytest.raises(InputError) as error:
        matching.match(networks, GROUPS, matcher, images=images(), **QUIET)
    assert told in str(error.value) and "\n" not in str(error.value)
