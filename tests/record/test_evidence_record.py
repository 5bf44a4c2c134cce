from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset import DatasetH
from qlib.workflow import R
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.openings import OpeningKey, open_segment
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record.evidence_record import EvidenceRecord
from tests.record.small_runs import EVIDENCE, PORTFOLIO, SIGNAL, Runner, small_task
from tests.support.provider import TRAIN, VALID
from tests.support.tasks import alpha158_task, changed

pytestmark = pytest.mark.slow  # each test makes a run

BASIS_WORDS = ("Ref($close,-2)", "horizon 2", "csi300", "members of the day", " to ", "cost", "N =")


def stated(recorder: Recorder) -> dict[str, Any]:
    text = Path(recorder.download_artifact("evidence/evidence.json")).read_text(encoding="utf-8")
    return dict(json.loads(text))


def artifact(run: mlflow.entities.Run, name: str) -> str:
    return str(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}"))


def test_every_factor_is_a_trial_with_its_daily_rank_ic_on_search(
    recorded: Recorder, recorder_store: Path, dataset_small: DatasetH
) -> None:
    ledger = TrialLedger(recorder_store / "ledger")
    trials = ledger.trials(run=recorded.id)
    factors = dataset_small.handler.factor_set.factors
    assert list(trials["factor_id"]) == [factor.id for factor in factors]
    assert set(trials["proposer"]) == {factor.origin for factor in factors}
    assert set(trials["ic_kind"]) == {"rank_ic"}
    assert (trials["start"] == TRAIN[0]).all()
    assert (trials["end"] == "2020-07-29").all(), "the last two days of train are purged"
    cards = json.loads(Path(recorded.download_artifact("factor_set/scorecards.json")).read_text(encoding="utf-8"))
    expected = [card["rank_ic"] for card in cards if card["segment"] == "train"]
    np.testing.assert_allclose(trials["ic"], expected, atol=1e-12)
    series = ledger.series(run=recorded.id)
    np.testing.assert_allclose(series.mean(), expected, atol=1e-12)
    assert series.index[-1] == pd.Timestamp("2020-07-29")
    saved = pd.read_parquet(recorded.download_artifact("evidence/trials.parquet"))
    assert list(saved["name"]) == [factor.name for factor in factors]


def test_every_look_at_valid_is_counted(
    recorded: Recorder, recorder_store: Path, dataset_small: DatasetH, model_small: GatedModel
) -> None:
    ledger = TrialLedger(recorder_store / "ledger")
    (row,) = [row for row in ledger.chain.rows("tune_read") if row.body["run"] == recorded.id]
    cards = len(dataset_small.handler.factor_set.factors)
    assert row.body["reads"] == {**model_small.tune_reads(), "scorecards of factors": cards}
    assert (row.body["basis"]["start"], row.body["basis"]["end"]) == VALID


def test_what_was_opened_is_judged_and_the_numbers_are_those_of_the_files(recorded: Recorder) -> None:
    evidence = stated(recorded)
    figures = {figure["name"]: figure for figure in evidence["figures"]}
    assert {"Sharpe", "deflated Sharpe", "PBO", "SPA p", "break-even cost", "p of the strongest trial"} <= set(figures)
    report = recorded.load_object("portfolio_analysis/report_normal_1day.pkl")
    excess = report["return"] - report["bench"] - report["cost"]
    np.testing.assert_allclose(figures["Sharpe"]["value"], excess.mean() / excess.std() * np.sqrt(252))
    metrics = recorded.list_metrics()
    for name, figure in figures.items():
        assert metrics[f"evidence/{name}"] == figure["value"]
        assert all(
            word in figure["basis"] for word in ("csi300", "members of the day", "horizon 2", " to ", "cost", "N =")
        )
    assert evidence["missing"] == []
    assert evidence["line"]["openings"] >= 1
    assert recorded.list_tags()["evidence"] == evidence["line"]["sentence"]


