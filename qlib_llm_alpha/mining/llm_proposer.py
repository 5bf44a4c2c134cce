"""A language model as a proposer: documents first, then rounds of results, lessons and new formulas.

The outer loop: formulas of a round are measured by the search, never by the model; the model is shown rough figures,
writes a lesson into the knowledge base, and proposes the next formulas with the lessons before it. Figures are rounded
coarsely (t to whole numbers, correlation to a word, shares to 10 percent), so that a recording of the model's answers
still fits when another processor moves the last digits.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from qlib_llm_alpha.documents.view import DocumentView
from qlib_llm_alpha.evaluation.verdict import REASONS
from qlib_llm_alpha.factor.tree import Call, Field, Node, walk
from qlib_llm_alpha.mining.answers import TEMPLATES, ChartAnswer, GenerateAnswer, ReviewAnswer
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.drafts import DUPLICATE, NO_ANSWER, Draft, Rejection, one_line, proposer_name
from qlib_llm_alpha.mining.exploring import Found
from qlib_llm_alpha.mining.factory import NONE, SeedFactory, Seeds, generate_values, hypothesis
from qlib_llm_alpha.mining.knowledge import KnowledgeBase, Lesson
from qlib_llm_alpha.mining.market_profile import coarse

_LOG = logging.getLogger(__name__)

BATCH: Final = 20
PATIENCE: Final = 2
"""Rounds without a better best after which the model is asked no more."""

LESSONS: Final = 6
_KNOWN_SHOWN: Final = 20
_RESULTS_SHOWN: Final = 20
_ALIKE: Final = 0.9
"""Share of operators, fields and numbers in common from which a formula is a near-duplicate."""

_IC_WORDS: Final = ((0.01, "none"), (0.02, "weak"), (0.04, "clear"))


class LLMProposer:
    """Proposes what a language model draws from documents, charts and its own results.

    Parameters
    ----------
    factory : SeedFactory
        Its inner loop checks later formulas too.
    view : DocumentView
        Documents as of the last day of explore.
    knowledge : KnowledgeBase
    day : str
        Last day of explore, YYYY-MM-DD: what is learned here is known from then on.
    session : str
        Name of the session in the knowledge base; its lessons of an earlier, interrupted run are forgotten first.
    charts : tuple of bytes
        PNG images of explore; empty where the model sees no images.
    batch : int
        Candidates of a round at most.
    rounds : int
        Rounds of learning after the documents at most.

    Attributes
    ----------
    seeds : Seeds or None
        What the factory made; None before the first call of :meth:`propose`.
    rejections : list of Rejection
        What was not taken on, of all rounds.
    """

    adaptive = True

    def __init__(
        self,
        factory: SeedFactory,
        view: DocumentView,
        knowledge: KnowledgeBase,
        *,
        day: str,
        session: str = "session",
        charts: tuple[bytes, ...] = (),
        batch: int = BATCH,
        rounds: int = 10,
    ) -> None:
        self.name = proposer_name(factory.asking.client.model)
        self.batch = batch
        self.seeds: Seeds | None = None
        self.rejections: list[Rejection] = []
        self._factory = factory
        self._view = view
        self._knowledge = knowledge
        self._day = day
        self._session = session
        self._charts = charts
        self._rounds = rounds
        # Lessons and results carry what documents said, so a round is as private as the most private document.
        self._private = any(document.private for document in view.documents())
        self._round = 0
        self._seen = 0
        self._best: list[int] = []
        self._queue: list[Candidate] = []
        self._proposed: list[Candidate] = []

    def propose(self, count: int, history: Sequence[Found]) -> list[Candidate]:
        """Return at most ``count`` new candidates: seeds first, then rounds; none when nothing is left to say.

        Parameters
        ----------
        count : int
        history : sequence of Found
            Everything scored so far, in order; nothing else of the market is used.
        """
        if self.seeds is None:
            self._begin()
        while not self._queue and self._goes_on(history):
            self._round += 1
            self._next_round(history)
            if not self._queue:
                break
        given, self._queue = self._queue[:count], self._queue[count:]
        return given

    def _begin(self) -> None:
        self._knowledge.forget(self._session)
        self.seeds = self._factory.run(self._view)
        self.rejections += self.seeds.rejections
        self._take(list(self.seeds.candidates))
        self._take_drafts(self._chart_drafts())

    def _goes_on(self, history: Sequence[Found]) -> bool:
        """Say whether another round is worth asking for: the best still gets better, as far as it is told."""
        if self._round >= self._rounds:
            return False
        scores = [score for score in (_score(one) for one in history) if score is not None]
        if not scores:  # nothing was measured, or nothing is told
            return True
        self._best.append(max(scores))
        return len(self._best) <= PATIENCE or self._best[-1] > self._best[-1 - PATIENCE]

    def _next_round(self, history: Sequence[Found]) -> None:
        fresh, self._seen = history[self._seen :], len(history)
        if fresh:
            self._review(fresh)
        self._take_drafts(self._new_drafts(history))

    def _review(self, fresh: Sequence[Found]) -> None:
        results = "\n".join(rough_line(one) for one in _ranked(fresh)[:_RESULTS_SHOWN])
        words = self._factory.asking.blind.text
        values = {"results": words(results), "lessons": self._lessons(results)}
        request = self._factory.asking.request("review", values, private=self._private)
        (asked,) = self._factory.asking.ask([request])
        if not isinstance(asked.answer, ReviewAnswer):
            self.rejections.append(Rejection("review", "", "", NO_ANSWER, asked.problem, asked.calls))
            return
        answer = asked.answer
        directions = [f"keep: {one_line(one)}" for one in answer.keep_directions]
        directions += [f"drop: {one_line(one)}" for one in answer.drop_directions]
        lesson = "; ".join([one_line(answer.lesson), *directions])
        best = _ranked(fresh)[0]
        figures = f"best of the round: {rough_figures(best)}"
        entries = [self._lesson("the whole round", "", figures, _score(best), lesson, asked.calls)]
        entries += [
            self._lesson(
                one.candidate.hypothesis,
                one.candidate.expression.text,
                rough_figures(one),
                _score(one),
                REASONS.get(one.reason, one.reason),
                one.candidate.calls,
            )
            for one in _ranked(fresh)
        ]
        self._knowledge.add(entries)

    def _lesson(
        self, idea: str, formula: str, figures: str, score: int | None, lesson: str, calls: tuple[str, ...]
    ) -> Lesson:
        return Lesson(self._session, self._round, idea, formula, figures, score or 0, lesson, self._day, calls)

    def _lessons(self, question: str) -> str:
        found = self._knowledge.as_of(self._day).retrieve(question, LESSONS)
        lines = [" | ".join(part for part in (one.idea, one.formula, one.figures, one.lesson) if part) for one in found]
        return self._factory.asking.blind.text("\n".join(f"- {line}" for line in lines)) or NONE

    def _new_drafts(self, history: Sequence[Found]) -> list[Draft]:
        best = [one.candidate.expression.text for one in _ranked(history)[:_KNOWN_SHOWN]]
        words = self._factory.asking.blind.text
        values = generate_values(
            self._factory,
            category="any of the nine",
            lessons=self._lessons("\n".join(best)),
            known=[words(text) for text in dict.fromkeys([*best, *self._factory.known])],
        )
        values["document"] = "No documents in this round."
        request = self._factory.asking.request("generate", values, private=self._private)
        (asked,) = self._factory.asking.ask([request])
        if not isinstance(asked.answer, GenerateAnswer):
            self.rejections.append(Rejection("generate", "", "", NO_ANSWER, asked.problem, asked.calls))
            return []
        return [
            Draft(
                one_line(one.name),
                one.formula.strip(),
                one.category,
                hypothesis(one),
                calls=asked.calls,
                private=self._private,
            )
            for one in asked.answer.candidates
        ]

    def _chart_drafts(self) -> list[Draft]:
        asking = self._factory.asking
        templates = "\n".join(f"{name}: {formula}" for name, formula in TEMPLATES.items())
        values = {"grammar": self._factory.loop.grammar, "templates": templates}
        requests = [asking.request("chart", values, images=(image,)) for image in self._charts]
        drafts: list[Draft] = []
        for asked in asking.ask_once(self._factory.steps, "chart", requests):
            if not isinstance(asked.answer, ChartAnswer):
                self.rejections.append(Rejection("chart", "", "", NO_ANSWER, asked.problem, asked.calls))
            elif asked.answer.text:
                name = asked.answer.template if asked.answer.use_template else "chart"
                rationale = one_line(asked.answer.rationale)
                drafts.append(Draft(name, asked.answer.text, "technical", rationale, calls=asked.calls))
        return drafts

    def _take_drafts(self, drafts: Sequence[Draft]) -> None:
        kept, lost = self._factory.loop.run(drafts)
        self.rejections += lost
        self._take([self._factory.loop.candidate(draft) for draft in kept])

    def _take(self, candidates: Sequence[Candidate]) -> None:
        """Queue what is neither the same as nor hardly different from what was proposed before."""
        for candidate in candidates:
            twin = next((one for one in self._proposed if _alike(one, candidate)), None)
            if twin is None:
                self._proposed.append(candidate)
                self._queue.append(candidate)
            else:
                formula = candidate.expression.text
                detail = f"hardly different from {twin.name}: {twin.expression.text:.200}"
                self.rejections.append(
                    Rejection("generate", candidate.name, formula, DUPLICATE, detail, candidate.calls)
                )


def rough_figures(one: Found) -> str:
    """Return what a proposer may be told of a result, coarse enough to be the same on every machine."""
    if one.reason:
        return f"refused: {REASONS.get(one.reason, one.reason)}"
    if not math.isfinite(one.t):
        return "not told"
    return (
        f"t {_whole(one.t)}, correlation {_ic_word(one.rank_ic)}, values {_tenth(one.coverage)}, "
        f"turnover {_tenth(one.turnover)}"
    )


def rough_line(one: Found) -> str:
    """Return one result as a line of a review prompt."""
    return f"- {one.candidate.expression.text} | {rough_figures(one)}"


def _ranked(found: Sequence[Found]) -> list[Found]:
    """Return results the best first, as far as they are told, ties by formula: the last digits decide nothing."""
    return sorted(found, key=lambda one: (-(_score(one) or 0), bool(one.reason), one.candidate.expression.text))


def _score(one: Found) -> int | None:
    return _whole(one.fitness) if math.isfinite(one.fitness) else None


def _whole(value: float) -> int:
    return int(coarse(value, 1.0))


def _ic_word(rank_ic: float) -> str:
    if not math.isfinite(rank_ic):
        return "unknown"
    return next((word for bound, word in _IC_WORDS if abs(rank_ic) < bound), "strong")


def _tenth(share: float) -> str:
    return f"{round(coarse(share, 0.1) * 100)} %" if math.isfinite(share) else "unknown"


def _alike(one: Candidate, two: Candidate) -> bool:
    """Say whether two formulas are the same up to algebra, or share nearly all of their parts."""
    if one.expression.id == two.expression.id:
        return True
    parts, others = _parts(one), _parts(two)
    return (parts & others).total() >= _ALIKE * (parts | others).total()


def _parts(one: Candidate) -> Counter[str]:
    """Count the operators, fields and numbers of a formula."""
    return Counter(_part(node) for node in walk(one.expression.root))


def _part(node: Node) -> str:
    if isinstance(node, Call):
        return node.op
    return node.name if isinstance(node, Field) else str(node.value)
