from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from qlib_llm_alpha.agents.evidence import FactorEvidence, gather_evidence
from qlib_llm_alpha.agents.preference import PREFERENCES
from qlib_llm_alpha.agents.selection import Selection, SelectionOptions, choose_factors
from qlib_llm_alpha.errors import ConfigError, PanelError

T, N = 320, 30
DAYS = np.arange("2020-01-01", "2021-01-01", dtype="datetime64[D]")[:T]
NAMES = ("alpha", "beta", "gamma", "delta", "echo", "foxtrot")
CATEGORIES = ("price", "price", "volume", "volume", "value", "value")


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((6, T, N))
    label = 0.02 * rng.standard_normal((T, N)) + 0.002 * (factors[0] - factors[2] + 0.5 * factors[4])
    return factors, label, rng.choice(["bull", "bear", "sideways"], T)


def gathered(seed: int = 0) -> FactorEvidence:
    factors, label, regime = inputs(seed)
    return gather_evidence(factors, NAMES, CATEGORIES, label, regime, DAYS)


def by_hand(ic: np.ndarray, spread: np.ndarray, correlation: np.ndarray | None = None) -> FactorEvidence:
    """Evidence whose daily series are written down, with no names behind it."""
    count, days = ic.shape
    alike = np.eye(count) if correlation is None else correlation
    return FactorEvidence(
        names=tuple("abcdefghij"[:count]),
        categories=("one",) * count,
        days=np.arange(days).astype("datetime64[D]"),
        regime=np.full(days, "bull"),
        rank_ic=ic,
        long_short=spread,
        correlation=alike[None],
        correlation_rows=np.array([days - 1]),
    )


def status(selection: Selection) -> dict[str, str]:
    return {row.name: row.status for row in selection.rows}


def test_one_factor_of_each_category_is_chosen_and_oriented() -> None:
    chosen = choose_factors(gathered(), "moderate", T - 1)
    assert dict(chosen.chosen)["alpha"] == 1
    assert dict(chosen.chosen)["gamma"] == -1
    assert chosen.fallback == "none"
    categories = [row.category for row in chosen.rows if row.status == "chosen"]
    assert len(categories) == len(set(categories))
    scores = {row.name: row.score for row in chosen.rows}
    assert [scores[name] for name in chosen.names] == sorted((scores[name] for name in chosen.names), reverse=True)


@pytest.mark.parametrize("preference", PREFERENCES)
def test_labels_and_factors_that_are_known_later_change_nothing(preference: str) -> None:
    factors, label, regime = inputs()
    day = 300
    before = choose_factors(gathered(), preference, day)  # type: ignore[arg-type]
    label[day - 1 :] = -label[day - 1 :] * 40
    factors[:, day + 1 :], regime[day + 1 :] = -7.0, "bull"
    poisoned = gather_evidence(factors, NAMES, CATEGORIES, label, regime, DAYS)
    assert choose_factors(poisoned, preference, day) == before  # type: ignore[arg-type]
    label[day - 2] *= -40
    moved = gather_evidence(factors, NAMES, CATEGORIES, label, regime, DAYS)
    assert choose_factors(moved, preference, day).rows != before.rows  # type: ignore[arg-type]


def test_a_weight_of_one_gives_the_ranking_of_one_agent() -> None:
    evidence = gathered()
    for weights, attribute in (((1.0, 0.0), "theta"), ((0.0, 1.0), "rho")):
        options = SelectionOptions(*weights, threshold=0.0, max_per_category=None, max_rank_correlation=None)
        rows = choose_factors(evidence, "moderate", T - 1, options).rows
        single = sorted(rows, key=lambda row: -abs(getattr(row, attribute)))
        assert [row.name for row in sorted(rows, key=lambda row: -row.score)] == [row.name for row in single]


def test_the_three_preferences_choose_differently_where_factors_differ_in_risk() -> None:
    # The first is calm and poor, the last rich and wild: alternating days give every series its exact mean and swing.
    swing = np.where(np.arange(300) % 2, 1.0, -1.0)
    ic = np.array([0.010, 0.020, 0.030])[:, None] + np.array([0.001, 0.05, 0.2])[:, None] * swing
    spread = np.array([0.0001, 0.0005, 0.002])[:, None] + np.array([0.00001, 0.004, 0.03])[:, None] * swing
    options = SelectionOptions(0.0, 1.0)
    chosen = {p: choose_factors(by_hand(ic, spread), p, 299, options).names for p in PREFERENCES}
    assert chosen["conservative"] == ("a",)
    assert chosen["aggressive"] == ("c",)
    assert chosen["conservative"] != chosen["aggressive"]


