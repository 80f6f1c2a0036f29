"""All of it in one call: trace, prove, match, align, average, correct."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .. import loaders, matching, models, symmetry
from ..checks import InputError
from .aligned import Aligned, align, read_names, read_shares
from .budgets import Dial, check_budgets
from .corrections import check_images, check_network, correct, read_correction
from .fused import Fused
from .labels import read_labels, united
from .rows import Shared
from .structure import Cost


def fuse(
    networks: Aligned | Sequence[nn.Module],
    *,
    images: Tensor | Iterable | None = None,
    matcher: str = "activation",
    correction: str = "least_squares",
    shares: float | Iterable[float] | None = None,
    example: Tensor | None = None,
    names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
    budget: float | Sequence[float] | None = None,
    cost: Cost = "parameters",
    separate: int | Sequence[str] | None = None,
    labels: Sequence[Sequence[int]] | None = None,
) -> Fused | list[Fused]:
    """One network from several of one architecture.

    Args:
        networks: two or more networks, or one and a budget below 1, which are traced, proved, matched and aligned; or
            `Aligned` ones, which are only averaged and corrected. They may differ in width, if one has as many units as
            any everywhere: the fused network is as wide as that (`symmetry.embed`). Their weights stay as they are;
            they are put on `device` and in evaluation mode.
        images: inputs as the networks take them, a tensor (N, …) or batches of images with or without labels; may be
            left out where neither matcher nor correction looks at any. Labels are never read.
        matcher: of `matching.MATCHERS`, such as "activation", "weight", "graph(restarts=3)".
        correction: of `CORRECTIONS`, such as "none", "bn_reset", "least_squares".
        shares: one a network, that sum to 1; or, of two networks, the second's share; None: all alike.
        example: inputs (N, …), N ≥ 2, to trace with; by default the first of `images`.
        names: what to call the networks in the report and the saved file.
        seed: of the matcher's random orders and restarts.
        budget: how many times one network's cost the fused one may have, up to as many as there are parents: 1 (as by
            default) is a network of the parents' own structure, as many as there are parents are these side by side,
            whose outputs are averaged. Between them the groups of units get what is expected to keep most of that mean
            (`allotment`); below 1 the parents, or one, are pruned. A list gives a list, and shares what it can.
        cost: what a budget counts: "parameters", or "multiply-adds" of one input.
        separate: in place of a budget, how many groups of units, from the first on (from the last on where negative),
            or which ones by name, hold those of each parent apart; all others as many as one parent has.
        labels: where the networks know other classes, those of each in the order of its outputs, such as [[0, 1, 2],
            [2, 3]]: the fused network has an output for each class of any, in order (`labels.calibration`).

    Raises:
        InputError: in one line, whatever of it is not accepted.
        UnsupportedError: the network holds an operation without a rule.
        SymmetryError: a permutation would change what a network computes.
    """
    read_correction(correction)
    if not isinstance(networks, Aligned | list | tuple) or len(networks) < 1:
        raise InputError("fuse takes a list of at least two networks: fuse([a, b], images=images)")
    check_budgets(budget, cost, separate, len(networks))
    if labels is not None and isinstance(networks, Aligned):
        raise InputError("labels are for networks as they were trained; accepted: fuse([a, b], labels=[[…], […]])")
    if not isinstance(networks, Aligned):
        matching.read_matcher(matcher)
        labels = None if labels is None else read_labels(labels, len(networks))
        networks = models.alike(networks, names, widths=True)
        images = None if images is None else loaders.batched(images)
        if example is None:
            if images is None:
                raise InputError("fuse needs inputs to trace with; accepted: images, or example (N, …) with N ≥ 2")
            first = next((loaders.read_batch(batch)[0] for batch in images), None)
            if first is None:
                raise InputError("fuse needs inputs to trace with; images holds no batch")
            example = tuple(part[:2] for part in first) if isinstance(first, tuple) else first[:2]
        # What the correction and the report ask for, now: matching may take minutes.
        if not matching.looks_at_images(matcher):  # else match says so, before it begins
            check_images(correction, images)
        if labels is not None:
            networks = _united(networks, labels, shares, images, example, device)
        wide = symmetry.widest(networks)
        check_network(correction, wide)
        read_shares(len(networks), shares)
        read_names(len(networks), names)
        groups = symmetry.proved(wide, example)
        check_network(correction, wide, groups)
        maps = [groups.identity()]
        if len(networks) > 1:
            maps = matching.match(networks, groups, matcher, images=images, device=device, seed=seed, progress=progress)
        networks = align(networks, groups, maps, names=names)
    options = {"images": images, "device": device, "progress": progress}
    if budget is None and separate is None:
        return correct(networks, shares, correction, **options)
    dial = Dial(networks, networks.shares(shares), images, device)
    structures = [dial.whole(separate)] if budget is None else dial.within(budget, cost)
    shared = Shared() if len(structures) > 1 else None
    fused = [correct(networks, shares, correction, structure=each, shared=shared, **options) for each in structures]
    return fused if isinstance(budget, list | tuple) else fused[0]


def _united(networks, labels, shares, images, example, device) -> list[nn.Module]:
    """`labels.united`, of networks as they were given."""
    if images is None:
        raise InputError("labels of several networks are calibrated on images; give it images")
    batches = [loaders.placed(loaders.read_batch(batch)[0], device) for batch in images]
    networks = [network.to(device).eval() for network in networks]
    return united(networks, labels, read_shares(len(networks), shares), batches, example)
