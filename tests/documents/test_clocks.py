"""Three clocks, and the conservative reading of dates."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import pytest

from qlib_llm_alpha.documents.clocks import availability, end_of_day, moment_of, utc_text
from qlib_llm_alpha.errors import DocumentError

INGESTED = datetime(2026, 1, 2, tzinfo=timezone.utc)


def test_a_date_counts_from_its_end_in_the_zone_of_the_market() -> None:
    assert end_of_day(date(2015, 6, 12)).astimezone(timezone.utc) == datetime(
        2015, 6, 12, 15, 59, 59, 999999, tzinfo=timezone.utc
    )
    # New York is four hours behind in summer and five in winter.
    assert moment_of("2015-06-12", "America/New_York") == datetime(2015, 6, 13, 3, 59, 59, 999999, tzinfo=timezone.utc)
    assert moment_of("2015-12-11", "America/New_York") == datetime(2015, 12, 12, 4, 59, 59, 999999, tzinfo=timezone.utc)


def test_a_month_or_a_year_counts_from_its_end() -> None:
    assert moment_of("2016-02") == end_of_day(date(2016, 2, 29))
    assert moment_of(2015) == moment_of("2015") == end_of_day(date(2015, 12, 31))


def test_a_moment_with_a_zone_is_taken_as_it_is() -> None:
    expected = datetime(2015, 6, 12, 10, 30, tzinfo=timezone.utc)
    assert moment_of("2015-06-12T18:30:00+08:00") == moment_of("2015-06-12T10:30:00Z") == expected
    assert moment_of(expected) == expected


@pytest.mark.parametrize(
    "value", [datetime(2015, 6, 12, 9, 30), "2015-06-12T09:30:00", "soon", "2015-13", "2015-02-30", True, None, 1.5]
)
def test_a_moment_without_a_zone_and_what_is_no_date_are_refused(value: object) -> None:
    with pytest.raises(DocumentError, match="published"):
        moment_of(value)


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(DocumentError, match="time zone"):
        end_of_day(date(2015, 6, 12), "Mars/Olympus")


def test_a_filing_is_available_from_its_acceptance_not_from_the_end_of_its_period() -> None:
    period, accepted = end_of_day(date(2015, 3, 31)), datetime(2015, 4, 28, 12, tzinfo=timezone.utc)
    assert availability(published=period, accepted=accepted, ingested=INGESTED) == accepted


def test_a_vendors_delay_is_added_and_must_not_be_negative() -> None:
    published = datetime(2015, 6, 12, 1, tzinfo=timezone.utc)
    hours = timedelta(hours=2)
    assert availability(published=published, accepted=None, ingested=INGESTED, delay=hours) == published + hours
    with pytest.raises(DocumentError, match="delay"):
        availability(published=published, accepted=None, ingested=INGESTED, delay=-hours)


def test_without_any_date_a_document_is_available_from_its_ingestion() -> None:
    assert availability(published=None, accepted=None, ingested=INGESTED) == INGESTED


def test_moments_as_text_sort_as_moments_do() -> None:
    east = datetime(2015, 6, 12, 7, 0, 0, 5, tzinfo=timezone(timedelta(hours=8)))
    west = datetime(2015, 6, 11, 23, 0, 0, 6, tzinfo=timezone.utc)
    assert utc_text(east) == "2015-06-11T23:00:00.000005+00:00" < utc_text(west)
