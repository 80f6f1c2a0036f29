"""Progress bars."""

import sys
from typing import Any

import tqdm as _tqdm


class tqdm(_tqdm.tqdm):
    """tqdm's bar; in a notebook on standard output, for what goes to standard error is shown there as an error."""

    def __init__(self, *args: Any, file: Any = None, **options: Any) -> None:
        in_notebook = type(sys.stdout).__module__.startswith("ipykernel.")
        super().__init__(*args, file=sys.stdout if file is None and in_notebook else file, **options)
