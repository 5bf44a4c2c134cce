"""Operators that ask how the values of a window lie to each other: ranks, quantiles, deviations, bins.

``Quantile`` and ``Med`` keep the window of every lane in order. A new bar means: take the leaving value out, put the
arriving one in. Searched lane by lane that would be branches; here every place of the ordered window looks at its two
neighbours and decides what it becomes, which is the same few instructions for all lanes. That is O(window) a row, yet
for windows up to some hundred rows faster than any search. The others go over the window as well.

An expanding window (longer than the series) costs O(rows) a row and O(rows) memory.
"""

from __future__ import annotations

from typing import Any, Final

import bottleneck
import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.extremes import scratch
from qlib_llm_alpha.engine.kernels.plain import Windows
from qlib_llm_alpha.engine.kernels.registry import LANES, Array, Lanes, group, jit, kernel

Tile = NDArray[Any]

BINS: Final = 8
"""Bins of ``Entropy``."""

_DESCENT: Final = 64  # rows an ordered window may move down before it is carried up again
_PIECES: Final = 32  # of time, through which numpy walks together: more do not fit the second-level cache


def _quantile_fallback(x: Array, window: int, first: Lanes, level: float) -> Array:
    width = min(window, len(x))
    count = Windows(np.isfinite(x), window).count
    at = min(max(level, 0.0), 1.0) * np.maximum(count - 1.0, 0.0)
    below = at.astype(np.int64)
    share = at - below
    low, high = _ordered_neighbours(x, width, below)
    with np.errstate(all="ignore"):
        quantile: Array = np.where(share > 0.0, low + (high - low) * share, low)
    return np.where(count > 0.0, quantile, np.nan)


