"""KunQuant: each batch becomes one C++ library (float32), compiled by g++ and run on a thread pool."""

from __future__ import annotations

import contextlib
import io
import platform
from collections.abc import Callable, Sequence
from typing import Any

import KunQuant.ops as kq
import numpy as np
from KunQuant.Driver import KunCompilerConfig
from KunQuant.jit import cfake
from KunQuant.Op import Builder, ConstantOp, Input, Output
from KunQuant.runner import KunRunner
from KunQuant.Stage import Function

from engine_peers.competitor import Competitor, NotExpressibleError, Result, is_condition, translated, tree
from engine_peers.market import FIELDS, Market
from qlib_llm_alpha.factor.tree import Call, Node

# KunQuant's own layout, (blocks of names, days, names of a block), is a little faster than days x names.
LAYOUT = "STs"
NAMES_IN_A_BLOCK = 8 if platform.machine() in ("x86_64", "AMD64") else 4

ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": kq.Add,
    "Sub": kq.Sub,
    "Mul": kq.Mul,
    "Div": kq.Div,
    "Power": kq.Pow,
    "Greater": kq.Max,
    "Less": kq.Min,
    "Gt": kq.GreaterThan,
    "Ge": kq.GreaterEqual,
    "Lt": kq.LessThan,
    "Le": kq.LessEqual,
    "And": kq.And,
    "Or": kq.Or,
    "Abs": kq.Abs,
    "Sign": kq.Sign,
    "Log": kq.Log,
    "If": kq.Select,
}
WINDOWED: dict[str, Callable[..., Any]] = {
    "Ref": kq.BackRef,
    "Mean": kq.WindowedAvg,
    "Sum": kq.WindowedSum,
    "Count": kq.WindowedSum,
    "Std": kq.WindowedStddev,
    "Var": kq.WindowedVar,
    "Max": kq.WindowedMax,
    "Min": kq.WindowedMin,
    "IdxMax": kq.TsArgMax,
    "IdxMin": kq.TsArgMin,
    "WMA": kq.DecayLinear,
    "Slope": kq.WindowedLinearRegressionSlope,
    "Resi": kq.WindowedLinearRegressionResi,
    "Rsquare": kq.WindowedLinearRegressionRSqaure,
    "Skew": kq.WindowedSkew,
    "Kurt": kq.WindowedKurt,
}


class KunQuant(Competitor):
    """Compiled at run time; its windows must be full, so rows that Qlib fills early are NaN."""

    versions = ("KunQuant",)

    def __init__(self, market: Market, threads: int) -> None:
        super().__init__(market, threads)
        self.shape = (-(-market.names // NAMES_IN_A_BLOCK), market.days, NAMES_IN_A_BLOCK)
        self.fields = {name: self._blocks(market.field(name)) for name in FIELDS}
        self.executor = KunRunner.createMultiThreadExecutor(threads)
        self.library: Any = None
        self.result: dict[str, Result] = {}

    def translate(self, expression: str) -> Node:
        """Return the tree, once its operators are known to exist."""
        root = tree(expression)
        with Builder():  # what it refuses, it refuses while building
            translated(root, Input, _built, {})
        return root

    def compile(self, terms: Sequence[Node]) -> None:
        """Write and compile the C++ of a batch, shared branches once."""
        builder = Builder()
        with builder:
            known: dict[Node, Any] = {}
            for position, root in enumerate(terms):
                Output(translated(root, Input, _built, known), f"f{position}")
        config = KunCompilerConfig(
            input_layout=LAYOUT,
            output_layout=LAYOUT,
            blocking_len=NAMES_IN_A_BLOCK,
            dtype="float",
            options={"no_fast_stat": True},
        )
        with contextlib.redirect_stdout(io.StringIO()):
            self.library = cfake.compileit(
                [("batch", Function(builder.ops), config)], "batch", cfake.CppCompilerConfig()
            )
        self.module = self.library.getModule("batch")
        self.result = {f"f{position}": np.empty(self.shape, np.float32) for position in range(len(terms))}

    def values(self) -> None:
        """Run the library."""
        KunRunner.runGraph(self.executor, self.module, self.fields, 0, self.market.days, self.result)

    def sample(self, columns: Sequence[int]) -> Result:
        """Pick names out of their blocks."""
        block, lane = np.divmod(columns, NAMES_IN_A_BLOCK)
        return np.stack([values[block, :, lane].T for values in self.result.values()])

    def _blocks(self, values: Result) -> Result:
        blocks, days, lanes = self.shape
        padded = np.full((days, blocks * lanes), np.nan, np.float32)
        padded[:, : values.shape[1]] = values
        return np.ascontiguousarray(padded.reshape(days, blocks, lanes).transpose(1, 0, 2))


def _built(call: Call, arguments: list[Any]) -> Any:
    op, (x, *rest) = call.op, arguments
    if op in ELEMENTWISE:
        return ELEMENTWISE[op](*(ConstantOp(float(a)) if isinstance(a, int | float) else a for a in arguments))
    if is_condition(call.args[0]):
        x = kq.Select(x, ConstantOp(1), ConstantOp(0))
    if op in WINDOWED:
        return WINDOWED[op](x, rest[0])
    if op == "Delta":
        return kq.Sub(x, kq.BackRef(x, rest[0]))
    if op == "Rank":
        return kq.Div(kq.TsRank(x, rest[0]), ConstantOp(rest[0]))
    if op == "Med":
        return kq.WindowedQuantile(x, rest[0], 0.5)
    if op == "Quantile":
        return kq.WindowedQuantile(x, rest[0], rest[1])
    if op == "Corr":
        return kq.WindowedCorrelation(x, rest[1], rest[0])
    if op == "Cov":
        return kq.WindowedCovariance(x, rest[1], rest[0])
    if op == "EMA" and rest[0] >= 1:
        return kq.ExpMovingAvg(x, rest[0])
    raise NotExpressibleError(op)
