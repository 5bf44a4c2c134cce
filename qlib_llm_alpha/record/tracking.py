"""An experiment manager whose runs hold what they were told to hold.

Qlib 0.9.7 logs through a background thread: one metric name that MLflow refuses ends that thread, everything after it
is lost, and the run is still marked FINISHED (``qlib/workflow/recorder.py``, ``AsyncCaller``). Here every parameter,
metric and tag is written before the call returns, and the end of a run reads all of them back. It serves stock records
as well as ours, because it is named once, in ``qlib_init``::

    exp_manager:
        class: VerifiedExpManager
        module_path: qlib_llm_alpha.record.tracking
        kwargs: {uri: "sqlite:///mlflow.db", default_exp_name: llm_alpha}

It also keeps the ledger: a task whose records compute from the outcomes of test is refused before anything is loaded
when another configuration has opened these dates; the opening is logged once the model has been fitted and a record
saves what may say something about test, also one that no task lists; and every run of a task, or that has opened
sealed, ends with the evidence line.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
from qlib.utils.data import deepcopy_basic_type
from qlib.utils.exceptions import ExpAlreadyExistError
from qlib.workflow.exp import MLflowExperiment
from qlib.workflow.expm import MLflowExpManager
from qlib.workflow.recorder import MLflowRecorder, Recorder

from qlib_llm_alpha.errors import ConfigError, QlibLLMAlphaError, RecordingError
from qlib_llm_alpha.evaluation.confirm import ConfirmPermit
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.openings import Opening, OpeningKey
from qlib_llm_alpha.record.evidence_line import evidence_line
from qlib_llm_alpha.record.openings import (
    LEDGER,
    OpeningRules,
    configuration_hash,
    data_and_market,
    factor_set_as_of,
    factor_set_name,
    folders_apart,
    key_of_task,
    logged_opening,
    opening_of,
    opens_sealed,
    records_of,
    saved_task,
)
from qlib_llm_alpha.record.task_check import check_task

logger = logging.getLogger("qlib.tracking")
evidence_logger = logging.getLogger("qlib.evidence")

PARAMS_PER_CALL = 100  # MLflow's own limit of one batch
COMMAND = "cmd-sys.argv"
DESCRIPTION = "mlflow.note.content"  # what MLflow's page of a run shows first
EVIDENCE_MARK = "**Evidence:** "
FITTED = "dataset"  # what Qlib's trainer saves last before it makes the records
PREDICTIONS = "pred.pkl"
COMPUTED_FROM_TEST = ("sig_analysis", "portfolio_analysis", "gate")  # where records that open sealed save
APART = ("evidence", "factor_set", "leakage")  # where our records save that do not open it
# Qlib's records log what they compute before they save it: `IC`, `1day.excess_return_with_cost.mean`.
FROM_TEST_METRIC = re.compile(r"(Rank )?IC(IR)?|\d+(min|day|week|month)\..+")
SQLITE = "sqlite:///"


class VerifiedRecorder(MLflowRecorder):
    """Write at once, read back at the end.

    Attributes
    ----------
    logged_metrics : dict of str to float
        The value that MLflow shows for each metric: that of the highest step, of the latest time, the largest.
    logged_params, logged_tags : dict of str to str
        The parameters and tags given, as MLflow keeps them.
    rules : OpeningRules
        Where openings of sealed are logged, and what was declared before the run.
    task : mapping or None
        The task of the run, once it has passed its check.
    opening : Opening or None
        The opening of sealed, once it is logged.
    confirm_permit : ConfirmPermit or None
        The reading of confirm, once it is logged.
    factor_set : str
        Name of the factor set of a run without a task, once a record has said it.
    """

    def __init__(
        self,
        experiment_id: str,
        uri: str,
        name: str | None = None,
        mlflow_run: Any = None,
        *,
        rules: OpeningRules | None = None,
    ) -> None:
        super().__init__(experiment_id, uri, name, mlflow_run)
        self.rules = OpeningRules(Path(LEDGER).absolute()) if rules is None else rules
        self.task: Mapping[str, Any] | None = None
        self.opening: Opening | None = None
        self.confirm_permit: ConfirmPermit | None = None
        self.factor_set = ""
        self.planned: OpeningKey | None = None
        self.apart: frozenset[str] = frozenset()
        self.fitted = False
        self.logged_metrics: dict[str, float] = {}
        self.logged_params: dict[str, str] = {}
        self.logged_tags: dict[str, str] = {}
        self.newest: dict[str, tuple[int, int, float]] = {}
        self.resumed = mlflow_run is not None

    def start_run(self) -> Any:
        """Start the run; one that is resumed keeps the task, the opening and the description that it has."""
        run = super().start_run()
        task = saved_task(self) if self.resumed else None
        if task is not None:
            self.opening = logged_opening(TrialLedger(self.rules.ledger), str(self.id))
            self._accept(task)
        return run

    def save_objects(self, local_path: Any = None, artifact_path: str | None = None, **kwargs: Any) -> None:
        """Save as Qlib does; the task, which Qlib saves before it builds anything, is checked first.

        What a record saves goes to the store after the opening of sealed has been logged.
        """
        if local_path is None and artifact_path is None and "task" in kwargs:
            check_task(kwargs["task"])
            self._accept(kwargs["task"])
        self._open_when_due([artifact_path] if artifact_path else list(kwargs))
        if artifact_path and self._is_unannounced_opening(artifact_path):
            opening_of(self)
        super().save_objects(local_path=local_path, artifact_path=artifact_path, **kwargs)
        self.fitted |= local_path is None and artifact_path is None and FITTED in kwargs

    def log_params(self, **kwargs: Any) -> None:
        """Write parameters now; a second, different value for a parameter is an error."""
        if self.resumed:
            # Qlib logs the command at every start, and a run that is resumed elsewhere keeps that of its first.
            kwargs.pop(COMMAND, None)
        params = {name: str(value)[:MAX_PARAM_VAL_LENGTH] for name, value in kwargs.items()}
        for name, value in params.items():
            if self.logged_params.get(name, value) != value:
                raise RecordingError(
                    f"parameter {name!r} was logged as {self.logged_params[name]!r} and now as {value!r}; "
                    "MLflow keeps one value a run: use a metric with steps, or another name"
                )
        entries = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(entries), PARAMS_PER_CALL):
            self._write(params=entries[start : start + PARAMS_PER_CALL])
        self.logged_params.update(params)

    def log_metrics(self, step: int | None = None, **kwargs: Any) -> None:
        """Write metrics now; infinite values are refused, because MLflow would store another number."""
        self._open_when_due(list(kwargs))
        if any(FROM_TEST_METRIC.fullmatch(name) for name in kwargs) and self._is_unannounced_opening():
            opening_of(self)
        metrics = {name: float(value) for name, value in kwargs.items()}
        infinite = [name for name, value in metrics.items() if math.isinf(value)]
        if infinite:
            raise RecordingError(
                f"metrics {infinite} are infinite; MLflow stores 1.8e308 for that: log a finite value or leave them out"
            )
        now = int(time.time() * 1000)
        self._write(metrics=[Metric(name, value, now, step or 0) for name, value in metrics.items()])
        for name, value in metrics.items():
            entry = (step or 0, now, 0.0 if math.isnan(value) else value)
            if entry >= self.newest.get(name, entry):
                self.newest[name] = entry
                self.logged_metrics[name] = value

    def set_tags(self, **kwargs: Any) -> None:
        """Write tags now."""
        for name, value in kwargs.items():
            self.client.set_tag(self.id, name, value)
            self.logged_tags[name] = str(value)

    def end_run(self, status: str = Recorder.STATUS_S) -> None:
        """State the evidence and end the run; one that would be FINISHED is FAILED if something is missing."""
        hindered = self._state_evidence(status)
        missing = [*hindered, *self.missing()] if status == Recorder.STATUS_FI else []
        super().end_run(Recorder.STATUS_FA if missing else status)
        if missing:
            raise RecordingError(
                f"run {self.id} lacks what was logged: {'; '.join(missing)}. The store {self.uri} lost it or another "
                "process changed the run: run again with a store of its own"
            )

    def missing(self) -> list[str]:
        """Name every metric, parameter and tag that the store holds differently from what was logged."""
        data = self.client.get_run(self.id).data
        wrong = [
            f"metric {name!r} logged as {value!r}, found {data.metrics.get(name)!r}"
            for name, value in self.logged_metrics.items()
            if not _same(value, data.metrics.get(name))
        ]
        wrong += [
            f"parameter {name!r} logged as {value!r}, found {data.params.get(name)!r}"
            for name, value in self.logged_params.items()
            if data.params.get(name) != value
        ]
        wrong += [
            f"tag {name!r} logged as {value!r}, found {data.tags.get(name)!r}"
            for name, value in self.logged_tags.items()
            if data.tags.get(name) != value
        ]
        return wrong

    def _accept(self, task: Any) -> None:
        """Take a task that may run; WallError for one that would open sealed and may not."""
        if not isinstance(task, Mapping):
            return
        # Qlib puts the fitted model in place of <MODEL>, in the task itself.
        task = deepcopy_basic_type(task)
        planned = key_of_task(task) if any(opens_sealed(record) for record in records_of(task)) else None
        if planned is not None:
            self.rules.check(planned, as_of=factor_set_as_of(task["dataset"]))
        self.task, self.planned, self.apart = task, planned, folders_apart(task)

    def _open_when_due(self, names: Sequence[str] = ()) -> None:
        """Log the opening once the model has been fitted and a record saves what may say something about test.

        Parameters
        ----------
        names : sequence of str
            Of the files or metrics that are about to be saved, each begun by its record's folder.
        """
        if not self.fitted or self.planned is None or self.opening is not None:
            return
        if names and all(_lies_in(name, self.apart) for name in names):
            return
        self.opening = self.rules.open(self.planned, str(self.id))
        if self.opening.spent:
            logger.warning("The sealed dates of this run are SPENT: they were opened by force, now or before")

    def _is_unannounced_opening(self, folder: str = "") -> bool:
        """Say whether a save opens sealed although the task has not announced it, or there is none.

        A record may be made by hand, in a run that is resumed later too. Before anything was fitted or predicted there
        is nothing to open sealed with: a model that is being fitted may save where it likes.

        Parameters
        ----------
        folder : str
            Where a record saves; empty for metrics that bear the names of Qlib's records.
        """
        if self.opening is not None:
            return False
        if _lies_in(folder, COMPUTED_FROM_TEST):
            return True
        if _lies_in(folder, APART):
            return False
        saved = {FITTED, PREDICTIONS}.intersection(self.list_artifacts())
        if not saved:
            return False
        task = saved_task(self)
        if task is None:
            return PREDICTIONS in saved
        return key_of_task(task) is not None and not _lies_in(folder, folders_apart(task))

    def _state_evidence(self, status: str) -> list[str]:
        """Log the evidence line of a run that has a task or opened sealed; return what hinders it from FINISHED."""
        finished = status == Recorder.STATUS_FI
        try:
            if finished:
                self._open_when_due()
            ledger = TrialLedger(self.rules.ledger)
            opening = logged_opening(ledger, str(self.id)) if self.opening is None else self.opening
            if self.task is not None:
                configuration, factor_set = configuration_hash(self.task), factor_set_name(self.task["dataset"])
                data, _ = data_and_market()
            elif opening is not None:
                configuration, factor_set = opening.key.configuration, self.factor_set or opening.key.factor_set
                data = opening.key.data
            else:
                return []
            readings = 0 if self.confirm_permit is None else self.confirm_permit.readings
            line = evidence_line(
                ledger,
                {} if self.task is None else self.task,
                configuration=configuration,
                factor_set=factor_set,
                data=data,
                run=str(self.id),
                opening=opening,
                confirm_readings=readings,
            )
        except QlibLLMAlphaError as error:
            logger.error("The evidence line of run %s cannot be stated: %s", self.id, error)  # noqa: TRY400
            return [f"the evidence line: {error}"]
        evidence_logger.info("%s", line.sentence)
        described = self.client.get_run(self.id).data.tags.get(DESCRIPTION, "").partition(EVIDENCE_MARK)[0].rstrip()
        text = f"{described}\n\n{EVIDENCE_MARK}{line.sentence}".lstrip()
        self.set_tags(**{"evidence": line.sentence, DESCRIPTION: text})
        if finished:
            self.log_metrics(None, **line.metrics())
        return []

    def _write(self, **entries: Any) -> None:
        try:
            self.client.log_batch(self.id, **entries)
        except MlflowException as error:
            given = ", ".join(f"{entry.key}={entry.value}" for group in entries.values() for entry in group)
            raise RecordingError(
                f"MLflow refused {given}: {error.message}. Names take letters, digits, _ - . : / and space, and a "
                "parameter keeps its first value: mend the name or the value"
            ) from error

    def _log_uncommitted_code(self) -> None:
        """Save the state of the git repository around the working directory; outside of one there is nothing to say."""
        inside = subprocess.run(["git", "rev-parse"], capture_output=True, check=False) if shutil.which("git") else None  # noqa: S607
        if inside is not None and inside.returncode == 0:
            super()._log_uncommitted_code()


class VerifiedExperiment(MLflowExperiment):
    """Qlib's experiment, whose recorders are `VerifiedRecorder`."""

    def __init__(self, id: str, name: str, uri: str, rules: OpeningRules) -> None:
        super().__init__(id, name, uri)
        self.rules = rules

    def create_recorder(self, recorder_name: str | None = None) -> VerifiedRecorder:
        """Return a recorder that has not started."""
        return VerifiedRecorder(self.id, self._uri, recorder_name or self._default_rec_name, rules=self.rules)

    def _get_recorder(self, recorder_id: str | None = None, recorder_name: str | None = None) -> VerifiedRecorder:
        found = super()._get_recorder(recorder_id=recorder_id, recorder_name=recorder_name)
        return VerifiedRecorder(self.id, self._uri, mlflow_run=self._client.get_run(found.id), rules=self.rules)


