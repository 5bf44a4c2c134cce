"""What a moment sees."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.documents.document import Chunk, Document
from qlib_llm_alpha.documents.store import DocumentStore
from qlib_llm_alpha.errors import DocumentError
from tests.documents.making import NOON, day, written

WORDS = ("momentum", "reversal", "volume", "margin", "毛利", "动量", "毛利率", "量价")


def stored(*documents: Document) -> DocumentStore:
    store = DocumentStore(":memory:")
    store.add_all(documents)
    return store


def test_a_document_comes_back_as_it_went_in(tmp_path: Path) -> None:
    document = written("First.\n\nSecond.", title="T", instruments=("SH600000",), private=True, licence_note="ours")
    with DocumentStore(tmp_path / "documents.sqlite") as store:
        assert store.add(document) == document.id
    with DocumentStore(tmp_path / "documents.sqlite") as store:
        view = store.as_of(NOON)
        assert view.documents() == [document]
        assert view.get(document.id) == document
        assert view.chunks(document.id) == [Chunk(document.id, 0, 15, "First.\n\nSecond.")]
        assert (len(store), len(view)) == (1, 1)


def test_a_document_is_seen_from_the_moment_it_is_available() -> None:
    store = stored(written("Some text."))
    moment = timedelta(microseconds=1)
    assert len(store.as_of(NOON)) == 1
    assert len(store.as_of(NOON - moment)) == 0
    assert [one.text for one in store.later_than(NOON - moment)] == ["Some text."]
    assert store.later_than(NOON) == []


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(DocumentError, match="time zone"):
        stored().as_of(datetime(2015, 6, 12))


def test_a_correction_replaces_from_its_own_moment_on() -> None:
    old, new, newest = written("Old text."), written("New text.", at=day(2)), written("Newest text.", at=day(4))
    store = stored(old)
    store.add(new, corrects=old.id)
    store.add(newest, corrects=new.id)
    seen = [[one.text for one in store.as_of(day(number)).documents()] for number in (0, 1, 2, 3, 4)]
    assert seen == [["Old text."], ["Old text."], ["New text."], ["New text."], ["Newest text."]]
    assert store.as_of(day(4)).search("old text", 5)[0][0].document == newest.id
    with pytest.raises(DocumentError, match="corrected by then"):
        store.as_of(day(2)).get(old.id)


def test_a_correction_of_nothing_or_of_something_later_is_refused() -> None:
    store = stored(written("Later text.", at=day(5)))
    with pytest.raises(DocumentError, match="not stored"):
        store.add(written("New text."), corrects="nobody")
    with pytest.raises(DocumentError, match="before it"):
        store.add(written("New text."), corrects=written("Later text.", at=day(5)).id)


def test_storing_again_is_harmless_and_never_changes_what_was_seen() -> None:
    store = stored(written("Some text."))
    store.add(written("Some text."))
    assert len(store) == 1
    undated = Document.of("Undated text.", source="s", ingested_at=day(1))
    store.add(undated)
    store.add(Document.of("Undated text.", source="s", ingested_at=day(9)))
    assert store.as_of(day(1)).get(undated.id).available_at == day(1)


@pytest.mark.parametrize(
    ("again", "says"),
    [
        (written("Some text.", at=day(-1)), "published and available_at"),
        (written("Some text.", private=True), "private"),
        (written("Some text.", instruments=("SH600000",)), "instruments"),
    ],
)
def test_the_same_document_with_another_past_is_refused(again: Document, says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        stored(written("Some text.")).add(again)


def test_a_view_does_not_change_when_more_is_stored() -> None:
    store = stored(written("Momentum in small stocks."))
    view = store.as_of(day(9))
    before = view.search("momentum")
    store.add(written("Momentum and momentum again.", at=day(1)))
    assert view.search("momentum") == before
    assert len(store.as_of(day(9))) == 2


TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), max_size=8, unique=True)


@settings(deadline=None)
@given(TEXTS, TEXTS, st.sampled_from(("momentum 毛利率", "动量 volume", "毛利", "reversal margin momentum")))
def test_later_documents_change_no_score(early: list[str], late: list[str], query: str) -> None:
    first = [written(text, f"early {text}") for text in early]
    store, never = stored(*first), stored(*first)
    store.add_all(written(text, f"late {text}", at=day(1)) for text in late)
    assert store.as_of(NOON).search(query, 50) == never.as_of(NOON).search(query, 50)


def test_twenty_later_documents_would_have_changed_the_scores_of_a_full_text_engine() -> None:
    early = [written(f"momentum report {number}", f"early {number}") for number in range(5)]
    store = stored(*early)
    ranking = "SELECT rowid, bm25(words) FROM words WHERE words MATCH 'momentum' AND rowid <= 5"
    before = store._database.execute(ranking).fetchall()
    scores = store.as_of(NOON).search("momentum")
    store.add_all(written(f"price note {number}", f"late {number}", at=day(1)) for number in range(20))
    assert store._database.execute(ranking).fetchall() != before
    assert store.as_of(NOON).search("momentum") == scores


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("this is no database, but it is long enough to be looked at as one")
    with pytest.raises(DocumentError, match="cannot be opened"):
        DocumentStore(tmp_path / "a.sqlite")
    other = sqlite3.connect(tmp_path / "b.sqlite")
    other.execute("CREATE TABLE things (name)")
    other.commit()
    other.close()
    with pytest.raises(DocumentError, match="format 0"):
        DocumentStore(tmp_path / "b.sqlite")


def test_text_with_signs_of_sql_is_text() -> None:
    document = written("'); DROP TABLE documents; -- \" OR 1=1 *")
    store = stored(document)
    assert store.as_of(NOON).get(document.id).text == document.text
    assert store.as_of(NOON).search("drop'); -- NEAR/2 \"*") != []
