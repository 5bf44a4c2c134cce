"""Largest and smallest value of a window, and where it stands.

The method is van Herk's and Gil and Werman's: time is cut into blocks as long as the window, so a window is the end of
one block and the beginning of the next. The best of every end is worked out once, when its block is complete; the best
of the beginning grows row by row. Three comparisons a row, whatever the window, and no queue whose length differs from
lane to lane.

``Min`` is ``Max`` of the values with their signs turned, and ``IdxMin`` is ``IdxMax`` of them.
"""

from __future__ import annotations

from typing import Any

import bottleneck
import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.plain import Windows
from qlib_llm_alpha.engine.kernels.registry import LANES, Array, Lanes, jit, kernel

Tile = NDArray[Any]


@jit
def scratch(rows: int, like: Tile) -> Tile:
    """Make room for ``rows`` rows of state, one behind the other, of the type of ``like``.

    It is flat, so that "the same lane, one row on" is a distance the compiler knows (``+ LANES``): with two axes it
    cannot tell whether two rows overlap, checks that before every row, and the checks cost more than the work. It
    begins at a cache line: vectors that straddle two lines are read and written at half the speed.

    Parameters
    ----------
    rows : int
        How many rows of ``LANES`` numbers.
    like : array
        Gives the type of the numbers.

    Returns
    -------
    array, (rows * LANES,)
        Not filled.
    """
    line = 64 // like.itemsize
    room = np.empty(rows * LANES + line, like.dtype)
    skip = (-room.ctypes.data % 64) // like.itemsize
    return room[skip : skip + rows * LANES]


def _max_fallback(x: Array, window: int, first: Lanes) -> Array:
    largest: Array = bottleneck.move_max(np.where(np.isfinite(x), x, np.nan), min(window, len(x)), 1, axis=0)
    return largest


def _min_fallback(x: Array, window: int, first: Lanes) -> Array:
    smallest: Array = bottleneck.move_min(np.where(np.isfinite(x), x, np.nan), min(window, len(x)), 1, axis=0)
    return smallest


def _idxmax_fallback(x: Array, window: int, first: Lanes) -> Array:
    return _place_of_best(x, window, first, 1.0)


def _idxmin_fallback(x: Array, window: int, first: Lanes) -> Array:
    return _place_of_best(x, window, first, -1.0)


def _place_of_best(x: Array, window: int, first: Lanes, sign: float) -> Array:
    rows, lanes = x.shape
    width = min(window, rows)
    present, row = np.isfinite(x), np.arange(rows)[:, None]
    # A missing value counts as the largest, and what is no part of the window as the smallest.
    score = np.full((rows + width - 1, lanes), -np.inf)
    score[width - 1 :] = np.where(present, sign * x, np.where(row >= first, np.inf, -np.inf))
    # bottleneck takes the last of equals and counts from the end: time runs backwards, and it is the first.
    steps = bottleneck.move_argmax(score[::-1], width, axis=0)[width - 1 :][::-1]
    place = steps + 1.0 - np.maximum(first - row + width - 1, 0)
    return np.where(Windows(present, window).count > 0.0, place, np.nan)


@jit
def _best(x: Tile, out: Array, window: int, sign: float) -> None:
    rows = x.shape[0]
    window = min(window, rows)
    real = x.dtype.type
    turn, nothing = real(sign), real(-np.inf)
    ends = scratch(window + 1, x)  # row i: best of rows i.. of the block before this one
    ends[:] = nothing
    growing = scratch(1, x)  # best of this block so far
    for start in range(0, rows, max(window, 1)):
        stop = min(rows, start + window)
        growing[:] = nothing
        for t in range(start, stop):
            end = ends[(t - start + 1) * LANES :]
            for j in range(LANES):
                value, best, before = x[t, j], growing[j], end[j]
                value = turn * value if value - value == 0 else nothing
                best = value if value >= best else best  # of equals (0.0 and -0.0) the newest, as pandas
                growing[j] = best
                best = best if best >= before else before
                result = np.float64(turn * best)
                out[t, j] = result if best > nothing else np.nan
        if stop - start == window:
            for i in range(window - 1, 0, -1):
                end = ends[i * LANES :]
                for j in range(LANES):
                    value, later = x[start + i, j], end[j + LANES]
                    value = turn * value if value - value == 0 else nothing
                    end[j] = later if later >= value else value


