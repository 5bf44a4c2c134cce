"""What the gate did: weights by date, and every combination beside it on the same dates, label, rule and costs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from qlib.backtest import backtest, get_exchange
from qlib.contrib.evaluate import risk_analysis
from qlib.data.dataset import DatasetH
from qlib.utils.exceptions import LoadObjectError
from qlib.workflow.record_temp import RecordTemp
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.engine.panel import Panel
from qlib_llm_alpha.errors import ConfigError, MissingArtifactError
from qlib_llm_alpha.evaluation.sealed import SealedFigures, open_sealed
from qlib_llm_alpha.gating.explain import LogOddsExplanation
from qlib_llm_alpha.gating.mixture import GATES, FittedMixture
from qlib_llm_alpha.gating.sufficient import composite
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record.artifacts import metric_name, save_files
from qlib_llm_alpha.record.openings import opening_of
from qlib_llm_alpha.report.comparison import describe_comparison
from qlib_llm_alpha.report.gate_figure import draw_growth, draw_weights

logger = logging.getLogger("qlib.gate")

EXECUTOR = {
    "class": "SimulatorExecutor",
    "module_path": "qlib.backtest.executor",
    "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True},
}


REFERENCE = "static"
IC_FIGURES = {
    "ic": "IC",
    "icir": "ICIR",
    "rank_ic": "Rank IC",
    "gain": "IC gain over static",
    "t_gain": "t of IC gain over static",
}


class GateRecord(RecordTemp):
    """Compare the gate with each expert, with equal, static and trailing weights, on the test segment.

    It opens the sealed segment, which the ledger logs: after it has run, test has been looked at. Files, under
    ``gate/``: ``weights.parquet`` (by gate and date), ``regime.parquet``, ``ic.json`` and ``ic.parquet`` (table and
    daily series), ``ladder.json``, ``permutation.json``, ``explanation.parquet`` (what moved the softmax gate's odds),
    ``weights.png``, and with `config` ``portfolio.json``, ``portfolio.parquet`` (daily returns) and ``growth.png``.
    Metrics are named ``<figure>/<column>``, which MLflow groups by figure, and the run's description holds the table.

    Parameters
    ----------
    config : mapping, optional
        The same configuration that ``PortAnaRecord`` gets. Each column is traded under its strategy, with its backtest
        and costs; the strategy's ``model`` and ``gate`` are left out, because the column is already a score.
    model, dataset
        ``<MODEL>`` (a `GatedModel`) and ``<DATASET>``; the trainer passes them by itself.
    """

    artifact_path = "gate"
    opens_sealed = True

    def __init__(
        self, recorder: Recorder, config: Mapping[str, Any] | None = None, model: Any = None, dataset: Any = None
    ) -> None:
        super().__init__(recorder=recorder)
        self.config = config
        self.model = model
        self.dataset = dataset

    def generate(self, **kwargs: Any) -> None:
        """Compute and save."""
        if not isinstance(self.model, GatedModel) or not isinstance(self.dataset, DatasetH):
            raise ConfigError(
                f"GateRecord was given {type(self.model).__name__}; expected a GatedModel: name it as the model, or "
                "leave the record out"
            )
        predictions, label = self._saved("pred.pkl"), self._saved("label.pkl")
        mixture = self.model.fitted()
        panel = Panel.from_frame(predictions)
        weights = self._weights(predictions, panel)
        columns = self._columns(predictions, panel, mixture, weights)
        if "test" not in self.dataset.segments:
            raise ConfigError("segments have no 'test'; GateRecord compares on it: add its dates or leave it out")
        opening = opening_of(self.recorder)
        figures = open_sealed(columns, label.iloc[:, 0], opening, reference=REFERENCE)
        context = self.model.market_context(panel.days[-1])
        regime = context.to_frame()["regime"].reindex(pd.DatetimeIndex(panel.days))
        files = self._files(mixture, weights, regime, figures)
        comparison = figures.table()[list(IC_FIGURES)].rename(columns=IC_FIGURES)
        explanation = mixture.explain(panel.days, context)
        if explanation is not None:
            files["explanation.parquet"] = _explanation_frame(explanation, panel, mixture)
        if self.config is not None:
            traded, portfolio_files = self._portfolios(columns)
            comparison = comparison.join(traded)
            files |= portfolio_files
        save_files(self.recorder, self.artifact_path, files)
        self._log(comparison, f"{opening.key.start} to {opening.key.end}")

    def list(self) -> list[str]:
        """Name the files that are always written."""
        return ["weights.parquet", "regime.parquet", "ic.json", "ic.parquet", "ladder.json", "weights.png"]

    def _saved(self, name: str) -> pd.DataFrame:
        try:
            saved: pd.DataFrame = self.recorder.load_object(name)
        except LoadObjectError as error:
            raise MissingArtifactError(f"{name} is not in the run; list SignalRecord before GateRecord") from error
        return saved

    def _weights(self, predictions: pd.DataFrame, panel: Panel) -> dict[str, pd.DataFrame]:
        outcomes = self.model.realised(predictions)
        names = list(self.model.fitted().names)
        index = pd.DatetimeIndex(panel.days.astype("datetime64[ns]"), name="datetime")
        return {
            gate: pd.DataFrame(self.model.weights(gate, panel.days, outcomes), index=index, columns=names)
            for gate in GATES
        }

    def _columns(
        self, predictions: pd.DataFrame, panel: Panel, mixture: FittedMixture, weights: Mapping[str, pd.DataFrame]
    ) -> pd.DataFrame:
        scores = panel.stack(mixture.names)
        mixed = {gate: composite(scores, frame.to_numpy(np.float64)) for gate, frame in weights.items()}
        combined = Panel(panel.days, panel.instruments, mixed).to_frame().reindex(predictions.index)
        joined: pd.DataFrame = combined.join(predictions[list(mixture.names)])
        return joined

    def _files(
        self,
        mixture: FittedMixture,
        weights: Mapping[str, pd.DataFrame],
        regime: pd.Series,
        figures: SealedFigures,
    ) -> dict[str, Any]:
        daily = figures.daily()
        daily.columns = [".".join(column) for column in daily.columns]
        shown = weights[self.model.gate]
        permutation = mixture.permutation
        files: dict[str, Any] = {
            "weights.parquet": pd.concat(weights, names=["gate"]),
            "regime.parquet": regime.to_frame(),
            "ic.json": figures.table().reset_index().to_dict(orient="records"),
            "ic.parquet": daily,
            "ladder.json": [asdict(row) for row in mixture.ladder],
            "weights.png": draw_weights(shown, regime, title=f"Weights of the {self.model.gate} gate on test"),
        }
        if permutation is not None:
            files["permutation.json"] = {
                "gain": permutation.gain,
                "p_value": permutation.p_value,
                "sentence": permutation.sentence,
                "segment": "train, out of fold",
            }
        return files

    def _portfolios(self, columns: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
        excess: dict[str, pd.Series] = {}
        table: list[dict[str, Any]] = []
        config = _with_one_exchange(self.config or {})
        for name in columns.columns:
            report = _trade(config, columns[[name]])
            gross = report["return"] - report["bench"]
            excess[name] = gross - report["cost"]
            before = risk_analysis(gross, freq="day")["risk"]
            after = risk_analysis(excess[name], freq="day")["risk"]
            row = {
                "excess_return_without_cost": before["annualized_return"],
                "excess_return_with_cost": after["annualized_return"],
                "information_ratio": after["information_ratio"],
                "max_drawdown": after["max_drawdown"],
                "turnover": float(report["turnover"].mean()),
            }
            table.append({"column": name, **row})
        return pd.DataFrame(table).set_index("column"), {
            "portfolio.json": table,
            "portfolio.parquet": pd.DataFrame(excess),
            "growth.png": draw_growth(
                pd.DataFrame(excess)[[self.model.gate, *[c for c in excess if c != self.model.gate]]],
                title="Excess return over the benchmark after costs on test, summed; a backtest, not a promise",
                ylabel="sum of daily excess returns",
                comparisons=GATES,
            ),
        }

    def _log(self, comparison: pd.DataFrame, period: str) -> None:
        metrics = {
            metric_name(str(figure), str(column)): float(value)
            for figure, values in comparison.items()
            for column, value in values.items()
            if np.isfinite(value)
        }
        permutation = self.model.fitted().permutation
        finding = "" if permutation is None else permutation.sentence
        if permutation is not None:
            metrics["permutation p"] = permutation.p_value
            logger.info("On train, out of fold: %s", finding)
        self.recorder.log_metrics(**metrics)
        description = describe_comparison(
            comparison, gate=self.model.gate, reference=REFERENCE, period=period, finding=finding
        )
        self.recorder.set_tags(**{"mlflow.note.content": description})
        logger.info("On test:\n%s", comparison.round(4).to_string())


def _explanation_frame(explanation: LogOddsExplanation, panel: Panel, mixture: FittedMixture) -> pd.DataFrame:
    names = np.array(mixture.names)
    frame: pd.DataFrame = pd.DataFrame(
        explanation.contributions,
        index=pd.DatetimeIndex(panel.days.astype("datetime64[ns]"), name="datetime"),
        columns=list(mixture.state),
    )
    frame.insert(0, "first", names[explanation.first])
    frame.insert(1, "second", names[explanation.second])
    frame["constant"] = explanation.constant
    frame["prior_log_odds"] = explanation.prior_log_odds
    frame["log_odds"] = explanation.log_odds
    return frame


def _with_one_exchange(config: Mapping[str, Any]) -> dict[str, Any]:
    """Open the exchange once: its quotes are the same for every column, and reading them takes longer than trading."""
    settings = dict(config["backtest"])
    given = dict(settings.get("exchange_kwargs", {}))
    given.setdefault("start_time", settings.get("start_time"))
    given.setdefault("end_time", settings.get("end_time"))
    settings["exchange_kwargs"] = {"exchange": get_exchange(**given)}
    return {**config, "backtest": settings}


def _trade(config: Mapping[str, Any], column: pd.DataFrame) -> pd.DataFrame:
    strategy = copy.deepcopy({key: value for key, value in config["strategy"].items() if key != "kwargs"})
    kept = {key: value for key, value in config["strategy"]["kwargs"].items() if key not in {"model", "gate"}}
    strategy["kwargs"] = {**kept, "signal": column}
    portfolio, _ = backtest(strategy=strategy, executor=config.get("executor", EXECUTOR), **config["backtest"])
    report: pd.DataFrame = portfolio["1day"][0]
    return report
