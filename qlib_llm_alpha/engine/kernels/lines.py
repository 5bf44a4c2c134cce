"""Lines through a window: Slope, Rsquare, Resi of values against time, and means with weights that fall linearly.

Positions count back from the newest row: 0, -1, -2, ... A new row moves every position by one, so that a sum of
position times value loses the plain sum of values, and the row that enters at position 0 adds nothing to it. The rest
is as in ``sums.py``.
"""

from __future__ import annotations

from collections.abc import Callable
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
)
from qlib_llm_alpha.engine.kernels.sums import (
    KEEP,
    inlined,
    is_lost,
    is_value,
    lane_anchor,
    pick,
    set_anchors,
    slide,
    spread_of,
)

QUIET: Final = 2e-05**2
"""Qlib blanks Rsquare where the deviation is at most 2e-5; this is the square."""


def _line(has_rsquare: bool, has_others: bool) -> Callable[..., None]:
    """Return the loop for Rsquare, for the slope or the residual (chosen at run time), or for all three."""
    has_all = has_rsquare and has_others

    def run(
        x: Array, out: Array, rsquare_out: Array, resi_out: Array, window: int, quiet: float, is_slope: bool
    ) -> None:
        period = max(256, 2 * window)
        nothing = np.full(LANES, np.nan, x.dtype)
        state = np.zeros((12, LANES))
        count, same, last, spoiled, lost_lanes = state[0], state[1], state[2], state[3], state[4]
        anchor, apart, squares, peaks, moment = state[5], state[6], state[7], state[8], state[9]
        place, place_squares = state[10], state[11]
        width = float(window)
        for t in range(x.shape[0]):
            entering = x[t]
            leaving = x[t - window] if t >= window else nothing
            due = t > 0 and t % period == 0
            any_due = due
            for j in range(LANES):
                new, old = np.float64(entering[j]), np.float64(leaving[j])
                entered, left_it = is_value(new), is_value(old)
                before, earlier = last[j], count[j]
                left, afresh, n, same[j], last[j], flat = slide(earlier, same[j], before, new, entered, left_it)
                count[j] = n
                c = pick(afresh, pick(left > 0.0, before, new), anchor[j])
                come, gone = pick(entered, new - c, 0.0), pick(left_it, old - c, 0.0)
                sxx = place_squares[j] - 2.0 * place[j] + earlier - pick(left_it, width * width, 0.0)
                sx = place[j] - earlier + pick(left_it, width, 0.0)
                sxy = pick(afresh, 0.0, moment[j] - apart[j] + width * gone)
                sy = pick(afresh, 0.0, apart[j] - gone) + come
                syy = pick(afresh, 0.0, squares[j] - gone * gone) + come * come
                peak = pick(afresh, 0.0, peaks[j])
                peak = pick(syy > peak, syy, peak)
                anchor[j], apart[j], squares[j], peaks[j], moment[j] = c, sy, syy, peak, sxy
                place[j], place_squares[j] = sx, sxx
                # Qlib's own loop never recovers from an infinite value.
                spoil = pick(abs(new) == np.inf, np.nan, spoiled[j])
                spoiled[j] = spoil
                slope, explained, residual = _measures(n, sx, sxx, sy, syy, sxy, come, entered, flat, quiet)
                if has_rsquare:
                    rsquare_out[t, j] = explained + spoil
                if has_all:
                    out[t, j] = slope + spoil
                    resi_out[t, j] = residual + spoil
                elif has_others:
                    out[t, j] = pick(is_slope, slope, residual) + spoil
                lost = (not flat) & is_lost(n * syy - sy * sy, n * peak, KEEP)
                lost_lanes[j] = pick(lost, 1.0, 0.0)
                any_due |= lost
            start = max(0, t - window + 1)
            if due:
                _add_up_line(x, start, t + 1, count, anchor, apart, squares, moment, peaks)
            if any_due:
                for j in range(LANES):
                    if lost_lanes[j] > 0.0 or due:
                        n, new = count[j], np.float64(x[t, j])
                        if not due:
                            anchor[j], apart[j], squares[j], moment[j] = _lane_line(x, start, t + 1, j, n)
                            peaks[j] = squares[j]
                        slope, explained, residual = _measures(
                            n,
                            place[j],
                            place_squares[j],
                            apart[j],
                            squares[j],
                            moment[j],
                            new - anchor[j],
                            is_value(new),
                            same[j] >= n,
                            quiet,
                        )
                        if has_rsquare:
                            rsquare_out[t, j] = explained + spoiled[j]
                        if has_all:
                            out[t, j] = slope + spoiled[j]
                            resi_out[t, j] = residual + spoiled[j]
                        elif has_others:
                            out[t, j] = pick(is_slope, slope, residual) + spoiled[j]

    return run


