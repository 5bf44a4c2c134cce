"""Documents on disk, and what was known of them at any moment.

One SQLite file: documents, their passages, and an index of words that were split beforehand, so that Chinese is found
without a dictionary. A row is never changed. A correction is a new row that names the one it replaces; it replaces it
from its own ``available_at`` on, and an earlier moment still sees the old text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from qlib_llm_alpha.documents.chunking import LONGEST, chunks_of
from qlib_llm_alpha.documents.cleaning import sha256_of
from qlib_llm_alpha.documents.clocks import aware, utc_text
from qlib_llm_alpha.documents.document import Document, document_id
from qlib_llm_alpha.documents.row import COLUMNS, document_from, row_of
from qlib_llm_alpha.documents.view import DocumentView
from qlib_llm_alpha.documents.words import words_of
from qlib_llm_alpha.errors import DocumentError

if TYPE_CHECKING:
    import sqlite3

_log = logging.getLogger(__name__)

_FORMAT: Final = 1
_TABLES: Final = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, source TEXT, title TEXT, language TEXT, text TEXT,
    raw_sha256 TEXT, text_sha256 TEXT, published_at TEXT, available_at TEXT NOT NULL, ingested_at TEXT NOT NULL,
    instruments TEXT, private INTEGER, licence_note TEXT, corrects TEXT REFERENCES documents (id)
);
CREATE TABLE chunks (
    row INTEGER PRIMARY KEY, document TEXT NOT NULL REFERENCES documents (id), start INTEGER, "end" INTEGER,
    words INTEGER
);
CREATE INDEX chunks_of_document ON chunks (document);
CREATE VIRTUAL TABLE words USING fts5 (text, content = '', tokenize = 'ascii');
CREATE VIRTUAL TABLE places USING fts5vocab ('words', 'instance');
"""


@dataclass(frozen=True)
class StoredDocument:
    """A document as it lies in the store.

    Parameters
    ----------
    document : Document
    sha256 : str
        Of all that the store holds of it: every field, what it corrects, and the places of its passages.
    """

    document: Document
    sha256: str

    def faults(self) -> list[str]:
        """Return what does not fit within the document itself: its text is not that of its hash, or of its id."""
        one = self.document
        found = []
        if sha256_of(one.text) != one.text_sha256:
            found.append(f"the text of document {one.id} is not the one of its SHA-256")
        if document_id(one.source, one.text) != one.id:
            found.append(f"the id of document {one.id} is not that of its source and text")
        return found


