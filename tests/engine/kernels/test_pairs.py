from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.engine.kernels import pairs
from qlib_llm_alpha.engine.kernels.registry import LANES
from tests.engine.kernels import reference
from tests.engine.kernels.reference import REST, as_tile, assert_near, by_joint_window, is_constant, run, spread, tiles
from tests.engine.kernels.reference import windows as windows_drawn

few = settings(max_examples=10, deadline=None)
START = np.zeros(LANES, np.int64)


def correlation(u: Any, v: Any, own_u: Any, own_v: Any) -> Any:
    """Joint correlation, blank where an input hardly moves over its own window."""
    if len(u) < 2 or is_constant(u) or is_constant(v):
        return np.nan
    if np.sqrt(spread(own_u)) <= REST or np.sqrt(spread(own_v)) <= REST:
        return np.nan
    u, v = u - u.mean(), v - v.mean()
    return (u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum())


def covariance(u: Any, v: Any, own_u: Any, own_v: Any) -> Any:
    if len(u) < 2:
        return np.nan
    if is_constant(u) or is_constant(v):
        return 0.0
    return ((u - u.mean()) * (v - v.mean())).sum() / (len(u) - 1)


def deviations(u: Any, v: Any, own_u: Any, own_v: Any) -> Any:
    """The product of both deviations: the scale of a covariance."""
    return np.sqrt(spread(u) * spread(v))


