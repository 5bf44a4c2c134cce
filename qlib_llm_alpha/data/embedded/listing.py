"""Who is listed: codes, boards, industries, sizes, risk, listing days and which names fall into distress."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.data.embedded.days import Days, year_of
from qlib_llm_alpha.data.embedded.streams import Purpose, stream
from qlib_llm_alpha.data.sources.boards import rules_of

Array = NDArray[np.float64]

INDUSTRIES = 11
STAR_OPENS = np.datetime64("2019-07-22", "D")

MAIN_SH, MAIN_SZ, CHINEXT, STAR = range(4)
# 8 % STAR, 20 % ChiNext, 32 % Shenzhen main, the rest Shanghai main; by position, so that small markets have all four.
_BOARD_CYCLE = (0, 1, 2, 0, 1, 3, 0, 1, 0, 2, 0, 1, 0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 0, 2)
_CODE_BASE = {MAIN_SH: ("SH", 600000), MAIN_SZ: ("SZ", 1), CHINEXT: ("SZ", 300001), STAR: ("SH", 688001)}
_CODE_STEP = {MAIN_SH: 7, MAIN_SZ: 9, CHINEXT: 5, STAR: 4}
_RULE_BOARD = {MAIN_SH: "main", MAIN_SZ: "main", CHINEXT: "chinext", STAR: "star"}
_DISTRESS_EVERY = 20
_NEVER = np.datetime64("9999-12-31", "D")


@dataclass(frozen=True)
class Listing:
    """Constants of each instrument, arrays of shape (instruments,), sorted by code.

    Parameters
    ----------
    codes : array of str
    board : array of int
        ``MAIN_SH``, ``MAIN_SZ``, ``CHINEXT`` or ``STAR``.
    industry : array of int
        1 to ``INDUSTRIES``.
    price, shares : array
        Raw price in CNY and shares outstanding before the first trade.
    beta, own_volatility, turnover, earnings_multiple, margin, growth : array
        Market beta; daily deviation of the own shock; mean daily log turnover; price over yearly net income; net
        income over revenue; yearly growth of revenue.
    listed : array of datetime64[D]
        First trading day, or a day before the market starts.
    st_from, st_until, delisted : array of datetime64[D]
        Special treatment from the first to before the second; no trade from the third. 9999-12-31 is never.
    loss_from, loss_until : array of datetime64[D]
        Quarters that end from the first to before the second make a loss.
    """

    codes: NDArray[np.str_]
    board: NDArray[np.int64]
    industry: NDArray[np.int64]
    price: Array
    shares: Array
    beta: Array
    own_volatility: Array
    turnover: Array
    earnings_multiple: Array
    margin: Array
    growth: Array
    listed: Days
    st_from: Days
    st_until: Days
    delisted: Days
    loss_from: Days
    loss_until: Days


def draw_listing(instruments: int, start: np.datetime64, seed: int) -> Listing:
    """Draw the instruments of a market; nothing here depends on where the market ends.

    One name in ten lists during the first five years, STAR names from 2019-07-22 on; one in twenty falls into
    distress: two loss-making years and delisting, or one and recovery.
    """
    rng = stream(seed, Purpose.LISTING)
    board = np.array([_BOARD_CYCLE[i % len(_BOARD_CYCLE)] for i in range(instruments)], dtype=np.int64)
    numbers = {which: 0 for which in _CODE_BASE}
    codes = []
    for which in board.tolist():
        prefix, base = _CODE_BASE[which]
        codes.append(f"{prefix}{base + _CODE_STEP[which] * numbers[which]:06d}")
        numbers[which] += 1
    order = np.argsort(np.array(codes))
    board = board[order]

    industry = rng.permutation(np.arange(instruments) % INDUSTRIES) + 1
    taste = rng.standard_normal((8, instruments))
    price = np.round(np.clip(np.exp(np.log(26.0) + 0.55 * taste[0]), 9.0, 150.0), 2)
    capital = np.exp(np.log(2.5e10) + 0.9 * taste[1])
    shares = np.round(capital / price, -4)
    risk = 0.28 * np.clip(taste[2], -1.8, 1.8)
    beta = 1.0 + 0.12 * taste[3] + 0.3 * risk
    turnover = np.log(0.009) - 0.15 * taste[1] + 0.4 * taste[4] + 0.8 * risk
    young = (board == CHINEXT) | (board == STAR)
    multiple = np.exp(np.log(20.0) + 0.4 * taste[5] + 0.4 * young)
    margin = np.clip(np.exp(np.log(0.09) + 0.5 * taste[6]), 0.015, 0.45)
    growth = 0.08 + 0.04 * taste[7] + 0.04 * young

    listed = _listing_days(board, start, rng)
    st_from, st_until, delisted, loss_from, loss_until = _distress(board, listed, start, rng)
    return Listing(
        codes=np.array(codes)[order],
        board=board,
        industry=industry,
        price=price,
        shares=shares,
        beta=beta,
        own_volatility=0.0188 * np.exp(risk + 0.12 * young),
        turnover=turnover,
        earnings_multiple=multiple,
        margin=margin,
        growth=growth,
        listed=listed,
        st_from=st_from,
        st_until=st_until,
        delisted=delisted,
        loss_from=loss_from,
        loss_until=loss_until,
    )


def daily_limit(listing: Listing, days: Days, st: NDArray[np.bool_], age: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return how far a close may rise and fall from its reference, in whole percent; inf where no limit holds.

    The rules are those of :mod:`qlib_llm_alpha.data.sources.boards`.

    Parameters
    ----------
    days : array, (days,)
    st : array of bool, (days, instruments)
    age : array of int, (days, instruments)
        Trading days since listing: 0 on the day of listing; large for names listed before the market starts.

    Returns
    -------
    up, down : array, (days, instruments)
    """
    up = np.empty(st.shape)
    first_up, first_down, free_days = (np.zeros(len(listing.codes)) for _ in range(3))
    for board, name in _RULE_BOARD.items():
        rules = rules_of(name)
        columns = listing.board == board
        since = np.array([rule.since for rule in rules])
        in_force = np.maximum(np.searchsorted(since, days, side="right") - 1, 0)
        ordinary = np.array([float(rule.percent) for rule in rules])[in_force]
        special = np.array([float(rule.st_percent) for rule in rules])[in_force]
        up[:, columns] = np.where(st[:, columns], special[:, None], ordinary[:, None])
        at_listing = np.maximum(np.searchsorted(since, listing.listed[columns], side="right") - 1, 0)
        first = np.array([rule.first_day or (0, 0) for rule in rules], dtype=float)[at_listing]
        first_up[columns], first_down[columns] = first[:, 0], first[:, 1]
        free_days[columns] = np.array([float(rule.free_days) for rule in rules])[at_listing]
    down = up.copy()
    opening = (age == 0) & (first_up > 0)
    free = (age >= 0) & (age < free_days)
    up = np.where(free, np.inf, np.where(opening, first_up, up))
    down = np.where(free, np.inf, np.where(opening, first_down, down))
    return up, down


