# ruff: noqa: RUF001 - the signs of Chinese sentences
"""Passages of a text, cut where its headings and paragraphs are."""

from __future__ import annotations

import re
from typing import Final

from qlib_llm_alpha.documents.document import Chunk
from qlib_llm_alpha.errors import DocumentError

LONGEST: Final = 1200
"""Characters of a passage at most; a paragraph that is longer is cut between sentences."""

_PARAGRAPH: Final = re.compile(r"\S.*?(?=\n\s*\n|\n#|\Z)", re.DOTALL)
_HEADING: Final = re.compile(
    r"#{1,6} \S.*|第[一二三四五六七八九十0-9]+[章节部分].{0,40}|[一二三四五六七八九十]+、.{1,40}", re.ASCII
)
_SENTENCE_END: Final = re.compile(r"[。！？；!?;]+[”’」』)\"']*|\.[)\"']*(?=\s)|\n")


def chunks_of(document: str, text: str, longest: int = LONGEST) -> list[Chunk]:
    """Cut a text into passages.

    Parameters
    ----------
    document : str
        Id, for the passages.
    text : str
        Cleaned text; offsets count its characters.
    longest : int
        Most characters of a passage, 20 or more.

    Returns
    -------
    list of Chunk
        In order, not overlapping, together holding everything but blanks between passages. A heading (Markdown's
        ``#``, or the usual Chinese ones on a line of their own) begins a passage; short paragraphs share one.
    """
    if longest < 20:
        raise DocumentError(f"passages of {longest} characters cannot hold a sentence; expected 20 or more")
    spans: list[tuple[int, int]] = []
    for start, end in _pieces(text, longest):
        begun = spans[-1][0] if spans else start
        if spans and end - begun <= longest and not _HEADING.fullmatch(text[start:end].split("\n", 1)[0]):
            spans[-1] = (begun, end)
        else:
            spans.append((start, end))
    return [Chunk(document, start, end, text[start:end]) for start, end in spans]


def _pieces(text: str, longest: int) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    for paragraph in _PARAGRAPH.finditer(text):
        start, end = paragraph.start(), paragraph.start() + len(paragraph.group().rstrip())
        while end - start > longest:
            cut = _cut(text, start, start + longest)
            pieces.append((start, start + len(text[start:cut].rstrip())))
            start = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
        if end > start:
            pieces.append((start, end))
    return pieces


def _cut(text: str, start: int, latest: int) -> int:
    # A passage of less than half the length is no gain over a sentence cut in two.
    ends = [found.end() for found in _SENTENCE_END.finditer(text, start + (latest - start) // 2, latest)]
    if ends:
        return ends[-1]
    blank = text.rfind(" ", start + (latest - start) // 2, latest)
    return blank + 1 if blank > start else latest
