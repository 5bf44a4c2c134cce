"""``qlib-llm-alpha guard``: ask whether a workflow knows what it could not know."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add ``guard run`` and ``guard cross``."""
    from qlib_llm_alpha.cli import guard_cross, guard_memory

    parser = commands.add_parser("guard", help="look for leaks: values that know what they could not know")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    runner = actions.add_parser(
        "run",
        help="run the leak guards on a qrun workflow: handler, segments, model",
        description="Build the workflow's handler on copies of its provider that differ in what comes later, and "
        "compare. Nothing is written to the provider or the experiments. Exit code 0: no leak found; 1: a leak found; "
        "2: a bad call.",
        epilog="guards: segments, poison, truncation, extended_window, lag, normaliser, label_reach, stale_cache; "
        "with --with-model also model_poison, which fits the model.",
    )
    runner.add_argument("config", type=Path, metavar="CONFIG.yaml", help="a workflow as for qrun")
    runner.add_argument("--guards", metavar="A,B", help="only these guards, by name")
    runner.add_argument("--with-model", action="store_true", help="fit the model as well, twice or three times")
    runner.add_argument("--days", type=int, default=2, help="days after which values are replaced (default: 2)")
    runner.add_argument("--seed", type=int, default=0, help="seed of the replaced values (default: 0)")
    runner.add_argument(
        "--timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="end a build, or with --with-model a fit, that takes longer (default: 1800)",
    )
    runner.add_argument("--out", type=Path, metavar="FILE", help="write the findings as JSON to a file")
    runner.add_argument("--json", action="store_true", help="print the findings as JSON")
    runner.set_defaults(run=_run)
    guard_cross.add_cross(actions)
    guard_memory.add_memory(actions)


def _run(args: argparse.Namespace) -> int:
    from qlib_llm_alpha import wiring

    report = wiring.run_guards(
        args.config,
        guards=None if args.guards is None else [name.strip() for name in args.guards.split(",") if name.strip()],
        with_model=args.with_model,
        days=args.days,
        seed=args.seed,
        timeout_s=args.timeout,
    )
    text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    if args.json:
        print(text)
    else:
        print(f"Leak guards on {args.config}, {report.seconds:.0f} s")
        if report.days:
            print(f"Values were replaced after {' and '.join(report.days)}, seed {report.seed}.")
        print()
        print(report.table())
    return 1 if report.leaks else 0
