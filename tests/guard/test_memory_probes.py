from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qlib_llm_alpha.errors import ConfigError, LLMFailure, PanelError, WallError
from qlib_llm_alpha.evaluation.many_trials import clopper_pearson
from qlib_llm_alpha.guard.memory_probes import (
    facts_probes,
    false_day_probe,
    recall_probe,
    score_false_days,
    score_flips,
    score_recall,
    score_unmoved,
    signed,
    up_probability,
)
from qlib_llm_alpha.guard.memory_questions import (
    Answer,
    Case,
    Outcome,
    draw_cases,
    draw_outcomes,
    false_day_requests,
    flip,
    flipped,
    jittered,
    recall_requests,
    renamed,
)
from qlib_llm_alpha.llm.request import Request
from tests.guard.memory_clients import (
    DAYS,
    NAMES,
    UNKNOWN,
    WALLS,
    Says,
    as_answers,
    asked_of,
    dice,
    exact,
    fact_cases,
    market,
    questions,
    reader,
    stubborn,
    up,
)
from tests.support.personalities import Asked, amnesiac, clairvoyant, oracle

FAILED = LLMFailure("blank", "nothing came")


def outcome(number: int, rose: bool) -> Outcome:
    day = date(2018, 1, 2) + timedelta(days=7 * number)
    return Outcome(day, "SH600000", rose, day + timedelta(days=7))


def said(*words: str) -> list:
    """Answers from signs: + up, - down, ? unknown, ! failure."""
    kinds = {"+": up(1.0), "-": up(0.0), "?": UNKNOWN, "!": FAILED}
    return as_answers([kinds[sign] for sign in "".join(words)])


def personality(kind, request: Request, memory=None) -> Answer:
    """Ask a personality of the stub without its server."""
    schema = {"type": "json_schema", "json_schema": {"schema": Answer.model_json_schema()}}
    body = {"messages": [message.wire() for message in request.messages], "response_format": schema}
    return Answer.model_validate_json(kind(Asked(body, 0, memory)))


def test_the_exact_p_of_recall_is_that_of_the_binomial_and_the_weaker_of_two_tests_counts() -> None:
    rose = [number % 2 == 0 for number in range(20)]
    outcomes = [outcome(number, one) for number, one in enumerate(rose)]
    # 15 right, 3 wrong, 2 unknown.
    text = "".join("+" if one else "-" for one in rose)
    answers = said(text[:15], *("-" if one else "+" for one in rose[15:18]), "??")
    found = score_recall(outcomes, answers)
    binomial = stats.binomtest(15, 18, 0.5, alternative="greater").pvalue
    assert found.counts["chance"] == 0.5
    assert found.p >= binomial
    assert found.p == pytest.approx(binomial, abs=0.01)
    assert found.statistic == pytest.approx(15 / 18)
    assert (found.counts["answered"], found.counts["right"]) == (18, 15)
    assert found.counts["mass_unknown"] == pytest.approx(2 * 0.9 / 20)
    assert found.verdict == "memory"
    assert "18 of 20 questions, 15 of them right" in found.sentence


def test_who_always_says_up_in_a_market_that_rose_remembers_nothing() -> None:
    outcomes = [outcome(number, number % 5 > 0) for number in range(40)]
    found = score_recall(outcomes, said("+" * 40))
    assert found.statistic == pytest.approx(0.8)
    assert found.p == 1.0
    assert found.verdict == "clean"
    assert score_recall(outcomes, said("".join("+" if one.up else "-" for one in outcomes))).fired


def test_answers_of_unknown_and_failures_are_no_answers() -> None:
    outcomes = [outcome(number, number % 2 == 0) for number in range(10)]
    nothing = score_recall(outcomes, said("?" * 10))
    assert (nothing.verdict, nothing.p, nothing.counts["mass_unknown"]) == ("clean", 1.0, pytest.approx(0.9))
    broken = score_recall(outcomes, said("!" * 10))
    assert broken.verdict == "not applicable"
    assert json.loads(json.dumps(broken.to_dict()))["p"] is None
    assert score_recall([], []).verdict == "not applicable"
    with pytest.raises(PanelError, match="10 questions have 9 answers"):
        score_recall(outcomes, said("+" * 9))


