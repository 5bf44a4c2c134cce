from __future__ import annotations

import numpy as np
import pytest

from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.mining.value_check import ComputedValues
from tests.mining.test_admission import DAYS, NAMES, calendar, data_of, market


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("$close/Ref($close,5)-1", None),
        ("CSRank($volume/Mean($volume,20))", None),
        ("Log(-1*$volume/Mean($volume,20))", "all_missing"),
        ("Sqrt($low/$high-1)", "all_missing"),
        ("Sign($volume)", "constant"),
        ("CSQuantile($close/Ref($close,1),0.5)", "constant"),
        ("$close/Ref($close,250)-1", "coverage"),
    ],
)
def test_what_has_no_use_is_told_apart_from_what_has(formula: str, reason: str | None) -> None:
    (problem,) = ComputedValues(data_of(market()))([parse(formula)])
    assert (None if problem is None else problem[0]) == reason


def test_what_seldom_tells_instruments_apart_is_named_with_a_rough_share() -> None:
    day = np.arange(DAYS)[:, None]
    volume = np.where(day % 2 == 0, 1e6, 1e6 + np.arange(NAMES)[None, :])
    close = np.full((DAYS, NAMES), 10.0) + np.random.default_rng(0).normal(0, 1, (DAYS, NAMES)) ** 2
    codes = [f"SH{600000 + number}" for number in range(NAMES)]
    panel = TiledPanel.from_arrays(calendar(DAYS), codes, {"$close": close, "$volume": volume})
    (problem,) = ComputedValues(data_of(panel))([parse("CSDemean($volume/1000000)")])
    assert problem == ("variation", "it tells instruments apart on about 50 % of the days only")


def test_formulas_are_judged_one_by_one_and_in_order() -> None:
    check = ComputedValues(data_of(market()))
    good, bad = parse("$close/$open"), parse("Sign($volume)")
    assert [one and one[0] for one in check([bad, good, bad])] == ["constant", None, "constant"]
    assert check([]) == []


def test_no_label_is_read() -> None:
    panel = market()
    other = SearchData.of(
        panel,
        data_of(panel).window,
        parse("Ref($open,-2)/Ref($open,-1)-1", allow_future=True),
        universe="all",
        data="test",
    )
    formula = parse("$close/Ref($close,150)-1")
    assert ComputedValues(data_of(panel))([formula]) == ComputedValues(other)([formula])


def test_what_cannot_be_computed_is_a_problem_and_no_crash() -> None:
    (problem,) = ComputedValues(data_of(market()))([parse("$vwap/$close")])
    assert problem is not None
    assert problem[0] == "failed"
    assert "$vwap" in problem[1]
