"""The same factors over a grid of markets and periods: cells, sign agreement, decay, stress, and a verdict on each.

A grid is read from daily series, one set for each market. A *cell* is one market in one period. The *reference* cell,
the first market's first period, is where a factor may have been found: it gives the sign that the others have to show,
and a factor cannot pass on its strength alone (:func:`grid_verdicts` states the rule).

Timing: a rank IC dated ``t`` is known when its label is, ``horizon`` days later; :func:`period_rows` leaves out the
days of a period whose labels reach beyond its end. Market states (:func:`market_states`) are known at the close of
their day.

NaN rule: as in :mod:`qlib_llm_alpha.evaluation.statistics`; a cell with fewer than :data:`FEWEST_DAYS` days with a
rank IC has no t and holds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.engine.panel import Days, as_days
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.bootstrap import MIN_DAYS, stationary_bootstrap
from qlib_llm_alpha.evaluation.many_trials import benjamini_hochberg, p_of_t
from qlib_llm_alpha.evaluation.signal import net_returns
from qlib_llm_alpha.evaluation.statistics import (
    DAYS_PER_YEAR,
    annualised,
    finite_or_none,
    hac_standard_error,
    hac_t,
    icir,
    mean_of,
)
from qlib_llm_alpha.evaluation.walls import Segment

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Outcome = Literal[
    "robust",
    "unsteady",
    "one market only",
    "some markets only",
    "one period only",
    "some periods only",
    "single cells only",
    "nothing",
    "untested",
]

FEWEST_DAYS: Final = 20
"""Days with a rank IC below which a cell is no evidence."""

_VOLATILITY_DAYS, _BEAR_DAYS = 20, 120
_MEDIAN_DAYS, _MEDIAN_FEWEST = 252, 60
_LIMIT_MOVE, _LIMIT_SHARE = 0.095, 0.02
_ENTRY: Final = 2.0
"""Value traded to take up both sides, in units of one side's capital."""


@dataclass(frozen=True)
class Slope:
    """Slope of a least-squares line, its HAC standard error, and their ratio."""

    slope: float
    error: float
    t: float


@dataclass(frozen=True)
class Contrast:
    """A daily series inside and outside a subset of days.

    ``difference`` is inside less outside, ``t_difference`` its HAC t; ``t_inside`` and ``t_outside`` are HAC t values
    of days taken one after the other, though they were not neighbours.
    """

    days_inside: int
    days_outside: int
    inside: float
    outside: float
    t_inside: float
    t_outside: float
    difference: float
    t_difference: float


@dataclass(frozen=True)
class Stress:
    """The rank IC of one factor in one market, inside and outside a state of the market, over all its periods."""

    factor: str
    factor_id: str
    market: str
    state: str
    rank_ic: Contrast
    basis: Basis

    def to_dict(self) -> dict[str, object]:
        """Return one flat row for a table; NaN as None."""
        key = {"factor": self.factor, "factor_id": self.factor_id, "market": self.market, "state": self.state}
        figures = {name: finite_or_none(value) for name, value in asdict(self.rank_ic).items()}
        return key | figures | self.basis.to_dict() | {"basis": self.basis.sentence}


