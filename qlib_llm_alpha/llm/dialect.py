"""How a question is put to one model of one server: which rung of the ladder, which names of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from qlib_llm_alpha.llm.models import LADDER, ModelInfo, SchemaMode
from qlib_llm_alpha.llm.request import Message, Request
from qlib_llm_alpha.llm.schema import schema_text, strict_schema

LimitField = Literal["max_tokens", "max_completion_tokens"]

_OTHER: Final[Mapping[LimitField, LimitField]] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
_ABOUT_FORM: Final = re.compile(r"response_format|schema|json", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """What a server takes, as far as it is known.

    Parameters
    ----------
    rungs : tuple of str
        Rungs of the ladder that may work, best first, never empty; the first is used.
    limit : str
        What the server calls the limit of the answer.
    limit_is_sure : bool
        The other name was tried.
    temperature : bool
        A temperature may be sent; models that reason take none.
    enforced : bool
        The registry says that the server keeps to the schema on the strict rung. Where it does not say so, the schema
        stands in the prompt there too: some servers take a schema and look at none of it.
    """

    rungs: tuple[SchemaMode, ...] = LADDER
    limit: LimitField = "max_tokens"
    limit_is_sure: bool = False
    temperature: bool = True
    enforced: bool = False

    @classmethod
    def of(cls, info: ModelInfo) -> Dialect:
        """Return the dialect that the registry says; with an unknown model the ladder is tried from its top."""
        named = [mode for mode in info.schema_modes if mode != "prompt"] if info.schema_modes else LADDER[:-1]
        return cls(
            (*named, "prompt"), info.max_tokens_field, enforced="json_schema" in named and bool(info.schema_modes)
        )

    @property
    def mode(self) -> SchemaMode:
        """The rung that is used."""
        return self.rungs[0]

    def body(self, request: Request) -> dict[str, Any]:
        """Return the request as the server takes it.

        On every rung but a strict one that is known to hold, the schema and the word JSON stand in the system turn too:
        many servers demand the word, and most do not enforce the schema.
        """
        strict = self.mode == "json_schema" and self.enforced
        messages = request.messages if strict else _told_to_write_json(request)
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [message.wire() for message in messages],
            self.limit: request.max_tokens,
        }
        if self.temperature:
            body["temperature"] = request.temperature
        form = _response_format(self.mode, request)
        if form is not None:
            body["response_format"] = form
        return body

    def after(self, status: int | None, said: str) -> Dialect | None:
        """Return what to try next when the server refused the request in these words; None when nothing is left.

        Parameters
        ----------
        status : int, optional
            Of HTTP. Some servers fail with 500 where they should refuse.
        said : str
            The server's words.
        """
        if status in (400, 422):
            if not self.limit_is_sure and re.search(rf"\b{self.limit}\b", said):
                return replace(self, limit=_OTHER[self.limit], limit_is_sure=True)
            if self.temperature and "temperature" in said:
                return replace(self, temperature=False)
        if status in (400, 422, 500) and len(self.rungs) > 1 and _ABOUT_FORM.search(said):
            return replace(self, rungs=self.rungs[1:])
        return None


def _told_to_write_json(request: Request) -> tuple[Message, ...]:
    order = (
        "Answer with one JSON object and nothing else: no Markdown, no words before or after it. It must follow this "
        f"JSON schema:\n{schema_text(request.schema)}"
    )
    first, *others = request.messages
    if first.role != "system":
        return (Message("system", order), *request.messages)
    return (replace(first, text=f"{first.text}\n\n{order}"), *others)


def _response_format(mode: SchemaMode, request: Request) -> dict[str, Any] | None:
    if mode == "json_schema":
        name = re.sub(r"[^A-Za-z0-9_-]", "_", request.schema.__name__)[:64]
        schema = strict_schema(request.schema)
        return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
    if mode == "json_object_schema":
        return {"type": "json_object", "schema": strict_schema(request.schema)}
    return {"type": "json_object"} if mode == "json_object" else None
