"""The process around one competitor: a line of JSON in, the timed call, a line of JSON out.

Usage: python -m engine_peers.worker MODULE:CLASS MARKET_FOLDER NAMES DAYS THREADS

A line is ``{"call": METHOD, "with": [ARGUMENTS]}``. The answer has ``returned``, ``wall`` and ``cpu`` (seconds,
children included) and the peak memory so far; or ``error``.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine_peers.market import Market

GIGABYTE = 1e9


def main() -> None:
    """Answer until the input ends."""
    # Libraries print to standard output; the answers get a stream of their own, and the rest goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, folder, names, days, threads = sys.argv[1:]
    # Before numpy and polars are imported: a competitor gets the threads that were asked for, not all there are.
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", threads)
    os.environ.setdefault("POLARS_MAX_THREADS", threads)
    module, kind = name.split(":")
    try:
        make = getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError as error:
        _say(answers, {"error": f"there is no module {error.name}"})
        return
    competitor = make(Market(Path(folder), int(names), int(days)), int(threads))
    used = [f"{package} {version(package)}" for package in competitor.versions]
    _say(answers, {"returned": used})
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), _cpu_seconds()
        returned = getattr(competitor, request["call"])(*request["with"])
        answer = {"returned": returned, "wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu}
        _say(answers, answer | {"own_gb": _own_peak(), "child_gb": _child_peak()})


def _say(answers: Any, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _cpu_seconds() -> float:
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _own_peak() -> float:
    # The kernel hands ru_maxrss of the parent down to a child that was just started; VmHWM begins anew.
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / GIGABYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _resident_unit() / GIGABYTE


def _child_peak() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _resident_unit() / GIGABYTE


def _resident_unit() -> int:
    return 1 if platform.system() == "Darwin" else 1024


if __name__ == "__main__":
    main()
