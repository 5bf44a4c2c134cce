from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from qlib_llm_alpha.errors import MissingExtraError
from qlib_llm_alpha.record import evidence_figures
from qlib_llm_alpha.record.evidence_figures import (
    break_even_figures,
    comparison_figures,
    search_figures,
    strategy_figures,
)

RNG = np.random.default_rng(11)
NOISE = RNG.standard_normal((400, 6)) * 0.01


def by_name(figures: list[evidence_figures.Figure]) -> dict[str, evidence_figures.Figure]:
    return {figure.name: figure for figure in figures}


def test_a_sharpe_is_deflated_by_what_chance_offers_to_so_many_trials() -> None:
    """With days that are nearly normal the threshold is that of Bailey and Lopez de Prado over sqrt(T - 1)."""
    excess = NOISE[:, 0] - NOISE[:, 0].mean() + 0.001
    found = by_name(strategy_figures(excess, trials=10.0, basis="b", seed=1))
    daily = 0.001 / excess.std(ddof=1)
    assert found["Sharpe"].value == pytest.approx(daily * np.sqrt(252))
    assert found["excess return a year"].value == pytest.approx(0.252)
    weight = 0.5772156649
    best = (1 - weight) * norm.ppf(1 - 1 / 10) + weight * norm.ppf(1 - 1 / (10 * np.e))
    expected = norm.cdf((daily - best / np.sqrt(399)) * np.sqrt(399) / np.sqrt(1 + daily**2 / 2))
    assert found["deflated Sharpe"].value == pytest.approx(expected, abs=0.02)
    assert found["deflated Sharpe"].value < found["probability that Sharpe is above 0"].value
    assert found["years before luck"].value == pytest.approx((best / found["Sharpe"].value) ** 2, rel=1e-6)


def test_more_trials_never_make_a_sharpe_more_believable() -> None:
    excess = NOISE[:, 1] + 0.001
    values = [
        by_name(strategy_figures(excess, trials=n, basis="b", seed=1))["deflated Sharpe"].value for n in (0, 1, 5, 500)
    ]
    assert values == sorted(values, reverse=True)
    assert (
        values[0]
        == values[1]
        == pytest.approx(
            by_name(strategy_figures(excess, trials=1, basis="b", seed=1))["probability that Sharpe is above 0"].value
        )
    )


def test_figures_of_trials_that_were_not_all_counted_are_called_bounds() -> None:
    excess = NOISE[:, 1] + 0.003
    bounds = by_name(strategy_figures(excess, trials=2, basis="b", seed=1, uncounted="nobody counted"))
    assert "an upper bound only: nobody counted" in bounds["deflated Sharpe"].meaning
    assert "evidence from" not in bounds["deflated Sharpe"].meaning
    assert "a lower bound only: nobody counted" in bounds["years before luck"].meaning
    whole = by_name(strategy_figures(excess, trials=2, basis="b", seed=1))
    assert "bound" not in whole["deflated Sharpe"].meaning + whole["years before luck"].meaning
    assert bounds["deflated Sharpe"].value == whole["deflated Sharpe"].value


def test_a_loss_has_no_years_before_luck() -> None:
    assert "years before luck" not in by_name(strategy_figures(NOISE[:, 0] - 0.01, trials=3, basis="b", seed=1))


def test_a_return_that_never_moves_gives_no_number_and_no_error() -> None:
    found = by_name(strategy_figures(np.zeros(50), trials=3, basis="b", seed=1))
    assert np.isnan(found["Sharpe"].value)
    assert np.isnan(found["deflated Sharpe"].value)


def test_break_even_cost_by_hand() -> None:
    report = pd.DataFrame(
        {"return": [0.02, 0.01], "bench": [0.01, 0.005], "cost": [0.001, 0.0005], "turnover": [0.6, 0.4]}
    )
    (figure,) = break_even_figures(report, basis="b")
    assert figure.value == pytest.approx(150.0)  # 0.015 on one unit traded
    assert "15.0 bps were paid" in figure.meaning
    assert break_even_figures(report.assign(turnover=0.0), basis="b") == []


def test_a_column_that_is_always_better_is_named_and_its_order_lasts() -> None:
    columns = pd.DataFrame(NOISE, columns=[*"abcde", "static"])
    columns["a"] += 0.004
    figures, missing = comparison_figures(columns, reference="static", basis="b", seed=1)
    found = by_name(figures)
    assert missing == []
    assert found["PBO"].value < 0.05
    assert found["SPA p"].value < 0.01
    assert found["columns better by StepM"].shown == "a"


def test_columns_that_are_alike_are_not_told_apart() -> None:
    columns = pd.DataFrame(NOISE, columns=[*"abcde", "static"])
    found = by_name(comparison_figures(columns, reference="static", basis="b", seed=1)[0])
    assert found["SPA p"].value > 0.05
    assert found["columns better by StepM"].shown == "none"


def test_what_cannot_be_compared_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = pd.DataFrame(NOISE[:, :2], columns=["a", "b"])
    figures, missing = comparison_figures(columns, reference="static", basis="b", seed=1)
    assert [figure.name for figure in figures] == ["PBO"]
    assert [item.what for item in missing] == ["SPA and StepM"]
    _, missing = comparison_figures(columns[["a"]], reference="a", basis="b", seed=1)
    assert [item.what for item in missing] == ["PBO", "SPA and StepM"]

    def absent(*_: object, **__: object) -> None:
        raise MissingExtraError("arch")

    monkeypatch.setattr(evidence_figures, "superior_predictive_ability", absent)
    _, missing = comparison_figures(columns, reference="a", basis="b", seed=1)
    assert "arch is not installed" in missing[0].why


def test_the_strongest_of_noise_is_not_beyond_chance_and_a_real_one_is() -> None:
    (figure,), _ = search_figures(NOISE, basis="b")
    assert figure.value > 0.05
    (figure,), _ = search_figures(NOISE + 0.004, basis="b")
    assert figure.value < 0.01


def test_too_few_days_on_search_are_named() -> None:
    figures, (missing,) = search_figures(NOISE[:5], basis="b")
    assert figures == []
    assert "5 days" in missing.why
    assert search_figures(NOISE[:, :0], basis="b") == ([], [])
