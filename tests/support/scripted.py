"""A client without a server, for tests of the rooms that ask one: answers come from a function.

It is a stand-in with a script, no language model; nothing can be concluded about models from what it does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.llm.conversation import converse
from qlib_llm_alpha.llm.request import Completion, Reply, Request, Usage


class ScriptedClient:
    """Has ``complete`` and ``embed`` of :class:`qlib_llm_alpha.llm.client.Client`, with the same reading and repairs.

    Parameters
    ----------
    answers : callable
        Gives the text that the model writes for a request, repair turns included, or the failure in which it ends.
    model, revision : str
    repairs : int

    Attributes
    ----------
    requests : list of Request
        Everything that was asked, repair turns included, in order.
    """

    def __init__(
        self,
        answers: Callable[[Request], str | LLMFailure],
        *,
        model: str = "scripted",
        revision: str = "1",
        repairs: int = 2,
    ) -> None:
        self.model, self.revision = model, revision
        self.requests: list[Request] = []
        self.calls_asked = self.calls_replayed = 0
        self._answers, self._repairs = answers, repairs

    @property
    def used_keys(self) -> frozenset[str]:
        return frozenset(request.key for request in self.requests)

    def complete(self, requests: Sequence[Request]) -> list[Completion | LLMFailure]:
        asked = {request.key: request for request in requests}
        ends = {key: self._one(request) for key, request in asked.items()}
        return [ends[request.key] for request in requests]

    def embed(self, texts: Sequence[str], *, private: bool = False) -> list[list[float]]:
        """Return unit vectors of 16 numbers that depend on nothing but the text."""
        vectors = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
            vector = np.random.default_rng(seed).normal(size=16)
            vectors.append([float(value) for value in vector / np.linalg.norm(vector)])
        return vectors

    def close(self) -> None:
        """Do nothing, as there are no connections."""

    def _one(self, request: Request) -> Completion | LLMFailure:
        talk = converse(request, self._repairs)
        due = next(talk)
        while True:
            self.requests.append(due)
            answer = self._answers(due)
            if isinstance(answer, LLMFailure):
                return answer
            self.calls_asked += 1
            try:
                due = talk.send(Reply(answer, "stop", Usage(1, 1), self.model, "json_schema"))
            except StopIteration as end:
                outcome: Completion | LLMFailure = end.value
                return replace(outcome, replayed=False) if isinstance(outcome, Completion) else outcome
