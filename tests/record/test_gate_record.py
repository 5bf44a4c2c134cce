from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.strategy import TopkDropoutStrategy
from qlib.data.dataset import DatasetH
from qlib.workflow import R
from qlib.workflow.record_temp import SignalRecord
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.errors import ConfigError, MissingArtifactError
from qlib_llm_alpha.gating.mixture import GATES
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record.gate_record import GateRecord
from tests.support.backtests import A_SHARE_EXCHANGE, run_backtest
from tests.support.provider import TEST, small_dataset
from tests.support.tasks import gated_task


def read(recorder: Recorder, name: str) -> Path:
    return Path(recorder.download_artifact(f"gate/{name}"))


def read_json(recorder: Recorder, name: str) -> Any:
    return json.loads(read(recorder, name).read_text(encoding="utf-8"))


def test_weights_are_saved_for_every_gate_and_day(recorded: Recorder, model_small: GatedModel) -> None:
    weights = pd.read_parquet(read(recorded, "weights.parquet"))
    assert list(weights.columns) == list(model_small.fitted().names)
    assert list(weights.index.get_level_values("gate").unique()) == list(GATES)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
    days = weights.loc["softmax"].index
    assert days[0] == pd.Timestamp(TEST[0])
    assert days[-1] == pd.Timestamp(TEST[1])
    assert all(list(weights.loc[gate].index) == list(days) for gate in GATES)
    regime = pd.read_parquet(read(recorded, "regime.parquet"))["regime"]
    assert list(regime.index) == list(days)
    assert set(regime) <= {"bull", "bear", "sideways"}


def test_every_gate_and_expert_is_measured_on_the_same_days(recorded: Recorder, model_small: GatedModel) -> None:
    table = pd.DataFrame(read_json(recorded, "ic.json")).set_index("column")
    assert list(table.index) == [*GATES, *model_small.fitted().names]
    assert table["n_days"].nunique() == 1
    daily = pd.read_parquet(read(recorded, "ic.parquet"))
    for column in table.index:
        np.testing.assert_allclose(table.loc[column, "ic"], daily[f"ic.{column}"].mean(), atol=1e-12)
    gain = (daily["ic.softmax"] - daily["ic.static"]).mean()
    np.testing.assert_allclose(table.loc["softmax", "gain"], gain, atol=1e-12)


def test_an_experts_ic_agrees_with_a_slow_reckoning(
    recorded: Recorder, model_small: GatedModel, dataset_small: DatasetH
) -> None:
    scores = model_small.predict(dataset_small)["one"]
    label = recorded.load_object("label.pkl").iloc[:, 0]
    daily = []
    for day in scores.index.get_level_values("datetime").unique():
        rows = pd.DataFrame({"x": scores.xs(day), "y": label.xs(day)}).dropna()
        if len(rows) > 5:
            daily.append(rows["x"].corr(rows["y"]))
    table = pd.DataFrame(read_json(recorded, "ic.json")).set_index("column")
    np.testing.assert_allclose(table.loc["one", "ic"], np.mean(daily), atol=1e-6)


def test_every_column_is_traded_under_one_rule_and_the_metrics_are_those_of_the_file(recorded: Recorder) -> None:
    portfolio = pd.DataFrame(read_json(recorded, "portfolio.json")).set_index("column")
    table = pd.DataFrame(read_json(recorded, "ic.json")).set_index("column")
    assert list(portfolio.index) == list(table.index)
    metrics = recorded.list_metrics()
    for column in table.index:
        assert metrics[f"IC/{column}"] == table.loc[column, "ic"]
        for figure in portfolio.columns:
            assert metrics[f"{figure}/{column}"] == portfolio.loc[column, figure]
    excess = pd.read_parquet(read(recorded, "portfolio.parquet"))
    assert list(excess.columns) == list(table.index)
    assert (portfolio["excess_return_with_cost"] < portfolio["excess_return_without_cost"]).all()


