"""The engine's panel: columns of bars in tiles, read when they are first asked for.

A column is ``(tiles, T, LANES)`` float32: tile ``n // LANES``, lane ``n % LANES`` holds instrument ``n``, time runs
down. The intermediate results of one tile fit the second-level cache: that is where the engine is fast. The last
tile is filled up with lanes that never exist.

An instrument *exists* in a column from its first stored row to its last, its *span*; Qlib's series has exactly these
rows. A suspended day is NaN inside the span. Outside it every value is NaN.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.registry import LANES
from qlib_llm_alpha.engine.panel import Days, as_days
from qlib_llm_alpha.errors import PanelError

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Series = tuple[int, Values]
_Kind = TypeVar("_Kind", bound=np.generic)

_log = logging.getLogger(__name__)
_VALUE_BYTES: Final = 4
_MB: Final = 1e6


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


@runtime_checkable
class StampedSource(Protocol):
    """A source that can tell, without reading, whether a column may have changed."""

    def stamp(self, name: str, instruments: Sequence[str]) -> bytes | None:
        """Return a fingerprint that differs after a change; None where nobody can tell."""


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
    memory_limit : int, optional
        Bytes that the columns may take. A column beyond is refused; :meth:`blocks` works under any ceiling.

    Notes
    -----
    Row ``t`` of a field holds what is known at the close of ``days[t]``. What a column takes is said in the log (INFO)
    before it is taken.

    A panel is not pickled: ``engine.panel_store`` saves it, and what is opened from there travels as its path.
    """

    def __init__(
        self,
        days: Days,
        instruments: Sequence[str],
        source: FieldSource,
        member: Mask | None = None,
        *,
        memory_limit: int | None = None,
    ) -> None:
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
        self._begin(memory_limit)

    def _begin(self, memory_limit: int | None) -> None:
        """Start without a column."""
        self.memory_limit = memory_limit
        self._columns: dict[str, Column] = {}
        self._stamps: dict[str, bytes | None] = {}
        self._digests: dict[str, dict[tuple[int, int], bytes]] = {}
        self._others: dict[str, TiledPanel] = {}
        self._first_bars: Any = _UNKNOWN
        self._lock = threading.RLock()

    def __reduce__(self) -> NoReturn:
        raise PanelError(
            f"a panel of {len(self.days)} days and {len(self.instruments)} instruments does not travel between "
            "processes; expected one that was opened from a folder; save it with save_panel and hand over "
            "open_saved_panel(folder)"
        )

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

    @property
    def held(self) -> int:
        """Bytes of the columns in memory."""
        return sum(column.values.nbytes for column in self._columns.values())

    def bytes_for(self, columns: int) -> int:
        """Return the bytes that a number of columns takes."""
        return columns * self.tile_count * len(self.days) * LANES * _VALUE_BYTES

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
            self._claim(name)
            self._drop(name)
            self._columns[name] = column

    def forget(self, name: str) -> None:
        """Drop a column from memory; it is read anew when it is next asked for."""
        with self._lock:
            self._drop(name)
            for other in self._others.values():
                other.forget(name)

    def forget_changed(self) -> tuple[str, ...]:
        """Drop the columns whose source changed since they were read, or cannot tell.

        Columns that were put in stay.

        Returns
        -------
        tuple of str
            The names dropped, those of other instruments included.
        """
        with self._lock:
            stamps = {name: self._stamp(name) for name in self._stamps}
            dropped = [name for name, stamp in stamps.items() if stamp is None or stamp != self._stamps[name]]
            for name in dropped:
                self._drop(name)
            for other in self._others.values():
                dropped.extend(other.forget_changed())
        return tuple(dict.fromkeys(dropped))

    def digest(self, name: str, tile: int, rows: int) -> bytes:
        """Return a hash, 16 bytes, of what the first ``rows`` rows of one tile of a column hold.

        Two digests are equal when values and spans up to there are; days and codes do not enter. Kept with the column.
        """
        column = self.column(name)
        known = self._digests.setdefault(name, {})
        if (tile, rows) not in known:
            digest = hashlib.blake2b(digest_size=16)
            digest.update(np.ascontiguousarray(column.values[tile, :rows]).data)
            for side in (column.spans.first, column.spans.stop):
                digest.update(np.minimum(side[tile], rows).data)
            known[tile, rows] = digest.digest()
        return known[tile, rows]

    def member_digest(self, rows: int) -> bytes:
        """Return a hash, 16 bytes, of the codes and of who belongs to the universe in the first ``rows`` rows."""
        digest = hashlib.blake2b("\n".join(self.instruments).encode(), digest_size=16)
        if self.member is not None:
            digest.update(np.packbits(np.asarray(self.member[:, :rows], dtype=np.bool_)).data)
        return digest.digest()

    def appended(
        self,
        days: Days,
        *,
        instruments: Sequence[str] | None = None,
        member: Mask | None = None,
        overlap: int | None = None,
    ) -> TiledPanel:
        """Return the same panel with later days, holding the same columns; this one stays as it is.

        Parameters
        ----------
        days : array, (T',) datetime64[D]
            This panel's days, and later ones.
        instruments : sequence of str, (N',), optional
            Default: this panel's. New ones are read from their beginning.
        member : array, (T', N') bool, optional
            Needed when this panel has a universe.
        overlap : int, optional
            How many of the last known rows are read again and compared. Values before them are taken over from memory;
            an instrument whose overlap differs, as after a rescaling of prices, or holds no value to compare although
            later rows came, is read whole. A correction further back goes unseen. None: everything is read again, so
            that no change can be missed; on local files this takes little longer, since opening a file is what takes
            time.

        Raises
        ------
        PanelError
            Days that do not begin with this panel's, no membership for the later days, or the memory limit.

        Notes
        -----
        Columns that were put in are left out: their values at later days are not known.
        """
        days = as_days(days)
        if not np.array_equal(days[: len(self.days)], self.days):
            raise PanelError(
                f"{len(days)} days from {days[:1]}; expected the panel's {len(self.days)} days from {self.days[0]} to "
                f"{self.days[-1]} and later ones; open the panel anew when the calendar's past changed"
            )
        if member is None and self.member is not None:
            raise PanelError(
                "the panel has a universe, and no membership was given for the later days; expected (days, "
                "instruments) bool; hand it in as member"
            )
        codes = self.instruments if instruments is None else instruments
        longer = TiledPanel(days, codes, self.source, member, memory_limit=self.memory_limit)
        since = 0 if overlap is None else max(0, len(self.days) - overlap)
        for name in self._stamps:
            longer._columns[name] = longer._continued(name, self, since)
        return longer

    def blocks(self, names: Iterable[str], budget: int) -> Iterator[tuple[int, int, TiledPanel]]:
        """Yield the panel in blocks of instruments whose columns fit a number of bytes.

        Parameters
        ----------
        names : iterable of str
            The columns that will be asked for.
        budget : int
            Bytes that they may take. With a memory limit, what is left of it counts when that is less.

        Yields
        ------
        first, last : int
            The block's tiles are ``first <= tile < last``.
        panel : TiledPanel
            Their instruments, with columns of its own that go with it; the panel itself when everything fits.

        Raises
        ------
        PanelError
            Not even one tile fits.
        """
        missing = [name for name in dict.fromkeys(names) if not self._has(name)]
        room = budget if self.memory_limit is None else min(budget, self.memory_limit - self.held)
        needed = self.bytes_for(len(missing))
        if needed <= room:
            yield 0, self.tile_count, self
            return
        step = max(0, room) * self.tile_count // needed
        if not step:
            raise PanelError(
                f"one tile of {len(missing)} columns takes {needed / self.tile_count / _MB:.1f} MB, and there is room "
                f"for {max(0, room) / _MB:.1f} MB; expected room for one tile at least; raise the budget or the memory "
                "limit, or ask for fewer formulas at a time"
            )
        _log.info(
            "%d columns would take %.1f MB: %d instruments at a time, %.1f MB",
            len(missing),
            needed / _MB,
            step * LANES,
            needed * step / self.tile_count / _MB,
        )
        for first in range(0, self.tile_count, step):
            last = min(first + step, self.tile_count)
            yield first, last, self.part(first, last)

    def window(self, begin: int, end: int) -> TiledPanel:
        """Return rows ``begin <= t < end`` as a panel of views; columns not yet in memory are read whole first."""
        return _Window(self, begin, end)

    def part(self, first: int, last: int) -> TiledPanel:
        """Return the instruments of tiles ``first <= tile < last``; what is not in memory is read for them alone."""
        return _Part(self, first, last)

    @property
    def first_bars(self) -> Rows | None:
        """The first row with a close, (tiles, LANES), the number of rows where there is none; None: no such column."""
        with self._lock:
            if self._first_bars is _UNKNOWN:
                try:
                    known = ~np.isnan(self.column("$close").values)
                except PanelError:
                    self._first_bars = None
                else:
                    self._first_bars = np.where(known.any(axis=1), known.argmax(axis=1), len(self.days))
            found: Rows | None = self._first_bars
            return found

    def with_members(self, member: Mask | None) -> TiledPanel:
        """Return the same columns with another universe, (T, N) bool; None: all instruments, always."""
        panel = _Window(self, 0, len(self.days))
        panel.own_universe = True
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

    def untiled(self, values: NDArray[_Kind]) -> NDArray[_Kind]:
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

    def _has(self, name: str) -> bool:
        return name in self._columns

    def _drop(self, name: str) -> None:
        self._columns.pop(name, None)
        self._stamps.pop(name, None)
        self._digests.pop(name, None)
        if name == "$close":
            self._first_bars = _UNKNOWN

    def _stamp(self, name: str) -> bytes | None:
        return self.source.stamp(name, self.instruments) if isinstance(self.source, StampedSource) else None

    def _claim(self, name: str) -> None:
        """State what a column will take, and refuse it when that is beyond the limit."""
        replaced = self._columns.get(name)
        needed, held = self.bytes_for(1), self.held - (0 if replaced is None else replaced.values.nbytes)
        if self.memory_limit is not None and held + needed > self.memory_limit:
            raise PanelError(
                f"column {name!r} takes {needed / _MB:.1f} MB; of {self.memory_limit / _MB:.1f} MB "
                f"{held / _MB:.1f} MB are taken; expected it to fit; raise memory_limit, forget columns, or work in "
                "blocks of instruments (TiledPanel.blocks)"
            )
        _log.info("column %s takes %.1f MB; %.1f MB with what is held", name, needed / _MB, (held + needed) / _MB)

    def _read(self, name: str) -> Column:
        self._claim(name)
        self._stamps[name] = self._stamp(name)  # before reading: a change in between is then seen
        filling = _Filling(self)
        for position, series in enumerate(self.source.read(name, self.instruments, len(self.days))):
            filling.write(position, series)
        return filling.column(self)

    def _continued(self, name: str, before: TiledPanel, since: int) -> Column:
        """Read a column of which an earlier panel has the rows before ``since``."""
        self._claim(name)
        self._stamps[name] = self._stamp(name)
        filling, place = _Filling(self), {code: position for position, code in enumerate(before.instruments)}
        known, anew = before._columns[name], []
        for position, series in enumerate(self.source.read(name, self.instruments, len(self.days), since)):
            filling.write(position, series)
            code = self.instruments[position]
            if since and not (code in place and filling.join(position, known, place[code], since)):
                anew.append(position)
        codes = [self.instruments[position] for position in anew]
        if codes:
            for position, series in zip(anew, self.source.read(name, codes, len(self.days)), strict=True):
                filling.clear(position)
                filling.write(position, series)
        return filling.column(self)

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
        self.own_universe = False
        self._begin(whole.memory_limit)

    def __reduce__(self) -> Any:
        return super().__reduce__() if self.own_universe else (_Window, (self.whole, self.begin, self.end))

    @property
    def held(self) -> int:
        return self.whole.held

    def bytes_for(self, columns: int) -> int:
        return self.whole.bytes_for(columns)

    def forget(self, name: str) -> None:
        self.whole.forget(name)
        super().forget(name)

    def forget_changed(self) -> tuple[str, ...]:
        dropped = self.whole.forget_changed()
        for name in dropped:
            super().forget(name)
        return dropped

    def appended(
        self,
        days: Days,
        *,
        instruments: Sequence[str] | None = None,
        member: Mask | None = None,
        overlap: int | None = None,
    ) -> TiledPanel:
        raise PanelError(
            f"rows {self.begin} to {self.end} of a panel, or the panel with another universe; expected the panel "
            "itself; append to that one and take the window or the universe again"
        )

    def _has(self, name: str) -> bool:
        return name in self._columns or self.whole._has(name)

    def part(self, first: int, last: int) -> TiledPanel:
        part = self.whole.part(first, last).window(self.begin, self.end)
        part.member = None if self.member is None else self.member[first:last]
        return part

    def _alone(self, code: str) -> TiledPanel:
        return self.whole.of_instrument(code).window(self.begin, self.end)

    def _read(self, name: str) -> Column:
        column = self.whole.column(name)
        return Column(column.values[:, self.begin : self.end], self._shared(column.spans.window(self.begin, self.end)))


