"""Resampling of daily series by blocks, intervals from it, and tests of many candidates against one baseline.

Days of a daily IC or return series are not independent, so what is drawn with replacement are stretches of
neighbouring days. Blocks wrap around: the first day follows the last one.

NaN rule: a day without a value is left out, for one series alone and for a (T, K) array when any candidate lacks it,
because all candidates must be resampled together; the days that remain are taken as consecutive. Too few days
(:data:`MIN_DAYS`), or nothing that moves, give NaN, not an exception.

Timing: every figure here looks at the whole series given. It is evidence about the past, known when the last label is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.errors import ConfigError, MissingExtraError, PanelError
from qlib_llm_alpha.evaluation.statistics import DAYS_PER_YEAR, icir

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Statistic = Literal["mean", "sharpe"]

MIN_DAYS = 11

# Positions drawn at a time: 8 MB.
_CHUNK = 1_000_000


class BlockLength(NamedTuple):
    """Days in a block: the mean length for the stationary bootstrap, the fixed one for the circular bootstrap."""

    stationary: float
    circular: float


class Interval(NamedTuple):
    """A figure and its bootstrap interval, with what produced it."""

    estimate: float
    low: float
    high: float
    confidence: float
    block: float
    draws: int


@dataclass(frozen=True)
class SuperiorAbility:
    """Whether the best of ``candidates`` could be no better than the baseline: p values of three kinds.

    ``lower``, ``consistent`` and ``upper`` are p values, in this order of size; ``consistent`` is the one to report.
    ``best`` is the column with the largest mean gain over its deviation, -1 where nothing could be tested.
    """

    lower: float
    consistent: float
    upper: float
    best: int
    candidates: int
    days: int
    block: int
    draws: int
    seed: int


@dataclass(frozen=True)
class StepwiseBetter:
    """Which candidates beat the baseline, with at most ``alpha`` chance that any of them is named wrongly."""

    better: tuple[str, ...]
    alpha: float
    candidates: int
    days: int
    block: int
    draws: int
    seed: int


def optimal_block_length(series: Array) -> BlockLength:
    """Choose the block length that makes the bootstrap variance of the mean most accurate.

    Parameters
    ----------
    series : array, (T,)
        Daily values in any unit; NaN left out.

    Returns
    -------
    BlockLength
        In days, not rounded, at most ``ceil(min(3 sqrt(T), T / 3))``; 0 to 1 for a series without memory (a block of
        one day is then right). NaN with fewer than :data:`MIN_DAYS` days or a series that never moves.

    Notes
    -----
    ``b = (2 g^2 T / d)^(1/3)`` with ``g = sum_k lam(k / m) |k| R_k`` and ``d = c (sum_k lam(k / m) R_k)^2``, c = 2
    for the stationary and 4/3 for the circular bootstrap; ``R_k`` is the autocovariance, ``lam`` the flat-top window
    ``min(1, 2 (1 - |x|))``. ``m`` is twice the first lag from which on ``max(5, log10 T)`` autocorrelations in a row
    lie within ``2 sqrt(log10(T) / T)``.

    References
    ----------
    Politis and White (2004), "Automatic block-length selection for the dependent bootstrap", Econometric Reviews 23;
    Patton, Politis and White (2009), "Correction", Econometric Reviews 28. Conventions of Patton's program, as in
    ``arch.bootstrap.optimal_block_length``.
    """
    values = np.asarray(series, dtype=np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n < MIN_DAYS or np.isnan(icir(values)):
        return BlockLength(float("nan"), float("nan"))
    centred = values - values.mean()
    run = max(5, int(np.log10(n)))
    most = int(np.ceil(np.sqrt(n))) + run
    covariance = np.array([centred[lag:] @ centred[: n - lag] for lag in range(most + 1)]) / n
    band = 2.0 * np.sqrt(np.log10(n) / n)
    bandwidth = _bandwidth(np.abs(_correlations(centred, most)) < band, run, most)
    lags = np.arange(1, bandwidth + 1)
    window = np.minimum(1.0, 2.0 * (1.0 - lags / bandwidth))
    slope = 2.0 * float(window @ (lags * covariance[lags]))
    spectrum = float(covariance[0]) + 2.0 * float(window @ covariance[lags])
    longest = float(np.ceil(min(3.0 * np.sqrt(n), n / 3.0)))
    if spectrum == 0.0:
        return BlockLength(longest, longest)
    lengths = [(2.0 * slope**2 / (factor * spectrum**2) * n) ** (1.0 / 3.0) for factor in (2.0, 4.0 / 3.0)]
    return BlockLength(min(lengths[0], longest), min(lengths[1], longest))


def stationary_bootstrap(n: int, block: float, draws: int, seed: int) -> Iterator[Rows]:
    """Draw samples of days whose blocks have random lengths, geometric with mean ``block``.

    Parameters
    ----------
    n : int
        Days in the series.
    block : float
        Mean days in a block, at least 1; 1 draws single days.
    draws : int
        Samples in all.
    seed : int
        The same seed, n, block and draws give the same samples.

    Yields
    ------
    array, (d, n) of row positions
        Samples, a chunk at a time, so that no more than about a million positions are held; the d's add up to
        ``draws``.

    References
    ----------
    Politis and Romano (1994), "The stationary bootstrap", JASA 89. Unlike with blocks of one length, each sample is
    itself stationary.
    """
    _check_draws(n, block, draws)
    rng = np.random.default_rng(seed)
    place = np.arange(n)
    for size in _chunks(n, draws):
        begins = rng.random((size, n)) < 1.0 / block
        begins[:, 0] = True
        starts = rng.integers(0, n, size=(size, n))
        begun = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
        yield (np.take_along_axis(starts, begun, axis=1) + place - begun) % n


def circular_block_bootstrap(n: int, block: int, draws: int, seed: int) -> Iterator[Rows]:
    """Draw samples of days made of blocks of exactly ``block`` days, the last one cut to fit.

    Parameters, and what is yielded, are those of :func:`stationary_bootstrap`; ``block`` is a whole number.

    References
    ----------
    Politis and Romano (1992), "A circular block-resampling procedure for stationary data".
    """
    _check_draws(n, block, draws)
    if block != int(block):
        raise ConfigError(f"block is {block!r}; expected a whole number of days; round it up")
    rng = np.random.default_rng(seed)
    blocks = -(-n // int(block))
    inside = np.arange(int(block))
    for size in _chunks(n, draws):
        starts = rng.integers(0, n, size=(size, blocks))
        yield ((starts[:, :, None] + inside) % n).reshape(size, -1)[:, :n]


def bootstrap_interval(
    series: Array,
    statistic: Statistic = "mean",
    block: float | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a figure of a daily series and its percentile interval under the stationary bootstrap.

    Parameters
    ----------
    series : array, (T,)
        Daily values, NaN left out: an IC, or simple returns.
    statistic : {"mean", "sharpe"}
        The daily mean, in the unit of the series; or mean over sample deviation (n - 1) times ``sqrt(252)``, the ratio
        of ``statistics.annualised``.
    block : float, optional
        Mean days in a block; None takes :func:`optimal_block_length` (at least 1).
    draws : int
        Samples; 2,000 fix the ends of a 0.95 interval to about a twentieth of its width.
    confidence : float
        Share of the samples between the ends.
    seed : int
        Of the draws.

    Returns
    -------
    Interval
        Ends are NaN, and the estimate too, with fewer than :data:`MIN_DAYS` days or a series that never moves.

    Notes
    -----
    The percentile interval is a little too short in small samples: its coverage nears ``confidence`` from below as
    days grow (at 0.95 it held the truth in 0.88 of 300 series of 250 days with an autocorrelation of 0.3). It says how
    sure the past mean is, not what a selection among many did: see ``evaluation.max_null``.
    """
    if statistic not in _STATISTICS:
        raise ConfigError(f"statistic is {statistic!r}; expected one of {sorted(_STATISTICS)!r}; choose one")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected between 0 and 1; 0.95 is usual")
    values = np.asarray(series, dtype=np.float64)
    values = values[~np.isnan(values)]
    length = max(1.0, optimal_block_length(values).stationary) if block is None else float(block)
    _check_draws(max(len(values), 1), length, draws)
    if len(values) < MIN_DAYS or np.isnan(icir(values)):
        nothing = float("nan")
        return Interval(nothing, nothing, nothing, confidence, length, draws)
    figure = _STATISTICS[statistic]
    samples = np.concatenate([figure(values[rows]) for rows in stationary_bootstrap(len(values), length, draws, seed)])
    # A sample may hold one day only and then has no ratio.
    low, high = np.nanquantile(samples, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(float(figure(values[None])[0]), float(low), float(high), confidence, length, draws)


def superior_predictive_ability(
    gains: Array, *, block: int | None = None, draws: int = 1000, seed: int = 0
) -> SuperiorAbility:
    """Test whether the best of many candidates is better than the baseline, after the search for the best.

    Parameters
    ----------
    gains : array, (T, K)
        Daily figure of each candidate less that of the baseline, **positive is better** (IC, net return): the
        negative of the loss differences that ``arch`` and the papers call models less benchmark.
    block : int, optional
        Mean days in a block of the stationary bootstrap; None takes the mean of :func:`optimal_block_length` over the
        candidates, rounded up.
    draws : int
        Bootstrap samples.
    seed : int
        Of the draws.

    Returns
    -------
    SuperiorAbility
        ``p = (1 + draws whose maximum exceeds that seen) / (1 + draws)``, never 0. All three p are 1 when no candidate
        has a positive mean gain, and NaN with fewer than :data:`MIN_DAYS` days or when no candidate moves.

    Notes
    -----
    H0: no candidate has a positive expected gain. Statistic: the largest ``sqrt(T) mean_k / s_k``, ``s_k`` the sample
    deviation of the daily gains; the samples keep their autocorrelation. ``arch`` (8.0) takes the maximum over the raw
    means, so gains are divided by ``s_k`` before they are handed to it; else the candidate of the largest scale hides
    the others. Hansen's own divisor, a long-run deviation, is so noisy in a few hundred days that picking the maximum
    of 20 picks the underestimated ones. The three p differ in how the means of poor candidates are treated under H0:
    ``upper`` centres all at 0 (White's reality check), ``lower`` leaves every negative mean where it is,
    ``consistent`` leaves those that are further below 0 than ``sqrt(2 log log T)`` of their standard errors.

    In short samples p is a little too small, the more so the longer the memory. Of 400 draws of noise with 20
    candidates, ``consistent`` was at most 0.05 in 6 percent (250 days) and 3 percent (1,000 days); with an
    autocorrelation of 0.3, in 12 and 5 percent. With a year or less of persistent gains, ask for a stricter level.

    A candidate whose gains never move is left out: it says nothing about chance. Time grows with T x K x draws (1,000
    x 100 x 1,000 takes less than a second); memory with K x draws.

    Raises
    ------
    MissingExtraError
        ``arch`` is not installed.
    PanelError, ConfigError
        Gains that are not (T, K), or infinite; settings that mean nothing.

    References
    ----------
    Hansen (2005), "A test for superior predictive ability", Journal of Business & Economic Statistics 23; White
    (2000), "A reality check for data snooping", Econometrica 68.
    """
    chosen = _prepare(gains, block, draws)
    if chosen is None:
        nothing = float("nan")
        return SuperiorAbility(nothing, nothing, nothing, -1, *_facts(gains, 0, block), draws, seed)
    scaled, kept, length = chosen
    means = scaled.mean(axis=0)
    best = int(kept[np.argmax(means)])
    facts = (len(kept), len(scaled), length)
    if means.max() <= 0:
        return SuperiorAbility(1.0, 1.0, 1.0, best, *facts, draws, seed)
    test = _spa(scaled, length, draws, seed)
    test.compute()
    found = test.pvalues
    lower, consistent, upper = (
        (1.0 + round(float(found[name]) * draws)) / (1.0 + draws) for name in ("lower", "consistent", "upper")
    )
    return SuperiorAbility(lower, consistent, upper, best, *facts, draws, seed)


def step_m(
    gains: Array,
    names: Sequence[str],
    *,
    alpha: float = 0.05,
    block: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> StepwiseBetter:
    """Name the candidates that beat the baseline, keeping the chance of one or more false names at ``alpha``.

    Parameters
    ----------
    gains : array, (T, K)
        As in :func:`superior_predictive_ability`: candidate less baseline, positive is better.
    names : sequence of str, K
        One for each column.
    alpha : float
        Family-wise error rate.
    block, draws, seed
        As in :func:`superior_predictive_ability`.

    Returns
    -------
    StepwiseBetter
        Names in the order of the columns; none when too few days, or no candidate, can be tested.

    Notes
    -----
    Step by step: candidates whose mean over deviation exceeds the ``1 - alpha`` quantile of the bootstrap maximum are
    named and set aside, and the maximum of the rest gives the next, lower bar, until a step names none. The steps are
    made here and not by ``arch.bootstrap.StepM``, which (8.0) fails when a later
    step names all that were left.

    Raises
    ------
    MissingExtraError
        ``arch`` is not installed.

    References
    ----------
    Romano and Wolf (2005), "Stepwise multiple testing as formalized data snooping", Econometrica 73.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha!r}; expected between 0 and 1; 0.05 is usual")
    if np.ndim(gains) == 2 and len(names) != np.shape(gains)[1]:
        raise PanelError(f"there are {len(names)} names for gains {np.shape(gains)}; expected one for each column")
    chosen = _prepare(gains, block, draws)
    if chosen is None:
        return StepwiseBetter((), alpha, *_facts(gains, 0, block), draws, seed)
    scaled, kept, length = chosen
    test = _spa(scaled, length, draws, seed)
    left = np.ones(len(kept), dtype=np.bool_)
    while left.any():
        test.subset(left)
        test.compute()
        found = test.better_models(alpha)
        if not len(found):
            break
        left[found] = False
    better = tuple(str(names[column]) for column in kept[~left])
    return StepwiseBetter(better, alpha, len(kept), len(scaled), length, draws, seed)


def _mean(samples: Array) -> Array:
    return np.asarray(samples.mean(axis=1))


def _sharpe(samples: Array) -> Array:
    deviation = samples.std(axis=1, ddof=1)
    tiny = 1e-12 * np.abs(samples).max(axis=1)
    ratio = np.divide(samples.mean(axis=1), deviation, out=np.full(len(samples), np.nan), where=deviation > tiny)
    return np.asarray(ratio * np.sqrt(DAYS_PER_YEAR))


_STATISTICS: dict[str, Callable[[Array], Array]] = {"mean": _mean, "sharpe": _sharpe}


def _correlations(centred: Array, most: int) -> Array:
    # Patton's program scales by the stretches that leave out one day more than the lag: kept, so that lengths agree.
    squares = centred**2
    n = len(centred)
    result = np.empty(most + 1)
    for lag in range(most + 1):
        scale = np.sqrt(squares[lag + 1 :].sum() * squares[: n - lag - 1].sum())
        result[lag] = centred[lag:] @ centred[: n - lag] / scale if scale > 0 else np.inf
    return result


def _bandwidth(quiet: NDArray[np.bool_], run: int, most: int) -> int:
    """Return twice the first lag that begins ``run`` quiet ones, at most ``most``; ``most`` when there is none."""
    for lag in range(most - run + 1):
        if quiet[lag : lag + run].all():
            return min(2 * max(lag, 1), most)
    return most


def _chunks(n: int, draws: int) -> Iterator[int]:
    size = max(1, _CHUNK // n)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _check_draws(n: int, block: float, draws: int) -> None:
    if n < 1 or draws < 1 or not 1 <= block < np.inf:
        raise ConfigError(
            f"n is {n!r}, block {block!r} and draws {draws!r}; expected at least one day, a block of 1 or more and at "
            "least one draw; correct them"
        )


def _prepare(gains: Array, block: int | None, draws: int) -> tuple[Array, Rows, int] | None:
    """Return the gains that can be tested, of one scale, with their columns and the block; None when there are none."""
    _check_draws(1, 1 if block is None else block, draws)
    given = np.asarray(gains, dtype=np.float64)
    if given.ndim != 2 or np.isinf(given).any():
        raise PanelError(
            f"gains have shape {given.shape} and {int(np.isinf(given).sum())} infinite values; expected (T, K), days "
            "by candidates, finite or NaN; give one column for each candidate"
        )
    rows = given[~np.isnan(given).any(axis=1)]
    if len(rows) < MIN_DAYS:
        return None
    kept = np.flatnonzero(np.ptp(rows, axis=0) > 1e-12 * np.abs(rows).max(axis=0, initial=0.0))
    if not len(kept):
        return None
    moving = rows[:, kept]
    if block is None:
        block = int(np.ceil(max(1.0, float(np.mean([optimal_block_length(column).stationary for column in moving.T])))))
    return moving / moving.std(axis=0, ddof=1), kept.astype(np.intp), int(block)


def _facts(gains: Array, candidates: int, block: int | None) -> tuple[int, int, int]:
    days = int((~np.isnan(np.asarray(gains, dtype=np.float64)).any(axis=1)).sum())
    return candidates, days, 0 if block is None else block


def _spa(scaled: Array, block: int, draws: int, seed: int) -> Any:
    try:
        bootstrap = importlib.import_module("arch.bootstrap")
    except ImportError as error:
        raise MissingExtraError(
            "tests of superior predictive ability were asked for and 'arch' cannot be imported; expected the extra "
            "'stats' to be installed; run: pip install 'qlib_llm_alpha[stats]'"
        ) from error
    # arch works on losses: a gain of g over a baseline of loss 0 is a loss of -g.
    return bootstrap.SPA(np.zeros(len(scaled)), -scaled, block_size=block, reps=draws, seed=seed)
