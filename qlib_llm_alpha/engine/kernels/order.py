"""Operators that ask how the values of a window lie to each other: ranks, quantiles, deviations, bins.

``Quantile`` and ``Med`` keep the window of every lane in order. A new bar means: take the leaving value out, put the
arriving one in. Searched lane by lane that would be branches; here every place of the ordered window looks at its two
neighbours and decides what it becomes, which is the same few instructions for all lanes. That is O(window) a row, yet
for windows up to some hundred rows faster than any search. The others go over the window as well.

An expanding window (longer than the series) costs O(rows) a row and O(rows) memory.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.extremes import scratch
from qlib_llm_alpha.engine.kernels.registry import LANES, Array, Lanes, group, jit, kernel, over_windows

Tile = NDArray[Any]

BINS: Final = 8
"""Bins of ``Entropy``."""

_DESCENT: Final = 64  # rows an ordered window may move down before it is carried up again


def _quantile_of(windows: Array, length: Lanes, level: float) -> Array:
    low, high, share = _neighbours(windows, level)
    return np.where(share > 0, low + (high - low) * share, low)


def _middle_of(windows: Array, length: Lanes) -> Array:
    low, high, share = _neighbours(windows, 0.5)
    return np.where(share > 0, (low + high) * 0.5, low)


def _neighbours(windows: Array, level: float) -> tuple[Array, Array, Array]:
    ordered = np.sort(windows + 0.0, axis=-1)  # NaN goes to the end
    count = np.sum(~np.isnan(windows), axis=-1)
    at = np.clip(level * (count - 1.0), 0.0, np.maximum(count - 1.0, 0.0))
    below = at.astype(np.int64)
    above = np.minimum(below + 1, windows.shape[-1] - 1)
    low = np.take_along_axis(ordered, below[..., None], axis=-1)[..., 0]
    high = np.take_along_axis(ordered, above[..., None], axis=-1)[..., 0]
    return low, high, at - below


def _rank_of(windows: Array, length: Lanes) -> Array:
    today = windows[..., -1:]
    twice = np.sum(windows < today, axis=-1) + np.sum(windows <= today, axis=-1) - 1
    rank = (twice * 0.5 + 1.0) / np.sum(~np.isnan(windows), axis=-1)
    return np.where(np.isnan(today[..., 0]), np.nan, rank)


def _deviation_of(windows: Array, length: Lanes) -> Array:
    present = ~np.isnan(windows)
    count = present.sum(axis=-1)
    mean = np.where(present, windows, 0.0).sum(axis=-1) / count
    deviation = np.where(present, np.abs(windows - mean[..., None]), 0.0).sum(axis=-1) / count
    flat = np.fmin.reduce(windows, axis=-1) == np.fmax.reduce(windows, axis=-1)
    return np.where(flat, 0.0, deviation)


def _entropy_of(windows: Array, length: Lanes) -> Array:
    count = np.sum(~np.isnan(windows), axis=-1)
    low, high = np.fmin.reduce(windows, axis=-1), np.fmax.reduce(windows, axis=-1)
    before, total = count, np.zeros(count.shape)
    for number in range(1, BINS + 1):
        edge = low + (high - low) * (number / BINS)
        reached = np.sum(windows >= edge[..., None], axis=-1) if number < BINS else np.zeros_like(count)
        inside = before - reached
        total += inside * np.log(np.maximum(inside, 1))
        before = reached
    entropy = np.minimum((np.log(np.maximum(count, 1)) - total / count) / np.log(BINS), 1.0)
    return np.where(count < 2, np.nan, np.where(high > low, entropy, 0.0))


@kernel("Quantile", over_windows(_quantile_of))
def quantile(x: Tile, out: Array, window: int, first: Lanes, level: float) -> None:
    """Write the quantile of each window, between two values linearly, as pandas.

    ``level`` is 0 for the smallest, 1 for the largest; beyond them it is taken as 0 or 1.
    """
    window = min(window, x.shape[0])
    room, state, base = _ordered_windows(x, window)
    for t in range(x.shape[0]):
        base = _admit(x, t, window, room, base, state)
        _pick_level(room[(base + 1) * LANES :], state, min(t + 1, window), level, out, t)


@kernel("Med", over_windows(_middle_of))
def median(x: Tile, out: Array, window: int, first: Lanes) -> None:
    """Write the middle value of each window, or the mean of the two in the middle."""
    window = min(window, x.shape[0])
    room, state, base = _ordered_windows(x, window)
    for t in range(x.shape[0]):
        base = _admit(x, t, window, room, base, state)
        _pick_middle(room[(base + 1) * LANES :], state, min(t + 1, window), out, t)


@group("Quantile", "Quantile")
def two_quantiles(
    x: Tile, out_1: Array, out_2: Array, window: int, first: Lanes, level_1: float, level_2: float
) -> None:
    """Write two quantiles of one ordered window."""
    window = min(window, x.shape[0])
    room, state, base = _ordered_windows(x, window)
    for t in range(x.shape[0]):
        base = _admit(x, t, window, room, base, state)
        ordered, full = room[(base + 1) * LANES :], min(t + 1, window)
        _pick_level(ordered, state, full, level_1, out_1, t)
        _pick_level(ordered, state, full, level_2, out_2, t)


@group("Med", "Quantile")
def median_and_quantile(x: Tile, out_1: Array, out_2: Array, window: int, first: Lanes, level: float) -> None:
    """Write median and quantile of one ordered window."""
    window = min(window, x.shape[0])
    room, state, base = _ordered_windows(x, window)
    for t in range(x.shape[0]):
        base = _admit(x, t, window, room, base, state)
        ordered, full = room[(base + 1) * LANES :], min(t + 1, window)
        _pick_middle(ordered, state, full, out_1, t)
        _pick_level(ordered, state, full, level, out_2, t)


@kernel("Rank", over_windows(_rank_of))
def rank(x: Tile, out: Array, window: int, first: Lanes) -> None:
    """Write the rank of the newest value among the values of the window, ties by their average, as a share.

    1 for the only largest; NaN where today has no value.
    """
    rows = x.shape[0]
    window = min(window, rows)
    real = x.dtype.type
    zero, one = real(0), real(1)
    values = _finite(x, x)
    state = scratch(3, x)  # today's value; twice the smaller plus the equal of the days before; number of values
    state[:] = zero
    for t in range(rows):
        leaving = values[max(t - window, 0) * LANES :]
        gone = one if t >= window else zero
        arriving = values[t * LANES :]
        for j in range(LANES):
            value, old, count = arriving[j], leaving[j], state[j + 2 * LANES]
            count += one if value == value else zero
            count -= gone if old == old else zero
            state[j] = value
            state[j + LANES] = zero
            state[j + 2 * LANES] = count
        oldest = max(t - window + 1, 0)
        _compare(values[oldest * LANES :], state, t - oldest)
        for j in range(LANES):
            value, twice, count = state[j], np.float64(state[j + LANES]), np.float64(state[j + 2 * LANES])
            result = (twice * 0.5 + 1.0) / count
            out[t, j] = result if value == value else np.nan


@kernel("Mad", over_windows(_deviation_of))
def mean_deviation(x: Tile, out: Array, window: int, first: Lanes) -> None:
    """Write the mean distance of the window's values from their mean; exactly 0 where they are all equal.

    The distances above the mean and below it have the same sum, so one of the two is summed and doubled.
    """
    rows = x.shape[0]
    window = min(window, rows)
    values = _finite(x, out)
    # As for extremes, a window is the end of one block and the beginning of the next. Sums of both are only added to,
    # never subtracted from: nothing is lost when a huge value leaves.
    ends = scratch(2 * (window + 1), out)
    ends[:] = 0.0
    state = scratch(6, out)  # sum and number in this block; equal values in a row, which; mean, sum above it
    state[:] = 0.0
    place = -1
    for t in range(rows):
        place += 1
        if place == window:
            place = 0
            state[: 2 * LANES] = 0.0
            _sum_ends(values[(t - window) * LANES :], ends, window)
        arriving = values[t * LANES :]
        end = ends[2 * (place + 1) * LANES :]
        for j in range(LANES):
            value, total, count = arriving[j], state[j], state[j + LANES]
            equal, last = state[j + 2 * LANES], state[j + 3 * LANES]
            finite = value == value
            total += value if finite else 0.0
            count += 1.0 if finite else 0.0
            again = (equal if value == last else 0.0) + 1.0
            equal = again if finite else equal
            last = value if finite else last
            state[j] = total
            state[j + LANES] = count
            state[j + 2 * LANES] = equal
            state[j + 3 * LANES] = last
            count += end[j + LANES]
            mean = (total + end[j]) / count
            state[j + 4 * LANES] = last if equal >= count else mean
            state[j + 5 * LANES] = 0.0
        oldest = max(t - window + 1, 0)
        _exceed(values[oldest * LANES :], state[4 * LANES :], t + 1 - oldest)
        for j in range(LANES):
            count = state[j + LANES] + end[j + LANES]
            result = 2.0 * state[j + 5 * LANES] / count
            out[t, j] = result if count > 0.0 else np.nan


@kernel("Entropy", over_windows(_entropy_of))
def entropy(x: Tile, out: Array, window: int, first: Lanes) -> None:
    """Write the entropy of the window's values in equal bins between smallest and largest, as a share of its most.

    0 where all values are equal, 1 where every bin holds as many; NaN below two values. A value on an edge belongs to
    the upper bin, the largest to the last one.
    """
    rows = x.shape[0]
    window = min(window, rows)
    values = _finite(x, out)
    state = scratch(3, out)  # smallest, largest, number
    rest = scratch(8, out)
    edges = scratch(2 * BINS, out)  # lower edge of a bin, number of values that reach it; for every bin
    weight = np.empty(window + 2)
    weight[0] = 0.0
    for number in range(1, window + 2):
        weight[number] = number * np.log(number)
    for t in range(rows):
        state[:LANES] = np.inf
        state[LANES : 2 * LANES] = -np.inf
        state[2 * LANES :] = 0.0
        oldest = max(t - window + 1, 0)
        whole = (t + 1 - oldest) // 8
        _copy_rest(values[(oldest + 8 * whole) * LANES :], rest, t + 1 - oldest - 8 * whole)
        _spread(values[oldest * LANES :], state, whole)
        _spread(rest, state, 1)
        for number in range(1, BINS):
            edge = edges[2 * number * LANES :]
            for j in range(LANES):
                low, high = state[j], state[j + LANES]
                edge[j] = low + (high - low) * (number / BINS)
                edge[j + LANES] = 0.0
            _reach(values[oldest * LANES :], edge, whole)
            _reach(rest, edge, 1)
        for j in range(LANES):
            count = state[j + 2 * LANES]
            if count < 2.0:
                out[t, j] = np.nan
            elif state[j] == state[j + LANES]:
                out[t, j] = 0.0
            else:
                total = 0.0
                before = count
                for number in range(1, BINS):
                    reached = edges[j + (2 * number + 1) * LANES]
                    total += weight[int(before - reached)]
                    before = reached
                total += weight[int(before)]
                out[t, j] = min((np.log(count) - total / count) / np.log(BINS), 1.0)


@jit
def _finite(x: Tile, like: Tile) -> Tile:
    """Copy the values, infinite ones as NaN, to one long row of the type of ``like``."""
    rows = x.shape[0]
    values: Tile = scratch(rows, like)
    missing = like.dtype.type(np.nan)
    for t in range(rows):
        line = values[t * LANES :]
        for j in range(LANES):
            value = x[t, j]
            line[j] = value if value - value == 0 else missing
    return values


@jit
def _ordered_windows(x: Tile, window: int) -> tuple[Tile, Tile, int]:
    """Make what :func:`_admit` and the picks work on: the ordered windows, the state, and where the windows begin.

    The values of a window stand in rows ``base + 1`` onwards, missing ones as infinite at the end; below them all
    is -inf and above them +inf, so that no place needs a special case.
    """
    top = x.dtype.type(np.inf)
    room = scratch(_DESCENT + window + 12, x)
    room[:] = top
    room[: (_DESCENT + 1) * LANES] = -top
    state = scratch(3, x)  # the leaving value, the arriving value, the number of values
    state[: 2 * LANES] = top
    state[2 * LANES :] = x.dtype.type(0)
    return room, state, _DESCENT


@jit
def _admit(x: Tile, t: int, window: int, room: Tile, base: int, state: Tile) -> int:
    """Take row ``t`` into the ordered windows and the row that leaves out of them; return where they now begin."""
    real = x.dtype.type
    top, zero, one = real(np.inf), real(0), real(1)
    leaves = max(t - window, 0)
    shade = zero if t >= window else real(np.nan)  # while the window fills, nothing leaves: read as missing
    for j in range(LANES):
        value, old, count = x[t, j], x[leaves, j] + shade, state[j + 2 * LANES]
        arrived, left = value - value == 0, old - old == 0
        value = value + zero  # -0.0 becomes 0.0: equal values must be alike, for any of them may be taken out
        state[j] = old if left else top
        state[j + LANES] = value if arrived else top
        state[j + 2 * LANES] = count + (one if arrived else zero) - (one if left else zero)
    used = min(t + 1, window) + 1
    if base == 0:
        base = _DESCENT
        end = (used + 1) * LANES
        room[base * LANES : base * LANES + end] = room[:end].copy()
        room[: base * LANES] = -top
    # Every place writes one row below where it reads, so that what the next place needs is still there.
    _slide(room[base * LANES :], state, used)
    return base - 1


@jit
def _slide(window: Tile, state: Tile, used: int) -> None:
    """Let every place of the ordered windows become what it is without the leaving and with the arriving value."""
    for start in range(0, used * LANES, 4 * LANES):
        room = window[start:]
        for j in range(LANES):
            old, new = state[j], state[j + LANES]
            a, b, c = room[j], room[j + LANES], room[j + 2 * LANES]
            d, e, f = room[j + 3 * LANES], room[j + 4 * LANES], room[j + 5 * LANES]
            a = b if a >= old else a  # from the leaving value on, everything moves down one place
            b = c if b >= old else b
            c = d if c >= old else c
            d = e if d >= old else d
            e = f if e >= old else e
            middle = b if b < new else new  # the middle one of: place below, this place, arriving value
            room[j] = a if a > middle else middle
            middle = c if c < new else new
            room[j + LANES] = b if b > middle else middle
            middle = d if d < new else new
            room[j + 2 * LANES] = c if c > middle else middle
            middle = e if e < new else new
            room[j + 3 * LANES] = d if d > middle else middle


@jit
def _pick_level(ordered: Tile, state: Tile, full: int, level: float, out: Array, t: int) -> None:
    # Almost all lanes have all values, so they look at the same row; the others are done again one by one.
    place = max(0.0, min(level, 1.0)) * (full - 1)
    whole = int(place)
    share = place - whole
    line = ordered[whole * LANES :]
    for j in range(LANES):
        low, high = np.float64(line[j]), np.float64(line[j + LANES])
        between = low + (high - low) * share
        out[t, j] = between if share > 0.0 else low
    counts, complete = state[2 * LANES :], state.dtype.type(full)
    for j in range(LANES):
        if counts[j] < complete:
            count = int(counts[j])
            place = max(0.0, min(level, 1.0)) * max(count - 1, 0)
            whole = int(place)
            share = place - whole
            low, high = np.float64(ordered[whole * LANES + j]), np.float64(ordered[(whole + 1) * LANES + j])
            between = low + (high - low) * share if share > 0.0 else low
            out[t, j] = between if count > 0 else np.nan


@jit
def _pick_middle(ordered: Tile, state: Tile, full: int, out: Array, t: int) -> None:
    below, above = ordered[(full - 1) // 2 * LANES :], ordered[full // 2 * LANES :]
    for j in range(LANES):
        low, high = np.float64(below[j]), np.float64(above[j])
        out[t, j] = (low + high) * 0.5
    counts, complete = state[2 * LANES :], state.dtype.type(full)
    for j in range(LANES):
        if counts[j] < complete:
            count = int(counts[j])
            low = np.float64(ordered[max(count - 1, 0) // 2 * LANES + j])
            high = np.float64(ordered[count // 2 * LANES + j])
            out[t, j] = (low + high) * 0.5 if count > 0 else np.nan


@jit
def _compare(values: Tile, state: Tile, rows: int) -> None:
    """Count the values of ``rows`` rows that are smaller than today's, and those that are not larger."""
    real = state.dtype.type
    zero, one = real(0), real(1)
    blocks = rows // 8 * 8 * LANES
    for start in range(0, blocks, 8 * LANES):
        line = values[start:]
        for j in range(LANES):
            today, twice = state[j], state[j + LANES]
            a, b, c, d = line[j], line[j + LANES], line[j + 2 * LANES], line[j + 3 * LANES]
            e, f, g, h = line[j + 4 * LANES], line[j + 5 * LANES], line[j + 6 * LANES], line[j + 7 * LANES]
            less, most, less_too, most_too = zero, zero, zero, zero  # two of each: additions that wait for no other
            less = less + one if a < today else less
            most = most + one if a <= today else most
            less_too = less_too + one if b < today else less_too
            most_too = most_too + one if b <= today else most_too
            less = less + one if c < today else less
            most = most + one if c <= today else most
            less_too = less_too + one if d < today else less_too
            most_too = most_too + one if d <= today else most_too
            less = less + one if e < today else less
            most = most + one if e <= today else most
            less_too = less_too + one if f < today else less_too
            most_too = most_too + one if f <= today else most_too
            less = less + one if g < today else less
            most = most + one if g <= today else most
            less_too = less_too + one if h < today else less_too
            most_too = most_too + one if h <= today else most_too
            state[j + LANES] = twice + ((less + most) + (less_too + most_too))
    for start in range(blocks, rows * LANES, LANES):
        line = values[start:]
        for j in range(LANES):
            today, twice, a = state[j], state[j + LANES], line[j]
            twice += (one if a < today else zero) + (one if a <= today else zero)
            state[j + LANES] = twice


