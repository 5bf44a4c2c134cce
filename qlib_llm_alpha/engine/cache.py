"""A cache of factor columns on disk that cannot serve what is no longer true.

A file holds one formula on one tile of 32 instruments, or on all of them where the formula reads across the day. Its
name stands for what was asked: the tree as executed, the instruments, the first day, the engine. In it, beside the
values, stand digests of every column that the formula read, as far as it read them. A file is believed only when the
same columns have the same digests today: what a changed bar, span or membership touches is computed anew, and nothing
else.

When days were appended and the old rows are as they were, only new rows are computed, on the last part of the panel.
That part begins early enough for the result to have the bits of a computation over the whole history; where this cannot
be said of an operator (exponential means, expanding windows), the whole history is computed.

Reading a tile takes about 0.1 ms for ten years of days, writing one about 1 ms. Cheap formulas are computed as fast as
they are read: the cache is for dear ones, and for columns that somebody else evaluates.

What is stored is every value from the first bar on (``warmup="qlib"``); a strict warm-up is blanked where it is asked
for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np

import qlib_llm_alpha
from qlib_llm_alpha.engine.across import ACROSS
from qlib_llm_alpha.engine.evaluate import Columns, Warmup, as_executed, evaluate, lookback_of, warmed
from qlib_llm_alpha.engine.graph import Graph, Node, below
from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, KERNELS, LANES
from qlib_llm_alpha.engine.tiles import Column, Series, Spans, TiledPanel, Values
from qlib_llm_alpha.errors import PanelError
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.printing import to_text
from qlib_llm_alpha.factor.tree import Call
from qlib_llm_alpha.factor.tree import Node as Tree

_LOG = logging.getLogger(__name__)

Digests = tuple[tuple[str, str, str], ...]
"""Of each column read: the other instrument that it was read of, or empty; its name; a hash of its values and spans."""

WINDOW_RULE: Final = "whole"
"""Values are those of a query over the whole history; stands in the key, so that another rule cannot be mistaken."""

FORGETS: Final = frozenset(
    {
        "Mean",
        "Sum",
        "Count",
        "Std",
        "Var",
        "Skew",
        "Kurt",
        "Max",
        "Min",
        "IdxMax",
        "IdxMin",
        "Med",
        "Mad",
        "Quantile",
        "Rank",
        "Corr",
        "Cov",
        "DecayLinear",
        "Entropy",
    }
)
"""Windowed operators that know nothing of rows before the window once their sums were added up anew.

