from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from qlib_llm_alpha.agents.context import MarketContext, board_limit_moves, market_context
from qlib_llm_alpha.engine.panel import Panel
from qlib_llm_alpha.errors import PanelError

Array = NDArray[np.float64]
T, N = 420, 16
NAMES = tuple(f"SH{600000 + n}" for n in range(N))
DAYS = np.array(pd.bdate_range("2019-01-02", periods=T)).astype("datetime64[D]")


def market(seed: int = 0) -> tuple[Panel, Array]:
    rng = np.random.default_rng(seed)
    common = 0.01 * rng.standard_normal(T) + 0.004 * np.sin(np.arange(T) / 40)
    returns = common[:, None] + 0.015 * rng.standard_normal((T, N))
    close = 10 * np.exp(np.cumsum(returns, axis=0))
    close[100:110, 3] = np.nan  # a suspension
    amount = np.exp(rng.standard_normal((T, N))) * 1e6
    member = np.ones((T, N), dtype=bool)
    member[:200, 5], member[200:, 6] = False, False
    return Panel(DAYS, NAMES, {"$close": close, "$amount": amount}, member), 1000 * np.exp(np.cumsum(common))


def column(context: MarketContext, name: str) -> Array:
    return context.values[:, context.names.index(name)]


def test_every_state_agrees_with_a_slow_look_at_one_day() -> None:
    bars, index = market()
    context = market_context(bars, index)
    day, close, member = 300, bars["$close"], bars.member_mask()
    daily = index[1:] / index[:-1] - 1
    returns = (close[1:] / close[:-1] - 1)[:, member[day]]  # row s is the return of day s + 1
    expected = {f"index_return_{w}": index[day] / index[day - w] - 1 for w in (5, 20, 60)}
    expected |= {f"index_volatility_{w}": np.std(daily[day - w : day], ddof=1) for w in (5, 20, 60)}
    expected["drawdown_250"] = index[day] / index[day - 249 : day + 1].max() - 1
    expected["dispersion"] = returns[day - 1].std()
    own = close[day - 19 : day + 1, member[day]]
    expected["breadth_20"] = np.mean(own[-1] > own.mean(axis=0))
    total = np.array([bars["$amount"][s, member[s]].sum() for s in range(day - 59, day + 1)])
    expected["turnover_60"] = np.log(total[-1] / total.mean())
    expected["limit_up_share"] = np.mean(returns[day - 1] >= 0.095)
    expected["limit_down_share"] = np.mean(returns[day - 1] <= -0.095)
    for window in (20, 60):
        covariance = np.cov(returns[day - window : day].T)
        deviations = np.sqrt(np.diag(covariance))
        off = ~np.eye(len(covariance), dtype=bool)
        expected[f"correlation_{window}"] = covariance[off].sum() / np.outer(deviations, deviations)[off].sum()
    assert set(context.names) == set(expected)
    for name, value in expected.items():
        assert column(context, name)[day] == pytest.approx(value, rel=1e-9), name


def test_equal_movers_correlate_by_one_and_opposites_do_not() -> None:
    bars, index = market()
    common = np.tile(index[:, None] / 100, (1, N))
    together = market_context(Panel(DAYS, NAMES, {"$close": common, "$volume": bars["$amount"]}), index)
    assert column(together, "correlation_20")[50] == pytest.approx(1.0)
    two = np.where(np.arange(N) % 2, common, 1 / common)
    apart = market_context(Panel(DAYS, NAMES, {"$close": two, "$volume": bars["$amount"]}), index)
    assert column(apart, "correlation_20")[50] == pytest.approx(-1 / (N - 1), abs=1e-3)


