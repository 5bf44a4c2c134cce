"""Which days a language model may know from its training, and what a figure is on the days that it cannot know.

A model that was trained on texts of a period may remember what followed what. A test on that period then measures its
memory, not its reasoning, and no instruction to forget helps. The rule is therefore one of dates: a window is clean
when it begins after the model's knowledge cut-off and a buffer, since stated cut-offs are rough. An unknown cut-off
counts as today, so that no day is clean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from math import nan
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.panel import DayLike, Days, as_day, as_days
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.statistics import annualised, finite_or_none, hac_t, mean_of
from qlib_llm_alpha.llm.models import ModelInfo

Status = Literal["clean", "partial", "contaminated", "unknown"]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

BUFFER_DAYS: Final = 90
"""Calendar days after a cut-off that are not trusted either."""


WRITTEN: Final = ("scripted", "written by the authors")
"""Names of models that are none: a stated rule, or people, gave the answers, so that nothing is remembered."""


@dataclass(frozen=True)
class WindowStatus:
    """What a model may know of a window of days.

    Parameters
    ----------
    model : str
    start, end : date
        The window, both ends included.
    status : {"clean", "partial", "contaminated", "unknown"}
        ``partial``: clean from ``clean_from`` on. ``unknown``: nobody says when the model's knowledge ends, which
        counts as contaminated.
    clean_from : date or None
        The first day of whatever window that the model cannot know; None when no day is known to be clean.
    reason : str
        Why, in a clause.
    """

    model: str
    start: date
    end: date
    status: Status
    clean_from: date | None
    reason: str

    @property
    def words(self) -> str:
        """The status as a badge has it, such as ``partial, clean from 2024-06-01``."""
        if self.status == "unknown":
            return "unknown cut-off, treated as contaminated"
        return f"partial, clean from {self.clean_from}" if self.status == "partial" else self.status

    @property
    def sentence(self) -> str:
        """The status in one line."""
        return f"{self.start} to {self.end} is {self.words} for {self.model}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        days = {"start": str(self.start), "end": str(self.end)}
        clean_from = None if self.clean_from is None else str(self.clean_from)
        return {**asdict(self), **days, "clean_from": clean_from, "sentence": self.sentence}


def window_status(
    start: DayLike, end: DayLike, model: ModelInfo, *, buffer_days: int = BUFFER_DAYS, today: date
) -> WindowStatus:
    """Say whether a model can know the days of a window.

    Parameters
    ----------
    start, end : date
        First and last day of the window.
    model : ModelInfo
        Its knowledge ends with the later of ``knowledge_cutoff`` and ``fine_tuned_until``. Without a
        ``knowledge_cutoff`` it is unknown, whatever it was fine-tuned on.
    buffer_days : int
        Calendar days after the cut-off that are not trusted: the window is clean when it begins more than so many days
        after it.
    today : date
        The day on which the model was asked: of a recording, the day it was recorded. An unknown cut-off counts as
        this day.

    Raises
    ------
    ConfigError
        A window that ends before it begins, an end that is no date, or a negative buffer.
    """
    first, last = _date("start", start), _date("end", end)
    if first > last:
        raise ConfigError(f"the window runs from {first} to {last}; expected start <= end; swap them")
    if buffer_days < 0:
        raise ConfigError(f"buffer_days is {buffer_days!r}; expected 0 or more calendar days; {BUFFER_DAYS} is usual")
    if model.knowledge_cutoff is None:
        why = f"its knowledge cut-off is not known and counts as today, {today}"
        return WindowStatus(model.name, first, last, "unknown", None, why)
    known_until, what = model.knowledge_cutoff, "its knowledge ends"
    if model.fine_tuned_until is not None and model.fine_tuned_until > known_until:
        known_until, what = model.fine_tuned_until, "it was fine-tuned on texts that end"
    clean_from = known_until + timedelta(days=buffer_days + 1)
    why = f"{what} {known_until}, and {buffer_days} days more are not trusted"
    status: Status = "clean" if first >= clean_from else "partial" if last >= clean_from else "contaminated"
    return WindowStatus(model.name, first, last, status, clean_from, why)


def is_written(model: str) -> bool:
    """Say whether a model's name is one of :data:`WRITTEN`, however its words are joined."""
    return plain_name(model).replace("_", " ") in WRITTEN


