"""Groups of units: what they act on, and maps of them, applied, inverted and composed."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

# The maps that a group may allow, each kind holding those before it: permutations; orthogonal matrices M with M·1 = 1,
# which LayerNorm allows; all orthogonal ones; all invertible ones.
KINDS = ("permutation", "centred", "orthogonal", "invertible")


class SymmetryError(Exception):
    """A map of a group changed what the network computes, or is none that the group allows."""


@dataclass(frozen=True)
class Member:
    """One axis of one state-dict tensor that a group permutes: entries offset + i·block + j, j < block, belong to
    unit i; or starts[i] + j, where its units do not follow one another. `rows`, if given, limits it to those entries
    of axis 0 (grouped convolutions). Where units are mapped by a matrix M, entries move with M, those of a `dual`
    member (what reads the units) with the inverse of Mᵀ: for permutations and orthogonal maps the same."""

    tensor: str
    axis: int
    block: int = 1
    offset: int = 0
    rows: tuple[int, int] | None = None
    starts: tuple[int, ...] | None = None
    dual: bool = False


@dataclass(frozen=True)
class Gain:
    """The gain (and bias, if any) of a norm, and the (weight, bias) of each linear layer that reads the norm's output.
    Folded into them, it leaves a norm that treats all directions alike."""

    weight: str
    bias: str | None
    readers: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Tap:
    """Where a group's activations can be read: axis `axis` of graph node `node`, laid out as in `Member`; `at`, if
    given, is another axis and the one entry of it that is read (a head).
    `kind` is "pre_norm" (straight from the layer), "post_norm", "post_relu" or "pattern" (of attention, heads)."""

    node: str
    kind: str
    axis: int
    block: int = 1
    offset: int = 0
    starts: tuple[int, ...] | None = None
    at: tuple[int, int] | None = None


@dataclass(frozen=True)
class Group:
    """One unknown map of `size` units and every place it acts on.

    `kind` says which maps leave what is computed as it is, of `KINDS`. `gains` are those that a matrix needs folded
    first (`fold`); a permutation moves them like all members. Inside the heads of attention, `within` is the group of
    these heads and which of them it is, `role` "qk" or "vo".
    """

    size: int
    members: tuple[Member, ...]
    taps: tuple[Tap, ...] = ()
    kind: str = "permutation"
    gains: tuple[Gain, ...] = ()
    within: tuple[str, int] | None = None
    role: str | None = None


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

    `inside` are the groups of what runs inside the heads of attention, one for the queries and keys of each head and
    one for its values, named after the group of the heads. They are no entries of this mapping: matchers that know
    permutations alone leave them as they are.
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
    inside: Mapping[str, Group] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Group:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def every(self) -> dict[str, Group]:
        """All groups, those of heads before what runs inside them."""
        return {**self.groups, **self.inside}

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
            kind = f"[{group.kind}] " if group.kind != "permutation" else ""
            rows.append((name, str(group.size), kind + ", ".join(places)))
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"{name:<{first}}  {size:>{second}}  {places}" for name, size, places in rows]
        if self.inside:
            sizes = sorted({group.size for group in self.inside.values()})
            kinds = sorted({group.kind for group in self.inside.values()})
            what = f"{len(self.inside)} groups of {' or '.join(map(str, sizes))} units [{', '.join(kinds)}]"
            lines.append(f"inside heads: {what}, such as {next(iter(self.inside))}")
        lines += [f"graph from {self.way}"] if self.way != "torch.fx" else []
        if self.unreached:
            lines.append(f"moved by no group, no output depends on it: {', '.join(self.unreached)}")
        lines += [str(self.proof)] if self.proof is not None else []
        return "\n".join(lines)


Maps = Mapping[str, torch.Tensor]


def every(groups: Mapping[str, Group]) -> Mapping[str, Group]:
    """All groups of `Groups`, those inside heads included; any other mapping as it is."""
    return groups.every if isinstance(groups, Groups) else groups


def inside_name(group: Group, head: int | None = None) -> str:
    """What a group inside heads is called, or that of the same role inside another head."""
    return f"{group.within[0]}.{group.role}[{group.within[1] if head is None else head}]"


def inverse(maps: Maps, groups: Groups | None = None) -> dict[str, torch.Tensor]:
    """The maps that undo `maps`: permutations (size,) int64, or matrices (size, size).

    With maps inside heads and of the heads themselves, `groups` says which belong together.
    """
    heads = {name: _undone(each) for name, each in maps.items() if _within(groups, name) is None}
    rest = {name: _undone(maps[_source(groups, name, heads)]) for name in maps if name not in heads}
    return {name: heads[name] if name in heads else rest[name] for name in maps}


def compose(first: Maps, second: Maps, groups: Groups | None = None) -> dict[str, torch.Tensor]:
    """The maps that do `first`, then `second`: permutations (size,) int64 where both are, else matrices (size, size).

    With maps inside heads and of the heads themselves, `groups` says which belong together: the second map inside the
    head in some place meets the first one of the head that the second permutation brings there.
    """
    both = {}
    for name in dict.fromkeys((*first, *second)) if groups is None else every(groups):
        one, two = first.get(_source(groups, name, second)), second.get(name)
        if one is not None or two is not None:
            both[name] = two if one is None else one if two is None else _product(one, two)
    return both


def _within(groups: Groups | None, name: str) -> tuple[str, int] | None:
    """The heads that a group lies inside of, and which of them it is."""
    return groups.inside[name].within if isinstance(groups, Groups) and name in groups.inside else None


def _source(groups: Groups | None, name: str, maps: Maps) -> str:
    """The group that stands in the place of another before the heads are permuted as in `maps`."""
    heads, place = _within(groups, name) or (None, None)
    return inside_name(groups.inside[name], int(maps[heads][place])) if heads in maps else name


def _undone(each: torch.Tensor) -> torch.Tensor:
    return torch.linalg.inv(each) if each.is_floating_point() else torch.argsort(each)


def matrix(each: torch.Tensor) -> torch.Tensor:
    """A map as a matrix (size, size) float64: row i of a permutation's has its 1 in column perm[i]."""
    return each.double() if each.is_floating_point() else torch.eye(len(each), dtype=torch.float64)[each.cpu()]


