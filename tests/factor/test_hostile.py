"""Nothing of the hostile list becomes an expression, each for the expected reason."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.check import check_expression
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.reasons import REASONS


def _hostile() -> list[tuple[str, str]]:
    rows = []
    for line in (Path(__file__).parent / "hostile.txt").read_text(encoding="ascii").split("\n"):
        if line and not line.startswith("#"):
            reason, text = line.split("\t")
            rows.append((reason, re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)))
    return rows


def _balanced(leaves: int) -> str:
    return "$st" if leaves == 1 else f"({_balanced(leaves // 2)}+{_balanced(leaves // 2)})"


HOSTILE = _hostile()

# Built rather than written down, because of their length.
LONG = [
    ("too_long", "$close+" * 600 + "$close"),
    ("too_long", "(" * 5000 + "$close" + ")" * 5000),
    ("too_long", "-" * 100_000 + "$close"),
    ("too_deep", "(" * 1500 + "$close" + ")" * 1500),
    ("too_deep", "(" * 1500),
    ("too_deep", "-" * 3000 + "$close"),
    ("too_deep", "- " * 1500 + "$close"),
    ("too_deep", "+" * 3000 + "$close"),
    ("too_deep", "$close" + "**2" * 900),
    ("too_deep", "Abs(" * 60 + "$close" + ")" * 60),
    ("too_deep", "-(" * 40 + "$close" + ")" * 40),
    ("too_deep", "$low+" * 500 + "$low"),
    ("too_deep", "1" + "+1" * 1000 + "+$low"),
    ("too_deep", "$a+" * 1300 + "$a"),
    ("too_many_nodes", "1+" * 1900 + "1"),
    ("too_many_nodes", _balanced(512)),
    ("arity", "Greater(" + ",".join(["$low*$low"] * 390) + ")"),
    ("too_many_nodes", "Delta(" * 20 + "$close" + ",1)" * 20),
    ("too_many_nodes", "SignedPower(" * 20 + "$change" + ",1)" * 20),
    ("bad_number", "Power(" * 9 + "$close" + ",10)" * 9),
    ("bad_number", "SignedPower(" * 20 + "$change" + ",2)" * 20),
    ("bad_number", "Exp(" * 20 + "$change" + ")" * 20),
    ("bad_number", "$close*" + "9" * 3900),
    ("bad_number", "$close*0." + "0" * 3000 + "1"),
    ("chained_comparison", "$close" + "<$open" * 100),
]


def test_the_list_is_long_enough_and_uses_only_reasons_of_the_closed_list() -> None:
    assert len(HOSTILE) >= 200
    assert {reason for reason, _ in HOSTILE + LONG} <= set(REASONS)


def test_every_reason_is_in_the_list() -> None:
    assert {reason for reason, _ in HOSTILE + LONG} == set(REASONS)


@pytest.mark.parametrize(("reason", "text"), HOSTILE + LONG)
def test_a_hostile_formula_is_refused_for_the_expected_reason(reason: str, text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert caught.value.reason == reason, caught.value.detail
    assert caught.value.detail.isascii()
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 400


@pytest.mark.parametrize(("reason", "text"), HOSTILE + LONG)
def test_a_hostile_formula_gives_a_verdict_and_not_an_exception(reason: str, text: str) -> None:
    result = check_expression(text)
    assert (result.ok, result.reason, result.id) == (False, reason, None)


def test_refusing_is_quick_also_near_the_recursion_limit() -> None:
    def deeper(levels: int) -> str | None:
        return deeper(levels - 1) if levels else check_expression("Abs(" * 20 + "$close" + ")" * 20).reason

    started = time.process_time()
    for _, text in LONG:
        check_expression(text)
    assert time.process_time() - started < 2
    assert deeper(sys.getrecursionlimit() // 2) is None


@pytest.mark.parametrize("value", [None, 5, b"$close", ["$close"], object()])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(ExpressionError, match="expected the text of a formula"):
        parse(value)  # type: ignore[arg-type]


def test_nothing_of_the_list_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for text in (
        f"[open('{marker}','w'), $close][1]",
        f"(open)('{marker}','w')",
        f"__import__('pathlib').Path('{marker}').touch()",
    ):
        assert not check_expression(text).ok
    assert not marker.exists()
