"""``qlib-llm-alpha selftest``: find what is planted, refuse what leaks, admit nothing on noise."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Any

from qlib_llm_alpha.cli.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qlib_llm_alpha.guard.selftest import SelfTestRow

_QUESTION, _ANSWER = 46, 34


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "selftest",
        help="try admission, guards, walls and ledger on markets whose truth is known",
        description="Simulate markets, plant a formula in one and nothing in the other, smuggle a leak, open a sealed "
        "segment twice, change a byte of a ledger; print what was expected and what was found. No key, no data, no "
        "network. Exit codes: 0 all as expected, 1 something was not.",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=300, metavar="N", help="random formulas (default: 300)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from qlib_llm_alpha import wiring

    with progress_bar("trial") as progress:
        rows = wiring.run_self_test(seed=args.seed, trials=args.trials, progress=progress)
    if args.json:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row)))
    else:
        print(_table(rows))
    return 0 if all(row.passed for row in rows) else 1


def _table(rows: Sequence[SelfTestRow]) -> str:
    lines = [f"{'asked':<{_QUESTION}}  {'expected':<{_ANSWER}}  {'found':<{_ANSWER}}        s"]
    for row in rows:
        columns = [textwrap.wrap(row.question, _QUESTION)]
        columns += [textwrap.wrap(text, _ANSWER) for text in (row.expected, row.found)]
        height = max(len(column) for column in columns)
        for line in range(height):
            asked, expected, found = (column[line] if line < len(column) else "" for column in columns)
            mark = f"{'ok' if row.passed else 'FAILED':<6} {row.seconds:5.1f}" if line == 0 else ""
            lines.append(f"{asked:<{_QUESTION}}  {expected:<{_ANSWER}}  {found:<{_ANSWER}}  {mark}".rstrip())
    passed = sum(row.passed for row in rows)
    lines.append(f"{passed} of {len(rows)} as expected, in {sum(row.seconds for row in rows):.0f} s")
    return "\n".join(lines)