def _ordered_neighbours(x: Array, width: int, below: Lanes) -> tuple[Array, Array]:
    """Return the value of each window that has ``below`` smaller ones, and the next one.

    Time is cut into pieces that are walked through together, a row of each at a time. A window's values stay where they
    are, the arriving one in the place of the leaving one. Beside each stands its rank, the older of equals first: ranks
    above the leaving value fall by one, ranks above the arriving value rise by one. Ranks are small integers, which
    makes that cheaper than keeping the values in order.
    """
    rows, lanes = x.shape
    length = max(-(-rows // _PIECES), width)
    pieces = -(-rows // length)

    def by_step(columns: NDArray[Any]) -> NDArray[Any]:
        """Turn (pieces * length, lanes) into (length, pieces * lanes)."""
        steps: NDArray[Any] = columns.reshape(pieces, length, lanes).swapaxes(0, 1).reshape(length, pieces * lanes)
        return steps

    # Columns of a panel are float32: half the memory, and no value becomes another.
    narrow = np.array_equal(x.astype(np.float32), x, equal_nan=True)
    padded = np.full((width + pieces * length, lanes), np.inf, dtype=np.float32 if narrow else np.float64)
    np.copyto(padded[width : width + rows], x + 0.0, where=np.isfinite(x), casting="same_kind")  # -0.0 becomes 0.0
    arriving = by_step(padded[width:])
    values = padded[np.arange(pieces) * length + np.arange(width)[:, None]].reshape(width, -1)
    small = np.int8 if width <= 127 else np.int32
    slots, lane = np.arange(width, dtype=small)[:, None], np.arange(pieces * lanes)
    ranks, room = np.empty(values.shape, dtype=small), np.empty(values.shape, dtype=small)
    ranks[np.argsort(values, axis=0, kind="stable"), lane] = slots
    holds = np.empty(values.shape, dtype=np.bool_)
    wanted = by_step(np.resize(np.broadcast_to(below, (rows, lanes)), (pieces * length, lanes)).astype(small))
    found = np.empty((2, length, pieces * lanes))
    for step in range(length):
        # The first piece begins with windows of nothing. Where it is the only one, that is not carried along.
        used = min(step + 1, width) if pieces == 1 else width
        line, rank, hold, slot = values[:used], ranks[:used], holds[:used], step % width
        if pieces > 1 or step >= width:
            np.greater_equal(line, line[slot].copy(), out=hold)
            rank -= hold.view(np.int8)
        line[slot] = arriving[step]
        np.greater(line, arriving[step], out=hold)
        rank += hold.view(np.int8)
        rank[slot] = used - 1 - np.add.reduce(hold.view(np.int8), axis=0, dtype=small)
        for number, place in enumerate((wanted[step], np.minimum(wanted[step] + small(1), small(used - 1)))):
            np.equal(rank, place, out=hold)
            at = np.add.reduce(np.multiply(hold.view(np.int8), slots[:used], out=room[:used]), axis=0, dtype=small)
            found[number, step] = line[at, lane]
    low, high = found.reshape(2, length, pieces, lanes).swapaxes(1, 2).reshape(2, -1, lanes)[:, :rows]
    return low, high


def _med_fallback(x: Array, window: int, first: Lanes) -> Array:
    values = np.where(np.isfinite(x), x + 0.0, np.nan)
    middle: Array = bottleneck.move_median(values, min(window, len(x)), 1, axis=0)
    return middle


def _rank_fallback(x: Array, window: int, first: Lanes) -> Array:
    windows = Windows(np.isfinite(x), window)
    values = x if windows.present is None else np.where(windows.present, x, np.nan)
    twice = _how_many(np.less, values, values, windows.width) + _how_many(np.less_equal, values, values, windows.width)
    rank: Array = ((twice - 1) * 0.5 + 1.0) / np.maximum(windows.count, 1.0)
    return np.where(np.isnan(values), np.nan, rank)


def _mad_fallback(x: Array, window: int, first: Lanes) -> Array:
    rows = len(x)
    with np.errstate(all="ignore"):
        windows = Windows(np.isfinite(x), window)
        mean = windows.sums(windows.values(x)) / windows.count
        equal, last = windows.constant(x)
        np.copyto(mean, last, where=equal)
        # As much is above the mean as below. Missing values are above nothing.
        values = x if windows.present is None else np.where(windows.present, x, -np.inf)
        above, room = np.zeros(x.shape), np.empty(x.shape)
        for age in range(windows.width):
            apart = np.subtract(values[: rows - age], mean[age:], out=room[age:])
            above[age:] += np.fmax(apart, 0.0, out=apart)
        return np.where(windows.count > 0.0, 2.0 * above / windows.count, np.nan)


def _entropy_fallback(x: Array, window: int, first: Lanes) -> Array:
    windows = Windows(np.isfinite(x), window)
    values = x if windows.present is None else np.where(windows.present, x, np.nan)
    low = bottleneck.move_min(values, windows.width, 1, axis=0)
    high = bottleneck.move_max(values, windows.width, 1, axis=0)
    count = windows.count
    before, total = count.astype(np.int32), np.zeros(x.shape)
    with np.errstate(all="ignore"):
        for number in range(1, BINS):
            edge = low + (high - low) * (number / BINS)
            reached = _how_many(np.greater_equal, values, edge, windows.width)
            inside = before - reached
            total += inside * np.log(np.maximum(inside, 1.0))
            before = reached
        total += before * np.log(np.maximum(before, 1.0))
        entropy = np.minimum((np.log(count) - total / count) / np.log(BINS), 1.0)
    return np.where(count < 2.0, np.nan, np.where(high > low, entropy, 0.0))


def _how_many(relation: np.ufunc, values: Array, limit: Array, width: int) -> NDArray[np.int32]:
    """Return how many values of each window stand in ``relation`` to the ``limit`` of its newest row."""
    rows = len(values)
    number, few = np.zeros(values.shape, dtype=np.int32), np.zeros(values.shape, dtype=np.int8)
    holds = np.empty(values.shape, dtype=np.bool_)
    for age in range(width):
        relation(values[: rows - age], limit[age:], out=holds[age:])
        few[age:] += holds[age:].view(np.int8)
        if age % 127 == 126:  # as many as eight bits hold
            number += few
            few[:] = 0
    number += few
    return number


@kernel("Quantile", _quantile_fallback)
def quantile(x: Tile, out: Array, window: int, first: Lanes, level: float) -> None:
    """Write the quantile of each window, between two values linearly, as pandas.

    ``level`` is 0 for the smallest, 1 for the largest; beyond them it is taken as 0 or 1.
    """
    window = min(window, x.shape[0])
    room, state, base = _ordered_windows(x, window)
    for t in range(x.shape[0]):
        base = _admit(x, t, window, room, base, state)
        _pick_level(room[(base + 1) * LANES :], state, min(t + 1, window), level, out, t)


@kernel("Med", _med_fallback)
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


@kernel("Rank", _rank_fallback)
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


@kernel("Mad", _mad_fallback)
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


@kernel("Entropy", _entropy_fallback)
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
