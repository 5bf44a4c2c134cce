"""What a document is."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from qlib_llm_alpha.documents.document import Document, Quote, document_id
from qlib_llm_alpha.errors import DocumentError
from tests.documents.making import NOON, day, written


def test_the_same_document_has_the_same_id_anywhere() -> None:
    one = written("Small  stocks\u200b reverse.", "journal", title="a")
    two = written("Small stocks reverse.", "journal", at=day(3), title="b", private=True)
    assert one.id == two.id
    assert written("Small stocks reverse.", "another journal").id != one.id


def test_an_id_is_letters_only_so_that_no_part_of_it_reads_like_a_date() -> None:
    ids = [document_id("source", str(number)) for number in range(200)]
    assert all(one.isalpha() and one.islower() and len(one) == 20 for one in ids)
    assert len(set(ids)) == 200


def test_an_undated_document_is_available_from_its_ingestion_only() -> None:
    document = Document.of("Some text.", source="s", ingested_at=day(5))
    assert document.published_at is None
    assert document.available_at == day(5)


def test_a_filing_that_states_the_end_of_its_period_is_available_from_acceptance() -> None:
    filing = Document.of(
        "Some text.", source="s", published="2015-03-31", accepted="2015-04-28T17:00:00+08:00", ingested_at=day(5)
    )
    assert filing.available_at == datetime(2015, 4, 28, 9, tzinfo=timezone.utc)


def test_the_language_is_guessed_from_the_letters() -> None:
    assert written("毛利率环比改善,EPS 上调").language == "zh"
    assert written("Momentum, or 动量, in small stocks of several markets").language == "en"


def test_what_cannot_be_is_refused() -> None:
    document = written("Some text.")
    with pytest.raises(DocumentError, match="before it is published"):
        replace(document, published_at=day(1))
    with pytest.raises(DocumentError, match="time zone"):
        replace(document, available_at=datetime(2015, 6, 12))
    with pytest.raises(DocumentError, match="no text"):
        written(" \u200b\n ")


def test_a_quote_says_where_it_is_from() -> None:
    assert Quote("abc", 10, 25, "some words here").source == "doc:abc:10-25"


def test_a_naive_moment_of_ingestion_is_refused() -> None:
    with pytest.raises(DocumentError, match="time zone"):
        Document.of("Some text.", source="s", ingested_at=NOON.replace(tzinfo=None))
