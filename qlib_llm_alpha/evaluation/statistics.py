"""Statistics of daily series: errors that survive autocorrelation, ratios, drawdown, tails, block permutations.

NaN rule, everywhere: days without a value are left out and the remaining ones are taken as consecutive. Too few days,
or a series that never moves, give NaN, not an exception: a factor without evidence is a normal thing to meet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.errors import ConfigError

Array = NDArray[np.float64]

DAYS_PER_YEAR = 252


class Annualised(NamedTuple):
    """A daily series per year: mean (sum of simple returns), volatility, and their ratio."""

    mean: float
    volatility: float
    ratio: float


def automatic_lags(n: int) -> int:
    """Return the Newey-West lag ``floor(4 (n / 100)^(2/9))``, at most ``n - 1`` and at least 0."""
    return max(0, min(n - 1, int(np.floor(4.0 * (n / 100.0) ** (2.0 / 9.0)))))


def hac_standard_error(series: Array, lags: int | None = None) -> float:
    """Return the standard error of the mean, robust to heteroskedasticity and autocorrelation.

    Parameters
    ----------
    series : array, (T,)
        Daily values; NaN left out.
    lags : int, optional
        Bartlett bandwidth; None takes :func:`automatic_lags`.

    Returns
    -------
    float
        ``sqrt((g0 + 2 sum_j (1 - j / (lags + 1)) g_j) / n)`` with ``g_j = sum_t u_t u_{t-j} / n``; NaN with fewer than
        two days or a constant series.

    References
    ----------
    Newey and West (1987), "A simple, positive semi-definite, heteroskedasticity and autocorrelation consistent
    covariance matrix", Econometrica 55. No small-sample factor, as ``cov_hac(use_correction=False)`` of statsmodels.
    """
    values = _finite(series)
    n = len(values)
    if lags is not None and lags < 0:
        raise ConfigError(f"lags is {lags!r}; expected None or 0 and more; None chooses by the number of days")
    if _motionless(values):
        return float("nan")
    centred = values - values.mean()
    bandwidth = automatic_lags(n) if lags is None else min(lags, n - 1)
    total = float(centred @ centred)
    for lag in range(1, bandwidth + 1):
        total += 2.0 * (1.0 - lag / (bandwidth + 1.0)) * float(centred[lag:] @ centred[:-lag])
    # The Bartlett sum is never negative in exact arithmetic.
    return float(np.sqrt(max(total, 0.0))) / n


def hac_t(series: Array, lags: int | None = None) -> float:
    """Return the mean over its :func:`hac_standard_error`; NaN where that is NaN or zero."""
    error = hac_standard_error(series, lags)
    return float(_finite(series).mean() / error) if error > 0 else float("nan")


def mean_of(series: Array) -> float:
    """Return the mean of the days that have a value; NaN when none has."""
    values = _finite(series)
    return float(values.mean()) if len(values) else float("nan")


def icir(series: Array) -> float:
    """Return mean over sample deviation (n - 1) of a daily series, not annualised; NaN when it never moves."""
    values = _finite(series)
    return float("nan") if _motionless(values) else float(values.mean() / values.std(ddof=1))


def annualised(series: Array, days_per_year: int = DAYS_PER_YEAR) -> Annualised:
    """Return a daily series per year: mean x days, sample deviation x sqrt(days), and their ratio.

    Parameters
    ----------
    series : array, (T,)
        Simple daily returns; summed, not compounded.
    days_per_year : int
        Trading days in a year.
    """
    values = _finite(series)
    mean = mean_of(values) * days_per_year
    if _motionless(values):
        return Annualised(mean, 0.0 if len(values) > 1 else float("nan"), float("nan"))
    volatility = float(values.std(ddof=1) * np.sqrt(days_per_year))
    return Annualised(mean, volatility, mean / volatility)


def max_drawdown(series: Array) -> float:
    """Return the deepest fall of the summed daily returns from their highest point so far (start included), >= 0.

    Summed, not compounded, as a spread of two equal sides is rebalanced daily to the same size.
    """
    values = _finite(series)
    if not len(values):
        return float("nan")
    wealth = np.concatenate([[0.0], np.cumsum(values)])
    return float(np.max(np.maximum.accumulate(wealth) - wealth))


def expected_shortfall(series: Array, share: float = 0.05) -> float:
    """Return the mean loss of the worst ``share`` of days (at least one day), positive for a loss."""
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share!r}; expected more than 0 and at most 1; 0.05 is the worst twentieth")
    values = np.sort(_finite(series))
    if not len(values):
        return float("nan")
    return float(-values[: max(1, int(np.floor(share * len(values) + 1e-9)))].mean())


def finite_or_none(value: Any) -> Any:
    """Return a value as JSON has it: None for a float that is NaN or infinite, anything else as it is."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def block_permutation(n: int, block: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw an order of ``range(n)`` that shuffles whole blocks and keeps the order inside each.

    Parameters
    ----------
    n : int
        Length of the series.
    block : int
        Days in a block; the last block may be shorter. Blocks keep the persistence of a market state, so that a
        permutation test does not call persistence evidence.
    rng : numpy.random.Generator
        The only source of chance.

    Returns
    -------
    array, (n,)
        Positions: ``state[order]`` is the permuted series.
    """
    if n < 0 or block < 1:
        raise ConfigError(f"n is {n!r} and block {block!r}; expected n of 0 or more and block of 1 or more")
    starts = rng.permutation(np.arange(0, n, block))
    pieces = [np.arange(start, min(start + block, n)) for start in starts]
    return np.concatenate(pieces).astype(np.intp) if pieces else np.empty(0, dtype=np.intp)


def _finite(series: Array) -> Array:
    values = np.asarray(series, dtype=np.float64)
    return values[~np.isnan(values)]


def _motionless(values: Array) -> bool:
    # A constant such as 0.1 has a deviation of about 1e-17 in floating point, which must not become a t of 1e16.
    return len(values) < 2 or float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max())
