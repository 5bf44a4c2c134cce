from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qlib.data.ops import Feature

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.ops.rolling import DecayLinear, decay_linear


def slow(values: list[float], window: int) -> list[float]:
    out = []
    for t in range(len(values)):
        total = weight = 0.0
        for age in range(window):
            if t - age >= 0 and not math.isnan(values[t - age]):
                total += (window - age) * values[t - age]
                weight += window - age
        out.append(total / weight if weight else math.nan)
    return out


def test_the_newest_bar_weighs_most() -> None:
    result = decay_linear(np.array([1.0, 2.0, 4.0]), 3)
    assert result.tolist() == [1.0, (3 * 2 + 2 * 1) / 5, (3 * 4 + 2 * 2 + 1) / 6]


def test_a_missing_bar_counts_neither_as_zero_nor_shifts_the_weights() -> None:
    result = decay_linear(np.array([1.0, np.nan, 4.0]), 3)
    assert result.tolist() == [1.0, 1.0, (3 * 4 + 1) / 4]


def test_a_window_without_values_and_an_instrument_without_bars_give_no_value() -> None:
    assert np.isnan(decay_linear(np.full(3, np.nan), 2)).all()
    assert decay_linear(np.array([]), 5).shape == (0,)


@given(
    st.lists(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), min_size=1, max_size=40),
    st.integers(1, 50),
)
def test_it_equals_the_slow_loop(values: list[float], window: int) -> None:
    np.testing.assert_allclose(decay_linear(np.array(values), window), slow(values, window), rtol=1e-9, atol=1e-6)


def test_leading_missing_bars_do_not_change_what_follows() -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0])
    padded = np.concatenate([[np.nan, np.nan], values])
    np.testing.assert_array_equal(decay_linear(padded, 3)[2:], decay_linear(values, 3))


@pytest.mark.parametrize("window", [0, -3, 2.5, 0.5, True, "5"])
def test_a_window_that_is_no_positive_whole_number_is_refused(window: object) -> None:
    with pytest.raises(ConfigError, match="expected a positive whole number"):
        DecayLinear(Feature("close"), window)  # type: ignore[arg-type]
