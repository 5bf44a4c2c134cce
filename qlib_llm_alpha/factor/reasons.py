"""The closed list of reasons for which the factor language refuses a formula."""

from __future__ import annotations

from typing import Final, Literal, get_args

from qlib_llm_alpha.errors import ExpressionError

Reason = Literal[
    "empty",
    "too_long",
    "not_ascii",
    "syntax_error",
    "unsupported_syntax",
    "chained_comparison",
    "unknown_operator",
    "unknown_field",
    "arity",
    "bad_argument",
    "bad_window",
    "look_ahead",
    "wrong_numbers",
    "bad_number",
    "constant",
    "needs_boolean",
    "unit_clash",
    "misplaced",
    "too_deep",
    "too_many_nodes",
    "lookback_limit",
]

REASONS: Final[dict[Reason, str]] = {
    "empty": "there is no formula in the text",
    "too_long": "the text has more characters than the limit",
    "not_ascii": "a character outside printable ASCII",
    "syntax_error": "the text cannot be read: a parenthesis, comma or operand is missing or too many",
    "unsupported_syntax": "Python that is not part of the factor language",
    "chained_comparison": "`a < b < c`, of which Qlib keeps only the last comparison",
    "unknown_operator": "a name in front of `(` that is not in the operator table",
    "unknown_field": "a `$field` or `$$field` that the provider does not have",
    "arity": "an operator with too few or too many arguments",
    "bad_argument": "an argument of the wrong kind (a formula where a number is due, a group that is not a field, ...)",
    "bad_window": "a window that is not a whole number within the operator's bounds",
    "look_ahead": "a negative shift, which reads the future",
    "wrong_numbers": "an operator or window for which Qlib computes something else than its name says",
    "bad_number": "a number that is not finite, too large, too small, or a division by zero",
    "constant": "a formula, or the argument of an operator, in which no field occurs or is left after algebra",
    "needs_boolean": "`If`, `And`, `Or`, `Not` on something that is not a comparison",
    "unit_clash": "two quantities of different units added, compared or chosen between",
    "misplaced": "a `$$field` outside `P(...)`, a daily `$field` inside it, or a cross-section where there is none",
    "too_deep": "more nested operators than the limit",
    "too_many_nodes": "more operators, fields and numbers than the limit",
    "lookback_limit": "more bars needed before the day than the limit",
}

if set(REASONS) != set(get_args(Reason)):  # pragma: no cover - holds at import or never
    raise AssertionError("REASONS and Reason list different codes")


def refusal(reason: Reason, detail: str) -> ExpressionError:
    """Return the error for ``reason``; the type of ``reason`` keeps the list closed."""
    return ExpressionError(reason, detail)
