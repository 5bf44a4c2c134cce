# ruff: noqa: RUF001 - the quotation marks of several languages
"""Evidence that a model names: believed only where the stored text says it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from qlib_llm_alpha.documents.cleaning import CJK_LETTERS, clean, is_cjk
from qlib_llm_alpha.documents.document import Chunk, Quote
from qlib_llm_alpha.documents.masking import PLACEHOLDER, Masked, Names, mask

SHORTEST: Final = 12
SHORTEST_CJK: Final = 4
"""Fewest letters, digits and signs of a quote, and fewest Chinese ones that do instead; fewer may stand anywhere."""

_QUOTATION: Final = dict.fromkeys(map(ord, "“”„‟«»「」『』‘’‚‛`´‹›＂＇"), "'") | {ord('"'): "'"}
_DROPPED_BLANK: Final = re.compile(rf"(?<=[{CJK_LETTERS}]) | (?=[{CJK_LETTERS}])")


class Visible(Protocol):
    """What can be quoted from; a :class:`~qlib_llm_alpha.documents.view.DocumentView` is one."""

    def text_of(self, document: str) -> str | None:
        """Return the stored text of a document that is visible, None of any other."""


@dataclass(frozen=True)
class Passage:
    """A passage as one prompt showed it.

    Parameters
    ----------
    chunk : Chunk
        What is stored.
    masked : Masked
        What the model saw of it.
    """

    chunk: Chunk
    masked: Masked

    @property
    def text(self) -> str:
        """What the model saw."""
        return self.masked.text


def show(chunk: Chunk, names: Names | None = None) -> Passage:
    """Return a passage to show: masked with ``names``, or as it is without them."""
    return Passage(chunk, Masked(chunk.text, ()) if names is None else mask(chunk.text, names))


def verify(document: str, quote: str, *, shown: Iterable[Passage], view: Visible) -> Quote | None:
    """Return where a quote stands in the stored text, or None where the claim has no evidence.

    Parameters
    ----------
    document : str
        Id as a model gave it.
    quote : str
        As a model gave it: a part of what it saw, masks included.
    shown : iterable of Passage
        What this prompt held. A quote of a passage that was not shown counts for nothing, even if it is true.
    view : Visible
        Of the prompt's date; a document that it does not see counts for nothing.

    Returns
    -------
    Quote or None
        With offsets into the stored, unmasked text.
    """
    for passage in shown:
        if passage.chunk.document != document:
            continue
        found = find_quote(passage.text, quote)
        if found is None:
            continue
        start, end = (passage.chunk.start + at for at in passage.masked.original_span(*found))
        stored = view.text_of(document)
        # A passage of another store or of an older text proves nothing here.
        if stored is not None and stored[passage.chunk.start : passage.chunk.end] == passage.chunk.text:
            return Quote(document, start, end, stored[start:end])
    return None


def find_quote(text: str, quote: str) -> tuple[int, int] | None:
    """Return where ``text`` holds ``quote``, first place first, or None.

    Blanks and line ends count as one blank, and as none beside Chinese; all quotation marks count as one; letters and
    their case must agree. A quote needs 12 characters besides blanks and masks, or 4 Chinese ones.

    Parameters
    ----------
    text : str
        Cleaned.
    quote : str
        Of any origin; cleaned here.
    """
    wanted, _ = _levelled(clean(quote).text.strip().strip("'\"“”「」…. "))
    said = PLACEHOLDER.sub("", wanted).replace(" ", "")
    if len(said) < SHORTEST and sum(map(is_cjk, said)) < SHORTEST_CJK:
        return None
    whole, places = _levelled(text)
    at = whole.find(wanted)
    return None if at < 0 else (places[at], places[at + len(wanted) - 1] + 1)


def _levelled(text: str) -> tuple[str, list[int]]:
    signs = text.translate(_QUOTATION)
    kept, places = [], []
    for at, one in enumerate(signs):
        if not one.isspace():
            kept.append(one)
            places.append(at)
        elif kept and kept[-1] != " ":
            kept.append(" ")
            places.append(at)
    if kept and kept[-1] == " ":
        del kept[-1], places[-1]
    joined = "".join(kept)
    dropped = {found.start() for found in _DROPPED_BLANK.finditer(joined)}
    if not dropped:
        return joined, places
    left = [at for at in range(len(joined)) if at not in dropped]
    return "".join(joined[at] for at in left), [places[at] for at in left]
