from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.data.embedded.days import review_days, trading_days
from qlib_llm_alpha.data.embedded.plants import PLANTS, plant_scores, rank_scores
from qlib_llm_alpha.data.embedded.simulate import Market, label, planted_factors, simulate
from qlib_llm_alpha.data.embedded.tables import CONDITIONAL, STATIC, plant_ics
from qlib_llm_alpha.data.embedded.write import fields, fingerprint, index_fields
from qlib_llm_alpha.data.sources.boards import board_of, limit_in_cents, rules_of
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.factor.expression import parse
from tests.support.market import END, INSTRUMENTS, SEED, START, small_arrays

# THE GENERATOR IS FROZEN. Gates are tuned and proofs are run on these numbers: a change that moves any of these hashes
# is a new market. It needs a higher GENERATOR, new hashes here, new tables in docs/embedded_market.md and new proofs.
FROZEN = {
    "default": "6e117eb036f6588ea97edfaf9c044789fa4bcdc3e6659218cdb7d64a6fab597d",
    "default noise": "da1406a0fefbc81a0508fe36f62885119668fa5c64d2c9c6f57e6904e2616d5f",
    "small": "cb5c0b98f50a9cd1f88f68b58f26752e665c59f0da0fca1729fb3300ac03f573",
}
IC_SEEDS = range(1, 6)
CENT = 0.01


@cache
def _default_market() -> Market:
    return simulate()


@cache
def _ics(kind: str) -> tuple[dict[str, np.ndarray], np.ndarray, list[dict[str, np.ndarray]]]:
    each, regimes = [], []
    for seed in IC_SEEDS:
        market = simulate(kind, seed=seed)  # type: ignore[arg-type]
        each.append(plant_ics(market))
        regimes.append(market.regime)
    pooled = {name: np.concatenate([ics[name] for ics in each]) for name in each[0]}
    return pooled, np.concatenate(regimes), each


def _raw(market: Market, name: str) -> np.ndarray:
    return getattr(market, name) / market.factor


def test_the_generator_is_frozen_by_the_hash_of_the_default_market() -> None:
    assert fingerprint(_default_market()) == FROZEN["default"]


def test_the_generator_is_frozen_by_the_hash_of_the_noise_market() -> None:
    assert fingerprint(simulate("noise")) == FROZEN["default noise"]


def test_the_generator_is_frozen_by_the_hash_of_the_small_market() -> None:
    assert fingerprint(small_arrays()) == FROZEN["small"]


def test_two_runs_are_equal_and_two_seeds_are_not() -> None:
    again = simulate("planted", INSTRUMENTS, START, END, SEED)
    other = simulate("planted", INSTRUMENTS, START, END, SEED + 1)
    assert fingerprint(again) == fingerprint(small_arrays())
    assert fingerprint(other) != fingerprint(small_arrays())


@pytest.mark.parametrize("end", ["2020-03-02", "2020-06-19", "2020-12-31", "2021-05-06"])
def test_an_earlier_end_leaves_every_earlier_number_as_it_is(end: str) -> None:
    long, short = small_arrays(), simulate("planted", INSTRUMENTS, START, end, SEED)
    length = len(short.days)
    for read in (fields, index_fields):
        for name, values in read(long).items():
            np.testing.assert_array_equal(values[:length], read(short)[name], err_msg=name)
    for name in ("listed", "member", "regime", "up_limit", "down_limit"):
        np.testing.assert_array_equal(getattr(long, name)[:length], getattr(short, name), err_msg=name)


@pytest.mark.parametrize("end", ["2020-03-02", "2020-06-19", "2020-12-31", "2021-05-06"])
def test_an_earlier_end_knows_the_accounts_that_were_announced_by_then_and_no_other(end: str) -> None:
    long, short = small_arrays().accounts, simulate("planted", INSTRUMENTS, START, end, SEED).accounts
    last = trading_days(np.datetime64(START), np.datetime64(end))[-1]
    quarters = len(short.periods)
    known = ~np.isnat(short.announced)
    assert np.sum(long.announced <= last) == known.sum()
    np.testing.assert_array_equal(long.announced[:quarters][known], short.announced[known])
    for name, values in short.values.items():
        np.testing.assert_array_equal(long.values[name][:quarters][known], values[known], err_msg=name)
    corrected = ~np.isnat(short.restated)
    assert np.sum(long.restated <= last) == corrected.sum()


def test_a_start_and_a_size_of_any_kind_make_a_whole_index() -> None:
    for start, end, count, seed in (("2010-01-01", "2011-06-30", 12, 0), ("2022-06-13", "2023-03-31", 60, 3)):
        market = simulate("planted", count, start, end, seed)
        assert np.isfinite(market.index.close).all()
        assert market.member.any(axis=1).all()
        assert market.codes.tolist() == sorted(set(market.codes.tolist()))


