"""Handlers that are clean stay clean: ours, Qlib's own on Qlib's provider and on ours, our model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.guard.subjects import OURS, STOCK, asked, handler
from tests.support.provider import SMALL_MODEL

QLIB = "qlib.contrib.data.handler"
NORMALISED = [
    {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature", "clip_outlier": True}},
    {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
]


def ours(factor_set: str) -> dict[str, Any]:
    return handler("FactorSetHandler", "qlib_llm_alpha.data.handler", factor_set=factor_set)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(ours("starter"), id="starter"),
        pytest.param(ours("classic"), id="classic", marks=pytest.mark.slow),
        pytest.param(handler("Alpha158", QLIB), id="Alpha158", marks=pytest.mark.slow),
        pytest.param(
            handler("Alpha360", QLIB, infer_processors=NORMALISED), id="Alpha360, normalised", marks=pytest.mark.slow
        ),
    ],
)
def test_no_guard_accuses_a_clean_handler(small_provider: Path, config: dict[str, Any]) -> None:
    report = asked(small_provider, config, settings=OURS)
    assert report.verdict == "clean", report.table()
    applicable = {finding.guard: finding.verdict for finding in report.findings}
    assert applicable.pop("label_reach") == "not applicable"
    assert set(applicable.values()) == {"clean"}, report.table()


@pytest.mark.slow
@pytest.mark.parametrize("config", [ours("classic"), handler("Alpha158", QLIB)], ids=["classic", "Alpha158"])
def test_what_compares_bits_accuses_nothing_on_qlibs_own_engine(small_provider: Path, config: dict[str, Any]) -> None:
    # Its numbers are those of our engine; every build takes it a quarter of a minute.
    report = asked(small_provider, config, "segments", "poison", "truncation", settings=STOCK, days=1)
    assert [finding.verdict for finding in report.findings] == ["clean"] * 3, report.table()


@pytest.mark.slow
def test_poison_does_not_accuse_alpha360_with_the_processors_it_has_by_default(small_provider: Path) -> None:
    # Its ProcessInf takes minutes on more days than these.
    dates = {"start_time": "2020-06-01", "end_time": "2020-07-31", "fit_end_time": "2020-06-30"}
    config = handler("Alpha360", QLIB, **dates, fit_start_time="2020-06-01")
    segments = {"train": ["2020-06-01", "2020-06-24"], "test": ["2020-07-01", "2020-07-29"]}
    report = asked(small_provider, config, "poison", "normaliser", settings=OURS, segments=segments, days=1)
    assert [finding.verdict for finding in report.findings] == ["clean", "clean"], report.table()


@pytest.mark.slow
def test_no_guard_accuses_our_model_which_leaves_out_labels_that_are_not_known(small_provider: Path) -> None:
    model = {
        "class": "GatedModel",
        "module_path": "qlib_llm_alpha.model.gated",
        "kwargs": {**SMALL_MODEL, "experts": [dict(expert) for expert in SMALL_MODEL["experts"]]},
    }
    guards = ("label_reach", "model_poison")
    report = asked(small_provider, ours("starter"), *guards, settings=OURS, model=model)
    assert [finding.verdict for finding in report.findings] == ["clean", "clean"], report.table()


@pytest.mark.slow
def test_qlibs_lightgbm_learns_nothing_from_test_but_its_segments_must_leave_a_gap(small_provider: Path) -> None:
    model = {"class": "LGBModel", "module_path": "qlib.contrib.model.gbdt", "kwargs": {"num_threads": 1, "loss": "mse"}}
    report = asked(small_provider, handler("Alpha158", QLIB), "label_reach", "model_poison", settings=OURS, model=model)
    assert [finding.verdict for finding in report.findings] == ["leak", "clean"], report.table()