def test_six_right_answers_are_too_few_to_speak_of_memory_and_twelve_are_enough() -> None:
    outcomes = [outcome(number, number % 2 == 0) for number in range(12)]
    right = "".join("+" if one.up else "-" for one in outcomes)
    assert not score_recall(outcomes[:6], said(right[:6])).fired
    assert score_recall(outcomes, said(right)).fired


def test_the_clairvoyant_is_found_by_day_and_name_alone() -> None:
    for seed in range(5):
        outcomes = questions(seed)
        memory = {str(one.day): "up" if one.up else "down" for one in outcomes}
        client = Says(lambda request, memory=memory: personality(clairvoyant, request, memory))
        found = recall_probe(client, outcomes, WALLS, seed=seed)
        assert found.fired
        assert found.p < 0.01
        assert found.statistic == 1.0


def test_a_faint_memory_is_found_with_more_questions() -> None:
    outcomes = questions(3, count=90)

    def faint(request: Request) -> Answer:
        rose = next(one.up for one in outcomes if str(one.day) == asked_of(request)["day"])
        return up(float(rose if dice("faint", request.key) < 0.7 else not rose))

    assert len(outcomes) > 60
    assert recall_probe(Says(faint), outcomes, WALLS).fired


def test_the_amnesiac_is_clean_and_its_mass_is_on_unknown() -> None:
    client = Says(lambda request: personality(amnesiac, request))
    found = recall_probe(client, questions(1), WALLS)
    assert (found.verdict, found.counts["answered"]) == ("clean", 0)
    assert found.counts["mass_unknown"] > 0
    assert false_day_probe(client, questions(1), WALLS).verdict == "clean"


def test_the_oracle_is_accused_on_at_most_5_percent_of_200_markets() -> None:
    accused = 0
    for seed in range(200):
        outcomes = questions(seed)
        asked = recall_requests(outcomes, "oracle")
        answers = as_answers([personality(oracle, request) for request in asked])
        found = score_recall(outcomes, answers, seed=seed, draws=999)
        assert found.counts["answered"] == 40
        accused += found.fired
    assert accused <= 10
    assert clopper_pearson(accused, 200).lower <= 0.01


def test_all_questions_of_a_probe_go_out_in_one_call_and_name_day_and_name_only() -> None:
    client = Says(lambda _: UNKNOWN)
    recall_probe(client, questions(2), WALLS)
    (batch,) = client.batches
    assert len(batch) == 40
    for request, one in zip(batch, questions(2), strict=True):
        assert asked_of(request)["day"] == str(one.day)
        assert asked_of(request)["name"] == one.name
        assert request.prompt is not None
        assert request.prompt.name == "recall"
    assert len({request.key for request in batch}) == 40


@pytest.mark.parametrize(
    ("day", "known"),
    [
        ("2020-07-01", "2020-07-08"),
        ("2020-06-29", "2020-07-06"),
        ("2019-12-30", "2020-01-06"),
        ("2021-01-04", "2021-01-11"),
    ],
)
def test_outcomes_beyond_search_and_tune_are_never_asked_about(day: str, known: str) -> None:
    client = Says(lambda _: UNKNOWN)
    outcomes = [Outcome(date.fromisoformat(day), "SH600000", True, date.fromisoformat(known))]
    with pytest.raises(WallError, match="nothing sealed is looked at"):
        recall_probe(client, outcomes, WALLS)
    assert client.batches == []


def test_the_same_day_cannot_be_evidence_twice() -> None:
    twice = [outcome(1, True), replace(outcome(1, False), name="SH600001")]
    with pytest.raises(ConfigError, match="one a day"):
        false_day_probe(Says(lambda _: UNKNOWN), twice, WALLS)


