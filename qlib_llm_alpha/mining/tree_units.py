"""The parts of a formula and the unit of each, so that one part can be put in the place of another.

The units are those of the factor language, but for shares outstanding: volumes are adjusted for splits and they are
not, so that the two together change with the base of the adjustment. They have a unit of their own here. A field that
the language does not know counts as a plain ratio, as it does in random formulas, and so does a number written out:
what is put in its place may be refused by the checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qlib_llm_alpha.factor import units
from qlib_llm_alpha.factor.expression import Call, Field, Node, Number
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.operators import OPERATORS, Operator
from qlib_llm_alpha.factor.units import RATIO, Unit
from qlib_llm_alpha.mining.random_formulas import Kind

UNADJUSTED: Final[Unit] = (0.0, 1.0, -1.0)
"""Unit of shares outstanding; the third exponent, that of group codes, says that they are not adjusted."""

_BOOLEAN: Final[Literal["boolean"]] = "boolean"
_FORMULAS: Final = ("series", "varying", "boolean")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a formula where a formula of its own may stand.

    Parameters
    ----------
    path : tuple of int
        Which argument to follow at each call from the root; () is the whole formula.
    node : Node
    kind : Kind
        What has to stand there: a quantity of a unit, or a yes or no.
    varies : bool
        A field occurs in it.
    truth : bool
        It is a yes or no; where a number is due that is 1 or 0.
    """

    path: tuple[int, ...]
    node: Node
    kind: Kind
    varies: bool
    truth: bool

    def fits(self, kind: Kind) -> bool:
        """Say whether the part delivers what a place of some kind asks for: no yes or no where a number is due."""
        return self.truth if kind == _BOOLEAN else self.varies and not self.truth and self.kind == kind


def parts_of(root: Node) -> list[Part]:
    """Return the parts of a formula, each before those below it, left to right.

    Windows, group codes and other arguments that only a literal may fill are no parts, and a reported item stays with
    the operator that reads it.
    """
    found: list[Part] = []
    _collect(root, (), "series", found)
    return found


def replaced(root: Node, path: Sequence[int], part: Node) -> Node:
    """Return the formula with another part at a path."""
    if not path:
        return part
    if not isinstance(root, Call):
        raise IndexError(f"the formula has nothing at {tuple(path)!r}; expected a path of one of its parts")
    arguments = list(root.args)
    arguments[path[0]] = replaced(arguments[path[0]], path[1:], part)
    return Call(root.op, tuple(arguments))


def adjustment_matters(root: Node) -> bool:
    """Say whether a formula mixes adjusted and unadjusted numbers of shares, so that no probe of scale lets it pass."""
    facts = _collect(root, (), "series", [])
    return facts.mixed or _base(facts.unit) != 0


def unit_of(field: str) -> Unit:
    """Return the unit of a field, that of shares outstanding apart from volumes."""
    if field == "$shares":
        return UNADJUSTED
    return units.GROUP if field in GROUPS else DAILY.get(field) or REPORTED.get(field) or RATIO


@dataclass(frozen=True, slots=True)
class _Facts:
    unit: Unit
    varies: bool
    truth: bool
    mixed: bool = False


def _collect(node: Node, path: tuple[int, ...], asked: str, found: list[Part]) -> _Facts:
    place = len(found)
    # Held open: the unit of a part follows from the parts below it, which come later in the list.
    found.append(Part(path, node, RATIO, False, False))
    facts = _facts(node, path, found)
    kind: Kind = _BOOLEAN if asked == _BOOLEAN else facts.unit
    found[place] = Part(path, node, kind, facts.varies, facts.truth)
    return facts


def _facts(node: Node, path: tuple[int, ...], found: list[Part]) -> _Facts:
    if isinstance(node, Field):
        return _Facts(unit_of(node.name), True, False)
    if not isinstance(node, Call):
        return _Facts(RATIO, False, False)
    row = OPERATORS[node.op]
    if row.lookback == "reported":
        return _facts(node.args[0], (), [])
    below = [
        _collect(argument, (*path, place), kind, found)
        for place, (argument, (_, kind)) in enumerate(zip(node.args, row.arguments, strict=True))
        if kind in _FORMULAS
    ]
    return _Facts(
        _unit(node, below),
        any(one.varies for one in below),
        row.unit in ("compare", "boolean"),
        _mixes(row, below) or any(one.mixed for one in below),
    )


def _mixes(row: Operator, below: list[_Facts]) -> bool:
    """Say whether an operator puts together what has another base, or loses a base that still matters."""
    if row.unit in ("join", "choose", "compare"):
        return len({_base(one.unit) for one in below[-2:] if one.varies}) > 1
    bases = {_base(one.unit) for one in below if one.varies}
    within_day = row.cross_sectional or row.unit in ("pure", "power") or (row.unit == "ratio" and row.elementwise)
    return within_day and row.name != "Sign" and bases - {0.0} != set()


def _base(unit: Unit) -> float:
    return 0.0 if isinstance(unit, str) else unit[2]


def _unit(node: Call, below: list[_Facts]) -> Unit:
    rule, first = OPERATORS[node.op].unit, below[0].unit
    if rule in ("ratio", "pure", "compare", "boolean"):
        return RATIO
    if rule in ("join", "choose"):
        # A number beside a price takes the price's unit.
        left, right = below[-2], below[-1]
        return left.unit if left.varies else right.unit
    if rule in ("product", "quotient"):
        return units.product(first, below[1].unit, -1 if rule == "quotient" else 1)
    if rule == "inverse":
        return units.product(RATIO, first, -1)
    if rule in ("root", "square"):
        return units.power(first, 0.5 if rule == "root" else 2)
    if rule == "power":
        exponent = node.args[1]
        return units.power(first, exponent.value) if isinstance(exponent, Number) else RATIO
    return first
