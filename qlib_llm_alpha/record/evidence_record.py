"""What a run's figures are worth: its trials go to the ledger, its returns through the statistics of selection."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.utils.exceptions import LoadObjectError
from qlib.workflow.record_temp import RecordTemp
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.data.handler import FactorSetHandler
from qlib_llm_alpha.engine.panel import Panel
from qlib_llm_alpha.engine.scoring import rank_ic_series
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.basis import Basis
from qlib_llm_alpha.evaluation.ledger import Trial, TrialLedger
from qlib_llm_alpha.evaluation.scorecard import score_factor
from qlib_llm_alpha.evaluation.statistics import hac_t, mean_of
from qlib_llm_alpha.evaluation.walls import LABEL_HORIZON, Walls
from qlib_llm_alpha.guard.model_window import WindowStatus, headline, sharpe_of, split_days
from qlib_llm_alpha.model.gated import GatedModel
from qlib_llm_alpha.record.artifacts import metric_name, save_files
from qlib_llm_alpha.record.evidence_figures import (
    break_even_figures,
    comparison_figures,
    memory_figures,
    search_figures,
    strategy_figures,
)
from qlib_llm_alpha.record.evidence_line import EvidenceLine, evidence_line
from qlib_llm_alpha.record.model_memory import memory_of
from qlib_llm_alpha.record.openings import (
    configuration_hash,
    data_and_market,
    factor_set_name,
    key_of_task,
    opening_of,
    rules_of,
    saved_task,
)
from qlib_llm_alpha.record.task_check import closed_segments
from qlib_llm_alpha.report.evidence_text import Figure, Missing, evidence_page

logger = logging.getLogger("qlib.evidence")

REPORT = "portfolio_analysis/report_normal_1day.pkl"
COLUMNS = "gate/portfolio.parquet"
RANK_IC = "sig_analysis/ric.pkl"
LEAST_CLEAN = 20
"""Fewer clean days than these are not judged."""

# Named here because inside the class ``list`` is a method.
Figures: TypeAlias = list[Figure]
Gaps: TypeAlias = list[Missing]


class EvidenceRecord(RecordTemp):
    """Count what was tried, and state what the run's figures on test are worth after so many trials.

    List it after ``PortAnaRecord`` and ``GateRecord``: it reads what they have saved, and computes nothing of its own
    from test. Every factor of the set becomes a trial of the ledger with its daily rank IC on search (train, purged),
    and every look at valid is counted. Files, under ``evidence/``: ``evidence.md``, ``evidence.json``,
    ``trials.parquet``. Metrics are named ``evidence/<figure>``. What cannot be stated, such as a comparison of columns
    without ``GateRecord``, is named with the reason.

    Where a language model proposed factors, the figures of test are those of the days that it cannot know by its
    knowledge cut-off; Sharpe and rank IC of the other days stand beside them and do not count.

    Parameters
    ----------
    reference : str
        The column of ``GateRecord`` that the others must beat.
    seed : int
        Of the bootstraps.
    model, dataset
        ``<MODEL>`` and ``<DATASET>``; the trainer passes them by itself.
    """

    artifact_path = "evidence"
    opens_sealed = False

    def __init__(
        self, recorder: Recorder, reference: str = "static", seed: int = 7, model: Any = None, dataset: Any = None
    ) -> None:
        super().__init__(recorder=recorder)
        self.reference = reference
        self.seed = seed
        self.model = model
        self.dataset = dataset

    def generate(self, **kwargs: Any) -> None:
        """Compute and save."""
        if not isinstance(self.dataset, DatasetH):
            raise ConfigError(
                f"EvidenceRecord was given the dataset {type(self.dataset).__name__}; expected a DatasetH, whose "
                "segments say what was search, tune and sealed: name one, or leave the record out"
            )
        walls = Walls.from_segments(closed_segments(self.dataset.segments))
        ledger = TrialLedger(rules_of(self.recorder).ledger)
        data, _ = data_and_market()
        missing: Gaps = []
        trials = self.count(missing)
        figures = self._confirm_figures(walls, missing)
        alike = self._trials_on_search(ledger, data)
        series = ledger.series(data=data)
        found, lacking = search_figures(
            series[[row for row in alike.index if row in series.columns]].to_numpy(np.float64), basis=_basis_of(alike)
        )
        figures, missing = [*figures, *found], [*missing, *lacking]
        figures += self._sealed_figures(walls, ledger.effective_trials(data=data), ledger.count(data=data), missing)
        self._save(self._line(ledger, data), figures, missing, trials)

    def count(self, missing: Gaps | None = None) -> pd.DataFrame:
        """Enter the run's trials and looks at valid in the ledger; return the trials, and say in `missing` what is not.

        A run that ends before this record, because a leak was found, is counted all the same.
        """
        walls = Walls.from_segments(closed_segments(self.dataset.segments))
        ledger = TrialLedger(rules_of(self.recorder).ledger)
        data, _ = data_and_market()
        trials = self._record_trials(ledger, walls, data, [] if missing is None else missing)
        self._record_tune_reads(ledger, walls, data)
        return trials

    def list(self) -> list[str]:
        """Name the files that are always written."""
        return ["evidence.md", "evidence.json", "trials.parquet"]

    def _record_trials(self, ledger: TrialLedger, walls: Walls, data: str, missing: Gaps) -> pd.DataFrame:
        columns = ["name", "factor_id", "proposer", "ic", "t", "expression"]
        handler = self.dataset.handler
        if not isinstance(handler, FactorSetHandler):
            why = (
                f"{type(handler).__name__} is no FactorSetHandler: its features were not scored one by one, so that N "
                "counts none of them"
            )
            missing.append(Missing("trials of this run", why))
            nothing: pd.DataFrame = pd.DataFrame(columns=columns)
            return nothing
        frame = self.dataset.prepare("train", col_set=["feature", "label"], data_key=DataHandlerLP.DK_I)
        panel = Panel.from_frame(frame["feature"])
        label = Panel.from_frame(frame["label"].iloc[:, [0]])
        rows = walls.purged(panel.days, "train", handler.label_horizon)
        outcome = label[label.fields[0]][rows]
        factors = handler.factor_set.factors
        series = np.stack([rank_ic_series(panel[factor.name][rows], outcome) for factor in factors], axis=1)
        scored = [
            Trial(
                factor_id=factor.id,
                expression=str(factor.expression),
                proposer=str(factor.origin),
                ic=mean_of(series[:, place]),
                t=hac_t(series[:, place]),
            )
            for place, factor in enumerate(factors)
        ]
        days = panel.days[rows]
        basis = self._basis(str(days[0]), str(days[-1]), len(factors))
        new = ledger.record(scored, series, days, basis=basis, data=data, run=str(self.recorder.id))
        logger.info("%d factors scored on search, %d of them new to the ledger: %s", len(scored), new, basis.sentence)
        table: pd.DataFrame = pd.DataFrame([vars(trial) for trial in scored], columns=columns[1:])
        table.insert(0, "name", [factor.name for factor in factors])
        return table

    def _trials_on_search(self, ledger: TrialLedger, data: str) -> pd.DataFrame:
        """Return every trial on this data that was measured as those of this run were, on the same days."""
        trials = ledger.trials(data=data)
        own = ledger.trials(data=data, run=str(self.recorder.id))
        if own.empty:
            return own
        same = ["label", "ic_kind", "universe", "start", "end"]
        chosen: pd.DataFrame = trials[(trials[same] == own[same].iloc[0]).all(axis=1)]
        return chosen

    def _record_tune_reads(self, ledger: TrialLedger, walls: Walls, data: str) -> None:
        if walls.tune is None:
            return
        reads = {f"{type(self.model).__name__}, fitted with valid": 1}
        if isinstance(self.model, GatedModel):
            reads = self.model.tune_reads()
        cards = self._saved_json("factor_set/scorecards.json")
        if cards is not None:
            reads["scorecards of factors"] = sum(card["segment"] == "valid" for card in cards)
        basis = self._basis(str(walls.tune.start), str(walls.tune.end), None)
        ledger.record_tune_reads(reads, basis=basis, data=data, run=str(self.recorder.id))

    def _confirm_figures(self, walls: Walls, missing: Gaps) -> Figures:
        task = saved_task(self.recorder)
        if walls.confirm is None:
            return []
        key = None if task is None else key_of_task(task, "confirm")
        if key is None or self.model is None:
            missing.append(Missing("confirm", "the run has no task that names the segment"))
            return []
        permit = rules_of(self.recorder).confirm(key, str(self.recorder.id))
        self.recorder.confirm_permit = permit
        scores = self.model.predict(self.dataset, segment="confirm")
        scores = scores.to_frame("score") if isinstance(scores, pd.Series) else scores.iloc[:, [0]]
        label = self.dataset.prepare("confirm", col_set="label", data_key=DataHandlerLP.DK_I).iloc[:, 0]
        joined = scores.set_axis(["score"], axis=1).join(label.rename("label").reorder_levels(scores.index.names))
        panel = Panel.from_frame(joined)
        card = score_factor(
            panel["score"],
            panel["label"],
            panel.days,
            walls,
            factor="score",
            segment="confirm",
            horizon=self._horizon(),
            label_name=self._label(),
            permit=permit,
        )
        meaning = "mean daily rank IC of the run's score on confirm"
        if permit.readings > 1:
            meaning += f"; {permit.readings} configurations have read it by now, so that it has chosen among them"
        basis = self._basis(card.start, card.end, permit.readings).sentence
        return [
            Figure("rank IC on confirm", card.rank_ic, f"{card.rank_ic:.4f} (t {card.t_rank_ic:.2f})", meaning, basis)
        ]

    def _sealed_figures(self, walls: Walls, effective: float, trials: int, missing: Gaps) -> Figures:
        report, columns = self._saved_pickle(REPORT), self._saved_frame(COLUMNS)
        if report is None:
            missing.append(
                Missing("Sharpe and break-even cost", f"{REPORT} is not in the run: list PortAnaRecord before")
            )
        if columns is None:
            why = f"{COLUMNS} is not in the run: one column was traded and nothing compared with it; GateRecord does"
            missing.append(Missing("PBO, SPA and StepM", why))
        if report is None and columns is None:
            return []
        # Logged by now under our experiment manager; under Qlib's own it is logged here.
        opening = opening_of(self.recorder)
        remembered, report, columns = self._memory_figures(report, columns, missing)
        # Each cell of a study, and each configuration that has opened these dates, was tried on test itself.
        on_test = max(opening.cells, opening.openings)
        traded = f"{self._universe()[0]} ({self._universe()[1]}), label {self._label()}, horizon {self._horizon()}"
        counted = f"N = {trials} (effective {effective:.1f}, in both directions {2 * effective:.1f}; on test {on_test})"
        figures: Figures = [*remembered]
        if report is not None:
            turnover = float(report["turnover"].sum())
            cost = 1e4 * float(report["cost"].sum()) / turnover if turnover > 0 else 0.0
            ends = f"{report.index[0]:%Y-%m-%d} to {report.index[-1]:%Y-%m-%d}"
            basis = (
                f"daily return over the benchmark after cost, as traded on test: {traded}, {ends}, cost {cost:.1f} bps "
                f"of each unit traded, {counted}"
            )
            excess = (report["return"] - report["bench"] - report["cost"]).to_numpy(np.float64)
            uncounted = self._uncounted(trials)
            if uncounted:
                why = f"{uncounted}: the deflated Sharpe is only an upper bound, the years before luck a lower one"
                missing.append(Missing("search trials in N", why))
            # Agents and learners turn a factor by what they saw of it: each trial was tried in both directions.
            tried = max(2.0 * effective, float(on_test))
            figures += strategy_figures(excess, trials=tried, basis=basis, seed=self.seed, uncounted=uncounted)
            figures += break_even_figures(report, basis=basis)
        if columns is not None:
            ends = f"{columns.index[0]:%Y-%m-%d} to {columns.index[-1]:%Y-%m-%d}"
            basis = (
                f"daily return over the benchmark after cost of {columns.shape[1]} columns traded on test under one "
                f"rule: {traded}, {ends}, cost of the exchange, {counted}"
            )
            found, lacking = comparison_figures(columns, reference=self.reference, basis=basis, seed=self.seed)
            figures += found
            missing += lacking
        return figures

    def _memory_figures(
        self, report: pd.DataFrame | None, columns: pd.DataFrame | None, missing: Gaps
    ) -> tuple[Figures, pd.DataFrame | None, pd.DataFrame | None]:
        """Return figures of both sides where a model may remember days of test, and what was traded on the others."""
        memory = memory_of(self.dataset, today=date.today())
        statuses = [status for status in memory.values() if status is not None]
        if all(status.status == "clean" for status in statuses):
            return [], report, columns
        models = ", ".join(status.model for status in statuses)
        ends = f"{statuses[0].start} to {statuses[0].end}"
        basis = f"daily values on test, {ends}, split by what {models} may remember"
        figures: Figures = []
        for name, series, figure in (
            ("Sharpe", None if report is None else report["return"] - report["bench"] - report["cost"], sharpe_of),
            ("rank IC", self._saved_series(RANK_IC), mean_of),
        ):
            if series is not None:
                days = series.index.to_numpy()
                found = headline(name, series.to_numpy(np.float64), days, statuses, figure=figure)
                figures += memory_figures(found, basis=basis)
        kept = tuple(None if frame is None else _clean(frame, statuses) for frame in (report, columns))
        for frame, what in zip(kept, ("Sharpe and break-even cost", "PBO, SPA and StepM"), strict=True):
            if frame is not None and len(frame) < LEAST_CLEAN:
                why = f"test has {len(frame)} days that {models} cannot remember; expected {LEAST_CLEAN} or more"
                missing.append(Missing(what, why))
        report, columns = (None if frame is None or len(frame) < LEAST_CLEAN else frame for frame in kept)
        return figures, report, columns

    def _uncounted(self, trials: int) -> str:
        """Say which trials of the search N does not hold; empty where it holds those of this run."""
        if not trials:
            return "N holds no search trials, since none on this data is in the ledger"
        if not isinstance(self.dataset.handler, FactorSetHandler):
            return "N holds no search trials of this run, since its features were not scored one by one"
        return ""

    def _line(self, ledger: TrialLedger, data: str) -> EvidenceLine:
        task = saved_task(self.recorder)
        opening = getattr(self.recorder, "opening", None)
        configuration = "made by hand" if opening is None else opening.key.configuration
        permit = getattr(self.recorder, "confirm_permit", None)
        # The line at the end of a run without a task has no dataset to ask.
        self.recorder.factor_set = factor_set_name(self.dataset)
        return evidence_line(
            ledger,
            {} if task is None else task,
            configuration=configuration if task is None else configuration_hash(task),
            factor_set=self.recorder.factor_set,
            data=data,
            run=str(self.recorder.id),
            opening=opening,
            confirm_readings=0 if permit is None else permit.readings,
        )

    def _save(self, line: EvidenceLine, figures: Figures, missing: Gaps, trials: pd.DataFrame) -> None:
        page = evidence_page(
            line=line.sentence, counts=line.counts(), figures=figures, missing=missing, trials=trials, spent=line.spent
        )
        stated = {
            "line": line.to_dict(),
            "figures": [vars(figure) for figure in figures],
            "missing": [vars(item) for item in missing],
            "seed": self.seed,
        }
        save_files(
            self.recorder,
            self.artifact_path,
            {"evidence.md": page, "evidence.json": stated, "trials.parquet": trials},
        )
        metrics = {metric_name("evidence", f.name): f.value for f in figures if np.isfinite(f.value)}
        self.recorder.log_metrics(**metrics)
        self.recorder.set_tags(evidence=line.sentence)
        for figure in figures:
            logger.info("%s: %s (%s)", figure.name, figure.shown, figure.meaning)
        for item in missing:
            logger.info("not stated: %s, because %s", item.what, item.why)

    def _basis(self, start: str, end: str, trials: int | None) -> Basis:
        universe, membership = self._universe()
        return Basis(
            label=self._label(),
            horizon=self._horizon(),
            ic_kind="rank_ic",
            universe=universe,
            membership=membership,
            start=start,
            end=end,
            cost_bps=None,
            trials=trials,
        )

    def _universe(self) -> tuple[str, str]:
        instruments = getattr(self.dataset.handler, "instruments", None)
        if isinstance(instruments, str):
            return instruments, "members of the day"
        if isinstance(instruments, Mapping) and "market" in instruments:
            return str(instruments["market"]), "members of the day"
        if isinstance(instruments, Sequence):
            return f"{len(instruments)} named instruments", "the same on every day"
        return "unknown universe", "as the handler has it"

    def _label(self) -> str:
        handler = self.dataset.handler
        return str(handler.labels[0]) if isinstance(handler, FactorSetHandler) else "the label of the handler"

    def _horizon(self) -> int:
        handler = self.dataset.handler
        return handler.label_horizon if isinstance(handler, FactorSetHandler) else LABEL_HORIZON

    def _saved_pickle(self, name: str) -> pd.DataFrame | None:
        try:
            found: pd.DataFrame = self.recorder.load_object(name)
        except LoadObjectError:
            return None
        return found

    def _saved_series(self, name: str) -> pd.Series | None:
        if self._saved(name) is None:
            return None
        found: pd.Series = self.recorder.load_object(name)
        return found.sort_index()

    def _saved_frame(self, name: str) -> pd.DataFrame | None:
        path = self._saved(name)
        return None if path is None else pd.read_parquet(path)

    def _saved_json(self, name: str) -> Any:
        path = self._saved(name)
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))

    def _saved(self, name: str) -> Path | None:
        if name not in self.recorder.list_artifacts(name.split("/", maxsplit=1)[0]):
            return None
        return Path(self.recorder.download_artifact(name))


def _clean(frame: pd.DataFrame, statuses: Sequence[WindowStatus]) -> pd.DataFrame:
    """Return the rows of days that no model can remember."""
    kept: pd.DataFrame = frame[split_days(frame.index.to_numpy(), *statuses)]
    return kept


def _basis_of(trials: pd.DataFrame) -> str:
    """Say what the trials of a ledger were measured on; the last of them, where they were measured on several."""
    if trials.empty:
        return "no trial"
    names = [name for name in Basis.__dataclass_fields__ if name != "trials"]
    last: Any = trials.iloc[-1]
    basis = Basis(
        label=last["label"],
        horizon=int(last["horizon"]),
        ic_kind=last["ic_kind"],
        universe=last["universe"],
        membership=last["membership"],
        start=last["start"],
        end=last["end"],
        cost_bps=None if pd.isna(last["cost_bps"]) else float(last["cost_bps"]),
        trials=len(trials),
    ).sentence
    several = len(trials[names].drop_duplicates())
    return basis if several == 1 else f"{several} bases, the last of them: {basis}"
