from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels import arithmetic
from qlib_llm_alpha.engine.kernels.arithmetic import ARITHMETIC, blanked, combine, combine_store, store
from qlib_llm_alpha.engine.kernels.registry import LANES

FLOATS = (np.float32, np.float64)
PAIRS = list(product(ARITHMETIC, FLOATS, FLOATS))
ODD = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 1e-310, 3e38, -1.7e308, 0.1, 1 / 3, 2.0**24 + 1]


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"], autouse=True)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(arithmetic, "HAVE_NUMBA", arithmetic.HAVE_NUMBA and request.param)
    return bool(request.param)


def hostile(dtype: Any, seed: int) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    tile = random.standard_normal((50, LANES)) * 10.0 ** random.integers(-30, 30, (50, LANES))
    tile[:20] = random.choice(ODD, (20, LANES))
    with np.errstate(over="ignore"):
        return tile.astype(dtype)


def some_dead() -> NDArray[np.bool_]:
    dead = np.zeros((50, LANES), np.bool_)
    dead[:13, 2] = dead[30:, 5] = dead[:, 9] = True
    return dead


def assert_same(result: NDArray[Any], expected: NDArray[Any]) -> None:
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    kept = ~np.isnan(expected)
    bits = np.int32 if expected.dtype == np.float32 else np.int64
    np.testing.assert_array_equal(result[kept].view(bits), expected[kept].view(bits))


@pytest.mark.parametrize(("op", "left", "right"), PAIRS)
def test_two_tiles_combine_to_the_bits_of_numpy(op: str, left: Any, right: Any) -> None:
    a, b = hostile(left, 1), hostile(right, 2)
    with np.errstate(all="ignore"):
        expected = ARITHMETIC[op](a, b)
        out = np.empty_like(expected)
        combine(op, a, b, out)
    assert_same(out, expected)


@pytest.mark.parametrize(("op", "left", "right"), PAIRS)
def test_a_combination_is_stored_to_the_bits_of_numpy_and_blank_where_there_is_nothing(
    op: str, left: Any, right: Any
) -> None:
    a, b, dead = hostile(left, 3), hostile(right, 4), some_dead()
    out = np.empty((50, LANES), np.float32)
    with np.errstate(all="ignore"):
        expected = ARITHMETIC[op](a, b).astype(np.float32)
        expected[dead] = np.nan
        combine_store(op, a, b, dead, out)
    assert_same(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
def test_what_is_stored_is_float32_and_blank_where_there_is_nothing(dtype: Any) -> None:
    x, dead = (hostile(np.float64, 5) > 0 if dtype is np.bool_ else hostile(dtype, 5)), some_dead()
    out = np.empty((50, LANES), np.float32)
    with np.errstate(all="ignore"):
        expected = x.astype(np.float32)
        expected[dead] = np.nan
        store(x, dead, out)
    assert_same(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
def test_a_blanked_copy_keeps_the_type_and_turns_truth_into_numbers(dtype: Any) -> None:
    x, dead = (hostile(np.float64, 6) > 0 if dtype is np.bool_ else hostile(dtype, 6)), some_dead()
    before = x.copy()
    expected = x.astype(np.float64 if dtype is np.bool_ else dtype)
    expected[dead] = np.nan
    out = np.empty_like(expected)
    blanked(x, dead, out)
    assert_same(out, expected)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("op", ARITHMETIC)
def test_the_result_may_replace_an_argument(op: str) -> None:
    a, b = hostile(np.float64, 7), hostile(np.float32, 8)
    with np.errstate(all="ignore"):
        expected = ARITHMETIC[op](a, b)
        combine(op, a, b, a)
    assert_same(a, expected)


def test_an_unknown_operation_is_refused() -> None:
    a, b = hostile(np.float64, 7), hostile(np.float32, 8)
    with pytest.raises(KeyError, match="Power"):
        combine("Power", a, b, np.empty((50, LANES)))
    with pytest.raises(KeyError, match="Power"):
        combine_store("Power", a, b, some_dead(), np.empty((50, LANES), np.float32))
