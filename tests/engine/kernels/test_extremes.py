from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels import extremes
from qlib_llm_alpha.engine.kernels.registry import LANES
from tests.engine.kernels.order_reference import by_pandas, highest, lowest, place_of_best, tiles_with_signed_zeros
from tests.engine.kernels.reference import Lanes, as_tile, assert_same_bits, by_window, fall_back, run, windows

BY_DEFINITION = {"Max": highest, "Min": lowest, "IdxMax": place_of_best(1), "IdxMin": place_of_best(-1)}
IN_PANDAS: dict[str, Any] = {
    "Max": lambda rolling: rolling.max(),
    "Min": lambda rolling: rolling.min(),
    "IdxMax": lambda rolling: rolling.apply(lambda values: values.argmax() + 1, raw=True),
    "IdxMin": lambda rolling: rolling.apply(lambda values: values.argmin() + 1, raw=True),
}
NAMES = tuple(BY_DEFINITION)
quick = settings(max_examples=12, deadline=None)
Drawn = tuple[NDArray[Any], Lanes]


@pytest.mark.parametrize("name", NAMES)
@quick
@given(drawn=tiles_with_signed_zeros(), window=windows)
def test_every_row_is_as_defined(name: str, drawn: Drawn, window: int) -> None:
    tile, first = drawn
    expected = by_window(BY_DEFINITION[name], tile, window, first)
    np.testing.assert_array_equal(run(name, tile, window=window, first=first), expected)
    np.testing.assert_array_equal(fall_back(name, tile, window=window, first=first), expected)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(drawn=tiles_with_signed_zeros(rows=40), window=windows)
def test_every_row_is_as_in_pandas(name: str, drawn: Drawn, window: int) -> None:
    tile, first = drawn
    expected = by_pandas(IN_PANDAS[name], tile, window, first)
    np.testing.assert_array_equal(run(name, tile, window=window, first=first), expected)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(drawn=tiles_with_signed_zeros(), window=windows)
def test_a_row_does_not_know_later_rows(name: str, drawn: Drawn, window: int) -> None:
    tile, first = drawn
    half = len(tile) // 2
    other = tile.copy()
    other[half:] = np.where(np.isnan(other[half:]), 1e9, -other[half:] * 3)
    seen, unseen = (run(name, each, window=window, first=first)[:half] for each in (tile, other))
    assert_same_bits(seen, unseen)


@pytest.mark.parametrize("window", [1, 2, 7, 8, 130, 10_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_long_columns_are_as_in_pandas(name: str, dtype: Any, window: int) -> None:
    random = np.random.default_rng(7)
    tile = np.round(random.standard_normal((300, LANES)) * 20).astype(dtype)
    tile[random.random(tile.shape) < 0.003] = np.nan
    first = np.zeros(LANES, np.int64)
    expected = by_pandas(IN_PANDAS[name], tile, window, first)
    np.testing.assert_array_equal(run(name, tile, window=window), expected)


def test_the_place_counts_the_rows_that_exist_and_a_missing_value_wins() -> None:
    tile = as_tile([3.0, 1.0, 2.0, np.nan, 5.0, 0.0, 4.0])
    assert run("IdxMax", tile, window=3)[:, 0].tolist() == [1.0, 1.0, 1.0, 3.0, 2.0, 1.0, 1.0]
    assert run("IdxMin", tile, window=3)[:, 0].tolist() == [1.0, 2.0, 2.0, 3.0, 2.0, 1.0, 2.0]


def test_rows_before_the_first_are_no_part_of_a_window() -> None:
    tile = as_tile([np.nan, np.nan, 2.0, 7.0, 1.0])
    first = np.zeros(LANES, np.int64)
    first[0] = 2
    assert run("IdxMax", tile, window=4, first=first)[2:, 0].tolist() == [1.0, 2.0, 2.0]
    assert run("IdxMax", tile, window=4)[2:, 0].tolist() == [1.0, 1.0, 1.0]


def test_a_window_of_missing_values_has_neither_extreme_nor_place() -> None:
    tile = as_tile([1.0, np.nan, np.inf, 2.0])
    for name in NAMES:
        assert np.isnan(run(name, tile, window=2)[2, 0])
        assert np.isnan(run(name, tile, window=2)[:, 1]).all()


def test_state_begins_at_a_cache_line_and_is_as_long_as_asked() -> None:
    room = extremes.scratch(5, np.zeros(1, np.float32))
    assert room.shape == (5 * LANES,)
    assert room.dtype == np.float32
    assert room.ctypes.data % 64 == 0


@pytest.mark.parametrize("name", ["Max", "Min"])
@pytest.mark.parametrize("window", [2, 5, 300])
def test_of_zeros_of_both_signs_the_newest_stays_as_in_pandas(name: str, window: int) -> None:
    tile = np.random.default_rng(0).choice([0.0, -0.0, -1.0, 1.0, np.nan], (200, LANES), p=[0.4, 0.4, 0.08, 0.08, 0.04])
    expected = by_pandas(IN_PANDAS[name], tile, window, np.zeros(LANES, np.int64))
    assert_same_bits(run(name, tile, window=window), expected)
