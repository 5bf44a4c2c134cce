"""The evidence on a pool of factors, gathered once and read by every agent on every decision day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.cross_section import rank
from qlib_llm_alpha.engine.panel import Array, DayLike, Days, Mask, as_day, as_days
from qlib_llm_alpha.engine.scoring import MIN_NAMES, rank_ic_and_spread, rank_ic_series
from qlib_llm_alpha.errors import PanelError
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON


@dataclass(frozen=True, eq=False)
class FactorEvidence:
    """Daily outcomes of F factors over T days. Make it with :func:`gather_evidence`.

    Attributes
    ----------
    names, categories : tuple of str, (F,)
    days : array, (T,) datetime64[D]
    regime : array, (T,) str
        Known at the close of its day.
    rank_ic, long_short : array, (F, T)
        By the day of the score; known ``horizon`` days later.
    correlation : array, (D, F, F)
        Rank correlation between factors across names, on the rows ``correlation_rows`` (D,); known at their close.
    horizon : int
        Trading days after which a label is known.
    slow_rank_ic, slow_horizon
        The same on a slower label, when there is one.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    days: Days
    regime: NDArray[np.str_] = field(repr=False)
    rank_ic: Array = field(repr=False)
    long_short: Array = field(repr=False)
    correlation: Array = field(repr=False)
    correlation_rows: NDArray[np.intp] = field(repr=False)
    horizon: int = LABEL_HORIZON
    slow_rank_ic: Array | None = field(default=None, repr=False)
    slow_horizon: int = 6

    def row(self, as_of: int | DayLike) -> int:
        """Return the row of a decision day: a row number, or a date, which means the last day up to it."""
        if isinstance(as_of, int | np.integer):
            position = int(as_of)
        else:
            position = int(np.searchsorted(self.days, as_day(as_of), side="right")) - 1
        if not 0 <= position < len(self.days):
            raise PanelError(
                f"as_of {as_of!r} is not among the {len(self.days)} days {self.days[:1]} to {self.days[-1:]}; "
                "expected a row number or a date from the first day on; choose one"
            )
        return position

    def mean_correlation(self, as_of: int, window: int) -> Array:
        """Return the mean rank correlation between factors, (F, F), over a trailing window up to row ``as_of``."""
        rows = (self.correlation_rows <= as_of) & (self.correlation_rows > as_of - window)
        recent = self.correlation[rows]
        known = ~np.isnan(recent)
        count = known.sum(axis=0)
        total = np.nansum(recent, axis=0)
        mean: Array = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
        return mean


def gather_evidence(
    factors: Array,
    names: Sequence[str],
    categories: Sequence[str],
    label: Array,
    regime: NDArray[np.str_],
    days: Days,
    *,
    member: Mask | None = None,
    horizon: int = LABEL_HORIZON,
    slow_label: Array | None = None,
    slow_horizon: int = 6,
    min_names: int = MIN_NAMES,
    correlation_every: int = 5,
) -> FactorEvidence:
    """Measure a pool of factors once.

    Parameters
    ----------
    factors : array, (F, T, N)
        Factor values known at the close of their day.
    names, categories : sequence of str, (F,)
        Unique names, and the category of each.
    label : array, (T, N)
        The return that follows, known ``horizon`` days later.
    regime : array, (T,) str
        The market's regime, known at the close of its day.
    days : array, (T,) datetime64[D]
    member : array, (T, N) bool, optional
        The universe of each day; values outside it are left out.
    horizon : int
        Trading days after which ``label`` is known.
    slow_label : array, (T, N), optional
        A slower label, for instance ``Ref($close,-6)/Ref($close,-1)-1``, known ``slow_horizon`` days later.
    slow_horizon : int
    min_names : int
        Days with fewer joint names are NaN.
    correlation_every : int
        The correlation between factors is taken on every so many days: it moves slowly.

    Returns
    -------
    FactorEvidence
        Row t of anything in it depends on row t of the input alone, so that reading rows up to ``as_of - horizon``
        reads nothing that was not known.

    Raises
    ------
    PanelError
        Shapes that do not fit, or names that are not unique.
    """
    calendar = as_days(days)
    expected = (len(names), len(calendar), label.shape[-1])
    if factors.shape != expected or label.shape != expected[1:] or len(categories) != len(names):
        raise PanelError(
            f"factors have shape {factors.shape}, label {label.shape}, {len(names)} names, {len(categories)} "
            f"categories, {len(calendar)} days; expected (F, T, N), (T, N), F, F, T; align them"
        )
    if len(set(names)) != len(names):
        raise PanelError(f"factor names {list(names)!r} are not unique; expected one factor for each; rename them")
    if regime.shape != calendar.shape or correlation_every < 1:
        raise PanelError(
            f"regime has shape {regime.shape} and correlation_every is {correlation_every!r}; expected "
            f"({len(calendar)},) and at least 1"
        )
    if np.isinf(factors).any():
        raise PanelError("factors hold infinite values; expected finite values or NaN; treat them per day first")
    shown = factors if member is None else np.where(member, factors, np.nan)
    rank_ic, long_short = rank_ic_and_spread(shown, label, min_names=min_names)
    rows = np.arange(0, len(calendar), correlation_every)
    return FactorEvidence(
        names=tuple(names),
        categories=tuple(categories),
        days=calendar,
        regime=regime,
        rank_ic=rank_ic,
        long_short=long_short,
        correlation=_correlations(shown, rows, min_names),
        correlation_rows=rows,
        horizon=horizon,
        slow_rank_ic=None if slow_label is None else rank_ic_series(shown, slow_label, min_names=min_names),
        slow_horizon=slow_horizon,
    )


def _correlations(factors: Array, rows: NDArray[np.intp], min_names: int) -> Array:
    """Pearson correlation of ranks for every pair of factors, over the names both have.

    A factor is ranked once over all its own names; taking the ranks again for every pair would change the third digit
    of a number that is compared with 0.9.
    """
    result = np.full((len(rows), len(factors), len(factors)), np.nan)
    for place, row in enumerate(rows):
        ranks = rank(factors[:, row])
        known = (~np.isnan(ranks)).astype(np.float64)
        count = known @ known.T
        # Centred by their own middle first: the sums below then stay small and exact.
        value = np.nan_to_num(ranks - (known.sum(axis=1, keepdims=True) + 1) / 2)
        total = value @ known.T
        square = (value**2) @ known.T
        safe = np.maximum(count, 1)
        covariance = value @ value.T - total * total.T / safe
        variance = square - total**2 / safe
        scale = np.sqrt(np.maximum(variance, 0.0) * np.maximum(variance.T, 0.0))
        usable = (count >= max(min_names, 2)) & (scale > 1e-9)
        result[place] = np.divide(covariance, scale, out=np.full(scale.shape, np.nan), where=usable)
    return result
