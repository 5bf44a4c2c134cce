import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import check_grad

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.gating.gates import EqualGate, SoftmaxGate, StaticGate, TrailingICGate, keep_largest
from qlib_llm_alpha.gating.objective import GateProblem, Penalty, log_softmax
from qlib_llm_alpha.gating.sufficient import composite_ic, trailing_observable_ic
from tests.gating.small_market import random_statistics, statistics_of, switching_market, trading_days

PRIOR = np.array([0.1, 0.2, 0.3, 0.4])


def random_state(seed, days=40, features=3):
    return np.random.default_rng(seed).standard_normal((days, features))


def problem(seed, penalty, features=3):
    return GateProblem(random_statistics(seed), random_state(seed, features=features), PRIOR, penalty)


@pytest.mark.parametrize(
    "penalty", [Penalty(0.0), Penalty(0.3), Penalty(0.0, 0.7), Penalty(0.0, 0.0, 0.2), Penalty(0.05, 0.1, 0.01)]
)
@pytest.mark.parametrize("features", [0, 3])
def test_gradient_agrees_with_finite_differences(penalty, features):
    p = problem(1, penalty, features)
    point = p.start() + 0.5 * np.random.default_rng(2).standard_normal(len(p.start()))
    gap = check_grad(lambda x: p.value_and_gradient(x)[0], lambda x: p.value_and_gradient(x)[1], point)
    assert gap < 1e-6


def test_gradient_by_weight_agrees_with_finite_differences_off_the_simplex():
    p = problem(3, Penalty(0.2, 0.3))
    g = np.random.default_rng(4).uniform(0.1, 1.0, (4, 40))
    _, gradient = p.value_by_weight(g, np.log(g))
    for t, k in [(0, 0), (3, 1), (19, 2), (20, 3), (39, 1)]:
        step = np.zeros_like(g)
        step[k, t] = 1e-6
        up, down = (p.value_by_weight(w, np.log(w))[0] for w in (g + step, g - step))
        assert (up - down) / 2e-6 == pytest.approx(gradient[k, t], abs=1e-8)


def test_objective_equals_a_slow_loop():
    penalty = Penalty(0.3, 0.2, 0.1)
    p = problem(5, penalty)
    point = 0.4 * np.random.default_rng(6).standard_normal(len(p.start()))
    matrix, bias = point[:12].reshape(4, 3), point[12:]
    total, last = 0.0, None
    for t in range(40):
        e = np.exp(matrix @ p.state[t] + bias)
        g = e / e.sum()
        total += g @ p.stats.c[t] / np.sqrt(g @ p.stats.R[t] @ g) / 40
        total -= 0.3 * np.sum(g * np.log(g / PRIOR)) / 40
        if last is not None and t != 20:  # day 20 follows a missing day
            total -= 0.2 * np.sum((g - last) ** 2) / 40
        last = g
    total -= 0.1 * np.sum(matrix**2)
    assert p.value_and_gradient(point)[0] == pytest.approx(total, abs=1e-12)


def test_variance_on_the_floor_is_a_constant_denominator():
    p = problem(7, Penalty(0.0))
    cancelling = replace(p, stats=replace(p.stats, R=np.zeros_like(p.stats.R)))
    prior = np.tile(PRIOR[:, None], 40)
    value, gradient = cancelling.value_by_weight(prior, np.log(prior))
    assert value == pytest.approx(np.mean(p.stats.c @ PRIOR) / 1e-3)
    np.testing.assert_allclose(gradient, p.stats.c.T / 1e-3 / 40)


@pytest.mark.parametrize("values", [(-1.0,), (float("nan"),), (0.1, float("inf")), (0.1, 0.0, -1.0)])
def test_penalties_that_mean_nothing_are_refused(values):
    with pytest.raises(ConfigError, match="penalty"):
        Penalty(*values)


def test_log_softmax_does_not_overflow():
    np.testing.assert_allclose(log_softmax(np.array([[1e4, 0.0]])), [[0.0, -1e4]])


