"""Chunks of candidates on several processes, or on a cluster, through joblib.

A chunk is computed by a pure function that can be pickled. Data are not handed over: a worker opens the saved panel
(:mod:`qlib_llm_alpha.engine.panel_store`), whose pages all workers of a machine share. A result is given to the caller
as soon as it is there, so that what was finished survives whatever comes later.

=========== =========================================================================================================
loky        processes of this machine; a worker that dies loses its chunk, which is run again
threading   threads of this process; for work that releases the interpreter's lock, as the engine does
ray         a Ray cluster, or one that Ray starts on this machine: ``pip install 'qlib_llm_alpha[ray]'``
dask        the Dask cluster of the current ``distributed.Client``, or one of this machine: ``qlib_llm_alpha[dask]``;
            how often a chunk may lose its worker is Dask's setting ``distributed.scheduler.allowed-failures``
=========== =========================================================================================================

A chunk should carry a second of work or more: to begin one costs some milliseconds, to start a worker a second.
"""

from __future__ import annotations

import importlib
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import cloudpickle
from joblib import Parallel, delayed, parallel_config

from qlib_llm_alpha.engine.cache import CacheReport, ColumnCache, evaluate_and_report
from qlib_llm_alpha.engine.evaluate import Warmup
from qlib_llm_alpha.engine.funnel import Keep, Screened, screen
from qlib_llm_alpha.engine.panel_store import open_saved_panel
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, MissingExtraError
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.factor.tree import Node as Tree

_LOG = logging.getLogger(__name__)

Chunk = TypeVar("Chunk")
Item = TypeVar("Item")
Value = TypeVar("Value")

Backend: TypeAlias = Literal["loky", "threading", "ray", "dask"]

BACKENDS: Final[tuple[Backend, ...]] = ("loky", "threading", "ray", "dask")


@dataclass(frozen=True)
class Result(Generic[Value]):
    """What became of one chunk.

    Parameters
    ----------
    value : Value or None
        What the function returned; None where it failed.
    error : str
        Why it failed; empty where it did not.
    losses : int
        How often a worker died while the chunk was under way, whichever chunk it was that killed it.
    """

    value: Value | None
    error: str = ""
    losses: int = 0

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return bool(self.error)


