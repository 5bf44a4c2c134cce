"""The audit trail of a session: who asked what of which model, from which documents, and what became of it.

``audit.jsonl`` is a :class:`~qlib_llm_alpha.chain.Chain` with rows of five kinds: ``document`` for each document that
was stored, ``call`` for each answer, ``failure`` for each call that gave none, ``candidate`` for each formula that was
proposed, with the calls and the quotes it came from and its verdict, and ``session`` for the whole, with the hashes of
the files that it wrote. It holds hashes of prompts and answers and places of quotes, never their text; the text is in
``journal.sqlite`` and in the documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from qlib_llm_alpha import __version__
from qlib_llm_alpha.chain import Chain, Head, Row
from qlib_llm_alpha.errors import ChainError, ExpressionError, LLMError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.llm.journal import Journal, JournalRow, openai_version
from qlib_llm_alpha.llm.reply_text import canonical_json, reply_sha256
from qlib_llm_alpha.llm.request import Request, Usage

JOURNAL: Final = "journal.sqlite"
AUDIT: Final = "audit.jsonl"

CALL: Final = "call"
FAILURE: Final = "failure"
CANDIDATE: Final = "candidate"
DOCUMENT: Final = "document"
SESSION: Final = "session"

_FIELD: Final = re.compile(r"\$[A-Za-z_][A-Za-z_0-9]*")
_DECLARED: Final = ("actor", "knowledge_cutoff", "cost_usd", "code")
"""What a call's row has from elsewhere than the journal."""


@dataclass(frozen=True)
class ModelFacts:
    """What is declared of a model: the last day it may know of, ISO, None if unknown, and the cost of a call in USD."""

    knowledge_cutoff: str | None = None
    cost_usd: float | None = None


CallFacts: TypeAlias = Callable[[str, Usage], ModelFacts]
"""Gives the facts of a model by its name, with the cost of a usage."""


@dataclass(frozen=True)
class QuotePlace:
    """Where a quote stands: document, first character and the one after the last, SHA-256 of the text between."""

    document: str
    start: int
    end: int
    sha256: str


@dataclass(frozen=True)
class DocumentRow:
    """What the trail says of one stored document.

    Parameters
    ----------
    document : str
        Its id.
    available_at : str
        UTC time from which on a trader could have had it.
    private : bool
        Its text must not leave the machine.
    text_sha256 : str
        Of its text as it is stored.
    sha256 : str
        Of everything that the store holds of it: the fields above, its source and dates, its passages.
    """

    document: str
    available_at: str
    private: bool
    text_sha256: str
    sha256: str


@dataclass(frozen=True)
class CandidateRow:
    """What the trail says of one proposed formula.

    Parameters
    ----------
    factor_id, name, expression, proposer : str
        The id is empty for a draft that the factor language refused.
    calls : tuple of str
        Keys of the calls it came from; empty for a proposer that asks no model.
    quotes : tuple of QuotePlace
        Quotes that were found in the documents.
    verdict, reason : str
    """

    factor_id: str
    name: str
    expression: str
    proposer: str
    calls: tuple[str, ...] = ()
    quotes: tuple[QuotePlace, ...] = ()
    verdict: str = ""
    reason: str = ""


@dataclass(frozen=True)
class AuditFault:
    """Something that is not as it was written: the row of the trail, None where none is meant, and a sentence."""

    row: int | None
    detail: str


@dataclass(frozen=True)
class Lineage:
    """Where a factor comes from.

    Parameters
    ----------
    factor_id, name, expression : str
    candidates : tuple of Mapping
        Its rows of the trail, in the order in which they were written, each with ``row`` and ``time``.
    calls : tuple of Mapping
        The rows of the calls it came from, each with ``row`` and ``time``; a call that the trail lacks has its ``key``
        alone.
    prompts : tuple of Mapping
        Name, version and SHA-256 of the prompts of these calls.
    documents : tuple of str
        Ids of the documents that the calls were shown.
    quotes : tuple of Mapping
    session : Mapping or None
        The last row of the session.
    """

    factor_id: str
    name: str
    expression: str
    candidates: tuple[Mapping[str, Any], ...] = field(repr=False)
    calls: tuple[Mapping[str, Any], ...] = field(repr=False)
    prompts: tuple[Mapping[str, Any], ...]
    documents: tuple[str, ...]
    quotes: tuple[Mapping[str, Any], ...]
    session: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def audit_call(trail: Chain, row: JournalRow, facts: CallFacts | None = None, *, actor: str = "session") -> None:
    """Write the row of an answer that the journal holds."""
    trail.append([(CALL, _call_body(row, facts, actor))])


