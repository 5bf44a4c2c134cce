"""The scripted client with what the tests of this room ask of it."""

from __future__ import annotations

from collections.abc import Callable

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.llm.request import Request
from tests.support.scripted import ScriptedClient

Answer = Callable[[Request], str | LLMFailure]


class FakeClient(ScriptedClient):
    """Completes requests by a function, without repair turns unless some are asked for."""

    def __init__(self, answer: Answer, *, repairs: int = 0) -> None:
        super().__init__(answer, repairs=repairs)

    @property
    def asked(self) -> list[Request]:
        """Everything that was asked, in order."""
        return self.requests

    @property
    def steps(self) -> list[str]:
        """The step of each request, in order."""
        return [request.purpose for request in self.requests]

    def of(self, step: str) -> list[Request]:
        """The requests of one step."""
        return [request for request in self.requests if request.purpose == step]
