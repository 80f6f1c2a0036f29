"""Networks of one architecture in other widths: the narrower in the wider one, its missing units units of zeros."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..checks import InputError
from .graph import inputs_of
from .groups import Groups, Member, by_tensor

FAR = 1e-5  # of the outputs' size: what embedding may change


def sizes_in(state: Mapping[str, Tensor], wide: Mapping[str, Tensor], groups: Groups, name: str) -> dict[str, int]:
    """{group: how many of its units a network has}, from its state dict and that of the wider one whose `groups` these
    are.

    Raises:
        InputError: the network, called `name`, has other layers, inputs or outputs, or more units somewhere.
    """
    absent = sorted({*wide} ^ {*state})
    if absent:
        which = "only this one has" if absent[0] in state else "it lacks"
        raise InputError(
            f"{name} has other layers than the network of the groups: {which} {absent[0]}; accepted: one depth"
        )
    members, sizes = by_tensor(groups), {}
    for tensor, whole in wide.items():
        mine = state[tensor]
        if not isinstance(mine, Tensor):
            continue
        axes = {
            axis for axis in range(whole.dim()) if mine.dim() != whole.dim() or mine.shape[axis] != whole.shape[axis]
        }
        for group, member in members.get(tensor, ()):
            if member.axis not in axes:
                sizes.setdefault(group, set()).add(groups[group].size)
            elif _narrower(mine, whole, groups[group].size, member):
                sizes.setdefault(group, set()).add(mine.shape[member.axis] // member.block)
                axes.remove(member.axis)
        if axes or mine.dim() != whole.dim():
            raise InputError(
                f"{name} has {tensor} {tuple(mine.shape)}, that of the groups {tuple(whole.shape)}; accepted: networks "
                "that differ in how many hidden units they have, of which one has as many as any everywhere"
            )
    if uneven := next((group for group, found in sizes.items() if len(found) > 1), None):
        raise InputError(f"{name} has {' and '.join(map(str, sorted(sizes[uneven])))} units in group {uneven}")
    return {group: found.pop() for group, found in sizes.items()}


def _narrower(mine: Tensor, whole: Tensor, size: int, member: Member) -> bool:
    """Whether a member's axis holds nothing but whole units, in `mine` at most as many."""
    plain = not member.offset and member.rows is None and member.starts is None and mine.dim() == whole.dim()
    if not plain or whole.shape[member.axis] != size * member.block:
        return False
    return mine.shape[member.axis] % member.block == 0 and mine.shape[member.axis] <= whole.shape[member.axis]


@torch.no_grad()
def embed(network: nn.Module, wide: nn.Module, groups: Groups, name: str = "the network") -> nn.Module:
    """A network like `wide` that computes what `network` does: its units come first in each group, the others are 0.

    Args:
        network: of the same architecture, with at most as many units anywhere.
        groups: of `wide` (`trace`).
        name: what errors call it.

    Raises:
        InputError: as `sizes_in`; or what it computes would change, as where a LayerNorm sees the zeros.
    """
    state, blank = network.state_dict(), wide.state_dict()
    sizes_in(state, blank, groups, name)
    for tensor, whole in blank.items():
        mine = state[tensor]
        if isinstance(mine, Tensor) and mine.shape != whole.shape:
            # the variance of a unit that is always 0 must not be
            fill = 1 if tensor.endswith("running_var") else 0
            placed = torch.full_like(whole, fill, dtype=mine.dtype, device=mine.device)
            placed[tuple(map(slice, mine.shape))] = mine
            mine = placed
        blank[tensor] = mine
    embedded = copy.deepcopy(wide).to(next(network.parameters()).device)
    embedded.load_state_dict(blank)
    embedded.eval()
    training, examples = network.training, inputs_of(groups.example)
    network.eval()
    outputs = [
        model(*(x.to(next(model.parameters()).device, copy=True) for x in examples)) for model in (network, embedded)
    ]
    network.train(training)
    if (outputs[0] - outputs[1]).abs().max() > FAR * outputs[0].abs().max():
        raise InputError(f"{name} computes something else beside units of zeros, as where a LayerNorm sees them")
    return embedded


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """{name in the state dict: shape}, None of what is no tensor."""
    return {key: getattr(value, "shape", None) for key, value in network.state_dict().items()}


def in_one_width(
    networks: Sequence[nn.Module], groups: Groups, names: Sequence[str] | None = None
) -> tuple[list[nn.Module], list[dict[str, int]]]:
    """The networks in the width of the groups, and of each that is narrower {group: units of its own}, {} of others.

    Raises:
        InputError: as `embed`, or the groups are of none of the networks.
    """
    shapes = [shapes_of(network) for network in networks]
    if all(each == shapes[0] for each in shapes):
        return list(networks), [{}] * len(networks)
    fits = [_fits(network, groups) for network in networks]
    if not any(fits):
        raise InputError("these groups are of none of the networks; accepted: those of the widest, as trace gives them")
    first, found, sizes = fits.index(True), [], []
    wide = networks[first].state_dict()
    for name, network, shape in zip(names or _numbered(networks), networks, shapes, strict=True):
        same = shape == shapes[first]
        found.append(network if same else embed(network, networks[first], groups, name))
        sizes.append({} if same else sizes_in(network.state_dict(), wide, groups, name))
    return found, sizes


def widest(networks: Sequence[nn.Module]) -> nn.Module:
    """The one with the most parameters, the first of equals."""
    return max(networks, key=lambda network: sum(p.numel() for p in network.parameters()))


def _numbered(networks: Sequence[nn.Module]) -> list[str]:
    return [f"network {number}" for number in range(1, len(networks) + 1)]


def _fits(network: nn.Module, groups: Groups) -> bool:
    """Whether the groups can be this network's."""
    state, members = network.state_dict(), by_tensor(groups)
    return all(
        tensor in state and state[tensor].shape[m.axis] >= m.offset + groups[g].size * m.block
        for tensor, each in members.items()
        for g, m in each
    )


def blanked(perm: Tensor, size: int) -> Tensor:
    """A permutation of a group of which the first `size` units are the network's: −1 stands for a unit of zeros."""
    return torch.where(perm < size, perm, -1)


def completed(perm: Tensor) -> Tensor:
    """A permutation in which the places of −1 get the units that stand nowhere, in order; a matrix as it is."""
    absent = perm < 0
    if perm.is_floating_point() or not absent.any():
        return perm
    whole = perm.clone()
    whole[absent] = torch.tensor(sorted({*range(len(perm))} - {*perm[~absent].tolist()}), dtype=perm.dtype)
    return whole
