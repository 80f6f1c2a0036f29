"""One look for every figure."""

import functools
import io
import math
import re
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
from .evidence import grouped

STYLE = Path(__file__).with_name("fusebook.mplstyle")
SIZES = {1: 3.4, 2: 7.0}  # inches: one and two columns of a paper

# Okabe-Ito, so that colour-blind readers tell them apart; markers and dashes say the same without colour.
BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#767676"
FRACTIONS = ("drop", "against_better", "test_agreement", "test_calibration", "ratio")  # beside all accuracies
METRIC_LABELS = {
    "test_accuracy": "test accuracy (%)",
    "train_accuracy": "train accuracy (%)",
    "test_loss": "test cross-entropy (nats)",
    "train_loss": "train cross-entropy (nats)",
    "test_perplexity": "test perplexity",
}


class PaperFigure(Figure):
    """A Figure as wide as 1 or 2 columns of a paper, `height` inches high, with the keys of its legend. It belongs to
    no pyplot state, and still shows itself as a notebook cell's value."""

    def __init__(self, columns: int, height: float, **options: Any) -> None:
        check_choice("columns", str(columns), map(str, SIZES))
        super().__init__(figsize=(SIZES[columns], height), **options)
        self.handles: dict[str, Any] = {}

    def key(self, label: str, handle: Any) -> None:
        """A line of the legend, where it has none of that label."""
        self.handles.setdefault(label, handle)

    def legend_columns(self) -> int:
        """In how many columns the legend fits into the figure's width."""
        widest = 0.5 + 0.062 * max(map(len, self.handles), default=0)  # inches: handle, then letters of 7 points
        return max(1, min(3, len(self.handles), int(self.get_figwidth() / widest)))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


Drawn = tuple[PaperFigure, str]  # a figure and the line over it: model, data set, n


def _style():
    return matplotlib.style.context(["default", STYLE])


def styled(function: Callable[..., Drawn]) -> Callable[..., PaperFigure]:
    """Makes a function that draws and answers the figure with its heading give the whole figure: in the style, the
    heading wrapped to its width, the legend under its panels."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> PaperFigure:
        with _style():
            figure, heading = function(*args, **kwargs)
            if handles := figure.handles:
                columns = figure.legend_columns()
                figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
            if heading:
                unbroken = re.sub(" = | %", lambda part: part[0].replace(" ", "\N{NO-BREAK SPACE}"), heading)
                figure.suptitle(textwrap.fill(unbroken, int(13.5 * figure.get_figwidth())), x=0.01, ha="left")
            return figure

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


def panels(figure: Figure, count: int, wide: int, **options: Any) -> list[tuple[Axes, bool, bool]]:
    """`count` panels, `wide` in a row, each with whether it is the first of its row and the last of its column; places
    left over in the last row stay empty."""
    grid = figure.subplots(math.ceil(count / wide), wide, squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return [(axes, not index % wide, index + wide >= count) for index, axes in enumerate(grid[:count])]


def end_points(axes: Axes, parents: Mapping[str, Any], metric: str) -> None:
    """A dashed line for each parent, where it was measured."""
    for side, shade in (("a", "#444444"), ("b", "#8C8C8C")):
        if (value := parents[side][metric]) is not None:
            look = {"color": shade, "linestyle": (0, (3, 2)), "linewidth": 0.9, "zorder": 1}
            axes.figure.key("end points A and B, each alone", axes.axhline(percent(metric) * value, **look))


def percent(metric: str) -> int:
    """What a metric is multiplied by to be shown: fractions are shown in per cent, their differences in points."""
    return 100 if "accuracy" in metric or metric in FRACTIONS else 1


def mark(marker: str, size: float = 4.5, fill: str = "full") -> dict[str, Any]:
    """Marker options that give every shape about the same weight; other fills are white in part."""
    bigger = {"P": 1.45, "X": 1.4, "*": 1.5, "^": 1.15, "v": 1.15, "d": 1.2}.get(marker, 1.0)
    options = {"marker": marker, "markersize": size * bigger}
    if fill == "full":
        return options | {"markeredgecolor": "white", "markeredgewidth": 0.4}
    if fill == "none":
        return options | {"markerfacecolor": "white"}
    return options | {"fillstyle": fill, "markerfacecoloralt": "white"}


def mean_by(rows: Iterable[Mapping[str, Any]], key: str, value: str, scale: float = 1.0) -> list[np.ndarray]:
    """Sorted values of `key`, and mean and sample deviation (0 for a single row) of `value` at each."""
    points = []
    for place, alike in sorted(grouped((row for row in rows if row.get(value) is not None), key).items()):
        values = [scale * row[value] for row in alike]
        points.append((place, fmean(values), stdev(values) if len(values) > 1 else 0.0))
    return list(np.array(points).reshape(-1, 3).T)
