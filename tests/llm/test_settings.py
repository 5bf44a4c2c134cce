from __future__ import annotations

import copy
import pickle
from dataclasses import asdict
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.llm.settings import HIDDEN, LLMSettings, Secret, is_loopback, redact

KEY = "sk-planted-0123456789"
ENVIRONMENT = {
    "OPENAI_API_KEY": f" {KEY}\n",
    "OPENAI_BASE_URL": "http://localhost:11434/v1",
    "OPENAI_MODEL": "llama3.1:8b",
    "LLM_MODE": "Replay",
    "LLM_OFFLINE": "1",
}


def test_settings_come_from_the_environment_without_white_space() -> None:
    settings = LLMSettings.from_environment(ENVIRONMENT)
    assert settings.key.reveal() == KEY
    assert (settings.base_url, settings.model) == ("http://localhost:11434/v1", "llama3.1:8b")
    assert (settings.mode, settings.offline, settings.has_key, settings.is_local) == ("replay", True, True, True)


def test_an_empty_environment_means_openai_without_a_key() -> None:
    settings = LLMSettings.from_environment({"OPENAI_API_KEY": "", "LLM_OFFLINE": "0"})
    assert settings.base_url == "https://api.openai.com/v1"
    assert (settings.mode, settings.offline, settings.has_key, settings.is_local) == ("", False, False, False)
    assert settings.model


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLM_MODE", "cache"),
        ("LLM_OFFLINE", "perhaps"),
        ("OPENAI_BASE_URL", "api.openai.com/v1"),
        ("OPENAI_BASE_URL", "file:///etc/passwd"),
        ("OPENAI_BASE_URL", "http://[::1/v1"),
        ("OPENAI_BASE_URL", "http://localhost:99999/v1"),
        ("OPENAI_BASE_URL", "http:///v1"),
        ("OPENAI_BASE_URL", "http://höst/v1"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        LLMSettings.from_environment({**ENVIRONMENT, name: value})


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"{KEY} {KEY}", f"{KEY}ä"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as raised:
        LLMSettings.from_environment({**ENVIRONMENT, "OPENAI_API_KEY": key})
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("end", ["?api_key=planted", "?", "#planted"])
def test_a_query_in_the_address_is_refused_and_not_shown(end: str) -> None:
    with pytest.raises(ConfigError, match=r"'models\.example:8080'.*without what follows") as raised:
        LLMSettings(base_url=f"https://models.example:8080/v1{end}")
    assert "planted" not in str(raised.value)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="password") as raised:
        LLMSettings.from_environment({"OPENAI_BASE_URL": "https://someone:planted-word@models.example/v1"})
    assert "planted-word" not in str(raised.value)


def test_a_key_shows_itself_in_nothing_but_reveal() -> None:
    settings = LLMSettings.from_environment(ENVIRONMENT)
    shown = [
        repr(settings),
        str(settings),
        f"{settings.key}",
        f"{settings.key!r:>40}",
        repr(asdict(settings)),
        repr(copy.deepcopy(settings)),
        repr([settings.key]),
    ]
    assert not any(KEY in one for one in shown)
    with pytest.raises(TypeError, match="never written") as raised:
        pickle.dumps(settings)
    assert KEY not in str(raised.value)


def test_keys_are_equal_by_what_they_hold() -> None:
    assert Secret(KEY) == Secret(KEY) != Secret("other")
    assert len({Secret(KEY), Secret(KEY)}) == 1
    assert not Secret()


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1:1/v1", True),
        ("http://127.3.2.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://LOCALHOST/v1", True),
        ("http://10.0.0.5/v1", False),
        ("http://0.0.0.0/v1", False),
        ("http://localhost.models.example/v1", False),
        ("http://localhost@models.example/v1", False),
        ("http://127.0.0.1.models.example/v1", False),
        ("https://api.openai.com/v1", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_are_local(address: str, local: bool) -> None:
    assert is_loopback(address) is local


@given(st.text(), st.text(), st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=8))
def test_a_key_is_removed_from_any_text(before: str, after: str, key: str) -> None:
    assert redact(before + key + after, [Secret(key)]).replace(HIDDEN, "").count(key) == 0


def test_a_key_is_removed_in_the_form_that_addresses_hold_it() -> None:
    key = "planted+key/with=signs"
    assert redact(f"GET /v1?key={quote(key, safe='')}", [Secret(key)]) == f"GET /v1?key={HIDDEN}"


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-plant*************6789.",
        "Authorization: Bearer planted.token-of-someone",
        "proxy http://someone:planted-word@proxy.example failed",
    ],
)
def test_what_looks_like_a_key_of_anyone_is_removed_too(text: str) -> None:
    cleaned = redact(text, ())
    assert HIDDEN in cleaned
    assert "plant" not in cleaned


def test_words_that_are_no_keys_stay() -> None:
    text = "risk-adjusted, task-oriented, scikit-learn; none; mask-like"
    assert redact(text, [Secret("none")]) == text
    model_text = "an example key is sk-abcdefgh"
    assert redact(model_text, [Secret(KEY)], lookalikes=False) == model_text
