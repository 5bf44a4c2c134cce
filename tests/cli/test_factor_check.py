"""``qlib-llm-alpha factor check``: verdicts, exit codes, bad calls."""

from __future__ import annotations

import io
import json
import sys
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
