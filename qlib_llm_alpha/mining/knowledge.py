"""What earlier rounds taught, with the day from which it could be known.

A lesson that was drawn from bars up to a day is known from that day on and not before: a search that ends earlier never
sees it (:meth:`KnowledgeBase.as_of`). Figures are kept as coarsely as models were shown them.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, Final

from qlib_llm_alpha.errors import ConfigError

_TOKEN: Final = re.compile(r"\$*[A-Za-z_]+|\d+|[\u4e00-\u9fff]")
_TABLE: Final = """
create table if not exists lessons (
    id text primary key, session text not null, round integer not null, idea text not null, formula text not null,
    figures text not null, score integer not null, lesson text not null, first_known_at text not null,
    calls text not null
)
"""
_SIMILAR, _STRONG, _NEW = 1.0, 0.1, 0.7
"""Weights of similarity to the question, of the score, and of unlikeness to what was chosen before."""


@dataclass(frozen=True)
class Lesson:
    """One thing that was learned.

    Parameters
    ----------
    session : str
        Where it was learned.
    round : int
    idea, formula : str
        What was tried; the formula may be empty for a lesson about a whole round.
    figures : str
        In words and rounded, as :func:`~qlib_llm_alpha.mining.llm_proposer.rough_figures` puts them.
    score : int
        ``|t|`` rounded; 0 where there is none.
    lesson : str
        In a model's words, or the reason of a rejection.
    first_known_at : str
        Last day, YYYY-MM-DD, of the bars that it was drawn from.
    calls : tuple of str
        Keys of the requests that it came from.
    """

    session: str
    round: int
    idea: str
    formula: str
    figures: str
    score: int
    lesson: str
    first_known_at: str
    calls: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Hash of the content: a lesson that is entered again is the same lesson."""
        return hashlib.sha256(json.dumps(astuple(self), ensure_ascii=True).encode("ascii")).hexdigest()[:16]


class KnowledgeBase:
    """Lessons in an SQLite file.

    Parameters
    ----------
    path : path
        Made, with its folder, when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as database, database:
            database.execute(_TABLE)

    def add(self, lessons: Sequence[Lesson]) -> int:
        """Enter lessons and return how many were new.

        Raises
        ------
        ConfigError
            A lesson without a day from which it is known.
        """
        rows = [(one.id, *_row(one)) for one in lessons]
        with closing(self._open()) as database, database:
            before = database.total_changes
            marks = ", ".join("?" * (len(fields(Lesson)) + 1))
            database.executemany(f"insert or ignore into lessons values ({marks})", rows)  # noqa: S608
            return database.total_changes - before

    def forget(self, session: str) -> None:
        """Take out the lessons of a session, which is about to be computed again from its start."""
        with closing(self._open()) as database, database:
            database.execute("delete from lessons where session = ?", (session,))

    def as_of(self, day: str) -> KnowledgeView:
        """Return what was known at the close of ``day``, YYYY-MM-DD."""
        _checked_day(day)
        query = (
            "select session, round, idea, formula, figures, score, lesson, first_known_at, calls from lessons "
            "where first_known_at <= ? order by first_known_at, session, round, id"
        )
        with closing(self._open()) as database:
            rows = database.execute(query, (day,)).fetchall()
        return KnowledgeView(tuple(_lesson(row) for row in rows))

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30.0)


@dataclass(frozen=True)
class KnowledgeView:
    """Lessons that were known at the close of a day, in a fixed order."""

    lessons: tuple[Lesson, ...]

    def retrieve(self, question: str, count: int) -> list[Lesson]:
        """Return the lessons most worth showing: like the question, strong, and unlike each other.

        Parameters
        ----------
        question : str
        count : int

        Returns
        -------
        list of Lesson
            The best first. The same for the same lessons and question: ties go to the smaller id.
        """
        wanted = _tokens(question)
        left = {one.id: (one, _tokens(f"{one.idea} {one.formula} {one.lesson}")) for one in self.lessons}
        chosen: list[Lesson] = []
        chosen_tokens: list[frozenset[str]] = []
        while left and len(chosen) < count:
            worth = {
                key: _SIMILAR * _likeness(tokens, wanted)
                + _STRONG * min(one.score, 10)
                - _NEW * max((_likeness(tokens, other) for other in chosen_tokens), default=0.0)
                for key, (one, tokens) in left.items()
            }
            best = min(worth, key=lambda key: (-round(worth[key], 9), key))
            one, tokens = left.pop(best)
            chosen.append(one)
            chosen_tokens.append(tokens)
        return chosen


def _row(one: Lesson) -> tuple[object, ...]:
    _checked_day(one.first_known_at)
    return (*astuple(one)[:-1], json.dumps(list(one.calls)))


def _lesson(row: tuple[Any, ...]) -> Lesson:
    named = dict(zip((field.name for field in fields(Lesson)), row, strict=True))
    return Lesson(**{**named, "calls": tuple(json.loads(named["calls"]))})


def _checked_day(day: str) -> None:
    try:
        known = date.fromisoformat(day).isoformat() == day
    except ValueError:
        known = False
    if not known:
        raise ConfigError(
            f"day {day!r:.40}: expected YYYY-MM-DD, from which a lesson is known; give the last bar's day"
        )


def _tokens(text: str) -> frozenset[str]:
    return frozenset(_TOKEN.findall(text.lower()))


def _likeness(one: frozenset[str], two: frozenset[str]) -> float:
    """Return the share of tokens that two texts have in common, 0 to 1."""
    return len(one & two) / len(one | two) if one or two else 0.0
