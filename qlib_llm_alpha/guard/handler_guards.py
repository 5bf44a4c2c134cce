"""Guards that build a handler twice and compare: poison, truncation, extended window, normaliser, stale cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from qlib_llm_alpha.guard.finding import Finding, counted
from qlib_llm_alpha.guard.frames import Difference, first_change, first_difference
from qlib_llm_alpha.guard.fresh_process import Built
from qlib_llm_alpha.guard.subject import Builds

START_TOLERANCE: Final = 1e-3
"""Of a column's deviation, for values that are asked for with another start: sums that begin elsewhere round anew."""

END_TOLERANCE: Final = 1e-6
"""The same for another end, where only the order of a mean's terms may change."""

SHARE: Final = 1e-3
"""Share of a column's cells beyond the tolerance up to which the start is taken not to matter."""

_LATER: Final = (
    "look for Ref(x,-n), shift(-n), bfill, a centred window, a universe or a normaliser chosen with later days"
)


def check_poison(builds: Builds, days: Sequence[pd.Timestamp]) -> Finding:
    """Replace everything after each of the days; nothing dated up to it may change by a bit."""
    clean = builds.clean()
    idle = []
    for day in days:
        other = builds.poisoned(day)
        if other.error:
            return _unbuilt("poison", builds, f"with other values after {day:%Y-%m-%d}", other.error)
        if (found := _up_to(clean, other, day)) is not None:
            told = found.told("as it is", f"when only later days than {day:%Y-%m-%d} are replaced")
            return _leak("poison", builds, f"{told}; {_LATER}", found, after=day)
        if first_difference(clean.features(), other.features(), start=day + pd.Timedelta(days=1)) is None:
            idle.append(day)
    evidence = {"days": [f"{day:%Y-%m-%d}" for day in days], "rows": len(clean.features())}
    if len(idle) == len(days):
        detail = (
            "no value changes when the provider's later days are replaced, not even those of later days: the values "
            "come from a file or a cache of their own; give the guards a way to build them from the provider"
        )
        return Finding("poison", builds.subject.name, "not applicable", detail, evidence)
    detail = f"{_size(clean)}: no bit changes when all that comes after {_listed(days)} is replaced"
    return Finding("poison", builds.subject.name, "clean", detail, evidence)


def check_truncation(builds: Builds, days: Sequence[pd.Timestamp]) -> Finding:
    """End the provider on each of the days; what is dated up to it must be as with the later days."""
    clean = builds.clean()
    for day in days:
        other = builds.truncated(day)
        if other.error:
            return _unbuilt("truncation", builds, f"on a provider that ends on {day:%Y-%m-%d}", other.error)
        if (found := _up_to(clean, other, day)) is not None:
            told = found.told("as it is", f"on a provider that ends on {day:%Y-%m-%d}")
            return _leak("truncation", builds, f"{told}; {_LATER}", found, last=day)
    detail = f"{_size(clean)}: the same bits on providers that end on {_listed(days)}"
    evidence = {"days": [f"{day:%Y-%m-%d}" for day in days]}
    return Finding("truncation", builds.subject.name, "clean", detail, evidence)


