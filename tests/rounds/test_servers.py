"""What a server makes of networks: averages, matching, the guard, heads by class counts."""

import dataclasses

import pytest
import torch

from lib import fusion, matching, models, rounds, symmetry
from lib.checks import InputError
from lib.rounds import servers

TEMPLATE = models.build("mlp", width=0.03, seed=0)
GROUPS = symmetry.proved(TEMPLATE, models.example("mlp"))
IMAGES = [torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(1))]


def network(seed):
    return models.state_of(models.build("mlp", width=0.03, seed=seed))


def near(state, seed, scale=0.003):
    """A network a little away from `state`, as training from a common start leaves it."""
    generator = torch.Generator().manual_seed(seed)
    return {name: t + scale * torch.randn(t.shape, generator=generator) for name, t in state.items()}


def moved(state, seed):
    return symmetry.act(state, GROUPS, GROUPS.random(torch.Generator().manual_seed(seed)))


def update(client, state, samples=10, counts=(1,) * 10, fresh=True, number=1):
    return rounds.Update(client, state, samples, counts, 0.5, number, fresh)


def combine(server, updates, **options):
    given = {"model": TEMPLATE, "groups": GROUPS, "images": IMAGES} | options
    return rounds.combine(server, updates, **given)


def outputs(state):
    net = models.load_state(models.build("mlp", width=0.03), state)
    with torch.no_grad():
        return net(IMAGES[0])


def test_fedavg_weighs_by_samples_or_all_alike():
    states = [network(seed) for seed in (1, 2, 3)]
    updates = [update(i, state, samples) for i, (state, samples) in enumerate(zip(states, (1, 2, 5), strict=True))]
    for name in states[0]:
        weighted = (states[0][name] + 2 * states[1][name] + 5 * states[2][name]) / 8
        torch.testing.assert_close(combine("fedavg", updates).state[name], weighted)
        plain = (states[0][name] + states[1][name] + states[2][name]) / 3
        torch.testing.assert_close(combine("fedavg(weights=uniform)", updates).state[name], plain)


@pytest.mark.parametrize("server", ["fedavg", "matched", "matched_least_squares(head=class_counts)"])
def test_the_order_in_which_updates_come_does_not_matter(server):
    updates = [update(i, network(i), 10 + i) for i in range(4)]
    one, other = (combine(server, each).state for each in (updates, updates[::-1]))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("server", ["matched", "matched(matcher=weight)", "matched(guard=false)"])
def test_matching_finds_the_units_of_copies_in_other_orders_again(server):
    state = network(1)
    updates = [update(i, moved(state, i) if i else state) for i in range(3)]
    torch.testing.assert_close(outputs(combine(server, updates).state), outputs(state), atol=1e-4, rtol=1e-3)
    assert (outputs(combine("fedavg", updates).state) - outputs(state)).abs().max() > 0.01


@pytest.mark.parametrize(
    "matcher",
    [
        "weight(strategy=cycle_consistent)",
        "weight(strategy=merge_many)",
        "graph(solver=softassign, strategy=reference)",
    ],
)
def test_a_server_takes_a_matcher_with_options_of_its_own(matcher):
    updates = [update(i, network(i)) for i in range(3)]
    server = f"matched(matcher={matcher}, guard=false, weights=uniform)"
    name, options = rounds.read_server(server)
    assert (name, options["matcher"], options["guard"]) == ("matched", matcher, False)
    assert rounds.read_server(rounds.spell_server(server)) == (name, options)
    networks = [models.load_state(models.build("mlp", width=0.03), each.state) for each in updates]
    maps = matching.match(networks, GROUPS, matcher, progress=False)
    expected = fusion.interpolate(fusion.align(networks, GROUPS, maps).states, (1 / 3,) * 3)
    made = combine(server, updates, images=[]).state  # looks at none
    assert all(torch.equal(made[name], tensor) for name, tensor in expected.items())
    plain = combine("matched(matcher=weight, guard=false, weights=uniform)", updates).state
    assert not all(torch.equal(plain[name], tensor) for name, tensor in expected.items())


