"""Run leak guards on a handler, a function or a workflow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.guard.finding import GUARDS, Finding, GuardReport, chosen_guards
from qlib_llm_alpha.guard.fresh_process import Compute, import_paths
from qlib_llm_alpha.guard.handler_guards import (
    check_extended_window,
    check_normaliser,
    check_poison,
    check_stale_cache,
    check_truncation,
)
from qlib_llm_alpha.guard.label_reach import check_label_reach
from qlib_llm_alpha.guard.lag import check_lag
from qlib_llm_alpha.guard.model_poison import check_model_poison
from qlib_llm_alpha.guard.segments import check_segments
from qlib_llm_alpha.guard.subject import Builds, Subject
from qlib_llm_alpha.guard.warm_process import TIMEOUT_S


def run_guards(
    handler_config: Mapping[str, Any],
    qlib_settings: Mapping[str, Any],
    segments: Mapping[str, Any] | None,
    provider: str | Path,
    *,
    guards: Sequence[str] | None = None,
    model_config: Mapping[str, Any] | None = None,
    dataset_config: Mapping[str, Any] | None = None,
    paths: Sequence[str] | None = None,
    with_model: bool = False,
    days: int = 2,
    seed: int = 0,
    workers: int = 2,
    timeout_s: float = TIMEOUT_S,
) -> GuardReport:
    """Ask whether a handler, its segments and its model know what they could not know.

    Each variant is built in a process and a folder of its own; nothing is written to the provider, the present folder
    or the store of experiments.

    Parameters
    ----------
    handler_config : mapping
        ``task.dataset.kwargs.handler`` of a workflow: class, module_path, kwargs.
    qlib_settings : mapping
        ``qlib_init`` of the workflow; provider and experiment manager are replaced.
    segments : mapping or None
        ``task.dataset.kwargs.segments``; without them the guards of segments, normalisers and labels do not apply.
    provider : path
        The daily provider.
    guards : sequence of str, optional
        Names of ``GUARDS``. Default: all that fit no model.
    model_config : mapping, optional
        ``task.model``; needed by ``label_reach`` and ``model_poison``.
    dataset_config : mapping, optional
        ``task.dataset``, where it is not a ``DatasetH``.
    paths : sequence of str, optional
        Folders from which modules are imported. Default: the present one.
    with_model : bool
        Run the guards that fit the model as well.
    days : int
        Days after which values are replaced.
    seed : int
        Of the replaced values.
    workers : int
        Processes at a time; they end with this call.
    timeout_s : float
        Seconds that one build may take; one that takes longer is ended, and counts as one that cannot be built.

    Returns
    -------
    GuardReport

    Raises
    ------
    ConfigError
        A guard that does not exist, a handler that cannot be built at all.
    ProviderError
        No daily provider.
    """
    subject = Subject(
        handler_config,
        dict(qlib_settings),
        Path(provider).expanduser().absolute(),
        segments=segments,
        dataset=dataset_config,
        model=model_config,
        paths=import_paths(None, None) if paths is None else tuple(paths),
    )
    return _run(subject, chosen_guards(guards, with_model=with_model), days, seed, workers, timeout_s)


def check_signal(
    compute: Compute,
    provider: str | Path,
    *,
    qlib_settings: Mapping[str, Any] | None = None,
    guards: Sequence[str] | None = None,
    days: int = 2,
    seed: int = 0,
    workers: int = 2,
    timeout_s: float = TIMEOUT_S,
) -> GuardReport:
    """Ask the same of any function that makes a signal from a provider.

    Parameters
    ----------
    compute : callable
        Takes the provider's path, returns a frame or a series indexed (datetime, instrument); a row dated t must use
        what is known at the close of t. Qlib is open on the provider when it is called.
    provider : path
        The daily provider.
    qlib_settings : mapping, optional
        Settings of ``qlib.init``. Default: region cn.
    guards, days, seed, workers, timeout_s
        As for :func:`run_guards`; by default ``poison``, ``truncation`` and ``lag``.

    Returns
    -------
    GuardReport
    """
    chosen = chosen_guards(("poison", "truncation", "lag") if guards is None else guards, with_model=False)
    root = Path(provider).expanduser().absolute()
    subject = Subject(compute, dict(qlib_settings or {"region": "cn"}), root, paths=import_paths(None, None))
    return _run(subject, chosen, days, seed, workers, timeout_s)


def _run(subject: Subject, guards: Sequence[str], days: int, seed: int, workers: int, timeout_s: float) -> GuardReport:
    if days < 1:
        raise ConfigError(f"days is {days!r}; expected 1 or more days after which values are replaced; give 2")
    began = time.monotonic()
    # The guards wait for builds, which are made a few at a time: what ends the builds must come before what waits for
    # the guards.
    with (
        tempfile.TemporaryDirectory(prefix="leak-guards-") as scratch,
        ThreadPoolExecutor(max_workers=len(GUARDS)) as pool,
        closing(Builds(subject, Path(scratch), workers=workers, seed=seed, timeout_s=timeout_s)) as builds,
    ):
        builds.clean()
        chosen = builds.days(days)
        questions: dict[str, Callable[[], Finding]] = {
            "segments": lambda: _segments(builds),
            "poison": lambda: check_poison(builds, chosen),
            "truncation": lambda: check_truncation(builds, chosen),
            "lag": lambda: check_lag(builds),
            "label_reach": lambda: check_label_reach(builds),
            "model_poison": lambda: check_model_poison(builds),
            "extended_window": lambda: check_extended_window(builds),
            "normaliser": lambda: check_normaliser(builds),
            "stale_cache": lambda: check_stale_cache(builds),
        }
        asked = {name: pool.submit(questions[name]) for name in guards if name in questions}
        findings = tuple(asked[name].result() for name in asked)
    dates = tuple(f"{day:%Y-%m-%d}" for day in chosen)
    return GuardReport(subject.name, findings, dates, seed, time.monotonic() - began)


def _segments(builds: Builds) -> Finding:
    segments = builds.subject.segments
    if not segments or builds.subject.with_dates() is None:
        detail = "no segments were given; give those of the dataset"
        return Finding("segments", builds.subject.name, "not applicable", detail, {})
    return check_segments(segments, builds.clean(), "segments")
