from __future__ import annotations

import json
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.statistics import mean_of
from qlib_llm_alpha.guard.model_window import headline, sharpe_of, split_days, window_status
from tests.guard.memory_clients import model_info

TODAY = date(2026, 1, 15)
CUT_OFF = date(2023, 10, 1)
# The buffer of 90 days after it ends on 2023-12-30.
FIRST_CLEAN = date(2023, 12, 31)


@pytest.mark.parametrize(
    ("cut_off", "tuned", "start", "end", "status", "clean_from"),
    [
        (CUT_OFF, None, "2023-12-31", "2024-12-31", "clean", FIRST_CLEAN),
        (CUT_OFF, None, "2024-06-03", "2024-12-31", "clean", FIRST_CLEAN),
        (CUT_OFF, None, "2023-12-30", "2024-12-31", "partial", FIRST_CLEAN),
        (CUT_OFF, None, "2020-01-02", "2023-12-31", "partial", FIRST_CLEAN),
        (CUT_OFF, None, "2020-01-02", "2023-12-30", "contaminated", FIRST_CLEAN),
        (CUT_OFF, None, "2020-01-02", "2020-12-31", "contaminated", FIRST_CLEAN),
        (CUT_OFF, None, "2023-12-31", "2023-12-31", "clean", FIRST_CLEAN),
        (CUT_OFF, None, "2023-12-30", "2023-12-30", "contaminated", FIRST_CLEAN),
        # Of a fine-tuned model the later of both counts.
        (CUT_OFF, date(2024, 10, 1), "2024-06-03", "2024-12-30", "contaminated", date(2024, 12, 31)),
        (CUT_OFF, date(2024, 10, 1), "2024-06-03", "2024-12-31", "partial", date(2024, 12, 31)),
        (CUT_OFF, date(2024, 10, 1), "2025-01-02", "2025-12-31", "clean", date(2024, 12, 31)),
        (CUT_OFF, date(2022, 1, 1), "2023-12-31", "2024-12-31", "clean", FIRST_CLEAN),
        # Unknown never passes, not even for days to come or with a known end of fine-tuning.
        (None, None, "2020-01-02", "2020-12-31", "unknown", None),
        (None, None, "2026-01-05", "2026-12-31", "unknown", None),
        (None, None, "2027-01-04", "2027-12-31", "unknown", None),
        (None, date(2020, 1, 1), "2024-01-02", "2024-12-31", "unknown", None),
    ],
)
def test_a_window_is_clean_only_when_it_begins_after_cut_off_and_buffer(
    cut_off: date | None, tuned: date | None, start: str, end: str, status: str, clean_from: date | None
) -> None:
    found = window_status(start, end, model_info(cut_off, tuned), today=TODAY)
    assert (found.status, found.clean_from) == (status, clean_from)
    assert found.words in found.sentence
    assert json.loads(json.dumps(found.to_dict()))["status"] == status


def test_an_unknown_cut_off_is_said_to_count_as_today_and_as_contaminated() -> None:
    found = window_status("2027-01-04", "2027-12-31", model_info(None), today=TODAY)
    assert found.sentence == (
        "2027-01-04 to 2027-12-31 is unknown cut-off, treated as contaminated for some-model: its knowledge cut-off is "
        "not known and counts as today, 2026-01-15"
    )


def test_the_buffer_can_be_chosen_but_not_be_negative() -> None:
    assert window_status("2023-10-02", "2024-01-02", model_info(CUT_OFF), buffer_days=0, today=TODAY).status == "clean"
    assert (
        window_status("2023-10-01", "2024-01-02", model_info(CUT_OFF), buffer_days=0, today=TODAY).status == "partial"
    )
    with pytest.raises(ConfigError, match="buffer_days is -1"):
        window_status("2023-10-02", "2024-01-02", model_info(CUT_OFF), buffer_days=-1, today=TODAY)


