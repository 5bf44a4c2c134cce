"""Cross-sectional operators on rows: one day against the others of that day, compiled.

Every function takes ``rows``, (days, names) float64, C-contiguous, ``names`` a multiple of ``LANES``, and writes its
result into it. NaN says that the instrument does not take part that day, and stays NaN; all other values are finite. A
second array of that shape (``other``, ``group``) has a finite value wherever ``rows`` has one, and may be overwritten.
Each day is computed by itself. ``gather``, ``gather_other`` and ``scatter`` turn columns, (tiles, T, LANES), into such
rows and back. ``qlib_llm_alpha.engine.across`` says what the operators mean, and has all this in numpy, too.

Sums run in ``LANES`` interleaved partial sums, which the compiler turns into vector instructions without having to
change their order: the result has the same bits on every processor.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.registry import LANES, Array, jit

Column = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]

NO_SPREAD: Final = 1e-12
"""A deviation below this part of the largest absolute value is rounding, not spread."""

LARGE: Final = 2.0**400
SMALL: Final = 2.0**-400
SHRINK: Final = 2.0**-600
"""Days whose values are all large or all small are multiplied by a power of two first, lest squares leave the range."""

_DIGITS: Final = 4
_DIGIT_VALUES: Final = 256
_PLACE_BITS: Final = 24
_FEW: Final = 24
_PARTS: Final = 256
_ROUNDS: Final = 6
_GOLDEN: Final = -7046029254386353131  # 2**64 divided by the golden ratio, as a signed integer


@jit
def gather(column: Column, member: Mask | None, start: int, rows: Array) -> None:
    """Copy days from ``start``, NaN where no member or no finite value; -0.0 becomes 0.0, for all that reads bits."""
    for tile in range(column.shape[0]):
        for day in range(rows.shape[0]):
            for lane in range(LANES):
                value = np.float64(column[tile, start + day, lane]) + 0.0
                present = abs(value) < np.inf
                if member is not None:
                    present &= member[tile, start + day, lane]
                rows[day, tile * LANES + lane] = value if present else np.nan


@jit
def gather_other(column: Column, start: int, rows: Array, other: Array) -> None:
    """Copy days of a second column to ``other``; where it has no finite value, ``rows`` becomes NaN."""
    for tile in range(column.shape[0]):
        for day in range(rows.shape[0]):
            for lane in range(LANES):
                value = np.float64(column[tile, start + day, lane]) + 0.0
                place = tile * LANES + lane
                other[day, place] = value
                rows[day, place] = rows[day, place] if abs(value) < np.inf else np.nan


@jit
def scatter(rows: Array, column: Column, start: int) -> None:
    """Copy rows to the days of a column from ``start``, rounded to its dtype."""
    for tile in range(column.shape[0]):
        for day in range(rows.shape[0]):
            for lane in range(LANES):
                column[tile, start + day, lane] = rows[day, tile * LANES + lane]


@jit
def rank(rows: Array) -> None:
    """Average rank divided by the number of values: above 0, up to 1."""
    order, keys, spare, tally, narrow = _sorting_room(rows.shape[1])
    for day in range(rows.shape[0]):
        row = rows[day]
        count = _sort(row, order, keys, spare, tally, narrow)
        start = 0
        while start < count:
            stop = _end_of_ties(row, order, start, count)
            position = 0.5 * (start + 1 + stop) / count
            for k in range(start, stop):
                row[order[k]] = position
            start = stop


@jit
def bucket(rows: Array, buckets: int) -> None:
    """Quantile bucket: 1 for the smallest values, ``buckets`` for the largest."""
    order, keys, spare, tally, narrow = _sorting_room(rows.shape[1])
    for day in range(rows.shape[0]):
        row = rows[day]
        count = _sort(row, order, keys, spare, tally, narrow)
        start = 0
        while start < count:
            stop = _end_of_ties(row, order, start, count)
            # one division of whole numbers: rank / count * buckets would round up past a boundary
            number = math.ceil((start + 1 + stop) * buckets / (2.0 * count))
            for k in range(start, stop):
                row[order[k]] = number
            start = stop


@jit
def group_rank(rows: Array, group: Array) -> None:
    """Average rank within the group, divided by the number of values of the group."""
    names = rows.shape[1]
    order, keys, spare, tally, narrow = _sorting_room(names)
    numbers, codes, table = _grouping_room(names)
    size = np.empty(names + 1, dtype=np.int64)
    below = np.empty(names + 1, dtype=np.int64)
    tied = np.empty(names + 1, dtype=np.int64)
    for day in range(rows.shape[0]):
        row = rows[day]
        groups = _number_groups(row, group[day].view(np.int64), numbers, codes, table)
        size[: groups + 1] = 0
        below[: groups + 1] = 0
        tied[: groups + 1] = 0
        count = _sort(row, order, keys, spare, tally, narrow)
        for k in range(count):
            size[numbers[order[k]]] += 1
        start = 0
        while start < count:
            stop = _end_of_ties(row, order, start, count)
            for k in range(start, stop):
                tied[numbers[order[k]]] += 1
            for k in range(start, stop):
                number = numbers[order[k]]
                row[order[k]] = (below[number] + 0.5 * (tied[number] + 1)) / size[number]
            for k in range(start, stop):
                number = numbers[order[k]]
                below[number] += tied[number]  # the first of a group adds its ties, the others find none left
                tied[number] = 0
            start = stop


@jit
def demean(rows: Array) -> None:
    """Distance from the mean."""
    lanes = np.empty((3, LANES))
    for day in range(rows.shape[0]):
        row = rows[day]
        _, _, factor = _centre(row, lanes)
        if factor != 1.0:
            for i in range(row.size):
                row[i] /= factor


@jit
def zscore(rows: Array) -> None:
    """Distance from the mean in population deviations; 0 without spread."""
    lanes = np.empty((3, LANES))
    for day in range(rows.shape[0]):
        row = rows[day]
        count, largest, _ = _centre(row, lanes)
        if count == 0:
            continue
        deviation = math.sqrt(_products(row, row, lanes) / count)
        flat = deviation <= NO_SPREAD * largest
        deviation = 1.0 if flat else deviation
        keep = 0.0 if flat else 1.0
        for i in range(row.size):
            row[i] = keep * row[i] / deviation


@jit
def scale(rows: Array) -> None:
    """Divided by the sum of absolute values; 0 where that is 0."""
    lanes = np.empty((3, LANES))
    for day in range(rows.shape[0]):
        row = rows[day]
        lanes[0] = 0.0
        for start in range(0, row.size, LANES):
            for lane in range(LANES):
                size = abs(row[start + lane])
                lanes[0, lane] += size if size == size else 0.0
        total = _total(lanes[0])
        divisor = total if total > 0.0 else 1.0
        for i in range(row.size):
            row[i] /= divisor


@jit
def residual(rows: Array, other: Array) -> None:
    """Distance from the least-squares line on ``other``; from the mean where ``other`` has no spread."""
    lanes = np.empty((3, LANES))
    for day in range(rows.shape[0]):
        row = rows[day]
        regressor = other[day]
        for i in range(row.size):
            regressor[i] = regressor[i] if row[i] == row[i] else np.nan
        count, _, factor = _centre(row, lanes)
        if count == 0:
            continue
        _, largest, _ = _centre(regressor, lanes)
        squares = _products(regressor, regressor, lanes)
        slope = 0.0
        if math.sqrt(squares / count) > NO_SPREAD * largest:
            slope = _products(row, regressor, lanes) / squares
        for i in range(row.size):
            row[i] = (row[i] - slope * regressor[i]) / factor


@jit
def quantile(rows: Array, q: float) -> None:
    """One quantile for all that take part, between two neighbours on a straight line."""
    values = np.empty(rows.shape[1])
    spare = np.empty(rows.shape[1])
    tally = np.empty(_PARTS, dtype=np.int64)
    for day in range(rows.shape[0]):
        row = rows[day]
        count = _compact(row, values)
        if count == 0:
            continue
        cut = _quantile(values, count, q, spare, tally)
        for i in range(row.size):
            row[i] = cut if row[i] == row[i] else np.nan


@jit
def winsorize(rows: Array, q: float) -> None:
    """Held between the quantiles ``q`` and ``1 - q``."""
    values = np.empty(rows.shape[1])
    spare = np.empty(rows.shape[1])
    tally = np.empty(_PARTS, dtype=np.int64)
    for day in range(rows.shape[0]):
        row = rows[day]
        count = _compact(row, values)
        if count == 0:
            continue
        low = _quantile(values, count, q, spare, tally)
        high = _quantile(values, count, 1.0 - q, spare, tally)
        for i in range(row.size):
            value = low if row[i] < low else row[i]
            row[i] = high if value > high else value


@jit
def neutralize(rows: Array, group: Array) -> None:
    """Distance from the mean of the group."""
    names = rows.shape[1]
    numbers, codes, table = _grouping_room(names)
    moments = np.empty((5, names + 1))
    for day in range(rows.shape[0]):
        row = rows[day]
        groups = _number_groups(row, group[day].view(np.int64), numbers, codes, table)
        _centre_groups(row, numbers, groups, moments)


@jit
def group_zscore(rows: Array, group: Array) -> None:
    """Distance from the mean of the group in population deviations of the group; 0 without spread."""
    names = rows.shape[1]
    numbers, codes, table = _grouping_room(names)
    moments = np.empty((5, names + 1))
    lanes = np.empty((3, LANES))
    for day in range(rows.shape[0]):
        row = rows[day]
        _, largest, _ = _survey(row, 0.0, lanes)
        factor = _factor(largest)
        if factor != 1.0:
            for i in range(row.size):
                row[i] *= factor
        groups = _number_groups(row, group[day].view(np.int64), numbers, codes, table)
        _centre_groups(row, numbers, groups, moments)
        size, largest_of, deviation = moments[0], moments[1], moments[2]
        deviation[: groups + 1] = 0.0
        for i in range(row.size):
            deviation[numbers[i]] += row[i] * row[i]
        for number in range(1, groups + 1):
            deviation[number] = math.sqrt(deviation[number] / size[number])
            if deviation[number] <= NO_SPREAD * largest_of[number]:
                deviation[number] = np.inf  # distances that are all rounding become 0
        for i in range(row.size):
            row[i] /= deviation[numbers[i]]


# --- means -----------------------------------------------------------------------------------------------------------


@jit
def _centre(row: Array, lanes: Array) -> tuple[int, float, float]:
    """Subtract the mean; return the count, the largest absolute value, and the factor that all this is multiplied by.

    The mean is taken of distances from one of the values: equal values have exactly their own mean. A second round
    removes what the first one rounded.
    """
    anchor = 0.0
    for i in range(row.size):
        if row[i] == row[i]:
            anchor = row[i]
            break
    count, largest, total = _survey(row, anchor, lanes)
    if count == 0:
        return count, 0.0, 1.0
    factor = _factor(largest)
    if factor != 1.0:
        for i in range(row.size):
            row[i] *= factor
        anchor *= factor
        count, largest, total = _survey(row, anchor, lanes)
    mean = anchor + total / count
    lanes[0] = 0.0
    for start in range(0, row.size, LANES):
        for lane in range(LANES):
            distance = row[start + lane] - mean
            row[start + lane] = distance
            lanes[0, lane] += distance if distance == distance else 0.0
    rest = _total(lanes[0]) / count
    for i in range(row.size):
        row[i] -= rest
    return count, largest, factor


@jit
def _survey(row: Array, anchor: float, lanes: Array) -> tuple[int, float, float]:
    """Count the values; return also the largest absolute one and the sum of their distances from ``anchor``."""
    lanes[:] = 0.0
    for start in range(0, row.size, LANES):
        for lane in range(LANES):
            value = row[start + lane]
            present = value == value
            lanes[0, lane] += 1.0 if present else 0.0
            lanes[1, lane] = abs(value) if abs(value) > lanes[1, lane] else lanes[1, lane]
            lanes[2, lane] += value - anchor if present else 0.0
    return int(_total(lanes[0])), lanes[1].max(), _total(lanes[2])


@jit
def _factor(largest: float) -> float:
    """Return the power of two that brings a day's values into the range where squares are safe."""
    if largest > LARGE:
        return SHRINK
    if 0.0 < largest < SMALL:
        return 1.0 / SHRINK
    return 1.0


