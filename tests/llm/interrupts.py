"""Tests that press Ctrl-C; `test_client.py` runs them in a process of their own."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlib_llm_alpha.llm.budget import Charge
from qlib_llm_alpha.llm.client import Client
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.request import Reply, Request
from tests.llm.talk import FakeGateway, reply, request


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as journal:
        yield journal


def number(asked: Request) -> Reply:
    """Answer with the number in the last turn."""
    return reply(json.dumps({"number": int(asked.messages[-1].text)}))


def live(journal: Journal, gateway: FakeGateway) -> Client:
    return Client(mode="live", model="model-a", revision="r1", journal=journal, gateway=gateway)


def interrupt() -> None:
    """Press Ctrl-C."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
def test_an_interrupt_keeps_what_is_in_flight_and_begins_nothing(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    class Pressed(FakeGateway):
        async def answer(self, request: Request) -> Reply:
            if len(self.asked) == 1:
                interrupt()
            return await super().answer(request)

    gateway = Pressed(number, concurrency=2, wait_s=0.1)
    with live(journal, gateway) as client, pytest.raises(KeyboardInterrupt):
        client.complete([request(str(n)) for n in range(6)])
    assert len(gateway.asked) == len(journal.reply_keys()) == 2
    assert "interrupt again to drop them" in caplog.text
    later = FakeGateway(number)
    with live(journal, later) as client:
        client.complete([request(str(n)) for n in range(6)])
    assert len(later.asked) == 4


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
def test_a_second_interrupt_drops_what_is_in_flight_and_the_journal_has_its_cost(journal: Journal) -> None:
    class Stuck(FakeGateway):
        async def answer(self, request: Request) -> Reply:
            self.asked.append(request)
            try:
                for _ in range(2):
                    interrupt()
                    await asyncio.sleep(0.05)
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.charged(Charge.of(request, "cancelled"))
                raise
            return reply("too late")

    with live(journal, Stuck(number)) as client, pytest.raises(KeyboardInterrupt):
        client.complete([request("1")])
    assert journal.reply_keys() == []
    assert journal.spent()["model-a"].bound.answer == 100
