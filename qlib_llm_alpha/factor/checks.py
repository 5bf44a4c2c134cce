"""What a tree must satisfy before it is an expression: operators, arguments, windows, look-ahead, units, size."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from qlib_llm_alpha.factor import units
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.folding import FOLDABLE
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.operators import ALIASES, OPERATORS, REFUSED, WITHHELD, ArgumentKind, Operator
from qlib_llm_alpha.factor.printing import to_text
from qlib_llm_alpha.factor.reasons import refusal
from qlib_llm_alpha.factor.tree import Call, Code, Field, Node, Number
from qlib_llm_alpha.factor.units import Unit

UnitMode: TypeAlias = Literal["refuse", "warn"]

_SMALLEST: Final = 1e-30
_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,16}", re.ASCII)
_FIELD: Final = re.compile(r"\$\$?[A-Za-z]\w*", re.ASCII)
_STOCK_GROWTH: Final = 5
_HIGHEST: Final[dict[ArgumentKind, float]] = {"fraction": 1.0, "tail": 0.5}
_COUNTS: Final = (2, 100)
_MOST_PERIODS: Final = 40
_NO_QUANTITY: Final = "a group code is no quantity; compare it with a code, or with its Ref, or group by it"


@dataclass(frozen=True, slots=True)
class Findings:
    """What the checks learn about a tree that passes them.

    Parameters
    ----------
    lookback, lookahead : int
        Bars before and after the day whose values are read.
    fields : tuple of str
        Sorted, each with its sigil.
    depth, nodes : int
        Size of the tree.
    is_cross_sectional : bool
        Some operator reads all instruments of the day.
    warnings : tuple of str
        Unit clashes, where they were not to be refused.
    """

    lookback: int
    lookahead: int
    fields: tuple[str, ...]
    depth: int
    nodes: int
    is_cross_sectional: bool
    warnings: tuple[str, ...]


def check(
    root: Node,
    *,
    allow_future: bool = False,
    limits: Limits | None = None,
    unit_mode: UnitMode = "refuse",
    more_fields: Collection[str] = (),
) -> Findings:
    """Return the findings about ``root``.

    Raises
    ------
    ExpressionError
        For the first thing that is wrong, deepest and leftmost first; the detail quotes the offending part.
    """
    if unit_mode not in ("refuse", "warn"):
        raise refusal("bad_argument", f"units={unit_mode!r}: expected 'refuse' or 'warn'")
    for name in more_fields:
        if not _FIELD.fullmatch(name):
            raise refusal("bad_argument", f"fields holds {name!r:.80}: expected $ or $$ and a name, such as '$turn'")
    visit = _Visit(allow_future, limits or Limits(), unit_mode, frozenset(more_fields))
    facts = visit.facts(root, 1, "")
    if not facts.varies:
        raise refusal("constant", f"no field occurs in {_quoted(root)}: it is the same for every instrument and day")
    if facts.is_code:
        visit.clash(root, _NO_QUANTITY)
    return Findings(
        lookback=max(0, facts.back),
        lookahead=max(0, facts.ahead),
        fields=tuple(sorted(visit.fields)),
        depth=visit.depth,
        nodes=visit.nodes,
        is_cross_sectional=visit.cross_sectional,
        warnings=tuple(visit.warnings),
    )


class _Facts(NamedTuple):
    back: int  # bars before the day that are read; may be negative below a negative Ref
    ahead: int
    unit: Unit
    value: float | None  # of a constant
    truth: bool
    varies: bool
    stock_nodes: int  # after lowering, which repeats some arguments
    power: float = 1.0  # product of the exponents of nested powers
    exponentials: int = 0  # nested
    is_code: bool = False  # a group code, or its Ref


_LITERAL: Final = _Facts(0, 0, units.NUMBER, None, False, False, 1)


@dataclass(slots=True)
class _Visit:
    allow_future: bool
    limits: Limits
    unit_mode: UnitMode
    more_fields: frozenset[str]
    nodes: int = 0
    depth: int = 0
    cross_sectional: bool = False
    fields: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    def facts(self, node: Node, depth: int, inside: str) -> _Facts:
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            raise refusal("too_many_nodes", f"more than {self.limits.nodes} operators, fields and numbers; simplify it")
        self.depth = max(self.depth, depth)
        if depth > self.limits.depth:
            raise refusal("too_deep", f"more than {self.limits.depth} nested operators at {_quoted(node)}; flatten it")
        if isinstance(node, Number):
            return self._number(node)
        if isinstance(node, Field):
            return self._field(node, inside)
        if isinstance(node, Code):
            raise refusal("bad_argument", f"{node.value!r} in quotes stands only in ChangeInstrument(code, x)")
        return self._call(node, depth, inside)

    def clash(self, node: Node, message: str) -> None:
        detail = f"{message}, in {_quoted(node)}"
        if self.unit_mode == "refuse":
            raise refusal("unit_clash", detail)
        self.warnings.append(detail)

    def _number(self, node: Number) -> _Facts:
        value = node.value
        if isinstance(value, bool):
            raise refusal("unsupported_syntax", f"{value} is not part of the factor language; write a comparison")
        self._bounded(value, node)
        return _LITERAL._replace(value=value)

    def _bounded(self, value: float, node: Node) -> None:
        if not math.isfinite(value) or abs(value) > self.limits.number:
            raise refusal("bad_number", f"{_quoted(node)} is not a number of at most {self.limits.number:g}")
        if 0 < abs(value) < _SMALLEST:
            raise refusal("bad_number", f"{_quoted(node)} is closer to zero than {_SMALLEST:g}; write 0")

    def _field(self, node: Field, inside: str) -> _Facts:
        name = node.name
        reported = name.startswith("$$")
        known = name in DAILY or name in REPORTED or name in GROUPS or name in self.more_fields
        if not known:
            raise refusal("unknown_field", f"{name} is not a field{_did_you_mean(name, self.more_fields)}")
        if reported and inside != "P":
            raise refusal("misplaced", f"{name} is a reported item; write P({name}), its value as known on the day")
        if not reported and inside == "P":
            raise refusal("misplaced", f"{name} is a daily field; only $$ items stand inside P(...)")
        self.fields.add(name)
        unit = DAILY.get(name) or REPORTED.get(name) or (units.GROUP if name in GROUPS else units.ANY)
        return _Facts(0, 0, unit, None, False, True, 1, is_code=name in GROUPS)

    def _call(self, node: Call, depth: int, inside: str) -> _Facts:
        row = _row(node)
        if len(node.args) != len(row.arguments):
            raise refusal(
                "arity", f"{row.signature} takes {len(row.arguments)}, {len(node.args)} given: {_quoted(node)}"
            )
        here = self._entered(row, node, inside)
        series: list[_Facts] = []
        for argument, (_, kind) in zip(node.args, row.arguments, strict=True):
            if kind in ("series", "varying", "boolean"):
                facts = self.facts(argument, depth + 1, here)
                _accept(kind, facts, argument, node)
                series.append(facts)
            else:
                self._literal(kind, argument, row, node, here)
        return self._result(row, node, series)

    def _entered(self, row: Operator, node: Call, inside: str) -> str:
        if row.lookback == "reported":
            if inside == "P":
                raise refusal("misplaced", f"{row.name} inside another P: {_quoted(node)}")
            return "P"
        if row.cross_sectional:
            self.cross_sectional = True
            if inside:
                raise refusal(
                    "misplaced", f"{row.name} inside {inside}(...), where there is one instrument: {_quoted(node)}"
                )
        return "ChangeInstrument" if row.name == "ChangeInstrument" and not inside else inside

    def _literal(self, kind: ArgumentKind, argument: Node, row: Operator, node: Call, inside: str) -> None:
        self.nodes += 1
        if kind == "group":
            if not isinstance(argument, Field) or argument.name in DAILY or argument.name in REPORTED:
                raise refusal(
                    "bad_argument", f"{row.signature} groups by a field such as $industry, not by {_quoted(argument)}"
                )
            self._field(argument, inside)
        elif kind == "instrument":
            if not isinstance(argument, Code) or not _CODE.fullmatch(argument.value):
                raise refusal(
                    "bad_argument", f"{row.signature} takes a code in quotes, such as 'SH000300': {_quoted(node)}"
                )
        elif kind in ("window", "shift"):
            self._window(kind, argument, row, node, inside)
        elif not isinstance(argument, Number) or isinstance(argument.value, bool):
            raise refusal("bad_argument", f"{row.signature} takes a number written out, not {_quoted(argument)}")
        elif kind == "count" and not (isinstance(argument.value, int) and _is_count(argument.value)):
            low, high = _COUNTS
            raise refusal(
                "bad_argument", f"{argument.value!r} is no whole number from {low} to {high}, in {_quoted(node)}"
            )
        elif kind in _HIGHEST and not 0 <= argument.value <= _HIGHEST[kind]:
            allowed = f"between 0 and {_HIGHEST[kind]:g}"
            raise refusal("bad_argument", f"{argument.value!r} is not {allowed}, in {_quoted(node)}")
        elif kind == "period" and not (isinstance(argument.value, int) and _is_period(argument.value)):
            raise refusal(
                "bad_argument",
                f"{row.signature}: a period is a year or a year and quarter such as 201903, in {_quoted(node)}",
            )
        else:
            self._bounded(argument.value, argument)

    def _window(self, kind: ArgumentKind, argument: Node, row: Operator, node: Call, inside: str) -> None:
        value = argument.value if isinstance(argument, Number) else None
        if isinstance(value, float) and 0 < value < 1:
            raise refusal(
                "wrong_numbers",
                "for a window between 0 and 1 Qlib takes an exponential mean whatever the operator; write EMA(x, N) or "
                f"Wilder(x, N) with a whole N: {_quoted(node)}",
            )
        if not isinstance(value, int) or isinstance(value, bool):
            raise refusal(
                "bad_window", f"{row.signature} takes a whole number of bars written out, not {_quoted(argument)}"
            )
        if kind == "shift" and value < 0:
            if row.name == "Ref" and self.allow_future and -value <= self.limits.window and not inside:
                return
            raise refusal("look_ahead", f"{_quoted(node)} reads {-value} bars after the day")
        most = _MOST_PERIODS if inside == "P" else self.limits.window
        if not row.min_window <= value <= most:
            zero = "; with 0 Qlib expands from wherever the query starts" if value == 0 else ""
            raise refusal("bad_window", f"{_quoted(node)}: expected {row.min_window} to {most} bars{zero}")

    def _result(self, row: Operator, node: Call, series: list[_Facts]) -> _Facts:
        window = _shift_of(row, node)
        back = max([facts.back for facts in series]) + row.bars_back(window)
        ahead = max([facts.ahead for facts in series]) - (window if row.lookback == "shift" else 0)
        if row.lookback == "reported":
            back = ahead = 0
        if back > self.limits.lookback:
            raise refusal(
                "lookback_limit", f"{_quoted(node)} needs {back} bars before the day, at most {self.limits.lookback}"
            )
        nodes = 1 + sum([facts.stock_nodes for facts in series]) + len(node.args) - len(series)
        if row.stock:
            nodes += 5 + _repeats(row) * max([facts.stock_nodes for facts in series])
        if nodes > _STOCK_GROWTH * self.limits.nodes:
            raise refusal(
                "too_many_nodes", f"written in Qlib's operators this has more than {nodes} nodes: {_quoted(node)}"
            )
        self._codes(row, node, series)
        if row.name == "Clip":
            _ordered_bounds(node)
        varies = any([facts.varies for facts in series])
        value = None if varies else self._folded(row, node, series)
        unit = self._unit(row, node, series)
        power, exponentials = self._growth(row, node, series)
        truth = row.unit in ("compare", "boolean")
        is_code = row.name == "Ref" and series[0].is_code
        return _Facts(back, ahead, unit, value, truth, varies, nodes, power, exponentials, is_code)

    def _codes(self, row: Operator, node: Call, series: list[_Facts]) -> None:
        if row.unit != "compare" and row.name != "Ref" and any([facts.is_code for facts in series]):
            self.clash(node, _NO_QUANTITY)

    def _growth(self, row: Operator, node: Call, series: list[_Facts]) -> tuple[float, int]:
        """Return how powers and exponentials have piled up, both forgotten where the values are bounded."""
        power = max([facts.power for facts in series])
        exponentials = max([facts.exponentials for facts in series])
        if row.name == "Log":
            return 1.0, max(0, exponentials - 1)
        if row.unit in ("ratio", "compare", "boolean") or row.name == "Tanh":
            return 1.0, 0
        if row.unit == "root":
            return power * 0.5, exponentials
        if row.unit == "square":
            power *= 2
        elif row.name == "Exp":
            exponentials += 1
        elif row.unit == "power":
            exponent = _exponent(node, series)
            if exponent is None:
                exponentials += 1
            else:
                power = series[0].power * abs(exponent)
        else:
            return power, exponentials
        if power > self.limits.exponent:
            raise refusal(
                "bad_number",
                f"exponents go up to {self.limits.exponent:g}, nested ones multiplied; here {power:g}: {_quoted(node)}",
            )
        if exponentials > self.limits.exponentials:
            raise refusal(
                "bad_number", f"more than {self.limits.exponentials} nested exponentials overflow: {_quoted(node)}"
            )
        return power, exponentials

    def _folded(self, row: Operator, node: Call, series: list[_Facts]) -> float:
        if row.name not in FOLDABLE:
            raise refusal("constant", f"no field occurs in {_quoted(node)}")
        numbers = [facts.value for facts in series]
        numbers += [argument.value for argument in node.args[len(series) :] if isinstance(argument, Number)]
        try:
            value = float(FOLDABLE[row.name](*numbers))
        except (ArithmeticError, ValueError):
            raise refusal("bad_number", f"{_quoted(node)} has no value") from None
        self._bounded(value, node)
        return value

    def _unit(self, row: Operator, node: Call, series: list[_Facts]) -> Unit:
        rule = row.unit
        first = series[0].unit
        if rule == "same":
            return first
        if rule == "ratio":
            return units.RATIO
        if rule == "boolean":
            return units.RATIO
        if rule in ("join", "compare", "choose"):
            return self._joined(row, node, series)
        if rule == "pure":
            if not units.is_pure(first):
                self.clash(node, f"{row.name} of {units.describe(first)}; divide by a quantity of the same unit first")
            return units.RATIO if first != units.NUMBER else units.NUMBER
        if rule == "square":
            return units.power(first, 2)
        if rule == "power":
            return self._power(row, node, series)
        if rule == "inverse":
            return units.product(units.NUMBER, first, -1)
        if rule == "root":
            return units.power(first, 0.5)
        return units.product(first, series[1].unit, -1 if rule == "quotient" else 1)

    def _joined(self, row: Operator, node: Call, series: list[_Facts]) -> Unit:
        left, right = series[-2].unit, series[-1].unit
        unit = units.join(left, right)
        if unit is None:
            verb = {"join": "goes with", "compare": "is compared with", "choose": "stands beside"}[row.unit]
            self.clash(node, f"{units.describe(left)} {verb} {units.describe(right)}")
            unit = left
        if row.unit == "compare" or (row.unit == "choose" and unit == units.NUMBER):
            return units.RATIO
        return unit

    def _power(self, row: Operator, node: Call, series: list[_Facts]) -> Unit:
        base = series[0].unit
        exponent = _exponent(node, series)
        if exponent is not None:
            if abs(exponent) > self.limits.exponent:
                raise refusal("bad_number", f"exponents go up to {self.limits.exponent:g}: {_quoted(node)}")
            return units.power(base, exponent)
        base_value = series[0].value
        if base_value is not None and not 0 < base_value <= self.limits.exponent:
            raise refusal(
                "bad_number", f"a constant base is above 0 and at most {self.limits.exponent:g}: {_quoted(node)}"
            )
        for name, facts in (("base", series[0]), ("exponent", series[1])):
            if not units.is_pure(facts.unit):
                self.clash(node, f"the {name} of a varying power is {units.describe(facts.unit)}, not a ratio")
        return units.RATIO


def _row(node: Call) -> Operator:
    row = OPERATORS.get(node.op)
    if row is not None:
        return row
    if node.op in REFUSED:
        raise refusal("wrong_numbers", f"{node.op}: {REFUSED[node.op]}")
    if node.op in WITHHELD:
        raise refusal("unknown_operator", f"{node.op}: {WITHHELD[node.op]}")
    raise refusal("unknown_operator", f"{node.op:.60} is not an operator{_operator_hint(node.op)}")


def _exponent(node: Call, series: list[_Facts]) -> float | None:
    """Return the constant exponent of a power, or None where it varies."""
    written = node.args[1]
    return written.value if isinstance(written, Number) else series[1].value


def _ordered_bounds(node: Call) -> None:
    low, high = (argument.value for argument in node.args[1:] if isinstance(argument, Number))
    if low > high:
        raise refusal("bad_argument", f"the lower bound {low!r} is above the upper {high!r}, in {_quoted(node)}")
    if low == high:
        raise refusal("constant", f"both bounds are {low!r}, so the value is always that, in {_quoted(node)}")


def _accept(kind: ArgumentKind, facts: _Facts, argument: Node, node: Call) -> None:
    if kind == "boolean" and not facts.truth:
        raise refusal(
            "needs_boolean",
            f"{node.op} takes comparisons such as $close>$open, not {_quoted(argument)}, in {_quoted(node)}",
        )
    if kind == "varying" and not facts.varies:
        raise refusal("constant", f"no field occurs in {_quoted(argument)}, in {_quoted(node)}")


def _shift_of(row: Operator, node: Call) -> int:
    if row.lookback in ("none", "reported"):
        return 0
    kinds = [kind for _, kind in row.arguments]
    argument = node.args[kinds.index("shift" if row.lookback == "shift" else "window")]
    return int(argument.value) if isinstance(argument, Number) else 0


@functools.cache
def _repeats(row: Operator) -> int:
    """Return how many extra times the stock spelling holds its first series."""
    name = row.arguments[0][0]
    return row.stock.count(f"${name}") - 1


def _is_count(value: int) -> bool:
    return _COUNTS[0] <= value <= _COUNTS[1]


def _is_period(value: int) -> bool:
    year, quarter = (value, 1) if value < 10000 else divmod(value, 100)
    return 1900 <= year <= 2200 and 1 <= quarter <= 4


def _quoted(node: Node) -> str:
    text = to_text(node)
    return text if len(text) <= 80 else f"{text[:50]} ... {text[-25:]}"


@functools.lru_cache(maxsize=1024)
def _operator_hint(name: str) -> str:
    if name in ALIASES:
        return f"; write {ALIASES[name]}"
    near = difflib.get_close_matches(name[:40].lower(), {known.lower(): known for known in OPERATORS}, n=1, cutoff=0.75)
    for known in OPERATORS:
        if near and known.lower() == near[0]:
            return f"; did you mean {OPERATORS[known].signature}?"
    return "; the operators are in docs/factor_language.md"


@functools.lru_cache(maxsize=1024)
def _did_you_mean(name: str, more: frozenset[str]) -> str:
    known = [*DAILY, *GROUPS, *REPORTED, *sorted(more)]
    near = difflib.get_close_matches(name[:60].lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; daily fields are {', '.join([*DAILY, *GROUPS])}"