@jit
def _products(left: Array, right: Array, lanes: Array) -> float:
    """Sum of products where both are present."""
    lanes[0] = 0.0
    for start in range(0, left.size, LANES):
        for lane in range(LANES):
            product = left[start + lane] * right[start + lane]
            lanes[0, lane] += product if product == product else 0.0
    total: float = _total(lanes[0])
    return total


@jit
def _total(parts: Array) -> float:
    total = 0.0
    for lane in range(LANES):
        total += parts[lane]
    return total


# --- groups ----------------------------------------------------------------------------------------------------------


@jit
def _grouping_room(names: int) -> tuple[Integers, Integers, NDArray[np.int32]]:
    """Arrays for :func:`_number_groups`; the hash table is a power of two and never more than half full."""
    slots = 2
    while slots < 2 * names:
        slots *= 2
    return np.empty(names, dtype=np.int64), np.empty(names + 1, dtype=np.int64), np.empty(slots, dtype=np.int32)


@jit
def _number_groups(row: Array, bits: Integers, numbers: Integers, codes: Integers, table: NDArray[np.int32]) -> int:
    """Give the day's groups numbers from 1 in order of appearance, name ``i`` gets ``numbers[i]``; return how many.

    ``bits`` are the group codes as integers, bit for bit, for a hash table with open addressing. Names that do not take
    part are group 0: sums over them are NaN, which is what they keep, so that the loops below need no question.
    """
    table[:] = 0
    shift = 64
    slots = table.size
    while slots > 1:
        slots //= 2
        shift -= 1
    mask = table.size - 1
    groups = 0
    for i in range(row.size):
        numbers[i] = 0
        if row[i] != row[i]:
            continue
        slot = ((bits[i] * _GOLDEN) >> shift) & mask
        while table[slot] > 0 and codes[table[slot]] != bits[i]:
            slot = (slot + 1) & mask
        if table[slot] == 0:
            groups += 1
            table[slot] = groups
            codes[groups] = bits[i]
        numbers[i] = table[slot]
    return groups


