"""Compile the kernels before they are needed.

numba compiles a kernel when it is first called and keeps the machine code on disk, beside the package or, where that
cannot be written, in the user's cache folder. Of several processes that warm up at once one compiles and the others
wait for it: numba puts whole files in place, but two that enter what they compiled into one list can lose each other's
entry.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock, Timeout

from qlib_llm_alpha.engine.across import ACROSS
from qlib_llm_alpha.engine.compiling import listening
from qlib_llm_alpha.engine.evaluate import Batch, evaluate
from qlib_llm_alpha.engine.execution import Cells
from qlib_llm_alpha.engine.funnel import prepare_label, screen
from qlib_llm_alpha.engine.kernels.registry import GROUPS, HAVE_NUMBA, KERNELS, LANES
from qlib_llm_alpha.engine.tile_scoring import Pool, UnitRows, score_columns
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.parser import read

Step = Callable[[], Any]

_LOG = logging.getLogger(__name__)

_DAYS: Final = 400
_INSTRUMENTS: Final = 40
_WINDOW: Final = 5
_ELEMENTWISE: Final = (
    "$close+$open",
    "($close-$open)*$volume",
    "$close/Mean($close,5)",
    "Mean($close,5)/$close",
    "Mean($close,5)-Std($close,5)",
    "Mean($close,5)*$volume-1",
    "Mean($close>$open,5)",
    "Ref($close,1)",
    "Ref($close>$open,-1)",
    "Ref(Mean($close,5),-1)",
    "$close>$open",
    "If($close>$open,$close,$open)",
    "If($close>$open,Mean($close,5),Std($close,5))",
    "If($close>$open,$close,Mean($close,5))",
    "If($close>$open,1,$volume)",
    "-1*($close>$open)",
    "($close>$open)**($high>$low)",
    "$close",
    "Mean($close,5)",
    "Mean(Less($close,1),5)",
    "Mean(1.0*($close>$open)+Mean($close,3),5)",
    "(Mean($close,5)+$open)+(Mean($close,3)-$open)/(Mean($close,2)*$open)",
)
# Two inputs that lack different rows take another way.
_PAIRS: Final = ("Corr($close,$volume,5)", "Corr(Mean($close,5),Ref(Mean($volume,5),3),5)")


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up did.

    Parameters
    ----------
    compiled : tuple of str
        Functions that were compiled; those that were on disk already are not among them.
    seconds : float
    """

    compiled: tuple[str, ...]
    seconds: float


def warm_up(progress: Callable[[int, int], None] | None = None, *, processes: int = 1) -> WarmUp:
    """Call every kernel once for each type it is compiled for; nothing happens without numba.

    Parameters
    ----------
    progress : callable, optional
        Called as ``progress(done, total)``.
    processes : int
        With 2 or more, kernels that read across instruments are compiled by a second process meanwhile.
    """
    begun = time.perf_counter()
    compiled: list[str] = []
    shared, over_time, across_names = _steps() if HAVE_NUMBA else ([], [], [])
    total = len(shared) + len(over_time) + len(across_names)
    done = itertools.count(1)

    def take(steps: list[Step]) -> None:
        for step in steps:
            step()
            if progress is not None:
                progress(next(done), total)

    with _alone(), listening(compiled.append), np.errstate(all="ignore"):
        take(shared)
        # What both need is on disk now; the rest they compile for themselves.
        helper = _second_process() if compiled and processes > 1 else None
        take(over_time)
        if helper is not None:
            names, _ = helper.communicate()
            compiled += names.split()
        take(across_names)
    return WarmUp(tuple(compiled), time.perf_counter() - begun)


def compile_across() -> tuple[str, ...]:
    """Do the last part of :func:`warm_up` alone, and return what was compiled: the second process's work."""
    compiled: list[str] = []
    with listening(compiled.append), np.errstate(all="ignore"):
        for step in _steps()[-1]:
            step()
    return tuple(compiled)


