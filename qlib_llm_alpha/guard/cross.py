"""The same factors over a grid of market, period, cost and lag.

What a cell is and when a factor passes is said in :mod:`qlib_llm_alpha.evaluation.cross`; here formulas are computed on
the markets' bars. A cell uses no bar after its period's last day, each market keeps its own calendar, and names count
on the days on which they are members.

Not modelled: lots, price limits, fees by side, short-sale rules. A cell's cost is one number in basis points of the
value traded, so that markets compare; whether an order would have been filled is for the backtest to say.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.data.bars import open_panel, provider_fields
from qlib_llm_alpha.data.fingerprint import provider_fingerprint
from qlib_llm_alpha.engine.evaluate import Warmup, evaluate
from qlib_llm_alpha.engine.funnel import prepare_label
from qlib_llm_alpha.engine.panel import as_day
from qlib_llm_alpha.engine.tile_scoring import DailyScores, score_columns
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, PanelError, QlibLLMAlphaError, WallError
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.cross import (
    Cell,
    FactorDays,
    GridVerdict,
    MarketDays,
    Resampling,
    Stress,
    contrast,
    fill_cell,
    grid_verdicts,
    market_states,
    period_rows,
    side_trades,
)
from qlib_llm_alpha.evaluation.ledger import Trial
from qlib_llm_alpha.evaluation.statistics import hac_t, mean_of
from qlib_llm_alpha.evaluation.walls import Segment, Walls
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.library.formula_file import ReadFormula, read_formulas
from qlib_llm_alpha.report.cross_table import describe_cross

if TYPE_CHECKING:
    from qlib_llm_alpha.evaluation.ledger import TrialLedger

_log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Progress = Callable[[int, int], None]

MEMBERS: Final = "members of the day"
PROPOSER: Final = "guard cross"

_AT_ONCE: Final = 16


@dataclass(frozen=True)
class Period:
    """Days of the grid: a named segment, of one market where ``market`` names it, else of all."""

    segment: Segment
    market: str = ""


@dataclass(frozen=True)
class Grid:
    """What to cross a factor with.

    Parameters
    ----------
    periods : sequence of Period
        The first that the first market has is the reference. One market's periods share no day.
    lags : sequence of int
        Trading days from the close at which a factor is known to the close at which it is traded. Verdicts are taken
        at the first. Lag 1 is Qlib's label, ``Ref($close,-2)/Ref($close,-1)-1``.
    costs_bps : sequence of float
        Basis points of the value traded.
    alpha, agreement : float
        As for :func:`~qlib_llm_alpha.evaluation.cross.grid_verdicts`.
    resampling : Resampling
    """

    periods: Sequence[Period]
    lags: Sequence[int] = (1,)
    costs_bps: Sequence[float] = (0.0,)
    alpha: float = 0.05
    agreement: float = 0.75
    resampling: Resampling = field(default_factory=Resampling)

    def __post_init__(self) -> None:
        if not self.periods or not self.lags or not self.costs_bps:
            raise ConfigError(
                f"the grid has {len(self.periods)} periods, {len(self.lags)} lags and {len(self.costs_bps)} costs; "
                "expected at least one of each"
            )
        if min(self.lags) < 1 or len(set(self.lags)) < len(self.lags):
            raise ConfigError(f"lags are {list(self.lags)!r}; expected different trading days from 1 on, such as 1,2,5")
        if min(self.costs_bps) < 0 or len(set(self.costs_bps)) < len(self.costs_bps):
            raise ConfigError(f"costs are {list(self.costs_bps)!r}; expected different basis points from 0 on")

    def of_market(self, name: str) -> list[Segment]:
        """Return a market's periods, in the order given.

        Raises
        ------
        ConfigError
            None, two of one name, or two that share a day.
        """
        found = [period.segment for period in self.periods if period.market in ("", name)]
        if not found:
            raise ConfigError(f"market {name!r} has no period; expected at least one; give one without a market")
        for one, other in combinations(found, 2):
            if one.name == other.name or (one.start <= other.end and other.start <= one.end):
                raise ConfigError(
                    f"market {name!r}: period {one.name!r} ({one.start} to {one.end}) and {other.name!r} "
                    f"({other.start} to {other.end}) share their name or a day; expected neither: no day counts twice"
                )
        return found


@dataclass(frozen=True)
class MarketFolder:
    """A provider and one of its markets, under the name that tables show."""

    name: str
    provider: Path
    universe: str = "all"


@dataclass(frozen=True, eq=False)
class GridMarket:
    """A market of the grid.

    Parameters
    ----------
    name, universe, membership : str
        As tables show them.
    panel : TiledPanel
        Its members of the day count.
    fields : set of str, optional
        Fields it has, with their sigil; formulas of others are refused for this market. None: not known.
    provider : path, optional
        The folder it was opened from.
    """

    name: str
    panel: TiledPanel
    universe: str = "all"
    membership: str = MEMBERS
    fields: frozenset[str] | None = None
    provider: Path | None = None

    @cached_property
    def data(self) -> str:
        """What the ledger calls this data: the provider's fingerprint, or a hash of calendar, members and closes."""
        if self.provider is not None:
            return provider_fingerprint(self.provider)
        rows = len(self.panel.days)
        digest = hashlib.sha256(self.panel.member_digest(rows))
        digest.update(np.ascontiguousarray(self.panel.days).tobytes())
        for tile in range(self.panel.tile_count):
            digest.update(self.panel.digest("$close", tile, rows))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class CrossReport:
    """What a grid gave.

    Parameters
    ----------
    verdicts : tuple of GridVerdict
        One for each factor that has a value in some market.
    cells : tuple of Cell
        By factor, market, period, lag, cost.
    stress : tuple of Stress
        By factor, market, state; at the first lag.
    notes : tuple of str
        What a reader should know of the markets.
    refused : mapping of str to str
        Formulas without a verdict, and why.
    """

    verdicts: tuple[GridVerdict, ...]
    cells: tuple[Cell, ...]
    stress: tuple[Stress, ...]
    notes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> tuple[str, ...]:
        """Names of the factors that hold everywhere."""
        return tuple(verdict.factor for verdict in self.verdicts if verdict.passes)

    def table(self) -> pd.DataFrame:
        """Return the cells as a table, each with its factor's verdict."""
        words = {verdict.factor: verdict.verdict for verdict in self.verdicts}
        table: pd.DataFrame = pd.DataFrame([{**cell.to_dict(), "verdict": words[cell.factor]} for cell in self.cells])
        return table

    def describe(self, *, brief: bool = False) -> str:
        """Return tables for a terminal; ``brief`` leaves out cells and stress."""
        return describe_cross(
            self.verdicts, self.cells, self.stress, notes=self.notes, refused=self.refused, brief=brief
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "cells": [cell.to_dict() for cell in self.cells],
            "stress": [one.to_dict() for one in self.stress],
            "notes": list(self.notes),
            "refused": dict(self.refused),
        }


