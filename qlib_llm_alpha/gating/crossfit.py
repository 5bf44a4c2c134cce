"""Folds that make scores out of fold, so that a gate never learns to trust whichever learner overfits most."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON
from qlib_llm_alpha.gating.sufficient import Array, Days, Mask

logger = logging.getLogger(__name__)

FitPredict = Callable[[Mask, Mask], Array]
"""Takes the masks (T,) of training and prediction days, refits everything, gives scores (K, predicted days, N)."""


@dataclass(frozen=True, eq=False)
class Fold:
    """One fold: which days to fit on and which to predict, both masks (T,)."""

    train: Mask
    predict: Mask


def expanding_folds(
    days: Days, n_folds: int = 5, horizon: int = LABEL_HORIZON, min_train: int = 240
) -> tuple[Fold, ...]:
    """Cut days into folds that are each predicted from everything before them.

    Parameters
    ----------
    days : datetime64[D] array, (T,)
        Trading days of the search segment.
    n_folds : int
        Number of predicted parts, of equal length up to one day.
    horizon : int
        Days purged between training and prediction: their labels are not known when the first prediction is made.
    min_train : int
        Training days of the first fold. No scores exist for the first ``min_train + horizon`` days.

    Raises
    ------
    ConfigError
        If the days do not suffice.
    """
    first = min_train + horizon
    if n_folds < 1 or min_train < 1 or horizon < 0 or len(days) < first + n_folds:
        raise ConfigError(
            f"{len(days)} days cannot be cut into {n_folds} folds after {min_train} training days and {horizon} purged "
            f"ones; give at least {first + max(n_folds, 1)} days, or fewer folds or training days"
        )
    row = np.arange(len(days))
    edges = np.linspace(first, len(days), n_folds + 1).round().astype(int)
    return tuple(Fold(row < start - horizon, (row >= start) & (row < stop)) for start, stop in pairwise(edges))


def surrounding_folds(count: int, n_folds: int = 5, horizon: int = LABEL_HORIZON) -> tuple[Fold, ...]:
    """Cut rows into contiguous folds that are each predicted from the rows on both sides, purged by `horizon` rows.

    For tests of a finished segment, where all of its labels are known: it uses the days better than `expanding_folds`.

    Raises
    ------
    ConfigError
        If a fold would have no training rows.
    """
    if n_folds < 2 or count < n_folds * (horizon + 1):
        raise ConfigError(
            f"{count} days cannot be cut into {n_folds} folds with {horizon} days purged on each side; give at least 2 "
            f"folds and {max(n_folds, 2) * (horizon + 1)} days"
        )
    row = np.arange(count)
    edges = np.linspace(0, count, n_folds + 1).round().astype(int)
    return tuple(
        Fold((row < start - horizon) | (row >= stop + horizon), (row >= start) & (row < stop))
        for start, stop in pairwise(edges)
    )


def cross_fit(folds: Sequence[Fold], fit_predict: FitPredict) -> Array:
    """Refit in every fold and put the out-of-fold scores together.

    Parameters
    ----------
    folds : sequence of Fold
    fit_predict : callable
        ``fit_predict(train, predict)`` selects factors and fits learners on the days of `train` alone and gives scores
        (K, number of days in `predict`, N).

    Returns
    -------
    array, (K, T, N)
        NaN on days that no fold predicts.

    Raises
    ------
    PanelError
        If a fold gives scores of another shape.
    ConfigError
        If there is no fold.
    """
    if not folds:
        raise ConfigError("no folds were given; make them with expanding_folds(days)")
    parts: list[Array] = []
    for number, fold in enumerate(folds, start=1):
        part = fit_predict(fold.train, fold.predict)
        wanted = int(fold.predict.sum())
        if part.ndim != 3 or part.shape[1] != wanted or part.shape[::2] != (parts or [part])[0].shape[::2]:
            raise PanelError(
                f"fold {number} gave scores of shape {part.shape!r}; expected (experts, {wanted}, instruments), the "
                f"same experts and instruments in every fold"
            )
        parts.append(part)
        logger.info("fold %d of %d: %d days fitted, %d predicted", number, len(folds), fold.train.sum(), wanted)
    experts, _, names = parts[0].shape
    scores = np.full((experts, len(folds[0].predict), names), np.nan)
    for fold, part in zip(folds, parts, strict=True):
        scores[:, fold.predict] = part
    return scores
