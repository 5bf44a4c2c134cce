from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from qlib.contrib.data.handler import Alpha158
from qlib.data import D
from qlib.data.dataset import DatasetH

from qlib_llm_alpha.data.handler import FactorSetHandler
from qlib_llm_alpha.errors import ConfigError, ExpressionError, LibraryError, ProviderError
from qlib_llm_alpha.library.factor_set import load_factor_set
from tests.support.provider import END, SEGMENTS, START, TRAIN, small_handler

SHORT = {"start_time": "2019-06-03", "end_time": "2019-12-31", "fit_start_time": "2019-06-03"} | {
    "fit_end_time": "2019-10-31"
}
FEW = ["SH600000", "SH600007", "SH600014", "SZ000001", "SZ000010"]


def write_set(folder: Path, **expressions: str) -> str:
    factors = [{"name": name, "expression": expression, "category": "test"} for name, expression in expressions.items()]
    path = folder / "set.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "warmup": "strict", "factors": factors}))
    return str(path)


@pytest.fixture(scope="module")
def alpha158(small_provider: Path) -> tuple[FactorSetHandler, Alpha158]:
    from tests.support.provider import open_provider

    open_provider(small_provider)
    keywords = {"instruments": FEW, "start_time": START, "end_time": "2019-09-30"}
    return FactorSetHandler(factor_set="alpha158", **keywords), Alpha158(**keywords)


@pytest.mark.parametrize("key", ["raw", "infer", "learn"])
def test_the_set_alpha158_gives_the_numbers_of_qlibs_own_handler(
    alpha158: tuple[FactorSetHandler, Alpha158], key: str
) -> None:
    ours, stock = (handler.fetch(data_key=key) for handler in alpha158)
    if key != "raw":
        # Ours treats infinite values by the day, which Alpha158 leaves in.
        stock = stock.where(np.isfinite(stock), ours)
    features = [column for column in stock.columns if column != "LABEL0"]
    pd.testing.assert_frame_equal(ours[features], stock[features], check_exact=True)
    # Our daily standardisation adds in float64, that of Qlib in float32.
    pd.testing.assert_frame_equal(ours, stock, rtol=1e-5, atol=1e-6)


def test_the_label_is_that_of_alpha158(alpha158: tuple[FactorSetHandler, Alpha158]) -> None:
    ours, stock = (handler.fetch(col_set="label", data_key="raw") for handler in alpha158)
    pd.testing.assert_frame_equal(ours, stock, check_exact=True)
    assert alpha158[0].label_horizon == 2


