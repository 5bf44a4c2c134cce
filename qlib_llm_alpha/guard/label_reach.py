"""Count the labels a model is fitted on that read bars of the next segment.

Where segments stand side by side, the last labels of train are returns of valid, and those of valid returns of test:
stock Qlib fits on them. How far a label reaches is measured, not believed: the days after train are replaced, and the
labels that change are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from qlib.utils import get_callable_kwargs

from qlib_llm_alpha.guard.finding import Finding, counted
from qlib_llm_alpha.guard.frames import first_change
from qlib_llm_alpha.guard.fresh_process import Built
from qlib_llm_alpha.guard.segments import declared_ends
from qlib_llm_alpha.guard.subject import Builds
from qlib_llm_alpha.model.gated import GatedModel

_NAME = "label_reach"


def check_label_reach(builds: Builds) -> Finding:
    """Count the labels of train and valid that are known only inside the segment that follows."""
    subject, clean = builds.subject, builds.clean()
    train_end = subject.train_end
    if subject.model is None:
        return _not_applicable(
            subject.name, "no model was given, and it may leave those rows out itself; give task.model"
        )
    if train_end is None:
        return _not_applicable(subject.name, "no segment 'train' was given; give segments")
    if clean.label is None or clean.label.empty:
        return _not_applicable(subject.name, "the handler has no label")
    reach = label_reach(builds)
    if reach is None:
        return _not_applicable(subject.name, "no label changes when the days after train are replaced")
    distance = counted(reach, "trading day")
    found: dict[str, dict[str, Any]] = {
        name: late
        for name in ("train", "valid")
        if name in clean.segments and (late := _late_labels(builds, clean, name, reach))
    }
    evidence: dict[str, Any] = {"horizon": reach, "model": str(subject.model.get("class")), "late": found}
    told = " and ".join(
        f"{counted(late['labels'], 'label')} of {name} on {counted(late['days'], 'day')} (from {late['first']}) "
        f"read bars of {late['next']}"
        for name, late in found.items()
    )
    if not found:
        detail = f"a label is known {distance} after its date; none of train or valid reads the next segment"
        return Finding(_NAME, subject.name, "clean", detail, evidence)
    if purges_labels(subject.model):
        detail = f"{told}, and {subject.model.get('class')} leaves them out by itself"
        return Finding(_NAME, subject.name, "clean", detail, evidence)
    detail = f"{told}, known {distance} after their date; end each segment {distance} earlier"
    return Finding(_NAME, subject.name, "leak", detail, evidence)


def label_reach(builds: Builds) -> int | None:
    """Return the trading days after its date on which a label is known; None where no label depends on later days."""
    train_end = builds.subject.train_end
    if train_end is None:
        return None
    day = builds.last_day_before_next("train", train_end)
    clean, other = builds.clean(), builds.poisoned(day)
    if other.error or clean.label is None or other.label is None:
        return None
    first = first_change(clean.label, other.label, until=day)
    if first is None:
        return None
    return int(builds.calendar.searchsorted(day)) + 1 - int(builds.calendar.searchsorted(first))


def purges_labels(model: Mapping[str, Any]) -> bool:
    """Say whether a model leaves out rows whose label is not yet known; any may say ``purges_labels = True``."""
    kind, _ = get_callable_kwargs(dict(model))
    return bool(getattr(kind, "purges_labels", isinstance(kind, type) and issubclass(kind, GatedModel)))


def _late_labels(builds: Builds, clean: Built, name: str, reach: int) -> dict[str, Any]:
    ends = declared_ends((builds.subject.segments or {}).get(name))
    later = [start for start in builds.subject.starts(name) if ends is not None and start > ends[0]]
    if not later:
        return {}
    following = min(later)
    boundary = int(builds.calendar.searchsorted(following))
    rows = clean.segments[name].get("learn", pd.Series(dtype=int))
    known = builds.calendar.searchsorted(pd.DatetimeIndex(rows.index)) + reach
    late = rows[known >= boundary]
    if late.empty:
        return {}
    return {
        "labels": int(late.sum()),
        "days": len(late),
        "first": f"{pd.Timestamp(late.index[0]):%Y-%m-%d}",
        "next": _segment_of(builds, following),
    }


def _segment_of(builds: Builds, start: pd.Timestamp) -> str:
    for name, given in (builds.subject.segments or {}).items():
        ends = declared_ends(given)
        if ends is not None and ends[0] == start:
            return str(name)
    return "the next segment"


def _not_applicable(subject: str, why: str) -> Finding:
    return Finding(_NAME, subject, "not applicable", why, {})
