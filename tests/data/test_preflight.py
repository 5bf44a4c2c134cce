from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qlib.data import D

from qlib_llm_alpha.data.preflight import check_dates, check_fields, check_label, check_universe, provider_root
from qlib_llm_alpha.data.provider_files import write_calendar, write_instruments
from qlib_llm_alpha.errors import ConfigError, ExpressionError, ProviderError
from tests.support.provider import END, START, open_provider


def test_the_root_is_the_folder_of_the_open_provider(qlib_small: Path) -> None:
    assert provider_root() == qlib_small


def test_a_folder_without_a_calendar_is_no_provider(tmp_path: Path) -> None:
    open_provider(tmp_path)
    with pytest.raises(ProviderError, match=r"expected a Qlib provider with calendars/day.txt.*market --out"):
        provider_root()


def test_dates_inside_the_calendar_and_open_ends_pass(qlib_small: Path) -> None:
    check_dates(START, END, what="segment")
    check_dates(None, None, what="segment")
    check_dates("2019-01-01", np.datetime64("2021-07-04"), what="a holiday at either end")


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("2018-11-01", END, "segment: 2018-11-01 lies outside the provider's calendar, which runs from 2019-01-03 to"),
        (START, "2021-12-31", "segment: 2021-12-31 lies outside"),
        ("2020-02-03", "2020-01-03", "segment: starts 2020-02-03 after it ends 2020-01-03"),
        ("2020-13-45", END, "segment: '2020-13-45' is no date"),
    ],
)
def test_other_dates_are_refused(qlib_small: Path, start: str, end: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        check_dates(start, end, what="segment")
    assert message in str(told.value)


def test_a_universe_is_a_name_a_config_spans_or_codes(qlib_small: Path) -> None:
    named = check_universe("csi300")
    assert len(named) > 25
    assert sorted(check_universe(D.instruments("csi300"))) == sorted(named)
    assert check_universe("CSI300") == named
    assert check_universe(("SH600000", "SZ000001")) == ["SH600000", "SZ000001"]
    spans = {code: [(START, END)] for code in ("SH600000", "SZ000001")}
    assert check_universe(spans) == ["SH600000", "SZ000001"]


@pytest.mark.parametrize(
    ("universe", "error", "message"),
    [
        ("csi500", ProviderError, "universe 'csi500': the provider has ['all', 'csi300']"),
        ({"market": "csi500", "filter_pipe": []}, ProviderError, "universe 'csi500'"),
        (["SH600000", "600000.SH"], ProviderError, "instruments ['600000.SH'] (1 of 2) have no bars"),
        (["SH600000"], ConfigError, "holds 1 instrument(s); a cross-section needs at least 2"),
        ([], ConfigError, "holds 0 instrument(s)"),
        (300, ConfigError, "instruments 300: expected a market name"),
    ],
)
def test_other_universes_are_refused(qlib_small: Path, universe: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as told:
        check_universe(universe)
    assert message in str(told.value)


def test_fields_that_some_instrument_has_pass_daily_or_reported(qlib_small: Path) -> None:
    check_fields(["$close", "$st", "$$eps_q"], ["SH600000", "SZ000001"])


def test_fields_that_no_instrument_has_are_named(qlib_small: Path) -> None:
    with pytest.raises(ProviderError) as told:
        check_fields(["$close", "$turn", "$$goodwill_q"], ["SH600000", "SZ000001"])
    assert "fields ['$turn', '$$goodwill_q'] are in no instrument" in str(told.value)
    assert "'$close'" in str(told.value).split("the provider has")[1]


def test_a_provider_that_keeps_no_files_is_not_looked_into(tmp_path: Path) -> None:
    write_calendar(tmp_path, list(np.arange("2020-01-06", "2020-01-11", dtype="datetime64[D]")))
    write_instruments(tmp_path, "all", [("A", np.datetime64("2020-01-06"), np.datetime64("2020-01-10"))])
    open_provider(tmp_path)
    check_fields(["$anything"], ["A"])
    assert check_universe(["A", "B"]) == ["A", "B"]


def test_a_label_is_a_return_after_its_date() -> None:
    assert check_label("Ref($close, -2)/Ref($close, -1) - 1", days=3).lookahead == 2


@pytest.mark.parametrize("text", ["$close/Ref($close,1)-1", "$close"])
def test_a_label_known_beforehand_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="reads no bar after its date"):
        check_label(text, days=100)


def test_a_label_that_needs_more_days_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 2 bars after its date, and the segment has 2"):
        check_label("Ref($close,-2)/Ref($close,-1)-1", days=2)


def test_a_label_is_read_by_the_factor_language_and_nothing_else() -> None:
    with pytest.raises(ExpressionError):
        check_label("[open('x','w'), $close][1]", days=100)
