from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.engine.kernels import exponential
from qlib_llm_alpha.engine.kernels.registry import KERNELS
from tests.engine.kernels import reference
from tests.engine.kernels.reference import as_tile, assert_near, run, tiles

few = settings(max_examples=10, deadline=None)


def decayed(x: Any, alpha: float, first: Any) -> Any:
    """The definition: weights (1 - alpha) ** age over the rows that have a value."""
    wide = np.where(np.isfinite(x), x, np.nan).astype(np.longdouble)
    out = np.full(x.shape, np.nan)
    for t in range(len(x)):
        weights = np.longdouble(1.0 - alpha) ** np.arange(t, -1.0, -1.0).astype(np.longdouble)
        some = ~np.isnan(wide[: t + 1])
        total = np.where(some, weights[:, None] * np.where(some, wide[: t + 1], 0.0), 0.0).sum(axis=0)
        weight = (weights[:, None] * some).sum(axis=0)
        with np.errstate(all="ignore"):
            out[t] = total / weight
        # A weight that has faded to nothing leaves the last mean standing.
        out[t] = np.where((weight == 0.0) & (t > 0), out[t - 1], out[t])
    return out


def scale(x: Any) -> Any:
    finite = np.where(np.isfinite(x), np.abs(x), 0.0).astype(np.float64)
    return np.maximum.accumulate(finite, axis=0)


def test_the_module_fills_the_table() -> None:
    assert {"EMA", "Ewm", "ExpandingEMA"} <= set(KERNELS)
    assert exponential.ema is KERNELS["EMA"].run


@few
@given(tiles(rows=70), st.integers(1, 60))
def test_ema_equals_the_definition(drawn: Any, window: int) -> None:
    x, first = drawn
    expected = decayed(x, 2.0 / (window + 1.0), first)
    if window == 1:
        expected = pd.DataFrame(np.where(np.isfinite(x), x, np.nan)).ffill().to_numpy(np.float64)
    assert_near(run("EMA", x, window=window, first=first), expected, scale(x), 1e-10)
    assert_near(reference.fall_back("EMA", x, window=window, first=first), expected, scale(x), 1e-10)


@pytest.mark.parametrize("window", [1, 2, 5, 26, 300])
def test_ema_has_the_bits_of_pandas(window: int) -> None:
    random = np.random.default_rng(3)
    column = np.exp(np.cumsum(0.02 * random.standard_normal(500)))
    column[random.random(500) < 0.2] = np.nan
    column[[7, 90]] = [np.inf, -np.inf]
    column[200:230] = 0.1
    expected = pd.Series(column).ewm(span=window, min_periods=1).mean().to_numpy()
    result = run("EMA", as_tile(column), window=window)[:, 0]
    np.testing.assert_allclose(result, expected, rtol=1e-13)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.99])
def test_ewm_has_the_bits_of_pandas(alpha: float) -> None:
    random = np.random.default_rng(4)
    column = random.standard_normal(500)
    column[random.random(500) < 0.2] = np.nan
    expected = pd.Series(column).ewm(alpha=alpha, min_periods=1).mean().to_numpy()
    for kernel in (run, reference.fall_back):
        result = kernel("Ewm", as_tile(column), window=1, parameters=(alpha,))[:, 0]
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-15)


@few
@given(tiles(rows=40))
def test_expanding_ema_equals_qlibs_function_of_the_whole_past(drawn: Any) -> None:
    x, first = drawn

    def weighted(values: Any) -> Any:
        rate = 1 - 2 / (1 + np.longdouble(len(values)))
        weights = rate ** np.arange(len(values))[::-1].astype(np.longdouble)
        return np.nansum(weights / weights.sum() * values)

    expected = reference.by_window(weighted, x, 10_000, first)
    assert_near(run("ExpandingEMA", x, window=10_000, first=first), expected, scale(x), 1e-11)
    assert_near(reference.fall_back("ExpandingEMA", x, window=10_000, first=first), expected, scale(x), 1e-11)


def test_expanding_ema_of_values_that_qlib_was_asked_for() -> None:
    nan, inf = np.nan, np.inf
    result = run("ExpandingEMA", as_tile([nan, 1.0, 2.0, nan, inf, 3.0, -inf, 4.0]), window=100)[:, 0]
    asked = [nan, 0.7499999999999999, 1.4285714285714284, 0.7169117647058822, 0.4549763033175356]
    asked += [1.3143181996393003, 0.9001901810241599, 1.6948512308378967]
    np.testing.assert_allclose(result, asked, rtol=1e-14)


@few
@given(tiles(rows=60), st.integers(1, 30))
@pytest.mark.parametrize("name", ["EMA", "Ewm", "ExpandingEMA"])
def test_values_depend_neither_on_later_rows_nor_on_neighbours(name: str, drawn: Any, window: int) -> None:
    x, first = drawn
    parameters = (0.2,) if name == "Ewm" else ()
    reference.assert_blind_to_later_rows(name, x, window, first, parameters)
    reference.assert_blind_to_neighbours(name, x, window, first, parameters)


def test_equal_values_stay_as_they_are() -> None:
    x = as_tile([0.1] * 50)
    for kernel in (run, reference.fall_back):
        assert (kernel("EMA", x, window=7)[:, 0] == 0.1).all()
