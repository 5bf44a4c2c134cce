"""What a person ruled out, enforced by code: fields, operators, categories and formulas that no candidate may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from pydantic import BaseModel, Field

from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.canonical import canonical_text
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.printing import lower
from qlib_llm_alpha.factor.tree import Call, Node, walk
from qlib_llm_alpha.mining.answers import CATEGORIES

__all__ = ["VETOED", "VetoAnswer", "Vetoes"]

VETOED: Final = "vetoed"
"""Reason of a candidate that a person ruled out."""

_MOST: Final = 30
_MADE_OF: Final = {"$volume": ("$amount",)}
"""Fields that say the same as another: money traded is volume at a price."""

_NUMBER: Final = re.compile(r"[0-9.]+(?:e[+-]?[0-9]+)?")
_FACTOR: Final = re.compile(r"^[0-9.]+(?:e[+-]?[0-9]+)?\*")
_EXPONENT: Final = re.compile(r"(?<![A-Za-z_0-9.$])[0-9.]+e$")

_Word: TypeAlias = Annotated[str, Field(max_length=80)]
_Formula: TypeAlias = Annotated[str, Field(max_length=1000)]


class VetoAnswer(BaseModel):
    """What a model understood to be ruled out; empty lists where nothing is."""

    fields: list[_Word] = Field(max_length=_MOST, description="names with their sigil, such as $volume")
    operators: list[_Word] = Field(max_length=_MOST, description="names of operators, such as Corr")
    categories: list[_Word] = Field(max_length=_MOST)
    formulas: list[_Formula] = Field(max_length=_MOST, description="formulas of the language, whole")


@dataclass(frozen=True)
class Vetoes:
    """What may not occur in a candidate.

    Parameters
    ----------
    fields, operators, categories : tuple of str
        Sorted, without repeats.
    formulas : tuple of str
        In normal spelling; a candidate may be none of them, nor have one as a part, up to algebra and up to what does
        not change how it ranks or only turns it round: a factor in front, a constant added.
    """

    fields: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    formulas: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, answer: VetoAnswer, fields: Collection[str], read: Callable[[str], Expression]
    ) -> tuple[Vetoes, tuple[str, ...]]:
        """Return what of an answer can be enforced, and the words that mean nothing here.

        Parameters
        ----------
        answer : VetoAnswer
        fields : collection of str
            Those that candidates may read. A field that says the same as a vetoed one is vetoed with it.
        read : callable
            Reads a formula; ExpressionError where it is none.
        """
        strange: list[str] = []
        formulas = []
        for text in answer.formulas:
            try:
                formulas.append(str(read(text)))
            except ExpressionError:
                strange.append(text)
        named = _known(answer.fields, {name.lstrip("$").lower(): name for name in fields}, strange)
        named += [more for name in named for more in _MADE_OF.get(name, ()) if more in fields]
        found = cls(
            fields=_sorted(named),
            operators=_sorted(_known(answer.operators, _OPERATOR_NAMES, strange)),
            categories=_sorted(_known(answer.categories, {name: name for name in CATEGORIES}, strange)),
            formulas=_sorted(formulas),
        )
        return found, tuple(strange)

    @classmethod
    def of_words(
        cls, words: Iterable[str], fields: Collection[str], read: Callable[[str], Expression]
    ) -> tuple[Vetoes, tuple[str, ...]]:
        """Return the same of plain words, each a field, an operator, a category or a formula without blanks."""
        lists: dict[str, list[str]] = {"fields": [], "operators": [], "categories": [], "formulas": []}
        for word in words:
            lists[_kind(word, fields)].append(word)
        return cls.read(VetoAnswer.model_construct(None, **lists), fields, read)

    def joined(self, other: Vetoes) -> Vetoes:
        """Return both."""
        return Vetoes(
            _sorted(self.fields + other.fields),
            _sorted(self.operators + other.operators),
            _sorted(self.categories + other.categories),
            _sorted(self.formulas + other.formulas),
        )

    def without(self, other: Vetoes) -> Vetoes:
        """Return what is not in the other."""
        return Vetoes(
            _sorted(set(self.fields) - set(other.fields)),
            _sorted(set(self.operators) - set(other.operators)),
            _sorted(set(self.categories) - set(other.categories)),
            _sorted(set(self.formulas) - set(other.formulas)),
        )

    def __bool__(self) -> bool:
        return bool(self.fields or self.operators or self.categories or self.formulas)

    @property
    def text(self) -> str:
        """The vetoes in one line, for people and prompts; ``nothing`` where there are none."""
        parts = {
            "fields": self.fields,
            "operators": self.operators,
            "categories": self.categories,
            "formulas": self.formulas,
        }
        return "; ".join(f"{name} {', '.join(words)}" for name, words in parts.items() if words) or "nothing"

    def against(self, expression: Expression, category: str, read: Callable[[str], Expression]) -> str:
        """Return why a candidate is ruled out, or an empty text.

        Operators count as written and as they are executed. The category is what the proposer said it is.
        """
        field = next((name for name in self.fields if name in expression.fields), "")
        if field:
            return f"it reads {field}, which was ruled out"
        called = _operators(expression.root) | _operators(lower(expression.root))
        operator = next((name for name in self.operators if name in called), "")
        if operator:
            return f"it uses {operator}, which was ruled out"
        if category in self.categories:
            return f"it is of the category {category}, which was ruled out"
        if not self.formulas:
            return ""
        parts = {text for node in walk(expression.root) if (text := _canonical(node))}
        formula = next((text for text in self.formulas if _ranking(read(text).canonical) in parts), "")
        return f"it is, or has as a part, {formula:.120}, which was ruled out" if formula else ""


_OPERATOR_NAMES: Final = {
    **{row.infix: row.name for row in OPERATORS.values() if row.infix},
    **{name.lower(): name for name in OPERATORS},
}


def _known(words: Iterable[str], names: dict[str, str], strange: list[str]) -> list[str]:
    """Return what the words name; those that name nothing go to ``strange``."""
    found = []
    for word in words:
        plain = word.strip().lstrip("$").lower().replace(" ", "_")
        if plain in names:
            found.append(names[plain])
        elif plain:
            strange.append(word)
    return found


def _kind(word: str, fields: Collection[str]) -> str:
    plain = word.lstrip("$").lower()
    if plain in {name.lstrip("$").lower() for name in fields}:
        return "fields"
    if plain in _OPERATOR_NAMES:
        return "operators"
    return "categories" if plain in CATEGORIES else "formulas"


def _operators(root: Node) -> set[str]:
    return {node.op for node in walk(root) if isinstance(node, Call)}


def _canonical(node: Node) -> str:
    """Return what of a part's canonical text ranks; empty where it has none, as a number or a group code."""
    if not isinstance(node, Call):
        return ""
    try:
        return _ranking(canonical_text(lower(node)))
    except ExpressionError:
        return ""


def _ranking(canonical: str) -> str:
    """Return a canonical text without added constants, without a factor in front of a single term, first sign plus."""
    terms = [term for term in _terms(canonical) if not _NUMBER.fullmatch(term.lstrip("+-"))]
    turned = bool(terms) and terms[0].startswith("-")
    plain = [_turned(term) if turned else term for term in terms]
    if len(plain) == 1:
        return _FACTOR.sub("", plain[0].lstrip("+"))
    return "".join(plain).lstrip("+")


def _terms(canonical: str) -> list[str]:
    """Split a sum into its terms, each with its sign; signs inside parentheses and exponents belong to a term."""
    terms, depth = [""], 0
    for place, sign in enumerate(canonical):
        depth += (sign == "(") - (sign == ")")
        if sign in "+-" and depth == 0 and place and not _EXPONENT.search(canonical[:place]):
            terms.append("")
        terms[-1] += sign
    return terms


def _turned(term: str) -> str:
    return "+" + term[1:] if term.startswith("-") else "-" + term.lstrip("+")


def _sorted(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(words)))
