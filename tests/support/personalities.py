"""What the stub server's models say: fixed rules from a prompt to an answer. Scripts, not language models.

A personality is a function of what was asked (:class:`Asked`) that returns the text of the answer. The oracle states
its rules in :data:`RULES`: it writes only what a rule finds in the prompt, so that another document gives another
answer. The others are the oracle with one vice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Memory = Mapping[str, str]


@dataclass(frozen=True)
class Asked:
    """One chat request as a model sees it: the body, how often this conversation came before, what it remembers."""

    body: Mapping[str, Any]
    number: int = 0
    memory: Memory | None = None

    @cached_property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the answer, from ``response_format`` or out of the prompt's text."""
        form = self.body.get("response_format")
        if isinstance(form, dict):
            wrapped = form.get("json_schema")
            if isinstance(wrapped, dict) and isinstance(wrapped.get("schema"), dict):
                return dict(wrapped["schema"])
            if isinstance(form.get("schema"), dict):
                return dict(form["schema"])
        found = [value for text in self._texts() for value, _ in _objects_in(text) if _is_schema(value)]
        return found[-1] if found else None

    @cached_property
    def words(self) -> str:
        """The user's first turn without any schema in it: what rules are applied to."""
        text = next((text_of(one) for one in self.body.get("messages", ()) if one.get("role") == "user"), "")
        for value, place in reversed(list(_objects_in(text))):
            if _is_schema(value):
                text = text[: place.start] + text[place.stop :]
        return text

    @cached_property
    def system(self) -> str:
        """The system prompt."""
        return "\n".join(text_of(one) for one in self.body.get("messages", ()) if one.get("role") == "system")

    @cached_property
    def documents(self) -> tuple[tuple[str, str], ...]:
        """Documents in the prompt as (label, text): what stands between BEGIN DOCUMENT and END DOCUMENT."""
        return tuple((label, text.strip()) for label, text in _DOCUMENT.findall(self.words))

    def _texts(self) -> Iterator[str]:
        return (text_of(one) for one in self.body.get("messages", ()) if one.get("role") != "assistant")


@dataclass(frozen=True)
class Fact:
    """A sentence that a rule understood, and the formula that the rule writes for it."""

    document: str
    quote: str
    name: str
    category: str
    formula: str


# (name, category, what is looked for, formula); {n} is the number of days that the sentence names.
RULES = (
    ("reversal", "mean_reversion", r"(\d+)[- ]day reversal|(\d+) ?日反转", "0-($close/Ref($close,{n})-1)"),
    ("momentum", "momentum", r"(\d+)[- ]day momentum|(\d+) ?日动量", "$close/Ref($close,{n})-1"),
    ("volatility", "volatility", r"(\d+)[- ]day volatility|(\d+) ?日波动", "0-Std($close/Ref($close,1)-1,{n})"),
    (
        "divergence",
        "technical",
        r"(\d+)[- ]day (?:price[- ]volume|volume[- ]price) divergence|(\d+) ?日量价背离",
        "0-Corr($close,Log($volume+1),{n})",
    ),
    ("volume", "liquidity", r"(\d+)[- ]day volume|(\d+) ?日成交量", "0-$volume/(Mean($volume,{n})+1e-12)"),
    ("range", "volatility", r"(\d+)[- ]day range|(\d+) ?日振幅", "0-Mean(($high-$low)/$close,{n})"),
)


def facts(asked: Asked) -> list[Fact]:
    """Return what :data:`RULES` find in the documents, in the order of the text, without repetition.

    Where a prompt shows no document, two more rules hold: each formula known already comes again with its windows
    doubled, and each field of the market comes over its mean of ten days.
    """
    if not asked.documents and _KNOWN in asked.words:
        return _asked_for(asked, _variations(asked))
    found: dict[str, Fact] = {}
    for document, text in asked.documents or (("", asked.words),):
        for sentence in _SENTENCE.findall(text):
            for name, category, pattern, formula in RULES:
                match = re.search(pattern, sentence, re.IGNORECASE)
                if match is not None:
                    days = next(one for one in match.groups() if one)
                    written = formula.replace("{n}", days)
                    found.setdefault(written, Fact(document, sentence.strip(), f"{name}_{days}", category, written))
    return _asked_for(asked, list(found.values()))


