from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qlib_llm_alpha.engine import across as module
from qlib_llm_alpha.engine.across import ACROSS, across
from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, LANES
from qlib_llm_alpha.errors import ConfigError, PanelError

Table = NDArray[np.floating[Any]]  # (days, instruments): how people think; a column is what the engine keeps
Mask = NDArray[np.bool_]

PARAMETERS: dict[str, tuple[float, ...]] = {"CSWinsorize": (0.1,), "CSQuantile": (0.3,), "CSBucket": (7,)}
SAME_UNIT = ("CSDemean", "CSWinsorize", "CSQuantile", "CSNeutralize", "CSResidual")
GROUPED = ("CSNeutralize", "CSGroupRank", "CSGroupZScore")
EACH = pytest.mark.parametrize("name", sorted(ACROSS))
KINDS = ("normal", "ties", "constant", "tails", "close", "many zeros")

often = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "compiled" and not HAVE_NUMBA:
        pytest.skip("numba is not installed")
    monkeypatch.setattr(module, "HAVE_NUMBA", request.param == "compiled")
    return str(request.param)


def column(table: Table | Mask) -> NDArray[Any]:
    days, names = table.shape
    tiles = -(-names // LANES)
    padded = np.full((days, tiles * LANES), np.nan if table.dtype != np.bool_ else False, dtype=table.dtype)
    padded[:, :names] = table
    return np.ascontiguousarray(padded.reshape(days, tiles, LANES).transpose(1, 0, 2))


def table_of(a_column: NDArray[Any], names: int) -> NDArray[Any]:
    flat = a_column.transpose(1, 0, 2).reshape(a_column.shape[1], -1)
    assert np.isnan(flat[:, names:]).all()
    return flat[:, :names]


def evaluate(name: str, tables: list[Table], member: Mask | None = None, *parameters: float) -> NDArray[Any]:
    given = None if member is None else column(member)
    return table_of(across(name, [column(each) for each in tables], given, parameters), tables[0].shape[1])


def market(seed: int, kind: str, dtype: type = np.float64) -> tuple[Table, Table, Table, Mask]:
    """Days of x, y, group codes and members, with holes, infinite values, an empty day and a day of one member."""
    rng = np.random.default_rng(seed)
    days, names = 6, int(rng.integers(1, 90))
    x = rng.standard_normal((days, names))
    if kind == "ties":
        x = np.round(x, 1) * rng.choice([1.0, -1.0], x.shape)  # among them 0.0 and -0.0
    elif kind == "constant":
        x = np.full(x.shape, 0.1)
    elif kind == "tails":
        x = np.sign(x) * np.exp(20 * np.abs(x))
    elif kind == "close":
        x = 1000.0 + 1e-6 * x  # float32 cannot tell them apart
    elif kind == "many zeros":
        x[rng.random(x.shape) < 0.7] = 0.0
    y = rng.standard_normal(x.shape) + 0.5 * np.tanh(x)
    y[-1] = 3.3
    group = rng.choice(np.array([0.0, -0.0, 1.0, 5.0, 1e9, -2.5]), x.shape)
    group[:, : names // 10] = np.arange(names // 10) + 100.0  # groups of one
    for table in (x, y, group):
        table[rng.random(x.shape) < 0.1] = np.nan
        table[rng.random(x.shape) < 0.05] = np.inf
        table[rng.random(x.shape) < 0.05] = -np.inf
    member = rng.random(x.shape) < 0.8
    member[1] = False
    member[2] = False
    member[2, names // 2] = True
    with np.errstate(over="ignore"):
        return x.astype(dtype), y.astype(dtype), group, member


def inputs_of(name: str, x: Table, y: Table, group: Table) -> list[Table]:
    return [x, group] if name in GROUPED else [x, y] if name == "CSResidual" else [x]


def zscore(values: pd.Series) -> pd.Series:
    distance = values - values.mean()
    distance -= distance.mean()  # of values that are close to each other, the first mean is rounded too coarsely
    deviation = np.sqrt((distance**2).mean())
    return values * 0.0 if deviation <= 1e-12 * values.abs().max() else distance / deviation


def bucket(values: pd.Series, buckets: float) -> pd.Series:
    return values.rank().map(lambda rank: math.ceil(Fraction(rank) * int(buckets) / len(values)))


def residual(day: pd.DataFrame) -> pd.Series:
    x, y = day["x"] - day["x"].mean(), day["y"] - day["y"].mean()
    if day["y"].std(ddof=0) <= 1e-12 * day["y"].abs().max():
        return x
    slope = np.linalg.lstsq(y.to_numpy()[:, None], x.to_numpy(), rcond=None)[0][0]
    return x - slope * y


OF_A_DAY: dict[str, Callable[..., pd.Series]] = {
    "CSRank": lambda day: day["x"].rank(pct=True),
    "CSZScore": lambda day: zscore(day["x"]),
    "CSDemean": lambda day: day["x"] - day["x"].mean(),
    "CSScale": lambda day: day["x"] / (day["x"].abs().sum() or 1.0),
    "CSWinsorize": lambda day, q: day["x"].clip(day["x"].quantile(q), day["x"].quantile(1 - q)),
    "CSQuantile": lambda day, q: pd.Series(day["x"].quantile(q), index=day.index),
    "CSBucket": lambda day, n: bucket(day["x"], n),
    "CSNeutralize": lambda day: day["x"] - day.groupby("group")["x"].transform("mean"),
    "CSGroupRank": lambda day: day.groupby("group")["x"].rank(pct=True),
    "CSGroupZScore": lambda day: day.groupby("group")["x"].transform(zscore),
    "CSResidual": residual,
}


def reference(name: str, x: Table, y: Table, group: Table, member: Mask, *parameters: float) -> NDArray[np.float64]:
    """By pandas, one day at a time, on the members that have all that the operator reads."""
    expected = np.full(x.shape, np.nan)
    for t in range(len(x)):
        day = pd.DataFrame({"x": x[t], "y": y[t], "group": group[t] + 0.0}).astype("float64")[member[t]]
        read = {"CSResidual": ["x", "y"]}.get(name, ["x", "group"] if name in GROUPED else ["x"])
        day = day[np.isfinite(day[read]).all(axis=1)]
        if len(day):
            expected[t, day.index] = OF_A_DAY[name](day, *parameters)
    return expected


def assert_close(name: str, actual: NDArray[Any], expected: NDArray[np.float64], x: Table) -> None:
    """Equal within 1e-12 of the day's largest value, or of the day's largest result for plain ratios."""
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    if name in SAME_UNIT:
        scale = np.where(np.isfinite(x), np.abs(x), 0.0).max(axis=1, keepdims=True)
    else:
        scale = np.nan_to_num(np.abs(expected)).max(axis=1, keepdims=True)
    assert (np.abs(np.nan_to_num(actual) - np.nan_to_num(expected)) <= 1e-12 * scale).all()


@EACH
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
@often
def test_an_operator_equals_pandas_on_the_members_of_the_day(name: str, seed: int, kind: str) -> None:
    x, y, group, member = market(seed, kind)
    parameters = PARAMETERS.get(name, ())
    actual = evaluate(name, inputs_of(name, x, y, group), member, *parameters)
    assert actual.dtype == np.float64
    expected = reference(name, x, y, group, member, *parameters)
    assert_close(name, actual, expected, x)


@EACH
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
@often
def test_a_float32_column_is_computed_in_float64_and_rounded_once(name: str, seed: int, kind: str) -> None:
    x, y, group, member = market(seed, kind, np.float32)
    parameters = PARAMETERS.get(name, ())
    narrow = evaluate(name, inputs_of(name, x, y, group), member, *parameters)
    wide = evaluate(name, inputs_of(name, x.astype(np.float64), y, group), member, *parameters)
    assert narrow.dtype == np.float32
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow, wide.astype(np.float32))


@EACH
def test_every_cell_with_a_value_is_a_member_where_none_are_named(name: str) -> None:
    x, y, group, _ = market(1, "normal")
    parameters = PARAMETERS.get(name, ())
    tables = inputs_of(name, x, y, group)
    expected = evaluate(name, tables, np.ones(x.shape, dtype=bool), *parameters)
    np.testing.assert_array_equal(evaluate(name, tables, None, *parameters), expected)
    assert np.isfinite(expected).any()


@EACH
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
@often
def test_who_left_the_universe_neither_counts_nor_gets_a_value(name: str, seed: int, kind: str) -> None:
    x, y, group, _ = market(seed, kind)
    parameters = PARAMETERS.get(name, ())
    member = np.ones(x.shape, dtype=bool)
    member[3:, ::3] = False
    gone = [np.where(member, table, np.nan) for table in inputs_of(name, x, y, group)]
    stayed = evaluate(name, inputs_of(name, x, y, group), member, *parameters)
    assert np.isnan(stayed[3:, ::3]).all()
    np.testing.assert_array_equal(stayed, evaluate(name, gone, None, *parameters))


@EACH
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
@often
def test_compiled_and_numpy_agree(name: str, seed: int, kind: str) -> None:
    if not HAVE_NUMBA:
        pytest.skip("numba is not installed")
    x, y, group, member = market(seed, kind)
    operator, parameters = ACROSS[name], PARAMETERS.get(name, ())
    present = np.isfinite(x) & np.isfinite(y) & np.isfinite(group) & member
    wide = -(-x.shape[1] // LANES) * LANES - x.shape[1]
    rows, *others = (
        np.pad(np.where(present, table, np.nan) + 0.0, ((0, 0), (0, wide)), constant_values=np.nan)
        for table in inputs_of(name, x, y, group)
    )
    compiled, plain = rows.copy(), rows.copy()
    operator.run(compiled, *[other.copy() for other in others], *parameters)
    operator.fallback(plain, *[other.copy() for other in others], *parameters)
    assert_close(name, compiled, plain, rows)


@EACH
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(0, 5))
@often
def test_a_day_does_not_depend_on_other_days(name: str, seed: int, kind: str, t: int) -> None:
    x, y, group, member = market(seed, kind)
    parameters = PARAMETERS.get(name, ())
    tables = inputs_of(name, x, y, group)
    together = evaluate(name, tables, member, *parameters)
    alone = evaluate(name, [table[t : t + 1] for table in tables], member[t : t + 1], *parameters)
    np.testing.assert_array_equal(together[t : t + 1], alone)


@EACH
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
@often
def test_shuffling_the_instruments_shuffles_the_result(name: str, seed: int, kind: str) -> None:
    x, y, group, member = market(seed, kind)
    parameters = PARAMETERS.get(name, ())
    order = np.random.default_rng(seed).permutation(x.shape[1])
    there = evaluate(name, inputs_of(name, x, y, group), member, *parameters)[:, order]
    shuffled = [np.ascontiguousarray(table[:, order]) for table in inputs_of(name, x, y, group)]
    here = evaluate(name, shuffled, member[:, order], *parameters)
    if name in ("CSRank", "CSBucket", "CSGroupRank", "CSQuantile", "CSWinsorize"):
        np.testing.assert_array_equal(here, there)
    else:
        assert_close(name, here, there, x[:, order])


@EACH
def test_threads_do_not_change_a_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELLS_AT_ONCE", 100)
    x, y, group, member = (np.tile(table, (9, 1)) for table in market(3, "normal"))
    columns, parameters = [column(table) for table in inputs_of(name, x, y, group)], PARAMETERS.get(name, ())
    alone = across(name, columns, column(member), parameters)
    np.testing.assert_array_equal(across(name, columns, column(member), parameters, threads=3), alone)


@EACH
@pytest.mark.parametrize("shape", [(0, 5, LANES), (2, 0, LANES)])
def test_nothing_in_nothing_out(name: str, shape: tuple[int, ...]) -> None:
    columns = [np.empty(shape, dtype=np.float32)] * ACROSS[name].inputs
    assert across(name, columns, None, PARAMETERS.get(name, ())).shape == shape


@EACH
def test_the_inputs_are_left_as_they_were(name: str) -> None:
    x, y, group, member = market(4, "normal")
    columns = [column(table) for table in inputs_of(name, x, y, group)]
    before = [each.copy() for each in columns]
    across(name, columns, column(member), PARAMETERS.get(name, ()))
    for old, new in zip(before, columns, strict=True):
        np.testing.assert_array_equal(old, new)


def test_every_operator_by_hand() -> None:
    x = np.array([[4.0, 1.0, 1.0, np.nan, 2.0, np.inf]])
    group = np.array([[7.0, 7.0, 8.0, 8.0, 8.0, 7.0]])
    y = np.array([[1.0, 0.0, 0.0, 5.0, np.nan, 5.0]])

    def row(name: str, *others: Table, parameters: tuple[float, ...] = ()) -> list[float]:
        return evaluate(name, [x, *others], None, *parameters)[0].tolist()

    nan = pytest.approx(np.nan, nan_ok=True)
    deviation = math.sqrt(1.5)  # of 4, 1, 1, 2 around 2: squares 4 + 1 + 1 + 0
    assert row("CSRank") == [1.0, 0.375, 0.375, nan, 0.75, nan]
    assert row("CSZScore") == pytest.approx(
        [2 / deviation, -1 / deviation, -1 / deviation, np.nan, 0.0, np.nan], nan_ok=True
    )
    assert row("CSDemean") == [2.0, -1.0, -1.0, nan, 0.0, nan]
    assert row("CSScale") == [0.5, 0.125, 0.125, nan, 0.25, nan]
    assert row("CSWinsorize", parameters=(0.25,)) == [2.5, 1.0, 1.0, nan, 2.0, nan]
    assert row("CSQuantile", parameters=(0.5,)) == [1.5, 1.5, 1.5, nan, 1.5, nan]
    assert row("CSBucket", parameters=(2,)) == [2.0, 1.0, 1.0, nan, 2.0, nan]
    assert row("CSBucket", parameters=(4,)) == [4.0, 2.0, 2.0, nan, 3.0, nan]
    assert row("CSNeutralize", group) == [1.5, -1.5, -0.5, nan, 0.5, nan]
    assert row("CSGroupRank", group) == [1.0, 0.5, 0.5, nan, 1.0, nan]
    assert row("CSGroupZScore", group) == [1.0, -1.0, -1.0, nan, 1.0, nan]
    assert row("CSResidual", y) == pytest.approx([0.0, 0.0, 0.0, np.nan, np.nan, np.nan], abs=1e-15, nan_ok=True)


@pytest.mark.parametrize("value", [0.1, -3.3, 0.0, 1e300, 1e-300, 7e-310])
def test_a_day_of_equal_values_is_exactly_flat(value: float) -> None:
    x = np.full((1, 70), value)
    group, y = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], (1, 14)), np.random.default_rng(0).standard_normal((1, 70))
    for name in ("CSZScore", "CSDemean", "CSNeutralize", "CSGroupZScore", "CSResidual"):
        assert (evaluate(name, inputs_of(name, x, y, group)) == 0.0).all(), name
    assert (evaluate("CSRank", [x]) == 71 / 140).all()
    assert (evaluate("CSQuantile", [x], None, 0.37) == value).all()
    assert (evaluate("CSWinsorize", [x], None, 0.37) == value).all()
    assert evaluate("CSScale", [x])[0] == pytest.approx(np.full(70, np.sign(value) / 70))


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e290])
@pytest.mark.parametrize("name", ["CSZScore", "CSGroupZScore", "CSScale", "CSRank", "CSGroupRank", "CSBucket"])
def test_the_scale_of_a_day_does_not_matter_up_to_the_ends_of_float64(name: str, size: float) -> None:
    x, y, group, member = market(5, "normal")
    parameters = PARAMETERS.get(name, ())
    plain = evaluate(name, inputs_of(name, x, y, group), member, *parameters)
    np.testing.assert_allclose(
        evaluate(name, inputs_of(name, x * size, y, group), member, *parameters), plain, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e290])
