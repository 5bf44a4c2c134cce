# ruff: noqa: RUF001 - the letters that look alike are what this is about
"""Text of strangers made plain: nothing hidden, nothing that looks like a letter it is not.

Cleaning is idempotent, and every offset of this room (chunks, quotes, masks) is an offset into cleaned text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Final

CAP: Final = 2_000_000
"""Characters that are kept of one document."""


@dataclass(frozen=True)
class Cleaned:
    """A cleaned text.

    Parameters
    ----------
    text : str
    raw_sha256, text_sha256 : str
        Of the text as it came and of the cleaned one, as UTF-8.
    capped : bool
        Whether the end was cut off.
    """

    text: str
    raw_sha256: str
    text_sha256: str
    capped: bool


def clean(text: str, cap: int = CAP) -> Cleaned:
    """Return a text with what deceives readers removed.

    Compatibility forms are folded (NFKC: full-width letters, ligatures), characters without a picture are dropped
    (zero width, bidirectional controls, tags, variation selectors, controls, lone surrogates), Cyrillic and Greek
    letters that look Latin become Latin inside Latin words, runs of blanks become one blank and runs of empty lines
    one empty line. Words that are really Greek or Cyrillic stay, and so does Chinese.

    Parameters
    ----------
    text : str
        As read from a file.
    cap : int
        Most characters to keep.
    """
    plain = _spaced(_latinised(_drawn(unicodedata.normalize("NFKC", _drawn(text)))))
    kept = _spaced(plain[:cap]) if len(plain) > cap else plain
    return Cleaned(kept, sha256_of(text), sha256_of(kept), len(plain) > cap)


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text as UTF-8, in hex; lone surrogates, which UTF-8 lacks, count as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_cjk(letter: str) -> bool:
    """Whether a character is Chinese, Japanese or Korean writing, which has no blanks between words."""
    return bool(_CJK.match(letter))


CJK_LETTERS: Final = (
    "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Ranges for a character class of a regular expression."""

_CJK: Final = re.compile(f"[{CJK_LETTERS}]")
_LINE_ENDS: Final = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Blank to the eye without being white space to Python.
_FILLERS: Final = dict.fromkeys(map(ord, "\u115f\u1160\u3164\uffa0\u2800"), " ")
# Invisible without being of a category that says so: joiners of graphemes, variation selectors.
_UNDRAWN: Final = re.compile("[\u034f\u17b4\u17b5\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_UNDRAWN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_BLANKS: Final = re.compile(r"[^\S\n]+")
_EMPTY_LINES: Final = re.compile(r"\n{3,}")
_WORD: Final = re.compile(r"[^\W\d_]+")

_LOOK_ALIKES: Final = {
    **dict(zip("АВЕЅІЈКМНОРСТУХԚԜ", "ABESIJKMHOPCTYXQW", strict=True)),
    **dict(zip("асеһіјӏорԛѕѵхуԝԁ", "acehijlopqsvxywd", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
    **dict(zip("αιονρυϲϳ", "aiovpucj", strict=True)),
    **dict(zip("ɑɡɩᴏ", "agio", strict=True)),
}


def _drawn(text: str) -> str:
    text = _LINE_ENDS.sub("\n", text).replace("\t", " ").translate(_FILLERS)
    if text.isascii() and text.isprintable():
        return text
    text = _UNDRAWN.sub("", text)
    return "".join(one for one in text if one == "\n" or unicodedata.category(one) not in _UNDRAWN_CATEGORIES)


def _latinised(text: str) -> str:
    if not any(one in text for one in _LOOK_ALIKES):
        return text
    # Letters of those scripts that look like nothing Latin prove that the text is really written in them.
    proven = any(_is_other(one) and one not in _LOOK_ALIKES for word in _WORD.findall(text) for one in word)

    def one_word(found: re.Match[str]) -> str:
        word = found.group()
        others = [one for one in word if one in _LOOK_ALIKES]
        if not others or any(_is_other(one) and one not in _LOOK_ALIKES for one in word):
            return word
        if len(others) == len(word) and (proven or len(word) < 3):
            return word
        return "".join(_LOOK_ALIKES.get(one, one) for one in word)

    # A letter that became Latin may now take up the accent that follows it.
    return unicodedata.normalize("NFKC", _WORD.sub(one_word, text))


def _is_other(letter: str) -> bool:
    return "\u0370" <= letter <= "\u052f" or "\u1f00" <= letter <= "\u1fff"


def _spaced(text: str) -> str:
    lines = _BLANKS.sub(" ", text).split("\n")
    return _EMPTY_LINES.sub("\n\n", "\n".join(line.strip(" ") for line in lines)).strip()
