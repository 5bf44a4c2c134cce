from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.mining.admission import Rules
from qlib_llm_alpha.mining.candidates import RandomProposer
from qlib_llm_alpha.mining.compare import SCRIPTED, Comparison, Cost, Entry, Row, compare
from qlib_llm_alpha.mining.exploring import Feedback, Proposer
from qlib_llm_alpha.mining.genetic import GeneticProposer
from qlib_llm_alpha.mining.search import search
from qlib_llm_alpha.mining.session import Session

LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
FIELDS = ("$open", "$high", "$low", "$close", "$volume", "$change")
RULES = Rules(draws=400)
ROW = Row(
    proposer="genetic",
    feedback="true",
    seed=3,
    scripted=False,
    trials=200,
    repeats=4,
    refused=11,
    explore_t=4.321,
    shortlisted=50,
    admitted=2,
    judge_rank_ic=0.0312,
    judge_t=5.5,
    adjusted_p=0.0025,
    run_p=0.0025,
    calls=0,
    tokens=0,
    usd=0.0,
    seconds=12.34,
)


def searched(seed: int, end: str = "2019-12-31") -> SearchData:
    walls = Walls.from_segments({"train": ["2018-01-02", end]})
    panel = market_panel(simulate("noise", 30, "2017-06-01", end, seed))
    return SearchData.of(panel, walls.search, LABEL, universe="all", data="noise", threads=1)


@pytest.fixture(scope="module")
def data() -> SearchData:
    return searched(5)


def session_of(
    proposer: Callable[[], Proposer], data: SearchData, *, trials: int = 40, feedback: Feedback = "true"
) -> Session:
    return search(
        lambda explore: proposer(),
        data,
        trials=trials,
        shortlist=15,
        feedback=feedback,
        rules=RULES,
        seed=1,
        nulls=0,
        threads=1,
    )


def random() -> Proposer:
    return RandomProposer(FIELDS, seed=1)


def genetic() -> Proposer:
    return GeneticProposer(FIELDS, seed=1, batch=10)


@pytest.fixture(scope="module")
def comparison(data: SearchData) -> Comparison:
    return compare(
        [
            Entry("random", lambda: session_of(random, data)),
            Entry("genetic", lambda: session_of(genetic, data), feedback="true", seed=1),
            Entry("genetic", lambda: session_of(genetic, data, feedback="none"), feedback="none", seed=1),
            Entry(
                "llm",
                lambda: session_of(random, data),
                feedback="true",
                scripted=True,
                cost=lambda: Cost(calls=7, tokens=1234, usd=None),
            ),
        ]
    )


def test_every_search_is_one_row_with_as_many_trials(comparison: Comparison) -> None:
    assert [row.proposer for row in comparison.rows] == ["random", "genetic", "genetic", "llm"]
    assert [row.feedback for row in comparison.rows] == ["-", "true", "none", "true"]
    assert {row.trials for row in comparison.rows} == {40}
    assert comparison.equal_trials
    assert all(row.shortlisted <= 15 for row in comparison.rows)


def test_a_row_says_what_its_session_says(data: SearchData) -> None:
    session = session_of(genetic, data)
    row = Row.of(Entry("genetic", lambda: session, feedback="true"), session, seconds=1.5)
    tried = session.exploration
    assert tried is not None
    facts, table = session.to_dict(), session.table().sort_values(["adjusted_p", "t"])
    assert row.admitted == facts["admitted"]
    assert row.run_p == facts["run_p"]
    assert row.shortlisted == facts["candidates"]
    assert row.adjusted_p == table["adjusted_p"].min()
    assert row.judge_t in set(table["t"])
    assert row.explore_t == max(one.fitness for one in tried.found if one.fitness == one.fitness)
    assert row.refused == sum(bool(one.reason) for one in tried.found)
    assert (row.calls, row.tokens, row.usd, row.seconds) == (0, 0, 0.0, 1.5)


def test_a_scripted_model_is_called_scripted_and_no_llm_is_judged_by_it(comparison: Comparison) -> None:
    text = comparison.to_markdown()
    assert f"| llm ({SCRIPTED}) | true |" in text
    assert SCRIPTED == "scripted, not an LLM"
    assert "says nothing about language models" in comparison.statement
    assert "when it was trained" not in comparison.statement  # no real model took part
    assert comparison.to_dict()["rows"][3]["scripted"] is True


def test_controls_explain_what_feedback_is_worth(comparison: Comparison) -> None:
    assert "only what its row with true feedback has beyond those without" in comparison.statement
    assert "feedback" not in Comparison((ROW,)).statement


def test_the_table_has_a_cell_for_every_heading() -> None:
    lines = Comparison((replace(ROW, usd=None), replace(ROW, judge_t=math.nan)), "label x").to_markdown().splitlines()
    heading = lines[0].replace("\\|", "")
    assert heading.count("|") == lines[1].count("|") == lines[2].count("|") == lines[3].count("|")
    assert lines[2] == (
        "| genetic | true | 3 | 200 | 4 | 11 | 4.32 | 50 | 2 | +0.0312 | +5.50 | 0.0025 | 0.0025 | 0 | 0 | not known "
        "| 12.3 |"
    )
    assert "| +0.0312 |  | 0.0025 |" in lines[3]
    assert "On judge: label x." in lines


def test_json_holds_the_same_and_no_nan() -> None:
    text = Comparison((replace(ROW, judge_rank_ic=math.nan),), "label x").to_json()
    assert "NaN" not in text
    facts = json.loads(text)
    assert facts["rows"][0]["judge_rank_ic"] is None
    assert facts["rows"][0]["explore_t"] == 4.321
    assert facts["statement"].startswith("Each row is one search")


def test_unequal_trials_are_said_aloud() -> None:
    comparison = Comparison((ROW, replace(ROW, trials=150)))
    assert not comparison.equal_trials
    assert "NOT equal (150 to 200)" in comparison.statement
    assert Comparison((ROW, replace(ROW, trials=199))).equal_trials


def test_a_real_model_may_have_read_about_the_days() -> None:
    assert "when it was trained" in Comparison((replace(ROW, calls=9),)).statement


def test_progress_is_told_after_each_search(data: SearchData) -> None:
    session, told = session_of(random, data), []
    compare(
        [Entry("one", lambda: session), Entry("two", lambda: session)],
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 2), (2, 2)]


def test_searches_of_other_days_or_without_counted_trials_are_not_compared(data: SearchData) -> None:
    session = session_of(random, data)
    other = session_of(random, searched(5, end="2019-11-29"))
    with pytest.raises(ConfigError, match="give every search the same data"):
        compare([Entry("one", lambda: session), Entry("two", lambda: other)])
    with pytest.raises(ConfigError, match="has no exploration"):
        compare([Entry("one", lambda: replace(session, exploration=None))])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([])
