from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from qlib_llm_alpha.engine.kernels import lines
from qlib_llm_alpha.engine.kernels.registry import LANES
from tests.engine.kernels import reference
from tests.engine.kernels.reference import (
    REST,
    as_tile,
    assert_near,
    by_window,
    is_constant,
    present,
    run,
    spread,
    tiles,
)
from tests.engine.kernels.reference import windows as windows_drawn

LINES = ["Slope", "Rsquare", "ExpandingRsquare", "Resi"]
WEIGHTED = ["WMA", "DecayLinear"]
few = settings(max_examples=10, deadline=None)


def fitted(values: Any) -> dict[str, Any]:
    """Measures of the least-squares line through the values of a window, and the scales of their errors."""
    y = present(values)
    if len(y) < 2:
        return dict.fromkeys([*LINES, "steepest", "deviation"], np.nan)
    places = np.flatnonzero(~np.isnan(values)).astype(np.longdouble)
    places = places - places.mean()
    deviation = np.sqrt(spread(y))
    y = y * 0 if is_constant(y) else y - y.mean()
    slope = (places * y).sum() / (places * places).sum()
    share = np.nan if deviation == 0 else (places * y).sum() ** 2 / ((places * places).sum() * (y * y).sum())
    return {
        "Slope": slope,
        "Rsquare": np.nan if deviation <= REST else share,
        "ExpandingRsquare": share,
        "Resi": np.nan if np.isnan(values[-1]) else y[-1] - slope * places[-1],
        "steepest": np.sqrt((y * y).sum() / (places * places).sum()),
        "deviation": deviation,
    }


def defined(x: Any, window: int, first: Any) -> dict[str, Any]:
    """All measures of every window."""
    names = [*LINES, "steepest", "deviation"]
    out = {name: np.full(x.shape, np.nan) for name in names}
    for t, j, values in reference.rows_of_windows(x, window, first):
        for name, value in fitted(values).items():
            out[name][t, j] = value
    spoiled = np.cumsum(np.isinf(x), axis=0) > 0
    return {name: np.where(spoiled & (name in LINES), np.nan, out[name]) for name in names}


def scale_of(name: str, measured: dict[str, Any]) -> Any:
    if "Rsquare" in name:
        return 1.0
    return np.nan_to_num(measured["steepest" if name == "Slope" else "deviation"])


def wrong_mean(values: Any) -> Any:
    """Qlib's WMA."""
    weights = np.arange(1, len(values) + 1).astype(np.longdouble)
    return np.nanmean(weights / weights.sum() * values)


def falling_mean(window: int) -> Any:
    def mean(values: Any) -> Any:
        weights = (window - np.arange(len(values) - 1.0, -1.0, -1.0)).astype(np.longdouble)
        some = ~np.isnan(values)
        return (weights * values)[some].sum() / weights[some].sum()

    return mean


@few
@given(tiles(), windows_drawn)
def test_lines_and_their_fallbacks_equal_the_definition(drawn: Any, window: int) -> None:
    x, first = drawn
    measured = defined(x, window, first)
    for name in LINES:
        expected, scale = measured[name], scale_of(name, measured)
        assert_near(run(name, x, window=window, first=first), expected, scale)
        assert_near(reference.fall_back(name, x, window=window, first=first), expected, scale)


