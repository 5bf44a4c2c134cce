"""``qlib-llm-alpha audit``: verifies a session, traces a factor, and says in its exit code what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.cli import main
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.llm.audit import AUDIT, JOURNAL, CandidateRow, audit_candidates, audit_session, reconcile
from qlib_llm_alpha.llm.journal import Journal
from tests.llm.talk import reply, request

FORMULA = "Mean($close,5)/$close"


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """Return the folder of a session with one call and two candidates, of which nothing was admitted."""
    trail = Chain(tmp_path / AUDIT)
    with Journal(tmp_path / JOURNAL) as journal:
        journal.put(request("q"), reply('{"number": 1}'), endpoint="local")
        reconcile(journal, trail)
    audit_candidates(
        trail,
        [
            CandidateRow(
                parse(FORMULA).id, "平静 \x1b[31m", FORMULA, "model-a", (request("q").key,), (), "rejected", "weak"
            ),
            CandidateRow(parse("$open").id, "", "$open", "random", verdict="rejected", reason="costly"),
        ],
    )
    audit_session(trail, data="data-1", settings="settings-1", library="")
    return tmp_path


def test_verify_of_a_whole_session_exits_0(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(session)]) == 0
    assert "are as they were written" in capsys.readouterr().out
    assert main(["audit", "verify", str(session), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_verify_names_the_faults_and_exits_1(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = session / AUDIT
    path.write_bytes(path.read_bytes().replace(b'"random"', b'"lucky!"'))
    assert main(["audit", "verify", str(session)]) == 1
    assert "row 2: row 2 was changed" in capsys.readouterr().out
    assert main(["audit", "verify", str(session), "--json"]) == 1
    assert [fault["row"] for fault in json.loads(capsys.readouterr().out)] == [2]


def test_verify_finds_an_answer_that_was_removed(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in session.glob(f"{JOURNAL}*"):
        path.unlink()
    assert main(["audit", "verify", str(session)]) == 1
    assert f"the answer to {request('q').key[:12]} is not in the journal" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["library.yaml", "documents.sqlite", "session.json", JOURNAL, f"{AUDIT}.head"])
def test_a_file_that_cannot_be_read_is_a_fault_and_no_traceback(
    session: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (session / name).write_bytes(b"\xff\x00 no such thing" * 300)
    assert main(["audit", "verify", str(session)]) == 1
    captured = capsys.readouterr()
    assert captured.out.strip()
    assert not captured.err


@pytest.mark.parametrize("factor", ["平静 \x1b[31m", parse(FORMULA).id, "Mean($close, 5) / $close"])
def test_trace_shows_where_a_factor_comes_from(session: Path, factor: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "trace", str(session), factor]) == 0
    out = capsys.readouterr().out
    assert f"平静 \\x1b[31m ({parse(FORMULA).id}): {FORMULA}" in out
    assert "row 1: proposed by model-a; rejected (weak)" in out
    assert (
        f"{request('q').key[:12]}: generate by model-a-2026 (knowledge cut-off unknown); prompt generate version 3; "
        "1 documents; as of 2020-06-30"
    ) in out
    assert "  doc-1\n" in out
    assert "Session: data data-1, settings settings-1, library none" in out
    assert "\x1b" not in out


def test_trace_gives_json(session: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "trace", str(session), "$open", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["factor_id"], found["calls"], found["documents"]) == (parse("$open").id, [], [])
    assert main(["audit", "trace", str(session), "$open"]) == 0
    assert "Calls: 0; no model was asked for it" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("trace", "nobody"), ("trace", "$high")])
def test_an_unknown_factor_is_a_bad_call(
    session: Path, arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", arguments[0], str(session), arguments[1]]) == 2
    assert "knows no factor" in capsys.readouterr().err


def test_a_folder_without_a_session_is_a_bad_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(tmp_path)]) == 2
    assert main(["audit", "trace", str(tmp_path), "x"]) == 2
    assert capsys.readouterr().err.count("expected the folder of a session") == 2
