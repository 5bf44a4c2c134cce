"""What is measured on a score day by day: information coefficients, spreads, turnover, coverage.

Shapes: a score is (T, N), days by instruments, or has leading axes (F, T, N); a label is (T, N). Results are daily,
(T,) or (F, T), so that every average over a segment is the caller's and can be purged.

Timing: row ``t`` of a label is a return *after* ``t``. A result dated ``t`` is therefore known only when that label
is, two days later for Qlib's ``Ref($close,-2)/Ref($close,-1)-1``.

NaN rule: a name counts on a day when both sides have a value; a day with fewer than ``min_names`` such names, or with
one side constant, is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.cross_section import daily_correlation, rank
from qlib_llm_alpha.errors import PanelError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

MIN_NAMES = 10


def ic_series(score: Array, label: Array, *, min_names: int = MIN_NAMES) -> Array:
    """Pearson correlation of score and label, day by day.

    Parameters
    ----------
    score : array, (..., T, N)
    label : array, (T, N)
    min_names : int
        Days with fewer joint names are NaN.

    Returns
    -------
    array, (..., T)
    """
    _check(score, label)
    joint = ~(np.isnan(score) | np.isnan(label))
    result = daily_correlation(score, label)
    return np.asarray(np.where(joint.sum(axis=-1) >= min_names, result, np.nan), dtype=np.float64)


def rank_ic_series(score: Array, label: Array, *, min_names: int = MIN_NAMES) -> Array:
    """Spearman correlation of score and label, day by day, ranks taken over the joint names, ties by their average.

    Parameters and result are those of :func:`ic_series`.
    """
    _check(score, label)
    result = np.empty(score.shape[:-1])
    for where, left, right in _joint_ranks(score, label):
        result[where] = _centred_correlation(left, right, min_names)
    return result


def long_short_returns(score: Array, label: Array, *, quantiles: int = 5, min_names: int = MIN_NAMES) -> Array:
    """Mean label of the top quantile less that of the bottom one, day by day.

    Parameters
    ----------
    score : array, (..., T, N)
    label : array, (T, N)
        Simple returns; the result has their unit and no cost is taken off.
    quantiles : int
        5 gives quintiles. With ``n`` joint names a side holds those whose place from its end is at most
        ``n / quantiles``; tied names stand or fall together, and an empty side makes the day NaN.
    min_names : int
        Days with fewer joint names are NaN.

    Returns
    -------
    array, (..., T)
        Changes its sign, and nothing else, when the score does.
    """
    _check(score, label)
    if quantiles < 2:
        raise PanelError(f"quantiles is {quantiles!r}; expected at least 2; 5 gives quintiles")
    result = np.empty(score.shape[:-1])
    for where, left, _ in _joint_ranks(score, label):
        result[where] = _spread(left, label, quantiles, min_names)
    return result


def rank_ic_and_spread(
    score: Array, label: Array, *, quantiles: int = 5, min_names: int = MIN_NAMES
) -> tuple[Array, Array]:
    """Return :func:`rank_ic_series` and :func:`long_short_returns` together, ranking each score once.

    For 60 scores x 1,700 days x 300 names this takes a few seconds; the memory used beyond the input is that of a few
    (T, N) arrays.
    """
    _check(score, label)
    rank_ic, spread = np.empty(score.shape[:-1]), np.empty(score.shape[:-1])
    for where, left, right in _joint_ranks(score, label):
        rank_ic[where] = _centred_correlation(left, right, min_names)
        spread[where] = _spread(left, label, quantiles, min_names)
    return rank_ic, spread


def rank_autocorrelation(score: Array, *, lag: int = 1, min_names: int = MIN_NAMES) -> Array:
    """Spearman correlation of each day's score with the one ``lag`` days before; the first ``lag`` days are NaN.

    Known at the close of its day. Shapes: (T, N) gives (T,).
    """
    if lag < 1:
        raise PanelError(f"lag is {lag!r}; expected at least 1; 1 compares with the day before")
    result = np.full(len(score), np.nan)
    if lag < len(score):
        result[lag:] = rank_ic_series(score[lag:], score[:-lag], min_names=min_names)
    return result


def turnover(score: Array, top: float = 0.2, *, min_names: int = MIN_NAMES) -> Array:
    """Share of the day's top names that were not top names the day before.

    Parameters
    ----------
    score : array, (T, N)
    top : float or int
        A number of names from 1 upwards, or a share of the day's scored names below 1 (rounded up).
    min_names : int
        Days with fewer scored names have no top set.

    Returns
    -------
    array, (T,)
        In [0, 1]; NaN on the first day and where this day or the one before has no top set. Equal scores are ordered by
        column, so a constant score has turnover 0. Known at the close of its day.
    """
    if not top > 0:
        raise PanelError(f"top is {top!r}; expected a count of at least 1 or a share between 0 and 1; 0.2 is usual")
    count = np.sum(~np.isnan(score), axis=-1)
    wanted = np.ceil(top * count - 1e-9) if top < 1 else np.minimum(top, count)
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), axis=-1, kind="stable")
    place = np.empty(score.shape)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(score.shape[-1], dtype=float), score.shape), axis=-1)
    chosen = (place < wanted[:, None]) & ~np.isnan(score)
    has_top = (count >= min_names) & (wanted > 0)
    result = np.full(len(score), np.nan)
    usable = has_top[1:] & has_top[:-1]
    new = np.sum(chosen[1:] & ~chosen[:-1], axis=-1)
    result[1:] = np.divide(new, wanted[1:], out=np.full(new.shape, np.nan), where=usable)
    return result


def coverage(score: Array, universe: Mask | None = None) -> Array:
    """Share of the universe's names that have a score, day by day.

    Parameters
    ----------
    score : array, (..., T, N)
    universe : array, (T, N) bool, optional
        The names that ought to have one; None means all.

    Returns
    -------
    array, (..., T)
        NaN where the universe of the day is empty.
    """
    asked = np.ones(score.shape[-2:], dtype=np.bool_) if universe is None else universe
    if asked.shape != score.shape[-2:]:
        raise PanelError(f"universe has shape {asked.shape}; expected {score.shape[-2:]}; align it to the score")
    total = np.broadcast_to(asked.sum(axis=-1), score.shape[:-1])
    there = np.sum(~np.isnan(score) & asked, axis=-1)
    share: Array = np.divide(there, total, out=np.full(score.shape[:-1], np.nan), where=total > 0)
    return share


def percentile(values: Array) -> Array:
    """Place each value inside its pool (the last axis) from 0 for the lowest to 1 for the highest.

    Ties share their average place, NaN stays NaN and is not part of the pool; a pool of one gets 1.
    """
    ranks = rank(values)
    count = np.sum(~np.isnan(ranks), axis=-1, keepdims=True)
    placed: Array = (ranks - 1.0) / np.maximum(count - 1, 1)
    placed[(count == 1) & ~np.isnan(ranks)] = 1.0
    return placed


def _check(score: Array, label: Array) -> None:
    if label.ndim != 2 or score.ndim < 2 or score.shape[-2:] != label.shape:
        raise PanelError(
            f"score has shape {score.shape} and label {label.shape}; expected (..., T, N) and (T, N); align them"
        )


def _joint_ranks(score: Array, label: Array) -> Iterator[tuple[tuple[int, ...], Array, Array]]:
    """Rank both sides over their joint names; the label's ranks are taken again only where the joint names changed."""
    known = ~np.isnan(label)
    whole = rank(label)
    last_joint, last_ranks = known, whole
    for where in np.ndindex(score.shape[:-2]):
        joint = known & ~np.isnan(score[where])
        if not np.array_equal(joint, last_joint):
            # Most factors miss the same names on the same days, and on most days none: rank only the days that differ.
            differs = (joint != known).any(axis=-1)
            last_ranks = whole.copy()
            last_ranks[differs] = rank(np.where(joint[differs], label[differs], np.nan))
            last_joint = joint
        yield where, rank(np.where(joint, score[where], np.nan)), last_ranks


