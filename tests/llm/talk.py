"""Requests, and a server's side without a server, for the tests of this room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pydantic import BaseModel

from qlib_llm_alpha.llm.budget import Charge
from qlib_llm_alpha.llm.request import Message, PromptStamp, Reply, Request, Usage

STAMP = PromptStamp("generate", "3", "ab" * 32)


class Answer(BaseModel):
    number: int


def request(text: str, *, purpose: str = "generate", max_tokens: int = 100, sample: int = 0) -> Request:
    return Request(
        purpose,
        (Message("system", "Answer with a number."), Message("user", text)),
        Answer,
        "model-a",
        "r1",
        max_tokens=max_tokens,
        sample=sample,
        prompt=STAMP,
        documents=("doc-1",),
        as_of="2020-06-30",
    )


def reply(text: str, *, finish: str = "stop", model: str = "model-a-2026", usage: Usage | None = None) -> Reply:
    return Reply(text, finish, usage or Usage(10, 5), model, "json_schema", attempts=2, seconds=0.25)


class FakeGateway:
    """Answers from a function, after a moment; counts what is in flight."""

    def __init__(self, answers: Callable[[Request], Reply], *, concurrency: int = 4, wait_s: float = 0.002) -> None:
        self.concurrency = concurrency
        self.asked: list[Request] = []
        self.embedded: list[str] = []
        self.most_in_flight = self.in_flight = 0
        self.closed = False
        self.charged: Callable[[Charge], None] = lambda charge: None
        self._answers, self._wait_s = answers, wait_s

    async def answer(self, request: Request) -> Reply:
        self.asked.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self._wait_s)
            return self._answers(request)
        finally:
            self.in_flight -= 1

    async def embed(self, texts: Sequence[str], model: str, *, private: bool = False) -> list[list[float]]:
        self.embedded += texts
        return [[float(len(text)), 0.1] for text in texts]

    async def close(self) -> None:
        self.closed = True
