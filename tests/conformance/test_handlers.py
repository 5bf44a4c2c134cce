"""What every handler of ours owes Qlib; the subjects are found."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.data.handler import Alpha158
from qlib.data.dataset.handler import DataHandlerLP

import qlib_llm_alpha.data
from tests.conformance.subjects import subclasses
from tests.support.provider import END, TRAIN, open_provider

HANDLERS = subclasses(qlib_llm_alpha.data, DataHandlerLP)
RANGE = {"instruments": "csi300", "start_time": "2020-01-02", "end_time": "2020-06-30"} | {
    "fit_start_time": "2020-01-02",
    "fit_end_time": "2020-03-31",
}
# What a handler needs beside the keywords of Alpha158, and how many features that gives.
NEEDS: dict[str, tuple[dict[str, Any], int]] = {
    "FactorSetHandler": ({"factor_set": "starter"}, 12),
    # The small market is not the one that the recording belongs to: the set that was mined with it stands in.
    "LLMAlphaHandler": ({"base": "starter", "llm_mode": "replay"}, 13),
}


def make(kind: type[DataHandlerLP], **changes: Any) -> DataHandlerLP:
    return kind(**(RANGE | NEEDS[kind.__name__][0] | changes))


@pytest.fixture(scope="module", params=HANDLERS, ids=lambda kind: kind.__name__)
def subject(request: pytest.FixtureRequest, small_provider: Path) -> DataHandlerLP:
    open_provider(small_provider)
    return make(request.param)


@pytest.fixture(autouse=True)
def _open(qlib_small: Path) -> None:
    """Every test of this suite asks Qlib for the small market."""


def test_there_is_a_handler_and_each_has_its_settings_here() -> None:
    assert [kind.__name__ for kind in HANDLERS] == sorted(NEEDS)


@pytest.mark.parametrize("kind", HANDLERS, ids=lambda kind: kind.__name__)
def test_it_takes_the_keywords_of_alpha158_with_its_defaults(kind: type[DataHandlerLP]) -> None:
    ours = inspect.signature(kind).parameters
    for name, parameter in inspect.signature(Alpha158).parameters.items():
        assert name in ours or parameter.kind is parameter.VAR_KEYWORD, name
    assert ours["freq"].default == "day"
    assert ours["process_type"].default == DataHandlerLP.PTYPE_A


def test_the_columns_come_in_the_same_order_twice_and_hold_nothing_but_features_and_label(
    subject: DataHandlerLP,
) -> None:
    columns = subject.get_cols("__raw")
    assert make(type(subject)).get_cols("__raw") == columns
    assert [group for group, _ in columns] == ["feature"] * NEEDS[type(subject).__name__][1] + ["label"]
    assert len(set(columns)) == len(columns)


def test_the_same_handler_built_twice_holds_the_same_values(subject: DataHandlerLP) -> None:
    again = make(type(subject))
    for key in ("raw", "infer", "learn"):
        pd.testing.assert_frame_equal(again.fetch(data_key=key), subject.fetch(data_key=key))


def test_the_index_is_that_of_alpha158(subject: DataHandlerLP) -> None:
    stock = Alpha158(**(RANGE | {"end_time": "2020-01-10"}))
    ours = subject.fetch(slice("2020-01-02", "2020-01-10"), data_key="raw")
    assert ours.index.names == stock.fetch().index.names
    pd.testing.assert_index_equal(ours.index, stock.fetch(data_key="raw").index)


def test_features_are_finite_or_missing(subject: DataHandlerLP) -> None:
    assert not np.isinf(subject.fetch(col_set="feature").to_numpy()).any()


def test_processors_are_fitted_on_the_fit_dates_alone(subject: DataHandlerLP) -> None:
    norm = {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}}
    short = make(type(subject), infer_processors=[norm], end_time="2020-03-31")
    whole = make(type(subject), infer_processors=[norm])
    for fitted, again in zip(short.infer_processors, whole.infer_processors, strict=True):
        np.testing.assert_array_equal(fitted.mean_train, again.mean_train)
        np.testing.assert_array_equal(fitted.std_train, again.std_train)


def test_features_do_not_depend_on_what_is_loaded_after_them(subject: DataHandlerLP) -> None:
    longer = make(type(subject), end_time=END).fetch(slice(None, "2020-06-30"), col_set="feature")
    pd.testing.assert_frame_equal(longer, subject.fetch(col_set="feature"), check_exact=True)


def test_it_survives_qlibs_pickling_with_its_data_and_casts_to_a_stock_handler(
    subject: DataHandlerLP, tmp_path: Path
) -> None:
    subject.to_pickle(tmp_path / "handler.pkl", dump_all=True)
    again = type(subject).load(tmp_path / "handler.pkl")
    pd.testing.assert_frame_equal(again.fetch(), subject.fetch())
    DataHandlerLP.cast(subject).to_pickle(tmp_path / "stock.pkl", dump_all=True)
    stock = DataHandlerLP.load(tmp_path / "stock.pkl")
    assert type(stock) is DataHandlerLP
    pd.testing.assert_frame_equal(stock.fetch(), subject.fetch())


def test_it_can_be_set_up_again_for_another_range_as_qlibs_rolling_does(subject: DataHandlerLP) -> None:
    rolled = make(type(subject))
    rolled.config(start_time=TRAIN[0], end_time="2020-03-31")
    rolled.setup_data(init_type=DataHandlerLP.IT_LS)
    days = rolled.fetch().index.get_level_values("datetime")
    assert days.max() == pd.Timestamp("2020-03-31")
    assert days.min() == pd.Timestamp(TRAIN[0])
