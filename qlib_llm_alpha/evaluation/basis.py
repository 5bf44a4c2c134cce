"""What a figure was measured on; no figure is stated without it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from qlib_llm_alpha.errors import ConfigError

IcKind = Literal["ic", "rank_ic"]
IC_NAMES = {"ic": "IC", "rank_ic": "rank IC"}


@dataclass(frozen=True)
class Basis:
    """What a figure was measured on.

    Parameters
    ----------
    label : str
        What is forecast, such as ``Ref($close,-2)/Ref($close,-1)-1``.
    horizon : int
        Trading days after which a label is known.
    ic_kind : str
        ``ic`` (Pearson) or ``rank_ic`` (Spearman), each day across instruments.
    universe : str
        Name of the market, such as ``csi300``.
    membership : str
        The rule by which an instrument is in the universe, such as ``members of the day``.
    start, end : str
        First and last day, both included, as YYYY-MM-DD.
    cost_bps : float or None
        Cost in basis points (1e-4) of the value traded, for each side; None where no cost is taken off.
    trials : int or None
        How many candidates were tried; None where nobody counted.

    Raises
    ------
    ConfigError
        A field that cannot mean anything.
    """

    label: str
    horizon: int
    ic_kind: IcKind
    universe: str
    membership: str
    start: str
    end: str
    cost_bps: float | None
    trials: int | None

    def __post_init__(self) -> None:
        for name in ("label", "universe", "membership"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise ConfigError(f"{name} of a basis is {text!r}; expected words; say what the figure is measured on")
        if not is_count(self.horizon):
            raise ConfigError(f"horizon is {self.horizon!r}; expected 0 or more trading days; Qlib's label has 2")
        if self.ic_kind not in IC_NAMES:
            raise ConfigError(f"ic_kind is {self.ic_kind!r}; expected one of {sorted(IC_NAMES)!r}; choose one")
        check_period(self.start, self.end)
        if self.cost_bps is not None and not (_is_number(self.cost_bps) and 0 <= self.cost_bps < math.inf):
            raise ConfigError(f"cost_bps is {self.cost_bps!r}; expected 0 or more basis points, or None for no cost")
        if self.trials is not None and not is_count(self.trials):
            raise ConfigError(f"trials is {self.trials!r}; expected a count, or None where nobody counted")

    @property
    def sentence(self) -> str:
        """The basis in one line, for the foot of a table."""
        cost = "no cost" if self.cost_bps is None else f"cost {self.cost_bps:g} bps"
        trials = "N not counted" if self.trials is None else f"N = {self.trials}"
        return (
            f"{IC_NAMES[self.ic_kind]} against {self.label}, horizon {self.horizon}, {self.universe} "
            f"({self.membership}), {self.start} to {self.end}, {cost}, {trials}"
        )

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Return plain values for JSON."""
        plain = asdict(self)
        plain["horizon"] = int(self.horizon)
        plain["cost_bps"] = None if self.cost_bps is None else float(self.cost_bps)
        plain["trials"] = None if self.trials is None else int(self.trials)
        return plain


def check_period(start: object, end: object) -> None:
    """Refuse, with ConfigError, what is no first and last day written as YYYY-MM-DD."""
    for name, day in (("start", start), ("end", end)):
        if not isinstance(day, str) or not _is_day(day):
            raise ConfigError(f"{name} is {day!r}; expected a day as YYYY-MM-DD; write for example '2018-07-02'")
    if str(start) > str(end):
        raise ConfigError(f"the period runs from {start!r} to {end!r}; expected start <= end; swap them")


def is_count(value: object) -> bool:
    """Say whether a value is a whole number of 0 or more."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 0


def _is_day(text: str) -> bool:
    try:
        return len(text) == 10 and str(np.datetime64(text, "D")) == text
    except ValueError:
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
