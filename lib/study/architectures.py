"""Which architectures can be fused: `python -m lib.study.architectures` traces and proves torchvision's and timm's.

Every classification model of torchvision that is built within 5 seconds and proved within 8 GB, and a list of timm's
where that is installed, with random weights: the proof draws its own. `paper.figures_architectures` draws the record.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from .. import paths, symmetry
from ..checks import InputError
from ..paper import figures
from ..paper.style import save_figure
from ..progress import tqdm
from ..records import provenance, record, write_record

SECONDS = 5.0  # of the processor, whatever else runs: a model that takes longer to build is left out
MEMORY = 8e9  # and one whose proof takes more bytes
BYTES = 32  # a parameter, at most: the network, and in float64 copies of it and its gradients
SMALL = 64  # pixels, where the model takes images of any size
# One or more of each family of timm that holds no attention, and three that do.
TIMM = (
    "resnetv2_50", "seresnet18", "skresnet18", "resnest14d", "res2net50_14w_8s", "regnetx_002", "mobilenetv3_small_050",
    "efficientnet_lite0", "tf_efficientnetv2_b0", "ghostnet_050", "repvgg_a0", "mobileone_s0", "nfnet_f0",
    "poolformer_s12", "convnext_atto", "convnextv2_atto", "mixer_s32_224", "resmlp_12_224", "dla34", "hrnet_w18_small",
    "cspresnet50", "selecsls42", "dpn68", "xception41", "fastvit_t8",
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s",
)  # fmt: skip

Row = dict[str, Any]


def _torchvision(name: str) -> tuple[nn.Module, int]:
    import torchvision

    # Weights of one model may want images of different sizes; the model as it is built takes the smallest.
    sizes = min(weights.meta["min_size"] for weights in torchvision.models.get_model_weights(name))
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, **options), max(SMALL, *sizes)


def _timm(name: str) -> tuple[nn.Module, int]:
    import timm

    model = timm.create_model(name)
    return model, model.default_cfg["input_size"][-1] if model.default_cfg.get("fixed_input_size") else SMALL


LIBRARIES: dict[str, Callable[[str], tuple[nn.Module, int]]] = {"torchvision": _torchvision, "timm": _timm}


def known() -> dict[str, list[str]]:
    """{library: its models on the list}; timm only where it is installed."""
    import torchvision

    listed = {"torchvision": torchvision.models.list_models(module=torchvision.models)}
    try:
        import timm  # noqa: F401
    except ImportError:
        return listed
    return listed | {"timm": list(TIMM)}


def examined(library: str, name: str) -> Row | None:
    """A model traced and proved: {"library", "model", "parameters", "pixels", "groups", "units", "members", "unseen",
    "trace_seconds", "prove_seconds", "change", "sensitivity", "way", "refused": None or the reason}; None if it takes
    too long to build or too much memory to prove."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = time.process_time()
        model, pixels = LIBRARIES[library](name)
        if time.process_time() - start > SECONDS:
            return None
    example = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    row: Row = {"study": "architectures", "library": library, "model": name, "pixels": pixels}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    if BYTES * row["parameters"] > MEMORY:
        return None
    start = time.perf_counter()
    try:
        groups = symmetry.trace(model.eval(), example)
        traced = time.perf_counter()
        proof = symmetry.prove(model, groups, example)
    except (symmetry.UnsupportedError, symmetry.SymmetryError) as error:
        return row | {"trace_seconds": time.perf_counter() - start, "refused": str(error)}
    return row | {
        "groups": len(groups),
        "units": sum(group.size for group in groups.values()),
        "members": sum(len(group.members) for group in groups.values()),
        "unseen": list(proof.unseen),
        "trace_seconds": traced - start,
        "prove_seconds": time.perf_counter() - traced,
        "change": float(proof),
        "sensitivity": None if math.isnan(proof.sensitivity) else proof.sensitivity,
        "way": groups.way,
        "refused": None,
    }


def rows(names: Iterable[tuple[str, str]], *, progress: bool = True) -> Iterator[Row]:
    """`examined` of each (library, model) that is not left out."""
    bar = tqdm(list(names), desc="architectures", unit="model", disable=not progress, leave=False)
    for library, name in bar:
        bar.set_postfix_str(name)
        if (row := examined(library, name)) is not None:
            yield row


def table(found: Iterable[Row]) -> str:
    """The rows as text, a line a model."""
    frame = pd.DataFrame(found)
    frame["unseen"] = [len(each) if isinstance(each, list) else None for each in frame["unseen"]]
    shown = [
        "library",
        "model",
        "groups",
        "units",
        "members",
        "unseen",
        "trace_seconds",
        "prove_seconds",
        "way",
        "refused",
    ]
    formats = {name: "{:.0f}".format for name in shown[2:6]} | {name: "{:.1f}".format for name in shown[6:8]}
    frame = frame.reindex(columns=shown).fillna({"way": "", "refused": ""})
    frame["refused"] = frame["refused"].str.slice(0, 90)  # the record has the whole reason
    return frame.to_string(index=False, na_rep="", formatters=formats)


def main() -> int:
    """Exit status: 0 done, 2 the input was refused, 130 interrupted."""
    parser = argparse.ArgumentParser(description="Traces and proves architectures of torchvision and timm.")
    parser.add_argument(
        "names", nargs="*", help="models, such as resnet18 or timm/convnext_atto; default: the whole list"
    )
    parser.add_argument("--record", type=Path, default=paths.LOCAL / "architectures" / "architectures.json")
    arguments = parser.parse_args()
    started = datetime.now(UTC)
    try:
        listed = known()
        if "timm" not in listed:
            print(
                "timm is not installed: torchvision's models alone (pip install -e '.[architectures]')", file=sys.stderr
            )
        pairs = [(library, name) for library, names in listed.items() for name in names]
        if arguments.names:
            wanted = [tuple(name.split("/", 1)) if "/" in name else ("torchvision", name) for name in arguments.names]
            if unknown := [f"{library}/{name}" for library, name in wanted if library not in listed or (
                library == "torchvision" and name not in listed["torchvision"])]:  # fmt: skip
                raise InputError(f"unknown model {', '.join(unknown)}; accepted: {', '.join(listed)}/NAME")
            pairs = wanted
        found = list(rows(pairs))
        if not found:
            raise InputError(f"no model was built within {SECONDS:g} s and is small enough for {MEMORY / 1e9:g} GB")
        print(table(found))
        there = {(row["library"], row["model"]) for row in found}
        left = ["/".join(pair) for pair in pairs if pair not in there]
        if left:
            print(f"left out, over {SECONDS:g} s to build or {MEMORY / 1e9:g} GB to prove: {', '.join(left)}")
        origin = provenance({"names": arguments.names, "left_out": left}, None, "cpu", started)
        made = record(experiment="architectures", preset="quick", dataset=None, rows=found, provenance=origin)
        write_record(arguments.record, made)
        if arguments.record.is_relative_to(paths.LOCAL):
            save_figure(figures.draw(made, "architectures"), "architectures", arguments.record.parent)
        print(f"{sum(not row['refused'] for row in found)} of {len(found)} proved; record: {arguments.record}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
