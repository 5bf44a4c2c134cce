"""Documents, a store and a factory for the tests of this room."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from qlib_llm_alpha.documents.document import Document
from qlib_llm_alpha.documents.masking import Names
from qlib_llm_alpha.documents.store import DocumentStore
from qlib_llm_alpha.documents.view import DocumentView
from qlib_llm_alpha.mining.asking import Asking, LanguageModel
from qlib_llm_alpha.mining.blind import Blind
from qlib_llm_alpha.mining.drafts import InnerLoop, ValueCheck
from qlib_llm_alpha.mining.factory import SeedFactory
from qlib_llm_alpha.mining.steps import StepStore

FIELDS = ("$open", "$high", "$low", "$close", "$volume")
NOON = datetime(2018, 6, 1, 12, tzinfo=timezone.utc)
COMPANY = "Clearwater Bearings"


def document(text: str, day: int = 0, *, private: bool = False) -> Document:
    """Return a document published so many days after the first of 2018."""
    published = date(2018, 1, 1) + timedelta(days=day)
    return Document.of(text, source=f"note {published}", ingested_at=NOON, published=published, private=private)


def view_of(folder: Path, *documents: Document) -> DocumentView:
    """Return a store in a folder, with further documents, as of a day when all of them were there."""
    folder.mkdir(parents=True, exist_ok=True)
    store = DocumentStore(folder / "documents.sqlite")
    for one in documents:
        store.add(one)
    return store.as_of(NOON)


def names() -> Names:
    """Return the names that the tests mask."""
    return Names.of(instruments=["SH600519"], companies=[COMPANY])


def factory(
    client: LanguageModel,
    folder: Path,
    *,
    check_values: ValueCheck | None = None,
    blind: bool = True,
    **settings: Any,
) -> SeedFactory:
    """Return a factory that keeps its steps in a folder."""
    asking = Asking(client, Blind(names(), blind=blind), as_of="2018-06-01")
    loop = InnerLoop(asking, FIELDS, check_values=check_values)
    return SeedFactory(asking, loop, StepStore(folder / "steps"), **settings)
