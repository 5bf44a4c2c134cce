"""Where the model is and what opens it; the one place of this package that reads the environment for it."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args
from urllib.parse import quote, urlsplit

from qlib_llm_alpha.errors import ConfigError

Mode = Literal["live", "record", "replay", ""]

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
DEFAULT_MODEL: Final = "gpt-4o-mini"
HIDDEN: Final = "[key hidden]"

_YES: Final = ("1", "true", "yes", "on")
_NO: Final = ("", "0", "false", "no", "off")
# Shorter ones are words such as "none" that people give to local servers; hiding them would garble every message.
_SHORTEST_KEY: Final = 8
_LIKE_A_KEY: Final = re.compile(r"\b(?:sk|pk|rk|ak)-[\w*.\-]{6,}|(?<=[Bb]earer )[^\s'\"]+|(?<=://)[^\s/@'\"]+@")


class Secret:
    """A key that shows itself only to :meth:`reveal`: not in a repr, a format, a copy of fields or a pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the key itself, for the client of the server and for nothing else."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(hidden)" if self._value else "Secret(none)"

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key is never written or sent to another process; read the environment there")


@dataclass(frozen=True)
class LLMSettings:
    """How to reach a model.

    Parameters
    ----------
    base_url : str
        Of an OpenAI-compatible server, with its ``/v1``.
    model : str
        The model's name at that server.
    key : Secret
        Empty when there is none.
    mode : str
        ``live``, ``record``, ``replay``, or empty when the environment does not say.
    offline : bool
        No real call may start.

    Raises
    ------
    ConfigError
        The address is no http address or holds a password or a query, or the key holds what no header may hold.
    """

    base_url: str = DEFAULT_BASE_URL
    model: str = DEFAULT_MODEL
    key: Secret = field(default_factory=Secret)
    mode: Mode = ""
    offline: bool = False

    def __post_init__(self) -> None:
        _check_address(self.base_url)
        if not all("!" <= letter <= "~" for letter in self.key.reveal()):
            raise ConfigError(
                "the key of the language model holds a space, a line break or a letter outside ASCII (it is not "
                "shown); expected the key alone; set OPENAI_API_KEY again"
            )

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> LLMSettings:
        """Read ``OPENAI_API_KEY``, ``OPENAI_BASE_URL``, ``OPENAI_MODEL``, ``LLM_MODE`` and ``LLM_OFFLINE``.

        Each may be missing or empty: no key, OpenAI's own address, ``gpt-4o-mini``, no mode, not offline. White space
        around a value is cut off.

        Raises
        ------
        ConfigError
            A value cannot mean anything.
        """
        found = {name: env.get(name, "").strip() for name in _NAMES}
        return cls(
            base_url=found["OPENAI_BASE_URL"] or DEFAULT_BASE_URL,
            model=found["OPENAI_MODEL"] or DEFAULT_MODEL,
            key=Secret(found["OPENAI_API_KEY"]),
            mode=_mode(found["LLM_MODE"].lower()),
            offline=_switch("LLM_OFFLINE", found["LLM_OFFLINE"].lower()),
        )

    @property
    def has_key(self) -> bool:
        """Whether a key is set."""
        return bool(self.key)

    @property
    def is_local(self) -> bool:
        """Whether the address is one of this machine."""
        return is_loopback(self.base_url)


def is_loopback(base_url: str) -> bool:
    """Return whether an address is ``localhost`` or a loopback number; False for anything that cannot be read."""
    try:
        host = urlsplit(base_url).hostname or ""
    except ValueError:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def redact(text: str, secrets: Iterable[Secret], *, lookalikes: bool = True) -> str:
    """Return a text without the secrets, and without whatever looks like a key, a bearer token or a URL's password.

    Servers repeat the key in their messages, whole or with stars in the middle; nothing of that may reach a message, a
    log or a file. What a model wrote is cleaned without ``lookalikes``, so that it stays as it is otherwise.
    """
    for secret in secrets:
        value = secret.reveal()
        if len(value) >= _SHORTEST_KEY:
            for form in (value, quote(value, safe="")):
                text = text.replace(form, HIDDEN)
    return _LIKE_A_KEY.sub(HIDDEN, text) if lookalikes else text


_NAMES: Final = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "LLM_MODE", "LLM_OFFLINE")


def _mode(text: str) -> Mode:
    if text not in get_args(Mode):
        raise ConfigError(f"LLM_MODE is {text!r}; expected live, record or replay; set one of them or unset it")
    return cast(Mode, text)


def _switch(name: str, text: str) -> bool:
    if text not in _YES + _NO:
        raise ConfigError(f"{name} is {text!r}; expected 1 or 0; set one of them or unset it")
    return text in _YES


def _check_address(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not all("!" <= letter <= "~" for letter in base_url):
        raise ConfigError(
            f"the address of the language model is {redact(base_url, ())!r}; expected one such as {DEFAULT_BASE_URL}; "
            "set OPENAI_BASE_URL"
        )
    if "@" in parts.netloc:
        raise ConfigError(
            "the address of the language model holds a user or a password (it is not shown); expected an address "
            "alone; set OPENAI_BASE_URL without it and the key as OPENAI_API_KEY"
        )
    if "?" in base_url or "#" in base_url:
        raise ConfigError(
            f"the address of the language model goes on after its path (it is not shown: {parts.netloc!r} may want a "
            "key there); expected an address that ends with its path, such as /v1; set OPENAI_BASE_URL without what "
            "follows ? or # and the key as OPENAI_API_KEY"
        )