def _listing_days(board: NDArray[np.int64], start: np.datetime64, rng: np.random.Generator) -> Days:
    count = len(board)
    listed = start - 400 - rng.integers(0, 4000, count)
    newcomers = rng.permutation(count)[: max(1, round(0.10 * count))]
    waits = 30 + rng.integers(0, 1800, count)
    listed[newcomers] = start + waits[newcomers]
    star = board == STAR
    opening = np.maximum(STAR_OPENS, start - 1000)
    star_waits = np.maximum(rng.integers(-250, 900, count), 0)
    listed[star] = opening + star_waits[star]
    return np.asarray(listed)


def _distress(
    board: NDArray[np.int64], listed: Days, start: np.datetime64, rng: np.random.Generator
) -> tuple[Days, Days, Days, Days, Days]:
    count = len(board)
    year = year_of(start)
    st_from, st_until, delisted, loss_from, loss_until = (np.full(count, _NEVER) for _ in range(5))
    old = rng.permutation(np.flatnonzero((board < CHINEXT) & (listed < start)))
    offsets = rng.integers(0, 5, count)
    for i, name in enumerate(old[: max(1, count // _DISTRESS_EVERY)]):
        loss = year - 1 if i == 0 else year + int(offsets[i])
        loss_from[name] = np.datetime64(f"{loss}-01-01", "D")
        st_from[name] = np.datetime64(f"{loss + 1}-05-01", "D")
        recovers = i % 2 == 1
        loss_until[name] = np.datetime64(f"{loss + 1 if recovers else loss + 3}-01-01", "D")
        if recovers:
            st_until[name] = np.datetime64(f"{loss + 2}-05-01", "D")
        else:
            delisted[name] = np.datetime64(f"{loss + 2}-06-20", "D")
    return st_from, st_until, delisted, loss_from, loss_until
