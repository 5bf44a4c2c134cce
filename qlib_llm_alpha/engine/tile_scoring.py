"""Score factor columns straight from tiles: the measures of :mod:`qlib_llm_alpha.engine.scoring`, many times faster.

Shapes: a column is (tiles, T, LANES) float32 as the engine writes it, K candidates are (K, tiles, T, LANES); results
are daily, (T,). ``N`` is tiles * LANES: lanes that never exist have no value and do not count.

Timing: row ``t`` of a label is a return *after* ``t``; an IC dated ``t`` is known when that label is. Coverage,
turnover and autocorrelation are known at the close of ``t``.

NaN rule: that of :mod:`qlib_llm_alpha.engine.scoring`. In addition infinite values count as missing, and so do those of
names that are not members of the universe that day.

What makes it fast: a day is sorted once and its ranks serve rank IC, all horizons, turnover and autocorrelation; the
label is ranked once per data set, and where two sides miss different names their ranks are corrected, not sorted anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine import scoring
from qlib_llm_alpha.engine.compiling import announce_first_compilation
from qlib_llm_alpha.engine.cross_section import rank
from qlib_llm_alpha.engine.kernels import day_scores
from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, LANES
from qlib_llm_alpha.engine.scoring import MIN_NAMES
from qlib_llm_alpha.errors import PanelError

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
Ranks = NDArray[np.int32]
Mask = NDArray[np.bool_]
Words = NDArray[np.uint64]

_Type = TypeVar("_Type", bound=np.generic)

Measure = Literal["ic", "rank_ic", "autocorrelation", "turnover", "spread"]

MEASURES: Final[frozenset[Measure]] = frozenset({"ic", "rank_ic", "autocorrelation", "turnover", "spread"})
"""All that can be asked for; ``ic`` is always given."""

_CELLS_AT_ONCE: Final = 160_000
"""Cells of a block of days: fewer, and the calls cost as much as the work; more, and it leaves the cache."""

_POOL_DAYS: Final = 128
"""Days of one matrix product where there is no numba; sums of different products are added in float64."""


@dataclass(frozen=True, eq=False)
class Universe:
    """Which names count on which day.

    Parameters
    ----------
    member : array, (T, N) bool
        N counts all lanes; those beyond the instruments are false.
    size : array, (T,) int64
        Members of the day.
    """

    member: Mask
    size: Counts

    @classmethod
    def of(cls, member: Mask | None, shape: tuple[int, int, int], instruments: int | None = None) -> Universe:
        """Make it of a panel's mask.

        Parameters
        ----------
        member : array, (tiles, T, LANES) bool, or None
            None: all instruments on all days.
        shape : tuple of int
            (tiles, T, LANES) of the columns.
        instruments : int, optional
            Lanes from the front that hold an instrument; default all. Coverage is counted over them.
        """
        tiles, days, lanes = shape
        if lanes != LANES:
            raise PanelError(f"columns have shape {shape}; expected (tiles, days, {LANES}); tile them first")
        if member is not None and member.shape != shape:
            raise PanelError(f"member has shape {member.shape}; expected {shape}; align it to the columns")
        rows = np.ones((days, tiles * LANES), dtype=np.bool_) if member is None else _untiled(member)
        if instruments is not None:
            rows[:, instruments:] = False
        return cls(rows, rows.sum(axis=1, dtype=np.int64))

    def window(self, rows: slice) -> Universe:
        """Return the universe of these rows."""
        return Universe(self.member[rows], self.size[rows])


@dataclass(frozen=True, eq=False)
class PreparedLabel:
    """A label ranked once, to score any number of candidates against.

    Parameters
    ----------
    values : array, (T, N) float32
        NaN where missing, infinite or not a member.
    ranks : array, (T, N) int32
        Twice the average rank of the day, 0 where there is no value.
    known : array, (T, N // 8) uint64
        Which names have a value, eight bytes at a time.
    count : array, (T,) int64
        Names with a value.
    universe : Universe
    """

    values: Floats
    ranks: Ranks
    known: Words
    count: Counts
    universe: Universe

    @classmethod
    def of(
        cls, column: Floats, member: Universe | Mask | None = None, *, instruments: int | None = None
    ) -> PreparedLabel:
        """Rank a label's column: 3 to 4 ns a cell.

        Parameters
        ----------
        column : array, (tiles, T, LANES) float32
            Row ``t`` is a return after day ``t``.
        member : Universe, or array, (tiles, T, LANES) bool, optional
            Give the same Universe to the labels of several horizons.
        instruments : int, optional
            As for :meth:`Universe.of`.
        """
        announce_first_compilation()
        tiles, days, lanes = _tiles_of(column, "label")
        universe = member if isinstance(member, Universe) else Universe.of(member, (tiles, days, lanes), instruments)
        _check_days(universe, (tiles, days, lanes))
        if not HAVE_NUMBA:
            known = _dense(column, universe)
            ranks = np.nan_to_num(2.0 * rank(known), nan=0.0).astype(np.int32)
            there = ranks != 0
            return cls(known.astype(np.float32), ranks, there.view(np.uint64), there.sum(axis=1), universe)
        values = np.empty((days, tiles * LANES), dtype=np.float32)
        ranks = np.empty(values.shape, dtype=np.int32)
        words = np.empty((days, tiles * LANES // 8), dtype=np.uint64)
        count = np.empty(days, dtype=np.int64)
        bits, block = _bits(column), _Block(tiles * LANES, days)
        for begin in range(0, days, block.days):
            end = min(begin + block.days, days)
            block.load(bits, universe.member, begin, end, ranked=True)
            values[begin:end], ranks[begin:end] = block.values, block.ranks
            words[begin:end], count[begin:end] = block.known, block.count
        return cls(values, ranks, words, count, universe)

    def unit_ranks(self, *, min_names: int = MIN_NAMES) -> tuple[Floats, Mask]:
        """Return ranks centred and scaled to length 1, (T, N) float32, and which days have enough names that differ.

        The product of two such rows is Spearman's correlation where both sides have the same names, and near it where
        they miss different ones. 0 where there is no value.
        """
        there = self.ranks != 0
        centred = np.where(there, self.ranks - (self.count + 1)[:, None], 0).astype(np.float32)
        length = np.sqrt(np.einsum("tn,tn->t", centred, centred))
        known = (self.count >= min_names) & (length > 0)
        return np.divide(centred, length[:, None], out=np.zeros_like(centred), where=known[:, None]), known


@dataclass(frozen=True, eq=False)
class DailyScores:
    """One candidate, day by day; every array is (T,), and None where it was not asked for.

    Parameters
    ----------
    ic : array
        Pearson's correlation with the label.
    names : array of int
        Names that have both a value and a label.
    coverage : array
        Share of the universe's names that have a value.
    rank_ic : array, optional
        Spearman's correlation with the label, ranks among the joint names.
    autocorrelation : array, optional
        Spearman's correlation with the day before.
    turnover : array, optional
        Share of the day's top names that were not top names the day before.
    spread : array, optional
        Mean label of the top quantile less that of the bottom one.
    """

    ic: Array
    names: Counts
    coverage: Array
    rank_ic: Array | None = None
    autocorrelation: Array | None = None
    turnover: Array | None = None
    spread: Array | None = None


@dataclass(frozen=True, eq=False)
class HorizonScores:
    """One candidate against labels of several horizons; (H, T) arrays in the order of ``horizons``."""

    horizons: tuple[int, ...]
    ic: Array
    rank_ic: Array
    names: Counts


@dataclass(frozen=True)
class Summary:
    """What a daily series says in a few numbers; NaN where there are too few days.

    Parameters
    ----------
    days : int
        Days with a value.
    mean, deviation : float
        Over those days; the deviation is the sample's.
    ratio : float
        Mean / deviation: of an IC series its ICIR, per day, not annualised.
    t : float
        ``ratio * sqrt(days)``, as if days were independent; labels that overlap are not, see ``evaluation`` for that.
    positive : float
        Share of days above 0.
    """

    days: int
    mean: float
    deviation: float
    ratio: float
    t: float
    positive: float

    @classmethod
    def of(cls, series: Array, t_statistic: Callable[[Array], float] | None = None) -> Summary:
        """Summarise a (T,) series, NaN left out; ``t_statistic(values)`` replaces the plain t."""
        values = series[~np.isnan(series)]
        days = len(values)
        if not days:
            return cls(0, np.nan, np.nan, np.nan, np.nan, np.nan)
        mean = float(values.mean())
        deviation = float(values.std(ddof=1)) if days > 1 else np.nan
        ratio = mean / deviation if deviation > 0 else np.nan
        t = ratio * float(np.sqrt(days)) if t_statistic is None else float(t_statistic(values))
        return cls(days, mean, deviation, ratio, t, float((values > 0).mean()))


def score_columns(
    values: Floats | Sequence[Floats],
    label: PreparedLabel,
    *,
    measures: Literal["ic", "all"] | Iterable[Measure] = "all",
    threads: int = 2,
    rows: slice | None = None,
    min_names: int = MIN_NAMES,
    top: float = 0.2,
    quantiles: int = 5,
) -> list[DailyScores]:
    """Score candidates against one label.

    Parameters
    ----------
    values : array, (K, tiles, T, LANES) float32, or sequence of (tiles, T, LANES)
    label : PreparedLabel
        Also says who is a member.
    measures : "ic", "all" or an iterable of names from :data:`MEASURES`
        ``ic`` takes no ranks: about 0.9 ns a cell; ``all`` takes about 6.
    threads : int
        Blocks of days run side by side; results are the same bits whatever the number.
    rows : slice, optional
        Only these days, as if the panel had no others; results then have their number.
    min_names, top, quantiles
        As in :mod:`qlib_llm_alpha.engine.scoring`.

    Returns
    -------
    list of DailyScores
        In the order of the candidates. The measures of a day depend on that day alone, and those that compare with the
        day before on that one too.

    Raises
    ------
    PanelError
        Shapes that do not fit, a type other than float32, measures that do not exist.
    """
    asked = _measures(measures)
    begin, end = _days_of(values, label.universe, rows)
    if not top > 0:
        raise PanelError(f"top is {top!r}; expected a count of at least 1 or a share between 0 and 1; 0.2 is usual")
    if quantiles < 2:
        raise PanelError(f"quantiles is {quantiles!r}; expected at least 2; 5 gives quintiles")
    if not HAVE_NUMBA:
        return [_plainly(column, label, asked, begin, end, min_names, top, quantiles) for column in values]
    results = [_empty_scores(asked, end - begin) for _ in values]

    def work(block: _Block, candidate: int, start: int, stop: int) -> None:
        # One day more in front, so that each block knows its day before and blocks may run in any order.
        lead = int(start > begin)
        scores = results[candidate]
        block.load(_bits(values[candidate]), label.universe.member, start - lead, stop, ranked=asked != {"ic"})
        days, out = slice(start, stop), slice(start - begin, stop - begin)
        own = slice(lead, None)
        day_scores.correlate_values(block.values[own], label.values[days], min_names, scores.ic[out], scores.names[out])
        scores.coverage[out] = _share(block.count[own], label.universe.size[days])
        if scores.rank_ic is not None:
            block.correlate(own, label.ranks[days], label.known[days], min_names, scores.rank_ic[out])
        if scores.spread is not None:
            day_scores.spreads(
                block.ranks[own], block.known[own], block.count[own],
                label.values[days], label.ranks[days], label.known[days],
                quantiles, min_names, scores.spread[out], block.scratch,
            )  # fmt: skip
        if scores.autocorrelation is not None:
            later = scores.autocorrelation[start - lead + 1 - begin : stop - begin]
            block.correlate(slice(1, None), block.ranks[:-1], block.known[:-1], min_names, later)
        if scores.turnover is not None:
            # The first day of a block has no day before in it; where it is a lead its result is left out.
            changed = np.empty(stop - start + lead)
            seen = np.full(block.width, -2, dtype=np.int64)
            day_scores.changed_tops(block.packed, block.count, float(top), min_names, seen, changed)
            scores.turnover[out] = changed[own]

    _in_blocks(work, len(values), begin, end, label.values.shape[1], threads)
    return results


def score_horizons(
    values: Floats | Sequence[Floats],
    labels: Mapping[int, PreparedLabel],
    *,
    threads: int = 2,
    rows: slice | None = None,
    min_names: int = MIN_NAMES,
) -> list[HorizonScores]:
    """Score candidates against labels of several horizons, ranking each candidate once.

    Parameters
    ----------
    values, threads, rows, min_names
        As in :func:`score_columns`.
    labels : mapping of int to PreparedLabel
        By horizon in days; they share one universe.

    Returns
    -------
    list of HorizonScores
        What :func:`score_columns` gives for each label; the decay of a factor is the mean of each row.
    """
    horizons = tuple(labels)
    if not horizons:
        raise PanelError("labels is empty; expected at least one horizon; prepare one with PreparedLabel.of")
    first = labels[horizons[0]]
    if any(not np.array_equal(label.universe.member, first.universe.member) for label in labels.values()):
        raise PanelError("labels have different universes; expected one; give the same Universe to PreparedLabel.of")
    begin, end = _days_of(values, first.universe, rows)
    shape = (len(horizons), end - begin)
    results = [
        HorizonScores(horizons, np.empty(shape), np.empty(shape), np.empty(shape, dtype=np.int64)) for _ in values
    ]
    if not HAVE_NUMBA:
        for column, result in zip(values, results, strict=True):
            for at, label in enumerate(labels.values()):
                daily = _plainly(column, label, {"ic", "rank_ic"}, begin, end, min_names, 0.2, 5)
                result.ic[at], result.rank_ic[at], result.names[at] = daily.ic, daily.rank_ic, daily.names
        return results

    def work(block: _Block, candidate: int, start: int, stop: int) -> None:
        result = results[candidate]
        block.load(_bits(values[candidate]), first.universe.member, start, stop, ranked=True)
        days, out = slice(start, stop), slice(start - begin, stop - begin)
        for at, label in enumerate(labels.values()):
            day_scores.correlate_values(
                block.values, label.values[days], min_names, result.ic[at, out], result.names[at, out]
            )
            block.correlate(slice(None), label.ranks[days], label.known[days], min_names, result.rank_ic[at, out])

    _in_blocks(work, len(values), begin, end, first.values.shape[1], threads)
    return results


def by_regime(
    series: Array, regime: NDArray[np.integer], t_statistic: Callable[[Array], float] | None = None
) -> dict[int, Summary]:
    """Summarise a daily series for each regime.

    Parameters
    ----------
    series : array, (T,)
        Such as a daily IC; NaN days are left out.
    regime : array, (T,) int
        The regime of the day. For a result that could have been known, it comes from data up to that day.
    t_statistic : callable, optional
        As in :meth:`Summary.of`; it gets the regime's days one after the other, though they were not neighbours.
    """
    if series.shape != regime.shape or series.ndim != 1:
        raise PanelError(f"series has shape {series.shape} and regime {regime.shape}; expected (T,) both; align them")
    return {int(code): Summary.of(series[regime == code], t_statistic) for code in np.unique(regime)}


def exact_correlation(left: Floats, right: Floats, universe: Universe, *, min_names: int = MIN_NAMES) -> Array:
    """Return Pearson's correlation of two columns day by day, (T,), over the members that have both.

    Parameters
    ----------
    left, right : array, (tiles, T, LANES) float32
    universe : Universe
    min_names : int
        Days with fewer joint names are NaN.
    """
    begin, end = _days_of([left], universe, None)
    _days_of([right], universe, None)
    if not HAVE_NUMBA:
        return scoring.ic_series(_dense(left, universe), _dense(right, universe), min_names=min_names)
    result, names = np.empty(end), np.empty(end, dtype=np.int64)
    one, two = (_Block(universe.member.shape[1], end) for _ in range(2))
    for start in range(begin, end, one.days):
        stop = min(start + one.days, end)
        one.load(_bits(left), universe.member, start, stop, ranked=False)
        two.load(_bits(right), universe.member, start, stop, ranked=False)
        day_scores.correlate_values(one.values, two.values, min_names, result[start:stop], names[start:stop])
    return result


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Candidates whose days are centred and have length 1: the product of two rows is their correlation that day.

    Parameters
    ----------
    values : array, (K, D, N) float32
        0 where there is no value, and on days that are not known.
    known : array, (K, D) bool
        Days with enough names that differ.
    """

    values: Floats
    known: Mask

    @classmethod
    def of(
        cls,
        values: Floats | Sequence[Floats],
        universe: Universe,
        *,
        every: int = 1,
        threads: int = 2,
        min_names: int = MIN_NAMES,
    ) -> UnitRows:
        """Make them of columns, (K, tiles, T, LANES) float32; ``every=5`` takes each fifth day, a fifth of the cost."""
        _, end = _days_of(values, universe, None)
        if every < 1:
            raise PanelError(f"every is {every!r}; expected at least 1; 5 takes each fifth day")
        days = -(-end // every)
        rows = np.empty((len(values), days, universe.member.shape[1]), dtype=np.float32)
        known = np.empty((len(values), days), dtype=np.bool_)
        if not HAVE_NUMBA:
            for at, column in enumerate(values):
                rows[at], known[at] = _unit_plainly(_dense(column, universe)[::every], min_names)
            return cls(rows, known)
        nothing = np.empty((0, 0), dtype=np.uint64)

        def work(block: _Block, candidate: int, start: int, stop: int) -> None:
            out = rows[candidate, start:stop]
            day_scores.gather(
                _bits(values[candidate]), universe.member, start * every, every, out.view(np.uint32),
                np.empty(out.shape, dtype=np.bool_), nothing, np.empty(len(out), dtype=np.int64),
            )  # fmt: skip
            day_scores.unit_rows(out, min_names, known[candidate, start:stop])

        _in_blocks(work, len(values), 0, days, rows.shape[2], threads)
        return cls(rows, known)

    def mean_correlation(self, other: UnitRows, *, threads: int = 2) -> Array:
        """Return the mean daily correlation of each row here with each there, (K, P), over the days both know.

        By products in float32, good to about 1e-6. A day counts exactly when both candidates have the same names
        that day; where they differ, each is centred and scaled over its own names, and a name that one lacks adds
        nothing. Use :func:`exact_correlation` on the few that matter. NaN without a common day.
        """
        return _mean_products(self.values, self.known, other.values, other.known, threads)


@dataclass(frozen=True, eq=False)
class Pool:
    """Accepted candidates that new ones are compared with.

    A value: :meth:`add` gives a new pool and leaves this one as it was. Pools that grew from one another share memory,
    so that adding does not copy. Make the first with :meth:`empty`.
    """

    names: tuple[str, ...]
    _store: _Store = field(repr=False)

    @classmethod
    def empty(cls) -> Pool:
        """Return a pool without members."""
        return cls((), _Store())

    def add(self, name: str, rows: UnitRows, which: int = 0) -> Pool:
        """Return the pool with row ``which`` of ``rows`` added under ``name``; all rows take the same days."""
        if name in self.names:
            raise PanelError(f"the pool has {name!r} already; expected a new name; leave it out")
        store = self._store.grown(len(self.names), rows.values[which], rows.known[which])
        return Pool((*self.names, name), store)

    def correlations(self, rows: UnitRows, *, threads: int = 2) -> Array:
        """Return the mean daily correlation of each candidate with each member, (K, P); (K, 0) for an empty pool.

        Costs about 1 ms a candidate for 50 members x 2,500 days x 300 names in batches of 32; alone it is several times
        that, since the pool has to be read. Exactness: see :meth:`UnitRows.mean_correlation`.
        """
        size = len(self.names)
        if not size:
            return np.empty((len(rows.values), 0))
        return _mean_products(rows.values, rows.known, self._store.values[:size], self._store.known[:size], threads)


class _Store:
    """Rows of pools that grew from one another; each sees the first so many."""

    def __init__(self) -> None:
        self.values: Floats = np.empty((0, 0, 0), dtype=np.float32)
        self.known: Mask = np.empty((0, 0), dtype=np.bool_)
        self.used = 0
        self.lock = threading.Lock()

    def grown(self, size: int, row: Floats, known: Mask) -> _Store:
        """Return a store with ``row`` behind the first ``size`` rows: this one when nobody wrote there."""
        if size and row.shape != self.values.shape[1:]:
            raise PanelError(
                f"row has shape {row.shape}; the pool's have {self.values.shape[1:]}; use the same days and universe"
            )
        with self.lock:
            store = self
            if self.used != size or size == len(self.values):
                store = _Store()
                store.values = np.empty((max(8, 2 * size), *row.shape), dtype=np.float32)
                store.known = np.empty((len(store.values), len(known)), dtype=np.bool_)
                if size:
                    store.values[:size], store.known[:size] = self.values[:size], self.known[:size]
            store.values[size], store.known[size] = row, known
            store.used = size + 1
            return store


class _Block:
    """The days that one thread has in work; buffers that fit its cache."""

    def __init__(self, width: int, days: int) -> None:
        self.width = width
        self.days = max(1, min(days, max(32, _CELLS_AT_ONCE // max(width, 1))))
        size = (self.days + 1, width)
        self._rows = np.empty(size, dtype=np.uint32)
        self._packed = np.empty(size, dtype=np.uint64)
        self._ranks = np.empty(size, dtype=np.int32)
        self._count = np.empty(len(self._rows), dtype=np.int64)
        self._known = np.empty(size, dtype=np.bool_)
        self.scratch = np.empty((5, 2 * width + 4), dtype=np.int32)
        self._nothing = np.empty((0, 0), dtype=np.uint64)
        self.load_size = 0

    def load(self, bits: NDArray[np.uint32], member: Mask, start: int, stop: int, *, ranked: bool) -> None:
        """Take days ``start <= t < stop`` of a column, and rank them when asked."""
        self.load_size = stop - start
        packed = self.packed if ranked else self._nothing
        day_scores.gather(
            bits, member, start, 1, self._rows[: self.load_size], self._known[: self.load_size], packed, self.count
        )
        if ranked:
            packed.sort(axis=1)
            day_scores.rank_sorted(packed, self.count, self.ranks, self.scratch[0])

    @property
    def values(self) -> Floats:
        return self._rows[: self.load_size].view(np.float32)

    @property
    def known(self) -> Words:
        return self._known[: self.load_size].view(np.uint64)

    @property
    def packed(self) -> NDArray[np.uint64]:
        return self._packed[: self.load_size]

    @property
    def ranks(self) -> Ranks:
        return self._ranks[: self.load_size]

    @property
    def count(self) -> Counts:
        return self._count[: self.load_size]

    def correlate(self, own: slice, ranks: Ranks, known: Words, min_names: int, out: Array) -> None:
        """Correlate this block's ranks with others."""
        day_scores.correlate_ranks(
            self.ranks[own], self.known[own], self.count[own], ranks, known, min_names, out, self.scratch
        )


def _in_blocks(
    work: Callable[[_Block, int, int, int], None], candidates: int, begin: int, end: int, width: int, threads: int
) -> None:
    """Call ``work(block, candidate, start, stop)`` for all candidates and days, each thread with a block of its own."""
    if threads < 1:
        raise PanelError(f"threads is {threads!r}; expected at least 1; 2 is usual")
    # Fewer candidates than threads: each candidate is shared out.
    most = end - begin if candidates >= threads else -(-(end - begin) // threads)
    blocks = [_Block(width, most) for _ in range(threads)]
    tasks = iter([(candidate, start) for candidate in range(candidates) for start in range(begin, end, blocks[0].days)])
    lock = threading.Lock()

    def run(block: _Block) -> None:
        while True:
            with lock:
                task = next(tasks, None)
            if task is None:
                return
            candidate, start = task
            work(block, candidate, start, min(start + block.days, end))

    if threads == 1:
        run(blocks[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run, block) for block in blocks]:
            done.result()


def _measures(asked: Literal["ic", "all"] | Iterable[Measure]) -> set[Measure]:
    if asked == "all":
        return set(MEASURES)
    chosen: set[Measure] = {"ic"} if asked == "ic" else {"ic", *asked}
    if not chosen <= MEASURES:
        raise PanelError(
            f"measures {sorted(chosen - MEASURES)!r} do not exist; expected some of {sorted(MEASURES)}; correct them"
        )
    return chosen


def _tiles_of(column: Floats, what: str) -> tuple[int, int, int]:
    if column.ndim != 3 or column.shape[2] != LANES or column.dtype != np.float32:
        raise PanelError(
            f"{what} has shape {column.shape} and type {column.dtype}; expected (tiles, days, {LANES}) float32; "
            "tile it first"
        )
    tiles, days, lanes = column.shape
    return tiles, days, lanes


def _check_days(universe: Universe, shape: tuple[int, int, int]) -> None:
    tiles, days, lanes = shape
    if universe.member.shape != (days, tiles * lanes):
        raise PanelError(
            f"columns have shape {shape} and the universe {universe.member.shape}; expected {(days, tiles * lanes)} of "
            "it; align them"
        )


def _days_of(values: Floats | Sequence[Floats], universe: Universe, rows: slice | None) -> tuple[int, int]:
    for column in values:
        _check_days(universe, _tiles_of(column, "a candidate"))
    days = universe.member.shape[0]
    begin, end, step = (rows or slice(None)).indices(days)
    if step != 1 or begin >= end:
        raise PanelError(f"rows {rows!r} of {days}; expected a slice of at least one row, step 1; correct it")
    return begin, end


def _bits(column: Floats) -> NDArray[np.uint32]:
    return np.ascontiguousarray(column).view(np.uint32)


def _untiled(values: NDArray[_Type]) -> NDArray[_Type]:
    """Return a (T, N) copy."""
    return np.array(np.moveaxis(values, 0, 1), order="C").reshape(values.shape[1], -1)


def _share(count: Counts, size: Counts) -> Array:
    share: Array = np.divide(count, size, out=np.full(len(size), np.nan), where=size > 0)
    return share


def _empty_scores(asked: set[Measure], days: int) -> DailyScores:
    optional = {name: np.full(days, np.nan) if name in asked else None for name in MEASURES - {"ic"}}
    return DailyScores(
        np.empty(days),
        np.empty(days, dtype=np.int64),
        np.empty(days),
        optional["rank_ic"],
        optional["autocorrelation"],
        optional["turnover"],
        optional["spread"],
    )


def _dense(column: Floats, universe: Universe) -> Array:
    """Return (T, N) float64 as :mod:`qlib_llm_alpha.engine.scoring` wants it."""
    values = _untiled(column).astype(np.float64)
    return np.where(universe.member & np.isfinite(values), values, np.nan)


def _plainly(
    column: Floats,
    label: PreparedLabel,
    asked: set[Measure],
    begin: int,
    end: int,
    min_names: int,
    top: float,
    quantiles: int,
) -> DailyScores:
    """Score one candidate without compiled code."""
    score = _dense(column, label.universe)[begin:end]
    target = label.values[begin:end].astype(np.float64)
    return DailyScores(
        scoring.ic_series(score, target, min_names=min_names),
        np.sum(~np.isnan(score) & ~np.isnan(target), axis=1, dtype=np.int64),
        scoring.coverage(score, label.universe.member[begin:end]),
        scoring.rank_ic_series(score, target, min_names=min_names) if "rank_ic" in asked else None,
        scoring.rank_autocorrelation(score, min_names=min_names) if "autocorrelation" in asked else None,
        scoring.turnover(score, top, min_names=min_names) if "turnover" in asked else None,
        scoring.long_short_returns(score, target, quantiles=quantiles, min_names=min_names)
        if "spread" in asked
        else None,
    )


def _unit_plainly(score: Array, min_names: int) -> tuple[Floats, Mask]:
    there = ~np.isnan(score)
    count = there.sum(axis=1)
    mean = np.divide(np.where(there, score, 0.0).sum(axis=1), count, out=np.zeros(len(score)), where=count > 0)
    centred = np.where(there, score - mean[:, None], 0.0)
    square = (centred**2).sum(axis=1)
    known = (count >= max(min_names, 2)) & (square > count * (1e-12 * mean) ** 2)
    scale = np.divide(1.0, np.sqrt(square), out=np.zeros(len(score)), where=known)
    return (centred * scale[:, None]).astype(np.float32), known


def _mean_products(left: Floats, left_known: Mask, right: Floats, right_known: Mask, threads: int) -> Array:
    if left.shape[1:] != right.shape[1:]:
        raise PanelError(
            f"rows have shapes {left.shape[1:]} and {right.shape[1:]}; expected the same days and names; "
            "make them with the same universe and `every`"
        )
    total = np.zeros((len(left), len(right)))
    here, there = left.reshape(len(left), -1), right.reshape(len(right), -1)
    if HAVE_NUMBA:
        share = max(1, -(-len(left) // threads))
        with ThreadPoolExecutor(threads) as pool:
            parts = [slice(start, start + share) for start in range(0, len(left), share)]
            for done in [pool.submit(day_scores.add_products, here[part], there, total[part]) for part in parts]:
                done.result()
    else:
        step = _POOL_DAYS * left.shape[2]
        for start in range(0, here.shape[1], step):
            total += here[:, start : start + step] @ there[:, start : start + step].T
    shared = left_known.astype(np.float64) @ right_known.astype(np.float64).T
    mean: Array = np.divide(total, shared, out=np.full(total.shape, np.nan), where=shared > 0)
    return mean
