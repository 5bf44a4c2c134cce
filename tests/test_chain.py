"""The hash-chained log: what was appended stays, in order, and nobody changes it unseen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha import chain as module
from qlib_llm_alpha.chain import NO_ROW, Chain, Fault, Head
from qlib_llm_alpha.errors import ChainError


@pytest.fixture
def log(tmp_path: Path) -> Chain:
    return filled(tmp_path / "log.jsonl")


def filled(path: Path) -> Chain:
    chain = Chain(path)
    chain.append([("trial", {"n": 0, "text": "naïve"}), ("read", {"n": 1, "ic": 0.1})])
    chain.append([("trial", {"n": 2, "nothing": None, "list": [1, 2.5, True]})])
    chain.append([("trial", {"n": 3}), ("opening", {"n": 4, "key": {"a": "b"}})])
    return chain


def head_file(chain: Chain) -> Path:
    return chain.files[1]


def numbers(chain: Chain) -> list[int]:
    return [row.body["n"] for row in chain.rows() if "n" in row.body]


def named(faults: list[Fault]) -> set[int]:
    return {fault.row for fault in faults}


# What is written


def test_rows_come_back_as_they_were_appended(log: Chain) -> None:
    rows = list(log.rows())
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    assert [row.kind for row in rows] == ["trial", "read", "trial", "trial", "opening"]
    assert rows[0].body == {"n": 0, "text": "naïve"}
    assert rows[2].body == {"n": 2, "nothing": None, "list": [1, 2.5, True]}
    assert rows[0].previous == NO_ROW
    assert [row.previous for row in rows[1:]] == [row.hash for row in rows[:-1]]
    assert log.head() == Head(5, rows[-1].hash)
    assert log.verify(log.head()) == []


def test_append_returns_the_rows_that_reading_gives(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "log.jsonl")
    returned = [*chain.append([("a", {"x": 1}), ("b", {})]), *chain.append([("c", {"y": [0.1]})])]
    assert returned == list(chain.rows())


def test_rows_can_be_asked_for_by_kind(log: Chain) -> None:
    assert [row.number for row in log.rows("trial")] == [0, 2, 3]
    assert list(log.rows("unheard of")) == []


def test_the_hash_of_a_row_is_sha256_of_its_line_without_the_hash(log: Chain) -> None:
    for line in log.path.read_text("ascii").splitlines():
        fields = json.loads(line)
        stated = fields.pop("hash")
        content = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(content.encode("ascii")).hexdigest() == stated


def test_times_are_utc(log: Chain) -> None:
    for row in log.rows():
        assert datetime.fromisoformat(row.time).utcoffset() == timedelta(0)


def test_an_unwritten_log_is_empty_and_sound(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "none" / "log.jsonl")
    assert list(chain.rows()) == []
    assert chain.head() == Head(0, NO_ROW)
    assert chain.verify() == []
    assert chain.append([]) == []
    assert not (tmp_path / "none").exists(), "looking writes nothing"


@pytest.mark.parametrize("body", [{"ic": float("nan")}, {"n": np.int64(3)}, {"days": {1, 2}}, {("a", "b"): 1}])
def test_what_is_no_json_is_refused_and_the_whole_batch_with_it(log: Chain, body: dict[str, object]) -> None:
    before = log.path.read_bytes()
    with pytest.raises(ChainError, match=r"row of kind 'trial' cannot be written.*None"):
        log.append([("trial", {"n": 9}), ("trial", body)])
    assert log.path.read_bytes() == before


def test_a_row_has_a_kind(log: Chain) -> None:
    with pytest.raises(ChainError, match="kind of a row is ''; expected a word"):
        log.append([("", {})])


def test_a_log_keeps_its_place_when_the_working_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chain = Chain("log.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    chain.append([("a", {})])
    assert (tmp_path / "log.jsonl").exists()


def test_a_log_can_be_sent_to_another_process(log: Chain) -> None:
    with log.locked():
        assert list(pickle.loads(pickle.dumps(log)).rows()) == list(log.rows())  # noqa: S301


# What was changed


@given(st.data())
def test_any_flipped_byte_of_the_log_is_named_with_its_row(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    chain = filled(tmp_path_factory.mktemp("flip") / "log.jsonl")
    raw = bytearray(chain.path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1), label="position")
    raw[at] ^= data.draw(st.integers(1, 255), label="flip")
    row = bytes(raw[:at]).count(b"\n")
    chain.path.write_bytes(raw)
    assert row in named(chain.verify())
    assert len(chain.verify()) <= 2, "a line end between two rows takes both; nothing else takes more than one"
    with pytest.raises(ChainError, match=f"row {row} "):
        list(chain.rows())


@given(st.data())
def test_any_flipped_byte_of_the_head_is_named_and_nothing_is_appended(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    chain = filled(tmp_path_factory.mktemp("flip") / "log.jsonl")
    raw = bytearray(head_file(chain).read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1), label="position")
    raw[at] ^= data.draw(st.integers(1, 255), label="flip")
    head_file(chain).write_bytes(raw)
    before = chain.path.read_bytes()
    assert any("head" in fault.detail for fault in chain.verify())
    with pytest.raises(ChainError):
        chain.append([("trial", {})])
    assert chain.path.read_bytes() == before


def test_every_byte_of_a_short_log_and_its_head_counts(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "log.jsonl")
    chain.append([("a", {"n": 15}), ("b", {"n": 1})])
    for file in chain.files:
        raw = file.read_bytes()
        for at in range(len(raw)):
            changed = bytearray(raw)
            changed[at] ^= 1 << at % 8
            file.write_bytes(changed)
            assert chain.verify(), (file.name, at)
        file.write_bytes(raw)
    assert chain.verify() == []


def lines_of(chain: Chain) -> list[bytes]:
    return chain.path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "row", "detail"),
    [
        (lambda rows: [*rows[:2], *rows[3:]], 2, "row 2 is missing"),
        (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], 1, "row 1 stands after row 2: it was moved"),
        (lambda rows: [*rows[:3], rows[2], *rows[3:]], 2, "row 2 stands after row 2: it was moved"),
        (lambda rows: [*rows[:2], b"{}\n", *rows[2:]], 2, "before row 2 stands a line that is no row"),
        (lambda rows: [*rows[:4], rows[4].replace(b'"b"', b'"c"')], 4, "row 4 was changed"),
        (lambda rows: rows[:4], 4, "row 4 is missing: the head file tells of 5 rows"),
        (lambda rows: [*rows[:4], rows[4][:-9]], 4, "row 4 was changed"),
        (lambda rows: [*rows, b"{}\n"], 5, "row 5 was changed"),
        (lambda rows: [], 0, "row 0 is missing: the head file tells of 5 rows"),
    ],
    ids=["removed", "swapped", "doubled", "inserted", "edited", "cut", "torn", "added", "emptied"],
)
def test_rows_that_were_moved_removed_or_added_are_named(
    log: Chain, change: Callable[[list[bytes]], list[bytes]], row: int, detail: str
) -> None:
    log.path.write_bytes(b"".join(change(lines_of(log))))
    faults = log.verify()
    assert any(fault.row == row and detail in fault.detail for fault in faults), faults
    with pytest.raises(ChainError):
        list(log.rows())


def test_a_row_whose_hash_was_made_to_fit_does_not_fit_the_next(log: Chain) -> None:
    rows = lines_of(log)
    rows[2] = _with_hash(rows[2].replace(b'"n":2', b'"n":7'))
    log.path.write_bytes(b"".join(rows))
    assert log.verify() == [Fault(3, "row 3 does not follow the row before it: one of the two was changed")]
    with pytest.raises(ChainError, match="row 3"):
        list(log.rows())


def test_a_last_row_whose_hash_was_made_to_fit_does_not_fit_the_head(log: Chain) -> None:
    rows = lines_of(log)
    rows[4] = _with_hash(rows[4].replace(b'"n":4', b'"n":7'))
    log.path.write_bytes(b"".join(rows))
    assert log.verify() == [Fault(4, "the head file does not describe row 4: one of the two was changed")]
    for refused in (lambda: list(log.rows()), log.head, lambda: log.append([("a", {})])):
        with pytest.raises(ChainError, match="row 4 is damaged, or its head file is"):
            refused()


@pytest.mark.parametrize("content", [b"[]", b'{"number":"1"}', b"7", b"{", b'{"hash":1}'])
def test_a_line_with_a_fitting_hash_that_is_no_row_is_a_fault(log: Chain, content: bytes) -> None:
    rows = lines_of(log)
    rows[1] = _with_hash(content[:-1] + b',"hash":"' + b"0" * 64 + b'"}\n')
    log.path.write_bytes(b"".join(rows))
    assert 1 in named(log.verify())


def _with_hash(line: bytes) -> bytes:
    content = line[:-76] + b"}"
    return content[:-1] + b',"hash":"' + hashlib.sha256(content).hexdigest().encode() + b'"}\n'


def test_a_truncated_tail_is_noticed_by_everyone(log: Chain) -> None:
    size = log.path.stat().st_size
    os.truncate(log.path, size - 1)
    assert named(log.verify()) == {4}
    for refused in (log.head, lambda: log.append([("a", {})])):
        with pytest.raises(ChainError, match=f"{size - 1} bytes; expected 5 rows.*the end was cut off"):
            refused()
    with pytest.raises(ChainError, match="row 4 is damaged"):
        list(log.rows())


def test_a_tail_and_a_head_that_were_rolled_back_together_are_noticed_by_an_anchor(log: Chain) -> None:
    earlier = log.path.read_bytes(), head_file(log).read_bytes()
    log.append([("opening", {"n": 5})])
    anchor = log.head()
    log.path.write_bytes(earlier[0])
    head_file(log).write_bytes(earlier[1])
    assert log.verify() == [], "nothing in the folder knows of the last row"
    assert log.verify(anchor) == [
        Fault(5, "row 5 is not there; the anchor knew 6 rows: the end was cut off"),
    ]


def test_a_log_that_was_written_anew_is_noticed_by_an_anchor(log: Chain, tmp_path: Path) -> None:
    anchor = log.head()
    other = filled(tmp_path / "other.jsonl")
    for old, new in zip(log.files, other.files, strict=True):
        new.replace(old)
    assert log.verify() == []
    assert log.verify(anchor) == [Fault(4, "row 4 is not the one that the anchor knew: the log was rewritten")]


def test_an_anchor_from_before_the_first_row_fits_everything(log: Chain) -> None:
    assert log.verify(Head(0, NO_ROW)) == []


@pytest.mark.parametrize(("gone", "detail"), [(0, "missing, while its head file is there"), (1, "missing, while the")])
def test_a_log_without_its_head_or_a_head_without_its_log_is_refused(log: Chain, gone: int, detail: str) -> None:
    log.files[gone].unlink()
    assert any(detail in fault.detail for fault in log.verify())
    for refused in (lambda: list(log.rows()), log.head, lambda: log.append([("a", {})])):
        with pytest.raises(ChainError, match=detail):
            refused()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"count":0,"end":0,"hash":"' + NO_ROW + '","start":0}\n',
        '{"count":-1,"end":9,"hash":"' + NO_ROW + '","start":0}\n',
        '{"count":0,"end":-1,"hash":"' + NO_ROW + '","start":-5}\n',
    ],
)
def test_a_head_that_says_something_else_is_refused(log: Chain, text: str) -> None:
    head_file(log).write_text(text)
    if text.startswith('{"count":0,"end":0'):
        assert numbers(log) == [0, 1, 2, 3, 4], "a head that is behind is what a kill leaves"
        return
    assert log.verify()
    with pytest.raises(ChainError):
        log.append([("a", {})])


def test_a_head_that_says_the_same_in_other_bytes_is_refused(log: Chain) -> None:
    head_file(log).write_text(json.dumps(json.loads(head_file(log).read_text())))
    assert any("expected what this package writes" in fault.detail for fault in log.verify())


# What was interrupted


def test_rows_that_the_head_does_not_know_yet_are_kept_when_they_fit(log: Chain) -> None:
    behind = head_file(log).read_bytes()
    log.append([("trial", {"n": 5}), ("trial", {"n": 6})])
    head_file(log).write_bytes(behind)
    assert log.verify(log.head()) == []
    assert log.head().count == 7
    assert numbers(log) == [0, 1, 2, 3, 4, 5, 6]
    assert log.append([("trial", {"n": 7})])[0].number == 7
    assert log.verify() == []


def test_a_row_that_the_head_does_not_know_and_that_does_not_fit_is_refused(log: Chain) -> None:
    behind = head_file(log).read_bytes()
    log.append([("trial", {"n": 5})])
    head_file(log).write_bytes(behind)
    log.path.write_bytes(log.path.read_bytes().replace(b'"n":5', b'"n":6'))
    assert named(log.verify()) == {5}
    with pytest.raises(ChainError, match="row 5 is damaged"):
        log.append([("trial", {})])


def tear(chain: Chain) -> bytes:
    torn = b'{"body":{"n":5},"kind":"tri\rl'
    with chain.path.open("ab") as stream:
        stream.write(torn)
    return torn


def test_a_torn_last_line_is_set_aside_and_the_next_append_says_so(log: Chain) -> None:
    torn = tear(log)
    assert log.verify() == []
    assert numbers(log) == [0, 1, 2, 3, 4]
    assert log.append([("trial", {"n": 6})])[0].number == 6
    told = next(log.rows("recovered"))
    assert (told.number, told.body["file"], told.body["bytes"]) == (5, "log.jsonl.torn.5", len(torn))
    aside = (log.path.parent / told.body["file"]).read_bytes()
    assert aside == torn
    assert told.body["sha256"] == hashlib.sha256(torn).hexdigest()
    assert numbers(log) == [0, 1, 2, 3, 4, 6]
    log.append([("trial", {"n": 7})])
    assert len(list(log.rows("recovered"))) == 1
    assert log.verify() == []


def test_the_very_first_row_may_be_torn(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "log.jsonl")
    chain.append([("a", {})])
    raw = chain.path.read_bytes()
    head_file(chain).write_text('{"count":0,"end":0,"hash":"' + NO_ROW + '","start":0}\n')
    chain.path.write_bytes(raw[:20])
    assert chain.append([("b", {})])[0].number == 1
    assert [row.kind for row in chain.rows()] == ["recovered", "b"]


def test_an_append_looks_at_the_end_alone(log: Chain) -> None:
    raw = bytearray(log.path.read_bytes())
    raw[10] ^= 1
    log.path.write_bytes(raw)
    assert log.append([("trial", {"n": 5})])[0].number == 5, "or a long log would be read again for every row"
    assert named(log.verify()) == {0}


class Trouble:
    """Lets the n-th writing call of the log fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, sticky: bool = False) -> None:
        self.calls, self.fails_at, self.sticky = 0, -1, sticky
        for place, name in ((os, "write"), (os, "fsync"), (os, "truncate"), (Path, "replace")):
            monkeypatch.setattr(place, name, self._failing(name, getattr(place, name)))

    def _failing(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            self.calls += 1
            if self.calls == self.fails_at or (self.sticky and 0 < self.fails_at < self.calls):
                if name == "write":
                    real(args[0], bytes(args[1])[: len(bytes(args[1])) // 2])  # type: ignore[call-overload]
                raise OSError(errno.ENOSPC, "no space left", name)
            return real(*args)

        return call

    def at(self, call: int) -> None:
        self.calls, self.fails_at = 0, call


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on, so that nothing can be taken back"])
@pytest.mark.parametrize("start", ["new", "filled", "torn"])
def test_whichever_write_fails_no_accepted_row_is_lost_and_the_next_append_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, sticky: bool
) -> None:
    trouble = Trouble(monkeypatch, sticky=sticky)
    for call in range(1, 30):
        trouble.at(-1)
        path = tmp_path / str(call) / "log.jsonl"
        chain = Chain(path) if start == "new" else filled(path)
        kept = [] if start == "new" else [0, 1, 2, 3, 4]
        if start == "torn":
            tear(chain)
        trouble.at(call)
        try:
            chain.append([("trial", {"n": 10}), ("trial", {"n": 11})])
        except OSError:
            failed = True
        else:
            failed = False
        trouble.at(-1)
        found = numbers(chain)
        if failed and not sticky:
            assert found == kept, "all or nothing"
        assert found in (kept, [*kept, 10], [*kept, 10, 11])
        chain.append([("trial", {"n": 12})])
        assert numbers(chain) == [*found, 12]
        assert chain.verify(chain.head()) == []
        if start == "torn":
            told = list(chain.rows("recovered"))
            assert told, "the torn line is told of, whichever write failed"
            assert all((path.parent / row.body["file"]).exists() for row in told)
        if not failed:
            assert found == [*kept, 10, 11]
            assert call > 4
            return
    pytest.fail("the append never came through")


def test_an_interruption_after_the_head_was_replaced_leaves_the_rows(
    log: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def replace_and_interrupt(self: Path, target: Path) -> Path:
        real(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", replace_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        log.append([("trial", {"n": 5})])
    assert numbers(log) == [0, 1, 2, 3, 4, 5]
    assert log.verify() == []


def test_a_write_that_takes_a_part_only_is_continued(log: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda stream, content: real(stream, content[:7]))
    log.append([("trial", {"n": 5})])
    assert numbers(log) == [0, 1, 2, 3, 4, 5]


def test_one_append_waits_for_the_disk_once(log: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    log.append([("trial", {"n": n}) for n in range(100)])
    assert len(calls) == 1


# Many at once


def test_the_lock_may_be_entered_again_also_through_another_chain(log: Chain) -> None:
    with log.locked(), log.locked(), Chain(log.path).locked():
        Chain(log.path).append([("trial", {"n": 5})])
    assert numbers(log) == [0, 1, 2, 3, 4, 5]


def test_the_lock_keeps_other_threads_out_and_says_so_when_it_is_not_to_be_had(
    log: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, done = threading.Event(), threading.Event()

    def hold() -> None:
        with log.locked():
            entered.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(10)
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0.05)
    with pytest.raises(ChainError, match=r"another process holds .*log\.jsonl\.lock"):
        log.append([("trial", {})])
    done.set()
    holder.join()
    log.append([("trial", {"n": 5})])


APPENDING = """
import sys
from qlib_llm_alpha.chain import Chain
chain = Chain(sys.argv[1])
for number in range(int(sys.argv[3])):
    chain.append([("trial", {"who": sys.argv[2], "n": number})])
"""


def append_in_processes(path: Path, processes: int, times: int) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", APPENDING, str(path), str(who), str(times)]) for who in range(processes)
    ]
    assert [one.wait(timeout=600) for one in running] == [0] * processes
    chain = Chain(path)
    assert chain.verify(chain.head()) == []
    rows = list(chain.rows())
    assert len(rows) == processes * times
    for who in range(processes):
        assert [row.body["n"] for row in rows if row.body["who"] == str(who)] == list(range(times)), "each in its order"


def test_processes_that_append_at_once_make_one_valid_chain(tmp_path: Path) -> None:
    append_in_processes(tmp_path / "log.jsonl", 4, 25)


@pytest.mark.slow
def test_eight_processes_with_500_appends_each_make_one_valid_chain(tmp_path: Path) -> None:
    append_in_processes(tmp_path / "log.jsonl", 8, 500)


def test_a_reader_beside_a_writer_sees_a_valid_chain_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with subprocess.Popen([sys.executable, "-c", APPENDING, str(path), "w", "150"]) as writer:
        seen = 0
        while writer.poll() is None:
            chain = Chain(path)
            assert chain.verify() == []
            count = len(list(chain.rows()))
            assert count >= seen
            seen = count
    assert len(list(Chain(path).rows())) == 150


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_a_writer_that_is_killed_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "log.jsonl")
    known = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", APPENDING, str(chain.path), "w", "1000000"]) as writer:
            while chain.head().count < known + 20:
                assert writer.poll() is None
            writer.send_signal(signal.SIGKILL)
        chain.append([("after", {})])
        assert chain.verify(chain.head()) == []
        assert chain.head().count > known + 20
        known = chain.head().count


def test_a_head_of_wrong_types_and_a_row_too_deep_to_read_are_named_not_raised(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "log.jsonl")
    chain.append([("a", {"x": 1}), ("b", {"x": 2})])
    head = next(path for path in chain.files if path.suffix == ".head")
    whole = head.read_bytes()
    head.write_bytes(whole.replace(b'"count":2', b'"count":"2"'))
    assert chain.verify()
    with pytest.raises(ChainError):
        chain.append([("c", {})])
    head.write_bytes(whole)
    with (tmp_path / "log.jsonl").open("ab") as stream:
        stream.write(b"[" * 100_000 + b"\n")
    assert chain.verify()
