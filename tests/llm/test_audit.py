"""The trail tells of every answer and every candidate, and a change of either shows."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from qlib_llm_alpha import __version__
from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.errors import LLMError, LLMFailure
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.llm.audit import (
    AUDIT,
    JOURNAL,
    CandidateRow,
    ModelFacts,
    QuotePlace,
    audit_candidates,
    audit_session,
    reconcile,
    trace_factor,
    verify_session,
)
from qlib_llm_alpha.llm.client import Client
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.reply_text import reply_sha256
from qlib_llm_alpha.llm.request import Reply, Request, Usage
from tests.llm.talk import FakeGateway, reply, request

FORMULA = "Mean($close,5)/$close"
QUOTE = QuotePlace("doc-1", 10, 20, hashlib.sha256(b"mean reverts").hexdigest())


def facts(model: str, usage: Usage) -> ModelFacts:
    return ModelFacts("2024-06-30", (usage.prompt or 0) / 1e6)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """Return the folder of a session with one repaired call, two candidates and a library."""
    answers = [reply("no"), reply('{"number": 1}')]
    trail = Chain(tmp_path / AUDIT)
    with (
        Journal(tmp_path / JOURNAL) as journal,
        Client(
            mode="live",
            model="model-a",
            journal=journal,
            gateway=FakeGateway(lambda _: answers.pop(0)),
            audit=trail,
            facts=facts,
            endpoint="local",
        ) as client,
    ):
        (outcome,) = client.complete([request("q")])
    assert not isinstance(outcome, LLMFailure)
    audit_candidates(
        trail,
        [
            CandidateRow(parse(FORMULA).id, "calm", FORMULA, "model-a", outcome.calls, (QUOTE,), "admitted"),
            CandidateRow(parse("$open").id, "", "$open", "random", verdict="rejected", reason="weak"),
            CandidateRow("", "half", "Mean($close", "model-a", outcome.calls[:1], verdict="rejected", reason="syntax"),
        ],
    )
    audit_session(trail, data="data-1", settings="settings-1", library="library-1")
    return tmp_path


def change(folder: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(folder / JOURNAL) as database:
        assert database.execute(statement, values).rowcount == 1
    database.close()


def details(folder: Path, **keywords: object) -> list[str]:
    return [fault.detail for fault in verify_session(folder, **keywords)]  # type: ignore[arg-type]


def test_a_call_row_says_all_but_the_texts(session: Path) -> None:
    first, last = Chain(session / AUDIT).rows("call")
    body = dict(last.body)
    assert body.pop("asked_at")
    assert body.pop("openai")
    assert body == {
        "actor": "session",
        "purpose": "generate",
        "key": last.body["key"],
        "model": "model-a",
        "returned_model": "model-a-2026",
        "revision": "r1",
        "knowledge_cutoff": "2024-06-30",
        "parameters": {"temperature": 0.0, "max_tokens": 100, "sample": 0},
        "prompt": {"name": "generate", "version": "3", "sha256": "ab" * 32},
        "documents": ["doc-1"],
        "as_of": "2020-06-30",
        "private": False,
        "reply_sha256": reply_sha256(reply('{"number": 1}')),
        "finish": "stop",
        "mode": "json_schema",
        "attempts": 2,
        "usage": {"prompt": 10, "answer": 5, "cached": None, "reasoning": None},
        "cost_usd": 1e-5,
        "asked": True,
        "endpoint": "local",
        "code": __version__,
    }
    assert first.body["key"] == request("q").key
    assert "Answer with a number" not in (session / AUDIT).read_text()


def test_the_hash_of_a_reply_is_of_what_was_said_not_of_how_long_it_took() -> None:
    one = reply("x")
    assert reply_sha256(replace(one, seconds=9.0, attempts=7)) == reply_sha256(one)
    assert reply_sha256(replace(one, text="y")) != reply_sha256(one)


def test_a_whole_session_has_no_faults(session: Path) -> None:
    assert verify_session(session, quote_fault=lambda quote: "", library="library-1") == []


def test_a_call_without_an_answer_has_a_row_of_its_own(tmp_path: Path) -> None:
    def fail(_: Request) -> Reply:
        raise LLMFailure("quota", "no money", usage=Usage(3, 0))

    trail = Chain(tmp_path / AUDIT)
    with (
        Journal(tmp_path / JOURNAL) as journal,
        Client(mode="live", model="m", journal=journal, gateway=FakeGateway(fail), audit=trail, facts=facts) as client,
        pytest.raises(LLMFailure),
    ):
        client.complete([request("q")])
    (row,) = trail.rows()
    assert (row.kind, row.body["failure"], row.body["key"]) == ("failure", "quota", request("q").key)
    assert row.body["usage"]["prompt"] == 3
    assert verify_session(tmp_path) == []


def test_an_answer_kept_just_before_a_kill_gets_its_row_when_the_session_starts_again(tmp_path: Path) -> None:
    trail = Chain(tmp_path / AUDIT)
    with Journal(tmp_path / JOURNAL) as journal:
        journal.put(request("q"), reply('{"number": 1}'))
        assert "has no row in the trail; resume" in details_of_new_trail(tmp_path, trail)
        Client(mode="live", model="model-a", journal=journal, audit=trail, facts=facts)
        Client(mode="live", model="model-a", journal=journal, audit=trail)
        assert reconcile(journal, trail) == 0
    assert [row.body["actor"] for row in trail.rows("call")] == ["reconcile"]
    assert verify_session(tmp_path) == []


def details_of_new_trail(folder: Path, trail: Chain) -> str:
    trail.append([("note", {})])
    return " ".join(details(folder))


def test_candidates_and_session_that_are_handed_in_again_are_not_written_again(session: Path) -> None:
    trail = Chain(session / AUDIT)
    before = trail.head()
    again = CandidateRow(parse("$open").id, "", "$open", "random", verdict="rejected", reason="weak")
    assert audit_candidates(trail, [again, again]) == 0
    assert audit_session(trail, data="data-1", settings="settings-1", library="library-1") == before
    assert audit_candidates(trail, [replace(again, reason="costly")]) == 1


def test_each_changed_byte_of_the_trail_shows(session: Path) -> None:
    path = session / AUDIT
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert verify_session(session) != [], place
    path.write_bytes(content)
    assert verify_session(session) == []


def test_another_answer_in_the_journal_shows(session: Path) -> None:
    key = request("q").key
    other = json.dumps({"finish": "stop", "mode": "m", "model": "", "text": "yes", "usage": {}})
    change(session, "UPDATE replies SET reply = ? WHERE key = ?", other, key)
    fault = next(one for one in verify_session(session) if "reply_sha256" in one.detail)
    assert fault.row == 0
    assert fault.detail == f"reply_sha256 of call {key[:12]} in the journal is not the one of the trail"


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("as_of", "2030-01-01", "as_of of call"),
        ("documents", '["doc-2"]', "documents of call"),
        ("prompt", '{"name":"n","version":"1","sha256":"s"}', "prompt of call"),
        ("reply", "{", "cannot be read"),
    ],
)
def test_another_row_in_the_journal_shows(session: Path, column: str, value: str, told: str) -> None:
    change(session, f"UPDATE replies SET {column} = ? WHERE place = 1", value)  # noqa: S608
    assert any(told in detail for detail in details(session))


def test_another_question_in_the_journal_shows(session: Path) -> None:
    with Journal(session / JOURNAL) as journal:
        (first, _) = journal.rows()
    asked = {**first.request, "temperature": 1.0}
    change(session, "UPDATE replies SET request = ? WHERE place = 1", json.dumps(asked))
    assert details(session) == [f"the request {first.key[:12]} in the journal is not the one that was asked"]


def test_a_removed_answer_shows_in_the_calls_and_in_the_candidates_that_came_from_it(session: Path) -> None:
    change(session, "DELETE FROM replies WHERE place = 2")
    with Chain(session / AUDIT).locked():
        keys = [row.body["key"] for row in Chain(session / AUDIT).rows("call")]
    assert details(session) == [
        f"the answer to {keys[1][:12]} is not in the journal",
        f"calm comes from call {keys[1][:12]}, which is not in the journal",
    ]


def test_a_journal_that_is_gone_or_torn_shows(session: Path) -> None:
    (session / JOURNAL).write_bytes(b"torn" * 500)
    assert any("damaged" in detail for detail in details(session))
    (session / JOURNAL).unlink()
    assert any("is not in the journal" in detail for detail in details(session))


def test_a_missing_document_and_another_library_show(session: Path) -> None:
    def gone(quote: QuotePlace) -> str:
        assert quote == QUOTE
        return "the document is missing"

    assert details(session, quote_fault=gone) == ["calm quotes doc-1 from 10 to 20: the document is missing"]
    told = "the session ended with library library-1; the folder has"
    assert details(session, library="library-2") == [f"{told} library-2"]
    assert details(session, library="") == [f"{told} none"]


def test_a_cut_trail_is_found_by_an_anchor(session: Path) -> None:
    trail = Chain(session / AUDIT)
    anchor = trail.head()
    copy = session / "older"
    older = Chain(copy / AUDIT)
    older.append([(row.kind, row.body) for row in list(trail.rows())[:-1]])
    assert any("the end was cut off" in fault.detail for fault in verify_session(copy, anchor=anchor))


@pytest.mark.parametrize("factor", ["calm", FORMULA, " Mean( $close , 5 ) / $close", parse(FORMULA).id])
def test_a_factor_is_traced_by_name_id_or_formula_to_calls_prompts_documents_and_quotes(
    session: Path, factor: str
) -> None:
    found = trace_factor(session, factor)
    assert (found.factor_id, found.name, found.expression) == (parse(FORMULA).id, "calm", FORMULA)
    assert [call["key"] for call in found.calls] == [row.body["key"] for row in Chain(session / AUDIT).rows("call")]
    assert [prompt["name"] for prompt in found.prompts] == ["generate"]
    assert found.documents == ("doc-1",)
    assert [quote["sha256"] for quote in found.quotes] == [QUOTE.sha256]
    assert found.session is not None
    assert found.session["library"] == "library-1"
    assert json.loads(json.dumps(found.to_dict()))["candidates"][0]["verdict"] == "admitted"


def test_a_random_factor_has_no_calls_and_a_refused_draft_is_found_by_what_was_written(session: Path) -> None:
    assert trace_factor(session, "$open").calls == ()
    assert [row["reason"] for row in trace_factor(session, "Mean($close").candidates] == ["syntax"]
    assert trace_factor(session, "half").factor_id == ""


@pytest.mark.parametrize("factor", ["$high", "nobody", "", "Mean($close,"])
def test_an_unknown_factor_is_told(session: Path, factor: str) -> None:
    with pytest.raises(LLMError, match=r"knows no factor .* among 3 candidates"):
        trace_factor(session, factor)


def test_a_folder_that_is_no_session_is_told(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match=r"holds no audit\.jsonl"):
        verify_session(tmp_path)
    with pytest.raises(LLMError, match=r"holds no audit\.jsonl"):
        trace_factor(tmp_path, "x")
