"""Companies behind the prices: quarterly accounts, the days they become known, dividends and bonus shares.

Prices lead earnings: revenue grows towards what the capitalisation of a quarter's end implies, so that earnings over
price is a meaningful number; nothing of the accounts moves a price.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.days import Days, quarter_ends, year_of
from qlib_llm_alpha.data.embedded.listing import Listing
from qlib_llm_alpha.data.embedded.streams import Purpose, stream
from qlib_llm_alpha.factor.fields import PER_SHARE, TOTALS

Array = NDArray[np.float64]

_HISTORY_DAYS = 1100
_CATCH_UP = 0.12
_RESTATED = 0.03
_TAX = 0.20
_SEASONS = np.array([0.92, 1.00, 1.01, 1.07])
# First day of announcement after the quarter's end, and how many days it may take.
_DELAYS = {3: (10, 21), 6: (15, 47), 9: (10, 22), 12: (45, 73)}
_BONUSES = np.array([0.3, 0.4, 0.5, 1.0])
_DEAR = 80.0
_NAT = np.datetime64("NaT", "D")


@dataclass(frozen=True)
class Accounts:
    """Quarterly accounts of every instrument.

    Parameters
    ----------
    periods : array of int, (quarters,)
        Year times 100 plus quarter, as Qlib writes them: 201901 is the first quarter of 2019.
    announced : array of datetime64[D], (quarters, instruments)
        Calendar day on which the quarter becomes known, before the close; NaT where it never does.
    values : mapping of name to array, (quarters, instruments)
        Single-quarter flows and quarter-end stocks in CNY; per share on the shares of the quarter's end. ``dividends``
        is the yearly cash dividend, on the fourth quarter, else 0.
    restated : array of datetime64[D], (quarters, instruments)
        Day on which net income and eps of the quarter are corrected; NaT mostly.
    correction : array, (quarters, instruments)
        Factor of that correction.
    """

    periods: NDArray[np.int64]
    announced: Days
    values: dict[str, Array]
    restated: Days
    correction: Array


class Business:
    """Revenue, margins, dividends and bonus shares while the market is being simulated.

    Parameters
    ----------
    listing : Listing
    days : array of datetime64[D], (days,)
    seed : int
    """

    def __init__(self, listing: Listing, days: Days, seed: int) -> None:
        self.listing = listing
        count = len(listing.codes)
        self.ends = quarter_ends(days[0] - _HISTORY_DAYS, days[-1] - 1)
        past = int(np.searchsorted(self.ends, days[0]))
        length = len(self.ends)
        years = self.ends.astype("datetime64[Y]").astype(np.int64) + 1970
        months = self.ends.astype("datetime64[M]").astype(np.int64) % 12 + 1
        self.months, self.periods = months, years * 100 + months // 3
        draws = stream(seed, Purpose.BUSINESS).standard_normal((length, 3, count))
        self.loss = (self.ends[:, None] >= listing.loss_from) & (self.ends[:, None] < listing.loss_until)
        margin = listing.margin * np.exp(0.18 * _slow(draws[:, 1]))
        self.margin = np.where(self.loss, -0.04 - 0.06 * np.abs(draws[:, 1]), margin)
        self.noise = draws
        self.log_scale = np.log(listing.price * listing.shares / listing.earnings_multiple / listing.margin / 4.0)
        self.revenue = np.full((length, count), np.nan)
        self.shares = np.broadcast_to(listing.shares, (length, count)).copy()
        self.dividend = np.zeros((length, count))
        payouts = stream(seed, Purpose.PAYOUT).random((int(years[-1] - years[past - 1]) + 2, 4, count))
        self.first_year = year_of(days[0])
        self.payouts = payouts
        self.quarter_day = np.searchsorted(days, self.ends, side="right")
        self.next = past
        for q in range(past):
            scale = self.log_scale - 0.25 * listing.growth * (past - q)
            self._close_quarter(q, scale, listing.price, listing.shares)
        self.events: dict[int, list[tuple[int, int]]] = {}
        for k in range(len(payouts)):
            dates = np.datetime64(f"{self.first_year + k}-05-15", "D") + (77 * payouts[k, 2]).astype(np.int64)
            for name, position in enumerate(np.searchsorted(days, dates).tolist()):
                if position < len(days) and dates[name] >= days[0]:
                    self.events.setdefault(position, []).append((k, name))

    def open_day(self, t: int, price: Array, shares: Array) -> tuple[Array, Array]:
        """Close the quarters that ended since yesterday and return today's dividends and bonuses.

        Parameters
        ----------
        t : int
            Position of the day.
        price, shares : array, (instruments,)
            Raw price and shares outstanding at the close of the day before.

        Returns
        -------
        cash, bonus : array, (instruments,)
            CNY a share and new shares a share that leave the price today.
        """
        while self.next < len(self.ends) and self.quarter_day[self.next] <= t:
            implied = np.log(price * shares / self.listing.earnings_multiple / self.listing.margin / 4.0)
            gap = np.clip(implied - self.log_scale, -1.0, 1.0)
            self.log_scale = self.log_scale + 0.25 * self.listing.growth + _CATCH_UP * gap
            self._close_quarter(self.next, self.log_scale, price, shares)
            self.next += 1
        cash, bonus = np.zeros(len(price)), np.zeros(len(price))
        for k, name in self.events.get(t, ()):
            fourth = np.flatnonzero(self.periods == (self.first_year + k - 1) * 100 + 4)
            if len(fourth):
                cash[name] = min(self.dividend[fourth[0], name], round(0.3 * float(price[name]), 2))
            choice = float(self.payouts[k, 3, name])
            if price[name] > _DEAR:
                bonus[name] = _BONUSES[-1]
            elif price[name] > 12.0 and choice < 0.12 and not self.loss[self.next - 1, name]:
                bonus[name] = _BONUSES[int(choice / 0.03)]
        return cash, bonus

    def _close_quarter(self, q: int, log_scale: Array, price: Array, shares: Array) -> None:
        season = _SEASONS[self.months[q] // 3 - 1]
        loss = np.where(self.loss[q], 0.75, 1.0)
        self.revenue[q] = _thousands(season * loss * np.exp(log_scale + 0.03 * self.noise[q, 0]))
        self.shares[q] = shares
        if self.months[q] == 12 and q >= 3:
            year = (self.revenue[q - 3 : q + 1] * self.margin[q - 3 : q + 1]).sum(axis=0)
            k = int(self.periods[q] // 100) + 1 - self.first_year
            if k >= 0:
                pays = (self.payouts[k, 0] < 0.75) & (year > 0)
                share = np.minimum((0.15 + 0.4 * self.payouts[k, 1]) * year / shares, 0.08 * price)
                self.dividend[q] = np.where(pays, np.round(share, 2), 0.0)


def draw_accounts(business: Business, listing: Listing, listed: NDArray[np.bool_], days: Days, seed: int) -> Accounts:
    """Write out the accounts of a simulated market; nothing announced after its last day is in them.

    Quarters before a listing become known on the day of listing; nothing becomes known after delisting.

    Parameters
    ----------
    business : Business
        After the last day.
    listing : Listing
    listed : array of bool, (days, instruments)
    days : array of datetime64[D], (days,)
    seed : int
    """
    rng = stream(seed, Purpose.ACCOUNTS)
    length, count = business.revenue.shape
    traits = rng.random((6, count))
    noise = rng.random((length, 4, count))
    announced = _announcement_days(business, listed, listing, days, noise[:, 0])
    later = np.full_like(announced, _NAT)
    later[:-1] = announced[1:]
    restated = np.where((noise[:, 1] < _RESTATED) & (later > announced), later, _NAT)
    correction = np.round(0.85 + 0.3 * noise[:, 2], 3)
    return Accounts(
        periods=business.periods,
        announced=announced,
        values=_values(business, traits, noise[:, 3]),
        restated=restated,
        correction=correction,
    )


def _values(business: Business, traits: Array, noise: Array) -> dict[str, Array]:
    revenue, margin, shares = business.revenue, business.margin, business.shares
    base = business.listing.margin
    net_income = _thousands(revenue * margin)
    gross_margin = np.clip(base + 0.10 + 0.25 * traits[0] + 0.5 * (margin - base), 0.02, 0.9)
    gross_profit = _thousands(revenue * gross_margin)
    cost = revenue - gross_profit
    paid = np.round(business.dividend * shares)
    earned = np.cumsum(net_income - paid, axis=0)
    first = np.abs(revenue[0]) * 4.0 * base / (0.07 + 0.09 * traits[1])
    equity = _thousands(np.maximum(first + earned, 0.05 * first))
    debt = _thousands(equity * (0.15 + 0.9 * traits[2]))
    interest = _thousands(0.011 * debt)
    operating = _thousands(np.where(net_income > 0, net_income / (1.0 - _TAX), net_income) + interest)
    depreciation = _thousands(revenue * (0.02 + 0.04 * traits[3]))
    cash_flow = _thousands(net_income + depreciation + 0.10 * revenue * (noise - 0.5))
    payables = _thousands(cost * (0.3 + 0.5 * traits[4]))
    values = {
        "revenue": revenue,
        "gross_profit": gross_profit,
        "operating_income": operating,
        "net_income": net_income,
        "ebit": operating,
        "ebitda": operating + depreciation,
        "interest_expense": interest,
        "operating_cash_flow": cash_flow,
        "total_debt": debt,
        "total_equity": equity,
        "total_assets": equity + debt + payables,
        "retained_earnings": _thousands(0.4 * first + earned),
        "inventory": _thousands(cost * (0.2 + 0.6 * traits[5])),
        "receivables": _thousands(revenue * (0.2 + 0.4 * traits[4])),
        "payables": payables,
        "cost_of_goods_sold": cost,
        "eps": np.round(net_income / shares, 4),
        "book_value": np.round(equity / shares, 4),
        "dividends": business.dividend,
        "sales": np.round(revenue / shares, 4),
        "operating_cash_flow_ps": np.round(cash_flow / shares, 4),
    }
    return {name: values[name] for name in (*PER_SHARE, *TOTALS)}


def _announcement_days(
    business: Business, listed: NDArray[np.bool_], listing: Listing, days: Days, draws: Array
) -> Days:
    announced = np.empty(draws.shape, dtype="datetime64[D]")
    for q, end in enumerate(business.ends):
        soonest, span = _DELAYS[int(business.months[q])]
        announced[q] = end + soonest + (span * draws[q]).astype(np.int64)
    # A first quarter never comes before the year it follows.
    announced[1:] = np.maximum(announced[1:], announced[:-1] + 1)
    entered = days[np.minimum(np.searchsorted(days, listing.listed), len(days) - 1)]
    announced = np.where(listing.listed > days[0], np.maximum(announced, entered), announced)
    last = days[len(days) - 1 - np.argmax(listed[::-1], axis=0)]
    unknown = (announced > last) | ~listed.any(axis=0)
    return np.where(unknown, _NAT, announced)


def _thousands(values: Array) -> Array:
    """Round to whole thousands of CNY, so that the last bit of an exponential cannot show."""
    return np.asarray(np.round(values, -3))


def _slow(draws: Array) -> Array:
    path = np.empty_like(draws)
    value = draws[0]
    for q in range(len(draws)):
        value = 0.8 * value + 0.6 * draws[q]
        path[q] = value
    return path
