"""What holds for every formula: printing and reading are inverse, and spelling does not change the canonical form."""

from __future__ import annotations

import pickle

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.expression import Expression, Limits, expression_of, parse
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.tree import Call, Field, Node, Number, walk
from tests.factor.trees import series

LARGE = Limits(text=100_000, depth=200, nodes=10_000, lookback=100_000, number=1e100, exponent=1e6, exponentials=100)
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _expression(root: Node) -> Expression:
    try:
        return expression_of(root, units="warn")
    except ExpressionError as error:
        # Random constants may divide by zero or overflow, random windows may add up, and in random formulas everything
        # may cancel; nothing else may be wrong.
        assume(error.reason not in ("bad_number", "lookback_limit", "too_many_nodes", "constant"))
        raise


@quick
@given(series(5))
def test_what_is_printed_reads_back_as_the_same_tree(root: Node) -> None:
    expression = _expression(root)
    again = parse(str(expression), units="warn")
    assert again.root == root
    assert str(again) == str(expression)
    assert (again.lookback, again.fields, again.depth, again.nodes) == (
        expression.lookback,
        expression.fields,
        expression.depth,
        expression.nodes,
    )


@quick
@given(series(5))
def test_blanks_and_needless_parentheses_change_nothing(root: Node) -> None:
    text = str(_expression(root))
    assert parse(f" (\n{text.replace(',', ' , ').replace('(', '( ')} )\t", units="warn").root == root


@quick
@given(series(5))
def test_size_is_what_the_tree_shows(root: Node) -> None:
    expression = _expression(root)
    assert expression.nodes == len(list(walk(root)))
    assert set(expression.fields) == {node.name for node in walk(root) if isinstance(node, Field)}
    assert expression.is_cross_sectional == any(
        isinstance(node, Call) and OPERATORS[node.op].cross_sectional for node in walk(root)
    )


@quick
@given(series(5))
def test_what_qlib_gets_is_in_the_language_and_lowers_to_itself(root: Node) -> None:
    expression = _expression(root)
    # Stock spellings are longer and deeper than ours.
    again = parse(expression.qlib, units="warn", limits=LARGE)
    assert again.qlib == expression.qlib
    assert again.canonical == expression.canonical


@quick
@given(series(4))
def test_a_pickled_expression_is_the_same(root: Node) -> None:
    expression = _expression(root)
    again = pickle.loads(pickle.dumps(expression))  # noqa: S301 - our own bytes
    assert again == expression
    assert hash(again) == hash(expression)
    assert again.id == expression.id


@settings(quick, max_examples=200)
@given(series(5), st.data())
def test_another_spelling_has_the_same_canonical_form(root: Node, data: st.DataObject) -> None:
    expression = _expression(root)
    other = _expression(_respelt(root, data.draw))
    assert other.canonical == expression.canonical


@settings(quick, max_examples=200)
@given(series(4))
def test_the_canonical_form_of_the_canonical_form_is_itself(root: Node) -> None:
    expression = _expression(root)
    assume("$" in expression.canonical)
    again = parse(expression.canonical, units="warn", limits=LARGE)
    assert again.canonical == expression.canonical


def _respelt(node: Node, draw: st.DrawFn) -> Node:
    """Return another spelling of the same formula."""
    if not isinstance(node, Call):
        return node
    args = tuple(_respelt(argument, draw) for argument in node.args)
    row = OPERATORS[node.op]
    choices: list[Node] = [Call(node.op, args)]
    first, second = args[0], args[1] if len(args) > 1 else Number(0)
    if row.commutes == 2:
        choices.append(Call(node.op, (second, first, *args[2:])))
    if node.op == "Sub":
        choices.append(Call("Add", (Call("Neg", (second,)), first)))
        choices.append(Call("Neg", (Call("Sub", (second, first)),)))
    if node.op == "Div" and not isinstance(second, Number):
        choices.append(Call("Mul", (Call("Reciprocal", (second,)), first)))
    if node.op == "Neg":
        choices.append(Call("Sub", (Number(0), first)))
        choices.append(Call("Div", (first, Number(-1))))
    if node.op == "Delta":
        choices.append(Call("Sub", (first, Call("Ref", (first, second)))))
    if node.op in ("Gt", "Ge", "Lt", "Le"):
        mirrored = {"Gt": "Lt", "Lt": "Gt", "Ge": "Le", "Le": "Ge"}[node.op]
        choices.append(Call(mirrored, (second, first)))
    if node.op == "Wilder" and isinstance(second, Number):
        choices.append(Call("EMA", (first, Number(2 * second.value - 1))))
    if node.op == "Clip":
        choices.append(Call("Less", (args[2], Call("Greater", (second, first)))))
    if node.op == "Abs":
        choices.append(Call("Abs", (Call("Neg", (first,)),)))
    if node.op == "Sqrt":
        choices.append(Call("Power", (first, Number(0.5))))
    if node.op == "Ref" and isinstance(first, Call) and first.op in ("Add", "Mul", "Sub"):
        inner = tuple(
            argument if isinstance(argument, Number) else Call("Ref", (argument, second)) for argument in first.args
        )
        choices.append(Call(first.op, inner))
    return draw(st.sampled_from(choices))
