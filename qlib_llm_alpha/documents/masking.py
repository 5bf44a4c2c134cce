"""Texts that do not say when, who or where: dates, codes, indices and companies masked, with a way back.

A model that reads "in 2015" or a company's name may remember what came after. What is masked here is what can be told
by its spelling or is listed in :class:`Names`; a description that only somebody who knows the story understands stays.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qlib_llm_alpha.documents.names import Names
from qlib_llm_alpha.documents.spellings import CODES, DATES, KNOWN_CODES, TICKERS
from qlib_llm_alpha.errors import DocumentError

__all__ = ["PLACEHOLDER", "Leak", "Masked", "MaskedSpan", "Names", "find_leaks", "mask"]

PLACEHOLDER: Final = re.compile(r"\[(?:DATE|CODE|INDEX|COMPANY)\]")

_NEAR: Final = 160
"""Characters beside a new mask that are looked at again by themselves."""
_CONTEXT: Final = 40
"""Characters that decide whether something beside them is a hit."""


@dataclass(frozen=True)
class MaskedSpan:
    """One mask: where it stands, what it stands for, and of which kind (``DATE``, ``CODE``, ``INDEX``, ``COMPANY``)."""

    start: int
    end: int
    original_start: int
    original_end: int
    kind: str


@dataclass(frozen=True)
class Masked:
    """A masked text.

    Parameters
    ----------
    text : str
    spans : tuple of MaskedSpan
        In order; everything between them is as it was.
    """

    text: str
    spans: tuple[MaskedSpan, ...]

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the original of ``text[start:end]``; a mask that is cut counts whole.

        Raises
        ------
        DocumentError
            No such place in the masked text.
        """
        if not 0 <= start <= end <= len(self.text):
            raise DocumentError(
                f"the span {start}-{end} is not in a masked text of {len(self.text)} characters; expected "
                "0 <= start <= end <= length"
            )
        first = self._original(start)[0]
        return first, first if start == end else self._original(end - 1)[1]

    def _original(self, at: int) -> tuple[int, int]:
        shift = 0
        for span in self.spans:
            if at < span.start:
                break
            if at < span.end:
                return span.original_start, span.original_end
            shift = span.original_end - span.end
        return at + shift, at + shift + 1


@dataclass(frozen=True)
class Leak:
    """Something in a text that says when, who or where: its kind, its text, and its place."""

    kind: str
    text: str
    start: int
    end: int


def mask(text: str, names: Names) -> Masked:
    """Return a text with dates, codes, index names and company names replaced.

    Masked are days, months, quarters and years in digits, English and Chinese; crises that have a name; codes with
    their exchange, and bare ones that are A-share codes by their digits or that ``names`` knows; index and company
    names of ``names``, longest first. Numbers that are windows, amounts or counts stay. Masking twice changes nothing,
    and :func:`find_leaks` finds nothing in what comes out.

    Parameters
    ----------
    text : str
    names : Names
    """
    parts: list[str] = []
    spans: list[MaskedSpan] = []
    copied, length = 0, 0
    for leak in find_leaks(text, names):
        put = f"[{leak.kind}]"
        length += leak.start - copied
        spans.append(MaskedSpan(length, length + len(put), leak.start, leak.end, leak.kind))
        parts += [text[copied : leak.start], put]
        copied, length = leak.end, length + len(put)
    return Masked("".join([*parts, text[copied:]]), tuple(spans))


def find_leaks(text: str, names: Names) -> list[Leak]:
    """Return everything that :func:`mask` would replace, in order: what a prompt still says, and where.

    Parameters
    ----------
    text : str
        A whole prompt, or any part. Masks that stand in it are no leaks.
    names : Names
    """
    found: list[Leak] = []
    # What stands between two masks is looked at alone, again and again, so that a second look never finds more.
    waiting = list(_between(text))
    while waiting:
        start, end = waiting.pop()
        hits = _leaks(text, start, end, names)
        if not hits:
            continue
        for first, last in _gaps(hits, start, end):
            hits = hits + _beside_masks(text, first, last, names)
        waiting += _gaps(sorted(hits, key=_place), start, end)
        found += hits
    return sorted(found, key=_place)


def _place(leak: Leak) -> int:
    return leak.start


def _gaps(hits: Sequence[Leak], start: int, end: int) -> list[tuple[int, int]]:
    """Return what is left of a stretch between hits that are in order."""
    edges = [start, *(edge for leak in hits for edge in (leak.start, leak.end)), end]
    return [(one, two) for one, two in zip(edges[::2], edges[1::2], strict=True) if one < two]


def _beside_masks(text: str, start: int, end: int, names: Names) -> list[Leak]:
    """Return hits of a long gap that stand at its ends, one after another.

    Where only the first of a row is a hit and each mask makes the next one a hit, looking at the whole gap after every
    mask would take the square of its length.
    """
    found: list[Leak] = []
    while end - start > 2 * _NEAR:
        hits = _leaks(text, start, start + _NEAR, names)
        if not hits or hits[0].end > start + _NEAR - _CONTEXT:
            break
        found.append(hits[0])
        start = hits[0].end
    while end - start > 2 * _NEAR:
        hits = _leaks(text, end - _NEAR, end, names)
        if not hits or hits[-1].start < end - _NEAR + _CONTEXT:
            break
        found.append(hits[-1])
        end = hits[-1].start
    return found


def _leaks(text: str, start: int, end: int, names: Names) -> list[Leak]:
    """Return what is found in ``text[start:end]`` alone, in order."""
    return [
        Leak(kind, text[start + first : start + last], start + first, start + last)
        for kind, first, last in _hits(text[start:end], names)
    ]


def _between(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for found in PLACEHOLDER.finditer(text):
        yield start, found.start()
        start = found.end()
    yield start, len(text)


def _hits(text: str, names: Names) -> list[tuple[str, int, int]]:
    plain, places = _plain(text)
    hits = sorted(_candidates(plain, names), key=lambda hit: (hit[1], -hit[2]))
    kept: list[tuple[str, int, int]] = []
    free = 0
    for kind, start, end in hits:
        if start >= free:
            kept.append((kind, places[start], places[end - 1] + 1))
            free = end
    return kept


def _candidates(plain: str, names: Names) -> Iterator[tuple[str, int, int]]:
    for pattern in DATES:
        yield from (("DATE", *found.span()) for found in pattern.finditer(plain))
    for pattern in CODES:
        yield from (("CODE", *found.span()) for found in pattern.finditer(plain))
    for found in KNOWN_CODES.finditer(plain):
        if found.group().upper() in names.codes:
            yield ("CODE", *found.span())
    for found in TICKERS.finditer(plain):
        length = names.ticker_length(found["mark"], found["name"])
        if length:
            yield "CODE", found.start(), found.start("name") + length
    yield from names.found_in(plain)


def _plain(text: str) -> tuple[str, list[int]]:
    """Return what the eye reads, one character for one or none, and where each came from."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text, list(range(len(text)))
    kept: list[str] = []
    places: list[int] = []
    for at, one in enumerate(text):
        if one.isspace():
            one = " "
        elif not one.isascii():
            if unicodedata.category(one) == "Cf":
                continue
            folded = unicodedata.normalize("NFKC", one)
            one = folded if len(folded) == 1 else one
        if one == " " and kept and kept[-1] == " ":
            continue
        kept.append(one)
        places.append(at)
    return "".join(kept), places
