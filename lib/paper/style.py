"""One look for every figure."""

import functools
import inspect
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..checks import InputError, check_choice
from ..paths import FIGURES, atomic
from .evidence import grouped

STYLE = Path(__file__).with_name("fusebook.mplstyle")
SIZES = {1: 3.4, 2: 7.0}  # inches: one and two columns of a paper
TALLEST = 8.6  # inches of a figure: the pages of what papers are written for have 9 and more

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

# Inches that a figure may be named by: the columns and pages of what papers are written for.
WIDTHS = {
    "column": SIZES[1],
    "page": SIZES[2],
    "neurips": 5.5,
    "icml": 3.25,
    "icml_page": 6.75,
    "ieee": 3.5,
    "ieee_page": 7.16,
}
# What the caller of a `styled` function asked for, while it draws: the width in inches, the Axes to draw in.
_asked: ContextVar[tuple[float | None, Axes | None]] = ContextVar("_asked", default=(None, None))
# Where rows say by which method something was matched, and how it was corrected.
MATCHED, CORRECTED = ("matcher", "solver", "server"), ("correction",)


class PaperFigure(Figure):
    """A Figure as wide as 1 or 2 columns of a paper, `height` inches high, with the keys of its legend. It belongs to
    no pyplot state, and still shows itself as a notebook cell's value. Where the caller gave an Axes (`ax=` of a
    `styled` function) it only stands for the figure of that: its panels lie in the place of the Axes."""

    def __init__(self, columns: int, height: float, **options: Any) -> None:
        check_choice("columns", str(columns), map(str, SIZES))
        width, self.place = _asked.get()
        super().__init__(figsize=(width or SIZES[columns], height), **options)
        self.handles: dict[str, Any] = {}
        self.panels: list[Axes] = []

    def subplots(self, nrows: int = 1, ncols: int = 1, squeeze: bool = True, **options: Any) -> Any:
        """As Figure.subplots; one panel is the Axes that was given, several share its place."""
        if self.place is None:
            return super().subplots(nrows, ncols, squeeze=squeeze, **options)
        if nrows * ncols == 1:
            grid = np.array([[self.place]])
        else:
            if self.place.get_subplotspec() is None:
                raise InputError(
                    f"ax has no place in a grid, and this figure has {nrows} × {ncols} panels; accepted: an Axes of "
                    "plt.subplots or add_subplot"
                )
            ratios = {name: options.pop(name) for name in ("height_ratios", "width_ratios") if name in options}
            self.place.set_axis_off()
            grid = self.place.get_subplotspec().subgridspec(nrows, ncols, **ratios).subplots(squeeze=False, **options)
        self.panels = list(grid.flat)
        return grid if not squeeze else grid[0, 0] if grid.size == 1 else grid.squeeze()

    def colorbar(self, mappable: Any, **options: Any) -> Any:
        return (
            super().colorbar(mappable, **options)
            if self.place is None
            else self.place.figure.colorbar(mappable, **options)
        )

    def key(self, label: str, handle: Any) -> None:
        """A line of the legend, where it has none of that label."""
        self.handles.setdefault(label, handle)

    def legend_columns(self) -> int:
        """In how many columns the legend fits into the figure's width."""
        widest = 0.5 + 0.062 * max(map(len, self.handles), default=0)  # inches: handle, then letters of 7 points
        return max(1, min(3, len(self.handles), int(self.get_figwidth() / widest)))

    def finish(self, heading: str) -> Figure:
        """The figure with its legend and the heading over it, wrapped; where an Axes was given, the figure of that."""
        if self.place is not None:
            if self.handles:
                self.panels[0].legend(self.handles.values(), self.handles.keys())
            if heading:
                self.place.set_title(heading, loc="center")
            return self.place.figure
        if self.handles:
            columns = self.legend_columns()
            self.legend(self.handles.values(), self.handles.keys(), loc="outside lower center", ncols=columns)
        if heading:
            unbroken = re.sub(" = | %", lambda part: part[0].replace(" ", "\N{NO-BREAK SPACE}"), heading)
            self.suptitle(textwrap.fill(unbroken, int(13.5 * self.get_figwidth())), x=0.01, ha="left")
        return self

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


Drawn = tuple[PaperFigure, str]  # a figure and the line over it: model, data set, n


def _style():
    return matplotlib.style.context(["default", STYLE])


def inches(width: str | float) -> float:
    """A width, or one of WIDTHS by name, in inches. Raises InputError for another."""
    if isinstance(width, (int, float)) and not isinstance(width, bool) and 1 <= width <= 20:
        return float(width)
    if not isinstance(width, str) or width not in WIDTHS:
        known = ", ".join(f"{name} ({value:g})" for name, value in WIDTHS.items())
        raise InputError(f"unknown width {width!r}; accepted: 1 to 20 inches, or {known}")
    return WIDTHS[width]


