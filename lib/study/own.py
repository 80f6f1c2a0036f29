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
    """The run record of one set of networks: what tables and figures are made from.

    Of two networks it holds "curves"; of more "rows" of the study "curves", one a point with its "shares".

    Args:
        curves: of the same networks, from `fusion.curve`, of two each of another matcher or correction.
        dataset: the name of the data that they were measured on.
        experiment: what the record is called.
        path: where to write it as JSON, of two networks with the permutations beside it as .npz; by default it is not
            written.
        started: an aware datetime; the record says the seconds from then on.
        parameters: whatever else is worth keeping.

    Raises:
        InputError: there are no curves, or they are of different networks.
    """
    if not curves or not all(isinstance(curve, Curve) for curve in curves):
        raise InputError("record takes a list of one or more curves, as curve(aligned, alphas, test=test) gives")
    first = curves[0].aligned
    if any([p["sha256"] for p in curve.aligned.parents] != [p["sha256"] for p in first.parents] for curve in curves):
        raise InputError("these curves are of different networks; accepted: curves of the same ones")
    is_pair, parents = len(first) == 2, curves[0].parents
    what = {"rows": _rows(curves)}
    if is_pair:
        what = {"curves": _entries(curves), "seeds": {"a": None, "b": None, "match": None}}
    built = run_record.record(
        experiment=experiment,
        preset="own",
        dataset=dataset,
        model={"name": type(first.model).__name__, "width": 1.0, "norm": None},
        checkpoints={
            name: {"file": parent["name"], "sha256": parent["sha256"]}
            for name, parent in zip(parents, first.parents, strict=True)
        },
        parents=parents,
        images={},
        provenance=origin.provenance(parameters, None, "cpu", started or datetime.now(UTC)),
        **what,
    )
    if path is not None:
        by_matcher = {curve.aligned.matcher: curve.aligned.maps[1] for curve in curves}
        write_record(path, built, matching_arrays(*by_matcher.values()) if is_pair else None)
    return built


def _entries(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    return [
        curve_entry(
            curve.aligned.maps[1], curve.correction, curve.points, curve.barrier,
            correct_seconds=curve.correct_seconds, options=read_correction(curve.correction)[1],
        )
        for curve in curves
    ]  # fmt: skip


def _rows(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A row a point; "curve" is the number of its curve."""
    return [
        {"study": "curves", "curve": number, "n": len(curve.aligned), "matcher": curve.aligned.matcher,
         "correction": curve.correction, **point}
        for number, curve in enumerate(curves)
        for point in sorted(curve.points, key=lambda point: point["alpha"])
    ]  # fmt: skip
