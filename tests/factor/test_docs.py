"""docs/factor_language.md says what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.operators import OPERATORS, REFUSED, WITHHELD, Operator
from qlib_llm_alpha.factor.reasons import REASONS

PAGE = (Path(__file__).parents[2] / "docs" / "factor_language.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", OPERATORS.values(), ids=lambda row: row.name)
def test_every_operator_is_on_the_page_with_what_evaluates_it(row: Operator) -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{row.signature}` |"))
    assert line.endswith(f"| {_in_stock_qlib(row)} |")
    assert row.summary.replace("|x|", "abs(x)") in line
    assert row.min_window == 1 or f"; N at least {row.min_window} |" in line


def _in_stock_qlib(row: Operator) -> str:
    if row.cross_sectional:
        return "through `PanelDatasetProvider`"
    if row.ours:
        return "`qlib_llm_alpha.ops.ours`"
    return f"`{row.stock}`" if row.stock else "itself"


@pytest.mark.parametrize("name", [*REASONS, *DAILY, *GROUPS, *REPORTED, *REFUSED, *WITHHELD])
def test_every_reason_and_field_and_refused_operator_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_the_limits_on_the_page_are_the_limits() -> None:
    limits = Limits()
    for figure in (limits.text, limits.depth, limits.nodes, limits.window, limits.lookback):
        assert re.search(rf"\b{figure}\b", PAGE)
    assert f"{limits.number:g}" in PAGE
    assert len(dataclasses.fields(Limits)) == 8


def test_the_example_on_the_page_is_true() -> None:
    factor = parse("Div(Sub($close, Ref($close, 1)), Ref($close, 1))")
    for value in (str(factor), factor.canonical, factor.id, factor.fields):
        assert (value if isinstance(value, str) else repr(value)) in PAGE
