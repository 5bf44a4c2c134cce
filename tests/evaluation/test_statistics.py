from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation import statistics


def autocorrelated(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shocks, series = rng.standard_normal(n), np.zeros(n)
    for day in range(1, n):
        series[day] = 0.5 * series[day - 1] + shocks[day]
    return series + 0.2


def slow_hac(values: np.ndarray, lags: int) -> float:
    n, mean, total = len(values), values.mean(), 0.0
    for i in range(n):
        for j in range(n):
            weight = max(0.0, 1 - abs(i - j) / (lags + 1))
            total += weight * (values[i] - mean) * (values[j] - mean)
    return float(np.sqrt(total)) / n


def test_hac_error_by_hand() -> None:
    # 1, 2, 3, 6: deviations -2, -1, 0, 3; squares 14; lag one 2 + 0 + 0 = 2, weighted by 1/2
    assert statistics.hac_standard_error(np.array([1.0, 2, 3, 6]), lags=1) == pytest.approx(np.sqrt(14 + 2) / 4)
    assert statistics.hac_t(np.array([1.0, 2, 3, 6]), lags=1) == pytest.approx(3.0)
    assert statistics.hac_standard_error(np.array([1.0, 2, 3, 6]), lags=0) == pytest.approx(np.sqrt(14) / 4)


@pytest.mark.parametrize("lags", [0, 1, 5, 60])
def test_hac_error_agrees_with_the_double_sum(lags: int) -> None:
    values = autocorrelated(61)
    assert statistics.hac_standard_error(values, lags) == pytest.approx(slow_hac(values, min(lags, 60)), rel=1e-12)


def test_hac_error_agrees_with_statsmodels_where_it_is_installed() -> None:
    regression = pytest.importorskip("statsmodels.regression.linear_model", reason="statsmodels is not installed")
    values = autocorrelated(250)
    fit = regression.OLS(values, np.ones(250)).fit(
        cov_type="HAC", cov_kwds={"maxlags": statistics.automatic_lags(250), "use_correction": False}
    )
    assert statistics.hac_standard_error(values) == pytest.approx(float(fit.bse[0]), rel=1e-10)


def test_lags_grow_slowly_with_the_days() -> None:
    assert [statistics.automatic_lags(n) for n in (0, 1, 2, 100, 250, 1000)] == [0, 0, 1, 4, 4, 6]


def test_persistence_makes_the_error_larger_than_that_of_independent_days() -> None:
    values = autocorrelated(2000)
    assert statistics.hac_standard_error(values) > 1.3 * values.std() / np.sqrt(2000)


def test_the_hac_t_of_noise_is_rarely_large() -> None:
    rng = np.random.default_rng(0)
    large = [abs(statistics.hac_t(rng.standard_normal(300))) > 1.96 for _ in range(400)]
    assert np.mean(large) < 0.10


@pytest.mark.parametrize("series", [[], [np.nan], [1.0], [0.1] * 7, [0.0, 0.0]])
def test_a_series_without_movement_has_no_t_and_no_ratio(series: list[float]) -> None:
    values = np.array(series)
    assert np.isnan(statistics.hac_t(values))
    assert np.isnan(statistics.icir(values))
    assert np.isnan(statistics.annualised(values).ratio)


def test_missing_days_are_left_out() -> None:
    values = autocorrelated(30)
    holed = np.insert(values, [3, 9, 9], np.nan)
    assert statistics.hac_t(holed) == statistics.hac_t(values)
    assert statistics.icir(holed) == statistics.icir(values)
    assert statistics.max_drawdown(holed) == statistics.max_drawdown(values)
    assert statistics.expected_shortfall(holed) == statistics.expected_shortfall(values)


def test_ratios_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0])
    assert statistics.icir(values) == pytest.approx(2.0)
    year = statistics.annualised(values, days_per_year=4)
    assert year == pytest.approx((8.0, 2.0, 4.0))
    still = statistics.annualised(np.array([0.1, 0.1]), days_per_year=10)
    assert still[:2] == pytest.approx((1.0, 0.0))
    assert np.isnan(statistics.annualised(np.array([0.1])).volatility)
    assert np.isnan(statistics.mean_of(np.array([np.nan])))


def test_drawdown_by_hand() -> None:
    assert statistics.max_drawdown(np.array([0.1, -0.2, 0.05, -0.1, 0.5])) == pytest.approx(0.25)
    assert statistics.max_drawdown(np.array([-0.1, 0.3])) == pytest.approx(0.1)
    assert statistics.max_drawdown(np.array([0.1, 0.3])) == 0.0
    assert np.isnan(statistics.max_drawdown(np.array([])))


def test_shortfall_by_hand() -> None:
    values = np.arange(-10.0, 30.0)
    assert statistics.expected_shortfall(values, 0.05) == pytest.approx(9.5)
    assert statistics.expected_shortfall(np.array([3.0, -1.0])) == pytest.approx(1.0)
    assert np.isnan(statistics.expected_shortfall(np.array([np.nan])))


@given(st.integers(0, 300), st.integers(1, 400), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_block_permutation_keeps_every_day_once_and_blocks_whole(n: int, block: int, seed: int) -> None:
    order = statistics.block_permutation(n, block, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(n))
    breaks = int(np.sum(np.diff(order) != 1)) if n else 0
    assert breaks <= max(-(-n // block) - 1, 0)
    inside = [left for left, right in pairwise(order) if (left + 1) % block and right != left + 1]
    assert all(left == n - 1 for left in inside)


def test_a_block_permutation_moves_and_repeats_under_its_seed() -> None:
    first, again = (statistics.block_permutation(600, 60, np.random.default_rng(3)) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != list(range(600))


def test_settings_that_mean_nothing_are_refused() -> None:
    for call in (
        lambda: statistics.hac_standard_error(np.ones(3), lags=-1),
        lambda: statistics.expected_shortfall(np.ones(3), 0),
        lambda: statistics.block_permutation(5, 0, np.random.default_rng(0)),
    ):
        with pytest.raises(ConfigError, match="expected"):
            call()
