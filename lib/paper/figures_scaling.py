"""Figures of graph matching at scale."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from .names import SOLVERS, look, model_label, width_label
from .style import (
    COLUMN,
    METRIC_LABELS,
    PaperFigure,
    bytes_label,
    headed,
    legend_below,
    mark,
    mean_by,
    panels,
    styled,
    width_of,
)


@styled
def scaling(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> Figure:
    """Seconds and peak memory against width (log axes), a column per model; dense K's size beside them.

    Row: {"model", "width", "solver", "seconds", "peak_bytes", "dense_bytes"}. Memory is the most that
    any solver made the process grow: what one leaves to the next is not seen. Below 1 MB it is drawn at 1 MB.
    """
    rows = list(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = PaperFigure(figsize=(width_of(2 if len(models) > 1 else 1), 4.4))
    grid = figure.subplots(2, len(models), squeeze=False, sharey="row")
    handles: dict[str, Any] = {}
    for column, model in enumerate(models):
        here = [row for row in rows if row["model"] == model]
        for solver in dict.fromkeys(row["solver"] for row in here):
            method = look(SOLVERS, solver)
            measured = [row for row in here if row["solver"] == solver and row.get("seconds")]
            widths, means, _ = mean_by(measured, "width", "seconds")
            (handle,) = grid[0, column].plot(widths, means, color=method.colour, **mark(method.marker))
            handles.setdefault(method.label, handle)
        peaks: dict[float, float] = {}
        for row in here:
            if row.get("peak_bytes") is not None:
                peaks[row["width"]] = max(row["peak_bytes"], peaks.get(row["width"], 1e6))
        if peaks:
            (handle,) = grid[1, column].plot(*zip(*sorted(peaks.items()), strict=True), color="#000000", **mark("o"))
            handles.setdefault("most of any solver, 1 MB or less at the foot", handle)
        for axes in grid[:, column]:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        dense = sorted({(row["width"], row["dense_bytes"]) for row in here if row.get("dense_bytes")})
        if dense:
            dashes = {"color": "#444444", "linestyle": (0, (3, 2)), "linewidth": 1.1}
            (handle,) = grid[1, column].plot(*zip(*dense, strict=True), **dashes)
            handles.setdefault("dense affinity matrix K (not built)", handle)
        widths = sorted({row["width"] for row in here})
        for axes in grid[:, column]:
            axes.set_xticks(widths, [f"×{width_label(width)}" for width in widths])
        grid[0, column].set_title(model_label({"name": model}))
        grid[1, column].set_xlabel("width")
    grid[0, 0].set_ylabel("seconds")
    grid[1, 0].set_ylabel("peak extra memory")
    grid[1, 0].yaxis.set_major_formatter(FuncFormatter(lambda size, _: bytes_label(size)))
    exponents = range(0, 24, 3)
    grid[1, 0].yaxis.set_major_locator(FixedLocator([10.0**e for e in exponents]))
    grid[1, 0].yaxis.set_minor_locator(NullLocator())
    headed(figure, _study_title(record, rows))
    legend_below(figure, handles)
    return figure


@styled
def recovery(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any], columns: int = 2) -> Figure:
    """Fraction of a planted permutation that each solver finds again, against the noise; a panel per network.

    Row: {"model", "width", "solver", "noise" (in standard deviations of the weights), "recovered" (fraction),
    "seed"}. Means over seeds, bands from the least to the most.
    """
    rows = list(rows)
    kinds = list(dict.fromkeys((row["model"], row["width"]) for row in rows))
    wide = min(len(kinds), columns)
    figure = PaperFigure(figsize=(width_of(columns), 0.9 + 2.2 * math.ceil(len(kinds) / wide)))
    handles: dict[str, Any] = {}
    grid = panels(figure, len(kinds), wide, sharex=True, sharey=True)
    for index, (axes, kind) in enumerate(zip(grid, kinds, strict=True)):
        here = [row for row in rows if (row["model"], row["width"]) == kind]
        for solver in dict.fromkeys(row["solver"] for row in here):
            method = look(SOLVERS, solver)
            mine = [r for r in here if r["solver"] == solver]
            noise, means, _ = mean_by(mine, "noise", "recovered")
            (handle,) = axes.plot(noise, means, color=method.colour, **mark(method.marker))
            ends = [[end(r["recovered"] for r in mine if r["noise"] == x) for x in noise] for end in (min, max)]
            axes.fill_between(noise, *ends, color=method.colour, alpha=0.15, linewidth=0)
            handles.setdefault(method.label, handle)
        axes.set_ylim(-0.03, 1.05)
        axes.set_title(model_label({"name": kind[0], "width": kind[1]}))
        if index + wide >= len(kinds):
            axes.set_xlabel("noise σ (standard deviations of the weights)")
        if not index % wide:
            axes.set_ylabel("recovered units (fraction)")
    headed(figure, "planted permutation (mean, least and most), " + _study_title(record, rows))
    legend_below(figure, handles)
    return figure


@styled
def objective_accuracy(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> Figure:
    """Accuracy of the fused network against the matching's objective, a point per matching.

    Row: {"solver", "objective", "test_accuracy"}, and "model" and "width" alike in all.
    """
    rows = list(rows)
    figure = PaperFigure(figsize=(COLUMN, 3.0))
    axes = figure.subplots()
    handles: dict[str, Any] = {}
    for solver in dict.fromkeys(row["solver"] for row in rows):
        method = look(SOLVERS, solver)
        here = np.array([(r["objective"], 100 * r["test_accuracy"]) for r in rows if r["solver"] == solver])
        (handle,) = axes.plot(*here.T, color=method.colour, linestyle="none", **mark(method.marker))
        handles[method.label] = handle
    axes.set(xlabel="objective of the matching", ylabel=f"{METRIC_LABELS['test_accuracy']}, α = 0.5")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    headed(figure, _study_title(record, rows))
    legend_below(figure, handles)
    return figure


def _study_title(record: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    seeds = len({row.get("seed") for row in rows})
    where = f"networks trained on {record['dataset']}" if record.get("dataset") else "random networks, no data set"
    return f"{where}, n = {seeds}, {record['provenance']['device']}"
