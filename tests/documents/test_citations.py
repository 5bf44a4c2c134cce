# ruff: noqa: RUF001 - the quotation marks of several languages
"""Evidence is what the stored text says, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qlib_llm_alpha.documents.citations import find_quote, show, verify
from qlib_llm_alpha.documents.cleaning import clean
from qlib_llm_alpha.documents.document import Document
from qlib_llm_alpha.documents.masking import Names, mask
from qlib_llm_alpha.documents.store import DocumentStore
from qlib_llm_alpha.documents.view import DocumentView
from tests.documents.making import NOON, day, written

TEXT = (
    "Small stocks reverse.\n\nIn June 2015 Apple said that “gross\nmargin” rose.\n\n公司毛利率环比改善,\n净利润下降。"
)
NAMES = Names.of(companies=["Apple Inc."])


def viewed(*documents: Document) -> DocumentView:
    store = DocumentStore(":memory:")
    store.add_all(documents)
    return store.as_of(NOON)


def test_a_quote_is_found_whatever_its_blanks_and_quotation_marks() -> None:
    document = written(TEXT)
    quote = viewed(document).verify(document.id, 'Apple said  that "gross margin" rose')
    assert quote is not None
    assert quote.text == document.text[quote.start : quote.end] == "Apple said that “gross\nmargin” rose"
    assert quote.source == f"doc:{document.id}:{quote.start}-{quote.end}"


def test_blanks_beside_chinese_do_not_count() -> None:
    document = written(TEXT)
    quote = viewed(document).verify(document.id, "毛利率 环比改善，净利润下降")
    assert quote is not None
    assert quote.text == "毛利率环比改善,\n净利润下降"


@pytest.mark.parametrize(
    "invented",
    [
        "Large stocks reverse.",
        "small stocks reverse.",
        "Small stocks do reverse.",
        "reverse",
        "毛利率",
        "",
        "   ",
        "...........................",
        "Small stocks reverse. In July",
    ],
)
def test_what_is_not_said_or_says_nothing_is_no_evidence(invented: str) -> None:
    document = written(TEXT)
    assert viewed(document).verify(document.id, invented) is None


def test_a_document_that_is_unknown_or_not_available_yet_is_no_evidence() -> None:
    now, later = written(TEXT), written(TEXT, "another source", at=day(1))
    view = viewed(now, later)
    assert view.verify(now.id, "Small stocks reverse.") is not None
    assert view.verify(later.id, "Small stocks reverse.") is None
    assert view.verify("invented", "Small stocks reverse.") is None


def test_only_what_this_prompt_showed_counts() -> None:
    one, two = written("Small stocks reverse within a week."), written("Volume leads the price by a day.", "b")
    view = viewed(one, two)
    shown = [show(chunk, NAMES) for chunk in view.chunks(one.id)]
    assert verify(one.id, "Small stocks reverse", shown=shown, view=view) is not None
    assert verify(two.id, "Volume leads the price", shown=shown, view=view) is None
    assert verify(one.id, "Volume leads the price", shown=shown, view=view) is None
    earlier = DocumentStore(":memory:").as_of(NOON)
    assert verify(one.id, "Small stocks reverse", shown=shown, view=earlier) is None


def test_a_quote_of_a_masked_passage_is_verified_on_the_original() -> None:
    filler = "Nothing of note happened here. " * 40
    document = written(f"{filler}\n\n# Results\n\n{TEXT}")
    view = viewed(document)
    shown = [show(chunk, NAMES) for chunk in view.chunks(document.id)]
    assert not any("2015" in passage.text or "Apple" in passage.text for passage in shown)
    quote = verify(document.id, "In [DATE] [COMPANY] said that 'gross margin' rose", shown=shown, view=view)
    assert quote is not None
    assert quote.text == "In June 2015 Apple said that “gross\nmargin” rose"
    assert quote.text == document.text[quote.start : quote.end]
    # What was masked was not shown, so who quotes it remembers it from elsewhere.
    assert verify(document.id, "In June 2015 Apple said that 'gross margin' rose", shown=shown, view=view) is None


def test_a_view_maps_a_quote_of_the_whole_masked_document_too() -> None:
    document = written(TEXT)
    masked = mask(document.text, NAMES)
    quote = viewed(document).verify(document.id, "[COMPANY] said that “gross margin” rose", masked)
    assert quote is not None
    assert quote.text == "Apple said that “gross\nmargin” rose"


def test_masks_alone_are_no_quote() -> None:
    assert find_quote("in [DATE] [COMPANY] [DATE] [CODE] rose", "[DATE] [COMPANY] [DATE] [CODE]") is None


def test_text_of_an_older_store_is_no_evidence_for_this_one() -> None:
    one = written("Small stocks reverse within a week.")
    shown = [show(chunk) for chunk in viewed(one).chunks(one.id)]

    class Changed:
        def text_of(self, document: str) -> str | None:
            return "Another text that stands under the same id." if document == one.id else None

    assert verify(one.id, "Small stocks reverse", shown=shown, view=Changed()) is None


@given(st.text(st.sampled_from("abc xyz\n毛利率,。“”'\"."), min_size=30, max_size=120), st.data())
def test_every_long_part_of_a_text_is_found(raw: str, data: st.DataObject) -> None:
    text = clean(raw).text
    assume(len(text) > 24)
    start = data.draw(st.integers(0, len(text) - 24))
    part = text[start : start + data.draw(st.integers(24, len(text)))]
    assume(len("".join(part.strip("'\"“”. \n").split())) >= 12)
    found = find_quote(text, part)
    assert found is not None
    kept = "".join(one for one in text[slice(*found)] if one.isalnum())
    assert kept == "".join(one for one in part if one.isalnum())
