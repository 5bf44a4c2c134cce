"""What every operator of ours owes Qlib; the subjects are found, so a new operator is held to it at once.

How many series and which parameters one takes, and how far it looks back, is read from its row in the operator table.
Cross-sectional ones have text and windows for Qlib, but no values: they read all instruments of a day.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.data.base import Expression
from qlib.data.ops import Operators, OpsList

import qlib_llm_alpha.ops
from qlib_llm_alpha.errors import ProviderError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.operators import OPERATORS as TABLE
from qlib_llm_alpha.factor.operators import Operator
from qlib_llm_alpha.ops.ours import OPERATORS

SERIES = {"series", "varying", "group"}
BARS = 60
# Three values of each kind of parameter, the last the widest; whole bars count from the smallest window.
PARAMETERS: dict[str, tuple[float, float, float]] = {
    "window": (0, 1, 4),
    "shift": (1, 2, 5),
    "number": (0.5, 1.0, 2.0),
    "fraction": (0.25, 0.5, 0.75),
    "tail": (0.05, 0.1, 0.2),
    "count": (2, 5, 10),
}


class Given(Expression):
    """A feature whose values are handed in, so that no provider is needed."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name = name
        self.values = values

    def __str__(self) -> str:
        return self.name

    def load(self, instrument: str, start_index: int, end_index: int, *args: object) -> pd.Series:
        return pd.Series(self.values[start_index : end_index + 1], index=range(start_index, end_index + 1))

    def _load_internal(self, instrument: str, start_index: int, end_index: int, *args: object) -> pd.Series:
        raise NotImplementedError

    def get_longest_back_rolling(self) -> int:
        return 0

    def get_extended_window_size(self) -> tuple[int, int]:
        return 0, 0


def classes() -> Iterator[type[Expression]]:
    for module in pkgutil.iter_modules(qlib_llm_alpha.ops.__path__):
        loaded = importlib.import_module(f"qlib_llm_alpha.ops.{module.name}")
        for _, found in inspect.getmembers(loaded, inspect.isclass):
            # A name with an underscore is a parent of operators, not one of them.
            mine = found.__module__ == loaded.__name__ and not found.__name__.startswith("_")
            if mine and issubclass(found, Expression):
                yield found


OURS = tuple(classes())
OVER_TIME = tuple(operator for operator in OURS if not TABLE[operator.__name__].cross_sectional)
ACROSS = tuple(operator for operator in OURS if TABLE[operator.__name__].cross_sectional)
EACH = pytest.mark.parametrize("operator", OURS)
EACH_OVER_TIME = pytest.mark.parametrize("operator", OVER_TIME)
EACH_ACROSS = pytest.mark.parametrize("operator", ACROSS)
CHOICES = pytest.mark.parametrize("choice", [0, 1, 2], ids=["least", "small", "wide"])
WIDE = 2


def row_of(operator: type[Expression]) -> Operator:
    return TABLE[operator.__name__]


def parameter(row: Operator, kind: str, choice: int) -> float:
    return PARAMETERS[kind][choice] + (row.min_window if kind == "window" else 0)


def parameters(row: Operator, choice: int) -> list[float]:
    return [parameter(row, kind, choice) for _, kind in row.arguments if kind not in SERIES]


def build(operator: type[Expression], values: np.ndarray, given: list[float]) -> Any:
    """Return the operator on the rows of `values`, one for each series it takes, and on the given parameters."""
    series, rest = iter(values), iter(given)
    return operator(
        *(
            Given(f"given_{name}", next(series)) if kind in SERIES else next(rest)
            for name, kind in row_of(operator).arguments
        )
    )


def run(operator: type[Expression], values: np.ndarray, choice: int) -> np.ndarray:
    built = build(operator, values, parameters(row_of(operator), choice))
    return built._load_internal("SH600000", 0, values.shape[1] - 1, "day").to_numpy()


def market(operator: type[Expression], bars: int = BARS) -> np.ndarray:
    """Return values without gaps, (series, bars)."""
    count = sum(kind in SERIES for _, kind in row_of(operator).arguments)
    return np.random.default_rng(3).normal(10, 2, (count, bars))


