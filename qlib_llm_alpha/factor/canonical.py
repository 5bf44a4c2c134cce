"""The canonical form: what a formula is up to algebra. It gives identity and finds duplicates, and is never executed.

A formula becomes a sum of products of *atoms* (fields, shifted fields, and operators that arithmetic cannot see into),
with one coefficient and whole exponents. Sums and products are written out and put in order, shifts go inside as far as
day-by-day operators reach, constants are computed to 12 digits. So the identity is that of exact arithmetic: two
formulas of one identity may differ in rounding, and where one of them divides by zero.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final, TypeAlias

from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.reasons import refusal
from qlib_llm_alpha.factor.tree import Call, Code, Field, Node, Number

Monomial: TypeAlias = tuple[tuple[str, int], ...]
Sum: TypeAlias = dict[Monomial, float]

_MOST_TERMS: Final = 64
_ONE: Final[Monomial] = ()
_DIGITS: Final = 12
_CANCELLED: Final = 1e-12
_LONGEST_EXPANDED_POWER: Final = 4


def canonical_text(lowered: Node) -> str:
    """Return the canonical text of a tree that ``printing.lower`` returned."""
    return _sum_text(_Canon().sum_of(lowered, 0))


def identity(canonical: str) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a canonical text."""
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:12]


class _Canon:
    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Sum] = {}

    def sum_of(self, node: Node, shift: int) -> Sum:
        """Return ``node`` as of ``shift`` bars ago, written out."""
        key = (id(node), shift)
        if key not in self._known:
            self._known[key] = self._written_out(node, shift)
        return self._known[key]

    def _written_out(self, node: Node, shift: int) -> Sum:
        if isinstance(node, Number):
            return {_ONE: float(node.value)} if node.value else {}
        if isinstance(node, Field):
            return _atom(node.name, shift)
        if isinstance(node, Code):
            return _atom(f"'{node.value}'", 0)
        op, args = node.op, node.args
        if op == "Ref" and isinstance(args[1], Number):
            return self.sum_of(args[0], shift + int(args[1].value))
        if op in ("Add", "Sub"):
            return _added(self.sum_of(args[0], shift), self.sum_of(args[1], shift), 1.0 if op == "Add" else -1.0)
        if op == "Mul":
            return _multiplied(self.sum_of(args[0], shift), self.sum_of(args[1], shift))
        if op == "Div":
            return _divided(self.sum_of(args[0], shift), self.sum_of(args[1], shift))
        if op == "Power":
            return _raised(self.sum_of(args[0], shift), self.sum_of(args[1], shift))
        if op in ("Gt", "Ge", "Lt", "Le", "Eq", "Ne"):
            return _atom(self._comparison(op, args, shift), 0)
        row = OPERATORS[op]
        inner = shift if row.elementwise else 0
        sums = [self.sum_of(argument, inner) for argument in args]
        if row.even:
            sums[0] = _unsigned(sums[0])
        if row.associative:
            texts = _nested(op, self._chain(op, node, inner))
        else:
            texts = [_sum_text(item) for item in sums]
            texts[: row.commutes] = sorted(texts[: row.commutes])
        if len(texts) == 1 and row.associative:
            return self.sum_of(args[0], inner)
        return _atom(f"{op}({','.join(texts)})", 0 if row.elementwise else shift)

    def _comparison(self, op: str, args: tuple[Node, ...], shift: int) -> str:
        """Return ``x > y`` as the sign of a difference whose first coefficient is 1."""
        if op in ("Lt", "Le"):
            op, args = ("Gt" if op == "Lt" else "Ge"), (args[1], args[0])
        difference = _added(self.sum_of(args[0], shift), self.sum_of(args[1], shift), -1.0)
        if op in ("Eq", "Ne"):
            difference = _unsigned(difference)
        if difference:
            difference = _scaled(difference, 1 / abs(difference[_first(difference)]))
        return f"{op}({_sum_text(difference)},0)"

    def _chain(self, op: str, node: Node, shift: int) -> list[str]:
        """Return the members of ``op(op(a, b), c)``, each once, in order."""
        members: set[str] = set()
        open_nodes = [node]
        while open_nodes:
            current = open_nodes.pop()
            if isinstance(current, Call) and current.op == op:
                open_nodes.extend(current.args)
            else:
                members.add(_sum_text(self.sum_of(current, shift)))
        return sorted(members)


def _nested(op: str, members: list[str]) -> list[str]:
    if len(members) <= 2:
        return members
    rest = members[-1]
    for member in reversed(members[1:-1]):
        rest = f"{op}({member},{rest})"
    return [members[0], rest]


