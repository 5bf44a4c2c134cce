from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.data.handler import Alpha158
from qlib.data import D
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import QlibDataLoader

from qlib_llm_alpha.data.market_state import load_market_context
from qlib_llm_alpha.engine.cross_section import rank_normal, zscore
from qlib_llm_alpha.errors import ConfigError, ExpressionError, PanelError
from qlib_llm_alpha.gating.mixture import GATES
from qlib_llm_alpha.model.gated import GatedModel
from tests.support.provider import BENCHMARK, SEGMENTS, SMALL_MODEL, START, VALID, small_dataset, small_handler


def model(**changes: Any) -> GatedModel:
    return GatedModel(**(SMALL_MODEL | changes))


def using(fitted: GatedModel, gate: str) -> GatedModel:
    """Return a model that shares what was fitted and predicts with another gate."""
    other = model(gate=gate)
    other.__dict__.update({name: value for name, value in vars(fitted).items() if name != "gate"})
    return other


def days_of(frame: pd.DataFrame) -> np.ndarray:
    days: np.ndarray = frame.index.get_level_values("datetime").unique().to_numpy().astype("datetime64[D]")
    return days


def test_the_score_comes_first_and_then_the_experts(model_small: GatedModel, dataset_small: DatasetH) -> None:
    scores = model_small.predict(dataset_small)
    assert scores.columns.tolist() == ["score", "moderate_ridge", "trees", "one"]


def test_experts_are_standardised_by_day(model_small: GatedModel, dataset_small: DatasetH) -> None:
    by_day = model_small.predict(dataset_small)["trees"].groupby(level="datetime")
    np.testing.assert_allclose(by_day.mean(), 0.0, atol=1e-12)
    np.testing.assert_allclose(by_day.std(ddof=0), 1.0, rtol=1e-12)


def test_a_single_factor_expert_is_the_factor_ranked_and_turned(
    model_small: GatedModel, dataset_small: DatasetH
) -> None:
    scores = model_small.predict(dataset_small)["one"].unstack("instrument")
    factor = dataset_small.prepare("test", col_set="feature")["ema_reversion"].unstack("instrument")
    # Only names with any feature are in a day; every such name has this one or is NaN in both.
    expected = zscore(rank_normal(factor.to_numpy(np.float64)))
    found = scores.to_numpy()
    sign = np.sign(np.nansum(found * expected))
    np.testing.assert_allclose(found, sign * expected, atol=1e-12)
    assert model_small.fitted().experts[2].factors == ("ema_reversion",)


@pytest.mark.parametrize("gate", GATES)
def test_the_score_is_the_experts_under_the_gates_weights(
    model_small: GatedModel, dataset_small: DatasetH, gate: str
) -> None:
    chosen = using(model_small, gate)
    scores = chosen.predict(dataset_small)
    days = days_of(scores)
    weights = chosen.weights(gate, days, chosen.realised(scores))
    spoken = scores.dropna()
    row = np.searchsorted(days, spoken.index.get_level_values("datetime").to_numpy().astype("datetime64[D]"))
    expected = (spoken.iloc[:, 1:].to_numpy() * weights[row]).sum(axis=1)
    np.testing.assert_allclose(spoken["score"], expected, rtol=1e-10, atol=1e-12)


def test_gates_share_their_experts_and_differ_in_their_score(model_small: GatedModel, dataset_small: DatasetH) -> None:
    equal, trailing = (using(model_small, gate).predict(dataset_small) for gate in ("equal", "trailing_ic"))
    pd.testing.assert_frame_equal(equal.iloc[:, 1:], trailing.iloc[:, 1:])
    assert not equal["score"].equals(trailing["score"])


def test_a_days_weights_are_the_same_alone_and_among_others(model_small: GatedModel, dataset_small: DatasetH) -> None:
    scores = model_small.predict(dataset_small)
    days, outcomes = days_of(scores), model_small.realised(scores)
    for gate in GATES:
        together = model_small.weights(gate, days, outcomes)
        for row in (0, 40, len(days) - 1):
            alone = model_small.weights(gate, days[[row]], outcomes)
            np.testing.assert_allclose(alone[0], together[row], rtol=1e-12)


