"""A recording: the answers that a session used, in one text file, so that the session can be run again without asking.

The first line is a header, each other line one answer: its key, what it was for, which prompt it was made from, and
the reply; for an embedding, the model and the vector. Lines are sorted by key and hold no time, so that the same
answers give the same bytes. No text of a request is in it; what a model wrote may of course quote one.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from qlib_llm_alpha.errors import LLMError
from qlib_llm_alpha.llm.reply_text import canonical_json, reply_of, reply_to_dict
from qlib_llm_alpha.llm.request import PromptStamp, Reply

FORMAT: Final = "qlib_llm_alpha recording 1"

HEADER: Final = ("model", "data", "made_by", "note")
"""What a header says beside its format: the model asked, the fingerprint of the search data, by whom, and why."""

_KEY: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Recorded:
    """One answer: its key, purpose, the prompt it was made from, and either a reply or a vector.

    ``private`` tells the writer of a recording that the question held private text; the line itself does not say it.
    """

    key: str
    purpose: str
    prompt: PromptStamp | None = None
    reply: Reply | None = None
    model: str = ""
    vector: tuple[float, ...] = ()
    private: bool = False

    def line(self) -> str:
        """Return the answer as a line of a recording, without its end."""
        content: dict[str, Any] = {"key": self.key, "purpose": self.purpose}
        if self.reply is None:
            content |= {"model": self.model, "vector": list(self.vector)}
        else:
            stamp = self.prompt
            content["prompt"] = None if stamp is None else [stamp.name, stamp.version, stamp.sha256]
            content["reply"] = reply_to_dict(self.reply, passing=False)
        return canonical_json(content)


class AnswerSource(Protocol):
    """Where answers are recorded from; a journal is one."""

    def recorded(self, keys: Collection[str]) -> Iterator[Recorded]:
        """Give the answers with these keys."""


@dataclass(frozen=True)
class Recording:
    """A recording that was read.

    Parameters
    ----------
    path : Path
    header : Mapping of str to str
        :data:`HEADER`, and whatever else its writer put there.
    answers : Mapping
        Key to answer.
    """

    path: Path
    header: Mapping[str, str]
    answers: Mapping[str, Recorded] = field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read a recording.

        Raises
        ------
        LLMError
            The file is missing, is none, or a line of it is damaged or stands twice.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise LLMError(
                f"recording {path.name!r}: {error.strerror}; expected a file that `mine --mode record` wrote; name one"
            ) from error
        except UnicodeDecodeError as error:
            raise LLMError(f"recording {path.name!r}: {error}; expected UTF-8; restore the file") from error
        header = _header(path, lines[0])
        answers: dict[str, Recorded] = {}
        for number, line in enumerate(lines[1:], start=2):
            if not line.strip():
                continue
            answer = _recorded(path, number, line)
            if answer.key in answers:
                _refuse(path, number, f"holds the key {answer.key[:12]} a second time")
            answers[answer.key] = answer
        return cls(path, header, answers)

    @staticmethod
    def write(path: str | Path, journal: AnswerSource, keys: Collection[str], header: Mapping[str, str]) -> None:
        """Write a recording of the answers with these keys, in place of what is there.

        Parameters
        ----------
        path : path
        journal : AnswerSource
        keys : collection of str
            What the session used; keys of replies and of embeddings.
        header : Mapping of str to str
            :data:`HEADER` at least.

        Raises
        ------
        LLMError
            The header lacks an entry, or the journal lacks an answer.
        """
        lacking = [name for name in HEADER if name not in header]
        if lacking or not all(isinstance(value, str) for value in header.values()):
            raise LLMError(f"header {sorted(header)} of a recording: expected texts for {list(HEADER)}; name them")
        found = {answer.key: answer for answer in journal.recorded(set(keys))}
        missing = sorted(set(keys) - set(found))
        if missing:
            raise LLMError(
                f"{len(missing)} of {len(set(keys))} answers to be recorded are not in the journal, the first is "
                f"{missing[0][:12]}; expected the journal of the session that used them; name that one"
            )
        private = sum(answer.private for answer in found.values())
        warning = {"private": f"{private} answers to private text, which they may quote"} if private else {}
        head = canonical_json({**header, **warning, "format": FORMAT})
        path = Path(path)
        draft = path.with_name(f"{path.name}.new")
        lines = [head, *(found[key].line() for key in sorted(found))]
        draft.write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")
        draft.replace(path)

    def get(self, key: str) -> Reply | None:
        """Return the reply to the request with this key."""
        answer = self.answers.get(key)
        return None if answer is None else answer.reply

    def vector(self, key: str) -> list[float] | None:
        """Return the embedding with this key."""
        answer = self.answers.get(key)
        return None if answer is None or answer.reply is not None else list(answer.vector)

    @property
    def summary(self) -> str:
        """How many answers it holds for each purpose and prompt, for messages."""
        counts = Counter(
            answer.purpose if answer.prompt is None else f"{answer.purpose} (prompt {described(answer.prompt)})"
            for answer in self.answers.values()
        )
        told = [f"{count} for {what}" for what, count in sorted(counts.items())]
        return ", ".join(told[:12]) + (f" and {len(told) - 12} more" if len(told) > 12 else "") or "nothing"


def described(stamp: PromptStamp) -> str:
    """Return a prompt's name, version and the first digits of its hash."""
    return f"{stamp.name} version {stamp.version}, {stamp.sha256[:8]}"


def _header(path: Path, line: str) -> dict[str, str]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        _refuse(path, 1, f"begins {line[:60]!r}; expected a header of format {FORMAT!r}")
    if not all(isinstance(header.get(name), str) for name in HEADER):
        _refuse(path, 1, f"has a header of {sorted(header)}; expected texts for {list(HEADER)}")
    return {name: str(value) for name, value in header.items()}


def _recorded(path: Path, number: int, line: str) -> Recorded:
    try:
        content = json.loads(line)
        key, purpose = str(content["key"]), str(content["purpose"])
        if "vector" in content:
            vector = tuple(float(value) for value in content["vector"])
            answer = Recorded(key, purpose, model=str(content["model"]), vector=vector)
        else:
            stamp = content.get("prompt")
            prompt = None if stamp is None else PromptStamp(*map(str, stamp))
            answer = Recorded(key, purpose, prompt, reply_of(content["reply"]))
    except (ValueError, TypeError, KeyError) as error:
        _refuse(path, number, f"is no answer ({type(error).__name__}: {str(error)[:80]})")
    if not _KEY.fullmatch(key) or not all(map(math.isfinite, answer.vector)):
        _refuse(path, number, "has a key or a vector that is none")
    return answer


def _refuse(path: Path, number: int, what: str) -> NoReturn:
    raise LLMError(f"recording {path.name!r}: line {number} {what}; restore the file, or record the session again")
