"""The graph of a batch: one node for each distinct sub-formula of all its candidates.

A tree is entered as Qlib would execute it (``factor.printing.lower`` prepares formulas of the factor language); which
value an operator has for strange arguments is Qlib's business and followed here. Two sub-formulas are one node when
they are written alike, up to the order of arguments that cannot change a bit of the result.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from qlib_llm_alpha.engine.across import ACROSS
from qlib_llm_alpha.engine.kernels import exponential, extremes, lines, order, pairs, shape, sums  # noqa: F401
from qlib_llm_alpha.engine.kernels.registry import KERNELS
from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.printing import stock_form, to_text
from qlib_llm_alpha.factor.tree import Call, Code, Field, Number
from qlib_llm_alpha.factor.tree import Node as Tree

Scalar: TypeAlias = "int | float | bool"

ELEMENTWISE: Final[dict[str, np.ufunc]] = {
    "Abs": np.absolute,
    "Log": np.log,
    "Not": np.invert,
    "Exp": np.exp,
    "Tanh": np.tanh,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Greater": np.maximum,
    "Less": np.minimum,
    "Gt": np.greater,
    "Ge": np.greater_equal,
    "Lt": np.less,
    "Le": np.less_equal,
    "Eq": np.equal,
    "Ne": np.not_equal,
    "And": np.bitwise_and,
    "Or": np.bitwise_or,
}
"""Operators that are one numpy function of the values of the day."""

NATIVE: Final = frozenset(name for name in ELEMENTWISE if name in OPERATORS and OPERATORS[name].stock)
"""Operators that have a stock form and are computed directly nevertheless."""

COMPARISONS: Final = frozenset({"Gt", "Ge", "Lt", "Le", "Eq", "Ne"})
_NOT_NAN: Final = COMPARISONS | {"And", "Or", "Not"}
# Not Greater and Less: of 0.0 and -0.0 numpy returns the second.
_EXCHANGEABLE: Final = frozenset({"Add", "Mul", "And", "Or", "Eq", "Ne"})
_FOLDED: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.truediv,
    "Power": operator.pow,
}
# Qlib's operators that turn a window between 0 and 1 into an exponential mean, whatever their name says.
_FRACTION_IS_DECAY: Final = frozenset({"Mean", "Sum", "Std", "Var", "Max", "Min", "Med", "Count", "EMA"})
_WHOLE: Final = 2**53
_SMALLEST_WINDOW: Final = {"Skew": 3, "Kurt": 4}
_ANOTHER_INSTRUMENT: Final = frozenset({"ChangeInstrument", "Mask"})


@dataclass(eq=False, slots=True)
class Node:
    """One sub-formula.

    Parameters
    ----------
    id : int
        Its place in the graph; arguments have smaller ids.
    op : str
        ``column`` (read from the panel), ``Other`` (a formula of another instrument), or the operator.
    args : tuple of Node or number
    parameters : tuple
        Window and further numbers; the name of a column; the code of another instrument.
    clean : bool
        The value is NaN before the first row that exists, whatever the operator does with missing values.
    """

    id: int
    op: str
    args: tuple[Node | Scalar, ...]
    parameters: tuple[Any, ...]
    clean: bool

    @property
    def children(self) -> Iterator[Node]:
        """The arguments that are nodes."""
        return (argument for argument in self.args if isinstance(argument, Node))


@dataclass(eq=False)
class Graph:
    """Nodes by what they compute.

    Parameters
    ----------
    foreign : callable
        ``foreign(tree)`` says whether a call is evaluated by the panel's source as one column, for example an operator
        that the user wrote for Qlib.
    """

    foreign: Callable[[Call], bool] = lambda tree: False
    nodes: list[Node] = field(default_factory=list)
    _known: dict[tuple[Any, ...], Node] = field(default_factory=dict, repr=False)

    def add(self, tree: Tree) -> Node:
        """Enter a tree and return its node.

        Raises
        ------
        ExpressionError
            An operator that nobody computes, a window that means nothing, or a formula without a field.
        """
        node = self._enter(tree)
        if not isinstance(node, Node):
            raise ExpressionError("constant", f"{to_text(tree):.120} is the number {node}; expected a field in it")
        return node

    def _enter(self, tree: Tree) -> Node | Scalar:
        if isinstance(tree, Number):
            return tree.value if abs(tree.value) < _WHOLE else float(tree.value)
        if isinstance(tree, Field):
            return self._column(tree.name)
        if isinstance(tree, Code):
            raise ExpressionError(
                "bad_argument", f"{tree.value!r} stands where a formula is due; write it without quotes"
            )
        if self.foreign(tree) or (tree.op in ("P", "PRef")):
            return self._column(to_text(tree))
        _check_arity(tree)
        if tree.op in _ANOTHER_INSTRUMENT:
            return self._other(tree)
        if tree.op in KERNELS and tree.op != "Ewm":
            return self._windowed(tree)
        if tree.op in ("Ref", "Delta"):
            return self._shifted(tree)
        if tree.op in ACROSS:
            return self._across(tree)
        if tree.op in ("Power", "If", "Sign") or tree.op in ELEMENTWISE:
            return self._elementwise(tree)
        if tree.op in OPERATORS and OPERATORS[tree.op].stock:
            return self._enter(stock_form(tree.op, tree.args))
        raise ExpressionError("unknown_operator", f"{tree.op!r} in {to_text(tree):.120}: nothing here computes it")

    def _node(
        self, op: str, args: tuple[Node | Scalar, ...] = (), parameters: tuple[Any, ...] = (), clean: bool = True
    ) -> Node:
        if op in _EXCHANGEABLE:
            args = tuple(sorted(args, key=_place))
        key = (op, *map(_place, args), "|", *map(_place, parameters))
        if key not in self._known:
            self._known[key] = Node(len(self.nodes), op, args, parameters, clean)
            self.nodes.append(self._known[key])
        return self._known[key]

    def _column(self, name: str) -> Node:
        return self._node("column", (), (name,))

    def _other(self, tree: Call) -> Node | Scalar:
        code, inner = (tree.args[0], tree.args[1]) if tree.op == "ChangeInstrument" else (tree.args[1], tree.args[0])
        if not isinstance(code, Code):
            raise ExpressionError(
                "bad_argument", f"{to_text(tree):.120}: expected an instrument code in quotes, such as 'SH000300'"
            )
        child = self._enter(inner)
        if not isinstance(child, Node):
            return child
        if any(node.op in ACROSS for node in below([child])):
            raise ExpressionError(
                "misplaced", f"{to_text(tree):.120}: one instrument has no cross-section; take the CS operator outside"
            )
        return self._node("Other", (child,), (code.value.upper(),))

    def _windowed(self, tree: Call) -> Node:
        kernel = KERNELS[tree.op]
        series = [self._series(argument, tree) for argument in tree.args[: kernel.inputs]]
        window, *rest = [self._number(argument, tree) for argument in tree.args[kernel.inputs :]]
        if tree.op in _FRACTION_IS_DECAY and isinstance(window, float) and 0 < window < 1:
            return self._node("Ewm", tuple(series), (0, window))
        if tree.op == "EMA":
            if 0 < window < 1 or window < 0:
                raise _bad_window(tree, window, "at least 1, 0 for all bars, or a weight between 0 and 1")
            return self._node("ExpandingEMA" if window == 0 else "EMA", tuple(series), (window,))
        if type(window) is not int or window < 0 or 0 < window < _SMALLEST_WINDOW.get(tree.op, 1):
            smallest = _SMALLEST_WINDOW.get(tree.op, 1)
            raise _bad_window(tree, window, f"a whole number of bars, at least {smallest}, or 0 for all bars")
        op = f"Expanding{tree.op}" if window == 0 and f"Expanding{tree.op}" in KERNELS else tree.op
        return self._node(op, tuple(series), (window, *rest), clean=tree.op != "Count")

    def _shifted(self, tree: Call) -> Node:
        series = self._series(tree.args[0], tree)
        shift = self._number(tree.args[1], tree)
        if type(shift) is not int:
            raise _bad_window(tree, shift, "a whole number of bars")
        # The first bar of all, and bars to come, also stand on rows before the first one.
        return self._node(tree.op, (series,), (shift,), clean=tree.op == "Delta" or shift > 0)

    def _across(self, tree: Call) -> Node:
        args = [self._enter(argument) for argument in tree.args]
        series = tuple(argument for argument in args if isinstance(argument, Node))
        if not series or args[: len(series)] != list(series):
            raise ExpressionError("bad_argument", f"{to_text(tree):.120}: expected {OPERATORS[tree.op].signature}")
        return self._node(tree.op, series, tuple(args[len(series) :]))

    def _elementwise(self, tree: Call) -> Node | Scalar:
        args = tuple(self._enter(argument) for argument in tree.args)
        if not any(isinstance(argument, Node) for argument in args):
            return _folded(tree, args)
        return self._node(tree.op, args, (), _is_clean(tree.op, args))

    def _series(self, tree: Tree, call: Call) -> Node:
        node = self._enter(tree)
        if not isinstance(node, Node):
            raise ExpressionError(
                "bad_argument", f"{to_text(call):.120}: {node!r} has no past; expected a formula there"
            )
        return node

    def _number(self, tree: Tree, call: Call) -> Scalar:
        value = self._enter(tree)
        if isinstance(value, Node):
            raise ExpressionError(
                "bad_argument", f"{to_text(call):.120}: {to_text(tree):.60} stands where a number is due; write one"
            )
        return value


def below(roots: list[Node], stop: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """Return the nodes that ``roots`` need, arguments first; nodes for which ``stop`` holds are not looked into."""
    found: dict[int, Node] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node.id not in found:
            found[node.id] = node
            if not stop(node):
                stack.extend(node.children)
    return [found[place] for place in sorted(found)]


def _check_arity(tree: Call) -> None:
    if tree.op not in OPERATORS and tree.op not in KERNELS and tree.op not in _ANOTHER_INSTRUMENT:
        return
    # Qlib's own operators that the language leaves out, WMA and Mask, take two arguments.
    signature = OPERATORS[tree.op].signature if tree.op in OPERATORS else f"{tree.op}(x, N)"
    expected = len(OPERATORS[tree.op].arguments) if tree.op in OPERATORS else 2
    if len(tree.args) != expected:
        raise ExpressionError(
            "arity", f"{to_text(tree):.120}: {len(tree.args)} arguments; expected {expected}: {signature}"
        )


def _place(value: object) -> tuple[str, str]:
    # repr tells 1 from 1.0 and 0.0 from -0.0: numpy gives them different types and signs.
    return ("node", f"{value.id:09d}") if isinstance(value, Node) else (type(value).__name__, repr(value))


def _is_clean(op: str, args: tuple[Node | Scalar, ...]) -> bool:
    nodes = [argument for argument in args if isinstance(argument, Node)]
    if op in _NOT_NAN:
        return False
    if op == "If":
        return all(isinstance(argument, Node) and argument.clean for argument in args[1:])
    if op == "Power":
        # Anything to the power of 0 is 1, and 1 to the power of anything.
        base, exponent = args
        return isinstance(base, Node) and base.clean and not isinstance(exponent, Node) and exponent != 0
    return any(node.clean for node in nodes)


def _folded(tree: Call, args: tuple[Any, ...]) -> Scalar:
    """Return the value of an operator on numbers; whole numbers stay whole as long as floats can tell them apart."""
    if tree.op not in _FOLDED:
        raise ExpressionError("constant", f"{to_text(tree):.120}: {tree.op} of numbers; expected a field in it")
    try:
        value: Scalar = _FOLDED[tree.op](*map(float, args))
    except ArithmeticError as error:
        raise ExpressionError("bad_number", f"{to_text(tree):.120}: {error}; correct the numbers") from error
    if isinstance(value, complex) or not math.isfinite(value):
        raise ExpressionError(
            "bad_number", f"{to_text(tree):.120} is {value}; expected a finite real number; correct it"
        )
    whole = all(isinstance(argument, int) for argument in args) and abs(value) < _WHOLE
    return _FOLDED[tree.op](*args) if whole else value


def _bad_window(tree: Call, window: object, expected: str) -> ExpressionError:
    return ExpressionError("bad_window", f"{to_text(tree):.120}: the window is {window!r}; expected {expected}")
