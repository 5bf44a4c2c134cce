"""Processes that have imported Qlib and wait: each job is done in a copy of one, made by ``fork``.

Importing Qlib takes longer than most builds. The waiting process imports it, opens nothing and runs no job itself, so a
copy of it is as good as a new one. Where there is no safe ``fork`` (not Linux), each job gets a new interpreter.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from qlib_llm_alpha.errors import ConfigError

LOG: Final = "log.txt"
TIMEOUT_S: Final = 1800.0
"""Seconds that one build may take where nothing else is said."""
_LONGEST_S: Final = 1e6


class WarmProcesses:
    """The processes of some builds, as many as there are jobs at a time; :meth:`close` ends them.

    Each leads a process group, so that what a job started ends with it.

    Parameters
    ----------
    timeout_s : float
        Seconds that one job may take.

    Raises
    ------
    ConfigError
        A time limit that is none.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        if not 0 < timeout_s <= _LONGEST_S:
            raise ConfigError(
                f"timeout_s is {timeout_s!r}; expected the seconds that one build may take, more than 0 and at most "
                f"{_LONGEST_S:g}; {TIMEOUT_S:g} is usual"
            )
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._alive: set[subprocess.Popen[str]] = set()
        self._idle: list[subprocess.Popen[str]] = []

    def run(self, folder: Path) -> int:
        """Do the job of a folder in a process of its own, working in ``work`` there; return its exit code.

        Raises
        ------
        TimeoutError
            It was not done in time, and was ended.
        ChildProcessError
            These processes are closed.
        """
        code = self._run_in_copy(folder) if sys.platform == "linux" else None
        return self._run_anew(folder) if code is None else code

    def close(self) -> None:
        """End and reap all processes, those at work as well; nothing runs afterwards."""
        with self._lock:
            self._closed = True
            alive, idle = list(self._alive), list(self._idle)
        for process in alive:
            self._kill(process)
        for process in idle:
            self._end(process)

    def _run_in_copy(self, folder: Path) -> int | None:
        """Do a job in a copy of a waiting process; None when that process is gone."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None:
            process = self._start(["qlib_llm_alpha.guard.serving"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        answer = ""
        try:
            answer = self._asked(process, folder)
        finally:
            with self._lock:
                waits = bool(answer) and not self._closed
                if waits:
                    self._idle.append(process)
            if not waits:
                self._end(process)
        return int(answer) if answer else None

    def _asked(self, process: subprocess.Popen[str], folder: Path) -> str:
        """Hand a folder to a waiting process and return its answer, empty when it is gone."""
        if process.stdin is None or process.stdout is None:
            return ""
        try:
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
        except BrokenPipeError:
            return ""
        with selectors.DefaultSelector() as selector:
            # It answers with one line for each job, so that none is left in the buffer where no selector sees it.
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(self.timeout_s):
                raise TimeoutError
        return process.stdout.readline().strip()

    def _run_anew(self, folder: Path) -> int:
        with (folder / LOG).open("wb") as log:
            process = self._start(
                ["qlib_llm_alpha.guard.child", str(folder)], stdout=log, stderr=subprocess.STDOUT, cwd=folder / "work"
            )
        try:
            return process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            self._end(process)

    def _start(
        self,
        module: list[str],
        *,
        stdin: int | None = None,
        stdout: int | IO[bytes],
        stderr: int = subprocess.DEVNULL,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with self._lock:
            if self._closed:
                raise ChildProcessError("the builds are closed")
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", *module],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=environment,
                text=True,
                start_new_session=True,
            )
            self._alive.add(process)
        return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        self._kill(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _kill(self, process: subprocess.Popen[str]) -> None:
        """Kill a process with its group and reap it; once, as the number of one that was reaped may be another's."""
        with self._lock:
            if process not in self._alive:
                return
            self._alive.remove(process)
        if sys.platform == "win32":
            process.kill()
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
