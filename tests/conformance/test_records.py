"""What every record template owes Qlib; a new class in `qlib_llm_alpha.record` is found by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qlib.data.dataset import DatasetH
from qlib.utils import init_instance_by_config
from qlib.workflow import R
from qlib.workflow.record_temp import RecordTemp, SignalRecord

import qlib_llm_alpha.record
from qlib_llm_alpha.errors import QlibLLMAlphaError
from qlib_llm_alpha.model.gated import GatedModel
from tests.conformance.subjects import subclasses
from tests.support.tasks import gated_task

WRITTEN = {".json", ".parquet", ".png", ".html", ".md"}
# Keywords with which a workflow gives a class more to do; a class that is not here is built without any.
KEYWORDS: dict[str, dict[str, Any]] = {
    "GateRecord": {"config": gated_task()["record"][4]["kwargs"]["config"]},
    "LeakageRecord": {"handler": gated_task()["dataset"]["kwargs"]["handler"], "guards": ["segments", "truncation"]},
}


SUBJECTS = subclasses(qlib_llm_alpha.record, RecordTemp)
RECORDS = pytest.mark.parametrize("kind", SUBJECTS, ids=lambda kind: kind.__name__)


def keywords(kind: type) -> dict[str, Any]:
    return KEYWORDS.get(kind.__name__, {})


def test_there_are_records_and_keywords_belong_to_one_of_them() -> None:
    assert SUBJECTS
    assert set(KEYWORDS) <= {kind.__name__ for kind in SUBJECTS}


@RECORDS
def test_a_record_lists_what_it_writes_and_writes_plain_files_alone(
    kind: type, model_small: GatedModel, dataset_small: DatasetH
) -> None:
    with R.start(experiment_name=f"conformance {kind.__name__}"):
        recorder = R.get_recorder()
        SignalRecord(model=model_small, dataset=dataset_small, recorder=recorder).generate()
        before = set(files(recorder))
        # As the trainer builds it.
        config = {"class": kind.__name__, "module_path": kind.__module__, "kwargs": keywords(kind)}
        record = init_instance_by_config(
            config, recorder=recorder, try_kwargs={"model": model_small, "dataset": dataset_small}
        )
        record.generate()
    written = set(files(recorder)) - before
    assert written
    assert {Path(path).suffix for path in written} <= WRITTEN
    assert {Path(path).parts[0] for path in written} == {record.artifact_path}
    assert {f"{record.artifact_path}/{name}" for name in record.list()} <= written


@RECORDS
def test_a_record_says_whether_it_computes_from_the_outcomes_of_test(kind: type) -> None:
    """Without a word from the class the run counts as one that opens sealed."""
    assert isinstance(vars(kind).get("opens_sealed"), bool)


@RECORDS
def test_a_record_is_built_twice_without_effect(kind: type, qlib_small: Path) -> None:
    """Qlib calls a constructor again after any TypeError, so it must do nothing but remember."""
    with R.start(experiment_name="built twice"):
        recorder = R.get_recorder()
        before = (set(files(recorder)), recorder.list_metrics(), recorder.list_tags())
        for _ in range(2):
            kind(recorder=recorder, **keywords(kind))
        assert (set(files(recorder)), recorder.list_metrics(), recorder.list_tags()) == before


@RECORDS
def test_a_record_says_what_it_lacks_in_an_empty_run_or_needs_nothing(kind: type, qlib_small: Path) -> None:
    with R.start(experiment_name="lacking"):
        recorder = R.get_recorder()
        record = kind(recorder=recorder, **keywords(kind))
        try:
            record.generate()
        except QlibLLMAlphaError as error:
            assert "expected" in str(error)  # noqa: PT017 - it need not be raised
        else:
            assert {f"{record.artifact_path}/{name}" for name in record.list()} <= set(files(recorder))


def files(recorder: Any, folder: str | None = None) -> list[str]:
    found = []
    for item in recorder.client.list_artifacts(recorder.id, folder):
        found += files(recorder, item.path) if item.is_dir else [item.path]
    return found