def run_chunks(
    function: Callable[[Chunk], Value],
    chunks: Sequence[Chunk],
    *,
    backend: Backend = "loky",
    workers: int,
    retries: int = 1,
    done: Callable[[int, Result[Value]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result[Value]]:
    """Compute ``function(chunk)`` for each chunk; what goes wrong with one is its own failure and nobody else's.

    Parameters
    ----------
    function : callable
        Of one chunk; it can be pickled, as can its result, and may be called again for the same chunk.
    chunks : sequence
        Small: they are pickled. Hand over paths rather than data.
    backend : {"loky", "threading", "ray", "dask"}
    workers : int
        Chunks at a time. On a cluster, more than it has workers is no use.
    retries : int
        How often a chunk may lose its worker beyond the first time (Dask has its own setting). An exception is not
        tried again.
    done : callable, optional
        ``done(position, result)`` is called in this process as soon as a chunk is finished, in no particular order.
        What it raises ends the run.
    progress : callable, optional
        ``progress(finished, total)`` is called after each chunk.

    Returns
    -------
    list of Result
        In the order of the chunks.

    Raises
    ------
    ConfigError
        A backend that does not exist, or numbers that mean nothing.
    MissingExtraError
        Ray or Dask is not installed.

    Notes
    -----
    A worker that dies takes its pool with it. What was under way then (at most three chunks for each worker) is run
    again in a fresh pool, in halves, until the chunk that kills is alone; it alone is reported as failed.
    """
    _check(backend, workers, retries)
    results: list[Result[Value] | None] = [None] * len(chunks)
    losses = [0] * len(chunks)
    finished = 0

    def finish(position: int, value: Value | None, error: str) -> None:
        nonlocal finished
        results[position] = result = Result(value, error, losses[position])
        finished += 1
        if error:
            _LOG.warning("chunk %d failed: %s", position, error)
        if done is not None:
            done(position, result)
        if progress is not None:
            progress(finished, len(chunks))

    with _ready(backend, workers) as deaths:
        groups = [list(range(len(chunks)))] if chunks else []
        while groups:
            group = groups.pop(0)
            under_way: set[int] = set()
            try:
                for position, value, error in _answers(function, chunks, group, under_way, backend, workers):
                    finish(position, value, error)
            except deaths as death:
                suspects = [position for position in group if position in under_way and results[position] is None]
                _LOG.warning("a worker died; %d chunks were under way and are run again: %s", len(suspects), death)
                for position in suspects:
                    losses[position] += 1
                if len(suspects) == 1 and losses[suspects[0]] > retries:
                    finish(suspects[0], None, f"its worker died {losses[suspects[0]]} times: {death}")
                    suspects = []
                rest = [position for position in group if position not in under_way]
                half = -(-len(suspects) // 2)
                groups = [part for part in (suspects[:half], suspects[half:], rest, *groups) if part]
    return [result for result in results if result is not None]


def screen_chunks(
    candidates: Sequence[Expression | str],
    folder: Path | str,
    label: Expression,
    *,
    chunk: int = 32,
    backend: Backend = "loky",
    workers: int,
    keep: Keep | None = None,
    max_price_s: float | None = None,
    warmup: Warmup = "qlib",
    rows: slice | None = None,
    retries: int = 1,
    done: Callable[[int, Result[list[Screened]]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result[list[Screened]]]:
    """Take candidates through :func:`~qlib_llm_alpha.engine.funnel.screen`, a chunk at a time.

    Parameters
    ----------
    candidates : sequence of Expression or str
    folder : path
        Of a panel that ``save_panel`` wrote, with every column that candidates and label read.
    label, keep, max_price_s, warmup, rows
        As for ``screen``, which here knows no pool. ``keep`` can be pickled, as ``Thresholds`` can.
    chunk : int
        Candidates of a chunk: they share what they have in common.
    backend, workers, retries, done, progress
        As for :func:`run_chunks`. ``done`` gets the position of the chunk: ``position * chunk`` is its first candidate.

    Returns
    -------
    list of Result
        For each chunk, what ``screen`` returns.
    """
    function = _Screening(open_saved_panel(folder), label, keep, max_price_s, warmup, rows)
    parts = _parts(candidates, chunk)
    return run_chunks(function, parts, backend=backend, workers=workers, retries=retries, done=done, progress=progress)


def fill_cache(
    formulas: Sequence[Expression | Tree],
    folder: Path | str,
    cache: Path | str,
    *,
    chunk: int = 32,
    backend: Backend = "loky",
    workers: int,
    done: Callable[[int, Result[CacheReport]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result[CacheReport]]:
    """Compute the columns of formulas into a :class:`~qlib_llm_alpha.engine.cache.ColumnCache`, a chunk at a time.

    Values travel by the cache, never through a pipe: afterwards ``cached_evaluate`` on the same panel reads them.

    Parameters
    ----------
    formulas : sequence of Expression or tree
    folder : path
        Of a panel that ``save_panel`` wrote.
    cache : path
        Folder of the cache; it may be filled in part, then only the rest is computed.
    chunk, backend, workers, done, progress
        As for :func:`screen_chunks`.

    Returns
    -------
    list of Result
        For each chunk, what was read and computed.
    """
    function = _Filling(open_saved_panel(folder), Path(cache))
    parts = _parts(formulas, chunk)
    return run_chunks(function, parts, backend=backend, workers=workers, done=done, progress=progress)


@dataclass(frozen=True)
class _Screening:
    """One chunk of candidates in a worker. The panel travels as its path."""

    panel: TiledPanel
    label: Expression
    keep: Keep | None
    max_price_s: float | None
    warmup: Warmup
    rows: slice | None

    def __call__(self, candidates: Sequence[Expression | str]) -> list[Screened]:
        return screen(
            candidates,
            self.panel,
            self.label,
            keep=self.keep,
            max_price_s=self.max_price_s,
            batch=len(candidates),
            threads=1,
            warmup=self.warmup,
            rows=self.rows,
        )


@dataclass(frozen=True)
class _Filling:
    """One chunk of formulas in a worker."""

    panel: TiledPanel
    cache: Path

    def __call__(self, formulas: Sequence[Expression | Tree]) -> CacheReport:
        _, report = evaluate_and_report(formulas, self.panel, ColumnCache(self.cache), threads=1)
        return report


def _parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    if size < 1:
        raise ConfigError(f"chunk is {size!r}; expected at least 1; 32 is usual")
    return [items[start : start + size] for start in range(0, len(items), size)]


def _check(backend: str, workers: int, retries: int) -> None:
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is not known; expected one of {list(BACKENDS)}; 'loky' is usual")
    if workers < 1:
        raise ConfigError(f"workers is {workers!r}; expected at least 1; the number of processors is usual")
    if retries < 0:
        raise ConfigError(f"retries is {retries!r}; expected 0 or more; 1 is usual")


@contextmanager
def _ready(backend: Backend, workers: int) -> Iterator[tuple[type[Exception], ...]]:
    """Make a backend known to joblib, and yield what it raises when a worker dies."""
    if backend == "ray":
        _optional("ray.util.joblib", backend).register_ray()
        # Ray's pool closes itself when one of its actors is gone; both errors say the same.
        yield (_optional("ray.exceptions", backend).RayError, BrokenExecutor)
    elif backend == "dask":
        distributed = _optional("distributed", backend)
        try:
            distributed.get_client()
        except ValueError:
            with distributed.Client(n_workers=workers, threads_per_worker=1):
                yield ()
        else:
            yield ()
    else:
        yield (BrokenExecutor,)


def _optional(module: str, backend: Backend) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"backend {backend!r} was asked for and {module!r} cannot be imported; expected the extra {backend!r} "
            f"to be installed; run: pip install 'qlib_llm_alpha[{backend}]'"
        ) from error


def _answers(
    function: Callable[[Chunk], Value],
    chunks: Sequence[Chunk],
    group: list[int],
    under_way: set[int],
    backend: Backend,
    workers: int,
) -> Iterator[tuple[int, Value | None, str]]:
    """Run some chunks and yield position, value and error of each; ``under_way`` becomes those handed out."""
    if backend == "dask":
        under_way.update(group)
        yield from _answers_of_dask(function, chunks, group)
        return
    in_threads = backend == "threading"

    def tasks(positions: list[int]) -> Iterator[Any]:
        for position in positions:
            under_way.add(position)
            yield delayed(_attempt)(function, position, chunks[position], packed=not in_threads)

    # One chunk for each message, and no more handed out than workers: a death then concerns few.
    setting: dict[str, Any] = {"batch_size": 1, "pre_dispatch": workers, "max_nbytes": None}
    # With one worker joblib computes in this process, which the chunk might kill: a second one stands idle then.
    processes = workers if in_threads else max(2, workers)
    inner: dict[str, Any] = {"inner_max_num_threads": 1} if backend == "loky" else {}
    with parallel_config(backend, n_jobs=processes, **inner):
        if backend == "ray":
            # Ray's backend gives all results at once: as many at a time as there are workers.
            for start in range(0, len(group), workers):
                yield from map(_unpacked, Parallel(**setting)(tasks(group[start : start + workers])))
        else:
            yield from map(_unpacked, Parallel(return_as="generator_unordered", **setting)(tasks(group)))


def _answers_of_dask(
    function: Callable[[Chunk], Value], chunks: Sequence[Chunk], group: list[int]
) -> Iterator[tuple[int, Value | None, str]]:
    """Run some chunks on the current client's cluster, which moves them to other workers by itself when one dies.

    Not through joblib: its Dask backend (1.6) waits for ever for a task that Dask gave up.
    """
    distributed = _optional("distributed", "dask")
    client = distributed.get_client()
    futures = {
        client.submit(_attempt, function, position, chunks[position], packed=True, pure=False): position
        for position in group
    }
    for future in distributed.as_completed(futures):
        if future.status == "finished":
            yield _unpacked(future.result())
        else:
            yield futures[future], None, f"Dask gave it up: {future.exception()!s:.300}"


def _attempt(
    function: Callable[[Chunk], Value], position: int, chunk: Chunk, *, packed: bool
) -> tuple[int, Value | bytes | None, str, bool]:
    """Compute one chunk in the worker. The result is pickled here, so that one that cannot be is this chunk's error."""
    try:
        value = function(chunk)
        return position, cloudpickle.dumps(value) if packed else value, "", packed
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a chunk raises is its own failure, and reported
        return position, None, f"{type(error).__name__}: {error}", False


def _unpacked(answer: tuple[int, Any, str, bool]) -> tuple[int, Any, str]:
    position, value, error, packed = answer
    return position, pickle.loads(value) if packed else value, error  # noqa: S301 - written by our own worker
