"""The market context M(t): what the state of the market is at the close of day t.

Every row is known at the close of its day: it reads the bars of days up to and including t, and nothing later.

=======================  ==============================================================================================
name                     meaning
=======================  ==============================================================================================
``index_return_W``       close-to-close return of the index over W = 5, 20, 60 days
``index_volatility_W``   sample deviation of its daily returns over the same days, not annualised
``drawdown_250``         index close over its highest close of 250 days (fewer at the start, at least 60), less 1; <= 0
``dispersion``           deviation of the members' returns of the day across names
``breadth_20``           share of members whose close is above its own mean of 20 days (at least 10 known)
``turnover_60``          log of the members' total amount over its mean of 60 days
``correlation_20``       average pairwise correlation of the members' daily returns over 20 days
``correlation_60``       the same over 60 days
``limit_up_share``       share of members whose return of the day is at or above their limit move
``limit_down_share``     share of members whose return of the day is at or below minus their limit move
=======================  ==============================================================================================

Regimes come from where the 60-day return and volatility of the index lie among their own terciles:

================  ==========  ==========  ============
60-day return     calm        usual       volatile
================  ==========  ==========  ============
top, above 0      bull        bull        bull
bottom, below 0   sideways    bear        bear
anything else     sideways    sideways    sideways
================  ==========  ==========  ============

A slow decline in a calm market is sideways, not bear. Until there are ``MIN_HISTORY`` days to rank against, the label
is sideways.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.engine.panel import Array, DayLike, Days, Mask, Panel, as_day, as_days
from qlib_llm_alpha.errors import PanelError

REGIMES = ("bull", "bear", "sideways")
MIN_HISTORY = 60
WINDOWS = (5, 20, 60)
CONTEXT_NAMES = (
    *(f"index_return_{window}" for window in WINDOWS),
    *(f"index_volatility_{window}" for window in WINDOWS),
    *("drawdown_250", "dispersion", "breadth_20", "turnover_60", "correlation_20", "correlation_60"),
    *("limit_up_share", "limit_down_share"),
)
"""Columns of a context that `market_context` makes, in its order."""


@dataclass(frozen=True, eq=False)
class MarketContext:
    """The state of the market by day.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
        Signal dates: row t is known at the close of ``days[t]``.
    names : tuple of str, (S,)
        Names of the columns.
    values : array, (T, S)
        Raw states; NaN until there is enough history.
    regime : array, (T,) str
        ``bull``, ``bear`` or ``sideways``.
    """

    days: Days
    names: tuple[str, ...]
    values: Array = field(repr=False)
    regime: NDArray[np.str_] = field(repr=False)

    def __post_init__(self) -> None:
        days = as_days(self.days)
        if not len(days):
            raise PanelError("context has no day; expected at least one; load bars for the dates you need")
        if self.values.shape != (len(days), len(self.names)) or len(self.regime) != len(days):
            raise PanelError(
                f"context has values {self.values.shape} and {len(self.regime)} regimes; expected "
                f"({len(days)}, {len(self.names)}) and {len(days)}; align them to days and names"
            )
        strange = sorted(set(self.regime.tolist()) - set(REGIMES))
        if strange:
            raise PanelError(f"regimes {strange!r} are unknown; expected {list(REGIMES)!r}; rename them")
        object.__setattr__(self, "days", days)

    def standardised(
        self, fit_until: DayLike | None = None, *, min_history: int = MIN_HISTORY, clip: float = 5.0
    ) -> Array:
        """Centre and scale every column by its past.

        Parameters
        ----------
        fit_until : date, optional
            Mean and deviation come from days up to this one, included, and are applied to all days. None takes, on
            every day, those of all days up to that day. With a date, the
            rows before it are scaled by moments of the whole fitted stretch: right for fitting on that stretch, not for
            judging decisions inside it.
        min_history : int
            A column with fewer known days to learn from is 0 (in the expanding form: until it has them).
        clip : float
            Results are cut to plus and minus this many deviations, so that a state never seen before cannot throw a
            gate further than that.

        Returns
        -------
        array, (T, S)
            No NaN: a missing state, one without history and a constant one are 0, which is "as usual".
        """
        if fit_until is None:
            count, mean, deviation = _expanding_moments(self.values)
        else:
            known = self.values[self.days <= as_day(fit_until)]
            if not len(known):
                return np.zeros(self.values.shape)
            count, mean, deviation = (moment[-1] for moment in _expanding_moments(known))
        usable = (count >= max(min_history, 2)) & (deviation > 1e-12 * np.maximum(np.abs(mean), 1e-300))
        scaled = np.divide(
            self.values - mean,
            deviation,
            out=np.zeros(self.values.shape),
            where=np.broadcast_to(usable, self.values.shape) & ~np.isnan(self.values),
        )
        return np.asarray(np.clip(scaled, -clip, clip), dtype=np.float64)

    def to_frame(self) -> pd.DataFrame:
        """Return the raw states indexed by datetime, with a last column ``regime``."""
        index = pd.DatetimeIndex(self.days.astype("datetime64[ns]"), name="datetime")
        frame: pd.DataFrame = pd.DataFrame(self.values, index=index, columns=list(self.names))
        frame["regime"] = self.regime
        return frame


def market_context(
    bars: Panel,
    index_close: Array,
    *,
    limit_moves: float | Array = 0.095,
    fit_until: DayLike | None = None,
) -> MarketContext:
    """Describe the state of the market on every day.

    Parameters
    ----------
    bars : Panel
        ``$close`` (adjusted) of the universe, and ``$amount`` or else ``$volume``. ``$change`` (close over the previous
        close, less 1) is used where present, otherwise it is computed from the closes, across suspensions too. The
        panel's membership mask says who counts on a day.
    index_close : array, (T,)
        Close of the index on the same days.
    limit_moves : float or array
        The move taken as a limit, as a number or anything that broadcasts to (T, N): see :func:`board_limit_moves`.
        A little below the legal limit, because prices are rounded to a cent.
    fit_until : date, optional
        The regimes' terciles come from days up to this one, for earlier days too. None takes, on every day, the days up
        to that day.

    Returns
    -------
    MarketContext

    Raises
    ------
    PanelError
        A field or the right number of index closes is missing.
    """
    close = bars["$close"]
    prices = np.asarray(index_close, dtype=np.float64)
    if prices.shape != (len(bars.days),):
        raise PanelError(f"index_close has shape {prices.shape}; expected ({len(bars.days)},); align it to the bars")
    member = bars.member_mask()
    change = bars["$change"] if "$change" in bars.fields else _change(close)
    traded = bars["$amount"] if "$amount" in bars.fields else bars["$volume"]
    returns = np.where(member, change, np.nan)
    columns: dict[str, Array] = {}
    for window in WINDOWS:
        columns[f"index_return_{window}"] = _trailing_return(prices, window)
    for window in WINDOWS:
        columns[f"index_volatility_{window}"] = _trailing_volatility(prices, window)
    highest = pd.Series(prices).rolling(250, min_periods=60).max().to_numpy()
    columns["drawdown_250"] = prices / highest - 1.0
    columns["dispersion"] = _deviation(returns)
    columns["breadth_20"] = _breadth(close, member)
    columns["turnover_60"] = _relative_turnover(np.where(member, traded, np.nan))
    columns["correlation_20"] = _average_correlation(change, member, 20)
    columns["correlation_60"] = _average_correlation(change, member, 60)
    columns["limit_up_share"] = _share(returns >= limit_moves, ~np.isnan(returns))
    columns["limit_down_share"] = _share(returns <= -np.asarray(limit_moves), ~np.isnan(returns))
    regime = _regimes(bars.days, columns["index_return_60"], columns["index_volatility_60"], fit_until)
    return MarketContext(bars.days, tuple(columns), np.column_stack(list(columns.values())), regime)


def board_limit_moves(instruments: tuple[str, ...], days: Days, st: Array | None = None) -> Array:
    """Return the moves taken as limits on mainland boards, (T, N), each half a point below the legal one.

    10 % in general, 20 % on STAR (SH688, SH689) and, from 2020-08-24, on ChiNext (SZ30), 30 % in Beijing (BJ), 5 % for
    ST names of the boards with 10 %.

    Parameters
    ----------
    instruments : tuple of str, (N,)
        Codes such as ``SH600000``.
    days : array, (T,) datetime64[D]
    st : array, (T, N), optional
        1 where the name is ST that day, known that day.
    """
    calendar = as_days(days)
    limits = np.full((len(calendar), len(instruments)), 0.10)
    reformed = (calendar >= np.datetime64("2020-08-24"))[:, None]
    chinext = np.array([code.startswith("SZ30") for code in instruments], dtype=np.bool_)
    limits = np.where(reformed & chinext, 0.20, limits)
    limits[:, [code.startswith(("SH688", "SH689")) for code in instruments]] = 0.20
    limits[:, [code.startswith("BJ") for code in instruments]] = 0.30
    if st is not None:
        limits = np.where((st > 0) & (limits == 0.10), 0.05, limits)
    return np.asarray(limits - 0.005, dtype=np.float64)


def _change(close: Array) -> Array:
    before = pd.DataFrame(close).ffill().shift(1).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        change = close / before - 1.0
    return np.where(np.isfinite(change), change, np.nan)


def _trailing_return(prices: Array, window: int) -> Array:
    result = np.full(len(prices), np.nan)
    result[window:] = prices[window:] / prices[:-window] - 1.0
    return result


def _trailing_volatility(prices: Array, window: int) -> Array:
    daily = np.concatenate([[np.nan], prices[1:] / prices[:-1] - 1.0])[: len(prices)]
    result = np.full(len(prices), np.nan)
    for day in range(window, len(prices)):
        result[day] = daily[day - window + 1 : day + 1].std(ddof=1)
    return result


def _deviation(returns: Array) -> Array:
    known = ~np.isnan(returns)
    count = known.sum(axis=1)
    total = np.where(known, returns, 0.0).sum(axis=1)
    mean = np.divide(total, count, out=np.zeros(len(total)), where=count > 0)
    squares = np.where(known, (returns - mean[:, None]) ** 2, 0.0).sum(axis=1)
    variance: Array = np.divide(squares, count, out=np.full(len(total), np.nan), where=count > 1)
    return np.sqrt(variance)


def _breadth(close: Array, member: Mask) -> Array:
    mean = pd.DataFrame(close).rolling(20, min_periods=10).mean().to_numpy()
    return _share(close > mean, member & ~np.isnan(close) & ~np.isnan(mean))


def _relative_turnover(traded: Array) -> Array:
    total = np.nansum(traded, axis=1)
    daily = pd.Series(np.where(total > 0, total, np.nan))
    return np.asarray(np.log(daily / daily.rolling(60, min_periods=30).mean()), dtype=np.float64)


def _share(hit: Mask, of: Mask) -> Array:
    count = of.sum(axis=1)
    share: Array = np.divide((hit & of).sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)
    return share


def _average_correlation(change: Array, member: Mask, window: int) -> Array:
    """Average over pairs of today's members with a full window, each pair weighted by its two deviations.

    The variance of the sum is the sum of all covariances, so that no pair is ever formed: one pass over the window.
    """
    result = np.full(len(change), np.nan)
    known = ~np.isnan(change)
    for day in range(window - 1, len(change)):
        rows = slice(day - window + 1, day + 1)
        block = change[rows][:, member[day] & known[rows].all(axis=0)]
        variance = block.var(axis=0)
        own, cross = variance.sum(), np.sqrt(variance).sum() ** 2
        if block.shape[1] > 1 and cross - own > 1e-12 * cross:
            result[day] = (block.sum(axis=1).var() - own) / (cross - own)
    return result


def _expanding_moments(values: Array) -> tuple[Array, Array, Array]:
    """Count, mean and population deviation of every column over the rows up to each row, NaN left out."""
    known = ~np.isnan(values)
    count = known.cumsum(axis=0).astype(np.float64)
    safe = np.maximum(count, 1.0)
    # Sums about the first known value, so that small deviations about a large mean survive.
    first = np.argmax(known, axis=0)
    origin = np.nan_to_num(np.take_along_axis(values, first[None, :], axis=0))
    shifted = np.where(known, values - origin, 0.0)
    mean = shifted.cumsum(axis=0) / safe
    variance = (shifted**2).cumsum(axis=0) / safe - mean**2
    return count, mean + origin, np.sqrt(np.maximum(variance, 0.0))


def _regimes(days: Days, returns: Array, volatility: Array, fit_until: DayLike | None) -> NDArray[np.str_]:
    high, low = _terciles(days, returns, fit_until)
    _, calm = _terciles(days, volatility, fit_until)
    regime = np.full(len(days), "sideways", dtype="<U8")
    # Comparisons with NaN are false: days without history stay sideways.
    regime[(returns >= high) & (returns > 0)] = "bull"
    regime[(returns <= low) & (returns < 0) & (volatility > calm)] = "bear"
    return regime


def _terciles(days: Days, values: Array, fit_until: DayLike | None) -> tuple[Array, Array]:
    """Upper and lower tercile on every day, NaN until MIN_HISTORY values are there."""
    if fit_until is None:
        past = pd.Series(values).expanding(min_periods=MIN_HISTORY)
        return past.quantile(2 / 3).to_numpy(), past.quantile(1 / 3).to_numpy()
    known = values[(days <= as_day(fit_until)) & ~np.isnan(values)]
    if len(known) < MIN_HISTORY:
        return np.full(len(days), np.nan), np.full(len(days), np.nan)
    return np.full(len(days), np.quantile(known, 2 / 3)), np.full(len(days), np.quantile(known, 1 / 3))
