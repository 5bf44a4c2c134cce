"""Mean, Sum, Count, Std and Var of a window, and what every moment-like kernel shares.

Sums are running: a row adds the value that enters and takes away the one that leaves, whatever the window. That loses
digits in three ways, and each has its answer here:

* squares of large values that differ little (a price of 3000 that moves by 0.003): squares are taken of distances to
  an *anchor*, the mean of the window a while ago;
* a huge value leaves, or prices walk far from the anchor: what is left carries the rounding error of what was. A *peak*
  is the largest sum since the window was last added up; when too little is left of it, the lane is added up again;
* drift: every ``max(256, 2 * window)`` rows every lane is added up again.

A window of equal values has no history worth keeping: its sums start again from that value (*afresh*), its mean is that
value and its deviation is 0.

All of it is decided lane by lane, so that an instrument's bits depend neither on its neighbours nor on later rows.

Loops over lanes must not branch, or they do not become vector instructions: both sides are computed, then
:func:`pick` chooses. For the same reason the state is one array with named rows: the compiler has to prove that arrays
do not overlap, and gives up when there are many.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.plain import Windows
from qlib_llm_alpha.engine.kernels.registry import (
    GROUPS,
    KERNELS,
    LANES,
    Array,
    Group,
    Kernel,
    Lanes,
    jit,
    kernel,
)

KEEP: Final = 2.0**16
"""A sum whose peak was more than this many times larger has lost too many digits."""

inlined: Final = partial(jit, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compile a function that only compiled ones call: quicker, for Python has no way in."""


@inlined
def pick(condition: bool, yes: float, no: float) -> float:
    """Return ``yes`` or ``no``, both of them computed: what ``yes if condition else no`` is without a branch."""
    return yes if condition else no


@inlined
def is_value(number: float) -> bool:
    """Whether ``number`` is neither NaN nor infinite."""
    return number - number == 0.0


@inlined
def is_lost(left: float, peak: float, keep: float) -> bool:
    """Whether too few digits are left of a sum. NaN, which is what overflow leaves behind, counts as lost."""
    return not (left * keep >= peak)


@inlined
def slide(
    count: float, same: float, last: float, new: float, entered: bool, left_it: bool
) -> tuple[float, bool, float, float, float, bool]:
    """Move a window by one row, as far as its values are counted and compared.

    Parameters
    ----------
    count : float
        Values in the window.
    same : float
        How many of the newest values, in the window or before it, are equal.
    last : float
        The newest value, whether or not it is still in the window.
    new : float
        The row that enters.
    entered, left_it : bool
        Whether the row that enters, and the one that leaves, holds a value.

    Returns
    -------
    left : float
        Values left when the old row is gone.
    afresh : bool
        They are all equal (or none), so that sums start again.
    count, same, last : float
        As above, for the new window.
    flat : bool
        The values of the new window are all equal (or none).
    """
    left = count - pick(left_it, 1.0, 0.0)
    now = left + pick(entered, 1.0, 0.0)
    equal = pick(entered, pick(new == last, same + 1.0, 1.0), same)
    return left, same >= left, now, equal, pick(entered, new, last), equal >= now


@inlined
def set_anchors(x: Array, start: int, stop: int, count: Array, anchor: Array) -> None:
    """Set every lane's anchor to the mean of its ``count`` values in the rows ``start`` to ``stop``."""
    for j in range(LANES):
        anchor[j] = 0.0
    for row in range(start, stop):
        for j in range(LANES):
            value = np.float64(x[row, j])
            anchor[j] += pick(is_value(value), value, 0.0)
    for j in range(LANES):
        anchor[j] /= count[j]


@inlined
def lane_anchor(x: Array, start: int, stop: int, j: int, count: float) -> float:
    """Return the anchor of lane ``j``, to the same bits."""
    total = 0.0
    for row in range(start, stop):
        value = np.float64(x[row, j])
        total += pick(is_value(value), value, 0.0)
    return total / count


@inlined
def variance(count: float, total: float, squares: float, flat: bool) -> float:
    """Return the unbiased variance from sums about any anchor: 0 for equal values, NaN for fewer than two."""
    spread = count * squares - total * total
    spread = pick(flat | (spread < 0.0), 0.0, spread)
    value: float = pick(count > 1.0, spread / (count * (count - 1.0)), np.nan)
    return value


