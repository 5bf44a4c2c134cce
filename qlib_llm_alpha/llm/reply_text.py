"""Replies as JSON: what journals and recordings keep of them, and the hash by which they are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from qlib_llm_alpha.llm.request import Reply, Usage

_PASSING: Final = ("attempts", "seconds")
"""What says how the call went, not what was answered; it differs when the same is asked again."""


def reply_to_dict(reply: Reply, *, passing: bool = True) -> dict[str, Any]:
    """Return a reply as JSON values; without ``passing``, only what was answered."""
    content = asdict(reply)
    return content if passing else {name: value for name, value in content.items() if name not in _PASSING}


def reply_of(content: Mapping[str, Any]) -> Reply:
    """Return the reply that :func:`reply_to_dict` wrote; ValueError when it did not."""
    try:
        fields = dict(content)
        reply = Reply(**{**fields, "usage": Usage(**fields["usage"])})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no reply: {error}") from error
    words = (reply.text, reply.finish, reply.model, reply.mode, reply.reasoning)
    counts = (reply.usage.prompt, reply.usage.answer, reply.usage.cached, reply.usage.reasoning)
    if not all(isinstance(word, str) for word in words) or not all(isinstance(n, int | None) for n in counts):
        raise ValueError("no reply: a text or a count is of another type")
    return reply


def reply_sha256(reply: Reply) -> str:
    """Return the SHA-256 of what was answered; the same in the session that asked and in one that replays it."""
    return hashlib.sha256(canonical_json(reply_to_dict(reply, passing=False)).encode("ascii")).hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and ASCII letters only, so that even half a surrogate pair can be stored."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, allow_nan=False, separators=(",", ":"))
