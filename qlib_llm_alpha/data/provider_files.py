"""Write and read the files of a Qlib provider.

Layout (Qlib 0.9.7): ``calendars/day.txt``, ``instruments/<market>.txt`` (code, first day, last day; tabs; several rows
a code are allowed), ``features/<code in lower case>/<field in lower case>.day.bin`` (little-endian float32; element 0
is the calendar position of the first value) and, for accounts, ``financial/<code>/<field>_q.{data,index}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.errors import ProviderError

Span: TypeAlias = tuple[str, np.datetime64, np.datetime64]
PeriodRecords: TypeAlias = tuple[NDArray[np.datetime64], NDArray[np.int64], NDArray[np.float64]]

_RECORD = np.dtype([("date", "<u4"), ("period", "<u4"), ("value", "<f8"), ("next", "<u4")])
_NO_RECORD = 0xFFFFFFFF


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


def period_path(root: Path, code: str, name: str) -> Path:
    """Return where the records of a point-in-time field such as ``eps_q`` are kept; the index lies beside it."""
    return root / "financial" / code.lower() / f"{name.lower()}.data"


def write_period_records(
    root: Path,
    code: str,
    name: str,
    announced: NDArray[np.datetime64],
    periods: NDArray[np.integer],
    values: NDArray[np.floating],
) -> None:
    """Write one point-in-time field of one instrument in Qlib's form.

    Parameters
    ----------
    root : Path
        The provider.
    code, name : str
        The name ends in ``_q`` for quarterly and ``_a`` for yearly records, as Qlib wants it.
    announced : array of datetime64[D], (records,)
        Day from which the value is known; Qlib returns it on that day already.
    periods : array of int, (records,)
        Year times 100 plus quarter, or the year alone when yearly. A period may come again with a later day: that is a
        restatement.
    values : array of float, (records,)

    Raises
    ------
    ProviderError
        No record, or a name that says no frequency.

    Notes
    -----
    ``<name>.data`` holds records of uint32 date (20190102), uint32 period, float64 value, uint32 byte offset of the
    next record of the same period, sorted by date; ``<name>.index`` holds the first year and, for each period from
    then on, the offset of its first record; 0xFFFFFFFF is none.
    """
    quarters = {"_q": 4, "_a": 1}.get(name.lower()[-2:])
    if quarters is None:
        raise ProviderError(f"point-in-time field {name!r} of {code!r} says no frequency: end it in _q or _a")
    if len(periods) == 0:
        raise ProviderError(f"point-in-time field {name!r} of {code!r} has no record: leave the file out")
    order = np.lexsort((periods, announced))
    records = np.zeros(len(order), dtype=_RECORD)
    records["date"] = _day_numbers(announced[order])
    records["period"] = periods[order]
    records["value"] = values[order]
    records["next"] = _NO_RECORD
    years = records["period"] // 100 if quarters == 4 else records["period"]
    first_year = int(years.min())
    slots = np.full((int(years.max()) - first_year + 1) * quarters, _NO_RECORD, dtype="<u4")
    latest: dict[int, int] = {}
    for position, period in enumerate(records["period"].tolist()):
        offset = position * _RECORD.itemsize
        if period in latest:
            records["next"][latest[period]] = offset
        else:
            slot = (period // 100 - first_year) * 4 + period % 100 - 1 if quarters == 4 else period - first_year
            slots[slot] = offset
        latest[period] = position
    path = period_path(root, code, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.tofile(path)
    np.concatenate([np.array([first_year], dtype="<u4"), slots]).tofile(path.with_suffix(".index"))


def read_period_records(root: Path, code: str, name: str) -> PeriodRecords:
    """Read one point-in-time field of one instrument: days announced, periods and values, in the order written."""
    records = np.fromfile(period_path(root, code, name), dtype=_RECORD)
    date = records["date"].astype(np.int64)
    months = np.datetime64("1970-01", "M") + ((date // 10000 - 1970) * 12 + date // 100 % 100 - 1)
    announced: NDArray[np.datetime64] = months.astype("datetime64[D]") + (date % 100 - 1).astype("timedelta64[D]")
    return announced, records["period"].astype(np.int64), records["value"].astype(np.float64)


def _day_numbers(days: NDArray[np.datetime64]) -> NDArray[np.int64]:
    months = days.astype("datetime64[M]")
    number = months.astype(np.int64)
    date = (days - months.astype("datetime64[D]")).astype(np.int64) + 1
    return np.asarray((1970 + number // 12) * 10000 + (number % 12 + 1) * 100 + date)
