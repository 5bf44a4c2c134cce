from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlib_llm_alpha.errors import LLMFailure
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.llm.request import Request
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.exploring import Found, Proposer, explore
from qlib_llm_alpha.mining.knowledge import KnowledgeBase
from qlib_llm_alpha.mining.llm_proposer import LLMProposer, rough_figures
from qlib_llm_alpha.mining.value_check import ComputedValues
from tests.mining.documents import COMPANY, document, factory, view_of
from tests.mining.fake_client import Answer, FakeClient
from tests.mining.test_admission import RULES, data_of, market
from tests.support.scripted_model import LESSON, answer_request

SEEDS = """Factor idea: moves go back
Category: mean_reversion
Formula: $close/Ref($close,5)-1
Formula: $open/$close-1
Formula: $volume/Mean($volume,20)
"""
DAY = "2019-12-31"
IMAGE = b"\x89PNG planted"


def proposer(
    folder: Path, answer: Answer = answer_request, *, text: str = SEEDS, private: bool = False, **settings: Any
) -> tuple[LLMProposer, FakeClient]:
    client = FakeClient(answer)
    view = view_of(folder, document(text, private=private))
    knowledge = KnowledgeBase(folder / "knowledge.sqlite")
    return LLMProposer(factory(client, folder), view, knowledge, day=DAY, **settings), client


def texts(candidates: list[Candidate]) -> list[str]:
    return [one.expression.text for one in candidates]


def scored(candidates: list[Candidate], t: float = 2.2, number: int = 0, **figures: Any) -> list[Found]:
    """Return results of a round, all with about the same figures."""
    told = {"fitness": abs(t), "t": t, "rank_ic": 0.025, "turnover": 0.31, "coverage": 0.97, "round": number}
    return [Found(one, **{**told, **figures}) for one in candidates]


def inventive(request: Request) -> str | LLMFailure:
    """Propose a new formula in each round: the window is the number of formulas that are known."""
    text = request.messages[-1].text
    if request.purpose != "generate" or "No documents in this round." not in text:
        return answer_request(request)
    known = text.split("Known already:\n")[1].split("\n\n")[0].splitlines()
    one = {
        "name": "calm",
        "category": "volatility",
        "formula": f"Std($close/Ref($close,1),{10 * len(known)})/Mean($high/$low,{5 * len(known)})",
        "rationale": "calm stocks rise",
        "expected_sign": "negative",
        "horizon_days": 5,
        "evidence": [],
    }
    return json.dumps({"candidates": [one]})


def run(one: LLMProposer, t: list[float], count: int = 20) -> list[list[str]]:
    """Let a proposer work as the engine does, the best of each round having the t given; return the rounds."""
    history: list[Found] = []
    rounds: list[list[str]] = []
    for number in range(20):
        found = one.propose(count, tuple(history))
        if not found:
            break
        rounds.append(texts(found))
        history += scored(found, t[min(number, len(t) - 1)], number)
    return rounds


def test_it_is_a_proposer_named_after_its_model(tmp_path: Path) -> None:
    one, _ = proposer(tmp_path)
    port: Proposer = one
    assert (port.name, port.adaptive, port.batch) == ("scripted", True, 20)


def test_the_first_round_is_what_the_documents_hold(tmp_path: Path) -> None:
    one, client = proposer(tmp_path)
    assert texts(one.propose(20, ())) == [
        "$close/Ref($close,5)-1",
        "$open/$close-1",
        "$volume/Mean($volume,20)",
    ]
    assert client.steps == ["filter", "categorise", "generate"]


def test_what_does_not_fit_a_round_comes_in_the_next_without_asking(tmp_path: Path) -> None:
    one, client = proposer(tmp_path)
    first = one.propose(2, ())
    asked = len(client.asked)
    second = one.propose(2, scored(first))
    assert len(first) == 2
    assert texts(second) == ["$volume/Mean($volume,20)"]
    assert len(client.asked) == asked


def test_a_model_that_finds_nothing_new_ends_the_search(tmp_path: Path) -> None:
    one, client = proposer(tmp_path)
    assert len(run(one, [2.0])) == 1
    assert client.steps[-2:] == ["review", "generate"]


def test_results_are_reviewed_and_the_lesson_is_in_the_next_prompt(tmp_path: Path) -> None:
    one, client = proposer(tmp_path, inventive)
    run(one, [2.0, 3.0, 4.0, 4.0])
    first, second = client.of("review")[:2]
    assert "- $open/$close-1 | t 2, correlation clear, values 100 %, turnover 30 %" in first.messages[-1].text
    assert "t 3," in second.messages[-1].text
    assert LESSON in second.messages[-1].text
    assert LESSON in client.of("generate")[1].messages[-1].text


def test_rounds_end_when_the_best_has_stopped_getting_better(tmp_path: Path) -> None:
    one, _ = proposer(tmp_path / "flat", inventive)
    assert len(run(one, [3.0])) == 3
    rising, _ = proposer(tmp_path / "rising", inventive)
    assert len(run(rising, [2.0, 3.0, 4.0, 5.0, 5.0])) == 6


