import pickle

import numpy as np
import pytest

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.gating.crossfit import cross_fit, expanding_folds
from qlib_llm_alpha.gating.experts import (
    LEARNERS,
    ExpertSpec,
    LightGBMLearner,
    RidgeLearner,
    SingleFactorLearner,
    predict_panel,
    rows_of,
)
from qlib_llm_alpha.gating.gates import SoftmaxGate, StaticGate
from qlib_llm_alpha.gating.ladder import climb
from qlib_llm_alpha.gating.objective import Penalty
from qlib_llm_alpha.gating.sufficient import SufficientStatistics, standardise_scores
from tests.gating.small_market import trading_days


def rows(seed, count=600, features=4):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, features))
    y = 0.5 * x[:, 0] - 0.3 * x[:, 1] + rng.standard_normal(count)
    x[rng.random(x.shape) < 0.05] = np.nan
    x[3] = np.nan
    y[rng.random(count) < 0.05] = np.nan
    return x, y


def test_ridge_solves_the_penalised_normal_equations():
    x, y = rows(1)
    usable = [i for i in range(len(y)) if not np.isnan(y[i]) and not np.isnan(x[i]).all()]
    a, b = 0.2 * np.eye(4), np.zeros(4)
    for i in usable:
        row = np.where(np.isnan(x[i]), 0.0, x[i])
        a += np.outer(row, row) / len(usable)
        b += row * y[i] / len(usable)
    fitted = RidgeLearner(alpha=0.2).fit(x, y)
    np.testing.assert_allclose(fitted.coefficients, np.linalg.inv(a) @ b)


@pytest.mark.parametrize("learner", [RidgeLearner(), LightGBMLearner(rounds=10), SingleFactorLearner()])
def test_every_learner_repeats_itself_pickles_and_scores_no_row_without_features(learner):
    x, y = rows(2)
    fitted = learner.fit(x, y)
    scores = fitted.predict(x)
    assert scores.shape == (600,)
    assert np.isnan(scores[3])
    np.testing.assert_array_equal(learner.fit(x, y).predict(x), scores)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(x), scores)  # noqa: S301


@pytest.mark.parametrize("learner", [RidgeLearner(), LightGBMLearner(), SingleFactorLearner()])
def test_every_learner_finds_what_is_there(learner):
    x, y = rows(3)
    later, outcome = rows(4)
    scores = learner.fit(x, y).predict(later)
    both = ~np.isnan(scores) & ~np.isnan(outcome)
    assert np.corrcoef(scores[both], outcome[both])[0, 1] > 0.2


def test_a_single_factor_is_turned_by_its_sign_and_keeps_its_gaps():
    x, y = rows(5)
    np.testing.assert_array_equal(SingleFactorLearner(1).fit(x, y).predict(x), -x[:, 1])
    with pytest.raises(PanelError, match="column"):
        SingleFactorLearner(4).fit(x, y)


def test_trees_stop_early_on_tune_rows():
    x, y = rows(6)
    rng = np.random.default_rng(7)
    unrelated = rng.standard_normal((300, 4)), rng.standard_normal(300)
    stopped = LightGBMLearner(patience=3).fit(x, y, unrelated)
    assert stopped.model.count("Tree=") < LightGBMLearner().fit(x, y).model.count("Tree=")


def test_a_spec_builds_its_learner():
    assert ExpertSpec("a", "moderate", "ridge", {"alpha": 0.5}).build() == RidgeLearner(0.5)
    assert {ExpertSpec("a", "", name).learner for name in LEARNERS} == set(LEARNERS)


def test_specs_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="lightgbm"):
        ExpertSpec("a", "moderate", "forest")
    with pytest.raises(ConfigError, match="alpha"):
        ExpertSpec("a", "moderate", "ridge", {"alfa": 0.5})
    with pytest.raises(ConfigError, match="alpha"):
        RidgeLearner(alpha=0.0)


def test_rows_that_do_not_fit_or_are_empty_are_refused():
    x, y = rows(8)
    with pytest.raises(PanelError, match="do not fit"):
        RidgeLearner().fit(x, y[:-1])
    with pytest.raises(PanelError, match="none of 600 rows"):
        RidgeLearner().fit(x, np.full(600, np.nan))
    with pytest.raises(PanelError, match="do not fit"):
        rows_of(np.zeros((2, 3, 4)), np.zeros((3, 5)))


def test_a_panel_goes_to_rows_and_back():
    features = np.random.default_rng(9).standard_normal((2, 5, 7))
    x, y = rows_of(features, features[0] * 2)
    np.testing.assert_array_equal(x[:, 1].reshape(5, 7), features[1])
    np.testing.assert_allclose(y, 2 * x[:, 0])
    np.testing.assert_array_equal(predict_panel(SingleFactorLearner().fit(x, y), features), features[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_lightgbm_expert_on_pure_noise_earns_no_weight_above_its_prior(seed):
    """Two ridge experts see signal, a LightGBM sees noise and overfits it; only out-of-fold scores reach the gates."""
    rng = np.random.default_rng(seed)
    days, names = 500, 50
    signal, noise = rng.standard_normal((2, days, names)), rng.standard_normal((6, days, names))
    label = standardise_scores(0.05 * signal[0] + 0.04 * signal[1] + rng.standard_normal((days, names)))
    eager = LightGBMLearner(rounds=40, leaves=31, min_rows_in_leaf=20, l2=0.0, learning_rate=0.1)
    experts = [(RidgeLearner(), signal[:1]), (RidgeLearner(), signal[1:]), (eager, noise)]

    def fit_predict(train, predict):
        fitted = [(learner.fit(*rows_of(x[:, train], label[train])), x) for learner, x in experts]
        return np.stack([predict_panel(predictor, x[:, predict]) for predictor, x in fitted])

    everything = np.ones(days, dtype=bool)
    in_sample = SufficientStatistics.from_scores(fit_predict(everything, everything), label, trading_days(days))
    assert in_sample.c[:, 2].mean() > 5 * in_sample.c[:, :2].mean()

    scores = cross_fit(expanding_folds(trading_days(days), n_folds=3, min_train=100), fit_predict)
    stats = SufficientStatistics.from_scores(scores, label, trading_days(days))
    state = rng.standard_normal((len(stats.days), 5))
    static = StaticGate().fit(stats)
    assert static.learned[2] <= 1 / 3
    search, tune = np.arange(len(stats.days)) < 280, np.arange(len(stats.days)) >= 282
    prior = StaticGate().fit(stats.select(search)).learned
    chosen = climb(SoftmaxGate(), stats.select(search), state[search], stats.select(tune), state[tune], prior).gate
    assert chosen.weights(state).mean(axis=0)[2] <= prior[2] + 1e-12
    free = SoftmaxGate(Penalty(kl=0.05, ridge=0.001)).fit(stats, state, static.learned)
    assert free.weights(state).mean(axis=0)[2] <= static.learned[2] + 1e-12


def test_a_stated_sign_is_kept_whatever_the_rows_say() -> None:
    features = np.array([[1.0], [2.0], [3.0]])
    label = np.array([-1.0, -2.0, -3.0])
    assert SingleFactorLearner(0, sign=1).fit(features, label).predict(features).tolist() == [1.0, 2.0, 3.0]
    assert SingleFactorLearner(0).fit(features, label).predict(features).tolist() == [-1.0, -2.0, -3.0]


def test_a_sign_other_than_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="sign is 2"):
        SingleFactorLearner(0, sign=2)
