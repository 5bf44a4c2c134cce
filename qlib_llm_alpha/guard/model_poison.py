"""Fit a model twice, and see whether it learned from days after those that it is fitted on."""

from __future__ import annotations

import pandas as pd

from qlib_llm_alpha.guard.finding import Finding
from qlib_llm_alpha.guard.frames import first_difference
from qlib_llm_alpha.guard.label_reach import label_reach
from qlib_llm_alpha.guard.subject import Builds

_NAME = "model_poison"


def check_model_poison(builds: Builds) -> Finding:
    """Fit a model on the provider as it is and on one whose days after fitting are replaced, and compare predictions.

    The days are those after valid (after train without valid) and after the last day that a label of it reads: labels
    that reach too far are the matter of ``label_reach``. Predictions of all days up to then must be the same.
    """
    subject, clean = builds.subject, builds.clean()
    if subject.model is None or subject.fitting_end is None or not clean.segments:
        why = "no model and segments were given; give task.model and the segments"
        return Finding(_NAME, subject.name, "not applicable", why, {})
    model, end = str(subject.model.get("class", "model")), subject.fitting_end
    after = _last_day_read(builds, end)
    days = builds.clean().calendar()
    if after >= days[-1]:
        return Finding(
            _NAME, model, "not applicable", f"no day comes after fitting, which reads up to {after.date()}", {}
        )
    one, other = builds.fitted(after=None, until=end), builds.fitted(after=after, until=end)
    for built, where in ((one, "as it is"), (other, f"with other values after {after:%Y-%m-%d}")):
        if built.error:
            detail = f"{model} cannot be fitted {where}: {built.error}"
            return Finding(_NAME, model, "not applicable", detail, {"error": built.error})
    found = first_difference(one.predictions, other.predictions, until=end)
    if found is None:
        rows = f"{len(one.predictions)} predictions up to {end:%Y-%m-%d}"
        detail = f"{rows}: no bit changes when days after {after:%Y-%m-%d} are replaced"
        return Finding(_NAME, model, "clean", detail, {"after": f"{after:%Y-%m-%d}"})
    again = builds.fitted(after=None, until=end, again=True)
    if again.error or first_difference(one.predictions, again.predictions, until=end) is not None:
        detail = (
            f"{model} gives other predictions when it is fitted twice on the same rows; give it a seed and one thread"
        )
        return Finding(_NAME, model, "not applicable", detail, {})
    told = found.told("as it is", f"when only days after {after:%Y-%m-%d} are replaced")
    detail = f"{told}; {model}.fit reads days after those of train and valid: fit on these segments alone"
    return Finding(_NAME, model, "leak", detail, {**found.evidence(), "after": f"{after:%Y-%m-%d}"})


def _last_day_read(builds: Builds, end: pd.Timestamp) -> pd.Timestamp:
    place = int(builds.calendar.searchsorted(end, side="right")) - 1 + (label_reach(builds) or 0)
    day: pd.Timestamp = builds.calendar[min(place, len(builds.calendar) - 1)]
    return day
