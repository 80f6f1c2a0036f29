"""How alike the units of two networks fire."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .. import loaders, symmetry
from ..checks import InputError, check_choice
from ..progress import tqdm
from ..symmetry import Group, Groups, Tap
from .assignment import check_finite

TAPS = {
    "post_relu": ("pattern", "post_relu", "post_norm", "pre_norm"),
    "post_norm": ("pattern", "post_norm", "pre_norm"),
    "pre_norm": ("pattern", "pre_norm"),
}
KINDS = ("correlation", "covariance", "uncentred", "relative")


def _taps(group: Group, wanted: str) -> list[Tap]:
    """The group's taps of the wanted kind, else of the nearest kind that it has."""
    for kind in TAPS[wanted]:
        if taps := [tap for tap in group.taps if tap.kind == kind]:
            return taps
    return []


def features(value: Tensor, tap: Tap, size: int) -> Tensor:
    """The activations of a group's units in a node's value: float (observations, size), N·H·W observations for a
    feature map (N, C, H, W). A view where the memory layout allows."""
    if tap.at is not None:
        value = value.select(*tap.at)
    value = value.movedim(tap.axis - (tap.at is not None and tap.at[0] < tap.axis), -1)
    if tap.starts is not None:
        part = value[..., symmetry.entries(tap, torch.arange(size)).to(value.device)]
    else:
        part = value[..., tap.offset : tap.offset + size * tap.block]
    if tap.block > 1:
        part = part.unflatten(-1, (size, tap.block)).movedim(-2, -1)
    return part.reshape(-1, size)


def _exact(device: torch.device | str) -> torch.device:
    """Where float64 sums are kept: on the device, but MPS has no float64."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def _sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The sums (2, size) of the units of a and b (K, size), and of their squares."""
    return torch.stack([a.sum(dim=0), b.sum(dim=0)]), torch.stack([(a * a).sum(dim=0), (b * b).sum(dim=0)])