def test_a_residual_follows_the_scale_of_both_sides(size: float) -> None:
    x, y, _, member = market(6, "normal")
    plain = evaluate("CSResidual", [x, y], member)
    np.testing.assert_allclose(evaluate("CSResidual", [x * size, y], member) / size, plain, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(evaluate("CSResidual", [x, y * size], member), plain, rtol=1e-9, atol=1e-12)


def test_a_residual_is_sound_where_the_regressor_lies_far_from_zero() -> None:
    rng = np.random.default_rng(7)
    y = rng.standard_normal((3, 50))
    x = 2 * y + rng.standard_normal(y.shape)
    expected = evaluate("CSResidual", [x, y])
    np.testing.assert_allclose(evaluate("CSResidual", [x + 2.0**20, y + 2.0**20]), expected, rtol=0, atol=1e-8)


def test_minus_zero_ties_with_zero_in_values_and_in_groups() -> None:
    zeros = np.array([[0.0, -0.0, 1.0]])
    assert evaluate("CSRank", [zeros]).tolist() == [[0.5, 0.5, 1.0]]
    assert evaluate("CSGroupRank", [np.array([[2.0, 1.0, 3.0]]), zeros]).tolist() == [[1.0, 0.5, 1.0]]


def test_ranks_tell_apart_what_float32_cannot() -> None:
    rng = np.random.default_rng(8)
    for x in (1.0 + 1e-12 * rng.permutation(900), 1e-60 * (rng.permutation(900) - 450.0), 1e60 * rng.random(900)):
        expected = pd.Series(x).rank(pct=True).to_numpy()
        np.testing.assert_array_equal(evaluate("CSRank", [x[None]])[0], expected)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=80))
