from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.funnel import screen
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.factor.expression import Call, Expression, parse
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.tree import walk
from qlib_llm_alpha.mining.profile import Profile, default_profile
from qlib_llm_alpha.mining.random_formulas import RandomFormulas

BARS = ["$open", "$high", "$low", "$close", "$volume"]
ALL_BARS = [*BARS, "$vwap", "$amount", "$change", "$industry"]
LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
# Small profiles make fast proposers; this one has cross-sections in every second formula.
SMALL = Profile.of(
    [
        parse("CSRank($close/Ref($close,5))"),
        parse("CSZScore($high/$low-1)"),
        parse("Mean($volume,20)/$volume"),
        parse("Std($close/Ref($close,1)-1,20)"),
    ]
)


@pytest.fixture(scope="module")
def proposed() -> list[Expression]:
    return RandomFormulas(BARS, seed=1).propose(400)


@pytest.fixture(scope="module")
def of_all_operators() -> list[Expression]:
    profile = replace(default_profile(), cross_sectional=0.5)
    return RandomFormulas(ALL_BARS, operators=OPERATORS, profile=profile, seed=2).propose(400)


@pytest.fixture(scope="module")
def panel() -> TiledPanel:
    return market_panel(simulate("noise", 40, "2018-01-02", "2019-12-31", 3))


def operators_of(formula: Expression) -> set[str]:
    return {node.op for node in walk(formula.root) if isinstance(node, Call)}


@pytest.mark.parametrize("source", ["proposed", "of_all_operators"])
def test_every_proposal_is_read_back_from_its_text_and_differs_from_all_others(
    source: str, request: pytest.FixtureRequest
) -> None:
    formulas = request.getfixturevalue(source)
    assert len(formulas) == 400
    assert all(parse(formula.text) == formula for formula in formulas)
    assert len({formula.id for formula in formulas}) == 400


@pytest.mark.parametrize("source", ["proposed", "of_all_operators"])
def test_no_value_changes_when_prices_and_volumes_of_an_instrument_are_rescaled(
    source: str, request: pytest.FixtureRequest, panel: TiledPanel
) -> None:
    # Powers of four: roots and sums of the rescaled bars are then exact.
    rng = np.random.default_rng(5)
    price, volume = (4.0 ** rng.integers(-2, 3, len(panel.instruments)) for _ in range(2))
    same = np.ones(len(price))
    scales = {"$volume": volume, "$amount": price * volume, "$change": same, "$industry": same}
    bars = {name: panel.untiled(panel.column(name).values).astype(np.float64) for name in ALL_BARS}
    rescaled = {name: values * scales.get(name, price) for name, values in bars.items()}
    formulas = request.getfixturevalue(source)
    one, two = (
        evaluate(formulas, TiledPanel.from_arrays(panel.days, panel.instruments, values)).values
        for values in (bars, rescaled)
    )
    known = np.isfinite(one) & np.isfinite(two)
    for formula, before, after, both in zip(formulas, one, two, known, strict=True):
        assert np.allclose(before[both], after[both], rtol=1e-5, atol=1e-7), formula.text
    # Qlib's Corr and Rsquare give no value where a deviation is below 2e-5, whatever the unit.
    same = (np.isfinite(one) == np.isfinite(two)).reshape(len(formulas), -1).all(axis=1)
    assert same.mean() > 0.99


@pytest.mark.parametrize("source", ["proposed", "of_all_operators"])
def test_nine_in_ten_proposals_tell_instruments_apart(
    source: str, request: pytest.FixtureRequest, panel: TiledPanel
) -> None:
    formulas = request.getfixturevalue(source)
    found = screen(formulas, panel, LABEL, warmup="strict", threads=1)
    useful = sum(one.passed and one.ic.days > 60 for one in found)
    assert useful > 0.85 * len(formulas)
    assert {one.reason for one in found} <= {"", "constant", "all_missing", "low_ic"}


def test_sizes_operators_and_numbers_follow_the_profile(proposed: list[Expression]) -> None:
    wanted, found = default_profile(), Profile.of(proposed)
    depths = [[depth for depth, _ in profile.shapes] for profile in (wanted, found)]
    nodes = [[nodes for _, nodes in profile.shapes] for profile in (wanted, found)]
    assert np.median(depths[1]) == pytest.approx(np.median(depths[0]), abs=1)
    assert np.median(nodes[1]) == pytest.approx(np.median(nodes[0]), abs=5)
    names = set(wanted.operators) | set(found.operators)
    distance = sum(abs(wanted.operators.get(name, 0) - found.operators.get(name, 0)) for name in names) / 2
    assert distance < 0.12
    assert set(found.windows) <= set(wanted.windows)
    assert found.cross_sectional == 0


