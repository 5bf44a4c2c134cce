"""Tasks as a workflow file has them: ours on the small market, and stock Qlib shapes that must pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tests.support.provider import BENCHMARK, END, SEGMENTS, SMALL_MODEL, START, TEST, TRAIN

PREFIX = "qlib_llm_alpha"


def gated_task() -> dict[str, Any]:
    """Return the main job's task, on the small market."""
    portfolio = {
        "strategy": {
            "class": "GatedTopkStrategy",
            "module_path": f"{PREFIX}.strategy.gated",
            "kwargs": {"signal": "<PRED>", "model": "<MODEL>", "topk": 8, "n_drop": 2},
        },
        "backtest": {
            "start_time": TEST[0],
            "end_time": TEST[1],
            "account": 100000000,
            "benchmark": BENCHMARK,
            "exchange_kwargs": {
                "exchange": {
                    "class": "AShareExchange",
                    "module_path": f"{PREFIX}.strategy.exchange",
                    "kwargs": {"start_time": TEST[0], "end_time": TEST[1], "deal_price": "$close"},
                }
            },
        },
    }
    task: dict[str, Any] = {
        "model": {
            "class": "GatedModel",
            "module_path": f"{PREFIX}.model.gated",
            "kwargs": {**SMALL_MODEL, "experts": [dict(expert) for expert in SMALL_MODEL["experts"]]},
        },
        "dataset": {
            "class": "DatasetH",
            "module_path": "qlib.data.dataset",
            "kwargs": {
                "handler": {
                    "class": "FactorSetHandler",
                    "module_path": f"{PREFIX}.data.handler",
                    "kwargs": {
                        "factor_set": "starter",
                        "instruments": "csi300",
                        "start_time": START,
                        "end_time": END,
                        "fit_start_time": TRAIN[0],
                        "fit_end_time": TRAIN[1],
                    },
                },
                "segments": {name: list(ends) for name, ends in SEGMENTS.items()},
            },
        },
        "record": [
            {"class": "SignalRecord", "module_path": "qlib.workflow.record_temp"},
            {
                "class": "SigAnaRecord",
                "module_path": "qlib.workflow.record_temp",
                "kwargs": {"ana_long_short": False, "ann_scaler": 252},
            },
            {"class": "FactorSetRecord", "module_path": f"{PREFIX}.record.factor_set_record"},
            {
                "class": "PortAnaRecord",
                "module_path": "qlib.workflow.record_temp",
                "kwargs": {"config": copy.deepcopy(portfolio)},
            },
            {
                "class": "GateRecord",
                "module_path": f"{PREFIX}.record.gate_record",
                "kwargs": {"config": copy.deepcopy(portfolio)},
            },
        ],
    }
    return task


def alpha158_task() -> dict[str, Any]:
    """Return Qlib's own LightGBM example, with dates of the small market."""
    return {
        "model": {
            "class": "LGBModel",
            "module_path": "qlib.contrib.model.gbdt",
            "kwargs": {
                "loss": "mse",
                "colsample_bytree": 0.8879,
                "learning_rate": 0.2,
                "subsample": 0.8789,
                "lambda_l1": 205.6999,
                "lambda_l2": 580.9768,
                "max_depth": 8,
                "num_leaves": 210,
                "num_threads": 20,
            },
        },
        "dataset": {
            "class": "DatasetH",
            "module_path": "qlib.data.dataset",
            "kwargs": {
                "handler": {
                    "class": "Alpha158",
                    "module_path": "qlib.contrib.data.handler",
                    "kwargs": {
                        "start_time": START,
                        "end_time": END,
                        "fit_start_time": TRAIN[0],
                        "fit_end_time": TRAIN[1],
                        "instruments": "csi300",
                    },
                },
                "segments": {name: list(ends) for name, ends in SEGMENTS.items()},
            },
        },
        "record": [
            {
                "class": "SignalRecord",
                "module_path": "qlib.workflow.record_temp",
                "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
            },
            {
                "class": "SigAnaRecord",
                "module_path": "qlib.workflow.record_temp",
                "kwargs": {"ana_long_short": False, "ann_scaler": 252},
            },
            {
                "class": "PortAnaRecord",
                "module_path": "qlib.workflow.record_temp",
                "kwargs": {
                    "config": {
                        "strategy": {
                            "class": "TopkDropoutStrategy",
                            "module_path": "qlib.contrib.strategy",
                            "kwargs": {"signal": "<PRED>", "topk": 50, "n_drop": 5},
                        },
                        "backtest": {
                            "start_time": TEST[0],
                            "end_time": TEST[1],
                            "account": 100000000,
                            "benchmark": BENCHMARK,
                            "exchange_kwargs": {
                                "limit_threshold": 0.095,
                                "deal_price": "close",
                                "open_cost": 0.0005,
                                "close_cost": 0.0015,
                                "min_cost": 5,
                            },
                        },
                    }
                },
            },
        ],
    }


def changed(task: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with the entry at a dotted path set; a number is a place in a list."""
    result: dict[str, Any] = copy.deepcopy(dict(task))
    node: Any = result
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        node = node[part]
    node[last] = copy.deepcopy(value)
    return result