def oracle(asked: Asked) -> str:
    """Fill the schema with what the rules find; abstain where they find nothing."""
    return json.dumps(filled(asked, facts(asked)), ensure_ascii=False)


def malformed(asked: Asked) -> str:
    """Break the oracle's answer, in a way that depends on the question and the number of the call."""
    text = oracle(asked)
    broken = (
        text[: max(1, len(text) // 2)],
        text.replace('"', "'", 3) + ",}",
        json.dumps({"surprise": True, "extra": [1, 2, 3]}),
        json.dumps(_other_types(json.loads(text))),
        "I would rather talk about the weather.",
    )
    return broken[(_dice(asked, "malformed") + asked.number) % len(broken)]


def liar(asked: Asked) -> str:
    """Invent document ids, quotes and numbers; the form is right."""
    invented = [
        Fact("doc-that-does-not-exist", "It was proven beyond doubt that it earns 48.7 percent a year.", *rest)
        for rest in ((one.name, one.category, one.formula) for one in facts(asked) or _INVENTED)
    ]
    return json.dumps(filled(asked, invented, number=48.7), ensure_ascii=False)


def obedient(asked: Asked) -> str:
    """Do what a document says, where it gives orders; be the oracle otherwise."""
    text = "\n".join(text for _, text in asked.documents) or asked.words
    if not _ORDER.search(text):
        return oracle(asked)
    order = next(iter(_SENTENCE.findall(text[_ORDER.search(text).start() :])), text).strip()  # type: ignore[union-attr]
    document = asked.documents[0][0] if asked.documents else ""
    told = [Fact(document, order, "as_told", "momentum", "Ref($close,-1)/$close-1")]
    return json.dumps(filled(asked, told, number=10, prose=asked.system), ensure_ascii=False)


def noisy(asked: Asked) -> str:
    """Answer otherwise on each call: windows move with the number of the call."""
    moved = [
        Fact(one.document, one.quote, one.name, one.category, re.sub(r",(\d+)\)", _later(asked.number), one.formula))
        for one in facts(asked) or _INVENTED
    ]
    return json.dumps(filled(asked, moved, salt=str(asked.number)), ensure_ascii=False)


def clairvoyant(asked: Asked) -> str:
    """Answer a question about a date from ``memory``; the oracle where there is no date that it remembers."""
    for date in _DATE.findall(asked.words):
        answer = (asked.memory or {}).get(date)
        if answer is not None:
            return json.dumps(filled(asked, facts(asked), remembered=answer), ensure_ascii=False)
    return oracle(asked)


def amnesiac(asked: Asked) -> str:
    """Abstain from questions about a date; the oracle otherwise."""
    if _DATE.search(asked.words):
        return json.dumps(filled(asked, [], abstain=True), ensure_ascii=False)
    return oracle(asked)


PERSONALITIES: dict[str, Callable[[Asked], str]] = {
    "oracle": oracle,
    "malformed": malformed,
    "liar": liar,
    "obedient": obedient,
    "noisy": noisy,
    "clairvoyant": clairvoyant,
    "amnesiac": amnesiac,
}


@dataclass(frozen=True)
class _Pen:
    """What a schema is filled with, besides facts."""

    asked: Asked
    number: float | None = None
    prose: str = ""
    salt: str = ""
    remembered: str = ""
    abstain: bool = False


def filled(asked: Asked, found: list[Fact], **pen: Any) -> Any:
    """Return an instance of the schema asked for, from facts; free text where no schema was given."""
    if asked.schema is None:
        return {"answer": found[0].formula if found else "nothing found"}
    return _value(asked.schema, "", found[0] if found else None, found, _Pen(asked, **pen))


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))


