"""A process that has imported Qlib and waits: each job is done in a copy of it, made by ``fork``.

Importing Qlib takes longer than most builds. The waiting process imports it, opens nothing and runs no job itself, so a
copy of it is as good as a new one. Where there is no safe ``fork`` (not Linux), each job gets a new interpreter.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from pathlib import Path
from typing import Final

LOG: Final = "log.txt"


class WarmProcess:
    """One waiting process; it ends with this one."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qlib_llm_alpha.guard.serving"],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, folder: Path) -> int | None:
        """Do the job of a folder and return the exit code; None when the waiting process is gone."""
        pipes = self._process.stdin, self._process.stdout
        if pipes[0] is None or pipes[1] is None:
            return None
        try:
            pipes[0].write(f"{folder}\n")
            pipes[0].flush()
            answer = pipes[1].readline().strip()
        except BrokenPipeError:
            return None
        return int(answer) if answer else None


_IDLE: Final[queue.LifoQueue[WarmProcess]] = queue.LifoQueue()


def run_job(folder: Path) -> int:
    """Do the job of a folder in a process of its own, working in ``work`` there; return its exit code."""
    if sys.platform == "linux":
        try:
            process = _IDLE.get_nowait()
        except queue.Empty:
            process = WarmProcess()
        code = process.run(folder)
        if code is not None:
            _IDLE.put(process)
            return code
    with (folder / LOG).open("wb") as log:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "qlib_llm_alpha.guard.child", str(folder)],
            cwd=folder / "work",
            env=_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
