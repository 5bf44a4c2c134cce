"""Qlib's exchange with the rules of the A-share market: limits by board, lots, dated taxes.

The rules are data in ``qlib_llm_alpha.data.sources.boards`` and in the two tables below.
"""

from __future__ import annotations

import datetime
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qlib.backtest.decision import Order, OrderDir
from qlib.backtest.exchange import Exchange
from qlib.backtest.position import BasePosition
from qlib.data import D

from qlib_llm_alpha.data.sources.boards import LIMIT_RULES, LOT_RULES, LotRule, board_of, limit_in_cents, rules_of
from qlib_llm_alpha.errors import ConfigError, ProviderError

RateTable: TypeAlias = Mapping[str, float] | Mapping[datetime.date, float]

#: Stamp duty on sales by first day in force. Purchases have been free of it since 2008-09-19; earlier ones paid too,
#: which is not modelled.
STAMP_DUTY: dict[str, float] = {"1990-12-19": 0.001, "2023-08-28": 0.0005}
#: Transfer fee of the clearing house, on purchases and sales. Before 2015-08-01 it went by face value: not modelled.
TRANSFER_FEE: dict[str, float] = {"2015-08-01": 0.00002, "2022-04-29": 0.00001}

NO_LIMIT_UP = np.iinfo(np.int64).max
NO_LIMIT_DOWN = np.int64(-1)
UNKNOWN_REFERENCE = np.int64(-1)
_BUYING_BLOCKED = np.int64(0)
# Order sizes come through float32 factors, so a whole number of shares may arrive a little short.
_SHARE_SLACK = 0.1


