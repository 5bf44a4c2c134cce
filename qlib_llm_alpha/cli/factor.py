"""``qlib-llm-alpha factor``: what can be done with formulas on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from qlib_llm_alpha import wiring
from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.factor.limits import Limits

if TYPE_CHECKING:
    from qlib_llm_alpha.factor.check import CheckResult

LONGEST_LINE = Limits().text + 8  # bytes: the longest formula, a byte order mark and a line end
LONGEST_SKIP = 1 << 28  # bytes without a line end after which a file, such as /dev/full, is no text
ECHO = 200  # characters of a refused line that are printed


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
    found, refused = 0, 0
    for result in _results(args.file, args.units):
        print(json.dumps(dataclasses.asdict(result)) if args.json else _line(result))
        found += 1
        refused += not result.ok
    if not found:
        raise ConfigError(
            f"{args.file}: expected one formula a line, found none; write for example $close/Ref($close,1)-1"
        )
    return 1 if refused else 0


def _results(file: str, units: Literal["refuse", "warn"]) -> Iterator[CheckResult]:
    """Give the verdict on each formula as it is read; bytes that are no UTF-8 are refused with their line."""
    with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as stream:
        for number, (raw, whole) in enumerate(_lines(stream, file)):
            line = raw.decode("utf-8" if number else "utf-8-sig", errors="surrogateescape").strip()
            if line.startswith("#") or (whole and not line):
                continue
            yield wiring.check_formulas([line], units=units)[0] if whole else _too_long(line)


def _lines(stream: BinaryIO, file: str) -> Iterator[tuple[bytes, bool]]:
    """Give each line, or the beginning of one that is too long, and whether it is whole."""
    while line := stream.readline(LONGEST_LINE):
        whole = line.endswith(b"\n") or len(line) < LONGEST_LINE
        skipped, rest = 0, line
        while not whole and rest and not rest.endswith(b"\n"):
            rest = stream.readline(1 << 16)
            skipped += len(rest)
            if skipped > LONGEST_SKIP:
                raise ConfigError(f"{file}: no line end in {skipped} bytes; expected a text with one formula a line")
        yield line, whole


def _too_long(line: str) -> CheckResult:
    from qlib_llm_alpha.factor.check import CheckResult

    most = Limits().text
    detail = f"more than {most} characters, at most {most} are read; split the formula"
    return CheckResult(_cut(line), False, None, None, None, (), "too_long", detail)


def _cut(text: str) -> str:
    return text if len(text) <= ECHO else f"{text[:ECHO]}..."


def _line(result: CheckResult) -> str:
    detail = f"  [{result.reason}] {result.detail}" if result.reason else ""
    formula = result.expression if result.ok else _cut(result.expression)
    text = f"{'ok' if result.ok else 'refused':8}{result.id or '-':13} {formula}{detail}"
    return text.encode("ascii", errors="backslashreplace").decode("ascii").translate(_CONTROLS)


# A formula can hold anything, also what a terminal takes for a command.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