def check_extended_window(builds: Builds) -> Finding:
    """Ask for the same days with another start, then with another end; their values must be the same."""
    clean, days = builds.clean(), builds.clean().calendar()
    if builds.subject.with_dates() is None:
        return _without_dates("extended_window", builds)
    begin, end = builds.subject.date("start_time") or days[0], builds.subject.date("end_time") or days[-1]
    fits = [pd.Timestamp(fit.end) for fit in clean.fits if fit.end is not None]
    asked: list[dict[str, Any]] = []
    for what, start, last in (
        ("start", _other_start(builds, begin, days), end),
        ("end", begin, _other_end(builds, end)),
    ):
        other = builds.dated(start, last)
        if other.error:
            return _unbuilt("extended_window", builds, f"from {start:%Y-%m-%d} to {last:%Y-%m-%d}", other.error)
        first, until = max(start, begin), min(last, end)
        tolerance, share = (START_TOLERANCE, SHARE) if what == "start" else (END_TOLERANCE, 0.0)
        frames = [(clean.features(), other.features())]
        # A processor fitted on days that were not asked for gives other numbers, and rightly so.
        if clean.raw is not None and start <= begin and all(fit <= last for fit in fits):
            frames.append((clean.infer, other.infer))
        for one, two in frames:
            found = first_difference(one, two, start=first, until=until, tolerance=tolerance, share=share)
            if found is not None:
                told = found.told(
                    f"asked from {begin:%Y-%m-%d} to {end:%Y-%m-%d}", f"from {start:%Y-%m-%d} to {last:%Y-%m-%d}"
                )
                do = (
                    "look for windows that expand from the start of the query, Ref(x,0), EMA with too short a history"
                    if what == "start"
                    else "look for a mean, a rank or a universe taken over all days that were asked for"
                )
                return _leak("extended_window", builds, f"{told}; {do}", found, changed=what, tolerance=tolerance)
        asked.append({"changed": what, "start": f"{start:%Y-%m-%d}", "end": f"{last:%Y-%m-%d}", "tolerance": tolerance})
    told = " and ".join(f"from {ask['start']} to {ask['end']}" for ask in asked)
    detail = f"{_size(clean)}: the same values when asked {told}"
    return Finding("extended_window", builds.subject.name, "clean", detail, {"asked": asked})


def check_normaliser(builds: Builds) -> Finding:
    """Look at the dates processors are fitted on, then replace what comes after train."""
    clean, train_end, name = builds.clean(), builds.subject.train_end, builds.subject.name
    if not clean.kind or clean.infer.empty or builds.subject.with_dates() is None:
        return Finding("normaliser", name, "not applicable", "a function has no processors that are fitted", {})
    if train_end is None:
        detail = "no segment 'train' was given, so nothing says on which days processors may be fitted; give segments"
        return Finding("normaliser", name, "not applicable", detail, {})
    fits = [{"processor": fit.processor, "start": fit.start, "end": fit.end} for fit in clean.fits]
    last = builds.last_day_before_next("train", train_end)
    late = [fit for fit in clean.fits if fit.end is None or pd.Timestamp(fit.end) > last]
    if late:
        told = ", ".join(f"{fit.processor} up to {fit.end or 'the last day'}" for fit in late)
        detail = f"fitted on days after train, which ends on {train_end:%Y-%m-%d}: {told}; set fit_end_time to its end"
        return Finding("normaliser", name, "leak", detail, {"fits": fits, "train_end": f"{train_end:%Y-%m-%d}"})
    other = builds.poisoned(last)
    if other.error:
        return _unbuilt("normaliser", builds, f"with other values after {last:%Y-%m-%d}", other.error)
    if (found := _processed_difference(clean, other, last)) is not None:
        told = found.told("as it is", f"when only days after {last:%Y-%m-%d} are replaced")
        return _leak("normaliser", builds, f"{told}; fit processors on train alone", found, fits=fits)
    fitted = ", ".join(sorted({fit.processor for fit in clean.fits})) or "no processor has dates to fit on"
    detail = f"train's processed values do not depend on later days; fitted up to train's end: {fitted}"
    return Finding("normaliser", name, "clean", detail, {"fits": fits, "train_end": f"{train_end:%Y-%m-%d}"})


