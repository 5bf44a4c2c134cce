"""Cross-sectional operators on columns: each day against the point-in-time members of a universe.

A column is (tiles, T, LANES) float32 or float64: instrument ``n`` is tile ``n // LANES``, lane ``n % LANES``. A cell
takes part in a day, and gets a result, if it is a member that day and has a finite value in every input. Every other
cell becomes NaN, also one that has a value but is no member. Infinite values count as missing.

Timing: the result of day ``t`` reads day ``t`` of the inputs and nothing else.

=============== =======================================================================================================
CSRank          average rank divided by the number of values: above 0, up to 1; -0.0 ties with 0.0
CSZScore        (x - mean) / population deviation; 0 on a day without spread
CSDemean        x - mean
CSScale         x / sum of absolute values; 0 on a day of zeros
CSWinsorize     x held between the quantiles q and 1-q
CSQuantile      the quantile q, the same for all that take part; linear between neighbours
CSBucket        ceil(average rank * n / number of values): 1 to n; equal values share a bucket
CSNeutralize    x - mean of the group
CSGroupRank     as CSRank, within the group
CSGroupZScore   as CSZScore, within the group
CSResidual      x - (a + b * y), a and b by least squares; x - mean on a day on which y has no spread
=============== =======================================================================================================

"Without spread" means a deviation of at most 1e-12 of the largest absolute value. Sums and ranks are float64, whatever
the dtype of the column; values may be as large as 1e300. A float32 result beyond the range of float32 is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine import cross_section
from qlib_llm_alpha.engine.kernels import across_day
from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, LANES
from qlib_llm_alpha.errors import ConfigError, PanelError

Array = NDArray[np.float64]
Column = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Rows = Callable[..., None]

CELLS_AT_ONCE: Final = 32_768
"""Cells of a block of days: as float64 they stay in the second-level cache, and are worth handing to a thread."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that an operator takes: its bounds, both allowed, and whether it must be whole."""

    name: str
    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True, slots=True)
class CrossSection:
    """One cross-sectional operator.

    Parameters
    ----------
    name : str
        As in the factor language.
    inputs : int
        Columns that it reads, 1 or 2.
    run : callable
        ``run(rows, *others, *parameters)``: compiled. ``rows`` (days, names) float64, NaN where an instrument does not
        take part, is overwritten with the result; ``others`` have a finite value wherever ``rows`` has one, and may be
        overwritten, too.
    fallback : callable
        The same in numpy, several times slower, to the same numbers up to 1e-12 of the day's scale.
    parameters : tuple of Parameter
        In the order of the call.
    """

    name: str
    inputs: int
    run: Rows
    fallback: Rows
    parameters: tuple[Parameter, ...] = ()


def across(
    name: str,
    inputs: Sequence[Column],
    member: Mask | None,
    parameters: Sequence[float] = (),
    *,
    threads: int = 1,
) -> Column:
    """Evaluate a cross-sectional operator on columns.

    Parameters
    ----------
    name : str
        A key of :data:`ACROSS`.
    inputs : sequence of array, (tiles, T, LANES) float32 or float64
        x, then y or the group codes where the operator reads a second column. Lanes that pad the last tile are NaN.
    member : array, (tiles, T, LANES) bool, or None
        True where the instrument belongs to the universe that day, as known that day. None: every cell with a value.
    parameters : sequence of float
        q or n of the operator.
    threads : int
        The days are shared among so many threads; the result has the same bits for any number.

    Returns
    -------
    array, (tiles, T, LANES)
        New, dtype of ``inputs[0]``, NaN where an instrument does not take part that day.

    Raises
    ------
    ConfigError
        A name that is not in the table, or parameters or a number of threads that cannot mean anything.
    PanelError
        Columns whose number, shapes or dtypes do not fit.
    """
    operator = _operator(name)
    columns = _checked_columns(operator, inputs, member)
    numbers = _checked_parameters(operator, parameters)
    if threads < 1:
        raise ConfigError(f"threads={threads!r} given; expected at least 1; use 1 to stay in the calling thread")
    member = None if member is None else np.ascontiguousarray(member)
    result = np.empty_like(columns[0])

    def compute(days: slice) -> None:
        blocks = [np.empty((days.stop - days.start, result.shape[0] * LANES)) for _ in columns]
        if HAVE_NUMBA:
            across_day.gather(columns[0], member, days.start, blocks[0])
            for column, block in zip(columns[1:], blocks[1:], strict=True):
                across_day.gather_other(column, days.start, blocks[0], block)
            operator.run(*blocks, *numbers)
            across_day.scatter(blocks[0], result, days.start)
        else:
            with np.errstate(over="ignore"):  # here, because each thread has its own setting
                _gather(columns, member, days, blocks)
                operator.fallback(*blocks, *numbers)
                result[:, days] = blocks[0].reshape(len(blocks[0]), -1, LANES).transpose(1, 0, 2)

    if threads == 1:
        for days in _blocks(result.shape):
            compute(days)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(compute, _blocks(result.shape)))  # the list makes errors of the threads come out here
    return result


