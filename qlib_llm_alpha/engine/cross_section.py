"""Standardise one day against the others of that day.

All functions take arrays whose last axis is the instrument; leading axes (days, factors) are kept. NaN means "no value"
and stays NaN; infinite input is refused by the caller's panel, not here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

Array = NDArray[np.float64]


def rank(values: Array) -> Array:
    """Rank each day from 1 upwards, ties by their average, NaN kept.

    Parameters
    ----------
    values : array, (..., instruments)
        Any scale.

    Returns
    -------
    array, same shape
        Average ranks among the finite values of the day.
    """
    return np.asarray(rankdata(values, axis=-1, nan_policy="omit"), dtype=np.float64)


def rank_normal(values: Array) -> Array:
    """Map each day's ranks to normal scores ``ndtri((rank - 0.5) / n)``, NaN kept.

    A constant day gives zeros: every value has the same average rank.
    """
    ranks = rank(values)
    count = np.sum(~np.isnan(ranks), axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(ndtri((ranks - 0.5) / count), dtype=np.float64)


def zscore(values: Array) -> Array:
    """Centre and scale each day to mean 0 and population deviation 1, NaN kept; a constant day becomes zeros."""
    valid = ~np.isnan(values)
    count = valid.sum(axis=-1, keepdims=True)
    filled = np.where(valid, values, 0.0)
    mean = np.divide(filled.sum(axis=-1, keepdims=True), count, out=np.zeros_like(count, dtype=float), where=count > 0)
    centred = np.where(valid, values - mean, 0.0)
    variance = np.divide(
        (centred**2).sum(axis=-1, keepdims=True), count, out=np.zeros_like(count, dtype=float), where=count > 0
    )
    deviation = np.sqrt(variance)
    scale = np.abs(filled).max(axis=-1, keepdims=True, initial=0.0)
    constant = deviation <= 1e-12 * np.maximum(scale, 1e-300)
    scaled = np.divide(centred, deviation, out=np.zeros_like(centred), where=~constant)
    return np.where(valid, scaled, np.nan)


def daily_correlation(left: Array, right: Array) -> Array:
    """Pearson correlation of each day over the instruments where both sides have a value.

    Returns
    -------
    array, (...)
        NaN where fewer than two instruments are shared or one side is constant.
    """
    joint = ~(np.isnan(left) | np.isnan(right))
    count = joint.sum(axis=-1)
    a = zscore(np.where(joint, left, np.nan))
    b = zscore(np.where(joint, right, np.nan))
    product = np.where(joint, a * b, 0.0).sum(axis=-1)
    flat = (np.nansum(np.abs(a), axis=-1) == 0) | (np.nansum(np.abs(b), axis=-1) == 0)
    result = np.divide(product, count, out=np.full(count.shape, np.nan), where=count > 1)
    return np.where(flat, np.nan, result)