def test_outcomes_begin_with_those_of_valid_and_leave_out_what_is_not_known(
    model_small: GatedModel, dataset_small: DatasetH
) -> None:
    scores = model_small.predict(dataset_small)
    outcomes = model_small.realised(scores)
    assert outcomes.days[0] == model_small.fitted().tune.days[0]
    last = D.calendar()[-3]
    assert outcomes.days[-1] == np.datetime64(min(last, scores.index.get_level_values("datetime").max()), "D")
    label = dataset_small.prepare("test", col_set="label", data_key=DataHandlerLP.DK_R)["LABEL0"]
    day = pd.Timestamp(outcomes.days[-5])
    joint = scores.loc[day].join(label.loc[day]).dropna()
    expected = [np.mean(standard(joint[name]) * standard(joint["LABEL0"])) for name in scores.columns[1:]]
    np.testing.assert_allclose(outcomes.c[-5], expected, rtol=1e-9, atol=1e-12)


def standard(column: pd.Series) -> np.ndarray:
    values: np.ndarray = zscore(rank_normal(column.to_numpy(np.float64)))
    return values


def test_the_context_reaches_as_far_as_asked_and_is_that_of_the_provider(model_small: GatedModel) -> None:
    until = np.datetime64("2021-05-31")
    context = model_small.market_context(until)
    assert context.days[-1] >= until
    fresh = load_market_context("csi300", BENCHMARK, pd.Timestamp(context.days[-1]))
    np.testing.assert_array_equal(context.values, fresh.values)


def test_fit_reads_the_market_no_further_than_valid(qlib_small: Path, dataset_small: DatasetH) -> None:
    fitted = model().fit(dataset_small)
    assert fitted.context is not None
    assert fitted.context.days[-1] == np.datetime64(VALID[1])


def test_all_factors_and_chosen_ones_may_be_named_in_a_yaml(dataset_small: DatasetH) -> None:
    experts = [
        {"name": "all", "learner": "ridge", "params": {"alpha": 1.0}},
        {"name": "bold", "learner": "ridge", "preference": "aggressive"},
        {"name": "rsi", "learner": "factor", "factor": "rsi"},
    ]
    fitted = model(experts=experts, selection={"max_per_category": 2, "threshold": 0.3}).fit(dataset_small).fitted()
    everything, bold, rsi = fitted.experts
    assert everything.factors == small_handler_names(dataset_small)
    assert everything.selection is None
    assert bold.selection is not None
    assert set(bold.factors) < set(everything.factors)
    assert rsi.factors == ("rsi",)


def test_an_expert_of_a_category_that_no_factor_has_is_left_out_and_the_log_says_so(
    dataset_small: DatasetH, caplog: pytest.LogCaptureFixture
) -> None:
    experts = [
        {"name": "calm", "learner": "ridge", "category": "volatility"},
        {"name": "grown", "learner": "ridge", "category": "growth"},
    ]
    with caplog.at_level("WARNING"):
        fitted = model(experts=experts).fit(dataset_small).fitted()
    assert [expert.factors for expert in fitted.experts] == [("parkinson", "volatility_ratio", "bollinger_band_width")]
    assert "expert grown is left out: no factor is of the category growth" in caplog.text


def small_handler_names(dataset: DatasetH) -> tuple[str, ...]:
    names: tuple[str, ...] = dataset.handler.factor_set.names
    return names


