"""How a graph is computed on one panel: which node when, in which buffer, by which thread, and written where.

Nothing here knows formulas or Qlib: nodes come in, tiles go out to a sink. :mod:`qlib_llm_alpha.engine.evaluate` is the
way in.
"""

from __future__ import annotations

import functools
import itertools
import operator
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.across import ACROSS, across
from qlib_llm_alpha.engine.graph import COMPARISONS, ELEMENTWISE, Graph, Node, below
from qlib_llm_alpha.engine.kernels import arithmetic
from qlib_llm_alpha.engine.kernels.gather import gather, scatter
from qlib_llm_alpha.engine.kernels.registry import GROUPS, HAVE_NUMBA, KERNELS, LANES, Group
from qlib_llm_alpha.engine.tiles import Mask, Spans, TiledPanel, Values
from qlib_llm_alpha.errors import ExpressionError

Tile = NDArray[Any]

_ARITHMETIC: Final = frozenset({"Add", "Sub", "Mul", "Div"})
_CUT: Final = frozenset(ACROSS) | {"Other"}


@dataclass(frozen=True, eq=False)
class Cells:
    """Which cells of a panel a data frame holds, and where.

    Parameters
    ----------
    rows, lanes : array, (M,) int32
        Row and lane of each cell, tile after tile.
    starts : array, (tiles + 1,) int
        The cells of tile ``i`` are ``starts[i]`` to ``starts[i + 1]``.
    places : array, (M,) int64, optional
        The frame's row of each cell; None: in this order.
    """

    rows: NDArray[np.int32]
    lanes: NDArray[np.int32]
    starts: NDArray[np.int64]
    places: NDArray[np.int64] | None = None

    @classmethod
    def by_instrument(cls, wanted: Mask) -> Cells:
        """Return the true cells of a (N, T) mask, for a frame ordered by instrument and then by day."""
        instrument, row = np.nonzero(wanted)
        tiles = -(-len(wanted) // LANES)
        starts = np.searchsorted(instrument, np.arange(tiles + 1) * LANES)
        return cls(row.astype(np.int32), (instrument % LANES).astype(np.int32), starts)

    @classmethod
    def by_day(cls, wanted: Mask) -> Cells:
        """Return the true cells of a (N, T) mask, for a frame ordered by day and then by instrument."""
        following = np.concatenate([[0], np.cumsum(wanted.sum(axis=0))[:-1]])  # the next free row of each day
        rows, lanes, places, starts = [], [], [], [0]
        for first in range(0, len(wanted), LANES):
            row, lane = np.nonzero(wanted[first : first + LANES].T)
            count = np.bincount(row, minlength=wanted.shape[1])
            before = np.cumsum(count) - count
            rows.append(row.astype(np.int32))
            lanes.append(lane.astype(np.int32))
            places.append(following[row] + np.arange(len(row)) - before[row])
            starts.append(starts[-1] + len(row))
            following = following + count
        return cls(np.concatenate(rows), np.concatenate(lanes), np.array(starts), np.concatenate(places))

    def later(self, rows: int) -> Cells:
        """Return the same cells for a panel that begins ``rows`` rows later."""
        return Cells(self.rows - np.int32(rows), self.lanes, self.starts, self.places)

    def __len__(self) -> int:
        return len(self.rows)


class Work:
    """What the tiles of one evaluation share."""

    def __init__(self, graph: Graph, panel: TiledPanel, threads: int) -> None:
        self.graph, self.panel, self.threads = graph, panel, threads
        self.columns: dict[int, NDArray[Any]] = {}
        self._spans: dict[int, Spans] = {}
        self.everywhere: Mask = np.zeros((len(panel.days), LANES), dtype=np.bool_)

    def spans(self, node: Node) -> Spans:
        """Return which rows of a node exist: those of its arguments together."""
        if node.id not in self._spans:
            if node.op == "column":
                found = self.panel.column(node.parameters[0]).spans
            elif node.op == "Other":
                found = self._spans_of_another_instrument(node)
            else:
                found = functools.reduce(Spans.union, [self.spans(child) for child in node.children])
            # One object for equal spans, so that a comparison of identities is enough.
            known = next((span for span in self._spans.values() if span.same_as(found)), found)
            self._spans[node.id] = known
        return self._spans[node.id]

    def values(self, node: Node, tile: int) -> Tile:
        """Return the tile of a node that is a column."""
        if node.id in self.columns:
            values = self.columns[node.id]
            result: Tile = values[tile if len(values) > 1 else 0]
            return result
        kept: Tile = self.panel.column(node.parameters[0]).values[tile]
        return kept

    def compute(self, outputs: list[Node], sink: Sink, positions: Sequence[int] | None = None) -> None:
        """Compute nodes and hand them to ``sink``.

        What needs more than its own tile is computed first, as columns; they are let go of at the end.

        Parameters
        ----------
        outputs : list of Node
        sink : Sink
        positions : sequence of int, optional
            The place of each output for the sink; default 0, 1, 2, ...
        """
        for cut in cuts(outputs):
            if cut.op == "Other":
                self.columns[cut.id] = self._of_another_instrument(cut)
                continue
            inputs = list(cut.children)
            stored = Stored(self)
            self._over_tiles(Plan(inputs, range(len(inputs)), self), stored)
            columns = [stored.columns[child.id] for child in inputs]
            self.columns[cut.id] = across(cut.op, columns, self.panel.member, cut.parameters, threads=self.threads)
        self._over_tiles(Plan(outputs, range(len(outputs)) if positions is None else positions, self), sink)
        self.columns.clear()

    def _over_tiles(self, plan: Plan, sink: Sink) -> None:
        # Columns are read and spans found here, by one thread: the others only look them up.
        for node in plan.order:
            self.spans(node)
            if node.op == "column" and node.id not in self.columns:
                self.panel.column(node.parameters[0])
        pending = itertools.count()
        lock = threading.Lock()

        def work() -> None:
            buffers = Buffers(len(self.panel.days))
            while True:
                with lock:
                    tile = next(pending)
                if tile >= self.panel.tile_count:
                    return
                TileRun(plan, tile, self, buffers, sink).run()

        workers = min(self.threads, self.panel.tile_count)
        if workers <= 1:
            work()
            return
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(work) for _ in range(workers)]:
                future.result()

    def _of_another_instrument(self, node: Node) -> NDArray[Any]:
        (child,) = node.children
        work = Work(self.graph, self.panel.of_instrument(node.parameters[0]), 1)
        stored = Stored(work)
        work.compute([child], stored)
        series = stored.columns[child.id][0, :, :1]
        return np.ascontiguousarray(np.broadcast_to(series, (1, len(self.panel.days), LANES)))

    def _spans_of_another_instrument(self, node: Node) -> Spans:
        (child,) = node.children
        span = Work(self.graph, self.panel.of_instrument(node.parameters[0]), 1).spans(child)
        lanes = (self.panel.tile_count, LANES)
        return Spans(np.full(lanes, span.first[0, 0]), np.full(lanes, span.stop[0, 0]), len(self.panel.days))


