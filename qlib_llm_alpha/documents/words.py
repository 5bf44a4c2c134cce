"""What a search compares: lower-cased words, and for Chinese single characters and pairs of neighbours."""

from __future__ import annotations

import re
from typing import Final

from qlib_llm_alpha.documents.cleaning import CJK_LETTERS, is_cjk

_RUN: Final = re.compile(rf"[{CJK_LETTERS}]+|(?:(?![{CJK_LETTERS}])[^\W_])+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in order, repeats included.

    Runs of Chinese, Japanese or Korean letters give every letter and every pair of neighbours; other words are
    lower-cased and lose an English plural's ending. No word holds a blank or any ASCII sign.
    """
    found: list[str] = []
    for run in _RUN.findall(text):
        if is_cjk(run[0]):
            found.extend(run)
            found.extend(run[at : at + 2] for at in range(len(run) - 1))
        else:
            found.append(_singular(run.lower()))
    return found


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return word[:-3] + "y" if word.endswith("ies") and len(word) > 4 else word[:-1]
