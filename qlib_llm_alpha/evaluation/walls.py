"""The walls between search, tune, confirm and sealed, as values of Qlib's segments.

========  =======  ===================================================================================
wall      segment  who may use it
========  =======  ===================================================================================
search    train    mining, selection, learners, gate and their cross-fitting
tune      valid    early stopping, thresholds, ladders; every read is counted in the ledger
confirm   confirm  optional: once per configuration, logged by ``qlib_llm_alpha.evaluation.confirm``
sealed    test     records only, through ``qlib_llm_alpha.evaluation.sealed``, after an opening was logged
========  =======  ===================================================================================

A label dated ``s`` is known ``horizon`` trading days later (2 for Qlib's ``Ref($close,-2)/Ref($close,-1)-1``).
Whatever is fitted on a segment therefore leaves out its last ``horizon`` days before the next one begins:
``Walls.purged``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.panel import DayLike, Days, as_day, as_days
from qlib_llm_alpha.errors import ConfigError, PanelError

Mask = NDArray[np.bool_]

LABEL_HORIZON = 2
SEGMENTS = ("train", "valid", "confirm", "test")


@dataclass(frozen=True)
class Segment:
    """A named stretch of days, both ends included."""

    name: str
    start: np.datetime64
    end: np.datetime64

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ConfigError(
                f"segment {self.name!r} runs from {self.start} to {self.end}; expected start <= end; swap them"
            )

    def mask(self, days: Days) -> Mask:
        """Return which of ``days`` (T,) lie in the segment, as (T,) bool."""
        calendar = as_days(days)
        return (calendar >= self.start) & (calendar <= self.end)


@dataclass(frozen=True)
class SearchWindow:
    """First and last date of the search wall; it has no later dates to pass on."""

    start: np.datetime64
    end: np.datetime64


@dataclass(frozen=True)
class Walls:
    """The four walls in order of time; tune, confirm and sealed may be absent.

    Make it with :meth:`from_segments`.
    """

    train: Segment
    valid: Segment | None = None
    confirm: Segment | None = None
    test: Segment | None = None

    def __post_init__(self) -> None:
        known = self.segments
        for before, after in pairwise(known):
            if after.start <= before.end:
                raise ConfigError(
                    f"segment {after.name!r} begins on {after.start}, not after {before.name!r} which ends on "
                    f"{before.end}; expected train, valid, confirm, test in this order and no shared day; move the "
                    "dates"
                )

    @classmethod
    def from_segments(cls, segments: Mapping[str, Sequence[DayLike]]) -> Walls:
        """Read Qlib's ``segments`` of a dataset.

        Parameters
        ----------
        segments : mapping
            ``train``, and optionally ``valid``, ``confirm`` and ``test``, each (first day, last day) as dates or text.

        Raises
        ------
        ConfigError
            A segment missing, misspelt, reversed, overlapping or out of order, or an end that is not a date.
        """
        unknown = [name for name in segments if name not in SEGMENTS]
        if unknown:
            raise ConfigError(
                f"segments {unknown!r} are unknown; expected some of {list(SEGMENTS)!r}; correct the names"
            )
        if "train" not in segments:
            raise ConfigError(f"segments are {list(segments)!r}; expected 'train' among them; add its two dates")
        return cls(**{name: _segment(name, segments[name]) for name in segments})

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments there are, in order of time."""
        return tuple(segment for segment in (self.train, self.valid, self.confirm, self.test) if segment)

    @property
    def search(self) -> SearchWindow:
        """The search wall: the dates of train."""
        return SearchWindow(self.train.start, self.train.end)

    @property
    def tune(self) -> Segment | None:
        """The tune wall: valid."""
        return self.valid

    @property
    def sealed(self) -> Segment | None:
        """The sealed wall: test."""
        return self.test

    def segment(self, name: str) -> Segment:
        """Return a segment by name; ConfigError says which there are."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise ConfigError(
            f"segment {name!r} is not set; the walls have {[s.name for s in self.segments]!r}; add its two dates"
        )

    def purged(self, days: Days, segment: str, horizon: int = LABEL_HORIZON) -> Mask:
        """Mark the days of a segment whose labels are known before the next segment begins.

        Parameters
        ----------
        days : array, (T,) datetime64[D]
            The trading calendar, or any part of it that covers the segment.
        segment : str
            ``train``, ``valid``, ``confirm`` or ``test``.
        horizon : int
            Trading days after which a label is known.

        Returns
        -------
        array, (T,) bool
            True on the days to use: those of the segment less the last ``horizon`` days before the next segment (a gap
            between the two counts), or before the segment's own end when no segment follows.

        Raises
        ------
        ConfigError
            A negative horizon, or a segment of which nothing remains.
        """
        if horizon < 0:
            raise ConfigError(f"horizon is {horizon!r}; expected 0 or more trading days; Qlib's default label has 2")
        chosen = self.segment(segment)
        calendar = as_days(days)
        later = [other for other in self.segments if other.start > chosen.end]
        if later:
            boundary = int(np.searchsorted(calendar, later[0].start, side="left"))
        else:
            boundary = int(np.searchsorted(calendar, chosen.end, side="right"))
        mask = chosen.mask(calendar) & (np.arange(len(calendar)) < boundary - horizon)
        if not mask.any():
            raise ConfigError(
                f"segment {segment!r} ({chosen.start} to {chosen.end}) has no day left after purging {horizon} "
                f"of {len(calendar)} loaded days; expected at least one; lengthen the segment or load its days"
            )
        return mask


def _segment(name: str, ends: object) -> Segment:
    if isinstance(ends, str) or not isinstance(ends, Sequence) or len(ends) != 2:
        raise ConfigError(f"segment {name!r} is {ends!r}; expected two dates [first, last]; write both")
    try:
        start, end = as_day(ends[0]), as_day(ends[1])
    except PanelError as error:
        raise ConfigError(f"segment {name!r} is {ends!r}; expected two dates such as '2020-01-31'; {error}") from error
    return Segment(name, start, end)
