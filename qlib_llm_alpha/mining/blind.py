"""Blind prompts: what a model is shown does not say when, where or about whom it was written.

A model that recognises a year or a company may answer from memory of what came after. Documents are therefore masked,
and every message is scanned last, when nothing is added any more: one that still leaks is never sent. Quotes that a
model gives on masked text are found there, mapped back and verified on the original.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qlib_llm_alpha.documents.masking import Masked, Names, find_leaks, mask
from qlib_llm_alpha.documents.quoting import find_quote
from qlib_llm_alpha.documents.store import Document, DocumentView
from qlib_llm_alpha.errors import PromptError
from qlib_llm_alpha.llm.request import Message
from qlib_llm_alpha.mining.answers import EvidenceItem

_LOG = logging.getLogger(__name__)

_SHOWN_LEAKS = 3
_LETTERS = "abcdefghijklmnop"


@dataclass(frozen=True)
class Shown:
    """A stretch of a document as a prompt shows it.

    Parameters
    ----------
    label : str
        What the prompt calls it, such as ``D1``; ids of documents do not go out.
    document : str
        Id of the document.
    start : int
        Where the stretch begins in ``Document.text``.
    text : str
        As shown: masked in a blind prompt.
    masked : Masked or None
        The way back to the original; None where nothing was masked.
    private : bool
        It must not leave this machine.
    """

    label: str
    document: str
    start: int
    text: str
    masked: Masked | None = field(repr=False)
    private: bool = False

    @property
    def section(self) -> str:
        """The text between two lines that it cannot hold itself, since they carry its own hash."""
        digest = hashlib.sha256(self.text.encode("utf-8")).hexdigest()[:12]
        seal = "".join(_LETTERS[int(digit, 16)] for digit in digest)  # letters: digits might look like a code
        return f"BEGIN DOCUMENT {self.label} {seal}\n{self.text}\nEND DOCUMENT {self.label} {seal}"

    def labelled(self, label: str) -> Shown:
        """Return the same stretch under another label."""
        return replace(self, label=label)

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Return where ``text[start:end]`` stands in ``Document.text``."""
        if self.masked is not None:
            start, end = self.masked.original_span(start, end)
        return self.start + start, self.start + end


@dataclass(frozen=True)
class Evidence:
    """What is left of the evidence of one claim.

    Parameters
    ----------
    sources : tuple of str
        ``doc:<id>:<first>-<last character>`` of each verified quote, without repeats.
    places : tuple of int
        For each source, which of the shown stretches it is from.
    dropped : int
        Items whose document was not shown, or whose quote is not in it.
    """

    sources: tuple[str, ...]
    places: tuple[int, ...]
    dropped: int


class Blind:
    """Masks what goes out and verifies what comes back.

    Parameters
    ----------
    names : Names
        Instruments, companies and indices that are masked and scanned for.
    blind : bool
        False: documents are shown as they are, and nothing is scanned. Quotes are verified all the same.
    """

    def __init__(self, names: Names, *, blind: bool = True) -> None:
        self.names = names
        self.blind = blind

    def show(self, document: Document, start: int, end: int, label: str) -> Shown:
        """Return ``document.text[start:end]`` as a prompt may show it."""
        text = document.text[start:end]
        masked = mask(text, self.names) if self.blind else None
        shown = text if masked is None else masked.text
        return Shown(label, document.id, start, shown, masked, document.private)

    def text(self, text: str) -> str:
        """Return what a model or a program wrote as it may go out again."""
        return mask(text, self.names).text if self.blind else text

    def scan(self, step: str, messages: Sequence[Message]) -> None:
        """Refuse messages that still leak.

        Raises
        ------
        PromptError
            Names the step, the turn and what was found.
        """
        if not self.blind:
            return
        for message in messages:
            leaks = find_leaks(message.text, self.names)
            if leaks:
                shown = ", ".join(repr(leak.text) for leak in leaks[:_SHOWN_LEAKS])
                raise PromptError(
                    f"the {message.role} turn of a {step} prompt says {shown} ({len(leaks)} in all); expected no date, "
                    "code, index or company in a blind prompt; mask what was put in, or mine with blind=False"
                )

    def verify(self, items: Sequence[EvidenceItem], shown: Sequence[Shown], view: DocumentView) -> Evidence:
        """Return which items hold: their document was in this prompt and the quote stands in the stored text.

        Parameters
        ----------
        items : sequence of EvidenceItem
        shown : sequence of Shown
            All stretches that the prompt held.
        view : DocumentView
            The store as of the day; what it does not know is not believed.
        """
        sources: dict[str, int] = {}
        dropped = 0
        for item in items:
            found = [(place, one) for place, one in enumerate(shown) if one.label == item.document.strip()]
            source = _source(item.quote, found[0][1], view) if found else ""
            if source:
                sources.setdefault(source, found[0][0])
            else:
                dropped += 1
        if dropped:
            _LOG.info("%d of %d quotes are not in the documents shown and were dropped", dropped, len(items))
        return Evidence(tuple(sources), tuple(sources.values()), dropped)


def _source(quote: str, shown: Shown, view: DocumentView) -> str:
    found = find_quote(shown.text, quote)
    if found is None:
        return ""
    start, end = shown.original_span(*found)
    verified = view.verify(shown.document, view.get(shown.document).text[start:end])
    return "" if verified is None else f"doc:{shown.document}:{start}-{end}"
