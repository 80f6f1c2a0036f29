"""Settings for the whole suite: no test may fail because the machine is slow, or open a window."""

import os
from collections.abc import Callable

# Before torch is loaded, here and in what a test starts: each worker has a core, and threads of two would get into each
# other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use("Agg")  # not by MPLBACKEND: the kernels that notebook tests start would inherit it

settings.register_profile("fusebook", deadline=None, derandomize=True)
settings.load_profile("fusebook")


ANNOUNCED: list[str] = []


@pytest.fixture(scope="module")
def announce() -> Callable[[str], None]:
    """Says a line at the end of the session, also of tests that pass."""
    return ANNOUNCED.append


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist, whose terminal nobody sees
        session.config.workeroutput["announced"] = ANNOUNCED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    ANNOUNCED.extend(getattr(node, "workeroutput", {}).get("announced", []))


def pytest_terminal_summary(terminalreporter):
    for line in ANNOUNCED:
        terminalreporter.write_line(line)
