from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from qlib_llm_alpha.engine.kernels import exponential, extremes, lines, order, pairs, plain, shape, sums
from qlib_llm_alpha.engine.kernels.plain import Windows
from qlib_llm_alpha.engine.kernels.registry import KERNELS, LANES
from tests.engine.kernels import reference
from tests.engine.kernels.reference import Array, as_tile, assert_near, assert_same_bits, present, tiles, windows

MODULES = (exponential, extremes, lines, order, pairs, shape, sums)
PARAMETERS = {"Quantile": (0.3,), "Ewm": (0.2,)}
FIRST = np.zeros(LANES, np.int64)
few = settings(max_examples=10, deadline=None)


def fall_back(name: str, x: Any, window: int, first: Any) -> Array:
    inputs = [x, np.roll(x, 1, axis=1)][: KERNELS[name].inputs]
    first = first if len(inputs) == 1 else FIRST
    return reference.fall_back(name, *inputs, window=window, first=first, parameters=PARAMETERS.get(name, ()))


def test_all_kernels_are_here() -> None:
    assert {kernel.run.__module__ for kernel in KERNELS.values()} == {module.__name__ for module in MODULES}


@few
@given(tiles(), windows)
def test_sums_and_counts_are_those_of_each_window(drawn: Any, window: int) -> None:
    x, _ = drawn
    x = x.astype(np.float64)
    made = Windows(np.isfinite(x), window)
    some = np.isfinite(x) & ~np.isnan(x).all(axis=0)
    counts = reference.by_window(lambda values: len(present(values)), x, window, FIRST)
    np.testing.assert_array_equal((np.zeros(x.shape) + made.count)[some], counts[some])
    largest = np.nan_to_num(reference.largest(x, window, FIRST)) * np.nan_to_num(counts)
    expected = reference.by_window(lambda values: present(values).sum(), x, window, FIRST)
    total = np.where(np.isnan(expected), np.nan, made.sums(made.values(x)))
    assert_near(total, expected, largest, 1e-14)
    equal, newest = made.constant(x)
    same = reference.by_window(lambda values: float(np.ptp(present(values)) == 0.0), x, window, FIRST)
    np.testing.assert_array_equal(equal, np.nan_to_num(same) == 1.0)
    np.testing.assert_array_equal(newest[some], x[some])


@few
@given(tiles(), windows)
def test_squares_about_an_anchor_are_little_larger_than_about_the_mean(drawn: Any, window: int) -> None:
    x, _ = drawn
    x = x.astype(np.float64)
    made = Windows(np.isfinite(x), window)
    apart = made.distances(x)
    squares = made.sums(apart * apart)
    about_mean = reference.by_window(lambda v: ((present(v) - present(v).mean()) ** 2).sum(), x, window, FIRST)
    some = ~np.isnan(about_mean)
    limit = (made.count + 1.0) * about_mean * (1.0 + 1e-9)
    flat = made.constant(x)[0]
    assert (squares[some & ~flat] <= limit[some & ~flat]).all()
    assert (squares[flat] == 0.0).all()


@few
@given(tiles(), windows)
@pytest.mark.parametrize("name", KERNELS)
def test_fallbacks_know_neither_later_rows_nor_neighbours(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    whole = fall_back(name, x, window, first)
    keep = max(1, len(x) // 2)
    changed = x.copy()
    changed[keep:] = np.where(np.isnan(changed[keep:]), 7.0, 1e9)
    exists = (first if KERNELS[name].inputs == 1 else FIRST) < keep
    assert_same_bits(fall_back(name, changed, window, first)[:keep][:, exists], whole[:keep][:, exists])
    short = fall_back(name, x[:keep], window, np.minimum(first, keep - 1))
    assert_same_bits(short[:, exists].copy(), whole[:keep][:, exists])
    # Two lanes, for kernels of two inputs: the second is the first's neighbour.
    lane = int(np.argmax(~np.isnan(x).all(axis=0)))
    alone = np.full_like(x, np.nan)
    alone[:, [lane - 1, lane]] = x[:, [lane - 1, lane]]
    assert_same_bits(fall_back(name, alone, window, first)[:, lane].copy(), whole[:, lane].copy())


@pytest.mark.parametrize("window", [3, 20, 130])
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "ExpandingEMA"])
def test_long_series_with_gaps_have_the_numbers_of_the_compiled_kernels(name: str, window: int) -> None:
    x = reference.long_tile(1)
    x[100:150, :4] = np.nan
    inputs = [x, np.roll(x, 1, axis=1).copy()][: KERNELS[name].inputs]
    expected = reference.run(name, *inputs, window=window, parameters=PARAMETERS.get(name, ()))
    result = fall_back(name, x, window, FIRST)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    # What a rounding error is to be measured against.
    size, deviation = reference.largest(x, window, FIRST), fall_back("Std", x, window, FIRST)
    scales: dict[str, Any] = dict.fromkeys(["Corr", "Rsquare", "ExpandingRsquare"], 1.0)
    scales |= {"Sum": size * window, "Slope": deviation, "Resi": deviation, "Std": expected, "Var": expected}
    scales |= dict.fromkeys(["Skew", "Kurt"], np.maximum(np.abs(expected), 1.0))
    scales["Cov"] = np.prod([fall_back("Std", each, window, FIRST) for each in inputs], axis=0)
    assert_near(result, expected, np.nan_to_num(scales.get(name, size)))


