"""``qlib-llm-alpha factor check``: verdicts, exit codes, bad calls."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from qlib_llm_alpha.cli import main

GOOD = "# momentum\n\n$close/Ref($close,1)-1\n  Mean($volume,5) / $volume\r\n"
KEYS = ["expression", "ok", "canonical", "id", "lookback", "fields", "reason", "detail"]


@pytest.fixture
def write(tmp_path: Path):
    def written(content: str | bytes) -> str:
        path = tmp_path / "formulas.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return written


def test_all_pass_and_the_exit_code_is_0(write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factor", "check", write(GOOD)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok"]
    assert "608533665dec" in lines[0]


def test_one_refused_and_the_exit_code_is_1(write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factor", "check", write(GOOD + "Ref($close,-1)\n")]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("refused")
    assert "[look_ahead]" in last


def test_json_is_one_object_a_line_with_the_promised_keys(write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factor", "check", "--json", write(GOOD + "WMA($close,5)\n")]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    assert all(list(row) == KEYS for row in rows)
    assert [row["reason"] for row in rows] == [None, None, "wrong_numbers"]
    assert rows[0]["fields"] == ["$close"]


def test_units_can_be_let_pass(write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("$close+$volume\n")
    assert main(["factor", "check", file]) == 1
    assert main(["factor", "check", file, "--units", "warn"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("refused")
    assert out[1].startswith("ok")
    assert "[unit_clash]" in out[1]


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf$close\n")))
    assert main(["factor", "check", "-"]) == 0
    assert capsys.readouterr().out.split()[-1] == "$close"


def test_bytes_that_are_no_text_are_refused_line_by_line(write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(b"$close\n\xff\xfe\x00$close\n\x1b[2J\n")
    assert main(["factor", "check", file, "--json"]) == 1
    assert [json.loads(line)["reason"] for line in capsys.readouterr().out.splitlines()] == [
        None,
        "not_ascii",
        "not_ascii",
    ]
    assert main(["factor", "check", file]) == 1
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "\n\n", "# only notes\n"])
def test_a_file_without_formulas_is_a_bad_call(write, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factor", "check", write(content)]) == 2
    assert "found none" in capsys.readouterr().err


def test_a_missing_file_and_a_folder_are_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factor", "check", str(tmp_path / "absent.txt")]) == 2
    assert main(["factor", "check", str(tmp_path)]) == 2
    assert "absent.txt" in capsys.readouterr().err


@pytest.mark.parametrize("call", [["factor"], ["factor", "check"], ["factor", "check", "x", "--units", "maybe"]])
def test_a_call_that_argparse_refuses_exits_with_2(call: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(call)
    assert caught.value.code == 2


def test_a_line_that_is_too_long_is_refused_without_being_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.txt"
    with file.open("wb") as stream:
        stream.write(b"$close\n")
        for _ in range(40):
            stream.write(b"$close+$open" * 100_000)
        stream.write(b"\n$open\n")
    tracemalloc.start()
    code = main(["factor", "check", "--json", str(file)])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["reason"] for row in rows] == [None, "too_long", None]
    assert len(rows[1]["expression"]) < 250
    assert most < 8_000_000


@pytest.mark.parametrize("line", [" " * 5000 + "$close", "é" * 3000, "(" * 5000])
def test_a_long_line_is_never_taken_for_a_blank_one(line: str, write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factor", "check", write(f"{line}\n$close\n")]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert "[too_long] more than 4000 characters" in first
    assert second.startswith("ok")


def test_the_longest_formula_passes_and_a_long_note_is_a_note(write, capsys: pytest.CaptureFixture[str]) -> None:
    longest = "$close" + " " * 3988 + "-$open"
    assert main(["factor", "check", write(f"# {'x' * 9000}\n{longest}\r\n")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["factor", "check", write(f"{longest} ;")]) == 1
    assert len(capsys.readouterr().out) < 500


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_file_without_end_is_a_bad_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factor", "check", "/dev/full"]) == 2
    assert "no line end" in capsys.readouterr().err


RUN = "import sys; from qlib_llm_alpha.cli import main; sys.exit(main())"


def test_a_reader_that_leaves_ends_the_command_quietly(write) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    call = [sys.executable, "-c", RUN, "factor", "check", write("$close\n" * 3)]
    done = subprocess.run(call, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
