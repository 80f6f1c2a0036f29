"""What networks put out, and the linear layers that make it from their features."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, fx, nn

from .. import loaders, symmetry
from ..checks import InputError
from ..symmetry import Groups
from .affine import at_least_float32

Target = Literal["mean", "competence", "ensemble"]


def linear_head(model: nn.Module, groups: Groups) -> list[str]:
    """The linear layers, by name in order, that make the outputs: the last one, and those before it with nothing
    between them unless one has fewer units than there are outputs. Together they can be any one linear layer.

    Raises:
        InputError: something else makes the outputs, or the last layer's weights are used elsewhere, too.
    """
    modules = dict(model.named_modules())
    used = Counter(layer.weight for layer in groups.layers)
    tied = symmetry.shared(model)  # a head that is the embedding, too
    alone = [layer for layer in groups.layers if used[layer.weight] == 1 and layer.weight not in tied]
    linear = {layer.name for layer in alone if layer.kind == "linear"}
    (output,) = (node for node in groups.graph.nodes if node.op == "output")
    node, head = output.args[0], []
    while isinstance(node, fx.Node) and node.op == "call_module" and len(node.users) == 1:
        if node.target in linear:
            head.insert(0, node.target)
        elif not isinstance(modules[node.target], nn.Identity | nn.Dropout):
            break
        node = node.args[0]
    if not head:
        raise InputError(
            f"the outputs of {type(model).__name__} are not made by a linear layer of their own; accepted: a network "
            "that ends in one"
        )
    classes = modules[head[-1]].out_features
    return head if min(modules[name].out_features for name in head) >= classes else head[-1:]


@torch.no_grad()
def write_head(layers: Sequence[nn.Linear], weight: Tensor, bias: Tensor | None) -> None:
    """Makes the layers of a `linear_head` compute weight (classes, features) and bias (classes,) together: the first
    holds the weight, those behind it hand its units on."""
    for layer in layers:
        layer.weight.copy_(torch.eye(*layer.weight.shape))
        if layer.bias is not None:
            layer.bias.zero_()
    layers[0].weight.zero_()[: len(weight)] = weight.to(layers[0].weight)
    if bias is not None:
        last = [layer for layer in layers if layer.bias is not None][-1]
        last.bias[: len(bias)] = bias.to(last.bias)


def ridge_regression(features: Tensor, goal: Tensor, ridge: float, bias: bool) -> tuple[Tensor, Tensor | None]:
    """(weight (outputs, p), bias (outputs,) or None) float64 that bring features (N, p) nearest to a goal (N, outputs).

    The weights are pulled to 0 by ridge · the features' mean sum of squares, the bias is not: features times k make
    weights divided by k.
    """
    x, y = features.double(), goal.double()
    centre, level = (x.mean(dim=0), y.mean(dim=0)) if bias else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
    x, y = x - centre, y - level
    # above 0 for features that are all 0, too
    pull = (ridge * x.square().sum() / x.shape[1]).clamp(min=torch.finfo(torch.float64).tiny)
    wide = len(x) < x.shape[1]  # then the dual problem is the smaller one
    gram = x @ x.mT if wide else x.mT @ x
    gram.diagonal().add_(pull)
    solved = torch.cholesky_solve(y if wide else x.mT @ y, torch.linalg.cholesky(gram))
    weight = (x.mT @ solved if wide else solved).mT
    return weight, level - weight @ centre if bias else None


@torch.no_grad()
def forward(
    model: nn.Module, batches: Iterable[loaders.Images], layer: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Logits (N, classes) over batches of images on the model's device and, if `layer` is given, what that module is
    given (N, features); both at least float32, on the CPU. Of a network that answers at every position each position
    is a row."""

    def rows(value: Tensor) -> Tensor:
        return value.flatten(0, -2).to("cpu", at_least_float32(value.dtype))

    logits: list[Tensor] = []
    features: list[Tensor] = []
    hook = None
    if layer is not None:
        keep = lambda _, given: features.append(rows(given[0]))  # noqa: E731
        hook = model.get_submodule(layer).register_forward_pre_hook(keep)
    try:
        for images in batches:
            # a network may change its input in place
            found = model(*(part.clone() for part in (images if isinstance(images, tuple) else (images,))))
            logits.append(rows(found))
    finally:
        if hook is not None:
            hook.remove()
    return torch.cat(logits), torch.cat(features) if features else None


