from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import BaseModel

from qlib_llm_alpha.llm.dialect import Dialect
from qlib_llm_alpha.llm.models import ModelInfo
from qlib_llm_alpha.llm.request import Message, Request
from qlib_llm_alpha.llm.schema import schema_text, strict_schema


class Answer(BaseModel):
    text: str


MESSAGES = (Message("system", "Be brief."), Message("user", "Say it."))
REQUEST = Request("test", MESSAGES, Answer, "m", temperature=0.5, max_tokens=77)
KNOWN = ModelInfo("m", schema_modes=("json_schema", "json_object"), max_tokens_field="max_completion_tokens")
UNKNOWN = ModelInfo("m")


def test_a_strict_server_gets_the_schema_and_the_prompt_as_it_is() -> None:
    assert Dialect.of(KNOWN).body(REQUEST) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say it."}],
        "max_completion_tokens": 77,
        "temperature": 0.5,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Answer", "strict": True, "schema": strict_schema(Answer)},
        },
    }


@pytest.mark.parametrize(
    ("rung", "form"),
    [
        (0, {"type": "json_schema"}),
        (1, {"type": "json_object", "schema": strict_schema(Answer)}),
        (2, {"type": "json_object"}),
        (3, None),
    ],
)
def test_on_every_rung_of_an_unknown_server_the_schema_stands_in_the_prompt(rung: int, form: object) -> None:
    whole = Dialect.of(UNKNOWN)
    body = replace(whole, rungs=whole.rungs[rung:]).body(REQUEST)
    system = body["messages"][0]["content"]
    assert system.startswith("Be brief.")
    assert "JSON" in system
    assert schema_text(Answer) in system
    assert body["messages"][1:] == [{"role": "user", "content": "Say it."}]
    sent = body.get("response_format")
    assert (sent["type"] if sent and "json_schema" in sent else sent) == (form["type"] if rung == 0 else form)  # type: ignore[index]


def test_a_prompt_without_a_system_turn_gets_one() -> None:
    body = Dialect.of(UNKNOWN).body(replace(REQUEST, messages=MESSAGES[1:]))
    assert [one["role"] for one in body["messages"]] == ["system", "user"]


def test_images_stay_with_their_turn() -> None:
    messages = (Message("user", "Look.", (b"png",)),)
    body = Dialect.of(UNKNOWN).body(replace(REQUEST, messages=messages))
    assert body["messages"][1]["content"][1] == {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64,cG5n"},
    }


def test_the_name_of_a_schema_holds_what_servers_take() -> None:
    odd = type("Größe_" + "x" * 80, (Answer,), {})
    body = Dialect.of(KNOWN).body(replace(REQUEST, schema=odd))
    name = body["response_format"]["json_schema"]["name"]
    assert name.isascii()
    assert len(name) <= 64
    json.dumps(body)


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("said", ["This response_format type is unavailable", "no 'json_schema'", "bad Schema"])
def test_words_about_the_form_lead_one_rung_down(status: int, said: str) -> None:
    lower = Dialect.of(KNOWN).after(status, said)
    assert lower is not None
    assert lower.rungs == ("json_object", "prompt")


@pytest.mark.parametrize(
    ("status", "said"),
    [(400, "maximum context length"), (429, "json"), (503, "json"), (401, "schema"), (None, "json"), (500, "internal")],
)
def test_other_words_and_other_statuses_change_nothing(status: int | None, said: str) -> None:
    assert Dialect.of(UNKNOWN).after(status, said) is None


def test_below_the_prompt_there_is_nothing() -> None:
    assert Dialect(rungs=("prompt",)).after(400, "response_format") is None


def test_the_limit_of_the_answer_takes_its_other_name_once() -> None:
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    changed = Dialect.of(UNKNOWN).after(400, said)
    assert changed is not None
    body = changed.body(REQUEST)
    assert body["max_completion_tokens"] == 77
    assert "max_tokens" not in body
    assert changed.after(400, said) is None
    assert Dialect.of(UNKNOWN).after(400, "max_completion_tokens is unknown") is None


def test_a_model_that_takes_no_temperature_gets_none() -> None:
    changed = Dialect.of(UNKNOWN).after(400, "'temperature' does not support 0.5 with this model")
    assert changed is not None
    assert "temperature" not in changed.body(REQUEST)


def test_every_way_down_ends() -> None:
    dialect: Dialect | None = Dialect.of(UNKNOWN)
    steps = 0
    while dialect is not None:
        dialect = dialect.after(400, "max_tokens, max_completion_tokens, temperature and response_format")
        steps += 1
    assert steps == 6
