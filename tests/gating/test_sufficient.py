import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from qlib_llm_alpha.errors import PanelError
from qlib_llm_alpha.gating.sufficient import (
    SufficientStatistics,
    composite,
    composite_ic,
    standardise_scores,
    trailing_observable_ic,
)
from tests.gating.small_market import random_statistics, statistics_of, switching_market, trading_days


def normal_scores(values):
    scores = norm.ppf((rankdata(values) - 0.5) / len(values))
    return (scores - scores.mean()) / scores.std()


def ragged(seed, experts=3, days=6, names=50, ties=True):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((experts, days, names))
    label = rng.standard_normal((days, names)) + 0.3 * scores[0]
    if ties:
        scores[0], label = np.round(scores[0], 0), np.round(label, 1)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    label[rng.random(label.shape) < 0.1] = np.nan
    return scores, label


def test_statistics_equal_a_slow_loop_over_the_joint_set():
    scores, label = ragged(1)
    stats = SufficientStatistics.from_scores(scores, label, trading_days(6), min_names=20)
    for t in range(6):
        joint = np.isfinite(label[t]) & np.isfinite(scores[:, t]).all(axis=0)
        s = [normal_scores(scores[k, t, joint]) for k in range(3)]
        y = normal_scores(label[t, joint])
        for k in range(3):
            assert stats.c[t, k] == pytest.approx(np.mean(s[k] * y), abs=1e-13)
            for j in range(3):
                assert stats.R[t, k, j] == pytest.approx(np.mean(s[k] * s[j]), abs=1e-13)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_ic_of_the_composite_is_the_quotient_to_twelve_digits_with_missing_scores_and_ties(seed, ties):
    scores, label = ragged(seed, ties=ties)
    g = np.random.default_rng(seed).dirichlet(np.ones(3), size=6)
    stats = SufficientStatistics.from_scores(scores, label, trading_days(6), min_names=5)
    assert stats.dropped == 0
    joint = np.isfinite(label) & np.isfinite(scores).all(axis=0)
    mixed = composite(standardise_scores(np.where(joint, scores, np.nan)), g)
    for t in range(6):
        pearson = np.corrcoef(mixed[t, joint[t]], normal_scores(label[t, joint[t]]))[0, 1]
        quotient = g[t] @ stats.c[t] / np.sqrt(g[t] @ stats.R[t] @ g[t])
        assert abs(pearson - quotient) < 1e-12
        assert abs(composite_ic(stats, g)[t] - quotient) < 1e-12


def test_a_constant_expert_has_no_ic_and_a_unit_diagonal():
    scores, label = ragged(2)
    scores[1, 3] = 7.0
    stats = SufficientStatistics.from_scores(scores, label, trading_days(6), min_names=20)
    assert stats.c[3, 1] == 0.0
    np.testing.assert_array_equal(stats.R[3, 1], [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(stats.R[3, :, 1], [0.0, 1.0, 0.0])


def test_days_with_too_few_joint_names_are_dropped_and_counted():
    label = np.random.default_rng(3).standard_normal((6, 30))
    scores = np.random.default_rng(4).standard_normal((3, 6, 30))
    scores[1, 2, 7] = np.nan
    stats = SufficientStatistics.from_scores(scores, label, trading_days(6))
    assert stats.dropped == 1
    assert list(stats.dropped_days) == [trading_days(6)[2]]
    assert list(stats.positions) == [0, 1, 3, 4, 5]
    assert len(stats.days) == 5


def test_no_usable_day_gives_empty_statistics():
    scores, label = ragged(3)
    stats = SufficientStatistics.from_scores(scores, np.full_like(label, np.nan), trading_days(6))
    assert stats.dropped == 6
    assert stats.c.shape == (0, 3)
    assert stats.R.shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("scores", "label", "days"),
    [
        (np.zeros((2, 5)), np.zeros((2, 5)), trading_days(2)),
        (np.zeros((0, 2, 5)), np.zeros((2, 5)), trading_days(2)),
        (np.zeros((1, 2, 5)), np.zeros((2, 4)), trading_days(2)),
        (np.zeros((1, 2, 5)), np.zeros((2, 5)), trading_days(3)),
        (np.zeros((1, 2, 5)), np.zeros((2, 5)), trading_days(2)[::-1]),
        (np.full((1, 2, 5), np.inf), np.zeros((2, 5)), trading_days(2)),
        (np.zeros((1, 2, 5)), np.full((2, 5), -np.inf), trading_days(2)),
    ],
)
def test_panels_that_do_not_fit_are_refused(scores, label, days):
    with pytest.raises(PanelError):
        SufficientStatistics.from_scores(scores, label, days)


def test_a_name_that_lacks_an_expert_is_scored_with_renormalised_weights():
    scores = np.array([[[1.0, np.nan, np.nan]], [[-1.0, 2.0, np.nan]]])
    np.testing.assert_allclose(composite(scores, np.array([[0.75, 0.25]])), [[0.5, 2.0, np.nan]])


def test_a_name_seen_only_by_experts_without_weight_has_no_score():
    scores = np.array([[[1.0, np.nan]], [[-1.0, 2.0]]])
    np.testing.assert_allclose(composite(scores, np.array([[1.0, 0.0]])), [[1.0, np.nan]])


@pytest.mark.parametrize("weights", [np.ones((3, 2)), np.array([[-0.1, 1.1]]), np.array([[np.nan, 1.0]])])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(PanelError):
        composite(np.zeros((2, 1, 4)), weights)


def test_selection_and_dates_keep_rows_together():
    stats = random_statistics(5)
    part = stats.between("2019-01-05", "2019-01-07")
    assert list(part.days) == list(np.arange("2019-01-05", "2019-01-08", dtype="datetime64[D]"))
    np.testing.assert_array_equal(part.c, stats.c[3:6])
    np.testing.assert_array_equal(part.R, stats.R[3:6])


def test_alignment_takes_the_rows_of_the_statistics_days():
    scores, label, state = switching_market(1, days=20)
    label[4] = np.nan
    stats = statistics_of(scores, label)
    np.testing.assert_array_equal(stats.align(state, trading_days(20)), np.delete(state, 4, axis=0))
    for days in (trading_days(19), trading_days(20, "2019-01-03")):
        with pytest.raises(PanelError, match="no row for"):
            stats.align(state[: len(days)], days)


def test_trailing_ic_reads_nothing_younger_than_two_trading_days():
    stats = random_statistics(6)
    days = stats.days
    trailing = trailing_observable_ic(stats, days, window=5, min_days=3)
    for t in range(len(days)):
        seen = stats.c[: max(t - 1, 0)][-5:]
        expected = seen.mean(axis=0) if len(seen) >= 3 else np.full(4, np.nan)
        np.testing.assert_allclose(trailing[t], expected)


def test_trailing_ic_of_a_day_does_not_change_when_later_outcomes_do():
    stats = random_statistics(6)
    poisoned = stats.c.copy()
    poisoned[19:] = 1e6
    changed = SufficientStatistics(stats.days, poisoned, stats.R, stats.positions, stats.dropped_days)
    before, after = (trailing_observable_ic(s, stats.days, window=30, min_days=3)[:21] for s in (stats, changed))
    np.testing.assert_array_equal(before, after)


def test_trailing_ic_of_no_days_is_empty():
    assert trailing_observable_ic(random_statistics(6), trading_days(0)).shape == (0, 4)
