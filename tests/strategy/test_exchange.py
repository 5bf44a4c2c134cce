import inspect
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from qlib_llm_alpha.data.provider_files import feature_path, write_calendar, write_feature, write_instruments
from qlib_llm_alpha.data.sources.boards import board_of
from qlib_llm_alpha.errors import ConfigError, ProviderError

qlib = pytest.importorskip("qlib")
from qlib.backtest import backtest, get_exchange  # noqa: E402
from qlib.backtest.decision import Order  # noqa: E402
from qlib.backtest.position import Position  # noqa: E402

from qlib_llm_alpha.strategy.exchange import (  # noqa: E402
    NO_LIMIT_DOWN,
    NO_LIMIT_UP,
    UNKNOWN_REFERENCE,
    AShareExchange,
    limit_prices,
)

DAYS = np.array(pd.bdate_range("2023-08-21", "2023-09-08"), dtype="datetime64[D]")
UP, DOWN, QUIET = 3, 4, 6
DUTY_CHANGE = int(np.searchsorted(DAYS, np.datetime64("2023-08-28")))


def at(place):
    return pd.Timestamp(DAYS[place])


def write_share(root, code, closes, *, opens=None, factor=None, st=None, start=0):
    closes = np.asarray(closes, dtype=float)
    factor = np.ones(len(closes)) if factor is None else np.asarray(factor, dtype=float)
    opens = closes if opens is None else np.asarray(opens, dtype=float)
    adjusted = closes * factor
    last = pd.Series(adjusted).ffill().shift(1).to_numpy()
    fields = {
        "open": opens * factor,
        "close": adjusted,
        "high": adjusted,
        "low": adjusted,
        "vwap": adjusted,
        "volume": np.where(np.isnan(closes), np.nan, 1e6) / factor,
        "factor": factor,
        "change": adjusted / last - 1,
    }
    if st is not None:
        fields["st"] = np.full(len(closes), float(st))
    for name, values in fields.items():
        write_feature(root, code, name, start, values)


def moved(move_up, move_down, base=10.05):
    """A flat share that closes at a high price on one day, at a low one on another."""
    closes = np.full(len(DAYS), base)
    closes[UP] = move_up
    closes[DOWN:] = move_down
    return closes


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    root = tmp_path_factory.mktemp("provider")
    write_calendar(root, list(DAYS))
    listed = {"SH688002": 1, "SH600009": 2}
    codes = ("SH600000", "SH600001", "SH600002", "SH600003", "SH600004", "SZ300001", "SH688001", *listed)
    write_instruments(root, "all", [(code, DAYS[listed.get(code, 0)], DAYS[-1]) for code in codes])
    # 10.05 * 1.1 = 11.055, rounded to 11.06; 11.06 * 0.9 = 9.954, rounded to 9.95.
    write_share(root, "SH600000", moved(11.06, 9.95), factor=np.full(len(DAYS), 3.7))
    # One cent short of both limits.
    write_share(root, "SH600001", moved(11.05, 9.96))
    # Two for one on the day UP: the reference is 10.05 / 2 = 5.025, in cents 5.03 (or 5.02), up ten percent 5.53.
    closes = np.full(len(DAYS), 10.04)
    closes[UP:] = 5.52
    write_share(root, "SH600002", closes, factor=np.where(np.arange(len(DAYS)) >= UP, 2.0, 1.0))
    # Under special treatment: 10.00 * 1.05 = 10.50.
    write_share(root, "SH600003", moved(10.50, 9.98, base=10.00), st=1)
    # Suspended on the day UP, then down to the limit of the last close.
    closes = np.full(len(DAYS), 20.0)
    closes[UP] = np.nan
    closes[DOWN:] = 18.0
    write_share(root, "SH600004", closes)
    write_share(root, "SZ300001", moved(11.06, 9.95))
    # 20 percent: 10.05 * 1.2 = 12.06, 12.06 * 0.8 = 9.648.
    write_share(root, "SH688001", moved(12.06, 9.65))
    write_share(root, "SH688002", [30, 60, 20, 22, 40, 41, 49.2, 48, 48, 48, 48, 48, 48, 48], start=1)
    write_share(root, "SH600009", [30, 60, 20, 22, 40, 44, 44, 44, 44, 44, 44, 44, 44], start=2)
    index = np.linspace(4000, 4100, len(DAYS))
    write_share(root, "SH000300", index)
    return root


