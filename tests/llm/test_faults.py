"""Every fault of the stub, through the real SDK over real HTTP: a value or one typed failure, nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.llm.budget import Budget
from qlib_llm_alpha.llm.client import Client
from qlib_llm_alpha.llm.failures import KINDS
from qlib_llm_alpha.llm.gateway import Gateway
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.models import ModelRegistry
from qlib_llm_alpha.llm.request import Completion, Message, Request, Usage
from qlib_llm_alpha.llm.settings import LLMSettings
from tests.support.stub_faults import FAULTS, Call, Wire
from tests.support.stub_server import StubServer, closed_url

KEY = "sk-planted-for-faults"
DOCUMENT = "BEGIN DOCUMENT D1 abc\nA 5-day reversal was seen in every market.\nEND DOCUMENT D1 abc"
PNG = bytes.fromhex("89504e470d0a1a0a")

# What a test cannot wait for is made short: a byte that never comes, an answer that never ends.
PATIENCE: dict[str, dict[str, float]] = {
    "fault-timeout-once": {"timeout_s": 0.15},
    "fault-timeout-always": {"timeout_s": 0.05, "retries": 2},
    "fault-drip": {"deadline_s": 0.3},
}
ONE_REQUEST = ("fault-429-quota", "fault-402", "fault-429-retry-after-400", "fault-401", "fault-403", "fault-404-model")
ANSWERED_KINDS = {"refusal", "filtered", "truncated", "blank", "invalid"}


class Item(BaseModel):
    document: str
    quote: str


class Idea(BaseModel):
    name: str
    category: Literal["momentum", "mean_reversion"]
    formula: str
    horizon_days: int
    note: str | None
    evidence: list[Item]


class Ideas(BaseModel):
    abstain: bool
    candidates: list[Idea]


def question(model: str, **more: Any) -> Request:
    images = (PNG,) if "image" in model else ()
    messages = (Message("system", "Propose formulas. Answer with JSON."), Message("user", DOCUMENT, images))
    return Request("generate", messages, Ideas, model, **more)


class Setting:
    """A client on a journal of its own, with little patience."""

    def __init__(self, url: str, model: str, folder: Path, **patience: float) -> None:
        environment = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "OPENAI_MODEL": model}
        self.budget = Budget()
        quick: dict[str, Any] = {"timeout_s": 5.0, "deadline_s": 20.0, "retries": 4, "retry_cap_s": 0.05, **patience}
        self.gateway = Gateway(LLMSettings.from_environment(environment), ModelRegistry.of(), self.budget, **quick)
        self.journal = Journal(folder / "journal.sqlite")
        self.client = Client(
            mode="live", model=model, journal=self.journal, gateway=self.gateway, recording=None, audit=None
        )

    def __enter__(self) -> Setting:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.journal.close()

    def outcome(self, request: Request) -> Completion | LLMFailure:
        try:
            (found,) = self.client.complete([request])
        except LLMFailure as failure:
            return failure
        return found


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def total(usage: Usage) -> int:
    return (usage.prompt or 0) + (usage.answer or 0)


def ending(outcome: Completion | LLMFailure) -> str:
    return outcome.kind if isinstance(outcome, LLMFailure) else "value"


def setting_for(stub: StubServer, fault: str, folder: Path) -> Setting:
    url = closed_url() if fault == "fault-refused" else stub.url
    return Setting(url, fault, folder, **PATIENCE.get(fault, {}))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_ends_in_a_value_or_in_one_failure_of_its_kind(fault: str, tmp_path: Path) -> None:
    with StubServer() as stub, setting_for(stub, fault, tmp_path) as setting:
        outcome = setting.outcome(question(fault))
        expected = FAULTS[fault].expected
        assert ending(outcome) == expected, f"{FAULTS[fault].does}: {outcome}"
        assert expected == "value" or expected in KINDS
        if isinstance(outcome, Completion):
            assert isinstance(outcome.value, Ideas)
            assert [one.formula for one in outcome.value.candidates] == ["0-($close/Ref($close,5)-1)"]
        assert KEY not in f"{outcome} {outcome!r} {vars(outcome)}"
        spent = setting.journal.spent().values()
        assert sum(total(one.usage) for one in spent) == stub.tokens_told
        # A resumed session goes on with what the journal holds, so that must be what the budget booked.
        assert sum(total(one.bound) for one in spent) == setting.budget.spent.tokens >= stub.tokens_told
        if fault in ONE_REQUEST:
            assert stub.hits == 1
    assert not [file.name for file in tmp_path.iterdir() if KEY.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    "fault", [name for name, fault in FAULTS.items() if fault.expected in {"value", *ANSWERED_KINDS}]
)
def test_what_was_answered_once_is_never_asked_again(fault: str, tmp_path: Path) -> None:
    with StubServer() as stub:
        with setting_for(stub, fault, tmp_path) as first:
            ended = ending(first.outcome(question(fault)))
        hits = stub.hits
        with setting_for(stub, fault, tmp_path) as second:
            assert ending(second.outcome(question(fault))) == ended
        assert stub.hits == hits


def test_what_embeddings_cost_is_in_the_journal_as_in_the_budget(stub: StubServer, tmp_path: Path) -> None:
    with Setting(stub.url, "oracle", tmp_path) as setting:
        setting.client.embed([f"text {number}" for number in range(25)])
        spent = setting.journal.spent()["oracle"]
        assert spent.calls == 3
        assert total(spent.bound) == setting.budget.spent.tokens > 0


def test_a_lost_chart_is_booked_alike_where_the_registry_says_what_it_costs(stub: StubServer, tmp_path: Path) -> None:
    # The registry names this model, the stub takes it for one that answers.
    asked = Request("chart", (Message("user", "Look.", (PNG,)),), Ideas, "gpt-4o")
    with Setting(stub.url, "gpt-4o", tmp_path, timeout_s=0.0, retries=0) as setting:
        assert ending(setting.outcome(asked)) == "timeout"
        assert total(setting.journal.spent()["gpt-4o"].bound) == setting.budget.spent.tokens < 20_000


def test_usage_that_a_server_does_not_tell_is_unknown_and_not_nought(stub: StubServer, tmp_path: Path) -> None:
    with Setting(stub.url, "fault-no-usage", tmp_path) as setting:
        outcome = setting.outcome(question("fault-no-usage"))
    assert isinstance(outcome, Completion)
    assert (outcome.usage.prompt, outcome.usage.answer) == (None, None)


def test_a_rung_that_was_refused_once_is_remembered(stub: StubServer, tmp_path: Path) -> None:
    before = stub.hits
    with Setting(stub.url, "fault-no-json-schema", tmp_path) as setting:
        assert ending(setting.outcome(question("fault-no-json-schema"))) == "value"
        assert stub.hits - before == 2
        assert ending(setting.outcome(question("fault-no-json-schema", sample=1))) == "value"
        assert stub.hits - before == 3


def test_a_model_that_becomes_another_in_the_middle_is_refused(stub: StubServer, tmp_path: Path) -> None:
    with Setting(stub.url, "fault-model-changed", tmp_path) as setting:
        assert ending(setting.outcome(question("fault-model-changed"))) == "value"
        assert ending(setting.outcome(question("fault-model-changed", sample=1))) == "model_changed"


def test_faults_of_some_requests_leave_the_answers_of_others(stub: StubServer, tmp_path: Path) -> None:
    names = ("oracle", "fault-broken-always", "fault-500-twice", "fault-refusal", "fault-think", "fault-spaces-always")
    with Setting(stub.url, "oracle", tmp_path) as setting:
        outcomes = setting.client.complete([question(name) for name in names])
    assert [ending(one) for one in outcomes] == ["value", "invalid", "value", "refusal", "value", "blank"]


def test_answers_that_came_are_kept_when_another_request_cannot_be_made(stub: StubServer, tmp_path: Path) -> None:
    with Setting(stub.url, "oracle", tmp_path) as setting:
        with pytest.raises(LLMFailure) as raised:
            setting.client.complete([question("oracle"), question("fault-401"), question("noisy")])
        assert raised.value.kind == "auth"
        asked = stub.hits
        assert ending(setting.outcome(question("oracle"))) == "value"
        assert stub.hits == asked


@pytest.mark.parametrize("personality", ["malformed", "liar", "obedient", "noisy", "amnesiac", "clairvoyant", "flaky"])
def test_each_personality_ends_in_a_value_or_a_failure(stub: StubServer, tmp_path: Path, personality: str) -> None:
    with Setting(stub.url, personality, tmp_path) as setting:
        outcome = setting.outcome(question(personality))
    assert ending(outcome) in {"value", "invalid"}


REPLY = Call({"model": "mine", "messages": []}, 0, '{"abstain": true, "candidates": []}').payload()
KNOWN_HEADERS = {
    "Content-Type": ["application/json", "text/html", "application/json; charset=utf-16", "x; charset=base64", "", ";"],
    "Content-Encoding": ["gzip", "br", "identity", "never-heard-of"],
    "Retry-After": ["-1", "nan", "inf", "1e999", "Wed, 99 Foo 2015", "0"],
    "Location": ["/v1/chat/completions", "http://", "file:///etc/passwd", "//[bad"],
    "x-should-retry": ["true", "false", "maybe"],
    "retry-after-ms": ["-1", "soon"],
}
HEADERS = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in KNOWN_HEADERS.items()})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*REPLY, "error", "code"]), inner),
    max_leaves=6,
)
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 206, 299, 301, 304, 307, 400, 402, 408, 409, 418, 422, 451, 499])
BODIES = (
    st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.tuples(st.sampled_from([*REPLY]), JSON).map(lambda one: json.dumps({**REPLY, one[0]: one[1]}).encode())
    | st.tuples(st.sampled_from(["finish_reason", "content", "role", "refusal", "tool_calls"]), JSON).map(
        lambda one: json.dumps(Call({}, 0, "{}").payload(**{one[0]: one[1]})).encode()
    )
)


class Whatever(StubServer):
    """Sends what it is told to."""

    wire = Wire(b"")

    def reply(self, body: dict[str, Any], headers: Mapping[str, str]) -> Wire:
        super().reply(body, headers)
        return self.wire


def test_whatever_a_server_sends_ends_in_a_value_or_one_failure(tmp_path: Path) -> None:
    numbers = iter(range(10_000))
    with Whatever() as stub, Setting(stub.url, "mine", tmp_path, retries=1, retry_cap_s=0.001) as setting:

        @settings(max_examples=150)
        @given(wire=st.builds(Wire, BODIES, STATUSES | st.integers(500, 599), HEADERS))
        def ends(wire: Wire) -> None:
            stub.wire = wire
            assert ending(setting.outcome(question("mine", sample=next(numbers)))) in {"value", *KINDS}

        ends()


def test_forty_questions_to_a_server_that_stumbles_all_get_their_answer(tmp_path: Path) -> None:
    with StubServer() as stub, Setting(stub.url, "flaky", tmp_path) as setting:
        asked = [
            Request("generate", (Message("user", f"{number}\n{DOCUMENT}"),), Ideas, "flaky") for number in range(40)
        ]
        outcomes = setting.client.complete(asked)
        assert [ending(one) for one in outcomes] == ["value"] * 40
        assert stub.answered == 40
        assert stub.hits > 60