def test_without_a_matcher_nothing_moves_and_layers_are_fitted_all_the_same():
    updates = [update(i, network(i)) for i in range(2)]
    plain = combine("fedavg", updates).state
    for name, tensor in combine("matched(matcher=none)", updates).state.items():
        assert torch.equal(tensor, plain[name])
    fitted, matched = (combine(f"matched_least_squares(matcher={m})", updates) for m in ("none", "activation"))
    assert fitted.info["corrected"] == "least_squares"
    assert not torch.equal(fitted.state["classifier.weight"], plain["classifier.weight"])
    assert not torch.equal(fitted.state["classifier.weight"], matched.state["classifier.weight"])


def test_options_of_a_servers_matcher_say_whether_it_looks_at_images():
    assert not rounds.looks_at_images("matched(matcher=weight(strategy=joint), guard=false)")
    assert rounds.looks_at_images("matched(matcher=weight(activations=1.0), guard=false)")


def test_a_matcher_that_the_architecture_cannot_take_is_refused_before_anyone_trains():
    setting = rounds.Setting("mlp", models.Recipe(epochs=1), width=0.03, clients=2, limit_train=100)
    federation = rounds.Federation(setting, models.open_dataset("mnist-5k", "mlp"))
    rounds.check_matcher("matched(matcher=weight(strategy=cycle_consistent))", federation)
    rounds.check_matcher("fedavg", federation)
    with pytest.raises(InputError, match="chain"):
        rounds.check_matcher("matched(matcher=graph_sm)", federation)


def test_the_guard_keeps_the_order_of_networks_that_share_a_start():
    start = network(1)
    updates = [update(i, near(start, i), fresh=False) for i in range(3)]
    made = combine("matched", updates, current=start, number=2)
    assert made.info["guard"] == [True] * 3 and min(made.info["correlation"]) > 0.5
    plain = combine("fedavg", updates).state
    assert all(torch.equal(made.state[name], plain[name]) for name in plain)
    assert combine("matched", updates).info["guard"] == [True] * 3  # where nobody says so, too


def test_the_guard_moves_networks_that_began_apart():
    made = combine("matched", [update(i, network(i)) for i in range(3)])
    assert made.info["guard"] == [False] * 3
    assert max(made.info["correlation"][1:]) < 0.25
    every = combine("matched(keep=0)", [update(i, near(network(i), i)) for i in range(3)])
    assert every.info["guard"][0]  # a threshold of 0 lets pass what is not negative


def test_a_newcomer_is_matched_with_those_who_keep_their_order():
    start = network(1)
    updates = [update(i, near(start, i), fresh=False) for i in range(2)]
    newcomer = update(2, moved(near(start, 2), 5))
    made = combine("matched", [*updates, newcomer], current=start, number=4)
    assert made.info["guard"] == [True, True, False]
    straight = combine("fedavg", [*updates, update(2, near(start, 2))]).state
    apart = combine("fedavg", [*updates, newcomer]).state
    error = lambda state: (outputs(state) - outputs(straight)).abs().max()  # noqa: E731
    assert error(made.state) < 1e-3 < 0.01 < error(apart)


def test_least_squares_runs_in_the_first_round_and_where_newcomers_come_unless_in_every():
    start = network(1)
    old = [update(i, near(start, i), fresh=False, number=2) for i in range(2)]
    new = [old[0], dataclasses.replace(old[1], fresh=True)]
    corrected = lambda server, updates, number: combine(  # noqa: E731
        server, updates, current=start, number=number
    ).info["corrected"]
    assert corrected("matched_least_squares", old, 1) == "least_squares"
    assert corrected("matched_least_squares", old, 2) == "none"
    assert corrected("matched_least_squares", new, 2) == "least_squares"
    assert corrected("matched_least_squares(rounds=every)", old, 2) == "least_squares"
    assert corrected("matched", old, 1) == "none"


def test_least_squares_and_the_head_reach_the_clients_own_outputs_where_all_are_one_network():
    state = network(1)
    updates = [update(i, moved(state, i) if i else state) for i in range(3)]
    for server in ("matched_least_squares", "matched_least_squares(head=class_counts)"):
        error = (outputs(combine(server, updates).state) - outputs(state)).square().mean()
        assert error < 0.02 * outputs(state).var(), server


