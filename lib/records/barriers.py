"""How far fused networks fall below their parents.

Of the points of a record as of those of a fresh path, and without torch: figures are rebuilt from records by the same
functions.
"""

import math
from collections.abc import Mapping, Sequence

METRICS = ("train_accuracy", "train_loss", "test_accuracy", "test_loss")


def _shares(point: Mapping) -> Sequence[float]:
    return point.get("shares") or (1 - point["alpha"], point["alpha"])


def _on_line(point: Mapping, values: Sequence[float]) -> float:
    """The share-weighted mean of the parents' values at a point."""
    return sum(share * value for share, value in zip(_shares(point), values, strict=True))


def _drops(points: Sequence[Mapping], parents: Mapping[str, Mapping], metric: str) -> list[float] | None:
    """How far each point falls below the line between the parents (of a loss: lies above it); None where something was
    not measured or is no number."""
    ends = [measures.get(metric) for measures in parents.values()]
    if any(value is None or math.isnan(value) for value in (*ends, *(point.get(metric) for point in points))):
        return None
    sign = 1 if metric.endswith("accuracy") else -1
    return [sign * (_on_line(point, ends) - point[metric]) for point in points]


def barrier(points: Sequence[Mapping], parents: Mapping[str, Mapping]) -> dict[str, float | None]:
    """How far the path falls below the line between the parents, for each metric; None where no path was measured
    (fewer than three points), or something is no number.

    For an accuracy the maximum over the path of the share-weighted mean of the parents − curve, for a loss of curve −
    that mean: larger is worse. The parents are uncorrected whatever the correction, and the ends of the path, so it is
    never below 0.

    Args:
        points: with "alpha", the share of the second of two parents, or with "shares", one a parent.
        parents: measures by name, in the order of the networks.
    """
    drops = {metric: _drops(points, parents, metric) if len(points) > 2 else None for metric in METRICS}
    return {metric: None if each is None else max(0.0, *each) for metric, each in drops.items()}


def drop(points: Sequence[Mapping], parents: Mapping[str, Mapping]) -> dict[str, float | None]:
    """The parents' mean less the network fused of equal shares (of a loss the other way round), for each metric: larger
    is worse, and below 0 it is better than they are. None where the midpoint was not measured.

    Args: as in `barrier`.
    """
    middle = [point for point in points if _is_middle(point)]
    drops = {metric: _drops(middle, parents, metric) for metric in METRICS}
    return {metric: each[0] if each else None for metric, each in drops.items()}


def _is_middle(point: Mapping) -> bool:
    shares = _shares(point)
    return max(shares) - min(shares) < 1e-6
