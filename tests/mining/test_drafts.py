from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.mining.asking import Asking
from qlib_llm_alpha.mining.blind import Blind
from qlib_llm_alpha.mining.drafts import Draft, InnerLoop, one_line, proposer_name
from tests.mining.documents import FIELDS, names
from tests.mining.fake_client import FakeClient
from tests.support.scripted_model import answer_request

LOOP = InnerLoop(Asking(FakeClient(answer_request), Blind(names())), FIELDS)


@given(name=st.text(max_size=200), hypothesis=st.text(max_size=50))
def test_whatever_a_model_calls_a_factor_becomes_a_name_that_a_factor_may_have(name: str, hypothesis: str) -> None:
    found = LOOP.candidate(Draft(name, "$close/$open", "technical", hypothesis))
    Factor(found.name, found.expression)
    assert found.name.endswith(f"_{found.expression.id}")


@given(st.text(max_size=60))
def test_whatever_a_model_is_called_its_name_may_begin_that_of_a_factor(model: str) -> None:
    Factor(f"{proposer_name(model)}_abc"[:80], LOOP.read("$close/$open"))


@given(st.text(max_size=300))
def test_a_models_words_become_one_printable_line(text: str) -> None:
    line = one_line(text, 100)
    assert len(line) <= 100
    assert line.isprintable()
    assert one_line(line, 100) == line.strip()


@pytest.mark.parametrize("name", ["动量因子", "5-day reversal", "../../etc", "{0.__class__}", ""])
def test_odd_names_are_made_plain(name: str) -> None:
    assert LOOP.candidate(Draft(name, "$close/$open")).name.replace("_", "a").isalnum()


def test_drafts_that_hold_cost_no_call_and_keep_their_order() -> None:
    client = FakeClient(answer_request)
    loop = InnerLoop(Asking(client, Blind(names())), FIELDS)
    drafts = [Draft(f"n{number}", f"Mean($close,{number})/$close") for number in (9, 5, 7)]
    assert loop.run(drafts) == (drafts, [])
    assert client.asked == []


def test_without_repairs_what_is_refused_ends_at_once() -> None:
    client = FakeClient(answer_request)
    loop = InnerLoop(Asking(client, Blind(names())), FIELDS, repairs=0)
    kept, (lost,) = loop.run([Draft("n", "SMA($close,5)/$close")])
    assert (kept, lost.reason, client.asked) == ([], "unknown_operator", [])


def test_a_draft_survives_json() -> None:
    draft = Draft("n", "$close", "macro", "h", ("doc:a:1-2",), ("k",), "a", True, 2)
    assert Draft.from_json(json.loads(json.dumps(draft.to_json()))) == draft
