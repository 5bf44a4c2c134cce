from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.guard.model_window import headline, window_status
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.llm.models import ModelInfo, ModelRegistry
from qlib_llm_alpha.record.evidence_figures import memory_figures
from qlib_llm_alpha.record.evidence_line import EvidenceLine, evidence_line
from qlib_llm_alpha.record.model_memory import info_of, memory_of, memory_words
from tests.record.small_runs import EVIDENCE, PORTFOLIO, SIGNAL, SIGNAL_ANALYSIS, Runner, small_task
from tests.support.provider import TEST
from tests.support.tasks import changed, gated_task

TODAY = date(2026, 1, 15)
# Clean from 2021-03-02 on, inside the small market's test segment.
REGISTRY = ModelRegistry(
    {
        "early-model": {"knowledge_cutoff": date(2019, 1, 31)},
        "gpt-half:8b": {"knowledge_cutoff": date(2020, 12, 1)},
        "late-model": {"knowledge_cutoff": date(2024, 6, 30)},
        "late.model": {"knowledge_cutoff": date(2019, 1, 31)},
    }
)


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRegistry, "of", classmethod(lambda cls, path=None: REGISTRY))


def set_of(folder: Path, *origins: str) -> str:
    """Write the starter set with these origins by turns, and return its path."""
    starter = load_factor_set("starter")
    factors = tuple(
        replace(factor, origin=origins[place % len(origins)]) for place, factor in enumerate(starter.factors)
    )
    replace(starter, factors=factors).save(folder / "set.yaml")
    return str(folder / "set.yaml")


def task_of(folder: Path, *origins: str) -> dict[str, Any]:
    return changed(gated_task(), "dataset.kwargs.handler.kwargs.factor_set", set_of(folder, *origins))


def line_of(task: dict[str, Any], ledger: Path) -> EvidenceLine:
    return evidence_line(TrialLedger(ledger), task, configuration="c", factor_set="f", data="d", run="me", opening=None)


def test_the_line_says_nothing_of_memory_when_no_model_proposed_a_factor(tmp_path: Path) -> None:
    line = line_of(task_of(tmp_path, "seed", "human", "random", "genetic"), tmp_path)
    assert line.memory == ()
    assert "model memory" not in line.sentence
    assert "model memory" not in [row[0] for row in line.counts()]


@pytest.mark.usefixtures("shipped")
def test_the_line_says_of_each_model_what_it_can_know_of_test(tmp_path: Path) -> None:
    origins = ("seed", "gpt_half_8b", "nobody_knows", "early-model", "scripted", "late_model", "written_by_the_authors")
    line = line_of(task_of(tmp_path, *origins), tmp_path)
    assert line.memory == (
        "early-model: clean",
        "gpt_half_8b: partial, clean from 2021-03-02",
        "late_model: contaminated",
        "nobody_knows: unknown cut-off, treated as contaminated",
        "scripted: none, a stated rule or people gave the answers",
        "written_by_the_authors: none, a stated rule or people gave the answers",
    )
    assert "; model memory: gpt_half_8b: partial, clean from 2021-03-02; model memory: late_model: contaminated;" in (
        line.sentence
    )
    assert ("model memory", "", "late_model: contaminated") in line.counts()
    assert json.loads(json.dumps(line.to_dict()))["memory"] == list(line.memory)


def test_a_dataset_and_its_configuration_say_the_same(tmp_path: Path) -> None:
    dataset = task_of(tmp_path, "late-model")["dataset"]
    factors = load_factor_set(tmp_path / "set.yaml")
    opened = SimpleNamespace(handler=SimpleNamespace(factor_set=factors), segments={"test": TEST})
    configured = memory_of(dataset, today=TODAY, registry=REGISTRY)
    assert memory_of(opened, today=TODAY, registry=REGISTRY) == configured
    assert memory_words(configured) == ("late-model: contaminated",)


def test_without_factors_of_a_set_or_without_test_there_is_nothing_to_say(tmp_path: Path) -> None:
    opened = SimpleNamespace(handler=object(), segments={"test": TEST})
    assert memory_of(opened, today=TODAY, registry=REGISTRY) == {}
    task = task_of(tmp_path, "late-model")
    del task["dataset"]["kwargs"]["segments"]["test"]
    assert memory_of(task["dataset"], today=TODAY, registry=REGISTRY) == {}


