"""A document, a passage of it, and a quote from it, as values."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from qlib_llm_alpha.documents.cleaning import clean, is_cjk, sha256_of
from qlib_llm_alpha.documents.clocks import CHINA, NO_DELAY, availability, aware, moment_of
from qlib_llm_alpha.errors import DocumentError

_log = logging.getLogger(__name__)

_ID_LENGTH: Final = 20
_LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")


@dataclass(frozen=True)
class Document:
    """A text with its provenance and its three clocks.

    Parameters
    ----------
    id : str
        20 letters from the SHA-256 of source and cleaned text, so that the same document has the same id anywhere. No
        digits, so that no part of an id reads like a date or a code.
    source : str
        Who or what it comes from, such as a file's name.
    title, language : str
        Language is ``zh`` or ``en`` where nobody said otherwise.
    text : str
        Cleaned; every offset counts characters of it.
    raw_sha256, text_sha256 : str
        Of what was read and of ``text``.
    published_at : datetime, optional
        As the source says; None where it does not.
    available_at : datetime
        From when on a trader could have had it; the only clock that decides what a date sees.
    ingested_at : datetime
        When it was read.
    instruments : tuple of str
        What it is about, where that is known.
    private : bool
        Its text must not leave this machine.
    licence_note : str

    Raises
    ------
    DocumentError
        A moment without a zone, available before published, or no text.
    """

    id: str
    source: str
    title: str
    language: str
    text: str
    raw_sha256: str
    text_sha256: str
    published_at: datetime | None
    available_at: datetime
    ingested_at: datetime
    instruments: tuple[str, ...] = ()
    private: bool = False
    licence_note: str = ""

    def __post_init__(self) -> None:
        aware(self.available_at, f"available_at of {self.title!r}")
        aware(self.ingested_at, f"ingested_at of {self.title!r}")
        if not self.text:
            raise DocumentError(f"{self.source!r} holds no text; expected some words; give another file or remove it")
        if self.published_at is not None and self.available_at < aware(self.published_at, "published_at"):
            raise DocumentError(
                f"{self.source!r} is available at {self.available_at} but published at {self.published_at}; nothing "
                "can be had before it is published; correct one of them"
            )

    @classmethod
    def of(
        cls,
        raw: str,
        *,
        source: str,
        ingested_at: datetime,
        title: str = "",
        published: object = None,
        accepted: object = None,
        delay: timedelta = NO_DELAY,
        zone: str = CHINA,
        language: str = "",
        instruments: tuple[str, ...] = (),
        private: bool = False,
        licence_note: str = "",
        raw_sha256: str = "",
    ) -> Document:
        """Clean a text and date it.

        Parameters
        ----------
        raw : str
            As it came.
        source, title, language, instruments, private, licence_note
            As the fields; an unknown language is guessed, a missing title is the source.
        ingested_at : datetime
            With its zone. Without ``published`` and ``accepted`` the document is available from here on.
        published, accepted : datetime, date, int or str, optional
            As :func:`~qlib_llm_alpha.documents.clocks.moment_of` reads them: a day counts from its end. A filing is
            available from its acceptance, whatever ``published`` says.
        delay : timedelta
            Of the vendor.
        zone : str
            In which a date without a time is read.
        raw_sha256 : str
            Of the file's bytes, where there was a file.

        Raises
        ------
        DocumentError
            No text, or a date that cannot be read.
        """
        cleaned = clean(raw)
        if cleaned.capped:
            _log.warning("%r is longer than %d characters; the rest is left out", source, len(cleaned.text))
        taken = None if accepted is None else moment_of(accepted, zone, "accepted")
        said = None if published is None else moment_of(published, zone, "published")
        if taken is not None and (said is None or said > taken):
            said = taken
        return cls(
            id=document_id(source, cleaned.text),
            source=source,
            title=" ".join(clean(title).text.split()) or source,
            language=language or _language(cleaned.text),
            text=cleaned.text,
            raw_sha256=raw_sha256 or cleaned.raw_sha256,
            text_sha256=cleaned.text_sha256,
            published_at=said,
            available_at=availability(published=said, accepted=taken, ingested=ingested_at, delay=delay),
            ingested_at=ingested_at,
            instruments=instruments,
            private=private,
            licence_note=licence_note,
        )


@dataclass(frozen=True)
class Chunk:
    """A passage: ``text`` is ``Document.text[start:end]`` of the document with this id."""

    document: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Quote:
    """A quote that was found: ``text`` is ``Document.text[start:end]``, whatever spelling was asked for."""

    document: str
    start: int
    end: int
    text: str

    @property
    def source(self) -> str:
        """Return the quote as factors carry it: ``doc:<id>:<start>-<end>``."""
        return f"doc:{self.document}:{self.start}-{self.end}"


def document_id(source: str, text: str) -> str:
    """Return the id of a document from its source and its cleaned text."""
    return sha256_of(f"{source}\0{text}")[:_ID_LENGTH].translate(_LETTERS)


def _language(text: str) -> str:
    letters = [one for one in text[:20_000] if one.isalpha()]
    # One Chinese character says about as much as an English word of four letters.
    return "zh" if 4 * sum(map(is_cjk, letters)) > len(letters) else "en"
