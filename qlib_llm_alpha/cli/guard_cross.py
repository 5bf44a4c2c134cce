"""``qlib-llm-alpha guard cross``: the same factors over markets, periods, costs and lags."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib_llm_alpha.cli.progress import progress_bar
from qlib_llm_alpha.errors import ConfigError

if TYPE_CHECKING:
    from qlib_llm_alpha.guard.cross import CrossReport

ENDINGS = (".json", ".csv", ".parquet")


def add_cross(actions: Any) -> None:
    """Add ``cross`` to the actions of ``guard``."""
    parser = actions.add_parser(
        "cross",
        help="hold factors against several markets, periods, costs and lags",
        description="Score each formula of FILE in every market and period, at every cost and lag, and say where it "
        "holds. The first market's first period is the reference. Exit code 0: done; 1: some formulas were refused; 2: "
        "bad call.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="text with one formula a line, 'name: formula' or the formula alone ('-': standard input); a factor set "
        "(.yaml); or the name or id of a built-in set",
    )
    parser.add_argument(
        "--market",
        action="append",
        required=True,
        metavar="NAME=DIR:UNIVERSE",
        help="a provider's folder and one of its markets (default: all); give it once for each",
    )
    parser.add_argument(
        "--period",
        action="append",
        required=True,
        metavar="[MARKET/]NAME=START:END",
        help="first and last day, for all markets or one; give it once for each",
    )
    parser.add_argument("--costs", default="0,10,20", metavar="BPS", help="basis points of the value traded (0,10,20)")
    parser.add_argument("--lags", default="1", metavar="DAYS", help="trading days from signal to trade (default: 1)")
    parser.add_argument("--alpha", type=float, default=0.05, help="level after correction (default: 0.05)")
    parser.add_argument(
        "--agreement", type=float, default=0.75, help="least share of cells with the reference's sign (default: 0.75)"
    )
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws (default: 1000)")
    parser.add_argument("--block", type=int, default=10, help="days in a bootstrap block (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument(
        "--config", type=Path, metavar="WORKFLOW", help="a workflow's YAML: periods may not reach its test segment"
    )
    parser.add_argument(
        "--ledger",
        type=Path,
        default=Path("ledger"),
        metavar="DIR",
        help="count the trials in the ledger of this folder (default: ledger)",
    )
    parser.add_argument("--run", dest="name", default="guard cross", help="name of the run in the ledger")
    parser.add_argument("--brief", action="store_true", help="print verdicts without the tables of cells and stress")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the cells (.csv, .parquet) or all (.json)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from qlib_llm_alpha import wiring

    if args.out is not None and args.out.suffix not in ENDINGS:
        raise ConfigError(f"--out {str(args.out)!r}: expected a file that ends in {' or '.join(ENDINGS)}; rename it")
    with progress_bar("formula") as progress:
        report = wiring.cross_validate_formulas(
            args.file,
            args.market,
            args.period,
            costs_bps=_numbers("--costs", args.costs, float),
            lags=_numbers("--lags", args.lags, int),
            alpha=args.alpha,
            agreement=args.agreement,
            draws=args.draws,
            block=args.block,
            seed=args.seed,
            config=args.config,
            ledger=args.ledger,
            run=args.name,
            progress=progress,
        )
    if args.out is not None:
        _write(report, args.out)
    if args.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        print(_printable(report.describe(brief=args.brief)))
    return 1 if report.refused else 0


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{name} {text!r}: expected numbers with commas between them, such as 1,2,5") from error


def _write(report: CrossReport, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".json":
        text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1)
        out.write_text(text + "\n", encoding="utf-8")
    elif out.suffix == ".csv":
        report.table().to_csv(out, index=False)
    else:
        report.table().to_parquet(out, index=False)


def _printable(text: str) -> str:
    # A formula can hold anything, also what a terminal takes for a command.
    return "".join(sign if sign == "\n" or 32 <= ord(sign) < 127 else f"\\x{ord(sign):02x}" for sign in text)