@dataclass(frozen=True)
class GridVerdict:
    """What the grid says of one factor.

    Parameters
    ----------
    factor, factor_id : str
    verdict : str
    passes : bool
        True for ``robust`` alone.
    sign : int
        Of the mean rank IC in the reference cell: 1, -1, or 0 where it has none.
    agreeing, cells : int
        Cells with that sign, and cells with a rank IC; the reference cell is not counted in either.
    agreement, sign_p : float
        ``agreeing / cells``, and the chance of at least as many by tossing a coin for each.
    p, q : float
        Of "no effect of this sign in some market"; ``q`` after Benjamini and Hochberg over the factors.
    weakest : str
        Where ``p`` comes from: a market, and the period left out.
    markets, periods, single : tuple of str
        Markets, periods and cells where the factor holds by itself, in either direction, after correction.
    decay : mapping of market to Slope
        Change of the rank IC a year, in the direction of ``sign``: below 0, it fades.
    detail : str
        A sentence.
    """

    factor: str
    factor_id: str
    verdict: Outcome
    passes: bool
    sign: int
    agreeing: int
    cells: int
    agreement: float
    sign_p: float
    p: float
    q: float
    weakest: str
    markets: tuple[str, ...] = ()
    periods: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    decay: Mapping[str, Slope] = field(default_factory=dict)
    detail: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON: NaN as None."""
        plain: dict[str, object] = {name: finite_or_none(value) for name, value in asdict(self).items()}
        plain["decay"] = {
            market: {name: finite_or_none(value) for name, value in asdict(slope).items()}
            for market, slope in self.decay.items()
        }
        return plain


@dataclass(frozen=True)
class Cell:
    """One factor in one market, one period, at one lag and one cost.

    Parameters
    ----------
    factor, factor_id, market, period : str
    lag : int
        Trading days from the close at which the factor is known to the close at which it is traded.
    sign : int
        Direction in which the sides are held: the sign of the reference cell.
    days : int
        Days with a rank IC.
    coverage : float
        Mean share of the members that have a value.
    rank_ic, t, icir : float
        Mean of the daily rank IC, its HAC t, and mean over deviation of a day.
    rank_ic_low, rank_ic_high : float
        Block-bootstrap interval of that mean.
    traded : float
        Mean value traded a day, in units of one side's capital (:func:`side_trades`).
    gross, net : float
        Mean daily return of the top fifth less the bottom fifth, before and after ``traded x cost``.
    gross_annual, net_annual, sharpe : float
        Sums of a year of 252 days, and annual net mean over deviation; no risk-free rate, as both sides finance each
        other.
    net_annual_low, net_annual_high : float
        Block-bootstrap interval of ``net_annual``.
    basis : Basis
        What these figures are of.
    refused : str
        Why there are none; empty where there are.
    """

    factor: str
    factor_id: str
    market: str
    period: str
    lag: int
    sign: int
    basis: Basis
    days: int = 0
    coverage: float = math.nan
    rank_ic: float = math.nan
    t: float = math.nan
    icir: float = math.nan
    rank_ic_low: float = math.nan
    rank_ic_high: float = math.nan
    traded: float = math.nan
    gross: float = math.nan
    net: float = math.nan
    gross_annual: float = math.nan
    net_annual: float = math.nan
    net_annual_low: float = math.nan
    net_annual_high: float = math.nan
    sharpe: float = math.nan
    refused: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return one flat row for a table: the figures, then what they are of; NaN as None."""
        figures = {name: finite_or_none(getattr(self, name)) for name in self.__dataclass_fields__ if name != "basis"}
        return figures | self.basis.to_dict() | {"basis": self.basis.sentence}


@dataclass(frozen=True)
class Resampling:
    """How block-bootstrap intervals are drawn: level, mean days in a block, draws and seed."""

    level: float = 0.95
    block: int = 10
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0 or self.draws < 1:
            raise ConfigError(
                f"resampling has seed {self.seed!r} and {self.draws!r} draws; expected no negative seed and at least "
                "one draw; 0 and 1000 are usual"
            )


@dataclass(frozen=True, eq=False)
class MarketDays:
    """Daily rank ICs of all factors in one market.

    Parameters
    ----------
    name : str
    days : array, (T,) datetime64[D]
    rank_ic : array, (K, T)
        One row for each factor, in an order that all markets share; NaN rows where a factor has no value here.
    periods : mapping of name to array, (T,) bool
        Days that count, purged (:func:`period_rows`), without a shared day. The first market's first is the reference.
    """

    name: str
    days: Days
    rank_ic: Array
    periods: Mapping[str, Mask]

    def __post_init__(self) -> None:
        if self.rank_ic.ndim != 2 or self.rank_ic.shape[1] != len(self.days):
            raise PanelError(
                f"market {self.name!r}: rank_ic has shape {self.rank_ic.shape}; expected (factors, {len(self.days)} "
                "days); align them"
            )
        if not self.periods:
            raise ConfigError(f"market {self.name!r} has no period; expected at least one; name one with --period")
        if (np.sum(list(self.periods.values()), axis=0) > 1).any():
            raise ConfigError(
                f"market {self.name!r}: the periods {list(self.periods)!r} share days; expected none to be counted "
                "twice; move the dates"
            )


def period_rows(days: Days, period: Segment, horizon: int) -> Mask:
    """Mark the days of a period whose labels are known by its last day, (T,) bool.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
        The market's trading days.
    period : Segment
    horizon : int
        Trading days after which a label is known.
    """
    if horizon < 1:
        raise ConfigError(f"horizon is {horizon!r}; expected at least 1 trading day; Qlib's default label has 2")
    calendar = as_days(days)
    end = int(np.searchsorted(calendar, period.end, side="right"))
    return np.asarray(period.mask(calendar) & (np.arange(len(calendar)) < end - horizon))