def _product(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """`one`, then `two`."""
    if one.is_floating_point() or two.is_floating_point():
        return matrix(two) @ matrix(one)
    return one[two]


def entries(member: Member | Tap, perm: torch.Tensor) -> torch.Tensor:
    """Which entries of the member's axis stand in its places after `perm` (size,): LongTensor (size·block,)."""
    inner = torch.arange(member.block, device=perm.device)
    if member.starts is not None:
        return (torch.tensor(member.starts, device=perm.device)[perm][:, None] + inner).flatten()
    return (member.offset + perm[:, None] * member.block + inner).flatten()


def act(
    state: Mapping[str, torch.Tensor], groups: Mapping[str, Group], maps: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A state dict whose units are mapped, in the order of `maps`. Computes the same function.

    Args:
        state: name → tensor; it is not changed. What `load_state_dict` reads beside it (`_metadata`) is kept.
        groups: as traced; of `Groups`, those inside heads count too. What heads hold is mapped after the heads.
        maps: {group: LongTensor (size,)}: unit perm[i] takes place i; or {group: float (size, size)}, where the group's
            kind allows it: a matrix M, of the kind. A group that is absent stays as it is.

    Raises:
        SymmetryError: an entry of `maps` names no group or is no such map, or a matrix meets a norm whose gain is not
            folded (`fold`).
    """
    groups = every(groups)
    moved = copy.copy(state) if hasattr(state, "_metadata") else dict(state)
    own: set[str] = set()  # tensors that are new, and may be written into
    for name, perm in maps.items():
        if name not in groups:
            raise SymmetryError(f"there is no group '{name}'; groups: {', '.join(groups)}")
        group = groups[name]
        if group.kind != "permutation" and isinstance(perm, torch.Tensor) and perm.is_floating_point():
            _check_matrix(name, perm, group, state)
            _multiply(moved, own, group, perm.double())
            continue
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
    for tensor in own:
        moved[tensor] = moved[tensor].to(state[tensor].dtype)
    return moved


def _multiply(moved: dict[str, torch.Tensor], own: set[str], group: Group, matrix: torch.Tensor) -> None:
    """Maps each member of a group by a matrix, in tensors that become float64."""
    both, gains = (matrix, torch.linalg.inv(matrix).T), {gain.weight for gain in group.gains}
    for member in group.members:
        if member.tensor in gains:
            continue
        if member.tensor not in own or moved[member.tensor].dtype != torch.float64:
            moved[member.tensor] = moved[member.tensor].to(torch.float64, copy=True)
            own.add(member.tensor)
        tensor, count = moved[member.tensor], group.size * member.block
        part = tensor[slice(*member.rows)] if member.rows else tensor
        places = None
        if member.starts is not None:
            places = entries(member, torch.arange(group.size)).to(tensor.device)
            units = part.index_select(member.axis, places)
        else:
            units = part.narrow(member.axis, member.offset, count)
        mapped = units.movedim(member.axis, 0).unflatten(0, (group.size, member.block))
        mapped = torch.tensordot(both[member.dual].to(tensor.device), mapped, 1).flatten(0, 1).movedim(0, member.axis)
        units.copy_(mapped) if places is None else part.index_copy_(member.axis, places, mapped)


def fold(state: Mapping[str, torch.Tensor], groups: Mapping[str, Group]) -> dict[str, torch.Tensor]:
    """A state dict in which the gains of norms are 1 and what they did is done by the layers that read the norms:
    weight · gain, bias + weight · the norm's bias, which is then 0; where a reader has no bias, the norm's becomes
    bias / gain. Computes the same function; then the groups of these gains take matrices.

    Raises:
        SymmetryError: a gain of 0 before a layer without a bias.
    """
    folded = copy.copy(state) if hasattr(state, "_metadata") else dict(state)
    gains = {gain.weight: gain for group in groups.values() for gain in group.gains}
    for gain in gains.values():
        weight = folded[gain.weight].double()
        bias = None if gain.bias is None else folded[gain.bias].double()
        if bool((weight == 1).all()) and (bias is None or not bias.any() or any(b is None for _, b in gain.readers)):
            continue
        carried = bias is not None and all(reader is not None for _, reader in gain.readers)
        for name, reader in gain.readers:
            if carried:
                shift = folded[name].double() @ bias
                folded[reader] = (folded[reader].double() + shift).to(folded[reader].dtype)
            folded[name] = (folded[name].double() * weight).to(folded[name].dtype)
        if bias is not None:
            if not carried and not weight.all():
                raise SymmetryError(f"{gain.weight} has entries of 0, so it cannot be folded into {gain.readers[0][0]}")
            folded[gain.bias] = (
                torch.zeros_like(folded[gain.bias]) if carried else (bias / weight).to(folded[gain.bias])
            )
        folded[gain.weight] = torch.ones_like(folded[gain.weight])
    return folded


def folded_by(groups: Mapping[str, Group], maps: Iterable[Maps]) -> bool:
    """Whether one of some maps is a matrix that needs gains folded first."""
    groups = every(groups)
    matrices = {name for each in maps for name, m in each.items() if m.is_floating_point()}
    return any(groups[name].gains for name in matrices if name in groups)


def by_tensor(groups: Mapping[str, Group]) -> dict[str, list[tuple[str, Member]]]:
    """{tensor: the groups that permute an axis of it, each with the member that says which}."""
    members: dict[str, list[tuple[str, Member]]] = {}
    for name, group in groups.items():
        for member in group.members:
            members.setdefault(member.tensor, []).append((name, member))
    return members


def _check_permutation(name: str, perm: torch.Tensor, size: int) -> None:
    what = f"maps['{name}'] is no permutation of {size} units"
    if not isinstance(perm, torch.Tensor) or perm.dtype != torch.int64 or perm.shape != (size,):
        got = f"{tuple(perm.shape)} {perm.dtype}" if isinstance(perm, torch.Tensor) else type(perm).__name__
        raise SymmetryError(f"{what}: it is {got.replace('torch.', '')}; accepted: int64 of shape ({size},)")
    if not torch.equal(torch.sort(perm).values.cpu(), torch.arange(size)):
        raise SymmetryError(f"{what}: units repeat or do not exist; accepted: each of 0 … {size - 1} once")


def _check_matrix(name: str, matrix: torch.Tensor, group: Group, state: Mapping[str, torch.Tensor]) -> None:
    what, size = f"maps['{name}'] is refused", group.size
    if matrix.shape != (size, size) or not bool(matrix.isfinite().all()):
        raise SymmetryError(f"{what}: {tuple(matrix.shape)}; accepted: finite numbers ({size}, {size})")
    square = matrix.double() @ matrix.double().T
    if group.kind != "invertible" and not torch.allclose(square, torch.eye(size).to(square), atol=1e-6):
        raise SymmetryError(f"{what}: it is not orthogonal; accepted: orthogonal matrices")
    if group.kind == "centred" and not torch.allclose(
        matrix.double().sum(dim=1).cpu(), torch.ones(size).double(), atol=1e-6
    ):
        raise SymmetryError(f"{what}: its rows do not sum to 1; accepted: orthogonal matrices that keep the mean")
    for gain in group.gains:
        if not bool((state[gain.weight] == 1).all()):
            raise SymmetryError(f"{what}: the gain {gain.weight} is not 1; accepted: states from `fold`")
