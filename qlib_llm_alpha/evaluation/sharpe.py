"""How far a Sharpe ratio can be believed: its error, its probability, and what is left of the best of many trials.

Ratios are per day, not annualised: multiply by the root of the days in a year for an annual one. A series may be daily
returns or daily ICs, whose Sharpe ratio is the ICIR. NaN rule, everywhere: days without a value are left out; fewer
than three days, or a series that never moves, give NaN. Days are taken as independent of each other, as in the papers:
autocorrelation makes every probability here too sure, and is judged by ``evaluation.statistics.hac_t`` beside it.

Skewness and kurtosis are the population moments ``m3 / m2^1.5`` and ``m4 / m2^2``; the kurtosis of a normal is 3.
"""

from __future__ import annotations

from math import e, inf, isfinite, log, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.statistics import icir

Array = NDArray[np.float64]


class DeflatedSharpe(NamedTuple):
    """A Sharpe ratio after selection, with all that it was computed from.

    Attributes
    ----------
    sharpe : float
        Per day, of the selected series.
    threshold : float
        The best Sharpe ratio per day that luck alone is expected to reach in ``trials`` trials.
    probability : float
        That the true Sharpe ratio is above the threshold; evidence from 0.95 on.
    trials : float
        Independent trials that were allowed for.
    """

    sharpe: float
    threshold: float
    probability: float
    trials: float


class BacktestLength(NamedTuple):
    """Years of data below which a search finds its target by luck: the expression, and its upper bound."""

    years: float
    upper_bound: float


def sharpe_ratio(series: Array) -> float:
    """Return the mean over the sample deviation (ddof 1) per day, not annualised; NaN when the series never moves.

    The same number as ``evaluation.statistics.icir``.

    References
    ----------
    Sharpe (1994), "The Sharpe ratio", Journal of Portfolio Management 21.
    """
    return icir(series)


def sharpe_standard_error(series: Array) -> float:
    """Return the standard error of the daily Sharpe ratio of days that need not be normal.

    Parameters
    ----------
    series : array, (T,)
        Daily values; NaN left out.

    Returns
    -------
    float
        ``sqrt((1 - g3 SR + (g4 - 1) / 4 SR^2) / (T - 1))`` with skewness ``g3`` and kurtosis ``g4``. For normal days
        it is Lo's ``sqrt((1 + SR^2 / 2) / (T - 1))``.

    References
    ----------
    Lo (2002), "The statistics of Sharpe ratios", Financial Analysts Journal 58. Mertens (2002), "Comments on variance
    of the IID estimator in Lo (2002)". With T - 1 as in Bailey and Lopez de Prado (2012), see
    :func:`probabilistic_sharpe`.
    """
    variance, days = _daily_variance(series)
    return sqrt(variance / (days - 1)) if variance > 0 else nan


def probabilistic_sharpe(series: Array, benchmark: float = 0.0) -> float:
    """Return the probability that the true Sharpe ratio is above a benchmark.

    Parameters
    ----------
    series : array, (T,)
        Daily values; NaN left out.
    benchmark : float
        A Sharpe ratio per day.

    Returns
    -------
    float
        ``Phi((SR - benchmark) / SE)`` with :func:`sharpe_standard_error`.

    References
    ----------
    Bailey and Lopez de Prado (2012), "The Sharpe ratio efficient frontier", Journal of Risk 15.
    """
    return float(ndtr((sharpe_ratio(series) - benchmark) / sharpe_standard_error(series)))


def expected_max_sharpe(trials: float, sharpe_deviation: float) -> float:
    """Return the highest Sharpe ratio that luck alone is expected to reach in a number of trials.

    Parameters
    ----------
    trials : float
        Independent trials N, 1 or more; an effective number may be fractional.
    sharpe_deviation : float
        Standard deviation of the Sharpe ratios of the trials; the result has its unit. See :func:`deflated_sharpe` for
        which deviation belongs to which N. NaN gives NaN.

    Returns
    -------
    float
        ``deviation ((1 - g) Phi^-1(1 - 1 / N) + g Phi^-1(1 - 1 / (N e)))`` with the Euler-Mascheroni constant ``g``;
        never below 0, which the approximation would be for N below about 1.28, although one trial expects 0.

    Raises
    ------
    ConfigError
        Fewer than one trial, or a negative or infinite deviation.

    References
    ----------
    Bailey and Lopez de Prado (2014), "The deflated Sharpe ratio: correcting for selection bias, backtest overfitting
    and non-normality", Journal of Portfolio Management 40. Exceeds the exact mean by about 1 percent at N = 100.
    """
    _require_trials(trials)
    if sharpe_deviation < 0 or sharpe_deviation == inf:
        raise ConfigError(
            f"sharpe_deviation is {sharpe_deviation!r}; expected 0 or more, per day; "
            "take the standard deviation of the daily Sharpe ratios of the trials"
        )
    return sharpe_deviation * _expected_max_normal(trials)


