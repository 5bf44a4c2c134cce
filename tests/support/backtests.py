"""Backtests on the small market that take seconds, and what they traded."""

from __future__ import annotations

from typing import Any

import pandas as pd
from qlib.backtest import backtest
from qlib.data import D

from tests.support.provider import BENCHMARK, TEST

EXECUTOR = {
    "class": "SimulatorExecutor",
    "module_path": "qlib.backtest.executor",
    "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True},
}
# Stock Qlib's exchange without limits, so that only suspensions can block a trade.
FREE_EXCHANGE: dict[str, Any] = {
    "class": "Exchange",
    "module_path": "qlib.backtest.exchange",
    "kwargs": {
        "start_time": TEST[0],
        "end_time": TEST[1],
        "deal_price": "close",
        "limit_threshold": None,
        "open_cost": 0.0005,
        "close_cost": 0.0015,
        "min_cost": 5,
    },
}
# Without lots too: a lot is rounded from cash, whose last digit depends on the order of sales.
WITHOUT_LOTS: dict[str, Any] = {**FREE_EXCHANGE, "kwargs": {**FREE_EXCHANGE["kwargs"], "trade_unit": None}}
A_SHARE_EXCHANGE: dict[str, Any] = {
    "class": "AShareExchange",
    "module_path": "qlib_llm_alpha.strategy.exchange",
    "kwargs": {"start_time": TEST[0], "end_time": TEST[1], "deal_price": "$close"},
}


def run_backtest(strategy: Any, exchange: dict[str, Any] = FREE_EXCHANGE, **changes: Any) -> tuple[Any, dict[Any, Any]]:
    """Return Qlib's daily report, and the position at the end of each day."""
    settings = {"start_time": TEST[0], "end_time": TEST[1], "account": 1e8, "benchmark": BENCHMARK} | changes
    portfolio, _ = backtest(strategy=strategy, executor=EXECUTOR, exchange_kwargs={"exchange": exchange}, **settings)
    report, positions = portfolio["1day"]
    return report, positions


def holdings(positions: dict[Any, Any]) -> pd.DataFrame:
    """Return adjusted shares held at the end of each day, by day and instrument, 0 where none."""
    rows = {day: position.get_stock_amount_dict() for day, position in positions.items()}
    return pd.DataFrame.from_dict(rows, orient="index").sort_index(axis=0).sort_index(axis=1).fillna(0.0)


def never_suspended(codes: list[str]) -> list[str]:
    """Return the names that have a close on every day of the backtest."""
    close = D.features(codes, ["$close"], TEST[0], TEST[1])["$close"].unstack("instrument")
    return [str(code) for code in close.columns[close.notna().all()]]
