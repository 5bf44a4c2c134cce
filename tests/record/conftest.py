from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from qlib.config import C
from qlib.data.dataset import DatasetH
from qlib.model.trainer import task_train
from qlib.utils import fill_placeholder
from qlib.workflow import QlibRecorder, R
from qlib.workflow.record_temp import PortAnaRecord, SignalRecord
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record.evidence_record import EvidenceRecord
from qlib_llm_alpha.record.factor_set_record import FactorSetRecord
from qlib_llm_alpha.record.gate_record import GateRecord
from qlib_llm_alpha.record.tracking import VerifiedExpManager
from tests.record.small_runs import Runner
from tests.support.provider import open_provider
from tests.support.tasks import gated_task


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recorder database without runs, to copy: MLflow takes seconds to create one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture(scope="session")
def recorded(small_provider: Path, recorder_store: Path, _fitted: tuple[DatasetH, GatedModel]) -> Recorder:
    """Return a run on the small market in which every record of the main job has been made once."""
    dataset, model = _fitted
    open_provider(small_provider, recorder_store)
    portfolio = gated_task()["record"][4]["kwargs"]["config"]
    with R.start(experiment_name="records"):
        recorder = R.get_recorder()
        SignalRecord(model=model, dataset=dataset, recorder=recorder).generate()
        FactorSetRecord(recorder=recorder, model=model, dataset=dataset).generate()
        PortAnaRecord(
            recorder=recorder, config=fill_placeholder(copy.deepcopy(portfolio), {"<MODEL>": model})
        ).generate()
        GateRecord(recorder=recorder, config=portfolio, model=model, dataset=dataset).generate()
        EvidenceRecord(recorder=recorder, model=model, dataset=dataset).generate()
    return recorder


@pytest.fixture
def run(tmp_path: Path, empty_store: Path, qlib_small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """Return what runs a task in a folder of its own; keywords are those of the experiment manager."""
    before = copy.deepcopy(C["exp_manager"])
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")

    def go(task: dict[str, Any], train: Any = task_train, **manager: Any) -> mlflow.entities.Run:
        monkeypatch.setattr(R, "_provider", QlibRecorder(VerifiedExpManager("sqlite:///mlflow.db", **manager)))
        try:
            train(copy.deepcopy(task), "runs")
        finally:
            found = client.get_experiment_by_name("runs")
            newest = client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"])[0]
            go.last = newest  # type: ignore[attr-defined]
        return newest

    yield go
    C["exp_manager"] = before
