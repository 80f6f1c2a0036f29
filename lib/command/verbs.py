"""What each verb of the command does."""

import dataclasses
import itertools
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import fusion, loaders, matching, models, paths, symmetry
from ..checks import InputError
from ..fusion import Fused
from ..records import portable, read_arrays, read_record
from . import images, networks
from .networks import Architecture, Parent


def fuse(arguments: Namespace) -> None:
    """Fuses checkpoints; writes weights, sidecar and card."""
    output = _output(arguments)
    given = {
        "shares": _shares(arguments.shares),
        "separate": _separate(arguments.separate),
        "labels": _labels(arguments.labels),
    }
    device = loaders.pick_device(arguments.device)
    matching.read_matcher(arguments.matcher)
    correction, _ = fusion.read_correction(arguments.correction)
    found = networks.parents(arguments)
    if given["labels"] is None and all(parent.labels for parent in found) and len({*map(str, _known(found))}) > 1:
        given["labels"] = _known(found)
    if output.resolve() in [parent.checkpoint.path.resolve() for parent in found]:
        raise InputError(f"--output {output} is one of the parents; accepted: another name")
    for one, two in itertools.combinations(found, 2):
        if one.checkpoint.sha256 == two.checkpoint.sha256:
            raise InputError(f"{one.name} and {two.name} are the same network; accepted: others")
    every = None if given["labels"] is None else sorted({c for each in given["labels"] for c in each})

    wide = max((parent.architecture for parent in found), key=lambda each: each.width)
    shape = _shape(arguments.shape)
    named = {parent.checkpoint.sidecar.get("dataset") for parent in found}
    told = arguments.images or (_one(named) if named <= {*loaders.SOURCES} else None)
    looks = matching.looks_at_images(arguments.matcher) or fusion.CORRECTIONS[correction].images
    looks = looks or arguments.budget is not None or every is not None
    try:
        seen = images.read(told, wide, arguments.count, shape=shape) if told and (looks or arguments.images) else None
    except InputError as error:
        if arguments.images is not None:
            raise
        raise InputError(f"{error}; accepted: --images with another data set, such as mnist-5k, or a file") from None
    test = _test(arguments, told, wide, shape, every)
    if test is not None and test.dataset:  # on the card, too: it says what was measured in these words
        whom = [p.name for p in found if p.checkpoint.has_seen(test.dataset)]
        seen_by = f", on which {' and '.join(whom)} {'were' if whom[1:] else 'was'} trained" if whom else ""
        test = dataclasses.replace(test, what=f"{test.what}{seen_by}")
    example = wide.example() if wide.example() is not None else _random(shape)
    if example is None and seen is None:
        raise InputError("the shape of an input is not known; accepted: --images, or --shape such as 3,32,32")

    fused = fusion.fuse(
        [parent.network for parent in found],
        images=None if seen is None else seen.batches,
        matcher=arguments.matcher,
        correction=arguments.correction,
        example=example if seen is None else None,
        names=[parent.name for parent in found],
        device=device,
        seed=arguments.seed,
        progress=sys.stderr.isatty(),
        budget=arguments.budget,
        cost=arguments.cost,
        **given,
    )
    measures = None
    if test is not None:
        mean = "probabilities" if every is None else "outputs"
        measures = fused.measure(test.batches, device=device, mean=mean)
        if every is not None:
            measures["parents"] = [
                _of_own(parent, known, every, test.batches, device)
                for parent, known in zip(found, given["labels"], strict=True)
            ]
    count = 0 if seen is None else sum(loaders.count(loaders.read_batch(batch)[0]) for batch in seen.batches)
    _refuse_existing(_files(output), arguments.overwrite)  # which may have come meanwhile
    fused.publish(
        output,
        measures,
        data="" if test is None else test.what,
        images="none were looked at" if not count or not looks else f"{count:,} of {seen.what}",
        checkpoints=[parent.checkpoint for parent in found],
        **_architecture(wide, fused),
        **({"dataset": known} if (known := _one(named)) else {}),
    )
    print(fused.report)
    if measures is not None:
        print(_line(measures, [parent.name for parent in found], test.what))
    print(f"wrote {', '.join(str(path) for path in _files(output))}")


def trace(arguments: Namespace) -> None:
    """Prints the groups of a network and their proof."""
    spec, who = {}, "a checkpoint"
    if arguments.networks:
        path = models.find_checkpoint(arguments.networks)
        spec, who = models.read_sidecar(path).get("spec", {}), path.name
    made = networks.architecture(arguments, spec, who)
    example = _random(_shape(arguments.shape))
    if arguments.images:
        if not images.is_file(arguments.images):
            raise InputError(
                f"--images {arguments.images} is no file; accepted: a .npy, .npz, .pt or .safetensors file"
            )
        first = images.read(arguments.images, made, 2).batches[0]
        example, _ = loaders.read_batch(first)
    example = made.example() if example is None else example
    if example is None:
        raise InputError("the shape of an input is not known; accepted: --shape such as 3,32,32, or --images")
    print(symmetry.proved(made.build(), example))