def side_trades(long: Array, short: Array) -> Array:
    """Return the value traded each day to hold both sides, in units of one side's capital, (T,).

    Parameters
    ----------
    long, short : array, (T,)
        Share of a side's names that are new that day; NaN where it was not held the day before: it is then entered.

    Returns
    -------
    array, (T,)
        ``2 (long + short)``: what is new is bought and what left is sold, on each side. A side that is entered costs
        its capital once. Trades that set unchanged names back to equal weights are not counted.
    """
    entered = np.isnan(long) | np.isnan(short)
    return np.where(entered, _ENTRY, 2.0 * (np.nan_to_num(long) + np.nan_to_num(short)))


@dataclass(frozen=True, eq=False)
class FactorDays:
    """One factor in one market at one lag, day by day; arrays are (T,).

    Parameters
    ----------
    rank_ic : array
    spread : array
        Mean label of the top fifth less that of the bottom fifth, not turned.
    traded : array
        See :func:`side_trades`.
    coverage : array
        Share of the members that have a value.
    """

    rank_ic: Array
    spread: Array
    traded: Array
    coverage: Array


def fill_cell(cell: Cell, daily: FactorDays, rows: Mask, resampling: Resampling) -> Cell:
    """Return a cell with its figures.

    Parameters
    ----------
    cell : Cell
        Says which it is, its ``sign`` and, in its basis, its cost; without a cost, none is taken off.
    daily : FactorDays
    rows : array, (T,) bool
        The days of the period, purged.
    resampling : Resampling
    """
    rank_ic = daily.rank_ic[rows]
    gross = cell.sign * daily.spread[rows] if cell.sign else np.full(int(rows.sum()), np.nan)
    net = net_returns(gross, daily.traded[rows], cell.basis.cost_bps or 0.0)
    year = annualised(net)
    low, high = block_interval(rank_ic, resampling)
    net_low, net_high = block_interval(net, resampling)
    held = ~np.isnan(gross)
    return replace(
        cell,
        days=int(np.isfinite(rank_ic).sum()),
        coverage=mean_of(daily.coverage[rows]),
        rank_ic=mean_of(rank_ic),
        t=_t(rank_ic),
        icir=icir(rank_ic),
        rank_ic_low=low,
        rank_ic_high=high,
        traded=mean_of(np.where(held, daily.traded[rows], np.nan)),
        gross=mean_of(gross),
        net=mean_of(net),
        gross_annual=annualised(gross).mean,
        net_annual=year.mean,
        net_annual_low=net_low * DAYS_PER_YEAR,
        net_annual_high=net_high * DAYS_PER_YEAR,
        sharpe=year.ratio,
    )


def block_interval(series: Array, resampling: Resampling) -> tuple[float, float]:
    """Return a block-bootstrap interval of the mean of a daily series, NaN left out.

    The numbers of :func:`~qlib_llm_alpha.evaluation.bootstrap.bootstrap_interval` with a fixed block, several times
    faster where many series of one length are asked for: the days drawn are kept.
    """
    values = series[~np.isnan(series)]
    if len(values) < MIN_DAYS or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return math.nan, math.nan
    rows = _samples(len(values), float(resampling.block), resampling.draws, resampling.seed)
    tail = (1.0 - resampling.level) / 2.0
    low, high = np.quantile(values[rows].mean(axis=1), [tail, 1.0 - tail])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _samples(days: int, block: float, draws: int, seed: int) -> NDArray[np.intp]:
    return np.concatenate(list(stationary_bootstrap(days, block, draws, seed)))


def hac_slope(series: Array, regressor: Array) -> Slope:
    """Return the slope of a least-squares line with intercept, with its HAC error.

    Parameters
    ----------
    series, regressor : array, (T,)
        Days on which either is NaN are left out, the remaining ones taken as consecutive.

    Returns
    -------
    Slope
        NaN with fewer than three days or a regressor that never moves. With a regressor of 0 and 1 the slope is the
        difference of two means.

    References
    ----------
    Newey and West (1987); bandwidth and kernel as in
    :func:`~qlib_llm_alpha.evaluation.statistics.hac_standard_error`.
    """
    known = ~(np.isnan(series) | np.isnan(regressor))
    values, moves = series[known], regressor[known]
    nothing = Slope(math.nan, math.nan, math.nan)
    if len(values) < 3 or np.ptp(moves) == 0:
        return nothing
    centred = moves - moves.mean()
    square = float(centred @ centred)
    slope = float(centred @ values) / square
    # The scores add up to zero, so the error of their mean is that of the slope up to the scale.
    scores = centred * (values - values.mean() - slope * centred)
    error = hac_standard_error(scores) * len(values) / square
    return Slope(slope, error, slope / error if error > 0 else math.nan)