def check_stale_cache(builds: Builds) -> Finding:
    """Build the handler after one with other dates, in the same process and folder."""
    clean, days = builds.clean(), builds.clean().calendar()
    if builds.subject.with_dates() is None:
        return _without_dates("stale_cache", builds)
    start, end = days[len(days) // 10], days[-1 - len(days) // 5]
    other = builds.after_another(start, end)
    if other.error:
        return _unbuilt("stale_cache", builds, f"after one from {start:%Y-%m-%d} to {end:%Y-%m-%d}", other.error)
    do = "name cached files by everything their contents depend on, dates included"
    first = pd.DatetimeIndex(other.first.index.get_level_values("datetime")) if other.first is not None else days[:0]
    evidence = {"first_start": f"{start:%Y-%m-%d}", "first_end": f"{end:%Y-%m-%d}"}
    outside = first[(first < start) | (first > end)]
    if len(outside):
        detail = f"asked for {start:%Y-%m-%d} to {end:%Y-%m-%d}, it gives {len(outside)} rows of other days; {do}"
        return Finding("stale_cache", builds.subject.name, "leak", detail, evidence)
    for one, two in ((clean.features(), other.features()), (clean.infer, other.infer)):
        if (found := first_difference(one, two)) is not None:
            told = found.told("in a clean folder", f"after a run from {start:%Y-%m-%d} to {end:%Y-%m-%d} in the same")
            return _leak("stale_cache", builds, f"{told}; {do}", found, **evidence)
    detail = f"{_size(clean)}: the same bits after a run with dates {start:%Y-%m-%d} to {end:%Y-%m-%d} in the folder"
    return Finding("stale_cache", builds.subject.name, "clean", detail, evidence)


def labels_until(clean: Built, other: Built, day: pd.Timestamp) -> pd.Timestamp:
    """Return the last day, at most `day`, up to which the labels of two builds are the same."""
    if clean.label is None or other.label is None:
        return day
    found = first_change(clean.label, other.label, until=day)
    return day if found is None else found - pd.Timedelta(days=1)


def _up_to(clean: Built, other: Built, day: pd.Timestamp) -> Difference | None:
    found = first_difference(clean.features(), other.features(), until=day)
    if found is not None or any(fit.end is not None and pd.Timestamp(fit.end) > day for fit in clean.fits):
        return found
    return _processed_difference(clean, other, day)


def _processed_difference(clean: Built, other: Built, day: pd.Timestamp) -> Difference | None:
    found = None if clean.raw is None else first_difference(clean.infer, other.infer, until=day)
    if found is not None or clean.learn is None or other.learn is None:
        return found
    # The label decides which rows are learned from, and may rightly be another on the last days before the change.
    return first_difference(clean.learn, other.learn, until=labels_until(clean, other, day))


def _other_start(builds: Builds, begin: pd.Timestamp, days: pd.DatetimeIndex) -> pd.Timestamp:
    """Return an earlier start where the calendar has one, else one a quarter into the days."""
    earlier = builds.calendar[builds.calendar < begin]
    start: pd.Timestamp = earlier[-min(len(earlier), 250)] if len(earlier) else days[len(days) // 4]
    return start


def _other_end(builds: Builds, end: pd.Timestamp) -> pd.Timestamp:
    """Return a later end where the calendar has one, else one before the last quarter of the days after fitting."""
    later = builds.calendar[builds.calendar > end]
    if len(later):
        after: pd.Timestamp = later[min(len(later), 250) - 1]
        return after
    days = builds.clean().calendar()
    fits = [pd.Timestamp(fit.end) for fit in builds.clean().fits if fit.end is not None]
    begin = int(days.searchsorted(max(fits), side="right")) if fits and max(fits) < days[-1] else 0
    before: pd.Timestamp = days[max(begin, len(days) - 1 - max((len(days) - begin) // 4, 1))]
    return before


def _leak(guard: str, builds: Builds, detail: str, found: Difference, **more: Any) -> Finding:
    plain = {key: f"{value:%Y-%m-%d}" if isinstance(value, pd.Timestamp) else value for key, value in more.items()}
    return Finding(guard, builds.subject.name, "leak", detail, {**found.evidence(), **plain})


def _unbuilt(guard: str, builds: Builds, where: str, error: str) -> Finding:
    detail = f"{builds.subject.name} cannot be built {where}: {error}"
    return Finding(guard, builds.subject.name, "not applicable", detail, {"error": error})


def _without_dates(guard: str, builds: Builds) -> Finding:
    detail = "a function of the provider is asked for no dates; give a handler's settings with start_time and end_time"
    return Finding(guard, builds.subject.name, "not applicable", detail, {})


def _size(built: Built) -> str:
    frame = built.features()
    return f"{counted(frame.shape[1], 'column')}, {counted(len(frame), 'row')}"


def _listed(days: Sequence[pd.Timestamp]) -> str:
    return " and ".join(f"{day:%Y-%m-%d}" for day in days)
