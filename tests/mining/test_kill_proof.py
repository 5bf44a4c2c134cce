"""The proof's own arithmetic, and that it runs through with three kills."""

from __future__ import annotations

import importlib.util
import json
import signal
import sqlite3
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qlib_llm_alpha.llm.dialect import Dialect
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.request import Message, Request
from tests.llm.talk import Answer, reply, request

PROOFS = Path(__file__).parents[2] / "benchmarks" / "proofs"


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the proof as its command line does, from its own folder."""
    monkeypatch.syspath_prepend(str(PROOFS))
    loaded = {}
    for name in ("resumable", "kill_and_resume"):
        spec = importlib.util.spec_from_file_location(name, PROOFS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded[name])
        spec.loader.exec_module(loaded[name])
    return loaded["kill_and_resume"]


def row(**changes: Any) -> dict[str, Any]:
    killed = {"seed": 1, "run": 0, "session": 0, "moment": "request 3", "killed": True, "where": "between answers"}
    counts = {"asked": 5, "kept_before": 0, "kept": 3, "asked_again": 0, "lost": 2, "seconds": 1.0}
    return {**killed, **counts, **changes}


def done(**changes: Any) -> dict[str, Any]:
    ended = {"killed": False, "where": "", "lost": 0, "exit": 0, "repeats": 2, "differs": [], "audit_exit": 0}
    return row(**{**ended, **changes})


@pytest.mark.parametrize("images", [(), (b"\x89PNG one", b"\x89PNG two")])
def test_a_body_has_the_key_of_its_request(proof: ModuleType, images: tuple[bytes, ...]) -> None:
    messages = (Message("system", "Step: chart."), Message("user", "What is seen?", images))
    for enforced in (True, False):
        asked = Request("chart", messages, Answer, "scripted", max_tokens=77)
        body = Dialect(("json_schema",), enforced=enforced).body(asked)
        assert proof.key_of(json.loads(json.dumps(body))) == asked.key


def test_committed_answers_are_read_from_a_copy_while_the_session_has_the_journal_open(
    proof: ModuleType, tmp_path: Path
) -> None:
    assert proof.kept_keys(tmp_path) == frozenset()
    (tmp_path / "session").mkdir()
    path = tmp_path / "session" / "journal.sqlite"
    with Journal(path) as journal:
        journal.put(request("one"), reply("1"))
        begun = sqlite3.connect(path, isolation_level=None)
        begun.execute("BEGIN IMMEDIATE")
        begun.execute("INSERT INTO facts VALUES ('begun', 'and never committed')")
        before = sorted((file.name, file.read_bytes()) for file in path.parent.iterdir())
        assert proof.kept_keys(tmp_path) == {request("one").key}
        assert sorted((file.name, file.read_bytes()) for file in path.parent.iterdir()) == before
        begun.close()


def test_a_draft_of_a_file_is_seen_before_the_file(proof: ModuleType, tmp_path: Path) -> None:
    before = proof.stamps(tmp_path / "plan.json")
    assert before == {}
    (tmp_path / "plan.json.77.draft").write_text("{")
    (tmp_path / "other.json").write_text("{")
    assert list(proof.stamps(tmp_path / "plan.json")) == ["plan.json.77.draft"]


@pytest.mark.parametrize(
    ("kept", "late", "said"),
    [
        (0, [], "before the first answer"),
        (9, [], "between answers"),
        (10, [], "while scoring"),
        (10, ["ledger/ledger.jsonl"], "while scoring"),
        (10, ["ledger/ledger.jsonl", "session/drafts.json"], "while writing"),
        (10, ["session/library.yaml", "session/session.json"], "when all was written"),
    ],
)
def test_a_kill_is_placed_by_what_it_left(proof: ModuleType, kept: int, late: list[str], said: str) -> None:
    assert proof.where(kept, 10, late) == said


def test_the_summary_counts_kills_losses_and_sessions(proof: ModuleType) -> None:
    rows = [row(), row(where="while scoring", lost=0), done()]
    assert proof.holds(rows)
    assert proof.summary(rows, 5).splitlines() == [
        "2 kills in 1 sessions of 5 requests: 1 between answers, 1 while scoring",
        "committed answers asked again: 0",
        "requests lost by a kill: at most 2 (in flight at once: 8), 2 in all, 2 repeated",
        "sessions whose results are those of the one left alone, byte for byte: 1 of 1",
        "sessions whose trail is whole: 1 of 1",
        "everything held: yes",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        row(asked_again=1),
        row(lost=9),
        done(differs=["library.yaml"]),
        done(audit_exit=1),
        {**row(killed=False), "exit": 2, "said": "error: the folder holds other things"},
    ],
)
def test_one_run_that_does_not_hold_is_enough(proof: ModuleType, wrong: dict[str, Any]) -> None:
    rows = [row(), done(), wrong]
    assert not proof.holds(rows)
    assert proof.summary(rows, 5).endswith("everything held: NO")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_sessions_that_are_killed_end_as_the_one_that_was_left_alone(
    proof: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    call = ["--kills", "3", "--seed", "19", "--out", str(out)]
    assert proof.main(call) == 0
    rows = sys.modules["resumable"].read_rows(out)
    assert sum(one["killed"] for one in rows) == 3
    assert any(one["where"] == "between answers" for one in rows)
    assert not rows[-1]["killed"]
    assert (tmp_path / "rows" / "whole" / "session" / "library.yaml").exists()
    assert "everything held: yes" in capsys.readouterr().out
