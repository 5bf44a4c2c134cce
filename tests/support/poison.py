"""A market whose future is replaced: the same up to a day, garbage but valid values after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qlib_llm_alpha.data.embedded.accounts import Accounts
from qlib_llm_alpha.data.embedded.simulate import Market


def poisoned(market: Market, after: str, seed: int = 1) -> Market:
    """Replace everything dated after a day: bars, factor, shares, ST, index, listing, membership, accounts.

    Names leave the market on the day after and on later days, others never list, the index's members are drawn anew,
    quarters announced later have other values and other days, and later corrections are others.
    """
    rng = np.random.default_rng(seed)
    cut = int(np.searchsorted(market.days, np.datetime64(after, "D"), side="right"))
    count, names = len(market.days) - cut, len(market.codes)
    listed = market.listed.copy()
    listed[cut:] = _other_listing(market.listed, cut, rng)
    member = market.member.copy()
    member[cut:] = listed[cut:] & (rng.random((1, names)) < 0.8)
    bars = _other_bars(rng, (count, names), ~listed[cut:] | (rng.random((count, names)) < 0.1))
    index_bars = _other_bars(rng, (count, 1), np.zeros((count, 1), dtype=bool))
    index = {name: _joined(getattr(market.index, name), bar[:, 0], cut) for name, bar in index_bars.items()}
    new: dict[str, np.ndarray] = {name: _joined(getattr(market, name), bars[name], cut) for name in bars}
    new["factor"] = _joined(
        market.factor, np.where(np.isnan(bars["close"]), np.nan, rng.uniform(0.2, 5, count)[:, None]), cut
    )
    new["shares"] = _joined(market.shares, np.where(listed[cut:], rng.uniform(1e6, 1e9, (count, names)), np.nan), cut)
    new["st"] = _joined(market.st, np.where(listed[cut:], rng.integers(0, 2, (count, names)), np.nan), cut)
    return replace(
        market,
        **new,
        listed=listed,
        member=member,
        index=replace(market.index, **index),
        accounts=_other_accounts(market.accounts, np.datetime64(after, "D"), rng),
    )


def _joined(before: np.ndarray, after: np.ndarray, cut: int) -> np.ndarray:
    return np.concatenate([before[:cut], after])


def _other_bars(rng: np.random.Generator, shape: tuple[int, int], missing: np.ndarray) -> dict[str, np.ndarray]:
    """Bars in order (low <= open, close, vwap <= high) that have nothing to do with those before."""
    low, width = rng.uniform(1, 500, shape), rng.uniform(0.01, 50, shape)
    inner = {name: low + rng.random(shape) * width for name in ("open", "close", "vwap")}
    raw = {**inner, "low": low, "high": low + width}
    raw |= {"volume": rng.uniform(1e3, 1e8, shape), "amount": rng.uniform(1e4, 1e11, shape)}
    return {name: np.where(missing, np.nan, values) for name, values in raw.items()}


def _other_listing(listed: np.ndarray, cut: int, rng: np.random.Generator) -> np.ndarray:
    """Let a third of the names leave, some on the first day already, and half of the newcomers never come."""
    after = listed[cut:].copy()
    for column in range(listed.shape[1]):
        there = listed[cut - 1, column]
        chance = rng.random()
        if there and chance < 0.15:
            after[:, column] = False
        elif there and chance < 0.35:
            after[int(rng.integers(1, len(after))) :, column] = False
        elif there:
            after[:, column] = True
        elif not listed[:cut, column].any():
            after[:, column] = chance < 0.5
    return after


def _other_accounts(accounts: Accounts, after: np.datetime64, rng: np.random.Generator) -> Accounts:
    later = accounts.announced > after
    delay = rng.integers(0, 30, accounts.announced.shape).astype("timedelta64[D]")
    values = {name: np.where(later, rng.normal(0, 1e3, known.shape), known) for name, known in accounts.values.items()}
    corrected = accounts.restated > after
    # What was announced before may be corrected later, also where it never was.
    again = corrected | (
        ~np.isnat(accounts.announced) & ~later & np.isnat(accounts.restated) & (rng.random(later.shape) < 0.2)
    )
    days = after + 1 + rng.integers(0, 60, later.shape).astype("timedelta64[D]")
    return replace(
        accounts,
        announced=np.where(later, accounts.announced + delay, accounts.announced),
        values=values,
        restated=np.where(again, days, np.where(later, np.datetime64("NaT"), accounts.restated)),
        correction=np.where(again, rng.uniform(0.1, 9, later.shape), accounts.correction),
    )
