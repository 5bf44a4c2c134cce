"""Random trees of the factor language, drawn from the operator table."""

from __future__ import annotations

from hypothesis import strategies as st

from qlib_llm_alpha.factor.operators import OPERATORS, Operator
from qlib_llm_alpha.factor.tree import Call, Code, Field, Node, Number

DAILY = ("$open", "$high", "$low", "$close", "$vwap", "$volume", "$amount", "$change")
REPORTED = ("$$eps_q", "$$book_value_q", "$$revenue_q", "$$net_income_q")

_NUMBERS = st.one_of(st.integers(-5, 5), st.sampled_from([0.5, -0.5, 1.5, 2.25, 1e-12, 100, -3.75]))
_BOOLEANS = tuple(row for row in OPERATORS.values() if row.unit in ("compare", "boolean"))
_SERIES = tuple(row for row in OPERATORS.values() if row.unit not in ("compare", "boolean"))


@st.composite
def series(draw: st.DrawFn, depth: int = 4, leaves: tuple[str, ...] = DAILY, everything: bool = True) -> Node:
    """Return a tree in which a field occurs; with ``everything`` False without P, other instruments, cross-sections."""
    if depth <= 1 or draw(st.integers(0, 5)) == 0:
        return Field(draw(st.sampled_from(leaves)))
    row = draw(st.sampled_from([row for row in _SERIES if everything or _plain(row)]))
    return draw(call(row, depth, leaves, everything))


@st.composite
def call(draw: st.DrawFn, row: Operator, depth: int, leaves: tuple[str, ...], everything: bool) -> Node:
    """Return a call of ``row`` with arguments of the right kinds."""
    inner, more = leaves, everything
    if row.lookback == "reported":
        inner, more = REPORTED, False
    if row.name == "ChangeInstrument":
        more = False
    args: list[Node] = []
    for position, (_, kind) in enumerate(row.arguments):
        if kind == "varying" or (kind == "series" and position == 0):
            args.append(draw(series(depth - 1, inner, more)))
        elif kind == "series":
            args.append(draw(st.one_of(series(depth - 1, inner, more), _NUMBERS.map(Number))))
        elif kind == "boolean":
            args.append(draw(condition(depth - 1, inner, more)))
        elif kind == "window":
            args.append(Number(draw(st.integers(row.min_window, 20))))
        elif kind == "shift":
            args.append(Number(draw(st.integers(1, 20))))
        elif kind == "number":
            args.append(Number(draw(st.sampled_from([0.5, 1, 2, 3]))))
        elif kind == "count":
            args.append(Number(draw(st.sampled_from([2, 5, 100]))))
        elif kind == "tail":
            args.append(Number(draw(st.sampled_from([0, 0.01, 0.5]))))
        elif kind == "fraction":
            args.append(Number(draw(st.sampled_from([0, 0.05, 0.5, 1]))))
        elif kind == "period":
            args.append(Number(draw(st.sampled_from([2019, 201903, 202101]))))
        elif kind == "group":
            args.append(Field("$industry"))
        else:
            args.append(Code("SH000300"))
    if row.name == "Clip":
        args[1:] = map(Number, draw(st.sampled_from([(0.5, 1), (0.5, 3), (1, 2), (2, 3)])))
    return Call(row.name, tuple(args))


@st.composite
def condition(draw: st.DrawFn, depth: int, leaves: tuple[str, ...], everything: bool) -> Node:
    """Return a comparison, or And/Or/Not of comparisons."""
    rows = [row for row in _BOOLEANS if depth > 2 or row.unit == "compare"]
    return draw(call(draw(st.sampled_from(rows)), depth, leaves, everything))


def _plain(row: Operator) -> bool:
    return not row.cross_sectional and row.lookback != "reported" and row.name != "ChangeInstrument"