def test_the_same_seed_gives_the_same_formulas_however_they_are_asked_for() -> None:
    whole = RandomFormulas(BARS, profile=SMALL, seed=7).propose(60)
    proposer = RandomFormulas(BARS, profile=SMALL, seed=7)
    assert [*proposer.propose(20), *proposer.propose(40)] == whole
    assert RandomFormulas(BARS, profile=SMALL, seed=8).propose(60) != whole


def test_what_is_known_is_not_proposed() -> None:
    known = {formula.id for formula in RandomFormulas(BARS, profile=SMALL, seed=7).propose(30)}
    again = RandomFormulas(BARS, profile=SMALL, seed=7).propose(30, known=known)
    assert len(again) == 30
    assert not known & {formula.id for formula in again}


def test_cross_sections_come_as_often_as_in_the_profile_at_most() -> None:
    formulas = RandomFormulas(BARS, profile=SMALL, seed=3).propose(300)
    assert 0.2 < sum(formula.is_cross_sectional for formula in formulas) / 300 < 0.56
    without = RandomFormulas(BARS, profile=SMALL, seed=3, cross_sectional=False).propose(50)
    assert not any(formula.is_cross_sectional for formula in without)


def test_fields_operators_and_windows_are_those_that_were_given() -> None:
    proposer = RandomFormulas(["$close", "$high"], operators=["Div", "Mean", "Std"], windows=(7, 11), seed=4)
    formulas = proposer.propose(40)
    assert {field for formula in formulas for field in formula.fields} == {"$close", "$high"}
    assert set().union(*map(operators_of, formulas)) == {"Div", "Mean", "Std"}
    assert set(Profile.of(formulas).windows) == {7, 11}


def test_groups_only_group(of_all_operators: list[Expression]) -> None:
    grouped = [formula for formula in of_all_operators if "$industry" in formula.fields]
    assert grouped
    groupers = {row.name for row in OPERATORS.values() if ("group", "group") in row.arguments}
    assert all(operators_of(formula) & groupers for formula in grouped)


def test_reports_and_fields_of_the_provider_may_be_asked_for() -> None:
    formulas = RandomFormulas(["$close", "$$eps_q", "$turn"], profile=SMALL, seed=5).propose(60)
    used = {field for formula in formulas for field in formula.fields}
    assert used == {"$close", "$$eps_q", "$turn"}
    assert all("P($$eps_q)" in formula.text for formula in formulas if "$$eps_q" in formula.fields)


def test_fewer_are_returned_and_the_log_says_so_when_there_are_no_more(caplog: pytest.LogCaptureFixture) -> None:
    proposer = RandomFormulas(["$open", "$close"], operators=["Div"], profile=SMALL, seed=6)
    with caplog.at_level(logging.WARNING):
        found = proposer.propose(100)
    assert 0 < len(found) < 100
    assert f"only {len(found)} of 100 formulas" in caplog.text
    assert proposer.propose(0) == []


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        (["$close"], {"operators": ["Mean"]}, "no plain ratio can be made"),
        ([], {}, "no plain ratio can be made"),
        (BARS, {"operators": ["Mean", "Average"]}, r"operators \['Average'\] are unknown"),
        (BARS, {"windows": ()}, "expected whole numbers of bars"),
        (BARS, {"windows": (0, 5)}, "expected whole numbers of bars"),
        (["close"], {}, "expected a sequence of columns"),
        ("$close", {}, "expected a sequence of columns"),
    ],
)
def test_what_cannot_make_a_formula_is_refused(fields: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RandomFormulas(fields, seed=0, **settings)


@settings(deadline=None, max_examples=8)
@given(
    st.integers(0, 10_000),
    st.sets(st.sampled_from(sorted(OPERATORS)), max_size=12),
    st.sets(st.sampled_from(ALL_BARS[1:])),
)
def test_no_choice_of_operators_and_fields_makes_proposing_fail(seed: int, names: set[str], fields: set[str]) -> None:
    proposer = RandomFormulas(
        ["$open", *sorted(fields)],
        operators={*names, "Div", "Ref"},
        profile=replace(SMALL, cross_sectional=1.0),
        seed=seed,
    )
    formulas = proposer.propose(20)
    assert formulas
    assert all(formula.lookahead == 0 for formula in formulas)
    assert set().union(*map(operators_of, formulas)) <= {*names, "Div", "Ref"}