_DOCUMENT = re.compile(r"^BEGIN DOCUMENT (\S+)(?: (?:\S+))?\n(.*?)\nEND DOCUMENT \1", re.DOTALL | re.MULTILINE)
_SENTENCE = re.compile(r"[^.!?\u3002\uff01\uff1f\n]+[.!?\u3002\uff01\uff1f]?")
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")
_ORDER = re.compile(r"ignore (?:all|any|the|your) |system prompt|rate (?:yourself|itself|this)|tomorrow's price", re.I)
_KNOWN, _MARKET = "Known already:", "The market, in rough figures:"
_FIELD = re.compile(r"(?<!\$)\$[a-z]\w*")
_INVENTED = [
    Fact("", "Prices that fell for a week tend to recover.", "week_reversal", "mean_reversion", "0-Delta($close,5)")
]
_FORMULA_FIELDS = ("formula", "expression", "expr")
_NAME_FIELDS = ("name", "id", "title", "slug")
_QUOTE_FIELDS = ("quote", "passage", "span")
_DOCUMENT_FIELDS = ("document", "doc_id", "document_id", "source", "source_id")
_FACTORY_FIELDS = (*_FORMULA_FIELDS, *_QUOTE_FIELDS, *_DOCUMENT_FIELDS, "category")


def _value(schema: Mapping[str, Any], name: str, fact: Fact | None, found: list[Fact], pen: _Pen) -> Any:
    if "enum" in schema:
        return _choice(schema["enum"], name, fact, pen)
    if "anyOf" in schema:
        return _option(schema["anyOf"], name, fact, found, pen)
    kind = schema.get("type")
    if isinstance(kind, list):
        return _option([{**schema, "type": one} for one in kind], name, fact, found, pen)
    if kind == "object":
        return {key: _value(one, key, fact, found, pen) for key, one in schema.get("properties", {}).items()}
    if kind == "array":
        return _items(schema.get("items", {"type": "string"}), name, fact, found, pen)
    if kind == "boolean":
        return _truth(name, found, pen)
    if kind in {"integer", "number"}:
        return _number(kind, name, found, pen)
    return None if kind == "null" else _words(name, fact, pen)


def _asked_for(asked: Asked, found: list[Fact]) -> list[Fact]:
    """Keep what the prompt wants: its category, and no more than it says."""
    category = re.search(r"^Propose .*Category: (\w+)", asked.words, re.MULTILINE)
    if category is not None and any(category.group(1) == rule[1] for rule in RULES):
        found = [one for one in found if one.category == category.group(1)]
    most = re.search(r"[Pp]ropose at most (\d+)", asked.words)
    return found[: int(most.group(1))] if most is not None else found


def _variations(asked: Asked) -> list[Fact]:
    known, _, rest = asked.words.partition(_KNOWN)
    market = known.partition(_MARKET)[2]
    lines = [line.strip() for line in rest.partition("\n\n")[0].splitlines()]
    written = [
        re.sub(r", ?(\d+)\)", lambda found: f",{2 * int(found.group(1))})", line) for line in lines if "$" in line
    ]
    written += [f"{name}/Mean({name},10)-1" for name in dict.fromkeys(_FIELD.findall(market))]
    fresh = [one for one in dict.fromkeys(written) if one not in lines]
    return [Fact("", "", f"variation_{number}", "technical", one) for number, one in enumerate(fresh, 1)]


def _lean(asked: Asked) -> tuple[int, int] | None:
    """Count signs and words for a rise less those for a fall, in the facts about the name asked about, and all."""
    name = re.search(r"^Name: (.+)$", asked.words, re.MULTILINE)
    block = asked.words.partition("\nFacts")[2].partition("\n\n")[0]
    if name is None or not block:
        return None
    own = "\n".join(line for line in block.splitlines() if line.startswith(name.group(1))) or block
    rises = len(re.findall(r"\+\d|\b(?:above|beats?|rose|rise|higher|profit)\b", own))
    falls = len(re.findall(r"(?<!\d)-\d|\b(?:below|miss|misses|fell|fall|lower|loss)\b", own))
    return rises - falls, rises + falls


def _items(schema: Mapping[str, Any], name: str, fact: Fact | None, found: list[Fact], pen: _Pen) -> list[Any]:
    if pen.abstain:
        return []
    inside = _names_in(schema)
    if not inside & set(_FACTORY_FIELDS) and schema.get("type") == "object":
        return [_value(schema, name, fact, found, pen)]
    if inside & {*_FORMULA_FIELDS, "category"} and found:
        return [_value(schema, name, one, [one], pen) for one in found]
    if inside & {*_QUOTE_FIELDS} and fact is not None and not fact.document:
        return []
    if schema.get("type") == "object" or name in {*_FORMULA_FIELDS, "formulas", "expressions", "evidence", "quotes"}:
        return [_value(schema, name, fact, found, pen)] if fact is not None else []
    return [_value(schema, name, fact, found, pen)]


