"""Corrections of transformers: attention, GELU, positions that no output reads, heads chosen, what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import fusion, models, symmetry
from lib.checks import InputError
from lib.fusion import CORRECTIONS, least_squares, rows, selection, sites
from lib.models.transformers import GPT, ViT
from lib.symmetry import walker
from tests.aligned import correct

QUIET = {"progress": False}
TOKENS, LENGTH = 11, 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def vit():
    return ViT(shape=(1, 8, 8), patch=4, d=16, depth=2, heads=4, classes=5)


def gpt(tied=False):
    return GPT(vocabulary=TOKENS, length=LENGTH, d=16, depth=2, heads=4, tied=tied)


class Gated(nn.Module):
    """A hidden layer of SwiGLU units, made by two layers that are multiplied."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


NETWORKS = {"vit": vit, "gpt": gpt, "tied": lambda: gpt(tied=True), "gated": Gated}


def images(name, count=120, seed=0):
    if name in ("gpt", "tied"):
        return torch.randint(TOKENS, (count, LENGTH), generator=generator(seed))
    shape = (6,) if name == "gated" else (1, 8, 8)
    return torch.randn(count, *shape, generator=generator(seed))


def random(name, seed):
    """A network of which every weight varies, and matters."""
    model, g = NETWORKS[name](), generator(seed)
    for parameter in model.parameters():
        scale = 1.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.data.normal_(0, scale, generator=g)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=g)
    return model.eval()


def pair(name):
    a, b, x = random(name, 1), random(name, 2), images(name)
    return a, b, symmetry.trace(a, x[:2]), x


@torch.no_grad()
def outputs(model, state, x):
    return models.load_state(copy.deepcopy(model), state).eval()(x)


def fit(a, b, groups, x, alpha=0.5, **options):
    return correct(
        a, a.state_dict(), b.state_dict(), alpha, "least_squares", groups=groups, batches=[x], **options, **QUIET
    )


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", sorted(set(CORRECTIONS) - {"bn_reset", "temperature"}))
def test_a_permuted_copy_of_a_fused_with_it_gives_a_back(name, kind):
    a, _, groups, x = pair(name)
    perms = groups.random(generator(3))
    b = models.load_state(copy.deepcopy(a), symmetry.act(a.state_dict(), groups, perms))
    aligned = fusion.align([a, b], groups, [groups.identity(), symmetry.inverse(perms)])
    given = {"ridge": 1e-7} if kind == "least_squares" else {}
    fused = fusion.correct(aligned, 0.5, kind, images=x, **given, **QUIET)
    with torch.no_grad():
        expected = a(x)
    assert (fused.model()(x) - expected).norm() < 1e-2 * expected.norm()
    # without the maps it is something else
    unaligned = fusion.align([a, b], groups, [groups.identity()] * 2)
    assert (fusion.correct(unaligned, 0.5, "none").model()(x) - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_least_squares_comes_closer_to_the_parents_than_averaging(name):
    a, b, groups, x = pair(name)
    with torch.no_grad():
        goal = (a(x) + b(x)) / 2
    found = fit(a, b, groups, x)
    mean = fusion.interpolate([a.state_dict(), b.state_dict()], (0.5, 0.5))
    assert (outputs(a, found, x) - goal).norm() < 0.7 * (outputs(a, mean, x) - goal).norm()
    assert found.info["left"] == ({"lm_head": sites.TIED} if name == "tied" else {})
    for alpha, parent in ((0, a), (1, b)):
        found = fit(a, b, groups, x, alpha)
        with torch.no_grad():
            assert (outputs(a, found, x) - parent(x)).norm() < 1e-3 * parent(x).norm()


# --- activations ------------------------------------------------------------------------------------------------------


ACTIVATIONS = {
    "gelu": nn.GELU(),
    "tanh-gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": nn.SiLU(inplace=True),
    "tanh": torch.tanh,
    "softplus": F.softplus,
}


class Hidden(nn.Module):
    def __init__(self, bend):
        super().__init__()
        self.first, self.bend, self.last = nn.Linear(6, 10), bend, nn.Linear(10, 3)

    def forward(self, x):
        return self.last(self.bend(self.first(x)))


def hidden_pair(bend):
    """(two of them, images, groups)."""
    pair = Hidden(bend), Hidden(bend)
    for seed, model in enumerate(pair, 1):
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.8, generator=generator(seed))
    x = images("gated", 400)
    return *pair, x, symmetry.trace(pair[0], x[:2])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rounds_through_a_smooth_activation_lower_what_is_missing_behind_it(name):
    a, b, x, groups = hidden_pair(ACTIVATIONS[name])

    def behind(model):
        with torch.no_grad():
            return model.bend(model.first(x))

    goal, missing, told = (behind(a) + behind(b)) / 2, [], []
    for rounds in (0, 1, 4, 12):
        found = fit(a, b, groups, x, rounds=rounds, select=False, ridge=1e-6)
        fused = models.load_state(copy.deepcopy(a), found)
        missing.append(float((behind(fused) - goal).square().sum() / goal.square().sum()))
        told.append(found.info["layers"]["first"])
    assert missing[0] > missing[1] > missing[2] > missing[3]
    assert told[1:] == pytest.approx(missing[1:], rel=1e-3)
    assert set(fit(a, b, groups, x).info["units"]) == {"first"}  # units are chosen as behind a ReLU


