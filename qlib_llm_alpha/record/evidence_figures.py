"""The figures of a run's evidence, from plain series: what a traded strategy and the columns beside it amount to."""

from __future__ import annotations

from math import isfinite, sqrt

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qlib_llm_alpha.errors import ConfigError, MissingExtraError
from qlib_llm_alpha.evaluation.bootstrap import bootstrap_interval, step_m, superior_predictive_ability
from qlib_llm_alpha.evaluation.max_null import max_null
from qlib_llm_alpha.evaluation.overfitting import probability_of_backtest_overfitting
from qlib_llm_alpha.evaluation.sharpe import deflated_sharpe, minimum_backtest_length, probabilistic_sharpe
from qlib_llm_alpha.evaluation.signal import break_even_cost_bps
from qlib_llm_alpha.evaluation.statistics import DAYS_PER_YEAR, annualised
from qlib_llm_alpha.guard.model_window import Headline, Part
from qlib_llm_alpha.report.evidence_text import Figure, Missing

Array = NDArray[np.float64]

BLOCKS = 12
"""Blocks of the split samples: 924 splits, a block of two years is two months."""
ALPHA = 0.05


def strategy_figures(excess: Array, *, trials: float, basis: str, seed: int, uncounted: str = "") -> list[Figure]:
    """State how far a daily excess return after cost can be believed.

    Parameters
    ----------
    excess : array, (T,)
        Return less benchmark less cost of each day.
    trials : float
        Effective number of trials; one whose direction the data chose counts twice.
    basis : str
    seed : int
        Of the bootstrap.
    uncounted : str
        A clause that says which trials `trials` does not hold; empty where it holds all that are known of. More trials
        make the deflated Sharpe smaller and the years before luck more, so that both are then only bounds.
    """
    above = f"; an upper bound only: {uncounted}" if uncounted else "; evidence from 0.95 on"
    below = f"; a lower bound only: {uncounted}" if uncounted else ""
    tried = max(1.0, trials)
    year = sqrt(DAYS_PER_YEAR)
    interval = bootstrap_interval(excess, "sharpe", seed=seed)
    positive = probabilistic_sharpe(excess)
    days = int(np.isfinite(excess).sum())
    # An effective number of trials goes with the deviation that chance gives to one of them.
    deflated = deflated_sharpe(excess, trials=tried, sharpe_deviation=1.0 / sqrt(max(days - 1, 1)))
    figures = [
        Figure(
            "excess return a year",
            annualised(excess).mean,
            f"{annualised(excess).mean:.2%}",
            "mean daily excess return after cost times 252, not compounded",
            basis,
        ),
        Figure(
            "Sharpe",
            interval.estimate,
            f"{interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})",
            "a year; in brackets the 95% block-bootstrap interval: if it holds 0, this test cannot tell the strategy "
            "from its benchmark",
            basis,
        ),
        Figure(
            "probability that Sharpe is above 0",
            positive,
            f"{positive:.3f}",
            "probabilistic Sharpe ratio, as if nothing had been searched",
            basis,
        ),
        Figure(
            "deflated Sharpe",
            deflated.probability,
            f"{deflated.probability:.3f}",
            f"probability that it is above {deflated.threshold * year:.2f} a year, which the best of "
            f"{tried:.1f} independent trials reaches by luck{above}",
            basis,
        ),
    ]
    if isfinite(interval.estimate) and interval.estimate > 0:
        needed = minimum_backtest_length(tried, interval.estimate).years
        figures.append(
            Figure(
                "years before luck",
                needed,
                f"{needed:.2f} of {days / DAYS_PER_YEAR:.2f}",
                f"minimum backtest length: with fewer years the best of {tried:.1f} trials shows such a Sharpe by "
                f"luck; the second number is what was tested{below}",
                basis,
            )
        )
    return figures


def memory_figures(found: Headline, *, basis: str) -> list[Figure]:
    """State a figure of test on the days that no model can remember, and beside it on those that one may.

    Parameters
    ----------
    found : Headline
        As from ``guard.model_window.headline``; a side without days gives no figure.
    basis : str
    """

    def figure(words: str, part: Part | None, meaning: str) -> list[Figure]:
        if part is None:
            return []
        return [Figure(f"{found.name} {words}", part.value, part.sentence, meaning, basis)]

    return [
        *figure("on clean days", found.clean, "what counts: the days of test after the cut-offs of all models"),
        *figure(
            "on days a model may remember",
            found.contaminated,
            "does not count: a model that proposed factors may have been trained on what followed",
        ),
    ]