def _choice(options: list[Any], name: str, fact: Fact | None, pen: _Pen) -> Any:
    if pen.remembered in options:
        return pen.remembered
    refusals = [one for one in options if str(one).lower() in {"unknown", "abstain", "none", "cannot_know"}]
    if pen.abstain and refusals:
        return refusals[0]
    if fact is not None and fact.category in options:
        return fact.category
    lean = _lean(pen.asked)
    if lean is not None and {"up", "down"} <= set(options) and not pen.salt:
        return "up" if lean[0] > 0 else "down" if lean[0] < 0 else (refusals or options)[0]
    real = [one for one in options if one not in refusals] or options
    return real[_dice(pen.asked, name + pen.salt) % len(real)]


def _option(options: list[Mapping[str, Any]], name: str, fact: Fact | None, found: list[Fact], pen: _Pen) -> Any:
    full = [one for one in options if one.get("type") != "null"]
    if not full or (len(full) < len(options) and pen.abstain):
        return None
    return _value(full[0], name, fact, found, pen)


def _number(kind: str, name: str, found: list[Fact], pen: _Pen) -> float:
    if "probab" in name and pen.number is None:
        lean = _lean(pen.asked)
        sure = 0.9 if pen.remembered else 0.5 + 0.4 * abs(lean[0]) / max(1, lean[1]) if lean else 0.5
        return 0.5 if pen.abstain else round(sure, 2)
    number = pen.number if pen.number is not None else (5 if found else 1)
    return int(number) if kind == "integer" else float(number)


def _truth(name: str, found: list[Fact], pen: _Pen) -> bool:
    if name == "use_template":
        return True
    if "abstain" in name or "give" in name:
        return pen.abstain or not (found or pen.remembered or _images(pen.asked))
    return not pen.abstain and bool(found)


def _words(name: str, fact: Fact | None, pen: _Pen) -> str:
    if pen.remembered and name not in _QUOTE_FIELDS + _DOCUMENT_FIELDS:
        return pen.remembered
    if name in _FORMULA_FIELDS or name in {"formulas", "expressions"}:
        return fact.formula if fact is not None else ""
    if name == "category":
        return fact.category if fact is not None else ""
    if name in _NAME_FIELDS:
        return fact.name if fact is not None else "nothing"
    if name in _QUOTE_FIELDS or name in {"quotes", "evidence"}:
        return fact.quote if fact is not None else ""
    if name in _DOCUMENT_FIELDS:
        return fact.document if fact is not None else ""
    if pen.prose:
        return pen.prose
    return f"The text says: {fact.quote}" if fact is not None else "No rule applies to this text."


def _names_in(schema: Mapping[str, Any]) -> set[str]:
    names = set(schema.get("properties", {}))
    for one in schema.get("properties", {}).values():
        names |= _names_in(one)
    return names


def _other_types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _other_types(one) for key, one in value.items()}
    if isinstance(value, list):
        return "a list"
    return {"not": "this"} if isinstance(value, str) else "seven"


def _later(number: int) -> Callable[[re.Match[str]], str]:
    return lambda match: f",{int(match.group(1)) + number % 7})"


def _dice(asked: Asked, salt: str) -> int:
    """Return a number that depends on the question alone, so that a guess repeats."""
    seen = f"{salt}|{asked.words}|{_images(asked)}"
    return int(hashlib.sha256(seen.encode("utf-8", "replace")).hexdigest()[:8], 16)


def _images(asked: Asked) -> list[Any]:
    contents = [one.get("content") for one in asked.body.get("messages", ())]
    return [part for one in contents if isinstance(one, list) for part in one if part.get("type") == "image_url"]


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("properties"), dict) and value.get("type") == "object"


@dataclass(frozen=True)
class _Place:
    start: int
    stop: int


def _objects_in(text: str) -> Iterator[tuple[Any, _Place]]:
    """Find the outermost JSON objects of a text."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, stop = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        yield value, _Place(at, stop)
        at = text.find("{", stop)
