"""``qlib-llm-alpha mine``: propose factors, admit what chance does not explain, count every trial."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qlib_llm_alpha.cli.progress import progress_bar

LABEL = "Ref($close,-2)/Ref($close,-1)-1"


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "mine",
        help="propose factors and admit those that chance does not explain",
        description="Propose formulas, judge them on the days from --start to --end and write the session to --out. No "
        "bar after --end is read, except on the days of --tune and only for what was admitted. Exit codes: 0 done, "
        "whether or not anything was admitted; 2 a bad call.",
    )
    parser.add_argument("--provider", type=Path, required=True, metavar="DIR", help="folder of the Qlib provider")
    parser.add_argument("--universe", default="all", help="a market of the provider (default: all)")
    parser.add_argument("--start", required=True, metavar="D", help="first day of the search segment")
    parser.add_argument("--end", required=True, metavar="D", help="last day of the search segment")
    parser.add_argument(
        "--tune", nargs=2, metavar=("D", "D"), help="score what was admitted on these later days; counted in the ledger"
    )
    parser.add_argument("--proposer", choices=("random",), default="random", help="who proposes (default: random)")
    parser.add_argument("--trials", type=int, default=500, metavar="N", help="formulas to propose (default: 500)")
    parser.add_argument(
        "--formulas",
        action="append",
        default=[],
        metavar="FILE",
        help="judge these as well: a text with one formula a line, a factor set (.yaml) or the name of a built-in set; "
        "may be given several times",
    )
    parser.add_argument(
        "--library", metavar="SET", help="a factor set that is there already: what repeats or resembles it is rejected"
    )
    parser.add_argument("--label", default=LABEL, metavar="EXPR", help=f"what is to be forecast (default: {LABEL})")
    parser.add_argument("--alpha", type=float, default=0.05, help="chance at which a worthless run admits anything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ledger", type=Path, default=Path("ledger"), metavar="DIR", help="default: ledger")
    parser.add_argument("--out", type=Path, required=True, metavar="SESSION", help="a new folder")
    parser.add_argument("--json", action="store_true", help="print the session's facts as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from qlib_llm_alpha import wiring

    with progress_bar("formula") as progress:
        session = wiring.mine_factors(
            args.provider,
            args.universe,
            start=args.start,
            end=args.end,
            tune=None if args.tune is None else tuple(args.tune),
            trials=args.trials,
            formulas=args.formulas,
            library=args.library,
            label=args.label,
            alpha=args.alpha,
            seed=args.seed,
            ledger=args.ledger,
            out=args.out,
            progress=progress,
        )
    if args.json:
        print(json.dumps(session.to_dict()))
    else:
        print(session.report(), end="")
        print(f"\nWritten to {args.out}; every trial is in {args.ledger}.")
    return 0
