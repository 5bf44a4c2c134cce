"""The memory bandwidth of this machine, as the STREAM benchmark counts it: bytes read and bytes written."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engine_peers.competitor import Competitor
from engine_peers.market import Market

CELLS = 1 << 25  # 128 MB of float32: far beyond the caches
CELLS_AT_ONCE = 1 << 15  # a piece of the triad that stays in the second-level cache between its two passes
REPEATS = 9


class Bandwidth(Competitor):
    """Copy (``a = b``) and triad (``a = b + 3 c``) on arrays that no cache holds."""

    versions = ("numpy",)

    def __init__(self, market: Market, threads: int) -> None:
        super().__init__(market, threads)
        self.a, self.b, self.c = (np.ones(CELLS, np.float32) for _ in range(3))
        bounds = np.linspace(0, CELLS, threads + 1).astype(int)
        self.parts = list(itertools.pairwise(bounds))
        self.pool = ThreadPoolExecutor(threads)

    def measure(self) -> dict[str, float]:
        """Return the medians in GB/s, all threads together."""
        return {"copy": self._rate(self._copy, 2), "triad": self._rate(self._triad, 3)}

    def _rate(self, job: Callable[[tuple[int, int]], None], arrays: int) -> float:
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            list(self.pool.map(job, self.parts))
            seconds.append(time.perf_counter() - began)
        return arrays * self.a.nbytes / statistics.median(seconds) / 1e9

    def _copy(self, part: tuple[int, int]) -> None:
        np.copyto(self.a[slice(*part)], self.b[slice(*part)])

    def _triad(self, part: tuple[int, int]) -> None:
        scaled = np.empty(CELLS_AT_ONCE, np.float32)
        for start in range(part[0], part[1], CELLS_AT_ONCE):
            piece = slice(start, min(start + CELLS_AT_ONCE, part[1]))
            here = scaled[: piece.stop - piece.start]
            np.multiply(self.c[piece], np.float32(3), out=here)
            np.add(self.b[piece], here, out=self.a[piece])