def lag_label(lag: int) -> str:
    """Return the label of a lag: the return from the close ``lag`` days later to the next close."""
    return f"Ref($close,-{lag + 1})/Ref($close,-{lag})-1"


def cross_validate(
    formulas: Sequence[ReadFormula],
    markets: Sequence[GridMarket],
    grid: Grid,
    *,
    warmup: Warmup = "strict",
    walls: Walls | None = None,
    ledger: TrialLedger | None = None,
    run: str = "",
    progress: Progress | None = None,
) -> CrossReport:
    """Evaluate formulas over a grid.

    Parameters
    ----------
    formulas : sequence of ReadFormula
    markets : sequence of GridMarket
        The first is the reference.
    grid : Grid
    warmup : {"strict", "qlib"}
        As in :func:`~qlib_llm_alpha.engine.evaluate.evaluate`.
    walls : Walls, optional
        Where a workflow's segments end. Periods may not reach confirm or sealed.
    ledger : TrialLedger, optional
        Every factor is recorded in it once for each market, with its daily rank IC at the first lag; with walls, so
        are reads of tune: one for each cell of a factor that reaches it, costs not counted.
    run : str
        Name of the run in the ledger.
    progress : callable, optional
        Called as ``progress(done, total)``; a step is a formula in a market.

    Returns
    -------
    CrossReport

    Raises
    ------
    WallError
        A period that reaches confirm or sealed; nothing was computed or recorded.
    ConfigError
        Markets or periods that make no grid.
    """
    names = [market.name for market in markets]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"markets are {names!r}; expected at least one, with different names")
    unknown = sorted({period.market for period in grid.periods} - {"", *names})
    if unknown:
        raise ConfigError(f"periods are of the markets {unknown!r}; expected some of {names!r}; correct the names")
    refuse_closed(grid, walls)
    good = [formula for formula in formulas if formula.expression is not None]
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(good) * len(markets))

    scored = [_Scored(market, good, grid, warmup, step) for market in markets]
    kept = [place for place in range(len(good)) if any(not one.refused[place] for one in scored)]
    refused = {one.name: one.refusal for one in formulas if one.expression is None}
    refused |= {good[place].name: scored[0].refused[place] for place in set(range(len(good))) - set(kept)}
    verdicts = grid_verdicts(
        [(good[place].name, _identity(good[place])) for place in kept],
        [one.market_days(kept, grid.lags[0]) for one in scored],
        alpha=grid.alpha,
        agreement=grid.agreement,
    )
    if ledger is not None:
        for one in scored:
            one.record(ledger, [good[place] for place in kept], kept, verdicts, walls, run)
    trials = None if ledger is None else ledger.count()
    cells: list[list[Cell]] = [[] for _ in kept]
    for one in scored:
        for position, cell in one.cells(kept, verdicts, trials):
            cells[position].append(cell)
    stress = [
        found
        for place, verdict in zip(kept, verdicts, strict=True)
        for one in scored
        for found in one.stress(place, verdict, trials)
    ]
    notes = tuple(note for one in scored for note in one.notes())
    return CrossReport(tuple(verdicts), tuple(chain.from_iterable(cells)), tuple(stress), notes, refused)


