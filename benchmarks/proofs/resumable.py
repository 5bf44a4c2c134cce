"""Runs of a proof that are kept one JSON line each, so that a command that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Job = dict[str, Any]


def rows_of(jobs: Sequence[Job], run: Callable[[Job], Row], out: Path, workers: int) -> list[Row]:
    """Run the jobs that are not in the file yet, and return the rows of all.

    Parameters
    ----------
    jobs : sequence of dict
        Settings by name. A job is done when a row of the file holds all of them.
    run : callable
        Returns what was found; the row is the settings and that. At the top level of its module, for processes to find.
    out : Path
        JSON lines, appended to.
    workers : int
        Processes side by side; 1: none but this one.
    """
    done = read_rows(out)
    missing = [job for job in jobs if not any(job.items() <= row.items() for row in done)]
    with out.open("a", encoding="utf-8") as file:
        for row in _rows(missing, run, workers):
            text = json.dumps(row)
            file.write(text + "\n")
            file.flush()
            print(text, flush=True)
    return [row for row in read_rows(out) if any(job.items() <= row.items() for job in jobs)]


def read_rows(path: Path) -> list[Row]:
    """Read the rows written so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _rows(jobs: Sequence[Job], run: Callable[[Job], Row], workers: int) -> Iterator[Row]:
    if workers == 1:
        for job in jobs:
            yield {**job, **run(job)}
        return
    # Compiled kernels hold threads, which do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(running):
            yield {**running[future], **future.result()}