def test_a_columns_portfolio_is_that_of_a_backtest_of_the_column_alone(
    recorded: Recorder, model_small: GatedModel, dataset_small: DatasetH
) -> None:
    from qlib_llm_alpha.strategy.gated import GatedTopkStrategy

    column = model_small.predict(dataset_small)[["one"]]
    report, _ = run_backtest(GatedTopkStrategy(signal=column, topk=8, n_drop=2), A_SHARE_EXCHANGE)
    alone = report["return"] - report["bench"] - report["cost"]
    saved = pd.read_parquet(read(recorded, "portfolio.parquet"))["one"]
    np.testing.assert_allclose(saved, alone, atol=1e-12)
    stock = TopkDropoutStrategy(signal=column, topk=8, n_drop=2)
    assert not np.allclose(run_backtest(stock, A_SHARE_EXCHANGE)[0]["return"], report["return"])


def test_the_files_it_names_are_there(recorded: Recorder) -> None:
    names = {Path(path).name for path in recorded.list_artifacts("gate")}
    assert set(GateRecord(recorder=recorded).list()) <= names
    assert names == {
        *("weights.parquet", "regime.parquet", "ic.json", "ic.parquet", "ladder.json", "weights.png"),
        *("portfolio.json", "portfolio.parquet", "growth.png", "explanation.parquet"),
    }


def test_the_explanation_adds_up_to_the_odds(recorded: Recorder, model_small: GatedModel) -> None:
    frame = pd.read_parquet(recorded.download_artifact("gate/explanation.parquet"))
    moved = frame[list(model_small.fitted().state)].sum(axis=1) + frame["constant"]
    np.testing.assert_allclose(moved, frame["log_odds"] - frame["prior_log_odds"], atol=1e-12)


def test_without_a_portfolio_nothing_is_traded(
    recorded: Recorder, model_small: GatedModel, dataset_small: DatasetH
) -> None:
    with R.start(experiment_name="no portfolio"):
        recorder = R.get_recorder()
        SignalRecord(model=model_small, dataset=dataset_small, recorder=recorder).generate()
        GateRecord(recorder=recorder, model=model_small, dataset=dataset_small).generate()
    assert not any("portfolio" in path for path in recorder.list_artifacts("gate"))


def test_predictions_that_were_not_saved_are_asked_for(model_small: GatedModel, dataset_small: DatasetH) -> None:
    with pytest.raises(MissingArtifactError, match=r"pred.pkl.*SignalRecord"), R.start(experiment_name="no signal"):
        GateRecord(recorder=R.get_recorder(), model=model_small, dataset=dataset_small).generate()


def test_another_model_is_refused(qlib_small: Path, dataset_small: DatasetH) -> None:
    with pytest.raises(ConfigError, match="expected a GatedModel"), R.start(experiment_name="other model"):
        GateRecord(recorder=R.get_recorder(), model=object(), dataset=dataset_small).generate()


def test_segments_without_test_are_refused(
    model_small: GatedModel, dataset_small: DatasetH, recorded: Recorder
) -> None:
    segments = {name: dataset_small.segments[name] for name in ("train", "valid")}
    dataset = small_dataset(dataset_small.handler, segments)
    with pytest.raises(ConfigError, match="no 'test'"), R.start(experiment_name="no test"):  # noqa: PT012
        recorder = R.get_recorder()
        recorder.save_objects(
            **{"pred.pkl": model_small.predict(dataset_small), "label.pkl": recorded.load_object("label.pkl")}
        )
        GateRecord(recorder=recorder, model=model_small, dataset=dataset).generate()


def test_the_configuration_is_left_as_it_was(
    recorded: Recorder, model_small: GatedModel, dataset_small: DatasetH
) -> None:
    """Qlib fills placeholders in place; a second record with the same mapping must find them."""
    config = gated_task()["record"][4]["kwargs"]["config"]
    before = json.dumps(config)
    record = GateRecord(recorder=recorded, config=config, model=model_small, dataset=dataset_small)
    predictions = model_small.predict(dataset_small)
    record._portfolios(predictions[["softmax" if "softmax" in predictions else "score"]].set_axis(["softmax"], axis=1))
    assert json.dumps(config) == before