class Plan:
    """The order of the nodes of one stage, who is written when, and who is read for the last time when."""

    def __init__(self, outputs: list[Node], positions: Sequence[int], work: Work) -> None:
        self.order = below(outputs, lambda node: node.id in work.columns)
        last: dict[int, int] = {}
        for place, node in enumerate(self.order):
            last[node.id] = place
            if node.id not in work.columns:
                for child in node.children:
                    last[child.id] = place
        self.freed: list[list[int]] = [[] for _ in self.order]
        for node_id, place in last.items():
            self.freed[place].append(node_id)
        self.written: dict[int, list[int]] = {}
        for position, node in zip(positions, outputs, strict=True):
            self.written.setdefault(node.id, []).append(position)
        self.groups = _groups(self.order) if HAVE_NUMBA else {}


class Sink:
    """Where a stage writes its outputs."""

    def take(self, node: Node, positions: list[int], tile: int, value: Tile) -> None:
        """Write one tile of an output; ``positions`` are its places among the outputs."""
        raise NotImplementedError

    def take_arithmetic(self, op: str, left: Tile, right: Tile, positions: list[int], tile: int) -> bool:
        """Compute and write in one pass; False when this sink cannot."""
        return False


class Tiles(Sink):
    """Writes roots as columns of tiles."""

    def __init__(self, shown: Sequence[Spans], everywhere: Mask, out: Values) -> None:
        self.shown, self.everywhere, self.out = shown, everywhere, out

    def dead(self, position: int, tile: int) -> Mask:
        """Return which rows are left blank."""
        dead = self.shown[position].dead(tile)
        return self.everywhere if dead is None else dead

    def take(self, node: Node, positions: list[int], tile: int, value: Tile) -> None:
        """See :class:`Sink`."""
        value = _floating(value)
        for position in positions:
            arithmetic.store(value, self.dead(position, tile), self.out[position, tile])

    def take_arithmetic(self, op: str, left: Tile, right: Tile, positions: list[int], tile: int) -> bool:
        """See :class:`Sink`."""
        for position in positions:
            arithmetic.combine_store(op, left, right, self.dead(position, tile), self.out[position, tile])
        return True


