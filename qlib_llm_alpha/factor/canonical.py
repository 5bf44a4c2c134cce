"""The canonical form: what a formula is up to algebra. It gives identity and finds duplicates, and is never executed.

A formula becomes a sum of products of *atoms* (fields, shifted fields, and operators that arithmetic cannot see into),
each product with one coefficient and whole exponents:

- a product of one term and a sum is written out, so that ``(a-b)/b`` is ``a/b-1``;
- a product of two sums, and a sum below a fraction line, stays together: the sum becomes an atom, divided by what its
  terms share and by its first coefficient, so that ``1/(2*x*(a+b))`` is ``0.5/x/(a+b)`` however it was spelt;
- shifts go inside as far as day-by-day operators reach; comparisons become the sign of a difference;
- constants are computed, to 12 digits in the text, also those that algebra leaves: ``Log($close/$close)`` is 0. An
  operator that needs a field and has none left is refused, so every atom holds a field.

The identity is that of exact arithmetic: two formulas of one identity may differ in rounding, and where one of them
divides by zero.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final, TypeAlias

from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.folding import FOLDABLE
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.reasons import refusal
from qlib_llm_alpha.factor.tree import Call, Code, Field, Node, Number

Monomial: TypeAlias = tuple[tuple[str, int], ...]
Sum: TypeAlias = dict[Monomial, float]

_ONE: Final[Monomial] = ()
_DIGITS: Final = 12
_CANCELLED: Final = 1e-12


def canonical_text(lowered: Node) -> str:
    """Return the canonical text of a tree that ``printing.lower`` returned.

    Raises
    ------
    ExpressionError
        ``bad_number`` where the constants overflow or something is divided by what is always zero, ``constant`` where
        an operator that needs a field has none left, as in ``Std($close*0,5)``.
    """
    return _sum_text(_Canon().sum_of(lowered, 0))


def identity(canonical: str) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a canonical text."""
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:12]


class _Canon:
    """One run over one tree; remembers what it has written out and which sums became atoms."""

    def __init__(self) -> None:
        # By identity: lowering repeats subtrees as one object, and the tree outlives this run.
        self._known: dict[tuple[int, int], Sum] = {}
        self._sums: dict[str, Sum] = {}

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
        if op in _ARITHMETIC:
            left, right = self.sum_of(args[0], shift), self.sum_of(args[1], shift)
            if op == "Power" and not isinstance(args[1], Number) and not _varies(right):
                # Otherwise `1000*$close/$close` would be an exponent that no limit has seen.
                raise _no_field_left(op, [_sum_text(left), _sum_text(right)])
            return self._arithmetic(op, left, right)
        if op in _COMPARISONS:
            return _atom(self._comparison(op, args, shift), 0)
        return self._opaque(node, shift)

    def _arithmetic(self, op: str, left: Sum, right: Sum) -> Sum:
        if op in ("Add", "Sub"):
            return _added(left, right, 1.0 if op == "Add" else -1.0)
        if op == "Mul":
            return self._multiplied(left, right)
        if op == "Div":
            return self._multiplied(left, self._raised(right, -1))
        if _varies(right):
            if not _varies(left):
                return self._constant_base(left, right)
            return _atom(f"Power({_sum_text(left)},{_sum_text(right)})", 0)
        power = right.get(_ONE, 0.0)
        if power == int(power):
            return self._raised(left, int(power))
        if _varies(left):
            root = _atom(f"Power({_sum_text(left)},{_number_text(abs(power))})", 0)
        else:
            root = _constant("Power", [left.get(_ONE, 0.0), abs(power)])
        return root if power > 0 else self._raised(root, -1)

    def _constant_base(self, left: Sum, right: Sum) -> Sum:
        base = left.get(_ONE, 0.0)
        if base <= 0:
            raise refusal("bad_number", f"{_number_text(base)} to a varying power; a constant base is above 0")
        return left if base == 1 else _atom(f"Power({_sum_text(left)},{_sum_text(right)})", 0)

    def _comparison(self, op: str, args: tuple[Node, ...], shift: int) -> str:
        """Return ``x > y`` as the sign of a difference whose first coefficient is 1 or -1."""
        left, right = (self.sum_of(argument, shift) for argument in args)
        if op in ("Lt", "Le"):
            op, left, right = ("Gt" if op == "Lt" else "Ge"), right, left
        difference = _added(left, right, -1.0)
        if not _varies(difference):
            raise _no_field_left(op, [_sum_text(left), _sum_text(right)])
        if op in ("Eq", "Ne"):
            difference = _unsigned(difference)
        difference = _scaled(difference, 1 / abs(difference[_first(difference)]))
        return f"{op}({_sum_text(difference)},0)"

    def _opaque(self, node: Call, shift: int) -> Sum:
        """Return an operator that arithmetic cannot see into, its arguments in order."""
        row = OPERATORS[node.op]
        inside, outside = (shift, 0) if row.elementwise else (0, shift)
        if row.associative:
            members = _one_number(node.op, self._members(node, inside))
            if len(members) == 1:
                return next(iter(members.values()))
            return _atom(_nested(node.op, sorted(members)), outside)
        sums = [self.sum_of(argument, inside) for argument in node.args]
        kinds = [kind for _, kind in row.arguments]
        series = [item for item, kind in zip(sums, kinds, strict=True) if kind in ("series", "varying", "boolean")]
        if node.op in FOLDABLE and not any(_varies(item) for item in series):
            return _constant(node.op, [item.get(_ONE, 0.0) for item in sums])
        if any(kind == "varying" and not _varies(item) for item, kind in zip(sums, kinds, strict=True)):
            raise _no_field_left(node.op, [_sum_text(item) for item in sums])
        if row.unit == "choose" and sums[1] == sums[2]:
            return sums[1]
        if row.even:
            sums[0] = _unsigned(sums[0])
        texts = [_sum_text(item) for item in sums]
        texts[: row.commutes] = sorted(texts[: row.commutes])
        return _atom(f"{node.op}({','.join(texts)})", outside)

    def _members(self, node: Call, shift: int) -> dict[str, Sum]:
        """Return the members of ``op(op(a, b), c)``, each once, by text."""
        members: dict[str, Sum] = {}
        open_nodes: list[Node] = [node]
        while open_nodes:
            current = open_nodes.pop()
            if isinstance(current, Call) and current.op == node.op:
                open_nodes.extend(current.args)
            else:
                item = self.sum_of(current, shift)
                members[_sum_text(item)] = item
        return members

    def _multiplied(self, left: Sum, right: Sum) -> Sum:
        if len(left) > 1 and (len(right) > 1 or _holds_sums(right)):
            left = self._together(left)
        if len(right) > 1 and (len(left) > 1 or _holds_sums(left)):
            right = self._together(right)
        total: Sum = {}
        for a, x in left.items():
            for b, y in right.items():
                total = _added(total, {_product(a, b): _finite(x * y)}, 1.0)
        return self._cancelled(total) if len(total) > 1 else self._spread(total)

    def _raised(self, base: Sum, power: int) -> Sum:
        if power == 0:
            return {_ONE: 1.0}
        if not base:
            if power < 0:
                raise refusal("bad_number", "the formula divides by something that is always zero; mend the divisor")
            return {}
        ((monomial, coefficient),) = self._together(base).items()
        raised = tuple([(atom, exponent * power) for atom, exponent in monomial])
        return self._spread({raised: _to_the(coefficient, power)})

    def _together(self, item: Sum) -> Sum:
        """Return a sum of several terms as one product: a number, what all terms share, and an atom for the rest."""
        if len(item) < 2:
            return item
        shared = _shared(item)
        inverse = tuple([(atom, -exponent) for atom, exponent in shared])
        rest = {_product(monomial, inverse): coefficient for monomial, coefficient in item.items()}
        leading = rest[_first(rest)]
        rest = _scaled(rest, 1 / leading)
        atom = f"({_sum_text(rest)})"
        self._sums[atom] = rest
        return {_product(shared, ((atom, 1),)): leading}

    def _spread(self, item: Sum) -> Sum:
        """Undo ``_together`` where a single sum stands above the line."""
        if len(item) != 1:
            return item
        ((monomial, coefficient),) = item.items()
        above = [factor for factor in monomial if factor[0][0] == "(" and factor[1] > 0]
        if len(above) != 1 or above[0][1] != 1:
            return item
        others = tuple([factor for factor in monomial if factor != above[0]])
        inner = self._sums[above[0][0]]
        return {_product(others, term): _finite(coefficient * number) for term, number in inner.items()}

    def _cancelled(self, item: Sum) -> Sum:
        """Return ``(a+b)/(a+b)`` as 1: a sum over itself, which term by term does not show."""
        if not any(exponent < 0 and atom[0] == "(" for monomial in item for atom, exponent in monomial):
            return item
        together = self._together(item)
        ((monomial, _),) = together.items()
        still_there = any(atom[0] == "(" and exponent > 0 for atom, exponent in monomial)
        return item if still_there else self._spread(together)


