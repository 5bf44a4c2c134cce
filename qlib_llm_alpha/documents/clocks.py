"""When a document was published and when a trader could have had it.

Three clocks: *published* is what the source says, *available* is when a trader could have had it, *ingested* is when we
stored it. What a date sees is decided by *available* alone. All moments carry a time zone; one without is refused,
because nobody can say which hour of which city it means.
"""

from __future__ import annotations

import calendar
import re
from datetime import date, datetime, time, timedelta, timezone
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from qlib_llm_alpha.errors import DocumentError

CHINA: Final = "Asia/Shanghai"
NO_DELAY: Final = timedelta(0)

_DATE_ONLY: Final = re.compile(r"([0-9]{4})(?:-([0-9]{1,2})(?:-([0-9]{1,2}))?)?")


def aware(moment: datetime, what: str) -> datetime:
    """Return ``moment`` if it has a time zone.

    Raises
    ------
    DocumentError
        It has none.
    """
    if moment.utcoffset() is None:
        raise DocumentError(
            f"{what} is {moment!r}; expected a date and time with a time zone; add one, such as +08:00, or give the "
            "date alone where a date is allowed, which counts as the end of that day"
        )
    return moment


def end_of_day(day: date, zone: str = CHINA) -> datetime:
    """Return the last microsecond of a day in a zone: when what is known by its date alone is taken as known."""
    return datetime.combine(day, time.max, tzinfo=_zone(zone))


def moment_of(value: object, zone: str = CHINA, what: str = "published") -> datetime:
    """Read a moment as people write it.

    Parameters
    ----------
    value : datetime, date, int or str
        A moment with its zone; or a day, a month (``2015-06``) or a year, of which the **end** in ``zone`` counts,
        never the start.
    zone : str
        Zone of the market, such as ``Asia/Shanghai`` or ``America/New_York``.
    what : str
        What the value is, for messages.

    Raises
    ------
    DocumentError
        The value is no date, or a time of day without a zone.
    """
    if isinstance(value, datetime):
        return aware(value, what)
    if isinstance(value, date):
        return end_of_day(value, zone)
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    parts = _DATE_ONLY.fullmatch(text)
    try:
        if parts is None:
            # Python 3.10 does not read the Z that others write for UTC.
            return aware(datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", text)), what)
        year, month = int(parts[1]), int(parts[2] or 12)
        return end_of_day(date(year, month, int(parts[3] or calendar.monthrange(year, month)[1])), zone)
    except (ValueError, calendar.IllegalMonthError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(
            f"{what} is {value!r}; expected a date such as 2015-06-12 or a moment such as 2015-06-12T18:30:00+08:00; "
            "correct it"
        ) from error


def availability(
    *, published: datetime | None, accepted: datetime | None, ingested: datetime, delay: timedelta = NO_DELAY
) -> datetime:
    """Return when a trader could have had a document.

    Parameters
    ----------
    published : datetime, optional
        As the source says.
    accepted : datetime, optional
        When an authority took a filing; it outranks ``published``, which for filings often is the end of the period.
    ingested : datetime
        When it reached us; what counts where neither of the others is known.
    delay : timedelta
        What the vendor needs to deliver it; not negative.

    Raises
    ------
    DocumentError
        A moment without a zone, or a negative delay.
    """
    if delay < NO_DELAY:
        raise DocumentError(f"the delay is {delay}; expected zero or more; nothing can be had before it is published")
    if accepted is not None:
        return aware(accepted, "accepted") + delay
    if published is not None:
        return aware(published, "published") + delay
    return aware(ingested, "ingested_at")


def utc_text(moment: datetime) -> str:
    """Return a moment in UTC as text of fixed length, so that the order of texts is the order in time."""
    return aware(moment, "a moment").astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f+00:00")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DocumentError(
            f"the time zone is {name!r}; expected a name such as Asia/Shanghai or America/New_York; correct it"
        ) from error
