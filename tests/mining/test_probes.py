from __future__ import annotations

import numpy as np
import pytest

from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.mining.probes import future_changes, scale_changes


@pytest.fixture(scope="module")
def panel() -> TiledPanel:
    rng = np.random.default_rng(0)
    days, names = 300, 40
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, (days, names)), axis=0))
    volume = np.exp(rng.normal(14, 0.5, (days, names)))
    close[rng.random(close.shape) < 0.02] = np.nan
    fields = {
        "$close": close,
        "$open": close * 1.01,
        "$high": close * 1.02,
        "$low": close * 0.97,
        "$vwap": close * 1.001,
        "$volume": volume,
        "$amount": volume * close,
        "$change": np.vstack([np.full((1, names), np.nan), close[1:] / close[:-1] - 1]),
    }
    member = rng.random((days, names)) < 0.9
    codes = [f"SZ{number:06d}" for number in range(names)]
    return TiledPanel.from_arrays(np.datetime64("2020-01-01", "D") + np.arange(days), codes, fields, member=member)


def test_a_formula_of_the_past_does_not_change_with_the_future(panel: TiledPanel) -> None:
    past = [parse(text) for text in ("$close/Ref($close,5)", "EMA($close,10)/$close", "Mean(CSRank($change),5)")]
    assert future_changes(past, panel, cuts=[120, 200]) == [None, None, None]


def test_a_formula_that_reads_one_later_bar_is_caught_with_the_place(panel: TiledPanel) -> None:
    leak = parse("Ref($close,-1)/$close", allow_future=True)
    honest, found = future_changes([parse("$close/$open"), leak], panel, cuts=[150])
    assert honest is None
    assert found is not None
    assert found.day == str(panel.days[150])
    assert found.before != found.after


def test_a_leak_far_ahead_is_caught_where_the_cut_is_near_enough(panel: TiledPanel) -> None:
    leak = parse("Ref($close,-30)/$close", allow_future=True)
    found = future_changes([leak], panel, cuts=[150])[0]
    assert found is not None
    assert found.day == str(panel.days[121])


def test_ratios_and_amounts_keep_their_value_with_another_base(panel: TiledPanel) -> None:
    ratios = [
        parse(text, units="warn")
        for text in (
            "$close/Ref($close,5)-1",
            "$volume/Mean($volume,20)",
            "$amount/($close*$volume)",
            "Corr($close,$volume,20)",
            "Std($close,10)/$close",
            "CSRank($change)",
            "Abs($change)/$amount",
            "Log($close*$volume)",
        )
    ]
    assert scale_changes(ratios, panel) == [None] * len(ratios)


@pytest.mark.parametrize(
    "formula", ["$close", "Log($volume)", "CSRank($close)", "1/$close", "$amount/$close", "Cov($close,$change,5)"]
)
def test_what_depends_on_the_base_of_adjustment_is_caught(formula: str, panel: TiledPanel) -> None:
    found = scale_changes([parse(formula, units="warn")], panel)[0]
    assert found is not None
    assert found.before != pytest.approx(found.after, rel=1e-3)


def test_no_factor_of_the_scale_free_library_is_caught_by_either(panel: TiledPanel) -> None:
    have = {"$close", "$open", "$high", "$low", "$vwap", "$volume", "$amount", "$change"}
    factors = [one for one in load_factor_set("starter").factors if set(one.expression.fields) <= have]
    factors += [one for one in load_factor_set("classic").factors if set(one.expression.fields) <= have]
    formulas = [one.expression for one in factors]
    assert len(formulas) > 15
    for experiment in (scale_changes(formulas, panel), future_changes(formulas, panel, cuts=[150])):
        assert {one.name: change for one, change in zip(factors, experiment, strict=True) if change is not None} == {}


def test_the_panel_itself_is_left_as_it_was(panel: TiledPanel) -> None:
    before = panel.column("$close").values.copy()
    future_changes([parse("$close/$open")], panel, cuts=[10])
    scale_changes([parse("$close/$open")], panel)
    np.testing.assert_array_equal(panel.column("$close").values, before)