def pick(data: Any, what: str, wanted: Iterable[str], fields: tuple[str, ...]) -> Any:
    """Rows, records and arrays by the names of matchers without what is of methods other than the `wanted` ones, which
    may be named with or without their options. `fields`: those of a row that name its method; rows without (controls)
    stay. Raises InputError where nothing is of a wanted one."""
    from .names import MATCHERS, base  # they take their colours from here

    wanted, seen = [wanted] if isinstance(wanted, str) else list(wanted), []

    def keeps(name: str | None) -> bool:
        if name is None:
            return True
        seen.append(name)
        return name in wanted or base(name) in wanted

    def picked(value: Any) -> Any:
        if isinstance(value, Mapping):
            if lists := [name for name in ("curves", "rows") if isinstance(value.get(name), list)]:  # a record
                return {**value, **{name: picked(value[name]) for name in lists}}
            if fields is MATCHED:  # arrays are named <kind>/<matcher>/<group>, or come by matcher
                named = {key: key.split("/")[1] if key.count("/") == 2 else key for key in value}
                if any("/" in key or base(key) in MATCHERS for key in named):
                    return {key: value[key] for key, name in named.items() if keeps(name)}
            return {key: picked(each) if isinstance(each, Mapping) else each for key, each in value.items()}
        if isinstance(value, str | bytes | np.ndarray) or not isinstance(value, Iterable):
            return value
        rows = list(value)
        if not all(isinstance(row, Mapping) for row in rows):
            return rows
        if any("curves" in row for row in rows):
            return [picked(row) for row in rows]
        return [row for row in rows if keeps(next((row[name] for name in fields if row.get(name)), None))]

    answer = [picked(each) for each in data]
    for name in wanted:
        if not any(name in (each, base(each)) for each in seen):
            there = ", ".join(dict.fromkeys(seen)) or f"none: this figure has no {what}"
            raise InputError(f"no {what} {name!r} in what is drawn; accepted: {there}")
    return answer


ASKED = """
    matchers, corrections: the methods that are shown, by name, with or without options; of studies of solvers and of
        federated rounds `matchers` are those. None: all. InputError for one that is not there.
    title: what stands over it in place of model, data set and n; "" for nothing.
    ax: the Axes to draw in, of your own figure, which is returned; several panels share its place in the grid.
    width: inches, or a name of `style.WIDTHS`: column, page, neurips, icml, icml_page, ieee, ieee_page. Below 4.5
        inches the figure is laid out for one column, above for two.
"""


def styled(function: Callable[..., Drawn]) -> Callable[..., Figure]:
    """Makes a function that draws and answers the figure with its heading give the whole figure, in the style, and take
    what every figure takes (`ASKED`)."""
    own = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        matchers: Iterable[str] | None = None,
        corrections: Iterable[str] | None = None,
        title: str | None = None,
        ax: Axes | None = None,
        width: str | float | None = None,
        **kwargs: Any,
    ) -> Figure:
        if "title" in own.parameters and title is not None:
            kwargs["title"], title = title, None
        for what, wanted, fields in (("matchers", matchers, MATCHED), ("corrections", corrections, CORRECTED)):
            if wanted is not None:
                args = pick(args, what, wanted, fields)
        if ax is not None and not isinstance(ax, Axes):
            raise InputError(f"ax is {type(ax).__name__}; accepted: an Axes of matplotlib")
        wide = None if width is None else inches(width)
        if ax is not None and wide is None:
            wide = ax.figure.get_figwidth() * ax.get_position().width
        if (
            wide is not None
            and "columns" in own.parameters
            and "columns" not in own.bind_partial(*args, **kwargs).arguments
        ):
            kwargs["columns"] = 1 if wide < 4.5 else 2
        with _style():
            token = _asked.set((wide, ax))
            try:
                figure, heading = function(*args, **kwargs)
            finally:
                _asked.reset(token)
            return figure.finish(heading if title is None and ax is None else title or "")

    added = [
        p
        for name, p in inspect.signature(wrapper, follow_wrapped=False).parameters.items()
        if name not in ("args", "kwargs")
    ]
    shown = [*own.parameters.values(), *(p for p in added if p.name not in own.parameters)]
    wrapper.__signature__ = own.replace(parameters=shown)
    wrapper.__doc__ = f"{function.__doc__}\n    Of every figure:\n{ASKED}"
    return wrapper


def save_figure(
    figure: Figure, stem: str, folder: str | Path = FIGURES, kinds: Iterable[str] = ("png", "pdf")
) -> tuple[Path, ...]:
    """Writes <folder>/<stem>.png (200 dpi) and .pdf (TrueType fonts), both or none; returns the paths.

    Neither holds a date or a version: the same figure is the same bytes, and git sees only real changes.
    """
    paths = [Path(folder) / f"{stem}.{kind}" for kind in kinds]
    bare = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    with _style(), ExitStack() as files:
        unfinished = [files.enter_context(atomic(path)) for path in paths]
        if (
            layout := figure.get_layout_engine()
        ) is not None:  # once for both files: the same picture, in half the time
            layout.execute(figure)
            figure.set_layout_engine("none")
        for path, new in zip(paths, unfinished, strict=True):
            kind = path.suffix[1:]
            figure.savefig(new, format=kind, dpi=200, metadata=bare[kind])
    return tuple(paths)


def panels(figure: Figure, count: int, wide: int, **options: Any) -> list[tuple[Axes, bool, bool]]:
    """`count` panels, `wide` in a row, each with whether it is the first of its row and the last of its column; places
    left over in the last row stay empty."""
    grid = figure.subplots(math.ceil(count / wide), wide, squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    shown = [(axes, not index % wide, index + wide >= count) for index, axes in enumerate(grid[:count])]
    for axes, _, last in shown:
        if last:  # where nothing stands below, a shared axis has its numbers, too
            axes.tick_params(labelbottom=True)
    return shown


def end_points(figure: PaperFigure, axes: Axes, parents: Mapping[str, Any], metric: str) -> None:
    """A dashed line for each parent, where it was measured."""
    for side, shade in (("a", "#444444"), ("b", "#8C8C8C")):
        if (value := parents[side][metric]) is not None:
            look = {"color": shade, "linestyle": (0, (3, 2)), "linewidth": 0.9, "zorder": 1}
            figure.key("end points A and B, each alone", axes.axhline(percent(metric) * value, **look))


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
