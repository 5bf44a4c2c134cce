"""How the stub server misbehaves, each fault by a name that serves as a model's name.

``FAULTS`` says for each what it does and how a call through our gateway and client must end: in a ``value`` or in
one failure of a kind. Faults that go away count the calls of the same conversation, so that they do not depend on
what else is asked at the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tests.support.personalities import text_of

PAST_ANY_PATIENCE = 30.0  # seconds that a stalled answer would take; the server's end cuts it short


@dataclass(frozen=True)
class Wire:
    """What goes over the wire: a reply, and how it is sent.

    ``wait_s`` passes before the first byte; ``cut`` closes the connection after so many bytes of the body;
    ``drip_s`` passes between single bytes; ``hang_up`` sends nothing at all.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    wait_s: float = 0.0
    cut: int | None = None
    drip_s: float = 0.0
    hang_up: bool = False


@dataclass(frozen=True)
class Call:
    """One chat request that a fault may spoil: its body, how often the conversation came before, the good answer.

    ``key`` is what came as the bearer token.
    """

    body: Mapping[str, Any]
    number: int = 0
    text: str = ""
    key: str = ""

    @property
    def mode(self) -> str:
        """Rung of the ladder: json_schema, json_object_schema, json_object or prompt."""
        form = self.body.get("response_format")
        if not isinstance(form, dict) or form.get("type") in {None, "text"}:
            return "prompt"
        if form["type"] == "json_object" and "schema" in form:
            return "json_object_schema"
        return str(form["type"])

    @property
    def says_json(self) -> bool:
        """The word JSON is in a message, as some servers demand."""
        return any("json" in text_of(one).lower() for one in self.body.get("messages", ()))

    @property
    def was_answered(self) -> bool:
        """An answer stands in the conversation, as in a repair."""
        return any(one.get("role") == "assistant" for one in self.body.get("messages", ()))

    def payload(self, text: str | None = None, **changes: Any) -> dict[str, Any]:
        """Return a chat completion as OpenAI words it; ``changes`` go to the choice or its message."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text if text is None else text}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": message}
        for name, value in changes.items():
            (choice if name == "finish_reason" else message)[name] = value
        asked = sum(len(text_of(one)) for one in self.body.get("messages", ()))
        counted = {"prompt_tokens": 1 + asked // 4, "completion_tokens": 1 + len(str(message["content"])) // 4}
        return {
            "id": "chatcmpl-stub",
            "object": "chat.completion",
            "created": 0,
            "model": self.body.get("model", ""),
            "choices": [choice],
            "usage": {**counted, "total_tokens": sum(counted.values())},
        }

    def says(self, text: str | None = None, **changes: Any) -> Wire:
        """Answer with this text, or with the good one."""
        return Wire(_json(self.payload(text, **changes)))

    def with_payload(self, **changes: Any) -> Wire:
        """Answer well but for these fields of the reply."""
        return Wire(_json({**self.payload(), **changes}))


class Fault(NamedTuple):
    """What it does, how the call must end, and the doing."""

    does: str
    expected: str
    act: Callable[[Call], Wire]


def refused(status: int, message: str, *, code: str | None = None, param: str | None = None, **headers: str) -> Wire:
    """Return an error as OpenAI words it; header names are written with underscores."""
    error = {"message": message, "type": "stub_error", "param": param, "code": code}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Wire(_json({"error": error}), status, {"Content-Type": "application/json", **named})


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")


Act = Callable[[Call], Wire]


def _always(wire: Wire) -> Act:
    return lambda call: wire


def _first(times: int, act: Act) -> Act:
    """Misbehave on the first calls of a conversation, then be good."""
    return lambda call: act(call) if call.number < times else call.says()


def _rewritten(change: Callable[[str], str]) -> Act:
    return lambda call: call.says(change(call.text))


def _refuses_modes(modes: set[str], wire: Wire) -> Act:
    return lambda call: wire if call.mode in modes else call.says()


def _cut(call: Call) -> Wire:
    whole = call.says()
    return replace(whole, cut=len(whole.body) // 2)


def _truncated(call: Call) -> Wire:
    return call.says(call.text[: max(1, len(call.text) // 2)], finish_reason="length")


def _truncated_until_more(call: Call) -> Wire:
    """Cut the answer off until the same conversation comes with more tokens than the first time."""
    return _truncated(call) if call.number == 0 else call.says()


def _without(name: str) -> Act:
    def act(call: Call) -> Wire:
        payload = call.payload()
        del payload[name]
        return Wire(_json(payload))

    return act


def _changed_model(call: Call) -> Wire:
    return call.with_payload(model="another-model-than-before" if call.number else str(call.body.get("model")))


def _unknown_argument(name: str, instead: str) -> Act:
    wire = refused(
        400, f"Unsupported parameter: '{name}'. Use '{instead}' instead.", code="unsupported_parameter", param=name
    )
    return lambda call: wire if name in call.body else call.says()


def _needs_json_word(call: Call) -> Wire:
    if call.mode != "prompt" and not call.says_json:
        return refused(400, "Prompt must contain the word 'json' in some form to use 'response_format'.")
    return call.says()


def _drip(call: Call) -> Wire:
    return replace(call.says(), drip_s=0.02)


def _wrong_types(text: str) -> str:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(one) for key, one in value.items()}
        return "seven" if isinstance(value, (int, float, list)) else {"not": "this"}

    return json.dumps(spoil(json.loads(text)))


def _python_words(text: str) -> str:
    return text.replace(": true", ": True").replace(": false", ": False").replace(": null", ": None")


def _objects_for_lists(text: str) -> str:
    def unwrap(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unwrap(one) for key, one in value.items()}
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            return unwrap(value[0])
        return [unwrap(one) for one in value] if isinstance(value, list) else value

    return json.dumps(unwrap(json.loads(text)), ensure_ascii=False)


def _with_extra_keys(text: str) -> str:
    return json.dumps({**json.loads(text), "confidence_of_model": 0.99, "notes": ["ignore me"]}, ensure_ascii=False)


def _fenced(text: str) -> str:
    return f"Here is the JSON you asked for:\n```json\n{text}\n```\nTell me if you need more."


def _thinking(text: str) -> str:
    return '<think>\nThe user wants {"a": 1}. Let me see.\n</think>\n\n' + text


_FORM_REFUSED = "This response_format type is unavailable now"
_HTML = Wire(b"<html><body>502 Bad Gateway</body></html>", 200, {"Content-Type": "text/html"})

FAULTS: dict[str, Fault] = {
    "fault-429-retry-after": Fault(
        "429 with Retry-After: 0, twice, then good", "value", _first(2, _always(refused(429, "slow", Retry_After="0")))
    ),
    "fault-429-retry-after-small": Fault(
        "429 with Retry-After: 0.05 once, then good",
        "value",
        _first(1, _always(refused(429, "slow", Retry_After="0.05"))),
    ),
    "fault-429-retry-after-date": Fault(
        "429 with Retry-After as a date of the past, then good",
        "value",
        _first(1, _always(refused(429, "slow", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"))),
    ),
    "fault-429-retry-after-nonsense": Fault(
        "429 with Retry-After: soon, then good", "value", _first(1, _always(refused(429, "slow", Retry_After="soon")))
    ),
    "fault-429-always": Fault("429 each time", "rate_limit", _always(refused(429, "slow", Retry_After="0"))),
    "fault-429-quota": Fault(
        "429 insufficient_quota", "quota", _always(refused(429, "You exceeded your quota", code="insufficient_quota"))
    ),
    "fault-402": Fault("402 insufficient balance", "quota", _always(refused(402, "Insufficient Balance"))),
    "fault-429-retry-after-400": Fault(
        "429 with Retry-After: 400, beyond the cap", "rate_limit", _always(refused(429, "slow", Retry_After="400"))
    ),
    "fault-500-twice": Fault("500 twice, then good", "value", _first(2, _always(refused(500, "internal")))),
    "fault-500-always": Fault("500 each time", "server", _always(refused(500, "internal"))),
    "fault-503-once": Fault("503 once, then good", "value", _first(1, _always(refused(503, "overloaded")))),
    "fault-503-always": Fault("503 each time", "server", _always(refused(503, "overloaded"))),
    "fault-timeout-once": Fault(
        "no byte in time once, then good", "value", _first(1, _always(Wire(b"", wait_s=PAST_ANY_PATIENCE)))
    ),
    "fault-timeout-always": Fault(
        "no byte in time, each time", "timeout", _always(Wire(b"", wait_s=PAST_ANY_PATIENCE))
    ),
    "fault-drip": Fault("single bytes so slowly that only the deadline ends it", "timeout", _drip),
    "fault-closed-once": Fault("connection closed mid-body once, then good", "value", _first(1, _cut)),
    "fault-closed-always": Fault("connection closed mid-body each time", "connection", _cut),
    "fault-hang-up-once": Fault(
        "connection closed before any byte once, then good", "value", _first(1, _always(Wire(b"", hang_up=True)))
    ),
    "fault-refused": Fault(
        "connection refused (a test uses a closed port; by this name the server hangs up)",
        "connection",
        _always(Wire(b"", hang_up=True)),
    ),
    "fault-redirect-loop": Fault(
        "307 to itself for ever",
        "connection",
        _always(Wire(b"", 307, {"Location": "/v1/chat/completions", "Content-Type": "application/json"})),
    ),
    "fault-no-json-schema": Fault(
        "400: json_schema is unavailable; the rung below works",
        "value",
        _refuses_modes({"json_schema"}, refused(400, _FORM_REFUSED)),
    ),
    "fault-no-response-format": Fault(
        "400: any response_format is refused; the prompt alone works",
        "value",
        _refuses_modes({"json_schema", "json_object_schema", "json_object"}, refused(400, _FORM_REFUSED)),
    ),
    "fault-500-json-schema": Fault(
        "500 on json_schema, as llama-cpp-python",
        "value",
        _refuses_modes({"json_schema"}, refused(500, "1 validation error: response_format.type 'json_schema'")),
    ),
    "fault-422-json-schema": Fault(
        "422 on json_schema",
        "value",
        _refuses_modes({"json_schema"}, refused(422, "response_format: json_schema is not a permitted value")),
    ),
    "fault-needs-json-word": Fault("400 unless the prompt says json", "value", _needs_json_word),
    "fault-422": Fault("422 for another reason", "bad_request", _always(refused(422, "messages: field required"))),
    "fault-401": Fault("401 wrong key", "auth", _always(refused(401, "Incorrect API key", code="invalid_api_key"))),
    "fault-401-tells-the-key": Fault(
        "401 that repeats the key", "auth", lambda call: refused(401, f"Incorrect API key provided: {call.key}.")
    ),
    "fault-500-tells-the-key": Fault(
        "500 that repeats the key", "server", lambda call: refused(500, f"upstream said no to Bearer {call.key}")
    ),
    "fault-answer-tells-the-key": Fault(
        "the key after the answer", "value", lambda call: call.says(f"{call.text}\nYour key is {call.key}")
    ),
    "fault-finish-tells-the-key": Fault(
        "the key as the reason of the end", "value", lambda call: call.says(finish_reason=call.key)
    ),
    "fault-403": Fault("403 not allowed", "auth", _always(refused(403, "Country not supported"))),
    "fault-404-model": Fault(
        "404 no such model", "bad_request", _always(refused(404, "model not found", code="model_not_found"))
    ),
    "fault-400-context": Fault(
        "400 context length exceeded",
        "bad_request",
        _always(refused(400, "maximum context length is 4096 tokens", code="context_length_exceeded")),
    ),
    "fault-400-content-policy": Fault(
        "400 content_filter, as Azure and DashScope word it",
        "filtered",
        _always(refused(400, "The prompt triggered content management policy", code="content_filter")),
    ),
    "fault-error-plain-text": Fault(
        "500 with a body that is no JSON",
        "server",
        _always(Wire(b"upstream died", 500, {"Content-Type": "text/plain"})),
    ),
    "fault-fenced": Fault("JSON in a Markdown fence with prose around", "value", _rewritten(_fenced)),
    "fault-think": Fault("a <think> part with JSON in it before the JSON", "value", _rewritten(_thinking)),
    "fault-reasoning-content": Fault(
        "reasoning in a field of its own", "value", lambda call: call.says(reasoning_content='I think {"a": 1}')
    ),
    "fault-trailing-prose": Fault(
        "prose after the JSON", "value", _rewritten(lambda text: text + "\n\nNote: {not} advice.")
    ),
    "fault-byte-order-mark": Fault("a byte order mark first", "value", _rewritten(lambda text: "\ufeff" + text)),
    "fault-broken-once": Fault(
        "broken JSON once, then good", "value", _first(1, _rewritten(lambda text: text[:-1] + ",,"))
    ),
    "fault-broken-always": Fault("broken JSON each time", "invalid", _rewritten(lambda text: text[:-1] + ",,")),
    "fault-wrong-types-once": Fault("wrong types once, then good", "value", _first(1, _rewritten(_wrong_types))),
    "fault-wrong-types-always": Fault("wrong types each time", "invalid", _rewritten(_wrong_types)),
    "fault-extra-keys": Fault("keys that the schema does not know", "value", _rewritten(_with_extra_keys)),
    "fault-object-for-list": Fault("one object where a list is due", "value", _rewritten(_objects_for_lists)),
    "fault-list-for-object": Fault(
        "a list where an object is due, once", "value", _first(1, _rewritten(lambda text: f"[{text}, {text}]"))
    ),
    "fault-python-words": Fault("True, False and None of Python", "value", _rewritten(_python_words)),
    "fault-json-in-a-string-once": Fault(
        "JSON inside a JSON string, once", "value", _first(1, _rewritten(lambda text: json.dumps(text)))
    ),
    "fault-truncated-once": Fault("cut off by length once, then good", "value", _truncated_until_more),
    "fault-truncated-always": Fault("cut off by length each time", "truncated", _truncated),
    "fault-content-filter": Fault(
        "finish_reason content_filter", "filtered", lambda call: call.says("", finish_reason="content_filter")
    ),
    "fault-refusal": Fault(
        "a refusal instead of content", "refusal", lambda call: call.says(content=None, refusal="I cannot help.")
    ),
    "fault-empty-once": Fault("empty content once, then good", "value", _first(1, _rewritten(lambda text: ""))),
    "fault-empty-always": Fault("empty content each time", "blank", _rewritten(lambda text: "")),
    "fault-null-content": Fault("content null each time", "blank", lambda call: call.says(content=None)),
    "fault-tool-call": Fault(
        "a tool call that nobody offered, without content",
        "blank",
        lambda call: call.says(
            content=None,
            finish_reason="tool_calls",
            tool_calls=[{"id": "1", "type": "function", "function": {"name": "shell", "arguments": "{}"}}],
        ),
    ),
    "fault-spaces-once": Fault(
        "content of spaces once, as DeepSeek, then good", "value", _first(1, _rewritten(lambda text: " " * 40))
    ),
    "fault-spaces-always": Fault("content of spaces each time", "blank", _rewritten(lambda text: " \n" * 40)),
    "fault-html": Fault("200 with a page of HTML", "malformed_reply", _always(_HTML)),
    "fault-html-once": Fault("200 with a page of HTML once, then good", "value", _first(1, _always(_HTML))),
    "fault-not-json": Fault("200 with a body that is no JSON", "malformed_reply", _always(Wire(b"{]"))),
    "fault-not-utf8": Fault("200 with bytes that are no text", "malformed_reply", _always(Wire(b'{"id": "\xff\xfe"}'))),
    "fault-json-null": Fault("200 with null", "malformed_reply", _always(Wire(b"null"))),
    "fault-json-list": Fault("200 with a list", "malformed_reply", _always(Wire(b"[]"))),
    "fault-no-body": Fault("200 without a body", "malformed_reply", _always(Wire(b""))),
    "fault-false-gzip": Fault(
        "a body that says it is compressed and is not",
        "malformed_reply",
        lambda call: replace(call.says(), headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    ),
    "fault-false-charset": Fault(
        "a good reply that says it is UTF-16",
        "value",
        lambda call: replace(call.says(), headers={"Content-Type": "application/json; charset=utf-16"}),
    ),
    "fault-false-charset-500": Fault(
        "500 that says it is UTF-16 once, then good",
        "value",
        _first(1, _always(Wire(b"odd", 500, {"Content-Type": "text/plain; charset=utf-16"}))),
    ),
    "fault-false-charset-401": Fault(
        "401 in a character set that is none", "auth", _always(Wire(b"no", 401, {"Content-Type": "x; charset=base64"}))
    ),
    "fault-error-in-200": Fault(
        "200 with an error inside",
        "malformed_reply",
        _always(Wire(_json({"error": {"message": "upstream", "code": 1}}))),
    ),
    "fault-choices-empty": Fault("choices []", "malformed_reply", lambda call: call.with_payload(choices=[])),
    "fault-choices-null": Fault("choices null", "malformed_reply", lambda call: call.with_payload(choices=None)),
    "fault-choices-text": Fault("choices a text", "malformed_reply", lambda call: call.with_payload(choices="none")),
    "fault-message-null": Fault(
        "a choice without a message",
        "malformed_reply",
        lambda call: call.with_payload(choices=[{"index": 0, "finish_reason": "stop", "message": None}]),
    ),
    "fault-no-finish": Fault("finish_reason null", "value", lambda call: call.says(finish_reason=None)),
    "fault-no-usage": Fault("no usage block", "value", _without("usage")),
    "fault-usage-null": Fault("usage null", "value", lambda call: call.with_payload(usage=None)),
    "fault-usage-odd": Fault(
        "usage of texts and negative numbers",
        "value",
        lambda call: call.with_payload(usage={"prompt_tokens": "many", "completion_tokens": -3, "total_tokens": None}),
    ),
    "fault-usage-text": Fault("usage a text", "value", lambda call: call.with_payload(usage="a lot")),
    "fault-no-model": Fault("no model in the reply", "value", _without("model")),
    "fault-model-changed": Fault("another model from the second reply on", "value", _changed_model),
    "fault-unknown-max-completion-tokens": Fault(
        "400 for max_completion_tokens", "value", _unknown_argument("max_completion_tokens", "max_tokens")
    ),
    "fault-unknown-max-tokens": Fault(
        "400 for max_tokens", "value", _unknown_argument("max_tokens", "max_completion_tokens")
    ),
    "fault-unknown-temperature": Fault(
        "400 for a temperature, as reasoning models", "value", _unknown_argument("temperature", "the default")
    ),
    "fault-image-ignored": Fault("an image is taken and never seen", "value", lambda call: call.says()),
    "fault-lone-surrogate": Fault(
        "half a character of UTF-16 in the text", "value", _rewritten(lambda text: text + " \ud83d")
    ),
    "fault-nul": Fault("a NUL after the JSON", "value", _rewritten(lambda text: text + "\x00")),
    "fault-deep": Fault("lists in lists without end", "invalid", _rewritten(lambda text: "[" * 100_000)),
    "fault-endless-number": Fault(
        "an integer of 6000 digits", "invalid", _rewritten(lambda text: '{"candidates": ' + "9" * 6000 + "}")
    ),
}


def _flaky(call: Call) -> Wire:
    """Fail on the first call of most conversations, in a way that depends on the conversation."""
    ways: tuple[Act, ...] = (
        _always(refused(500, "internal")),
        _always(refused(429, "slow", Retry_After="0")),
        _cut,
        _always(Wire(b"", hang_up=True)),
        lambda one: one.says(),
    )
    way = sum(_json(call.body.get("messages"))) % len(ways)
    return ways[way](call) if call.number == 0 else call.says()


def _deepseek(call: Call) -> Wire:
    """Take json_object only, demand the word json, answer blank at first to one question in two."""
    if call.mode == "json_schema":
        return refused(400, _FORM_REFUSED)
    if call.mode != "prompt" and not call.says_json:
        return _needs_json_word(call)
    if not call.was_answered and sum(_json(call.body.get("messages"))) % 2:
        return call.says(" " * 64)
    return call.says(reasoning_content="First, the user wants JSON.")


def _qwen(call: Call) -> Wire:
    """Take json_schema as if it were json_object, demand the word json, write Python words and objects for lists."""
    if call.mode != "prompt" and not call.says_json:
        return refused(400, "'messages' must contain the word 'json' in some form, to use 'response_format'.")
    return call.says(_python_words(_objects_for_lists(call.text)))


def _ollama(call: Call) -> Wire:
    """Ignore response_format, think aloud, fence the JSON."""
    return call.says(_thinking(_fenced(call.text)))


def _llama_cpp(call: Call) -> Wire:
    """Fail on json_schema with 500, take json_object with a schema."""
    if call.mode == "json_schema":
        return refused(500, "Input should be 'text' or 'json_object' (body.response_format.type='json_schema')")
    return call.says()


BLIND_TO_SCHEMAS = ("qwen-like", "ollama-like")
"""Servers that show their model no schema but one in the prompt's words."""

SERVERS: dict[str, Act] = {
    "deepseek-like": _deepseek,
    "qwen-like": _qwen,
    "ollama-like": _ollama,
    "llama-cpp-like": _llama_cpp,
    "flaky": _flaky,
}