def test_drawn_outcomes_are_true_balanced_apart_and_inside_their_segment() -> None:
    close, _ = market(4, drift=0.004)
    for segment in ("train", "valid"):
        found = draw_outcomes(DAYS, NAMES, close, WALLS, segment=segment, count=16, horizon=5, seed=1)
        assert sum(one.up for one in found) == 8
        rows = np.searchsorted(DAYS, [np.datetime64(one.day) for one in found])
        assert (np.diff(rows) >= 5).all()
        for one, row in zip(found, rows, strict=True):
            moved = close[row + 5, NAMES.index(one.name)] / close[row, NAMES.index(one.name)] - 1
            assert (moved > 0) == one.up
            assert abs(moved) >= 0.01
            assert one.known_on == DAYS[row + 5].item()
            assert WALLS.segment(segment).start <= DAYS[row] <= DAYS[row + 5] <= WALLS.segment(segment).end
    assert found == draw_outcomes(DAYS, NAMES, close, WALLS, segment="valid", count=16, horizon=5, seed=1)


def test_what_comes_after_the_segment_changes_no_question() -> None:
    close, volume = market(5)
    poisoned, traded = close.copy(), volume.copy()
    later = np.datetime64("2019-12-31") < DAYS
    poisoned[later], traded[later] = np.nan, np.nan
    assert draw_outcomes(DAYS, NAMES, close, WALLS, seed=3) == draw_outcomes(DAYS, NAMES, poisoned, WALLS, seed=3)
    outcomes = draw_outcomes(DAYS, NAMES, close, WALLS, seed=3)
    assert draw_cases(outcomes, DAYS, NAMES, close, volume) == draw_cases(outcomes, DAYS, NAMES, poisoned, traded)


def test_facts_of_a_case_are_bars_up_to_its_day() -> None:
    close, volume = market(5)
    outcomes = draw_outcomes(DAYS, NAMES, close, WALLS, seed=3)
    row = int(np.searchsorted(DAYS, np.datetime64(outcomes[9].day)))
    poisoned, traded = close.copy(), volume.copy()
    poisoned[row + 1 :], traded[row + 1 :] = np.nan, np.nan
    whole = {case.day: case for case in draw_cases(outcomes, DAYS, NAMES, close, volume, seed=1)}
    cut = {case.day: case for case in draw_cases(outcomes, DAYS, NAMES, poisoned, traded, seed=1)}
    case = whole[outcomes[9].day]
    assert cut[outcomes[9].day] == case
    place = NAMES.index(case.name)
    assert f"last 5 days {100 * (close[row, place] / close[row - 5, place] - 1):+.2f} percent" in case.facts


def test_only_members_are_asked_about_and_sealed_segments_are_refused() -> None:
    close, _ = market(6)
    member = np.zeros(close.shape, dtype=bool)
    member[:, 3] = True
    assert {one.name for one in draw_outcomes(DAYS, NAMES, close, WALLS, member=member)} == {NAMES[3]}
    with pytest.raises(WallError, match="stays sealed"):
        draw_outcomes(DAYS, NAMES, close, WALLS, segment="test")
    with pytest.raises(ConfigError, match="count is 0"):
        draw_outcomes(DAYS, NAMES, close, WALLS, count=0)
    with pytest.raises(PanelError, match="days by names"):
        draw_outcomes(DAYS, NAMES[:-1], close, WALLS)


def test_false_days_are_in_no_calendar_or_a_century_later() -> None:
    outcomes = questions(0)
    for number, request in enumerate(false_day_requests(outcomes, "m")):
        day = asked_of(request)["day"]
        assert day.endswith("-02-30") if number % 2 == 0 else int(day[:4]) == outcomes[number].day.year + 100
        assert asked_of(request)["name"] == outcomes[number].name


