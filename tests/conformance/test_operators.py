"""What every operator of ours owes Qlib; the subjects are found, so a new operator is held to it at once."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from qlib.data.base import Expression
from qlib.data.ops import Operators, OpsList

import qlib_llm_alpha.ops
from qlib_llm_alpha.ops.rolling import OPERATORS

WINDOWS = (1, 2, 5)


class Given(Expression):
    """A feature whose values are handed in, so that no provider is needed."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __str__(self) -> str:
        return "Given"

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
            if issubclass(found, Expression) and found.__module__ == loaded.__name__:
                yield found


OURS = tuple(classes())


def run(operator: type[Expression], values: np.ndarray, window: int) -> np.ndarray:
    built = operator(Given(values), window)
    return built._load_internal("SH600000", 0, len(values) - 1, "day").to_numpy()


@pytest.fixture
def values() -> np.ndarray:
    values = np.random.default_rng(3).normal(10, 2, 60)
    values[[7, 20, 21, 22, 40]] = np.nan
    return values


def test_every_operator_is_in_the_list_to_register() -> None:
    assert set(OURS) == set(OPERATORS)
    assert OURS


@pytest.mark.parametrize("operator", OURS)
def test_the_name_does_not_shadow_one_of_qlib(operator: type[Expression]) -> None:
    assert operator.__name__ not in {known.__name__ for known in OpsList}


@pytest.mark.parametrize("operator", OURS)
def test_qlib_registers_it_under_its_name(operator: type[Expression]) -> None:
    before = dict(Operators._ops)
    try:
        Operators.register([operator])
        assert getattr(Operators, operator.__name__) is operator
    finally:
        Operators.reset()
        Operators._ops.update(before)


@pytest.mark.parametrize("operator", OURS)
def test_the_text_holds_every_parameter_because_qlib_caches_by_it(operator: type[Expression]) -> None:
    texts = {str(operator(Given(np.zeros(1)), window)) for window in WINDOWS}
    assert len(texts) == len(WINDOWS)
    assert all("Given" in text and operator.__name__ in text for text in texts)


@pytest.mark.parametrize("operator", OURS)
@pytest.mark.parametrize("window", WINDOWS)
def test_bars_after_the_day_change_nothing(operator: type[Expression], window: int, values: np.ndarray) -> None:
    poisoned = values.copy()
    poisoned[31:] = -1e9
    np.testing.assert_array_equal(run(operator, poisoned, window)[:31], run(operator, values, window)[:31])
    np.testing.assert_array_equal(run(operator, values[:31], window), run(operator, values, window)[:31])


@pytest.mark.parametrize("operator", OURS)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_window_it_announces_is_the_window_it_reads(
    operator: type[Expression], window: int, values: np.ndarray
) -> None:
    left, right = operator(Given(values), window).get_extended_window_size()
    assert (left, right) == (window - 1, 0)
    assert operator(Given(values), window).get_longest_back_rolling() == window - 1
    day = 50
    beyond, within = values.copy(), values.copy()
    beyond[: day - left] = 1e6
    within[day - left] += 1.0
    assert run(operator, beyond, window)[day] == pytest.approx(run(operator, values, window)[day], rel=1e-12)
    assert run(operator, within, window)[day] != run(operator, values, window)[day]


@pytest.mark.parametrize("operator", OURS)
def test_it_keeps_the_index_and_survives_pickling(operator: type[Expression], values: np.ndarray) -> None:
    built = pickle.loads(pickle.dumps(operator(Given(values), 5)))  # noqa: S301 - our own bytes
    series = built._load_internal("SH600000", 10, 29, "day")
    assert series.index.tolist() == list(range(10, 30))


@pytest.mark.parametrize("operator", OURS)
def test_early_bars_give_partial_windows_as_in_qlib_and_no_bars_give_none(operator: type[Expression]) -> None:
    assert not np.isnan(run(operator, np.array([1.0, 2.0, 3.0]), 5)).any()
    assert run(operator, np.array([]), 5).shape == (0,)
