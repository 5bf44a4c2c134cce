"""Formulas from a file: one a line, or a factor set."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qlib_llm_alpha.engine.evaluate import Warmup
from qlib_llm_alpha.errors import ExpressionError, LibraryError
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.library.factor_set import builtin_names, load_factor_set

_NAMED: Final = re.compile(r"([\w.-]+)\s*:\s*(.+)", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class ReadFormula:
    """One formula of a file.

    Parameters
    ----------
    name : str
        What stands before a colon, else the text itself.
    text : str
    expression : Expression or None
        None where the factor language refuses the text.
    refusal : str
        Why, with its reason code; empty where it does not.
    """

    name: str
    text: str
    expression: Expression | None
    refusal: str = ""


def read_formulas(file: str, fields: Collection[str] = ()) -> tuple[list[ReadFormula], Warmup]:
    """Read formulas and the warm-up rule under which they are meant.

    Parameters
    ----------
    file : str
        The path of a text with one formula a line, ``name: formula`` or the formula alone, ``#`` before a note; ``-``
        for such a text on standard input; the path of a factor set (``.yaml``); or the name or id of a built-in set.
        Formulas of a text are warmed up strictly.
    fields : collection of str
        Fields that the provider has beyond those that the language knows, with their sigil.

    Raises
    ------
    LibraryError
        No such file or set, two formulas of one name, or no formula at all.
    """
    if file in builtin_names() or file.endswith((".yaml", ".yml")) or (_ID.fullmatch(file) and not Path(file).exists()):
        found = load_factor_set(file)
        return [ReadFormula(one.name, str(one.expression), one.expression) for one in found.factors], found.warmup
    # Bytes that are no UTF-8 stay in the text as what the language refuses, so that only their line is lost.
    lines = [line.strip() for line in _content(file).decode("utf-8-sig", errors="surrogateescape").split("\n")]
    formulas = [_read(line, fields) for line in lines if line and not line.startswith("#")]
    names = [formula.name for formula in formulas]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LibraryError(
            f"{file}: {twice} stand there more than once; expected one formula each: rename or drop them"
        )
    if not formulas:
        raise LibraryError(f"{file}: expected one formula a line, found none; write for example $close/Ref($close,1)-1")
    return formulas, "strict"


def _content(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    if not Path(file).is_file():
        raise LibraryError(
            f"{file!r} is no file; expected a text with one formula a line, a factor set (.yaml), or one of the "
            f"built-in sets {', '.join(builtin_names())}"
        )
    return Path(file).read_bytes()


def _read(line: str, fields: Collection[str]) -> ReadFormula:
    named = _NAMED.fullmatch(line)
    name, text = named.groups() if named else (line, line)
    try:
        return ReadFormula(name, text, parse(text, fields=fields))
    except ExpressionError as error:
        return ReadFormula(name, text, None, str(error))
