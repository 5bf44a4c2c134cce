"""What servers send, read without trust: any text comes in, and a plain value or a fault comes out."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from qlib_llm_alpha.llm.request import Usage
from qlib_llm_alpha.llm.transport_errors import BodyTooLong, Fault, fault

MOST_BYTES: Final = 16 * 2**20
"""Of the body of a reply, unpacked: far beyond the longest answer, far below what fills a memory."""

_SHOWN: Final = 200  # characters of a server's words in a message
_MOST_TOKENS: Final = 10**12  # a server that counts more does not know


@dataclass(frozen=True)
class Heard:
    """A chat completion: text, finish reason, tokens, the model's name as sent, and reasoning that came apart."""

    text: str
    finish: str
    usage: Usage
    model: str
    reasoning: str


@dataclass(frozen=True)
class Vectors:
    """Embeddings in the order of the texts, tokens, and the model's name as sent."""

    values: list[list[float]]
    usage: Usage
    model: str


async def read_bounded(response: Any) -> None:
    """Make a response of the HTTP library stop with a :class:`BodyTooLong` when its body passes :data:`MOST_BYTES`.

    Called before the body is read. What is counted is unpacked, so that a small body that unpacks to a large one stops
    too.
    """
    unbounded = response.aiter_bytes

    async def bounded(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        size = 0
        async with aclosing(unbounded(chunk_size)) as parts:
            async for part in parts:
                size += len(part)
                if size > MOST_BYTES:
                    raise BodyTooLong(f"the reply has more than {MOST_BYTES} bytes; check OPENAI_BASE_URL")
                yield part

    response.aiter_bytes = bounded


def hear_chat(raw: str) -> Heard | Fault:
    """Read the body of a chat completion.

    A choice with a message is an answer, whatever stands in it: parts of text are joined, an object becomes JSON text,
    nothing becomes an empty text, half a character becomes U+FFFD so that the text can be stored. A refusal is the
    text, with ``refusal`` as the reason. Anything without a message is a fault.
    """
    try:
        body = _object(raw)
        return body if isinstance(body, Fault) else _heard(body, raw)
    except RecursionError:
        return fault("malformed_reply", "the reply is nested too deeply to be read")


def hear_vectors(raw: str, count: int) -> Vectors | Fault:
    """Read the body of ``count`` embeddings; too few, of different lengths or not finite is a fault."""
    body = _object(raw)
    if isinstance(body, Fault):
        return body
    usage, data = _usage(body.get("usage")), body.get("data")
    rows = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    # Some servers leave the index out; then the order is that of the texts.
    places = [row.get("index", number) for number, row in enumerate(rows)]
    vectors = [_vector(row.get("embedding")) for row in rows]
    if sorted(map(str, places)) != sorted(map(str, range(count))) or not _alike(vectors):
        return fault("malformed_reply", f"the reply holds no {count} vectors of one length: {raw[:_SHOWN]!r}", usage)
    ordered = dict(zip(map(str, places), vectors, strict=True))
    return Vectors([ordered[str(number)] for number in range(count)], usage, _text(body.get("model")))


def _heard(body: Mapping[str, Any], raw: str) -> Heard | Fault:
    usage = _usage(body.get("usage"))
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return fault("malformed_reply", f"the reply has no choice with a message: {raw[:_SHOWN]!r}", usage)
    finish, text = _text(choice.get("finish_reason")), _text(message.get("content"))
    refusal = _text(message.get("refusal"))
    if refusal:
        finish, text = "refusal", refusal
    reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    return Heard(text, finish, usage, _text(body.get("model")), reasoning)


def _object(raw: str) -> Mapping[str, Any] | Fault:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        return body
    return fault("malformed_reply", f"the reply is no JSON object: {raw[:_SHOWN]!r}; check OPENAI_BASE_URL")


def _text(value: object) -> str:
    """Return a text from whatever stands where one is due."""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        value = "".join(part["text"] for part in value if isinstance(part.get("text"), str))
    elif value is not None and not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    return (value or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _usage(value: object) -> Usage:
    block = value if isinstance(value, dict) else {}
    cached = _count(block, "prompt_tokens_details", "cached_tokens")
    return Usage(
        prompt=_count(block, "prompt_tokens"),
        answer=_count(block, "completion_tokens"),
        cached=_count(block, "prompt_cache_hit_tokens") if cached is None else cached,
        reasoning=_count(block, "completion_tokens_details", "reasoning_tokens"),
    )


def _count(block: Mapping[str, Any], *path: str) -> int | None:
    value: object = block
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MOST_TOKENS else None


def _vector(value: object) -> list[float]:
    """Return a vector; an empty one when it is none or holds what is no finite number."""
    if not isinstance(value, list) or not all(isinstance(one, int | float) for one in value):
        return []
    try:
        vector = [float(one) for one in value]
    except OverflowError:
        return []
    return vector if all(map(math.isfinite, vector)) else []


def _alike(vectors: Sequence[list[float]]) -> bool:
    return all(vectors) and len({len(vector) for vector in vectors}) <= 1
