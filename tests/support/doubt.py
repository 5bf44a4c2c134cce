"""How far stock Qlib's own numbers can be trusted: a slow second evaluation that carries a bound of its rounding.

pandas and Qlib compute windows by adding what enters and taking away what leaves. What is left of a large number that
went through (a spike of 1e12, a level of 3000 that moves by 0.001) is noise, and what is computed from noise by a
comparison, a rank or a division by about zero is noise as well. The cells where that happens are found here from the
*inputs* alone: each operator is computed window by window, from scratch, and beside each value stands a bound of how
far a running computation may be from it. Nothing of the engine is used but its reader of texts, and the two results
that are to be compared are not looked at.

The bounds, with u = 2**-53 (half a unit in the last place). H is the largest magnitude so far and an eighth of the sum
of all so far (a half where a running mean drifts besides): running sums never forget, and every row adds its rounding.

* element-wise: 0 for exact inputs, both sides then do the same operation; otherwise first-order propagation. A
  comparison, sign, condition or division decided by less than its bound is *open* (bound infinite).
* Sum, Mean: 32 u H(sum |x|); 0 for equal values, and for multiples of 2**-10, whose sums are exact.
* Std, Var: 32 u H(sum of squares about the mean + level * sum of distances).
* Skew, Kurt: likewise with powers about the anchor that pandas 2 takes; open for equal values and, in pandas 2, below a
  variance of 1e-14, where the versions of pandas give 0 (-3), NaN or a number.
* Corr, Cov: 32 u H(sum |x y|), as pandas 2 takes the difference of the means of products; open where that exceeds an
  input's variance, or where a deviation is about 2e-5, at which Qlib blanks.
* Slope, Rsquare, Resi: 64 u (window + history) H(sum |y|) in Qlib's own running sums; open for a single value.
* Rank, IdxMax, IdxMin: open where two values differ by less than their bounds.
* Max, Min, Quantile, Med, Mad, WMA, EMA: the bounds of their inputs and a few u. A zero from Med or Quantile is
  -0.0 in pandas when its place in a skip list says so, and always 0.0 in the engine (docs/engine.md): where a window
  has a -0.0, its sign, which shows as that of an infinity when something is divided by it, is open.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qlib_llm_alpha.data.qlib_text import is_foreign
from qlib_llm_alpha.factor.printing import to_text
from qlib_llm_alpha.factor.tree import Call, Field, Node, Number

Array = NDArray[Any]
Leaf = Callable[[str, Sequence[str]], "Cells"]

_U = 2.0**-53
_QUIET = 2e-5
_OLD_PANDAS = int(pd.__version__.split(".", maxsplit=1)[0]) < 3
_AT_ONCE = 4_000_000
_ELEMENTWISE: dict[str, Any] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Power": np.power,
    "Greater": np.maximum,
    "Less": np.minimum,
    "Gt": np.greater,
    "Ge": np.greater_equal,
    "Lt": np.less,
    "Le": np.less_equal,
    "Eq": np.equal,
    "Ne": np.not_equal,
    "And": np.bitwise_and,
    "Or": np.bitwise_or,
    "Not": np.bitwise_not,
    "Abs": np.abs,
    "Log": np.log,
}
_DECAYS = ("Mean", "Sum", "Std", "Var", "Max", "Min", "Med", "EMA")


@dataclass(frozen=True)
class Cells:
    """A series for each instrument.

    Parameters
    ----------
    value : array, (T, N)
        In the type Qlib has; NaN outside the rows that exist.
    bound : array, (T, N) float64
        How far Qlib may be from ``value``; infinite: open.
    first, stop : array, (N,) int
        Rows ``first <= t < stop`` exist.
    """

    value: Array
    bound: Array
    first: Array
    stop: Array

    @property
    def exists(self) -> Array:
        row = np.arange(len(self.value))[:, None]
        return np.asarray((row >= self.first) & (row < self.stop))


def computed(tree: Node, codes: Sequence[str], leaf: Leaf) -> Cells:
    """Return what stock Qlib gives for a formula over the whole history, with the bound.

    Parameters
    ----------
    tree : Node
    codes : sequence of str
    leaf : callable
        ``leaf(text, codes)`` returns the raw values of a field, of ``P(...)``, or of an operator that a user wrote.
    """
    known: dict[Any, Any] = {}

    def of(node: Node, names: tuple[str, ...]) -> Any:
        key = (node, names)
        if key not in known:
            known[key] = _node(node, names, of, leaf)
        return known[key]

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # windows without a value
        result: Cells = of(tree, tuple(codes))
        return result


def _node(node: Node, codes: tuple[str, ...], of: Callable[..., Any], leaf: Leaf) -> Any:
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Field):
        return leaf(node.name, codes)
    assert isinstance(node, Call)
    if node.op in ("P", "PRef") or is_foreign(node):
        return leaf(to_text(node), codes)
    if node.op in ("ChangeInstrument", "Mask"):
        code, inner = node.args if node.op == "ChangeInstrument" else node.args[::-1]
        return _spread(of(inner, (code.value.upper(),)), len(codes))  # type: ignore[union-attr]
    args = [of(argument, codes) for argument in node.args]
    if all(not isinstance(argument, Cells) for argument in args):
        return _ELEMENTWISE[node.op](*args)
    if node.op in _ELEMENTWISE or node.op in ("Sign", "If"):
        return _blank(_elementwise(node.op, args))
    return _blank(_windowed(node.op, args))


def _spread(one: Any, names: int) -> Any:
    if not isinstance(one, Cells):
        return one
    return Cells(*(np.repeat(part, names, axis=-1) for part in (one.value, one.bound, one.first, one.stop)))


def _blank(cells: Cells) -> Cells:
    exists = cells.exists
    value = cells.value
    if value.dtype.kind == "f":
        value = np.where(exists, value, np.array(np.nan, dtype=value.dtype))
    return Cells(value, np.where(exists, cells.bound, 0.0), cells.first, cells.stop)


def _elementwise(op: str, args: list[Any]) -> Cells:
    series = [argument for argument in args if isinstance(argument, Cells)]
    first = np.minimum.reduce([one.first for one in series])
    stop = np.maximum.reduce([one.stop for one in series])
    values = [argument.value if isinstance(argument, Cells) else argument for argument in args]
    bounds = [argument.bound if isinstance(argument, Cells) else 0.0 for argument in args]
    if op == "Sign":
        value = np.sign(values[0].astype(np.float32))
        return Cells(value, _opened(np.abs(values[0]) <= bounds[0], bounds[0]), first, stop)
    if op == "If":
        condition = np.asarray(values[0])
        value = np.where(condition, values[1], values[2])
        chosen = np.where(condition.astype(np.bool_), bounds[1], bounds[2])
        undecided = _opened(np.abs(condition.astype(np.float64)) <= bounds[0], bounds[0])
        return Cells(value, np.where(np.isinf(undecided), np.inf, chosen), first, stop)
    value = values[0] ** values[1] if op == "Power" else _ELEMENTWISE[op](*values)
    bound = _carried(op, [np.asarray(v, dtype=np.float64) for v in values], bounds, np.asarray(value, np.float64))
    exact = np.ones(value.shape, dtype=np.bool_)
    missing = np.zeros(value.shape, dtype=np.bool_)
    for one, bound_of_one in zip(values, bounds, strict=True):
        exact &= bound_of_one == 0
        missing |= np.isnan(one) & np.isfinite(bound_of_one)
    exact |= missing & np.isnan(value)
    return Cells(value, np.where(exact, 0.0, np.where(np.isnan(bound), np.inf, bound)), first, stop)


def _opened(where: Array, bound: Array) -> Array:
    return np.where((bound > 0) & where | np.isinf(bound), np.inf, 0.0)


def _carried(op: str, values: list[Array], bounds: list[Any], value: Array) -> Array:
    """Return the bound of an element-wise result; it holds where some input is not exact."""
    x, ex = values[0], np.broadcast_to(bounds[0], value.shape)
    if op == "Abs":
        return ex
    if op == "Log":
        return np.where(ex < np.abs(x), ex / (np.abs(x) - ex), np.where(ex > 0, np.inf, 0.0)) + 4 * _U * np.abs(value)
    if op == "Not":
        return _opened(ex > 0, ex)
    y, ey = values[1], np.broadcast_to(bounds[1], value.shape)
    either = np.where(np.isinf(ex) | np.isinf(ey), np.inf, 0.0)
    rounding = 2 * _U * np.abs(np.where(np.isfinite(value), value, 0.0)) + either
    if op in ("Add", "Sub"):
        return ex + ey + rounding
    if op in ("Greater", "Less"):
        return np.maximum(ex, ey)
    if op == "Mul":
        return _times(np.abs(x), ey) + _times(np.abs(y), ex) + ex * ey + rounding
    if op == "Div":
        near = ey >= np.abs(y)
        bound = (ex + _times(np.abs(value), ey)) / (np.abs(y) - ey) + rounding
        certain = np.where((ex >= np.abs(x)) & (ex > 0), np.inf, 0.0)  # x / 0: which infinity, or none
        return np.where(near, np.where(ey > 0, np.inf, certain), bound)
    if op == "Power":
        slope = _times(np.abs(y), ex) / np.abs(x) + _times(np.abs(np.log(np.abs(x))), ey)
        return np.where((ex >= np.abs(x)) & (ex > 0), np.inf, 2 * np.abs(value) * slope) + rounding
    if op in ("And", "Or"):
        return either
    return _opened(np.abs(x - y) <= ex + ey, ex + ey)  # comparisons


def _times(size: Array, bound: Array) -> Array:
    return np.where(bound == 0, 0.0, size * bound)


def _windowed(op: str, args: list[Any]) -> Cells:
    numbers = [argument for argument in args if not isinstance(argument, Cells)]
    series = [argument for argument in args if isinstance(argument, Cells)]
    window, x = numbers[0], series[0]
    if op in ("Ref", "Delta"):
        return _shifted(op, x, window)
    if op in ("Corr", "Cov"):
        return _paired(op, x, series[1], window)
    if op == "Count":
        raw = np.where(x.exists, np.asarray(x.value, np.float64), np.nan)
        both = _over(window, x.first, [raw, x.bound], lambda w, n: (np.sum(~np.isnan(w[0]), -1), _widest(w[1])))
        return Cells(both[0].astype(np.float64), np.where(np.isinf(both[1]), np.inf, 0.0), x.first, x.stop)
    raw = np.where(x.exists, np.asarray(x.value, np.float64), np.nan)
    clean = np.where(np.isfinite(raw), raw, np.nan)
    bound = np.where(np.isfinite(raw) | np.isinf(x.bound), x.bound, 0.0)
    if op in _DECAYS and 0 < window < 1:
        return _decayed(clean, bound, x, {"alpha": window})
    if op == "EMA" and window >= 1:
        return _decayed(clean, bound, x, {"span": window})
    if op in ("Slope", "Rsquare", "Resi"):
        value, error = _line(op, clean, bound, np.isinf(raw), x, window)
    else:
        value, error = _MEASURES[op](clean, bound, x, *numbers)
    return Cells(value, np.where(np.isnan(error), np.inf, error), x.first, x.stop)


def _over(window: int, first: Array, inputs: Sequence[Array], measure: Callable[..., Any]) -> list[Array]:
    """Apply ``measure(windows, lengths)`` to every window, some rows at a time; the newest value is last."""
    rows, names = inputs[0].shape
    width = min(window or rows, rows)
    padded = [np.concatenate([np.full((width - 1, names), np.nan), np.asarray(one, np.float64)]) for one in inputs]
    step = max(1, _AT_ONCE // (names * width))
    parts = []
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        windows = [sliding_window_view(one[start : stop + width - 1], width, axis=0) for one in padded]
        row = np.arange(start, stop)[:, None]
        length = np.clip(np.minimum(row - first + 1, width), 0, None)
        parts.append(measure(windows, length))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _lost(ulps: int, x: Array, each: int = 4) -> Array:
    """Return, in units of u, what a running sum of magnitude ``x`` may have lost up to each row."""
    return ulps * _so_far(x) + each * np.cumsum(np.where(np.isfinite(x), x, 0.0), axis=0)


def _so_far(x: Array) -> Array:
    return np.maximum.accumulate(np.where(np.isnan(x), 0.0, x), axis=0)


def _widest(bounds: Array) -> Array:
    return np.fmax.reduce(np.nan_to_num(bounds, nan=0.0, posinf=np.inf), axis=-1)


def _basics(w: list[Array]) -> tuple[Array, ...]:
    """Return count, sum, sum of sizes, sums of distances to the mean and of their squares, largest bound, if equal.

    Equal are exact values only: what came out of a computation may be equal here and not there.
    """
    x = w[0]
    n = np.isfinite(x).sum(-1)
    total, size = np.nansum(x, -1), np.nansum(np.abs(x), -1)
    apart = np.abs(x - (total / n)[..., None])
    equal = np.fmin.reduce(x, -1) == np.fmax.reduce(x, -1)
    apart, widest = np.where(equal[..., None], 0.0, apart), _widest(w[1])
    return n, total, size, np.nansum(apart, -1), np.nansum(apart**2, -1), widest, equal & (widest == 0)


def _level(op: str) -> Callable[..., tuple[Array, Array]]:
    def measured(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
        n, total, size, _, _, widest, equal = _over(window, cells.first, [x, ex], lambda w, _: _basics(w))
        value = np.where(n > 0, total / n if op == "Mean" else total, np.nan)
        round_numbers = np.cumsum(np.nan_to_num(x * 1024) % 1 != 0, axis=0) == 0
        noise = np.where(equal | round_numbers & (_so_far(size) < 2.0**40), 0.0, _U * _lost(32, size))
        noise = noise + np.where(np.isinf(_so_far(ex)), np.inf, 0.0)
        error = (noise + n * widest) / (n if op == "Mean" else 1)
        return value, np.where(n > 0, error, np.where(np.isinf(widest), np.inf, 0.0))

    return measured


def _spread_noise(n: Array, size: Array, apart: Array, squares: Array, ex: Array, equal: Array) -> Array:
    """Return the bound of a running sum of squares about the mean."""
    level = np.where(n > 0, size / np.maximum(n, 1), 0.0)
    noise = _U * _lost(32, squares + level * apart, each=16)  # the running mean drifts besides
    if _OLD_PANDAS:
        calm = equal
    else:
        # pandas 3 starts again when next to nothing is left of what was there; equal values then give exactly 0.
        before = pd.DataFrame(np.where(squares > 0, squares, np.nan)).ffill().fillna(0.0).to_numpy()
        calm = equal & (noise <= 1e-13 * before) | equal & (noise == 0)
    return np.where(calm, 0.0, noise) + np.where(np.isinf(_so_far(ex)), np.inf, 0.0)


def _deviation(op: str) -> Callable[..., tuple[Array, Array]]:
    def measured(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
        value, error = _variance(x, ex, cells, window)
        if op == "Var":
            return value, error
        root = np.sqrt(value)
        return root, np.minimum(np.sqrt(error), np.where(error > 0, error / (2 * root), 0.0))

    return measured


def _variance(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
    n, _, size, apart, squares, widest, equal = _over(window, cells.first, [x, ex], lambda w, _: _basics(w))
    noise = _spread_noise(n, size, apart, squares, ex, equal) + 2 * apart * widest + n * widest**2
    value = np.where(n > 1, squares / (n - 1), np.nan)
    return value, np.where(n > 1, noise / (n - 1), np.where(np.isinf(widest), np.inf, 0.0))


def _shape(op: str) -> Callable[..., tuple[Array, Array]]:
    power = 3 if op == "Skew" else 4

    def measured(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
        mean = np.nanmean(x, axis=0)
        anchor = np.where(np.nanmin(x, axis=0) - mean > -1e5, np.round(mean), 0.0)

        def measure(w: list[Array], _: Array) -> tuple[Array, ...]:
            n, total, size, apart, squares, widest, equal = _basics(w)
            away = w[0] - (total / n)[..., None]
            raised = [np.nansum(np.abs(w[2]) ** k, -1) / n for k in range(1, power + 1)]
            return n, size, apart, squares, widest, equal, np.nansum(away**power, -1) / n, *raised

        found = _over(window, cells.first, [x, ex, x - anchor], measure)
        n, _, apart, squares, widest, equal, moment, *raised = found
        variance = squares / n
        raw = [_lost(64, one) / 64 for one in raised]
        noise = 64 * _U * (raw[-1] + 3 * raw[0] * raw[-2] + raw[0] ** power)
        noise2 = 64 * _U * (raw[1] + raw[0] ** 2) + 2 * apart * widest / n + widest**2
        if op == "Skew":
            factor = np.sqrt(n * (n - 1.0)) / (n - 2.0)
            value = factor * moment / variance**1.5
        else:
            factor = (n * n - 1.0) / ((n - 2.0) * (n - 3.0))
            value = factor * moment / variance**2 - 3 * (n - 1.0) ** 2 / ((n - 2.0) * (n - 3.0))
        carried = power * widest * np.where(n > 0, squares / n, 0.0) ** ((power - 1) / 2) * np.sqrt(n)
        error = np.abs(factor) * (noise + carried) / variance ** (power / 2)
        error = error + (np.abs(value) + 3) * power / 2 * noise2 / variance
        enough = n >= power
        tiny = equal | (variance <= noise2)
        if _OLD_PANDAS:
            tiny = tiny | (variance <= 1e-14 + noise2)
        else:
            tiny = (variance <= noise2) & ~equal | equal & (noise2 > 1e-13 * _so_far(variance))
        value = np.where(enough & ~equal, value, np.nan)
        error = np.where(enough, np.where(tiny, np.inf, np.where(equal, 0.0, error)), 0.0)
        return value, error + np.where(np.isinf(_so_far(ex)), np.inf, 0.0)

    return measured


def _paired(op: str, x: Cells, y: Cells, window: int) -> Cells:
    first, stop = np.minimum(x.first, y.first), np.maximum(x.stop, y.stop)
    raw = [np.where(one.exists, np.asarray(one.value, np.float64), np.nan) for one in (x, y)]
    clean = [np.where(np.isfinite(one), one, np.nan) for one in raw]
    both = np.isfinite(raw[0]) & np.isfinite(raw[1])
    a, b = (np.where(both, one, np.nan) for one in raw)
    ea, eb = (
        np.where(np.isfinite(v) | np.isinf(one.bound), one.bound, 0.0) for v, one in zip(raw, (x, y), strict=True)
    )

    def measure(w: list[Array], _: Array) -> tuple[Array, ...]:
        n, total, size, apart, squares, widest, equal = _basics(w[:2])
        _, total_b, size_b, apart_b, squares_b, widest_b, equal_b = _basics(w[2:])
        away, away_b = w[0] - (total / n)[..., None], w[2] - (total_b / n)[..., None]
        common = np.where(equal | equal_b, 0.0, np.nansum(away * away_b, -1))
        products = np.nansum(np.abs(w[0] * w[2]), -1)
        return n, size, apart, squares, widest, equal, size_b, apart_b, squares_b, widest_b, equal_b, common, products

    found = _over(window, first, [a, ea, b, eb], measure)
    n, size, apart, squares, widest, equal, size_b, apart_b, squares_b, widest_b, equal_b, common, products = found
    if _OLD_PANDAS:
        noise = _U * (_lost(32, products) + _lost(32, size) * _so_far(size_b) / np.maximum(n, 1))
    else:
        level, level_b = size / np.maximum(n, 1), size_b / np.maximum(n, 1)
        noise = _U * _lost(32, np.sqrt(squares * squares_b) + level * apart_b + level_b * apart, each=16)
        noise = np.where((equal | equal_b) & (noise <= 1e-13 * _so_far(np.sqrt(squares * squares_b))), 0.0, noise)
    noise = noise + apart * widest_b + apart_b * widest + n * widest * widest_b
    open_ = np.isinf(_so_far(ea)) | np.isinf(_so_far(eb))
    value, error = common / (n - 1.0), noise / (n - 1.0)
    blank = np.zeros(value.shape, dtype=np.bool_)
    if op == "Corr":
        spreads = []
        for one, e, s, ap, sq, eq, wide in (
            (clean[0], ea, size, apart, squares, equal, widest),
            (clean[1], eb, size_b, apart_b, squares_b, equal_b, widest_b),
        ):
            spread = _spread_noise(n, s, ap, sq, e, eq) + 2 * ap * wide + n * wide**2
            open_ = open_ | (n > 1) & (sq <= spread)
            spreads.append(spread / sq)
            variance, off = _variance(one, e, Cells(one, e, first, stop), window)
            deviation = np.sqrt(variance)
            margin = np.minimum(np.sqrt(off), np.where(off > 0, off / (2 * deviation), 0.0)) + 1e-12 * _QUIET
            open_ = open_ | (np.abs(deviation - _QUIET) <= margin)
            blank = blank | (deviation + margin < _QUIET)
        scale = np.sqrt(squares * squares_b)
        value = common / scale
        error = noise / scale + (np.abs(value) + noise / scale) * (spreads[0] + spreads[1]) / 2
        open_ = open_ & ~(blank & ~np.isinf(_so_far(ea)) & ~np.isinf(_so_far(eb)))
        open_ = open_ | (equal | equal_b) & (n > 1) & ~blank
    value = np.where((n > 1) & ~blank, value, np.nan)
    error = np.where(open_, np.inf, np.where((n > 1) & ~blank, error, 0.0))
    return Cells(value, np.where(np.isnan(error), np.inf, error), first, stop)


def _line(op: str, x: Array, ex: Array, infinite: Array, cells: Cells, window: int) -> tuple[Array, Array]:
    rows = len(x)
    width = min(window or rows, rows)
    place = np.arange(1.0 - width, 1.0)

    def measure(w: list[Array], _: Array) -> tuple[Array, ...]:
        n, total, size, apart, squares, widest, equal = _basics(w)
        places = np.where(np.isfinite(w[0]), place, np.nan)
        middle = np.nansum(places, -1) / n
        away = places - middle[..., None]
        y = np.where(equal[..., None], 0.0, w[0] - (total / n)[..., None])
        spread_x = np.nansum(away**2, -1)
        return n, size, apart, squares, widest, middle, spread_x, np.nansum(away * y, -1), y[..., -1]

    found = _over(window, cells.first, [x, ex], measure)
    n, size, apart, squares, widest, middle, spread_x, common, newest = found
    scale = _U * _lost(64, size)
    noise = (2 * width + rows) * scale + width * n * widest  # of the sum of place times value
    slope = common / spread_x
    slope_error = noise / spread_x
    if op == "Slope":
        value, error = slope, slope_error
    elif op == "Resi":
        value = newest - slope * (0.0 - middle)
        error = slope_error * (np.abs(middle) + width) + scale + 2 * widest
        value = np.where(np.isfinite(x), value, np.nan)
    else:
        value = common**2 / (spread_x * squares)
        spread_noise = (
            _U * (_lost(64, squares + size**2 / np.maximum(n, 1)) + _lost(64, size) * size) + 2 * apart * widest
        )
        share = noise / np.sqrt(spread_x * squares)
        error = 2 * np.sqrt(value) * share + share**2 + (value + share) * spread_noise / squares
        error = np.where(squares <= 2 * spread_noise, np.inf, error)
        if window:
            variance, off = _variance(x, ex, cells, window)
            deviation = np.sqrt(variance)
            margin = np.minimum(np.sqrt(off), np.where(off > 0, off / (2 * deviation), 0.0)) + 1e-12 * _QUIET
            blank = deviation + margin < _QUIET
            value = np.where(blank, np.nan, value)
            error = np.where(blank, 0.0, np.where(np.abs(deviation - _QUIET) <= margin, np.inf, error))
    seen = np.cumsum(np.isfinite(x), axis=0)
    error = np.where((n == 1) & (seen > 0), np.inf, error)  # a difference of equal sums, divided by 0
    error = np.where((n == 1) & (seen == 1) & np.isfinite(x), 0.0, error)
    value = np.where(n > 1, value, np.nan)
    error = np.where(n < 1, 0.0, error)
    if op == "Resi":
        error = np.where(np.isfinite(x) | np.isinf(ex), error, 0.0)
    spoiled = np.cumsum(infinite, axis=0) > 0
    error = np.where(spoiled, 0.0, error + np.where(np.isinf(_so_far(ex)), np.inf, 0.0))
    return np.where(spoiled, np.nan, value), error


def _decayed(x: Array, ex: Array, cells: Cells, weight: dict[str, Any]) -> Cells:
    value = np.full(x.shape, np.nan)
    for name, (first, stop) in enumerate(zip(cells.first, cells.stop, strict=True)):
        value[first:stop, name] = pd.Series(x[first:stop, name]).ewm(min_periods=1, **weight).mean()
    sizes = _so_far(np.abs(x))
    same = np.fmax.accumulate(x, axis=0) == np.fmin.accumulate(x, axis=0)
    return Cells(value, _so_far(ex) + np.where(same, 4 * _U, 16 * _U) * sizes, cells.first, cells.stop)


def _expanding_ema(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
    def measure(w: list[Array], length: Array) -> tuple[Array, Array]:
        age = np.arange(w[0].shape[-1] - 1, -1, -1.0)
        weights = (1 - 2 / (1 + length[..., None])) ** age * (age < length[..., None])
        weights /= weights.sum(-1, keepdims=True)
        filled = np.isfinite(w[0]).any(-1)
        return np.where(filled, np.nansum(weights * w[0], -1), np.nan), _widest(w[1])

    value, widest = _over(window, cells.first, [x, ex], measure)
    return value, widest + 16 * _U * _so_far(np.abs(x))


def _extreme(op: str) -> Callable[..., tuple[Array, Array]]:
    reduce = np.fmax.reduce if op.endswith("Max") else np.fmin.reduce

    def measured(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
        def measure(w: list[Array], length: Array) -> tuple[Array, ...]:
            best = reduce(w[0], -1)
            if not op.startswith("Idx"):
                return best, _widest(w[1])
            width = w[0].shape[-1]
            inside = np.arange(width) >= width - length[..., None]
            missing = np.isnan(w[0]) & inside
            at = np.where(missing.any(-1), missing.argmax(-1), (w[0] == best[..., None]).argmax(-1))
            place = np.where(np.isnan(best), np.nan, at - (width - length) + 1.0)
            bound = np.nan_to_num(w[1], nan=0.0, posinf=np.inf)
            own = np.take_along_axis(bound, np.where(np.isnan(best), 0, at)[..., None], -1)
            rivals = (np.abs(w[0] - best[..., None]) <= bound + own) & (bound + own > 0)
            rivals[np.arange(width) == at[..., None]] = False
            undecided = np.where(missing.any(-1), np.isinf(_widest(w[1])), rivals.any(-1) | np.isinf(_widest(w[1])))
            return place, np.where(undecided, np.inf, 0.0)

        found = _over(window, cells.first, [x, ex], measure)
        return found[0], found[1]

    return measured


def _rank(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
    def measure(w: list[Array], _: Array) -> tuple[Array, Array]:
        newest = w[0][..., -1:]
        n = np.isfinite(w[0]).sum(-1)
        below, equal = (w[0] < newest).sum(-1), (w[0] == newest).sum(-1)
        bound = np.nan_to_num(w[1], nan=0.0, posinf=np.inf)
        near = (np.abs(w[0] - newest) <= bound + bound[..., -1:]) & (bound + bound[..., -1:] > 0)
        near[..., -1] = False
        value = np.where(np.isnan(newest[..., 0]), np.nan, (below + (equal + 1) / 2) / n)
        return value, np.where(near.any(-1) | np.isinf(_widest(w[1])), np.inf, 0.0)

    value, bound = _over(window, cells.first, [x, ex], measure)
    return value, bound


def _quantile(x: Array, ex: Array, cells: Cells, window: int, share: float = 0.5) -> tuple[Array, Array]:
    def measure(w: list[Array], _: Array) -> tuple[Array, Array]:
        negative = ((w[0] == 0) & np.signbit(w[0])).any(-1)
        value = np.nanquantile(w[0], share, axis=-1)
        sign = np.where(negative & (value == 0), np.nextafter(0.0, 1.0), 0.0)
        return value, _widest(w[1]) + 8 * _U * np.nansum(np.abs(w[0]), -1) * (value != 0) + sign

    value, bound = _over(window, cells.first, [x, ex], measure)
    return value, bound


def _mad(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
    def measure(w: list[Array], _: Array) -> tuple[Array, Array]:
        n, _, size, apart, _, widest, _ = _basics(w)
        return np.where(n > 0, apart / n, np.nan), 2 * widest + 8 * _U * size

    value, bound = _over(window, cells.first, [x, ex], measure)
    return value, bound


def _wma(x: Array, ex: Array, cells: Cells, window: int) -> tuple[Array, Array]:
    def measure(w: list[Array], length: Array) -> tuple[Array, Array]:
        weights = np.arange(1.0 - w[0].shape[-1], 1.0) + length[..., None]
        weights = np.clip(weights, 0, None) / (length * (length + 1) / 2)[..., None]
        return np.nanmean(weights * w[0], axis=-1), _widest(w[1]) + 8 * _U * np.nansum(np.abs(w[0]), -1)

    value, bound = _over(window, cells.first, [x, ex], measure)
    return value, bound


def _shifted(op: str, x: Cells, shift: int) -> Cells:
    value = x.value if x.value.dtype.kind == "f" else np.asarray(x.value, np.float64)
    value = np.where(x.exists, value, np.array(np.nan, dtype=value.dtype))
    moved, bound = np.full_like(value, np.nan), np.zeros(value.shape)
    if shift == 0:
        rows, names = np.minimum(x.first, len(value) - 1), np.arange(value.shape[1])
        moved[:], bound[:] = value[rows, names], x.bound[rows, names]
    elif shift > 0:
        moved[shift:], bound[shift:] = value[:-shift], x.bound[:-shift]
    else:
        moved[:shift], bound[:shift] = value[-shift:], x.bound[-shift:]
    if op == "Ref":
        return Cells(moved, bound, x.first, x.stop)
    result = value - moved
    error = x.bound + bound
    error = np.where(error > 0, error + _U * np.abs(np.where(np.isfinite(result), result, 0.0)), 0.0)
    return Cells(result, error, x.first, x.stop)


_MEASURES: dict[str, Callable[..., tuple[Array, Array]]] = {
    "Mean": _level("Mean"),
    "Sum": _level("Sum"),
    "Std": _deviation("Std"),
    "Var": _deviation("Var"),
    "Skew": _shape("Skew"),
    "Kurt": _shape("Kurt"),
    "Max": _extreme("Max"),
    "Min": _extreme("Min"),
    "IdxMax": _extreme("IdxMax"),
    "IdxMin": _extreme("IdxMin"),
    "Rank": _rank,
    "Quantile": _quantile,
    "Med": _quantile,
    "Mad": _mad,
    "WMA": _wma,
    "EMA": _expanding_ema,
}
