"""The client asks each thing once, keeps every answer at once, repairs, and never asks in replay."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.errors import (
    BudgetError,
    ConfigError,
    LLMError,
    LLMFailure,
    OfflineError,
    ReplayError,
)
from qlib_llm_alpha.llm.budget import Charge
from qlib_llm_alpha.llm.client import Client
from qlib_llm_alpha.llm.conversation import converse
from qlib_llm_alpha.llm.journal import Journal, embedding_key
from qlib_llm_alpha.llm.recording import Recording
from qlib_llm_alpha.llm.request import Completion, Reply, Request, Usage
from tests.llm.talk import Answer, FakeGateway, reply, request
from tests.support.scripted import ScriptedClient

ROOT = Path(__file__).parents[2]
HEADER = {"model": "model-a", "data": "d", "made_by": "a test", "note": ""}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as journal:
        yield journal


def number(asked: Request) -> Reply:
    """Answer with the number in the last turn."""
    return reply(json.dumps({"number": int(asked.messages[-1].text)}))


def live(journal: Journal, gateway: FakeGateway | None, **keywords: object) -> Client:
    return Client(mode="live", model="model-a", revision="r1", journal=journal, gateway=gateway, **keywords)  # type: ignore[arg-type]


def values(outcomes: list[Completion | LLMFailure]) -> list[object]:
    return [outcome.value if isinstance(outcome, Completion) else outcome.kind for outcome in outcomes]


def in_turn(*answers: Reply) -> Callable[[Request], Reply]:
    """Answer the turns of one conversation one after the other."""
    waiting = list(answers)
    return lambda _: waiting.pop(0)


def test_answers_come_in_the_order_of_the_requests_and_the_same_is_asked_once(journal: Journal) -> None:
    gateway = FakeGateway(number)
    with live(journal, gateway) as client:
        outcomes = client.complete([request(text) for text in ("3", "1", "3", "2", "1")])
    assert values(outcomes) == [Answer(number=n) for n in (3, 1, 3, 2, 1)]
    assert len(gateway.asked) == client.calls_asked == 3
    assert gateway.closed


def test_no_more_than_the_gateways_concurrency_is_in_flight(journal: Journal) -> None:
    gateway = FakeGateway(number, concurrency=3)
    with live(journal, gateway) as client:
        client.complete([request(str(n)) for n in range(12)])
    assert gateway.most_in_flight == 3


def test_what_the_journal_has_is_not_asked_again(journal: Journal) -> None:
    with live(journal, FakeGateway(number)) as client:
        first = client.complete([request("1"), request("2")])
    gateway = FakeGateway(number)
    with live(journal, gateway) as client:
        second = client.complete([request("1"), request("2"), request("4")])
    assert [asked.messages[-1].text for asked in gateway.asked] == ["4"]
    assert (client.calls_asked, client.calls_replayed) == (1, 2)
    assert values(second)[:2] == values(first)
    assert [outcome.replayed for outcome in second if isinstance(outcome, Completion)] == [True, True, False]


def test_a_call_inside_a_running_loop_works(journal: Journal) -> None:
    async def notebook() -> list[object]:
        with live(journal, FakeGateway(number)) as client:
            return values(client.complete([request("1")]))

    assert asyncio.run(notebook()) == [Answer(number=1)]


def test_one_gateway_serves_many_calls_on_one_loop(journal: Journal) -> None:
    loops = set()

    class Bound(FakeGateway):
        async def answer(self, request: Request) -> Reply:
            loops.add(id(asyncio.get_running_loop()))
            return await super().answer(request)

    with live(journal, Bound(number)) as client:
        for n in range(3):
            client.complete([request(str(n))])
    assert len(loops) == 1, "connections belong to a loop"


def test_progress_is_told_for_known_and_asked_alike(journal: Journal) -> None:
    with live(journal, FakeGateway(number)) as client:
        client.complete([request("1")])
    told: list[tuple[int, int]] = []
    with live(journal, FakeGateway(number), progress=lambda done, total: told.append((done, total))) as client:
        client.complete([request(str(n)) for n in (1, 2, 3, 1)])
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_wrong_answer_is_mended_in_a_further_turn(journal: Journal) -> None:
    gateway = FakeGateway(in_turn(reply('<think>hm</think>{"numbr": 1}'), reply('{"number": 1}')))
    with live(journal, gateway) as client:
        (outcome,) = client.complete([request("q")])
    assert isinstance(outcome, Completion)
    assert outcome.value == Answer(number=1)
    assert outcome.usage == Usage(20, 10)
    assert outcome.calls == tuple(asked.key for asked in gateway.asked)
    roles = [(turn.role, turn.text) for turn in gateway.asked[1].messages[2:]]
    assert roles[0] == ("assistant", '{"numbr": 1}'), "the model is shown its answer, not its thoughts"
    assert "number: Field required" in roles[1][1]


@pytest.mark.parametrize(
    ("kind", "answers", "turns"),
    [
        ("invalid", [reply("no")] * 3, 3),
        ("blank", [reply("  ")] * 2, 2),
        ("blank", [reply("no"), reply("<think>so</think>"), reply("\n")], 3),
        ("truncated", [reply('{"num', finish="length")] * 2, 2),
        ("refusal", [reply("I would rather not.", finish="refusal")], 1),
        ("filtered", [reply("", finish="content_filter")], 1),
        ("invalid", [reply("", finish="stop"), reply('{"number": "x"}'), reply('{"number": "y"}')], 3),
        ("truncated", [reply("no"), reply("{", finish="length"), reply("{", finish="length")], 3),
    ],
)
def test_an_answer_of_no_use_is_a_failure_value_with_all_usage(
    journal: Journal, kind: str, answers: list[Reply], turns: int
) -> None:
    gateway = FakeGateway(in_turn(*answers))
    with live(journal, gateway) as client:
        (outcome,) = client.complete([request("q")])
    assert isinstance(outcome, LLMFailure)
    assert outcome.kind == kind
    assert outcome.usage == Usage(10 * turns, 5 * turns)
    assert outcome.text == answers[-1].text
    assert len(gateway.asked) == len(journal.reply_keys()) == turns
    replayed = Client(mode="replay", model="model-a", journal=journal).complete([request("q")])
    assert (values(replayed), str(replayed[0])) == ([kind], str(outcome)), "a failure is replayed as it was"


def test_a_truncated_answer_is_asked_for_with_twice_the_tokens_not_mended(journal: Journal) -> None:
    gateway = FakeGateway(in_turn(reply('{"number": 1}', finish="length"), reply('{"number": 12}')))
    with live(journal, gateway) as client:
        assert values(client.complete([request("q", max_tokens=50)])) == [Answer(number=12)]
    assert [(asked.max_tokens, len(asked.messages)) for asked in gateway.asked] == [(50, 2), (100, 2)]


def test_a_longer_answer_to_one_request_that_is_another_request_is_asked_once(journal: Journal) -> None:
    def answers(asked: Request) -> Reply:
        return reply("{", finish="length") if asked.max_tokens == 50 else reply('{"number": 2}')

    gateway = FakeGateway(answers)
    with live(journal, gateway) as client:
        outcomes = client.complete([request("q", max_tokens=50), request("q", max_tokens=100)])
    assert values(outcomes) == [Answer(number=2)] * 2
    assert len(gateway.asked) == 2


@pytest.mark.parametrize("error", [LLMFailure("timeout", "late"), BudgetError("the end")])
def test_when_one_fails_the_others_in_flight_are_kept_and_nothing_is_begun(journal: Journal, error: LLMError) -> None:
    class Uneven(FakeGateway):
        async def answer(self, request: Request) -> Reply:
            if request.messages[-1].text == "1":
                self.asked.append(request)
                await asyncio.sleep(0.005)
                if isinstance(error, LLMFailure):
                    self.charged(Charge.of(request, error.kind, Usage(7, 0)))
                raise error
            return await super().answer(request)

    gateway = Uneven(number, concurrency=4, wait_s=0.02)
    with live(journal, gateway) as client, pytest.raises(type(error), match=str(error).replace("[", r"\[")):
        client.complete([request(str(n)) for n in range(12)])
    assert len(gateway.asked) == 4
    assert len(journal.reply_keys()) == 3, "what was in flight came and was kept"
    usage = journal.spent()["model-a"].usage
    assert usage.prompt == (37 if isinstance(error, LLMFailure) else 30)
    later = FakeGateway(number)
    with live(journal, later) as client:
        client.complete([request(str(n)) for n in range(12)])
    assert len(later.asked) == 9


def test_what_the_gateway_lost_is_in_the_journal_at_its_most_whatever_comes_after(journal: Journal) -> None:
    class Stumbling(FakeGateway):
        async def answer(self, request: Request) -> Reply:
            self.charged(Charge.of(request, "timeout"))
            self.charged(Charge.of(request, "malformed_reply", Usage(7, 0)))
            return await super().answer(request)

    with live(journal, Stumbling(number)) as client:
        client.complete([request("0")])
    spent = journal.spent()["model-a"]
    assert (spent.calls, spent.unmeasured, spent.usage.prompt, spent.bound.answer) == (3, 1, 17, 100 + 0 + 5)


def test_a_failure_alone_costs_nothing_since_only_the_gateway_knows_what_left(journal: Journal) -> None:
    def fail(_: Request) -> Reply:
        raise LLMFailure("connection", "refused")

    with live(journal, FakeGateway(fail)) as client, pytest.raises(LLMFailure):
        client.complete([request("0")])
    assert journal.spent() == {}


def test_interrupts_keep_what_was_paid_for() -> None:
    """A signal meant for one test must never meet another, so these run in a process of their own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "tests/llm/interrupts.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout or not hasattr(signal, "pthread_kill")


