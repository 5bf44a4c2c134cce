from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.max_null import effective_trials
from qlib_llm_alpha.evaluation.sharpe import (
    deflated_sharpe,
    expected_max_sharpe,
    minimum_backtest_length,
    minimum_track_record_length,
    probabilistic_sharpe,
    sharpe_ratio,
    sharpe_standard_error,
)

seeds = st.integers(0, 10_000)


def daily(seed: int, days: int = 200) -> np.ndarray:
    """Fat tails, a lean to the left, a small mean."""
    rng = np.random.default_rng(seed)
    return 0.01 * (rng.standard_t(6, days) - 0.4 * rng.exponential(size=days) + 0.45)


def with_sharpe(shape: np.ndarray, sharpe: float) -> np.ndarray:
    return (shape - shape.mean()) / shape.std(ddof=1) + sharpe


def normal_like(days: int, sharpe: float) -> np.ndarray:
    """A sixth of the days at either side and the rest between: skewness 0 and kurtosis 3, exactly."""
    assert days % 6 == 0
    return with_sharpe(np.repeat([-1.0, 0.0, 1.0], [days // 6, days - days // 3, days // 6]), sharpe)


def slow_probability(values: np.ndarray, benchmark: float) -> float:
    n = len(values)
    mean = sum(values) / n
    m2, m3, m4 = (sum((value - mean) ** power for value in values) / n for power in (2, 3, 4))
    sharpe = mean / (m2 * n / (n - 1)) ** 0.5
    variance = (1 - m3 / m2**1.5 * sharpe + (m4 / m2**2 - 1) / 4 * sharpe**2) / (n - 1)
    return float(stats.norm.cdf((sharpe - benchmark) / variance**0.5))


def exact_expected_max(trials: int) -> float:
    def of(z: float) -> float:
        return z * trials * stats.norm.pdf(z) * stats.norm.cdf(z) ** (trials - 1)

    return float(integrate.quad(of, -10, 10, limit=200)[0])


def test_the_sharpe_ratio_and_its_error_by_hand() -> None:
    # 0, 2, 4, 2: mean 2, sample variance 8 / 3, skewness 0, kurtosis (32 / 4) / 4 = 2; SR^2 = 4 * 3 / 8 = 1.5.
    series = np.array([0.0, 2, 4, 2])
    assert sharpe_ratio(series) == pytest.approx(1.5**0.5)
    assert sharpe_standard_error(series) == pytest.approx(((1 + 1.5 / 4) / 3) ** 0.5)
    assert probabilistic_sharpe(series, 0.5) == pytest.approx(
        stats.norm.cdf((1.5**0.5 - 0.5) / ((1 + 1.5 / 4) / 3) ** 0.5)
    )


def test_the_sharpe_ratio_agrees_with_empyrical() -> None:
    empyrical = pytest.importorskip("empyrical", reason="empyrical is not installed")
    series = daily(1)
    annual = empyrical.sharpe_ratio(series, risk_free=0, annualization=252)
    assert sharpe_ratio(series) * np.sqrt(252) == pytest.approx(annual, rel=1e-12)


def test_the_error_of_normal_days_is_that_of_lo() -> None:
    assert sharpe_standard_error(normal_like(600, 0.2)) == pytest.approx(((1 + 0.2**2 / 2) / 599) ** 0.5)


def test_the_error_is_the_scatter_of_many_samples() -> None:
    rng = np.random.default_rng(0)
    samples = 0.5 - rng.exponential(size=(4000, 250)) + 1.0  # skewness -2, kurtosis 9, Sharpe ratio 0.5
    scatter = np.std([sharpe_ratio(sample) for sample in samples])
    usual = np.median([sharpe_standard_error(sample) for sample in samples[:500]])
    assert usual == pytest.approx(scatter, rel=0.05)
    assert scatter > 1.4 / np.sqrt(250)  # of which the error of normal days, 1.06 / sqrt(T), knows nothing


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("benchmark", [-0.1, 0.0, 0.08])
def test_the_probability_agrees_with_a_loop_over_days_and_with_skfolio(seed: int, benchmark: float) -> None:
    series = daily(seed)
    assert probabilistic_sharpe(series, benchmark) == pytest.approx(slow_probability(series, benchmark), abs=1e-12)
    measures = pytest.importorskip("skfolio.measures", reason="skfolio is not installed")
    theirs = measures.probabilistic_sharpe_ratio(series, benchmark_sharpe_ratio=benchmark)
    assert probabilistic_sharpe(series, benchmark) == pytest.approx(theirs, abs=1e-10)


def test_missing_days_are_left_out() -> None:
    series = daily(2)
    holed = np.insert(series, [0, 7, 7], np.nan)
    assert sharpe_ratio(holed) == sharpe_ratio(series)
    assert sharpe_standard_error(holed) == sharpe_standard_error(series)
    assert minimum_track_record_length(holed) == minimum_track_record_length(series)
    assert deflated_sharpe(holed, trials=9, sharpe_deviation=0.1) == deflated_sharpe(
        series, trials=9, sharpe_deviation=0.1
    )


@pytest.mark.parametrize("series", [[], [np.nan] * 5, [0.1], [0.1, 0.2], [0.1] * 50, [0.0] * 9], ids=str)
def test_a_series_that_says_nothing_has_no_probability(series: list[float]) -> None:
    values = np.array(series)
    assert np.isnan(sharpe_standard_error(values))
    assert np.isnan(probabilistic_sharpe(values))
    assert np.isnan(minimum_track_record_length(values))
    assert np.isnan(deflated_sharpe(values, trials=5, sharpe_deviation=0.1).probability)


def test_three_days_are_enough() -> None:
    # 0, 1, 2: mean 1, sample variance 1, skewness 0, kurtosis (2 / 3) / (2 / 3)^2 = 1.5
    assert sharpe_standard_error(np.array([0.0, 1, 2])) == pytest.approx(((1 + 0.5 / 4) / 2) ** 0.5)


def test_the_example_of_the_deflated_sharpe_paper() -> None:
    # Annual Sharpe ratio 2.5 on 1,250 days of 250 a year, variance of trials 1/2 a year, skewness -3, kurtosis 10:
    # the two-valued series with 105 bad days has -2.9994 and 9.9965.
    series = with_sharpe(np.repeat([-1.0, 1.0], [105, 1145]), 2.5 / np.sqrt(250))
    deviation = np.sqrt(0.5 / 250)
    assert stats.skew(series) == pytest.approx(-3.0, abs=1e-3)
    assert stats.kurtosis(series, fisher=False) == pytest.approx(10.0, abs=5e-3)
    result = deflated_sharpe(series, trials=100, sharpe_deviation=deviation)
    assert result.sharpe == pytest.approx(0.1581, abs=5e-5)
    assert result.threshold == pytest.approx(0.1132, abs=5e-5)
    assert result.probability == pytest.approx(0.9004, abs=5e-5)
    assert result.trials == 100
    assert deflated_sharpe(series, trials=46, sharpe_deviation=deviation).probability == pytest.approx(0.9505, abs=5e-5)
    normal = normal_like(1248, 2.5 / np.sqrt(250))
    # With normal returns the paper allows 88 trials (two days fewer here: 1,250 is no multiple of 6).
    assert deflated_sharpe(normal, trials=88, sharpe_deviation=deviation).probability == pytest.approx(0.9505, abs=2e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_deflated_sharpe_agrees_with_skfolio(seed: int) -> None:
    measures = pytest.importorskip("skfolio.measures", reason="skfolio is not installed")
    trials = 0.05 * np.random.default_rng(seed).standard_normal(37)
    ours = deflated_sharpe(daily(seed), trials=37, sharpe_deviation=float(np.std(trials, ddof=1)))
    assert ours.probability == pytest.approx(measures.deflated_sharpe_ratio(daily(seed), trials), abs=1e-10)


@pytest.mark.parametrize("trials", [1, 1.5, 2, 33.3, 1000, 1e6])
def test_the_expected_maximum_agrees_with_skfolio(trials: float) -> None:
    measures = pytest.importorskip("skfolio.measures", reason="skfolio is not installed")
    theirs = measures.expected_max_sharpe_ratio(trials, 0.07)
    assert expected_max_sharpe(trials, 0.07) == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize(("trials", "tolerance"), [(5, 0.03), (10, 0.03), (100, 0.012), (1000, 0.006), (10_000, 0.004)])
def test_the_expected_maximum_is_near_the_integral(trials: int, tolerance: float) -> None:
    assert expected_max_sharpe(trials, 1.0) == pytest.approx(exact_expected_max(trials), rel=tolerance)


def test_the_expected_maximum_of_hardly_more_than_one_trial_is_not_negative() -> None:
    # The bare formula gives -0.48 for N = 1.05, which would make a deflated ratio larger than the plain one.
    assert expected_max_sharpe(1, 1.0) == expected_max_sharpe(1.05, 1.0) == 0.0
    assert expected_max_sharpe(1.3, 1.0) == pytest.approx(0.0200, abs=5e-5)


def test_the_expected_maximum_keeps_its_digits_for_very_many_trials() -> None:
    assert expected_max_sharpe(1e16, 1.0) < expected_max_sharpe(1e18, 1.0) < np.sqrt(2 * np.log(1e18))


@given(st.floats(1, 1e9), st.floats(1, 1e9), st.floats(0, 1))
def test_more_trials_raise_the_threshold(one: float, two: float, deviation: float) -> None:
    low, high = sorted([one, two])
    assert expected_max_sharpe(low, deviation) <= expected_max_sharpe(high, deviation) + 1e-12


@given(seeds, st.floats(1, 1e6), st.floats(1, 1e6))
def test_more_trials_never_raise_the_deflated_sharpe(seed: int, one: float, two: float) -> None:
    low, high = sorted([one, two])
    few = deflated_sharpe(daily(seed, 60), trials=low, sharpe_deviation=0.1)
    many = deflated_sharpe(daily(seed, 60), trials=high, sharpe_deviation=0.1)
    assert many.probability <= few.probability + 1e-12
    assert many.sharpe == few.sharpe


def test_one_trial_leaves_the_probability_as_it_is() -> None:
    series = daily(3)
    assert deflated_sharpe(series, trials=1, sharpe_deviation=0.3).probability == probabilistic_sharpe(series)


@given(seeds, st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_the_probability_falls_with_the_benchmark(seed: int, one: float, two: float) -> None:
    low, high = sorted([one, two])
    assert probabilistic_sharpe(daily(seed, 60), high) <= probabilistic_sharpe(daily(seed, 60), low)


@given(seeds, st.floats(0, 0.01), st.floats(0, 0.01))
def test_the_probability_rises_with_the_mean_of_symmetric_days(seed: int, one: float, two: float) -> None:
    half = daily(seed, 40)
    half = half - half.mean()
    symmetric = np.concatenate([half, -half])
    low, high = sorted([one, two])
    assert probabilistic_sharpe(symmetric + low) <= probabilistic_sharpe(symmetric + high) + 1e-12


@given(seeds, st.floats(1e-3, 1e3))
def test_the_unit_of_the_series_does_not_matter(seed: int, scale: float) -> None:
    series = daily(seed, 60)
    assert sharpe_ratio(scale * series) == pytest.approx(sharpe_ratio(series), rel=1e-9, abs=1e-12)
    assert probabilistic_sharpe(scale * series, 0.1) == pytest.approx(probabilistic_sharpe(series, 0.1), abs=1e-9)
    length = minimum_track_record_length(series, 0.01)
    assert minimum_track_record_length(scale * series, 0.01) == pytest.approx(length, rel=1e-5)


@given(seeds)
def test_turning_the_series_turns_the_probability(seed: int) -> None:
    series = daily(seed, 60)
    assert probabilistic_sharpe(-series) == pytest.approx(1 - probabilistic_sharpe(series), abs=1e-12)


@pytest.mark.parametrize(("per_year", "years"), [(252, 2.73), (52, 2.83), (12, 3.24)])
def test_the_track_record_of_the_paper_for_normal_returns(per_year: int, years: float) -> None:
    # Bailey and Lopez de Prado (2012): an annual Sharpe ratio of 2 above 1 at 95 percent, seen daily, weekly, monthly.
    series = normal_like(600, 2 / np.sqrt(per_year))
    length = minimum_track_record_length(series, 1 / np.sqrt(per_year), 0.95)
    assert length / per_year == pytest.approx(years, abs=0.005)


def test_a_track_record_is_against_nothing_at_95_percent_when_not_told_otherwise() -> None:
    assert minimum_track_record_length(daily(8)) == minimum_track_record_length(daily(8), 0.0, 0.95)


def test_a_track_record_of_the_least_length_has_just_the_confidence() -> None:
    series = daily(8, 400)
    benchmark = sharpe_ratio(series) - 1e-2
    needed = minimum_track_record_length(series, benchmark, 0.9)
    error = sharpe_standard_error(series) * np.sqrt(399 / (needed - 1))
    assert stats.norm.cdf(1e-2 / error) == pytest.approx(0.9)


@given(seeds, st.floats(0.51, 0.999), st.floats(0.51, 0.999))
def test_more_confidence_needs_more_days(seed: int, one: float, two: float) -> None:
    low, high = sorted([one, two])
    series = daily(seed, 60)
    assume(sharpe_ratio(series) > 0)
    assert minimum_track_record_length(series, 0.0, low) <= minimum_track_record_length(series, 0.0, high)


def test_no_track_record_is_long_enough_for_a_ratio_below_its_benchmark() -> None:
    series = normal_like(60, 0.1)
    assert minimum_track_record_length(series, 0.2) == np.inf
    assert minimum_track_record_length(series, sharpe_ratio(series)) == np.inf


def test_the_backtest_length_of_the_paper() -> None:
    # "If only five years of data are available, no more than 45 independent configurations should be tried."
    years, upper_bound = minimum_backtest_length(45)
    assert years == pytest.approx(5.0, abs=0.005)
    assert upper_bound == pytest.approx(2 * np.log(45))
    assert minimum_backtest_length(45, 2.0).years == pytest.approx(years / 4)
    assert minimum_backtest_length(1) == (0.0, 0.0)


@given(st.floats(1, 1e9), st.floats(0.1, 5))
def test_the_backtest_length_stays_below_its_bound(trials: float, target: float) -> None:
    years, upper_bound = minimum_backtest_length(trials, target)
    assert 0 <= years <= upper_bound


def test_the_least_backtest_length_shows_the_target_by_luck() -> None:
    years = minimum_backtest_length(20, 1.5).years
    days = round(years * 252)
    trials = np.random.default_rng(1).standard_normal((600, days, 20))
    best = (trials.mean(axis=1) / trials.std(axis=1, ddof=1)).max(axis=1) * np.sqrt(252)
    assert best.mean() == pytest.approx(1.5, rel=0.04)


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_the_best_of_noise_is_rarely_called_a_find_with_the_full_count_and_the_scatter_seen(share: float) -> None:
    # `share` is the correlation of the trials: it narrows their scatter by as much as it lowers their maximum.
    rng = np.random.default_rng(7)
    finds, plain = [], []
    for _ in range(300):
        common, own = rng.standard_normal((250, 1)), rng.standard_normal((250, 30))
        trials = np.sqrt(share) * common + np.sqrt(1 - share) * own
        sharpes = trials.mean(axis=0) / trials.std(axis=0, ddof=1)
        best = trials[:, sharpes.argmax()]
        deviation = float(sharpes.std(ddof=1))
        finds.append(deflated_sharpe(best, trials=30, sharpe_deviation=deviation).probability > 0.95)
        plain.append(probabilistic_sharpe(best) > 0.95)
    assert np.mean(finds) < 0.05
    assert np.mean(plain) > 0.25  # what is found without counting


@pytest.mark.parametrize("share", [0.0, 0.6, 0.9])
def test_the_best_of_noise_is_rarely_called_a_find_with_the_effective_count_and_the_scatter_of_chance(
    share: float,
) -> None:
    rng = np.random.default_rng(11)
    finds, allowed_twice = [], []
    for _ in range(300):
        common, own = rng.standard_normal((250, 1)), rng.standard_normal((250, 30))
        trials = np.sqrt(share) * common + np.sqrt(1 - share) * own
        both_signs = np.hstack([trials, -trials])
        sharpes = both_signs.mean(axis=0) / both_signs.std(axis=0, ddof=1)
        best = both_signs[:, sharpes.argmax()]
        effective = max(1.0, effective_trials(both_signs, two_sided=False, draws=200))
        seen = float(sharpes[:30].std(ddof=1))
        finds.append(deflated_sharpe(best, trials=effective, sharpe_deviation=1 / np.sqrt(249)).probability > 0.95)
        allowed_twice.append(deflated_sharpe(best, trials=effective, sharpe_deviation=seen).probability > 0.95)
    assert np.mean(finds) < 0.05
    if share == 0.9:
        assert np.mean(allowed_twice) > 0.1  # why the two belong together


@pytest.mark.parametrize("trials", [0, 0.99, -3, float("inf"), float("nan")])
def test_less_than_one_trial_is_refused(trials: float) -> None:
    with pytest.raises(ConfigError, match="count every candidate"):
        deflated_sharpe(daily(0), trials=trials, sharpe_deviation=0.1)
    with pytest.raises(ConfigError, match="count every candidate"):
        minimum_backtest_length(trials)


@pytest.mark.parametrize("deviation", [-0.1, float("inf")])
def test_a_deviation_that_is_none_is_refused(deviation: float) -> None:
    with pytest.raises(ConfigError, match="sharpe_deviation is"):
        expected_max_sharpe(10, deviation)


def test_an_unknown_deviation_leaves_the_deflated_sharpe_unknown() -> None:
    result = deflated_sharpe(daily(0), trials=10, sharpe_deviation=float("nan"))
    assert np.isnan(result.threshold)
    assert np.isnan(result.probability)
    assert result.sharpe == sharpe_ratio(daily(0))


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(ConfigError, match="confidence is"):
        minimum_track_record_length(daily(0), confidence=confidence)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_that_is_none_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match="target_annual_sharpe is"):
        minimum_backtest_length(10, target)