An operator that is not listed is computed over the whole history: right, and slower. Exponential means never forget,
and neither do the lines (Slope, Rsquare, Resi): an infinite value spoils all that follows it.
"""

_MAGIC: Final = b"qlib-llm-alpha column "
_HEADER_STEP: Final = 64
_MEMBERS: Final = "members"


@dataclass(frozen=True, slots=True)
class CacheReport:
    """How many pairs of a formula and a tile were served how.

    Parameters
    ----------
    read : int
        As they stood on disk.
    extended : int
        Old rows from disk, new rows computed.
    computed : int
        Computed over the whole history.
    """

    read: int = 0
    extended: int = 0
    computed: int = 0


@dataclass(frozen=True, eq=False)
class Entry:
    """What one file holds.

    Parameters
    ----------
    digests : tuple
        Of the columns that were read, for the rows that ``values`` has.
    values : array, (tiles, rows, LANES) float32
    """

    digests: Digests
    values: Values

    @property
    def rows(self) -> int:
        """Number of days."""
        return int(self.values.shape[1])


class ColumnCache:
    """Factor columns in a folder, for any number of panels and processes at once.

    A file is written under another name and then renamed, so that nobody reads half of it; of two writers the later
    one wins. A file that cannot be believed is ignored with a warning. The folder may be deleted at any time.

    Parameters
    ----------
    folder : path
        Made when it is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> Entry | None:
        """Return what is stored under a key, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            return _decoded(content, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s is no column of this cache (%r): it is ignored and computed anew", path, error)
            return None

    def write(self, key: str, text: str, entry: Entry) -> None:
        """Store an entry; ``text`` is for people who look into the file. A full disk is a warning, not an error."""
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.writelines(_encoded(key, text, entry))
                Path(name).replace(path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            _LOG.warning("%s was not written (%s): it will be computed again next time", path, error)

    def _path(self, key: str) -> Path:
        # Folders of their own for the first two digits: a folder with 100,000 files is slow on many file systems.
        return self.folder / key[:2] / f"{key}.column"


def cached_evaluate(
    formulas: Sequence[Expression | Tree],
    panel: TiledPanel,
    cache: ColumnCache,
    *,
    warmup: Warmup = "qlib",
    threads: int | None = None,
    foreign: Callable[[Call], bool] = lambda tree: False,
    out: Values | None = None,
) -> Columns:
    """Return what :func:`~qlib_llm_alpha.engine.evaluate.evaluate` returns, bit for bit, computing what is missing.

    Parameters
    ----------
    formulas, panel, warmup, threads, foreign, out
        As for ``evaluate``. Columns that ``foreign`` leaves to the panel's source are digested by value, as fields are.
    cache : ColumnCache
        Read, and written with what was computed.

    Returns
    -------
    Columns

    Raises
    ------
    ExpressionError, PanelError
        As ``evaluate`` does.
    """
    columns, report = evaluate_and_report(
        formulas, panel, cache, warmup=warmup, threads=threads, foreign=foreign, out=out
    )
    _LOG.info(
        "columns of %d formulas: %d tiles read, %d extended, %d computed",
        len(formulas),
        report.read,
        report.extended,
        report.computed,
    )
    return columns


def evaluate_and_report(
    formulas: Sequence[Expression | Tree],
    panel: TiledPanel,
    cache: ColumnCache,
    *,
    warmup: Warmup = "qlib",
    threads: int | None = None,
    foreign: Callable[[Call], bool] = lambda tree: False,
    out: Values | None = None,
) -> tuple[Columns, CacheReport]:
    """Return the same as :func:`cached_evaluate`, and how much of it came from where."""
    lookbacks = [lookback_of(formula) if warmup == "strict" else 0 for formula in formulas]
    graph = Graph(foreign)
    asked = [_Asked.of(formula, graph) for formula in formulas]
    shape = (len(formulas), panel.tile_count, len(panel.days), LANES)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise PanelError(f"out has shape {out.shape} and type {out.dtype}; expected {shape} float32; allocate that")
    call = _CachedCall(asked, panel, cache, out, threads=threads, foreign=foreign)
    report = call.run()
    spans = tuple(_spans(one.root, panel) for one in asked)
    for position, lookback in enumerate(lookbacks):
        _blank_warmup(out[position], spans[position], lookback, panel)
    return Columns(out, spans, panel), report


@dataclass(frozen=True, slots=True)
class _Memory:
    """Which rows the value of a row depends on.

    Parameters
    ----------
    settle : int
        A computation that begins at a row divisible by ``grid`` has the right bits from ``settle`` rows later on.
    ahead : int
        Rows after the row that it reads.
    grid : int
    """

    settle: int = 0
    ahead: int = 0
    grid: int = 1


@dataclass(frozen=True, eq=False)
class _Asked:
    """A formula as the cache sees it; ``memory`` is None where it has no end."""

    tree: Tree
    root: Node
    text: str
    reads: tuple[tuple[str, str], ...]
    is_across: bool
    memory: _Memory | None

    @classmethod
    def of(cls, formula: Expression | Tree, graph: Graph) -> _Asked:
        tree = as_executed(formula)
        root = graph.add(tree)
        is_across = any(node.op in ACROSS for node in below([root]))
        return cls(tree, root, to_text(tree), tuple(sorted(_reads(root))), is_across, _memory(root))

    def first_row_to_compute(self, known: int) -> tuple[int, int]:
        """Return where a computation begins and the first row of it to take, when ``known`` rows are stored."""
        if self.memory is None:
            return 0, 0
        keep = known - self.memory.ahead
        begin = (keep - self.memory.settle) // self.memory.grid * self.memory.grid
        return (begin, keep) if begin > 0 else (0, 0)


@dataclass(frozen=True, eq=False)
class _Missing:
    """Rows from ``take`` on of a formula on the tiles ``first <= tile < last``, to be stored under ``key``."""

    position: int
    first: int
    last: int
    key: str
    begin: int
    take: int


class _CachedCall:
    """One evaluation through the cache."""

    def __init__(
        self,
        asked: list[_Asked],
        panel: TiledPanel,
        cache: ColumnCache,
        out: Values,
        *,
        threads: int | None,
        foreign: Callable[[Call], bool],
    ) -> None:
        self.asked, self.panel, self.cache, self.out = asked, panel, cache, out
        self.threads, self.foreign = threads, foreign
        self.rows = len(panel.days)

    def run(self) -> CacheReport:
        missing = []
        for position, one in enumerate(self.asked):
            step = self.panel.tile_count if one.is_across else 1
            for first in range(0, self.panel.tile_count, step):
                found = self._filled(position, first, first + step)
                if found is not None:
                    missing.append(found)
        for begin, tiles, positions in self._batches(missing):
            self._compute(begin, tiles, positions, missing)
        for rows in missing:
            one = self.asked[rows.position]
            values = self.out[rows.position, rows.first : rows.last]
            entry = Entry(self._digests(one, rows.first, rows.last, self.rows), values)
            self.cache.write(rows.key, one.text, entry)
        extended = sum(rows.last - rows.first for rows in missing if rows.begin)
        computed = sum(rows.last - rows.first for rows in missing if not rows.begin)
        return CacheReport(len(self.asked) * self.panel.tile_count - extended - computed, extended, computed)

    def _filled(self, position: int, first: int, last: int) -> _Missing | None:
        """Write what is stored to ``out`` and return what is not."""
        one = self.asked[position]
        key = self._key(one, first, last)
        entry = self.cache.read(key)
        usable = (
            entry is not None
            and len(entry.values) == last - first
            and entry.rows <= self.rows
            and entry.digests == self._digests(one, first, last, entry.rows)
        )
        if entry is None or not usable:
            return _Missing(position, first, last, key, 0, 0)
        if entry.rows == self.rows:
            self.out[position, first:last] = entry.values
            return None
        begin, take = one.first_row_to_compute(entry.rows)
        self.out[position, first:last, :take] = entry.values[:, :take]
        return _Missing(position, first, last, key, begin, take)

    def _key(self, one: _Asked, first: int, last: int) -> str:
        # The universe stands in the key by its first day only, so that appended days find the file. Whether the whole
        # of it is as it was is for the digests to say.
        question = [
            _ENGINE,
            WINDOW_RULE,
            one.text,
            str(self.panel.days[0]),
            self.panel.instruments[first * LANES : last * LANES],
            self.panel.member_digest(1).hex() if one.is_across else "",
        ]
        return blake2b(json.dumps(question).encode(), digest_size=20).hexdigest()

    def _digests(self, one: _Asked, first: int, last: int, rows: int) -> Digests:
        found = []
        for code, name in one.reads:
            panel, tiles = (self.panel.of_instrument(code), range(1)) if code else (self.panel, range(first, last))
            digest = blake2b(digest_size=16)
            for tile in tiles:
                digest.update(panel.digest(name, tile, rows))
            found.append((code, name, digest.hexdigest()))
        if one.is_across:
            found.append(("", _MEMBERS, self.panel.member_digest(rows).hex()))
        return tuple(found)

    def _batches(self, missing: list[_Missing]) -> Iterable[tuple[int, tuple[int, ...], list[int]]]:
        """Yield rows, tiles and formulas that are computed together, so that they share their sub-formulas."""
        by_tile: dict[tuple[int, int], list[int]] = {}
        across: dict[int, list[int]] = {}
        for rows in missing:
            if self.asked[rows.position].is_across:
                across.setdefault(rows.begin, []).append(rows.position)
            else:
                by_tile.setdefault((rows.begin, rows.first), []).append(rows.position)
        everywhere = tuple(range(self.panel.tile_count))
        batches: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for (begin, tile), positions in by_tile.items():
            batches.setdefault((begin, tuple(positions)), []).append(tile)
        for begin, positions in across.items():
            alone = next(
                (key for key, tiles in batches.items() if key[0] == begin and tuple(tiles) == everywhere), None
            )
            together = positions if alone is None else sorted([*positions, *alone[1]])
            if alone is not None:
                del batches[alone]
            batches[begin, tuple(together)] = list(everywhere)
        for (begin, formulas), tiles in batches.items():
            yield begin, tuple(tiles), list(formulas)

    def _compute(self, begin: int, tiles: tuple[int, ...], positions: list[int], missing: list[_Missing]) -> None:
        trees = [self.asked[position].tree for position in positions]
        whole = not begin and len(tiles) == self.panel.tile_count
        part = self.panel if whole else self._part(begin, tiles, positions)
        into = self.out if whole and len(positions) == len(self.asked) else None
        found = evaluate(trees, part, threads=self.threads, foreign=self.foreign, out=into)
        if into is not None:
            return
        wanted, place = set(tiles), {tile: number for number, tile in enumerate(tiles)}
        for rows in missing:
            if rows.begin != begin or rows.position not in positions:
                continue
            values = found.values[positions.index(rows.position)]
            for tile in wanted.intersection(range(rows.first, rows.last)):
                self.out[rows.position, tile, rows.take :] = values[place[tile], rows.take - begin :]

    def _part(self, begin: int, tiles: tuple[int, ...], positions: list[int]) -> TiledPanel:
        """Return some rows and tiles of the panel, with the columns that the formulas read."""
        later = self.panel.window(begin, self.rows)
        if len(tiles) == self.panel.tile_count:
            return later
        codes = [code for tile in tiles for code in self.panel.instruments[tile * LANES : (tile + 1) * LANES]]
        part = TiledPanel(later.days, codes, _OneByOne(later))
        chosen = list(tiles)
        for name in {name for position in positions for code, name in self.asked[position].reads if not code}:
            column = later.column(name)
            spans = Spans(column.spans.first[chosen], column.spans.stop[chosen], column.spans.rows)
            part.put(name, Column(column.values[chosen], spans))
        return part


class _OneByOne:
    """The source of a part of a panel: asked for other instruments only, since all columns of its own are put in."""

    def __init__(self, panel: TiledPanel) -> None:
        self.panel = panel

    def read(self, name: str, instruments: Sequence[str], rows: int, since: int = 0) -> Iterable[Series]:
        for code in instruments:
            column = self.panel.of_instrument(code).column(name)
            first, stop = max(since, int(column.spans.first[0, 0])), min(rows, int(column.spans.stop[0, 0]))
            yield (first, column.values[0, first:stop, 0]) if first < stop else (0, np.empty(0, dtype=np.float32))


def _memory(root: Node) -> _Memory | None:
    """Return what a node remembers; None where there is no end to it."""
    known: dict[int, _Memory | None] = {}
    for node in below([root]):
        known[node.id] = _after(node, [known[child.id] for child in node.children])
    return known[root.id]


def _after(node: Node, inputs: list[_Memory | None]) -> _Memory | None:
    below_it = _joined(inputs)
    if below_it is None:
        return None
    settle, ahead, grid = below_it.settle, below_it.ahead, below_it.grid
    if node.op in ("Ref", "Delta"):
        shift = node.parameters[0]
        # A shift by nothing is Qlib's way to ask for the first bar of all.
        return _Memory(settle + max(shift, 0), ahead + max(-shift, 0), grid) if shift else None
    if node.op in KERNELS:
        window = node.parameters[0]
        if node.op not in FORGETS or not window:
            return None
        # Sums are added up anew at rows divisible by the period. At the first such row that has a whole window of right
        # inputs behind it, all that was there before is forgotten.
        period = max(256, 2 * window)
        return _Memory(max(1, -(-(settle + window - 1) // period)) * period, ahead, math.lcm(grid, period))
    return below_it


def _joined(inputs: list[_Memory | None]) -> _Memory | None:
    found = _Memory()
    for one in inputs:
        if one is None:
            return None
        found = _Memory(max(found.settle, one.settle), max(found.ahead, one.ahead), math.lcm(found.grid, one.grid))
    return found


def _reads(root: Node) -> set[tuple[str, str]]:
    """Return the columns below a node, each with the other instrument that it is read of, or empty."""
    found: set[tuple[str, str]] = set()
    seen: set[tuple[str, int]] = set()
    stack = [("", root)]
    while stack:
        code, node = stack.pop()
        if (code, node.id) in seen:
            continue
        seen.add((code, node.id))
        if node.op == "column":
            found.add((code, node.parameters[0]))
        stack.extend((node.parameters[0] if node.op == "Other" else code, child) for child in node.children)
    return found


def _spans(node: Node, panel: TiledPanel) -> Spans:
    """Return which rows of a formula exist: those of all columns that it reads, from the first to the last."""
    if node.op == "column":
        return panel.column(node.parameters[0]).spans
    if node.op == "Other":
        (child,) = node.children
        alone = _spans(child, panel.of_instrument(node.parameters[0]))
        lanes = (panel.tile_count, LANES)
        return Spans(np.full(lanes, alone.first[0, 0]), np.full(lanes, alone.stop[0, 0]), len(panel.days))
    return functools.reduce(Spans.union, [_spans(child, panel) for child in node.children])


def _blank_warmup(values: Values, spans: Spans, lookback: int, panel: TiledPanel) -> None:
    if not lookback:
        return
    warm = warmed(spans, lookback, panel)
    for tile, column in enumerate(values):
        dead = warm.dead(tile)
        if dead is not None:
            column[dead] = np.nan


def _engine() -> str:
    """Return what the bits of a result depend on beside formula and data: our code, and the libraries that run it."""
    package = Path(qlib_llm_alpha.__file__).parent
    digest = blake2b(digest_size=16)
    for room in ("engine", "factor"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    numba = importlib.metadata.version("numba") if HAVE_NUMBA else "absent"
    machine = f"{platform.machine()} {sys.byteorder}"
    return f"{qlib_llm_alpha.__version__} {digest.hexdigest()} numpy {np.__version__} numba {numba} {machine}"


def _encoded(key: str, text: str, entry: Entry) -> tuple[bytes, memoryview]:
    body = np.ascontiguousarray(entry.values).data.cast("B")
    header = {
        "key": key,
        "text": text,
        "tiles": len(entry.values),
        "rows": entry.rows,
        "digests": entry.digests,
        "crc32": zlib.crc32(body),
    }
    line = _MAGIC + json.dumps(header).encode()
    # Values begin at a round address: numpy is slow on floats that do not.
    padding = -(len(line) + 1) % _HEADER_STEP
    return line + b" " * padding + b"\n", body


def _decoded(content: bytes, key: str) -> Entry:
    """Raise ValueError, KeyError or TypeError for what :func:`_encoded` did not write under this key."""
    end = content.find(b"\n")
    if end < 0 or not content.startswith(_MAGIC):
        raise ValueError("it does not begin as one")
    header = json.loads(content[len(_MAGIC) : end])
    tiles, rows = header["tiles"], header["rows"]
    body = memoryview(content)[end + 1 :]
    if header["key"] != key:
        raise ValueError(f"it was stored for the key {header['key']!r}")
    if len(body) != tiles * rows * LANES * np.dtype(np.float32).itemsize:
        raise ValueError(f"{len(body)} bytes of values; expected {tiles} tiles of {rows} rows")
    if zlib.crc32(body) != header["crc32"]:
        raise ValueError("its values are not those that were stored")
    digests = tuple((str(code), str(name), str(digest)) for code, name, digest in header["digests"])
    return Entry(digests, np.frombuffer(body, dtype=np.float32).reshape(tiles, rows, LANES))


# When it is imported: what counts is the code that was loaded, not what stands on disk after an edit or an upgrade.
_ENGINE: Final = _engine()
