"""Blind prompts: what a model is shown does not say when, where or about whom it was written.

A model that recognises a year or a company may answer from memory of what came after. Documents are therefore masked,
and every message is scanned last: one that still leaks is never sent. Where an answer cannot be read, the client sends
it back to be mended; those are the model's own words, and the only ones that are not scanned. Quotes that a model gives
on masked text are found there, mapped back and verified on the original.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from qlib_llm_alpha.documents.citations import Passage, show, verify
from qlib_llm_alpha.documents.document import Chunk, Document
from qlib_llm_alpha.documents.masking import Names, find_leaks, mask
from qlib_llm_alpha.documents.view import DocumentView
from qlib_llm_alpha.errors import PromptError
from qlib_llm_alpha.llm.request import Message
from qlib_llm_alpha.mining.answers import EvidenceItem

_LOG = logging.getLogger(__name__)

_SHOWN_LEAKS: Final = 3
_LETTERS: Final = "abcdefghijklmnop"


@dataclass(frozen=True)
class Shown:
    """A stretch of a document as a prompt shows it.

    Parameters
    ----------
    label : str
        What the prompt calls it, such as ``D1``; ids of documents do not go out.
    passage : Passage
        The stored text and what the model sees of it: masked in a blind prompt.
    private : bool
        It must not leave this machine.
    """

    label: str
    passage: Passage
    private: bool = False

    @property
    def document(self) -> str:
        """Id of the document."""
        return self.passage.chunk.document

    @property
    def section(self) -> str:
        """The text between two lines that it cannot hold itself, since they carry its own hash."""
        text = self.passage.text
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
        seal = "".join(_LETTERS[int(digit, 16)] for digit in digest)  # letters: digits might look like a code
        return f"BEGIN DOCUMENT {self.label} {seal}\n{text}\nEND DOCUMENT {self.label} {seal}"

    def labelled(self, label: str) -> Shown:
        """Return the same stretch under another label."""
        return replace(self, label=label)


@dataclass(frozen=True)
class Evidence:
    """What is left of the evidence of one claim.

    Parameters
    ----------
    sources : tuple of str
        ``doc:<id>:<first>-<last character>`` of each verified quote, without repeats.
    dropped : int
        Items whose document was not shown, or whose quote is not in it.
    """

    sources: tuple[str, ...]
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
        chunk = Chunk(document.id, start, end, document.text[start:end])
        return Shown(label, show(chunk, self._names_in(document) if self.blind else None), document.private)

    def _names_in(self, document: Document) -> Names:
        """Return the names of all prompts and the instruments that this document is about."""
        own = Names.of(instruments=document.instruments)
        return replace(self.names, codes=self.names.codes | own.codes, tickers=self.names.tickers | own.tickers)

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
        sources: list[str] = []
        dropped = 0
        for item in items:
            named = [one for one in shown if one.label == item.document.strip()]
            quotes = [verify(one.document, item.quote, shown=[one.passage], view=view) for one in named]
            found = [quote.source for quote in quotes if quote is not None]
            sources += found
            dropped += not found
        if dropped:
            _LOG.info("%d of %d quotes are not in the documents shown and were dropped", dropped, len(items))
        return Evidence(tuple(dict.fromkeys(sources)), dropped)
