"""``qlib-llm-alpha ledger``: shows, verifies, and says in its exit code what it found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.cli import main
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.ledger import Trial, TrialLedger
from qlib_llm_alpha.evaluation.openings import OpeningKey, open_segment

BASIS = Basis("Ref($close,-2)/Ref($close,-1)-1", 2, "ic", "csi300", "members", "2020-01-01", "2020-12-31", None, None)
KEY = OpeningKey("config-a", "set-1", "data-1", "csi300", "2021-01-04", "2021-12-31")


@pytest.fixture
def ledger(tmp_path: Path) -> TrialLedger:
    """Return a ledger of 6 independent trials over 120 days."""
    ledger = TrialLedger(tmp_path)
    days = np.arange("2020-01-01", "2020-04-30", dtype="datetime64[D]")
    series = np.random.default_rng(3).normal(size=(len(days), 6))
    trials = [Trial(f"id-{n}", "$close", "random", "rejected", "weak") for n in range(5)]
    trials.append(Trial("id-5", "$open", "a \x1b[31mmodel", "admitted"))
    ledger.record(trials, series, days, basis=BASIS, data="data-1", run="run-1")
    ledger.record_tune_reads({"ladder": 3}, basis=BASIS, data="data-1", run="run-1")
    open_segment(ledger, KEY, study="costs", cells=2)
    open_segment(ledger, replace(KEY, configuration="config-b"), force="a reviewer asked")
    return ledger


def test_show_counts_trials_reads_and_openings(ledger: TrialLedger, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "show", "--ledger", str(ledger.folder)]) == 0
    out = capsys.readouterr().out
    assert "6 trials, 6 scorings, effective trials " in out
    assert "5  proposed by random" in out
    assert "5  rejected (weak)" in out
    assert "1  admitted\n" in out
    assert "Reads of tune: 3" in out
    assert "Openings of sealed: 2" in out
    assert "1 distinct so far; study costs, 2 cells" in out
    assert "2 distinct so far; forced: a reviewer asked; spent" in out
    assert "\x1b" not in out


def test_show_gives_json(ledger: TrialLedger, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "show", "--ledger", str(ledger.folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["trials"], shown["scorings"]) == (6, 6)
    assert 4 < shown["effective_trials"] < 8, "six independent trials are about six"
    assert shown["by_verdict"][0] == {"verdict": "rejected", "reason": "weak", "trials": 5}
    assert [opening["spent"] for opening in shown["openings"]] == [False, True]


def test_series_too_short_to_be_compared_count_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TrialLedger(tmp_path).record(
        [Trial("id", "$close", "human")],
        np.ones((2, 1)),
        np.arange("2020-01-01", "2020-01-03", dtype="datetime64[D]"),
        basis=BASIS,
        data="d",
        run="r",
    )
    assert main(["ledger", "show", "--ledger", str(tmp_path)]) == 0
    assert "effective trials 1.0" in capsys.readouterr().out


def test_verify_of_a_whole_ledger_exits_0(ledger: TrialLedger, capsys: pytest.CaptureFixture[str]) -> None:
    anchor = f"{ledger.head().count}:{ledger.head().hash}"
    assert main(["ledger", "verify", "--ledger", str(ledger.folder), "--anchor", anchor]) == 0
    assert "as they were written" in capsys.readouterr().out
    assert main(["ledger", "verify", "--ledger", str(ledger.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_show_prints_the_anchor_that_verify_takes(ledger: TrialLedger, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ledger", "show", "--ledger", str(ledger.folder)])
    anchor = capsys.readouterr().out.split("anchor ")[1].split()[0]
    assert main(["ledger", "verify", "--ledger", str(ledger.folder), "--anchor", anchor]) == 0
    assert main(["ledger", "verify", "--ledger", str(ledger.folder), "--anchor", f"1{anchor}"]) == 1
    short = anchor[: anchor.index(":") + 11]
    assert main(["ledger", "verify", "--ledger", str(ledger.folder), "--anchor", short]) == 0
    other = short[:-1] + ("0" if short[-1] != "0" else "1")
    assert main(["ledger", "verify", "--ledger", str(ledger.folder), "--anchor", other]) == 1
    assert "the end was cut off" in capsys.readouterr().out


def test_verify_names_the_faults_and_exits_1(ledger: TrialLedger, capsys: pytest.CaptureFixture[str]) -> None:
    path = ledger.chain.path
    path.write_bytes(path.read_bytes().replace(b'"ladder":3', b'"ladder":1'))
    assert main(["ledger", "verify", "--ledger", str(ledger.folder)]) == 1
    assert capsys.readouterr().out.startswith("row 6: row 6 was changed")
    assert main(["ledger", "verify", "--ledger", str(ledger.folder), "--json"]) == 1
    assert [fault["row"] for fault in json.loads(capsys.readouterr().out)] == [6]
    assert main(["ledger", "show", "--ledger", str(ledger.folder)]) == 2, "nothing is counted in a damaged ledger"


def test_verify_of_a_ledger_whose_rows_were_deleted_exits_1(
    ledger: TrialLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.chain.path.unlink()
    assert main(["ledger", "verify", "--ledger", str(ledger.folder)]) == 1
    assert "missing, while its head file is there" in capsys.readouterr().out


@pytest.mark.parametrize("anchor", ["7", "7:abc", "x:" + "0" * 64, "-1:" + "0" * 64])
def test_an_anchor_that_is_none_is_a_bad_call(
    ledger: TrialLedger, anchor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledger", "verify", "--ledger", str(ledger.folder), f"--anchor={anchor}"]) == 2
    assert "expected the number of rows, a colon and at least 10 digits" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["show", "verify"])
def test_a_folder_without_a_ledger_is_a_bad_call(
    tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledger", action, "--ledger", str(tmp_path)]) == 2
    assert "holds no trial ledger" in capsys.readouterr().err
