"""Arithmetic on constants: what a formula of numbers alone comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from qlib_llm_alpha.factor.tree import Node, Number

FOLDABLE: Final[dict[str, Callable[..., float]]] = {
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "Power": lambda x, y: math.pow(x, y),
    "Neg": lambda x: -x,
    "Abs": abs,
    "Sign": lambda x: (x > 0) - (x < 0),
    "Log": math.log,
    "Sqrt": math.sqrt,
    "Exp": math.exp,
    "Tanh": math.tanh,
    "Reciprocal": lambda x: 1 / x,
    "SignedPower": lambda x, p: math.copysign(math.pow(abs(x), p), x),
    "Clip": lambda x, lo, hi: min(max(x, lo), hi),
    "Greater": max,
    "Less": min,
}
"""Operators that may stand on numbers alone, with their arithmetic on Python numbers."""


def fold(op: str, args: Sequence[Node]) -> int | float | None:
    """Return the value of ``op`` on numbers, or None where an argument is no number or ``op`` does not fold.

    Raises
    ------
    ArithmeticError, ValueError
        Where the value is not defined or overflows; the checks refuse such formulas, so that nothing later meets it.
    """
    if op not in FOLDABLE or not all([type(argument) is Number for argument in args]):
        return None
    return FOLDABLE[op](*[argument.value for argument in args])  # type: ignore[union-attr]
