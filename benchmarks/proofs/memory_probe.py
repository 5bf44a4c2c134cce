"""Show how often the recall probe accuses a model that remembers nothing, and whether it finds one that does.

For each seed a noise market is simulated and the recall probe draws its questions from it. They go over real HTTP to
the stub server of the tests on this machine: once to its ``oracle``, whose answers follow from the words of the
question alone, and once to its ``clairvoyant``, which was told what happened. Both are scripts, not language models:
the proof is about the probe, and says nothing of any model. At p < 0.01 the oracle may be accused in at most 5 of 100
runs, and the clairvoyant must be found in every one.

One JSON line per seed is appended to --out; seeds already there are skipped, so that the command resumes. Seeds below
500 were used in development; the proof is seeds 1000 to 1199::

    python benchmarks/proofs/memory_probe.py --seeds 200 --out memory_probe.jsonl
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from resumable import Job, Row, rows_of

# The stub server lives with the tests, in the top folder of the repository.
sys.path.append(str(Path(__file__).parents[2]))

from qlib_llm_alpha.data.embedded.simulate import simulate
from qlib_llm_alpha.evaluation.many_trials import clopper_pearson, uniformity
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.guard.memory_probes import LEVEL, ProbeFinding, recall_probe
from qlib_llm_alpha.guard.memory_questions import Outcome, draw_outcomes
from qlib_llm_alpha.llm.budget import Budget
from qlib_llm_alpha.llm.client import Client
from qlib_llm_alpha.llm.gateway import Gateway
from qlib_llm_alpha.llm.journal import Journal
from qlib_llm_alpha.llm.models import ModelRegistry
from qlib_llm_alpha.llm.settings import LLMSettings
from tests.support.stub_server import StubServer

INSTRUMENTS = 20
START, END = "2018-01-02", "2020-12-31"
QUESTIONS = 40
MOST_ACCUSED = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds that are missing, then print the pooled result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="questions of a probe")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a seed; appended to")
    arguments = parser.parse_args(argv)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = [{"seed": seed, "questions": arguments.questions} for seed in seeds]
    print(summary(rows_of(jobs, run_seed, arguments.out, arguments.workers)))
    return 0


def run_seed(job: Job) -> Row:
    """Ask both scripts about one market; what it returns is one line of the output."""
    began = time.perf_counter()
    outcomes, walls = questions(job["seed"], job["questions"])
    memory = {str(one.day): "up" if one.up else "down" for one in outcomes}
    with StubServer(memory=memory) as stub, tempfile.TemporaryDirectory() as folder:
        oracle, clairvoyant = (
            asked(stub.url, model, Path(folder), outcomes, walls, job["seed"]) for model in ("oracle", "clairvoyant")
        )
        requests = stub.hits
    return {
        "asked": len(outcomes),
        "requests": requests,
        "oracle_right": oracle.counts["right"],
        "oracle_answered": oracle.counts["answered"],
        "oracle_p": oracle.p,
        "oracle_accused": oracle.fired,
        "clairvoyant_right": clairvoyant.counts["right"],
        "clairvoyant_p": clairvoyant.p,
        "clairvoyant_found": clairvoyant.fired,
        "seconds": round(time.perf_counter() - began, 2),
    }


def questions(seed: int, count: int) -> tuple[tuple[Outcome, ...], Walls]:
    """Draw the questions of one noise market."""
    market = simulate("noise", INSTRUMENTS, START, END, seed)
    walls = Walls.from_segments({"train": (str(market.days[0]), str(market.days[-1]))})
    names = [str(code) for code in market.codes]
    return draw_outcomes(market.days, names, market.close, walls, count=count, seed=seed), walls


def asked(url: str, model: str, folder: Path, outcomes: Sequence[Outcome], walls: Walls, seed: int) -> ProbeFinding:
    """Ask one script over HTTP."""
    gateway = Gateway(LLMSettings(base_url=url, model=model), ModelRegistry.of(), Budget())
    with (
        Journal(folder / f"{model}.sqlite") as journal,
        Client(mode="live", model=model, journal=journal, gateway=gateway) as client,
    ):
        return recall_probe(client, outcomes, walls, seed=seed)


def summary(rows: Sequence[Row]) -> str:
    """Pool the seeds."""
    runs = len(rows)
    if not runs:
        return "no runs"
    accused = sum(row["oracle_accused"] for row in rows)
    found = sum(row["clairvoyant_found"] for row in rows)
    interval = clopper_pearson(accused, runs)
    right, answered = (sum(row[f"oracle_{what}"] for row in rows) for what in ("right", "answered"))
    test = uniformity(np.array([row["oracle_p"] for row in rows]))
    return "\n".join(
        [
            f"{runs} noise markets, {sum(row['requests'] for row in rows)} requests over HTTP; p below {LEVEL:g} fires",
            f"oracle accused in {accused} of {runs} runs, 95 percent interval {interval.lower:.4f} to "
            f"{interval.upper:.4f}; at most {MOST_ACCUSED:g}: {'yes' if accused <= MOST_ACCUSED * runs else 'NO'}",
            f"oracle right in {right} of {answered} answers; smallest p {min(row['oracle_p'] for row in rows):.4f}, "
            f"median {np.median([row['oracle_p'] for row in rows]):.2f} (the larger of two p, so not uniform: KS "
            f"distance {test.statistic:.2f})",
            f"clairvoyant found in {found} of {runs} runs: {'yes' if found == runs else 'NO'}; largest p "
            f"{max(row['clairvoyant_p'] for row in rows):.4f}",
            f"median {np.median([row['seconds'] for row in rows]):.1f} s a run",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
