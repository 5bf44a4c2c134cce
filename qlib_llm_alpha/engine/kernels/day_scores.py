"""Compiled loops that rank and correlate the names of one day, many days in a call.

Rows here lie the other way from tiles: ``(days, names)``, one day contiguous, since names of one day are compared.

Ranks are *doubled*: the average rank of tied names is a multiple of one half, so twice the rank is a whole number,
sums of products of ranks are exact in float64, and 0 is free to mean "no value". The lowest of ``n`` names has 2, the
highest ``2 n``.

A day is sorted as whole numbers: the bits of a float32, turned so that they sort downwards, above the position of the
name. ``numpy.sort`` does that with the widest vector instructions of the machine: about 1.7 ns a cell where bucket
sorts take 5 and an argsort 6. Largest first, because then equal values stand in the order of their columns, as
:func:`qlib_llm_alpha.engine.scoring.turnover` wants them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.registry import LANES, jit

Bits = NDArray[np.uint32]
Packed = NDArray[np.uint64]
Ranks = NDArray[np.int32]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]
Words = NDArray[np.uint64]

_SUMS: Final[dict[str, Any]] = {"fastmath": {"reassoc", "contract", "nsz"}}
"""Sums may be taken in any order, which is what lets them use vectors; NaN keeps its meaning."""


def _summing(function: Callable[..., Any]) -> Callable[..., Any]:
    return jit(function, **_SUMS)


_EXPONENT: Final = np.uint32(0x7F800000)
_SIGN: Final = np.uint32(0x80000000)
_UPSIDE_DOWN: Final = np.uint32(0x7FFFFFFF)
_MISSING_KEY: Final = np.uint32(0xFFFFFFFF)
_MISSING_BITS: Final = np.uint32(0x7FC00000)
_ZERO: Final = np.uint32(0)
_HALF: Final = np.uint64(32)

_ONE: Final = np.int32(1)
_NONE: Final = np.int32(0)
_NO_RANK: Final = np.int32(2**31 - 1)

_STRETCH: Final = 2048
"""Values of a row that are multiplied at once: eight stretches fit the first- and second-level cache."""

_FEW: Final = 16
"""Up to so many names are taken out of a ranking one by one; beyond, counting them costs less."""


@jit
def gather(
    values: Bits, member: Mask, begin: int, step: int, rows: Bits, known: Mask, packed: Packed, count: Counts
) -> None:
    """Lay days side by side, leaving out what has no value, and make the keys by which they are sorted.

    Parameters
    ----------
    values : array, (tiles, T, LANES) uint32
        Bits of float32 values; infinite values count as missing.
    member : array, (T, tiles * LANES) bool
        Names that are not members of the day count as missing.
    begin, step : int
        Row ``d`` of the results is day ``begin + d * step``.
    rows : array, (days, tiles * LANES) uint32
        Written: bits of the values, NaN where missing, 0.0 for -0.0.
    known : array, (days, tiles * LANES) bool
        Written: whether there is a value.
    packed : array, (days, tiles * LANES) uint64, or (0, 0)
        Written unless empty: key and position; sorted upwards they give the largest value first and the missing last.
    count : array, (days,) int64
        Written: names with a value.
    """
    wanted = packed.shape[0] > 0
    for day in range(rows.shape[0]):
        count[day] = 0
    for tile in range(values.shape[0]):
        base = tile * LANES
        for day in range(rows.shape[0]):
            row = begin + day * step
            held = 0
            for lane in range(LANES):
                bits = values[tile, row, lane]
                there = (bits & _EXPONENT) != _EXPONENT and member[row, base + lane]
                bits = _ZERO if bits == _SIGN else bits
                held += there
                known[day, base + lane] = there
                rows[day, base + lane] = bits if there else _MISSING_BITS
            count[day] += held
            if wanted:
                for lane in range(LANES):
                    bits = rows[day, base + lane]
                    key = bits if bits >= _SIGN else bits ^ _UPSIDE_DOWN
                    key = _MISSING_KEY if bits == _MISSING_BITS else key
                    packed[day, base + lane] = (np.uint64(key) << _HALF) | np.uint64(base + lane)


@jit
def rank_sorted(packed: Packed, count: Counts, ranks: Ranks, begins: Ranks) -> None:
    """Turn sorted keys into doubled average ranks, 0 where a name has no value.

    Parameters
    ----------
    packed : array, (days, names) uint64
        Keys of :func:`gather`, each day sorted upwards.
    count : array, (days,) int64
    ranks : array, (days, names) int32
        Written.
    begins : array, (names,) int32
        Scratch.
    """
    for day in range(packed.shape[0]):
        size = count[day]
        keys = packed[day]
        out = ranks[day]
        for name in range(out.shape[0]):
            out[name] = 0
        ties = 0
        for place in range(size - 1):
            ties += (keys[place] >> _HALF) == (keys[place + 1] >> _HALF)
        if ties == 0:
            for place in range(size):
                out[np.uint32(keys[place])] = 2 * (size - place)
            continue
        # Of equal names [begin, end) each has the doubled rank (size - begin) + (size - end + 1).
        begin = 0
        for place in range(size):
            same = place > 0 and (keys[place] >> _HALF) == (keys[place - 1] >> _HALF)
            begin = begin if same else place
            begins[place] = begin
        end = size
        for place in range(size - 1, -1, -1):
            out[np.uint32(keys[place])] = 2 * size + 1 - begins[place] - end
            end = place if begins[place] == place else end


@jit
def changed_tops(packed: Packed, count: Counts, top: float, min_names: int, seen: Counts, out: Doubles) -> None:
    """Write the share of each day's top names that were not top names the day before; NaN for the first day.

    Parameters
    ----------
    packed, count
        As for :func:`rank_sorted`.
    top : float
        Number of names from 1 upwards, or share of the day's names below 1, rounded up.
    min_names : int
    seen : array, (names,) int64
        Scratch, -2 or less everywhere: then the last day on which a name was at the top.
    out : array, (days,) float64
    """
    before = False
    for day in range(packed.shape[0]):
        size = count[day]
        wanted = np.int64(np.ceil(top * size - 1e-9)) if top < 1 else min(np.int64(top), size)
        usable = size >= min_names and wanted > 0
        fresh = 0
        for place in range(wanted):
            name = np.uint32(packed[day, place])
            fresh += seen[name] != day - 1
            seen[name] = day
        out[day] = fresh / wanted if usable and before else np.nan
        before = usable


@jit
def correlate_values(left: Floats, right: Floats, min_names: int, out: Doubles, names: Counts) -> None:
    """Write Pearson's correlation of two rows for each day, over the names that both have, in two passes of float64.

    Parameters
    ----------
    left, right : array, (days, names) float32
        NaN where missing.
    min_names : int
        Days with fewer joint names are NaN, and those on which one side is constant.
    out, names : array, (days,)
        Written: correlation, and number of joint names.
    """
    for day in range(left.shape[0]):
        size, of_left, of_right = _sums(left[day], right[day])
        names[day] = size
        out[day] = np.nan
        if size < max(min_names, 2):
            continue
        mean_left, mean_right = of_left / size, of_right / size
        left_square, right_square, product = _products(left[day], right[day], mean_left, mean_right)
        # float32 values that differ deviate by far more than 1e-12 of their mean, rounding of the mean by far less.
        varies = left_square > size * (1e-12 * mean_left) ** 2 and right_square > size * (1e-12 * mean_right) ** 2
        if varies:
            out[day] = product / (np.sqrt(left_square) * np.sqrt(right_square))


@jit
def correlate_ranks(
    left: Ranks,
    left_known: Words,
    left_count: Counts,
    right: Ranks,
    right_known: Words,
    min_names: int,
    out: Doubles,
    scratch: Ranks,
) -> None:
    """Write Spearman's correlation of two rows for each day, both sides ranked anew among the names that both have.

    Parameters
    ----------
    left, right : array, (days, names) int32
        Doubled ranks, 0 where missing.
    left_known, right_known : array, (days, names // 8) uint64
        Which names have a rank: the ``known`` of :func:`gather`, eight at a time.
    left_count : array, (days,) int64
        Names with a rank.
    min_names : int
        As in :func:`correlate_values`.
    out : array, (days,) float64
    scratch : array, (5, 2 * names + 4) int32
    """
    one_gone, two_gone, tally = scratch[0], scratch[1], scratch[2]
    one_out, two_out = scratch[3, : left.shape[1]], scratch[4, : left.shape[1]]
    for day in range(left.shape[0]):
        one, two = left[day], right[day]
        fewer = _only_in_first(one, left_known[day], two, right_known[day], one_gone)
        joint = left_count[day] - fewer
        out[day] = np.nan
        if joint < max(min_names, 2):
            continue
        others = _only_in_first(two, right_known[day], one, left_known[day], two_gone)
        ours = _without(one, fewer, one_gone, tally, one_out)
        theirs = _without(two, others, two_gone, tally, two_out)
        left_square, right_square, product = _rank_products(ours, theirs, joint + 1)
        if left_square > 0 and right_square > 0:
            out[day] = product / np.sqrt(left_square * right_square)


@jit
def spreads(
    ranks: Ranks,
    known: Words,
    count: Counts,
    label: Floats,
    label_ranks: Ranks,
    label_known: Words,
    quantiles: int,
    min_names: int,
    out: Doubles,
    scratch: Ranks,
) -> None:
    """Write the mean label of each day's top quantile less that of its bottom one.

    Parameters
    ----------
    ranks, known, count, label_ranks, label_known
        As the left and the right side of :func:`correlate_ranks`.
    label : array, (days, names) float32
    quantiles, min_names : int
        As in :func:`qlib_llm_alpha.engine.scoring.long_short_returns`.
    out, scratch
        As in :func:`correlate_ranks`.
    """
    gone, tally, renewed = scratch[0], scratch[1], scratch[2, : ranks.shape[1]]
    for day in range(ranks.shape[0]):
        fewer = _only_in_first(ranks[day], known[day], label_ranks[day], label_known[day], gone)
        joint = count[day] - fewer
        out[day] = np.nan
        if joint < min_names:
            continue
        own = _without(ranks[day], fewer, gone, tally, renewed)
        edge = 2 * (joint / quantiles + 1e-9)
        highs, lows, high, low = _ends(own, label_ranks[day], label[day], edge, 2 * (joint + 1) - edge)
        if highs > 0 and lows > 0:
            out[day] = high / highs - low / lows


@jit
def unit_rows(rows: Floats, min_names: int, known: Mask) -> None:
    """Centre each day and scale it to length 1 in place, so that the product of two rows is their correlation.

    Parameters
    ----------
    rows : array, (days, names) float32
        NaN where missing, which becomes 0; all 0 on days that are not known.
    min_names : int
    known : array, (days,) bool
        Written: true where the day has ``min_names`` names and is not constant.
    """
    for day in range(rows.shape[0]):
        size, total, _ = _sums(rows[day], rows[day])
        mean = total / max(size, 1)
        square, _, _ = _products(rows[day], rows[day], mean, mean)
        known[day] = size >= max(min_names, 2) and square > size * (1e-12 * mean) ** 2
        scale = 1.0 / np.sqrt(square) if known[day] else 0.0
        for name in range(rows.shape[1]):
            value = rows[day, name]
            rows[day, name] = np.float32((value - mean) * scale) if value == value else np.float32(0)


@jit
def add_products(left: Floats, right: Floats, total: Doubles) -> None:
    """Add the products of all rows here with all rows there to ``total``, as a matrix product does.

    A library's product of so few, so long rows is slower, and its threads wait by spinning when the machine is busy.

    Parameters
    ----------
    left : array, (K, M) float32
    right : array, (P, M) float32
    total : array, (K, P) float64
        Stretches of 2,048 are summed in float32, these sums in float64. The same bits in whatever batch a row comes.
    """
    last_left, last_right = left.shape[0] - 1, right.shape[0] - 1
    square = np.empty((4, 4), dtype=np.float32)
    for start in range(0, left.shape[1], _STRETCH):
        stop = min(start + _STRETCH, left.shape[1])
        for i in range(0, left.shape[0], 4):
            for j in range(0, right.shape[0], 4):
                # Beyond the last row that one is taken again, and its product left out.
                _four_by_four(
                    left[i, start:stop],
                    left[min(i + 1, last_left), start:stop],
                    left[min(i + 2, last_left), start:stop],
                    left[min(i + 3, last_left), start:stop],
                    right[j, start:stop],
                    right[min(j + 1, last_right), start:stop],
                    right[min(j + 2, last_right), start:stop],
                    right[min(j + 3, last_right), start:stop],
                    square,
                )
                for row in range(min(4, left.shape[0] - i)):
                    for column in range(min(4, right.shape[0] - j)):
                        total[i + row, j + column] += square[row, column]


@jit
def _only_in_first(ranks: Ranks, known: Words, other: Ranks, other_known: Words, gone: Ranks) -> int:
    """Write the ranks of the names that the other side lacks, and return how many there are."""
    found = 0
    for word in range(known.shape[0]):
        if known[word] & ~other_known[word] != 0:
            for name in range(8 * word, 8 * word + 8):
                gone[found] = ranks[name]
                found += (ranks[name] != 0) & (other[name] == 0)
    return found


@jit
def _without(ranks: Ranks, fewer: int, gone: Ranks, tally: Ranks, out: Ranks) -> Ranks:
    """Return the doubled ranks once ``gone`` are taken out; what stands at the places of those is no rank.

    Taking out a name lowers the doubled rank of those above it by 2 and of those that tie with it by 1.
    """
    if fewer == 0:
        return ranks
    if fewer > _FEW:
        _take_out_many(ranks, fewer, gone, tally, out)
        return out
    for more in range(fewer, fewer + 4):
        gone[more] = _NO_RANK
    for name in range(ranks.shape[0]):
        out[name] = ranks[name]
    for at in range(0, fewer, 4):
        _take_out(ranks, gone[at], gone[at + 1], gone[at + 2], gone[at + 3], out)
    return out


@jit
def _take_out(ranks: Ranks, a: np.int32, b: np.int32, c: np.int32, d: np.int32, out: Ranks) -> None:
    # Four at a time, so that a row is read and written a quarter as often.
    for name in range(ranks.shape[0]):
        rank = ranks[name]
        drop = (_ONE if rank > a else _NONE) + (_ONE if rank >= a else _NONE)
        drop += (_ONE if rank > b else _NONE) + (_ONE if rank >= b else _NONE)
        drop += (_ONE if rank > c else _NONE) + (_ONE if rank >= c else _NONE)
        drop += (_ONE if rank > d else _NONE) + (_ONE if rank >= d else _NONE)
        out[name] -= drop


@jit
def _take_out_many(ranks: Ranks, fewer: int, gone: Ranks, tally: Ranks, out: Ranks) -> None:
    # By old rank: how far it falls, which is the number gone below it plus the number gone below or level with it.
    for rank in range(tally.shape[0]):
        tally[rank] = _NONE
    for at in range(fewer):
        tally[gone[at]] += _ONE
    total = _NONE
    for rank in range(tally.shape[0]):
        below = total
        total += tally[rank]
        tally[rank] = below + total
    for name in range(ranks.shape[0]):
        rank = ranks[name]
        out[name] = rank - tally[rank] if rank != 0 else _NONE


@_summing
def _sums(left: Floats, right: Floats) -> tuple[int, float, float]:
    size = 0
    of_left, of_right = 0.0, 0.0
    for name in range(left.shape[0]):
        one, two = left[name], right[name]
        joint = one == one and two == two
        size += joint
        of_left += np.float64(one) if joint else 0.0
        of_right += np.float64(two) if joint else 0.0
    return size, of_left, of_right


@_summing
def _products(left: Floats, right: Floats, mean_left: float, mean_right: float) -> tuple[float, float, float]:
    left_square, right_square, product = 0.0, 0.0, 0.0
    for name in range(left.shape[0]):
        one, two = left[name], right[name]
        joint = one == one and two == two
        a = np.float64(one) - mean_left if joint else 0.0
        b = np.float64(two) - mean_right if joint else 0.0
        left_square += a * a
        right_square += b * b
        product += a * b
    return left_square, right_square, product


@_summing
def _rank_products(left: Ranks, right: Ranks, centre: int) -> tuple[float, float, float]:
    left_square, right_square, product = 0.0, 0.0, 0.0
    for name in range(left.shape[0]):
        one, two = left[name], right[name]
        joint = one != 0 and two != 0
        a = np.float64(one - centre) if joint else 0.0
        b = np.float64(two - centre) if joint else 0.0
        left_square += a * a
        right_square += b * b
        product += a * b
    return left_square, right_square, product


@_summing
def _ends(
    ranks: Ranks, label_ranks: Ranks, label: Floats, low_edge: float, high_edge: float
) -> tuple[int, int, float, float]:
    highs, lows = 0, 0
    high, low = 0.0, 0.0
    for name in range(ranks.shape[0]):
        joint = ranks[name] != 0 and label_ranks[name] != 0
        top, bottom = joint and ranks[name] >= high_edge, joint and ranks[name] <= low_edge
        highs += top
        lows += bottom
        high += np.float64(label[name]) if top else 0.0
        low += np.float64(label[name]) if bottom else 0.0
    return highs, lows, high, low


@_summing
def _four_by_four(
    a: Floats, b: Floats, c: Floats, d: Floats, e: Floats, f: Floats, g: Floats, h: Floats, out: Floats
) -> None:
    # Sixteen sums in registers for eight values read.
    ae = af = ag = ah = np.float32(0)
    be = bf = bg = bh = np.float32(0)
    ce = cf = cg = ch = np.float32(0)
    de = df = dg = dh = np.float32(0)
    for at in range(a.shape[0]):
        ae += a[at] * e[at]
        af += a[at] * f[at]
        ag += a[at] * g[at]
        ah += a[at] * h[at]
        be += b[at] * e[at]
        bf += b[at] * f[at]
        bg += b[at] * g[at]
        bh += b[at] * h[at]
        ce += c[at] * e[at]
        cf += c[at] * f[at]
        cg += c[at] * g[at]
        ch += c[at] * h[at]
        de += d[at] * e[at]
        df += d[at] * f[at]
        dg += d[at] * g[at]
        dh += d[at] * h[at]
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = ae, af, ag, ah
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = be, bf, bg, bh
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = ce, cf, cg, ch
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = de, df, dg, dh
