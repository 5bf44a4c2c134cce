from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.documents.document import Document
from qlib_llm_alpha.errors import PromptError
from qlib_llm_alpha.llm.request import Message
from qlib_llm_alpha.mining.answers import EvidenceItem
from qlib_llm_alpha.mining.blind import Blind, Evidence, Shown
from tests.mining.documents import COMPANY, document, names, view_of

TEXT = f"""On 2015-06-12 shares of {COMPANY} (SH600519) fell with the CSI 300.

Over the 20 days before, trading volume had doubled. In June 2015 this was seen in many stocks."""
MASKED_QUOTE = "trading volume had doubled. In [DATE] this was seen in many stocks"


def shown(blind: Blind, one: Document, label: str = "D1") -> Shown:
    return blind.show(one, 0, len(one.text), label)


def verified(tmp_path: Path, *quotes: tuple[str, str], blind: bool = True) -> Evidence:
    one = document(TEXT)
    sight = Blind(names(), blind=blind)
    items = [EvidenceItem(document=label, quote=quote) for label, quote in quotes]
    return sight.verify(items, [shown(sight, one)], view_of(tmp_path, one))


def test_dates_codes_companies_and_indices_are_masked_and_windows_stay() -> None:
    section = shown(Blind(names()), document(TEXT)).section
    for word in ("2015", "June", "600519", COMPANY, "CSI"):
        assert word not in section
    assert "Over the 20 days before" in section


def test_what_is_shown_passes_the_scan() -> None:
    blind = Blind(names())
    blind.scan("filter", (Message("user", shown(blind, document(TEXT)).section),))


@pytest.mark.parametrize(
    "leak", ["on 2015-06-12", "in 2015", "SH600519", COMPANY, "the CSI 300", "沪深300", "2015年6月", "600519.SH"]
)
def test_a_message_that_leaks_is_refused_and_the_step_is_named(leak: str) -> None:
    messages = (Message("system", "You help."), Message("user", f"Moves {leak} went back."))
    with pytest.raises(PromptError, match=r"user turn of a review prompt.*blind=False"):
        Blind(names()).scan("review", messages)
    Blind(names(), blind=False).scan("review", messages)


def test_a_quote_of_masked_text_is_mapped_back_to_the_stored_text(tmp_path: Path) -> None:
    found = verified(tmp_path, ("D1", MASKED_QUOTE))
    (source,) = found.sources
    start, end = map(int, source.rsplit(":", 1)[1].split("-"))
    text = document(TEXT).text
    assert text[start:end] == "trading volume had doubled. In June 2015 this was seen in many stocks"
    assert found.dropped == 0


def test_a_quote_is_found_whatever_its_line_ends(tmp_path: Path) -> None:
    assert verified(tmp_path, ("D1", "before, trading\n   volume had doubled")).dropped == 0


@pytest.mark.parametrize(
    ("label", "quote"),
    [
        ("D1", "trading volume had tripled before the fall"),
        ("D2", "trading volume had doubled"),
        ("", "trading volume had doubled"),
        ("D1", ""),
        ("D1", "fell"),
        ("D1", "In June 2015 this was seen in many stocks"),
        ("D1", f"shares of {COMPANY}"),
    ],
)
def test_what_was_not_shown_is_dropped_and_counted(tmp_path: Path, label: str, quote: str) -> None:
    assert verified(tmp_path, (label, quote)) == Evidence((), 1)


def test_a_quote_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    found = verified(tmp_path, ("D1", MASKED_QUOTE), ("D1", MASKED_QUOTE), ("D1", "nobody ever wrote this"))
    assert (len(found.sources), found.dropped) == (1, 1)


def test_the_id_of_the_document_is_no_label(tmp_path: Path) -> None:
    assert verified(tmp_path, (document(TEXT).id, "trading volume had doubled")).sources == ()


def test_a_document_that_the_view_does_not_know_is_not_believed(tmp_path: Path) -> None:
    blind, one = Blind(names()), document(TEXT)
    item = EvidenceItem(document="D1", quote="trading volume had doubled")
    assert blind.verify([item], [shown(blind, one)], view_of(tmp_path)) == Evidence((), 1)


def test_a_prompt_that_is_not_blind_shows_the_text_and_still_verifies(tmp_path: Path) -> None:
    blind = Blind(names(), blind=False)
    assert TEXT in shown(blind, document(TEXT)).section
    assert verified(tmp_path, ("D1", "In June 2015 this was seen"), blind=False).dropped == 0
    assert verified(tmp_path, ("D1", "In June 2016 this was seen"), blind=False).dropped == 1


def test_the_marks_of_a_section_hold_no_digit_but_the_labels() -> None:
    first = shown(Blind(names()), document(TEXT)).section.splitlines()[0]
    assert first.startswith("BEGIN DOCUMENT D1 ")
    assert first.removeprefix("BEGIN DOCUMENT D1 ").isalpha()


@given(st.text(min_size=1, max_size=80).filter(lambda text: text.strip().isprintable() and bool(text.strip())))
def test_whatever_goes_out_again_has_no_leak_left(text: str) -> None:
    blind = Blind(names())
    blind.scan("review", (Message("user", blind.text(f"{text} 2015-06-12 {COMPANY} SH600519 {text}")),))
