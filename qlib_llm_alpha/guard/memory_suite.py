"""What may be believed of figures that a language model had a part in: the days it can know, and what probes find."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from qlib_llm_alpha.engine.panel import DayLike
from qlib_llm_alpha.errors import ConfigError, LLMFailure
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.guard.memory_probes import (
    Asks,
    ProbeFinding,
    facts_requests,
    score_facts,
    score_false_days,
    score_recall,
    shared_out,
)
from qlib_llm_alpha.guard.memory_questions import (
    HORIZON,
    Case,
    Outcome,
    check_outcomes,
    false_day_requests,
    recall_requests,
)
from qlib_llm_alpha.guard.model_window import BUFFER_DAYS, WindowStatus, window_status
from qlib_llm_alpha.llm.models import ModelInfo
from qlib_llm_alpha.llm.request import Completion, Request

_BADGES: Final = {
    "recall": "RECALL",
    "renamed": "KEYED ON NAMES",
    "jitter": "KEYED ON FIGURES",
    "flips": "DOES NOT READ",
}
_NOTE: Final = "A probe that finds nothing proves no absence; it has asked these questions only."


@dataclass(frozen=True)
class MemoryReport:
    """What a model may remember, by date and by what it says.

    Parameters
    ----------
    model, revision : str
        Of the model that answered; of a recording, that which it was recorded from.
    asked_on : date
        The day on which it was asked; of a recording, the day of the recording.
    written_by : str
        Who gave the answers, where no model did: then there is no memory to probe. Empty otherwise.
    windows : tuple of WindowStatus
    probes : tuple of ProbeFinding
        Empty when nothing was asked.
    probed : tuple of date
        The days that were asked about.
    calls, failed : int
        Questions, and those that ended without a usable answer.
    replayed : int
        Answers that came from a journal or a recording.
    seed : int
    """

    model: str
    revision: str
    asked_on: date
    written_by: str
    windows: tuple[WindowStatus, ...]
    probes: tuple[ProbeFinding, ...] = ()
    probed: tuple[date, ...] = ()
    calls: int = 0
    failed: int = 0
    replayed: int = 0
    seed: int = 0

    @property
    def fired(self) -> tuple[ProbeFinding, ...]:
        """The probes that found memory."""
        return tuple(probe for probe in self.probes if probe.fired)

    @property
    def contradicted(self) -> bool:
        """Whether the model remembers days that it was said not to know: its stated cut-off is then not to be believed.

        So it is when recall fires on questions that all lie after ``clean_from``.
        """
        clean_from = [window.clean_from for window in self.windows if window.clean_from is not None]
        recalled = any(probe.probe == "recall" for probe in self.fired)
        return recalled and bool(clean_from) and min(self.probed) >= max(clean_from)

    @property
    def badge(self) -> str:
        """What the evidence line says of it, such as ``model memory: clean from 2024-06-01; RECALL p=0.002``."""
        if self.written_by:
            return f"model memory: none, the answers were given by {self.written_by}"
        parts = [_window_badge(self.windows)] if self.windows else []
        if self.contradicted:
            parts.append("STATED CUT-OFF CONTRADICTED")
        # The probe of flips fires when no effect is seen: a large p is then no strength.
        shown = {probe.probe: "" if probe.probe == "flips" else f" p={probe.p:.2g}" for probe in self.fired}
        parts += [f"{_BADGES[name]}{p}" for name, p in shown.items()]
        if self.probes and not self.fired:
            parts.append("probes found nothing")
        return f"model memory: {'; '.join(parts) or 'nothing was asked'}"

    @property
    def sentence(self) -> str:
        """The report in one line."""
        if self.written_by:
            return (
                f"{self.model}: the answers were given by {self.written_by} and by no model, so that there is no "
                "memory to probe; they show the path, not what a model knows"
            )
        said = [window.sentence for window in self.windows] + [f"{one.probe}: {one.sentence}" for one in self.probes]
        return f"{self.model} as asked on {self.asked_on}: {'; '.join(said) or 'nothing was asked'}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "model": self.model,
            "revision": self.revision,
            "asked_on": str(self.asked_on),
            "written_by": self.written_by,
            "badge": self.badge,
            "sentence": self.sentence,
            "contradicted": self.contradicted,
            "windows": [window.to_dict() for window in self.windows],
            "probes": [probe.to_dict() for probe in self.probes],
            "probed": [str(min(self.probed)), str(max(self.probed))] if self.probed else [],
            "calls": self.calls,
            "failed": self.failed,
            "replayed": self.replayed,
            "seed": self.seed,
        }

    def table(self, width: int = 100) -> str:
        """Return the report for people: windows, then probe, verdict, and what was found."""
        if self.written_by:
            return "\n".join(_wrapped(self.sentence, width))
        indent = " " * 27
        lines = [line for window in self.windows for line in _wrapped(window.sentence, width)]
        if self.probes:
            lines += ["", f"{'probe':<11} {'verdict':<15}found", "-" * width]
        for probe in self.probes:
            verdict = probe.verdict.upper() if probe.fired else probe.verdict
            text = _wrapped(probe.sentence, width - len(indent)) or [""]
            lines.append(f"{probe.probe:<11} {verdict:<15}{text[0]}")
            lines.extend(indent + line for line in text[1:])
        if self.probes:
            asked = f"{self.calls} questions, {self.failed} of them failed, {self.replayed} answers replayed"
            lines += ["-" * width, *_wrapped(f"{asked}; seed {self.seed}. {_NOTE}", width)]
        return "\n".join([*lines, "", self.badge])


def _wrapped(text: str, width: int) -> list[str]:
    # A date stays in one piece.
    return textwrap.wrap(text, width, break_on_hyphens=False)


def memory_report(
    client: Asks | None,
    model: ModelInfo,
    windows: Sequence[tuple[DayLike, DayLike]],
    outcomes: Sequence[Outcome] = (),
    cases: Sequence[Case] = (),
    *,
    walls: Walls | None = None,
    asked_on: date,
    written_by: str = "",
    horizon: int = HORIZON,
    buffer_days: int = BUFFER_DAYS,
    seed: int = 0,
) -> MemoryReport:
    """Say what a model may remember of some windows, and probe it; all questions go out in one call.

    Parameters
    ----------
    client : Asks or None
        None asks nothing: only dates are compared.
    model : ModelInfo
        Of the model that answers, from the registry.
    windows : sequence of (first day, last day)
        Such as the test segment.
    outcomes : sequence of Outcome
        Questions by day and name, as from ``memory_questions.draw_outcomes``.
    cases : sequence of Case
        Facts, as from ``memory_questions.draw_cases``.
    walls : Walls, optional
        Needed with outcomes: they must lie in search or tune.
    asked_on : date
        The day on which the model is asked; of a recording, the day it was recorded.
    written_by : str
        Who gave the answers when no model did, as those of the recording in the repository: nothing is asked then.
    horizon, buffer_days, seed
        As for the probes and ``model_window.window_status``.

    Raises
    ------
    WallError, ConfigError
        Outcomes that may not be looked at, or without walls; a window that ends before it begins.
    LLMError
        What ``client.complete`` raises; answers that came before are in its journal.
    """
    statuses = tuple(
        window_status(start, end, model, buffer_days=buffer_days, today=asked_on) for start, end in windows
    )
    if written_by or client is None or not (outcomes or cases):
        return MemoryReport(model.name, model.revision, asked_on, written_by, statuses, seed=seed)
    if outcomes and walls is None:
        raise ConfigError("outcomes were given without walls; expected those of the run, which say what may be seen")
    if walls is not None:
        check_outcomes(outcomes, walls)
    asked = _requests(client, outcomes, cases, horizon, seed)
    answers = client.complete([request for part in asked.values() for request in part])
    parts = shared_out(answers, asked)
    probes: list[ProbeFinding] = []
    if outcomes:
        probes.append(score_recall(outcomes, parts["real"], model=client.model, seed=seed))
        probes.append(score_false_days(parts["real"], parts["false"], model=client.model))
    if cases:
        probes.extend(score_facts(cases, parts, model=client.model, seed=seed))
    return MemoryReport(
        model=model.name,
        revision=model.revision,
        asked_on=asked_on,
        written_by="",
        windows=statuses,
        probes=tuple(probes),
        probed=tuple(one.day for one in outcomes),
        calls=len(answers),
        failed=sum(isinstance(answer, LLMFailure) for answer in answers),
        replayed=sum(isinstance(answer, Completion) and answer.replayed for answer in answers),
        seed=seed,
    )


def _requests(
    client: Asks, outcomes: Sequence[Outcome], cases: Sequence[Case], horizon: int, seed: int
) -> Mapping[str, list[Request]]:
    asked = {
        "real": recall_requests(outcomes, client.model, client.revision, horizon=horizon),
        "false": false_day_requests(outcomes, client.model, client.revision, horizon=horizon),
    }
    return asked | facts_requests(cases, client.model, client.revision, horizon=horizon, seed=seed)


def _window_badge(windows: Sequence[WindowStatus]) -> str:
    if any(window.status == "unknown" for window in windows):
        return "unknown cut-off: treated as contaminated"
    clean_from = max(window.clean_from for window in windows if window.clean_from is not None)
    found = {window.status for window in windows}
    if found == {"clean"}:
        return f"clean, as every day from {clean_from}"
    return f"{'partial' if found != {'contaminated'} else 'contaminated'}, clean only from {clean_from}"