@inlined
def _measures(
    n: float,
    sx: float,
    sxx: float,
    sy: float,
    syy: float,
    sxy: float,
    newest: float,
    entered: bool,
    flat: bool,
    quiet: float,
) -> tuple[float, float, float]:
    """Return slope, explained share and residual of the newest value; x are positions, y distances to the anchor."""
    common = pick(flat, 0.0, n * sxy - sx * sy)
    spread_x = n * sxx - sx * sx
    spread_y = n * syy - sy * sy
    spread_y = pick(flat | (spread_y < 0.0), 0.0, spread_y)
    slope = common / spread_x
    explained = common * common / (spread_x * spread_y)
    explained = pick(spread_y <= quiet * (n * (n - 1.0)), np.nan, explained)
    residual = pick(flat, slope, newest - (sy - slope * sx) / n)
    return slope, explained, pick(entered, residual, np.nan)


@inlined
def _add_up_line(
    x: Array,
    start: int,
    stop: int,
    count: Array,
    anchor: Array,
    total: Array,
    squares: Array,
    moment: Array,
    peak: Array,
) -> None:
    set_anchors(x, start, stop, count, anchor)
    for j in range(LANES):
        total[j] = 0.0
        squares[j] = 0.0
        moment[j] = 0.0
    for row in range(start, stop):
        position = float(row - stop + 1)
        for j in range(LANES):
            value = np.float64(x[row, j])
            distance = pick(is_value(value), value - anchor[j], 0.0)
            total[j] += distance
            squares[j] += distance * distance
            moment[j] += position * distance
    for j in range(LANES):
        peak[j] = squares[j]


@inlined
def _lane_line(x: Array, start: int, stop: int, j: int, count: float) -> tuple[float, float, float, float]:
    anchor = lane_anchor(x, start, stop, j, count)
    total, squares, moment = 0.0, 0.0, 0.0
    for row in range(start, stop):
        position = float(row - stop + 1)
        value = np.float64(x[row, j])
        distance = pick(is_value(value), value - anchor, 0.0)
        total += distance
        squares += distance * distance
        moment += position * distance
    return anchor, total, squares, moment


_slope_or_resi = jit(_line(False, True))
_only_rsquare = jit(_line(True, False))
_all_measures = jit(_line(True, True))


@jit
def _weighted(x: Array, out: Array, window: int, first: Lanes, as_qlib: bool) -> None:
    """Write Qlib's WMA or our DecayLinear: both weigh a row by a constant plus its position."""
    period = max(256, 2 * window)
    nothing = np.full(LANES, np.nan, x.dtype)
    state = np.zeros((10, LANES))
    count, same, last, begin, lost_lanes = state[0], state[1], state[2], state[3], state[4]
    total, size, peaks, moment, place = state[5], state[6], state[7], state[8], state[9]
    width = float(window)
    for j in range(LANES):
        begin[j] = first[j]
    for t in range(x.shape[0]):
        entering = x[t]
        leaving = x[t - window] if t >= window else nothing
        due = t > 0 and t % period == 0
        any_due = due
        for j in range(LANES):
            new, old = np.float64(entering[j]), np.float64(leaving[j])
            entered, left_it = is_value(new), is_value(old)
            before, earlier = last[j], count[j]
            left, afresh, n, same[j], value, flat = slide(earlier, same[j], before, new, entered, left_it)
            count[j], last[j] = n, value
            come, gone = pick(entered, new, 0.0), pick(left_it, old, 0.0)
            sx = place[j] - earlier + pick(left_it, width, 0.0)
            sxy = pick(afresh, before * sx, moment[j] - total[j] + width * gone)
            sy = pick(afresh, before * left, total[j] - gone) + come
            a = pick(afresh, abs(before) * left, size[j] - abs(gone)) + abs(come)
            peak = pick(afresh, 0.0, peaks[j])
            peak = pick(a > peak, a, peak)
            total[j], size[j], peaks[j], moment[j], place[j] = sy, a, peak, sxy, sx
            length = t - begin[j] + 1.0
            length = pick(length > width, width, length)
            out[t, j] = _weighted_mean(n, sx, sy, sxy, value, flat, length, width, as_qlib)
            lost = (not flat) & is_lost(a, peak, KEEP)
            lost_lanes[j] = pick(lost, 1.0, 0.0)
            any_due |= lost
        start = max(0, t - window + 1)
        if due:
            _add_up_weights(x, start, t + 1, total, size, moment, peaks)
        if any_due:
            for j in range(LANES):
                if lost_lanes[j] > 0.0 or due:
                    if not due:
                        total[j], size[j], moment[j] = _lane_weights(x, start, t + 1, j)
                        peaks[j] = size[j]
                    length = min(width, t - begin[j] + 1.0)
                    n, flat = count[j], same[j] >= count[j]
                    out[t, j] = _weighted_mean(n, place[j], total[j], moment[j], last[j], flat, length, width, as_qlib)


