"""Other people's words on a terminal, where part of them might be taken for a command."""

from __future__ import annotations


def shown(text: str) -> str:
    """Return a text with everything that does not print, line breaks apart, as its escape."""
    return "".join(sign if sign.isprintable() or sign == "\n" else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape", "backslashreplace").decode("ascii")