@jit
def _sum_ends(block: Array, ends: Array, window: int) -> None:
    """Sum and count the last rows of a block, for every number of rows less than the whole."""
    for row in range(window - 1, 0, -1):
        line = block[row * LANES :]
        end = ends[2 * row * LANES :]
        for j in range(LANES):
            value, total, count = line[j], end[j + 2 * LANES], end[j + 3 * LANES]
            finite = value == value
            end[j] = total + (value if finite else 0.0)
            end[j + LANES] = count + (1.0 if finite else 0.0)


@jit
def _copy_rest(values: Array, rest: Array, rows: int) -> None:
    """Copy the rows that do not fill another eight and add missing values, for loops that know eight rows only."""
    for place in range(rows * LANES):
        rest[place] = values[place]
    for place in range(rows * LANES, 8 * LANES):
        rest[place] = np.nan


@jit
def _exceed(values: Array, state: Array, rows: int) -> None:
    """Sum how far the values of ``rows`` rows lie above the mean, those that do."""
    blocks = rows // 4 * 4 * LANES
    for start in range(0, blocks, 4 * LANES):
        line = values[start:]
        for j in range(LANES):
            mean, total = state[j], state[j + LANES]
            a, b, c, d = line[j] - mean, line[j + LANES] - mean, line[j + 2 * LANES] - mean, line[j + 3 * LANES] - mean
            above = (a if a > 0.0 else 0.0) + (b if b > 0.0 else 0.0)
            above += (c if c > 0.0 else 0.0) + (d if d > 0.0 else 0.0)
            state[j + LANES] = total + above

    for start in range(blocks, rows * LANES, LANES):
        line = values[start:]
        for j in range(LANES):
            total, a = state[j + LANES], line[j] - state[j]
            state[j + LANES] = total + (a if a > 0.0 else 0.0)