def refuse_closed(grid: Grid, walls: Walls | None) -> None:
    """Raise WallError for a period that reaches the first day of the confirm or the sealed wall, or a later one."""
    closed = None if walls is None else walls.confirm or walls.sealed
    if closed is None:
        return
    for period in grid.periods:
        if period.segment.end >= closed.start:
            raise WallError(
                f"period {period.segment.name!r} runs from {period.segment.start} to {period.segment.end} and reaches "
                f"the segment {closed.name!r}, {closed.start} to {closed.end}; expected it to end before; end the "
                "period earlier: those days are opened by a workflow's records alone"
            )


def open_markets(folders: Sequence[MarketFolder], grid: Grid) -> list[GridMarket]:
    """Open the markets of a grid; nothing after the last day of a market's periods is read."""
    found = []
    for folder in folders:
        periods = grid.of_market(folder.name)
        first, last = min(one.start for one in periods), max(one.end for one in periods)
        panel = open_panel(folder.provider, folder.universe, start=first, end=last)
        fields = frozenset(provider_fields(folder.provider))
        found.append(GridMarket(folder.name, panel, folder.universe, MEMBERS, fields, folder.provider))
    return found


def cross_validate_folders(
    file: str,
    folders: Sequence[MarketFolder],
    grid: Grid,
    *,
    config: Path | None = None,
    ledger: TrialLedger | None = None,
    run: str = "",
    progress: Progress | None = None,
) -> CrossReport:
    """Evaluate the formulas of a file or a factor set over providers; parameters as for :func:`cross_validate`.

    ``config`` is a workflow whose segments are the walls; walls are checked before a bar is read.
    """
    walls = None if config is None else workflow_walls(config)
    refuse_closed(grid, walls)
    fields = {name for folder in folders for name in provider_fields(folder.provider)}
    formulas, warmup = read_formulas(file, fields)
    markets = open_markets(folders, grid)
    return cross_validate(
        formulas, markets, grid, warmup=warmup, walls=walls, ledger=ledger, run=run, progress=progress
    )