def _operator(name: str) -> CrossSection:
    if name not in ACROSS:
        raise ConfigError(f"{name!r} is not a cross-sectional operator; expected one of {sorted(ACROSS)!r}")
    return ACROSS[name]


def _checked_columns(operator: CrossSection, inputs: Sequence[Column], member: Mask | None) -> tuple[Column, ...]:
    if len(inputs) != operator.inputs:
        raise PanelError(f"{operator.name} was given {len(inputs)} columns; it reads {operator.inputs}; pass that many")
    shape = inputs[0].shape
    if len(shape) != 3 or shape[2] != LANES:
        raise PanelError(f"{operator.name} was given a column of shape {shape!r}; expected (tiles, T, {LANES})")
    for column in inputs:
        if column.shape != shape:
            raise PanelError(
                f"{operator.name} was given columns of shapes {shape!r} and {column.shape!r}; expected one shape"
            )
        if column.dtype not in (np.float32, np.float64):
            raise PanelError(
                f"{operator.name} was given a column of dtype {column.dtype}; expected float32 or float64, which can "
                "say that a value is missing; convert it and write NaN there"
            )
    if member is not None and (member.shape != shape or member.dtype != np.bool_):
        raise PanelError(
            f"{operator.name} was given members of shape {member.shape!r} and dtype {member.dtype}; "
            f"expected bool of the columns' shape {shape!r}"
        )
    return tuple(np.ascontiguousarray(column) for column in inputs)