@jit
def _spread(values: Array, state: Array, eights: int) -> None:
    """Find the smallest, the largest and the number of the values."""
    for start in range(0, eights * 8 * LANES, 8 * LANES):
        line = values[start:]
        for j in range(LANES):
            low, high, count = state[j], state[j + LANES], state[j + 2 * LANES]
            a, b, c, d = line[j], line[j + LANES], line[j + 2 * LANES], line[j + 3 * LANES]
            e, f, g, h = line[j + 4 * LANES], line[j + 5 * LANES], line[j + 6 * LANES], line[j + 7 * LANES]
            count += (1.0 if a == a else 0.0) + (1.0 if b == b else 0.0)
            count += (1.0 if c == c else 0.0) + (1.0 if d == d else 0.0)
            count += (1.0 if e == e else 0.0) + (1.0 if f == f else 0.0)
            count += (1.0 if g == g else 0.0) + (1.0 if h == h else 0.0)
            low = a if a < low else low
            low = b if b < low else low
            low = c if c < low else low
            low = d if d < low else low
            low = e if e < low else low
            low = f if f < low else low
            low = g if g < low else low
            low = h if h < low else low
            high = a if a > high else high
            high = b if b > high else high
            high = c if c > high else high
            high = d if d > high else high
            high = e if e > high else high
            high = f if f > high else high
            high = g if g > high else high
            high = h if h > high else high
            state[j] = low
            state[j + LANES] = high
            state[j + 2 * LANES] = count


@jit
def _reach(values: Array, state: Array, eights: int) -> None:
    """Count the values that are not below an edge."""
    for start in range(0, eights * 8 * LANES, 8 * LANES):
        line = values[start:]
        for j in range(LANES):
            low, count = state[j], state[j + LANES]
            a, b, c, d = line[j], line[j + LANES], line[j + 2 * LANES], line[j + 3 * LANES]
            e, f, g, h = line[j + 4 * LANES], line[j + 5 * LANES], line[j + 6 * LANES], line[j + 7 * LANES]
            more = (1.0 if a >= low else 0.0) + (1.0 if b >= low else 0.0)
            more += (1.0 if c >= low else 0.0) + (1.0 if d >= low else 0.0)
            more += (1.0 if e >= low else 0.0) + (1.0 if f >= low else 0.0)
            more += (1.0 if g >= low else 0.0) + (1.0 if h >= low else 0.0)
            state[j + LANES] = count + more