def workflow_walls(config: Path) -> Walls:
    """Read the segments of a workflow's dataset, as ``qrun`` does.

    Raises
    ------
    ConfigError
        No workflow, or segments that cannot be walls.
    """
    from qlib_llm_alpha.guard.workflow_file import read_workflow  # it imports Qlib, which a grid does not need

    segments = read_workflow(config).segments
    return Walls.from_segments({name: _closed(ends) for name, ends in segments.items()})


def parse_market(text: str) -> MarketFolder:
    """Read ``NAME=DIR:UNIVERSE``; without a universe it is ``all``."""
    name, given, rest = text.partition("=")
    folder, colon, universe = rest.rpartition(":")
    # A colon inside the path, such as a drive's, is followed by a separator.
    if not colon or "/" in universe or "\\" in universe:
        folder, universe = rest, "all"
    if not (name and given and folder and universe):
        raise ConfigError(f"market {text!r}; expected NAME=DIR:UNIVERSE; write for example cn=DATA/cn:csi300")
    return MarketFolder(name, Path(folder), universe)


def parse_period(text: str) -> Period:
    """Read ``NAME=START:END`` or ``MARKET/NAME=START:END``."""
    label, given, span = text.partition("=")
    start, colon, end = span.partition(":")
    market, slash, name = label.rpartition("/")
    if not (given and colon and name and (market or not slash)):
        raise ConfigError(
            f"period {text!r}; expected NAME=START:END or MARKET/NAME=START:END; write for example "
            "early=2018-07-02:2019-12-31"
        )
    try:
        return Period(Segment(name, as_day(start), as_day(end)), market)
    except PanelError as error:
        raise ConfigError(f"period {text!r}: expected two dates such as 2018-07-02:2019-12-31; {error}") from error


