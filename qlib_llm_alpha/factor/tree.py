"""The tree of a formula: four kinds of frozen node, and walks over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written; ``bool`` only until the checks refuse it."""

    value: int | float


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the provider, with its sigil: ``$close`` (daily) or ``$$eps_q`` (reported, point in time)."""

    name: str


@dataclass(frozen=True, slots=True)
class Code:
    """An instrument code in quotes, the first argument of ``ChangeInstrument``."""

    value: str


@dataclass(frozen=True, slots=True)
class Call:
    """An operator of :data:`qlib_llm_alpha.factor.operators.OPERATORS` with its arguments, infix or not."""

    op: str
    args: tuple[Node, ...]


Node: TypeAlias = Number | Field | Code | Call


def walk(node: Node) -> Iterator[Node]:
    """Yield ``node`` and everything below it, parents before children, left to right."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        if isinstance(current, Call):
            stack.extend(reversed(current.args))
