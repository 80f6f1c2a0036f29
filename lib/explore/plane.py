"""The loss plane through three networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from torch import Tensor

from ..checks import InputError
from ..paper.style import SIZES, VERMILLION, Drawn, PaperFigure, mark, styled

State = Mapping[str, Tensor]


FILTERS = 16  # units shown
PALE = "#8C8C8C"


def corners(a: State, b: State, c: State) -> np.ndarray:
    """Where three networks lie in the plane through them (Garipov et al. 2018): float64 (3, 2), the coordinates of a,
    b, c in the orthonormal basis that Gram–Schmidt makes of b − a and c − a, with a at the origin.

    Raises:
        InputError: they lie on a line, so that there is no plane.
    """
    uu = uv = vv = 0.0
    for name, value in a.items():
        if value.is_floating_point():
            u, v = (other[name].double() - value.double() for other in (b, c))
            uu, uv, vv = uu + float((u * u).sum()), uv + float((u * v).sum()), vv + float((v * v).sum())
    height = vv - uv * uv / uu if uu else 0.0
    if height <= 1e-9 * max(uu, vv):
        raise InputError("the three networks lie on a line; accepted: a matcher that moves B, such as activation")
    return np.array([[0.0, 0.0], [uu**0.5, 0.0], [uv / uu**0.5, height**0.5]])


def mix(a: State, b: State, c: State, place: np.ndarray, points: np.ndarray) -> dict[str, Tensor]:
    """The network at `place` (2,) of the plane in which a, b, c lie at `points` (3, 2): an affine mixture of every
    floating parameter and buffer. Variances that would be negative are 0; integer buffers come from a."""
    (s, t) = np.linalg.solve((points[1:] - points[0]).T, place - points[0])
    mixed = {}
    for name, value in a.items():
        if value.is_floating_point():
            total = (1 - s - t) * value.double() + s * b[name].double() + t * c[name].double()
            value = (total.clamp(min=0) if name.endswith("running_var") else total).to(value)
        mixed[name] = value
    return mixed


def nodes(marks: np.ndarray, size: int, margin: float = 0.25) -> np.ndarray:
    """About `size` sorted coordinates from below the least to above the largest of `marks`, every mark one of them."""
    marks = np.unique(marks)
    spread = margin * (marks[-1] - marks[0])
    even = np.linspace(marks[0] - spread, marks[-1] + spread, size)
    step = (even[-1] - even[0]) / max(1, size - 1)
    apart = np.abs(even[:, None] - marks).min(axis=1) > step / 2
    apart[[0, -1]] = True
    return np.sort(np.concatenate([even[apart], marks]))


@dataclass(frozen=True)
class Plane:
    """Accuracy and loss (rows, columns) at the nodes y (rows,), x (columns,) of the plane through three networks, of
    these `names` (of a pair: A, B and aligned B), which lie at `points` (3, 2); `note` says on what and how it was
    measured."""

    names: tuple[str, str, str]
    points: np.ndarray
    x: np.ndarray
    y: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    note: str

    def at(self, corner: int) -> tuple[float, float]:
        """Accuracy and loss of the first (0), second (1) or third (2) network."""
        column, row = (
            np.searchsorted(axis, place) for axis, place in zip((self.x, self.y), self.points[corner], strict=True)
        )
        return float(self.accuracy[row, column]), float(self.loss[row, column])


@styled
def plane_figure(plane: Plane, title: str, shares: Sequence[float], label: str) -> Drawn:
    """Accuracy and loss over the plane (dots: measured); its three networks, the straight paths from the first to the
    others, and, called `label`, the network fused of `shares` of the three."""
    figure = PaperFigure(2, 3.3)
    # A loss of twice a guess among ten classes is as bad as any: above it one colour.
    loss = np.nan_to_num(plane.loss, nan=np.inf, posinf=np.inf).clip(max=2 * np.log(10))
    shown = (
        ("accuracy (%)", 100 * plane.accuracy, np.linspace, "cividis", "{:.0f} %"),
        ("cross-entropy (nats; levels by ratio)", loss, np.geomspace, "cividis_r", "{:.2g}"),
    )
    first, *others = plane.points
    lines = ((0, (3, 2)), "-")
    for index, (what, values, spaced, colours, form) in enumerate(shown):
        axes = figure.add_subplot(1, 2, index + 1)
        low, high = float(values.min()), float(values.max())
        levels = spaced(low, max(high, 1.01 * low, low + 1e-3), 13)
        drawn = axes.contourf(plane.x, plane.y, values.clip(max=levels[-1]), levels=levels, cmap=colours)
        bar = figure.colorbar(drawn, ax=axes, pad=0.02, ticks=levels[::3], shrink=0.85)
        bar.ax.set_yticklabels([form.format(level) for level in levels[::3]])
        bar.ax.tick_params(length=0)
        axes.plot(*np.meshgrid(plane.x, plane.y), ".", color="black", markersize=1.4, markeredgewidth=0, alpha=0.5)
        for end, line in zip(others, lines, strict=True):
            axes.plot(*np.stack([first, end]).T, color="white", linestyle=line, linewidth=1.3)
        axes.plot(*(np.array(shares) @ plane.points), **mark("o", 7), color=VERMILLION, zorder=5)
        for corner, name in enumerate(plane.names):
            text = f"{name}: {form.format((100, 1)[index] * plane.at(corner)[index])}"
            box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.2}
            style = {"ha": "center", "fontsize": 6.5, "bbox": box, "zorder": 6, "textcoords": "offset points"}
            axes.plot(*plane.points[corner], "o", color="white", markersize=5, markeredgecolor="black", zorder=4)
            axes.annotate(text, plane.points[corner], (0, -12 if corner < 2 else 7), **style)
        axes.set(title=what, xlabel=f"distance along {plane.names[1]} − {plane.names[0]}", aspect="equal")
        axes.grid(False)
    figure.axes[0].set_ylabel("distance across it")
    for name, line in zip(plane.names[1:], lines, strict=True):
        figure.key(f"{plane.names[0]} to {name}", Line2D([], [], color=PALE, linestyle=line))
    figure.key(label, Line2D([], [], color=VERMILLION, linestyle="none", **mark("o", 7)))
    return figure, title


@styled
def filters_figure(rows: Mapping[str, Tensor], correlation: np.ndarray | None, title: str) -> Drawn:
    """First-layer filters, a row per network and a column per unit of A: of more than 16 the 16 whose filters in the
    first row are largest.

    Args:
        rows: {name: (units, channels, height, width)}; the first is A. A column has one scale for all rows, so that a
            filter that averaging has blurred looks faint.
        correlation: (units,), of each unit of A with the unit matched to it, written over its column.
    """
    first = next(iter(rows.values()))
    size = first.flatten(1).norm(dim=1)
    units = size.topk(min(FILTERS, len(size))).indices.sort().values.tolist()
    cell = min(0.5, (SIZES[2] - 1.15) / len(units))  # inches
    figure = PaperFigure(2, 0.75 + cell * len(rows))
    axes = figure.subplots()
    for column, unit in enumerate(units):
        limit = max(float(weight[unit].abs().max()) for weight in rows.values()) or 1.0
        for row, weight in enumerate(rows.values()):
            image = weight[unit].movedim(0, -1).float().cpu().numpy() / limit
            image = (1 + image) / 2 if image.shape[-1] == 3 else image.mean(axis=-1)
            extent = (column + 0.06, column + 0.94, row + 0.94, row + 0.06)
            axes.imshow(image, extent=extent, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    heads = [f"{u}" if correlation is None else f"{u}\n{correlation[u]:.2f}".replace("-", "−") for u in units]
    axes.set(xlim=(0, len(units)), ylim=(len(rows), 0), aspect="equal")
    axes.set_xticks(np.arange(len(units)) + 0.5, heads, fontsize=6.5, color="#444444")
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure, title
