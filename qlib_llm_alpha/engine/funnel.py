"""Score many candidates and spend time only on those that earn it.

A candidate goes through stages, each some ten times dearer than the one before, and is refused at the first that it
fails:

1. ``parsed``: read and checked (0.1 ms), if it came as text;
2. ``priced``: too dear ones are refused by the table of operators, before anything is computed;
3. ``probed``: computed on a corner of the panel, 32 instruments and 300 days: what cannot be computed, has no value or
   is the same for all names shows there;
4. ``valued``: computed on the whole panel, daily IC taken;
5. ``scored``: rank IC, turnover, autocorrelation, spread and correlation with a pool, for those whose IC is kept.

One bad candidate never stops the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.evaluate import Warmup, evaluate
from qlib_llm_alpha.engine.kernels.registry import LANES
from qlib_llm_alpha.engine.price import price
from qlib_llm_alpha.engine.tile_scoring import DailyScores, Pool, PreparedLabel, Summary, UnitRows, score_columns
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ExpressionError, PanelError, QlibLLMAlphaError
from qlib_llm_alpha.factor.expression import Expression, parse

_LOG = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Array = NDArray[np.float64]
Stage = Literal["read", "parsed", "priced", "probed", "valued", "scored"]
Keep = Callable[[DailyScores], bool]

TOO_DEAR: Final = "too_dear"
ALL_MISSING: Final = "all_missing"
SAME_FOR_ALL: Final = "constant"
LOW_IC: Final = "low_ic"
FAILED: Final = "failed"

_CORNER_DAYS: Final = 300
_ENOUGH_DAYS: Final = 60
"""Days of the corner beyond a candidate's look-back from which its absence of values says something."""


@dataclass(frozen=True)
class Thresholds:
    """What an IC has to reach for the dear measures to be taken.

    Parameters
    ----------
    ic : float
        Least absolute mean of the daily IC.
    ratio : float
        Least absolute mean / deviation of it, per day.
    days : int
        Least number of days with an IC.
    coverage : float
        Least mean share of the universe that has a value.
    """

    ic: float = 0.0
    ratio: float = 0.0
    days: int = 1
    coverage: float = 0.0

    def __call__(self, daily: DailyScores) -> bool:
        """Say whether a candidate is kept; NaN never is where something is asked."""
        found = Summary.of(daily.ic)
        return (
            found.days >= self.days
            and (self.ic <= 0 or abs(found.mean) >= self.ic)
            and (self.ratio <= 0 or abs(found.ratio) >= self.ratio)
            and (self.coverage <= 0 or Summary.of(daily.coverage).mean >= self.coverage)
        )


@dataclass(frozen=True, eq=False)
class Screened:
    """What became of one candidate.

    Parameters
    ----------
    candidate : Expression or str
        As it was given.
    expression : Expression or None
        None where the text could not be read.
    stage : str
        The last stage that it passed; ``read`` where it passed none.
    reason : str
        Why it went no further: ``too_dear``, ``all_missing``, ``constant``, ``low_ic``, ``failed``, or a reason of the
        factor language. Empty for what was scored.
    detail : str
        A sentence for people.
    price : float
        Predicted seconds of one core; NaN before the price is known.
    daily : DailyScores or None
        From stage ``valued`` on; the dear measures from ``scored`` on.
    alike : array, (P,) or None
        Mean daily correlation with the members of the pool, in its order; None without a pool.
    null_t : array, (S,) or None
        Plain t of the mean daily rank IC against each null label (:class:`Summary`); None without one.
    """

    candidate: Expression | str
    expression: Expression | None = None
    stage: Stage = "read"
    reason: str = ""
    detail: str = ""
    price: float = np.nan
    daily: DailyScores | None = None
    alike: Array | None = field(default=None, repr=False)
    null_t: Array | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        """Whether it reached the end."""
        return self.stage == "scored"

    @property
    def ic(self) -> Summary:
        """Summary of the daily IC."""
        return Summary.of(_EMPTY if self.daily is None else self.daily.ic)

    @property
    def rank_ic(self) -> Summary:
        """Summary of the daily rank IC."""
        return Summary.of(_EMPTY if self.daily is None or self.daily.rank_ic is None else self.daily.rank_ic)

    @property
    def turnover(self) -> Summary:
        """Summary of the daily share of new names in the top."""
        return Summary.of(_EMPTY if self.daily is None or self.daily.turnover is None else self.daily.turnover)


_EMPTY: Final[Array] = np.empty(0)


