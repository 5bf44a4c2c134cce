"""The gateway against a real server on loopback; what each fault ends in through the client too is in test_faults."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel

from qlib_llm_alpha.errors import BudgetError, LLMFailure, OfflineError, PrivacyError
from qlib_llm_alpha.llm.budget import Budget, Charge, prompt_bound
from qlib_llm_alpha.llm.gateway import EMBEDDED_AT_ONCE, Gateway
from qlib_llm_alpha.llm.models import ModelInfo, ModelRegistry
from qlib_llm_alpha.llm.request import Message, Reply, Request, Usage
from qlib_llm_alpha.llm.schema import schema_text
from qlib_llm_alpha.llm.settings import LLMSettings, Secret
from qlib_llm_alpha.llm.wire import MOST_BYTES
from tests.support.stub_faults import Wire, refused
from tests.support.stub_server import StubServer, closed_url, embedding

KEY = "sk-planted-for-the-gateway"
FAR = "https://models.example/v1"
PNG = bytes.fromhex("89504e470d0a1a0a")
GOOD = '{"text": "good"}'
T = TypeVar("T")


class Answer(BaseModel):
    text: str


class EchoingServer(StubServer):
    """Repeats the header that holds the key, in an error or in an answer."""

    def reply(self, body: dict[str, Any], headers: Mapping[str, str]) -> Wire:
        self._note(body, headers)
        told = next(value for name, value in headers.items() if name.lower() == "authorization")
        if body["model"] == "echo-error":
            return refused(401, f"Incorrect API key provided: {told}")
        if body["model"] == "echo-page":
            return Wire(f"<html>{'x' * 190}{told}</html>".encode())
        message = {"content": f"you sent {told}", "reasoning_content": told}
        return Wire(json.dumps({"choices": [{"message": message, "finish_reason": told}], "model": told}).encode())


class Waits:
    """Stands for sleeping: notes how long, and lets other tasks go on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer(lambda body: GOOD, delay_s=0.1) as server:
        yield server


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def settings(url: str, **more: Any) -> LLMSettings:
    return LLMSettings(base_url=url, model="good", key=Secret(KEY), **more)


def gateway(url: str, budget: Budget | None = None, **more: Any) -> Gateway:
    return Gateway(settings(url), ModelRegistry.of(), budget or Budget(), **{"pause": Waits(), **more})


def question(model: str = "good", text: str = "Say it.", **more: Any) -> Request:
    return Request("test", (Message("user", text),), Answer, model, max_tokens=50, **more)


async def ask(endpoint: Gateway, *requests: Request) -> list[Reply]:
    try:
        return list(await asyncio.gather(*map(endpoint.answer, requests)))
    finally:
        await endpoint.close()


class EndlessServer(StubServer):
    """Sends far more than an answer: as it is, packed, or as the words of an error."""

    def reply(self, body: dict[str, Any], headers: Mapping[str, str]) -> Wire:
        self._note(body, headers)
        long = b" " * (MOST_BYTES + 1)
        if body["model"] == "packed":
            return Wire(gzip.compress(long, 1), headers={"Content-Encoding": "gzip"})
        return Wire(long, 500 if body["model"] == "error" else 200)


def charges_of(endpoint: Gateway) -> list[Charge]:
    """Return a list that gets what the gateway says was charged without a reply."""
    charges: list[Charge] = []
    endpoint.charged = charges.append
    return charges


def failed(endpoint: Gateway, request: Request) -> LLMFailure:
    with pytest.raises(LLMFailure) as raised:
        run(ask(endpoint, request))
    return raised.value


def test_an_answer_becomes_a_reply_with_what_it_took(stub: StubServer) -> None:
    (reply,) = run(ask(gateway(stub.url), question()))
    assert (reply.text, reply.finish, reply.model, reply.mode, reply.attempts) == (
        GOOD,
        "stop",
        "good",
        "json_schema",
        1,
    )
    assert reply.usage.prompt is not None
    assert reply.usage.answer == 1 + len(GOOD) // 4
    assert reply.seconds > 0
    (sent,) = stub.requests
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("good", 50, 0.0)


def test_the_ladder_is_stepped_down_once_and_remembered(stub: StubServer) -> None:
    async def twice(model: str) -> list[Reply]:
        endpoint = gateway(stub.url)
        replies = [await endpoint.answer(question(model)), await endpoint.answer(question(model, sample=1))]
        await endpoint.close()
        return replies

    for model, rung, sent in (
        ("fault-no-json-schema", "json_object_schema", 2),
        ("fault-500-json-schema", "json_object_schema", 2),
        ("fault-422-json-schema", "json_object_schema", 2),
        ("fault-no-response-format", "prompt", 4),
    ):
        first, second = run(twice(model))
        assert (first.mode, first.attempts, second.mode, second.attempts) == (rung, sent, rung, 1)
        assert schema_text(Answer) in stub.requests[-1]["messages"][0]["content"]


