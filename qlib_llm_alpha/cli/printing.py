"""Other people's words on a terminal: models, servers, documents and files write what a terminal may take for a command."""

from __future__ import annotations


def shown(text: str) -> str:
    """Return a text with everything that does not print, line breaks apart, as its escape."""
    return "".join(
        sign
        if sign.isprintable() or sign == "\n"
        else sign.encode("unicode_escape", "backslashreplace").decode("ascii")
        for sign in text
    )