def flat(thetas: list[float]) -> tuple[np.ndarray, np.ndarray]:
    ic = np.tile(np.array(thetas)[:, None], (1, 100))
    return ic, 0.1 * ic + 0.001 * np.where(np.arange(100) % 2, 1.0, -1.0)


def test_all_above_the_threshold_are_kept_when_the_category_has_no_limit() -> None:
    evidence = by_hand(*flat([0.01, 0.02, 0.03, 0.04, 0.05]))
    options = SelectionOptions(1.0, 0.0, max_per_category=None)
    assert choose_factors(evidence, "moderate", 99, options).names == ("e", "d")  # the middle one is at 0.5, not above
    two = SelectionOptions(1.0, 0.0, threshold=0.1, max_per_category=2)
    assert status(choose_factors(evidence, "moderate", 99, two)) == {
        "a": "below_threshold",
        "b": "category_full",
        "c": "category_full",
        "d": "chosen",
        "e": "chosen",
    }


def test_equal_scores_are_taken_by_name() -> None:
    evidence = replace(by_hand(*flat([0.03, 0.03, 0.01])), names=("zulu", "mike", "alpha"))
    assert choose_factors(evidence, "moderate", 99).names == ("mike",)


def test_a_factor_that_repeats_a_chosen_one_makes_room_for_the_next() -> None:
    correlation = np.eye(4)
    correlation[3, 2] = correlation[2, 3] = -0.95
    evidence = by_hand(*flat([0.01, 0.02, 0.03, 0.04]), correlation)
    options = SelectionOptions(1.0, 0.0, threshold=0.2, max_per_category=2)
    chosen = choose_factors(evidence, "moderate", 99, options)
    assert chosen.names == ("d", "b")
    assert chosen.rows[2].status == "redundant"
    assert chosen.rows[2].detail == "d"
    off = replace(options, max_rank_correlation=None)
    assert choose_factors(evidence, "moderate", 99, off).names == ("d", "c")


def test_a_correlation_that_is_not_known_is_no_reason_to_leave_out() -> None:
    evidence = by_hand(*flat([0.01, 0.02, 0.03]), np.full((3, 3), np.nan))
    options = SelectionOptions(1.0, 0.0, threshold=0.2, max_per_category=None)
    assert choose_factors(evidence, "moderate", 99, options).names == ("c", "b")


def test_a_category_without_a_good_factor_stays_empty() -> None:
    evidence = replace(by_hand(*flat([0.01, 0.02, 0.04, 0.05])), categories=("weak", "weak", "good", "good"))
    chosen = choose_factors(evidence, "moderate", 99, SelectionOptions(1.0, 0.0))
    assert chosen.names == ("d",)


def test_when_nothing_is_good_enough_the_best_is_taken_and_said_so() -> None:
    chosen = choose_factors(by_hand(*flat([0.01, 0.02])), "moderate", 99, SelectionOptions(threshold=1.0))
    assert chosen.fallback == "best_single"
    assert chosen.names == ("b",)
    assert status(chosen) == {"a": "below_threshold", "b": "fallback"}


def test_without_evidence_nothing_is_chosen_and_said_so() -> None:
    chosen = choose_factors(by_hand(*flat([0.01, 0.02])), "moderate", 20)
    assert (chosen.fallback, chosen.chosen) == ("no_evidence", ())
    assert set(status(chosen).values()) == {"no_evidence"}
    assert json.loads(json.dumps(chosen.to_dict(), allow_nan=False))["rows"][0]["theta"] is None


def test_a_factor_without_evidence_is_not_in_the_pool_of_the_others() -> None:
    ic, spread = flat([0.01, 0.02, 0.03])
    more = by_hand(np.vstack([ic, np.full((1, 100), np.nan)]), np.vstack([spread, np.full((1, 100), np.nan)]))
    with_gap, without = choose_factors(more, "moderate", 99), choose_factors(by_hand(ic, spread), "moderate", 99)
    assert with_gap.rows[:3] == without.rows
    assert with_gap.rows[3].status == "no_evidence"


