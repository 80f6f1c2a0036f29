"""One look for every figure."""

import functools
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..checks import check_choice
from ..paths import FIGURES, atomic

STYLE = Path(__file__).with_name("fusebook.mplstyle")
COLUMN, PAGE = 3.4, 7.0  # inches: one and two columns of a paper
SIZES = {1: COLUMN, 2: PAGE}


# Okabe-Ito, so that colour-blind readers tell them apart; markers and dashes say the same without colour.
BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#767676"
METRIC_LABELS = {
    "test_accuracy": "test accuracy (%)",
    "train_accuracy": "train accuracy (%)",
    "test_loss": "test cross-entropy (nats)",
    "train_loss": "train cross-entropy (nats)",
}


class PaperFigure(Figure):
    """A Figure that belongs to no pyplot state, and still shows itself as a notebook cell's value."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


def _style():
    return matplotlib.style.context(["default", STYLE])


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with _style():
            return function(*args, **kwargs)

    return wrapper


def save_figure(figure: Figure, stem: str, folder: str | Path = FIGURES) -> tuple[Path, Path]:
    """Writes <folder>/<stem>.png (200 dpi) and .pdf (TrueType fonts), both or none; returns the two paths.

    Neither holds a date or a version: the same figure is the same bytes, and git sees only real changes.
    """
    png, pdf = Path(folder) / f"{stem}.png", Path(folder) / f"{stem}.pdf"
    bare = {"CreationDate": None, "Creator": None, "Producer": None}
    with _style(), atomic(png) as png_new, atomic(pdf) as pdf_new:
        if figure.get_layout_engine() is not None:  # laid out once for both files: the same picture, in half the time
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(png_new, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(pdf_new, format="pdf", metadata=bare)
    return png, pdf


def panels(figure: Figure, count: int, wide: int, **options: Any) -> list[Axes]:
    """`count` panels, `wide` in a row; places left over in the last row stay empty."""
    grid = figure.subplots(math.ceil(count / wide), wide, squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return list(grid[:count])


def end_points(axes: Axes, parents: Mapping[str, Any], metric: str, handles: dict[str, Any]) -> None:
    """A dashed line for each parent, where it was measured."""
    for side, shade in (("a", "#444444"), ("b", "#8C8C8C")):
        if (value := parents[side][metric]) is not None:
            look = {"color": shade, "linestyle": (0, (3, 2)), "linewidth": 0.9, "zorder": 1}
            handles.setdefault("end points A and B, each alone", axes.axhline(percent(metric) * value, **look))


def percent(metric: str) -> int:
    """What a metric is multiplied by to be shown: accuracies are fractions and shown in per cent."""
    return 100 if "accuracy" in metric else 1


def width_of(columns: int) -> float:
    check_choice("columns", str(columns), map(str, SIZES))
    return SIZES[columns]


def headed(figure: Figure, text: str) -> None:
    """The line over a figure: model, data set, n. Wrapped to the figure's width."""
    width = int(13.5 * figure.get_figwidth())
    unbroken = text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")
    figure.suptitle(textwrap.fill(unbroken, width), x=0.01, ha="left")


def legend_below(figure: Figure, handles: Mapping[str, Any]) -> int:
    """A legend under the panels, in as many columns as the figure's width holds; returns its rows."""
    if not handles:
        return 0
    widest = 0.5 + 0.062 * max(len(label) for label in handles)  # inches: handle, then letters of 7 points
    columns = max(1, min(3, len(handles), int(figure.get_figwidth() / widest)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    return math.ceil(len(handles) / columns)


def mark(marker: str, size: float = 4.5, fill: str = "full") -> dict[str, Any]:
    """Marker options that give every shape about the same weight; other fills are white in part."""
    bigger = {"P": 1.45, "X": 1.4, "*": 1.5, "^": 1.15, "v": 1.15, "d": 1.2}.get(marker, 1.0)
    options = {"marker": marker, "markersize": size * bigger}
    if fill == "full":
        return options | {"markeredgecolor": "white", "markeredgewidth": 0.4}
    if fill == "none":
        return options | {"markerfacecolor": "white"}
    return options | {"fillstyle": fill, "markerfacecoloralt": "white"}


def mean_by(
    rows: Iterable[Mapping[str, Any]], key: str, value: str, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted values of `key`, and mean and sample deviation (0 for a single row) of `value` at each."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            found.setdefault(row[key], []).append(scale * row[value])
    keys = sorted(found)
    spreads = [stdev(found[k]) if len(found[k]) > 1 else 0.0 for k in keys]
    return np.array(keys), np.array([fmean(found[k]) for k in keys]), np.array(spreads)


def bytes_label(size: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    step = 0 if size < 1 else min(len(units) - 1, int(math.log10(size) // 3))
    return f"{size / 1000**step:g} {units[step]}"