@pytest.fixture(scope="module")
def market(provider):
    qlib.init(provider_uri=str(provider), region="cn", kernels=1, logging_level=logging.ERROR)
    return AShareExchange(start_time=str(DAYS[0]), end_time=str(DAYS[-2]))


def tradable(exchange, code, place, side):
    return exchange.is_stock_tradable(code, at(place), at(place), side)


def order(code, amount, side, place):
    return Order(code, amount, side, at(place), at(place))


def holding(cash, **amounts):
    stocks = {code: {"amount": amount, "price": 10.0} for code, amount in amounts.items()}
    return Position(cash=cash, position_dict=stocks)


def test_boards_are_read_off_the_code():
    codes = ("SH600000", "SZ000001", "SZ002594", "SZ300750", "SZ301001", "SH688981", "SH689009", "BJ430047", "SH000300")
    expected = ["main", "main", "main", "chinext", "chinext", "star", "star", "bse", None]
    assert [board_of(code) for code in codes] == expected


@pytest.mark.parametrize(
    ("code", "day", "reference", "special", "up", "down"),
    [
        ("SH600000", "2022-01-04", 1005, False, 1106, 905),  # 11.055 up to 11.06; 9.045 up to 9.05
        ("SH600000", "2022-01-04", 105, False, 116, 95),  # 1.155 and 0.945: halves go up
        ("SH600000", "2022-01-04", 1000, True, 1050, 950),
        ("SZ300001", "2020-08-21", 1000, False, 1100, 900),
        ("SZ300001", "2020-08-24", 1000, False, 1200, 800),
        ("SZ300001", "2020-08-21", 1000, True, 1050, 950),
        ("SZ300001", "2020-08-24", 1000, True, 1200, 800),
        ("SH688001", "2019-08-22", 1000, True, 1200, 800),
        ("BJ430047", "2022-01-04", 1000, False, 1300, 700),
        ("SH000300", "2022-01-04", 1000, False, NO_LIMIT_UP, NO_LIMIT_DOWN),
        ("SH600000", "2022-01-04", UNKNOWN_REFERENCE, False, NO_LIMIT_UP, NO_LIMIT_DOWN),
    ],
)
def test_limits_worked_by_hand(code, day, reference, special, up, down):
    got = limit_prices(
        [code],
        np.array([day], dtype="datetime64[D]"),
        np.array([reference]),
        np.array([special]),
        np.array(["NaT"], dtype="datetime64[D]"),
        np.array([0]),
    )
    assert (int(got[0][0]), int(got[1][0])) == (up, down)


@pytest.mark.parametrize(
    ("code", "listed", "age", "reference", "up"),
    [
        ("SH688001", "2020-01-06", 4, 1000, NO_LIMIT_UP),
        ("SH688001", "2020-01-06", 5, 1000, 1200),
        ("SZ300001", "2020-08-21", 0, UNKNOWN_REFERENCE, 0),
        ("SZ300001", "2020-08-21", 1, 1000, 1200),  # listed under the old rule, traded under the new one
        ("SZ300001", "2020-08-24", 4, 1000, NO_LIMIT_UP),
        ("SZ300001", "2020-08-24", 5, 1000, 1200),
        ("SH600000", "2023-04-07", 0, 1000, 1440),
        ("SH600000", "2023-04-07", 0, UNKNOWN_REFERENCE, 0),
        ("SH600000", "2023-04-07", 1, 1000, 1100),
        ("SH600000", "2023-04-10", 4, 1000, NO_LIMIT_UP),
        ("SH600000", "2023-04-10", 5, 1000, 1100),
        ("SH600000", "2012-01-04", 0, 1000, NO_LIMIT_UP),
        ("SH600000", "2012-01-04", 1, 1000, 1100),
        ("BJ430047", "2022-01-04", 0, 1000, NO_LIMIT_UP),
        ("BJ430047", "2022-01-04", 1, 1000, 1300),
    ],
)
def test_first_days_go_by_the_rule_of_the_listing(code, listed, age, reference, up):
    first = np.datetime64(listed)
    day = np.busday_offset(first, age, roll="forward")
    got, down = limit_prices(
        [code], np.array([day]), np.array([reference]), np.array([False]), np.array([first]), np.array([age])
    )
    assert int(got[0]) == up
    if up == 1440:
        assert int(down[0]) == 640


