"""Show that the softmax gate beats static weights where a state-dependent edge is planted, and not where none is.

For each seed a market is simulated. Its planted factors are the experts, each alone, turned by the sign of its IC on
search. Static weights and the softmax gate are fitted on search, the gate's penalty is chosen on tune, and the daily IC
gain of the gate over static is taken on the test days. On noise markets the permutation test is run on search, once for
a fixed finite penalty (so that the test cannot pass by choosing the prior) and once for the penalty chosen on tune.

One JSON line per seed is appended to --out; seeds already there are skipped, so that the command resumes. Seeds below
500 were used in development; the proof is seeds 1000 to 1019::

    python benchmarks/proofs/gate_gain.py --kind planted --out planted.jsonl
    python benchmarks/proofs/gate_gain.py --kind noise --out noise.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qlib_llm_alpha.agents.context import board_limit_moves, market_context
from qlib_llm_alpha.data.embedded.simulate import Market, label, planted_factors, simulate
from qlib_llm_alpha.engine.panel import Panel
from qlib_llm_alpha.evaluation.statistics import hac_standard_error
from qlib_llm_alpha.gating.experts import SingleFactorLearner, predict_panel, rows_of
from qlib_llm_alpha.gating.gates import SoftmaxGate, StaticGate
from qlib_llm_alpha.gating.ladder import climb
from qlib_llm_alpha.gating.permutation import permutation_test
from qlib_llm_alpha.gating.sufficient import (
    LABEL_HORIZON,
    Array,
    SufficientStatistics,
    composite_ic,
    standardise_scores,
)

INSTRUMENTS = 100
START, END = "2017-01-03", "2023-12-29"
# The market state needs up to 250 days of history; what is fitted on ends LABEL_HORIZON days before the next segment.
SEARCH = ("2018-01-02", "2020-12-31")
TUNE = ("2021-01-01", "2021-12-31")
TEST = ("2022-01-01", "2023-12-29")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds that are missing, then print the pooled result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("planted", "noise"), required=True)
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--permutations", type=int, default=200, help="on noise markets")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a seed; appended to")
    arguments = parser.parse_args(argv)

    wanted = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    done = {row["seed"] for row in read_rows(arguments.out) if row["kind"] == arguments.kind}
    for seed in wanted:
        if seed not in done:
            row = run_seed(arguments.kind, seed, arguments.permutations)
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    rows = [row for row in read_rows(arguments.out) if row["kind"] == arguments.kind and row["seed"] in wanted]
    print(summary(rows))
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the JSON lines written so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def run_seed(kind: Any, seed: int, permutations: int) -> dict[str, Any]:
    """Simulate one market, fit, choose and test; what it returns is one line of the output."""
    began = time.perf_counter()
    market = simulate(kind, INSTRUMENTS, START, END, seed)
    outcome = label(market)
    scores = expert_scores(market, outcome)
    stats = SufficientStatistics.from_scores(scores, outcome, market.days)
    search, tune, test = stats.between(*SEARCH), stats.between(*TUNE), stats.between(*TEST)
    search, tune = purged(search), purged(tune)
    state = market_state(market, search.days[-1])
    search_state, tune_state, test_state = (part.align(state, market.days) for part in (search, tune, test))

    static = StaticGate().fit(search)
    result = climb(SoftmaxGate(), search, search_state, tune, tune_state, static.learned)
    on_static = composite_ic(test, static.weights(test_state))
    on_equal = composite_ic(test, np.full(test.experts, 1.0 / test.experts))
    gain = composite_ic(test, result.gate.weights(test_state)) - on_static
    row: dict[str, Any] = {
        "kind": kind,
        "seed": seed,
        "days": len(gain),
        "gain": float(gain.mean()),
        "standard_error": hac_standard_error(gain) if gain.any() else 0.0,
        "kl": str(result.gate.penalty.kl),
        "equal_ic": float(on_equal.mean()),
        "static_ic": float(on_static.mean()),
    }
    if kind == "noise":
        finite = permutation_test(SoftmaxGate(), search, search_state, permutations=permutations, seed=seed)
        chosen = permutation_test(result.gate, search, search_state, permutations=permutations, seed=seed)
        row |= {"p_value": finite.p_value, "p_value_chosen": chosen.p_value}
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def expert_scores(market: Market, outcome: Array) -> Array:
    """Score each planted factor as an expert of its own, (K, T, N), turned by its sign on search."""
    factors = standardise_scores(np.stack(list(planted_factors(market).values())))
    target = standardise_scores(outcome)
    row = np.flatnonzero((market.days >= np.datetime64(SEARCH[0])) & (market.days <= np.datetime64(SEARCH[1])))
    row = row[:-LABEL_HORIZON]
    fitted = [SingleFactorLearner(column).fit(*rows_of(factors[:, row], target[row])) for column in range(len(factors))]
    return np.stack([predict_panel(expert, factors) for expert in fitted])


def market_state(market: Market, fit_until: np.datetime64) -> Array:
    """Return the state of every day, (T, S), standardised on days up to `fit_until`."""
    codes = tuple(str(code) for code in market.codes)
    bars = Panel(market.days, codes, {"$close": market.close, "$amount": market.amount}, market.listed)
    limits = board_limit_moves(codes, market.days, market.st)
    return market_context(bars, market.index.close, limit_moves=limits).standardised(fit_until=fit_until)


def purged(stats: SufficientStatistics) -> SufficientStatistics:
    """Leave out the last days of a segment: their labels are known only in the next."""
    return stats.select(np.arange(len(stats.days) - LABEL_HORIZON))


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Pool the seeds: mean of all test days, and its t from the seeds' HAC standard errors.

    Markets are independent, so that the variances of the seeds' sums add up.
    """
    days = np.array([row["days"] for row in rows], dtype=float)
    gain = np.array([row["gain"] for row in rows])
    error = np.array([row["standard_error"] for row in rows])
    mean = float(days @ gain / days.sum())
    pooled_error = float(np.sqrt(((days * error) ** 2).sum()) / days.sum())
    t = mean / pooled_error if pooled_error > 0 else 0.0
    prior = sum(row["kl"] == "inf" for row in rows)
    lines = [
        f"{len(rows)} {rows[0]['kind']} markets, {int(days.sum())} test days",
        f"mean daily IC: equal {np.mean([row['equal_ic'] for row in rows]):.4f}, "
        f"static {np.mean([row['static_ic'] for row in rows]):.4f}",
        f"paired daily IC gain of the softmax gate over static: {mean:+.5f}, pooled HAC t = {t:.2f}; "
        f"{(gain > 0).sum()} seeds gain, {(gain < 0).sum()} lose, the ladder chose the prior itself on {prior}",
    ]
    if rows[0]["kind"] == "noise":
        for key, words in (("p_value", "fixed finite penalty"), ("p_value_chosen", "penalty chosen on tune")):
            small = sum(row[key] < 0.05 for row in rows)
            lines.append(f"permutation p below 0.05, {words}: {small} of {len(rows)}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
