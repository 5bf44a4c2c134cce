"""Whatever is changed in a session's folder is named, and a broken file is a fault, never a traceback."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.documents.store import DocumentStore
from qlib_llm_alpha.errors import LLMError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.library.factor_set import FactorSet
from qlib_llm_alpha.llm.audit import (
    AUDIT,
    JOURNAL,
    CandidateRow,
    QuotePlace,
    audit_candidates,
    audit_documents,
    audit_session,
    reconcile,
    trace_factor,
)
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.mining.session import LIBRARY
from qlib_llm_alpha.mining.session_audit import DOCUMENTS, document_rows, verify, written_files
from tests.documents.making import written
from tests.llm.talk import reply, request

FORMULA = "Mean($close,5)/$close"
NOTE = written("Prices revert after a calm week.\n\nVolume tells who is eager.", title="A note", private=True)
LIBRARY_SET = FactorSet(
    "mined",
    (
        Factor(
            "calm",
            parse(FORMULA),
            "mean_reversion",
            hypothesis="prices revert",
            sources=(f"doc:{NOTE.id}:0-13",),
            origin="model-a",
        ),
    ),
    "strict",
    as_of="2020-06-30",
)


def write_session(folder: Path) -> None:
    """Write what a session leaves; a second call is what a resumed one does."""
    trail = Chain(folder / AUDIT)
    with DocumentStore(folder / DOCUMENTS) as store, Journal(folder / JOURNAL) as journal:
        store.add_all([NOTE, written("Lunch is at noon.", "canteen")])
        audit_documents(trail, document_rows(store))
        for number in range(3):
            journal.put(request(f"q{number}"), reply('{"number": 1}'), endpoint="local")
        reconcile(journal, trail)
        quote = QuotePlace(NOTE.id, 0, 13, _sha256("Prices revert"))
        audit_candidates(
            trail,
            [CandidateRow(parse(FORMULA).id, "calm", FORMULA, "model-a", (request("q0").key,), (quote,), "admitted")],
        )
        head = audit_session(
            trail,
            data="data-1",
            settings="settings-1",
            library=LIBRARY_SET.id,
            files=written_files(folder, LIBRARY_SET, DOCUMENTS),
            extends="earlier",
        )
    LIBRARY_SET.save(folder / LIBRARY)
    (folder / "session.json").write_text(json.dumps({"audit": asdict(head)}), encoding="utf-8")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """Return the folder of a session with two documents, three calls, a candidate and a library."""
    write_session(tmp_path)
    return tmp_path


def details(folder: Path) -> list[str]:
    return [fault.detail for fault in verify(folder)]


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(statement, values).rowcount >= 1


def flipped(content: bytes, count: int) -> list[bytes]:
    """Return copies with one bit changed, at places that a seed chooses."""
    rng = np.random.default_rng(5)
    copies = []
    for place in rng.integers(len(content), size=count):
        copy = bytearray(content)
        copy[place] ^= 1 << int(rng.integers(8))
        copies.append(bytes(copy))
    return copies


def replies_of(path: Path) -> list[tuple[object, ...]] | None:
    """Return all answers of a journal, None when it cannot be read."""
    try:
        with closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT * FROM replies").fetchall()
    except sqlite3.Error:
        return None


def test_an_honest_session_is_whole_and_a_resumed_one_adds_no_row(session: Path) -> None:
    assert verify(session) == []
    before = (session / AUDIT).read_bytes()
    write_session(session)
    assert (session / AUDIT).read_bytes() == before
    assert verify(session) == []


def test_a_document_row_says_all_but_the_text(session: Path) -> None:
    first, second = Chain(session / AUDIT).rows("document")
    body = dict(first.body)
    assert len(body.pop("sha256")) == 64
    assert body == {
        "document": NOTE.id,
        "available_at": "2015-06-12T04:00:00.000000+00:00",
        "private": True,
        "text_sha256": _sha256(NOTE.text),
    }
    assert second.body["private"] is False
    assert "calm week" not in (session / AUDIT).read_text()


@pytest.mark.parametrize("name", [LIBRARY, DOCUMENTS, AUDIT, f"{AUDIT}.head"])
def test_each_flipped_bit_of_a_file_is_named(session: Path, name: str) -> None:
    content = (session / name).read_bytes()
    for copy in flipped(content, 60):
        (session / name).write_bytes(copy)
        assert verify(session) != []
    (session / name).write_bytes(content)
    assert verify(session) == []


def test_a_flipped_bit_of_the_journal_is_named_or_changes_no_answer(session: Path) -> None:
    path = session / JOURNAL
    content, answers = path.read_bytes(), replies_of(path)
    named = 0
    for copy in flipped(content, 150):
        path.write_bytes(copy)
        faults = verify(session)
        named += bool(faults)
        assert faults or replies_of(path) == answers
        for beside in session.glob(f"{JOURNAL}-*"):
            beside.unlink()
    assert named > 10
    path.write_bytes(content)
    assert verify(session) == []


def test_a_flipped_bit_of_the_summary_is_never_a_traceback(session: Path) -> None:
    path = session / "session.json"
    content = path.read_bytes()
    for copy in (*flipped(content, 60), b"", b"[]", b"{}", b'{"audit": null}', b'{"audit": {"count": "x", "hash": 1}}'):
        path.write_bytes(copy)
        assert verify(session) != [], copy


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2020-06-30", "2015-12-31"),
        ("model-a", "human"),
        ("mean_reversion", "momentum"),
        ("prices revert", "prices follow"),
    ],
)
def test_another_word_in_the_library_is_named(session: Path, old: str, new: str) -> None:
    text = (session / LIBRARY).read_text(encoding="utf-8")
    assert old in text
    (session / LIBRARY).write_text(text.replace(old, new), encoding="utf-8")
    assert details(session) == ["library.yaml is not the file that the session wrote"]


def test_another_formula_a_broken_and_a_missing_library_are_named(session: Path) -> None:
    text = (session / LIBRARY).read_text(encoding="utf-8")
    (session / LIBRARY).write_text(text.replace("($close,5)", "($close,6)"), encoding="utf-8")
    assert any(detail.startswith(f"the session ended with library {LIBRARY_SET.id}") for detail in details(session))
    (session / LIBRARY).write_bytes(b"name: [\xff")
    assert any("cannot be read" in detail for detail in details(session))
    (session / LIBRARY).unlink()
    assert any("library.yaml cannot be read" in detail for detail in details(session))


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE documents SET available_at = '2030-01-01T00:00:00.000000+00:00'", "available_at of document"),
        ("UPDATE documents SET available_at = '2001-01-01T00:00:00.000000+00:00'", "before it is published"),
        ("UPDATE documents SET private = 0 WHERE private = 1", "private of document"),
        ("UPDATE documents SET text = text || ' lie'", "is not the one of its SHA-256"),
        ("UPDATE documents SET published_at = '2001-01-01T00:00:00.000000+00:00'", "dates or passages differ"),
        ("UPDATE documents SET title = 'Another'", "dates or passages differ"),
        ("UPDATE documents SET source = 'another'", "is not that of its source and text"),
        ("UPDATE chunks SET start = start + 1", "dates or passages differ"),
        ("DELETE FROM documents WHERE private = 0", "is not in the store of the session"),
        ("UPDATE documents SET published_at = replace(published_at, '-', 'p')", "cannot be read"),
        ("UPDATE documents SET instruments = '['", "cannot be read"),
        ("UPDATE documents SET text = NULL", "cannot be read"),
        ("UPDATE documents SET text = x'ff'", "cannot be read"),
        ("DROP TABLE chunks", "cannot be read"),
    ],
)
def test_a_changed_document_is_named_for_what_was_changed(session: Path, statement: str, told: str) -> None:
    with closing(sqlite3.connect(session / DOCUMENTS)) as database, database:
        database.execute(statement)
    assert any(told in detail for detail in details(session)), details(session)


def test_a_document_that_was_added_or_a_store_that_is_gone_is_named(session: Path) -> None:
    with DocumentStore(session / DOCUMENTS) as store:
        added = store.add(written("Another note.", "nobody"))
    assert f"document {added} has no row in the trail; resume the session once" in details(session)
    (session / DOCUMENTS).unlink()
    assert f"document {NOTE.id} is not in the store of the session" in details(session)


@pytest.mark.parametrize("column", ["private", "endpoint", "asked", "asked_at", "openai", "purpose", "as_of"])
def test_each_column_of_an_answer_is_compared(session: Path, column: str) -> None:
    other = f"1 - {column}" if column in ("private", "asked") else f"{column} || 'x'"
    change(session / JOURNAL, f"UPDATE replies SET {column} = {other}")  # noqa: S608
    assert len([detail for detail in details(session) if detail.startswith(f"{column} of call")]) == 3


def test_a_request_that_is_no_request_is_named(session: Path) -> None:
    for text in ("{}", "[]", "NaN", '"x"', "7"):
        change(session / JOURNAL, "UPDATE replies SET request = ?", text)
        assert any("is not the one that was asked" in detail for detail in details(session)), text


def test_a_row_that_a_forger_chained_with_less_in_it_is_a_fault(session: Path) -> None:
    Chain(session / AUDIT).append([("document", {"document": "x"}), ("candidate", {}), ("call", {}), ("session", {})])
    assert sum("lacks what such a row holds" in detail for detail in details(session)) == 2


def test_a_library_written_before_the_documents_is_compared_with_the_last_row_of_the_session(session: Path) -> None:
    trail = Chain(session / AUDIT)
    other = {"data": "data-1", "settings": "settings-1", "library": LIBRARY_SET.id}
    audit_session(trail, **other, files={LIBRARY: "0" * 64})
    assert details(session) == ["library.yaml is not the file that the session wrote"]
    audit_session(trail, **other, files=written_files(session, LIBRARY_SET, DOCUMENTS))
    assert verify(session) == []


def test_a_name_in_the_trail_never_leads_out_of_the_folder(session: Path, tmp_path: Path) -> None:
    audit_session(Chain(session / AUDIT), data="", settings="", library=LIBRARY_SET.id, files={"../other": "0"})
    assert details(session) == ["../other cannot be read (No such file or directory); the session wrote it"]


def test_a_factor_of_an_extended_session_is_said_to_lie_there(session: Path) -> None:
    assert trace_factor(session, "calm").session is not None
    with pytest.raises(LLMError, match=r"is in the trail of 'earlier', which this session extends"):
        trace_factor(session, "$volume")
