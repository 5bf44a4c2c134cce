from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from qlib.workflow import R

from qlib_llm_alpha.errors import ConfigError, LeakError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.record.leakage_record import LeakageRecord
from tests.record.small_runs import LEAKAGE, SIGNAL, UNKNOWN, Runner, small_task
from tests.support.provider import END, START
from tests.support.tasks import changed

# Each builds handlers in processes of their own.
pytestmark = pytest.mark.slow

# Its one feature is tomorrow's close.
CLAIRVOYANT = {
    "class": "DataHandlerLP",
    "module_path": "qlib.data.dataset.handler",
    "kwargs": {
        "instruments": "csi300",
        "start_time": START,
        "end_time": END,
        "data_loader": {
            "class": "QlibDataLoader",
            "module_path": "qlib.data.dataset.loader",
            "kwargs": {
                "config": {
                    "feature": [["Ref($close, -1) / $close"], ["rsi"]],
                    "label": [["Ref($close, -2) / Ref($close, -1) - 1"], ["LABEL0"]],
                }
            },
        },
    },
}


def leakage(**settings: Any) -> dict[str, Any]:
    return {**LEAKAGE, "kwargs": settings}


def test_a_clean_run_says_so(run: Runner) -> None:
    made = run(small_task(SIGNAL, leakage(guards=["segments", "truncation"])))
    assert made.data.tags["leakage"] == "clean"
    assert made.data.metrics["leakage/leaks"] == 0
    assert made.data.metrics["leakage/guards"] == 2
    page = mlflow.artifacts.load_text(f"{made.info.artifact_uri}/leakage/leakage.md")
    assert "| segments | clean |" in page
    assert "| truncation | clean |" in page


def test_a_leak_refuses_the_run_after_it_was_counted_and_before_test_is_opened(run: Runner, tmp_path: Path) -> None:
    task = changed(
        small_task(leakage(guards=["truncation"]), SIGNAL, UNKNOWN, factor="rsi"), "dataset.kwargs.handler", CLAIRVOYANT
    )
    with pytest.raises(LeakError, match="LEAK found by 1 of 1 guard"):
        run(task)
    refused = run.last  # type: ignore[attr-defined]
    assert refused.info.status == "FAILED"
    assert refused.data.tags["leakage"] == "leak"
    ledger = TrialLedger(tmp_path / "ledger")
    assert ledger.openings() == []
    assert ledger.tune_reads(run=refused.info.run_id) == 1
    found = json.loads(mlflow.artifacts.load_text(f"{refused.info.artifact_uri}/leakage/leakage.json"))
    assert [finding["verdict"] for finding in found["findings"]] == ["leak"]
    noted = run(changed(task, "record.0.kwargs.refuse", False))
    assert noted.info.status == "FINISHED"
    assert len(ledger.openings()) == 1
    assert noted.data.tags["leakage"] == "leak"
    page = mlflow.artifacts.load_text(f"{noted.info.artifact_uri}/leakage/leakage.md")
    assert "knows what it could not know" in page
    assert "| truncation | LEAK |" in page


def test_a_handler_that_cannot_be_built_again_is_refused(run: Runner) -> None:
    def by_hand(*_: Any) -> None:
        with R.start(experiment_name="runs"):
            LeakageRecord(R.get_recorder()).generate()

    with pytest.raises(ConfigError, match="expected class, module_path and kwargs"):
        run({}, train=by_hand)