def test_many_rounds_end_where_the_loss_behind_the_activation_has_no_slope():
    a, b, x, groups = hidden_pair(nn.GELU())

    def slope(rounds):
        fused = models.load_state(copy.deepcopy(a), fit(a, b, groups, x, rounds=rounds, select=False, ridge=1e-9))
        goal = (F.gelu(a.first(x)) + F.gelu(b.first(x))).detach() / 2
        loss = (F.gelu(fused.first(x)) - goal).square().mean()
        return torch.autograd.grad(loss, fused.first.weight)[0].norm()

    assert slope(300) < 0.02 * slope(0)


def test_a_round_that_makes_it_worse_is_not_kept(monkeypatch):
    a, b, x, groups = hidden_pair(nn.GELU())
    none = fit(a, b, groups, x, rounds=0, select=False)
    slope = least_squares._slope
    monkeypatch.setattr(least_squares, "_slope", lambda bend, z: (slope(bend, z)[0], -slope(bend, z)[1]))
    found = fit(a, b, groups, x, rounds=3, select=False)
    torch.testing.assert_close(found["first.weight"], none["first.weight"])


# --- positions --------------------------------------------------------------------------------------------------------


def masks(model, groups, x):
    return rows.reaching([model], groups, sites.solvable(model, groups)[0], x)


def test_only_the_class_token_of_the_last_block_reaches_the_logits():
    a, _, groups, x = pair("vit")
    found = masks(a, groups, x)
    late = {f"blocks.1.{layer}" for layer in ("att.q", "att.o", "mlp.0", "mlp.2")}
    assert found.keys() == late and all(mask.tolist() == [True] + [False] * 4 for mask in found.values())
    a, _, groups, x = pair("gpt")
    assert masks(a, groups, x) == {}


def test_positions_that_reach_no_output_do_not_count():
    """With them the class token is fitted worse; a network that reads all positions is fitted as before."""
    a, b, groups, x = pair("vit")
    with torch.no_grad():
        goal = (a(x) + b(x)) / 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(least_squares, "reaching", lambda *_: {})
        every, texts = fit(a, b, groups, x), (pair("gpt"), fit(*pair("gpt"), select=False))
    only = fit(a, b, groups, x)
    assert (outputs(a, only, x) - goal).norm() < 0.95 * (outputs(a, every, x) - goal).norm()
    assert only.info["layers"]["blocks.1.att.q"] < every.info["layers"]["blocks.1.att.q"]
    same = fit(*texts[0], select=False)
    assert all(torch.equal(same[key], texts[1][key]) for key in same)


def test_positions_are_drawn_from_those_that_reach():
    reach = torch.tensor([False, True, False, True])
    places = rows.drawn(40, 7, 0, reach)
    assert len(set(places.tolist())) == 7 and bool(reach[places % 4].all()) and int(places.max()) < 40
    assert rows.drawn(40, 1000, 0, reach).tolist() == [p for p in range(40) if reach[p % 4]]


# --- heads ------------------------------------------------------------------------------------------------------------