def test_rounds_end_at_their_number(tmp_path: Path) -> None:
    one, _ = proposer(tmp_path, inventive, rounds=2)
    assert len(run(one, [1.0, 2.0, 3.0, 4.0, 5.0])) == 3


def test_a_control_that_is_told_nothing_goes_on_all_the_same(tmp_path: Path) -> None:
    one, client = proposer(tmp_path, inventive, rounds=4)
    history: list[Found] = []
    while found := one.propose(20, tuple(history)):
        history += [Found(candidate) for candidate in found]
    assert len(client.of("review")) == 4
    assert "| not told" in client.of("review")[0].messages[-1].text


def test_only_the_history_that_is_handed_over_is_used(tmp_path: Path) -> None:
    one, client = proposer(tmp_path, inventive)
    first = one.propose(20, ())
    one.propose(20, scored(first[:1], 2.7))
    (review,) = client.of("review")
    assert first[0].expression.text in review.messages[-1].text
    assert first[1].expression.text not in review.messages[-1].text


def test_prompts_hold_no_exact_figure_and_do_not_move_with_the_last_digits(tmp_path: Path) -> None:
    asked = []
    for name, jitter in (("one", 1.0), ("two", 1.0 + 1e-6)):
        one, client = proposer(tmp_path / name, inventive)
        seeds = one.propose(20, ())
        found = scored(
            seeds, 2.31 * jitter, rank_ic=0.0234 * jitter, turnover=0.3145 * jitter, coverage=0.9712 * jitter
        )
        one.propose(20, found)
        asked.append([request.canonical for request in client.asked])
        for figure in ("2.31", "0.0234", "0.3145", "0.9712", "0.31", "0.97"):
            assert all(figure not in request.messages[-1].text for request in client.of("review"))
    assert asked[0] == asked[1]


def test_another_result_changes_the_next_prompt(tmp_path: Path) -> None:
    keys = []
    for name, t in (("one", 2.0), ("two", -5.0)):
        one, client = proposer(tmp_path / name, inventive)
        one.propose(20, scored(one.propose(20, ()), t))
        keys.append(client.of("review")[0].key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({}, "t 2, correlation clear, values 100 %, turnover 30 %"),
        ({"t": -7.6, "rank_ic": -0.05}, "t -8, correlation strong, values 100 %, turnover 30 %"),
        ({"rank_ic": 0.004}, "t 2, correlation none, values 100 %, turnover 30 %"),
        ({"rank_ic": -0.015}, "t 2, correlation weak, values 100 %, turnover 30 %"),
        ({"reason": "coverage", "detail": "43.21% have one"}, "refused: too few members have a value"),
        ({"fitness": float("nan"), "t": float("nan")}, "not told"),
    ],
)
def test_figures_are_told_roughly(figures: dict[str, Any], words: str) -> None:
    (found,) = scored([Candidate(parse("$close/$open"), "scripted")], **figures)
    assert rough_figures(found) == words


def test_a_formula_that_hardly_differs_is_not_proposed_again(tmp_path: Path) -> None:
    twin = SEEDS + "Formula: -1+$close/Ref($close,5)\nFormula: $open/$close-1.0\n"
    one, _ = proposer(tmp_path, text=twin)
    assert len(one.propose(20, ())) == 3
    assert [lost.reason for lost in one.rejections] == ["duplicate", "duplicate"]


def test_a_long_formula_with_one_window_moved_is_a_near_duplicate(tmp_path: Path) -> None:
    long = "Corr($close/Ref($close,1),$volume/Mean($volume,20),10)+Corr($open/Ref($open,1),$volume/Mean($volume,20),10)"
    moved = long[::-1].replace("01", "11", 1)[::-1]
    one, _ = proposer(tmp_path, text=SEEDS + f"Formula: {long}\nFormula: {moved}\n")
    assert len(one.propose(20, ())) == 4
    assert "hardly different" in one.rejections[-1].detail


def test_lessons_are_known_from_the_last_day_of_explore_on(tmp_path: Path) -> None:
    one, _ = proposer(tmp_path, inventive)
    run(one, [3.0])
    knowledge = KnowledgeBase(tmp_path / "knowledge.sqlite")
    assert knowledge.as_of("2019-12-30").lessons == ()
    kept = knowledge.as_of(DAY).lessons
    assert {lesson.first_known_at for lesson in kept} == {DAY}
    assert any(lesson.lesson == LESSON and lesson.calls for lesson in kept)
    assert any(lesson.formula == "$open/$close-1" and lesson.score == 3 for lesson in kept)


