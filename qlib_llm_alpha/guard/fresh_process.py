"""Build a handler, a dataset or a model in a process and a folder of their own.

Qlib's configuration, operators and memory cache are global, and a handler may keep what it computed in a file: only a
new process in an empty folder shows what a first run would give.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import cloudpickle
import pandas as pd

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.guard.warm_process import LOG, WarmProcesses

Compute: TypeAlias = Callable[[str], pd.DataFrame]
HandlerConfig: TypeAlias = Mapping[str, Any] | Compute

JOB, RESULT = "job.pkl", "built.pkl"
_COPY_LIMIT: Final = 64_000_000
_LOG_LINES: Final = 3


@dataclass(frozen=True)
class Job:
    """What a fresh process builds.

    Parameters
    ----------
    handler : mapping or callable
        A handler as in a YAML, or a function of the provider's path that returns a frame.
    qlib_init : mapping
        Settings of ``qlib.init``.
    provider : str
        Folder of the provider, in place of that of the settings.
    paths : tuple of str
        Folders from which modules are imported.
    first : mapping, optional
        A handler that is built before the other, in the same process and folder.
    dataset, segments : mapping, optional
        Dataset without its handler, and its segments; what each gives is returned.
    model : mapping, optional
        Fitted on the dataset, then asked to predict every row up to `predict_until`.
    predict_from, predict_until : str
        First and last day that is predicted.
    """

    handler: HandlerConfig
    qlib_init: Mapping[str, Any]
    provider: str
    paths: tuple[str, ...] = ()
    first: Mapping[str, Any] | None = None
    dataset: Mapping[str, Any] | None = None
    segments: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    predict_from: str = ""
    predict_until: str = ""


@dataclass(frozen=True)
class FitWindow:
    """What a processor was fitted on: the dates it was given, None where unbounded."""

    processor: str
    start: str | None
    end: str | None


@dataclass
class Built:
    """What came of a job; `error` says why nothing did.

    Frames are indexed (datetime, instrument), sorted by day. ``raw`` is None where the handler keeps none.
    """

    error: str = ""
    kind: str = ""
    raw: pd.DataFrame | None = None
    infer: pd.DataFrame = field(default_factory=pd.DataFrame)
    learn: pd.DataFrame | None = None
    label: pd.DataFrame | None = None
    first: pd.DataFrame | None = None
    fits: list[FitWindow] = field(default_factory=list)
    segments: dict[str, dict[str, pd.Series]] = field(default_factory=dict)
    segment_errors: dict[str, str] = field(default_factory=dict)
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)

    def features(self) -> pd.DataFrame:
        """Return the features before any processor, or those that prediction reads where no others are kept."""
        return self.infer if self.raw is None else self.raw

    def calendar(self) -> pd.DatetimeIndex:
        """Return the days of the rows."""
        days: pd.DatetimeIndex = self.features().index.get_level_values("datetime").unique().sort_values()
        return days


def build(job: Job, folder: Path, processes: WarmProcesses) -> Built:
    """Do a job in a process of its own whose working directory is below `folder`, and return what it gave.

    A job that takes longer than the time limit of ``processes`` gives an error that says so.

    Files that the handler's settings name relative to the present directory are copied there under the same name, so
    that what the handler writes beside them does not touch the originals.
    """
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    if isinstance(job.handler, Mapping):
        _bring_files(job.handler, Path.cwd(), work)
    with (folder / JOB).open("wb") as file:
        cloudpickle.dump((list(sys.path), dict(os.environ), cloudpickle.dumps(job)), file)
    try:
        code = processes.run(folder)
    except TimeoutError:
        return Built(
            error=f"it was not done after {processes.timeout_s:g} s and was ended, and the last it said is "
            f"{_last_lines(folder)!r}; find what it waits for, ask for fewer days or instruments, or allow more time "
            "(timeout_s, on the command line --timeout)"
        )
    result = folder / RESULT
    if not result.is_file():
        return Built(error=f"the process ended with code {code}: {_last_lines(folder)}")
    with result.open("rb") as file:
        built: Built = pickle.load(file)  # noqa: S301
    return built


def _last_lines(folder: Path) -> str:
    log = folder / LOG
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return " | ".join(lines[-_LOG_LINES:])


def import_paths(system: Mapping[str, Any] | None, config_path: Path | None) -> tuple[str, ...]:
    """Return the folders that ``qrun`` would put on the path: those of the section ``sys``, and the present one."""
    given = system or {}
    found = [str(Path(path).absolute()) for path in _listed(given.get("path"))]
    beside = Path.cwd() if config_path is None else config_path.parent.resolve().absolute()
    found += [str(beside / path) for path in _listed(given.get("rel_path"))]
    return (*found, str(Path.cwd()))


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _bring_files(config: Any, source: Path, work: Path) -> None:
    if isinstance(config, Mapping):
        for value in config.values():
            _bring_files(value, source, work)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _bring_files(value, source, work)
    elif isinstance(config, str) and config and len(config) < 256 and not Path(config).is_absolute():
        _bring_file(Path(config), source, work)


def _bring_file(name: Path, source: Path, work: Path) -> None:
    path, copy = source / name, work / name
    # A market's name may also be that of a folder here: only what lies below this one is brought.
    if ".." in name.parts or str(name) == "." or not path.exists() or copy.exists():
        return
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    if size > _COPY_LIMIT:
        raise ConfigError(
            f"{str(name)!r} is named by the handler and holds {size / 1e6:.0f} MB; expected at most "
            f"{_COPY_LIMIT / 1e6:.0f} MB to copy for each build; name it by an absolute path"
        )
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copyfile(path, copy)
