"""What models write is read: strange forms are mended, what was not said is not made up."""

from __future__ import annotations

import json
import re
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from qlib_llm_alpha.llm.json_text import find_values
from qlib_llm_alpha.llm.reading import LONGEST, Misread, read_answer, without_thoughts


class Idea(BaseModel):
    formula: str
    window: int
    kind: Literal["momentum", "volatility"] | None


class Ideas(BaseModel):
    ideas: list[Idea]


class Review(BaseModel):
    good: bool
    score: float = Field(ge=0, le=10)
    notes: list[str]
    idea: Idea


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int


ONE = Idea(formula="Mean($close,5)", window=5, kind=None)
TEXT = ONE.model_dump_json()


def ideas(text: str) -> Ideas | Misread:
    return read_answer(text, Ideas)


# What a model may write beside an answer; brackets have cases of their own.
PROSE = st.text(st.characters(exclude_characters="{}[]<>", exclude_categories=("Cs",)), max_size=40)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
IDEA = st.builds(Idea, formula=TEXTS, window=st.integers(-(10**15), 10**15), kind=st.sampled_from(["momentum", None]))
REVIEW = st.builds(Review, good=st.booleans(), score=st.floats(0, 10), notes=st.lists(TEXTS, max_size=3), idea=IDEA)


def python_literal(value: object) -> str:
    """Write a value as Python would."""
    return repr(value)


WRITINGS = (
    lambda value: json.dumps(value),
    lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    python_literal,
)


@given(REVIEW, st.sampled_from(WRITINGS), PROSE, PROSE, st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
@example(Review(good=True, score=0, notes=["</think>"], idea=ONE), WRITINGS[0], "", "", False, False)
@example(Review(good=True, score=0, notes=["```", 'it\'s "so" \\'], idea=ONE), python_literal, "so:", "", True, True)
def test_a_value_comes_back_equal_from_prose_fences_and_thoughts(
    value: Review, write: object, before: str, after: str, fenced: bool, thought: bool
) -> None:
    text = write(value.model_dump())  # type: ignore[operator]
    if fenced:
        text = f"```json\n{text}\n```"
    text = f"{before}\n{text}\n{after}"
    if thought:
        text = f"<think>Maybe {{'good': True}} or {value.model_dump_json()} or [1, 2\n</think>{text}"
    assert read_answer(text, Review) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("as it is", f'{{"ideas": [{TEXT}]}}'),
        ("fenced, as Qwen does", f'```json\n{{"ideas": [{TEXT}]}}\n```'),
        (
            "after thoughts, as DeepSeek and Qwen do",
            f'<think>\nLet me see: {{"ideas": []}}\n</think>\n\n{{"ideas": [{TEXT}]}}',
        ),
        ("the opening tag in the prompt's template", f'So I think {{"ideas": []}}.\n</think>\n{{"ideas": [{TEXT}]}}'),
        ("two thoughts", f'<think>a</think><thinking>b</thinking>{{"ideas": [{TEXT}]}}'),
        ("a thought that never ends, then the answer", f'<think>well, then\n```json\n{{"ideas": [{TEXT}]}}\n```\n'),
        ("Python's literals and quotes", f"{{'ideas': [{ONE.model_dump()!r}]}}"),
        ("one object where a list is due, as Ollama does", f'{{"ideas": {TEXT}}}'),
        ("a list of one where an object is due", f'[{{"ideas": [{TEXT}]}}]'),
        ("lists in lists", f'{{"ideas": [[{TEXT}]]}}'),
        ("the list alone", f"[{TEXT}]"),
        ("the one item alone", TEXT),
        ("a wrapper of another name", f'{{"items": [{TEXT}]}}'),
        ("a wrapper around the answer", f'{{"result": {{"ideas": [{TEXT}]}}}}'),
        (
            "a key too many",
            f'{{"ideas": [{TEXT[:-1]}, "confidence": 10}}], "more": {{"a": NaN_}}}}'.replace("NaN_", "0"),
        ),
        ("a comma too many", f'{{"ideas": [{TEXT},],}}'),
        ("brackets in prose", f'Uses [the close] and {{x}} of [1]: {{"ideas": [{TEXT}]}} Good luck [friend]!'),
        ("an example before the answer", f'Like {{"ideas": []}}? Rather: {{"ideas": [{TEXT}]}}'),
        ("a number as text", '{"ideas": [' + TEXT.replace('"window":5', '"window":"5"') + "]}"),
    ],
)
def test_a_strange_form_is_mended(name: str, text: str) -> None:
    assert ideas(text) == Ideas(ideas=[ONE]), name


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a missing field", '{"ideas": [{"formula": "$close", "window": 5}]}', r"ideas\[0\].kind: Field required"),
        ("cut off", f'{{"ideas": [{TEXT}, {{"formula": "Mea', "the JSON is cut off"),
        ("cut off between brackets", f'{{"ideas": [{TEXT}', "cut off: a bracket is not closed"),
        (
            "broken inside",
            f'{{"ideas": [{TEXT}, {{"formula": Mean, "window": 5, "kind": null}}]}}',
            "'Mean' stands without",
        ),
        ("broken, then a part of it", '{"ideas": [oops], "x": {"ideas": []}}', "stands without"),
        ("a key twice", '{"ideas": [], "ideas": []}', "the key 'ideas' stands twice"),
        ("NaN", '{"ideas": [{"formula": "x", "window": NaN, "kind": null}]}', "NaN is no JSON"),
        (
            "a wrong word",
            '{"ideas": [{"formula": "x", "window": 5, "kind": "luck"}]}',
            r"ideas\[0\].kind: .*'momentum'",
        ),
        ("no list of objects", '{"ideas": "none"}', r"ideas"),
        ("null for a list", '{"ideas": null}', "ideas: Input should be"),
        ("prose alone", "I cannot think of any idea.", "there is no JSON object"),
        ("only a thought, with a draft in it", f'<think>maybe {{"ideas": [{TEXT}]}} but no', "no JSON object"),
        ("too long", "x" * (LONGEST + 1), "at most"),
        ("a number of a thousand digits", f'{{"ideas": [{{"window": {"9" * 1000}}}]}}', "1000 digits"),
        ("a number beyond all", '{"ideas": [{"window": 1e999}]}', "1e999 is too large"),
        ("an escape that is none", '{"ideas": [{"formula": "\\q"}]}', "escape"),
        (
            "half a surrogate pair",
            '{"ideas": [{"formula": "\\ud800", "window": 1, "kind": null}]}',
            "escape that is no letter",
        ),
    ],
)
def test_what_was_not_said_is_a_problem_in_words(name: str, text: str, problem: str) -> None:
    read = ideas(text)
    assert isinstance(read, Misread), name
    assert not read.blank
    assert re.search(problem, read.problem), (name, read.problem)
    assert "http" not in read.problem


