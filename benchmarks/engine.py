"""Our engine beside stock Qlib and four other engines: one Markdown table, measured in one run on this machine.

Usage, with the peers in an environment of their own or in ours::

    python benchmarks/engine.py --quick
    python benchmarks/engine.py --names 300 800 --days 2500 --repeats 3 --peer-python PEERS/bin/python --large

Every engine runs in its own process and takes turns with ours, run by run, so that a busy machine slows both. Figures
are medians. What the columns mean stands in ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine_peers.comparison import LARGE_NAMES, Bench
from engine_peers.peers import PEERS
from engine_peers.table import table

BENCHMARKS = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for and print the table."""
    arguments = _parser().parse_args(argv)
    if arguments.quick:
        arguments.names, arguments.repeats, arguments.every = [300], 1, 5
    arguments.work.mkdir(parents=True, exist_ok=True)
    # Qlib's process first: the others are measured against it.
    peers = sorted(arguments.peers, key=list(PEERS).index)
    bench = Bench(arguments.work, arguments.days, arguments.repeats, arguments.threads, peers, arguments.peer_python)
    sets = expression_sets()
    for names in arguments.names:
        for title, expressions in sets.items():
            bench.compare(names, title, expressions[:: arguments.every])
    if arguments.large:
        bench.large(sets["LLM-like"])
    bench.measure_floors()
    print(table(bench.rows, bench.bandwidth, bench.versions, bench.days, bench.threads, bench.repeats))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([vars(row) for row in bench.rows], indent=1))
    return 0


def expression_sets() -> dict[str, list[str]]:
    """Return the features of Alpha158, asked from the installed Qlib, and 100 that read as a language model's."""
    from qlib.contrib.data.loader import Alpha158DL

    prices = {"windows": [0], "feature": ["OPEN", "HIGH", "LOW", "VWAP"]}
    fields, _ = Alpha158DL.get_feature_config({"kbar": {}, "price": prices, "rolling": {}})
    return {"Alpha158": list(fields), "LLM-like": (BENCHMARKS / "llm_like.txt").read_text().splitlines()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, nargs="+", default=[300, 800], help="sizes of the markets")
    parser.add_argument("--days", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="for every engine that takes a number of threads")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="beside ours")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers installed")
    parser.add_argument("--every", type=int, default=1, help="take every n-th expression of a set")
    parser.add_argument("--quick", action="store_true", help="300 names, every fifth expression, one repeat: minutes")
    parser.add_argument("--large", action="store_true", help=f"our engine on {LARGE_NAMES} names too, for its memory")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "qlib_llm_alpha_benchmark",
        help="where simulated markets are kept for the next run (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
