"""Operators of ours on the series of one instrument, as stock Qlib loads them, against slow loops."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qlib.data.base import Expression, Feature
from qlib.data.ops import Mean, Ref

import qlib_llm_alpha.ops.ours as ours
from qlib_llm_alpha.engine import graph
from qlib_llm_alpha.engine.kernels import registry
from qlib_llm_alpha.errors import ConfigError, ProviderError
from qlib_llm_alpha.factor.operators import OPERATORS as TABLE
from qlib_llm_alpha.factor.operators import Operator

MADE = {operator.__name__: operator for operator in ours.OPERATORS}
DecayLinear, Entropy, CSRank, CSResidual = (MADE[name] for name in ("DecayLinear", "Entropy", "CSRank", "CSResidual"))
CLOSE = Feature("close")
VALUES = st.lists(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), min_size=1, max_size=40)
quick = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


class Given(Feature):
    """A feature whose values are handed in."""

    def __init__(self, values: list[float] | np.ndarray, name: str = "given", begins: int = 0) -> None:
        super().__init__(name)
        self.values = pd.Series(values, index=range(begins, begins + len(values)))

    def load(self, instrument: str, start_index: int, end_index: int, *args: object) -> pd.Series:
        return self.values


def loaded(expression: Expression) -> np.ndarray:
    return expression._load_internal("SH600000", 0, 0, "day").to_numpy()


def slow_decay_linear(values: list[float], window: int) -> list[float]:
    out = []
    for t in range(len(values)):
        total = weight = 0.0
        for age in range(window):
            if t - age >= 0 and not math.isnan(values[t - age]):
                total += (window - age) * values[t - age]
                weight += window - age
        out.append(total / weight if weight else math.nan)
    return out


def slow_entropy(values: list[float], window: int) -> list[float]:
    """Of whole numbers, so that on which side of an edge a value lies is exact."""
    out = []
    for t in range(len(values)):
        present = [value for value in values[max(0, t - window + 1) : t + 1] if not math.isnan(value)]
        if len(present) < 2:
            out.append(math.nan)
            continue
        low, high = min(present), max(present)
        bins = [0] * 8
        for value in present:
            bins[min(7, int((value - low) * 8 // (high - low))) if high > low else 0] += 1
        shares = [count / len(present) for count in bins if count]
        out.append(-sum(share * math.log(share) for share in shares) / math.log(8))
    return out


def test_the_newest_bar_weighs_most() -> None:
    result = loaded(DecayLinear(Given([1.0, 2.0, 4.0]), 3))
    np.testing.assert_allclose(result, [1.0, (3 * 2 + 2 * 1) / 5, (3 * 4 + 2 * 2 + 1) / 6], rtol=1e-15)


def test_a_missing_bar_counts_neither_as_zero_nor_shifts_the_weights() -> None:
    result = loaded(DecayLinear(Given([1.0, np.nan, 4.0]), 3))
    np.testing.assert_allclose(result, [1.0, 1.0, (3 * 4 + 1) / 4], rtol=1e-15)


def test_entropy_is_0_for_equal_values_and_1_for_evenly_filled_bins() -> None:
    result = loaded(Entropy(Given([5.0, 5.0, 5.0, *range(8)]), 8))
    assert np.isnan(result[0]), "one value has no spread that could be looked at"
    assert result[1:3].tolist() == [0.0, 0.0]
    assert result[-1] == pytest.approx(1.0, abs=1e-15)
    assert loaded(Entropy(Given([1.0, np.nan, 2.0]), 3))[-1] == pytest.approx(1 / 3, abs=1e-15)


@pytest.mark.parametrize("operator", [DecayLinear, Entropy])
def test_a_window_without_values_and_an_instrument_without_bars_give_no_value(operator: type[Expression]) -> None:
    assert np.isnan(loaded(operator(Given(np.full(3, np.nan)), 2))).all()
    assert loaded(operator(Given([]), 5)).shape == (0,)


@quick
@given(VALUES, st.integers(1, 50))
def test_decay_linear_equals_the_slow_loop(values: list[float], window: int) -> None:
    expected = slow_decay_linear(values, window)
    np.testing.assert_allclose(loaded(DecayLinear(Given(values), window)), expected, rtol=1e-9, atol=1e-6)


@quick
@given(st.lists(st.one_of(st.just(math.nan), st.integers(-50, 50)), min_size=1, max_size=40), st.integers(2, 50))
def test_entropy_equals_the_slow_loop(values: list[float], window: int) -> None:
    np.testing.assert_allclose(loaded(Entropy(Given(values), window)), slow_entropy(values, window), atol=1e-12)


@pytest.mark.parametrize("operator", [DecayLinear, Entropy])
def test_leading_missing_bars_do_not_change_what_follows(operator: type[Expression]) -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0])
    padded = np.concatenate([[np.nan, np.nan], values])
    np.testing.assert_array_equal(loaded(operator(Given(padded), 3))[2:], loaded(operator(Given(values), 3)))


@pytest.mark.parametrize("window", [0, -3, 2.5, 0.5, True, "5"])
@pytest.mark.parametrize("operator", [DecayLinear, Entropy])
def test_a_window_that_is_no_positive_whole_number_is_refused(operator: type[Expression], window: object) -> None:
    with pytest.raises(ConfigError, match="expected a whole number of bars, at least"):
        operator(CLOSE, window)


def test_a_window_below_the_smallest_of_the_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="the window of Entropy is 1; expected a whole number of bars, at least 2"):
        Entropy(CLOSE, 1)


@pytest.mark.parametrize("arguments", [(), (CLOSE,), (CLOSE, 5, 5)])
def test_too_few_and_too_many_arguments_are_refused_with_the_signature(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected DecayLinear\(x, N\)"):
        DecayLinear(*arguments)


def test_a_number_where_a_formula_is_due_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"CSResidual\(x, y\) was given 2; expected a formula there"):
        CSResidual(CLOSE, 2)


def test_comparisons_count_as_one_and_zero_also_after_a_shift_made_objects_of_them() -> None:
    assert loaded(DecayLinear(Given(np.array([True, False])), 2)).tolist() == [1.0, 1 / 3]
    assert loaded(DecayLinear(Given(np.array([np.nan, True, False], dtype=object)), 2)).tolist()[1:] == [1.0, 1 / 3]


def test_bars_to_load_add_up_below_and_above_operators_of_qlib() -> None:
    inside = DecayLinear(Mean(Ref(CLOSE, 3), 5), 4)
    assert inside.get_extended_window_size() == (10, 0)
    assert Mean(CSRank(inside), 6).get_extended_window_size() == (15, 0)
    assert DecayLinear(Ref(CLOSE, -2), 4).get_extended_window_size() == (3, 2)
    assert CSResidual(Ref(CLOSE, 7), Ref(CLOSE, -1)).get_extended_window_size() == (7, 1)
    assert CSResidual(Ref(CLOSE, 7), Mean(CLOSE, 20)).get_longest_back_rolling() == 19


def test_a_cross_section_says_on_load_what_evaluates_it_and_so_does_what_stands_on_it() -> None:
    for expression in (CSRank(CLOSE), Mean(CSRank(CLOSE), 5)):
        with pytest.raises(ProviderError) as caught:
            expression.load("SH600000", 0, 9, "day")
        message = str(caught.value)
        assert "CSRank($close) was asked for SH600000 alone" in message
        assert "dataset_provider: {class: PanelDatasetProvider, module_path: qlib_llm_alpha.data.provider}" in message
        assert str(pickle.loads(pickle.dumps(caught.value))) == message  # noqa: S301 - our own bytes


def test_an_operator_of_two_series_takes_the_rows_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def difference(x: np.ndarray, y: np.ndarray, window: int, first: np.ndarray) -> np.ndarray:
        return np.asarray(x - y)

    def run(x: np.ndarray, y: np.ndarray, out: np.ndarray, window: int, first: np.ndarray) -> None:
        out[:] = difference(x, y, window, first)

    made = operator_of("Gap", "x series y series N window")
    monkeypatch.setitem(registry.KERNELS, "Gap", registry.Kernel("Gap", 2, run, difference))
    series = made(Given([5.0, 7.0], begins=3), Given([1.0, 2.0], begins=2), 2)._load_internal("SH600000", 0, 9, "day")
    assert series.index.tolist() == [2, 3, 4]
    np.testing.assert_array_equal(series, [np.nan, 3.0, np.nan])


def test_an_operator_of_the_day_alone_is_its_numpy_function_and_keeps_the_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(graph.ELEMENTWISE, "Sine", np.sin)
    values = np.array([0.5, np.nan, -2.0], dtype=np.float32)
    result = operator_of("Sine", "x series", elementwise=True)(Given(values))._load_internal("SH600000", 0, 2, "day")
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.sin(values))


def operator_of(name: str, arguments: str, elementwise: bool = False) -> Callable[..., Expression]:
    words = iter(arguments.split())
    row = Operator(name, tuple(zip(words, words, strict=True)), "same", "", elementwise=elementwise, ours=True)  # type: ignore[arg-type]
    return ours._class_of(row)


def test_there_is_a_class_for_every_operator_that_qlib_cannot_say() -> None:
    assert list(MADE) == [row.name for row in TABLE.values() if row.ours or row.cross_sectional]
    assert all(getattr(ours, name) is made for name, made in MADE.items())
    assert Entropy.__doc__ == "Entropy(x, N): entropy of the values of N bars in 8 equal bins, 0 to 1."


def test_registering_them_waits_neither_for_numba_nor_for_a_compiler() -> None:
    program = (
        "import sys, qlib.data.ops, importlib\n"
        "before = 'numba' in sys.modules\n"
        "importlib.import_module('qlib_llm_alpha.ops.ours')\n"
        "print(before or 'numba' not in sys.modules, 'qlib_llm_alpha.engine.graph' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["True", "False"]