def test_further_failures_are_logged_and_the_first_is_raised(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(asked: Request) -> Reply:
        raise LLMFailure("server", f"broke on {asked.messages[-1].text}")

    with (
        live(journal, FakeGateway(fail)) as client,
        caplog.at_level(logging.WARNING),
        pytest.raises(LLMFailure, match="broke on 0"),
    ):
        client.complete([request("0"), request("1")])
    assert "failed too: [server] broke on 1" in caplog.text


def test_a_mistake_of_ours_waits_for_the_others_too(journal: Journal) -> None:
    def answers(asked: Request) -> Reply:
        if asked.messages[-1].text == "0":
            raise ZeroDivisionError
        return number(asked)

    with live(journal, FakeGateway(answers)) as client, pytest.raises(ZeroDivisionError):
        client.complete([request("0"), request("1")])
    assert len(journal.reply_keys()) == 1


def test_another_model_than_before_stops_the_session_and_is_not_kept(journal: Journal) -> None:
    with live(journal, FakeGateway(number)) as client:
        client.complete([request("1")])
    swapped = FakeGateway(lambda asked: reply('{"number": 9}', model="model-a-2027"))
    with live(journal, swapped) as client, pytest.raises(LLMFailure, match="'model-a-2027' answered") as failed:
        client.complete([request("2")])
    assert failed.value.kind == "model_changed"
    assert journal.reply_keys() == [request("1").key]
    assert journal.spent()["model-a"].calls == 2, "it was paid all the same"
    with live(journal, FakeGateway(number)) as client:
        assert values(client.complete([request("2")])) == [Answer(number=2)]


def test_without_an_endpoint_something_unknown_is_told(journal: Journal) -> None:
    with live(journal, None) as client:
        with pytest.raises(OfflineError, match="OPENAI_API_KEY, or a local OPENAI_BASE_URL"):
            client.complete([request("1")])
        with pytest.raises(OfflineError):
            client.embed(["a"])
        assert client.complete([]) == []


def test_replay_gives_what_was_recorded_and_never_asks(journal: Journal, tmp_path: Path) -> None:
    with live(journal, FakeGateway(in_turn(reply("no"), reply('{"number": 5}')))) as client:
        recorded = client.complete([request("q")])
        client.embed(["a text"])
        Recording.write(tmp_path / "r.jsonl", journal, client.used_keys, HEADER)
    gateway = FakeGateway(number)
    fresh = Journal(tmp_path / "fresh.sqlite")
    trail = Chain(tmp_path / "audit.jsonl")
    client = Client(
        mode="replay",
        model="model-a",
        journal=fresh,
        gateway=gateway,
        recording=Recording.load(tmp_path / "r.jsonl"),
        audit=trail,
        embedding_model="model-a",
    )
    (outcome,) = client.complete([request("q")])
    assert values([outcome]) == values(recorded)
    assert isinstance(outcome, Completion)
    assert outcome.replayed
    assert client.embed(["a text"]) == [[6.0, 0.1]]
    assert gateway.asked == gateway.embedded == []
    assert len(fresh.reply_keys()) == 2, "a replayed session has a journal of its own"
    assert fresh.spent() == {}
    assert [row.body["asked"] for row in trail.rows("call")] == [False, False]
    with pytest.raises(ReplayError) as missing:
        client.complete([request("other"), request("q")])
    for part in ("generate (prompt generate version 3, abababab)", request("other").key[:12], "'r.jsonl' holds 1 for"):
        assert part in str(missing.value)
    with pytest.raises(ReplayError, match="1 of 2 embeddings by 'model-a' are not recorded"):
        client.embed(["a text", "another"])
    assert gateway.asked == gateway.embedded == []


def test_replay_without_a_recording_has_the_journal_alone(journal: Journal) -> None:
    with live(journal, FakeGateway(number)) as client:
        client.complete([request("1")])
    client = Client(mode="replay", model="model-a", journal=journal)
    assert values(client.complete([request("1")])) == [Answer(number=1)]
    with pytest.raises(ReplayError, match=r"\(2 requests lack one\); there is no recording"):
        client.complete([request("2"), request("3")])


def test_a_recorded_session_can_be_extended(journal: Journal, tmp_path: Path) -> None:
    with live(journal, FakeGateway(number)) as client:
        client.complete([request("1")])
    journal.export(tmp_path / "r.jsonl", header=HEADER)
    gateway = FakeGateway(number)
    recording = Recording.load(tmp_path / "r.jsonl")
    extended = Journal(tmp_path / "extended.sqlite")
    with Client(mode="record", model="model-a", journal=extended, gateway=gateway, recording=recording) as client:
        client.complete([request("1"), request("2")])
        assert client.used_keys == {request("1").key, request("2").key}
    assert [asked.messages[-1].text for asked in gateway.asked] == ["2"]


def test_embeddings_are_asked_once_and_come_in_order(journal: Journal) -> None:
    gateway = FakeGateway(number)
    texts = [f"text {'x' * n}" for n in range(70)]
    with live(journal, gateway, embedding_model="embedder") as client:
        vectors = client.embed([*texts, texts[0]])
        assert [vector[0] for vector in vectors] == [float(len(text)) for text in [*texts, texts[0]]]
        assert client.embed(texts[:2]) == vectors[:2]
        assert len(client.used_keys) == 70
        assert embedding_key("embedder", texts[0]) in client.used_keys
    assert len(gateway.embedded) == 70


def test_embeddings_that_came_are_kept_when_a_later_portion_fails(journal: Journal) -> None:
    class Breaks(FakeGateway):
        async def embed(self, texts: Sequence[str], model: str, *, private: bool = False) -> list[list[float]]:
            if "text 12" in texts:
                raise LLMFailure("server", "broke")
            return await super().embed(texts, model, private=private)

    texts = [f"text {n}" for n in range(25)]
    with live(journal, Breaks(number)) as client, pytest.raises(LLMFailure, match="broke"):
        client.embed(texts)
    gateway = FakeGateway(number)
    with live(journal, gateway) as client:
        assert len(client.embed(texts)) == 25
    assert gateway.embedded == texts[10:20]


def test_a_server_that_gives_too_few_vectors_is_not_believed(journal: Journal) -> None:
    class Short(FakeGateway):
        async def embed(self, texts: object, model: str, *, private: bool = False) -> list[list[float]]:
            return []

    with live(journal, Short(number)) as client, pytest.raises(LLMFailure, match="0 vectors came for 1 texts"):
        client.embed(["a"])


@pytest.mark.parametrize(("keyword", "value"), [("mode", "dry"), ("repairs", -1)])
def test_a_keyword_that_means_nothing_is_refused(journal: Journal, keyword: str, value: object) -> None:
    keywords: dict[str, object] = {"mode": "live", "model": "m", "journal": journal, keyword: value}
    with pytest.raises(ConfigError, match=keyword):
        Client(**keywords)  # type: ignore[arg-type]


REPLIES = st.builds(
    reply,
    st.sampled_from(['{"number": 1}', "", "no", "<think>", '{"number": "x"}', "\ud800{", "[]"]),
    finish=st.sampled_from(["stop", "stop", "length", "refusal", "content_filter", "tool_calls", ""]),
)


@given(st.lists(REPLIES, min_size=8, max_size=8), st.integers(0, 3))
def test_every_conversation_ends_after_a_bounded_number_of_turns(replies: list[Reply], repairs: int) -> None:
    talk = converse(request("q"), repairs)
    asked = [next(talk)]
    for answered in replies:
        try:
            asked.append(talk.send(answered))
        except StopIteration as end:
            outcome = end.value
            break
    assert isinstance(outcome, (Completion, LLMFailure))
    assert len(asked) <= repairs + 2, "the repairs, and once with more tokens"
    assert len({one.key for one in asked}) == len(asked)
    assert outcome.usage.prompt == 10 * len(asked)
    for one in asked:
        one.messages[-1].text.encode("utf-8")


def test_the_scripted_client_reads_and_repairs_as_the_real_one() -> None:
    client = ScriptedClient(
        lambda asked: "oops" if len(asked.messages) == 2 and asked.messages[-1].text == "1" else '{"number": 4}'
    )
    outcomes = client.complete([request("1"), request("2"), request("1")])
    assert values(outcomes) == [Answer(number=4)] * 3
    assert len(client.requests) == client.calls_asked == 3
    assert client.used_keys == {asked.key for asked in client.requests}
    failing = ScriptedClient(lambda asked: LLMFailure("refusal", "no"))
    assert values(failing.complete([request("1")])) == ["refusal"]
    assert client.embed(["a", "a", "b"])[0] == client.embed(["a"])[0] != client.embed(["b"])[0]
