from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr

from qlib_llm_alpha.engine import scoring
from qlib_llm_alpha.errors import PanelError

Array = NDArray[np.float64]


def panels(seed: int, days: int = 12, names: int = 25, missing: float = 0.2, rounded: int = 1) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    score = np.round(rng.standard_normal((days, names)), rounded)  # rounded: ties
    label = rng.standard_normal((days, names)) + 0.5 * score
    score[rng.random(score.shape) < missing] = np.nan
    label[rng.random(label.shape) < missing] = np.nan
    return score, label


def test_ic_of_a_day_by_hand() -> None:
    score = np.array([[1.0, 2.0, 3.0, np.nan, 5.0]])
    label = np.array([[2.0, 1.0, 4.0, 9.0, np.nan]])
    # joint: (1, 2), (2, 1), (3, 4): covariance sum 2, squares 2 and 14/3
    assert scoring.ic_series(score, label, min_names=3) == pytest.approx([2 / np.sqrt(2 * 14 / 3)])
    assert scoring.rank_ic_series(score, label, min_names=3) == pytest.approx([0.5])


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_ic_and_rank_ic_agree_with_a_loop_over_days(seed: int) -> None:
    score, label = panels(seed)
    ic, rank_ic = scoring.ic_series(score, label), scoring.rank_ic_series(score, label)
    for day in range(len(score)):
        joint = ~(np.isnan(score[day]) | np.isnan(label[day]))
        if joint.sum() < 10:
            assert np.isnan(ic[day])
            assert np.isnan(rank_ic[day])
        else:
            assert ic[day] == pytest.approx(np.corrcoef(score[day][joint], label[day][joint])[0, 1], abs=1e-12)
            expected = spearmanr(score[day][joint], label[day][joint]).statistic
            assert rank_ic[day] == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_rank_ic_does_not_change_under_a_rising_transformation(seed: int) -> None:
    score, label = panels(seed)
    np.testing.assert_array_equal(
        scoring.rank_ic_series(score, label), scoring.rank_ic_series(np.exp(score), label**3), strict=True
    )


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_turning_the_score_round_turns_rank_ic_and_spread_round(seed: int) -> None:
    score, label = panels(seed)
    for left, right in zip(
        scoring.rank_ic_and_spread(score, label), scoring.rank_ic_and_spread(-score, label), strict=True
    ):
        np.testing.assert_allclose(left, -right, atol=1e-15)


def test_days_with_too_few_names_or_a_constant_side_are_nan() -> None:
    rng = np.random.default_rng(0)
    score, label = rng.standard_normal((3, 12)), rng.standard_normal((3, 12))
    score[0, 3:] = np.nan
    score[1] = 1.0
    label[2] = 0.1
    for series in (scoring.ic_series(score, label), scoring.rank_ic_series(score, label)):
        assert np.isnan(series).all()
    assert np.isnan(scoring.long_short_returns(score, label)[:2]).all()


def test_long_short_by_hand() -> None:
    score = np.array([[10.0, 9, 8, 7, 6, 5, 4, 3, 2, 1, np.nan]])
    label = np.array([[0.5, 0.3, 9, 9, 9, 9, 9, 9, 0.1, 0.3, 7]])
    assert scoring.long_short_returns(score, label) == pytest.approx([0.4 - 0.2])
    assert scoring.long_short_returns(score, label, quantiles=10) == pytest.approx([0.5 - 0.3])


def test_tied_names_stand_or_fall_together() -> None:
    score = np.array([[1.0] * 9 + [2.0] * 1])
    assert np.isnan(scoring.long_short_returns(score, np.arange(10.0)[None])).all()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_factors_together_give_what_each_gives_alone(seed: int) -> None:
    first, label = panels(seed)
    second = panels(seed + 1)[0]
    second[np.isnan(first)] = np.nan  # the same gaps as the first on most days
    stacked = np.stack([first, second, second, np.full_like(first, np.nan)])
    rank_ic, spread = scoring.rank_ic_and_spread(stacked, label)
    for factor in range(4):
        np.testing.assert_array_equal(rank_ic[factor], scoring.rank_ic_series(stacked[factor], label))
        np.testing.assert_array_equal(spread[factor], scoring.long_short_returns(stacked[factor], label))


