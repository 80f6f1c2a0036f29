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
from matplotlib.figure import Figure

from ..checks import check_choice
from ..paths import FIGURES, atomic
from .names import MATCHER_LABELS

STYLE = Path(__file__).with_name("fusebook.mplstyle")
COLUMN, PAGE = 3.4, 7.0  # inches: one and two columns of a paper
SIZES = {1: COLUMN, 2: PAGE}


# Okabe-Ito, so that colour-blind readers tell them apart; markers and dashes say the same without colour.
BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#767676"
MATCHER_STYLE = {
    "none": (GREY, "o"),
    "activation": (BLUE, "s"),
    "weight": (ORANGE, "^"),
    "sinkhorn": (SKY, "v"),
    "graph_reference": (PINK, "X"),
    "graph_sm": (VERMILLION, "D"),
    "graph": (GREEN, "P"),
}
CORRECTION_LINE: dict[str, Any] = {
    "none": "-",
    "bn_reset": (0, (5, 1.5)),
    "repair": (0, (5, 1.5, 1, 1.5)),
    "rescale": (0, (9, 1.5)),
    "closed_form": (0, (5, 1.5, 1, 1.5, 1, 1.5)),
    "least_squares": (0, (1, 1.2)),
}
SOLVER_LABELS = MATCHER_LABELS | {
    "spectral": "spectral",
    "spectral_symmetric": "spectral, symmetric",
    "rrwm": "RRWM",
    "ipfp": "IPFP",
    "frank_wolfe": "Frank–Wolfe",
    "coordinate_descent": "coordinate descent",
    "softassign": "softassign",
    "graph": "graph (softassign → descent)",
    "weight": "weights (Git Re-Basin)",
}
SOLVER_STYLE = MATCHER_STYLE | {
    "spectral": (VERMILLION, "D"),
    "spectral_symmetric": ("#000000", "d"),
    "rrwm": (PINK, "X"),
    "ipfp": (GREY, "<"),
    "frank_wolfe": (SKY, "v"),
    "coordinate_descent": ("#A0522D", ">"),
    "softassign": (BLUE, "s"),
}
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


def _width(columns: int) -> float:
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


def mark(marker: str, size: float = 4.5) -> dict[str, Any]:
    """Marker options that give every shape about the same weight on paper."""
    bigger = {"P": 1.45, "X": 1.4, "*": 1.5, "^": 1.15, "v": 1.15, "d": 1.2}.get(marker, 1.0)
    return {"marker": marker, "markersize": size * bigger, "markeredgecolor": "white", "markeredgewidth": 0.4}


def _look(styles: Mapping[str, tuple[str, str]], name: str) -> tuple[str, str]:
    """Colour and marker of a name; a name without its own gets one that stays the same from run to run."""
    if name in styles:
        return styles[name]
    spare = ((GREY, "h"), (PINK, "*"), (BLUE, ">"), (VERMILLION, "p"), ("#000000", "d"))
    return spare[sum(name.encode()) % len(spare)]


def _mean_by(
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


def _bytes(size: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    step = 0 if size < 1 else min(len(units) - 1, int(math.log10(size) // 3))
    return f"{size / 1000**step:g} {units[step]}"