def _running(has_level: bool, has_spread: bool) -> Callable[..., None]:
    """Return the loop for the level (mean or sum), the spread (deviation or variance) or both."""

    def run(
        x: Array, level_out: Array, spread_out: Array, window: int, first: Lanes, is_mean: bool, is_std: bool
    ) -> None:
        period = max(256, 2 * window)
        nothing = np.full(LANES, np.nan, x.dtype)
        state = np.zeros((12, LANES))
        count, same, last = state[0], state[1], state[2]
        total, size, size_peak, level_lost = state[3], state[4], state[5], state[6]
        anchor, apart, squares, squares_peak, spread_lost = state[7], state[8], state[9], state[10], state[11]
        for t in range(x.shape[0]):
            entering = x[t]
            leaving = x[t - window] if t >= window else nothing
            due = t > 0 and t % period == 0
            level_due = due and has_level
            spread_due = due and has_spread
            for j in range(LANES):
                new, old = np.float64(entering[j]), np.float64(leaving[j])
                before = last[j]
                entered, left_it = is_value(new), is_value(old)
                left, afresh, n, same[j], value, flat = slide(count[j], same[j], before, new, entered, left_it)
                count[j], last[j] = n, value
                if has_level:
                    come, gone = pick(entered, new, 0.0), pick(left_it, old, 0.0)
                    s = pick(afresh, before * left, total[j] - gone) + come
                    a = pick(afresh, abs(before) * left, size[j] - abs(gone)) + abs(come)
                    peak = pick(afresh, 0.0, size_peak[j])
                    peak = pick(a > peak, a, peak)
                    total[j], size[j], size_peak[j] = s, a, peak
                    level_out[t, j] = _level(n, s, value, flat, is_mean)
                    lost = (not flat) & is_lost(a, peak, KEEP)
                    level_lost[j] = pick(lost, 1.0, 0.0)
                    level_due |= lost
                if has_spread:
                    c = pick(afresh, pick(left > 0.0, before, new), anchor[j])
                    come, gone = pick(entered, new - c, 0.0), pick(left_it, old - c, 0.0)
                    s = pick(afresh, 0.0, apart[j] - gone) + come
                    q = pick(afresh, 0.0, squares[j] - gone * gone) + come * come
                    peak = pick(afresh, 0.0, squares_peak[j])
                    peak = pick(q > peak, q, peak)
                    anchor[j], apart[j], squares[j], squares_peak[j] = c, s, q, peak
                    spread_out[t, j] = _spread(n, s, q, flat, is_std)
                    lost = (not flat) & is_lost(n * q - s * s, n * peak, KEEP)
                    spread_lost[j] = pick(lost, 1.0, 0.0)
                    spread_due |= lost
            start = max(0, t - window + 1)
            if due:
                if has_level:
                    _add_up_sizes(x, start, t + 1, total, size, size_peak)
                if has_spread:
                    _add_up_squares(x, start, t + 1, count, anchor, apart, squares, squares_peak)
            if level_due:
                for j in range(LANES):
                    if level_lost[j] > 0.0 or due:
                        if not due:
                            total[j], size[j] = _lane_sizes(x, start, t + 1, j)
                            size_peak[j] = size[j]
                        level_out[t, j] = _level(count[j], total[j], last[j], same[j] >= count[j], is_mean)
            if spread_due:
                for j in range(LANES):
                    if spread_lost[j] > 0.0 or due:
                        if not due:
                            anchor[j], apart[j], squares[j] = _lane_squares(x, start, t + 1, j, count[j])
                            squares_peak[j] = squares[j]
                        spread_out[t, j] = _spread(count[j], apart[j], squares[j], same[j] >= count[j], is_std)

    return run


@inlined
def _level(count: float, total: float, last: float, flat: bool, is_mean: bool) -> float:
    value = pick(flat, pick(is_mean, last, last * count), pick(is_mean, total / count, total))
    value_or_nan: float = pick(count > 0.0, value, np.nan)
    return value_or_nan


@inlined
def _spread(count: float, total: float, squares: float, flat: bool, is_std: bool) -> float:
    value = variance(count, total, squares, flat)
    spread: float = pick(is_std, np.sqrt(value), value)
    return spread


@inlined
def _add_up_sizes(x: Array, start: int, stop: int, total: Array, size: Array, peak: Array) -> None:
    for j in range(LANES):
        total[j] = 0.0
        size[j] = 0.0
    for row in range(start, stop):
        for j in range(LANES):
            value = np.float64(x[row, j])
            value = pick(is_value(value), value, 0.0)
            total[j] += value
            size[j] += abs(value)
    for j in range(LANES):
        peak[j] = size[j]


@inlined
def _lane_sizes(x: Array, start: int, stop: int, j: int) -> tuple[float, float]:
    total, size = 0.0, 0.0
    for row in range(start, stop):
        value = np.float64(x[row, j])
        value = pick(is_value(value), value, 0.0)
        total += value
        size += abs(value)
    return total, size


