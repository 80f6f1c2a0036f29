"""The card of a fused network, a page: its parents, how it was fused, what it reaches, what was proved, its limits."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from .. import models
from ..checks import InputError, check_choice
from .heads import joint_logits, mean_log_probabilities
from .structure import COSTS

if TYPE_CHECKING:
    from .fused import Fused

Mean = Literal["probabilities", "outputs"]


def measure(
    fused: "Fused", test: Iterable, *, device: torch.device | str = "cpu", mean: Mean = "probabilities"
) -> dict[str, Any]:
    """What a fused network, each of its parents and their ensemble reach on labelled images.

    Args:
        test: batches of (images (B, …), labels (B,)), as `models.outputs` reads them.
        mean: what the ensemble is the share-weighted mean of: probabilities; or outputs, as of networks that know other
            classes (`labels.calibration`).

    Returns:
        {"images": how many; "mean"; "fused": {"accuracy": a fraction, "loss": mean cross-entropy, nats}, "ensemble":
        likewise, "parents": a list of these}.

    Raises:
        InputError: as `models.outputs`; another `mean`.
    """
    check_choice("mean", mean, ("probabilities", "outputs"))
    own, labels = models.outputs(fused.model(), test, device=device)
    logits = [models.outputs(parent, test, device=device)[0] for parent in _parents(fused)]
    used = [(each, share) for each, share in zip(logits, fused.shares, strict=True) if share]
    average = mean_log_probabilities if mean == "probabilities" else joint_logits
    ensemble = average(*zip(*used, strict=True))

    def reached(outputs: torch.Tensor) -> dict[str, float]:
        accuracy, loss, *_ = models.score(outputs, labels)
        return {"accuracy": accuracy, "loss": loss}

    return {
        "images": len(labels),
        "mean": mean,
        "fused": reached(own),
        "ensemble": reached(ensemble),
        "parents": [reached(each) for each in logits],
    }


def _parents(fused: "Fused") -> Iterable[nn.Module]:
    """The parents as they were aligned, which compute what they did."""
    network = copy.deepcopy(fused.aligned.model)
    for state in fused.aligned.states:
        yield models.load_state(network, state)


def card(
    fused: "Fused",
    measures: Mapping[str, Any] | None = None,
    *,
    title: str = "A fused network",
    data: str = "labelled images",
    images: str = "",
    parents: Sequence[Mapping[str, str]] | None = None,
) -> str:
    """The card of a fused network, as Markdown.

    Args:
        measures: what `measure` gives; without it the card says that nothing was measured.
        title: its heading.
        data: what the labelled images are.
        images: what the images are that matcher and correction looked at.
        parents: {heading: cell} of whatever else the table of parents is to say, one a parent.

    Raises:
        InputError: there are more or fewer `parents` than networks.
    """
    aligned = fused.aligned
    if parents is not None and len(parents) != len(aligned):
        raise InputError(f"{len(aligned)} networks and {len(parents)} rows of parents; accepted: one a network")
    rows = [
        {"parent": parent["name"], "share": f"{share:.3g}"} | dict(more) | {"SHA-256 of its weights": parent["sha256"]}
        for parent, share, more in zip(aligned.parents, fused.shares, parents or [{}] * len(aligned), strict=True)
    ]
    parts = [f"# {title}", f"{fused.report.heading}."]
    parts += ["## Parents", _table(rows), "## How it was fused", "\n".join(_how(fused, images))]
    parts += ["## What it reaches", *_reached(fused, measures, data)]
    parts += ["## What was proved", _proved(fused), "## Group by group", f"```text\n{_body(fused)}\n```"]
    parts += ["## Limits", "\n".join(f"- {line}" for line in _limits(fused, measures))]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, ["---"] * len(columns), *([str(row.get(name) or "—") for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _how(fused: "Fused", images: str) -> list[str]:
    lines = [f"- matcher: `{fused.aligned.matcher}`, {fused.aligned.match_seconds:.1f} s"]
    lines += [f"- correction: `{fused.correction}`, {fused.seconds:.1f} s"]
    lines += [f"- images: {images or 'not said'}; no labels were read"]
    if fused.structure is None:
        return [*lines, "- structure: that of one network, at its cost"]
    told = fused.structure.as_dict()
    costs = " and ".join(f"{told[kind]:.3g} times its {kind}" for kind in COSTS)
    apart = ", ".join(f"`{name}`" for name in told["separate"]) or "none"
    return [*lines, f"- structure: against one network {costs}; groups in which the parents stay apart: {apart}"]


def _reached(fused: "Fused", measures: Mapping[str, Any] | None, data: str) -> list[str]:
    if measures is None:
        return ["Nothing was measured: no labelled images were given."]
    names = [parent["name"] for parent in fused.aligned.parents]
    every = [("**fused**", measures["fused"]), *zip(names, measures["parents"], strict=True)]
    if len(names) > 1:
        every.append((f"ensemble: the mean of the parents' {measures['mean']}", measures["ensemble"]))
    rows = [
        {"network": name, "accuracy, %": f"{100 * each['accuracy']:.2f}", "loss, nats": _number(each.get("loss"))}
        for name, each in every
    ]
    better = max(each["accuracy"] for each in measures["parents"])
    points = 100 * (measures["fused"]["accuracy"] - better)
    which = "its better parent" if len(names) == 2 else "its best parent" if len(names) > 2 else "its parent"
    where = (
        f"{abs(points):.2f} points {'above' if points > 0 else 'below'} {which}" if points else f"level with {which}"
    )
    return [f"On {data}, {measures['images']:,} of them:", _table(rows), f"It is {where} on them."]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _proved(fused: "Fused") -> str:
    proof = fused.aligned.groups.proof
    said = f"On a copy with random weights: {proof}." if proof is not None else "The groups came without a proof."
    return (
        f"{said}\nEach parent's reordering was proved on its own weights to leave its outputs as they were, before "
        "anything was averaged. Of the fused network nothing is proved: what it reaches is measured."
    )


def _body(fused: "Fused") -> str:
    _, _, body = str(fused.report).partition("\n")
    return body or "no groups"


def _limits(fused: "Fused", measures: Mapping[str, Any] | None) -> list[str]:
    lines = [f"One set of {len(fused.aligned)} networks: a difference of its accuracies has no interval."]
    if measures is None:
        lines = ["How good it is is not known: measure it before it is used."]
    if fused.info.get("images"):
        lines.append(
            f"Its weights or statistics were fitted to {fused.info['images']:,} images, without labels; on images of "
            "another kind they may be off."
        )
    layers = {name: value for name, value in fused.info.get("layers", {}).items() if value is not None}
    if layers:
        worst = max(layers, key=layers.__getitem__)
        lines.append(
            f"Of the target of `{worst}`, the worst of its layers, {100 * layers[worst]:.1f} % is not reached."
        )
    if unseen := getattr(fused.aligned.groups.proof, "unseen", ()):
        lines.append(
            f"{len(unseen)} members of groups are not seen by the outputs, and the proof says nothing of them."
        )
    lines.append(
        "What the parents do not know or do wrong, it may do wrong too; nothing else than the above was looked at."
    )
    return lines
