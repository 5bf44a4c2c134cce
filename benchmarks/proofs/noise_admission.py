"""Show how often the admission pipeline admits anything on markets where nothing can be forecast.

For each seed a noise market is simulated. The seed library and random formulas go through the admission of
``qlib-llm-alpha mine``: screens and the family-wise test against chance. A run that admits anything has erred; alpha
says how many may. Beside it stand the p of the best candidate, which must be uniform over seeds, by turned signs and by
Sidak's formula with the effective number of trials, and the deflated Sharpe ratio of the best long-short return, which
must exceed 0.95 in at most 5 of 100 runs. ``naive`` counts the candidates with an absolute HAC t of 2 or more: what a
miner admits that asks each candidate alone.

One JSON line per seed is appended to --out; seeds already there are skipped, so that the command resumes. Seeds below
500 were used in development; the proof is seeds 1000 to 1099::

    python benchmarks/proofs/noise_admission.py --seeds 100 --workers 2 --out noise_admission.jsonl
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from resumable import Job, Row, rows_of

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.evaluation.many_trials import clopper_pearson, uniformity
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.mining.candidates import MINED_FIELDS, Candidate, listed_candidates, random_candidates
from qlib_llm_alpha.mining.session import Session, mine

INSTRUMENTS = 100
# Look-back of a year first, then nearly five years of search.
START, SEARCH_START, END = "2017-01-03", "2018-01-02", "2022-12-30"
FORMULAS = 2000
ALPHA = 0.05
LABEL = "Ref($close,-2)/Ref($close,-1)-1"
NAIVE_T = 2.0
EVIDENT = 0.95


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds that are missing, then print the pooled result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--formulas", type=int, default=FORMULAS, help="random formulas beside the seed library")
    parser.add_argument("--instruments", type=int, default=INSTRUMENTS)
    parser.add_argument("--end", default=END, help="last day of the market and of search")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a seed; appended to")
    arguments = parser.parse_args(argv)
    shared = {"formulas": arguments.formulas, "instruments": arguments.instruments, "end": arguments.end}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = [{"seed": seed, **shared} for seed in seeds]
    print(summary(rows_of(jobs, run_seed, arguments.out, arguments.workers)))
    return 0


def run_seed(job: Job) -> Row:
    """Simulate one noise market and mine it; what it returns is one line of the output."""
    began = time.perf_counter()
    market = simulate("noise", job["instruments"], START, job["end"], job["seed"])
    session = mine(candidates(job["formulas"], job["seed"]), search_data(market), seed=job["seed"], nulls=0, threads=1)
    return facts_of(session) | {"seconds": round(time.perf_counter() - began, 1)}


def candidates(formulas: int, seed: int) -> list[Candidate]:
    """Return the seed library and random formulas that look like it."""
    listed = listed_candidates("seed_bars")
    known = {one.expression.id for one in listed}
    return [*listed, *random_candidates(formulas, MINED_FIELDS, seed=seed, known=known)]


def search_data(market: Market) -> SearchData:
    """Return the market behind the search wall."""
    walls = Walls.from_segments({"train": (SEARCH_START, str(market.days[-1]))})
    name = f"{market.kind} market, seed {market.seed}"
    label = parse(LABEL, allow_future=True)
    return SearchData.of(market_panel(market), walls.search, label, universe="all", data=name, threads=1)


def facts_of(session: Session) -> Row:
    """Return what is kept of a session."""
    facts = session.to_dict()
    t = np.abs([one.t for one in session.admission.judged])
    return {
        "candidates": facts["candidates"],
        "scored": facts["scored"],
        "admitted": facts["admitted"],
        "chosen": [one.candidate.expression.text for one in session.admission.admitted],
        "naive": int((t >= NAIVE_T).sum()),
        "best_t": float(np.nanmax(t)),
        "run_p": facts["run_p"],
        "sidak_p": facts["sidak_p"],
        "effective_trials": facts["effective_trials"],
        "deflated_sharpe": facts["deflated_sharpe"]["probability"],
        "deflated_trials": facts["deflated_sharpe"]["trials"],
        "sharpe": facts["deflated_sharpe"]["sharpe"],
        "pbo": facts["pbo"],
    }


def summary(rows: Sequence[Row]) -> str:
    """Pool the seeds."""
    runs = len(rows)
    if not runs:
        return "no runs"

    def share(count: int, words: str) -> str:
        interval = clopper_pearson(count, runs)
        return f"{words}: {count} of {runs}, 95 percent interval {interval.lower:.4f} to {interval.upper:.4f}"

    def middle(key: str) -> float:
        return float(np.median([row[key] for row in rows]))

    admitting = sum(row["admitted"] > 0 for row in rows)
    deflated = sum(_number(row["deflated_sharpe"]) > EVIDENT for row in rows)
    held = clopper_pearson(admitting, runs).lower <= ALPHA
    lines = [
        f"{runs} noise markets, {rows[0]['instruments']} names to {rows[0]['end']}; median of {middle('scored'):.0f} "
        f"candidates scored a run, {middle('effective_trials'):.0f} effective trials",
        share(admitting, "runs that admit anything"),
        f"lower bound at most alpha {ALPHA:g}: {'yes' if held else 'NO'}",
        share(deflated, f"deflated Sharpe ratio of the best above {EVIDENT:g}"),
    ]
    for key, words in (("run_p", "p of the run (turned signs)"), ("sidak_p", "Sidak p of the best")):
        test = uniformity(np.array([_number(row[key]) for row in rows]))
        small = sum(_number(row[key]) <= ALPHA for row in rows)
        lines.append(
            f"{words}: KS distance from uniform {test.statistic:.3f}, p {test.p_value:.3f}; {small} at most {ALPHA:g}"
        )
    lines.append(
        f"median PBO {middle('pbo'):.2f}; a |t| of {NAIVE_T:g} alone would admit a median of {middle('naive'):.0f} a "
        f"run, and the best |t| has median {middle('best_t'):.2f}"
    )
    lines.append(f"median {middle('seconds'):.1f} s a run, most {max(row['seconds'] for row in rows):.1f} s")
    return "\n".join(lines)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


if __name__ == "__main__":
    raise SystemExit(main())
