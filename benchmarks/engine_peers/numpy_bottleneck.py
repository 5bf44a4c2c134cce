"""numpy and bottleneck on dense float64 arrays, names x days, each thread a part of the names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bottleneck as bn
import numpy as np
from numpy.typing import NDArray

from engine_peers.competitor import Competitor, NotExpressibleError, Result, is_condition, translated, tree
from engine_peers.market import FIELDS, Market
from qlib_llm_alpha.factor.tree import Call, Node

Array = NDArray[Any]

ELEMENTWISE: dict[str, Callable[..., Array]] = {
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
    "And": np.logical_and,
    "Or": np.logical_or,
    "Abs": np.abs,
    "Log": np.log,
    "Sign": np.sign,
    "If": np.where,
}
MOVING: dict[str, Callable[..., Array]] = {
    "Mean": bn.move_mean,
    "Sum": bn.move_sum,
    "Count": bn.move_sum,
    "Max": bn.move_max,
    "Min": bn.move_min,
    "Med": bn.move_median,
}
WINDOWED = frozenset(MOVING) | {"Std", "Var", "Ref", "Delta", "Corr", "Cov", "Rank", "Slope", "Resi", "Rsquare", "WMA"}
WINDOWED |= {"IdxMax", "IdxMin"}


class NumpyBottleneck(Competitor):
    """Every operator is a pass over the panel; branches shared by two expressions are computed once for each."""

    versions = ("numpy", "Bottleneck")

    def __init__(self, market: Market, threads: int) -> None:
        super().__init__(market, threads)
        fields = {name: np.ascontiguousarray(market.field(name).T, np.float64) for name in FIELDS}
        bounds = np.linspace(0, market.names, threads + 1).astype(int)
        self.parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        self.fields = [{name: array[part] for name, array in fields.items()} for part in self.parts]
        self.pool = ThreadPoolExecutor(threads)
        self.trees: list[Node] = []
        self.result: Result = np.empty((0, market.names, market.days), np.float32)

    def translate(self, expression: str) -> Node:
        """Return the tree, once its operators are known to exist."""
        root = tree(expression)
        translated(root, str, _supported, {})
        return root

    def compile(self, terms: Sequence[Node]) -> None:
        """Keep the trees; there is nothing to compile."""
        self.trees = list(terms)
        self.result = np.empty((len(terms), self.market.names, self.market.days), np.float32)

    def values(self) -> None:
        """Compute the trees, each thread on its names."""
        list(self.pool.map(self._compute, self.parts, self.fields))

    def sample(self, columns: Sequence[int]) -> Result:
        """Pick names."""
        return self.result[:, columns].transpose(0, 2, 1)

    def _compute(self, part: slice, fields: dict[str, Array]) -> None:
        with np.errstate(all="ignore"):
            for position, root in enumerate(self.trees):
                self.result[position, part] = translated(root, fields.__getitem__, _computed, {})


def _supported(call: Call, arguments: list[Any]) -> str:
    half = call.op == "Quantile" and arguments[2] == 0.5
    if call.op not in ELEMENTWISE and call.op not in WINDOWED and not half:
        raise NotExpressibleError(call.op)
    return call.op


def _computed(call: Call, arguments: list[Any]) -> Array:
    if call.op in ELEMENTWISE:
        return ELEMENTWISE[call.op](*arguments)
    x = arguments[0].astype(np.float64) if is_condition(call.args[0]) else arguments[0]
    if call.op in ("Corr", "Cov"):
        return _pair(call.op, x, arguments[1], arguments[2])
    window = arguments[1]
    if call.op in MOVING:
        return _moving(MOVING[call.op], x, window)
    if call.op == "Quantile":
        return _moving(bn.move_median, x, window)
    if call.op in ("Std", "Var"):
        return _moving(bn.move_std if call.op == "Std" else bn.move_var, x, window, ddof=1)
    if call.op in ("Ref", "Delta"):
        before = np.full_like(x, np.nan)
        before[:, window:] = x[:, :-window]
        return before if call.op == "Ref" else x - before
    if call.op == "Rank":
        # move_rank runs from -1 to 1 over the values that are there
        there = _moving(bn.move_sum, np.isfinite(x).astype(np.float64), window)
        rank = ((_moving(bn.move_rank, x, window) + 1) / 2 * (there - 1) + 1) / there
        rank[there == 1] = 1.0
        rank[~np.isfinite(x)] = np.nan
        return rank
    if call.op in ("IdxMax", "IdxMin"):
        return window - _moving(bn.move_argmax if call.op == "IdxMax" else bn.move_argmin, x, window)
    return _on_time(call.op, x, window)


def _moving(function: Callable[..., Array], x: Array, window: int, **options: int) -> Array:
    finite = np.isfinite(x)
    # pandas takes infinite values as missing
    clean = x if finite.all() else np.where(finite, x, np.nan)
    return function(clean, min(window, x.shape[1]), min_count=1, axis=1, **options)


def _pair(op: str, x: Array, y: Array, window: int) -> Array:
    both = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(both, x, np.nan), np.where(both, y, np.nan)
    count = _moving(bn.move_sum, both.astype(np.float64), window)
    mean_x, mean_y, mean_xy = (_moving(bn.move_mean, values, window) for values in (x, y, x * y))
    covariance = (mean_xy - mean_x * mean_y) * count / (count - 1)
    if op == "Cov":
        return covariance
    spread_x, spread_y = (_moving(bn.move_std, values, window, ddof=1) for values in (x, y))
    return np.where((spread_x > 2e-5) & (spread_y > 2e-5), covariance / (spread_x * spread_y), np.nan)


def _on_time(op: str, x: Array, window: int) -> Array:
    """Regress on the day, or weigh by it, with moving sums."""

    def summed(values: Array) -> Array:
        return _moving(bn.move_sum, values, window)

    there = np.isfinite(x).astype(np.float64)
    filled = np.where(there > 0, x, 0.0)
    day = np.arange(1.0, x.shape[1] + 1)[None]
    count, days, total, product = summed(there), summed(there * day), summed(filled), summed(filled * day)
    if op == "WMA":
        length = np.minimum(day, window)
        return (product - (day - length) * total) / (length * (length + 1) / 2) / count
    above, below = count * product - days * total, count * summed(there * day * day) - days * days
    if op == "Slope":
        return above / below
    if op == "Resi":
        return x - (total / count + above / below * (day - days / count))
    explained = above * above / below / (count * summed(filled * filled) - total * total)
    return np.where(_moving(bn.move_std, x, window, ddof=1) > 2e-5, explained, np.nan)
