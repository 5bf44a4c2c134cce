from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.llm.request import Usage
from qlib_llm_alpha.llm.transport_errors import Fault
from qlib_llm_alpha.llm.wire import Heard, Vectors, hear_chat, hear_vectors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def chat(message: Any, *, finish: Any = "stop", **more: Any) -> Heard | Fault:
    return hear_chat(json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more}))


def heard(message: Any, **more: Any) -> Heard:
    found = chat(message, **more)
    assert isinstance(found, Heard)
    return found


def test_a_completion_is_read_with_tokens_and_reasoning_apart() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    found = heard({"content": "yes", "reasoning_content": "hm"}, model="m-1", usage=usage)
    assert found == Heard("yes", "stop", Usage(9, 4, 8, 3), "m-1", "hm")


def test_cached_tokens_are_read_as_deepseek_names_them() -> None:
    assert heard({"content": ""}, usage={"prompt_cache_hit_tokens": 5}).usage == Usage(cached=5)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "image"}, {"text": 3}], ""),
        ({"a": 1}, '{"a": 1}'),
        (["a"], '["a"]'),
        (7, "7"),
        ("half \ud83d", "half �"),
        ("whole 😀", "whole 😀"),
    ],
)
def test_whatever_stands_for_the_content_becomes_a_text(content: Any, text: str) -> None:
    assert heard({"content": content}).text == text


def test_a_refusal_is_an_answer_with_its_own_reason() -> None:
    found = heard({"content": None, "refusal": "I cannot."})
    assert (found.text, found.finish) == ("I cannot.", "refusal")


@pytest.mark.parametrize("count", ["9", -1, 1.5, True, None, [], 10**30])
def test_tokens_that_are_no_count_are_unknown(count: Any) -> None:
    assert heard({"content": "a"}, usage={"prompt_tokens": count, "completion_tokens": count}).usage == Usage()


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "<html>",
        "null",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [null]}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": "text"}]}',
        '{"error": {"message": "no"}}',
        "[" * 100_000,
        '{"choices": ' + "9" * 6000 + "}",
    ],
)
def test_what_holds_no_message_is_a_malformed_reply(raw: str) -> None:
    found = hear_chat(raw)
    assert isinstance(found, Fault)
    assert (found.kind, found.again, found.free) == ("malformed_reply", True, False)


def test_a_useless_reply_keeps_the_tokens_that_it_cost() -> None:
    found = hear_chat('{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}')
    assert isinstance(found, Fault)
    assert found.usage == Usage(3, 1)


@given(JSON, JSON, JSON, JSON, JSON)
def test_any_json_is_heard_or_a_fault(message: Any, finish: Any, usage: Any, model: Any, content: Any) -> None:
    assert isinstance(chat(message, finish=finish, usage=usage, model=model), Heard | Fault)
    found = heard({"content": content, "refusal": message, "reasoning": usage}, finish=finish)
    found.text.encode("utf-8")


@given(st.text(), JSON)
def test_any_text_is_heard_or_a_fault(text: str, body: Any) -> None:
    for raw in (text, json.dumps(body), json.dumps({"choices": body}), json.dumps({"data": body})):
        assert isinstance(hear_chat(raw), Heard | Fault)
        assert isinstance(hear_vectors(raw, 1), Vectors | Fault)


def vectors(*rows: Any, count: int = 2) -> Vectors | Fault:
    return hear_vectors(json.dumps({"data": list(rows), "model": "e"}), count)


def test_vectors_come_in_the_order_of_their_texts() -> None:
    found = vectors({"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2.5]})
    assert isinstance(found, Vectors)
    assert found.values == [[1.0, 2.5], [3.0, 4.0]]
    unnumbered = vectors({"embedding": [1]}, {"embedding": [2]})
    assert isinstance(unnumbered, Vectors)
    assert unnumbered.values == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "rows",
    [
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}],
        [{"index": 0, "embedding": ["1"]}, {"index": 1, "embedding": ["1"]}],
        [{"index": 0, "embedding": [float("nan")]}, {"index": 1, "embedding": [1.0]}],
        [{"index": 0, "embedding": [10**400]}, {"index": 1, "embedding": [1.0]}],
        [{"index": {}, "embedding": [1.0]}, {"index": [], "embedding": [1.0]}],
        ["vector", "vector"],
    ],
)
def test_vectors_that_are_not_one_for_each_text_are_a_malformed_reply(rows: list[Any]) -> None:
    found = vectors(*rows)
    assert isinstance(found, Fault)
    assert found.kind == "malformed_reply"