def decay_slope(rank_ic: Array, days: Days, rows: Mask) -> Slope:
    """Return the change of a daily rank IC a year, over the marked days."""
    years = (as_days(days) - as_days(days)[0]).astype(np.float64) / 365.25
    return hac_slope(np.where(rows, rank_ic, np.nan), years)


def contrast(series: Array, state: Array) -> Contrast:
    """Compare a daily series inside and outside a state.

    Parameters
    ----------
    series : array, (T,)
    state : array, (T,)
        1 inside, 0 outside, NaN where unknown: such days are left out. Known at the close of its day.
    """
    inside, outside = series[state == 1], series[state == 0]
    slope = hac_slope(series, state)
    return Contrast(
        days_inside=int(np.isfinite(inside).sum()),
        days_outside=int(np.isfinite(outside).sum()),
        inside=mean_of(inside),
        outside=mean_of(outside),
        t_inside=hac_t(inside),
        t_outside=hac_t(outside),
        difference=slope.slope,
        t_difference=slope.t,
    )


def market_states(close: Array, member: Mask | None = None) -> dict[str, Array]:
    """Describe each day by what is known at its close.

    Parameters
    ----------
    close : array, (T, N)
        Adjusted closes, NaN where there is no bar.
    member : array, (T, N) bool, optional
        The universe of each day; None: all.

    Returns
    -------
    dict of str to array, (T,)
        1 on days of the state, 0 on others, NaN while too little history is known. ``high_volatility``: the 20-day
        deviation of the members' equal-weighted return is above its median of the last 252 days (60 at least).
        ``bear``: that return, compounded over 120 days, is below 0. ``limit_moves``: at least 2 percent of the members
        closed 9.5 percent or more from the close before.

    Notes
    -----
    A day's members are weighted equally among those with a close on that day and the trading day before.
    """
    change = np.full(close.shape, np.nan)
    change[1:] = close[1:] / close[:-1] - 1.0
    if member is not None:
        change[~member] = np.nan
    known = np.isfinite(change)
    count = known.sum(axis=1)
    moved = np.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0)
    some = count > 0
    mean = np.divide(moved.sum(axis=1), count, out=np.full(len(close), np.nan), where=some)
    large = (np.abs(moved) >= _LIMIT_MOVE).sum(axis=1)
    returns = pd.Series(mean)
    volatility = returns.rolling(_VOLATILITY_DAYS).std()
    median = volatility.rolling(_MEDIAN_DAYS, min_periods=_MEDIAN_FEWEST).median()
    trend = np.log1p(returns).rolling(_BEAR_DAYS).sum()
    return {
        "high_volatility": _state(volatility > median, volatility.notna() & median.notna()),
        "bear": _state(trend < 0, trend.notna()),
        "limit_moves": _state(large >= _LIMIT_SHARE * count, some),
    }


