"""Is our frame Qlib's? Index, columns, types and order exactly; missing and infinite cells exactly; numbers closely.

A number may differ by 1e-5 of itself or 1e-8 of its column's deviation, whichever is more. Cells in which stock Qlib's
own number is rounding noise are exempt: ``doubt.py`` finds them from the inputs, for the columns in which something
differs, without looking at the difference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qlib.data.data import Cal, LocalDatasetProvider

from qlib_llm_alpha.data.qlib_text import read_text
from tests.support.doubt import Cells, computed

RELATIVE, OF_DEVIATION = 1e-5, 1e-3

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Column:
    """How one formula fared.

    Parameters
    ----------
    text : str
    cells, same_bits, exempt : int
        Cells compared; those of equal bits; those that differ too much and in which Qlib's number is noise.
    pattern, apart : int
        Cells missing or infinite on one side only, and numbers too far from each other, not counting exempt ones.
    worst : str
        One of them, in words.
    """

    text: str
    cells: int
    same_bits: int
    exempt: int
    pattern: int
    apart: int
    worst: str = ""

    @property
    def good(self) -> bool:
        return not (self.pattern or self.apart)


def compare(stock: pd.DataFrame, ours: pd.DataFrame) -> list[Column]:
    """Compare two frames column by column; an index, columns or types that differ are an AssertionError."""
    pd.testing.assert_index_equal(stock.index, ours.index, exact=True)
    pd.testing.assert_index_equal(stock.columns, ours.columns, exact=True)
    pd.testing.assert_series_equal(stock.dtypes, ours.dtypes)
    return [_column(stock, ours, place) for place in range(stock.shape[1])]


def assert_agree(stock: pd.DataFrame, ours: pd.DataFrame) -> list[Column]:
    """Fail with the shortest formulas that differ."""
    columns = compare(stock, ours)
    bad = sorted((column for column in columns if not column.good), key=lambda column: len(column.text))
    told = "\n".join(f"{c.text}: {c.pattern} in pattern, {c.apart} apart, of {c.cells}: {c.worst}" for c in bad[:8])
    assert not bad, f"{len(bad)} of {len(columns)} formulas differ:\n{told}"
    return columns


def _column(stock: pd.DataFrame, ours: pd.DataFrame, place: int) -> Column:
    text = str(stock.columns[place])
    reference, value = (frame.iloc[:, place].to_numpy(dtype=np.float32) for frame in (stock, ours))
    pattern, apart, allowed = _differences(reference, value)
    same = (reference.view(np.uint32) == value.view(np.uint32)) | (np.isnan(reference) & np.isnan(value))
    exempt = np.zeros(len(value), dtype=np.bool_)
    wrong = np.flatnonzero(pattern | apart)
    if len(wrong):
        exempt[wrong] = noise(text, stock.index[wrong], allowed[wrong])
    pattern, apart = pattern & ~exempt, apart & ~exempt
    worst = ""
    if (pattern | apart).any():
        at = int(np.flatnonzero(pattern | apart)[0])
        code, day = stock.index[at]
        worst = f"{code} {day:%Y-%m-%d}: Qlib {reference[at]!r}, ours {value[at]!r}"
    counts = (len(value), int(same.sum()), int(exempt.sum()), int(pattern.sum()), int(apart.sum()))
    return Column(text, *counts, worst)


def _differences(reference: NDArray[np.float32], value: NDArray[np.float32]) -> tuple[Mask, Mask, NDArray[np.float64]]:
    finite = np.isfinite(reference)
    deviation = float(np.std(reference[finite], dtype=np.float64)) if finite.any() else 0.0
    allowed = RELATIVE * (np.abs(reference, dtype=np.float64) + OF_DEVIATION * deviation)
    kind = np.where(finite, 0.0, reference)  # NaN and both infinities stay
    kind_of_ours = np.where(np.isfinite(value), 0.0, value)
    pattern = ~((kind == kind_of_ours) | (np.isnan(kind) & np.isnan(kind_of_ours)))
    with np.errstate(invalid="ignore"):
        apart = ~pattern & finite & (np.abs(reference.astype(np.float64) - value) > allowed)
    return pattern, apart, allowed


def doubtful(frame: pd.DataFrame) -> dict[str, float]:
    """Return for each formula of a frame the share of cells that would be exempt, whatever the other side says."""
    values = {str(text): frame[text].to_numpy(dtype=np.float32) for text in frame.columns}
    return {
        text: float(noise(text, frame.index, _differences(value, value)[2]).mean()) for text, value in values.items()
    }


def noise(text: str, index: pd.MultiIndex, allowed: NDArray[np.float64]) -> Mask:
    """Return for each row of a frame whether stock Qlib's number may be off by more than is allowed."""
    value, bound = _slow(text, index)
    # Written as float32: its largest number and its smallest ones decide what is infinite, and what is 0.
    edge = np.abs(np.abs(value) / np.finfo(np.float32).max - 1) < 1e-6
    allowed = np.where(np.isfinite(allowed), allowed, RELATIVE * np.abs(np.where(np.isfinite(value), value, 0.0)))
    with np.errstate(invalid="ignore"):
        return np.asarray((4 * bound > allowed) & (bound > 0) | edge)


def slow_values(text: str, index: pd.MultiIndex) -> NDArray[np.float64]:
    """Return a formula's values in the rows of a frame, computed window by window."""
    return _slow(text, index)[0]


def _slow(text: str, index: pd.MultiIndex) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    codes = sorted(set(index.get_level_values(0)))
    cells = computed(read_text(text), codes, _leaf)
    place = pd.Index(codes).get_indexer(index.get_level_values(0))
    row = pd.Index(Cal.calendar()).get_indexer(index.get_level_values(1))
    return np.asarray(cells.value, np.float64)[row, place], cells.bound[row, place]


def _leaf(text: str, codes: Sequence[str]) -> Cells:
    return _read(text, tuple(codes), str(id(Cal.calendar())), len(Cal.calendar()))


@functools.lru_cache(maxsize=64)
def _read(text: str, codes: tuple[str, ...], calendar: str, rows: int) -> Cells:
    stock: pd.DataFrame = LocalDatasetProvider().dataset(list(codes), [text])
    value = np.full((rows, len(codes)), np.nan, dtype=np.float32)
    first, stop = np.full(len(codes), rows), np.full(len(codes), rows)
    place = pd.Index(codes).get_indexer(stock.index.get_level_values(0))
    row = pd.Index(Cal.calendar()).get_indexer(stock.index.get_level_values(1))
    value[row, place] = stock.iloc[:, 0].to_numpy()
    for name in set(place):
        own = row[place == name]
        first[name], stop[name] = own.min(), own.max() + 1
    return Cells(value, np.zeros(value.shape), first, stop)
