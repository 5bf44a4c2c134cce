"""An expression: a formula that was read, checked and may be executed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from qlib_llm_alpha.factor.canonical import canonical_text, identity
from qlib_llm_alpha.factor.checks import UnitMode, check
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.parser import read
from qlib_llm_alpha.factor.printing import lower, to_text
from qlib_llm_alpha.factor.reasons import refusal
from qlib_llm_alpha.factor.tree import Call, Code, Field, Node, Number

__all__ = ["Call", "Code", "Expression", "Field", "Limits", "Node", "Number", "expression_of", "parse"]

_LOG = logging.getLogger(__name__)
_DEFAULT_LIMITS = Limits()
# Qlib's Alpha360 publishes it as CLOSE0; every other formula without a field left is refused.
_PUBLISHED_CONSTANT = Call("Div", (Field("$close"), Field("$close")))


@dataclass(frozen=True)
class Expression:
    """A formula as it was written, with what the checks found out. Make one with :func:`parse`.

    Two expressions are equal when their trees are; ``canonical`` and ``id`` tell what is the same up to algebra.
    A value dated t reads bars from t - ``lookback`` to t, with the close of t known.

    Parameters
    ----------
    root : Node
        The tree as written: ``Call``, ``Field``, ``Number``, ``Code``.
    lookback : int
        Bars before t that the value reads; for an exponential mean of N, 3N.
    lookahead : int
        Bars after t; above 0 only for a label, read with ``allow_future``.
    fields : tuple of str
        Sorted, such as ``("$$eps_q", "$close")``.
    depth, nodes : int
        Size of the tree.
    is_cross_sectional : bool
        Some operator reads all instruments of the day.
    warnings : tuple of str
        Unit clashes that were let pass.
    """

    root: Node
    lookback: int = field(compare=False)
    lookahead: int = field(compare=False)
    fields: tuple[str, ...] = field(compare=False)
    depth: int = field(compare=False)
    nodes: int = field(compare=False)
    is_cross_sectional: bool = field(compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.text

    @functools.cached_property
    def text(self) -> str:
        """What was written, in normal spelling: ``parse(e.text) == e``."""
        return to_text(self.root)

    @functools.cached_property
    def qlib(self) -> str:
        """The text for Qlib: its own operators, and by name those of ours that cannot be said in them.

        Stock Qlib evaluates ``DecayLinear`` and the like when ``qlib_llm_alpha.ops.ours`` is registered. Where
        ``needs_engine`` holds, only our dataset provider serves the text.
        """
        return to_text(self._lowered)

    @property
    def needs_engine(self) -> bool:
        """Whether stock Qlib cannot evaluate it, whatever is registered: it evaluates one instrument at a time."""
        return self.is_cross_sectional

    @functools.cached_property
    def canonical(self) -> str:
        """The text that all spellings of the same formula share; for comparing, never for executing."""
        return canonical_text(self._lowered)

    @functools.cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for ``canonical``."""
        return identity(self.canonical)

    @functools.cached_property
    def _lowered(self) -> Node:
        return lower(self.root)


def parse(
    text: str,
    *,
    allow_future: bool = False,
    limits: Limits = _DEFAULT_LIMITS,
    units: UnitMode = "refuse",
    fields: Collection[str] = (),
) -> Expression:
    """Read a formula.

    Parameters
    ----------
    text : str
        Qlib's expression syntax, for example ``$close/Ref($close,1)-1``; the operators are in
        ``operators.OPERATORS``, the fields in ``fields``.
    allow_future : bool
        Let ``Ref`` take a negative shift. For labels only.
    limits : Limits
        How large the formula may be.
    units : {"refuse", "warn"}
        What to do about a price plus a volume.
    fields : collection of str
        Further fields that the provider has, with their sigil, such as ``"$turn"``; their unit fits any.

    Raises
    ------
    ExpressionError
        With a reason of ``reasons.REASONS`` and a detail that quotes the place.
    """
    expression = expression_of(read(text, limits), allow_future=allow_future, limits=limits, units=units, fields=fields)
    for warning in expression.warnings:
        _LOG.warning("unit clash let pass: %s", warning)
    return expression


def expression_of(
    root: Node,
    *,
    allow_future: bool = False,
    limits: Limits = _DEFAULT_LIMITS,
    units: UnitMode = "refuse",
    fields: Collection[str] = (),
) -> Expression:
    """Return the expression of a tree that was built rather than read; checks and errors as in :func:`parse`."""
    found = check(root, allow_future=allow_future, limits=limits, unit_mode=units, more_fields=fields)
    expression = Expression(
        root=root,
        lookback=found.lookback,
        lookahead=found.lookahead,
        fields=found.fields,
        depth=found.depth,
        nodes=found.nodes,
        is_cross_sectional=found.is_cross_sectional,
        warnings=found.warnings,
    )
    # The algebra may still refuse; better here than where the id is first asked for.
    if "$" not in expression.canonical and root != _PUBLISHED_CONSTANT:
        raise refusal(
            "constant",
            f"{expression.text:.120} is always {expression.canonical:.30}: the fields cancel, and it is the same for "
            "every instrument and day",
        )
    return expression
