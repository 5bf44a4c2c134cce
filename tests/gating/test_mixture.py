"""The mixture on plain arrays: walls, folds, experts, gates, and what it refuses."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from qlib_llm_alpha.agents.context import MarketContext
from qlib_llm_alpha.agents.selection import SelectionOptions
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.gating import experts as experts_module
from qlib_llm_alpha.gating.crossfit import expanding_folds
from qlib_llm_alpha.gating.experts import ExpertSpec, LightGBMLearner, RidgeLearner, rows_of
from qlib_llm_alpha.gating.mixture import (
    GATES,
    STATE,
    FactorPanel,
    FittedMixture,
    MixtureSettings,
    default_experts,
    fit_mixture,
)
from qlib_llm_alpha.gating.sufficient import Array, SufficientStatistics, composite, standardise_scores
from tests.gating.small_market import trading_days

DAYS = trading_days(300)
TRAIN_DAYS, VALID_DAYS, NAMES = 200, 60, 40
FACTORS = ("strong", "weak", "turned", "junk")
SEGMENTS = {
    "train": (DAYS[0], DAYS[TRAIN_DAYS - 1]),
    "valid": (DAYS[TRAIN_DAYS], DAYS[TRAIN_DAYS + VALID_DAYS - 1]),
    "test": (DAYS[TRAIN_DAYS + VALID_DAYS], DAYS[-1]),
}
WALLS = Walls.from_segments(SEGMENTS)
RIDGE, STRONG, TURNED = (
    ExpertSpec("ridge", "", "ridge"),
    ExpertSpec("strong", "", "factor", {"column": 0}),
    ExpertSpec("turned", "", "factor", {"column": 2}),
)
SETTINGS = MixtureSettings(
    experts=(RIDGE, STRONG, TURNED),
    selection=SelectionOptions(min_days=20),
    n_folds=2,
    min_train=100,
    min_names=20,
    permutations=0,
)


def market(seed: int = 1, days: int = TRAIN_DAYS + VALID_DAYS, names: int = NAMES) -> FactorPanel:
    """Return four factors of which two predict, one predicts the other way round, one is noise."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((4, days, names))
    label = 0.2 * features[0] + 0.1 * features[1] - 0.2 * features[2] + rng.standard_normal((days, names))
    return FactorPanel(FACTORS, ("a", "b", "a", "b"), DAYS[:days], features, label)