class VerifiedExpManager(MLflowExpManager):
    """Qlib's experiment manager over an SQLite store, with artifacts beside the database.

    Parameters
    ----------
    uri : str
        ``sqlite:///path.db`` (three slashes: relative to the working directory; four: absolute), or any other URI that
        MLflow accepts except a ``file:`` store, which MLflow 3.13 and later refuse.
    default_exp_name : str
        The experiment of runs that name none.
    ledger : str
        Folder of the trial ledger, relative to the working directory.
    study : mapping, optional
        ``{name: NAME, cells: NUMBER}`` declares, before its first run, a grid of experiments that open the same sealed
        dates that many times in all.
    force : str
        A reason to open sealed dates that another configuration has opened. It is logged, and these dates are called
        spent in this run and in every later one. Read only where the opening would be refused.

    Raises
    ------
    ConfigError
        For a ``file:`` URI, and a study or force that means nothing.
    """

    active_experiment: Any

    def __init__(
        self,
        uri: str,
        default_exp_name: str = "llm_alpha",
        ledger: str = LEDGER,
        study: Mapping[str, Any] | None = None,
        force: str = "",
    ) -> None:
        if uri.startswith("file:") or "://" not in uri:
            raise ConfigError(
                f"exp_manager uri {uri!r}: expected a database or server such as 'sqlite:///mlflow.db'; MLflow no "
                "longer writes file stores: change qlib_init.exp_manager.kwargs.uri"
            )
        database = _database(uri)
        self.rules = OpeningRules.of(ledger, study, force, beside=None if database is None else database.parent)
        super().__init__(_absolute(uri), default_exp_name)
        self.database = _create_store(self.uri)

    def create_exp(self, experiment_name: str | None = None) -> VerifiedExperiment:
        """Create an experiment whose artifacts lie beside the database."""
        if experiment_name is None:
            raise ConfigError("create_exp was given no experiment name; give one, or set default_exp_name")
        location = None
        database = _create_store(self.uri)  # not always that of the constructor: a run may name a URI of its own
        if database is not None:
            folder = re.sub(r"[^\w.-]", "_", experiment_name)
            location = (database.parent / "mlartifacts" / folder).as_uri()
        try:
            experiment_id = self.client.create_experiment(experiment_name, artifact_location=location)
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                raise ExpAlreadyExistError from error
            raise
        # Without a kind MLflow's pages open in their view for language models, where metrics are hard to find.
        self.client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
        return VerifiedExperiment(experiment_id, experiment_name, self.uri, self.rules)

    def _get_exp(self, experiment_id: str | None = None, experiment_name: str | None = None) -> VerifiedExperiment:
        found = super()._get_exp(experiment_id=experiment_id, experiment_name=experiment_name)
        return VerifiedExperiment(found.id, found.name, self.uri, self.rules)

    def _end_exp(self, recorder_status: str = Recorder.STATUS_S) -> None:
        experiment = self.active_experiment
        if experiment is None:
            return
        recorder = experiment.active_recorder
        try:
            super()._end_exp(recorder_status=recorder_status)
        finally:
            # A run that ends with an error has ended all the same: the next one may start.
            experiment.active_recorder = None
            self.active_experiment = None
            status = recorder_status if recorder is None else recorder.status
            logger.info("Run %s. Look at it with: mlflow ui --backend-store-uri %s", status.lower(), self.uri)


def _absolute(uri: str) -> str:
    """Fix a relative database to the working directory of now: SQLite would follow the process around."""
    database = _database(uri)
    _, mark, options = uri.partition("?")
    return uri if database is None else f"{SQLITE}{database}{mark}{options}"


def _create_store(uri: str) -> Path | None:
    """Create the database of a URI once, and return its path; None for a server."""
    database = _database(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        # Two runs that start together would both create the schema, and one of them would fail.
        with FileLock(f"{database}.lock"):
            mlflow.tracking.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    return database


def _database(uri: str) -> Path | None:
    path, _, _ = uri.partition("?")
    return Path(path[len(SQLITE) :]).absolute() if path.startswith(SQLITE) else None


def _lies_in(name: str, folders: Iterable[str]) -> bool:
    """Say whether a folder, file or metric begins with one of these folders."""
    return any(name == folder or name.startswith((f"{folder}/", f"{folder}.")) for folder in folders)


def _same(logged: float, found: float | None) -> bool:
    if found is None:
        return False
    return (math.isnan(logged) and math.isnan(found)) or logged == found