class _Scored:
    """All formulas on one market, day by day."""

    def __init__(
        self,
        market: GridMarket,
        formulas: Sequence[ReadFormula],
        grid: Grid,
        warmup: Warmup,
        step: Callable[[int], None],
    ) -> None:
        self.market, self.grid, self.panel = market, grid, market.panel
        self.segments = grid.of_market(market.name)
        self.rows = {
            (lag, segment.name): period_rows(self.panel.days, segment, lag + 1)
            for lag in grid.lags
            for segment in self.segments
        }
        self.refused = [_missing(formula, market) for formula in formulas]
        self.daily: list[dict[int, FactorDays]] = [{} for _ in formulas]
        labels = {lag: prepare_label(parse(lag_label(lag), allow_future=True), self.panel) for lag in grid.lags}
        for start in range(0, len(formulas), _AT_ONCE):
            places = [place for place in range(start, min(start + _AT_ONCE, len(formulas))) if not self.refused[place]]
            for place, column in self._values(places, [formulas[place] for place in places], warmup):
                self.daily[place] = _daily(column, labels)
                if np.isnan(self.daily[place][grid.lags[0]].rank_ic).all():
                    self.refused[place] = f"no day in {market.name!r} on which enough members have a value"
            step(min(_AT_ONCE, len(formulas) - start))
        states = market_states(self._dense("$close"), self._members())
        self.states = {name: state for name, state in states.items() if np.isfinite(state).any()}

    def market_days(self, kept: Sequence[int], lag: int) -> MarketDays:
        nothing = np.full(len(self.panel.days), np.nan)
        series = [nothing if self.refused[place] else self.daily[place][lag].rank_ic for place in kept]
        rows = {segment.name: self.rows[lag, segment.name] for segment in self.segments}
        some = {name: mask for name, mask in rows.items() if mask.any()}
        if not some:
            raise ConfigError(
                f"market {self.market.name!r} has no day in its periods {list(rows)!r} (bars {self.panel.days[0]} to "
                f"{self.panel.days[-1]}); expected some; move the dates or import more bars"
            )
        return MarketDays(
            self.market.name, self.panel.days, np.array(series).reshape(len(kept), len(self.panel.days)), some
        )

    def cells(
        self, kept: Sequence[int], verdicts: Sequence[GridVerdict], trials: int | None
    ) -> Iterator[tuple[int, Cell]]:
        """Yield cells with the position of their factor, period by period: what is drawn for one serves all factors."""
        for segment in self.segments:
            for lag in self.grid.lags:
                rows = self.rows[lag, segment.name]
                bases = [self.basis(lag, rows, segment, cost, trials) for cost in self.grid.costs_bps]
                for position, (place, verdict) in enumerate(zip(kept, verdicts, strict=True)):
                    why = self.refused[place] or ("" if rows.any() else "no trading day of this market in the period")
                    for basis in bases:
                        cell = Cell(
                            verdict.factor, verdict.factor_id, self.market.name, segment.name, lag, verdict.sign, basis
                        )
                        if why:
                            yield position, replace(cell, refused=why)
                        else:
                            yield position, fill_cell(cell, self.daily[place][lag], rows, self.grid.resampling)

    def stress(self, place: int, verdict: GridVerdict, trials: int | None) -> list[Stress]:
        if self.refused[place]:
            return []
        lag = self.grid.lags[0]
        rows = self.all_rows(lag)
        basis = self.basis(lag, rows, None, None, trials)
        series = np.where(rows, self.daily[place][lag].rank_ic, np.nan)
        return [
            Stress(verdict.factor, verdict.factor_id, self.market.name, name, contrast(series, state), basis)
            for name, state in self.states.items()
        ]

    def all_rows(self, lag: int) -> Mask:
        return np.asarray(np.any([self.rows[lag, segment.name] for segment in self.segments], axis=0))

    def basis(self, lag: int, rows: Mask, segment: Segment | None, cost: float | None, trials: int | None) -> Basis:
        """State what a figure is of; dates are of the days that count, those of the period where none does."""
        days = self.panel.days[rows]
        whole = (self.panel.days[0], self.panel.days[-1]) if segment is None else (segment.start, segment.end)
        first, last = (days[0], days[-1]) if len(days) else whole
        return Basis(
            label=lag_label(lag),
            horizon=lag + 1,
            ic_kind="rank_ic",
            universe=f"{self.market.name}:{self.market.universe}",
            membership=self.market.membership,
            start=str(first),
            end=str(last),
            cost_bps=cost,
            trials=trials,
        )

    def record(
        self,
        ledger: TrialLedger,
        formulas: Sequence[ReadFormula],
        kept: Sequence[int],
        verdicts: Sequence[GridVerdict],
        walls: Walls | None,
        run: str,
    ) -> None:
        """Write the factors that have a value in this market into the ledger, and what they read of tune."""
        lag = self.grid.lags[0]
        rows = self.all_rows(lag)
        here = [position for position, place in enumerate(kept) if not self.refused[place]]
        if not here:
            return
        series = np.column_stack([self.daily[kept[position]][lag].rank_ic[rows] for position in here])
        trials = [
            Trial(
                factor_id=verdicts[position].factor_id,
                expression=formulas[position].text,
                proposer=PROPOSER,
                reason=verdicts[position].verdict,
                ic=mean_of(series[:, column]),
                t=hac_t(series[:, column]),
            )
            for column, position in enumerate(here)
        ]
        # The ledger knows a trial by its universe and data, whatever the grid calls the market.
        basis = replace(self.basis(lag, rows, None, None, None), universe=self.market.universe)
        data = self.market.data
        ledger.record(trials, series, self.panel.days[rows], basis=basis, data=data, run=run)
        if walls is None or walls.tune is None:
            return
        tune = walls.tune.mask(self.panel.days)
        reads = sum(bool((mask & tune).any()) for mask in self.rows.values())
        if reads:
            ledger.record_tune_reads({trial.factor_id: reads for trial in trials}, basis=basis, data=data, run=run)

    def notes(self) -> list[str]:
        """Say who is in the market and who left it, which is what survivorship shows in."""
        member = self._members()
        rows = self.all_rows(self.grid.lags[0])
        first, last = np.flatnonzero(rows)[[0, -1]]
        name = f"{self.market.name} ({self.market.universe}, {self.market.membership})"
        if member is None:
            return [f"{name}: the same {len(self.panel.instruments)} instruments on all days; who left is not known"]
        ever = member[first : last + 1].any(axis=0)
        left = ever & ~member[last]
        text = (
            f"{name}: {member[first].sum()} members on {self.panel.days[first]}, {member[last].sum()} on "
            f"{self.panel.days[last]}; of {ever.sum()} in between {left.sum()} left"
        )
        return [text if left.any() else f"{text}: a list of survivors, its returns are too high"]

    def _values(
        self, places: Sequence[int], formulas: Sequence[ReadFormula], warmup: Warmup
    ) -> list[tuple[int, NDArray[np.float32]]]:
        """Compute formulas together; where that fails one by one, so that only the bad ones are lost."""
        expressions = [formula.expression for formula in formulas if formula.expression is not None]
        if not expressions:
            return []
        try:
            columns = evaluate(expressions, self.panel, warmup=warmup).values
        except QlibLLMAlphaError as error:
            if len(places) == 1:
                self.refused[places[0]] = str(error)
                return []
            pairs = zip(places, formulas, strict=True)
            return [found for place, formula in pairs for found in self._values([place], [formula], warmup)]
        return list(zip(places, columns, strict=True))

    def _dense(self, name: str) -> Array:
        return self.panel.untiled(self.panel.column(name).values).astype(np.float64)

    def _members(self) -> Mask | None:
        return None if self.panel.member is None else self.panel.untiled(self.panel.member)


