from __future__ import annotations

import logging
import random
import re

import pytest

from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.mining.grammar_text import LONGEST, MINED_LIMITS, grammar_text

BARS = ["$open", "$high", "$low", "$close", "$volume"]
EVERYTHING = [*DAILY, *GROUPS, *REPORTED]


def operators_in(text: str) -> set[str]:
    return {name for name in re.findall(r"([A-Z]\w*)\(", text) if name in OPERATORS}


def test_the_text_names_every_operator_that_the_fields_allow() -> None:
    calls = {name for name, row in OPERATORS.items() if not row.infix}
    assert operators_in(grammar_text(EVERYTHING)) == calls - {"ChangeInstrument", "PRef"}


def test_without_groups_and_reports_their_operators_are_not_offered() -> None:
    text = grammar_text(BARS)
    assert not {"P", "CSNeutralize", "CSGroupRank", "CSGroupZScore"} & operators_in(text)
    assert "$$" not in text
    assert "$industry" not in text
    assert "$vwap" not in text


@pytest.mark.parametrize("fields", [BARS, EVERYTHING, [*EVERYTHING, *(f"$extra_{number}" for number in range(300))]])
def test_the_text_is_compact(fields: list[str]) -> None:
    assert len(grammar_text(fields)) <= LONGEST


def test_fields_beyond_the_room_are_left_out_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        text = grammar_text([*EVERYTHING, *(f"$extra_{number:03}" for number in range(300))])
    assert "$extra_000" in text
    assert "do not fit the prompt" in caplog.text


def test_own_fields_of_the_provider_are_named() -> None:
    assert grammar_text([*BARS, "$turn", "$northbound"]).endswith("of any unit: $northbound $turn")


def test_the_text_is_the_same_whatever_the_order_of_the_fields() -> None:
    shuffled = [*EVERYTHING, "$turn"]
    random.Random(3).shuffle(shuffled)
    assert grammar_text(shuffled) == grammar_text(frozenset([*EVERYTHING, "$turn"]))


def test_limits_are_stated_and_the_example_keeps_them() -> None:
    text = grammar_text(BARS)
    for number in (MINED_LIMITS.nodes, MINED_LIMITS.depth, MINED_LIMITS.window, MINED_LIMITS.lookback):
        assert str(number) in text
    example = re.search(r"such as (\S+)\.\n", text)
    assert example is not None
    parse(example.group(1), limits=MINED_LIMITS)


def test_no_number_in_the_text_could_be_a_year() -> None:
    assert not re.search(r"\b(19|20)\d\d\b", grammar_text(EVERYTHING))
