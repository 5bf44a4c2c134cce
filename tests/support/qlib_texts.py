"""Random formulas in Qlib's own notation, with Qlib's own meaning: what ``D.features`` may be asked.

Each draw is made by ``choose``, so that hypothesis (``from_hypothesis``) and a seeded generator serve alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Choose = Callable[[Sequence[Any]], Any]

ROLLING = ("Mean", "Sum", "Std", "Var", "Max", "Min", "Med", "Mad", "Rank", "IdxMax", "IdxMin", "WMA", "EMA", "Count")
LINES = ("Slope", "Rsquare", "Resi", "Skew", "Kurt", "Quantile")
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Greater", "Less")
COMPARISONS = ("Gt", "Ge", "Lt", "Le", "Eq", "Ne")
_SIGNS = {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "Div": "/",
    "Gt": ">",
    "Ge": ">=",
    "Lt": "<",
    "Le": "<=",
    "Eq": "==",
    "Ne": "!=",
}
_WINDOWS = (2, 3, 5, 10, 20, 30, 60, 0, 1, 500)
_NUMBERS = (1, 2, -1, 0.5, 1e-12, 100, -0.25, 3)


def formula(
    choose: Choose, complete: Sequence[str], partial: Sequence[str] = (), depth: int = 4, index: str = ""
) -> str:
    """Return a random formula of at most ``depth`` nested operators.

    Parameters
    ----------
    choose : callable
        Returns one of several options.
    complete, partial : sequence of str
        Fields whose rows are the same for an instrument, and others. Stock Qlib fails on ``If``, ``And``, ``Or`` and
        ``Corr`` of series with different rows, so a formula with them reads complete fields only.
    depth : int
    index : str
        A code for ``ChangeInstrument`` and ``Mask``, which then may occur (with ``$close``); empty: none.
    """
    if partial and choose((False, False, True)):
        return _series(choose, (*complete, *partial), depth, False, index)
    return _series(choose, complete, depth, True, "")


def from_hypothesis(complete: Sequence[str], partial: Sequence[str] = (), index: str = "") -> st.SearchStrategy[str]:
    """Return a strategy of formulas of depth 2 to 4."""

    @st.composite
    def drawn(draw: st.DrawFn) -> str:
        def choose(options: Sequence[Any]) -> Any:
            return draw(st.sampled_from(options))

        return formula(choose, complete, partial, choose((4, 3, 2)), index)

    return drawn()


def _series(choose: Choose, fields: Sequence[str], depth: int, same_rows: bool, index: str) -> str:
    if depth <= 0 or (depth < 3 and choose((True, False, False, False))):
        return str(choose(fields))

    def inner() -> str:
        return _series(choose, fields, depth - 1, same_rows, index)

    kinds = ["rolling"] * 4 + ["arithmetic"] * 3 + ["line", "line", "pair", "shift", "alone", "decay", "power"]
    kinds += ["if", "condition"] if same_rows else []
    kinds += ["other"] if index else []
    kind = choose(kinds)
    if kind == "rolling":
        return f"{choose(ROLLING)}({inner()},{choose(_WINDOWS)})"
    if kind == "line":
        op, window = choose(LINES), choose((5, 10, 20, 60, 0, 500))
        return f"{op}({inner()},{window}{f',{choose((0.2, 0.5, 0.8))}' if op == 'Quantile' else ''})"
    if kind == "pair":
        return f"{choose(('Corr', 'Cov') if same_rows else ('Cov',))}({inner()},{inner()},{choose((5, 10, 20, 60))})"
    if kind == "shift":
        return (
            f"{choose(('Ref', 'Delta'))}({inner()},{choose((1, 2, 5, 20, -1, 0) if same_rows else (1, 2, 5, 20, -1))})"
        )
    if kind == "alone":
        return f"{choose(('Abs', 'Log', 'Sign'))}({inner()})"
    if kind == "decay":
        return f"{choose(('EMA', 'Mean', 'Std'))}({inner()},{choose((0.1, 0.5))})"
    if kind == "power":
        return f"Power({inner()},{choose((2, 0.5, -1, 3))})"
    if kind == "if":
        sides = [inner(), choose((inner(), str(choose(_NUMBERS))))]
        left, right = sides if choose((True, False)) else sides[::-1]
        return f"If({_condition(choose, fields, depth - 1)},{left},{right})"
    if kind == "condition":
        return f"{choose(('Mean', 'Sum', 'Count', 'Std'))}({_condition(choose, fields, depth - 1)},{choose(_WINDOWS)})"
    if kind == "other":
        moved = _series(choose, ("$close",), depth - 1, False, "")
        return choose((f"ChangeInstrument('{index}',{moved})", f"Mask({moved},'{index}')"))
    op = choose(ARITHMETIC)
    left, right = inner(), choose((inner(), inner(), str(choose(_NUMBERS))))
    return _written(choose, op, *((left, right) if choose((True, True, False)) else (right, left)))


def _condition(choose: Choose, fields: Sequence[str], depth: int) -> str:
    kind = choose(("compare", "compare", "compare", "and", "not")) if depth > 1 else "compare"
    if kind == "and":
        pair = _condition(choose, fields, depth - 1), _condition(choose, fields, depth - 1)
        return f"{choose(('And', 'Or'))}({pair[0]},{pair[1]})"
    if kind == "not":
        return f"Not({_condition(choose, fields, depth - 1)})"
    left = _series(choose, fields, depth - 1, True, "")
    right = choose((_series(choose, fields, depth - 1, True, ""), str(choose(_NUMBERS))))
    return _written(choose, choose(COMPARISONS), left, right)


def _written(choose: Choose, op: str, left: str, right: str) -> str:
    """Write a pair as a call or with its sign."""
    if op in _SIGNS and choose((True, False)):
        return f"({left}{_SIGNS[op]}{right})"
    return f"{op}({left},{right})"
