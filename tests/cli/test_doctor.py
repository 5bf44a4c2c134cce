"""``qlib-llm-alpha doctor``: what is wrong is named with what to type, nothing is sent unasked, no key is shown."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qlib_llm_alpha.cli import main
from qlib_llm_alpha.llm.diagnosis import Check, Diagnosis, diagnose
from qlib_llm_alpha.llm.recording import FORMAT
from tests.support.stub_server import StubServer, closed_url

KEY = "sk-planted-5f2a9c1e77"
VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "LLM_MODE", "LLM_OFFLINE")


@pytest.fixture(scope="module")
def server() -> Iterator[StubServer]:
    with StubServer(answer=sees) as stub:
        yield stub


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what sets the variables of the language model and no others."""

    def put(**values: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    put()
    return put


def sees(body: dict[str, Any]) -> str:
    """Answer the probe as a model with eyes does."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return json.dumps({"word": "ready", "number": 7})
    uri = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    names = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue"}
    corner = (image.width - 1, image.height - 1)
    return json.dumps({"left": names[image.getpixel((0, 0))], "right": names[image.getpixel(corner)]})


def test_a_key_in_the_path_of_the_address_is_not_shown(environment: Callable[..., None], capsys: Any) -> None:
    environment(OPENAI_BASE_URL=f"http://127.0.0.1:9/{KEY}/v1")
    main(["doctor"])
    environment(OPENAI_BASE_URL="http://127.0.0.1:9/plain-word/v1", OPENAI_API_KEY="plain-word")
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "planted" not in printed
    assert "plain-word" not in printed
    assert "http://127.0.0.1:9/[key hidden]/v1" in printed


def probed(server: StubServer, model: str, **more: str) -> Diagnosis:
    return diagnose({"OPENAI_BASE_URL": server.url, "OPENAI_MODEL": model, **more}, probe=True)


def of(found: Diagnosis, topic: str) -> Check:
    return next(check for check in found.checks if check.topic == topic)


def test_without_a_key_all_is_fine_and_it_says_how_to_set_one(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for topic in ("Python", "packages", "engine", "endpoint", "model", "mode", "offline switch", "registry"):
        assert f"  {topic}: " in printed
    assert "note  key: not set" in printed
    assert "next: export OPENAI_API_KEY=..." in printed


def test_nothing_is_sent_without_probe(server: StubServer) -> None:
    before = (server.hits, server.embedded)
    assert diagnose({"OPENAI_BASE_URL": server.url, "OPENAI_MODEL": "quiet"}).healthy
    assert (server.hits, server.embedded) == before


def test_a_probe_names_rung_usage_images_and_embeddings(
    environment: Callable[..., None], server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    environment(OPENAI_BASE_URL=server.url, OPENAI_MODEL="some-model", OPENAI_API_KEY=KEY)
    assert main(["doctor", "--probe", "--json"]) == 0
    printed = capsys.readouterr().out
    found = {check["topic"]: check for check in json.loads(printed)["checks"]}
    assert found["answer"]["detail"].startswith("some-model in ")
    assert found["schema"]["detail"].startswith("json_schema: ")
    assert found["usage"]["detail"].startswith("reported: ")
    assert found["images"]["state"] == "note", "the registry does not know that it sees"
    assert "taken and seen" in found["images"]["detail"]
    assert found["embeddings"]["detail"] == "64 numbers for a text"
    assert KEY not in printed


@pytest.mark.parametrize(
    ("model", "rung"),
    [("deepseek-like", "json_object"), ("fault-no-response-format", "prompt"), ("fault-no-json-schema", "json_object")],
)
def test_the_rung_on_which_the_ladder_ended_is_named(server: StubServer, model: str, rung: str) -> None:
    found = probed(server, model)
    assert of(found, "schema").detail.startswith(rung)
    assert of(found, "schema").state == "fine"


@pytest.mark.parametrize(
    ("model", "kind", "advice"),
    [
        ("fault-401", "auth", "OPENAI_API_KEY"),
        ("fault-429-quota", "quota", "top up"),
        ("fault-404-model", "bad_request", "OPENAI_MODEL"),
        ("fault-500-always", "server", "doctor --probe"),
        ("fault-closed-always", "connection", "OPENAI_BASE_URL"),
    ],
)
def test_a_server_that_gives_no_answer_is_to_be_mended_and_the_advice_fits(
    server: StubServer, model: str, kind: str, advice: str
) -> None:
    found = probed(server, model)
    assert not found.healthy
    answer = of(found, "answer")
    assert (answer.state, answer.detail.startswith(f"[{kind}]")) == ("mend", True)
    assert advice in answer.next
    assert found.checks[-1] is answer, "nothing more is asked of it"


def test_an_address_on_which_nothing_listens_is_told_with_exit_code_1(
    environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    environment(OPENAI_BASE_URL=closed_url(), OPENAI_MODEL="m")
    assert main(["doctor", "--probe"]) == 1
    assert "MEND  answer: [connection]" in capsys.readouterr().out


def test_a_model_that_says_nothing_is_to_be_mended_and_one_that_talks_beside_the_point_is_noted(
    server: StubServer,
) -> None:
    assert of(probed(server, "fault-empty-always"), "schema").state == "mend"
    beside = of(probed(server, "fault-wrong-types-always"), "schema")
    assert beside.state == "note"
    assert "repairs" in beside.next


def test_usage_that_is_not_reported_images_that_are_not_seen_and_missing_embeddings_are_notes() -> None:
    blind = {"word": "ready", "number": 7, "left": "red", "right": "red"}
    with StubServer(answer=lambda body: json.dumps(blind)) as server:
        found = probed(server, "fault-no-usage+no-embeddings")
    assert found.healthy
    assert of(found, "usage").state == "note"
    assert "may not see" in of(found, "images").detail
    assert of(found, "embeddings").state == "note"
    assert "server" in of(found, "embeddings").detail


def test_the_offline_switch_stops_a_probe_and_says_how_to_unset_it(server: StubServer) -> None:
    before = server.hits
    found = probed(server, "m", LLM_OFFLINE="1")
    assert not found.healthy
    assert of(found, "offline switch").next == "unset LLM_OFFLINE"
    assert server.hits == before
    assert diagnose({"OPENAI_BASE_URL": server.url, "LLM_OFFLINE": "1"}).healthy


def test_a_setting_or_a_registry_that_means_nothing_is_to_be_mended(tmp_path: Path) -> None:
    assert of(diagnose({"LLM_MODE": "sometimes"}), "settings").state == "mend"
    (tmp_path / "models.yaml").write_text("models: {m: {privacy: secret}}\n")
    assert of(diagnose({}, models=tmp_path / "models.yaml"), "registry").state == "mend"


def test_the_users_registry_tells_cutoff_price_and_images(server: StubServer, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "models:\n  m:\n    knowledge_cutoff: 2023-12-31\n    price_per_million: [1, 2]\n    images: true\n"
    )
    env = {"OPENAI_BASE_URL": server.url, "OPENAI_MODEL": "m"}
    found = diagnose(env, models=tmp_path / "models.yaml", probe=True)
    known = of(found, "registry")
    assert known.state == "fine"
    assert known.detail == "knows until 2023-12-31; 1 and 2 USD for a million tokens in and out; local; sees images"
    assert of(found, "images") == Check("images", "fine", "taken and seen")


def test_recordings_are_looked_into(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    head = {"format": FORMAT, "model": "some-model", "data": "d", "made_by": "us", "note": "n"}
    whole.write_text(json.dumps(head) + "\n")
    torn.write_text("{\n")
    found = diagnose({}, recordings=[whole, torn])
    checks = [check for check in found.checks if check.topic == "recording"]
    assert [check.state for check in checks] == ["fine", "mend"]
    assert checks[0].detail == "whole.jsonl: 0 answers of some-model"


def test_no_key_is_in_anything_that_is_said(server: StubServer) -> None:
    def repeats(body: dict[str, Any]) -> str:
        return f"your key is {KEY}"

    with StubServer(answer=repeats) as leaky:
        for model in ("fault-401", "fault-answer-tells-the-key", "fault-finish-tells-the-key", "m"):
            found = probed(leaky, model, OPENAI_API_KEY=KEY)
            assert KEY not in json.dumps(found.to_dict())


def test_what_comes_with_mend_always_says_what_to_do_next(server: StubServer) -> None:
    for model in ("fault-401", "fault-503-always", "fault-422", "fault-empty-always"):
        assert all(check.next for check in probed(server, model).checks if check.state == "mend")