def grid_verdicts(
    factors: Sequence[tuple[str, str]],
    markets: Sequence[MarketDays],
    *,
    alpha: float = 0.05,
    agreement: float = 0.75,
) -> list[GridVerdict]:
    """Judge factors over a grid.

    Parameters
    ----------
    factors : sequence of (name, id), (K,)
    markets : sequence of MarketDays
        The first one's first period is the reference cell.
    alpha : float
        Level after correction for the number of factors.
    agreement : float
        Least share of the other cells that show the reference cell's sign.

    Returns
    -------
    list of GridVerdict

    Notes
    -----
    A factor **passes** (``robust``) when all of these are so:

    1. In every market, whichever one period is left out, the mean rank IC over the other periods has the sign of the
       reference cell, and differs from 0 by a one-sided HAC t test. A market with a single period is tested on that
       one. ``p`` is the largest p of all markets and all periods left out: the null is "no effect in some market, but
       for one period", and a test by the largest p has at most its nominal level (Berger 1982).
    2. ``p`` stays at most ``alpha`` after Benjamini and Hochberg (1995) over the factors.
    3. Of the cells other than the reference, at least a share ``agreement`` shows its sign.

    Since the reference cell is left out in one of the tests, or another market is asked, a factor without effect that
    was picked for its figures in that cell, among however many, passes with probability ``alpha`` at most, as far as
    the HAC t keeps its level; with several markets the same holds for one picked on all of the first market. It does
    not hold for one picked by looking at the other cells, nor if the markets' chance moves together. A grid of a
    single cell is ``untested``.

    References: Berger (1982), "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24, for the
    largest p; :func:`~qlib_llm_alpha.evaluation.many_trials.benjamini_hochberg` for the correction.

    The other verdicts say where something holds, by two-sided tests: ``one market only``, ``some markets only`` (there
    whichever period is left out), ``one period only``, ``some periods only`` (in every market, with one sign),
    ``single cells only``, ``nothing``. ``unsteady`` holds in every market, but with changing signs, too few agreeing
    cells, or not after all corrections. Each of these families is corrected over the factors and the places together.
    """
    if not 0 < alpha < 1 or not 0 <= agreement <= 1:
        raise ConfigError(
            f"alpha is {alpha!r} and agreement {agreement!r}; expected a level between 0 and 1, such as 0.05, and a "
            "share from 0 to 1, such as 0.75"
        )
    for market in markets:
        if len(market.rank_ic) != len(factors):
            raise PanelError(
                f"market {market.name!r} has {len(market.rank_ic)} factors; expected {len(factors)}; align them"
            )
    if not factors:
        return []
    evidence = [_Evidence(markets, place) for place in range(len(factors))]
    q = benjamini_hochberg(np.array([one.p for one in evidence])).q_values
    held = _Held.of(evidence, alpha)
    return [
        _verdict(name, identity, one, float(q[place]), held, place, alpha, agreement)
        for place, ((name, identity), one) in enumerate(zip(factors, evidence, strict=True))
    ]


class _Evidence:
    """The tests of one factor."""

    def __init__(self, markets: Sequence[MarketDays], place: int) -> None:
        self.names = [market.name for market in markets]
        self.cell_t: dict[tuple[str, str], float] = {}
        self.cell_mean: dict[tuple[str, str], float] = {}
        self.without_t: dict[str, dict[str, float]] = {}
        self.decay: dict[str, Slope] = {}
        for market in markets:
            series = market.rank_ic[place]
            rows = np.any(list(market.periods.values()), axis=0)
            for period, mask in market.periods.items():
                self.cell_t[market.name, period] = _t(series[mask])
                self.cell_mean[market.name, period] = mean_of(series[mask])
            several = len(market.periods) > 1
            left_out = {period: rows & ~mask for period, mask in market.periods.items()} if several else {"": rows}
            self.without_t[market.name] = {period: _t(series[kept]) for period, kept in left_out.items()}
            self.decay[market.name] = decay_slope(series, market.days, rows)
        self.reference = next(iter(self.cell_t))
        self.sign = _sign(self.cell_mean[self.reference])
        self.decay = {name: _turned(slope, self.sign or 1) for name, slope in self.decay.items()}
        tests = {
            (market, period): _upper(self.sign * t) if self.sign else 1.0
            for market, found in self.without_t.items()
            for period, t in found.items()
        }
        where, left = max(tests, key=lambda key: tests[key])
        self.p = tests[where, left]
        self.weakest = f"{where} without {left}" if left else where
        others = [mean for key, mean in self.cell_mean.items() if key != self.reference and not math.isnan(mean)]
        self.cells = len(others)
        self.agreeing = sum(_sign(mean) == self.sign for mean in others) if self.sign else 0

    def market(self, name: str) -> tuple[float, int]:
        """Return the two-sided p and the sign of a market, whichever period is left out."""
        return _common(list(self.without_t[name].values()))

    def period(self, name: str) -> tuple[float, int]:
        """Return the two-sided p and the sign of a period, in every market that has it."""
        return _common([t for (_, period), t in self.cell_t.items() if period == name])

    @property
    def periods(self) -> list[str]:
        """Periods that all markets have, where there are several."""
        everywhere = [
            period
            for period in dict.fromkeys(period for _, period in self.cell_t)
            if all((market, period) in self.cell_t for market in self.names)
        ]
        return everywhere if len({period for _, period in self.cell_t}) > 1 else []


