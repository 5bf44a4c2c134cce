from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.errors import ConfigError, LibraryError, WallError
from qlib_llm_alpha.evaluation.ledger import TrialLedger
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.library.factor_set import load_factor_set
from qlib_llm_alpha.mining.admission import Rules
from qlib_llm_alpha.mining.candidates import Candidate, listed_candidates, random_candidates
from qlib_llm_alpha.mining.session import Session, mine, read_tune
from tests.support.poison import poisoned

LABEL = parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)
WALLS = Walls.from_segments({"train": ["2018-01-02", "2019-12-31"], "valid": ["2020-01-02", "2020-06-30"]})
RULES = Rules(draws=400)
FIELDS = ("$open", "$high", "$low", "$close", "$volume", "$change")


@pytest.fixture(scope="module")
def market() -> Market:
    return simulate("planted", 60, "2017-06-01", "2020-06-30", 3)


def searched(market: Market) -> SearchData:
    panel = market_panel(market, end=WALLS.search.end)
    return SearchData.of(panel, WALLS.search, LABEL, universe="csi300", data="planted 3")


def session_of(market: Market, ledger: TrialLedger | None = None, trials: int = 60) -> Session:
    candidates = [*listed_candidates("classic"), *random_candidates(trials, FIELDS, seed=2)]
    return mine(candidates, searched(market), rules=RULES, ledger=ledger, run="session", seed=1, nulls=5)


@pytest.fixture(scope="module")
def session(market: Market, tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, TrialLedger]:
    ledger = TrialLedger(tmp_path_factory.mktemp("ledger"))
    return session_of(market, ledger), ledger


def test_every_scored_candidate_is_in_the_ledger_with_its_daily_ic(session: tuple[Session, TrialLedger]) -> None:
    found, ledger = session
    assert ledger.count() == len(found.admission.family) == found.basis.trials
    assert ledger.series().shape == (len(found.days), len(found.admission.family))
    np.testing.assert_array_equal(ledger.series().to_numpy(), found.admission.series())
    trials = ledger.trials()
    assert set(trials["proposer"]) == {"random", *(factor.origin for factor in load_factor_set("classic").factors)}
    assert set(trials["verdict"]) <= {"admitted", "rejected"}
    assert ledger.verify() == []


def test_a_second_session_of_the_same_trials_adds_none(session: tuple[Session, TrialLedger], market: Market) -> None:
    _, ledger = session
    before = ledger.count()
    session_of(market, ledger)
    assert ledger.count() == before


def test_the_folder_holds_the_session_and_is_not_overwritten(
    session: tuple[Session, TrialLedger], tmp_path: Path
) -> None:
    found, _ = session
    found.write(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "session.json").read_text())
    assert facts["candidates"] == len(found.admission.judged)
    assert facts["basis"]["trials"] == facts["scored"]
    assert facts["admitted"] == len(found.admission.admitted)
    assert sum(facts["reasons"].values()) == facts["candidates"]
    verdicts = pd.read_parquet(tmp_path / "out" / "verdicts.parquet")
    assert len(verdicts) == facts["candidates"]
    assert (verdicts["detail"][verdicts["verdict"] == "rejected"] != "").all()
    series = pd.read_parquet(tmp_path / "out" / "series.parquet")
    assert series.shape == (len(found.days), facts["scored"])
    if found.factor_set is not None:
        assert load_factor_set(tmp_path / "out" / "library.yaml") == found.factor_set
    with pytest.raises(ConfigError, match="holds a session"):
        found.write(tmp_path / "out")
    (tmp_path / "file").write_text("taken")
    with pytest.raises(ConfigError, match="is a file"):
        found.write(tmp_path / "file")
    with pytest.raises(ConfigError, match="holds other things"):
        found.write(tmp_path)


def test_figures_of_the_session_are_there_and_make_sense(session: tuple[Session, TrialLedger]) -> None:
    found, _ = session
    facts = found.to_dict()
    assert 0 <= facts["pbo"] <= 1
    assert 0 <= facts["deflated_sharpe"]["probability"] <= 1
    # Both directions of every candidate are tried, and what resembles each other counts less.
    assert 1 < facts["deflated_sharpe"]["trials"] <= 2 * facts["scored"] * 1.3
    assert 1 < facts["effective_trials"] <= facts["scored"] * 1.3
    for credit in (found.shuffled, found.shifted):
        assert credit is not None
        assert credit.draws == 5
        assert credit.gain > 0
    assert "csi300 (members of the day)" in found.report()


def test_candidates_given_are_held_against_random_formulas_that_are_neither_admitted_nor_counted(
    market: Market, tmp_path: Path
) -> None:
    ledger = TrialLedger(tmp_path)
    given = listed_candidates("classic")
    found = mine(given, searched(market), rules=RULES, null_fields=FIELDS, ledger=ledger, nulls=0)
    assert found.random is not None
    assert found.random.draws == 19
    assert "of the same turnover" in found.random.null_name
    assert found.random.p < 0.3, "one of them is planted"
    assert found.shifted is found.shuffled is None
    assert ledger.count() == len(found.admission.family) <= len(given)
    assert {one.candidate.proposer for one in found.admission.judged} == {one.proposer for one in given}


