"""Progress bars."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import tqdm as _tqdm

# Called with how many of how many are done, in place of bars on a stream; of each thread its own.
_told: ContextVar[Callable[[int, int], None] | None] = ContextVar("_told", default=None)


class tqdm(_tqdm.tqdm):
    """tqdm's bar; in a notebook on standard output, for what goes to standard error is shown there as an error. Under
    `telling` it draws nothing and tells how far it is."""

    def __init__(self, *args: Any, file: Any = None, disable: bool = False, **options: Any) -> None:
        self._tell = None if disable else _told.get()
        in_notebook = type(sys.stdout).__module__.startswith("ipykernel.")
        file = sys.stdout if file is None and in_notebook else file
        super().__init__(*args, file=file, disable=disable or self._tell is not None, **options)

    def __iter__(self) -> Iterator:
        for done, item in enumerate(super().__iter__()):
            if self._tell and self.total:  # an open end is told nobody
                self._tell(done, self.total)
            yield item


@contextmanager
def telling(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Within it, bars of this thread that would be drawn call `tell` with how many of how many are done instead."""
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


def is_told() -> bool:
    """Whether bars are told and not drawn."""
    return _told.get() is not None