def _second_process() -> subprocess.Popen[str]:
    # A program of its own: neither a fork, which threads do not survive, nor a second run of the caller's script.
    code = f"from {__name__} import compile_across; print(*compile_across())"
    return subprocess.Popen(  # noqa: S603 - this interpreter, and our own text
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@contextmanager
def _alone() -> Iterator[None]:
    """Keep other warm-ups that fill the same folder waiting; the system frees the lock of a process that dies."""
    if not HAVE_NUMBA:
        yield
        return
    folder = next(Path(one.run.stats.cache_path) for one in KERNELS.values() if hasattr(one.run, "stats"))
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "warmup.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process is compiling the kernels; waiting for it, up to a minute")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _steps() -> tuple[list[Step], list[Step], list[Step]]:
    """Return what all evaluations need, what reads along time, and what reads across instruments."""
    panel, everybody = _panel(), _panel(members=False)
    shared: list[Step] = [partial(_both_ways, text, panel) for text in _ELEMENTWISE]
    over_time: list[Step] = []
    first = np.zeros(LANES, dtype=np.int64)
    for kind in (np.float32, np.float64):
        tile = np.ones((_DAYS, LANES), dtype=kind)
        out = np.empty((_DAYS, LANES))
        for name, kernel in KERNELS.items():
            window = float(_WINDOW) if name == "EMA" else _WINDOW
            numbers = _numbers(kernel.run, kernel.inputs)
            over_time.append(partial(kernel.run, *[tile] * kernel.inputs, out, window, first, *numbers))
        for group in GROUPS:
            outs = [np.empty_like(out) for _ in group.members]
            over_time.append(partial(group.run, tile, *outs, _WINDOW, first, *_numbers(group.run, len(outs))))
    over_time += [partial(_both_ways, text, panel) for text in _PAIRS]
    across_names: list[Step] = []
    for name in ACROSS:
        for inner, other in (("$close", "$open"), ("Mean($close,5)", "$open"), ("$close", "Mean($open,5)")):
            tree = read(_cross_section(name, inner, other), Limits())
            across_names += [partial(evaluate, [tree], each, threads=1) for each in (panel, everybody)]
    across_names.append(partial(_score, panel))
    return shared, over_time, across_names


def _numbers(run: Any, inputs: int) -> list[float]:
    """Return a number for each parameter after inputs, outputs, window and ``first``."""
    function = getattr(run, "py_func", run)
    names = list(inspect.signature(function).parameters)
    return [0.5] * (len(names) - names.index("first") - 1)


def _panel(*, members: bool = True) -> TiledPanel:
    days = np.arange(_DAYS).astype("datetime64[D]")
    codes = [f"SH{600000 + number}" for number in range(_INSTRUMENTS)]
    rng = np.random.default_rng(0)
    names = ("$close", "$open", "$high", "$low", "$volume")
    values = {name: np.exp(rng.normal(size=(_DAYS, _INSTRUMENTS))) for name in names}
    values["$volume"][7::9] = np.nan
    values["$industry"] = np.broadcast_to(np.arange(_INSTRUMENTS) % 3, (_DAYS, _INSTRUMENTS)).astype(np.float64)
    spans = {code: (number % 7, _DAYS - number % 5) for number, code in enumerate(codes)}
    member = np.ones((_DAYS, _INSTRUMENTS), dtype=np.bool_) if members else None
    return TiledPanel.from_arrays(days, codes, values, spans=spans, member=member)


def _both_ways(text: str, panel: TiledPanel) -> None:
    batch = Batch([read(text, Limits())], panel, threads=1)
    batch.write_tiles(np.empty((1, panel.tile_count, _DAYS, LANES), dtype=np.float32))
    everything = np.ones((_INSTRUMENTS, _DAYS), dtype=np.bool_)
    cells = Cells.by_instrument(everything)
    batch.write_cells(cells, np.empty((1, len(cells)), dtype=np.float32))
    batch.write_cells(Cells.by_day(everything), np.empty((1, len(cells)), dtype=np.float32))


def _cross_section(name: str, inner: str, other: str) -> str:
    one = ACROSS[name]
    others = "" if one.inputs == 1 else ",$industry" if "Group" in name or "Neutral" in name else f",{other}"
    numbers = "".join(f",{4 if number.whole else 0.1}" for number in one.parameters)
    return f"{name}({inner}{others}{numbers})"


def _score(panel: TiledPanel) -> None:
    label = prepare_label(parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True), panel, threads=1)
    columns = evaluate([parse("Mean($close,5)"), parse("$volume")], panel, threads=1).values
    score_columns(columns, label)
    rows = UnitRows.of(columns, label.universe)
    screen([parse("Mean($open,5)")], panel, label, pool=Pool.empty().add("one", rows))
