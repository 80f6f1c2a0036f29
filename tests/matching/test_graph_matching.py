"""lib.matching: spectral, problem, solvers: against brute force and pygmtools on dense K."""

import math
from itertools import pairwise

import pygmtools
import pytest
import torch

from lib import matching
from lib.checks import InputError
from lib.matching import Cache, solvers
from lib.symmetry import Group, Member

CHAIN = {
    "conv1": Group(6, (Member("conv1.weight", 0), Member("conv2.weight", 1))),
    "conv2": Group(5, (Member("conv2.weight", 0), Member("fc1.weight", 1, block=4))),
    "fc1": Group(7, (Member("fc1.weight", 0), Member("fc2.weight", 1))),
}
SHAPES = {"conv1": (6, 2, 3, 3), "conv2": (5, 6, 3, 3), "fc1": (7, 20), "fc2": (3, 7)}


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: torch's threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(shapes, seed):
    g = generator(seed)
    return {f"{name}.weight": torch.randn(shape, generator=g) * 0.3 for name, shape in shapes.items()}


def permute(state, groups, perms):
    """The brief definition of a permutation's action, written apart from lib.symmetry."""
    state = {key: value.clone() for key, value in state.items()}
    for name, group in groups.items():
        for m in group.members:
            moved = (m.offset + perms[name][:, None] * m.block + torch.arange(m.block)).flatten()
            index = torch.arange(state[m.tensor].shape[m.axis])
            index[m.offset : m.offset + len(moved)] = moved
            state[m.tensor] = state[m.tensor].index_select(m.axis, index)
    return state


def shuffle(groups, seed):
    g = generator(seed)
    return {name: torch.randperm(group.size, generator=g) for name, group in groups.items()}


def test_chain_shapes_follow_the_groups():
    a, b = draw(SHAPES, 0), draw(SHAPES, 1)
    c1, c2, names = matching.chain(a, b, CHAIN)
    assert names == ["conv1", "conv2", "fc1"]
    assert [tuple(c.shape) for c in c1] == [(6, 2, 9), (5, 6, 9), (7, 5, 4), (3, 7, 1)]
    assert torch.equal(c2[2][3, 1], b["fc1.weight"][3, 4:8])
    assert torch.equal(c1[1][4, 2], a["conv2.weight"][4, 2].flatten())


def test_chain_is_found_whatever_the_order_of_the_groups():
    a, b = draw(SHAPES, 0), draw(SHAPES, 1)
    assert matching.chain(a, b, dict(reversed(CHAIN.items())))[2] == ["conv1", "conv2", "fc1"]


@pytest.mark.parametrize(
    ("groups", "extra", "names"),
    [
        ({"fc1": Group(7, (Member("fc1.weight", 0), Member("fc1.bias", 0), Member("fc2.weight", 1)))},
         {"fc1.bias": (7,)}, "fc1.bias"),
        ({"fc1": Group(7, (Member("fc1.weight", 0), Member("fc2.weight", 1), Member("fc3.weight", 1)))},
         {"fc3.weight": (2, 7)}, "fc3.weight"),
        ({}, {"side.weight": (4, 4)}, "side.weight"),
    ],
)  # fmt: skip
def test_what_is_no_plain_chain_is_refused_by_name(groups, extra, names):
    state = draw(SHAPES, 0) | {key: torch.zeros(shape) for key, shape in extra.items()}
    with pytest.raises(InputError, match=f"{names}.*matcher 'graph'") as refusal:
        matching.chain(state, state, CHAIN | groups)
    assert "\n" not in str(refusal.value)


def test_affinity_entries():
    c1, c2, _ = matching.chain(draw(SHAPES, 0), draw(SHAPES, 1), CHAIN)
    n, start = 23, {0: 0, 1: 2, 2: 8}
    K = matching.affinity(c1, c2).view(n, n, n, n)
    for layer, b, a, b2, a2 in [(0, 1, 1, 5, 0), (1, 4, 2, 0, 5), (2, 6, 3, 2, 0)]:
        pre, post = start[layer], start[layer] + c1[layer].shape[1]
        want = torch.exp(-(c1[layer][b, a] - c2[layer][b2, a2]).norm())
        assert K[pre + a, pre + a2, post + b, post + b2] == pytest.approx(want.item(), rel=1e-4)
        assert K[post + b, post + b2, pre + a, pre + a2] == 0  # one way only
    ones = [i for i in range(n) if K[i, i, i, i] == 1]
    assert ones == [0, 1, 20, 21, 22]  # input and output nodes


