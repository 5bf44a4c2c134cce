"""Find the JSON values in a text that a model wrote, and read them a little more kindly than JSON itself does.

Kind where nothing is guessed: ``True``, ``False`` and ``None`` of Python, quotes of Python, a comma before a closing
bracket, line breaks inside a string. Strict where a guess would change what was said: a key that stands twice, NaN and
Infinity, a value that breaks off.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass
from typing import Any, Final

DEEPEST: Final = 40
"""Brackets inside each other."""

_LONGEST_NUMBER: Final = 60
_MOST_TRIES: Final = 200
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD: Final = re.compile(r"[A-Za-z]+")
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_OPENING: Final = re.compile(r"[\[{]")
_MARK: Final = re.compile(r'["\\\[\]{}]')
_STOP: Final = {'"': re.compile(r'["\\]'), "'": re.compile(r"['\\]")}
_PYTHON_ESCAPE: Final = re.compile(r"x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8}")
_WORDS: Final = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_NO_NUMBERS: Final = frozenset({"NaN", "nan", "Infinity", "inf"})
_ESCAPED: Final = frozenset('"\\/bfnrtu')


@dataclass(frozen=True)
class Found:
    """The values of a text, each with where it starts and ends, and why the last broken one is none."""

    values: tuple[tuple[int, int, Any], ...]
    broken: str


def find_values(text: str) -> Found:
    """Return the outermost objects and lists of a text in order.

    A bracket that begins no value is prose and skipped. A value that begins and then breaks is told of, and what stands
    inside it is not taken for a value of its own: half an answer is none. The time is linear in the length.
    """
    values: list[tuple[int, int, Any]] = []
    broken, place = "", 0
    for _ in range(_MOST_TRIES):
        opening = _OPENING.search(text, place)
        if opening is None:
            break
        try:
            value, end = _Reader(text).value(opening.start(), 0)
        except _Prose:
            place = opening.end()
        except _Broken as error:
            broken, place = str(error), _end_of_broken(text, opening.start())
        else:
            values.append((opening.start(), end, value))
            place = end
    return Found(tuple(values), broken)


class _Prose(Exception):
    """The bracket belongs to a sentence."""


class _Broken(Exception):
    """A value began and is none."""


def _end_of_broken(text: str, start: int) -> int:
    """Return where the brackets of a broken value close, or the end of the text."""
    depth, quoted, skipped = 0, False, -1
    for mark in _MARK.finditer(text, start):
        letter = mark.group()
        if mark.start() == skipped:
            continue
        if letter == "\\":
            skipped = mark.end()
        elif letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if letter in "[{" else -1
            if depth == 0:
                return mark.end()
    return len(text)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text

    def value(self, place: int, depth: int) -> tuple[Any, int]:
        letter = self._letter(place)
        if depth > DEEPEST:
            raise _Broken(f"more than {DEEPEST} brackets stand inside each other")
        if letter == "{":
            return self._object(place, depth)
        if letter == "[":
            return self._list(place, depth)
        if letter in _STOP:
            return self._string(place)
        return self._number_or_word(place)

    def _object(self, start: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        place = self._skip(start + 1)
        while self._letter(place) != "}":
            if self._letter(place) not in _STOP:
                raise self._unexpected(place, "a key in quotes", first=not found and depth == 0)
            key, place = self._string(place)
            place = self._skip(place)
            if self._letter(place) != ":":
                raise self._unexpected(place, "a colon after the key")
            if key in found:
                raise _Broken(f"the key {key[:40]!r} stands twice in one object")
            found[key], place = self.value(self._skip(place + 1), depth + 1)
            place = self._after_item(place, "}")
        return found, place + 1

    def _list(self, start: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        place = self._skip(start + 1)
        while self._letter(place) != "]":
            if not found and depth == 0 and not self._may_begin(place):
                raise _Prose
            value, place = self.value(place, depth + 1)
            found.append(value)
            place = self._after_item(place, "]")
        return found, place + 1

    def _may_begin(self, place: int) -> bool:
        """Whether a value may begin here; a word of a sentence is none."""
        word = _WORD.match(self.text, place)
        return self.text[place] in "[{\"'-0123456789" or (word is not None and word.group() in {*_WORDS, *_NO_NUMBERS})

    def _after_item(self, place: int, closing: str) -> int:
        """Return where the next item or the closing bracket is."""
        place = self._skip(place)
        if self._letter(place) == ",":
            return self._skip(place + 1)
        if self._letter(place) != closing:
            raise self._unexpected(place, f"a comma or {closing!r}")
        return place

    def _string(self, start: int) -> tuple[str, int]:
        quote, place = self.text[start], start + 1
        parts = ['"']
        while True:
            stop = _STOP[quote].search(self.text, place)
            if stop is None:
                raise _Broken("a string does not end: the JSON is cut off")
            parts.append(self.text[place : stop.start()].replace('"', '\\"'))
            if stop.group() == quote:
                break
            part, place = self._escape(stop.end())
            parts.append(part)
        parts.append('"')
        try:
            value = str(json.loads("".join(parts), strict=False))
            value.encode("utf-8")
        except ValueError:
            raise _Broken("a string holds an escape that is no letter") from None
        return value, stop.end()

    def _escape(self, place: int) -> tuple[str, int]:
        """Return, as JSON writes it, what is escaped by the letter here, and where the string goes on."""
        letter = self._letter(place)
        if letter == "'":
            return letter, place + 1
        if letter in _ESCAPED:
            return f"\\{letter}", place + 1
        digits = _PYTHON_ESCAPE.match(self.text, place)
        if digits is None or (code := int(digits.group()[1:], 16)) > sys.maxunicode:
            raise _Broken(f"a string holds the escape {chr(92) + letter!r}, which JSON does not know")
        return json.dumps(chr(code))[1:-1], digits.end()

    def _number_or_word(self, place: int) -> tuple[Any, int]:
        number = _NUMBER.match(self.text, place)
        if number is not None:
            return self._number(number.group()), number.end()
        word = _WORD.match(self.text, place + 1 if self.text[place] in "+-" else place)
        if word is None:
            raise self._unexpected(place, "a value")
        if word.group() in _WORDS and word.start() == place:
            return _WORDS[word.group()], word.end()
        if word.group() in _NO_NUMBERS:
            raise _Broken(f"{word.group()} is no JSON; use null where there is no number")
        raise _Broken(f"the word {word.group()[:40]!r} stands without quotes")

    def _number(self, text: str) -> int | float:
        if len(text) > _LONGEST_NUMBER:
            raise _Broken(f"a number has {len(text)} digits")
        value = float(text)
        if not math.isfinite(value):
            raise _Broken(f"the number {text} is too large")
        return value if {".", "e", "E"} & set(text) else int(text)

    def _letter(self, place: int) -> str:
        if place >= len(self.text):
            raise _Broken("the JSON is cut off: a bracket is not closed")
        return self.text[place]

    def _skip(self, place: int) -> int:
        blank = _BLANK.match(self.text, place)
        return place if blank is None else blank.end()

    def _unexpected(self, place: int, expected: str, *, first: bool = False) -> Exception:
        if first:
            return _Prose()
        near = self.text[max(place - 20, 0) : place + 20]
        return _Broken(f"expected {expected} at character {place}, near {near!r}")
