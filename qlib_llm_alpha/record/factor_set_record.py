"""Which factors the run used, what each did on search and tune, and which agent chose them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.workflow.record_temp import RecordTemp
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.data.handler import FactorSetHandler
from qlib_llm_alpha.engine.panel import Panel
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.scorecard import Scorecard, score_factor
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record.artifacts import save_files

DECAY_LAGS = (1, 5, 20)
"""Ages of a score, in days, at which its rank IC is measured again."""


class FactorSetRecord(RecordTemp):
    """Save the factor set, a scorecard of each factor on train and valid, and the agents' choices.

    Nothing of test is read. Files, under ``factor_set/``: ``factor_set.json``, ``scorecards.parquet``, ``choices.json``
    and ``choices.parquet`` (with a `GatedModel`).

    Parameters
    ----------
    model, dataset
        ``<MODEL>`` and ``<DATASET>``; the trainer passes them by itself. The handler must be a `FactorSetHandler`.
    """

    artifact_path = "factor_set"
    opens_sealed = False

    def __init__(self, recorder: Recorder, model: Any = None, dataset: Any = None) -> None:
        super().__init__(recorder=recorder)
        self.model = model
        self.dataset = dataset

    def generate(self, **kwargs: Any) -> None:
        """Compute and save."""
        handler = self.dataset.handler if isinstance(self.dataset, DatasetH) else None
        if not isinstance(handler, FactorSetHandler):
            raise ConfigError(
                f"FactorSetRecord was given a dataset with {type(handler).__name__}; expected a FactorSetHandler: name "
                "it as the handler, or leave the record out"
            )
        factors = handler.factor_set
        cards = self._scorecards(handler)
        files: dict[str, Any] = {
            "factor_set.json": {
                "name": factors.name,
                "id": factors.id,
                "warmup": factors.warmup,
                "label": [str(label) for label in handler.labels],
                "factors": [
                    {
                        "name": factor.name,
                        "id": factor.id,
                        "category": factor.category,
                        "expression": str(factor.expression),
                        "executed": factor.expression.qlib,
                        "lookback": factor.expression.lookback,
                        "hypothesis": factor.hypothesis,
                        "sources": list(factor.sources),
                        "origin": str(factor.origin),
                    }
                    for factor in factors.factors
                ],
            },
            "scorecards.json": [card.to_dict() for card in cards],
            "scorecards.parquet": pd.json_normalize([card.to_dict() for card in cards]),
        }
        if isinstance(self.model, GatedModel):
            chosen = {
                expert.selection.preference: expert.selection
                for expert in self.model.fitted().experts
                if expert.selection is not None
            }
            files["choices.json"] = {name: selection.to_dict() for name, selection in chosen.items()}
            if chosen:
                files["choices.parquet"] = pd.concat([selection.to_frame() for selection in chosen.values()])
        save_files(self.recorder, self.artifact_path, files)
        gate = f" {self.model.gate}" if isinstance(self.model, GatedModel) else ""
        # Qlib names every run "mlflow_recorder"; a list of runs should tell them apart.
        self.recorder.set_tags(
            **{
                "factor_set.name": factors.name,
                "factor_set.id": factors.id,
                "mlflow.runName": f"{factors.name}{gate}",
            }
        )
        self.recorder.log_metrics(**{"factor_set.factors": float(len(factors.factors))})

    def list(self) -> list[str]:
        """Name the files that are always written."""
        return ["factor_set.json", "scorecards.json", "scorecards.parquet"]

    def _scorecards(self, handler: FactorSetHandler) -> Sequence[Scorecard]:
        walls = Walls.from_segments(self.dataset.segments)
        segments = [name for name in ("train", "valid") if name in self.dataset.segments]
        parts = self.dataset.prepare(segments, col_set=["feature", "label"], data_key=DataHandlerLP.DK_I)
        frame = pd.concat(parts)
        panel = Panel.from_frame(frame["feature"])
        label = Panel.from_frame(frame["label"].iloc[:, [0]])
        returns = label[label.fields[0]]
        regime = self._regime(panel)
        return [
            score_factor(
                panel[factor.name],
                returns,
                panel.days,
                walls,
                factor=factor.name,
                factor_id=factor.id,
                segment=segment,
                horizon=handler.label_horizon,
                label_name=str(handler.labels[0]),
                regime=regime,
                decay_lags=DECAY_LAGS,
            )
            for segment in segments
            for factor in handler.factor_set.factors
        ]

    def _regime(self, panel: Panel) -> NDArray[np.str_] | None:
        if not isinstance(self.model, GatedModel):
            return None
        context = self.model.market_context(panel.days[-1])
        return np.asarray(context.regime[np.searchsorted(context.days, panel.days)])
