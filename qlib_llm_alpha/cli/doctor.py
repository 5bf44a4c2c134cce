"""``qlib-llm-alpha doctor``: what of this machine and of the endpoint works, and what to type where not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qlib_llm_alpha import wiring
from qlib_llm_alpha.cli.printing import shown

_MARKS = {"fine": "ok  ", "note": "note", "mend": "MEND"}


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "doctor",
        help="look at this machine and at the language model's endpoint",
        description="Look at Python, packages, the engine's cache, the settings of the language model and the recorded "
        "sessions. Nothing is asked of anybody without --probe. Exit codes: 0 all is fine; 1 something has to be "
        "mended, and what to type is said; 2 a bad call.",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="send the endpoint three small requests: a schema, an image, an embedding; some hundred tokens",
    )
    parser.add_argument("--models", type=Path, metavar="FILE", help="a model registry of your own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    found = wiring.diagnose(probe=args.probe, models=args.models)
    if args.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        for check in found.checks:
            print(f"{_MARKS[check.state]}  {check.topic}: {shown(' '.join(check.detail.split()))}")
            if check.next:
                print(f"      next: {check.next}")
    return 0 if found.healthy else 1
