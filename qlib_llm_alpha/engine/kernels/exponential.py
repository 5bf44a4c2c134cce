"""Exponentially weighted means: EMA with a window, Ewm with a rate, and what Qlib makes of ``EMA(x, 0)``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qlib_llm_alpha.engine.kernels.registry import KERNELS, LANES, Array, Kernel, Lanes, jit, kernel
from qlib_llm_alpha.engine.kernels.sums import is_value, pick


def _decay(x: Array, out: Array, alpha: float) -> None:
    """Write pandas' ``ewm(alpha=alpha, min_periods=1).mean()``: weights fall over missing rows too."""
    fall = 1.0 - alpha
    state = np.zeros((2, LANES))
    mean, weight = state[0], state[1]
    for j in range(LANES):
        mean[j] = np.nan
    for t in range(x.shape[0]):
        for j in range(LANES):
            new, old = np.float64(x[t, j]), mean[j]
            entered, begun = is_value(new), old == old
            past = weight[j] * fall
            # The first value is taken as it is: it has no past, and NaN times no weight would be NaN.
            blended = pick(begun, (past * old + new) / (past + 1.0), new)
            # Equal values must not pick up rounding: pandas leaves the mean alone too.
            value = pick(entered & (new != old), blended, old)
            weight[j] = past + pick(entered, 1.0, 0.0)
            mean[j] = value
            out[t, j] = value


_decay_fast = jit(_decay)


def _rate(alpha: float) -> float:
    """Return ``alpha`` as pandas rounds it, which takes the way round by the centre of mass."""
    return 1.0 / (1.0 + (1.0 - alpha) / alpha)


def ema(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write the exponentially weighted mean with rate 2 / (window + 1) of all rows so far: nothing leaves."""
    _decay_fast(x, out, 2.0 / (window + 1.0))


def ewm(x: Array, out: Array, window: int, first: Lanes, alpha: float) -> None:
    """Write the exponentially weighted mean with rate ``alpha``, 0 < alpha <= 1; ``window`` plays no part."""
    _decay_fast(x, out, _rate(alpha))


def _decayed(x: Array, alpha: float) -> Array:
    # pandas, whose bits the compiled loop has too: a recurrence of rows has no form in whole columns.
    frame = pd.DataFrame(np.where(np.isfinite(x), x, np.nan))
    mean: Array = frame.ewm(alpha=alpha, min_periods=1).mean().to_numpy()
    return mean


def _ema_fallback(x: Array, window: int, first: Lanes) -> Array:
    return _decayed(x, 2.0 / (window + 1.0))


def _ewm_fallback(x: Array, window: int, first: Lanes, alpha: float) -> Array:
    return _decayed(x, alpha)


def _expanding_fallback(x: Array, window: int, first: Lanes) -> Array:
    rows, lanes = x.shape
    present = np.isfinite(x)
    # Every lane is moved to where it begins, so that one row of weights is right for all.
    row = np.arange(rows)[:, None] + first
    moved = np.take_along_axis(np.where(present, x, 0.0), np.minimum(row, rows - 1), axis=0)
    mean = np.empty((rows, lanes))
    ages = np.arange(rows - 1.0, -1.0, -1.0)
    for t in range(rows):
        weights = np.exp(np.log(t / (t + 2.0)) * ages[rows - 1 - t :]) if t else np.ones(1)
        mean[t] = weights @ moved[: t + 1] / weights.sum()
    out = np.take_along_axis(mean, np.maximum(np.arange(rows)[:, None] - first, 0), axis=0)
    return np.where(np.logical_or.accumulate(present, axis=0), out, np.nan)


KERNELS["EMA"] = Kernel("EMA", 1, ema, _ema_fallback)
KERNELS["Ewm"] = Kernel("Ewm", 1, ewm, _ewm_fallback)


@kernel("ExpandingEMA", _expanding_fallback)
def expanding_ema(x: Array, out: Array, window: int, first: Lanes) -> None:
    """Write what Qlib makes of ``EMA(x, 0)``, in O(rows) a row; ``window`` plays no part.

    Row ``t``, the n-th that exists, weighs row ``t - k`` by ``((n - 1) / (n + 1)) ** k``: every row has weights of its
    own. Missing values count as 0 but keep their weight, as in Qlib; NaN before the first value.
    """
    state = np.zeros((5, LANES))
    total, weights, fall, begin, seen = state[0], state[1], state[2], state[3], state[4]
    earliest = x.shape[0]
    for j in range(LANES):
        begin[j] = first[j]
        earliest = min(earliest, first[j])
    for t in range(x.shape[0]):
        for j in range(LANES):
            n = t - begin[j] + 1.0
            fall[j] = (n - 1.0) / (n + 1.0)
            total[j] = 0.0
            weights[j] = 0.0
            seen[j] += pick(is_value(np.float64(x[t, j])), 1.0, 0.0)
        for row in range(earliest, t + 1):
            for j in range(LANES):
                value = np.float64(x[row, j])
                total[j] = total[j] * fall[j] + pick(is_value(value), value, 0.0)
                weights[j] = weights[j] * fall[j] + pick(row >= begin[j], 1.0, 0.0)
        for j in range(LANES):
            out[t, j] = pick(seen[j] > 0.0, total[j] / weights[j], np.nan)
