"""expr_codegen writes a polars program with polars_ta's functions; the program is made once a batch and then run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import polars_ta
from expr_codegen import codegen_exec
from loguru import logger

from engine_peers.competitor import Competitor, NotExpressibleError, Result, translated, tree
from engine_peers.market import FIELDS, Market
from engine_peers.polars_rolling import dense_sample, long_frame
from qlib_llm_alpha.factor.tree import Call

INFIX = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}
FUNCTIONS = {
    "Abs": "abs_",
    "Log": "log",
    "Sign": "sign",
    "Power": "power",
    "Greater": "max_",
    "Less": "min_",
    "If": "if_else",
    "Ref": "ts_delay",
    "Delta": "ts_delta",
    "Mean": "ts_mean",
    "Sum": "ts_sum",
    "Max": "ts_max",
    "Min": "ts_min",
    "Med": "ts_median",
    "Rank": "ts_rank",
    "Skew": "ts_skewness",
    "Kurt": "ts_kurtosis",
    "WMA": "ts_decay_linear",
    "Corr": "ts_corr",
    "Cov": "ts_covariance",
}


class ExprCodegen(Competitor):
    """No regression on time, no quantile, no EMA that starts as pandas' does."""

    versions = ("expr_codegen", "polars_ta", "polars")

    def __init__(self, market: Market, threads: int) -> None:
        super().__init__(market, threads)
        logger.remove()
        polars_ta.MIN_SAMPLES = 1
        self.rows = long_frame(market)

        self.frame = self.rows.with_columns((pl.lit(date(2010, 1, 4)) + pl.duration(days=pl.col("day"))).alias("date"))
        self.frame = self.frame.rename({"name": "asset"} | {field: field.upper() for field in FIELDS})
        self.folder = Path(tempfile.mkdtemp(prefix="expr_codegen-"))
        self.programs = 0
        self.names: list[str] = []
        self.result = self.frame

    def translate(self, expression: str) -> str:
        """Return the expression with polars_ta's names."""
        text: str = translated(tree(expression), str.upper, _written, {})
        return text

    def compile(self, terms: Sequence[str]) -> None:
        """Have the program written."""
        self.programs += 1
        self.names = [f"F_{place}" for place in range(len(terms))]
        self.source = "\n".join(f"{name} = {term}" for name, term in zip(self.names, terms, strict=True))
        self.program = self.folder / f"batch_{self.programs}.py"
        self.program.write_text(codegen_exec(None, self.source, over_null=None), encoding="utf-8")

    def values(self) -> None:
        """Run the program over all rows."""
        result = codegen_exec(self.frame, self.source, over_null=None, run_file=str(self.program))
        self.result = result.collect() if isinstance(result, pl.LazyFrame) else result

    def sample(self, columns: Sequence[int]) -> Result:
        """Pick names out of the long result."""
        # the program may have sorted the rows
        rows = self.result.select(pl.col("asset").alias("name"), "day")
        return dense_sample(self.result, self.names, rows, self.market, columns)


def _written(call: Call, arguments: list[Any]) -> str:
    op = call.op
    parts = [a if isinstance(a, str) else repr(a) for a in arguments]
    if op in INFIX:
        return f"({parts[0]}{INFIX[op]}{parts[1]})"
    if op == "Std":
        return f"ts_std_dev({parts[0]},{parts[1]},1)"
    if op == "Count":
        return f"ts_count({parts[0]},{parts[1]})"
    if op == "Quantile" and arguments[2] == 0.5:
        return f"ts_median({parts[0]},{parts[1]})"
    if op in FUNCTIONS:
        return f"{FUNCTIONS[op]}({','.join(parts)})"
    raise NotExpressibleError(op)