def _centred_correlation(left: Array, right: Array, min_names: int) -> Array:
    # Ranks of n names have the mean (n + 1) / 2 exactly, with ties too, so sums of products are exact.
    count = np.sum(~np.isnan(left), axis=-1)
    centre = (count[:, None] + 1) / 2
    a = np.nan_to_num(left - centre, nan=0.0)
    b = np.nan_to_num(right - centre, nan=0.0)
    scale = np.sqrt(np.einsum("tn,tn->t", a, a) * np.einsum("tn,tn->t", b, b))
    usable = (count >= max(min_names, 2)) & (scale > 0)
    result: Array = np.divide(np.einsum("tn,tn->t", a, b), scale, out=np.full(len(left), np.nan), where=usable)
    return result


def _spread(ranks: Array, label: Array, quantiles: int, min_names: int) -> Array:
    count = np.sum(~np.isnan(ranks), axis=-1)
    edge = (count / quantiles + 1e-9)[:, None]
    low = ranks <= edge
    high = (count[:, None] + 1 - ranks) <= edge
    filled = np.nan_to_num(label, nan=0.0)
    lows, highs = low.sum(axis=-1), high.sum(axis=-1)
    usable = (lows > 0) & (highs > 0) & (count >= min_names)
    empty = np.full(len(ranks), np.nan)
    top = np.divide(np.einsum("tn,tn->t", high, filled), highs, out=empty.copy(), where=usable)
    bottom = np.divide(np.einsum("tn,tn->t", low, filled), lows, out=empty, where=usable)
    return np.asarray(top - bottom)
