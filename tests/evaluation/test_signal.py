from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.engine.scoring import long_short_returns, turnover
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation import signal


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def holed(values: np.ndarray, share: float = 0.2, seed: int = 9) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(values.shape) < share, np.nan, values)


# Decay and half-life


def test_decay_of_a_planted_memory_is_that_memory() -> None:
    # The label is what the score was three days ago: full correlation at age 3, none at other ages.
    score = normal(60, 30)
    label = signal.aged(score, 3)
    found = signal.decay(score, label, [0, 3, 5])
    assert found[1] == pytest.approx(1.0)
    assert np.abs(found[[0, 2]]).max() < 0.1


def test_labels_left_out_are_not_counted_and_scores_from_before_them_are() -> None:
    score = normal(20, 15)
    label = normal(20, 15, seed=1)
    tail = label.copy()
    tail[:10] = np.nan
    with_history = signal.decay(score, tail, [2])
    without = signal.decay(score[10:], label[10:], [2])
    assert with_history[0] != pytest.approx(without[0])
    score[:8] = np.nan
    assert signal.decay(score, tail, [2])[0] == pytest.approx(with_history[0])


def test_an_age_beyond_the_days_has_no_figure_and_a_negative_one_is_refused() -> None:
    score = normal(5, 12)
    assert np.isnan(signal.decay(score, score, [5, 9])).all()
    with pytest.raises(ConfigError, match="would show the future"):
        signal.decay(score, score, [-1])


@given(st.floats(0.1, 50.0), st.floats(-0.2, 0.2).filter(lambda first: abs(first) > 1e-3), st.integers(2, 10))
@settings(max_examples=50, deadline=None)
def test_half_life_of_an_exponential_is_exact_whatever_its_sign_or_size(life: float, first: float, count: int) -> None:
    lags = np.cumsum(np.arange(1, count + 1)) - 1
    found = signal.half_life(list(lags), first * 0.5 ** (lags / life))
    assert found.lags == pytest.approx(life, rel=1e-6)
    if abs(life - lags[-1]) > 1e-6:
        assert found.extrapolated == (life > lags[-1])


def test_half_life_by_hand() -> None:
    # ln 4, ln 2, ln 1: a line that falls by ln 2 a lag. The value after the change of sign is not looked at.
    assert signal.half_life([1, 2, 3, 4, 5], np.array([4.0, 2.0, 1.0, -1.0, 3.0])) == pytest.approx((1.0, False))
    # Least squares over ln values 0, -1, 0 has no slope.
    assert signal.half_life([0, 1, 2], np.exp([0.0, -1.0, 0.0])).lags > 1e6
    assert signal.half_life([0, 1, 2], np.array([0.1, 0.2, 0.3])) == (np.inf, True)


@pytest.mark.parametrize("values", [[], [0.1], [0.1, -0.2, 0.1], [0.1, np.nan, 0.05], [np.nan, 0.1], [0.0, 0.1]])
def test_half_life_needs_two_leading_values_of_one_sign(values: list[float]) -> None:
    found = signal.half_life(list(range(len(values))), np.array(values))
    assert np.isnan(found.lags)
    assert not found.extrapolated


def test_half_life_refuses_lags_that_do_not_fit() -> None:
    for lags in ([0, 1], [0, 2, 1], [0, 0, 1]):
        with pytest.raises(ConfigError, match="increasing lags, one for each value"):
            signal.half_life(lags, np.array([0.3, 0.2, 0.1]))


# Quantiles


def test_quantile_returns_by_hand() -> None:
    score = np.array([[3.0, 1.0, 2.0, 6.0, 5.0, 4.0]])
    label = np.array([[0.3, 0.1, 0.2, 0.6, 0.5, 0.7]])
    assert signal.quantile_returns(score, label, 3, min_names=6) == pytest.approx(np.array([[0.15, 0.5, 0.55]]))
    assert signal.quantile_of(score, 3, min_names=6).tolist() == [[2, 1, 1, 3, 3, 2]]
    assert np.isnan(signal.quantile_returns(score, label, 3, min_names=7)).all()


def test_ends_are_the_smaller_ones_where_names_do_not_divide() -> None:
    score = np.arange(13.0)[None]
    assert signal.quantile_of(score, 5).tolist() == [[1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]]
    assert signal.quantile_of(score, 2)[0, 5:8].tolist() == pytest.approx([1, np.nan, 2], nan_ok=True)