class Long(Tiles):
    """Writes roots as the long columns of a data frame."""

    def __init__(self, shown: Sequence[Spans], everywhere: Mask, cells: Cells, out: Values) -> None:
        super().__init__(shown, everywhere, out)
        self.cells = cells

    def take(self, node: Node, positions: list[int], tile: int, value: Tile) -> None:
        """See :class:`Sink`."""
        cells = slice(*self.cells.starts[tile : tile + 2])
        value = _floating(value)
        for position in positions:
            dead = self.dead(position, tile)
            rows, lanes = self.cells.rows[cells], self.cells.lanes[cells]
            if self.cells.places is None:
                gather(value, dead, rows, lanes, self.out[position, cells])
            else:
                scatter(value, dead, rows, lanes, self.cells.places[cells], self.out[position])

    def take_arithmetic(self, op: str, left: Tile, right: Tile, positions: list[int], tile: int) -> bool:
        """See :class:`Sink`."""
        return False


class Stored(Sink):
    """Keeps outputs in their own type, blank where they do not exist: the input of a cross-section."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.columns: dict[int, NDArray[Any]] = {}
        self._lock = threading.Lock()

    def take(self, node: Node, positions: list[int], tile: int, value: Tile) -> None:
        """See :class:`Sink`."""
        panel = self.work.panel
        with self._lock:
            if node.id not in self.columns:
                kind = np.float32 if value.dtype == np.float32 else np.float64
                self.columns[node.id] = np.empty((panel.tile_count, len(panel.days), LANES), dtype=kind)
        dead = self.work.spans(node).dead(tile)
        kept = self.columns[node.id][tile]
        np.copyto(kept, value, casting="unsafe")
        if dead is not None:
            kept[dead] = np.nan


class Buffers:
    """Tiles that nobody reads any more, by type; one set for each thread."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._free: dict[np.dtype[Any], list[Tile]] = {}

    def get(self, kind: Any) -> Tile:
        """Return a tile of a type; what it holds is left over."""
        free = self._free.setdefault(np.dtype(kind), [])
        return free.pop() if free else np.empty((self.rows, LANES), dtype=kind)

    def put(self, tile: Tile) -> None:
        """Take back a tile that nobody reads any more."""
        if tile.flags.owndata and tile.shape == (self.rows, LANES):
            self._free.setdefault(tile.dtype, []).append(tile)


