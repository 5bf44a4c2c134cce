"""Return and volume moments of daily bars, by which the embedded market is set beside real bars.

Every moment is computed from adjusted bars shaped (days, instruments) alone, so the same function serves both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MIN_DAYS = 250


def bar_moments(bars: Mapping[str, Array], index_close: Array) -> dict[str, float]:
    """Measure a market.

    Parameters
    ----------
    bars : mapping of "open", "high", "low", "close", "volume" to array, (days, instruments)
        Adjusted prices and volumes; NaN where the instrument did not trade.
    index_close : array, (days,)
        Closing level of the index; NaN where missing.

    Returns
    -------
    dict
        Name of the moment to its value. Those of a single instrument are medians over the instruments with at least
        250 returns; those of a day are medians over days.
    """
    close, opening, volume = bars["close"], bars["open"], bars["volume"]
    with np.errstate(invalid="ignore", divide="ignore"):
        returns = _change(close)
        gap = opening / _lagged(close) - 1.0
        spread = np.log(bars["high"] / bars["low"])
        place = (2 * close - bars["high"] - bars["low"]) / (bars["high"] - bars["low"])
        log_volume = np.log(np.where(volume > 0, volume, np.nan))
        index_return = index_close[1:] / index_close[:-1] - 1.0
    at_high = close >= bars["high"]
    at_low = close <= bars["low"]
    size = np.abs(returns)
    traded = np.isfinite(returns)
    kept = traded.sum(axis=0) >= min(_MIN_DAYS, len(close) // 3)
    own = {
        "daily volatility": np.nanstd(returns, axis=0),
        "excess kurtosis": _kurtosis(returns),
        "skewness": _skewness(returns),
        "return autocorrelation, lag 1": _autocorrelation(returns, 1),
        "absolute return autocorrelation, lag 1": _autocorrelation(size, 1),
        "absolute return autocorrelation, lag 5": _autocorrelation(size, 5),
        "absolute return autocorrelation, lag 20": _autocorrelation(size, 20),
        "deviation of log volume": np.nanstd(log_volume, axis=0),
        "log volume autocorrelation, lag 1": _autocorrelation(log_volume, 1),
        "log volume autocorrelation, lag 5": _autocorrelation(log_volume, 5),
        "log volume autocorrelation, lag 20": _autocorrelation(log_volume, 20),
        "log volume with absolute return": _correlation(log_volume, size),
        "log volume with return": _correlation(log_volume, returns),
        "overnight share of variance": np.nanvar(gap, axis=0) / np.nanvar(returns, axis=0),
        "overnight with intraday return": _correlation(gap, returns - gap),
        "log high over low": np.nanmean(spread, axis=0),
        "deviation of close position in range": np.nanstd(place, axis=0),
        "correlation with the index": _correlation(
            returns, np.concatenate([[np.nan], index_return])[:, None] * np.ones(close.shape[1])
        ),
    }
    moments = {name: _median(values[kept]) for name, values in own.items()}
    moments["spread of volatility (90th over 10th percentile)"] = float(
        np.nanpercentile(own["daily volatility"][kept], 90) / np.nanpercentile(own["daily volatility"][kept], 10)
    )
    few = traded.sum(axis=1) >= 10
    moments["cross-sectional dispersion of returns"] = float(np.nanmedian(np.nanstd(returns[few], axis=1)))
    count = traded.sum()
    moments["limit-up closes, % of bars"] = 100.0 * float(np.sum(at_high & (returns > 0.095) & traded) / count)
    moments["limit-down closes, % of bars"] = 100.0 * float(np.sum(at_low & (returns < -0.095) & traded) / count)
    span = np.cumsum(np.isfinite(close), axis=0)
    inside = (span > 0) & (span < span[-1])
    moments["suspended, % of days"] = 100.0 * float(np.sum(inside & ~np.isfinite(close)) / inside.sum())
    moments["index daily volatility"] = float(np.nanstd(index_return))
    moments["index absolute return autocorrelation, lag 5"] = float(
        _autocorrelation(np.abs(index_return)[:, None], 5)[0]
    )
    moments["index excess kurtosis"] = float(_kurtosis(index_return[:, None])[0])
    return moments


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _lagged(values: Array, lag: int = 1) -> Array:
    moved = np.full_like(values, np.nan)
    moved[lag:] = values[:-lag]
    return moved


def _change(close: Array) -> Array:
    return np.asarray(close / _lagged(close) - 1.0)


def _kurtosis(values: Array) -> Array:
    centred = values - np.nanmean(values, axis=0)
    return np.asarray(np.nanmean(centred**4, axis=0) / np.nanmean(centred**2, axis=0) ** 2 - 3.0)


def _skewness(values: Array) -> Array:
    centred = values - np.nanmean(values, axis=0)
    return np.asarray(np.nanmean(centred**3, axis=0) / np.nanmean(centred**2, axis=0) ** 1.5)


def _correlation(left: Array, right: Array) -> Array:
    joint = np.isfinite(left) & np.isfinite(right)
    count = np.maximum(joint.sum(axis=0), 1)
    a = np.where(joint, left, 0.0)
    b = np.where(joint, right, 0.0)
    a = np.where(joint, a - a.sum(axis=0) / count, 0.0)
    b = np.where(joint, b - b.sum(axis=0) / count, 0.0)
    scale = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.asarray(np.divide((a * b).sum(axis=0), scale, out=np.full(scale.shape, np.nan), where=scale > 0))


def _autocorrelation(values: Array, lag: int) -> Array:
    return _correlation(values, _lagged(values, lag))
