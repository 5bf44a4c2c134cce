"""What every kernel of the engine owes it; the subjects are found, so a new kernel is held to it at once.

How many series and numbers one takes is read from its row in the operator table or, for an operator that only Qlib has,
from Qlib's class. Whether the numbers are right is for `tests/engine/kernels/`; here stands what holds for all of them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from qlib.data.ops import OpsList

import qlib_llm_alpha.engine.kernels
from qlib_llm_alpha.engine import graph
from qlib_llm_alpha.engine.across import ACROSS
from qlib_llm_alpha.engine.kernels.registry import GROUPS, KERNELS, LANES, Group, Kernel
from qlib_llm_alpha.factor.operators import OPERATORS

for found in pkgutil.iter_modules(qlib_llm_alpha.engine.kernels.__path__):
    importlib.import_module(f"qlib_llm_alpha.engine.kernels.{found.name}")

QLIB = {operator.__name__: operator for operator in OpsList}
# What Qlib's operators become for a window between 0 and 1, or of 0: no names of the language.
FORMS_OF_A_WINDOW: dict[str, tuple[float, ...]] = {"Ewm": (0.3,), "ExpandingEMA": (), "ExpandingRsquare": ()}
NUMBERS = {"fraction": 0.3}
ROWS = 80
CHANGED = 50
# Below these Qlib refuses to build the operator, and so does the graph.
SMALLEST = {"Skew": 3, "Kurt": 4}

KINDS = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
EACH = pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda kernel: kernel.name)


def numbers_of(name: str) -> tuple[float, ...]:
    """Return a number for each parameter behind the window."""
    if name in FORMS_OF_A_WINDOW:
        return FORMS_OF_A_WINDOW[name]
    row = OPERATORS.get(name)
    return tuple(NUMBERS[kind] for _, kind in row.arguments if kind in NUMBERS) if row else ()


def windows_of(name: str) -> list[int]:
    """Return the smallest window, a usual one, one of all rows, and one of more rows than there are."""
    return [SMALLEST.get(name, 1), 5, ROWS, ROWS + 1, 10 * ROWS]


def market(kernel: Kernel, kind: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the kernel's tiles and where each lane begins: gaps, infinities, ties, runs, late starts, empty lanes."""
    rng = np.random.default_rng(11)
    first = np.zeros(LANES, dtype=np.int64)
    first[8:16] = [1, 2, 5, 20, CHANGED, 60, ROWS - 1, 3]
    rows = np.arange(ROWS)[:, None]
    tiles = []
    for number in range(kernel.inputs):
        tile = rng.normal(10, 2, (ROWS, LANES))
        tile[:, 16:20] = np.round(tile[:, 16:20])
        tile[30:45, 20:22] = 7.25
        tile[rng.random((ROWS, LANES)) < 0.1] = np.nan
        tile[:, 22] = np.where(rows[:, 0] % 9 == number, np.inf, tile[:, 22])
        tile[40:, 23] = np.nan
        tile[rows < first] = np.nan
        tile[:, LANES - 2 :] = np.nan
        tiles.append(tile.astype(kind))
    return tiles, first


def run(kernel: Kernel, tiles: Sequence[np.ndarray], first: np.ndarray, window: int) -> np.ndarray:
    # What a buffer held before must not shine through.
    out = np.full(tiles[0].shape, 123.0)
    kernel.run(*tiles, out, window, first, *numbers_of(kernel.name))
    return out


@EACH
def test_a_kernel_is_named_as_in_the_language_or_in_qlib(kernel: Kernel) -> None:
    assert kernel.name in OPERATORS or kernel.name in QLIB or kernel.name in FORMS_OF_A_WINDOW


@EACH
def test_it_takes_the_arguments_of_its_operator(kernel: Kernel) -> None:
    row = OPERATORS.get(kernel.name)
    if row is not None:
        kinds = [kind for _, kind in row.arguments]
        assert kinds[: kernel.inputs + 1] == ["varying"] * kernel.inputs + ["window"]
        assert len(numbers_of(kernel.name)) == len(kinds) - kernel.inputs - 1
    elif kernel.name in QLIB:
        assert len(inspect.signature(QLIB[kernel.name]).parameters) == kernel.inputs + 1
    expected = kernel.inputs + len(("out", "window", "first")) + len(numbers_of(kernel.name))
    assert len(inspect.signature(kernel.run).parameters) == expected


def test_every_windowed_operator_of_the_table_has_a_kernel() -> None:
    windowed = {row.name for row in OPERATORS.values() if "window" in dict(row.arguments).values() and not row.stock}
    assert windowed - set(KERNELS) == set()


def test_every_operator_that_is_ours_has_a_kernel_or_a_numpy_function() -> None:
    ours = {row.name for row in OPERATORS.values() if row.ours}
    assert ours - set(KERNELS) - set(graph.ELEMENTWISE) == set()


def test_every_elementwise_operator_of_the_table_is_computed() -> None:
    elementwise = {row.name for row in OPERATORS.values() if row.elementwise and not row.stock}
    assert elementwise - set(graph.ELEMENTWISE) == {"Power", "Sign", "If"}, "these three the graph knows by name"
    assert {name for name in graph.ELEMENTWISE if name not in OPERATORS} == set()