class DocumentStore:
    """An as-of store of documents.

    Parameters
    ----------
    path : Path
        Of the SQLite file, made when it is not there; ``:memory:`` keeps nothing.
    longest : int
        Most characters of a passage.

    Raises
    ------
    DocumentError
        The file is not a store of ours, or this Python's SQLite has no full-text search.
    """

    def __init__(self, path: Path | str, longest: int = LONGEST) -> None:
        import sqlite3

        self._longest = longest
        try:
            self._database = sqlite3.connect(str(path))
            found = int(self._database.execute("PRAGMA user_version").fetchone()[0])
            empty = self._database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0
            if empty:
                self._database.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {_FORMAT};COMMIT;")
        except sqlite3.Error as error:
            raise DocumentError(
                f"the document store {Path(path).name!r} cannot be opened ({error}); expected a file made by this "
                "package and an SQLite with FTS5; move the file away or name another"
            ) from error
        if not empty and found != _FORMAT:
            raise DocumentError(
                f"{Path(path).name!r} is a database of format {found}; expected a document store of format {_FORMAT}; "
                "move it away or name another file"
            )

    def __enter__(self) -> DocumentStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; views of it end."""
        self._database.close()

    def add(self, document: Document, *, corrects: str = "") -> str:
        """Store a document with its passages, in one transaction.

        Parameters
        ----------
        document : Document
        corrects : str
            Id of the stored document that this one replaces, from its own ``available_at`` on.

        Returns
        -------
        str
            Its id. A document that is stored already is left as it was first stored, which makes reading a folder
            again harmless.

        Raises
        ------
        DocumentError
            The same document was stored with other dates, instruments or privacy, or as available later than it is
            now said to be, which would change what an earlier moment saw; or ``corrects`` is not stored, or is itself.
        """
        known = self._row(document.id)
        if known is not None:
            _check_same(document_from(known[:-1]), document, str(known[-1]), corrects)
            return document.id
        if corrects:
            replaced = self._row(corrects)
            if replaced is None:
                raise DocumentError(
                    f"{document.source!r} corrects {corrects!r}, which is not stored; expected the id of a stored "
                    "document; store that one first"
                )
            if document.available_at < document_from(replaced[:-1]).available_at:
                raise DocumentError(
                    f"{document.source!r} corrects {corrects!r} but was available before it; expected a later moment; "
                    "correct the dates or which corrects which"
                )
        with self._database as database:
            self._insert(database, document, corrects)
        _log.debug("stored document %s", document.id)
        return document.id

    def add_all(self, documents: Iterable[Document]) -> list[str]:
        """Store documents in their order and return their ids."""
        return [self.add(document) for document in documents]

    def as_of(self, when: datetime) -> DocumentView:
        """Return what was available at a moment, and nothing else.

        Parameters
        ----------
        when : datetime
            With its zone. A document is seen when its ``available_at`` is at or before it.

        Returns
        -------
        DocumentView
            Of the documents that are stored now; later additions do not change it.

        Raises
        ------
        DocumentError
            The moment has no zone, or the file is damaged.
        """
        with self._told():
            return DocumentView(self._database, aware(when, "as_of"))

    def stored(self) -> list[StoredDocument]:
        """Return every document that was ever stored, corrected ones too, in the order in which they were stored.

        Raises
        ------
        DocumentError
            The file is damaged.
        """
        with self._told():
            rows = self._database.execute(f"SELECT {COLUMNS}, corrects FROM documents ORDER BY row").fetchall()  # noqa: S608
            places = self._database.execute('SELECT document, start, "end", words FROM chunks ORDER BY row').fetchall()
        found = []
        for row in rows:
            document = document_from(row[:-1])
            passages = [list(place[1:]) for place in places if place[0] == document.id]
            content = json.dumps([row, passages], ensure_ascii=True, default=repr)
            found.append(StoredDocument(document, sha256_of(content)))
        return found

    def later_than(self, when: datetime) -> list[Document]:
        """Return the documents that a moment does not see yet, by availability: for a warning, never for a model."""
        rows = self._database.execute(
            f"SELECT {COLUMNS} FROM documents WHERE available_at > ? ORDER BY available_at, id",  # noqa: S608
            (utc_text(when),),
        )
        return [document_from(row) for row in rows]

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM documents").fetchone()[0])

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what is said of a damaged file into an error that says what to do."""
        import sqlite3

        try:
            yield
        except (sqlite3.Error, TypeError) as error:
            raise DocumentError(
                f"the document store cannot be read ({error!s:.120}); expected the file as this package left it; "
                "restore it from a copy"
            ) from error

    def _row(self, document: str) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._database.execute(
            f"SELECT {COLUMNS}, corrects FROM documents WHERE id = ?",  # noqa: S608
            (document,),
        ).fetchone()
        return found

    def _insert(self, database: sqlite3.Connection, document: Document, corrects: str) -> None:
        database.execute(
            f"INSERT INTO documents ({COLUMNS}, corrects) VALUES ({', '.join('?' * 14)})",  # noqa: S608
            (*row_of(document), corrects),
        )
        # What the title says is said of every passage.
        title = words_of(document.title)
        for chunk in chunks_of(document.id, document.text, self._longest):
            words = title + words_of(chunk.text)
            row = database.execute(
                'INSERT INTO chunks (document, start, "end", words) VALUES (?, ?, ?, ?)',
                (chunk.document, chunk.start, chunk.end, len(words)),
            ).lastrowid
            database.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (row, " ".join(words)))


def _check_same(stored: Document, given: Document, corrected: str, corrects: str) -> None:
    before = (stored.published_at, stored.private, stored.instruments, corrected)
    now = (given.published_at, given.private, given.instruments, corrects)
    names = ("published", "private", "instruments", "corrects")
    changed = [name for name, old, new in zip(names, before, now, strict=True) if old != new]
    if given.available_at < stored.available_at:
        changed.append("available_at")
    if changed:
        raise DocumentError(
            f"{given.source!r} is stored already, with other {' and '.join(changed)}; what an earlier moment saw is "
            "never changed; use a new store, or give it as a correction with a text that says what changed"
        )