def plain_name(model: str) -> str:
    """Return the letters and digits of a model's name in lower case, anything else between them as one ``_``."""
    return re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")


def split_days(days: Days, *statuses: WindowStatus) -> Mask:
    """Mark the days that none of the models can know.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
        Days of the figures, such as those of a backtest.
    statuses : WindowStatus
        One for each model that had a part in the figures; the latest ``clean_from`` counts.

    Returns
    -------
    array, (T,) bool
        All False when one of the cut-offs is unknown; all True without a model.
    """
    calendar = as_days(days)
    clean: Mask = np.ones(len(calendar), dtype=np.bool_)
    for status in statuses:
        clean &= False if status.clean_from is None else calendar >= np.datetime64(status.clean_from, "D")
    return clean


@dataclass(frozen=True)
class Part:
    """A figure on some of the days: first and last of them, how many have a value, the figure and its HAC t."""

    start: str
    end: str
    days: int
    value: float
    t: float

    @property
    def sentence(self) -> str:
        """The figure with its days."""
        return f"{self.value:.2f} (t {self.t:.2f}, {self.days} days, {self.start} to {self.end})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: finite_or_none(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Headline:
    """A figure on the days that no model can know, beside the same on those that one may remember.

    Parameters
    ----------
    name : str
        Of the figure, such as ``Sharpe``.
    clean, contaminated : Part or None
        None where there is no such day.
    """

    name: str
    clean: Part | None
    contaminated: Part | None

    @property
    def value(self) -> float:
        """The figure to quote: that of the clean part; NaN without one."""
        return nan if self.clean is None else self.clean.value

    @property
    def sentence(self) -> str:
        """Both sides in one line."""
        if self.clean is None:
            seen = "no day" if self.contaminated is None else self.contaminated.sentence
            return f"{self.name}: no clean day, so that no figure counts; {seen} on days that a model may remember"
        if self.contaminated is None:
            return f"{self.name} {self.clean.sentence}, all on days that no model can remember"
        return (
            f"{self.name} {self.clean.sentence} on days that no model can remember; "
            f"{self.contaminated.sentence} on days that one may, which does not count"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        sides = {"clean": self.clean, "contaminated": self.contaminated}
        parts = {side: None if part is None else part.to_dict() for side, part in sides.items()}
        return {"name": self.name, **parts, "sentence": self.sentence}


def sharpe_of(series: Array) -> float:
    """Return the Sharpe ratio a year of daily returns, NaN when they never move."""
    return annualised(series).ratio


def headline(
    name: str,
    series: Array,
    days: Days,
    statuses: Sequence[WindowStatus],
    *,
    figure: Callable[[Array], float] = mean_of,
) -> Headline:
    """State a figure of a daily series on the clean days and on the others.

    Parameters
    ----------
    name : str
        Of the figure.
    series : array, (T,)
        Daily values, such as excess returns or rank ICs; the value of a day is known at or after its close. NaN left
        out.
    days : array, (T,) datetime64[D]
    statuses : sequence of WindowStatus
        One for each model that had a part in the series.
    figure : callable
        From a series to a number, such as :func:`sharpe_of`.

    Raises
    ------
    PanelError
        Not one value for each day.
    """
    values, calendar = np.asarray(series, dtype=np.float64), as_days(days)
    if values.shape != calendar.shape:
        raise PanelError(f"series has shape {values.shape}, days {calendar.shape}; expected one value for each day")
    clean = split_days(calendar, *statuses)
    known = ~np.isnan(values)

    def part(chosen: Mask) -> Part | None:
        of = calendar[chosen & known]
        if not len(of):
            return None
        some = values[chosen & known]
        return Part(str(of[0]), str(of[-1]), len(of), figure(some), hac_t(some))

    return Headline(name, part(clean), part(~clean))


def _date(name: str, value: DayLike) -> date:
    try:
        day = as_day(value)
    except PanelError as error:
        raise ConfigError(f"{name} is {value!r}; expected a date such as '2024-01-31'; {error}") from error
    return date.fromisoformat(str(day))
