"""Simulate the market: day by day in time, all instruments at once, because plants read the bars of earlier days."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.accounts import Accounts, Business, draw_accounts
from qlib_llm_alpha.data.embedded.days import Days, trading_days
from qlib_llm_alpha.data.embedded.index import IndexBars, draw_index, index_membership
from qlib_llm_alpha.data.embedded.listing import Listing, daily_limit, draw_listing
from qlib_llm_alpha.data.embedded.plants import LAG, PLANTS, plant_scores, rank_scores, strengths
from qlib_llm_alpha.data.embedded.regime import Climate, draw_climate
from qlib_llm_alpha.data.embedded.streams import Purpose, stream
from qlib_llm_alpha.errors import ConfigError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Kind: TypeAlias = Literal["planted", "noise"]

GENERATOR = 1
"""Version of the generator. A change of any simulated number raises it."""

FEWEST_INSTRUMENTS = 10
FEWEST_DAYS = 60

_STYLE_VOLATILITY = np.array([0.0030, 0.0025, 0.0025])
_INDUSTRY_VOLATILITY = 0.0060
_STYLE_REFRESH = 5
_TAIL_CHANCE, _TAIL_SCALE, _BODY_SCALE = 0.06, 2.7, 0.78
_GAP_SHARE, _GAP_OWN = 0.15, 0.42
_RANGE_SCALE = 1.06
_HALT_CHANCE, _HALT_MEAN = 0.0006, 8.0
_FACE_VALUE, _FACE_VALUE_DAYS = 1.0, 20


@dataclass(frozen=True)
class Market:
    """A simulated market; arrays are (days T, instruments N) unless said otherwise, NaN where there is no bar.

    Parameters
    ----------
    kind, instruments, start, end, seed
        The arguments of :func:`simulate`.
    days : array of datetime64[D], (T,)
    codes : array of str, (N,)
        Sorted.
    open, high, low, close, vwap : array
        Adjusted prices: raw price times ``factor``. Raw prices are whole cents (vwap excepted).
    volume : array
        Adjusted volume in shares: raw volume over ``factor``.
    amount : array
        CNY.
    factor : array
        Cumulative backward factor, 1 on an instrument's first bar; an event changes it from its ex-date on.
    shares : array
        Shares outstanding; known on every day of listing, also when suspended.
    st : array
        1.0 under special treatment, else 0.0, known on every day of listing.
    industry : array, (N,)
        Code 1 to 11.
    listed : array of bool
        True from the first to the last day of listing, suspensions included.
    member : array of bool
        True on the days in the index, from the first day of a review on.
    index : IndexBars
        SH000300, arrays of shape (T,).
    regime : array of int, (T,)
        0 bull, 1 bear, 2 sideways: the truth, for judging and never for trading.
    up_limit, down_limit : array
        Raw limit prices; +inf and 0 on free days.
    accounts : Accounts
        Quarterly accounts with their days of announcement.
    """

    kind: Kind
    instruments: int
    start: np.datetime64
    end: np.datetime64
    seed: int
    days: Days
    codes: NDArray[np.str_]
    open: Array
    high: Array
    low: Array
    close: Array
    volume: Array
    amount: Array
    vwap: Array
    factor: Array
    shares: Array
    st: Array
    industry: NDArray[np.int64]
    listed: Mask
    member: Mask
    index: IndexBars
    regime: NDArray[np.int64]
    up_limit: Array
    down_limit: Array
    accounts: Accounts

    def bars(self) -> dict[str, Array]:
        """Return open, high, low, close, volume by name."""
        return {"open": self.open, "high": self.high, "low": self.low, "close": self.close, "volume": self.volume}


def simulate(
    kind: Kind = "planted",
    instruments: int = 100,
    start: np.datetime64 | str = "2017-01-03",
    end: np.datetime64 | str = "2023-12-29",
    seed: int = 7,
) -> Market:
    """Simulate a market.

    Parameters
    ----------
    kind : "planted" or "noise"
        ``noise`` draws the same random numbers and plants nothing.
    instruments : int
        At least 10.
    start, end : date
        At least 60 trading days apart. A market with an earlier ``end`` has the same bars up to it.
    seed : int
        Not negative.

    Raises
    ------
    ConfigError
        An argument that cannot make a market.
    """
    first, last = _check(kind, instruments, start, end, seed)
    days = trading_days(first, last)
    if len(days) < FEWEST_DAYS:
        raise ConfigError(
            f"{start!s} to {end!s} holds {len(days)} trading days; a market needs at least {FEWEST_DAYS}: "
            "give a later end or an earlier start"
        )
    listing = draw_listing(instruments, first, seed)
    climate = draw_climate(len(days), seed)
    simulation = _Simulation(kind, listing, climate, days, seed)
    for t in range(len(days)):
        simulation.trade(t)
    return simulation.market(first, last)


def planted_factors(market: Market) -> dict[str, Array]:
    """Return each planted factor, (days, instruments), from bars alone; windows are strict, NaN when not listed."""
    bars = market.bars()
    scores = np.stack([plant_scores(bars, t) for t in range(len(market.days))])
    return {plant.name: np.where(market.listed, scores[:, k], np.nan) for k, plant in enumerate(PLANTS)}


def label(market: Market) -> Array:
    """Return ``Ref($close, -2) / Ref($close, -1) - 1``: NaN on the last two days and around suspensions."""
    values = np.full(market.close.shape, np.nan)
    values[:-LAG] = market.close[LAG:] / market.close[1:-1] - 1.0
    return values


def _check(
    kind: str, instruments: int, start: np.datetime64 | str, end: np.datetime64 | str, seed: int
) -> tuple[np.datetime64, np.datetime64]:
    if kind not in get_args(Kind):
        raise ConfigError(f"kind {kind!r} is unknown: give 'planted' or 'noise'")
    if instruments < FEWEST_INSTRUMENTS:
        raise ConfigError(f"instruments={instruments!r}: a market needs at least {FEWEST_INSTRUMENTS}")
    if instruments > 5000:
        raise ConfigError(f"instruments={instruments!r}: the codes of a board run out beyond 5000")
    if seed < 0:
        raise ConfigError(f"seed={seed!r}: give a whole number that is not negative")
    dates = []
    for name, value in (("start", start), ("end", end)):
        try:
            dates.append(np.datetime64(str(value), "D"))
        except ValueError as error:
            raise ConfigError(f"{name}={value!r} is no date: write it as 2017-01-03") from error
    if not np.datetime64("1995-01-01") <= dates[0] < dates[1] <= np.datetime64("2100-12-31"):
        raise ConfigError(f"start={start!s}, end={end!s}: give a start before the end, from 1995 to 2100")
    return dates[0], dates[1]


class _Simulation:
    """The state of the market while its days are being simulated."""

    def __init__(self, kind: Kind, listing: Listing, climate: Climate, days: Days, seed: int) -> None:
        count, length = len(listing.codes), len(days)
        shape = (length, count)
        self.kind, self.seed = kind, seed
        self.listing, self.climate, self.days = listing, climate, days
        self.strength = strengths() if kind == "planted" else np.zeros((3, len(PLANTS)))
        self.effect = np.zeros((length + LAG, count))

        entry = np.searchsorted(days, listing.listed)
        age = np.arange(length)[:, None] - entry
        age[:, listing.listed < days[0]] += 10_000
        self.entry = np.where(listing.listed < days[0], 0, entry)
        self.alive = (days[:, None] >= listing.listed) & (days[:, None] < listing.delisted)
        self.st = (days[:, None] >= listing.st_from) & (days[:, None] < listing.st_until)
        self.up, self.down = daily_limit(listing, days, self.st, age)
        self.fresh = (age >= 0) & (age < 5)
        self.draw_noise(shape)

        self.bar = {name: np.full(shape, np.nan) for name in ("open", "high", "low", "close", "volume")}
        self.raw_close = np.full(shape, np.nan)
        self.amount, self.vwap, self.factors = (np.full(shape, np.nan) for _ in range(3))
        self.up_limit, self.down_limit = np.full(shape, np.nan), np.full(shape, np.nan)
        self.outstanding = np.full(shape, np.nan)
        self.last = listing.price.copy()
        self.factor = np.ones(count)
        self.shares = listing.shares.copy()
        self.cheap = np.zeros(count, dtype=np.int64)
        self.halted = np.zeros(count, dtype=np.int64)
        self.gone = np.zeros(count, dtype=bool)
        self.style = np.zeros((3, count))
        self.business = Business(listing, days, seed)

    def draw_noise(self, shape: tuple[int, int]) -> None:
        length, count = shape
        normal = {
            purpose: stream(self.seed, purpose).standard_normal(shape)
            for purpose in (Purpose.OWN_SHOCK, Purpose.GAP, Purpose.VWAP)
        }
        tail = stream(self.seed, Purpose.OWN_TAIL).random(shape)
        self.own_shock = np.where(tail < _TAIL_CHANCE, _TAIL_SCALE, _BODY_SCALE) * normal[Purpose.OWN_SHOCK]
        self.gap, self.vwap_noise = normal[Purpose.GAP], normal[Purpose.VWAP]
        self.range = -2.0 * np.log(1.0 - stream(self.seed, Purpose.RANGE).random((length, 2, count)))
        self.halt = stream(self.seed, Purpose.SUSPENSION).random((length, 2, count))
        factors = stream(self.seed, Purpose.INDUSTRY).standard_normal((length, 64))
        styles = stream(self.seed, Purpose.STYLE).standard_normal((length, 3))
        self.industry_return = _INDUSTRY_VOLATILITY * factors[:, self.listing.industry - 1]
        self.style_return = _STYLE_VOLATILITY * styles
        slow = stream(self.seed, Purpose.OWN_VOLATILITY).standard_normal((length, 2, count))
        self.log_scale = 0.38 * _persistent(slow[:, 0], 0.985) + 0.34 * _persistent(slow[:, 1], 0.86)
        volume = stream(self.seed, Purpose.VOLUME).standard_normal((length, 3, count))
        self.log_turnover = (
            self.listing.turnover
            + 0.40 * _persistent(volume[:, 0], 0.985)
            + 0.30 * _persistent(volume[:, 1], 0.80)
            + 0.06 * volume[:, 2]
            + 0.7 * self.log_scale
            + self.climate.volume[:, None]
        )

    def trade(self, t: int) -> None:
        """Make the bars of one day and score the plants at its close."""
        listing = self.listing
        cash, bonus = self.business.open_day(t, self.last, self.shares)
        alive = self.alive[t] & ~self.gone
        starts_halt = alive & ~self.fresh[t] & (self.halted == 0) & (self.halt[t, 0] < _HALT_CHANCE)
        self.halted[starts_halt] = 1 + (-np.log(1.0 - self.halt[t, 1, starts_halt]) * _HALT_MEAN).astype(np.int64)
        open_for_trade = alive & (self.halted == 0)
        self.halted = np.maximum(self.halted - 1, 0)
        # An event of a name that is not listed yet never took place: its first bar has factor 1.
        moved = alive & (self.entry < t) & ((cash > 0) | (bonus > 0))
        previous = np.where(moved, _cents((self.last - cash) / (1.0 + bonus)), self.last)
        self.factor = np.where(moved, np.round(self.factor * (self.last / previous), 8), self.factor)
        self.shares = np.where(moved, np.round(self.shares * (1.0 + bonus)), self.shares)

        if t % _STYLE_REFRESH == 0:
            self.refresh_styles(t, alive)
        scale = listing.own_volatility * np.exp(self.log_scale[t]) * self.climate.own_scale[t]
        scale = np.where(self.fresh[t], 2.2 * scale, scale)
        common = (
            self.climate.drift[t]
            + listing.beta * self.climate.shock[t]
            + self.industry_return[t]
            + self.style_return[t] @ self.style
        )
        change = common + scale * (self.own_shock[t] + self.effect[t])
        top, bottom = _limit(previous, self.up[t]), np.maximum(_limit(previous, -self.down[t]), 0.01)
        close = np.clip(_cents(previous * (1.0 + np.maximum(change, -0.9))), bottom, top)
        opening = np.clip(
            _cents(previous * (1.0 + np.maximum(_GAP_SHARE * change + _GAP_OWN * scale * self.gap[t], -0.9))),
            bottom,
            top,
        )
        reach = (_RANGE_SCALE * scale * previous) ** 2 * self.range[t]
        span = np.sqrt((close - opening) ** 2 + reach)
        middle = 0.5 * (close + opening)
        high = np.clip(_cents(middle + 0.5 * span[0]), np.maximum(close, opening), top)
        low = np.clip(_cents(middle - 0.5 * span[1]), bottom, np.minimum(close, opening))

        surprise = np.minimum(np.abs(change) / (listing.own_volatility * 1.1), 4.0) - 0.75
        turnover = self.log_turnover[t] + 0.27 * surprise + 3.4 * np.clip(change, -0.1, 0.1)
        turnover = np.where(high == low, turnover - 1.5, np.where(self.fresh[t], turnover + 1.5, turnover))
        lots = np.maximum(np.round(self.shares * np.exp(np.minimum(turnover, -1.0)) / 100.0), 1.0)
        volume = 100.0 * lots
        typical = 0.25 * (opening + high + low + close) + 0.08 * (high - low) * self.vwap_noise[t]
        amount = np.round(np.clip(typical, low, high) * volume, 2)

        bar = {"open": opening, "high": high, "low": low, "close": close}
        for name, raw in bar.items():
            self.bar[name][t] = np.where(open_for_trade, raw * self.factor, np.nan)
        self.bar["volume"][t] = np.where(open_for_trade, volume / self.factor, np.nan)
        self.raw_close[t] = np.where(open_for_trade, close, np.nan)
        self.amount[t] = np.where(open_for_trade, amount, np.nan)
        self.vwap[t] = np.where(open_for_trade, amount / volume * self.factor, np.nan)
        self.factors[t] = np.where(open_for_trade, self.factor, np.nan)
        self.up_limit[t] = np.where(open_for_trade, top, np.nan)
        self.down_limit[t] = np.where(open_for_trade, np.where(np.isinf(self.down[t]), 0.0, bottom), np.nan)
        self.outstanding[t] = np.where(alive, self.shares, np.nan)
        self.last = np.where(open_for_trade, close, previous)
        self.cheap = np.where(open_for_trade, np.where(close < _FACE_VALUE, self.cheap + 1, 0), self.cheap)
        self.gone |= self.cheap >= _FACE_VALUE_DAYS
        self.alive[t] = alive
        if self.kind == "planted":
            scores = rank_scores(np.where(alive, plant_scores(self.bar, t), np.nan))
            self.effect[t + LAG] = (self.strength[self.climate.regime[t]][:, None] * scores).sum(axis=0)

    def refresh_styles(self, t: int, alive: Mask) -> None:
        """Set the exposures from the bars of earlier days: size, 60-day return, own volatility."""
        size = np.where(alive, self.last * self.shares, np.nan)
        trend = self.bar["close"][t - 1] / self.bar["close"][t - 61] if t > 61 else np.full(len(size), np.nan)
        risk = np.where(alive, self.listing.own_volatility, np.nan)
        self.style = rank_scores(np.stack([size, trend, risk]))

    def market(self, start: np.datetime64, end: np.datetime64) -> Market:
        listing = self.listing
        listed = self.alive
        before = np.stack([listing.price, listing.price * listing.shares])
        capital = _carried(self.raw_close, listing.price) * np.where(listed, self.outstanding, 0.0)
        member = index_membership(self.days, capital, before[1], listed, self.st)
        index = draw_index(self.bar, self.factors, self.amount, capital, before, member, self.seed)
        return Market(
            kind=self.kind,
            instruments=len(listing.codes),
            start=start,
            end=end,
            seed=self.seed,
            days=self.days,
            codes=listing.codes,
            open=self.bar["open"],
            high=self.bar["high"],
            low=self.bar["low"],
            close=self.bar["close"],
            volume=self.bar["volume"],
            amount=self.amount,
            vwap=self.vwap,
            factor=self.factors,
            shares=self.outstanding,
            st=np.where(listed, self.st.astype(np.float64), np.nan),
            industry=listing.industry,
            listed=listed,
            member=member,
            index=index,
            regime=self.climate.regime,
            up_limit=self.up_limit,
            down_limit=self.down_limit,
            accounts=draw_accounts(self.business, listing, listed, self.days, self.seed),
        )


def _cents(prices: Array) -> Array:
    return np.asarray(np.round(prices, 2))


def _limit(reference: Array, percent: Array) -> Array:
    """Return the limit price in CNY, halves rounded up as the exchanges do; whole numbers, so exact."""
    return np.asarray(np.floor((np.rint(100.0 * reference) * (100.0 + percent) + 50.0) / 100.0) / 100.0)


def _carried(values: Array, before: Array) -> Array:
    filled = np.empty_like(values)
    last = before
    for t in range(len(values)):
        last = np.where(np.isfinite(values[t]), values[t], last)
        filled[t] = last
    return filled


def _persistent(draws: Array, persistence: float) -> Array:
    """Turn (days, instruments) draws into first-order autoregressions of deviation 1."""
    paths = np.empty_like(draws)
    scale = float(np.sqrt(1.0 - persistence**2))
    value = draws[0]
    for t in range(len(draws)):
        value = persistence * value + scale * draws[t]
        paths[t] = value
    return paths