def test_prices_make_sense() -> None:
    market = _default_market()
    bar = np.isfinite(market.close)
    for name in ("open", "high", "low", "volume", "amount", "vwap", "factor"):
        np.testing.assert_array_equal(np.isfinite(getattr(market, name)), bar, err_msg=name)
    assert np.all(market.low[bar] <= np.minimum(market.open, market.close)[bar])
    assert np.all(market.high[bar] >= np.maximum(market.open, market.close)[bar])
    assert np.all(market.low[bar] > 0)
    assert np.all(market.volume[bar] > 0)
    assert np.all(market.vwap[bar] <= market.high[bar] * (1 + 1e-6))
    assert np.all(market.vwap[bar] >= market.low[bar] * (1 - 1e-6))


def test_raw_prices_are_whole_cents_and_raw_volumes_whole_lots() -> None:
    market = _default_market()
    for name in ("open", "high", "low", "close"):
        cents = _raw(market, name) / CENT
        assert np.nanmax(np.abs(cents - np.round(cents))) < 1e-6
    lots = market.volume * market.factor / 100
    assert np.nanmax(np.abs(lots - np.round(lots))) < 1e-5


def test_no_price_leaves_its_limits_and_the_limits_bind() -> None:
    market = _default_market()
    for name in ("open", "high", "low", "close"):
        raw = np.round(_raw(market, name), 2)
        bar = np.isfinite(raw)
        assert np.all(raw[bar] <= market.up_limit[bar] + 1e-9)
        assert np.all(raw[bar] >= market.down_limit[bar] - 1e-9)
    close = np.round(_raw(market, "close"), 2)
    assert 0.002 < np.mean(close[np.isfinite(close)] >= market.up_limit[np.isfinite(close)] - 1e-9) < 0.02
    assert 0.002 < np.mean(close[np.isfinite(close)] <= market.down_limit[np.isfinite(close)] + 1e-9) < 0.02


def test_limits_follow_the_rules_of_the_exchanges_by_a_slow_reference() -> None:
    market = small_arrays()
    raw = np.round(_raw(market, "close"), 2)
    seen: set[tuple[str, float]] = set()
    for column, code in enumerate(market.codes.tolist()):
        board = board_of(code)
        assert board is not None
        listed = np.flatnonzero(market.listed[:, column])
        age_at_start = 0 if listed[0] > 0 else 10_000
        previous, factor = np.nan, np.nan
        for age, t in enumerate(listed.tolist(), start=age_at_start):
            if not np.isfinite(raw[t, column]):
                continue
            same_factor = factor == market.factor[t, column]
            reference, factor = previous, market.factor[t, column]
            previous = raw[t, column]
            rule = [rule for rule in rules_of(board) if rule.since <= market.days[t]][-1]
            if age < rule.free_days:
                assert np.isinf(market.up_limit[t, column])
                assert market.down_limit[t, column] == 0.0
                seen.add((board, np.inf))
            elif age > 0 and np.isfinite(reference) and same_factor:
                percent = rule.st_percent if market.st[t, column] else rule.percent
                cents = np.array([round(reference * 100)] * 2)
                up, down = limit_in_cents(cents, np.array([percent, -percent])).tolist()
                assert market.up_limit[t, column] == pytest.approx(up / 100, abs=1e-9)
                assert market.down_limit[t, column] == pytest.approx(down / 100, abs=1e-9)
                seen.add((board, percent))
    assert {("main", 10), ("main", 5), ("chinext", 10), ("chinext", 20), ("star", 20), ("star", np.inf)} <= seen


def test_the_factor_starts_at_one_and_moves_only_on_ex_days() -> None:
    market = _default_market()
    moves = 0
    for column in np.flatnonzero(market.listed.any(axis=0)):
        factor = market.factor[:, column]
        factor = factor[np.isfinite(factor)]
        assert factor[0] == 1.0
        assert np.all(np.diff(factor) >= 0)
        moves += int(np.sum(np.diff(factor) > 0))
    assert 200 < moves < 700


def test_bonus_shares_raise_the_factor_as_they_raise_the_shares() -> None:
    market = _default_market()
    shares, factor = market.shares[1:] / market.shares[:-1], market.factor[1:] / market.factor[:-1]
    bonus = (shares > 1.0) & np.isfinite(factor)
    assert bonus.sum() > 10
    assert np.all(factor[bonus] >= shares[bonus] * 0.999)
    assert np.all(factor[bonus] <= shares[bonus] * 1.10)


