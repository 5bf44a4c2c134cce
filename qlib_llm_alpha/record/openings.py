"""When a run opens the sealed segment, under which key, and whether it may.

Qlib's records compute from the outcomes of test whenever they are listed. What lists them is therefore judged by the
task, before anything is loaded, and logged when the first of them has something to save.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from qlib.config import C
from qlib.utils import get_callable_kwargs
from qlib.utils.exceptions import LoadObjectError
from qlib.workflow import record_temp
from qlib.workflow.record_temp import SignalRecord
from qlib.workflow.recorder import Recorder

import qlib_llm_alpha
from qlib_llm_alpha.data.fingerprint import market_name, provider_fingerprint
from qlib_llm_alpha.data.handler import FactorSetHandler
from qlib_llm_alpha.errors import ConfigError, MissingArtifactError, WallError
from qlib_llm_alpha.evaluation.confirm import ConfirmPermit, read_confirm
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.openings import Opening, OpeningKey, check_opening, open_segment
from qlib_llm_alpha.library.factor_set import FactorSet
from qlib_llm_alpha.record.task_check import classes_of, closed_segments

LEDGER = "ledger"
STUDY_KEYS = {"name", "cells"}
HOW = (
    "In a workflow these are qlib_init.exp_manager.kwargs: `study: {name: NAME, cells: NUMBER}` in every YAML of the "
    "grid, or `force: REASON`. On the embedded market another seed is another market: `qlib-llm-alpha market --seed 8`"
)
FILES_READ = {".yaml", ".yml", ".json", ".csv", ".txt", ".parquet", ".pkl"}
_FIRST_DAY, _LAST_DAY = "0001-01-01", "9999-12-31"


@dataclass(frozen=True)
class OpeningRules:
    """Where openings are logged, and what was declared before the run.

    Parameters
    ----------
    ledger : Path
        Folder of the ledger.
    study, cells : str, int
        A declared grid of experiments and its number of cells.
    force : str
        Why the segment is opened although it would be refused.
    """

    ledger: Path = Path(LEDGER)
    study: str = ""
    cells: int = 1
    force: str = ""

    @classmethod
    def of(cls, ledger: Any, study: Any, force: Any, *, beside: Path | None = None) -> OpeningRules:
        """Read what ``qlib_init.exp_manager.kwargs`` says.

        A relative folder of the ledger lies beside the database of the runs: whoever sees the runs has the same ledger.
        Without a database of one's own, on a server, it is taken from the working directory.

        Raises
        ------
        ConfigError
            A study without name or cells, or with other keys; a force that is no reason.
        """
        if not isinstance(ledger, str) or not ledger.strip():
            raise ConfigError(f"exp_manager ledger is {ledger!r}; expected a folder such as 'ledger': name one")
        if not isinstance(force, str):
            raise ConfigError(f"exp_manager force is {force!r}; expected a reason in words, or '' for none")
        folder = ((Path.cwd() if beside is None else beside) / ledger).absolute()
        if study is None:
            return cls(folder, force=force)
        if not isinstance(study, Mapping) or set(study) != STUDY_KEYS or not str(study["name"]).strip():
            raise ConfigError(f"exp_manager study is {study!r}; expected {{name: NAME, cells: NUMBER}}: give both")
        cells = study["cells"]
        if isinstance(cells, bool) or not isinstance(cells, int) or cells < 1:
            raise ConfigError(f"exp_manager study has {cells!r} cells; expected how many runs it opens sealed with")
        return cls(folder, str(study["name"]), cells, force)

    def check(self, key: OpeningKey, *, as_of: str | None = None) -> None:
        """Refuse early what `open` would refuse, and factors that were chosen with the days of test.

        Parameters
        ----------
        key : OpeningKey
        as_of : str, optional
            The day up to which bars were read to choose the factor set.

        Raises
        ------
        WallError
            The segment was opened by another configuration, the study's cells differ or are used up, or the factor set
            is of a day inside the segment or after it.
        """
        if as_of is not None and as_of >= key.start and not self.force:
            raise WallError(
                f"the factor set {key.factor_set!r} was chosen with bars up to {as_of}, and test begins {key.start}; "
                "expected factors chosen before test: mine on earlier days, test on later ones, or force with a "
                "reason, which this run and every later report will state as spent"
            )
        try:
            check_opening(TrialLedger(self.ledger), key, study=self.study, cells=self.cells, force=self.force)
        except WallError as error:
            raise WallError(f"{error}. {HOW}") from None

    def open(self, key: OpeningKey, run: str) -> Opening:
        """Log an opening; WallError as for `check`."""
        try:
            return open_segment(
                TrialLedger(self.ledger), key, study=self.study, cells=self.cells, force=self.force, run=run
            )
        except WallError as error:
            raise WallError(f"{error}. {HOW}") from None

    def confirm(self, key: OpeningKey, run: str) -> ConfirmPermit:
        """Log a reading of confirm."""
        return read_confirm(TrialLedger(self.ledger), key, study=self.study, run=run)


def opening_of(recorder: Recorder) -> Opening:
    """Return the opening of a run, logged now unless it was logged before.

    A run of a task is keyed by the task; one that was put together by hand by its predictions. Under an experiment
    manager of Qlib the opening is logged in the folder ``ledger`` of the working directory.

    Raises
    ------
    WallError
        The segment was opened by another configuration.
    MissingArtifactError
        The run has neither a task nor predictions.
    """
    known = getattr(recorder, "opening", None)
    if isinstance(known, Opening):
        return known
    rules = rules_of(recorder)
    task = saved_task(recorder)
    key = key_of_predictions(_predictions(recorder)) if task is None else key_of_task(task)
    if key is None:
        raise ConfigError("segments have no 'test', which this record compares on; add its dates or leave it out")
    recorder.opening = rules.open(key, str(recorder.id))
    opening: Opening = recorder.opening
    return opening


def logged_opening(ledger: TrialLedger, run: str) -> Opening | None:
    """Return the last opening that a run has logged; None when it has logged none."""
    rows = [row for row in ledger.openings() if row.body["run"] == run]
    if not rows:
        return None
    said = {name: value for name, value in rows[-1].body.items() if name != "run"}
    return Opening(**{**said, "key": OpeningKey(**said["key"])}, row=rows[-1].number)


def rules_of(recorder: Recorder) -> OpeningRules:
    """Return the rules under which a recorder runs; the defaults for one of Qlib's own."""
    rules = getattr(recorder, "rules", None)
    return rules if isinstance(rules, OpeningRules) else OpeningRules(Path(LEDGER).absolute())


