"""What a proposer may be told of a market in numbers: so coarse that it names none, and holds on every machine.

Every figure comes from the days of the data given and none other. It is quantised before it is kept, so that neither a
prompt nor whoever writes one can see more digits: the exact figures of the days that judge are not to be guessed from
those of the days that propose, and a recorded answer must be found again where the last digits of a sum differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.funnel import Screened, screen
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.statistics import hac_t, mean_of
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.units import ANY, GROUP, describe
from qlib_llm_alpha.mining.candidates import MINED_FIELDS

__all__ = ["FieldFact", "MarketProfile", "Trace", "coarse", "market_profile", "one_figure", "whole_t"]

Array = NDArray[np.float64]

SIMPLE: Final = (
    ("return of 1 day", "$close/Ref($close,1)-1"),
    ("return of 5 days", "$close/Ref($close,5)-1"),
    ("return of 20 days", "$close/Ref($close,20)-1"),
    ("return of 60 days", "$close/Ref($close,60)-1"),
    ("return from close to open", "$open/Ref($close,1)-1"),
    ("close against the high of 60 days", "$close/Max($high,60)"),
    ("range of the day", "($high-$low)/$close"),
    ("volatility of 20 days", "Std($close/Ref($close,1),20)"),
    ("volume against its mean of 20 days", "$volume/Mean($volume,20)"),
    ("correlation of close and volume, 10 days", "Corr($close,$volume,10)"),
    ("volume as a share of shares outstanding", "$volume*$factor/$shares"),
    ("market value", "$close/$factor*$shares"),
)
"""Factors of one idea each, scored on the data given: what they are, and their formula."""

MOST_T: Final = 10
"""Larger t values are said to be so large, and no more."""

_EDGE: Final = 0.0309
"""How far the edge between two steps is moved from the middle, in steps: shares of a few names or days are often
exactly in the middle, and must not lie on the edge."""


@dataclass(frozen=True)
class FieldFact:
    """A field: its unit in words, and how many percent of the members have a value on a day, in steps of 10."""

    name: str
    unit: str
    coverage: int


@dataclass(frozen=True)
class Trace:
    """What a formula did on the data given.

    Parameters
    ----------
    name, formula : str
    strength : str
        ``none`` (|t| 0 or 1), ``weak`` (2), ``clear`` (3 or 4), ``strong`` (5 or more), or ``unknown``.
    t : int or None
        HAC t of the mean daily rank IC as a whole number, at most :data:`MOST_T` in size; None where there is none.
    turnover : int or None
        Percent of the top fifth that is new each day, in steps of 10.
    """

    name: str
    formula: str
    strength: str
    t: int | None
    turnover: int | None


@dataclass(frozen=True)
class MarketProfile:
    """A market in coarse figures. Make one with :func:`market_profile`.

    Parameters
    ----------
    names, days : str
        Members of a usual day and days of the data, one significant figure.
    fields : tuple of FieldFact
        Sorted by name.
    volatility : str
        Deviation of daily returns of a usual name in percent, one significant figure.
    autocorrelation : str
        Of daily returns with those of the day before, in words.
    zero_volume : int or None
        Percent of the days with bars on which a name did not trade, in steps of 5; None without ``$volume``.
    volume_skew : str
        Skewness of a usual name's daily volume, in words.
    traces : tuple of Trace
        The simple factors whose fields are there, then what was tried.

    Notes
    -----
    Two profiles are equal exactly when their texts are. Missing figures read ``unknown``.
    """

    names: str
    days: str
    fields: tuple[FieldFact, ...]
    volatility: str
    autocorrelation: str
    zero_volume: int | None
    volume_skew: str
    traces: tuple[Trace, ...]

    @property
    def text(self) -> str:
        """The profile as lines of plain text, for a prompt."""
        quiet = "unknown" if self.zero_volume is None else f"{self.zero_volume}%"
        lines = [
            f"Size: about {self.names} instruments a day, about {self.days} days of trading.",
            "Fields (unit; share of instruments with a value on a day):",
            *(f"- {one.name}: {one.unit}; {one.coverage}%" for one in self.fields),
            f"Daily volatility of a usual instrument: about {self.volatility}%.",
            f"Autocorrelation of daily returns: {self.autocorrelation}.",
            f"Days without volume: {quiet}. Distribution of volume: {self.volume_skew}.",
            "Simple factors on these days (strength and sign of the rank IC with the return that follows; t; share of "
            "the top fifth that is new each day):",
            *(f"- {_line(one)}" for one in self.traces),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def market_profile(
    data: SearchData,
    *,
    fields: Sequence[str] = MINED_FIELDS,
    tried: Sequence[Expression] = (),
    threads: int = 2,
) -> MarketProfile:
    """Describe a market by what is known on the days given, coarsely.

    Parameters
    ----------
    data : SearchData
        Its ``rows`` count: days of the window whose label is known inside it. Members of the day alone are looked at.
    fields : sequence of str
        With their sigil. Those that the panel lacks, or that have no value on these days, are left out.
    tried : sequence of Expression
        Formulas whose trace is added to that of the simple factors; the caller counts them as trials if anything is
        chosen by it.
    threads : int

    Returns
    -------
    MarketProfile
        No date, no code, no name of a universe and no count beyond one significant figure is in it.

    Notes
    -----
    A member without a value counts against coverage and for nothing else.
    """
    member = _members(data)
    facts = tuple(fact for name in sorted(set(fields)) if (fact := _field_fact(name, data, member, threads)))
    simple = [(name, parse(formula)) for name, formula in SIMPLE]
    needed = {field for _, formula in simple for field in formula.fields}
    known = {fact.name for fact in facts} | {one for one in needed if _field_fact(one, data, member, threads)}
    returns = _values("$close/Ref($close,1)-1", data, member, threads) if "$close" in known else None
    volume = _values("$volume", data, member, threads) if "$volume" in known else None
    asked = [(name, formula) for name, formula in simple if known.issuperset(formula.fields)]
    asked += [("tried", formula) for formula in tried]
    return MarketProfile(
        names=one_figure(float(np.median(member.sum(axis=1)))),
        days=one_figure(float(len(member))),
        fields=facts,
        volatility="unknown" if returns is None else one_figure(100 * _usual_deviation(returns)),
        autocorrelation="unknown" if returns is None else _autocorrelation_word(returns),
        zero_volume=None if volume is None else _zero_share(volume),
        volume_skew="unknown" if volume is None else _skew_word(volume),
        traces=_traces(asked, data, threads),
    )


def coarse(value: float, step: float) -> float:
    """Return the multiple of ``step`` next to a value, so that float noise hardly ever moves it.

    The edges lie 0.47 steps above each multiple rather than 0.5: both round figures and exact halves, which shares of
    small counts often are, stay clear of them. The sign is handled apart, so that ``coarse(-x, s) == -coarse(x, s)``.

    Raises
    ------
    ConfigError
        A value that is not finite, or a step that is not above 0.
    """
    if not (math.isfinite(value) and math.isfinite(step) and step > 0):
        raise ConfigError(f"coarse({value!r}, {step!r}); expected a finite value and a step above 0; leave NaN out")
    steps = math.floor(abs(value) / step + 0.5 + _EDGE)
    # Formatted and read again: 3 * 0.1 is to be 0.3.
    return float(f"{math.copysign(steps * step, value):.9g}") if steps else 0.0


def one_figure(value: float) -> str:
    """Return a number of one significant figure as text, such as ``300``, ``0.02`` or ``-4``; NaN is ``unknown``."""
    if not math.isfinite(value):
        return "unknown"
    if value == 0:
        return "0"
    unit = 10.0 ** math.floor(math.log10(abs(value)))
    return f"{coarse(value, unit):.12g}" if abs(value) >= 1e-12 else "0"


def whole_t(t: float) -> int | None:
    """Return a t value as a whole number of at most :data:`MOST_T` in size; None for NaN."""
    return int(max(-MOST_T, min(MOST_T, coarse(t, 1.0)))) if math.isfinite(t) else None


def _line(one: Trace) -> str:
    label = f"`{one.formula}`" if one.name == "tried" else f"{one.name}, `{one.formula}`"
    if one.t is None:
        return f"{label}: unknown"
    sign = "" if one.strength == "none" else " positive" if one.t > 0 else " negative"
    size = ("t 0" if not one.t else f"t {one.t:+d}") + (" or beyond" if abs(one.t) == MOST_T else "")
    new = "unknown" if one.turnover is None else f"{one.turnover}% new"
    return f"{label}: {one.strength}{sign} ({size}); {new}"


def _strength(t: int | None) -> str:
    if t is None:
        return "unknown"
    return "none" if abs(t) < 2 else "weak" if abs(t) < 3 else "clear" if abs(t) < 5 else "strong"


def _members(data: SearchData) -> NDArray[np.bool_]:
    """Return who counts on the days of the data, (T, N)."""
    panel, rows = data.panel, data.rows
    if panel.member is None:
        return np.ones((rows.stop - rows.start, len(panel.instruments)), dtype=np.bool_)
    return panel.untiled(panel.member).astype(np.bool_)[rows]


def _values(formula: str, data: SearchData, member: NDArray[np.bool_], threads: int) -> Array:
    """Return a formula's values on the days of the data, (T, N); NaN for who is no member."""
    names = [formula] if formula.startswith("$") and formula[1:].isidentifier() else []
    column = evaluate([parse(formula, fields=names)], data.panel, warmup="qlib", threads=threads).values[0]
    values = data.panel.untiled(column)[data.rows].astype(np.float64)
    return np.where(member & np.isfinite(values), values, np.nan)


