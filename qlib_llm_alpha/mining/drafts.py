"""The inner loop: a formula as a model wrote it is read, computed, and sent back with the reason until it holds.

Programs decide: the factor language first, then a small computation. A model is asked at most ``repairs`` times for one
draft, each time with the reason code and the sentence of what refused it; a draft that is still refused then, that the
model gives up, or that comes back as it was, ends with its reason.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias

from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.llm.request import Request
from qlib_llm_alpha.mining.answers import RepairAnswer
from qlib_llm_alpha.mining.asking import Asked, Asking
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.grammar_text import MINED_LIMITS, grammar_text

_LOG = logging.getLogger(__name__)

REPAIRS: Final = 3
NO_ANSWER: Final = "no_answer"
UNSUPPORTED: Final = "unsupported"
DUPLICATE: Final = "duplicate"

Problem: TypeAlias = "tuple[str, str]"
"""Reason code and a sentence for the model, without exact figures."""

ValueCheck: TypeAlias = Callable[[Sequence[Expression]], "list[Problem | None]"]
"""Computes formulas on a little data that proposers may see, and says of each what is wrong, or None."""

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9]+")
_BLANKS: Final = re.compile(r"\s+")
_LONGEST_NAME: Final = 40
_LONGEST_TEXT: Final = 1000


@dataclass(frozen=True)
class Draft:
    """A formula as a model wrote it.

    Parameters
    ----------
    name, formula, category, hypothesis : str
    sources : tuple of str
        Verified quotes.
    calls : tuple of str
        Keys of the requests that it came from, in order.
    document : str
        Id of the document it was drawn from; empty for a later round or a chart.
    private : bool
        It stems from a text that must not leave this machine.
    repairs : int
        How often it was sent back.
    """

    name: str
    formula: str
    category: str = ""
    hypothesis: str = ""
    sources: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    document: str = ""
    private: bool = False
    repairs: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the draft as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Draft:
        """Return a draft that :meth:`to_json` wrote."""
        return cls(**{**stored, "sources": tuple(stored["sources"]), "calls": tuple(stored["calls"])})


@dataclass(frozen=True)
class Rejection:
    """What was not taken on, and why; kept with every session.

    Parameters
    ----------
    step : str
        Where it ended: ``filter``, ``categorise``, ``generate``, ``validate``, ``merge``, ``review`` or ``chart``.
    name, text : str
        The draft's name and formula as last written, or what else was refused.
    reason, detail : str
        A code of ``evaluation.verdict.REASONS`` or of the factor language, and a sentence.
    calls : tuple of str
    document : str
    """

    step: str
    name: str
    text: str
    reason: str
    detail: str
    calls: tuple[str, ...] = ()
    document: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the rejection as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Rejection:
        """Return a rejection that :meth:`to_json` wrote."""
        return cls(**{**stored, "calls": tuple(stored["calls"])})

    @classmethod
    def of_draft(cls, step: str, draft: Draft, reason: str, detail: str) -> Rejection:
        """Return the end of a draft."""
        return cls(step, draft.name, draft.formula, reason, detail, draft.calls, draft.document)


class InnerLoop:
    """Checks drafts and has them repaired.

    Parameters
    ----------
    asking : Asking
    fields : collection of str
        What the provider has, with sigil: formulas may read these and no others.
    check_values : callable, optional
        Tells what is wrong with computed values; None: formulas are only read.
    limits : Limits
        How large a formula may be.
    repairs : int
        Times that one draft is sent back at most.
    """

    def __init__(
        self,
        asking: Asking,
        fields: Collection[str],
        *,
        check_values: ValueCheck | None = None,
        limits: Limits = MINED_LIMITS,
        repairs: int = REPAIRS,
    ) -> None:
        self.asking = asking
        self.fields = frozenset(fields)
        self.limits = limits
        self.repairs = repairs
        self.grammar = grammar_text(self.fields, limits=limits)
        self._check_values = check_values

    def run(self, drafts: Sequence[Draft]) -> tuple[list[Draft], list[Rejection]]:
        """Return drafts that hold, in their order and with the formula that does, and rejections of the others."""
        current = list(drafts)
        refused: list[list[tuple[str, Problem]]] = [[] for _ in drafts]
        ended: dict[int, Rejection] = {}
        open_places = list(range(len(drafts)))
        for attempt in range(self.repairs + 1):
            problems = self._problems([current[place] for place in open_places])
            wrong = {place: problem for place, problem in zip(open_places, problems, strict=True) if problem}
            for place, problem in wrong.items():
                refused[place].append((current[place].formula, problem))
            if attempt == self.repairs:
                for place, (reason, detail) in wrong.items():
                    ended[place] = Rejection.of_draft("validate", current[place], reason, detail)
                break
            open_places = []
            answers = self.asking.ask([self._request(current[place], refused[place]) for place in wrong])
            for (place, problem), asked in zip(wrong.items(), answers, strict=True):
                current[place] = replace(
                    current[place], calls=current[place].calls + asked.calls, repairs=current[place].repairs + 1
                )
                outcome = _repaired(current[place], asked, [text for text, _ in refused[place]], problem)
                if isinstance(outcome, Rejection):
                    ended[place] = outcome
                else:
                    current[place] = outcome
                    open_places.append(place)
        kept = [draft for place, draft in enumerate(current) if place not in ended]
        _LOG.info("%d drafts, %d hold, %d sent back", len(current), len(kept), sum(map(bool, refused)))
        return kept, [ended[place] for place in sorted(ended)]

    def read(self, formula: str) -> Expression:
        """Read a formula with the fields of the provider; ExpressionError carries reason and sentence."""
        expression = parse(formula, limits=self.limits, fields=self.fields)
        strange = [name for name in expression.fields if name not in self.fields]
        if strange:
            raise ExpressionError(
                "unknown_field", f"the provider has no {', '.join(strange)}; it has {', '.join(sorted(self.fields))}"
            )
        return expression

    def candidate(self, draft: Draft) -> Candidate:
        """Return a draft that holds as a candidate, under a name that depends on the draft alone."""
        expression = self.read(draft.formula)
        return Candidate(
            expression,
            proposer=proposer_name(self.asking.client.model),
            name=_column_name(draft.name, expression.id),
            category=draft.category,
            hypothesis=draft.hypothesis,
            sources=draft.sources,
            calls=draft.calls,
        )

    def _problems(self, drafts: Sequence[Draft]) -> list[Problem | None]:
        problems: list[Problem | None] = []
        readable: dict[int, Expression] = {}
        for place, draft in enumerate(drafts):
            try:
                readable[place] = self.read(draft.formula)
                problems.append(None)
            except ExpressionError as error:
                problems.append((error.reason, error.detail))
        if self._check_values is not None and readable:
            for place, problem in zip(readable, self._check_values(list(readable.values())), strict=True):
                problems[place] = problem
        return problems

    def _request(self, draft: Draft, refused: Sequence[tuple[str, Problem]]) -> Request:
        # A model's own words may hold a date or a name, and they go out again here.
        words = self.asking.blind.text
        formula, (reason, detail) = refused[-1]
        earlier = [f"- {one:.{_LONGEST_TEXT}} ({problem[0]})" for one, problem in refused[:-1]]
        values = {
            "grammar": self.grammar,
            "idea": words(draft.hypothesis or draft.name),
            "earlier": words("\n".join(earlier)) or "none",
            "formula": words(f"{formula:.{_LONGEST_TEXT}}"),
            "reason": reason,
            "detail": words(detail),
        }
        documents = (draft.document,) if draft.document else ()
        return self.asking.request("repair", values, documents=documents, private=draft.private)


def proposer_name(model: str) -> str:
    """Return a model's name as it may stand in the name of a factor."""
    plain = _NOT_IN_NAMES.sub("_", model).strip("_")
    return plain if plain[:1].isalpha() else f"model_{plain}".rstrip("_")


def one_line(text: str, longest: int = _LONGEST_TEXT) -> str:
    """Return a model's words on one line, without what does not print."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return _BLANKS.sub(" ", plain).strip()[:longest]


def _repaired(draft: Draft, asked: Asked, tried: Collection[str], problem: Problem) -> Draft | Rejection:
    reason, detail = problem
    if not isinstance(asked.answer, RepairAnswer):
        return Rejection.of_draft("validate", draft, reason, f"{detail}; not repaired, {asked.problem}")
    formula = asked.answer.formula.strip()
    if asked.answer.gives_up or not formula:
        return Rejection.of_draft("validate", draft, reason, f"{detail}; given up by the model")
    if formula in tried:
        return Rejection.of_draft("validate", draft, reason, f"{detail}; the model repeated a refused formula")
    return replace(draft, formula=formula)


def _column_name(name: str, identity: str) -> str:
    # The id keeps names apart whatever other drafts there are, so that adding one never renames another.
    plain = _NOT_IN_NAMES.sub("_", name).strip("_").lower()[:_LONGEST_NAME].rstrip("_")
    if not plain[:1].isalpha():
        plain = f"factor_{plain}".rstrip("_")
    return f"{plain}_{identity}"
