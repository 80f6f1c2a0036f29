"""Maps beyond one permutation a group: heads of attention, what runs inside them, and streams turned by matrices.

Every step looks at one group, with all others as they stand: units that may only change places are assigned, those that
may be turned are turned by the orthogonal matrix that brings them nearest (Procrustes). Heads are compared by what they
compute, whatever the coordinates inside them: by their patterns of attention, or by their circuits, the products
Wqᵀ·Wk and Wo·Wv of a head (Theus et al., Generalized Linear Mode Connectivity for Transformers, 2025).
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from .. import models, symmetry
from ..checks import InputError
from ..progress import tqdm
from ..symmetry import Group, Groups, Member
from .activation import activation_similarity
from .assignment import assign

ROUNDS = 30  # over all groups, at most
ENOUGH = 1e-5  # of the objective: less gained in a round is an end
FAINT = 1e-9  # of a head's mean square: directions fainter than that are not stretched to balance it


def allowed(group: Group, maps: str) -> str:
    """The kind of map that is looked for in a group: "permutation" if that is what `maps` says, else the largest kind
    of orthogonal ones that the group allows."""
    if maps == "permutation" or group.kind == "permutation":
        return "permutation"
    return "centred" if group.kind == "centred" else "orthogonal"


def entries_of(state: Mapping[str, Tensor], member: Member, size: int) -> Tensor:
    """What a member holds of each unit: float64 (size, entries)."""
    tensor = state[member.tensor]
    part = tensor[slice(*member.rows)] if member.rows else tensor
    places = symmetry.entries(member, torch.arange(size)).to(tensor.device)
    units = part.index_select(member.axis, places).movedim(member.axis, 0)
    return units.reshape(size, -1).double()


def _sides(state: Mapping[str, Tensor], group: Group) -> tuple[Tensor, Tensor]:
    """What moves with a map of a group, and what moves with its dual: float64 (size, entries) each. Without the bias of
    keys, which no pattern depends on."""
    makers = [entries_of(state, m, group.size) for m in group.members if not m.dual]
    duals = [entries_of(state, m, group.size) for m in group.members if m.dual and state[m.tensor].dim() > 1]
    return torch.cat(makers, dim=1), torch.cat(duals, dim=1)


def balance(state: Mapping[str, Tensor], groups: Groups) -> dict[str, Tensor]:
    """For each group that allows any invertible map, the symmetric positive matrix (size, size) float64 under which
    what makes its units and what reads them have the same Gram matrix: then only rotations are left of its freedom."""
    maps = {}
    for name, group in groups.every.items():
        if group.kind == "invertible" and any(member.dual for member in group.members):
            grams = [side @ side.T for side in _sides(state, group)]
            identity = torch.eye(group.size, dtype=torch.float64)
            made, read = (gram + FAINT * gram.diagonal().mean().clamp(min=1e-300) * identity for gram in grams)
            # M²: the geometric mean of the readers' Gram matrix and the inverse of the makers'
            root, back = _power(made, 0.5), _power(made, -0.5)
            maps[name] = _power(back @ _power(root @ read @ root, 0.5) @ back, 0.5)
    return maps


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors * values.clamp(min=values[-1] * 1e-14) ** exponent @ vectors.T


def canonical(network: nn.Module, groups: Groups, maps: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(maps, state) of a network in the coordinates in which matrices are compared: gains of norms folded, balanced.
    With `maps` "permutation" the network as it is."""
    state = {name: t for name, t in models.state_of(network).items() if not models.is_extra(name, t)}
    if maps == "permutation":
        return {}, state
    # in float64: what is stored is rounded once
    state = {name: t.double() if t.is_floating_point() else t for name, t in symmetry.fold(state, groups).items()}
    own = balance(state, groups)
    return own, symmetry.act(state, groups, own)