def test_a_date_means_the_last_day_up_to_it() -> None:
    evidence = gathered()
    assert evidence.row("2020-02-01") == 31
    assert evidence.row("2029-01-01") == T - 1
    assert evidence.row(np.int64(5)) == 5
    for outside in ("2019-12-31", T, -1):
        with pytest.raises(PanelError, match="as_of"):
            evidence.row(outside)


def test_records_hold_every_factor_and_measure() -> None:
    chosen = choose_factors(gathered(), {"drawdown": 1.0}, "2020-11-01")
    assert chosen.preference == "custom"
    assert chosen.as_of == "2020-11-01"
    frame = chosen.to_frame()
    assert list(frame["name"]) == list(NAMES)
    assert {"preference", "as_of", "status", "theta", "rho", "drawdown", "mean_ic"} <= set(frame.columns)
    assert json.loads(json.dumps(chosen.to_dict()))["chosen"][0]["sign"] in (1, -1)


def test_gathered_series_and_correlations_agree_with_a_loop() -> None:
    factors, label, regime = inputs()
    factors[1] = -factors[0] + 0.05 * factors[1]
    factors[3, :, 20:] = np.nan
    member = np.ones((T, N), dtype=bool)
    member[:, 28:] = False
    evidence = gather_evidence(factors, NAMES, CATEGORIES, label, regime, DAYS, member=member, slow_label=-label)
    assert evidence.rank_ic[2, 7] == pytest.approx(spearmanr(factors[2, 7, :28], label[7, :28]).statistic)
    assert evidence.rank_ic[3, 7] == pytest.approx(spearmanr(factors[3, 7, :20], label[7, :20]).statistic)
    assert evidence.slow_rank_ic is not None
    np.testing.assert_allclose(evidence.slow_rank_ic, -evidence.rank_ic)
    mean = evidence.mean_correlation(T - 1, 20)
    rows = [row for row in range(0, T, 5) if row > T - 21]
    assert mean[0, 2] == pytest.approx(
        np.mean([spearmanr(factors[0, row, :28], factors[2, row, :28]).statistic for row in rows])
    )
    assert mean[0, 1] < -0.98
    # one side is ranked over names the other lacks: near, not equal
    pairwise = np.mean([spearmanr(factors[0, row, :20], factors[3, row, :20]).statistic for row in rows])
    assert mean[0, 3] == pytest.approx(pairwise, abs=0.03)
    assert np.isnan(evidence.mean_correlation(-1, 20)).all()
    chosen = choose_factors(evidence, "moderate", T - 1)
    assert chosen.fallback != "no_evidence"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"names": NAMES[:5]}, "align"),
        ({"names": ("alpha",) * 6}, "not unique"),
        ({"categories": CATEGORIES[:2]}, "align"),
        ({"regime": np.array(["bull"])}, "regime"),
        ({"correlation_every": 0}, "correlation_every"),
        ({"factors": np.full((6, T, N), np.inf)}, "infinite"),
    ],
)
def test_evidence_that_does_not_fit_is_refused(change: dict[str, object], says: str) -> None:
    factors, label, regime = inputs()
    parts: dict[str, object] = {
        "factors": factors,
        "names": NAMES,
        "categories": CATEGORIES,
        "label": label,
        "regime": regime,
        "days": DAYS,
    }
    with pytest.raises(PanelError, match=says):
        gather_evidence(**(parts | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"confidence_weight": 0.7},
        {"confidence_weight": 1.5, "risk_weight": -0.5},
        {"threshold": 1.5},
        {"max_per_category": 0},
        {"max_rank_correlation": 0.0},
        {"window": 30},
        {"shrinkage": -1.0},
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        SelectionOptions(**options)  # type: ignore[arg-type]


def test_three_preferences_on_many_days_are_cheap() -> None:
    evidence = gathered()
    begun = time.perf_counter()
    for day in range(200, 320, 20):
        for preference in PREFERENCES:
            choose_factors(evidence, preference, day)
    assert time.perf_counter() - begun < 5
