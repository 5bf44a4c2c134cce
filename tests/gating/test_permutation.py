import numpy as np
import pytest

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.gating.crossfit import surrounding_folds
from qlib_llm_alpha.gating.gates import SoftmaxGate, StaticGate
from qlib_llm_alpha.gating.objective import Penalty
from qlib_llm_alpha.gating.permutation import cross_fitted_gain, permutation_test
from qlib_llm_alpha.gating.sufficient import composite_ic
from tests.gating.small_market import random_statistics, statistics_of, switching_market

GATE = SoftmaxGate(Penalty(kl=0.05, ridge=0.001))


def market(seed, strength):
    scores, label, state = switching_market(seed, days=480, strength=strength)
    return statistics_of(scores, label), state


def test_a_state_that_matters_is_found():
    result = permutation_test(GATE, *market(1, 0.1), permutations=39, block=30)
    assert result.p_value == 1 / 40
    assert result.gain > result.shuffled_gains.max()
    assert result.sentence.startswith("The state of the market helped: mean daily IC gain over static weights +0.1")


def test_a_state_that_does_not_matter_gives_no_evidence():
    values = [permutation_test(GATE, *market(seed, 0.0), permutations=19, n_folds=3).p_value for seed in range(2, 10)]
    assert np.mean(np.array(values) < 0.1) <= 0.25
    result = permutation_test(GATE, *market(2, 0.0), permutations=19, n_folds=3)
    assert result.sentence.startswith("No evidence that the state of the market helped")


def test_the_p_value_counts_the_unshuffled_state_among_the_shuffles():
    result = permutation_test(GATE, *market(3, 0.02), permutations=19, n_folds=3)
    assert result.p_value == (1 + sum(result.shuffled_gains >= result.gain)) / 20


def test_the_seed_alone_decides_the_shuffles():
    first, again, other = (
        permutation_test(GATE, *market(4, 0.02), permutations=5, n_folds=3, seed=seed).shuffled_gains
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_gate_that_is_its_prior_gains_nothing_and_has_p_one():
    result = permutation_test(SoftmaxGate(Penalty(float("inf"))), *market(5, 0.1), permutations=3)
    assert result.gain == 0.0
    assert result.p_value == 1.0


def test_gains_are_out_of_fold():
    stats, state = market(6, 0.1)
    folds = surrounding_folds(480, 4)
    priors = [StaticGate().fit(stats.select(fold.train)) for fold in folds]
    gains = cross_fitted_gain(GATE, stats, state, folds, priors)
    fold = folds[2]
    gate = GATE.fit(stats.select(fold.train), state[fold.train], priors[2].learned)
    held_out = stats.select(fold.predict)
    expected = composite_ic(held_out, gate.weights(state[fold.predict])) - composite_ic(held_out, priors[2].learned)
    np.testing.assert_allclose(gains[fold.predict], expected)
    assert np.isnan(cross_fitted_gain(GATE, stats, state, folds[:1], priors[:1])[-1])


@pytest.mark.parametrize("arguments", [{"permutations": 0}, {"block": 0}, {"block": 21}])
def test_tests_that_test_nothing_are_refused(arguments):
    with pytest.raises(ConfigError, match="make no test"):
        permutation_test(GATE, random_statistics(1), np.zeros((40, 2)), **arguments)


def test_with_few_blocks_it_says_that_it_cannot_tell():
    result = permutation_test(GATE, *market(1, 0.1), permutations=3, block=120)
    assert result.sentence.startswith("Too few days (4 blocks) to tell whether the state of the market helped")
