"""Passages with offsets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.documents.chunking import chunks_of
from qlib_llm_alpha.documents.cleaning import clean
from qlib_llm_alpha.errors import DocumentError

TEXTS = st.text(st.sampled_from("ab c.\n\n#!。;毛利率一、 1第章"), max_size=400)


@given(TEXTS, st.integers(20, 90))
def test_every_passage_is_the_text_at_its_offsets_and_nothing_is_lost(raw: str, longest: int) -> None:
    text = clean(raw).text
    chunks = chunks_of("d", text, longest)
    assert all(text[one.start : one.end] == one.text for one in chunks)
    assert all(0 < len(one.text) <= longest and one.text == one.text.strip() for one in chunks)
    assert all(one.end <= two.start for one, two in pairwise(chunks))
    kept = {at for one in chunks for at in range(one.start, one.end)}
    assert all(letter.isspace() or at in kept for at, letter in enumerate(text))


def test_a_heading_begins_a_passage_and_short_paragraphs_share_one() -> None:
    text = "# One\n\nFirst.\n\nSecond.\n\n## Two\n\nThird.\n\n三、盈利预测\n\n维持推荐。"
    assert [one.text for one in chunks_of("d", text)] == [
        "# One\n\nFirst.\n\nSecond.",
        "## Two\n\nThird.",
        "三、盈利预测\n\n维持推荐。",
    ]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    text = "Gross margin rose in the quarter. Costs fell by a tenth. Cash was kept."
    assert [one.text for one in chunks_of("d", text, 60)] == [
        "Gross margin rose in the quarter. Costs fell by a tenth.",
        "Cash was kept.",
    ]
    assert [
        one.text for one in chunks_of("d", "毛利率环比改善幅度较大超出预期。净利润下降但好于预期。维持推荐。", 30)
    ] == [
        "毛利率环比改善幅度较大超出预期。净利润下降但好于预期。",
        "维持推荐。",
    ]


def test_an_empty_text_has_no_passages_and_passages_too_short_are_refused() -> None:
    assert chunks_of("d", "") == []
    with pytest.raises(DocumentError, match="20"):
        chunks_of("d", "text", 5)
