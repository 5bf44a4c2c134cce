"""An append-only log whose rows are chained by hashes; the trial ledger and the audit trail are made of it.

Three files lie beside each other: ``<name>``, one JSON object a line; ``<name>.head``, how many rows there are and the
hash of the last; ``<name>.lock``. The hash of a row covers the hash of the row before it, so a changed, moved or
missing row shows; the head shows that the end was cut. Whoever rewrites log and head together is found only by an
anchor: a :class:`Head` kept elsewhere, such as in an MLflow run, and given to :meth:`Chain.verify`.

An append writes the rows, waits until the disk has them (one fsync), and then replaces the head. A process that is
killed in between leaves rows that the head does not know; they are kept when they fit. One that is killed in the
middle of a row leaves a torn last line; the next append moves it to ``<name>.torn.<number>`` and says so in a row of
kind ``recovered``. Nothing else that is wrong is ever repaired: it is refused, with the row's number.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qlib_llm_alpha.errors import ChainError

NO_ROW = "0" * 64  # stands for the hash of the row before the first
RECOVERED = "recovered"
LOCK_WAIT_S = 300.0


@dataclass(frozen=True)
class Row:
    """One row: its number from 0, UTC time of writing, kind, content, hash of the row before it, and own hash."""

    number: int
    time: str
    kind: str
    body: Mapping[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True)
class Head:
    """How many rows a log has, and the hash of its last row; ``NO_ROW`` when it has none."""

    count: int
    hash: str


@dataclass(frozen=True)
class Fault:
    """Something wrong with a log: the number of the row, from 0, and a sentence."""

    row: int
    detail: str


class Chain:
    """An append-only log in one file, for many processes at once.

    Parameters
    ----------
    path : path
        The log. It and its folder are made by the first append.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._head_path = self.path.with_name(f"{self.path.name}.head")

    @property
    def files(self) -> tuple[Path, Path]:
        """The log and its head; each without the other is a fault."""
        return self.path, self._head_path

    def append(self, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Row]:
        """Add rows at the end: all of them, or none when an error is raised.

        Parameters
        ----------
        entries : sequence of (kind, body)
            The body holds JSON values; NaN is none of them, write None.

        Returns
        -------
        list of Row
            The rows of ``entries``, on disk when this returns. A kill in the middle of a call may keep its first rows.

        Raises
        ------
        ChainError
            The log is damaged, a body is no JSON, or the lock is not to be had.
        OSError
            The disk refuses; nothing was added.
        """
        texts = [(_checked_kind(kind), _body_text(kind, body)) for kind, body in entries]
        if not texts:
            return []
        with self.locked():
            self._begin()
            mark = self._end_of_log(move_torn_line=True)
            notes = self._recovery_note(mark)
            lines, after = _lines_after(mark, [*notes, *texts])
            self._write(mark, lines, after)
        return [_read(line) for line in lines[len(notes) :]]

    def rows(self, kind: str | None = None) -> Iterator[Row]:
        """Give the rows in order, all or those of a kind; ChainError at the first that is damaged or missing."""
        stated = self._stated_mark()
        count, before = 0, NO_ROW
        for _, line, within in self._lines(stated):
            row = _row_or_none(line)
            if row is None and not within and not line.endswith(b"\n"):
                break
            if row is None or row.number != count or row.previous != before:
                raise ChainError(self._damaged(count))
            count, before = row.number + 1, row.hash
            if count == stated.count and row.hash != stated.hash:
                raise ChainError(self._damaged(row.number))
            if kind is None or row.kind == kind:
                yield row
        if count < stated.count:
            raise ChainError(f"{self.path}: row {count} is missing; {_CUT.format(count=stated.count)}; {_RESTORE}")

    def head(self) -> Head:
        """Return the head, to keep elsewhere as an anchor."""
        mark = self._end_of_log()
        return Head(mark.count, mark.hash)

    def verify(self, anchor: Head | None = None) -> list[Fault]:
        """Read the whole log and name each row that was changed, moved or removed.

        Parameters
        ----------
        anchor : Head, optional
            A head of this log from an earlier time, kept where the log is not; the first digits of its hash will do.

        Returns
        -------
        list of Fault
            Sorted by row; empty when all is well.
        """
        try:
            stated = self._stated_mark()
        except ChainError as error:
            return [Fault(0, str(error))]
        found = _Reading()
        for start, line, within in self._lines(stated):
            if within or line.endswith(b"\n"):
                found.add(start, line)
        faults = found.faults(stated) + found.head_faults(stated)
        if anchor is not None:
            faults += found.anchor_faults(anchor)
        return sorted(set(faults), key=lambda fault: (fault.row, fault.detail))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other writers out, to read and then append; may be entered again by who is inside."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock", is_singleton=True)
        try:
            lock.acquire(timeout=LOCK_WAIT_S, poll_interval=0.01)
        except Timeout as error:
            raise ChainError(
                f"{self.path}: another process holds {lock.lock_file!r} for {LOCK_WAIT_S:.0f} s; expected it to "
                "append and let go; end that process"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _begin(self) -> None:
        """Make the log and a head of no rows: from now on either of them without the other is a fault."""
        if self._head_path.exists() or (self.path.exists() and self.path.stat().st_size):
            return
        self.path.touch()
        self._write_head(_EMPTY)

    def _stated_mark(self) -> _Mark:
        """Return what the head file says; the log is not read, only its length is compared."""
        text = self._head_text()
        size = self.path.stat().st_size if self.path.exists() else None
        if text is None and size:
            text = self._head_text()  # another process may have begun the log between the two looks
        if text is None:
            if size:
                raise ChainError(f"{self._head_path}: missing, while the log has {size} bytes; {_RESTORE}")
            return _EMPTY
        if size is None:
            raise ChainError(f"{self.path}: missing, while its head file is there; {_RESTORE}")
        try:
            mark = _Mark(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ChainError(f"{self._head_path}: damaged; expected count, end, hash and start; {_RESTORE}") from error
        if not all(isinstance(value, int) for value in (mark.count, mark.end, mark.start)) or mark.text() != text:
            raise ChainError(f"{self._head_path}: damaged; expected what this package writes; {_RESTORE}")
        return mark

    def _head_text(self) -> bytes | None:
        try:
            return self._head_path.read_bytes()
        except FileNotFoundError:
            return None

    def _end_of_log(self, *, move_torn_line: bool = False) -> _Mark:
        """Return where the log ends: what the head says, checked against the last row, and fitting rows after it."""
        mark = self._stated_mark()
        if not self.path.exists():
            return mark
        with self.path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < mark.end:
                raise ChainError(f"{self.path}: {size} bytes; {_CUT.format(count=mark.count)}; {_RESTORE}")
            stream.seek(max(mark.start, 0))
            row = _row_or_none(stream.read(max(mark.end - mark.start, 0)))
            if mark != _EMPTY and (row is None or (row.number + 1, row.hash) != (mark.count, mark.hash)):
                raise ChainError(self._damaged(max(mark.count - 1, 0)))
            tail = list(io.BytesIO(stream.read()))
        for line in tail:
            row = _row_or_none(line)
            if row is not None and (row.number, row.previous) == (mark.count, mark.hash):
                mark = mark.after(line, row.hash)
            elif line.endswith(b"\n"):
                raise ChainError(self._damaged(mark.count))
            elif move_torn_line:
                _replace(self._torn_path(mark), line)
                os.truncate(self.path, mark.end)
        return mark

    def _torn_path(self, mark: _Mark) -> Path:
        return self.path.with_name(f"{self.path.name}.torn.{mark.count}")

    def _recovery_note(self, mark: _Mark) -> list[tuple[str, str]]:
        """Return the row that tells of a torn line.

        The line's file carries the number of the row that tells of it, so an append that failed after it moved the
        line leaves the telling to the next.
        """
        torn = self._torn_path(mark)
        if not torn.exists():
            return []
        content = torn.read_bytes()
        body = {"file": torn.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return [(RECOVERED, _body_text(RECOVERED, body))]

    def _write(self, mark: _Mark, lines: Sequence[bytes], after: _Mark) -> None:
        try:
            with self.path.open("ab", buffering=0) as stream:
                _write_all(stream.fileno(), b"".join(lines))
                os.fsync(stream.fileno())
            self._write_head(after)
        except BaseException:
            with suppress(OSError):
                # Once the head knows the rows they are accepted, whatever came afterwards.
                if self._head_text() != after.text():
                    os.truncate(self.path, mark.end)
            raise

    def _write_head(self, mark: _Mark) -> None:
        _replace(self._head_path, mark.text())

    def _lines(self, stated: _Mark) -> Iterator[tuple[int, bytes, bool]]:
        """Give each line of the log, where it starts, and whether the head knows it."""
        if not self.path.exists():
            return
        start = 0
        with self.path.open("rb") as stream:
            for line in stream:
                yield start, line, start < stated.end
                if not line.endswith(b"\n"):
                    return  # another process may be about to write the rest, which is no line of its own
                start += len(line)

    def _damaged(self, row: int) -> str:
        return (
            f"{self.path}: row {row} is damaged, or its head file is; expected the row that was appended, after the "
            f"row before it; {_RESTORE}"
        )


_CUT = "expected {count} rows, as its head file says: the end was cut off"
_RESTORE = "restore log and head from a copy (verify names every fault)"


@dataclass(frozen=True)
class _Mark:
    """The end of the log: number of rows, hash of the last, and the bytes where that row starts and ends."""

    count: int
    hash: str
    start: int
    end: int

    def text(self) -> bytes:
        return _canonical(asdict(self)).encode("ascii") + b"\n"

    def after(self, line: bytes, digest: str) -> _Mark:
        return _Mark(self.count + 1, digest, self.end, self.end + len(line))


_EMPTY = _Mark(0, NO_ROW, 0, 0)


class _Reading:
    """What a whole reading of a log found: the rows that have their own hash, and how they follow each other."""

    def __init__(self) -> None:
        self.marks: dict[int, _Mark] = {}
        self.found: list[Fault] = []
        self.last: Row | None = None
        self.strange = 0  # lines since the last good row that are none

    def add(self, start: int, line: bytes) -> None:
        row = _row_or_none(line)
        if row is None:
            self.strange += 1
            return
        expected = 0 if self.last is None else self.last.number + 1
        before = NO_ROW if self.last is None else self.last.hash
        if row.number < expected:
            self.found.append(Fault(row.number, f"row {row.number} stands after row {expected - 1}: it was moved"))
        elif row.number == expected:
            if self.strange:
                self.found.append(Fault(expected, f"before row {expected} stands a line that is no row"))
            if row.previous != before:
                self.found.append(
                    Fault(expected, f"row {expected} does not follow the row before it: one of the two was changed")
                )
        else:
            self.found += [self._lost(number) for number in range(expected, row.number)]
        if row.number >= expected:
            self.marks[row.number] = _Mark(row.number + 1, row.hash, start, start + len(line))
            self.last = row
        self.strange = 0

    def faults(self, stated: _Mark) -> list[Fault]:
        """Return what is wrong with the rows themselves, and with the end as the head states it."""
        end = 0 if self.last is None else self.last.number + 1
        if self.strange:
            return [*self.found, self._lost(end)]
        if end < stated.count:
            return [*self.found, Fault(end, f"row {end} is missing: the head file tells of {stated.count} rows")]
        return self.found

    def head_faults(self, stated: _Mark) -> list[Fault]:
        """Compare the head with the row that it describes; one that is damaged or missing is told of already."""
        row = max(stated.count - 1, 0)
        told = stated.count > 0 and row not in self.marks
        sound = told or stated == self.marks.get(stated.count - 1, _EMPTY)
        return [] if sound else [Fault(row, f"the head file does not describe row {row}: one of the two was changed")]

    def anchor_faults(self, anchor: Head) -> list[Fault]:
        row = anchor.count - 1
        if anchor.count == 0:
            return []
        if row not in self.marks:
            return [Fault(row, f"row {row} is not there; the anchor knew {anchor.count} rows: the end was cut off")]
        if not self.marks[row].hash.startswith(anchor.hash):
            return [Fault(row, f"row {row} is not the one that the anchor knew: the log was rewritten")]
        return []

    def _lost(self, number: int) -> Fault:
        if self.strange:
            return Fault(number, f"row {number} was changed: it does not have the hash it states")
        return Fault(number, f"row {number} is missing")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _checked_kind(kind: object) -> str:
    if not isinstance(kind, str) or not kind:
        raise ChainError(f"kind of a row is {kind!r}; expected a word such as 'trial'; name it")
    return kind


def _body_text(kind: str, body: Mapping[str, Any]) -> str:
    try:
        return _canonical(dict(body))
    except (TypeError, ValueError) as error:
        raise ChainError(
            f"row of kind {kind!r} cannot be written: {error}; expected text keys and JSON values; turn NaN into None "
            "and numpy values into Python's"
        ) from error


def _lines_after(mark: _Mark, texts: Sequence[tuple[str, str]]) -> tuple[list[bytes], _Mark]:
    """Return the lines of rows that follow ``mark``, and the mark after them."""
    time = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    lines = []
    for kind, body in texts:
        content = (
            f'{{"body":{body},"kind":{json.dumps(kind)},"number":{mark.count},"previous":"{mark.hash}","time":"{time}"}}'
        ).encode("ascii")
        digest = hashlib.sha256(content).hexdigest()
        line = content[:-1] + _HASH_FIELD + digest.encode("ascii") + _LINE_END
        lines.append(line)
        mark = mark.after(line, digest)
    return lines, mark


# The hash stands last in its line and covers the bytes before it as they are, so that not even a blank can be changed.
_HASH_FIELD = b',"hash":"'
_LINE_END = b'"}\n'
_TAIL = len(_HASH_FIELD) + 64 + len(_LINE_END)
_FIELDS = {"body", "kind", "number", "previous", "time"}


def _read(line: bytes) -> Row:
    """Read a line; ValueError when it is not whole, or does not have the hash it states."""
    tail = line[-_TAIL:]
    stated = tail[len(_HASH_FIELD) : -len(_LINE_END)].decode("ascii")
    content = line[:-_TAIL] + b"}"
    if not (tail.startswith(_HASH_FIELD) and tail.endswith(_LINE_END)):
        raise ValueError("no row")
    if hashlib.sha256(content).hexdigest() != stated:
        raise ValueError("not the row that was written")
    fields = json.loads(content)
    if not isinstance(fields, dict) or set(fields) != _FIELDS or not isinstance(fields["number"], int):
        raise ValueError("no fields of a row")
    return Row(**fields, hash=stated)


def _row_or_none(line: bytes) -> Row | None:
    try:
        return _read(line)
    except (ValueError, RecursionError):
        return None


def _write_all(stream: int, content: bytes) -> None:
    while content:
        content = content[os.write(stream, content) :]


def _replace(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old one or the new one."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb", buffering=0) as stream:
        _write_all(stream.fileno(), content)
    draft.replace(path)