def test_lessons_of_a_later_day_never_reach_a_prompt(tmp_path: Path) -> None:
    keys = []
    for name, entered in (("with", True), ("without", False)):
        one, client = proposer(tmp_path / name, inventive)
        if entered:
            other, _ = proposer(tmp_path / "other", inventive)
            run(other, [3.0])
            (lesson, *_) = KnowledgeBase(tmp_path / "other" / "knowledge.sqlite").as_of(DAY).lessons
            later = replace(lesson, first_known_at="2020-01-01", session="later", lesson="buy everything")
            KnowledgeBase(tmp_path / name / "knowledge.sqlite").add([later])
        run(one, [3.0])
        keys.append([request.key for request in client.asked])
    assert keys[0] == keys[1]


def test_a_session_that_starts_again_asks_what_it_asked_before(tmp_path: Path) -> None:
    first, client = proposer(tmp_path, inventive)
    rounds = run(first, [2.0, 3.0, 3.0])
    again, second = proposer(tmp_path, inventive)
    assert run(again, [2.0, 3.0, 3.0]) == rounds
    assert {request.key for request in second.asked} <= {request.key for request in client.asked}


@pytest.mark.parametrize("step", ["review", "generate"])
def test_a_round_without_an_answer_is_a_rejection_and_no_crash(tmp_path: Path, step: str) -> None:
    def answer(request: Request) -> str | LLMFailure:
        later = "What earlier rounds taught" in request.messages[-1].text and "D1" not in request.messages[-1].text
        if request.purpose == step and later:
            return LLMFailure("refusal", "it will not")
        return inventive(request)

    one, _ = proposer(tmp_path, answer)
    assert len(run(one, [3.0])) == (3 if step == "review" else 1)
    assert (one.rejections[-1].step, one.rejections[-1].reason) == (step, "no_answer")


def test_a_lesson_that_names_a_company_or_a_year_is_masked_before_it_goes_out(tmp_path: Path) -> None:
    def gossips(request: Request) -> str | LLMFailure:
        if request.purpose == "review":
            lesson = f"{COMPANY} fell on 2015-06-12 with SH600519"
            return json.dumps({"lesson": lesson, "keep_directions": [], "drop_directions": []})
        return inventive(request)

    one, client = proposer(tmp_path, gossips)
    assert len(run(one, [3.0])) == 3
    for request in client.asked:
        for word in (COMPANY, "2015", "600519"):
            assert word not in request.messages[-1].text


def test_rounds_are_private_when_a_document_is(tmp_path: Path) -> None:
    one, client = proposer(tmp_path / "private", inventive, private=True)
    run(one, [3.0])
    assert all(request.private for request in client.asked)
    two, client = proposer(tmp_path / "open", inventive)
    run(two, [3.0])
    assert not any(request.private for request in client.asked)


def chart(**said: Any) -> Answer:
    whole = {
        "abstain": False,
        "use_template": True,
        "template": "breakout",
        "window": 20,
        "formula": "",
        "rationale": "",
    }

    def answer(request: Request) -> str | LLMFailure:
        return json.dumps({**whole, **said}) if request.purpose == "chart" else answer_request(request)

    return answer


@pytest.mark.parametrize(
    ("said", "formula"),
    [
        ({}, "$close/Ref(Max($high,20),1)-1"),
        ({"use_template": False, "formula": "$high/$low-1"}, "$high/$low-1"),
        ({"abstain": True}, None),
        ({"use_template": False, "formula": "Ref($close,-5)/$close"}, None),
        ({"template": "head_and_shoulders"}, None),
    ],
)
def test_a_chart_gives_a_formula_a_template_or_nothing(
    tmp_path: Path, said: dict[str, Any], formula: str | None
) -> None:
    one, client = proposer(tmp_path, chart(**said), charts=(IMAGE,))
    found = texts(one.propose(20, ()))
    assert found[3:] == ([] if formula is None else [formula])
    (request,) = client.of("chart")
    assert request.messages[-1].images == (IMAGE,)


def test_without_images_no_chart_is_asked_about(tmp_path: Path) -> None:
    one, client = proposer(tmp_path, chart())
    one.propose(20, ())
    assert client.of("chart") == []


def test_the_engine_measures_what_the_documents_say_and_the_planted_factor_stands_out(tmp_path: Path) -> None:
    planted = "$volume/Mean($volume,10)"
    data = data_of(market(1, edge=0.25))
    text = SEEDS.replace("$volume/Mean($volume,20)", planted)
    text += "Formula: Log(-1*$close/$open)\nFormula: Ref($close,-1)/$close\n"
    client = FakeClient(inventive)
    making = factory(client, tmp_path, check_values=ComputedValues(data))
    view = view_of(tmp_path, document(text))
    one = LLMProposer(making, view, KnowledgeBase(tmp_path / "knowledge.sqlite"), day=str(data.window.end))
    found = explore(one, data, trials=30, rules=RULES)
    best = found.shortlist(1)[0]
    assert best.expression.text == planted
    assert best.sources
    assert best.calls
    assert found.rounds == 3
    assert [(lost.step, lost.reason) for lost in one.rejections] == [
        ("validate", "all_missing"),
        ("validate", "look_ahead"),
    ]
