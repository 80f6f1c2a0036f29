"""How methods and models are called and look: a row a method."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from ..records import curve_key
from .style import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILLION, mark


@dataclass(frozen=True)
class Look:
    """Label of a method; of a matcher or solver the colour of its curve, of a correction the line; the marker is the
    correction's where several are drawn, else the matcher's (`curve_look`)."""

    label: str
    colour: str = GREY
    marker: str = "o"
    line: Any = "-"

    def mark(self, size: float = 4.5, fill: str = "full") -> dict[str, Any]:
        """The options of its line: colour and marker."""
        return {"color": self.colour} | mark(self.marker, size, fill)


MATCHERS = {
    "none": Look("no matching", GREY, "o"),
    "random": Look("random order", "#000000", "d"),
    "activation": Look("activations", BLUE, "s"),
    "weight": Look("weights", ORANGE, "^"),
    "sinkhorn": Look("Sinkhorn", SKY, "v"),
    "graph_reference": Look("graph, as published", PINK, "X"),
    "graph_sm": Look("graph, spectral", VERMILLION, "D"),
    "graph": Look("graph, two-sided", GREEN, "P"),
}
CORRECTIONS = {
    "none": Look("no correction"),
    "temperature": Look("temperature", marker="<", line=(0, (3, 3))),
    "bn_reset": Look("BN reset", marker="s", line=(0, (5, 1.5))),
    "repair": Look("REPAIR", marker="^", line=(0, (5, 1.5, 1, 1.5))),
    "rescale": Look("rescale", marker="v", line=(0, (9, 1.5))),
    "closed_form": Look("closed form", marker="D", line=(0, (5, 1.5, 1, 1.5, 1, 1.5))),
    "least_squares": Look("least squares", marker="P", line=(0, (1, 1.2))),
}
SOLVERS = MATCHERS | {
    "spectral": Look("spectral", VERMILLION, "D"),
    "spectral_symmetric": Look("spectral, symmetric", "#000000", "d"),
    "rrwm": Look("RRWM", PINK, "X"),
    "ipfp": Look("IPFP", GREY, "<"),
    "frank_wolfe": Look("Frank–Wolfe", SKY, "v"),
    "coordinate_descent": Look("coordinate descent", "#A0522D", ">"),
    "softassign": Look("softassign", BLUE, "s"),
    "graph": Look("graph (softassign → descent)", GREEN, "P"),
    "weight": Look("weights (Git Re-Basin)", ORANGE, "^"),
}
# Methods that no table knows.
SPARE = ((GREY, "h"), (PINK, "*"), (BLUE, ">"), (VERMILLION, "p"), ("#000000", "d"))
# Fills of the markers of one method with other options, in the order in which a figure has them.
FILLS = ("full", "none", "left", "bottom", "right", "top")
CONTROLS = {
    "parent_a": "parent A",
    "parent_b": "parent B",
    "parent": "better parent alone",
    "ensemble": "ensemble (two networks)",
    "side_by_side": "side by side, pruned: no matching",
    "half_parent": "half of one parent",
    "head": "one parent's features, new head",
    "untrained_head": "untrained features, new head",
    "self": "a network with itself, permuted",
    "distillation": "distillation (gradient training)",
}
# Networks whose loss is told as perplexity, too: they say of each character of a text what follows it.
TEXTS = ("gpt",)
# What of a matching of transformers is applied, by the options that say so, one after another.
RUNGS = {
    "reach=hidden": "hidden units",
    "reach=heads": "+ heads",
    "reach=inside": "+ inside heads",
    "": "+ stream",
    "maps=orthogonal": "all orthogonal",
}
# Methods that look at training images; weights alone make the others. Records from before a curve said how many it used
# (`images`) are read by these.
LOOK_AT_IMAGES = ("activation", "bn_reset", "repair", "rescale", "closed_form", "least_squares", "temperature")


# How the architectures are written; a class of one's own keeps its spelling.
MODELS = {
    "simplenet": "SimpleNet", "mlp": "MLP", "lenet": "LeNet", "resnet20": "ResNet20", "vit_mnist": "ViT-MNIST",
    "vit_cifar": "ViT-CIFAR", "gpt": "GPT",
} | {f"vgg{layers}": f"VGG{layers}" for layers in (11, 13, 16, 19)}  # fmt: skip


def skew_label(skew: str) -> str:
    """How classes were divided between parents: "dirichlet0.1" -> "Dir(0.1)"."""
    return re.sub(r"^dirichlet([\d.]+)$", r"Dir(\1)", skew)


def circumstances(row: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a kind of pair is called beside others of one network and data set: how the classes were divided and, as far
    as `rows` differ in them, epochs of training and images looked at."""
    words = {"skew": skew_label, "epochs": "{} epochs".format, "correct_images": "{:,} images".format}
    rows = list(rows)
    return [
        said(row[field])
        for field, said in words.items()
        if row.get(field) and (field == "skew" or len({other.get(field) for other in rows}) > 1)
    ]