def deflated_sharpe(series: Array, *, trials: float, sharpe_deviation: float) -> DeflatedSharpe:
    """Return what is left of a Sharpe ratio that was selected as the best of many trials.

    Parameters
    ----------
    series : array, (T,)
        Daily values of the selected trial, turned so that more is better; NaN left out.
    trials : float
        Number of trials N, those that were rejected included; a trial whose sign was chosen by the data counts twice.
    sharpe_deviation : float
        Standard deviation per day of the Sharpe ratios of the trials. It must fit N, for trials are correlated, and
        correlation narrows the scatter across them by as much as it lowers their maximum. Either an effective number
        of independent trials with what chance alone gives to one trial, ``1 / sqrt(T - 1)``; this holds at any
        correlation, also with ``max_null.effective_trials`` of both signs. Or, as in the paper, the full number with
        the deviation seen across the trials. An effective number with the deviation seen allows for correlation twice
        and calls too much a find.

    Returns
    -------
    DeflatedSharpe
        :func:`probabilistic_sharpe` against :func:`expected_max_sharpe`; NaN with a NaN deviation.

    Raises
    ------
    ConfigError
        Fewer than one trial, or a negative or infinite deviation.

    References
    ----------
    Bailey and Lopez de Prado (2014), see :func:`expected_max_sharpe`.
    """
    threshold = expected_max_sharpe(trials, sharpe_deviation)
    return DeflatedSharpe(sharpe_ratio(series), threshold, probabilistic_sharpe(series, threshold), trials)


def minimum_track_record_length(series: Array, benchmark: float = 0.0, confidence: float = 0.95) -> float:
    """Return the days needed before a Sharpe ratio like this one is above a benchmark with some confidence.

    Parameters
    ----------
    series : array, (T,)
        Daily values; NaN left out.
    benchmark : float
        A Sharpe ratio per day.
    confidence : float
        Above 0.5 and below 1.

    Returns
    -------
    float
        ``1 + (1 - g3 SR + (g4 - 1) / 4 SR^2) (Phi^-1(confidence) / (SR - benchmark))^2`` in days, not rounded;
        infinite when the Sharpe ratio is not above the benchmark.

    Raises
    ------
    ConfigError
        A confidence that is not between.

    References
    ----------
    Bailey and Lopez de Prado (2012), see :func:`probabilistic_sharpe`.
    """
    if not 0.5 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected more than 0.5 and less than 1; 0.95 is usual")
    variance, _ = _daily_variance(series)
    if not variance > 0:
        return nan
    gain = sharpe_ratio(series) - benchmark
    return float(1.0 + variance * (ndtri(confidence) / gain) ** 2) if gain > 0 else inf


def minimum_backtest_length(trials: float, target_annual_sharpe: float = 1.0) -> BacktestLength:
    """Return the years of data below which a search is expected to find its target where there is nothing.

    Parameters
    ----------
    trials : float
        Independent trials N, 1 or more.
    target_annual_sharpe : float
        The annual Sharpe ratio that the best trial shows; above 0.

    Returns
    -------
    BacktestLength
        ``years`` is ``(z_N / target)^2``, with ``z_N`` the expected maximum of N standard normals as in
        :func:`expected_max_sharpe`; ``upper_bound`` is ``2 ln N / target^2``. Both are 0 for one trial.

    Raises
    ------
    ConfigError
        Fewer than one trial, or a target that is not above 0.

    References
    ----------
    Bailey, Borwein, Lopez de Prado and Zhu (2014), "Pseudo-mathematics and financial charlatanism", Notices of the
    American Mathematical Society 61, theorem 1.
    """
    _require_trials(trials)
    if not 0 < target_annual_sharpe < inf:
        raise ConfigError(f"target_annual_sharpe is {target_annual_sharpe!r}; expected a number above 0, such as 1.0")
    return BacktestLength(
        years=(_expected_max_normal(trials) / target_annual_sharpe) ** 2,
        upper_bound=2.0 * log(trials) / target_annual_sharpe**2,
    )


def _daily_variance(series: Array) -> tuple[float, int]:
    # The variance of the estimate times (T - 1), and T.
    values = np.asarray(series, dtype=np.float64)
    values = values[~np.isnan(values)]
    sharpe = icir(values)
    if len(values) < 3 or np.isnan(sharpe):
        return nan, len(values)
    standardised = (values - values.mean()) / values.std()
    skewness, kurtosis = float((standardised**3).mean()), float((standardised**4).mean())
    return 1.0 - skewness * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2, len(values)


def _expected_max_normal(trials: float) -> float:
    # The quantile of 1 - 1/N as minus that of 1/N, which keeps its digits when N is large.
    weight = float(np.euler_gamma)
    return max(0.0, float(-(1.0 - weight) * ndtri(1.0 / trials) - weight * ndtri(1.0 / (trials * e))))


def _require_trials(trials: float) -> None:
    if not (isfinite(trials) and trials >= 1):
        raise ConfigError(
            f"trials is {trials!r}; expected a number of 1 or more; count every candidate scored, the rejected included"
        )
