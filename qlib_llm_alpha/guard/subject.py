"""What the guards look at, and the builds of it that they share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.guard.fresh_process import Built, HandlerConfig, Job, build
from qlib_llm_alpha.guard.provider_variants import (
    missing_closes,
    provider_calendar,
    write_independent,
    write_poisoned,
    write_truncated,
)
from qlib_llm_alpha.guard.segments import declared_ends
from qlib_llm_alpha.guard.warm_process import TIMEOUT_S, WarmProcesses

_NEAR = 10  # trading days within which a day with more gaps is looked for


@dataclass(frozen=True)
class Subject:
    """A handler or a function, with its provider, and what is made of it.

    Parameters
    ----------
    handler : mapping or callable
        As in a YAML, or a function of the provider's path that returns a frame (datetime, instrument).
    qlib_init : mapping
        Settings of ``qlib.init``; provider and experiment manager are replaced.
    provider : Path
        Folder of the daily provider.
    segments, dataset, model : mapping, optional
        Of the task.
    paths : tuple of str
        Folders from which modules are imported.
    """

    handler: HandlerConfig
    qlib_init: Mapping[str, Any]
    provider: Path
    segments: Mapping[str, Any] | None = None
    dataset: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    paths: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a report calls it."""
        if isinstance(self.handler, Mapping):
            return str(self.handler.get("class", "handler"))
        return str(getattr(self.handler, "__name__", "signal"))

    def with_dates(self, **dates: pd.Timestamp) -> Mapping[str, Any] | None:
        """Return the handler's settings with other ``start_time``, ``end_time``, ...; None for a function."""
        if not isinstance(self.handler, Mapping):
            return None
        given = {name: f"{day:%Y-%m-%d}" for name, day in dates.items()}
        return {**self.handler, "kwargs": {**(self.handler.get("kwargs") or {}), **given}}

    def date(self, name: str) -> pd.Timestamp | None:
        """Return a date of the handler's settings."""
        kwargs = (self.handler.get("kwargs") or {}) if isinstance(self.handler, Mapping) else {}
        value = kwargs.get(name)
        return None if value is None else pd.Timestamp(value)

    @property
    def train_end(self) -> pd.Timestamp | None:
        """Last day of train."""
        return self._end("train")

    @property
    def fitting_end(self) -> pd.Timestamp | None:
        """Last day of valid, or of train where there is no valid."""
        return self._end("valid") or self._end("train")

    def starts(self, name: str) -> list[pd.Timestamp]:
        """First days of the segments other than `name`."""
        ends = [declared_ends(given) for other, given in (self.segments or {}).items() if other != name]
        return [end[0] for end in ends if end is not None]

    def _end(self, name: str) -> pd.Timestamp | None:
        ends = declared_ends((self.segments or {}).get(name))
        return None if ends is None else ends[1]


