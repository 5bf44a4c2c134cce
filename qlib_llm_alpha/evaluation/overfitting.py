"""The probability of backtest overfitting: whether the best candidate of half of the days stays above the middle.

The days are cut into blocks, and every choice of half of the blocks is once the in-sample half, on which the best
candidate is picked, while the others are its out-of-sample half. Each choice is as good a backtest as any other, so
that the share in which the pick falls to the lower half of all candidates says how far picking the best can be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.errors import ConfigError, PanelError

Array = NDArray[np.float64]
Measure = Literal["sharpe", "mean"]

MOST_BLOCKS = 20
_VALUES_AT_ONCE = 250_000


@dataclass(frozen=True, eq=False)
class BacktestOverfitting:
    """What became of the in-sample best in every split; splits without two comparable candidates are NaN in arrays.

    Parameters
    ----------
    pbo : float
        Share of splits in which the in-sample best was out of sample at or below the middle of the candidates: those
        with a logit of 0 or less; NaN without a usable split.
    chance : float
        What ``pbo`` is on average when nothing distinguishes the K candidates and none leaves a split: 1/2 for an even
        K, ``(K + 1) / 2K`` for an odd one, whose middle rank counts; 2/3 for three.
    logits : array, (splits,)
        ``ln(w / (1 - w))`` of its relative rank ``w`` out of sample.
    splits : int
        ``blocks! / (blocks / 2)!^2``, 12,870 for 16 blocks.
    slope, intercept : float
        Least-squares line of its out-of-sample on its in-sample performance over the splits. Halves share out one
        total, so the slope is negative without any overfitting: -1 when one candidate always wins by its mean. Read it
        beside the logits, never alone.
    probability_of_loss : float
        Share of splits in which it performed below 0 out of sample.
    in_sample, out_of_sample : array, (splits,)
        Its performance in either half, per day.
    """

    pbo: float
    chance: float
    logits: Array = field(repr=False)
    splits: int
    slope: float
    intercept: float
    probability_of_loss: float
    in_sample: Array = field(repr=False)
    out_of_sample: Array = field(repr=False)


def probability_of_backtest_overfitting(
    performance: Array, *, blocks: int = 16, measure: Measure = "sharpe"
) -> BacktestOverfitting:
    """Estimate the probability of backtest overfitting by combinatorially symmetric cross-validation.

    Parameters
    ----------
    performance : array, (T, K)
        Daily performance of every candidate that was tried, the rejected ones included: returns or ICs, more being
        better, row by row consecutive days. Where the sign of a candidate is for the data to choose, give both signs
        as two columns, so that each half chooses by itself. Signs chosen on all days let every half see the other: on
        noise they raise the PBO to about 0.7.
    blocks : int
        Even number of blocks S, 2 to 20. The days are cut at equal steps; lengths differ by one day where T is no
        multiple of S.
    measure : {"sharpe", "mean"}
        What the best is picked and ranked by: mean over sample deviation (ddof 1) per day, or mean per day.

    Returns
    -------
    BacktestOverfitting
        In each of the ``S! / (S/2)!^2`` splits the in-sample best (the first of equals) has the relative rank
        ``w = rank / (K + 1)`` out of sample, 1 for the worst, equals sharing their average rank; ``pbo`` is the share
        of ``ln(w / (1 - w)) <= 0``. Compare it with ``chance``; a single sample scatters widely around that.

    Raises
    ------
    PanelError
        Not (T, K) with two candidates or more, infinite values, or fewer days than blocks.
    ConfigError
        An odd number of blocks or one out of its range, or an unknown measure.

    Notes
    -----
    NaN rule: a candidate is measured on those days of a half on which it has a value. One without a measure in either
    half (no value; with "sharpe" also fewer than two values, or a value that never moves) leaves that split, and ranks
    count those that remain. Shifting all candidates by one common series does not change "mean" when no value is NaN.

    The work is done on sums and sums of squares of the blocks, seconds for 1,500 days, 2,000 candidates and 16
    blocks.

    References
    ----------
    Bailey, Borwein, Lopez de Prado and Zhu (2017), "The probability of backtest overfitting", Journal of Computational
    Finance 20.
    """
    values = _checked(performance, blocks, measure)
    sums = _block_sums(values, blocks, measure)
    members = _halves(blocks)
    logits, inside, outside = (np.empty(len(members)) for _ in range(3))
    step = max(1, _VALUES_AT_ONCE // values.shape[1])
    for start in range(0, len(members), step):
        part = slice(start, start + step)
        in_sample = _performance(members[part], sums, measure)
        out_of_sample = _performance(1.0 - members[part], sums, measure)
        logits[part], inside[part], outside[part] = _fate_of_the_best(in_sample, out_of_sample)
    known = ~np.isnan(logits)
    slope, intercept = _line(inside[known], outside[known])
    return BacktestOverfitting(
        pbo=_share(logits[known] <= 0),
        chance=(values.shape[1] + 1) // 2 / values.shape[1],
        logits=logits,
        splits=len(members),
        slope=slope,
        intercept=intercept,
        probability_of_loss=_share(outside[known] < 0),
        in_sample=inside,
        out_of_sample=outside,
    )


class _BlockSums(NamedTuple):
    # (S, K) each, of values less their origin (K,): number of days, sum, sum of squares.
    origin: Array
    days: Array
    total: Array
    squares: Array


def _checked(performance: Array, blocks: int, measure: str) -> Array:
    if measure not in get_args(Measure):
        raise ConfigError(f"measure is {measure!r}; expected one of {list(get_args(Measure))!r}")
    if blocks % 2 or not 2 <= blocks <= MOST_BLOCKS:
        raise ConfigError(f"blocks is {blocks!r}; expected an even number, 2 to {MOST_BLOCKS}; 16 is usual")
    values = np.asarray(performance, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or np.isinf(values).any():
        raise PanelError(
            f"performance has shape {values.shape!r}; expected (days, candidates) with two candidates or more and no "
            "infinite value; stack one column for each candidate"
        )
    if len(values) < blocks:
        raise PanelError(f"{len(values)} days for {blocks} blocks; expected a day or more in each; take fewer blocks")
    return values


def _block_sums(values: Array, blocks: int, measure: Measure) -> _BlockSums:
    known = ~np.isnan(values)
    starts = np.arange(blocks) * len(values) // blocks
    origin = np.zeros(values.shape[1])
    if measure == "sharpe":
        # Squares are summed around the mean: around 0 a large mean would drown the deviation.
        origin = np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, values - origin, 0.0)
    # What rounding leaves of a column that never moves must not pass for movement.
    centred[:, np.abs(centred).max(axis=0) <= 1e-12 * np.abs(origin)] = 0.0
    return _BlockSums(
        origin,
        np.add.reduceat(known, starts, axis=0, dtype=np.float64),
        np.add.reduceat(centred, starts, axis=0),
        np.add.reduceat(centred**2, starts, axis=0),
    )


def _halves(blocks: int) -> Array:
    chosen = np.array(list(combinations(range(blocks), blocks // 2)))
    members = np.zeros((len(chosen), blocks))
    np.put_along_axis(members, chosen, 1.0, axis=1)
    return members


def _performance(members: Array, sums: _BlockSums, measure: Measure) -> Array:
    """Return the measure of every candidate on the blocks of each half, (halves, K)."""
    days = _added(members, sums.days)
    total = _added(members, sums.total)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Array = total / days
        if measure == "mean":
            return mean
        squares = _added(members, sums.squares)
        deviations = squares - total * mean
        deviations[deviations <= 1e-12 * squares] = np.nan
        sharpe: Array = (mean + sums.origin) / np.sqrt(deviations / (days - 1.0))
    return sharpe


def _added(members: Array, of_blocks: Array) -> Array:
    # Not a matrix product: on pieces so small the threads of a BLAS cost more than they save, tenfold when it is busy.
    added: Array = np.einsum("hs,sk->hk", members, of_blocks)
    return added


def _fate_of_the_best(in_sample: Array, out_of_sample: Array) -> tuple[Array, Array, Array]:
    """Return the logit of the in-sample best's rank out of sample, and its performance in and out of sample."""
    known = ~(np.isnan(in_sample) | np.isnan(out_of_sample))
    best = np.where(known, in_sample, -np.inf).argmax(axis=1)[:, None]
    own = np.take_along_axis(out_of_sample, best, axis=1)
    candidates = known.sum(axis=1)
    worse = (known & (out_of_sample < own)).sum(axis=1)
    equal = (known & (out_of_sample == own)).sum(axis=1)
    rank = worse + (equal + 1) / 2
    comparable = candidates >= 2
    logits = np.full(len(rank), np.nan)
    np.log(rank / (candidates + 1 - rank), out=logits, where=comparable)
    picked = np.take_along_axis(in_sample, best, axis=1)
    return logits, np.where(comparable, picked[:, 0], np.nan), np.where(comparable, own[:, 0], np.nan)


def _line(x: Array, y: Array) -> tuple[float, float]:
    if len(x) < 2 or float(np.ptp(x)) <= 1e-12 * float(np.abs(x).max()):
        return float("nan"), float("nan")
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return slope, float(y.mean() - slope * x.mean())


def _share(condition: NDArray[np.bool_]) -> float:
    return float(condition.mean()) if len(condition) else float("nan")
