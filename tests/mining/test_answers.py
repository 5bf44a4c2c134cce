from __future__ import annotations

import json
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.llm.schema import schema_text, strict_schema
from qlib_llm_alpha.mining.answers import (
    CATEGORIES,
    TEMPLATES,
    CategorisedItem,
    Category,
    ChartAnswer,
    GeneratedCandidate,
    TemplateName,
    TemplateWindow,
)
from qlib_llm_alpha.mining.asking import ANSWERS

CANDIDATE = {
    "name": "reversal",
    "category": "mean_reversion",
    "formula": "$close/Ref($close,5)-1",
    "rationale": "moves go back",
    "expected_sign": "negative",
    "horizon_days": 5,
    "evidence": [{"document": "D1", "quote": "moves go back"}],
}
CHART = {
    "abstain": False,
    "use_template": True,
    "template": "gap",
    "window": 5,
    "formula": "",
    "rationale": "",
}


def objects(node: object) -> list[dict[str, object]]:
    """Return every object schema below a node."""
    if isinstance(node, list):
        return [found for one in node for found in objects(one)]
    if not isinstance(node, dict):
        return []
    own = [node] if node.get("type") == "object" else []
    return own + [found for one in node.values() for found in objects(one)]


@pytest.mark.parametrize("model", ANSWERS.values(), ids=list(ANSWERS))
def test_every_schema_is_strict_all_fields_required_and_no_others(model: type[BaseModel]) -> None:
    found = objects(strict_schema(model))
    assert found
    for one in found:
        properties = one["properties"]
        assert isinstance(properties, dict)
        assert one["required"] == list(properties)
        assert one["additionalProperties"] is False
    assert "default" not in schema_text(model)
    assert "$ref" not in schema_text(model)


def test_the_categories_are_the_nine_of_the_paper() -> None:
    nine = ["momentum", "mean_reversion", "volatility", "fundamental", "liquidity", "quality", "growth"]
    nine += ["technical", "macro_economics"]
    assert list(get_args(Category)) == nine == list(CATEGORIES)
    schema = strict_schema(CategorisedItem)
    assert schema["properties"]["category"]["enum"] == nine


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("category", "astrology"),
        ("expected_sign", "up"),
        ("horizon_days", 0),
        ("horizon_days", 10_000),
        ("horizon_days", "soon"),
        ("evidence", {"document": "D1", "quote": "moves go back"}),
        ("formula", "$close+" * 2000),
        ("name", None),
    ],
)
def test_a_candidate_that_is_out_of_bounds_is_no_answer(field: str, value: object) -> None:
    GeneratedCandidate.model_validate(CANDIDATE)
    with pytest.raises(ValidationError):
        GeneratedCandidate.model_validate({**CANDIDATE, field: value})


@pytest.mark.parametrize("field", list(CANDIDATE))
def test_a_candidate_without_one_of_its_fields_is_no_answer(field: str) -> None:
    with pytest.raises(ValidationError):
        GeneratedCandidate.model_validate({name: value for name, value in CANDIDATE.items() if name != field})


@pytest.mark.parametrize("template", get_args(TemplateName))
@pytest.mark.parametrize("window", get_args(TemplateWindow))
def test_every_chart_template_becomes_a_formula_that_the_language_takes(template: str, window: int) -> None:
    text = ChartAnswer.model_validate({**CHART, "template": template, "window": window}).text
    assert str(window) in text
    assert parse(text).lookahead == 0


def test_a_chart_answer_gives_a_formula_a_template_or_nothing() -> None:
    assert set(TEMPLATES) == set(get_args(TemplateName))
    assert ChartAnswer.model_validate(CHART).text == "Mean($open/Ref($close,1)-1,5)"
    written = {**CHART, "use_template": False, "formula": "$close/$open"}
    assert ChartAnswer.model_validate(written).text == "$close/$open"
    assert ChartAnswer.model_validate({**written, "abstain": True}).text == ""
    for wrong in ({"template": "head_and_shoulders"}, {"window": 7}):
        with pytest.raises(ValidationError):
            ChartAnswer.model_validate({**CHART, **wrong})


def test_an_answer_survives_json() -> None:
    one = GeneratedCandidate.model_validate(CANDIDATE)
    assert GeneratedCandidate.model_validate(json.loads(one.model_dump_json())) == one
