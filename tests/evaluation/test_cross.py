"""The arithmetic of a grid: errors against statsmodels, cells by hand, verdicts on what was planted and on noise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from qlib_llm_alpha.engine.panel import Days, as_days
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.bootstrap import bootstrap_interval
from qlib_llm_alpha.evaluation.cross import (
    Cell,
    FactorDays,
    GridVerdict,
    MarketDays,
    Resampling,
    block_interval,
    coin_p,
    contrast,
    decay_slope,
    fill_cell,
    grid_verdicts,
    hac_slope,
    market_states,
    period_rows,
    side_trades,
)
from qlib_llm_alpha.evaluation.statistics import automatic_lags
from qlib_llm_alpha.evaluation.walls import Segment

Array = NDArray[np.float64]
DAYS_IN_PERIOD = 250
PERIODS = ("early", "middle", "late")
NOISE = 0.1
"""Deviation of a daily rank IC of about a hundred names."""


def calendar(count: int) -> Days:
    return as_days(np.datetime64("2015-01-01", "D") + np.arange(count))


def market(name: str, rank_ic: Array, periods: tuple[str, ...] = PERIODS) -> MarketDays:
    """Cut (K, T) series into periods of equal length."""
    part = np.arange(rank_ic.shape[1]) * len(periods) // rank_ic.shape[1]
    return MarketDays(
        name, calendar(rank_ic.shape[1]), rank_ic, {one: part == place for place, one in enumerate(periods)}
    )


def drawn(effects: dict[str, tuple[float, ...]], seed: int = 1, periods: tuple[str, ...] = PERIODS) -> list[MarketDays]:
    """Draw one factor with an effect in each period, and nine without, in each market."""
    rng = np.random.default_rng(seed)
    found = []
    for name, steps in effects.items():
        series = NOISE * rng.standard_normal((10, DAYS_IN_PERIOD * len(periods)))
        series[0] += np.repeat(steps, DAYS_IN_PERIOD)
        found.append(market(name, series, periods))
    return found


def judged(effects: dict[str, tuple[float, ...]], seed: int = 1, periods: tuple[str, ...] = PERIODS) -> GridVerdict:
    names = [(f"f{place}", f"id{place}") for place in range(10)]
    return grid_verdicts(names, drawn(effects, seed, periods))[0]


def a_cell(sign: int = 1, cost: float | None = 10.0) -> Cell:
    basis = Basis("Ref($close,-2)/Ref($close,-1)-1", 2, "rank_ic", "cn:csi300", "members of the day", "2015-01-01",
                  "2015-12-31", cost, None)  # fmt: skip
    return Cell("f", "id", "cn", "early", 1, sign, basis)


# Slopes and contrasts


@pytest.mark.parametrize("seed", range(3))
def test_a_slope_and_its_hac_error_are_those_of_statsmodels(seed: int) -> None:
    regression = pytest.importorskip("statsmodels.regression.linear_model", reason="statsmodels is not installed")
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.standard_normal(300))
    y = 0.3 * x + np.convolve(rng.standard_normal(304), np.ones(5), mode="valid")
    fitted = regression.OLS(y, np.column_stack([np.ones(300), x])).fit(
        cov_type="HAC", cov_kwds={"maxlags": automatic_lags(300), "use_correction": False}
    )
    found = hac_slope(y, x)
    assert found.slope == pytest.approx(fitted.params[1], rel=1e-10)
    assert found.error == pytest.approx(fitted.bse[1], rel=1e-10)
    assert found.t == pytest.approx(fitted.tvalues[1], rel=1e-10)


def test_days_without_a_value_are_left_out_of_a_slope() -> None:
    y, x = np.array([1.0, np.nan, 2.0, 4.0, 3.0]), np.array([0.0, 9.0, 1.0, 2.0, 3.0])
    assert hac_slope(y, x) == hac_slope(y[[0, 2, 3, 4]], x[[0, 2, 3, 4]])


@pytest.mark.parametrize(("y", "x"), [([1.0, 2.0], [0.0, 1.0]), ([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])])
def test_too_few_days_or_a_still_regressor_have_no_slope(y: list[float], x: list[float]) -> None:
    assert math.isnan(hac_slope(np.array(y), np.array(x)).slope)


def test_decay_is_told_per_year() -> None:
    days = calendar(731)
    falling = 0.05 - 0.02 * np.arange(731.0) / 365.25
    assert decay_slope(falling, days, np.ones(731, dtype=bool)).slope == pytest.approx(-0.02)


def test_days_outside_the_rows_do_not_enter_decay() -> None:
    rows = np.arange(400) < 300
    series = np.where(rows, 0.01 * np.arange(400.0), 1e6)
    assert decay_slope(series, calendar(400), rows).slope == pytest.approx(3.6525)


def test_a_contrast_by_hand() -> None:
    found = contrast(np.array([0.1, 0.2, 0.3, np.nan, 0.5, 9.0]), np.array([1.0, 0.0, 1.0, 1.0, 0.0, np.nan]))
    assert (found.days_inside, found.days_outside) == (2, 2)
    assert found.inside == pytest.approx(0.2)
    assert found.outside == pytest.approx(0.35)
    assert found.difference == pytest.approx(-0.15)


# Days and trades


def test_the_last_days_of_a_period_are_left_out_when_their_label_is_known_after_it() -> None:
    rows = period_rows(calendar(10), Segment("p", np.datetime64("2015-01-03"), np.datetime64("2015-01-08")), 2)
    assert np.flatnonzero(rows).tolist() == [2, 3, 4, 5]


def test_a_period_that_ends_on_a_holiday_is_purged_from_its_last_trading_day() -> None:
    days = np.delete(calendar(10), [6, 7])
    rows = period_rows(days, Segment("p", np.datetime64("2015-01-01"), np.datetime64("2015-01-08")), 2)
    assert days[rows].astype(str).tolist() == [f"2015-01-0{day}" for day in (1, 2, 3, 4)]


def test_a_label_without_a_horizon_is_refused() -> None:
    with pytest.raises(ConfigError, match="horizon is 0"):
        period_rows(calendar(3), Segment("p", np.datetime64("2015-01-01"), np.datetime64("2015-01-03")), 0)


def test_what_is_new_on_a_side_is_bought_and_what_left_is_sold() -> None:
    long, short = np.array([np.nan, 0.0, 0.25, np.nan]), np.array([np.nan, 0.0, 0.5, 0.1])
    assert side_trades(long, short).tolist() == [2.0, 0.0, 1.5, 2.0]


# Cells


def test_a_cell_by_hand() -> None:
    daily = FactorDays(
        rank_ic=np.array([0.9, *np.tile([0.1, -0.2], 15)]),
        spread=np.array([0.9, *np.tile([-0.01, -0.02], 15)]),
        traded=np.array([2.0, *np.tile([0.5, 1.5], 15)]),
        coverage=np.array([0.0, *np.tile([1.0, 0.8], 15)]),
    )
    rows = np.arange(31) > 0
    found = fill_cell(a_cell(sign=-1, cost=20.0), daily, rows, Resampling(draws=50))
    assert found.days == 30
    assert found.coverage == pytest.approx(0.9)
    assert found.rank_ic == pytest.approx(-0.05)
    assert found.icir == pytest.approx(-0.05 / np.std(np.tile([0.1, -0.2], 15), ddof=1))
    assert found.gross == pytest.approx(0.015)
    assert found.traded == pytest.approx(1.0)
    assert found.net == pytest.approx(0.013)
    assert found.net_annual == pytest.approx(0.013 * 252)
    net = np.tile([0.009, 0.017], 15)
    assert found.sharpe == pytest.approx(net.mean() / net.std(ddof=1) * np.sqrt(252))
    assert found.net_annual_low < found.net_annual < found.net_annual_high


def test_without_a_cost_none_is_taken_off() -> None:
    daily = FactorDays(*(np.linspace(0.1, 0.2, 30) for _ in range(4)))
    found = fill_cell(a_cell(cost=None), daily, np.ones(30, dtype=bool), Resampling(draws=10))
    assert found.net == found.gross


def test_a_factor_without_a_direction_holds_no_sides() -> None:
    daily = FactorDays(*(np.linspace(0.1, 0.2, 30) for _ in range(4)))
    found = fill_cell(a_cell(sign=0), daily, np.ones(30, dtype=bool), Resampling(draws=10))
    assert math.isnan(found.net)
    assert found.rank_ic > 0


@given(costs=st.lists(st.floats(0, 500), min_size=2, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_net_falls_as_cost_rises(costs: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    daily = FactorDays(rng.standard_normal(40), rng.standard_normal(40), rng.random(40), rng.random(40))
    rows = np.ones(40, dtype=bool)
    nets = [fill_cell(a_cell(cost=cost), daily, rows, Resampling(draws=2)).net for cost in sorted(costs)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(nets))


def test_a_cell_states_what_it_is_of() -> None:
    row = a_cell().to_dict()
    assert {"label", "horizon", "ic_kind", "universe", "membership", "start", "end", "cost_bps", "trials"} <= row.keys()
    assert "horizon 2, cn:csi300 (members of the day), 2015-01-01 to 2015-12-31, cost 10 bps" in str(row["basis"])
    assert row["rank_ic"] is None


def test_an_interval_is_that_of_the_stationary_bootstrap() -> None:
    series = np.random.default_rng(3).standard_normal(200)
    series[7] = np.nan
    wanted = bootstrap_interval(series, block=8, draws=300, seed=5, confidence=0.9)
    low, high = block_interval(series, Resampling(level=0.9, block=8, draws=300, seed=5))
    assert low == pytest.approx(wanted.low, rel=1e-12)
    assert high == pytest.approx(wanted.high, rel=1e-12)


@pytest.mark.parametrize("series", [np.ones(100), np.arange(5.0), np.full(50, np.nan)])
def test_what_does_not_move_or_is_too_short_has_no_interval(series: Array) -> None:
    assert all(math.isnan(end) for end in block_interval(series, Resampling()))


# Market states


def a_market(days: int = 400, names: int = 30, seed: int = 4) -> Array:
    return 10.0 * np.exp(np.cumsum(0.02 * np.random.default_rng(seed).standard_normal((days, names)), axis=0))


@given(cut=st.integers(130, 399), seed=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_a_state_is_the_same_whatever_comes_later(cut: int, seed: int) -> None:
    close = a_market(seed=seed)
    other = close.copy()
    other[cut + 1 :] = np.random.default_rng(seed + 1).random(other[cut + 1 :].shape) + 1.0
    before, after = market_states(close), market_states(other)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name][: cut + 1], after[name][: cut + 1])


def test_states_are_those_of_a_slow_loop() -> None:
    close = a_market()
    close[50:60, 3] = np.nan
    member = np.ones(close.shape, dtype=bool)
    member[:200, 10:] = False
    states = market_states(close, member)
    returns = np.full(400, np.nan)
    jumps = np.full(400, np.nan)
    for t in range(1, 400):
        moves = [
            close[t, i] / close[t - 1, i] - 1 for i in range(30) if member[t, i] and close[t, i] > 0 < close[t - 1, i]
        ]
        returns[t] = np.mean(moves)
        jumps[t] = np.mean(np.abs(moves) >= 0.095)
    volatility = np.array([np.std(returns[t - 19 : t + 1], ddof=1) if t >= 20 else np.nan for t in range(400)])
    for t in (0, 19, 78, 79, 121, 250, 399):
        past = volatility[max(0, t - 251) : t + 1]
        past = past[np.isfinite(past)]
        wanted = float(volatility[t] > np.median(past)) if len(past) >= 60 else np.nan
        np.testing.assert_equal(states["high_volatility"][t], wanted)
        bear = float(np.prod(1 + returns[t - 119 : t + 1]) < 1) if t >= 120 else np.nan
        np.testing.assert_equal(states["bear"][t], bear)
        np.testing.assert_equal(states["limit_moves"][t], float(jumps[t] >= 0.02) if t else np.nan)


def test_a_day_on_which_many_move_to_the_limit_is_marked() -> None:
    close = np.full((5, 100), 10.0)
    close[2:, :2] = 11.0
    close[3:, 2] = 11.0
    assert market_states(close)["limit_moves"][1:].tolist() == [0.0, 1.0, 0.0, 0.0]


# Verdicts


def test_what_holds_everywhere_is_robust() -> None:
    found = judged({"cn": (0.04,) * 3, "us": (0.03,) * 3})
    assert found.verdict == "robust"
    assert found.passes
    assert (found.sign, found.agreeing, found.cells, found.agreement) == (1, 5, 5, 1.0)
    assert found.sign_p == 1 / 32
    assert found.markets == ("cn", "us")


def test_what_holds_in_one_market_is_flagged() -> None:
    found = judged({"cn": (0.04,) * 3, "us": (0.0,) * 3})
    assert (found.verdict, found.passes, found.markets) == ("one market only", False, ("cn",))


def test_what_holds_in_the_second_market_alone_is_flagged_too() -> None:
    found = judged({"cn": (0.0,) * 3, "us": (-0.04,) * 3})
    assert (found.verdict, found.passes, found.markets) == ("one market only", False, ("us",))


def test_what_holds_in_two_of_three_markets_is_flagged() -> None:
    found = judged({"cn": (0.04,) * 3, "us": (0.04,) * 3, "eu": (0.0,) * 3})
    assert (found.verdict, found.markets) == ("some markets only", ("cn", "us"))


@pytest.mark.parametrize("place", range(3))
def test_what_holds_in_one_period_is_flagged(place: int) -> None:
    steps = tuple(0.06 if one == place else 0.0 for one in range(3))
    found = judged({"cn": steps, "us": steps})
    assert (found.verdict, found.passes, found.periods) == ("one period only", False, (PERIODS[place],))


def test_what_holds_in_one_of_two_periods_is_flagged() -> None:
    found = judged({"cn": (0.06, 0.0), "us": (0.06, 0.0)}, periods=("early", "late"))
    assert (found.verdict, found.periods) == ("one period only", ("early",))


def test_one_market_alone_is_judged_by_its_periods() -> None:
    assert judged({"cn": (0.04,) * 3}).verdict == "robust"
    assert judged({"cn": (0.06, 0.0, 0.0)}).verdict == "one period only"


def test_one_period_alone_is_judged_by_its_markets() -> None:
    assert judged({"cn": (0.04,), "us": (0.04,)}, periods=("all",)).verdict == "robust"
    assert judged({"cn": (0.04,), "us": (0.0,)}, periods=("all",)).verdict == "one market only"


def test_what_holds_in_one_cell_is_flagged() -> None:
    found = judged({"cn": (0.0, 0.06, 0.0), "us": (0.0,) * 3})
    assert (found.verdict, found.single) == ("single cells only", ("cn/middle",))


def test_what_turns_its_sign_between_markets_is_unsteady() -> None:
    found = judged({"cn": (0.04,) * 3, "us": (-0.04,) * 3})
    assert (found.verdict, found.passes, found.agreeing) == ("unsteady", False, 2)


def test_one_cell_alone_tests_nothing() -> None:
    assert judged({"cn": (0.1,)}, periods=("all",)).verdict == "untested"


def test_a_factor_without_values_in_a_market_does_not_pass() -> None:
    markets = drawn({"cn": (0.04,) * 3, "us": (0.04,) * 3})
    markets[1].rank_ic[0] = np.nan
    names = [(f"f{place}", "") for place in range(10)]
    found = grid_verdicts(names, markets)[0]
    assert (found.verdict, found.cells, found.p) == ("one market only", 2, 1.0)


def test_decay_is_told_in_the_direction_of_the_factor() -> None:
    days = 3 * DAYS_IN_PERIOD
    fading = -0.08 + 0.04 * np.arange(days) / 365.25 + NOISE * np.random.default_rng(2).standard_normal(days)
    found = grid_verdicts([("f", "")], [market("cn", fading[None])])[0]
    assert found.sign == -1
    assert found.decay["cn"].slope == pytest.approx(-0.04, abs=0.015)
    assert found.decay["cn"].t < -2


@given(seed=st.integers(0, 1000), size=st.sampled_from([0.0, 0.02, 0.05]))
@settings(max_examples=25, deadline=None)
def test_turning_a_factor_round_turns_its_sign_and_nothing_else(seed: int, size: float) -> None:
    markets = drawn({"cn": (size,) * 3, "us": (size, 0.0, size)}, seed)
    turned = [MarketDays(one.name, one.days, -one.rank_ic, one.periods) for one in markets]
    names = [(f"f{place}", "") for place in range(10)]
    for one, other in zip(grid_verdicts(names, markets), grid_verdicts(names, turned), strict=True):
        assert (one.verdict, one.p, one.q, one.markets) == (other.verdict, other.p, other.q, other.markets)
        assert one.sign == -other.sign


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_p_does_not_rise_when_the_effect_does(seed: int) -> None:
    p = [judged({"cn": (size,) * 3, "us": (size,) * 3}, seed).p for size in (0.03, 0.04, 0.06)]
    assert p[0] >= p[1] >= p[2]


def test_of_a_hundred_noise_factors_picked_by_best_in_sample_at_most_five_pass() -> None:
    """Picked among 2,000 in the reference cell, and picked in the whole first market: neither helps."""
    names = [(f"f{place}", "") for place in range(100)]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cn, us = (NOISE * rng.standard_normal((2000, 360)) for _ in range(2))
        for seen in (slice(0, 120), slice(0, 360)):
            best = np.argsort(-np.abs(cn[:, seen].mean(axis=1)))[:100]
            found = grid_verdicts(names, [market("cn", cn[best]), market("us", us[best])])
            assert sum(one.passes for one in found) <= 5
        lone = np.argsort(-np.abs(cn[:, :120].mean(axis=1)))[:100]
        assert sum(one.passes for one in grid_verdicts(names, [market("cn", cn[lone])])) <= 5


def test_without_correction_a_noise_factor_passes_with_at_most_its_level() -> None:
    rng = np.random.default_rng(11)
    cn = NOISE * rng.standard_normal((3000, 360))
    picked = cn[np.argsort(-np.abs(cn[:, :120].mean(axis=1)))[:600]]
    p = [grid_verdicts([("f", "")], [market("cn", one[None])])[0].p for one in picked]
    # Sure to be above the level when more than 45 of 600 are: the upper 99.9 percent of a binomial at 0.05 is 47.
    assert np.sum(np.array(p) <= 0.05) <= 45


def test_the_agreement_that_is_asked_for_counts() -> None:
    """Both markets hold whichever period is left out, and one cell of seven has the other sign."""
    names = [(f"f{place}", "") for place in range(10)]
    markets = drawn({"cn": (0.06, 0.06, 0.06, 0.06), "us": (0.08, -0.02, 0.08, 0.08)}, periods=("a", "b", "c", "d"))
    assert grid_verdicts(names, markets, agreement=0.75)[0].verdict == "robust"
    assert grid_verdicts(names, markets, agreement=1.0)[0].verdict == "unsteady"


@pytest.mark.parametrize(("heads", "tosses"), [(0, 3), (2, 3), (5, 5), (7, 11)])
def test_the_chance_of_so_many_signs_is_binomial(heads: int, tosses: int) -> None:
    assert coin_p(heads, tosses) == pytest.approx(stats.binomtest(heads, tosses, 0.5, "greater").pvalue)


def test_no_factor_no_verdict() -> None:
    assert grid_verdicts([], [market("cn", np.empty((0, 30)))]) == []


def test_a_verdict_is_plain_values() -> None:
    plain = judged({"cn": (0.1,)}, periods=("all",)).to_dict()
    assert plain["agreement"] is None
    assert set(plain["decay"]) == {"cn"}  # type: ignore[call-overload]


# Refusals


def test_periods_that_share_days_are_refused() -> None:
    rows = np.ones(5, dtype=bool)
    with pytest.raises(ConfigError, match="share days"):
        MarketDays("cn", calendar(5), np.zeros((1, 5)), {"one": rows, "two": rows})


def test_a_market_without_a_period_is_refused() -> None:
    with pytest.raises(ConfigError, match="no period"):
        MarketDays("cn", calendar(5), np.zeros((1, 5)), {})


def test_series_of_another_length_are_refused() -> None:
    with pytest.raises(PanelError, match="expected \\(factors, 5 days\\)"):
        MarketDays("cn", calendar(5), np.zeros((1, 4)), {"one": np.ones(5, dtype=bool)})


def test_markets_of_different_factors_are_refused() -> None:
    with pytest.raises(PanelError, match="has 2 factors; expected 1"):
        grid_verdicts([("f", "")], [market("cn", np.zeros((2, 30)))])


@pytest.mark.parametrize(("alpha", "agreement"), [(0.0, 0.5), (1.0, 0.5), (0.05, 1.5)])
def test_levels_that_mean_nothing_are_refused(alpha: float, agreement: float) -> None:
    with pytest.raises(ConfigError, match="expected a level"):
        grid_verdicts([("f", "")], [market("cn", np.zeros((1, 30)))], alpha=alpha, agreement=agreement)
