"""The other side of ``worker.py``: a process with one competitor, and calls that are timed inside it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from engine_peers.market import Market

BENCHMARKS = Path(__file__).resolve().parents[1]


class UnavailableError(Exception):
    """The competitor cannot run here: a package is not installed, or its process has ended.

    Parameters
    ----------
    kind : str
        The competitor.
    reason : str
    missing : bool
        True when it is only not installed.
    """

    def __init__(self, kind: str, reason: str, *, missing: bool = False) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.missing = missing


@dataclass(frozen=True)
class Answer:
    """What a call returned, its seconds, and the peak memory of the process so far."""

    returned: Any
    wall: float
    cpu: float
    own_gb: float
    child_gb: float


class Process:
    """A competitor in a process of its own; use it in a ``with`` statement."""

    def __init__(self, kind: str, market: Market, threads: int, python: str, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.kind = kind
        self.log = logs / f"{kind.split('.')[-1].replace(':', '-')}.log"
        paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    python,
                    "-m",
                    "engine_peers.worker",
                    kind,
                    str(market.folder),
                    str(market.names),
                    str(market.days),
                    str(threads),
                ],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.versions: list[str] = self._answer()["returned"]
        except UnavailableError:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Answer:
        """Call a method of the competitor and wait for it."""
        request = json.dumps({"call": method, "with": arguments})
        print(request, file=cast(IO[str], self.process.stdin), flush=True)
        return Answer(**self._answer())

    def close(self) -> None:
        """End the process and wait for its end."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        line = cast(IO[str], self.process.stdout).readline()
        if not line:
            last_words = self.log.read_text().strip().splitlines()[-1:] or ["nothing"]
            raise UnavailableError(self.kind, f"{last_words[0]:.160}, see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UnavailableError(self.kind, answer["error"], missing=True)
        return answer
