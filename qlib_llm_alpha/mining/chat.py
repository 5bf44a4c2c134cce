"""A person and a model work an idea out together: idea, questions, specification, formulas, figures, verdicts.

The chat is a proposer: what it arrives at is measured on explore round by round and judged on the days after, like
everybody's proposals (:func:`hold_chat`). The model asks and writes, the person decides where to go, programs check and
measure. What the person rules out is read by the model into a bounded list, shown back, and enforced by code from then
on (:mod:`~qlib_llm_alpha.mining.vetoes`); a model that forgets it gains nothing.

The transcript is a file. What the person said is taken from there when it is read again, what the model said from the
journal or the recording, and everything else is computed anew, so that a chat goes on where it was and replays to the
same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.llm.prompt import Prompt
from qlib_llm_alpha.llm.request import Request
from qlib_llm_alpha.mining.answers import CATEGORIES
from qlib_llm_alpha.mining.asking import PROMPTS, Asking
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.chat_answers import ClarifyAnswer, ProposeAnswer, SpecifyAnswer, UnderstandAnswer
from qlib_llm_alpha.mining.drafts import DUPLICATE, Draft, InnerLoop, Rejection, one_line, proposer_name
from qlib_llm_alpha.mining.exploring import SHORTLIST, Exploration, Found
from qlib_llm_alpha.mining.llm_proposer import rough_figures
from qlib_llm_alpha.mining.search import search
from qlib_llm_alpha.mining.session import Session
from qlib_llm_alpha.mining.transcript import Port, Transcript
from qlib_llm_alpha.mining.vetoes import VETOED, Vetoes

__all__ = ["ChatProposer", "Port", "Transcript", "hold_chat"]


DONE: Final = "/done"
VETO: Final = "/veto"
ALLOW: Final = "/allow"
COUNT: Final = 4
ROUNDS: Final = 30
_CORRECTIONS: Final = 5
_TRIED_SHOWN: Final = 40
_REFUSED_SHOWN: Final = 20
_LONGEST: Final = 2000
_YES: Final = frozenset({"", "y", "yes", "ok", "right"})
_NO: Final = frozenset({"n", "no"})
_NONE: Final = "none"
_ANSWER_TOKENS: Final = 4096

_Answer = TypeVar("_Answer", bound=BaseModel)


@dataclass
class _Tried:
    """A formula with its number, what it did, and what the person thinks of it."""

    candidate: Candidate
    figures: str = "not measured yet"
    verdict: str = "nothing"


class ChatProposer:
    """Proposes what a person and a model arrive at together.

    Parameters
    ----------
    asking : Asking
    loop : InnerLoop
        Reads, computes and repairs formulas.
    port : Port
    transcript : Transcript
    market : str
        The market in rough figures; empty: none.
    known : iterable of Expression
        The library that is there already; proposing it again is no trial.
    count : int
        Formulas of a round at most.
    rounds : int
        Rounds at most.

    Attributes
    ----------
    vetoes : Vetoes
        What the person ruled out so far.
    rejections : list of Rejection
        What was not taken on, with its reason; ``vetoed`` for what was ruled out.
    """

    adaptive = True

    def __init__(
        self,
        asking: Asking,
        loop: InnerLoop,
        port: Port,
        transcript: Transcript,
        *,
        market: str = "",
        known: Iterable[Expression] = (),
        count: int = COUNT,
        rounds: int = ROUNDS,
    ) -> None:
        self.name = proposer_name(asking.client.model)
        self.batch = count
        self.vetoes = Vetoes()
        self.rejections: list[Rejection] = []
        self._asking = asking
        self._loop = loop
        self._port = port
        self._transcript = transcript
        self._market = market or _NONE
        self._known = {formula.id: f"the library has {formula.text:.200}" for formula in known}
        self._rounds = rounds
        self._round = 0
        self._over = False
        self._specification = ""
        self._wishes: list[str] = []
        self._tried: list[_Tried] = []
        self._seen = 0

    def propose(self, count: int, history: Sequence[Found]) -> list[Candidate]:
        """Return the formulas of the next round; none when the person is done.

        Parameters
        ----------
        count : int
        history : sequence of Found
            Everything measured so far; its new part is shown to the person in rough figures.
        """
        if self._round:
            self._hear(history)
        else:
            self._begin()
        while not self._over and self._round < self._rounds:
            self._round += 1
            fresh = self._next(min(count, self.batch))
            if fresh:
                return fresh
            self._hear(history)
        if not self._over:
            self.tell(f"These were {self._rounds} rounds, the most that one chat has.")
        return []

    def allows(self, candidate: Candidate) -> bool:
        """Say whether nothing that the person ruled out is in a candidate."""
        return not self.vetoes.against(candidate.expression, candidate.category, self._read)

    def left_out(self, candidate: Candidate) -> str:
        """Return the reason for which a candidate that was tried is not judged."""
        return "not_shortlisted" if self.allows(candidate) else VETOED

    def close(self, found: Sequence[Found]) -> None:
        """Show what was measured and not yet shown."""
        self._report(found)

    def tell(self, text: str) -> None:
        """Show a text, and keep it in the transcript."""
        self._transcript.say(self._port, text)
        self._transcript.write()

    def _begin(self) -> None:
        idea = self._ask(
            f"What is your idea? ({VETO} WORDS rules out fields, operators, categories or formulas, {ALLOW} WORDS "
            f"takes that back; {DONE} ends.)"
        )
        if self._over or not idea:
            self._over = True
            return
        common = {"grammar": self._loop.grammar, "idea": self._words(idea)}
        clarified = self._model("chat_clarify", ClarifyAnswer, {**common, "market": self._market})
        answers = []
        for question in clarified.questions if clarified else ():
            reply = self._ask(one_line(question))
            if self._over:
                return
            answers.append(f"- {one_line(question)} {reply or '(no answer)'}")
        self._specify(idea, {**common, "answers": self._words("\n".join(answers)) or _NONE})

    def _specify(self, idea: str, values: dict[str, str]) -> None:
        """Have the idea written down until the person accepts it; what it rules out binds then."""
        corrections: list[str] = []
        self._specification, ruled_out = idea, Vetoes()
        for _ in range(_CORRECTIONS):
            answer = self._model(
                "chat_specify",
                SpecifyAnswer,
                {
                    **values,
                    "categories": _categories(),
                    "corrections": self._words("\n".join(f"- {one}" for one in corrections)) or _NONE,
                },
            )
            if answer is None:
                self.tell("Your own words are taken as the specification.")
                break
            self._specification = one_line(answer.specification, _LONGEST)
            ruled_out, strange = Vetoes.read(answer.vetoes, self._loop.fields, self._read)
            lines = [self._specification]
            if answer.missing_data:
                lines.append(f"Data that it needs and that is not here: {one_line('; '.join(answer.missing_data))}.")
            self.tell("\n".join([*lines, *self._veto_lines(ruled_out, strange)]))
            reply = self._ask("Is this what you mean? Enter accepts it; or say what is to change.")
            if self._over:
                return
            if reply.lower() in _YES:
                break
            corrections.append(reply)
        self.vetoes = self.vetoes.joined(ruled_out)

    def _next(self, count: int) -> list[Candidate]:
        answer, calls = self._ask_model(
            "chat_propose",
            ProposeAnswer,
            {
                "grammar": self._loop.grammar,
                "categories": _categories(),
                "market": self._market,
                "specification": self._words(self._specification),
                "vetoes": self._words(self.vetoes.text),
                "tried": self._tried_text(),
                "wishes": self._words("\n".join(f"- {one}" for one in self._wishes)) or _NONE,
                "count": str(count),
            },
        )
        if answer is None:
            return []
        if not answer.formulas:
            self.tell("The model has nothing more to propose.")
            return []
        drafts = [
            Draft(one_line(one.name), one.formula.strip(), one.category, one_line(one.explanation), calls=calls)
            for one in answer.formulas[:count]
        ]
        # Before repairs, which cost calls, and after them: a repair may bring back what was ruled out.
        allowed, refused = self._allowed(drafts)
        held, lost = self._loop.run(allowed)
        held, late = self._allowed(held)
        fresh, repeated = self._fresh(held)
        ended = [*refused, *lost, *late, *repeated]
        self.rejections += ended
        if ended:
            lines = [f"- {one_line(one.text, 200)}: {one.reason}, {one.detail}" for one in ended]
            self.tell("\n".join([f"Not tried: {len(ended)} of {len(drafts)}.", *lines]))
        self._tried += [_Tried(candidate) for candidate in fresh]
        return fresh

    def _allowed(self, drafts: Iterable[Draft]) -> tuple[list[Draft], list[Rejection]]:
        allowed, refused = [], []
        for draft in drafts:
            detail = self._against(draft)
            if detail:
                refused.append(Rejection.of_draft("validate", draft, VETOED, detail))
            else:
                allowed.append(draft)
        return allowed, refused

    def _against(self, draft: Draft) -> str:
        try:
            expression = self._read(draft.formula)
        except ExpressionError:
            return ""  # the inner loop says what is wrong with it, and what it becomes is looked at again
        return self.vetoes.against(expression, draft.category, self._read)

    def _fresh(self, drafts: Iterable[Draft]) -> tuple[list[Candidate], list[Rejection]]:
        """Return new candidates, and rejections of what the library has or was proposed before, up to algebra."""
        fresh: list[Candidate] = []
        repeated = []
        for draft in drafts:
            candidate = self._loop.candidate(draft)
            detail = self._known.get(candidate.expression.id)
            if detail is None:
                fresh.append(candidate)
                self._known[candidate.expression.id] = f"the same as {candidate.expression.text:.200}"
            else:
                repeated.append(Rejection.of_draft("merge", draft, DUPLICATE, detail))
        return fresh, repeated

    def _hear(self, history: Sequence[Found]) -> None:
        """Show new results and take in what the person says of them."""
        self._report(history)
        reply = self._ask(f"What do you think? Enter goes on; {DONE} ends; keep, drop or rule out what you like.")
        while reply and not self._over:
            reply = self._take_in(reply)

    def _take_in(self, reply: str) -> str:
        """Let the model read a reply, show back what was understood, and bind it; return what the person says then."""
        answer = self._model(
            "chat_understand",
            UnderstandAnswer,
            {
                "fields": " ".join(sorted(self._loop.fields)),
                "operators": " ".join(OPERATORS),
                "categories": _categories(),
                "tried": self._tried_text(),
                "reply": self._words(reply),
            },
        )
        if answer is None:
            return self._ask(f"Say it in other words, please; or {VETO} WORDS, or Enter to go on.")
        ruled_out, strange = Vetoes.read(answer.vetoes, self._loop.fields, self._read)
        known = {one.number: one.verdict for one in answer.verdicts if one.number <= len(self._tried)}
        dropped = [self._tried[number - 1].candidate for number, verdict in known.items() if verdict == "drop"]
        ruled_out = ruled_out.joined(Vetoes(formulas=tuple(one.expression.text for one in dropped)))
        if ruled_out or strange or known:
            words = [f"{verdict} {number}" for number, verdict in sorted(known.items())]
            self.tell(
                "\n".join([f"Your verdicts: {', '.join(words) or _NONE}.", *self._veto_lines(ruled_out, strange)])
            )
            said = self._ask("Is that right? Enter binds it; or say it again.")
            if self._over:
                return ""
            if said.lower() in _NO:
                return self._ask("What do you mean, then? Enter for nothing.")
            if said.lower() not in _YES:
                return said
        self.vetoes = self.vetoes.joined(ruled_out)
        for number, verdict in known.items():
            self._tried[number - 1].verdict = verdict
        if one_line(answer.wishes):
            self._wishes.append(one_line(answer.wishes))
        return ""

    def _report(self, found: Sequence[Found]) -> None:
        fresh, self._seen = found[self._seen :], len(found)
        if not fresh:
            return
        places = {one.candidate.expression.id: place for place, one in enumerate(self._tried)}
        lines = ["Measured on the days for exploring (t, correlation, values, turnover):"]
        for one in fresh:
            place = places[one.candidate.expression.id]
            self._tried[place].figures = rough_figures(one)
            lines.append(f"{place + 1}. {one.candidate.expression.text} ({one.candidate.category})")
            lines.append(f"   {self._tried[place].figures}")
            lines.append(f"   {one.candidate.hypothesis}")
        self.tell("\n".join(lines))

    def _ask(self, question: str) -> str:
        """Return what the person says; vetoes in plain words bind at once, and the question is asked again."""
        while True:
            reply = self._transcript.ask(self._port, question)
            if reply.lower() == DONE:
                self._over = True
                return ""
            command, *words = reply.split() or [""]
            if command.lower() not in (VETO, ALLOW):
                return reply
            named, strange = Vetoes.of_words(words, self._loop.fields, self._read)
            self.vetoes = self.vetoes.joined(named) if command.lower() == VETO else self.vetoes.without(named)
            self.tell("\n".join(self._veto_lines(Vetoes(), strange)))

    def _veto_lines(self, more: Vetoes, strange: Sequence[str]) -> list[str]:
        lines = [f"Ruled out: {self.vetoes.joined(more).text}."]
        if strange:
            lines.append(f"Not known here, so not ruled out: {one_line(', '.join(strange))}.")
        return lines

    def _model(self, step: str, schema: type[_Answer], values: dict[str, str]) -> _Answer | None:
        return self._ask_model(step, schema, values)[0]

    def _ask_model(
        self, step: str, schema: type[_Answer], values: dict[str, str]
    ) -> tuple[_Answer | None, tuple[str, ...]]:
        """Return what the model answers and the keys of the calls; None, said to the person, where it gave nothing."""
        prompt = Prompt.read(PROMPTS / f"{step}.md")
        messages = prompt.messages(values)
        self._asking.blind.scan(step, messages)
        client = self._asking.client
        request = Request(
            purpose=step,
            messages=messages,
            schema=schema,
            model=client.model,
            revision=client.revision,
            max_tokens=_ANSWER_TOKENS,
            prompt=prompt.stamp,
            as_of=self._asking.as_of,
        )
        (asked,) = self._asking.ask([request])
        plain = None if asked.answer is None else asked.answer.model_dump(mode="json")
        self._transcript.note(step, plain, calls=asked.calls, problem=asked.problem)
        if not isinstance(asked.answer, schema):
            self.tell(f"The model gave no answer that can be used ({one_line(asked.problem, 200)}).")
            return None, asked.calls
        return asked.answer, asked.calls

    def _tried_text(self) -> str:
        lines = [
            f"{number}. {one.candidate.expression.text} | {one.figures} | the person says: {one.verdict}"
            for number, one in enumerate(self._tried, start=1)
        ]
        lines = lines[-_TRIED_SHOWN:]
        # Numbered apart: the person speaks of what was measured.
        lines += [f"- {one_line(one.text, 200)} | refused: {one.reason}" for one in self.rejections[-_REFUSED_SHOWN:]]
        return self._words("\n".join(lines)) or _NONE

    def _words(self, text: str) -> str:
        return self._asking.blind.text(text)

    def _read(self, formula: str) -> Expression:
        return self._loop.read(formula)


def hold_chat(
    chat_on: Callable[[SearchData], ChatProposer], data: SearchData, *, shortlist: int = SHORTLIST, **searching: Any
) -> tuple[Session, ChatProposer]:
    """Hold a chat on explore, and judge what it arrived at on the days after.

    Parameters
    ----------
    chat_on : callable
        Makes the chat, given explore.
    data : SearchData
        The search wall.
    shortlist, searching
        As for :func:`~qlib_llm_alpha.mining.search.search`. What the person ruled out is not judged, also where it was
        tried before.

    Returns
    -------
    Session, ChatProposer
        The session of the judged days, and the chat as it ended.
    """
    held: list[ChatProposer] = []

    def begun(first: SearchData) -> ChatProposer:
        held.append(chat_on(first))
        return held[0]

    def allowed(tried: Exploration) -> list[Candidate]:
        (chat,) = held
        chat.close(tried.found)
        chosen = [candidate for candidate in tried.shortlist(shortlist) if chat.allows(candidate)]
        chat.tell(f"{len(tried.found)} formulas were tried; {len(chosen)} are judged on days that nobody has seen.")
        return chosen

    session = search(begun, data, choose=allowed, **searching)
    judged = [
        f"- {one.candidate.expression.text}: {one.verdict.reason or 'admitted'}" for one in session.admission.judged
    ]
    held[0].tell("\n".join([f"Admitted: {len(session.admission.admitted)}.", *judged]))
    return session, held[0]


def _categories() -> str:
    return "\n".join(f"{name}: {meaning}" for name, meaning in CATEGORIES.items())
