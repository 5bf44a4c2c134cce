"""Stock Qlib: ``D.features``, ``calc_ic``, and what a careful user of Qlib writes for the rest of a mining step."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import qlib
from qlib.contrib.eva.alpha import calc_ic
from qlib.data import D
from qlib.data.cache import H
from qlib.data.data import ExpressionD

from engine_peers.competitor import Competitor, Result
from engine_peers.market import LABEL, Market

NAMES_FOR_SHARES = 10


class _Stock(Competitor):
    """``D.features`` of a batch over all names and days; each run begins with an empty memory cache."""

    versions = ("pyqlib", "pandas")
    warm_up = False
    kernels: int
    settings: ClassVar[dict[str, object]] = {}

    def __init__(self, market: Market, threads: int) -> None:
        super().__init__(market, threads)
        warnings.filterwarnings("ignore")
        qlib.init(
            provider_uri=str(market.provider),
            region="cn",
            kernels=self.kernels,
            logging_level=logging.ERROR,
            **self.settings,
        )
        self.codes = sorted(D.list_instruments(D.instruments("all"), as_list=True))
        self.expressions: list[str] = []
        self.frame = D.features(self.codes[: self.kernels], ["$close"])

    def translate(self, expression: str) -> str:
        return expression

    def compile(self, terms: Sequence[str]) -> None:
        self.expressions = list(terms)

    def values(self) -> None:
        del self.frame
        H.clear()
        self.frame = D.features(self.codes, self.expressions)

    def sample(self, columns: Sequence[int]) -> Result:
        calendar = D.calendar()
        parts = [self.frame.loc[self.codes[column]].reindex(calendar).to_numpy().T for column in columns]
        return np.stack(parts, axis=2)

    def forget(self) -> None:
        """Drop the last batch, so that it does not take memory while others run."""
        self.frame = self.frame.iloc[:0]

    def shares(self, expressions: Sequence[str]) -> list[float]:
        """Return the part of a batch's time that each expression takes, found one at a time on a few names."""
        codes = self.codes[:: max(1, len(self.codes) // NAMES_FOR_SHARES)][:NAMES_FOR_SHARES]
        seconds = []
        for expression in expressions:
            H.clear()
            began = time.perf_counter()
            for code in codes:
                ExpressionD.expression(code, expression, None, None, "day")
            seconds.append(time.perf_counter() - began)
        return [part / sum(seconds) for part in seconds]

    def scoring(self, expressions: Sequence[str]) -> dict[str, float]:
        """Return the seconds of scoring one factor, the mean over ``expressions``.

        ``ic`` is ``calc_ic``: IC and rank IC by ``groupby``. ``turnover`` and ``pool_member`` are the cheapest pandas
        ways, on frames of days x names: rank autocorrelation, and the daily correlation with one other factor.
        """
        frame = D.features(self.codes, [*expressions, LABEL])
        label = frame[LABEL]
        ic = turnover = pool_member = 0.0
        for expression in expressions:
            factor = frame[expression]
            began = time.perf_counter()
            calc_ic(factor, label)
            ic += time.perf_counter() - began
            wide = factor.unstack("instrument")
            other = label.unstack("instrument")
            began = time.perf_counter()
            ranks = wide.rank(axis=1)
            ranks.corrwith(ranks.shift(1), axis=1)
            turnover += time.perf_counter() - began
            began = time.perf_counter()
            wide.corrwith(other, axis=1)
            pool_member += time.perf_counter() - began
        count = len(expressions)
        return {"ic": ic / count, "turnover": turnover / count, "pool_member": pool_member / count}


class OneProcess(_Stock):
    """``kernels=1``."""

    kernels = 1


class TwoProcesses(_Stock):
    """``kernels=2``: instruments are shared out between two forked processes."""

    kernels = 2


class OurProvider(_Stock):
    """Qlib as users call it, with our engine behind ``D.features``: what the frame and its index cost on top."""

    kernels = 1
    warm_up = True
    settings: ClassVar[dict[str, object]] = {
        "dataset_provider": {"class": "PanelDatasetProvider", "module_path": "qlib_llm_alpha.data.provider"}
    }