def test_listings_delistings_suspensions_and_special_treatment_all_happen() -> None:
    market = _default_market()
    ever = market.listed.any(axis=0)
    assert (ever & ~market.listed[0]).sum() >= 5
    assert (ever & ~market.listed[-1]).sum() >= 2
    suspended = market.listed & ~np.isfinite(market.close)
    assert 0.001 < suspended.sum() / market.listed.sum() < 0.02
    assert not np.any(np.isfinite(market.close) & ~market.listed)
    assert np.nansum(market.st) > 100
    for name in ("shares", "st"):
        np.testing.assert_array_equal(np.isfinite(getattr(market, name)), market.listed)
    for column in np.flatnonzero(ever):
        edges = np.abs(np.diff(market.listed[:, column].astype(int))).sum()
        assert edges <= 2


def test_the_board_of_every_code_is_known_and_star_lists_only_once_it_is_open() -> None:
    market = _default_market()
    boards = np.array([board_of(code) for code in market.codes.tolist()])
    assert set(boards) == {"main", "chinext", "star"}
    before = market.days < np.datetime64("2019-07-22")
    assert not market.listed[np.ix_(before, boards == "star")].any()


def test_members_are_the_largest_four_fifths_and_change_only_at_reviews_or_by_delisting() -> None:
    market = _default_market()
    assert np.all(np.abs(market.member.sum(axis=1) / market.listed.sum(axis=1) - 0.8) < 0.06)
    changed = np.flatnonzero((market.member[1:] & ~market.member[:-1]).any(axis=1)) + 1
    assert set(changed) <= set(review_days(market.days))
    assert len(changed) >= 10
    left = market.member[:-1] & ~market.member[1:]
    for t, column in np.argwhere(left):
        assert t + 1 in review_days(market.days) or not market.listed[t + 1, column]


def test_the_index_weighs_its_members_by_the_capitalisation_of_the_evening_before() -> None:
    market = small_arrays()
    carried = pd.DataFrame(market.close).ffill().to_numpy()
    raw = pd.DataFrame(_raw(market, "close")).ffill().to_numpy()
    for t in (5, 100, 300, 513):
        columns = np.flatnonzero(market.member[t]).tolist()
        weights = {column: raw[t - 1, column] * market.shares[t - 1, column] for column in columns}
        total = sum(weights.values())
        weights = {column: weight / total for column, weight in weights.items()}
        for _ in range(200):
            excess = sum(max(weight - 0.10, 0.0) for weight in weights.values())
            room = sum(weight for weight in weights.values() if weight < 0.10)
            weights = {c: 0.10 if w >= 0.10 else w * (1.0 + excess / room) for c, w in weights.items()}
        expected = sum(w * (carried[t, c] / carried[t - 1, c] - 1.0) for c, w in weights.items())
        assert max(weights.values()) <= 0.10 + 1e-9
        assert market.index.close[t] / market.index.close[t - 1] - 1.0 == pytest.approx(expected, abs=5e-6)
    assert np.all(market.index.high >= np.maximum(market.index.open, market.index.close))
    assert np.all(market.index.low <= np.minimum(market.index.open, market.index.close))


def test_regimes_persist_and_differ_in_return_and_volatility() -> None:
    lengths, returns, regimes = [], [], []
    for seed in range(20, 26):
        market = simulate(seed=seed)
        edges = np.flatnonzero(np.diff(market.regime)) + 1
        lengths += np.diff([0, *edges, len(market.regime)]).tolist()
        returns.append(np.diff(np.log(market.index.close)))
        regimes.append(market.regime[1:])
    change, regime = np.concatenate(returns), np.concatenate(regimes)
    assert 60 <= np.mean(lengths) <= 120
    mean = [change[regime == k].mean() for k in range(3)]
    deviation = [change[regime == k].std() for k in range(3)]
    assert mean[0] > mean[2] > mean[1]
    assert deviation[1] > 1.2 * deviation[0] > 1.2 * 1.2 * deviation[2]


def test_no_member_weighs_more_than_a_tenth_of_the_index() -> None:
    # In the market of seed 25 one name grows to nine tenths of all capital.
    market = simulate(seed=25)
    change = market.index.close[1:] / market.index.close[:-1] - 1.0
    assert change.std() < 0.015


def test_there_is_a_crash_week() -> None:
    level = _default_market().index.close
    assert np.min(level[5:405] / level[:400] - 1.0) < -0.10


def test_planted_factors_equal_a_slow_reference_on_frames() -> None:
    market = small_arrays()
    close, high, low, opening, volume = (
        pd.DataFrame(getattr(market, name)) for name in ("close", "high", "low", "open", "volume")
    )
    change = close / close.shift(1)
    expected = {
        "reversal_5": 1 - close / close.shift(5),
        "momentum_20": close.shift(5) / close.shift(25) - 1,
        "low_volatility_20": -change.rolling(20).std(),
        "volume_surprise_20": volume / volume.rolling(20).mean(),
        "close_in_range": (2 * close - high - low) / (high - low).where(high > low),
        "overnight_fade": 1 - opening / close.shift(1),
    }
    assert list(expected) == [plant.name for plant in PLANTS]
    for name, values in planted_factors(market).items():
        # The frame's rolling sums cancel digits that the direct windows keep.
        reference = np.where(market.listed, expected[name].to_numpy(), np.nan)
        np.testing.assert_allclose(values, reference, rtol=1e-6, atol=1e-8, err_msg=name)