def test_rows_of_the_head_are_weighted_by_class_counts():
    states = [network(1), near(network(1), 7)]
    counts = [(3, 0, *[1] * 7, 0), (1, 4, *[1] * 7, 0)]  # nobody has the last class: as the images are shared
    updates = [
        update(i, s, n, c, fresh=False) for i, (s, n, c) in enumerate(zip(states, (30, 10), counts, strict=True))
    ]
    made = combine("matched(head=class_counts)", updates, current=network(1)).state
    shares = torch.tensor([0.75, 0.0, *[0.5] * 7, 0.75])[:, None]
    for name in ("classifier.weight", "classifier.bias"):
        share = shares if made[name].dim() == 2 else shares[:, 0]
        torch.testing.assert_close(made[name], share * states[0][name] + (1 - share) * states[1][name])
    torch.testing.assert_close(made["features.1.weight"], 0.75 * states[0]["features.1.weight"]
                               + 0.25 * states[1]["features.1.weight"])  # fmt: skip


def test_class_counts_that_a_client_does_not_tell_are_asked_for():
    updates = [update(0, network(0)), update(1, network(1), counts=())]
    with pytest.raises(InputError, match="client 1 says none"):
        combine("matched(head=class_counts)", updates)


def test_behind_least_squares_the_head_is_fitted_to_logits_weighted_by_class_counts():
    states = [network(1), network(1)]
    states[1]["classifier.bias"] = states[1]["classifier.bias"] + 5 * torch.eye(10)[4]
    for counts, above in (((10, 0), 0.0), ((0, 10), 5.0), ((15, 5), 1.25)):
        updates = [update(i, states[i], 10, tuple(c if n == 4 else 1 for n in range(10)), fresh=False)
                   for i, c in enumerate(counts)]  # fmt: skip
        made = combine("matched_least_squares(head=class_counts)", updates).state
        more = outputs(made).mean(0) - outputs(states[0]).mean(0)
        torch.testing.assert_close(more, above * torch.eye(10)[4], atol=0.02, rtol=0)


def test_one_update_is_taken_as_it_is_and_none_is_refused():
    made = combine("matched_least_squares", [update(3, network(1))])
    assert all(torch.equal(made.state[name], t) for name, t in network(1).items())
    with pytest.raises(InputError, match="at least one client"):
        combine("fedavg", [])


def test_servers_are_read_and_refused_in_one_line():
    assert rounds.spell_server("matched( keep = 0.25 , weights=uniform)") == "matched(weights=uniform)"
    assert rounds.proximal("fedprox(mu=0.3)") == 0.3 and rounds.proximal("fedavg") == 0
    for text, said in {
        "fedmax": "unknown server 'fedmax'; accepted: fedavg, fedprox, matched, matched_least_squares",
        "fedavg(mu=1)": "takes no option mu",
        "matched(matcher=guess)": "unknown matcher 'guess'; accepted: none, random, activation, weight",
        "matched(matcher=weight(strategy=best))": "strategy 'best' is not accepted; accepted: auto, reference, joint",
        "matched(matcher=weight(restarts=1, best=2))": "best 2 is not accepted; accepted: true, false",
        "matched(matcher=graph(restarts=3)": "unknown matcher 'graph(restarts=3'",
    }.items():
        with pytest.raises(InputError) as refused:
            rounds.read_server(text)
        assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_server_that_looks_at_images_says_so_where_there_are_none():
    updates = [update(i, network(i)) for i in range(2)]
    for server in ("matched", "matched(matcher=weight)", "matched_least_squares"):
        with pytest.raises(InputError, match="looks at images"):
            combine(server, updates, images=[])
    blind = "matched(matcher=weight, guard=false)"
    assert not rounds.looks_at_images(blind)
    assert combine(blind, updates, images=[]).info["corrected"] == "none"


def test_batch_statistics_are_averaged_or_measured_anew():
    template = models.build("vgg11", width=0.0625, norm="batch", seed=0)
    groups = symmetry.proved(template, models.example("vgg11"))
    images = [torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    states = [models.state_of(models.build("vgg11", width=0.0625, norm="batch", seed=seed)) for seed in (1, 2)]
    given = {"model": template, "groups": groups, "images": images}
    updates = [update(i, state) for i, state in enumerate(states)]
    averaged = rounds.combine("matched(matcher=weight)", updates, **given).state
    reset = rounds.combine("matched(matcher=weight, correction=bn_reset)", updates, **given)
    name = "features.1.running_var"
    assert reset.info["corrected"] == "bn_reset"
    torch.testing.assert_close(averaged[name], (states[0][name] + states[1][name]) / 2)
    assert not torch.allclose(reset.state[name], averaged[name])
    assert servers.KEEP == 0.25 and "bn_reset" in fusion.CORRECTIONS
