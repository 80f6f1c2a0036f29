"""Settings for the whole suite: no test may fail because the machine is slow, or open a window."""

import matplotlib
from hypothesis import settings

matplotlib.use("Agg")  # not by MPLBACKEND: the kernels that notebook tests start would inherit it

settings.register_profile("fusebook", deadline=None, derandomize=True)
settings.load_profile("fusebook")
