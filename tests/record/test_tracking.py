from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from qlib.config import C
from qlib.workflow import QlibRecorder
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.errors import ConfigError, RecordingError
from qlib_llm_alpha.record.tracking import VerifiedExpManager, VerifiedRecorder

# What a process does that starts at the same moment as others, with a store that does not exist yet.
ONE_RUN = """
import sys
from qlib.config import C
from qlib.workflow import QlibRecorder
from qlib_llm_alpha.record.tracking import VerifiedExpManager
C.set("client")
tracking = QlibRecorder(VerifiedExpManager(sys.argv[1]))
with tracking.start(experiment_name="together"):
    tracking.log_metrics(number=float(sys.argv[2]))
"""


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, qlib_small: Path) -> Iterator[Path]:
    """Return a database of its own; Qlib keeps the URI in its configuration, which is put back."""
    before = copy.deepcopy(C["exp_manager"])
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    yield tmp_path / "mlflow.db"
    C["exp_manager"] = before


@pytest.fixture
def tracking(store: Path) -> QlibRecorder:
    return QlibRecorder(VerifiedExpManager(f"sqlite:///{store}", "tests"))


def client(store: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{store}")


def only_run(store: Path, experiment: str = "tests") -> mlflow.entities.Run:
    found = client(store).get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client(store).search_runs([found.experiment_id])
    return run


def test_what_was_logged_is_in_the_store_and_the_run_is_finished(tracking: QlibRecorder, store: Path) -> None:
    with tracking.start(experiment_name="tests"):
        tracking.log_params(topk=13, text="x" * 20_000)
        tracking.log_metrics(**{"Rank IC": 0.05, "1day.excess_return_with_cost.mean": -0.1, "none": math.nan})
        tracking.set_tags(host="here")
        tracking.save_objects(**{"pred.pkl": [1, 2]})
        assert only_run(store).data.metrics["Rank IC"] == 0.05, "written before the call returns"
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert run.data.params["topk"] == "13"
    assert run.data.tags["host"] == "here"
    assert math.isnan(run.data.metrics["none"])
    assert tracking.get_recorder(recorder_id=run.info.run_id, experiment_name="tests").load_object("pred.pkl") == [1, 2]


@pytest.mark.parametrize("name", ["IC(5d)!", "a=b", "IC%"])
def test_a_metric_name_that_mlflow_refuses_is_an_error_and_fails_the_run(
    name: str, tracking: QlibRecorder, store: Path
) -> None:
    with pytest.raises(RecordingError, match="mend the name"), tracking.start(experiment_name="tests"):
        tracking.log_metrics(**{name: 0.1})
    assert only_run(store).info.status == "FAILED"


def test_a_parameter_logged_twice_must_keep_its_value(tracking: QlibRecorder, store: Path) -> None:
    with tracking.start(experiment_name="tests"):
        tracking.log_params(seed=7)
        tracking.log_params(seed=7)
    assert only_run(store).info.status == "FINISHED"
    with (  # noqa: PT012
        pytest.raises(RecordingError, match="'seed' was logged as '7' and now as '8'"),
        tracking.start(experiment_name="other"),
    ):
        tracking.log_params(seed=7)
        tracking.log_params(seed=8)
    assert only_run(store, "other").info.status == "FAILED"


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_metric_is_refused(value: float, tracking: QlibRecorder, store: Path) -> None:
    with pytest.raises(RecordingError, match="infinite"), tracking.start(experiment_name="tests"):
        tracking.log_metrics(ic=value, other=1.0)
    assert only_run(store).info.status == "FAILED"
    assert only_run(store).data.metrics == {}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM latest_metrics WHERE key = 'ic'", "metric 'ic' logged as 0.25, found None"),
        ("UPDATE latest_metrics SET value = 0.5 WHERE key = 'ic'", "metric 'ic' logged as 0.25, found 0.5"),
        ("DELETE FROM params WHERE key = 'seed'", "parameter 'seed' logged as '7', found None"),
    ],
)
def test_what_did_not_arrive_is_an_error_and_the_run_is_failed(
    statement: str, said: str, tracking: QlibRecorder, store: Path
) -> None:
    with pytest.raises(RecordingError, match=said), tracking.start(experiment_name="tests"):  # noqa: PT012
        tracking.log_params(seed=7)
        tracking.log_metrics(ic=0.25)
        with contextlib.closing(sqlite3.connect(store)) as database, database:
            database.execute(statement)
    assert only_run(store).info.status == "FAILED"
    with tracking.start(experiment_name="after"):
        tracking.log_metrics(ic=0.25)
    assert only_run(store, "after").info.status == "FINISHED"


