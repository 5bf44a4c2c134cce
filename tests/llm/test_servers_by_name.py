"""Servers that speak Chat Completions each in a way of its own, as DeepSeek, Qwen, Ollama and llama-cpp-python do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlib_llm_alpha.llm.request import Completion, Message, Request
from tests.llm.test_faults import DOCUMENT, Ideas, Setting
from tests.support.stub_faults import Call
from tests.support.stub_server import StubServer

NAMES = ("deepseek-like", "qwen-like", "ollama-like", "llama-cpp-like")
FORMULA = "0-($close/Ref($close,5)-1)"


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def requests(model: str, count: int) -> list[Request]:
    return [
        Request("generate", (Message("system", "Propose."), Message("user", f"{number}\n{DOCUMENT}")), Ideas, model)
        for number in range(count)
    ]


def formulas(stub: StubServer, model: str, folder: Path, count: int = 8) -> list[str]:
    with Setting(stub.url, model, folder) as setting:
        outcomes = setting.client.complete(requests(model, count))
    found = []
    for one in outcomes:
        assert isinstance(one, Completion), one
        assert isinstance(one.value, Ideas)
        found += [idea.formula for idea in one.value.candidates]
    return found


def modes(stub: StubServer) -> Counter[str]:
    return Counter(Call(one).mode for one in stub.requests)


@pytest.mark.parametrize("name", NAMES)
def test_eight_questions_get_eight_values(stub: StubServer, tmp_path: Path, name: str) -> None:
    assert formulas(stub, name, tmp_path) == [FORMULA] * 8


@pytest.mark.parametrize("name", NAMES)
def test_a_lying_model_behind_it_still_answers_in_form(stub: StubServer, tmp_path: Path, name: str) -> None:
    assert len(formulas(stub, f"{name}+liar", tmp_path)) == 8


def test_deepseek_is_asked_for_json_objects_with_the_word_json_and_the_schema_in_the_prompt(
    stub: StubServer, tmp_path: Path
) -> None:
    formulas(stub, "deepseek-like", tmp_path)
    taken = [one for one in stub.requests if Call(one).mode.startswith("json_object")]
    assert len(taken) >= 8
    for one in taken:
        told = json.dumps(one["messages"])
        assert "json" in told.lower()
        assert "horizon_days" in told


def test_deepseek_blanks_are_asked_again_and_their_tokens_are_kept(stub: StubServer, tmp_path: Path) -> None:
    with Setting(stub.url, "deepseek-like", tmp_path) as setting:
        outcomes = setting.client.complete(requests("deepseek-like", 8))
    assert stub.answered > 8, "no blank came"
    kept = sum((one.usage.prompt or 0) + (one.usage.answer or 0) for one in outcomes if isinstance(one, Completion))
    assert kept == stub.tokens_told


def test_deepseek_refuses_a_schema_once_for_each_request_in_flight_and_then_no_more(
    stub: StubServer, tmp_path: Path
) -> None:
    with Setting(stub.url, "deepseek-like", tmp_path) as setting:
        setting.client.complete(requests("deepseek-like", 8))
        refused = modes(stub)["json_schema"]
        assert 1 <= refused <= setting.gateway.concurrency
        setting.client.complete(requests("deepseek-like", 16)[8:])
    assert modes(stub)["json_schema"] == refused


@pytest.mark.parametrize("name", ["qwen-like", "ollama-like"])
def test_a_server_that_takes_a_schema_and_hides_it_from_its_model_needs_no_repair(
    stub: StubServer, tmp_path: Path, name: str
) -> None:
    assert formulas(stub, name, tmp_path) == [FORMULA] * 8
    assert (stub.hits, stub.answered) == (8, 8)


def test_qwen_always_reads_the_word_json(stub: StubServer, tmp_path: Path) -> None:
    formulas(stub, "qwen-like", tmp_path)
    assert all(Call(one).says_json for one in stub.requests)


def test_llama_cpp_gets_the_schema_beside_json_object(stub: StubServer, tmp_path: Path) -> None:
    formulas(stub, "llama-cpp-like", tmp_path)
    assert set(modes(stub)) == {"json_schema", "json_object_schema"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", ["fault-truncated-once", "fault-spaces-once", "fault-500-twice"])
def test_a_passing_fault_before_such_a_server_is_overcome(
    stub: StubServer, tmp_path: Path, name: str, fault: str
) -> None:
    assert formulas(stub, f"{name}+{fault}", tmp_path, count=1) == [FORMULA]
