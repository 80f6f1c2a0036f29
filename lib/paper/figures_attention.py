"""Pictures of attention: what matched heads look at, and how alike two residual streams are before and after a
matching."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import pool
from .names import MATCHERS, look, ranked, rung_label
from .style import Drawn, PaperFigure, panels, styled

Arrays = Mapping[str, Any]


@styled
def heads(
    patterns: Mapping[str, Arrays],
    perms: Mapping[str, Arrays],
    record: Mapping[str, Any],
    columns: int | None = None,
    moved: str = "B",
) -> Drawn:
    """The mean attention patterns of A's heads of a layer, and under each those of the head of B that takes its place,
    by the first matcher that moved them.

    Args:
        patterns: {"a", "b": {group of heads: (heads, L, L)}}, each network in its own order.
        moved: what B is called.
        perms: {matcher: {group: (n,)}}.
        columns: two from three heads on by default.
    """
    (group, of_a), of_b = next(iter(patterns["a"].items())), next(iter(patterns["b"].values()))
    matcher = next((m for m in ranked(perms, MATCHERS) if m != "none" and group in perms[m]), None)
    perm = np.arange(len(of_a)) if matcher is None else np.asarray(perms[matcher][group])
    count = len(of_a)
    wide = columns or (1 if count < 3 else 2)
    figure = PaperFigure(
        wide, (0.75 if wide > 1 else 1.3) + 2 * 0.92 * (3.2 if wide == 2 else 3.0) * wide / count, layout="compressed"
    )
    grid = figure.subplots(2, count, squeeze=False)
    for place in range(count):
        pair = [np.asarray(of_a[place], dtype=float), np.asarray(of_b[perm[place]], dtype=float)]
        seen = (pair[0] > 0) | (pair[1] > 0)  # a causal mask is no likeness
        alike = float(np.corrcoef(pair[0][seen], pair[1][seen])[0, 1])
        numbers = (place, int(perm[place]))
        for axes, values, side, number in zip(grid[:, place], pair, ("A", moved), numbers, strict=True):
            axes.imshow(values, cmap="cividis", interpolation="nearest", vmin=0, aspect="equal")
            words = [side, f"head {number + 1}", *([f"r = {alike:.2f}"] if side == moved else [])]
            axes.set_title((", " if wide > 1 else "\n").join(words), fontsize=7 if wide > 1 else 6)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        grid[1, place].set_xlabel("position looked at" if wide > 1 else "looked at")
    for axes in grid[:, 0]:
        axes.set_ylabel("position")
    how = "heads in their own order" if matcher is None else f"heads matched by {look(MATCHERS, matcher).label}"
    return figure, f"{pool.headline(record)}; mean attention of {group}, {how}; bright: much"


@styled
def streams(alike: Mapping[str, Arrays], record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """The absolute correlation of A's units of the residual stream with B's, a panel a matching: |r| near 1 on the
    diagonal is one stream in both. `alike`: {matcher: {group: (d, d)}}, units of B in their new order."""
    matchers = ranked(alike, MATCHERS)
    wide = len(matchers) if columns == 2 else min(2, len(matchers))
    rows = math.ceil(len(matchers) / wide)
    figure = PaperFigure(columns, 0.75 + rows * (7.0 / max(3, wide) if columns == 2 else 1.9), layout="compressed")
    grid = panels(figure, len(matchers), wide)
    for (axes, first, _), matcher in zip(grid, matchers, strict=True):
        values = np.asarray(next(iter(alike[matcher].values())), dtype=float)
        image = axes.imshow(values, cmap="cividis", interpolation="nearest", vmin=0, vmax=1, aspect="equal")
        words = rung_label(matcher).replace(": ", "\n")
        axes.set_title(f"{words}\ndiagonal {values.diagonal().mean():.2f}", fontsize=7)
        axes.set(xticks=[], yticks=[], xlabel="units of network B")
        axes.grid(False)
        if first:
            axes.set_ylabel("units of network A")
    figure.colorbar(image, ax=[axes for axes, _, _ in grid], shrink=0.8, label="|correlation|")
    return (
        figure,
        f"{pool.headline(record)}; correlation of the units of both residual streams, its mean on the diagonal",
    )