@inlined
def _weighted_mean(
    n: float,
    sx: float,
    sy: float,
    sxy: float,
    last: float,
    flat: bool,
    length: float,
    width: float,
    as_qlib: bool,
) -> float:
    highest = pick(as_qlib, length, width)  # the weight of the newest row
    weighed = highest * n + sx  # the weights of the rows that have a value
    value = pick(flat, last * weighed, highest * sy + sxy)
    divisor = pick(as_qlib, 0.5 * length * (length + 1.0) * n, weighed)
    value = pick(flat & (not as_qlib), last, value / divisor)
    # numpy's nanmean begins at 0.0, so that a window of -0.0 comes out as 0.0.
    mean: float = pick(n > 0.0, pick(as_qlib, value + 0.0, value), np.nan)
    return mean


@inlined
def _add_up_weights(x: Array, start: int, stop: int, total: Array, size: Array, moment: Array, peak: Array) -> None:
    for j in range(LANES):
        total[j] = 0.0
        size[j] = 0.0
        moment[j] = 0.0
    for row in range(start, stop):
        position = float(row - stop + 1)
        for j in range(LANES):
            value = np.float64(x[row, j])
            value = pick(is_value(value), value, 0.0)
            total[j] += value
            size[j] += abs(value)
            moment[j] += position * value
    for j in range(LANES):
        peak[j] = size[j]


@inlined
def _lane_weights(x: Array, start: int, stop: int, j: int) -> tuple[float, float, float]:
    total, size, moment = 0.0, 0.0, 0.0
    for row in range(start, stop):
        position = float(row - stop + 1)
        value = np.float64(x[row, j])
        value = pick(is_value(value), value, 0.0)
        total += value
        size += abs(value)
        moment += position * value
    return total, size, moment


def _line_fallback(x: Array, window: int, wanted: str, quiet: float) -> Array:
    """Return the slope, the explained share (NaN where the variance is at most ``quiet``) or the residual."""
    with np.errstate(all="ignore"):
        windows = Windows(np.isfinite(x), window)
        n, ones, apart = windows.count, windows.ones(), windows.distances(x)
        newest = windows.newest(apart) if wanted == "Resi" else apart
        squares = windows.sums(apart * apart) if wanted == "Rsquare" else apart
        places, place_squares = windows.sums(ones * windows.places), windows.sums(ones * windows.places**2)
        moments, sums = windows.sums(apart * windows.places), windows.sums(apart)
        common, spread_x = n * moments - places * sums, n * place_squares - places * places
        slope: Array = common / spread_x
        if wanted == "Rsquare":
            spread_y = spread_of(n, sums, squares)
            value = np.where(spread_y <= quiet * (n * (n - 1.0)), np.nan, common * common / (spread_x * spread_y))
        elif wanted == "Resi":
            value = newest - (sums + slope * (n * windows.newest_place - places)) / n
            if windows.present is not None:
                np.copyto(value, np.nan, where=~windows.present)
        else:
            value = slope
    infinite = np.isinf(x)
    if infinite.any():
        # Qlib's own loop never recovers from an infinite value.
        np.copyto(value, np.nan, where=np.logical_or.accumulate(infinite, axis=0))
    return value


