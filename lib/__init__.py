"""fusebook's library: thin modules that the notebooks drive. No experiment lives here."""

import os
from pathlib import Path

# Before OpenMP is loaded. By default its threads spin at each barrier, so that a second busy process on the same cores
# slows a two-thread training step by a factor of 8 (measured: 45 to 390 ms); waiting passively it is 90 ms.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A user who may not write his home folder (a container's, say): matplotlib and IPython would warn at every start, and
# Snakemake would not start at all.
if not os.access(Path("~").expanduser(), os.W_OK):
    for _name, _folder in {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "IPYTHONDIR": ".ipython"}.items():
        os.environ.setdefault(_name, str(Path(__file__).resolve().parents[1] / "data" / _folder))
