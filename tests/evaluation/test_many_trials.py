from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.many_trials import (
    benjamini_hochberg,
    clopper_pearson,
    p_of_t,
    sidak_p,
    uniformity,
)

probabilities = st.floats(0.0, 1.0)
batches = st.lists(probabilities, min_size=1, max_size=30).map(np.array)


def some_p_values(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.random(40), rng.random(10) ** 4, [0.0, 1.0, 0.25, 0.25]])


def test_false_discoveries_of_the_example_of_benjamini_and_hochberg() -> None:
    # Their example of fifteen comparisons after a heart attack, 1995, section 4.1: the first four are discoveries.
    smaller = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p_values = np.array([*smaller, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000])
    rejected, q_values = benjamini_hochberg(p_values)
    assert rejected.tolist() == [True] * 4 + [False] * 11
    # 15 p / rank: 0.0015, 0.0030, 0.0095, 0.035625; the fifth, 0.0603, is the smallest of what follows it
    assert q_values[:5] == pytest.approx([0.0015, 0.0030, 0.0095, 0.035625, 0.0603])


def test_a_larger_p_can_carry_smaller_ones_to_discovery() -> None:
    # 3 p / rank is 0.12, 0.06, 0.048: alone no p is below 0.05 / 3, together all three are discoveries.
    rejected, q_values = benjamini_hochberg(np.array([0.040, 0.048, 0.040]))
    assert rejected.all()
    assert q_values == pytest.approx([0.048] * 3)


@pytest.mark.parametrize("seed", range(5))
def test_q_values_agree_with_scipy_and_statsmodels(seed: int) -> None:
    p_values = some_p_values(seed)
    rejected, q_values = benjamini_hochberg(p_values, rate=0.1)
    np.testing.assert_allclose(q_values, stats.false_discovery_control(p_values, method="bh"), rtol=1e-12)
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed")
    theirs = multitest.multipletests(p_values, alpha=0.1, method="fdr_bh")
    np.testing.assert_allclose(q_values, theirs[1], rtol=1e-12)
    np.testing.assert_array_equal(rejected, theirs[0])


def test_a_test_without_p_value_is_neither_counted_nor_discovered() -> None:
    rejected, q_values = benjamini_hochberg(np.array([np.nan, 0.01, np.nan, 0.04]))
    assert rejected.tolist() == [False, True, False, True]
    np.testing.assert_allclose(q_values, [np.nan, 0.02, np.nan, 0.04])
    assert benjamini_hochberg(np.array([np.nan])).rejected.tolist() == [False]
    assert len(benjamini_hochberg(np.array([])).q_values) == 0


def test_false_discoveries_stay_below_the_rate_on_average() -> None:
    rng = np.random.default_rng(0)
    false_shares = []
    for _ in range(400):
        null = rng.random(80)
        true = p_of_t(rng.standard_normal(20) + 3.5)
        rejected = benjamini_hochberg(np.concatenate([null, true]), rate=0.1).rejected
        false_shares.append(rejected[:80].sum() / max(1, rejected.sum()))
    # 80 of 100 are null, so the expected share is 0.08.
    assert np.mean(false_shares) == pytest.approx(0.08, abs=4 * np.std(false_shares) / 20)


