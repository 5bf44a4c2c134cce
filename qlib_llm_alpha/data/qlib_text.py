"""Qlib's own formula texts, read without ``eval``: to a tree, and from a tree to Qlib's objects.

Stock Qlib executes a formula as Python code. Here the text is read by the factor language's reader, which lets through
names, numbers, signs and quoted codes, and every name must be an operator that is registered; the objects are then
built one by one.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from qlib.data.base import Expression, Feature, PFeature
from qlib.data.ops import Operators

from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.parser import read
from qlib_llm_alpha.factor.printing import stock_form, to_text
from qlib_llm_alpha.factor.tree import Call, Code, Field, Node, Number, walk
from qlib_llm_alpha.ops.ours import OPERATORS as OURS

_LIMITS: Final = Limits(text=20_000, depth=60, nodes=5_000)
"""Texts of a workflow may be longer than formulas of a search; they are bounded all the same."""

_OURS: Final = {operator.__name__: operator for operator in OURS}


@functools.lru_cache(maxsize=10_000)
def read_text(text: str) -> Node:
    """Return the tree of a formula text as Qlib would execute it.

    Raises
    ------
    ExpressionError
        The text cannot be read, or names an operator that neither Qlib nor we know.
    """
    tree = read(text, _LIMITS)
    for node in walk(tree):
        if isinstance(node, Call) and node.op not in OPERATORS and _registered(node.op) is None:
            raise ExpressionError(
                "unknown_operator",
                f"{node.op!r} in {text:.120}: expected an operator of Qlib, of ours, or one registered through "
                "qlib_init.custom_ops",
            )
    return tree


def is_foreign(call: Call) -> bool:
    """Say whether a call is of a class that somebody registered with Qlib and we do not compute ourselves."""
    registered = _registered(call.op)
    if registered is None or registered is _OURS.get(call.op):
        return False
    return not registered.__module__.startswith("qlib.data.") or call.op in ("TResample", "Rolling")


def to_qlib(node: Node) -> Any:
    """Return what Qlib would make of a tree: an ``Expression``, a number, or a text in quotes.

    Raises
    ------
    ExpressionError
        Qlib has no class of that name, or the class does not take the arguments.
    """
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Code):
        return node.value
    if isinstance(node, Field):
        return PFeature(node.name[2:]) if node.name.startswith("$$") else Feature(node.name[1:])
    registered = _registered(node.op) or _OURS.get(node.op)
    if registered is None and node.op in OPERATORS and OPERATORS[node.op].stock:
        return to_qlib(stock_form(node.op, node.args))
    if registered is None:
        raise ExpressionError("unknown_operator", f"{node.op!r} is no operator that is registered with Qlib")
    try:
        return registered(*(to_qlib(argument) for argument in node.args))
    except (TypeError, ValueError) as error:
        raise ExpressionError("bad_argument", f"{to_text(node):.120}: {error}; correct the arguments") from error


def _registered(name: str) -> type[Expression] | None:
    found = getattr(Operators, name, None)
    # The registry's own methods, such as reset, are found under their names as well.
    return found if isinstance(found, type) and issubclass(found, Expression) else None
