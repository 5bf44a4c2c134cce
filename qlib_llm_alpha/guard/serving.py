"""The program of the waiting process: ``python -m qlib_llm_alpha.guard.serving``; see ``warm_process``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from qlib_llm_alpha.guard.warm_process import LOG


def serve() -> None:
    """Import Qlib, then read folders of jobs from the input, one a line, and answer each with an exit code."""
    # Whatever an import prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import qlib.contrib.data.handler
    import qlib.workflow  # noqa: F401

    import qlib_llm_alpha.data.handler
    import qlib_llm_alpha.data.provider  # noqa: F401
    from qlib_llm_alpha.guard.child import main

    for line in sys.stdin:
        folder = Path(line.strip())
        copy = os.fork()
        if copy == 0:
            answers.close()
            _become(folder)
            main(folder)
            sys.stdout.flush()
            # Not sys.exit: the loop that waits for jobs belongs to the process this is a copy of.
            os._exit(0)
        _, status = os.waitpid(copy, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _become(folder: Path) -> None:
    """Turn the copy into the process of a job: its output goes to the log, its folder is the job's."""
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder / "work")


if __name__ == "__main__":
    serve()