def limit_prices(
    codes: Sequence[str],
    days: NDArray[np.datetime64],
    reference: NDArray[np.int64],
    special: NDArray[np.bool_],
    listed: NDArray[np.datetime64],
    age: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the highest and lowest price of each row's day, in cents.

    Parameters
    ----------
    codes : sequence of str, length n
        Instrument of each row; anything but an A-share has no limit.
    days : numpy.ndarray of datetime64[D], shape (n,)
        Trading day.
    reference : numpy.ndarray of int64, shape (n,)
        Previous raw close after ex-rights, in cents, known before the day opens; ``UNKNOWN_REFERENCE`` where unknown.
    special : numpy.ndarray of bool, shape (n,)
        Under special treatment (ST) that day.
    listed : numpy.ndarray of datetime64[D], shape (n,)
        Listing day, NaT when it was before the data begin.
    age : numpy.ndarray of int64, shape (n,)
        Trading days since the listing, 0 on the listing day; meaningless where ``listed`` is NaT.

    Returns
    -------
    up, down : numpy.ndarray of int64, shape (n,)
        ``NO_LIMIT_UP`` and ``NO_LIMIT_DOWN`` where there is no limit or no reference. On a listing day with a limit
        against an unknown issue price ``up`` is 0: such days close at the limit almost always, so buying is blocked.
    """
    names, place = np.unique(np.asarray(codes, dtype=str), return_inverse=True)
    boards = np.array([board_of(str(name)) or "" for name in names])[place]
    up = np.full(len(days), NO_LIMIT_UP, dtype=np.int64)
    down = np.full(len(days), NO_LIMIT_DOWN, dtype=np.int64)
    known = reference >= 0
    for board in sorted({rule.board for rule in LIMIT_RULES}):
        rules = rules_of(board)
        ends = [*(rule.since for rule in rules[1:]), np.datetime64("9999-12-31", "D")]
        for rule, end in zip(rules, ends, strict=True):
            rows = (boards == board) & (days >= rule.since) & (days < end) & known
            percent = np.where(special[rows], rule.st_percent, rule.percent).astype(np.int64)
            up[rows] = limit_in_cents(reference[rows], percent)
            down[rows] = limit_in_cents(reference[rows], -percent)
        # The first days go by the rule of the listing, so they overwrite the rule of the day.
        for rule, end in zip(rules, ends, strict=True):
            young = (boards == board) & (listed >= rule.since) & (listed < end) & (age >= 0)
            free = young & (age < rule.free_days)
            up[free], down[free] = NO_LIMIT_UP, NO_LIMIT_DOWN
            if rule.first_day is None:
                continue
            first = young & (age == 0)
            up[first], down[first] = _BUYING_BLOCKED, NO_LIMIT_DOWN
            rows = first & known
            rise, fall = (np.full(int(rows.sum()), percent, dtype=np.int64) for percent in rule.first_day)
            up[rows] = limit_in_cents(reference[rows], rise)
            down[rows] = limit_in_cents(reference[rows], -fall)
    return up, down


class AShareExchange(Exchange):
    """Qlib's ``Exchange`` with board limits, board lots and dated costs.

    Name it in a workflow as ``exchange_kwargs: {exchange: {class: AShareExchange, module_path:
    qlib_llm_alpha.strategy.exchange, kwargs: {...}}}``. Qlib then hands on nothing else: keys beside ``exchange``
    (``freq``, ``codes``, ``limit_threshold``, ``open_cost``, ...) and the backtest's own start and end are **ignored**,
    so ``start_time`` and ``end_time`` must be repeated inside ``kwargs``.

    An order dated t is filled at a price of day t; its limit is judged on that same price (so a fill at the open never
    depends on the close), raw and rounded to the cent, against the raw previous close after ex-rights. A buy is blocked
    at the upper limit, a sale at the lower one. Whether a strategy tries the other side is its own switch
    (``forbid_all_trade_at_limit`` of ``TopkDropoutStrategy``). T+1 holds because a daily strategy decides once a day.

    Parameters
    ----------
    start_time, end_time : str or date
        First and last day of the backtest; None loads the whole calendar.
    codes : str or list
        Instruments to trade. Keep ``all``: a market name hides the quotes of a share that has left the market, which
        then cannot be sold.
    freq : str
        Only ``day``.
    deal_price : str or pair of str
        Price field of buys and sales, such as ``$open`` or ``[$open, $close]``.
    commission : float
        Of the traded value, both sides, at least ``min_cost``.
    min_cost : float
        Least commission of an order, CNY; taxes come on top.
    stamp_duty, transfer_fee : float or mapping of date to float
        Rate, or rates by the first day in force. Stamp duty falls on sales, the transfer fee on both sides.
    impact_cost : float
        As in Qlib: times the squared share of the day's traded value.
    volume_threshold : pair, mapping or None
        As in Qlib, but YAML lists are taken for tuples.
    subscribe_fields : sequence of str
        More fields for the quote.
    listing_market : str or None
        Market whose spans start on listing days; by default ``listed`` when the provider has it, else ``all``. A span
        that starts on the calendar's first day is no listing.

    Raises
    ------
    ConfigError
        A rate is negative or a date cannot be read; ``freq`` is not ``day``.
    ProviderError
        ``$factor`` is missing on a day with a close, so raw prices are unknown.

    Notes
    -----
    ``$st`` (1 when under special treatment) is used when the provider has it, else no share is taken for one.
    """

    def __init__(
        self,
        start_time: str | datetime.date | None = None,
        end_time: str | datetime.date | None = None,
        codes: list[str] | str = "all",
        freq: str = "day",
        deal_price: str | Sequence[str] = "$close",
        commission: float = 0.0003,
        min_cost: float = 5.0,
        stamp_duty: float | RateTable | None = None,
        transfer_fee: float | RateTable | None = None,
        impact_cost: float = 0.0,
        volume_threshold: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        subscribe_fields: Sequence[str] = (),
        listing_market: str | None = None,
    ) -> None:
        if freq != "day":
            raise ConfigError(f"freq is {freq!r}; expected 'day', because limits are judged by the day; leave it out")
        self.commission = _rate("commission", commission)
        self.stamp_duty = _dated("stamp_duty", STAMP_DUTY if stamp_duty is None else stamp_duty)
        self.transfer_fee = _dated("transfer_fee", TRANSFER_FEE if transfer_fee is None else transfer_fee)
        self.listing_market = listing_market
        transfer, duty = max(self.transfer_fee[1]), max(self.stamp_duty[1])
        super().__init__(
            freq=freq,
            start_time=start_time,
            end_time=end_time,
            codes=codes,
            deal_price=_fields(deal_price),
            subscribe_fields=[*subscribe_fields, "$st"],
            volume_threshold=_volume_limits(volume_threshold),
            # Order generators of Qlib budget with these two; what an order costs is decided in the fill.
            open_cost=self.commission + transfer,
            close_cost=self.commission + transfer + duty,
            min_cost=_rate("min_cost", min_cost),
            impact_cost=_rate("impact_cost", impact_cost),
            trade_unit=LOT_RULES["main"].minimum,
        )
        self.limit_threshold, self.limit_type = None, self.LT_NONE

    def round_amount_by_trade_unit(
        self,
        deal_amount: float,
        factor: float | None = None,
        stock_id: str | None = None,
        start_time: pd.Timestamp | None = None,
        end_time: pd.Timestamp | None = None,
    ) -> float:
        """Return an adjusted amount rounded down to what the board takes; hundreds when the share is not told."""
        factor = float(self._get_factor_or_raise_error(factor, stock_id, start_time, end_time))
        lot = LOT_RULES.get((stock_id and board_of(stock_id)) or "main", LOT_RULES["main"])
        return _whole_lots(float(deal_amount) * factor + _SHARE_SLACK, lot) / factor

    def _update_limit(self, limit_threshold: Any) -> None:
        quote = self.quote_df
        closes = quote["$close"].to_numpy(dtype=np.float64)
        traded = np.isfinite(closes)
        factor = quote["$factor"].to_numpy(dtype=np.float64)
        if self.trade_w_adj_price or (traded & ~(factor > 0)).any():
            place = quote.index[int(np.flatnonzero(traded & ~(factor > 0))[0])]
            raise ProviderError(
                f"{place[0]!r} has a close but no positive $factor on {place[1]:%Y-%m-%d}; expected one, because "
                "limits and lots go by raw prices ($close/$factor); import the factor, or use Qlib's own Exchange"
            )
        codes = quote.index.get_level_values("instrument")
        days = quote.index.get_level_values("datetime").to_numpy().astype("datetime64[D]")
        listed, age = self._listings(quote.index, days)
        up, down = limit_prices(
            list(codes),
            days,
            _cents(self._previous_close(closes) / factor),
            quote["$st"].to_numpy(dtype=np.float64) > 0.5,
            listed,
            age,
        )
        buying = quote[self.buy_price].to_numpy(dtype=np.float64)
        selling = quote[self.sell_price].to_numpy(dtype=np.float64)
        # Qlib fills at the close where the deal price is missing, so the limit is judged there too.
        buy_cents = _cents(np.where(buying > 0, buying, closes) / factor)
        sell_cents = _cents(np.where(selling > 0, selling, closes) / factor)
        quote["limit_buy"] = ~traded | (buy_cents >= up)
        quote["limit_sell"] = ~traded | (sell_cents <= down)

    def _previous_close(self, closes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the adjusted close of the previous traded day; NaN where neither ``$change`` nor the quote has it."""
        change = self.quote_df["$change"].to_numpy(dtype=np.float64)
        previous: NDArray[np.float64] = closes / (1 + change)
        unknown = np.isfinite(closes) & ~np.isfinite(previous)
        if unknown.any():
            by_code = self.quote_df["$close"].groupby(level="instrument", sort=False)
            filled = by_code.ffill().groupby(level="instrument", sort=False).shift(1)
            previous[unknown] = filled.to_numpy(dtype=np.float64)[unknown]
        return previous

    def _listings(
        self, index: pd.MultiIndex, days: NDArray[np.datetime64]
    ) -> tuple[NDArray[np.datetime64], NDArray[np.int64]]:
        calendar = np.asarray(D.calendar(freq="day"), dtype="datetime64[D]")
        spans = self._listing_spans()
        codes = index.levels[index.names.index("instrument")]
        firsts = [str(min(span[0] for span in spans[code]))[:10] if code in spans else "NaT" for code in codes]
        by_code = np.array(firsts, dtype="datetime64[D]")
        # Qlib moves spans that start earlier to the calendar's first day: these are no listings.
        by_code[by_code <= calendar[0]] = np.datetime64("NaT")
        row_code = index.codes[index.names.index("instrument")]
        age = np.searchsorted(calendar, days) - np.searchsorted(calendar, by_code)[row_code]
        return by_code[row_code], age.astype(np.int64)

    def _listing_spans(self) -> Mapping[str, Sequence[tuple[pd.Timestamp, pd.Timestamp]]]:
        if self.listing_market is not None:
            found: dict[str, list[tuple[pd.Timestamp, pd.Timestamp]]] = D.list_instruments(
                D.instruments(self.listing_market)
            )
            return found
        try:
            return D.list_instruments(D.instruments("listed"))  # type: ignore[no-any-return]
        except ValueError:
            return D.list_instruments(D.instruments("all"))  # type: ignore[no-any-return]

    def _fees(self, day: pd.Timestamp, direction: int) -> float:
        """Return the rate of everything but commission."""
        fee = _rate_on(self.transfer_fee, day)
        return fee + _rate_on(self.stamp_duty, day) if direction == Order.SELL else fee

    def _calc_trade_info_by_order(
        self, order: Order, position: BasePosition | None, dealt_order_amount: dict[str, float]
    ) -> tuple[float, float, float]:
        span = (order.stock_id, order.start_time, order.end_time)
        price = float(self.get_deal_price(*span, direction=OrderDir(order.direction)))
        order.factor = float(self.get_factor(*span))
        order.deal_amount = order.amount
        self._clip_amount_by_volume(order, dealt_order_amount)
        rate = self._fees(order.start_time, order.direction) + self._impact(span, order.deal_amount * price, price)
        if order.direction == Order.SELL:
            order.deal_amount = self._sellable(order, position, price, rate)
        else:
            order.deal_amount = self._buyable(order, position, price, rate)
        value = order.deal_amount * price
        return price, value, self._cost(value, rate)

    def _impact(self, span: tuple[str, pd.Timestamp, pd.Timestamp], value: float, price: float) -> float:
        strength = float(self.impact_cost)
        if not strength:
            return 0.0
        total = float(self.get_volume(*span) or 0.0) * price
        return strength * (value / total) ** 2 if total > 0 else strength

    def _cost(self, value: float, rate: float) -> float:
        # A fill too small to be booked costs nothing, as in Qlib.
        return max(value * self.commission, float(self.min_cost)) + value * rate if value > 1e-5 else 0.0

    def _sellable(self, order: Order, position: BasePosition | None, price: float, rate: float) -> float:
        amount = float(order.deal_amount)
        if position is None:
            return amount
        held = float(position.get_stock_amount(order.stock_id)) if position.check_stock(order.stock_id) else 0.0
        # The whole holding may go in one order, odd shares included.
        if not np.isclose(amount, held):
            amount = self.round_amount_by_trade_unit(min(held, amount), order.factor, order.stock_id)
        value = amount * price
        return amount if position.get_cash() + value >= self._cost(value, rate) else 0.0

    def _buyable(self, order: Order, position: BasePosition | None, price: float, rate: float) -> float:
        amount = self.round_amount_by_trade_unit(order.deal_amount, order.factor, order.stock_id)
        if position is None:
            return amount
        cash = float(position.get_cash())
        value = amount * price
        if value + self._cost(value, rate) <= cash:
            return amount
        affordable = cash / (1 + rate + self.commission)
        if affordable * self.commission < self.min_cost:
            affordable = max(cash - self.min_cost, 0.0) / (1 + rate)
        lot = LOT_RULES[board_of(order.stock_id) or "main"]
        return min(_whole_lots(affordable / price * float(order.factor), lot) / float(order.factor), amount)


def _whole_lots(shares: float, lot: LotRule) -> float:
    if shares < lot.minimum:
        return 0.0
    return float(lot.minimum + (shares - lot.minimum) // lot.step * lot.step)


def _cents(price: NDArray[np.float64]) -> NDArray[np.int64]:
    known = np.isfinite(price)
    cents = np.full(len(price), UNKNOWN_REFERENCE, dtype=np.int64)
    cents[known] = np.rint(price[known] * 100).astype(np.int64)
    return cents


def _rate(name: str, value: float) -> float:
    if not 0 <= value < np.inf:
        raise ConfigError(f"{name} is {value!r}; expected zero or a positive number; give a fraction such as 0.0003")
    return float(value)


def _dated(name: str, rates: float | RateTable) -> tuple[list[np.datetime64], list[float]]:
    """Return first days in force and rates, a zero rate before the first one."""
    if not isinstance(rates, Mapping):
        return [], [_rate(name, rates)]
    try:
        table = sorted((np.datetime64(str(day), "D"), rate) for day, rate in rates.items())
    except ValueError as error:
        raise ConfigError(
            f"{name} has the dates {list(rates)!r}; expected YYYY-MM-DD to rate; correct the dates"
        ) from error
    return [day for day, _ in table], [0.0, *(_rate(name, rate) for _, rate in table)]


def _rate_on(table: tuple[list[np.datetime64], list[float]], day: pd.Timestamp) -> float:
    days, rates = table
    rate: float = rates[bisect_right(days, np.datetime64(day, "D"))]
    return rate


def _fields(deal_price: str | Sequence[str]) -> str | tuple[str, str]:
    if isinstance(deal_price, str):
        return deal_price
    if len(deal_price) != 2:
        raise ConfigError(
            f"deal_price is {deal_price!r}; expected one field, or one for buys and one for sales; "
            "give '$close' or ['$open', '$close']"
        )
    buy, sell = (name if name.startswith("$") else f"${name}" for name in deal_price)
    return buy, sell


def _volume_limits(
    threshold: Sequence[str] | Mapping[str, Sequence[str]] | None,
) -> tuple[str, ...] | dict[str, tuple[str, ...]] | None:
    if threshold is None:
        return None
    if isinstance(threshold, Mapping):
        return {side: tuple(limit) for side, limit in threshold.items()}
    return tuple(threshold)