def test_a_window_whose_first_row_and_all_before_are_missing_takes_its_own_anchor() -> None:
    # Blocks of four: rows 4 to 7 begin with a gap, the row before it holds what must not be the anchor of row 7.
    column = [1.0, 2.0, 3.0, 1e12, np.nan, np.nan, np.nan, 5.0, 0.1, 5.0]
    x = as_tile(column)
    made = Windows(~np.isnan(x), 4)
    squares = made.sums(made.distances(x) ** 2)
    assert squares[7, 0] == 0.0, "5 alone"
    assert len(made.distances(x)) == 3
    assert made.newest(made.distances(x))[7, 0] == 0.0
    deviations = reference.fall_back("Std", x, window=4)
    assert np.isnan(deviations[7, 0])
    assert deviations[8, 0] == pytest.approx(4.9 / np.sqrt(2.0), rel=1e-15)


def test_equal_values_around_a_gap_are_equal() -> None:
    x = as_tile([9.0, 0.1, 0.1, np.nan, np.nan, 0.1, np.inf, 0.1, 7.0, np.nan, np.nan, np.nan, np.nan])
    mean, deviation = (reference.fall_back(name, x, window=5)[:, 0] for name in ("Mean", "Std"))
    assert (mean[5:8] == 0.1).all()
    assert (deviation[5:8] == 0.0).all()
    total = reference.fall_back("Sum", x, window=4)[:, 0]
    assert total[4] == 0.1 * 2
    assert np.isnan(total[12]), "nothing is left, whatever the newest value was"


def test_means_of_whole_numbers_are_the_same_wherever_they_stand() -> None:
    # A rank of such means has ties, which one bit would break.
    column = np.tile([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0], 40)
    mean = reference.fall_back("Mean", as_tile(column), window=7)[6:, 0]
    assert (mean == 4.0 / 7.0).all()


def test_sums_of_long_and_short_blocks_are_grown_alike() -> None:
    random = np.random.default_rng(8)
    values = random.standard_normal((2, plain._LONG + 1, LANES))
    expected = values.copy()
    for place in range(1, values.shape[1]):
        expected[:, place] += expected[:, place - 1]
    plain._grow(values)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("window", [100, 126, 127, 128, 129, 200])
@pytest.mark.parametrize("name", ["Quantile", "Rank", "Entropy"])
def test_counts_do_not_run_over_where_they_are_kept_small(name: str, window: int) -> None:
    x = np.round(np.random.default_rng(9).standard_normal((420, LANES)), 1)
    expected = reference.run(name, x, window=window, parameters=PARAMETERS.get(name, ()))
    np.testing.assert_allclose(fall_back(name, x, window, FIRST), expected, rtol=1e-12, atol=1e-15)


def test_quantiles_of_float32_and_of_float64_values_are_values_of_the_window() -> None:
    random = np.random.default_rng(10)
    for x in (random.standard_normal((200, LANES)).astype(np.float32), random.standard_normal((200, LANES))):
        expected = reference.run("Quantile", x, window=20, parameters=(0.3,))
        np.testing.assert_array_equal(fall_back("Quantile", x, 20, FIRST), expected)
