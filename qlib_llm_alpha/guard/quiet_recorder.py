"""An experiment manager that records nothing, for models that log while they are fitted."""

from __future__ import annotations

from typing import Any

from qlib.workflow.exp import Experiment
from qlib.workflow.expm import ExpManager
from qlib.workflow.recorder import Recorder


class QuietRecorder(Recorder):
    """Take whatever is logged, and keep nothing."""

    def __init__(self) -> None:
        super().__init__("quiet", "quiet")
        self.id = "quiet"

    def start_run(self) -> None:
        """Start nothing."""

    def end_run(self, status: str = Recorder.STATUS_S) -> None:
        """End nothing."""

    def save_objects(self, local_path: Any = None, artifact_path: str | None = None, **kwargs: Any) -> None:
        """Save nothing."""

    def log_params(self, **kwargs: Any) -> None:
        """Log nothing."""

    def log_metrics(self, step: int | None = None, **kwargs: Any) -> None:
        """Log nothing."""

    def log_artifact(self, local_path: str, artifact_path: str | None = None) -> None:
        """Log nothing."""

    def set_tags(self, **kwargs: Any) -> None:
        """Tag nothing."""


class QuietExperiment(Experiment):
    """Hand out a recorder that keeps nothing."""

    def __init__(self) -> None:
        super().__init__("quiet", "quiet")
        self.active_recorder = QuietRecorder()

    def start(self, *, recorder_id: Any = None, recorder_name: Any = None, resume: bool = False) -> QuietRecorder:
        """Return the recorder."""
        return self.active_recorder

    def end(self, recorder_status: str = Recorder.STATUS_S) -> None:
        """End nothing."""

    def get_recorder(
        self, recorder_id: Any = None, recorder_name: Any = None, create: bool = True, start: bool = False
    ) -> QuietRecorder:
        """Return the recorder."""
        return self.active_recorder


class QuietExpManager(ExpManager):
    """Hand out an experiment that records nothing."""

    def __init__(self) -> None:
        super().__init__(uri="", default_exp_name="quiet")
        self.active_experiment = QuietExperiment()

    def start_exp(self, **kwargs: Any) -> QuietExperiment:
        """Return the experiment."""
        return self.active_experiment

    def end_exp(self, recorder_status: str = Recorder.STATUS_S, **kwargs: Any) -> None:
        """End nothing."""

    def get_exp(self, **kwargs: Any) -> QuietExperiment:
        """Return the experiment."""
        return self.active_experiment
