"""A fused network: its weights, how they came about, and a file of both."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..checks import unwrapped
from .aligned import Aligned
from .card import card, measure
from .structure import Structure


@dataclass(frozen=True)
class Report:
    """How a network was fused; prints as a table.

    `rows`, one a permutation group: "group", "units", "stand" (of another structure than one network's: what the units
    stand for), "moved" (share of the units of the other networks that changed
    place), "unexplained" (share of the layer's target that least squares does not reach) and "single" (share of its
    units that stand for one parent alone), None where there is none.
    """

    heading: str
    rows: list[dict[str, Any]]

    def __str__(self) -> str:
        columns = (
            [name for name in self.rows[0] if any(row[name] is not None for row in self.rows)] if self.rows else []
        )
        body = [columns] + [[self._cell(row[name]) for name in columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*body, strict=True)]
        lines = []
        for first, *others in body:
            cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
            lines.append("  ".join(cells))
        return "\n".join([self.heading, *lines])

    @staticmethod
    def _cell(value: Any) -> str:
        return "—" if value is None else f"{100 * value:.1f} %" if isinstance(value, float) else str(value)


@dataclass(frozen=True, repr=False)
class Fused:
    """A fused network.

    `state`: its state dict, on the CPU; `shares`: of the parents; `correction`: with its options; `info`: what the
    correction reports; `seconds`: that it took; `structure`: None where it is that of one network.

    `torch.save(fused, path)`, and any other pickle, writes its tensors by name and nothing else: no code, and neither
    parents nor structure, which `save` keeps. `torch.load(path, weights_only=True)` gives them back as a state dict,
    which `load` reads, too.
    """

    aligned: Aligned
    shares: tuple[float, ...]
    correction: str
    state: dict[str, Tensor]
    info: Mapping[str, Any]
    seconds: float
    structure: Structure | None = None

    def __repr__(self) -> str:
        return self.report.heading

    def __reduce__(self) -> tuple[Callable, tuple, dict | None, None, Iterable]:
        tensors = {name: value for name, value in self.state.items() if not models.is_extra(name, value)}
        versions = getattr(self.state, "_metadata", None)
        return OrderedDict, (), {"_metadata": versions} if versions else None, None, iter(tensors.items())

    def __copy__(self) -> "Fused":
        return replace(self)

    def __deepcopy__(self, memo: dict) -> "Fused":
        return replace(self, **{each.name: copy.deepcopy(getattr(self, each.name), memo) for each in fields(self)})

    def model(self) -> nn.Module:
        """The fused network as an ordinary module on the CPU, in evaluation mode; a new one at each call."""
        blank = copy.deepcopy(self.aligned.model) if self.structure is None else self.structure.module()
        return models.load_state(blank, self.state).eval()

    def _stand(self, group: str) -> str:
        """What the units of a group of another structure than one network's stand for."""
        if group in self.structure.separate:
            return "each parent's, apart"
        chosen = self.info.get("units", {}).get(group)
        return "means" if chosen is None else " + ".join(map(str, chosen["single"])) + " chosen"

    @property
    def report(self) -> Report:
        """How it was fused, group by group."""
        layers, units = self.info.get("layers", {}), self.info.get("units", {})
        rows = []
        for name, group in self.aligned.groups.items():
            still = torch.arange(group.size)
            others = [perms[name] for perms in self.aligned.maps[1:] if name in perms]
            moved = [float((perm.cpu() != still).double().mean()) for perm in others]
            chosen = units.get(name)
            rows.append(
                {
                    "group": name,
                    "units": group.size if self.structure is None else self.structure.count(name),
                    "stand": None if self.structure is None else self._stand(name),
                    "moved": sum(moved) / len(moved) if moved else 0.0,
                    "unexplained": layers.get(name),
                    "single": sum(chosen["single"]) / group.size if chosen and self.structure is None else None,
                }
            )
        shares = " + ".join(
            f"{share:.3g} · {p['name']}" for share, p in zip(self.shares, self.aligned.parents, strict=True)
        )
        how = f"matching: {self.aligned.matcher}, {self.aligned.match_seconds:.1f} s"
        how += f"; correction: {self.correction}, {self.seconds:.1f} s"
        return Report(f"{type(self.aligned.model).__name__} = {shares} ({how})", rows)

    def sidecar(self) -> dict[str, Any]:
        """What stands beside the saved file: the parents, and how they were fused."""
        return {
            "fused": {
                "parents": self.aligned.parents,
                "shares": list(self.shares),
                "matcher": self.aligned.matcher,
                "correction": self.correction,
                "groups": {
                    name: group.size if self.structure is None else self.structure.count(name)
                    for name, group in self.aligned.groups.items()
                },
                "layers": self.info.get("layers", {}),
                "images": self.info.get("images", 0),
            }
            | ({} if self.structure is None else {"structure": self.structure.as_dict()})
        }

    def save(self, path: str | Path) -> Path:
        """Writes the weights as safetensors to `path`, and as JSON beside it the parents and how they were fused.

        Raises:
            InputError: the name does not end in .safetensors, a weight is not finite, or the disk refuses.
        """
        path = Path(path)
        models.save_checkpoint(path, self.state, self.sidecar())
        return path

    def publish(
        self,
        path: Path,
        measures: Mapping[str, Any] | None,
        *,
        data: str,
        images: str,
        checkpoints: Sequence[models.Checkpoint],
        **more: Any,
    ) -> Path:
        """Writes what `save` does, and its card as Markdown beside it.

        Args:
            measures: what `measure` gave; `data`: what the labelled images are.
            images: what the images are that matcher and correction looked at.
            checkpoints: the parents' files.
            more: further entries of the sidecar, such as spec and dataset.
        """
        sidecar = self.sidecar() | more | ({} if measures is None else {"measured": dict(measures) | {"on": data}})
        rows = [
            {
                "file": parent.path.name,
                "SHA-256 of the file": parent.sha256,
                "trained on": str(parent.sidecar.get("dataset") or ""),
            }
            for parent in checkpoints
        ]
        text = self.card(measures, title=path.name, data=data, images=images, parents=rows)
        models.save_checkpoint(path, self.state, sidecar, text)
        return path

    def measure(self, test: Iterable, **options: Any) -> dict[str, Any]:
        """What it, its parents and their ensemble reach on labelled images: see `card.measure`."""
        return measure(self, test, **options)

    def card(self, measures: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Its card, Markdown: `fused.card(fused.measure(test), data="MNIST, test images")`. See `card.card`."""
        return card(self, measures, **options)


def load(path: str | Path | models.Checkpoint, model: nn.Module) -> nn.Module:
    """A network that `Fused.save` or torch.save wrote, in evaluation mode on the CPU; of `save` whatever its structure.

    Args:
        path: of the file, or what `models.read_checkpoint` gave.
        model: any network of the parents' architecture; it is not changed.

    Raises:
        InputError: there is no such file, or it is of another architecture.
    """
    checkpoint = path
    if not isinstance(path, models.Checkpoint):
        checkpoint = models.read_checkpoint(models.find_checkpoint(str(path)))
    structure = checkpoint.sidecar.get("fused", {}).get("structure")
    network = copy.deepcopy(unwrapped(model)).cpu()
    if structure is not None:
        own = network.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.state.items() if name in own}
        network = models.resized(network, shapes, structure["blocks"], structure["heads"])
    return models.load_state(network, checkpoint.state, str(checkpoint.path)).eval()
