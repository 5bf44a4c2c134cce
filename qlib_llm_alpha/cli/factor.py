"""``qlib-llm-alpha factor``: what can be done with formulas on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib_llm_alpha import wiring
from qlib_llm_alpha.errors import ConfigError

if TYPE_CHECKING:
    from qlib_llm_alpha.factor.check import CheckResult


def add_parser(commands: Any) -> None:
    """Add ``factor`` and its sub-commands."""
    parser = commands.add_parser("factor", help="check formulas", description="What can be done with formulas.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="say of each formula whether it may be used, and if not, why",
        description="One verdict for each line of FILE. Exit code 0: all may be used; 1: some refused; 2: bad call.",
    )
    check.add_argument(
        "file", metavar="FILE", help="text with one formula a line ('-': standard input); # starts a note"
    )
    check.add_argument(
        "--units",
        choices=("refuse", "warn"),
        default="refuse",
        help="what to do about a price plus a volume (default: refuse)",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object a line")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    results = wiring.check_formulas(_formulas(args.file), units=args.units)
    for result in results:
        print(json.dumps(dataclasses.asdict(result)) if args.json else _line(result))
    return 0 if all(result.ok for result in results) else 1


def _formulas(file: str) -> list[str]:
    """Return the formulas of a file; bytes that are no UTF-8 reach the check, which refuses them with their line."""
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    lines = [line.strip() for line in raw.decode("utf-8-sig", errors="surrogateescape").split("\n")]
    formulas = [line for line in lines if line and not line.startswith("#")]
    if not formulas:
        raise ConfigError(f"{file}: expected one formula a line, found none; write for example $close/Ref($close,1)-1")
    return formulas


def _line(result: CheckResult) -> str:
    detail = f"  [{result.reason}] {result.detail}" if result.reason else ""
    text = f"{'ok' if result.ok else 'refused':8}{result.id or '-':13} {result.expression}{detail}"
    return text.encode("ascii", errors="backslashreplace").decode("ascii").translate(_CONTROLS)


# A formula can hold anything, also what a terminal takes for a command.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