@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 20), st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_spread_is_top_less_bottom(names: int, quantiles: int, seed: int, tied: bool) -> None:
    score, label = holed(normal(6, names, seed=seed)), holed(normal(6, names, seed=seed + 1), seed=seed)
    score = np.round(score) if tied else score
    columns = signal.quantile_returns(score, label, quantiles, min_names=1)
    spread = signal.quantile_spread(score, label, quantiles, min_names=1)
    assert spread == pytest.approx(columns[:, -1] - columns[:, 0], nan_ok=True)
    assert np.array_equal(spread, long_short_returns(score, label, quantiles=quantiles, min_names=1), equal_nan=True)


@given(st.integers(0, 30), st.sampled_from([2, 3, 5, 10]))
@settings(max_examples=40, deadline=None)
def test_quantiles_depend_on_the_order_of_scores_only(seed: int, quantiles: int) -> None:
    score = holed(normal(5, 23, seed=seed))
    place = signal.quantile_of(score, quantiles)
    assert np.array_equal(signal.quantile_of(np.exp(score) * 7 - 3, quantiles), place, equal_nan=True)
    order = np.random.default_rng(seed).permutation(23)
    assert np.array_equal(signal.quantile_of(score[:, order], quantiles), place[:, order], equal_nan=True)
    for row, placed in zip(score, place, strict=True):
        known = np.argsort(row)[: int((~np.isnan(row)).sum())]
        steps = placed[known][~np.isnan(placed[known])]
        assert (np.diff(steps) >= 0).all()


def test_equal_scores_are_in_no_end() -> None:
    score, label = np.zeros((1, 20)), normal(1, 20)
    assert np.isnan(signal.quantile_returns(score, label)[0, [0, -1]]).all()
    assert np.isnan(signal.quantile_weights(score)).all()


def test_monotonicity_by_hand() -> None:
    rising = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 6.0]])
    assert signal.monotonicity(rising) == pytest.approx(1.0)
    assert signal.monotonicity(rising[:, ::-1]) == pytest.approx(-1.0)
    # Means 1, 3, 2: rank differences 0, 1, 1, so 1 - 6 x 2 / (3 x 8)
    assert signal.monotonicity(np.array([[1.0, 3.0, 2.0]])) == pytest.approx(0.5)
    assert np.isnan(signal.monotonicity(np.ones((4, 3))))
    assert np.isnan(signal.monotonicity(np.array([[1.0, np.nan, 2.0]])))


def test_monotonicity_takes_the_days_on_which_every_quantile_has_a_mean() -> None:
    whole = np.array([[1.0, 2.0, 3.0]])
    assert signal.monotonicity(np.vstack([whole, [[9.0, np.nan, 0.0]]])) == pytest.approx(1.0)


# Weights, turnover, cost