def _checked_parameters(operator: CrossSection, parameters: Sequence[float]) -> list[float]:
    names = [parameter.name for parameter in operator.parameters]
    if len(parameters) != len(names):
        raise ConfigError(f"{operator.name} was given the parameters {list(parameters)!r}; expected {names!r}")
    for value, parameter in zip(parameters, operator.parameters, strict=True):
        if not parameter.low <= value <= parameter.high or (parameter.whole and value != math.floor(value)):
            kind = "whole number" if parameter.whole else "number"
            raise ConfigError(
                f"{operator.name} was given {parameter.name}={value!r}; "
                f"expected a {kind} from {parameter.low} to {parameter.high}"
            )
    return [float(value) for value in parameters]


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    tiles, days, lanes = shape
    if tiles == 0:
        return
    height = max(1, CELLS_AT_ONCE // (tiles * lanes))
    for start in range(0, days, height):
        yield slice(start, min(days, start + height))


# --- numpy -----------------------------------------------------------------------------------------------------------


def _gather(columns: Sequence[Column], member: Mask | None, days: slice, blocks: Sequence[Array]) -> None:
    """Fill the blocks as the compiled ``gather`` and ``gather_other`` do."""
    absent = np.zeros(blocks[0].shape, dtype=bool)
    for column, block in zip(columns, blocks, strict=True):
        block.reshape(len(block), -1, LANES)[...] = column[:, days].transpose(1, 0, 2)
        block += 0.0
        absent |= ~np.isfinite(block)
    if member is not None:
        absent |= ~member[:, days].transpose(1, 0, 2).reshape(absent.shape)
    blocks[0][absent] = np.nan


def _rank(rows: Array) -> None:
    rows[...] = cross_section.rank(rows) / _count(rows)


def _bucket(rows: Array, buckets: float) -> None:
    rows[...] = np.ceil(cross_section.rank(rows) * buckets / _count(rows))


def _count(rows: Array) -> NDArray[np.int64]:
    """Values of each day, 1 for a day without any, which then divides nothing but NaN."""
    count: NDArray[np.int64] = np.sum(~np.isnan(rows), axis=1, keepdims=True)
    return np.maximum(count, 1)


def _demean(rows: Array) -> None:
    _neutralize(rows, np.zeros(rows.shape))


def _zscore(rows: Array) -> None:
    _group_zscore(rows, np.zeros(rows.shape))


def _factor(rows: Array) -> Array:
    """Return for each day the power of two that brings its values into the range where squares are safe."""
    largest = np.max(np.abs(rows), axis=1, keepdims=True, initial=0.0, where=~np.isnan(rows))
    small = (largest > 0.0) & (largest < across_day.SMALL)
    return np.where(largest > across_day.LARGE, across_day.SHRINK, np.where(small, 1.0 / across_day.SHRINK, 1.0))


def _scale(rows: Array) -> None:
    total = np.nansum(np.abs(rows), axis=1, keepdims=True)
    rows /= np.where(total > 0.0, total, 1.0)


def _quantile(rows: Array, q: float) -> None:
    rows[...] = np.where(np.isnan(rows), np.nan, _day_quantile(rows, q))


def _winsorize(rows: Array, q: float) -> None:
    np.minimum(np.maximum(rows, _day_quantile(rows, q)), _day_quantile(rows, 1.0 - q), out=rows)


def _day_quantile(rows: Array, q: float) -> Array:
    """(days, 1): NaN, without numpy's warning, for a day without values."""
    found = np.full((rows.shape[0], 1), np.nan)
    filled = ~np.isnan(rows).all(axis=1)
    if filled.any():
        found[filled] = np.nanquantile(rows[filled], q, axis=1, keepdims=True)
    return found


def _residual(rows: Array, other: Array) -> None:
    factor = _factor(rows)
    present = ~np.isnan(rows)
    regressor = np.where(present, other, np.nan)
    largest = np.max(np.abs(regressor), axis=1, keepdims=True, initial=0.0, where=present)
    shrink = _factor(regressor)
    largest, regressor = largest * shrink, regressor * shrink
    rows *= factor
    _demean(rows)
    _demean(regressor)
    squares = np.nansum(regressor**2, axis=1, keepdims=True)
    spread = np.sqrt(squares / _count(rows)) > across_day.NO_SPREAD * largest
    products = np.nansum(rows * regressor, axis=1, keepdims=True)
    slope = np.divide(products, squares, out=np.zeros_like(squares), where=spread)
    rows[...] = (rows - slope * regressor) / factor


def _neutralize(rows: Array, group: Array) -> None:
    present = ~np.isnan(rows)
    values = rows[present]
    number, first = _groups(group, present)
    rows[present] = _centred(values, number, first)


def _group_zscore(rows: Array, group: Array) -> None:
    rows *= _factor(rows)
    present = ~np.isnan(rows)
    values = rows[present]
    number, first = _groups(group, present)
    centred = _centred(values, number, first)
    deviation = np.sqrt(np.bincount(number, centred**2) / np.bincount(number))
    largest = np.zeros(len(first))
    np.maximum.at(largest, number, np.abs(values))
    deviation[deviation <= across_day.NO_SPREAD * largest] = np.inf
    rows[present] = centred / deviation[number]


def _group_rank(rows: Array, group: Array) -> None:
    present = ~np.isnan(rows)
    values = rows[present]
    number, first = _groups(group, present)
    if not len(first):
        return
    order = np.lexsort((values, number))
    changes = np.diff(number[order], prepend=-1) != 0
    begins = changes | (np.diff(values[order], prepend=values[order[0]]) != 0)
    starts = np.flatnonzero(begins)
    run = np.cumsum(begins) - 1
    stops = np.append(starts[1:], len(order))
    size = np.bincount(number)
    before = np.concatenate([[0], np.cumsum(size)[:-1]])[number[order]]
    positions = np.empty(len(order))
    positions[order] = (0.5 * (starts + 1 + stops)[run] - before) / size[number[order]]
    rows[present] = positions


def _groups(group: Array, present: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the groups of all days numbers; return that of each present value, and where each group first occurs."""
    _, code = np.unique(group[present], return_inverse=True)
    day = np.nonzero(present)[0]
    _, first, number = np.unique(day * (len(code) + 1) + code, return_index=True, return_inverse=True)
    return number, first


def _centred(values: Array, number: NDArray[np.int64], first: NDArray[np.int64]) -> Array:
    """Subtract group means, taken of distances from a value of the group: equal values get exactly 0."""
    size = np.bincount(number)
    anchor = values[first]
    mean = anchor + np.bincount(number, values - anchor[number]) / size
    distance = values - mean[number]
    return np.asarray(distance - (np.bincount(number, distance) / size)[number], dtype=np.float64)


_TAIL: Final = Parameter("q", 0.0, 0.5)
_FRACTION: Final = Parameter("q", 0.0, 1.0)
_BUCKETS: Final = Parameter("n", 2, 100, whole=True)

ACROSS: Final[Mapping[str, CrossSection]] = {
    row.name: row
    for row in (
        CrossSection("CSRank", 1, across_day.rank, _rank),
        CrossSection("CSZScore", 1, across_day.zscore, _zscore),
        CrossSection("CSDemean", 1, across_day.demean, _demean),
        CrossSection("CSScale", 1, across_day.scale, _scale),
        CrossSection("CSWinsorize", 1, across_day.winsorize, _winsorize, (_TAIL,)),
        CrossSection("CSQuantile", 1, across_day.quantile, _quantile, (_FRACTION,)),
        CrossSection("CSBucket", 1, across_day.bucket, _bucket, (_BUCKETS,)),
        CrossSection("CSNeutralize", 2, across_day.neutralize, _neutralize),
        CrossSection("CSGroupRank", 2, across_day.group_rank, _group_rank),
        CrossSection("CSGroupZScore", 2, across_day.group_zscore, _group_zscore),
        CrossSection("CSResidual", 2, across_day.residual, _residual),
    )
}
"""The operators by name; ``across`` is the way to call them."""
