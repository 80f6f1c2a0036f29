"""The affinity's kernels, block by block, on a few threads."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# One pass over a tile of this many float32 stays in a core's L2 cache: the exact kernel is five passes over
# it.
TILE = 64 * 1024
# Below this many multiply-adds a product is not worth handing to another thread.
WORTH_SHARING = 8_000_000
LOG2_E = math.log2(math.e)


class Workers:
    """Runs independent tasks on a few threads, each of which computes single-threaded.

    Why not torch's own threads: the kernels here are many short operations, and OpenMP puts a barrier behind
    each. On a machine with other work on a core, every barrier then waits for the scheduler (measured: 8 ms
    an operation of 0.3 ms), so that two threads were up to twenty times slower than one. Whole tasks, handed
    out as threads become free, have one barrier a batch. Tasks are cut by size alone and their results are
    combined in order, so that the result does not depend on the number of threads.
    """

    def __init__(self, device: torch.device, threads: int | None = None):
        self.threads = (threads or torch.get_num_threads()) if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None

    def map(self, task: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """[task(item) for item in items], on the threads of an open `session`; in line outside of one."""
        if self._pool is None or len(items) < 2:
            return [task(item) for item in items]
        return list(self._pool.map(task, items))

    @contextmanager
    def session(self) -> Iterator[None]:
        """Within it torch's own threading is off and `map` uses `threads` threads."""
        before = torch.get_num_threads()
        if self._pool is not None or (self.threads == 1 and before == 1):
            yield
            return
        torch.set_num_threads(1)
        try:
            if self.threads == 1:
                yield
                return
            with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as self._pool:
                yield
        finally:
            self._pool = None
            torch.set_num_threads(before)


def _pair(x: Tensor, y: Tensor, kernel: str) -> Tensor:
    """The kernel between x and y (d, ...), which broadcast; summed over d. Differences are taken directly."""
    if kernel == "inner":
        return (x * y).sum(0)
    return torch.linalg.vector_norm(x - y, dim=0).neg_().exp_()


def _distance_factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(m, n, d + 2) and (m, d + 2, n) whose product is the squared distance of x[m, i], y[m, j] over (ln
    2)^2, x, y (m, n, d).

    Centred first: the product cancels, and what it loses is relative to the squared norms. What is lost
    matters for near-equal vectors only (distance below 1e-3 of the norm), whose match stands out anyway.
    Distances are in units of ln 2, since exp2 takes half the time of exp.
    """
    centre = x.mean((0, 1))
    x, y = (x - centre) * LOG2_E, (y - centre) * LOG2_E
    left = torch.cat([x, x.square().sum(2, keepdim=True), torch.ones_like(x[..., :1])], dim=2)
    right = torch.cat([y * -2, torch.ones_like(y[..., :1]), y.square().sum(2, keepdim=True)], dim=2)
    return left, right.transpose(1, 2)


def _accumulate(left: Tensor, right: Tensor, deep: int, total: Tensor) -> None:
    """total += sum over m of exp(-distance), left (m, r, k), right (m, k, n), total float64 (r, n), `deep` m
    a tile.

    The signal is a few thousandths of the sum: float32 holds 32 terms (or one tile), float64 the rest.
    """
    count, height, width = left.shape[0], left.shape[1], right.shape[2]
    tile = left.new_empty(min(deep, count), height, width)
    some, held = left.new_zeros(height, width), 0
    for start in range(0, count, deep):
        stop = min(start + deep, count)
        out = tile[: stop - start]
        torch.bmm(left[start:stop], right[start:stop], out=out)
        out.clamp_min_(0).sqrt_().neg_().exp2_()
        some += out.sum(0) if stop - start > 1 else out[0]
        held += stop - start
        if held >= 32 or stop == count:
            total += some
            some.zero_()
            held = 0


def _blocks(size: int, pieces: int) -> list[slice]:
    edges = torch.linspace(0, size, min(pieces, size) + 1).round().int().tolist()
    return [slice(lo, hi) for lo, hi in zip(edges, edges[1:], strict=False) if hi > lo]