def draw(arguments: Namespace) -> None:
    """Writes the figures of a record."""
    from ..paper import figures, style  # matplotlib takes seconds

    record, arrays = read_record(arguments.record), read_arrays(arguments.record)
    if arguments.kind:
        drawn = {kind: figures.draw(record, kind, arrays) for kind in arguments.kind}
    else:
        drawn = figures.record_figures(record, arrays)
    if not drawn:
        raise InputError(
            f"{portable(arguments.record)} holds nothing that a figure shows; accepted: a record with curves"
        )
    stems = {kind: f"{arguments.record.stem}_{kind}" for kind in drawn}
    folder = arguments.output
    paths.check_writable("--output", folder, folder=True)
    files = [folder / f"{stem}.{end}" for stem in stems.values() for end in ("png", "pdf")]
    _refuse_existing(files, arguments.overwrite)
    for kind, figure in drawn.items():
        style.save_figure(figure, stems[kind], folder)
    print(*(f"wrote {path}" for path in files), sep="\n")


# What was typed -------------------------------------------------------------------------------------------------------


def _numbers(text: str, kind: type, option: str, accepted: str) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text} cannot be read; accepted: {accepted}") from None


def _shares(text: str | None) -> float | list[float] | None:
    if text is None:
        return None
    numbers = _numbers(text, float, "--shares", "numbers that sum to 1, such as 0.5,0.5")
    return numbers[0] if len(numbers) == 1 else numbers


def _separate(text: str | None) -> int | list[str] | None:
    if text is None:
        return None
    return int(text) if re.fullmatch(r"-?\d+", text) else text.split(",")


def _labels(text: str | None) -> list[list[int]] | None:
    if text is None:
        return None
    labels = []
    for part in text.split(";"):
        ranges = [re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", each) for each in part.split(",")]
        if not all(ranges):
            raise InputError(f"--labels {text} cannot be read; accepted: classes of each network, such as 0-4;5,6,7")
        labels.append([c for each in ranges for c in range(int(each[1]), int(each[2] or each[1]) + 1)])
    return labels


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sizes = _numbers(text, int, "--shape", "sizes of one input, such as 3,32,32")
    if min(sizes) < 1:
        raise InputError(f"--shape {text} is not accepted; accepted: sizes of one input, such as 3,32,32")
    return tuple(sizes)


def _random(shape: tuple[int, ...] | None) -> torch.Tensor | None:
    return None if shape is None else torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def _files(output: Path) -> list[Path]:
    return [output.with_suffix(suffix) for suffix in (".safetensors", ".json", ".md")]


def _output(arguments: Namespace) -> Path:
    output = arguments.output.expanduser()
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} is refused: its name does not end in .safetensors")
    _refuse_existing(_files(output), arguments.overwrite)
    paths.check_writable("--output", output.absolute())
    return output


def _refuse_existing(files: Sequence[Path], overwrite: bool) -> None:
    there = [path for path in files if path.exists()]
    if there and not overwrite:
        raise InputError(f"{portable(there[0])} is there already; accepted: another --output, or --overwrite")


def _one(values: set) -> Any:
    """What they all are, None where they differ."""
    return next(iter(values)) if len(values) == 1 else None


# What is said ---------------------------------------------------------------------------------------------------------


def _known(found: Sequence[Parent]) -> list[list[int]]:
    return [parent.labels for parent in found]


def _test(arguments: Namespace, told: str | None, wide: Architecture, shape, every) -> images.Images | None:
    """The labelled images; those of the data set of `told` where none are named and they can be had."""
    if arguments.test == "none" or (arguments.test is None and (told is None or images.is_file(told))):
        return None
    try:
        return images.read(arguments.test or told, wide, arguments.test_count, test=True, shape=shape, classes=every)
    except InputError as error:
        if arguments.test is not None or arguments.images is not None:
            raise
        print(f"not measured: {error}")
        return None


def _of_own(parent: Parent, known: Sequence[int], every: Sequence[int], batches, device) -> dict[str, Any]:
    """The accuracy, over all classes, of a network that knows some of them."""
    hidden = [(batch[0], torch.zeros(len(batch[0]), dtype=torch.int64)) for batch in batches]
    logits, _ = models.outputs(parent.network, hidden, device=device)
    places = torch.tensor([every.index(c) for c in known])
    labels = torch.cat([torch.as_tensor(batch[1]).cpu() for batch in batches])
    return {"accuracy": float((places[logits.argmax(dim=1)] == labels).double().mean())}


def _architecture(wide: Architecture, fused: Fused) -> dict[str, Any]:
    """What the sidecar says of the architecture: a registered one is built from it again, if it then fits."""
    if not wide.registered:
        return {"network": wide.name}
    if fused.structure is None:
        try:
            models.fitting(wide.build(), fused.state)
        except InputError:  # a head of other classes
            return {"network": wide.name}
    return {"spec": wide.spec()}


def _line(measures: dict[str, Any], names: Sequence[str], what: str) -> str:
    every = [("fused", measures["fused"]), *zip(names, measures["parents"], strict=True)]
    every += [("ensemble", measures["ensemble"])] * (len(names) > 1)
    told = ", ".join(f"{name} {100 * each['accuracy']:.2f} %" for name, each in every)
    return f"accuracy on {what} ({measures['images']:,}): {told}"
