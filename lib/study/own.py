"""A record of what a notebook of one's own has measured."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..checks import InputError
from ..fusion import Curve, read_correction
from ..records import curve_entry, matching_arrays, origin, run_record, write_record


def record(
    curves: Sequence[Curve],
    *,
    dataset: str,
    experiment: str = "own",
    path: str | Path | None = None,
    started: datetime | None = None,
    **parameters: Any,
) -> dict[str, Any]:
    """The run record of one pair: what tables and figures are made from.

    Args:
        curves: of one pair, from `fusion.curve`, each of another matcher or correction.
        dataset: the name of the data that they were measured on.
        experiment: what the record is called.
        path: where to write it as JSON, with the permutations beside it as .npz; by default it is not written.
        started: an aware datetime; the record says the seconds from then on.
        parameters: whatever else is worth keeping.

    Raises:
        InputError: there are no curves, they are of different networks, or not of two networks.
    """
    if not curves or not all(isinstance(curve, Curve) for curve in curves):
        raise InputError("record takes a list of one or more curves, as curve(aligned, alphas, test=test) gives")
    first = curves[0].aligned
    if any([p["sha256"] for p in curve.aligned.parents] != [p["sha256"] for p in first.parents] for curve in curves):
        raise InputError("these curves are of different networks; accepted: curves of one pair")
    if len(first) != 2:
        raise InputError(f"a record holds curves between two networks, these are of {len(first)}; accepted: pairs")
    entries = [
        curve_entry(
            curve.aligned.maps[1], curve.correction, curve.points, curve.barrier,
            correct_seconds=curve.correct_seconds, options=read_correction(curve.correction)[1],
        )
        for curve in curves
    ]  # fmt: skip
    built = run_record.record(
        experiment=experiment,
        preset="own",
        dataset=dataset,
        model={"name": type(first.model).__name__, "width": 1.0, "norm": None},
        seeds={"a": None, "b": None, "match": None},
        checkpoints={
            side: {"file": parent["name"], "sha256": parent["sha256"]}
            for side, parent in zip(("a", "b"), first.parents, strict=True)
        },
        parents=curves[0].parents,
        images={},
        curves=entries,
        provenance=origin.provenance(parameters, None, "cpu", started or datetime.now(UTC)),
    )
    if path is not None:
        by_matcher = {curve.aligned.matcher: curve.aligned.maps[1] for curve in curves}
        write_record(path, built, matching_arrays(*by_matcher.values()))
    return built
