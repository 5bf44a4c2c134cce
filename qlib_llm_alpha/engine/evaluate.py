"""Evaluate many formulas at once, tile by tile.

One batch is one graph (:mod:`qlib_llm_alpha.engine.graph`). Its nodes are computed in order for one tile of 32
instruments, buffers are handed on as soon as nobody reads them any more, and only the roots are written to memory
(:mod:`qlib_llm_alpha.engine.execution`). Tiles are independent and are taken by threads in turn: numpy and the kernels
release the interpreter's lock. What reads all instruments of a day (the ``CS`` operators) cuts the graph into stages:
the tiles of one stage are finished before the cross-section is taken, and its result is a column for the next.

Numbers: stock Qlib asked for the whole history, so a value never depends on where a query starts. Element-wise
operators follow numpy's types as Qlib does (float32 stays float32), windowed ones compute in float64, and roots are
float32.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from qlib_llm_alpha.engine.across import ACROSS
from qlib_llm_alpha.engine.compiling import announce_first_compilation
from qlib_llm_alpha.engine.execution import Cells, Long, Tiles, Work, cuts
from qlib_llm_alpha.engine.graph import NATIVE, Graph
from qlib_llm_alpha.engine.kernels.registry import LANES
from qlib_llm_alpha.engine.tiles import Spans, TiledPanel, Values
from qlib_llm_alpha.errors import ExpressionError, PanelError
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.printing import lower
from qlib_llm_alpha.factor.tree import Call
from qlib_llm_alpha.factor.tree import Node as Tree

Warmup = Literal["strict", "qlib"]

_CUTS_AT_ONCE: Final = 1 << 30


@dataclass(frozen=True, eq=False)
class Columns:
    """Values of a batch.

    Parameters
    ----------
    values : array, (K, tiles, T, LANES) float32
        One column for each formula, NaN where the instrument does not exist or is warming up.
    spans : tuple of Spans, (K,)
        Which rows exist, as in the series that Qlib would return.
    panel : TiledPanel
    """

    values: Values
    spans: tuple[Spans, ...]
    panel: TiledPanel

    def dense(self, position: int) -> Values:
        """Return one column as (T, N)."""
        return np.ascontiguousarray(self.panel.untiled(self.values[position]))


def evaluate(
    formulas: Sequence[Expression | Tree],
    panel: TiledPanel,
    *,
    warmup: Warmup = "qlib",
    threads: int | None = None,
    foreign: Callable[[Call], bool] = lambda tree: False,
    out: Values | None = None,
    budget: int | None = None,
) -> Columns:
    """Compute formulas over all days and instruments of a panel.

    Parameters
    ----------
    formulas : sequence of Expression or tree
        Expressions of the factor language; a bare tree is executed as Qlib would execute its text.
    panel : TiledPanel
        Cross-sections are taken over its members of the day.
    warmup : {"strict", "qlib"}
        ``strict``: the first look-back bars of an instrument are NaN (expressions only). ``qlib``: partial windows.
    threads : int, optional
        Default: the processors of this process.
    foreign : callable
        Which calls the panel's source evaluates by itself, see :class:`~qlib_llm_alpha.engine.graph.Graph`.
    out : array, (K, tiles, T, LANES) float32, optional
        Where to write; reusing one array between batches saves the time of getting fresh memory.
    budget : int, optional
        Bytes that the fields may take: where they do not fit, the work goes block by block of instruments. Formulas
        with a cross-section need all instruments at once; of those, as many are computed together as have room for
        their cross-sections in as many bytes again. Default: the panel's memory limit.

    Returns
    -------
    Columns
        Row ``t`` reads rows up to ``t`` unless a formula shifts by a negative number.

    Raises
    ------
    ExpressionError
        A formula that cannot be computed, named in the message.
    PanelError
        A column that the panel does not have, or ``out`` of another shape.
    """
    shape = (len(formulas), panel.tile_count, len(panel.days), LANES)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise PanelError(f"out has shape {out.shape} and type {out.dtype}; expected {shape} float32; allocate that")
    trees = [as_executed(formula) for formula in formulas]
    parts = []
    limit = panel.memory_limit if budget is None else budget
    for first, last, part in _blocks(trees, panel, foreign, limit):
        batch = Batch(formulas, part, threads=threads, foreign=foreign, budget=limit)
        batch.write_tiles(out[:, first:last], warmup=warmup)
        parts.append(batch.spans)
    return Columns(out, parts[0] if len(parts) == 1 else tuple(map(_joined, zip(*parts, strict=True))), panel)


class Batch:
    """Formulas made ready for one panel: which rows exist is known, nothing but cross-sections is computed yet.

    Parameters
    ----------
    formulas, panel, threads, foreign
        As for :func:`evaluate`.
    budget : int, optional
        Bytes that cross-sections, which are columns of their own while a batch is computed, may take at a time; one of
        them is always taken. Default: 1 GiB.
    """

    def __init__(
        self,
        formulas: Sequence[Expression | Tree],
        panel: TiledPanel,
        *,
        threads: int | None = None,
        foreign: Callable[[Call], bool] = lambda tree: False,
        budget: int | None = None,
    ) -> None:
        announce_first_compilation()
        graph = Graph(foreign)
        self.formulas = formulas
        self._roots = [graph.add(as_executed(formula)) for formula in formulas]
        self._work = Work(graph, panel, _processors() if threads is None else threads)
        self._budget = _CUTS_AT_ONCE if budget is None else budget
        self.spans = tuple(self._work.spans(root) for root in self._roots)

    def write_tiles(self, out: Values, *, warmup: Warmup = "qlib") -> None:
        """Write all values, (K, tiles, T, LANES) float32."""
        self._write(Tiles(self._shown(warmup), self._work.everywhere, out))

    def write_cells(self, cells: Cells, out: Values, *, warmup: Warmup = "qlib") -> None:
        """Write the values of some cells, (K, M) float32, NaN where a formula has no row."""
        self._write(Long(self._shown(warmup), self._work.everywhere, cells, out))

    def _write(self, sink: Tiles) -> None:
        for positions in self._portions():
            self._work.compute([self._roots[position] for position in positions], sink, positions)

    def _portions(self) -> Iterator[list[int]]:
        """Yield positions of formulas whose cross-sections may be in memory together."""
        column = self._work.everywhere.size * self._work.panel.tile_count * np.dtype(np.float64).itemsize
        most = max(1, self._budget // column)
        needed = [{cut.id for cut in cuts([root])} for root in self._roots]
        portion: list[int] = []
        held: set[int] = set()
        for position in sorted(range(len(needed)), key=lambda position: bool(needed[position])):
            if portion and len(held | needed[position]) > most:
                yield portion
                portion, held = [], set()
            portion.append(position)
            held |= needed[position]
        yield portion

    def _shown(self, warmup: Warmup) -> tuple[Spans, ...]:
        if warmup == "qlib":
            return self.spans
        shown: dict[tuple[int, int], Spans] = {}  # one for formulas alike, since each remembers its masks
        for span, formula in zip(self.spans, self.formulas, strict=True):
            key = (id(span), lookback_of(formula))
            if key not in shown:
                shown[key] = warmed(span, key[1], self._work.panel)
        pairs = zip(self.spans, self.formulas, strict=True)
        return tuple(shown[id(span), lookback_of(formula)] for span, formula in pairs)


def as_executed(formula: Expression | Tree) -> Tree:
    """Return the tree that is computed: of an expression its lowered one, a bare tree as it is."""
    return lower(formula.root, NATIVE) if isinstance(formula, Expression) else formula


def columns_of(formulas: Sequence[Expression | Tree]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns that formulas read, and the other instruments they read them of; what fails is passed over."""
    graph = Graph()
    for formula in formulas:
        with contextlib.suppress(ExpressionError):
            graph.add(as_executed(formula))
    columns, others = (
        tuple(sorted({node.parameters[0] for node in graph.nodes if node.op == op})) for op in ("column", "Other")
    )
    return columns, others


