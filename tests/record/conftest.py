from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from qlib.data.dataset import DatasetH
from qlib.workflow import R
from qlib.workflow.record_temp import SignalRecord
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record.factor_set_record import FactorSetRecord
from qlib_llm_alpha.record.gate_record import GateRecord
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
        GateRecord(recorder=recorder, config=portfolio, model=model, dataset=dataset).generate()
    return recorder
