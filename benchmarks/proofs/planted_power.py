"""Show which effects the admission pipeline finds: a table of planted effect size against detection rate.

For each seed a noise market is simulated, and one of the formulas of ``data.embedded.plants`` (by turns) is planted
into its label: each day the label, made uniform by its ranks, is blended with the ranks of the formula so that their
correlation is the effect size, on average over markets. The formula then competes with the seed library and random
formulas through the admission of ``qlib-llm-alpha mine``. It is detected when it is admitted, or when it passes the
test against chance and only gives way to an admitted formula that ranks alike.

One JSON line per seed and size is appended to --out; what is there already is skipped, so that the command resumes.
Seeds below 500 were used in development; the proof is seeds 1000 to 1019::

    python benchmarks/proofs/planted_power.py --seeds 20 --workers 2 --out planted_power.jsonl
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from noise_admission import ALPHA, END, FORMULAS, INSTRUMENTS, START, candidates, search_data
from numpy.typing import NDArray
from resumable import Job, Row, rows_of

from qlib_llm_alpha.data.embedded.plants import PLANTS, rank_scores
from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.tile_scoring import PreparedLabel
from qlib_llm_alpha.engine.tiles import tiled
from qlib_llm_alpha.evaluation.many_trials import clopper_pearson
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.factor.expression import Expression, parse
from qlib_llm_alpha.mining.candidates import Candidate
from qlib_llm_alpha.mining.session import mine

SIZES = (0.0, 0.005, 0.01, 0.015, 0.02, 0.03)
FOUND = ("", "correlated")
"""Reasons of a verdict that follow the test against chance."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds for each size")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="mean daily rank IC of what is planted")
    parser.add_argument("--formulas", type=int, default=FORMULAS, help="random formulas beside the seed library")
    parser.add_argument("--instruments", type=int, default=INSTRUMENTS)
    parser.add_argument("--end", default=END, help="last day of the market and of search")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a seed and size; appended to")
    arguments = parser.parse_args(argv)
    shared = {"formulas": arguments.formulas, "instruments": arguments.instruments, "end": arguments.end}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = [{"seed": seed, "size": size, **shared} for seed in seeds for size in arguments.sizes]
    print(table(rows_of(jobs, run_seed, arguments.out, arguments.workers)))
    return 0


def run_seed(job: Job) -> Row:
    """Plant one formula into one noise market and mine it; what it returns is one line of the output."""
    began = time.perf_counter()
    market = simulate("noise", job["instruments"], START, job["end"], job["seed"])
    plant = PLANTS[job["seed"] % len(PLANTS)]
    planted = Candidate(parse(plant.expression), "planted", plant.name)
    data = with_effect(search_data(market), planted.expression, job["size"], job["seed"])
    others = [one for one in candidates(job["formulas"], job["seed"]) if one.expression.id != planted.expression.id]
    session = mine([planted, *others], data, seed=job["seed"], nulls=0, threads=1)
    found, null = session.admission.judged[0], session.admission.null
    return {
        "plant": plant.name,
        "ic": found.ic,
        "rank_ic": found.rank_ic,
        "t": found.t,
        "adjusted_p": found.adjusted_p,
        "reason": found.verdict.reason,
        "detected": found.adjusted_p <= ALPHA and found.verdict.reason in FOUND,
        "admitted": len(session.admission.admitted),
        "critical_t": None if null is None else null.critical_t,
        "seconds": round(time.perf_counter() - began, 1),
    }


def with_effect(data: SearchData, formula: Expression, size: float, seed: int) -> SearchData:
    """Return the data with a label whose daily rank correlation with a formula is ``size`` more than it was.

    The day's labels are first replaced by uniform draws in the same order, so that the effect does not depend on how
    returns are distributed. Where the formula has no value, the label stays there.
    """
    panel = data.panel
    shape = panel.shape
    values = panel.untiled(evaluate([formula], panel, warmup="strict", threads=1).values[0]).astype(np.float64)
    outcome = data.prepared.values[:, : shape[1]].astype(np.float64)
    member = data.prepared.universe.member[:, : shape[1]]
    score = rank_scores(np.where(member & ~np.isnan(outcome), values, np.nan))
    blended = np.sqrt(1.0 - size**2) * uniform_in_order(outcome, seed) + size * score
    column = tiled(blended.astype(np.float32), np.float32(np.nan), shape)
    return replace(data, prepared=PreparedLabel.of(column, data.prepared.universe))


def uniform_in_order(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return sorted uniform draws of deviation 1 in the order of each row's values; NaN stays.

    Draws and not the ranks themselves: an effect smaller than the step from rank to rank would move nothing.
    """
    known = ~np.isnan(values)
    draws = np.sort(np.where(known, np.random.default_rng(seed).random(values.shape), np.inf), axis=1)
    ordered = np.empty_like(values)
    np.put_along_axis(ordered, np.argsort(np.where(known, values, np.inf), axis=1, kind="stable"), draws, axis=1)
    spread: NDArray[np.float64] = np.where(known, np.sqrt(12.0) * (ordered - 0.5), np.nan)
    return spread


def table(rows: Sequence[Row]) -> str:
    """Return the table of sizes and detection rates as Markdown."""
    lines = [
        "| planted rank IC | runs | measured | median HAC t | detected | rate | 95 % interval |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for size in sorted({row["size"] for row in rows}):
        these = [row for row in rows if row["size"] == size]
        count = sum(row["detected"] for row in these)
        interval = clopper_pearson(count, len(these))
        lines.append(
            f"| {size:g} | {len(these)} | {np.mean([row['rank_ic'] for row in these]):+.4f} | "
            f"{np.median([row['t'] for row in these]):.2f} | {count} | {count / len(these):.0%} | "
            f"{interval.lower:.0%} to {interval.upper:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