def screen(
    candidates: Sequence[Expression | str],
    panel: TiledPanel,
    label: Expression | PreparedLabel,
    *,
    pool: Pool | None = None,
    null_labels: Sequence[PreparedLabel] = (),
    keep: Keep | None = None,
    max_price_s: float | None = None,
    batch: int = 32,
    threads: int = 2,
    warmup: Warmup = "qlib",
    rows: slice | None = None,
    read: Callable[[str], Expression] = parse,
    progress: Callable[[int, int], None] | None = None,
) -> list[Screened]:
    """Take candidates through the stages of this module.

    Parameters
    ----------
    candidates : sequence of Expression or str
    panel : TiledPanel
        Its members of the day count, and no others.
    label : Expression or PreparedLabel
        What is to be forecast, such as ``parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)``. Prepare it
        once where ``screen`` is called often.
    pool : Pool, optional
        Accepted candidates, made of :class:`UnitRows` over all days of this panel and the label's universe.
    null_labels : sequence of PreparedLabel, optional
        Labels that nothing can forecast, such as the true one moved in time; those scored get the t of their rank IC
        against each, which costs little while the values are at hand.
    keep : callable, optional
        Says of daily scores (IC, names, coverage) whether the dear measures are worth taking; default all that have an
        IC on some day. :class:`Thresholds` is such a callable.
    max_price_s : float, optional
        Refuse candidates that are predicted to take more seconds of one core.
    batch : int
        Candidates computed together: what they share is computed once, and one batch of columns is in memory.
    threads : int
    warmup : {"strict", "qlib"}
        As in :func:`~qlib_llm_alpha.engine.evaluate.evaluate`.
    rows : slice, optional
        Only these days are scored, as if the panel had no others; values still see the days before, and the
        correlation with the pool is taken over all days. Keep days that must not be seen out of the panel.
    read : callable
        Reads a candidate that is text; default :func:`~qlib_llm_alpha.factor.expression.parse`.
    progress : callable, optional
        Called as ``progress(done, total)`` after each batch.

    Returns
    -------
    list of Screened
        One for each candidate, in their order. Daily results have the timing of
        :mod:`qlib_llm_alpha.engine.tile_scoring`.

    Raises
    ------
    PanelError
        Settings or a label that do not fit the panel; never for a candidate.
    """
    if batch < 1:
        raise PanelError(f"batch is {batch!r}; expected at least 1; 32 is usual")
    ready = label if isinstance(label, PreparedLabel) else prepare_label(label, panel, threads=threads)
    names, days = len(panel.instruments), len(panel.days)
    if ready.values.shape != (days, panel.tile_count * LANES):
        raise PanelError(
            f"the label has shape {ready.values.shape}; the panel's is {(days, panel.tile_count * LANES)}; prepare the "
            "label on this panel"
        )
    found = [_priced(_read(candidate, read), names, days, max_price_s) for candidate in candidates]
    corner = _corner(panel, ready)
    buffer = np.empty((min(batch, len(found)), panel.tile_count, days, LANES), dtype=np.float32)
    todo = [place for place, one in enumerate(found) if one.stage == "priced"]
    done = len(found) - len(todo)
    for start in range(0, len(todo), batch):
        places = todo[start : start + batch]
        for place, probed in zip(places, _probed([found[place] for place in places], corner, warmup), strict=True):
            found[place] = probed
        alive = [place for place in places if found[place].stage == "probed"]
        work = _Batch(panel, ready, pool, null_labels, keep or Thresholds(), threads, warmup, rows)
        for place, scored in zip(alive, work.scored([found[place] for place in alive], buffer), strict=True):
            found[place] = scored
        done += len(places)
        if progress is not None:
            progress(done, len(found))
    _LOG.debug("screened %d candidates, %d passed", len(found), sum(one.passed for one in found))
    return found


def prepare_label(label: Expression, panel: TiledPanel, *, threads: int = 2) -> PreparedLabel:
    """Compute a label on a panel and rank it over the panel's members."""
    column = evaluate([label], panel, threads=threads).values[0]
    member = None if panel.member is None else panel.member.astype(np.bool_)
    return PreparedLabel.of(column, member, instruments=len(panel.instruments))


@dataclass(frozen=True, eq=False)
class _Batch:
    """The dear stages, for candidates that are computed together."""

    panel: TiledPanel
    label: PreparedLabel
    pool: Pool | None
    null_labels: Sequence[PreparedLabel]
    keep: Keep
    threads: int
    warmup: Warmup
    rows: slice | None

    def scored(self, alive: list[Screened], buffer: Floats) -> list[Screened]:
        found, columns = _values(alive, self.panel, self.warmup, self.threads, buffer)
        there = [place for place, column in enumerate(columns) if column is not None]
        values = [column for column in columns if column is not None]
        cheap = score_columns(values, self.label, measures="ic", threads=self.threads, rows=self.rows)
        kept: list[int] = []
        for place, daily in zip(there, cheap, strict=True):
            found[place] = replace(found[place], stage="valued", daily=daily)
            if self.keep(daily):
                kept.append(place)
            else:
                low = Summary.of(daily.ic)
                found[place] = _refused(
                    found[place], LOW_IC, f"mean IC {low.mean:.4f} on {low.days} days does not reach the thresholds"
                )
        survivors = [column for place, column in enumerate(columns) if place in set(kept) and column is not None]
        dear = score_columns(survivors, self.label, threads=self.threads, rows=self.rows)
        alike, nulls = self._alike(survivors), self._null_t(survivors)
        for at, place in enumerate(kept):
            found[place] = replace(
                found[place],
                stage="scored",
                daily=dear[at],
                alike=None if alike is None else alike[at],
                null_t=None if nulls is None else nulls[at],
            )
        return found

    def _null_t(self, columns: list[Floats]) -> Array | None:
        if not self.null_labels:
            return None
        days = self.rows or slice(None)
        labels = [label.unit_ranks() for label in self.null_labels]
        t = np.empty((len(columns), len(labels)))
        for place, column in enumerate(columns):
            ranks, known = PreparedLabel.of(column, self.label.universe).unit_ranks()
            for at, (label, labelled) in enumerate(labels):
                daily = np.einsum("tn,tn->t", ranks[days], label[days], dtype=np.float64)
                t[place, at] = Summary.of(np.where((known & labelled)[days], daily, np.nan)).t
        return t

    def _alike(self, columns: list[Floats]) -> Array | None:
        if self.pool is None:
            return None
        if not columns or not self.pool.names:
            return np.empty((len(columns), len(self.pool.names)))
        rows = UnitRows.of(columns, self.label.universe, threads=self.threads)
        return self.pool.correlations(rows, threads=self.threads)


