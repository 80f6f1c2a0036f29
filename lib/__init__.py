"""fusebook's library: thin modules that the notebooks drive. No experiment lives here."""

import os

# Before OpenMP is loaded. By default its threads spin at each barrier, so that a second busy process on the same cores
# slows a two-thread training step by a factor of 8 (measured: 45 to 390 ms); waiting passively it is 90 ms.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
