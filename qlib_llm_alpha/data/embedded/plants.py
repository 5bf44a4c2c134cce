"""What is planted: observable expressions of past bars whose strength depends on the regime.

A plant scored at the close of t moves the return from the close of t+1 to the close of t+2: the label dated t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LAG = 2
"""Days from the close at which a plant is scored to the close at which the return it moves is complete."""

_SQRT_12 = float(np.sqrt(12.0))


@dataclass(frozen=True)
class Plant:
    """One planted factor.

    Parameters
    ----------
    name : str
    expression : str
        The same thing in the factor language, on adjusted bars.
    strength : tuple of float
        Shift of the return for one deviation of the factor's rank, in units of the instrument's own daily deviation,
        in bull, bear and sideways days.
    """

    name: str
    expression: str
    strength: tuple[float, float, float]


PLANTS = (
    Plant("reversal_5", "1 - $close / Ref($close, 5)", (-0.016, 0.032, 0.048)),
    Plant("momentum_20", "Ref($close, 5) / Ref($close, 25) - 1", (0.044, -0.040, 0.0)),
    Plant("low_volatility_20", "0 - Std($close / Ref($close, 1), 20)", (-0.040, 0.048, 0.0)),
    Plant("volume_surprise_20", "$volume / Mean($volume, 20)", (0.052, -0.034, 0.0)),
    Plant("close_in_range", "(2 * $close - $high - $low) / ($high - $low)", (-0.016, 0.0, 0.052)),
    Plant("overnight_fade", "1 - $open / Ref($close, 1)", (0.030, 0.024, 0.022)),
)


def plant_scores(bars: Mapping[str, Array], day: int) -> Array:
    """Score every plant at the close of one day.

    Parameters
    ----------
    bars : mapping of "open", "high", "low", "close", "volume" to array, (days, instruments)
        Adjusted bars; only rows up to ``day`` are read.
    day : int

    Returns
    -------
    array, (plants, instruments)
        In the order of ``PLANTS``. NaN where any bar of the window is missing.
    """
    close = bars["close"]
    scores = np.full((len(PLANTS), close.shape[1]), np.nan)
    today, high, low = close[day], bars["high"][day], bars["low"][day]
    with np.errstate(invalid="ignore", divide="ignore"):
        width = high - low
        scores[4] = np.where(width > 0, ((today - high) + (today - low)) / width, np.nan)
        if day >= 1:
            scores[5] = 1.0 - bars["open"][day] / close[day - 1]
        if day >= 5:
            scores[0] = 1.0 - today / close[day - 5]
        if day >= 19:
            volume = bars["volume"][day - 19 : day + 1]
            scores[3] = volume[-1] / (volume.sum(axis=0) / 20.0)
        if day >= 20:
            change = close[day - 19 : day + 1] / close[day - 20 : day]
            centred = change - change.sum(axis=0) / 20.0
            scores[2] = -np.sqrt((centred * centred).sum(axis=0) / 19.0)
        if day >= 25:
            scores[1] = close[day - 5] / close[day - 25] - 1.0
    return scores


def rank_scores(values: Array) -> Array:
    """Spread each row evenly by rank over its finite values: mean 0, deviation 1, zero where NaN.

    Equal values keep the order of the instruments. Ranks, because they do not feel the last bit of a logarithm.
    """
    valid = np.isfinite(values)
    count = valid.sum(axis=-1, keepdims=True)
    order = np.argsort(np.where(valid, values, np.inf), axis=-1, kind="stable")
    rank = np.empty(values.shape)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(values.shape[-1], dtype=float), values.shape), axis=-1)
    spread = _SQRT_12 * ((rank + 0.5) / np.maximum(count, 1) - 0.5)
    return np.asarray(np.where(valid, spread, 0.0))


def strengths() -> Array:
    """Return the planted strengths, (regimes, plants)."""
    return np.asarray(np.array([plant.strength for plant in PLANTS], dtype=np.float64).T)
