from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress, rankdata

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.overfitting import Measure, probability_of_backtest_overfitting
from qlib_llm_alpha.evaluation.statistics import icir, mean_of


def noise(days: int, candidates: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((days, candidates))


def slow_logits(performance: np.ndarray, blocks: int, measure: Measure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk over the splits as the paper does, with the rows of each half put together."""
    measured = icir if measure == "sharpe" else mean_of
    edges = [block * len(performance) // blocks for block in range(blocks + 1)]
    rows = [np.arange(start, end) for start, end in pairwise(edges)]
    logits, insides, outsides = [], [], []
    for chosen in combinations(range(blocks), blocks // 2):
        first = np.concatenate([rows[block] for block in chosen])
        second = np.concatenate([rows[block] for block in range(blocks) if block not in chosen])
        inside = np.array([measured(column) for column in performance[first].T])
        outside = np.array([measured(column) for column in performance[second].T])
        kept = ~np.isnan(inside) & ~np.isnan(outside)
        if kept.sum() < 2:
            logits, insides, outsides = [*logits, np.nan], [*insides, np.nan], [*outsides, np.nan]
            continue
        best = int(np.argmax(inside[kept]))
        relative = rankdata(outside[kept])[best] / (kept.sum() + 1)
        logits.append(np.log(relative / (1 - relative)))
        insides.append(inside[kept][best])
        outsides.append(outside[kept][best])
    return np.array(logits), np.array(insides), np.array(outsides)


def test_two_blocks_by_hand() -> None:
    # Means of the halves: (3, 1, 2) and (1, 2, 0). Split one picks candidate 0, of rank 2 of 3: logit 0.
    # Split two picks candidate 1 by the second half, in the first of rank 1 of 3: ln((1/4) / (3/4)) = -ln 3.
    performance = np.array([[2.0, 0, 2], [4, 2, 2], [1, 3, 1], [1, 1, -1]])
    result = probability_of_backtest_overfitting(performance, blocks=2, measure="mean")
    assert result.splits == 2
    assert result.logits == pytest.approx([0.0, -np.log(3.0)])
    assert result.pbo == 1.0
    assert result.in_sample == pytest.approx([3.0, 2.0])
    assert result.out_of_sample == pytest.approx([1.0, 1.0])
    assert (result.slope, result.intercept) == pytest.approx((0.0, 1.0))
    assert result.probability_of_loss == 0.0


@pytest.mark.parametrize("measure", ["sharpe", "mean"])
@pytest.mark.parametrize(("days", "candidates", "blocks"), [(40, 5, 8), (43, 6, 6), (10, 2, 10), (61, 30, 4)])
def test_block_sums_agree_with_a_loop_over_days(days: int, candidates: int, blocks: int, measure: Measure) -> None:
    performance = 0.03 + 0.1 * noise(days, candidates, seed=days)
    result = probability_of_backtest_overfitting(performance, blocks=blocks, measure=measure)
    logits, inside, outside = slow_logits(performance, blocks, measure)
    np.testing.assert_allclose(result.logits, logits, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.in_sample, inside, rtol=1e-10)
    np.testing.assert_allclose(result.out_of_sample, outside, rtol=1e-10, atol=1e-13)
    line = linregress(inside, outside)
    assert (result.slope, result.intercept) == pytest.approx((line.slope, line.intercept), rel=1e-9)
    assert result.pbo == np.mean(logits <= 0)
    assert result.probability_of_loss == np.mean(outside < 0)


@pytest.mark.parametrize("measure", ["sharpe", "mean"])
def test_missing_days_and_still_candidates_agree_with_the_loop(measure: Measure) -> None:
    performance = noise(48, 6, seed=4)
    performance[np.random.default_rng(5).random(performance.shape) < 0.15] = np.nan
    performance[:24, 1] = np.nan  # leaves the splits whose half lies in these blocks
    performance[:, 2] = 0.1  # never moves: no Sharpe ratio, but a mean
    performance[10:40, 3] = 0.0
    performance[:, 4] = np.nan
    result = probability_of_backtest_overfitting(performance, blocks=8, measure=measure)
    logits, inside, outside = slow_logits(performance, 8, measure)
    np.testing.assert_allclose(result.logits, logits, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.in_sample, inside, rtol=1e-10)
    np.testing.assert_allclose(result.out_of_sample, outside, rtol=1e-10, atol=1e-13)


def test_a_deviation_far_below_the_mean_keeps_its_digits() -> None:
    performance = 1e4 + 1e-3 * noise(32, 4)
    result = probability_of_backtest_overfitting(performance, blocks=4)
    _, inside, _ = slow_logits(performance, 4, "sharpe")
    np.testing.assert_allclose(result.in_sample, inside, rtol=1e-6)


def test_the_rounding_of_a_still_candidate_is_no_movement() -> None:
    performance = noise(40, 3)
    still = np.full((40, 1), 0.1)
    still[::3] = np.nextafter(0.1, 1.0)
    with_still = probability_of_backtest_overfitting(np.hstack([performance, still]), blocks=4)
    np.testing.assert_array_equal(with_still.logits, probability_of_backtest_overfitting(performance, blocks=4).logits)


def test_nothing_gained_is_no_loss_and_what_is_constant_has_no_line() -> None:
    performance = np.hstack([np.zeros((20, 1)), -np.abs(noise(20, 3))])
    result = probability_of_backtest_overfitting(performance, blocks=4, measure="mean")
    assert result.probability_of_loss == 0.0
    assert np.isnan([result.slope, result.intercept]).all()


def test_one_candidate_that_is_best_everywhere_is_not_overfitted() -> None:
    performance = noise(160, 20)
    performance[:, 7] += 3.0
    result = probability_of_backtest_overfitting(performance, blocks=16)
    assert result.pbo == 0.0
    assert result.probability_of_loss == 0.0
    np.testing.assert_allclose(result.logits, np.log(20.0))


def test_candidates_that_only_share_out_a_fixed_total_are_always_overfitted() -> None:
    # Every total is zero: what a candidate gains in one half it loses in the other, so the best is then the worst.
    blocks = noise(8, 15)
    performance = np.repeat(blocks - blocks.mean(axis=0), 5, axis=0)
    result = probability_of_backtest_overfitting(performance, blocks=8, measure="mean")
    assert result.pbo == 1.0
    assert result.probability_of_loss == 1.0
    assert result.slope == pytest.approx(-1.0)
    np.testing.assert_allclose(result.logits, -np.log(15.0))


@pytest.mark.parametrize(("candidates", "expected"), [(10, 0.5), (5, 0.6)])
def test_noise_is_overfitted_in_half_of_the_splits_on_average(candidates: int, expected: float) -> None:
    # Halves of independent days are independent, so the rank out of sample is uniform on 1..K: P(rank <= (K + 1) / 2).
    results = [probability_of_backtest_overfitting(noise(64, candidates, seed), blocks=8) for seed in range(400)]
    shares = [result.pbo for result in results]
    assert {result.chance for result in results} == {expected}
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - expected) < 4 * error < 0.06


def test_signs_are_left_to_each_half_by_giving_both_as_candidates() -> None:
    both, chosen_on_all_days = [], []
    for seed in range(150):
        performance = noise(64, 10, seed)
        both.append(probability_of_backtest_overfitting(np.hstack([performance, -performance]), blocks=8).pbo)
        turned = performance * np.sign(performance.mean(axis=0))
        chosen_on_all_days.append(probability_of_backtest_overfitting(turned, blocks=8).pbo)
    assert np.mean(both) == pytest.approx(0.5, abs=0.06)
    assert np.mean(chosen_on_all_days) > 0.6


def test_the_more_merit_differs_the_less_is_overfitted() -> None:
    merit = np.linspace(0.0, 1.0, 12)
    shares = [
        np.mean(
            [
                probability_of_backtest_overfitting(noise(64, 12, seed) + size * merit, blocks=8).pbo
                for seed in range(60)
            ]
        )
        for size in (0.0, 0.3, 0.8)
    ]
    assert shares[0] > shares[1] + 0.1 > shares[2] + 0.2


def test_equal_candidates_share_their_rank() -> None:
    twins = np.repeat(noise(20, 1), 4, axis=1)
    result = probability_of_backtest_overfitting(twins, blocks=4, measure="mean")
    # rank (1 + 2 + 3 + 4) / 4 = 2.5 of 5: the middle
    np.testing.assert_array_equal(result.logits, 0.0)
    assert result.slope == pytest.approx(-1.0)


def test_a_lonely_candidate_is_compared_with_nothing() -> None:
    performance = noise(20, 3)
    performance[:, 1:] = np.nan
    result = probability_of_backtest_overfitting(performance, blocks=4)
    assert np.isnan([result.pbo, result.slope, result.intercept, result.probability_of_loss]).all()
    assert np.isnan(result.logits).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), candidates=st.integers(2, 9), measure=st.sampled_from(["sharpe", "mean"]))
def test_the_order_of_candidates_does_not_matter(seed: int, candidates: int, measure: Measure) -> None:
    performance = noise(30, candidates, seed)
    order = np.random.default_rng(seed + 1).permutation(candidates)
    first = probability_of_backtest_overfitting(performance, blocks=6, measure=measure)
    second = probability_of_backtest_overfitting(performance[:, order], blocks=6, measure=measure)
    np.testing.assert_allclose(first.logits, second.logits, rtol=1e-12)
    assert first.pbo == second.pbo


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 10.0))
def test_a_common_series_added_to_all_does_not_change_ranks_by_the_mean(seed: int, scale: float) -> None:
    performance = noise(30, 7, seed)
    common = scale * noise(30, 1, seed + 1)
    first = probability_of_backtest_overfitting(performance, blocks=6, measure="mean")
    second = probability_of_backtest_overfitting(performance + common, blocks=6, measure="mean")
    np.testing.assert_allclose(first.logits, second.logits, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6), measure=st.sampled_from(["sharpe", "mean"]))
def test_the_unit_of_performance_does_not_matter(seed: int, scale: float, measure: Measure) -> None:
    performance = noise(30, 7, seed)
    first = probability_of_backtest_overfitting(performance, blocks=6, measure=measure)
    second = probability_of_backtest_overfitting(scale * performance, blocks=6, measure=measure)
    np.testing.assert_allclose(first.logits, second.logits, rtol=1e-12)
    assert first.slope == pytest.approx(second.slope, rel=1e-6)


def test_sixteen_blocks_give_the_splits_of_the_paper() -> None:
    assert probability_of_backtest_overfitting(noise(32, 2), blocks=16).splits == 12_870


def test_twenty_blocks_are_the_most() -> None:
    assert probability_of_backtest_overfitting(noise(20, 2), blocks=20, measure="mean").splits == 184_756


@pytest.mark.parametrize("blocks", [0, 3, -2, 22])
def test_odd_or_too_many_blocks_are_refused(blocks: int) -> None:
    with pytest.raises(ConfigError, match="expected an even number"):
        probability_of_backtest_overfitting(noise(40, 3), blocks=blocks)


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sharpe', 'mean'"):
        probability_of_backtest_overfitting(noise(40, 3), measure="omega")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "performance", [np.ones(40), np.ones((40, 1)), np.full((40, 2), np.inf), np.ones((40, 2, 2))], ids=str
)
def test_what_is_no_table_of_candidates_is_refused(performance: np.ndarray) -> None:
    with pytest.raises(PanelError, match="two candidates or more"):
        probability_of_backtest_overfitting(performance)


def test_fewer_days_than_blocks_are_refused() -> None:
    with pytest.raises(PanelError, match="take fewer blocks"):
        probability_of_backtest_overfitting(noise(15, 3), blocks=16)
