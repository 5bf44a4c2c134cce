"""The index SH000300 of the embedded market: its members and its bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.days import Days, review_days
from qlib_llm_alpha.data.embedded.streams import Purpose, stream

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

MEMBER_SHARE = 0.8
_SEASONING = 60
_INCUMBENT = 1.15
_BASE_LEVEL = 3300.0
_RANGE_SHARE = 0.22
_HEAVIEST = 0.10


@dataclass(frozen=True)
class IndexBars:
    """Daily bars of the index, arrays of shape (days,): points, shares, CNY."""

    open: Array
    high: Array
    low: Array
    close: Array
    vwap: Array
    volume: Array
    amount: Array


def index_membership(days: Days, capital: Array, opening_capital: Array, listed: Mask, st: Mask) -> Mask:
    """Return who is in the index on each day.

    At each review the largest names by the capitalisation of the evening before enter: 80 % of those then listed,
    names under special treatment and names listed within the last 60 days left out, incumbents favoured by 15 %. A
    delisted name leaves with its last day.

    Parameters
    ----------
    days : array, (days,)
    capital : array, (days, instruments)
        Capitalisation at the close, carried over suspensions.
    opening_capital : array, (instruments,)
        The same before the first day.
    listed, st : array of bool, (days, instruments)

    Returns
    -------
    array of bool, (days, instruments)
    """
    member = np.zeros(listed.shape, dtype=bool)
    seasoned = listed[0] | (np.cumsum(listed, axis=0) >= _SEASONING)
    positions = review_days(days)
    inside = np.zeros(listed.shape[1], dtype=bool)
    for position, until in zip(positions, [*positions[1:], len(days)], strict=True):
        known = capital[position - 1] if position else opening_capital
        eligible = listed[position] & ~st[position] & (seasoned[position - 1] if position else True)
        weight = np.where(eligible, known * np.where(inside, _INCUMBENT, 1.0), -1.0)
        count = min(round(MEMBER_SHARE * int(listed[position].sum())), int(eligible.sum()))
        inside = np.zeros_like(inside)
        inside[np.argsort(-weight, kind="stable")[:count]] = True
        member[position:until] = inside
    return member & listed


def draw_index(
    bars: Mapping[str, Array], factor: Array, amount: Array, capital: Array, opening: Array, member: Mask, seed: int
) -> IndexBars:
    """Weigh the members' returns by the capitalisation of the evening before, each held at 10 % at most.

    Parameters
    ----------
    bars : mapping of "open", "high", "low", "close", "volume" to array, (days, instruments)
        Adjusted.
    factor, amount : array, (days, instruments)
    capital : array, (days, instruments)
        At the close, carried over suspensions.
    opening : array, (2, instruments)
        Adjusted price and capitalisation before the first day.
    member : array of bool, (days, instruments)
    seed : int
    """
    length = len(member)
    draws = -2.0 * np.log(1.0 - stream(seed, Purpose.INDEX).random((length, 2)))
    previous, weight = opening[0].copy(), opening[1]
    level = _BASE_LEVEL
    out = np.empty((5, length))
    for t in range(length):
        traded = member[t] & np.isfinite(bars["close"][t])
        share = np.where(member[t], weight, 0.0)
        share = _capped(share / share.sum(), int(member[t].sum()))
        close, gap, reach = (
            float((share * np.where(traded, values, 0.0)).sum())
            for values in (
                bars["close"][t] / previous - 1.0,
                bars["open"][t] / previous - 1.0,
                bars["high"][t] / bars["low"][t] - 1.0,
            )
        )
        opened, closed = round(level * (1.0 + gap), 2), round(level * (1.0 + close), 2)
        square = (_RANGE_SHARE * reach * level) ** 2
        up, down = (float(np.sqrt((closed - opened) ** 2 + square * draws[t, side])) for side in (0, 1))
        high = max(round(0.5 * (opened + closed + up), 2), opened, closed)
        low = min(round(0.5 * (opened + closed - down), 2), opened, closed)
        out[:, t] = opened, high, low, closed, round(0.25 * (opened + high + low + closed), 2)
        level = closed
        previous = np.where(np.isfinite(bars["close"][t]), bars["close"][t], previous)
        weight = capital[t]
    raw_volume = np.where(member, bars["volume"] * factor, np.nan)
    return IndexBars(
        open=out[0],
        high=out[1],
        low=out[2],
        close=out[3],
        vwap=out[4],
        volume=np.round(np.nansum(raw_volume, axis=1)),
        amount=np.round(np.nansum(np.where(member, amount, np.nan), axis=1)),
    )


def _capped(share: Array, members: int) -> Array:
    """Hold shares at 10 % (at twice the even share in small indices); the others take the excess in proportion."""
    limit = max(_HEAVIEST, 2.0 / members)
    held = np.zeros(len(share), dtype=bool)
    capped = share
    while np.any(capped > limit * (1.0 + 1e-9)):
        held |= capped > limit
        free = np.where(held, 0.0, share)
        capped = np.where(held, limit, free * (1.0 - limit * held.sum()) / free.sum())
    return capped