def test_a_run_that_fails_for_another_reason_keeps_that_reason(tracking: QlibRecorder, store: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.start(experiment_name="tests"):  # noqa: PT012
        tracking.log_metrics(ic=0.25)
        raise ZeroDivisionError
    assert only_run(store).info.status == "FAILED"


def test_a_metric_with_steps_is_compared_as_mlflow_shows_it(tracking: QlibRecorder, store: Path) -> None:
    with tracking.start(experiment_name="tests"):
        for step, loss in [(1, 3.0), (3, 1.0), (2, 2.0)]:
            tracking.log_metrics(step=step, loss=loss)
        for value in (5.0, 4.0, math.nan, 2.0):
            tracking.log_metrics(again=value)
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 1.0


def test_more_parameters_than_a_batch_takes_arrive(tracking: QlibRecorder, store: Path) -> None:
    with tracking.start(experiment_name="tests"):
        tracking.log_params(**{f"p{number}": number for number in range(250)})
    assert sum(name.startswith("p") for name in only_run(store).data.params) == 250


def test_a_run_is_resumed_under_another_command(
    tracking: QlibRecorder, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking.start(experiment_name="tests"):
        tracking.log_metrics(first=1.0)
    monkeypatch.setattr(sys, "argv", ["another", "command"])
    with tracking.start(experiment_name="tests", recorder_id=only_run(store).info.run_id, resume=True):
        tracking.log_metrics(second=2.0)
    assert {"first", "second"} <= set(only_run(store).data.metrics)
    assert only_run(store).info.status == "FINISHED"


def test_recorders_found_again_check_what_they_log(tracking: QlibRecorder, store: Path) -> None:
    with tracking.start(experiment_name="tests"):
        tracking.log_metrics(first=1.0)
    found = tracking.get_recorder(recorder_id=only_run(store).info.run_id, experiment_name="tests")
    assert isinstance(found, VerifiedRecorder)
    with pytest.raises(RecordingError):
        found.log_metrics(**{"IC!": 1.0})


def test_artifacts_lie_beside_the_database_wherever_the_process_stands(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tracking = QlibRecorder(VerifiedExpManager("sqlite:///runs/mlflow.db", "tests"))
    monkeypatch.chdir(tmp_path / "there")
    with tracking.start(experiment_name="a name/with: signs"):
        tracking.log_metrics(ic=0.1)
        tracking.save_objects(**{"pred.pkl": 1})
    assert list((tmp_path / "there").iterdir()) == []
    runs = tmp_path / "here" / "runs"
    assert (runs / "mlflow.db").is_file()
    assert [path.name for path in (runs / "mlartifacts").rglob("pred.pkl")] == ["pred.pkl"]


def test_a_run_with_a_store_of_its_own_keeps_its_artifacts_there(tracking: QlibRecorder, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mlflow.db"
    with tracking.start(experiment_name="tests", uri=f"sqlite:///{other}"):
        tracking.save_objects(**{"pred.pkl": 1})
    assert other.is_file()
    assert list((other.parent / "mlartifacts").rglob("pred.pkl"))


@pytest.mark.parametrize("uri", ["file:mlruns", "file:///tmp/mlruns", "mlruns", ""])
def test_a_file_store_is_refused(uri: str, store: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("sqlite:///mlflow.db")):
        VerifiedExpManager(uri)


@pytest.mark.slow
def test_two_processes_may_create_the_store_at_the_same_moment(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_RUN, uri, str(number)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        for number in (1, 2)
    ]
    for process in running:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        # Outside of a git repository there is nothing to tell.
        assert "git" not in said.replace(".git", "")
    store = tmp_path / "new" / "mlflow.db"
    found = client(store).get_experiment_by_name("together")
    assert found is not None
    runs = client(store).search_runs([found.experiment_id])
    assert sorted(run.data.metrics["number"] for run in runs) == [1.0, 2.0]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_inside_a_git_repository_its_state_is_saved(
    tracking: QlibRecorder, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    subprocess.run(["git", "init", "-q"], check=True, env=clean)
    with tracking.start(experiment_name="tests"):
        pass
    names = [artifact.path for artifact in client(store).list_artifacts(only_run(store).info.run_id)]
    assert "code_status.txt" in names


def test_statuses_that_are_not_finished_are_not_read_back(tracking: QlibRecorder, store: Path) -> None:
    tracking.start_exp(experiment_name="tests")
    tracking.log_metrics(ic=0.25)
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        database.execute("DELETE FROM latest_metrics")
    tracking.end_exp(Recorder.STATUS_FA)
    assert only_run(store).info.status == "FAILED"
