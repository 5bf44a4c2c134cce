"""What kernels are compared with: the definitions, one window after the other, in long double; and hostile tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.registry import GROUPS, KERNELS, LANES, Group

Array = NDArray[np.float64]
Lanes = NDArray[np.int64]
Window = NDArray[np.longdouble]

REST = np.longdouble(2e-05)
"""Qlib's limit for a deviation that counts as none."""


def rows_of_windows(x: Array, window: int, first: Lanes) -> Any:
    """Yield row, lane and the rows of its window that exist, in long double, infinite values as NaN."""
    wide = np.where(np.isfinite(x), x, np.nan).astype(np.longdouble)
    for j in np.flatnonzero(~np.isnan(x).all(axis=0)):
        for t in range(int(first[j]), x.shape[0]):
            yield t, j, wide[max(int(first[j]), t - window + 1) : t + 1, j]


def by_window(measure: Callable[[Window], Any], x: Array, window: int, first: Lanes) -> Array:
    """Apply ``measure`` to every window that holds a value; elsewhere NaN."""
    out = np.full(x.shape, np.nan)
    for t, j, values in rows_of_windows(x, window, first):
        if not np.isnan(values).all():
            out[t, j] = float(measure(values))
    return out


def by_joint_window(
    measure: Callable[[Window, Window, Window, Window], Any], x: Array, y: Array, window: int, first: Lanes
) -> Array:
    """Apply ``measure`` to the rows of both windows where both have a value, and to both whole windows."""
    out = np.full(x.shape, np.nan)
    both_there = ~np.isnan(x).all(axis=0) & ~np.isnan(y).all(axis=0)
    x, y = np.where(both_there, x, np.nan), np.where(both_there, y, np.nan)
    for (t, j, u), (_, _, v) in zip(rows_of_windows(x, window, first), rows_of_windows(y, window, first), strict=True):
        both = ~np.isnan(u) & ~np.isnan(v)
        if both.any():
            out[t, j] = float(measure(u[both], v[both], present(u), present(v)))
    return out


def present(values: Window) -> Window:
    """Return the values that are not missing."""
    return values[~np.isnan(values)]


def spread(values: Window) -> Any:
    """Return the unbiased variance, exactly 0 for equal values."""
    if len(values) < 2:
        return np.nan
    if (values == values[0]).all():
        return 0.0
    return ((values - values.mean()) ** 2).sum() / (len(values) - 1)


def central(values: Window, power: int) -> Any:
    """Return the mean of a power of the distances to the mean."""
    return ((values - values.mean()) ** power).mean()


def is_constant(values: Window) -> bool:
    """Whether there is only one value, however often."""
    return bool((values == values[0]).all())


def run(name: str, *inputs: NDArray[Any], window: int, first: Lanes | None = None, parameters: Any = ()) -> Array:
    """Return what the compiled kernel writes."""
    rows = inputs[0].shape[0]
    out = np.full((rows, LANES), -777.0)
    KERNELS[name].run(*inputs, out, window, np.zeros(LANES, np.int64) if first is None else first, *parameters)
    return out


def fall_back(name: str, *inputs: NDArray[Any], window: int, first: Lanes | None = None, parameters: Any = ()) -> Array:
    """Return what the kernel's fallback makes of the inputs."""
    wide = [each.astype(np.float64) for each in inputs]
    return KERNELS[name].fallback(*wide, window, np.zeros(LANES, np.int64) if first is None else first, *parameters)


def run_group(group: Group, x: NDArray[Any], *, window: int, first: Lanes | None = None) -> list[Array]:
    """Return what the group writes, one array for each member."""
    outs = [np.full(x.shape, -777.0) for _ in group.members]
    group.run(x, *outs, window, np.zeros(LANES, np.int64) if first is None else first)
    return outs


def as_tile(*columns: Any) -> Array:
    """Return a tile with the given columns in its first lanes and nothing in the others."""
    rows = max(len(column) for column in columns)
    tile = np.full((rows, LANES), np.nan)
    for lane, column in enumerate(columns):
        tile[: len(column), lane] = column
    return tile


