from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.agents.confidence import confidence
from qlib_llm_alpha.errors import PanelError

RNG = np.random.default_rng(0)
IC = 0.02 + 0.1 * RNG.standard_normal((4, 400))
REGIME = RNG.choice(["bull", "bear", "sideways"], 400)


def test_theta_by_a_loop() -> None:
    said = confidence(IC, REGIME, 350)
    rows = [s for s in range(400) if s <= 348][-252:]
    for factor in range(4):
        every = [IC[factor, s] for s in rows]
        same = [IC[factor, s] for s in rows if REGIME[s] == REGIME[350]]
        expected = (len(same) * np.mean(same) + 60 * np.mean(every)) / (len(same) + 60)
        assert said.theta[factor] == pytest.approx(expected)
        assert said.mean[factor] == pytest.approx(np.mean(every))
        assert said.conditional[factor] == pytest.approx(np.mean(same))
        assert (said.n_days[factor], said.n_regime[factor]) == (252, len(same))
    np.testing.assert_array_equal(said.strength, np.abs(said.theta))
    np.testing.assert_array_equal(said.sign, np.sign(said.theta))


@given(st.integers(0, 399), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_what_is_observable_later_changes_nothing(as_of: int, horizon: int) -> None:
    poisoned, regime = IC.copy(), REGIME.copy()
    poisoned[:, max(as_of - horizon + 1, 0) :] = 0.9
    regime[as_of + 1 :] = "bear"
    before, after = (confidence(i, r, as_of, horizon=horizon) for i, r in ((IC, REGIME), (poisoned, regime)))
    np.testing.assert_array_equal(before.theta, after.theta)


def test_the_last_observable_day_does_change_it() -> None:
    moved = IC.copy()
    moved[:, 348] += 0.5
    assert (confidence(moved, REGIME, 350).theta > confidence(IC, REGIME, 350).theta).all()


def test_turning_a_factor_round_turns_its_sign_and_keeps_its_strength() -> None:
    one, other = confidence(IC, REGIME, 350), confidence(-IC, REGIME, 350)
    np.testing.assert_array_equal(one.sign, -other.sign)
    np.testing.assert_array_equal(one.strength, other.strength)


def test_shrinkage_runs_from_the_regime_to_all_days() -> None:
    np.testing.assert_allclose(confidence(IC, REGIME, 350, shrinkage=0).theta, confidence(IC, REGIME, 350).conditional)
    np.testing.assert_allclose(confidence(IC, REGIME, 350, shrinkage=1e12).theta, confidence(IC, REGIME, 350).mean)


def test_a_regime_never_seen_gives_the_mean_of_all_days() -> None:
    regime = np.full(400, "bull")
    regime[350] = "bear"
    for shrinkage in (0.0, 60.0):
        said = confidence(IC, regime, 350, shrinkage=shrinkage)
        np.testing.assert_allclose(said.theta, said.mean)
        assert (said.n_regime == 0).all()


def test_too_few_days_give_no_theta() -> None:
    sparse = IC.copy()
    sparse[0, :300] = np.nan
    said = confidence(sparse, REGIME, 350)
    assert np.isnan(said.theta[0])
    assert said.sign[0] == 1
    assert np.isfinite(said.theta[1:]).all()
    assert np.isnan(confidence(IC, REGIME, 1, min_days=0).theta).all()


def test_a_slower_label_is_averaged_in_with_its_own_delay() -> None:
    slow = IC[::-1].copy()
    said = confidence(IC, REGIME, 350, slow_rank_ic=slow)
    expected = (confidence(IC, REGIME, 350).theta + confidence(slow, REGIME, 350, horizon=6).theta) / 2
    np.testing.assert_allclose(said.theta, expected)
    slow[:, 345:] = 0.9
    np.testing.assert_array_equal(confidence(IC, REGIME, 350, slow_rank_ic=slow).theta, said.theta)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PanelError, match="align"):
        confidence(IC, REGIME[:3], 2)
    with pytest.raises(PanelError, match="row 400"):
        confidence(IC, REGIME, 400)
    with pytest.raises(PanelError, match="slow_rank_ic"):
        confidence(IC, REGIME, 350, slow_rank_ic=IC[:2])
