"""What a person, a model and a program said to each other, in a file from which a chat goes on or is replayed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from qlib_llm_alpha.errors import ConfigError, ReplayError
from qlib_llm_alpha.mining.drafts import one_line
from qlib_llm_alpha.mining.session import write_whole

__all__ = ["Port", "Transcript"]

_LOG = logging.getLogger(__name__)

_LONGEST: Final = 2000
_FORMAT: Final = 1


class Port(Protocol):
    """Where the person is."""

    def ask(self, text: str) -> str:
        """Show a question and return what the person answers, which may be empty."""
        ...

    def say(self, text: str) -> None:
        """Show a text."""
        ...


class Transcript:
    """What was said, in a JSON file.

    Parameters
    ----------
    path : Path
        Read where it is there: the chat then goes on from its end. Written after each turn of the person or the model.
    model, data : str
        The model's name and the fingerprint of what is searched; a file of others is refused.
    source : Path, optional
        Read where ``path`` is not there yet: the transcript of a session that is replayed.

    Raises
    ------
    ConfigError
        The file is no transcript, or one of another model or other data.
    """

    def __init__(self, path: Path, *, model: str, data: str, source: Path | None = None) -> None:
        self.path = path
        self._head = {"format": _FORMAT, "model": model, "data": data}
        self._before = _read_entries(path if source is None or path.exists() else source, self._head)
        self.entries: list[dict[str, Any]] = []

    @property
    def replaying(self) -> bool:
        """Whether what comes next was said before."""
        return len(self.entries) < len(self._before)

    def say(self, port: Port, text: str) -> None:
        """Show a text of the program."""
        self._enter({"by": "program", "text": text})
        port.say(text)

    def ask(self, port: Port, text: str) -> str:
        """Return what the person answers, or answered before."""
        self._enter({"by": "program", "text": text})
        if self.replaying and self._before[len(self.entries)]["by"] == "person":
            reply = str(self._before[len(self.entries)]["text"])
            port.say(f"{text}\n> {reply}")
        else:
            reply = one_line(port.ask(text), _LONGEST)
        self._enter({"by": "person", "text": reply})
        self.write()
        return reply

    def note(self, step: str, answer: Mapping[str, Any] | None, *, calls: Sequence[str], problem: str) -> None:
        """Keep what the model answered, or why it did not."""
        self._enter({"by": "model", "step": step, "calls": list(calls), "answer": answer, "problem": problem})
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all; what was said before stays until it was said again."""
        if self.replaying:
            return
        text = json.dumps({**self._head, "entries": self.entries}, indent=1, ensure_ascii=True) + "\n"
        write_whole(self.path, text)

    def _enter(self, entry: dict[str, Any]) -> None:
        if self.replaying and self._before[len(self.entries)] != entry:
            raise ReplayError(
                f"turn {len(self.entries) + 1} of the transcript {self.path.name!r} is "
                f"{json.dumps(self._before[len(self.entries)]):.200}, and now came {json.dumps(entry):.200}; expected "
                "the same from the same data, model and answers; begin a new chat"
            )
        self.entries.append(entry)


def _read_entries(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        stored = json.loads(path.read_text(encoding="ascii"))
        entries = stored["entries"]
        found = {name: stored[name] for name in head}
        by = [entry["by"] for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path.name!r} is no transcript of a chat ({error}); expected one; name another") from error
    if found != head:
        raise ConfigError(
            f"the transcript {path.name!r} is of {found}; expected {head}; go on with that model and data, or begin a "
            "new chat"
        )
    _LOG.info("a chat of %d turns goes on", len(by))
    return list(entries)
