"""Read what a model wrote into an instance of a pydantic model.

A strange form is mended: reasoning in front, code fences, prose around, Python's literals, one object where a list is
due, a wrapper around the answer. What was not said is never made up: a missing field, a broken or cut value, a number
that is none are problems, told in words with which the model can mend its answer.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from qlib_llm_alpha.llm.json_text import find_values

LONGEST: Final = 200_000
"""Characters of an answer; a longer one is refused unread."""

MOST_TOLD: Final = 5
"""Faults that a problem names."""

_OPEN: Final = re.compile(r"\s*<(think|thinking|thought|reasoning)>", re.IGNORECASE)
_CLOSE: Final = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_MOST_VALUES, _MOST_MENDINGS = 20, 50

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Misread:
    """Why a text is no answer, for the model to mend; ``blank``: nothing was written beside reasoning."""

    problem: str
    blank: bool = False


def read_answer(text: str, schema: type[M]) -> M | Misread:
    """Read a model's text.

    Parameters
    ----------
    text : str
        As the server sent it.
    schema : type of BaseModel

    Returns
    -------
    instance of ``schema``, or Misread
        Where several values stand in the text, the last that is an instance as it stands; else the last that can be
        mended into one. Keys that the schema does not know are dropped.
    """
    if len(text) > LONGEST:
        return Misread(f"the answer has {len(text)} characters; at most {LONGEST} are read")
    answer, open_thought = _after_thoughts(text)
    if not answer.strip(" \t\r\n`"):
        return Misread("the answer is empty", blank=True)
    found = find_values(answer)
    values = list(found.values[-_MOST_VALUES:])
    if open_thought:
        # What follows a thought that never ends is thought too, except for a value with which the text ends.
        end = len(answer.rstrip(" \t\r\n`"))
        values = [one for one in values if one[1] == end]
    if not values:
        return Misread(found.broken or "there is no JSON object in the answer")
    for _, _, value in reversed(values):
        whole = _validated(value, schema)
        if isinstance(whole, schema):
            return whole
    if found.broken:
        return Misread(found.broken)
    for _, _, value in reversed(values):
        mended = _mended(value, schema)
        if isinstance(mended, schema):
            return mended
    largest = max(values, key=lambda one: one[1] - one[0])[2]
    problem = _validated(largest, schema)
    return Misread(_told(problem) if isinstance(problem, ValidationError) else str(problem))


def without_thoughts(text: str) -> str:
    """Return a model's text without the reasoning in front of it."""
    answer, _ = _after_thoughts(text)
    return answer.strip()


def _after_thoughts(text: str) -> tuple[str, bool]:
    """Return what follows the reasoning, and whether the reasoning never ended."""
    place = 0
    while (opening := _OPEN.match(text, place)) is not None:
        closing = _CLOSE.search(text, opening.end())
        if closing is None:
            return text[opening.end() :], True
        place = closing.end()
    rest = text[place:]
    if not rest.lstrip().startswith(("{", "[", "`")):
        # Some templates write the opening tag into the prompt, so that only the closing one is in the answer.
        ends = [closing.end() for closing in _CLOSE.finditer(rest)]
        rest = rest[ends[-1] :] if ends else rest
    return rest, False


def _validated(value: Any, schema: type[M]) -> M | ValidationError | str:
    try:
        read = schema.model_validate_json(json.dumps(value, allow_nan=False))
    except ValidationError as error:
        return error
    if not all(map(math.isfinite, _floats(read.model_dump()))):
        return "NaN and Infinity are no numbers here; use null, or leave the item out"
    return read


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _floats(one)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            yield from _floats(one)


def _mended(value: Any, schema: type[M]) -> M | None:
    """Try the value as it is, without a wrapper, and as the one list of the schema; mend each where its form is off."""
    for form in _forms(value, schema):
        read = _with_right_shapes(copy.deepcopy(form), schema)
        if read is not None:
            return read
    return None


def _forms(value: Any, schema: type[BaseModel]) -> Iterator[Any]:
    yield value
    names = {alias for name, field in schema.model_fields.items() for alias in (name, field.alias) if alias}
    inner = value
    if isinstance(value, list) and len(value) == 1:
        inner = value[0]
        yield inner
    if isinstance(inner, dict) and len(inner) == 1 and not names & set(inner):
        inner = next(iter(inner.values()))
        yield inner
    if len(schema.model_fields) == 1:
        name, field = next(iter(schema.model_fields.items()))
        if isinstance(inner, list) or (isinstance(inner, dict) and not names & set(inner)):
            yield {field.alias or name: inner}


def _with_right_shapes(value: Any, schema: type[M]) -> M | None:
    holder = {"": value}
    for _ in range(_MOST_MENDINGS):
        read = _validated(holder[""], schema)
        if isinstance(read, schema):
            return read
        if not isinstance(read, ValidationError):
            return None
        faults = read.errors(include_url=False, include_input=False, include_context=False)
        if not any([_mend(holder, ("", *fault["loc"]), fault["type"]) for fault in faults]):
            return None
    return None


def _mend(holder: dict[str, Any], place: Sequence[str | int], kind: str) -> bool:
    """Change the form of one value in place; False where the fault is not one of form."""
    parent: Any = holder
    for step in place[:-1]:
        parent = _item(parent, step)
    last = place[-1]
    given = _item(parent, last)
    if given is _NOTHING:
        return False
    if kind == "extra_forbidden" and isinstance(parent, dict):
        del parent[last]
    elif kind in ("list_type", "tuple_type", "set_type") and given is not None and not isinstance(given, list):
        parent[last] = [given]
    elif kind in ("model_type", "model_attributes_type", "dict_type") and isinstance(given, list) and len(given) == 1:
        parent[last] = given[0]
    else:
        return False
    return True


_NOTHING: Final = object()


def _item(parent: Any, step: str | int) -> Any:
    if isinstance(parent, dict) and step in parent:
        return parent[step]
    if isinstance(parent, list) and isinstance(step, int) and step < len(parent):
        return parent[step]
    return _NOTHING


def _told(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{_place(fault['loc'])}: {_plain(fault['msg'], 160)}" for fault in faults[:MOST_TOLD]]
    more = f"; and {len(faults) - MOST_TOLD} more" if len(faults) > MOST_TOLD else ""
    return "; ".join(told) + more


def _place(steps: Sequence[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{_plain(step, 40)}" for step in steps[:8])
    return text.lstrip(".") or "the answer"


def _plain(text: str, longest: int) -> str:
    kept = "".join(letter if letter.isprintable() else " " for letter in text)
    return kept if len(kept) <= longest else f"{kept[: longest - 3]}..."