def test_the_graph_knows_every_module_of_kernels() -> None:
    modules = {kernel.run.__module__ for kernel in KERNELS.values()}
    assert [name for name in modules if not hasattr(graph, name.rpartition(".")[2])] == []


def test_cross_sections_of_the_table_and_of_the_engine_take_the_same_arguments() -> None:
    rows = {row.name: row for row in OPERATORS.values() if row.cross_sectional}
    assert set(ACROSS) == set(rows)
    for name, computed in ACROSS.items():
        kinds = [kind for _, kind in rows[name].arguments]
        assert computed.inputs == sum(kind in ("varying", "group") for kind in kinds)
        assert len(computed.parameters) == len(kinds) - computed.inputs


@KINDS
@EACH
def test_compiled_and_plain_numpy_agree(kernel: Kernel, kind: Any) -> None:
    tiles, first = market(kernel, kind)
    for window in windows_of(kernel.name):
        compiled = run(kernel, tiles, first, window)
        plain = kernel.fallback(*(tile.astype(np.float64) for tile in tiles), window, first, *numbers_of(kernel.name))
        np.testing.assert_array_equal(np.isfinite(compiled), np.isfinite(plain), err_msg=f"window {window}")
        # A difference that is 0 in exact arithmetic may leave rounding of values near 10.
        np.testing.assert_allclose(compiled, plain, rtol=1e-7, atol=1e-10, err_msg=f"window {window}")


@KINDS
@EACH
def test_later_rows_change_no_bit_of_earlier_ones(kernel: Kernel, kind: Any) -> None:
    tiles, first = market(kernel, kind)
    begins = np.minimum(first, CHANGED)
    for window in windows_of(kernel.name):
        before = run(kernel, tiles, first, window)[:CHANGED]
        cut = run(kernel, [tile[:CHANGED].copy() for tile in tiles], begins, window)
        np.testing.assert_array_equal(cut, before, err_msg=f"window {window}, later rows gone")
        for poison in (np.nan, 1e12, np.inf):
            poisoned = [tile.copy() for tile in tiles]
            for tile in poisoned:
                tile[CHANGED:] = poison
            after = run(kernel, poisoned, first, window)[:CHANGED]
            np.testing.assert_array_equal(after, before, err_msg=f"window {window}, later rows {poison}")


@KINDS
@EACH
def test_neighbours_change_no_bit_of_a_lane(kernel: Kernel, kind: Any) -> None:
    tiles, first = market(kernel, kind)
    order = np.random.default_rng(5).permutation(LANES)
    moved = [np.ascontiguousarray(tile[:, order]) for tile in tiles]
    for window in windows_of(kernel.name):
        expected = run(kernel, tiles, first, window)[:, order]
        np.testing.assert_array_equal(run(kernel, moved, first[order], window), expected, err_msg=f"window {window}")


@KINDS
@EACH
def test_the_inputs_are_left_as_they_are(kernel: Kernel, kind: Any) -> None:
    tiles, first = market(kernel, kind)
    kept = [tile.copy() for tile in tiles]
    run(kernel, tiles, first, 5)
    for tile, before in zip(tiles, kept, strict=True):
        np.testing.assert_array_equal(tile, before)


@KINDS
@EACH
def test_an_instrument_has_no_value_before_it_begins(kernel: Kernel, kind: Any) -> None:
    tiles, first = market(kernel, kind)
    out = run(kernel, tiles, first, 5)
    assert np.isnan(out[np.arange(ROWS)[:, None] < first]).all()
    assert (np.isnan(out[:, LANES - 2 :]) | (out[:, LANES - 2 :] == 0)).all(), "lanes without a value"


@KINDS
@EACH
def test_a_late_start_is_the_same_as_a_series_that_begins_there(kernel: Kernel, kind: Any) -> None:
    tiles, first = market(kernel, kind)
    delay = 13
    late = [np.concatenate([np.full((delay, LANES), np.nan, dtype=kind), tile]) for tile in tiles]
    for window in (SMALLEST.get(kernel.name, 1), 5, 10 * ROWS):
        expected = run(kernel, tiles, first, window)
        # Sums are added up again at fixed rows, none of which lies within these.
        np.testing.assert_allclose(run(kernel, late, first + delay, window)[delay:], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: "+".join(group.members))
@KINDS
def test_a_group_gives_the_bits_of_its_members(group: Group, kind: Any) -> None:
    members = [KERNELS[name] for name in group.members]
    assert {member.inputs for member in members} == {1}
    tiles, first = market(members[0], kind)
    # The same member twice stands for two calls that differ in their numbers.
    numbers = [
        tuple(number + 0.4 * group.members[:place].count(name) for number in numbers_of(name))
        for place, name in enumerate(group.members)
    ]
    for window in [max(SMALLEST.get(name, 1) for name in group.members), 5, ROWS + 1]:
        outs = [np.full((ROWS, LANES), 123.0) for _ in members]
        group.run(*tiles, *outs, window, first, *(number for given in numbers for number in given))
        for member, given, out in zip(members, numbers, outs, strict=True):
            alone = np.empty((ROWS, LANES))
            member.run(*tiles, alone, window, first, *given)
            np.testing.assert_array_equal(out, alone, err_msg=f"{member.name}, window {window}")
