"""Prompts are Markdown files with a version and strict placeholders."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from qlib_llm_alpha.errors import PromptError
from qlib_llm_alpha.llm.request import Message, PromptStamp, Role

_PLACE: Final = re.compile(r"\{\{ *([a-z_]+) *\}\}")
_HEAD: Final = re.compile(r"\A---\nversion: *(\S+)\n---\n")
_TURN: Final = re.compile(r"^# (system|user)\n", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A prompt file that was read.

    The file starts with ``---``, ``version: 1``, ``---``; then ``# system`` and ``# user``, each with its text, in
    which ``{{name}}`` is replaced by a value. A value is put in as it is and never looked at for placeholders.

    Parameters
    ----------
    stamp : PromptStamp
    turns : tuple of (role, text)
    """

    stamp: PromptStamp
    turns: tuple[tuple[Role, str], ...]

    @classmethod
    def read(cls, path: Path) -> Prompt:
        """Read a prompt file, once for each path; PromptError says what a file lacks."""
        return _read(path)

    @property
    def places(self) -> frozenset[str]:
        """Names of the placeholders."""
        return frozenset(name for _, text in self.turns for name in _PLACE.findall(text))

    def messages(self, values: dict[str, str], images: tuple[bytes, ...] = ()) -> tuple[Message, ...]:
        """Fill in the placeholders; images follow the text of the last turn.

        Raises
        ------
        PromptError
            A placeholder without a value, or a value without a placeholder.
        """
        missing, surplus = sorted(self.places - set(values)), sorted(set(values) - self.places)
        if missing or surplus:
            raise PromptError(
                f"prompt {self.stamp.name} lacks {missing} and was given {surplus} that it does not use; expected "
                f"exactly {sorted(self.places)}; mend the prompt or its caller"
            )
        last = len(self.turns) - 1
        return tuple(
            Message(role, _PLACE.sub(lambda place: values[place.group(1)], text), images if number == last else ())
            for number, (role, text) in enumerate(self.turns)
        )


@cache
def _read(path: Path) -> Prompt:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"prompt {path.name!r} cannot be read ({error}); expected a Markdown file; restore it"
        ) from error
    head = _HEAD.match(text)
    parts = _TURN.split(text[head.end() :]) if head else []
    if head is None or len(parts) < 3 or parts[0].strip():
        raise PromptError(
            f"prompt {path.name!r} begins {text[:40]!r}; expected '---', 'version: N', '---', then '# system' and "
            "'# user' with their texts; mend the file"
        )
    turns: list[tuple[Role, str]] = []
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        turns.append(("system" if name == "system" else "user", body.strip()))
    return Prompt(PromptStamp(path.stem, head.group(1), hashlib.sha256(raw).hexdigest()), tuple(turns))
