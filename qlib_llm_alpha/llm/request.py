"""What is asked of a model and what comes back, as values."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel

from qlib_llm_alpha.llm.schema import strict_schema

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: its role, text, and PNG images that follow the text."""

    role: Role
    text: str
    images: tuple[bytes, ...] = field(default=(), repr=False)

    def wire(self) -> dict[str, Any]:
        """Return the message as Chat Completions take it, images as data URIs."""
        if not self.images:
            return {"role": self.role, "content": self.text}
        parts: list[dict[str, Any]] = [{"type": "text", "text": self.text}]
        for image in self.images:
            uri = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
            parts.append({"type": "image_url", "image_url": {"url": uri}})
        return {"role": self.role, "content": parts}


@dataclass(frozen=True)
class PromptStamp:
    """Which prompt file a request was made from: name, version as stated in the file, SHA-256 of the file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Parameters
    ----------
    purpose : str
        The step that asks, such as ``filter`` or ``generate``; for people, no part of the key.
    messages : tuple of Message
    schema : type of BaseModel
        What the answer must be.
    model : str
        The model's name at the endpoint.
    revision : str
        As the model registry has it, empty when unknown; part of the key.
    temperature : float
    max_tokens : int
        Of the answer.
    sample : int
        Tells apart several answers to the same question.
    prompt : PromptStamp, optional
    documents : tuple of str
        Ids of the documents whose text is in the messages.
    private : bool
        Some of that text must not leave this machine.
    as_of : str
        Nothing later than this day is in the messages; empty: not dated.
    """

    purpose: str
    messages: tuple[Message, ...]
    schema: type[BaseModel]
    model: str
    revision: str = ""
    temperature: float = 0.0
    max_tokens: int = 2048
    sample: int = 0
    prompt: PromptStamp | None = None
    documents: tuple[str, ...] = ()
    private: bool = False
    as_of: str = ""

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that can change the answer: model, revision, messages, images, parameters, schema."""
        return hashlib.sha256(self.canonical.encode("utf-8")).hexdigest()

    @cached_property
    def canonical(self) -> str:
        """What the key is the hash of, as JSON; an image stands there as its SHA-256."""
        content = {
            "model": self.model,
            "revision": self.revision,
            "messages": [
                {
                    "role": message.role,
                    "text": message.text,
                    "images": [hashlib.sha256(image).hexdigest() for image in message.images],
                }
                for message in self.messages
            ],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "sample": self.sample,
            "schema": strict_schema(self.schema),
        }
        return json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))

    def followed_by(self, *messages: Message, max_tokens: int | None = None) -> Request:
        """Return the request with further turns, as for a repair."""
        return replace(self, messages=self.messages + messages, max_tokens=max_tokens or self.max_tokens)


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counted them; None where it did not say, never 0 for unknown."""

    prompt: int | None = None
    answer: int | None = None
    cached: int | None = None
    reasoning: int | None = None

    def __add__(self, other: Usage) -> Usage:
        def total(one: int | None, two: int | None) -> int | None:
            return None if one is None and two is None else (one or 0) + (two or 0)

        return Usage(
            total(self.prompt, other.prompt),
            total(self.answer, other.answer),
            total(self.cached, other.cached),
            total(self.reasoning, other.reasoning),
        )


@dataclass(frozen=True)
class Reply:
    """What a server answered to one request: not yet read, not yet believed.

    Parameters
    ----------
    text : str
        The answer's text as sent; reasoning that came apart is not in it.
    finish : str
        ``stop``, ``length``, ``content_filter``, ``refusal``, or whatever the server said.
    usage : Usage
        Of this answer.
    model : str
        The model as the server named it.
    mode : str
        Rung of the ladder on which it was given: ``json_schema``, ``json_object_schema``, ``json_object``, ``prompt``.
    attempts : int
        HTTP requests that were sent for it, this one included.
    seconds : float
        From the first attempt to the answer.
    reasoning : str
        Text that the model wrote for itself, where the server sends it apart; kept, never read.
    """

    text: str
    finish: str
    usage: Usage
    model: str
    mode: str
    attempts: int = 1
    seconds: float = 0.0
    reasoning: str = ""


@dataclass(frozen=True)
class Completion:
    """A validated answer.

    Parameters
    ----------
    value : BaseModel
        An instance of the request's schema.
    text : str
        What the model wrote in its last turn.
    usage : Usage
        Of all turns.
    calls : tuple of str
        Keys of the requests that were answered on the way, repairs included; the last gave the value.
    model : str
        As the server named it.
    replayed : bool
        No turn was asked of a server now.
    """

    value: BaseModel
    text: str
    usage: Usage
    calls: tuple[str, ...]
    model: str
    replayed: bool