def assert_same_bits(one: Array, other: Array) -> None:
    """Fail unless both hold the same bits (any NaN being like any other)."""
    np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    kept = ~np.isnan(one)
    np.testing.assert_array_equal(one[kept].view(np.int64), other[kept].view(np.int64))


def assert_near(result: Array, expected: Array, scale: Any, tolerance: float = 1e-9) -> None:
    """Fail unless NaN stand at the same places and differences are small against ``scale``."""
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    limit = np.broadcast_to(tolerance * np.asarray(scale, dtype=np.float64), result.shape)
    kept = ~np.isnan(expected)
    worst = np.max((np.abs(result - expected) - limit)[kept], initial=-1.0)
    assert worst <= 0.0, f"off by {worst} beyond the tolerance"


def _lane(kind: str, rows: int, random: np.random.Generator) -> Array:
    noise = random.standard_normal(rows)
    made: dict[str, Callable[[], Array]] = {
        "prices": lambda: 20.0 * np.exp(np.cumsum(0.03 * noise)),
        "returns": lambda: 0.02 * noise,
        "tight": lambda: 3000.0 + 0.003 * noise,
        "volume": lambda: np.exp(12.0 + 2.0 * noise),
        "spikes": lambda: np.where(random.random(rows) < 0.02, 1e12, 1e6 * (1.0 + 0.1 * noise)),
        "ties": lambda: np.round(noise),
        "flat": lambda: np.repeat(random.standard_normal(rows // 20 + 1), 20)[:rows] / 3.0,
        "constant": lambda: np.full(rows, 0.1),
        "zeros": lambda: np.where(random.random(rows) < 0.7, 0.0, noise),
        "tiny": lambda: 1e-7 * noise,
        "steps": lambda: np.where(np.arange(rows) < rows // 2, 1e-3, 1e5) * (1.0 + 0.01 * noise),
        "fading": lambda: 10.0 ** (6.0 - np.arange(rows) % 97 / 8.0) * (1.0 + 0.1 * noise),
        "nothing": lambda: np.full(rows, np.nan),
    }
    return made[kind]()


KINDS = (
    "prices",
    "returns",
    "tight",
    "volume",
    "spikes",
    "ties",
    "flat",
    "constant",
    "zeros",
    "tiny",
    "steps",
    "fading",
    "nothing",
)


@st.composite
def tiles(draw: st.DrawFn, *, infinite: bool = True, rows: int = 120) -> tuple[NDArray[Any], Lanes]:
    """Draw a tile in which every lane is of some kind, with missing rows and a late beginning, and its ``first``."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.sampled_from([1, 7, rows // 3, rows]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shift = draw(st.integers(0, LANES - 1))
    order = random.permutation(len(KINDS))
    tile = np.stack([_lane(KINDS[order[lane % len(KINDS)]], rows, random) for lane in range(LANES)], axis=1)
    missing = draw(st.sampled_from([0.0, 0.02, 0.3]))
    tile[random.random(tile.shape) < missing * (random.random(LANES) < 0.7)] = np.nan
    if infinite and draw(st.booleans()):
        where = random.random(tile.shape) < 0.01 * (random.random(LANES) < 0.4)
        tile[where] = random.choice([np.inf, -np.inf], where.sum())
    first = np.where(random.random(LANES) < 0.5, 0, random.integers(0, rows, LANES)).astype(np.int64)
    tile[np.arange(rows)[:, None] < first] = np.nan
    # The last tile of a panel has lanes of nobody, and the reference is slow: only some neighbours have data.
    tile[:, (np.arange(LANES) + shift) % LANES >= draw(st.sampled_from([6, 9]))] = np.nan
    return np.ascontiguousarray(tile.astype(dtype)), first


windows = st.one_of(st.integers(1, 12), st.integers(13, 130), st.just(10_000))
"""Windows; the last is beyond every tile, so that it expands."""


def long_tile(seed: int, rows: int = 560) -> NDArray[Any]:
    """Return a tile with every kind of lane, long enough for lanes to be added up again by the calendar."""
    random = np.random.default_rng(seed)
    tile = as_tile(*[_lane(kind, rows, random) for kind in KINDS])
    tile[random.random(tile.shape) < 0.05] = np.nan
    return tile


def largest(x: NDArray[Any], window: int, first: Lanes) -> Array:
    """Return the largest absolute value of each window: the scale of its mean."""
    return by_window(lambda values: np.abs(present(values)).max(), x, window, first)


def assert_same_bits_as_group(name: str, x: NDArray[Any], window: int, first: Lanes) -> None:
    """Fail unless every group writes for its member ``name`` what the kernel alone writes."""
    alone = run(name, x, window=window, first=first)
    found = [group for group in GROUPS if name in group.members and all(member in KERNELS for member in group.members)]
    assert found, f"no group has a member {name}"
    for group in found:
        assert_same_bits(run_group(group, x, window=window, first=first)[group.members.index(name)], alone)


def assert_blind_to_later_rows(name: str, x: NDArray[Any], window: int, first: Lanes, parameters: Any = ()) -> None:
    """Fail if the bits of the first rows change when later rows are others, or are not there at all."""
    inputs = [x, np.roll(x, 1, axis=1).copy()][: KERNELS[name].inputs]
    first = first if len(inputs) == 1 else np.zeros(LANES, np.int64)
    whole = run(name, *inputs, window=window, first=first, parameters=parameters)
    for keep in {len(x) // 3, len(x) // 2, len(x) - 1} - {0}:
        changed = [each.copy() for each in inputs]
        for number, each in enumerate(changed):
            each[keep:] = np.where(np.isnan(each[keep:]), 7.0 + number, 1e9 * (number + 1.0))
        short = [np.ascontiguousarray(each[:keep]) for each in inputs]
        for others in (changed, short):
            begin = np.minimum(first, len(others[0]) - 1)
            again = run(name, *others, window=window, first=begin, parameters=parameters)
            exists = first < keep
            assert_same_bits(again[:keep][:, exists], whole[:keep][:, exists])


def assert_blind_to_neighbours(name: str, x: NDArray[Any], window: int, first: Lanes, parameters: Any = ()) -> None:
    """Fail if the bits of an instrument change when others stand beside it."""
    inputs = [x, np.roll(x, 1, axis=1).copy()][: KERNELS[name].inputs]
    first = first if len(inputs) == 1 else np.zeros(LANES, np.int64)
    together = run(name, *inputs, window=window, first=first, parameters=parameters)
    there = np.flatnonzero(~np.isnan(np.stack(inputs)).all(axis=1).any(axis=0))
    for lane in there[[0, len(there) // 2]] if len(there) else ():
        alone = [np.full_like(each, np.nan) for each in inputs]
        for each, source in zip(alone, inputs, strict=True):
            each[:, 5] = source[:, lane]
        begin = np.zeros(LANES, np.int64)
        begin[5] = first[lane]
        again = run(name, *alone, window=window, first=begin, parameters=parameters)
        assert_same_bits(again[:, 5].copy(), together[:, lane].copy())


def assert_forgets(name: str, parameters: Any = ()) -> None:
    """Fail unless rows from 256 on have the same bits whatever stood before their windows."""
    random = np.random.default_rng(6)
    inputs = [50.0 + np.cumsum(random.standard_normal((300, LANES)), axis=0) for _ in range(KERNELS[name].inputs)]
    others = [each.copy() for each in inputs]
    for each in others:
        each[:200] = each[200] + random.standard_normal((200, LANES))
    one = run(name, *inputs, window=20, parameters=parameters)
    assert_same_bits(run(name, *others, window=20, parameters=parameters)[256:].copy(), one[256:].copy())
