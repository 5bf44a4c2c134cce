from __future__ import annotations

import pytest

from qlib_llm_alpha.engine.price import price
from qlib_llm_alpha.errors import PanelError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.tree import Call, Field, Number

CLOSE = Field("$close")
LISTED = {"Mean": (1.0, 0.0), "Rank": (2.0, 0.5), "Sub": (0.25, 0.0)}


def nanoseconds(formula: object, **options: object) -> float:
    return price(formula, 32, 1, prices=LISTED, **options) / 32 * 1e9


def test_a_price_is_fixed_and_by_bar_and_the_root_is_written() -> None:
    assert nanoseconds(CLOSE) == pytest.approx(0.4)
    assert nanoseconds(Call("Mean", (CLOSE, Number(20)))) == pytest.approx(1.4)
    assert nanoseconds(Call("Rank", (CLOSE, Number(20)))) == pytest.approx(12.4)
    assert nanoseconds(parse("Rank($close, 20)-Rank($close, 5)")) == pytest.approx(12 + 4.5 + 0.25 + 0.4)


def test_what_is_written_twice_is_counted_once() -> None:
    mean = Call("Mean", (CLOSE, Number(20)))
    assert nanoseconds(Call("Sub", (mean, mean))) == pytest.approx(1.65)
    assert nanoseconds([mean, Call("Sub", (CLOSE, mean))]) == pytest.approx(1 + 0.25 + 0.8)


def test_a_window_of_zero_grows_with_the_series() -> None:
    formula = Call("Rank", (CLOSE, Number(0)))
    assert price(formula, 32, 100, prices=LISTED) == pytest.approx((2 + 0.5 * 50 + 0.4) * 3200e-9)


def test_names_are_rounded_up_to_tiles() -> None:
    formula = Call("Mean", (CLOSE, Number(20)))
    assert price(formula, 33, 10) == price(formula, 64, 10) == 2 * price(formula, 32, 10)


def test_the_table_has_a_price_for_every_operator() -> None:
    assert all(row.price[0] > 0 and row.price[1] >= 0 for row in OPERATORS.values())
    assert price(Call("Unlisted", (CLOSE, Number(20))), 32, 1) > price(Call("Mean", (CLOSE, Number(20))), 32, 1)


def test_a_panel_without_names_has_no_price() -> None:
    with pytest.raises(PanelError, match="at least one"):
        price(CLOSE, 0, 5)