def audit_failure(
    trail: Chain, request: Request, kind: str, usage: Usage | None, facts: CallFacts | None = None
) -> None:
    """Write the row of a call that ended without an answer to keep; ``kind`` is that of its failure."""
    told = _facts(facts, request.model, usage)
    body = {
        "actor": "session",
        "purpose": request.purpose,
        "key": request.key,
        "model": request.model,
        "failure": kind,
        "usage": None if usage is None else asdict(usage),
        "cost_usd": told.cost_usd,
        "code": __version__,
        "openai": openai_version(),
    }
    trail.append([(FAILURE, body)])


def audit_documents(trail: Chain, documents: Iterable[DocumentRow]) -> int:
    """Write a row for each document, except for those that the trail has just so; return how many were new."""
    return _append_new(trail, DOCUMENT, [asdict(document) for document in documents])


def audit_candidates(trail: Chain, candidates: Iterable[CandidateRow]) -> int:
    """Write a row for each candidate, except for those that the trail has just so; return how many were new.

    A resumed session may hand in all of its candidates again.
    """
    return _append_new(trail, CANDIDATE, [_listed(asdict(candidate)) for candidate in candidates])


def audit_session(
    trail: Chain, *, data: str, settings: str, library: str, files: Mapping[str, str] | None = None, extends: str = ""
) -> Head:
    """Write the row of the session, unless the trail ends with it just so; return the head, to keep as an anchor.

    Parameters
    ----------
    trail : Chain
    data : str
        Fingerprint of the search data.
    settings : str
        Hash of the settings.
    library : str
        Id of the admitted factor set; empty when nothing was admitted.
    files : Mapping, optional
        Name to SHA-256 of the files of the folder that stay as they are from now on, such as the library's.
    extends : str
        Name of the folder of the session whose library this one goes on with; empty for none.
    """
    body = {
        "data": data,
        "settings": settings,
        "library": library,
        "files": dict(files or {}),
        "extends": extends,
        "code": __version__,
    }
    with trail.locked():
        last = _last_session(trail.rows(SESSION))
        # An earlier row that says the same does not do: the last one is what the folder is compared with.
        if last is None or canonical_json(last.body) != canonical_json(body):
            trail.append([(SESSION, body)])
        return trail.head()


def reconcile(journal: Journal, trail: Chain, facts: CallFacts | None = None) -> int:
    """Write the rows of answers that the journal holds and the trail does not; return how many there were.

    A process that is killed between the two leaves such an answer.
    """
    keys = journal.reply_keys()
    if not keys:
        return 0
    with trail.locked():
        known = {row.body.get("key") for row in trail.rows(CALL)}
        rows = [row for key in keys if key not in known and (row := journal.row(key)) is not None]
        trail.append([(CALL, _call_body(row, facts, "reconcile")) for row in rows])
    return len(rows)


def verify_session(
    folder: Path,
    *,
    quote_fault: Callable[[QuotePlace], str] | None = None,
    documents: Mapping[str, DocumentRow] | None = None,
    library: str | None = None,
    anchor: Head | None = None,
) -> list[AuditFault]:
    """Compare trail, journal, documents and the files of the session, and name everything that does not fit.

    Parameters
    ----------
    folder : Path
        Of the session.
    quote_fault : callable, optional
        Says what is wrong with a quote, such as that its document is missing; an empty text if nothing is.
    documents : Mapping, optional
        Id to row of the documents that the store of the session holds now; None: they are not compared.
    library : str, optional
        Id of the factor set that the folder holds, empty for none; compared with that of the session's last row.
    anchor : Head, optional
        A head of the trail from an earlier time, kept elsewhere.

    Returns
    -------
    list of AuditFault
        Empty when all is well.

    Raises
    ------
    LLMError
        The folder holds no trail.
    """
    trail = open_trail(folder)
    damage = trail.verify(anchor)
    rows = _readable(trail)
    calls, journal_faults = _kept_calls(folder / JOURNAL)
    faults = [*(AuditFault(fault.row, fault.detail) for fault in damage), *journal_faults]
    for row in rows:
        try:
            if row.kind == CALL:
                details = _call_faults(row, calls)
            elif row.kind == CANDIDATE:
                details = _candidate_faults(row, calls, quote_fault)
            elif row.kind == DOCUMENT and documents is not None:
                details = _document_faults(row, documents)
            else:
                details = []
        except (KeyError, TypeError, AttributeError) as error:
            details = [f"this row of kind {row.kind} lacks what such a row holds ({error!r:.80})"]
        faults += [AuditFault(row.number, detail) for detail in details]
    if not damage:  # else the row may be among those that cannot be read
        faults += [
            AuditFault(None, f"{what} has no row in the trail; resume the session once")
            for what in (
                *_without_row("the answer to", sorted(calls), rows, CALL, "key"),
                *_without_row("document", sorted(documents or ()), rows, DOCUMENT, "document"),
            )
        ]
    last = _last_session(rows)
    told = "" if last is None else str(last.body.get("library"))
    if library is not None and told != library:
        detail = f"the session ended with library {told or 'none'}; the folder has {library or 'none'}"
        faults.append(AuditFault(None if last is None else last.number, detail))
    if last is not None:
        faults += [AuditFault(last.number, detail) for detail in _file_faults(folder, last)]
    return faults


