"""What runs through Qlib's trainer may open, what is logged of it, and the line that they end with."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from qlib.model.trainer import begin_task_train, end_task_train
from qlib.workflow import QlibRecorder, R
from qlib.workflow.expm import MLflowExpManager
from qlib.workflow.record_temp import RecordTemp, SigAnaRecord, SignalRecord

from qlib_llm_alpha.errors import ChainError, ConfigError, WallError
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.ledger import Trial, TrialLedger
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record import tracking
from qlib_llm_alpha.record.evidence_record import EvidenceRecord
from qlib_llm_alpha.record.factor_set_record import FactorSetRecord
from qlib_llm_alpha.record.gate_record import GateRecord
from qlib_llm_alpha.record.leakage_record import LeakageRecord
from qlib_llm_alpha.record.openings import configuration_hash, data_and_market
from qlib_llm_alpha.record.tracking import VerifiedExpManager
from tests.record.small_runs import (
    APART,
    EVIDENCE,
    SIGNAL,
    SIGNAL_ANALYSIS,
    UNKNOWN,
    ApartRecord,
    OneFactorModel,
    Runner,
    SavingRecord,
    small_task,
)
from tests.support.provider import TEST, TRAIN, small_dataset
from tests.support.tasks import changed

SEGMENTS = "dataset.kwargs.segments"


@pytest.fixture
def ledger(tmp_path: Path) -> TrialLedger:
    return TrialLedger(tmp_path / "ledger")


def kinds(ledger: TrialLedger) -> list[str]:
    return [row.kind for row in ledger.chain.rows()]


def test_an_opening_is_logged_with_its_run_and_the_line_names_it(run: Runner, ledger: TrialLedger) -> None:
    made = run(small_task(SIGNAL, SIGNAL_ANALYSIS))
    (row,) = ledger.openings()
    assert row.body["run"] == made.info.run_id
    assert (row.body["key"]["start"], row.body["key"]["end"]) == TEST
    assert row.body["key"]["market"].startswith("embedded planted, seed 7")
    assert row.body["key"]["factor_set"].startswith("starter ")
    line = made.data.tags["evidence"]
    assert line in made.data.tags["mlflow.note.content"]
    assert "openings of sealed 1;" in line
    assert f"configuration {row.body['key']['configuration'][:10]}" in line
    assert f"data {row.body['key']['data'][:10]}" in line
    assert f"ledger 1:{ledger.head().hash[:10]}" in line
    assert "trials 0" in line, "nobody counted them without EvidenceRecord, and the line says so"
    assert "costs none; seeds model.seed 3;" in line
    assert made.data.metrics["evidence/openings of sealed"] == 1


def test_a_second_configuration_is_refused_before_anything_is_loaded(run: Runner, ledger: TrialLedger) -> None:
    run(small_task(SIGNAL, SIGNAL_ANALYSIS))
    with pytest.raises(WallError) as told:
        run(small_task(SIGNAL, SIGNAL_ANALYSIS, factor="rsi", fails="fit"))
    for word in (f"{TEST[0]} to {TEST[1]}", "were opened by configuration", "study: {name: NAME", "force: REASON"):
        assert word in str(told.value)
    refused = run.last  # type: ignore[attr-defined]
    assert refused.info.status == "FAILED"
    assert refused.data.metrics == {}
    assert len(ledger.openings()) == 1


def test_the_same_configuration_runs_again_and_again(run: Runner, ledger: TrialLedger) -> None:
    run(small_task(SIGNAL, SIGNAL_ANALYSIS))
    again = run(small_task(SIGNAL, SIGNAL_ANALYSIS))
    assert "openings of sealed 1 (the same configuration again)" in again.data.tags["evidence"]
    assert [row.body["repeated"] for row in ledger.openings()] == [False, True]
    assert ledger.verify() == []


def test_what_is_forced_is_logged_and_shown_now_and_later(run: Runner, ledger: TrialLedger) -> None:
    first, second = small_task(SIGNAL, SIGNAL_ANALYSIS), small_task(SIGNAL, SIGNAL_ANALYSIS, EVIDENCE, factor="rsi")
    run(first)
    forced = run(second, force="a referee asked for it")
    assert "openings of sealed 2 (SPENT, forced now: a referee asked for it)" in forced.data.tags["evidence"]
    assert forced.data.metrics["evidence/sealed is spent"] == 1
    page = mlflow.artifacts.load_text(f"{forced.info.artifact_uri}/evidence/evidence.md")
    assert "**The sealed dates of this run are SPENT.**" in page
    later = run(first)
    assert "openings of sealed 2 (the same configuration again, SPENT)" in later.data.tags["evidence"]
    assert [row.body["forced"] for row in ledger.openings()] == ["", "a referee asked for it", ""]


def test_a_reason_that_was_not_needed_spends_nothing(run: Runner) -> None:
    made = run(small_task(SIGNAL, SIGNAL_ANALYSIS), force="in case")
    assert "SPENT" not in made.data.tags["evidence"]


def test_a_study_opens_as_often_as_it_declared(run: Runner, ledger: TrialLedger) -> None:
    study = {"name": "two factors", "cells": 2}
    run(small_task(SIGNAL, SIGNAL_ANALYSIS), study=study)
    second = run(small_task(SIGNAL, SIGNAL_ANALYSIS, factor="rsi"), study=study)
    assert "openings of sealed 2 (study 'two factors' of 2 cells)" in second.data.tags["evidence"]
    with pytest.raises(WallError, match="the 2 cells of study 'two factors' are used up"):
        run(small_task(SIGNAL, SIGNAL_ANALYSIS, factor="z_score"), study=study)
    with pytest.raises(WallError, match="expected 2, which its first opening declared"):
        run(small_task(SIGNAL, SIGNAL_ANALYSIS, factor="z_score"), study={**study, "cells": 3})


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_a_run_that_fails_before_its_records_has_opened_nothing(stage: str, run: Runner, ledger: TrialLedger) -> None:
    with pytest.raises(ArithmeticError, match=stage):
        run(small_task(SIGNAL, SIGNAL_ANALYSIS, fails=stage))
    failed = run.last  # type: ignore[attr-defined]
    assert ledger.openings() == []
    assert "openings of sealed 0;" in failed.data.tags["evidence"]
    assert failed.data.metrics == {}


def test_a_record_that_computes_nothing_from_test_may_fail_before_it_is_opened(
    run: Runner, ledger: TrialLedger
) -> None:
    """What it saved before says nothing about test, so that the mended configuration can still open it."""
    factor_set = {"class": "FactorSetRecord", "module_path": "qlib_llm_alpha.record.factor_set_record"}
    with pytest.raises(ArithmeticError, match="predict"):
        run(small_task(factor_set, SIGNAL, SIGNAL_ANALYSIS, fails="predict"))
    assert ledger.openings() == []
    run(small_task(factor_set, SIGNAL, SIGNAL_ANALYSIS))
    assert len(ledger.openings()) == 1


def test_predictions_alone_open_nothing(run: Runner, ledger: TrialLedger) -> None:
    for factor in ("ema_reversion", "rsi"):
        made = run(small_task(SIGNAL, factor=factor))
        assert "openings of sealed 0;" in made.data.tags["evidence"]
    assert kinds(ledger) == []


def test_without_a_test_segment_nothing_is_opened(run: Runner, ledger: TrialLedger) -> None:
    made = run(changed(small_task(EVIDENCE), SEGMENTS, {"train": list(TRAIN)}))
    assert "openings of sealed 0;" in made.data.tags["evidence"]
    assert ledger.openings() == []


def test_a_record_that_nobody_knows_counts_as_an_opening(run: Runner, ledger: TrialLedger) -> None:
    run(small_task(UNKNOWN))
    assert len(ledger.openings()) == 1
    with pytest.raises(WallError):
        run(small_task(UNKNOWN, factor="rsi"))


def test_training_in_two_steps_opens_once(run: Runner, ledger: TrialLedger) -> None:
    def in_two_steps(task: dict[str, Any], name: str) -> None:
        end_task_train(begin_task_train(task, name), name)

    made = run(small_task(SIGNAL, SIGNAL_ANALYSIS), train=in_two_steps)
    (row,) = ledger.openings()
    assert row.body["run"] == made.info.run_id
    assert "openings of sealed 1;" in made.data.tags["evidence"]


def test_a_run_that_is_resumed_later_keeps_its_opening_and_its_description(run: Runner, ledger: TrialLedger) -> None:
    made = run(small_task(SIGNAL, SIGNAL_ANALYSIS))

    def resume(*_: Any) -> None:
        with R.start(experiment_name="runs", recorder_id=made.info.run_id, resume=True):
            R.set_tags(seen="by a person")

    again = run({}, train=resume)
    assert again.info.run_id == made.info.run_id
    assert again.data.tags["evidence"] == made.data.tags["evidence"]
    assert again.data.tags["mlflow.note.content"] == made.data.tags["mlflow.note.content"]
    assert len(ledger.openings()) == 1


def resumed(run: Runner, run_id: str, *records: type[RecordTemp]) -> mlflow.entities.Run:
    """Make records by hand in a run that has ended."""

    def resume(*_: Any) -> None:
        with R.start(experiment_name="runs", recorder_id=run_id, resume=True):
            for record in records:
                record(recorder=R.get_recorder()).generate()

    return run({}, train=resume)


@pytest.mark.parametrize("record", [SigAnaRecord, SavingRecord])
def test_a_record_made_later_opens_although_the_task_lists_none_that_does(
    record: type[RecordTemp], run: Runner, ledger: TrialLedger
) -> None:
    made = run(small_task(SIGNAL))
    assert ledger.openings() == []
    again = resumed(run, made.info.run_id, record, record)
    (row,) = ledger.openings()
    assert row.body["run"] == again.info.run_id == made.info.run_id
    assert (row.body["key"]["start"], row.body["key"]["end"]) == TEST
    assert "openings of sealed 1;" in again.data.tags["evidence"]


@pytest.mark.parametrize("record", [SigAnaRecord, SavingRecord])
def test_a_record_made_later_is_refused_before_it_saves_when_another_run_has_opened(
    record: type[RecordTemp], run: Runner, ledger: TrialLedger
) -> None:
    made = run(small_task(SIGNAL))
    run(small_task(SIGNAL, SIGNAL_ANALYSIS, factor="rsi"))
    with pytest.raises(WallError, match="were opened by configuration"):
        resumed(run, made.info.run_id, record)
    client = mlflow.MlflowClient()
    assert "IC" not in client.get_run(made.info.run_id).data.metrics
    assert {"sig_analysis", "mine"}.isdisjoint(file.path for file in client.list_artifacts(made.info.run_id))
    assert len(ledger.openings()) == 1


def test_a_record_made_on_a_run_that_is_not_resumed_opens_too(run: Runner, ledger: TrialLedger) -> None:
    made = run(small_task(SIGNAL))

    def on_a_found_recorder(*_: Any) -> None:
        SigAnaRecord(recorder=R.get_recorder(recorder_id=made.info.run_id, experiment_name="runs")).generate()

    run({}, train=on_a_found_recorder)
    (row,) = ledger.openings()
    assert row.body["run"] == made.info.run_id


def test_a_task_that_was_saved_but_not_trained_opens_with_its_records(run: Runner, ledger: TrialLedger) -> None:
    dataset = small_dataset()

    def by_hand(*_: Any) -> None:
        with R.start(experiment_name="runs"):
            R.save_objects(task=small_task(SIGNAL, SIGNAL_ANALYSIS))
            recorder = R.get_recorder()
            SignalRecord(model=OneFactorModel(), dataset=dataset, recorder=recorder).generate()
            SigAnaRecord(recorder=recorder).generate()

    run({}, train=by_hand)
    assert len(ledger.openings()) == 1


def test_a_record_that_says_it_opens_nothing_is_taken_at_its_word_whenever_it_is_made(
    run: Runner, ledger: TrialLedger
) -> None:
    made = run(small_task(SIGNAL, APART))
    resumed(run, made.info.run_id, ApartRecord)
    assert ledger.openings() == []


def test_a_model_may_save_and_log_while_it_is_fitted_in_a_run_that_is_resumed(run: Runner, ledger: TrialLedger) -> None:
    def fitted_later(task: dict[str, Any], name: str) -> None:
        recorder = begin_task_train(task, name)
        with R.start(experiment_name=name, recorder_id=recorder.id, resume=True):
            SavingRecord(recorder=R.get_recorder()).generate()
            R.log_metrics(IC=0.1)

    run(small_task(SIGNAL), train=fitted_later)
    assert ledger.openings() == []


def test_our_records_that_open_nothing_save_where_it_is_known() -> None:
    ours = (EvidenceRecord, FactorSetRecord, LeakageRecord)
    assert {record.artifact_path for record in ours if not record.opens_sealed} == set(tracking.APART)


def test_a_damaged_ledger_stops_a_run_that_would_open(run: Runner, ledger: TrialLedger) -> None:
    run(small_task(SIGNAL, SIGNAL_ANALYSIS))
    log = ledger.chain.path
    log.write_bytes(log.read_bytes().replace(b"starter", b"Starter"))
    with pytest.raises(ChainError, match="row 0"):
        run(small_task(SIGNAL, SIGNAL_ANALYSIS))


def test_the_ledger_lies_where_it_is_told_to(run: Runner, tmp_path: Path) -> None:
    run(small_task(SIGNAL, SIGNAL_ANALYSIS), ledger="kept/elsewhere")
    assert len(TrialLedger(tmp_path / "kept" / "elsewhere").openings()) == 1
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"study": {"name": "x"}}, "expected {name: NAME, cells: NUMBER}"),
        ({"study": "x"}, "expected {name: NAME, cells: NUMBER}"),
        ({"study": {"name": " ", "cells": 2}}, "expected {name: NAME, cells: NUMBER}"),
        ({"study": {"name": "x", "cells": 0}}, "has 0 cells"),
        ({"study": {"name": "x", "cells": True}}, "has True cells"),
        ({"force": True}, "force is True; expected a reason in words"),
        ({"ledger": ""}, "ledger is ''; expected a folder"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str, run: Runner) -> None:
    with pytest.raises(ConfigError, match=said):
        VerifiedExpManager("sqlite:///mlflow.db", **settings)


def test_a_run_made_by_hand_is_keyed_by_its_predictions(run: Runner, ledger: TrialLedger) -> None:
    dataset = small_dataset()

    def by_hand(factor: str) -> None:
        with R.start(experiment_name="runs"):
            recorder = R.get_recorder()
            SignalRecord(model=OneFactorModel(factor), dataset=dataset, recorder=recorder).generate()
            SigAnaRecord(recorder=recorder).generate()

    run({}, train=lambda *_: by_hand("rsi"))
    (row,) = ledger.openings()
    assert row.body["key"]["configuration"].startswith("predictions ")
    assert (row.body["key"]["start"], row.body["key"]["end"]) == TEST
    run({}, train=lambda *_: by_hand("rsi"))
    with pytest.raises(WallError):
        run({}, train=lambda *_: by_hand("z_score"))
    refused = run.last  # type: ignore[attr-defined]
    assert "IC" not in refused.data.metrics
    assert "evidence" not in refused.data.tags, "it opened nothing and has no task"


def test_a_run_made_by_hand_that_opened_ends_with_the_line_also_when_it_is_resumed(
    run: Runner, ledger: TrialLedger, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = small_dataset()

    def by_hand(*_: Any) -> None:
        with R.start(experiment_name="runs"):
            recorder = R.get_recorder()
            SignalRecord(model=OneFactorModel("rsi"), dataset=dataset, recorder=recorder).generate()
            SigAnaRecord(recorder=recorder).generate()

    with caplog.at_level("INFO", logger="qlib.evidence"):
        made = run({}, train=by_hand)
    key = ledger.openings()[0].body["key"]
    line = made.data.tags["evidence"]
    assert line in caplog.text
    assert line in made.data.tags["mlflow.note.content"]
    assert made.data.metrics["evidence/openings of sealed"] == 1
    hashed = key["configuration"].removeprefix("predictions ")[:10]
    for part in (
        "openings of sealed 1; costs not known without a task; seeds none stated;",
        f"configuration predictions {hashed}, factor set of the predictions, data {key['data'][:10]}",
    ):
        assert part in line
    assert resumed(run, made.info.run_id).data.tags["evidence"] == line


def test_under_qlibs_own_manager_our_record_logs_its_opening(
    run: Runner, ledger: TrialLedger, tmp_path: Path, model_small: GatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_dataset()
    manager = MLflowExpManager(f"sqlite:///{tmp_path / 'mlflow.db'}", "runs")
    monkeypatch.setattr(R, "_provider", QlibRecorder(manager))
    with R.start(experiment_name="stock"):
        recorder = R.get_recorder()
        SignalRecord(model=model_small, dataset=dataset, recorder=recorder).generate()
        GateRecord(recorder=recorder, model=model_small, dataset=dataset).generate()
    (row,) = ledger.openings()
    assert row.body["run"] == recorder.id


def test_factors_that_were_chosen_with_days_of_test_are_refused_or_spent(
    run: Runner, tmp_path: Path, ledger: TrialLedger
) -> None:
    chosen = replace(load_factor_set("starter"), name="hindsight", as_of="2021-03-31")
    chosen.save(tmp_path / "hindsight.yaml")
    task = changed(
        small_task(SIGNAL, UNKNOWN), "dataset.kwargs.handler.kwargs.factor_set", str(tmp_path / "hindsight.yaml")
    )
    with pytest.raises(WallError, match="chosen with bars up to 2021-03-31, and test begins 2021-01-04"):
        run(task)
    assert ledger.openings() == []
    made = run(task, force="the auditor asked")
    assert "SPENT, the factor set was chosen with bars up to 2021-03-31" in made.data.tags["evidence"]


def test_trials_on_days_of_test_spend_it(run: Runner, ledger: TrialLedger) -> None:
    first = run(small_task(SIGNAL, UNKNOWN))
    assert "SPENT" not in first.data.tags["evidence"]
    data, _ = data_and_market()
    days = np.arange("2021-03-01", "2021-04-01", dtype="datetime64[D]")
    basis = Basis("$close", 2, "rank_ic", "all", "all instruments", str(days[0]), str(days[-1]), None, 1)
    trial = Trial("0123456789ab", "$close/$open", "human")
    ledger.record([trial], np.zeros((len(days), 1)), days, basis=basis, data=data, run="by hand")
    again = run(small_task(SIGNAL, UNKNOWN))
    assert "SPENT, 1 trials were scored on days of test" in again.data.tags["evidence"]
    assert again.data.metrics["evidence/sealed is spent"] == 1.0


def test_another_source_of_a_users_class_is_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name stays the same; what it computes does not."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "users_model_of_a_test.py"
    hashes = []
    for sign in ("1", "-1"):
        module.write_text(f"class Mine:\n    sign = {sign}\n\n    def __init__(self, **settings):\n        pass\n")
        importlib.invalidate_caches()
        sys.modules.pop(module.stem, None)
        task = changed(small_task(SIGNAL), "model", {"class": "Mine", "module_path": module.stem, "kwargs": {}})
        hashes.append([configuration_hash(task), configuration_hash(task)])
    assert hashes[0][0] == hashes[0][1]
    assert hashes[0][0] != hashes[1][0]
    stock = small_task(SIGNAL)
    assert configuration_hash(stock) == configuration_hash(small_task(SIGNAL))


def test_the_ledger_lies_beside_the_database_wherever_the_run_is_started(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    manager = VerifiedExpManager(uri=f"sqlite:///{tmp_path / 'elsewhere' / 'mlflow.db'}")
    assert manager.rules.ledger == tmp_path / "elsewhere" / "ledger"