@jit
def _centre_groups(row: Array, numbers: Integers, groups: int, moments: Array) -> None:
    """Subtract each group's mean, as :func:`_centre`; leaves count and largest value of the groups in ``moments``."""
    size, largest, mean, anchor, rest = moments[0], moments[1], moments[2], moments[3], moments[4]
    moments[:, : groups + 1] = 0.0
    for i in range(row.size):
        anchor[numbers[i]] = row[i]  # the last one stays
    for i in range(row.size):
        number = numbers[i]
        size[number] += 1.0
        largest[number] = max(largest[number], abs(row[i]))
        mean[number] += row[i] - anchor[number]
    for number in range(1, groups + 1):
        mean[number] = anchor[number] + mean[number] / size[number]
    for i in range(row.size):
        row[i] -= mean[numbers[i]]
        rest[numbers[i]] += row[i]
    for number in range(1, groups + 1):
        rest[number] /= size[number]
    for i in range(row.size):
        row[i] -= rest[numbers[i]]


# --- order -----------------------------------------------------------------------------------------------------------


@jit
def _sorting_room(names: int) -> tuple[Integers, Integers, Integers, Integers, NDArray[np.float32]]:
    """Arrays for :func:`_sort`."""
    return (
        np.empty(names, dtype=np.int64),
        np.empty(names, dtype=np.int64),
        np.empty(names, dtype=np.int64),
        np.empty((_DIGITS, _DIGIT_VALUES), dtype=np.int64),
        np.empty(names, dtype=np.float32),
    )