def trace_factor(folder: Path, factor: str) -> Lineage:
    """Follow a factor back to the calls, prompts, documents and quotes it came from.

    Parameters
    ----------
    folder : Path
        Of the session.
    factor : str
        Its name, its id, or a formula in any spelling.

    Raises
    ------
    LLMError
        The folder holds no trail, or the trail knows no such factor.
    ChainError
        The trail is damaged.
    """
    rows = list(open_trail(folder).rows())
    last_session = _last_session(rows)
    candidates = [row for row in rows if row.kind == CANDIDATE]
    found = _matching(candidates, factor)
    if not found:
        before = "" if last_session is None else last_session.body.get("extends", "")
        hint = f"; what was found before is in the trail of {before!r}, which this session extends" if before else ""
        raise LLMError(
            f"the trail of {folder.name!r} knows no factor {factor[:80]!r} among {len(candidates)} candidates; "
            f"expected a name, an id or a formula; `library list` and verdicts.parquet have them{hint}"
        )
    last = found[-1].body
    keys = list(dict.fromkeys(key for row in found for key in row.body["calls"]))
    by_key = {row.body["key"]: _timed(row) for row in rows if row.kind == CALL}
    calls = [by_key.get(key, {"key": key}) for key in keys]
    prompts = {canonical_json(call["prompt"]): call["prompt"] for call in calls if call.get("prompt")}
    quotes = {canonical_json(quote): quote for row in found for quote in row.body["quotes"]}
    return Lineage(
        factor_id=last["factor_id"],
        name=last["name"],
        expression=last["expression"],
        candidates=tuple(_timed(row) for row in found),
        calls=tuple(calls),
        prompts=tuple(prompts.values()),
        documents=tuple(dict.fromkeys(name for call in calls for name in call.get("documents", ()))),
        quotes=tuple(quotes.values()),
        session=None if last_session is None else _timed(last_session),
    )


def open_trail(folder: Path) -> Chain:
    """Return the trail of a session's folder; LLMError when it holds none."""
    trail = Chain(folder / AUDIT)
    if not any(path.exists() for path in trail.files):
        raise LLMError(f"{str(folder)!r} holds no {AUDIT}; expected the folder of a session: name that one")
    return trail


def _call_body(row: JournalRow, facts: CallFacts | None, actor: str) -> dict[str, Any]:
    told = _facts(facts, row.request["model"], row.reply.usage)
    return {
        "actor": actor,
        "purpose": row.purpose,
        "key": row.key,
        "model": row.request["model"],
        "returned_model": row.reply.model,
        "revision": row.request["revision"],
        "knowledge_cutoff": told.knowledge_cutoff,
        "parameters": {name: row.request[name] for name in ("temperature", "max_tokens", "sample")},
        "prompt": None if row.prompt is None else asdict(row.prompt),
        "documents": list(row.documents),
        "as_of": row.as_of,
        "private": row.private,
        "reply_sha256": reply_sha256(row.reply),
        "finish": row.reply.finish,
        "mode": row.reply.mode,
        "attempts": row.reply.attempts,
        "usage": asdict(row.reply.usage),
        "cost_usd": told.cost_usd if row.asked else 0.0,
        "asked": row.asked,
        "asked_at": row.asked_at,
        "endpoint": row.endpoint,
        "code": __version__,
        "openai": row.openai,
    }


def _facts(facts: CallFacts | None, model: str, usage: Usage | None) -> ModelFacts:
    return ModelFacts() if facts is None else facts(model, usage or Usage())


def _append_new(trail: Chain, kind: str, bodies: Sequence[Mapping[str, Any]]) -> int:
    with trail.locked():
        known = {canonical_json(row.body) for row in trail.rows(kind)}
        new = {canonical_json(body): body for body in bodies}
        entries = [(kind, body) for text, body in new.items() if text not in known]
        trail.append(entries)
    return len(entries)


def _listed(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "calls": list(body["calls"]), "quotes": list(body["quotes"])}