@often
def test_ranks_and_quantiles_hold_for_any_float64(values: list[float]) -> None:
    x = np.array([values])
    known = pd.Series(values).where(np.isfinite(values))
    np.testing.assert_array_equal(evaluate("CSRank", [x])[0], known.rank(pct=True))
    if known.abs().max() < 1e300:
        expected = known.quantile(0.3) if known.notna().any() else np.nan
        np.testing.assert_allclose(
            evaluate("CSQuantile", [x], None, 0.3)[0], known.where(known.isna(), expected), rtol=1e-12, atol=1e-300
        )


@pytest.mark.parametrize("q", [0.0, 0.01, 0.25, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantile_of_many_names_is_that_of_numpy(q: float, kind: str) -> None:
    x = np.concatenate([np.nan_to_num(market(seed, kind)[0], posinf=0, neginf=0).ravel() for seed in range(4)])
    np.testing.assert_allclose(evaluate("CSQuantile", [x[None]], None, q)[0], np.quantile(x, q), rtol=1e-12)


def test_one_value_far_out_does_not_spoil_the_quantiles_of_the_others() -> None:
    x = np.concatenate([10.0 ** np.arange(-300, 300, 0.5), np.random.default_rng(9).random(500)])[None]
    for q in (0.0, 0.3, 0.5, 0.9, 1.0):
        np.testing.assert_allclose(evaluate("CSQuantile", [x], None, q)[0], np.quantile(x, q), rtol=1e-12)


def test_a_bucket_boundary_belongs_to_the_lower_bucket() -> None:
    for count, buckets in [(100, 100), (50, 10), (30, 3), (7, 7)]:
        x = np.arange(count, dtype=np.float64)[None]
        expected = [math.ceil(Fraction((place + 1) * buckets, count)) for place in range(count)]
        assert evaluate("CSBucket", [x], None, buckets)[0].tolist() == expected


def test_as_many_groups_as_names_is_no_difficulty() -> None:
    x, codes = np.random.default_rng(10).random((2, 2, 640))
    assert (evaluate("CSNeutralize", [x, codes]) == 0.0).all()
    assert (evaluate("CSGroupRank", [x, codes]) == 1.0).all()
    assert (evaluate("CSGroupZScore", [x, codes]) == 0.0).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: across("CSMedian", [x], None), ConfigError, "'CSMedian' is not a cross-sectional operator"),
        (lambda x: across("CSRank", [x, x], None), PanelError, "2 columns"),
        (lambda x: across("CSRank", [x[0]], None), PanelError, "expected \\(tiles, T, 32\\)"),
        (lambda x: across("CSRank", [x > 0], None), PanelError, "dtype bool"),
        (lambda x: across("CSResidual", [x, x[:, :1]], None), PanelError, "one shape"),
        (lambda x: across("CSRank", [x], np.ones(3, dtype=bool)), PanelError, "members of shape"),
        (lambda x: across("CSRank", [x], None, (1,)), ConfigError, "parameters"),
        (lambda x: across("CSWinsorize", [x], None, (0.6,)), ConfigError, "q=0.6"),
        (lambda x: across("CSQuantile", [x], None, (math.nan,)), ConfigError, "q=nan"),
        (lambda x: across("CSBucket", [x], None, (2.5,)), ConfigError, "n=2.5; expected a whole number from 2"),
        (lambda x: across("CSRank", [x], None, threads=0), ConfigError, "threads=0"),
    ],
)
def test_a_call_that_cannot_mean_anything_is_refused(
    call: Callable[[NDArray[Any]], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call(column(np.ones((2, 3))))
