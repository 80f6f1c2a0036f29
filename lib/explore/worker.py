"""Work in a thread, which can be cancelled.

A kernel takes one message of its widgets after the other: while a handler computes, a click on Cancel waits. So
handlers only ask for work.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Cancelled(BaseException):
    """Raised in work that was cancelled, wherever it is; as KeyboardInterrupt no Exception, so that nothing on the way
    takes it for a failure."""


class Worker:
    """Does what it is asked for, one thing after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._to_cancel: int | None = None  # the thread that may be interrupted now

    def ask(self, work: Callable[[], None]) -> None:
        """Has `work` done after what was asked for before, once if it waits already."""
        with self._lock:
            if work not in self._waiting:
                self._waiting.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fusebook-panel", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                work = self._waiting.pop(0)
            try:
                work()
            except BaseException as error:  # whatever it is, what comes next is done
                threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))

    @contextmanager
    def cancellable(self) -> Iterator[None]:
        """What is done within it can be cancelled; once it is left it cannot."""
        with self._lock:
            self._to_cancel = threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._to_cancel = None

    def cancel(self) -> None:
        """Forgets what waits, and raises Cancelled in what is being done, once, as soon as it runs Python again."""
        with self._lock:
            self._waiting.clear()
            thread, self._to_cancel = self._to_cancel, None
            if thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Cancelled))

    def wait(self) -> None:
        """Until all of it is done."""
        while thread := self._thread:
            thread.join()