def test_of_models_whose_names_read_the_same_the_one_that_knows_most_counts() -> None:
    assert info_of("late_model", REGISTRY).knowledge_cutoff == date(2024, 6, 30)
    assert info_of("late.model", REGISTRY).knowledge_cutoff == date(2024, 6, 30)
    assert info_of("gpt_half", REGISTRY).knowledge_cutoff is None
    unknown = ModelRegistry({"a-b": {"knowledge_cutoff": date(2019, 1, 1)}, "a.b": {}})
    assert info_of("a_b", unknown).knowledge_cutoff is None
    numbered = ModelRegistry({"3x": {"knowledge_cutoff": date(2019, 1, 1)}})
    assert info_of("model_3x", numbered).name == "3x"


def test_both_sides_of_a_figure_are_stated_and_only_one_counts() -> None:
    days = np.arange("2021-02-01", "2021-04-01", dtype="datetime64[D]")
    series = np.random.default_rng(2).normal(size=len(days))
    status = window_status(days[0], days[-1], ModelInfo("m", knowledge_cutoff=date(2020, 12, 1)), today=TODAY)
    clean, other = memory_figures(headline("rank IC", series, days, [status]), basis="b")
    assert (clean.name, other.name) == ("rank IC on clean days", "rank IC on days a model may remember")
    assert clean.value == pytest.approx(series[days >= np.datetime64("2021-03-02")].mean())
    assert other.value == pytest.approx(series[days < np.datetime64("2021-03-02")].mean())
    assert "does not count" in other.meaning
    assert len(memory_figures(headline("rank IC", series, days, []), basis="b")) == 1


def evidence_of(run: Runner, folder: Path, origin: str) -> tuple[dict[str, Any], pd.DataFrame, pd.Series, Any]:
    strategy = {"signal": "<PRED>", "topk": 8, "n_drop": 2}
    portfolio = changed(PORTFOLIO, "kwargs.config.strategy.kwargs", strategy)
    task = small_task(SIGNAL, SIGNAL_ANALYSIS, portfolio, EVIDENCE)
    made = run(changed(task, "dataset.kwargs.handler.kwargs.factor_set", set_of(folder, origin)))
    text = mlflow.artifacts.load_text(f"{made.info.artifact_uri}/evidence/evidence.json")

    def saved(name: str) -> Any:
        return pd.read_pickle(mlflow.artifacts.download_artifacts(f"{made.info.artifact_uri}/{name}"))  # noqa: S301

    report, ic = saved("portfolio_analysis/report_normal_1day.pkl"), saved("sig_analysis/ric.pkl")
    return json.loads(text), report, ic, made


@pytest.mark.usefixtures("shipped")
def test_the_figures_of_a_partly_known_test_are_those_of_its_clean_days(run: Runner, tmp_path: Path) -> None:
    evidence, report, ic, made = evidence_of(run, tmp_path, "gpt_half_8b")
    figures = {figure["name"]: figure for figure in evidence["figures"]}
    excess = report["return"] - report["bench"] - report["cost"]
    clean, known = excess["2021-03-02":], excess[:"2021-03-01"]
    for name, part in (
        ("Sharpe", clean),
        ("Sharpe on clean days", clean),
        ("Sharpe on days a model may remember", known),
    ):
        np.testing.assert_allclose(figures[name]["value"], part.mean() / part.std() * np.sqrt(252))
    assert figures["rank IC on clean days"]["value"] == pytest.approx(ic["2021-03-02":].mean())
    assert figures["rank IC on days a model may remember"]["value"] == pytest.approx(ic[:"2021-03-01"].mean())
    assert "2021-03-02 to 2021-06" in figures["Sharpe"]["basis"]
    assert "model memory: gpt_half_8b: partial, clean from 2021-03-02" in made.data.tags["evidence"]


@pytest.mark.usefixtures("shipped")
def test_a_test_that_a_model_may_remember_has_no_sharpe_to_quote(run: Runner, tmp_path: Path) -> None:
    evidence, _, _, made = evidence_of(run, tmp_path, "nobody_knows")
    names = [figure["name"] for figure in evidence["figures"]]
    assert "Sharpe" not in names
    assert "deflated Sharpe" not in names
    assert "Sharpe on days a model may remember" in names
    missing = {item["what"]: item["why"] for item in evidence["missing"]}
    assert "test has 0 days that nobody_knows cannot remember" in missing["Sharpe and break-even cost"]
    assert "unknown cut-off, treated as contaminated" in made.data.tags["evidence"]
