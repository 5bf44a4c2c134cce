from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import qlib
from qlib.config import C

from qlib_llm_alpha.errors import ConfigError, ProviderError
from qlib_llm_alpha.record.task_check import check_task
from tests.support.provider import BENCHMARK, END, START, TEST, TRAIN, VALID, open_provider
from tests.support.tasks import alpha158_task, changed, gated_task

HANDLER = "dataset.kwargs.handler"
SEGMENTS = "dataset.kwargs.segments"
PORTFOLIO = "record.3.kwargs.config"
STOCK_PORTFOLIO = "record.2.kwargs.config"
EXCHANGE = f"{PORTFOLIO}.backtest.exchange_kwargs.exchange"


def test_the_main_jobs_task_passes(qlib_small: Path) -> None:
    check_task(gated_task())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("recrod", [], "task: unknown key 'recrod'.*did you mean 'record'"),
        ("model.kwarg", {}, "task.model: unknown key 'kwarg'"),
        ("model.modul_path", "x", "task.model: unknown key 'modul_path'"),
        ("model.kwargs.gaet", "softmax", "kwargs of GatedModel: unknown key 'gaet'.*did you mean 'gate'"),
        ("dataset.kwargs.segmnts", {}, "kwargs of DatasetH: unknown key 'segmnts'.*did you mean 'segments'"),
        (f"{HANDLER}.kwargs.factorset", "x", "kwargs of FactorSetHandler: unknown key 'factorset'"),
        ("record.1.kwargs.ann_scalar", 252, "kwargs of SigAnaRecord: unknown key 'ann_scalar'"),
        ("record.4.kwargs.confg", {}, "kwargs of GateRecord: unknown key 'confg'"),
        (f"{PORTFOLIO}.stratgy", {}, "unknown key 'stratgy'.*did you mean 'strategy'"),
        (f"{PORTFOLIO}.strategy.kwargs.top_k", 5, "kwargs of GatedTopkStrategy: unknown key 'top_k'.*'topk'"),
        (f"{PORTFOLIO}.backtest.acount", 5, "unknown key 'acount'.*did you mean 'account'"),
        (f"{PORTFOLIO}.backtest.exchange_kwargs.exchnge", 5, "unknown key 'exchnge'.*did you mean 'exchange'"),
        (f"{EXCHANGE}.kwargs.deal_prise", 5, "kwargs of AShareExchange: unknown key 'deal_prise'"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_right_one(path: str, value: Any, said: str, qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        check_task(changed(gated_task(), path, value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (f"{HANDLER}.kwargs.instrumnts", "x", "kwargs of Alpha158: unknown key 'instrumnts'"),
        (f"{STOCK_PORTFOLIO}.strategy.kwargs.ndrop", 5, "kwargs of TopkDropoutStrategy: unknown key 'ndrop'"),
        (f"{STOCK_PORTFOLIO}.backtest.exchange_kwargs.limit_treshold", 0.1, "unknown key 'limit_treshold'"),
    ],
)
def test_a_misspelt_key_of_a_stock_class_is_refused_too(path: str, value: Any, said: str, qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        check_task(changed(alpha158_task(), path, value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model.class", "GatdModel", "'GatdModel' in module .* cannot be found"),
        ("model.module_path", "qlib_llm_alpha.modell", "cannot be found .*No module named"),
        (f"{HANDLER}.class", "FactorHandler", "'FactorHandler' in module .* cannot be found"),
        ("record.0", {"class": "SignallRecord"}, "'SignallRecord' .* cannot be found"),
        ("record.0", {"module_path": "qlib.workflow.record_temp"}, "names no class"),
        (f"{PORTFOLIO}.strategy.class", "GatedTopStrategy", "'GatedTopStrategy' in module .* cannot be found"),
        (f"{PORTFOLIO}.strategy.module_path", None, "is named without a module"),
        (f"{EXCHANGE}.class", "AshareExchange", "'AshareExchange' in module .* cannot be found"),
        (f"{HANDLER}.kwargs.infer_processors", [{"class": "DailyInff"}], "'DailyInff' .* cannot be found"),
        (f"{HANDLER}.kwargs.learn_processors", [{"class": "Fillna", "kwargs": {"fil_value": 0}}], "of Fillna: unknown"),
        ("model.kwargs", ["softmax"], "expected a mapping"),
        ("model", None, "no 'model'"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(path: str, value: Any, said: str, qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        check_task(changed(gated_task(), path, value))


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ({"train": TRAIN, "valid": (TRAIN[1], VALID[1]), "test": TEST}, "'valid' begins on .* not after 'train'"),
        ({"train": TRAIN, "valid": VALID, "confirm": VALID, "test": TEST}, "'confirm' begins on .* not after 'valid'"),
        ({"train": VALID, "valid": TRAIN, "test": TEST}, "'valid' begins on .* not after 'train'"),
        ({"train": TRAIN[::-1], "valid": VALID, "test": TEST}, "train"),
        ({"tran": TRAIN, "valid": VALID, "test": TEST}, r"\['tran'\] are unknown"),
        ({"valid": VALID, "test": TEST}, "expected 'train'"),
        ({"train": TRAIN, "valid": [VALID[0]], "test": TEST}, "expected two dates"),
        ({"train": TRAIN, "valid": VALID, "test": (TEST[0], "2021-13-01")}, "'test' is"),
        ({"train": ("2010-01-04", TRAIN[1]), "valid": VALID, "test": TEST}, "2010-01-04 lies outside"),
        ({"train": TRAIN, "valid": VALID, "test": (TEST[0], "2031-01-01")}, "2031-01-01 lies outside"),
    ],
)
def test_segments_that_cannot_be_are_refused(segments: dict[str, Any], said: str, qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        check_task(changed(gated_task(), SEGMENTS, {name: list(ends) for name, ends in segments.items()}))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"end_time": END}, ConfigError, "Qlib needs one trading day after the end"),
        ({"end_time": "2031-01-01"}, ConfigError, "2031-01-01 lies outside"),
        ({"start_time": TEST[1], "end_time": TEST[0]}, ConfigError, "starts .* after it ends"),
        ({"start_time": "soon"}, ConfigError, "'soon' is no date"),
        ({"benchmark": "SH000999"}, ProviderError, "'SH000999' has no .close"),
        ({"benchmark": "SH00300"}, ProviderError, "'SH00300' has no .close"),
    ],
)
def test_a_backtest_that_cannot_be_is_refused(
    change: dict[str, Any], error: type[Exception], said: str, qlib_small: Path
) -> None:
    for path in ("record.3.kwargs.config.backtest", "record.4.kwargs.config.backtest"):
        task = gated_task()
        place = task["record"][int(path.split(".")[1])]["kwargs"]["config"]["backtest"]
        place.update(change)
        with pytest.raises(error, match=said):
            check_task(task)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (f"{HANDLER}.kwargs.start_time", "2019-07-01", "segment 'train' runs from 2019-06-03 .* 2019-07-01 to"),
        (f"{HANDLER}.kwargs.end_time", "2021-06-25", "segment 'test' runs .* expected it inside the handler's"),
        (f"{HANDLER}.kwargs.end_time", "2031-06-25", "2031-06-25 lies outside"),
        (f"{HANDLER}.kwargs.fit_end_time", VALID[0], "fit_end_time is 2020-08-03, and segment 'valid' begins"),
        (f"{HANDLER}.kwargs.fit_end_time", "then", "'then' is no date"),
        (f"{PORTFOLIO}.backtest.start_time", VALID[1], "backtest runs from 2020-12-31 .* inside the segment 'test'"),
        (f"{PORTFOLIO}.backtest.end_time", "2021-06-29", "to 2021-06-29; expected it inside the segment 'test'"),
        (f"{EXCHANGE}.kwargs.start_time", "2021-02-01", "inside the exchange's start_time and end_time, 2021-02-01"),
        (f"{EXCHANGE}.kwargs.end_time", "2021-06-01", "inside the exchange's .* to 2021-06-01: mend"),
        (f"{EXCHANGE}.kwargs.end_time", "2020-06-01", "exchange.kwargs: starts 2021-01-04 after it ends"),
    ],
)
def test_dates_that_do_not_go_together_are_refused(path: str, value: str, said: str, qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        check_task(changed(gated_task(), path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{HANDLER}.kwargs.start_time", TRAIN[0]),
        (f"{HANDLER}.kwargs.end_time", None),
        (f"{HANDLER}.kwargs.end_time", TEST[1]),
        (f"{SEGMENTS}.train", [TRAIN[0], "2020-07-29"]),  # purged by hand: fitted to the end of July all the same
        (f"{PORTFOLIO}.backtest.start_time", "2021-01-01"),  # a holiday before the first day of test
        (f"{EXCHANGE}.kwargs.start_time", None),
        (f"{EXCHANGE}.kwargs.end_time", END),
    ],
)
def test_dates_that_differ_without_harm_pass(path: str, value: Any, qlib_small: Path) -> None:
    check_task(changed(gated_task(), path, value))


FAR = "Ref($close, -120)/Ref($close, -1) - 1"


@pytest.mark.parametrize("label", [FAR, [FAR], [[FAR], ["FAR"]], ["Ref($close, -2)/$close", FAR]])
def test_a_label_that_reaches_over_a_whole_segment_is_refused(label: Any, qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs 120 bars after its date, and segment 'valid' has \d+ days"):
        check_task(changed(gated_task(), f"{HANDLER}.kwargs.label", label))


def test_the_default_label_needs_more_than_two_days_of_valid(qlib_small: Path) -> None:
    with pytest.raises(ConfigError, match="needs 2 bars after its date, and segment 'valid' has 2 days"):
        check_task(changed(gated_task(), f"{SEGMENTS}.valid", ["2020-08-03", "2020-08-04"]))
    check_task(changed(gated_task(), f"{SEGMENTS}.valid", ["2020-08-03", "2020-08-05"]))


def test_a_label_of_a_stock_handler_is_left_to_qlib(qlib_small: Path) -> None:
    check_task(changed(alpha158_task(), f"{HANDLER}.kwargs.label", [FAR]))


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"topk": 5, "n_drop": 6}, "topk is 5 and n_drop 6; expected 0 < n_drop <= topk"),
        ({"topk": 5, "n_drop": 0}, "expected 0 < n_drop <= topk"),
        ({"topk": 5.0, "n_drop": 2}, "topk is 5.0; expected a whole number"),
        ({"topk": "5", "n_drop": 2}, "topk is '5'; expected a whole number"),
        ({"topk": 5, "n_drop": True}, "n_drop is True; expected a whole number"),
        ({"topk": 5}, "n_drop is None; expected a whole number"),
        ({"topk": 5, "n_drop": 2, "gate": "softmx"}, "gate is 'softmx'; expected one of .*'softmax'"),
    ],
)
def test_values_that_the_strategy_would_refuse_after_the_fit_are_refused(
    kwargs: dict[str, Any], said: str, qlib_small: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_task(changed(gated_task(), f"{PORTFOLIO}.strategy.kwargs", {"signal": "<PRED>", **kwargs}))


def test_a_gate_that_there_is_passes(qlib_small: Path) -> None:
    check_task(changed(gated_task(), f"{PORTFOLIO}.strategy.kwargs.gate", "static"))


def test_each_known_name_is_listed_once(qlib_small: Path) -> None:
    with pytest.raises(ConfigError) as told:
        check_task(changed(gated_task(), f"{PORTFOLIO}.strategy.kwargs.top_k", 5))
    assert str(told.value).count("'signal'") == 1


def test_a_portfolio_without_a_backtest_is_refused(qlib_small: Path) -> None:
    task = gated_task()
    del task["record"][3]["kwargs"]["config"]["backtest"]
    with pytest.raises(ConfigError, match="backtest is None"):
        check_task(task)


def test_keys_that_qlib_would_ignore_beside_an_exchange_are_refused(qlib_small: Path) -> None:
    task = changed(gated_task(), f"{PORTFOLIO}.backtest.exchange_kwargs.limit_threshold", 0.095)
    with pytest.raises(ConfigError, match=r"Qlib ignores \['limit_threshold'\]"):
        check_task(task)


@pytest.fixture
def elsewhere(qlib_small: Path, recorder_store: Path) -> Iterator[None]:
    """Let a test open Qlib on something else; the small market is opened again afterwards."""
    manager = copy.deepcopy(C["exp_manager"])
    yield
    qlib.init(provider_uri=str(qlib_small), kernels=1, exp_manager=manager)
    C["provider_uri"] = {"__DEFAULT_FREQ": "nowhere"}  # so that the next test opens it with the operators
    open_provider(qlib_small, recorder_store)


def test_a_missing_provider_is_refused(tmp_path: Path, elsewhere: None) -> None:
    qlib.init(provider_uri=str(tmp_path / "nowhere"), kernels=1, exp_manager=copy.deepcopy(C["exp_manager"]))
    with pytest.raises(ProviderError, match=r"nowhere.*qlib-llm-alpha market"):
        check_task(gated_task())


def test_a_misspelt_setting_of_qlib_is_refused_and_an_unknown_one_is_not(qlib_small: Path, elsewhere: None) -> None:
    manager = copy.deepcopy(C["exp_manager"])
    qlib.init(provider_uri=str(qlib_small), kernels=1, exp_manager=manager, custom_op=[])
    with pytest.raises(ConfigError, match="'custom_op'; did you mean 'custom_ops'"):
        check_task(gated_task())
    qlib.init(provider_uri=str(qlib_small), kernels=1, exp_manager=manager, of_my_own=True)
    check_task(gated_task())


def test_a_provider_of_minute_bars_alone_is_left_to_qlib(tmp_path: Path, elsewhere: None) -> None:
    (tmp_path / "calendars").mkdir()
    (tmp_path / "calendars" / "1min.txt").write_text("2021-01-04 09:30:00\n", encoding="utf-8")
    qlib.init(provider_uri=str(tmp_path), kernels=1, exp_manager=copy.deepcopy(C["exp_manager"]))
    check_task(alpha158_task())


ALPHA158_ROBUST = [
    {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature", "clip_outlier": True}},
    {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
]
DOUBLE_ENSEMBLE = {
    "class": "DEnsembleModel",
    "module_path": "qlib.contrib.model.double_ensemble",
    "kwargs": {
        **{"base_model": "gbm", "loss": "mse", "num_models": 6, "enable_sr": True, "enable_fs": True, "alpha1": 1},
        **{"alpha2": 1, "bins_sr": 10, "bins_fs": 5, "decay": 0.5, "sample_ratios": [0.8, 0.7, 0.6, 0.5, 0.4]},
        **{"sub_weights": [1, 0.2, 0.2, 0.2, 0.2, 0.2], "epochs": 28, "colsample_bytree": 0.8879, "num_leaves": 210},
    },
}
NESTED = {
    "class": "DataHandlerLP",
    "module_path": "qlib.data.dataset.handler",
    "kwargs": {
        "instruments": "csi300",
        "start_time": START,
        "end_time": END,
        "data_loader": {
            "class": "NestedDataLoader",
            "kwargs": {
                "dataloader_l": [
                    {
                        "class": "qlib.contrib.data.loader.Alpha158DL",
                        "kwargs": {"config": {"label": [["Ref($close, -2)/Ref($close, -1) - 1"], ["LABEL0"]]}},
                    },
                    {"class": "qlib.data.dataset.loader.StaticDataLoader", "kwargs": {"config": "factors.parquet"}},
                ]
            },
        },
        "infer_processors": ALPHA158_ROBUST,
        "learn_processors": [{"class": "DropnaLabel"}, {"class": "CSRankNorm", "kwargs": {"fields_group": "label"}}],
    },
}
ENHANCED = {
    "class": "EnhancedIndexingStrategy",
    "module_path": "qlib.contrib.strategy",
    "kwargs": {
        "signal": "<PRED>",
        "riskmodel_root": "risk",
        "market": "csi500",
        "optimizer_kwargs": {"lamb": 1},
        "risk_degree": 0.9,
    },
}
NESTED_EXECUTOR = {
    "class": "NestedExecutor",
    "module_path": "qlib.backtest.executor",
    "kwargs": {
        "time_per_step": "day",
        "inner_executor": {
            "class": "SimulatorExecutor",
            "module_path": "qlib.backtest.executor",
            "kwargs": {"time_per_step": "30min", "generate_portfolio_metrics": True, "verbose": True},
        },
        "inner_strategy": {"class": "TWAPStrategy", "module_path": "qlib.contrib.strategy.rule_strategy"},
        "track_data": True,
    },
}
TIME_SERIES = {
    "class": "TSDatasetH",
    "module_path": "qlib.data.dataset",
    "kwargs": {**alpha158_task()["dataset"]["kwargs"], "step_len": 20},
}
OURS_IN_A_STOCK_TASK = gated_task()["dataset"]["kwargs"]["handler"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model", alpha158_task()["model"]),
        ("model", DOUBLE_ENSEMBLE),
        ("model", {"class": "LinearModel", "module_path": "qlib.contrib.model.linear", "kwargs": {"estimator": "ols"}}),
        ("model", {"class": "qlib.contrib.model.gbdt.LGBModel"}),
        ("dataset", TIME_SERIES),
        (HANDLER, NESTED),
        (HANDLER, OURS_IN_A_STOCK_TASK),
        (HANDLER, "file://handler.pkl"),
        (f"{HANDLER}.class", "Alpha360"),
        (f"{HANDLER}.kwargs.infer_processors", ALPHA158_ROBUST),
        (f"{HANDLER}.kwargs.label", ["Ref($close, -2) / Ref($close, -1) - 1"]),
        (f"{HANDLER}.kwargs.filter_pipe", [{"filter_type": "ExpressionDFilter", "rule_expression": "$close>1"}]),
        (f"{HANDLER}.kwargs.drop_raw", True),
        (SEGMENTS, {"train": TRAIN, "test": TEST}),
        (
            SEGMENTS,
            {"train": TRAIN, "valid": (VALID[0], "2020-09-30"), "confirm": ("2020-10-09", VALID[1]), "test": TEST},
        ),
        (SEGMENTS, {"train": [None, TRAIN[1]], "valid": VALID, "test": [TEST[0], None]}),
        (f"{STOCK_PORTFOLIO}.strategy", ENHANCED),
        (f"{STOCK_PORTFOLIO}.strategy.kwargs.model", "<MODEL>"),
        (f"{STOCK_PORTFOLIO}.executor", NESTED_EXECUTOR),
        (f"{STOCK_PORTFOLIO}.backtest.exchange_kwargs.trade_unit", 100),
        (f"{STOCK_PORTFOLIO}.backtest.benchmark", [BENCHMARK]),
        ("record.2.class", "MultiPassPortAnaRecord"),
        ("record", {"class": "SignalRecord"}),
        ("record", []),
    ],
)
def test_what_stock_qlib_takes_passes(path: str, value: Any, qlib_small: Path) -> None:
    check_task(changed(alpha158_task(), path, value))


def test_a_check_changes_nothing_in_the_task(qlib_small: Path) -> None:
    task = gated_task()
    check_task(task)
    assert task == gated_task()


def test_a_class_whose_source_cannot_be_read_is_not_checked_for_keywords(qlib_small: Path) -> None:
    """A class made at run time has no source; it may do with its keywords what it likes."""
    made: dict[str, Any] = {}
    exec("class Made:\n    def __init__(self, **kwargs): pass", made)  # noqa: S102
    check_task(changed(alpha158_task(), "model", {"class": made["Made"], "kwargs": {"anything": 1}}))
