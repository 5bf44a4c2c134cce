"""Where two frames of values differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.guard.finding import counted

_SHOWN: Final = 5


@dataclass(frozen=True)
class Difference:
    """How two frames differ on the rows that were compared.

    Parameters
    ----------
    columns : tuple of str
        Columns with a difference, the one with most first; empty when the rows themselves differ.
    cells : int
        Cells, or rows, that differ.
    column, day, instrument : str
        The first place of the first column.
    one, other : float or str
        What stands there in the first frame and in the second.
    """

    columns: tuple[str, ...]
    cells: int
    column: str
    day: str
    instrument: str
    one: float | str
    other: float | str

    def told(self, one: str, other: str) -> str:
        """Say it in words; `one` and `other` say what the two frames are, such as "as it is"."""
        if not self.day:
            return f"the columns are not the same: {self.one} {one}, {self.other} {other}"
        place = f"{self.instrument} on {self.day}"
        if not self.columns:
            return f"{counted(self.cells, 'row')} not the same, first {place}: {self.one} {one}, {self.other} {other}"
        names = ", ".join(self.columns[:_SHOWN]) + (", ..." if len(self.columns) > _SHOWN else "")
        return (
            f"{counted(self.cells, 'value')} in {counted(len(self.columns), 'column')} not the same ({names}), "
            f"first {self.column} of {place}: {_number(self.one)} {one}, {_number(self.other)} {other}"
        )

    def evidence(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "columns": list(self.columns),
            "cells": self.cells,
            "column": self.column,
            "day": self.day,
            "instrument": self.instrument,
            "old": _plain(self.one),
            "new": _plain(self.other),
        }


def first_difference(
    one: pd.DataFrame,
    other: pd.DataFrame,
    *,
    start: pd.Timestamp | None = None,
    until: pd.Timestamp | None = None,
    tolerance: float = 0.0,
    share: float = 0.0,
) -> Difference | None:
    """Compare two frames, indexed (datetime, instrument), on the days from `start` to `until`, both included.

    A row of which every value is NaN counts as missing: one that only one of the frames has is no difference, so that
    an index padded with empty rows, such as that of pandas 3's ``stack()``, is not taken for a leak.

    Parameters
    ----------
    one, other : DataFrame
    start, until : Timestamp, optional
        Default: all days.
    tolerance : float
        In standard deviations of the column, over the rows compared; 0 is equality, bit for bit. NaN equals NaN alone.
    share : float
        A column counts as different when more than this share of its cells are.

    Returns
    -------
    Difference or None
        None when nothing differs.
    """
    one, other = _without_padding(_between(one, start, until), _between(other, start, until))
    if not one.index.equals(other.index):
        if (rows := _row_difference(one, other)) is not None:
            return rows
        other = other.loc[one.index]
    if list(one.columns) != list(other.columns):
        here, there = (", ".join(map(str, frame.columns)) for frame in (one, other))
        return Difference((), abs(len(one.columns) - len(other.columns)), "", "", "", here, there)
    counts: dict[str, int] = {}
    places: dict[str, int] = {}
    for position, name in enumerate(one.columns):
        differs = _differing(one.iloc[:, position], other.iloc[:, position], tolerance)
        count = int(differs.sum())
        if count > share * len(differs):
            counts[str(name)] = count
            places[str(name)] = int(differs.argmax())
    if not counts:
        return None
    columns = tuple(sorted(counts, key=lambda name: -counts[name]))
    worst = columns[0]
    row, position = places[worst], [str(name) for name in one.columns].index(worst)
    day, instrument = one.index[row]
    return Difference(
        columns,
        sum(counts.values()),
        worst,
        _day(day),
        str(instrument),
        one.iloc[:, position].to_numpy()[row],
        other.iloc[:, position].to_numpy()[row],
    )


def first_change(one: pd.DataFrame, other: pd.DataFrame, *, until: pd.Timestamp) -> pd.Timestamp | None:
    """Return the first day up to `until` on which two frames differ in a row or a value; None when on no day.

    A row of which every value is NaN counts as missing.
    """
    one, other = _without_padding(_between(one, None, until), _between(other, None, until))
    shared = one.index.intersection(other.index)
    days = one.index.symmetric_difference(other.index).get_level_values(0)
    here, there = one.loc[shared], other.loc[shared]
    differs = np.zeros(len(shared), dtype=np.bool_)
    for position in range(min(one.shape[1], other.shape[1])):
        differs |= _differing(here.iloc[:, position], there.iloc[:, position], 0.0)
    days = days.append(shared[differs].get_level_values(0))
    return None if not len(days) else pd.Timestamp(days.min())


def _between(frame: pd.DataFrame, start: pd.Timestamp | None, until: pd.Timestamp | None) -> pd.DataFrame:
    days = frame.index.get_level_values("datetime")
    begin = 0 if start is None else int(days.searchsorted(start, side="left"))
    end = len(days) if until is None else int(days.searchsorted(until, side="right"))
    part: pd.DataFrame = frame.iloc[begin:end]
    return part


def _without_padding(one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Leave out the empty rows that only one of the frames has; those that both have are compared as they are."""
    if one.index.equals(other.index):
        return one, other
    return _without_own_empty(one, other.index), _without_own_empty(other, one.index)


def _without_own_empty(frame: pd.DataFrame, index: pd.Index) -> pd.DataFrame:
    own = ~frame.index.isin(index)
    own[own] = frame.loc[own].isna().all(axis=1)
    kept: pd.DataFrame = frame.loc[~own]
    return kept


def _row_difference(one: pd.DataFrame, other: pd.DataFrame) -> Difference | None:
    gone, come = one.index.difference(other.index), other.index.difference(one.index)
    count = len(gone) + len(come)
    if count == 0:
        return None
    only = come if not len(gone) or (len(come) and come[0] < gone[0]) else gone
    words = ("there", "missing") if only is gone else ("missing", "there")
    day, instrument = only[0]
    return Difference((), count, "", _day(day), str(instrument), *words)


def _differing(one: pd.Series, other: pd.Series, tolerance: float) -> NDArray[np.bool_]:
    here, there = one.to_numpy(), other.to_numpy()
    if here.dtype.kind not in "fiub" or there.dtype.kind not in "fiub":
        return ~((one == other) | (one.isna() & other.isna())).to_numpy(dtype=np.bool_)
    differs = ~((here == there) | (np.isnan(here.astype(float)) & np.isnan(there.astype(float))))
    if tolerance and differs.any():
        finite = here[np.isfinite(here)].astype(np.float64)
        with np.errstate(invalid="ignore"):
            near = np.abs(here.astype(np.float64) - there) <= tolerance * (finite.std() if len(finite) else 0.0)
        differs &= ~near
    return np.asarray(differs, dtype=np.bool_)


def _day(day: Any) -> str:
    return f"{pd.Timestamp(day):%Y-%m-%d}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    number = float(value)
    return number if np.isfinite(number) else str(number)
