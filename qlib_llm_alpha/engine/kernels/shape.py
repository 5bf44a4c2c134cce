"""Skew and Kurt of a window: running sums of powers about an anchor (``sums.py`` says what that is).

Fourth powers lose digits twice as fast as squares, so that a lane is added up again sooner than for a deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

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
)
from qlib_llm_alpha.engine.kernels.sums import (
    inlined,
    is_lost,
    is_value,
    lane_anchor,
    pick,
    set_anchors,
    slide,
)

KEEP: Final = 2.0**8
"""A sum of squares whose peak was more than this many times larger has lost too many digits of fourth powers."""


def _running(has_skew: bool, has_kurt: bool) -> Callable[..., None]:
    """Return the loop for the skewness, the kurtosis or both."""

    def run(x: Array, skew_out: Array, kurt_out: Array, window: int, first: Lanes) -> None:
        period = max(256, 2 * window)
        nothing = np.full(LANES, np.nan, x.dtype)
        state = np.zeros((10, LANES))
        count, same, last, peaks, lost_lanes, anchor = state[0], state[1], state[2], state[3], state[4], state[5]
        power1, power2, power3, power4 = state[6], state[7], state[8], state[9]
        for t in range(x.shape[0]):
            entering = x[t]
            leaving = x[t - window] if t >= window else nothing
            due = t > 0 and t % period == 0
            any_due = due
            for j in range(LANES):
                new, old = np.float64(entering[j]), np.float64(leaving[j])
                before = last[j]
                entered, left_it = is_value(new), is_value(old)
                left, afresh, n, same[j], last[j], flat = slide(count[j], same[j], before, new, entered, left_it)
                count[j] = n
                c = pick(afresh, pick(left > 0.0, before, new), anchor[j])
                come, gone = pick(entered, new - c, 0.0), pick(left_it, old - c, 0.0)
                come2, gone2 = come * come, gone * gone
                s1 = pick(afresh, 0.0, power1[j] - gone) + come
                s2 = pick(afresh, 0.0, power2[j] - gone2) + come2
                s3 = pick(afresh, 0.0, power3[j] - gone2 * gone) + come2 * come
                anchor[j], power1[j], power2[j], power3[j] = c, s1, s2, s3
                if has_skew:
                    skew_out[t, j] = _skewness(n, s1, s2, s3, flat)
                if has_kurt:
                    s4 = pick(afresh, 0.0, power4[j] - gone2 * gone2) + come2 * come2
                    power4[j] = s4
                    kurt_out[t, j] = _excess(n, s1, s2, s3, s4, flat)
                peak = pick(afresh, 0.0, peaks[j])
                peak = pick(s2 > peak, s2, peak)
                peaks[j] = peak
                lost = (not flat) & is_lost(n * s2 - s1 * s1, n * peak, KEEP)
                lost_lanes[j] = pick(lost, 1.0, 0.0)
                any_due |= lost
            start = max(0, t - window + 1)
            if due:
                _add_up(x, start, t + 1, count, anchor, power1, power2, power3, power4, peaks)
            if any_due:
                for j in range(LANES):
                    if lost_lanes[j] > 0.0 or due:
                        n = count[j]
                        if not due:
                            anchor[j], power1[j], power2[j], power3[j], power4[j] = _lane_powers(x, start, t + 1, j, n)
                            peaks[j] = power2[j]
                        flat = same[j] >= n
                        if has_skew:
                            skew_out[t, j] = _skewness(n, power1[j], power2[j], power3[j], flat)
                        if has_kurt:
                            kurt_out[t, j] = _excess(n, power1[j], power2[j], power3[j], power4[j], flat)

    return run


@inlined
def _skewness(n: float, s1: float, s2: float, s3: float, flat: bool) -> float:
    mean, square = s1 / n, s2 / n
    variance = square - mean * mean
    third = s3 / n - mean * (square + 2.0 * variance)
    value = third * np.sqrt(n * (n - 1.0) * variance) / ((n - 2.0) * variance * variance)
    skewness: float = pick(flat | (n < 3.0), np.nan, value)
    return skewness


@inlined
def _excess(n: float, s1: float, s2: float, s3: float, s4: float, flat: bool) -> float:
    share = 1.0 / n
    mean = s1 * share
    square = mean * mean
    variance = s2 * share - square
    third = s3 * share - mean * (square + 3.0 * variance)
    fourth = s4 * share - square * (square + 6.0 * variance) - 4.0 * third * mean
    value = (n * n - 1.0) * fourth / (variance * variance) - 3.0 * (n - 1.0) * (n - 1.0)
    excess: float = pick(flat | (n < 4.0), np.nan, value / ((n - 2.0) * (n - 3.0)))
    return excess


@inlined
def _add_up(
    x: Array,
    start: int,
    stop: int,
    count: Array,
    anchor: Array,
    s1: Array,
    s2: Array,
    s3: Array,
    s4: Array,
    peak: Array,
) -> None:
    set_anchors(x, start, stop, count, anchor)
    for j in range(LANES):
        s1[j] = 0.0
        s2[j] = 0.0
        s3[j] = 0.0
        s4[j] = 0.0
    for row in range(start, stop):
        for j in range(LANES):
            value = np.float64(x[row, j])
            distance = pick(is_value(value), value - anchor[j], 0.0)
            square = distance * distance
            s1[j] += distance
            s2[j] += square
            s3[j] += square * distance
            s4[j] += square * square
    for j in range(LANES):
        peak[j] = s2[j]


@inlined
def _lane_powers(x: Array, start: int, stop: int, j: int, count: float) -> tuple[float, float, float, float, float]:
    anchor = lane_anchor(x, start, stop, j, count)
    s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0
    for row in range(start, stop):
        value = np.float64(x[row, j])
        distance = pick(is_value(value), value - anchor, 0.0)
        square = distance * distance
        s1 += distance
        s2 += square
        s3 += square * distance
        s4 += square * square
    return anchor, s1, s2, s3, s4


_only_skew = jit(_running(True, False))
_only_kurt = jit(_running(False, True))
_both = jit(_running(True, True))


def _skew_fallback(x: Array, window: int, first: Lanes) -> Array:
    with np.errstate(all="ignore"):
        n, mean, square, variance, third, _ = _moments(x, window, 3)
        third -= mean * (square + 2.0 * variance)
        value = third * np.sqrt(n * (n - 1.0) * variance) / ((n - 2.0) * variance * variance)
        return np.where(n < 3.0, np.nan, value)


def _kurt_fallback(x: Array, window: int, first: Lanes) -> Array:
    with np.errstate(all="ignore"):
        n, mean, square, variance, third, fourth = _moments(x, window, 4)
        third -= mean * (square + 2.0 * variance)
        fourth -= mean * (4.0 * third + mean * (square + 5.0 * variance))
        value = (n * n - 1.0) * fourth / (variance * variance) - 3.0 * (n - 1.0) * (n - 1.0)
        return np.where(n < 4.0, np.nan, value / ((n - 2.0) * (n - 3.0)))


def _moments(x: Array, window: int, powers: int) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return count, mean, mean square, variance, mean third and fourth power of the distances to the anchors."""
    windows = Windows(np.isfinite(x), window)
    n, apart = windows.count, windows.distances(x)
    squares = apart * apart
    third = windows.sums(squares * apart) / n
    fourth = windows.sums(squares * squares) / n if powers > 3 else third
    square, mean = windows.sums(squares) / n, windows.sums(apart) / n
    return n, mean, square, square - mean * mean, third, fourth


def skew(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the unbiased skewness; NaN for fewer than three values and for equal ones."""
    _only_skew(x, out, out, window, first)


def kurt(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the unbiased excess kurtosis; NaN for fewer than four values and for equal ones."""
    _only_kurt(x, out, out, window, first)


def skew_and_kurt(x: Array, skew_out: Array, kurt_out: Array, window: int, first: Lanes) -> None:
    """Write the skewness and the kurtosis of the window."""
    _both(x, skew_out, kurt_out, window, first)


KERNELS["Skew"] = Kernel("Skew", 1, skew, _skew_fallback)
KERNELS["Kurt"] = Kernel("Kurt", 1, kurt, _kurt_fallback)
GROUPS.append(Group(("Skew", "Kurt"), skew_and_kurt))
