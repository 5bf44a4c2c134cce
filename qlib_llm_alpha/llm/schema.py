"""JSON schemas in the subset that every server with strict output takes, the same with every release of pydantic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from qlib_llm_alpha.errors import ConfigError

_KEPT: Final = ("type", "enum", "description", "items", "anyOf")


def strict_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a pydantic model: every property required, no others allowed, no references.

    Bounds, patterns, lengths, titles and defaults are left out, since servers differ in what they take; pydantic
    enforces them when the answer is read.

    Raises
    ------
    ConfigError
        A property may hold anything, or a mapping with free keys, which strict servers refuse.
    """
    raw = model.model_json_schema()
    return _strict(raw, raw.get("$defs", {}), model.__name__)


def schema_text(model: type[BaseModel]) -> str:
    """Return :func:`strict_schema` as one line of JSON, keys in the order of the model's fields."""
    return json.dumps(strict_schema(model), ensure_ascii=False)


def _strict(raw: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "$ref" in raw:
        found = _strict(shared[raw["$ref"].rsplit("/", 1)[-1]], shared, where)
        # What the field says of itself is nearer than what its class says.
        return {**found, "description": raw["description"]} if "description" in raw else found
    if len(raw.get("allOf", ())) == 1:  # how some releases wrap a reference that has a description
        return _strict({**raw["allOf"][0], **{k: v for k, v in raw.items() if k != "allOf"}}, shared, where)
    node: dict[str, Any] = {key: raw[key] for key in _KEPT if key in raw}
    if "const" in raw:
        node["enum"] = [raw["const"]]
        node.setdefault("type", _type_of(raw["const"]))
    if "anyOf" in node:
        node["anyOf"] = [_strict(one, shared, where) for one in node["anyOf"]]
    if "items" in node:
        node["items"] = _strict(node["items"], shared, f"{where}[]")
    if raw.get("type") == "object":
        if "properties" not in raw:
            raise ConfigError(f"{where} has free keys; expected named fields; use a list of named fields instead")
        node["properties"] = {name: _strict(one, shared, f"{where}.{name}") for name, one in raw["properties"].items()}
        node["required"] = list(raw["properties"])
        node["additionalProperties"] = False
    if not {"type", "enum", "anyOf"} & set(node):
        raise ConfigError(f"{where} may hold anything; expected a stated type; annotate the field")
    return node


def _type_of(value: object) -> str:
    return {str: "string", bool: "boolean", int: "integer", float: "number"}.get(type(value), "null")
