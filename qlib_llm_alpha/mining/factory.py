"""The seed factor factory: from documents to candidates, in five steps that are kept one by one.

``filter`` keeps documents that hold an idea, ``categorise`` files the ideas under the nine categories with quotes,
``generate`` writes formulas for each document and category, ``validate`` reads, computes and repairs them, and
``merge`` drops what is the same up to algebra. Requests of the first three show one document each, and a repair shows
one formula, so that adding a document changes no request that was made before it. Nothing is lost in silence: whatever
is not taken on ends as a :class:`~qlib_llm_alpha.mining.drafts.Rejection` with its reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from qlib_llm_alpha.documents.document import Document
from qlib_llm_alpha.documents.view import DocumentView
from qlib_llm_alpha.library.seed import Category
from qlib_llm_alpha.llm.request import Request
from qlib_llm_alpha.mining.answers import (
    CATEGORIES,
    CategoriseAnswer,
    FilterAnswer,
    GenerateAnswer,
    GeneratedCandidate,
)
from qlib_llm_alpha.mining.asking import Asked, Asking, StepName
from qlib_llm_alpha.mining.blind import Evidence, Shown
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.drafts import DUPLICATE, NO_ANSWER, UNSUPPORTED, Draft, InnerLoop, Rejection, one_line
from qlib_llm_alpha.mining.steps import StepStore

_LOG = logging.getLogger(__name__)

SECTION: Final = 6000
"""Characters of a document that one request shows; a longer one is asked about section by section."""

SECTIONS_TOGETHER: Final = 2
"""Sections with ideas of one category that a generate request shows together."""

COUNT: Final = 3
"""Formulas that a generate request asks for at most."""

KNOWN: Final = 40
"""Formulas that are known already and named in a generate request, at most."""

NONE: Final = "none"


@dataclass(frozen=True)
class Seeds:
    """What the factory made.

    Parameters
    ----------
    candidates : tuple of Candidate
        Distinct up to algebra; in the order of documents, sections and categories.
    rejections : tuple of Rejection
        Everything else, step by step.
    irrelevant : tuple of str
        Ids of documents that hold no idea, or about which no answer came.
    dropped_quotes : int
        Evidence items that were not in the document they named.
    repaired : int
        Candidates that hold only after a repair.
    """

    candidates: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]
    irrelevant: tuple[str, ...]
    dropped_quotes: int
    repaired: int


class _Idea(NamedTuple):
    """What one section of a document says about one category."""

    section: Shown
    category: Category
    calls: tuple[str, ...]


class _Theme(NamedTuple):
    """One generate request: sections of one document with ideas of one category."""

    shown: tuple[Shown, ...]
    category: Category
    calls: tuple[str, ...]


class SeedFactory:
    """Makes candidates of documents.

    Parameters
    ----------
    asking : Asking
    loop : InnerLoop
    steps : StepStore
    market : str
        The market in rough figures, as a prompt may show it; empty: none.
    known : sequence of str
        Formulas that the library holds already; the first :data:`KNOWN` are named to the model.
    data : str
        Fingerprint of what the inner loop computes on; a stored step counts only for the same.
    count : int
        Formulas that are asked for of each document and category.
    """

    def __init__(
        self,
        asking: Asking,
        loop: InnerLoop,
        steps: StepStore,
        *,
        market: str = "",
        known: Sequence[str] = (),
        data: str = "",
        count: int = COUNT,
    ) -> None:
        self.asking = asking
        self.loop = loop
        self.steps = steps
        self.market = market
        self.known = tuple(known)
        self.data = data
        self.count = count

    def run(self, view: DocumentView) -> Seeds:
        """Return candidates of all documents that the view has.

        Parameters
        ----------
        view : DocumentView
            The store as of a day; later documents are not in it.

        Raises
        ------
        PromptError
            A prompt still leaks; nothing of its step was sent.
        LLMError
            The model cannot be asked at all. Steps that are finished are kept.
        """
        documents = view.documents()
        kept, irrelevant, rejections = self._filter([one for each in documents for one in self._sections(each, view)])
        ideas, dropped, lost = self._categorise(kept, view)
        rejections += lost
        drafts, more_dropped, lost = self._generate(_themes(ideas), view)
        rejections += lost
        holding, lost = self._validate(drafts)
        rejections += lost
        merged, lost = self._merge(holding)
        rejections += lost
        _LOG.info("%d documents gave %d candidates, %d rejections", len(documents), len(merged), len(rejections))
        return Seeds(
            candidates=tuple(self.loop.candidate(draft) for draft in merged),
            rejections=tuple(rejections),
            irrelevant=irrelevant,
            dropped_quotes=dropped + more_dropped,
            repaired=sum(draft.repairs > 0 for draft in merged),
        )

    def _sections(self, document: Document, view: DocumentView) -> list[Shown]:
        return [self.asking.blind.show(document, start, end, "D1") for start, end in _spans(document, view)]

    def _filter(self, sections: Sequence[Shown]) -> tuple[list[Shown], tuple[str, ...], list[Rejection]]:
        requests = [self._about("filter", {}, [section]) for section in sections]
        kept: list[Shown] = []
        rejections: list[Rejection] = []
        for section, asked in zip(sections, self.asking.ask_once(self.steps, "filter", requests), strict=True):
            if not isinstance(asked.answer, FilterAnswer):
                rejections.append(_unanswered("filter", asked, section.document))
            elif asked.answer.relevant:
                kept.append(section)
        relevant = {section.document for section in kept}
        seen = dict.fromkeys(section.document for section in sections)
        return kept, tuple(one for one in seen if one not in relevant), rejections

    def _categorise(self, sections: Sequence[Shown], view: DocumentView) -> tuple[list[_Idea], int, list[Rejection]]:
        categories = "\n".join(f"{name}: {meaning}" for name, meaning in CATEGORIES.items())
        requests = [self._about("categorise", {"categories": categories}, [section]) for section in sections]
        ideas: list[_Idea] = []
        rejections: list[Rejection] = []
        dropped = 0
        for section, asked in zip(sections, self.asking.ask_once(self.steps, "categorise", requests), strict=True):
            if not isinstance(asked.answer, CategoriseAnswer):
                rejections.append(_unanswered("categorise", asked, section.document))
                continue
            for item in asked.answer.items:
                evidence = self.asking.blind.verify(item.evidence, [section], view)
                dropped += evidence.dropped
                if evidence.sources:
                    ideas.append(_Idea(section, item.category, asked.calls))
                else:
                    rejections.append(
                        Rejection(
                            "categorise",
                            item.category,
                            one_line(item.summary),
                            UNSUPPORTED,
                            _no_quote(evidence),
                            asked.calls,
                            section.document,
                        )
                    )
        return ideas, dropped, rejections

    def _generate(self, themes: Sequence[_Theme], view: DocumentView) -> tuple[list[Draft], int, list[Rejection]]:
        requests = []
        for theme in themes:
            meaning = f"{theme.category} ({CATEGORIES[theme.category]})"
            requests.append(self._about("generate", generate_values(self, category=meaning), theme.shown))
        drafts: list[Draft] = []
        rejections: list[Rejection] = []
        dropped = 0
        for theme, asked in zip(themes, self.asking.ask_once(self.steps, "generate", requests), strict=True):
            section = theme.shown[0]
            if not isinstance(asked.answer, GenerateAnswer):
                rejections.append(_unanswered("generate", asked, section.document))
                continue
            for one in asked.answer.candidates:
                evidence = self.asking.blind.verify(one.evidence, theme.shown, view)
                dropped += evidence.dropped
                draft = Draft(
                    name=one_line(one.name),
                    formula=one.formula.strip(),
                    category=theme.category,
                    hypothesis=hypothesis(one),
                    sources=evidence.sources,
                    calls=theme.calls + asked.calls,
                    document=section.document,
                    private=section.private,
                )
                if evidence.sources:
                    drafts.append(draft)
                else:
                    rejections.append(Rejection.of_draft("generate", draft, UNSUPPORTED, _no_quote(evidence)))
        return drafts, dropped, rejections

    def _validate(self, drafts: Sequence[Draft]) -> tuple[list[Draft], list[Rejection]]:
        inputs = {
            "drafts": [draft.to_json() for draft in drafts],
            "grammar": self.loop.grammar,
            "repairs": self.loop.repairs,
            "data": self.data,
        }
        stored = self.steps.run("validate", inputs, lambda: _kept_and_lost(*self.loop.run(drafts)))
        return _read_drafts(stored)

    def _merge(self, drafts: Sequence[Draft]) -> tuple[list[Draft], list[Rejection]]:
        inputs = [draft.to_json() for draft in drafts]
        return _read_drafts(self.steps.run("merge", inputs, lambda: _kept_and_lost(*merge(drafts, self.loop))))

    def _about(self, step: StepName, values: dict[str, str], shown: Sequence[Shown]) -> Request:
        text = "\n\n".join(one.section for one in shown)
        return self.asking.request(
            step,
            {**values, "document": text},
            documents=tuple(dict.fromkeys(one.document for one in shown)),
            private=any(one.private for one in shown),
        )


def generate_values(
    factory: SeedFactory, *, category: str, lessons: str = "", known: Iterable[str] | None = None
) -> dict[str, str]:
    """Return what fills a generate prompt, all but its documents."""
    words = factory.asking.blind.text
    formulas = [words(text) for text in list(factory.known if known is None else known)[:KNOWN]]
    return {
        "grammar": factory.loop.grammar,
        "market": factory.market or NONE,
        "known": "\n".join(formulas) or NONE,
        "lessons": lessons or NONE,
        "category": category,
        "count": str(factory.count),
    }


def hypothesis(one: GeneratedCandidate) -> str:
    """Return what a candidate claims, as its factor will carry it."""
    return f"{one_line(one.rationale)} (expected sign {one.expected_sign}, horizon {one.horizon_days} days)"


def merge(drafts: Sequence[Draft], loop: InnerLoop) -> tuple[list[Draft], list[Rejection]]:
    """Return the first draft of each formula, and a rejection for each that is the same up to algebra."""
    first: dict[str, Draft] = {}
    lost: list[Rejection] = []
    for draft in drafts:
        expression = loop.read(draft.formula)
        earlier = first.setdefault(expression.id, draft)
        if earlier is not draft:
            detail = f"the same as {earlier.name}: {earlier.formula:.200}"
            lost.append(Rejection.of_draft("merge", draft, DUPLICATE, detail))
    return list(first.values()), lost


def _spans(document: Document, view: DocumentView) -> list[tuple[int, int]]:
    """Return the sections of a document: all of it, or runs of its chunks that fit a request."""
    if len(document.text) <= SECTION:
        return [(0, len(document.text))] if document.text.strip() else []
    spans: list[tuple[int, int]] = []
    for chunk in view.chunks(document.id):
        if spans and chunk.end - spans[-1][0] <= SECTION:
            spans[-1] = (spans[-1][0], chunk.end)
        else:
            spans.append((chunk.start, chunk.end))
    return spans


def _themes(ideas: Sequence[_Idea]) -> list[_Theme]:
    """Group ideas by document and category; sections beyond what one request shows make further requests."""
    grouped: dict[tuple[str, Category], list[_Idea]] = {}
    for idea in ideas:
        group = grouped.setdefault((idea.section.document, idea.category), [])
        if all(idea.section is not other.section for other in group):
            group.append(idea)
    themes: list[_Theme] = []
    for (_, category), group in grouped.items():
        for begin in range(0, len(group), SECTIONS_TOGETHER):
            part = group[begin : begin + SECTIONS_TOGETHER]
            shown = tuple(idea.section.labelled(f"D{number}") for number, idea in enumerate(part, 1))
            themes.append(_Theme(shown, category, tuple(dict.fromkeys(call for idea in part for call in idea.calls))))
    return themes


def _unanswered(step: str, asked: Asked, document: str) -> Rejection:
    return Rejection(step, "", "", NO_ANSWER, asked.problem, asked.calls, document)


def _no_quote(evidence: Evidence) -> str:
    return f"none of its {evidence.dropped} quotes is in the document" if evidence.dropped else "it gives no quote"


def _kept_and_lost(kept: Sequence[Draft], lost: Sequence[Rejection]) -> dict[str, Any]:
    return {"kept": [one.to_json() for one in kept], "lost": [one.to_json() for one in lost]}


def _read_drafts(stored: dict[str, Any]) -> tuple[list[Draft], list[Rejection]]:
    return [Draft.from_json(one) for one in stored["kept"]], [Rejection.from_json(one) for one in stored["lost"]]