def with_gaps(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    for number, series in enumerate(values):
        series[[7 + number, 20, 21, 22, 40 - number]] = np.nan
    return values


def lookback(operator: type[Expression], choice: int) -> int:
    """Return the bars before the day that the language announces for the call."""
    row = row_of(operator)
    fields, rest = iter(("$close", "$open", "$high", "$low")), iter(parameters(row, choice))
    call = ",".join(
        "$industry" if kind == "group" else next(fields) if kind in SERIES else repr(next(rest))
        for _, kind in row.arguments
    )
    return parse(f"{row.name}({call})", units="warn").lookback


def test_every_operator_is_in_the_list_to_register() -> None:
    assert set(OURS) == set(OPERATORS)
    assert OVER_TIME
    assert ACROSS


def test_the_operators_are_those_of_the_table_that_qlib_cannot_say() -> None:
    assert {operator.__name__ for operator in OVER_TIME} == {row.name for row in TABLE.values() if row.ours}
    assert {operator.__name__ for operator in ACROSS} == {row.name for row in TABLE.values() if row.cross_sectional}


@EACH
def test_the_name_does_not_shadow_one_of_qlib(operator: type[Expression]) -> None:
    assert operator.__name__ not in {known.__name__ for known in OpsList}


@EACH
def test_qlib_registers_it_under_its_name(operator: type[Expression]) -> None:
    before = dict(Operators._ops)
    try:
        Operators.register([operator])
        assert getattr(Operators, operator.__name__) is operator
    finally:
        Operators.reset()
        Operators._ops.update(before)


@EACH
def test_the_text_holds_every_argument_because_qlib_caches_by_it(operator: type[Expression]) -> None:
    row = row_of(operator)
    values = market(operator)
    kinds = [kind for _, kind in row.arguments if kind not in SERIES]
    for place, kind in enumerate(kinds):
        texts = set()
        for choice in range(3):
            given = parameters(row, 0)
            given[place] = parameter(row, kind, choice)
            texts.add(str(build(operator, values, given)))
        assert len(texts) == 3, f"the text of {row.name} does not hold its {kind}"
    text = str(build(operator, values, parameters(row, 0)))
    assert row.name in text
    assert [name for name, kind in row.arguments if kind in SERIES and f"given_{name}" not in text] == []


@EACH_OVER_TIME
@CHOICES
def test_bars_after_the_day_change_nothing(operator: type[Expression], choice: int) -> None:
    values = with_gaps(market(operator))
    poisoned = values.copy()
    poisoned[:, 31:] = -1e9
    expected = run(operator, values, choice)[:31]
    np.testing.assert_array_equal(run(operator, poisoned, choice)[:31], expected)
    np.testing.assert_array_equal(run(operator, values[:, :31], choice), expected)


@EACH
@CHOICES
def test_the_bars_it_announces_are_those_of_the_table(operator: type[Expression], choice: int) -> None:
    built = build(operator, market(operator), parameters(row_of(operator), choice))
    left = lookback(operator, choice)
    assert built.get_extended_window_size() == (left, 0)
    assert built.get_longest_back_rolling() == left, "Qlib's PairRolling leaves its own window out; add N - 1"


@EACH_OVER_TIME
@CHOICES
def test_bars_before_those_it_announces_change_nothing(operator: type[Expression], choice: int) -> None:
    values = market(operator)
    beyond = values.copy()
    beyond[:, : 50 - lookback(operator, choice)] += 100.0
    assert run(operator, beyond, choice)[50] == pytest.approx(run(operator, values, choice)[50], rel=1e-9)


@EACH_OVER_TIME
def test_the_oldest_bar_it_announces_is_read_from_every_series(operator: type[Expression]) -> None:
    values = market(operator)
    before = run(operator, values, WIDE)[50]
    for number in range(len(values)):
        after = []
        for change in (1e3, -1e3):
            within = values.copy()
            within[number, 50 - lookback(operator, WIDE)] += change
            after.append(run(operator, within, WIDE)[50])
        assert any(value != before for value in after)


@EACH
def test_it_survives_pickling_as_it_does_on_the_way_to_a_worker(operator: type[Expression]) -> None:
    built = build(operator, with_gaps(market(operator)), parameters(row_of(operator), WIDE))
    again = pickle.loads(pickle.dumps(built))  # noqa: S301 - our own bytes
    assert type(again) is operator
    assert str(again) == str(built)
    assert again.get_extended_window_size() == built.get_extended_window_size()


@EACH_OVER_TIME
def test_it_keeps_the_index_also_after_pickling(operator: type[Expression]) -> None:
    built = build(operator, with_gaps(market(operator)), parameters(row_of(operator), WIDE))
    again = pickle.loads(pickle.dumps(built))  # noqa: S301 - our own bytes
    values = built._load_internal("SH600000", 10, 29, "day")
    assert values.index.tolist() == list(range(10, 30))
    pd.testing.assert_series_equal(again._load_internal("SH600000", 10, 29, "day"), values)


@EACH_ACROSS
def test_a_cross_section_says_on_load_what_evaluates_it(operator: type[Expression]) -> None:
    built = build(operator, market(operator), parameters(row_of(operator), WIDE))
    with pytest.raises(ProviderError, match=r"dataset_provider: \{class: PanelDatasetProvider"):
        built.load("SH600000", 0, BARS - 1, "day")


@EACH_OVER_TIME
def test_early_bars_give_partial_windows_as_in_qlib_and_no_bars_give_none(operator: type[Expression]) -> None:
    row = row_of(operator)
    if "window" in dict(row.arguments).values():
        early = run(operator, market(operator, row.min_window + 2), WIDE)
        assert not np.isnan(early[row.min_window - 1 :]).any()
    assert run(operator, market(operator, 0), WIDE).shape == (0,)
