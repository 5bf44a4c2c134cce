from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.ledger import Trial, TrialLedger
from qlib_llm_alpha.evaluation.openings import Opening, OpeningKey
from qlib_llm_alpha.record.evidence_line import (
    EvidenceLine,
    code_revision,
    costs_of,
    evidence_line,
    seeds_of,
)
from tests.support.tasks import alpha158_task, changed, gated_task

DAYS = np.arange("2020-01-01", "2020-12-01", dtype="datetime64[D]")
BASIS = Basis("a label", 2, "rank_ic", "csi300", "members of the day", "2020-01-01", "2020-11-30", None, None)
OPENING = Opening(
    OpeningKey("c", "f", "d", "cn", "2021-01-01", "2021-12-31"), True, "why", "grid", 4, openings=3, row=5, spent=True
)


def line_of(ledger: TrialLedger, opening: Opening | None = None) -> EvidenceLine:
    return evidence_line(
        ledger,
        gated_task(),
        configuration="0123456789abcdef",
        factor_set="starter 1234",
        data="d",
        run="me",
        opening=opening,
    )


def scored(ledger: TrialLedger, series: np.ndarray, data: str = "d", prefix: str = "x") -> None:
    trials = [Trial(f"{prefix}{place}", "$close", "random") for place in range(series.shape[1])]
    ledger.record(trials, series, DAYS, basis=BASIS, data=data, run="someone")


def test_trials_that_are_alike_count_once_and_those_without_series_in_full(tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path)
    assert ledger.effective_trials(data="d") == 0
    one = np.random.default_rng(1).standard_normal((len(DAYS), 1))
    scored(ledger, np.repeat(one, 6, axis=1))
    assert ledger.effective_trials(data="d") == pytest.approx(1, abs=0.15)
    ledger.record(
        [Trial("y", "$open", "human"), Trial("z", "$low", "human")], None, DAYS, basis=BASIS, data="d", run=""
    )
    assert ledger.effective_trials(data="d") == pytest.approx(3, abs=0.15)
    independent = np.random.default_rng(2).standard_normal((len(DAYS), 6))
    scored(ledger, independent, data="other", prefix="w")
    assert ledger.effective_trials(data="other") == pytest.approx(6, rel=0.25)


def test_with_too_few_days_every_trial_counts(tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path)
    series = np.ones((len(DAYS), 3))
    ledger.record(
        [Trial(name, "$close", "random") for name in "abc"], series[:9], DAYS[:9], basis=BASIS, data="d", run=""
    )
    assert ledger.effective_trials(data="d") == 3


def test_the_line_counts_this_data_this_run_and_the_whole_ledger(tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path)
    rng = np.random.default_rng(4)
    scored(ledger, rng.standard_normal((len(DAYS), 3)))
    scored(ledger, rng.standard_normal((len(DAYS), 2)), data="other")
    for run, times in (("me", 5), ("another", 7)):
        ledger.record_tune_reads({"early stopping": times}, basis=BASIS, data="d", run=run)
    line = line_of(ledger)
    assert (line.trials, line.trials_in_ledger) == (3, 5)
    assert (line.tune_reads, line.tune_reads_in_ledger) == (5, 12)
    assert (line.openings, line.spent, line.forced) == (0, False, "")
    assert (line.ledger_rows, line.ledger_hash) == (ledger.head().count, ledger.head().hash)
    for part in ("trials 3 (effective", "5 in the ledger", "reads of tune 5 (12 in the ledger)", "0123456789,"):
        assert part in line.sentence
    assert line.metrics()["evidence/trials"] == 3


def test_what_is_wrong_with_an_opening_is_said_in_the_line_and_in_the_table(tmp_path: Path) -> None:
    line = line_of(TrialLedger(tmp_path), OPENING)
    said = "the same configuration again, study 'grid' of 4 cells, SPENT, forced now: why"
    assert f"openings of sealed 3 ({said});" in line.sentence
    assert ("openings of sealed", "3", said) in line.counts()
    assert line.metrics()["evidence/sealed is spent"] == 1
    assert "confirm read by 2" in replace(line, confirm_readings=2).sentence


def test_costs_are_those_of_each_exchange_defaults_included() -> None:
    (ours,) = costs_of(gated_task())
    assert ours.startswith("AShareExchange: commission 0.0003, min_cost 5, stamp_duty by date, transfer_fee by date")
    (stock,) = costs_of(alpha158_task())
    assert stock.startswith("Exchange: open_cost 0.0005, close_cost 0.0015, min_cost 5")
    (default,) = costs_of(changed(alpha158_task(), "record.2.kwargs.config.backtest.exchange_kwargs", {}))
    assert "open_cost 0.0015, close_cost 0.0025, min_cost 5" in default
    assert len(costs_of(changed(gated_task(), "record.3", alpha158_task()["record"][2]))) == 2
    assert costs_of({**gated_task(), "record": []}) == ()


def test_seeds_are_those_that_are_stated_and_the_models_default() -> None:
    assert seeds_of(gated_task()) == {"model.experts.trees.seed": 7, "model.seed": 7}
    task = gated_task()
    del task["model"]["kwargs"]["seed"]
    assert seeds_of(task)["model.seed"] == 7
    assert seeds_of(alpha158_task()) == {}
    assert seeds_of(changed(alpha158_task(), "model.kwargs.bagging_seed", 5)) == {"model.bagging_seed": 5}


def test_the_code_is_named_by_its_source() -> None:
    assert code_revision() == code_revision()
    assert "(source " in code_revision()
