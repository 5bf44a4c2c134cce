from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from qlib_llm_alpha.engine.kernels import sums
from qlib_llm_alpha.engine.kernels.registry import KERNELS, LANES
from tests.engine.kernels import reference
from tests.engine.kernels.reference import as_tile, assert_near, by_window, present, run, spread, tiles, windows

NAMES = ["Mean", "Sum", "Count", "Std", "Var"]
few = settings(max_examples=10, deadline=None)


def defined(name: str, x: Any, window: int, first: Any) -> Any:
    measures = {
        "Mean": lambda values: present(values).mean(),
        "Sum": lambda values: present(values).sum(),
        "Var": lambda values: spread(present(values)),
        "Std": lambda values: np.sqrt(spread(present(values))),
    }
    return by_window(measures[name], x, window, first)


def scale_of(name: str, x: Any, window: int, first: Any) -> Any:
    """What a rounding error of each is to be measured against."""
    if name in ("Var", "Std"):
        return np.nan_to_num(defined(name, x, window, first), nan=1.0)
    largest = reference.largest(x, window, first)
    return largest * (run("Count", x, window=window, first=first) if name == "Sum" else 1.0)


def test_all_names_are_in_the_table() -> None:
    assert set(NAMES) <= set(KERNELS)


@few
@given(tiles(), windows)
@pytest.mark.parametrize("name", ["Mean", "Sum", "Std", "Var"])
def test_kernels_and_fallbacks_equal_the_definition(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    expected, scale = defined(name, x, window, first), scale_of(name, x, window, first)
    assert_near(run(name, x, window=window, first=first), expected, scale)
    assert_near(reference.fall_back(name, x, window=window, first=first), expected, scale)


@few
@given(tiles(), windows)
def test_count_counts_what_is_not_nan(drawn: Any, window: int) -> None:
    x, first = drawn
    counted = pd.DataFrame(x).rolling(min(window, len(x)), min_periods=1).count().to_numpy()
    expected = np.where(np.arange(len(x))[:, None] >= first, counted, np.nan)
    np.testing.assert_array_equal(run("Count", x, window=window, first=first), expected)
    np.testing.assert_array_equal(reference.fall_back("Count", x, window=window, first=first), expected)


@few
@given(tiles(), windows)
@pytest.mark.parametrize("name", NAMES)
def test_values_depend_neither_on_later_rows_nor_on_neighbours(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    reference.assert_blind_to_later_rows(name, x, window, first)
    reference.assert_blind_to_neighbours(name, x, window, first)


@few
@given(tiles(), windows)
@pytest.mark.parametrize("name", ["Mean", "Std"])
def test_a_group_writes_the_bits_of_its_members(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    reference.assert_same_bits_as_group(name, x, window, first)


@pytest.mark.parametrize("window", [1, 2, 5, 20, 10_000])
@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_pandas(name: str, window: int) -> None:
    random = np.random.default_rng(5)
    column = np.exp(np.cumsum(0.02 * random.standard_normal(700)))
    column[random.random(700) < 0.1] = np.nan
    column[[3, 300, 301]] = [np.inf, -np.inf, np.inf]
    rolling = pd.Series(column).rolling(window, min_periods=1)
    expected = getattr(rolling, name.lower())().to_numpy()
    np.testing.assert_allclose(run(name, as_tile(column), window=window)[:, 0], expected, rtol=1e-10, atol=1e-12)


def test_equal_values_have_exactly_no_deviation_whatever_was_before() -> None:
    column = np.r_[1e12, 3e-7, np.full(30, 0.1), 5.0, np.full(30, 1e4 + 1 / 3)]
    x = as_tile(column)
    flat = np.r_[np.arange(2 + 5 - 1, 32), np.arange(33 + 5 - 1, 63)]
    for kernel in (run, reference.fall_back):
        assert (kernel("Std", x, window=5)[flat, 0] == 0.0).all()
        assert (kernel("Var", x, window=5)[flat, 0] == 0.0).all()
        np.testing.assert_array_equal(kernel("Mean", x, window=5)[flat, 0], column[flat])
        np.testing.assert_array_equal(kernel("Sum", x, window=5)[flat, 0], column[flat] * 5)


def test_a_price_of_3000_that_moves_by_tenths_of_a_cent_keeps_its_deviation() -> None:
    column = 3000.0 + 0.003 * np.random.default_rng(1).standard_normal(2500)
    x, first = as_tile(column), np.zeros(LANES, np.int64)
    expected = defined("Std", x[:, :1], 20, first)[:, 0]
    np.testing.assert_allclose(run("Std", x, window=20)[25:, 0], expected[25:], rtol=1e-12)


def test_nothing_is_left_of_a_spike_that_has_left_the_window() -> None:
    column = np.random.default_rng(1).uniform(0.9e6, 1.1e6, 400)
    column[[100, 150]] = [1e12, 1e30]
    x, first = as_tile(column), np.zeros(LANES, np.int64)
    for name in ("Mean", "Sum", "Std", "Var"):
        expected = defined(name, x[:, :1], 20, first)[:, 0]
        np.testing.assert_allclose(run(name, x, window=20)[:, 0], expected, rtol=1e-11, err_msg=name)


def test_squares_beyond_float64_spoil_only_the_windows_that_hold_them() -> None:
    column = np.random.default_rng(1).uniform(1.0, 2.0, 60)
    column[20] = 1e200
    x = as_tile(column)
    result, expected = run("Std", x, window=5)[:, 0], pd.Series(column).rolling(5, min_periods=1).std().to_numpy()
    outside = np.r_[1:20, 25:60]
    np.testing.assert_allclose(result[outside], np.delete(defined_alone(column), np.r_[0, 20:25]), rtol=1e-12)
    assert len(expected) == len(result)


def defined_alone(column: Any) -> Any:
    first = np.zeros(1, np.int64)
    return defined("Std", column[:, None], 5, first)[:, 0]


def test_hand_made_values() -> None:
    x = as_tile([1.0, np.inf, np.nan, 2.0, -np.inf, 3.0])
    nan = np.nan
    np.testing.assert_array_equal(run("Mean", x, window=3)[:, 0], [1.0, 1.0, 1.0, 2.0, 2.0, 2.5])
    np.testing.assert_array_equal(run("Sum", x, window=3)[:, 0], [1.0, 1.0, 1.0, 2.0, 2.0, 5.0])
    np.testing.assert_array_equal(run("Count", x, window=3)[:, 0], [1.0, 2.0, 2.0, 2.0, 2.0, 3.0])
    np.testing.assert_array_equal(run("Var", x, window=3)[:, 0], [nan, nan, nan, nan, nan, 0.5])
    assert np.isnan(run("Mean", x, window=3)[:, 1]).all()
    assert np.isnan(run("Std", x, window=1)[:, 0]).all()


def test_every_lane_is_added_up_again_at_the_same_rows_wherever_its_data_end() -> None:
    assert sums.KEEP > 1.0
    random = np.random.default_rng(2)
    x = 100.0 + np.cumsum(random.standard_normal((1200, LANES)), axis=0)
    for name in ("Mean", "Std"):
        whole = run(name, x, window=300)
        reference.assert_same_bits(run(name, x[:700].copy(), window=300), whole[:700].copy())


@pytest.mark.parametrize("window", [3, 20, 130])
@pytest.mark.parametrize("name", ["Mean", "Sum", "Std", "Var"])
def test_long_series_keep_their_digits(name: str, window: int) -> None:
    x, first = reference.long_tile(1), np.zeros(LANES, np.int64)
    assert_near(run(name, x, window=window), defined(name, x, window, first), scale_of(name, x, window, first), 2e-10)


@pytest.mark.parametrize("name", NAMES)
def test_drift_ends_when_every_lane_is_added_up_again(name: str) -> None:
    reference.assert_forgets(name)
