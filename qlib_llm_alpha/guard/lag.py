"""Look for features that say something about a return that comes after them, where nothing can.

Returns are drawn anew, independent over instruments and days. A feature dated t may know those up to t; with those of
t+1, ..., t+5 and with the label its daily rank correlation has mean 0, and on a day with n names variance 1/(n-1),
whatever the feature is: given the feature, all orders of the returns are equally likely. Each sum over days is
therefore close to normal, and the largest of all is held against Sidak's bound.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from qlib_llm_alpha.guard.finding import Finding, counted
from qlib_llm_alpha.guard.subject import Builds

Array = NDArray[np.float64]

LAGS: Final = tuple(range(-5, 6))
"""Trading days from a feature's date to the close that ends the return."""

FAMILY_LEVEL: Final = 1e-4
"""Probability that a clean handler is accused."""

_NAMES, _DAYS, _AT_ONCE = 5, 50, 32


def check_lag(builds: Builds) -> Finding:
    """Correlate every feature with every later return, and with the label, on independent returns."""
    built, returns = builds.independent()
    name = builds.subject.name
    if built.error:
        detail = f"{name} cannot be built on independent returns: {built.error}"
        return Finding("lag", name, "not applicable", detail, {"error": built.error})
    features = built.infer.select_dtypes("number")
    targets = {f"{lag:+d}": _shifted(returns, lag, features.index) for lag in LAGS}
    if built.label is not None:
        targets |= {f"label {label}": built.label[label].reindex(features.index) for label in built.label.columns}
    z = pd.DataFrame(
        {key: _z_values(features, target.to_numpy(np.float64)) for key, target in targets.items()},
        index=[str(column) for column in features.columns],
    )
    after = z[[key for key in z if key.startswith("label") or int(key) > 0]].abs()
    tests = int(after.notna().to_numpy().sum())
    if tests == 0:
        detail = f"no feature has {_DAYS} days with {_NAMES} names and a later return; give more names or days"
        return Finding("lag", name, "not applicable", detail, {})
    bound = float(norm.isf((1 - (1 - FAMILY_LEVEL) ** (1 / tests)) / 2))
    place = int(np.nanargmax(after.to_numpy()))
    column, key = after.index[place // after.shape[1]], after.columns[place % after.shape[1]]
    largest = float(after.loc[column, key])
    evidence = {
        "largest": largest,
        "bound": bound,
        "tests": tests,
        "column": column,
        "against": key,
        "z_by_lag": {lag: _plain(z.loc[column, lag]) for lag in z.columns},
        "columns": sorted(str(row) for row in after.index[(after > bound).any(axis=1)]),
    }
    if largest <= bound:
        detail = (
            f"{counted(len(z), 'column')} against the returns of 1 to {LAGS[-1]} days later and the label: largest |z| "
            f"{largest:.1f} ({column}), bound {bound:.1f}"
        )
        return Finding("lag", name, "clean", detail, evidence)
    against = key if key.startswith("label") else f"the return that ends {counted(int(key), 'trading day')} later"
    detail = (
        f"{column} knows {against}: |z| {largest:.1f} on independent returns, bound {bound:.1f} over {tests} tests; "
        f"{counted(len(evidence['columns']), 'column')} beyond it; "
        "look for the label, or a return dated too early, in it"
    )
    return Finding("lag", name, "leak", detail, evidence)


def _shifted(returns: pd.DataFrame, lag: int, index: pd.Index) -> pd.Series:
    """Return, for each row (day t, instrument), the return that ends at the close of t + lag."""
    row = returns.index.get_indexer(index.get_level_values("datetime"))
    column = returns.columns.get_indexer(index.get_level_values("instrument").str.upper())
    moved = row + lag
    inside = (row >= 0) & (moved >= 0) & (moved < len(returns)) & (column >= 0)
    values = returns.to_numpy()[np.where(inside, moved, 0), np.where(inside, column, 0)]
    return pd.Series(np.where(inside, values, np.nan), index=index)


def _z_values(features: pd.DataFrame, target: Array) -> Array:
    """Return the standardised sum over days of the rank correlation of each column with a target."""
    days = features.index.get_level_values("datetime")
    starts = np.flatnonzero(np.r_[True, days[1:] != days[:-1]])
    parts = []
    for place in range(0, features.shape[1], _AT_ONCE):
        part = features.iloc[:, place : place + _AT_ONCE]
        ranks = part.replace([np.inf, -np.inf], np.nan).groupby(level="datetime").rank().to_numpy(np.float64)
        parts.append(_z_of_ranks(ranks, target, starts))
    return np.concatenate(parts)


def _z_of_ranks(ranks: Array, target: Array, starts: NDArray[np.intp]) -> Array:
    there = np.isfinite(ranks) & np.isfinite(target)[:, None]
    x, y = np.where(there, ranks, 0.0), np.where(there, target[:, None], 0.0)

    def sums(values: NDArray[Any]) -> Array:
        return np.asarray(np.add.reduceat(values, starts, axis=0), dtype=np.float64)

    count = sums(there.astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread_x = sums(x * x) - sums(x) ** 2 / count
        spread_y = sums(y * y) - sums(y) ** 2 / count
        correlation = (sums(x * y) - sums(x) * sums(y) / count) / np.sqrt(spread_x * spread_y)
    usable = (count >= _NAMES) & (spread_x > 1e-9) & np.isfinite(correlation)
    total = np.where(usable, correlation, 0.0).sum(axis=0)
    variance = np.where(usable, 1 / np.maximum(count - 1, 1), 0.0).sum(axis=0)
    return np.where(usable.sum(axis=0) >= _DAYS, total / np.sqrt(np.maximum(variance, 1e-300)), np.nan)


def _plain(value: float) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