def test_random_proposals_have_no_random_null(market: Market) -> None:
    proposed = random_candidates(15, FIELDS, seed=2)
    assert mine(proposed, searched(market), rules=RULES, null_fields=FIELDS, nulls=0).random is None


def test_trials_of_other_runs_on_the_same_data_deflate_the_sharpe_ratio(market: Market, tmp_path: Path) -> None:
    ledger = TrialLedger(tmp_path)
    first = mine(listed_candidates("classic"), searched(market), rules=RULES, ledger=ledger, nulls=0)
    mine(random_candidates(60, FIELDS, seed=2), searched(market), rules=RULES, ledger=ledger, nulls=0)
    again = mine(listed_candidates("classic"), searched(market), rules=RULES, ledger=ledger, nulls=0)
    assert first.other_trials == 0
    assert again.other_trials == ledger.count() - len(again.admission.family) > 20
    assert again.deflated["trials"] > first.deflated["trials"]
    assert again.deflated["probability"] < first.deflated["probability"]
    assert again.deflated["formula"] == first.deflated["formula"]


def test_a_label_of_many_days_gets_longer_blocks_and_a_ratio_of_days_that_share_nothing(market: Market) -> None:
    label = parse("Ref($close,-11)/Ref($close,-1)-1", allow_future=True)
    panel = market_panel(market, end=WALLS.search.end)
    data = SearchData.of(panel, WALLS.search, label, universe="csi300", data="planted 3")
    found = mine(listed_candidates("classic"), data, rules=RULES, nulls=3)
    assert found.shuffled is None
    assert found.shifted is not None
    assert found.shifted.draws == 3
    assert found.admission.null is not None
    assert found.admission.null.blocks == -(-len(data.days) // 22)
    assert 0 <= found.pbo <= 1
    assert np.isfinite(found.deflated["probability"])


def test_nothing_after_search_moves_a_verdict_by_a_bit(market: Market) -> None:
    day = str(WALLS.search.end)
    clean, other = session_of(market), session_of(poisoned(market, day))
    assert clean.factor_set == other.factor_set
    assert clean.report() == other.report()
    pd.testing.assert_frame_equal(clean.table(), other.table(), check_exact=True)
    np.testing.assert_array_equal(clean.admission.series(), other.admission.series())


def test_tune_is_read_for_admitted_factors_and_nothing_later(market: Market) -> None:
    found = session_of(market)
    chosen = found.admission.judged[:3]
    panel = market_panel(market, end="2020-06-30")
    cards = read_tune(chosen, panel, WALLS, LABEL)
    assert [card.factor_id for card in cards] == [one.id for one in chosen]
    assert all(card.segment == "valid" and card.start >= "2020-01-02" for card in cards)
    assert read_tune((), panel, WALLS, LABEL) == ()
    shorter = Walls.from_segments({"train": ["2018-01-02", "2019-12-31"], "valid": ["2020-01-02", "2020-03-31"]})
    with pytest.raises(WallError, match="no later bars"):
        read_tune(chosen, panel, shorter, LABEL)


@pytest.mark.parametrize("formulas", [[], ["$close/$close"]])
def test_a_session_without_a_score_admits_nothing_and_is_written(
    market: Market, tmp_path: Path, formulas: list[str]
) -> None:
    candidates = [Candidate(parse(text), "human") for text in formulas]
    found = mine(candidates, searched(market), rules=RULES, null_fields=FIELDS, ledger=TrialLedger(tmp_path / "ledger"))
    found.write(tmp_path / "out")
    assert pd.read_parquet(tmp_path / "out" / "series.parquet").shape == (len(found.days), 0)
    assert (tmp_path / "out" / "session.json").exists()
    assert found.factor_set is None
    assert found.to_dict()["run_p"] is None
    assert f"{len(formulas)} candidates, 0 with an IC" in found.report()


def test_candidates_from_a_text_are_human_and_bad_lines_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("fade: 1-$open/Ref($close,1)\n# a note\n$close/Ref($close,3)\n")
    first, second = listed_candidates(str(file))
    assert (first.name, first.proposer) == ("fade", "human")
    assert (second.name, second.proposer) == ("", "human")
    file.write_text("Delta($close,-5)\n$close/$open\n")
    with pytest.raises(LibraryError, match="1 of 2 formulas are refused"):
        listed_candidates(str(file))


def test_random_candidates_use_the_fields_there_are_and_repeat_nothing_known() -> None:
    found = random_candidates(30, FIELDS, seed=4)
    assert len({one.expression.id for one in found}) == 30
    assert {field for one in found for field in one.expression.fields} <= set(FIELDS)
    again = random_candidates(30, FIELDS, seed=4, known={found[0].expression.id})
    assert found[0].expression.id not in {one.expression.id for one in again}
    assert random_candidates(0, FIELDS, seed=4) == []
