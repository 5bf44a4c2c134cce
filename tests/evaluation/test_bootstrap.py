from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from qlib_llm_alpha.errors import ConfigError, MissingExtraError, PanelError
from qlib_llm_alpha.evaluation import bootstrap
from qlib_llm_alpha.evaluation.statistics import annualised


def autocorrelated(n: int, persistence: float = 0.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shocks, series = rng.standard_normal(n), np.zeros(n)
    for day in range(1, n):
        series[day] = persistence * series[day - 1] + shocks[day]
    return series


def noise(days: int, candidates: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((days, candidates))


# Block length


@pytest.mark.parametrize("persistence", [-0.5, 0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("days", [11, 12, 40, 250, 1000])
def test_block_lengths_equal_those_of_arch(persistence: float, days: int) -> None:
    arch = pytest.importorskip("arch.bootstrap", reason="arch is not installed")
    series = autocorrelated(days, persistence, seed=days)
    expected = arch.optimal_block_length(series).iloc[0]
    assert bootstrap.optimal_block_length(series) == pytest.approx((expected["stationary"], expected["circular"]))


def test_block_length_of_a_published_process_is_near_its_theory() -> None:
    # AR(1) with coefficient r: g = sum |k| R_k = 2 r / ((1 - r)^2 (1 - r^2)), spectrum at 0 = 1 / (1 - r)^2, so that
    # b = (g^2 / spectrum^2 x T)^(1/3) = (2 r / (1 - r^2))^(2/3) T^(1/3)
    days, r = 20_000, 0.5
    theory = (2 * r / (1 - r**2)) ** (2 / 3) * days ** (1 / 3)
    found = [bootstrap.optimal_block_length(autocorrelated(days, r, seed)).stationary for seed in range(5)]
    assert np.mean(found) == pytest.approx(theory, rel=0.15)


def test_circular_blocks_are_longer_by_a_fixed_ratio() -> None:
    lengths = bootstrap.optimal_block_length(autocorrelated(500))
    assert lengths.circular / lengths.stationary == pytest.approx(1.5 ** (1 / 3))


@given(st.floats(0.01, 1e4), st.floats(-1e3, 1e3))
@settings(max_examples=25, deadline=None)
def test_block_length_does_not_depend_on_unit_or_level(scale: float, shift: float) -> None:
    series = autocorrelated(120)
    assert bootstrap.optimal_block_length(scale * series + shift) == pytest.approx(
        bootstrap.optimal_block_length(series), rel=1e-5
    )


@pytest.mark.parametrize("series", [[], [np.nan], [1.0, 2.0] * 5, [0.1] * 50])
def test_too_few_days_or_no_movement_have_no_block_length_and_no_interval(series: list[float]) -> None:
    assert np.isnan(bootstrap.optimal_block_length(np.array(series))).all()
    interval = bootstrap.bootstrap_interval(np.array(series), draws=5)
    assert np.isnan([interval.estimate, interval.low, interval.high]).all()


def test_missing_days_are_left_out() -> None:
    series = autocorrelated(60)
    holed = np.insert(series, [3, 9, 9], np.nan)
    assert bootstrap.optimal_block_length(holed) == bootstrap.optimal_block_length(series)
    assert bootstrap.bootstrap_interval(holed, draws=50) == bootstrap.bootstrap_interval(series, draws=50)


# Draws


def slow_stationary_variance(series: np.ndarray, block: float) -> float:
    """Variance of the mean of one sample, by the chance that two of its days lie in the same block."""
    n, centred = len(series), series - series.mean()
    total = 0.0
    for first in range(n):
        for second in range(n):
            apart = abs(first - second)
            same_block = (1 - 1 / block) ** apart
            total += same_block * float(np.mean(centred * np.roll(centred, -apart)))
    return total / n**2


def test_stationary_samples_have_the_variance_of_their_theory() -> None:
    series = autocorrelated(30)
    means = np.concatenate([series[rows].mean(axis=1) for rows in bootstrap.stationary_bootstrap(30, 4, 40_000, 0)])
    assert means.mean() == pytest.approx(series.mean(), abs=0.01)
    assert means.var() == pytest.approx(slow_stationary_variance(series, 4), rel=0.03)


def test_circular_samples_have_the_variance_of_their_theory() -> None:
    series = autocorrelated(30)
    sums = np.array([np.roll(series, -start)[:5].mean() for start in range(30)])
    means = np.concatenate([series[rows].mean(axis=1) for rows in bootstrap.circular_block_bootstrap(30, 5, 40_000, 0)])
    assert means.var() == pytest.approx(sums.var() / 6, rel=0.03)


def test_stationary_blocks_have_the_mean_length_asked_for() -> None:
    rows = next(bootstrap.stationary_bootstrap(1000, 8, 100, 0))
    breaks = np.mean((np.diff(rows, axis=1) % 1000) != 1)
    # A new block may begin where the old one would have gone on, once in a thousand.
    assert 1 / breaks == pytest.approx(8, rel=0.05)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_draws_are_positions_and_repeat_under_their_seed(n: int, block: int, draws: int, seed: int) -> None:
    for sampler in (bootstrap.stationary_bootstrap, bootstrap.circular_block_bootstrap):
        rows = np.concatenate(list(sampler(n, block, draws, seed)))
        assert rows.shape == (draws, n)
        assert rows.min() >= 0
        assert rows.max() < n
        assert np.array_equal(rows, np.concatenate(list(sampler(n, block, draws, seed))))


@given(st.integers(2, 40), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_circular_blocks_hold_neighbours_around_the_end(n: int, block: int) -> None:
    rows = next(bootstrap.circular_block_bootstrap(n, block, 3, 0))
    steps = np.diff(rows, axis=1) % n
    inside = np.arange(1, n) % block != 0
    assert (steps[:, inside] == 1 % n).all()


def test_many_draws_come_a_chunk_at_a_time() -> None:
    sizes = [rows.size for rows in bootstrap.stationary_bootstrap(2000, 5, 1200, 0)]
    assert len(sizes) > 1
    assert max(sizes) <= 1_000_000
    assert sum(sizes) == 2000 * 1200


@pytest.mark.parametrize(("n", "block", "draws"), [(0, 1, 1), (5, 0.5, 1), (5, 1, 0), (5, float("nan"), 1)])
def test_draws_that_mean_nothing_are_refused(n: int, block: float, draws: int) -> None:
    with pytest.raises(ConfigError, match="expected at least one day"):
        next(bootstrap.stationary_bootstrap(n, block, draws, 0))
    with pytest.raises(ConfigError, match="whole number"):
        next(bootstrap.circular_block_bootstrap(5, 1.5, 1, 0))  # type: ignore[arg-type]


# Interval


def test_interval_of_independent_days_is_that_of_the_normal_approximation() -> None:
    series = noise(2000, 1)[:, 0] + 0.1
    interval = bootstrap.bootstrap_interval(series, block=1, draws=4000)
    half = 1.96 * series.std() / np.sqrt(2000)
    assert interval.estimate == pytest.approx(series.mean())
    assert (interval.low, interval.high) == pytest.approx((series.mean() - half, series.mean() + half), abs=0.004)


def test_interval_agrees_with_that_of_arch() -> None:
    arch = pytest.importorskip("arch.bootstrap", reason="arch is not installed")
    series = autocorrelated(300) + 0.2
    expected = arch.StationaryBootstrap(6, series, seed=0).conf_int(np.mean, reps=3000, method="percentile").ravel()
    interval = bootstrap.bootstrap_interval(series, block=6, draws=3000)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.03)


def test_sharpe_is_the_annualised_ratio_and_lies_in_its_interval() -> None:
    series = 0.01 * noise(400, 1)[:, 0] + 0.001
    interval = bootstrap.bootstrap_interval(series, "sharpe", draws=300)
    assert interval.estimate == pytest.approx(annualised(series).ratio)
    assert interval.low < interval.estimate < interval.high


def test_persistence_and_confidence_make_the_interval_wider() -> None:
    series = autocorrelated(1000, 0.7)

    def width(**settings: float) -> float:
        interval = bootstrap.bootstrap_interval(series, draws=500, **settings)  # type: ignore[arg-type]
        return interval.high - interval.low

    assert width() > 1.5 * width(block=1)
    assert width(confidence=0.99) > width() > width(confidence=0.8)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        interval = bootstrap.bootstrap_interval(autocorrelated(250, 0.3, seed), draws=200, seed=seed)
        hits += interval.low <= 0 <= interval.high
    assert 0.86 <= hits / 200 <= 0.99


def test_interval_settings_that_mean_nothing_are_refused() -> None:
    series = autocorrelated(30)
    with pytest.raises(ConfigError, match="median"):
        bootstrap.bootstrap_interval(series, "median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"confidence is 1\.0"):
        bootstrap.bootstrap_interval(series, confidence=1.0)
    with pytest.raises(ConfigError, match="block"):
        bootstrap.bootstrap_interval(series, block=0.5)


# Many candidates against one baseline


@pytest.fixture
def _arch() -> None:
    pytest.importorskip("arch.bootstrap", reason="arch is not installed")


needs_arch = pytest.mark.usefixtures("_arch")


def slow_scaled_p(gains: np.ndarray, draws: int, seed: int) -> float:
    """White's reality check over gains of one scale, block of one day: the 'upper' p, written out."""
    rng = np.random.default_rng(seed)
    days = len(gains)
    scaled = gains / gains.std(axis=0)
    seen = scaled.mean(axis=0).max()
    above = 0
    for _ in range(draws):
        rows = rng.integers(0, days, days)
        above += (scaled[rows].mean(axis=0) - scaled.mean(axis=0)).max() > seen
    return (1 + above) / (1 + draws)


@needs_arch
def test_a_better_candidate_is_found_and_a_worse_one_is_not() -> None:
    gains = noise(300, 4) + np.array([-0.5, 0.0, 0.5, 0.0])
    found = bootstrap.superior_predictive_ability(gains, block=2, draws=500)
    assert found.consistent == pytest.approx(1 / 501)
    assert found.best == 2
    assert (found.candidates, found.days, found.block) == (4, 300, 2)
    assert bootstrap.step_m(gains, ["bad", "none", "good", "nil"], block=2, draws=500).better == ("good",)
    losses = bootstrap.superior_predictive_ability(-gains[:, [2]], block=2, draws=500)
    assert losses.consistent == losses.upper == losses.lower == 1.0


@needs_arch
def test_the_three_p_are_ordered_and_upper_is_the_reality_check() -> None:
    gains = noise(200, 5, seed=3) + np.array([0.1, -0.1, -1.0, 0.05, 0.0])
    found = bootstrap.superior_predictive_ability(gains, block=1, draws=2000)
    assert found.lower <= found.consistent <= found.upper
    assert found.upper == pytest.approx(slow_scaled_p(gains, 2000, seed=1), abs=0.04)


@needs_arch
def test_poor_candidates_do_not_hide_a_good_one_from_the_consistent_p() -> None:
    gains = np.column_stack([noise(250, 1) + 0.16, noise(250, 60, seed=1) - 1.0])
    found = bootstrap.superior_predictive_ability(gains, block=1, draws=1000)
    assert found.consistent < 0.05 < found.upper


@needs_arch
def test_a_candidate_of_large_scale_does_not_hide_a_small_one() -> None:
    gains = noise(300, 3) * np.array([1.0, 20.0, 1.0]) + np.array([0.5, 0.0, 0.0])
    found = bootstrap.superior_predictive_ability(gains, block=1, draws=500)
    assert found.best == 0
    assert found.consistent < 0.01
    again = bootstrap.superior_predictive_ability(gains / np.array([1.0, 20.0, 7.0]), block=1, draws=500)
    assert again.consistent == found.consistent


@needs_arch
def test_p_of_noise_is_uniform() -> None:
    p = [
        bootstrap.superior_predictive_ability(noise(100, 5, seed), block=1, draws=199, seed=seed).consistent
        for seed in range(200)
    ]
    assert kstest(p, "uniform").pvalue > 0.01


@needs_arch
def test_step_m_rarely_names_noise() -> None:
    named = [
        bool(bootstrap.step_m(noise(100, 5, seed), list("abcde"), block=1, draws=199, seed=seed).better)
        for seed in range(200)
    ]
    assert np.mean(named) <= 0.09


@needs_arch
def test_step_m_agrees_with_arch_on_gains_of_one_scale() -> None:
    from arch.bootstrap import StepM

    gains = noise(200, 8, seed=2) + np.array([0.4, 0.3, 0.2, 0.1, 0, 0, -0.2, 0])
    gains = (gains - gains.mean(axis=0)) / gains.std(axis=0) + gains.mean(axis=0)
    expected = StepM(np.zeros(200), -gains, size=0.1, block_size=1, reps=500, seed=5)
    expected.compute()
    found = bootstrap.step_m(gains, [str(k) for k in range(8)], alpha=0.1, block=1, draws=500, seed=5)
    assert [int(name) for name in found.better] == expected.superior_models
    assert 0 < len(found.better) < 8


@needs_arch
def test_step_m_goes_on_until_every_candidate_is_named() -> None:
    # One candidate after the other: the bar falls as the first leave, because their noise no longer sets the maximum.
    gains = (noise(200, 2, 1) - noise(200, 2, 1).mean(axis=0)) / noise(200, 2, 1).std(axis=0) + np.array([1.0, 0.13])
    names = ["sure", "weak"]
    bar_of_two, bar_of_one = 1.95 / np.sqrt(200), 1.65 / np.sqrt(200)
    assert bar_of_one < 0.13 < bar_of_two
    assert bootstrap.step_m(gains, names, block=1, draws=4000).better == ("sure", "weak")


@needs_arch
def test_a_larger_gain_never_makes_p_larger() -> None:
    gains = noise(150, 3)
    p = [
        bootstrap.superior_predictive_ability(gains + np.array([lift, 0, 0]), block=2, draws=300).consistent
        for lift in (0.0, 0.1, 0.2, 0.4)
    ]
    assert p == sorted(p, reverse=True)


@needs_arch
def test_nothing_to_test_gives_nan_and_no_names() -> None:
    still = np.zeros((50, 2))
    for gains in (still, noise(8, 2), np.full((50, 2), np.nan)):
        assert np.isnan(bootstrap.superior_predictive_ability(gains).consistent)
        assert bootstrap.step_m(gains, ["a", "b"]).better == ()


@needs_arch
def test_days_with_a_hole_are_left_out_and_still_candidates_too() -> None:
    gains = noise(120, 3) + 0.2
    holed = np.insert(gains, 7, np.nan, axis=0)
    holed = np.column_stack([np.zeros(121), holed])
    whole = bootstrap.superior_predictive_ability(gains, draws=200)
    found = bootstrap.superior_predictive_ability(holed, draws=200)
    assert (found.consistent, found.best, found.candidates, found.days) == (whole.consistent, whole.best + 1, 3, 120)


def test_without_arch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arch.bootstrap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qlib_llm_alpha\[stats\]'"):
        bootstrap.superior_predictive_ability(noise(50, 2) + 1)
    with pytest.raises(MissingExtraError, match=r"qlib_llm_alpha\[stats\]"):
        bootstrap.step_m(noise(50, 2), ["a", "b"])


def test_gains_that_mean_nothing_are_refused() -> None:
    with pytest.raises(PanelError, match=r"shape \(20,\)"):
        bootstrap.superior_predictive_ability(np.zeros(20))
    with pytest.raises(PanelError, match="1 infinite"):
        bootstrap.superior_predictive_ability(np.array([[np.inf, 1.0]]))
    with pytest.raises(PanelError, match="1 names"):
        bootstrap.step_m(noise(20, 2), ["a"])
    with pytest.raises(ConfigError, match="alpha is 0"):
        bootstrap.step_m(noise(20, 2), ["a", "b"], alpha=0)
    with pytest.raises(ConfigError, match="block"):
        bootstrap.superior_predictive_ability(noise(20, 2), block=0)
