"""Probe a language model's memory of a provider's market, with answers kept in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np

from qlib_llm_alpha.data.bars import open_panel
from qlib_llm_alpha.engine.panel import DayLike
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.guard.memory_probes import Asks
from qlib_llm_alpha.guard.memory_questions import HORIZON, QUESTIONS, Case, Outcome, draw_cases, draw_outcomes
from qlib_llm_alpha.guard.memory_suite import MemoryReport, memory_report
from qlib_llm_alpha.guard.model_window import BUFFER_DAYS, is_written
from qlib_llm_alpha.llm.client import AnswersRequests
from qlib_llm_alpha.llm.models import ModelRegistry
from qlib_llm_alpha.llm.recording import Recording
from qlib_llm_alpha.mining.llm_session import ModelPlan, open_client, recording_of, write_recording

ASKED_ON: Final = "asked_on"
"""Entry of a recording's header: the day on which its model was asked."""


def probe_memory(
    provider: Path,
    universe: str | Sequence[str],
    plan: ModelPlan,
    out: Path,
    *,
    start: DayLike,
    end: DayLike,
    windows: Sequence[tuple[DayLike, DayLike]] = (),
    questions: int = QUESTIONS,
    horizon: int = HORIZON,
    buffer_days: int = BUFFER_DAYS,
    seed: int = 0,
    today: date,
    gateway: AnswersRequests | None = None,
) -> MemoryReport:
    """Say what a model can know of test windows by its cut-off, and ask what it remembers of days before them.

    Parameters
    ----------
    provider : Path
        Folder of a Qlib provider; its codes are the names that the model is asked about.
    universe : str or sequence of str
    plan : ModelPlan
        Model, mode, recording, budget and registry; its documents are not read.
    out : Path
        Folder that keeps every answer, so that the same question is asked once; in mode ``record`` also a recording.
    start, end : date
        Days whose outcomes may be looked at, such as the search segment. No bar after ``end`` is read.
    windows : sequence of (first day, last day)
        Test segments, each after ``end``. Without any, the status is that of ``start`` to ``end``.
    questions : int
        For each probe; seven requests each at most. 0 asks nothing and compares dates only.
    horizon : int
        Trading days over which a price rises or falls.
    buffer_days, seed
        As for ``memory_suite.memory_report``.
    today : date
        The day on which a live model is asked. Of a recording the day that its header states as ``asked_on`` counts.
    gateway : AnswersRequests, optional
        Asked instead of the endpoint that the environment names.

    Raises
    ------
    ConfigError
        A negative number of questions; a window that begins before ``end``; too few bars for a question.
    LLMError
        The model cannot be asked; what was answered is kept.
    """
    if questions < 0:
        raise ConfigError(f"questions is {questions}; expected 0 or more; {QUESTIONS} is usual, 0 compares dates only")
    walls = Walls.from_segments({"train": (start, end)})
    for window in windows:
        Walls.from_segments({"train": (start, end), "test": window})
    recording = recording_of(plan) if plan.mode_now() == "replay" else None
    asked_on = today if recording is None else _asked_on(recording, today)
    model = plan.model_now()
    info = ModelRegistry.of(plan.models).get(model)

    def report(client: Asks | None, outcomes: Sequence[Outcome] = (), cases: Sequence[Case] = ()) -> MemoryReport:
        return memory_report(
            client,
            info,
            windows or [(start, end)],
            outcomes,
            cases,
            walls=walls,
            asked_on=asked_on,
            written_by=_written_by(model, recording),
            horizon=horizon,
            buffer_days=buffer_days,
            seed=seed,
        )

    if questions == 0 or _written_by(model, recording):
        return report(None)
    outcomes, cases = market_questions(provider, universe, walls, count=questions, horizon=horizon, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    with open_client(plan, out, gateway=gateway) as client:
        found = report(client, outcomes, cases)
        note, asked = f"memory probes answered by {model}", {ASKED_ON: str(today)}
        write_recording(client, out, data="", made_by="guard memory --mode record", note=note, **asked)
    return found


def market_questions(
    provider: Path,
    universe: str | Sequence[str],
    walls: Walls,
    *,
    count: int = QUESTIONS,
    horizon: int = HORIZON,
    seed: int = 0,
) -> tuple[tuple[Outcome, ...], tuple[Case, ...]]:
    """Draw outcomes of a provider's search segment, and the facts of each.

    Raises
    ------
    ConfigError
        No day of the segment has bars to ask about.
    """
    panel = open_panel(provider, universe, end=walls.search.end)
    close, volume = (panel.untiled(panel.column(name).values).astype(np.float64) for name in ("$close", "$volume"))
    member = None if panel.member is None else panel.untiled(panel.member).astype(np.bool_)
    days, names = panel.days, panel.instruments
    outcomes = draw_outcomes(days, names, close, walls, count=count, horizon=horizon, member=member, seed=seed)
    if not outcomes:
        raise ConfigError(
            f"{walls.search.start} to {walls.search.end} has no member whose price moved enough over {horizon} days; "
            "expected bars to ask about; choose other days or another universe"
        )
    return outcomes, draw_cases(outcomes, days, names, close, volume, seed=seed)


def _asked_on(recording: Recording, today: date) -> date:
    stated = recording.header.get(ASKED_ON, "")
    try:
        return date.fromisoformat(stated) if stated else today
    except ValueError as error:
        raise ConfigError(
            f"recording {recording.path.name!r} was asked on {stated!r}; expected a date such as '2026-01-31'; mend "
            "its header"
        ) from error


def _written_by(model: str, recording: Recording | None) -> str:
    if not is_written(model):
        return ""
    return f"a stated rule or people ({model if recording is None else recording.header['note']})"