class TileRun:
    """One pass over a plan for one tile."""

    def __init__(self, plan: Plan, tile: int, work: Work, buffers: Buffers, sink: Sink) -> None:
        self.plan, self.tile, self.work, self.buffers, self.sink = plan, tile, work, buffers, sink
        self.value: dict[int, Tile] = {}
        self.own: set[int] = set()

    def run(self) -> None:
        """Compute every node and hand the outputs to the sink."""
        with np.errstate(all="ignore"):
            for place, node in enumerate(self.plan.order):
                positions = self.plan.written.get(node.id, [])
                only_written = bool(positions) and node.id in self.plan.freed[place]
                if not (only_written and self._written_at_once(node, positions)):
                    self._compute(node)
                    if positions:
                        self.sink.take(node, positions, self.tile, self.value[node.id])
                for node_id in self.plan.freed[place]:
                    tile = self.value.pop(node_id, None)
                    if tile is not None and node_id in self.own:
                        self.buffers.put(tile)

    def _written_at_once(self, node: Node, positions: list[int]) -> bool:
        if node.op not in _ARITHMETIC or node.id in self.work.columns or len(list(node.children)) < 2:
            return False
        left, right = (self._argument(child, node) for child in node.children)
        if left.dtype.kind != "f" or right.dtype.kind != "f":
            return False
        return self.sink.take_arithmetic(node.op, left, right, positions, self.tile)

    def _compute(self, node: Node) -> None:
        if node.id in self.value:
            return
        if node.op == "column" or node.id in self.work.columns:
            self.value[node.id] = self.work.values(node, self.tile)
            return
        if node.id in self.plan.groups:
            self._grouped(*self.plan.groups[node.id])
            return
        if node.op in KERNELS:
            result = self._windowed(node)
        elif node.op in ("Ref", "Delta"):
            result = self._shifted(node)
        else:
            result = self._elementwise(node)
        self.value[node.id] = result
        self.own.add(node.id)

    def _argument(self, child: Node, parent: Node) -> Tile:
        """Return an argument whose rows are those of the parent, as pandas aligns two series."""
        value = self.value[child.id]
        spans = self.work.spans(child)
        if spans is self.work.spans(parent) or child.op == "column":
            return value
        dead = spans.dead(self.tile)
        if dead is None:
            return value
        if value.dtype == np.bool_:
            inside: Tile = value & ~dead
            return inside
        return np.where(dead, np.nan, value).astype(value.dtype if value.dtype.kind == "f" else np.float64)

    def _elementwise(self, node: Node) -> Tile:
        args: list[Any] = [self._argument(one, node) if isinstance(one, Node) else one for one in node.args]
        try:
            if node.op == "If":
                return self._chosen(*args)
            if node.op == "Sign":
                value = args[0] if args[0].dtype == np.float32 else args[0].astype(np.float32)
                sign: Tile = np.sign(value, out=self.buffers.get(np.float32))
                return sign
            if node.op == "Power":
                # The operator, not the function: numpy squares and roots where the exponent says so, as in Qlib.
                return np.asarray(operator.pow(*args))
            return self._ufunc(node.op, args)
        except (TypeError, ValueError) as error:
            raise ExpressionError(
                "bad_argument", f"{node.op} does not take these values: {error}; compare or convert them first"
            ) from error

    def _ufunc(self, op: str, args: list[Any]) -> Tile:
        function = ELEMENTWISE[op]
        kinds = [one.dtype if isinstance(one, np.ndarray) else None for one in args]
        if op in _ARITHMETIC and None not in kinds and {kind.kind for kind in kinds if kind} == {"f"}:
            kind = np.result_type(*args)
            out = self.buffers.get(kind)
            arithmetic.combine(op, args[0], args[1], out)
            return out
        kind = next(kind for kind in kinds if kind is not None)
        if kind.kind == "f" and all(other is None or other == kind for other in kinds):
            return np.asarray(function(*args, out=self.buffers.get(np.bool_ if op in COMPARISONS else kind)))
        if function.nin == 1 and op != "Not" and kind == np.bool_:
            args = [args[0].astype(np.float32)]  # of yes and no numpy makes halves of a float32
        return np.asarray(function(*args))

    def _chosen(self, condition: Any, left: Any, right: Any) -> Tile:
        if not isinstance(condition, np.ndarray):
            raise TypeError(f"the condition is {condition!r}")
        holds = condition if condition.dtype == np.bool_ else condition.astype(np.bool_)
        corner = [one[:1] if isinstance(one, np.ndarray) else one for one in (left, right)]
        kind = np.where(holds[:1], *corner).dtype
        if kind.kind != "f":
            whole: Tile = np.where(holds, left, right)
            return whole
        out = self.buffers.get(kind)
        arithmetic.choose(holds, self._filled(left, kind), self._filled(right, kind), out)
        return out

    def _filled(self, value: Any, kind: np.dtype[Any]) -> Tile:
        """Return an array or a number as a tile of a type."""
        if isinstance(value, np.ndarray) and value.dtype == kind:
            return value
        tile: Tile = np.empty((len(self.work.panel.days), LANES), dtype=kind)
        tile[...] = value
        return tile

    def _existing(self, node: Node) -> tuple[Tile, bool]:
        """Return the input of a kernel, floating and NaN before its first row, and whether it is a copy of ours."""
        value = self.value[node.id]
        dead = self.work.spans(node).dead(self.tile)
        if value.dtype.kind == "f" and (node.clean or dead is None):
            return value, False
        kind = value.dtype if value.dtype.kind == "f" else np.float64
        copy = self.buffers.get(kind)
        if value.dtype.kind in "fb":
            arithmetic.blanked(value, self.work.everywhere if dead is None else dead, copy)
        else:
            np.copyto(copy, value, casting="unsafe")
            if dead is not None:
                copy[dead] = np.nan
        return copy, True

    def _windowed(self, node: Node) -> Tile:
        children = list(node.children)
        inputs = [self._aligned_input(child, node) for child in children]
        if len({value.dtype for value, _ in inputs}) > 1:
            # The kernels of two inputs are compiled for one type of both.
            inputs = [(value.astype(np.float64), False) for value, _ in inputs]
        first = self.work.spans(node).first[self.tile]
        window, *parameters = self._numbers(node)
        kernel = KERNELS[node.op]
        if HAVE_NUMBA:
            out = self.buffers.get(np.float64)
            kernel.run(*(value for value, _ in inputs), out, window, first, *parameters)
        else:
            out = kernel.fallback(*(value.astype(np.float64) for value, _ in inputs), window, first, *parameters)
        for value, copied in inputs:
            if copied:
                self.buffers.put(value)
        return out

    def _numbers(self, node: Node) -> list[Any]:
        """Return window and parameters in the types for which the kernels are compiled."""
        window, *parameters = node.parameters
        rows = len(self.work.panel.days)
        window = float(window) if node.op == "EMA" else int(window) or rows + 1
        return [window, *map(float, parameters)]

    def _aligned_input(self, child: Node, parent: Node) -> tuple[Tile, bool]:
        value, copied = self._existing(child)
        spans = self.work.spans(child)
        dead = spans.dead(self.tile)
        if spans is self.work.spans(parent) or child.op == "column" or dead is None or copied:
            return value, copied
        copy = self.buffers.get(value.dtype)
        arithmetic.blanked(value, dead, copy)
        return copy, True

    def _grouped(self, group: Group, members: tuple[Node | None, ...]) -> None:
        present = [node for node in members if node is not None]
        value, copied = self._existing(next(present[0].children))
        first = self.work.spans(present[0]).first[self.tile]
        window, *_ = self._numbers(present[0])
        outs = [self.buffers.get(np.float64) for _ in members]
        parameters = [number for node in present for number in self._numbers(node)[1:]]
        group.run(value, *outs, window, first, *parameters)
        for node, out in zip(members, outs, strict=True):
            if node is None:
                self.buffers.put(out)
            else:
                self.value[node.id] = out
                self.own.add(node.id)
        if copied:
            self.buffers.put(value)

    def _shifted(self, node: Node) -> Tile:
        (child,) = node.children
        value, copied = self._existing(child)
        shift = node.parameters[0]
        dead = self.work.spans(child).dead(self.tile)
        if shift < 0 and dead is not None and not copied and child.op != "column":
            # A windowed operator goes on after the last bar; those rows must not be drawn back into the series.
            fresh = self.buffers.get(value.dtype)
            arithmetic.blanked(value, dead, fresh)
            value, copied = fresh, True
        out = self.buffers.get(value.dtype)
        if shift == 0:
            span = self.work.spans(child)
            rows = np.minimum(span.first[self.tile], len(value) - 1)
            out[:] = value[rows, np.arange(LANES)]
        elif shift > 0:
            out[:shift] = np.nan
            out[shift:] = value[: max(0, len(value) - shift)]
        else:
            out[shift:] = np.nan
            out[:shift] = value[-shift:]
        if node.op == "Delta":
            np.subtract(value, out, out=out)
        if copied:
            self.buffers.put(value)
        return out


