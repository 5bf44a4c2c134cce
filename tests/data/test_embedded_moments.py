from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.data.embedded.moments import bar_moments
from qlib_llm_alpha.data.embedded.tables import moment_table

# How far the embedded market may lie from real bars: as a share of the real value.
TOLERANCE = {
    "daily volatility": 0.15,
    "excess kurtosis": 0.35,
    "absolute return autocorrelation, lag 1": 0.4,
    "absolute return autocorrelation, lag 5": 0.4,
    "deviation of log volume": 0.15,
    "log volume autocorrelation, lag 1": 0.1,
    "log volume autocorrelation, lag 5": 0.15,
    "log volume with absolute return": 0.2,
    "overnight share of variance": 0.2,
    "log high over low": 0.15,
    "deviation of close position in range": 0.15,
    "correlation with the index": 0.2,
    "spread of volatility (90th over 10th percentile)": 0.15,
    "cross-sectional dispersion of returns": 0.15,
    "suspended, % of days": 0.5,
    "index daily volatility": 0.2,
}


def _walk(days: int, count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    close = 10.0 * np.cumprod(1.0 + 0.02 * rng.standard_normal((days, count)), axis=0)
    volume = np.exp(rng.standard_normal((days, count)))
    return {"open": close, "high": close * 1.01, "low": close * 0.99, "close": close, "volume": volume}


def test_independent_normal_returns_have_the_moments_they_were_given() -> None:
    bars = _walk(2000, 40, 0)
    moments = bar_moments(bars, bars["close"].mean(axis=1))
    assert moments["daily volatility"] == pytest.approx(0.02, rel=0.03)
    assert moments["cross-sectional dispersion of returns"] == pytest.approx(0.02, rel=0.05)
    assert moments["deviation of log volume"] == pytest.approx(1.0, rel=0.05)
    assert moments["log high over low"] == pytest.approx(np.log(1.01 / 0.99))
    for name in ("excess kurtosis", "skewness", "return autocorrelation, lag 1", "log volume autocorrelation, lag 1"):
        assert abs(moments[name]) < 0.15
    assert moments["suspended, % of days"] == 0.0


def test_missing_bars_count_as_suspended_and_move_nothing_else() -> None:
    bars = _walk(2000, 40, 1)
    holes = np.random.default_rng(2).random(bars["close"].shape) < 0.02
    holes[[0, -1]] = False
    moments = bar_moments({name: np.where(holes, np.nan, v) for name, v in bars.items()}, np.ones(2000))
    assert moments["suspended, % of days"] == pytest.approx(2.0, rel=0.1)
    assert moments["daily volatility"] == pytest.approx(0.02, rel=0.03)


def test_persistent_volume_and_its_link_to_returns_are_measured() -> None:
    bars = _walk(1500, 20, 3)
    change = np.vstack([np.zeros((1, 20)), bars["close"][1:] / bars["close"][:-1] - 1.0])
    bars["volume"] = np.exp(np.abs(change) * 100)
    assert bar_moments(bars, np.ones(1500))["log volume with absolute return"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_the_default_market_is_calibrated_on_real_bars() -> None:
    folder = Path(os.environ.get("QLIB_LLM_ALPHA_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "cn"
    if not folder.is_dir():
        pytest.skip(f"no real bars at {folder}; set QLIB_LLM_ALPHA_REAL_DATA to the folder that holds cn/")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in moment_table(
            folder, kind="planted", instruments=100, start="2017-01-03", end="2023-12-29", seed=7
        ).splitlines()[2:]
    ]
    measured = {name: (float(own), float(real)) for name, own, real in rows}
    for name, tolerance in TOLERANCE.items():
        own, real = measured[name]
        assert abs(own / real - 1.0) <= tolerance, (name, own, real)
