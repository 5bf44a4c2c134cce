from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels import order
from qlib_llm_alpha.engine.kernels.registry import LANES
from tests.engine.kernels import order_reference as define
from tests.engine.kernels.order_reference import by_pandas, tiles_with_signed_zeros
from tests.engine.kernels.reference import (
    Lanes,
    as_tile,
    assert_near,
    assert_same_bits,
    by_window,
    fall_back,
    largest,
    run,
    windows,
)

ONE_OF_EACH = [
    ("Quantile", (0.8,)),
    ("Quantile", (0.0,)),
    ("Quantile", (1.0,)),
    ("Med", ()),
    ("Rank", ()),
    ("Mad", ()),
    ("Entropy", ()),
]
levels = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.8, 0.9, 1.0]), st.floats(0.0, 1.0))
quick = settings(max_examples=12, deadline=None)
Drawn = tuple[NDArray[Any], Lanes]


@quick
@given(drawn=tiles_with_signed_zeros(), window=windows, level=levels)
def test_quantiles_are_as_defined_and_as_in_pandas(drawn: Drawn, window: int, level: float) -> None:
    tile, first = drawn
    result = run("Quantile", tile, window=window, first=first, parameters=(level,))
    np.testing.assert_array_equal(result, by_window(define.quantile(level), tile, window, first))
    np.testing.assert_array_equal(result, fall_back("Quantile", tile, window=window, first=first, parameters=(level,)))
    in_pandas = by_pandas(lambda rolling: rolling.quantile(level), tile, window, first)
    np.testing.assert_allclose(result, in_pandas, rtol=1e-15, atol=0)


@quick
@given(drawn=tiles_with_signed_zeros(), window=windows)
def test_medians_are_as_defined_and_as_in_pandas(drawn: Drawn, window: int) -> None:
    tile, first = drawn
    result = run("Med", tile, window=window, first=first)
    np.testing.assert_array_equal(result, by_window(define.median, tile, window, first))
    np.testing.assert_array_equal(result, fall_back("Med", tile, window=window, first=first))
    np.testing.assert_array_equal(result, by_pandas(lambda rolling: rolling.median(), tile, window, first))


@quick
@given(drawn=tiles_with_signed_zeros(), window=windows)
def test_ranks_are_as_defined_and_as_in_pandas(drawn: Drawn, window: int) -> None:
    tile, first = drawn
    result = run("Rank", tile, window=window, first=first)
    np.testing.assert_array_equal(result, by_window(define.rank, tile, window, first))
    np.testing.assert_array_equal(result, fall_back("Rank", tile, window=window, first=first))
    np.testing.assert_array_equal(result, by_pandas(lambda rolling: rolling.rank(pct=True), tile, window, first))


@quick
@given(drawn=tiles_with_signed_zeros(), window=windows)
def test_mean_deviations_are_as_defined(drawn: Drawn, window: int) -> None:
    tile, first = drawn
    expected = by_window(define.mean_deviation, tile, window, first)
    scale = largest(tile, window, first)
    assert_near(run("Mad", tile, window=window, first=first), expected, scale, 2e-14)
    assert_near(fall_back("Mad", tile, window=window, first=first), expected, scale, 2e-14)


@quick
@given(drawn=tiles_with_signed_zeros(), window=windows)
def test_entropies_are_as_defined(drawn: Drawn, window: int) -> None:
    tile, first = drawn
    expected = by_window(define.entropy, tile, window, first)
    np.testing.assert_allclose(run("Entropy", tile, window=window, first=first), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(fall_back("Entropy", tile, window=window, first=first), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "parameters"), ONE_OF_EACH)
@quick
@given(drawn=tiles_with_signed_zeros(), window=windows)
def test_a_row_does_not_know_later_rows(name: str, parameters: Any, drawn: Drawn, window: int) -> None:
    tile, first = drawn
    half = len(tile) // 2
    other = tile.copy()
    other[half:] = np.where(np.isnan(other[half:]), 1e9, -other[half:] * 3)
    seen, unseen = (run(name, each, window=window, first=first, parameters=parameters)[:half] for each in (tile, other))
    assert_same_bits(seen, unseen)


