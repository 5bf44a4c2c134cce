"""How large a formula may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that are checked before and after parsing.

    Parameters
    ----------
    text : int
        Characters of the text.
    depth : int
        Nested operators; ``$close`` has depth 1, ``Mean($close,5)`` depth 2.
    nodes : int
        Operators, fields and numbers in the tree.
    window : int
        Bars of one window or shift.
    lookback : int
        Bars before the day that the whole formula needs.
    number : float
        Largest absolute value of a number; its smallest, apart from 0, is 1e-30.
    exponent : float
        Largest absolute value of a constant exponent; of nested powers, the product counts.
    exponentials : int
        Nested ``Exp``, or powers with a varying exponent.
    """

    text: int = 4000
    depth: int = 24
    nodes: int = 400
    window: int = 500
    lookback: int = 1000
    number: float = 1e15
    exponent: float = 10.0
    exponentials: int = 2
