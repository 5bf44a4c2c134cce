"""Verdicts on candidates: admitted, or rejected for a reason that programs and people can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qlib_llm_alpha.errors import ConfigError

REASONS: Final[dict[str, str]] = {
    "look_ahead": "it reads bars after its day",
    "known": "the library has it already, up to algebra",
    "duplicate": "an earlier candidate of the run is the same, up to algebra",
    "complex": "it is larger than the rules allow",
    "too_dear": "it would take too long to compute",
    "all_missing": "it has no value",
    "constant": "it is the same for all instruments of each day",
    "low_ic": "on no day have enough members both a value and a label",
    "failed": "it could not be computed",
    "coverage": "too few members have a value",
    "variation": "on too many days it does not tell instruments apart",
    "weak": "its IC on search is no further from zero than chance moves one candidate",
    "turnover": "its top names change too fast to trade",
    "scale": "its value depends on the base of the adjustment factor",
    "chance": "the best of so many candidates reaches its t by chance",
    "correlated": "it ranks instruments as an admitted factor does",
    "unstable": "its past values change when the future does",
    "not_shortlisted": "others of the search did better on explore",
    "unsupported": "no quote of it stands in the document it names",
    "no_answer": "the model gave no answer that could be used",
    "vetoed": "a person ruled it out",
}
"""Reason code of a rejection, and what it means. A reason of the factor language may stand there too."""


@dataclass(frozen=True)
class Verdict:
    """What was decided about a candidate; a rejection is a value, not an exception.

    Parameters
    ----------
    admitted : bool
    reason : str
        A code of :data:`REASONS` or of the factor language; empty when admitted.
    detail : str
        A sentence with the figures.
    """

    admitted: bool
    reason: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.admitted == bool(self.reason):
            raise ConfigError(
                f"a verdict with admitted={self.admitted!r} has reason {self.reason!r}; expected a reason for a "
                "rejection and none for an admission"
            )

    @property
    def word(self) -> str:
        """``admitted`` or ``rejected``."""
        return "admitted" if self.admitted else "rejected"
