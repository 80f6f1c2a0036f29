"""figures/CLAIMS.md: what is claimed, each claim beside the control that could have produced its number without the
method, the record it rests on, and the command that would overturn it. The sentences hold no numbers: those come from
the records."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import evidence, pool
from .evidence import Interval
from .hypotheses import AVERAGED, COMPETENT, FUSED, RESET, SIDE_BY_SIDE, spread
from .pool import Records
from .tables import Table

STUDY = "make sweep SWEEP=study"


@dataclass(frozen=True)
class Claim:
    """`curve` − `control` on the same pairs, of the records of the sweep or kind `records`, those whose columns
    (`pool.rows`) are `where`. `sign`: 1 where the claim says more, −1 less, 0 that more is not shown."""

    text: str
    records: str
    curve: str
    control: str
    sign: int
    command: str
    where: Mapping[str, Any] = field(default_factory=dict)

    def among(self, rows: Iterable[pool.Row]) -> list[pool.Row]:
        """Those of `rows` that it speaks of."""
        return [row for row in rows if all(row.get(name) == value for name, value in self.where.items())]

    def measured(self, rows: Iterable[pool.Row]) -> bool:
        """Whether both sides of the claim are there."""
        return {self.curve, self.control} <= {row["curve"] for row in rows}

    def stands(self, difference: Interval, p: float | None) -> str:
        """What the difference says of the claim; `p` is its p value adjusted for all claims in the table. That no
        gain is shown has to hold without the adjustment, which would make it easier."""
        if difference.low is None:
            return "no interval"
        if self.sign == 0:
            return "stands" if difference.low <= 0 else "falls"
        return "stands" if p < 1 - evidence.LEVEL and self.sign * difference.mean > 0 else "falls"


_SIMPLENETS, _TRANSFORMERS = "make sweep SWEEP=simplenet_pairs", "make sweep SWEEP=transformers"
_VIT, _TURNED = {"model": "vit_mnist"}, "activation(maps=orthogonal)"
_GAIN, _LOSS, _NO_GAIN = 1, -1, 0
CLAIMS = (
    Claim(
        "SimpleNet, no image looked at: two-sided graph matching beats plain averaging",
        "simplenet_pairs", "graph", "none", _GAIN, _SIMPLENETS,
    ),
    Claim(
        "… and the published spectral matching",
        "simplenet_pairs", "graph", "graph_reference", _GAIN, _SIMPLENETS,
    ),
    Claim(
        "… but is no better than plain weight matching",
        "simplenet_pairs", "graph", "weight", _NO_GAIN, _SIMPLENETS,
    ),
    Claim(
        "SimpleNet, whose parents saw different digits: their average under graph matching beats the better parent",
        "simplenet_pairs", "graph", "parent", _GAIN, _SIMPLENETS,
    ),
    Claim(
        "… but, with images at hand, is behind a linear layer on the features of an untrained network",
        "simplenet_pairs", "graph", "untrained_head", _LOSS, _SIMPLENETS,
    ),
    *(
        Claim(text.format(width=label), "study", curve, control, sign, STUDY, {"width": width})
        for width, label in ((0.125, "⅛"), (0.25, "¼"), (0.5, "½"))
        for text, curve, control, sign in (
            ("VGG11-BN ×{width}: least squares beats the BatchNorm reset", FUSED, RESET, _GAIN),
            ("VGG11-BN ×{width}: fused, the network is behind its better parent", FUSED, "parent", _LOSS),
            (
                "VGG11-BN ×{width}: where every unit is averaged, matching by activations helps",
                AVERAGED, AVERAGED.replace("activation", "none"), _GAIN,
            ),
            (
                "VGG11-BN ×{width}: with units selected, matching adds to pruning both parents side by side",
                FUSED, "side_by_side", _GAIN,
            ),
            (
                "VGG11-BN ×{width}: both parents' units are used: fused beats half of one parent",
                FUSED, "half_parent", _GAIN,
            ),
        )
    ),
    *(
        Claim(text, "study_skew", COMPETENT, control, sign, STUDY, {"skew": "halves", "width": width})
        for width, label, on_head in ((0.125, "⅛", _NO_GAIN), (0.25, "¼", _GAIN))
        for text, control, sign in (
            (
                f"VGG11-BN ×{label}, each parent saw half of the classes and a tenth of the others: fused beats the "
                "better parent",
                "parent", _GAIN,
            ),
            (
                "… and one parent's features with a new head" if on_head else
                "… but is not shown to beat one parent's features with a new head",
                "head(target=competence)", on_head,
            ),
            ("… but is not shown to beat both parents pruned side by side, unmatched", SIDE_BY_SIDE, _NO_GAIN),
        )
    ),
    *(
        Claim(
            f"VGG11-BN ×{label}, classes divided by Dir({beta}): fused is not shown to beat the head",
            "study_skew", COMPETENT, "head(target=competence)", _NO_GAIN, STUDY,
            {"skew": f"dirichlet{beta}", "width": width},
        )
        for width, label in ((0.125, "⅛"), (0.25, "¼"))
        for beta in ("0.1", "0.5")
    ),
    *(
        Claim(
            f"VGG11-BN ×⅛, {images} images: least squares beats tuned distillation",
            "study_images", FUSED, "distillation", _GAIN, STUDY, {"correct_images": images},
        )
        for images in (250, 500)
    ),
    Claim(
        "ViT on MNIST, averaged: turning the stream and the insides of heads beats permuting them",
        "transformers", _TURNED, "activation", _GAIN, _TRANSFORMERS, _VIT,
    ),
    Claim(
        "… but, refitted by least squares, is not shown to beat no matching",
        "transformers", f"{_TURNED} + least_squares", "none + least_squares", _NO_GAIN, _TRANSFORMERS, _VIT,
    ),
    Claim(
        "… and is behind the better parent",
        "transformers", f"{_TURNED} + least_squares", "parent", _LOSS, _TRANSFORMERS, _VIT,
    ),
)  # fmt: skip


def table(records: Mapping[str, Records], claims: Iterable[Claim] = CLAIMS) -> Table:
    """A row a claim whose records are there, of `records` by the name of their sweep or kind: what is claimed, the
    fused network and the control (%), their difference (points) with its interval, n, its p value by Holm's procedure
    over the table, whether the claim stands by it, the command that would overturn it, records."""
    heads = ["claim", "fused, %", "control", "control, %", "difference, points", "n", "p (Holm)", ""]
    claims = list(claims)
    rows_of = {name: pool.rows(records.get(name, {})) for name in {claim.records for claim in claims}}
    chosen = [(claim, claim.among(rows_of[claim.records])) for claim in claims]
    there = [(claim, rows) for claim, rows in chosen if claim.measured(rows)]
    differences = [evidence.interval(rows, curve=claim.curve, against=claim.control) for claim, rows in there]
    # of all, also where it says that no gain is shown: what a claim says was settled by the same records
    p_values = evidence.holm(difference.p for difference in differences)
    body = []
    for (claim, rows), difference, p in zip(there, differences, p_values, strict=True):
        both = set.intersection(*({r["pair"] for r in rows if r["curve"] == c} for c in (claim.curve, claim.control)))
        same = [row for row in rows if row["pair"] in both]
        fused, control = (evidence.interval(same, curve=name).mean for name in (claim.curve, claim.control))
        body.append([
            claim.text, f"{100 * fused:.2f}", f"`{claim.control}`", f"{100 * control:.2f}", spread(difference),
            str(difference.n), "—" if p is None else f"{p:.3g}" if p >= 0.001 else "< 0.001",
            claim.stands(difference, p), f"`{claim.command}`", f"`{claim.records}`",
        ])  # fmt: skip
    return Table([[[*heads, "to overturn it", "records"], *body]])
