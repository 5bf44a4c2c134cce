"""The risk-preference agent: how well a factor suits somebody who fears, or likes, risk.

rho of a factor comes from the daily long-short quintile return and the daily rank IC of the factor, both oriented by
the sign of its confidence, over its trailing observable days. Each measure is placed inside the candidate pool from 0
(worst) to 1 (best) and weighted:

==================  ============  ========  ==========  ===========
measure             conservative  moderate  aggressive  better when
==================  ============  ========  ==========  ===========
volatility          0.15          0.10      0.05        lower
drawdown            0.25          0.15      0.05        lower
shortfall           0.25          0.15      0.05        lower
worst_regime_ic     0.15          0.15      0.05        higher
stability           0.10          0.15      0.10        higher
mean_return         0.05          0.15      0.35        higher
mean_ic             0.05          0.15      0.35        higher
==================  ============  ========  ==========  ===========

No weight is negative, so a deeper drawdown, all else equal, never raises a score. (The paper names the function and
does not define it; the measures and weights are ours.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.scoring import percentile
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.statistics import annualised, expected_shortfall, max_drawdown, mean_of

Array = NDArray[np.float64]
RiskPreference = Literal["conservative", "moderate", "aggressive"]

PREFERENCES: tuple[RiskPreference, ...] = ("conservative", "moderate", "aggressive")
MEASURES = ("volatility", "drawdown", "shortfall", "worst_regime_ic", "stability", "mean_return", "mean_ic")
LOWER_IS_BETTER = frozenset({"volatility", "drawdown", "shortfall"})
WEIGHTS: Mapping[RiskPreference, Mapping[str, float]] = MappingProxyType(
    {
        "conservative": MappingProxyType(dict(zip(MEASURES, (0.15, 0.25, 0.25, 0.15, 0.10, 0.05, 0.05), strict=True))),
        "moderate": MappingProxyType(dict(zip(MEASURES, (0.10, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15), strict=True))),
        "aggressive": MappingProxyType(dict(zip(MEASURES, (0.05, 0.05, 0.05, 0.05, 0.10, 0.35, 0.35), strict=True))),
    }
)
MIN_REGIME_DAYS = 20


@dataclass(frozen=True, eq=False)
class RiskMeasures:
    """What the agent weighs; all arrays are (F,), of the oriented factor, NaN without enough days.

    ``volatility`` is per year, ``drawdown`` of the summed daily returns, ``shortfall`` the mean loss of the worst 5 %
    of days, ``worst_regime_ic`` the lowest mean rank IC of a regime with at least ``MIN_REGIME_DAYS`` days (of all days
    when no regime has them), ``stability`` the share of days with a positive rank IC, ``mean_return`` per year,
    ``mean_ic`` the mean rank IC.
    """

    volatility: Array
    drawdown: Array
    shortfall: Array
    worst_regime_ic: Array
    stability: Array
    mean_return: Array
    mean_ic: Array

    def __post_init__(self) -> None:
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if len(set(shapes.values())) != 1:
            raise PanelError(f"measures have shapes {shapes!r}; expected one (F,) for all; align them")


def risk_measures(
    rank_ic: Array,
    long_short: Array,
    regime: NDArray[np.str_],
    sign: Array,
    as_of: int,
    *,
    horizon: int = 2,
    window: int = 252,
    min_days: int = 60,
) -> RiskMeasures:
    """Measure the risk of every factor on one decision day.

    Parameters
    ----------
    rank_ic, long_short : array, (F, T)
        Daily rank IC, and daily return of the top less the bottom quintile, by the day of the score.
    regime : array, (T,) str
        The market's regime, known at the close of its day.
    sign : array, (F,)
        +1 or -1: which way the factor is used. Both series change their sign with it.
    as_of : int
        Row of the decision day. Rows after ``as_of - horizon`` are not read.
    horizon, window, min_days : int
        As for the confidence agent: days until a label is known, trailing observable days, fewest days with a return.

    Returns
    -------
    RiskMeasures
    """
    count = len(rank_ic)
    if rank_ic.shape != long_short.shape or regime.shape != rank_ic.shape[1:] or sign.shape != (count,):
        raise PanelError(
            f"rank_ic has shape {rank_ic.shape}, long_short {long_short.shape}, regime {regime.shape}, sign "
            f"{sign.shape}; expected (F, T), (F, T), (T,), (F,); align them"
        )
    if not 0 <= as_of < len(regime):
        raise PanelError(f"as_of is row {as_of!r}; expected 0 to {len(regime) - 1}; choose a day of the evidence")
    stop = max(as_of - horizon + 1, 0)
    rows = slice(max(stop - window, 0), stop)
    table = np.full((count, len(MEASURES)), np.nan)
    for factor in range(count):
        spread, ic = sign[factor] * long_short[factor, rows], sign[factor] * rank_ic[factor, rows]
        known = ic[~np.isnan(ic)]
        if min(len(known), int(np.sum(~np.isnan(spread)))) >= max(min_days, 2):
            per_year = annualised(spread)
            table[factor] = (
                per_year.volatility,
                max_drawdown(spread),
                expected_shortfall(spread),
                _worst_regime(ic, regime[rows]),
                float(np.mean(known > 0)),
                per_year.mean,
                float(known.mean()),
            )
    return RiskMeasures(*table.T)


def risk_scores(measures: RiskMeasures, preference: RiskPreference | Mapping[str, float]) -> Array:
    """Return rho, (F,) in [0, 1], for one preference.

    Parameters
    ----------
    measures : RiskMeasures
        Of the whole candidate pool: the score of a factor depends on the others.
    preference : str or mapping
        ``conservative``, ``moderate`` or ``aggressive``, or weights by measure: none negative, not all 0; measures that
        are left out weigh nothing.

    Returns
    -------
    array, (F,)
        NaN where a measure is.
    """
    weights = _weights(preference)
    total = sum(weights.values())
    score = np.zeros(measures.drawdown.shape)
    for name in MEASURES:
        values = getattr(measures, name)
        score = score + weights.get(name, 0.0) / total * percentile(-values if name in LOWER_IS_BETTER else values)
    # Rounded so that equal sums taken in another order are equal places.
    return np.asarray(np.round(score, 12), dtype=np.float64)


def _weights(preference: RiskPreference | Mapping[str, float]) -> Mapping[str, float]:
    if isinstance(preference, str):
        if preference not in WEIGHTS:
            raise ConfigError(f"preference {preference!r} is unknown; expected one of {list(PREFERENCES)!r} or weights")
        return WEIGHTS[preference]
    unknown = [name for name in preference if name not in MEASURES]
    if unknown or any(not weight >= 0 for weight in preference.values()) or not sum(preference.values()) > 0:
        raise ConfigError(
            f"weights {dict(preference)!r} cannot be used; expected numbers of 0 or more, not all 0, for some of "
            f"{list(MEASURES)!r}; correct them"
        )
    return preference


def _worst_regime(ic: Array, regime: NDArray[np.str_]) -> float:
    means = [mean_of(ic[regime == name]) for name in np.unique(regime) if _known(ic[regime == name]) >= MIN_REGIME_DAYS]
    return min(means) if means else mean_of(ic)


def _known(values: Array) -> int:
    return int(np.sum(~np.isnan(values)))
