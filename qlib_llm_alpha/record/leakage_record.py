"""Whether the run's features know the future: the leak guards on the run's own handler and segments."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from qlib.config import C
from qlib.data.dataset import DatasetH
from qlib.workflow.record_temp import RecordTemp
from qlib.workflow.recorder import Recorder

from qlib_llm_alpha.data.preflight import provider_root
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.guard.finding import GUARDS
from qlib_llm_alpha.guard.suite import run_guards
from qlib_llm_alpha.record.artifacts import save_files
from qlib_llm_alpha.record.evidence_record import EvidenceRecord
from qlib_llm_alpha.record.openings import saved_task
from qlib_llm_alpha.report.evidence_text import leakage_page

logger = logging.getLogger("qlib.leakage")

# What of Qlib's settings a handler is built with; the provider and the store are the guards' own.
SETTINGS = (
    *("region", "custom_ops", "kernels", "provider", "dataset_provider", "expression_provider", "feature_provider"),
    *("calendar_provider", "instrument_provider", "pit_provider"),
)


class LeakageRecord(RecordTemp):
    """Run the leak guards on the handler of the run, and refuse the run when one finds a leak.

    List it first: what leaks is then refused before test is opened, so that the mended configuration can still open it.
    The trials of a refused run are counted. Each guard builds the handler anew in processes and folders of its own.
    Files, under ``leakage/``: ``leakage.md``, ``leakage.json``. The tag ``leakage`` is ``clean`` or ``leak``, the
    metric ``leakage/leaks`` their number. Nothing is computed from the outcomes of test.

    Parameters
    ----------
    refuse : bool
        Raise LeakError, after saving, when there is a leak: the run is then FAILED.
    guards : list of str, optional
        Names of ``qlib_llm_alpha.guard.finding.GUARDS``. Default: all that fit no model.
    days : int
        Days after which values are replaced.
    seed : int
        Of the replaced values.
    workers : int
        Processes at a time.
    handler : mapping, optional
        Class, module_path and kwargs of the handler. Default: that of the run's task.
    model, dataset
        ``<MODEL>`` and ``<DATASET>``; the trainer passes them by itself.
    """

    artifact_path = "leakage"
    opens_sealed = False

    def __init__(
        self,
        recorder: Recorder,
        refuse: bool = True,
        guards: Sequence[str] | None = None,
        days: int = 1,
        seed: int = 0,
        workers: int = 2,
        handler: Mapping[str, Any] | None = None,
        model: Any = None,
        dataset: Any = None,
    ) -> None:
        super().__init__(recorder=recorder)
        self.refuse = refuse
        self.guards = guards
        self.days = days
        self.seed = seed
        self.workers = workers
        self.handler = handler
        self.model = model
        self.dataset = dataset

    def generate(self, **kwargs: Any) -> None:
        """Ask every guard, save what each says, and raise LeakError for a leak unless it is only to be noted."""
        task = saved_task(self.recorder) or {}
        handler, segments, dataset = self._asked(task)
        report = run_guards(
            handler,
            {name: C[name] for name in SETTINGS if name in C._config and C[name] is not None},
            segments,
            provider_root(),
            guards=self.guards,
            model_config=task.get("model") if isinstance(task.get("model"), Mapping) else None,
            dataset_config=dataset,
            days=self.days,
            seed=self.seed,
            workers=self.workers,
        )
        rows = [(finding.guard, finding.verdict, GUARDS[finding.guard], finding.detail) for finding in report.findings]
        files = {"leakage.json": report.to_dict(), "leakage.md": leakage_page(report.sentence, report.verdict, rows)}
        save_files(self.recorder, self.artifact_path, files)
        self.recorder.set_tags(leakage=report.verdict)
        self.recorder.log_metrics(
            **{"leakage/leaks": float(len(report.leaks)), "leakage/guards": float(len(report.findings))}
        )
        if report.leaks:
            logger.error("LEAK: %s", report.sentence)
        else:
            logger.info("%s", report.sentence)
        if report.leaks and self.refuse:
            if isinstance(self.dataset, DatasetH):
                EvidenceRecord(self.recorder, model=self.model, dataset=self.dataset).count()
            report.raise_for_leaks()

    def list(self) -> list[str]:
        """Name the files that are always written."""
        return ["leakage.md", "leakage.json"]

    def _asked(
        self, task: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any] | None, Mapping[str, Any] | None]:
        """Return the settings of handler, segments and dataset."""
        dataset = task.get("dataset")
        settings = (dataset.get("kwargs") or {}) if isinstance(dataset, Mapping) else {}
        handler = settings.get("handler") if self.handler is None else self.handler
        if not isinstance(handler, Mapping):
            raise ConfigError(
                f"LeakageRecord found the handler {handler!r}; expected class, module_path and kwargs, from which it "
                "can be built again: name it so in the task, or give the record the keyword handler"
            )
        segments = settings.get("segments", getattr(self.dataset, "segments", None))
        given = dict(segments) if isinstance(segments, Mapping) else None
        return handler, given, dataset if isinstance(dataset, Mapping) else None