@jit
def _sort(
    row: Array,
    order: Integers,
    keys: Integers,
    spare: Integers,
    tally: Integers,
    narrow: NDArray[np.float32],
) -> int:
    """Write the places of the values, smallest value first, into ``order``; return how many there are.

    Rounding to float32 keeps the order and never turns it round. So the values are sorted by their float32 bits, read
    as whole numbers, in four passes of one byte each; what float32 cannot tell apart is then sorted exactly.
    """
    bits = narrow.view(np.int32)
    for i in range(row.size):
        narrow[i] = np.float32(row[i]) + np.float32(0.0)  # a small negative number may have become -0.0
    tally[:] = 0
    count = 0
    for i in range(row.size):
        if row[i] != row[i]:
            continue
        signed = np.int64(bits[i])
        key = (signed ^ ((signed >> 31) & 0x7FFFFFFF)) + 0x80000000
        keys[count] = (key << _PLACE_BITS) | i
        count += 1
        tally[0, key & 255] += 1
        tally[1, (key >> 8) & 255] += 1
        tally[2, (key >> 16) & 255] += 1
        tally[3, key >> 24] += 1
    for digit in range(_DIGITS):
        shift = _PLACE_BITS + 8 * digit
        if count == 0 or tally[digit, (keys[0] >> shift) & 255] == count:
            continue
        position = 0
        for value in range(_DIGIT_VALUES):
            here = tally[digit, value]
            tally[digit, value] = position
            position += here
        for k in range(count):
            value = (keys[k] >> shift) & 255
            spare[tally[digit, value]] = keys[k]
            tally[digit, value] += 1
        keys, spare = spare, keys
    for k in range(count):
        order[k] = keys[k] & ((1 << _PLACE_BITS) - 1)
    start = 0
    while start < count:
        stop = start + 1
        while stop < count and (keys[stop] >> _PLACE_BITS) == (keys[start] >> _PLACE_BITS):
            stop += 1
        if stop - start > 1:
            _sort_run(row, order[start:stop])
        start = stop
    return count


