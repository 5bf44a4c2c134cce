"""The seed factors on accounts, through Qlib's point-in-time engine: values change when accounts are announced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import qlib
from qlib.data import D

from qlib_llm_alpha.data.provider_files import write_calendar, write_feature, write_instruments
from qlib_llm_alpha.library.seed import seed_factors

DAYS = np.arange("2020-03-25", "2021-08-20", dtype="datetime64[D]")
QUARTERS = (201904, 202001, 202002, 202003, 202004, 202101, 202102)
ANNOUNCED = (20200330, 20200428, 20200820, 20201027, 20210325, 20210427, 20210815)
ACCOUNTS = sorted(
    {field for entry in seed_factors() for field in entry.fields if field.startswith("$$")},
)
VALUES = {field: 2.0 + position + np.arange(7.0) ** 2 for position, field in enumerate(ACCOUNTS)}
PRICE, FACTOR, SHARES = 12.0, 0.5, 1000.0


def write_account(root: Path, code: str, field: str, values: np.ndarray) -> None:
    """Write one account in Qlib's form: an index by quarter into records of (day, quarter, value, next)."""
    folder = root / "financial" / code.lower()
    folder.mkdir(parents=True, exist_ok=True)
    records = np.zeros(len(values), dtype=[("date", "<u4"), ("period", "<u4"), ("value", "<f8"), ("next", "<u4")])
    records["date"], records["period"], records["value"] = ANNOUNCED, QUARTERS, values
    records["next"] = 0xFFFFFFFF
    records.tofile(folder / f"{field}.data")
    first_year = QUARTERS[0] // 100
    index = np.full(4 * 3, 0xFFFFFFFF, dtype="<u4")
    for position, quarter in enumerate(QUARTERS):
        index[4 * (quarter // 100 - first_year) + quarter % 100 - 1] = position * records.dtype.itemsize
    np.concatenate([np.array([first_year], dtype="<u4"), index]).tofile(folder / f"{field}.index")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    root = tmp_path_factory.mktemp("accounts")
    write_calendar(root, list(DAYS))
    write_instruments(root, "all", [("SH600000", DAYS[0], DAYS[-1])])
    for field, level in (("close", PRICE), ("factor", FACTOR), ("shares", SHARES)):
        write_feature(root, "SH600000", field, 0, np.full(len(DAYS), level))
    for field, accounts in VALUES.items():
        write_account(root, "SH600000", field.removeprefix("$$"), accounts)
    qlib.init(provider_uri=str(root), region="cn", kernels=1)
    entries = [entry for entry in seed_factors() if entry.needs == "accounts"]
    texts = [entry.factor("scale_free").expression.qlib for entry in entries]
    loaded = D.features(["SH600000"], texts, "2020-03-31", str(DAYS[-1]))
    loaded.columns = [entry.name for entry in entries]
    return loaded.loc["SH600000"]


def quarter_on(day: pd.Timestamp) -> int:
    """Position of the newest quarter announced by the day."""
    return int(np.searchsorted(ANNOUNCED, int(f"{day:%Y%m%d}"), side="right")) - 1


def on_each_day(values: pd.DataFrame, formula: object) -> np.ndarray:
    accounts = {field.removeprefix("$$").removesuffix("_q"): series for field, series in VALUES.items()}
    return np.array([formula(accounts, quarter_on(day)) for day in values.index])  # type: ignore[operator]


RAW = PRICE / FACTOR
RATIOS = {
    "price_to_earnings": lambda a, q: RAW / a["eps"][q],
    "price_to_book": lambda a, q: RAW / a["book_value"][q],
    "dividend_yield": lambda a, q: a["dividends"][q] / RAW,
    "earnings_yield": lambda a, q: a["eps"][q] / RAW,
    "sales_to_price": lambda a, q: a["sales"][q] / RAW,
    "cash_flow_yield": lambda a, q: a["operating_cash_flow_ps"][q] / RAW,
    "liquidity_debt_to_equity": lambda a, q: a["total_debt"][q] / a["total_equity"][q],
    "return_on_equity": lambda a, q: a["net_income"][q] / a["total_equity"][q],
    "return_on_assets": lambda a, q: a["net_income"][q] / a["total_assets"][q],
    "gross_margin": lambda a, q: a["gross_profit"][q] / a["revenue"][q],
    "price_to_sales": lambda a, q: RAW / a["sales"][q],
    "price_to_cash_flow": lambda a, q: RAW / a["operating_cash_flow_ps"][q],
    "book_to_market": lambda a, q: a["book_value"][q] / RAW,
    "ev_to_ebitda": lambda a, q: (RAW * SHARES + a["total_debt"][q]) / a["ebitda"][q],
    "gross_profit_margin": lambda a, q: a["gross_profit"][q] / a["revenue"][q],
    "operating_profit_margin": lambda a, q: a["operating_income"][q] / a["revenue"][q],
    "net_profit_margin": lambda a, q: a["net_income"][q] / a["revenue"][q],
    "debt_to_equity": lambda a, q: a["total_debt"][q] / a["total_equity"][q],
    "interest_coverage": lambda a, q: a["ebit"][q] / a["interest_expense"][q],
    "cash_conversion_cycle": lambda a, q: (
        91.25
        * (
            a["inventory"][q] / a["cost_of_goods_sold"][q]
            + a["receivables"][q] / a["revenue"][q]
            - a["payables"][q] / a["cost_of_goods_sold"][q]
        )
    ),
    "asset_turnover": lambda a, q: a["revenue"][q] / a["total_assets"][q],
}
GROWTH = {
    "earnings_growth": "eps",
    "revenue_growth": "revenue",
    "ebitda_growth": "ebitda",
    "cash_flow_growth": "operating_cash_flow",
    "dividend_growth": "dividends",
    "book_value_growth": "book_value",
    "sales_growth": "revenue",
    "asset_growth": "total_assets",
    "equity_growth": "total_equity",
    "retained_earnings_growth": "retained_earnings",
}


@pytest.mark.parametrize("name", RATIOS)
def test_a_ratio_reads_the_newest_announced_quarter_and_the_raw_price(name: str, values: pd.DataFrame) -> None:
    np.testing.assert_allclose(values[name], on_each_day(values, RATIOS[name]), rtol=1e-5)


@pytest.mark.parametrize("name", GROWTH)
def test_growth_is_over_one_reporting_period_not_one_day(name: str, values: pd.DataFrame) -> None:
    known = values[values.index >= "2020-04-28"]
    wanted = on_each_day(known, lambda a, q: a[GROWTH[name]][q] / a[GROWTH[name]][q - 1] - 1)
    np.testing.assert_allclose(known[name], wanted, rtol=1e-4)


def test_earnings_stability_reads_five_quarters(values: pd.DataFrame) -> None:
    known = values.loc["2021-03-25":, "earnings_stability"]

    def stability(accounts: dict[str, np.ndarray], q: int) -> float:
        window = accounts["eps"][q - 4 : q + 1]
        return float(np.std(window, ddof=1) / np.mean(window))

    np.testing.assert_allclose(known, on_each_day(known.to_frame(), stability), rtol=1e-5)


def test_every_account_factor_is_checked_and_changes_only_when_something_is_announced(values: pd.DataFrame) -> None:
    assert set(values.columns) == {*RATIOS, *GROWTH, "earnings_stability"}
    changed = values.ffill().diff().abs().gt(1e-9).any(axis=1)
    announced = {pd.Timestamp(str(day)) for day in ANNOUNCED}
    assert set(values.index[changed]) <= announced
    assert len(set(values.index[changed])) == len(announced) - 1