def test_a_day_depends_on_that_day_alone() -> None:
    score, label = panels(3, missing=0.1)
    poisoned, outcome = score.copy(), label.copy()
    poisoned[6:], outcome[6:] = 7e7, -3.0
    for function in (scoring.ic_series, scoring.rank_ic_series, scoring.long_short_returns):
        np.testing.assert_array_equal(function(score, label)[:6], function(poisoned, outcome)[:6])
    np.testing.assert_array_equal(scoring.turnover(score)[:6], scoring.turnover(poisoned)[:6])
    np.testing.assert_array_equal(scoring.rank_autocorrelation(score)[:6], scoring.rank_autocorrelation(poisoned)[:6])


def test_turnover_by_hand() -> None:
    score = np.array([[5.0, 4, 3, 2, 1], [5, 1, 4, 2, 3], [1, 2, 3, 4, 5], [np.nan, np.nan, np.nan, 4, 5]])
    np.testing.assert_array_equal(scoring.turnover(score, 2, min_names=3), [np.nan, 0.5, 1.0, np.nan])
    np.testing.assert_array_equal(scoring.turnover(score, 0.4, min_names=3), [np.nan, 0.5, 1.0, np.nan])
    np.testing.assert_array_equal(scoring.turnover(score, 9, min_names=3)[1:3], [0.0, 0.0])


def test_turnover_is_a_share_of_the_names_held_today() -> None:
    score = np.array([[5.0, 4, 3, 2, 1, 0], [1, 0, 5, 4, np.nan, np.nan]])
    assert scoring.turnover(score, 0.5, min_names=3)[1] == 0.5  # 3 names, then 2 of which 1 is new


def test_a_constant_score_does_not_turn_over() -> None:
    assert scoring.turnover(np.ones((4, 20)))[1:].tolist() == [0.0, 0.0, 0.0]


def test_rank_autocorrelation_compares_with_the_day_before() -> None:
    rng = np.random.default_rng(1)
    score = np.repeat(rng.standard_normal((1, 15)), 4, axis=0)
    score[2] *= -1
    np.testing.assert_allclose(scoring.rank_autocorrelation(score), [np.nan, 1.0, -1.0, -1.0])
    np.testing.assert_allclose(scoring.rank_autocorrelation(score, lag=2), [np.nan, np.nan, -1.0, 1.0])
    assert np.isnan(scoring.rank_autocorrelation(score, lag=9)).all()


def test_coverage_counts_the_universe_only() -> None:
    score = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
    universe = np.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(scoring.coverage(score, universe), [0.5, np.nan])
    np.testing.assert_allclose(scoring.coverage(score), [2 / 3, 1.0])


def test_percentile_places_the_pool_from_0_to_1() -> None:
    np.testing.assert_array_equal(
        scoring.percentile(np.array([3.0, 1.0, np.nan, 2.0, 2.0])), [1.0, 0.0, np.nan, 0.5, 0.5]
    )
    np.testing.assert_array_equal(scoring.percentile(np.array([np.nan, 7.0])), [np.nan, 1.0])
    assert np.isnan(scoring.percentile(np.array([np.nan, np.nan]))).all()


def test_shapes_and_settings_that_do_not_fit_are_refused() -> None:
    wide, narrow = np.ones((3, 12)), np.ones((3, 11))
    for call in (
        lambda: scoring.ic_series(wide, narrow),
        lambda: scoring.rank_ic_series(wide[0], wide),
        lambda: scoring.long_short_returns(wide, wide, quantiles=1),
        lambda: scoring.rank_autocorrelation(wide, lag=0),
        lambda: scoring.turnover(wide, 0),
        lambda: scoring.coverage(wide, np.ones((3, 11), dtype=bool)),
    ):
        with pytest.raises(PanelError, match="expected"):
            call()


@pytest.mark.slow
def test_sixty_factors_over_seven_years_take_seconds() -> None:
    rng = np.random.default_rng(0)
    factors, label = rng.standard_normal((60, 1700, 300)), rng.standard_normal((1700, 300))
    factors[rng.random(factors.shape) < 0.01] = np.nan
    begun = time.perf_counter()
    scoring.rank_ic_and_spread(factors, label)
    assert time.perf_counter() - begun < 30