@jit
def _sort_run(row: Array, places: Integers) -> None:
    """Sort a few places by their values, or many that are tied already."""
    if places.size > _FEW:
        for k in range(1, places.size):
            if row[places[k]] < row[places[k - 1]]:
                places[:] = places[np.argsort(row[places])]
                return
        return
    for k in range(1, places.size):
        place = places[k]
        gap = k
        while gap > 0 and row[places[gap - 1]] > row[place]:
            places[gap] = places[gap - 1]
            gap -= 1
        places[gap] = place


@jit
def _end_of_ties(row: Array, order: Integers, start: int, count: int) -> int:
    """Position after the last value that equals the one at ``start``."""
    stop = start + 1
    while stop < count and row[order[stop]] == row[order[start]]:
        stop += 1
    return stop


@jit
def _compact(row: Array, values: Array) -> int:
    """Copy the values that are present to the front of ``values``; return how many there are."""
    count = 0
    for i in range(row.size):
        values[count] = row[i]
        count += row[i] == row[i]
    return count


@jit
def _quantile(values: Array, count: int, q: float, spare: Array, tally: Integers) -> float:
    """Quantile of the first ``count`` values, on a straight line between the two neighbours."""
    position = q * (count - 1)
    k = min(int(position), count - 1)
    part = position - k
    low: float = _kth(values, count, k, spare, tally)
    if part == 0.0:
        return low
    not_above = 0
    high = math.inf
    for i in range(count):
        value = values[i]
        not_above += value <= low
        high = value if low < value < high else high
    if not_above > k + 1:
        return low
    step: float = high - low
    return low + step * part if part < 0.5 else high - step * (1.0 - part)


@jit
def _kth(values: Array, count: int, k: int, spare: Array, tally: Integers) -> float:
    """Return the value at place ``k`` of the sorted values.

    The range is cut into equal parts, and only the part that holds the place is kept, until few values are left. Where
    one value far out leaves all others in one part again and again, sorting is quicker.
    """
    source = values
    for _ in range(_ROUNDS):
        if count <= _FEW:
            break
        low, high = _range(source[:count])
        if low == high:
            k = 0
            count = 1
            break
        steps = (_PARTS - 1) / (high - low)
        if not 0.0 < steps < math.inf:  # a range beyond what a float64 can hold
            break
        tally[:] = 0
        for i in range(count):
            tally[int((source[i] - low) * steps)] += 1
        part = 0
        while k >= tally[part]:
            k -= tally[part]
            part += 1
        kept = 0
        for i in range(count):
            value = source[i]
            spare[kept] = value
            kept += int((value - low) * steps) == part
        source = spare
        count = kept
    found: float = np.sort(source[:count])[k]
    return found


def _smallest_and_largest(values: Array) -> tuple[float, float]:
    low = values[0]
    high = values[0]
    for i in range(values.size):
        low = values[i] if values[i] < low else low
        high = values[i] if values[i] > high else high
    return low, high


# Without NaN the order of comparisons does not matter, and the compiler may use vector instructions.
_range = jit(_smallest_and_largest, fastmath={"nnan", "nsz"})