def lookback_of(formula: Expression | Tree) -> int:
    """Return the look-back of an expression; PanelError for a bare tree, which does not know it."""
    if not isinstance(formula, Expression):
        raise PanelError(
            f"{formula!r:.80} is a bare tree; a strict warm-up needs an Expression, which knows its look-back"
        )
    return formula.lookback


def _blocks(
    trees: Sequence[Tree], panel: TiledPanel, foreign: Callable[[Call], bool], budget: int | None
) -> Iterator[tuple[int, int, TiledPanel]]:
    graph = Graph(foreign)
    for tree in trees:
        graph.add(tree)
    if budget is None or any(node.op in ACROSS for node in graph.nodes):
        yield 0, panel.tile_count, panel
        return
    yield from panel.blocks([node.parameters[0] for node in graph.nodes if node.op == "column"], budget)


def _joined(parts: tuple[Spans, ...]) -> Spans:
    return Spans(
        np.concatenate([part.first for part in parts]), np.concatenate([part.stop for part in parts]), parts[0].rows
    )


def warmed(spans: Spans, lookback: int, panel: TiledPanel) -> Spans:
    """Return the spans without the first ``lookback`` bars, counted from the instrument's first close."""
    if not lookback:
        return spans
    closes = panel.first_bars
    first = spans.first
    if closes is not None:
        first = np.where(closes < spans.rows, np.maximum(spans.first, closes), first)
    return Spans(np.minimum(first + lookback, spans.stop), spans.stop, spans.rows)


def _processors() -> int:
    # Available, not installed: containers give a process less than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