def test_who_answers_for_days_that_cannot_be_known_is_guessing() -> None:
    found = false_day_probe(Says(lambda request: personality(oracle, request)), questions(0), WALLS)
    assert found.verdict == "guessing"
    assert found.counts["answered_false"] == 40
    assert not found.fired


def test_who_answers_only_for_days_that_were_claims_to_remember_them() -> None:
    real = {str(one.day) for one in questions(0)}
    client = Says(lambda request: up(0.9) if asked_of(request)["day"] in real else UNKNOWN)
    found = false_day_probe(client, questions(0), WALLS)
    assert found.verdict == "claims"
    assert found.p == pytest.approx(0.5**40)
    assert found.statistic == 1.0


def test_mcnemars_p_is_that_of_the_discordant_pairs() -> None:
    real, false = said("+" * 12, "?" * 4, "+" * 3, "!"), said("?" * 12, "+" * 2, "?" * 2, "+" * 3, "+")
    found = score_false_days(real, false)
    assert found.p == pytest.approx(stats.binomtest(12, 14, 0.5, alternative="greater").pvalue)
    assert (found.counts["pairs"], found.counts["only_real"], found.counts["only_false"]) == (19, 12, 2)
    assert score_false_days(said("+?"), said("??")).verdict == "not applicable"


def test_a_reader_is_clean_by_all_three_probes_of_facts() -> None:
    for seed in range(3):
        client = Says(reader(seed, noise=0.3))
        names, figures, flips = facts_probes(client, fact_cases(seed), seed=seed)
        assert (names.verdict, figures.verdict, flips.verdict) == ("clean", "clean", "clean")
        assert figures.statistic > 0.9
        assert len(client.batches) == 1


def test_who_goes_by_the_name_is_found_by_other_names_and_by_flips() -> None:
    names, figures, flips = facts_probes(Says(stubborn(1)), fact_cases(1))
    assert (names.verdict, figures.verdict, flips.verdict) == ("memory", "clean", "memory")
    assert "names and days are its key" in names.sentence
    assert "recalls or guesses" in flips.sentence


def test_who_knows_the_figures_by_heart_is_found_by_harmless_jitter() -> None:
    names, figures, _ = facts_probes(Says(exact(1)), fact_cases(1))
    assert (names.verdict, figures.verdict) == ("memory", "memory")
    assert figures.counts["rank_correlation"] < 0.9


def test_material_flips_are_seen_with_power_of_9_in_10_and_harmless_jitter_is_not() -> None:
    seen = alarms = names = 0
    runs = 60
    for seed in range(runs):
        cases = fact_cases(seed)
        other_name, figures, flips = facts_probes(Says(reader(seed, noise=1.0)), cases, seed=seed)
        seen += flips.verdict == "clean"
        alarms += figures.fired
        names += other_name.fired
    assert seen >= 0.9 * runs
    assert alarms <= 0.05 * runs
    assert names <= 0.05 * runs


def test_a_server_that_answers_differently_each_time_is_not_taken_for_one_that_remembers() -> None:
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        alarms += score_unmoved("jitter", *rng.random((3, 40)), seed=seed, draws=999).fired
    assert alarms <= 3


def test_flips_that_a_noisy_server_ignores_are_ignored() -> None:
    read = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        read += score_flips(*rng.random((3, 40)), seed=seed, draws=999).verdict == "clean"
    assert read <= 5


def test_too_few_answers_say_nothing() -> None:
    values = np.array([0.2, 0.8, np.nan, 0.6, 0.4, 0.3, 0.7, 0.9])
    assert score_unmoved("renamed", values, values, values).verdict == "not applicable"
    assert score_flips(values, values, 1 - values).verdict == "not applicable"
    assert score_unmoved("jitter", np.array([]), np.array([]), np.array([])).verdict == "not applicable"


def test_the_same_answer_to_everything_is_no_reading() -> None:
    names, figures, flips = facts_probes(Says(lambda _: up(0.7)), fact_cases(2))
    assert (names.verdict, figures.verdict, flips.verdict) == ("clean", "clean", "memory")
    assert np.isnan(figures.statistic)


