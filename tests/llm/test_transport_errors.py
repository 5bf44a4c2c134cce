from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.llm.failures import ANSWERED, KINDS, RETRYABLE, failure
from qlib_llm_alpha.llm.settings import Secret
from qlib_llm_alpha.llm.transport_errors import Fault, fault_of

KEY = "sk-planted-0123456789"


def refused(status: int, said: str = "no", **headers: str) -> Fault:
    """Return what the SDK's error for an HTTP status means; its response is a plain stand-in."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = SimpleNamespace(status_code=status, text=said, headers=named, request=None)
    return fault_of(openai.APIStatusError("m", response=cast(Any, response), body=None), [Secret(KEY)])


def unreached(kind: str, words: str = "", module: str = "httpx2") -> Fault:
    """Return what a connection error means that a class of this name caused."""
    cause = type(kind, (Exception,), {"__module__": module})(words)
    error = openai.APIConnectionError(request=cast(Any, None))
    error.__cause__ = cause
    return fault_of(error, [Secret(KEY)])


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (400, "too long", "bad_request"),
        (401, "wrong key", "auth"),
        (402, "Insufficient Balance", "quota"),
        (403, "not here", "auth"),
        (404, "no such model", "bad_request"),
        (408, "late", "timeout"),
        (409, "busy", "server"),
        (413, "too large", "bad_request"),
        (418, "teapot", "bad_request"),
        (422, "field required", "bad_request"),
        (429, "slow down", "rate_limit"),
        (429, '{"error": {"code": "insufficient_quota"}}', "quota"),
        (400, '{"code": "Arrearage"}', "quota"),
        (400, '{"error": {"code": "content_filter"}}', "filtered"),
        (400, '{"code": "data_inspection_failed"}', "filtered"),
        (500, "internal", "server"),
        (503, "overloaded", "server"),
        (529, "overloaded", "server"),
    ],
)
def test_each_status_has_its_kind(status: int, said: str, kind: str) -> None:
    found = refused(status, said)
    assert (found.kind, found.status, found.free) == (kind, status, kind != "timeout")
    assert found.again == (kind in RETRYABLE)


def test_a_server_that_points_elsewhere_is_not_followed() -> None:
    found = refused(307, "", location="https://models.example")
    assert (found.kind, found.again) == ("connection", False)
    assert "OPENAI_BASE_URL" in found.detail


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.25"}, 0.25),
        ({"retry_after": "-3"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "inf"}, float("inf")),
        ({"retry_after": ""}, None),
        ({"retry_after_ms": "250", "retry_after": "9"}, 0.25),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry_after": "Wed, 99 Foo 2015"}, None),
    ],
)
def test_the_wait_that_a_server_asks_for_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert refused(429, **headers).wait_s == seconds


def test_a_wait_until_a_date_is_counted_from_now() -> None:
    until = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
    wait = refused(503, retry_after=until).wait_s
    assert wait is not None
    assert 90 < wait <= 100


def test_the_message_of_a_server_is_shown_and_its_page_is_cut() -> None:
    said = json.dumps({"error": {"message": "no\n such   model", "type": "x"}})
    assert "HTTP 404: no such model; check OPENAI_BASE_URL" in refused(404, said).detail
    page = refused(502, "<html>" + "x" * 10_000).detail
    assert page.startswith("HTTP 502: <html>xxx")
    assert len(page) < 400
    assert "no words" in refused(500, "").detail


def test_what_a_terminal_would_obey_is_not_in_a_fault() -> None:
    said = "\x1b]0;owned\x07\x1b[31mno\x00 such\u202e model"
    for found in (refused(400, json.dumps({"error": {"message": said}})), refused(400, said), unreached("X", said)):
        assert found.detail.isprintable()
    assert "HTTP 400: ]0;owned [31mno such model" in refused(400, said).detail


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}",
        json.dumps({"error": {"message": f"key {KEY}"}}),
        "Incorrect API key provided: sk-plant**********6789",
        f"Authorization: Bearer {KEY}",
        "x" * 290 + f" {KEY} is wrong",
    ],
)
def test_no_key_is_in_a_fault(said: str) -> None:
    assert "plant" not in repr(refused(401, said))
    assert "plant" not in repr(unreached("ReadError", said))


@pytest.mark.parametrize(
    ("cause", "kind", "free"),
    [
        ("ConnectError", "connection", True),
        ("ReadError", "connection", False),
        ("RemoteProtocolError", "connection", False),
        ("DecodingError", "malformed_reply", False),
    ],
)
def test_what_never_left_cost_nothing(cause: str, kind: str, free: bool) -> None:
    found = unreached(cause)
    assert (found.kind, found.free, found.again) == (kind, free, True)


def test_a_timeout_may_have_cost_tokens() -> None:
    late = openai.APITimeoutError(request=cast(Any, None))
    assert (fault_of(late, []).kind, fault_of(late, []).free) == ("timeout", False)
    late.__cause__ = type("ConnectTimeout", (Exception,), {})()
    assert fault_of(late, []).free


def test_a_certificate_that_is_not_trusted_says_what_to_set() -> None:
    found = unreached("ConnectError", "[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate")
    assert (found.kind, found.again, found.free) == ("connection", False, True)
    assert "SSL_CERT_FILE" in found.detail


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (json.JSONDecodeError("Expecting value", "x", 0), "malformed_reply"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"), "bad_request"),
        (TypeError("not serialisable"), "bad_request"),
        (ImportError("socksio"), "bad_request"),
        (FileNotFoundError("no such certificate file"), "connection"),
        (type("ClosedResourceError", (Exception,), {"__module__": "anyio"})(), "connection"),
        (type("InvalidURL", (Exception,), {"__module__": "httpx2._exceptions"})("bad"), "connection"),
    ],
)
def test_an_exception_of_any_library_is_one_fault(error: Exception, kind: str) -> None:
    assert fault_of(error, []).kind == kind


@given(st.integers(400, 599), st.text(), st.text(alphabet=st.characters(max_codepoint=255)))
def test_any_words_of_a_server_are_a_fault_of_a_known_kind(status: int, said: str, wait: str) -> None:
    found = refused(status, said, retry_after=wait)
    assert found.kind in KINDS


def test_kinds_say_what_can_be_tried_again_and_what_a_journal_holds() -> None:
    assert {"refusal", "filtered", "truncated", "blank", "invalid"} == ANSWERED
    assert not ANSWERED & RETRYABLE
    assert not {"auth", "quota", "bad_request", "model_changed"} & RETRYABLE
    assert failure("timeout", "late").retryable
    assert not failure("auth", "no").retryable
    with pytest.raises(KeyError):
        failure("odd", "no")
