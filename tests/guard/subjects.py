"""Subjects for the guards on the small market: handlers' settings, and one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlib_llm_alpha.guard.finding import Finding, GuardReport
from qlib_llm_alpha.guard.suite import run_guards
from tests.support.provider import SEGMENTS, TRAIN

STOCK = {"region": "cn", "kernels": 1}
OURS = {**STOCK, "dataset_provider": {"class": "PanelDatasetProvider", "module_path": "qlib_llm_alpha.data.provider"}}
DATES = {
    "start_time": "2019-06-03",
    "end_time": "2021-06-28",
    "fit_start_time": TRAIN[0],
    "fit_end_time": TRAIN[1],
}


def handler(name: str, module: str = "tests.support.leaky", **kwargs: Any) -> dict[str, Any]:
    """Return a handler's settings as a YAML has them."""
    return {"class": name, "module_path": module, "kwargs": {"instruments": "csi300", **DATES, **kwargs}}


def asked(
    provider: Path,
    config: Mapping[str, Any],
    *guards: str,
    segments: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    days: int = 2,
) -> GuardReport:
    """Run some guards."""
    return run_guards(
        config,
        STOCK if settings is None else settings,
        SEGMENTS if segments is None else segments,
        provider,
        guards=guards or None,
        model_config=model,
        days=days,
    )


def only(report: GuardReport) -> Finding:
    """Return the one finding of a report."""
    (finding,) = report.findings
    return finding
