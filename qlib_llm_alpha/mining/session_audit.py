"""What a session's record is checked against beside itself: the documents that were quoted, and the library."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from qlib_llm_alpha.chain import Head
from qlib_llm_alpha.documents.store import DocumentStore
from qlib_llm_alpha.errors import LLMError
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.llm.audit import AuditFault, QuotePlace, verify_session
from qlib_llm_alpha.mining.llm_session import DOCUMENTS
from qlib_llm_alpha.mining.session import LIBRARY


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
        audited, every quote stands where it was found, and the library is the one that the session ended with.

    Raises
    ------
    LLMError
        The folder holds no trail, or its journal cannot be read.
    """
    library = folder / LIBRARY
    named = load_factor_set(library).id if library.exists() else ""
    with ExitStack() as stack:
        view = None
        if (folder / DOCUMENTS).exists():
            store = stack.enter_context(DocumentStore(folder / DOCUMENTS))
            view = store.as_of(datetime.max.replace(tzinfo=timezone.utc))

        def quote_fault(quote: QuotePlace) -> str:
            text = None if view is None else view.text_of(quote.document)
            if text is None:
                return f"document {quote.document} is not in the store of the session"
            found = hashlib.sha256(text[quote.start : quote.end].encode("utf-8")).hexdigest()
            if found != quote.sha256:
                return f"characters {quote.start} to {quote.end} of document {quote.document} are not what was quoted"
            return ""

        return verify_session(folder, quote_fault=quote_fault, library=named, anchor=_anchor(folder))


def _anchor(folder: Path) -> Head | None:
    """Return the head of the trail that the finished session wrote down; None for one that is not finished."""
    place = folder / "session.json"
    if not place.exists():
        return None
    try:
        said = json.loads(place.read_text(encoding="utf-8")).get("audit")
        return None if said is None else Head(int(said["count"]), str(said["hash"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LLMError(
            f"{str(place)!r} cannot be read ({error}); expected what the session wrote; restore it from a copy"
        ) from error