def _floating(value: Tile) -> Tile:
    """Return whole numbers, which ``If`` makes of two of them, as floats: nothing is compiled for them."""
    return value if value.dtype.kind in "fb" else value.astype(np.float64)


def cuts(roots: list[Node]) -> Iterator[Node]:
    """Yield the nodes at which the graph is cut, innermost first; what lies under another instrument is its own."""
    for node in below(roots, lambda node: node.op == "Other"):
        if node.op in _CUT:
            yield node


def _groups(order: list[Node]) -> dict[int, tuple[Group, tuple[Node | None, ...]]]:
    """Return, for each node that is computed together with others, the group and its members."""
    together: dict[tuple[int, Any], list[Node]] = {}
    for node in order:
        if node.op in KERNELS and KERNELS[node.op].inputs == 1 and node.parameters:
            child = next(node.children)
            together.setdefault((child.id, node.parameters[0]), []).append(node)
    found: dict[int, tuple[Group, tuple[Node | None, ...]]] = {}
    for group in GROUPS:
        for nodes in together.values():
            free = [node for node in nodes if node.id not in found]
            while True:
                members = _members(group, free)
                present = [node for node in members if node is not None]
                if len(present) < 2:
                    break
                for node in present:
                    found[node.id] = (group, members)
                free = [node for node in free if node.id not in found]
    return found


def _members(group: Group, nodes: list[Node]) -> tuple[Node | None, ...]:
    """Return a node for each place of the group; None where there is none and the place takes no parameter."""
    left = list(nodes)
    chosen: list[Node | None] = []
    for name in group.members:
        match = next((node for node in left if node.op == name), None)
        if match is None and name in ("Quantile",):
            return ()
        if match is not None:
            left.remove(match)
        chosen.append(match)
    return tuple(chosen)
