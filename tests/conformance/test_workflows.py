"""What every workflow file owes its user; a new YAML in `workflows/` is found by itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from qlib.cli.run import render_template
from qlib.data import D
from qlib.utils import init_instance_by_config
from ruamel.yaml import YAML

from qlib_llm_alpha.data.provider_files import write_calendar
from qlib_llm_alpha.evaluation.walls import SEGMENTS, Walls
from qlib_llm_alpha.record import task_check
from qlib_llm_alpha.record.task_check import check_task
from qlib_llm_alpha.record.tracking import VerifiedExpManager

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.yaml"))
FILES = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
# The keys that qrun reads; the others are there for anchors.
READ_BY_QRUN = ("sys", "qlib_init", "task", "experiment_name", "BASE_CONFIG_PATH")


def load(path: Path, monkeypatch: pytest.MonkeyPatch, provider: str | None = None) -> dict[str, Any]:
    """Read a workflow as qrun does: Jinja with the environment, then YAML."""
    if provider is None:
        monkeypatch.delenv("QLIB_DATA", raising=False)
    else:
        monkeypatch.setenv("QLIB_DATA", provider)
    return dict(YAML(typ="safe", pure=True).load(render_template(str(path))))


def test_there_are_workflows() -> None:
    assert "llm_alpha" in {path.stem for path in WORKFLOWS}


@FILES
def test_the_provider_is_that_of_the_environment_or_a_default_inside_the_project(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = load(path, monkeypatch)["qlib_init"]["provider_uri"]
    assert not Path(default).is_absolute()
    assert load(path, monkeypatch, "elsewhere/data")["qlib_init"]["provider_uri"] == "elsewhere/data"


@FILES
def test_the_run_is_kept_in_a_database_and_by_our_recorder_unless_only_the_handler_is_ours(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = load(path, monkeypatch)
    manager = workflow["qlib_init"]["exp_manager"]
    assert manager["kwargs"]["uri"].startswith("sqlite:///")
    modules = {config.get("module_path", "") for _, config, _ in task_check.classes_of(workflow["task"], "task", None)}
    if {name for name in modules if name.startswith("qlib_llm_alpha")} - {"qlib_llm_alpha.data.handler"}:
        assert manager["class"] == VerifiedExpManager.__name__
        assert manager["module_path"] == VerifiedExpManager.__module__


@FILES
def test_a_run_that_our_recorder_keeps_ends_with_its_evidence_and_asks_the_leak_guards(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = load(path, monkeypatch)
    names = [record["class"] for record in workflow["task"]["record"]]
    if workflow["qlib_init"]["exp_manager"]["class"] == VerifiedExpManager.__name__:
        assert (names[0], names[-1]) == ("LeakageRecord", "EvidenceRecord")


def test_files_on_the_same_market_and_sealed_dates_are_one_study_with_a_cell_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the second of them would be refused."""
    opened: dict[tuple[str, ...], list[dict[str, Any] | None]] = {}
    for path in WORKFLOWS:
        workflow = load(path, monkeypatch)
        manager = workflow["qlib_init"]["exp_manager"]
        if manager["class"] == VerifiedExpManager.__name__:
            test = workflow["task"]["dataset"]["kwargs"]["segments"]["test"]
            dates = (workflow["qlib_init"]["provider_uri"], *(str(end) for end in test))
            opened.setdefault(dates, []).append(manager["kwargs"].get("study"))
    for studies in opened.values():
        assert len(studies) == 1 or all(study == studies[0] for study in studies)
        assert len(studies) == 1 or (studies[0] or {}).get("cells") == len(studies)


@FILES
def test_segments_are_disjoint_and_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = load(path, monkeypatch)["task"]["dataset"]["kwargs"]["segments"]
    assert list(segments) == [name for name in SEGMENTS if name in segments]
    walls = Walls.from_segments(segments).segments
    assert all(before.end < after.start for before, after in pairwise(walls))


@FILES
def test_the_backtest_lies_inside_test_and_its_exchange_has_the_same_dates(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange that is named with its class gets no dates from the backtest: Qlib hands nothing on."""
    task = load(path, monkeypatch)["task"]
    test = Walls.from_segments(task["dataset"]["kwargs"]["segments"]).segment("test")
    found = [config["backtest"] for _, config in task_check.backtests_of(task)]
    assert found
    for backtest in found:
        assert str(test.start) <= str(backtest["start_time"]) <= str(backtest["end_time"]) <= str(test.end)
        exchange = backtest["exchange_kwargs"].get("exchange")
        if exchange is not None:
            for end in ("start_time", "end_time"):
                assert exchange["kwargs"][end] == backtest[end]


@FILES
def test_every_class_and_keyword_exists_and_the_dates_fit_a_calendar(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qlib_small: Path
) -> None:
    """The whole check of a task, on a calendar that covers every workflow; only the benchmark's bars are left out."""
    workflow = load(path, monkeypatch)
    calendar = pd.bdate_range("2005-01-04", "2026-12-31")
    write_calendar(tmp_path, calendar.to_numpy().astype("datetime64[D]"))
    bars = pd.DataFrame({"$close": [1.0]})
    monkeypatch.setattr(D, "calendar", lambda *_, **__: calendar.to_numpy())
    monkeypatch.setattr(D, "features", lambda *_, **__: bars)
    check_task(workflow["task"])


@FILES
def test_custom_operators_can_be_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for operator in load(path, monkeypatch)["qlib_init"].get("custom_ops", []):
        config = {**operator, "kwargs": {"feature": None, "N": 5}} if isinstance(operator, dict) else operator
        assert init_instance_by_config(config) is not None


@FILES
def test_every_key_of_the_file_is_read_or_is_an_anchor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt top-level key would be ignored by qrun without a word."""
    text = path.read_text(encoding="utf-8")
    for key in load(path, monkeypatch):
        assert key in READ_BY_QRUN or f"\n{key}: &" in f"\n{text}", key


@FILES
def test_no_path_of_a_machine_and_no_secret_is_written_down(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not any(word in text for word in ("/home/", "/root/", "api_key", "token"))