def saved_task(recorder: Recorder) -> Mapping[str, Any] | None:
    """Return the task of a run; None for a run that was put together by hand."""
    try:
        task = recorder.load_object("task")
    except LoadObjectError:
        return None
    return task if isinstance(task, Mapping) else None


def records_of(task: Mapping[str, Any]) -> list[Any]:
    """Return the records of a task; Qlib takes one mapping for a list of one."""
    records = task.get("record") or []
    return [records] if isinstance(records, Mapping) else list(records)


def opens_sealed(record: Any) -> bool:
    """Say whether a record computes from the outcomes of test: by its class's ``opens_sealed``, else yes.

    Of Qlib's records only ``SignalRecord`` does not: it saves predictions and labels and computes nothing from both.
    """
    kind = type(record)
    if isinstance(record, Mapping):
        kind, _ = get_callable_kwargs(dict(record), default_module=record_temp)
    stated = getattr(kind, "opens_sealed", None)
    return stated if isinstance(stated, bool) else kind is not SignalRecord


def folders_apart(task: Mapping[str, Any]) -> frozenset[str]:
    """Return where the task's records save that do not open sealed; what they save says nothing about test."""
    kinds = [
        get_callable_kwargs(dict(record), default_module=record_temp)[0] if isinstance(record, Mapping) else record
        for record in records_of(task)
        if not opens_sealed(record)
    ]
    return frozenset(kind.artifact_path for kind in kinds if kind.artifact_path)


def key_of_task(task: Mapping[str, Any], segment: str = "test") -> OpeningKey | None:
    """Return the key under which a task opens a segment; None when it has no such segment."""
    ends = _dates(task["dataset"], segment)
    if ends is None:
        return None
    return OpeningKey(configuration_hash(task), factor_set_name(task["dataset"]), *data_and_market(), *ends)


def key_of_predictions(predictions: pd.DataFrame | pd.Series) -> OpeningKey:
    """Return the key of a run without a task: its configuration is what it predicted, its dates are theirs."""
    days = predictions.index.get_level_values("datetime")
    frame = predictions.to_frame() if isinstance(predictions, pd.Series) else predictions
    hashed = hashlib.sha256(pd.util.hash_pandas_object(frame).to_numpy().tobytes()).hexdigest()
    ends = (f"{days.min():%Y-%m-%d}", f"{days.max():%Y-%m-%d}")
    return OpeningKey(f"predictions {hashed}", "of the predictions", *data_and_market(), *ends)