def test_the_page_holds_every_figure_and_the_line(recorded: Recorder) -> None:
    page = Path(recorded.download_artifact("evidence/evidence.md")).read_text(encoding="utf-8")
    evidence = stated(recorded)
    for figure in evidence["figures"]:
        assert f"| {figure['name']} | {figure['shown']} |" in page
    assert evidence["line"]["sentence"] in page


def test_without_a_dataset_it_says_so(qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match="expected a DatasetH"), R.start(experiment_name="no dataset"):
        EvidenceRecord(recorder=R.get_recorder()).generate()


def test_a_stock_handler_and_model_get_what_can_be_said_and_why_the_rest_cannot(run: Runner, tmp_path: Path) -> None:
    task = alpha158_task()
    task["model"]["kwargs"].update(num_boost_round=5, early_stopping_rounds=2, num_threads=1)
    made = run({**task, "record": [*task["record"], EVIDENCE]})
    evidence = json.loads(artifact(made, "evidence/evidence.json"))
    assert [item["what"] for item in evidence["missing"]] == [
        "trials of this run",
        "PBO, SPA and StepM",
        "search trials in N",
    ]
    assert "Alpha158 is no FactorSetHandler" in evidence["missing"][0]["why"]
    figures = {figure["name"]: figure for figure in evidence["figures"]}
    assert {"Sharpe", "deflated Sharpe", "break-even cost"} <= set(figures)
    uncounted = "N holds no search trials, since none on this data is in the ledger"
    assert f"an upper bound only: {uncounted}" in figures["deflated Sharpe"]["meaning"]
    assert f"{uncounted}: the deflated Sharpe is only an upper bound" in evidence["missing"][2]["why"]
    ledger = TrialLedger(tmp_path / "ledger")
    assert ledger.count() == 0
    (row,) = ledger.chain.rows("tune_read")
    assert row.body["reads"] == {"LGBModel, fitted with valid": 1}
    assert "reads of tune 1 (1 in the ledger); openings of sealed 1; costs Exchange: open" in made.data.tags["evidence"]


def test_a_run_without_backtest_says_what_is_missing(run: Runner, tmp_path: Path) -> None:
    made = run(small_task(SIGNAL, EVIDENCE))
    evidence = json.loads(artifact(made, "evidence/evidence.json"))
    assert [item["what"] for item in evidence["missing"]] == ["Sharpe and break-even cost", "PBO, SPA and StepM"]
    assert [figure["name"] for figure in evidence["figures"]] == ["p of the strongest trial"]
    assert TrialLedger(tmp_path / "ledger").openings() == []


def test_trials_of_the_same_factors_are_counted_once(run: Runner, tmp_path: Path) -> None:
    for factor in ("rsi", "z_score"):
        made = run(small_task(SIGNAL, EVIDENCE, factor=factor))
    assert made.data.metrics["evidence/trials"] == 12
    assert made.data.metrics["evidence/reads of tune"] == 1
    assert "reads of tune 1 (2 in the ledger)" in made.data.tags["evidence"]
    assert len(list(TrialLedger(tmp_path / "ledger").chain.rows("trial"))) == 24


def test_confirm_is_read_once_per_configuration_and_another_reading_is_shown(run: Runner, tmp_path: Path) -> None:
    segments = {
        "train": list(TRAIN),
        "valid": ["2020-08-03", "2020-09-30"],
        "confirm": ["2020-10-09", "2020-12-31"],
        "test": ["2021-01-04", "2021-06-28"],
    }
    runs = [
        run(changed(small_task(SIGNAL, EVIDENCE, factor=factor), "dataset.kwargs.segments", segments))
        for factor in ("rsi", "rsi", "z_score")
    ]
    rows = list(TrialLedger(tmp_path / "ledger").chain.rows("confirm_read"))
    assert [row.body["readings"] for row in rows] == [1, 1, 2]
    assert [row.body["repeated"] for row in rows] == [False, True, False]
    figures = [
        next(
            figure
            for figure in json.loads(artifact(made, "evidence/evidence.json"))["figures"]
            if figure["name"] == "rank IC on confirm"
        )
        for made in runs
    ]
    assert figures[0]["value"] == figures[1]["value"]
    assert "2020-10-09 to 2020-12-29" in figures[0]["basis"], "purged before test"
    assert "2 configurations have read it by now" in figures[2]["meaning"]
    assert "confirm read by 2" in runs[2].data.tags["evidence"]


