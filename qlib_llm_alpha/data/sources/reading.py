"""Walk a source of bars in batches of instruments that fit in memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.data.provider_files import Span
from qlib_llm_alpha.data.sources.bars import Bars, check_bars
from qlib_llm_alpha.data.sources.codes import is_index
from qlib_llm_alpha.errors import ProviderError

BATCH_ROWS = 600_000


class BarSource(ABC):
    """A folder of files that holds bars of many instruments.

    Attributes
    ----------
    kind, layout : str
        What the user asked for, and what was found.
    market : str
        ``"cn"`` or ``"us"``.
    root : Path
        The folder.
    files : tuple of Path
        Files with bars, in a fixed order.
    """

    kind: str
    layout: str
    market: str
    root: Path
    files: tuple[Path, ...]

    @abstractmethod
    def chunks(self, path: Path, *, keys_only: bool) -> Iterator[pd.DataFrame]:
        """Yield pieces of one file with columns ``instrument``, ``date`` (datetime64) and raw values.

        ``keys_only`` leaves the values out, for a first walk.
        """

    @abstractmethod
    def bars(self, instrument: str, rows: pd.DataFrame) -> Bars:
        """Turn all rows of one instrument, sorted by date, into bars."""

    def calendar(self) -> NDArray[np.datetime64] | None:
        """Return the trading days when the source states them."""
        return None

    def markets(self) -> dict[str, list[Span]]:
        """Return membership by market name, when the source states it."""
        return {}

    def listings(self) -> dict[str, np.datetime64]:
        """Return listing days by code, when the source states them."""
        return {}

    def industries(self) -> dict[str, str]:
        """Return industry names by code, when the source states them; they are today's, not of the time."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Return sentences that a user should read, such as what could not be found."""
        return ()

    def identity_files(self) -> tuple[Path, ...]:
        """Return every file whose content decides the result."""
        return self.files


@dataclass(frozen=True)
class Contents:
    """What a first walk over a source found.

    Parameters
    ----------
    rows : mapping of str to int
        Rows of each instrument.
    places : mapping of str to tuple of int
        Positions in ``source.files`` where an instrument occurs.
    days : numpy.ndarray of datetime64[D]
        Every day with a bar of a share (not of an index), increasing.
    """

    rows: Mapping[str, int]
    places: Mapping[str, tuple[int, ...]]
    days: NDArray[np.datetime64]

    @property
    def instruments(self) -> tuple[str, ...]:
        """Codes in increasing order."""
        return tuple(sorted(self.rows))


def survey(source: BarSource) -> Contents:
    """Walk over the keys of a source: which instruments are where, and on which days."""
    rows: dict[str, int] = {}
    places: dict[str, list[int]] = {}
    days: set[np.datetime64] = set()
    for position, path in enumerate(source.files):
        for chunk in source.chunks(path, keys_only=True):
            counts = chunk["instrument"].value_counts()
            for code, count in counts[counts > 0].items():
                rows[str(code)] = rows.get(str(code), 0) + int(count)
                found = places.setdefault(str(code), [])
                if not found or found[-1] != position:
                    found.append(position)
            shares = ~chunk["instrument"].map(is_index).astype(bool)
            days.update(_as_days(chunk.loc[shares, "date"].drop_duplicates()))
    if not days:
        raise ProviderError(
            f"no bars of shares in {str(source.root)!r}; expected at least one row; check the folder and the market"
        )
    return Contents(rows, {code: tuple(found) for code, found in places.items()}, np.array(sorted(days)))


def batches(contents: Contents, instruments: tuple[str, ...], max_rows: int = BATCH_ROWS) -> Iterator[tuple[str, ...]]:
    """Split instruments into groups of at most ``max_rows`` rows (one instrument may exceed it)."""
    group: list[str] = []
    total = 0
    for code in instruments:
        if group and total + contents.rows[code] > max_rows:
            yield tuple(group)
            group, total = [], 0
        group.append(code)
        total += contents.rows[code]
    if group:
        yield tuple(group)


def read_bars(source: BarSource, contents: Contents, instruments: tuple[str, ...]) -> Iterator[Bars]:
    """Yield the checked bars of some instruments, in the order given, one batch in memory at a time."""
    for group in batches(contents, instruments):
        wanted = set(group)
        positions = sorted({position for code in group for position in contents.places[code]})
        pieces = [
            chunk[chunk["instrument"].isin(wanted)]
            for position in positions
            for chunk in source.chunks(source.files[position], keys_only=False)
        ]
        frame = pd.concat([piece.astype({"instrument": str}) for piece in pieces if len(piece)], ignore_index=True)
        by_code = {str(code): rows for code, rows in frame.groupby("instrument", sort=False)}
        for code in group:
            bars = source.bars(code, by_code[code].sort_values("date", kind="stable"))
            if len(bars.days):
                check_bars(bars)
                yield bars


def fingerprint(source: BarSource) -> str:
    """Return a short hash of the names and contents of everything a source reads."""
    digest = hashlib.sha256()
    for path in source.identity_files():
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def days_of(rows: pd.DataFrame) -> NDArray[np.datetime64]:
    """Return the dates of a piece of a source as ``datetime64[D]``."""
    return _as_days(rows["date"])


def _as_days(dates: pd.Series) -> NDArray[np.datetime64]:
    return np.asarray(dates.to_numpy(), dtype="datetime64[D]")
