"""The engine's panel: columns of bars in tiles, read when they are first asked for.

A column is ``(tiles, T, LANES)`` float32: tile ``n // LANES``, lane ``n % LANES`` holds instrument ``n``, time runs
down. The intermediate results of one tile fit the second-level cache: that is where the engine is fast. The last
tile is filled up with lanes that never exist.

An instrument *exists* in a column from its first stored row to its last, its *span*; Qlib's series has exactly these
rows. A suspended day is NaN inside the span. Outside it every value is NaN.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.registry import LANES
from qlib_llm_alpha.engine.panel import Days, as_days
from qlib_llm_alpha.errors import PanelError

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Series = tuple[int, Values]


class FieldSource(Protocol):
    """Where columns come from."""

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> Iterable[Series]:
        """Return, for each instrument in order, the row of its first value and its values up to row ``rows``.

        Parameters
        ----------
        name : str
            A field with its sigil (``$close``), or a text that the source evaluates by itself.
        instruments : sequence of str
        rows : int
            Number of days of the panel; later values are left out.
        since : int
            The same, but values before this row are left out (the first row given is then at least ``since``).

        Returns
        -------
        iterable of (int, array of float32)
            An instrument without a value gives ``(0, empty)``.
        """


@dataclass(frozen=True, eq=False)
class Spans:
    """Which rows of a column exist, by instrument.

    Parameters
    ----------
    first, stop : array, (tiles, LANES) int64
        Rows ``first <= t < stop`` exist; ``first == stop`` where none does.
    rows : int
        Rows of the panel.
    """

    first: Rows
    stop: Rows
    rows: int
    _dead: dict[int, Mask | None] = field(default_factory=dict, init=False, repr=False)

    def dead(self, tile: int) -> Mask | None:
        """Return (T, LANES), true where the row does not exist; None when all rows of the tile do."""
        if tile not in self._dead:
            row = np.arange(self.rows)[:, None]
            mask = (row < self.first[tile]) | (row >= self.stop[tile])
            self._dead[tile] = mask if mask.any() else None
        return self._dead[tile]

    def same_as(self, other: Spans) -> bool:
        """Say whether the same rows exist in both."""
        return self is other or (
            np.array_equal(self.first, other.first)
            and np.array_equal(self.stop, other.stop)
            and self.rows == other.rows
        )

    def union(self, other: Spans) -> Spans:
        """Return the rows from the first to the last that exist in either, as pandas aligns two series."""
        if self.same_as(other):
            return self
        mine, theirs = self.first < self.stop, other.first < other.stop
        first = np.where(mine & theirs, np.minimum(self.first, other.first), np.where(mine, self.first, other.first))
        stop = np.where(mine & theirs, np.maximum(self.stop, other.stop), np.where(mine, self.stop, other.stop))
        return Spans(first, stop, self.rows)

    def window(self, begin: int, end: int) -> Spans:
        """Return the spans of rows ``begin <= t < end``, counted from ``begin``."""
        first = np.clip(self.first, begin, end) - begin
        return Spans(first, np.maximum(np.clip(self.stop, begin, end) - begin, first), end - begin)

    def tiles(self, begin: int, end: int) -> Spans:
        """Return the spans of some tiles."""
        return Spans(self.first[begin:end], self.stop[begin:end], self.rows)


@dataclass(frozen=True, eq=False)
class Column:
    """One column and which of its rows exist; values are NaN wherever they do not."""

    values: Values
    spans: Spans


class TiledPanel:
    """Days x instruments, columns read from a source when they are first asked for.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
        The provider's trading days from its first one on, increasing.
    instruments : sequence of str, (N,)
        Unique codes; their order is the order of the lanes.
    source : FieldSource
        Read once for each column; columns stay in memory.
    member : array, (T, N) bool, optional
        True where the instrument belongs to the universe that day; None: all of them, always.

    Notes
    -----
    Row ``t`` of a field holds what is known at the close of ``days[t]``.
    """

    def __init__(self, days: Days, instruments: Sequence[str], source: FieldSource, member: Mask | None = None) -> None:
        self.days = as_days(days)
        self.instruments = tuple(instruments)
        if len(set(self.instruments)) != len(self.instruments):
            raise PanelError("instruments are listed more than once; expected unique codes; drop the copies")
        if not self.instruments or not len(self.days):
            raise PanelError(
                f"{len(self.instruments)} instruments and {len(self.days)} days; expected at least one of each; "
                "check the universe and the calendar"
            )
        self.source = source
        self.member = None if member is None else tiled(np.asarray(member, dtype=np.bool_), False, self.shape)
        self._columns: dict[str, Column] = {}
        self._others: dict[str, TiledPanel] = {}
        self._lock = threading.RLock()

    @property
    def shape(self) -> tuple[int, int]:
        """Number of days and number of instruments."""
        return len(self.days), len(self.instruments)

    @property
    def tile_count(self) -> int:
        """Number of tiles."""
        return -(-len(self.instruments) // LANES)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the columns in memory."""
        return tuple(self._columns)

    def column(self, name: str) -> Column:
        """Return a column, reading it when it is not in memory; safe to call from several threads."""
        with self._lock:
            if name not in self._columns:
                self._columns[name] = self._read(name)
            return self._columns[name]

    def put(self, name: str, column: Column) -> None:
        """Keep a column that was computed or read elsewhere under ``name``."""
        expected = (self.tile_count, len(self.days), LANES)
        if column.values.shape != expected:
            raise PanelError(f"column {name!r} has shape {column.values.shape}; expected {expected}; tile it first")
        with self._lock:
            self._columns[name] = column

    def forget(self, name: str) -> None:
        """Drop a column from memory; it is read anew when it is next asked for."""
        with self._lock:
            self._columns.pop(name, None)
            for other in self._others.values():
                other.forget(name)

    def window(self, begin: int, end: int) -> TiledPanel:
        """Return rows ``begin <= t < end`` as a panel of views; columns not yet in memory are read whole first."""
        return _Window(self, begin, end)

    def with_members(self, member: Mask | None) -> TiledPanel:
        """Return the same columns with another universe, (T, N) bool; None: all instruments, always."""
        panel = self.window(0, len(self.days))
        panel.member = None if member is None else tiled(np.asarray(member, dtype=np.bool_), False, self.shape)
        return panel

    def of_instrument(self, code: str) -> TiledPanel:
        """Return the panel of one instrument over the same days, whether or not it is one of ours."""
        with self._lock:
            if code not in self._others:
                self._others[code] = self._alone(code)
            return self._others[code]

    def _alone(self, code: str) -> TiledPanel:
        return TiledPanel(self.days, (code,), self.source)

    def untiled(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return (T, N) of values shaped (tiles, T, LANES)."""
        rows = values.shape[-2]
        return np.moveaxis(values, -3, -2).reshape(*values.shape[:-3], rows, -1)[..., : len(self.instruments)]

    @classmethod
    def from_arrays(
        cls,
        days: Days,
        instruments: Sequence[str],
        values: Mapping[str, NDArray[np.floating]],
        *,
        spans: Mapping[str, tuple[int, int]] | None = None,
        member: Mask | None = None,
    ) -> TiledPanel:
        """Make a panel of dense arrays.

        Parameters
        ----------
        days, instruments, member
            As for the class.
        values : mapping of name to array, (T, N) float
            Cast to float32.
        spans : mapping of instrument to (first, stop) rows, optional
            Which rows exist, the same for all columns; default all rows.
        """
        return cls(days, instruments, _Dense(values, tuple(instruments), spans), member)

    def _read(self, name: str) -> Column:
        rows = len(self.days)
        values = np.full((self.tile_count, rows, LANES), np.nan, dtype=np.float32)
        first = np.zeros((self.tile_count, LANES), dtype=np.int64)
        stop = np.zeros_like(first)
        for position, (start, series) in enumerate(self.source.read(name, self.instruments, rows)):
            tile, lane = divmod(position, LANES)
            kept = series[: max(0, rows - start)]
            values[tile, start : start + len(kept), lane] = kept
            first[tile, lane], stop[tile, lane] = (start, start + len(kept)) if len(kept) else (0, 0)
        return Column(values, self._shared(Spans(first, stop, rows)))

    def _shared(self, spans: Spans) -> Spans:
        """Return the spans of a column in memory when they are the same: most columns of a market share theirs."""
        return next((known.spans for known in self._columns.values() if known.spans.same_as(spans)), spans)


class _Window(TiledPanel):
    """Some rows of another panel, without a copy."""

    def __init__(self, whole: TiledPanel, begin: int, end: int) -> None:
        if not 0 <= begin < end <= len(whole.days):
            raise PanelError(f"rows {begin} to {end}; expected 0 <= begin < end <= {len(whole.days)}; correct them")
        self.whole, self.begin, self.end = whole, begin, end
        self.days = whole.days[begin:end]
        self.instruments = whole.instruments
        self.source = whole.source
        self.member = None if whole.member is None else whole.member[:, begin:end]
        self._columns, self._others = {}, {}
        self._lock = threading.RLock()

    def _alone(self, code: str) -> TiledPanel:
        return self.whole.of_instrument(code).window(self.begin, self.end)

    def _read(self, name: str) -> Column:
        column = self.whole.column(name)
        return Column(column.values[:, self.begin : self.end], self._shared(column.spans.window(self.begin, self.end)))


class _Dense:
    """Arrays that are in memory already."""

    def __init__(
        self,
        values: Mapping[str, NDArray[np.floating]],
        instruments: tuple[str, ...],
        spans: Mapping[str, tuple[int, int]] | None,
    ) -> None:
        self.values, self.spans = values, spans
        self.position = {code: place for place, code in enumerate(instruments)}

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> Iterable[Series]:
        if name not in self.values:
            raise PanelError(
                f"column {name!r} is not in the panel; it has {sorted(self.values)}; add it or ask for one"
            )
        array = self.values[name]
        for code in instruments:
            first, stop = (0, len(array)) if self.spans is None else self.spans[code]
            first, stop = max(first, since), min(stop, rows)
            yield (first, array[first:stop, self.position[code]].astype(np.float32)) if first < stop else _NONE


_NONE: Series = (0, np.empty(0, dtype=np.float32))


def tiled(values: NDArray[np.generic], fill: object, shape: tuple[int, int]) -> NDArray[np.generic]:
    """Return (T, N) values as (tiles, T, LANES), the lanes beyond N holding ``fill``."""
    if values.shape != shape:
        raise PanelError(f"array has shape {values.shape}; expected {shape} (days, instruments); align it to the panel")
    rows, count = shape
    tiles = -(-count // LANES)
    padded = np.full((rows, tiles * LANES), fill, dtype=values.dtype)
    padded[:, :count] = values
    return np.ascontiguousarray(np.moveaxis(padded.reshape(rows, tiles, LANES), 1, 0))
