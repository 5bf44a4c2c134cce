"""The rows of the table, and how near a competitor's numbers come to Qlib's."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

RELATIVE = 1e-5
OF_SPREAD = 1e-3
CELLS_THAT_MAY_DIFFER = 1e-4

HEADINGS = (
    "names", "set", "task", "engine", "can express", "wall ms", "CPU ms", "a second", "x Qlib k2", "ours is faster by",
    "x floor", "new one: alone / in batch, ms", "peak GB", "like Qlib: all cells / both numbers",
)  # fmt: skip


@dataclass
class Row:
    """One line of the table; times are for one expression, None is what was not measured."""

    names: int
    title: str
    task: str
    engine: str
    expressed: str = ""
    missing: Mapping[str, int] = field(default_factory=dict)
    ms: float | None = None
    cpu_ms: float | None = None
    over_stock: float | None = None
    over_ours: float | None = None
    floors: float | None = None
    alone_ms: float | None = None
    batch_ms: float | None = None
    own_gb: float | None = None
    child_gb: float | None = None
    agrees: str | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """Return the cells as text."""
        compiled = "" if self.alone_ms is None else f"{_short(self.alone_ms)} / {_short(self.batch_ms)}"
        memory = "" if self.own_gb is None else f"{self.own_gb:.1f}"
        if self.child_gb:
            memory += f" + 2 x {self.child_gb:.1f}"
        return [
            f"{self.names:,}",
            self.title,
            self.task,
            self.engine,
            (self.expressed + " " + self.note.replace("|", "/")).strip(),
            _short(self.ms),
            _short(self.cpu_ms),
            _short(None if self.ms is None else 1e3 / self.ms),
            _short(self.over_stock),
            _short(self.over_ours),
            _short(self.floors),
            compiled,
            memory,
            self.agrees or "",
        ]


def table(
    rows: Sequence[Row],
    bandwidth: Mapping[str, float],
    versions: Sequence[str],
    days: int,
    threads: int,
    repeats: int,
) -> str:
    """Return the table in Markdown, under one line on the machine and one on what could not be expressed."""
    rates = ", ".join(f"{name} {rate:.1f} GB/s" for name, rate in bandwidth.items())
    lines = [
        f"{days:,} days, {threads} threads, medians of {repeats}; {_processor()}; memory: {rates}; "
        f"Python {platform.python_version()}, {', '.join(versions)}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| " + " | ".join(["---"] * len(HEADINGS)) + " |",
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
    ]
    missing: dict[str, str] = {}
    for row in rows:
        if row.missing:
            missing[f"{row.engine}, {row.title}"] = ", ".join(f"{op} {count}" for op, count in row.missing.items())
    if missing:
        lines += ["", "Not expressible: " + "; ".join(f"{who}: {what}" for who, what in missing.items()) + "."]
    return "\n".join(lines)


def agreement(theirs: Path, stock: Path, positions: Sequence[int]) -> str:
    """Return how many expressions equal Qlib's: over all cells, and over the cells where both have a number.

    Equal means within 1e-5 of the value, or of a thousandth of the expression's spread where that is larger, in all but
    one of ten thousand cells.
    """
    reference = np.load(stock, mmap_mode="r")
    everywhere = where_both = 0
    for ours, position in zip(np.load(theirs, mmap_mode="r"), positions, strict=True):
        wanted = np.asarray(reference[position], np.float64)
        got = np.asarray(ours, np.float64)
        both = np.isfinite(got) & np.isfinite(wanted)
        spread = np.std(wanted[both]) if both.any() else 0.0
        near = np.abs(got[both] - wanted[both]) <= RELATIVE * np.maximum(np.abs(wanted[both]), OF_SPREAD * spread)
        pattern = ~both & ~_same_gap(got, wanted)
        wrong = int((~near).sum())
        everywhere += wrong + int(pattern.sum()) <= CELLS_THAT_MAY_DIFFER * wanted.size
        where_both += wrong <= CELLS_THAT_MAY_DIFFER * max(1, int(both.sum()))
    return f"{everywhere} / {where_both}"


def _same_gap(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return (np.isnan(got) & np.isnan(wanted)) | (got == wanted)


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
