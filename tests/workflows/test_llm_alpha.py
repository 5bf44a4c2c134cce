"""The main job through `qrun`, in a process of its own: the file that is shipped, with the dates of a small market."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from qlib.cli.run import render_template
from ruamel.yaml import YAML

from qlib_llm_alpha.evaluation.ledger import TrialLedger
from tests.support.provider import END, SEGMENTS, SMALL_MODEL, START, TEST, TRAIN
from tests.support.tasks import changed

WORKFLOWS = Path(__file__).parents[2] / "workflows"
pytestmark = pytest.mark.slow


def small_workflow(provider: Path) -> dict[str, Any]:
    """Return `llm_alpha.yaml` with the dates and experts of the small market, to which no recording belongs."""
    workflow = dict(YAML(typ="safe", pure=True).load(render_template(str(WORKFLOWS / "llm_alpha.yaml"))))
    workflow["qlib_init"]["provider_uri"] = str(provider)
    task = workflow["task"]
    task["model"]["kwargs"].update({**SMALL_MODEL, "experts": [dict(expert) for expert in SMALL_MODEL["experts"]]})
    task["dataset"]["kwargs"]["segments"] = {name: list(ends) for name, ends in SEGMENTS.items()}
    task["dataset"]["kwargs"]["handler"]["kwargs"].update(
        {"base": "starter", "start_time": START, "end_time": END, "fit_start_time": TRAIN[0]}
    )
    task["dataset"]["kwargs"]["handler"]["kwargs"]["fit_end_time"] = TRAIN[1]
    for record in task["record"]:
        config = record.get("kwargs", {}).get("config")
        if config is not None:
            ends = {"start_time": TEST[0], "end_time": TEST[1]}
            config["strategy"]["kwargs"].update({"topk": 8, "n_drop": 2})
            config["backtest"].update(ends)
            config["backtest"]["exchange_kwargs"]["exchange"]["kwargs"].update(ends)
    return {key: workflow[key] for key in ("qlib_init", "experiment_name", "task")}


def qrun(workflow: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    with (folder / "workflow.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(workflow, file)
    # Qlib's command: without a key, and from a folder that is no git repository.
    settings = {name: value for name, value in os.environ.items() if not name.upper().endswith("_KEY")}
    return subprocess.run(
        [sys.executable, "-m", "qlib.cli.run", "workflow.yaml"],
        cwd=folder,
        env={**settings, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def runs(folder: Path, experiment: str = "llm_alpha") -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def test_the_main_job_ends_well_and_again_with_the_same_numbers(small_provider: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    workflow = small_workflow(small_provider)
    first = qrun(workflow, folder)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "mlflow ui --backend-store-uri" in first.stdout + first.stderr
    assert "not a git repository" not in first.stdout + first.stderr
    (run,) = runs(folder)
    assert run.info.status == "FINISHED"
    metrics = run.data.metrics
    assert {"IC", "Rank IC", "1day.excess_return_with_cost.information_ratio", "IC/softmax"} <= set(metrics)
    assert {"IC/one", "information_ratio/static", "factor_set.factors"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert "softmax" in run.data.tags["mlflow.note.content"]

    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(folder / "mlartifacts")
    for name in ("gate/weights.png", "gate/weights.parquet", "factor_set/factor_set.json", "pred.pkl", "params.pkl"):
        assert (artifacts / name).stat().st_size > 0
    assert {path.name for path in folder.iterdir()} == {
        *("workflow.yaml", "mlflow.db", "mlflow.db.lock", "mlartifacts", "ledger")
    }
    for name in ("evidence/evidence.md", "evidence/trials.parquet", "leakage/leakage.md"):
        assert (artifacts / name).stat().st_size > 0
    assert run.data.tags["leakage"] == "clean"
    assert "openings of sealed 1;" in run.data.tags["evidence"]
    assert run.data.tags["evidence"] in run.data.tags["mlflow.note.content"]
    assert "qlib.evidence - [tracking.py" in first.stdout + first.stderr
    ledger = TrialLedger(folder / "ledger")
    trials = ledger.count()
    assert trials == metrics["factor_set.factors"] == metrics["evidence/trials"]

    second = qrun(workflow, folder)
    assert second.returncode == 0, second.stdout + second.stderr
    again = next(found for found in runs(folder) if found.info.run_id != run.info.run_id)
    assert again.info.status == "FINISHED"
    # Qlib adds up a portfolio in the order of a set, which differs between processes.
    assert again.data.metrics == pytest.approx(metrics, rel=1e-9, abs=1e-12)
    assert "openings of sealed 1 (the same configuration again)" in again.data.tags["evidence"]
    assert ledger.count() == trials
    assert len(ledger.openings()) == 2
    assert ledger.verify() == []

    other = qrun(changed(workflow, "task.model.kwargs.gate", "static"), folder)
    assert other.returncode != 0
    assert "were opened by configuration" in other.stdout + other.stderr
    assert "expert " not in other.stdout + other.stderr, "no model was fitted"
    assert len(ledger.openings()) == 2


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("qlib_init.provider_uri", "nowhere", "ProviderError: provider_uri"),
        ("task.model.kwargs.gaet", "softmax", "did you mean 'gate'"),
        ("task.record.4.kwargs.config.strategy.kwargs.top_k", 5, "did you mean 'topk'"),
        ("task.record.4.kwargs.config.backtest.end_time", END, "Qlib needs one trading day after the end"),
        ("task.record.5.kwargs.config.backtest.benchmark", "SH000999", "'SH000999' has no $close"),
        ("task.dataset.kwargs.segments.valid", list(TRAIN), "'valid' begins on"),
        ("task.dataset.kwargs.handler.kwargs.instruments", "csi3000", "universe 'csi3000'"),
        ("qlib_init.exp_manager.kwargs.uri", "file:mlruns", "expected a database or server"),
        ("qlib_init.exp_manager.kwargs.ury", "file:mlruns", "ury"),
        ("qlib_init.dataset_provider.kwargs", {"qlib_windw": True}, "qlib_windw"),
        ("qlib_init.dataset_provider.class", "PanelProvider", "PanelProvider"),
    ],
)
def test_bad_input_ends_at_once_with_one_clear_error(
    path: str, value: Any, said: str, small_provider: Path, tmp_path: Path, empty_store_beside: Path
) -> None:
    begun = time.monotonic()
    ended = qrun(changed(small_workflow(small_provider), path, value), empty_store_beside)
    spent = time.monotonic() - begun
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr
    assert spent < 90, "a machine that is busy starts Python slowly, but a fit takes longer"
    for run in runs(empty_store_beside):
        assert run.info.status == "FAILED"
        assert run.data.metrics == {}
        assert "expert " not in ended.stdout + ended.stderr, "no model was fitted"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def empty_store_beside(tmp_path: Path, template: Path) -> Path:
    """Return a project folder in which the database is there already: MLflow takes seconds to create one."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(template.read_bytes())
    return folder