def test_what_happens_later_changes_no_state_regime_or_standardised_state() -> None:
    bars, index = market()
    cut = 330
    close, amount, member, poisoned = (
        bars["$close"].copy(),
        bars["$amount"].copy(),
        bars.member_mask().copy(),
        index.copy(),
    )
    close[cut:], amount[cut:], member[cut:], poisoned[cut:] = 1e6, 1e-3, False, 5.0
    whole = market_context(bars, index)
    other = market_context(Panel(DAYS, NAMES, {"$close": close, "$amount": amount}, member), poisoned)
    short = market_context(bars.slice(None, DAYS[cut - 1]), index[:cut])
    for changed in (other, short):
        np.testing.assert_array_equal(whole.values[:cut], changed.values[:cut])
        np.testing.assert_array_equal(whole.regime[:cut], changed.regime[:cut])
        np.testing.assert_array_equal(whole.standardised()[:cut], changed.standardised()[:cut])
        until = DAYS[250]
        np.testing.assert_array_equal(whole.standardised(until)[:cut], changed.standardised(until)[:cut])
    for fitted in (market_context(bars, index, fit_until=DAYS[250]),):
        again = market_context(bars.slice(None, DAYS[cut - 1]), index[:cut], fit_until=DAYS[250])
        np.testing.assert_array_equal(fitted.regime[:cut], again.regime)


def test_given_changes_are_used_and_limits_are_counted() -> None:
    change = np.zeros((T, N))
    change[7, :4], change[7, 4:6], change[8, 0] = 0.1, -0.1, np.nan
    bars, index = market()
    context = market_context(
        Panel(DAYS, NAMES, {"$close": bars["$close"], "$change": change, "$volume": bars["$amount"]}), index
    )
    assert column(context, "limit_up_share")[7:9].tolist() == [4 / N, 0.0]
    assert column(context, "limit_down_share")[7] == 2 / N
    wide = market_context(bars, index, limit_moves=np.full((T, N), 0.5))
    assert np.nanmax(column(wide, "limit_up_share")) == 0.0


def test_the_return_after_a_suspension_is_from_the_last_close() -> None:
    close = np.full((T, N), 10.0)
    close[5:9, 0] = np.nan
    close[9:, 0] = 12.0
    context = market_context(Panel(DAYS, NAMES, {"$close": close, "$volume": np.ones((T, N))}), np.ones(T))
    assert column(context, "limit_up_share")[8:10].tolist() == [0.0, 1 / N]
    assert np.isnan(column(context, "correlation_20")).all()  # nothing else moves


def test_standardising_uses_only_the_days_up_to_the_last_fitted_one() -> None:
    bars, index = market()
    context = market_context(bars, index)
    fitted = context.standardised(DAYS[250])
    name = context.names.index("dispersion")
    raw = context.values[:, name]
    known = raw[:251][~np.isnan(raw[:251])]
    np.testing.assert_allclose(fitted[1:, name], (raw[1:] - known.mean()) / known.std(), rtol=1e-9)
    assert fitted[0, name] == 0.0
    expanding = context.standardised()
    past = raw[1:301]
    assert expanding[300, name] == pytest.approx((raw[300] - past.mean()) / past.std())


def test_states_without_history_or_movement_are_zero_and_extremes_are_cut() -> None:
    values = np.column_stack([np.arange(200.0), np.full(200, 0.1), np.full(200, np.nan)])
    values[150, 0] = 1e9
    days = DAYS[:200]
    context = MarketContext(days, ("a", "b", "c"), values, np.full(200, "bull"))
    for standardised in (context.standardised(), context.standardised(days[100])):
        assert np.isfinite(standardised).all()
        assert (standardised[:, 1:] == 0).all()
        assert standardised[150, 0] == 5.0
    assert (context.standardised()[:59] == 0).all()
    assert (context.standardised(days[10]) == 0).all()
    assert (context.standardised("2000-01-01") == 0).all()


