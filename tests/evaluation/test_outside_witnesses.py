"""Figures of ours against those of libraries that others trust, where the conventions coincide."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.engine.scoring import ic_series, rank_ic_series
from qlib_llm_alpha.evaluation import signal, statistics

DAYS, NAMES = 40, 50


def witness(name: str) -> ModuleType:
    module: ModuleType = pytest.importorskip(name, reason=f"{name.split('.')[0]} is not installed")
    return module


def scores_and_labels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    score = rng.standard_normal((DAYS, NAMES))
    return score, 0.01 * (0.2 * score + rng.standard_normal((DAYS, NAMES)))


def daily_returns(days: int = 500, seed: int = 0) -> np.ndarray:
    return 0.0005 + 0.01 * np.random.default_rng(seed).standard_normal(days)


def factor_data(score: np.ndarray, label: np.ndarray, quantiles: int = 5) -> pd.DataFrame:
    """Return what alphalens calls clean factor data: a row for each day and name, quantiles by its own rule."""
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", periods=len(score)), [f"N{name:02d}" for name in range(score.shape[1])]],
        names=["date", "asset"],
    )
    table = pd.DataFrame({"1D": label.ravel(), "factor": score.ravel()}, index=index).dropna()
    table["factor_quantile"] = witness("alphalens.utils").quantize_factor(table, quantiles)
    return table


# Information coefficients and quantiles: alphalens, scipy


def test_rank_ic_equals_that_of_alphalens() -> None:
    score, label = scores_and_labels()
    score[3, 5:20] = np.nan
    label[7, :10] = np.nan
    score[9] = np.round(score[9])
    expected = witness("alphalens.performance").factor_information_coefficient(factor_data(score, label, 2))["1D"]
    assert rank_ic_series(score, label) == pytest.approx(expected.to_numpy(), abs=1e-12)


def test_ic_equals_pearson_of_scipy_and_that_of_pandas() -> None:
    stats = witness("scipy.stats")
    score, label = scores_and_labels()
    found = ic_series(score, label)
    expected = [stats.pearsonr(score[day], label[day]).statistic for day in range(DAYS)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found == pytest.approx(pd.DataFrame(score).corrwith(pd.DataFrame(label), axis=1).to_numpy(), abs=1e-12)


def test_ic_of_ranks_is_the_rank_ic_of_alphalens() -> None:
    score, label = scores_and_labels()
    ranks = [pd.DataFrame(values).rank(axis=1).to_numpy() for values in (score, label)]
    expected = witness("alphalens.performance").factor_information_coefficient(factor_data(score, label))["1D"]
    assert ic_series(*ranks) == pytest.approx(expected.to_numpy(), abs=1e-12)


@pytest.mark.parametrize("quantiles", [2, 5, 10])
def test_quantile_returns_equal_those_of_alphalens(quantiles: int) -> None:
    # The names of each day divide by the quantiles; else alphalens makes the lowest ones larger, we the ends smaller.
    score, label = scores_and_labels()
    score[4, :10] = np.nan
    performance = witness("alphalens.performance")
    table = factor_data(score, label, quantiles)
    by_day, _ = performance.mean_return_by_quantile(table, by_date=True, demeaned=False)
    expected = by_day["1D"].unstack("factor_quantile").to_numpy()
    found = signal.quantile_returns(score, label, quantiles)
    assert found == pytest.approx(expected, abs=1e-12)
    overall, _ = performance.mean_return_by_quantile(table, demeaned=False)
    assert found.mean(axis=0) == pytest.approx(overall["1D"].to_numpy(), abs=1e-12)


def test_the_spread_is_twice_that_of_alphalens() -> None:
    # Since 0.5 alphalens halves it: 50 percent long and short. Ours is per unit of one side.
    score, label = scores_and_labels()
    performance = witness("alphalens.performance")
    by_day, _ = performance.mean_return_by_quantile(factor_data(score, label), by_date=True, demeaned=False)
    half, _ = performance.compute_mean_returns_spread(by_day, 5, 1)
    raw = (by_day.xs(5, level="factor_quantile") - by_day.xs(1, level="factor_quantile"))["1D"]
    ratio = float((raw / half["1D"]).iloc[0])
    assert signal.quantile_spread(score, label) == pytest.approx(ratio * half["1D"].to_numpy(), abs=1e-12)


@pytest.mark.parametrize(("side", "quantile"), [("top", 5), ("bottom", 1)])
def test_turnover_of_a_quantile_equals_that_of_alphalens(side: str, quantile: int) -> None:
    # Equal counts each day: half of the value traded is then the share of names that are new.
    score, label = scores_and_labels()
    placed = factor_data(score, label)["factor_quantile"]
    expected = witness("alphalens.performance").quantile_turnover(placed, quantile).dropna().to_numpy()
    weights = signal.quantile_weights(score, side=side)  # type: ignore[arg-type]
    assert signal.portfolio_turnover(weights)[1:] == pytest.approx(expected[-(DAYS - 1) :], abs=1e-12)


# t values: statsmodels


@pytest.mark.parametrize("lags", [0, 1, 6])
def test_t_of_a_daily_ic_equals_that_of_statsmodels(lags: int) -> None:
    regression = witness("statsmodels.regression.linear_model")
    series = ic_series(*scores_and_labels(1))
    fit = regression.OLS(series, np.ones(DAYS)).fit(cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": False})
    assert statistics.hac_t(series, lags) == pytest.approx(float(fit.tvalues[0]), rel=1e-10)


def test_automatic_lags_by_hand() -> None:
    # floor(4 (n / 100)^(2/9)): 2.52^(2/9) = 1.228, 7.5^(2/9) = 1.565, 25^(2/9) = 2.045
    assert [statistics.automatic_lags(n) for n in (100, 252, 750, 2500)] == [4, 4, 6, 8]
    series = daily_returns(252)
    assert statistics.hac_t(series) == statistics.hac_t(series, 4)


def test_icir_by_hand() -> None:
    # mean 0.04; deviations -0.02, 0, 0.02 give sqrt(0.0008 / 2) = 0.02
    assert statistics.icir(np.array([0.02, 0.04, 0.06])) == pytest.approx(2.0)
    # Without memory the t value is the ratio over n deviations (not n - 1) times sqrt(n).
    series = daily_returns(100)
    assert statistics.hac_t(series, 0) == pytest.approx(statistics.icir(series) * 10 * np.sqrt(100 / 99))


# Ratios and drawdown: empyrical


def test_sharpe_and_volatility_equal_those_of_empyrical() -> None:
    # Both take the arithmetic daily mean and the sample deviation; neither compounds, so they coincide as they are.
    empyrical = witness("empyrical")
    returns = daily_returns()
    year = statistics.annualised(returns)
    assert year.ratio == pytest.approx(empyrical.sharpe_ratio(returns), rel=1e-12)
    assert year.volatility == pytest.approx(empyrical.annual_volatility(returns), rel=1e-12)
    assert statistics.icir(returns) * np.sqrt(252) == pytest.approx(empyrical.sharpe_ratio(returns), rel=1e-12)


def test_annual_return_of_logarithms_equals_that_of_empyrical() -> None:
    # Ours sums simple returns, empyrical compounds: the sum of log returns is the logarithm of its growth.
    returns = daily_returns()
    growth = witness("empyrical").annual_return(returns)
    assert statistics.annualised(np.log1p(returns)).mean == pytest.approx(np.log1p(growth), rel=1e-10)


def test_drawdown_of_logarithms_equals_that_of_empyrical() -> None:
    # Theirs is a share of the highest wealth so far, compounded and below 0: summed log returns give its logarithm.
    returns = daily_returns()
    deepest = witness("empyrical").max_drawdown(returns)
    assert -np.expm1(-statistics.max_drawdown(np.log1p(returns))) == pytest.approx(-deepest, rel=1e-10)


def test_drawdown_of_small_returns_is_near_that_of_empyrical_without_logarithms() -> None:
    returns = daily_returns() * 1e-4
    assert statistics.max_drawdown(returns) == pytest.approx(-witness("empyrical").max_drawdown(returns), rel=1e-3)


def test_shortfall_equals_the_conditional_value_at_risk_of_empyrical() -> None:
    # Ours averages the worst floor(0.05 n) days, theirs floor(0.05 (n - 1)) + 1: both 25 of 500. Ours is above 0.
    returns = daily_returns(500)
    expected = witness("empyrical").conditional_value_at_risk(returns, 0.05)
    assert statistics.expected_shortfall(returns, 0.05) == pytest.approx(-expected, rel=1e-12)
