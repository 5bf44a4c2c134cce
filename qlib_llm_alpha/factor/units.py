"""Units of quantities: exponents of money per share and of shares, so that a price plus a volume is noticed."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Unit: TypeAlias = tuple[float, float, float] | Literal["any", "number"]
"""Exponents of (price, shares, group code); ``number`` (a plain number) and ``any`` (not known) go with every unit."""

ANY: Final[Unit] = "any"
NUMBER: Final[Unit] = "number"
_NONE: Final = (0.0, 0.0, 0.0)
RATIO: Final[Unit] = _NONE
PRICE: Final[Unit] = (1.0, 0.0, 0.0)
SHARES: Final[Unit] = (0.0, 1.0, 0.0)
MONEY: Final[Unit] = (1.0, 1.0, 0.0)
GROUP: Final[Unit] = (0.0, 0.0, 1.0)

_NAMES: Final[dict[Unit, str]] = {
    ANY: "an unknown unit",
    NUMBER: "a number",
    RATIO: "a ratio",
    PRICE: "a price",
    SHARES: "a number of shares",
    MONEY: "an amount of money",
    GROUP: "a group code",
}


def join(left: Unit, right: Unit) -> Unit | None:
    """Return the unit of a sum or a choice, or None where the two do not go together."""
    if left == right or right == NUMBER:
        return left
    if left == NUMBER:
        return right
    if left == ANY:
        return right
    return left if right == ANY else None


def product(left: Unit, right: Unit, sign: int = 1) -> Unit:
    """Return the unit of ``left * right``, or of ``left / right`` with ``sign`` -1."""
    if left == ANY or right == ANY:
        return ANY
    if left == NUMBER and right == NUMBER:
        return NUMBER
    a, b = _exponents(left), _exponents(right)
    return (a[0] + sign * b[0], a[1] + sign * b[1], a[2] + sign * b[2])


def power(base: Unit, exponent: float) -> Unit:
    """Return the unit of ``base`` to a constant power."""
    if isinstance(base, str):
        return base
    return (base[0] * exponent, base[1] * exponent, base[2] * exponent)


def is_pure(unit: Unit) -> bool:
    """Say whether ``unit`` may stand where only plain ratios make sense."""
    return unit in (ANY, NUMBER, RATIO)


def describe(unit: Unit) -> str:
    """Return the unit in words."""
    if unit in _NAMES:
        return _NAMES[unit]
    parts = [
        name if exponent == 1 else f"{name}^{exponent:g}"
        for name, exponent in zip(("price", "shares", "group code"), unit, strict=False)
        if exponent
    ]
    return "*".join(parts)


def _exponents(unit: Unit) -> tuple[float, float, float]:
    return _NONE if isinstance(unit, str) else unit
