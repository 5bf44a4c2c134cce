"""The seed factors on bars, computed once more in plain pandas and float64, from the printed formulas.

Nothing here knows the factor language: full windows only (NaN before), smoothing by a loop over days.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Bars:
    """Daily bars of one instrument, adjusted or raw."""

    open: pd.Series
    high: pd.Series
    low: pd.Series
    close: pd.Series
    volume: pd.Series
    shares: pd.Series


def adjusted(frame: pd.DataFrame) -> Bars:
    return Bars(*(frame[name] for name in ("open", "high", "low", "close", "volume", "shares")))


def raw(frame: pd.DataFrame) -> Bars:
    prices = [frame[name] / frame["factor"] for name in ("open", "high", "low", "close")]
    return Bars(*prices, frame["volume"] * frame["factor"], frame["shares"])


def smoothed(x: pd.Series, alpha: float) -> pd.Series:
    values, total, weight = [], 0.0, 0.0
    for value in x:
        if not np.isnan(value) or weight:
            total, weight = value + (1 - alpha) * total, 1 + (1 - alpha) * weight
        values.append(total / weight if weight else np.nan)
    return pd.Series(values, index=x.index)


def ema(x: pd.Series, n: int) -> pd.Series:
    return smoothed(x, 2 / (n + 1))


def wilder(x: pd.Series, n: int) -> pd.Series:
    return smoothed(x, 1 / n)


def window(x: pd.Series, n: int, reduce: Callable[[np.ndarray], float]) -> pd.Series:
    values = x.to_numpy()
    out = [reduce(values[t - n + 1 : t + 1]) if t >= n - 1 else np.nan for t in range(len(values))]
    return pd.Series(out, index=x.index)


def mean(x: pd.Series, n: int) -> pd.Series:
    return window(x, n, np.mean)


def total(x: pd.Series, n: int) -> pd.Series:
    return window(x, n, np.sum)


def std(x: pd.Series, n: int) -> pd.Series:
    return window(x, n, lambda w: np.std(w, ddof=1))


def var(x: pd.Series, n: int) -> pd.Series:
    return window(x, n, lambda w: np.var(w, ddof=1))


def highest(x: pd.Series, n: int) -> pd.Series:
    return window(x, n, np.max)


def lowest(x: pd.Series, n: int) -> pd.Series:
    return window(x, n, np.min)


def mean_deviation(x: pd.Series, n: int) -> pd.Series:
    return window(x, n, lambda w: np.mean(np.abs(w - np.mean(w))))


def momentum(x: pd.Series) -> pd.Series:
    return x - x.shift(14)


def returns(b: Bars) -> pd.Series:
    return b.close / b.close.shift(1) - 1


def true_range(b: Bars) -> pd.Series:
    before = b.close.shift(1)
    return pd.concat([b.high - b.low, (b.high - before).abs(), (b.low - before).abs()], axis=1).max(
        axis=1, skipna=False
    )


def atr(b: Bars, n: int = 14) -> pd.Series:
    return wilder(true_range(b), n)


def rsi(b: Bars, n: int = 14) -> pd.Series:
    move = b.close.diff()
    strength = wilder(move.clip(lower=0), n) / wilder((-move).clip(lower=0), n)
    return 100 - 100 / (1 + strength)


def adx(b: Bars, n: int = 14) -> pd.Series:
    up, down = b.high.diff(), -b.low.diff()
    plus = pd.Series(np.where((up > down) & (up > 0), up, 0.0), index=up.index).where(up.notna())
    minus = pd.Series(np.where((down > up) & (down > 0), down, 0.0), index=up.index).where(up.notna())
    plus_index, minus_index = 100 * wilder(plus, n) / atr(b, n), 100 * wilder(minus, n) / atr(b, n)
    return wilder(100 * (plus_index - minus_index).abs() / (plus_index + minus_index), n)


def macd(b: Bars) -> pd.Series:
    return ema(b.close, 12) - ema(b.close, 26)


def bands(b: Bars) -> tuple[pd.Series, pd.Series]:
    middle, width = mean(b.close, 20), 2 * std(b.close, 20)
    return middle + width, middle - width


def between_bands(b: Bars) -> pd.Series:
    upper, lower = bands(b)
    return (b.close - lower) / (upper - lower)


def keltner(b: Bars) -> pd.Series:
    middle, reach = ema(b.close, 20), 2 * atr(b, 10)
    return (b.close - (middle - reach)) / ((middle + reach) - (middle - reach))


def chande(b: Bars) -> pd.Series:
    move = b.close.diff()
    up, down = total(move.clip(lower=0), 14), total((-move).clip(lower=0), 14)
    return 100 * (up - down) / (up + down)


def stochastic(b: Bars) -> pd.Series:
    return 100 * (b.close - lowest(b.low, 14)) / (highest(b.high, 14) - lowest(b.low, 14))


def smi(b: Bars) -> pd.Series:
    top, bottom = highest(b.high, 14), lowest(b.low, 14)
    return ((b.close - bottom) - (top - b.close)) / (top - bottom)


def obv(b: Bars) -> pd.Series:
    return total(b.volume * np.sign(b.close.diff()), 60)


def chaikin(b: Bars) -> pd.Series:
    spread = ema(b.high - b.low, 10)
    return spread / spread.shift(10) - 1


def garman_klass(b: Bars) -> pd.Series:
    return np.sqrt(0.5 * np.log(b.high / b.low) ** 2 - (2 * np.log(2) - 1) * np.log(b.close / b.open) ** 2)


def parkinson(b: Bars) -> pd.Series:
    return np.sqrt(1 / (4 * 20 * np.log(2)) * total(np.log(b.high / b.low) ** 2, 20))


def yang_zhang(b: Bars) -> pd.Series:
    intraday = var(np.log(b.close / b.open), 20)
    spread = var(np.log(b.high / b.open) - np.log(b.low / b.open), 20)
    return np.sqrt(intraday + 0.5 * spread + 0.25 * var(np.log(b.close / b.open.shift(1)), 20))


def ulcer(b: Bars) -> pd.Series:
    drawdown = b.close / highest(b.close, 14) - 1
    return np.sqrt(mean(drawdown**2, 14))


def cci(b: Bars) -> pd.Series:
    typical = (b.high + b.low + b.close) / 3
    return (typical - mean(typical, 20)) / (0.015 * mean_deviation(typical, 20))


def vroc(b: Bars) -> pd.Series:
    return (b.volume - b.volume.shift(14)) / b.volume.shift(14)


Formula = Callable[[Bars], pd.Series]

UNIT_FREE: dict[str, Formula] = {
    "rsi_momentum": lambda b: momentum(rsi(b)),
    "rate_of_change": lambda b: b.close / b.close.shift(14) - 1,
    "momentum_oscillator": lambda b: (b.close - b.close.shift(14)) / b.close.shift(14),
    "chande_momentum": chande,
    "stochastic_momentum": smi,
    "adx_momentum": lambda b: momentum(adx(b)),
    "z_score": lambda b: (b.close - mean(b.close, 20)) / std(b.close, 20),
    "bollinger_bands": between_bands,
    "keltner_channels": keltner,
    "rsi_reversion": lambda b: 100 - rsi(b),
    "percent_b": lambda b: 100 * between_bands(b),
    "bollinger_band_width": lambda b: (bands(b)[0] - bands(b)[1]) / mean(b.close, 20),
    "historical_volatility": lambda b: std(returns(b), 20) * np.sqrt(252),
    "volatility_ratio": lambda b: std(b.close, 10) / std(b.close, 50),
    "chaikin_volatility": chaikin,
    "garman_klass": garman_klass,
    "parkinson": parkinson,
    "yang_zhang": yang_zhang,
    "ulcer_index": ulcer,
    "volume_rate_of_change": vroc,
    "high_low_spread": lambda b: (b.high - b.low) / b.close,
    "rsi": rsi,
    "stochastic_oscillator": stochastic,
    "commodity_channel_index": cci,
    "williams_r": lambda b: -100 * (highest(b.high, 14) - b.close) / (highest(b.high, 14) - lowest(b.low, 14)),
}
"""One form in both modes, on adjusted bars."""

LITERAL: dict[str, Formula] = {
    "price_momentum": lambda b: momentum(b.close),
    "volume_momentum": lambda b: momentum(b.volume),
    "macd_momentum": lambda b: momentum(macd(b)),
    "atr_momentum": lambda b: momentum(atr(b)),
    "detrended_price_oscillator": lambda b: b.close - mean(b.close, 14).shift(7),
    "mean_reversion": lambda b: mean(b.close, 20) - b.close,
    "moving_average_reversion": lambda b: mean(b.close, 20) - b.close,
    "ema_reversion": lambda b: ema(b.close, 20) - b.close,
    "distance_from_high": lambda b: highest(b.high, 20) - b.close,
    "distance_from_low": lambda b: b.close - lowest(b.low, 20),
    "standard_deviation": lambda b: std(b.close, 20),
    "atr": atr,
    "trading_volume": lambda b: b.volume,
    "average_trading_volume": lambda b: mean(b.volume, 20),
    "on_balance_volume": obv,
    "liquidity_ratio": lambda b: b.volume / (b.close * b.shares),
    "turnover_rate": lambda b: b.volume / b.shares,
    "dollar_volume": lambda b: b.volume * b.close,
    "moving_average": lambda b: mean(b.close, 20),
    "exponential_moving_average": lambda b: ema(b.close, 20),
    "macd": macd,
    "bollinger_band_span": lambda b: bands(b)[0] - bands(b)[1],
    "technical_atr": atr,
}
"""With units, on raw bars. Amihud, which mixes adjusted returns and raw volume, is in the test itself."""

SCALE_FREE: dict[str, Formula] = {
    **{
        name: (lambda b, formula=LITERAL[name]: formula(b) / b.close)
        for name in (
            "price_momentum",
            "macd_momentum",
            "atr_momentum",
            "detrended_price_oscillator",
            "mean_reversion",
            "moving_average_reversion",
            "ema_reversion",
            "distance_from_high",
            "distance_from_low",
            "standard_deviation",
            "atr",
            "moving_average",
            "exponential_moving_average",
            "macd",
            "bollinger_band_span",
            "technical_atr",
        )
    },
    "volume_momentum": lambda b: momentum(b.volume) / mean(b.volume, 20),
    "trading_volume": lambda b: b.volume / mean(b.volume, 20),
    "average_trading_volume": lambda b: mean(b.volume, 20) / mean(b.volume, 60),
    "on_balance_volume": lambda b: obv(b) / total(b.volume, 60),
    "amihud_illiquidity": lambda b: returns(b).abs() / (b.volume / mean(b.volume, 20)),
    "dollar_volume": lambda b: b.volume * b.close / mean(b.volume * b.close, 20),
}
"""Without units, on adjusted bars. The two that read shares outstanding take raw volume and are in the test itself."""