class Builds:
    """Builds of one subject, each made once, a few at a time.

    Parameters
    ----------
    subject : Subject
    folder : Path
        Where providers and working directories are put.
    workers : int
        Processes at a time.
    seed : int
        Of replaced values.
    timeout_s : float
        Seconds that one build may take before it is ended.
    """

    def __init__(
        self, subject: Subject, folder: Path, *, workers: int = 2, seed: int = 0, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.subject = subject
        self.seed = seed
        self.calendar = pd.DatetimeIndex(provider_calendar(subject.provider).astype("datetime64[ns]"))
        self._folder = folder
        self._processes = WarmProcesses(timeout_s)
        self._pool = ThreadPoolExecutor(max_workers=workers)
        self._lock = threading.Lock()
        self._made: dict[str, Future[Any]] = {}
        self._locks: dict[str, threading.Lock] = {}

    def close(self) -> None:
        """End every process, what is being built included, and start nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._processes.close()
        self._pool.shutdown(wait=True)

    def clean(self) -> Built:
        """Return the subject as it is; ConfigError when it cannot be built."""
        built = self._job("clean", self._task())
        if built.error:
            raise ConfigError(
                f"{self.subject.name} cannot be built in a new process: {built.error}; expected it to run as in qrun, "
                "from this folder; mend it first"
            )
        return built

    def poisoned(self, after: pd.Timestamp) -> Built:
        """Return the subject on a provider whose days after a day are replaced."""
        return self._job(f"poisoned {after:%Y-%m-%d}", self._task(), provider=lambda: self._poison(after))

    def truncated(self, last: pd.Timestamp) -> Built:
        """Return the subject on a provider that ends on a day, asked for nothing later."""
        dates = {
            name: last
            for name in ("end_time", "fit_end_time")
            if name == "end_time" or (self.subject.date(name) or last) > last
        }
        # The segments reach beyond the end: only the handler is built.
        job = replace(self._task(), handler=self._dated(dates), segments=None)
        return self._job(f"truncated {last:%Y-%m-%d}", job, provider=lambda: self._truncate(last))

    def dated(self, start: pd.Timestamp, end: pd.Timestamp) -> Built:
        """Return the handler asked for other days."""
        job = replace(self._task(), handler=self._dated({"start_time": start, "end_time": end}), segments=None)
        return self._job(f"dated {start:%Y-%m-%d} {end:%Y-%m-%d}", job)

    def after_another(self, start: pd.Timestamp, end: pd.Timestamp) -> Built:
        """Return the handler as it is, built after one with other days in the same process and folder."""
        first = self.subject.with_dates(start_time=start, end_time=end)
        return self._job("after another", replace(self._task(), first=first, segments=None))

    def independent(self) -> tuple[Built, pd.DataFrame]:
        """Return the handler on independent returns, and those returns (days, instruments)."""
        codes, returns = self._once("independent provider", self._draw).result()
        root = self._folder / "independent provider"
        built = self._job("independent", replace(self._task(), segments=None), provider=lambda: root)
        return built, pd.DataFrame(returns, index=self.calendar, columns=codes)

    def fitted(self, *, after: pd.Timestamp | None, until: pd.Timestamp, again: bool = False) -> Built:
        """Return the predictions of a model up to a day, fitted on the provider as it is or replaced after a day."""
        first = f"{self.clean().calendar()[0]:%Y-%m-%d}"
        job = replace(self._task(), model=self.subject.model, predict_from=first, predict_until=f"{until:%Y-%m-%d}")
        if after is None:
            return self._job("fitted again" if again else "fitted", job)
        return self._job(f"fitted, poisoned {after:%Y-%m-%d}", job, provider=lambda: self._poison(after))

    def days(self, count: int) -> list[pd.Timestamp]:
        """Choose the days after which values are replaced: the end of fitting, then days with gaps, evenly spread."""
        clean = self.clean()
        days = clean.calendar()
        ends = [pd.Timestamp(fit.end) for fit in clean.fits if fit.end is not None]
        train_end = self.subject.train_end
        if train_end is not None:
            ends.append(self.last_day_before_next("train", train_end))
        known = [day for day in ends if days[0] <= day < days[-1]]
        begin = int(days.searchsorted(max(known), side="right")) - 1 if known else len(days) // (count + 1)
        spread = np.linspace(begin, len(days) - 1, count + 1)[:-1].astype(int)
        gaps = pd.Series(missing_closes(self.subject.provider), index=self.calendar).reindex(days).fillna(0).to_numpy()
        return [days[spread[0]], *(days[_gappiest(gaps, place, spread[0])] for place in spread[1:])]

    def last_day_before_next(self, name: str, end: pd.Timestamp) -> pd.Timestamp:
        """Return the last trading day before the segment that follows `name`, or `end` where none follows."""
        later = [start for start in self.subject.starts(name) if start > end]
        days = self.calendar[self.calendar < min(later)] if later else self.calendar[self.calendar <= end]
        return days[-1] if len(days) else end

    def _task(self) -> Job:
        subject = self.subject
        segments = subject.segments if isinstance(subject.handler, Mapping) else None
        return Job(
            subject.handler,
            subject.qlib_init,
            str(subject.provider),
            subject.paths,
            dataset=subject.dataset,
            segments=segments,
        )

    def _dated(self, dates: Mapping[str, pd.Timestamp]) -> HandlerConfig:
        config = self.subject.with_dates(**dates)
        return self.subject.handler if config is None else config

    def _job(self, name: str, job: Job, provider: Callable[[], Path] | None = None) -> Built:
        def run() -> Built:
            root = job.provider if provider is None else str(provider())
            return build(replace(job, provider=root), self._folder / name, self._processes)

        built: Built = self._once(name, run).result()
        return built

    def _once(self, name: str, make: Callable[[], Any]) -> Future[Any]:
        with self._lock:
            if name not in self._made:
                self._made[name] = self._pool.submit(make)
            return self._made[name]

    def _written(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Write a provider once, in the thread that asks first: the pool may be full of those that wait for it."""
        out = self._folder / name
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if not out.exists():
                write(out)
        return out

    def _poison(self, after: pd.Timestamp) -> Path:
        day = np.datetime64(after, "D")
        return self._written(
            f"poisoned provider {day}", lambda out: write_poisoned(self.subject.provider, out, day, self.seed)
        )

    def _truncate(self, last: pd.Timestamp) -> Path:
        day = np.datetime64(last, "D")
        return self._written(f"truncated provider {day}", lambda out: write_truncated(self.subject.provider, out, day))

    def _draw(self) -> tuple[list[str], NDArray[np.float64]]:
        return write_independent(self.subject.provider, self._folder / "independent provider", self.seed)


def _gappiest(gaps: NDArray[Any], place: int, after: int) -> int:
    low, high = max(place - _NEAR, after + 1), min(place + _NEAR + 1, len(gaps) - 1)
    return int(place if low >= high else low + np.argmax(gaps[low:high]))