def joints(name):
    a, _, groups, x = pair(name)
    lockstep = walker.Lockstep((a,), groups.graph, (x[:2],), 0)
    return {joint.name: joint for joint in sites.joints(sites.solvable(a, groups)[0], groups, lockstep)}


def test_heads_are_found_whether_q_k_and_v_are_one_layer_or_three():
    for name, makers, reader in (
        ("vit", ["blocks.0.att.q", "blocks.0.att.k", "blocks.0.att.v"], "blocks.0.att.o"),
        ("gpt", ["transformer.h.0.attn.c_attn"], "transformer.h.0.attn.c_proj"),
        ("gated", ["gate", "up"], "down"),
    ):
        joint = joints(name)[makers[0]]
        assert [site.name for site in joint.makers] == makers and joint.reader.name == reader
    fused = joints("gpt")["transformer.h.0.attn.c_attn"].columns[0]
    assert fused[1].tolist() == [*range(4, 8), *range(20, 24), *range(36, 40)]


@pytest.mark.parametrize("alpha", [0.25, 0.5])
@pytest.mark.parametrize("name", ["vit", "gpt"])
def test_heads_are_chosen_in_the_parents_shares(name, alpha):
    a, b, groups, x = pair(name)
    found = fit(a, b, groups, x, alpha)
    of_heads = {key: counts for key, counts in found.info["units"].items() if "att" in key}
    assert len(of_heads) == 2
    for counts in of_heads.values():
        single = sum(counts["single"])
        assert counts["mean"] + single == 4 and counts["single"] == selection.shared_out(single, (1 - alpha, alpha))
    assert any(sum(counts["single"]) for counts in of_heads.values())
    assert not any("att" in key for key in fit(a, b, groups, x, alpha, heads="mean").info["units"])


