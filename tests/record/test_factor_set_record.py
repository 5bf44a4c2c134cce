from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset import DatasetH
from qlib.workflow import R
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record.factor_set_record import FactorSetRecord
from tests.support.provider import TEST, TRAIN, VALID


def read(recorder: Recorder, name: str) -> Path:
    return Path(recorder.download_artifact(f"factor_set/{name}"))


def read_json(recorder: Recorder, name: str) -> Any:
    return json.loads(read(recorder, name).read_text(encoding="utf-8"))


def test_the_factor_set_can_be_rebuilt_from_the_file(recorded: Recorder, dataset_small: DatasetH) -> None:
    found = read_json(recorded, "factor_set.json")
    factors = dataset_small.handler.factor_set
    assert (found["name"], found["id"]) == (factors.name, factors.id)
    assert [row["name"] for row in found["factors"]] == list(factors.names)
    for row, factor in zip(found["factors"], factors.factors, strict=True):
        assert parse(row["expression"]) == factor.expression
        assert row["id"] == factor.id


def test_every_factor_has_a_scorecard_on_train_and_valid_and_none_on_test(
    recorded: Recorder, dataset_small: DatasetH
) -> None:
    cards = pd.read_parquet(read(recorded, "scorecards.parquet"))
    names = list(dataset_small.handler.factor_set.names)
    assert list(cards["factor"]) == names * 2
    assert set(cards["segment"]) == {"train", "valid"}
    assert len(read_json(recorded, "scorecards.json")) == len(cards)


def test_a_scorecard_agrees_with_a_slow_reckoning(recorded: Recorder, dataset_small: DatasetH) -> None:
    """Rank IC of one factor on train, without its last two days, whose labels reach past it."""
    name = dataset_small.handler.factor_set.names[0]
    frame = dataset_small.prepare("train", col_set=["feature", "label"], data_key="infer")
    days = sorted(frame.index.get_level_values("datetime").unique())[:-2]
    daily = []
    for day in days:
        rows = pd.DataFrame({"x": frame["feature"][name].xs(day), "y": frame["label"].iloc[:, 0].xs(day)}).dropna()
        if len(rows) >= 5:
            daily.append(rows["x"].rank().corr(rows["y"].rank()))
    cards = read_json(recorded, "scorecards.json")
    card = next(card for card in cards if card["factor"] == name and card["segment"] == "train")
    np.testing.assert_allclose(card["rank_ic"], np.nanmean(daily), atol=1e-9)


def test_what_was_measured_ends_before_test(recorded: Recorder) -> None:
    for card in read_json(recorded, "scorecards.json"):
        assert card["end"] < TEST[0]
        assert card["start"] >= TRAIN[0]
        assert card["segment"] == "train" or card["start"] >= VALID[0]


def test_the_agents_choices_are_saved(recorded: Recorder, model_small: GatedModel) -> None:
    chosen = read_json(recorded, "choices.json")
    assert list(chosen) == ["moderate"]
    table = pd.read_parquet(read(recorded, "choices.parquet"))
    expert = model_small.fitted().experts[0]
    assert set(expert.factors) <= set(table.reset_index().astype(str).to_numpy().ravel())


def test_the_run_is_tagged_with_the_sets_id(recorded: Recorder, dataset_small: DatasetH) -> None:
    assert recorded.list_tags()["factor_set.id"] == dataset_small.handler.factor_set.id
    assert recorded.list_metrics()["factor_set.factors"] == len(dataset_small.handler.factor_set.names)


def test_a_dataset_whose_handler_is_another_is_refused(qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match="expected a FactorSetHandler"), R.start(experiment_name="refused"):
        FactorSetRecord(recorder=R.get_recorder(), model=None, dataset=None).generate()


def test_a_model_of_stock_qlib_has_no_choices(
    dataset_small: DatasetH, recorded: Recorder, tmp_path: Path, qlib_small: Path
) -> None:
    with R.start(experiment_name="stock model"):
        recorder = R.get_recorder()
        FactorSetRecord(recorder=recorder, model=object(), dataset=dataset_small).generate()
    names = [Path(path).name for path in recorder.list_artifacts("factor_set")]
    assert sorted(names) == ["factor_set.json", "scorecards.json", "scorecards.parquet"]