def test_a_backtest_alone_is_judged(run: Runner) -> None:
    portfolio = changed(PORTFOLIO, "kwargs.config.strategy.kwargs", {"signal": "<PRED>", "topk": 8, "n_drop": 2})
    made = run(small_task(SIGNAL, portfolio, EVIDENCE))
    assert np.isfinite(made.data.metrics["evidence/deflated Sharpe"])
    assert "costs AShareExchange: commission" in made.data.tags["evidence"]


def traded(*records: dict[str, Any], factor: str = "ema_reversion") -> dict[str, Any]:
    strategy = {"signal": "<PRED>", "topk": 8, "n_drop": 2}
    return small_task(
        SIGNAL, changed(PORTFOLIO, "kwargs.config.strategy.kwargs", strategy), *records, EVIDENCE, factor=factor
    )


def deflated(made: mlflow.entities.Run) -> dict[str, Any]:
    figures = json.loads(artifact(made, "evidence/evidence.json"))["figures"]
    return next(figure for figure in figures if figure["name"] == "deflated Sharpe")


def test_the_cells_of_a_study_are_trials_on_test_itself(run: Runner) -> None:
    alone = deflated(run(traded(), ledger="alone"))
    grid = deflated(run(traded(), ledger="grid", study={"name": "a hundred", "cells": 100}))
    assert "best of 100.0 independent trials" not in alone["meaning"]
    assert "best of 100.0 independent trials" in grid["meaning"]
    assert "; on test 100)" in grid["basis"]
    assert grid["value"] < alone["value"]


def test_the_distinct_openings_so_far_are_trials_on_test_itself(run: Runner, tmp_path: Path) -> None:
    """With few cells and no search trials, what was forced before is what N holds."""
    task = alpha158_task()
    task["model"]["kwargs"].update(num_boost_round=2, early_stopping_rounds=2, num_threads=1)
    task["record"] = [*task["record"], EVIDENCE]
    ledger = TrialLedger(tmp_path / "ledger")
    made = run(task)
    assert "best of 1.0 independent trials" in deflated(made)["meaning"]
    key = OpeningKey(**ledger.openings()[0].body["key"])
    for number in range(5):
        open_segment(ledger, replace(key, configuration=str(number)), force="to count")
    again = deflated(run(task))
    assert "best of 6.0 independent trials" in again["meaning"]
    assert again["value"] < deflated(made)["value"]


def test_search_trials_of_others_do_not_make_up_for_those_of_a_stock_handler(run: Runner) -> None:
    run(small_task(SIGNAL, EVIDENCE))
    task = alpha158_task()
    task["model"]["kwargs"].update(num_boost_round=2, early_stopping_rounds=2, num_threads=1)
    made = run({**task, "record": [*task["record"], EVIDENCE]})
    assert "an upper bound only: N holds no search trials of this run" in deflated(made)["meaning"]


def test_where_the_search_was_counted_the_deflated_sharpe_is_no_bound(run: Runner) -> None:
    made = run(traded())
    assert deflated(made)["meaning"].endswith("evidence from 0.95 on")
    assert json.loads(artifact(made, "evidence/evidence.json"))["missing"][0]["what"] == "PBO, SPA and StepM"


def test_the_factor_set_stays_in_the_line_of_a_run_made_by_hand(recorded: Recorder) -> None:
    assert ", factor set starter " in recorded.list_tags()["evidence"]
