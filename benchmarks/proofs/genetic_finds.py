"""Show that the genetic proposer finds what is planted within a stated number of trials, and nothing where nothing is.

For each seed a noise market is simulated. One effect is planted into it: the return from the close of t+1 to that of
t+2 is moved by the ranks of a formula at the close of t, and all later prices with it. The proposer then tries formulas
on explore, the first 60 percent of search, and its shortlist is judged on the rest, as ``qlib-llm-alpha mine`` does. It
has found the effect when an admitted formula ranks as the planted one does on the judged days (mean daily rank
correlation of 0.7 or more) or has 80 percent of its rank IC there. Formulas at random, with the same profile and the
same number of trials, are put through the same. Without an effect, every admission is an error; alpha says how many
may be.

One JSON line per seed, effect and proposer is appended to --out; what is there is skipped, so that the command resumes.
Seeds below 500 were used in development; the proof is seeds 1000 to 1019::

    python benchmarks/proofs/genetic_finds.py --seeds 20 --workers 2 --out genetic_finds.jsonl
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from noise_admission import ALPHA, END, INSTRUMENTS, LABEL, SEARCH_START, START
from numpy.typing import NDArray
from resumable import Job, Row, rows_of

from qlib_llm_alpha.data.embedded.in_memory import market_panel
from qlib_llm_alpha.data.embedded.plants import LAG, rank_scores
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.tile_scoring import UnitRows, score_columns
from qlib_llm_alpha.evaluation.many_trials import clopper_pearson
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.evaluation.statistics import mean_of
from qlib_llm_alpha.evaluation.walls import Walls
from qlib_llm_alpha.factor.expression import Expression, expression_of, parse
from qlib_llm_alpha.factor.tree import Call
from qlib_llm_alpha.mining.candidates import MINED_FIELDS, Candidate
from qlib_llm_alpha.mining.exploring import Found, Proposer, cut
from qlib_llm_alpha.mining.genetic import GeneticProposer, wide_profile
from qlib_llm_alpha.mining.random_formulas import RandomFormulas
from qlib_llm_alpha.mining.search import search

Array = NDArray[np.float64]

TRIALS = 4000
SIZE = 0.04
ALIKE = 0.7
SHARE_OF_IC = 0.8


@dataclass(frozen=True)
class Effect:
    """What is planted: a formula, and the same thing computed at the close of one day, (instruments,)."""

    expression: str
    score: Callable[[Mapping[str, Array], int], Array]


def reversal(bars: Mapping[str, Array], day: int) -> Array:
    """Return minus the return of the last five days."""
    close = bars["close"]
    return 1.0 - close[day] / close[day - 5] if day >= 5 else np.full(close.shape[1], np.nan)


def divergence(bars: Mapping[str, Array], day: int) -> Array:
    """Return minus the correlation of close and volume over ten days."""
    close, volume = (bars[name][max(day - 9, 0) : day + 1] for name in ("close", "volume"))
    if len(close) < 10:
        return np.full(close.shape[1], np.nan)
    one, two = close - close.mean(axis=0), volume - volume.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return -(one * two).sum(axis=0) / np.sqrt((one * one).sum(axis=0) * (two * two).sum(axis=0))


EFFECTS = {
    "reversal_5": Effect("1-$close/Ref($close,5)", reversal),
    "volume_price_divergence": Effect("0-Corr($close,$volume,10)", divergence),
}


class RandomSearch:
    """Formulas at random of the profile that the genetic proposer starts from."""

    name = "random"
    adaptive = False
    batch = 200

    def __init__(self, seed: int) -> None:
        self.formulas = RandomFormulas(MINED_FIELDS, profile=wide_profile(), seed=seed)

    def propose(self, count: int, history: Sequence[Found]) -> list[Candidate]:
        """Return new formulas, whatever the history."""
        return [Candidate(formula, self.name) for formula in self.formulas.propose(count)]


PROPOSERS: dict[str, Callable[[int], Proposer]] = {
    "genetic": lambda seed: GeneticProposer(MINED_FIELDS, seed=seed),
    "random": RandomSearch,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds for each effect and proposer")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--effects", nargs="+", choices=[*EFFECTS, "none"], default=[*EFFECTS, "none"])
    parser.add_argument("--proposers", nargs="+", choices=list(PROPOSERS), default=list(PROPOSERS))
    parser.add_argument("--trials", type=int, default=TRIALS, help="distinct formulas that a proposer may try")
    parser.add_argument("--size", type=float, default=SIZE, help="shift of the return, in own daily deviations")
    parser.add_argument("--instruments", type=int, default=INSTRUMENTS)
    parser.add_argument("--end", default=END, help="last day of the market and of search")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; appended to")
    arguments = parser.parse_args(argv)
    shared = {name: getattr(arguments, name) for name in ("trials", "size", "instruments", "end")}
    jobs = [
        {"seed": seed, "effect": effect, "proposer": proposer, **shared}
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for effect in arguments.effects
        for proposer in arguments.proposers
    ]
    print(table(rows_of(jobs, run_seed, arguments.out, arguments.workers)))
    return 0


def run_seed(job: Job) -> Row:
    """Let one proposer search one market; what it returns is one line of the output."""
    began = time.perf_counter()
    market = simulate("noise", job["instruments"], START, job["end"], job["seed"])
    effect = EFFECTS.get(job["effect"])
    if effect is not None:
        market = planted(market, effect, job["size"])
    data = search_data(market)
    proposer = PROPOSERS[job["proposer"]](job["seed"])
    session = search(lambda explore: proposer, data, trials=job["trials"], seed=job["seed"], nulls=0, threads=1)
    null, tried = session.admission.null, session.exploration
    chosen = session.admission.admitted
    row: Row = {
        "scored": 0 if tried is None else len(tried.scored),
        "best_t": 0.0 if tried is None else float(np.nanmax([one.fitness for one in tried.found])),
        "judged": len(session.admission.family),
        "run_p": None if null is None else null.run_p,
        "admitted": len(chosen),
        "chosen": [one.candidate.expression.text for one in chosen],
    }
    if effect is not None:
        target = parse(effect.expression)
        row |= compared([one.candidate.expression for one in chosen], target, cut(data, threads=1)[1])
        row["first_at"] = first_at(() if tried is None else tried.found, target, cut(data, threads=1)[1])
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def planted(market: Market, effect: Effect, size: float) -> Market:
    """Return a market in which a formula moves the return from the close of the next day to that of the day after.

    The return of an instrument is moved by ``size`` of its own daily deviation for each deviation of the formula's
    rank. From that day on all its prices are moved likewise, and so is what the formula reads later. Volumes stay;
    prices are no longer whole cents.
    """
    bars = {name: values.copy() for name, values in market.bars().items()}
    change = market.close[1:] / market.close[:-1] - 1.0
    known = np.isfinite(change)
    centred = np.where(known, change - np.nansum(change, axis=0) / np.maximum(known.sum(axis=0), 1), 0.0)
    deviation = np.sqrt((centred * centred).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
    moved = np.zeros((len(market.days) + LAG, len(market.codes)))
    level = np.ones(market.close.shape)
    for day in range(len(market.days)):
        level[day] = (level[day - 1] if day else 1.0) * (1.0 + moved[day])
        for name in ("open", "high", "low", "close"):
            bars[name][day] *= level[day]
        score = np.where(market.listed[day], effect.score(bars, day), np.nan)
        moved[day + LAG] = size * deviation * rank_scores(score)
    prices = {name: bars[name] for name in ("open", "high", "low", "close")}
    return replace(market, **prices, vwap=market.vwap * level, amount=market.amount * level)


def search_data(market: Market) -> SearchData:
    """Return the market behind the search wall."""
    walls = Walls.from_segments({"train": (SEARCH_START, str(market.days[-1]))})
    label = parse(LABEL, allow_future=True)
    return SearchData.of(market_panel(market), walls.search, label, universe="all", data="simulated", threads=1)


def compared(formulas: Sequence[Expression], target: Expression, data: SearchData) -> Row:
    """Compare admitted formulas with the planted one on the judged days."""
    rank_ic, alike = against(formulas, target, data)
    share = max((abs(one) / abs(rank_ic[0]) for one in rank_ic[1:]), default=0.0)
    best = max((abs(one) for one in alike), default=0.0)
    return {
        "planted_rank_ic": rank_ic[0],
        "alike": best,
        "share_of_ic": share,
        "found": bool(formulas) and (best >= ALIKE or share >= SHARE_OF_IC),
    }


def first_at(found: Sequence[Found], target: Expression, data: SearchData) -> int | None:
    """Return after how many trials a formula was there that ranks as the planted one does; None where none was."""
    scored = [(trial, one.candidate.expression) for trial, one in enumerate(found, 1) if np.isfinite(one.fitness)]
    for start in range(0, len(scored), 100):
        part = scored[start : start + 100]
        _, alike = against([formula for _, formula in part], target, data)
        for (trial, _), correlation in zip(part, alike, strict=True):
            if abs(correlation) >= ALIKE:
                return trial
    return None


def against(formulas: Sequence[Expression], target: Expression, data: SearchData) -> tuple[list[float], list[float]]:
    """Return mean rank ICs, the target's first, and mean daily rank correlations of each formula with the target."""
    ranked = [expression_of(Call("CSRank", (one.root,))) for one in (target, *formulas)]
    values = evaluate(ranked, data.panel, warmup="strict", threads=1).values
    scores = score_columns(list(values), data.prepared, threads=1, rows=data.rows)
    ranks = [np.ascontiguousarray(column[:, data.rows]) for column in values]
    universe = data.prepared.universe.window(data.rows)
    target_rows = UnitRows.of(ranks[:1], universe, threads=1)
    alike = UnitRows.of(ranks[1:], universe, threads=1).mean_correlation(target_rows, threads=1) if formulas else []
    return [mean_of(one.rank_ic) for one in scores if one.rank_ic is not None], np.ravel(alike).tolist()