def test_equal_gate_gives_every_expert_the_same():
    gate = EqualGate().fit(random_statistics(1), random_state(1))
    np.testing.assert_array_equal(gate.weights(random_state(1)[:2]), np.full((2, 4), 0.25))


def test_static_gate_prefers_the_better_expert_and_holds_the_noise_below_its_prior():
    scores, label, state = switching_market(11, strength=0.0, base=0.05)
    gate = StaticGate().fit(statistics_of(scores, label))
    weights = gate.weights(state[:1])[0]
    assert weights.sum() == pytest.approx(1.0)
    assert weights[2] < 1 / 3 < min(weights[:2])


def test_static_gate_beats_random_weights_on_its_own_objective():
    stats = random_statistics(8, days=300)
    gate = StaticGate(Penalty(0.0)).fit(stats)
    best = composite_ic(stats, gate.learned).mean()
    others = [composite_ic(stats, g).mean() for g in np.random.default_rng(9).dirichlet(np.ones(4), 300)]
    assert best >= max(others) - 1e-9


@pytest.mark.parametrize("kl", [1e5, 1e9, float("inf")])
def test_a_heavy_penalty_leaves_static_equal_and_softmax_at_its_prior(kl):
    stats, state = random_statistics(9), random_state(9)
    np.testing.assert_allclose(StaticGate(Penalty(kl)).fit(stats).weights(state), 0.25, atol=1e-6)
    gate = SoftmaxGate(Penalty(kl)).fit(stats, state, PRIOR)
    np.testing.assert_allclose(gate.weights(state), np.tile(PRIOR, (40, 1)), atol=1e-6)


def test_an_infinite_penalty_is_exactly_the_prior_even_with_a_zero_in_it():
    prior = np.array([0.0, 0.5, 0.25, 0.25])
    gate = SoftmaxGate(Penalty(float("inf"))).fit(random_statistics(9), random_state(9), prior)
    np.testing.assert_array_equal(gate.weights(random_state(1)), np.tile(prior, (40, 1)))


def test_softmax_gate_without_a_prior_is_held_to_the_static_gate():
    stats, state = random_statistics(10), random_state(10)
    gate = SoftmaxGate().fit(stats, state)
    np.testing.assert_array_equal(gate.prior, StaticGate().fit(stats).learned)


def test_softmax_gate_follows_the_state_that_says_which_expert_works():
    scores, label, state = switching_market(12)
    stats = statistics_of(scores, label)
    train = np.arange(600) < 400
    static = StaticGate().fit(stats.select(train))
    gate = SoftmaxGate(Penalty(0.03, 0.0, 1e-4)).fit(stats.select(train), state[train], static.learned)
    weights = gate.weights(state[~train])
    up = state[~train][:, 0] > 1
    assert weights[up, 0].mean() > weights[up, 1].mean() + 0.3
    gain = composite_ic(stats.select(~train), weights) - composite_ic(stats.select(~train), static.weights(weights))
    assert gain.mean() > 0.02
    assert weights[:, 2].mean() <= gate.prior[2]


def test_smoothness_makes_weights_change_less():
    scores, label, state = switching_market(13)
    stats = statistics_of(scores, label)
    rough, smooth = (
        np.abs(np.diff(SoftmaxGate(Penalty(0.03, tau)).fit(stats, state).weights(state), axis=0)).mean()
        for tau in (0.0, 10.0)
    )
    assert smooth < 0.5 * rough


def test_softmax_gate_reads_missing_state_as_its_mean_and_clips_extremes():
    stats, state = random_statistics(14), random_state(14)
    gate = SoftmaxGate(Penalty(0.01)).fit(stats, state)
    odd, plain = state[:2].copy(), state[:2].copy()
    odd[0, 1], odd[1, 2] = np.nan, 50.0
    plain[0, 1], plain[1, 2] = 0.0, 3.0
    np.testing.assert_array_equal(gate.weights(odd), gate.weights(plain))


