"""From a prompt file to answers: fill in, scan, ask, and keep what was asked and what came."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from pydantic import BaseModel

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.llm.prompt import Prompt
from qlib_llm_alpha.llm.request import Completion, Request
from qlib_llm_alpha.mining.answers import (
    CategoriseAnswer,
    ChartAnswer,
    FilterAnswer,
    GenerateAnswer,
    RepairAnswer,
    ReviewAnswer,
)
from qlib_llm_alpha.mining.blind import Blind
from qlib_llm_alpha.mining.steps import StepStore

_LOG = logging.getLogger(__name__)

StepName: TypeAlias = Literal["filter", "categorise", "generate", "repair", "review", "chart"]

PROMPTS: Final = Path(__file__).with_name("prompts")
ANSWERS: Final[dict[StepName, type[BaseModel]]] = {
    "filter": FilterAnswer,
    "categorise": CategoriseAnswer,
    "generate": GenerateAnswer,
    "repair": RepairAnswer,
    "review": ReviewAnswer,
    "chart": ChartAnswer,
}
"""What is asked for in each step; its prompt is the file of that name."""

_LONGEST: Final[dict[StepName, int]] = {
    "filter": 1024,
    "categorise": 4096,
    "generate": 4096,
    "repair": 2048,
    "review": 2048,
    "chart": 2048,
}
"""Tokens of an answer at most; what a model writes for itself before counts at many servers."""


class LanguageModel(Protocol):
    """What this room needs of :class:`~qlib_llm_alpha.llm.client.Client`."""

    model: str
    revision: str

    def complete(self, requests: Sequence[Request]) -> list[Completion | LLMFailure]:
        """Return one answer for each request, in order."""
        ...


@dataclass(frozen=True)
class Asked:
    """One request and what came of it.

    Parameters
    ----------
    answer : BaseModel or None
        A validated answer; None where there is none.
    calls : tuple of str
        Keys of the requests by which the journal has it.
    problem : str
        Why there is no answer, with the kind of the failure; empty otherwise.
    """

    answer: BaseModel | None
    calls: tuple[str, ...]
    problem: str = ""


class Asking:
    """Asks a model by the prompts of this room.

    Parameters
    ----------
    client : LanguageModel
    blind : Blind
        Scans every message before it may go out.
    as_of : str
        Last day of what prompts may show; kept with each request, never part of a message.
    """

    def __init__(self, client: LanguageModel, blind: Blind, *, as_of: str = "") -> None:
        self.client = client
        self.blind = blind
        self.as_of = as_of

    def request(
        self,
        step: StepName,
        values: dict[str, str],
        *,
        images: tuple[bytes, ...] = (),
        documents: tuple[str, ...] = (),
        private: bool = False,
    ) -> Request:
        """Return a request of one step.

        Raises
        ------
        PromptError
            A placeholder without a value, or a message that still says when, who or where.
        """
        prompt = Prompt.read(PROMPTS / f"{step}.md")
        messages = prompt.messages(values, images)
        self.blind.scan(step, messages)
        return Request(
            purpose=step,
            messages=messages,
            schema=ANSWERS[step],
            model=self.client.model,
            revision=self.client.revision,
            max_tokens=_LONGEST[step],
            prompt=prompt.stamp,
            documents=documents,
            private=private,
            as_of=self.as_of,
        )

    def ask(self, requests: Sequence[Request]) -> list[Asked]:
        """Return what came of each request, in order; a failed call is a value."""
        found: list[Asked] = []
        completions = self.client.complete(requests) if requests else []
        for request, came in zip(requests, completions, strict=True):
            if isinstance(came, LLMFailure):
                _LOG.info("no answer to a %s request: %s", request.purpose, came.kind)
                found.append(Asked(None, (request.key,), f"{came.kind}: {came.detail}"))
            else:
                found.append(Asked(came.value, came.calls))
        return found

    def ask_once(self, steps: StepStore, name: str, requests: Sequence[Request]) -> list[Asked]:
        """Return what :meth:`ask` does, from the store where the same requests were asked under this name before."""
        stored = steps.run(
            name, [request.key for request in requests], lambda: [_to_json(one) for one in self.ask(requests)]
        )
        return [_from_json(one, request) for one, request in zip(stored, requests, strict=True)]


def _to_json(one: Asked) -> dict[str, Any]:
    answer = None if one.answer is None else one.answer.model_dump(mode="json")
    return {"answer": answer, "calls": list(one.calls), "problem": one.problem}


def _from_json(stored: dict[str, Any], request: Request) -> Asked:
    answer = None if stored["answer"] is None else request.schema.model_validate(stored["answer"])
    return Asked(answer, tuple(stored["calls"]), stored["problem"])
