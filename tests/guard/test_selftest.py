from __future__ import annotations

import json

import pytest

from qlib_llm_alpha import wiring
from qlib_llm_alpha.cli import main
from qlib_llm_alpha.guard import selftest
from qlib_llm_alpha.guard.selftest import SelfTestRow, self_test


@pytest.mark.slow
def test_every_row_is_as_expected() -> None:
    seen: list[tuple[int, int]] = []
    rows = self_test(trials=100, progress=lambda done, total: seen.append((done, total)))
    assert [row.question for row in rows if not row.passed] == []
    assert seen[-1] == (len(rows), len(rows))
    assert len(rows) == 8


def test_a_language_that_lets_tomorrow_pass_fails_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "parse", lambda text, **_: text)
    assert selftest._look_ahead()[3] is False


def test_walls_that_let_segments_overlap_fail_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open:
        @classmethod
        def from_segments(cls, segments: object) -> object:
            return segments

    monkeypatch.setattr(selftest, "Walls", Open)
    assert selftest._overlapping_segments()[3] is False


def test_openings_that_nobody_refuses_fail_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "open_segment", lambda *_: None)
    assert selftest._second_opening()[3] is False


def test_a_ledger_that_notices_nothing_fails_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest.TrialLedger, "verify", lambda self: [])
    assert selftest._changed_byte()[3] is False


def test_an_admission_that_admits_everything_fails_the_row_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = selftest.mine
    rules = selftest_rules(alpha=1.0, least_t=0.0)
    monkeypatch.setattr(selftest, "mine", lambda *given, **more: whole(*given, rules=rules, **more))
    assert selftest._noise(0, 5)[3] is False


def selftest_rules(**settings: float) -> object:
    from qlib_llm_alpha.mining.admission import Rules

    return Rules(draws=200, **settings)


def test_a_selector_that_rejects_everything_fails_the_row_of_the_plant(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = selftest.mine
    rules = selftest_rules(least_t=99.0)
    monkeypatch.setattr(selftest, "mine", lambda *given, **more: whole(*given, rules=rules, **more))
    assert selftest._planted(0, 5)[3] is False


ROWS = [
    SelfTestRow("a question that is long enough to be broken over more than one line of it", "yes", "yes", True, 1.5),
    SelfTestRow("another", "refused", "accepted", False, 0.1),
]


def test_the_command_prints_a_table_and_fails_when_a_row_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wiring, "run_self_test", lambda **_: ROWS)
    assert main(["selftest"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert "1 of 2 as expected" in printed
    monkeypatch.setattr(wiring, "run_self_test", lambda **_: ROWS[:1])
    assert main(["selftest", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_a_negative_seed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--seed", "-1"]) == 2
    assert "expected no negative number" in capsys.readouterr().err