@st.composite
def two_tiles(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw two tiles that miss the same rows, or each its own."""
    x, _ = draw(tiles(rows=90))
    y = np.ascontiguousarray(np.roll(x, draw(st.integers(0, 2)), axis=1))
    if draw(st.booleans()):
        both = np.isfinite(x) & np.isfinite(y)
        x, y = np.where(both, x, np.nan).astype(x.dtype), np.where(both, y, np.nan).astype(y.dtype)
    if draw(st.booleans()):
        y = y.astype(np.float64)
    return x, y


@few
@given(two_tiles(), windows_drawn)
def test_corr_and_its_fallback_equal_the_definition(drawn: Any, window: int) -> None:
    x, y = drawn
    expected = by_joint_window(correlation, x, y, window, START)
    assert_near(run("Corr", x, y, window=window), expected, 1.0)
    assert_near(reference.fall_back("Corr", x, y, window=window), expected, 1.0)


@few
@given(two_tiles(), windows_drawn)
def test_cov_and_its_fallback_equal_the_definition(drawn: Any, window: int) -> None:
    x, y = drawn
    expected = by_joint_window(covariance, x, y, window, START)
    scale = np.nan_to_num(by_joint_window(deviations, x, y, window, START))
    assert_near(run("Cov", x, y, window=window), expected, scale)
    assert_near(reference.fall_back("Cov", x, y, window=window), expected, scale)


@pytest.mark.parametrize("window", [3, 20, 130])
def test_long_series_keep_their_digits(window: int) -> None:
    x, y = reference.long_tile(1), np.roll(reference.long_tile(2), 4, axis=1).copy()
    assert_near(run("Corr", x, y, window=window), by_joint_window(correlation, x, y, window, START), 1.0)
    scale = np.nan_to_num(by_joint_window(deviations, x, y, window, START))
    assert_near(run("Cov", x, y, window=window), by_joint_window(covariance, x, y, window, START), scale)


@few
@given(two_tiles(), windows_drawn)
@pytest.mark.parametrize("name", ["Corr", "Cov"])
def test_values_depend_neither_on_later_rows_nor_on_neighbours(name: str, drawn: Any, window: int) -> None:
    reference.assert_blind_to_later_rows(name, drawn[0], window, START)
    reference.assert_blind_to_neighbours(name, drawn[0], window, START)


@few
@given(two_tiles(), windows_drawn)
def test_the_loop_that_knows_own_windows_writes_the_bits_of_the_fast_one(drawn: Any, window: int) -> None:
    x, y = drawn
    both = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(both, x, np.nan).astype(x.dtype), np.where(both, y, np.nan).astype(y.dtype)
    fast = run("Corr", x, y, window=window)
    # One row that only x has, at the very end of one lane, calls for the other loop everywhere.
    x, y = np.concatenate([x, x[-1:]]), np.concatenate([y, y[-1:]])
    x[-1, 0], y[-1, 0] = 1.0, np.nan
    reference.assert_same_bits(run("Corr", x, y, window=window)[:-1].copy(), fast)


@pytest.mark.parametrize("window", [2, 5, 20, 10_000])
@pytest.mark.parametrize("name", ["Corr", "Cov"])
def test_kernels_equal_pandas(name: str, window: int) -> None:
    random = np.random.default_rng(5)
    x, y = np.exp(np.cumsum(0.02 * random.standard_normal((2, 600)), axis=1))
    x[random.random(600) < 0.1], y[random.random(600) < 0.1] = np.nan, np.nan
    x[300], y[302] = np.inf, -np.inf
    rolling = pd.Series(x).rolling(window, min_periods=1)
    expected = getattr(rolling, name.lower())(pd.Series(y)).to_numpy().copy()
    if name == "Corr":  # what Qlib adds to pandas
        for each in (x, y):
            expected[pd.Series(each).rolling(window, min_periods=1).std() <= 2e-5] = np.nan
    result = run(name, as_tile(x), as_tile(y), window=window)[:, 0]
    np.testing.assert_allclose(result, expected, rtol=1e-7, atol=1e-10)


def test_an_input_that_hardly_moves_in_its_own_window_blanks_the_correlation() -> None:
    x = as_tile(0.5 + 1e-5 * np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0]), [1.0, 1.0, 1.0, 9.0, 1.00001, 2.0])
    y = as_tile([1.0, 2.0, 4.0, 3.0, 5.0, 6.0], [1.0, 2.0, 3.0, np.nan, 5.0, 7.0])
    for kernel in (run, reference.fall_back):
        result = kernel("Corr", x, y, window=3)
        assert np.isnan(result[:, 0]).all()
        # Rows 3 and 4 of the second pair: x moves in its own window (the 9), though not where y has values too.
        np.testing.assert_array_equal(np.isnan(result[:, 1]), [True, True, True, True, False, False])


def test_two_rows_correlate_fully_and_never_more() -> None:
    x = np.random.default_rng(0).standard_normal((500, LANES))
    y = 3.0 * x + 1e-9 * np.random.default_rng(1).standard_normal((500, LANES))
    assert np.abs(run("Corr", x, y, window=5)[1:]).max() <= 1.0


def test_hand_made_values() -> None:
    x, y = as_tile([1.0, 2.0, 3.0, 4.0]), as_tile([1.0, 3.0, 2.0, np.nan])
    np.testing.assert_allclose(run("Cov", x, y, window=3)[:, 0], [np.nan, 1.0, 0.5, -0.5])
    np.testing.assert_allclose(run("Corr", x, y, window=3)[:, 0], [np.nan, 1.0, 0.5, -1.0])
    assert abs(pairs.QUIET / 4e-10 - 1.0) < 1e-12


def test_nothing_is_left_of_a_spike_that_has_left_the_window() -> None:
    random = np.random.default_rng(1)
    x, y = random.uniform(0.9e6, 1.1e6, (2, 400))
    x[[100, 150]], y[200] = [1e12, 1e30], -1e12
    expected = by_joint_window(correlation, x[:, None], y[:, None], 20, START[:1])[:, 0]
    np.testing.assert_allclose(run("Corr", as_tile(x), as_tile(y), window=20)[:, 0], expected, atol=1e-10)


@pytest.mark.parametrize("name", ["Corr", "Cov"])
def test_drift_ends_when_every_lane_is_added_up_again(name: str) -> None:
    reference.assert_forgets(name)
