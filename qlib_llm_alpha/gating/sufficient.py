"""What a gate is fitted on: a day's expert ICs and expert correlations, whatever the size of the universe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.cross_section import rank_normal, zscore
from qlib_llm_alpha.errors import PanelError
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON

Array = NDArray[np.float64]
Days = NDArray[np.datetime64]
Mask = NDArray[np.bool_]

VARIANCE_FLOOR = 1e-6
"""Smallest variance of a composite that is divided by."""


@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    """Per day, the experts' ICs and their correlations on the joint set of names.

    Attributes
    ----------
    days : datetime64[D] array, (T,)
        Days that had enough joint names, increasing. A row is dated by its label: it is known two trading days later.
    c : array, (T, K)
        Mean over the joint set of standardised score times standardised label: the Pearson IC of each expert on the
        rank-normal label. 0 for an expert that is constant that day.
    R : array, (T, K, K)
        Mean over the joint set of products of standardised scores. A constant expert has a zero row and column with
        1 on the diagonal.
    positions : int array, (T,)
        Place of each day in the calendar given to `from_scores`; neighbours differ by 1 only when no day was dropped or
        masked between them.
    dropped_days : datetime64[D] array
        Days that had fewer joint names than required.
    """

    days: Days
    c: Array
    R: Array
    positions: NDArray[np.int64]
    dropped_days: Days

    @classmethod
    def from_scores(cls, scores: Array, label: Array, days: Days, min_names: int = 30) -> SufficientStatistics:
        """Reduce scores and label to daily statistics.

        On each day only the names where all experts and the label exist are used (the joint set). There each expert and
        the label are ranked to normal and then z-scored, which makes the composite's IC exact also with ties.

        Parameters
        ----------
        scores : array, (K, T, N)
            Scores of K experts, dated by signal day. NaN where an expert has none. For fitting a gate they must be made
            out of fold.
        label : array, (T, N)
            Returns that the scores are to order, dated like the scores. NaN where unknown.
        days : datetime64[D] array, (T,)
            Increasing.
        min_names : int
            Days with fewer joint names are dropped and counted.

        Raises
        ------
        PanelError
            If shapes do not fit, days do not increase, or a value is infinite.
        """
        _check_panel(scores, label, days)
        joint = ~np.isnan(scores).any(axis=0) & ~np.isnan(label)
        enough = joint.sum(axis=1) >= max(min_names, 1)
        kept = np.where(joint[enough], scores[:, enough], np.nan)
        s = np.nan_to_num(standardise_scores(kept)).transpose(1, 0, 2)
        y = np.nan_to_num(standardise_scores(np.where(joint[enough], label[enough], np.nan)))
        names = joint[enough].sum(axis=1)
        c = np.matmul(s, y[:, :, None])[:, :, 0] / names[:, None]
        correlations = np.matmul(s, s.transpose(0, 2, 1)) / names[:, None, None]
        day, expert = np.nonzero(~s.any(axis=2))
        correlations[day, expert, expert] = 1.0
        return cls(days[enough], c, correlations, np.flatnonzero(enough), days[~enough])

    @property
    def experts(self) -> int:
        """Number of experts K."""
        return int(self.c.shape[1])

    @property
    def dropped(self) -> int:
        """Number of days that had too few joint names."""
        return len(self.dropped_days)

    def select(self, mask: Mask | NDArray[np.int64]) -> SufficientStatistics:
        """Keep the rows of a boolean mask or of increasing row numbers; `dropped_days` stays as it is."""
        return SufficientStatistics(
            self.days[mask], self.c[mask], self.R[mask], self.positions[mask], self.dropped_days
        )

    def between(self, start: np.datetime64 | str, end: np.datetime64 | str) -> SufficientStatistics:
        """Keep the days from `start` to `end`, both included."""
        return self.select((self.days >= np.datetime64(start)) & (self.days <= np.datetime64(end)))

    def align(self, values: Array, days: Days) -> Array:
        """Take the rows of `values` (T', ...) dated `days` (T',) that belong to these statistics' days.

        Raises
        ------
        PanelError
            If a day of the statistics has no row.
        """
        rows = np.searchsorted(days, self.days)
        found = rows < len(days)
        found[found] = days[rows[found]] == self.days[found]
        if not found.all():
            raise PanelError(
                f"no row for {self.days[~found][0]!r} among {len(days)} dated rows; give the market state of every day "
                f"that the statistics hold ({len(self.days)} days)"
            )
        return np.asarray(values[rows])


def standardise_scores(scores: Array) -> Array:
    """Rank each day to normal scores, then z-score; NaN kept.

    The same transformation serves fitting (on the joint set) and prediction (on the names an expert has), so that an
    expert's weight means the same in both.

    Parameters
    ----------
    scores : array, (..., N)
        Any scale; the last axis is the instrument.

    Returns
    -------
    array, same shape
        Mean 0 and deviation 1 per day and expert; zeros on a day without differences.
    """
    return zscore(rank_normal(scores))


def composite(scores_std: Array, weights: Array) -> Array:
    """Mix standardised scores with daily weights.

    A name that lacks an expert is scored with the weights renormalised over the experts it has; NaN when it has none,
    or none with a positive weight.

    Parameters
    ----------
    scores_std : array, (K, T, N)
        From `standardise_scores`.
    weights : array, (T, K)
        Not negative.

    Returns
    -------
    array, (T, N)

    Raises
    ------
    PanelError
        If shapes do not fit or a weight is negative or not finite.
    """
    if weights.shape != (scores_std.shape[1], scores_std.shape[0]):
        raise PanelError(f"weights have shape {weights.shape!r}; scores {scores_std.shape!r} (K, T, N) need (T, K)")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise PanelError("weights hold a negative or missing value; a gate gives finite weights of at least 0 each day")
    present = ~np.isnan(scores_std)
    mass = weights.T[:, :, None] * present
    total = mass.sum(axis=0)
    mixed = (mass * np.where(present, scores_std, 0.0)).sum(axis=0)
    return np.asarray(np.divide(mixed, total, out=np.full(total.shape, np.nan), where=total > 0))


def composite_ic(stats: SufficientStatistics, weights: Array) -> Array:
    """Daily Pearson IC of the composite on the rank-normal label: ``g.c / sqrt(g' R g)``, shape (T,).

    It is exact on the joint set (as long as no expert is constant that day) and is not the rank IC. `weights` is
    (T, K), or (K,) for the same weights every day. The variance is floored at `VARIANCE_FLOOR`.
    """
    g = np.broadcast_to(weights, stats.c.shape)
    variance = np.matmul(np.matmul(stats.R, g[:, :, None])[:, :, 0][:, None, :], g[:, :, None])[:, 0, 0]
    return np.asarray((g * stats.c).sum(axis=1) / np.sqrt(np.maximum(variance, VARIANCE_FLOOR)))


def trailing_observable_ic(
    outcomes: SufficientStatistics, days: Days, window: int = 60, min_days: int = 20, horizon: int = LABEL_HORIZON
) -> Array:
    """Mean IC of each expert over the last outcomes that are known on each decision day.

    Trading days are counted on the union of `days` and the outcomes' days. A day missing from both only delays what is
    seen, never hastens it.

    Parameters
    ----------
    outcomes : SufficientStatistics
        May reach past the decision days: what is not yet observable is not read.
    days : datetime64[D] array, (T,)
        Decision days. At t only outcomes dated s <= t - horizon trading days are used.
    window : int
        Number of outcomes averaged, at most.
    min_days : int
        With fewer observable outcomes the row is NaN.

    Returns
    -------
    array, (T, K)
    """
    calendar = np.union1d(days, outcomes.days)
    seen = np.searchsorted(
        np.searchsorted(calendar, outcomes.days), np.searchsorted(calendar, days) - horizon, side="right"
    )
    first = np.maximum(seen - window, 0)
    # Sliced means instead of differences of a running sum: an outcome past the decision day may not touch even the last
    # bit of the result.
    means = [
        outcomes.c[low:high].mean(axis=0) if high - low >= min_days else np.full(outcomes.experts, np.nan)
        for low, high in zip(first, seen, strict=True)
    ]
    return np.array(means).reshape(len(days), outcomes.experts)


def _check_panel(scores: Array, label: Array, days: Days) -> None:
    if scores.ndim != 3 or scores.shape[0] == 0 or label.shape != scores.shape[1:] or len(days) != scores.shape[1]:
        raise PanelError(
            f"scores {scores.shape!r}, label {label.shape!r} and {len(days)} days do not fit; expected (K, T, N) with "
            f"K >= 1, (T, N) and T days"
        )
    if (np.diff(days) <= np.timedelta64(0, "D")).any():
        raise PanelError("days do not increase; sort the panel by date and drop duplicates")
    if np.isinf(scores).any() or np.isinf(label).any():
        raise PanelError("scores or label hold an infinite value; set it to NaN before the gate sees it")
