from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from qlib_llm_alpha.engine.kernels import shape, sums
from tests.engine.kernels import reference
from tests.engine.kernels.reference import as_tile, assert_near, by_window, central, is_constant, present, run, tiles
from tests.engine.kernels.reference import windows as windows_drawn

NAMES = ["Skew", "Kurt"]
few = settings(max_examples=10, deadline=None)


def skewness(values: Any) -> Any:
    values = present(values)
    n = np.longdouble(len(values))
    if n < 3 or is_constant(values):
        return np.nan
    return np.sqrt(n * (n - 1)) / (n - 2) * central(values, 3) / central(values, 2) ** np.longdouble(1.5)


def excess(values: Any) -> Any:
    values = present(values)
    n = np.longdouble(len(values))
    if n < 4 or is_constant(values):
        return np.nan
    ratio = central(values, 4) / central(values, 2) ** 2
    return ((n * n - 1) * ratio - 3 * (n - 1) ** 2) / ((n - 2) * (n - 3))


def defined(name: str, x: Any, window: int, first: Any) -> Any:
    return by_window({"Skew": skewness, "Kurt": excess}[name], x, window, first)


@few
@given(tiles(), windows_drawn)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_and_fallbacks_equal_the_definition(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    expected = defined(name, x, window, first)
    scale = np.maximum(1.0, np.abs(np.nan_to_num(expected)))
    assert_near(run(name, x, window=window, first=first), expected, scale)
    assert_near(reference.fall_back(name, x, window=window, first=first), expected, scale)


@few
@given(tiles(), windows_drawn)
@pytest.mark.parametrize("name", NAMES)
def test_values_depend_neither_on_later_rows_nor_on_neighbours(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    reference.assert_blind_to_later_rows(name, x, window, first)
    reference.assert_blind_to_neighbours(name, x, window, first)


@few
@given(tiles(), windows_drawn)
@pytest.mark.parametrize("name", NAMES)
def test_a_group_writes_the_bits_of_its_members(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    reference.assert_same_bits_as_group(name, x, window, first)


@pytest.mark.parametrize("window", [4, 5, 20, 10_000])
@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_pandas(name: str, window: int) -> None:
    random = np.random.default_rng(5)
    column = np.exp(np.cumsum(0.02 * random.standard_normal(600)))
    column[random.random(600) < 0.1] = np.nan
    column[300] = np.inf
    rolling = pd.Series(column).rolling(window, min_periods=1)
    expected = getattr(rolling, name.lower())().to_numpy()
    result = run(name, as_tile(column), window=window)[:, 0]
    scale = np.maximum(1.0, np.abs(np.nan_to_num(expected)))
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    assert np.nanmax(np.abs(result - expected) / scale) < 1e-6


def test_equal_values_and_too_few_have_no_shape() -> None:
    x = as_tile([1e9, 2.0, *[0.1] * 8], [1.0, 2.0, np.nan, 4.0, 9.0])
    for kernel in (run, reference.fall_back):
        skew, kurt = kernel("Skew", x, window=6), kernel("Kurt", x, window=6)
        assert np.isnan(skew[7:, 0]).all()
        assert np.isnan(kurt[7:, 0]).all()
        np.testing.assert_array_equal(np.isnan(skew[:5, 1]), [True, True, True, False, False])
        np.testing.assert_array_equal(np.isnan(kurt[:5, 1]), [True, True, True, True, False])


def test_hand_made_values() -> None:
    x = as_tile([0.0, 0.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    # Skew of 0, 0, 3: deviations -1, -1, 2, so that m3 = 2, m2 = 2, and sqrt(3 * 2) / 1 * 2 / 2 ** 1.5 is sqrt(3).
    assert run("Skew", x, window=3)[2, 0] == pytest.approx(np.sqrt(3.0), rel=1e-14)
    # Kurt of 1, 2, 3, 4: m4 = 41 / 16, m2 = 5 / 4, so that (15 * 1.64 - 27) / 2 is -1.2.
    assert run("Kurt", x, window=4)[3, 1] == pytest.approx(-1.2, rel=1e-14)


def test_nothing_is_left_of_a_spike_that_has_left_the_window() -> None:
    column = np.random.default_rng(1).uniform(0.9e6, 1.1e6, 400)
    column[[100, 150]] = [1e12, 1e30]
    x, first = as_tile(column), np.zeros(32, np.int64)
    for name in NAMES:
        expected = defined(name, x[:, :1], 20, first)[:, 0]
        np.testing.assert_allclose(run(name, x, window=20)[:, 0], expected, rtol=1e-9, atol=1e-9, err_msg=name)


def test_a_shape_is_added_up_again_sooner_than_a_deviation() -> None:
    assert shape.KEEP < sums.KEEP


@pytest.mark.parametrize("window", [5, 20, 130])
@pytest.mark.parametrize("name", NAMES)
def test_long_series_keep_their_digits(name: str, window: int) -> None:
    x, first = reference.long_tile(1), np.zeros(32, np.int64)
    expected = defined(name, x, window, first)
    assert_near(run(name, x, window=window), expected, np.maximum(1.0, np.abs(np.nan_to_num(expected))))


@pytest.mark.parametrize("name", NAMES)
def test_drift_ends_when_every_lane_is_added_up_again(name: str) -> None:
    reference.assert_forgets(name)