def test_affinity_puts_hidden_biases_on_the_diagonal():
    c1, c2, _ = matching.chain(draw(SHAPES, 0), draw(SHAPES, 1), CHAIN)
    b1, b2 = ([torch.randn(len(c), generator=generator(s)) for c in c1] for s in (3, 4))
    n = 23
    plain, K = matching.affinity(c1, c2), matching.affinity(c1, c2, biases=(b1, b2))
    extra = (K - plain).diagonal().view(n, n)
    assert extra[2 + 1, 2 + 4] == pytest.approx((-(b1[0][1] - b2[0][4]).abs()).exp().item())
    assert extra[13 + 6, 13 + 2] == pytest.approx((-(b1[2][6] - b2[2][2]).abs()).exp().item())
    assert (extra[2:20, 2:20] > 0).sum() == 6 * 6 + 5 * 5 + 7 * 7
    assert extra[20:].abs().max() == 0  # the output nodes are matched by their ones, not by a bias
    assert torch.equal(K - torch.diag(K.diagonal()), plain - torch.diag(plain.diagonal()))


def test_dense_affinity_refuses_above_the_limit_naming_size_and_way_out():
    c = [torch.zeros(1000, 3, 9), torch.zeros(10, 1000, 1)]
    with pytest.raises(InputError, match=r"1013 units would take 4.21TB.*4.29GB.*sweep.*'graph'"):
        matching.affinity(c, c)
    small, _, _ = matching.chain(draw(SHAPES, 0), draw(SHAPES, 0), CHAIN)
    with pytest.raises(InputError, match="1.12MB"):
        matching.affinity(small, small, memory=1e6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shapes", [SHAPES, {"fc1": (9, 4), "fc2": (8, 9), "fc3": (7, 8), "fc4": (2, 7)}])
def test_sweep_is_pygmtools_sm_on_dense_k(shapes, seed):
    a, b = draw(shapes, seed), draw(shapes, seed + 100)
    layers = list(shapes)
    groups = {
        x: Group(shapes[x][0], (Member(f"{x}.weight", 0),
                                Member(f"{y}.weight", 1, block=shapes[y][1] // shapes[x][0])))
        for x, y in pairwise(layers)
    }  # fmt: skip
    c1, c2, names = matching.chain(a, b, groups)
    n = c1[0].shape[1] + sum(len(c) for c in c1)
    dense = pygmtools.sm(matching.affinity(c1, c2), n, n, backend="pytorch").T
    start, scales = c1[0].shape[1], []
    for X, name in zip(matching.sweep(c1, c2), names, strict=True):
        size = groups[name].size
        block = dense[start : start + size, start : start + size]
        scales.append((X * block).sum() / (X * X).sum())
        assert torch.allclose(X * scales[-1], block, rtol=2e-5, atol=0)
        start += size
    assert all(s > 0 for s in scales)
    for orientation in ("correct", "reference"):
        swept, _ = matching.spectral(a, b, groups, orientation=orientation)
        solved, _ = matching.spectral(a, b, groups, orientation=orientation, solver="pygmtools")
        assert all(torch.equal(swept[name], solved[name]) for name in names)


def test_sweep_does_not_depend_on_how_it_is_streamed():
    c1, c2, _ = matching.chain(draw(SHAPES, 0), draw(SHAPES, 1), CHAIN)
    for X, Y in zip(matching.sweep(c1, c2, rows=1), matching.sweep(c1, c2, rows=100), strict=True):
        assert torch.allclose(X, Y, rtol=1e-5)


def test_spectral_finds_a_planted_permutation_and_the_reference_orientation_its_inverse():
    a = draw(SHAPES, 5)
    planted = shuffle(CHAIN, 6)
    b = permute(a, CHAIN, planted)
    correct, info = matching.spectral(a, b, CHAIN)
    slipped, _ = matching.spectral(a, b, CHAIN, orientation="reference")
    for name, perm in planted.items():
        assert torch.equal(correct[name], perm.argsort())
        assert torch.equal(slipped[name], perm)
        assert info["similarity"][name].shape == (len(perm), len(perm))
    moved = permute(b, CHAIN, correct)
    assert all(torch.equal(moved[key], a[key]) for key in a)


@pytest.mark.parametrize("option", [{"solver": "magic"}, {"orientation": "left"}])
def test_unknown_options_name_what_is_accepted(option):
    a = draw(SHAPES, 0)
    with pytest.raises(InputError, match="unknown .* accepted: "):
        matching.spectral(a, a, CHAIN, **option)


def test_pygmtools_backend_is_left_alone():
    before = pygmtools.BACKEND
    a = draw(SHAPES, 0)
    matching.spectral(a, a, CHAIN, solver="pygmtools")
    assert before == pygmtools.BACKEND


# ---- the problem on any architecture

# A residual stream with a branch of its own, a loop (one group on both axes), a grouped convolution, a
# concatenation read by one layer, a flattened map, biases, and BatchNorms: one folded, one before its layer.
MIXED = {
    "stem": Group(6, (Member("stem.weight", 0), Member("stem.bias", 0),
                      *(Member(f"bn.{p}", 0) for p in ("weight", "bias", "running_mean", "running_var")),
                      *(Member(f"pre.{p}", 0) for p in ("weight", "bias", "running_mean", "running_var")),
                      Member("up.weight", 1), Member("down.weight", 0), Member("loop.weight", 0),
                      Member("loop.weight", 1), Member("join.weight", 1), Member("head.weight", 1, block=4))),
    "up": Group(5, (Member("up.weight", 0), Member("up.bias", 0), Member("down.weight", 1),
                    Member("join.weight", 1, offset=6))),
    "join0": Group(4, (Member("join.weight", 0), Member("split.weight", 1, rows=(0, 3)))),
    "join1": Group(4, (Member("join.weight", 0, offset=4), Member("split.weight", 1, rows=(3, 6)))),
    "split0": Group(3, (Member("split.weight", 0), Member("head.weight", 1, block=4, offset=24))),
    "split1": Group(3, (Member("split.weight", 0, offset=3), Member("head.weight", 1, block=4, offset=36))),
}  # fmt: skip
MIXED_SHAPES = {
    "stem.weight": (6, 3, 3, 3), "stem.bias": (6,), "up.weight": (5, 6, 1, 1), "up.bias": (5,),
    "down.weight": (6, 5, 1, 1), "loop.weight": (6, 6, 3, 3), "join.weight": (8, 11, 1, 1),
    "split.weight": (6, 4, 3, 3), "head.weight": (4, 48), "head.bias": (4,),
    **{f"{n}.{p}": (6,) for n in ("bn", "pre") for p in ("weight", "bias", "running_mean", "running_var")},
}  # fmt: skip
NORMS = {"stem": "bn"}


def permute_rows(state, groups, perms):
    """`permute`, with members limited to some rows."""
    limited = [(name, m) for name, group in groups.items() for m in group.members if m.rows]
    whole = {n: Group(g.size, tuple(m for m in g.members if not m.rows)) for n, g in groups.items()}
    state = permute(state, whole, perms)
    for name, m in limited:
        rows = slice(*m.rows)
        state[m.tensor][rows] = state[m.tensor][rows].index_select(m.axis, perms[name])
    return state


def mixed(seed):
    g = generator(seed)
    state = {key: torch.randn(shape, generator=g) * 0.5 for key, shape in MIXED_SHAPES.items()}
    return {k: v.abs() + 0.1 if k.endswith("running_var") else v for k, v in state.items()}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("kernel", ["exp", "inner"])
def test_objective_at_permutations_is_the_objective_of_the_permuted_network(kernel, fold):
    a, b, perms = mixed(0), mixed(1), shuffle(MIXED, 2)
    problem = matching.Problem(a, b, MIXED, norms=NORMS, fold=fold)
    moved = matching.Problem(a, permute_rows(b, MIXED, perms), MIXED, norms=NORMS, fold=fold)
    assert problem.objective(perms, kernel) == pytest.approx(moved.objective(moved.identity(), kernel), rel=1e-6)
    assert problem.objective(perms, kernel) != pytest.approx(problem.objective(problem.identity(), kernel))


def test_objective_counts_every_edge_and_node_once():
    a, b = mixed(0), mixed(1)
    del a["head.bias"], b["head.bias"]  # on no group: no part of the problem
    problem = matching.Problem(a, b, MIXED, norms=NORMS)
    total = 0.0
    for name in ("up", "down", "loop", "join", "split"):
        w1, w2 = (s[f"{name}.weight"].flatten(2) for s in (a, b))
        total += (-(w1 - w2).norm(dim=2)).exp().sum()
    total += (-(a["head.weight"] - b["head.weight"]).view(4, 12, 4).norm(dim=2)).exp().sum()
    total += (-(a["up.bias"] - b["up.bias"]).abs()).exp().sum()
    folded = []
    for s in (a, b):
        scale = s["bn.weight"] / (s["bn.running_var"] + 1e-5).sqrt()
        shift = s["bn.bias"] + (s["stem.bias"] - s["bn.running_mean"]) * scale
        pre = s["pre.weight"] / (s["pre.running_var"] + 1e-5).sqrt()
        folded.append((s["stem.weight"].flatten(2) * scale[:, None, None], shift, pre,
                       s["pre.bias"] - s["pre.running_mean"] * pre))  # fmt: skip
    total += (-(folded[0][0] - folded[1][0]).norm(dim=2)).exp().sum()
    total += sum((-(x - y).abs()).exp().sum() for x, y in zip(folded[0][1:], folded[1][1:], strict=True))
    assert problem.objective(problem.identity()) == pytest.approx(total.item(), rel=1e-6)


def test_folding_changes_what_is_compared_not_what_the_layer_computes():
    a = mixed(0)
    b = {k: v.clone() for k, v in a.items()}
    b["stem.weight"] *= 3  # the BatchNorm divides it out again
    b["stem.bias"] *= 3
    b["bn.running_mean"] *= 3
    b["bn.running_var"] = (b["bn.running_var"] + 1e-5) * 9 - 1e-5
    same = matching.Problem(a, a, MIXED, norms=NORMS)
    assert matching.Problem(a, b, MIXED, norms=NORMS).objective(same.identity()) == pytest.approx(
        same.objective(same.identity()), rel=1e-5
    )
    raw = matching.Problem(a, b, MIXED, norms=NORMS, fold=False)
    assert raw.objective(raw.identity()) < 0.99 * same.objective(same.identity())


@pytest.mark.parametrize("kernel", ["exp", "inner"])
def test_gradient_is_the_change_of_the_objective(kernel):
    problem = matching.Problem(mixed(0), mixed(1), MIXED, norms=NORMS)
    perms, other = shuffle(MIXED, 3), shuffle(MIXED, 4)
    for name in set(MIXED) - {"stem"}:  # the stem has a loop: its gradient is not the change of F
        G = problem.gradient(name, perms, kernel)
        change = sum(G[i, other[name][i]] - G[i, perms[name][i]] for i in range(len(G))).item()
        wanted = problem.objective(perms | {name: other[name]}, kernel) - problem.objective(perms, kernel)
        assert change == pytest.approx(wanted, abs=2e-5)
    assert problem.neighbours("stem") == {"stem", "up", "join0", "join1"}


@pytest.mark.parametrize("kernel", ["exp", "inner"])
def test_soft_gradient_meets_the_exact_one_at_permutations_and_dense_k_elsewhere(kernel):
    problem = matching.Problem(mixed(0), mixed(1), MIXED, norms=NORMS)
    perms = shuffle(MIXED, 3)
    at = {name: torch.eye(len(p))[p] for name, p in perms.items()}
    soft = {n: torch.rand(s, s, generator=generator(5), dtype=torch.float64) for n, s in problem.sizes.items()}
    n = sum(problem.sizes.values())
    K = problem.affinity(kernel).double()
    x = torch.block_diag(*soft.values()).reshape(-1)
    Kx, start = (K @ x).view(n, n), 0
    x_perm = torch.block_diag(*at.values()).double().reshape(-1)
    assert (x_perm @ K @ x_perm).item() == pytest.approx(problem.objective(perms, kernel), rel=1e-6)
    for name, size in problem.sizes.items():
        assert torch.allclose(problem.soft_gradient(name, at, kernel), problem.gradient(name, perms, kernel), atol=2e-5)
        block = Kx[start : start + size, start : start + size]
        L = problem.linear(kernel)[name]
        assert torch.allclose(problem.soft_quadratic(name, soft, kernel) / 2 + L * soft[name], block, atol=1e-4)
        start += size


def test_kernel_values_are_kept_where_they_fit_and_change_nothing():
    problem, lean = (matching.Problem(mixed(0), mixed(1), MIXED, norms=NORMS, memory=m) for m in (2**30, 1))
    X = {name: torch.rand(n, n, generator=generator(3)) for name, n in problem.sizes.items()}
    for name in problem.sizes:
        assert torch.allclose(problem.soft_quadratic(name, X, "exp"), lean.soft_quadratic(name, X, "exp"), rtol=1e-5)
    assert problem._values and not lean._values
    assert not problem.towards([[*(e.a for e in problem.edges), *(v.a for v in problem.nodes)]])._values


def wide(seed, sizes=(40, 70, 90)):
    shapes = {f"l{i}": (o, c, 3, 3) for i, (c, o) in enumerate(pairwise((2, *sizes)))}
    shapes["head"] = (5, sizes[-1])
    groups = {x: Group(shapes[x][0], (Member(f"{x}.weight", 0), Member(f"{y}.weight", 1))) for x, y in pairwise(shapes)}
    return draw(shapes, seed), groups


def test_exact_gradient_in_tiles_and_slabs_loses_less_than_a_thousandth_of_the_signal():
    (a, groups), (b, _) = wide(0), wide(1)
    perms = shuffle(groups, 2)
    w1, w2 = a["l1.weight"].double().flatten(2), b["l1.weight"].double().flatten(2)[:, perms["l0"]]
    exact = sum((-(w1[:, i, None] - w2[None, :, i]).norm(dim=2)).exp() for i in range(40))
    u1, u2 = a["l2.weight"].double().flatten(2), b["l2.weight"].double().flatten(2)[perms["l2"]]
    exact += sum((-(u1[o, :, None] - u2[o, None]).norm(dim=2)).exp() for o in range(90))
    for memory in (1e9, 3e5):
        G = matching.Problem(a, b, groups, memory=memory).gradient("l1", perms)
        assert (G - exact).abs().max() < 1e-3 * exact.std()


def test_a_cached_gradient_follows_the_units_that_move():
    (a, groups), (b, _) = wide(0), wide(1)
    problem = matching.Problem(a, b, groups)
    cache, perms = Cache(problem, "exp"), shuffle(groups, 2)
    for swap in ([0, 1], [5, 9], []):
        perms["l0"] = perms["l0"].clone()
        perms["l0"][swap] = perms["l0"][swap[::-1]]
        fresh, held = problem.gradient("l1", perms), problem.gradient("l1", perms, cache=cache)
        assert torch.allclose(fresh, held, atol=2e-4)


# ---- solvers


def dense(problem, kernel="exp"):
    n = sum(problem.sizes.values())
    return problem.affinity(kernel), n


def blocks(problem, X):
    start, found = 0, {}
    for name, size in problem.sizes.items():
        found[name] = X[start : start + size, start : start + size]
        start += size
    return found


def looped(seed, n=9):
    g = generator(seed)
    state = {"l.weight": torch.randn(n, n, 3, generator=g) * 0.4, "l.bias": torch.randn(n, generator=g)}
    groups = {"l": Group(n, (Member("l.weight", 0), Member("l.weight", 1), Member("l.bias", 0)))}
    return state, groups


@pytest.mark.parametrize("seed", range(3))
def test_spectral_symmetric_is_pygmtools_sm(seed):
    problem = matching.Problem(mixed(seed), mixed(seed + 10), MIXED, norms=NORMS)
    K, n = dense(problem)
    X = blocks(problem, pygmtools.sm(K, n, n, backend="pytorch").T)
    run = matching.solve(problem, solver="spectral_symmetric")
    for name, x in run.soft.items():
        assert torch.allclose(x.float(), X[name], rtol=1e-3, atol=1e-6)
        assert torch.equal(run.perms[name], matching.assign(x))


@pytest.mark.parametrize("seed", range(3))
def test_rrwm_is_pygmtools_rrwm(seed):
    (a, groups), (b, _) = looped(seed), looped(seed + 10)
    problem = matching.Problem(a, b, groups)
    K, n = dense(problem)
    for iterations in (1, 3, 50):
        X = pygmtools.rrwm(K, n, n, max_iter=iterations, backend="pytorch").T
        run = matching.solve(problem, solver="rrwm", max_iterations=iterations, tolerance=0.0)
        x = run.soft["l"].float()
        assert torch.allclose(x / x.sum(), X / X.sum(), rtol=2e-2, atol=1e-5)
        assert torch.equal(run.perms["l"], matching.assign(X))


@pytest.mark.parametrize("seed", range(4))
def test_ipfp_is_pygmtools_ipfp(seed):
    problem = matching.Problem(mixed(seed), mixed(seed + 10), MIXED, norms=NORMS)
    K, n = dense(problem)
    flat = torch.block_diag(*problem.flat().values())  # theirs would spread over pairs of different groups too

    def theirs(iterations):
        size = torch.tensor([n])
        X = pygmtools.ipfp(K[None], size, size, x0=flat[None], max_iter=iterations, backend="pytorch")[0].T
        return {name: matching.assign(x) for name, x in blocks(problem, X).items()}

    for iterations in (1, 2):  # later, pygmtools stops at a change of 1e-3 of the objective
        run = matching.solve(problem, solver="ipfp", max_iterations=iterations)
        assert all(torch.equal(run.perms[name], perm) for name, perm in theirs(iterations).items())
    assert matching.solve(problem, solver="ipfp").objective >= problem.objective(theirs(50)) * (1 - 1e-6)


@pytest.mark.parametrize("biased", [False, True])
def test_one_way_spectral_is_pygmtools_sm_on_the_published_affinity(biased):
    a, b = draw(SHAPES, 0), draw(SHAPES, 1)
    c1, c2, names = matching.chain(a, b, CHAIN)
    groups, biases = dict(CHAIN), None
    if biased:
        # Far apart, or else the power iteration converges too slowly to compare.
        biases = tuple([torch.rand(len(c), generator=generator(s)) + s for c in c1] for s in (3, 5))
        for layer, name in enumerate(names):
            a[f"{name}.bias"], b[f"{name}.bias"] = (side[layer] for side in biases)
            groups[name] = Group(CHAIN[name].size, (*CHAIN[name].members, Member(f"{name}.bias", 0)))
    n = c1[0].shape[1] + sum(len(c) for c in c1)
    X = pygmtools.sm(matching.affinity(c1, c2, biases=biases), n, n, backend="pytorch").T
    run = matching.solve(matching.Problem(a, b, groups), solver="spectral")
    start = c1[0].shape[1]
    for name in names:
        size = CHAIN[name].size
        x, y = run.soft[name].float(), X[start : start + size, start : start + size]
        assert torch.allclose(x / x.norm(), y / y.norm(), rtol=1e-3)
        start += size


@pytest.mark.parametrize("solver", sorted(matching.SOLVERS))
def test_every_solver_finds_a_planted_permutation(solver):
    a, groups = wide(0, (16, 20, 24))
    planted = shuffle(groups, 1)
    options = {"kernel": "exp"} if solver == "coordinate_descent" else {}
    run = matching.solve(matching.Problem(a, permute(a, groups, planted), groups), solver=solver, **options)
    assert all(torch.equal(run.perms[name], perm.argsort()) for name, perm in planted.items())
    assert run.solver == solver
    assert run.iterations >= 1
    edges = sum(math.prod(w.shape[:2]) for w in a.values())
    assert run.objective == pytest.approx(edges, rel=1e-6)  # every kernel value is 1


def noisy(sigma, seed=0, sizes=(40, 70, 90)):
    a, groups = wide(seed, sizes)
    planted = shuffle(groups, seed + 1)
    g = generator(seed + 2)
    b = permute(a, groups, planted)
    b = {k: w + sigma * w.std() * torch.randn(w.shape, generator=g) for k, w in b.items()}
    return matching.Problem(a, b, groups), {name: perm.argsort() for name, perm in planted.items()}


def test_graph_finds_a_planted_permutation_under_noise_that_defeats_descent_from_the_identity():
    problem, planted = noisy(2.5)

    def share(run):
        hits = sum((run.perms[name] == perm).sum().item() for name, perm in planted.items())
        return hits / sum(len(perm) for perm in planted.values())

    run = matching.solve(problem)
    assert run.converged
    assert share(run) == 1.0
    assert share(matching.coordinate_descent(problem)) < 0.9


@pytest.mark.parametrize("kernel", ["exp", "inner"])
def test_coordinate_descent_climbs_to_where_no_group_alone_can_gain(kernel):
    problem = matching.Problem(mixed(0), mixed(1), MIXED, norms=NORMS)
    run = matching.coordinate_descent(problem, kernel=kernel, generator=generator(3), start=shuffle(MIXED, 5))
    assert run.converged
    assert run.history[0] >= problem.objective(shuffle(MIXED, 5), kernel)
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(run.history))
    for name in set(MIXED) - {"stem"}:
        G = problem.gradient(name, run.perms, kernel)
        best = G.gather(1, matching.assign(G)[:, None]).sum()
        assert best == pytest.approx(G.gather(1, run.perms[name][:, None]).sum().item(), abs=1e-4)


def test_git_re_basin_objective_is_the_l2_distance_of_the_weights():
    a, b = draw(SHAPES, 0), draw(SHAPES, 1)
    run = matching.coordinate_descent(matching.Problem(a, b, CHAIN), generator=generator(0))
    before, after = (sum((a[k] - s[k]).square().sum() for k in a) for s in (b, permute(b, CHAIN, run.perms)))
    problem = matching.Problem(a, b, CHAIN)
    gained = run.history[-1] - problem.objective(problem.identity(), "inner")
    assert (before - after).item() == pytest.approx(2 * gained, rel=1e-4)
    assert after < before


@pytest.mark.parametrize("solver", ["graph", "coordinate_descent", "frank_wolfe"])
def test_same_generator_same_permutations_on_any_number_of_threads(solver):
    (a, groups), (b, _) = wide(0, (40, 300, 90)), wide(1, (40, 300, 90))
    runs, before = [], torch.get_num_threads()
    options = {"kernel": "inner"} if solver == "frank_wolfe" else {}
    for threads in (1, 2, 3):
        problem = matching.Problem(a, b, groups, threads=threads)
        runs.append(matching.solve(problem, solver=solver, generator=generator(7), **options))
        assert torch.get_num_threads() == before
    for run in runs[1:]:
        assert run.objective == runs[0].objective
        assert all(torch.equal(run.perms[name], perm) for name, perm in runs[0].perms.items())


@pytest.mark.parametrize("solver", ["graph", "coordinate_descent", "ipfp"])
def test_restarts_keep_the_best_objective(solver):
    problem, _ = noisy(5.0, sizes=(12, 14, 10))
    once = matching.solve(problem, solver=solver, generator=generator(0))
    often = matching.solve(problem, solver=solver, generator=generator(0), restarts=6)
    assert often.objective >= once.objective
    assert often.objective == pytest.approx(problem.objective(often.perms))
    again = matching.solve(problem, solver=solver, generator=generator(0), restarts=6)
    assert all(torch.equal(again.perms[name], perm) for name, perm in often.perms.items())


def test_similarity_is_weighed_against_the_edges():
    a, b = draw(SHAPES, 0), draw(SHAPES, 1)
    wanted = shuffle(CHAIN, 3)
    S = {name: torch.eye(len(p))[p] + 0.1 for name, p in wanted.items()}
    heavy = matching.solve(matching.Problem(a, b, CHAIN, similarity=S, similarity_weight=100.0))
    assert all(torch.equal(heavy.perms[name], perm) for name, perm in wanted.items())
    light = matching.solve(matching.Problem(a, b, CHAIN, similarity=S, similarity_weight=0.0))
    plain = matching.solve(matching.Problem(a, b, CHAIN))
    assert all(torch.equal(light.perms[name], perm) for name, perm in plain.perms.items())
    assert heavy.objective > matching.Problem(a, b, CHAIN).objective(heavy.perms)


def test_sinkhorn_is_doubly_stochastic_and_sharp_when_cold():
    logits = torch.randn(30, 30, generator=generator(0))
    X = matching.sinkhorn(logits, 100)
    assert torch.allclose(X.sum(0), torch.ones(30, dtype=X.dtype))
    assert torch.allclose(X.sum(1), torch.ones(30, dtype=X.dtype), atol=1e-6)
    cold = matching.sinkhorn(logits * 300, 2000)
    assert torch.equal(cold.argmax(1), matching.assign(logits))
    assert matching.sinkhorn(logits * 1e6).isfinite().all()


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "magic"}, "unknown solver 'magic'; accepted: graph"),
        ({"iterationz": 3}, "unknown option of solver 'graph': 'iterationz'; accepted: iterations"),
        ({"solver": "spectral", "restarts": 2}, "one start only"),
        ({"restarts": 2}, "pass a torch.Generator"),
        ({"solver": "frank_wolfe", "kernel": "cosine"}, "unknown kernel 'cosine'; accepted: exp, inner"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    a = draw(SHAPES, 0)
    with pytest.raises(InputError, match=message) as refusal:
        matching.solve(matching.Problem(a, a, CHAIN), **options)
    assert "\n" not in str(refusal.value)


def test_similarity_of_the_wrong_shape_is_refused():
    a = draw(SHAPES, 0)
    with pytest.raises(InputError, match=r"similarity of 'fc1'.*\(3, 3\)"):
        matching.Problem(a, a, CHAIN, similarity={"fc1": torch.eye(3)})


@pytest.mark.parametrize("solver", matching.SOLVERS)
def test_without_groups_there_is_nothing_to_permute(solver):
    a = draw(SHAPES, 0)
    run = matching.solve(matching.Problem(a, a, {}), solver=solver, restarts=0)
    assert (run.perms, run.objective, run.converged) == ({}, 0.0, True)


@pytest.mark.parametrize("solver", ["graph", "softassign", "coordinate_descent", "frank_wolfe"])
def test_weights_that_are_no_numbers_are_refused_naming_the_group(solver):
    a, b = draw(SHAPES, 0), draw(SHAPES, 1)
    a["fc2.weight"][0, 0] = math.nan
    with pytest.raises(InputError, match="group 'fc1' are infinite or NaN"):
        matching.solve(matching.Problem(a, b, CHAIN), solver=solver)


@pytest.mark.parametrize("solver", ["spectral", "spectral_symmetric", "rrwm"])
def test_exact_soft_solvers_refuse_what_would_not_end(solver, monkeypatch):
    a = draw(SHAPES, 0)
    monkeypatch.setattr(solvers, "MOST_SOFT_WORK", 10)
    with pytest.raises(InputError, match="kernel='inner'"):
        matching.solve(matching.Problem(a, a, CHAIN), solver=solver)
    assert matching.solve(matching.Problem(a, a, CHAIN), solver=solver, kernel="inner").perms.keys() == CHAIN.keys()


def test_frank_wolfe_without_the_flat_start_still_finds_the_planted(monkeypatch):
    monkeypatch.setattr(solvers, "MOST_SOFT_WORK", 10)
    problem, planted = noisy(1.0, sizes=(12, 14, 10))
    run = matching.solve(problem, solver="frank_wolfe")
    assert all(torch.equal(run.perms[name], perm) for name, perm in planted.items())


def test_dense_affinity_of_a_problem_refuses_above_the_limit():
    a = draw(SHAPES, 0)
    with pytest.raises(InputError, match="18 units would take 420kB, above the limit of 100kB"):
        matching.Problem(a, a, CHAIN).affinity(memory=1e5)