def _closed(ends: Any) -> Any:
    """Give a segment without an end, which for Qlib reaches to the calendar's last day, a day after all of them."""
    return (ends[0], "2262-01-01") if isinstance(ends, Sequence) and len(ends) == 2 and ends[1] is None else ends


def _daily(column: NDArray[np.float32], labels: Mapping[int, Any]) -> dict[int, FactorDays]:
    """Score a column at each lag; what is held at the close of a day does not depend on the lag."""
    first = next(iter(labels.values()))
    long = score_columns([column], first, measures=("turnover",))[0]
    short = score_columns([-column], first, measures=("turnover",))[0]
    traded = side_trades(_there(long.turnover), _there(short.turnover))
    found = {}
    for lag, label in labels.items():
        scores: DailyScores = score_columns([column], label, measures=("rank_ic", "spread"))[0]
        found[lag] = FactorDays(_there(scores.rank_ic), _there(scores.spread), traded, long.coverage)
    return found


def _there(series: Array | None) -> Array:
    if series is None:
        raise PanelError("a measure that was asked for is missing; expected (T,) values; this is a fault of ours")
    return series


def _identity(formula: ReadFormula) -> str:
    return formula.expression.id if isinstance(formula.expression, Expression) else ""


def _missing(formula: ReadFormula, market: GridMarket) -> str:
    """Say which fields of a formula a market lacks; empty where none is known to be missing."""
    if formula.expression is None or market.fields is None:
        return ""
    missing = [
        name for name in formula.expression.fields if not name.startswith("$$") and name.lower() not in market.fields
    ]
    return f"market {market.name!r} has no {', '.join(missing)}" if missing else ""
