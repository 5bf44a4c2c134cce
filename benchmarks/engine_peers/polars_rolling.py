"""polars: one lazy ``select`` of all expressions, each ``.over`` the name, rolling with ``min_samples=1``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine_peers.competitor import Competitor, NotExpressibleError, Result, is_condition, translated, tree
from engine_peers.market import FIELDS, Market
from qlib_llm_alpha.factor.tree import Call

ELEMENTWISE: dict[str, Callable[..., pl.Expr]] = {
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "Power": lambda x, y: x.pow(y),
    "Gt": lambda x, y: x > y,
    "Ge": lambda x, y: x >= y,
    "Lt": lambda x, y: x < y,
    "Le": lambda x, y: x <= y,
    "And": lambda x, y: x & y,
    "Or": lambda x, y: x | y,
    # horizontal extremes skip what is missing; numpy's do not
    "Greater": lambda x, y: pl.when(x.is_not_null() & y.is_not_null()).then(pl.max_horizontal(x, y)),
    "Less": lambda x, y: pl.when(x.is_not_null() & y.is_not_null()).then(pl.min_horizontal(x, y)),
    "Abs": lambda x: x.abs(),
    "Log": lambda x: x.log(),
    "Sign": lambda x: x.sign(),
    "If": lambda c, x, y: pl.when(c).then(x).otherwise(y),
}
MOVING = {
    "Mean": "rolling_mean",
    "Sum": "rolling_sum",
    "Count": "rolling_sum",
    "Std": "rolling_std",
    "Var": "rolling_var",
    "Max": "rolling_max",
    "Min": "rolling_min",
    "Med": "rolling_median",
}


def long_frame(market: Market) -> pl.DataFrame:
    """Return the rows that exist, name by name and day by day, with the columns ``name``, ``day`` and the fields."""
    exists = market.exists().T
    name, day = np.nonzero(exists)
    columns = {field: market.field(field).T[exists].astype(np.float64) for field in FIELDS}
    return pl.DataFrame({"name": name.astype(np.int32), "day": day.astype(np.int32)} | columns, nan_to_null=True)


def dense_sample(
    frame: pl.DataFrame, names: Sequence[str], rows: Any, market: Market, columns: Sequence[int]
) -> Result:
    """Return columns of a long frame as (columns, days, names)."""
    sample = np.full((len(names), market.days, len(columns)), np.nan, np.float32)
    for place, column in enumerate(columns):
        of_name = rows["name"].to_numpy() == column
        day = rows["day"].to_numpy()[of_name]
        for position, name in enumerate(names):
            sample[position, day, place] = frame[name].to_numpy()[of_name]
    return sample


class PolarsRolling(Competitor):
    """polars' own rolling functions; what it lacks (Mad, IdxMax, IdxMin) is not written in Python for it."""

    versions = ("polars",)

    def __init__(self, market: Market, threads: int) -> None:
        super().__init__(market, threads)
        self.rows = long_frame(market)
        self.terms: list[pl.Expr] = []
        self.result = self.rows

    def translate(self, expression: str) -> pl.Expr:
        """Return the expression as polars'."""
        root: pl.Expr = translated(tree(expression), pl.col, _written, {})
        return root

    def compile(self, terms: Sequence[pl.Expr]) -> None:
        """Put every expression over the names."""
        self.terms = [term.cast(pl.Float32).over("name").alias(f"f{place}") for place, term in enumerate(terms)]

    def values(self) -> None:
        """Compute all in one query."""
        self.result = self.rows.lazy().select(self.terms).collect()

    def sample(self, columns: Sequence[int]) -> Result:
        """Pick names out of the long result."""
        return dense_sample(self.result, self.result.columns, self.rows, self.market, columns)


def _written(call: Call, arguments: list[Any]) -> pl.Expr:
    op = call.op
    terms = [a if isinstance(a, pl.Expr) else pl.lit(a) for a in arguments]
    if op in ELEMENTWISE:
        return ELEMENTWISE[op](*terms)
    x = terms[0]
    if is_condition(call.args[0]):
        x = x.fill_null(value=False).cast(pl.Float64)
    if op in ("Corr", "Cov"):
        function = pl.rolling_corr if op == "Corr" else pl.rolling_cov
        return function(x, terms[1], window_size=arguments[2], min_samples=1)
    window = arguments[1]
    moving: dict[str, Any] = {"window_size": window, "min_samples": 1}
    if op in MOVING:
        rolled: pl.Expr = getattr(x, MOVING[op])(**moving)
        return rolled
    if op == "Ref":
        return x.shift(window)
    if op == "Delta":
        return x - x.shift(window)
    if op == "Quantile":
        return x.rolling_quantile(arguments[2], interpolation="linear", **moving)
    if op == "Rank":
        there = x.is_not_null().cast(pl.Float64).rolling_sum(**moving)
        return x.rolling_rank(method="average", **moving) / there
    if op == "Skew":
        return x.rolling_skew(bias=False, **moving)
    if op == "Kurt":
        return x.rolling_kurtosis(fisher=True, bias=False, **moving)
    if op == "EMA":
        decay = {"alpha": window} if 0 < window < 1 else {"span": window}
        return x.ewm_mean(adjust=True, min_samples=1, ignore_nulls=False, **decay).forward_fill()
    if op in ("Slope", "Resi", "Rsquare", "WMA"):
        return _on_time(op, x, window, moving)
    raise NotExpressibleError(op)


def _on_time(op: str, x: pl.Expr, window: int, moving: dict[str, Any]) -> pl.Expr:
    """Regress on the day, or weigh by it, with rolling sums."""

    def summed(term: pl.Expr) -> pl.Expr:
        return term.rolling_sum(**moving)

    there, filled = x.is_not_null().cast(pl.Float64), x.fill_null(0.0)
    day = pl.int_range(1, pl.len() + 1).cast(pl.Float64)
    count, days, total, product = summed(there), summed(there * day), summed(filled), summed(filled * day)
    if op == "WMA":
        length = pl.min_horizontal(day, pl.lit(float(window)))
        return (product - (day - length) * total) / (length * (length + 1) / 2) / count
    above, below = count * product - days * total, count * summed(there * day * day) - days * days
    if op == "Slope":
        return above / below
    if op == "Resi":
        return x - (total / count + above / below * (day - days / count))
    return above * above / below / (count * summed(filled * filled) - total * total)
