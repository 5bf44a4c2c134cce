"""The fields a provider of ours has, and the unit of each."""

from __future__ import annotations

from typing import Final

from qlib_llm_alpha.factor.units import MONEY, PRICE, RATIO, SHARES, Unit

DAILY: Final[dict[str, Unit]] = {
    "$open": PRICE,
    "$high": PRICE,
    "$low": PRICE,
    "$close": PRICE,
    "$vwap": PRICE,
    "$volume": SHARES,
    "$amount": MONEY,
    "$factor": RATIO,
    "$change": RATIO,
    "$shares": SHARES,
    "$st": RATIO,
}
"""Daily fields: known at the close of the day they are dated."""

GROUPS: Final[frozenset[str]] = frozenset({"$industry"})
"""Daily fields that hold a code of a group: to group by and to compare with a code, not to compute with."""

PER_SHARE = ("eps", "book_value", "dividends", "sales", "operating_cash_flow_ps")
TOTALS = (
    "revenue",
    "gross_profit",
    "operating_income",
    "net_income",
    "ebit",
    "ebitda",
    "interest_expense",
    "operating_cash_flow",
    "total_debt",
    "total_equity",
    "total_assets",
    "retained_earnings",
    "inventory",
    "receivables",
    "payables",
    "cost_of_goods_sold",
)

REPORTED: Final[dict[str, Unit]] = {
    **{f"$${name}_q": PRICE for name in PER_SHARE},
    **{f"$${name}_q": MONEY for name in TOTALS},
}
"""Quarterly items in Qlib's point-in-time form: known from the day of announcement, used inside ``P(...)``."""
