"""``qlib-llm-alpha warmup``: compile the engine's kernels, once for a machine."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from qlib_llm_alpha import wiring


def add_parser(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "warmup",
        help="compile the engine's kernels, once for a machine",
        description="Compile the engine's kernels for this machine and keep them on disk, so that the first evaluation "
        "does not have to. Takes half a minute on two processors the first time, about a second afterwards.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from tqdm import tqdm

    print(
        "looking at the engine's kernels: what this machine lacks is compiled now, once; "
        "all of them take half a minute on two processors, a minute on one",
        file=sys.stderr,
        flush=True,
    )
    logging.getLogger("qlib_llm_alpha.engine.compiling").setLevel(logging.ERROR)  # it would say the same again
    with tqdm(unit="kernel", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        done = wiring.warm_up_engine(progress)
    if done.compiled:
        print(f"compiled {len(done.compiled)} functions in {done.seconds:.1f} s; they are kept on disk")
    else:
        print(f"nothing to compile: everything was on disk ({done.seconds:.1f} s)")
    return 0