def test_at_the_upper_limit_a_buy_is_blocked_and_a_sale_is_not(market):
    assert not tradable(market, "SH600000", UP, Order.BUY)
    assert tradable(market, "SH600000", UP, Order.SELL)


def test_at_the_lower_limit_a_sale_is_blocked_and_a_buy_is_not(market):
    assert tradable(market, "SH600000", DOWN, Order.BUY)
    assert not tradable(market, "SH600000", DOWN, Order.SELL)


def test_one_cent_short_of_the_limit_is_free(market):
    for place, side in ((UP, Order.BUY), (DOWN, Order.SELL)):
        assert tradable(market, "SH600001", place, side)


def test_the_limit_follows_the_reference_price_after_a_split(market):
    # 10.04 / 2 = 5.02, ten percent up is 5.522, so 5.52 is the limit although the raw price halved.
    assert not tradable(market, "SH600002", UP, Order.BUY)
    assert tradable(market, "SH600002", UP, Order.SELL)


def test_special_treatment_halves_the_limit(market):
    assert not tradable(market, "SH600003", UP, Order.BUY)


def test_the_limit_looks_over_a_suspension(market):
    assert not tradable(market, "SH600004", UP, Order.BUY)
    assert not tradable(market, "SH600004", UP, Order.SELL)
    assert tradable(market, "SH600004", DOWN, Order.BUY)
    assert not tradable(market, "SH600004", DOWN, Order.SELL)


def test_growth_boards_have_wider_limits(market):
    for code in ("SZ300001", "SH688001"):
        assert tradable(market, "SH600001", UP, Order.BUY)
        assert tradable(market, code, UP, Order.BUY) == (code == "SZ300001")
    assert not tradable(market, "SH688001", DOWN, Order.SELL)


def test_a_new_listing_is_free_for_five_days_and_limited_on_the_sixth(market):
    # 30, 60, 20, 22, 40 from its first day on; 41 is the sixth day; 41 * 1.2 = 49.20 the seventh.
    for place in range(1, 6):
        assert tradable(market, "SH688002", place, Order.BUY)
        assert tradable(market, "SH688002", place, Order.SELL)
    assert not tradable(market, "SH688002", 7, Order.BUY)
    # The main board since 2023-04-10: sixth day 44 = 40 * 1.1.
    assert tradable(market, "SH600009", 6, Order.BUY)
    assert not tradable(market, "SH600009", 7, Order.BUY)


def test_the_limit_is_judged_on_the_price_of_the_fill(provider, market):
    closes, opens = np.full(len(DAYS), 10.0), np.full(len(DAYS), 10.0)
    closes[UP], opens[DOWN] = 11.0, 12.10
    closes[DOWN:] = 11.5
    write_share(provider, "SH600008", closes, opens=opens)
    open_market = AShareExchange(
        start_time=str(DAYS[0]), end_time=str(DAYS[-2]), deal_price=["open", "close"], codes=["SH600008"]
    )
    # Open at 10 on the day that closes at the limit: the buyer at the open gets it, the seller at the close too.
    assert tradable(open_market, "SH600008", UP, Order.BUY)
    assert not tradable(open_market, "SH600008", DOWN, Order.BUY)
    close_market = AShareExchange(start_time=str(DAYS[0]), end_time=str(DAYS[-2]), codes=["SH600008"])
    assert not tradable(close_market, "SH600008", UP, Order.BUY)


def test_stamp_duty_is_halved_from_its_day_on(market):
    before, after = DUTY_CHANGE - 1, DUTY_CHANGE
    assert (str(DAYS[before]), str(DAYS[after])) == ("2023-08-25", "2023-08-28")
    for place, duty in ((before, 0.001), (after, 0.0005)):
        sale = order("SZ300001", 1000, Order.SELL, place)
        value, cost, price = market.deal_order(sale, position=holding(1e6, SZ300001=5000.0))
        assert value == pytest.approx(1000 * price)
        # 1000 shares at about 10: the commission of 3 CNY is lifted to 5; taxes come on top.
        assert cost == pytest.approx(5 + value * (duty + 0.00001))


def test_a_large_sale_pays_commission_by_rate(market):
    sale = order("SZ300001", 100_000, Order.SELL, QUIET)
    value, cost, price = market.deal_order(sale, position=holding(0.0, SZ300001=200_000.0))
    assert price == pytest.approx(9.95)
    # 995,000 CNY: commission 298.50, duty 497.50, transfer 9.95.
    assert value == pytest.approx(995_000, rel=1e-6)
    assert cost == pytest.approx(298.50 + 497.50 + 9.95, rel=1e-6)


