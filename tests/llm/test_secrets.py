"""A planted key is looked for in everything that a session leaves behind, shows or says."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from qlib_llm_alpha.chain import Chain
from qlib_llm_alpha.errors import ConfigError, QlibLLMAlphaError
from qlib_llm_alpha.llm.audit import AUDIT, JOURNAL, CandidateRow, audit_candidates, audit_session, trace_factor
from qlib_llm_alpha.llm.budget import Budget
from qlib_llm_alpha.llm.client import Client
from qlib_llm_alpha.llm.gateway import Gateway
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.models import ModelRegistry
from qlib_llm_alpha.llm.recording import Recording
from qlib_llm_alpha.llm.request import Completion
from qlib_llm_alpha.llm.settings import LLMSettings
from tests.llm.talk import request
from tests.support.stub_faults import FAULTS
from tests.support.stub_server import StubServer

KEY = "sk-planted-8d1f/secret+key=42"
TELLING = tuple(name for name in FAULTS if name.endswith("tells-the-key"))
SHORT_LOOK = "planted-8d1f"  # what even a shortened or quoted key still holds


def leaks(text: str) -> bool:
    return any(part in text for part in (KEY, SHORT_LOOK, quote(KEY, safe="")))


def tell_tale(body: Mapping[str, Any]) -> str:
    """Say the key, as a server may that was made to show its request."""
    return json.dumps({"number": 1, "headers": {"Authorization": f"Bearer {KEY}"}})


def left_behind(folder: Path) -> str:
    """Return all bytes of all files of a folder as text."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files
    return "\n".join(path.read_bytes().decode("latin-1") for path in files)


def client(url: str, folder: Path, model: str) -> Client:
    environment = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "OPENAI_MODEL": model}
    settings = LLMSettings.from_environment(environment)
    gateway = Gateway(settings, ModelRegistry.of(), Budget(), timeout_s=5.0, retries=1, retry_cap_s=0.01)
    assert not leaks(repr(settings) + str(settings) + repr(gateway) + repr(vars(gateway)))
    return Client(
        mode="record",
        model=model,
        journal=Journal(folder / JOURNAL),
        gateway=gateway,
        audit=Chain(folder / AUDIT),
        endpoint="local",
    )


def test_a_session_leaves_no_key_in_journal_trail_recording_logs_or_reprs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with StubServer(tell_tale) as server, client(server.url, tmp_path, "any") as asker:
        outcomes = asker.complete([request("1"), request("2")])
        asker.embed(["a text"])
        trail = Chain(tmp_path / AUDIT)
        keys = [key for one in outcomes if isinstance(one, Completion) for key in one.calls]
        audit_candidates(trail, [CandidateRow("id-1", "one", "$close", "model", tuple(keys))])
        audit_session(trail, data="d", settings="s", library="l")
        header = {"model": "any", "data": "d", "made_by": "a test", "note": ""}
        with Journal(tmp_path / JOURNAL) as journal:
            Recording.write(tmp_path / "recording.jsonl", journal, asker.used_keys, header)
            rows = repr([*journal.rows(), journal.spent()])
        shown = rows + repr(outcomes) + repr(asker) + repr(vars(asker))
        shown += repr(trace_factor(tmp_path, "one")) + repr(Recording.load(tmp_path / "recording.jsonl"))
    assert server.hits == 2
    assert all(isinstance(one, Completion) for one in outcomes)
    assert not leaks(left_behind(tmp_path))
    assert not leaks(shown)
    out, err = capfd.readouterr()
    assert not leaks(caplog.text + out + err)
    assert "address" not in left_behind(tmp_path)
    assert server.url not in left_behind(tmp_path), "where it was asked is not kept either"


@pytest.mark.parametrize("model", [*TELLING, "fault-429-quota", "fault-error-plain-text"])
def test_a_failing_call_leaves_no_key_in_errors_and_files(
    tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = ""
    with StubServer(tell_tale) as server, client(server.url, tmp_path, model) as asker:
        try:
            said = repr(asker.complete([request("1")]))
        except QlibLLMAlphaError as error:
            said = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert len(TELLING) >= 4
    assert said
    assert not leaks(said + caplog.text + left_behind(tmp_path))


def test_a_password_in_the_address_is_refused_without_being_shown() -> None:
    for url in (f"https://user:{quote(KEY, safe='')}@models.example/v1", "http://[broken"):
        with pytest.raises(ConfigError) as refused:
            LLMSettings.from_environment({"OPENAI_BASE_URL": url})
        assert not leaks(str(refused.value) + repr(refused.value))
