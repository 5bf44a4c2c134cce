"""A second witness that is not ours: aimock, whose authors compare it with the real servers.

Runs when the environment variable QLIB_LLM_ALPHA_AIMOCK names its executable, as ``.ci/matrix`` does
where npm is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.llm.request import Completion
from tests.llm.test_faults import Ideas, Setting, ending, question

EXECUTABLE = os.environ.get("QLIB_LLM_ALPHA_AIMOCK", "")

pytestmark = pytest.mark.skipif(
    not EXECUTABLE, reason="QLIB_LLM_ALPHA_AIMOCK does not name aimock; npm install @copilotkit/aimock and set it"
)

IDEA = {
    "name": "reversal_5",
    "category": "mean_reversion",
    "formula": "0-($close/Ref($close,5)-1)",
    "horizon_days": 5,
    "note": None,
    "evidence": [],
}
ANSWER = json.dumps({"abstain": False, "candidates": [IDEA]})
FIXTURES = {
    "fixtures": [
        {"match": {"model": "good"}, "response": {"content": ANSWER}},
        {"match": {"model": "fenced"}, "response": {"content": f"```json\n{ANSWER}\n```"}},
        {"match": {"model": "reasons"}, "response": {"content": ANSWER, "reasoning": "I think."}},
        {"match": {"model": "cut"}, "response": {"content": ANSWER[:40], "finishReason": "length"}},
        {"match": {"model": "empty"}, "response": {"content": " "}},
        {
            "match": {"model": "quota"},
            "response": {"error": {"message": "no money", "code": "insufficient_quota"}, "status": 429},
        },
        {"match": {"model": "locked"}, "response": {"error": {"message": "Incorrect API key"}, "status": 401}},
        {"match": {"model": "down"}, "response": {"error": {"message": "overloaded"}, "status": 503}},
    ]
}
ENDINGS = {
    "good": "value",
    "fenced": "value",
    "reasons": "value",
    "cut": "truncated",
    "empty": "blank",
    "quota": "quota",
    "locked": "auth",
    "down": "server",
}
CHAOS = {
    "dropRate": "server",
    "malformedRate": "malformed_reply",
    "disconnectRate": "connection",
    "rateLimitRate": "rate_limit",
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("aimock")
    (folder / "fixtures.json").write_text(json.dumps(FIXTURES), encoding="utf-8")
    config = {"llm": {"fixtures": str(folder / "fixtures.json")}, "host": "127.0.0.1"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command = [EXECUTABLE, "--config", str(folder / "config.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(line for line in process.stdout if "listening on" in line).split()[-1]
        finally:
            process.terminate()


def set_chaos(address: str, rates: dict[str, float]) -> None:
    content = json.dumps(rates).encode()
    request = urllib.request.Request(  # noqa: S310
        f"{address}/__aimock/chaos", content, {"Content-Type": "application/json"}, method="POST" if rates else "DELETE"
    )
    with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310
        assert reply.status in {200, 204}


def outcome(address: str, model: str, folder: Path) -> Completion | LLMFailure:
    with Setting(f"{address}/v1", model, folder, retries=2) as setting:
        return setting.outcome(question(model))


@pytest.mark.parametrize("model", ENDINGS)
def test_what_it_answers_ends_as_with_our_own_server(address: str, tmp_path: Path, model: str) -> None:
    found = outcome(address, model, tmp_path)
    assert ending(found) == ENDINGS[model], found
    if isinstance(found, Completion):
        assert isinstance(found.value, Ideas)
        assert found.value.candidates[0].formula == IDEA["formula"]
        assert (found.usage.prompt or 0) > 0


@pytest.mark.parametrize("chaos", CHAOS)
def test_its_chaos_ends_in_one_failure_of_its_kind_and_passes(address: str, tmp_path: Path, chaos: str) -> None:
    set_chaos(address, {chaos: 1.0})
    try:
        assert ending(outcome(address, "good", tmp_path)) == CHAOS[chaos]
    finally:
        set_chaos(address, {})
    assert ending(outcome(address, "good", tmp_path)) == "value"
