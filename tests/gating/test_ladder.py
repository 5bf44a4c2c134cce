from dataclasses import replace

import numpy as np
import pytest

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.statistics import hac_standard_error
from qlib_llm_alpha.gating.gates import SoftmaxGate, StaticGate
from qlib_llm_alpha.gating.ladder import LADDER, climb
from qlib_llm_alpha.gating.objective import Penalty
from qlib_llm_alpha.gating.sufficient import composite_ic
from tests.gating.small_market import random_statistics, statistics_of, switching_market

INFINITE = Penalty(float("inf"))


def halves(seed, strength):
    scores, label, state = switching_market(seed, strength=strength)
    stats = statistics_of(scores, label)
    search, tune = np.arange(600) < 398, np.arange(600) >= 400
    return stats.select(search), state[search], stats.select(tune), state[tune]


def test_the_ladder_is_climbed_when_the_state_helps():
    result = climb(SoftmaxGate(), *halves(1, 0.1))
    assert result.gate.penalty.kl < 0.3
    assert result.rows[-1].tune_ic > result.rows[0].tune_ic


def test_the_choice_is_the_strongest_rung_within_one_standard_error_of_the_best():
    for seed in range(4):
        search, search_state, tune, tune_state = halves(seed, 0.03)
        result = climb(SoftmaxGate(), search, search_state, tune, tune_state)
        prior = StaticGate().fit(search).learned
        series = [
            composite_ic(tune, SoftmaxGate(p).fit(search, search_state, prior).weights(tune_state)) for p in LADDER
        ]
        best = max(series, key=lambda s: s.mean())
        for s, row in zip(series, result.rows, strict=True):
            assert row.tune_ic == pytest.approx(s.mean())
            assert row.behind_best == pytest.approx((best - s).mean())
            if (best - s).any():
                assert row.standard_error == pytest.approx(hac_standard_error(best - s))
        within = [row.penalty for row in result.rows if row.behind_best <= row.standard_error]
        assert [row.penalty for row in result.rows if row.chosen] == [within[0]]
        assert result.gate.penalty == within[0]


def test_with_nothing_to_find_the_prior_itself_is_mostly_chosen():
    free = 0
    for seed in range(20):
        state = np.random.default_rng(seed).standard_normal((300, 4))
        stats = random_statistics(seed, days=300)
        free += climb(SoftmaxGate(), stats.select(np.arange(150)), state[:150],
                      stats.select(np.arange(152, 300)), state[152:]).gate.penalty != INFINITE  # fmt: skip
    assert free <= 5


def test_nothing_after_tune_and_no_label_of_tune_touches_the_fit():
    search, search_state, tune, tune_state = halves(3, 0.1)
    gate = climb(SoftmaxGate(), search, search_state, tune, tune_state).gate
    alone = SoftmaxGate(gate.penalty).fit(search, search_state)
    np.testing.assert_array_equal(gate.matrix, alone.matrix)
    np.testing.assert_array_equal(gate.bias, alone.bias)


def test_a_ladder_of_the_prior_alone_gives_the_prior():
    search, search_state, tune, tune_state = halves(4, 0.1)
    result = climb(SoftmaxGate(), search, search_state, tune, tune_state, np.array([0.2, 0.3, 0.5]), [INFINITE])
    np.testing.assert_array_equal(result.gate.weights(tune_state)[0], [0.2, 0.3, 0.5])
    assert result.rows[0].standard_error == 0.0


@pytest.mark.parametrize("ladder", [[], [Penalty(0.1)], [INFINITE, Penalty(0.1), Penalty(0.2)]])
def test_ladders_out_of_order_are_refused(ladder):
    with pytest.raises(ConfigError, match="ladder has kl"):
        climb(SoftmaxGate(), *halves(5, 0.0), ladder=ladder)


def test_an_empty_tune_segment_is_refused():
    search, search_state, tune, tune_state = halves(5, 0.0)
    nothing = replace(tune.select(np.arange(0)))
    with pytest.raises(ConfigError, match="tune has no usable day"):
        climb(SoftmaxGate(), search, search_state, nothing, tune_state[:0])
