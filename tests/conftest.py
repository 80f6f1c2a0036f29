"""Settings for the whole suite: no test may fail because the machine is slow, or open a window."""

from collections.abc import Callable

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use("Agg")  # not by MPLBACKEND: the kernels that notebook tests start would inherit it

settings.register_profile("fusebook", deadline=None, derandomize=True)
settings.load_profile("fusebook")


@pytest.fixture(scope="module")
def announce(request) -> Callable[[str], None]:
    """Prints a line past the capture, also of a test that passes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}")

    return say