class _Part(TiledPanel):
    """Some tiles of another panel: views of its columns where it has them, columns of its own where not."""

    def __init__(self, whole: TiledPanel, first: int, last: int) -> None:
        self.whole, self.first, self.last = whole, first, last
        self.days = whole.days
        self.instruments = whole.instruments[first * LANES : last * LANES]
        self.source = whole.source
        self.member = None if whole.member is None else whole.member[first:last]
        self._begin(None)

    def _has(self, name: str) -> bool:
        return name in self._columns or self.whole._has(name)

    def _claim(self, name: str) -> None:
        """Take it: the budget of the block counted it."""

    def _alone(self, code: str) -> TiledPanel:
        return self.whole.of_instrument(code)

    def _read(self, name: str) -> Column:
        if not self.whole._has(name):
            return super()._read(name)
        column = self.whole.column(name)
        spans = column.spans.tiles(self.first, self.last)
        return Column(column.values[self.first : self.last], self._shared(spans))


class _Filling:
    """A column while its series come in."""

    def __init__(self, panel: TiledPanel) -> None:
        self.rows = len(panel.days)
        self.values: Values = np.full((panel.tile_count, self.rows, LANES), np.nan, dtype=np.float32)
        self.first: Rows = np.zeros((panel.tile_count, LANES), dtype=np.int64)
        self.stop: Rows = np.zeros_like(self.first)

    def write(self, position: int, series: Series) -> None:
        """Set the series of one instrument."""
        tile, lane = divmod(position, LANES)
        start, kept = series[0], series[1][: max(0, self.rows - series[0])]
        self.values[tile, start : start + len(kept), lane] = kept
        self.first[tile, lane], self.stop[tile, lane] = (start, start + len(kept)) if len(kept) else (0, 0)

    def clear(self, position: int) -> None:
        tile, lane = divmod(position, LANES)
        self.values[tile, :, lane] = np.nan

    def join(self, position: int, known: Column, place: int, since: int) -> bool:
        """Put the rows before ``since`` of a known column in front; say whether the rest carries them on."""
        tile, lane = divmod(position, LANES)
        old_tile, old_lane = divmod(place, LANES)
        old, new = known.values[old_tile, :, old_lane], self.values[tile, :, lane]
        begin, end = int(known.spans.first[old_tile, old_lane]), int(known.spans.stop[old_tile, old_lane])
        first, stop = int(self.first[tile, lane]), int(self.stop[tile, lane])
        if end <= since:
            carried_on = first == stop
        else:
            overlap = old[since:]
            carried_on = (
                first == max(begin, since)
                and stop >= end
                and np.array_equal(overlap, new[since : len(old)], equal_nan=True)
                and not (np.isnan(overlap).all() and stop > len(old))
            )
        if not carried_on:
            return False
        new[:since] = old[:since]
        self.first[tile, lane], self.stop[tile, lane] = min(begin, first) if first < stop else begin, max(stop, end)
        return True

    def column(self, panel: TiledPanel) -> Column:
        return Column(self.values, panel._shared(Spans(self.first, self.stop, self.rows)))


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
        unknown = [code for code in instruments if code not in self.position]
        if unknown:
            raise PanelError(
                f"instruments {unknown!r} are not in the panel, which has {len(self.position)}; add them or ask for "
                "others"
            )
        for code in instruments:
            first, stop = (0, len(array)) if self.spans is None else self.spans[code]
            first, stop = max(first, since), min(stop, rows)
            yield (first, array[first:stop, self.position[code]].astype(np.float32)) if first < stop else _NONE

    def stamp(self, name: str, instruments: Sequence[str]) -> bytes:
        return b""


_UNKNOWN: Final = object()
_NONE: Series = (0, np.empty(0, dtype=np.float32))


def tiled(values: NDArray[_Kind], fill: object, shape: tuple[int, int]) -> NDArray[_Kind]:
    """Return (T, N) values as (tiles, T, LANES), the lanes beyond N holding ``fill``."""
    if values.shape != shape:
        raise PanelError(f"array has shape {values.shape}; expected {shape} (days, instruments); align it to the panel")
    rows, count = shape
    tiles = -(-count // LANES)
    padded = np.full((rows, tiles * LANES), fill, dtype=values.dtype)
    padded[:, :count] = values
    return np.ascontiguousarray(np.moveaxis(padded.reshape(rows, tiles, LANES), 1, 0))
