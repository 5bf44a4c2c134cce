"""What lowering leaves as it is, and that its text says the same as the tree."""

from __future__ import annotations

import pytest

from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.printing import lower, stock_form, to_text
from qlib_llm_alpha.factor.tree import Call, Field, Number, walk


@pytest.mark.parametrize(
    ("text", "native", "lowered"),
    [
        ("Tanh($change)", (), "1-2/(Power(2.718281828459045,2*$change)+1)"),
        ("Tanh($change)", ("Tanh",), "Tanh($change)"),
        ("Tanh(Delta($change,2))", ("Tanh",), "Tanh($change-Ref($change,2))"),
        ("Sqrt(Tanh($change))", ("Sqrt",), "Sqrt(1-2/(Power(2.718281828459045,2*$change)+1))"),
        ("Tanh($close>$open)", ("Tanh",), "Tanh(1.0*($close>$open))"),
        ("Tanh(0)+$change", ("Tanh",), "0.0+$change"),
        ("CSRank(Delta($close,1))", (), "CSRank($close-Ref($close,1))"),
        ("Entropy(-$close,5)", (), "Entropy(-1*$close,5)"),
    ],
)
def test_operators_said_to_be_native_stay_and_all_others_are_lowered(
    text: str, native: tuple[str, ...], lowered: str
) -> None:
    assert to_text(lower(parse(text).root, native)) == lowered


def test_what_is_lowered_holds_a_repeated_part_as_one_object() -> None:
    lowered = lower(parse("Delta(Mean($close,5),2)").root)
    means = [node for node in walk(lowered) if isinstance(node, Call) and node.op == "Mean"]
    assert len(means) == 2
    assert means[0] is means[1]


def test_the_stock_form_of_one_call_leaves_its_arguments_alone() -> None:
    inner = Call("Sqrt", (Field("$close"),))
    assert to_text(stock_form("Clip", (inner, Number(1), Number(2)))) == "Less(Greater(Sqrt($close),1),2)"
    assert to_text(stock_form("Wilder", (inner, Number(14)))) == "EMA(Sqrt($close),27)"


def test_every_stock_form_is_said_in_operators_without_one() -> None:
    for row in OPERATORS.values():
        if row.stock:
            arguments = [
                Number(3) if kind in ("number", "window", "shift") else Field("$x") for _, kind in row.arguments
            ]
            calls = [node for node in walk(stock_form(row.name, arguments)) if isinstance(node, Call)]
            assert [call.op for call in calls if OPERATORS[call.op].stock] == []