_ARITHMETIC: Final = frozenset({"Add", "Sub", "Mul", "Div", "Power"})
_COMPARISONS: Final = frozenset({"Gt", "Ge", "Lt", "Le", "Eq", "Ne"})


def _varies(item: Sum) -> bool:
    return any(item)


def _constant(op: str, numbers: list[float]) -> Sum:
    try:
        value = float(FOLDABLE[op](*numbers))
    except (ArithmeticError, ValueError):
        shown = ",".join([_number_text(number) for number in numbers])
        raise refusal("bad_number", f"what is always {op}({shown:.80}) has no value; mend the formula") from None
    return {_ONE: _finite(value)} if value else {}


def _one_number(op: str, members: dict[str, Sum]) -> dict[str, Sum]:
    """Return the members of an associative operator with those that are numbers made one."""
    numbers = [member.get(_ONE, 0.0) for member in members.values() if not _varies(member)]
    if len(numbers) < 2:
        return members
    computed = _constant(op, numbers)
    return {text: member for text, member in members.items() if _varies(member)} | {_sum_text(computed): computed}


def _no_field_left(op: str, arguments: list[str]) -> ExpressionError:
    return refusal(
        "constant",
        f"once computed, {op}({','.join(arguments):.120}) lacks a field where it needs one: the part is the same for "
        "every instrument and day; leave it out or write the number",
    )


def _nested(op: str, members: list[str]) -> str:
    text = members[-1]
    for member in reversed(members[:-1]):
        text = f"{op}({member},{text})"
    return text


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


def _holds_sums(item: Sum) -> bool:
    return any(atom[0] == "(" and exponent > 0 for monomial in item for atom, exponent in monomial)


def _shared(item: Sum) -> Monomial:
    """Return the product that divides every term, negative exponents included."""
    terms = [dict(monomial) for monomial in item]
    atoms = {atom for term in terms for atom in term}
    least = {atom: min([term.get(atom, 0) for term in terms]) for atom in atoms}
    return tuple(sorted([(atom, exponent) for atom, exponent in least.items() if exponent]))


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
    # Plain numbers last: `$close/$open-1` reads better than `-1+$close/$open`.
    return (not monomial, monomial)


def _to_the(coefficient: float, power: int) -> float:
    try:
        return _finite(math.pow(coefficient, power))
    except OverflowError:
        return _finite(math.inf)


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
