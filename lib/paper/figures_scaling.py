"""Figures of graph matching at scale."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator

from .evidence import grouped
from .names import SOLVERS, look, model_label, width_label
from .style import METRIC_LABELS, Drawn, PaperFigure, mark, mean_by, panels, styled


@styled
def scaling(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any], columns: int | None = None) -> Drawn:
    """Seconds and peak memory against width (log axes), a column per model; dense K's size beside them.

    Row: {"model", "width", "solver", "seconds", "peak_bytes", "dense_bytes"}. Memory is the most that
    any solver made the process grow: what one leaves to the next is not seen. Below 1 MB it is drawn at 1 MB.
    """
    rows = list(rows)
    models = grouped(rows, "model")
    figure = PaperFigure(columns or (2 if len(models) > 1 else 1), 4.4)
    grid = figure.subplots(2, len(models), squeeze=False, sharey="row")
    for (seconds, memory), (model, of_model) in zip(grid.T, models.items(), strict=True):
        for solver, alike in grouped(of_model, "solver").items():
            method = look(SOLVERS, solver)
            widths, means, _ = mean_by((row for row in alike if row.get("seconds")), "width", "seconds")
            figure.key(method.label, *seconds.plot(widths, means, **method.mark()))
        peaks: dict[float, float] = {}
        for row in of_model:
            if row.get("peak_bytes") is not None:
                peaks[row["width"]] = max(row["peak_bytes"], peaks.get(row["width"], 1e6))
        if peaks:
            line = memory.plot(*zip(*sorted(peaks.items()), strict=True), color="#000000", **mark("o"))
            figure.key("most of any solver, 1 MB or less at the foot", *line)
        if dense := sorted({(row["width"], row["dense_bytes"]) for row in of_model if row.get("dense_bytes")}):
            dashes = {"color": "#444444", "linestyle": (0, (3, 2)), "linewidth": 1.1}
            figure.key("dense affinity matrix K (not built)", *memory.plot(*zip(*dense, strict=True), **dashes))
        widths = sorted({row["width"] for row in of_model})
        for axes in (seconds, memory):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(widths, [f"×{width_label(width)}" for width in widths])
        seconds.set_title(model_label({"name": model}))
        memory.set_xlabel("width")
    seconds, memory = grid[:, 0]
    seconds.set_ylabel("seconds")
    memory.set_ylabel("peak extra memory")
    memory.yaxis.set_major_formatter(EngFormatter("B"))
    memory.yaxis.set_major_locator(FixedLocator([10.0**e for e in range(0, 24, 3)]))
    memory.yaxis.set_minor_locator(NullLocator())
    return figure, _study_title(record, rows)


@styled
def recovery(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """Fraction of a planted permutation that each solver finds again, against the noise; a panel per network.

    Row: {"model", "width", "solver", "noise" (in standard deviations of the weights), "recovered" (fraction),
    "seed"}. Means over seeds, bands from the least to the most.
    """
    rows = list(rows)
    kinds = grouped(rows, "model", "width")
    wide = min(len(kinds), columns)
    figure = PaperFigure(columns, 0.9 + 2.2 * math.ceil(len(kinds) / wide))
    grid = panels(figure, len(kinds), wide, sharex=True, sharey=True)
    for (axes, first, last), ((model, width), of_kind) in zip(grid, kinds.items(), strict=True):
        for solver, alike in grouped(of_kind, "solver").items():
            method = look(SOLVERS, solver)
            noise, means, _ = mean_by(alike, "noise", "recovered")
            figure.key(method.label, *axes.plot(noise, means, **method.mark()))
            ends = [[end(r["recovered"] for r in alike if r["noise"] == x) for x in noise] for end in (min, max)]
            axes.fill_between(noise, *ends, color=method.colour, alpha=0.15, linewidth=0)
        axes.set_ylim(-0.03, 1.05)
        axes.set_title(model_label({"name": model, "width": width}))
        if last:
            axes.set_xlabel("noise σ (standard deviations of the weights)")
        if first:
            axes.set_ylabel("recovered units (fraction)")
    return figure, "planted permutation (mean, least and most), " + _study_title(record, rows)


@styled
def objective_accuracy(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any], columns: int = 1) -> Drawn:
    """Accuracy of the fused network against the matching's objective, a point per matching.

    Row: {"solver", "objective", "test_accuracy"}, and "model" and "width" alike in all.
    """
    rows = list(rows)
    figure = PaperFigure(columns, 3.0)
    axes = figure.subplots()
    for solver, alike in grouped(rows, "solver").items():
        method = look(SOLVERS, solver)
        points = np.array([(row["objective"], 100 * row["test_accuracy"]) for row in alike])
        figure.key(method.label, *axes.plot(*points.T, linestyle="none", **method.mark()))
    axes.set(xlabel="objective of the matching", ylabel=f"{METRIC_LABELS['test_accuracy']}, α = 0.5")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    return figure, _study_title(record, rows)


def _study_title(record: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    seeds = len({row.get("seed") for row in rows})
    where = f"networks trained on {record['dataset']}" if record.get("dataset") else "random networks, no data set"
    return f"{where}, n = {seeds}, {record['provenance']['device']}"