def mean_log_probabilities(logits: Sequence[Tensor], shares: Sequence[float] | None = None) -> Tensor:
    """Logarithms (N, …, classes) float64 of the mean of the probabilities of networks with these logits, weighted by
    `shares` (by default alike): the ensemble's."""
    # in logarithms, which do not underflow
    logs = torch.stack([each.double().log_softmax(dim=-1) for each in logits])
    weights = logs.new_tensor(shares or [1 / len(logs)] * len(logs))
    return (logs + weights.log().view(-1, *[1] * (logs.dim() - 1))).logsumexp(dim=0)


def joint_logits(logits: Sequence[Tensor], shares: Sequence[float], target: Target = "mean") -> Tensor:
    """What a head is fitted to, from the logits (N, classes) of each parent: their share-weighted mean Σ sᵢ·zᵢ; by
    "ensemble" their `mean_log_probabilities`; or, by "competence", (N, classes) float64 in which a class is answered
    more by the parents that name it often,

        t_c = Σ wᵢc·(zᵢc − ẑᵢ) + Σ sᵢ·ẑᵢ,  wᵢc = sᵢ·∛mᵢc / Σⱼ sⱼ·∛mⱼc,  ẑᵢ = Σ_c ∛mᵢc·zᵢc / Σ_c ∛mᵢc,

    with mᵢc the mean probability that parent i gives class c on the images. A parent that saw few of a class hardly
    names it, and what it says of it is poor: of a class that it never saw its logit is far below the others, and would
    put down in the mean what another parent knows. A parent's logits count from ẑᵢ, its level among the classes it
    names (a softmax does not see levels), which makes those of parents with different classes comparable. For one
    parent alone it is its logits, for parents that name all classes alike often it is the mean.

    Combiners with a weight for each class and classifier are known from the fusion of classifiers (Kuncheva 2004); that
    the weights come from unlabelled predictions, and the power, are of here: chosen of .15 to .5 on held-out images of
    two pairs of each label skew.
    """
    if target == "mean":
        return sum(share * each for share, each in zip(shares, logits, strict=True))
    if target == "ensemble":
        return mean_log_probabilities(logits, shares)
    logits = torch.stack([each.double() for each in logits])
    shares = logits.new_tensor(shares).view(-1, 1, 1)
    named = logits.softmax(dim=2).mean(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny) ** (1 / 3)
    level = (named * logits).sum(dim=2, keepdim=True) / named.sum(dim=2, keepdim=True)
    weights = shares * named
    return (weights / weights.sum(dim=0) * (logits - level) + shares * level).sum(dim=0)


def fit_head(
    model: nn.Module, groups: Groups, batches: Iterable[loaders.Images], goal: Tensor, ridge: float
) -> tuple[list[str], float]:
    """Fits the `linear_head` of `model`, in place, to a goal (N, classes) on its own features of the images by
    `ridge_regression`: (its layers, share of the goal's mean square that is not reached)."""
    names = linear_head(model, groups)
    layers = [model.get_submodule(name) for name in names]
    features = forward(model, batches, names[0])[1]
    weight, bias = ridge_regression(features, goal, ridge, any(layer.bias is not None for layer in layers))
    write_head(layers, weight, bias)
    goal = goal.double()
    missing = goal - features.double() @ weight.mT - (0 if bias is None else bias)
    return names, float(missing.square().sum() / goal.square().sum().clamp(min=torch.finfo(torch.float64).tiny))
