"""How often the 95 % intervals of `evidence` hold the true mean, against those of two bootstraps, in simulation.

`python -m lib.paper.coverage` writes the record data/results/coverage.json; `make figures` makes its table of it.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import InputError, check_whole
from ..paths import RESULTS
from ..records import portable, provenance, record, write_record
from . import evidence

SIZES = (3, 4, 5, 6, 10)
SAMPLES = 1500
RESAMPLES = 999  # 9,999 move the coverage by less than its own standard error, and take ten times as long
# Each with its true mean.
DISTRIBUTIONS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]] = {
    "normal": (lambda generator, shape: generator.normal(size=shape), 0.0),
    "exponential": (lambda generator, shape: generator.exponential(size=shape), 1.0),
}


def student(values: np.ndarray, seed: int) -> tuple[float, float]:
    """The interval of `evidence.mean_interval`; `values` (n,). `seed` plays no part."""
    found = evidence.mean_interval(values.tolist())
    return found.low, found.high


def percentile(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean at the expanded level of Hesterberg, What Teachers Should Know About the
    Bootstrap, 2015, which makes up for resamples of few values varying too little."""
    from scipy import stats

    n = len(values)
    quantile = stats.t.ppf((1 + evidence.LEVEL) / 2, n - 1)
    return _bootstrap(values, seed, float(1 - 2 * stats.norm.sf(math.sqrt(n / (n - 1)) * quantile)), "percentile")


def bca(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap of the mean (Efron, Better Bootstrap Confidence Intervals, 1987)."""
    return _bootstrap(values, seed, evidence.LEVEL, "BCa")


def _bootstrap(values: np.ndarray, seed: int, level: float, method: str) -> tuple[float, float]:
    from scipy import stats

    ends = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method=method,
        random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(ends.low), float(ends.high)


METHODS = {"t": student, "bootstrap (percentile, expanded)": percentile, "bootstrap (BCa)": bca}


def coverage_rows(sizes: Iterable[int], samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row a distribution, method and n: {"study", "distribution", "method", "n", "samples", "covered"}; the last a
    fraction, with a standard error of sqrt(covered · (1 − covered) / samples). All methods see the same samples."""
    rows = []
    for name, (draw, truth) in DISTRIBUTIONS.items():
        for n in sizes:
            drawn = draw(np.random.default_rng((seed, n)), (samples, n))
            for method, interval in METHODS.items():
                ends = [interval(values, index) for index, values in enumerate(drawn)]
                covered = float(np.mean([low <= truth <= high for low, high in ends]))
                kind = {"study": "coverage", "distribution": name, "method": method, "n": n}
                rows.append(kind | {"samples": samples, "covered": covered})
                print(f"{name}, n = {n}, {method}: {100 * covered:.1f} %", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 for a number of samples that is none."""
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=SAMPLES, help="simulated samples of each kind")
    parser.add_argument("--record", type=Path, default=RESULTS / "coverage.json", help="where the record goes")
    options = parser.parse_args(arguments)
    try:
        check_whole("samples", options.samples, 1)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    started = datetime.now(UTC)
    rows = coverage_rows(SIZES, options.samples)
    origin = provenance({"samples": options.samples, "resamples": RESAMPLES, "seed": 0}, None, "cpu", started)
    written = record(experiment="coverage", preset="quick", dataset=None, rows=rows, provenance=origin)
    print(f"wrote {portable(write_record(options.record, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
