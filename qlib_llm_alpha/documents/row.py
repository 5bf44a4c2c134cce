"""How a document stands in a row of the store."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

from qlib_llm_alpha.documents.clocks import utc_text
from qlib_llm_alpha.documents.document import Document
from qlib_llm_alpha.errors import DocumentError

COLUMNS: Final = (
    "id, source, title, language, text, raw_sha256, text_sha256, published_at, available_at, ingested_at, "
    "instruments, private, licence_note"
)


def row_of(document: Document) -> tuple[Any, ...]:
    """Return the values of a document, in the order of ``COLUMNS``; moments in UTC."""
    return (
        document.id,
        document.source,
        document.title,
        document.language,
        document.text,
        document.raw_sha256,
        document.text_sha256,
        None if document.published_at is None else utc_text(document.published_at),
        utc_text(document.available_at),
        utc_text(document.ingested_at),
        json.dumps(document.instruments),
        int(document.private),
        document.licence_note,
    )


def document_from(row: tuple[Any, ...]) -> Document:
    """Return the document of such values.

    Raises
    ------
    DocumentError
        Somebody else wrote into the row: a moment, a list or a text is none.
    """
    name, source, title, language, text, raw, cleaned, published, available, ingested, instruments, private, note = row
    try:
        return Document(
            id=_text(name),
            source=_text(source),
            title=_text(title),
            language=_text(language),
            text=_text(text),
            raw_sha256=_text(raw),
            text_sha256=_text(cleaned),
            published_at=None if published is None else datetime.fromisoformat(published),
            available_at=datetime.fromisoformat(available),
            ingested_at=datetime.fromisoformat(ingested),
            instruments=tuple(json.loads(instruments)),
            private=bool(private),
            licence_note=_text(note),
        )
    except (ValueError, TypeError) as error:
        raise DocumentError(
            f"document {name!r:.40} of the store cannot be read ({error!s:.300}); expected the row as it was stored; "
            "restore the file from a copy"
        ) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value
