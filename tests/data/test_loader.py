from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.data import D
from qlib.data.dataset.loader import NestedDataLoader, QlibDataLoader

from qlib_llm_alpha.data.handler import LABEL
from qlib_llm_alpha.data.loader import FactorSetLoader
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.library.factor_set import FactorSet
from tests.support.provider import END, START

CODES = ["SH600000", "SZ000073"]  # the second is listed on 2020-02-25
NEWCOMER, LISTED = "SZ000073", pd.Timestamp("2020-02-25")
EXPRESSIONS = {"mean": "Mean($close,10)/$close", "delta": "Delta($close,3)/$close", "ema": "EMA($close,12)/$close"}


def set_of(warmup: str, **expressions: str) -> FactorSet:
    factors = tuple(Factor(name, parse(text), "test", "", ()) for name, text in expressions.items())
    return FactorSet("own", factors, warmup)  # type: ignore[arg-type]


def load(warmup: str, start: str | None, end: str | None, codes: object = CODES) -> pd.DataFrame:
    return FactorSetLoader(set_of(warmup, **EXPRESSIONS), ([LABEL], ["LABEL0"])).load(codes, start, end)


def test_columns_are_named_by_group_and_in_the_order_of_the_set(qlib_small: Path) -> None:
    frame = load("strict", "2020-06-01", "2020-06-30")
    assert frame.columns.tolist() == [*(("feature", name) for name in EXPRESSIONS), ("label", "LABEL0")]
    assert frame.index.names == ["datetime", "instrument"]


def test_strict_values_are_qlibs_where_the_window_is_full(qlib_small: Path) -> None:
    frame = load("strict", None, END)["feature"]
    stock = D.features(CODES, list(EXPRESSIONS.values()), START, END).swaplevel().sort_index()
    stock.columns = list(EXPRESSIONS)
    full = frame.notna()
    assert full.to_numpy().mean() > 0.6
    pd.testing.assert_frame_equal(frame[full], stock[full], check_exact=True)


def test_strict_values_begin_on_the_bar_whose_window_is_full(qlib_small: Path) -> None:
    frame = load("strict", START, END)["feature"].xs(NEWCOMER, level="instrument")
    calendar = D.calendar(LISTED, END)
    for name, text in EXPRESSIONS.items():
        lookback = parse(text).lookback
        assert lookback > 0
        assert frame[name].first_valid_index() >= calendar[lookback]
        assert frame[name].first_valid_index() <= calendar[lookback + 3]


def test_the_calendars_first_bars_are_warm_up_for_everyone(qlib_small: Path) -> None:
    frame = load("strict", START, "2019-03-29")["feature"].xs("SH600000", level="instrument")
    assert frame["mean"].iloc[: parse(EXPRESSIONS["mean"]).lookback].isna().all()
    assert frame["mean"].iloc[parse(EXPRESSIONS["mean"]).lookback :].notna().all()


@pytest.mark.parametrize("start", ["2019-01-02", "2020-03-02", "2021-02-01"])
def test_strict_values_do_not_depend_on_the_start_of_the_query(qlib_small: Path, start: str) -> None:
    whole = load("strict", None, END)
    pd.testing.assert_frame_equal(load("strict", start, END), whole.loc[start:], check_exact=True)


def test_strict_values_do_not_depend_on_the_end_of_the_query(qlib_small: Path) -> None:
    whole, short = load("strict", "2020-01-02", END), load("strict", "2020-01-02", "2020-06-30")
    pd.testing.assert_frame_equal(short, whole.loc[:"2020-06-30"], check_exact=True)


def test_with_the_qlib_rule_the_numbers_are_those_of_qlibs_own_loader(qlib_small: Path) -> None:
    stock = QlibDataLoader({"feature": (list(EXPRESSIONS.values()), list(EXPRESSIONS)), "label": ([LABEL], ["LABEL0"])})
    expected = stock.load(CODES, "2019-01-02", "2020-12-31")
    pd.testing.assert_frame_equal(load("qlib", "2019-01-02", "2020-12-31"), expected, check_exact=True)


def test_a_market_name_and_its_config_give_the_same_rows(qlib_small: Path) -> None:
    by_name = load("strict", "2020-06-01", "2020-06-30", "csi300")
    by_config = load("strict", "2020-06-01", "2020-06-30", D.instruments("csi300"))
    pd.testing.assert_frame_equal(by_name, by_config)
    assert len(by_name.index.get_level_values("instrument").unique()) > 20


def test_a_range_before_a_name_is_listed_has_no_value_of_it(qlib_small: Path) -> None:
    frame = load("strict", "2019-06-03", "2019-06-28")["feature"]
    assert NEWCOMER not in frame.dropna(how="all").index.get_level_values("instrument")


def test_it_stands_inside_qlibs_nested_loader(qlib_small: Path) -> None:
    ours = FactorSetLoader(set_of("strict", **EXPRESSIONS), ([LABEL], ["LABEL0"]))
    stock = QlibDataLoader({"feature": (["$volume"], ["volume"])})
    frame = NestedDataLoader([ours, stock]).load(CODES, "2020-06-01", "2020-06-30")
    assert set(frame["feature"].columns) == {*EXPRESSIONS, "volume"}
    assert np.isfinite(frame["feature"].loc[(slice(None), "SH600000"), :]).to_numpy().mean() > 0.8
