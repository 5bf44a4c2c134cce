"""Corr and Cov of two inputs over the rows of a window where both have a value.

Sums of squares and products run about anchors of both inputs (``sums.py`` says what these are). They start afresh only
with an empty window: one input alone may stand still, and when it moves again too little is left of its old sums, so
that the lane is added up again anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from qlib_llm_alpha.engine.kernels.plain import Windows
from qlib_llm_alpha.engine.kernels.registry import KERNELS, LANES, Array, Kernel, Lanes, jit
from qlib_llm_alpha.engine.kernels.sums import KEEP, inlined, is_lost, is_value, pick, slide, spread_of, var

QUIET: Final = 2e-05**2
"""Qlib blanks correlations of inputs whose own deviation is at most 2e-5; this is the square."""


def _running(is_corr: bool, has_own: bool) -> Callable[..., None]:
    """Return the loop for the correlation or the covariance.

    ``has_own``: the inputs miss different rows, so that the window of one input may hold values that the joint window
    does not; ``own_x`` and ``own_y`` then give the variance of each input's own window. Where the counts agree the
    windows are the same, and both loops decide by the joint sums, to the same bits.
    """

    def run(x: Array, y: Array, out: Array, own_x: Array, own_y: Array, window: int) -> None:
        period = max(256, 2 * window)
        state = np.zeros((17, LANES))
        anchor_x, anchor_y, sum_x, sum_y = state[0], state[1], state[2], state[3]
        sum_xx, sum_yy, sum_xy, peak_x, peak_y, count = state[4], state[5], state[6], state[7], state[8], state[9]
        same_x, same_y, last_x, last_y = state[10], state[11], state[12], state[13]
        count_x, count_y, lost_lanes = state[14], state[15], state[16]
        missing_x, missing_y = np.full(LANES, np.nan, x.dtype), np.full(LANES, np.nan, y.dtype)
        for t in range(x.shape[0]):
            entering_x, entering_y = x[t], y[t]
            leaving_x = x[t - window] if t >= window else missing_x
            leaving_y = y[t - window] if t >= window else missing_y
            due = t > 0 and t % period == 0
            any_due = due
            for j in range(LANES):
                new_x, new_y = np.float64(entering_x[j]), np.float64(entering_y[j])
                old_x, old_y = np.float64(leaving_x[j]), np.float64(leaving_y[j])
                entered, left_it = is_value(new_x) & is_value(new_y), is_value(old_x) & is_value(old_y)
                if has_own:
                    count_x[j] += pick(is_value(new_x), 1.0, 0.0) - pick(is_value(old_x), 1.0, 0.0)
                    count_y[j] += pick(is_value(new_y), 1.0, 0.0) - pick(is_value(old_y), 1.0, 0.0)
                _, _, _, same_x[j], last_x[j], flat_x = slide(count[j], same_x[j], last_x[j], new_x, entered, left_it)
                left, _, n, same_y[j], last_y[j], flat_y = slide(
                    count[j], same_y[j], last_y[j], new_y, entered, left_it
                )
                count[j] = n
                empty = left == 0.0
                cx = pick(empty, new_x, anchor_x[j])
                cy = pick(empty, new_y, anchor_y[j])
                come_x, come_y = pick(entered, new_x - cx, 0.0), pick(entered, new_y - cy, 0.0)
                gone_x, gone_y = pick(left_it, old_x - cx, 0.0), pick(left_it, old_y - cy, 0.0)
                sx = pick(empty, 0.0, sum_x[j] - gone_x) + come_x
                sy = pick(empty, 0.0, sum_y[j] - gone_y) + come_y
                sxx = pick(empty, 0.0, sum_xx[j] - gone_x * gone_x) + come_x * come_x
                syy = pick(empty, 0.0, sum_yy[j] - gone_y * gone_y) + come_y * come_y
                sxy = pick(empty, 0.0, sum_xy[j] - gone_x * gone_y) + come_x * come_y
                anchor_x[j], anchor_y[j], sum_x[j], sum_y[j] = cx, cy, sx, sy
                sum_xx[j], sum_yy[j], sum_xy[j] = sxx, syy, sxy
                px, py = pick(empty, 0.0, peak_x[j]), pick(empty, 0.0, peak_y[j])
                px, py = pick(sxx > px, sxx, px), pick(syy > py, syy, py)
                peak_x[j], peak_y[j] = px, py
                if is_corr:
                    value, quiet_x, quiet_y = _correlation(n, sx, sy, sxx, syy, sxy, flat_x, flat_y)
                    if has_own:
                        quiet_x = _is_quiet(n, quiet_x, count_x[j], own_x[t, j])
                        quiet_y = _is_quiet(n, quiet_y, count_y[j], own_y[t, j])
                    out[t, j] = pick(quiet_x | quiet_y, np.nan, value)
                else:
                    out[t, j] = _covariance(n, sx, sy, sxy, flat_x | flat_y)
                lost = ((not flat_x) & is_lost(n * sxx - sx * sx, n * px, KEEP)) | (
                    (not flat_y) & is_lost(n * syy - sy * sy, n * py, KEEP)
                )
                lost_lanes[j] = pick(lost, 1.0, 0.0)
                any_due |= lost
            start = max(0, t - window + 1)
            if due:
                _add_up(x, y, start, t + 1, state)
            if any_due:
                for j in range(LANES):
                    if lost_lanes[j] > 0.0 or due:
                        n = count[j]
                        if not due:
                            _add_up_lane(x, y, start, t + 1, j, state)
                        sx, sy, sxx, syy, sxy = sum_x[j], sum_y[j], sum_xx[j], sum_yy[j], sum_xy[j]
                        flat_x, flat_y = same_x[j] >= n, same_y[j] >= n
                        if is_corr:
                            value, quiet_x, quiet_y = _correlation(n, sx, sy, sxx, syy, sxy, flat_x, flat_y)
                            if has_own:
                                quiet_x = _is_quiet(n, quiet_x, count_x[j], own_x[t, j])
                                quiet_y = _is_quiet(n, quiet_y, count_y[j], own_y[t, j])
                            out[t, j] = pick(quiet_x | quiet_y, np.nan, value)
                        else:
                            out[t, j] = _covariance(n, sx, sy, sxy, flat_x | flat_y)

    return run


@inlined
def _correlation(
    n: float, sx: float, sy: float, sxx: float, syy: float, sxy: float, flat_x: bool, flat_y: bool
) -> tuple[float, bool, bool]:
    """Return the correlation, NaN for fewer than two rows or equal values, and whether x, y hardly move."""
    spread_x, spread_y = pick(flat_x, 0.0, n * sxx - sx * sx), pick(flat_y, 0.0, n * syy - sy * sy)
    value = (n * sxy - sx * sy) / np.sqrt(spread_x * spread_y)
    value = pick(value > 1.0, 1.0, pick(value < -1.0, -1.0, value))
    limit = QUIET * (n * (n - 1.0))
    return pick((n < 2.0) | flat_x | flat_y, np.nan, value), spread_x <= limit, spread_y <= limit


@inlined
def _covariance(n: float, sx: float, sy: float, sxy: float, flat: bool) -> float:
    value = pick(flat, 0.0, n * sxy - sx * sy) / (n * (n - 1.0))
    covariance: float = pick(n > 1.0, value, np.nan)
    return covariance


@inlined
def _is_quiet(n: float, jointly: bool, own_count: float, own_variance: float) -> bool:
    return bool((jointly & (own_count == n)) | ((own_variance <= QUIET) & (own_count > n)))


@inlined
def _add_up(x: Array, y: Array, start: int, stop: int, state: Array) -> None:
    cx, cy, sx, sy, sxx, syy, sxy = state[0], state[1], state[2], state[3], state[4], state[5], state[6]
    peak_x, peak_y, count = state[7], state[8], state[9]
    for i in range(7):
        for j in range(LANES):
            state[i, j] = 0.0
    for row in range(start, stop):
        for j in range(LANES):
            a, b = np.float64(x[row, j]), np.float64(y[row, j])
            both = is_value(a) & is_value(b)
            cx[j] += pick(both, a, 0.0)
            cy[j] += pick(both, b, 0.0)
    for j in range(LANES):
        cx[j] /= count[j]
        cy[j] /= count[j]
    for row in range(start, stop):
        for j in range(LANES):
            a, b = np.float64(x[row, j]), np.float64(y[row, j])
            both = is_value(a) & is_value(b)
            a, b = pick(both, a - cx[j], 0.0), pick(both, b - cy[j], 0.0)
            sx[j] += a
            sy[j] += b
            sxx[j] += a * a
            syy[j] += b * b
            sxy[j] += a * b
    for j in range(LANES):
        peak_x[j] = sxx[j]
        peak_y[j] = syy[j]


@inlined
def _add_up_lane(x: Array, y: Array, start: int, stop: int, j: int, state: Array) -> None:
    cx, cy = 0.0, 0.0
    for row in range(start, stop):
        a, b = np.float64(x[row, j]), np.float64(y[row, j])
        both = is_value(a) & is_value(b)
        cx += pick(both, a, 0.0)
        cy += pick(both, b, 0.0)
    cx, cy = cx / state[9, j], cy / state[9, j]
    sx, sy, sxx, syy, sxy = 0.0, 0.0, 0.0, 0.0, 0.0
    for row in range(start, stop):
        a, b = np.float64(x[row, j]), np.float64(y[row, j])
        both = is_value(a) & is_value(b)
        a, b = pick(both, a - cx, 0.0), pick(both, b - cy, 0.0)
        sx += a
        sy += b
        sxx += a * a
        syy += b * b
        sxy += a * b
    state[0, j], state[1, j], state[2, j], state[3, j] = cx, cy, sx, sy
    state[4, j], state[5, j], state[6, j] = sxx, syy, sxy
    state[7, j], state[8, j] = sxx, syy


@jit
def _miss_different_rows(x: Array, y: Array) -> bool:
    for t in range(x.shape[0]):
        different = False
        for j in range(LANES):
            different |= is_value(np.float64(x[t, j])) != is_value(np.float64(y[t, j]))
        if different:
            return True
    return False


_corr = jit(_running(True, False))
_corr_own = jit(_running(True, True))
_cov = jit(_running(False, False))


def corr(x: Array, y: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the correlation over the rows where both have a value, as Qlib's ``Corr``.

    NaN for fewer than two such rows, for equal values, and where the deviation of an input over *its own* window (all
    its values, whether or not the other has one) is at most 2e-5. Never beyond 1.
    """
    if _miss_different_rows(x, y):
        own_x, own_y = np.empty(x.shape), np.empty(x.shape)
        var(x, own_x, window, first)
        var(y, own_y, window, first)
        _corr_own(x, y, out, own_x, own_y, window)
    else:
        _corr(x, y, out, out, out, window)


