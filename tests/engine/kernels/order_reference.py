"""Definitions of the operators of order and place, one window after the other; and pandas' own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.engine.kernels.reference import Array, Lanes, Window, present, tiles


def highest(values: Window) -> Any:
    return max(present(values))


def lowest(values: Window) -> Any:
    return min(present(values))


def place_of_best(sign: int) -> Callable[[Window], int]:
    """Return the place as numpy sees it: the first missing value, else the oldest of the largest."""

    def place(values: Window) -> int:
        best = 0
        for row, value in enumerate(values):
            if np.isnan(value):
                return row + 1
            if sign * value > sign * values[best]:
                best = row
        return best + 1

    return place


def quantile(level: float) -> Callable[[Window], float]:
    def measure(values: Window) -> float:
        ordered = sorted(float(value) for value in present(values))
        place = level * (len(ordered) - 1)
        below = int(place)
        if place == below:
            return ordered[below]
        return ordered[below] + (ordered[below + 1] - ordered[below]) * (place - below)

    return measure


def median(values: Window) -> float:
    ordered = sorted(float(value) for value in present(values))
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def rank(values: Window) -> float:
    today, others = values[-1], present(values)
    if np.isnan(today):
        return math.nan
    smaller = sum(1 for value in others if value < today)
    equal = sum(1 for value in others if value == today)
    return (smaller + (equal + 1) / 2) / len(others)


def mean_deviation(values: Window) -> Any:
    kept = present(values)
    if (kept == kept[0]).all():
        return 0.0
    return np.abs(kept - kept.mean()).mean()


def entropy(values: Window) -> float:
    kept = [float(value) for value in present(values)]
    if len(kept) < 2:
        return math.nan
    low, high = min(kept), max(kept)
    if low == high:
        return 0.0
    edges = [low + (high - low) * (number / 8) for number in range(1, 8)]
    bins = [0] * 8
    for value in kept:
        bins[sum(1 for edge in edges if value >= edge)] += 1
    return -sum(number / len(kept) * math.log(number / len(kept)) for number in bins if number) / math.log(8)


def by_pandas(ask: Callable[[Any], pd.Series[float]], x: NDArray[Any], window: int, first: Lanes) -> Array:
    """Ask pandas' rolling (expanding, if the window is longer than the series) for every lane from its first row."""
    out = np.full(x.shape, np.nan)
    for lane in range(x.shape[1]):
        series = pd.Series(x[first[lane] :, lane].astype(np.float64))
        series = series.where(np.isfinite(series))
        asked = series.expanding(min_periods=1) if window > len(x) else series.rolling(window, min_periods=1)
        out[first[lane] :, lane] = ask(asked)
    return out


@st.composite
def tiles_with_signed_zeros(draw: st.DrawFn, rows: int = 60) -> tuple[NDArray[Any], Lanes]:
    """Draw a tile as of `reference.tiles`, its zeros of either sign."""
    tile, first = draw(tiles(rows=rows))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.where((tile == 0) & (random.random(tile.shape) < 0.5), -tile, tile), first
