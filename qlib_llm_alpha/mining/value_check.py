"""A small computation that tells a model why its formula is of no use, before a trial is spent on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.errors import QlibLLMAlphaError
from qlib_llm_alpha.evaluation.search_data import SearchData
from qlib_llm_alpha.factor.expression import Expression
from qlib_llm_alpha.mining.admission import Rules
from qlib_llm_alpha.mining.drafts import Problem
from qlib_llm_alpha.mining.market_profile import coarse


class ComputedValues:
    """Computes formulas on explore and says which have too few values, or the same for all instruments of a day.

    No label is read and nothing is a trial.

    Parameters
    ----------
    data : SearchData
        Explore alone: what is said here goes to a model.
    rules : Rules, optional
        Least coverage and variation.
    threads : int
    """

    def __init__(self, data: SearchData, rules: Rules | None = None, *, threads: int = 2) -> None:
        self._data = data
        self._rules = rules or Rules()
        self._threads = threads
        member = data.panel.member
        self._member = None if member is None else data.panel.untiled(member)[data.rows].astype(np.bool_)

    def __call__(self, formulas: Sequence[Expression]) -> list[Problem | None]:
        """Return what is wrong with each formula, None where nothing is; shares are rounded to 10 percent."""
        return [self._problem(formula) for formula in formulas]

    def _problem(self, formula: Expression) -> Problem | None:
        panel = self._data.panel
        try:
            column = evaluate([formula], panel, warmup="strict", threads=self._threads).values[0]
        except QlibLLMAlphaError as error:
            return "failed", str(error)
        values = panel.untiled(column)[self._data.rows]
        there = np.isfinite(values) if self._member is None else np.isfinite(values) & self._member
        if not there.any():
            return (
                "all_missing",
                "it has no finite value on any day; look for a division by zero or a root of negatives",
            )
        expected = values.shape[1] if self._member is None else np.maximum(self._member.sum(axis=1), 1)
        coverage = float((there.sum(axis=1) / expected).mean())
        highest = np.max(values, axis=1, where=there, initial=-np.inf)
        lowest = np.min(values, axis=1, where=there, initial=np.inf)
        varied = float((highest > lowest).mean())
        if varied == 0:
            return "constant", "it is the same for all instruments of each day, so it cannot rank them"
        least = self._rules.coverage
        if coarse(coverage, 0.001) < least:
            return "coverage", f"{_rough(coverage)} of the instruments have a value; at least {_rough(least)}"
        if varied < self._rules.variation:
            return "variation", f"it tells instruments apart on {_rough(varied)} of the days only"
        return None


def _rough(share: float) -> str:
    return f"about {round(coarse(share, 0.1) * 100)} %"
