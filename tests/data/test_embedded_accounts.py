from __future__ import annotations

import numpy as np
import pytest

from qlib_llm_alpha.data.embedded.accounts import PER_SHARE, TOTALS
from qlib_llm_alpha.data.embedded.days import quarter_ends
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from tests.support.market import small_arrays


@pytest.fixture(scope="module")
def market() -> Market:
    return simulate()


def test_every_account_of_the_contract_is_there(market: Market) -> None:
    assert tuple(market.accounts.values) == (*PER_SHARE, *TOTALS)
    for name, values in market.accounts.values.items():
        known = ~np.isnat(market.accounts.announced)
        assert np.isfinite(values[known]).all(), name


def test_accounts_become_known_after_their_quarter_and_within_four_months(market: Market) -> None:
    accounts = market.accounts
    ends = quarter_ends(np.datetime64("2010-01-01"), np.datetime64("2030-12-31"))
    end_of = {
        int(end.astype("datetime64[Y]").astype(int) + 1970) * 100
        + int(end.astype("datetime64[M]").astype(int)) % 12 // 3
        + 1: end
        for end in ends
    }
    always = market.listed[0] & market.listed[-1]
    for q, period in enumerate(accounts.periods.tolist()):
        told = accounts.announced[q, always]
        delay = (told[~np.isnat(told)] - end_of[period]).astype(int)
        assert np.all((delay >= 10) & (delay <= 121))


def test_quarters_become_known_one_after_the_other(market: Market) -> None:
    told = market.accounts.announced
    ordered = ~np.isnat(told[1:]) & ~np.isnat(told[:-1])
    assert np.all(told[1:][ordered] >= told[:-1][ordered])


def test_nothing_is_announced_before_listing_or_after_delisting(market: Market) -> None:
    for column in np.flatnonzero(market.listed.any(axis=0)):
        told = market.accounts.announced[:, column]
        told = told[~np.isnat(told)]
        days = market.days[market.listed[:, column]]
        assert told.max() <= days[-1]
        if not market.listed[0, column]:
            assert told.min() >= days[0]


def test_the_sheets_add_up(market: Market) -> None:
    values = market.accounts.values
    np.testing.assert_allclose(values["revenue"], values["gross_profit"] + values["cost_of_goods_sold"])
    np.testing.assert_allclose(
        values["total_assets"], values["total_equity"] + values["total_debt"] + values["payables"]
    )
    assert np.all(values["ebitda"] >= values["ebit"])
    shares = values["revenue"] / values["sales"]
    np.testing.assert_allclose(values["eps"], values["net_income"] / shares, rtol=1e-2, atol=2e-4)


def test_earnings_yield_is_a_meaningful_number(market: Market) -> None:
    last = np.flatnonzero(~np.isnat(market.accounts.announced).all(axis=1))[-1]
    alive = market.listed[-1] & ~np.isnat(market.accounts.announced[last - 3 : last + 1]).any(axis=0)
    year = market.accounts.values["eps"][last - 3 : last + 1].sum(axis=0)[alive]
    price = np.nanmax(market.close[-30:, alive] / market.factor[-30:, alive], axis=0)
    ratio = year / price
    assert 0.01 < np.median(ratio) < 0.12
    assert np.corrcoef(np.log(np.maximum(year, 0.01)), np.log(price))[0, 1] > 0.6


def test_a_loss_making_year_is_followed_by_special_treatment(market: Market) -> None:
    accounts = market.accounts
    income = accounts.values["net_income"]
    for column in np.flatnonzero(np.nansum(market.st, axis=0) > 0):
        first = market.days[np.flatnonzero(market.st[:, column] == 1.0)[0]]
        year = int(first.astype("datetime64[Y]").astype(int)) + 1970 - 1
        quarters = accounts.periods // 100 == year
        assert np.all(income[quarters, column] < 0)
        assert np.all(accounts.announced[quarters, column] < first)


def test_dividends_are_paid_as_the_yearly_accounts_declared(market: Market) -> None:
    accounts, checked = market.accounts, 0
    raw = market.close / market.factor
    years = market.days.astype("datetime64[Y]").astype(int) + 1970
    for column in np.flatnonzero(market.listed[0])[:40]:
        for t in np.flatnonzero(np.diff(market.factor[:, column]) > 0) + 1:
            if market.shares[t, column] != market.shares[t - 1, column]:
                continue
            before = raw[t - 1, column]
            reference = before * market.factor[t - 1, column] / market.factor[t, column]
            declared = accounts.values["dividends"][accounts.periods == (years[t] - 1) * 100 + 4, column][0]
            assert before - reference == pytest.approx(declared, abs=1e-4)
            checked += 1
    assert checked > 50


def test_restatements_come_later_than_the_first_word() -> None:
    accounts = small_arrays().accounts
    again = ~np.isnat(accounts.restated)
    assert again.sum() >= 5
    assert np.all(accounts.restated[again] > accounts.announced[again])