def configuration_hash(task: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a task computes from test with: model, dataset, and the records that open it.

    Names of runs and experiments, records that do not open sealed, the order of keys and the folder that paths lie in
    do not count; everything else does, the number of threads included. Of a class that is installed neither with Qlib
    nor with another package the source file counts, and of a file that the task names its content.
    """
    kept = {name: task[name] for name in ("model", "dataset", "reweighter") if task.get(name) is not None}
    kept["record"] = [record for record in records_of(task) if opens_sealed(record)]
    kept["sources"] = _own_sources(kept)
    text = json.dumps(_canonical(kept), sort_keys=True, ensure_ascii=False, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def factor_set_name(dataset: Any) -> str:
    """Return ``<name> <id>`` of a factor set's handler, and the class of any other handler."""
    handler = handler_of(dataset)
    if isinstance(handler, FactorSetHandler):
        return f"{handler.factor_set.name} {handler.factor_set.id}"
    if not isinstance(handler, Mapping):
        return str(handler) if isinstance(handler, str) else type(handler).__name__
    factors = configured_set(handler)
    if factors is not None:
        return f"{factors.name} {factors.id}"
    kind, _ = get_callable_kwargs(dict(handler))
    return str(getattr(kind, "__name__", kind))


def factor_set_as_of(dataset: Any) -> str | None:
    """Return the day up to which bars were read to choose the factor set of a dataset; None where nobody says."""
    handler = handler_of(dataset)
    factors = handler.factor_set if isinstance(handler, FactorSetHandler) else configured_set(handler)
    return None if factors is None else factors.as_of


def seen_before(ledger: TrialLedger, key: OpeningKey, as_of: str | None) -> tuple[str, ...]:
    """Say how the days of a sealed segment were looked at otherwise than by an opening; empty when they were not.

    Parameters
    ----------
    ledger : TrialLedger
    key : OpeningKey
        Of the segment.
    as_of : str or None
        Of the factor set.
    """
    trials = ledger.trials(data=key.data)
    inside = int(((trials["end"] >= key.start) & (trials["start"] <= key.end)).sum())
    remarks = [f"{inside} trials were scored on days of test"] if inside else []
    if as_of is not None and as_of >= key.start:
        remarks.append(f"the factor set was chosen with bars up to {as_of}")
    return tuple(remarks)


def data_and_market() -> tuple[str, str]:
    """Return the fingerprint of the provider that Qlib has open, and the name of its market."""
    root = Path(C.dpm.get_data_uri("day" if "day" in C.dpm.provider_uri else C.DEFAULT_FREQ))
    return provider_fingerprint(root), market_name(root, str(C.region))


def configured_set(handler: Any) -> FactorSet | None:
    """Return the factor set that a handler's configuration names; None for another handler."""
    if not isinstance(handler, Mapping):
        return None
    kind, kwargs = get_callable_kwargs(dict(handler))
    if not (isinstance(kind, type) and issubclass(kind, FactorSetHandler)):
        return None
    return kind.configured_set(**(kwargs or {}))


def handler_of(dataset: Any) -> Any:
    """Return the handler of a dataset, or the configuration of one that is not built yet."""
    if isinstance(dataset, Mapping):
        return (dataset.get("kwargs") or {}).get("handler")
    return getattr(dataset, "handler", None)


def _dates(dataset: Any, segment: str) -> tuple[str, str] | None:
    given = (dataset.get("kwargs") or {}).get("segments") if isinstance(dataset, Mapping) else None
    segments = given if isinstance(dataset, Mapping) else getattr(dataset, "segments", None)
    if not isinstance(segments, Mapping) or segments.get(segment) is None:
        return None
    first, last = closed_segments({segment: segments[segment]})[segment]
    return _day(first, _FIRST_DAY), _day(last, _LAST_DAY)


def _day(value: Any, default: str) -> str:
    return default if value is None else f"{pd.Timestamp(str(value)):%Y-%m-%d}"


def _predictions(recorder: Recorder) -> pd.DataFrame | pd.Series:
    try:
        found: pd.DataFrame | pd.Series = recorder.load_object("pred.pkl")
    except LoadObjectError as error:
        raise MissingArtifactError(
            "pred.pkl is not in the run; expected it before a record that computes from test: list SignalRecord first"
        ) from error
    return found


def _canonical(value: Any) -> Any:
    """Return plain JSON values that are equal when two configurations mean the same."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, slice):
        return [_canonical(value.start), _canonical(value.stop)]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _portable(value)
    if isinstance(value, datetime.date):
        return str(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{type(value).__module__}.{type(value).__qualname__} {joblib.hash(value)}"


def _own_sources(task: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash for the source file of each class of a task that is the user's own, by its name."""
    found = {}
    for _, config, module in classes_of(task, "task", None):
        if not config.get("module_path") and module is None:
            continue
        kind, _ = get_callable_kwargs(dict(config), default_module=module)
        source = inspect.getsourcefile(kind) if inspect.isclass(kind) or inspect.isfunction(kind) else None
        if source is not None and not _is_installed(Path(source)):
            digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
            found[f"{kind.__module__}.{kind.__qualname__}"] = digest
    return found


def _is_installed(source: Path) -> bool:
    ours = Path(qlib_llm_alpha.__file__).parent
    return source.is_relative_to(ours) or {"site-packages", "dist-packages"} & set(source.parts) != set()


def _portable(text: str) -> str:
    path = Path(text)
    if path.suffix in FILES_READ and path.is_file():
        return f"file {hashlib.sha256(path.read_bytes()).hexdigest()}"
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return text
