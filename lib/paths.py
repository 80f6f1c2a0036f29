"""Every folder of the repo, absolute, so that a notebook runs alike from the root, from notebooks/ and from papermill.

Environment variables FUSEBOOK_DATA, _CACHE, _CHECKPOINTS, _RESULTS and _FIGURES override them one by one.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    typed = Path(path).expanduser()
    candidates = [typed.absolute(), *(folder / typed for folder in folders), ROOT / typed]
    return next((c for c in candidates if c.exists()), candidates[-1])


def target(typed: str | os.PathLike, default: str | os.PathLike) -> Path:
    """Where to write what a user typed, `default` if that is empty; a relative path starts at the repo's root."""
    path = Path(typed or default)
    return path if path.is_absolute() else ROOT / path


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; moves it into place on success and removes it on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
