"""Trading days, quarters and review days of the embedded market: rules on dates alone, no table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Days = NDArray[np.datetime64]

# Month and day of the closed days besides weekends; the Spring Festival closes the whole week that holds 5 February.
_HOLIDAYS = frozenset(
    {(1, 1), (1, 2), (4, 5), (5, 1), (5, 2), (5, 3), (6, 22), (9, 21)} | {(10, d) for d in range(1, 8)}
)


def trading_days(start: np.datetime64, end: np.datetime64) -> Days:
    """Return the weekdays from ``start`` to ``end``, both included, less the holidays.

    Closed are 1 and 2 January, the week of 5 February, 5 April, 1 to 3 May, 22 June, 21 September, 1 to 7 October:
    about 244 trading days a year, as in Shanghai. The real Spring Festival moves with the moon; this one does not.

    Returns
    -------
    array of datetime64[D], (days,)
    """
    every = np.arange(start, end + 1)
    years = every.astype("datetime64[Y]").astype(int) + 1970
    months = every.astype("datetime64[M]").astype(int) % 12 + 1
    dates = (every - every.astype("datetime64[M]")).astype(int) + 1
    closed = ~np.is_busday(every)
    for month, date in _HOLIDAYS:
        closed |= (months == month) & (dates == date)
    for year in np.unique(years):
        fifth = np.datetime64(f"{year}-02-05", "D")
        monday = fifth - weekday(fifth)
        closed |= (every >= monday) & (every < monday + 7)
    return np.asarray(every[~closed])


def weekday(day: np.datetime64) -> int:
    """Return 0 for a Monday to 6 for a Sunday."""
    return int((day.astype("datetime64[D]").astype(int) + 3) % 7)


def year_of(day: np.datetime64) -> int:
    """Return the calendar year."""
    return int(day.astype("datetime64[Y]").astype(int)) + 1970


def quarter_ends(first: np.datetime64, last: np.datetime64) -> Days:
    """Return the last calendar days of the quarters that end from ``first`` to ``last``, both included."""
    months = np.arange(first.astype("datetime64[M]"), last.astype("datetime64[M]") + 1)
    ends = months[(months.astype(int) % 3) == 2]
    days = (ends + 1).astype("datetime64[D]") - 1
    return np.asarray(days[(days >= first) & (days <= last)])


def review_days(days: Days) -> NDArray[np.int64]:
    """Return the positions of the days on which the index takes new members.

    As for the CSI 300: the trading day after the second Friday of June and of December. Position 0 is always one.
    """
    if not len(days):
        return np.zeros(0, dtype=np.int64)
    first, last = (
        days[0].astype("datetime64[Y]").astype(int) + 1970,
        days[-1].astype("datetime64[Y]").astype(int) + 1970,
    )
    positions = [0]
    for year in range(first, last + 1):
        for month in ("06", "12"):
            opening = np.datetime64(f"{year}-{month}-01", "D")
            friday = opening + (4 - weekday(opening)) % 7 + 7
            position = int(np.searchsorted(days, friday, side="right"))
            if 0 < position < len(days):
                positions.append(position)
    return np.array(sorted(set(positions)), dtype=np.int64)
