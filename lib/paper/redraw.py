"""Figures to files, several at a time, and only those whose records or code have changed since.

What a figure was made from is kept as a hash beside the figures (`STATE`, not tracked): a lost or foreign one costs
time, nothing else.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..paths import atomic, file_sha256
from . import style

STATE = ".drawn.json"
DRAW_NOTHING = ("claims", "coverage", "latex", "pages", "redraw", "tables", "tables_speed", "write")  # of this wing
Draw = Callable[..., Figure]


def draw_all(drawings: Iterable[tuple[str, Draw, tuple[str, ...]]], place: Path) -> list[Path]:
    """Writes each figure as <place>/<stem>.<kind> unless it is there, made from the same; returns all paths.

    Args:
        drawings: stem, what draws the figure, and the kinds of files ("png", "pdf").
    """
    drawings = list(drawings)
    state, before = {}, {}
    with suppress(OSError, ValueError):
        before = json.loads((place / STATE).read_text())
    due = []
    for stem, draw, kinds in drawings:
        paths = [place / f"{stem}.{kind}" for kind in kinds]
        state[stem] = {"from": made_from(draw), "files": _hashes(paths)}
        if None in state[stem]["files"] or before.get(stem) != state[stem]:
            due.append((stem, draw, kinds, place))
    with _workers(len(due)) as each:
        each(_render, due)
    for stem, _, kinds, _ in due:
        state[stem]["files"] = _hashes([place / f"{stem}.{kind}" for kind in kinds])
    with atomic(place / STATE) as unfinished:
        unfinished.write_text(json.dumps(state, indent=0))
    return [place / f"{stem}.{kind}" for stem, _, kinds in drawings for kind in kinds]


def made_from(draw: Draw) -> str:
    """Hash of the code that draws, of matplotlib's version, of what draws and of its arguments."""
    digest = hashlib.sha256(_code().encode())
    _feed(digest, draw)
    return digest.hexdigest()[:16]


@cache
def _code() -> str:
    wing = Path(__file__).parent
    files = [path for path in wing.glob("*.py") if path.stem not in DRAW_NOTHING]
    files += [style.STYLE, *(wing.parent / "records").glob("*.py")]
    sources = [path.read_bytes() for path in sorted(files)]
    return hashlib.sha256(b"\0".join([*sources, matplotlib.__version__.encode()])).hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, partial):
        value = [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        value = [*value.items()]
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for each in value:
            _feed(digest, each)
    else:
        digest.update(f"{value.__qualname__ if callable(value) else repr(value)};".encode())


def _hashes(paths: Iterable[Path]) -> list[str | None]:
    return [file_sha256(path) if path.is_file() else None for path in paths]


def _render(task: tuple[str, Draw, tuple[str, ...], Path]) -> None:
    stem, draw, kinds, place = task
    style.save_figure(draw(), stem, place, kinds)


class _workers:
    """`map` over as many processes as there are cores; in this one where processes cannot be forked safely."""

    def __init__(self, tasks: int) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1  # macOS forks at its own risk
        self.pool = None
        if min(cores, tasks) > 1:
            with suppress(OSError):  # a container without /dev/shm has no semaphores
                self.pool = multiprocessing.get_context("fork").Pool(cores)

    def __enter__(self) -> Callable[[Callable, list], Any]:
        return partial(self.pool.map, chunksize=1) if self.pool else lambda function, tasks: [*map(function, tasks)]

    def __exit__(self, *error: object) -> None:
        if self.pool:
            self.pool.terminate()
