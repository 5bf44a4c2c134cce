from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.max_null import FEWEST_BLOCKS, effective_trials, max_null


def noise(days: int, candidates: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(days, candidates))


def by_all_signs(series: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted p by every one of the 2^B turnings, one after the other, and one-sided shares without the +1."""
    sums = np.array([series[start : start + block].sum(axis=0) for start in range(0, len(series), block)])
    norm = np.sqrt((sums**2).sum(axis=0))
    t = sums.sum(axis=0) / norm
    order = sorted(range(len(t)), key=lambda k: abs(t[k]))
    turned = [np.abs(np.array(signs) @ sums / norm) for signs in itertools.product([-1, 1], repeat=len(sums))]
    raw = np.ones(len(t))
    for place, k in enumerate(order):
        weaker = order[: place + 1]
        raw[k] = np.mean([max(values[weaker]) >= abs(t[k]) - 1e-12 for values in turned])
    adjusted = raw.copy()
    for place in range(len(order) - 2, -1, -1):
        adjusted[order[place]] = max(raw[order[place]], adjusted[order[place + 1]])
    return t, adjusted


def test_p_is_that_of_all_turnings_counted_one_by_one() -> None:
    series = noise(36, 5, seed=3) + np.array([0.9, 0.0, 0.3, 0.0, -0.6])
    t, exact = by_all_signs(series, 4)
    found = max_null(series, block=4, draws=40_000, seed=1)
    assert found.blocks == 9
    np.testing.assert_allclose(found.t, t, rtol=1e-12)
    np.testing.assert_allclose(found.adjusted_p, exact, atol=0.012)
    assert found.run_p == found.adjusted_p.min()


def test_t_by_hand() -> None:
    # Eight blocks of one day: seven of 1 and one of -1 have sum 6 and norm sqrt(8).
    series = np.array([[1.0]] * 7 + [[-1.0]])
    found = max_null(series, block=1, draws=10, seed=0)
    assert found.t[0] == pytest.approx(6 / np.sqrt(8))
    # Student's t of the same numbers with the mean known to be 0: mean 6/8, squares 1 - (6/8)^2 about the mean.
    student = stats.ttest_1samp(series[:, 0], 0.0)
    assert found.p[0] == pytest.approx(student.pvalue, rel=1e-9)


def test_one_candidate_alone_has_the_p_of_a_sign_test_of_its_blocks() -> None:
    series = noise(200, 1, seed=5) + 0.15
    found = max_null(series, block=10, draws=20_000, seed=2)
    assert found.adjusted_p[0] == pytest.approx(found.p[0], abs=0.02)
    assert found.effective == pytest.approx(1.0, abs=0.1)


def test_without_merit_the_p_of_the_run_is_uniform() -> None:
    shared = np.random.default_rng(9).normal(size=(30, 30)) * 0.3 + np.eye(30)
    p, sidak = [], []
    for seed in range(150):
        found = max_null(noise(300, 30, seed) @ shared, draws=400, seed=seed)
        p.append(found.run_p)
        sidak.append(found.sidak_p)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert stats.kstest(sidak, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) < 0.12


def test_days_of_very_different_size_do_not_break_it() -> None:
    rng = np.random.default_rng(4)
    p = [
        max_null(rng.normal(size=(200, 10)) * np.exp(2 * rng.normal(size=(200, 1))), draws=200, seed=seed).run_p
        for seed in range(120)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_a_strong_candidate_is_found_among_many() -> None:
    series = noise(500, 300, seed=1)
    series[:, 17] += 0.35
    found = max_null(series, draws=500)
    assert int(np.argmin(found.adjusted_p)) == 17
    assert found.adjusted_p[17] <= 0.01
    assert np.sum(found.adjusted_p <= 0.05) == 1


def test_a_second_candidate_is_compared_with_the_weaker_ones_alone() -> None:
    series = noise(500, 40, seed=2)
    series[:, 0] += 1.0
    series[:, 1] += 0.22
    together = max_null(series, draws=4000)
    alone = max_null(series[:, 1:], draws=4000)
    assert together.adjusted_p[1] == pytest.approx(alone.adjusted_p[0], abs=0.01)


def test_copies_count_as_one_trial_and_independent_ones_each() -> None:
    one = noise(600, 1, seed=8)
    assert effective_trials(np.repeat(one, 200, axis=1)) == pytest.approx(1.0, abs=0.1)
    assert effective_trials(noise(600, 200, seed=8), draws=4000) == pytest.approx(200, rel=0.15)
    half = np.hstack([noise(600, 50, seed=8)] * 4)
    assert effective_trials(half, draws=4000) == pytest.approx(50, rel=0.15)


def test_both_directions_of_a_series_are_one_two_sided_trial() -> None:
    series = noise(600, 30, seed=8)
    both = np.hstack([series, -series])
    assert effective_trials(both, draws=4000) == pytest.approx(30, rel=0.15)
    assert effective_trials(both, two_sided=False, draws=4000) == pytest.approx(60, rel=0.15)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6), turn=st.booleans())
def test_neither_scale_nor_direction_nor_order_matters(seed: int, scale: float, turn: bool) -> None:
    series = noise(120, 6, seed)
    order = np.random.default_rng(seed).permutation(6)
    found = max_null(series, draws=100, seed=1)
    other = max_null((series * scale * (-1 if turn else 1))[:, order], draws=100, seed=1)
    np.testing.assert_allclose(other.adjusted_p, found.adjusted_p[order], atol=1e-12)
    np.testing.assert_allclose(np.abs(other.t), np.abs(found.t[order]), rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), more=st.integers(1, 20))
def test_more_candidates_never_make_the_same_one_look_better(seed: int, more: int) -> None:
    series = noise(120, 4, seed)
    wider = np.hstack([series, noise(120, more, seed + 1)])
    few, many = max_null(series, draws=200, seed=1), max_null(wider, draws=200, seed=1)
    best = int(np.argmax(np.abs(few.t)))
    assert many.adjusted_p[best] >= few.adjusted_p[best] - 1e-12


def test_a_candidate_with_too_few_days_has_no_t_and_does_not_disturb_others() -> None:
    series = noise(200, 3, seed=6)
    gaps = np.hstack([series, np.full((200, 2), np.nan)])
    gaps[:15, 3] = 1.0
    gaps[:, 4] = 0.0
    found, plain = max_null(gaps, draws=300), max_null(series, draws=300)
    assert np.isnan(found.t[3:]).all()
    assert (found.adjusted_p[3:] == 1).all()
    np.testing.assert_array_equal(found.adjusted_p[:3], plain.adjusted_p)


def test_nothing_to_test_is_no_evidence() -> None:
    found = max_null(np.full((200, 2), np.nan), draws=20)
    assert found.run_p == found.sidak_p == 1.0
    assert found.effective == 0.0
    assert effective_trials(np.full((200, 2), np.nan)) == 2.0, "what cannot be compared counts in full"
    assert effective_trials(np.empty((200, 0))) == 0.0
    assert max_null(np.empty((200, 0))).run_p == 1.0


def test_many_columns_in_portions_give_what_they_give_at_once() -> None:
    series = noise(120, 1100, seed=7)
    found = max_null(series, draws=50, seed=3)
    t = np.abs(found.t)
    signs = np.random.default_rng(3).choice(np.array([-1.0, 1.0]), size=(50, found.blocks))
    sums = series.reshape(found.blocks, -1, 1100).sum(axis=1)
    best = np.abs(signs @ (sums / np.sqrt((sums**2).sum(axis=0)))).max(axis=1)
    assert found.run_p == (1 + np.sum(best >= t.max() * (1 - 1e-12))) / 51


@pytest.mark.parametrize(
    ("series", "settings", "error", "words"),
    [
        (np.zeros(50), {}, PanelError, "days, candidates"),
        (np.full((50, 2), np.inf), {}, PanelError, "infinite"),
        (np.zeros((FEWEST_BLOCKS * 10 - 10, 2)), {}, ConfigError, "longer segment"),
        (np.zeros((200, 2)), {"block": 0}, ConfigError, "block is 0"),
        (np.zeros((200, 2)), {"draws": 0}, ConfigError, "draws 0"),
        (np.zeros((200, 2)), {"seed": -1}, ConfigError, "seed -1"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(series: np.ndarray, settings: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        max_null(series, **settings)


def test_trials_of_few_days_count_in_full_beside_those_that_can_be_compared() -> None:
    series = np.full((600, 25), np.nan)
    series[:, :5] = noise(600, 1, seed=8)
    series[:40, 5:] = noise(40, 20, seed=9)
    assert effective_trials(series) == pytest.approx(21, abs=0.2)


def test_a_candidate_alone_is_judged_by_its_own_blocks() -> None:
    series = np.full((800, 1), np.nan)
    series[:80, 0] = 1.0 + 0.1 * np.arange(80)
    gaps = max_null(series, block=10, draws=100)
    alone = max_null(series[:80], block=10, draws=100)
    assert gaps.p[0] == pytest.approx(alone.p[0], rel=1e-9)