def test_it_takes_every_keyword_that_alpha158_takes_in_a_yaml(qlib_small: Path) -> None:
    handler = small_handler(
        **SHORT,
        infer_processors=[{"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}}, {"class": "Fillna"}],
        learn_processors=[{"class": "DropnaLabel"}],
        process_type="independent",
        label=["Ref($close, -6)/Ref($close, -1) - 1"],
        freq="day",
        filter_pipe=[],
        drop_raw=True,
    )
    features = DatasetH(handler, {"train": TRAIN}).prepare("train", col_set="feature", data_key="infer")
    assert not features.isna().any().any()
    assert handler.label_horizon == 6


def test_columns_are_the_factors_in_order_and_the_label_and_nothing_else(qlib_small: Path) -> None:
    handler = small_handler(**SHORT)
    names = load_factor_set("starter").names
    assert handler.get_cols("__raw") == [*(("feature", name) for name in names), ("label", "LABEL0")]


def test_features_do_not_depend_on_where_the_query_starts_although_qlibs_ema_does(qlib_small: Path) -> None:
    early, late = (small_handler(start_time=start, end_time="2019-12-31") for start in (START, "2019-09-02"))
    frame = early.fetch(slice("2019-09-02", "2019-12-31"), col_set="feature")
    pd.testing.assert_frame_equal(late.fetch(col_set="feature"), frame, check_exact=True)


def test_the_first_bars_of_a_name_are_nan_for_as_long_as_a_factor_looks_back(qlib_small: Path) -> None:
    handler = small_handler(instruments="all", end_time="2020-09-30")
    newcomer = "SZ000073"  # listed on 2020-02-25
    frame = handler.fetch(col_set="feature", data_key="raw").xs(newcomer, level="instrument")
    close = D.features([newcomer], ["$close"], START, "2020-09-30")["$close"].dropna()
    first = close.index.get_level_values("datetime")[0]
    assert first == pd.Timestamp("2020-02-25")
    calendar = D.calendar(first, "2020-09-30")
    for factor in handler.factor_set.factors:
        values = frame[factor.name].loc[first:]
        assert values.iloc[: factor.expression.lookback].isna().all(), factor.name
        assert values.loc[calendar[factor.expression.lookback] :].notna().any(), factor.name


def test_the_market_name_masks_rows_by_membership(qlib_small: Path) -> None:
    rows = small_handler(**SHORT).fetch().index
    spans = D.list_instruments(D.instruments("csi300"), START, END)
    assert all(
        any(pd.Timestamp(first) <= day <= pd.Timestamp(last) for first, last in spans[code]) for day, code in rows
    )


def test_processors_are_fitted_on_the_fit_dates_alone(qlib_small: Path) -> None:
    norm = {"class": "ZScoreNorm", "kwargs": {"fields_group": "feature"}}
    handler = small_handler(**SHORT, infer_processors=[norm])
    fitted = handler.infer_processors[0]
    train = handler.fetch(slice("2019-06-03", "2019-10-31"), col_set="feature", data_key="raw")
    np.testing.assert_allclose(fitted.mean_train, np.nanmean(train, axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.std_train, np.nanstd(train, axis=0) + 1e-12, rtol=1e-4)


def test_infinite_features_become_the_largest_of_their_day(qlib_small: Path, tmp_path: Path) -> None:
    path = write_set(tmp_path, ratio="$close/($close-Less($close,Ref($close,1)))")
    handler = small_handler(**SHORT, factor_set=path)
    raw = handler.fetch(col_set="feature", data_key="raw")["ratio"]
    treated = handler.fetch(col_set="feature", data_key="infer")["ratio"]
    rises = np.isinf(raw)
    assert rises.any()
    assert not np.isinf(treated).any()
    top = raw[~rises].groupby(level="datetime").max()
    for day, values in treated[rises].groupby(level="datetime"):
        # On a day on which every name rises no finite value is there to take.
        expected = top.get(day, np.nan)
        np.testing.assert_array_equal(values, np.full(len(values), expected, dtype=np.float32))


def test_a_label_of_ones_own_has_its_name_and_its_horizon(qlib_small: Path) -> None:
    handler = small_handler(**SHORT, label=(["Ref($close,-3)/$close-1", "Ref($open,-1)/$close-1"], ["far", "near"]))
    assert handler.get_cols("label") == ["far", "near"]
    assert handler.label_horizon == 3
    one = small_handler(**SHORT, label="Ref($close,-3)/$close-1")
    assert (one.get_cols("label"), one.label_horizon) == (["LABEL0"], 3)
    raw = handler.fetch(col_set="label", data_key="raw")["far"].xs("SH600007", level="instrument")
    close = D.features(["SH600007"], ["$close"], START, END)["$close"].droplevel("instrument")
    day = raw.index[10]
    place = close.index.get_loc(day)
    assert raw[day] == pytest.approx(close.iloc[place + 3] / close.iloc[place] - 1, rel=1e-5)


def refused(error: type[Exception], given: str, **changes: object) -> None:
    with pytest.raises(error) as told:
        small_handler(**(SHORT | changes))
    assert given in str(told.value)


def test_an_unknown_universe_is_refused_with_those_there_are(qlib_small: Path) -> None:
    refused(ProviderError, "'csi999': the provider has ['all', 'csi300']", instruments="csi999")
    refused(ProviderError, "'csi999'", instruments={"market": "csi999", "filter_pipe": []})


def test_codes_without_bars_are_named(qlib_small: Path) -> None:
    refused(ProviderError, "['SH999999'] (1 of 2)", instruments=["SH600000", "SH999999"])


def test_one_instrument_is_no_cross_section(qlib_small: Path) -> None:
    refused(ConfigError, "holds 1 instrument(s)", instruments=["SH600000"])


def test_dates_outside_the_calendar_are_refused(qlib_small: Path) -> None:
    refused(ConfigError, "2010-01-04 lies outside", start_time="2010-01-04")
    refused(ConfigError, "2029-12-31 lies outside", end_time="2029-12-31")
    refused(ConfigError, "2010-01-04 lies outside", fit_start_time="2010-01-04")
    refused(ConfigError, "starts 2019-06-03 after it ends 2019-05-06", end_time="2019-05-06")
    refused(ConfigError, "'last year' is no date", end_time="last year")


def test_a_field_that_the_provider_lacks_is_named_with_those_it_has(qlib_small: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.yaml"
    text = {"name": "own", "warmup": "strict", "fields": ["$turn"]}
    path.write_text(
        yaml.safe_dump(text | {"factors": [{"name": "a", "expression": "$turn/$close", "category": "test"}]})
    )
    refused(ProviderError, "fields ['$turn']", factor_set=str(path))


def test_an_empty_factor_set_is_refused(qlib_small: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.yaml"
    path.write_text("name: own\nwarmup: strict\nfactors: []\n")
    refused(LibraryError, "has no factors", factor_set=str(path))


def test_an_unknown_factor_set_is_refused(qlib_small: Path) -> None:
    refused(LibraryError, "'sead'", factor_set="sead")


def test_a_factor_without_any_value_is_named(qlib_small: Path, tmp_path: Path) -> None:
    path = write_set(tmp_path, fine="$close/Ref($close,5)-1", empty="Log(0-$close)")
    refused(LibraryError, "['empty'] have no value", factor_set=path)


def test_a_factor_that_looks_back_further_than_the_history_is_named(qlib_small: Path, tmp_path: Path) -> None:
    path = write_set(tmp_path, long="$close/Ref($close,240)-1", fine="$close/Ref($close,5)-1")
    refused(LibraryError, "['long'] have no value", factor_set=path, start_time=START, end_time="2019-09-30")


def test_a_label_that_reads_no_future_bar_is_refused(qlib_small: Path) -> None:
    refused(ConfigError, "reads no bar after its date", label=["$close/Ref($close,1)-1"])


def test_a_label_longer_than_the_range_is_refused(qlib_small: Path) -> None:
    refused(ConfigError, "needs 200 bars after its date, and the segment has", label=["Ref($close,-200)/$close-1"])


def test_a_label_that_is_no_expression_is_refused(qlib_small: Path) -> None:
    refused(ExpressionError, "[unsupported_syntax]", label=["__import__('os')"])
    refused(LibraryError, "expected an expression", label={"a": 1})


def test_a_missing_provider_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    from tests.support.provider import open_provider

    open_provider(tmp_path / "nowhere")
    with pytest.raises(ProviderError, match=r"nowhere.*expected a Qlib provider.*QLIB_DATA"):
        small_handler()


def test_segments_may_be_cut_from_it_as_from_any_handler(qlib_small: Path) -> None:
    dataset = DatasetH(small_handler(), SEGMENTS)
    train, valid = dataset.prepare(["train", "valid"], col_set="feature")
    assert train.index.get_level_values("datetime").max() <= pd.Timestamp(TRAIN[1])
    assert valid.index.get_level_values("datetime").min() > pd.Timestamp(TRAIN[1])
