"""Every folder of the repo, absolute, so that a notebook runs alike from the root, from notebooks/ and from papermill;
and the environment that the libraries find. `lib` imports it before anything else.

Environment variables FUSEBOOK_DATA, _CACHE, _CHECKPOINTS, _RESULTS and _FIGURES override the folders one by one.
"""

import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from .checks import InputError

ROOT = Path(__file__).resolve().parents[1]
IS_CLONE: bool = (ROOT / "pyproject.toml").is_file() and (ROOT / "notebooks").is_dir()
if not IS_CLONE:  # installed from a wheel
    ROOT = Path.cwd()


def _folder(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().resolve()


CACHE = _folder("FUSEBOOK_CACHE", ROOT / "data")
DATA = _folder("FUSEBOOK_DATA", CACHE)
CHECKPOINTS = _folder("FUSEBOOK_CHECKPOINTS", ROOT / "checkpoints")
RESULTS = _folder("FUSEBOOK_RESULTS", ROOT / "data" / "results")
LOCAL = RESULTS / "local"
LOGS = "logs"  # in a sweep's folder below LOCAL: what its runs print and say
FIGURES = _folder("FUSEBOOK_FIGURES", ROOT / "figures")
NOTEBOOKS = ROOT / "notebooks"

# Before OpenMP is loaded. By default its threads spin at each barrier, so that a second busy process on the same cores
# slows a two-thread training step by a factor of 8 (measured: 45 to 390 ms); waiting passively it is 90 ms.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A user who may not write his home folder (a container's, say): matplotlib and IPython would warn at every start, and
# Snakemake would not start at all.
if not os.access(Path("~").expanduser(), os.W_OK):
    for _name, _place in {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "IPYTHONDIR": ".ipython"}.items():
        os.environ.setdefault(_name, str(ROOT / "data" / _place))


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


def inside(path: Path) -> str:
    """`path` from the repo's root on, where it lies below it."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


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
    """A new file beside `path`, and the handle that locks it for as long as its process lives (None without fcntl:
    a lock of Windows would keep out the very writes it stands for)."""
    _remove_left(path)
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.unfinished-", suffix=path.suffix)
        if not filelock.has_fcntl:
            os.close(handle)
            return Path(name), None
        try:
            if filelock.lock_descriptor(handle, blocking=False) and os.path.exists(name):
                return Path(name), handle
        except OSError:  # the folder has no locks
            return Path(name), handle
        os.close(handle)  # another process took the new file for one left over


def _remove_left(path: Path) -> None:
    """Removes what killed processes left of `path` half-written: the files of `_temporary` that nobody locks."""
    pattern = f".{glob.escape(path.stem)}.unfinished-*{glob.escape(path.suffix)}"
    for left in path.parent.glob(pattern) if filelock.has_fcntl else ():
        with suppress(OSError):  # another process was faster, or the folder has no locks
            handle = os.open(left, os.O_RDWR)
            try:
                if filelock.lock_descriptor(handle, blocking=False):
                    left.unlink()
            finally:
                os.close(handle)


@contextmanager
def locked(*files: Path, waiting: str = "") -> Iterator[None]:
    """Makes this process the only one that makes `files`, by a lock on <stem>.lock beside the first of them; prints
    `waiting` if another process has to be waited for. Removes what killed writers of them left half-written.

    The operating system releases the lock when the process ends, however it ends: no lock is ever stale. A folder that
    has no locks, or may not be written, is not locked: each write is still atomic, the last whole one wins.
    """
    path = files[0].with_suffix(".lock")
    lock = filelock.FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if waiting:
                print(waiting, flush=True)
            lock.acquire()
    try:
        if lock.is_locked:
            for file in files:
                _remove_left(file)
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()  # still locked: whoever waits for it sees that the file is gone, and starts anew
            lock.release()