class Moments:
    """Pooled first and second moments of the units of two networks, accumulated in float64 (the products of one
    batch in float32, about its means where these lie far from 0, so that the error is far below the sampling error)."""

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.count = 0
        options = {"dtype": torch.float64, "device": _exact(device)}
        self.sums, self.squares = torch.zeros(2, size, **options), torch.zeros(2, size, **options)
        self.products = torch.zeros(size, size, **options)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Takes in observations (K, size) of both networks."""
        self.count += len(a)
        rest, squares = _sums(a, b)
        mean = rest / len(a)
        # A mean above ten deviations: the error of float32 in this difference is far below a hundredth of it.
        centre = torch.where(mean**2 > 100 * (squares / len(a) - mean**2), mean, 0)
        if centre.any():
            a, b = a - centre[0], b - centre[1]
            rest, squares = _sums(a, b)
        parts = (centre, rest, squares, a.T @ b)
        centre, rest, squares, products = (x.to(self.sums.device).double() for x in parts)
        sums = rest + len(a) * centre
        self.sums += sums
        # From moments about the centre to moments about 0.
        self.squares += squares + centre * (rest + sums)
        self.products += products.addr_(centre[0], rest[1]).addr_(sums[0], centre[1])

    def similarity(self, kind: str, epsilon: float) -> Tensor:
        """(size, size) float64: "correlation", "covariance", "uncentred" (the mean product) or "relative" (the
        covariance over the root of both networks' total variances, so that places of any scale count alike)."""
        mean_a, mean_b = self.sums / self.count
        if kind == "uncentred":
            return self.products / self.count
        covariance = self.products / self.count - torch.outer(mean_a, mean_b)
        # What float32 activations cannot tell from a constant (a deviation of a millionth) varies with nothing.
        square = self.squares / self.count
        constant = square - (self.sums / self.count) ** 2 <= 1e-12 * square
        covariance[constant[0]] = 0
        covariance[:, constant[1]] = 0
        if kind == "covariance":
            return covariance
        variances = (self.squares / self.count - (self.sums / self.count) ** 2).clamp_(min=0)
        if kind == "relative":
            return covariance / variances.sum(dim=1).prod().sqrt().clamp(min=1e-300)
        std_a, std_b = variances.sqrt()
        # A unit that never fires correlates with nothing: the constant keeps 0 / 0 out.
        return covariance / (torch.outer(std_a, std_b) + epsilon)


def activation_similarity(
    model_a: nn.Module,
    model_b: nn.Module,
    groups: Groups,
    batches: Iterable,
    *,
    similarity: str = "correlation",
    tap: str = "post_relu",
    epsilon: float = 1e-4,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Tensor]:
    """How alike the units of two networks fire, for every group from one pass over both (Li et al. 2015).

    One pass is enough: reordering earlier layers reorders a later layer's activations and changes none. A group with
    several taps of the kind (a residual stage) averages over them.

    Args:
        batches: of images (N, …), with or without labels (`loaders.read_batch`).
        similarity: "correlation", "covariance", "uncentred" or "relative" (see `Moments.similarity`).
        epsilon: added to the product of standard deviations; 1e-4 as published, where it also discounts faint units.
        tap: "post_relu", "post_norm" or "pre_norm"; a group without such a tap uses the nearest it has.

    Returns:
        {group: float64 (size, size) on the CPU}, [unit of A, unit of B].

    Raises:
        InputError: no images, a group without activations, or activations that overflow.
    """
    options = {"similarity": similarity, "tap": tap, "epsilon": epsilon, "device": device, "progress": progress}
    return activation_similarities([model_a, model_b], groups, batches, **options)[0, 1]


@torch.no_grad()  # not inference_mode: a network that is moved to the device here stays trainable
def activation_similarities(
    networks: Sequence[nn.Module],
    groups: Groups,
    batches: Iterable,
    *,
    similarity: str = "correlation",
    tap: str = "post_relu",
    epsilon: float = 1e-4,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[tuple[int, int], dict[str, Tensor]]:
    """`activation_similarity` of every two of several networks, {(i, j): …} with i < j, from one pass over all."""
    check_choice("similarity", similarity, KINDS)
    check_choice("tap", tap, tuple(TAPS))
    places: dict[str, list[tuple[str, Tap]]] = {}
    moments: dict[tuple[str, str], dict[tuple[int, int], Moments]] = {}
    pairs = list(itertools.combinations(range(len(networks)), 2))
    for name, group in groups.items():
        if not group.taps:
            raise InputError(
                f"group '{name}' ({group.members[0].tensor}) shows in no activation; accepted: matchers that read "
                "weights, such as 'weight' or 'graph'"
            )
        for place in _taps(group, tap):
            places.setdefault(place.node, []).append((name, place))
            moments.setdefault((name, place.node), {pair: Moments(group.size, device) for pair in pairs})
    for model in networks:
        model.to(device).eval()
    seen = 0
    for batch in tqdm(batches, desc="activations", unit="batch", disable=not progress, leave=False, mininterval=2):
        images = loaders.placed(loaders.read_batch(batch)[0], device)
        seen += loaders.count(images)
        for steps in zip(*(symmetry.walk(model, groups, images) for model in networks), strict=True):
            node = steps[0][0].name
            for name, place in places.get(node, []):
                values = [features(value, place, groups[name].size) for _, value in steps]
                for (i, j), each in moments[name, node].items():
                    each.add(values[i], values[j])
    if not seen:
        raise InputError("matcher 'activation' needs images; accepted: match_images ≥ 1")
    similarities: dict[tuple[int, int], dict[str, Tensor]] = {pair: {} for pair in pairs}
    for name in groups:
        every = [of_pairs for (group, _), of_pairs in moments.items() if group == name]
        for pair in pairs:
            for m in every:
                check_finite(m[pair].squares, name)  # dividing by an infinite deviation would give plain zeros
            each = torch.stack([m[pair].similarity(similarity, epsilon).cpu() for m in every])
            similarities[pair][name] = each.mean(dim=0)
    return similarities