@dataclass(frozen=True)
class _Held:
    """Where each factor holds by itself, after correction over factors and places: name of the place to sign."""

    markets: list[dict[str, int]]
    periods: list[dict[str, int]]
    cells: list[dict[str, int]]

    @classmethod
    def of(cls, evidence: Sequence[_Evidence], alpha: float) -> _Held:
        first = evidence[0]
        return cls(
            _held([{name: one.market(name) for name in first.names} for one in evidence], alpha),
            _held([{name: one.period(name) for name in first.periods} for one in evidence], alpha),
            _held(
                [{"/".join(key): (_two_sided(t), _sign(t)) for key, t in one.cell_t.items()} for one in evidence], alpha
            ),
        )


def _held(tests: Sequence[Mapping[str, tuple[float, int]]], alpha: float) -> list[dict[str, int]]:
    p = np.array([[value for value, _ in found.values()] for found in tests])
    q = benjamini_hochberg(p.ravel()).q_values.reshape(p.shape)
    return [
        {name: sign for (name, (_, sign)), value in zip(found.items(), row, strict=True) if value <= alpha}
        for found, row in zip(tests, q, strict=True)
    ]


def _verdict(
    name: str, identity: str, one: _Evidence, q: float, held: _Held, place: int, alpha: float, agreement: float
) -> GridVerdict:
    markets, periods, cells = held.markets[place], held.periods[place], held.cells[place]
    share = one.agreeing / one.cells if one.cells else math.nan
    verdict: Outcome
    if not one.cells:
        verdict, detail = "untested", "the grid has one cell with values; nothing to compare it with"
    elif q <= alpha and share >= agreement:
        verdict = "robust"
        detail = f"holds in every market without any one period, q {q:.3g}, sign in {one.agreeing} of {one.cells} cells"
    elif len(markets) == len(one.names) or len(set(markets.values())) > 1:
        verdict = "unsteady"
        detail = f"holds with signs {markets}, q {q:.3g}, sign in {one.agreeing} of {one.cells} cells"
    elif markets:
        verdict = "one market only" if len(markets) == 1 else "some markets only"
        detail = f"holds in {_listed(markets)}, not in {_listed(set(one.names) - set(markets))}"
    elif periods:
        verdict = "one period only" if len(periods) == 1 else "some periods only"
        detail = f"holds in every market in {_listed(periods)}, not without"
    elif cells:
        verdict, detail = "single cells only", f"holds in {_listed(cells)}, and neither in a market nor in a period"
    else:
        verdict, detail = "nothing", f"holds nowhere after correction; weakest test {one.weakest}, p {one.p:.3g}"
    return GridVerdict(
        factor=name,
        factor_id=identity,
        verdict=verdict,
        passes=verdict == "robust",
        sign=one.sign,
        agreeing=one.agreeing,
        cells=one.cells,
        agreement=share,
        sign_p=coin_p(one.agreeing, one.cells),
        p=one.p,
        q=q,
        weakest=one.weakest,
        markets=tuple(markets),
        periods=tuple(periods),
        single=tuple(cells),
        decay=one.decay,
        detail=detail,
    )


def coin_p(heads: int, tosses: int) -> float:
    """Return the chance of at least so many heads of a fair coin; NaN without a toss."""
    if not tosses:
        return math.nan
    return sum(math.comb(tosses, k) for k in range(heads, tosses + 1)) / 2.0**tosses


def _t(series: Array) -> float:
    return hac_t(series) if int(np.isfinite(series).sum()) >= FEWEST_DAYS else math.nan


def _common(ts: Sequence[float]) -> tuple[float, int]:
    """Return the largest two-sided p of tests that share a sign; 1 where they do not, or one cannot be taken."""
    signs = {_sign(t) for t in ts}
    if len(signs) != 1 or 0 in signs:
        return 1.0, 0
    return max(_two_sided(t) for t in ts), signs.pop()


def _sign(value: float) -> int:
    return 0 if math.isnan(value) or value == 0 else 1 if value > 0 else -1


def _upper(t: float) -> float:
    return 1.0 if math.isnan(t) else p_of_t(t, two_sided=False)


def _two_sided(t: float) -> float:
    return 1.0 if math.isnan(t) else p_of_t(t)


def _turned(slope: Slope, sign: int) -> Slope:
    return Slope(sign * slope.slope, slope.error, sign * slope.t)


def _state(inside: pd.Series, known: pd.Series | Mask) -> Array:
    return np.where(np.asarray(known), np.asarray(inside, dtype=np.float64), np.nan)


def _listed(names: object) -> str:
    return ", ".join(sorted(str(name) for name in names))  # type: ignore[attr-defined]
