"""Networks with their units in one order: the only thing that can be fused.

`align` permutes each network once and proves that it still computes what it did. What fuses, corrects or measures a
path takes an `Aligned` and nothing else, so that no unaligned state can get into it.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .. import models, symmetry
from ..checks import InputError
from ..symmetry import Groups

State = Mapping[str, Tensor]


class Aligned:
    """Networks of one architecture in one order of units.

    `states`: their state dicts, on the CPU, mapped; `maps`: the maps that were applied, one {group: LongTensor (size,)
    or matrix (size, size)} a network, gains of norms folded first in all of them where one is a matrix that asks for
    it; `groups`; `model`: a network of the architecture, of which only the structure counts; `parents`: for each
    network {"name", "sha256" of its weights as they were given}.
    """

    def __init__(
        self, networks: Sequence[nn.Module], groups: Groups, maps: Sequence[Mapping], names: Sequence[str] | None
    ) -> None:
        if not isinstance(networks, list | tuple) or not networks:
            raise InputError("align takes a list of networks: align([a, b], groups, maps)")
        if len(maps) != len(networks):
            raise InputError(
                f"{len(networks)} networks and {len(maps)} maps; accepted: one map a network, as match gives"
            )
        names = read_names(len(networks), names)
        networks = models.alike(networks, names, widths=True)
        self.groups, self.maps = groups, list(maps)
        hashes = [models.state_sha256(models.state_of(network)) for network in networks]
        networks, _ = symmetry.in_one_width(networks, groups, names)
        self.matcher = next((m.matcher for m in maps if getattr(m, "matcher", "none") != "none"), "none")
        self.match_seconds = sum(getattr(m, "seconds", 0.0) for m in maps)
        self.model = copy.deepcopy(networks[0]).cpu().eval()
        self.states, self.parents = [], []
        folded = symmetry.folded_by(groups, self.maps)  # then all networks are: they are to be averaged
        for name, network, sha256, perms in zip(names, networks, hashes, self.maps, strict=True):
            state = models.fitting(self.model, models.state_of(network), name)
            self.parents.append({"name": name, "sha256": sha256})
            perms = {group: symmetry.completed(each) for group, each in perms.items()}
            if folded or any(_moves(each) for each in perms.values()):
                if groups.example is None:
                    raise InputError("these groups hold no example to prove them with; accepted: groups from trace")
                symmetry.prove(network, groups, groups.example, perms)
                state = symmetry.act(symmetry.fold(state, groups) if folded else state, groups, perms)
            self.states.append(state)

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        return f"Aligned({len(self)} × {type(self.model).__name__}, {self.matcher}, {len(self.groups)} groups)"

    def shares(self, shares: float | Iterable[float] | None = None) -> tuple[float, ...]:
        """One share a network, each in [0, 1], that sum to 1.

        Args:
            shares: as such; or one number, the share of the second of two networks; None: all alike.

        Raises:
            InputError: they are anything else.
        """
        return read_shares(len(self), shares)


def _moves(each: Tensor) -> bool:
    return each.is_floating_point() or not torch.equal(each.cpu(), torch.arange(len(each)))


def read_shares(count: int, shares: float | Iterable[float] | None) -> tuple[float, ...]:
    """`Aligned.shares` of `count` networks."""
    if shares is None:
        return (1 / count,) * count
    if isinstance(shares, int | float):
        if not 0 <= shares <= 1:
            raise InputError(f"alpha {shares} is not within [0, 1]")
        if count != 2:
            raise InputError(f"alpha {shares} is the share of the second of two networks; accepted: {count} shares")
        return 1 - float(shares), float(shares)
    shares = tuple(float(share) for share in shares)
    if len(shares) != count or not all(0 <= share <= 1 for share in shares) or abs(math.fsum(shares) - 1) > 1e-6:
        raise InputError(f"shares {list(shares)} are not accepted; accepted: {count} numbers ≥ 0 that sum to 1")
    return shares


def read_names(count: int, names: Sequence[str] | None) -> list[str]:
    """One name a network, by default by number; InputError where there are more or fewer."""
    names = [f"network {number}" for number in range(1, count + 1)] if names is None else list(names)
    if len(names) != count:
        raise InputError(f"{count} networks and {len(names)} names; accepted: one name a network")
    return names


def align(
    networks: Sequence[nn.Module], groups: Groups, maps: Sequence[Mapping], *, names: Sequence[str] | None = None
) -> Aligned:
    """The networks with their units in one order, each proved to compute what it did.

    Args:
        networks: two or more, or one that is to be pruned, of one architecture, wrapped (DataParallel, torch.compile)
            or not; they are not changed. They may differ in width, if one has as many units as any everywhere; the
            others get units of zeros.
        groups: their groups (`symmetry.trace`).
        maps: {group: LongTensor (size,) or matrix (size, size)} a network, as `matching.match` gives; see
            `symmetry.act`; −1 is a unit of zeros.
        names: what to call the networks in reports; by default by number.

    Raises:
        SymmetryError: a map changes what its network computes.
        InputError: the networks differ in more than their weights (`models.alike`), or there is not one map a network.
    """
    return Aligned(networks, groups, maps, names)


def checked(aligned: object, what: str) -> Aligned:
    """`aligned`, unless it is anything else than an `Aligned`: then InputError."""
    if not isinstance(aligned, Aligned):
        raise InputError(
            f"{what} takes networks in one order, not {type(aligned).__name__}; accepted: align(networks, groups, maps)"
        )
    return aligned


def interpolate(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    """The share-weighted mean of every floating parameter and buffer, running statistics included; integer buffers,
    extra states (`get_extra_state`) and the modules' versions (`_metadata`) come from the first network.

    Args:
        states: aligned state dicts of one architecture.
        shares: one a state; where one of them is 1 the result is exactly that state.

    Raises:
        InputError: a network does not have a parameter of the first, or has it in another shape.
    """
    fused = copy.copy(states[0]) if hasattr(states[0], "_metadata") else dict(states[0])
    for name, first in states[0].items():
        if models.is_extra(name, first) or not first.is_floating_point():
            fused[name] = copy.deepcopy(first)
            continue
        if any(name not in state or state[name].shape != first.shape for state in states):
            raise InputError(f"{name} {tuple(first.shape)} has no counterpart in a network; accepted: one architecture")
        # Not lerp: A + alpha·(B − A) is not B at alpha = 1.
        parts = [(share, state[name].to(first)) for share, state in zip(shares, states, strict=True) if share]
        fused[name] = parts[0][1].clone() if len(parts) == 1 else sum(share * tensor for share, tensor in parts)
    return fused
