"""The panel: named arrays, days x instruments, checked once when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.errors import PanelError

Array = NDArray[np.float64]
Days = NDArray[np.datetime64]
Mask = NDArray[np.bool_]
DayLike = str | date | np.datetime64 | pd.Timestamp


@dataclass(frozen=True, eq=False)
class Panel:
    """Named float arrays over the same days and instruments.

    Parameters
    ----------
    days : array, (T,) datetime64[D]
        Trading days, strictly increasing.
    instruments : tuple of str, (N,)
        Unique instrument codes; their order is the order of the columns.
    values : mapping of str to array, (T, N) float
        One array for each field. Row ``t`` holds what is known at the close of ``days[t]`` unless the field is a label.
        NaN means "no value"; infinite values are refused.
    member : array, (T, N) bool, optional
        True where the instrument belongs to the universe that day; None means always.

    Raises
    ------
    PanelError
        Shapes that differ, days out of order, duplicates or infinite values.

    Notes
    -----
    The arrays are kept as read-only views: changing the array that was handed in changes the panel, so don't.
    """

    days: Days
    instruments: tuple[str, ...]
    values: Mapping[str, Array] = field(repr=False)
    member: Mask | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        days = as_days(self.days)
        instruments = tuple(self.instruments)
        if len(set(instruments)) != len(instruments):
            twice = sorted({name for name in instruments if instruments.count(name) > 1})
            raise PanelError(f"instruments {twice!r} are listed more than once; expected unique codes; drop the copies")
        shape = (len(days), len(instruments))
        checked = {name: _checked(name, array, shape, days, instruments) for name, array in self.values.items()}
        object.__setattr__(self, "days", days)
        object.__setattr__(self, "instruments", instruments)
        object.__setattr__(self, "values", checked)
        if self.member is not None:
            object.__setattr__(self, "member", _checked_member(self.member, shape))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of days and number of instruments."""
        return len(self.days), len(self.instruments)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in the order they were given."""
        return tuple(self.values)

    def __getitem__(self, name: str) -> Array:
        """Return the (T, N) array of a field; PanelError names the fields there are."""
        if name not in self.values:
            raise PanelError(
                f"field {name!r} is not in the panel; it has {list(self.values)!r}; load it or ask for one"
            )
        return self.values[name]

    def member_mask(self) -> Mask:
        """Return the membership as a (T, N) mask, all true when the panel has none."""
        return np.ones(self.shape, dtype=np.bool_) if self.member is None else self.member

    def stack(self, names: Iterable[str] | None = None) -> Array:
        """Return fields as one (F, T, N) copy, all of them when ``names`` is None."""
        chosen = self.fields if names is None else tuple(names)
        return np.stack([self[name] for name in chosen]) if chosen else np.empty((0, *self.shape))

    def slice(self, start: DayLike | None = None, end: DayLike | None = None) -> Panel:
        """Return the days from ``start`` to ``end``, both included; None means from the first, to the last."""
        first = 0 if start is None else int(np.searchsorted(self.days, as_day(start), side="left"))
        last = len(self.days) if end is None else int(np.searchsorted(self.days, as_day(end), side="right"))
        if first >= last:
            span = f"{self.days[0]} to {self.days[-1]}" if len(self.days) else "empty"
            raise PanelError(f"no day between {start!r} and {end!r}; the panel is {span}; choose dates inside it")
        rows = slice(first, last)
        return replace(
            self,
            days=self.days[rows],
            values={name: array[rows] for name, array in self.values.items()},
            member=None if self.member is None else self.member[rows],
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, rows_are_members: bool = False) -> Panel:
        """Make a panel of a frame as Qlib gives it.

        Parameters
        ----------
        frame : DataFrame
            Indexed (datetime, instrument) in any row order and either level order, one numeric column for each field.
        rows_are_members : bool
            True when the frame has a row exactly where the instrument is in the universe, as ``D.features`` gives for
            a universe with dates; the membership mask is then true where there is a row.

        Returns
        -------
        Panel
            Days and instruments sorted; NaN where the frame has no row.

        Raises
        ------
        PanelError
            Another index, two rows for one day and instrument, columns that are not numbers, infinite values.
        """
        if not isinstance(frame.index, pd.MultiIndex) or set(frame.index.names) != {"datetime", "instrument"}:
            raise PanelError(
                f"the frame's index levels are {list(frame.index.names)!r}; expected ['datetime', 'instrument']; "
                "set them with frame.set_index or frame.rename_axis"
            )
        if isinstance(frame.columns, pd.MultiIndex):
            raise PanelError(
                f"the frame's columns have {frame.columns.nlevels} levels; expected one; select a group first, "
                "for example frame['feature']"
            )
        stamps = frame.index.get_level_values("datetime").to_numpy().astype("datetime64[D]")
        codes = frame.index.get_level_values("instrument").to_numpy().astype(str)
        days, row = np.unique(stamps, return_inverse=True)
        instruments, column = np.unique(codes, return_inverse=True)
        shape = (len(days), len(instruments))
        cell = row * shape[1] + column
        filled = np.zeros(shape, dtype=np.bool_)
        filled.ravel()[cell] = True
        if int(filled.sum()) != len(cell):
            order = np.sort(cell)
            first = int(order[:-1][np.diff(order) == 0][0])
            raise PanelError(
                f"more than one row for {instruments[first % shape[1]]} on {days[first // shape[1]]}; expected one; "
                "drop duplicates or aggregate to days"
            )
        values: dict[str, Array] = {}
        for name in frame.columns:
            array = np.full(shape, np.nan)
            try:
                array.ravel()[cell] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise PanelError(
                    f"column {name!r} has type {frame[name].dtype}; expected numbers; convert or drop it"
                ) from error
            values[str(name)] = array
        return cls(days, tuple(str(code) for code in instruments), values, filled if rows_are_members else None)

    def to_frame(self) -> pd.DataFrame:
        """Return a frame indexed (datetime, instrument), sorted; only the member rows when there is a mask."""
        index = pd.MultiIndex.from_product(
            [pd.DatetimeIndex(self.days.astype("datetime64[ns]")), list(self.instruments)],
            names=["datetime", "instrument"],
        )
        frame = pd.DataFrame({name: array.ravel() for name, array in self.values.items()}, index=index)
        rows = np.flatnonzero(self.member_mask().ravel())
        result: pd.DataFrame = frame.iloc[rows].sort_index()
        return result


def as_days(days: object) -> Days:
    """Return trading days as a read-only (T,) datetime64[D] array, checked to be dates and strictly increasing."""
    given = np.asarray(days)
    if given.dtype.kind not in "MUO":
        raise PanelError(f"days have type {given.dtype}; expected datetime64[D] or dates; convert them")
    try:
        array: Days = given.astype("datetime64[D]")
    except (TypeError, ValueError) as error:
        raise PanelError(f"days {days!r} are not dates; expected datetime64[D] or dates; convert them") from error
    if array.ndim != 1:
        raise PanelError(f"days have shape {array.shape}; expected one axis (T,); flatten them")
    if np.isnat(array).any():
        raise PanelError("days hold NaT (not a time); expected a date on every row; drop those rows")
    late = np.flatnonzero(array[1:] <= array[:-1])
    if len(late):
        at = int(late[0])
        raise PanelError(
            f"day {array[at + 1]} follows {array[at]} at row {at + 1}; expected strictly increasing days; "
            "sort them and drop duplicates"
        )
    kept: Days = array.view()
    kept.setflags(write=False)
    return kept


def as_day(value: DayLike) -> np.datetime64:
    """Return one day as datetime64[D]; PanelError when it is not a date."""
    try:
        stamp = pd.Timestamp(value)
    except (TypeError, ValueError) as error:
        raise PanelError(f"{value!r} is not a date; expected one such as '2020-01-31'; correct it") from error
    if stamp is pd.NaT:
        raise PanelError(f"{value!r} is not a date; expected one such as '2020-01-31'; correct it")
    day: np.datetime64 = np.datetime64(stamp.date(), "D")
    return day


def _checked(name: str, array: object, shape: tuple[int, int], days: Days, instruments: tuple[str, ...]) -> Array:
    try:
        checked = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PanelError(f"field {name!r} is not numeric; expected floats; convert or drop it") from error
    if checked.shape != shape:
        raise PanelError(
            f"field {name!r} has shape {checked.shape}; expected {shape} (days, instruments); align it to the panel"
        )
    infinite = np.argwhere(np.isinf(checked))
    if len(infinite):
        row, column = (int(position) for position in infinite[0])
        raise PanelError(
            f"field {name!r} has {len(infinite)} infinite values, the first for {instruments[column]} on {days[row]}; "
            "expected finite values or NaN; treat them per day before making the panel"
        )
    kept: Array = checked.view()
    kept.setflags(write=False)
    return kept


def _checked_member(member: object, shape: tuple[int, int]) -> Mask:
    mask = np.asarray(member)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise PanelError(
            f"member has shape {mask.shape} and type {mask.dtype}; expected {shape} bool; align it to the panel"
        )
    kept: Mask = mask.view()
    kept.setflags(write=False)
    return kept
