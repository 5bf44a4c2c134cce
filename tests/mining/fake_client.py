"""A model for unit tests of this room: a function of the request, read strictly, without server or journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import ValidationError

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.llm.request import Completion, Request, Usage

Answer = Callable[[Request], str | LLMFailure]


class FakeClient:
    """Completes requests by a function; what does not fit the schema is a failure of kind ``invalid``."""

    model = "scripted"
    revision = ""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    def complete(self, requests: Sequence[Request]) -> list[Completion | LLMFailure]:
        """Return an answer or a failure for each request."""
        self.asked += requests
        return [self._one(request) for request in requests]

    @property
    def steps(self) -> list[str]:
        """The step of each request, in order."""
        return [request.purpose for request in self.asked]

    def of(self, step: str) -> list[Request]:
        """The requests of one step."""
        return [request for request in self.asked if request.purpose == step]

    def _one(self, request: Request) -> Completion | LLMFailure:
        text = self.answer(request)
        if isinstance(text, LLMFailure):
            return text
        try:
            value = request.schema.model_validate_json(text)
        except ValidationError as error:
            return LLMFailure("invalid", f"{error.error_count()} faults", text=text)
        return Completion(value, text, Usage(10, 10), (request.key,), self.model, replayed=False)