@pytest.mark.parametrize(("start", "end"), [("2024-02-01", "2024-01-01"), ("soon", "2024-01-01")])
def test_a_window_without_two_dates_in_order_is_refused(start: str, end: str) -> None:
    with pytest.raises(ConfigError):
        window_status(start, end, model_info(CUT_OFF), today=TODAY)


@given(
    offset=st.integers(-800, 800),
    length=st.integers(0, 800),
    buffer=st.integers(0, 400),
    tuned=st.none() | st.integers(-900, 900),
)
def test_status_and_split_agree_on_every_window(offset: int, length: int, buffer: int, tuned: int | None) -> None:
    start = np.datetime64(CUT_OFF) + offset
    days = start + np.arange(length + 1)
    last = None if tuned is None else (np.datetime64(CUT_OFF) + tuned).item()
    status = window_status(days[0], days[-1], model_info(CUT_OFF, last), buffer_days=buffer, today=TODAY)
    clean = split_days(days, status)
    known_until = max(np.datetime64(CUT_OFF), np.datetime64(CUT_OFF if last is None else last))
    np.testing.assert_array_equal(clean, (days - known_until).astype(int) > buffer)
    assert status.status == ("clean" if clean.all() else "partial" if clean.any() else "contaminated")


DAYS = np.arange("2023-12-25", "2024-01-05", dtype="datetime64[D]")
SERIES = np.array([0.03, -0.01, 0.02, np.nan, 0.01, 0.01, 0.00, 0.01, np.nan, -0.02, 0.03])


def status_of(cut_off: date | None) -> object:
    return window_status(DAYS[0], DAYS[-1], model_info(cut_off), today=TODAY)


def test_a_headline_is_that_of_the_clean_days_and_the_others_stand_beside_it() -> None:
    found = headline("rank IC", SERIES, DAYS, [status_of(CUT_OFF)])
    assert found.clean is not None
    assert found.contaminated is not None
    assert found.value == pytest.approx((0.00 + 0.01 - 0.02 + 0.03) / 4)
    assert found.contaminated.value == pytest.approx((0.03 - 0.01 + 0.02 + 0.01 + 0.01) / 5)
    assert (found.clean.start, found.clean.end, found.clean.days) == ("2023-12-31", "2024-01-04", 4)
    assert (found.contaminated.start, found.contaminated.end) == ("2023-12-25", "2023-12-30")
    assert "which does not count" in found.sentence
    assert json.loads(json.dumps(found.to_dict()))["clean"]["days"] == 4


def test_of_several_models_the_one_that_knows_most_counts() -> None:
    both = split_days(DAYS, status_of(CUT_OFF), status_of(date(2023, 10, 3)))
    np.testing.assert_array_equal(both, np.datetime64("2024-01-02") <= DAYS)
    assert not split_days(DAYS, status_of(CUT_OFF), status_of(None)).any()
    assert split_days(DAYS).all()


def test_without_a_clean_day_there_is_no_figure_to_quote() -> None:
    found = headline("Sharpe", SERIES, DAYS, [status_of(None)], figure=sharpe_of)
    assert found.clean is None
    assert np.isnan(found.value)
    assert "no clean day" in found.sentence
    whole = headline("Sharpe", SERIES, DAYS, [], figure=sharpe_of)
    assert whole.contaminated is None
    known = SERIES[~np.isnan(SERIES)]
    assert whole.value == pytest.approx(known.mean() / known.std(ddof=1) * np.sqrt(252))
    assert "all on days that no model can remember" in whole.sentence
    nothing = headline("Sharpe", np.full(len(DAYS), np.nan), DAYS, [])
    assert nothing.clean is None
    assert "no figure counts" in nothing.sentence


def test_a_series_that_does_not_fit_the_days_is_refused() -> None:
    with pytest.raises(PanelError, match="one value for each day"):
        headline("rank IC", SERIES[:-1], DAYS, [], figure=mean_of)
