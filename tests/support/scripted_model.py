"""A scripted model: it answers chat requests by a stated rule that reads the request and nothing else.

It knows no finance and is no language model; whatever comes out of it stood in the documents that went in. The rule:

==========  ==========================================================================================================
filter      relevant when the document holds a line ``Factor idea: ...``
categorise  one item for each line ``Category: ...``, with the idea line above as summary and both lines as quotes
generate    each line ``Formula: ...`` whose ``Category:`` line above is the category asked for, word for word, with the
            line as quote and the idea line above as name and rationale; sign positive, horizon one day
repair      an operator that is unknown becomes the one that the checker's sentence suggests; anything else is given up
review      a fixed sentence
chart       abstains
==========  ==========================================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from qlib_llm_alpha.llm.request import Request
from qlib_llm_alpha.llm.schema import strict_schema

NAME = "scripted"
LESSON = "The scripted model draws no lesson."

_STEP = re.compile(r"^Step: (\w+)\.$", re.MULTILINE)
_DOCUMENT = re.compile(r"^BEGIN DOCUMENT (\S+) ([a-p]+)\n(.*?)\n?^END DOCUMENT \1 \2$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^(Factor idea|Category|Formula): *(.*?) *$", re.MULTILINE)
_WANTED = re.compile(r"^Propose at most \d+ formulas\. Category: (\w+)", re.MULTILINE)
_FORMULA = re.compile(r"^The formula: (.*)$", re.MULTILINE)
_HINT = re.compile(r"(\w+) is not an operator; (?:write|did you mean) (\w+)\(")


def answer(body: dict[str, Any]) -> str:
    """Return the text of the answer to the body of a Chat Completions request."""
    texts = {message["role"]: _text(message["content"]) for message in reversed(body["messages"])}
    step = _STEP.search(texts.get("system", ""))
    rule = _RULES.get(step.group(1)) if step else None
    return json.dumps({} if rule is None else rule(texts["user"]), ensure_ascii=False)


def answer_request(request: Request) -> str:
    """Return the answer to a request, as if it had gone over the wire."""
    schema = {"name": request.schema.__name__, "strict": True, "schema": strict_schema(request.schema)}
    response_format = {"type": "json_schema", "json_schema": schema}
    return answer(
        {
            "model": request.model,
            "messages": [message.wire() for message in request.messages],
            "response_format": response_format,
        }
    )


def _filter(prompt: str) -> dict[str, Any]:
    ideas = [line for _, text in _documents(prompt) for line in _LINE.finditer(text) if line.group(1) == "Factor idea"]
    return {"relevant": bool(ideas), "reason": ideas[0].group(0) if ideas else "no line begins with Factor idea:"}


def _categorise(prompt: str) -> dict[str, Any]:
    items = []
    for label, text in _documents(prompt):
        idea = ""
        for line in _LINE.finditer(text):
            if line.group(1) == "Factor idea":
                idea = line.group(0)
            elif line.group(1) == "Category":
                quotes = [quote for quote in (idea, line.group(0)) if quote]
                evidence = [{"document": label, "quote": quote} for quote in quotes]
                items.append({"category": line.group(2), "summary": idea, "evidence": evidence})
    return {"items": items}


def _generate(prompt: str) -> dict[str, Any]:
    wanted = _WANTED.search(prompt)
    candidates = []
    for label, text in _documents(prompt):
        idea, category = "", ""
        for line in _LINE.finditer(text):
            kind, said = line.group(1), line.group(2)
            if kind == "Factor idea":
                idea, category = said, ""
            elif kind == "Category":
                category = said
            elif wanted is not None and category in ("", wanted.group(1)):
                candidates.append(
                    {
                        "name": idea or "scripted",
                        "category": wanted.group(1),
                        "formula": said,
                        "rationale": idea,
                        "expected_sign": "positive",
                        "horizon_days": 1,
                        "evidence": [{"document": label, "quote": line.group(0)}],
                    }
                )
    return {"candidates": candidates}


def _repair(prompt: str) -> dict[str, Any]:
    formula, hint = _FORMULA.search(prompt), _HINT.search(prompt)
    if formula is None or hint is None:
        return {"gives_up": True, "formula": "", "change": "no rule for this"}
    unknown, known = hint.groups()
    mended = re.sub(rf"\b{unknown}\(", f"{known}(", formula.group(1))
    return {"gives_up": False, "formula": mended, "change": f"{unknown} became {known}"}


def _review(prompt: str) -> dict[str, Any]:
    return {"lesson": LESSON, "keep_directions": [], "drop_directions": []}


def _chart(prompt: str) -> dict[str, Any]:
    nothing = {"template": "gap", "window": 5, "formula": "", "rationale": "the scripted model sees no images"}
    return {"abstain": True, "use_template": False, **nothing}


_RULES: dict[str, Callable[[str], dict[str, Any]]] = {
    "filter": _filter,
    "categorise": _categorise,
    "generate": _generate,
    "repair": _repair,
    "review": _review,
    "chart": _chart,
}


def _documents(prompt: str) -> list[tuple[str, str]]:
    return [(found.group(1), found.group(3)) for found in _DOCUMENT.finditer(prompt)]


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")