def test_a_parameter_that_is_refused_is_learnt_once(stub: StubServer) -> None:
    for model, present, absent in (
        ("fault-unknown-max-tokens", "max_completion_tokens", "max_tokens"),
        ("fault-unknown-temperature", "max_tokens", "temperature"),
    ):
        first, second = run(ask_in_turn(gateway(stub.url), question(model), question(model, sample=1)))
        assert (first.attempts, second.attempts) == (2, 1)
        assert present in stub.requests[-1]
        assert absent not in stub.requests[-1]


async def ask_in_turn(endpoint: Gateway, *requests: Request) -> list[Reply]:
    replies = [await endpoint.answer(request) for request in requests]
    await endpoint.close()
    return replies


def test_the_registry_chooses_the_first_rung_and_the_names(stub: StubServer) -> None:
    (reply,) = run(ask(gateway(stub.url), question("deepseek-chat")))
    assert reply.mode == "json_object"
    run(ask(gateway(stub.url), question("gpt-4o")))
    assert stub.requests[-1]["max_completion_tokens"] == 50
    assert [one["role"] for one in stub.requests[-1]["messages"]] == ["user"]


def test_a_server_that_asks_to_wait_is_given_its_time(stub: StubServer) -> None:
    waits = Waits()
    (reply,) = run(ask(gateway(stub.url, pause=waits), question("fault-429-retry-after-small")))
    assert reply.attempts == 2
    (wait,) = waits.seconds
    assert 0.05 <= wait <= 0.55


def test_a_wait_beyond_the_cap_ends_the_call_at_once_and_says_how_long(stub: StubServer) -> None:
    waits = Waits()
    found = failed(gateway(stub.url, pause=waits), question("fault-429-retry-after-400"))
    assert (found.kind, found.retryable, stub.hits, waits.seconds) == ("rate_limit", True, 1, [])
    assert "400 s" in found.detail


def test_waits_grow_to_the_cap_with_full_jitter_and_repeat_with_the_seed(stub: StubServer) -> None:
    def waited(seed: int) -> list[float]:
        waits = Waits()
        found = failed(gateway(stub.url, pause=waits, seed=seed, retry_cap_s=1.0), question("fault-500-always"))
        assert found.kind == "server"
        return waits.seconds

    first = waited(1)
    assert len(first) == 5
    assert all(0 <= wait <= bound for wait, bound in zip(first, (0.5, 1.0, 1.0, 1.0, 1.0), strict=True))
    assert first == waited(1) != waited(2)


@pytest.mark.parametrize("model", ["fault-401", "fault-402", "fault-429-quota", "fault-422", "fault-404-model"])
def test_what_cannot_pass_is_not_tried_again(stub: StubServer, model: str) -> None:
    budget = Budget()
    found = failed(gateway(stub.url, budget), question(model))
    assert not found.retryable
    assert (stub.hits, budget.spent.tokens) == (1, 0)


def test_the_deadline_ends_a_call_that_could_go_on(stub: StubServer) -> None:
    slow = failed(gateway(stub.url, deadline_s=0.15, timeout_s=10.0), question("fault-drip"))
    assert slow.kind == "timeout"
    waits = Waits()
    waiting = failed(gateway(stub.url, pause=waits, retries=20, retry_cap_s=1e6), question("fault-500-always"))
    assert waiting.kind == "gave_up"
    assert "HTTP 500" in waiting.detail
    assert all(wait < 300.0 for wait in waits.seconds)


def test_a_redirect_is_not_followed(stub: StubServer) -> None:
    assert failed(gateway(stub.url), question("fault-redirect-loop")).kind == "connection"
    assert stub.hits == 1


def test_a_closed_port_costs_nothing() -> None:
    budget = Budget()
    endpoint = gateway(closed_url(), budget, retries=1)
    charges = charges_of(endpoint)
    assert failed(endpoint, question()).kind == "connection"
    assert budget.spent.tokens == 0
    assert charges == []


@pytest.mark.parametrize(("model", "kind"), [("fault-closed-once", "connection"), ("fault-hang-up-once", "connection")])
def test_a_connection_that_breaks_after_the_request_left_counts_at_its_most(
    stub: StubServer, model: str, kind: str
) -> None:
    budget = Budget()
    endpoint = gateway(stub.url, budget)
    charges = charges_of(endpoint)
    (reply,) = run(ask(endpoint, question(model)))
    assert charges == [Charge.of(question(model), kind)]
    answered = (reply.usage.prompt or 0) + (reply.usage.answer or 0)
    assert budget.spent.tokens == answered + prompt_bound(question(model), ModelInfo("any")) + 50