def test_a_buy_pays_no_stamp_duty(market):
    value, cost, _ = market.deal_order(order("SZ300001", 100_000, Order.BUY, QUIET), position=holding(1e7))
    assert cost == pytest.approx(value * (0.0003 + 0.00001), rel=1e-6)


def test_rates_may_be_numbers_or_tables(market):
    plain = AShareExchange(
        start_time=str(DAYS[0]),
        end_time=str(DAYS[-2]),
        codes=["SZ300001"],
        commission=0.001,
        min_cost=0,
        stamp_duty=0.002,
        transfer_fee={"2023-09-01": 0.01},
    )
    early = order("SZ300001", 1000, Order.SELL, DUTY_CHANGE)
    late = order("SZ300001", 1000, Order.SELL, int(np.searchsorted(DAYS, np.datetime64("2023-09-01"))))
    for sale, rate in ((early, 0.003), (late, 0.013)):
        value, cost, _ = plain.deal_order(sale, position=holding(1e6, SZ300001=5000.0))
        assert cost == pytest.approx(value * rate)


@pytest.mark.parametrize(
    ("code", "wanted", "bought"),
    [("SH600001", 299, 200), ("SH600001", 99, 0), ("SH688001", 199, 0), ("SH688001", 201, 201), ("SH688001", 257, 257)],
)
def test_lots_of_the_boards(market, code, wanted, bought):
    buy = order(code, wanted, Order.BUY, QUIET)
    market.deal_order(buy, position=holding(1e7))
    assert buy.deal_amount == pytest.approx(bought)


def test_lots_count_raw_shares(market):
    # Factor 3.7: 100 adjusted shares are 370 raw ones, of which 300 are bought.
    buy = order("SH600000", 100, Order.BUY, QUIET)
    market.deal_order(buy, position=holding(1e7))
    assert buy.deal_amount * 3.7 == pytest.approx(300, rel=1e-6)


def test_odd_shares_are_sold_with_the_whole_holding_only(market):
    whole, part = order("SH600001", 157, Order.SELL, QUIET), order("SH600001", 156, Order.SELL, QUIET)
    market.deal_order(whole, position=holding(1e4, SH600001=157.0))
    market.deal_order(part, position=holding(1e4, SH600001=157.0))
    assert whole.deal_amount == pytest.approx(157)
    assert part.deal_amount == pytest.approx(100)


def test_a_sale_of_more_than_the_holding_is_cut_to_it(market):
    sale = order("SH600001", 900, Order.SELL, QUIET)
    market.deal_order(sale, position=holding(1e4, SH600001=250.0))
    assert sale.deal_amount == pytest.approx(200)
    none = order("SH600001", 900, Order.SELL, QUIET)
    market.deal_order(none, position=holding(1e4))
    assert none.deal_amount == 0


def test_cash_is_never_overdrawn(market):
    for cash in (4.0, 900.0, 996.5, 1001.0, 1001.1, 5000.0, 123456.0):
        position = holding(cash)
        buy = order("SH600001", 1e6, Order.BUY, QUIET)
        market.deal_order(buy, position=position)
        assert position.get_cash() >= 0
        # 9.96 a share, 100 shares cost 996 and five CNY and the transfer fee.
        if cash in (1001.0, 1001.1):
            assert buy.deal_amount == pytest.approx(0 if cash == 1001.0 else 100)


def test_a_sale_that_does_not_pay_its_costs_is_not_made(market):
    sale = order("SH600001", 0.4, Order.SELL, QUIET)
    value, cost, _ = market.deal_order(sale, position=holding(0.0, SH600001=0.4))
    assert (sale.deal_amount, value, cost) == (0.0, 0.0, 0.0)


