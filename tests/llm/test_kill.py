"""A client killed with SIGKILL at odd moments: what was kept is never asked again, and the trail is whole after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.llm.audit import AUDIT, JOURNAL, verify_session
from qlib_llm_alpha.llm.budget import Budget
from qlib_llm_alpha.llm.client import Client
from qlib_llm_alpha.llm.gateway import Gateway
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.models import ModelRegistry
from qlib_llm_alpha.llm.request import Completion
from qlib_llm_alpha.llm.settings import LLMSettings
from tests.llm.talk import Answer, request
from tests.support.stub_server import StubServer

QUESTIONS, CONCURRENCY = 40, 4


def ask_all(url: str, folder: Path) -> None:
    """Ask every question of the session in a folder, as a process of its own does."""
    settings = LLMSettings.from_environment({"OPENAI_BASE_URL": url})
    gateway = Gateway(settings, ModelRegistry.of(), Budget(), concurrency=CONCURRENCY)
    with Journal(folder / JOURNAL) as journal:
        client = Client(mode="live", model="model-a", journal=journal, gateway=gateway, audit=Chain(folder / AUDIT))
        with client:
            outcomes = client.complete([request(str(n)) for n in range(QUESTIONS)])
    assert [one.value for one in outcomes if isinstance(one, Completion)] == [
        Answer(number=2 * n) for n in range(QUESTIONS)
    ]


def question(body: dict[str, Any]) -> str:
    return next(str(turn["content"]) for turn in body["messages"] if turn["role"] == "user")


def kept(folder: Path) -> set[str]:
    with Journal(folder / JOURNAL) as journal:
        return {row.request["messages"][1]["text"] for row in journal.rows()}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_after_a_kill_only_what_was_in_flight_is_asked_again(tmp_path: Path) -> None:
    def double(body: dict[str, Any]) -> str:
        time.sleep(0.004)
        return json.dumps({"number": 2 * int(question(body).split()[0])})

    command = (
        "import sys, pathlib; from tests.llm.test_kill import ask_all; ask_all(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    kills, seen = (8, 24), []
    with StubServer(double) as server:
        for moment in kills:
            child = subprocess.Popen([sys.executable, "-c", command, server.url, str(tmp_path)])
            while server.hits < moment and child.poll() is None:
                time.sleep(0.001)
            os.kill(child.pid, signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            time.sleep(0.05)  # what the server still holds of the dead process arrives
            seen.append((len(server.requests), kept(tmp_path)))
            assert 0 < len(seen[-1][1]) < QUESTIONS, "killed in the middle"
        assert subprocess.run([sys.executable, "-c", command, server.url, str(tmp_path)], check=True).returncode == 0
    asked = [question(body) for body in server.requests]
    for before, done in seen:
        assert not {text.split()[0] for text in asked[before:]} & done, "what was kept is not asked again"
    assert kept(tmp_path) == {str(n) for n in range(QUESTIONS)}
    repeats = sum(count - 1 for count in Counter(asked).values())
    assert repeats <= CONCURRENCY * len(kills)
    assert verify_session(tmp_path) == []
