"""The processes of the builds: what hangs is ended and named, and nothing is left when a report is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.guard.fresh_process import Built, Job, build
from qlib_llm_alpha.guard.suite import check_signal, run_guards
from qlib_llm_alpha.guard.warm_process import WarmProcesses
from tests.guard.subjects import STOCK, handler
from tests.support.leaky import close_over_mean

# Each builds handlers in processes of their own.
pytestmark = pytest.mark.slow

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes wait only where fork is safe")


def state(pid: int) -> tuple[str, int]:
    """Return the state of a process, ``Z`` for a dead one that nobody reaped, and its parent; ``""`` for none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return words[0], int(words[1])


def serving() -> list[int]:
    """Return the waiting processes of this one, and its dead ones that nobody reaped."""
    found = []
    for pid in (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()):
        what, parent = state(pid)
        if parent == os.getpid():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            found += [pid] if what == "Z" or b"qlib_llm_alpha.guard" in command else []
    return found


def gone(pid: int) -> bool:
    """Say whether a process has ended; one that was just killed may take a moment."""
    deadline = time.monotonic() + 10
    while state(pid)[0] not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.02)
    return state(pid)[0] in ("", "Z")


def hanging(pids: Path) -> Callable[[str], pd.DataFrame]:
    """Return a signal that starts a process, notes both numbers, and waits for ever."""

    def stuck(provider: str) -> pd.DataFrame:
        child = subprocess.Popen(["sleep", "600"])
        pids.write_text(f"{os.getpid()} {child.pid}")
        sys.stdout.write("waiting for the vendor's server\n")
        sys.stdout.flush()
        time.sleep(600)
        raise AssertionError("nobody ended it")

    return stuck


def built(compute: Callable[[str], pd.DataFrame], provider: Path, folder: Path, processes: WarmProcesses) -> Built:
    return build(Job(compute, STOCK, str(provider)), folder, processes)


@linux_only
def test_no_process_waits_after_a_report_or_an_error(small_provider: Path) -> None:
    before = serving()
    assert check_signal(close_over_mean, small_provider, guards=["poison"], days=1).verdict == "clean"
    assert serving() == before
    with pytest.raises(ConfigError, match="cannot be built"):
        run_guards(handler("NoSuchHandler"), STOCK, None, small_provider, guards=["poison"])
    assert serving() == before


@linux_only
def test_a_build_that_hangs_is_ended_with_all_that_it_started_and_the_error_says_what_to_do(
    small_provider: Path, tmp_path: Path
) -> None:
    processes = WarmProcesses()
    try:
        assert built(close_over_mean, small_provider, tmp_path / "first", processes).error == ""
        (waiting,) = processes._idle
        processes.timeout_s = 4.0
        found = built(hanging(tmp_path / "pids"), small_provider, tmp_path / "second", processes)
        for words in ("not done after 4 s", "waiting for the vendor's server", "timeout_s", "--timeout"):
            assert words in found.error
        numbers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert all(gone(pid) for pid in (*numbers, waiting.pid))
        processes.timeout_s = 600.0
        assert built(close_over_mean, small_provider, tmp_path / "third", processes).error == ""
    finally:
        processes.close()
    assert waiting.returncode == -signal.SIGKILL


def test_what_hangs_is_named_by_the_command(small_provider: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stuck cannot be built in a new process: it was not done after 0\.5 s"):
        check_signal(hanging(tmp_path / "pids"), small_provider, timeout_s=0.5)


def test_a_new_interpreter_that_hangs_is_ended_as_well(small_provider: Path, tmp_path: Path) -> None:
    processes = WarmProcesses(0.5)
    folder = tmp_path / "job"
    (folder / "work").mkdir(parents=True)
    with pytest.raises(TimeoutError):
        processes._run_anew(folder)
    assert not processes._alive


@linux_only
def test_a_waiting_process_that_died_is_reaped_and_the_job_is_done_all_the_same(
    small_provider: Path, tmp_path: Path
) -> None:
    processes = WarmProcesses()
    try:
        built(close_over_mean, small_provider, tmp_path / "first", processes)
        (waiting,) = processes._idle
        os.kill(waiting.pid, signal.SIGKILL)
        assert built(close_over_mean, small_provider, tmp_path / "second", processes).error == ""
        assert state(waiting.pid) == ("", 0)
    finally:
        processes.close()


@linux_only
def test_closing_ends_what_is_being_built_and_lets_nothing_begin(small_provider: Path, tmp_path: Path) -> None:
    processes = WarmProcesses()
    pids = tmp_path / "pids"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(built, hanging(pids), small_provider, tmp_path / "job", processes)
        deadline = time.monotonic() + 120
        while not (pids.exists() and pids.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes.close()
        with pytest.raises(ChildProcessError):
            answer.result(timeout=60)
    assert all(gone(int(pid)) for pid in pids.read_text().split())


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_refused(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        WarmProcesses(seconds)