CASE = Case(
    date(2019, 3, 4),
    "Acme (600000)",
    "Acme",
    "Acme (600000): earnings Beat by +12.5 percent (guidance -3.40), volume 1.31 times in 20 days to 2019-03-04.\n"
    "Acme: profit fell; 净利润增长 5.2%, 高于预期",
)


def test_jitter_changes_figures_a_little_and_nothing_else() -> None:
    (changed,) = jittered([CASE], seed=1)
    figures = np.array([12.5, 3.40, 1.31, 5.2])
    import re

    numbers = [
        float(one) for one in re.findall(r"(?<![\w.-])\d+\.\d+", changed.facts.replace("-", " ").replace("+", " "))
    ]
    relative = np.abs(np.array(numbers) / figures - 1)
    assert ((relative > 0.0009) & (relative < 0.0101)).all()
    for kept in ("in 20 days", "2019-03-04", "Acme (600000)", "(guidance -"):
        assert kept in changed.facts
    assert jittered([CASE], seed=1) == (changed,)
    assert jittered([CASE], seed=2) != (changed,)


def test_flips_turn_signs_and_words_or_names_and_undo_themselves() -> None:
    assert flip(CASE, "facts") == (
        "Acme (600000): earnings Miss by -12.5 percent (guidance +3.40), volume 1.31 times in 20 days to 2019-03-04.\n"
        "Acme: loss rose; 净利润下滑 5.2%, 低于预期"
    )
    assert flip(CASE, "entity").startswith("Acme: earnings Beat")
    assert "\nAcme (600000): profit fell" in flip(CASE, "entity")
    for kind in ("facts", "entity"):
        assert flip(replace(CASE, facts=flip(CASE, kind)), kind) == CASE.facts


def test_a_case_that_nothing_turns_is_not_asked_again() -> None:
    plain = Case(date(2019, 3, 4), "A", "", "It has 20 factories.")
    assert flipped([plain]) == ()
    assert [place for place, _, _ in flipped([plain, CASE])] == [1]
    cases = [plain] * 4 + list(fact_cases(3))
    *_, flips = facts_probes(
        Says(lambda request: reader(0)(request) if "percent" in request.messages[-1].text else UNKNOWN), cases
    )
    assert flips.counts["pairs"] == len(cases) - 4
    assert flips.verdict == "clean"


def test_renamed_cases_keep_their_facts_but_neither_names_nor_day() -> None:
    cases = fact_cases(1)
    for case, other in zip(cases, renamed(cases, seed=5), strict=True):
        assert case.name not in other.facts
        assert not case.peer or case.peer not in other.facts
        assert other.day != case.day
        back = other.facts.replace(other.peer, case.peer) if case.peer else other.facts
        assert back.replace(other.name, case.name) == case.facts


def test_probabilities_are_read_with_their_direction() -> None:
    answers = as_answers([up(0.8), up(0.3), UNKNOWN, Answer(direction="down", probability=0.0), FAILED])
    np.testing.assert_allclose(signed(answers), [0.8, -0.7, np.nan, 0.0, np.nan])
    np.testing.assert_allclose(up_probability(answers), [0.8, 0.3, np.nan, 1.0, np.nan])


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 10))
def test_recall_does_not_depend_on_what_up_is_called(rose: list[bool], seed: int) -> None:
    outcomes = [outcome(number, one) for number, one in enumerate(rose)]
    words = "".join("+" if dice(seed, number) < 0.5 else "-" for number in range(len(rose)))
    mirror = words.translate(str.maketrans("+-", "-+"))
    one = score_recall(outcomes, said(words), seed=seed, draws=199)
    other = score_recall([replace(o, up=not o.up) for o in outcomes], said(mirror), seed=seed, draws=199)
    assert one.p == pytest.approx(other.p)
    assert one.statistic == other.statistic