def break_even_figures(report: pd.DataFrame, *, basis: str) -> list[Figure]:
    """State what trading may cost before the excess return is gone.

    Parameters
    ----------
    report : DataFrame
        Qlib's daily report: ``return`` before cost, ``bench``, ``cost`` and ``turnover`` as shares of the account.
    basis : str
    """
    traded = float(report["turnover"].sum())
    if not traded > 0:
        return []
    gross = (report["return"] - report["bench"]).to_numpy(np.float64)
    even = break_even_cost_bps(gross, report["turnover"].to_numpy(np.float64))
    paid = 1e4 * float(report["cost"].sum()) / traded
    return [
        Figure(
            "break-even cost",
            even,
            f"{even:.1f} bps",
            f"cost of each unit traded at which the excess return is 0; {paid:.1f} bps were paid",
            basis,
        )
    ]


def comparison_figures(
    columns: pd.DataFrame, *, reference: str, basis: str, seed: int
) -> tuple[list[Figure], list[Missing]]:
    """State how far the best of the compared columns can be believed.

    Parameters
    ----------
    columns : DataFrame, (T, K)
        Daily excess return after cost of every column that was traded.
    reference : str
        The baseline among them.
    basis : str
    seed : int
        Of the bootstrap.
    """
    figures, missing = [], []
    if columns.shape[1] >= 2 and len(columns) >= BLOCKS:
        overfit = probability_of_backtest_overfitting(columns.to_numpy(np.float64), blocks=BLOCKS)
        figures.append(
            Figure(
                "PBO",
                overfit.pbo,
                f"{overfit.pbo:.2f}",
                f"share of {overfit.splits} splits in which the best of {columns.shape[1]} columns by Sharpe on one "
                f"half of the days is in the lower half on the other; {overfit.chance:.2f} is luck, 0 a lasting order",
                basis,
            )
        )
    else:
        missing.append(Missing("PBO", f"{columns.shape[1]} columns on {len(columns)} days cannot be split"))
    others = [name for name in columns if name != reference]
    if reference not in columns or not others:
        missing.append(Missing("SPA and StepM", f"there is no column {reference!r} with others beside it"))
        return figures, missing
    gains = columns[others].to_numpy(np.float64) - columns[[reference]].to_numpy(np.float64)
    try:
        ability = superior_predictive_ability(gains, seed=seed)
        better = step_m(gains, [str(name) for name in others], alpha=ALPHA, seed=seed).better
    except MissingExtraError:
        why = "the package arch is not installed; `pip install qlib_llm_alpha[stats]` brings it"
        return figures, [*missing, Missing("SPA and StepM", why)]
    figures += [
        Figure(
            "SPA p",
            ability.consistent,
            f"{ability.consistent:.3f}",
            f"Hansen's test: chance that the best of {len(others)} columns looks so much better than {reference} if "
            "none of them is",
            basis,
        ),
        Figure(
            "columns better by StepM",
            float(len(better)),
            ", ".join(better) or "none",
            f"columns that beat {reference} with at most {ALPHA:.0%} chance of naming any wrongly",
            basis,
        ),
    ]
    return figures, missing


def search_figures(series: Array, *, basis: str) -> tuple[list[Figure], list[Missing]]:
    """State whether the strongest trial on search is more than the best of so many.

    Parameters
    ----------
    series : array, (T, K)
        Daily IC of every trial on search.
    basis : str
    """
    if series.shape[1] == 0:
        return [], []
    try:
        found = max_null(series)
    except ConfigError as error:
        return [], [Missing("strongest trial on search", str(error))]
    figure = Figure(
        "p of the strongest trial",
        found.run_p,
        f"{found.run_p:.4f}",
        f"chance that the best of {series.shape[1]} trials looks so strong on search if none has merit; the bar at 5% "
        f"is |t| {found.critical_t:.2f}",
        basis,
    )
    return [figure], []
