"""What can go wrong between us and a server, each as one value: no exception of another library passes here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Final

from pydantic import ValidationError

from qlib_llm_alpha.llm.failures import KINDS
from qlib_llm_alpha.llm.request import Usage
from qlib_llm_alpha.llm.settings import Secret, redact

_SHOWN: Final = 300  # characters of a server's words in a message
_READ: Final = 20_000  # characters of a server's words that are looked at
_OUT_OF_MONEY: Final = re.compile(r"insufficient[_ ](quota|balance|credit|fund)|arrearage|billing_hard_limit", re.I)
_FILTER_CODES: Final = re.compile(r"content_filter|content_policy_violation|data_inspection_failed", re.I)
_NETWORK_LIBRARIES: Final = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "anyio", "h11", "h2"})
# By name, since the two majors of the SDK stand on two libraries that name their errors alike.
_NEVER_SENT: Final = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})


class BodyTooLong(Exception):
    """A server sends more than any answer can be; read no further."""


@dataclass(frozen=True)
class Fault:
    """One attempt that brought no answer.

    Parameters
    ----------
    kind : str
        Of ``failures.KINDS``.
    detail : str
        For people, without secrets.
    status : int, optional
        Of HTTP; None when there was no answer at all.
    said : str
        The server's words, without secrets, for deciding what to change in the request.
    wait_s : float, optional
        Seconds that the server asks us to wait.
    usage : Usage, optional
        When the server counted tokens although its reply is useless.
    free : bool
        It cannot have cost anything: the request never left, or the server refused it.
    again : bool
        The same request may work when it is sent again now.
    """

    kind: str
    detail: str
    status: int | None = None
    said: str = ""
    wait_s: float | None = None
    usage: Usage | None = None
    free: bool = False
    again: bool = False


def fault(kind: str, detail: str, usage: Usage | None = None) -> Fault:
    """Return a fault that may have cost tokens and is tried again where its kind says so."""
    return Fault(kind, detail, usage=usage, again=KINDS[kind].retryable)


def fault_of(error: Exception, secrets: Iterable[Secret]) -> Fault:
    """Return what an exception of the SDK, or of a library below it, means."""
    import openai

    if isinstance(error, openai.APIStatusError):
        response = error.response
        return _refused(error.status_code, redact(response.text, secrets)[:_READ], response.headers)
    causes = tuple(_chain(error))
    for cause in causes:
        if isinstance(cause, BodyTooLong):
            return Fault("malformed_reply", str(cause))
    for cause in causes:
        # The SDK stumbles over the body of an error when that lies about its encoding; the status still counts.
        refusal = getattr(cause, "response", None)
        if type(cause).__name__ == "HTTPStatusError" and refusal is not None:
            return _refused(refusal.status_code, "", refusal.headers)
    names = {type(cause).__name__ for cause in causes}
    words = _plain(redact("; ".join(dict.fromkeys(f"{type(one).__name__}: {one}" for one in causes)), secrets))[:_SHOWN]
    free = bool(names & _NEVER_SENT)
    if "certificate" in words.lower():
        hint = "if this machine lacks the certificates of authorities, set SSL_CERT_FILE to a file that holds them"
        return Fault("connection", f"the server's certificate is not trusted ({words}); {hint}", free=True)
    if names & {"DecodingError"} or any(isinstance(one, json.JSONDecodeError | ValidationError) for one in causes):
        return fault("malformed_reply", f"the reply cannot be decoded ({words})")
    if isinstance(error, openai.APITimeoutError):
        return Fault("timeout", f"no answer in time ({words})", free=free, again=True)
    if isinstance(error, openai.APIConnectionError | OSError) or _library(error) in _NETWORK_LIBRARIES:
        return Fault("connection", f"the server was not reached or hung up ({words})", free=free, again=True)
    return Fault("bad_request", f"the request could not be made ({words})", free=True)


def _refused(status: int, said: str, headers: Mapping[str, str]) -> Fault:
    brief = f"HTTP {status}: {_message(said)}"
    if 300 <= status < 400:
        to = "an address that is not followed, so that no text goes where you did not send it"
        return Fault("connection", f"{brief}; the server points to {to}; set OPENAI_BASE_URL", status, said, free=True)
    kind, hint = _kind_of_status(status, said)
    again = KINDS[kind].retryable
    wait = _retry_after(headers) if again else None
    # What ran into a limit of time was worked on, and some providers bill that.
    return Fault(kind, brief + hint, status, said, wait, free=kind != "timeout", again=again)


def _kind_of_status(status: int, said: str) -> tuple[str, str]:
    if status == 402 or _OUT_OF_MONEY.search(said):
        return "quota", "; the account has no credit left: top it up or use another key"
    if _FILTER_CODES.search(said) and status in (400, 422):
        return "filtered", ""
    if status in (401, 403):
        return "auth", "; set OPENAI_API_KEY to a key that may use this model"
    if status == 404:
        return "bad_request", "; check OPENAI_BASE_URL (with its /v1) and the model's name"
    if status == 429:
        return "rate_limit", ""
    if status == 408:
        return "timeout", ""
    return ("server", "") if status >= 500 or status in (409, 425) else ("bad_request", "")


def _message(said: str) -> str:
    """Return the message of an error in OpenAI's form, or the beginning of what was said."""
    try:
        content = json.loads(said)
    except (ValueError, RecursionError):
        content = None
    inner = content.get("error", content) if isinstance(content, dict) else None
    message = inner.get("message") if isinstance(inner, dict) else None
    return _plain(message if isinstance(message, str) else said)[:_SHOWN] or "no words"


def _plain(text: str) -> str:
    """Return a text in one line without what a terminal or a log might take for a command."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, from a number or a date; None when it does not say so."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _library(error: BaseException) -> str:
    return type(error).__module__.split(".")[0]
