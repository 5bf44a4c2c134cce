"""``qlib-llm-alpha guard memory``: what a language model can know of test days, and what it remembers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qlib_llm_alpha.cli.printing import shown


def add_memory(actions: Any) -> None:
    """Add ``memory`` to the actions of ``guard``."""
    parser = actions.add_parser(
        "memory",
        help="ask a language model what it remembers of a market, and hold its cut-off against test days",
        description="Compare the model's knowledge cut-off with the days of --test, then ask it about days from "
        "--start to --end: by day and name alone, with false days, with other names, with figures changed a little and "
        "facts turned round. No other question of this package names days and instruments. No bar after --end is read. "
        "About seven short requests for each of --questions; what was answered is kept in --out and not asked again. "
        "Exit code 0: no sign of memory; 1: a probe found memory; 2: a bad call.",
    )
    parser.add_argument("--provider", type=Path, required=True, metavar="DIR", help="folder of the Qlib provider")
    parser.add_argument("--universe", default="all", help="a market of the provider (default: all)")
    parser.add_argument("--start", required=True, metavar="D", help="first day that may be asked about")
    parser.add_argument("--end", required=True, metavar="D", help="last day that may be asked about")
    parser.add_argument(
        "--test",
        nargs=2,
        action="append",
        default=[],
        metavar=("D", "D"),
        help="a test segment after --end whose status is asked for; give it once for each (default: --start to --end)",
    )
    parser.add_argument(
        "--questions", type=int, default=40, metavar="N", help="questions of each probe; 0: dates only (default: 40)"
    )
    parser.add_argument("--mode", choices=("live", "record", "replay"), help="default: LLM_MODE, else replay")
    parser.add_argument("--model", metavar="NAME", help="default: OPENAI_MODEL; in replay that of the recording")
    parser.add_argument("--models", type=Path, metavar="FILE", help="a model registry of your own, with cut-offs")
    parser.add_argument(
        "--recording", metavar="FILE", help="answers to replay: a file or the folder of an earlier --out"
    )
    parser.add_argument("--budget-usd", type=float, metavar="X", help="stop before more money than this is spent")
    parser.add_argument(
        "--budget-tokens", type=int, default=500_000, metavar="N", help="the same in tokens (default: 500000)"
    )
    parser.add_argument("--buffer", type=int, default=90, metavar="DAYS", help="days after a cut-off not trusted (90)")
    parser.add_argument("--seed", type=int, default=0, help="seed of days, names and tests (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("memory"), metavar="DIR", help="default: memory")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from qlib_llm_alpha import wiring

    report = wiring.probe_model_memory(
        args.provider,
        args.universe,
        args.out,
        start=args.start,
        end=args.end,
        windows=[tuple(window) for window in args.test],
        questions=args.questions,
        buffer_days=args.buffer,
        seed=args.seed,
        mode=args.mode,
        model=args.model,
        models=args.models,
        recording=args.recording,
        budget_usd=args.budget_usd,
        budget_tokens=args.budget_tokens,
    )
    if args.json:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=1))
    else:
        print(shown(report.table()))
    return 1 if report.fired else 0
