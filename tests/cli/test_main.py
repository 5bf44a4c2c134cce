"""How the command line ends when a command does not: one line on standard error and an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qlib_llm_alpha import wiring
from qlib_llm_alpha.cli import main
from qlib_llm_alpha.errors import LLMError
from qlib_llm_alpha.llm.audit import JOURNAL
from qlib_llm_alpha.llm.journal import Journal

MINE = ["mine", "--provider", "market", "--start", "2019-01-01", "--end", "2019-12-31", "--out"]


@pytest.fixture
def mining(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes a session end with an error, once its folder is there or before."""

    def ends_with(error: BaseException, *, begun: bool = True) -> None:
        def mine_factors(*_: object, out: Path, **__: object) -> None:
            if begun:
                out.mkdir()
            raise error

        monkeypatch.setattr(wiring, "mine_factors", mine_factors)

    return ends_with


def test_an_interrupted_session_says_how_to_go_on(
    mining: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mining(KeyboardInterrupt())
    assert main([*MINE, str(tmp_path / "session")]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qlib-llm-alpha: interrupted; what was answered is kept in ")
    assert line.endswith("session; repeat the call with --resume to go on")


def test_an_interrupt_before_there_is_a_session_says_no_more(
    mining: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mining(KeyboardInterrupt(), begun=False)
    assert main([*MINE, str(tmp_path / "session")]) == 130
    assert capsys.readouterr().err == "qlib-llm-alpha: interrupted\n"


def test_an_interrupted_probe_of_memory_is_repeated_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe(provider: Path, universe: str, out: Path, **_: object) -> None:
        Journal(out / JOURNAL).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(wiring, "probe_model_memory", probe)
    asked = ["guard", "memory", "--provider", "market", "--start", "2019-01-01", "--end", "2019-12-31", "--out"]
    assert main([*asked, str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith(f"kept in {tmp_path}; repeat the call to go on\n")


def test_other_peoples_words_in_an_error_command_no_terminal(
    mining: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mining(LLMError("recording 'a\x1b]0;owned\x07' is none"))
    assert main([*MINE, str(tmp_path / "session")]) == 2
    assert capsys.readouterr().err == "qlib-llm-alpha: recording 'a\\x1b]0;owned\\x07' is none\n"
