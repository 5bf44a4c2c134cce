"""``qlib-llm-alpha mine``: sessions on a provider's files, every trial counted, nothing after the end read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.cli import main
from qlib_llm_alpha.data.provider_files import read_calendar
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.library.factor_set import load_factor_set
from tests.support.provider import START, VALID

SEARCH = ("--start", START, "--end", "2020-07-31")
PLANTED = "1-$open/Ref($close,1)"


@pytest.fixture
def call(small_provider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return what runs the command and gives its code, what it printed and what it complained."""

    def called(*options: str, out: str = "session") -> tuple[int, str, str]:
        folders = ["--ledger", str(tmp_path / "ledger"), "--out", str(tmp_path / out)]
        code = main(["mine", "--provider", str(small_provider), "--universe", "csi300", *options, *folders])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return called


def test_a_session_is_written_counted_and_told(call, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text(f"fade: {PLANTED}\n$close/Ref($close,3)-1\n")
    code, printed, _ = call(*SEARCH, "--trials", "15", "--formulas", str(file))
    assert code == 0
    assert "No bar after 2020-07-31 was read" in printed
    facts = json.loads((tmp_path / "session" / "session.json").read_text())
    assert facts["candidates"] == 17
    verdicts = pd.read_parquet(tmp_path / "session" / "verdicts.parquet")
    assert set(verdicts["proposer"]) == {"human", "random"}
    ledger = TrialLedger(tmp_path / "ledger")
    assert ledger.count() == facts["scored"]
    assert set(ledger.trials()["run"]) == {"session"}
    assert ledger.tune_reads() == 0


def test_the_same_session_twice_gives_the_same_files_and_no_new_trial(call, tmp_path: Path) -> None:
    call(*SEARCH, "--trials", "10", "--seed", "3")
    before = TrialLedger(tmp_path / "ledger").count()
    call(*SEARCH, "--trials", "10", "--seed", "3", out="again")
    for name in ("session.json", "verdicts.parquet", "series.parquet", "report.md"):
        assert (tmp_path / "session" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert TrialLedger(tmp_path / "ledger").count() == before


def test_tune_is_read_only_for_what_was_admitted_and_counted(call, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text(f"fade: {PLANTED}\n")
    options = (*SEARCH, "--tune", *VALID, "--trials", "0", "--formulas", str(file))
    code, _, _ = call(*options, "--alpha", "1.0", "--json")
    assert code == 0
    facts = json.loads((tmp_path / "session" / "session.json").read_text())
    ledger = TrialLedger(tmp_path / "ledger")
    assert ledger.tune_reads() == facts["admitted"] == len(facts["tune"])
    for row in ledger.chain.rows("tune_read"):
        assert (row.body["basis"]["start"], row.body["basis"]["end"]) == VALID
    if facts["admitted"]:
        assert load_factor_set(tmp_path / "session" / "library.yaml").names == ("fade",)


def test_a_folder_with_a_session_is_refused_before_anything_is_computed(call, tmp_path: Path) -> None:
    call(*SEARCH, "--trials", "5")
    before = TrialLedger(tmp_path / "ledger").head()
    code, _, complaint = call(*SEARCH, "--trials", "5", "--seed", "9")
    assert code == 2
    assert "holds a session" in complaint
    assert TrialLedger(tmp_path / "ledger").head() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--start", "2020-07-31", "--end", "2020-01-02"), "start <= end"),
        (("--start", START, "--end", "2020-07-31", "--tune", "2020-06-01", "2020-12-31"), "not after"),
        (("--start", "2020-07-01", "--end", "2020-07-31"), "begin search earlier"),
        ((*SEARCH, "--formulas", "no such set"), "no file"),
        ((*SEARCH, "--alpha", "0"), "alpha is 0.0"),
        ((*SEARCH, "--trials", "0"), "something to judge"),
        ((*SEARCH, "--seed", "-1"), "seed is -1"),
        ((*SEARCH, "--tune", "2030-01-01", "2030-12-31"), "no day left"),
        ((*SEARCH, "--trials", "-5"), "trials is -5"),
        ((*SEARCH, "--label", "$close/Ref($close,1)"), "reads no later day"),
    ],
)
def test_a_bad_call_says_what_to_do(call, options: tuple[str, ...], words: str) -> None:
    code, _, complaint = call("--trials", "5", *options)
    assert code == 2
    assert words in complaint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--documents", "notes"), "--documents was given, and no language model is asked"),
        (("--proposer", "genetic", "--mode", "live", "--charts", "2"), "--mode, --charts was given"),
        (("--proposer", "genetic", "--chat"), "expected it alone"),
        (("--proposer", "genetic", "--proposer", "random"), "`mine compare` takes several"),
    ],
)
def test_options_of_a_model_without_a_model_are_refused(call, options: tuple[str, ...], words: str) -> None:
    code, _, complaint = call(*SEARCH, "--trials", "5", *options)
    assert (code, words in complaint) == (2, True)


def test_a_ledger_or_a_session_that_is_a_file_is_refused_before_anything_is_computed(call, tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("")
    code, _, complaint = call(*SEARCH, "--trials", "5")
    assert (code, "is a file" in complaint) == (2, True)
    (tmp_path / "ledger").unlink()
    (tmp_path / "session").write_text("")
    code, _, complaint = call(*SEARCH, "--trials", "5")
    assert (code, "is a file" in complaint) == (2, True)
    assert not (tmp_path / "ledger").exists()


def test_a_field_that_begins_after_search_changes_nothing(
    small_provider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Proposals are made of the fields that have a value by the end of search."""
    written = []
    for name in ("without", "later"):
        provider = Path(shutil.copytree(small_provider, tmp_path / name))
        for file in provider.glob("features/*/vwap.day.bin"):
            if name == "without":
                file.unlink()
            else:
                values = np.fromfile(file, dtype="<f4")
                reaches_the_end = int(values[0]) + len(values) - 1 == len(read_calendar(provider))
                values[1 : -20 if reaches_the_end else None] = np.nan
                values.tofile(file)
        out = tmp_path / f"session {name}"
        options = ["--provider", str(provider), "--universe", "csi300", "--trials", "20", "--out", str(out)]
        assert main(["mine", *SEARCH, *options, "--ledger", str(tmp_path / f"ledger {name}")]) == 0
        written.append(pd.read_parquet(out / "verdicts.parquet"))
    capsys.readouterr()
    pd.testing.assert_frame_equal(*written)
