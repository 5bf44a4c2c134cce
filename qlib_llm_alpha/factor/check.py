"""One verdict for one text, as a value: what ``qlib-llm-alpha factor check`` prints."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qlib_llm_alpha.errors import ExpressionError
from qlib_llm_alpha.factor.checks import UnitMode
from qlib_llm_alpha.factor.expression import expression_of
from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.parser import read


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether a text is an expression, and if not, why.

    Parameters
    ----------
    expression : str
        In normal spelling, or as given where it was refused.
    ok : bool
        Whether it may be used.
    canonical, id : str or None
        Shared by all spellings of the same formula.
    lookback : int or None
        Bars needed before the day.
    fields : tuple of str
        Fields that are read; empty where it was refused.
    reason, detail : str or None
        Code and sentence of a refusal; ``unit_clash`` and its sentence also for a clash that was let pass.
    """

    expression: str
    ok: bool
    canonical: str | None
    id: str | None
    lookback: int | None
    fields: tuple[str, ...]
    reason: str | None
    detail: str | None


def check_expression(
    text: str,
    *,
    allow_future: bool = False,
    limits: Limits | None = None,
    units: UnitMode = "refuse",
    fields: Collection[str] = (),
) -> CheckResult:
    """Return the verdict on ``text``; arguments as in :func:`qlib_llm_alpha.factor.expression.parse`."""
    bounds = limits or Limits()
    try:
        root = read(text, bounds)
        expression = expression_of(root, allow_future=allow_future, limits=bounds, units=units, fields=fields)
    except ExpressionError as error:
        return CheckResult(text, False, None, None, None, (), error.reason, error.detail)
    return CheckResult(
        expression=expression.text,
        ok=True,
        canonical=expression.canonical,
        id=expression.id,
        lookback=expression.lookback,
        fields=expression.fields,
        reason="unit_clash" if expression.warnings else None,
        detail="; ".join(expression.warnings) or None,
    )
