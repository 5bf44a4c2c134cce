"""Write and read the files of a Qlib provider.

Layout (Qlib 0.9.7): ``calendars/day.txt``, ``instruments/<market>.txt`` (code, first day, last day; tabs; several rows
a code are allowed), ``features/<code in lower case>/<field in lower case>.day.bin`` (little-endian float32; element 0 is
the calendar position of the first value) and, for accounts, ``financial/<code>/<field>_q.{data,index}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Span: TypeAlias = tuple[str, np.datetime64, np.datetime64]


def write_calendar(root: Path, days: Sequence[np.datetime64]) -> None:
    """Write the trading days, one a line."""
    folder = root / "calendars"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "day.txt").write_text("".join(f"{day!s:.10}\n" for day in days), encoding="ascii")


def read_calendar(root: Path) -> NDArray[np.datetime64]:
    """Read the trading days as ``datetime64[D]``."""
    lines = (root / "calendars" / "day.txt").read_text(encoding="ascii").split()
    return np.array(lines, dtype="datetime64[D]")


def write_instruments(root: Path, market: str, spans: Iterable[Span]) -> None:
    """Write one market: rows of code, first day and last day, both included."""
    folder = root / "instruments"
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{code}\t{first!s:.10}\t{last!s:.10}\n" for code, first, last in spans)
    (folder / f"{market}.txt").write_text(rows, encoding="ascii")


def read_instruments(root: Path, market: str) -> list[Span]:
    """Read one market's rows of code, first day and last day."""
    spans: list[Span] = []
    for line in (root / "instruments" / f"{market}.txt").read_text(encoding="ascii").splitlines():
        code, first, last = line.split("\t")[:3]
        spans.append((code, np.datetime64(first, "D"), np.datetime64(last, "D")))
    return spans


def feature_path(root: Path, code: str, field: str) -> Path:
    """Return where a field of an instrument is kept."""
    return root / "features" / code.lower() / f"{field.lower()}.day.bin"


def write_feature(root: Path, code: str, field: str, start: int, values: NDArray[np.floating]) -> None:
    """Write one field of one instrument; ``start`` is the calendar position of ``values[0]``."""
    path = feature_path(root, code, field)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.concatenate([[start], values]).astype("<f4").tofile(path)


def read_feature(root: Path, code: str, field: str) -> tuple[int, NDArray[np.float32]]:
    """Read one field of one instrument: the calendar position of its first value, and the values."""
    raw = np.fromfile(feature_path(root, code, field), dtype="<f4")
    return int(raw[0]), raw[1:]
