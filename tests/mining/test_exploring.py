"""Proposers learn on explore; judge, the rest of search, stays unseen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.statistics import hac_t
from qlib_llm_alpha.evaluation.walls import SearchWindow
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.mining.admission import Rules
from qlib_llm_alpha.mining.candidates import Candidate, RandomProposer
from qlib_llm_alpha.mining.exploring import Found, cut, explore
from qlib_llm_alpha.mining.search import search
from tests.support.poison import poisoned

LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
WINDOW = SearchWindow(np.datetime64("2018-01-02"), np.datetime64("2019-12-31"))
FIELDS = ("$open", "$high", "$low", "$close", "$volume", "$change")
RULES = Rules(draws=400)
FORMULAS = [
    "1-$open/Ref($close,1)",
    "$close/Ref($close,5)-1",
    "$volume/Mean($volume,20)",
    "Std($change,20)",
    "($close-$low)/($high-$low)",
    "$close/Mean($close,20)-1",
]


class Listed:
    """Proposes a list, some at a time, and remembers what it was told."""

    name = "listed"
    adaptive = True

    def __init__(self, formulas: Sequence[str], batch: int = 2) -> None:
        self.left = [Candidate(parse(text), self.name) for text in formulas]
        self.batch = batch
        self.told: list[Sequence[Found]] = []

    def propose(self, count: int, history: Sequence[Found]) -> list[Candidate]:
        self.told.append(history)
        out, self.left = self.left[:count], self.left[count:]
        return out


@pytest.fixture(scope="module")
def market() -> Market:
    return simulate("planted", 40, "2017-06-01", "2020-06-30", 3)


@pytest.fixture(scope="module")
def data(market: Market) -> SearchData:
    panel = market_panel(market, end=WINDOW.end)
    return SearchData.of(panel, WINDOW, LABEL, universe="all", data="planted 3")


def test_the_cut_leaves_no_day_and_no_label_on_both_sides(data: SearchData) -> None:
    first, last = cut(data)
    assert first.panel.days[-1] == first.window.end < last.window.start
    # The label of explore's last scored day reads two days on, and those are still explore.
    assert first.days[-1] + 2 <= first.window.end
    assert first.rows.stop + LABEL.lookahead == len(first.panel.days)
    assert last.days[0] == last.window.start
    assert last.days[-1] == data.days[-1]
    assert 0.55 < len(first.days) / len(data.days) < 0.65
    assert set(first.days.tolist()) | set(last.days.tolist()) < set(data.days.tolist())


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001])
def test_a_cut_that_leaves_nothing_is_refused(data: SearchData, share: float) -> None:
    with pytest.raises(ConfigError, match="leaves explore or judge without days"):
        cut(data, share=share)


def test_rounds_go_on_until_the_list_or_the_trials_are_used_up(data: SearchData) -> None:
    first, _ = cut(data)
    everything = explore(Listed(FORMULAS), first, trials=50, rules=RULES)
    assert [one.candidate.expression.text for one in everything.found] == FORMULAS
    assert [one.round for one in everything.found] == [0, 0, 1, 1, 2, 2]
    some = explore(Listed(FORMULAS), first, trials=3, rules=RULES)
    assert len(some.found) == 3
    with pytest.raises(ConfigError, match="expected at least 1"):
        explore(Listed(FORMULAS), first, trials=0)


def test_a_repeat_costs_no_trial_and_two_barren_rounds_end_the_search(data: SearchData) -> None:
    first, _ = cut(data)
    same = explore(Listed([FORMULAS[0], FORMULAS[1]] * 5), first, trials=50, rules=RULES)
    assert (len(same.found), same.rounds, same.repeats) == (2, 3, 4)
    known = explore(Listed(FORMULAS), first, trials=50, rules=RULES, library=[parse(FORMULAS[0])])
    assert FORMULAS[0] not in [one.candidate.expression.text for one in known.found]


def test_fitness_is_the_hac_t_and_what_breaks_a_rule_has_none(data: SearchData) -> None:
    first, _ = cut(data)
    rules = replace(RULES, turnover=0.5, nodes=12)
    big = "($close-$low)/($high-$low)+($close-$open)/($high-$low)"
    found = explore(Listed([*FORMULAS, big], batch=9), first, trials=50, rules=rules).found
    by_reason = {one.candidate.expression.text: one.reason for one in found}
    assert by_reason[FORMULAS[0]] == "turnover"
    assert by_reason[big] == "complex"
    for one in found:
        if one.reason:
            assert math.isnan(one.fitness)
        else:
            assert one.daily is not None
            assert one.daily.rank_ic is not None
            assert one.fitness == abs(hac_t(one.daily.rank_ic))


def test_what_depends_on_the_base_of_the_adjustment_factor_has_no_fitness(data: SearchData) -> None:
    first, _ = cut(data)
    rules = replace(RULES, least_t=0.01)
    found = explore(Listed(["$close-$open", "$close/$open"], batch=2), first, trials=2, rules=rules).found
    assert [one.reason for one in found] == ["scale", ""]
    assert math.isnan(found[0].fitness)


def test_a_proposer_is_told_its_figures_none_or_those_of_others_and_never_a_series(data: SearchData) -> None:
    first, _ = cut(data)
    told = {}
    rules = replace(RULES, turnover=0.5)  # refuses some of them
    for feedback in ("true", "none", "shuffled"):
        proposer = Listed(FORMULAS, batch=5)
        result = explore(proposer, first, trials=6, rules=rules, feedback=feedback, seed=4)
        told[feedback] = proposer.told[1]
        assert all(one.daily is None for one in proposer.told[1])
        truth = [one.t for one in result.found[:5]]
    assert [one.t for one in told["true"]] == truth
    assert all(math.isnan(one.t) and not one.reason for one in told["none"])
    shuffled = [one.t for one in told["shuffled"]]
    assert sorted(shuffled) == sorted(truth)
    assert all(mine != own for mine, own in zip(shuffled, truth, strict=True))
    with pytest.raises(ConfigError, match="feedback is 'false'"):
        explore(Listed(FORMULAS), first, trials=6, feedback="false")  # type: ignore[arg-type]


def test_shuffled_feedback_of_a_formula_alone_in_its_round_is_that_of_an_earlier_one(data: SearchData) -> None:
    first, _ = cut(data)
    proposer = Listed(FORMULAS, batch=1)
    result = explore(proposer, first, trials=6, rules=RULES, feedback="shuffled", seed=4)
    told = proposer.told[-1]
    assert math.isnan(told[0].t)
    for place, one in enumerate(told[1:], start=1):
        assert one.t != result.found[place].t
        assert one.t in [earlier.t for earlier in result.found[:place]]


def test_what_comes_after_explore_changes_nothing_that_a_proposer_is_told(market: Market) -> None:
    told = []
    panel = market_panel(market, end=WINDOW.end)
    whole = SearchData.of(panel, WINDOW, LABEL, universe="all", data="x")
    last_day = cut(whole)[0].window.end
    for one in (panel, market_panel(poisoned(market, str(last_day)), end=WINDOW.end)):
        proposer = Listed(FORMULAS, batch=5)
        explore(proposer, cut(SearchData.of(one, WINDOW, LABEL, universe="all", data="x"))[0], trials=6, rules=RULES)
        told.append([(one.candidate.expression.id, one.t, one.turnover, one.coverage) for one in proposer.told[1]])
    assert told[0] == told[1]


def test_the_shortlist_is_the_fittest_and_every_trial_is_in_the_ledger(data: SearchData, tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path / "ledger")
    proposer = RandomProposer(FIELDS, seed=5)
    session = search(
        lambda first: proposer, data, trials=60, shortlist=10, rules=RULES, ledger=ledger, run="r", nulls=0
    )
    tried = session.exploration
    assert tried is not None
    fitness = sorted((one.fitness for one in tried.found if math.isfinite(one.fitness)), reverse=True)
    chosen = {one.id: one for one in session.admission.judged}
    assert (
        sorted((one.fitness for one in tried.found if one.candidate.expression.id in chosen), reverse=True)
        == (fitness[:10])
    )
    explored = {one.candidate.expression.id for one in tried.scored}
    assert explored == set(ledger.trials()["factor_id"])
    assert ledger.count() == len(explored) + len(session.admission.family)
    session.write(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "session.json").read_text())
    assert facts["exploration"]["trials"] == 60
    assert len(pd.read_parquet(tmp_path / "out" / "explored.parquet")) == 60
    assert "fittest of 60" in (tmp_path / "out" / "report.md").read_text()


def test_a_proposer_with_nothing_to_say_gives_an_empty_session(data: SearchData, tmp_path: Path) -> None:
    session = search(lambda first: Listed([]), data, trials=10, rules=RULES, nulls=2)
    assert session.factor_set is None
    session.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "session.json").read_text())["candidates"] == 0