def _atom(text: str, shift: int) -> Sum:
    return {((f"Ref({text},{shift})" if shift else text, 1),): 1.0}


def _added(left: Sum, right: Sum, sign: float) -> Sum:
    total = dict(left)
    for monomial, coefficient in right.items():
        before = total.get(monomial, 0.0)
        after = before + sign * coefficient
        # What rounding leaves of a difference that is exactly zero.
        if abs(after) <= _CANCELLED * abs(before):
            total.pop(monomial, None)
        else:
            total[monomial] = after
    return total


def _scaled(item: Sum, by: float) -> Sum:
    return {monomial: _finite(coefficient * by) for monomial, coefficient in item.items()}


def _multiplied(left: Sum, right: Sum) -> Sum:
    if len(left) * len(right) > _MOST_TERMS:
        left, right = (_whole(item) if len(item) > 1 else item for item in (left, right))
    total: Sum = {}
    for a, x in left.items():
        for b, y in right.items():
            total = _added(total, {_product(a, b): _finite(x * y)}, 1.0)
    return total


def _divided(left: Sum, right: Sum) -> Sum:
    if not right:
        raise refusal("bad_number", "division by a formula that is always zero")
    if left.keys() == right.keys() and left:
        ratio = left[_first(left)] / right[_first(right)]
        if all(math.isclose(left[key], ratio * right[key], rel_tol=_CANCELLED) for key in left):
            return {_ONE: ratio}
    return _multiplied(left, _inverse(right))


def _inverse(item: Sum) -> Sum:
    whole = _whole(item) if len(item) > 1 else item
    ((monomial, coefficient),) = whole.items()
    return {tuple([(atom, -exponent) for atom, exponent in monomial]): _finite(1 / coefficient)}


def _whole(item: Sum) -> Sum:
    """Return a sum of several terms as a number times one atom, whose first coefficient is 1."""
    leading = item[_first(item)]
    return {((f"({_sum_text(_scaled(item, 1 / leading))})", 1),): leading}


def _raised(base: Sum, exponent: Sum) -> Sum:
    if exponent and list(exponent) != [_ONE]:
        return _atom(f"Power({_sum_text(base)},{_sum_text(exponent)})", 0)
    power = exponent.get(_ONE, 0.0)
    if power == 0:
        return {_ONE: 1.0}
    if not base:
        if power < 0:
            raise refusal("bad_number", "division by a formula that is always zero")
        return {}
    if power != int(power):
        atom = _atom(f"Power({_sum_text(base)},{_number_text(abs(power))})", 0)
        return atom if power > 0 else _inverse(atom)
    times = abs(int(power))
    if len(base) > 1 and (times > _LONGEST_EXPANDED_POWER or len(base) ** times > _MOST_TERMS):
        base = _whole(base)
    result: Sum = {_ONE: 1.0}
    for _ in range(times):
        result = _multiplied(result, base)
    return result if power > 0 else _inverse(result)


def _product(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    exponents = dict(left)
    for atom, exponent in right:
        exponents[atom] = exponents.get(atom, 0) + exponent
    return tuple(sorted([(atom, exponent) for atom, exponent in exponents.items() if exponent]))


def _unsigned(item: Sum) -> Sum:
    return _scaled(item, -1.0) if item and item[_first(item)] < 0 else item


def _first(item: Sum) -> Monomial:
    return min(item, key=_order)


def _order(monomial: Monomial) -> tuple[bool, Monomial]:
    return (not monomial, monomial)


def _finite(value: float) -> float:
    if not math.isfinite(value) or value == 0:
        raise refusal("bad_number", "the constants of the formula multiply to something too large or too small")
    return value


def _sum_text(item: Sum) -> str:
    if not item:
        return "0"
    pieces: list[str] = []
    for monomial in sorted(item, key=_order):
        text = _term_text(monomial, item[monomial])
        pieces.append(text if not pieces or text.startswith("-") else f"+{text}")
    return "".join(pieces)


def _term_text(monomial: Monomial, coefficient: float) -> str:
    above = [_factor_text(atom, exponent) for atom, exponent in monomial if exponent > 0]
    below = [_factor_text(atom, -exponent) for atom, exponent in monomial if exponent < 0]
    number = _number_text(coefficient)
    if above and number in ("1", "-1"):
        above[0] = number[:-1] + above[0]
    else:
        above.insert(0, number)
    return "*".join(above) + "".join([f"/{factor}" for factor in below])


def _factor_text(atom: str, exponent: int) -> str:
    if exponent == 1:
        return atom
    bare = atom[1:-1] if atom.startswith("(") else atom
    return f"Power({bare},{exponent})"


def _number_text(value: float) -> str:
    return f"{value:.{_DIGITS}g}"