def cov(x: Array, y: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the covariance (divisor: count - 1) over the rows where both have a value; NaN for fewer than two."""
    _cov(x, y, out, out, out, window)


def _corr_fallback(x: Array, y: Array, window: int, first: Lanes) -> Array:
    with_x, with_y = np.isfinite(x), np.isfinite(y)
    with np.errstate(all="ignore"):
        windows = Windows(with_x & with_y, window)
        n, apart_x, apart_y = windows.count, windows.distances(x), windows.distances(y)
        squares_x, squares_y = windows.sums(apart_x * apart_x), windows.sums(apart_y * apart_y)
        products = windows.sums(apart_x * apart_y)
        sum_x, sum_y = windows.sums(apart_x), windows.sums(apart_y)
        spread_x, spread_y = spread_of(n, sum_x, squares_x), spread_of(n, sum_y, squares_y)
        value = (n * products - sum_x * sum_y) / np.sqrt(spread_x * spread_y)
        value = np.minimum(np.maximum(value, -1.0), 1.0)
        for mine, with_mine, spread in ((x, with_x, spread_x), (y, with_y, spread_y)):
            if windows.present is None or np.array_equal(with_mine, windows.present):
                quiet = spread <= QUIET * (n * (n - 1.0))
            else:
                quiet = KERNELS["Var"].fallback(mine, window, first) <= QUIET
            np.copyto(value, np.nan, where=quiet)
    return value


def _cov_fallback(x: Array, y: Array, window: int, first: Lanes) -> Array:
    with np.errstate(all="ignore"):
        windows = Windows(np.isfinite(x) & np.isfinite(y), window)
        n, apart_x, apart_y = windows.count, windows.distances(x), windows.distances(y)
        products = windows.sums(apart_x * apart_y)
        value: Array = (n * products - windows.sums(apart_x) * windows.sums(apart_y)) / (n * (n - 1.0))
    return value


KERNELS["Corr"] = Kernel("Corr", 2, corr, _corr_fallback)
KERNELS["Cov"] = Kernel("Cov", 2, cov, _cov_fallback)