@pytest.mark.parametrize("model", ["plain", "packed", "error"])
def test_a_body_without_end_is_read_to_a_bound_and_is_one_failure(model: str) -> None:
    with EndlessServer() as stub:
        found = failed(gateway(stub.url), question(model))
    assert (found.kind, stub.hits) == ("malformed_reply", 1)
    assert f"more than {MOST_BYTES} bytes" in found.detail


def test_a_proxy_of_the_environment_is_not_between_us_and_this_machine(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_url())
    monkeypatch.delenv("NO_PROXY", raising=False)
    (reply,) = run(ask(gateway(stub.url), question()))
    assert reply.text == GOOD


@pytest.mark.parametrize(("name", "value"), [("SSL_CERT_FILE", "no-such-file.pem"), ("HTTPS_PROXY", "odd://proxy")])
def test_an_environment_that_the_sdk_cannot_use_is_one_failure(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    budget = Budget()
    nowhere = closed_url().replace("http:", "https:")
    found = failed(gateway(nowhere, budget, retries=0), question())
    assert found.kind == "connection"
    assert name in found.detail
    assert budget.spent.tokens == 0


def test_tokens_of_attempts_that_failed_are_kept(stub: StubServer) -> None:
    budget = Budget()
    found = failed(gateway(stub.url, budget, retries=2), question("fault-choices-empty"))
    assert found.kind == "malformed_reply"
    assert isinstance(found.usage, Usage)
    assert found.usage.prompt is not None
    assert found.usage.answer is not None
    told = found.usage.prompt + found.usage.answer
    assert told % 3 == 0
    assert budget.spent.tokens == told


def test_an_answer_whose_tokens_nobody_counted_is_booked_at_its_worst_case(stub: StubServer) -> None:
    budget = Budget()
    request = question("fault-no-usage")
    (reply,) = run(ask(gateway(stub.url, budget), request))
    assert reply.usage == Usage()
    assert budget.spent.tokens == prompt_bound(request, ModelInfo("any")) + 50


def test_the_budget_stops_before_the_call_that_would_pass_it(stub: StubServer) -> None:
    one_call = prompt_bound(question(), ModelInfo("any")) + 50
    with pytest.raises(BudgetError, match="raise the budget"):
        run(ask(gateway(stub.url, Budget(tokens=one_call - 1)), question()))
    assert stub.hits == 0
    run(ask(gateway(stub.url, Budget(tokens=one_call)), question()))
    assert stub.hits == 1


def test_a_budget_that_ends_between_attempts_keeps_what_they_cost(stub: StubServer) -> None:
    one_call = prompt_bound(question(), ModelInfo("any")) + 50
    budget = Budget(tokens=one_call + 10)
    found = failed(gateway(stub.url, budget), question("fault-choices-empty"))
    assert found.kind == "malformed_reply"
    assert "raise the budget" in found.detail
    assert "1 sent" in found.detail
    assert isinstance(found.usage, Usage)
    assert (found.usage.prompt or 0) + (found.usage.answer or 0) == budget.spent.tokens > 0
    assert stub.hits == 1


def test_calls_at_once_wait_for_what_others_leave_of_the_budget(stub: StubServer) -> None:
    one_call = prompt_bound(question(), ModelInfo("any")) + 50
    # Five calls that take some sixty tokens each, while the worst case of two does not fit in.
    budget = Budget(tokens=2 * one_call - 1)
    replies = run(ask(gateway(stub.url, budget), *(question(sample=number) for number in range(5))))
    assert len(replies) == 5
    assert budget.spent.tokens == sum((one.usage.prompt or 0) + (one.usage.answer or 0) for one in replies)


def test_money_needs_a_price(stub: StubServer) -> None:
    with pytest.raises(BudgetError, match="price_per_million"):
        run(ask(gateway(stub.url, Budget(usd=5.0)), question()))
    assert stub.hits == 0


def test_a_cancelled_call_counts_at_its_worst_case(stub: StubServer) -> None:
    budget = Budget()
    charges: list[Charge] = []

    async def cancelled() -> None:
        endpoint = gateway(stub.url, budget)
        endpoint.charged = charges.append
        asking = asyncio.ensure_future(endpoint.answer(question("slow")))
        while not stub.hits:
            await asyncio.sleep(0.005)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await endpoint.close()

    run(cancelled())
    assert budget.spent.tokens == prompt_bound(question("slow"), ModelInfo("any")) + 50
    assert charges == [Charge.of(question("slow"), "cancelled")]


def test_nothing_is_sent_while_the_offline_switch_is_set(stub: StubServer) -> None:
    endpoint = Gateway(settings(stub.url, offline=True), ModelRegistry.of(), Budget())
    with pytest.raises(OfflineError, match="LLM_OFFLINE"):
        run(endpoint.answer(question()))
    with pytest.raises(OfflineError, match="nothing was sent"):
        run(endpoint.embed(["a"], "good"))
    assert (stub.hits, stub.embedded) == (0, 0)


def test_private_text_goes_to_this_machine_only(stub: StubServer) -> None:
    far = gateway(FAR)
    with pytest.raises(PrivacyError, match=r"models\.example"):
        run(far.answer(question(private=True)))
    with pytest.raises(PrivacyError, match="nothing was sent"):
        run(far.embed(["a"], "good", private=True))
    (reply,) = run(ask(gateway(stub.url), question(private=True)))
    assert reply.text == GOOD


def test_a_remote_endpoint_is_not_asked_without_a_key() -> None:
    endpoint = Gateway(LLMSettings(base_url=FAR), ModelRegistry.of(), Budget())
    found = failed(endpoint, question())
    assert found.kind == "auth"
    assert "OPENAI_API_KEY" in found.detail


def test_a_server_of_this_machine_needs_no_key(stub: StubServer) -> None:
    endpoint = Gateway(LLMSettings(base_url=stub.url), ModelRegistry.of(), Budget())
    (reply,) = run(ask(endpoint, question()))
    assert reply.text == GOOD


def test_a_filter_that_speaks_by_status_is_an_answer(stub: StubServer) -> None:
    (reply,) = run(ask(gateway(stub.url), question("fault-400-content-policy")))
    assert (reply.text, reply.finish) == ("", "content_filter")


def test_text_that_no_server_can_read_is_a_bad_request(stub: StubServer) -> None:
    found = failed(gateway(stub.url), question(text="half \ud83d"))
    assert (found.kind, stub.hits) == ("bad_request", 0)


def test_images_go_as_data_addresses(stub: StubServer) -> None:
    request = replace(question(), messages=(Message("user", "Look.", (PNG,)),))
    run(ask(gateway(stub.url), request))
    parts = stub.requests[0]["messages"][-1]["content"]
    assert parts[1]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="


def test_vectors_come_back_in_order_and_in_portions(stub: StubServer) -> None:
    texts = [f"text number {number}" for number in range(2 * EMBEDDED_AT_ONCE + 3)]
    budget = Budget()
    charges: list[Charge] = []

    async def embedded() -> list[list[float]]:
        endpoint = gateway(stub.url, budget)
        endpoint.charged = charges.append
        vectors = await endpoint.embed(texts, "text-embedding-3-small")
        assert await endpoint.embed([], "text-embedding-3-small") == []
        await endpoint.close()
        return vectors

    assert run(embedded()) == [pytest.approx(embedding(text)) for text in texts]
    assert stub.embedded == 3
    assert {one.outcome for one in charges} == {"answered"}
    assert sum((one.bound.prompt or 0) + (one.bound.answer or 0) for one in charges) == budget.spent.tokens > 0


def test_a_server_without_embeddings_is_one_failure(stub: StubServer) -> None:
    with pytest.raises(LLMFailure) as raised:
        run(gateway(stub.url, retries=1).embed(["a"] * 25, "no-embeddings"))
    assert raised.value.kind == "server"


def test_no_more_calls_are_open_than_allowed() -> None:
    lock_free = {"open": 0, "most": 0}

    def watch(body: dict[str, Any]) -> str:
        lock_free["open"] += 1
        lock_free["most"] = max(lock_free["most"], lock_free["open"])
        stub.stopping.wait(0.01)
        lock_free["open"] -= 1
        return GOOD

    with StubServer(watch) as stub:
        endpoint = gateway(stub.url, concurrency=3)
        replies = run(ask(endpoint, *(question(sample=number) for number in range(12))))
    assert len(replies) == 12
    assert 2 <= lock_free["most"] <= 3


def test_one_gateway_serves_one_loop_after_another(stub: StubServer) -> None:
    endpoint = gateway(stub.url)
    assert run(ask(endpoint, question()))[0].text == run(ask(endpoint, question()))[0].text == GOOD


@pytest.mark.parametrize("model", ["echo-error", "echo-page", "echo-answer"])
def test_a_key_that_the_server_repeats_is_nowhere(model: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with EchoingServer() as stub:
        endpoint = gateway(stub.url, retries=1)
        try:
            shown: list[object] = [run(ask(endpoint, question(model)))]
        except LLMFailure as found:
            shown = [str(found), found.__dict__, found.__cause__, found.__context__]
        assert all(KEY in str(one) for one in stub.headers)
    assert "planted" not in f"{shown!r} {endpoint!r} {vars(endpoint)!r}"
    assert KEY not in caplog.text


def test_importing_the_gateway_does_not_import_the_sdk() -> None:
    code = "import sys, qlib_llm_alpha.llm.gateway as g; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