def _field_fact(name: str, data: SearchData, member: NDArray[np.bool_], threads: int) -> FieldFact | None:
    try:
        values = _values(f"P({name})" if name.startswith("$$") else name, data, member, threads)
    except PanelError:
        return None
    if not np.isfinite(values).any():
        return None
    share = np.isfinite(values).sum() / max(1, member.sum())
    unit = GROUP if name in GROUPS else DAILY.get(name, REPORTED.get(name, ANY))
    return FieldFact(name, describe(unit), int(coarse(100 * float(share), 10)))


def _usual_deviation(returns: Array) -> float:
    deviations = [float(np.std(known, ddof=1)) for column in returns.T if len(known := _known(column)) > 1]
    return float(np.median(deviations)) if deviations else math.nan


def _autocorrelation_word(returns: Array) -> str:
    """Say how returns go with those of the day before, the day's mean over all names taken off."""
    there = np.isfinite(returns)
    count = np.maximum(1, there.sum(axis=1, keepdims=True))
    own = np.where(there, returns - np.where(there, returns, 0.0).sum(axis=1, keepdims=True) / count, np.nan)
    today, before = own[1:], own[:-1]
    both = np.isfinite(today) & np.isfinite(before)
    scale = math.sqrt(float((today[both] ** 2).sum()) * float((before[both] ** 2).sum()))
    if not scale:
        return "unknown"
    size = coarse(float((today[both] * before[both]).sum()) / scale, 0.05)
    if not size:
        return "about none"
    return f"{'slightly' if abs(size) < 0.1 else 'clearly'} {'positive' if size > 0 else 'negative'}"


