"""The scripted model where a gateway would ask a server, for sessions in one process; it counts what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qlib_llm_alpha.errors import LLMError
from qlib_llm_alpha.llm.request import Reply, Request, Usage
from tests.support.scripted_model import answer_request


class ScriptedGateway:
    """Answers by the rules of :mod:`tests.support.scripted_model`.

    Parameters
    ----------
    answer : callable, optional
        Another rule: request to the text of the answer.
    stop_after : int, optional
        Raise LLMError in place of a later answer.
    """

    concurrency = 2

    def __init__(self, answer: Callable[[Request], str] = answer_request, stop_after: int | None = None) -> None:
        self._answer = answer
        self._left = stop_after
        self.requests: list[Request] = []

    async def answer(self, request: Request) -> Reply:
        """Return the scripted reply."""
        if self._left is not None:
            if self._left == 0:
                raise LLMError("stopped")
            self._left -= 1
        self.requests.append(request)
        text = self._answer(request)
        return Reply(text, "stop", Usage(100, len(text)), "scripted", "json_schema")

    async def embed(self, texts: Sequence[str], model: str, *, private: bool = False) -> list[list[float]]:
        raise NotImplementedError("the scripted model has no embeddings")

    async def close(self) -> None:
        """Nothing is open."""