@inlined
def _add_up_squares(
    x: Array, start: int, stop: int, count: Array, anchor: Array, total: Array, squares: Array, peak: Array
) -> None:
    set_anchors(x, start, stop, count, anchor)
    for j in range(LANES):
        total[j] = 0.0
        squares[j] = 0.0
    for row in range(start, stop):
        for j in range(LANES):
            value = np.float64(x[row, j])
            distance = pick(is_value(value), value - anchor[j], 0.0)
            total[j] += distance
            squares[j] += distance * distance
    for j in range(LANES):
        peak[j] = squares[j]


@inlined
def _lane_squares(x: Array, start: int, stop: int, j: int, count: float) -> tuple[float, float, float]:
    anchor = lane_anchor(x, start, stop, j, count)
    total, squares = 0.0, 0.0
    for row in range(start, stop):
        value = np.float64(x[row, j])
        distance = pick(is_value(value), value - anchor, 0.0)
        total += distance
        squares += distance * distance
    return anchor, total, squares


def _level_of(x: Array, window: int) -> tuple[Windows, Array, NDArray[np.bool_], Array]:
    """Return the windows, the sum of each, whether its values are equal, and the newest of them."""
    windows = Windows(np.isfinite(x), window)
    return windows, windows.sums(windows.values(x)), *windows.constant(x)


def _mean_fallback(x: Array, window: int, first: Lanes) -> Array:
    with np.errstate(all="ignore"):
        windows, sums, equal, last = _level_of(x, window)
        mean: Array = sums / windows.count
    np.copyto(mean, last, where=equal)
    return mean


def _sum_fallback(x: Array, window: int, first: Lanes) -> Array:
    with np.errstate(all="ignore"):
        windows, sums, equal, last = _level_of(x, window)
        return np.where(windows.count > 0.0, np.where(equal, last * windows.count, sums), np.nan)


def _var_fallback(x: Array, window: int, first: Lanes) -> Array:
    with np.errstate(all="ignore"):
        windows = Windows(np.isfinite(x), window)
        apart = windows.distances(x)
        n, squares = windows.count, windows.sums(apart * apart)
        return spread_of(n, windows.sums(apart), squares) / (n * (n - 1.0))


def spread_of(count: Array, sums: Array, squares: Array) -> Array:
    """Return ``count`` times the sum of squares about the mean, from sums about the windows' anchors."""
    spread: Array = np.maximum(count * squares - sums * sums, 0.0)
    return spread


def _std_fallback(x: Array, window: int, first: Lanes) -> Array:
    deviation: Array = np.sqrt(_var_fallback(x, window, first))
    return deviation


def _count_fallback(x: Array, window: int, first: Lanes) -> Array:
    counted = Windows(~np.isnan(x), window).count
    return np.where(np.arange(len(x))[:, None] >= first, counted, np.nan)


_only_level = jit(_running(True, False))
_only_spread = jit(_running(False, True))
_both = jit(_running(True, True))


# Python functions around few compiled ones: a compiled one around another is compiled as a whole once more.
def mean(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the mean of the values in the window."""
    _only_level(x, out, out, window, first, True, False)


def total(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the sum of the values in the window; NaN, not 0, when there is none."""
    _only_level(x, out, out, window, first, False, False)


def std(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the standard deviation (divisor: count - 1); NaN for fewer than two values, exactly 0 for equal ones."""
    _only_spread(x, out, out, window, first, False, True)


def var(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the variance (divisor: count - 1); NaN for fewer than two values, exactly 0 for equal ones."""
    _only_spread(x, out, out, window, first, False, False)


def mean_and_std(x: Array, mean_out: Array, std_out: Array, window: int, first: Lanes) -> None:
    """Write the mean and the standard deviation of the window."""
    _both(x, mean_out, std_out, window, first, True, True)


KERNELS["Mean"] = Kernel("Mean", 1, mean, _mean_fallback)
KERNELS["Sum"] = Kernel("Sum", 1, total, _sum_fallback)
KERNELS["Std"] = Kernel("Std", 1, std, _std_fallback)
KERNELS["Var"] = Kernel("Var", 1, var, _var_fallback)
GROUPS.append(Group(("Mean", "Std"), mean_and_std))


@kernel("Count", _count_fallback)
def count(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write how many rows of the window are not NaN: infinite ones count, none gives 0, rows before ``first`` NaN."""
    nothing = np.full(LANES, np.nan, x.dtype)
    state = np.zeros((2, LANES))
    counted, begin = state[0], state[1]
    for j in range(LANES):
        begin[j] = first[j]
    for t in range(x.shape[0]):
        entering = x[t]
        leaving = x[t - window] if t >= window else nothing
        for j in range(LANES):
            n = counted[j] + pick(entering[j] == entering[j], 1.0, 0.0) - pick(leaving[j] == leaving[j], 1.0, 0.0)
            counted[j] = n
            out[t, j] = pick(t >= begin[j], n, np.nan)