@pytest.mark.parametrize("window", [1, 8, 64, 130, 10_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ordered_windows_stay_in_order_over_long_columns(dtype: Any, window: int) -> None:
    random = np.random.default_rng(7)
    tile = np.round(random.standard_normal((300, LANES)) * 20).astype(dtype)
    tile[random.random(tile.shape) < 0.01] = np.nan
    first = np.zeros(LANES, np.int64)
    for level in (0.2, 0.5):
        expected = by_pandas(lambda rolling, level=level: rolling.quantile(level), tile, window, first)
        result = run("Quantile", tile, window=window, parameters=(level,))
        np.testing.assert_allclose(result, expected, rtol=1e-14, atol=1e-14)


@quick
@given(drawn=tiles_with_signed_zeros(), window=windows, level=levels, other=levels)
def test_two_quantiles_at_once_are_those_of_one_each(drawn: Drawn, window: int, level: float, other: float) -> None:
    tile, first = drawn
    outs = [np.empty(tile.shape) for _ in range(2)]
    order.two_quantiles(tile, *outs, window, first, level, other)
    for out, one in zip(outs, (level, other), strict=True):
        assert_same_bits(out, run("Quantile", tile, window=window, first=first, parameters=(one,)))


@quick
@given(drawn=tiles_with_signed_zeros(), window=windows, level=levels)
def test_median_and_quantile_at_once_are_those_of_one_each(drawn: Drawn, window: int, level: float) -> None:
    tile, first = drawn
    outs = [np.empty(tile.shape) for _ in range(2)]
    order.median_and_quantile(tile, *outs, window, first, level)
    assert_same_bits(outs[0], run("Med", tile, window=window, first=first))
    assert_same_bits(outs[1], run("Quantile", tile, window=window, first=first, parameters=(level,)))


def test_a_level_beyond_the_ends_is_the_end() -> None:
    tile = as_tile([3.0, 1.0, 2.0])
    assert run("Quantile", tile, window=3, parameters=(1.5,))[2, 0] == 3.0
    assert run("Quantile", tile, window=3, parameters=(-0.5,))[2, 0] == 1.0
    assert fall_back("Quantile", tile, window=3, parameters=(1.5,))[2, 0] == 3.0


def test_the_sign_of_a_zero_depends_on_nothing() -> None:
    tile = as_tile([0.0, -0.0, 0.0], [-0.0, -0.0, -0.0])
    for name, parameters in (("Quantile", (0.5,)), ("Med", ())):
        assert not np.signbit(run(name, tile, window=2, parameters=parameters)[:, :2]).any()
        assert not np.signbit(fall_back(name, tile, window=2, parameters=parameters)[:, :2]).any()


def test_a_rank_is_the_share_of_values_up_to_todays_with_ties_in_the_middle() -> None:
    tile = as_tile([2.0, 1.0, np.nan, 2.0, 2.0])
    np.testing.assert_array_equal(run("Rank", tile, window=4)[:, 0], [1.0, 0.5, np.nan, 2.5 / 3, 2.5 / 3])


def test_a_huge_value_that_left_leaves_no_trace_in_the_mean_deviation() -> None:
    tile = as_tile([1.0, 1e17, 1.0, 2.0, 4.0])
    assert run("Mad", tile, window=2)[:, 0].tolist() == [0.0, 5e16, 5e16, 0.5, 1.0]


def test_equal_values_deviate_by_exactly_nothing() -> None:
    tile = as_tile([0.1] * 50, [1e9 + 0.1] * 7 + [np.nan] + [1e9 + 0.1] * 9)
    result = run("Mad", tile, window=7)
    assert (result[:, 0] == 0.0).all()
    assert (result[:17, 1] == 0.0).all()


def test_entropy_is_0_for_equal_values_1_for_even_bins_and_nothing_for_one_value() -> None:
    tile = as_tile([5.0, 5.0, 5.0, *range(8)], [1.0, np.nan, 2.0], [np.nan, 4.0])
    result = run("Entropy", tile, window=8)
    assert np.isnan(result[0, 0])
    assert result[1:3, 0].tolist() == [0.0, 0.0]
    assert result[10, 0] == pytest.approx(1.0, abs=1e-15)
    assert result[2, 1] == pytest.approx(1 / 3, abs=1e-15)
    assert np.isnan(result[:3, 2]).all()


def test_entropy_lies_between_0_and_1_even_where_digits_end() -> None:
    step = np.spacing(1.0)
    tile = as_tile([1.0, 1.0 + step, 1.0 + 2 * step, 1.0] * 4, [1e300, -1e300, 0.0] * 5)
    result = run("Entropy", tile, window=6)[1:15, :2]
    assert ((result > 0.0) & (result <= 1.0)).all()
