"""The market's regimes, its crash week and its own volatility, day by day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.streams import Purpose, stream

Array = NDArray[np.float64]

REGIMES = ("bull", "bear", "sideways")
BULL, BEAR, SIDEWAYS = range(3)

_SHORTEST = 30
_TURN = 0.7
_MEAN_LENGTH = (110, 80, 95)
_DRIFT = np.array([0.0017, -0.0013, 0.0002])
_VOLATILITY = np.array([0.0105, 0.0150, 0.0068])
_OWN_SCALE = np.array([1.04, 1.10, 0.90])
_VOLUME_LEVEL = np.array([0.30, -0.05, -0.22])
_CRASH_DRIFT = (-0.030, -0.042, -0.015, -0.048, -0.026)


@dataclass(frozen=True)
class Climate:
    """What is common to all instruments each day; arrays of shape (days,).

    Parameters
    ----------
    regime : array of int
        Position in ``REGIMES``: the truth, which nobody in the market sees.
    drift, shock : array
        Common return of the day: its mean, and its surprise before beta.
    own_scale : array
        Factor on every own deviation.
    volume : array
        Common part of log turnover.
    """

    regime: NDArray[np.int64]
    drift: Array
    shock: Array
    own_scale: Array
    volume: Array


def draw_climate(days: int, seed: int) -> Climate:
    """Draw regimes (persistent, mean length 80 to 110 days, seldom straight back), drift, volatility and market volume.

    One crash week of five days begins between the 150th and the 400th day and turns the market to bear.
    """
    rng = stream(seed, Purpose.REGIME)
    crash = 150 + int(rng.random() * 250)
    switches = rng.random((days, 2)).tolist()
    draws = stream(seed, Purpose.MARKET).standard_normal((days, 4))
    tails = stream(seed, Purpose.MARKET_TAIL).random(days)

    regime = np.empty(days, dtype=np.int64)
    state, age = SIDEWAYS, 0
    left = [-2, -1, 0]
    for t, (switch, which) in enumerate(switches):
        if t == crash:
            left[state] = t
            state, age = BEAR, 0
        elif age >= _SHORTEST and switch < 1.0 / (_MEAN_LENGTH[state] - _SHORTEST):
            left[state] = t
            older, newer = sorted((other for other in range(3) if other != state), key=left.__getitem__)
            state, age = (older if which < _TURN else newer), 0
        regime[t] = state
        age += 1

    log_volatility = _first_order(0.96, 0.22, draws[:, 1])
    volume = np.empty(days)
    level = _VOLUME_LEVEL[SIDEWAYS]
    for t in range(days):
        level = 0.93 * level + 0.07 * _VOLUME_LEVEL[regime[t]] + 0.035 * draws[t, 2]
        volume[t] = level
    fat = np.where(tails < 0.05, 2.3, 0.88)
    drift = _DRIFT[regime]
    shock = _VOLATILITY[regime] * np.exp(log_volatility - 0.02) * fat * draws[:, 0]
    week = slice(crash, crash + len(_CRASH_DRIFT))
    drift[week] += np.array(_CRASH_DRIFT)[: len(drift[week])]
    volume[week] += 0.35
    return Climate(
        regime=regime, drift=drift, shock=shock, own_scale=_OWN_SCALE[regime], volume=volume + 0.08 * draws[:, 3]
    )


def _first_order(persistence: float, deviation: float, draws: Array) -> Array:
    path = np.empty_like(draws)
    value = deviation * draws[0] if len(draws) else 0.0
    scale = deviation * float(np.sqrt(1.0 - persistence**2))
    for t in range(len(draws)):
        value = persistence * value + scale * draws[t]
        path[t] = value
    return path