@pytest.mark.parametrize("name", ["vit", "gpt", "gated"])
def test_units_made_together_are_what_was_chosen(name, monkeypatch):
    """In the first layer the inputs are the parents' own: a head that stands for a parent's is that head, to the bit of
    the fit, and the weights of all its makers come from it."""
    a, b, groups, x = pair(name)
    joint = next(iter(joints(name).values()))
    size = joint.size
    choice, source = torch.tensor([1, 2] * (size // 2)), torch.arange(size).flip(0)
    monkeypatch.setattr(selection, "choose_blocks", lambda *_: (choice, source))
    if name != "gated":  # so that what the first attention is given is the same in all three
        for key, value in a.state_dict().items():
            if not any(part in key for part in (".att.", ".attn.")):
                b.state_dict()[key].copy_(value)
    found = fit(a, b, groups, x, ridge=1e-9, rounds=0)
    for site, columns in zip(joint.makers, joint.columns, strict=True):
        for place in range(size):
            parent = (a, b)[choice[place] - 1].state_dict()[f"{site.name}.weight"]
            made = found[f"{site.name}.weight"][columns[place]]
            torch.testing.assert_close(made, parent[columns[source[place]]], rtol=1e-2, atol=1e-2)


def test_heads_are_to_make_what_the_parents_sums_are_less_what_the_fused_network_carries(monkeypatch):
    """Parents that differ in the first attention alone: the stream before it is that of both."""
    a, b, groups, x = pair("vit")
    for key, value in a.state_dict().items():
        if ".0.att." not in key:
            b.state_dict()[key].copy_(value)
    choose, seen = selection.choose_blocks, []
    monkeypatch.setattr(selection, "choose_blocks", lambda *given: (seen.append(given), choose(*given))[1])
    fit(a, b, groups, x, ridge=1e-9, rows=0)
    made = []
    for model in (a, b):
        hook = model.blocks[0].att.o.register_forward_hook(lambda _, given, value: made.append((given[0], value)))
        with torch.no_grad():
            model(x)
        hook.remove()
    columns = torch.cat([given.flatten(0, 1) for given, _ in made], dim=1).double()
    wanted = (made[0][1] + made[1][1]).flatten(0, 1).double() / 2
    columns, wanted = columns - columns.mean(0), wanted - wanted.mean(0)
    covariance, targets, size, shares, free = seen[0]
    n = columns.shape[1]
    assert (size, shares, free, len(covariance)) == (4, (0.5, 0.5), False, n // 2 * 3)
    torch.testing.assert_close(covariance[:n, :n], columns.mT @ columns / len(columns), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(targets[:n], columns.mT @ wanted / len(columns), rtol=1e-2, atol=1e-3)


def blocks(seed, size=4, block=3, outputs=6):
    columns = torch.randn(500, 3 * size * block, generator=generator(seed)).double()
    columns = columns @ torch.randn(len(columns[0]), len(columns[0]), generator=generator(seed + 1)).double()
    return columns, torch.arange(len(columns[0])).view(3 * size, block), outputs


def explained(columns, places, wanted):
    made = columns[:, places.flatten()]
    return float((made @ torch.linalg.lstsq(made, wanted).solution).square().sum())


def test_choose_blocks_finds_the_heads_that_are_read_and_keeps_the_shares_unless_free():
    columns, places, outputs = blocks(0)
    chosen = [0, 2, 3, 9]  # three of the first parent's heads, one mean
    weights = torch.randn(len(chosen) * 3, outputs, generator=generator(5)).double()
    wanted = columns[:, places[chosen].flatten()] @ weights
    covariance, targets = columns.mT @ columns / len(columns), columns.mT @ wanted / len(columns)
    choice, units = selection.choose_blocks(covariance, targets, 4, (0.75, 0.25), True)
    assert list(zip(choice.tolist(), units.tolist(), strict=True)) == [(1, 0), (0, 1), (1, 2), (1, 3)]
    for shares in ((0.5, 0.5), (0.75, 0.25), (0.9, 0.1)):
        choice, _ = selection.choose_blocks(covariance, targets, 4, shares)
        counts = torch.bincount(choice, minlength=3).tolist()
        assert counts[1:] == selection.shared_out(sum(counts[1:]), shares)


def test_choose_blocks_takes_at_each_step_the_head_that_explains_most():
    columns, places, outputs = blocks(7)
    wanted = columns @ torch.randn(len(columns[0]), outputs, generator=generator(9)).double()
    chosen = []
    for _ in range(4):
        free = [i for i in range(12) if i not in chosen]
        chosen.append(max(free, key=lambda i: explained(columns, places[[*chosen, i]], wanted)))
    choice, units = selection.choose_blocks(columns.mT @ columns, columns.mT @ wanted, 4, (0.5, 0.5), True)
    assert sorted(((c - 1) % 3 * 4 + u) for c, u in zip(choice.tolist(), units.tolist(), strict=True)) == sorted(chosen)


# --- what is refused, and texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "gpt", "tied"])
def test_what_makes_no_sense_on_a_transformer_is_refused_in_one_line(name):
    a, b, groups, x = pair(name)
    told = {"bn_reset": "bn_reset.*needs BatchNorm.*accepted: none, repair"}
    told |= {
        f"least_squares(units={units})": "is not accepted, .* accepted: units=matched"
        for units in ("half", "side_by_side")
    }
    told["least_squares(heads=best)"] = "heads.*accepted: shares, free, mean"
    if name == "tied":
        told |= dict.fromkeys(("temperature", "least_squares(target=ensemble)"), "linear layer of their own")
    for kind, line in told.items():
        with pytest.raises(InputError, match=line) as error:
            correct(a, a.state_dict(), b.state_dict(), 0.5, kind, groups=groups, batches=[x], **QUIET)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["temperature", "least_squares(target=ensemble)", "least_squares(target=competence)"])
def test_what_fits_a_head_takes_a_network_that_answers_at_every_position(kind):
    a, b, groups, x = pair("gpt")
    found = correct(a, a.state_dict(), b.state_dict(), 0.5, kind, groups=groups, batches=[x], **QUIET)
    assert outputs(a, found, x).isfinite().all() and found.info["images"] == len(x)


def test_repair_sets_the_statistics_of_the_hidden_layers_alone():
    a, b, groups, x = pair("vit")
    found = correct(a, a.state_dict(), b.state_dict(), 0.5, "repair", groups=groups, batches=[x], **QUIET)
    mean = fusion.interpolate([a.state_dict(), b.state_dict()], (0.5, 0.5))
    changed = {key.rpartition(".")[0] for key in mean if not torch.equal(found[key], mean[key])}
    assert changed == {"blocks.0.mlp.0", "blocks.1.mlp.0"}