def test_without_experts_there_are_three_preferences_times_two_learners(dataset_small: DatasetH) -> None:
    names = [spec.name for spec in model(experts=None)._settings(()).experts]
    assert names == [
        f"{preference}_{learner}"
        for preference in ("conservative", "moderate", "aggressive")
        for learner in ("ridge", "lightgbm")
    ]


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([{"name": "a", "learner": "forest"}], "asks for the learner 'forest'; there are"),
        ([{"name": "a", "learner": "ridge", "params": {"alfa": 1}}], "gives ['alfa'] to the learner 'ridge'"),
        ([{"name": "a", "learner": "ridge", "prefrence": "moderate"}], "expected name and learner"),
        ([{"learner": "ridge"}], "expected name and learner"),
        ([{"name": "score", "learner": "ridge"}], "which is the mixture's own column"),
        ([{"name": "a", "learner": "factor"}], "the learner 'factor' and the name of a factor belong together"),
        ([{"name": "a", "learner": "ridge", "factor": "rsi"}], "belong together"),
        ([{"name": "a", "learner": "ridge", "category": "momentun"}], "the category 'momentun'; expected one of"),
    ],
)
def test_experts_that_mean_nothing_are_refused_when_the_model_is_made(
    experts: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError) as told:
        model(experts=experts)
    assert message in str(told.value)


def refuses(dataset: DatasetH, error: type[Exception], message: str, **changes: Any) -> None:
    chosen = model(**changes)
    with pytest.raises(error) as told:
        chosen.fit(dataset)
    assert message in str(told.value)
    assert chosen.mixture is None


def test_a_factor_that_is_not_in_the_set_is_named_with_those_that_are(dataset_small: DatasetH) -> None:
    experts = [{"name": "a", "learner": "factor", "factor": "mood"}]
    refuses(dataset_small, ConfigError, "expert 'a' asks for 'mood'; factors are ['rate_of_change'", experts=experts)