def table(rows: Sequence[Row]) -> str:
    """Return what was found and what was admitted in error as Markdown."""
    lines = [
        "| planted | proposer | runs | trials | planted rank IC | found | 95 % interval | median trials to it | "
        "admit anything | 95 % interval |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for effect, proposer in dict.fromkeys((row["effect"], row["proposer"]) for row in rows):
        these = [row for row in rows if (row["effect"], row["proposer"]) == (effect, proposer)]
        runs = len(these)
        admitting = sum(row["admitted"] > 0 for row in these)
        cells = ["", "", "", ""]
        if effect in EFFECTS:
            count = sum(row["found"] for row in these)
            first = [row["first_at"] for row in these if row["first_at"] is not None]
            cells = [
                f"{np.mean([row['planted_rank_ic'] for row in these]):+.4f}",
                f"{count} of {runs}",
                _interval(count, runs),
                f"{np.median(first):.0f} ({len(first)} runs)" if first else "never",
            ]
        lines.append(
            f"| {effect} | {proposer} | {runs} | {these[0]['trials']} | {' | '.join(cells)} | {admitting} of {runs} | "
            f"{_interval(admitting, runs)} |"
        )
    for proposer in dict.fromkeys(row["proposer"] for row in rows if row["effect"] == "none"):
        these = [row for row in rows if (row["effect"], row["proposer"]) == ("none", proposer)]
        admitting = sum(row["admitted"] > 0 for row in these)
        held = clopper_pearson(admitting, len(these)).lower <= ALPHA
        lines.append(f"\n{proposer}, nothing planted: lower bound at most alpha {ALPHA:g}: {'yes' if held else 'NO'}")
    return "\n".join(lines)


def _interval(count: int, runs: int) -> str:
    interval = clopper_pearson(count, runs)
    return f"{interval.lower:.0%} to {interval.upper:.0%}"


if __name__ == "__main__":
    raise SystemExit(main())
