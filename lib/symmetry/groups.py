"""Permutation groups: what they act on, applied and proved."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx


# The maps that a group may allow, each kind holding those before it: permutations; orthogonal matrices M with M·1 = 1,
# which LayerNorm allows; all orthogonal ones; all invertible ones.
KINDS = ("permutation", "centred", "orthogonal", "invertible")


class SymmetryError(Exception):
    """Permuting a group changed what the network computes."""


@dataclass(frozen=True)
class Member:
    """One axis of one state-dict tensor that a group permutes: entries offset + i·block + j, j < block, belong to
    unit i; or starts[i] + j, where its units do not follow one another. `rows`, if given, limits it to those entries
    of axis 0 (grouped convolutions)."""

    tensor: str
    axis: int
    block: int = 1
    offset: int = 0
    rows: tuple[int, int] | None = None
    starts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Tap:
    """Where a group's activations can be read: axis `axis` of graph node `node`, laid out as in `Member`.
    `kind` is "pre_norm" (straight from the layer), "post_norm" or "post_relu"."""

    node: str
    kind: str
    axis: int
    block: int = 1
    offset: int = 0
    starts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Group:
    """One unknown permutation of `size` units and every place it acts on."""

    size: int
    members: tuple[Member, ...]
    taps: tuple[Tap, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer met on the way: its module, its graph node, its state-dict keys, and the
    BatchNorm that alone and directly follows it."""

    name: str
    kind: str
    node: str
    weight: str
    bias: str | None = None
    norm: str | None = None


@dataclass(frozen=True)
class Groups(Mapping[str, Group]):
    """The permutation groups of a network, by name, in execution order. Prints as a table.

    `way` is where the graph came from: "torch.fx", or "torch.export" where that could not follow the network;
    `unreached` the tensors that its output does not depend on in evaluation mode (an auxiliary classifier), which no
    group moves.
    """

    groups: Mapping[str, Group]
    layers: tuple[Layer, ...] = ()
    graph: fx.Graph | None = field(default=None, repr=False)
    example: torch.Tensor | tuple | None = field(default=None, repr=False, compare=False)  # what they were traced with
    way: str = "torch.fx"
    unreached: tuple[str, ...] = ()
    proof: object = field(default=None, repr=False, compare=False)  # from `proved`

    def __getitem__(self, name: str) -> Group:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def norms(self) -> dict[str, str]:
        """{layer: the BatchNorm that directly follows it}, by module name."""
        return {layer.name: layer.norm for layer in self.layers if layer.norm}

    def random(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """A uniformly random permutation (size,) of each group, drawn from a CPU generator."""
        return {name: torch.randperm(group.size, generator=generator) for name, group in self.items()}

    def identity(self) -> dict[str, torch.Tensor]:
        """The permutation (size,) that moves nothing, for each group."""
        return {name: torch.arange(group.size) for name, group in self.items()}

    def __str__(self) -> str:
        rows = [("group", "units", "acts on (tensor:axis)")]
        for name, group in self.items():
            places = []
            for m in group.members:
                extent = f"×{m.block}" if m.block > 1 else ""
                start = "*" if m.starts else f"+{m.offset}" if m.offset else ""
                places.append(f"{m.tensor}:{m.axis}{extent}{start}")
            rows.append((name, str(group.size), ", ".join(places)))
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"{name:<{first}}  {size:>{second}}  {places}" for name, size, places in rows]
        lines += [f"graph from {self.way}"] if self.way != "torch.fx" else []
        if self.unreached:
            lines.append(f"moved by no group, no output depends on it: {', '.join(self.unreached)}")
        lines += [str(self.proof)] if self.proof is not None else []
        return "\n".join(lines)


def inverse(perms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The permutations (size,) that undo `perms`."""
    return {name: torch.argsort(perm) for name, perm in perms.items()}


def compose(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The permutations (size,) that do `first`, then `second`."""
    return {name: perm[second[name]] for name, perm in first.items()}


def entries(member: Member | Tap, perm: torch.Tensor) -> torch.Tensor:
    """Which entries of the member's axis stand in its places after `perm` (size,): LongTensor (size·block,)."""
    inner = torch.arange(member.block, device=perm.device)
    if member.starts is not None:
        return (torch.tensor(member.starts, device=perm.device)[perm][:, None] + inner).flatten()
    return (member.offset + perm[:, None] * member.block + inner).flatten()


def permute(
    state: Mapping[str, torch.Tensor], groups: Mapping[str, Group], perms: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A state dict whose units are reordered: unit perm[i] takes place i. Computes the same function.

    Args:
        state: name → tensor; it is not changed. What `load_state_dict` reads beside it (`_metadata`) is kept.
        perms: {group: LongTensor (size,)}; a group that is absent stays as it is.

    Raises:
        SymmetryError: an entry of `perms` names no group or is no permutation of its units.
    """
    moved = copy.copy(state) if hasattr(state, "_metadata") else dict(state)
    own: set[str] = set()  # tensors that are new, and may be written into
    for name, perm in perms.items():
        if name not in groups:
            raise SymmetryError(f"there is no group '{name}'; groups: {', '.join(groups)}")
        group = groups[name]
        _check_permutation(name, perm, group.size)
        for member in group.members:
            tensor, axis = moved[member.tensor], member.axis
            order = perm.to(tensor.device)
            units = (group.size, member.block)
            if member.tensor not in own:
                own.add(member.tensor)
                whole = member.starts is None and tensor.shape[axis] == group.size * member.block
                if member.rows is None and whole:
                    part = tensor.unflatten(axis, units).index_select(axis, order)
                    moved[member.tensor] = part.flatten(axis, axis + 1)
                    continue
                tensor = moved[member.tensor] = tensor.clone()
            part = tensor[slice(*member.rows)] if member.rows else tensor
            if member.starts is not None:
                places, moves = entries(member, torch.arange(group.size)), entries(member, perm.cpu())
                part.index_copy_(axis, places.to(tensor.device), part.index_select(axis, moves.to(tensor.device)))
                continue
            part = part.narrow(axis, member.offset, group.size * member.block).unflatten(axis, units)
            # In pieces along another axis: new memory for all of a large tensor costs more than the move itself.
            other = max((a for a in range(part.dim()) if a != axis), key=lambda a: part.shape[a])
            for piece in part.split(max(1, 2**20 * part.shape[other] // max(1, part.numel())), other):
                piece.copy_(piece.index_select(axis, order))
    return moved


def by_tensor(groups: Mapping[str, Group]) -> dict[str, list[tuple[str, Member]]]:
    """{tensor: the groups that permute an axis of it, each with the member that says which}."""
    members: dict[str, list[tuple[str, Member]]] = {}
    for name, group in groups.items():
        for member in group.members:
            members.setdefault(member.tensor, []).append((name, member))
    return members


def _check_permutation(name: str, perm: torch.Tensor, size: int) -> None:
    what = f"perms['{name}'] is no permutation of {size} units"
    if not isinstance(perm, torch.Tensor) or perm.dtype != torch.int64 or perm.shape != (size,):
        got = f"{tuple(perm.shape)} {perm.dtype}" if isinstance(perm, torch.Tensor) else type(perm).__name__
        raise SymmetryError(f"{what}: it is {got.replace('torch.', '')}; accepted: int64 of shape ({size},)")
    if not torch.equal(torch.sort(perm).values.cpu(), torch.arange(size)):
        raise SymmetryError(f"{what}: units repeat or do not exist; accepted: each of 0 … {size - 1} once")
