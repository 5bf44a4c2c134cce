"""The journal keeps answers once, for good, for several processes, and refuses a file that is none."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from qlib_llm_alpha.errors import LLMError
from qlib_llm_alpha.llm.budget import Charge
from qlib_llm_alpha.llm.journal import Journal, Spending
from qlib_llm_alpha.llm.request import Message, Usage
from tests.llm.talk import STAMP, reply, request


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_what_was_put_is_got_again_by_another_opening(path: Path) -> None:
    asked, answered = request("one"), reply('{"number": 1}')
    with Journal(path) as journal:
        assert journal.get(asked.key) is None
        assert journal.put(asked, answered, endpoint="local") == answered
    with Journal(path) as journal:
        assert journal.get(asked.key) == answered
        (row,) = journal.rows()
    assert (row.purpose, row.prompt, row.documents, row.as_of) == ("generate", STAMP, ("doc-1",), "2020-06-30")
    assert row.request["messages"][1]["text"] == "one"
    assert (row.asked, row.endpoint, row.private) == (True, "local", False)
    assert row.openai.count(".") >= 1


def test_each_put_is_on_disk_before_it_returns(path: Path) -> None:
    journal = Journal(path)
    journal.put(request("one"), reply("1"))
    killed = "import os, sys; os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -9
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM replies").fetchone() == (1,)
    assert journal._database.execute("PRAGMA synchronous").fetchone() == (2,), "2 is FULL"


def test_a_process_killed_right_after_a_put_leaves_the_answer(path: Path) -> None:
    code = (
        "import os, sys; from qlib_llm_alpha.llm.journal import Journal; from tests.llm.talk import reply, request; "
        "journal = Journal(sys.argv[1]); journal.put(request('one'), reply('1')); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert Journal(path).get(request("one").key) == reply("1")


def test_of_two_answers_to_one_request_the_first_is_kept_and_both_are_paid(path: Path) -> None:
    one, two = Journal(path), Journal(path)
    assert one.put(request("q"), reply("first")).text == "first"
    assert two.put(request("q"), reply("second")).text == "first"
    assert one.spent()["model-a"].calls == 2


def test_threads_write_at_once(path: Path) -> None:
    journal = Journal(path)

    def write(thread: int) -> None:
        for number in range(10):
            journal.put(request(f"{thread}-{number}"), reply("x"))

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journal.reply_keys()) == 40


def test_images_are_kept_as_hashes_and_odd_letters_survive(path: Path) -> None:
    image = b"\x89PNG picture bytes"
    asked = replace(request("q"), messages=(Message("user", "价量背离 \ud800", (image,)),))
    journal = Journal(path)
    journal.put(asked, reply("回答 \udfff \x00"))
    assert journal.get(asked.key) == reply("回答 \udfff \x00")
    journal.close()
    assert image not in path.read_bytes()


def test_spending_is_summed_by_model_and_counts_what_nobody_counted_at_its_most(path: Path) -> None:
    journal = Journal(path)
    journal.put(request("1"), reply("x", usage=Usage(10, 5, cached=3)))
    journal.put(request("2"), reply("x", usage=Usage()))
    journal.put(request("3"), reply("x"), asked=False)
    journal.spend(Charge.of(request("4"), "malformed_reply", Usage(1, 2)))
    spent = journal.spent()["model-a"]
    assert spent == Spending(3, Usage(11, 7, 3), spent.bound, 1)
    assert spent.bound.answer == 7 + 100, "max_tokens stands for what is not known"
    assert spent.bound.prompt is not None
    assert spent.bound.prompt > 11 + len("Answer with a number.")


def test_facts_stay_as_first_noted(path: Path) -> None:
    journal = Journal(path)
    assert journal.fact("model") is None
    assert journal.note("model", "a") == "a"
    assert journal.note("model", "b") == "a"
    assert Journal(path).fact("model") == "a"


def test_vectors_come_back_to_the_last_bit_and_texts_are_not_kept(path: Path) -> None:
    journal = Journal(path)
    journal.put_vectors("embedder", {"a private text": [0.1, 1 / 3, -1e-300]})
    assert journal.get_vector("embedder", "a private text") == [0.1, 1 / 3, -1e-300]
    assert journal.get_vector("other", "a private text") is None
    journal.close()
    assert b"a private text" not in path.read_bytes()


def test_a_file_that_is_no_database_is_refused_with_what_to_do(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(LLMError, match=r"journal.sqlite.*restore it .*or move it away and resume"):
        Journal(path)


def test_a_torn_file_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        for number in range(60):
            journal.put(request(f"{number} {'long ' * 200}"), reply("x" * 500))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LLMError, match="damaged"):
        Journal(path)


def test_an_empty_file_of_a_process_killed_at_once_is_a_new_journal(path: Path) -> None:
    path.write_bytes(b"")
    assert Journal(path).reply_keys() == []


def test_another_programs_database_and_another_format_are_refused(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(LLMError, match="another program's database"):
        Journal(path)
    later = path.with_name("later.sqlite")
    Journal(later).close()
    with sqlite3.connect(later) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(LLMError, match="format 99; expected 1"):
        Journal(later)


def test_a_folder_in_its_place_and_use_after_close_are_told(tmp_path: Path, path: Path) -> None:
    with pytest.raises(LLMError, match="cannot be used"):
        Journal(tmp_path)
    journal = Journal(path)
    journal.close()
    with pytest.raises(LLMError, match="cannot be used"):
        journal.get("k")


def test_a_row_that_holds_no_reply_is_told_as_damage(path: Path) -> None:
    journal = Journal(path)
    journal.put(request("q"), reply("x"))
    journal._database.execute("UPDATE replies SET reply = '{}'")
    with pytest.raises(LLMError, match="damaged"):
        journal.get(request("q").key)
