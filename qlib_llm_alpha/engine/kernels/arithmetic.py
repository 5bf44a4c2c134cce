"""Arithmetic of two tiles, and what is written to the outside: compiled where numpy goes over the data twice.

numpy is as fast as memory on tiles of one type. It is not where the types differ (it converts through a buffer), nor
where a result is computed, cast to float32 and blanked: three passes here made one. Every function gives the bits of
numpy's own calls, which also serve where numba is missing.

Arrays are (rows, LANES), C-contiguous. Nothing is remembered from row to row. Warnings of numpy are the caller's to
silence; the compiled functions give none.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.kernels.registry import HAVE_NUMBA, jit

Tile = NDArray[Any]
Dead = NDArray[np.bool_]

ARITHMETIC: Final[dict[str, np.ufunc]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}
"""The operations that :func:`combine` and :func:`combine_store` know, by their name in the factor language."""

_CODE: Final = {"Add": 0, "Sub": 1, "Mul": 2, "Div": 3}


def combine(op: str, a: Tile, b: Tile, out: Tile) -> None:
    """Write ``a op b``.

    Parameters
    ----------
    op : str
        A key of :data:`ARITHMETIC`.
    a, b : array, (T, LANES) float32 or float64
        Two different types are compiled; with one type numpy is called.
    out : array, (T, LANES)
        Of the type numpy gives such a pair: float64 unless both are float32. May be ``a`` or ``b`` itself.

    Raises
    ------
    KeyError
        ``op`` is not a key of :data:`ARITHMETIC`.
    """
    if HAVE_NUMBA and a.dtype != b.dtype:
        _combine(_CODE[op], a, b, out)
    else:
        ARITHMETIC[op](a, b, out=out)


def combine_store(op: str, a: Tile, b: Tile, dead: Dead, out: NDArray[np.float32]) -> None:
    """Write ``(a op b).astype(float32)`` where the instrument exists and NaN where it does not.

    Parameters
    ----------
    op : str
        A key of :data:`ARITHMETIC`.
    a, b : array, (T, LANES) float32 or float64
        The operation is done in the type numpy gives such a pair, and rounded to float32 after it.
    dead : array, (T, LANES) bool
        True where the instrument does not exist.
    out : array, (T, LANES) float32

    Raises
    ------
    KeyError
        ``op`` is not a key of :data:`ARITHMETIC`.
    """
    if HAVE_NUMBA:
        _combine_store(_CODE[op], a, b, dead, out)
    else:
        store(ARITHMETIC[op](a, b), dead, out)


def store(x: Tile, dead: Dead, out: NDArray[np.float32]) -> None:
    """Write ``x.astype(float32)`` where the instrument exists and NaN where it does not.

    Parameters
    ----------
    x : array, (T, LANES) float32, float64 or bool
    dead : array, (T, LANES) bool
        True where the instrument does not exist.
    out : array, (T, LANES) float32
    """
    if HAVE_NUMBA:
        _store(x, dead, out)
    else:
        np.copyto(out, x, casting="unsafe")
        out[dead] = np.nan


def blanked(x: Tile, dead: Dead, out: Tile) -> None:
    """Copy ``x`` with NaN where the instrument does not exist, as a windowed operator wants to read it.

    Parameters
    ----------
    x : array, (T, LANES) float32, float64 or bool
    dead : array, (T, LANES) bool
        True where the instrument does not exist.
    out : array, (T, LANES)
        Of the type of ``x``; float64 where ``x`` is bool (True becomes 1).
    """
    if HAVE_NUMBA:
        _store(x, dead, out)
    else:
        np.copyto(out, x)
        out[dead] = np.nan


def choose(condition: NDArray[np.bool_], left: Tile, right: Tile, out: Tile) -> None:
    """Write ``left`` where the condition holds and ``right`` where it does not.

    Parameters
    ----------
    condition : array, (T, LANES) bool
    left, right, out : array, (T, LANES)
        All float32 or all float64; ``out`` may be ``left`` or ``right`` itself.
    """
    if HAVE_NUMBA:
        _choose(condition, left, right, out)
    else:
        np.copyto(out, np.where(condition, left, right))


# The compiled functions see tiles as one long row (C-contiguous, or numba refuses them): one loop to compile, nothing
# to ask between rows. One function holds all operations: a quarter of the functions to compile. (Handing the operation
# in as a function would keep numba from finding its machine code on disk.)


@jit
def _store(x: Tile, dead: Dead, out: Tile) -> None:
    source, gone, target = x.reshape(-1), dead.reshape(-1), out.reshape(-1)
    real = out.dtype.type
    missing = real(np.nan)
    for i in range(target.size):
        value = real(source[i])
        target[i] = missing if gone[i] else value


@jit
def _combine(code: int, a: Tile, b: Tile, out: Tile) -> None:
    left, right, target = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    if code == 0:
        for i in range(target.size):
            target[i] = left[i] + right[i]
    elif code == 1:
        for i in range(target.size):
            target[i] = left[i] - right[i]
    elif code == 2:
        for i in range(target.size):
            target[i] = left[i] * right[i]
    else:
        for i in range(target.size):
            target[i] = left[i] / right[i]


@jit
def _combine_store(code: int, a: Tile, b: Tile, dead: Dead, out: NDArray[np.float32]) -> None:
    left, right, gone, target = a.reshape(-1), b.reshape(-1), dead.reshape(-1), out.reshape(-1)
    missing = np.float32(np.nan)
    if code == 0:
        for i in range(target.size):
            value = np.float32(left[i] + right[i])
            target[i] = missing if gone[i] else value
    elif code == 1:
        for i in range(target.size):
            value = np.float32(left[i] - right[i])
            target[i] = missing if gone[i] else value
    elif code == 2:
        for i in range(target.size):
            value = np.float32(left[i] * right[i])
            target[i] = missing if gone[i] else value
    else:
        for i in range(target.size):
            value = np.float32(left[i] / right[i])
            target[i] = missing if gone[i] else value


@jit
def _choose(condition: NDArray[np.bool_], left: Tile, right: Tile, out: Tile) -> None:
    condition, left, right, out = condition.reshape(-1), left.reshape(-1), right.reshape(-1), out.reshape(-1)
    for i in range(out.size):
        out[i] = left[i] if condition[i] else right[i]
