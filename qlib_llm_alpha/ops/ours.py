"""The operators that are ours as classes for Qlib, made of the operator table.

Name them in the workflow, ``qlib_init: {custom_ops: [{class: DecayLinear, module_path: qlib_llm_alpha.ops.ours}]}``, or
register all of them with ``qlib.init(custom_ops=list(OPERATORS))``. Every row of the table that is ``ours`` or
cross-sectional has its class here, under its own name:

- An operator over time runs the engine's kernel on the series of one instrument, so that stock Qlib and the engine
  give the same numbers.
- A cross-sectional operator reads all instruments of a day, and stock Qlib hands over one at a time. Its class knows
  its text and how far back it reads, and says when it is loaded what evaluates it.

Importing this module compiles nothing; a kernel is compiled when it is first run, and kept on disk.
"""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qlib.data.base import Expression, ExpressionOps

from qlib_llm_alpha.errors import ConfigError, ProviderError
from qlib_llm_alpha.factor.operators import OPERATORS as _TABLE
from qlib_llm_alpha.factor.operators import ArgumentKind, Operator

_Array = NDArray[np.float64]
_SERIES: Final[frozenset[ArgumentKind]] = frozenset({"series", "varying", "boolean", "group"})


class _Ours(ExpressionOps):
    """One call of a row of the table: its text, and the bars that it needs.

    Parameters
    ----------
    *arguments : Expression or number
        As in the row: formulas first, then the window and further numbers.

    Raises
    ------
    ConfigError
        Too few or too many arguments, a number where a formula is due, or a window that is no whole number of bars or
        smaller than the row allows.
    """

    row: ClassVar[Operator]

    def __init__(self, *arguments: Expression | float) -> None:
        row = self.row
        if len(arguments) != len(row.arguments):
            raise ConfigError(f"{row.name} was given {len(arguments)} arguments; expected {row.signature}")
        self.arguments = arguments
        self.series: list[Expression] = []
        self.numbers: list[float] = []
        self.window = 0
        for argument, (_, kind) in zip(arguments, row.arguments, strict=True):
            if kind not in _SERIES:
                self.numbers.append(argument)
            elif isinstance(argument, Expression):
                self.series.append(argument)
            else:
                raise ConfigError(f"{row.signature} was given {argument!r}; expected a formula there, such as $close")
            if kind == "window":
                self.window = _checked_window(row, argument)

    def __str__(self) -> str:
        # Qlib caches values by this text, so it holds every argument.
        return f"{self.row.name}({','.join(map(str, self.arguments))})"

    def get_longest_back_rolling(self) -> float:
        """Return the bars before the day that a value reads, infinite below an expanding window."""
        furthest: float = max(series.get_longest_back_rolling() for series in self.series)
        return furthest + self.row.bars_back(self.window)

    def get_extended_window_size(self) -> tuple[int, int]:
        """Return the bars before and after a query that have to be loaded for it."""
        sizes = [series.get_extended_window_size() for series in self.series]
        return max(left for left, _ in sizes) + self.row.bars_back(self.window), max(right for _, right in sizes)


class _OverTime(_Ours):
    """An operator that the engine has a kernel for, or one numpy function of the values of the day."""

    def _load_internal(self, instrument: str, start_index: int, end_index: int, *args: object) -> pd.Series:
        # Not at the top: who registers the operators and uses none of them need not wait for numba.
        from qlib_llm_alpha.engine.graph import ELEMENTWISE

        loaded = [series.load(instrument, start_index, end_index, *args) for series in self.series]
        if self.row.elementwise:
            daily: pd.Series = ELEMENTWISE[self.row.name](*loaded, *self.numbers)
            return daily
        together = pd.concat(loaded, axis=1, sort=True)
        columns = together.to_numpy(dtype=np.float64)
        return pd.Series(_run_kernel(self.row.name, columns, self.numbers), index=together.index)


class _AcrossInstruments(_Ours):
    """An operator that reads all instruments of a day."""

    def _load_internal(self, instrument: str, start_index: int, end_index: int, *args: object) -> pd.Series:
        raise ProviderError(
            f"{self!s:.200} was asked for {instrument} alone: it reads all instruments of a day, and stock Qlib "
            "evaluates one at a time; write under qlib_init: dataset_provider: {class: PanelDatasetProvider, "
            "module_path: qlib_llm_alpha.data.provider}"
        )


def _checked_window(row: Operator, window: object) -> int:
    if type(window) is not int or window < row.min_window:
        raise ConfigError(
            f"the window of {row.name} is {window!r}; expected a whole number of bars, at least {row.min_window}"
        )
    return window


def _run_kernel(name: str, columns: _Array, numbers: list[float]) -> _Array:
    """Return the kernel's values for one instrument; `columns` is (bars, inputs), `numbers` begins with the window."""
    from qlib_llm_alpha.engine.compiling import announce_first_compilation
    from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, KERNELS, LANES

    announce_first_compilation()
    bars, inputs = columns.shape
    if bars == 0:
        return np.empty(0)
    # A kernel takes 32 instruments side by side: ours is the first lane, the others have no values.
    tiles = np.full((inputs, bars, LANES), np.nan)
    tiles[:, :, 0] = columns.T
    window, *parameters = numbers
    first = np.zeros(LANES, dtype=np.int64)
    if HAVE_NUMBA:
        out = np.empty((bars, LANES))
        KERNELS[name].run(*tiles, out, window, first, *parameters)
    else:
        out = KERNELS[name].fallback(*tiles, window, first, *parameters)
    mine: _Array = out[:, 0].copy()
    return mine


def _class_of(row: Operator) -> type[Expression]:
    parent = _AcrossInstruments if row.cross_sectional else _OverTime
    return type(
        row.name, (parent,), {"row": row, "__module__": __name__, "__doc__": f"{row.signature}: {row.summary}."}
    )


OPERATORS: Final[tuple[type[Expression], ...]] = tuple(
    _class_of(row) for row in _TABLE.values() if row.ours or row.cross_sectional
)
"""Every operator of ours, for ``qlib.init(custom_ops=list(OPERATORS))``."""

# Qlib reads a class that a workflow names from the module, and so does pickle.
globals().update({made.__name__: made for made in OPERATORS})
