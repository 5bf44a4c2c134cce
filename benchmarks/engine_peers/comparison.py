"""The order of one run: who is measured beside whom, and what is written down."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_peers.market import Market, market_in
from engine_peers.peers import OURS, PEERS, STOCK
from engine_peers.process import Process, UnavailableError
from engine_peers.table import Row, agreement

POOL = 50
BATCH = 32
LARGE_NAMES, LARGE_BATCH = 5000, 16
SAMPLED_NAMES = 24
SCORED_BY_STOCK = 2
TRIED_ALONE = 3


@dataclass
class Bench:
    """What one run was asked for, and what it found."""

    work: Path
    days: int
    repeats: int
    threads: int
    peers: Sequence[str]
    peer_python: str
    rows: list[Row] = field(default_factory=list)
    bandwidth: dict[str, float] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)

    def start(self, kind: str, market: Market, python: str = sys.executable) -> Process:
        """Start a competitor; UnavailableError if a package is missing."""
        process = Process(kind, market, self.threads, python, self.work / "logs")
        self.versions += [used for used in process.versions if used not in self.versions]
        return process

    def measure_bandwidth(self, market: Market) -> None:
        """Note the bandwidth of memory; the largest seen in the run is what the floor is reckoned with."""
        with self.start("engine_peers.bandwidth:Bandwidth", market) as process:
            for name, rate in process.call("measure").returned.items():
                self.bandwidth[name] = max(rate, self.bandwidth.get(name, 0.0))

    def measure_floors(self) -> None:
        """Note how far values are from the time of writing one float32 column.

        That is 8 bytes a cell, since a line of memory is read before it is written.
        """
        for row in self.rows:
            if row.task == "values" and row.ms is not None:
                floor_ms = 8 * row.names * self.days / max(self.bandwidth.values()) / 1e6
                row.floors = row.ms / floor_ms

    def compare(self, names: int, title: str, expressions: Sequence[str]) -> None:
        """Measure one set of expressions on one market, and add its rows."""
        market = market_in(self.work, names, self.days)
        self.measure_bandwidth(market)
        with tempfile.TemporaryDirectory(dir=self.work) as samples:
            comparison = Comparison(self, market, title, expressions, Path(samples))
            comparison.run()
        self.rows += comparison.rows

    def large(self, expressions: Sequence[str]) -> None:
        """Measure what our engine needs for 5,000 names, in batches that fit a small machine."""
        market = market_in(self.work, LARGE_NAMES, self.days)
        for task, call in (("values", "values"), ("values, IC, rank IC", "scored"), ("mining step", "mining")):
            with self.start(OURS, market) as ours:
                ours.call("batch", list(expressions[:LARGE_BATCH]))
                if call != "values":
                    ours.call("prepare_scores", POOL if call == "mining" else 0)
                arguments = [] if call == "values" else [LARGE_BATCH]
                ours.call(call, *arguments)
                runs = [ours.call(call, *arguments) for _ in range(self.repeats)]
                ms = 1e3 * statistics.median(run.wall for run in runs) / LARGE_BATCH
                self.rows.append(
                    Row(
                        names=LARGE_NAMES,
                        title="LLM-like",
                        task=task,
                        engine="**ours**",
                        expressed=f"{LARGE_BATCH}/{LARGE_BATCH}",
                        ms=ms,
                        cpu_ms=1e3 * statistics.median(run.cpu for run in runs) / LARGE_BATCH,
                        own_gb=runs[-1].own_gb,
                    )
                )


class Comparison:
    """One set of expressions on one market."""

    def __init__(self, bench: Bench, market: Market, title: str, expressions: Sequence[str], samples: Path) -> None:
        self.bench, self.market, self.title, self.expressions = bench, market, title, list(expressions)
        self.samples = samples
        self.rows: list[Row] = []
        self.own_runs: list[Any] = []
        self.columns = [place * market.names // SAMPLED_NAMES for place in range(SAMPLED_NAMES)]
        self.stock_ms: float | None = None
        self.stock_shares: list[float] = []

    def run(self) -> None:
        """Measure everybody against ours, then ours with scores."""
        with self.bench.start(OURS, self.market) as ours:
            self._progress("ours")
            batch = ours.call("batch", self.expressions).returned
            self.own_runs = [ours.call("values") for _ in range(self.bench.repeats)]
            memory = self.own_runs[-1].own_gb
            self._save_sample(ours, "ours")
            alone = self._alone(ours, range(len(self.expressions)))
            scored: list[Any] = []
            mined: list[Any] = []
            stock_scoring: list[dict[str, float]] = []
            for name in self.bench.peers:
                self._progress(name)
                try:
                    python = sys.executable if PEERS[name].ships_with_us else self.bench.peer_python
                    with self.bench.start(PEERS[name].kind, self.market, python) as peer:
                        self._against(ours, peer, name)
                        if name == STOCK:
                            self._warm_scores(ours)
                            for _ in range(self.bench.repeats):
                                scored.append(ours.call("scored", BATCH))
                                stock_scoring.append(self._stock_scoring(peer))
                                mined.append(ours.call("mining", BATCH))
                except UnavailableError as error:
                    if error.kind == OURS:
                        raise
                    self._row("values", PEERS[name].title, note=self._why(name, error))
            if not scored:
                self._warm_scores(ours)
                scored = [ours.call("scored", BATCH) for _ in range(self.bench.repeats)]
                mined = [ours.call("mining", BATCH) for _ in range(self.bench.repeats)]
            self._add_ours(batch, memory, alone)
            self._add_scores(scored, mined, stock_scoring)

    @staticmethod
    def _why(name: str, error: UnavailableError) -> str:
        return f"not installed: pip install {PEERS[name].install}" if error.missing else f"failed: {error.reason}"

    def _warm_scores(self, ours: Process) -> None:
        """Compile what scores, untimed: it is done once on a machine, not once a factor."""
        ours.call("batch", self.expressions)
        ours.call("prepare_scores", POOL)
        ours.call("mining", BATCH)

    def _against(self, ours: Process, peer: Process, name: str) -> None:
        batch = peer.call("batch", self.expressions).returned
        positions = batch["positions"]
        if not positions:
            self._row("values", PEERS[name].title, expressed=f"0/{len(self.expressions)}", note=str(batch["missing"]))
            return
        # Ours computes the same expressions, no more and no fewer.
        ours.call("batch", [self.expressions[position] for position in positions])
        pairs = [(ours.call("values"), peer.call("values")) for _ in range(self.bench.repeats)]
        runs = [theirs for _, theirs in pairs]
        if len(positions) == len(self.expressions):
            self.own_runs += [our for our, _ in pairs]
        memory = runs[-1]
        self._save_sample(peer, name)
        if name == STOCK:
            peer.call("forget")
            self.stock_ms = self._ms(runs, len(positions))
            self.stock_shares = peer.call("shares", self.expressions).returned
        alone = None if "stock_qlib" in PEERS[name].kind else self._alone(peer, positions)
        compiled = 1e3 * batch["seconds"] / len(positions)
        ms = self._ms(runs, len(positions))
        self._row(
            "values",
            PEERS[name].title,
            expressed=f"{len(positions)}/{len(self.expressions)}",
            missing=batch["missing"],
            ms=ms,
            cpu_ms=1e3 * statistics.median(run.cpu for run in runs) / len(positions),
            over_stock=self._over_stock(ms, positions),
            over_ours=statistics.median(theirs.wall / our.wall for our, theirs in pairs),
            alone_ms=alone,
            batch_ms=None if alone is None else compiled,
            own_gb=memory.own_gb,
            child_gb=memory.child_gb if name == STOCK else None,
            agrees=self._agreement(name, positions),
        )

    def _add_ours(self, batch: dict[str, Any], memory: float, alone: float) -> None:
        count = len(self.expressions)
        ms = self._ms(self.own_runs, count)
        self._row(
            "values",
            "**ours**",
            expressed=f"{len(batch['positions'])}/{count}",
            ms=ms,
            cpu_ms=1e3 * statistics.median(run.cpu for run in self.own_runs) / count,
            over_stock=self._over_stock(ms, range(count)),
            over_ours=1.0,
            alone_ms=alone,
            batch_ms=1e3 * batch["seconds"] / count,
            own_gb=memory,
            agrees=self._agreement("ours", range(count)),
        )

    def _add_scores(self, scored: list[Any], mined: list[Any], stock_scoring: list[dict[str, float]]) -> None:
        count = len(self.expressions)
        stock: dict[str, float] = {}
        if self.stock_ms is not None:
            one = {part: 1e3 * statistics.median(run[part] for run in stock_scoring) for part in stock_scoring[0]}
            stock["values, IC, rank IC"] = self.stock_ms + one["ic"]
            stock["mining step"] = stock["values, IC, rank IC"] + one["turnover"] + POOL * one["pool_member"]
        for task, runs in (("values, IC, rank IC", scored), ("mining step", mined)):
            ms = self._ms(runs, count)
            if task in stock:
                self._row(
                    task,
                    PEERS[STOCK].title + (" + calc_ic" if task != "mining step" else " + calc_ic + pandas"),
                    expressed=f"{count}/{count}",
                    ms=stock[task],
                    over_stock=1.0,
                    over_ours=stock[task] / ms,
                )
            self._row(
                task,
                "**ours**",
                expressed=f"{count}/{count}",
                ms=ms,
                cpu_ms=1e3 * statistics.median(run.cpu for run in runs) / count,
                over_stock=stock[task] / ms if task in stock else None,
                over_ours=1.0,
                own_gb=runs[-1].own_gb,
            )

    def _row(self, task: str, engine: str, **figures: Any) -> None:
        self.rows.append(Row(self.market.names, self.title, task, engine, **figures))

    def _ms(self, runs: list[Any], count: int) -> float:
        return 1e3 * float(statistics.median(run.wall for run in runs)) / count

    def _over_stock(self, ms: float, positions: Sequence[int]) -> float | None:
        """Return how many times faster than stock Qlib on the same expressions."""
        if self.stock_ms is None:
            return None
        share = float(sum(self.stock_shares[position] for position in positions))
        return self.stock_ms * len(self.expressions) * share / len(positions) / ms

    def _alone(self, process: Process, positions: Sequence[int]) -> float:
        chosen = positions[:: max(1, len(positions) // TRIED_ALONE)][:TRIED_ALONE]
        return 1e3 * statistics.median(
            float(process.call("alone", self.expressions[place]).returned) for place in chosen
        )

    def _stock_scoring(self, stock: Process) -> dict[str, float]:
        chosen = self.expressions[:: max(1, len(self.expressions) // SCORED_BY_STOCK)][:SCORED_BY_STOCK]
        returned: dict[str, float] = stock.call("scoring", chosen).returned
        return returned

    def _sample_file(self, name: str) -> Path:
        return self.samples / f"{name}.npy"

    def _save_sample(self, process: Process, name: str) -> None:
        process.call("write_sample", self.columns, str(self._sample_file(name)))

    def _agreement(self, name: str, positions: Sequence[int]) -> str | None:
        if name == STOCK or STOCK not in self.bench.peers:
            return None
        return agreement(self._sample_file(name), self._sample_file(STOCK), positions)

    def _progress(self, name: str) -> None:
        print(f"{self.market.names} names, {self.title}: {name}", file=sys.stderr, flush=True)