@jit
def _best_place(x: Tile, out: Array, window: int, first: Lanes, sign: float) -> None:
    rows = x.shape[0]
    window = min(window, rows)
    real = x.dtype.type
    turn, nothing = real(sign), real(-np.inf)
    missing = real(np.inf)  # numpy's argmax: a NaN beats every number, and the oldest of equals wins
    # Row numbers are kept as floats, exact up to 2**24 rows, so that values and rows fill vectors of one width.
    ends = scratch(2 * (window + 1), x)  # best value of the end of the block before, its row; for every end
    ends[:] = nothing
    state = scratch(4, x)  # best value of this block, its row; last row with a value; first row that exists
    for j in range(LANES):
        state[j + LANES] = real(0)
        state[j + 2 * LANES] = real(-window - 1)
        state[j + 3 * LANES] = real(first[j])
    for start in range(0, rows, max(window, 1)):
        stop = min(rows, start + window)
        state[:LANES] = nothing
        for t in range(start, stop):
            end = ends[2 * (t - start + 1) * LANES :]
            now, oldest = real(t), real(t - window + 1)
            for j in range(LANES):
                value, best, place = x[t, j], state[j], state[j + LANES]
                seen, begin = state[j + 2 * LANES], state[j + 3 * LANES]
                before, place_before = end[j], end[j + LANES]
                finite = value - value == 0
                seen = now if finite else seen
                absent = missing if now >= begin else nothing
                value = turn * value if finite else absent
                place = now if value > best else place
                best = value if value > best else best
                state[j] = best
                state[j + LANES] = place
                state[j + 2 * LANES] = seen
                place = place if best > before else place_before
                begin = oldest if oldest > begin else begin
                begin = begin if begin > 0 else real(0)
                result = np.float64(place - begin) + 1.0
                out[t, j] = result if seen >= oldest else np.nan
        if stop - start == window:
            for i in range(window - 1, 0, -1):
                end = ends[2 * i * LANES :]
                now = real(start + i)
                for j in range(LANES):
                    value, begin = x[start + i, j], state[j + 3 * LANES]
                    later, place_later = end[j + 2 * LANES], end[j + 3 * LANES]
                    absent = missing if now >= begin else nothing
                    value = turn * value if value - value == 0 else absent
                    end[j] = later if later > value else value
                    end[j + LANES] = place_later if later > value else now


@kernel("Max", _max_fallback)
def highest(x: Tile, out: Array, window: int, first: Lanes) -> None:
    """Write the largest value of each window."""
    _best(x, out, window, 1.0)


@kernel("Min", _min_fallback)
def lowest(x: Tile, out: Array, window: int, first: Lanes) -> None:
    """Write the smallest value of each window."""
    _best(x, out, window, -1.0)


@kernel("IdxMax", _idxmax_fallback)
def place_of_highest(x: Tile, out: Array, window: int, first: Lanes) -> None:
    """Write the place of the largest value, the oldest row of the window that exists being 1.

    As Qlib, which asks ``numpy.argmax``: of equal values the oldest, and a missing value counts as the largest.
    """
    _best_place(x, out, window, first, 1.0)


@kernel("IdxMin", _idxmin_fallback)
def place_of_lowest(x: Tile, out: Array, window: int, first: Lanes) -> None:
    """Write the place of the smallest value, as :func:`place_of_highest` does for the largest."""
    _best_place(x, out, window, first, -1.0)
