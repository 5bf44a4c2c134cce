"""Sums over the windows of a tile in numpy: what the kernels' fallbacks are made of.

A compiled kernel goes down the rows and keeps a state. In numpy that would be a call for every row, so time is cut
into blocks as long as the window: a window is the end of one block and the beginning of the next. Sums of all
beginnings grow row by row, in all blocks at once, and so do sums of all ends, backwards. That is a pass or two over the
tile for any window, and nothing is ever taken away from a sum: no drift, and nothing is left of a huge value that has
gone.

Powers are taken of distances to an *anchor*, a value that is in the window: then the squares of the distances are no
more than ``count + 1`` times those about the mean, whatever the window holds, and they are exactly 0 where all values
are equal. All windows that end in a block hold the block's first row, whose value is the anchor. Where that row has no
value it is the last one before the block; a window that has none before the block takes the first one in the block (a
third sum, only for tiles that need it).
"""

from __future__ import annotations

import functools
from typing import Final

import bottleneck
import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.registry import Array

Mask = NDArray[np.bool_]

_LONG: Final = 256


class Windows:
    """The windows of one tile.

    *Parts* are arrays (2 or 3, blocks, width, lanes): what a row adds to windows that begin before its block, what it
    adds to windows that end behind its block, and what it adds to windows without a value before its block. Products
    of parts are parts.

    Parameters
    ----------
    present : array, (rows, lanes) bool
        Which rows have a value.
    window : int
        In rows; more than there are: expanding.

    Attributes
    ----------
    width : int
        The window, at most the number of rows.
    present : array, (rows, lanes) bool, or None
        None: all rows have a value.
    count : array, (rows, lanes) or (rows, 1) float64
        Values in the window that ends at a row.
    places : array, (2 or 3, 1, width, 1) float64
        A part: the place of the row, counted from the beginning of the block in which the window ends.
    newest_place : array, (rows, 1) float64
        The same of the window's newest row.
    """

    def __init__(self, present: Mask, window: int) -> None:
        _keep_freed_memory()
        rows, lanes = present.shape
        self._rows = rows
        self.width = max(1, min(window, rows))
        self._blocks = -(-rows // self.width)
        self._starts = np.arange(self._blocks) * self.width
        self.present: Mask | None = None if present.all() else present
        self._late: Mask | None = None
        self.count: Array = np.minimum(np.arange(1.0, rows + 1.0), self.width)[:, None]
        if self.present is not None:
            self._count_present(present)
            gaps = np.zeros((self._blocks * self.width, lanes), dtype=np.bool_)
            np.logical_not(present, out=gaps[:rows])
            self._gaps = gaps.reshape(self._blocks, self.width, lanes)
        steps = np.arange(float(self.width))
        self.places: Array = np.stack([steps, steps - self.width, steps][: self._parts])[:, None, :, None]
        self.newest_place: Array = np.resize(steps, rows)[:, None]

    @property
    def _parts(self) -> int:
        return 2 if self._late is None else 3

    def _count_present(self, present: Mask) -> None:
        rows, lanes = present.shape
        upto = np.zeros((rows + 1, lanes), dtype=np.int32)
        np.cumsum(present, axis=0, out=upto[1:])
        count = upto[1:].copy()
        count[self.width :] -= upto[1 : rows - self.width + 1]
        self.count = count.astype(np.float64)
        before = upto[self._starts]
        stale = ~present[self._starts] & (before > 0)
        if stale.any():
            in_block = upto[1:] - self._spread(before)
            late: Mask = self._spread(stale) & (count == in_block)
            self._late = late if late.any() else None

    def _spread(self, by_block: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.repeat(by_block, self.width, axis=0)[: self._rows]

    def values(self, x: Array) -> Array:
        """Return the values themselves as parts, 0 where there is none."""
        parts = np.empty((2, self._blocks, self.width, x.shape[1]))
        parts[:] = self._blocked(x)
        if self.present is not None:
            np.copyto(parts, 0.0, where=self._gaps)
        return parts

    def distances(self, x: Array) -> Array:
        """Return the distances to the anchors as parts, 0 where there is no value."""
        blocked, anchors = self._blocked(x), x[self._starts]
        parts = np.empty((self._parts, *blocked.shape))
        if self.present is not None:
            known = np.where(self.present, x, np.nan)
            anchors = bottleneck.push(known, axis=0)[self._starts]
            following = bottleneck.push(known[::-1], axis=0)[::-1][self._starts]
            # Without an earlier value the window begins with the following one, as every window of the lane so far.
            anchors = np.where(np.isnan(anchors), following, anchors)
            if self._late is not None:
                np.subtract(blocked, following[:, None], out=parts[2])
        np.subtract(blocked, anchors[:, None], out=parts[0])
        np.subtract(blocked[:-1], anchors[1:, None], out=parts[1, :-1])
        parts[1, -1] = 0.0
        if self.present is not None:
            np.copyto(parts, 0.0, where=self._gaps)
        return parts

    def ones(self) -> Array:
        """Return 1 for each value as parts: (..., 1) where all rows have one."""
        if self.present is None:
            return np.ones((2, self._blocks, self.width, 1))
        return np.broadcast_to(np.where(self._gaps, 0.0, 1.0), (self._parts, *self._gaps.shape))

    def newest(self, parts: Array) -> Array:
        """Return, (rows, lanes), what the newest row of each window adds to it; 0 where it has no value."""
        by_row = parts.reshape(len(parts), -1, parts.shape[-1])[:, : self._rows]
        newest: Array = by_row[0].copy()
        if self._late is not None:
            np.copyto(newest, by_row[2], where=self._late)
        return newest

    def sums(self, parts: Array) -> Array:
        """Return the sum of each window, (rows, lanes), and use ``parts`` up."""
        begins, ends = parts[0], parts[1]
        _grow(begins)
        # An end that is a whole block belongs to no window: that one is a whole beginning.
        _grow(ends[:, :0:-1])
        ends[:, 0] = 0.0
        by_row = parts.reshape(len(parts), -1, parts.shape[-1])
        total: Array = by_row[0, : self._rows]
        total[self.width - 1 :] += by_row[1, : self._rows - self.width + 1]
        if len(parts) > 2 and self._late is not None:
            _grow(parts[2])
            np.copyto(total, by_row[2, : self._rows], where=self._late)
        return total

    def constant(self, x: Array) -> tuple[Mask, Array]:
        """Return which windows hold equal values, one or more, and the newest value so far."""
        latest = x if self.present is None else bottleneck.push(np.where(self.present, x, np.nan), axis=0)
        changes = np.zeros(x.shape, dtype=np.int32)
        np.cumsum(latest[1:] != latest[:-1], axis=0, out=changes[1:])
        # How many changes there were when the oldest value of a window came.
        at_start: NDArray[np.generic] = changes
        if self.present is not None:
            at_start = bottleneck.push(np.where(self.present, changes, np.nan)[::-1], axis=0)[::-1]
        equal = changes == at_start[:1]
        equal[self.width - 1 :] = changes[self.width - 1 :] == at_start[: self._rows - self.width + 1]
        if self.present is not None:
            equal &= self.count > 0.0
        return equal, latest

    def _blocked(self, x: Array) -> Array:
        padded = x
        if self._blocks * self.width > self._rows:
            padded = np.zeros((self._blocks * self.width, x.shape[1]))
            padded[: self._rows] = x
        return padded.reshape(self._blocks, self.width, x.shape[1])


def _grow(values: Array) -> None:
    """Make of (blocks, places, lanes) the sums up to each place."""
    if values.shape[1] > _LONG:
        np.cumsum(values, axis=1, out=values)
        return
    # Faster than numpy's own, which goes down lane by lane; the same additions in the same order.
    for place in range(1, values.shape[1]):
        values[:, place] += values[:, place - 1]


@functools.cache
def _keep_freed_memory() -> None:
    """Let the C library keep what arrays free, once for the process.

    Sums go through a dozen arrays of a megabyte. glibc gives such blocks back to the system at once and asks for fresh
    pages for the next one, which takes three times as long as the sums. What it keeps is twice the largest block below
    32 MB that it gave back so far (see ``M_MMAP_THRESHOLD`` in mallopt(3)), so it is given one, which is never touched.
    """
    np.empty(31 * 2**20, dtype=np.uint8)