@few
@given(tiles(), windows_drawn)
@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_means_and_their_fallbacks_equal_the_definition(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    expected = by_window(wrong_mean if name == "WMA" else falling_mean(window), x, window, first)
    scale = reference.largest(x, window, first)
    assert_near(run(name, x, window=window, first=first), expected, scale)
    assert_near(reference.fall_back(name, x, window=window, first=first), expected, scale)


@pytest.mark.parametrize("window", [3, 20, 130])
def test_long_series_keep_their_digits(window: int) -> None:
    x, first = reference.long_tile(1), np.zeros(LANES, np.int64)
    measured = defined(x, window, first)
    for name in LINES:
        assert_near(run(name, x, window=window), measured[name], scale_of(name, measured), 1e-10)
    for name, measure in (("WMA", wrong_mean), ("DecayLinear", falling_mean(window))):
        expected, scale = by_window(measure, x, window, first), reference.largest(x, window, first)
        assert_near(run(name, x, window=window), expected, scale)


@few
@given(tiles(), windows_drawn)
@pytest.mark.parametrize("name", LINES + WEIGHTED)
def test_values_depend_neither_on_later_rows_nor_on_neighbours(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    reference.assert_blind_to_later_rows(name, x, window, first)
    reference.assert_blind_to_neighbours(name, x, window, first)


@few
@given(tiles(), windows_drawn)
@pytest.mark.parametrize("name", ["Slope", "Rsquare", "Resi"])
def test_a_group_writes_the_bits_of_its_members(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    reference.assert_same_bits_as_group(name, x, window, first)


def test_lines_that_qlib_was_asked_for() -> None:
    nan, inf = np.nan, np.inf
    x = as_tile([1.0, 3.0, 2.0, nan, 5.0, inf, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    rest = [nan] * 7
    for kernel in (run, reference.fall_back):
        close: Any = {"rtol": 1e-13, "atol": 1e-15}
        np.testing.assert_allclose(kernel("Slope", x, window=3)[:, 0], [nan, 2.0, 0.5, -1.0, 1.5, *rest], **close)
        np.testing.assert_allclose(kernel("Resi", x, window=3)[:, 0], [nan, 0.0, -0.5, nan, 0.0, *rest], **close)
        np.testing.assert_allclose(kernel("Rsquare", x, window=3)[:, 0], [nan, 1.0, 0.25, 1.0, 1.0, *rest], **close)
        expanding = [nan, 2.0, 0.5, 0.5, 0.8857142857142857, *rest]
        np.testing.assert_allclose(kernel("Slope", x, window=99)[:, 0], expanding, **close)
        explained = [nan, 1.0, 0.25, 0.25, 0.7844897959183673, *rest]
        np.testing.assert_allclose(kernel("ExpandingRsquare", x, window=99)[:, 0], explained, **close)


def test_wma_that_qlib_was_asked_for() -> None:
    nan, inf = np.nan, np.inf
    x = as_tile([nan, 1.0, 2.0, nan, inf, 3.0, -inf, 4.0], [1.0] * 6)
    asked = [nan, 2 / 3, 2 / 3, 5 / 12, 1 / 3, 1.5, 1.0, 1.25]
    for kernel in (run, reference.fall_back):
        np.testing.assert_allclose(kernel("WMA", x, window=3)[:, 0], asked, rtol=1e-14)
        # The mistake itself: the mean of ones is not one.
        np.testing.assert_allclose(kernel("WMA", x, window=4)[3:6, 1], 0.25, rtol=1e-14)


def test_decay_linear_equals_the_operator_of_ours_on_finite_values() -> None:
    random = np.random.default_rng(3)
    column = random.standard_normal(80)
    column[random.random(80) < 0.3] = np.nan
    for window in (1, 4, 300):
        some = ~np.isnan(column)
        weights = np.arange(window, 0, -1.0)
        weighed = np.convolve(some, weights)[:80]
        with np.errstate(all="ignore"):
            expected = np.convolve(np.where(some, column, 0.0), weights)[:80] / weighed
        expected[weighed == 0] = np.nan
        np.testing.assert_allclose(run("DecayLinear", as_tile(column), window=window)[:, 0], expected, rtol=1e-11)


def test_equal_values_have_no_slope_and_no_residual() -> None:
    x = as_tile(np.r_[1e10, 2.0, np.full(20, 0.1)])
    for kernel in (run, reference.fall_back):
        assert (kernel("Slope", x, window=5)[6:, 0] == 0.0).all()
        assert (kernel("Resi", x, window=5)[6:, 0] == 0.0).all()
        assert np.isnan(kernel("Rsquare", x, window=5)[6:, 0]).all()
        assert (kernel("DecayLinear", x, window=5)[6:, 0] == 0.1).all()


def test_only_the_expanding_rsquare_measures_values_that_differ_little() -> None:
    x = as_tile(1e-7 * np.array([1.0, 2.0, 3.0, 4.0]))
    assert np.isnan(run("Rsquare", x, window=99)[:, 0]).all()
    np.testing.assert_allclose(run("ExpandingRsquare", x, window=99)[1:, 0], 1.0)
    assert abs(lines.QUIET / 4e-10 - 1.0) < 1e-12


def test_slope_equals_a_fit_of_pandas_covariances() -> None:
    random = np.random.default_rng(9)
    column = pd.Series(np.cumsum(random.standard_normal(300)))
    places = pd.Series(np.arange(300.0))
    rolling = column.rolling(20, min_periods=1)
    expected = rolling.cov(places) / places.rolling(20, min_periods=1).var()
    np.testing.assert_allclose(run("Slope", as_tile(column), window=20)[:, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LINES + WEIGHTED)
def test_drift_ends_when_every_lane_is_added_up_again(name: str) -> None:
    reference.assert_forgets(name)
