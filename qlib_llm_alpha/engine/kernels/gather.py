"""Take chosen cells of a tile out into a long column, as a data frame holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, jit

Places = NDArray[np.int32]


@jit
def _gather(tile: NDArray[Any], dead: NDArray[np.bool_], rows: Places, lanes: Places, out: NDArray[np.float32]) -> None:
    for place in range(len(rows)):
        row, lane = rows[place], lanes[place]
        out[place] = np.float32(np.nan) if dead[row, lane] else np.float32(tile[row, lane])


def gather(tile: NDArray[Any], dead: NDArray[np.bool_], rows: Places, lanes: Places, out: NDArray[np.float32]) -> None:
    """Write ``tile[rows, lanes]`` as float32 to ``out``, NaN where ``dead``.

    Parameters
    ----------
    tile : array, (T, LANES)
    dead : array, (T, LANES) bool
        True where the instrument does not exist.
    rows, lanes : array, (M,) int32
    out : array, (M,) float32
    """
    if HAVE_NUMBA:
        _gather(tile, dead, rows, lanes, out)
        return
    out[:] = np.where(dead[rows, lanes], np.nan, tile[rows, lanes])


@jit
def _scatter(
    tile: NDArray[Any],
    dead: NDArray[np.bool_],
    rows: Places,
    lanes: Places,
    places: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    for cell in range(len(rows)):
        row, lane = rows[cell], lanes[cell]
        out[places[cell]] = np.float32(np.nan) if dead[row, lane] else np.float32(tile[row, lane])


def scatter(
    tile: NDArray[Any],
    dead: NDArray[np.bool_],
    rows: Places,
    lanes: Places,
    places: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Write ``tile[rows, lanes]`` as float32 to ``out[places]``, NaN where ``dead``; shapes as for :func:`gather`."""
    if HAVE_NUMBA:
        _scatter(tile, dead, rows, lanes, places, out)
        return
    out[places] = np.where(dead[rows, lanes], np.nan, tile[rows, lanes])
