"""Tree to text: in our spelling, and lowered to the operators that stock Qlib has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from qlib_llm_alpha.factor.folding import fold
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.parser import read
from qlib_llm_alpha.factor.tree import Call, Code, Field, Node, Number

_UNARY: Final = 6
_ATOM: Final = 9


def to_text(node: Node) -> str:
    """Return the text of ``node`` in normal spelling: signs where there are signs, as few parentheses as possible."""
    return _text(node)[0]


def lower(node: Node, native: Collection[str] = ()) -> Node:
    """Return ``node`` in stock operators, constants computed, and yes-or-no values made numbers where Qlib needs it.

    Operators without a stock form (cross-sectional ones and those that the engine alone computes) stay as they are,
    and so do those in ``native``. A subtree that the result holds several times is one object.
    """
    return _lower(node, native)[0]


def stock_form(op: str, args: Sequence[Node]) -> Node:
    """Return the call of an operator that has a stock form in that form."""
    names = [name for name, _ in OPERATORS[op].arguments]
    return _substitute(_template(op), dict(zip(names, args, strict=True)))


def _text(node: Node) -> tuple[str, int]:
    """Return text and precedence."""
    if isinstance(node, Number):
        text = repr(node.value)
        return text, _UNARY if text.startswith("-") else _ATOM
    if isinstance(node, Field):
        return node.name, _ATOM
    if isinstance(node, Code):
        return f"'{node.value}'", _ATOM
    row = OPERATORS.get(node.op)
    if row is not None and row.infix and len(node.args) == 2:
        left, left_binds = _text(node.args[0])
        right, right_binds = _text(node.args[1])
        # A comparison never leans on a neighbour: `a < b < c` means something else.
        if left_binds < row.precedence or (left_binds == row.precedence and row.unit == "compare"):
            left = f"({left})"
        if right_binds <= row.precedence or right_binds == _UNARY:
            right = f"({right})"
        return f"{left}{row.infix}{right}", row.precedence
    if node.op == "Neg" and len(node.args) == 1 and not isinstance(node.args[0], Number):
        inner, binds = _text(node.args[0])
        return (f"-{inner}" if binds == _ATOM else f"-({inner})"), _UNARY
    return f"{node.op}({','.join([_text(argument)[0] for argument in node.args])})", _ATOM


def _lower(node: Node, native: Collection[str]) -> tuple[Node, bool]:
    """Return the lowered node and whether its values are yes or no."""
    if not isinstance(node, Call):
        return node, False
    row = OPERATORS[node.op]
    if row.stock and row.name not in native:
        return stock_form(node.op, [_as_number(*_lower(argument, native)) for argument in node.args]), False
    pairs = [_lower(argument, native) for argument in node.args]
    value = fold(node.op, [argument for argument, _ in pairs])
    if value is not None:
        return Number(value), False
    truth = row.unit in ("compare", "boolean")
    if _needs_numbers(node.op, pairs):
        pairs = [
            pair if kind == "boolean" else (_as_number(*pair), False)
            for pair, (_, kind) in zip(pairs, row.arguments, strict=True)
        ]
    args = [argument for argument, _ in pairs]
    if node.op == "Power" and isinstance(args[1], Number) and args[1].value < 0:
        # numpy refuses whole numbers to negative whole powers.
        args[1] = Number(float(args[1].value))
    return Call(node.op, tuple(args)), truth


def _needs_numbers(op: str, pairs: list[tuple[Node, bool]]) -> bool:
    """Say whether numpy or pandas would do something else than arithmetic with yes-or-no arguments."""
    row = OPERATORS[op]
    if row.unit in ("compare", "boolean"):
        return False
    if row.unit == "choose":
        return pairs[1][1] and pairs[2][1]
    if row.lookback in ("window", "decay"):
        return False
    return all(truth or isinstance(argument, Number) for argument, truth in pairs)


def _as_number(node: Node, truth: bool) -> Node:
    return Call("Mul", (Number(1.0), node)) if truth else node


def _substitute(template: Node, values: dict[str, Node]) -> Node:
    if isinstance(template, Field):
        return values[template.name[1:]]
    if not isinstance(template, Call):
        return template
    args = [_substitute(argument, values) for argument in template.args]
    value = fold(template.op, args)
    return Number(value) if value is not None else Call(template.op, tuple(args))


_TEMPLATES: dict[str, Node] = {}


def _template(op: str) -> Node:
    if op not in _TEMPLATES:
        _TEMPLATES[op] = read(OPERATORS[op].stock, Limits())
    return _TEMPLATES[op]
