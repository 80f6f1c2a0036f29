"""Copies of the notebooks to work on: `make lab` opens them, and the tracked ones stay as they are.

A copy is made anew when its original has changed, unless its cells were edited: an edited copy is never overwritten.
"""

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from .. import paths
from ..records.origin import cells_hash

COPIES = paths.NOTEBOOKS / "local"
STATE = ".copied.json"  # {name: hash of the cells that were copied}


def refresh(originals: Path = paths.NOTEBOOKS, copies: Path = COPIES) -> list[str]:
    """Copies each notebook of a folder into another, and returns a line on each edited copy that was kept."""
    copies.mkdir(parents=True, exist_ok=True)
    copied: dict[str, str] = {}
    with suppress(OSError, ValueError):
        copied = json.loads((copies / STATE).read_text())
    kept = []
    for original in sorted(originals.glob("*.ipynb")):
        copy, now = copies / original.name, cells_hash(original.read_text(encoding="utf-8", errors="replace"))
        there = cells_hash(copy.read_text(encoding="utf-8", errors="replace")) if copy.is_file() else None
        if there is not None and there not in (now, copied.get(original.name)):
            changed = "; the original has changed since" if copied.get(original.name) != now else ""
            kept.append(f"{copy.name}: edited, kept as it is{changed} (remove it for a new copy)")
            continue
        if there != now:
            with paths.atomic(copy) as unfinished:
                shutil.copyfile(original, unfinished)
        copied[original.name] = now
    with paths.atomic(copies / STATE) as unfinished:
        unfinished.write_text(json.dumps(copied, indent=1))
    return kept


if __name__ == "__main__":
    for line in refresh():
        print(line, file=sys.stderr)
