"""What is said to a model after its answer, until there is a value or a failure: a pure function of its replies."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeAlias

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.llm.failures import failure
from qlib_llm_alpha.llm.reading import Misread, read_answer, without_thoughts
from qlib_llm_alpha.llm.request import Completion, Message, Reply, Request, Usage

Conversation: TypeAlias = Generator[Request, Reply, Completion | LLMFailure]
"""Yields each request that has to be answered, is sent its reply, and returns how it ended."""

_ECHOED: Final = 6000  # characters of a wrong answer that the model is shown again


def converse(request: Request, repairs: int = 2) -> Conversation:
    """Ask, and ask again where an answer cannot be used.

    ========================  ==================================================================================
    the reply is              what follows
    ========================  ==================================================================================
    an instance               the value
    cut at the token limit    the same once more with twice the tokens; then the failure ``truncated``
    blank                     one turn that says so, within ``repairs``; then ``blank``
    no instance               a turn with what is wrong, at most ``repairs`` times; then ``invalid``
    a refusal                 the failure ``refusal``
    withheld by a filter      the failure ``filtered``
    ========================  ==================================================================================

    Parameters
    ----------
    request : Request
    repairs : int
        Turns in which the model may mend its answer, blank ones included.

    Returns
    -------
    generator
        Of requests; its value is a Completion, with ``replayed`` False, or the LLMFailure. Either carries the usage of
        all turns.
    """
    usage = Usage()
    calls: tuple[str, ...] = ()
    longer = told_blank = False
    while True:
        reply = yield request
        usage, calls = usage + reply.usage, (*calls, request.key)
        if reply.finish == "refusal":
            said = without_thoughts(reply.text)[:200]
            return _ended("refusal", f"the model declined: {said!r}", request, reply, usage)
        if reply.finish == "content_filter":
            return _ended("filtered", "the provider's filter withheld the answer", request, reply, usage)
        if reply.finish == "length":
            if longer:
                detail = f"the answer is longer than {request.max_tokens} tokens; raise max_tokens or ask for less"
                return _ended("truncated", detail, request, reply, usage)
            longer = True
            request = request.followed_by(max_tokens=2 * request.max_tokens)
            continue
        read = read_answer(reply.text, request.schema)
        if not isinstance(read, Misread):
            return Completion(read, reply.text, usage, calls, reply.model, replayed=False)
        if not repairs or (read.blank and told_blank):
            return _ended("blank" if read.blank else "invalid", read.problem, request, reply, usage)
        repairs, told_blank = repairs - 1, told_blank or read.blank
        request = request.followed_by(*_repair_turns(reply.text, read.problem))


def _repair_turns(text: str, problem: str) -> tuple[Message, Message]:
    # Half a surrogate pair in a model's text cannot be sent back.
    said = without_thoughts(text)[:_ECHOED].encode("utf-8", "replace").decode("utf-8")
    asked = problem.encode("utf-8", "replace").decode("utf-8")
    return (
        Message("assistant", said or "(nothing)"),
        Message(
            "user",
            f"This answer cannot be used: {asked}.\nAnswer again, with the whole JSON object that was asked for and "
            "nothing else.",
        ),
    )


def _ended(kind: str, detail: str, request: Request, reply: Reply, usage: Usage) -> LLMFailure:
    return failure(kind, f"{request.purpose}, call {request.key[:12]}: {detail}", usage=usage, text=reply.text)
