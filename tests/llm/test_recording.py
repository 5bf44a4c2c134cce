"""A recording holds the answers a session used, as the same bytes however they came, and says what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qlib_llm_alpha.errors import LLMError
from qlib_llm_alpha.llm.journal import Journal, embedding_key
from qlib_llm_alpha.llm.recording import FORMAT, Recording
from tests.llm.talk import STAMP, reply, request

HEADER = {"model": "model-a", "data": "f" * 12, "made_by": "a test", "note": "written by us"}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "journal.sqlite")
    for text in ("a", "b", "c"):
        journal.put(request(text), reply(f'{{"number": {ord(text)}}}'))
    return journal


def test_what_was_written_is_read_without_times(journal: Journal, tmp_path: Path) -> None:
    keys = [request("a").key, request("b").key]
    Recording.write(tmp_path / "r.jsonl", journal, keys, HEADER)
    read = Recording.load(tmp_path / "r.jsonl")
    assert dict(read.header) == HEADER
    assert read.get(keys[0]) == replace(reply('{"number": 97}'), attempts=1, seconds=0.0)
    assert read.get(request("c").key) is None, "a session that did not use an answer does not record it"
    assert read.answers[keys[0]].prompt == STAMP
    assert read.summary == "2 for generate (prompt generate version 3, abababab)"


def test_the_bytes_depend_on_nothing_but_the_answers(journal: Journal, tmp_path: Path) -> None:
    other = Journal(tmp_path / "other.sqlite")
    for text in ("c", "a", "b"):
        slow = replace(reply(f'{{"number": {ord(text)}}}'), seconds=9.0, attempts=5)
        other.put(request(text), slow, endpoint="remote")
    journal.export(tmp_path / "one.jsonl", header=HEADER)
    other.export(tmp_path / "two.jsonl", header=dict(reversed(HEADER.items())))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    keys = [json.loads(line)["key"] for line in (tmp_path / "one.jsonl").read_text().splitlines()[1:]]
    assert keys == sorted(keys)


def test_no_text_of_a_request_is_in_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.put(request("the secret sauce"), reply("1"))
    journal.put_vectors("embedder", {"another private text": [1.0]})
    keys = [request("the secret sauce").key, embedding_key("embedder", "another private text")]
    Recording.write(tmp_path / "r.jsonl", journal, keys, HEADER)
    content = (tmp_path / "r.jsonl").read_text()
    assert "sauce" not in content
    assert "another private text" not in content
    assert Recording.load(tmp_path / "r.jsonl").vector(keys[1]) == [1.0]


def test_a_recording_of_private_questions_says_so_in_its_header(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.put(replace(request("q"), private=True), reply("1"))
    journal.export(tmp_path / "r.jsonl", header=HEADER)
    assert Recording.load(tmp_path / "r.jsonl").header["private"].startswith("1 answers to private text")


def test_an_answer_that_the_journal_lacks_is_not_recorded_over(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="1 of 2 answers to be recorded are not in the journal, the first is 0000"):
        Recording.write(tmp_path / "r.jsonl", journal, [request("a").key, "0" * 64], HEADER)
    with pytest.raises(LLMError, match="expected texts for"):
        Recording.write(tmp_path / "r.jsonl", journal, [], {"model": "m"})
    assert not (tmp_path / "r.jsonl").exists()


def _line(**changes: object) -> str:
    return json.dumps(
        {
            "key": "1" * 64,
            "purpose": "p",
            "prompt": None,
            "reply": {"text": "", "finish": "stop", "usage": {}, "model": "", "mode": "prompt"},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([""], "line 1 begins ''; expected a header"),
        (['{"format": "another 7"}'], "line 1 begins"),
        ([json.dumps({"format": FORMAT, "model": "m"})], "line 1 has a header of"),
        (["HEADER", "{"], "line 2 is no answer"),
        (["HEADER", _line(key="short")], "line 2 has a key"),
        (["HEADER", _line(reply={"text": 1})], "line 2 is no answer"),
        (["HEADER", _line(reply=None)], "line 2 is no answer"),
        (["HEADER", _line(vector=[float("nan")], model="m")], "line 2 has a key or a vector"),
        (["HEADER", _line(), _line()], "line 3 holds the key 111111111111 a second time"),
        (["HEADER", "[1]"], "line 2 is no answer"),
    ],
)
def test_a_damaged_recording_is_refused_with_the_line(tmp_path: Path, lines: list[str], problem: str) -> None:
    head = json.dumps({**HEADER, "format": FORMAT})
    (tmp_path / "r.jsonl").write_text("\n".join(head if line == "HEADER" else line for line in lines))
    with pytest.raises(LLMError, match=problem):
        Recording.load(tmp_path / "r.jsonl")


def test_a_missing_file_and_one_that_is_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match=r"No such file.*expected a file that"):
        Recording.load(tmp_path / "none.jsonl")
    (tmp_path / "r.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LLMError, match="expected UTF-8"):
        Recording.load(tmp_path / "r.jsonl")


def test_lines_written_by_hand_may_be_in_any_order_and_end_as_on_windows(tmp_path: Path) -> None:
    head = json.dumps({**HEADER, "format": FORMAT})
    (tmp_path / "r.jsonl").write_bytes("\r\n".join([head, _line(key="2" * 64), _line(), ""]).encode())
    assert len(Recording.load(tmp_path / "r.jsonl").answers) == 2
