from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.data import D

from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.data.embedded.write import write_market
from qlib_llm_alpha.data.market_state import load_market_context
from qlib_llm_alpha.errors import ProviderError
from tests.support.provider import BENCHMARK, END, INSTRUMENTS, SEED, START, open_provider


@pytest.fixture(scope="module")
def market() -> Market:
    return simulate("planted", INSTRUMENTS, START, END, SEED)


def column(context: object, name: str) -> np.ndarray:
    values: np.ndarray = context.values[:, context.names.index(name)]  # type: ignore[attr-defined]
    return values


def test_every_day_of_the_calendar_has_a_row_from_the_first_bar_on(qlib_small: Path) -> None:
    context = load_market_context("csi300", BENCHMARK, "2020-12-31")
    calendar = D.calendar(None, "2020-12-31")
    np.testing.assert_array_equal(context.days, np.array(calendar, dtype="datetime64[D]"))


def test_index_returns_are_those_of_the_benchmark(qlib_small: Path) -> None:
    context = load_market_context("csi300", BENCHMARK, END)
    close = D.features([BENCHMARK], ["$close"], START, END)["$close"].to_numpy(np.float64)
    np.testing.assert_allclose(column(context, "index_return_20")[20:], close[20:] / close[:-20] - 1, rtol=1e-12)


def test_only_members_of_the_day_count(qlib_small: Path, market: Market) -> None:
    context = load_market_context("csi300", BENCHMARK, END)
    change = D.features([str(code) for code in market.codes], ["$change"], START, END)["$change"].unstack("instrument")
    for day in (100, 300, 600):
        members = [str(code) for code in market.codes[market.member[day]]]
        values = change.loc[pd.Timestamp(market.days[day]), members].dropna().to_numpy(np.float64)
        assert column(context, "dispersion")[day] == pytest.approx(values.std(), rel=1e-9)


def test_a_list_of_codes_counts_all_of_them_on_every_day(qlib_small: Path, market: Market) -> None:
    codes = [str(code) for code in market.codes[market.listed.all(axis=0)]]
    whole = load_market_context(codes, BENCHMARK, END)
    spans = load_market_context({code: [(START, END)] for code in codes}, BENCHMARK, END)
    np.testing.assert_array_equal(whole.values, spans.values)
    change = D.features(codes, ["$change"], START, END)["$change"].unstack("instrument").to_numpy(np.float64)
    np.testing.assert_allclose(column(whole, "dispersion")[50], np.nanstd(change[50]), rtol=1e-9)


def test_a_row_does_not_depend_on_where_the_context_ends(qlib_small: Path) -> None:
    short, whole = (load_market_context("csi300", BENCHMARK, end) for end in ("2020-06-30", END))
    np.testing.assert_array_equal(short.values, whole.values[: len(short.days)])
    np.testing.assert_array_equal(short.regime, whole.regime[: len(short.days)])


def test_a_special_name_is_at_its_limit_at_five_percent(qlib_small: Path, market: Market, tmp_path: Path) -> None:
    without_st = tmp_path / "plain"
    write_market(replace(market, st=np.where(np.isnan(market.st), np.nan, 0.0)), without_st)
    ours = load_market_context("all", BENCHMARK, END)
    open_provider(without_st)
    plain = load_market_context("all", BENCHMARK, END)
    moved = column(ours, "limit_up_share") + column(ours, "limit_down_share")
    unmoved = column(plain, "limit_up_share") + column(plain, "limit_down_share")
    assert (moved[~np.isnan(moved)] >= unmoved[~np.isnan(moved)]).all()
    assert np.nansum(moved) > np.nansum(unmoved)


def test_volume_stands_in_where_the_provider_has_no_amount(qlib_small: Path, market: Market, tmp_path: Path) -> None:
    write_market(market, tmp_path)
    for path in (tmp_path / "features").glob("*/amount.day.bin"):
        path.unlink()
    open_provider(tmp_path)
    context = load_market_context("csi300", BENCHMARK, END)
    assert np.isfinite(column(context, "turnover_60")[80:]).all()


def test_a_hole_in_the_benchmark_is_no_return(market: Market, tmp_path: Path) -> None:
    index = market.index
    close = index.close.copy()
    close[300] = np.nan
    write_market(replace(market, index=replace(index, close=close)), tmp_path)
    open_provider(tmp_path)
    context = load_market_context("csi300", BENCHMARK, END)
    expected = float(np.float32(index.close[299])) / float(np.float32(index.close[295])) - 1
    assert column(context, "index_return_5")[300] == pytest.approx(expected, rel=1e-6)


def test_a_benchmark_without_bars_is_refused_by_name(qlib_small: Path) -> None:
    with pytest.raises(ProviderError, match=r"benchmark 'SH000905' has no \$close up to 2021-06-30"):
        load_market_context("csi300", "SH000905", END)


def test_an_unknown_universe_is_refused(qlib_small: Path) -> None:
    with pytest.raises(ProviderError, match="universe 'csi800'"):
        load_market_context("csi800", BENCHMARK, END)
