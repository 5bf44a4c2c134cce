"""``qlib-llm-alpha market``: write the embedded market as a Qlib provider."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "market",
        help="write the embedded market as a Qlib provider",
        description="Write a simulated, A-share-like market as a Qlib provider: the same bytes for the same arguments. "
        "Run again on the same folder, it verifies what is there.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="folder of the provider")
    what.add_argument("--plants", type=int, metavar="SEEDS", help="write nothing; print the IC of each plant by regime")
    what.add_argument("--moments", type=Path, metavar="DIR", help="write nothing; compare with the bars of a folder")
    parser.add_argument("--kind", choices=("planted", "noise"), default="planted", help="noise has nothing planted")
    parser.add_argument("--instruments", type=int, default=100)
    parser.add_argument("--start", default="2017-01-03", metavar="DAY")
    parser.add_argument("--end", default="2023-12-29", metavar="DAY")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--force", action="store_true", help="replace another or a damaged embedded market at --out")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from qlib_llm_alpha import wiring

    shape = {"instruments": args.instruments, "start": args.start, "end": args.end}
    if args.plants is not None:
        print(wiring.embedded_plant_table(seeds=args.plants, kind=args.kind, **shape))
        return 0
    if args.moments is not None:
        print(wiring.embedded_moment_table(args.moments, kind=args.kind, seed=args.seed, **shape))
        return 0
    market = wiring.write_embedded_market(args.out, kind=args.kind, seed=args.seed, force=args.force, **shape)
    print(_described(market.path, market.manifest, written=market.written))
    return 0


def _described(path: Path, told: dict[str, Any], *, written: bool) -> str:
    verb = "written to" if written else "verified, already at"
    return "\n".join(
        [
            f"Embedded market ({told['kind']}, seed {told['seed']}) {verb} {path}",
            f"  {told['listed']} of {told['instruments']} instruments ever listed, {told['delisted']} delisted; "
            f"index SH000300; {told['trading_days']} trading days from {told['first_day']} to {told['last_day']}",
            "  markets: all, csi300; fields: $open $high $low $close $volume $vwap $amount $factor $change $shares "
            "$industry $st; accounts: P($$eps_q) and others",
            f"  content {told['sha256'][:16]}, {told['files']} files; use: provider_uri: {path}",
        ]
    )
