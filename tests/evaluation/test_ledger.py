"""The trial ledger: every candidate is counted once, its series is kept, and nothing can be taken out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha import chain
from qlib_llm_alpha.chain import Head, Row
from qlib_llm_alpha.errors import ChainError, ConfigError, PanelError
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.ledger import TRIAL_COLUMNS, Trial, TrialLedger, open_ledger, summarise
from qlib_llm_alpha.evaluation.openings import OpeningKey, open_segment
from tests.evaluation.test_openings import append_elsewhere

BASIS = Basis(
    label="Ref($close,-2)/Ref($close,-1)-1",
    horizon=2,
    ic_kind="rank_ic",
    universe="csi300",
    membership="members of the day",
    start="2020-01-01",
    end="2020-12-31",
    cost_bps=None,
    trials=None,
)
DAYS = np.arange("2020-03-02", "2020-03-06", dtype="datetime64[D]")
MOMENTUM = Trial("id-momentum", "$close/Ref($close,5)-1", "seed", "admitted", "", ic=0.03, t=3.5)
NOISE = Trial("id-noise", "Std($volume,3)", "random", "rejected", "weak", ic=-0.001, t=float("nan"))
SERIES = np.array([[0.1, -0.2], [0.0, np.nan], [0.05, 0.3], [-0.1, 1e-300]])


@pytest.fixture
def ledger(tmp_path: Path) -> TrialLedger:
    return TrialLedger(tmp_path / "ledger")


def note(ledger: TrialLedger, *trials: Trial, basis: Basis = BASIS, data: str = "data-1", run: str = "run-1") -> int:
    return ledger.record(trials, None, DAYS, basis=basis, data=data, run=run)


def note_two(ledger: TrialLedger, series: np.ndarray = SERIES, days: np.ndarray = DAYS) -> int:
    return ledger.record([MOMENTUM, NOISE], series, days, basis=BASIS, data="data-1", run="run-1", seed=7)


def parquet_files(ledger: TrialLedger) -> list[Path]:
    return sorted((ledger.folder / "series").iterdir())


# Trials


def test_a_ledger_that_nobody_wrote_to_is_empty_and_looking_writes_nothing(ledger: TrialLedger) -> None:
    assert ledger.count() == ledger.tune_reads() == 0
    assert list(ledger.trials().columns) == list(TRIAL_COLUMNS)
    assert ledger.trials().empty
    assert ledger.series().shape == (0, 0)
    assert ledger.openings() == []
    assert ledger.verify() == []
    assert not ledger.folder.exists()


def test_what_was_recorded_comes_back(ledger: TrialLedger) -> None:
    assert note_two(ledger) == 2
    table = ledger.trials()
    assert list(table.index) == [0, 1]
    first, second = table.iloc[0], table.iloc[1]
    assert (first["factor_id"], first["expression"], first["proposer"]) == (
        "id-momentum",
        "$close/Ref($close,5)-1",
        "seed",
    )
    assert (first["verdict"], first["reason"], first["ic"], first["t"]) == ("admitted", "", 0.03, 3.5)
    assert (first["data"], first["run"], first["seed"]) == ("data-1", "run-1", 7)
    assert (second["verdict"], second["reason"]) == ("rejected", "weak")
    assert np.isnan(second["t"])
    for name in ("label", "horizon", "ic_kind", "universe", "membership", "start", "end"):
        assert first[name] == getattr(BASIS, name)


def test_a_trial_that_is_scored_again_is_logged_and_not_counted(ledger: TrialLedger) -> None:
    assert note(ledger, MOMENTUM) == 1
    assert note(ledger, replace(MOMENTUM, proposer="genetic", ic=0.5), NOISE, run="run-2") == 1
    assert note(ledger, NOISE, NOISE) == 0
    assert ledger.count() == 2
    assert len(list(ledger.chain.rows("trial"))) == 5
    assert ledger.trials().loc[0, "proposer"] == "seed", "the first scoring counts"


def test_the_same_formula_twice_in_a_batch_is_one_trial(ledger: TrialLedger) -> None:
    assert note(ledger, NOISE, NOISE, MOMENTUM) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"label": "Ref($close,-6)/Ref($close,-1)-1"},
        {"ic_kind": "ic"},
        {"universe": "csi500"},
        {"start": "2019-01-01"},
        {"end": "2021-12-31"},
    ],
)
def test_another_label_kind_universe_or_period_is_another_trial(ledger: TrialLedger, change: dict[str, object]) -> None:
    note(ledger, MOMENTUM)
    assert note(ledger, MOMENTUM, basis=replace(BASIS, **change)) == 1  # type: ignore[arg-type]
    assert ledger.count() == 2


def test_other_data_are_another_trial_and_another_run_or_n_is_not(ledger: TrialLedger) -> None:
    note(ledger, MOMENTUM)
    assert note(ledger, MOMENTUM, data="data-2") == 1
    assert note(ledger, MOMENTUM, run="run-2") == 0
    assert note(ledger, MOMENTUM, basis=replace(BASIS, trials=99, cost_bps=10.0)) == 0


def test_trials_can_be_asked_for_by_data_and_run(ledger: TrialLedger) -> None:
    note(ledger, MOMENTUM)
    note(ledger, MOMENTUM, NOISE, run="run-2")
    note(ledger, NOISE, data="data-2", run="run-2")
    assert ledger.count() == 3
    assert ledger.count(run="run-2") == 3, "a run tried what it scored, also when another did before"
    assert ledger.count(data="data-1", run="run-2") == 2
    assert ledger.count(data="data-2") == 1
    assert ledger.count(run="unheard of") == 0
    assert list(ledger.trials(run="run-2").index) == [1, 2, 3]


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=5))
def test_the_counts_of_new_trials_add_up_to_the_count(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    ledger = TrialLedger(tmp_path_factory.mktemp("ledger"))
    new = [note(ledger, *(replace(NOISE, factor_id=f"id-{one}") for one in batch)) for batch in batches]
    different = {one for batch in batches for one in batch}
    assert sum(new) == ledger.count() == len(ledger.trials()) == len(different)


def test_trials_without_a_name_are_refused(ledger: TrialLedger) -> None:
    for nameless in (replace(NOISE, factor_id=""), replace(NOISE, proposer="")):
        with pytest.raises(ConfigError, match="has no factor_id or no proposer"):
            note(ledger, MOMENTUM, nameless)
    assert ledger.count() == 0


def test_a_batch_of_none_writes_nothing(ledger: TrialLedger) -> None:
    assert ledger.record([], np.empty((4, 0)), DAYS, basis=BASIS, data="data-1", run="run-1") == 0
    assert not ledger.folder.exists()


# Series


def test_series_come_back_bit_by_bit_under_the_rows_of_their_trials(ledger: TrialLedger) -> None:
    note_two(ledger)
    series = ledger.series()
    np.testing.assert_array_equal(series.to_numpy(), SERIES)
    assert series.index.name == "datetime"
    assert list(series.index) == list(pd.to_datetime(DAYS))
    assert list(series.columns) == list(ledger.trials().index)
    (file,) = parquet_files(ledger)
    assert file.stem == hashlib.sha256(file.read_bytes()).hexdigest()


def test_series_of_other_days_are_aligned(ledger: TrialLedger) -> None:
    note_two(ledger)
    later = replace(NOISE, factor_id="id-later")
    ledger.record([later], np.array([[1.0], [2.0]]), DAYS[2:] + 2, basis=BASIS, data="data-1", run="run-2")
    joined = ledger.series()
    assert list(joined.index) == list(pd.to_datetime(np.append(DAYS, DAYS[2:] + 2)))
    assert list(joined.columns) == [0, 1, 2]
    np.testing.assert_array_equal(joined[2].to_numpy(), [np.nan] * 4 + [1.0, 2.0])
    np.testing.assert_array_equal(joined[0].to_numpy(), [*SERIES[:, 0], np.nan, np.nan])
    assert ledger.series(run="run-2").shape == (2, 1)


def test_the_series_of_a_trial_is_that_of_its_first_scoring(ledger: TrialLedger) -> None:
    note_two(ledger)
    note_two(ledger, SERIES + 1)
    np.testing.assert_array_equal(ledger.series().to_numpy(), SERIES)


def test_a_trial_without_series_has_no_column_until_it_gets_one(ledger: TrialLedger) -> None:
    note(ledger, NOISE)
    assert ledger.series().shape == (0, 0)
    note_two(ledger)
    joined = ledger.series()
    assert list(joined.columns) == [0, 1]
    np.testing.assert_array_equal(joined[0].to_numpy(), SERIES[:, 1])
    np.testing.assert_array_equal(joined[1].to_numpy(), SERIES[:, 0])


def test_batches_with_the_same_series_share_a_file(ledger: TrialLedger) -> None:
    note_two(ledger)
    ledger.record([MOMENTUM, NOISE], SERIES, DAYS, basis=BASIS, data="data-2", run="run-1")
    assert len(parquet_files(ledger)) == 1
    np.testing.assert_array_equal(ledger.series().to_numpy(), np.hstack([SERIES, SERIES]))


@pytest.mark.parametrize(
    ("series", "days", "expected"),
    [
        (SERIES[:, :1], DAYS, r"series have shape \(4, 1\); expected \(T, K\) = \(4, 2\)"),
        (SERIES[:3], DAYS, r"shape \(3, 2\); expected"),
        (np.where(np.isnan(SERIES), np.inf, SERIES), DAYS, "series hold infinity"),
        (SERIES, DAYS[::-1], "expected strictly increasing days"),
        (SERIES, DAYS + 365, "an IC dated 2021-03-02; expected none outside the period"),
    ],
)
def test_series_that_do_not_fit_are_refused(
    ledger: TrialLedger, series: np.ndarray, days: np.ndarray, expected: str
) -> None:
    with pytest.raises(PanelError, match=expected):
        note_two(ledger, series, days)
    assert ledger.count() == 0


def test_days_outside_the_period_may_be_there_without_values(ledger: TrialLedger) -> None:
    empty = np.where(DAYS[:, None] == DAYS[-1], np.nan, SERIES)
    basis = replace(BASIS, end=str(DAYS[-2]))
    assert ledger.record([MOMENTUM, NOISE], empty, DAYS, basis=basis, data="data-1", run="run-1") == 2


# What was looked at


def test_reads_of_tune_add_up(ledger: TrialLedger) -> None:
    ledger.record_tune_reads({"early stopping": 12, "ladder": 3}, basis=BASIS, data="data-1", run="run-1")
    ledger.record_tune_reads({"ladder": np.int64(2)}, basis=BASIS, data="data-2", run="run-1")  # type: ignore[dict-item]
    ledger.record_tune_reads({}, basis=BASIS, data="data-2", run="run-1")
    assert ledger.tune_reads() == 17
    assert ledger.tune_reads(data="data-2") == 2
    assert ledger.tune_reads(run="run-2") == 0
    assert ledger.head().count == 2


@pytest.mark.parametrize("times", [-1, 1.5, True, None])
def test_reads_that_are_no_count_are_refused(ledger: TrialLedger, times: object) -> None:
    with pytest.raises(ConfigError, match="reads of tune are"):
        ledger.record_tune_reads({"ladder": times}, basis=BASIS, data="d", run="r")  # type: ignore[dict-item]


# What was changed


@given(st.data())
def test_any_flipped_byte_of_a_series_file_is_named_with_the_first_row_that_tells_of_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    ledger = TrialLedger(tmp_path_factory.mktemp("flip"))
    note(ledger, MOMENTUM)
    note_two(ledger)
    (file,) = parquet_files(ledger)
    raw = bytearray(file.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1), label="position")] ^= data.draw(st.integers(1, 255), label="flip")
    file.write_bytes(raw)
    (fault,) = ledger.verify(ledger.head())
    assert fault.row == 1
    assert f"series file {file.name} was changed" in fault.detail
    with pytest.raises(ChainError, match="was changed"):
        ledger.series()


def test_a_series_file_that_is_missing_is_named(ledger: TrialLedger) -> None:
    note_two(ledger)
    (file,) = parquet_files(ledger)
    file.unlink()
    assert [(fault.row, fault.detail) for fault in ledger.verify()] == [(0, f"series file {file.name} is missing")]
    with pytest.raises(ChainError, match="is missing; expected what was recorded; restore it"):
        ledger.series()


def test_recording_the_same_series_again_restores_its_file(ledger: TrialLedger) -> None:
    note_two(ledger)
    (file,) = parquet_files(ledger)
    file.write_bytes(b"")
    note_two(ledger)
    assert ledger.verify() == []


@pytest.mark.parametrize("use", [TrialLedger.count, TrialLedger.trials, TrialLedger.series, TrialLedger.openings])
def test_a_row_that_was_changed_is_named_and_nothing_is_counted(
    ledger: TrialLedger, use: Callable[[TrialLedger], object]
) -> None:
    note_two(ledger)
    path = ledger.chain.path
    path.write_bytes(path.read_bytes().replace(b'"weak"', b'"work"'))
    assert [fault.row for fault in ledger.verify()] == [1]
    with pytest.raises(ChainError, match="row 1"):
        use(ledger)
    with pytest.raises(ChainError, match="row 1"):
        note(ledger, MOMENTUM)


def test_a_ledger_that_was_deleted_but_for_its_head_is_refused(ledger: TrialLedger) -> None:
    note_two(ledger)
    ledger.chain.path.unlink()
    for use in (ledger.count, ledger.trials, ledger.openings, ledger.head, lambda: note_two(ledger)):
        with pytest.raises(ChainError, match="missing, while its head file is there"):
            use()
    assert len(ledger.verify()) == 1


def test_a_ledger_that_was_begun_anew_is_noticed_by_an_anchor(ledger: TrialLedger) -> None:
    note_two(ledger)
    anchor = ledger.head()
    for file in ledger.chain.files:
        file.unlink()
    note(ledger, MOMENTUM)
    assert ledger.verify() == []
    assert [fault.row for fault in ledger.verify(anchor)] == [anchor.count - 1]


def test_a_failure_between_series_and_rows_leaves_a_ledger_that_goes_on(
    ledger: TrialLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(entries: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(ledger.chain, "append", fail)
        with pytest.raises(OSError, match="no space"):
            note_two(ledger)
    assert ledger.count() == 0
    assert ledger.verify() == []
    assert note_two(ledger) == 2


def test_nobody_else_can_write_between_the_counting_and_the_rows(
    ledger: TrialLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, attempts = ledger.chain.rows, []

    def rows_while_another_tries(kind: str | None = None) -> Iterator[Row]:
        attempts.append(append_elsewhere(ledger))
        return read(kind)

    monkeypatch.setattr(chain, "LOCK_WAIT_S", 0.05)
    monkeypatch.setattr(ledger.chain, "rows", rows_while_another_tries)
    note_two(ledger)
    assert attempts == ["kept out"]


# For people


def test_a_ledger_to_look_at_must_be_there(ledger: TrialLedger) -> None:
    with pytest.raises(ConfigError, match="holds no trial ledger"):
        open_ledger(ledger.folder)
    note(ledger, MOMENTUM)
    assert open_ledger(ledger.folder).count() == 1
    ledger.chain.path.unlink()
    with pytest.raises(ChainError):
        open_ledger(ledger.folder).count()


def test_the_summary_counts_distinct_trials_reads_and_openings(ledger: TrialLedger) -> None:
    note_two(ledger)
    note(ledger, replace(MOMENTUM, proposer="genetic"), replace(NOISE, factor_id="id-3"), run="run-2")
    ledger.record_tune_reads({"ladder": 3}, basis=BASIS, data="data-1", run="run-1")
    ledger.record_tune_reads({"ladder": 2, "early stopping": 9}, basis=BASIS, data="data-1", run="run-2")
    key = OpeningKey("config", "set", "data-1", "csi300", "2021-01-04", "2021-12-31")
    open_segment(ledger, key, run="run-2")
    open_segment(ledger, replace(key, configuration="other"), force="asked for")
    found = summarise(ledger)
    assert (found.trials, found.scorings, found.effective_trials) == (3, 4, ledger.effective_trials())
    assert found.by_proposer == {"random": 2, "seed": 1}
    assert found.by_verdict == {("rejected", "weak"): 2, ("admitted", ""): 1}
    assert found.tune_reads == {"early stopping": 9, "ladder": 5}
    assert found.head == ledger.head() == Head(8, found.head.hash)
    assert [(one["row"], one["forced"], one["spent"]) for one in found.openings] == [
        (6, "", False),
        (7, "asked for", True),
    ]
    assert found.to_dict()["by_verdict"] == [
        {"verdict": "rejected", "reason": "weak", "trials": 2},
        {"verdict": "admitted", "reason": "", "trials": 1},
    ]


def test_the_summary_of_an_empty_ledger_counts_nothing(ledger: TrialLedger) -> None:
    found = summarise(ledger)
    assert (found.trials, found.scorings, found.head, found.openings) == (0, 0, ledger.head(), ())


def test_effective_trials_count_in_full_what_cannot_be_compared(tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path)
    days = np.arange("2020-01-01", "2020-12-31", dtype="datetime64[D]")
    basis = replace(BASIS, start=str(days[0]), end=str(days[-1]))
    alike = np.repeat(np.random.default_rng(0).normal(size=(len(days), 1)), 4, axis=1)
    ledger.record([Trial(f"a{n}", "$close", "human") for n in range(4)], alike, days, basis=basis, data="d", run="r")
    ledger.record([Trial(f"b{n}", "$close", "human") for n in range(3)], None, days, basis=basis, data="d", run="r")
    short = np.ones((20, 2))
    ledger.record(
        [Trial(f"c{n}", "$close", "human") for n in range(2)], short, days[:20], basis=basis, data="d", run="r"
    )
    assert ledger.effective_trials(data="d") == pytest.approx(1 + 3 + 2, abs=0.2)
    assert ledger.effective_trials(data="other") == 0.0