def test_other_keywords_that_mean_nothing_are_refused_when_the_model_is_made() -> None:
    with pytest.raises(ConfigError, match="gate 'mlp' is unknown; expected one of"):
        model(gate="mlp")
    with pytest.raises(ConfigError, match=r"selection has unknown keys \['treshold'\]"):
        model(selection={"treshold": 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": [{"name": "a", "learner": "ridge", "preference": "brave"}]}, "the preference 'brave'"),
        ({"state": ["mood"]}, "state ['mood'] is not in the market context"),
        ({"experts": []}, "experts are named []"),
        ({"top_m": 0}, "top_m is 0"),
        ({"n_folds": 0}, "n_folds is 0"),
        ({"experts": [{"name": "a", "learner": "ridge", "params": {"alpha": -1}}]}, "alpha is -1"),
        ({"experts": [{"name": "a", "learner": "factor", "factor": "x", "params": {"sign": 2}}]}, "sign is 2"),
    ],
)
def test_what_no_data_could_make_right_is_refused_by_the_constructor(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        GatedModel(**changes)
    assert message in str(told.value)


def test_segments_without_valid_or_out_of_order_are_refused(dataset_small: DatasetH) -> None:
    def segments(**changes: Any) -> DatasetH:
        return DatasetH(dataset_small.handler, changes)

    train, valid, test = SEGMENTS.values()
    refuses(segments(train=train, test=test), ConfigError, "segments have no 'valid'")
    refuses(segments(train=train, valid=("2020-07-01", VALID[1])), ConfigError, "not after 'train'")
    refuses(segments(train=train, valid=test, test=valid), ConfigError, "in this order")
    refuses(segments(train=train, valid=("2020-08-03", "2020-08-04"), test=test), ConfigError, "no day left after")


def test_too_small_a_universe_is_refused(dataset_small: DatasetH) -> None:
    refuses(dataset_small, PanelError, "the gate needs 30", min_names=30)


def test_a_label_that_needs_bars_past_its_segment_is_refused(qlib_small: Path) -> None:
    handler = small_handler(label=["Ref($close,-120)/Ref($close,-1)-1"])
    refuses(small_dataset(handler), ConfigError, "no day left after purging 120")


def test_a_longer_label_is_purged_by_its_own_horizon(qlib_small: Path) -> None:
    fitted = model(gate="trailing_ic").fit(small_dataset(small_handler(label=["Ref($close,-11)/Ref($close,-1)-1"])))
    days = np.array(D.calendar(START, VALID[1]), dtype="datetime64[D]")
    assert fitted.horizon == 11
    assert fitted.fitted().tune.days[-1] == days[-12]


def test_it_runs_on_a_stock_handler_and_reads_the_horizon_of_its_label(qlib_small: Path) -> None:
    features = {"roc": "$close/Ref($close,20)", "std": "Std($close,20)/$close", "volume": "$volume/Mean($volume,20)"}
    label = (["Ref($close, -6)/Ref($close, -1) - 1"], ["LABEL0"])
    handler = DataHandlerLP(
        instruments="csi300",
        start_time="2020-01-02",
        end_time="2021-06-30",
        data_loader=QlibDataLoader({"feature": (list(features.values()), list(features)), "label": label}),
        learn_processors=[{"class": "DropnaLabel"}],
    )
    segments = {"train": ("2020-01-02", "2020-11-30"), "valid": ("2020-12-01", "2021-03-31")}
    dataset = DatasetH(handler, segments | {"test": ("2021-04-01", "2021-06-21")})
    experts = [{"name": "ridge", "learner": "ridge"}, {"name": "one", "learner": "factor", "factor": "roc"}]
    fitted = model(experts=experts).fit(dataset)
    assert fitted.horizon == 6
    assert fitted.predict(dataset)["score"].notna().mean() > 0.95


@pytest.mark.slow
def test_it_runs_on_alpha158(qlib_small: Path) -> None:
    handler = Alpha158(
        instruments="csi300",
        start_time="2020-01-02",
        end_time="2021-06-30",
        infer_processors=[{"class": "DailyInf", "module_path": "qlib_llm_alpha.data.processor", "kwargs": {}}],
    )
    segments = {"train": ("2020-01-02", "2020-11-30"), "valid": ("2020-12-01", "2021-03-31")}
    dataset = DatasetH(handler, segments | {"test": ("2021-04-01", "2021-06-21")})
    experts = [{"name": "ridge", "learner": "ridge"}, {"name": "roc", "learner": "factor", "factor": "ROC20"}]
    assert model(experts=experts).fit(dataset).predict(dataset)["score"].notna().mean() > 0.95


def test_a_handler_that_leaves_infinite_values_is_refused(dataset_small: DatasetH) -> None:
    handler = object.__new__(type(dataset_small.handler))
    handler.__dict__.update(vars(dataset_small.handler))
    frame = handler._infer.copy()
    frame.iloc[len(frame) // 4, 0] = np.inf
    handler._infer = frame
    refuses(small_dataset(handler), PanelError, "infinite values")


def test_a_label_outside_the_factor_language_is_refused(dataset_small: DatasetH) -> None:
    handler = DataHandlerLP.cast(dataset_small.handler)
    handler.data_loader = type("Loader", (), {"fields": {"label": (["Nonsense($close,-2)"], ["LABEL0"])}})()
    refuses(small_dataset(handler), ExpressionError, "Nonsense")


def test_a_handler_that_does_not_say_its_label_is_taken_for_the_usual_one(
    dataset_small: DatasetH, model_small: GatedModel
) -> None:
    handler = DataHandlerLP.from_df(dataset_small.handler.fetch(col_set="__raw"))
    handler.instruments = "csi300"
    fitted = model().fit(small_dataset(handler))
    assert fitted.horizon == 2
    one, other = fitted.fitted().search, model_small.fitted().search
    assert len(one.days) == len(other.days)


def test_prediction_with_a_gate_of_ones_own_fitting_is_used(model_small: GatedModel, dataset_small: DatasetH) -> None:
    one = np.array([0.0, 1.0, 0.0])
    static = replace(model_small.fitted().gates["static"], learned=one)
    chosen = using(model_small, "static")
    chosen.mixture = replace(model_small.fitted(), gates={"static": static})
    scores = chosen.predict(dataset_small)
    pd.testing.assert_series_equal(scores["score"], scores["trees"], check_names=False)


def test_every_look_at_valid_is_counted(model_small: GatedModel) -> None:
    rungs = len(model_small.fitted().ladder)
    assert model_small.tune_reads() == {"early stopping of trees": 1, "rungs of the gate's ladder": rungs}
    assert rungs == 5
