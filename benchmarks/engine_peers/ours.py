"""Our engine: a batch is read from text and evaluated into one array, and scored straight from its tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from engine_peers.competitor import Competitor, Result, tree
from engine_peers.market import LABEL, Market
from qlib_llm_alpha.data.bars import open_panel
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.kernels.registry import LANES
from qlib_llm_alpha.engine.tile_scoring import Pool, PreparedLabel, UnitRows, score_columns


class Ours(Competitor):
    """What does not depend on the candidates is done once: the panel, the ranked label, the pool."""

    versions = ("numba", "numpy")

    def __init__(self, market: Market, threads: int) -> None:
        super().__init__(market, threads)
        self.panel = open_panel(market.provider, "all")
        self.texts: list[str] = []
        self.result: Result = np.empty((0, 0, 0, 0), np.float32)
        self.label: PreparedLabel | None = None
        self.pool = Pool.empty()

    def translate(self, expression: str) -> str:
        """Return the text, once it is known to parse."""
        tree(expression)
        return expression

    def compile(self, terms: Sequence[str]) -> None:
        """Keep the texts; there is nothing to compile."""
        self.texts = list(terms)
        shape = (len(terms), self.panel.tile_count, len(self.panel.days), LANES)
        self.result = np.empty(shape, np.float32)

    def values(self) -> None:
        """Read and compute the batch, into the array of the last run."""
        self._evaluated(self.texts, self.result)

    def sample(self, columns: Sequence[int]) -> Result:
        """Pick names out of the tiles."""
        return np.stack([np.asarray(self.panel.untiled(values))[:, columns] for values in self.result])

    def prepare_scores(self, members: int) -> None:
        """Rank the label and fill the pool with so many members."""
        shape = (1, *self.result.shape[1:])
        values = self._evaluated([LABEL], np.empty(shape, np.float32))
        self.label = PreparedLabel.of(values[0], self.panel.member, instruments=len(self.panel.instruments))
        for days in range(1, members + 1):
            text = f"Ref($close, {days})/$close-1"
            rows = UnitRows.of(self._evaluated([text], values), self.label.universe, threads=self.threads)
            self.pool = self.pool.add(text, rows)

    def scored(self, at_once: int) -> None:
        """Compute values, IC and rank IC of the batch, so many candidates at once."""
        for values in self._pieces(at_once):
            score_columns(values, self._label(), measures={"rank_ic"}, threads=self.threads)

    def mining(self, at_once: int) -> None:
        """Compute values, IC, rank IC, turnover and the correlation with the pool."""
        for values in self._pieces(at_once):
            score_columns(values, self._label(), measures={"rank_ic", "turnover"}, threads=self.threads)
            self.pool.correlations(UnitRows.of(values, self._label().universe, threads=self.threads))

    def _label(self) -> PreparedLabel:
        if self.label is None:
            raise RuntimeError("no label yet; call prepare_scores first")
        return self.label

    def _pieces(self, at_once: int) -> Iterator[Result]:
        for begin in range(0, len(self.texts), at_once):
            texts = self.texts[begin : begin + at_once]
            yield self._evaluated(texts, self.result[: len(texts)])

    def _evaluated(self, texts: Sequence[str], out: Result) -> Result:
        return evaluate([tree(text) for text in texts], self.panel, threads=self.threads, out=out).values
