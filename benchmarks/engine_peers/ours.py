"""Our engine: a batch is read from text and evaluated into one array, which is kept between runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine_peers.competitor import Competitor, Result, tree
from engine_peers.market import Market
from qlib_llm_alpha.data.bars import open_panel
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.kernels.registry import LANES


class Ours(Competitor):
    """Values by ``evaluate``, scores straight from its tiles."""

    versions = ("numba", "numpy")

    def __init__(self, market: Market, threads: int) -> None:
        super().__init__(market, threads)
        self.panel = open_panel(market.provider, "all")
        self.texts: list[str] = []
        self.result: Result = np.empty((0, 0, 0, 0), np.float32)

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
        trees = [tree(text) for text in self.texts]
        evaluate(trees, self.panel, threads=self.threads, out=self.result)

    def sample(self, columns: Sequence[int]) -> Result:
        """Pick names out of the tiles."""
        return np.stack([np.asarray(self.panel.untiled(values))[:, columns] for values in self.result])