def _refused(one: Screened, reason: str, detail: str) -> Screened:
    return replace(one, reason=reason, detail=detail)


def _failed(one: Screened, error: QlibLLMAlphaError) -> Screened:
    return _refused(one, error.reason if isinstance(error, ExpressionError) else FAILED, str(error))


def _read(candidate: Expression | str, read: Callable[[str], Expression]) -> Screened:
    if isinstance(candidate, Expression):
        return Screened(candidate, candidate, "parsed")
    try:
        return Screened(candidate, read(candidate), "parsed")
    except QlibLLMAlphaError as error:
        return _failed(Screened(candidate), error)


def _priced(one: Screened, names: int, days: int, limit: float | None) -> Screened:
    if one.expression is None:
        return one
    seconds = price(one.expression, names, days)
    if limit is not None and seconds > limit:
        detail = f"it would take {seconds:.3g} s of one core; at most {limit:.3g} s are allowed; shorten its windows"
        return _refused(replace(one, price=seconds), TOO_DEAR, detail)
    return replace(one, stage="priced", price=seconds)


def _probed(batch: list[Screened], corner: TiledPanel, warmup: Warmup) -> list[Screened]:
    """Compute candidates on the corner and refuse what shows there that it is of no use."""
    buffer = np.empty((len(batch), corner.tile_count, len(corner.days), LANES), dtype=np.float32)
    found, columns = _values(batch, corner, warmup, 1, buffer)
    member = np.ones(buffer.shape[1:], dtype=np.bool_) if corner.member is None else corner.member
    for place, column in enumerate(columns):
        expression = found[place].expression
        if column is None or expression is None:
            continue
        if expression.is_cross_sectional:
            # A cross-section of the corner says nothing about that of all: groups may hold one name each.
            found[place] = replace(found[place], stage="probed")
            continue
        there = np.isfinite(column) & member
        highest = np.max(column, axis=(0, 2), where=there, initial=-np.inf)
        lowest = np.min(column, axis=(0, 2), where=there, initial=np.inf)
        several = there.sum(axis=(0, 2)) > 1
        if _long_enough(found[place].expression, corner) and not there.any():
            found[place] = _refused(found[place], ALL_MISSING, "it has no finite value on a corner of the panel")
        elif several.sum() >= _ENOUGH_DAYS and not np.any(highest > lowest, where=several):
            found[place] = _refused(found[place], SAME_FOR_ALL, "it is the same for all instruments of each day")
        else:
            found[place] = replace(found[place], stage="probed")
    return found


def _long_enough(expression: Expression | None, corner: TiledPanel) -> bool:
    return expression is not None and (expression.lookback + expression.lookahead + _ENOUGH_DAYS <= len(corner.days))


def _values(
    batch: list[Screened], panel: TiledPanel, warmup: Warmup, threads: int, buffer: Floats
) -> tuple[list[Screened], list[Floats | None]]:
    """Compute candidates together; where that fails one by one, so that the bad ones are known by name."""
    expressions = [one.expression for one in batch if one.expression is not None]
    found = list(batch)
    if not expressions:
        return found, [None] * len(batch)
    try:
        values = evaluate(expressions, panel, warmup=warmup, threads=threads, out=buffer[: len(expressions)]).values
    except QlibLLMAlphaError as error:
        if len(batch) == 1:
            return [_failed(batch[0], error)], [None]
    else:
        return found, list(values)
    columns: list[Floats | None] = []
    for place, one in enumerate(batch):
        alone, column = _values([one], panel, warmup, threads, buffer[place : place + 1])
        found[place] = alone[0]
        columns.extend(column)
    return found, columns


def _corner(panel: TiledPanel, label: PreparedLabel) -> TiledPanel:
    """Return the tile with the most labels in the last days that have any, and those days."""
    labelled = np.flatnonzero(label.count)
    end = int(labelled[-1]) + 1 if len(labelled) else len(panel.days)
    begin = max(0, end - _CORNER_DAYS)
    by_tile = (label.ranks[begin:end] != 0).reshape(end - begin, -1, LANES).sum(axis=(0, 2))
    tile = int(np.argmax(by_tile))
    return panel.part(tile, tile + 1).window(begin, end)