def context(days: int = len(DAYS), seed: int = 2) -> MarketContext:
    rng = np.random.default_rng(seed)
    regime = np.array(["bull", "bear", "sideways"])[np.arange(days) // 20 % 3]
    return MarketContext(DAYS[:days], (*STATE, "extra"), rng.standard_normal((days, len(STATE) + 1)), regime)


def fit(panel: FactorPanel | None = None, walls: Walls = WALLS, **changes: Any) -> FittedMixture:
    return fit_mixture(market() if panel is None else panel, walls, context(), replace(SETTINGS, **changes))


@pytest.fixture(scope="module")
def fitted() -> FittedMixture:
    return fit()


def same(left: FittedMixture, right: FittedMixture) -> bool:
    """Say whether everything that was learned is the same to the last bit."""
    arrays = [
        (left.search.c, right.search.c),
        (left.tune.c, right.tune.c),
        *(
            (getattr(left.gates[gate], name), getattr(right.gates[gate], name))
            for gate, names in (("static", ("learned",)), ("softmax", ("prior", "matrix", "bias")))
            for name in names
        ),
        *(
            (getattr(one.predictor, "coefficients", 0), getattr(two.predictor, "coefficients", 0))
            for one, two in zip(left.experts, right.experts, strict=True)
        ),
    ]
    return all(np.array_equal(one, two) for one, two in arrays)


def changed(panel: FactorPanel, rows: slice, what: str = "both") -> FactorPanel:
    rng = np.random.default_rng(99)
    features, label = panel.features.copy(), panel.label.copy()
    if what in ("both", "features"):
        features[:, rows] = rng.standard_normal(features[:, rows].shape)
    if what in ("both", "label"):
        label[rows] = rng.standard_normal(label[rows].shape)
    return replace(panel, features=features, label=label)


# The walls.


def test_days_after_tune_are_refused() -> None:
    with pytest.raises(PanelError, match=r"reaches 2019-09-19, past valid which ends 2019-09-18; cut it there"):
        fit(market(days=TRAIN_DAYS + VALID_DAYS + 1))


def test_without_a_tune_segment_nothing_is_fitted() -> None:
    with pytest.raises(ConfigError, match="no 'valid'"):
        fit(walls=Walls.from_segments({"train": SEGMENTS["train"]}))


@pytest.mark.parametrize("segment", [TRAIN_DAYS, TRAIN_DAYS + VALID_DAYS])
def test_labels_that_are_known_only_in_the_next_segment_are_not_read(fitted: FittedMixture, segment: int) -> None:
    assert same(fit(changed(market(), slice(segment - 2, segment), "label")), fitted)
    assert not same(fit(changed(market(), slice(segment - 3, segment - 2), "label")), fitted)


def test_a_longer_label_is_purged_further() -> None:
    longer = {"horizon": 5}
    before = fit(**longer)
    assert same(fit(changed(market(), slice(TRAIN_DAYS - 5, TRAIN_DAYS), "label"), **longer), before)
    assert not same(fit(changed(market(), slice(TRAIN_DAYS - 6, TRAIN_DAYS - 5), "label"), **longer), before)


def test_tune_chooses_no_factor_fits_no_ridge_and_no_static_gate(fitted: FittedMixture) -> None:
    other = fit(changed(market(), slice(TRAIN_DAYS, TRAIN_DAYS + VALID_DAYS)))
    assert [expert.factors for expert in other.experts] == [expert.factors for expert in fitted.experts]
    np.testing.assert_array_equal(other.experts[0].predictor.coefficients, fitted.experts[0].predictor.coefficients)
    np.testing.assert_array_equal(other.gates["static"].learned, fitted.gates["static"].learned)
    np.testing.assert_array_equal(other.search.c, fitted.search.c)
    assert not np.array_equal(other.tune.c, fitted.tune.c)


def test_the_context_after_train_does_not_change_how_the_state_is_standardised(fitted: FittedMixture) -> None:
    known = context()
    values = known.values.copy()
    values[TRAIN_DAYS + 10 :] *= 7.0
    later = replace(known, values=values)
    days = DAYS[: TRAIN_DAYS + 10]
    np.testing.assert_array_equal(fitted.weights("softmax", days, later), fitted.weights("softmax", days, known))


# Folds.


def test_what_the_gate_is_fitted_on_was_made_out_of_fold(fitted: FittedMixture) -> None:
    folds = expanding_folds(DAYS[: TRAIN_DAYS - 2], SETTINGS.n_folds, SETTINGS.horizon, SETTINGS.min_train)
    last = int(np.flatnonzero(folds[-1].predict)[0])
    # Everything from the last fold's first day on is replaced: what earlier folds predicted must not know.
    other = fit(changed(market(), slice(last, TRAIN_DAYS)))
    earlier = fitted.search.days < DAYS[last]
    assert earlier.any()
    np.testing.assert_array_equal(other.search.c[earlier], fitted.search.c[earlier])
    assert not np.array_equal(other.search.c[~earlier], fitted.search.c[~earlier])
    assert fitted.search.days[0] == DAYS[SETTINGS.min_train + SETTINGS.horizon]


@dataclass(frozen=True)
class CountingLearner:
    stops_early: ClassVar[bool] = True
    """A ridge that writes down how many rows it was given to fit and to stop on."""

    seen: list[tuple[int, int]]

    def fit(self, features: Array, label: Array, tune: Any = None) -> Any:
        self.seen.append((len(label), 0 if tune is None else len(tune[1])))
        return RidgeLearner().fit(features, label)


def test_each_fold_stops_early_on_its_own_last_fifth_and_the_final_fit_on_tune(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(experts_module.LEARNERS, "counting", CountingLearner)
    seen: list[tuple[int, int]] = []
    fit(experts=(ExpertSpec("counted", "", "counting", {"seen": seen}), STRONG))
    # Folds of 198 days after purging: 100 and then 148 training days; 80 and 118 to fit on, less two, the rest to stop.
    assert [(rows // NAMES, stop // NAMES) for rows, stop in seen] == [(78, 20), (116, 30), (198, 58)]


def test_a_learner_that_does_not_stop_early_is_fitted_on_all_days_of_its_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experts_module.LEARNERS, "counting", CountingLearner)
    monkeypatch.setattr(CountingLearner, "stops_early", False)
    seen: list[tuple[int, int]] = []
    fit(experts=(ExpertSpec("counted", "", "counting", {"seen": seen}), STRONG))
    assert [(rows // NAMES, stop // NAMES) for rows, stop in seen] == [(100, 0), (148, 0), (198, 0)]


def test_a_stated_sign_reaches_the_single_factor() -> None:
    turned = ExpertSpec("turned", "", "factor", {"column": 0, "sign": -1})
    mixture = fit(experts=(turned, STRONG))
    assert mixture.experts[0].predictor.predict(np.array([[2.0]])).tolist() == [-2.0]


def test_trailing_weights_of_one_day_are_those_of_the_whole_stretch_also_where_an_outcome_is_missing() -> None:
    panel = market(1)
    mixture = fit(panel)
    scores = mixture.scores(panel.names, panel.features)
    outcomes = mixture.outcomes(scores, panel.label, panel.days)
    holed = outcomes.select(np.arange(len(outcomes.days)) != 20)
    day = int(np.searchsorted(panel.days, outcomes.days[21])) + 1
    together = mixture.weights("trailing_ic", panel.days[: day + 1], context(), holed)
    alone = mixture.weights("trailing_ic", panel.days[[day]], context(), holed)
    np.testing.assert_array_equal(together[[day]], alone)


@dataclass(frozen=True)
class ChaosTrees:
    """Trees that memorise a chaotic function of the features: in sample they shine, out of sample they are noise."""

    stops_early: ClassVar[bool] = False

    def fit(self, features: Array, label: Array, tune: Any = None) -> Any:
        learner = LightGBMLearner(rounds=60, learning_rate=0.3, leaves=63, min_rows_in_leaf=5, l2=0.0)
        return ChaosPredictor(learner.fit(chaotic(features), label))


@dataclass(frozen=True)
class ChaosPredictor:
    trees: Any

    def predict(self, features: Array) -> Array:
        scores: Array = self.trees.predict(chaotic(features))
        return scores


def chaotic(features: Array) -> Array:
    return np.sin(1e5 * features)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_trees_on_pure_noise_earn_no_weight_above_their_prior(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experts_module.LEARNERS, "chaos", ChaosTrees)
    panel = market(seed)
    mixture = fit(panel, experts=(RIDGE, STRONG, ExpertSpec("noise", "", "chaos")))
    x, y = rows_of(standardise_scores(panel.features[:, : TRAIN_DAYS - 2]), panel.label[: TRAIN_DAYS - 2])
    in_sample = np.corrcoef(mixture.experts[2].predictor.predict(x), y)[0, 1]
    ridge = np.corrcoef(mixture.experts[0].predictor.predict(x), y)[0, 1]
    assert in_sample > 1.5 * ridge, "in sample the noise expert is by far the best: the trap is set"
    static = mixture.weights("static", DAYS[:TRAIN_DAYS], context())
    softmax = mixture.weights("softmax", DAYS[: TRAIN_DAYS + VALID_DAYS], context())
    assert static[0, 2] < 1 / 3
    assert softmax[:, 2].mean() < 1 / 3


# Experts.


def test_an_expert_without_a_preference_uses_every_factor_and_a_single_one_its_own(fitted: FittedMixture) -> None:
    assert [expert.factors for expert in fitted.experts] == [FACTORS, ("strong",), ("turned",)]
    assert fitted.names == ("ridge", "strong", "turned")


def test_a_single_factor_is_turned_to_predict_upwards(fitted: FittedMixture) -> None:
    panel = market()
    scores = fitted.scores(panel.names, panel.features)
    np.testing.assert_allclose(scores[1], standardise_scores(panel.features[0]), rtol=1e-12)
    np.testing.assert_allclose(scores[2], standardise_scores(-panel.features[2]), atol=1e-12)


def test_a_single_factor_needs_no_other_factor_to_be_loaded() -> None:
    mixture = fit(experts=(STRONG, TURNED))
    features = market().features
    scores = mixture.scores(("turned", "strong"), features[[2, 0]])
    np.testing.assert_array_equal(scores, mixture.scores(FACTORS, features))


def test_an_expert_of_a_category_uses_the_factors_of_it_alone() -> None:
    mixture = fit(experts=(ExpertSpec("first", "", "ridge", category="a"),))
    assert mixture.experts[0].factors == ("strong", "turned")


def test_a_category_without_a_factor_and_a_category_beside_a_preference_are_refused() -> None:
    with pytest.raises(ConfigError, match="asks for the category 'c'; the factors are of"):
        fit(experts=(ExpertSpec("first", "", "ridge", category="c"),))
    with pytest.raises(ConfigError, match="one way to say which factors it uses"):
        replace(SETTINGS, experts=(ExpertSpec("first", "moderate", "ridge", category="a"),))


def test_preferences_choose_by_category(fitted: FittedMixture) -> None:
    options = SelectionOptions(min_days=20, threshold=0.0)
    mixture = fit(experts=default_experts()[::2], selection=options)
    assert [expert.spec.preference for expert in mixture.experts] == ["conservative", "moderate", "aggressive"]
    for expert in mixture.experts:
        assert expert.selection is not None
        assert expert.factors == expert.selection.names
        assert len(expert.factors) == 2
        assert expert.selection.as_of == str(DAYS[TRAIN_DAYS - 1])


def test_a_panel_in_another_order_of_factors_gives_the_same_scores(fitted: FittedMixture) -> None:
    panel = market()
    turned = fitted.scores(panel.names[::-1], panel.features[::-1])
    np.testing.assert_array_equal(turned, fitted.scores(panel.names, panel.features))


def test_a_factor_that_is_not_loaded_is_named(fitted: FittedMixture) -> None:
    with pytest.raises(PanelError, match=r"factors \['strong'\] were fitted and are not in the panel"):
        fitted.scores(FACTORS[1:], market().features[1:])


def test_a_days_scores_depend_on_its_own_names_alone_to_the_last_bit(fitted: FittedMixture) -> None:
    features = market().features[:, :30]
    features[:, 4:9, 3] = np.nan
    features[1, 5, 6] = np.nan
    before = fitted.scores(FACTORS, features)
    wide = np.full((4, 30, NAMES + 5), np.nan)
    columns = np.delete(np.arange(NAMES + 5), [0, 7, 8, 20, 44])
    wide[:, :, columns] = features
    # Five names join on the tenth day, between the others.
    wide[:, 10:] = np.where(np.isnan(wide[:, 10:]), 0.3, wide[:, 10:])
    after = fitted.scores(FACTORS, wide)
    np.testing.assert_array_equal(after[:, :10, columns], before[:, :10])
    assert np.isnan(before[:, 4:9, 3]).all()
    assert np.isfinite(before[:, 5, 6]).all()


def test_a_day_without_any_feature_has_no_score(fitted: FittedMixture) -> None:
    features = market().features[:, :3]
    features[:, 1] = np.nan
    assert np.isnan(fitted.scores(FACTORS, features)[:, 1]).all()


# Gates.


def test_there_are_four_gates_and_their_weights_are_shares(fitted: FittedMixture) -> None:
    assert tuple(fitted.gates) == GATES
    outcomes = fitted.outcomes(np.empty((3, 0, 0)), np.empty((0, 0)), DAYS[:0])
    for gate in GATES:
        weights = fitted.weights(gate, DAYS[TRAIN_DAYS:], context(), outcomes)
        assert weights.shape == (len(DAYS) - TRAIN_DAYS, 3)
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(fitted.weights("equal", DAYS[:2], context()), np.full((2, 3), 1 / 3))


def test_only_so_many_experts_speak_on_a_day() -> None:
    mixture = fit(top_m=1)
    for gate in ("static", "softmax"):
        assert ((mixture.weights(gate, DAYS[:50], context()) > 0).sum(axis=1) == 1).all()


def realised(mixture: FittedMixture, horizon_seed: int = 5) -> tuple[Array, Array]:
    rng = np.random.default_rng(horizon_seed)
    later = len(DAYS) - TRAIN_DAYS - VALID_DAYS
    return rng.standard_normal((3, later, NAMES)), rng.standard_normal((later, NAMES))


@pytest.mark.parametrize("horizon", [2, 5])
def test_the_trailing_gate_sees_an_outcome_when_its_label_is_known(horizon: int) -> None:
    mixture = fit(horizon=horizon)
    scores, label = realised(mixture)
    test = DAYS[TRAIN_DAYS + VALID_DAYS :]
    before = mixture.weights("trailing_ic", test, context(), mixture.outcomes(scores, label, test))
    day = 20
    other = label.copy()
    other[day] = -label[day]
    after = mixture.weights("trailing_ic", test, context(), mixture.outcomes(scores, other, test))
    np.testing.assert_array_equal(after[: day + horizon], before[: day + horizon])
    assert (after[day + horizon] != before[day + horizon]).any()


def test_outcomes_are_those_of_tune_and_then_the_later_ones(fitted: FittedMixture) -> None:
    scores, label = realised(fitted)
    test = DAYS[TRAIN_DAYS + VALID_DAYS :]
    label[3] = np.nan
    outcomes = fitted.outcomes(scores, label, test)
    expected = SufficientStatistics.from_scores(scores, label, test, fitted.min_names)
    tuned = len(fitted.tune.days)
    np.testing.assert_array_equal(outcomes.days, np.concatenate([fitted.tune.days, np.delete(test, 3)]))
    np.testing.assert_allclose(outcomes.c[tuned:], expected.c, rtol=1e-12)
    np.testing.assert_allclose(outcomes.R[tuned:], expected.R, rtol=1e-12)
    assert (np.diff(outcomes.positions) > 0).all()
    assert test[3] in outcomes.dropped_days


def test_outcomes_of_days_that_tune_has_already_are_not_counted_twice(fitted: FittedMixture) -> None:
    rng = np.random.default_rng(8)
    days = DAYS[TRAIN_DAYS : TRAIN_DAYS + VALID_DAYS]
    shape = (len(days), NAMES)
    outcomes = fitted.outcomes(rng.standard_normal((3, *shape)), rng.standard_normal(shape), days)
    assert (np.diff(outcomes.days) > np.timedelta64(0, "D")).all()
    np.testing.assert_array_equal(outcomes.c[: len(fitted.tune.days)], fitted.tune.c)


def test_the_mix_is_the_weighted_sum_where_all_experts_speak(fitted: FittedMixture) -> None:
    panel = market()
    scores = fitted.scores(panel.names, panel.features)
    weights = fitted.weights("softmax", panel.days, context())
    np.testing.assert_allclose(
        composite(scores, weights), np.einsum("tk,ktn->tn", weights, scores), rtol=1e-12, atol=1e-15
    )


def test_a_permutation_test_is_run_when_asked_for(fitted: FittedMixture) -> None:
    assert fitted.permutation is None
    tested = fit(permutations=3, min_train=60).permutation
    assert tested is not None
    assert 0 < tested.p_value <= 1


def test_a_fitted_mixture_is_a_value_that_pickles(fitted: FittedMixture) -> None:
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - our own bytes
    assert same(again, fitted)
    panel = market()
    np.testing.assert_array_equal(again.scores(panel.names, panel.features), fitted.scores(panel.names, panel.features))


def test_the_same_seed_gives_the_same_mixture() -> None:
    trees = ExpertSpec("trees", "", "lightgbm", {"rounds": 10, "seed": 3})
    one, two = (fit(experts=(trees, RIDGE)) for _ in range(2))
    assert same(one, two)
    assert one.experts[0].predictor == two.experts[0].predictor


# What is refused, and when: before anything is fitted.


def test_too_few_names_are_refused() -> None:
    with pytest.raises(PanelError, match="the median day has 12 instruments with a label; the gate needs 20"):
        fit(market(names=12))


def test_a_train_segment_too_short_for_the_folds_is_refused() -> None:
    with pytest.raises(ConfigError, match="198 days cannot be cut into 2 folds after 240"):
        fit(min_train=240)


def test_a_train_segment_too_short_for_the_permutation_test_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"train leaves 96 out-of-fold days after min_train 100; .*permutations: 0"):
        fit(permutations=200)


def test_a_state_that_the_context_lacks_is_refused_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experts_module.LEARNERS, "counting", CountingLearner)
    seen: list[tuple[int, int]] = []
    with pytest.raises(ConfigError, match=r"state \['mood'\] is not in the market context; expected some of"):
        fit(experts=(ExpertSpec("counted", "", "counting", {"seen": seen}),), state=("mood",))
    with pytest.raises(ConfigError, match="top_m is 0"):
        fit(experts=(ExpertSpec("counted", "", "counting", {"seen": seen}),), top_m=0)
    assert not seen


def test_a_context_that_lacks_a_day_is_refused() -> None:
    with pytest.raises(PanelError, match="has no row for 2019-07-21"):
        fit_mixture(market(), WALLS, context(days=200), SETTINGS)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ((), "at least one"),
        ((RIDGE, RIDGE), "each with a name of its own"),
        ((ExpertSpec("a", "brave", "ridge"),), "preference 'brave'; expected one of ['conservative'"),
        ((ExpertSpec("a", "moderate", "factor"),), "a preference chooses among factors: leave it out"),
    ],
)
def test_experts_that_mean_nothing_are_refused(experts: tuple[ExpertSpec, ...], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        replace(SETTINGS, experts=experts)
    assert message in str(told.value)


def test_a_factor_number_past_the_panel_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes factor number 4; the panel has 4, from 0"):
        fit(experts=(ExpertSpec("a", "", "factor", {"column": 4}),))


def test_a_preference_that_finds_no_evidence_is_told_so() -> None:
    options = SelectionOptions(min_days=240, window=252)
    with pytest.raises(ConfigError, match="expert 'moderate_ridge' has no factor: none has 240 days of evidence"):
        fit(experts=(ExpertSpec("moderate_ridge", "moderate", "ridge"),), selection=options)


def test_an_unknown_gate_is_refused(fitted: FittedMixture) -> None:
    with pytest.raises(ConfigError, match="gate 'mood' is unknown"):
        fitted.weights("mood", DAYS[:5], context())
