"""Text to tree: a lexer that knows only our tokens, then Python's ``ast`` under an allow-list. Nothing is executed.

Python's own parser sees only text that the lexer has passed: no quotes but those of an instrument code, no brackets, no
dots, no keywords, bounded length, bounded nesting. Which operators exist and what they accept is for ``checks``.
"""

from __future__ import annotations

import ast
import keyword
import re
from typing import Final

from qlib_llm_alpha.factor.limits import Limits
from qlib_llm_alpha.factor.operators import OPERATORS
from qlib_llm_alpha.factor.reasons import Reason, refusal
from qlib_llm_alpha.factor.tree import Call, Code, Field, Node, Number

# A number may not touch a letter, digit or dot, which leaves no hexadecimal, complex, `1_000` or `1.real`.
_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<field>\$\$?[A-Za-z]\w*)
    |(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    |(?P<name>[A-Za-z]\w*)
    |(?P<code>'[A-Za-z0-9.]{1,16}'|"[A-Za-z0-9.]{1,16}")
    |(?P<sign>\*\*|[<>=!]=|[-+*/<>&|(),])""",
    re.ASCII | re.VERBOSE,
)

_HINTS: Final[dict[str, str]] = {
    "[": "there are no lists or indices; Ref(x, N) is the value N bars ago",
    "%": "there is no remainder",
    "^": "write Power(x, y)",
    "~": "write Not(condition)",
    "=": "there are no assignments or keyword arguments; equality is ==",
    "@": "there is no matrix product",
    ".": "there are no attributes",
    "_": "names do not begin with an underscore",
    ";": "one formula at a time",
    "$": "a field is $ and a name, such as $close",
    "if": "write If(condition, x, y)",
    "else": "write If(condition, x, y)",
    "and": "write (condition) & (condition), or And(...)",
    "or": "write (condition) | (condition), or Or(...)",
    "not": "write Not(condition)",
    "//": "there is no whole-number division; write /",
}

_BINARY: Final[dict[type[ast.AST], str]] = {
    ast.Add: "Add",
    ast.Sub: "Sub",
    ast.Mult: "Mul",
    ast.Div: "Div",
    ast.Pow: "Power",
    ast.BitAnd: "And",
    ast.BitOr: "Or",
    ast.Gt: "Gt",
    ast.GtE: "Ge",
    ast.Lt: "Lt",
    ast.LtE: "Le",
    ast.Eq: "Eq",
    ast.NotEq: "Ne",
}

_LONGEST_NUMBER: Final = 40
_AROUND: Final = 30


def read(text: object, limits: Limits) -> Node:
    """Return the tree of ``text`` as it was written.

    Raises
    ------
    ExpressionError
        With a reason of ``reasons.py``; the detail points at the place.
    """
    if not isinstance(text, str):
        raise refusal(
            "syntax_error", f"expected the text of a formula, such as '$close/Ref($close,1)-1'; got {text!r:.80}"
        )
    if len(text) > limits.text:
        raise refusal("too_long", f"{len(text)} characters, at most {limits.text} are read; split the formula")
    if not text.strip():
        raise refusal("empty", "expected a formula, such as $close/Ref($close,1)-1; the text is blank")
    text = text.strip(" \t\r\n")
    source = _python_source(text, limits)
    try:
        body = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise refusal("syntax_error", f"{error.msg} {_place(text, (error.offset or 1) - 1)}") from None
    except (RecursionError, MemoryError):  # pragma: no cover - only where the caller's own stack is nearly full
        raise refusal("too_deep", f"nested too deeply to be read: {text[:_AROUND]}...") from None
    return _Reader(text, limits).node(body, 0)


def _python_source(text: str, limits: Limits) -> str:
    """Return ``text`` with ``$`` as ``_``, letter for letter, after refusing every token and nesting not ours."""
    pieces: list[str] = []
    position = parentheses = prefixes = powers = tokens = 0
    after_operand = False
    deepest = 4 * limits.depth
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(text, position)
        word, kind = match.group(), match.lastgroup
        if kind == "number" and word[0] == "0" and word[1:2].isdigit():
            plain = word.lstrip("0") or "0"
            raise refusal(
                "syntax_error",
                f"a number does not begin with a needless 0; write {plain:.20} {_place(text, position, match.end())}",
            )
        if kind == "space":
            pieces.append(" " * len(word))
            position = match.end()
            continue
        tokens += 1
        if kind == "sign":
            if word in "()":
                parentheses += 1 if word == "(" else -1
            prefixes = 0 if after_operand or word in "()," else prefixes + 1
            powers += word == "**"
            after_operand = word == ")"
            if word == "/" and text.startswith("//", position):
                raise _unsupported(text, position, "//")
            if max(parentheses, prefixes, powers) > deepest:
                raise refusal("too_deep", f"more than {deepest} nested signs {_place(text, position)}")
            pieces.append(word)
        else:
            after_operand, prefixes = True, 0
            if kind == "name" and keyword.iskeyword(word) and word not in ("True", "False"):
                raise _unsupported(text, position, word)
            if kind == "number" and len(word) > _LONGEST_NUMBER:
                raise refusal("bad_number", f"a number of {len(word)} characters {_place(text, position)}")
            pieces.append(word.replace("$", "_") if kind == "field" else word)
        position = match.end()
    if tokens > 8 * limits.nodes:
        raise refusal(
            "too_many_nodes", f"{tokens} words and signs, at most {8 * limits.nodes} are read; simplify the formula"
        )
    return "".join(pieces)


class _Reader:
    def __init__(self, text: str, limits: Limits) -> None:
        self.text = text
        self.limits = limits
        self.deepest = 2 * limits.depth + 8

    def node(self, item: ast.expr, depth: int) -> Node:
        if depth > self.deepest:
            raise self._refusal("too_deep", f"more than {self.limits.depth} nested operators", item)
        if isinstance(item, ast.Call):
            return self._call(item, depth)
        if isinstance(item, ast.Name):
            return self._name(item)
        if isinstance(item, ast.Constant) and isinstance(item.value, (int, float)):
            return Number(item.value)
        if isinstance(item, ast.Constant) and isinstance(item.value, str):
            return Code(item.value)
        if isinstance(item, ast.BinOp) and type(item.op) in _BINARY:
            return Call(_BINARY[type(item.op)], (self.node(item.left, depth + 1), self.node(item.right, depth + 1)))
        if isinstance(item, ast.UnaryOp) and isinstance(item.op, (ast.USub, ast.UAdd)):
            return self._signed(item, depth)
        if isinstance(item, ast.Compare):
            return self._comparison(item, depth)
        raise self._refusal(
            "unsupported_syntax", f"{type(item).__name__.lower()} is not part of the factor language", item
        )

    def _call(self, item: ast.Call, depth: int) -> Node:
        if not isinstance(item.func, ast.Name):
            raise self._refusal("unsupported_syntax", "only an operator's name can stand in front of (", item)
        if item.func.id.startswith("_"):
            raise self._refusal("unsupported_syntax", "a field cannot be called", item)
        if item.keywords:
            raise self._refusal("unsupported_syntax", "arguments are given in order, not by keyword", item)
        return Call(item.func.id, tuple([self.node(argument, depth + 1) for argument in item.args]))

    def _name(self, item: ast.Name) -> Node:
        name = item.id
        if name.startswith("__"):
            return Field(f"$${name[2:]}")
        if name.startswith("_"):
            return Field(f"${name[1:]}")
        if name in OPERATORS:
            raise self._refusal("arity", f"{name} needs its arguments: {OPERATORS[name].signature}", item)
        raise self._refusal("unknown_field", f"{name!r} is no field; a field is written ${name.lower()}", item)

    def _signed(self, item: ast.UnaryOp, depth: int) -> Node:
        operand = self.node(item.operand, depth + 1)
        if isinstance(item.op, ast.UAdd):
            return operand
        if isinstance(operand, Number) and not isinstance(operand.value, bool):
            return Number(-operand.value)
        return Call("Neg", (operand,))

    def _comparison(self, item: ast.Compare, depth: int) -> Node:
        if len(item.ops) > 1:
            raise self._refusal(
                "chained_comparison",
                "Qlib keeps only the last of chained comparisons; write (a<b)&(b<c), each comparison in parentheses",
                item,
            )
        return Call(
            _BINARY[type(item.ops[0])], (self.node(item.left, depth + 1), self.node(item.comparators[0], depth + 1))
        )

    def _refusal(self, reason: Reason, message: str, item: ast.expr) -> Exception:
        end = item.end_col_offset or item.col_offset
        return refusal(reason, f"{message} {_place(self.text, item.col_offset, end)}")


def _unreadable(text: str, position: int) -> Exception:
    character = text[position]
    if not " " <= character <= "~":
        return refusal("not_ascii", f"character {character!a} {_place(text, position)}; write plain ASCII")
    if character.isdigit() or (character == "." and text[position + 1 : position + 2].isdigit()):
        return refusal("bad_number", f"numbers are written 12, 0.5 or 1e-12 {_place(text, position)}")
    return _unsupported(text, position, character)


def _unsupported(text: str, position: int, word: str) -> Exception:
    hint = f"; {_HINTS[word]}" if word in _HINTS else ""
    return refusal("unsupported_syntax", f"{word!r} is not part of the factor language {_place(text, position)}{hint}")


def _place(text: str, start: int, end: int | None = None) -> str:
    """Return the surroundings of a place in plain ASCII, the place itself between arrows."""
    stop = min(max(start + 1, end or 0), start + 2 * _AROUND)
    before, here, after = text[max(0, start - _AROUND) : start], text[start:stop], text[stop : stop + _AROUND]
    shown = f"{'...' * (start > _AROUND)}{before}-->{here}<--{after}{'...' * (stop + _AROUND < len(text))}"
    return f"at character {start + 1}: {shown.encode('unicode_escape').decode('ascii')}"
