"""The factor language as a prompt states it: made from the table of operators, so that the two never differ."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Final

from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.operators import OPERATORS, Operator
from qlib_llm_alpha.factor.units import Unit, describe

_LOG = logging.getLogger(__name__)

LONGEST: Final = 2500
"""Characters of the text at most."""

MINED_LIMITS: Final = Limits(text=1000, depth=10, nodes=40, window=250, lookback=500)
"""How large a formula of a model may be: what the rules of admission take, and windows of up to a year."""

_LEFT_OUT: Final = ("ChangeInstrument", "PRef")
"""They name an instrument or a date, which prompts and formulas of models are to be free of."""

_EXPLAINED: Final = ("Rank", "IdxMax", "Mad", "Resi", "DecayLinear")
"""Operators whose name does not say enough."""

_RULES: Final = """\
Formulas are text, such as ($close-Mean($close,20))/Std($close,20).
x, y are formulas; a, b are comparisons; N is a whole number of days written out; q, p, lo, hi, n are numbers.
Only quantities of the same unit are added, subtracted or compared: divide first. The result must not change when all \
prices of an instrument are multiplied by a constant. Ref(x, N) is the value N days ago, N above 0: the future \
cannot be read. CS... operators compare the instruments of a day, all others look back in one instrument."""


def grammar_text(fields: Collection[str], *, limits: Limits = MINED_LIMITS) -> str:
    """Return operators with signatures, fields with units, and limits, in at most :data:`LONGEST` characters.

    Parameters
    ----------
    fields : collection of str
        What the provider has, with sigil; the order does not matter. Those of the language come first. Others follow
        by name, as many as there is room for.
    limits : Limits

    Returns
    -------
    str
        The same text for the same fields and limits, on every machine.
    """
    groups = [name for name in sorted(GROUPS) if name in fields]
    reported = [name for name in REPORTED if name in fields]
    head = "\n".join([_RULES, _sizes(limits), *_operators(bool(groups), bool(reported))])
    lines = ["Fields by unit:", *_by_unit(DAILY, fields)]
    if groups:
        lines.append(f"group code, to group by only: {' '.join(groups)}")
    if reported:
        lines.append(f"reported quarterly, only as P($$name): {' '.join(reported)}")
    text = "\n".join([head, *lines])
    return text + _others(fields, LONGEST - len(text))


def _sizes(limits: Limits) -> str:
    return (
        f"At most {limits.nodes} operators, fields and numbers, {limits.depth} nested, windows up to {limits.window}, "
        f"{limits.lookback} days of look-back in all."
    )


def _operators(with_groups: bool, with_reported: bool) -> list[str]:
    rows = [row for row in OPERATORS.values() if row.name not in _LEFT_OUT]
    if not with_groups:
        rows = [row for row in rows if all(kind != "group" for _, kind in row.arguments)]
    if not with_reported:
        rows = [row for row in rows if row.lookback != "reported"]
    signs = " ".join(row.infix for row in rows if row.infix)
    calls = [row for row in rows if not row.infix]
    return [
        f"Signs: {signs}",
        f"Of the day: {_signatures(row for row in calls if not _in_time(row) and not row.cross_sectional)}",
        f"In time: {_signatures(row for row in calls if _in_time(row))}",
        f"Across instruments: {_signatures(row for row in calls if row.cross_sectional)}",
        "; ".join(f"{name}: {OPERATORS[name].summary}" for name in _EXPLAINED),
    ]


def _in_time(row: Operator) -> bool:
    return row.lookback not in ("none", "reported")


def _signatures(rows: Iterable[Operator]) -> str:
    return " ".join(row.signature.replace(", ", ",") for row in rows)


def _by_unit(table: dict[str, Unit], fields: Collection[str]) -> list[str]:
    units: dict[str, list[str]] = {}
    for name, unit in table.items():
        if name in fields:
            units.setdefault(describe(unit), []).append(name)
    return [f"{unit}: {' '.join(names)}" for unit, names in units.items()]


def _others(fields: Collection[str], room: int) -> str:
    """Return the provider's own fields, as many as there is room for."""
    more = sorted(name for name in set(fields) if name not in DAILY and name not in REPORTED and name not in GROUPS)
    text = "\nof any unit:" if more else ""
    for place, name in enumerate(more):
        if len(text) + 1 + len(name) > room:
            _LOG.warning("%d fields of the provider do not fit the prompt and are not named there", len(more) - place)
            return text if place else ""
        text += f" {name}"
    return text