def base(name: str) -> str:
    """The method of a name with options: "activation(tap=pre_norm)" -> "activation"."""
    return name.partition("(")[0]


def options(name: str) -> str:
    """The options of a name: "activation(tap=pre_norm)" -> "tap=pre_norm"."""
    return name.partition("(")[2].removesuffix(")")


def rung_label(matcher: str) -> str:
    """A matcher of transformers, with how much of it is applied: "activations: + heads"."""
    label, given = look(MATCHERS, base(matcher)).label, options(matcher)
    return label if base(matcher) in ("none", "random") else f"{label}: {RUNGS.get(given, given)}"


def look(table: Mapping[str, Look], name: str) -> Look:
    """The row of a method, its label with the options given: "activations (tap pre_norm)". A name that `table` lacks
    gets a colour and a marker that stay the same from run to run."""
    method, _, options = name.partition("(")
    row = table.get(method) or Look(method, *SPARE[sum(method.encode()) % len(SPARE)])
    return replace(row, label=f"{row.label} ({options[:-1].replace('=', ' ')})") if options else row


def curve_look(matcher: str, correction: str, corrections: Iterable[str]) -> Look:
    """How a curve looks among others: the matcher's colour, the correction's line, and the marker of the correction
    where there is more than one in `corrections`, those of the whole figure, else of the matcher."""
    by_matcher, by_correction = look(MATCHERS, matcher), look(CORRECTIONS, correction)
    several = len(set(map(base, corrections))) > 1
    return replace(by_matcher, marker=(by_correction if several else by_matcher).marker, line=by_correction.line)


def ranked(names: Iterable[str], table: Mapping[str, Look]) -> list[str]:
    """The distinct names, in the order of `table` where it knows them, else as they come, behind."""
    known = list(table)
    return sorted(dict.fromkeys(names), key=lambda n: known.index(base(n)) if base(n) in known else len(known))


def fills(names: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """{names: marker fill}: names that differ in their options alone get different ones."""
    seen: Counter = Counter()
    answer = {}
    for each in dict.fromkeys(names):
        methods = tuple(map(base, each))
        answer[each] = FILLS[seen[methods] % len(FILLS)]
        seen[methods] += 1
    return answer


def file_word(name: str) -> str:
    """The name as part of a file's name: "activation(tap=pre_norm)" -> "activation-tap-pre_norm"."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def model_label(model: Mapping[str, Any]) -> str:
    """{"name": "vgg11", "width": 0.125, "norm": "batch"} -> "VGG11-BN ×1/8"."""
    name = MODELS.get(model["name"], model["name"])
    norms = {None: "", "none": "", "batch": "-BN", "layer": "-LayerNorm", "group": "-GroupNorm"}
    norm = norms.get(model.get("norm"), f"-{model.get('norm')}")
    width = width_label(model.get("width", 1.0))
    return f"{name}{norm}" + ("" if width == "1" else f" ×{width}")


def width_label(width: float) -> str:
    """0.125 -> "1/8", 2.0 -> "2", 0.3 -> "0.3"."""
    exact = Fraction(width).limit_denominator(16)
    return str(exact) if exact == Fraction(width) else f"{width:g}"


def images_of(curve: Mapping[str, Any], given: Mapping[str, int]) -> dict[str, int]:
    """How many training images a record's curve looked at, {"match", "correct"}: as it says itself, else what its
    record's runs were `given` where the method looks at any."""
    if "images" in curve:
        return curve["images"]
    looks = {
        "match": base(curve["matcher"]) in LOOK_AT_IMAGES or "activations=" in curve["matcher"],
        "correct": base(curve["correction"]) in LOOK_AT_IMAGES,
    }
    return {what: given.get(what, 0) if look else 0 for what, look in looks.items()}


def curve_name(curve: Mapping[str, Any]) -> str:
    """The curve in the words a user types: "activation + bn_reset"; a control by its name."""
    if curve.get("control"):
        return curve["control"]
    matcher, correction = curve_key(curve)
    return matcher if correction == "none" else f"{matcher} + {correction}"


def curve_label(curve: Mapping[str, Any]) -> str:
    """The curve in the words of a paper: "activations + BN reset", "control: better parent alone"."""
    if curve.get("control"):
        name, _, options = curve["control"].partition("(")
        label = CONTROLS.get(name, name)
        return f"control: {label}" + (f" ({options[:-1].replace('=', ' ')})" if options else "")
    matcher, correction = curve_key(curve)
    label = look(MATCHERS, matcher).label
    return label if correction == "none" else f"{label} + {look(CORRECTIONS, correction).label}"
