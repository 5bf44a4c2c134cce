"""``qlib-llm-alpha guard run`` on workflow files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlib_llm_alpha.cli import main
from tests.support.provider import SEGMENTS, TRAIN


def workflow(provider: Path | str, **handler: Any) -> dict[str, Any]:
    dates = {"start_time": "2019-06-03", "end_time": "2021-06-28", "fit_start_time": TRAIN[0], "fit_end_time": TRAIN[1]}
    settings = {
        "class": "Columns",
        "module_path": "my_handler",
        "kwargs": {"instruments": "csi300", **dates, **handler},
    }
    return {
        "qlib_init": {"provider_uri": str(provider), "region": "cn", "kernels": 1},
        "sys": {"rel_path": ["code"]},
        "task": {
            "model": {"class": "LGBModel", "module_path": "qlib.contrib.model.gbdt"},
            "dataset": {
                "class": "DatasetH",
                "module_path": "qlib.data.dataset",
                "kwargs": {"handler": settings, "segments": {name: list(ends) for name, ends in SEGMENTS.items()}},
            },
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Put a handler of a user's own where only the section `sys` of the workflow finds it."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_handler.py").write_text("from tests.support.leaky import Columns\n")
    return tmp_path


def write(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "workflow.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_a_clean_workflow_ends_with_0_and_the_provider_may_come_from_the_environment(
    folder: Path, small_provider: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_PROVIDER", str(small_provider))
    path = write(folder, workflow("{{ MY_PROVIDER }}"))
    assert main(["guard", "run", path, "--guards", "segments,poison", "--days", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Columns: no leak found by 2 guards; 2 clean, 0 not applicable" in shown
    assert "poison           clean" in shown


def test_a_leak_ends_with_1_and_is_written_to_the_file_asked_for(
    folder: Path, small_provider: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(folder, workflow(small_provider, features=["$close/Ref($close, 1)", "Ref($close, -2)/$close"]))
    out = folder / "findings.json"
    assert main(["guard", "run", path, "--guards", "poison,label_reach", "--days", "1", "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "LEAK found by 2 of 2 guards (poison, label_reach)" in shown
    found = json.loads(out.read_text())
    assert found["verdict"] == "leak"
    assert found["findings"][0]["evidence"]["columns"] == ["x1"]
    assert found["findings"][1]["evidence"]["late"]["train"]["days"] == 2


def test_the_findings_are_printed_as_json(
    folder: Path, small_provider: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["guard", "run", write(folder, workflow(small_provider)), "--guards", "segments", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["guard"] == "segments"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "is no file"),
        ("text", "expected a mapping"),
        ("no task", "task is None"),
        ("no module", "cannot be built"),
        ("guard", "unknown"),
        ("provider", "expected a daily Qlib provider"),
    ],
)
def test_a_bad_call_ends_with_2_and_one_line(
    folder: Path, small_provider: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    config = workflow(small_provider)
    arguments = ["--guards", "nothing" if change == "guard" else "segments"]
    if change == "no task":
        del config["task"]
    if change == "no module":
        config["task"]["dataset"]["kwargs"]["handler"]["module_path"] = "nowhere.to.be.found"
    if change == "provider":
        config["qlib_init"]["provider_uri"] = str(folder / "nothing")
    path = write(folder, config)
    if change == "text":
        (folder / "workflow.yaml").write_text("only words")
    if change == "missing":
        path = str(folder / "other.yaml")
    assert main(["guard", "run", path, *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.strip().splitlines()) == 1
