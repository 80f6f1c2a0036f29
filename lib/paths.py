"""Every folder of the repo, absolute, so that a notebook runs alike from the root, from notebooks/ and from papermill.

Environment variables FUSEBOOK_DATA, _CACHE, _CHECKPOINTS, _RESULTS and _FIGURES override them one by one.
"""

import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lib.checks import InputError

try:
    import fcntl
except ImportError:  # Windows: no lock; each write is still atomic, the last whole one wins
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().resolve()


CACHE = _folder("FUSEBOOK_CACHE", ROOT / "data")
DATA = _folder("FUSEBOOK_DATA", CACHE)
CHECKPOINTS = _folder("FUSEBOOK_CHECKPOINTS", ROOT / "checkpoints")
RESULTS = _folder("FUSEBOOK_RESULTS", ROOT / "data" / "results")
LOCAL = RESULTS / "local"
FIGURES = _folder("FUSEBOOK_FIGURES", ROOT / "figures")
NOTEBOOKS = ROOT / "notebooks"


def resolve(path: str | os.PathLike, *folders: Path) -> Path:
    """An absolute path for what a user typed: as it stands from the working directory, else under one of
    `folders`, else under the repo's root. Returns the last candidate when none exists."""
    typed = Path(os.path.expanduser(path))
    candidates = [typed.absolute(), *(folder / typed for folder in folders), ROOT / typed]
    # os.path.exists takes whatever was typed; Path.exists raises for a name that is too long
    return next((c for c in candidates if os.path.exists(c)), candidates[-1])


def target(typed: str | os.PathLike, default: str | os.PathLike) -> Path:
    """Where to write what a user typed, `default` if that is empty; a relative path starts at the repo's root."""
    path = Path(typed or default)
    return path if path.is_absolute() else ROOT / path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(name: str, path: Path, folder: bool = False) -> None:
    """Raises InputError, in one line, unless a file (or a folder) could be made or replaced at `path`."""
    there = next(place for place in (path, *path.parents) if place.exists())
    if there.is_dir() != (folder or there != path):
        kind = "folder" if there.is_dir() else "file"
        raise InputError(f"{name} {path} cannot be written: {there} is a {kind}; accepted: a path that can be")
    if not os.access(there, os.W_OK):
        raise InputError(f"{name} {path} cannot be written: no permission for {there}; accepted: a path that can be")


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; moves it into place on success and removes it on any error, and one that
    a killed process left.

    Raises:
        InputError: the system refused to write (disk full, no permission, no such folder), in one line.
    """
    path = Path(path)
    temporary = handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = _temporary(path)
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # or a machine that loses power may keep the new name and not the content
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path} cannot be written: {why}; what was finished before is kept") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _temporary(path: Path) -> tuple[Path, int | None]:
    """A new file beside `path`, and the handle that locks it for as long as its process lives (None without locks)."""
    _remove_left(path)
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.unfinished-", suffix=path.suffix)
        if not fcntl:
            os.close(handle)
            return Path(name), None
        try:
            # flock, not lockf: a lock of that kind ends when this process closes the file anywhere
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not os.path.exists(name)
        except OSError as error:  # else the folder has no locks
            taken = isinstance(error, BlockingIOError)
        if not taken:
            return Path(name), handle
        os.close(handle)  # another process took the new file for one left over


def _remove_left(path: Path) -> None:
    """Removes what killed processes left of `path` half-written: the files of `_temporary` that nobody locks."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.unfinished-*{glob.escape(path.suffix)}") if fcntl else ():
        with suppress(OSError):  # its process lives, or another one was faster
            handle = os.open(left, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(handle)


@contextmanager
def locked(*made: Path, waiting: str = "") -> Iterator[None]:
    """Makes this process the only one that makes the files `made`, by a lock on <stem>.lock beside the first of them;
    prints `waiting` if another process has to be waited for. Removes what killed writers of them left half-written.

    The operating system releases the lock when the process ends, however it ends: no lock is ever stale.
    """
    lock = made[0].with_suffix(".lock")
    handle = _acquire(lock, waiting)
    if handle is None:
        yield
        return
    try:
        for path in made:
            _remove_left(path)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _acquire(lock: Path, waiting: str) -> int | None:
    """An open file that holds the lock; None where the system has no locks or the folder cannot be written."""
    while fcntl:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None  # the write itself will say why
        mine = False
        try:
            # lockf, not flock: a child process that outlives a killed parent must not keep the parent's lock
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if waiting:
                    print(waiting, flush=True)
                    waiting = ""
                fcntl.lockf(handle, fcntl.LOCK_EX)
            # the one waited for removed the file; a third process may hold a new one
            mine = lock.exists() and os.path.samestat(os.fstat(handle), lock.stat())
        except FileNotFoundError:
            pass
        except OSError:
            return None
        finally:
            if not mine:
                os.close(handle)
        if mine:
            return handle
    return None
