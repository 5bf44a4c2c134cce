"""Qlib on a small embedded market: which provider is open, and what a small task on it looks like."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import qlib
from qlib.config import C
from qlib.data.dataset import DatasetH

from qlib_llm_alpha.data.embedded.write import ensure_market
from qlib_llm_alpha.data.handler import FactorSetHandler
from qlib_llm_alpha.ops.ours import OPERATORS

# About 27 of the 40 names are in csi300 on a day; one lists, one leaves, ChiNext's limits widen inside.
INSTRUMENTS, START, END, SEED = 40, "2019-01-02", "2021-06-30", 7
BENCHMARK = "SH000300"
TRAIN = ("2019-06-03", "2020-07-31")
VALID = ("2020-08-03", "2020-12-31")
TEST = ("2021-01-04", "2021-06-28")
SEGMENTS = {"train": TRAIN, "valid": VALID, "test": TEST}
# The smallest mixture that still has every part: two learners, one single factor, two folds.
EXPERTS: tuple[dict[str, Any], ...] = (
    {"name": "moderate_ridge", "preference": "moderate", "learner": "ridge"},
    {"name": "trees", "learner": "lightgbm", "params": {"rounds": 15, "seed": 7}},
    {"name": "one", "learner": "factor", "factor": "ema_reversion"},
)
SMALL_MODEL: dict[str, Any] = {
    "benchmark": BENCHMARK,
    "experts": EXPERTS,
    "n_folds": 2,
    "min_train": 100,
    "min_names": 15,
    "permutations": 0,
    "seed": 7,
}


def write_small_market(out: Path, kind: str = "planted") -> Path:
    """Write the small market to a folder, or find it there."""
    ensure_market(out, kind=kind, instruments=INSTRUMENTS, start=START, end=END, seed=SEED)  # type: ignore[arg-type]
    return out


def open_provider(root: Path, store: Path | None = None) -> Path:
    """Point Qlib at a provider unless it looks there already; `store` is the folder of database and ledger."""
    manager = {}
    if store is not None:
        manager["exp_manager"] = {
            "class": "VerifiedExpManager",
            "module_path": "qlib_llm_alpha.record.tracking",
            "kwargs": {
                "uri": f"sqlite:///{store / 'mlflow.db'}",
                "default_exp_name": "tests",
                "ledger": str(store / "ledger"),
            },
        }
    opened = bool(C.registered) and Path(str(C.dpm.get_data_uri("day"))) == root
    if not opened or (manager and C.exp_manager != manager["exp_manager"]):
        qlib.init(
            provider_uri=str(root),
            region="cn",
            kernels=1,
            custom_ops=list(OPERATORS),
            logging_level=logging.ERROR,
            **manager,
        )
    return root


def small_handler(**changes: Any) -> FactorSetHandler:
    """Return the `starter` factors of csi300 over the whole small market."""
    settings: dict[str, Any] = {"factor_set": "starter", "instruments": "csi300", "start_time": START, "end_time": END}
    settings.update({"fit_start_time": TRAIN[0], "fit_end_time": TRAIN[1]})
    return FactorSetHandler(**(settings | changes))


def small_dataset(handler: Any = None, segments: Any = None) -> DatasetH:
    """Return the small handler with its segments."""
    return DatasetH(small_handler() if handler is None else handler, SEGMENTS if segments is None else segments)