def test_the_factor_language_reads_every_plant() -> None:
    for plant in PLANTS:
        expression = parse(plant.expression)
        assert expression.lookahead == 0
        assert expression.lookback <= 25


def test_a_plant_reads_no_bar_after_its_day() -> None:
    bars = {name: values.copy() for name, values in small_arrays().bars().items()}
    before = plant_scores(bars, 200)
    for values in bars.values():
        values[201:] = 1e6
    np.testing.assert_array_equal(plant_scores(bars, 200), before)


def test_rank_scores_have_mean_zero_and_skip_missing_values() -> None:
    scores = rank_scores(np.array([[3.0, np.nan, 1.0, 2.0]]))
    np.testing.assert_allclose(scores, np.sqrt(12.0) * np.array([[1 / 3, 0.0, -1 / 3, 0.0]]), atol=1e-15)


def test_the_label_is_the_return_from_the_next_close_to_the_one_after() -> None:
    market = small_arrays()
    values = label(market)
    assert values[100, 0] == pytest.approx(market.close[102, 0] / market.close[101, 0] - 1.0)
    assert np.isnan(values[-2:]).all()


def test_no_plant_is_stronger_than_in_life() -> None:
    ics, regime, _ = _ics("planted")
    for plant in PLANTS:
        means = [np.nanmean(ics[plant.name][regime == k]) for k in range(3)]
        assert np.max(np.abs(means)) <= 0.05, plant.name
        strongest = int(np.argmax(np.abs(plant.strength)))
        assert abs(means[strongest]) >= 0.02, plant.name
        assert np.sign(means[strongest]) == np.sign(plant.strength[strongest]), plant.name


def test_the_daily_ic_of_every_plant_varies_as_in_life() -> None:
    ics, _, _ = _ics("planted")
    for plant in PLANTS:
        assert 0.10 <= np.nanstd(ics[plant.name]) <= 0.15, plant.name


def test_knowing_the_regime_is_worth_something_and_not_knowing_it_leaves_something() -> None:
    ics, _, each = _ics("planted")
    static, conditional = np.nanmean(ics[STATIC]), np.nanmean(ics[CONDITIONAL])
    assert 0.02 <= static <= 0.05
    assert conditional >= 1.5 * static
    for one in each:
        assert np.nanmean(one[CONDITIONAL]) > np.nanmean(one[STATIC])


def test_nothing_is_planted_in_the_noise_market() -> None:
    ics, regime, _ = _ics("noise")
    for name, values in ics.items():
        for chosen in (np.ones(len(regime), dtype=bool), *(regime == k for k in range(3))):
            daily = values[chosen & np.isfinite(values)]
            # Daily ICs of slow factors are correlated: five days count as one.
            assert abs(daily.mean()) < 3.0 * daily.std() / np.sqrt(len(daily) / 5), name
        assert abs(np.nanmean(values)) < 0.004, name


def test_the_noise_market_shares_all_that_is_not_planted() -> None:
    planted, noise = _default_market(), simulate("noise")
    np.testing.assert_array_equal(planted.regime, noise.regime)
    np.testing.assert_array_equal(planted.codes, noise.codes)
    np.testing.assert_array_equal(planted.close[:2], noise.close[:2])
    assert np.nanmedian(np.abs(planted.close[60] / noise.close[60] - 1.0)) < 0.05


def test_trading_days_are_weekdays_without_holidays() -> None:
    days = trading_days(np.datetime64("2018-01-01"), np.datetime64("2018-12-31"))
    assert 238 <= len(days) <= 250
    assert np.is_busday(days).all()
    for closed in ("2018-02-05", "2018-02-09", "2018-10-01", "2018-05-01", "2018-04-05"):
        assert np.datetime64(closed) not in days
    assert np.datetime64("2018-02-12") in days


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "signal"}, "'signal' is unknown"),
        ({"instruments": 3}, "at least 10"),
        ({"instruments": 100_000}, "5000"),
        ({"seed": -1}, "not negative"),
        ({"start": "yesterday"}, "is no date"),
        ({"start": "2020-01-01", "end": "2019-01-01"}, "before the end"),
        ({"end": "2017-02-01"}, "trading days"),
    ],
)
def test_arguments_that_cannot_make_a_market_are_refused_in_words(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(**arguments)  # type: ignore[arg-type]
