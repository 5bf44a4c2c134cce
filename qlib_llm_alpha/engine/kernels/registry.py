"""What a kernel is, and the table that the modules beside this one fill.

A kernel computes one windowed operator on one *tile*: ``x[rows, lanes]``, time down, ``LANES`` neighbouring instruments
side by side. The loop over time is outside, the loop over lanes inside, so that the compiler turns the lanes into
vector instructions and the state of all lanes stays in the first-level cache.

Timing: row ``t`` of the result reads rows ``t - window + 1`` to ``t`` and nothing later.

NaN rule: as pandas with ``min_periods=1``: missing values are left out, infinite ones count as missing, and a window
without a value gives NaN. A kernel that differs says so.

Where numba is missing the same table is served by numpy and bottleneck (``fallback``), slower, to the same numbers.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

try:
    import numba
except ImportError:  # pragma: no cover - tested in a process without numba
    numba = None  # type: ignore[assignment]

Array = NDArray[np.float64]
Lanes = NDArray[np.int64]
Run = Callable[..., None]
Fallback = Callable[..., Array]

LANES: Final = 32
"""Instruments side by side: fewer and the loops unroll badly, more and a tile leaves the second-level cache."""

HAVE_NUMBA: Final = numba is not None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One windowed operator.

    Parameters
    ----------
    name : str
        As in the factor language or in Qlib.
    inputs : int
        Tiles that it reads, 1 or 2.
    run : callable
        ``run(x, out, window, first, *parameters)``, or ``run(x, y, out, window, first, *parameters)``: compiled.
        ``x``, ``y`` are (rows, LANES) float32 or float64, ``out`` is (rows, LANES) float64, ``window`` counts rows and
        is beyond the number of rows for an expanding window, ``first`` (LANES,) is the row at which the instrument
        begins to exist: rows before it are NaN and are no part of any window.
    fallback : callable
        ``fallback(x, window, first, *parameters)`` (or ``x, y, ...``) returns what ``run`` writes; inputs are float64.
    """

    name: str
    inputs: int
    run: Run
    fallback: Fallback


@dataclass(frozen=True, slots=True)
class Group:
    """Several kernels of one input and window whose results cost little more together than one of them.

    Parameters
    ----------
    members : tuple of str
        Names of kernels, in the order of the outputs. The same name twice means two nodes that differ in parameters.
    run : callable
        ``run(x, out_1, ..., out_n, window, first, *parameters of 1, ..., *parameters of n)``: compiled. Each output
        equals, bit for bit, what the kernel of that name writes.
    """

    members: tuple[str, ...]
    run: Run


KERNELS: dict[str, Kernel] = {}
GROUPS: list[Group] = []


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile ``function`` at its first call and keep the machine code on disk; without numba return it as it is."""
    if numba is None:  # pragma: no cover - tested in a process without numba
        return function
    settings = {"error_model": "numpy", "nogil": True, "boundscheck": False, **options}
    compiled: Callable[..., Any]
    try:
        compiled = numba.njit(cache=True, **settings)(function)
    except RuntimeError:
        # No folder can be written, neither ours nor the user's: every process then compiles for itself.
        compiled = numba.njit(**settings)(function)
    _guard_code_on_disk(compiled)
    return compiled


@functools.cache
def _fingerprint() -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _guard_code_on_disk(compiled: Callable[..., Any]) -> None:
    """Let the machine code on disk count for these sources only, and one process write it at a time.

    numba looks at the file of the function alone, but kernels take pieces from each other's modules into themselves:
    after an edit of one file the code of another would be served as it was. And two processes that compile one
    function for different types may give both the same file.
    """
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if file is None or not hasattr(file, "_source_stamp"):
        return
    file._source_stamp = _fingerprint()
    save = file.save

    def save_alone(key: Any, data: Any) -> None:
        with FileLock(Path(file._cache_path) / "kernels.lock"):
            save(key, data)

    file.save = save_alone


def kernel(name: str, fallback: Fallback, *, inputs: int = 1) -> Callable[[Callable[..., None]], Run]:
    """Enter the decorated function in :data:`KERNELS` under ``name`` and compile it."""

    def enter(function: Callable[..., None]) -> Run:
        compiled = jit(function)
        KERNELS[name] = Kernel(name, inputs, compiled, fallback)
        return compiled

    return enter


def group(*members: str) -> Callable[[Callable[..., None]], Run]:
    """Enter the decorated function in :data:`GROUPS` and compile it."""

    def enter(function: Callable[..., None]) -> Run:
        compiled = jit(function)
        GROUPS.append(Group(members, compiled))
        return compiled

    return enter