def _zero_share(volume: Array) -> int:
    known = _known(volume)
    return int(coarse(100 * float((known == 0).mean()), 5))


def _skew_word(volume: Array) -> str:
    skews = []
    for column in volume.T:
        known = _known(column)
        deviation = float(known.std()) if len(known) > 2 else 0.0
        if deviation > 0:
            skews.append(float(((known - known.mean()) ** 3).mean()) / deviation**3)
    if not skews:
        return "unknown"
    skew = coarse(float(np.median(skews)), 1.0)
    if not skew:
        return "about symmetric"
    return f"{'skewed' if abs(skew) < 2 else 'heavily skewed'} to the {'right' if skew > 0 else 'left'}"


def _known(values: Array) -> Array:
    known: Array = values[np.isfinite(values)]
    return known


def _traces(asked: Sequence[tuple[str, Expression]], data: SearchData, threads: int) -> tuple[Trace, ...]:
    formulas = [formula for _, formula in asked]
    screened = screen(formulas, data.panel, data.prepared, warmup="strict", threads=threads, rows=data.rows)
    return tuple(_trace(name, formula, one) for (name, formula), one in zip(asked, screened, strict=True))


def _trace(name: str, formula: Expression, one: Screened) -> Trace:
    daily = one.daily
    if daily is None or daily.rank_ic is None or daily.turnover is None:
        return Trace(name, formula.text, "unknown", None, None)
    t, turnover = whole_t(hac_t(daily.rank_ic)), mean_of(daily.turnover)
    return Trace(
        name,
        formula.text,
        _strength(t),
        t,
        int(coarse(100 * turnover, 10)) if math.isfinite(turnover) else None,
    )
