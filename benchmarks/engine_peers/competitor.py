"""What every competitor offers, and the walk from a formula to its own terms."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine_peers.market import Market
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.parser import read
from qlib_llm_alpha.factor.tree import Call, Field, Node, Number

Term = TypeVar("Term")
Result = NDArray[np.float32]

CONDITIONS = frozenset({"Gt", "Ge", "Lt", "Le", "Eq", "Ne", "And", "Or", "Not"})


class NotExpressibleError(Exception):
    """The competitor has no such operator; the message is the operator's name."""


class Competitor:
    """One engine with one market, in a process of its own.

    A batch is translated and compiled by :meth:`batch`; :meth:`values` computes all of it into float32 and is what is
    timed.

    Parameters
    ----------
    market : Market
    threads : int
        How many threads it may use.
    """

    versions: tuple[str, ...] = ()
    warm_up = True

    def __init__(self, market: Market, threads: int) -> None:
        self.market = market
        self.threads = threads

    def batch(self, expressions: Sequence[str]) -> dict[str, Any]:
        """Compile what can be expressed; return its positions, what was missing how often, and the seconds it took."""
        began = time.perf_counter()
        terms, positions = [], []
        missing: dict[str, int] = {}
        for position, expression in enumerate(expressions):
            try:
                terms.append(self.translate(expression))
            except NotExpressibleError as error:
                missing[str(error)] = missing.get(str(error), 0) + 1
            else:
                positions.append(position)
        self.compile(terms)
        seconds = time.perf_counter() - began
        if self.warm_up and terms:
            self.values()
        return {"positions": positions, "missing": missing, "seconds": seconds}

    def alone(self, expression: str) -> float:
        """Return the seconds that an expression costs when it is new, beyond what it costs the second time."""
        began = time.perf_counter()
        self.compile([self.translate(expression)])
        self.values()
        new = time.perf_counter() - began
        began = time.perf_counter()
        self.values()
        return max(0.0, new - (time.perf_counter() - began))

    def translate(self, expression: str) -> Any:
        """Return the expression in the competitor's terms; NotExpressibleError where it has none."""
        raise NotImplementedError

    def compile(self, terms: Sequence[Any]) -> None:
        """Make ready the batch that :meth:`values` computes."""
        raise NotImplementedError

    def values(self) -> None:
        """Compute the batch, float32, and keep it."""
        raise NotImplementedError

    def sample(self, columns: Sequence[int]) -> Result:
        """Return the last batch on some names, (expressions, days, names), NaN where a name does not exist."""
        raise NotImplementedError

    def write_sample(self, columns: Sequence[int], file: str) -> None:
        """Save :meth:`sample` as ``.npy``, with NaN where a name does not exist."""
        sample = np.array(self.sample(columns), np.float32)
        sample[:, ~self.market.exists()[:, list(columns)]] = np.nan
        np.save(file, sample)


def tree(expression: str) -> Node:
    """Return the tree of a formula, read by our parser."""
    return read(expression, Limits())


def translated(
    node: Node, leaf: Callable[[str], Term], operator: Callable[[Call, list[Any]], Term], known: dict[Node, Any]
) -> Any:
    """Walk a tree from its leaves: numbers stay numbers, and equal branches are translated once.

    Parameters
    ----------
    leaf : callable
        Takes the name of a field.
    operator : callable
        Takes a call and its translated arguments.
    known : dict
        What was translated already; shared between the formulas of a batch it shares their branches.
    """
    if isinstance(node, Number):
        return node.value
    if node not in known:
        if isinstance(node, Field):
            known[node] = leaf(node.name.lstrip("$"))
        elif isinstance(node, Call):
            known[node] = operator(node, [translated(part, leaf, operator, known) for part in node.args])
        else:
            raise NotExpressibleError(type(node).__name__)
    return known[node]


def is_condition(node: Node) -> bool:
    """Tell whether a branch gives true and false instead of numbers."""
    return isinstance(node, Call) and node.op in CONDITIONS