def _kept_calls(path: Path) -> tuple[dict[str, JournalRow], list[AuditFault]]:
    """Return the calls of a journal, and what is wrong with it."""
    calls: dict[str, JournalRow] = {}
    faults: list[AuditFault] = []
    if not path.exists():
        return calls, faults
    try:
        with Journal(path) as journal:
            for key in journal.reply_keys():
                try:
                    kept = journal.row(key)
                except LLMError as error:
                    faults.append(AuditFault(None, f"the answer to {key[:12]} cannot be read: {error}"))
                    continue
                if kept is not None:
                    calls[key] = kept
    except LLMError as error:
        faults.append(AuditFault(None, str(error)))
    return calls, faults


def _without_row(what: str, wanted: Iterable[str], rows: Sequence[Row], kind: str, name: str) -> list[str]:
    known = {str(row.body.get(name)) for row in rows if row.kind == kind}
    return [f"{what} {one[:12] if kind == CALL else one}" for one in wanted if one not in known]


def _last_session(rows: Iterable[Row]) -> Row | None:
    last = None
    for row in rows:
        if row.kind == SESSION:
            last = row
    return last


def _file_faults(folder: Path, session: Row) -> list[str]:
    found = []
    files = session.body.get("files")
    for name, told in files.items() if isinstance(files, dict) else ():
        place = folder / Path(name).name  # whatever the trail says, nothing outside of the folder is read
        try:
            now = hashlib.sha256(place.read_bytes()).hexdigest()
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror}); the session wrote it")
            continue
        if now != told:
            found.append(f"{name} is not the file that the session wrote")
    return found


def _document_faults(row: Row, documents: Mapping[str, DocumentRow]) -> list[str]:
    told = DocumentRow(**row.body)
    now = documents.get(told.document)
    if now is None:
        return [f"document {told.document} is not in the store of the session"]
    named = [name for name in ("available_at", "private", "text_sha256") if getattr(now, name) != getattr(told, name)]
    if not named and now.sha256 != told.sha256:
        return [f"document {told.document} in the store is not as it was stored: its source, dates or passages differ"]
    return [f"{name} of document {told.document} in the store is not the one of the trail" for name in named]


def _readable(trail: Chain) -> list[Row]:
    """Return the rows up to the first that is damaged; the damage itself is told of by the chain."""
    rows: list[Row] = []
    try:
        for row in trail.rows():
            rows.append(row)
    except ChainError:
        pass
    return rows


def _call_faults(row: Row, calls: Mapping[str, JournalRow]) -> list[str]:
    key = str(row.body.get("key"))
    kept = calls.get(key)
    if kept is None:
        return [f"the answer to {key[:12]} is not in the journal"]
    if not _is_of_key(kept):
        return [f"the request {key[:12]} in the journal is not the one that was asked"]
    return [
        f"{name} of call {key[:12]} in the journal is not the one of the trail"
        for name, value in _call_body(kept, None, "").items()
        if name not in _DECLARED and value != row.body.get(name)
    ]


def _is_of_key(kept: JournalRow) -> bool:
    try:
        return hashlib.sha256(canonical_json(kept.request).encode("ascii")).hexdigest() == kept.key
    except ValueError:  # a number that no request holds, such as NaN
        return False


def _candidate_faults(
    row: Row, calls: Mapping[str, JournalRow], quote_fault: Callable[[QuotePlace], str] | None
) -> list[str]:
    name = row.body["name"] or row.body["factor_id"]
    lost = [key for key in row.body["calls"] if key not in calls]
    found = [f"{name} comes from call {key[:12]}, which is not in the journal" for key in lost]
    for quote in row.body["quotes"]:
        fault = "" if quote_fault is None else quote_fault(QuotePlace(**quote))
        if fault:
            found.append(f"{name} quotes {quote['document']} from {quote['start']} to {quote['end']}: {fault}")
    return found


def _matching(candidates: Sequence[Row], factor: str) -> list[Row]:
    wanted = factor.strip()
    named = [row for row in candidates if wanted and wanted in _names(row)]
    ids = {row.body["factor_id"] for row in named} - {""}  # a draft that is no formula has none
    if not named:
        try:
            ids = {parse(wanted, fields=_FIELD.findall(wanted)).id}
        except ExpressionError:
            return []
    return [row for row in candidates if row in named or row.body["factor_id"] in ids]


def _names(row: Row) -> tuple[str, ...]:
    return row.body["factor_id"], row.body["name"], row.body["expression"]


def _timed(row: Row) -> dict[str, Any]:
    return {"row": row.number, "time": row.time, **row.body}
