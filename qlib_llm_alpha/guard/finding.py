"""What a leak guard says: a finding, and the report of a run of guards."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from qlib_llm_alpha.errors import ConfigError, LeakError

Verdict = Literal["clean", "leak", "not applicable"]

GUARDS: Final[Mapping[str, str]] = {
    "segments": "The rows of each segment lie inside its two dates, in order, and no row is in two segments.",
    "poison": "Everything after a day is replaced by other valid values; nothing dated up to that day changes.",
    "truncation": "The provider ends on a day; everything dated up to that day is as with the later days.",
    "extended_window": "The same days asked for with another start or end have the same values.",
    "lag": "Where returns are independent, no feature says anything about a return that comes after it.",
    "normaliser": "No processor is fitted on days after train.",
    "label_reach": "No label that a model is fitted on reads bars of the next segment.",
    "stale_cache": "After a run with other dates in the same folder, the values are those of a clean folder.",
    "model_poison": "What a model learns does not change when the days after fitting are replaced.",
}
"""Each guard and what it asks, in the order in which they are reported."""

WITH_MODEL: Final = ("model_poison",)
"""Guards that fit a model, which run only when asked for."""


@dataclass(frozen=True)
class Finding:
    """What one guard says about one subject.

    Parameters
    ----------
    guard : str
        One of ``GUARDS``.
    subject : str
        What was looked at, such as ``Alpha158`` or ``segments``.
    verdict : {"clean", "leak", "not applicable"}
        ``not applicable``: the question has no meaning here, or could not be asked; the detail says why.
    detail : str
        What was found where, and what to do.
    evidence : mapping
        Plain values for programs: days, columns, counts, old and new values.
    """

    guard: str
    subject: str
    verdict: Verdict
    detail: str
    evidence: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "evidence": dict(self.evidence)}


@dataclass(frozen=True)
class GuardReport:
    """What a run of guards found.

    Parameters
    ----------
    subject : str
        What was looked at.
    findings : tuple of Finding
        One for each guard that was asked, in the order of ``GUARDS``.
    days : tuple of str
        The days after which values were replaced.
    seed : int
        Of the replaced values.
    seconds : float
        What it took.
    """

    subject: str
    findings: tuple[Finding, ...]
    days: tuple[str, ...] = ()
    seed: int = 0
    seconds: float = 0.0

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """The findings with the verdict ``leak``."""
        return tuple(finding for finding in self.findings if finding.verdict == "leak")

    @property
    def verdict(self) -> Literal["clean", "leak"]:
        """``leak`` if one guard found one."""
        return "leak" if self.leaks else "clean"

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        counts = {verdict: sum(f.verdict == verdict for f in self.findings) for verdict in ("clean", "not applicable")}
        rest = f"{counts['clean']} clean, {counts['not applicable']} not applicable"
        asked = counted(len(self.findings), "guard")
        if self.leaks:
            names = ", ".join(finding.guard for finding in self.leaks)
            return f"{self.subject}: LEAK found by {len(self.leaks)} of {asked} ({names}); {rest}"
        return f"{self.subject}: no leak found by {asked}; {rest}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "subject": self.subject,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "days": list(self.days),
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def table(self, width: int = 100) -> str:
        """Return a table for people: guard, verdict, and what was found."""
        verdicts = {"clean": "clean", "leak": "LEAK", "not applicable": "n/a"}
        indent = " " * 25
        lines = [f"{'guard':<16} {'verdict':<8}found", "-" * width]
        for finding in self.findings:
            text = textwrap.wrap(finding.detail, width - len(indent)) or [""]
            lines.append(f"{finding.guard:<16} {verdicts[finding.verdict]:<8}{text[0]}")
            lines.extend(indent + line for line in text[1:])
        return "\n".join([*lines, "-" * width, self.sentence])

    def raise_for_leaks(self) -> None:
        """Raise LeakError with every leak, if there is one."""
        if self.leaks:
            found = "\n".join(f"  {finding.guard} ({finding.subject}): {finding.detail}" for finding in self.leaks)
            raise LeakError(f"{self.sentence}\n{found}")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 day", "2 days"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def chosen_guards(guards: Sequence[str] | None, *, with_model: bool) -> tuple[str, ...]:
    """Return the guards asked for, in the order of ``GUARDS``; by default all, those that fit a model when asked.

    Raises
    ------
    ConfigError
        A name that no guard has.
    """
    if guards is None:
        return tuple(name for name in GUARDS if with_model or name not in WITH_MODEL)
    unknown = [name for name in guards if name not in GUARDS]
    if unknown:
        raise ConfigError(f"guards {unknown!r} are unknown; expected some of {list(GUARDS)}; correct the names")
    wanted = {*guards, *(WITH_MODEL if with_model else ())}
    return tuple(name for name in GUARDS if name in wanted)
