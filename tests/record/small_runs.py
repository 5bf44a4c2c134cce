"""Runs of a small task through Qlib's trainer: a model that costs nothing, so that a test runs several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlflow
import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.model.base import Model
from qlib.workflow.record_temp import RecordTemp

from tests.support.tasks import changed, gated_task

Runner = Callable[..., mlflow.entities.Run]

SIGNAL = {"class": "SignalRecord", "module_path": "qlib.workflow.record_temp"}
SIGNAL_ANALYSIS = {"class": "SigAnaRecord", "module_path": "qlib.workflow.record_temp"}
EVIDENCE = {"class": "EvidenceRecord", "module_path": "qlib_llm_alpha.record.evidence_record"}
LEAKAGE = {"class": "LeakageRecord", "module_path": "qlib_llm_alpha.record.leakage_record"}
PORTFOLIO = gated_task()["record"][3]


class OneFactorModel(Model):
    """Score by one factor; learns nothing."""

    def __init__(self, factor: str = "ema_reversion", fails: str = "", seed: int = 3) -> None:
        self.factor = factor
        self.fails = fails
        self.seed = seed

    def fit(self, dataset: DatasetH, reweighter: Any = None) -> None:
        if self.fails == "fit":
            raise ArithmeticError("fit")

    def predict(self, dataset: DatasetH, segment: str | slice = "test") -> pd.Series:
        if self.fails == "predict":
            raise ArithmeticError("predict")
        scores: pd.Series = dataset.prepare(segment, col_set="feature", data_key="infer")[self.factor]
        return scores


class PrintingRecord(RecordTemp):
    """A user's record, of which nobody knows what it computes; it saves nothing."""

    def __init__(self, recorder: Any, model: Any = None, dataset: Any = None) -> None:
        super().__init__(recorder)

    def generate(self, **kwargs: Any) -> None:
        """Do nothing."""


class SavingRecord(RecordTemp):
    """A user's record, of which nobody knows what it computes; it saves in a folder of its own."""

    artifact_path = "mine"

    def generate(self, **kwargs: Any) -> None:
        """Save a number."""
        self.save(number=1.0)


class ApartRecord(SavingRecord):
    """A user's record that says of itself that it computes nothing from test; its folder lies in another."""

    artifact_path = "mine/apart"
    opens_sealed = False


UNKNOWN = {"class": "PrintingRecord", "module_path": __name__}


APART = {"class": "ApartRecord", "module_path": __name__}


def small_task(*records: dict[str, Any], **model: Any) -> dict[str, Any]:
    """Return a task on the small market with these records; keywords are those of the model."""
    kind = {"class": "OneFactorModel", "module_path": __name__, "kwargs": model}
    return changed(changed(gated_task(), "model", kind), "record", list(records))
