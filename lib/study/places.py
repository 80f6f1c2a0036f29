"""Where a run writes: by default into a folder of its own, named by what was run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import paths
from ..records import origin
from .parameters import refusal


def places(
    experiment: str,
    given: Mapping[str, Any],
    dataset: str | None = None,
    several: tuple[str, ...] = (),
    check: bool = True,
) -> tuple[Path, Path]:
    """The path of a run's record and the folder of its figures and tables: what "results_path" and "figures_dir" say,
    else in data/results/local/<name>. The name holds the experiment, the data set and every parameter that is not as in
    the tracked notebook, so that no run writes over one of other parameters.

    Args:
        experiment: the stem of the notebook.
        given: its parameters by name.
        dataset: the name of the data set that was opened.
        several: parameters that only choose among runs, each with a record of its own.
        check: whether both have to be writable.

    Raises:
        InputError: in one line, for a place that cannot be written.
    """
    typed = given.get("results_path") or ""
    if typed and not str(typed).endswith(".json"):
        raise refusal("results_path", typed, "a path that ends in .json")
    defaults, left_out = origin.notebook_defaults(experiment), (*origin.PLACES, "dataset", *several)
    own = {
        name: value
        for name, value in given.items()
        if name not in left_out and not (name in defaults and defaults[name] == value)
    }
    stem = experiment if dataset is None or experiment.endswith(f"_{dataset}") else f"{experiment}_{dataset}"
    folder = paths.LOCAL / origin.run_name(stem, own, origin.BARE)
    record = paths.target(typed, folder / f"{experiment}.json")
    figures = paths.target(given.get("figures_dir") or "", folder)
    if check:
        paths.check_writable("results_path", record)
        paths.check_writable("figures_dir", figures, folder=True)
        announced = os.environ.get(origin.ANNOUNCED)
        if announced and not os.path.exists(announced):  # of several runs in one notebook the first speaks for all
            Path(announced).write_text(json.dumps({"folder": str(folder), "record": str(record)}))
    return record, figures
