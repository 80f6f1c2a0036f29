"""Names for people."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..records import curve_key

MATCHER_LABELS = {
    "none": "no matching",
    "activation": "activations",
    "weight": "weights",
    "sinkhorn": "Sinkhorn",
    "graph_reference": "graph, as published",
    "graph_sm": "graph, spectral",
    "graph": "graph, two-sided",
}
CORRECTION_LABELS = {
    "none": "no correction",
    "bn_reset": "BN reset",
    "repair": "REPAIR",
    "rescale": "rescale",
    "closed_form": "closed form",
    "least_squares": "least squares",
}
REFERENCE_LABELS = {
    "ensemble": "ensemble (two networks)",
    "one_parent": "one parent only",
    "parent_a": "parent A",
    "parent_b": "parent B",
}


def model_label(model: Mapping[str, Any]) -> str:
    """{"name": "vgg11", "width": 0.125, "norm": "batch"} -> "VGG11-BN ×1/8"."""
    names = {"simplenet": "SimpleNet", "mlp": "MLP", "resnet20": "ResNet20"}
    name = names.get(model["name"], model["name"].upper())
    norm = {None: "", "none": "", "batch": "-BN"}.get(model.get("norm"), f"-{model.get('norm')}")
    width = width_label(model.get("width", 1.0))
    return f"{name}{norm}" + ("" if width == "1" else f" ×{width}")


def width_label(width: float) -> str:
    """0.125 -> "1/8", 2.0 -> "2", 0.3 -> "0.3"."""
    exact = Fraction(width).limit_denominator(16)
    return str(exact) if exact == Fraction(width) else f"{width:g}"


def curve_name(curve: Mapping[str, Any]) -> str:
    """The curve in the words a user types: "activation + bn_reset"."""
    matcher, correction, variant = curve_key(curve)
    name = matcher if correction == "none" else f"{matcher} + {correction}"
    return f"{name} ({variant})" if variant else name


def curve_label(curve: Mapping[str, Any]) -> str:
    """The curve in the words of a paper: "activations + BN reset"."""
    matcher, correction, variant = curve_key(curve)
    label = MATCHER_LABELS.get(matcher, matcher)
    if correction != "none":
        label += f" + {CORRECTION_LABELS.get(correction, correction)}"
    return f"{label} ({variant})" if variant else label
