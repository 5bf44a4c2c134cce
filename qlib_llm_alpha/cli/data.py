"""``qlib-llm-alpha data``: import bars into a provider, append to one, check one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add ``data import`` and ``data check``."""
    parser = commands.add_parser("data", help="import market data into a Qlib provider, or check a provider")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    importer = actions.add_parser("import", help="write a provider from Parquet or CSV files, or append to one")
    importer.add_argument("--source", required=True, choices=("parquet", "csv"), help="what kind of files")
    importer.add_argument("--from", required=True, dest="folder", type=Path, metavar="DIR", help="the files' folder")
    importer.add_argument("--out", required=True, type=Path, metavar="DIR", help="the provider's folder")
    importer.add_argument("--start", metavar="DATE", help="first day to keep (YYYY-MM-DD)")
    importer.add_argument("--end", metavar="DATE", help="last day to keep (YYYY-MM-DD)")
    importer.add_argument("--market", choices=("cn", "us"), default="cn", help="how codes are read (default: cn)")
    importer.add_argument("--update", action="store_true", help="append new days to the provider in --out")
    importer.add_argument("--quiet", action="store_true", help="no progress bar")
    importer.add_argument("--json", action="store_true", help="print the report as JSON")
    importer.set_defaults(run=_import)

    checker = actions.add_parser(
        "check",
        help="name what is wrong with a provider and how to mend it",
        description="Exit code 0: no errors (warnings do not count); 1: errors found; 2: a bad call.",
    )
    checker.add_argument("--provider", required=True, type=Path, metavar="DIR", help="the provider's folder")
    checker.add_argument("--json", action="store_true", help="print the findings as JSON")
    checker.set_defaults(run=_check)


def _import(args: argparse.Namespace) -> int:
    from qlib_llm_alpha import wiring

    report = wiring.import_market_data(
        args.source,
        args.folder,
        args.out,
        market=args.market,
        start=args.start,
        end=args.end,
        update=args.update,
        progress=not args.quiet,
    )
    if args.json:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return 0
    print(f"layout detected: {report.layout}")
    for note in report.notes:
        print(note)
    print(f"{report.instruments} instruments and {report.indices} indices, {report.days} days, ", end="")
    print(f"{report.first} to {report.last}; written now {report.written}, left as they were {report.kept}")
    print(f"provider: {report.provider}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from qlib_llm_alpha import wiring

    report = wiring.check_market_data(args.provider)
    if args.json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=1))
        return 1 if report.errors else 0
    for finding in report.findings:
        print(f"{finding.severity}: {finding.code}: {finding.message}")
        for example in finding.examples:
            print(f"    {example}")
        print(f"    mend: {finding.mend}")
    print(f"{report.provider}: {report.errors} errors, {report.warnings} warnings")
    return 1 if report.errors else 0