def test_impact_and_volume_limits_work_as_in_qlib(market):
    thin = AShareExchange(
        start_time=str(DAYS[0]),
        end_time=str(DAYS[-2]),
        codes=["SH600001"],
        impact_cost=0.1,
        volume_threshold={"all": ["current", "0.1 * $volume"]},
        transfer_fee=0,
    )
    buy = order("SH600001", 500_000, Order.BUY, QUIET)
    value, cost, _ = thin.deal_order(buy, position=holding(1e8))
    assert buy.deal_amount == pytest.approx(100_000)
    assert cost == pytest.approx(value * (0.0003 + 0.1 * 0.1**2), rel=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"commission": -0.1}, "commission is -0.1"),
        ({"stamp_duty": {"soon": 0.1}}, "stamp_duty has the dates"),
        ({"transfer_fee": {"2020-01-01": -1}}, "transfer_fee is -1"),
        ({"deal_price": ["$open"]}, "deal_price is"),
        ({"freq": "1min"}, "freq is '1min'"),
    ],
)
def test_bad_settings_are_refused_before_any_data_is_read(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        AShareExchange(**kwargs)


def test_a_close_without_factor_is_refused(provider, market):
    write_share(provider, "SH600007", np.full(len(DAYS), 10.0))
    feature_path(provider, "SH600007", "factor").unlink()
    with pytest.raises(ProviderError, match="'SH600007' has a close but no positive"):
        AShareExchange(start_time=str(DAYS[0]), end_time=str(DAYS[-2]), codes=["SH600007"])


def test_a_first_change_that_is_unknown_is_taken_from_the_bars(provider, market):
    closes = np.full(len(DAYS), 10.0)
    closes[UP:] = 11.0
    write_share(provider, "SH600006", closes)
    write_feature(provider, "SH600006", "change", 0, np.full(len(DAYS), np.nan))
    exchange = AShareExchange(start_time=str(DAYS[0]), end_time=str(DAYS[-2]), codes=["SH600006"])
    assert not tradable(exchange, "SH600006", UP, Order.BUY)
    assert tradable(exchange, "SH600006", 0, Order.BUY)


def test_a_named_listing_market_is_used_and_a_missing_one_is_an_error(provider, market):
    write_instruments(provider, "ipo", [("SH688001", DAYS[UP], DAYS[-1])])
    exchange = AShareExchange(start_time=str(DAYS[0]), end_time=str(DAYS[-2]), codes=["SH688001"], listing_market="ipo")
    assert tradable(exchange, "SH688001", UP, Order.BUY)
    with pytest.raises(ValueError, match="nowhere"):
        AShareExchange(start_time=str(DAYS[0]), end_time=str(DAYS[-2]), listing_market="nowhere")


def test_qlib_hands_on_only_what_stands_inside_kwargs(market):
    """The reason why the documented YAML repeats the dates."""
    exchange = get_exchange(
        exchange={
            "class": "AShareExchange",
            "module_path": "qlib_llm_alpha.strategy.exchange",
            "kwargs": {"start_time": str(DAYS[2]), "end_time": str(DAYS[-2])},
        },
        start_time=str(DAYS[5]),
        open_cost=0.5,
    )
    assert exchange.start_time == str(DAYS[2])
    assert exchange.open_cost < 0.001


def documented():
    text = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    return yaml.safe_load(blocks[0])


def test_the_documented_workflow_runs_through_qlib_s_backtest(provider, market):
    config = documented()["port_analysis_config"]
    strategy, settings = config["strategy"], config["backtest"]
    inner = settings["exchange_kwargs"]["exchange"]
    assert set(inner["kwargs"]) <= set(inspect.signature(AShareExchange).parameters)
    assert settings["start_time"] == inner["kwargs"]["start_time"]
    codes = ["SH600000", "SH600001", "SZ300001", "SH688001"]
    index = pd.MultiIndex.from_product(
        [[at(place) for place in range(len(DAYS))], codes], names=["datetime", "instrument"]
    )
    rng = np.random.default_rng(1)
    strategy["kwargs"] |= {"signal": pd.Series(rng.normal(size=len(index)), index=index), "topk": 2, "n_drop": 1}
    inner["kwargs"] |= {"start_time": str(DAYS[1]), "end_time": str(DAYS[-2])}
    report, _ = backtest(
        start_time=str(DAYS[1]),
        end_time=str(DAYS[-2]),
        strategy=strategy,
        executor={
            "class": "SimulatorExecutor",
            "module_path": "qlib.backtest.executor",
            "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True},
        },
        benchmark=settings["benchmark"],
        account=1e6,
        exchange_kwargs=settings["exchange_kwargs"],
    )
    frame = report["1day"][0]
    assert len(frame) == len(DAYS) - 2
    assert frame["turnover"].sum() > 0
    assert frame["cost"].sum() > 0
    assert (frame["cash"] >= 0).all()