def test_trailing_gate_is_a_softmax_of_observable_ic():
    stats = random_statistics(15)
    gate = TrailingICGate(window=10, temperature=0.05, min_days=4).fit(stats, random_state(1))
    weights = gate.weights(random_state(1), stats.days, stats)
    np.testing.assert_array_equal(weights[:5], 0.25)
    e = np.exp(trailing_observable_ic(stats, stats.days, 10, 4)[30] / 0.05)
    np.testing.assert_allclose(weights[30], e / e.sum())


def test_trailing_gate_says_what_it_lacks():
    stats = random_statistics(15)
    gate = TrailingICGate().fit(stats, random_state(1))
    with pytest.raises(ConfigError, match="no outcomes"):
        gate.weights(random_state(1), stats.days)
    with pytest.raises(PanelError, match="fitted on 4"):
        gate.weights(random_state(1), stats.days, random_statistics(1, experts=3))
    with pytest.raises(ConfigError, match="temperature"):
        TrailingICGate(temperature=0.0)


def test_top_m_keeps_the_largest_and_renormalises():
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    np.testing.assert_allclose(keep_largest(weights, 2), [[0, 0, 3 / 7, 4 / 7], [0.5, 0.5, 0, 0]])
    assert keep_largest(weights, None) is weights
    assert keep_largest(weights, 4) is weights
    stats, state = random_statistics(16), random_state(16)
    for gate in (StaticGate(top_m=2).fit(stats), SoftmaxGate(top_m=2).fit(stats, state)):
        given = gate.weights(state)
        assert ((given > 0).sum(axis=1) == 2).all()
        np.testing.assert_allclose(given.sum(axis=1), 1.0)


def fitted_gates():
    stats, state = random_statistics(17), random_state(17)
    return [gate.fit(stats, state) for gate in (EqualGate(), StaticGate(), TrailingICGate(), SoftmaxGate())]


@pytest.mark.parametrize("gate", fitted_gates(), ids=lambda gate: type(gate).__name__)
def test_every_gate_gives_weights_on_the_simplex_and_survives_pickling(gate):
    stats, state = random_statistics(17), random_state(17)
    weights = gate.weights(state, stats.days, stats)
    assert weights.shape == (40, 4)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert not any(name.startswith("_") for name in vars(gate))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(gate)).weights(state, stats.days, stats), weights)  # noqa: S301


@pytest.mark.parametrize("gate", fitted_gates(), ids=lambda gate: type(gate).__name__)
def test_weights_of_a_day_do_not_depend_on_anything_later(gate):
    stats, state = random_statistics(17), random_state(17)
    poisoned = state.copy()
    poisoned[21:] = 9.0
    c = stats.c.copy()
    c[19:] = 1e3
    before = gate.weights(state, stats.days, stats)[:21]
    after = gate.weights(poisoned, stats.days, replace(stats, c=c))[:21]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("gate", [EqualGate(), StaticGate(), TrailingICGate(), SoftmaxGate()])
def test_an_unfitted_gate_says_so(gate):
    with pytest.raises(ConfigError, match="not been fitted"):
        gate.weights(random_state(1), trading_days(40), random_statistics(1))


def test_bad_calls_are_refused():
    stats, state = random_statistics(18), random_state(18)
    with pytest.raises(PanelError, match="one row for each"):
        SoftmaxGate().fit(stats, state[:-1])
    np.testing.assert_allclose(SoftmaxGate().fit(stats, state, 2 * PRIOR).prior, PRIOR)
    with pytest.raises(PanelError, match="prior"):
        SoftmaxGate().fit(stats, state, np.ones(3))
    with pytest.raises(PanelError, match="fitted on 3"):
        SoftmaxGate().fit(stats, state).weights(state[:, :2])
    with pytest.raises(PanelError, match="no day"):
        StaticGate().fit(stats.select(np.zeros(40, dtype=bool)))
    with pytest.raises(ConfigError, match="top_m"):
        StaticGate(top_m=0)
    with pytest.raises(ConfigError, match="clip"):
        SoftmaxGate(clip=0.0)
