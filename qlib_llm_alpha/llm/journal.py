"""The journal of a session: every request and its answer, in one SQLite file, on disk the moment an answer arrives.

A killed session that starts again finds here what was answered and asks only for the rest. Each :meth:`Journal.put` is
one transaction with ``synchronous=FULL``. Several threads and processes may use the same journal; of two answers to the
same request, the first is kept and both sides use it.

The messages of a request are kept, images only as hashes. The address and the key of the endpoint are not: only
whether it was on this machine (``local``) or not (``remote``).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from qlib_llm_alpha.errors import LLMError
from qlib_llm_alpha.llm.budget import Charge
from qlib_llm_alpha.llm.recording import Recorded, Recording
from qlib_llm_alpha.llm.reply_text import canonical_json, reply_of, reply_to_dict
from qlib_llm_alpha.llm.request import PromptStamp, Reply, Request, Usage

FORMAT: Final = 1
_APPLICATION: Final = 0x716C6C61  # "qlla", so that another program's database is not taken for a journal
_LOCK_WAIT_S: Final = 120.0
_EMBED: Final = "embed"
_TABLES: Final = """
CREATE TABLE replies (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    purpose TEXT NOT NULL,
    request TEXT NOT NULL,
    prompt TEXT NOT NULL,
    documents TEXT NOT NULL,
    as_of TEXT NOT NULL,
    private INTEGER NOT NULL,
    reply TEXT NOT NULL,
    asked INTEGER NOT NULL,
    asked_at TEXT NOT NULL,
    openai TEXT NOT NULL,
    endpoint TEXT NOT NULL
);
CREATE TABLE embeddings (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    text_sha256 TEXT NOT NULL,
    vector BLOB NOT NULL
);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE spending (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    outcome TEXT NOT NULL,
    usage TEXT NOT NULL,
    bound TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class JournalRow:
    """One request and its answer.

    Parameters
    ----------
    key, purpose : str
    request : Mapping
        What the key is the hash of: model, revision, messages, parameters, schema; an image is its SHA-256.
    prompt : PromptStamp or None
    documents : tuple of str
    as_of : str
    private : bool
        Text was in the messages that must not leave the machine.
    reply : Reply
    asked : bool
        A server was asked for it in this session; False: it came out of a recording.
    asked_at : str
        UTC time at which the answer was kept.
    openai : str
        Version of the ``openai`` package.
    endpoint : str
        ``local``, ``remote``, or empty where nothing was asked.
    """

    key: str
    purpose: str
    request: Mapping[str, Any] = field(repr=False)
    prompt: PromptStamp | None
    documents: tuple[str, ...]
    as_of: str
    private: bool
    reply: Reply = field(repr=False)
    asked: bool
    asked_at: str
    openai: str
    endpoint: str


@dataclass(frozen=True)
class Spending:
    """What was asked of one model.

    Parameters
    ----------
    calls : int
        That were answered, or charged without an answer.
    usage : Usage
        As the servers counted.
    bound : Usage
        The same, where a server did not count with the most that it can have been, as budgets reserve it.
    unmeasured : int
        Calls of which a count is not known.
    """

    calls: int
    usage: Usage
    bound: Usage
    unmeasured: int


class Journal:
    """The journal in one file; made where there is none.

    Parameters
    ----------
    path : path

    Raises
    ------
    LLMError
        The file is no journal, is damaged, or is of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._database = sqlite3.connect(
                self.path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self._told():
                self._open()
        except LLMError:
            self._database.close()
            raise

    def get(self, key: str) -> Reply | None:
        """Return the reply to the request with this key."""
        with self._lock, self._told():
            row = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            return None if row is None else reply_of(json.loads(row[0]))

    def put(self, request: Request, reply: Reply, *, asked: bool = True, endpoint: str = "") -> Reply:
        """Keep a reply; it is on disk when this returns.

        Parameters
        ----------
        request : Request
        reply : Reply
        asked : bool
            Whether a server was asked for it; a reply of a recording was not, and nothing was spent on it.
        endpoint : str
            ``local`` or ``remote``.

        Returns
        -------
        Reply
            What the journal holds for this request now: another process may have been first.
        """
        stamp = request.prompt
        row = (
            request.key,
            request.purpose,
            request.canonical,
            canonical_json(None if stamp is None else asdict(stamp)),
            canonical_json(request.documents),
            request.as_of,
            int(request.private),
            canonical_json(reply_to_dict(reply)),
            int(asked),
            datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            openai_version(),
            endpoint,
        )
        with self._transaction():
            self._database.execute(_PUT, row)
            if asked:
                self._spend(Charge.of(request, "answered", reply.usage))
            return self.get(request.key) or reply

    def spend(self, charge: Charge) -> None:
        """Keep what an attempt cost that ended without a reply to keep."""
        with self._transaction():
            self._spend(charge)

    def get_vector(self, model: str, text: str) -> list[float] | None:
        """Return the embedding of a text."""
        with self._lock, self._told():
            found = self._database.execute(
                "SELECT vector FROM embeddings WHERE key = ?", (embedding_key(model, text),)
            ).fetchone()
            return None if found is None else _unpacked(found[0])

    def put_vectors(self, model: str, vectors: Mapping[str, Sequence[float]]) -> None:
        """Keep embeddings, text to vector, in one transaction; the texts themselves are not kept."""
        rows = [
            (embedding_key(model, text), model, hashlib.sha256(_bytes(text)).hexdigest(), _packed(vector))
            for text, vector in vectors.items()
        ]
        with self._transaction():
            self._database.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?, ?)", rows)

    def fact(self, name: str) -> str | None:
        """Return what was noted under a name."""
        with self._lock, self._told():
            row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            return None if row is None else str(row[0])

    def note(self, name: str, value: str) -> str:
        """Keep a fact, unless there is one of this name already; return the one that is kept."""
        with self._transaction():
            self._database.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
            return self.fact(name) or value

    def reply_keys(self) -> list[str]:
        """Return the keys of all replies, in the order in which they were kept."""
        with self._lock, self._told():
            return [key for (key,) in self._database.execute("SELECT key FROM replies ORDER BY place")]

    def row(self, key: str) -> JournalRow | None:
        """Return the whole row of one request."""
        with self._lock, self._told():
            found = self._database.execute(_GET, (key,)).fetchone()
            return None if found is None else _row(found)

    def rows(self) -> Iterator[JournalRow]:
        """Give all requests with their replies, in the order in which they were kept."""
        for key in self.reply_keys():
            row = self.row(key)
            if row is not None:
                yield row

    def spent(self) -> dict[str, Spending]:
        """Return, for each model, what was asked of servers in all runs of this session.

        Replies of a recording cost nothing and are not in it.
        """
        found: dict[str, Spending] = {}
        with self._lock, self._told():
            rows = self._database.execute("SELECT model, usage, bound FROM spending ORDER BY place").fetchall()
            for model, usage_text, bound_text in rows:
                before = found.get(model, Spending(0, Usage(), Usage(), 0))
                usage, bound = Usage(**json.loads(usage_text)), Usage(**json.loads(bound_text))
                found[model] = Spending(
                    before.calls + 1,
                    before.usage + usage,
                    before.bound + bound,
                    before.unmeasured + (usage.prompt is None or usage.answer is None),
                )
        return found

    def recorded(self, keys: Collection[str]) -> Iterator[Recorded]:
        """Give the answers with these keys, as a recording holds them."""
        for key in sorted(keys):
            row = self.row(key)
            if row is not None:
                yield Recorded(key, row.purpose, row.prompt, row.reply, private=row.private)
                continue
            with self._lock, self._told():
                found = self._database.execute("SELECT model, vector FROM embeddings WHERE key = ?", (key,)).fetchone()
            if found is not None:
                yield Recorded(key, _EMBED, model=found[0], vector=tuple(_unpacked(found[1])))

    def export(self, path: str | Path, *, header: Mapping[str, str], keys: Collection[str] | None = None) -> None:
        """Write a recording, of all replies or those with the keys; as :meth:`Recording.write`."""
        Recording.write(path, self, self.reply_keys() if keys is None else keys, header)

    def close(self) -> None:
        """Close the file; the journal is not to be used afterwards."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        # With a log beside it, a commit is one wait for the disk instead of several.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            (marked,) = self._database.execute("PRAGMA application_id").fetchone()
            (known,) = self._database.execute("PRAGMA user_version").fetchone()
            (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables and not marked:
                for statement in _TABLES.split(";\n"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._database.execute(f"PRAGMA user_version = {FORMAT}")
            elif marked != _APPLICATION:
                raise LLMError(
                    f"{self.path.name!r} is another program's database; expected a journal; name another session folder"
                )
            elif known != FORMAT:
                raise LLMError(
                    f"journal {self.path.name!r} has format {known}; expected {FORMAT}; open it with the release that "
                    "wrote it, or start a new session"
                )
        state = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if state != "ok":
            raise sqlite3.DatabaseError(str(state))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._told():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                # A full disk has rolled it back already.
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what SQLite says into an error that says what to do."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            raise LLMError(
                f"journal {self.path.name!r} cannot be used ({error}); expected an open file that can be read and "
                "written, on a disk with room, that no other process keeps for long; mend that and resume"
            ) from error
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise LLMError(
                f"journal {self.path.name!r} is damaged ({str(error)[:120]}); expected the file as this package left "
                "it; restore it and the files beside it from a copy, or move it away and resume: what it held is then "
                "asked again"
            ) from error

    def _spend(self, charge: Charge) -> None:
        counted, most = (canonical_json(asdict(one)) for one in (charge.usage, charge.bound))
        self._database.execute(
            "INSERT INTO spending (key, model, outcome, usage, bound) VALUES (?, ?, ?, ?, ?)",
            (charge.key, charge.model, charge.outcome, counted, most),
        )


def embedding_key(model: str, text: str) -> str:
    """Return the key of a text's embedding: the SHA-256 of model and text."""
    return hashlib.sha256(canonical_json({"embedding": model, "text": text}).encode("ascii")).hexdigest()


@cache
def openai_version() -> str:
    """Return the version of the ``openai`` package without importing it, or an empty text where it is not installed."""
    try:
        return version("openai")
    except PackageNotFoundError:
        return ""


_PUT: Final = """
INSERT OR IGNORE INTO replies
    (key, purpose, request, prompt, documents, as_of, private, reply, asked, asked_at, openai, endpoint)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_GET: Final = """
SELECT key, purpose, request, prompt, documents, as_of, private, reply, asked, asked_at, openai, endpoint
FROM replies WHERE key = ?
"""


def _row(found: Sequence[Any]) -> JournalRow:
    key, purpose, request, prompt, documents, as_of, private, reply, asked, asked_at, openai, endpoint = found
    stamp = json.loads(prompt)
    return JournalRow(
        key=key,
        purpose=purpose,
        request=json.loads(request),
        prompt=None if stamp is None else PromptStamp(**stamp),
        documents=tuple(json.loads(documents)),
        as_of=as_of,
        private=bool(private),
        reply=reply_of(json.loads(reply)),
        asked=bool(asked),
        asked_at=asked_at,
        openai=openai,
        endpoint=endpoint,
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _packed(vector: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(vector)}d", *vector)


def _unpacked(content: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(content) // 8}d", content))
