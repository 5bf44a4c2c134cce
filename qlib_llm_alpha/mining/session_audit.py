"""What a session's record is checked against beside itself: its documents, and its library."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from qlib_llm_alpha.chain import Head
from qlib_llm_alpha.documents.clocks import utc_text
from qlib_llm_alpha.documents.store import DocumentStore, StoredDocument
from qlib_llm_alpha.errors import DocumentError, LibraryError
from qlib_llm_alpha.library.factor_set import FactorSet, load_factor_set
from qlib_llm_alpha.llm.audit import AuditFault, CandidateRow, DocumentRow, QuotePlace, open_trail, verify_session
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.drafts import Rejection
from qlib_llm_alpha.mining.session import LIBRARY, Session

DOCUMENTS: Final = "documents.sqlite"
_SESSION: Final = "session.json"
QUOTE: Final = re.compile(r"doc:([a-z]+):(\d+)-(\d+)")


def document_rows(store: DocumentStore) -> list[DocumentRow]:
    """Return what the trail says of the documents of a store."""
    return [_document_row(one) for one in store.stored()]


def candidate_rows(
    session: Session,
    proposer: str,
    rejections: Iterable[Rejection],
    text_of: Callable[[str], str | None] = lambda document: None,
    left_out: Callable[[Candidate], str] = lambda candidate: "not_shortlisted",
) -> list[CandidateRow]:
    """Return what the trail says of everything that a session proposed.

    Parameters
    ----------
    session : Session
    proposer : str
        Of the drafts that never became candidates.
    rejections : iterable of Rejection
        Those drafts.
    text_of : callable
        The text of a document by its id, for the hashes of quotes.
    left_out : callable
        Why a candidate was tried and not judged.
    """
    judged = {one.id: one.verdict for one in session.admission.judged}
    rows = []
    for one in () if session.exploration is None else session.exploration.found:
        verdict = judged.get(one.candidate.expression.id)
        rows.append(
            CandidateRow(
                factor_id=one.candidate.expression.id,
                name=one.candidate.name,
                expression=one.candidate.expression.text,
                proposer=one.candidate.proposer,
                calls=one.candidate.calls,
                quotes=tuple(_quotes(one.candidate, text_of)),
                verdict="rejected" if verdict is None else verdict.word,
                reason=(one.reason or left_out(one.candidate)) if verdict is None else verdict.reason,
            )
        )
    rows += [
        CandidateRow("", one.name, one.text, proposer, one.calls, verdict="rejected", reason=one.reason)
        for one in rejections
        # What ended while ideas were sorted never was a formula.
        if one.text and one.step != "categorise"
    ]
    return rows


def _quotes(candidate: Candidate, text_of: Callable[[str], str | None]) -> Iterator[QuotePlace]:
    for source in candidate.sources:
        place = QUOTE.fullmatch(source)
        text = None if place is None else text_of(place.group(1))
        if place is not None and text is not None:
            start, end = int(place.group(2)), int(place.group(3))
            yield QuotePlace(place.group(1), start, end, hashlib.sha256(text[start:end].encode("utf-8")).hexdigest())


def written_files(folder: Path, library: FactorSet | None, *names: str) -> dict[str, str]:
    """Return the SHA-256 of the files that a session leaves as they are from now on, by their names.

    Parameters
    ----------
    folder : Path
        Of the session.
    library : FactorSet or None
        What it is about to write; None when nothing was admitted.
    names : str
        Other files; one that is not there counts for nothing.
    """
    there = [name for name in names if (folder / name).exists()]
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in there}
    if library is not None:
        files[LIBRARY] = hashlib.sha256(library.to_yaml().encode("utf-8")).hexdigest()
    return files


def verify(folder: Path) -> list[AuditFault]:
    """Compare trail, journal, documents and library of a session, and name everything that does not fit.

    Parameters
    ----------
    folder : Path
        Of a session that asked a model.

    Returns
    -------
    list of AuditFault
        Empty when all is well: no row of the trail was changed, moved or removed, every answer is the one that was
        audited, every document is the one that was stored, every quote stands where it was found, and library, drafts
        and the transcript of a chat are those that the session ended with, to the byte. Figures in ``session.json``,
        ``report.md`` and the tables are not compared.

    Raises
    ------
    LLMError
        The folder holds no trail.
    """
    open_trail(folder)
    stored, faults = _stored(folder / DOCUMENTS)
    library, library_faults = _library(folder / LIBRARY)
    anchor, anchor_faults = _anchor(folder / _SESSION)

    def quote_fault(quote: QuotePlace) -> str:
        if stored is None:
            return ""  # that no document can be read is a fault of its own
        if quote.document not in stored:
            return f"document {quote.document} is not in the store of the session"
        text = stored[quote.document].document.text[quote.start : quote.end]
        if hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != quote.sha256:
            return f"characters {quote.start} to {quote.end} of document {quote.document} are not what was quoted"
        return ""

    rows = None if stored is None else {name: _document_row(one) for name, one in stored.items()}
    found = verify_session(folder, quote_fault=quote_fault, documents=rows, library=library, anchor=anchor)
    return [*found, *(AuditFault(None, detail) for detail in (*faults, *library_faults, *anchor_faults))]


def _stored(path: Path) -> tuple[Mapping[str, StoredDocument] | None, list[str]]:
    """Return the documents by their ids, None when they cannot be read, and what is wrong with them."""
    if not path.exists():
        return {}, []
    try:
        with DocumentStore(path) as store:
            found = store.stored()
    except DocumentError as error:
        return None, [str(error)]
    return {one.document.id: one for one in found}, [fault for one in found for fault in one.faults()]


def _library(path: Path) -> tuple[str | None, list[str]]:
    """Return the id of the library, None when it cannot be read, and what is wrong with it."""
    if not path.exists():
        return "", []
    try:
        return load_factor_set(path).id, []
    except LibraryError as error:
        return None, [str(error)]


def _anchor(place: Path) -> tuple[Head | None, list[str]]:
    """Return the head of the trail that the finished session wrote down; None for one that is not finished."""
    if not place.exists():
        return None, []
    try:
        said = json.loads(place.read_text(encoding="utf-8"))["audit"]
        return Head(int(said["count"]), str(said["hash"])), []
    except (OSError, ValueError, KeyError, TypeError) as error:
        detail = f"{place.name} does not name the head of the trail ({error!r:.80}); expected what the session wrote"
        return None, [detail]


def _document_row(one: StoredDocument) -> DocumentRow:
    document = one.document
    return DocumentRow(
        document=document.id,
        available_at=utc_text(document.available_at),
        private=document.private,
        text_sha256=document.text_sha256,
        sha256=one.sha256,
    )
