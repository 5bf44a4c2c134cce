from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.mining.knowledge import KnowledgeBase, KnowledgeView, Lesson

REVERSAL = Lesson(
    session="one",
    round=1,
    idea="moves of a week go back",
    formula="$close/Ref($close,5)-1",
    figures="t -4, correlation clear",
    score=4,
    lesson="short reversal holds",
    first_known_at="2020-06-30",
    calls=("k1", "k2"),
)
CLONE = replace(REVERSAL, round=2, formula="$close/Ref($close,6)-1")
VOLUME = replace(
    REVERSAL, idea="heavy trading is followed by falls", formula="$volume/Mean($volume,20)", lesson="volume matters"
)
LATER = replace(VOLUME, first_known_at="2021-06-30", session="two")


def base(tmp_path: Path, *lessons: Lesson) -> KnowledgeBase:
    found = KnowledgeBase(tmp_path / "knowledge.sqlite")
    found.add(lessons)
    return found


def test_a_lesson_comes_back_as_it_went_in(tmp_path: Path) -> None:
    assert base(tmp_path, REVERSAL).as_of("2020-06-30").lessons == (REVERSAL,)


def test_a_lesson_is_not_known_before_its_day(tmp_path: Path) -> None:
    found = base(tmp_path, REVERSAL, LATER)
    assert found.as_of("2020-06-29").lessons == ()
    assert found.as_of("2021-06-29").lessons == (REVERSAL,)
    assert found.as_of("2021-06-30").lessons == (REVERSAL, LATER)


def test_what_was_retrieved_as_of_a_day_stays_the_same_when_later_lessons_come(tmp_path: Path) -> None:
    found = base(tmp_path, REVERSAL, VOLUME)
    before = found.as_of("2020-12-31").retrieve("reversal of a week", 2)
    found.add([LATER, replace(LATER, idea="reversal of a week", score=10)])
    assert found.as_of("2020-12-31").retrieve("reversal of a week", 2) == before


def test_a_lesson_that_is_entered_again_is_the_same_lesson(tmp_path: Path) -> None:
    found = base(tmp_path, REVERSAL)
    assert found.add([REVERSAL, VOLUME]) == 1
    assert len(found.as_of("2020-06-30").lessons) == 2


def test_a_session_that_starts_again_forgets_its_own_lessons_only(tmp_path: Path) -> None:
    found = base(tmp_path, REVERSAL, LATER)
    found.forget("one")
    assert found.as_of("2022-01-01").lessons == (LATER,)


def test_the_lesson_most_like_the_question_comes_first(tmp_path: Path) -> None:
    view = base(tmp_path, REVERSAL, VOLUME).as_of("2020-12-31")
    assert view.retrieve("heavy trading and $volume", 1) == [VOLUME]
    assert view.retrieve("moves of a week", 1) == [REVERSAL]


def test_two_lessons_that_say_the_same_do_not_both_come_first(tmp_path: Path) -> None:
    view = base(tmp_path, REVERSAL, CLONE, VOLUME).as_of("2020-12-31")
    first, second = view.retrieve("moves of a week go back", 2)
    assert first.idea == REVERSAL.idea
    assert second == VOLUME


def test_of_equal_lessons_the_stronger_comes_first(tmp_path: Path) -> None:
    strong = replace(REVERSAL, score=9)
    assert base(tmp_path, REVERSAL, strong).as_of("2020-12-31").retrieve("anything", 1) == [strong]


@pytest.mark.parametrize("day", ["", "2020", "20200630", "2020-13-01", "30.06.2020", "2020-06-30T00:00"])
def test_a_day_that_is_none_is_refused(tmp_path: Path, day: str) -> None:
    found = base(tmp_path)
    with pytest.raises(ConfigError, match="YYYY-MM-DD"):
        found.as_of(day)
    with pytest.raises(ConfigError, match="YYYY-MM-DD"):
        found.add([replace(REVERSAL, first_known_at=day)])


lessons = st.builds(
    replace,
    st.just(REVERSAL),
    idea=st.sampled_from(["a b c", "a b", "x y", "", "动量 反转"]),
    score=st.integers(0, 12),
    round=st.integers(0, 3),
)


@given(st.lists(lessons, max_size=8), st.text(max_size=20), st.integers(0, 10), st.randoms())
def test_retrieval_does_not_depend_on_the_order_of_entry(
    found: list[Lesson], question: str, count: int, order: object
) -> None:
    once = KnowledgeView(tuple(found)).retrieve(question, count)
    shuffled = list(found)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert KnowledgeView(tuple(shuffled)).retrieve(question, count) == once
    assert len(once) == min(count, len({one.id for one in found}))
