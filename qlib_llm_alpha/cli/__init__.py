"""The ``qlib-llm-alpha`` command: one module for each command.

A command module has ``add_parser(commands)``, which adds its parser and sets ``run=`` to a function that takes the
parsed arguments and returns an exit code. Exit codes: 0 done, 1 done but something was refused or found wrong, 2 a bad
call, 130 the user interrupted. Imports of heavy packages stay inside the functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from qlib_llm_alpha import __version__
from qlib_llm_alpha.cli.printing import shown
from qlib_llm_alpha.errors import QlibLLMAlphaError

JOURNAL = "journal.sqlite"  # the name is known here, so that an interrupt imports nothing
COMMANDS = (
    "factor",
    "mine",
    "library",
    "ledger",
    "audit",
    "guard",
    "selftest",
    "market",
    "data",
    "warmup",
    "doctor",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="qlib-llm-alpha", description="Factors, agents and a gate for Microsoft Qlib."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"{__name__}.{name}").add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    An error of ours becomes one line on stderr and exit code 2, an interrupt one and 130, a reader that left 1.
    """
    args = build_parser().parse_args(argv)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except QlibLLMAlphaError as error:
        print(f"qlib-llm-alpha: {shown(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The interpreter flushes again when it ends, and would complain of the same pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        print(f"qlib-llm-alpha: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"qlib-llm-alpha: {_interrupted(args)}", file=sys.stderr)
        return 130
    return code


def _interrupted(args: argparse.Namespace) -> str:
    """Return what is said to a user who interrupted; with how to go on where a session was begun."""
    out = getattr(args, "out", None)
    if out is None or not out.is_dir():
        return "interrupted"
    if hasattr(args, "resume"):
        return f"interrupted; what was answered is kept in {out}; repeat the call with --resume to go on"
    if (out / JOURNAL).exists():
        return f"interrupted; what was answered is kept in {out}; repeat the call to go on"
    return "interrupted"


if __name__ == "__main__":
    sys.exit(main())
