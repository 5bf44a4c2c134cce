"""Compare the rows of segments with their dates: Qlib takes a segment apart without looking at it.

``DataHandler.fetch`` makes ``slice(*segment)`` of a list or a tuple (``qlib/data/dataset/handler.py``): a list of one
date becomes everything *up to* that date, an end that is null everything after the start, so that train may hold test;
``TSDatasetH`` drops a third date without a word. Here the rows that ``prepare`` really returns are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from qlib_llm_alpha.guard.finding import Finding, counted
from qlib_llm_alpha.guard.fresh_process import Built

_ORDER = ("train", "valid", "test")
_DO = "give each segment two dates, first and last, train before valid before test"


def declared_ends(segment: Any) -> tuple[pd.Timestamp, pd.Timestamp] | None:
    """Return the first and the last day that a segment names; None when it does not name both.

    A year or a month as the end means its last day, as pandas reads it.
    """
    if isinstance(segment, slice):
        segment = (segment.start, segment.stop)
    if isinstance(segment, str) or not isinstance(segment, Sequence) or len(segment) != 2:
        return None
    if any(end is None or isinstance(end, (int, float, list, tuple, Mapping)) for end in segment):
        return None
    try:
        return pd.Timestamp(segment[0]), pd.Period(str(segment[1])).end_time.normalize()
    except ValueError:
        return None


def check_segments(segments: Mapping[str, Any], built: Built, subject: str) -> Finding:
    """Compare the rows that each segment gives with what it declares, and with those of the others.

    Parameters
    ----------
    segments : mapping
        As the dataset has them.
    built : Built
        With the rows of each segment, by day.
    subject : str
        For the finding.
    """
    rows = {name: _days(built.segments[name]) for name in segments if name in built.segments}
    evidence: dict[str, Any] = {
        name: {
            "given": repr(segments[name]),
            "first": None if days.empty else f"{days[0]:%Y-%m-%d}",
            "last": None if days.empty else f"{days[-1]:%Y-%m-%d}",
            "days": len(days),
        }
        for name, days in rows.items()
    }
    faults = [fault for name in rows if (fault := _own_fault(name, segments[name], rows[name]))]
    faults += _shared_days(rows) + _out_of_order(rows)
    if faults:
        return Finding("segments", subject, "leak", f"{'; '.join(faults)}; {_DO}", evidence)
    if built.segment_errors:
        name, error = next(iter(built.segment_errors.items()))
        detail = f"Qlib cannot read segment {name!r} {segments[name]!r} ({error}), so nothing can leak; {_DO}"
        return Finding("segments", subject, "not applicable", detail, {**evidence, "errors": built.segment_errors})
    told = ", ".join(f"{name} {found['first']} to {found['last']}" for name, found in evidence.items())
    return Finding("segments", subject, "clean", f"the rows are those declared: {told}", evidence)


def _days(found: Mapping[str, pd.Series]) -> pd.DatetimeIndex:
    days: pd.DatetimeIndex = pd.DatetimeIndex(sorted({day for count in found.values() for day in count.index}))
    return days


def _own_fault(name: str, given: Any, days: pd.DatetimeIndex) -> str:
    if days.empty:
        return ""
    ends = declared_ends(given)
    if ends is None:
        return f"segment {name!r} is {given!r}, not two dates, and holds {_span(days)} ({counted(len(days), 'day')})"
    outside = days[(days < ends[0]) | (days > ends[1])]
    if len(outside):
        held = counted(len(outside), "day")
        return f"segment {name!r} {given!r} holds {held} outside its dates, first {outside[0]:%Y-%m-%d}"
    return ""


def _shared_days(rows: Mapping[str, pd.DatetimeIndex]) -> list[str]:
    faults = []
    for one, other in combinations(rows, 2):
        shared = rows[one].intersection(rows[other])
        if len(shared):
            faults.append(f"{one} and {other} share {counted(len(shared), 'day')}, {_span(shared)}")
    return faults


def _out_of_order(rows: Mapping[str, pd.DatetimeIndex]) -> list[str]:
    known = [name for name in _ORDER if name in rows and len(rows[name])]
    return [
        f"{before} begins on {rows[before][0]:%Y-%m-%d}, after {after} which begins on {rows[after][0]:%Y-%m-%d}"
        for before, after in combinations(known, 2)
        if rows[before][0] > rows[after][0]
    ]


def _span(days: pd.DatetimeIndex) -> str:
    return f"{days[0]:%Y-%m-%d} to {days[-1]:%Y-%m-%d}"
