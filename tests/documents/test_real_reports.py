"""Two hundred real reports: stored, masked, quoted."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import pytest

from qlib_llm_alpha.documents.citations import show, verify
from qlib_llm_alpha.documents.document import Document
from qlib_llm_alpha.documents.masking import Names, find_leaks, mask
from qlib_llm_alpha.documents.store import DocumentStore

DATA = Path(os.environ.get("QLIB_LLM_ALPHA_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
REPORTS = DATA / "text" / "cn_research_reports_2009.parquet"
INSTRUMENTS = DATA / "cn" / "instrument_info.parquet"
NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)

pytestmark = pytest.mark.skipif(
    not (REPORTS.is_file() and INSTRUMENTS.is_file()),
    reason="real texts are absent; set QLIB_LLM_ALPHA_REAL_DATA to their folder",
)


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str, str, str, object]]:
    frame = pd.read_parquet(REPORTS).head(200)
    return list(frame[["source_id", "title", "body", "instrument", "date"]].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def documents(rows: list[tuple[str, str, str, str, object]]) -> list[Document]:
    return [
        Document.of(
            f"{title}\n\n{body}", source=str(name), title=title, published=day, instruments=(code,), ingested_at=NOW
        )
        for name, title, body, code, day in rows
    ]


@pytest.fixture(scope="module")
def names(rows: list[tuple[str, str, str, str, object]]) -> Names:
    listed = pd.read_parquet(INSTRUMENTS)
    # Names of that time stand before the colon of a title.
    of_titles = [re.split("[:：]", row[1])[0].strip() for row in rows if re.search("^[^:：]{2,5}[:：]", row[1])]  # noqa: RUF001
    return Names.of(instruments=[*listed.instrument, *(row[3] for row in rows)], companies=[*listed.name, *of_titles])


def test_no_code_no_date_and_no_name_is_left_by_rules_written_apart(documents: list[Document], names: Names) -> None:
    dates = re.compile(
        r"(?:19|20)\d\d\s?年|(?:19|20)\d\d[-/.]\d{1,2}[-/.]\d{1,2}(?!\d)|(?<!\d)1?\d月\d{1,2}日|(?<!\d)0\d年|"
        r"(?<![\d.,])20[01]\d(?=[QE]|一|三|中|上|下)|[1-4]Q0\d|(?<![\d.,])20(?:09|10|11)(?![\d.,%万亿元股])"
    )
    for document in documents:
        masked = mask(document.text, names)
        code = document.instruments[0][2:]
        assert not re.search(rf"(?<!\d){code}(?!\d)|S[HZ]{code}", masked.text), document.source
        found = dates.search(masked.text)
        assert found is None, (document.source, masked.text[max(0, found.start() - 15) : found.end() + 5])
        assert find_leaks(masked.text, names) == []
        company = re.split("[::]", document.title)[0]
        assert company not in masked.text or company not in names.companies


def test_most_of_a_report_is_left_to_read(documents: list[Document], names: Names) -> None:
    for document in documents:
        if len(document.text) < 300:
            continue  # a title without its report
        spans = mask(document.text, names).spans
        assert sum(span.original_end - span.original_start for span in spans) < 0.25 * len(document.text)


def test_a_quote_of_each_masked_report_verifies_on_the_original(documents: list[Document], names: Names) -> None:
    store = DocumentStore(":memory:")
    store.add_all(documents)
    view = store.as_of(NOW)
    assert len(view) == len({document.id for document in documents})
    assert len(store.as_of(datetime(2009, 7, 1, tzinfo=timezone.utc))) == 0
    for document in view.documents():
        shown = [show(chunk, names) for chunk in view.chunks(document.id)]
        longest = max(shown, key=lambda passage: len(passage.text))
        middle = max(20, len(longest.text) // 2)
        said = longest.text[middle - 20 : middle + 20]
        quote = verify(document.id, said, shown=shown, view=view)
        assert quote is not None
        assert quote.text == document.text[quote.start : quote.end]
        assert verify(document.id, said[:20] + "绝无此事" + said[20:], shown=shown, view=view) is None