def circuits(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], groups: Groups, heads: str) -> Tensor | None:
    """How alike the heads of two networks are: float64 (heads, heads), the inner products of their circuits, those of
    queries with keys and of values with outputs on one scale. None where nothing is traced inside the heads."""
    total, size = None, groups[heads].size
    for role in ("qk", "vo"):
        inner = [groups.inside.get(f"{heads}.{role}[{i}]") for i in range(size)]
        if any(group is None or not any(m.dual for m in group.members) for group in inner):
            continue
        a, b = ([_sides(state, group) for group in inner] for state in (state_a, state_b))

        def product(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> Tensor:
            return (one[0] @ two[0].T * (one[1] @ two[1].T)).sum()

        alike = torch.stack([torch.stack([product(x, y) for y in b]) for x in a])
        own = [sum(product(x, x) for x in each) for each in (a, b)]
        alike = alike / (own[0] * own[1]).sqrt().clamp(min=1e-300)
        total = alike if total is None else total + alike
    return total


REACH = ("hidden", "heads", "inside", "all")


def reached(found: Mapping[str, Tensor], groups: Groups, reach: str) -> dict[str, Tensor]:
    """Of B's maps those of "hidden" units alone, which no attention reads or writes; of "heads", too; of what is
    "inside" them, too; or "all", streams included.

    Raises:
        InputError: less than all of a network without heads.
    """
    if reach == "all":
        return dict(found)
    heads = {group.within[0] for group in groups.inside.values()}
    if not heads:
        raise InputError(f"reach '{reach}' is not accepted, this network has no heads of attention; accepted: all")
    tensors = {member.tensor for name in heads for member in groups[name].members}
    hidden = {n for n, group in groups.items() if not tensors & {member.tensor for member in group.members}}
    kept = hidden | (heads if reach != "hidden" else set()) | ({*groups.inside} if reach == "inside" else set())
    return {name: each for name, each in found.items() if name in kept}


def _nearest(similarity: Tensor, kind: str, name: str) -> Tensor:
    return assign(similarity, name) if kind == "permutation" else symmetry.nearest(similarity, kind)


def descend(
    model_a: nn.Module, model_b: nn.Module, groups: Groups, *, maps: str = "permutation", progress: bool = True
) -> tuple[dict[str, Tensor], float, dict]:
    """B's maps from weights alone: each group in turn, until nothing moves (as Git Re-Basin's weight matching, with
    heads by their circuits and Procrustes where a group allows it).

    At first a group is matched by those of its weights whose other side is matched already or does not move.

    Returns:
        (maps, the objective Σ ⟨A, B⟩ over all members, what else to report).
    """
    (_, state_a), (own, state_b) = (canonical(model, groups, maps) for model in (model_a, model_b))
    every, found = groups.every, dict(own)
    others = symmetry.by_tensor(every)
    gains = {gain.weight for group in groups.values() for gain in group.gains} if maps != "permutation" else set()
    done: set[str] = set()
    heads = {group.within[0] for group in groups.inside.values()}
    # heads first need the stream that they read; what runs inside them needs the heads
    order = sorted(every, key=lambda name: (name in groups.inside, name in heads))
    steps, current, value, rounds = 0, state_b, -float("inf"), 0
    for rounds in tqdm(range(1, ROUNDS + 1), desc="weights", unit="round", disable=not progress, leave=False):
        moved = False
        for name in order:
            group, alike = every[name], None
            if name in heads:
                alike = circuits(state_a, current, groups, name)
            if alike is None:
                alike = torch.zeros(group.size, group.size, dtype=torch.float64)
                for member in group.members:
                    outer = {
                        n for n, _ in others[member.tensor] if n in groups.groups and n not in (name, *_around(group))
                    }
                    if member.tensor not in gains and (rounds > 1 or outer <= done):
                        a, b = (entries_of(state, member, group.size) for state in (state_a, current))
                        alike += a @ b.T
            step = _nearest(alike, allowed(group, maps), name)
            done.add(name)
            if step.is_floating_point() or not torch.equal(step, torch.arange(group.size)):
                steps += 1
                moved = moved or not step.is_floating_point()
                current = symmetry.act(current, groups, {name: step})
                found = symmetry.compose(found, {name: step}, groups)
        before, value = value, _objective(state_a, current, every)
        if not moved and value - before <= ENOUGH * abs(value):
            break
    found = {name: found.get(name, torch.arange(group.size)) for name, group in every.items()}
    return found, value, {"rounds": rounds, "steps": steps, "maps": maps}


def _around(group: Group) -> tuple[str, ...]:
    return () if group.within is None else (group.within[0],)


def _objective(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], groups: Mapping[str, Group]) -> float:
    tensors = {member.tensor for group in groups.values() for member in group.members}
    return sum(float((state_a[name].double() * state_b[name].double()).sum()) for name in sorted(tensors))


def from_activations(
    model_a: nn.Module,
    model_b: nn.Module,
    groups: Groups,
    perms: Mapping[str, Tensor],
    similar: Callable[..., dict[str, Tensor]],
    *,
    maps: str = "permutation",
) -> dict[str, Tensor]:
    """B's maps where the outer groups that can only be permuted have been matched: what runs inside heads and, with
    matrices, the streams, all from one more pass over both networks.

    Args:
        perms: of the outer groups; those of groups that take a matrix are not used.
        similar: `activation_similarity` with all but networks, groups and kind of similarity given.
    """
    rest = {n: g for n, g in groups.every.items() if n in groups.inside or allowed(g, maps) != "permutation"}
    if not rest:
        return dict(perms)
    (_, state_a), (own, _) = (canonical(model, groups, maps) for model in (model_a, model_b))
    found = symmetry.compose(own, {n: p for n, p in perms.items() if n not in rest}, groups)
    state_b = models.state_of(model_b)
    state_b = symmetry.act(symmetry.fold(state_b, groups) if maps != "permutation" else state_b, groups, found)
    pair = [models.load_state(copy.deepcopy(model), state) for model, state in ((model_a, state_a), (model_b, state_b))]
    alike = similar(
        *pair, dataclasses.replace(groups, groups=rest, inside={}), kind=None if maps == "permutation" else "relative"
    )
    steps = {name: _nearest(alike[name], allowed(group, maps), name) for name, group in rest.items()}
    return symmetry.compose(found, steps, groups)


def similarity_of(batches: Iterable, **options) -> Callable[..., dict[str, Tensor]]:
    """`activation_similarity` on some batches."""

    def similar(model_a: nn.Module, model_b: nn.Module, groups: Groups, kind: str | None = None) -> dict[str, Tensor]:
        given = options if kind is None else options | {"similarity": kind}
        return activation_similarity(model_a, model_b, groups, batches, **given)

    return similar
