"""Many tests at once: false discoveries over a batch, the best of many, shares with their intervals.

All p-values lie in [0, 1]. NaN rule: a test without a p-value is no test; it is neither counted nor discovered. Who
wants it counted gives it p = 1.
"""

from __future__ import annotations

from math import expm1, isfinite, log1p, nan
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import betaincinv, ndtr

from qlib_llm_alpha.errors import ConfigError, PanelError

Array = NDArray[np.float64]


class Discoveries(NamedTuple):
    """Which tests of a batch are discoveries, (K,) bool, and the q-value of each, (K,)."""

    rejected: NDArray[np.bool_]
    q_values: Array


class ShareInterval(NamedTuple):
    """Both ends of the confidence interval of a share."""

    lower: float
    upper: float


class Uniformity(NamedTuple):
    """The largest distance from the uniform distribution, and the probability of one as large by chance."""

    statistic: float
    p_value: float


def benjamini_hochberg(p_values: Array, rate: float = 0.05) -> Discoveries:
    """Find the discoveries of a batch of tests, holding the expected share of false ones among them.

    Parameters
    ----------
    p_values : array, (K,)
        One p-value a test; NaN is left out of the count.
    rate : float
        False discovery rate, above 0 and at most 1.

    Returns
    -------
    Discoveries
        The q-value of the i-th smallest of m p-values is ``min over j >= i of m p_(j) / j``; discoveries are those
        with a q-value of at most ``rate``. NaN in gives NaN and False.

    Raises
    ------
    ConfigError
        A rate out of its range.
    PanelError
        Not one dimension, or a p-value outside [0, 1].

    References
    ----------
    Benjamini and Hochberg (1995), "Controlling the false discovery rate", Journal of the Royal Statistical Society B
    57. Holds for independent tests and for positive dependence (Benjamini and Yekutieli 2001); a batch of formulas
    scored on one market has both signs of dependence, so that a run is judged by ``evaluation.max_null`` as well.
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"rate is {rate!r}; expected more than 0 and at most 1; 0.05 allows one false in twenty")
    values = _p_values(p_values)
    q_values = np.full(values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    scaled = values[order] * len(order) / np.arange(1, len(order) + 1)
    q_values[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return Discoveries(q_values <= rate, q_values)


def sidak_p(smallest_p: float, trials: float) -> float:
    """Return the p-value of the best of N independent trials, from the smallest of their p-values.

    Parameters
    ----------
    smallest_p : float
        In [0, 1]; NaN gives NaN.
    trials : float
        Number of trials N, 1 or more; an effective number may be fractional.

    Returns
    -------
    float
        ``1 - (1 - p)^N``, computed so that a p of 1e-300 keeps its digits.

    Raises
    ------
    ConfigError
        A p-value or number of trials out of its range.

    References
    ----------
    Sidak (1967), "Rectangular confidence regions for the means of multivariate normal distributions", Journal of the
    American Statistical Association 62.
    """
    if not (isfinite(trials) and trials >= 1):
        raise ConfigError(f"trials is {trials!r}; expected a number of 1 or more; count every candidate scored")
    if np.isnan(smallest_p):
        return nan
    if not 0 <= smallest_p <= 1:
        raise ConfigError(f"smallest_p is {smallest_p!r}; expected a probability, 0 to 1")
    return 1.0 if smallest_p == 1 else -expm1(trials * log1p(-smallest_p))


def clopper_pearson(successes: int, runs: int, confidence: float = 0.95) -> ShareInterval:
    """Return the exact interval of a share, such as that of the noise runs which admitted anything.

    Parameters
    ----------
    successes, runs : int
        How many of how many; without a run the interval is [0, 1].
    confidence : float
        Two-sided: each end is passed with at most half of what is left.

    Returns
    -------
    ShareInterval
        ``B(a / 2; k, n - k + 1)`` and ``B(1 - a / 2; k + 1, n - k)``, quantiles of the beta distribution with
        ``a = 1 - confidence``; 0 below none and 1 above all.

    Raises
    ------
    ConfigError
        More successes than runs, a negative number, or a confidence not between 0 and 1.

    References
    ----------
    Clopper and Pearson (1934), "The use of confidence or fiducial limits", Biometrika 26.
    """
    if not 0 <= successes <= runs:
        raise ConfigError(f"{successes!r} successes in {runs!r} runs; expected 0 <= successes <= runs")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected more than 0 and less than 1; 0.95 is usual")
    tail = (1.0 - confidence) / 2.0
    failures = runs - successes
    return ShareInterval(
        lower=float(betaincinv(successes, failures + 1, tail)) if successes else 0.0,
        upper=float(betaincinv(successes + 1, failures, 1.0 - tail)) if failures else 1.0,
    )


@overload
def p_of_t(t: float, two_sided: bool = True) -> float: ...
@overload
def p_of_t(t: Array, two_sided: bool = True) -> Array: ...
def p_of_t(t: float | Array, two_sided: bool = True) -> float | Array:
    """Return the p-value of a t, with the normal distribution to which a HAC t tends.

    Parameters
    ----------
    t : float or array
        Such as ``evaluation.statistics.hac_t``; NaN gives NaN.
    two_sided : bool
        True for ``2 Phi(-|t|)``, either sign being a find; False for ``Phi(-t)``, only large ones.

    Returns
    -------
    float or array
        As ``t``. Too small with few days: a HAC error of 100 days is itself uncertain.
    """
    p = 2.0 * ndtr(-np.abs(t)) if two_sided else ndtr(-np.asarray(t))
    return p if isinstance(t, np.ndarray) else float(p)


def uniformity(p_values: Array) -> Uniformity:
    """Test whether p-values are uniform, as those of a true null hypothesis are.

    Parameters
    ----------
    p_values : array, (K,)
        NaN left out; none left gives NaN.

    Returns
    -------
    Uniformity
        ``max |F_K(p) - p|`` with the share ``F_K(p)`` of values up to ``p``, and its exact two-sided p-value.

    Raises
    ------
    PanelError
        Not one dimension, or a p-value outside [0, 1].

    References
    ----------
    Kolmogorov (1933); Smirnov (1948); computed by ``scipy.stats.kstest``.
    """
    values = _p_values(p_values)
    values = values[~np.isnan(values)]
    if not len(values):
        return Uniformity(nan, nan)
    test = stats.kstest(values, "uniform")
    return Uniformity(float(test.statistic), float(test.pvalue))


def _p_values(p_values: Array) -> Array:
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1:
        raise PanelError(f"p_values has shape {values.shape!r}; expected one dimension, one p-value a test")
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise PanelError(f"p_values contains {float(outside[0])!r}; expected probabilities, 0 to 1, or NaN")
    return values