@pytest.mark.parametrize("text", ["", "  \n\t ", "```json\n```".replace("json", ""), "<think>so so</think>\n"])
def test_white_space_is_blank(text: str) -> None:
    read = ideas(text)
    assert isinstance(read, Misread)
    assert read.blank


def test_numbers_that_are_none_are_refused_as_text_too() -> None:
    text = json.dumps({"good": True, "score": "NaN", "notes": [], "idea": ONE.model_dump()})
    assert isinstance(read_answer(text, Review), Misread)

    class Free(BaseModel):
        values: list[float]

    read = read_answer('{"values": ["Infinity"]}', Free)
    assert isinstance(read, Misread)
    assert "NaN and Infinity are no numbers" in read.problem


def test_keys_are_dropped_even_where_the_schema_forbids_them() -> None:
    assert read_answer('{"number": 3, "why": "so"}', Closed) == Closed(number=3)


def test_an_object_where_one_is_due_inside_comes_out_of_its_list() -> None:
    text = json.dumps({"good": "true", "score": 1, "notes": "one", "idea": [ONE.model_dump()]})
    assert read_answer(text, Review) == Review(good=True, score=1, notes=["one"], idea=ONE)


def test_the_problem_names_few_faults_and_echoes_little() -> None:
    wrong = {"ideas": [{"formula": 5, "window": "w" * 900, "kind": "k" * 900, "z" * 900: 1}] * 30}
    read = ideas(json.dumps(wrong))
    assert isinstance(read, Misread)
    assert len(read.problem) < 1200
    assert "and 85 more" in read.problem
    assert "wwwwwwwwww" not in read.problem


@pytest.mark.parametrize(
    "text",
    ["[" * 150_000, "{" * 150_000, '{"a":' * 30_000, '["' * 60_000, '"\\' * 90_000, "[1," * 60_000, "<think>" * 25_000,
     "</think>" * 25_000, '{"' + "\\" * 150_000, "[{}," * 40_000, "{'a" * 50_000, "[-" * 90_000],
)  # fmt: skip
def test_hostile_texts_are_a_problem_in_linear_work(text: str) -> None:
    assert isinstance(ideas(text), Misread)


@given(st.text("{}[]\"'\\:,<>/think aTrueNone019.eE-\n`", max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_value_or_a_problem(text: str) -> None:
    read = ideas(text)
    assert isinstance(read, (Ideas, Misread))
    assert isinstance(without_thoughts(text), str)


def test_brackets_of_a_broken_value_are_skipped_with_what_they_hold() -> None:
    found = find_values('{"a": oops, "b": [1, "]}"]} [2]')
    assert [value for _, _, value in found.values] == [[2]]
    assert "oops" in found.broken
