import numpy as np
import pytest

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.gating.explain import explain_log_odds
from qlib_llm_alpha.gating.gates import SoftmaxGate
from qlib_llm_alpha.gating.objective import Penalty
from tests.gating.small_market import random_statistics

PRIOR = np.array([0.1, 0.2, 0.3, 0.4])


def state_with_gaps(seed):
    state = np.random.default_rng(seed).standard_normal((40, 3))
    state[4, 1], state[5, 2] = np.nan, 11.0
    return state


@pytest.mark.parametrize("top_m", [None, 2, 1])
def test_contributions_and_constant_sum_to_the_change_of_log_odds(top_m):
    state = state_with_gaps(1)
    gate = SoftmaxGate(Penalty(0.01), top_m=top_m).fit(random_statistics(1), state, PRIOR)
    explanation = explain_log_odds(gate, state)
    weights = gate.dense_weights(state)
    for t in range(40):
        first, second = np.argsort(-weights[t])[:2]
        assert (explanation.first[t], explanation.second[t]) == (first, second)
        log_odds, prior = np.log(weights[t, first] / weights[t, second]), np.log(PRIOR[first] / PRIOR[second])
        assert explanation.log_odds[t] == pytest.approx(log_odds, abs=1e-12)
        assert explanation.prior_log_odds[t] == pytest.approx(prior, abs=1e-12)
        change = explanation.contributions[t].sum() + explanation.constant[t]
        assert change == pytest.approx(log_odds - prior, abs=1e-12)
    assert explanation.contributions[4, 1] == 0.0
    assert np.abs(explanation.contributions).max() > 0.01


def test_a_gate_at_its_prior_has_nothing_to_explain():
    state = state_with_gaps(2)
    gate = SoftmaxGate(Penalty(float("inf"))).fit(random_statistics(2), state, PRIOR)
    explanation = explain_log_odds(gate, state)
    np.testing.assert_array_equal(explanation.contributions, 0.0)
    np.testing.assert_allclose(explanation.constant, 0.0, atol=1e-15)


def test_one_expert_has_no_odds():
    stats = random_statistics(3)
    alone = type(stats)(stats.days, stats.c[:, :1], stats.R[:, :1, :1], stats.positions, stats.dropped_days)
    gate = SoftmaxGate().fit(alone, state_with_gaps(3))
    np.testing.assert_array_equal(gate.weights(state_with_gaps(3)), 1.0)
    with pytest.raises(ConfigError, match="one expert"):
        explain_log_odds(gate, state_with_gaps(3))


def test_an_unfitted_gate_is_refused():
    with pytest.raises(ConfigError, match="not been fitted"):
        explain_log_odds(SoftmaxGate(), state_with_gaps(3))