def _slope_fallback(x: Array, window: int, first: Lanes) -> Array:
    return _line_fallback(x, window, "Slope", QUIET)


def _rsquare_fallback(x: Array, window: int, first: Lanes) -> Array:
    return _line_fallback(x, window, "Rsquare", QUIET)


def _expanding_rsquare_fallback(x: Array, window: int, first: Lanes) -> Array:
    return _line_fallback(x, window, "Rsquare", 0.0)


def _resi_fallback(x: Array, window: int, first: Lanes) -> Array:
    return _line_fallback(x, window, "Resi", QUIET)


def _wma_fallback(x: Array, window: int, first: Lanes) -> Array:
    length = np.minimum(np.arange(len(x))[:, None] - first + 1.0, window)
    with np.errstate(all="ignore"):
        weighted, _, n, _, _ = _weighted_sums(x, window, length)
        return np.where(n > 0.0, weighted / (0.5 * length * (length + 1.0) * n), np.nan)


def _decay_linear_fallback(x: Array, window: int, first: Lanes) -> Array:
    with np.errstate(all="ignore"):
        weighted, weights, n, equal, last = _weighted_sums(x, window, np.array([[float(window)]]))
        return np.where(n > 0.0, np.where(equal, last, weighted / weights), np.nan)


def _weighted_sums(x: Array, window: int, highest: Array) -> tuple[Array, Array, Array, NDArray[np.bool_], Array]:
    """Return the sums of values by weights and of weights, counts, whether values are equal, and the newest of them.

    ``highest`` is the weight of the newest row; a row before has one less.
    """
    windows = Windows(np.isfinite(x), window)
    values, ones, n = windows.values(x), windows.ones()[:2], windows.count
    highest = highest - windows.newest_place
    weights = highest * n + windows.sums(ones * windows.places[:2])
    moments = windows.sums(values * windows.places[:2])
    equal, last = windows.constant(x)
    weighted = np.where(equal, last * weights, highest * windows.sums(values) + moments)
    return weighted, weights, n, equal, last


def slope(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the change a row of the least-squares line; NaN for fewer than two values, and after an infinite one."""
    _slope_or_resi(x, out, out, out, window, QUIET, True)


def rsquare(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the share of the variance that the line explains; NaN where the deviation is at most 2e-5, as in Qlib."""
    _only_rsquare(x, out, out, out, window, QUIET, False)


def expanding_rsquare(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write what Qlib makes of ``Rsquare(x, 0)``: it blanks only equal values, not those that differ little."""
    _only_rsquare(x, out, out, out, window, 0.0, False)


def resi(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the newest value minus the line there; NaN where it is missing, and after an infinite value."""
    _slope_or_resi(x, out, out, out, window, QUIET, False)


def line(x: Array, slope_out: Array, rsquare_out: Array, resi_out: Array, window: int, first: Lanes) -> None:
    """Write slope, explained share and residual of the window."""
    _all_measures(x, slope_out, rsquare_out, resi_out, window, QUIET, True)


def wma(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write Qlib's ``WMA``, its mistake included: the weights sum to 1 and the result is divided by the count again.

    Early windows have weights of their own: the row at which an instrument begins, ``first``, weighs 1.
    """
    _weighted(x, out, window, first, True)


def decay_linear(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the mean with weights ``window`` (newest row) to 1, divided by the weights of the rows with a value."""
    _weighted(x, out, window, first, False)


KERNELS["Slope"] = Kernel("Slope", 1, slope, _slope_fallback)
KERNELS["Rsquare"] = Kernel("Rsquare", 1, rsquare, _rsquare_fallback)
KERNELS["ExpandingRsquare"] = Kernel("ExpandingRsquare", 1, expanding_rsquare, _expanding_rsquare_fallback)
KERNELS["Resi"] = Kernel("Resi", 1, resi, _resi_fallback)
KERNELS["WMA"] = Kernel("WMA", 1, wma, _wma_fallback)
KERNELS["DecayLinear"] = Kernel("DecayLinear", 1, decay_linear, _decay_linear_fallback)
GROUPS.append(Group(("Slope", "Rsquare", "Resi"), line))
