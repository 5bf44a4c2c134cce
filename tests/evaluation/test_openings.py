"""Openings of sealed: the same again is logged, another is refused, and force is never forgotten."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha import chain
from qlib_llm_alpha.chain import Row
from qlib_llm_alpha.errors import ChainError, ConfigError, WallError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.openings import Opening, OpeningKey, check_opening, open_segment

A = OpeningKey("config-a", "set-1", "data-1", "csi300", "2023-01-03", "2024-12-31")
B = replace(A, configuration="config-b")
C = replace(A, configuration="config-c")


@pytest.fixture
def ledger(tmp_path: Path) -> TrialLedger:
    return TrialLedger(tmp_path)


def refused(ledger: TrialLedger, key: OpeningKey, **how: object) -> str:
    """Return the message with which an opening is refused, by the check and by the opening alike."""
    before = ledger.head()
    with pytest.raises(WallError) as early:
        check_opening(ledger, key, **how)  # type: ignore[arg-type]
    with pytest.raises(WallError) as late:
        open_segment(ledger, key, **how)  # type: ignore[arg-type]
    assert str(early.value) == str(late.value)
    assert ledger.head() == before, "a refusal writes nothing"
    return str(late.value)


def test_the_first_opening_is_accepted_and_logged(ledger: TrialLedger) -> None:
    opening = open_segment(ledger, A, run="run-1")
    assert opening == Opening(A, repeated=False, forced="", study="", cells=1, openings=1, row=0, spent=False)
    (row,) = ledger.openings()
    assert row.body["run"] == "run-1"
    assert OpeningKey(**row.body["key"]) == A


def test_a_check_writes_nothing(ledger: TrialLedger) -> None:
    check_opening(ledger, A)
    assert ledger.openings() == []


def test_the_same_key_again_is_logged_and_not_refused(ledger: TrialLedger) -> None:
    open_segment(ledger, A)
    again = open_segment(ledger, A)
    assert (again.repeated, again.openings, again.row, again.spent) == (True, 1, 1, False)
    assert len(ledger.openings()) == 2


@pytest.mark.parametrize(
    "other",
    [
        B,
        replace(A, factor_set="set-2"),
        replace(A, data="data-2"),
        replace(A, market="CSI300"),
        replace(A, end="2024-12-30"),
        replace(B, start="2024-12-31", end="2025-06-30"),
        replace(B, start="2022-01-04", end="2023-01-03"),
        replace(B, start="2023-06-01", end="2023-06-01"),
    ],
    ids=["configuration", "factor set", "data", "upper case", "a day less", "its last day", "its first day", "inside"],
)
def test_another_key_on_a_shared_day_is_refused(ledger: TrialLedger, other: OpeningKey) -> None:
    open_segment(ledger, A)
    assert "were opened by configuration 'config-a'" in refused(ledger, other)


def test_the_refusal_says_who_opened_when_and_the_three_ways_out(ledger: TrialLedger) -> None:
    open_segment(ledger, A)
    message = refused(ledger, B)
    assert "the sealed dates 2023-01-03 to 2024-12-31 of 'csi300'" in message
    assert f"on {ledger.openings()[0].time[:19]} UTC" in message
    assert "given was configuration 'config-b'" in message
    for way in ("Run the same configuration again", "declare study and cells before", "force with a reason"):
        assert way in message


@pytest.mark.parametrize(
    "other",
    [
        replace(B, market="sp500", data="data-2"),
        replace(B, start="2025-01-01", end="2025-12-31"),
        replace(B, start="2021-01-01", end="2023-01-02"),
    ],
    ids=["another market", "the day after", "the day before"],
)
def test_another_market_or_disjoint_dates_are_another_segment(ledger: TrialLedger, other: OpeningKey) -> None:
    open_segment(ledger, A)
    opening = open_segment(ledger, other)
    assert (opening.repeated, opening.openings, opening.spent) == (False, 1, False)


def test_the_same_data_under_another_name_of_the_market_is_the_same_segment(ledger: TrialLedger) -> None:
    open_segment(ledger, A)
    refused(ledger, replace(B, market="sp500"))


def test_a_range_that_bridges_two_disjoint_ones_is_refused(ledger: TrialLedger) -> None:
    open_segment(ledger, A)
    open_segment(ledger, replace(B, start="2025-01-01", end="2025-12-31"))
    refused(ledger, replace(C, start="2024-06-01", end="2025-06-30"))


def test_force_is_logged_and_the_segment_is_spent_ever_after(ledger: TrialLedger) -> None:
    open_segment(ledger, A)
    forced = open_segment(ledger, B, force="a reviewer asked")
    assert (forced.forced, forced.spent, forced.openings, forced.repeated) == ("a reviewer asked", True, 2, False)
    again = open_segment(ledger, A)
    assert (again.repeated, again.forced, again.spent, again.openings) == (True, "", True, 2)
    assert open_segment(ledger, B).spent
    assert [row.body["spent"] for row in ledger.openings()] == [False, True, True, True]
    refused(ledger, C)


def test_force_does_not_spend_other_dates_or_markets(ledger: TrialLedger) -> None:
    open_segment(ledger, A)
    open_segment(ledger, B, force="a reviewer asked")
    assert not open_segment(ledger, replace(C, market="sp500", data="data-2")).spent
    assert not open_segment(ledger, replace(C, start="2025-01-01", end="2025-12-31")).spent


def test_a_force_that_was_not_needed_is_no_force(ledger: TrialLedger) -> None:
    opening = open_segment(ledger, A, force="to be safe")
    assert (opening.forced, opening.spent) == ("", False)


def test_a_study_opens_as_many_cells_as_it_declared(ledger: TrialLedger) -> None:
    first = open_segment(ledger, A, study="costs", cells=2)
    second = open_segment(ledger, B, study="costs", cells=2)
    assert (first.openings, second.openings, second.study, second.cells, second.spent) == (1, 2, "costs", 2, False)
    assert "the 2 cells of study 'costs' are used up" in refused(ledger, C, study="costs", cells=2)
    again = open_segment(ledger, A, study="costs", cells=2)
    assert (again.repeated, again.openings, again.spent) == (True, 2, False)


def test_a_study_keeps_the_number_of_cells_that_it_began_with(ledger: TrialLedger) -> None:
    open_segment(ledger, A, study="costs", cells=2)
    for key in (A, B, replace(B, market="sp500")):
        message = refused(ledger, key, study="costs", cells=3)
        assert "study 'costs' is opened with 3 cells; expected 2" in message
        assert ledger.openings()[0].time[:10] in message
    assert open_segment(ledger, B, study="costs", cells=3, force="the grid grew").spent
    refused(ledger, C, study="costs", cells=3)


def test_a_cell_that_is_opened_again_without_its_study_still_belongs_to_it(ledger: TrialLedger) -> None:
    open_segment(ledger, A, study="costs", cells=2)
    again = open_segment(ledger, A)
    assert (again.repeated, again.study, again.cells) == (True, "costs", 2)
    assert not open_segment(ledger, B, study="costs", cells=2).spent


def test_a_study_declared_afterwards_does_not_help(ledger: TrialLedger) -> None:
    open_segment(ledger, A)
    refused(ledger, B, study="costs", cells=2)
    open_segment(ledger, A, study="costs", cells=2)
    refused(ledger, B, study="costs", cells=2)


def test_one_study_does_not_open_what_another_opened(ledger: TrialLedger) -> None:
    open_segment(ledger, A, study="costs", cells=2)
    refused(ledger, B, study="lags", cells=2)
    refused(ledger, B)


def test_cells_are_counted_over_markets(ledger: TrialLedger) -> None:
    open_segment(ledger, A, study="grid", cells=3)
    open_segment(ledger, replace(A, market="sp500"), study="grid", cells=3)
    open_segment(ledger, B, study="grid", cells=3)
    refused(ledger, C, study="grid", cells=3)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"cells": 2}, "cells is 2 without a study"),
        ({"cells": 0, "study": "s"}, "cells is 0; expected"),
        ({"cells": True, "study": "s"}, "cells is True"),
        ({"cells": 1.5, "study": "s"}, "cells is 1.5"),
        ({"force": True}, "force is True; expected words"),
        ({"force": "  "}, "force is '  '"),
        ({"study": None}, "study is None"),
    ],
)
def test_an_opening_that_means_nothing_is_refused(ledger: TrialLedger, how: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        open_segment(ledger, A, **how)  # type: ignore[arg-type]
    assert ledger.openings() == []


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("configuration", "", "configuration of an opening is ''"),
        ("market", None, "market of an opening is None"),
        ("start", "2025-01-01", "expected start <= end"),
        ("end", "2024-12-31 00:00:00", "expected a day as YYYY-MM-DD"),
    ],
)
def test_a_key_that_means_nothing_is_refused(field: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        replace(A, **{field: value})  # type: ignore[arg-type]


DAYS = st.integers(0, 9).map(lambda n: f"2023-01-0{n}" if n else "2022-12-31")


@given(DAYS, DAYS, DAYS, DAYS)
def test_two_ranges_conflict_just_when_they_share_a_day(a: str, b: str, c: str, d: str) -> None:
    one = replace(A, start=min(a, b), end=max(a, b))
    other = replace(B, start=min(c, d), end=max(c, d))
    days = ["2022-12-31", *(f"2023-01-0{n}" for n in range(1, 10))]
    shared = any(one.start <= day <= one.end and other.start <= day <= other.end for day in days)
    assert one.conflicts(other) == other.conflicts(one) == shared


def test_nobody_else_can_write_between_the_check_and_the_log(
    ledger: TrialLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, attempts = ledger.openings, []

    def openings_while_another_tries() -> list[Row]:
        attempts.append(append_elsewhere(ledger))
        return read()

    monkeypatch.setattr(chain, "LOCK_WAIT_S", 0.05)
    monkeypatch.setattr(ledger, "openings", openings_while_another_tries)
    open_segment(ledger, A)
    assert attempts == ["kept out"]


def append_elsewhere(ledger: TrialLedger) -> str:
    """Try to append from another thread."""
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(ledger.chain.append, [("trial", {})]).result()
        except ChainError:
            return "kept out"
    return "came in"


RACING = """
import sys
from dataclasses import replace
from qlib_llm_alpha.errors import WallError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.openings import OpeningKey, open_segment
ledger = TrialLedger(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    open_segment(ledger, OpeningKey(sys.argv[2], "set", "data", "csi300", "2023-01-03", "2024-12-31"))
    print("opened")
except WallError:
    print("refused")
"""


def test_of_processes_that_race_with_different_keys_exactly_one_wins(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, str(tmp_path), f"config-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    ends = sorted(racer.communicate(timeout=120)[0].strip() for racer in racers)
    assert ends == ["opened", "refused", "refused"]
    assert len(TrialLedger(tmp_path).openings()) == 1