def test_regimes_follow_a_rise_a_fall_and_a_calm() -> None:
    rng = np.random.default_rng(1)
    drift = np.concatenate([np.full(140, 0.0), np.full(140, 0.004), np.full(140, -0.006)])
    size = np.concatenate([np.full(140, 0.006), np.full(140, 0.006), np.full(140, 0.015)])
    index = np.exp(np.cumsum(drift + size * rng.standard_normal(T)))
    context = market_context(market()[0], index)
    assert set(np.unique(context.regime)) <= {"bull", "bear", "sideways"}
    assert (context.regime[:119] == "sideways").all()
    assert np.mean(context.regime[180:240] == "bull") > 0.9
    assert np.mean(context.regime[320:380] == "bear") > 0.9
    known = market_context(market()[0], index, fit_until=DAYS[-1])
    assert np.mean(known.regime[200:270] == "bull") > 0.9
    never = market_context(market()[0], index, fit_until=DAYS[30])
    assert (never.regime == "sideways").all()


def test_board_limits_follow_the_board_the_date_and_st() -> None:
    codes = ("SH600000", "SZ300001", "SH688001", "BJ430047")
    days = np.array(["2020-08-21", "2020-08-24"], dtype="datetime64[D]")
    np.testing.assert_allclose(
        board_limit_moves(codes, days), [[0.095, 0.095, 0.195, 0.295], [0.095, 0.195, 0.195, 0.295]]
    )
    st = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, np.nan, 0.0]])
    np.testing.assert_allclose(
        board_limit_moves(codes, days, st), [[0.045, 0.045, 0.195, 0.295], [0.045, 0.195, 0.195, 0.295]]
    )


def test_a_frame_carries_states_and_regime() -> None:
    bars, index = market()
    frame = market_context(bars, index).to_frame()
    assert frame.index.name == "datetime"
    assert list(frame.columns)[-1] == "regime"


def test_what_does_not_fit_is_refused() -> None:
    bars, index = market()
    with pytest.raises(PanelError, match="index_close has shape"):
        market_context(bars, index[:-1])
    with pytest.raises(PanelError, match=r"\$volume"):
        market_context(Panel(DAYS, NAMES, {"$close": bars["$close"]}), index)
    with pytest.raises(PanelError, match="align them to days"):
        MarketContext(DAYS, ("a",), np.ones((3, 1)), np.full(T, "bull"))
    with pytest.raises(PanelError, match="no day"):
        MarketContext(DAYS[:0], ("a",), np.ones((0, 1)), np.full(0, "bull"))
    with pytest.raises(PanelError, match="'boom'"):
        MarketContext(DAYS, ("a",), np.ones((T, 1)), np.full(T, "boom"))


def test_the_regime_of_a_day_follows_the_table() -> None:
    bars, index = market()
    context = market_context(bars, index)
    returns, volatility = column(context, "index_return_60"), column(context, "index_volatility_60")
    seen = set()
    for day in range(119, T):
        low, high = np.quantile(returns[60 : day + 1], [1 / 3, 2 / 3])
        calm = np.quantile(volatility[60 : day + 1], 1 / 3)
        expected = "sideways"
        if returns[day] >= high and returns[day] > 0:
            expected = "bull"
        elif returns[day] <= low and returns[day] < 0 and volatility[day] > calm:
            expected = "bear"
        assert context.regime[day] == expected
        seen.add((expected, bool(returns[day] <= low), bool(volatility[day] > calm)))
    assert ("sideways", True, False) in seen  # a calm decline


@pytest.mark.parametrize(("drift", "never"), [(0.003, "bear"), (-0.003, "bull")])
def test_a_market_that_only_rises_has_no_bear_and_one_that_only_falls_no_bull(drift: float, never: str) -> None:
    size = np.linspace(0.0005, 0.001, T)
    index = np.exp(np.cumsum(drift * (1 + 0.5 * np.sin(np.arange(T) / 30)) + size * np.sin(np.arange(T))))
    context = market_context(market()[0], index)
    assert never not in context.regime
    assert len(set(context.regime)) == 2