@given(batches, st.randoms(use_true_random=False))
def test_the_order_of_tests_does_not_matter(p_values: np.ndarray, random: object) -> None:
    order = np.array(sorted(range(len(p_values)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    rejected, q_values = benjamini_hochberg(p_values)
    again = benjamini_hochberg(p_values[order])
    np.testing.assert_array_equal(again.q_values, q_values[order])
    np.testing.assert_array_equal(again.rejected, rejected[order])


@given(batches, st.integers(0, 29), st.floats(0.0, 1.0))
def test_a_smaller_p_never_takes_a_discovery_away(p_values: np.ndarray, place: int, factor: float) -> None:
    smaller = p_values.copy()
    smaller[place % len(p_values)] *= factor
    before, after = benjamini_hochberg(p_values), benjamini_hochberg(smaller)
    assert (after.q_values <= before.q_values).all()
    assert (after.rejected >= before.rejected).all()


@given(batches)
def test_q_values_keep_the_order_of_p_and_are_never_below_it(p_values: np.ndarray) -> None:
    q_values = benjamini_hochberg(p_values).q_values
    assert (np.diff(q_values[np.argsort(p_values)]) >= 0).all()
    assert (q_values >= p_values * (1 - 1e-15)).all()
    assert (q_values <= 1).all()


@given(batches, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_higher_rate_never_discovers_less(p_values: np.ndarray, one: float, two: float) -> None:
    low, high = sorted([one, two])
    assert (benjamini_hochberg(p_values, low).rejected <= benjamini_hochberg(p_values, high).rejected).all()


@pytest.mark.parametrize(
    ("p_values", "words"), [(np.array([0.5, 1.5]), "1.5"), (np.array([-0.1]), "-0.1"), (np.ones((2, 2)), "(2, 2)")]
)
def test_what_is_no_p_value_is_refused(p_values: np.ndarray, words: str) -> None:
    for judge in (benjamini_hochberg, uniformity):
        with pytest.raises(PanelError) as caught:
            judge(p_values)
        assert words in str(caught.value)


def test_a_p_at_the_rate_itself_is_a_discovery() -> None:
    assert benjamini_hochberg(np.array([0.05]), rate=0.05).rejected.tolist() == [True]
    assert benjamini_hochberg(np.array([1.0, 1.0]), rate=1.0).rejected.tolist() == [True, True]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate is"):
        benjamini_hochberg(np.array([0.5]), rate)


def test_sidak_by_hand() -> None:
    assert sidak_p(0.5, 2) == pytest.approx(0.75)
    assert sidak_p(0.1, 3) == pytest.approx(1 - 0.9**3)
    assert sidak_p(0.19, 0.5 + 0.5) == pytest.approx(0.19)
    assert sidak_p(0.19, 1.5) == pytest.approx(1 - 0.81 * 0.9)
    assert sidak_p(0.0, 1000) == 0.0
    assert sidak_p(1.0, 1000) == 1.0
    assert np.isnan(sidak_p(float("nan"), 10))


@pytest.mark.parametrize(("p", "trials"), [(1e-300, 1000), (1e-17, 2083), (3e-9, 5), (0.02, 400), (0.9, 3)])
def test_sidak_agrees_with_exact_fractions(p: float, trials: int) -> None:
    exact = 1 - (1 - Fraction(p)) ** trials if p > 1e-100 else Fraction(p) * trials
    assert sidak_p(p, trials) == pytest.approx(float(exact), rel=1e-13)


@given(probabilities, probabilities, st.floats(1, 1e6), st.floats(1, 1e6))
def test_sidak_rises_with_p_and_with_trials(p: float, other: float, trials: float, more: float) -> None:
    (p, other), (trials, more) = sorted([p, other]), sorted([trials, more])
    assert sidak_p(p, trials) <= sidak_p(other, trials) * (1 + 1e-12)
    assert sidak_p(p, trials) <= sidak_p(p, more) * (1 + 1e-12)
    assert p * (1 - 1e-12) <= sidak_p(p, trials) <= 1


def test_sidak_of_the_best_of_independent_trials_is_uniform() -> None:
    best = np.random.default_rng(3).random((2000, 50)).min(axis=1)
    assert uniformity(np.array([sidak_p(p, 50) for p in best])).p_value > 0.01


@pytest.mark.parametrize(("p", "trials"), [(0.5, 0.5), (0.5, float("inf")), (0.5, float("nan")), (1.1, 2), (-0.1, 2)])
def test_sidak_refuses_what_is_no_count_or_no_p(p: float, trials: float) -> None:
    with pytest.raises(ConfigError, match="expected"):
        sidak_p(p, trials)


def test_the_interval_of_a_share_by_hand() -> None:
    # None of n: (1 - upper)^n = 0.025. All of n: lower^n = 0.025. One of one: lower = 0.025. None of none: anything.
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert clopper_pearson(1, 1) == pytest.approx((0.025, 1.0))
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert clopper_pearson(0, 100).upper == pytest.approx(0.0362, abs=5e-5)


@pytest.mark.parametrize(("successes", "runs"), [(0, 7), (3, 7), (7, 7), (5, 100), (9, 100), (10, 100), (11, 100)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_interval_agrees_with_scipy(successes: int, runs: int, confidence: float) -> None:
    theirs = stats.binomtest(successes, runs).proportion_ci(confidence, method="exact")
    ours = clopper_pearson(successes, runs, confidence)
    assert ours == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-14)


def test_the_ends_of_the_interval_leave_half_of_the_doubt_on_either_side() -> None:
    lower, upper = clopper_pearson(9, 100)
    assert stats.binom.sf(8, 100, lower) == pytest.approx(0.025)
    assert stats.binom.cdf(9, 100, upper) == pytest.approx(0.025)


@given(st.integers(1, 200), st.integers(0, 200), st.floats(0.5, 0.999))
def test_the_interval_holds_the_share_and_moves_with_it(runs: int, successes: int, confidence: float) -> None:
    successes = successes % (runs + 1)
    lower, upper = clopper_pearson(successes, runs, confidence)
    assert 0 <= lower <= successes / runs <= upper <= 1
    if successes < runs:
        assert clopper_pearson(successes + 1, runs, confidence).lower >= lower


@pytest.mark.parametrize(("successes", "runs", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_a_share_of_more_than_all_is_refused(successes: int, runs: int, confidence: float) -> None:
    with pytest.raises(ConfigError, match="expected"):
        clopper_pearson(successes, runs, confidence)


def test_the_p_of_a_t_from_the_table_of_the_normal() -> None:
    assert p_of_t(1.959963984540054) == pytest.approx(0.05)
    assert p_of_t(-1.959963984540054) == pytest.approx(0.05)
    assert p_of_t(1.6448536269514722, two_sided=False) == pytest.approx(0.05)
    assert p_of_t(-1.6448536269514722, two_sided=False) == pytest.approx(0.95)
    assert p_of_t(0.0) == 1.0
    assert isinstance(p_of_t(2.0), float)
    assert p_of_t(20.0) == pytest.approx(2 * stats.norm.sf(20.0), rel=1e-12)
    # 0.0027: the three-sigma rule
    np.testing.assert_allclose(p_of_t(np.array([3.0, np.nan, -3.0])), [0.0027, np.nan, 0.0027], atol=5e-7)


def test_the_distance_from_uniform_by_hand() -> None:
    # Of 0.1, 0.2, 0.7 the share jumps to 2/3 at 0.2: the distance there is 2/3 - 0.2.
    statistic, p_value = uniformity(np.array([0.7, np.nan, 0.1, 0.2]))
    assert statistic == pytest.approx(2 / 3 - 0.2)
    assert 0.3 < p_value < 0.6
    # One value p: the distance is max(p, 1 - p), and P(distance >= 0.9) = 0.2.
    assert uniformity(np.array([0.1])) == pytest.approx((0.9, 0.2))
    assert np.isnan(uniformity(np.array([np.nan]))).all()


def test_p_values_that_crowd_are_not_uniform() -> None:
    rng = np.random.default_rng(0)
    assert uniformity(rng.random(300)).p_value > 0.05
    assert uniformity(rng.random(300) ** 2).p_value < 1e-6
