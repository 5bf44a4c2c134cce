"""``qlib-llm-alpha ledger``: what was tried, what was looked at, and whether the record of it is whole."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib_llm_alpha import wiring
from qlib_llm_alpha.errors import ConfigError

if TYPE_CHECKING:
    from qlib_llm_alpha.chain import Head
    from qlib_llm_alpha.evaluation.ledger import LedgerSummary


def add_parser(commands: Any) -> None:
    """Add ``ledger`` and its sub-commands."""
    parser = commands.add_parser(
        "ledger", help="what was tried and looked at", description="The trial ledger: it can be read, not reset."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser(
        "show",
        help="count trials, reads of tune and openings of sealed",
        description="Count the trials by proposer and by verdict, the reads of tune and the openings of sealed.",
    )
    _add_folder(show)
    show.set_defaults(run=_show)
    verify = actions.add_parser(
        "verify",
        help="find rows and series that were changed or removed",
        description="Read the whole ledger. Exit code 0: all is as it was written; 1: the faults are named; 2: bad "
        "call.",
    )
    _add_folder(verify)
    verify.add_argument(
        "--anchor",
        metavar="COUNT:HASH",
        help="a head of this ledger from an earlier time, as 'ledger show' prints it and runs keep it; without one, a "
        "ledger that was rewritten as a whole is not found out",
    )
    verify.set_defaults(run=_verify)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", type=Path, required=True, metavar="DIR", help="folder of the ledger")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _show(args: argparse.Namespace) -> int:
    found = wiring.show_ledger(args.ledger)
    if args.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        for line in _lines(found):
            # Names and reasons are other people's text, and may hold what a terminal takes for a command.
            print(line.encode("unicode_escape").decode("ascii"))
    return 0


def _lines(found: LedgerSummary) -> Iterator[str]:
    effective = f"{found.effective_trials:.1f}"
    yield f"Ledger {found.folder}: {found.trials} trials, {found.scorings} scorings, effective trials {effective}"
    yield f"  anchor {found.head.count}:{found.head.hash}"
    for proposer, trials in found.by_proposer.items():
        yield f"  {trials:>8}  proposed by {proposer}"
    for (verdict, reason), trials in found.by_verdict.items():
        yield f"  {trials:>8}  {verdict or 'no verdict'}{f' ({reason})' if reason else ''}"
    yield f"Reads of tune: {sum(found.tune_reads.values())}"
    for what, times in found.tune_reads.items():
        yield f"  {times:>8}  {what}"
    yield f"Openings of sealed: {len(found.openings)}"
    for opening in found.openings:
        key = opening["key"]
        marks = [
            f"{opening['openings']} distinct so far",
            *(["repeated"] if opening["repeated"] else []),
            *([f"study {opening['study']}, {opening['cells']} cells"] if opening["study"] else []),
            *([f"forced: {opening['forced']}"] if opening["forced"] else []),
            *(["spent"] if opening["spent"] else []),
        ]
        yield (
            f"  row {opening['row']}, {opening['time'][:19]} UTC: {key['market']} {key['start']} to {key['end']}, "
            f"configuration {key['configuration']}, factor set {key['factor_set']}; {'; '.join(marks)}"
        )


def _verify(args: argparse.Namespace) -> int:
    faults = wiring.verify_ledger(args.ledger, _anchor(args.anchor))
    if args.json:
        print(json.dumps([{"row": fault.row, "detail": fault.detail} for fault in faults], indent=1))
    elif faults:
        for fault in faults:
            print(f"row {fault.row}: {fault.detail}")
    else:
        print(f"{args.ledger}: rows and series are as they were written")
    return 1 if faults else 0


def _anchor(text: str | None) -> Head | None:
    from qlib_llm_alpha.chain import Head

    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,15}:[0-9a-f]{10,64}", text):
        raise ConfigError(
            f"--anchor is {text!r}; expected the number of rows, a colon and at least 10 digits of a hash; copy it "
            "from `ledger show` or from a run's line of evidence"
        )
    count, digest = text.split(":")
    return Head(int(count), digest)
