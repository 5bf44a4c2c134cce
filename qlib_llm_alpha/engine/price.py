"""What a formula will cost before it is computed, from the prices in the table of operators.

A price is processor time of one core on the machine where the table was measured (a desktop core of 2024 with vectors
of 256 bits): good for comparing candidates and for refusing the dear ones, within a factor of two for the time itself.
What the engine saves by computing operators of one window together is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from qlib_llm_alpha.engine.kernels.registry import LANES
from qlib_llm_alpha.errors import PanelError
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.operators import OPERATORS, Price
from qlib_llm_alpha.factor.tree import Call, Node, Number

_WINDOWS: Final = frozenset({"window", "shift"})
_ROOT: Final = 0.4
"""Nanoseconds a cell for writing a root to memory."""

_UNLISTED: Final[Price] = (5.0, 0.1)
"""Of an operator that the table does not have."""


def price(
    formulas: Expression | Node | Sequence[Expression | Node],
    names: int,
    days: int,
    *,
    prices: Mapping[str, Price] | None = None,
) -> float:
    """Return the seconds of processor time that formulas will take, what they share counted once.

    Parameters
    ----------
    formulas : Expression, tree, or sequence of them
        One candidate or a batch.
    names, days : int
        Size of the panel; names are rounded up to whole tiles.
    prices : mapping of str to (float, float), optional
        Nanoseconds a cell, fixed and for each bar of the window, in place of the table's.

    Returns
    -------
    float
        Seconds of one core.

    Raises
    ------
    PanelError
        A panel without names or days.
    """
    if names < 1 or days < 1:
        raise PanelError(f"{names!r} names and {days!r} days; expected at least one of each; give the panel's size")
    batch = [formulas] if isinstance(formulas, Expression | Node) else list(formulas)
    roots = [formula.root if isinstance(formula, Expression) else formula for formula in batch]
    cells = -(-names // LANES) * LANES * days
    nanoseconds = sum(_of_call(call, days, prices or {}) for call in _distinct(roots)) + _ROOT * len(roots)
    return nanoseconds * cells * 1e-9


def _distinct(roots: Iterable[Node]) -> set[Call]:
    """Return the calls of all trees, each once; what stands below a call that is known is known."""
    found: set[Call] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Call) and node not in found:
            found.add(node)
            waiting.extend(node.args)
    return found


def _of_call(call: Call, days: int, prices: Mapping[str, Price]) -> float:
    row = OPERATORS.get(call.op)
    fixed, by_bar = prices.get(call.op) or (row.price if row else _UNLISTED)
    if not by_bar:
        return fixed
    kinds = [kind for _, kind in row.arguments] if row else []
    if not _WINDOWS.intersection(kinds):
        kinds = ["window"] * len(call.args)
    windows = [
        argument.value
        for argument, kind in zip(call.args, kinds, strict=False)
        if kind in _WINDOWS and isinstance(argument, Number)
    ]
    # A window of 0 is one that grows with the series: half of it on average.
    return fixed + by_bar * max((value or days / 2 for value in windows), default=1)
