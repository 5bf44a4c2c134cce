from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from qlib.workflow.record_temp import PortAnaRecord, SigAnaRecord, SignalRecord

from qlib_llm_alpha.record.evidence_record import EvidenceRecord
from qlib_llm_alpha.record.gate_record import GateRecord
from qlib_llm_alpha.record.openings import (
    configuration_hash,
    factor_set_name,
    key_of_predictions,
    key_of_task,
    opens_sealed,
    records_of,
)
from tests.record.small_runs import EVIDENCE, LEAKAGE, SIGNAL, SIGNAL_ANALYSIS, UNKNOWN
from tests.support.provider import END, TEST, small_dataset
from tests.support.tasks import alpha158_task, changed, gated_task

HANDLER = "dataset.kwargs.handler.kwargs"


@pytest.mark.parametrize(
    ("record", "opens"),
    [
        (SIGNAL, False),
        ({"class": "SignalRecord"}, False),
        (EVIDENCE, False),
        (LEAKAGE, False),
        (SIGNAL_ANALYSIS, True),
        ({"class": "PortAnaRecord"}, True),
        ({"class": "HFSignalRecord"}, True),
        (UNKNOWN, True),
        (gated_task()["record"][4], True),
    ],
    ids=lambda value: value["class"] if isinstance(value, dict) else str(value),
)
def test_a_record_opens_sealed_unless_its_class_is_known_not_to(record: dict[str, Any], opens: bool) -> None:
    assert opens_sealed(record) is opens


def test_a_record_that_is_built_already_is_judged_by_its_class() -> None:
    class Mine(SignalRecord):
        """Another class than Qlib's: what it computes is not known."""

    assert not opens_sealed(SignalRecord())
    assert not opens_sealed(EvidenceRecord(None))
    assert opens_sealed(GateRecord(None))
    assert opens_sealed(Mine())


def test_records_are_a_list_one_mapping_or_none() -> None:
    assert records_of({"record": SIGNAL}) == [SIGNAL]
    assert records_of({"record": [SIGNAL, UNKNOWN]}) == [SIGNAL, UNKNOWN]
    assert records_of({}) == records_of({"record": None}) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.kwargs.gate", "static"),
        ("model.kwargs.seed", 8),
        (f"{HANDLER}.factor_set", "classic"),
        (f"{HANDLER}.start_time", "2019-01-03"),
        ("dataset.kwargs.segments.valid", ["2020-08-03", "2020-12-30"]),
        ("record.3.kwargs.config.strategy.kwargs.topk", 9),
        ("record.4.kwargs.config.backtest.account", 1e6),
        ("record.0", UNKNOWN),
    ],
)
def test_what_changes_a_number_changes_the_configuration(path: str, value: Any) -> None:
    assert configuration_hash(changed(gated_task(), path, value)) != configuration_hash(gated_task())


def test_what_changes_no_number_leaves_the_configuration_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = gated_task()
    same = copy.deepcopy(task)
    same["record"] = [*same["record"][:1], LEAKAGE, *same["record"][1:], EVIDENCE]
    same["model"] = dict(reversed(same["model"].items()))
    same["dataset"]["kwargs"]["segments"] = {
        name: tuple(pd.Timestamp(day).date() for day in ends)
        for name, ends in same["dataset"]["kwargs"]["segments"].items()
    }
    same["experiment"] = "another name"
    assert configuration_hash(same) == configuration_hash(task)

    hashes = set()
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        given = str(tmp_path / folder / "sets" / "mine.yaml")
        hashes.add(configuration_hash(changed(task, f"{HANDLER}.factor_set", given)))
    assert len(hashes) == 1, "a path below the working directory counts as relative"


def test_objects_in_a_task_count_by_their_content() -> None:
    one, same, other = (pd.DataFrame({"x": [1.0, value]}) for value in (2.0, 2.0, 3.0))
    hashes = [configuration_hash(changed(gated_task(), "model.kwargs.seed", frame)) for frame in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert configuration_hash(changed(gated_task(), "model.kwargs.seed", SigAnaRecord)) != configuration_hash(
        changed(gated_task(), "model.kwargs.seed", PortAnaRecord)
    )


def test_a_key_names_data_market_factor_set_and_dates(qlib_small: Path) -> None:
    key = key_of_task(gated_task())
    assert key is not None
    assert (key.start, key.end) == TEST
    assert key.market.startswith("embedded planted, seed 7, ")
    assert key.data.startswith(key.market[-12:])
    assert key.factor_set.startswith("starter ")
    assert key_of_task(gated_task(), "confirm") is None


def test_an_end_that_is_left_open_is_that_of_the_calendar(qlib_small: Path) -> None:
    for ends in ([None, None], slice(None, None)):
        key = key_of_task(changed(gated_task(), "dataset.kwargs.segments", {"train": list(TEST), "test": ends}))
        assert key is not None
        assert (key.start, key.end) == ("2019-01-03", END)


def test_the_factor_set_is_that_of_the_handler_and_else_its_class(qlib_small: Path) -> None:
    starter = factor_set_name(gated_task()["dataset"])
    assert factor_set_name(small_dataset()) == starter
    assert factor_set_name(alpha158_task()["dataset"]) == "Alpha158"
    assert factor_set_name({"kwargs": {"handler": "file://handler.pkl"}}) == "file://handler.pkl"


def test_predictions_are_known_by_their_values_and_dates(qlib_small: Path) -> None:
    index = pd.MultiIndex.from_product(
        [pd.date_range("2021-01-04", "2021-01-08"), ["SH600000", "SZ000001"]], names=["datetime", "instrument"]
    )
    scores = pd.Series(range(10), index=index, name="score", dtype="float64")
    key = key_of_predictions(scores)
    assert (key.start, key.end) == ("2021-01-04", "2021-01-08")
    assert key == key_of_predictions(scores.to_frame())
    assert key != key_of_predictions(scores + 1)
