from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.agents.preference import (
    LOWER_IS_BETTER,
    MEASURES,
    PREFERENCES,
    WEIGHTS,
    RiskMeasures,
    RiskPreference,
    risk_measures,
    risk_scores,
)
from qlib_llm_alpha.errors import ConfigError, PanelError

RNG = np.random.default_rng(1)
IC = 0.03 + 0.1 * RNG.standard_normal((6, 300))
SPREAD = 0.001 + 0.01 * RNG.standard_normal((6, 300))
REGIME = RNG.choice(["bull", "bear", "sideways"], 300)
UP = np.ones(6)


def some_measures(seed: int, pool: int = 9) -> RiskMeasures:
    rng = np.random.default_rng(seed)
    return RiskMeasures(*rng.random((len(MEASURES), pool)))


def test_measures_by_a_slow_look_at_one_factor() -> None:
    measured = risk_measures(IC, SPREAD, REGIME, -UP, 280)
    spread, ic, regime = -SPREAD[2, 27:279], -IC[2, 27:279], REGIME[27:279]
    wealth, peak, deepest = 0.0, 0.0, 0.0
    for value in spread:
        wealth += value
        peak = max(peak, wealth)
        deepest = max(deepest, peak - wealth)
    assert measured.drawdown[2] == pytest.approx(deepest)
    assert measured.volatility[2] == pytest.approx(spread.std(ddof=1) * np.sqrt(252))
    assert measured.shortfall[2] == pytest.approx(-np.sort(spread)[:12].mean())
    assert measured.worst_regime_ic[2] == pytest.approx(min(ic[regime == name].mean() for name in set(regime)))
    assert measured.stability[2] == pytest.approx(np.mean(ic > 0))
    assert measured.mean_return[2] == pytest.approx(spread.mean() * 252)
    assert measured.mean_ic[2] == pytest.approx(ic.mean())


def test_what_is_observable_later_changes_nothing() -> None:
    ic, spread = IC.copy(), SPREAD.copy()
    ic[:, 199:], spread[:, 199:] = 0.9, 0.5
    before, after = (risk_measures(*pair, REGIME, UP, 200) for pair in ((IC, SPREAD), (ic, spread)))
    for field in fields(before):
        np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))


def test_a_regime_with_few_days_is_not_the_worst_one() -> None:
    regime = np.full(300, "bull")
    regime[100:110] = "bear"
    ic = np.full((1, 300), 0.05)
    ic[0, 100:110] = -0.9
    spread = SPREAD[:1]
    assert risk_measures(ic, spread, regime, UP[:1], 299).worst_regime_ic[0] == pytest.approx(
        np.mean(ic[0, 46:298][regime[46:298] == "bull"])
    )
    few = risk_measures(ic[:, :15], spread[:, :15], regime[:15], UP[:1], 14, min_days=5)
    assert few.worst_regime_ic[0] == pytest.approx(0.05)


def test_too_few_days_give_no_score() -> None:
    spread = SPREAD.copy()
    spread[0, 50:] = np.nan
    measured = risk_measures(IC, spread, REGIME, UP, 299)
    assert np.isnan(measured.drawdown[0])
    for preference in PREFERENCES:
        scores = risk_scores(measured, preference)
        assert np.isnan(scores[0])
        assert np.isfinite(scores[1:]).all()


@pytest.mark.parametrize("preference", PREFERENCES)
def test_weights_of_a_preference_are_not_negative_and_sum_to_one(preference: RiskPreference) -> None:
    assert sum(WEIGHTS[preference].values()) == pytest.approx(1.0)
    assert min(WEIGHTS[preference].values()) > 0
    assert tuple(WEIGHTS[preference]) == MEASURES


@given(st.integers(0, 10_000), st.sampled_from(PREFERENCES), st.sampled_from(MEASURES), st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_a_worse_measure_never_raises_a_score(seed: int, preference: RiskPreference, measure: str, factor: int) -> None:
    before = some_measures(seed)
    worse = getattr(before, measure).copy()
    worse[factor] += 0.5 if measure in LOWER_IS_BETTER else -0.5
    after = replace(before, **{measure: worse})
    assert risk_scores(after, preference)[factor] <= risk_scores(before, preference)[factor]


@given(st.integers(0, 10_000), st.sampled_from(PREFERENCES))
@settings(max_examples=20, deadline=None)
def test_scores_lie_between_0_and_1(seed: int, preference: RiskPreference) -> None:
    scores = risk_scores(some_measures(seed), preference)
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_the_cautious_prefer_calm_and_the_bold_prefer_return() -> None:
    even = np.array([0.5, 0.5])
    calm_or_rich = RiskMeasures(
        volatility=np.array([0.05, 0.3]),
        drawdown=np.array([0.02, 0.4]),
        shortfall=np.array([0.001, 0.05]),
        worst_regime_ic=even,
        stability=even,
        mean_return=np.array([0.02, 0.3]),
        mean_ic=np.array([0.01, 0.05]),
    )
    assert np.argmax(risk_scores(calm_or_rich, "conservative")) == 0
    assert np.argmax(risk_scores(calm_or_rich, "aggressive")) == 1


def test_own_weights_are_scaled_to_one() -> None:
    measured = some_measures(3)
    np.testing.assert_array_equal(
        np.argsort(risk_scores(measured, {"drawdown": 7.0})), np.argsort(-measured.drawdown, kind="stable")
    )


@pytest.mark.parametrize("weights", ["reckless", {"beauty": 1.0}, {"drawdown": -1.0}, {"drawdown": 0.0}, {}])
def test_preferences_that_mean_nothing_are_refused(weights: object) -> None:
    with pytest.raises(ConfigError, match="expected"):
        risk_scores(some_measures(0), weights)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PanelError, match="align"):
        risk_measures(IC, SPREAD[:, :9], REGIME, UP, 3)
    with pytest.raises(PanelError, match="row -1"):
        risk_measures(IC, SPREAD, REGIME, UP, -1)
    with pytest.raises(PanelError, match="one \\(F,\\)"):
        replace(some_measures(0), drawdown=np.ones(2))