def test_weights_and_turnover_by_hand() -> None:
    score = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0], [4.0, 3.0, 2.0, 1.0], [np.nan, 1.0, 2.0, 3.0]])
    weights = signal.quantile_weights(score, 2, min_names=4)
    assert weights[:2].tolist() == [[-0.5, -0.5, 0.5, 0.5], [-0.5, -0.5, 0.5, 0.5]]
    assert np.isnan(weights[3]).all()
    # Day 2 turns everything: |1| four times, halved.
    assert signal.portfolio_turnover(weights) == pytest.approx([np.nan, 0.0, 2.0, np.nan], nan_ok=True)
    top = signal.quantile_weights(score, 4, side="top", min_names=4)
    np.testing.assert_array_equal(signal.value_traded(top), 2 * signal.portfolio_turnover(top))
    assert signal.portfolio_turnover(top) == pytest.approx([np.nan, 1.0, 1.0, np.nan], nan_ok=True)
    bottom = signal.quantile_weights(score, 4, side="bottom", min_names=4)
    assert bottom[0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_top_turnover_is_the_share_of_new_names_when_the_count_stays() -> None:
    score = normal(30, 40)
    traded = signal.portfolio_turnover(signal.quantile_weights(score, 5, side="top"))
    assert traded == pytest.approx(turnover(score, 0.2), nan_ok=True)


@given(st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_turnover_lies_between_nothing_and_both_sides(seed: int) -> None:
    weights = signal.quantile_weights(holed(normal(12, 25, seed=seed), 0.3), 5)
    traded = signal.portfolio_turnover(weights)[1:]
    assert (traded >= 0).all()
    assert (traded <= 2 + 1e-12).all()
    assert np.nansum(weights, axis=1) == pytest.approx(np.zeros(12), abs=1e-12)


def test_weights_earn_the_quantile_spread() -> None:
    score, label = normal(15, 30), normal(15, 30, seed=1)
    earned = (signal.quantile_weights(score) * label).sum(axis=1)
    assert earned == pytest.approx(signal.quantile_spread(score, label))


def test_break_even_cost_makes_the_mean_net_return_nothing() -> None:
    gross, traded = holed(0.01 * normal(50) + 0.002), holed(np.abs(normal(50, seed=1)), seed=5)
    cost = signal.break_even_cost_bps(gross, traded)
    assert cost > 0
    assert np.nanmean(signal.net_returns(gross, traded, cost)) == pytest.approx(0.0, abs=1e-12)


def test_costs_by_hand() -> None:
    # 30 basis points earned a day, and half of the capital traded: a side may cost 60.
    gross, traded = np.array([0.002, 0.004, 0.5]), np.array([0.4, 0.6, np.nan])
    assert signal.break_even_cost_bps(gross, traded) == pytest.approx(60.0)
    assert signal.net_returns(gross, traded, 20.0) == pytest.approx([0.0012, 0.0028, np.nan], nan_ok=True)
    assert signal.break_even_cost_bps(-gross, traded) == pytest.approx(-60.0)
    assert np.isnan(signal.break_even_cost_bps(gross, np.zeros(3)))
    assert np.isnan(signal.break_even_cost_bps(gross, np.full(3, np.nan)))


def test_one_more_basis_point_costs_the_turnover_times_one_basis_point() -> None:
    gross, traded = 0.01 * normal(20), np.abs(normal(20, seed=1))
    less = signal.net_returns(gross, traded, 5.0) - signal.net_returns(gross, traded, 6.0)
    assert less == pytest.approx(traded * 1e-4)


# Capacity


def trading(days: int = 40, names: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    weights = signal.quantile_weights(normal(days, names, seed=seed), 5)
    amount = np.exp(normal(days, names, seed=seed + 1) + 16)
    volatility = 0.02 + 0.01 * np.random.default_rng(seed).random((days, names))
    gross = 0.005 + 0.01 * normal(days, seed=seed + 2)
    return gross, weights, amount, volatility


def slow_net(gross, weights, amount, volatility, capital, coefficient=1.0, cost_bps=0.0):  # type: ignore[no-untyped-def]
    """Mean net return at a capital: trade by trade, day by day."""
    total, days = 0.0, 0
    for day in range(1, len(gross)):
        spent = 0.0
        for name in range(weights.shape[1]):
            value = capital * abs(weights[day, name] - weights[day - 1, name])
            impact = coefficient * volatility[day, name] * (value / amount[day, name]) ** 0.5
            spent += value * impact + value * cost_bps / 10_000
        total += gross[day] - spent / capital
        days += 1
    return total / days


def test_capacity_by_hand() -> None:
    # One name bought whole on day 1 and sold on day 2: two trades of the capital C, amount 4 million, volatility 2
    # percent, so each costs 0.02 sqrt(C / 4e6); 1 percent is earned on each day: sqrt(C / 4e6) = 1/2.
    weights = np.array([[0.0], [1.0], [0.0]])
    found = signal.capacity(
        np.array([9.0, 0.01, 0.01]), weights, np.full((3, 1), 4e6), np.full((3, 1), 0.02), max_participation=0.3
    )
    assert found.impact == pytest.approx(1e6)
    assert (found.capital, found.bound, found.known) == (pytest.approx(1e6), "impact", 1.0)
    tighter = signal.capacity(np.full(3, 0.01), weights, np.full((3, 1), 4e6), np.full((3, 1), 0.02))
    # A tenth of 4 million.
    assert (tighter.capital, tighter.bound) == (pytest.approx(4e5), "participation")


@pytest.mark.parametrize(("coefficient", "cost_bps"), [(1.0, 0.0), (0.6, 10.0)])
def test_the_mean_net_return_is_nothing_at_the_capacity(coefficient: float, cost_bps: float) -> None:
    given_trades = trading()
    found = signal.capacity(*given_trades, coefficient=coefficient, cost_bps=cost_bps)
    assert slow_net(*given_trades, found.impact, coefficient, cost_bps) == pytest.approx(0.0, abs=1e-12)
    assert slow_net(*given_trades, 0.9 * found.impact, coefficient, cost_bps) > 0
    assert slow_net(*given_trades, 1.1 * found.impact, coefficient, cost_bps) < 0


@given(st.floats(0, 0.02), st.floats(0, 0.02), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_larger_return_never_carries_less_and_a_larger_cost_never_more(lift: float, more: float, seed: int) -> None:
    gross, weights, amount, volatility = trading(seed=seed)

    def capital(gross: np.ndarray, **settings: float) -> float:
        return signal.capacity(gross, weights, amount, volatility, **settings).capital

    assert capital(gross + lift) <= capital(gross + lift + more)
    assert capital(gross, cost_bps=1e4 * lift) >= capital(gross, cost_bps=1e4 * (lift + more))
    assert capital(gross, coefficient=1.0 + lift) >= capital(gross, coefficient=1.0 + lift + more)
    wide = signal.capacity(gross, weights, 2 * amount, volatility)
    assert wide.capital == pytest.approx(2 * capital(gross))


def test_a_signal_that_earns_nothing_carries_nothing() -> None:
    gross, *rest = trading()
    found = signal.capacity(-np.abs(gross), *rest)
    assert (found.capital, found.bound) == (0.0, "impact")
    assert signal.capacity(gross, *rest, cost_bps=1e4).capital == 0.0


def test_trades_without_an_amount_cost_what_the_others_do() -> None:
    weights = np.array([[0.5, 0.5], [0.0, 0.0]])
    amount, risk = np.array([[1e6, 1e6], [1e6, np.nan]]), np.full((2, 2), 0.02)
    gross = np.full(2, 0.01)
    found = signal.capacity(gross, weights, amount, risk)
    whole = signal.capacity(gross, weights, np.full((2, 2), 1e6), risk)
    assert found.known == 0.5
    assert found.bound == whole.bound
    assert (found.impact, found.participation) == pytest.approx((whole.impact, whole.participation))
    nothing = signal.capacity(gross, weights, np.zeros((2, 2)), risk)
    assert np.isnan(nothing.capital)
    assert nothing.known == 0.0


def test_without_trades_or_days_nothing_bounds_the_capital() -> None:
    still, amount, risk = np.full((3, 2), 0.5), np.full((3, 2), 1e6), np.full((3, 2), 0.02)
    assert signal.capacity(np.full(3, 0.01), still, amount, risk)[:2] == (np.inf, "none")
    assert signal.capacity(np.full(3, -0.01), still, amount, risk)[:2] == (0.0, "none")
    assert np.isnan(signal.capacity(np.full(3, np.nan), still, amount, risk).capital)
    calm = np.array([[0.0, 0.0], [0.5, 0.5]])
    free = signal.capacity(np.full(2, 0.01), calm, amount[:2], np.zeros((2, 2)))
    assert (free.impact, free.bound, free.capital) == (np.inf, "participation", pytest.approx(2e5))


# Refusals


def test_settings_that_mean_nothing_are_refused() -> None:
    gross, weights, amount, risk = trading(5, 12)
    for call in (
        lambda: signal.quantile_of(weights, 1),
        lambda: signal.quantile_weights(weights, side="both"),  # type: ignore[arg-type]
        lambda: signal.net_returns(gross, gross, -1.0),
        lambda: signal.capacity(gross, weights, amount, risk, coefficient=0.0),
        lambda: signal.capacity(gross, weights, amount, risk, max_participation=0.0),
    ):
        with pytest.raises(ConfigError, match="expected"):
            call()


def test_arrays_that_do_not_fit_are_refused() -> None:
    gross, weights, amount, risk = trading(5, 12)
    torn = weights.copy()
    torn[2, 3] = np.nan
    for call in (
        lambda: signal.quantile_returns(weights, weights[1:]),
        lambda: signal.portfolio_turnover(gross),
        lambda: signal.portfolio_turnover(torn),
        lambda: signal.net_returns(gross, gross[1:], 1.0),
        lambda: signal.capacity(gross[1:], weights, amount, risk),
        lambda: signal.capacity(gross, weights, amount[:, 1:], risk),
    ):
        with pytest.raises(PanelError, match="expected"):
            call()
