"""Networks that know other classes: heads for all classes there are, calibrated against each other on images without
labels, so that the share-weighted mean of the networks' outputs answers for all of them.
"""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .. import symmetry
from ..checks import InputError
from .heads import forward, linear_head

STEPS = 200  # of iterative scaling
SPREAD = 4.0  # the logits' standard deviation at which classes are counted: about that of trained networks


def read_labels(labels: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The classes of each of `count` networks, in the order of its outputs; InputError for anything else."""
    fits = isinstance(labels, list | tuple) and len(labels) == count
    for each in labels if fits else ():
        whole = isinstance(each, list | tuple | range) and all(type(c) is int and c >= 0 for c in each)
        if not whole or not each or len(set(each)) < len(each):
            raise InputError(f"labels {each!r} are not accepted; accepted: the class of each output, once")
    if not fits:
        raise InputError(f"labels {labels!r} are not accepted; accepted: {count} lists of classes, one a network")
    return [list(each) for each in labels]


def union(labels: Sequence[Sequence[int]]) -> list[int]:
    """All classes, in order: those of the fused network's outputs."""
    return sorted({c for each in labels for c in each})


def calibration(
    logits: Sequence[Tensor], labels: Sequence[Sequence[int]], shares: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """How logits (N, its classes) of each of n networks on the same images are brought onto one scale: (factors (n,),
    offsets (n,), weights (n, K)), float64. Class c of all K is answered by Σᵢ weightsᵢc · (factorᵢ · zᵢc + offsetᵢ).

    A network's logits say nothing of classes that it does not know, and two networks' logits do not compare. The factor
    gives all networks' logits one standard deviation over the images, the geometric mean of theirs. The offsets are
    those with which, at a deviation of `SPREAD`, each network's classes are named as often, in mean probability, as
    there are classes: images are taken to be of all classes alike often (the prior that Saerens et al. 2002 correct
    for). But for one scale of all, nothing depends on the scale and level of one network's logits. A class that several
    know is answered by their mean, weighted by shares.
    """
    every = union(labels)
    place = {c: i for i, c in enumerate(every)}
    weights = torch.zeros(len(labels), len(every), dtype=torch.float64)
    answers = torch.zeros(len(labels), len(logits[0]), len(every), dtype=torch.float64)
    spreads = torch.stack([each.double().std().clamp(min=1e-12) for each in logits]).cpu()
    factors = SPREAD / spreads
    for i, (each, known) in enumerate(zip(logits, labels, strict=True)):
        places = [place[c] for c in known]
        weights[i, places] = shares[i] or torch.finfo(torch.float64).tiny
        answers[i][:, places] = factors[i] * each.double().cpu()
    weights /= weights.sum(dim=0)
    offsets, wanted = torch.zeros(len(labels), dtype=torch.float64), weights.sum(dim=1) / len(every)
    for _ in range(STEPS):
        mixed = (weights[:, None] * (answers + offsets[:, None, None])).sum(dim=0)
        named = weights @ mixed.softmax(dim=1).mean(dim=0)
        step = (wanted / named.clamp(min=1e-12)).log()
        offsets += step - step.mean()
        if step.abs().max() < 1e-6:
            break
    scale = spreads.log().mean().exp() / SPREAD
    return scale * factors, scale * offsets, weights


@torch.no_grad()
def united(
    networks: Sequence[nn.Module], labels: Sequence[Sequence[int]], shares: Sequence[float], batches: Iterable, example
) -> list[nn.Module]:
    """Copies of the networks with an output for every class of any, of which the share-weighted mean is calibrated
    (`calibration`): of a class that a network does not know it says 0.

    Args:
        networks: of one architecture but for widths and outputs (`models.alike`), in evaluation mode, on one device,
            ending in a linear layer of its own.
        batches: of images on that device.
        example: to trace with.

    Raises:
        InputError: a network has another number of outputs than `labels` say, or ends in something else.
    """
    every, (*_, head) = union(labels), linear_head(networks[0], symmetry.trace(networks[0], example))
    for number, (network, known) in enumerate(zip(networks, labels, strict=True), start=1):
        outputs = network.get_submodule(head).out_features
        if outputs != len(known):
            raise InputError(f"network {number} has {outputs} outputs, and labels for {len(known)}; accepted: one each")
    if 0 in shares:
        raise InputError(f"shares {list(shares)} leave a network out; accepted with labels: shares > 0")
    factors, offsets, weights = calibration([forward(net, batches)[0] for net in networks], labels, shares)
    found = []
    for i, (network, known) in enumerate(zip(networks, labels, strict=True)):
        layer = network.get_submodule(head)
        places = torch.tensor([every.index(c) for c in known])
        new = nn.Linear(layer.in_features, len(every), True, layer.weight.device, layer.weight.dtype)
        scale = (weights[i, places] / shares[i]).to(layer.weight)
        bias = torch.zeros(len(known)).to(layer.weight) if layer.bias is None else layer.bias
        new.weight.zero_()[places] = scale[:, None] * factors[i].to(scale) * layer.weight
        new.bias.zero_()[places] = scale * (factors[i].to(scale) * bias + offsets[i].to(scale))
        copied = copy.deepcopy(network)
        copied.set_submodule(head, new)
        found.append(copied.eval())
    return found
